"""Images that vmmd must not hand to QEMU: each is refused with its own code, and nothing is half made."""
import os
import subprocess

import pytest

from e2e.guest import PATIENCE, TINY, assert_nothing_left, direct, do, make
from lib.vms import create_body, get_vm


def qemu_img(*args):
    subprocess.run(["qemu-img", *args], check=True, stdout=subprocess.DEVNULL)


def refused(daemon, image, status, code, **spec):
    """The create is refused, and leaves nothing."""
    api = daemon.client()
    answer = api.post("/v1/vms", create_body("web", "qemu", image=str(image), **spec), prefer_wait=PATIENCE)
    assert (answer.status, answer.code) == (status, code), answer
    assert os.path.basename(str(image)) in answer.json["detail"], answer
    assert api.get("/v1/vms").json["items"] == []
    assert_nothing_left(daemon)
    return answer


def test_missing_image(shared_vmmd, tmp_path):
    refused(shared_vmmd, tmp_path / "none.qcow2", 404, "image::not_found")


def test_image_below_a_directory_that_is_missing(shared_vmmd, tmp_path):
    refused(shared_vmmd, tmp_path / "none" / "x.qcow2", 404, "image::not_found")


def test_directory(shared_vmmd, tmp_path):
    refused(shared_vmmd, tmp_path, 422, "image::unsafe")


def test_fifo_is_refused_and_blocks_nothing(shared_vmmd, tmp_path):
    os.mkfifo(tmp_path / "fifo")
    refused(shared_vmmd, tmp_path / "fifo", 422, "image::unsafe")


def test_symbolic_link(shared_vmmd, tmp_path):
    os.symlink(TINY, tmp_path / "link")
    refused(shared_vmmd, tmp_path / "link", 422, "image::unsafe")


def test_device(shared_vmmd):
    refused(shared_vmmd, "/dev/zero", 422, "image::unsafe")


def test_backing_file(shared_vmmd, tmp_path):
    qemu_img("create", "-f", "qcow2", "-F", "qcow2", "-b", TINY, str(tmp_path / "overlay.qcow2"))
    refused(shared_vmmd, tmp_path / "overlay.qcow2", 422, "image::unsafe")


def test_external_data_file(shared_vmmd, tmp_path):
    qemu_img("create", "-f", "qcow2", "-o", f"data_file={tmp_path}/data,data_file_raw=on", str(tmp_path / "x.qcow2"), "1M")
    refused(shared_vmmd, tmp_path / "x.qcow2", 422, "image::unsafe")


def test_unknown_incompatible_feature(shared_vmmd, tmp_path):
    qemu_img("create", "-f", "qcow2", str(tmp_path / "x.qcow2"), "1M")
    with open(tmp_path / "x.qcow2", "r+b") as file:
        file.seek(72)
        file.write(b"\x80" + b"\0" * 7)
    refused(shared_vmmd, tmp_path / "x.qcow2", 422, "image::unsafe")


def test_image_that_claims_to_be_vast(shared_vmmd, tmp_path):
    """A sparse giant, over max_image_gb."""
    qemu_img("create", "-f", "qcow2", "-o", "cluster_size=2M", str(tmp_path / "x.qcow2"), "17T")
    refused(shared_vmmd, tmp_path / "x.qcow2", 422, "image::unsafe")


@pytest.mark.parametrize("content", [b"", b"x", b"this is no disk image\n" * 100, b"\0" * 4096, b"QFI\xfb", os.urandom(5000)],
                         ids=["empty", "byte", "text", "zeros", "only-magic", "random"])
def test_garbage(shared_vmmd, tmp_path, content):
    (tmp_path / "garbage").write_bytes(content)
    answer = shared_vmmd.client().post("/v1/vms", create_body("web", "qemu", image=str(tmp_path / "garbage")), prefer_wait=PATIENCE)
    assert answer.status == 422 and answer.code in ("image::format_detection_failed", "image::unsafe"), answer
    assert_nothing_left(shared_vmmd)


@pytest.mark.parametrize("kind", ["vmdk", "vdi", "vpc", "qed"])
def test_foreign_format(shared_vmmd, tmp_path, kind):
    qemu_img("create", "-f", kind, str(tmp_path / "x.img"), "4M")
    refused(shared_vmmd, tmp_path / "x.img", 422, "image::format_detection_failed")


def test_vmdk_that_names_another_file(shared_vmmd, tmp_path):
    (tmp_path / "x.vmdk").write_text("# Disk DescriptorFile\nversion=1\nCID=1\nparentCID=ffffffff\ncreateType=\"monolithicFlat\"\n"
                                     "RW 2048 FLAT \"/etc/shadow\" 0\n")
    refused(shared_vmmd, tmp_path / "x.vmdk", 422, "image::format_detection_failed")


def test_raw_with_a_partition_table_is_taken(shared_vmmd, tmp_path):
    raw = bytearray(1 << 20)
    raw[446:462] = bytes([0x80, 0, 2, 0, 0x83, 0, 2, 0]) + (1).to_bytes(4, "little") + (2047).to_bytes(4, "little")
    raw[510:512] = b"\x55\xaa"
    (tmp_path / "disk.img").write_bytes(raw)
    api = shared_vmmd.client()
    vm = make(api, "raw", **direct(image=str(tmp_path / "disk.img")))
    assert vm["state"] == "prepared"
    assert api.delete("/v1/vms/raw", prefer_wait=PATIENCE).status == 200


def test_image_that_changed_into_an_unsafe_one_is_refused_at_the_start(api, tmp_path):
    image = tmp_path / "disk.qcow2"
    qemu_img("create", "-f", "qcow2", str(image), "16M")
    make(api, **direct(image=str(image)))
    qemu_img("create", "-f", "qcow2", "-F", "qcow2", "-b", TINY, str(image))
    answer = do(api, "start", expect=422)
    assert answer.code == "image::unsafe"
    assert get_vm(api)["runtime"]["pid"] is None


def test_image_that_vanished_is_refused_at_the_start(api, tmp_path):
    image = tmp_path / "disk.qcow2"
    qemu_img("create", "-f", "qcow2", str(image), "16M")
    make(api, **direct(image=str(image)))
    os.unlink(image)
    assert do(api, "start", expect=404).code == "image::not_found"


def test_image_outside_the_allowed_directories(daemons, tmp_path):
    daemon = daemons(config=f"image_dirs = {tmp_path}/allowed\n")
    os.mkdir(tmp_path / "allowed")
    qemu_img("create", "-f", "qcow2", str(tmp_path / "x.qcow2"), "1M")
    qemu_img("create", "-f", "qcow2", str(tmp_path / "allowed" / "y.qcow2"), "1M")
    refused(daemon, tmp_path / "x.qcow2", 422, "image::unsafe")
    os.symlink(tmp_path, tmp_path / "allowed" / "out")  # a directory that leads outside
    refused(daemon, tmp_path / "allowed" / "out" / "x.qcow2", 422, "image::unsafe")
    answer = daemon.client().post("/v1/vms", create_body("web", "qemu", image=f"{tmp_path}/allowed/../x.qcow2"))
    assert (answer.status, answer.code) == (422, "api::invalid_field"), answer
    make(daemon.client(), **direct(image=str(tmp_path / "allowed" / "y.qcow2")))


def test_image_name_without_a_path(shared_vmmd):
    """There is no cache of images to find it in."""
    answer = shared_vmmd.client().post("/v1/vms", create_body("web", "qemu", image="debian-12"), prefer_wait=PATIENCE)
    assert answer.status in (404, 422), answer
    assert_nothing_left(shared_vmmd)
