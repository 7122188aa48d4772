"""Commands and files in a stock Debian guest: its OpenSSH, sftp-server, dash and sudo. One boot for all."""
import base64
import hashlib
import http.client
import json
import os
import threading
import time

import pytest

from debian.machine import debian, wait
from e2e import guest
from e2e.conftest import shared_vmmd  # noqa: F401
from e2e.test_exec import Live, helpers, run
from lib.vms import eventually, get_vm

FILES = "/v1/vms/web/files"


@pytest.fixture(scope="module")
def api(shared_vmmd):  # noqa: F811
    api = shared_vmmd.client()
    api.daemon = shared_vmmd
    guest.make(api, start=True, **debian(network={"type": "user"}, disk_gb=4, cloud_init={"hostname": "deb"}))
    assert guest.condition(wait(api, "ready", "cloud_init"), "ready")["reason"] == "ssh"
    return api


def script(text, **more):
    return {"script": text, "via": "ssh", "timeout_s": 120, **more}


def as_root(api, text):
    out = run(api, {"script": text, "via": "agent", "user": "root", "timeout_s": 60})
    assert out["exit_code"] == 0, out
    return out["stdout"]


def count(api, command):
    """Processes of the guest with just this command line."""
    return int(as_root(api, f"pgrep -cxf '{command}' || true"))


def put(api, path, data, expect=200, **headers):
    answer = api.request("PUT", FILES, body=data, query={"path": path}, headers=headers, timeout=120)
    assert answer.status == expect, answer
    return answer


def largest(daemon):
    """The resident KiB of vmmd and of vmmd-ssh."""
    sizes = []
    for pid in (daemon.pid, *helpers(daemon)):
        with open(f"/proc/{pid}/status", encoding="utf-8") as file:
            sizes.append(next(int(line.split()[1]) for line in file if line.startswith("VmRSS:")))
    return max(sizes)


@pytest.mark.parametrize("user, home", [(None, "/home/vm"), ("root", "/root"), ("games", "/usr/games")])
def test_a_command_is_its_users_and_begins_at_its_home(api, user, home):
    out = run(api, script('id -un; pwd; echo "$HOME"; exit 3', user=user))
    assert (out["exit_code"], out["stdout"]) == (3, f"{user or 'vm'}\n{home}\n{home}\n"), out
    out = run(api, script('echo "$X"; pwd; wc -c', user=user, env={"X": "it's $HOME"}, cwd="/tmp",
                          stdin_base64=base64.b64encode(bytes(500000)).decode()))
    assert out["stdout"] == "it's $HOME\n/tmp\n500000\n", out


@pytest.mark.parametrize("user", [None, "root"])
@pytest.mark.parametrize("name", ["KILL", "TERM", "SEGV"])
def test_a_signal_is_told(api, user, name):
    out = run(api, {"command": ["sh", "-c", f"kill -{name} $$"], "user": user, "via": "ssh"})
    assert (out["exit_code"], out["signal"]) == (None, f"SIG{name}")


def test_what_cannot_begin_says_why(api):
    assert run(api, {"command": ["nonesuch"], "via": "ssh"})["exit_code"] == 127
    assert run(api, {"command": ["true"], "cwd": "/root", "via": "ssh"}, 403).code == "guest::file_permission_denied"
    answer = run(api, {"command": ["true"], "user": "nobody-here", "via": "ssh"}, 422)
    assert answer.code == "api::invalid_field" and answer.context["pointer"] == "/user"


@pytest.mark.parametrize("user", [None, "root"])
def test_a_timeout_kills_the_group_also_by_sudo(api, user):
    """What has left its session for one of its own is not of the group, and lives on, as with kill(1)."""
    body = script("(sleep 4711 & sleep 4711) & setsid sleep 4713 & sleep 4711", timeout_s=8, user=user)
    assert run(api, body, 504).code == "exec::timed_out"
    eventually(lambda: count(api, "sleep 4711"), lambda n: n == 0)
    assert count(api, "sleep 4713") == 1
    as_root(api, "pkill -xf 'sleep 4713'")


@pytest.mark.parametrize("user", [None, "root"])
def test_a_client_that_leaves_kills_the_command_also_by_sudo(api, user):
    lines = Live(api, script("echo begun; sleep 4712 & sleep 4712", user=user))
    assert next(iter(lines))["data"] == "begun\n"
    lines.leave()
    eventually(lambda: count(api, "sleep 4712"), lambda n: n == 0)


