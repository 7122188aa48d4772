"""What no VM owns, and VMs that the database does not know: found, told, adopted, removed; and a disk is never opened twice."""
import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import uuid

import pytest

from e2e import guest
from e2e.guest import (KERNEL, PATIENCE, TINY, assert_nothing_left, booted, deaf, destroy, direct, do, in_guest, make,
                       process_alive, vm_files, wait_ready)
from e2e.lan import entered, tap, taps
from lib.conform import record_code
from lib.vms import create_body, eventually, get_vm


def leaks(api, kind=None, **want):
    """The leftovers of now: all, or of a kind, with these members."""
    items = api.get("/v1/host/leaks").json["items"]
    return [leak for leak in items if kind in (None, leak["kind"]) and all(leak[key] == value for key, value in want.items())]


def reap(api, **body):
    """Result by what it was for."""
    answer = api.post("/v1/host/leaks/reap", body, timeout=60)
    assert answer.status == 200, answer
    return {item["what"]: item["result"] for item in answer.json["items"]}


def adopt(api, *ids):
    answer = api.post("/v1/host/adopt", {"ids": list(ids)}, timeout=60)
    assert answer.status == 200, answer
    return answer.json["items"]


def code_of(item):
    record_code(item["error"]["code"])
    return item["error"]["code"].replace("vm_manager::", "")


def lose_database(vmmd):
    """What a disk's death or a hasty hand does."""
    for name in os.listdir(vmmd.data_dir):
        if name.startswith("vmmd.db") or name == "vmmd.reserve":
            os.unlink(os.path.join(vmmd.data_dir, name))


def save_database(vmmd, where):
    """Of a stopped vmmd."""
    os.makedirs(where)
    for name in os.listdir(vmmd.data_dir):
        if name.startswith("vmmd.db"):
            shutil.copy2(os.path.join(vmmd.data_dir, name), where)


def restore_database(vmmd, where):
    lose_database(vmmd)
    for name in os.listdir(where):
        shutil.copy2(os.path.join(where, name), vmmd.data_dir)


def work_dir(vmmd, vm):
    return os.path.join(vmmd.data_dir, "vms", vm["id"])


def run_dir(vmmd, vm_id):
    return os.path.join(vmmd.runtime_dir, "vms", vm_id[24:])


# ---- the database is lost ----

def test_running_vms_come_back_when_the_database_is_lost(vmmd, api):
    """The same processes and guests, with names, labels, specs, ports and keys; what is done with them then leaves nothing."""
    before = booted(api, "web", **direct(image=TINY, network={"type": "user", "forwards": [{"host_port": 0, "guest_port": 80}]},
                                         cloud_init={"hostname": "web"}))
    make(api, "deaf", start=True, labels={"app": "shop", "tier": "1"}, **deaf(machine="microvm"))
    other = get_vm(api, "deaf")
    in_guest(api, "remembered=yes")
    access = api.get("/v1/vms/web/ssh").json
    keys = access["private_key_path"], access["private_key_path"] + ".pub", access["known_hosts"]
    assert all(os.path.dirname(path) == before["runtime"]["work_dir"] and os.path.exists(path) for path in keys)
    assert leaks(api) == []  # nor is any of that
    vmmd.kill9()
    lose_database(vmmd)
    vmmd.start()
    assert api.get("/v1/vms").json["items"] == []
    found = leaks(api, "process")
    assert {leak["owner"]["vm_name"]: leak["pid"] for leak in found} == {
        "web": before["runtime"]["pid"], "deaf": other["runtime"]["pid"]}
    assert all(leak["adoptable"] and "manifest" in leak["reason"] for leak in leaks(api))
    # Nothing of them is ever removed, however old.
    assert set(reap(api, older_than_s=0).values()) == {"kept"}

    done = vmmd.vmctl("adopt", "--all")
    assert done.returncode == 0 and sorted(done.stdout.splitlines()) == ["deaf adopted (running)", "web adopted (running)"], done
    assert leaks(api) == []
    vm = wait_ready(api)
    for what in ("id", "name", "labels", "created_at"):
        assert vm[what] == before[what], what
    assert vm["spec"] == before["spec"]
    for what in ("pid", "mac_addr", "ssh_host_port", "work_dir", "overlay_path", "seed_iso_path", "qmp_socket", "accel"):
        assert vm["runtime"][what] == before["runtime"][what], what
    assert api.get("/v1/vms/web/ssh").json == access
    answer = api.post("/v1/vms/web/exec", {"command": ["id", "-un"], "via": "ssh"})
    assert answer.status == 200 and answer.json["stdout"] == "vm\n", answer
    back = get_vm(api, "deaf")
    assert back["labels"] == {"app": "shop", "tier": "1"} and back["runtime"]["pid"] == other["runtime"]["pid"]
    assert in_guest(api, "echo =$remembered=") == "=yes="
    vmmd.kill9()  # durable, and found again as any other
    vmmd.start()
    assert get_vm(api)["runtime"]["pid"] == before["runtime"]["pid"]
    assert do(api, "stop", body={"timeout_s": PATIENCE}).json["method"] in ("acpi", "agent")
    do(api, "start")
    do(api, "kill")
    for name in ("web", "deaf"):
        destroy(api, name)
    assert_nothing_left(vmmd)
    assert leaks(api) == []


