"""The image cache: pulled by URL, listed, used, removed; and what image servers do wrong."""
import gzip
import lzma
import os
import ssl
import subprocess

import pytest

from lib.images import DISK, PATIENCE, begin, ended, files, pull, pulled, qemu_img, raw_disk, refused, sha256, until
from lib.vms import create_body, destroy, make_vm
from lib.webserver import Server


# Gigabytes, which teach a sanitizer nothing that a megabyte does not.
unless_sanitized = pytest.mark.skipif("VMMD_SANITIZED" in os.environ, reason="gigabytes: by the plain build alone")


@pytest.fixture
def web():
    with Server({"disk.raw": DISK}) as server:
        yield server


# --- as it should be ---

def test_pull_records_the_digest(vmmd, web):
    api = vmmd.client()
    image = pulled(api, web.url("disk.raw"), "disk")
    assert (image["state"], image["format"], image["sha256"], image["sha256_verified"]) == ("ready", "raw", sha256(DISK), False)
    assert image["virtual_size_bytes"] == image["size_bytes"] == len(DISK) and image["used_by"] == []
    with open(image["path"], "rb") as file:
        assert file.read() == DISK
    assert api.get("/v1/images/disk").json == image
    assert os.stat(os.path.dirname(image["path"])).st_mode & 0o077 == 0
    until(lambda: files(vmmd) == [os.path.basename(image["path"])])


def test_pull_verifies_the_digest(vmmd, web):
    image = pulled(vmmd.client(), web.url("disk.raw"), "disk", sha256="sha256:" + sha256(DISK).upper())
    assert image["sha256_verified"] is True and image["sha256"] == sha256(DISK)


def test_wrong_digest(vmmd, web):
    answer = pull(vmmd.client(), web.url("disk.raw"), "x", sha256="0" * 64)
    refused(vmmd, answer, 422, "image::checksum_mismatch")
    assert answer.context == {"expected": "0" * 64, "actual": sha256(DISK)}


def test_name_is_made_of_the_url(vmmd, web):
    web.files["A%20Disk.RAW.gz"] = gzip.compress(DISK)
    assert pulled(vmmd.client(), web.url("A%20Disk.RAW.gz"))["name"] == "a-20disk.raw"


@pytest.mark.parametrize("packing, pack", [
    ("gzip", gzip.compress), ("xz", lzma.compress),
    ("zstd", lambda data: subprocess.run(["zstd", "-q", "-c"], input=data, stdout=subprocess.PIPE, check=True).stdout),
    ("gzip", lambda data: gzip.compress(data[:1000]) + gzip.compress(data[1000:])),
    ("zstd", lambda data: subprocess.run(["zstd", "-q", "-c", "--no-check"], input=data, stdout=subprocess.PIPE, check=True).stdout),
    ("gzip", lambda data: gzip.compress(data) + bytes(512)),
], ids=["gzip", "xz", "zstd", "two gzip streams", "zstd without a checksum", "padded gzip"])
def test_packed(vmmd, web, packing, pack):
    packed = pack(DISK)
    web.files["disk"] = packed
    image = pulled(vmmd.client(), web.url("disk"), "disk", sha256=sha256(packed))
    assert image["packing"] == packing and image["size_bytes"] == len(DISK)
    with open(image["path"], "rb") as file:
        assert file.read() == DISK


@pytest.mark.parametrize("packer", ["zstd -q -c --no-check", "zstd -q -c", "gzip -c", "xz -c"])
def test_packed_and_as_long_as_some_buffers(vmmd, web, packer):
    zeros = DISK[:512] + bytes((4 << 20) - 512)
    web.files["disk"] = subprocess.run(packer.split(), input=zeros, stdout=subprocess.PIPE, check=True).stdout
    assert pulled(vmmd.client(), web.url("disk"), "disk")["size_bytes"] == len(zeros)


@pytest.mark.parametrize("pack", [gzip.compress, lzma.compress], ids=["gzip", "xz"])
def test_packed_and_cut_short(vmmd, web, pack):
    web.files["disk"] = pack(DISK)[:-20]
    answer = refused(vmmd, pull(vmmd.client(), web.url("disk"), "x"), 502, "image::download_failed")
    assert "cut short" in answer.json["detail"]


@pytest.mark.parametrize("pack", [
    gzip.compress, lzma.compress, lambda data: subprocess.run(["zstd", "-q", "-c"], input=data, stdout=subprocess.PIPE, check=True).stdout],
                         ids=["gzip", "xz", "zstd"])
@pytest.mark.parametrize("damage", [lambda packed: packed + b"more of something else", lambda packed: packed[:5000] + bytes(64) + packed[5064:]],
                         ids=["trailing garbage", "zeros in the midst"])
def test_packed_and_damaged(vmmd, web, pack, damage):
    web.files["disk"] = damage(pack(DISK))
    answer = refused(vmmd, pull(vmmd.client(), web.url("disk"), "x"), 502, "image::download_failed")
    assert "damaged" in answer.json["detail"], answer


