"""Provisioning: what is refused, and the operation's machinery, over a noop guest whose commands end as a label says."""
import pytest

from lib.vms import eventually, get_vm, make_vm


@pytest.fixture
def web(api):
    make_vm(api, start=True, labels={"noop.exec": "0"})
    return api


def provision(api, steps=None, status=200, **more):
    answer = api.post("/v1/vms/web/provision", {"steps": steps} if steps is not None else None, prefer_wait=60, **more)
    assert answer.status == status, answer
    return answer


def label(api, **labels):
    body = {"labels": {f"noop.{key}": value for key, value in labels.items()}}
    assert api.patch("/v1/vms/web", body).status == 200


TRUE = {"type": "shell", "inline": "true"}
FILE = {"type": "file", "content_base64": "eA==", "destination": "/x"}


@pytest.mark.parametrize("step, pointer", [
    ("x", "/steps/0"), ({"type": "magic"}, "/steps/0/type"), ({"inline": "x"}, "/steps/0/type"), ({"type": "shell"}, "/steps/0/inline"),
    ({**TRUE, "script": "x"}, "/steps/0/inline"), ({**TRUE, "mode": "0644"}, "/steps/0/mode"), ({**TRUE, "destination": "/x"}, "/steps/0/destination"),
    ({**TRUE, "env": {"a b": "x"}}, "/steps/0/env/a b"), ({**TRUE, "env": {"A": 1}}, "/steps/0/env/A"), ({**TRUE, "env": []}, "/steps/0/env"),
    ({**TRUE, "timeout_s": 0}, "/steps/0/timeout_s"), ({**TRUE, "timeout_s": 86401}, "/steps/0/timeout_s"), ({**TRUE, "run": "twice"}, "/steps/0/run"),
    ({**TRUE, "user": "root; id"}, "/steps/0/user"), ({**TRUE, "name": "a\nb"}, "/steps/0/name"), ({**TRUE, "shell": "x"}, "/steps/0/shell"),
    ({**FILE, "env": {}}, "/steps/0/env"), ({**FILE, "content_base64": "x"}, "/steps/0/content_base64"), ({**FILE, "destination": "x"}, "/steps/0/destination"),
    ({**FILE, "destination": "/x/"}, "/steps/0/destination"), ({**FILE, "mode": "rw"}, "/steps/0/mode"), ({**FILE, "inline": "x"}, "/steps/0/inline"),
])
def test_a_bad_step_names_its_field(web, step, pointer):
    answer = provision(web, [step], 422)
    assert (answer.code, answer.context["pointer"]) == ("api::invalid_field", pointer)
    spec = web.post("/v1/vms", {"name": "other", "backend": "noop", "spec": {"provision": [step]}})
    assert spec.context["pointer"] == pointer.replace("/steps", "/spec/provision")


def test_other_bad_requests(web):
    assert provision(web, "x", 422).context["pointer"] == "/steps"
    assert provision(web, [TRUE] * 257, 422).context["pointer"] == "/steps"
    assert web.post("/v1/vms/web/provision", {"step": []}).context["pointer"] == "/step"
    assert web.post("/v1/vms/nope/provision").code == "vm::not_found"


def test_a_vm_without_a_guest_is_refused(api):
    make_vm(api, start=True)
    assert provision(api, [TRUE], 501).code == "backend::not_available"


def test_it_must_run(web):
    web.post("/v1/vms/web/stop", prefer_wait=60)
    answer = provision(web, [TRUE], 409)
    assert answer.code == "vm::invalid_state" and answer.context["expected"] == ["running"]


def test_no_steps_are_a_success_without_effect(web):
    before = get_vm(web, "web")["revision"]
    for steps in (None, []):
        answer = provision(web, steps)
        assert (answer.json["state"], answer.json["method"], answer.json["steps"]) == ("succeeded", "none", [])
    assert get_vm(web, "web")["revision"] == before


