"""Bad input gets a problem document with its own code, and leaves nothing behind."""
import json
import socket
import threading
import time

import pytest

from lib.vms import create_body, eventually, make_vm
from lib.vmmd import Daemon

JSON = {"Content-Type": "application/json"}


@pytest.fixture(scope="module")
def server():
    """One daemon for all of this file; whatever came in, it must live on and hold no VM."""
    with Daemon() as daemon:
        yield daemon
        assert daemon.running(), daemon.log()
        assert daemon.client().get("/v1/vms").json["items"] == []


@pytest.fixture
def api(server):
    client = server.client()
    yield client
    assert server.running(), server.log()


def send(api, body, headers=None):
    return api.post("/v1/vms", body=body, headers={**JSON, **(headers or {})})


@pytest.mark.parametrize("body, line, column", [
    (b"{", 1, None),
    (b"nonsense", 1, None),
    (b'{"name":"web",}', 1, None),
    (b"{'name':'web'}", 1, None),
    (b'{"name":"web"} {}', 1, None),
    (b'{\n  "name": "web",\n  "backend": noop\n}', 3, None),
    (b'{\n"name":"web"', 2, None),
    (b'{"labels":NaN}', 1, None),
    (b'{"spec":{"vcpus":01}}', 1, None),
    (b"// comment\n{}", 1, None),
    (b"   ", 1, None),
])
def test_what_is_no_json_is_told_with_line_and_column(api, body, line, column):
    answer = send(api, body)
    assert (answer.status, answer.code) == (400, "api::invalid_json")
    assert answer.context["line"] == line
    assert answer.context["column"] >= 0


@pytest.mark.parametrize("body", [
    b'{"name":"web","name":"web2"}',
    b'{"name":"web","spec":{"vcpus":1,"vcpus":2}}',
    b'{"name":"web\\u0000x"}',
    b'{"name":"web","labels":{"a\\u0000b":"x"}}',
    b'{"name":"web","labels":{"a":"x\\u0000"}}',
    b'{"name":"w\0b"}',
    b'{"name":"\xff\xfe"}',
    b'{"name":"\xc0\xaf"}',
    b'{"name":"\xed\xa0\x80"}',
    b'{"name":"\\ud800"}',
    b'{"spec":{"vcpus":18446744073709551616}}',
    b'{"spec":{"vcpus":-9223372036854775809}}',
    b'{"spec":{"memory_mb":1' + b"0" * 30 + b"}}",
    b"[" * 100000,
    b'{"a":' * 5000 + b"1" + b"}" * 5000,
    b"[" * 300 + b"]" * 300,
    "{}".encode("utf-16"),
])
def test_json_that_is_not_to_be_trusted_is_refused(api, body):
    answer = send(api, body)
    assert (answer.status, answer.code) == (400, "api::invalid_json")
    assert "line" in answer.context and "column" in answer.context


@pytest.mark.parametrize("body", [b"[]", b'"web"', b"1", b"null", b"true"])
def test_json_that_is_no_object_is_an_invalid_field(api, body):
    answer = send(api, body)
    assert (answer.status, answer.code) == (422, "api::invalid_field")


@pytest.mark.parametrize("body, pointer, nearest", [
    ({"name": "web", "spec": {"vcpu": 1}}, "/spec/vcpu", "vcpus"),
    ({"name": "web", "spec": {"memory": 1}}, "/spec/memory", "memory_mb"),
    ({"nmae": "web"}, "/nmae", "name"),
    ({"name": "web", "spec": {"network": {"type": "user", "forward": []}}}, "/spec/network/forward", "forwards"),
    ({"name": "web", "spec": {"cloud_init": {"host_name": "x"}}}, "/spec/cloud_init/host_name", "hostname"),
    ({"name": "web", "spec": {"ssh": {"usr": "x"}}}, "/spec/ssh/usr", "user"),
    ({"name": "web", "spec": {"boot": {"kernel": "/k", "initrdd": "/i"}}}, "/spec/boot/initrdd", "initrd"),
])
def test_unknown_field_is_told_with_pointer_and_nearest(api, body, pointer, nearest):
    answer = api.post("/v1/vms", dict(body, backend="noop"))
    assert (answer.status, answer.code) == (422, "api::invalid_field")
    assert (answer.context["pointer"], answer.context["nearest"]) == (pointer, nearest)


