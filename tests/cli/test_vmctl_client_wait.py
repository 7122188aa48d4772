"""How vmctl sends a change and waits for its operation: progress, loss of the daemon, Ctrl+C."""
import json
import re
import signal
import threading
import time

from scripted import Hangup, done, operation, problem

OP = "/v1/operations/op-1"


def test_waits_by_operation_and_shows_each_step_once(peer):
    at = iter([1, 1, 2])
    peer.on("POST", "/v1/vms/web/start", (202, operation(at=0), {"Location": OP}))

    def read(request):
        assert request.headers["Prefer"] == "wait=1"
        step = next(at, None)
        return (202, operation(at=step)) if step is not None else (200, done())

    peer.on("GET", OP, read)
    run = peer.vmctl("start", "web")
    assert (run.returncode, run.stdout) == (0, "web started\n")
    assert run.stderr.splitlines() == ["web: start: " + step for step in ("reserve", "prepare", "spawn", "persist")]


def test_every_change_carries_its_own_key(peer):
    peer.on("POST", "/v1/vms/.*/kill", (200, done(kind="vm.kill")))
    peer.vmctl("kill", "a", "b")
    keys = [r.headers["Idempotency-Key"] for r in peer.requests]
    assert len(set(keys)) == 2 and all(re.fullmatch(r"[0-9a-f-]{36}", key) for key in keys)


def test_the_users_key_is_sent(peer):
    peer.on("POST", "/v1/vms/web/kill", (200, done(kind="vm.kill")))
    assert peer.vmctl("kill", "web", "--idempotency-key", "mine").returncode == 0
    assert peer.requests[0].headers["Idempotency-Key"] == "mine"
    both = peer.vmctl("kill", "a", "b", "--idempotency-key", "mine")
    assert both.returncode == 2 and len(peer.requests) == 1


def test_no_wait_ends_with_the_operation(peer):
    peer.on("POST", "/v1/vms/web/stop", (202, operation(kind="vm.stop")))
    run = peer.vmctl("--no-wait", "stop", "web")
    assert run.returncode == 0 and "op-1" in run.stdout and len(peer.requests) == 1
    run = peer.vmctl("stop", "web", "--no-wait", "-o", "json")
    assert json.loads(run.stdout) == operation(kind="vm.stop")


def test_stop_sends_the_timeout_and_tells_the_method(peer):
    peer.on("POST", "/v1/vms/web/stop", (200, done(kind="vm.stop", method="term")))
    run = peer.vmctl("stop", "--timeout", "7", "web")
    assert run.stdout == "web stopped (term)\n" and peer.requests[0].json == {"timeout_s": 7}
    peer.on("POST", "/v1/vms/web/stop", (200, done(kind="vm.stop", method="none")))
    assert peer.vmctl("stop", "web").stdout == "web was stopped already\n"
    assert peer.requests[-1].json == {}


def test_a_failed_operation_as_problem_and_as_resource(peer):
    error = problem("qemu::spawn_failed", 500, "QEMU did not start", causes=["no such machine"])
    peer.on("POST", "/v1/vms/web/start", (202, operation()))
    peer.on("GET", OP, lambda r: error if r.headers["Prefer"] else (200, operation("failed", at=3, error=error[1])))
    run = peer.vmctl("start", "web")
    assert run.returncode == 1 and run.stdout == ""
    assert "web: start: spawn\n" in run.stderr and "vm_manager::qemu::spawn_failed" in run.stderr and "no such machine" in run.stderr
    peer.on("GET", OP, (200, operation("failed", error=error[1])))
    run = peer.vmctl("start", "web", "-o", "json")
    assert run.returncode == 1 and json.loads(run.stdout) == error[1] and run.stderr == ""


def test_a_cancelled_operation_without_an_error(peer):
    peer.on("POST", "/v1/vms/web/start", (202, operation()))
    peer.on("GET", OP, (200, operation("cancelled")))
    run = peer.vmctl("start", "web")
    assert run.returncode == 4 and "vm_manager::operation::cancelled" in run.stderr


