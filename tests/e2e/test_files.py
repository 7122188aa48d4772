"""Files of guests: both ways, streamed. Over SSH here; test_files_agent.py holds the guest agent to the same tests."""
import hashlib
import os
import threading
import time

import pytest

from e2e import guest
from e2e.guest import eventually
from e2e.test_exec import run, with_key

FILES = "/v1/vms/web/files"


@pytest.fixture(scope="module")
def api(shared_vmmd):
    api = shared_vmmd.client(timeout=300)
    api.daemon = shared_vmmd
    api.large = 64 << 20
    guest.booted(api, "web", **with_key(memory_mb=512))
    return api


def put(api, path, data, expect=200, **headers):
    answer = api.request("PUT", FILES, body=data, query={"path": path}, headers={k.replace("_", "-"): v for k, v in headers.items()})
    assert answer.status == expect, answer
    return answer


def test_bytes_and_mode_are_kept(api):
    data = os.urandom(300000)
    answer = put(api, "/tmp/blob", data, X_File_Mode="0751")
    assert answer.json["size"] == len(data) and answer.json["mode"] == "0751" and answer.json["type"] == "file"
    got = api.get(FILES, query={"path": "/tmp/blob"})
    assert got.status == 200 and got.body == data and got.headers["X-File-Mode"] == "0751"
    head = api.head(FILES, query={"path": "/tmp/blob"})
    assert {k: head.headers.get(k) for k in ("Content-Type", "Content-Length")} == {
        k: got.headers.get(k) for k in ("Content-Type", "Content-Length")}
    assert head.status == 200 and head.headers["X-File-Size"] == str(len(data)) and head.headers["X-File-Type"] == "file"
    assert run(api, {"script": "stat -c '%a %U' /tmp/blob"})["stdout"] == "751 vm\n"


def test_a_second_put_replaces_and_keeps_the_mode(api):
    put(api, "/tmp/twice", b"first", X_File_Mode="0600")
    assert put(api, "/tmp/twice", b"second").json["mode"] == "0600"
    assert api.get(FILES, query={"path": "/tmp/twice"}).body == b"second"
    put(api, "relative", b"")
    assert run(api, {"script": "cat relative; ls -A /tmp | grep -c vmmd-; exit 0"})["stdout"] == "0\n"


def test_files_without_a_size(api):
    assert b"Linux" in api.get(FILES, query={"path": "/proc/version"}).body


def test_list_mkdir_rename_delete(api):
    assert api.post(FILES + "/mkdir", {"path": "/tmp/a/b/c", "parents": True, "mode": "0700"}).status == 200
    put(api, "/tmp/a/b/file", b"xyz")
    run(api, {"script": "ln -s file /tmp/a/b/link"})
    items = {one["name"]: one for one in api.get(FILES, query={"path": "/tmp/a/b", "list": 1}).json["items"]}
    assert {name: one["type"] for name, one in items.items()} == {"c": "directory", "file": "file", "link": "symlink"}
    assert items["file"]["size"] == 3 and items["c"]["mode"] == "0700" and items["file"]["mtime"] > 0
    assert api.post(FILES + "/rename", {"from": "/tmp/a/b/file", "to": "/tmp/a/b/new"}).status == 200
    put(api, "/tmp/a/b/other", b"other")
    assert api.post(FILES + "/rename", {"from": "/tmp/a/b/other", "to": "/tmp/a/b/new"}).status == 200
    assert api.get(FILES, query={"path": "/tmp/a/b/new"}).body == b"other"
    answer = api.post(FILES + "/rename", {"from": "/tmp/a/b/new", "to": "/tmp/a/b/c"})
    assert (answer.code, answer.context["pointer"]) == ("api::invalid_field", "/to"), answer
    assert api.get(FILES, query={"path": "/tmp/a/b/c", "list": 1}).json == {"items": []}
    for path in ("/tmp/a/b/new", "/tmp/a/b/link", "/tmp/a/b/c"):
        assert api.delete(FILES + "?path=" + path).status == 200
    assert api.get(FILES, query={"path": "/tmp/a/b", "list": 1}).json == {"items": []}


