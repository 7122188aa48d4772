"""The error catalogue and the shape of problems."""
import os
import re
import sqlite3

import pytest

from lib.conform import contract
from lib.vms import create_body, eventually, make_vm


def test_catalogue_is_errors_def_whole(shared_api):
    items = {item["code"]: item for item in shared_api.get("/v1/errors").json["items"]}
    assert set(items) == set(contract().errors)
    for code, row in contract().errors.items():
        item = items[code]
        assert (item["status"] or 0) == row["status"]
        assert (item["title"], item["help"], item["retryable"]) == (row["title"], row["help"], row["retryable"])


def test_every_code_has_a_help_that_says_something(shared_api):
    for item in shared_api.get("/v1/errors").json["items"]:
        assert len(item["help"]) > 15, item


def test_every_code_has_its_page(shared_api):
    for item in shared_api.get("/v1/errors").json["items"]:
        assert shared_api.get(f"/v1/errors/{item['code']}").json == item


def test_unknown_code_is_not_found(shared_api):
    assert shared_api.get("/v1/errors/vm_manager::no::such").code == "api::not_found"


def test_problem_type_leads_to_its_page(shared_api):
    problem = shared_api.get("/v1/vms/nobody").json
    page = shared_api.get(problem["type"]).json
    assert (page["code"], page["title"], page["status"]) == (problem["code"], problem["title"], problem["status"])


def test_problem_names_its_instance(shared_api):
    assert shared_api.get("/v1/vms/nobody").json["instance"] == "/v1/vms/nobody"


def test_problem_says_what_happened_to_what(api):
    make_vm(api)
    answer = api.post("/v1/vms/web/resume")
    assert "web" in answer.json["detail"] and "prepared" in answer.json["detail"]


def test_sane_request_id_is_echoed(shared_api):
    answer = shared_api.get("/v1/vms/nobody", headers={"X-Request-Id": "abc-123_X.9"})
    assert answer.headers["X-Request-Id"] == "abc-123_X.9" == answer.json["request_id"]


@pytest.mark.parametrize("insane", ["a b", "x" * 1000, "", "<script>", "a\tb"])
def test_insane_request_id_is_replaced(shared_api, insane):
    answer = shared_api.get("/v1/health", headers={"X-Request-Id": insane})
    assert answer.headers["X-Request-Id"] != insane
    assert re.match(r"^[0-9A-Za-z._-]{8,}$", answer.headers["X-Request-Id"])


def test_request_ids_differ(shared_api):
    ids = {shared_api.get("/v1/health").headers["X-Request-Id"] for _ in range(20)}
    assert len(ids) == 20


def test_request_id_is_in_the_log(vmmd, api):
    api.post("/v1/vms", {"name": "web", "backend": "noop"}, headers={"X-Request-Id": "find-me-4711"}, prefer_wait=60)
    eventually(vmmd.log, lambda log: "find-me-4711" in log)


def test_database_that_somebody_else_changed_is_an_internal_error_and_acknowledges_nothing(vmmd, api):
    with sqlite3.connect(os.path.join(vmmd.data_dir, "vmmd.db"), timeout=60) as db:
        db.execute("ALTER TABLE events RENAME TO taken_away")
    answer = api.post("/v1/vms", create_body("web"))
    assert (answer.status, answer.code) == (500, "daemon::internal")
    assert api.get("/v1/vms").json["items"] == []
    with sqlite3.connect(os.path.join(vmmd.data_dir, "vmmd.db"), timeout=60) as db:
        db.execute("ALTER TABLE taken_away RENAME TO events")
    make_vm(api)
