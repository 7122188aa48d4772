"""Ends that nobody asked for: the guest's own, and QEMU's. Each is told apart, with its cause."""
import os
import signal
import threading
import time

import pytest

from e2e.guest import (PATIENCE, UP, booted, bring_ready, condition, console, console_end, deaf, destroy, direct, do,
                       gone, in_guest, is_ready, make, process_alive, resume_stopped, type_and_leave, wait_console, wait_for, wait_ready)
from lib.vms import eventually, get_vm


@pytest.fixture(scope="module")
def shared(shared_vmmd):
    """One guest for the module; each test brings it up by itself."""
    api = shared_vmmd.client()
    make(api, **direct(network={"type": "user"}))
    return api


def state_events(stream, timeout=PATIENCE):
    """Up to the first that says stopped or failed."""
    events = stream.until(lambda e: e.type == "vm.state_changed" and e.data["data"]["to"] in ("stopped", "failed"), timeout)
    return events[-1].data["data"]


def test_guest_that_powers_off_is_stopped(shared):
    pid = bring_ready(shared)["runtime"]["pid"]
    with shared.events(since=shared.get("/v1/vms").json["as_of_event"]) as stream:
        type_and_leave(shared, "poweroff")
        assert state_events(stream) == {"from": "running", "to": "stopped", "cause": "guest powered off"}
    vm = wait_for(shared, "web", "state:stopped")
    assert vm["failure"] is None and vm["runtime"]["pid"] is None and not is_ready(vm)
    gone(pid)


def test_guest_that_reboots_runs_on(shared):
    vm = bring_ready(shared)
    start = console_end(shared)
    with shared.events(since=shared.get("/v1/vms").json["as_of_event"]) as stream:
        type_and_leave(shared, "reboot")
        stream.until(lambda e: e.type == "vm.guest_reset", PATIENCE)
        # Ready falls with the reset and comes back with the agent.
        stream.until(lambda e: e.type == "vm.condition_changed" and (e.data["data"]["type"], e.data["data"]["status"]) ==
                     ("ready", True), PATIENCE)
    wait_console(shared, UP, start=start)
    after = wait_ready(shared)
    assert after["runtime"]["pid"] == vm["runtime"]["pid"] and after["state"] == "running"
    assert condition(after, "ready")["since"] > condition(vm, "ready")["since"]


@pytest.mark.parametrize("name", ["SIGKILL", "SIGSEGV"])
def test_qemu_that_is_killed_leaves_the_vm_failed(shared, name):
    pid = bring_ready(shared)["runtime"]["pid"]
    with shared.events(since=shared.get("/v1/vms").json["as_of_event"]) as stream:
        os.kill(pid, getattr(signal, name))
        told = state_events(stream)
    assert told["to"] == "failed" and told["from"] == "running"
    vm = wait_for(shared, "web", "state:failed")
    failure = vm["failure"]
    assert (failure["reason"], failure["signal"]) == ("killed", name)
    assert failure["code"] == "vm_manager::lifecycle::other" and name in failure["detail"]
    assert not is_ready(vm) and vm["runtime"]["pid"] is None
    assert "stderr_tail" in failure


def test_qemus_last_words_are_in_the_failure(shared):
    """SIGTERM from somebody else: QEMU says who, and goes."""
    vm = bring_ready(shared)
    os.kill(vm["runtime"]["pid"], signal.SIGTERM)
    vm = wait_for(shared, "web", "state:failed")
    assert vm["failure"]["reason"] == "exited" and vm["failure"]["exit_status"] == 0 and vm["failure"]["signal"] is None
    assert "terminating on signal 15" in vm["failure"]["stderr_tail"]


def test_failed_vm_starts_again(shared):
    pid = bring_ready(shared)["runtime"]["pid"]
    os.kill(pid, signal.SIGKILL)
    wait_for(shared, "web", "state:failed")
    do(shared, "start")
    vm = wait_ready(shared)
    assert vm["failure"] is None and vm["runtime"]["pid"] != pid