def test_list_pages_in_order_of_names(vmmd, web):
    api = vmmd.client()
    for name in ("c", "a.1", "b_2"):
        pulled(api, web.url("disk.raw"), name)
    page = api.get("/v1/images", query={"limit": 2}).json
    assert [i["name"] for i in page["items"]] == ["a.1", "b_2"] and page["next_cursor"]
    rest = api.get("/v1/images", query={"limit": 2, "cursor": page["next_cursor"]}).json
    assert [i["name"] for i in rest["items"]] == ["c"] and rest["next_cursor"] is None
    assert [i["name"] for i in api.get("/v1/images", query={"name": "b*"}).json["items"]] == ["b_2"]


def test_delete(vmmd, web):
    api = vmmd.client()
    pulled(api, web.url("disk.raw"), "disk")
    answer = api.delete("/v1/images/disk", prefer_wait=PATIENCE)
    assert answer.status == 200 and answer.json["kind"] == "image.delete"
    assert api.get("/v1/images/disk").code == "image::not_found"
    until(lambda: files(vmmd) == [])
    assert api.delete("/v1/images/disk").code == "image::not_found"


def test_delete_is_accepted_first(vmmd, web):
    api = vmmd.client()
    pulled(api, web.url("disk.raw"), "disk")
    assert ended(api, api.delete("/v1/images/disk").json).json["state"] == "succeeded"


def test_file_url(vmmd, tmp_path):
    (tmp_path / "disk.raw").write_bytes(DISK)
    image = pulled(vmmd.client(), f"file://{tmp_path}/disk.raw", "disk")
    assert image["sha256"] == sha256(DISK)
    (tmp_path / "link.raw").symlink_to(tmp_path / "disk.raw")
    answer = pull(vmmd.client(), f"file://{tmp_path}/link.raw", "x")
    assert answer.status == 422 and answer.code == "image::unsafe"
    answer = pull(vmmd.client(), f"file://{tmp_path}/none.raw", "x")
    assert answer.status == 404 and answer.code == "image::not_found"


def test_survives_a_restart(vmmd, web):
    image = pulled(vmmd.client(), web.url("disk.raw"), "disk")
    vmmd.kill9()
    vmmd.start()
    assert vmmd.client().get("/v1/images/disk").json == image


def test_survives_a_lost_database_while_a_vm_may_stand_on_it(vmmd, web):
    """A VM that no row has may be adopted, and its disk stand on any image."""
    path = pulled(vmmd.client(), web.url("disk.raw"), "disk")["path"]
    stranger = os.path.join(vmmd.data_dir, "vms", "01a21376-9ef4-7006-9c8e-d0fc72a7d639")
    os.makedirs(stranger)
    vmmd.kill9()
    for name in os.listdir(vmmd.data_dir):
        if name.startswith("vmmd.db"):
            os.unlink(os.path.join(vmmd.data_dir, name))
    vmmd.start()
    assert os.path.exists(path)
    vmmd.kill9()
    os.rmdir(stranger)
    vmmd.start()
    until(lambda: not os.path.exists(path))


def test_progress_is_shown_and_told(vmmd, web):
    api = vmmd.client()
    web.rules["/disk.raw"] = web.held(DISK, 600000)
    with api.events() as events:
        operation = begin(api, web.url("disk.raw"), "disk")
        until(lambda: (api.get(f"/v1/operations/{operation['id']}").json["progress"] or {}).get("done", 0) > 0)
        progress = api.get(f"/v1/operations/{operation['id']}").json["progress"]
        assert progress["total"] == len(DISK) and progress["unit"] == "bytes"
        assert api.get("/v1/images/disk").json["state"] == "pulling"
        web.release.set()
        told = [event.type for event in events.until(lambda e: e.type == "operation.finished")]
    assert "operation.progress" in told and "image.created" in told and "image.ready" in told
    assert operation["target"] == {"vm_id": None, "vm_name": None, "image": "disk"}


@pytest.mark.parametrize("body, pointer", [
    ({}, "/url"), ({"url": "ftp://127.0.0.1/x"}, "/url"), ({"url": "gopher://x/"}, "/url"), ({"url": "http://u:p@127.0.0.1/x"}, "/url"),
    ({"url": "file://relative"}, "/url"), ({"url": "oci://host"}, "/url"), ({"url": "http://x/a b"}, "/url"),
    ({"url": "http://127.0.0.1/x", "name": "../x"}, "/name"), ({"url": "http://127.0.0.1/x", "name": "-x"}, "/name"),
    ({"url": "http://127.0.0.1/x", "name": "x" * 64}, "/name"), ({"url": "http://127.0.0.1/x", "sha256": "12"}, "/sha256"),
    ({"url": "http://127.0.0.1/x", "format": "iso"}, "/format"), ({"url": "http://127.0.0.1/x", "sha265": "0" * 64}, "/sha265"),
])
def test_bad_requests(shared_vmmd, body, pointer):
    answer = shared_vmmd.client().post("/v1/images", body)
    assert answer.status == 422 and answer.code == "api::invalid_field" and answer.context["pointer"] == pointer, answer


# --- servers ---

def test_404_page_is_no_image(vmmd, web):
    answer = refused(vmmd, pull(vmmd.client(), web.url("nope"), "x"), 502, "image::download_failed")
    assert answer.context == {"http_status": 404, "url": web.url("nope")}


def test_page_that_says_200_is_no_image(vmmd, web):
    web.files["disk.qcow2"] = b"<!doctype html><title>No such release</title>".ljust(4096)
    refused(vmmd, pull(vmmd.client(), web.url("disk.qcow2"), "x"), 422, "image::format_detection_failed")


