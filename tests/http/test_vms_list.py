"""GET /v1/vms: order, filters, pages."""
import pytest

from lib.vms import do, make_vm, settled
from lib.vmmd import Daemon


@pytest.fixture(scope="module")
def fleet():
    """alpha … echo; a, c, e run; odd ones are labelled."""
    with Daemon() as daemon:
        api = daemon.client()
        for number, name in enumerate(("delta", "alpha", "echo", "charlie", "bravo")):
            make_vm(api, name, labels={"app": "shop" if name < "c" else "bank", "n": str(number)})
        for name in ("alpha", "charlie", "echo"):
            do(api, "start", name)
        yield api


def names(answer):
    assert answer.status == 200, answer
    return [vm["name"] for vm in answer.json["items"]]


def test_empty_list_has_no_items_and_no_cursor(shared_api):
    page = shared_api.get("/v1/vms").json
    assert page["items"] == [] and page["next_cursor"] is None


def test_list_is_sorted_by_name(fleet):
    assert names(fleet.get("/v1/vms")) == ["alpha", "bravo", "charlie", "delta", "echo"]


def test_list_has_the_same_vms_as_their_own_routes(fleet):
    for vm in fleet.get("/v1/vms").json["items"]:
        assert fleet.get(f"/v1/vms/{vm['id']}").json == vm


def test_filter_by_state(fleet):
    assert names(fleet.get("/v1/vms", query={"state": "running"})) == ["alpha", "charlie", "echo"]
    assert names(fleet.get("/v1/vms", query={"state": "suspended"})) == []


def test_filter_by_backend(fleet):
    assert len(names(fleet.get("/v1/vms", query={"backend": "noop"}))) == 5
    assert names(fleet.get("/v1/vms", query={"backend": "qemu"})) == []


def test_filter_by_label(fleet):
    assert names(fleet.get("/v1/vms", query={"label": "app=shop"})) == ["alpha", "bravo"]


def test_repeated_label_filters_must_all_match(fleet):
    assert names(fleet.get("/v1/vms", query=[("label", "app=bank"), ("label", "n=0")])) == ["delta"]
    assert names(fleet.get("/v1/vms", query=[("label", "app=shop"), ("label", "n=0")])) == []


@pytest.mark.parametrize("glob, found", [
    ("alpha", ["alpha"]), ("*a", ["alpha", "delta"]), ("?cho", ["echo"]), ("*", ["alpha", "bravo", "charlie", "delta", "echo"]),
    ("z*", []), ("*r*", ["bravo", "charlie"]),
])
def test_filter_by_name_glob(fleet, glob, found):
    assert names(fleet.get("/v1/vms", query={"name": glob})) == found


def test_filters_together_narrow_the_list(fleet):
    assert names(fleet.get("/v1/vms", query={"state": "running", "label": "app=bank", "name": "e*"})) == ["echo"]


def test_pages_join_to_the_whole_list(fleet):
    seen, cursor = [], None
    for _ in range(5):
        page = fleet.get("/v1/vms", query={"limit": 2, **({"cursor": cursor} if cursor else {})})
        seen += names(page)
        assert len(page.json["items"]) <= 2
        cursor = page.json["next_cursor"]
        if cursor is None:
            break
    assert seen == ["alpha", "bravo", "charlie", "delta", "echo"]


def test_pages_keep_the_filter(fleet):
    page = fleet.get("/v1/vms", query={"limit": 2, "state": "running"})
    rest = fleet.get("/v1/vms", query={"limit": 2, "state": "running", "cursor": page.json["next_cursor"]})
    assert names(page) + names(rest) == ["alpha", "charlie", "echo"]
    assert rest.json["next_cursor"] is None


def test_page_that_ends_with_the_list_has_no_cursor(fleet):
    assert fleet.get("/v1/vms", query={"limit": 5}).json["next_cursor"] is None


def test_cursor_survives_changes_between_pages(api):
    for name in ("a", "b", "d"):
        make_vm(api, name)
    cursor = api.get("/v1/vms", query={"limit": 2}).json["next_cursor"]
    make_vm(api, "c")
    api.delete("/v1/vms/b", prefer_wait=60)
    assert names(api.get("/v1/vms", query={"limit": 2, "cursor": cursor})) == ["c", "d"]


@pytest.mark.parametrize("query", [
    {"limit": 0}, {"limit": 1001}, {"limit": -1}, {"limit": "ten"}, {"limit": ""}, {"limit": 10 ** 30}, {"cursor": "!nonsense!"},
    {"state": "sleeping"}, {"label": "no-equals-sign"}, {"backend": "xen"},
])
def test_bad_query_is_refused(shared_api, query):
    assert shared_api.get("/v1/vms", query=query).code == "api::invalid_field"


def test_as_of_event_follows_changes_and_leads_into_the_event_stream(api):
    before = api.get("/v1/vms").json["as_of_event"]
    make_vm(api)
    settled(api)
    page = api.get("/v1/vms").json
    assert page["as_of_event"] > before
    with api.events(since=page["as_of_event"]) as stream:
        assert stream.silent(0.3), "an event that the list had seen came again"
        do(api, "start")
        assert stream.next().id == page["as_of_event"] + 1


def test_head_of_the_list_has_headers_and_no_body(fleet):
    answer = fleet.head("/v1/vms")
    assert answer.status == 200 and answer.body == b""
    assert int(answer.headers["Content-Length"]) == len(fleet.get("/v1/vms").body)
