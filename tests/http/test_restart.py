"""What survives the daemon's end, by SIGTERM and by kill -9."""
import concurrent.futures
import http.client
import os
import threading
import time

import pytest

from lib.metrics import limit_used
from lib.vms import (begin, create_body, destroy, do, ended, eventually, get_operation, get_vm, in_state, make_vm,
                      set_labels)

WAYS = ["SIGTERM", "SIGKILL"]


def again(vmmd, way):
    if way == "SIGTERM":
        vmmd.stop()
    else:
        vmmd.kill9()
    vmmd.start()


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("state", ["prepared", "stopped", "failed"])
def test_vm_at_rest_survives_unchanged(api, vmmd, way, state):
    before = in_state(api, state, labels={"a": "b"})
    again(vmmd, way)
    assert get_vm(api) == before


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("state", ["running", "suspended"])
def test_noop_vm_outlives_the_daemon(api, vmmd, way, state):
    before = in_state(api, state)
    again(vmmd, way)
    after = get_vm(api)
    assert (after["id"], after["state"], after["runtime"]["started_at"]) == (
        before["id"], state, before["runtime"]["started_at"])
    do(api, "stop")


@pytest.mark.parametrize("way", WAYS)
def test_patched_spec_and_generation_survive(api, vmmd, way):
    make_vm(api)
    answer = api.patch("/v1/vms/web", {"spec": {"vcpus": 7}, "labels": {"x": "ü"}})
    again(vmmd, way)
    after = api.get("/v1/vms/web")
    assert after.json == answer.json and after.headers["ETag"] == answer.headers["ETag"]


@pytest.mark.parametrize("way", WAYS)
def test_operations_survive(api, vmmd, way):
    make_vm(api)
    for verb in ("start", "suspend", "resume", "stop"):
        do(api, verb)
    before = api.get("/v1/operations").json["items"]
    again(vmmd, way)
    after = [op for op in api.get("/v1/operations").json["items"] if op["id"] in {o["id"] for o in before}]
    assert after == before


@pytest.mark.parametrize("way", WAYS)
def test_idempotency_key_survives(api, vmmd, way):
    first = api.post("/v1/vms", create_body("web"), headers={"Idempotency-Key": "k"}, prefer_wait=60)
    again(vmmd, way)
    second = api.post("/v1/vms", create_body("web"), headers={"Idempotency-Key": "k"}, prefer_wait=60)
    assert second.status == 200 and second.json["id"] == first.json["id"]
    assert second.headers["Idempotency-Replayed"] == "true"
    assert api.post("/v1/vms", create_body("x"), headers={"Idempotency-Key": "k"}).code == "api::idempotency_mismatch"


@pytest.mark.parametrize("way", WAYS)
def test_events_survive(api, vmmd, way):
    make_vm(api, start=True)
    newest = api.get("/v1/vms").json["as_of_event"]

    def read():
        with api.events(since=0) as stream:
            return [e.data for e in stream.until(lambda e: e.id >= newest)]
    before = read()
    again(vmmd, way)
    assert read() == before


@pytest.mark.parametrize("way", WAYS)
def test_destroyed_id_stays_gone_and_its_name_free(api, vmmd, way):
    vm = make_vm(api)
    destroy(api)
    again(vmmd, way)
    assert api.get(f"/v1/vms/{vm['id']}").code == "lifecycle::destroyed"
    assert api.delete(f"/v1/vms/{vm['id']}").status == 200
    make_vm(api)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("step", ["prepare", "spawn", "greet", "verify"])
def test_operation_under_way_is_finished_or_undone(api, vmmd, way, step):
    make_vm(api, labels={f"noop.delay_ms.{step}": "30000"})
    op_id = begin(api, "start")["id"]
    eventually(lambda: get_operation(api, op_id), lambda op: op["step"] == step)
    again(vmmd, way)
    operation = ended(api, op_id)
    vm = eventually(lambda: get_vm(api), lambda vm: vm["operation"] is None)
    if operation["state"] == "succeeded":
        assert vm["state"] == "running"
    else:
        assert operation["error"]["code"] == "vm_manager::operation::interrupted"
        assert vm["state"] in ("prepared", "failed")
        api.patch("/v1/vms/web", {"labels": {f"noop.delay_ms.{step}": None}})
        assert do(api, "start").json["result"]["state"] == "running"


