"""restart, ttl_s and protect: what the daemon does by itself.  Durability is in test_policy_restart.py, autostart in
test_autostart.py."""
import time

import pytest

from lib.policy import as_of, at_rest, ends, explain, gives_up, starts, told
from lib.vms import begin, destroy, do, eventually, get_operation, get_vm, make_vm, settled

# Restarts that a test can wait for: 40, 80, 160 ms … and then no more.
QUICK = "restart_delay_ms = 40\nrestart_max = 3\n"


@pytest.fixture
def quick(daemons):
    return daemons(config=QUICK).client()


@pytest.mark.parametrize("policy, how, again", [
    ("never", "killed:9", False), ("on-failure", "killed:9", True), ("always", "killed:9", True),
    ("on-failure", "panic", True), ("on-failure", "guest-off", False), ("always", "guest-off", True),
    ("on-failure", "oom", True), ("on-failure", "exited:1", True),
])
def test_vm_that_ended_is_started_again_as_its_policy_says(quick, policy, how, again):
    make_vm(quick, start=True, restart=policy)
    ends(quick, how)
    if again:
        eventually(lambda: get_vm(quick)["state"], lambda state: state == "running")
    else:
        time.sleep(1.3)
        assert get_vm(quick)["state"] in ("failed", "stopped")


def test_vm_killed_for_want_of_memory_says_so(api):
    make_vm(api, start=True)
    ends(api, "oom")
    failure = get_vm(api)["failure"]
    assert (failure["reason"], failure["signal"]) == ("oom", "SIGKILL")
    assert failure["code"] == "vm_manager::host::insufficient_memory" and "want of memory" in failure["detail"]


def test_vm_that_ends_during_an_operation_is_started_again(quick):
    make_vm(quick, start=True, restart="on-failure")
    quick.patch("/v1/vms/web", {"labels": {"noop.exit": "killed:9", "noop.exit_after_ms": "1", "noop.exit_step": "suspend",
                                           "noop.delay_ms.suspend": "5000"}})
    since = as_of(quick)
    begin(quick, "suspend")
    at_rest(quick, since)
    quick.patch("/v1/vms/web", {"labels": {"noop.exit": None, "noop.exit_step": None}})
    eventually(lambda: get_vm(quick)["state"], lambda state: state == "running")


# ---- back-off and brake ----

def test_restarts_come_later_each_time_and_then_no_more(quick):
    make_vm(quick, labels={"noop.exit": "killed:9", "noop.exit_after_ms": "20"}, restart="on-failure")
    since = settled(quick)
    do(quick, "start")
    gives_up(quick, since)
    scheduled = told(quick, since, "vm.restart_scheduled", 3)
    assert scheduled == [{"delay_ms": 40, "restart": 1}, {"delay_ms": 80, "restart": 2}, {"delay_ms": 160, "restart": 3}]
    assert told(quick, since, "vm.restart_given_up") == [{"restarts": 3, "window_s": 600}]
    assert explain(quick) == {"policy": "on-failure", "count": 3, "next_at": None, "given_up": True}
    vm = get_vm(quick)
    assert vm["state"] == "failed" and "not started again after 3 restarts in 600 s" in vm["failure"]["detail"]
    assert quick.get("/v1/vms/web/wait", query={"for": "state:running", "timeout": 60}).code == "wait::impossible"


def test_start_that_fails_is_one_more_restart(quick):
    make_vm(quick, start=True, restart="on-failure")
    since = settled(quick)
    quick.patch("/v1/vms/web", {"labels": {"noop.fail": "spawn"}})
    ends(quick, "killed:9")
    gives_up(quick, since)
    assert len(told(quick, since, "vm.restart_scheduled", 3)) == 3
    assert get_vm(quick)["failure"]["reason"] == "spawn"