def test_ports_of_an_unknown_vm_are_given_to_nobody_else(vmmd, api):
    port = make(api, start=True, **deaf(network={"type": "user"}))["runtime"]["ssh_host_port"]
    vmmd.kill9()
    lose_database(vmmd)
    vmmd.start()
    body = create_body("other", "qemu", **deaf(network={"type": "user", "forwards": [{"host_port": port, "guest_port": 22}]}))
    assert api.post("/v1/vms", body).code == "network::port_in_use"
    adopt(api, leaks(api, "process")[0]["owner"]["vm_id"])
    answer = api.post("/v1/vms", body)
    assert answer.code == "network::port_in_use" and answer.context["holder"] == "web"


def test_stopped_vm_comes_back_by_its_manifest(vmmd, api):
    """With the labels and the size that it had last, and its disk."""
    vm = make(api, **direct(image=TINY))
    do(api, "start")
    wait_ready(api)
    do(api, "kill")
    api.patch("/v1/vms/web", {"labels": {"changed": "after"}, "spec": {"memory_mb": 192}})
    manifest = os.path.join(work_dir(vmmd, vm), "manifest.json")
    eventually(lambda: json.load(open(manifest, encoding="utf-8"))["vm"], lambda doc: doc["spec"]["memory_mb"] == 192)
    assert stat.S_IMODE(os.stat(manifest).st_mode) == 0o600
    vmmd.stop()
    lose_database(vmmd)
    vmmd.start()
    found = leaks(api)
    assert [(leak["kind"], leak["adoptable"], leak["owner"]["vm_name"]) for leak in found] == [("data_dir", True, "web")]
    assert found[0]["size_bytes"] > 0
    item = adopt(api, vm["id"])[0]
    assert item["adopted"] and item["error"] is None and item["vm"]["state"] == "stopped"
    back = get_vm(api)
    assert back["labels"] == {"changed": "after"} and back["spec"]["memory_mb"] == 192 and back["id"] == vm["id"]
    do(api, "start")
    wait_ready(api)


def test_adopted_without_need_is_no_error(vmmd, api):
    vm = make(api, start=True, **deaf())
    item = adopt(api, vm["id"])[0]
    assert (item["adopted"], item["error"], item["vm"]["id"]) == (False, None, vm["id"])
    assert get_vm(api)["runtime"]["pid"] == vm["runtime"]["pid"]


def test_name_that_is_taken_by_now_is_refused_for_that_vm_alone(vmmd, api):
    ids = {name: make(api, name, start=True, **deaf())["id"] for name in ("one", "two")}
    vmmd.kill9()
    lose_database(vmmd)
    vmmd.start()
    make(api, "one", **deaf())
    one, two = adopt(api, ids["one"], ids["two"])
    assert code_of(one) == "vm::already_exists" and not one["adopted"] and one["vm"] is None
    assert two["adopted"] and two["vm"]["state"] == "running"
    destroy(api, "one")
    assert adopt(api, ids["one"])[0]["adopted"]


