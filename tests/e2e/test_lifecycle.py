"""The life of a VM with a real guest: every verb, and what the guest notices of it."""
import os
import re
import shutil
import socket

import pytest

from e2e.guest import (INITRD, KERNEL, PATIENCE, UP, assert_nothing_left, booted, bring_ready, condition, console, console_end,
                       deaf, destroy, direct, do, from_disk, gone, in_guest, is_ready, key_pair, make, process_alive, ssh,
                       vm_files, wait_console, wait_for, wait_ready)
from lib.vms import create_body, eventually, get_operation, get_vm


@pytest.fixture(scope="module")
def shared(shared_vmmd):
    """One guest for the module; each test brings it up by itself."""
    api = shared_vmmd.client()
    make(api, **direct())
    return api


@pytest.fixture(scope="module")
def seeded(shared_vmmd, tmp_path_factory):
    """(api, private key) of a guest on a disk with a seed that has a name, a user and a key."""
    api = shared_vmmd.client()
    key, public = key_pair(str(tmp_path_factory.mktemp("key")))
    make(api, "disk", start=True, **from_disk(
        network={"type": "user"}, ssh={"user": "alice"},
        cloud_init={"hostname": "wonder", "ssh_authorized_keys": [public]}))
    wait_ready(api, "disk")
    return api, key


# ---- the seed ----

def test_guest_has_the_hostname_asked_for(seeded):
    api, _ = seeded
    assert in_guest(api, "hostname", "disk") == "wonder"


def test_user_of_the_seed_comes_in_by_ssh(seeded):
    api, key = seeded
    port = get_vm(api, "disk")["runtime"]["ssh_host_port"]
    assert ssh(port, key, "alice", "echo $((6 * 7)) $(id -un) $(hostname)") == "42 alice wonder"


def test_what_the_guest_wrote_is_there_after_stop_and_start(seeded):
    api, key = seeded
    port = get_vm(api, "disk")["runtime"]["ssh_host_port"]
    ssh(port, key, "alice", "echo remembered > ~/note")
    answer = do(api, "stop", "disk", {"timeout_s": PATIENCE})
    assert answer.json["method"] in ("acpi", "agent")
    do(api, "start", "disk")
    wait_ready(api, "disk")
    assert ssh(port, key, "alice", "cat ~/note") == "remembered"


# ---- start and create ----

def test_create_prepares_and_starts_nothing(vmmd, api):
    vm = make(api, **from_disk(cloud_init={"hostname": "web"}))
    assert vm["state"] == "prepared" and vm["runtime"]["pid"] is None and vmmd.leftovers() == []
    assert {os.path.basename(path) for path in vm_files(vmmd)} >= {"overlay.qcow2", "seed.iso"}


def test_create_with_start_goes_on_to_running(vmmd, api):
    vm = make(api, start=True, **direct())
    assert vm["state"] == "running"
    assert vmmd.leftovers() == [vm["runtime"]["pid"]]


def test_create_whose_start_fails_is_rolled_back_wholly(vmmd, api, tmp_path):
    kernel = str(tmp_path / "no-kernel")
    with open(kernel, "w", encoding="utf-8") as file:
        file.write("this is no kernel")
    body = create_body("web", "qemu", start=True, boot={"kernel": kernel}, image=from_disk()["image"], cloud_init={"hostname": "x"})
    answer = api.post("/v1/vms", body, prefer_wait=PATIENCE)
    assert (answer.status, answer.code) == (500, "qemu::spawn_failed"), answer
    assert any("kernel" in cause for cause in answer.json["causes"]), answer
    assert_nothing_left(vmmd)
    assert api.get("/v1/vms/web").code == "vm::not_found"
    assert make(api, **direct())["state"] == "prepared"  # the name is free


def test_start_that_fails_says_so_and_can_be_repeated(vmmd, api, tmp_path):
    kernel = str(tmp_path / "kernel")
    shutil.copy(KERNEL, kernel)
    make(api, **{**direct(), "boot": {"kernel": kernel, "initrd": INITRD}})
    with open(kernel, "w", encoding="utf-8") as file:
        file.write("this is no kernel")
    answer = do(api, "start", expect=500)
    assert answer.code == "qemu::spawn_failed"
    vm = get_vm(api)
    assert vm["state"] == "failed" and vm["failure"]["reason"] == "spawn"
    assert "kernel" in vm["failure"]["stderr_tail"]
    assert vmmd.leftovers() == []
    shutil.copy(KERNEL, kernel)
    do(api, "start")
    vm = wait_ready(api)
    assert vm["failure"] is None


# ---- while it runs ----

def test_ready_comes_with_a_command_that_the_agent_ran(shared):
    ready = condition(bring_ready(shared), "ready")
    assert ready["reason"] == "agent" and "no user vm" in ready["message"]
    assert condition(get_vm(shared), "agent")["status"] is True


def test_suspended_guest_stands_still_and_goes_on(shared):
    bring_ready(shared)
    in_guest(shared, "(while :; do echo tick >/dev/console; usleep 100000; done) & echo $! >/tmp/ticker")
    wait_console(shared, "tick\r\ntick", start=console_end(shared))
    do(shared, "suspend")
    vm = get_vm(shared)
    assert vm["state"] == "suspended" and not is_ready(vm) and condition(vm, "ready")["reason"] == "suspended"
    # What was in QEMU's buffers may still come; then nothing.
    eventually(lambda: (console_end(shared), eventually(lambda: None, lambda _: True), console_end(shared)),
               lambda seen: seen[0] == seen[2])
    still = console_end(shared)
    assert shared.get("/v1/vms/web/wait", query={"for": "ready", "timeout": 1}).code == "wait::timed_out"
    assert console_end(shared) == still
    do(shared, "resume")
    wait_ready(shared)
    wait_console(shared, "tick\r\ntick", start=still)
    in_guest(shared, "kill $(cat /tmp/ticker)")


