"""vmctl cp where no ssh reaches the guest: by the daemon's API."""
import os
import signal
import threading
import urllib.parse

import pytest

from scripted import problem


class Tree:
    """A guest's files: a dict is a directory, bytes are a file, a text is the type of something else."""

    def __init__(self, peer, files):
        self.files, self.modes = files, {}
        peer.on("GET", "/v1/vms/web", (200, {"id": "1", "name": "web"}))
        peer.on("GET", "/v1/vms/web/ssh", (200, {"user": "vm", "host": None, "port": None, "private_key_path": None,
                                                 "host_key": None, "known_hosts": None}))
        peer.on("GET", "/v1/vms/web/files.*", self.get)
        peer.on("PUT", "/v1/vms/web/files.*", self.put)
        peer.on("POST", "/v1/vms/web/files/mkdir", self.mkdir)

    def find(self, path):
        at = self.files
        for part in path.strip("/").split("/"):
            at = at[part]
        return at

    def place(self, path, what):
        above, _, name = path.strip("/").rpartition("/")
        (self.find(above) if above else self.files)[name] = what

    def get(self, request):
        query = urllib.parse.parse_qs(urllib.parse.urlparse(request.path).query, encoding="utf-8")
        try:
            found = self.find(query["path"][0])
        except (KeyError, TypeError):
            return problem("guest::file_not_found", 404)
        if "list" in query:
            if not isinstance(found, dict):
                return problem("guest::not_a_directory", 409)
            kinds = {bytes: "file", dict: "directory"}
            return 200, {"items": [{"name": name, "type": kinds.get(type(what), what), "size": 1, "mode": "0644", "mtime": 1}
                                   for name, what in found.items()]}
        return 200, found, {"X-File-Mode": "0750"}

    def put(self, request):
        path = urllib.parse.parse_qs(urllib.parse.urlparse(request.path).query)["path"][0]
        self.place(path, request.body)
        self.modes[path] = request.headers["X-File-Mode"]
        return 200, {}

    def mkdir(self, request):
        self.place(request.json["path"], {})
        return 200, {}


def test_directory_comes_with_all_it_holds(peer, tmp_path):
    Tree(peer, {"top": {"a": b"one", "-n \n": b"two", "sub": {"c": b"", "deep": {}}, "pipe": "other"}})
    done = peer.vmctl("cp", "-r", "web:/top", str(tmp_path))
    assert done.returncode == 0 and "/top/pipe: a other; left out" in done.stderr
    top = tmp_path / "top"
    assert (top / "a").read_bytes() == b"one" and (top / "-n \n").read_bytes() == b"two"
    assert os.stat(top / "a").st_mode & 0o777 == 0o750
    assert (top / "sub" / "c").read_bytes() == b"" and (top / "sub" / "deep").is_dir()
    assert sorted(os.listdir(top)) == ["-n \n", "a", "sub"]


def test_directory_goes_with_all_it_holds(peer, tmp_path):
    tree = Tree(peer, {"tmp": {}})
    top = tmp_path / "top"
    (top / "sub dir").mkdir(parents=True)
    (top / "a").write_bytes(b"one")
    (top / "sub dir" / "b").write_bytes(b"two")
    (top / "link").symlink_to("a")
    os.chmod(top / "a", 0o751)
    assert peer.vmctl("cp", "-r", str(top) + "/", "web:/tmp").returncode == 0
    assert tree.files == {"tmp": {"top": {"a": b"one", "link": b"one", "sub dir": {"b": b"two"}}}}
    assert tree.modes["/tmp/top/a"] == "0751"


@pytest.mark.parametrize("name", ["..", ".", "", "../out", "/etc/x", "sub/x"])
def test_name_of_a_hostile_guest_stays_below(peer, tmp_path, name):
    Tree(peer, {"top": {name: b"evil", "good": b"1"}})
    done = peer.vmctl("cp", "-r", "web:/top", str(tmp_path / "new"))
    assert done.returncode == 1 and "no name for a file here" in done.stderr
    assert os.listdir(tmp_path / "new") == ["good"] and os.listdir(tmp_path) == ["new"]


def test_file_is_whole_or_not_there(peer, tmp_path):
    tree = Tree(peer, {"a": b"x", "b": b"y"})
    (tmp_path / "a").write_bytes(b"old")

    def cut(request):
        if "list" in request.path:
            return tree.get(request)
        request.send(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nhalf")

    peer.on("GET", "/v1/vms/web/files.*", cut)
    assert peer.vmctl("cp", "web:/a", "web:/b", str(tmp_path)).returncode != 0
    assert os.listdir(tmp_path) == ["a"] and (tmp_path / "a").read_bytes() == b"old"


def test_ctrl_c_leaves_nothing(peer, tmp_path):
    tree = Tree(peer, {"a": b"x"})
    there = threading.Event()

    def stall(request):
        if "list" in request.path:
            return tree.get(request)
        request.send(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nhalf")
        there.wait()
        run.send_signal(signal.SIGINT)
        run.wait()

    peer.on("GET", "/v1/vms/web/files.*", stall)
    run = peer.popen("cp", "web:/a", str(tmp_path))
    there.set()
    run.communicate(timeout=60)
    assert run.returncode == 130 and os.listdir(tmp_path) == []


def test_what_cp_cannot_do_is_said(peer, tmp_path):
    Tree(peer, {"top": {"a": b"1"}, "f": b"2"})
    at = str(tmp_path)
    for words, code, said in ((["web:/top", at], 1, "-r copies it"), ([at, "web:/"], 1, "-r copies it"),
                              (["web:/f", "web:/top", at + "/none"], 1, "not a directory"),
                              (["web:/none", at], 3, "file_not_found"), ([at + "/none", "web:/top"], 1, "No such file"),
                              (["web:/f", "db:/f"], 2, "one VM at a time"), (["web:/f", "web:/g"], 2, "usage"),
                              ([at, at], 2, "NAME:PATH")):
        done = peer.vmctl("cp", *words)
        assert (done.returncode, said in done.stderr) == (code, True), (words, done)