def test_unknown_and_destroyed_ids_are_not_adopted(vmmd, api):
    vm = make(api, **deaf())
    destroy(api)
    nobody, nothing, destroyed = adopt(api, str(uuid.uuid4()), "web", vm["id"])
    assert code_of(nobody) == "vm::not_found" and code_of(nothing) == "vm::not_found"
    assert code_of(destroyed) == "lifecycle::destroyed"


def test_suspended_vm_is_adopted_suspended(vmmd, api):
    vm = make(api, start=True, **deaf())
    do(api, "suspend")
    vmmd.kill9()
    lose_database(vmmd)
    vmmd.start()
    assert adopt(api, vm["id"])[0]["vm"]["state"] == "suspended"
    do(api, "resume")


@pytest.mark.parametrize("damage", ["{", "link", "pipe", "other", "name", "huge", "mac"])
def test_manifest_that_is_not_as_vmmd_writes_it_is_not_believed(vmmd, api, damage, tmp_path):
    """Its VM is no more adoptable, and nothing else comes of it."""
    vm = make(api, **deaf())
    path = os.path.join(work_dir(vmmd, vm), "manifest.json")
    good = json.load(open(path, encoding="utf-8"))
    vmmd.stop()
    lose_database(vmmd)
    os.unlink(path)
    if damage == "link":
        (tmp_path / "manifest.json").write_text(json.dumps(good))
        os.symlink(tmp_path / "manifest.json", path)
    elif damage == "pipe":
        os.mkfifo(path)
    else:
        doc = good["vm"]
        doc.update({"other": {"id": str(uuid.uuid4())}, "name": {"name": "../../x"}}.get(damage, {}))
        if damage == "mac":
            doc["runtime"]["mac_addr"] = "52:54:00,x=y"
        with open(path, "w", encoding="utf-8") as file:
            file.write("{" if damage == "{" else json.dumps(good))
            if damage == "huge":
                file.write(" " * (5 << 20))
    vmmd.start()
    found = leaks(api)
    assert [(leak["kind"], leak["adoptable"]) for leak in found] == [("data_dir", False)]
    assert "manifest" in found[0]["reason"], found
    item = adopt(api, vm["id"])[0]
    assert code_of(item) == "vm::not_found" and api.get("/v1/vms").json["items"] == []
    assert set(reap(api, older_than_s=0).values()) == {"reaped"}


# ---- the database is old ----

def old_database(vmmd, api, tmp_path, **spec):
    """A VM that runs while its row says that it is at rest: (VM as it ran, its pid)."""
    make(api, **(spec or deaf(image=TINY)))
    vmmd.stop()
    save_database(vmmd, tmp_path / "db")
    vmmd.start()
    do(api, "start")
    vm = get_vm(api)
    vmmd.kill9()
    restore_database(vmmd, tmp_path / "db")
    vmmd.start()
    assert get_vm(api)["state"] == "prepared"
    return vm


def test_disk_in_use_is_not_opened_a_second_time(vmmd, api, tmp_path):
    """The start is refused, naming the process, which is not touched; adopted, it is the VM's again."""
    vm = old_database(vmmd, api, tmp_path)
    pid = vm["runtime"]["pid"]
    files = vm_files(vmmd)
    answer = do(api, "start", expect=409)
    assert answer.code == "vm::invalid_state" and answer.context["pid"] == pid
    assert str(pid) in answer.json["detail"] and "vmctl adopt" in answer.json["help"]
    assert get_vm(api)["state"] == "prepared" and process_alive(pid) and vm_files(vmmd) == files
    found = leaks(api, "process")
    assert [(leak["pid"], leak["adoptable"], leak["owner"]["vm_name"]) for leak in found] == [(pid, True, "web")]
    assert "kept" == reap(api, older_than_s=0)[f"pid {pid}"] and process_alive(pid)

    item = adopt(api, vm["id"])[0]
    assert item["adopted"] and item["vm"]["state"] == "running" and item["vm"]["runtime"]["pid"] == pid
    assert leaks(api) == []
    do(api, "kill")
    assert not process_alive(pid)
    do(api, "start")


