"""Who may speak to the daemon: the Unix socket's peers, TCP with a token, and no web page."""
import json
import os
import socket
import stat
import subprocess
import sys

import pytest

from lib.client import Client
from lib.vmmd import Daemon, free_port, run_vmmd

TOKEN = "s3cret-0123456789abcdef0123456789abcdef"


def listening(daemon, auth=True, **kw):
    """Starts a daemon with a TCP listener; its port."""
    for _ in range(5):  # another test may have taken the port meanwhile
        port = free_port()
        daemon.extra_args = ["--listen", f"127.0.0.1:{port}"] + ([] if auth else ["--no-auth"])
        if auth:
            path = os.path.join(daemon.dir, "token")
            with open(path, "w", encoding="ascii", opener=lambda p, f: os.open(p, f, 0o600)) as file:
                file.write(TOKEN + "\n")
            daemon.write_config(f"token_file = {path}\n")
        try:
            daemon.start()
            return port
        except AssertionError:
            if "in use" not in daemon.log():
                raise
    raise AssertionError("no free port")


@pytest.fixture(scope="module")
def tcp():
    with Daemon(start=False) as daemon:
        port = listening(daemon)
        daemon.tcp = ("127.0.0.1", port)
        yield daemon


@pytest.fixture(scope="module")
def open_tcp():
    with Daemon(start=False) as daemon:
        port = listening(daemon, auth=False)
        daemon.tcp = ("127.0.0.1", port)
        yield daemon


def test_unix_socket_needs_no_token(shared_api):
    assert shared_api.get("/v1/vms").status == 200


def test_unix_socket_is_not_for_others(shared_vmmd):
    mode = os.stat(shared_vmmd.socket).st_mode
    assert stat.S_ISSOCK(mode) and mode & 0o007 == 0


@pytest.mark.skipif(os.getuid() != 0, reason="needs root to become another user")
def test_peer_of_another_user_is_forbidden(vmmd):
    os.chmod(vmmd.dir, 0o755)
    os.chmod(vmmd.socket, 0o666)  # the mode alone must not be what keeps others out
    code = ("import os,socket,sys; os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
            "s=socket.socket(socket.AF_UNIX); s.connect(sys.argv[1])\n"
            "s.sendall(b'GET /v1/vms HTTP/1.1\\r\\nHost: vmmd\\r\\nConnection: close\\r\\n\\r\\n')\n"
            "d=b''\n"
            "while True:\n p=s.recv(65536)\n if not p: break\n d+=p\n"
            "sys.stdout.buffer.write(d)\n")
    out = subprocess.run([sys.executable, "-c", code, vmmd.socket], stdout=subprocess.PIPE, check=True, timeout=60).stdout
    assert out.startswith(b"HTTP/1.1 403") and b"vm_manager::api::forbidden" in out


def test_tcp_with_the_token_is_served(tcp):
    api = Client(address=tcp.tcp, token=TOKEN)
    assert api.get("/v1/vms").status == 200
    assert api.post("/v1/vms", {"name": "tcp", "backend": "noop"}, prefer_wait=60).status == 200
    assert api.delete("/v1/vms/tcp", prefer_wait=60).status == 200


@pytest.mark.parametrize("headers", [
    {}, {"Authorization": f"Bearer {TOKEN}x"}, {"Authorization": f"Bearer {TOKEN[:-1]}"}, {"Authorization": "Bearer "},
    {"Authorization": "Bearer"}, {"Authorization": TOKEN}, {"Authorization": f"Basic {TOKEN}"}, {"Authorization": ""},
    {"Authorization": f"Bearer {TOKEN} {TOKEN}"},
])
def test_tcp_without_the_token_is_unauthorized(tcp, headers):
    api = Client(address=tcp.tcp)
    for path in ("/v1/vms", "/v1/health", "/metrics", "/nonsense"):
        answer = api.get(path, headers=headers)
        assert (answer.status, answer.code) == (401, "api::unauthorized")
        assert answer.headers["WWW-Authenticate"].startswith("Bearer")


def test_scheme_of_the_token_is_of_any_case(tcp):
    assert Client(address=tcp.tcp).get("/v1/health", headers={"Authorization": f"bearer {TOKEN}"}).status == 200


def test_token_is_not_in_the_log(tcp):
    Client(address=tcp.tcp, token=TOKEN).get("/v1/vms")
    Client(address=tcp.tcp, token="wrong-" + TOKEN).get("/v1/vms")
    assert TOKEN not in tcp.log()


