"""A full disk under real guests: a write that finds no room pauses the guest, and nothing it wrote is lost."""
import contextlib
import os
import re
import time

import pytest

from e2e import guest
from e2e.guest import (PATIENCE, TINY, Shell, condition, console, deaf, destroy, direct, do, make, process_alive,
                       until_paused, vm_files, wait_for, wait_ready)
from lib.smalldisk import small_daemon
from lib.vms import create_body, eventually, get_vm

MIB = 1024
# As much as the guest writes, in MiB; the disk has less.
WRITES = 24


@pytest.fixture
def small():
    """A daemon whose data lie on a file system of 64 MiB."""
    with small_daemon("64m") as (daemon, disk):
        try:
            yield daemon, disk
            disk.make_room()
            guest.tell(daemon)
            guest.destroy_all(daemon)
        finally:
            for pid in daemon.leftovers():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, 9)


def with_disk(**more):
    """A guest whose initrd is its root, so that it lives on while its disk waits."""
    return direct(image=TINY, disk_gb=1, **more)


def full(answer):
    assert (answer.status, answer.code) == (507, "host::disk_full"), answer
    return answer


def writer(api, name):
    """Makes a pattern in the guest's memory and begins to write it behind the image's end; its checksum."""
    with Shell(api, name) as shell:
        # Bytes that no layer below can fold: a hash of counters.
        shell.run("i=0; while [ $i -lt 64 ]; do echo $i | sha512sum; i=$((i+1)); done >/tmp/seed")
        shell.run("cat /tmp/seed /tmp/seed >/tmp/p; for n in 1 2 3 4 5 6; do cat /tmp/p /tmp/p >/tmp/q; mv /tmp/q /tmp/p; done;"
                  " head -c 1048576 /tmp/p >/tmp/m; wc -c /tmp/m")
        found = shell.run("wc -c </tmp/m")
        assert found == "1048576", found
        checksum = shell.run("sha256sum </tmp/m").split()[0]  # before the disk may pause it
        shell.send(f"(echo be''gun; n=0; while [ $n -lt {WRITES} ]; do dd if=/tmp/m of=/dev/vda bs=64k seek=$((1024+n*16)) conv=notrunc,fsync"
                   " 2>/dev/null || echo write-''failed; n=$((n+1)); done; echo all-''written) &\r")
        shell.until("begun")
        return checksum


def paused(api, name):
    """Waits until its disk has paused it; the VM."""
    # A vmmd that comes back finds it suspended, and a moment later why.
    vm = eventually(lambda: get_vm(api, name), lambda vm: vm["state"] == "suspended" and condition(vm, "disk_io"), PATIENCE)
    found = condition(vm, "disk_io")
    assert (found["status"], found["reason"]) == (False, "enospc") and f"vmctl resume {name}" in found["message"], vm
    assert condition(vm, "ready")["status"] is False
    return vm


def finishes(api, name, checksum):
    """The guest's writes come to their end, and all of them are on its disk."""
    with Shell(api, name, force=True) as shell:
        eventually(lambda: console(api, name), lambda text: "all-written" in text, PATIENCE)
        assert "write-failed" not in console(api, name)
        shell.run("echo 3 >/proc/sys/vm/drop_caches")
        read = shell.run(f"n=0; while [ $n -lt {WRITES} ]; do dd if=/dev/vda bs=64k skip=$((1024+n*16)) count=16 2>/dev/null"
                         " | sha256sum; n=$((n+1)); done | sort -u")
        assert read.split() == [checksum, "-"], read


def test_guest_waits_for_room_and_its_data_are_whole(small):
    daemon, disk = small
    api = daemon.client()
    make(api, start=True, **with_disk())
    pid = wait_ready(api)["runtime"]["pid"]
    disk.leave(8 * MIB)
    with api.events(since=api.get("/v1/vms").json["as_of_event"]) as stream:
        checksum = writer(api, "web")
        told = stream.until(lambda e: e.type == "vm.state_changed", PATIENCE)
        assert told[-1].data["data"] == {"from": "running", "to": "suspended", "cause": "disk write failed"}
        conditions = [e.data["data"] for e in told if e.type == "vm.condition_changed"]
        assert any((c["type"], c["status"], c["reason"]) == ("disk_io", False, "enospc") for c in conditions), conditions
    paused(api, "web")
    # What a person sees, and what to do.
    assert "suspended (disk_io)" in daemon.vmctl("list").stdout
    assert "disk_io no (enospc)" in daemon.vmctl("status", "web").stdout
    assert "vmctl resume web" in daemon.vmctl("status", "web").stdout
    assert "vmctl resume web" in daemon.vmctl("explain", "web").stdout
    assert condition(api.get("/v1/vms/web/explain").json, "disk_io")["reason"] == "enospc"

    # Without room it is paused again, and says so.
    disk.fill()
    answer = api.post("/v1/vms/web/resume", prefer_wait=PATIENCE)
    if answer.status == 200:  # it ran for a moment
        paused(api, "web")
    else:
        assert "no room" in full(answer).json["detail"] or "is full" in answer.json["detail"]
    assert paused(api, "web")["operation"] is None

    # A vmmd that comes anew knows it, also one whose last words were not written.
    for end in (daemon.kill9, daemon.stop):
        end()
        daemon.start()
        assert paused(api, "web")["runtime"]["pid"] == pid

    disk.make_room()
    do(api, "resume")
    vm = get_vm(api)
    assert vm["state"] == "running" and condition(vm, "disk_io")["status"] is True
    finishes(api, "web", checksum)


