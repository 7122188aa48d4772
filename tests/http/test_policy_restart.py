"""A restart that waits, and its count, outlive the daemon: what was in mind for a VM is in its row."""
import time

import pytest

from lib.policy import ends, explain, starts, told
from lib.vms import destroy, do, eventually, get_vm, make_vm, settled


def leave(vmmd, how):
    """The daemon goes: asked to, or by kill -9."""
    if how == "kill9":
        vmmd.kill9()
    else:
        vmmd.stop()


HOWS = pytest.mark.parametrize("how", ["stop", "kill9"])


@HOWS
def test_restart_that_waits_comes_after_the_daemon(daemons, how):
    vmmd = daemons(config="restart_delay_ms = 1500\n")
    make_vm(vmmd.client(), start=True, restart="on-failure")
    ends(vmmd.client(), "killed:9")
    leave(vmmd, how)
    vmmd.start()
    api = vmmd.client()
    assert explain(api)["count"] == 1
    eventually(lambda: explain(api)["next_at"] is not None or starts(api) == 1, bool)
    eventually(lambda: get_vm(api)["state"], lambda state: state == "running")
    assert starts(api) == 1


def test_restart_that_was_due_meanwhile_comes_at_once(daemons):
    vmmd = daemons(config="restart_delay_ms = 1200\n")
    make_vm(vmmd.client(), start=True, restart="on-failure")
    ends(vmmd.client(), "killed:9")
    vmmd.kill9()
    time.sleep(1.3)
    vmmd.start()
    api = vmmd.client()
    assert api.get("/v1/vms/web/wait", query={"for": "state:running", "timeout": 60}).status == 200


def test_vm_that_ended_while_the_daemon_was_away_is_started_again(daemons):
    vmmd = daemons(config="restart_delay_ms = 20\n")
    make_vm(vmmd.client(), start=True, restart="on-failure")
    vmmd.client().patch("/v1/vms/web", {"labels": {"noop.adopt": "nothing"}})
    vmmd.kill9()
    vmmd.start()
    api = vmmd.client()
    api.patch("/v1/vms/web", {"labels": {"noop.adopt": None}})
    eventually(lambda: get_vm(api)["state"], lambda state: state == "running")
    assert explain(api)["count"] == 1


def test_start_that_the_daemons_death_interrupts_is_tried_again(daemons):
    vmmd = daemons(config="restart_delay_ms = 20\n")
    make_vm(vmmd.client(), start=True, restart="on-failure", labels={"noop.delay_ms.vm.start:spawn": "20000"})
    ends(vmmd.client(), "killed:9")
    eventually(lambda: get_vm(vmmd.client())["operation"], lambda operation: operation is not None)
    vmmd.kill9()
    vmmd.start()
    api = vmmd.client()
    api.patch("/v1/vms/web", {"labels": {"noop.delay_ms.vm.start:spawn": None}})
    assert explain(api)["count"] == 2  # the one that was interrupted counts
    eventually(lambda: [item["state"] for item in api.get("/v1/operations").json["items"]], lambda states: len(states) >= 2)
    vm = eventually(lambda: get_vm(api), lambda vm: vm["operation"] is None or vm["state"] == "running")
    if vm["state"] != "running":
        eventually(lambda: get_vm(api)["state"], lambda state: state == "running")


def test_crash_loop_of_the_daemon_does_not_defeat_the_brake(daemons):
    vmmd = daemons(config="restart_delay_ms = 1\nrestart_max = 3\n")
    make_vm(vmmd.client(), start=True, restart="on-failure")
    vmmd.client().patch("/v1/vms/web", {"labels": {"noop.delay_ms.vm.start:spawn": "60000"}})
    ends(vmmd.client(), "killed:9")
    for count in (1, 2, 3):
        assert explain(vmmd.client())["count"] == count
        eventually(lambda: get_vm(vmmd.client())["operation"], lambda operation: operation is not None)
        vmmd.kill9()
        vmmd.start()
    api = vmmd.client()
    assert explain(api) == {"policy": "on-failure", "count": 3, "next_at": None, "given_up": True}
    assert get_vm(api)["operation"] is None


