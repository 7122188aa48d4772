"""QEMU outlives vmmd: what a new vmmd finds of the last one's VMs, however that ended, and whatever happened meanwhile."""
import json
import os
import random
import signal
import sqlite3
import subprocess
import time

import pytest

from e2e.guest import (PATIENCE, TINY, UP, assert_nothing_left, booted, console, console_end, deaf, destroy,
                       direct, do, gone, in_guest, is_ready, make, process_alive, resume_stopped, type_alone, until_paused, wait_ready)
from lib.vmmd import SLOW
from lib.vms import create_body, ended, eventually, get_vm

WAYS = ["SIGTERM", "SIGKILL"]
LEGAL = {"prepared", "running", "suspended", "stopped", "failed"}


def leave(vmmd, way):
    if way == "SIGTERM":
        vmmd.stop()
    else:
        vmmd.kill9()


def again(vmmd, way="SIGKILL"):
    leave(vmmd, way)
    vmmd.start()


# ---- what runs on ----

@pytest.mark.parametrize("way", WAYS)
def test_running_guest_is_adopted(vmmd, api, way):
    """The same process and the same guest: its shell remembers, its agent answers, stop works."""
    before = booted(api)
    in_guest(api, "remembered=yes")
    again(vmmd, way)
    vm = wait_ready(api)
    assert vm["state"] == "running"
    assert (vm["id"], vm["runtime"]["pid"], vm["runtime"]["started_at"]) == (
        before["id"], before["runtime"]["pid"], before["runtime"]["started_at"])
    assert in_guest(api, "echo =$remembered=") == "=yes="
    assert do(api, "stop", body={"timeout_s": PATIENCE}).json["method"] in ("acpi", "agent")
    assert get_vm(api)["state"] == "stopped"


@pytest.mark.parametrize("way", WAYS)
def test_console_log_goes_on_with_the_gap_marked(vmmd, api, way):
    booted(api)
    before, end = console(api), console_end(api)
    again(vmmd, way)
    wait_ready(api)
    in_guest(api, "echo after-the-restart")
    text = console(api)
    assert text.index("vmmd was away") < text.rindex("after-the-restart")
    if way == "SIGTERM":  # then nothing of it may be lost
        assert UP in before and text.startswith(before) and console_end(api) > end


def test_suspended_guest_is_adopted_suspended(vmmd, api):
    pid = booted(api)["runtime"]["pid"]
    do(api, "suspend")
    again(vmmd)
    vm = get_vm(api)
    assert vm["state"] == "suspended" and vm["runtime"]["pid"] == pid and not is_ready(vm)
    do(api, "resume")
    wait_ready(api)
    in_guest(api, "true")


def test_several_guests_are_adopted_side_by_side(vmmd, api):
    pids = {name: make(api, name, start=True, **deaf())["runtime"]["pid"] for name in ("one", "two", "three")}
    do(api, "suspend", "two")
    again(vmmd)
    assert {name: get_vm(api, name)["runtime"]["pid"] for name in pids} == pids
    assert [get_vm(api, name)["state"] for name in pids] == ["running", "suspended", "running"]


def test_ports_of_an_adopted_vm_stay_taken(vmmd, api):
    port = make(api, start=True, **deaf(network={"type": "user"}))["runtime"]["ssh_host_port"]
    again(vmmd)
    answer = api.post("/v1/vms", create_body("other", "qemu", **deaf(
        network={"type": "user", "forwards": [{"host_port": port, "guest_port": 22}]})))
    assert answer.code == "network::port_in_use" and answer.context["holder"] == "web"


def test_hung_qemu_does_not_hold_up_the_start(vmmd, api):
    pid = make(api, start=True, **deaf())["runtime"]["pid"]
    leave(vmmd, "SIGKILL")
    os.kill(pid, signal.SIGSTOP)
    try:
        vmmd.start(timeout=60)
        assert get_vm(api)["state"] == "running"
        do(api, "kill")
        assert get_vm(api)["state"] == "stopped" and not process_alive(pid)
    finally:
        resume_stopped(pid)


