"""vmctl image, and create from images of the cache."""
import gzip
import json
import os
import pty
import select
import subprocess
import time

import pytest

from lib.images import DISK, raw_disk, sha256, until
from lib.vmmd import SLOW, VMCTL
from lib.webserver import Server


@pytest.fixture
def web():
    with Server({"disk.raw": DISK}) as server:
        yield server


def good(done):
    assert done.returncode == 0, (done.stdout, done.stderr)
    return done.stdout


def test_pull_list_inspect_rm(vmmd, web):
    out = good(vmmd.vmctl("image", "pull", web.url("disk.raw"), "--name", "disk"))
    assert out.splitlines() == ["disk pulled (raw, 1.0MiB)", f"sha256:{sha256(DISK)}"]
    lines = good(vmmd.vmctl("image")).splitlines()
    assert lines[0].split() == ["NAME", "STATE", "FORMAT", "DISK", "SIZE", "USED", "AGE"]
    assert lines[1].split()[:6] == ["disk", "ready", "raw", "1.0MiB", "1.0MiB", "0"]
    assert good(vmmd.vmctl("-o", "name", "image", "list")) == "disk\n"
    assert json.loads(good(vmmd.vmctl("-o", "json", "image", "inspect", "disk")))["sha256"] == sha256(DISK)
    assert "virtual_size_bytes: 1048576" in good(vmmd.vmctl("image", "inspect", "disk"))
    assert good(vmmd.vmctl("image", "rm", "disk")) == "disk removed\n"
    assert good(vmmd.vmctl("-o", "name", "image", "list")) == ""


def test_pull_says_what_is_wrong(vmmd, web):
    done = vmmd.vmctl("image", "pull", web.url("disk.raw"), "--sha256", "0" * 64)
    assert done.returncode == 1 and "image::checksum_mismatch" in done.stderr and sha256(DISK) in done.stderr
    done = vmmd.vmctl("image", "pull", web.url("none"))
    assert done.returncode == 1 and "image::download_failed" in done.stderr
    assert vmmd.vmctl("image", "rm", "none").returncode == 3
    assert vmmd.vmctl("image", "inspect", "none").returncode == 3


def test_pull_without_waiting(vmmd, web):
    web.rules["/disk.raw"] = web.held(DISK, 1000)
    out = good(vmmd.vmctl("--no-wait", "image", "pull", web.url("disk.raw"), "--name", "disk"))
    assert out.startswith("disk: under way (operation ")
    assert "disk" in good(vmmd.vmctl("ops"))
    web.release.set()


def test_create_by_name_and_by_url(vmmd, web):
    good(vmmd.vmctl("image", "pull", web.url("disk.raw"), "--name", "disk"))
    good(vmmd.vmctl("create", "web", "--backend", "noop", "--image", "disk"))
    assert [use["name"] for use in vmmd.client().get("/v1/images/disk").json["used_by"]] == ["web"]
    done = vmmd.vmctl("image", "rm", "disk")
    assert done.returncode == 4 and "image::in_use" in done.stderr
    web.files["other.raw"] = raw_disk(seed=9)
    good(vmmd.vmctl("create", "db", "--backend", "noop", "--image-url", web.url("other.raw"), "--image-sha256", sha256(raw_disk(seed=9))))
    assert vmmd.client().get("/v1/vms/db").json["spec"]["image_url"] == web.url("other.raw")


def test_convert(vmmd, web):
    good(vmmd.vmctl("image", "pull", web.url("disk.raw"), "--name", "disk"))
    assert good(vmmd.vmctl("image", "convert", "disk", "--name", "disk2")).startswith("disk2 converted (qcow2, 1.0MiB)")
    assert good(vmmd.vmctl("image", "convert", "disk2", "--format", "raw")).startswith("disk2 converted (raw,")


def test_prune(vmmd, web):
    good(vmmd.vmctl("image", "pull", web.url("disk.raw"), "--name", "disk"))
    out = good(vmmd.vmctl("image", "prune", "--dry-run")).splitlines()
    assert out[1].split()[0] == "disk" and out[-1] == "would free 1.0MiB, and 0 part files"
    assert good(vmmd.vmctl("-o", "name", "image", "prune")) == "disk\n"
    assert good(vmmd.vmctl("-o", "name", "image", "list")) == ""


def test_upload(vmmd, tmp_path):
    (tmp_path / "Disk.raw.gz").write_bytes(gzip.compress(DISK))
    out = good(vmmd.vmctl("image", "upload", str(tmp_path / "Disk.raw.gz")))
    assert out.splitlines()[0] == "disk.raw uploaded (raw, 1.0MiB)"
    with open(tmp_path / "Disk.raw.gz", "rb") as file:
        digest = sha256((tmp_path / "Disk.raw.gz").read_bytes())
        out = good(vmmd.vmctl("image", "upload", "-", "--name", "two", "--sha256", digest, stdin=file))
    assert out.splitlines() == ["two uploaded (raw, 1.0MiB)"]
    done = vmmd.vmctl("image", "upload", str(tmp_path / "Disk.raw.gz"), "--name", "two")
    assert done.returncode == 4 and "image::already_exists" in done.stderr
    assert vmmd.vmctl("image", "upload", str(tmp_path / "none")).returncode == 1
    assert vmmd.vmctl("image", "upload", str(tmp_path)).returncode == 1
    assert vmmd.vmctl("image", "upload", "-").returncode == 2


def test_inspect_a_file_needs_no_daemon(tmp_path):
    (tmp_path / "disk.raw").write_bytes(DISK)
    (tmp_path / "noise").write_bytes(b"x" * 1024)
    (tmp_path / "bad.vmdk").write_text('# Disk DescriptorFile\nRW 56 FLAT "/etc/shadow" 0\n'.ljust(1024))

    def run(*args):
        return subprocess.run([VMCTL, "image", "inspect", *args], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, check=False,
                              stdin=subprocess.DEVNULL, timeout=30 * SLOW)
    assert run(str(tmp_path / "disk.raw")).stdout == f"{tmp_path}/disk.raw: raw, 1.0MiB\n"
    done = run(str(tmp_path / "bad.vmdk"))
    assert done.returncode == 1 and "image::unsafe" in done.stderr
    assert "image::format_detection_failed" in run(str(tmp_path / "noise")).stderr
    assert run(str(tmp_path / "none")).returncode == 3


@pytest.mark.parametrize("words", [["frobnicate"], ["pull"], ["list", "x"], ["rm"], ["pull", "a", "b"]])
def test_usage(words):
    done = subprocess.run([VMCTL, "image", *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, check=False, timeout=30 * SLOW)
    assert done.returncode == 2


def test_bar_on_a_terminal(vmmd, web):
    web.rules["/disk.raw"] = web.held(DISK, 600000)
    ours, theirs = pty.openpty()
    proc = subprocess.Popen([VMCTL, "image", "pull", web.url("disk.raw"), "--name", "disk"], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                            stderr=theirs, env=dict(os.environ, VMMD_SOCKET=vmmd.socket))
    os.close(theirs)
    text, end = b"", time.monotonic() + 60 * SLOW
    while b"% of 1.0 MiB" not in text or b"fetch [###########" not in text:
        assert time.monotonic() < end, text
        if select.select([ours], [], [], 1)[0]:
            text += os.read(ours, 65536)
    assert b"disk: pull (2/7) fetch [###########" in text
    web.release.set()
    until(lambda: proc.poll() is not None)
    assert proc.returncode == 0
    os.close(ours)