@pytest.mark.parametrize("machine", ["q35", "microvm"])
def test_guest_that_panics_leaves_the_vm_failed(api, machine):
    pid = booted(api, **direct(machine))["runtime"]["pid"]
    with api.events(since=api.get("/v1/vms").json["as_of_event"]) as stream:
        type_and_leave(api, "echo c >/proc/sysrq-trigger")
        told = state_events(stream)
        assert (told["from"], told["to"], told["cause"]) == ("running", "failed", "guest panicked")
    vm = wait_for(api, "web", "state:failed")
    assert vm["failure"]["reason"] == "panic" and not is_ready(vm)
    gone(pid)
    assert "Kernel panic - not syncing" in console(api)


def test_suspended_vm_whose_qemu_dies_is_failed(shared):
    pid = bring_ready(shared)["runtime"]["pid"]
    do(shared, "suspend")
    os.kill(pid, signal.SIGKILL)
    assert wait_for(shared, "web", "state:failed")["failure"]["reason"] == "killed"


def test_wait_ends_at_once_when_it_has_become_impossible(api):
    make(api, start=True, **deaf())
    pid = get_vm(api)["runtime"]["pid"]
    with api.events(since=api.get("/v1/vms").json["as_of_event"]) as stream:
        answers = []
        waiter = threading.Thread(target=lambda: answers.append(
            api.get("/v1/vms/web/wait", query={"for": "ready", "timeout": 600}, timeout=700)))
        waiter.start()
        time.sleep(0.3)
        os.kill(pid, signal.SIGKILL)
        state_events(stream)
        waiter.join(PATIENCE)
    assert answers and (answers[0].status, answers[0].code) == (409, "wait::impossible"), answers
    # And for one that comes afterwards.
    assert api.get("/v1/vms/web/wait", query={"for": "ready", "timeout": 600}, timeout=PATIENCE).code == "wait::impossible"


def test_explain_tells_the_end(shared):
    pid = bring_ready(shared)["runtime"]["pid"]
    os.kill(pid, signal.SIGKILL)
    wait_for(shared, "web", "state:failed")
    answer = shared.get("/v1/vms/web/explain")
    assert answer.status == 200 and "SIGKILL" in answer.text and UP in answer.text


# ---- a QEMU that is there and does not answer ----

@pytest.fixture
def frozen(api):
    """A running VM whose QEMU is stopped by SIGSTOP."""
    make(api, start=True, **deaf())
    pid = get_vm(api)["runtime"]["pid"]
    os.kill(pid, signal.SIGSTOP)
    yield pid
    resume_stopped(pid)


def test_reads_do_not_wait_for_a_hung_qemu(api, frozen):
    asked = api.post("/v1/vms/web/suspend")
    assert asked.status == 202
    for _ in range(20):  # while the monitor is being waited for
        assert api.get("/v1/vms").json["items"][0]["name"] == "web"
        assert get_vm(api)["state"] == "running"
    assert api.get(f"/v1/operations/{asked.json['id']}").json["state"] == "running"


def test_suspend_of_a_hung_qemu_is_unresponsive(api, frozen):
    answer = do(api, "suspend", expect=504)
    assert answer.code == "vm::unresponsive"
    vm = get_vm(api)
    assert vm["state"] == "running" and vm["operation"] is None


def test_hung_qemu_is_told_and_so_is_its_return(api):
    pid = booted(api)["runtime"]["pid"]
    with api.events(since=api.get("/v1/vms").json["as_of_event"]) as stream:
        os.kill(pid, signal.SIGSTOP)
        try:
            do(api, "suspend", expect=504)
            stream.until(lambda e: e.type == "vm.unresponsive", PATIENCE)
            eventually(lambda: get_vm(api), lambda vm: condition(vm, "ready")["status"] is False, PATIENCE)
        finally:
            resume_stopped(pid)
        stream.until(lambda e: e.type == "vm.responsive", PATIENCE)
    # QEMU carries out the stop late; but the suspend has failed, so the guest goes on.
    assert wait_ready(api)["state"] == "running"
    in_guest(api, "true")


def test_kill_of_a_hung_qemu(api, frozen):
    do(api, "kill")
    assert get_vm(api)["state"] == "stopped" and not process_alive(frozen)


def test_stop_of_a_hung_qemu_ends_by_kill(api, frozen):
    answer = do(api, "stop", body={"timeout_s": 1})
    assert answer.json["method"] == "kill"
    assert get_vm(api)["state"] == "stopped" and not process_alive(frozen)


def test_destroy_of_a_hung_qemu(api, frozen):
    destroy(api)
    assert not process_alive(frozen)
