"""Every way in which QEMU, its tools and the host let a VM down, by real faults: each has its code, says what lay beneath,
leaves nothing half made, and the VM can be started or destroyed afterwards."""
import errno
import os
import shutil
import signal

import pytest

from e2e import guest
from e2e.guest import TINY, deaf, direct, do, from_disk, make, process_alive, resume_stopped, vm_files
from lib.smalldisk import small_daemon
from lib.vms import create_body, destroy, get_vm

QEMU = shutil.which("qemu-system-x86_64")

# A QEMU that is one for the probe, whose monitor is on stdio; what follows is what it is for a start.
FAKE = f"""#!/usr/bin/python3 -I
import os, sys
def real(argv):
    os.execv({QEMU!r}, [{QEMU!r}, *argv])
def after(option):
    return sys.argv[sys.argv.index(option) + 1]
if "stdio" in sys.argv:
    real(sys.argv[1:])
"""

# A monitor of its own at the path given; answer(command) is what follows "id" in the answer.
MONITOR = """
import json, signal, socket
def serve(answer, greeting={"QMP": {"version": {"qemu": {"major": 7}}, "capabilities": []}}):
    path = next(a for a in sys.argv if a.startswith("socket,id=monitor0,")).split("path=")[1].split(",")[0]
    server = socket.socket(socket.AF_UNIX)
    server.bind(path)
    server.listen()
    while True:
        peer = server.accept()[0]
        peer.sendall(json.dumps(greeting).encode() + b"\\r\\n")
        for line in peer.makefile("rb"):
            asked = json.loads(line)
            peer.sendall(json.dumps({"id": asked.get("id"), **answer(asked["execute"])}).encode() + b"\\r\\n")
def honest(command):
    return {"return": {"query-uuid": {"UUID": after("-uuid")}, "query-status": {"status": "prelaunch"}}.get(command, {})}
"""


def fake(directory, body, name="qemu"):
    path = os.path.join(str(directory), name)
    with open(path, "w", encoding="utf-8") as file:
        file.write(FAKE + body)
    os.chmod(path, 0o755)
    return path


@pytest.fixture
def with_qemu(daemons, tmp_path):
    """A daemon whose QEMU is a script."""
    return lambda body: daemons(config=f"qemu = {fake(tmp_path, body)}\n")


def start_fails(daemon, status, code, **spec):
    """Creates the VM web and starts it in vain; the answer and the VM afterwards."""
    api = daemon.client()
    make(api, **(spec or direct()))
    before = vm_files(daemon)
    answer = do(api, "start", expect=status)
    assert answer.code == code, answer
    vm = get_vm(api)
    assert vm["operation"] is None and vm["runtime"]["pid"] is None
    # No process and no socket; of files at most the two logs are new.
    assert daemon.leftovers() == []
    assert {os.path.basename(path).split(".log")[0] for path in set(vm_files(daemon)) - set(before)} <= {"console", "vmm"}
    return answer, vm


# ---- qemu::spawn_failed ----

def test_qemu_that_exits_at_once(with_qemu):
    daemon = with_qemu('print("first words\\nqemu: the dog ate the firmware", file=sys.stderr)\nsys.exit(1)\n')
    answer, vm = start_fails(daemon, 500, "qemu::spawn_failed")
    assert "exited with status 1" in answer.json["detail"]
    assert answer.json["causes"] == ["first words", "qemu: the dog ate the firmware"]
    failure = vm["failure"]
    assert vm["state"] == "failed" and failure["reason"] == "spawn" and failure["exit_status"] == 1
    assert failure["code"] == "vm_manager::qemu::spawn_failed" and failure["signal"] is None
    assert "the dog ate the firmware" in failure["stderr_tail"]
    assert "the dog ate" in guest.log(daemon.client(), which="vmm").text


def test_qemu_that_is_killed_while_it_starts(with_qemu):
    daemon = with_qemu("import signal\nos.kill(os.getpid(), signal.SIGKILL)\n")
    answer, vm = start_fails(daemon, 500, "qemu::spawn_failed")
    assert "SIGKILL" in answer.json["detail"]
    assert vm["failure"]["signal"] == "SIGKILL" and vm["failure"]["exit_status"] is None


