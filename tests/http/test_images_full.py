"""Images and a full disk: what does not fit is refused before it is written, the reserve stays, and nothing is left of what filled it."""
import gzip
import os

import pytest

from lib.images import DISK, PATIENCE, files, pull, pulled, qemu_img, raw_disk, refused, until
from lib.smalldisk import small_daemon
from lib.vms import create_body
from lib.webserver import Server

MIB = 1 << 20
RESERVE = 16 * MIB // 50


@pytest.fixture
def small():
    with small_daemon("16m") as made:
        yield made


@pytest.fixture
def web():
    with Server({"disk.raw": DISK, "big.raw": raw_disk(6 * MIB, seed=3)}) as server:
        yield server


def full(answer):
    assert (answer.status, answer.code) == (507, "host::disk_full"), answer
    return answer


def assert_emptied(daemon, disk, before):
    """Nothing stays of it, not to be gone on with either: it would be what fills the disk."""
    until(lambda: files(daemon) == [] and disk.free() > before - MIB)


def test_pull_with_a_known_length_leaves_the_reserve(small, web):
    daemon, disk = small
    disk.leave((6 * MIB + RESERVE // 2) // 1024)
    before = disk.free()
    answer = refused(daemon, pull(daemon.client(), web.url("big.raw"), "x"), 507, "host::disk_full")
    assert "kept or promised" in answer.json["detail"]
    assert_emptied(daemon, disk, before)
    disk.make_room()
    assert pulled(daemon.client(), web.url("big.raw"), "x")["state"] == "ready"


def test_pull_that_grows_as_it_is_unpacked_ends_at_the_reserve(small, web):
    daemon, disk = small
    noise = os.urandom(4096)
    web.files["big"] = gzip.compress(b"".join(noise + i.to_bytes(4, "big") * 8 for i in range(2000)), 9)
    disk.leave(5 * 1024)
    before = disk.free()
    answer = refused(daemon, pull(daemon.client(), web.url("big"), "x", format="raw"), 507, "host::disk_full")
    assert "but for its reserve" in answer.json["detail"] and len(web.files["big"]) < MIB
    assert int(answer.json["detail"].split(" after ")[1].split()[0]) < before - RESERVE
    assert_emptied(daemon, disk, before)


def test_pull_of_no_known_length_ends_at_the_reserve(small, web):
    daemon, disk = small
    web.rules["/endless"] = web.chunked(os.urandom(65536) for _ in range(400))
    answer = refused(daemon, pull(daemon.client(), web.url("endless"), "x"), 507, "host::disk_full")
    assert "but for its reserve" in answer.json["detail"]
    assert_emptied(daemon, disk, 15 * MIB)


def test_pull_is_refused_at_once_when_there_is_no_room_for_its_row(small, web):
    daemon, disk = small
    api = daemon.client()
    disk.leave(300)
    answer = full(api.post("/v1/images", {"name": "x", "url": web.url("disk.raw")}, headers={"Idempotency-Key": "one"}))
    assert answer.context["reserved_bytes"] == RESERVE and answer.context["path"] == daemon.data_dir
    assert web.seen == [] and api.get("/v1/operations").json["items"] == [] and api.get("/v1/images").json["items"] == []
    disk.make_room()
    answer = api.post("/v1/images", {"name": "x", "url": web.url("disk.raw")}, headers={"Idempotency-Key": "one"}, prefer_wait=PATIENCE)
    assert answer.status == 200 and "Idempotency-Replayed" not in answer.headers


def test_upload_that_cannot_fit_is_refused_before_its_body(small):
    daemon, _ = small
    api = daemon.client()
    head = b"PUT /v1/images/disk HTTP/1.1\r\nHost: vmmd\r\nContent-Length: %d\r\n\r\n" % (20 * MIB)
    answer = full(api.raw_response(head))
    assert answer.context["needed_bytes"] >= 20 * MIB
    assert files(daemon) == [] and api.get("/v1/operations").json["items"] == []
    assert api.get("/v1/images/disk").status == 404


def test_what_an_upload_will_need_is_promised_to_it(small):
    daemon, _ = small
    api = daemon.client()
    sock = api.connect()
    sock.sendall(b"PUT /v1/images/disk HTTP/1.1\r\nHost: vmmd\r\nContent-Length: %d\r\n\r\n" % (10 * MIB) + DISK)
    until(lambda: any(os.stat(os.path.join(daemon.data_dir, "images", name)).st_size >= MIB for name in files(daemon)))
    head = b"PUT /v1/images/two HTTP/1.1\r\nHost: vmmd\r\nContent-Length: %d\r\n\r\n" % (8 * MIB)
    assert full(api.raw_response(head)).context["reserved_bytes"] > RESERVE + 8 * MIB
    sock.close()
    until(lambda: files(daemon) == [])
    until(lambda: api.post("/v1/vms", create_body("web"), prefer_wait=PATIENCE).status in (200, 409))
    answer = api.request("PUT", "/v1/images/two", body=raw_disk(8 * MIB, seed=4), prefer_wait=PATIENCE)
    assert answer.status == 200, answer


def test_upload_that_fills_the_disk_is_refused_in_the_midst(small):
    daemon, _ = small
    chunks = b"100000\r\n" + os.urandom(MIB) + b"\r\n"
    answer = full(daemon.client().raw_response(
        b"PUT /v1/images/disk?format=raw HTTP/1.1\r\nHost: vmmd\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks * 30))
    assert "but for its reserve" in answer.json["detail"]
    until(lambda: files(daemon) == [])


def test_convert_needs_room_for_another(small, web):
    daemon, disk = small
    api = daemon.client()
    image = pulled(api, web.url("big.raw"), "disk")
    disk.leave(4 * 1024)
    for body in ({"format": "qcow2"}, {"format": "qcow2", "name": "two"}):
        answer = full(api.post("/v1/images/disk/convert", body, prefer_wait=PATIENCE))
        assert answer.context["needed_bytes"] >= 5 * MIB
        assert api.get("/v1/images/disk").json == image and api.get("/v1/images/two").status == 404
        until(lambda: files(daemon) == [os.path.basename(image["path"])])
    disk.make_room()
    assert api.post("/v1/images/disk/convert", {"format": "qcow2"}, prefer_wait=PATIENCE).status == 200


def test_pull_that_is_to_be_converted_needs_room_for_both(small, web, tmp_path):
    daemon, disk = small
    (tmp_path / "big.raw").write_bytes(web.files["big.raw"])
    qemu_img("convert", "-f", "raw", "-O", "vmdk", str(tmp_path / "big.raw"), str(tmp_path / "big.vmdk"))
    web.files["big.vmdk"] = (tmp_path / "big.vmdk").read_bytes()
    disk.leave(9 * 1024)
    before = disk.free()
    answer = refused(daemon, pull(daemon.client(), web.url("big.vmdk"), "x"), 507, "host::disk_full")
    assert answer.context["needed_bytes"] >= 5 * MIB
    assert_emptied(daemon, disk, before)
    disk.make_room()
    assert pulled(daemon.client(), web.url("big.vmdk"), "x")["format"] == "qcow2"


def test_conversion_that_meets_a_full_disk_leaves_the_image(small, web, tmp_path):
    """Compressed clusters take more than they did: only qemu-img finds out."""
    daemon, disk = small
    (tmp_path / "disk.raw").write_bytes((os.urandom(512) * 8192)[:4 * MIB])
    qemu_img("convert", "-c", "-f", "raw", "-O", "qcow2", str(tmp_path / "disk.raw"), str(tmp_path / "disk.qcow2"))
    web.files["disk.qcow2"] = (tmp_path / "disk.qcow2").read_bytes()
    api = daemon.client()
    image = pulled(api, web.url("disk.qcow2"), "disk")
    disk.leave(2 * 1024)
    full(api.post("/v1/images/disk/convert", {"format": "raw"}, prefer_wait=PATIENCE))
    assert api.get("/v1/images/disk").json == image
    until(lambda: files(daemon) == [os.path.basename(image["path"])] and disk.free() > MIB)
