"""GET /v1/vms/{vm}/wait."""
import threading
import time

import pytest

from lib.metrics import limit_used
from lib.vms import begin, destroy, do, eventually, get_vm, in_state, make_vm


def wait(api, *conditions, name="web", timeout=60, **kw):
    query = [("for", condition) for condition in conditions] + ([("timeout", timeout)] if timeout is not None else [])
    return api.get(f"/v1/vms/{name}/wait", query=query, **kw)


def waited_for(api, n=1):
    eventually(lambda: limit_used(api, "waits"), lambda used: used == n)


def in_background(call):
    answers = []
    thread = threading.Thread(target=lambda: answers.append(call()))
    thread.start()
    return thread, answers


def test_what_holds_already_is_met_at_once(api):
    make_vm(api)
    answer = wait(api, "state:prepared", timeout=0)
    assert answer.status == 200 and answer.json["met"] is True and answer.json["vm"] == get_vm(api)


def test_wait_ends_when_the_state_comes(api):
    make_vm(api, labels={"noop.delay_ms.greet": "500"})
    begun = time.monotonic()
    begin(api, "start")
    assert wait(api, "state:running").json["vm"]["state"] == "running"
    assert time.monotonic() - begun >= 0.45


def test_many_waiters_are_all_told(api):
    make_vm(api)
    waiters = [in_background(lambda: wait(api, "state:running")) for _ in range(20)]
    waited_for(api, 20)
    do(api, "start")
    for thread, answers in waiters:
        thread.join()
        assert answers[0].status == 200


def test_wait_by_id(api):
    vm = make_vm(api)
    assert wait(api, "state:prepared", name=vm["id"]).status == 200


def test_wait_times_out(api):
    make_vm(api)
    begun = time.monotonic()
    answer = wait(api, "state:running", timeout=1)
    assert (answer.status, answer.code) == (504, "wait::timed_out")
    assert 0.9 <= time.monotonic() - begun < 40


def test_timeout_of_zero_asks_once(api):
    make_vm(api)
    assert wait(api, "state:running", timeout=0).code == "wait::timed_out"
    assert wait(api, "state:prepared", timeout=0).status == 200


def test_all_of_several_must_hold(api):
    make_vm(api, start=True)
    assert wait(api, "state:running", "state:running").status == 200
    assert wait(api, "state:running", "state:suspended", timeout=1).code == "wait::timed_out"


@pytest.mark.parametrize("state", ["stopped", "failed"])
def test_running_is_impossible_for_a_vm_that_ended_and_that_nobody_starts(api, state):
    in_state(api, state)
    answer = wait(api, "state:running")
    assert (answer.status, answer.code) == (409, "wait::impossible")
    assert wait(api, f"state:{state}").status == 200


def test_wait_becomes_impossible_when_the_vm_stops_meanwhile(api):
    make_vm(api, start=True)
    thread, answers = in_background(lambda: wait(api, "state:suspended"))
    waited_for(api)
    do(api, "stop")
    thread.join()
    assert answers[0].code == "wait::impossible"


def test_wait_becomes_impossible_when_the_vm_is_destroyed_meanwhile(api):
    make_vm(api)
    thread, answers = in_background(lambda: wait(api, "state:running"))
    waited_for(api)
    destroy(api)
    thread.join()
    assert answers[0].code == "wait::impossible"


def test_wait_for_destroyed_is_met(api):
    make_vm(api)
    thread, answers = in_background(lambda: wait(api, "state:destroyed"))
    waited_for(api)
    destroy(api)
    thread.join()
    assert answers[0].status == 200 and answers[0].json["vm"]["state"] == "destroyed"


def test_stopped_vm_under_an_operation_is_waited_for(api):
    in_state(api, "stopped", labels={"noop.delay_ms.greet": "500"})
    begin(api, "start")
    assert wait(api, "state:running").status == 200


def test_failing_start_makes_the_wait_impossible(api):
    make_vm(api, labels={"noop.delay_ms.spawn": "300", "noop.fail": "spawn"})
    begin(api, "start")
    assert wait(api, "state:running").code == "wait::impossible"


@pytest.mark.parametrize("query", [
    [], [("for", "")], [("for", "state:sleeping")], [("for", "nonsense")], [("for", "state:")],
    [("for", "state:running"), ("timeout", "601")], [("for", "state:running"), ("timeout", "-1")],
    [("for", "state:running"), ("timeout", "soon")],
])
def test_bad_query_is_refused(api, query):
    make_vm(api)
    assert api.get("/v1/vms/web/wait", query=query).code == "api::invalid_field"


def test_unknown_and_destroyed_vms_are_not_waited_for(api):
    assert wait(api, "state:running", name="nobody").code == "vm::not_found"
    vm = make_vm(api)
    destroy(api)
    assert wait(api, "state:running", name=vm["id"]).code == "lifecycle::destroyed"


def test_client_that_leaves_its_wait_is_forgotten(api, vmmd):
    make_vm(api)
    for _ in range(20):
        sock = api.connect()
        sock.sendall(b"GET /v1/vms/web/wait?for=state:running HTTP/1.1\r\nHost: vmmd\r\n\r\n")
        sock.close()
    do(api, "start")
    assert eventually(lambda: get_vm(api)["state"], lambda state: state == "running")
    assert vmmd.running()
