"""GET /metrics in the Prometheus text format."""
import re

from lib.metrics import samples
from lib.vms import make_vm

def test_content_type_is_prometheus(shared_api):
    assert shared_api.get("/metrics").headers["Content-Type"].startswith("text/plain; version=0.0.4")


def test_every_line_is_a_sample_or_a_comment_and_every_name_is_typed(shared_api):
    text = shared_api.get("/metrics").text
    assert text.endswith("\n")
    typed = set(re.findall(r"^# TYPE (\S+) (?:counter|gauge|histogram|summary)$", text, re.M))
    helped = set(re.findall(r"^# HELP (\S+) \S", text, re.M))
    for name, _ in samples(shared_api):
        base = re.sub(r"_(bucket|sum|count)$", "", name)
        assert name in typed or base in typed, name
        assert name in helped or base in helped, name
        assert name.startswith(("vmmd_", "process_")), name


def test_vms_are_counted_by_state(api):
    make_vm(api, "a")
    make_vm(api, "b", start=True)
    found = {labels: value for (name, labels), value in samples(api).items() if name == "vmmd_vms"}
    assert sum(found.values()) == 2
    assert [value for labels, value in found.items() if 'state="running"' in labels] == [1]
    assert [value for labels, value in found.items() if 'state="prepared"' in labels] == [1]


def test_requests_are_counted(shared_api):
    def count():
        return sum(value for (name, _), value in samples(shared_api).items() if re.match(r"vmmd_http_requests_total$", name))
    before = count()
    for _ in range(10):
        shared_api.get("/v1/health")
    assert count() >= before + 10


def test_lag_of_the_loop_is_told(shared_api):
    assert any("loop" in name and "lag" in name for name, _ in samples(shared_api))


def test_each_limit_has_its_number_its_use_and_its_refusals(shared_api):
    found = samples(shared_api)
    limits = shared_api.get("/v1/host").json["limits"]
    names = {labels for (name, labels) in found if name == "vmmd_limit"}
    assert names == {labels for (name, labels) in found if name == "vmmd_limit_refused_total"}
    assert names - {'{limit="request_rate"}'} == {labels for (name, labels) in found if name == "vmmd_limit_used"}
    for name in names:
        key = name.split('"')[1]
        key = "rate_limit" if key == "request_rate" else f"max_{key}"
        assert limits[key] == found[("vmmd_limit", name)], key