def test_many_names_go_side_by_side_and_the_worst_exit_code_wins(peer):
    peer.on("POST", "/v1/vms/(a|c)/start", lambda r: (202, operation(vm=r.path.split("/")[3], ident="op-" + r.path.split("/")[3])))
    peer.on("POST", "/v1/vms/b/start", problem("vm::not_found", 404, "no VM b"))
    peer.on("GET", "/v1/operations/op-[ac]", (200, done()))
    run = peer.vmctl("start", "a", "b", "c")
    assert run.stdout == "a started\nc started\n" and run.returncode == 3
    assert "b: no VM b" in run.stderr
    assert [r.method for r in peer.requests] == ["POST"] * 3 + ["GET"] * 2
    items = json.loads(peer.vmctl("start", "a", "b", "-o", "json").stdout)["items"]
    assert items[0]["state"] == "succeeded" and items[1]["code"] == "vm_manager::vm::not_found"
    assert peer.vmctl("start", "a", "b", "c", "-o", "name").stdout == "a\nc\n"


def test_the_wait_goes_on_after_a_restart_of_the_daemon(peer):
    peer.on("POST", "/v1/vms/web/start", (202, operation()))
    gone = threading.Event()

    def hang_up(_):
        gone.set()
        raise Hangup

    peer.on("GET", OP, hang_up)
    vmctl = peer.popen("start", "web", text=True)
    assert gone.wait(60)
    peer.stop()
    time.sleep(0.8)
    assert vmctl.poll() is None
    peer.scripts = []
    peer.on("GET", OP, (200, done()))
    peer.start()
    out, err = vmctl.communicate(timeout=60)
    assert (vmctl.returncode, out) == (0, "web started\n")
    assert "vmmd went away; waiting up to 30 s" in err and "op-1" in err and "vmmd is back" in err
    assert len(peer.seen("POST", ".*")) == 1, "the change is not sent twice"


def test_shutting_down_and_overloaded_are_waited_for(peer):
    answers = iter([problem("daemon::shutting_down", 503), problem("daemon::overloaded", 503), (200, done())])
    peer.on("POST", "/v1/vms/web/start", (202, operation()))
    peer.on("GET", OP, lambda _: next(answers))
    run = peer.vmctl("start", "web")
    assert run.returncode == 0 and run.stderr.count("vmmd went away") == 1


def test_an_interrupted_operation_is_no_reason_to_wait(peer):
    peer.on("POST", "/v1/vms/web/start", (202, operation()))
    peer.on("GET", OP, problem("operation::interrupted", 503, "the daemon stopped"))
    run = peer.vmctl("start", "web")
    assert run.returncode == 1 and "operation::interrupted" in run.stderr and "went away" not in run.stderr


def test_a_lost_answer_is_asked_for_again_with_the_same_key(peer):
    seen = []

    def post(request):
        seen.append((request.headers["Idempotency-Key"], request.body))
        if len(seen) == 1:
            raise Hangup
        return 200, done()

    peer.on("POST", "/v1/vms/web/start", post)
    run = peer.vmctl("start", "web")
    assert run.returncode == 0 and len(seen) == 2 and seen[0] == seen[1]


def test_a_destroy_whose_answer_got_lost_ends_well_when_the_vm_is_gone(peer):
    calls = []

    def delete(request):
        calls.append(request)
        if len(calls) == 1:
            raise Hangup
        return problem("vm::not_found", 404)

    peer.on("DELETE", "/v1/vms/web", delete)
    assert peer.vmctl("destroy", "web").returncode == 0
    assert peer.vmctl("destroy", "web").returncode == 3, "but a first 404 is one"


def test_ctrl_c_leaves_the_operation_alone(peer):
    peer.on("POST", "/v1/vms/web/start", (202, operation()))
    peer.on("GET", OP, lambda _: time.sleep(60) or (202, operation()))
    vmctl = peer.popen("start", "web", text=True)
    peer.wait_for("GET", OP)
    began = time.monotonic()
    vmctl.send_signal(signal.SIGINT)
    _, err = vmctl.communicate(timeout=60)
    assert vmctl.returncode == 130 and time.monotonic() - began < 30
    assert "goes on as operation op-1" in err and "vmctl ops cancel op-1" in err
    assert not peer.seen("DELETE", ".*")


