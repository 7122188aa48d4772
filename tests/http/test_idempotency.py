"""Idempotency-Key."""
import concurrent.futures

from lib.vms import create_body, destroy, do, ended, get_vm, make_vm, set_labels


def key(value="k-1"):
    return {"Idempotency-Key": value}


def test_same_key_and_body_answer_the_same_operation(api):
    first = api.post("/v1/vms", create_body("web"), headers=key(), prefer_wait=60)
    again = api.post("/v1/vms", create_body("web"), headers=key(), prefer_wait=60)
    assert first.status == again.status == 200
    assert first.json["id"] == again.json["id"]
    assert first.headers.get("Idempotency-Replayed") is None
    assert again.headers["Idempotency-Replayed"] == "true"
    assert len(api.get("/v1/operations").json["items"]) == 1


def test_replay_without_prefer_leads_to_the_same_operation(api):
    first = api.post("/v1/vms", create_body("web"), headers=key())
    again = api.post("/v1/vms", create_body("web"), headers=key())
    assert again.status == 202 and again.headers["Location"] == first.headers["Location"]
    assert again.headers["Idempotency-Replayed"] == "true"


def test_same_key_with_another_body_is_refused(api):
    api.post("/v1/vms", create_body("web"), headers=key(), prefer_wait=60)
    answer = api.post("/v1/vms", create_body("other"), headers=key(), prefer_wait=60)
    assert (answer.status, answer.code) == (422, "api::idempotency_mismatch")
    assert api.get("/v1/vms/other").status == 404


def test_same_key_on_another_route_is_refused(api):
    make_vm(api)
    do(api, "start", headers=key())
    assert api.post("/v1/vms/web/stop", headers=key(), prefer_wait=60).code == "api::idempotency_mismatch"
    assert get_vm(api)["state"] == "running"


def test_other_key_is_another_request(api):
    make_vm(api)
    do(api, "start", headers=key("a"))
    assert api.post("/v1/vms/web/start", headers=key("b"), prefer_wait=60).code == "vm::invalid_state"


def test_replayed_verb_does_not_act_again(api):
    make_vm(api)
    first = do(api, "start", headers=key())
    do(api, "stop")
    again = do(api, "start", headers=key())
    assert again.json["id"] == first.json["id"]
    assert get_vm(api)["state"] == "stopped"


def test_refusal_before_any_effect_is_not_kept(api):
    make_vm(api)
    assert api.post("/v1/vms", create_body("web"), headers=key(), prefer_wait=60).code == "vm::already_exists"
    destroy(api)
    answer = api.post("/v1/vms", create_body("web"), headers=key(), prefer_wait=60)
    assert answer.status == 200 and answer.headers.get("Idempotency-Replayed") is None


def test_invalid_body_does_not_use_up_the_key(api):
    assert api.post("/v1/vms", create_body("web", vcpus=0), headers=key()).code == "api::invalid_field"
    assert api.post("/v1/vms", create_body("web", vcpus=1), headers=key(), prefer_wait=60).status == 200


def test_replay_of_a_failed_operation_answers_its_problem(api):
    make_vm(api, labels={"noop.fail": "greet"})
    first = api.post("/v1/vms/web/start", headers=key(), prefer_wait=60)
    set_labels(api, "web", {"noop.fail": None})
    again = api.post("/v1/vms/web/start", headers=key(), prefer_wait=60)
    assert first.status >= 400 and again.status == first.status
    assert again.json["code"] == first.json["code"]
    assert again.headers["Idempotency-Replayed"] == "true"


def test_failure_is_replayed_by_the_next_daemon_too(vmmd, api):
    make_vm(api, labels={"noop.fail": "greet"})
    first = api.post("/v1/vms/web/start", headers=key(), prefer_wait=60)
    vmmd.restart()
    again = api.post("/v1/vms/web/start", headers=key(), prefer_wait=60)
    assert (again.status, again.code) == (first.status, first.code)
    assert again.json["request_id"] == again.headers["X-Request-Id"] and again.json["instance"] == "/v1/vms/web/start"


def test_concurrent_requests_with_one_key_are_one_operation(api):
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: api.post("/v1/vms", create_body("web"), headers=key()), range(8)))
    assert {answer.status for answer in answers} == {202}
    assert len({answer.json["id"] for answer in answers}) == 1
    assert sum(answer.headers.get("Idempotency-Replayed") == "true" for answer in answers) == 7
    assert ended(api, answers[0].json["id"])["state"] == "succeeded"


def test_key_that_is_no_key_is_refused(shared_api):
    assert shared_api.post("/v1/vms", create_body("web"), headers=key("x" * 256)).code == "api::invalid_field"
    assert shared_api.post("/v1/vms", create_body("web"), headers=key("")).code == "api::invalid_field"
    assert shared_api.get("/v1/vms/web").status == 404