def test_field_unlike_any_other_has_no_nearest(api):
    answer = api.post("/v1/vms", {"name": "web", "backend": "noop", "qqqqqqqqqqqqqqqq": 1})
    assert answer.code == "api::invalid_field" and not answer.context.get("nearest")


def test_pointer_escapes_tilde_and_slash(api):
    answer = api.post("/v1/vms", {"name": "web", "backend": "noop", "a/b~c": 1})
    assert answer.context["pointer"] == "/a~1b~0c"


@pytest.mark.parametrize("length", range(40, 70))
def test_long_field_names_of_any_script_are_told_in_utf_8(api, length):
    answer = api.post("/v1/vms", {"name": "web", "backend": "noop", "x" * length + "é" * 300: 1})
    assert answer.code == "api::invalid_field" and "x" * 40 in answer.context["pointer"]


@pytest.mark.parametrize("shift", range(3))
def test_long_paths_of_any_script_are_told_in_utf_8(api, shift):
    answer = api.get("/v1/" + "x" * shift + "%E2%82%AC" * 500)
    assert (answer.status, answer.code) == (404, "api::not_found")
    answer = api.get("/v1/vms/" + "x" * shift + "%E2%82%AC" * 500)
    assert (answer.status, answer.code) == (404, "vm::not_found")


@pytest.mark.parametrize("pointer, value", [
    ("/spec/vcpus", 0), ("/spec/vcpus", -1), ("/spec/vcpus", 256), ("/spec/vcpus", 65537), ("/spec/vcpus", 4294967297),
    ("/spec/vcpus", 1.5), ("/spec/vcpus", "2"), ("/spec/vcpus", True), ("/spec/vcpus", [1]),
    ("/spec/vcpus", 9223372036854775807), ("/spec/vcpus", 1e3),
    ("/spec/memory_mb", 0), ("/spec/memory_mb", 15), ("/spec/memory_mb", -1), ("/spec/memory_mb", "1G"),
    ("/spec/memory_mb", 9223372036854775807), ("/spec/memory_mb", 4294967296 + 16),
    ("/spec/disk_gb", 0), ("/spec/disk_gb", -5), ("/spec/disk_gb", 9223372036854775807), ("/spec/disk_gb", {}),
    ("/spec/machine", "pc"), ("/spec/machine", 1), ("/spec/machine", "Q35"), ("/spec/accel", "xen"), ("/spec/display", "gtk"),
    ("/spec/uefi", "yes"), ("/spec/uefi", 1), ("/spec/vsock", "no"), ("/spec/restart", "sometimes"),
    ("/spec/autostart", 0), ("/spec/protect", "true"),
    ("/spec/ttl_s", 0), ("/spec/ttl_s", -1), ("/spec/ttl_s", "1h"), ("/spec/ttl_s", 9223372036854775807),
    ("/spec/image", 1), ("/spec/image", "dir/relative.qcow2"), ("/spec/image", "/a/../b"), ("/spec/image", ""), ("/spec/image", "/" + "x" * 5000),
    ("/spec/boot", "kernel"), ("/spec/boot/kernel", 1), ("/spec/boot/kernel", "relative"), ("/spec/boot/initrd", "relative"),
    ("/spec/boot/cmdline", "x" * 5000),
    ("/spec/network", "user"), ("/spec/network/type", "bridge"), ("/spec/network/bridge", 1),
    ("/spec/network/forwards", {}), ("/spec/cloud_init", []), ("/spec/cloud_init/hostname", 1),
    ("/spec/cloud_init/ssh_authorized_keys", "key"), ("/spec/cloud_init/ssh_authorized_keys", [1]),
    ("/spec/ssh", "vm"), ("/spec/ssh/user", ""), ("/spec/ssh/user", "root; rm -rf /"), ("/spec/provision", {}),
    ("/spec/provision/0", "x"), ("/spec/provision/0/type", "magic"),
    ("/spec", []), ("/spec", "x"), ("/labels", []), ("/labels/a", 1), ("/labels/a", None), ("/labels/a", "x" * 129),
    ("/start", "yes"), ("/start", 1), ("/backend", "xen"), ("/backend", 1),
])
def test_value_of_wrong_type_or_range_is_refused_with_its_pointer(api, pointer, value):
    body = {"name": "web", "backend": "noop"}
    parts = pointer.strip("/").split("/")
    if parts[:2] == ["spec", "network"]:
        body["spec"] = {"network": {"type": "user"}}
    if parts[:2] == ["spec", "boot"]:
        body["spec"] = {"boot": {"kernel": "/k"}}
    if "0" in parts:
        body["spec"] = {"provision": [{} if parts[-1] == "type" else None]}
    node = body
    for part in parts[:-1]:
        node = node[0] if part == "0" else node.setdefault(part, {})
    if parts[-1] == "0":
        node[0] = value
    else:
        node[parts[-1]] = value
    answer = api.post("/v1/vms", body)
    assert (answer.status, answer.code) == (422, "api::invalid_field"), answer
    assert answer.context["pointer"] == pointer
    assert answer.context["expected"]