def test_nobody_listens(vmmd):
    with Server() as gone:
        url = gone.url("x")
    refused(vmmd, pull(vmmd.client(), url, "x"), 502, "image::download_failed")


def test_short_body(vmmd, web):
    api = vmmd.client()
    web.rules["/disk.raw"] = web.short(DISK, 300000)
    answer = pull(api, web.url("disk.raw"), "x")
    assert answer.status == 502 and answer.code == "image::download_failed" and "early" in answer.json["detail"], answer
    assert api.get("/v1/images/x").status == 404


def test_short_body_is_gone_on_with(vmmd, web):
    api = vmmd.client()
    web.rules["/disk.raw"] = web.short(DISK, 300000)
    assert pull(api, web.url("disk.raw"), "x").status == 502
    del web.rules["/disk.raw"]
    assert pulled(api, web.url("disk.raw"), "x")["sha256"] == sha256(DISK)
    last = web.gets("/disk.raw")[-1]
    begin_at = int(last["Range"].split("=")[1].rstrip("-"))
    assert 0 < begin_at <= 300000 and last["If-Range"] == web.etag(DISK)
    until(lambda: len(files(vmmd)) == 1)


def test_cut_twice_is_gone_on_with_twice(vmmd, web):
    api = vmmd.client()
    web.rules["/disk.raw"] = web.short(DISK, 300000)
    assert pull(api, web.url("disk.raw"), "x").status == 502

    def again(handler):
        begin_at = int(handler.headers["Range"].split("=")[1].rstrip("-"))
        handler.send_response(206)
        handler.send_header("ETag", web.etag(DISK))
        handler.send_header("Content-Range", f"bytes {begin_at}-{len(DISK) - 1}/{len(DISK)}")
        handler.send_header("Content-Length", str(len(DISK) - begin_at))
        handler.end_headers()
        handler.wfile.write(DISK[begin_at:700000])
        handler.close_connection = True
    web.rules["/disk.raw"] = again
    assert pull(api, web.url("disk.raw"), "x").status == 502
    del web.rules["/disk.raw"]
    assert pulled(api, web.url("disk.raw"), "x")["sha256"] == sha256(DISK)
    assert int(web.gets("/disk.raw")[-1]["Range"].split("=")[1].rstrip("-")) > 300000


def test_changed_meanwhile_begins_anew(vmmd, web):
    api, other = vmmd.client(), raw_disk(seed=2)
    web.rules["/disk.raw"] = web.short(DISK, 300000)
    assert pull(api, web.url("disk.raw"), "x").status == 502
    del web.rules["/disk.raw"]
    web.files["disk.raw"] = other
    assert pulled(api, web.url("disk.raw"), "x")["sha256"] == sha256(other)


def test_ranges_ignored_begins_anew(vmmd, web):
    api = vmmd.client()
    web.rules["/disk.raw"] = web.short(DISK, 300000)
    assert pull(api, web.url("disk.raw"), "x").status == 502
    del web.rules["/disk.raw"]
    web.ranges = False
    assert pulled(api, web.url("disk.raw"), "x")["sha256"] == sha256(DISK)


def test_nothing_is_kept_without_a_validator(vmmd, web):
    def rule(handler):
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(DISK)))
        handler.end_headers()
        handler.wfile.write(DISK[:300000])
        handler.close_connection = True
    web.rules["/disk.raw"] = rule
    refused(vmmd, pull(vmmd.client(), web.url("disk.raw"), "x"), 502, "image::download_failed")


def test_another_range_than_asked_for(vmmd, web):
    api = vmmd.client()
    web.rules["/disk.raw"] = web.short(DISK, 300000)
    assert pull(api, web.url("disk.raw"), "x").status == 502
    web.rules["/disk.raw"] = lambda handler: web.answer(handler, 206, DISK[900000:], {"Content-Range": f"bytes 900000-{len(DISK) - 1}/{len(DISK)}"})
    assert pull(api, web.url("disk.raw"), "x").code == "image::download_failed"


def test_stall(daemons, web):
    vmmd = daemons(config="fetch_stall_s = 1\n")
    web.rules["/disk.raw"] = web.held(DISK, 1000)
    answer = pull(vmmd.client(), web.url("disk.raw"), "x")
    assert answer.code == "image::download_failed" and "1 s" in answer.json["detail"], answer


def test_chunked_without_a_length(vmmd, web):
    web.rules["/disk.raw"] = web.chunked([DISK[i:i + 65536] for i in range(0, len(DISK), 65536)])
    assert pulled(vmmd.client(), web.url("disk.raw"), "x")["sha256"] == sha256(DISK)


@unless_sanitized
def test_chunked_without_an_end(daemons, web):
    """A length that is not announced is counted all the same."""
    vmmd = daemons(config="max_image_gb = 1\n")
    web.rules["/disk.raw"] = web.chunked(b"x" * (16 << 20) for _ in range(100))
    refused(vmmd, pull(vmmd.client(), web.url("disk.raw"), "x"), 422, "image::unsafe")