def test_destroy_touches_no_disk_in_use(vmmd, api, tmp_path):
    vm = old_database(vmmd, api, tmp_path)
    pid = vm["runtime"]["pid"]
    files = vm_files(vmmd)
    answer = api.delete("/v1/vms/web", prefer_wait=PATIENCE)
    assert answer.code == "vm::invalid_state" and answer.context["pid"] == pid, answer
    assert process_alive(pid) and vm_files(vmmd) == files
    assert adopt(api, vm["id"])[0]["adopted"]
    destroy(api)
    assert not process_alive(pid)


def test_disk_in_use_is_found_also_without_the_lock_file(vmmd, api, tmp_path):
    """As when the QEMU is an older vmmd's."""
    vm = old_database(vmmd, api, tmp_path)
    os.unlink(os.path.join(work_dir(vmmd, vm), "lock"))
    assert do(api, "start", expect=409).context["pid"] == vm["runtime"]["pid"]
    assert adopt(api, vm["id"])[0]["vm"]["state"] == "running"


def test_lock_is_qemus_and_ends_with_it(vmmd, api):
    """vmmd itself holds none while the VM runs, nor after kill -9."""
    vm = make(api, start=True, **deaf())
    path = os.path.join(work_dir(vmmd, vm), "lock")

    def holders():
        inode = os.stat(path).st_ino
        found = set()
        for entry in filter(str.isdigit, os.listdir("/proc")):
            try:
                for fd in os.listdir(f"/proc/{entry}/fd"):
                    if os.stat(f"/proc/{entry}/fd/{fd}").st_ino == inode and os.readlink(f"/proc/{entry}/fd/{fd}") == path:
                        found.add(int(entry))
            except OSError:
                pass
        return found

    def held():
        return subprocess.run(["flock", "--nonblock", path, "true"], check=False).returncode != 0

    assert holders() == {vm["runtime"]["pid"]} and held()
    vmmd.kill9()
    assert holders() == {vm["runtime"]["pid"]} and held()
    os.kill(vm["runtime"]["pid"], signal.SIGKILL)
    eventually(held, lambda is_held: not is_held)  # its threads end one by one
    vmmd.start()
    do(api, "start")
    assert held()
    do(api, "kill")
    assert not held()


def test_start_that_fails_lets_the_lock_go(vmmd, api, tmp_path):
    kernel = tmp_path / "kernel"
    kernel.write_bytes(b"")
    spec = deaf()
    spec["boot"]["kernel"] = str(kernel)
    vm = make(api, **spec)
    assert do(api, "start", expect=500).code == "qemu::spawn_failed"
    assert subprocess.run(["flock", "--nonblock", os.path.join(work_dir(vmmd, vm), "lock"), "true"], check=False).returncode == 0
    shutil.copy(KERNEL, kernel)
    do(api, "start")


# ---- what nobody owns ----

def age(path, seconds):
    then = os.lstat(path).st_mtime - seconds
    os.utime(path, (then, then), follow_symlinks=False)


def plant(vmmd):
    """Leftovers of every kind on disk: path by kind."""
    vm_id = str(uuid.uuid4())
    planted = {
        "data_dir": os.path.join(vmmd.data_dir, "vms", vm_id),
        "runtime_dir": run_dir(vmmd, vm_id),
        "socket": os.path.join(vmmd.runtime_dir, "vms", "stray.sock"),
        "file": os.path.join(vmmd.data_dir, "half.part"),
    }
    os.makedirs(planted["data_dir"])
    os.makedirs(planted["runtime_dir"])
    with open(os.path.join(planted["data_dir"], "overlay.qcow2"), "wb") as file:
        file.write(b"x" * 100000)
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(planted["socket"])
    with open(planted["file"], "wb"):
        pass
    age(planted["file"], 3600)
    return planted