def test_reset_boots_again_in_the_same_process(shared):
    pid = bring_ready(shared)["runtime"]["pid"]
    start = console_end(shared)
    vm = do(shared, "reset").json["result"]
    assert not is_ready(vm) and vm["state"] == "running"
    wait_console(shared, UP, start=start)
    vm = wait_ready(shared)
    assert vm["runtime"]["pid"] == pid


def test_reset_of_a_suspended_vm_lets_it_run(shared):
    bring_ready(shared)
    do(shared, "suspend")
    start = console_end(shared)
    assert do(shared, "reset").json["result"]["state"] == "running"
    wait_console(shared, UP, start=start)
    wait_ready(shared)


def test_restart_boots_in_a_new_process(shared):
    pid = bring_ready(shared)["runtime"]["pid"]
    start = console_end(shared)
    operation = do(shared, "restart").json
    assert operation["result"]["state"] == "running" and operation["result"]["runtime"]["pid"] != pid
    gone(pid)
    wait_console(shared, UP, start=start)
    wait_ready(shared)


# ---- the ways to end it ----

def test_stop_presses_the_power_button(shared):
    pid = bring_ready(shared)["runtime"]["pid"]
    answer = do(shared, "stop", body={"timeout_s": PATIENCE})
    assert answer.json["method"] in ("acpi", "agent")
    vm = get_vm(shared)
    assert vm["state"] == "stopped" and vm["failure"] is None and vm["runtime"]["pid"] is None and not is_ready(vm)
    gone(pid)


def test_stop_before_the_guest_listens_presses_again(api):
    """A press in the first moments of the boot is lost."""
    make(api, start=True, **direct())
    answer = do(api, "stop", body={"timeout_s": PATIENCE})
    assert answer.json["method"] in ("acpi", "agent")


def test_stop_of_a_suspended_vm_lets_its_guest_shut_down(shared):
    bring_ready(shared)
    do(shared, "suspend")
    answer = do(shared, "stop", body={"timeout_s": PATIENCE})
    assert answer.json["method"] in ("acpi", "agent")
    assert get_vm(shared)["state"] == "stopped"


@pytest.mark.parametrize("machine", ["q35", "microvm"])
def test_stop_of_a_deaf_guest_ends_by_term(api, machine):
    make(api, start=True, **deaf(machine=machine) if machine == "q35" else deaf_microvm())
    wait_console(api, "# ")
    answer = do(api, "stop", body={"timeout_s": 1})
    assert answer.json["method"] == "term"
    assert get_vm(api)["state"] == "stopped"


def deaf_microvm():
    spec = deaf(machine="microvm")
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        mhz = float(re.search(r"cpu MHz\s*: ([\d.]+)", file.read())[1])
    spec["boot"]["cmdline"] += f" tsc_early_khz={int(mhz * 1000)}"
    return spec


def test_kill_ends_it_at_once(shared):
    pid = bring_ready(shared)["runtime"]["pid"]
    assert do(shared, "kill").json["method"] == "kill"
    vm = get_vm(shared)
    assert vm["state"] == "stopped" and vm["failure"] is None
    assert not process_alive(pid)


def test_kill_of_a_suspended_vm(shared):
    bring_ready(shared)
    do(shared, "suspend")
    do(shared, "kill")
    assert get_vm(shared)["state"] == "stopped"


@pytest.mark.parametrize("state", ["prepared", "running", "suspended", "stopped"])
def test_destroy_leaves_nothing(vmmd, api, state):
    vm = make(api, start=state != "prepared", **from_disk(
        network={"type": "user"}, cloud_init={"hostname": "web"}, uefi=True))
    if state in ("suspended", "stopped"):
        do(api, "suspend" if state == "suspended" else "kill")
    destroy(api)
    assert_nothing_left(vmmd)
    assert api.get(f"/v1/vms/{vm['id']}").code == "lifecycle::destroyed"
    assert api.get("/v1/vms/web").code == "vm::not_found"
    with socket.socket() as sock:  # the SSH forward is free again
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(("127.0.0.1", vm["runtime"]["ssh_host_port"]))


def test_destroy_while_it_starts(vmmd, api):
    make(api, **direct())
    start = api.post("/v1/vms/web/start")
    assert start.status == 202
    destroy(api)
    assert get_operation(api, start.json["id"])["state"] in ("cancelled", "succeeded")
    assert_nothing_left(vmmd)


def test_destroy_in_the_middle_of_a_stop(vmmd, api):
    make(api, start=True, **deaf())
    wait_console(api, "# ")
    stop = api.post("/v1/vms/web/stop", {"timeout_s": 600})
    assert stop.status == 202
    destroy(api)
    operation = get_operation(api, stop.json["id"])
    assert operation["state"] == "cancelled" and operation["error"]["code"] == "vm_manager::operation::cancelled"
    assert_nothing_left(vmmd)


def test_many_guests_at_once_stay_apart(vmmd, api):
    names = ["one", "two", "three"]
    for name in names:
        make(api, name, start=True, **direct(network={"type": "user"}, cloud_init={"hostname": name}))
    for name in names:
        wait_for(api, name, "ready")
    assert [in_guest(api, "hostname", name) for name in names] == names
    do(api, "kill", "two")
    assert [get_vm(api, name)["state"] for name in names] == ["running", "stopped", "running"]
    assert len(vmmd.leftovers("qemu")) == 2
    assert UP in console(api, "one")