def test_a_grandchild_that_holds_the_output_hangs_nobody(api):
    out = run(api, script("sleep 60 & echo done; exit 4"))
    assert (out["exit_code"], out["stdout"]) == (4, "done\n") and out["duration_ms"] < 30000


def test_much_output_in_constant_memory(api):
    run(api, {"command": ["true"], "via": "ssh"})
    before = largest(api.daemon)
    lines = Live(api, {"command": ["head", "-c", "50000000", "/dev/zero"], "via": "ssh", "timeout_s": 300})
    time.sleep(2)  # nobody reads: what is held is bounded
    assert largest(api.daemon) < before + 8192
    got = 0
    for line in lines:
        got += len(line.get("data", "")) or len(base64.b64decode(line.get("data_base64", "")))
    assert got == 50000000 and line["exit_code"] == 0
    assert largest(api.daemon) < before + 8192


def test_files_by_sftp(api):
    assert put(api, "/tmp/a b\xe4", b"one", **{"X-File-Mode": "0751"}).json["mode"] == "0751"
    assert put(api, "/tmp/a b\xe4", b"other").json["mode"] == "0751"  # over what is there, which keeps its mode
    answer = api.get(FILES, query={"path": "/tmp/a b\xe4"})
    assert (answer.body, answer.headers["X-File-Mode"]) == (b"other", "0751")
    assert api.post(FILES + "/mkdir", {"path": "/tmp/d/e", "parents": True, "mode": "0700"}).status == 200
    assert api.post(FILES + "/rename", {"from": "/tmp/a b\xe4", "to": "/tmp/d/f"}).status == 200
    items = api.get(FILES, query={"path": "/tmp/d", "list": 1}).json["items"]
    assert {item["name"]: (item["type"], item["mode"]) for item in items} == {"e": ("directory", "0700"), "f": ("file", "0751")}
    assert api.request("HEAD", FILES, query={"path": "/tmp/d/f"}).headers["X-File-Size"] == "5"
    for path in ("/tmp/d/f", "/tmp/d/e", "/tmp/d"):
        assert api.delete(FILES, query={"path": path}).status == 200
    assert api.get(FILES, query={"path": "/tmp/d/f"}).code == "guest::file_not_found"
    assert api.get(FILES, query={"path": "/root/.profile"}).code == "guest::file_permission_denied"
    assert put(api, "/root/x", b"x", 403).code == "guest::file_permission_denied"
    as_root(api, "mkdir -p /mnt/s && mount -t tmpfs -o size=1m,mode=777 s /mnt/s")
    assert put(api, "/mnt/s/big", bytes(3 << 20), 507).code == "guest::no_space"
    assert api.get(FILES, query={"path": "/mnt/s", "list": 1}).json == {"items": []}


def test_a_large_file_both_ways_in_constant_memory(api):
    size, block = 48 << 20, os.urandom(1 << 20)
    put(api, "/tmp/small", b"x")
    before = largest(api.daemon)
    answer = api.request("PUT", FILES, body=(block for _ in range(size >> 20)), query={"path": "/home/vm/large"},
                         headers={"Content-Length": str(size)}, timeout=400)
    assert answer.status == 200 and answer.json["size"] == size
    with api.connect(300) as sock:
        sock.sendall(f"GET {FILES}?path=/home/vm/large HTTP/1.1\r\nHost: vmmd\r\n\r\n".encode())
        answer = http.client.HTTPResponse(sock)
        answer.begin()
        digest = hashlib.sha256()
        while piece := answer.read(1 << 20):
            digest.update(piece)
    assert digest.digest() == hashlib.sha256(block * (size >> 20)).digest()
    assert largest(api.daemon) < before + 8192


def test_a_hundred_at_once_whatever_sshd_allows(api):
    """Few channels on each connection, and connections dropped that come in a crowd."""
    limits = "MaxSessions 3\\nMaxStartups 2:100:2\\n"
    as_root(api, f"printf '{limits}' >/etc/ssh/sshd_config.d/few.conf; systemctl restart ssh; pkill -f '[s]shd: vm' || true")
    eventually(lambda: get_vm(api, "web"), guest.is_ready, 60)
    seen = []

    def one(i):
        answer = api.post("/v1/vms/web/exec", {"command": ["sh", "-c", f"sleep 1; echo {i}"], "via": "ssh", "timeout_s": 150}, timeout=180)
        seen.append(answer.json["stdout"].strip() if answer.status == 200 else json.dumps(answer.json))
    threads = [threading.Thread(target=one, args=(i,)) for i in range(100)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(seen) == sorted(map(str, range(100)))