def test_planted_leftovers_are_told_kept_while_young_and_removed(vmmd, api):
    make(api, start=True, **deaf(image=TINY))
    with api.events() as stream:
        planted = plant(vmmd)
        found = {leak["kind"]: leak for leak in leaks(api)}
        assert {kind: leak["what"] for kind, leak in found.items()} == planted
        assert not any(leak["adoptable"] for leak in found.values())
        assert found["data_dir"]["size_bytes"] >= 100000 and found["data_dir"]["owner"]["vm_name"] is None
        assert found["runtime_dir"]["owner"] == found["data_dir"]["owner"] and found["socket"]["owner"] is None
        assert found["file"]["age_s"] >= 3600 and found["data_dir"]["age_s"] < 60
        told = stream.until(lambda event: event.data["data"].get("id") == found["data_dir"]["id"])
        assert told[-1].type == "host.leak_found"

        before = vm_files(vmmd)
        assert set(reap(api, dry_run=True, older_than_s=0).values()) == {"would_reap"}
        assert vm_files(vmmd) == before and os.path.exists(planted["file"])
        results = reap(api)
        assert results == {planted["data_dir"]: "too_young", planted["runtime_dir"]: "too_young", planted["socket"]: "too_young",
                           planted["file"]: "reaped"}
        assert [leak["id"] for leak in leaks(api, "data_dir")] == [found["data_dir"]["id"]]
        assert set(reap(api, older_than_s=0).values()) == {"reaped"}
        stream.until(lambda event: event.type == "host.leak_gone" and event.data["data"]["id"] == found["data_dir"]["id"])
    assert leaks(api) == [] and not any(os.path.lexists(path) for path in planted.values())
    assert get_vm(api)["state"] == "running"
    do(api, "kill")


def test_reaper_follows_no_link(vmmd, api, tmp_path):
    """A link below vmmd's directories is removed, what it points at is not; nor what a directory's links point at."""
    treasure = tmp_path / "treasure"
    treasure.mkdir()
    (treasure / "gold.part").write_text("gold")
    age(treasure / "gold.part", 3600)
    vms = os.path.join(vmmd.data_dir, "vms")
    vm = make(api, **deaf())
    os.symlink(treasure, os.path.join(vms, str(uuid.uuid4())))
    os.makedirs(os.path.join(vms, "dir"))
    os.symlink(treasure, os.path.join(vms, "dir", "link"))
    # Even where a VM's own directory was swapped for one.
    os.rename(work_dir(vmmd, vm), tmp_path / "aside")
    os.symlink(treasure, work_dir(vmmd, vm))
    assert set(reap(api, older_than_s=0).values()) == {"reaped"}
    assert (treasure / "gold.part").read_text() == "gold" and leaks(api) == []
    os.unlink(work_dir(vmmd, vm))
    os.rename(tmp_path / "aside", work_dir(vmmd, vm))


def test_leftover_directory_of_a_destroyed_vm_is_its_and_removed(vmmd, api):
    vm = make(api, **deaf())
    manifest = open(os.path.join(work_dir(vmmd, vm), "manifest.json"), "rb").read()
    destroy(api)
    os.makedirs(work_dir(vmmd, vm))
    with open(os.path.join(work_dir(vmmd, vm), "manifest.json"), "wb") as file:
        file.write(manifest)
    found = leaks(api)
    assert [(leak["kind"], leak["adoptable"], leak["owner"]["vm_name"]) for leak in found] == [("data_dir", False, "web")]
    assert "destroyed" in found[0]["reason"]
    assert code_of(adopt(api, vm["id"])[0]) == "lifecycle::destroyed"
    assert reap(api, older_than_s=0) == {work_dir(vmmd, vm): "reaped"}
    assert_nothing_left(vmmd)


def test_runtime_directory_of_a_vm_at_rest_is_a_leftover(vmmd, api):
    vm = make(api, **deaf())
    os.makedirs(run_dir(vmmd, vm["id"]))
    found = eventually(lambda: leaks(api), bool)  # once the create has let go of the VM
    assert [(leak["kind"], leak["adoptable"], leak["owner"]) for leak in found] == [
        ("runtime_dir", False, {"vm_id": vm["id"], "vm_name": "web"})]
    assert reap(api, older_than_s=0) == {run_dir(vmmd, vm["id"]): "reaped"}
    assert get_vm(api)["state"] == "prepared"
    do(api, "start")