def test_qemu_that_talks_without_end_is_cut(with_qemu):
    """Its last words are kept, of the rest no more than the log may have."""
    daemon = with_qemu('sys.stderr.write("noise " * 100 + "\\n")\nfor _ in range(20000):\n'
                       '    sys.stderr.write("x" * 99 + "\\n")\nsys.stderr.write("the last word\\n")\nsys.exit(3)\n')
    answer, vm = start_fails(daemon, 500, "qemu::spawn_failed")
    assert answer.json["causes"][-1] == "the last word" and len(answer.body) < 8192
    assert vm["failure"]["stderr_tail"].rstrip().endswith("the last word")
    assert len(vm["failure"]["stderr_tail"]) < 16384


def test_qemu_that_vanishes_after_the_probe(daemons, tmp_path):
    path = fake(tmp_path, "")
    daemon = daemons(config=f"qemu = {path}\n")
    os.unlink(path)
    answer, vm = start_fails(daemon, 500, "qemu::spawn_failed")
    assert any(os.strerror(errno.ENOENT) in cause for cause in answer.json["causes"]), answer
    assert vm["state"] in ("prepared", "failed")


def test_create_with_start_leaves_nothing_when_qemu_does_not_start(with_qemu):
    daemon = with_qemu('sys.exit("no")\n')
    api = daemon.client()
    answer = api.post("/v1/vms", create_body("web", "qemu", start=True, **from_disk()), prefer_wait=guest.PATIENCE)
    assert (answer.status, answer.code) == (500, "qemu::spawn_failed"), answer
    assert api.get("/v1/vms/web").status == 404
    guest.assert_nothing_left(daemon)


def test_vm_whose_qemu_was_repaired_starts(daemons, tmp_path):
    path = fake(tmp_path, 'sys.exit("broken")\n')
    daemon = daemons(config=f"qemu = {path}\n")
    start_fails(daemon, 500, "qemu::spawn_failed")
    fake(tmp_path, "real(sys.argv[1:])\n")
    do(daemon.client(), "start")
    vm = get_vm(daemon.client())
    assert vm["state"] == "running" and vm["failure"] is None


# ---- qemu::qmp_connect_failed ----

def test_qemu_that_serves_no_monitor(with_qemu):
    daemon = with_qemu("import time\ntime.sleep(600)\n")
    answer, vm = start_fails(daemon, 502, "qemu::qmp_connect_failed")
    assert answer.json["retryable"] is True
    assert vm["state"] == "failed" and vm["failure"]["code"] == "vm_manager::qemu::qmp_connect_failed"


@pytest.mark.parametrize("what", ["greeting", "uuid", "capabilities"])
def test_monitor_that_is_not_this_vms(with_qemu, what):
    """What greets there is no QEMU, another VM's, or does not take commands."""
    daemon = with_qemu(MONITOR + {
        "greeting": 'serve(honest, greeting="hello")\n',
        "uuid": 'serve(lambda c: {"return": {"UUID": "6ba7b810-9dad-11d1-80b4-00c04fd430c8"}})\n',
        "capabilities": 'serve(lambda c: {"error": {"class": "GenericError", "desc": "not today"}})\n',
    }[what])
    answer, vm = start_fails(daemon, 502, "qemu::qmp_connect_failed")
    assert vm["state"] == "failed"
    if what == "capabilities":
        assert any("not today" in cause for cause in answer.json["causes"]), answer


# ---- qemu::qmp_command_failed ----

def test_monitor_that_refuses_a_command(with_qemu):
    daemon = with_qemu(MONITOR + """
serve(lambda c: {"error": {"class": "GenericError", "desc": "the moon is wrong"}} if c == "cont" else honest(c))
""")
    answer, vm = start_fails(daemon, 502, "qemu::qmp_command_failed")
    assert any("the moon is wrong" in cause for cause in answer.json["causes"]), answer
    assert vm["state"] == "failed" and vm["failure"]["code"] == "vm_manager::qemu::qmp_command_failed"


def test_qemu_that_does_not_run_when_told_to(with_qemu):
    """A real one, that waits for a migration which never comes."""
    daemon = with_qemu('real([*sys.argv[1:], "-incoming", "defer"])\n')
    answer, vm = start_fails(daemon, 502, "qemu::qmp_command_failed")
    assert "inmigrate" in answer.json["detail"], answer
    assert vm["state"] == "failed"