def test_tcp_without_auth_is_served_and_warned_of(open_tcp):
    assert Client(address=open_tcp.tcp).get("/v1/vms").status == 200
    assert "no-auth" in open_tcp.log() or "no_auth" in open_tcp.log()


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "127.0.0.1.evil.example", "localhost.evil.example", "vmmd"])
def test_foreign_host_is_forbidden_on_tcp(open_tcp, host):
    answer = Client(address=open_tcp.tcp).get("/v1/vms", headers={"Host": host})
    assert (answer.status, answer.code) == (403, "api::forbidden")


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]"])
def test_local_hosts_are_served_on_tcp(open_tcp, host):
    port = open_tcp.tcp[1]
    assert Client(address=open_tcp.tcp).get("/v1/vms", headers={"Host": f"{host}:{port}"}).status == 200


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "https://127.0.0.1.evil.example", "file://"])
def test_foreign_origin_is_forbidden_on_tcp(open_tcp, origin):
    api = Client(address=open_tcp.tcp)
    for method, path in (("GET", "/v1/vms"), ("POST", "/v1/vms"), ("DELETE", "/v1/vms/x")):
        answer = api.request(method, path, headers={"Origin": origin})
        assert (answer.status, answer.code) == (403, "api::forbidden")


def test_foreign_origin_is_forbidden_on_tcp_with_a_token_too(tcp):
    answer = Client(address=tcp.tcp, token=TOKEN).get("/v1/vms", headers={"Origin": "http://evil.example"})
    assert answer.code == "api::forbidden"


def test_answers_carry_no_cors_permission(open_tcp):
    answer = Client(address=open_tcp.tcp).get("/v1/vms")
    assert answer.headers.get("Access-Control-Allow-Origin") is None


@pytest.mark.parametrize("args", [
    ["--listen", "127.0.0.1:0x"], ["--listen", "nonsense"], ["--listen", "127.0.0.1:99999"],
])
def test_listener_that_cannot_be_is_refused(tmp_path, args):
    done = run_vmmd("--data-dir", str(tmp_path / "d"), "--runtime-dir", str(tmp_path / "r"), "--socket", str(tmp_path / "s"),
                    "--no-auth", *args)
    assert done.returncode in (1, 2) and done.stderr


def refused_start(tmp_path, *args):
    done = run_vmmd("--data-dir", str(tmp_path / "d"), "--runtime-dir", str(tmp_path / "r"), "--socket", str(tmp_path / "s"), *args)
    assert done.returncode != 0
    return done.stderr


def test_tcp_without_a_token_is_refused_at_start(tmp_path):
    assert "token" in refused_start(tmp_path, "--listen", f"127.0.0.1:{free_port()}")


def test_no_auth_beyond_loopback_is_refused_at_start(tmp_path):
    assert "loopback" in refused_start(tmp_path, "--no-auth", "--listen", f"0.0.0.0:{free_port()}")


SMUGGLE = b"GET /v1/version HTTP/1.1\r\nHost: vmmd\r\n\r\n"


