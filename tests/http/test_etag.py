"""ETag and If-Match."""
from lib.vms import destroy, do, get_vm, make_vm


def etag(api):
    return api.get("/v1/vms/web").headers["ETag"]


def patch(api, vcpus, match):
    return api.patch("/v1/vms/web", {"spec": {"vcpus": vcpus}}, headers={"If-Match": match})


def test_etag_is_quoted(api):
    make_vm(api)
    tag = etag(api)
    assert tag.startswith('"') and tag.endswith('"') and len(tag) > 2


def test_etag_stays_while_only_the_state_changes(api):
    make_vm(api)
    before = etag(api)
    do(api, "start")
    assert etag(api) == before


def test_etag_changes_with_the_spec(api):
    make_vm(api)
    before = etag(api)
    answer = patch(api, 3, before)
    assert answer.status == 200 and answer.headers["ETag"] == etag(api) != before


def test_stale_etag_is_refused_on_patch(api):
    make_vm(api)
    stale = etag(api)
    patch(api, 3, stale)
    answer = patch(api, 4, stale)
    assert (answer.status, answer.code) == (412, "api::precondition_failed")
    assert get_vm(api)["spec"]["vcpus"] == 3


def test_stale_etag_is_refused_on_delete(api):
    make_vm(api)
    stale = etag(api)
    patch(api, 3, stale)
    answer = api.delete("/v1/vms/web", headers={"If-Match": stale})
    assert (answer.status, answer.code) == (412, "api::precondition_failed")
    assert get_vm(api)["state"] == "prepared"


def test_current_etag_lets_a_delete_pass(api):
    make_vm(api)
    destroy(api, headers={"If-Match": etag(api)})


def test_star_matches_any(api):
    make_vm(api)
    assert patch(api, 3, "*").status == 200


def test_one_of_a_list_of_etags_is_enough(api):
    make_vm(api)
    assert patch(api, 3, f'"nonsense", {etag(api)}').status == 200


def test_etag_of_nonsense_is_refused(api):
    make_vm(api)
    assert patch(api, 3, "nonsense").code == "api::precondition_failed"