def test_long_good_run_begins_the_count_anew(daemons):
    api = daemons(config=QUICK + "restart_window_s = 3\n").client()
    make_vm(api, start=True, restart="on-failure")
    for _ in range(4):
        ends(api, "killed:9")
        eventually(lambda: get_vm(api)["state"], lambda state: state == "running")
        assert explain(api)["count"] == 1
        time.sleep(3.1)  # the good run


def test_start_by_hand_begins_the_count_anew(quick):
    make_vm(quick, labels={"noop.exit": "killed:9", "noop.exit_after_ms": "20"}, restart="on-failure")
    do(quick, "start")
    gives_up(quick, 0)
    quick.patch("/v1/vms/web", {"labels": {"noop.exit": None}})
    do(quick, "start")
    assert explain(quick) == {"policy": "on-failure", "count": 0, "next_at": None, "given_up": False}


def test_restart_is_announced(api):
    make_vm(api, start=True, restart="on-failure")
    since = settled(api)
    ends(api, "killed:9")
    with api.events(since=since, type="vm.restart_scheduled") as stream:
        event = next(iter(stream.until(lambda e: e.type == "vm.restart_scheduled")))
    assert event.data["data"] == {"delay_ms": 1000, "restart": 1}


# ---- what somebody asks for wins ----

@pytest.fixture
def waiting(daemons):
    """A VM whose restart waits for longer than a test."""
    api = daemons(config="restart_delay_ms = 300000\n").client()

    def make(how="killed:9", policy="always"):
        make_vm(api, start=True, restart=policy)
        ends(api, how)
        assert explain(api)["next_at"] is not None
        return api

    return make


@pytest.mark.parametrize("verb", ["stop", "kill"])
def test_stop_by_hand_wins_over_the_policy(quick, verb):
    make_vm(quick, start=True, restart="always")
    do(quick, verb)
    time.sleep(1.3)
    assert get_vm(quick)["state"] == "stopped"


@pytest.mark.parametrize("verb", ["stop", "kill"])
@pytest.mark.parametrize("how, state", [("guest-off", "stopped"), ("killed:9", "failed")])
def test_stop_takes_a_waiting_restart_back(waiting, verb, how, state):
    api = waiting(how)
    since = settled(api)
    assert do(api, verb).json["method"] == "none"
    assert told(api, since, "vm.restart_cancelled") == [{"by": f"vm.{verb}"}]
    assert get_vm(api)["state"] == state and explain(api)["next_at"] is None
    assert api.get("/v1/vms/web/wait", query={"for": "state:running", "timeout": 60}).code == "wait::impossible"
    if state == "failed":  # and with nothing to take back it is the wrong state again
        assert do(api, verb, expect=409).code == "vm::invalid_state"


def test_start_by_hand_does_not_wait_for_the_policy(waiting):
    api = waiting()
    do(api, "start")
    assert get_vm(api)["state"] == "running" and explain(api)["next_at"] is None


def test_destroy_takes_a_waiting_restart_back(quick):
    make_vm(quick, start=True, restart="always")
    ends(quick, "killed:9")
    destroy(quick)
    time.sleep(1.2)
    assert quick.get("/v1/vms").json["items"] == []


def test_kill_ends_a_restart_that_has_begun(quick):
    make_vm(quick, start=True, restart="always", labels={"noop.delay_ms.vm.start:spawn": "20000"})
    ends(quick, "killed:9")
    eventually(lambda: get_vm(quick)["operation"], lambda operation: operation is not None)
    do(quick, "kill")
    time.sleep(1.2)
    assert get_vm(quick)["state"] == "failed" and explain(quick)["next_at"] is None


def test_cancel_of_the_start_takes_the_restart_back(quick):
    make_vm(quick, start=True, restart="always", labels={"noop.delay_ms.vm.start:spawn": "20000"})
    ends(quick, "killed:9")
    op = eventually(lambda: get_vm(quick)["operation"], lambda operation: operation is not None)
    assert quick.delete(f"/v1/operations/{op}").status in (200, 202)
    eventually(lambda: get_operation(quick, op)["state"], lambda state: state == "cancelled")
    time.sleep(1.2)
    assert get_vm(quick)["state"] == "failed" and starts(quick) == 1