@pytest.mark.parametrize("forward, field", [
    ({"guest_port": 0}, "guest_port"), ({"guest_port": 65536}, "guest_port"), ({"guest_port": "80"}, "guest_port"),
    ({"guest_port": 80, "host_port": -1}, "host_port"), ({"guest_port": 80, "host_port": 65536}, "host_port"),
    ({"guest_port": 80, "proto": "sctp"}, "proto"), ({"guest_port": 80, "host_ip": "0.0.0.0"}, "host_ip"),
    ({"guest_port": 80, "host_ip": "nonsense"}, "host_ip"), ({"guest_port": 80, "nonsense": 1}, "nonsense"),
])
def test_bad_forward_is_refused_with_its_pointer(api, forward, field):
    answer = api.post("/v1/vms", create_body("web", network={"type": "user", "forwards": [forward]}))
    assert answer.code == "api::invalid_field", answer
    assert answer.context["pointer"] == f"/spec/network/forwards/0/{field}"


@pytest.mark.parametrize("bridge", ["a/b", "..", "x" * 16, "", "br 0", "br,id=x"])
def test_bridge_that_is_no_interface_name_is_refused(api, bridge):
    answer = api.post("/v1/vms", create_body("web", network={"type": "tap", "bridge": bridge}))
    assert answer.code == "api::invalid_field" and answer.context["pointer"] == "/spec/network/bridge"


def test_tap_without_a_bridge_is_refused(api):
    assert api.post("/v1/vms", create_body("web", network={"type": "tap"})).code == "api::invalid_field"


@pytest.mark.parametrize("name", [
    "", "a/b", "..", ".", "a,b", "a" * 64, "Web", "-web", "web-", "we b", "wéb", "web\n", "a_b", "web%00", "💻", "a.b", 1, None, [],
])
def test_bad_name_is_refused(api, name):
    answer = api.post("/v1/vms", {"name": name, "backend": "noop"})
    assert (answer.status, answer.code) == (422, "api::invalid_field")
    assert answer.context["pointer"] == "/name"


def test_missing_name_is_refused(api):
    answer = api.post("/v1/vms", {"backend": "noop"})
    assert answer.code == "api::invalid_field" and answer.context["pointer"] == "/name"