def test_the_specs_steps_run_and_are_counted(api):
    make_vm(api, start=True, labels={"noop.exec": "0"}, provision=[TRUE, {**FILE, "name": "f"}, {"type": "shell", "script": "#!/bin/sh\n"}])
    operation = provision(api).json
    assert [(step["name"], step["state"]) for step in operation["steps"]] == \
        [("ready", "done"), ("run", "done"), ("persist", "done"), ("announce", "done")]
    assert operation["kind"] == "vm.provision" and operation["progress"] == {"done": 3, "total": 3, "unit": "steps"}
    assert get_vm(api, "web")["state"] == "running" and get_vm(api, "web")["operation"] is None


def test_the_same_key_is_the_same_operation(web):
    first = provision(web, [TRUE], headers={"Idempotency-Key": "k"})
    again = provision(web, [TRUE], headers={"Idempotency-Key": "k"})
    assert again.json["id"] == first.json["id"] and again.headers["Idempotency-Replayed"] == "true"
    assert provision(web, [FILE], 422, headers={"Idempotency-Key": "k"}).code == "api::idempotency_mismatch"


@pytest.mark.parametrize("how, context", [("3", {"exit_code": 3}), ("SIGTERM", {"exit_code": None, "signal": "SIGTERM"})])
def test_a_step_that_fails_is_told(web, vmmd, how, context):
    label(web, exec_ms="5000")
    operation = web.post("/v1/vms/web/provision", {"steps": [TRUE]}).json["id"]
    eventually(lambda: web.get(f"/v1/operations/{operation}").json["step"], lambda step: step == "run")
    label(web, exec=how, exec_ms="0")  # for the commands behind the first
    answer = web.get(f"/v1/operations/{operation}", prefer_wait=60)
    assert (answer.status, answer.code) == (424, "provision::failed")
    assert answer.context == {"vm": "web", "step": 1, "tail": "true\n", **context}


@pytest.mark.parametrize("by", ["cancel", "kill", "destroy"])
def test_what_hangs_is_ended(web, by):
    label(web, exec="hang")
    operation = web.post("/v1/vms/web/provision", {"steps": [TRUE]}).json["id"]
    eventually(lambda: web.get(f"/v1/operations/{operation}").json["step"], lambda step: step == "run")
    assert web.post("/v1/vms/web/stop").code == "vm::busy"
    if by == "cancel":
        assert web.delete(f"/v1/operations/{operation}").status == 200
    elif by == "kill":
        assert web.post("/v1/vms/web/kill", prefer_wait=60).status == 200
    else:
        assert web.delete("/v1/vms/web", prefer_wait=60).status == 200
    assert web.get(f"/v1/operations/{operation}", prefer_wait=60).code == "operation::cancelled"


def test_a_guest_that_never_answers_is_waited_for_until_it_ends(api):
    make_vm(api, start=True, labels={"noop.exec": "0", "noop.agent": "false"})
    operation = api.post("/v1/vms/web/provision", {"steps": [TRUE]}).json["id"]
    eventually(lambda: api.get(f"/v1/operations/{operation}").json["step"], lambda step: step == "ready")
    assert api.post("/v1/vms/web/kill", prefer_wait=60).status == 200
    assert api.get(f"/v1/operations/{operation}", prefer_wait=60).code == "operation::cancelled"


def test_a_killed_daemon_interrupts_it_and_the_vm_runs_on(web, vmmd):
    label(web, exec="hang")
    operation = web.post("/v1/vms/web/provision", {"steps": [TRUE]}).json["id"]
    eventually(lambda: web.get(f"/v1/operations/{operation}").json["step"], lambda step: step == "run")
    vmmd.kill9()
    vmmd.start()
    assert web.get(f"/v1/operations/{operation}", prefer_wait=60).code == "operation::interrupted"
    assert get_vm(web, "web")["state"] == "running"
    label(web, exec="0")
    provision(web, [TRUE])


def test_the_log_of_a_vm_that_was_not_provisioned_is_empty(web):
    answer = web.get("/v1/vms/web/logs/provision")
    assert answer.status == 200 and answer.body == b"" and answer.headers["X-Next-Offset"] == "0"