def test_wait_for_running_is_possible_while_a_restart_waits(quick):
    make_vm(quick, start=True, restart="on-failure")
    ends(quick, "killed:9")
    assert quick.get("/v1/vms/web/wait", query={"for": "state:running", "timeout": 60}).status == 200


def test_policy_that_is_changed_to_never_takes_a_waiting_restart_back(daemons):
    api = daemons(config="restart_delay_ms = 4000\n").client()
    make_vm(api, start=True, restart="always")
    ends(api, "killed:9")
    api.patch("/v1/vms/web", {"spec": {"restart": "never"}})
    assert explain(api)["next_at"] is None
    assert api.get("/v1/vms/web/wait", query={"for": "state:running", "timeout": 60}).code == "wait::impossible"
    time.sleep(4.8)
    assert get_vm(api)["state"] == "failed" and starts(api) == 0


def test_policy_changed_to_on_failure_lets_a_guest_that_powered_off_rest(waiting):
    api = waiting("guest-off")
    api.patch("/v1/vms/web", {"spec": {"restart": "on-failure"}})
    assert explain(api)["next_at"] is None


# ---- ttl_s and protect ----

def test_vm_is_destroyed_when_its_time_is_over(api):
    vm = make_vm(api, start=True, ttl_s=5)
    eventually(lambda: api.get("/v1/vms/web").status, lambda status: status == 404)
    assert api.get(f"/v1/vms/{vm['id']}").status == 410


@pytest.mark.parametrize("how", ["restart", "kill9"])
def test_time_runs_on_while_the_daemon_is_away(vmmd, api, how):
    vm = make_vm(api, start=True, ttl_s=5)
    if how == "restart":
        vmmd.stop()
    else:
        vmmd.kill9()
    time.sleep(1)
    vmmd.start()
    api = vmmd.client()
    eventually(lambda: api.get(f"/v1/vms/{vm['id']}").status, lambda status: status == 410)


def test_protected_vm_outlives_its_time(api):
    make_vm(api, ttl_s=1, protect=True)
    time.sleep(2.2)
    assert get_vm(api)["state"] == "prepared"
    api.patch("/v1/vms/web", {"spec": {"protect": False}})
    eventually(lambda: api.get("/v1/vms/web").status, lambda status: status == 404)


def test_protected_vm_outlives_its_time_and_the_daemon(vmmd, api):
    make_vm(api, start=True, ttl_s=1, protect=True)
    vmmd.stop()
    vmmd.start()
    time.sleep(1.8)
    assert get_vm(vmmd.client())["state"] == "running"
    assert vmmd.client().delete("/v1/vms/web").code == "vm::protected"


def test_ttl_that_is_taken_back_destroys_nothing(api):
    make_vm(api, start=True, ttl_s=5)
    assert api.patch("/v1/vms/web", {"spec": {"ttl_s": None}}).json["spec"]["ttl_s"] is None
    time.sleep(6)
    assert get_vm(api)["state"] == "running"


def test_ttl_that_is_set_later_counts_from_the_creation(api):
    make_vm(api, start=True)
    time.sleep(1.1)
    api.patch("/v1/vms/web", {"spec": {"ttl_s": 1}})
    eventually(lambda: api.get("/v1/vms/web").status, lambda status: status == 404)


def test_destroy_that_fails_is_not_tried_again_at_once(api):
    def destroys():
        return [item["state"] for item in api.get("/v1/operations").json["items"] if item["kind"] == "vm.destroy"]
    make_vm(api, ttl_s=4, labels={"noop.fail": "vm.destroy:remove"})
    eventually(destroys, lambda states: states == ["failed"])
    time.sleep(2)
    assert destroys() == ["failed"]
    api.patch("/v1/vms/web", {"labels": {"noop.fail": None}})
