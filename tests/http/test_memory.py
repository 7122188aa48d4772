"""host::insufficient_memory: a start is refused before it begins, whoever asks for it."""
import os

import pytest

from lib.vms import eventually, get_vm, make_vm

# No host has so much beyond what it keeps.
FULL = "memory_reserve_mb = 1000000000\n"


@pytest.fixture
def full(daemons):
    return daemons(config=FULL)


def make(api, start=False, **spec):
    return api.post("/v1/vms", {"name": "web", "backend": "qemu", "start": start,
                                "spec": {"boot": {"kernel": "/bin/true"}, "memory_mb": 64, **spec}}, prefer_wait=60)


def test_start_without_memory_is_refused_before_it_begins(full):
    api = full.client()
    assert make(api).status == 200
    answer = api.post("/v1/vms/web/start", prefer_wait=60)
    assert (answer.status, answer.code) == (507, "host::insufficient_memory")
    assert answer.json["retryable"] is True
    context = answer.context
    assert context["needed_mb"] > 64 and context["reserved_mb"] == 1000000000 and context["promised_mb"] == 0
    assert 0 < context["available_mb"] < 1000000000 and context["limited_by"] in ("host", "cgroup")
    assert str(context["needed_mb"]) in answer.json["detail"] and str(context["available_mb"]) in answer.json["detail"]
    assert get_vm(api)["state"] == "prepared"
    assert [item["kind"] for item in api.get("/v1/operations").json["items"]] == ["vm.create"]


def test_create_that_is_to_start_leaves_nothing_behind(full):
    api = full.client()
    answer = make(api, start=True)
    assert (answer.status, answer.code) == (507, "host::insufficient_memory")
    assert api.get("/v1/vms").json["items"] == [] and api.get("/v1/operations").json["items"] == []
    assert make(api).status == 200


def test_noop_vm_needs_no_memory(full):
    assert make_vm(full.client(), "noop", start=True, memory_mb=1 << 30)["state"] == "running"


def test_autostart_without_memory_is_told_and_the_row_goes_on(full):
    api = full.client()
    assert make(api, autostart=True).status == 200
    make_vm(api, "z", autostart=True)
    full.stop()
    with open(os.path.join(full.data_dir, "boot_id"), "w", encoding="utf-8") as file:
        file.write("another boot of the host\n")
    full.start()
    api = full.client()
    eventually(lambda: get_vm(api, "z")["state"], lambda state: state == "running")
    with api.events(since=0, type="vm.autostart_failed") as stream:
        event = next(iter(stream.until(lambda e: e.type == "vm.autostart_failed")))
    assert event.data["vm_name"] == "web" and event.data["data"]["code"] == "vm_manager::host::insufficient_memory"
    assert get_vm(api)["state"] == "prepared"