def step_is_told(api, op_id, step, state):
    """Waits until the event of the step's state is durable."""
    with api.events(since=0) as stream:
        stream.until(lambda e: e.data["operation_id"] == op_id and e.data["type"] == "operation.step"
                     and (e.data["data"]["step"], e.data["data"]["state"]) == (step, state))


def test_interrupted_operation_tells_its_steps(api, vmmd):
    make_vm(api, labels={"noop.delay_ms.greet": "30000"})
    op_id = begin(api, "start")["id"]
    step_is_told(api, op_id, "greet", "running")
    again(vmmd, "SIGKILL")
    steps = {step["name"]: step["state"] for step in get_operation(api, op_id)["steps"]}
    assert steps == {"reserve": "done", "prepare": "undone", "spawn": "undone", "greet": "failed", "verify": "pending",
                     "persist": "pending", "announce": "pending"}


def test_restart_half_done_is_carried_on(api, vmmd):
    """Its second half is the same operation, under the next daemon; in between the VM is stopped, and says so."""
    in_state(api, "running")
    set_labels(api, "web", {"noop.delay_ms.spawn": "60000"})
    op_id = begin(api, "restart", headers={"Idempotency-Key": "k"})["id"]
    eventually(lambda: get_operation(api, op_id), lambda op: op["step"] == "spawn")
    vm = eventually(lambda: get_vm(api), lambda vm: vm["state"] == "stopped")
    assert vm["operation"] == op_id and not any(c["status"] for c in vm["conditions"])
    set_labels(api, "web", {"noop.delay_ms.spawn": "1500"})  # for the next daemon
    again(vmmd, "SIGKILL")
    assert get_operation(api, op_id)["state"] in ("running", "succeeded")
    operation = ended(api, op_id)
    assert operation["state"] == "succeeded" and {s["state"] for s in operation["steps"]} == {"done", "skipped"}
    assert get_vm(api)["state"] == "running" and get_vm(api)["operation"] is None
    replay = api.post("/v1/vms/web/restart", headers={"Idempotency-Key": "k"}, prefer_wait=60)
    assert replay.json["id"] == op_id and replay.headers["Idempotency-Replayed"] == "true"


def test_kill_left_behind_is_finished(api, vmmd):
    in_state(api, "running")
    set_labels(api, "web", {"noop.delay_ms.kill": "30000"})
    op_id = begin(api, "kill")["id"]
    again(vmmd, "SIGKILL")
    assert get_operation(api, op_id)["state"] == "succeeded" and get_vm(api)["state"] == "stopped"


def test_vm_found_resumed_gets_ready(api, vmmd):
    in_state(api, "suspended")
    set_labels(api, "web", {"noop.delay_ms.persist": "30000", "noop.adopt": "running"})
    begin(api, "resume")
    eventually(lambda: get_vm(api)["operation"], bool)
    again(vmmd, "SIGKILL")
    assert get_vm(api)["state"] == "running"
    assert api.get("/v1/vms/web/wait", query={"for": "ready", "timeout": 60}).status == 200


@pytest.mark.parametrize("way", WAYS)
def test_create_under_way_is_finished_or_leaves_nothing(api, vmmd, way):
    steps = [s["name"] for s in api.post("/v1/vms", create_body("probe"), prefer_wait=60).json["steps"]]
    for number, step in enumerate(steps):
        name = f"web{number}"
        answer = api.post("/v1/vms", create_body(name, labels={f"noop.delay_ms.{step}": "20000"}))
        assert answer.status == 202
        again(vmmd, way)
        operation = ended(api, answer.json["id"])
        if operation["state"] == "succeeded":
            assert get_vm(api, name)["state"] == "prepared"
        else:
            assert operation["error"]["code"] == "vm_manager::operation::interrupted"
            assert api.get(f"/v1/vms/{name}").status == 404
            make_vm(api, name)


def test_waiting_client_is_answered_at_sigterm(api, vmmd):
    make_vm(api)
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(lambda: api.get("/v1/vms/web/wait", query={"for": "state:running", "timeout": 60}))
        eventually(lambda: limit_used(api, "waits"), lambda n: n == 1)
        vmmd.stop()
        answer = waiting.result()
    assert answer.status == 503 and answer.code == "daemon::shutting_down"


