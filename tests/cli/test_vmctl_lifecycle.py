"""vmctl against a real vmmd: VMs of the noop backend through their whole life."""
import json
import re
import signal
import subprocess
import time

import pytest

from lib.metrics import limit_used
from lib.vmmd import SLOW, VMCTL, free_port
from lib.vms import eventually


def ok(run):
    assert run.returncode == 0, run.stderr
    return run.stdout


def create(vmmd, name="web", *more):
    return ok(vmmd.vmctl("create", name, "--backend", "noop", *more))


def state(vmmd, name="web"):
    return json.loads(ok(vmmd.vmctl("status", name, "-o", "json")))["state"]


def popen(vmmd, *args):
    return subprocess.Popen([VMCTL, "--socket", vmmd.socket, *args], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, text=True)


def wait_for_operation(vmmd, kind):
    until = time.monotonic() + 60 * SLOW
    while True:
        for operation in json.loads(ok(vmmd.vmctl("ops", "-o", "json", "--state", "running")))["items"]:
            if operation["kind"] == kind:
                return operation["id"]
        assert time.monotonic() < until
        time.sleep(0.02)


def test_a_whole_life(vmmd):
    assert re.fullmatch(r"web created \([0-9a-f-]{36}\)\n", create(vmmd, "web", "--vcpus", "2", "--memory", "64", "--label", "app=shop"))
    for verb, said, after in (("start", "web started\n", "running"), ("suspend", "web suspended\n", "suspended"),
                              ("resume", "web resumed\n", "running"), ("reset", "web reset\n", "running"),
                              ("restart", "web restarted\n", "running"), ("kill", "web killed\n", "stopped"),
                              ("start", "web started\n", "running")):
        assert ok(vmmd.vmctl(verb, "web")).replace(" (kill)", "") == said
        assert state(vmmd) == after
    assert re.fullmatch(r"web stopped \((acpi|agent|term|kill)\)\n", ok(vmmd.vmctl("stop", "web", "--timeout", "5")))
    assert "already" in ok(vmmd.vmctl("stop", "web")) or state(vmmd) == "stopped"
    assert ok(vmmd.vmctl("destroy", "web")) == "web destroyed\n"
    gone = vmmd.vmctl("status", "web")
    assert gone.returncode == 3 and "vm_manager::vm::not_found" in gone.stderr


def test_a_refused_value_says_what_is_taken(vmmd):
    create(vmmd)
    for args, said in ((("list", "--state", "runing"), "expected: preparing, prepared, running"),
                       (("wait", "web", "--for", "reday"), "expected: state:STATE, ready, agent, ssh")):
        run = vmmd.vmctl(*args)
        assert run.returncode == 2 and said in run.stderr


def test_ssh_config_of_nobody_is_not_found(vmmd):
    assert vmmd.vmctl("ssh-config", "nobody").returncode == 3


@pytest.mark.parametrize("follow", ["--follow", "--no-follow"])
def test_a_cursor_of_another_database_is_told(vmmd, follow):
    create(vmmd)
    run = vmmd.vmctl("events", "--since", "999999", follow)
    assert run.returncode == 1 and run.stdout == "" and "vm_manager::events::cursor_expired" in run.stderr


def test_nothing_to_prune(vmmd):
    run = vmmd.vmctl("image", "prune")
    assert run.returncode == 0 and "in use" not in run.stderr


def test_create_and_start_in_one(vmmd):
    assert create(vmmd, "web", "--start").endswith("web started\n")
    assert state(vmmd) == "running"


def test_each_step_has_its_line_and_json_is_silent(vmmd):
    run = vmmd.vmctl("create", "web", "--backend", "noop", "--start")
    lines = run.stderr.splitlines()
    assert lines and all(re.fullmatch(r"web: create: [a-z_]+", line) for line in lines) and len(set(lines)) == len(lines)
    run = vmmd.vmctl("kill", "web", "-o", "json")
    assert run.stderr == "" and json.loads(run.stdout)["state"] == "succeeded"


def test_refusals_and_their_exit_codes(vmmd):
    create(vmmd)
    for args, code, exit_code in ((("create", "web", "--backend", "noop"), "vm::already_exists", 4), (("resume", "web"), "vm::invalid_state", 4),
                                  (("start", "none"), "vm::not_found", 3), (("create", "Bad_Name", "--backend", "noop"), "api::invalid_field", 2),
                                  (("create", "x", "--backend", "noop", "--vcpus", "0"), "api::invalid_field", 2),
                                  (("ops", "show", "00000000-0000-7000-8000-000000000000"), "operation::not_found", 3)):
        run = vmmd.vmctl(*args)
        assert run.returncode == exit_code and f"vm_manager::{code}" in run.stderr, args
        assert "  help: " in run.stderr and run.stdout == ""
        assert json.loads(vmmd.vmctl(*args, "-o", "json").stdout)["code"] == f"vm_manager::{code}"