@HOWS
def test_count_outlives_the_daemon(daemons, how):
    vmmd = daemons(config="restart_delay_ms = 1\nrestart_max = 2\n")
    make_vm(vmmd.client(), start=True, restart="on-failure")
    for _ in range(2):
        ends(vmmd.client(), "killed:9")
        eventually(lambda: get_vm(vmmd.client())["state"], lambda state: state == "running")
        leave(vmmd, how)
        vmmd.start()
    ends(vmmd.client(), "killed:9")
    assert explain(vmmd.client())["given_up"]
    leave(vmmd, how)
    vmmd.start()
    time.sleep(1.2)
    assert explain(vmmd.client())["given_up"] and get_vm(vmmd.client())["state"] == "failed"


@pytest.mark.parametrize("verb", ["stop", "kill"])
@pytest.mark.parametrize("end", ["guest-off", "killed:9"])
def test_stop_while_a_restart_waits_wins_after_kill_9(daemons, verb, end):
    vmmd = daemons(config="restart_delay_ms = 4000\n")
    make_vm(vmmd.client(), start=True, restart="always")
    ends(vmmd.client(), end)
    state = get_vm(vmmd.client())["state"]
    do(vmmd.client(), verb)
    vmmd.kill9()
    vmmd.start()
    time.sleep(4.8)
    api = vmmd.client()
    assert get_vm(api)["state"] == state and explain(api)["next_at"] is None and starts(api) == 0


def test_kill_of_a_restart_that_has_begun_wins_after_kill_9(daemons):
    vmmd = daemons(config="restart_delay_ms = 1\n")
    make_vm(vmmd.client(), start=True, restart="always", labels={"noop.delay_ms.vm.start:spawn": "60000"})
    ends(vmmd.client(), "killed:9")
    eventually(lambda: get_vm(vmmd.client())["operation"], lambda operation: operation is not None)
    vmmd.client().post("/v1/vms/web/kill")  # durable when it is answered, whatever has become of it
    vmmd.kill9()
    vmmd.start()
    time.sleep(1.2)
    api = vmmd.client()
    assert get_vm(api)["state"] == "failed" and get_vm(api)["operation"] is None and starts(api) == 1


def test_stop_wins_where_the_daemon_died_in_the_middle_of_it(daemons):
    vmmd = daemons(config="restart_delay_ms = 1\n")
    make_vm(vmmd.client(), start=True, restart="always", labels={"noop.delay_ms.vm.stop:press": "60000"})
    vmmd.client().post("/v1/vms/web/stop")
    vmmd.client().patch("/v1/vms/web", {"labels": {"noop.adopt": "nothing"}})
    vmmd.kill9()
    vmmd.start()
    time.sleep(1.2)
    api = vmmd.client()
    assert get_vm(api)["state"] == "stopped" and starts(api) == 0


def test_destroy_while_a_restart_waits_leaves_nothing_after_kill_9(daemons):
    vmmd = daemons(config="restart_delay_ms = 4000\n")
    make_vm(vmmd.client(), start=True, restart="always")
    ends(vmmd.client(), "killed:9")
    destroy(vmmd.client())
    vmmd.kill9()
    vmmd.start()
    time.sleep(4.8)
    assert vmmd.client().get("/v1/vms").json["items"] == [] and starts(vmmd.client()) == 0


def test_policy_changed_to_never_while_a_restart_waits_outlives_kill_9(daemons):
    vmmd = daemons(config="restart_delay_ms = 4000\n")
    make_vm(vmmd.client(), start=True, restart="always")
    ends(vmmd.client(), "killed:9")
    since = settled(vmmd.client())
    vmmd.client().patch("/v1/vms/web", {"spec": {"restart": "never"}})
    vmmd.kill9()
    vmmd.start()
    time.sleep(4.8)
    api = vmmd.client()
    assert get_vm(api)["state"] == "failed" and starts(api) == 0
    assert told(api, since, "vm.restart_cancelled") == [{"by": "policy"}]