def test_longest_names_are_taken(api):
    for name in ("a", "0", "a" * 63, "a-" * 31 + "z"):
        make_vm(api, name)
        api.delete(f"/v1/vms/{name}", prefer_wait=60)


@pytest.mark.parametrize("labels", [
    {f"l{n}": "x" for n in range(65)}, {"": "x"}, {"k" * 129: "x"}, {"a=b": "x"},
])
def test_labels_beyond_their_bounds_are_refused(api, labels):
    assert api.post("/v1/vms", create_body("web", labels=labels)).code == "api::invalid_field"


def test_field_of_a_verb_that_it_has_not_is_refused(api):
    make_vm(api, "verb")
    answer = api.post("/v1/vms/verb/start", {"force": True})
    assert answer.code == "api::invalid_field" and answer.context["pointer"] == "/force"
    for timeout in (-1, "5", 10 ** 9, 1.5):
        answer = api.post("/v1/vms/verb/stop", {"timeout_s": timeout})
        assert answer.code == "api::invalid_field" and answer.context["pointer"] == "/timeout_s"
    api.delete("/v1/vms/verb", prefer_wait=60)


@pytest.mark.parametrize("media", ["text/plain", "application/x-www-form-urlencoded", "application/jsonx", "text/json", ""])
def test_other_media_types_are_refused_with_the_right_flag_in_the_help(api, media):
    answer = api.post("/v1/vms", body=b'{"name":"web","backend":"noop"}', headers={"Content-Type": media})
    assert (answer.status, answer.code) == (415, "api::unsupported_media_type")
    assert "-H" in answer.json["help"] and "application/json" in answer.json["help"]


def test_body_without_a_media_type_is_refused(api):
    assert api.post("/v1/vms", body=b'{"name":"web","backend":"noop"}').code == "api::unsupported_media_type"


def test_media_type_may_have_parameters(api):
    answer = api.post("/v1/vms", body=b'{"name":"media","backend":"noop"}', prefer_wait=60,
                      headers={"Content-Type": "Application/JSON ; charset=UTF-8"})
    assert answer.status == 200
    api.delete("/v1/vms/media", prefer_wait=60)


def test_post_without_a_body_is_an_empty_object(api):
    make_vm(api, "empty")
    assert api.post("/v1/vms/empty/start", prefer_wait=60).status == 200
    assert api.post("/v1/vms/empty/kill", body=b"", headers=JSON, prefer_wait=60).status == 200
    api.delete("/v1/vms/empty", prefer_wait=60)
    assert api.post("/v1/vms").code == "api::invalid_field"


def test_body_of_2_mib_is_too_large(api):
    answer = send(api, json.dumps(create_body("web", labels={"a": "x" * (2 << 20)})).encode())
    assert (answer.status, answer.code) == (413, "api::body_too_large")


def test_body_that_is_too_large_by_chunks_is_refused(api):
    chunk = b"10000\r\n" + b" " * 65536 + b"\r\n"
    answer = api.raw_response(b"POST /v1/vms HTTP/1.1\r\nHost: vmmd\r\nContent-Type: application/json\r\n"
                              b"Transfer-Encoding: chunked\r\n\r\n" + chunk * 32 + b"0\r\n\r\n")
    assert answer is None or answer.status == 413


def test_body_just_below_the_bound_is_read(api):
    body = b'{"name":"bound","backend":"noop"}'
    answer = api.post("/v1/vms", body=body + b" " * (1048576 - len(body)), headers=JSON, prefer_wait=60)
    assert answer.status == 200, answer
    api.delete("/v1/vms/bound", prefer_wait=60)


