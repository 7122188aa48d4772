"""Every verb from every state, by noop; what holds a VM, and what breaks in."""
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from lib.vms import (STATES, VERBS, begin, create_body, destroy, do, ended, eventually, get_operation, get_vm, in_state, make_vm,
                     set_labels)

NO_EFFECT = {("stop", "stopped"), ("kill", "stopped")}
LEGAL = [(verb, state) for verb, (states, _) in VERBS.items() for state in STATES if state in states]
ILLEGAL = [(verb, state) for verb, (states, _) in VERBS.items() for state in STATES
           if state not in states and (verb, state) not in NO_EFFECT]


@pytest.mark.parametrize("verb, state", LEGAL)
def test_legal_verb_leads_to_its_state(api, verb, state):
    in_state(api, state)
    answer = do(api, verb)
    assert answer.json["kind"] == f"vm.{verb}"
    assert answer.json["result"]["state"] == VERBS[verb][1]
    vm = get_vm(api)
    assert vm["state"] == VERBS[verb][1] and vm["operation"] is None


@pytest.mark.parametrize("verb, state", ILLEGAL)
def test_illegal_verb_is_refused_and_changes_nothing(api, verb, state):
    vm = in_state(api, state)
    answer = api.post(f"/v1/vms/web/{verb}", prefer_wait=60)
    assert (answer.status, answer.code) == (409, "vm::invalid_state")
    assert answer.context["vm"] == "web"
    assert answer.context["current"] == state
    assert set(answer.context["expected"]) - {"stopped"} == VERBS[verb][0] - {"stopped"}
    assert state in answer.json["detail"]
    assert get_vm(api) == vm


@pytest.mark.parametrize("verb, state", sorted(NO_EFFECT))
def test_stop_and_kill_of_a_stopped_vm_succeed_without_effect(api, verb, state):
    before = in_state(api, state)
    answer = do(api, verb)
    assert answer.json["state"] == "succeeded"
    assert get_vm(api)["state"] == "stopped"
    assert get_vm(api)["generation"] == before["generation"]


@pytest.mark.parametrize("state", STATES)
def test_destroy_works_from_every_state(api, state):
    vm = in_state(api, state)
    answer = destroy(api)
    assert answer.json["kind"] == "vm.destroy"
    assert answer.json["result"]["state"] == "destroyed"
    assert api.get(f"/v1/vms/{vm['id']}").code == "lifecycle::destroyed"


def test_destroy_of_a_destroyed_id_succeeds_without_effect(api):
    vm = make_vm(api)
    destroy(api)
    answer = api.delete(f"/v1/vms/{vm['id']}")
    assert answer.status == 200


def test_destroy_of_a_destroyed_name_is_not_found(api):
    make_vm(api)
    destroy(api)
    assert api.delete("/v1/vms/web").code == "vm::not_found"


@pytest.mark.parametrize("verb", sorted(VERBS))
def test_verbs_on_a_destroyed_id_are_gone(api, verb):
    vm = make_vm(api)
    destroy(api)
    assert api.post(f"/v1/vms/{vm['id']}/{verb}").code == "lifecycle::destroyed"


@pytest.mark.parametrize("verb", sorted(VERBS))
def test_verbs_on_an_unknown_vm_are_not_found(shared_api, verb):
    assert shared_api.post(f"/v1/vms/nobody/{verb}").code == "vm::not_found"


def test_started_vm_has_its_start_in_runtime_and_loses_it_when_stopped(api):
    in_state(api, "running")
    assert get_vm(api)["runtime"]["started_at"]
    do(api, "stop")
    assert get_vm(api)["runtime"]["started_at"] is None


def test_states_do_not_touch_the_generation_but_the_revision(api):
    vm = make_vm(api)
    do(api, "start")
    after = get_vm(api)
    assert after["generation"] == vm["generation"] and after["revision"] > vm["revision"]
    assert after["updated_at"] >= vm["updated_at"]


def test_stop_says_its_method(api):
    in_state(api, "running")
    operation = do(api, "stop", body={"timeout_s": 5}).json
    assert operation["method"] in ("acpi", "agent", "term", "kill")


def test_stop_of_a_stopped_vm_needed_no_method(api):
    in_state(api, "stopped")
    assert do(api, "stop").json["method"] == "none"


def test_failed_start_says_why_and_leaves_a_vm_that_can_be_started(api):
    make_vm(api, labels={"noop.fail": "spawn"})
    answer = api.post("/v1/vms/web/start", prefer_wait=60)
    assert answer.status >= 400
    vm = get_vm(api)
    assert vm["state"] == "failed" and vm["operation"] is None
    assert vm["failure"]["code"] == answer.json["code"]
    set_labels(api, "web", {"noop.fail": None})
    assert do(api, "start").json["result"]["state"] == "running"
    assert get_vm(api)["failure"] is None