def test_a_failing_start(vmmd):
    create(vmmd, "web", "--label", "noop.fail=spawn")
    run = vmmd.vmctl("start", "web")
    assert run.returncode == 1 and "vm_manager::" in run.stderr and run.stdout == ""
    assert state(vmmd) == "failed"
    assert "failed" in ok(vmmd.vmctl("explain", "web"))


def test_lists_and_filters(vmmd):
    for name, label in (("a", "x=1"), ("b", "x=2"), ("web", "x=1")):
        create(vmmd, name, "--label", label)
    ok(vmmd.vmctl("start", "a", "b"))
    assert ok(vmmd.vmctl("list", "-o", "name")) == "a\nb\nweb\n"
    assert ok(vmmd.vmctl("list", "-o", "name", "--state", "running")) == "a\nb\n"
    assert ok(vmmd.vmctl("list", "-o", "name", "--label", "x=1")) == "a\nweb\n"
    assert ok(vmmd.vmctl("list", "-o", "name", "--name", "w*")) == "web\n"
    lines = ok(vmmd.vmctl("list")).splitlines()
    assert len(lines) == 4 and lines[1].split()[:3] == ["a", "running", "noop"]
    assert len(json.loads(ok(vmmd.vmctl("list", "-o", "json")))["items"]) == 3


def test_many_names(vmmd):
    create(vmmd, "a")
    create(vmmd, "c")
    run = vmmd.vmctl("start", "a", "b", "c")
    assert run.returncode == 3 and run.stdout == "a started\nc started\n" and "vm::not_found" in run.stderr
    assert ok(vmmd.vmctl("destroy", "a", "c")) == "a destroyed\nc destroyed\n"


def test_wait(vmmd):
    create(vmmd, "web", "--label", "noop.delay_ms.spawn=300")
    waiting = popen(vmmd, "wait", "web", "--for", "running", "--timeout", "300")
    eventually(lambda: limit_used(vmmd.client(), "waits"), lambda n: n == 1)
    assert ok(vmmd.vmctl("start", "web")) == "web started\n"
    out, _ = waiting.communicate(timeout=30 * SLOW)
    assert (waiting.returncode, out) == (0, "web is running\n")
    assert ok(vmmd.vmctl("wait", "web", "--for", "running")) == "web is running\n"
    run = vmmd.vmctl("wait", "web", "--for", "suspended", "--timeout", "1")
    assert run.returncode == 6 and "wait::timed_out" in run.stderr


def test_no_wait_then_cancel(vmmd):
    create(vmmd, "web", "--label", "noop.delay_ms.spawn=600000")
    assert "under way" in ok(vmmd.vmctl("start", "web", "--no-wait"))
    ident = wait_for_operation(vmmd, "vm.start")
    assert "vm.start" in ok(vmmd.vmctl("ops")) and "spawn" in ok(vmmd.vmctl("ops", "show", ident))
    busy = vmmd.vmctl("start", "web")
    assert busy.returncode == 4 and "vm::busy" in busy.stderr
    assert "cancelled" in ok(vmmd.vmctl("ops", "cancel", ident))
    again = vmmd.vmctl("ops", "cancel", ident)
    assert again.returncode in (0, 4)


def test_ctrl_c_then_the_operation_goes_on(vmmd):
    create(vmmd, "web", "--label", "noop.delay_ms.spawn=5000")
    start = popen(vmmd, "start", "web")
    ident = wait_for_operation(vmmd, "vm.start")
    start.send_signal(signal.SIGINT)
    _, err = start.communicate(timeout=60 * SLOW)
    assert start.returncode == 130 and ident in err
    assert ok(vmmd.vmctl("wait", "web", "--for", "running", "--timeout", "60")) == "web is running\n"


@pytest.mark.parametrize("how", ["stop", "kill9"])
def test_the_wait_survives_the_daemons_restart(vmmd, how):
    create(vmmd, "web", "--label", "noop.delay_ms.spawn=2000")
    start = popen(vmmd, "start", "web")
    wait_for_operation(vmmd, "vm.start")
    getattr(vmmd, how)()
    time.sleep(0.5)
    vmmd.start()
    out, err = start.communicate(timeout=60 * SLOW)
    assert "vmmd went away" in err or start.returncode == 0
    # The daemon finishes the operation or undoes it; vmctl tells which.
    if start.returncode == 0:
        assert out == "web started\n" and state(vmmd) == "running"
    else:
        assert start.returncode == 1 and "operation::interrupted" in err and state(vmmd) != "running"