def test_chunked_body_is_read(api):
    body = b'{"name":"chunky","backend":"noop"}'
    raw = b"".join(b"%x\r\n%s\r\n" % (len(body[i:i + 7]), body[i:i + 7]) for i in range(0, len(body), 7)) + b"0\r\n\r\n"
    answer = api.raw_response(b"POST /v1/vms HTTP/1.1\r\nHost: vmmd\r\nContent-Type: application/json\r\nPrefer: wait=60\r\n"
                              b"Transfer-Encoding: chunked\r\n\r\n" + raw)
    assert answer.status == 200
    api.delete("/v1/vms/chunky", prefer_wait=60)


@pytest.mark.parametrize("path", ["/", "/v1", "/v1/", "/v1/nonsense", "/v1/vms/", "/v1/vms/web/nonsense", "/v2/vms", "/v1//vms",
                                  "/v1/vms/web/start/again", "/v1/pools", "/v1/imagines", "/v1/snapshots/x", "/v1/leases/x",
                                  "/v1/host/leaks/x", "/v1/vms/web/logs/provisions"])
def test_unknown_route_is_not_found(api, path):
    answer = api.get(path)
    assert (answer.status, answer.code) == (404, "api::not_found")


@pytest.mark.parametrize("method, path", [
    ("PUT", "/v1/vms"), ("DELETE", "/v1/vms"), ("POST", "/v1/vms/web"), ("GET", "/v1/vms/web/start"), ("PATCH", "/v1/health"),
    ("POST", "/metrics"), ("PUT", "/v1/operations/x"), ("POST", "/v1/events"), ("DELETE", "/v1/vms/web/wait"),
    ("OPTIONS", "/v1/vms"), ("TRACE", "/v1/vms"), ("BREW", "/v1/vms"), ("get", "/v1/vms"),
])
def test_other_method_is_refused_with_allow(api, method, path):
    answer = api.request(method, path, check=method.isupper())
    assert (answer.status, answer.code) == (405, "api::method_not_allowed")
    assert answer.headers["Allow"]


def test_head_works_wherever_get_does(api):
    make_vm(api, "head")
    for path in ("/v1/health", "/v1/version", "/v1/host", "/v1/errors", "/v1/vms", "/v1/vms/head", "/v1/operations", "/metrics",
                 "/v1/openapi.yaml", "/v1/vms/head/explain", "/v1/vms/head/wait?for=state:prepared"):
        answer = api.head(path)
        assert answer.status == 200 and answer.body == b"", path
    assert api.head("/v1/vms/nobody").status == 404
    api.delete("/v1/vms/head", prefer_wait=60)


def alive(api):
    assert api.get("/v1/health").status == 200


def test_ten_thousand_headers_are_refused(api):
    headers = b"".join(b"X-%d: %d\r\n" % (n, n) for n in range(10000))
    answer = api.raw_response(b"GET /v1/health HTTP/1.1\r\nHost: vmmd\r\n" + headers + b"\r\n")
    assert answer is None or answer.status == 431
    alive(api)


def test_endless_request_line_is_refused(api):
    answer = api.raw_response(b"GET /" + b"x" * 200000 + b" HTTP/1.1\r\nHost: vmmd\r\n\r\n")
    assert answer is None or answer.status in (414, 431)
    alive(api)


@pytest.mark.parametrize("garbage", [
    b"\r\n" * 10, b"\0" * 1000, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"x" * 500, b"GET\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"GET /v1/health HTTP/1.1\r\nHost\r\n\r\n", b"GET /v1/health HTTP/1.1\r\n: x\r\n\r\n",
    b"\xff" * 5000, b"GET /v1/health HTTP/1.1\r\n\r\n",
])
def test_garbage_gets_no_answer_of_success(api, garbage):
    received = api.raw(garbage, timeout=1, half_close=True)
    assert b" 200 " not in received.split(b"\r\n", 1)[0]
    alive(api)


@pytest.mark.parametrize("path", ["/v1/vms/%00", "/v1/vms/web%00", "/v1/vms?name=a%00b", "/v1/vms?name=%ff%fe", "/v1/vms/%c0%af"])
def test_nul_and_broken_utf8_in_the_url_are_refused(api, path):
    answer = api.get(path, check=False)
    assert answer.status in (400, 404), answer
    assert answer.status == 400 or "%00" not in path
    alive(api)


