"""restart, autostart, ttl_s and protect: what the daemon does by itself."""
import os
import time

import pytest

from lib.vms import destroy, do, eventually, get_vm, make_vm, settled


def ends(api, how, **labels):
    """Lets the running noop VM's process end."""
    api.patch("/v1/vms/web", {"labels": {"noop.exit": how, "noop.exit_after_ms": "1", **labels}})
    do(api, "suspend")  # the label is seen at the next step
    eventually(lambda: get_vm(api)["state"], lambda state: state in ("failed", "stopped"))
    api.patch("/v1/vms/web", {"labels": {"noop.exit": None}})


@pytest.mark.parametrize("policy, how, again", [
    ("never", "killed:9", False), ("on-failure", "killed:9", True), ("always", "killed:9", True),
    ("on-failure", "panic", True), ("on-failure", "guest-off", False), ("always", "guest-off", True),
])
def test_vm_that_ended_is_started_again_as_its_policy_says(api, policy, how, again):
    make_vm(api, start=True, restart=policy)
    ends(api, how)
    if again:
        eventually(lambda: get_vm(api)["state"], lambda state: state == "running")
    else:
        time.sleep(1.8)
        assert get_vm(api)["state"] in ("failed", "stopped")


@pytest.mark.parametrize("verb", ["stop", "kill"])
def test_stop_by_hand_wins_over_the_policy(api, verb):
    make_vm(api, start=True, restart="always")
    do(api, verb)
    time.sleep(1.8)
    assert get_vm(api)["state"] == "stopped"


def test_wait_for_running_is_possible_while_a_restart_waits(api):
    make_vm(api, start=True, restart="on-failure")
    ends(api, "killed:9")
    assert api.get("/v1/vms/web/wait", query={"for": "state:running", "timeout": 20}).status == 200


def test_destroy_takes_a_waiting_restart_back(api):
    make_vm(api, start=True, restart="always")
    ends(api, "killed:9")
    destroy(api)
    time.sleep(1.5)
    assert api.get("/v1/vms").json["items"] == []


def test_restart_is_announced(api):
    make_vm(api, start=True, restart="on-failure")
    since = settled(api)
    ends(api, "killed:9")
    with api.events(since=since, type="vm.restart_scheduled") as stream:
        event = next(iter(stream.until(lambda e: e.type == "vm.restart_scheduled")))
    assert event.data["data"] == {"delay_ms": 1000, "restart": 1}


def test_vm_is_destroyed_when_its_time_is_over(api):
    vm = make_vm(api, start=True, ttl_s=1)
    eventually(lambda: api.get("/v1/vms/web").status, lambda status: status == 404)
    assert api.get(f"/v1/vms/{vm['id']}").status == 410


def test_protected_vm_outlives_its_time(api):
    make_vm(api, ttl_s=1, protect=True)
    time.sleep(2.2)
    assert get_vm(api)["state"] == "prepared"
    api.patch("/v1/vms/web", {"spec": {"protect": False}})
    eventually(lambda: api.get("/v1/vms/web").status, lambda status: status == 404)


def test_autostart_starts_with_the_host_and_not_with_the_daemon(vmmd, api):
    make_vm(api, "one", autostart=True)
    make_vm(api, "two")
    vmmd.restart()
    time.sleep(0.7)
    assert get_vm(vmmd.client(), "one")["state"] == "prepared"
    vmmd.stop()
    with open(os.path.join(vmmd.data_dir, "boot_id"), "w") as file:
        file.write("another boot of the host\n")
    vmmd.start()
    api = vmmd.client()
    eventually(lambda: get_vm(api, "one")["state"], lambda state: state == "running")
    assert get_vm(api, "two")["state"] == "prepared"


def test_destroy_that_fails_is_not_tried_again_at_once(api):
    make_vm(api, ttl_s=1, labels={"noop.fail": "vm.destroy:remove"})
    time.sleep(4)
    kinds = [item["kind"] for item in api.get("/v1/operations").json["items"]]
    assert kinds.count("vm.destroy") == 1
    api.patch("/v1/vms/web", {"labels": {"noop.fail": None}})
