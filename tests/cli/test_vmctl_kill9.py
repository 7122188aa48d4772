"""vmctl when vmmd is killed in the middle: it waits for it by the operation's id, says so once, and tells what became of it."""
import json
import signal
import time

import pytest

from lib.metrics import limit_used
from lib.vmmd import SLOW
from lib.vms import eventually
from test_vmctl_lifecycle import create, ok, popen, state, wait_for_operation

AWAY = "vmmd went away; waiting up to 30 s"


def told_once(err):
    assert err.count(AWAY) == 1 and err.count("vmmd is back") == 1, err


def has_begun(vmmd, limit):
    """vmmd holds a wait, or a stream, of vmctl's."""
    eventually(lambda: limit_used(vmmd.client(), limit), lambda n: n == 1)


def misses(run):
    """Waits until vmctl says that vmmd is away; what it has said."""
    said = ""
    while AWAY not in said:
        line = run.stderr.readline()
        assert line, said
        said += line
    return said


def delayed(step_names, ms=6000):
    return [word for step in step_names for word in ("--label", f"noop.delay_ms.{step}={ms}")]


@pytest.mark.parametrize("verb", ["create", "start", "stop", "destroy"])
def test_verb_goes_on_by_its_operation_after_kill9(vmmd, verb):
    steps = {"create": ["build"], "start": ["spawn"], "stop": ["acpi", "press", "kill", "term"], "destroy": ["kill", "remove"]}[verb]
    if verb == "create":
        args = ["create", "web", "--backend", "noop", *delayed(steps)]
    else:
        create(vmmd, "web", *delayed(steps))
        if verb != "start":
            ok(vmmd.vmctl("start", "web"))
        args = [verb, "web"]
    run = popen(vmmd, *args)
    ident = wait_for_operation(vmmd, f"vm.{verb}")
    vmmd.kill9()
    said = misses(run)
    vmmd.start()
    out, err = run.communicate(timeout=60 * SLOW)
    err = said + err
    told_once(err)
    operation = json.loads(ok(vmmd.vmctl("ops", "show", ident, "-o", "json")))
    if operation["state"] == "succeeded":
        assert run.returncode == 0 and out, (out, err)
    else:
        assert run.returncode == 1 and "operation::interrupted" in err and "help:" in err, (out, err)
        assert operation["error"]["code"] == "vm_manager::operation::interrupted"
    listed = ok(vmmd.vmctl("list", "-o", "name")).split()
    if verb == "create" and run.returncode == 0 or verb != "create" and operation["state"] != "succeeded":
        assert listed == ["web"]
    elif verb in ("create", "destroy"):
        assert listed == []


def test_no_answer_to_the_request_itself_makes_one_vm(vmmd):
    """Killed before the answer: the request is sent again with its key."""
    for number in range(5):
        run = popen(vmmd, "create", f"v{number}", "--backend", "noop")
        time.sleep(0.004 * number)
        vmmd.kill9()
        vmmd.start()
        _, err = run.communicate(timeout=60 * SLOW)
        assert run.returncode in (0, 1, 5), err
        found = ok(vmmd.vmctl("list", "-o", "name")).split().count(f"v{number}")
        # Before it reached vmmd at all, it is unreachable.
        assert found == (run.returncode == 0) or "interrupted" in err or run.returncode == 5, err


def test_wait_goes_on_after_kill9(vmmd):
    create(vmmd)
    run = popen(vmmd, "wait", "web", "--for", "running", "--timeout", "300")
    has_begun(vmmd, "waits")
    vmmd.kill9()
    said = misses(run)
    vmmd.start()
    ok(vmmd.vmctl("start", "web"))
    out, err = run.communicate(timeout=60 * SLOW)
    assert run.returncode == 0 and out == "web is running\n", err
    told_once(said + err)


def test_events_go_on_after_kill9_without_gap_or_repetition(vmmd):
    create(vmmd)
    run = popen(vmmd, "events", "--since", "0", "-o", "json")
    ids, said = [json.loads(run.stdout.readline())["id"]], ""
    for _ in range(3):
        ok(vmmd.vmctl("start", "web"))
        vmmd.kill9()
        said += misses(run)
        vmmd.start()
        has_begun(vmmd, "streams")
        ok(vmmd.vmctl("stop", "web"))
    newest = json.loads(ok(vmmd.vmctl("events", "--no-follow", "-o", "json")).splitlines()[-1])["id"]
    while ids[-1] < newest:
        ids.append(json.loads(run.stdout.readline())["id"])
    run.send_signal(signal.SIGINT)
    _, err = run.communicate(timeout=60 * SLOW)
    assert ids == sorted(set(ids)) and ids[0] == 1
    whole = [json.loads(line)["id"] for line in ok(vmmd.vmctl("events", "--no-follow", "-o", "json")).splitlines()]
    assert ids == whole[:len(ids)]
    assert (said + err).count(AWAY) == 3, said + err


def test_followed_log_goes_on_after_kill9(vmmd):
    create(vmmd)
    ok(vmmd.vmctl("start", "web"))
    run = popen(vmmd, "log", "-f", "web")
    has_begun(vmmd, "streams")
    vmmd.kill9()
    said = misses(run)
    vmmd.start()
    has_begun(vmmd, "streams")
    assert run.poll() is None, "it ended"
    run.send_signal(signal.SIGINT)
    _, err = run.communicate(timeout=60 * SLOW)
    assert run.returncode == 130
    assert (said + err).count(AWAY) == 1, err


@pytest.mark.parametrize("args", [("start", "web"), ("wait", "web", "--for", "running", "--timeout", "300")])
def test_vmctl_gives_up_after_a_while_and_says_what_to_do(vmmd, args):
    create(vmmd, "web", "--label", "noop.delay_ms.spawn=600000")
    run = popen(vmmd, *args)
    if args[0] == "start":
        ident = wait_for_operation(vmmd, "vm.start")
    else:
        has_begun(vmmd, "waits")
    begin = time.monotonic()
    vmmd.kill9()
    _, err = run.communicate(timeout=180 * SLOW)
    assert run.returncode == 5 and 28 < time.monotonic() - begin < 100 * SLOW
    assert err.count(AWAY) == 1 and "client::daemon_unreachable" in err and "help:" in err
    if args[0] == "start":
        assert f"vmctl ops show {ident}" in err
        vmmd.start()
        assert "operation::interrupted" in ok(vmmd.vmctl("ops", "show", ident)) and state(vmmd) != "running"