@pytest.mark.parametrize("headers, body", [
    (b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n", b"0\r\n\r\n" + SMUGGLE),
    (b"Transfer-Encoding: chunked\r\nContent-Length: %d\r\n" % (5 + len(SMUGGLE)), b"0\r\n\r\n" + SMUGGLE),
    (b"Content-Length: 2\r\nContent-Length: %d\r\n" % (2 + len(SMUGGLE)), b"{}" + SMUGGLE),
    (b"Content-Length: 2\r\nContent-Length: 2\r\n", b"{}" + SMUGGLE),
    (b"Content-Length: 2, 2\r\n", b"{}" + SMUGGLE),
    (b"Content-Length: +2\r\n", b"{}" + SMUGGLE),
    (b"Content-Length: -1\r\n", b"{}" + SMUGGLE),
    (b"Content-Length: 0x2\r\n", b"{}" + SMUGGLE),
    (b"Content-Length: 99999999999999999999999\r\n", b"{}" + SMUGGLE),
    (b"Transfer-Encoding: chunked, identity\r\n", b"0\r\n\r\n" + SMUGGLE),
    (b"Transfer-Encoding: xchunked\r\n", b"0\r\n\r\n" + SMUGGLE),
    (b"Transfer-Encoding: identity\r\nContent-Length: 2\r\n", b"{}" + SMUGGLE),
    (b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", b"0\r\n\r\n" + SMUGGLE),
])
def test_request_smuggling_is_refused_and_the_connection_closed(shared_api, headers, body):
    data = b"POST /v1/vms HTTP/1.1\r\nHost: vmmd\r\nContent-Type: application/json\r\n" + headers + b"\r\n" + body
    received = shared_api.raw(data, timeout=30)
    assert b'"api":' not in received, "the smuggled request was answered"
    first = received.split(b"\r\n", 1)[0]
    assert received == b"" or first.split(b" ")[1] in (b"400", b"413", b"501"), first


def test_smuggling_has_its_code(shared_api):
    answer = shared_api.raw_response(b"POST /v1/vms HTTP/1.1\r\nHost: vmmd\r\nContent-Type: application/json\r\n"
                                     b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", timeout=30)
    assert answer.status == 400 and answer.json["code"] == "vm_manager::api::bad_request"
    from lib.conform import record_code
    record_code("api::bad_request")


@pytest.mark.parametrize("host", [b"", b"Host: a\r\nHost: b\r\n"])
def test_missing_and_double_host_are_refused(open_tcp, host):
    api = Client(address=open_tcp.tcp)
    received = api.raw(b"GET /v1/vms HTTP/1.1\r\n" + host + b"Connection: close\r\n\r\n", timeout=30)
    assert received == b"" or received.startswith((b"HTTP/1.1 400", b"HTTP/1.1 403"))


def test_ipv6_loopback_is_loopback(daemons):
    with socket.socket(socket.AF_INET6) as sock:
        try:
            sock.bind(("::1", 0))
        except OSError:
            pytest.skip("no IPv6 here")
        port = sock.getsockname()[1]
    daemon = daemons(extra_args=["--no-auth", "--listen", f"[::1]:{port}"])
    assert daemon.running()
    api = Client(address=("::1", port))
    assert api.get("/v1/health", headers={"Host": f"[::1]:{port}"}).status == 200


# What a client may have vmmd read.

def create_as_nobody(vmmd, image):
    """POST /v1/vms by curl as user nobody, who may use the socket by its group; status and body."""
    body = '{"name":"web","backend":"noop","spec":{"image":"%s"}}' % image
    done = subprocess.run(["curl", "-s", "-w", "\n%{http_code}", "--unix-socket", vmmd.socket, "-H", "Content-Type: application/json",
                           "-H", "Prefer: wait=60", "-d", body, "http://vmmd/v1/vms"],
                          user="nobody", group="nogroup", extra_groups=[], capture_output=True, text=True, timeout=120)
    text, status = done.stdout.rsplit("\n", 1)
    return int(status), json.loads(text)


@pytest.fixture
def open_to_nogroup(daemons):
    if os.geteuid() != 0:
        pytest.skip("only root can be somebody else")
    daemon = daemons(config="socket_group = nogroup\n")
    os.chmod(os.path.dirname(daemon.socket), 0o755)
    return daemon


def test_image_that_the_peer_cannot_read_is_forbidden(open_to_nogroup, tmp_path):
    secret = tmp_path / "secret.img"
    secret.write_bytes(b"x")
    os.chmod(tmp_path, 0o755)
    secret.chmod(0o600)
    status, problem = create_as_nobody(open_to_nogroup, secret)
    assert (status, problem["code"]) == (403, "vm_manager::api::forbidden")
    assert open_to_nogroup.client().get("/v1/vms").json["items"] == []


def test_image_that_the_peer_can_read_is_taken(open_to_nogroup):
    status, operation = create_as_nobody(open_to_nogroup, "/etc/passwd")
    assert (status, operation["state"]) == (200, "succeeded")


def test_rights_are_the_daemons_own_again_after_a_check(open_to_nogroup, tmp_path):
    test_image_that_the_peer_cannot_read_is_forbidden(open_to_nogroup, tmp_path)
    status = open(f"/proc/{open_to_nogroup.pid}/status").read()
    assert "Uid:\t0\t0\t0\t0" in status
    for task in os.listdir(f"/proc/{open_to_nogroup.pid}/task"):
        assert "Uid:\t0\t0\t0\t0" in open(f"/proc/{open_to_nogroup.pid}/task/{task}/status").read()


def test_paths_over_tcp_must_lie_below_image_dirs(daemons, tmp_path):
    daemon = daemons(["--listen", f"127.0.0.1:{(port := free_port())}", "--no-auth"], config=f"image_dirs = {tmp_path}\n")
    tcp = Client(address=("127.0.0.1", port))
    inside = {"name": "in", "backend": "noop", "spec": {"image": str(tmp_path / "a.qcow2")}}
    outside = {"name": "out", "backend": "noop", "spec": {"image": "/etc/passwd"}}
    assert tcp.post("/v1/vms", inside, prefer_wait=60).status == 200
    assert tcp.post("/v1/vms", outside).code == "image::unsafe"
    assert daemon.client().post("/v1/vms", outside, prefer_wait=60).status == 200