def test_errors_are_typed(api):
    assert api.get(FILES, query={"path": "/nope"}).code == "guest::file_not_found"
    assert api.get(FILES, query={"path": "/root", "list": 1}).code == "guest::file_permission_denied"
    assert api.get(FILES, query={"path": "/etc/passwd", "list": 1}).code == "guest::not_a_directory"
    assert api.get(FILES, query={"path": "/etc"}).code == "api::invalid_field"
    assert api.get(FILES).code == "api::invalid_field"
    assert put(api, "/etc/new", b"x", 403).code == "guest::file_permission_denied"
    assert put(api, "/nope/new", b"x", 404).code == "guest::file_not_found"
    assert put(api, "/tmp", b"x", 422).code == "api::invalid_field"
    assert put(api, "/tmp/x", b"x", 422, X_File_Mode="rw").code == "api::invalid_field"
    assert api.delete(FILES + "?path=/nope").code == "guest::file_not_found"
    assert api.delete(FILES + "?path=/").status in (403, 500)
    assert api.post(FILES + "/mkdir", {"path": "/root/x"}).code == "guest::file_permission_denied"


def test_a_full_disk_is_told_and_leaves_nothing(api):
    run(api, {"script": "mkdir -p /mnt/s && mount -t tmpfs -o size=1m,mode=777 s /mnt/s", "user": "root", "via": "agent"})
    answer = put(api, "/mnt/s/big", bytes(3 << 20), 507)
    assert answer.code == "guest::no_space"
    assert eventually(lambda: api.get(FILES, query={"path": "/mnt/s", "list": 1}).json, lambda j: j == {"items": []})


