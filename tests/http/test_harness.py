"""The contract checker sees what it must: an answer that breaks the contract fails the test that got it."""
import http.client
import io
import json

import pytest

from lib.conform import Contract, contract


def headers(**extra):
    text = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in extra.items()) + "\r\n"
    return http.client.parse_headers(io.BytesIO(text.encode()))


@pytest.fixture(autouse=True)
def uncounted(monkeypatch):
    """What is made up here was seen from no daemon."""
    monkeypatch.setattr("lib.conform.COVERAGE.seen", lambda *_: None)


def check(method, path, status, body, **extra):
    given = {"X_Request_Id": "r-1", "Content_Type": "application/json" if status < 400 else "application/problem+json", **extra}
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    contract().check(method, path, status, headers(**{k: v for k, v in given.items() if v is not None}), data)


def problem(code="vm_manager::vm::not_found", **changes):
    row = contract().errors[code]
    return {"type": f"/v1/errors/{code}", "title": row["title"], "status": row["status"], "detail": "no VM x",
            "instance": "/v1/vms/x", "code": code, "help": row["help"], "retryable": row["retryable"], "request_id": "r-1",
            "context": {"vm": "x"}, "causes": [], **changes}


def test_right_answers_pass():
    check("GET", "/v1/health", 200, {"status": "ok"})
    check("GET", "/v1/vms", 200, {"items": [], "next_cursor": None, "as_of_event": 0})
    check("GET", "/v1/vms/x", 404, problem())
    check("GET", "/nowhere", 404, problem("vm_manager::api::not_found"))
    check("DELETE", "/v1/health", 405, problem("vm_manager::api::method_not_allowed"), Allow="GET, HEAD")
    check("HEAD", "/v1/health", 200, b"")


@pytest.mark.parametrize("why, method, path, status, body, extra", [
    ("a field too many", "GET", "/v1/health", 200, {"status": "ok", "mood": "fine"}, {}),
    ("a field too few", "GET", "/v1/vms", 200, {"items": [], "next_cursor": None}, {}),
    ("a wrong type", "GET", "/v1/vms", 200, {"items": [], "next_cursor": None, "as_of_event": "0"}, {}),
    ("an item that is no VM", "GET", "/v1/vms", 200, {"items": [{}], "next_cursor": None, "as_of_event": 0}, {}),
    ("no JSON", "GET", "/v1/health", 200, b"ok", {}),
    ("a wrong content type", "GET", "/v1/health", 200, {"status": "ok"}, {"Content_Type": "text/plain"}),
    ("no request id", "GET", "/v1/health", 200, {"status": "ok"}, {"X_Request_Id": None}),
    ("an undocumented status", "GET", "/v1/health", 201, {"status": "ok"}, {}),
    ("an undocumented path", "GET", "/v1/nowhere", 200, {}, {}),
    ("an undocumented code", "GET", "/v1/vms/x", 404, problem("vm_manager::operation::not_found"), {}),
    ("a code that is not in errors.def", "GET", "/v1/vms/x", 404, problem() | {"code": "vm_manager::no::such"}, {}),
    ("a status that is not the code's", "GET", "/v1/vms/x", 410, problem(), {}),
    ("a wrong type URL", "GET", "/v1/vms/x", 404, problem(type="/v1/errors/x"), {}),
    ("another title", "GET", "/v1/vms/x", 404, problem(title="Oops"), {}),
    ("no help", "GET", "/v1/vms/x", 404, problem(help=""), {}),
    ("another request id", "GET", "/v1/vms/x", 404, problem(request_id="r-2"), {}),
    ("a problem as plain JSON", "GET", "/v1/vms/x", 404, problem(), {"Content_Type": "application/json"}),
    ("405 without Allow", "DELETE", "/v1/health", 405, problem("vm_manager::api::method_not_allowed"), {}),
    ("405 with a wrong Allow", "DELETE", "/v1/health", 405, problem("vm_manager::api::method_not_allowed"), {"Allow": "GET"}),
    ("200 for a method that is not there", "PUT", "/v1/health", 200, {"status": "ok"}, {}),
    ("a body for HEAD", "HEAD", "/v1/health", 200, b"{}", {}),
])
def test_wrong_answer_is_found(why, method, path, status, body, extra):
    with pytest.raises(AssertionError):
        check(method, path, status, body, **extra)


def test_202_without_location_is_found():
    operation = {"id": "0198c0de-0000-7000-8000-000000000000", "kind": "vm.start",
                 "target": {"vm_id": "0198c0de-0000-7000-8000-000000000000", "vm_name": "web"}, "state": "pending", "step": None,
                 "steps": [], "progress": None, "error": None, "result": None, "cancellable": True,
                 "created_at": "2025-01-31T12:00:00.000Z", "deadline": None, "finished_at": None}
    check("POST", "/v1/vms/web/start", 202, operation, Location="/v1/operations/x")
    with pytest.raises(AssertionError):
        check("POST", "/v1/vms/web/start", 202, operation)


def test_published_schemas_are_open_for_answers_and_closed_for_requests():
    doc = Contract().doc["components"]["schemas"]
    requests = {"VmCreate", "SpecInput", "BootInput", "NetworkInput", "ForwardInput", "CloudInitInput", "SshInput",
                "ProvisionStepInput", "ProvisionRequest", "VmPatch", "StopRequest", "ReapRequest", "AdoptRequest",
                "ImagePull", "ImageConvert", "ImagePrune", "Empty"}
    for name, schema in doc.items():
        if schema.get("type") != "object":
            continue
        if name in requests:
            assert schema.get("additionalProperties") is False, name
        else:
            assert schema.get("additionalProperties") is not False, name


def test_codes_inside_an_answer_are_counted_and_the_catalogue_is_not(monkeypatch):
    seen = []
    monkeypatch.setattr("lib.conform.COVERAGE.seen", lambda route, status, code=None: seen.append(code))
    row = contract().errors["vm_manager::io"]
    check("GET", "/v1/errors", 200, {"items": [{"code": "vm_manager::io", "status": 500, "title": row["title"],
                                                "help": row["help"], "retryable": row["retryable"]}]})
    assert "vm_manager::io" not in seen
    with pytest.raises(AssertionError):
        check("GET", "/v1/vms/x", 200, {"failure": {"code": "vm_manager::io"}}, ETag='"1"')
    assert "vm_manager::io" in seen
