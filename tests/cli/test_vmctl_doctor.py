"""vmctl doctor and vmctl adopt against a scripted daemon; tests/e2e/test_reconcile.py has them with a real one."""
import json

import pytest

from scripted import problem, vm

HOST = {"backends": [{"name": "qemu", "available": False, "reason": "no QEMU"}, {"name": "noop", "available": True, "reason": "x"}],
        "accelerators": [{"name": "kvm", "available": False, "reason": "no /dev/kvm"}, {"name": "tcg", "available": True, "reason": ""}],
        "tools": [{"name": "qemu-img", "present": False, "path": None}, {"name": "vmmd-inspect", "present": True, "path": "/x"}]}


def leak(what="pid 7", vm_id="01a20327-1495-7004-af1d-031135159eff", name="web", **more):
    return {"id": "0123456789abcdef", "kind": "process", "what": what, "pid": 7, "owner": {"vm_id": vm_id, "vm_name": name} if vm_id else None,
            "age_s": 5, "since": "2025-01-31T12:00:00.000Z", "size_bytes": None, "adoptable": False, "reason": "why not", **more}


def serve(peer, *items):
    peer.on("GET", "/v1/host/leaks", (200, {"items": list(items), "surveyed_at": "2025-01-31T12:00:00.000Z", "grace_s": 60}))
    peer.on("GET", "/v1/host", (200, HOST))


def test_doctor_of_a_clean_host_says_so_and_what_the_host_lacks(peer):
    serve(peer)
    run = peer.vmctl("doctor")
    assert run.returncode == 0 and run.stdout.splitlines() == [
        "nothing is left behind", "host: qemu is not available: no QEMU", "host: kvm is not available: no /dev/kvm",
        "host: qemu-img is missing"]


def test_doctor_shows_a_row_for_each(peer):
    serve(peer, leak(), leak("odd", None, adoptable=False), leak("x", name=None, adoptable=True))
    run = peer.vmctl("doctor")
    lines = run.stdout.splitlines()
    assert run.returncode == 1 and lines[0].split() == ["KIND", "WHAT", "OWNER", "AGE", "NOTE"]
    assert lines[1].split()[:4] == ["process", "pid", "7", "web"] and lines[2].split()[2] == "-"
    assert "01a20327-1495-7004-af1d-031135159eff" in lines[3] and "adoptable: why not" in lines[3]


@pytest.mark.parametrize("args, body", [(["--reap"], {"dry_run": False}), (["--dry-run"], {"dry_run": True}),
                                        (["--reap", "--older-than", "0"], {"dry_run": False, "older_than_s": 0}),
                                        (["--reap", "--dry-run", "--older-than", "9"], {"dry_run": True, "older_than_s": 9})])
def test_doctor_asks_for_what_its_options_say(peer, args, body):
    serve(peer)
    peer.on("POST", "/v1/host/leaks/reap", (200, {"dry_run": False, "items": [], "reaped": 0}))
    assert peer.vmctl("doctor", *args).returncode == 0
    assert [r.json for r in peer.requests if r.method == "POST"] == [body]


@pytest.mark.parametrize("result, code, text", [("reaped", 0, "removed: why not"), ("would_reap", 1, "would be removed"),
                                                ("too_young", 1, "too young: d"), ("kept", 1, "kept: d"), ("failed", 1, "failed: d")])
def test_doctor_ends_with_0_only_when_nothing_is_left(peer, result, code, text):
    serve(peer)
    peer.on("POST", "/v1/host/leaks/reap", (200, {"dry_run": False, "reaped": 0, "items": [leak(result=result, detail="d", error=None)]}))
    run = peer.vmctl("doctor", "--reap")
    assert run.returncode == code and text in run.stdout


def test_doctor_as_json_and_as_names(peer):
    serve(peer, leak())
    run = peer.vmctl("doctor", "-o", "json")
    assert run.returncode == 1 and json.loads(run.stdout)["items"][0]["what"] == "pid 7"
    assert peer.vmctl("doctor", "-o", "name").stdout == "pid 7\n"


def test_doctor_refuses_an_age_without_a_deed(peer):
    assert peer.vmctl("doctor", "--older-than", "5").returncode == 2
    assert peer.vmctl("doctor", "--reap", "--older-than", "-5").returncode == 2
    assert peer.requests == []


def test_doctor_tells_what_the_daemon_refused(peer):
    peer.on("GET", "/v1/host/leaks", problem("daemon::overloaded", 503, "busy"))
    run = peer.vmctl("doctor")
    assert run.returncode == 1 and "daemon::overloaded" in run.stderr


OTHER = "01a20327-1495-7004-af1d-031135159e00"


def adopted(peer, *items):
    peer.on("POST", "/v1/host/adopt", (200, {"items": list(items)}))


def item(name="web", done=True, error=None, state="running"):
    return {"id": "x", "adopted": done, "vm": None if error else vm(name, state=state), "error": error}


def test_adopt_by_name_id_and_all(peer):
    serve(peer, leak(adoptable=True), leak("dir", adoptable=True), leak("other", OTHER, "other", adoptable=True), leak("no", "x", "no"))
    adopted(peer, item())
    for args, ids in ((["web"], [leak()["owner"]["vm_id"]]), ([OTHER], [OTHER]), (["--all"], [leak()["owner"]["vm_id"], OTHER]),
                      (["web", "other", "web"], [leak()["owner"]["vm_id"], OTHER]),
                      (["01a20327-1495-7004-af1d-031135159e01"], ["01a20327-1495-7004-af1d-031135159e01"])):
        run = peer.vmctl("adopt", *args)
        assert run.returncode == 0 and run.stdout == "web adopted (running)\n", run
        assert peer.requests[-1].json == {"ids": ids}, args


def test_adopt_shows_what_became_of_each_and_ends_with_the_worst(peer):
    serve(peer, leak(adoptable=True))
    refusal = problem("vm::already_exists", 409, "taken")[1]
    adopted(peer, item("one"), item("two", done=False, state="stopped"), item(error=refusal))
    run = peer.vmctl("adopt", "--all")
    assert run.returncode == 4 and run.stdout.splitlines() == ["one adopted (running)", "two needs no adoption (stopped)"]
    assert "vm_manager::vm::already_exists" in run.stderr
    run = peer.vmctl("adopt", "--all", "-o", "json")
    assert run.returncode == 4 and len(json.loads(run.stdout)["items"]) == 3 and run.stderr == ""
    assert peer.vmctl("adopt", "--all", "-o", "name").stdout == "one\ntwo\n"


def test_adopt_of_what_is_not_there(peer):
    serve(peer, leak())
    for args, code in ((["web"], 3), (["--all"], 0), (["--all", "web"], 2)):
        assert peer.vmctl("adopt", *args).returncode == code, args
    assert not any(r.method == "POST" for r in peer.requests)


def test_adopt_without_a_name_lists(peer):
    serve(peer, leak(adoptable=True), leak("dir", adoptable=True), leak("no", OTHER, "no"))
    run = peer.vmctl("adopt")
    assert run.returncode == 0 and len(run.stdout.splitlines()) == 3 and "--all" in run.stderr
    assert peer.vmctl("adopt", "-o", "name").stdout == "web\n"
    assert len(json.loads(peer.vmctl("adopt", "-o", "json").stdout)["items"]) == 2
