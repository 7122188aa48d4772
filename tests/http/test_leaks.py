"""GET /v1/host/leaks, POST /v1/host/leaks/reap, POST /v1/host/adopt: the contract, without a QEMU. tests/e2e/test_reconcile.py has
the rest."""
import os
import sqlite3
import threading
import time
import uuid

import pytest

from lib.conform import record_code
from lib.vms import create_body, destroy, do, eventually, make_vm


def leaks(api):
    return api.get("/v1/host/leaks").json["items"]


def stray(daemon, name="stray"):
    path = os.path.join(daemon.data_dir, "vms", name)
    os.makedirs(path)
    return path


def test_nothing_is_left_behind_of_vms_that_run_nothing(vmmd, api):
    for name in ("a", "b", "c"):
        make_vm(api, name, start=True)
    do(api, "stop", "a")
    destroy(api, "b")
    answer = api.get("/v1/host/leaks")
    assert answer.json["items"] == [] and answer.json["grace_s"] == 60
    assert api.post("/v1/host/leaks/reap").json == {"dry_run": False, "items": [], "reaped": 0}
    assert "vmmd_leaks{kind=\"data_dir\"} 0\n" in api.get("/metrics").text


def test_answer_is_of_now(vmmd, api):
    for _ in range(5):
        path = stray(vmmd)
        assert [leak["what"] for leak in eventually(lambda: leaks(api), bool)] == [path]
        os.rmdir(path)
        eventually(lambda: leaks(api), lambda items: not items)


def test_leftover_keeps_its_id_and_age_over_a_restart(vmmd, api):
    stray(vmmd)
    before = leaks(api)[0]
    vmmd.restart()
    after = leaks(api)[0]
    assert after["id"] == before["id"] and after["since"] <= before["since"]


def test_grace_time_is_the_configs(daemons):
    daemon = daemons(config="reap_grace_s = 0\nreconcile_interval_s = 0\n")
    api = daemon.client()
    path = stray(daemon)
    assert api.get("/v1/host/leaks").json["grace_s"] == 0
    assert api.post("/v1/host/leaks/reap").json["reaped"] == 1 and not os.path.exists(path)


def test_dry_run_and_age(vmmd, api):
    path = stray(vmmd)
    for body, result in (({}, "too_young"), ({"dry_run": True}, "too_young"), ({"older_than_s": 3600}, "too_young"),
                         ({"dry_run": True, "older_than_s": 0}, "would_reap"), ({"older_than_s": None, "dry_run": None}, "too_young")):
        answer = api.post("/v1/host/leaks/reap", body)
        assert [item["result"] for item in answer.json["items"]] == [result], body
        assert answer.json["reaped"] == 0 and answer.json["dry_run"] == bool(body.get("dry_run")) and os.path.isdir(path)
    then = time.time() - 7200
    os.utime(path, (then, then))
    assert leaks(api)[0]["age_s"] >= 7200
    assert api.post("/v1/host/leaks/reap", {"older_than_s": 3600}).json["reaped"] == 1 and not os.path.exists(path)


def test_asking_twice_does_nothing_more(vmmd, api):
    stray(vmmd)
    keyed = {"headers": {"Idempotency-Key": "k1"}}
    assert api.post("/v1/host/leaks/reap", {"older_than_s": 0}, **keyed).json["reaped"] == 1
    assert api.post("/v1/host/leaks/reap", {"older_than_s": 0}, **keyed).json["reaped"] == 0


def test_what_cannot_be_removed_is_answered_as_failed(vmmd, api):
    """A directory that somebody mounted, for instance: here its parent refuses."""
    if os.geteuid() != 0:
        pytest.skip("needs root")
    path = stray(vmmd)
    inner = os.path.join(path, "inner")
    os.makedirs(inner)
    assert os.system(f"mount -t tmpfs none {inner}") == 0
    try:
        item = api.post("/v1/host/leaks/reap", {"older_than_s": 0}).json["items"][0]
        assert item["result"] == "failed" and item["error"]["status"] == 500
        record_code(item["error"]["code"])
        assert [leak["what"] for leak in leaks(api)] == [path]
    finally:
        os.system(f"umount {inner}")