def test_events(vmmd):
    create(vmmd)
    ok(vmmd.vmctl("start", "web"))
    lines = ok(vmmd.vmctl("events", "--no-follow", "--vm", "web", "--type", "vm.state_changed")).splitlines()
    assert lines and "to=running" in lines[-1]
    following = popen(vmmd, "events", "-o", "json", "--type", "vm.state_changed", "--since", lines[-1].split()[0])
    ok(vmmd.vmctl("kill", "web"))
    event = json.loads(following.stdout.readline())
    following.send_signal(signal.SIGINT)
    following.communicate(timeout=60 * SLOW)
    assert event["vm_name"] == "web" and event["data"]["to"] == "stopped" and following.returncode == 130


def test_host_errors_and_version(vmmd):
    assert "accelerators:" in ok(vmmd.vmctl("host"))
    catalogue = json.loads(ok(vmmd.vmctl("errors", "-o", "json")))["items"]
    assert len(ok(vmmd.vmctl("errors")).splitlines()) == len(catalogue) + 1
    for entry in catalogue[:3]:
        assert entry["title"] in ok(vmmd.vmctl("errors", entry["code"]))
    assert ok(vmmd.vmctl("errors", "vm::busy")) == ok(vmmd.vmctl("errors", "vm_manager::vm::busy"))
    assert vmmd.vmctl("errors", "no::such").returncode == 3
    assert re.fullmatch(r"vmctl \S+\nvmmd \S+ \(API v1\)\n", ok(vmmd.vmctl("version")))
    assert set(json.loads(ok(vmmd.vmctl("version", "-o", "json")))) == {"client", "server"}


def test_idempotency_key(vmmd):
    first = json.loads(ok(vmmd.vmctl("create", "web", "--backend", "noop", "--idempotency-key", "k", "-o", "json")))
    assert json.loads(ok(vmmd.vmctl("create", "web", "--backend", "noop", "--idempotency-key", "k", "-o", "json")))["id"] == first["id"]
    run = vmmd.vmctl("create", "web", "--backend", "noop", "--vcpus", "2", "--idempotency-key", "k")
    assert run.returncode == 4 and "api::idempotency_mismatch" in run.stderr


def test_logs(vmmd):
    create(vmmd, "web", "--start")
    for args in ((), ("--console",), ("--vmm",), ("-n", "1")):
        assert vmmd.vmctl("log", "web", *args).returncode == 0
    following = popen(vmmd, "log", "-f", "web")
    eventually(lambda: limit_used(vmmd.client(), "streams"), lambda n: n == 1)
    following.send_signal(signal.SIGINT)
    following.communicate(timeout=60 * SLOW)
    assert following.returncode == 130
    assert vmmd.vmctl("log", "none").returncode == 3


def test_every_spec_flag_arrives(vmmd):
    create(vmmd, "web", "--vcpus", "3", "--memory", "99", "--hostname", "h", "--label", "a=b", "--forward", "0:80", "--restart", "on-failure",
           "--autostart", "--display", "vga")
    spec = json.loads(ok(vmmd.vmctl("status", "web", "-o", "json")))["spec"]
    assert (spec["vcpus"], spec["memory_mb"], spec["restart"], spec["autostart"], spec["display"]) == (3, 99, "on-failure", True, "vga")
    assert spec["cloud_init"]["hostname"] == "h" and spec["network"]["forwards"][0]["guest_port"] == 80


def test_over_tcp_with_a_token(daemons, tmp_path):
    token = tmp_path / "token"
    token.write_text("s3cret\n")
    token.chmod(0o600)
    port = free_port()
    vmmd = daemons(config=f"token_file = {token}\n", extra_args=["--listen", f"127.0.0.1:{port}"])
    url = f"http://127.0.0.1:{port}/"
    assert vmmd.vmctl("list", "--url", url, "-o", "name", env={"VMMD_TOKEN": "s3cret"}).returncode == 0
    run = vmmd.vmctl("list", "--url", url, env={"VMMD_TOKEN": "wrong"})
    assert run.returncode == 7 and "api::unauthorized" in run.stderr
    run = vmmd.vmctl("console", "none", "--url", url, env={"VMMD_TOKEN": "s3cret"})
    assert run.returncode == 3 and "vm::not_found" in run.stderr