def test_mute_suspended_vm_stays_suspended(vmmd, api):
    pid = booted(api)["runtime"]["pid"]
    do(api, "suspend")
    leave(vmmd, "SIGKILL")
    os.kill(pid, signal.SIGSTOP)
    try:
        vmmd.start(timeout=60)
        assert get_vm(api)["state"] == "suspended"
    finally:
        resume_stopped(pid)
    eventually(lambda: vmmd.log(), lambda text: "monitor answers again" in text, PATIENCE)
    assert get_vm(api)["state"] == "suspended"
    do(api, "resume")
    wait_ready(api)


# ---- what happened while vmmd was away ----

@pytest.mark.parametrize("machine", ["q35", "microvm"])
def test_guest_that_powered_off_meanwhile_is_stopped(vmmd, api, machine):
    pid = booted(api, **direct(machine))["runtime"]["pid"]
    leave(vmmd, "SIGKILL")
    type_alone(vmmd, "poweroff")
    until_paused(vmmd, "shutdown")
    vmmd.start()
    vm = get_vm(api)
    assert vm["state"] == "stopped" and vm["failure"] is None and vm["runtime"]["pid"] is None
    gone(pid)


@pytest.mark.parametrize("machine", ["q35", "microvm"])
def test_guest_that_panicked_meanwhile_has_failed(vmmd, api, machine):
    pid = booted(api, **direct(machine))["runtime"]["pid"]
    leave(vmmd, "SIGKILL")
    type_alone(vmmd, "echo c >/proc/sysrq-trigger")
    until_paused(vmmd, "guest-panicked")
    vmmd.start()
    vm = get_vm(api)
    assert vm["state"] == "failed" and vm["failure"]["reason"] == "panic"
    gone(pid)
    do(api, "start")
    wait_ready(api)


def test_qemu_that_was_killed_meanwhile_has_failed(vmmd, api):
    pid = make(api, start=True, **deaf())["runtime"]["pid"]
    leave(vmmd, "SIGKILL")
    os.kill(pid, signal.SIGKILL)
    gone(pid)
    vmmd.start()
    vm = get_vm(api)
    assert vm["state"] == "failed" and vm["failure"]["reason"] == "killed"
    assert vm["failure"]["signal"] is None and vm["runtime"]["pid"] is None
    do(api, "start")


# ---- a process that is not the VM's ----

def forge(vmmd, name, change):
    """Rewrites a stopped vmmd's record of a VM: change(document, private document)."""
    with sqlite3.connect(database(vmmd)) as db:
        row = db.execute("SELECT id, doc, private_doc FROM vms WHERE name = ?", (name,)).fetchone()
        doc, private = json.loads(row[1]), json.loads(row[2])
        change(doc, private)
        db.execute("UPDATE vms SET doc = ?, private_doc = ? WHERE id = ?", (json.dumps(doc), json.dumps(private), row[0]))


def database(vmmd):
    return next(os.path.join(vmmd.data_dir, name) for name in os.listdir(vmmd.data_dir) if name.endswith(".db"))


def test_stranger_with_the_recorded_pid_is_let_alone(vmmd, api):
    """The number was given to another process: it is neither adopted nor signalled."""
    pid = make(api, start=True, **deaf())["runtime"]["pid"]
    leave(vmmd, "SIGKILL")
    os.kill(pid, signal.SIGKILL)
    gone(pid)
    stranger = subprocess.Popen(["sleep", "600"])
    try:
        forge(vmmd, "web", lambda doc, _: doc["runtime"].update(pid=stranger.pid))
        vmmd.start()
        vm = get_vm(api)
        assert vm["state"] == "failed" and vm["failure"]["reason"] == "killed" and vm["runtime"]["pid"] is None
        do(api, "start")
        do(api, "kill")
        destroy(api)
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


def test_qemu_is_found_again_when_its_record_is_wrong(vmmd, api):
    """The pid on record is a stranger's, but the VM's QEMU lives: it is searched for by its identity."""
    pid = make(api, start=True, **deaf())["runtime"]["pid"]
    leave(vmmd, "SIGKILL")
    stranger = subprocess.Popen(["sleep", "600"])
    try:
        forge(vmmd, "web", lambda doc, _: doc["runtime"].update(pid=stranger.pid))
        vmmd.start()
        vm = get_vm(api)
        assert vm["state"] == "running" and vm["runtime"]["pid"] == pid
        do(api, "kill")
        assert not process_alive(pid) and stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