def test_announced_too_large(daemons, web):
    vmmd = daemons(config="max_image_gb = 1\n")

    def rule(handler):
        handler.send_response(200)
        handler.send_header("Content-Length", str(2 << 30))
        handler.end_headers()
        handler.wfile.write(DISK)
    web.rules["/disk.raw"] = rule
    refused(vmmd, pull(vmmd.client(), web.url("disk.raw"), "x"), 422, "image::unsafe")


def test_announced_larger_than_the_disk(vmmd, web):
    def rule(handler):
        handler.send_response(200)
        handler.send_header("Content-Length", str(15 << 40))
        handler.end_headers()
        handler.wfile.write(DISK)
    web.rules["/disk.raw"] = rule
    refused(vmmd, pull(vmmd.client(), web.url("disk.raw"), "x"), 507, "host::disk_full")


BOMB = bytes(1 << 20)


def zstd_bomb():
    return subprocess.run("head -c 3G /dev/zero | zstd -q -c", shell=True, stdout=subprocess.PIPE, check=True).stdout


@pytest.mark.parametrize("packed", [
    lambda: gzip.compress(BOMB * 256), lambda: subprocess.run("head -c 1G /dev/zero | xz -0 -c", shell=True, stdout=subprocess.PIPE, check=True).stdout,
    zstd_bomb], ids=["gzip", "xz", "zstd"])
@unless_sanitized
def test_bomb(vmmd, web, packed):
    web.files["bomb"] = packed()
    refused(vmmd, pull(vmmd.client(), web.url("bomb"), "x", format="raw"), 422, "image::unsafe")


def test_redirects_are_followed(vmmd, web):
    web.rules["/one"] = web.redirect("/two", 301)
    web.rules["/two"] = web.redirect(web.url("disk.raw"), 307)
    image = pulled(vmmd.client(), web.url("one"), "x")
    assert image["url"] == web.url("one") and image["sha256"] == sha256(DISK)


def test_redirect_loop(vmmd, web):
    web.rules["/loop"] = web.redirect("/loop")
    refused(vmmd, pull(vmmd.client(), web.url("loop"), "x"), 502, "image::download_failed")
    assert len(web.gets("/loop")) == 6


@pytest.mark.parametrize("to", ["file:///etc/passwd", "ftp://127.0.0.1/x", "gopher://127.0.0.1:1/x", "scp://127.0.0.1/x"])
def test_redirect_to_another_scheme(vmmd, web, to):
    web.rules["/go"] = web.redirect(to)
    answer = refused(vmmd, pull(vmmd.client(), web.url("go"), "x"), 502, "image::download_failed")
    assert "another scheme" in answer.json["detail"]


@pytest.mark.parametrize("url", ["http://169.254.169.254/latest/", "http://[fe80::1]/x", "http://0.0.0.0/x", "http://[::ffff:169.254.169.254]/x",
                                 "http://2852039166/x", "http://[2002:a9fe:a9fe::1]/x", "http://[64:ff9b::a9fe:a9fe]/x", "http://0xa9fea9fe/x", "http://[::]/x", "http://224.0.0.1/x"])
def test_addresses_that_are_not_asked(vmmd, url):
    answer = refused(vmmd, pull(vmmd.client(), url, "x"), 502, "image::download_failed")
    assert "may not be asked" in answer.json["detail"], answer


def test_redirect_to_a_link_local_address(vmmd, web):
    web.rules["/go"] = web.redirect("http://169.254.169.254/latest/")
    answer = refused(vmmd, pull(vmmd.client(), web.url("go"), "x"), 502, "image::download_failed")
    assert "link-local" in answer.json["detail"]


# --- what comes is looked at ---

def test_no_known_file_system_needs_the_word_raw(vmmd, web):
    web.files["noise"] = b"x" * 4096
    refused(vmmd, pull(vmmd.client(), web.url("noise"), "x"), 422, "image::format_detection_failed")
    assert pulled(vmmd.client(), web.url("noise"), "x", format="raw")["format"] == "raw"


def test_another_format_than_said(vmmd, web):
    answer = pull(vmmd.client(), web.url("disk.raw"), "x", format="qcow2")
    refused(vmmd, answer, 422, "image::format_detection_failed")


@pytest.mark.parametrize("kind, options", [("vmdk", []), ("vmdk", ["-o", "subformat=streamOptimized"]), ("vdi", []), ("vhdx", []), ("vpc", [])])
def test_foreign_formats_are_converted(vmmd, web, tmp_path, kind, options):
    (tmp_path / "disk.raw").write_bytes(DISK)
    qemu_img("convert", "-f", "raw", "-O", kind, *options, str(tmp_path / "disk.raw"), str(tmp_path / "disk"))
    web.files["disk"] = (tmp_path / "disk").read_bytes()
    image = pulled(vmmd.client(), web.url("disk"), "disk")
    assert (image["source_format"], image["format"]) == (kind, "qcow2")
    qemu_img("convert", "-f", "qcow2", "-O", "raw", image["path"], str(tmp_path / "back"))
    assert (tmp_path / "back").read_bytes()[:len(DISK)] == DISK
    until(lambda: len(files(vmmd)) == 1)
    assert os.stat(image["path"]).st_uid == os.getuid()


SECRET = b"SECRET-" * 4096


