"""The operation resource: Prefer: wait, steps, cancel, deadline, lists."""
import time

import pytest

from lib.vms import begin, create_body, do, ended, eventually, get_operation, get_vm, in_state, make_vm, settled

SLOW_START = {"noop.delay_ms.spawn": "20000"}
START_STEPS = ["reserve", "prepare", "spawn", "greet", "verify", "persist", "announce"]


def test_change_answers_202_with_its_operation_and_location(api):
    make_vm(api)
    answer = api.post("/v1/vms/web/start")
    assert answer.status == 202
    assert answer.headers["Location"] == f"/v1/operations/{answer.json['id']}"
    assert answer.json["kind"] == "vm.start"
    assert answer.json["target"] == {"vm_id": get_vm(api)["id"], "vm_name": "web"}


@pytest.mark.parametrize("verb, state", [
    ("start", "prepared"), ("stop", "running"), ("kill", "running"), ("reset", "running"), ("restart", "running"),
    ("suspend", "running"), ("resume", "suspended"),
])
def test_every_verb_answers_202_at_once_without_prefer(api, verb, state):
    in_state(api, state)
    assert ended(api, begin(api, verb)["id"])["state"] == "succeeded"


def test_destroy_answers_202_at_once_without_prefer(api):
    make_vm(api)
    answer = api.delete("/v1/vms/web")
    assert answer.status == 202
    operation = ended(api, answer.json["id"])
    assert operation["state"] == "succeeded" and operation["result"]["state"] == "destroyed"


def test_location_leads_to_the_operation(api):
    make_vm(api)
    answer = api.post("/v1/vms/web/start")
    operation = ended(api, answer.headers["Location"].rsplit("/", 1)[1])
    assert operation["state"] == "succeeded" and operation["finished_at"] and operation["error"] is None


def test_prefer_wait_holds_the_answer_until_the_operation_succeeded(api):
    make_vm(api, labels={"noop.delay_ms.greet": "400"})
    begun = time.monotonic()
    answer = do(api, "start")
    assert time.monotonic() - begun >= 0.4
    assert answer.json["state"] == "succeeded" and answer.json["result"]["state"] == "running"


def test_prefer_wait_answers_202_when_the_time_is_over(api):
    make_vm(api, labels=SLOW_START)
    begun = time.monotonic()
    answer = api.post("/v1/vms/web/start", prefer_wait=1)
    assert answer.status == 202 and answer.json["state"] == "running"
    assert time.monotonic() - begun >= 0.9


def test_prefer_wait_answers_the_problem_of_a_failed_operation(api):
    make_vm(api, labels={"noop.fail": "greet"})
    answer = api.post("/v1/vms/web/start", prefer_wait=60)
    assert answer.status >= 400 and answer.headers["Content-Type"].startswith("application/problem+json")
    operation = next(op for op in api.get("/v1/operations").json["items"] if op["kind"] == "vm.start")
    assert operation["error"]["code"] == answer.json["code"]
    assert operation["error"]["status"] == answer.status


def test_failed_operation_is_read_with_200(api):
    make_vm(api, labels={"noop.fail": "greet"})
    operation = ended(api, begin(api, "start")["id"])
    assert operation["state"] == "failed" and operation["result"] is None and operation["error"]


def test_get_operation_honours_prefer_wait(api):
    make_vm(api, labels={"noop.delay_ms.greet": "500"})
    operation = begin(api, "start")
    answer = api.get(f"/v1/operations/{operation['id']}", prefer_wait=60)
    assert answer.status == 200 and answer.json["state"] == "succeeded"


def test_get_operation_with_prefer_wait_answers_202_while_it_runs(api):
    make_vm(api, labels=SLOW_START)
    operation = begin(api, "start")
    answer = api.get(f"/v1/operations/{operation['id']}", prefer_wait=1)
    assert answer.status == 202 and answer.json["state"] == "running"


def test_get_operation_with_prefer_wait_answers_the_failed_operations_problem(api):
    make_vm(api, labels={"noop.fail": "greet", "noop.delay_ms.greet": "300"})
    operation = begin(api, "start")
    answer = api.get(f"/v1/operations/{operation['id']}", prefer_wait=60)
    assert answer.status >= 400
    assert get_operation(api, operation["id"])["error"]["code"] == answer.json["code"]


def test_steps_are_those_of_the_table_in_order(api):
    make_vm(api)
    steps = do(api, "start").json["steps"]
    assert [step["name"] for step in steps] == START_STEPS
    assert all(step["ms"] is not None for step in steps)
    assert len({step["state"] for step in steps}) == 1


def test_step_under_way_is_named(api):
    make_vm(api, labels=SLOW_START)
    op_id = begin(api, "start")["id"]
    operation = eventually(lambda: get_operation(api, op_id), lambda op: op["step"] == "spawn")
    states = [step["state"] for step in operation["steps"]]
    assert states[2] == "running" and states[3] == "pending"
    assert operation["state"] == "running" and operation["cancellable"] is True


def test_step_times_are_measured(api):
    make_vm(api, labels={"noop.delay_ms.greet": "3000"})
    steps = {step["name"]: step["ms"] for step in do(api, "start").json["steps"]}
    assert 2990 <= steps["greet"] < 60000 and steps["verify"] < 2990