# ---- kill -9 in the middle of an operation ----

def check_legal(vmmd, api):
    """Every VM is in a state that has a meaning, and what lives is what is said to live."""
    assert api.get("/v1/operations", query={"state": "running"}).json["items"] == []
    alive = set()
    for vm in api.get("/v1/vms").json["items"]:
        assert vm["state"] in LEGAL and vm["operation"] is None, vm
        if vm["state"] in ("running", "suspended"):
            alive.add(vm["runtime"]["pid"])
        else:
            assert vm["runtime"]["pid"] is None, vm
    assert set(vmmd.leftovers("qemu")) == alive


def cut(vmmd, seconds):
    """kill -9 so long after now, and a new vmmd."""
    time.sleep(seconds)
    vmmd.kill9()
    vmmd.start()


# Starts take 0.1 s and more; the instants are spread over that and fixed by the seed.
INSTANTS = [round(random.Random(seed).uniform(0, 0.15), 4) for seed in range(6)]


@pytest.mark.parametrize("instant", INSTANTS)
def test_kill9_in_the_middle_of_a_start(vmmd, api, instant):
    make(api, **direct(image=TINY, network={"type": "user"}, cloud_init={"hostname": "web"}))
    operation = api.post("/v1/vms/web/start").json["id"]
    cut(vmmd, instant * SLOW)
    check_legal(vmmd, api)
    vm = get_vm(api)
    assert ended(api, operation)["state"] == ("succeeded" if vm["state"] == "running" else "failed")
    assert vm["state"] in ("running", "prepared")
    if vm["state"] == "prepared":
        do(api, "start")
    do(api, "kill")
    destroy(api)
    assert_nothing_left(vmmd)
    make(api, **direct())


@pytest.mark.parametrize("instant", INSTANTS)
def test_kill9_in_the_middle_of_a_create(vmmd, api, instant):
    body = create_body("web", "qemu", start=True, **direct(image=TINY, network={"type": "user"}, cloud_init={"hostname": "web"}))
    made = api.post("/v1/vms", body).json
    cut(vmmd, instant * SLOW)
    check_legal(vmmd, api)
    operation = ended(api, made["id"])
    if operation["state"] == "succeeded":
        assert get_vm(api)["state"] == "running"
        destroy(api)
    else:
        assert operation["error"]["code"] == "vm_manager::operation::interrupted"
        assert api.get("/v1/vms/web").code == "vm::not_found"
    assert_nothing_left(vmmd)
    make(api, start=True, **deaf())


@pytest.mark.parametrize("instant", INSTANTS[:4])
def test_kill9_in_the_middle_of_a_stop(vmmd, api, instant):
    make(api, start=True, **deaf(network={"type": "user"}))
    operation = api.post("/v1/vms/web/stop", {"timeout_s": 0}).json["id"]
    cut(vmmd, instant * SLOW)
    check_legal(vmmd, api)
    assert ended(api, operation)["state"] in ("succeeded", "failed")
    vm = get_vm(api)
    assert vm["state"] in ("running", "stopped") and vm["failure"] is None
    do(api, "stop", body={"timeout_s": 0})
    assert get_vm(api)["state"] == "stopped" and vmmd.leftovers() == []


@pytest.mark.parametrize("instant", INSTANTS[:4])
def test_kill9_in_the_middle_of_a_destroy(vmmd, api, instant):
    """What was begun is finished."""
    make(api, start=True, **deaf(image=TINY, network={"type": "user"}))
    answer = api.delete("/v1/vms/web")
    assert answer.status == 202
    cut(vmmd, instant / 4 * SLOW)
    assert ended(api, answer.json["id"])["state"] == "succeeded"
    assert api.get("/v1/vms/web").code == "vm::not_found"
    assert_nothing_left(vmmd)
    make(api, **direct())


def test_sigterm_in_the_middle_of_a_stop_finishes_it_or_leaves_it_running(vmmd, api):
    make(api, start=True, **deaf())
    api.post("/v1/vms/web/stop", {"timeout_s": 600})
    vmmd.stop(timeout=30)
    vmmd.start()
    check_legal(vmmd, api)
    do(api, "kill")