def test_a_large_file_both_ways_in_constant_memory(api):
    size, block = api.large, os.urandom(1 << 20)
    run(api, {"script": "mkdir -p /mnt/l && mount -t tmpfs -o size=80m,mode=777 l /mnt/l", "user": "root", "via": "agent"})
    def body():
        for _ in range(size // len(block)):
            yield block
    want = hashlib.sha256()
    for piece in body():
        want.update(piece)
    before = resident(api.daemon.pid)
    begin = time.monotonic()
    answer = api.request("PUT", FILES, body=body(), query={"path": "/mnt/l/large"}, headers={"Content-Length": str(size)}, timeout=400)
    assert answer.status == 200 and answer.json["size"] == size
    print("put", size / (time.monotonic() - begin) / 1e6, "MB/s")
    begin = time.monotonic()
    sock, got = fetch(api, "/mnt/l/large")
    assert got.hexdigest() == want.hexdigest()
    print("get", size / (time.monotonic() - begin) / 1e6, "MB/s")
    if "VMMD_SANITIZED" not in os.environ:  # which keeps what was freed
        assert resident(api.daemon.pid) < before + 32768
    run(api, {"script": "umount /mnt/l", "user": "root", "via": "agent"})


def fetch(api, path):
    import http.client
    sock = api.connect(300)
    sock.sendall(f"GET {FILES}?path={path} HTTP/1.1\r\nHost: vmmd\r\n\r\n".encode())
    answer = http.client.HTTPResponse(sock)
    answer.begin()
    assert answer.status == 200
    digest = hashlib.sha256()
    while piece := answer.read(1 << 20):
        digest.update(piece)
    sock.close()
    return sock, digest


def resident(pid):
    with open(f"/proc/{pid}/status", encoding="utf-8") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmRSS:"))


def test_an_upload_that_breaks_off_leaves_what_was_there(api):
    put(api, "/tmp/kept", b"kept")
    sock = api.connect(30)
    sock.sendall(b"PUT " + FILES.encode() + b"?path=/tmp/kept HTTP/1.1\r\nHost: vmmd\r\nContent-Length: 10000000\r\n\r\n" + bytes(500000))
    temp = {"script": "ls -A /tmp | grep -c '^.vmmd-'; exit 0"}
    eventually(lambda: run(api, temp)["stdout"], lambda n: n == "1\n")
    sock.close()
    eventually(lambda: run(api, temp)["stdout"], lambda n: n == "0\n")
    assert api.get(FILES, query={"path": "/tmp/kept"}).body == b"kept"


def test_transfers_and_commands_do_not_wait_for_each_other(api):
    answers = []

    def one(i):  # one that was broken off may still hold its place for a moment
        answer = eventually(lambda: api.request("PUT", FILES, body=bytes(200000), query={"path": f"/tmp/p{i}"}), lambda a: a.status != 503)
        answers.append(answer.status)
    threads = [threading.Thread(target=one, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    assert run(api, {"command": ["true"]})["exit_code"] == 0
    for thread in threads:
        thread.join()
    assert answers == [200] * 4


def test_one_transfer_after_another_finds_room(api):
    put(api, "/tmp/small", b"x")
    answers = [api.get(FILES, query={"path": "/tmp/small"}).status for _ in range(30)]
    assert answers == [200] * 30


def test_names_with_any_character(api):
    names = ["-rf", "new\nline", "it's \"$HOME\" `id` *", "ä: Permission denied", "end\n"]
    assert api.post(FILES + "/mkdir", {"path": "/tmp/-names"}).status == 200
    for name in names:
        put(api, "/tmp/-names/" + name, name.encode(), X_File_Mode="0640")
    items = api.get(FILES, query={"path": "/tmp/-names", "list": 1}).json["items"]
    assert sorted(one["name"] for one in items) == sorted(names)
    for name in names:
        got = api.get(FILES, query={"path": "/tmp/-names/" + name})
        assert got.body == name.encode() and got.headers["X-File-Mode"] == "0640"
    assert api.get(FILES, query={"path": "/tmp/-names/a: Permission denied"}).code == "guest::file_not_found"
    put(api, "-dash", b"relative")
    assert api.post(FILES + "/rename", {"from": "-dash", "to": "--"}).status == 200
    assert api.get(FILES, query={"path": "--"}).body == b"relative"
    assert api.request("DELETE", FILES, query={"path": "--"}).status == 200


def test_a_directory_of_thousands(api):
    run(api, {"script": "mkdir -p /tmp/many && cd /tmp/many && for i in $(seq 3000); do : >a-name-of-some-length-$i; done"})
    items = api.get(FILES, query={"path": "/tmp/many", "list": 1}).json["items"]
    assert len(items) == 3000 and len({one["name"] for one in items}) == 3000


def test_what_is_no_empty_directory_stays(api):
    api.post(FILES + "/mkdir", {"path": "/tmp/full/x", "parents": True})
    answer = api.delete(FILES + "?path=/tmp/full")
    assert answer.status == 409 and answer.code == "guest::directory_not_empty"
    assert api.post(FILES + "/mkdir", {"path": "/tmp/full"}).status == 200  # it is there


def test_a_file_of_somebody_else_in_a_sticky_directory_is_not_replaced(api):
    run(api, {"script": "umask 022; mkdir -m 1777 /mnt/sticky && echo theirs >/mnt/sticky/theirs", "user": "root", "via": "agent"})
    answer = put(api, "/mnt/sticky/theirs", b"mine", 403)
    assert answer.code == "guest::file_permission_denied"
    put(api, "/mnt/sticky/mine", b"mine")
    answer = api.post(FILES + "/rename", {"from": "/mnt/sticky/mine", "to": "/mnt/sticky/theirs"})
    assert answer.code == "guest::file_permission_denied"
    assert api.delete(FILES + "?path=/mnt/sticky/theirs").code == "guest::file_permission_denied"
    names = [one["name"] for one in api.get(FILES, query={"path": "/mnt/sticky", "list": 1}).json["items"]]
    assert sorted(names) == ["mine", "theirs"]
    assert api.get(FILES, query={"path": "/mnt/sticky/theirs"}).body == b"theirs\n"


def test_a_vm_that_is_not_there_has_no_files(vmmd):
    api = vmmd.client()
    guest.make(api, "web", start=True, **guest.deaf())
    assert api.get(FILES, query={"path": "/etc/passwd"}).code == "guest::unavailable"
    guest.do(api, "kill")
    assert api.get(FILES, query={"path": "/etc/passwd"}).code == "vm::invalid_state"
