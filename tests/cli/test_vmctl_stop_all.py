"""vmctl stop --all: every VM that runs or is suspended, side by side, within one time for all."""
import json
import signal
import subprocess
import time

from lib.vmmd import SLOW, VMCTL
from lib.vms import begin, do, eventually, get_vm, make_vm


def states(api):
    return {item["name"]: item["state"] for item in api.get("/v1/vms").json["items"]}


def test_all_that_run_or_are_suspended_are_stopped(vmmd, api):
    make_vm(api, "a", start=True)
    make_vm(api, "b", start=True, protect=True)
    make_vm(api, "c", start=True)
    do(api, "suspend", "c")
    make_vm(api, "d")
    make_vm(api, "e", start=True)
    do(api, "kill", "e")
    run = vmmd.vmctl("stop", "--all")
    assert run.returncode == 0, run.stderr
    assert sorted(run.stdout.splitlines()) == ["a stopped (acpi)", "b stopped (acpi)", "c stopped (acpi)"]
    assert states(api) == {"a": "stopped", "b": "stopped", "c": "stopped", "d": "prepared", "e": "stopped"}


def test_with_nothing_to_stop_it_is_done(vmmd, api):
    make_vm(api, "d")
    run = vmmd.vmctl("stop", "--all")
    assert (run.returncode, run.stdout) == (0, "") and "no VM runs" in run.stderr
    assert json.loads(vmmd.vmctl("stop", "--all", "-o", "json").stdout) == {"items": []}


def test_guest_that_does_not_power_off_is_ended_and_told(vmmd, api):
    make_vm(api, "deaf", start=True, labels={"noop.ignore_acpi": "true"})
    make_vm(api, "deafer", start=True, labels={"noop.ignore_acpi": "true", "noop.ignore_term": "refused"})
    make_vm(api, "web", start=True)
    run = vmmd.vmctl("stop", "--all", "--timeout", "4")
    assert run.returncode == 1
    assert sorted(run.stdout.splitlines()) == ["deaf stopped (term)", "deafer stopped (kill)", "web stopped (acpi)"]
    assert "deaf did not power off in time and was ended" in run.stderr and "web did" not in run.stderr
    assert set(states(api).values()) == {"stopped"}


def test_more_than_are_stopped_at_once_and_they_are_side_by_side(vmmd, api):
    for i in range(100):
        make_vm(api, f"vm{i:03}", start=True, labels={"noop.delay_ms.vm.stop:press": "300", "noop.agent": "false"})
    run = vmmd.vmctl("stop", "--all", "--timeout", "300")
    assert run.returncode == 0 and len(run.stdout.splitlines()) == 100
    stops = [one for one in api.get("/v1/operations", query={"limit": 1000}).json["items"] if one["kind"] == "vm.stop"]
    assert len(stops) == 100 and all(
        any(a["id"] != b["id"] and a["created_at"] < b["finished_at"] and b["created_at"] < a["finished_at"] for b in stops)
        for a in stops), "one after another"
    assert set(states(api).values()) == {"stopped"}


def test_vm_that_another_operation_holds_is_stopped_after_it(vmmd, api):
    make_vm(api, start=True, labels={"noop.delay_ms.vm.reset:reset": "1000"})
    begin(api, "reset")
    run = vmmd.vmctl("stop", "--all", "--timeout", "100")
    assert run.returncode == 0 and run.stdout == "web stopped (acpi)\n", run.stderr


def test_vm_that_is_held_for_longer_than_the_time_is_killed(vmmd, api):
    make_vm(api, start=True, labels={"noop.delay_ms.vm.reset:reset": "60000"})
    begin(api, "reset")
    run = vmmd.vmctl("stop", "--all", "--timeout", "1")
    assert run.returncode == 1 and run.stdout == "web stopped (kill)\n", run.stderr
    assert states(api) == {"web": "stopped"}


def test_one_that_cannot_be_stopped_does_not_keep_the_others(vmmd, api):
    make_vm(api, "a", start=True, labels={"noop.fail": "vm.stop:press"})
    make_vm(api, "b", start=True)
    run = vmmd.vmctl("stop", "--all", "--timeout", "60")
    assert run.returncode == 1 and run.stdout == "b stopped (acpi)\n"
    assert "a: " in run.stderr and "injected" in run.stderr
    assert states(api) == {"a": "running", "b": "stopped"}


def test_restart_policy_starts_none_of_them_again(vmmd, api):
    make_vm(api, start=True, restart="always")
    assert vmmd.vmctl("stop", "--all").returncode == 0
    time.sleep(1.8)
    assert states(api) == {"web": "stopped"}


def test_ctrl_c_leaves_and_the_stop_goes_on(vmmd, api):
    make_vm(api, start=True, labels={"noop.delay_ms.vm.stop:press": "4000"})
    run = subprocess.Popen([VMCTL, "--socket", vmmd.socket, "stop", "--all"], stdout=subprocess.PIPE,
                           stderr=subprocess.PIPE, text=True)
    eventually(lambda: get_vm(api)["operation"], lambda operation: operation is not None)
    run.send_signal(signal.SIGINT)
    _, err = run.communicate(timeout=60 * SLOW)
    assert run.returncode == 130 and "go on" in err
    eventually(lambda: get_vm(api)["state"], lambda state: state == "stopped")


def test_formats_and_no_wait(vmmd, api):
    make_vm(api, "a", start=True)
    items = json.loads(vmmd.vmctl("stop", "--all", "-o", "json").stdout)["items"]
    assert [(item["kind"], item["state"]) for item in items] == [("vm.stop", "succeeded")]
    do(api, "start", "a")
    assert vmmd.vmctl("stop", "--all", "-o", "name").stdout == "a\n"
    do(api, "start", "a")
    assert "under way" in vmmd.vmctl("stop", "--all", "--no-wait").stdout
    eventually(lambda: states(api), lambda now: now == {"a": "stopped"})


def test_misuse(vmmd):
    for args in (("stop",), ("stop", "--all", "web"), ("stop", "--all", "--idempotency-key", "k"), ("stop", "--all", "--timeout", "9999")):
        run = vmmd.vmctl(*args)
        assert run.returncode == 2 and run.stdout == "", args


def test_without_a_daemon(vmmd):
    vmmd.stop()
    run = vmmd.vmctl("stop", "--all")
    assert run.returncode == 5 and "daemon_unreachable" in run.stderr
    vmmd.start()
