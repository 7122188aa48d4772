"""What the tests of restart and autostart share."""
from lib.vms import do, settled


def as_of(api):
    return api.get("/v1/vms").json["as_of_event"]


def at_rest(api, since, name="web"):
    """Waits until it is told that the VM failed or stopped; by then a restart may have begun, or be over."""
    with api.events(since=since, type="vm.state_changed") as stream:
        stream.until(lambda e: e.data["vm_name"] == name and e.data["data"]["to"] in ("failed", "stopped"))


def gives_up(api, since):
    """Waits until it is told that nothing is restarted any more."""
    with api.events(since=since, type="vm.restart_given_up") as stream:
        stream.next()


def ends(api, how, name="web"):
    """Lets the running noop VM's process end, once: at a suspend, which the next run does not have."""
    since = as_of(api)
    api.patch(f"/v1/vms/{name}", {"labels": {"noop.exit": how, "noop.exit_after_ms": "1", "noop.exit_step": "vm.suspend:suspend"}})
    do(api, "suspend", name)
    at_rest(api, since, name)
    api.patch(f"/v1/vms/{name}", {"labels": {"noop.exit": None, "noop.exit_after_ms": None, "noop.exit_step": None}})


def told(api, since, kind, least=1):
    """The events of this type so far, oldest first: those that must come, and any behind them."""
    found = []
    with api.events(since=since, type=kind) as stream:
        while len(found) < least:
            found.append(stream.next().data["data"])
        settled(api)
        while not stream.silent(0.3):
            found.append(stream.next().data["data"])
    return found


def explain(api, name="web"):
    answer = api.get(f"/v1/vms/{name}/explain")
    assert answer.status == 200, answer
    return answer.json["restart"]


def starts(api, name="web"):
    items = api.get("/v1/operations").json["items"]
    return sum(item["kind"] == "vm.start" and item["target"]["vm_name"] == name for item in items)
