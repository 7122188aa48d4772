"""What is learnt of a guest: its addresses and the condition `ip`, and how cloud-init ended, as the condition `cloud_init`."""
import pytest

from lib.vms import begin, do, get_vm, make_vm, set_labels

SEED = {"cloud_init": {"hostname": "web"}}


def condition(vm, kind):
    return next((c for c in vm["conditions"] if c["type"] == kind), None)


def wait(api, *conditions, timeout=60):
    return api.get("/v1/vms/web/wait", query=[("for", c) for c in conditions] + [("timeout", timeout)])


def test_addresses_come_with_source_and_age(api):
    vm = make_vm(api, start=True, labels={"noop.ip": "192.0.2.7,2001:db8::7", "noop.ip_source": "lease"})
    first, second = vm["runtime"]["addresses"]
    assert (first["ip"], first["source"], second["ip"]) == ("192.0.2.7", "lease", "2001:db8::7")
    assert first["seen_at"] >= vm["created_at"]
    ip = condition(vm, "ip")
    assert (ip["status"], ip["reason"], ip["message"]) == (True, "lease", "192.0.2.7")
    assert wait(api, "ip").json["met"] is True


@pytest.mark.parametrize("verb, reason", [("stop", "stopped"), ("kill", "stopped"), ("reset", None)])
def test_addresses_go_with_the_run(api, verb, reason):
    make_vm(api, start=True, labels={"noop.ip": "192.0.2.7"}, **SEED)
    set_labels(api, "web", {"noop.ip": None, "noop.agent": "false"})
    do(api, verb)
    vm = get_vm(api)
    assert vm["runtime"]["addresses"] == []
    assert (condition(vm, "ip")["status"], condition(vm, "ip")["reason"]) == (False, reason or "booting")
    assert (condition(vm, "cloud_init")["status"], condition(vm, "cloud_init")["reason"]) == (False, reason or "booting")


def test_an_address_without_a_network_is_not_waited_for_in_the_list(api):
    vm = make_vm(api, start=True, network={"type": "none"})
    assert condition(vm, "ip") is None and condition(vm, "cloud_init") is None


def test_addresses_survive_the_daemon(vmmd, api):
    before = make_vm(api, start=True, labels={"noop.ip": "192.0.2.7", "noop.ip_source": "neighbour"}, **SEED)
    set_labels(api, "web", {"noop.agent": "false"})
    vmmd.kill9()
    vmmd.start()
    after = get_vm(api)
    assert after["runtime"]["addresses"] == before["runtime"]["addresses"]
    for kind in ("ip", "cloud_init"):
        assert condition(after, kind) == condition(before, kind)


def test_a_condition_that_changes_is_an_event(api):
    make_vm(api, labels={"noop.ip": "192.0.2.7", "noop.cloud_init": "error:('runcmd', 'exit 7')"}, **SEED)
    since = api.get("/v1/vms").json["as_of_event"]
    do(api, "start")
    with api.events(since=since, type="vm.condition_changed") as stream:
        told = [e.data["data"] for e in stream.until(lambda e: e.data["data"]["type"] == "ready")]
    assert {"type": "ip", "status": True, "reason": "agent", "message": "192.0.2.7"} in told
    assert {"type": "cloud_init", "status": False, "reason": "error", "message": "('runcmd', 'exit 7')"} in told


def test_cloud_init_is_waited_for(api):
    make_vm(api, labels={"noop.delay_ms.verify": "300"}, **SEED)
    begin(api, "start")
    answer = wait(api, "cloud_init", "state:running")
    assert answer.status == 200, answer
    assert condition(answer.json["vm"], "cloud_init")["reason"] == "done"


def test_a_wait_that_times_out_tells_what_failed(api):
    make_vm(api, start=True, labels={"noop.cloud_init": "error:('runcmd', 'exit 7')"}, **SEED)
    answer = wait(api, "cloud_init", timeout=1)
    assert (answer.status, answer.code) == (504, "wait::timed_out")
    assert answer.context["waited_for"] == "cloud_init"
    assert answer.json["causes"] == ["error: ('runcmd', 'exit 7')"]


def test_what_failed_is_told_after_the_end(api):
    make_vm(api, start=True, labels={"noop.cloud_init": "error:('runcmd', 'exit 7')"}, **SEED)
    do(api, "kill")
    failed = condition(get_vm(api), "cloud_init")
    assert (failed["status"], failed["reason"], failed["message"]) == (False, "stopped", "('runcmd', 'exit 7')")
    assert wait(api, "cloud_init").code == "wait::impossible"


def test_vmctl_shows_addresses_and_conditions(vmmd, api):
    make_vm(api, start=True, labels={"noop.ip": "192.0.2.7", "noop.cloud_init": "timed_out:no result within 600 s"}, **SEED)
    status = vmmd.vmctl("status", "web").stdout
    assert "Address:     192.0.2.7 (agent, seen 2" in status
    assert "Condition:   ip yes (agent): 192.0.2.7" in status
    assert "Condition:   cloud_init no (timed_out): no result within 600 s" in status
    row = dict(zip(*[line.split() for line in vmmd.vmctl("list").stdout.splitlines()]))
    assert row["IP"] == "192.0.2.7"
    assert vmmd.vmctl("wait", "web", "--for", "ip").returncode == 0
    late = vmmd.vmctl("wait", "web", "--for", "cloud_init", "--timeout", "1")
    assert late.returncode == 6 and "no result within 600 s" in late.stderr


NETWORK = "version: 2\nethernets: {id0: {match: {name: e*}, dhcp4: true}}\n"


@pytest.mark.parametrize("text", [NETWORK, "# mine\n---\n" + NETWORK, '{"version": 2}', "--- {version: 2}", '"network":\n  version: 1\n'])
def test_network_config_passes_as_it_is(api, text):
    vm = make_vm(api, cloud_init={"network_config": text})
    assert vm["spec"]["cloud_init"]["network_config"] == text


@pytest.mark.parametrize("text", ["", "# nothing\n", "- a\n- list\n", "[1]", "just words", "http://192.0.2.1/x", "{unclosed", "#!/bin/sh\nexit\n"])
def test_network_config_that_is_no_mapping_is_refused(api, text):
    answer = api.post("/v1/vms", {"name": "web", "backend": "noop", "spec": {"cloud_init": {"network_config": text}}})
    assert (answer.status, answer.code) == (422, "api::invalid_field")
    assert answer.context["pointer"] == "/spec/cloud_init/network_config" and "mapping" in answer.context["expected"]


@pytest.mark.parametrize("field", ["user_data", "vendor_data", "network_config"])
def test_seed_documents_have_a_size(api, field):
    body = {"name": "web", "backend": "noop", "spec": {"cloud_init": {field: "a: " + "x" * 524286}}}
    answer = api.post("/v1/vms", body)
    assert (answer.status, answer.context["pointer"]) == (422, f"/spec/cloud_init/{field}")
    body["spec"]["cloud_init"][field] = "a: " + "x" * 524285
    assert api.post("/v1/vms", body, prefer_wait=60).status == 200
