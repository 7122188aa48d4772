"""GET /v1/vms/{vm}/logs/… and explain, as far as noop has them. The console itself is tried on the real guest (tests/e2e)."""
import pytest

from lib.vms import destroy, do, in_state, make_vm

LOGS = ["console", "vmm"]


@pytest.mark.parametrize("log", LOGS)
def test_log_has_its_offsets(api, log):
    make_vm(api, start=True)
    answer = api.get(f"/v1/vms/web/logs/{log}")
    assert answer.status == 200
    oldest, following = int(answer.headers["X-Oldest-Offset"]), int(answer.headers["X-Next-Offset"])
    assert following == oldest + len(answer.body)


@pytest.mark.parametrize("log", LOGS)
def test_log_read_on_from_its_end_is_empty(api, log):
    make_vm(api, start=True)
    end = api.get(f"/v1/vms/web/logs/{log}").headers["X-Next-Offset"]
    answer = api.get(f"/v1/vms/web/logs/{log}", query={"from": end})
    assert answer.body == b"" and answer.headers["X-Next-Offset"] == end


@pytest.mark.parametrize("log", LOGS)
def test_log_of_a_vm_that_never_ran_is_empty(api, log):
    make_vm(api)
    answer = api.get(f"/v1/vms/web/logs/{log}")
    assert answer.status == 200 and answer.body == b""


@pytest.mark.parametrize("query", [{"tail": "x"}, {"tail": "-1"}, {"from": "-1"}, {"from": "x"}, {"follow": "perhaps"}])
@pytest.mark.parametrize("log", LOGS)
def test_bad_query_is_refused(api, log, query):
    make_vm(api)
    assert api.get(f"/v1/vms/web/logs/{log}", query=query).code == "api::invalid_field"


@pytest.mark.parametrize("path", ["logs/console", "logs/vmm", "explain", "console", "vnc"])
def test_unknown_and_destroyed_vms_have_no_logs(api, path):
    assert api.get(f"/v1/vms/nobody/{path}").code == "vm::not_found"
    vm = make_vm(api)
    destroy(api)
    assert api.get(f"/v1/vms/{vm['id']}/{path}").code == "lifecycle::destroyed"


@pytest.mark.parametrize("path", ["console", "vnc"])
def test_plain_request_is_no_websocket(api, path):
    make_vm(api, start=True)
    answer = api.get(f"/v1/vms/web/{path}")
    assert answer.code in ("api::bad_request", "backend::not_available"), answer


def test_explain_tells_the_last_transitions_with_their_causes(api):
    make_vm(api)
    for verb in ("start", "suspend", "resume", "stop"):
        do(api, verb)
    explained = api.get("/v1/vms/web/explain").json
    pairs = [(t["from"], t["to"]) for t in explained["transitions"]]
    assert pairs[-4:] == [("prepared", "running"), ("running", "suspended"), ("suspended", "running"), ("running", "stopped")]
    assert all(t["cause"] for t in explained["transitions"])
    assert explained["state"] == "stopped" and explained["operation"]["kind"] == "vm.stop"


def test_explain_of_a_failed_vm_says_why(api):
    in_state(api, "failed")
    explained = api.get("/v1/vms/web/explain").json
    assert explained["state"] == "failed" and explained["failure"]["reason"] == "spawn"
    assert explained["operation"]["state"] == "failed"
