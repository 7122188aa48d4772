"""Guests that boot from images of the cache."""
import lzma
import os

import pytest

from e2e.guest import TINY, booted, destroy
from lib.images import PATIENCE, files, pulled, qemu_img, sha256
from lib.webserver import Server


@pytest.fixture
def web(tmp_path):
    with open(TINY, "rb") as file:
        tiny = file.read()
    packed = lzma.compress(tiny, preset=0)
    with Server({"tiny.qcow2": tiny, "tiny.qcow2.xz": packed}) as server:
        yield server


def test_boots_from_an_url(vmmd, web):
    """Pulled packed, with its digest, by the create; looked at again at each start; kept when the VM is gone."""
    api = vmmd.client()
    vm = booted(api, image_url=web.url("tiny.qcow2.xz"), image_sha256=sha256(web.files["tiny.qcow2.xz"]), memory_mb=256)
    assert vm["spec"]["image_url"] == web.url("tiny.qcow2.xz")
    assert api.post("/v1/vms/web/kill", prefer_wait=PATIENCE).status == 200
    assert api.post("/v1/vms/web/start", prefer_wait=PATIENCE).status == 200
    assert api.delete("/v1/images/tiny.qcow2", prefer_wait=PATIENCE).code == "image::in_use"
    destroy(api)
    assert api.delete("/v1/images/tiny.qcow2", prefer_wait=PATIENCE).status == 200 and files(vmmd) == []


def test_boots_from_a_converted_image_by_name(vmmd, web, tmp_path):
    qemu_img("convert", "-O", "vmdk", TINY, str(tmp_path / "tiny.vmdk"))
    api = vmmd.client()
    image = pulled(api, f"file://{tmp_path}/tiny.vmdk", "tiny")
    assert image["source_format"] == "vmdk" and image["format"] == "qcow2"
    vm = booted(api, image="tiny", memory_mb=256)
    assert vm["spec"]["image"] == "tiny" and os.stat(image["path"]).st_mode & 0o222 == 0
    destroy(api)
    assert api.delete("/v1/images/tiny", prefer_wait=PATIENCE).status == 200


def test_cache_outside_image_dirs(daemons, web):
    """image_dirs is for paths that clients name; a raw image without a file system of its own needs the word only once."""
    vmmd = daemons(config="image_dirs = /srv/nothing\n")
    api = vmmd.client()
    web.files["noise"] = b"noise" * 4096 + bytes(-5 * 4096 % 512)
    pulled(api, web.url("noise"), "noise", format="raw")
    answer = api.post("/v1/vms", {"name": "web", "spec": {"image": "noise", "memory_mb": 64}, "start": True}, prefer_wait=PATIENCE)
    assert answer.status == 200, answer
    destroy(api)
