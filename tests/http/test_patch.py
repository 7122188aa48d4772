"""PATCH /v1/vms/{vm}: JSON merge patch."""
import json

import pytest

from lib.vms import begin, destroy, do, get_vm, make_vm, settled


def patch(api, body, **kw):
    return api.patch("/v1/vms/web", body, **kw)


def test_label_is_added_changed_and_taken_away(api):
    make_vm(api, labels={"a": "1", "b": "2"})
    assert patch(api, {"labels": {"a": "x", "b": None, "c": "3"}}).json["labels"] == {"a": "x", "c": "3"}
    assert get_vm(api)["labels"] == {"a": "x", "c": "3"}


def test_policy_changes_while_the_vm_runs(api):
    make_vm(api, start=True)
    spec = patch(api, {"spec": {"restart": "always", "autostart": True, "protect": True, "ttl_s": 60}}).json["spec"]
    assert (spec["restart"], spec["autostart"], spec["protect"], spec["ttl_s"]) == ("always", True, True, 60)


def test_null_gives_a_field_its_default_back(api):
    make_vm(api, ttl_s=60, restart="always")
    spec = patch(api, {"spec": {"ttl_s": None, "restart": None}}).json["spec"]
    assert (spec["ttl_s"], spec["restart"]) == (None, "never")


def test_size_changes_while_the_vm_does_not_run(api):
    make_vm(api, vcpus=1, memory_mb=128, disk_gb=1)
    spec = patch(api, {"spec": {"vcpus": 4, "memory_mb": 256, "disk_gb": 2}}).json["spec"]
    assert (spec["vcpus"], spec["memory_mb"], spec["disk_gb"]) == (4, 256, 2)


@pytest.mark.parametrize("field, value", [("vcpus", 4), ("memory_mb", 999), ("disk_gb", 50)])
@pytest.mark.parametrize("state", ["running", "suspended"])
def test_size_does_not_change_while_the_vm_runs(api, field, value, state):
    make_vm(api, start=True, disk_gb=10)
    if state == "suspended":
        do(api, "suspend")
    before = get_vm(api)
    answer = patch(api, {"spec": {field: value}})
    assert (answer.status, answer.code) == (409, "vm::invalid_state")
    assert get_vm(api) == before


def test_disk_does_not_become_smaller(api):
    make_vm(api, disk_gb=10)
    answer = patch(api, {"spec": {"disk_gb": 9}})
    assert answer.code == "api::invalid_field" and answer.context["pointer"] == "/spec/disk_gb"


def test_spec_change_counts_the_generation(api):
    before = make_vm(api)
    after = patch(api, {"spec": {"vcpus": 7}}).json
    assert after["generation"] == before["generation"] + 1 and after["revision"] > before["revision"]


def test_patch_makes_an_event(api):
    make_vm(api)
    since = settled(api)
    vm = patch(api, {"labels": {"a": "b"}}).json
    with api.events(since=since) as stream:
        assert stream.next().data["vm_id"] == vm["id"]


def test_refused_patch_changes_nothing(api):
    before = make_vm(api, labels={"a": "1"})
    assert patch(api, {"labels": {"a": "2"}, "spec": {"vcpus": 0}}).code == "api::invalid_field"
    assert get_vm(api) == before


@pytest.mark.parametrize("body, pointer", [
    ({"spec": {"vcpus": 0}}, "/spec/vcpus"),
    ({"spec": {"vcpus": "2"}}, "/spec/vcpus"),
    ({"spec": {"image": "/x"}}, "/spec/image"),
    ({"spec": {"machine": "microvm"}}, "/spec/machine"),
    ({"spec": {"nonsense": 1}}, "/spec/nonsense"),
    ({"name": "other"}, "/name"),
    ({"state": "running"}, "/state"),
    ({"id": "x"}, "/id"),
    ({"labels": {"a": 1}}, "/labels/a"),
    ({"labels": {"": "x"}}, "/labels/"),
    ({"labels": {"a": "x" * 129}}, "/labels/a"),
    ({"labels": [1]}, "/labels"),
    ({"spec": []}, "/spec"),
])
def test_bad_patch_is_refused_with_its_pointer(api, body, pointer):
    make_vm(api)
    answer = patch(api, body)
    assert (answer.status, answer.code) == (422, "api::invalid_field")
    assert answer.context["pointer"] == pointer


def test_more_than_64_labels_are_refused(api):
    make_vm(api, labels={f"l{n}": "x" for n in range(64)})
    assert patch(api, {"labels": {"one-more": "x"}}).code == "api::invalid_field"
    assert patch(api, {"labels": {"one-more": "x", "l0": None}}).status == 200


def test_both_media_types_are_taken_and_others_are_not(api):
    make_vm(api)
    body = json.dumps({"labels": {"a": "b"}}).encode()
    for media in ("application/json", "application/merge-patch+json", "Application/Merge-Patch+JSON; charset=utf-8"):
        assert api.request("PATCH", "/v1/vms/web", body=body, headers={"Content-Type": media}).status == 200
    answer = api.request("PATCH", "/v1/vms/web", body=body, headers={"Content-Type": "application/json-patch+json"})
    assert answer.code == "api::unsupported_media_type"
    assert "-H" in answer.json["help"] and "application/merge-patch+json" in answer.json["help"]


def test_unknown_and_destroyed_vms_are_not_patched(api):
    vm = make_vm(api)
    destroy(api)
    assert patch(api, {"labels": {}}).code == "vm::not_found"
    assert api.patch(f"/v1/vms/{vm['id']}", {"labels": {}}).code == "lifecycle::destroyed"


def test_size_does_not_change_under_an_operation(api):
    make_vm(api, labels={"noop.delay_ms.spawn": "20000"})
    begin(api, "start")
    answer = patch(api, {"spec": {"vcpus": 3}})
    assert answer.code in ("vm::busy", "vm::invalid_state"), answer


@pytest.mark.parametrize("body", [{}, {"labels": {}}, {"labels": {"a": "1", "b": None}}, {"spec": {"vcpus": 2}}, {"spec": {"ttl_s": None}}])
def test_patch_that_changes_nothing_counts_nothing(api, body):
    before = make_vm(api, labels={"a": "1"}, vcpus=2)
    newest = api.get("/v1/vms").json["as_of_event"]
    assert patch(api, body).json == before
    assert get_vm(api) == before
    assert api.get("/v1/vms").json["as_of_event"] == newest
