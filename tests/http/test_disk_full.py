"""A full disk: what needs room is refused before it begins, what frees room goes through, and nothing is forgotten."""
import os
import signal
import subprocess
import threading
import time

import pytest

from lib.policy import ends, starts
from lib.smalldisk import small_daemon
from lib.vms import create_body, destroy, do, eventually, get_operation, get_vm, make_vm, set_labels

MIB = 1 << 20


@pytest.fixture
def small():
    with small_daemon("16m") as made:
        yield made


def full(answer):
    assert (answer.status, answer.code) == (507, "host::disk_full"), answer
    assert answer.json["retryable"] is True
    return answer


def exhausted(api, disk):
    """Fills the disk until the database itself takes nothing more but what frees room."""
    disk.fill()
    for number in range(3000):
        answer = api.patch("/v1/vms/pad", {"labels": {f"l{i}": f"{number}" * 30 for i in range(60)}})
        if answer.status != 200:
            full(answer)
            return
        disk.fill()
    raise AssertionError("the database takes everything")


# ---- before it begins ----

def test_refusal_tells_what_is_free_needed_and_kept(small):
    daemon, disk = small
    disk.leave(300)
    answer = full(daemon.client().post("/v1/vms", create_body("web")))
    context = answer.context
    assert context["path"] == daemon.data_dir and context["path"] in answer.json["detail"]
    assert context["free_bytes"] == 300 * 1024 and "300 KiB free" in answer.json["detail"]
    assert context["reserved_bytes"] == 16 * MIB // 50, "2 % of a small file system"
    assert context["needed_bytes"] > 0
    assert daemon.data_dir in answer.json["help"]


def test_reserve_is_of_the_config():
    """64 MiB, or what disk_reserve_mb says, but never more than 2 % of the file system."""
    with small_daemon("100m", config="disk_reserve_mb = 1\n") as (daemon, disk):
        disk.leave(1000)
        assert full(daemon.client().post("/v1/vms", create_body("web"))).context["reserved_bytes"] == MIB
        disk.leave(1500)
        make_vm(daemon.client(), "web")
    with small_daemon("100m", config="disk_reserve_mb = 0\n") as (daemon, disk):
        disk.leave(200)
        make_vm(daemon.client(), "web")


def test_refused_create_leaves_nothing(small):
    daemon, disk = small
    api = daemon.client()
    events = api.get("/v1/vms").json["as_of_event"]
    disk.leave(200)
    forward = {"type": "user", "forwards": [{"guest_port": 80, "host_port": 39100}]}
    full(api.post("/v1/vms", create_body("web", network=forward), headers={"Idempotency-Key": "one"}))
    assert api.get("/v1/vms/web").status == 404
    assert api.get("/v1/operations").json["items"] == []
    assert api.get("/v1/vms").json["as_of_event"] == events
    disk.make_room()
    # The name, the port and the key are free.
    answer = api.post("/v1/vms", create_body("web", network=forward), headers={"Idempotency-Key": "one"}, prefer_wait=60)
    assert answer.status == 200 and "Idempotency-Replayed" not in answer.headers


def test_start_and_restart_are_refused_and_change_nothing(small):
    daemon, disk = small
    api = daemon.client()
    make_vm(api, "rest")
    make_vm(api, "runs", start=True)
    before = get_vm(api, "rest"), get_vm(api, "runs")
    disk.leave(200)
    full(api.post("/v1/vms/rest/start"))
    full(api.post("/v1/vms/runs/restart"))
    assert (get_vm(api, "rest"), get_vm(api, "runs")) == before
    disk.make_room()
    do(api, "start", "rest")
    do(api, "restart", "runs")


def test_files_may_run_out_as_well():
    with small_daemon("16m", options="mode=700,nr_inodes=20") as (daemon, _):
        answer = full(daemon.client().post("/v1/vms", create_body("web")))
        assert "more files" in answer.json["detail"]


def test_room_that_was_made_is_seen_at_once(small):
    """Refused for what is, never for what was."""
    daemon, disk = small
    api = daemon.client()
    for number in range(10):
        disk.leave(200)
        full(api.post("/v1/vms", create_body(f"v{number}")))
        disk.make_room()
        make_vm(api, f"v{number}")