# ---- vm::unresponsive ----

def test_reset_of_a_hung_qemu_is_unresponsive(vmmd, api):
    make(api, start=True, **deaf())
    pid = get_vm(api)["runtime"]["pid"]
    os.kill(pid, signal.SIGSTOP)
    try:
        assert do(api, "reset", expect=504).code == "vm::unresponsive"
        done = vmmd.vmctl("suspend", "web")
        assert done.returncode == 6 and "vm::unresponsive" in done.stderr, done
        destroy(api)
    finally:
        resume_stopped(pid)
    assert not process_alive(pid)


# ---- backend::not_available, host::insufficient_memory ----

def refused(daemon, status, code, **spec):
    """A create that is refused; without effect."""
    api = daemon.client()
    answer = api.post("/v1/vms", create_body("web", "qemu", **spec), prefer_wait=guest.PATIENCE)
    assert (answer.status, answer.code) == (status, code), answer
    assert api.get("/v1/vms/web").status == 404
    assert vm_files(daemon) == []
    return answer


def test_kvm_where_there_is_none(daemons, tmp_path):
    path = fake(tmp_path, "real(sys.argv[1:])\n")
    with open(path, encoding="utf-8") as file:
        text = file.read()
    with open(path, "w", encoding="utf-8") as file:
        file.write(text.replace("import os, sys\n", 'import os, sys\nif "kvm" in sys.argv:\n    sys.exit("KVM is on holiday")\n'))
    daemon = daemons(config=f"qemu = {path}\n")
    answer = refused(daemon, 501, "backend::not_available", **direct(accel="kvm"))
    accelerators = {a["name"]: a for a in daemon.client().get("/v1/host").json["accelerators"]}
    assert accelerators["kvm"]["available"] is False and accelerators["kvm"]["reason"] in answer.json["detail"]
    assert accelerators["tcg"]["available"] is True
    make(daemon.client(), start=True, **direct())
    assert get_vm(daemon.client())["runtime"]["accel"] == "tcg"


def test_no_qemu_at_all(daemons):
    daemon = daemons(config="qemu = /nowhere/qemu-system-x86_64\n")
    assert "not installed" in refused(daemon, 501, "backend::not_available", **direct()).json["detail"]
    host = daemon.client().get("/v1/host").json
    assert {b["name"]: b["available"] for b in host["backends"]} == {"qemu": False, "noop": True}
    assert host["qemu"]["path"] is None


def test_qemu_that_does_not_even_pass_the_probe(daemons, tmp_path):
    path = tmp_path / "qemu"
    path.write_text("#!/bin/sh\necho 'the library is missing' >&2\nexit 127\n")
    path.chmod(0o755)
    daemon = daemons(config=f"qemu = {path}\n")
    assert "the library is missing" in refused(daemon, 501, "backend::not_available", **direct()).json["detail"]


def test_image_without_qemu_img(daemons, tmp_path):
    os.symlink(QEMU, tmp_path / "qemu-system-x86_64")
    daemon = daemons(env={"PATH": str(tmp_path)})
    assert "qemu-img" in refused(daemon, 501, "backend::not_available", **from_disk()).json["detail"]
    make(daemon.client(), **direct())  # which needs none


@pytest.mark.parametrize("more", [{"network": {"type": "vnic", "name": "x"}}, {"vsock": True}])
def test_what_this_backend_does_not_have(vmmd, more):
    refused(vmmd, 501, "backend::not_available", **{**direct(), **more})


@pytest.mark.parametrize("more", [{"display": "vga"}, {"uefi": True}])
def test_what_microvm_does_not_have(vmmd, more):
    (field,) = more
    answer = refused(vmmd, 422, "api::invalid_field", **direct("microvm", **more))
    assert answer.context["pointer"] == f"/spec/{field}"


def test_more_memory_than_the_host_has(vmmd, api):
    with open("/proc/meminfo", encoding="utf-8") as file:
        host_mb = int(file.readline().split()[1]) // 1024
    answer = refused(vmmd, 507, "host::insufficient_memory", **{**direct(), "memory_mb": host_mb + 1024})
    assert answer.json["retryable"] is True
    make(api, **direct())
    answer = api.patch("/v1/vms/web", {"spec": {"memory_mb": host_mb + 1024}})
    assert (answer.status, answer.code) == (507, "host::insufficient_memory"), answer
    assert get_vm(api)["spec"]["memory_mb"] == 128


