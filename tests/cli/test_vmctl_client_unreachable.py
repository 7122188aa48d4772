"""What vmctl says when no daemon answers, and where it looks for one."""
import glob
import json
import os
import shutil
import socket
import subprocess
import tempfile
import time

import pytest

from lib.conform import record_code
from lib.vmmd import VMCTL, VMMD

CODE = "vm_manager::client::daemon_unreachable"
NOBODY = 65534


def run(*args, **env):
    clean = {key: value for key, value in os.environ.items() if not key.startswith("VMMD_") and key != "XDG_RUNTIME_DIR"}
    return subprocess.run([VMCTL, *args], env=dict(clean, **env), stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=30,
                          check=False)


def test_no_socket(tmp_path):
    path = str(tmp_path / "none.sock")
    got = run("list", "--socket", path)
    assert got.returncode == 5 and got.stdout == ""
    assert CODE in got.stderr and path in got.stderr and "No such file" in got.stderr
    record_code(CODE)
    assert "systemctl start vmmd" in got.stderr


def test_nobody_listens(tmp_path):
    path = str(tmp_path / "dead.sock")
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(path)
    got = run("list", VMMD_SOCKET=path)
    assert got.returncode == 5 and "Connection refused" in got.stderr and "systemctl start vmmd" in got.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become another user")
def test_not_in_the_group(peer, tmp_path):
    # The binary is copied, because another user may not reach the checkout.
    binary = shutil.copy(VMCTL, os.path.join(peer.dir, "vmctl"))
    os.chmod(peer.dir, 0o755)
    os.chmod(peer.socket, 0o660)
    got = subprocess.run([binary, "list", "--socket", peer.socket], user=NOBODY, group=NOBODY, extra_groups=[], cwd="/",
                         capture_output=True, text=True, timeout=30, check=False)
    assert got.returncode == 5 and "Permission denied" in got.stderr and "adduser" in got.stderr and "vmmd" in got.stderr
    assert "systemctl start" not in got.stderr


def test_json_prints_the_document_and_nothing_else(tmp_path):
    got = run("-o", "json", "status", "web", "--socket", str(tmp_path / "none.sock"))
    document = json.loads(got.stdout)
    assert got.returncode == 5 and got.stderr == ""
    assert document["code"] == CODE and document["causes"] == ["No such file or directory"]


def test_verbs_stop_at_the_first_name(tmp_path):
    got = run("start", "a", "b", "c", "--socket", str(tmp_path / "none.sock"))
    assert got.returncode == 5 and got.stderr.count(CODE) == 1 and "nothing was asked for b" in got.stderr


def test_a_path_too_long_for_a_socket(tmp_path):
    got = run("list", "--socket", "/" + 120 * "x")
    assert got.returncode == 2 and "107 bytes" in got.stderr


def test_url(tmp_path):
    with socket.socket() as sock:  # bound, nobody listens
        sock.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{sock.getsockname()[1]}"
        got = run("list", VMMD_URL=url)
    assert got.returncode == 5 and url in got.stderr and "--listen" in got.stderr
    assert run("list", "--url", "ftp://x").returncode == 2
    assert run("list", "--url", "http://x", "--socket", "/x").returncode == 2


def test_option_goes_over_environment_and_a_proxy_is_not_asked(peer):
    peer.on("GET", "/v1/vms.*", (200, {"items": [], "next_cursor": None, "as_of_event": 0}))
    got = run("list", "-o", "name", "--socket", peer.socket, VMMD_SOCKET="/none", VMMD_URL="http://none", http_proxy="http://127.0.0.1:1",
              ALL_PROXY="http://127.0.0.1:1")
    assert got.returncode == 0 and len(peer.requests) == 1


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become another user")
def test_a_user_finds_the_own_socket(peer, tmp_path):
    binary = shutil.copy(VMCTL, os.path.join(peer.dir, "vmctl"))
    os.chmod(peer.dir, 0o755)
    os.mkdir(os.path.join(peer.dir, "vmmd"))
    own = os.path.join(peer.dir, "vmmd", "vmmd.sock")
    os.symlink(peer.socket, own)
    os.chmod(peer.socket, 0o666)
    peer.on("GET", "/v1/vms.*", (200, {"items": [], "next_cursor": None, "as_of_event": 0}))
    got = subprocess.run([binary, "list", "-o", "name"], user=NOBODY, group=NOBODY, extra_groups=[], cwd="/", capture_output=True,
                         text=True, timeout=30, check=False, env={"XDG_RUNTIME_DIR": peer.dir})
    assert got.returncode == 0 and len(peer.requests) == 1


def test_version_tells_its_own_without_a_daemon(tmp_path):
    got = run("version", "--socket", str(tmp_path / "none.sock"))
    assert got.returncode == 5 and got.stdout.startswith("vmctl ") and CODE in got.stderr
    assert run("--version").returncode == 0


def test_errors_explains_its_own_code_without_a_daemon(tmp_path):
    got = run("errors", "client::daemon_unreachable", "--socket", str(tmp_path / "none.sock"))
    assert got.returncode == 0 and CODE in got.stdout and "help:" in got.stdout


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become another user")
@pytest.mark.parametrize("place", ["XDG_RUNTIME_DIR", "XDG_DATA_HOME", "HOME"])
def test_user_finds_the_daemon_that_the_user_started(place):
    """Where vmmd puts its socket when nothing names one, vmctl looks for it."""
    # No tmp_path: another user may not reach it.
    with tempfile.TemporaryDirectory(prefix="vmmd-") as home:
        for binary in glob.glob(os.path.join(os.path.dirname(VMMD), "vmmd*")) + [VMCTL]:
            if os.path.isfile(binary):
                shutil.copy(binary, home)
        os.chmod(home, 0o755)
        own = os.path.join(home, "own")
        os.mkdir(own)
        os.chown(own, NOBODY, NOBODY)
        env = {"PATH": os.environ["PATH"], "HOME": own if place == "HOME" else "/nonexistent", place: own}
        if place == "XDG_RUNTIME_DIR":
            env["HOME"] = own
        who = {"user": NOBODY, "group": NOBODY, "extra_groups": [], "cwd": "/", "env": env, "stdin": subprocess.DEVNULL}
        with subprocess.Popen([os.path.join(home, "vmmd")], stderr=subprocess.DEVNULL, **who) as daemon:
            try:
                for _ in range(600):
                    got = subprocess.run([os.path.join(home, "vmctl"), "version", "-o", "json"], capture_output=True, text=True, timeout=30,
                                         check=False, **who)
                    if got.returncode == 0 or daemon.poll() is not None:
                        break
                    time.sleep(0.1)
                assert got.returncode == 0, (got, daemon.poll())
            finally:
                daemon.terminate()
