"""What the tests of restart and autostart share."""
from lib.vms import do, settled


def ends(api, how, name="web"):
    """Lets the running noop VM's process end, once: a restart by policy, which may have begun when this returns, does not."""
    since = settled(api)
    api.patch(f"/v1/vms/{name}", {"labels": {"noop.exit": how, "noop.exit_after_ms": "1", "noop.exit_step": "vm.suspend:suspend"}})
    do(api, "suspend", name)
    with api.events(since=since, type="vm.state_changed") as stream:
        stream.until(lambda e: e.data["vm_name"] == name and e.data["data"]["to"] in ("failed", "stopped"))
    api.patch(f"/v1/vms/{name}", {"labels": {"noop.exit": None, "noop.exit_step": None}})


def told(api, since, *types):
    """The events of these types so far, oldest first."""
    until = settled(api)
    found = []
    with api.events(since=since) as stream:
        for event in stream.until(lambda e: int(e.id) >= until):
            if event.type in types:
                found.append(event.data["data"])
    return found


def explain(api, name="web"):
    answer = api.get(f"/v1/vms/{name}/explain")
    assert answer.status == 200, answer
    return answer.json["restart"]


def starts(api, name="web"):
    items = api.get("/v1/operations").json["items"]
    return sum(item["kind"] == "vm.start" and item["target"]["vm_name"] == name for item in items)