def test_client_that_waits_for_its_operation_learns_of_it_at_sigterm(api, vmmd):
    """It is under way and settled at the next start: 202, as when the wait is over, and no refusal."""
    make_vm(api, labels={"noop.delay_ms.spawn": "60000"})
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(lambda: api.post("/v1/vms/web/start", prefer_wait=60))
        op_id = eventually(lambda: get_vm(api)["operation"], bool)
        eventually(lambda: get_operation(api, op_id), lambda op: op["step"] == "spawn")
        eventually(lambda: limit_used(api, "waits"), lambda n: n == 1)
        vmmd.stop()
        answer = waiting.result()
    assert (answer.status, answer.json["kind"], answer.json["state"]) == (202, "vm.start", "running")
    assert answer.headers["Location"] == f"/v1/operations/{answer.json['id']}"
    vmmd.start()
    assert get_operation(api, answer.json["id"])["error"]["code"] == "vm_manager::operation::interrupted"


def test_what_was_answered_is_durable(api, vmmd):
    """kill -9 right after each answer: nothing that a client was told is lost."""
    for number in range(5):
        vm = make_vm(api, f"v{number}")
        vmmd.kill9()
        vmmd.start()
        assert get_vm(api, f"v{number}") == vm
    assert len(api.get("/v1/vms").json["items"]) == 5


def test_stale_socket_of_a_killed_daemon_is_no_hindrance(api, vmmd):
    vmmd.kill9()
    vmmd.start()
    assert api.get("/v1/health").status == 200


def test_socket_is_removed_at_a_clean_end(vmmd):
    vmmd.stop()
    assert not os.path.exists(vmmd.socket)
    vmmd.start()


@pytest.mark.parametrize("way", WAYS)
def test_wait_for_an_operation_goes_on_by_its_id(api, vmmd, way):
    """Who waited asks the next daemon, and is told at once what became of it."""
    make_vm(api, labels={"noop.delay_ms.spawn": "60000"})
    op_id = begin(api, "start")["id"]
    eventually(lambda: get_operation(api, op_id), lambda op: op["step"] == "spawn")
    again(vmmd, way)
    began = time.monotonic()
    answer = api.get(f"/v1/operations/{op_id}", prefer_wait=600)
    assert time.monotonic() - began < 100
    if answer.status != 200:
        assert (answer.status, answer.code) == (503, "operation::interrupted"), answer
    again(vmmd, "SIGKILL")  # and so by the one after that
    assert api.get(f"/v1/operations/{op_id}", prefer_wait=60).status == answer.status


def test_operations_are_remembered_as_long_as_the_config_says(daemons):
    daemon = daemons(config="operations_keep_s = 10\nevents_keep = 10\n")
    api = daemon.client()
    op_id = api.post("/v1/vms", create_body("web"), prefer_wait=60, headers={"Idempotency-Key": "k"}).json["id"]
    daemon.kill9()
    daemon.start()
    assert api.get(f"/v1/operations/{op_id}").json["state"] == "succeeded"
    time.sleep(10)
    for number in range(130):  # what is old goes when the events are cut, or every ten minutes
        api.patch("/v1/vms/web", {"labels": {"n": str(number)}})
    eventually(lambda: api.get(f"/v1/operations/{op_id}").code, lambda code: code == "operation::not_found")


def test_what_a_stop_refuses_has_no_effect(api, vmmd):
    """A 503 of a daemon that stops is a refusal, and what is acknowledged is there: nothing between."""
    answers = {}

    def work(worker):
        for number in range(1000):
            name = f"v{worker}-{number}"
            try:
                answers[name] = api.post("/v1/vms", create_body(name)).status
                if number % 3 == 0:
                    answers[name, "patch"] = api.patch(f"/v1/vms/{name}", {"labels": {"a": "b"}}).status
            except (OSError, http.client.HTTPException):
                return
            if answers[name] == 503:
                return
    for _ in range(3):
        answers.clear()
        threads = [threading.Thread(target=work, args=(worker,)) for worker in range(8)]
        for thread in threads:
            thread.start()
        eventually(lambda: len(answers), lambda n: n >= 30)
        vmmd.stop()
        for thread in threads:
            thread.join()
        vmmd.start()
        there = {vm["name"]: vm for vm in api.get("/v1/vms?limit=1000").json["items"]}
        for key, status in answers.items():
            if isinstance(key, str):
                assert status in (202, 503) and (key in there) == (status == 202), (key, status)
            elif key[0] in there:
                assert status in (200, 503) and ("a" in there[key[0]]["labels"]) == (status == 200), (key, status)
        for name in there:
            destroy(api, name)
