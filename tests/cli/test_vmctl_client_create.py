"""What `vmctl create` makes of its flags. The daemon judges the spec; vmctl refuses what cannot be put into a request."""
import json

import pytest
from scripted import done, problem


@pytest.fixture
def create(peer, tmp_path):
    """create(*args) -> the body that was sent, or the run when nothing was."""
    peer.on("POST", "/v1/vms", (200, done(kind="vm.create")))

    def run(*args, **kw):
        before = len(peer.requests)
        got = peer.vmctl("create", *args, cwd=tmp_path, **kw)
        if len(peer.requests) == before:
            return got
        assert got.returncode == 0, got.stderr
        return peer.requests[-1].json

    return run


def test_nothing_is_added(create):
    assert create("web") == create("--name", "web") == create("web", "--name", "web") == {"name": "web", "spec": {}}


def test_every_flag(create, tmp_path):
    (tmp_path / "id.pub").write_text("# mine\nssh-ed25519 AAAA a@b\r\n\nssh-rsa BBBB c\n")
    (tmp_path / "ud.yaml").write_text("#cloud-config\nü: 1\n")
    (tmp_path / "disk.qcow2").write_bytes(b"")
    body = create("--name", "web", "--image", "./disk.qcow2", "--vcpus", "2", "--memory=2048", "--disk", "20", "--uefi", "--start",
                  "--cloud-init", "ud.yaml", "--ssh-key", "id.pub", "--hostname", "h", "--backend", "noop", "--label", "a=b", "--label", "c==",
                  "--machine", "q35", "--accel", "tcg", "--kernel", "vmlinuz", "--initrd", "/boot/i", "--cmdline", "quiet", "--display", "vga",
                  "--restart", "always", "--autostart", "--protect", "--forward", "8080:80", "--forward", "127.0.0.1:0:53/udp")
    assert body == {
        "name": "web", "backend": "noop", "start": True, "labels": {"a": "b", "c": "="},
        "spec": {"image": f"{tmp_path}/disk.qcow2", "vcpus": 2, "memory_mb": 2048, "disk_gb": 20, "uefi": True, "machine": "q35",
                 "accel": "tcg", "display": "vga", "restart": "always", "autostart": True, "protect": True,
                 "boot": {"kernel": f"{tmp_path}/vmlinuz", "initrd": "/boot/i", "cmdline": "quiet"},
                 "network": {"type": "user", "forwards": [{"host_port": 8080, "guest_port": 80},
                                                          {"host_ip": "127.0.0.1", "host_port": 0, "guest_port": 53, "proto": "udp"}]},
                 "cloud_init": {"user_data": "#cloud-config\nü: 1\n", "hostname": "h",
                                "ssh_authorized_keys": ["ssh-ed25519 AAAA a@b", "ssh-rsa BBBB c"]}}}


def test_images(create, tmp_path):
    (tmp_path / "here").write_bytes(b"")
    assert create("w", "--image", "here")["spec"] == {"image": f"{tmp_path}/here"}
    assert create("w", "--image", "debian-12")["spec"] == {"image": "debian-12"}
    assert create("w", "--image", "sub/x.raw")["spec"] == {"image": f"{tmp_path}/sub/x.raw"}
    assert create("w", "--image-url", "https://e/x")["spec"] == {"image_url": "https://e/x"}
    assert create("w", "--image", "/x", "--image-url", "https://e/x")["spec"] == {"image": "/x"}


def test_networks(create):
    assert create("w", "--bridge", "br0")["spec"] == {"network": {"type": "tap", "bridge": "br0"}}
    assert create("w", "--network", "none")["spec"] == {"network": {"type": "none"}}
    assert create("w", "--network", "tap")["spec"] == {"network": {"type": "tap"}}


def test_numbers_out_of_range_are_the_daemons_to_refuse(create):
    assert create("w", "--vcpus", "0", "--memory", "-1", "--disk", "65537")["spec"] == {"vcpus": 0, "memory_mb": -1, "disk_gb": 65537}


def test_spec_file_and_flags_over_it(create, tmp_path):
    (tmp_path / "s.json").write_text('{"vcpus":1,"boot":{"kernel":"/k"},"cloud_init":null,"network":{"type":"none"}}')
    assert create("w", "--spec", "s.json", "--vcpus", "4", "--cmdline", "x", "--hostname", "h")["spec"] == {
        "vcpus": 4, "boot": {"kernel": "/k", "cmdline": "x"}, "cloud_init": {"hostname": "h"}, "network": {"type": "none"}}
    assert create("w", "--spec", "/dev/stdin", stdin=open(tmp_path / "s.json", encoding="utf-8"))["spec"]["vcpus"] == 1
    assert create("w", "--spec", "-", stdin=open(tmp_path / "s.json", encoding="utf-8"))["spec"]["vcpus"] == 1


def test_spec_that_is_no_json(create, tmp_path):
    (tmp_path / "s.json").write_text('{"vcpus":1,\n "vcpus" 2}')
    got = create("w", "--spec", "s.json")
    assert got.returncode == 2 and "api::invalid_json" in got.stderr and "s.json line 2 column" in got.stderr
    (tmp_path / "s.json").write_text('{"vcpus":1,"vcpus":2}')
    assert "uplicate" in create("w", "--spec", "s.json").stderr
    (tmp_path / "s.json").write_text("[]")
    assert create("w", "--spec", "s.json").returncode == 2


@pytest.mark.parametrize("args", [
    (), ("a", "b"), ("a", "--name", "b"), ("a", "--vcpus", "two"), ("a", "--memory", "1e3"), ("a", "--memory", 31 * "9"), ("a", "--disk", ""),
    ("a", "--label", "x"), ("a", "--label", "=x"), ("a", "--forward", "80"), ("a", "--forward", "x:80"), ("a", "--initrd", "/i"),
    ("a", "--cmdline", "x"), ("a", "--start=yes"), ("a", "--vcpus"), ("a", "--unknown"), ("a", "--ssh-key", "secret"),
    ("a", "--ssh-key", "empty"), ("a", "--cloud-init", "binary"), (b"\xff",), ("a", "--label", b"k=\xff"), ("a", "-o", "xml"),
])
def test_usage_errors(create, tmp_path, args):
    (tmp_path / "secret").write_text("-----BEGIN OPENSSH PRIVATE KEY-----\n")
    (tmp_path / "empty").write_text("# none\n")
    (tmp_path / "binary").write_bytes(b"\xff\0")
    got = create(*args)
    assert got.returncode == 2 and got.stderr.startswith("vmctl: ") and "usage: vmctl create" in got.stderr


def test_files_that_cannot_be_read(create, tmp_path):
    (tmp_path / "large").write_bytes(b"x" * (2 << 20))
    for option in ("--cloud-init", "--ssh-key", "--spec"):
        for path in ("missing", ".", "large"):
            got = create("a", option, path)
            assert got.returncode == 1 and "vm_manager::io" in got.stderr and path in got.stderr


def test_output(peer):
    peer.on("POST", "/v1/vms", (200, done(kind="vm.create")))
    assert peer.vmctl("create", "web").stdout == "web created (id-web)\n"
    assert peer.vmctl("create", "web", "--start").stdout == "web created (id-web)\nweb started\n"
    assert peer.vmctl("create", "web", "-o", "name").stdout == "web\n"
    assert json.loads(peer.vmctl("create", "web", "-o", "json").stdout) == done(kind="vm.create")
    peer.on("POST", "/v1/vms", problem("vm::already_exists", 409, "web exists"))
    run = peer.vmctl("create", "web")
    assert run.returncode == 4 and "web exists" in run.stderr