def test_pause_that_nobody_saw_is_found_with_its_reason(small):
    """The write fails while there is no vmmd."""
    daemon, disk = small
    api = daemon.client()
    make(api, start=True, **with_disk())
    wait_ready(api)
    checksum = writer(api, "web")
    daemon.kill9()
    disk.leave(0)
    until_paused(daemon, "io-error")  # the guest goes on alone, and comes to the end of the room
    daemon.start()
    paused(api, "web")
    disk.make_room()
    do(api, "resume")
    finishes(api, "web", checksum)


def test_two_guests_on_one_full_disk(small):
    daemon, disk = small
    api = daemon.client()
    for name in ("one", "two"):
        make(api, name, start=True, **with_disk())
    for name in ("one", "two"):
        wait_ready(api, name)
    disk.leave(6 * MIB)
    checksums = {name: writer(api, name) for name in ("one", "two")}
    for name in checksums:
        paused(api, name)
    full(api.post("/v1/vms", create_body("three", "qemu", **direct())))
    disk.make_room()
    for name, checksum in checksums.items():
        do(api, "resume", name)
        finishes(api, name, checksum)


def test_paused_guest_can_be_stopped_and_destroyed_on_a_full_disk(small):
    daemon, disk = small
    api = daemon.client()
    make(api, "web", start=True, **with_disk())
    make(api, "kernel", start=True, **deaf())
    wait_ready(api)
    disk.leave(6 * MIB)
    writer(api, "web")
    vm = paused(api, "web")
    disk.fill()
    daemon.kill9()
    disk.fill()
    daemon.start()
    answer = do(api, "stop", body={"timeout_s": 1})
    assert answer.json["method"] in ("term", "kill") and not process_alive(vm["runtime"]["pid"])
    assert condition(get_vm(api), "disk_io") is None
    disk.fill()
    full(api.post("/v1/vms/web/start"))
    do(api, "kill", "kernel")
    destroy(api, "kernel")
    destroy(api, "web")
    assert vm_files(daemon) == []
    disk.make_room()
    make(api, "web", start=True, **with_disk())
    wait_ready(api)


def test_restart_of_a_paused_guest_clears_the_condition(small):
    daemon, disk = small
    api = daemon.client()
    make(api, "web", start=True, **with_disk())
    wait_ready(api)
    disk.leave(6 * MIB)
    writer(api, "web")
    paused(api, "web")
    disk.make_room()
    do(api, "reset")
    assert condition(wait_for(api, "web", "ready"), "disk_io") is None


def test_qemu_that_dies_on_a_full_disk_is_seen(small):
    daemon, disk = small
    api = daemon.client()
    make(api, "web", start=True, **deaf())
    disk.fill()
    os.kill(get_vm(api)["runtime"]["pid"], 9)
    assert wait_for(api, "web", "state:failed")["failure"]["signal"] == "SIGKILL"
    daemon.kill9()
    disk.fill()
    daemon.start()
    assert get_vm(api)["state"] == "failed"


def test_console_of_a_full_disk_waits_in_memory(small):
    """What the guest says meanwhile is kept as far as memory is meant for it; tests/unit/test_logfile.c has what is not."""
    daemon, disk = small
    api = daemon.client()
    make(api, start=True, **direct())
    wait_ready(api)
    disk.fill()
    with Shell(api) as shell:
        shell.run("i=0; while [ $i -lt 2000 ]; do echo $i-aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa; i=$((i+1)); done >/dev/ttyS0")
        before = cpu(daemon.pid)
        time.sleep(2)
        assert cpu(daemon.pid) - before < 100, "it spins"
        disk.make_room()
        shell.send("echo there-is-''room\r")
        shell.until("there-is-room")
    text = eventually(lambda: console(api), lambda all_: "there-is-room" in all_, PATIENCE)
    assert [int(line) for line in re.findall(r"^(\d+)-a{52}\r?$", text, re.M)] == list(range(2000))
    assert guest.UP in text, "what the disk had is gone"
    assert get_vm(api)["state"] == "running"


def cpu(pid):
    """Clock ticks it has used."""
    with open(f"/proc/{pid}/stat", encoding="ascii") as file:
        fields = file.read().rsplit(")", 1)[1].split()
    return int(fields[11]) + int(fields[12])


@pytest.mark.parametrize("spec, more", [
    (direct(), 0), (direct(cloud_init={"user_data": "#cloud-config\n" + "# x\n" * 30000}), 400 + 5 * 117), (with_disk(), 256),
], ids=["kernel", "seed", "overlay"])
def test_create_is_refused_before_it_begins(small, spec, more):
    daemon, disk = small
    api = daemon.client()
    events = api.get("/v1/vms").json["as_of_event"]
    disk.leave(100)
    context = full(api.post("/v1/vms", create_body("web", "qemu", **spec))).context
    assert more <= context["needed_bytes"] // 1024 <= more + 300, context
    assert vm_files(daemon) == [] and api.get("/v1/vms").json["as_of_event"] == events
    # With as much as it says, it goes through.
    disk.leave((context["needed_bytes"] + context["reserved_bytes"]) // 1024 + 64)
    before = disk.free()
    make(api, **spec)
    assert before - disk.free() <= context["needed_bytes"], "it takes more than was told"


def test_runtime_directory_is_looked_at_too(small):
    daemon, _ = small
    api = daemon.client()
    make(api, **direct())
    with small_runtime(daemon) as disk:
        disk.fill()
        answer = full(api.post("/v1/vms/web/start"))
        assert answer.context["path"] == daemon.runtime_dir
        disk.make_room()
        do(api, "start")
        do(api, "kill")


@contextlib.contextmanager
def small_runtime(daemon):
    from lib import smalldisk
    smalldisk.mount(daemon.runtime_dir, "4m")
    disk = smalldisk.Disk(daemon.runtime_dir)
    try:
        yield disk
    finally:
        disk.make_room()
        smalldisk.unmount(daemon.runtime_dir)
