"""The condition cloud_init, as a guest's files tell it. The small guest has no cloud-init: its seed's commands write the files."""
import json

import pytest

from e2e.guest import PATIENCE, booted, condition, deaf, direct, in_guest, make
from lib.vms import eventually, get_vm


def seed(*commands):
    return {"user_data": "#cloud-config\n" + json.dumps({"runcmd": ["mkdir -p /run/cloud-init", *commands]})}


def settled(api, *reasons):
    return eventually(lambda: condition(get_vm(api), "cloud_init"), lambda c: c["reason"] in reasons, PATIENCE)


def test_a_guest_without_cloud_init_is_told(api):
    booted(api, **direct(cloud_init={"hostname": "web"}))
    found = settled(api, "absent")
    assert found["status"] is False and "no cloud-init" in found["message"]


OK = json.dumps({"v1": {"datasource": "DataSourceNoCloud", "errors": []}})
BAD = json.dumps({"v1": {"datasource": "DataSourceNoCloud", "errors": ["(runcmd, exit 7)"]}})


@pytest.mark.parametrize("commands, reason, message", [
    ([f"echo '{OK}' >/run/cloud-init/result.json"], "done", ""),
    ([f"echo '{BAD}' >/run/cloud-init/result.json"], "error", "(runcmd, exit 7)"),
    (["touch /run/cloud-init/disabled"], "disabled", "disabled"),
    (["head -c 100000 /dev/zero >/run/cloud-init/result.json"], "unreadable", "32 KiB"),
    (["mkdir /run/cloud-init/result.json"], "unreadable", ""),
], ids=["done", "error", "disabled", "giant", "directory"])
def test_what_cloud_init_wrote_is_told(api, commands, reason, message):
    make(api, start=True, **direct(cloud_init=seed(*commands)))
    found = settled(api, reason)
    assert found["status"] is (reason == "done")
    assert message in found["message"] if message else True


def test_cloud_init_that_runs_is_told_with_its_stage_and_ends(api):
    running = json.dumps({"v1": {"stage": "modules-final"}})
    make(api, start=True, **direct(cloud_init=seed(f"echo '{running}' >/run/cloud-init/status.json", "while [ ! -e /run/go ]; do sleep 0.1; done",
                                                   f"echo '{OK}' >/run/cloud-init/result.json")))
    assert settled(api, "running")["message"] == "at stage modules-final"
    in_guest(api, "touch /run/go")
    assert settled(api, "done")["status"] is True


def test_no_result_in_time_is_told(daemons):
    api = daemons(config="cloud_init_timeout_s = 2\n").client()
    make(api, start=True, **deaf(cloud_init={"hostname": "web"}))
    late = settled(api, "timed_out")
    assert late["status"] is False
    assert late["message"] == "no result within 2 s; the guest agent does not answer"


def test_user_data_that_cloud_init_passes_over_is_told(api):
    booted(api, **direct(cloud_init={"user_data": "users: []\n"}))
    in_guest(api, f"mkdir -p /run/cloud-init; echo '{OK}' >/run/cloud-init/result.json")
    found = settled(api, "done")
    assert found["status"] is True and "user_data was ignored" in found["message"]