def test_ctrl_c_while_the_daemon_is_away(peer):
    peer.on("POST", "/v1/vms/web/start", (202, operation()))

    def hang_up(_):
        raise Hangup

    peer.on("GET", OP, hang_up)
    vmctl = peer.popen("start", "web", text=True)
    peer.wait_for("GET", OP, count=2)
    vmctl.send_signal(signal.SIGINT)
    _, err = vmctl.communicate(timeout=60)
    assert vmctl.returncode == 130 and "goes on as operation op-1" in err


def test_ctrl_c_before_the_answer(peer):
    peer.on("POST", "/v1/vms/web/start", lambda _: time.sleep(60) or (202, operation()))
    vmctl = peer.popen("start", "web", text=True)
    peer.wait_for("POST", ".*")
    vmctl.send_signal(signal.SIGINT)
    out, err = vmctl.communicate(timeout=60)
    assert vmctl.returncode == 130 and out == "" and "interrupted before vmmd answered" in err


def test_a_daemon_that_does_not_hold_the_answer_is_not_flooded(peer):
    until = time.monotonic() + 1
    peer.on("POST", "/v1/vms/web/start", (202, operation()))
    peer.on("GET", OP, lambda _: (202, operation()) if time.monotonic() < until else (200, done()))
    assert peer.vmctl("start", "web").returncode == 0
    assert len(peer.seen("GET", OP)) <= 8


def test_progress_is_one_line_on_a_terminal(peer, terminal):
    go = threading.Event()
    peer.on("POST", "/v1/vms/web/start", (202, operation()))
    peer.on("GET", OP, lambda _: (200, done()) if go.wait(0.2) else (202, operation(at=2)))
    run = terminal("start", "web")
    run.expect(b"web: start (3/4) spawn")
    go.set()
    assert run.wait() == 0
    run.expect(b"web started")
    lines = run.output.split(b"\r\n")
    assert lines[0].endswith(b"\r\x1b[Kweb started"), "the line is taken away before the result"


def test_progress_shows_amounts_on_a_terminal(peer, terminal):
    amounts = {"done": 3, "total": 9, "unit": "MiB"}
    go = threading.Event()
    peer.on("POST", "/v1/vms/web/start", (202, operation(progress=amounts)))
    peer.on("GET", OP, lambda _: (200, done()) if go.wait(0.2) else (202, operation(progress=amounts)))
    run = terminal("start", "web")
    run.expect(b"3 of 9 MiB")
    go.set()
    assert run.wait() == 0


def test_wait_command_goes_on_after_a_restart(peer):
    count = []

    def wait(request):
        count.append(request.path)
        if len(count) == 1:
            raise Hangup
        return 200, {"met": True, "vm": {"name": "web", "state": "running"}}

    peer.on("GET", "/v1/vms/web/wait.*", wait)
    run = peer.vmctl("wait", "web", "--for", "running", "--for", "agent", "--timeout", "9")
    assert (run.returncode, run.stdout) == (0, "web is running, agent\n")
    assert count[0] == "/v1/vms/web/wait?timeout=9&for=state:running&for=agent" and len(count) == 2


def test_wait_command_asks_again_beyond_the_daemons_limit(peer):
    peer.on("GET", "/v1/vms/web/wait.timeout=600.*", problem("wait::timed_out", 504))
    vmctl = peer.popen("wait", "web", "--timeout", "1000")
    peer.wait_for("GET", "/v1/vms/web/wait.*", count=2)
    vmctl.send_signal(signal.SIGINT)
    vmctl.communicate(timeout=60)
    assert vmctl.returncode == 130
    peer.on("GET", "/v1/vms/web/wait.*", problem("wait::timed_out", 504))
    assert peer.vmctl("wait", "web", "--timeout", "5").returncode == 6