def test_ports_of_a_destroyed_vm_are_told_and_given_back(vmmd, api):
    vm_id = make_vm(api)["id"]
    destroy(api)
    vmmd.stop()
    with sqlite3.connect(os.path.join(vmmd.data_dir, "vmmd.db")) as db:
        db.execute("INSERT INTO ports (udp, host_ip, port, vm_id) VALUES (0, '127.0.0.1', 20022, ?)", (vm_id,))
    db.close()
    vmmd.start()
    found = leaks(api)
    assert [(leak["kind"], leak["what"], leak["owner"], leak["adoptable"]) for leak in found] == [
        ("port", "tcp 127.0.0.1:20022", {"vm_id": vm_id, "vm_name": "web"}, False)]
    assert api.post("/v1/host/leaks/reap", {"older_than_s": 0}).json["reaped"] == 1
    assert leaks(api) == []
    vmmd.restart()
    assert leaks(api) == []


def test_adopt_answers_each_id(vmmd, api):
    vm = make_vm(api, start=True)
    gone = make_vm(api, "gone")["id"]
    destroy(api, "gone")
    nobody = str(uuid.uuid4())
    items = api.post("/v1/host/adopt", {"ids": [vm["id"], nobody, gone, "web", ""]}).json["items"]
    assert [item["id"] for item in items] == [vm["id"], nobody, gone, "web", ""]
    assert not any(item["adopted"] for item in items)
    assert items[0]["vm"]["name"] == "web" and items[0]["error"] is None
    assert [item["error"]["code"].split("::", 1)[1] for item in items[1:]] == [
        "vm::not_found", "lifecycle::destroyed", "vm::not_found", "vm::not_found"]


def test_vm_under_way_is_busy(vmmd, api):
    make_vm(api, labels={"noop.delay_ms.greet": "60000"})
    vm_id = api.get("/v1/vms/web").json["id"]
    operation = api.post("/v1/vms/web/start").json["id"]
    item = api.post("/v1/host/adopt", {"ids": [vm_id]}).json["items"][0]
    assert item["error"]["code"] == "vm_manager::vm::busy" and item["error"]["context"]["operation"] == operation
    api.delete(f"/v1/operations/{operation}")


@pytest.mark.parametrize("body, pointer", [
    ({"older_than_s": -1}, "/older_than_s"), ({"older_than_s": 1.5}, "/older_than_s"), ({"older_than_s": 10**12}, "/older_than_s"),
    ({"dry_run": "no"}, "/dry_run"), ({"force": True}, "/force")])
def test_reap_refuses_what_it_does_not_know(shared_api, body, pointer):
    answer = shared_api.post("/v1/host/leaks/reap", body)
    assert answer.code == "api::invalid_field" and answer.context["pointer"] == pointer


@pytest.mark.parametrize("body", [{}, {"ids": None}, {"ids": []}, {"ids": "web"}, {"ids": [7]}, {"ids": ["x" * 65]},
                                  {"ids": ["x"] * 1001}, {"ids": ["x"], "all": True}])
def test_adopt_refuses_what_it_does_not_know(shared_api, body):
    assert shared_api.post("/v1/host/adopt", body).code == "api::invalid_field"


def test_many_ask_at_once(vmmd, api):
    for i in range(20):
        stray(vmmd, f"stray{i}")
    found = []

    def ask(what):
        client = vmmd.client()
        for _ in range(10):
            found.append(client.get("/v1/host/leaks").status if what else
                         client.post("/v1/host/leaks/reap", {"older_than_s": 0}).status)

    threads = [threading.Thread(target=ask, args=(i % 2,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [200] * 80 and leaks(api) == []
    assert os.listdir(os.path.join(vmmd.data_dir, "vms")) == []


def test_client_that_leaves_stops_nothing(vmmd, api):
    path = stray(vmmd)
    body = b'{"older_than_s":0}'

    def ask_and_leave():
        with api.connect() as sock:
            sock.sendall(b"POST /v1/host/leaks/reap HTTP/1.1\r\nHost: vmmd\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s"
                         % (len(body), body))
            time.sleep(0.001)  # one that leaves before it was heard asked for nothing
        return os.path.exists(path)

    eventually(ask_and_leave, lambda there: not there)
    for _ in range(20):
        sock = api.connect()
        sock.sendall(b"GET /v1/host/leaks HTTP/1.1\r\nHost: vmmd\r\n\r\n")
        sock.close()
    assert leaks(api) == []


def test_no_new_vm_is_told_as_left_behind(daemons):
    """With a look at the host a second, while VMs come and go."""
    daemon = daemons(config="reconcile_interval_s = 1\n")
    api = daemon.client()
    end = time.monotonic() + 3
    n = 0
    while time.monotonic() < end:
        n += 1
        api.post("/v1/vms", create_body(f"vm{n}", start=True), prefer_wait=60)
        api.delete(f"/v1/vms/vm{n}", prefer_wait=60)
    assert "leftover" not in daemon.log()
