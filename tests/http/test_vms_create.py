"""POST /v1/vms and what it leaves."""
import concurrent.futures
import json
import os
import re
import time

import pytest

from lib.vms import create_body, destroy, ended, get_vm, make_vm

UUID7 = re.compile(r"^[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$")


def test_created_vm_is_prepared(api):
    vm = make_vm(api, "web")
    assert (vm["name"], vm["backend"], vm["state"], vm["generation"]) == ("web", "noop", "prepared", 1)
    assert get_vm(api) == vm


def test_id_is_a_uuid_version_7(api):
    assert UUID7.match(make_vm(api)["id"])


def test_vm_is_found_by_id_and_by_name(api):
    vm = make_vm(api)
    assert get_vm(api, vm["id"]) == get_vm(api, "web") == vm


def test_every_spec_field_has_its_default(api):
    spec = make_vm(api)["spec"]
    assert (spec["image"], spec["boot"]) == (None, None)
    assert (spec["machine"], spec["accel"], spec["uefi"], spec["display"]) == ("q35", "auto", False, "none")
    assert (spec["restart"], spec["autostart"], spec["protect"], spec["ttl_s"]) == ("never", False, False, None)
    assert (spec["vsock"], spec["provision"]) == (False, [])
    assert spec["ssh"] == {"user": "vm", "private_key_path": None}
    assert spec["network"]["type"] == "user"


def test_runtime_of_a_prepared_vm_is_an_object_without_a_process(api):
    runtime = make_vm(api)["runtime"]
    assert runtime["pid"] is None and runtime["started_at"] is None and runtime["addresses"] == []


def test_spec_is_kept_as_given(api):
    given = {
        "image": "/srv/images/debian.qcow2", "vcpus": 3, "memory_mb": 777, "disk_gb": 9, "machine": "microvm", "accel": "tcg",
        "display": "none", "uefi": False, "boot": {"kernel": "/boot/k", "initrd": "/boot/i", "cmdline": "a=b"},
        "network": {"type": "user", "forwards": [{"proto": "udp", "host_ip": "127.0.0.1", "host_port": 0, "guest_port": 53}]},
        "cloud_init": {"hostname": "h", "ssh_authorized_keys": ["ssh-ed25519 AAAA x"], "user_data": "#cloud-config\n",
                       "vendor_data": None, "network_config": None, "instance_id": "i-1"},
        "ssh": {"user": "joe", "private_key_path": "/root/.ssh/id"}, "vsock": False,
        "restart": "on-failure", "autostart": True, "protect": False, "ttl_s": 3600,
    }
    spec = make_vm(api, **given)["spec"]
    for name, value in given.items():
        if name in ("network", "boot", "cloud_init"):
            continue
        assert spec[name] == value, name
    assert spec["boot"] == given["boot"]
    assert spec["cloud_init"] == given["cloud_init"]
    assert spec["network"]["forwards"][0]["guest_port"] == 53 and spec["network"]["forwards"][0]["proto"] == "udp"


def test_provision_steps_are_stored_and_not_run(api):
    steps = [{"type": "shell", "inline": "true"},
             {"type": "file", "content_base64": "aGk=", "destination": "/etc/motd", "mode": "0644"}]
    assert make_vm(api, start=True, provision=steps)["spec"]["provision"] == steps


def test_labels_are_kept(api):
    assert make_vm(api, labels={"app": "shop", "tier": ""})["labels"] == {"app": "shop", "tier": ""}


def test_text_of_every_script_is_kept(api):
    text = "ünï 日本 🎉 \" \\ \n\t"
    assert make_vm(api, labels={"t": text})["labels"]["t"] == text
    assert get_vm(api)["labels"]["t"] == text


def test_backend_defaults_to_qemu(api, tmp_path):
    missing = str(tmp_path / "none.qcow2")
    answer = api.post("/v1/vms", {"name": "web", "spec": {"image": missing}}, prefer_wait=60)
    assert answer.code == "image::not_found", answer


def test_create_with_start_goes_on_to_running(api):
    vm = make_vm(api, start=True)
    assert vm["state"] == "running" and vm["runtime"]["started_at"]


def test_created_without_prefer_answers_202_and_ends_prepared(api):
    answer = api.post("/v1/vms", create_body("web"))
    assert answer.status == 202
    operation = ended(api, answer.json["id"])
    assert (operation["kind"], operation["state"]) == ("vm.create", "succeeded")
    assert operation["result"]["state"] == "prepared"


def test_taken_name_is_refused(api):
    make_vm(api)
    answer = api.post("/v1/vms", create_body("web"), prefer_wait=60)
    assert answer.code == "vm::already_exists"


def test_of_many_creating_one_name_one_wins(api):
    make_vm(api, "warm")
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda _: api.post("/v1/vms", create_body("web"), prefer_wait=60), range(16)))
    assert sorted(a.status for a in answers) == [200] + [409] * 15
    assert len(api.get("/v1/vms").json["items"]) == 2


def test_name_is_free_after_destroy(api):
    first = make_vm(api)
    destroy(api)
    second = make_vm(api)
    assert first["id"] != second["id"]


def test_destroyed_name_is_not_found_and_its_id_is_gone(api):
    vm = make_vm(api)
    destroy(api)
    assert api.get("/v1/vms/web").code == "vm::not_found"
    answer = api.get(f"/v1/vms/{vm['id']}")
    assert (answer.status, answer.code) == (410, "lifecycle::destroyed")


def test_unknown_vm_is_not_found(shared_api):
    assert shared_api.get("/v1/vms/nobody").code == "vm::not_found"
    assert shared_api.get("/v1/vms/0198c0de-0000-7000-8000-000000000000").code == "vm::not_found"