@pytest.fixture
def stray():
    """Starts QEMUs of nobody, which stay paused; ended at the end."""
    made = []

    def start(vm_id, directory, pidfile="qemu.pid"):
        path = os.path.join(directory, pidfile)
        made.append(subprocess.Popen(["qemu-system-x86_64", "-machine", "none", "-nodefaults", "-display", "none", "-S", "-uuid", vm_id,
                                      "-pidfile", path], stdin=subprocess.DEVNULL))
        eventually(lambda: os.path.exists(path), bool)
        return made[-1]

    yield start
    for process in made:
        process.kill()
        process.wait()


def test_qemu_without_a_manifest_is_told_and_ended(vmmd, api, stray, tmp_path):
    """One of our runtime directory is ours to end; one of another directory, and another program, are not."""
    vm_id = str(uuid.uuid4())
    os.makedirs(run_dir(vmmd, vm_id))
    ours, foreign = stray(vm_id, run_dir(vmmd, vm_id)), stray(vm_id, str(tmp_path))
    imitator = subprocess.Popen(["sleep", "600"], executable=shutil.which("sleep"))
    try:
        found = leaks(api, "process")
        assert [(leak["pid"], leak["adoptable"], leak["owner"]["vm_id"]) for leak in found] == [(ours.pid, False, vm_id)]
        assert found[0]["age_s"] < 60
        assert code_of(adopt(api, vm_id)[0]) == "vm::not_found"
        # Its directory is not taken from it while it lives.
        assert set(reap(api).values()) == {"too_young"} and ours.poll() is None
        age(run_dir(vmmd, vm_id), 3600)
        assert reap(api) == {f"pid {ours.pid}": "too_young", run_dir(vmmd, vm_id): "kept"}
        assert set(reap(api, older_than_s=0).values()) == {"reaped"}
        assert ours.wait(10) == -signal.SIGKILL and leaks(api) == []
        assert foreign.poll() is None and imitator.poll() is None and not os.path.exists(run_dir(vmmd, vm_id))
    finally:
        imitator.kill()
        imitator.wait()


def test_second_qemu_of_a_running_vm_is_ended_and_not_the_first(vmmd, api, stray):
    vm = make(api, start=True, **deaf())
    second = stray(vm["id"], run_dir(vmmd, vm["id"]), "second.pid")
    found = eventually(lambda: leaks(api), bool)
    assert [(leak["kind"], leak["pid"], leak["adoptable"], leak["owner"]["vm_name"]) for leak in found] == [
        ("process", second.pid, False, "web")]
    assert reap(api, older_than_s=0) == {f"pid {second.pid}": "reaped"}
    assert second.wait(10) == -signal.SIGKILL and process_alive(vm["runtime"]["pid"])
    do(api, "kill")


def test_vm_with_something_under_way_is_left_alone(vmmd, api, stray):
    """What a start, a stop or a destroy is at work on is no leftover, however often one looks, and however old it must be."""
    make(api, **direct(image=TINY, network={"type": "user"}))
    for _ in range(5):
        operation = api.post("/v1/vms/web/start").json["id"]
        while api.get(f"/v1/operations/{operation}").json["state"] in ("pending", "running"):
            assert reap(api, older_than_s=0) == {}
        assert get_vm(api)["state"] == "running"
        api.post("/v1/vms/web/kill")
        while get_vm(api)["state"] == "running":
            assert reap(api, older_than_s=0) == {}
    destroyed = api.delete("/v1/vms/web").json["id"]
    while api.get(f"/v1/operations/{destroyed}").json["state"] in ("pending", "running"):
        assert reap(api, older_than_s=0) == {}
    assert "leftover found" not in vmmd.log()


def test_vm_of_an_older_vmmd_gets_its_manifest(vmmd, api):
    vm = make(api, **deaf())
    path = os.path.join(work_dir(vmmd, vm), "manifest.json")
    os.unlink(path)
    vmmd.restart()
    eventually(lambda: os.path.exists(path), bool)
    assert leaks(api) == []