# ---- image::overlay_creation_failed, io ----

def test_qemu_img_that_fails(daemons, tmp_path):
    tool = tmp_path / "qemu-img"
    tool.write_text("#!/bin/sh\necho 'qemu-img: the cat sat on it' >&2\nexit 1\n")
    tool.chmod(0o755)
    daemon = daemons(env={"PATH": f"{tmp_path}:{os.environ['PATH']}"})
    answer = refused(daemon, 500, "image::overlay_creation_failed", **from_disk())
    assert answer.json["causes"] == ["qemu-img: the cat sat on it"]


def test_disk_that_cannot_be_grown(vmmd, api):
    vm = make(api, **direct(image=TINY, disk_gb=1))
    with open(vm["runtime"]["overlay_path"], "r+b") as file:
        file.seek(20)  # cluster_bits
        file.write((63).to_bytes(4, "big"))
    assert api.patch("/v1/vms/web", {"spec": {"disk_gb": 2}}).status == 200
    answer = do(api, "start", expect=500)
    assert answer.code == "image::overlay_creation_failed" and "luster size" in " ".join(answer.json["causes"]), answer
    assert vmmd.leftovers() == [] and get_vm(api)["runtime"]["pid"] is None


def test_disk_that_is_not_one_any_more(vmmd, api):
    vm = make(api, **direct(image=TINY))
    with open(vm["runtime"]["overlay_path"], "r+b") as file:
        file.write(b"junk" * 16)
    assert do(api, "start", expect=500).code == "io"
    os.unlink(vm["runtime"]["overlay_path"])
    answer = do(api, "start", expect=500)
    assert answer.code == "io" and any(os.strerror(errno.ENOENT) in cause for cause in answer.json["causes"]), answer
    assert vmmd.leftovers() == []


def test_directory_that_cannot_be_made(vmmd, api):
    make(api, "first", **direct())
    vms = os.path.join(vmmd.data_dir, "vms")
    os.rename(vms, vms + ".away")
    try:
        with open(vms, "w", encoding="utf-8"):
            pass
        answer = api.post("/v1/vms", create_body("web", "qemu", **direct()), prefer_wait=guest.PATIENCE)
        assert (answer.status, answer.code) == (500, "io"), answer
        assert any(os.strerror(errno.ENOTDIR) in cause for cause in answer.json["causes"]), answer
    finally:
        os.unlink(vms)
        os.rename(vms + ".away", vms)
    assert api.get("/v1/vms/web").status == 404
    make(api, **direct())


# ---- cloudinit::iso_failed ----

def test_seed_that_cannot_be_written(daemons, tmp_path):
    gone = tmp_path / "gone"
    daemon = daemons(env={"TMPDIR": str(gone)})
    answer = refused(daemon, 500, "cloudinit::iso_failed", **direct(cloud_init={"hostname": "web"}))
    assert answer.json["causes"], answer
    gone.mkdir()
    make(daemon.client(), **direct(cloud_init={"hostname": "web"}))


# ---- host::disk_full ----

@pytest.fixture
def small():
    """What VMs own on disk lies on a file system of its own, of 8 MiB: the step meets its end, not the look before it."""
    with small_daemon("8m", below="vms") as (daemon, disk):
        yield daemon, disk.leave
        disk.make_room()
        guest.tell(daemon)
        guest.destroy_all(daemon)


@pytest.mark.parametrize("free, spec", [
    (0, direct()),
    (160, direct(cloud_init={"user_data": "#cloud-config\n" + "# x\n" * 30000})),
    (160, from_disk()),
], ids=["directory", "seed", "overlay"])
def test_create_on_a_full_disk(small, free, spec):
    daemon, leave = small
    make(daemon.client(), "other", **direct())
    before = vm_files(daemon)
    leave(free)
    answer = daemon.client().post("/v1/vms", create_body("web", "qemu", **spec), prefer_wait=guest.PATIENCE)
    assert (answer.status, answer.code) == (507, "host::disk_full"), answer
    assert answer.json["retryable"] is True
    assert daemon.client().get("/v1/vms/web").status == 404
    assert vm_files(daemon) == before and daemon.leftovers() == []
    leave(4096)
    make(daemon.client(), **spec)
