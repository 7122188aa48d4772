"""GET /v1/events: order, replay, filters."""
import pytest

from lib.vms import do, eventually, make_vm, settled


def newest(api):
    return api.get("/v1/vms").json["as_of_event"]


def state_changes(events):
    return [(e.data["data"]["from"], e.data["data"]["to"]) for e in events if e.type == "vm.state_changed"]


def to_state(state):
    return lambda e: e.type == "vm.state_changed" and e.data["data"]["to"] == state


def test_events_of_a_life_come_in_order(api):
    make_vm(api)
    for verb in ("start", "suspend", "resume", "stop"):
        do(api, verb)
    with api.events(since=0) as stream:
        events = stream.until(to_state("stopped"))
    assert [pair for pair in state_changes(events) if pair[0] not in (None, "preparing")] == [
        ("prepared", "running"), ("running", "suspended"), ("suspended", "running"), ("running", "stopped")]


def test_ids_rise_by_one(api):
    make_vm(api, start=True)
    with api.events(since=0) as stream:
        ids = [event.id for event in stream.until(to_state("running"))]
    assert ids == list(range(ids[0], ids[0] + len(ids)))


def test_state_change_says_from_to_and_cause(api):
    vm = make_vm(api)
    since = newest(api)
    operation = do(api, "start").json
    with api.events(since=since) as stream:
        event = stream.until(to_state("running"))[-1]
    assert event.data["vm_id"] == vm["id"] and event.data["vm_name"] == "web"
    assert event.data["operation_id"] == operation["id"]
    assert event.data["data"]["from"] == "prepared" and event.data["data"]["cause"]


def test_live_events_come_without_since(api):
    make_vm(api)
    settled(api)
    with api.events() as stream:
        assert stream.silent(0.3), "events of the past came without since"
        do(api, "start")
        stream.until(to_state("running"))


def test_since_begins_after_that_event(api):
    make_vm(api, start=True)
    with api.events(since=0) as stream:
        all_events = stream.until(to_state("running"))
    middle = all_events[len(all_events) // 2]
    with api.events(since=middle.id) as stream:
        assert stream.next().id == middle.id + 1


def test_last_event_id_is_honoured_before_since(api):
    make_vm(api, start=True)
    last = settled(api)
    with api.events(since=0, headers={"Last-Event-ID": str(last - 1)}) as stream:
        assert stream.next().id == last


def test_past_and_present_join_without_gap_or_repetition(api):
    make_vm(api)
    with api.events(since=0) as stream:
        for _ in range(5):
            do(api, "start")
            do(api, "stop")
        end = settled(api)
        ids = [event.id for event in stream.until(lambda e: e.id >= end)]
    assert ids == list(range(ids[0], end + 1))


def test_filter_by_vm(api):
    one, two = make_vm(api, "one"), make_vm(api, "two")
    for who in ("two", two["id"]):
        with api.events(since=0, vm=who) as stream:
            do(api, "start", "one")
            do(api, "start", "two")
            events = stream.until(to_state("running"))
            assert {event.data["vm_id"] for event in events} == {two["id"]}
        do(api, "stop", "one")
        do(api, "stop", "two")
    assert one["id"] != two["id"]


def test_filter_by_type_glob(api):
    make_vm(api, start=True)
    with api.events(since=0, type="vm.state_*") as stream:
        assert {e.type for e in stream.until(to_state("running"))} == {"vm.state_changed"}
    with api.events(since=0, type="operation.*") as stream:
        assert stream.next().type.startswith("operation.")


def test_every_step_of_an_operation_is_an_event(api):
    make_vm(api)
    since = settled(api)
    operation = do(api, "start").json
    end = settled(api)
    text = ""
    with api.events(since=since) as stream:
        for event in stream.until(lambda e: e.id == end):
            if event.type.startswith("operation."):
                assert event.data["operation_id"] == operation["id"]
            text += str(event.data["data"]) if event.type.startswith("operation.") else ""
    for step in operation["steps"]:
        assert step["name"] in text


def test_events_are_replayed_after_a_restart(api, vmmd):
    make_vm(api, start=True)
    with api.events(since=0) as stream:
        before = [(e.id, e.data) for e in stream.until(to_state("running"))]
    vmmd.restart()
    with api.events(since=0) as stream:
        after = [(e.id, e.data) for e in (stream.next() for _ in before)]
    assert after == before


def test_ids_go_on_after_a_restart(api, vmmd):
    make_vm(api)
    before = settled(api)
    vmmd.restart()
    assert newest(api) >= before
    do(api, "start")
    with api.events(since=before) as stream:
        assert stream.next().id == before + 1


def test_stream_ends_when_the_daemon_stops(api, vmmd):
    with api.events() as stream:
        vmmd.stop()
        assert stream.ended()


def test_stream_is_not_to_be_cached(api):
    with api.events() as stream:
        assert stream.headers["Content-Type"].split(";")[0] == "text/event-stream"
        assert "no-" in stream.headers["Cache-Control"]


@pytest.mark.parametrize("query", [{"since": "x"}, {"since": "-1"}, {"since": str(10 ** 30)}])
def test_bad_since_is_refused(shared_api, query):
    with shared_api.events(**query) as stream:
        assert stream.response.code == "api::invalid_field"


def test_bad_last_event_id_is_refused(shared_api):
    with shared_api.events(headers={"Last-Event-ID": "yesterday"}) as stream:
        assert stream.response.code == "api::invalid_field"


def test_cursor_older_than_what_is_kept_has_expired(daemons):
    vmmd = daemons(config="events_keep = 10\n")
    api = vmmd.client()
    make_vm(api)
    for _ in range(10):
        do(api, "start")
        do(api, "stop")
    vmmd.restart()
    with api.events(since=1) as stream:
        assert (stream.status, stream.response.code) == (410, "events::cursor_expired")
        oldest = stream.response.context["oldest"]
    with api.events(since=oldest) as stream:
        assert stream.next().id == oldest + 1


def test_heartbeat_keeps_a_silent_stream_alive(api):
    with api.events() as stream:
        assert stream.silent(17)
        eventually(lambda: stream.comments, lambda n: n >= 1)


def test_long_replay_comes_whole(api):
    """More than may wait on a connection (1 MiB): it goes as fast as it is read."""
    make_vm(api)
    since = newest(api)
    for _ in range(250):
        do(api, "start")
        do(api, "kill")
    last = newest(api)
    with api.events(since=since) as stream:
        events = stream.until(lambda e: e.id == last, timeout=120)
    assert sum(len(str(e.data)) for e in events) > 1 << 20
    assert [e.id for e in events] == list(range(since + 1, last + 1))
