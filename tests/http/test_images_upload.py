"""Images that a client sends: streamed, held back, refused in the midst."""
import gzip
import itertools
import os

import pytest

from lib.images import DISK, PATIENCE, files, raw_disk, sha256, until
from lib.vmmd import SLOW
from lib.vms import eventually


def put(api, body, name="disk", query=None, prefer_wait=PATIENCE, **headers):
    return api.request("PUT", f"/v1/images/{name}", body=body, query=query, prefer_wait=prefer_wait, headers=headers)


def test_upload(vmmd):
    api = vmmd.client()
    answer = put(api, DISK, query={"sha256": sha256(DISK)})
    assert answer.status == 200 and answer.json["kind"] == "image.upload", answer
    image = answer.json["result"]
    assert (image["url"], image["sha256"], image["sha256_verified"], image["format"]) == (None, sha256(DISK), True, "raw")
    with open(image["path"], "rb") as file:
        assert file.read() == DISK
    until(lambda: files(vmmd) == [os.path.basename(image["path"])])


def test_upload_is_accepted_when_it_is_whole(vmmd):
    api = vmmd.client()
    answer = put(api, DISK, prefer_wait=None)
    assert answer.status == 202 and answer.headers["Location"] == f"/v1/operations/{answer.json['id']}"
    assert api.get(f"/v1/operations/{answer.json['id']}", headers={"Prefer": "wait=60"}).json["state"] == "succeeded"


def test_more_than_a_body_may_have_elsewhere(vmmd):
    """And more than any buffer on the way."""
    big = raw_disk(24 << 20, seed=7)
    assert put(vmmd.client(), big).json["result"]["sha256"] == sha256(big)


def test_memory_does_not_grow(vmmd):
    def resident():
        with open(f"/proc/{vmmd.pid}/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * 4096
    api = vmmd.client()
    put(api, raw_disk(4 << 20), name="first")
    before = resident()
    chunks = (b"10000\r\n" + b"%8d" % i * 8192 + b"\r\n" for i in range(2000))
    answer = put(api, itertools.chain(chunks, [b"0\r\n\r\n"]), query={"format": "raw"}, **{"Transfer-Encoding": "chunked"})
    assert answer.status == 200 and answer.json["result"]["size_bytes"] == 2000 * 65536, answer
    assert "VMMD_SANITIZED" in os.environ or resident() - before < 16 << 20, "of 125 MiB; sanitizers keep what is freed"


def test_packed_upload(vmmd):
    assert put(vmmd.client(), gzip.compress(DISK)).json["result"]["packing"] == "gzip"


def test_wrong_digest(vmmd):
    answer = put(vmmd.client(), DISK, query={"sha256": "0" * 64})
    assert answer.status == 422 and answer.code == "image::checksum_mismatch"
    until(lambda: files(vmmd) == [])


def test_hostile_upload(vmmd, tmp_path):
    text = '# Disk DescriptorFile\nversion=1\nCID=1\nparentCID=ffffffff\ncreateType="monolithicFlat"\nRW 56 FLAT "/etc/shadow" 0\n'.ljust(1024)
    assert put(vmmd.client(), text.encode()).code == "image::unsafe"


@pytest.mark.parametrize("name, query, pointer", [
    ("Bad", {}, "/name"), ("prune.", {}, "/name"), ("x", {"sha256": "1"}, "/sha256"), ("x", {"format": "iso"}, "/format"),
])
def test_bad_requests(shared_vmmd, name, query, pointer):
    answer = put(shared_vmmd.client(), b"x" * 512, name=name, query=query)
    assert answer.status == 422 and answer.context["pointer"] == pointer


def test_a_name_that_is_taken_is_refused_before_the_body(vmmd):
    api = vmmd.client()
    put(api, DISK)
    head = b"PUT /v1/images/disk HTTP/1.1\r\nHost: vmmd\r\nContent-Length: 1000000000\r\nExpect: 100-continue\r\n\r\n"
    answer = api.raw_response(head)
    assert answer.status == 409 and answer.code == "image::already_exists"
    assert put(api, DISK).code == "image::already_exists"


def test_announced_too_large_is_refused_in_the_midst(daemons):
    vmmd = daemons(config="max_image_gb = 1\n")
    head = b"PUT /v1/images/disk HTTP/1.1\r\nHost: vmmd\r\nContent-Length: %d\r\n\r\n" % (3 << 30)
    answer = vmmd.client().raw_response(head + bytes(65536))
    assert answer.status == 422 and answer.code == "image::unsafe"
    until(lambda: files(vmmd) == [])


def started(vmmd, sent=300000, length=1000000):
    """An upload of which a part was sent."""
    sock = vmmd.client().connect()
    sock.sendall(b"PUT /v1/images/disk HTTP/1.1\r\nHost: vmmd\r\nContent-Length: %d\r\n\r\n" % length + DISK[:sent])
    until(lambda: vmmd.client().get("/v1/images/disk").status == 200)
    return sock


def test_client_that_leaves_cancels_it(vmmd):
    sock = started(vmmd)
    sock.close()
    until(lambda: vmmd.client().get("/v1/images/disk").status == 404)
    until(lambda: files(vmmd) == [])
    kind, state = eventually(lambda: [vmmd.client().get("/v1/operations").json["items"][0][key] for key in ("kind", "state")],
                             lambda found: found[1] != "running")
    assert (kind, state) == ("image.upload", "cancelled")


def test_cancel_is_answered_in_the_midst(vmmd):
    api = vmmd.client()
    sock = started(vmmd)
    operation = api.get("/v1/operations").json["items"][0]
    assert api.delete(f"/v1/operations/{operation['id']}").status == 200
    sock.settimeout(60 * SLOW)
    answer = sock.recv(65536)
    assert answer.startswith(b"HTTP/1.1 409 ") and b"operation::cancelled" in answer
    sock.close()
    until(lambda: files(vmmd) == [])


def test_stop_in_the_midst(daemons):
    vmmd = daemons(config="shutdown_grace_s = 3600\n")  # which an upload has not: it stops at once
    sock = started(vmmd)
    vmmd.stop()
    sock.close()
    vmmd.start()
    assert vmmd.client().get("/v1/images").json["items"] == []
    assert files(vmmd) in ([], [name for name in files(vmmd) if name.endswith((".part", ".note"))])


def test_kill_9_in_the_midst(vmmd):
    sock = started(vmmd)
    vmmd.kill9()
    sock.close()
    vmmd.start()
    api = vmmd.client()
    assert api.get("/v1/images").json["items"] == []
    assert api.get("/v1/operations").json["items"][0]["error"]["code"].endswith("operation::interrupted")


def test_empty_body(vmmd):
    assert put(vmmd.client(), b"").code == "image::format_detection_failed"


def test_slow_client_harms_nobody(vmmd):
    sock = started(vmmd)
    assert vmmd.client().get("/v1/images").status == 200
    sock.sendall(DISK[300000:1000000 - 1])
    sock.sendall(b"x")
    sock.settimeout(60 * SLOW)
    assert sock.recv(65536).startswith(b"HTTP/1.1 202 ")
    sock.close()