def hostile(tmp_path, kind):
    """An image that names a file of the host."""
    secret, image = tmp_path / "secret", tmp_path / "image"
    secret.write_bytes(SECRET + bytes(-len(SECRET) % 512))
    if kind == "backing":
        qemu_img("create", "-f", "qcow2", "-b", str(secret), "-F", "raw", str(image))
    elif kind == "data file":
        qemu_img("create", "-f", "qcow2", "-o", f"data_file={secret},data_file_raw=on", str(image), "1M")
    elif kind == "vmdk descriptor":
        image.write_text(f'# Disk DescriptorFile\nversion=1\nCID=1\nparentCID=ffffffff\ncreateType="monolithicFlat"\nRW 56 FLAT "{secret}" 0\n'.ljust(1024))
    elif kind == "vmdk extents":
        qemu_img("create", "-f", "vmdk", "-o", "subformat=monolithicFlat", str(image), "1M")
    elif kind == "vmdk parent":
        qemu_img("create", "-f", "vmdk", str(tmp_path / "base"), "1M")
        qemu_img("create", "-f", "vmdk", "-b", str(tmp_path / "base"), "-F", "vmdk", str(image))
    elif kind == "vmdk capacity":
        qemu_img("create", "-f", "vmdk", str(image), "1M")
        data = bytearray(image.read_bytes())
        data[12:20] = bytes(8)
        image.write_bytes(data)
    elif kind == "petabyte":
        qemu_img("create", "-f", "qcow2", "-o", "cluster_size=2M", str(image), "1P")
    elif kind == "features":
        qemu_img("create", "-f", "qcow2", str(image), "1M")
        data = bytearray(image.read_bytes())
        data[72] |= 0x80
        image.write_bytes(data)
    elif kind == "torn":
        qemu_img("create", "-f", "qcow2", str(image), "1M")
        data = bytearray(image.read_bytes())
        data[40:48] = (65536 * 2 + 512).to_bytes(8, "big")
        image.write_bytes(data)
    return image.read_bytes()


@pytest.mark.parametrize("kind", ["backing", "data file", "vmdk descriptor", "vmdk extents", "vmdk parent", "vmdk capacity", "petabyte",
                                  "features", "torn"])
def test_hostile_images(vmmd, web, tmp_path, kind):
    web.files["image"] = hostile(tmp_path, kind)
    refused(vmmd, pull(vmmd.client(), web.url("image"), "x"), 422, "image::unsafe")


