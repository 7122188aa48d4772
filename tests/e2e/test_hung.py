"""QEMUs that are there and do not answer (SIGSTOP): what still works, what each verb says, and that nobody else notices."""
import os
import signal
import time

import pytest

from e2e.guest import PATIENCE, condition, deaf, destroy, do, make, process_alive, resume_stopped, wait_for
from lib.metrics import samples
from lib.vms import eventually, get_operation, get_vm


@pytest.fixture
def hang():
    """hang(pid) stops a process; all go on afterwards."""
    pids = []

    def stop(pid):
        os.kill(pid, signal.SIGSTOP)
        pids.append(pid)
        return pid
    yield stop
    for pid in pids:
        resume_stopped(pid)


def running(api, name="web"):
    return make(api, name, start=True, **deaf(machine="microvm"))["runtime"]["pid"]


def medians_s(*calls, times=15):
    """The median of each; in turns, so that what else the machine does meets all alike."""
    taken = [[] for _ in calls]
    for _ in range(times):
        for call, seconds in zip(calls, taken):
            begin = time.monotonic()
            call()
            seconds.append(time.monotonic() - begin)
    return [sorted(seconds)[times // 2] for seconds in taken]


READS = {
    "get": lambda api, name: api.get(f"/v1/vms/{name}"),
    "list": lambda api, name: api.get("/v1/vms", query={"name": name}),
    "explain": lambda api, name: api.get(f"/v1/vms/{name}/explain"),
    "wait": lambda api, name: api.get(f"/v1/vms/{name}/wait", query={"for": "state:running"}),
    "log": lambda api, name: api.get(f"/v1/vms/{name}/logs/console"),
    "metrics": lambda api, name: api.get("/metrics"),
}


def test_reads_of_a_hung_vm_are_as_fast_as_of_a_sound_one(api, hang):
    running(api, "sound")
    hang(running(api, "hung"))
    asked = api.post("/v1/vms/hung/suspend")  # and something waits for its monitor
    assert asked.status == 202
    for name, read in READS.items():
        sound, hung = medians_s(lambda read=read: read(api, "sound"), lambda read=read: read(api, "hung"))
        assert hung < 3 * sound + 0.02, f"{name}: {hung:.4f} s, not {sound:.4f} s"
    eventually(lambda: get_operation(api, asked.json["id"]), lambda op: op["state"] == "failed", PATIENCE)


@pytest.mark.parametrize("verb", ["suspend", "resume", "reset"])
def test_verb_ends_at_its_deadline_as_unresponsive(api, hang, verb):
    pid = running(api)
    if verb == "resume":
        do(api, "suspend")
    before = get_vm(api)["state"]
    hang(pid)
    for attempt in range(2):  # the first finds it mute, the second knows
        answer = do(api, verb, expect=504)
        assert answer.code == "vm::unresponsive", (attempt, answer)
    vm = get_vm(api)
    assert vm["state"] == before and vm["operation"] is None
    assert process_alive(pid)


@pytest.mark.parametrize("during", [None, "suspend"])
@pytest.mark.parametrize("verb", ["kill", "stop", "destroy", "restart"])
def test_what_ends_a_vm_works_on_a_hung_one(api, hang, verb, during):
    pid = hang(running(api))
    waiting = api.post(f"/v1/vms/web/{during}").json["id"] if during and verb in ("kill", "destroy") else None
    if verb == "destroy":
        destroy(api)
        assert api.get("/v1/vms/web").status == 404
    else:
        operation = do(api, verb, body={"timeout_s": 1} if verb != "kill" else None).json
        assert get_vm(api)["state"] == ("running" if verb == "restart" else "stopped")
        assert verb != "stop" or operation["method"] == "kill"
    assert not process_alive(pid)
    if waiting:
        assert get_operation(api, waiting)["state"] in ("cancelled", "failed")


def test_twenty_hung_vms_slow_nobody(api, hang):
    running(api, "sound")
    alone = {name: medians_s(lambda read=read: read(api, "sound"))[0] for name, read in READS.items()}
    begin = time.monotonic()
    do(api, "suspend", "sound")
    do(api, "resume", "sound")
    verbs_alone = time.monotonic() - begin
    pids = [running(api, f"hung{n}") for n in range(20)]
    for pid in pids:
        hang(pid)
    operations = [api.post(f"/v1/vms/hung{n}/suspend").json["id"] for n in range(20)]
    for name, read in READS.items():
        beside = medians_s(lambda read=read: read(api, "sound"))[0]
        assert beside < 4 * alone[name] + 1, f"{name}: {beside:.4f} s, not {alone[name]:.4f} s"
    begin = time.monotonic()
    do(api, "suspend", "sound")
    do(api, "resume", "sound")
    assert time.monotonic() - begin < 4 * verbs_alone + 5
    for operation in operations:
        ended = eventually(lambda op=operation: get_operation(api, op), lambda op: op["state"] == "failed", PATIENCE)
        assert ended["error"]["code"] == "vm_manager::vm::unresponsive"
    lag = samples(api)[("vmmd_loop_lag_max_seconds", None)]
    assert lag < 3, f"the loop waited for {lag} s"
    for n in range(20):
        assert api.post(f"/v1/vms/hung{n}/kill").status == 202
    for n in range(20):
        wait_for(api, f"hung{n}", "state:stopped")
    assert not any(process_alive(pid) for pid in pids)


def test_vm_that_answers_again_is_as_before(api, hang):
    pid = hang(running(api))
    with api.events(since=api.get("/v1/vms").json["as_of_event"]) as stream:
        do(api, "suspend", expect=504)
        stream.until(lambda e: e.type == "vm.unresponsive", PATIENCE)
        assert condition(get_vm(api), "ready")["status"] is False
        resume_stopped(pid)
        stream.until(lambda e: e.type == "vm.responsive", PATIENCE)
    assert get_vm(api)["state"] == "running"
    do(api, "suspend")
    do(api, "resume")
    assert do(api, "reset").json["result"]["state"] == "running"


def test_sigterm_ends_the_daemon_in_its_grace_beside_a_hung_vm(daemons, hang):
    daemon = daemons(config="shutdown_grace_s = 2\n")
    api = daemon.client()
    pid = hang(running(api))
    assert api.post("/v1/vms/web/suspend").status == 202  # it is in the midst of it
    daemon.stop(timeout=15)
    assert process_alive(pid)
    daemon.start(timeout=60)
    assert get_vm(api)["state"] == "running"
    do(api, "kill")
    assert not process_alive(pid)
