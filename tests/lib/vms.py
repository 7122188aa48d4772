"""Making noop VMs, and bringing them into a state."""
import time

from lib.vmmd import SLOW

# API: verb -> (states it may come from, state it leads to)
VERBS = {
    "start": ({"prepared", "stopped", "failed"}, "running"),
    "stop": ({"running", "suspended"}, "stopped"),
    "kill": ({"running", "suspended"}, "stopped"),
    "reset": ({"running", "suspended"}, "running"),
    "restart": ({"running", "suspended"}, "running"),
    "suspend": ({"running"}, "suspended"),
    "resume": ({"suspended"}, "running"),
}
STATES = ("prepared", "running", "suspended", "stopped", "failed")


def create_body(name, backend="noop", labels=None, start=False, **spec):
    return {"name": name, "backend": backend, "labels": labels or {}, "start": start, "spec": spec}


def make_vm(api, name="web", backend="noop", labels=None, start=False, **spec):
    """Creates a VM, waits until it is there, and returns it."""
    answer = api.post("/v1/vms", create_body(name, backend, labels, start, **spec), prefer_wait=60)
    assert answer.status == 200, answer
    if start and backend == "noop" and "noop.agent" not in (labels or {}):
        # Its agent's answer is a change of its own: what a test sees after it stands still, unless labels say otherwise.
        api.get(f"/v1/vms/{name}/wait", query={"for": "ready", "timeout": 60})
        return get_vm(api, name)
    return answer.json["result"]


def get_vm(api, name="web"):
    answer = api.get(f"/v1/vms/{name}")
    assert answer.status == 200, answer
    return answer.json


def do(api, verb, name="web", body=None, expect=200, **kw):
    """A verb, waited for. Returns the response."""
    answer = api.post(f"/v1/vms/{name}/{verb}", body, prefer_wait=60, **kw)
    assert answer.status == expect, answer
    return answer


def begin(api, verb, name="web", **kw):
    """A verb, not waited for. Returns the operation."""
    answer = api.post(f"/v1/vms/{name}/{verb}", **kw)
    assert answer.status == 202, answer
    return answer.json


def destroy(api, name="web", **kw):
    answer = api.delete(f"/v1/vms/{name}", prefer_wait=60, **kw)
    assert answer.status == 200, answer
    return answer


def in_state(api, state, name="web", labels=None):
    """A noop VM in this state."""
    if state == "failed":
        make_vm(api, name, labels={"noop.fail": "spawn"})
        assert api.post(f"/v1/vms/{name}/start", prefer_wait=60).status >= 400
        set_labels(api, name, {"noop.fail": None, **(labels or {})})
    else:
        make_vm(api, name, labels=labels)
        if state != "prepared":
            do(api, "start", name)
            # Its agent's answer is a change of its own: what comes after it stands still.
            assert api.get(f"/v1/vms/{name}/wait", query={"for": "ready", "timeout": 60}).status == 200
        if state == "suspended":
            do(api, "suspend", name)
        if state == "stopped":
            do(api, "stop", name)
    vm = get_vm(api, name)
    assert vm["state"] == state, vm
    return vm


def set_labels(api, name, labels):
    answer = api.patch(f"/v1/vms/{name}", {"labels": labels})
    assert answer.status == 200, answer
    return answer.json


def get_operation(api, op_id):
    answer = api.get(f"/v1/operations/{op_id}")
    assert answer.status == 200, answer
    return answer.json


def ended(api, op_id, timeout=60):
    """The operation once it has ended, by asking again and again."""
    return eventually(lambda: get_operation(api, op_id), lambda op: op["state"] not in ("pending", "running"), timeout)


def settled(api):
    """as_of_event once no more events come, for a while: to begin behind it, or to look back. Who waits for a certain event
    asks the stream for it."""
    newest = api.get("/v1/vms").json["as_of_event"]
    while True:
        time.sleep(0.5)
        now = api.get("/v1/vms").json["as_of_event"]
        if now == newest:
            return now
        newest = now


def eventually(read, holds, timeout=60):
    """read() again and again until holds(value); the value."""
    end = time.monotonic() + timeout * SLOW
    while True:
        value = read()
        if holds(value):
            return value
        assert time.monotonic() < end, f"not in {timeout} s: {str(value)[-2000:]!r}"
        time.sleep(0.02)