def test_image_that_cannot_be_converted(vmmd, web, tmp_path):
    (tmp_path / "disk.raw").write_bytes(DISK)
    qemu_img("convert", "-f", "raw", "-O", "vmdk", "-o", "subformat=streamOptimized", str(tmp_path / "disk.raw"), str(tmp_path / "disk"))
    data = bytearray((tmp_path / "disk").read_bytes())
    data[len(data) // 3:len(data) // 3 + 200000] = bytes(200000)
    web.files["disk"] = bytes(data)
    answer = refused(vmmd, pull(vmmd.client(), web.url("disk"), "x"), 500, "image::conversion_failed")
    assert answer.json["causes"], answer


# --- many, and interrupted ---

def test_one_download_for_all_who_ask(vmmd, web):
    api = vmmd.client()
    web.rules["/disk.raw"] = web.held(DISK, 1000)
    operations = [begin(api, web.url("disk.raw"), f"d{i % 4}") for i in range(8)]
    assert len({operation["id"] for operation in operations}) == 8
    until(lambda: web.gets("/disk.raw"))
    web.release.set()
    for operation in operations:
        answer = ended(api, operation)
        assert answer.status == 200 and answer.json["result"]["sha256"] == sha256(DISK), answer
    assert len(web.gets("/disk.raw")) == 1
    assert len(api.get("/v1/images").json["items"]) == 4
    until(lambda: len(files(vmmd)) == 4)


def test_asking_again_has_no_effect(vmmd, web):
    api = vmmd.client()
    image = pulled(api, web.url("disk.raw"), "disk")
    answer = pull(api, web.url("disk.raw"), "disk", sha256=sha256(DISK))
    assert answer.status == 200 and answer.json["result"] == image
    assert len(web.gets("/disk.raw")) == 1


def test_a_name_that_is_taken(vmmd, web):
    api = vmmd.client()
    pulled(api, web.url("disk.raw"), "disk")
    web.files["other.raw"] = raw_disk(seed=3)
    assert pull(api, web.url("other.raw"), "disk").code == "image::already_exists"
    assert pull(api, web.url("disk.raw"), "disk", sha256="1" * 64).code == "image::already_exists"


def test_known_by_url_and_digest_is_not_fetched_again(vmmd, web):
    api = vmmd.client()
    pulled(api, web.url("disk.raw"), "one")
    two = pulled(api, web.url("disk.raw"), "two", sha256=sha256(DISK))
    assert len(web.gets("/disk.raw")) == 1 and two["sha256_verified"] is True
    assert api.delete("/v1/images/one", prefer_wait=PATIENCE).status == 200
    with open(two["path"], "rb") as file:
        assert file.read() == DISK


def test_cancel(vmmd, web):
    api = vmmd.client()
    web.rules["/disk.raw"] = web.held(DISK, 1000)
    operation = begin(api, web.url("disk.raw"), "x")
    until(lambda: web.gets("/disk.raw"))
    assert api.delete(f"/v1/operations/{operation['id']}").status == 200
    answer = ended(api, operation)
    assert answer.status == 409 and answer.code == "operation::cancelled", answer
    assert api.get("/v1/images/x").status == 404
    web.release.set()
    assert pulled(api, web.url("disk.raw"), "x")["sha256"] == sha256(DISK)
    until(lambda: len(files(vmmd)) == 1)


@pytest.mark.parametrize("names", [("a", "b"), ("a", "a")], ids=["another name", "the same name"])
def test_cancel_of_one_does_not_kill_the_others(vmmd, web, names):
    api = vmmd.client()
    web.rules["/disk.raw"] = web.held(DISK, 1000)
    first, second = (begin(api, web.url("disk.raw"), name) for name in names)
    until(lambda: web.gets("/disk.raw"))
    assert api.delete(f"/v1/operations/{first['id']}").status == 200
    assert ended(api, first).code == "operation::cancelled"
    web.release.set()
    assert ended(api, second).json["state"] == "succeeded"
    assert api.get(f"/v1/images/{names[1]}").json["sha256"] == sha256(DISK)
    assert len(web.gets("/disk.raw")) == 1


def test_in_use_while_it_is_pulled(vmmd, web):
    api = vmmd.client()
    web.rules["/disk.raw"] = web.held(DISK, 1000)
    operation = begin(api, web.url("disk.raw"), "x")
    answer = api.delete("/v1/images/x")
    assert answer.code == "image::in_use" and answer.context["operation"] == operation["id"]
    web.release.set()
    ended(api, operation)


def test_goes_on_after_kill_9(vmmd, web):
    api, big = vmmd.client(), raw_disk(8 << 20, seed=5)
    web.files["big.raw"] = big
    web.rules["/big.raw"] = web.held(big, 6 << 20)
    body = {"name": "big", "url": web.url("big.raw"), "sha256": sha256(big)}
    operation = api.post("/v1/images", body, headers={"Idempotency-Key": "one"}).json
    part = os.path.join(vmmd.data_dir, "images")
    until(lambda: any(name.endswith(".part") and os.stat(os.path.join(part, name)).st_size >= 5 << 20 for name in files(vmmd)))
    vmmd.kill9()
    web.release.set()
    vmmd.start()
    api = vmmd.client()
    old = api.get(f"/v1/operations/{operation['id']}").json
    assert old["state"] == "failed" and old["error"]["code"].endswith("operation::interrupted")
    assert api.get("/v1/images/big").status == 404
    answer = api.post("/v1/images", body, headers={"Idempotency-Key": "one"}, prefer_wait=PATIENCE)
    assert answer.status == 200 and answer.json["id"] != operation["id"] and "Idempotency-Replayed" not in answer.headers
    assert answer.json["result"]["sha256"] == sha256(big)
    asked = web.gets("/big.raw")[-1]
    assert int(asked["Range"].split("=")[1].rstrip("-")) >= 5 << 20
    until(lambda: len(files(vmmd)) == 1)


def test_what_no_row_has_is_removed_at_the_start(vmmd, web):
    pulled(vmmd.client(), web.url("disk.raw"), "disk")
    kept = files(vmmd)
    vmmd.kill9()
    for name in ("01980000-0000-7000-8000-000000000000.img", "ab.new", "old.part", "old.note", "young.part", "young.note", "alone.part", "mute.part", "mute.note"):
        with open(os.path.join(vmmd.data_dir, "images", name), "w", encoding="utf-8") as file:
            file.write("x" if name != "mute.note" else "")
    for name in ("old.part", "old.note"):
        os.utime(os.path.join(vmmd.data_dir, "images", name), (1, 1))
    vmmd.start()
    until(lambda: files(vmmd) == sorted(kept + ["young.note", "young.part"]))  # to be gone on with: young, and with its note


def test_stop_does_not_wait_for_a_pull(vmmd, web):
    api = vmmd.client()
    web.rules["/disk.raw"] = web.held(DISK, 1000)
    operation = begin(api, web.url("disk.raw"), "x")
    until(lambda: web.gets("/disk.raw"))
    vmmd.stop()
    vmmd.start()
    assert vmmd.client().get(f"/v1/operations/{operation['id']}").json["error"]["code"].endswith("operation::interrupted")


# --- used by VMs ---

def test_used_by(vmmd, web):
    api = vmmd.client()
    pulled(api, web.url("disk.raw"), "disk")
    vm = make_vm(api, "web", image="disk")
    assert vm["spec"]["image"] == "disk"
    assert api.get("/v1/images/disk").json["used_by"] == [{"kind": "vm", "id": vm["id"], "name": "web"}]
    answer = api.delete("/v1/images/disk", prefer_wait=PATIENCE)
    assert answer.status == 409 and answer.code == "image::in_use" and answer.context["vm"] == "web"
    vmmd.kill9()
    vmmd.start()
    api = vmmd.client()
    assert [use["name"] for use in api.get("/v1/images/disk").json["used_by"]] == ["web"]
    destroy(api, "web")
    assert api.get("/v1/images/disk").json["used_by"] == []
    assert api.delete("/v1/images/disk", prefer_wait=PATIENCE).status == 200


def test_create_with_an_image_that_is_not_there(shared_vmmd):
    answer = shared_vmmd.client().post("/v1/vms", create_body("web", image="none"))
    assert answer.status == 404 and answer.code == "image::not_found"


def test_create_pulls_first(vmmd, web):
    api = vmmd.client()
    vm = make_vm(api, "web", image_url=web.url("disk.raw"), image_sha256=sha256(DISK))
    assert vm["spec"]["image_url"] == web.url("disk.raw") and vm["spec"]["image"] is None
    assert [use["name"] for use in api.get("/v1/images/disk.raw").json["used_by"]] == ["web"]
    make_vm(api, "web2", image_url=web.url("disk.raw"))
    assert len(web.gets("/disk.raw")) == 1
    assert len(api.get("/v1/images/disk.raw").json["used_by"]) == 2


def test_creates_wait_for_one_pull(vmmd, web):
    api = vmmd.client()
    web.rules["/disk.raw"] = web.held(DISK, 600000)
    creates = [api.post("/v1/vms", create_body(f"w{i}", image_url=web.url("disk.raw"))).json for i in range(3)]
    until(lambda: (api.get(f"/v1/operations/{creates[2]['id']}").json["progress"] or {}).get("done", 0) > 0)
    web.release.set()
    for create in creates:
        assert ended(api, create).json["state"] == "succeeded"
    assert len(web.gets("/disk.raw")) == 1


def test_create_fails_with_its_pull(vmmd, web):
    api = vmmd.client()
    answer = api.post("/v1/vms", create_body("web", image_url=web.url("nope")), prefer_wait=PATIENCE)
    assert answer.status == 502 and answer.code == "image::download_failed" and answer.context["http_status"] == 404
    assert api.get("/v1/vms/web").status == 404 and api.get("/v1/images").json["items"] == []
    answer = api.post("/v1/vms", create_body("web", image_url=web.url("disk.raw"), image_sha256="0" * 64), prefer_wait=PATIENCE)
    assert answer.status == 422 and answer.code == "image::checksum_mismatch"


def test_cancelled_create_ends_its_pull(vmmd, web):
    api = vmmd.client()
    web.rules["/disk.raw"] = web.held(DISK, 1000)
    create = api.post("/v1/vms", create_body("web", image_url=web.url("disk.raw"))).json
    until(lambda: web.gets("/disk.raw"))
    assert api.delete(f"/v1/operations/{create['id']}").status == 200
    assert ended(api, create).code == "operation::cancelled"
    until(lambda: api.get("/v1/images").json["items"] == [])


def test_undone_create_keeps_the_image(vmmd, web):
    api = vmmd.client()
    answer = api.post("/v1/vms", create_body("web", labels={"noop.fail": "build"}, image_url=web.url("disk.raw")), prefer_wait=PATIENCE)
    assert answer.status >= 400
    assert api.get("/v1/images/disk.raw").json["used_by"] == []


@pytest.mark.parametrize("spec, pointer", [
    ({"image_url": "ftp://x/y"}, "/spec/image_url"), ({"image_url": "http://127.0.0.1/x", "image": "a"}, "/spec/image_url"),
    ({"image_sha256": "0" * 64}, "/spec/image_sha256"), ({"image_url": "http://127.0.0.1/x", "image_sha256": "x"}, "/spec/image_sha256"),
])
def test_bad_specs(shared_vmmd, spec, pointer):
    answer = shared_vmmd.client().post("/v1/vms", create_body("web", **spec))
    assert answer.status == 422 and answer.context["pointer"] == pointer


# --- convert ---

def test_convert_into_a_new_image(vmmd, web, tmp_path):
    api = vmmd.client()
    pulled(api, web.url("disk.raw"), "disk")
    answer = api.post("/v1/images/disk/convert", {"format": "qcow2", "name": "disk2"}, prefer_wait=PATIENCE)
    assert answer.status == 200 and answer.json["kind"] == "image.convert", answer
    image = answer.json["result"]
    assert (image["name"], image["format"], image["source_format"], image["url"]) == ("disk2", "qcow2", "raw", None)
    qemu_img("convert", "-f", "qcow2", "-O", "raw", image["path"], str(tmp_path / "back"))
    assert (tmp_path / "back").read_bytes() == DISK
    until(lambda: len(files(vmmd)) == 2)
    assert os.stat(image["path"]).st_uid == os.getuid()
    answer = api.post("/v1/images/disk/convert", {"format": "qcow2", "name": "disk2"})
    assert answer.status == 409 and answer.code == "image::already_exists"


def test_convert_in_place(vmmd, web):
    api = vmmd.client()
    before = pulled(api, web.url("disk.raw"), "disk")
    answer = api.post("/v1/images/disk/convert", {"format": "qcow2"})
    assert answer.status == 202
    after = ended(api, answer.json).json["result"]
    assert after["format"] == "qcow2" and after["sha256"] == before["sha256"] and after["path"] != before["path"]
    until(lambda: files(vmmd) == [os.path.basename(after["path"])])
    again = api.post("/v1/images/disk/convert", {"format": "qcow2"}, prefer_wait=PATIENCE)
    assert again.status == 200 and again.json["steps"] == []
    make_vm(api, "web", image="disk")
    assert api.post("/v1/images/disk/convert", {"format": "raw"}).code == "image::in_use"


@pytest.mark.parametrize("body, pointer", [({}, "/format"), ({"format": "vdi"}, "/format"), ({"format": "raw", "name": "A"}, "/name")])
def test_convert_bad_requests(vmmd, web, body, pointer):
    api = vmmd.client()
    pulled(api, web.url("disk.raw"), "disk")
    answer = api.post("/v1/images/disk/convert", body)
    assert answer.code == "api::invalid_field" and answer.context["pointer"] == pointer
    assert api.post("/v1/images/none/convert", {"format": "raw"}).code == "image::not_found"


# --- prune ---

def test_prune(vmmd, web):
    api = vmmd.client()
    for name in ("used", "idle1", "idle2"):
        pulled(api, web.url("disk.raw"), name)
    make_vm(api, "web", image="used")
    web.files["part.raw"] = DISK
    web.rules["/part.raw"] = web.short(DISK, 300000)
    assert pull(api, web.url("part.raw"), "x").status == 502
    would = api.post("/v1/images/prune", {"dry_run": True})
    assert would.status == 200 and would.json["dry_run"] is True
    assert [i["name"] for i in would.json["items"]] == ["idle1", "idle2"] and would.json["part_files"] == 1
    assert would.json["freed_bytes"] >= 2 * len(DISK)
    assert len(api.get("/v1/images").json["items"]) == 3
    did = api.post("/v1/images/prune")
    assert did.json == {**would.json, "dry_run": False}
    assert [i["name"] for i in api.get("/v1/images").json["items"]] == ["used"]
    until(lambda: len(files(vmmd)) == 1)
    assert api.post("/v1/images/prune", {"dry": True}).code == "api::invalid_field"


def test_prune_leaves_what_is_under_way(vmmd, web):
    api = vmmd.client()
    web.rules["/disk.raw"] = web.held(DISK, 600000)
    operation = begin(api, web.url("disk.raw"), "disk")
    until(lambda: (api.get(f"/v1/operations/{operation['id']}").json["progress"] or {}).get("done", 0) > 0)
    assert api.post("/v1/images/prune").json["items"] == []
    web.release.set()
    assert ended(api, operation).json["result"]["sha256"] == sha256(DISK)


# --- addresses and certificates ---

@pytest.fixture
def own_address():
    """An address of this host that is not loopback."""
    out = subprocess.run(["hostname", "-I"], stdout=subprocess.PIPE, text=True, check=True).stdout.split()
    found = [address for address in out if "." in address]
    if not found:
        pytest.skip("this host has no address but loopback")
    return found[0]


def test_own_address_is_refused_unless_allowed(daemons, own_address):
    with Server({"disk.raw": DISK}, host=own_address) as outside:
        vmmd = daemons()
        answer = refused(vmmd, pull(vmmd.client(), outside.url("disk.raw"), "x"), 502, "image::download_failed")
        assert "this host's own" in answer.json["detail"] and outside.seen == []
        vmmd = daemons(config=f"fetch_allow = 203.0.113.0/24\nfetch_allow = {own_address}\n")
        assert pulled(vmmd.client(), outside.url("disk.raw"), "x")["sha256"] == sha256(DISK)


def test_no_redirect_from_outside_reaches_loopback(daemons, web, own_address):
    with Server(host=own_address) as outside:
        outside.rules["/go"] = outside.redirect(web.url("disk.raw"))
        vmmd = daemons(config=f"fetch_allow = {own_address}/32\n")
        answer = refused(vmmd, pull(vmmd.client(), outside.url("go"), "x"), 502, "image::download_failed")
        assert "loopback" in answer.json["detail"] and web.seen == []


@pytest.fixture
def certified(tmp_path):
    """A server with a certificate of its own, and the file to check it against."""
    key, cert = str(tmp_path / "key.pem"), str(tmp_path / "cert.pem")
    subprocess.run(["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", key, "-out", cert, "-days", "2", "-subj", "/CN=localhost",
                    "-addext", "subjectAltName=IP:127.0.0.1"], check=True, stderr=subprocess.DEVNULL)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    with Server({"disk.raw": DISK}, context=context) as server:
        yield server, cert


def test_https(daemons, certified):
    server, cert = certified
    vmmd = daemons(config=f"fetch_ca_file = {cert}\n")
    assert pulled(vmmd.client(), server.url("disk.raw"), "x")["sha256"] == sha256(DISK)


def test_https_with_a_certificate_that_nobody_knows(vmmd, certified):
    refused(vmmd, pull(vmmd.client(), certified[0].url("disk.raw"), "x"), 502, "image::download_failed")


def test_no_redirect_from_https_to_http(daemons, certified, web):
    server, cert = certified
    server.rules["/go"] = server.redirect(web.url("disk.raw"))
    vmmd = daemons(config=f"fetch_ca_file = {cert}\n")
    answer = refused(vmmd, pull(vmmd.client(), server.url("go"), "x"), 502, "image::download_failed")
    assert "another scheme" in answer.json["detail"] and web.seen == []


def test_proxies_of_the_environment_are_not_asked(daemons, web):
    with Server() as proxy:
        env = {name: proxy.url("") for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "all_proxy", "ALL_PROXY")}
        vmmd = daemons(env=env)
        assert pulled(vmmd.client(), web.url("disk.raw"), "x")["sha256"] == sha256(DISK)
        assert proxy.seen == []