def test_cancel_ends_the_operation_and_undoes_it(api):
    make_vm(api, labels=SLOW_START)
    before = get_vm(api)["state"]
    op_id = begin(api, "start")["id"]
    answer = api.delete(f"/v1/operations/{op_id}")
    assert answer.status == 200 and answer.json["id"] == op_id
    operation = ended(api, op_id)
    assert operation["state"] == "cancelled"
    assert operation["error"]["code"] == "vm_manager::operation::cancelled"
    vm = get_vm(api)
    assert vm["state"] == before and vm["operation"] is None


def test_one_that_fails_at_once_is_accepted_with_its_document(api):
    """A kill that cancels the create of its VM has nothing left to kill before its 202 is written."""
    made = api.post("/v1/vms", create_body("web", labels={"noop.delay_ms.build": "30000"}))
    eventually(lambda: get_operation(api, made.json["id"]), lambda op: op["step"] == "build")
    answer = begin(api, "kill")  # held against the contract
    assert answer["kind"] == "vm.kill" and ended(api, answer["id"])["state"] == "failed"


def test_ended_operation_is_not_cancellable(api):
    make_vm(api)
    operation = do(api, "start").json
    assert operation["cancellable"] is False
    answer = api.delete(f"/v1/operations/{operation['id']}")
    assert (answer.status, answer.code) == (409, "operation::not_cancellable")


def test_operation_past_its_point_of_no_return_is_not_cancellable(api):
    make_vm(api, labels={"noop.delay_ms.announce": "2000", "noop.delay_ms.persist": "2000"})
    op_id = begin(api, "start")["id"]
    operation = eventually(lambda: get_operation(api, op_id),
                           lambda op: op["step"] in ("persist", "announce") or op["state"] == "succeeded")
    assert operation["cancellable"] is False
    assert api.delete(f"/v1/operations/{op_id}").code == "operation::not_cancellable"
    assert ended(api, op_id)["state"] == "succeeded"


@pytest.mark.parametrize("op_id", ["0198c0de-0000-7000-8000-000000000000", "nonsense", "a" * 300])
def test_unknown_operation_is_not_found(shared_api, op_id):
    assert shared_api.get(f"/v1/operations/{op_id}").code == "operation::not_found"
    assert shared_api.delete(f"/v1/operations/{op_id}").code == "operation::not_found"


def test_step_that_does_not_end_in_time_exceeds_its_deadline(api):
    make_vm(api, labels={"noop.delay_ms.verify": "60000"})
    answer = api.post("/v1/vms/web/start", prefer_wait=60)
    assert (answer.status, answer.code) == (504, "operation::deadline_exceeded")
    assert "verify" in str(answer.context) + answer.json["detail"]
    assert get_vm(api)["operation"] is None


def test_list_is_newest_first(api):
    make_vm(api)
    for verb in ("start", "suspend", "resume", "stop"):
        do(api, verb)
    kinds = [op["kind"] for op in api.get("/v1/operations").json["items"]]
    assert kinds == ["vm.stop", "vm.resume", "vm.suspend", "vm.start", "vm.create"]


def test_list_by_state(api):
    make_vm(api, labels={"noop.fail": "greet"})
    api.post("/v1/vms/web/start", prefer_wait=60)
    make_vm(api, "slow", labels=SLOW_START)
    running = begin(api, "start", "slow")["id"]
    eventually(lambda: get_operation(api, running)["state"], lambda state: state == "running")

    def ids(state):
        page = api.get("/v1/operations", query={"state": state}).json
        assert all(op["state"] == state for op in page["items"])
        return [op["id"] for op in page["items"]]
    assert ids("running") == [running]
    assert len(ids("failed")) == 1 and len(ids("succeeded")) == 2 and ids("cancelled") == []


def test_pages_of_operations_join_to_the_whole(api):
    for name in "abcde":
        make_vm(api, name)
    whole = [op["id"] for op in api.get("/v1/operations").json["items"]]
    seen, query = [], {"limit": 2}
    while True:
        page = api.get("/v1/operations", query=query).json
        seen += [op["id"] for op in page["items"]]
        if page["next_cursor"] is None:
            break
        query["cursor"] = page["next_cursor"]
    assert seen == whole and len(seen) == 5


@pytest.mark.parametrize("query", [{"state": "sleeping"}, {"limit": 0}, {"cursor": "!nonsense!"}])
def test_bad_query_is_refused(shared_api, query):
    assert shared_api.get("/v1/operations", query=query).code == "api::invalid_field"


def test_operation_outlives_its_vm(api):
    make_vm(api)
    operation = do(api, "start").json
    api.delete("/v1/vms/web", prefer_wait=60)
    assert get_operation(api, operation["id"])["state"] == "succeeded"


def test_operation_has_the_request_that_asked_for_it_in_its_events(api):
    make_vm(api)
    since = settled(api)
    with api.events(since=since) as stream:
        answer = api.post("/v1/vms/web/start", headers={"X-Request-Id": "req-4711"}, prefer_wait=60)
        events = stream.until(lambda e: e.type == "vm.state_changed" and e.data["data"]["to"] == "running")
    assert all(e.data["request_id"] == "req-4711" for e in events)
    assert all(e.data["operation_id"] == answer.json["id"] for e in events)