def test_kill_and_destroy_of_one_that_is_being_asked_for_room(small):
    """What frees room does not queue behind what waits for it."""
    daemon, disk = small
    api = daemon.client()
    make_vm(api, "web")
    disk.leave(200)
    for _ in range(20):
        answers = []
        threads = [threading.Thread(target=lambda: answers.append(api.post("/v1/vms/web/start"))),
                   threading.Thread(target=lambda: answers.append(api.post("/v1/vms/web/kill", prefer_wait=60)))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(answer.status for answer in answers) in ([200, 507], [200, 409], [409, 507]), answers
    destroy(api, "web")


# ---- the store ----

def test_what_frees_room_is_taken_however_often(small):
    """More destroys than a reserve of any size would pay for: the oldest events give way."""
    daemon, disk = small
    api = daemon.client()
    make_vm(api, "pad")
    for number in range(300):
        assert api.post("/v1/vms", create_body(f"v{number}", start=number % 3 == 0)).status == 202
    for state in ("pending", "running"):
        eventually(lambda state=state: api.get(f"/v1/operations?state={state}&limit=1").json["items"], lambda left: left == [])
    exhausted(api, disk)
    for number in range(300):
        if number % 3 == 0:
            assert do(api, "kill" if number % 2 else "stop", f"v{number}").json["state"] == "succeeded"
        destroy(api, f"v{number}")
        disk.fill()
    assert [vm["name"] for vm in api.get("/v1/vms").json["items"]] == ["pad"]
    assert "the oldest events were forgotten" in daemon.log()
    answer = api.get("/v1/events?since=0")
    assert (answer.status, answer.code) == (410, "events::cursor_expired") and answer.context["oldest"] > 1
    disk.make_room()
    make_vm(api, "after", start=True)
    assert os.path.getsize(os.path.join(daemon.data_dir, "vmmd.reserve")) == MIB


def test_everything_else_is_refused_as_disk_full(small):
    daemon, disk = small
    api = daemon.client()
    make_vm(api, "pad")
    make_vm(api, "runs", start=True)
    make_vm(api, "waits", start=True)
    do(api, "suspend", "waits")
    make_vm(api, "rests")
    exhausted(api, disk)
    destroy(api, "rests")  # from now on the reserve is in use
    was = {vm["name"]: vm for vm in api.get("/v1/vms").json["items"]}
    full(api.post("/v1/vms", create_body("new"), headers={"Idempotency-Key": "new"}))
    for verb in ("suspend", "reset", "restart"):
        full(api.post(f"/v1/vms/runs/{verb}"))
    full(api.post("/v1/vms/waits/resume"))
    full(api.patch("/v1/vms/runs", {"labels": {"a": "b"}}))
    assert {vm["name"]: vm for vm in api.get("/v1/vms").json["items"]} == was
    disk.make_room()
    for verb in ("suspend", "resume", "reset", "restart"):
        do(api, verb, "runs")
    set_labels(api, "runs", {"a": "b"})
    answer = api.post("/v1/vms", create_body("new"), headers={"Idempotency-Key": "new"}, prefer_wait=60)
    assert answer.status == 200 and "Idempotency-Replayed" not in answer.headers


def test_keys_of_what_frees_room_are_kept(small):
    daemon, disk = small
    api = daemon.client()
    make_vm(api, "pad")
    make_vm(api, "web", start=True)
    exhausted(api, disk)
    first = api.post("/v1/vms/web/kill", headers={"Idempotency-Key": "k"}, prefer_wait=60)
    again = api.post("/v1/vms/web/kill", headers={"Idempotency-Key": "k"}, prefer_wait=60)
    assert first.status == again.status == 200 and first.json["id"] == again.json["id"]
    assert again.headers["Idempotency-Replayed"] == "true"
    daemon.kill9()
    daemon.start()
    again = api.post("/v1/vms/web/kill", headers={"Idempotency-Key": "k"}, prefer_wait=60)
    assert again.json["id"] == first.json["id"]
    assert get_operation(api, first.json["id"])["state"] == "succeeded"


@pytest.mark.parametrize("how", ["kill9", "stop"])
@pytest.mark.parametrize("spent", [False, True], ids=["reserve", "spent"])
def test_vmmd_starts_on_a_full_disk(small, how, spent):
    daemon, disk = small
    api = daemon.client()
    make_vm(api, "pad")
    for number in range(60):
        make_vm(api, f"v{number}", start=number % 2 == 0)
    if spent:
        exhausted(api, disk)
        destroy(api, "v0")
    disk.fill()
    getattr(daemon, how)()
    disk.fill()
    daemon.start()
    disk.fill()
    assert len(api.get("/v1/vms").json["items"]) == 60 + (not spent)
    full(api.post("/v1/vms", create_body("new")))
    for number in range(60):
        if number > 0 or not spent:
            destroy(api, f"v{number}")
        disk.fill()
        if number % 20 == 19:
            daemon.kill9()
            daemon.start()
            disk.fill()
    disk.make_room()
    make_vm(api, "new", start=True)
    assert os.path.getsize(os.path.join(daemon.data_dir, "vmmd.reserve")) == MIB
    with open(os.path.join(daemon.data_dir, "vmmd.lock"), encoding="ascii") as file:
        assert file.read() == f"{daemon.pid}\n"


def test_operation_cut_off_by_a_kill_is_settled_on_a_full_disk(small):
    daemon, disk = small
    api = daemon.client()
    make_vm(api, "pad")
    make_vm(api, "web", labels={"noop.delay_ms.prepare": "600000"})
    operation = api.post("/v1/vms/web/start").json["id"]
    exhausted(api, disk)
    daemon.kill9()
    disk.fill()
    daemon.start()
    ended = get_operation(api, operation)
    assert (ended["state"], ended["error"]["code"]) == ("failed", "vm_manager::operation::interrupted")
    vm = get_vm(api, "web")
    assert vm["state"] == "prepared" and vm["operation"] is None


# ---- what happens by itself ----

def test_unplanned_end_is_seen_and_written_when_there_is_room(small):
    daemon, disk = small
    api = daemon.client()
    make_vm(api, "pad")
    make_vm(api, "web", start=True, labels={"noop.exit": "killed:9", "noop.exit_after_ms": "6000"})
    exhausted(api, disk)
    vm = eventually(lambda: get_vm(api, "web"), lambda found: found["state"] == "failed")
    assert vm["failure"]["reason"] == "killed"
    daemon.kill9()
    disk.make_room()
    daemon.start()
    assert get_vm(api, "web")["state"] == "failed"


def test_restart_by_policy_waits_for_room(small):
    daemon, disk = small
    api = daemon.client()
    make_vm(api, "web", start=True, restart="always")
    disk.leave(200)
    ends(api, "killed:9")
    eventually(daemon.log, lambda log: "begun by policy" in log)
    assert starts(api) == 0, "nothing began"
    assert get_vm(api, "web")["state"] == "failed"
    disk.make_room()
    eventually(lambda: get_vm(api, "web")["state"], lambda state: state == "running")


# ---- a disk that fails ----

def test_database_that_cannot_be_written_refuses(vmmd):
    """EIO at fsync and write: refused, never acknowledged, and nothing of it is there after a restart."""
    if subprocess.run(["strace", "-V"], stdout=subprocess.DEVNULL, check=False).returncode != 0:
        pytest.skip("no strace here")
    api = vmmd.client()
    make_vm(api, "web", start=True)
    tracer = subprocess.Popen(["strace", "-f", "-qq", "-o", "/dev/null", "-e", "trace=pwrite64,fdatasync,fsync", "-e",
                               "inject=pwrite64,fdatasync,fsync:error=EIO", "-p", str(vmmd.pid)], stderr=subprocess.PIPE)
    try:
        answer = eventually(lambda: api.patch("/v1/vms/web", {"labels": {"n": str(time.monotonic())}}),
                            lambda a: a.status != 200)
        assert (answer.status, answer.code) == (500, "io"), answer
        for answer in (api.post("/v1/vms", create_body("new")), api.post("/v1/vms/web/suspend"), api.delete("/v1/vms/web")):
            assert (answer.status, answer.code) == (500, "io"), answer
        assert get_vm(api, "web")["state"] == "running" and api.get("/v1/vms/new").status == 404
    finally:
        tracer.send_signal(signal.SIGTERM)
        tracer.wait(60)
    vmmd.kill9()
    vmmd.start()
    assert get_vm(api, "web")["state"] == "running" and api.get("/v1/vms/new").status == 404
    do(api, "suspend", "web")