def test_tap_of_nobody_is_told_and_removed(lan):
    daemon, namespace = lan
    api = daemon.client()
    make(api, start=True, **deaf(network=tap()))
    own = set(taps(namespace))
    subprocess.run(["ip", "-n", namespace, "tuntap", "add", "vm0011aabb", "mode", "tap"], check=True)
    subprocess.run(["ip", "-n", namespace, "tuntap", "add", "mytap0", "mode", "tap"], check=True)
    try:
        assert [(leak["what"], leak["owner"], leak["adoptable"]) for leak in leaks(api, "tap")] == [("vm0011aabb", None, False)]
        assert reap(api) == {"vm0011aabb": "too_young"}
        assert reap(api, dry_run=True, older_than_s=0) == {"vm0011aabb": "would_reap"}
        assert set(taps(namespace)) == own | {"vm0011aabb", "mytap0"}
        assert reap(api, older_than_s=0) == {"vm0011aabb": "reaped"}
        assert set(taps(namespace)) == own | {"mytap0"} and leaks(api) == []
    finally:
        subprocess.run(["ip", "-n", namespace, "link", "del", "mytap0"], check=True)
    assert get_vm(api)["state"] == "running"


def test_tap_of_a_lost_vm_comes_back_with_it(lan):
    daemon, namespace = lan
    api = daemon.client()
    vm = make(api, start=True, **deaf(network=tap()))
    own = set(taps(namespace))
    daemon.kill9()
    lose_database(daemon)
    with entered(namespace):
        daemon.start()
    assert set(reap(api, older_than_s=0).values()) == {"kept"} and set(taps(namespace)) == own
    assert adopt(api, vm["id"])[0]["vm"]["state"] == "running"
    destroy(api)
    assert taps(namespace) == {}


# ---- by itself, and on the command line ----

def test_reconciler_looks_by_itself(daemons):
    daemon = daemons(config="reconcile_interval_s = 1\n")
    api = daemon.client()
    make(api, **deaf())
    with api.events() as stream:
        planted = plant(daemon)
        events = stream.until(lambda event: event.type == "host.leak_found" and event.data["data"]["kind"] == "socket", 30)
        assert "vm.created" not in [event.type for event in events]
        metrics = api.get("/metrics").text
        assert 'vmmd_leaks{kind="socket"} 1\n' in metrics and 'vmmd_leaks{kind="process"} 0\n' in metrics
        os.unlink(planted["socket"])
        stream.until(lambda event: event.type == "host.leak_gone" and event.data["data"]["kind"] == "socket", 30)
    assert daemon.log().count(f"what={planted['socket']}") == 2
    reap(api, older_than_s=0)


def test_doctor_on_a_host_with_leftovers(vmmd, api):
    assert vmmd.vmctl("doctor").returncode == 0
    planted = plant(vmmd)
    run = vmmd.vmctl("doctor")
    assert run.returncode == 1 and all(path in run.stdout for path in planted.values()), run
    assert run.stdout.startswith("KIND")
    run = vmmd.vmctl("doctor", "--dry-run", "--older-than", "0")
    assert run.returncode == 1 and run.stdout.count("would be removed") == 4, run
    run = vmmd.vmctl("doctor", "--reap")
    assert run.returncode == 1 and run.stdout.count("too young") == 3 and run.stdout.count("removed:") == 1, run
    run = vmmd.vmctl("doctor", "--reap", "--older-than", "0")
    assert run.returncode == 0 and run.stdout.count("removed:") == 3, run
    assert vmmd.vmctl("doctor").returncode == 0 and guest.vm_files(vmmd) == []


def test_adopt_by_name_and_what_there_is_to_adopt(vmmd, api):
    vm = make(api, start=True, **deaf())
    assert "nothing to adopt" in vmmd.vmctl("adopt").stderr
    vmmd.kill9()
    lose_database(vmmd)
    vmmd.start()
    run = vmmd.vmctl("adopt")
    assert run.returncode == 0 and "web" in run.stdout and "--all" in run.stderr
    assert vmmd.vmctl("adopt", "-o", "name").stdout == "web\n"
    run = vmmd.vmctl("adopt", "nobody")
    assert run.returncode == 3 and "vm_manager::vm::not_found" in run.stderr
    run = vmmd.vmctl("adopt", "web")
    assert run.returncode == 0 and run.stdout == "web adopted (running)\n", run
    run = vmmd.vmctl("adopt", vm["id"])
    assert run.returncode == 0 and "needs no adoption" in run.stdout, run