@pytest.mark.parametrize("path", ["/v1/vms/..", "/v1/vms/../health", "/v1/vms/%2e%2e", "/v1/vms/a%2fb", "/v1/vms/%2e%2e%2fhealth",
                                  "/v1/vms/..%2f..%2fetc%2fpasswd", "/v1/vms/" + "x" * 300])
def test_odd_vm_names_in_the_path_are_not_found(api, path):
    answer = api.get(path, check=False)
    assert answer.status in (404, 400), answer
    alive(api)


def test_client_of_one_byte_a_second_is_let_go(api):
    sock = api.connect()
    sock.settimeout(1)
    begun = time.monotonic()
    closed = False
    try:
        for byte in b"GET /v1/health HTTP/1.1\r\nHost: vmmd\r\nX-Slow: " + b"x" * 100:
            sock.sendall(bytes([byte]))
            try:
                sock.recv(4096)  # its end, or a page that says why
                closed = True
                break
            except socket.timeout:
                pass
            if time.monotonic() - begun > 100:
                break
    except (BrokenPipeError, ConnectionResetError):
        closed = True
    finally:
        sock.close()
    assert closed, "it still listens after 100 s"
    alive(api)


def test_slow_client_does_not_slow_others(api):
    slow = [api.connect() for _ in range(20)]
    for sock in slow:
        sock.sendall(b"POST /v1/vms HTTP/1.1\r\nHost: vmmd\r\nContent-Length: 1000\r\n\r\n{")
    begun = time.monotonic()
    for _ in range(50):
        alive(api)
    assert time.monotonic() - begun < 25, "they waited until the slow ones were let go"
    for sock in slow:
        sock.close()


def test_client_that_leaves_in_the_middle_of_its_body_leaves_no_vm(api):
    body = json.dumps(create_body("half")).encode()
    for cut in (1, len(body) // 2, len(body) - 1):
        sock = api.connect()
        sock.sendall(b"POST /v1/vms HTTP/1.1\r\nHost: vmmd\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body)
                     + body[:cut])
        sock.close()
    time.sleep(0.3)
    assert api.get("/v1/vms/half").status == 404


def test_client_that_leaves_before_the_answer_loses_nothing(api):
    body = json.dumps(create_body("left", labels={"noop.delay_ms.persist": "200"})).encode()
    sock = api.connect()
    sock.sendall(b"POST /v1/vms HTTP/1.1\r\nHost: vmmd\r\nContent-Type: application/json\r\nPrefer: wait=60\r\n"
                 b"Content-Length: %d\r\n\r\n" % len(body) + body)
    eventually(lambda: api.get("/v1/vms/left"), lambda answer: answer.status == 200)
    sock.close()
    eventually(lambda: api.get("/v1/vms/left"), lambda answer: answer.status == 200 and answer.json["state"] == "prepared")
    api.delete("/v1/vms/left", prefer_wait=60)


def test_client_that_does_not_read_is_no_burden(api):
    sock = api.connect()
    sock.sendall(b"GET /v1/errors HTTP/1.1\r\nHost: vmmd\r\n\r\n" * 500)
    alive(api)
    sock.close()


def test_pipelined_requests_are_all_answered(api):
    received = api.raw(b"GET /v1/health HTTP/1.1\r\nHost: vmmd\r\n\r\n" * 3
                       + b"GET /v1/health HTTP/1.1\r\nHost: vmmd\r\nConnection: close\r\n\r\n", timeout=60)
    assert received.count(b"HTTP/1.1 200") == 4


def test_many_clients_at_once_are_served(api):
    results = []

    def ask():
        results.append(all(api.get("/v1/vms").status == 200 for _ in range(20)))
    threads = [threading.Thread(target=ask) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [True] * 20