@pytest.mark.parametrize("step", ["prepare", "spawn", "greet", "verify"])
def test_start_that_fails_at_a_step_undoes_what_was_done(api, step):
    make_vm(api, labels={"noop.fail": step})
    operation = begin(api, "start")
    operation = ended(api, operation["id"])
    assert operation["state"] == "failed"
    states = {s["name"]: s["state"] for s in operation["steps"]}
    assert states[step] == "failed"
    names = [s["name"] for s in operation["steps"]]
    for later in names[names.index(step) + 1:]:
        assert states[later] == "pending", states
    assert get_vm(api)["runtime"]["started_at"] is None


SLOW_START = {"noop.delay_ms.spawn": "20000"}


@pytest.mark.parametrize("verb", ["start", "stop", "restart", "reset", "suspend", "resume"])
def test_busy_vm_refuses_other_verbs_and_names_the_operation(api, verb):
    make_vm(api, labels=SLOW_START)
    operation = begin(api, "start")
    answer = api.post(f"/v1/vms/web/{verb}", prefer_wait=60)
    assert (answer.status, answer.code) == (409, "vm::busy")
    assert operation["id"] in answer.context.values()


def test_busy_vm_shows_the_operation_that_holds_it(api):
    make_vm(api, labels=SLOW_START)
    operation = begin(api, "start")
    assert get_vm(api)["operation"] == operation["id"]


@pytest.mark.parametrize("verb", ["kill", "destroy"])
def test_kill_and_destroy_cancel_the_operation_that_holds_the_vm(api, verb):
    make_vm(api)
    do(api, "start")
    do(api, "stop")
    set_labels(api, "web", SLOW_START)
    operation = begin(api, "start")
    if verb == "kill":
        do(api, "kill")
        assert get_vm(api)["state"] == "stopped"
    else:
        destroy(api)
        assert api.get("/v1/vms/web").status == 404
    cancelled = ended(api, operation["id"])
    assert cancelled["state"] == "cancelled"
    assert cancelled["error"]["code"] == "vm_manager::operation::cancelled"


def test_waiting_client_of_a_cancelled_operation_gets_its_problem(api):
    make_vm(api, labels=SLOW_START)
    answers = []
    thread = threading.Thread(target=lambda: answers.append(api.post("/v1/vms/web/start", prefer_wait=60)))
    thread.start()
    eventually(lambda: get_vm(api)["operation"], lambda op: op is not None)
    destroy(api)
    thread.join()
    assert answers and answers[0].code == "operation::cancelled"


def test_destroy_while_creating_leaves_nothing(api):
    probe = api.post("/v1/vms", create_body("probe"), prefer_wait=60).json
    labels = {f"noop.delay_ms.{step['name']}": "5000" for step in probe["steps"]}
    answer = api.post("/v1/vms", create_body("web", labels=labels))
    assert answer.status == 202
    answer = api.delete("/v1/vms/web", prefer_wait=60)
    assert answer.status == 200, answer
    assert api.get("/v1/vms/web").code == "vm::not_found"


def test_hung_vm_does_not_slow_reads_of_others(api):
    make_vm(api, "slow", labels={"noop.delay_ms.prepare": "600000"})
    make_vm(api, "other")
    operation = begin(api, "start", "slow")["id"]
    for _ in range(50):
        assert api.get("/v1/vms").status == 200
    do(api, "start", "other")
    assert get_operation(api, operation)["state"] == "running", "they waited for it"


@pytest.mark.parametrize("verb, state", [("kill", "stopped"), ("destroy", None)])
def test_the_same_asked_for_many_times_at_once_succeeds_for_all(api, verb, state):
    """They ask for one state: the first brings it about, the others wait for it and have no effect."""
    vm = make_vm(api, labels={"noop.delay_ms.kill": "4000"}, start=True)
    path = f"/v1/vms/{vm['id']}"
    with ThreadPoolExecutor(6) as pool:
        ask = (lambda _: api.delete(path, prefer_wait=60)) if verb == "destroy" else (lambda _: api.post(path + "/kill", prefer_wait=60))
        answers = list(pool.map(ask, range(6)))
    assert [a.status for a in answers] == [200] * 6, answers
    assert sum(a.json["method"] != "none" if verb == "kill" else a.json["steps"] != [] for a in answers) == 1
    assert api.get(path).status == 410 if state is None else get_vm(api)["state"] == state


def test_an_id_is_not_taken_over_by_a_name(api):
    first = make_vm(api, "one")
    second = make_vm(api, first["id"])
    assert get_vm(api, first["id"])["name"] == "one"
    destroy(api, "one")
    assert api.get(f"/v1/vms/{first['id']}").code == "lifecycle::destroyed"
    assert api.delete(f"/v1/vms/{first['id']}", prefer_wait=60).json["method"] == "none"
    assert get_vm(api, second["id"])["state"] == "prepared"