def test_protected_vm_is_not_destroyed_until_the_protection_is_lifted(api):
    make_vm(api, protect=True)
    assert api.delete("/v1/vms/web", prefer_wait=60).code == "vm::protected"
    assert api.patch("/v1/vms/web", {"spec": {"protect": False}}).status == 200
    destroy(api)


@pytest.mark.parametrize("step", ["first", "last"])
def test_failed_create_leaves_nothing(api, vmmd, step):
    probe = api.post("/v1/vms", create_body("probe"), prefer_wait=60).json
    names = [s["name"] for s in probe["steps"]]
    before = sorted(os.listdir(vmmd.data_dir))
    # The step that announces comes after the point of no return: the one before it can fail.
    fail = names[0] if step == "first" else names[-2] if names[-1] == "announce" else names[-1]
    answer = api.post("/v1/vms", create_body("web", labels={"noop.fail": fail}), prefer_wait=60)
    if answer.status == 200:
        pytest.skip(f"step {fail} of create does not meet the backend")
    assert api.get("/v1/vms/web").code == "vm::not_found"
    assert [vm["name"] for vm in api.get("/v1/vms").json["items"]] == ["probe"]
    assert sorted(os.listdir(vmmd.data_dir)) == before
    make_vm(api, "web")


@pytest.mark.parametrize("body, reason", [
    (create_body("web", backend="propolis"), "propolis"),
    (create_body("web", vsock=True), "vsock"),
    (create_body("web", network={"type": "vnic", "name": "vnic0"}), "vnic"),
])
def test_what_is_not_there_is_said_to_be_not_available(shared_api, body, reason):
    answer = shared_api.post("/v1/vms", body, prefer_wait=60)
    assert (answer.status, answer.code) == (501, "backend::not_available"), reason
    assert shared_api.get("/v1/vms/web").status == 404


def qemu_body(**spec):
    return {"name": "q", "backend": "qemu", "spec": spec}


def refused_image(api, path):
    answer = api.post("/v1/vms", qemu_body(image=str(path)), prefer_wait=60)
    assert api.get("/v1/vms/q").status == 404, "a half-made VM stayed"
    return answer


def test_image_that_is_missing_is_not_found(shared_api, tmp_path):
    assert refused_image(shared_api, tmp_path / "none.qcow2").code == "image::not_found"


def test_image_that_is_a_directory_is_unsafe(shared_api, tmp_path):
    assert refused_image(shared_api, tmp_path).code == "image::unsafe"


def test_image_that_is_a_device_is_unsafe(shared_api):
    assert refused_image(shared_api, "/dev/null").code == "image::unsafe"


def test_image_that_is_no_disk_is_not_detected(shared_api, tmp_path):
    path = tmp_path / "text"
    path.write_text("no disk at all\n" * 100)
    assert refused_image(shared_api, path).code == "image::format_detection_failed"


def test_image_with_a_backing_file_is_unsafe(shared_api, tmp_path):
    name = b"/etc/passwd"
    header = b"QFI\xfb" + (2).to_bytes(4, "big") + (112).to_bytes(8, "big") + len(name).to_bytes(4, "big")
    header += (16).to_bytes(4, "big") + (1 << 30).to_bytes(8, "big")
    path = tmp_path / "backed.qcow2"
    path.write_bytes((header.ljust(112, b"\0") + name).ljust(262144, b"\0"))
    assert refused_image(shared_api, path).code == "image::unsafe"


def test_qemu_vm_without_a_boot_source_is_refused(shared_api):
    answer = shared_api.post("/v1/vms", qemu_body(), prefer_wait=60)
    assert answer.code == "api::invalid_field"


def test_microvm_without_boot_is_refused(shared_api, tmp_path):
    answer = shared_api.post("/v1/vms", qemu_body(image=str(tmp_path / "x"), machine="microvm"), prefer_wait=60)
    assert answer.code == "api::invalid_field"


def test_uefi_on_a_microvm_is_refused(shared_api):
    answer = shared_api.post("/v1/vms", qemu_body(boot={"kernel": "/boot/k"}, machine="microvm", uefi=True), prefer_wait=60)
    assert answer.status in (422, 501), answer


def test_bridge_that_does_not_exist_is_named(shared_api):
    body = qemu_body(boot={"kernel": "/bin/true"}, network={"type": "tap", "bridge": "nosuchbr0"})
    body["start"] = True
    answer = shared_api.post("/v1/vms", body, prefer_wait=60)
    assert answer.code == "network::bridge_not_found", answer
    assert "nosuchbr0" in answer.text


def test_memory_beyond_the_host_is_refused_by_qemu_and_taken_by_noop(api):
    body = qemu_body(boot={"kernel": "/bin/true"}, memory_mb=1 << 25)
    answer = api.post("/v1/vms", dict(body, start=True), prefer_wait=60)
    assert answer.code == "host::insufficient_memory", answer
    assert make_vm(api, "big", memory_mb=1 << 31)["spec"]["memory_mb"] == 1 << 31


def test_forward_port_that_is_in_use_is_refused_with_its_holder(api):
    forwards = [{"host_port": 0, "guest_port": 80}]
    vm = make_vm(api, "one", network={"type": "user", "forwards": forwards}, start=True)
    port = vm["spec"]["network"]["forwards"][0]["host_port"]
    if port == 0:
        pytest.skip("noop chooses no port: the qemu tests hold this")
    answer = api.post("/v1/vms", create_body("two", start=True, network={"type": "user", "forwards": [
        {"host_port": port, "guest_port": 80}]}), prefer_wait=60)
    assert answer.code == "network::port_in_use"
    assert "one" in json.dumps(answer.json)


def test_times_are_in_order(api):
    before = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime())
    vm = make_vm(api)
    assert before <= vm["created_at"] <= vm["updated_at"]
