"""Crowds of clients: none takes from the Unix socket what a plain request there needs, and each limit says its name."""
import contextlib
import http.client
import os
import resource
import select
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

from lib.client import Client
from lib.conform import ROOT
from lib.metrics import limit_refused, limit_used, samples
from lib.vmmd import SLOW, free_port
from lib.vms import create_body, eventually, make_vm

WAIT = b"GET /v1/vms/web/wait?for=state:running&timeout=600 HTTP/1.1\r\nHost: localhost\r\n\r\n"
EVENTS = b"GET /v1/events?since=0 HTTP/1.1\r\nHost: localhost\r\n\r\n"
HEALTH = b"GET /v1/health HTTP/1.1\r\nHost: localhost\r\n\r\n"
DRIP = b"GET /v1/health HTTP/1.1\r\nHost: loc"
KINDS = {"idle": b"", "kept": HEALTH, "dripping": DRIP, "waits": WAIT, "streams": EVENTS}


@pytest.fixture(autouse=True)
def files():
    """This process holds as many connections as the daemon."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.fixture
def both(daemons):
    """A daemon on TCP too, with the config given: (daemon, its Unix client, its TCP client)."""
    def make(config=""):
        port = free_port()
        daemon = daemons(config=config, extra_args=["--listen", f"127.0.0.1:{port}", "--no-auth"])
        return daemon, daemon.client(), Client(address=("127.0.0.1", port))
    return make


class Crowd:
    """Connections that each sent `request`; a context manager."""

    def __init__(self, client, request, number):
        self.socks = []
        self.lost = 0
        for _ in range(number):
            self.join(client, request)

    def join(self, client, request):
        try:
            sock = client.connect(60 * SLOW)
            self.socks.append(sock)
            sock.sendall(request)
        except OSError:
            self.lost += 1

    def answers(self, timeout=0.2):
        """What each has got so far; b"" where it was closed, None where nothing came."""
        found = []
        for sock in self.socks:
            sock.settimeout(timeout)
            try:
                found.append(sock.recv(65536))
            except socket.timeout:
                found.append(None)
            except OSError:
                found.append(b"")
        return found

    def close(self):
        for sock in self.socks:
            sock.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


def cpu_s(daemon):
    with open(f"/proc/{daemon.pid}/stat", encoding="ascii") as file:
        fields = file.read().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def cpu_share(daemon, seconds=1.0):
    before, begin = cpu_s(daemon), time.monotonic()
    time.sleep(seconds)
    return (cpu_s(daemon) - before) / (time.monotonic() - begin)


def assert_idle(daemon):
    """It sleeps once it has done what there is to do: no busy loop."""
    eventually(lambda: cpu_share(daemon), lambda share: share < 0.3)


@contextlib.contextmanager
def standing_still(daemon):
    """What is asked meanwhile reaches it in one moment."""
    os.kill(daemon.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(daemon.pid, signal.SIGCONT)


def status_of(client):
    """The health's status; None for one that was cut off to make way."""
    try:
        return client.get("/v1/health", check=False).status
    except (OSError, http.client.HTTPException):
        return None


def assert_served(daemon):
    """vmctl on the Unix socket, as if nobody else were there."""
    for _ in range(3):
        begin = time.monotonic()
        done = daemon.vmctl("list", "-o", "name")
        assert done.returncode == 0, done.stderr
        assert time.monotonic() - begin < 30 * SLOW
    api = daemon.client()
    assert api.get("/v1/vms/web/explain").status == 200, "a read that looks at files is no wait"
    assert api.get("/v1/operations").status == 200
    assert api.patch("/v1/vms/web", {"labels": {"t": str(begin)}}).status == 200


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("way", ["tcp", "unix"])
def test_vmctl_is_served_beside_a_crowd(both, way, kind):
    daemon, api, tcp = both()
    make_vm(api)
    with Crowd(tcp if way == "tcp" else api, KINDS[kind], 1200):
        assert_served(daemon)
        assert_idle(daemon)
        assert limit_used(api, "connections") <= 1000
    eventually(lambda: limit_used(api, "connections"), lambda n: n < 10)
    assert api.get("/v1/health").status == tcp.get("/v1/health").status == 200


def test_vmctl_is_served_beside_every_crowd_at_once(both):
    daemon, api, tcp = both("max_connections = 400\nmax_waits = 400\nmax_streams = 400\n")
    make_vm(api)
    crowds = [Crowd(way, request, 150) for request in KINDS.values() for way in (tcp, api)]
    try:
        assert_served(daemon)
        assert limit_used(api, "connections") <= 400
        assert limit_used(api, "waits") + limit_used(api, "streams") <= 350, "an eighth is for plain requests"
        assert_idle(daemon)
    finally:
        for crowd in crowds:
            crowd.close()
    eventually(lambda: limit_used(api, "streams") + limit_used(api, "waits"), lambda n: n == 0)
    assert tcp.get("/v1/health").status == 200


def test_vmctl_may_wait_and_follow_when_the_network_has_all_it_may(both):
    daemon, api, tcp = both()
    make_vm(api)
    with Crowd(tcp, WAIT, 520), Crowd(tcp, EVENTS, 220):
        eventually(lambda: min(limit_refused(api, "waits"), limit_refused(api, "streams")), bool)
        assert daemon.vmctl("wait", "web", "--for", "prepared").returncode == 0
        with api.events(since=0) as stream:
            assert stream.next().id == 1
        assert daemon.vmctl("start", "web").returncode == 0


def test_connections_beyond_the_limit_are_told_why(both):
    daemon, api, tcp = both("max_connections = 80\n")
    before = limit_refused(api, "connections")
    with contextlib.ExitStack() as stack:
        with standing_still(daemon):  # all within a moment: nobody can be ended for another
            crowd = stack.enter_context(Crowd(tcp, b"", 75))
        eventually(lambda: limit_refused(api, "connections"), lambda n: n >= before + 5)
        told = [answer for answer in crowd.answers() if answer]
        assert told, "no bound, or no word"
        for answer in told:
            assert answer.startswith(b"HTTP/1.1 503 ") and b"daemon::overloaded" in answer, answer
            assert b'"limit":"connections"' in answer and b'"config_key":"max_connections"' in answer
            assert b"Retry-After: 1\r\n" in answer
        # Our own from before may not have been seen to end when the daemon was stopped.
        assert limit_refused(api, "connections") - before == len(told) and len(told) in (5, 6)
        with Crowd(api, HEALTH, 10) as own:
            assert all(answer and answer.startswith(b"HTTP/1.1 200") for answer in own.answers(60))


def test_slow_clients_of_the_network_make_way_for_quick_ones(both):
    _, api, tcp = both("max_connections = 80\n")
    with Crowd(tcp, DRIP, 70):
        eventually(lambda: status_of(tcp), lambda status: status == 200)
        assert limit_used(api, "connections") <= 80


class Pacer(threading.Thread):
    """Goes on with an upload, a little at a time, whatever the test waits for meanwhile."""

    def __init__(self, sock):
        super().__init__(daemon=True)
        self.sock, self.sent, self.over = sock, 0, threading.Event()
        self.start()

    def run(self):
        while not self.over.wait(0.1):
            self.sock.sendall(bytes(512))
            self.sent += 512

    def end(self):
        """Bytes that it has sent."""
        self.over.set()
        self.join()
        return self.sent


def upload(tcp, name, length):
    sock = tcp.connect(60 * SLOW)
    sock.sendall(b"PUT /v1/images/%s?format=raw HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % (name, length) + bytes(512))
    return sock


def is_open(sock):
    try:
        return not select.select([sock], [], [], 0)[0] or sock.recv(1) != b""
    except OSError:
        return False


def test_upload_that_goes_on_stays_and_one_that_stalls_makes_way(both):
    _, api, tcp = both("max_connections = 16\n")
    make_vm(api)
    length = 512 * 10000
    steady, stalled = upload(tcp, b"steady", length), upload(tcp, b"stalled", length)  # the steady one is the older one
    pacer = Pacer(steady)
    with Crowd(tcp, WAIT, 11) as crowd:
        # The last places are full to the brim, where the one that looks has a place as well: who finds none comes again.
        eventually(lambda: limit_used(api, "waits"), lambda n: n == 11)
        eventually(lambda: (crowd.join(tcp, WAIT), limit_used(api, "waits"))[1], lambda n: n == 12)
        begin, ok = time.monotonic(), 0
        while ok < 3 and time.monotonic() - begin < 60 * SLOW:
            with Crowd(tcp, HEALTH, 1) as new:
                ok += (new.answers(5)[0] or b"").startswith(b"HTTP/1.1 200 ")
            assert is_open(steady), "an upload that goes on was ended"
            time.sleep(0.1)
        assert ok == 3 and not is_open(stalled), "nothing made way"
        with Crowd(tcp, WAIT, 3):  # more than there is room for
            assert is_open(steady)
    steady.sendall(bytes(length - 512 - pacer.end()))
    assert steady.recv(4096).startswith(b"HTTP/1.1 202 ")
    steady.close()
    stalled.close()


def test_waits_and_streams_name_their_limit(both):
    _, api, tcp = both("max_waits = 8\nmax_streams = 8\n")
    make_vm(api)
    for request, limit in ((WAIT, "waits"), (EVENTS, "streams")):
        with Crowd(tcp, request, 7):
            eventually(lambda name=limit: limit_used(api, name), lambda n: n == 7)
            answer = tcp.raw_response(request)
            assert answer.status == 503 and answer.code == "daemon::overloaded", answer
            assert answer.context == {"limit": limit, "max": 8, "config_key": f"max_{limit}"}
            assert limit_refused(api, limit) == 1
            with Crowd(api, request, 1):
                eventually(lambda name=limit: limit_used(api, name), lambda n: n == 8)
                assert api.raw_response(request).context["config_key"] == f"max_{limit}"
        eventually(lambda name=limit: limit_used(api, name), lambda n: n == 0)


def test_change_that_finds_no_place_to_wait_is_answered_at_once(both):
    _, api, _ = both("max_waits = 1\n")
    make_vm(api, labels={"noop.delay_ms.spawn": "600000"})
    with Crowd(api, WAIT, 1):
        eventually(lambda: limit_used(api, "waits"), lambda n: n == 1)
        assert api.post("/v1/vms/web/start", prefer_wait=60).status == 202


# ---- operations ----

def test_operations_of_one_vm_are_bounded(daemons):
    api = daemons(config="max_operations_per_vm = 3\n").client()
    make_vm(api, labels={"noop.delay_ms.spawn": "600000", "noop.delay_ms.kill": "600000"})
    assert api.post("/v1/vms/web/start").status == 202
    answers = [api.post("/v1/vms/web/kill") for _ in range(6)]
    refused = [answer for answer in answers if answer.status != 202]
    assert len(refused) >= 3 and limit_used(api, "operations_per_vm") <= 3
    assert refused[0].code == "daemon::overloaded" and refused[0].headers["Retry-After"]
    assert refused[0].context == {"limit": "operations_per_vm", "max": 3, "config_key": "max_operations_per_vm"}
    assert limit_refused(api, "operations_per_vm") == len(refused)


def test_operations_in_all_are_bounded_and_some_are_for_the_unix_socket(both):
    _, api, tcp = both("max_operations = 8\n")
    for number in range(9):
        make_vm(api, f"v{number}", labels={"noop.delay_ms.spawn": "600000"})
    assert [tcp.post(f"/v1/vms/v{n}/start").status for n in range(8)] == [202] * 7 + [503]
    assert api.post("/v1/vms/v7/start").status == 202
    answer = api.post("/v1/vms/v8/start")
    assert answer.status == 503 and answer.context == {"limit": "operations", "max": 8, "config_key": "max_operations"}
    assert limit_used(api, "operations") == 8 and limit_refused(api, "operations") == 2


def test_number_of_vms_is_bounded(daemons):
    api = daemons(config="max_vms = 1\n").client()
    make_vm(api)
    answer = api.post("/v1/vms", create_body("more"))
    assert answer.status == 503 and answer.context == {"limit": "vms", "max": 1, "config_key": "max_vms"}


# ---- open files ----

def test_files_may_be_as_many_as_the_config_says(daemons):
    daemon = daemons(config="max_open_files = 500\n")
    assert resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE)[0] == 500
    found = samples(daemon.client())
    assert found[("process_max_fds", None)] == 500 == daemon.client().get("/v1/host").json["limits"]["max_open_files"]
    # The metrics' own connection comes and goes.
    assert abs(found[("process_open_fds", None)] - len(os.listdir(f"/proc/{daemon.pid}/fd"))) <= 3


@pytest.mark.parametrize("way", ["tcp", "unix"])
@pytest.mark.parametrize("kind", KINDS)
def test_vmctl_is_served_when_files_are_short(both, way, kind):
    daemon, api, tcp = both("max_open_files = 160\n")
    make_vm(api)
    with Crowd(tcp if way == "tcp" else api, KINDS[kind], 300):
        assert_served(daemon)
        assert_idle(daemon)
        assert len(os.listdir(f"/proc/{daemon.pid}/fd")) < 160
    eventually(lambda: limit_used(api, "connections"), lambda n: n < 10)
    eventually(lambda: status_of(tcp), lambda status: status == 200)
    make_vm(api, "after", start=True)


def test_vm_is_not_begun_when_files_are_short(both):
    daemon, api, _ = both("max_open_files = 160\nmax_streams = 500\nmax_connections = 1000\n")
    make_vm(api)
    with Crowd(api, EVENTS, 150) as crowd:
        told = [a for a in crowd.answers(10) if a and b" 503 " in a]
        assert told and b'"config_key":"max_open_files"' in told[-1]
        answer = api.post("/v1/vms/web/start")
        assert answer.status == 503 and answer.code == "daemon::overloaded", answer
        assert answer.context == {"limit": "open_files", "max": 160, "config_key": "max_open_files"}
        assert api.get("/v1/vms/web").json["state"] == "prepared"
        assert api.delete("/v1/vms/web").status == 202, "what takes a VM down needs no permission"
        eventually(lambda: api.get("/v1/vms/web").status, lambda status: status == 404)
        assert limit_refused(api, "open_files") > 0
    eventually(lambda: api.post("/v1/vms", create_body("again")).status, lambda status: status == 202)


def refused_unasked(api):
    with api.connect() as sock:
        return bool(select.select([sock], [], [], 0.5)[0])


def test_refusal_is_read_by_who_was_still_sending(both):
    """No file left for plain requests: the refusal comes before the request, and the client's write must not fail by it."""
    daemon, api, _ = both()
    limits = resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE)
    opened = len(os.listdir(f"/proc/{daemon.pid}/fd"))
    resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE, (opened + 8, limits[1]))
    eventually(lambda: refused_unasked(api), bool)  # it counts its files once a second
    for _ in range(6):  # the oldest of those that are listened to makes way
        with api.connect() as sock:
            assert select.select([sock], [], [], 60)[0], "refused before it has said anything"
            sock.sendall(b"POST /v1/vms HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\n")
            sock.sendall(b"{}")
            answer = sock.recv(65536)
            assert answer.startswith(b"HTTP/1.1 503 ") and b'"limit":"open_files"' in answer
    resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE, limits)
    eventually(lambda: api.post("/v1/vms", create_body("web")).status, lambda status: status == 202)


def test_limit_set_from_outside_is_outlived(both):
    """prlimit on the running daemon, below what it has open: the kernel has no file for it at all."""
    daemon, api, tcp = both()
    make_vm(api)
    limits = resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE)
    with Crowd(tcp, HEALTH, 100) as crowd:
        crowd.answers()
        resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE, (40, limits[1]))
        with Crowd(tcp, HEALTH, 50):
            assert_idle(daemon)
            # Those of the network that do nothing make way.
            eventually(lambda: daemon.vmctl("list").returncode, lambda code: code == 0)
        resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE, limits)
    eventually(lambda: tcp.raw_response(HEALTH), lambda answer: answer is not None and answer.status == 200)
    assert_served(daemon)


# ---- rate ----

def test_rate_is_free_by_default(both):
    _, api, tcp = both()
    assert api.get("/v1/host").json["limits"]["rate_limit"] == 0
    assert {tcp.get("/v1/health").status for _ in range(300)} == {200}


def test_peer_that_asks_too_often_is_refused_for_a_moment(both):
    daemon, api, tcp = both("rate_limit = 2\nrate_burst = 10\n")
    begun, answers, refused = time.monotonic(), [], []
    while len(refused) < 20 and len(answers) < 1000:  # whoever asks slowly gets more meanwhile
        answers.append(tcp.get("/v1/version"))
        refused += [answers[-1]] if answers[-1].status == 429 else []
    assert [answer.status for answer in answers[:10]] == [200] * 10
    assert len(refused) == 20 and len(answers) - len(refused) <= 10 + 2 * (time.monotonic() - begun) + 1
    assert refused[0].code == "api::too_many_requests" and refused[0].headers["Retry-After"] == "1"
    assert refused[0].context == {"limit": "request_rate", "max": 2, "config_key": "rate_limit"}
    assert "127.0.0.1" in refused[0].json["detail"]
    time.sleep(1)  # as Retry-After says
    assert tcp.get("/v1/version").status == 200
    # Another address has its own, and the daemon's user on the Unix socket none.
    with socket.create_connection(tcp.address, 60, ("127.0.0.2", 0)) as other:
        other.sendall(HEALTH)
        assert other.recv(4096).startswith(b"HTTP/1.1 200")
    assert {api.get("/v1/version").status for _ in range(100)} == {200}
    assert limit_refused(api, "request_rate") == len(refused)


def test_guessing_tokens_is_slowed_too(daemons, tmp_path):
    token = tmp_path / "token"
    token.write_text("0123456789abcdef\n")
    port = free_port()
    daemons(config=f"rate_limit = 1\nrate_burst = 5\ntoken_file = {token}\n", extra_args=["--listen", f"127.0.0.1:{port}"])
    guess = Client(address=("127.0.0.1", port), token="f" * 16)
    found = []
    while 429 not in found and len(found) < 100:
        found.append(guess.get("/v1/version").status)
    assert found[:5] == [401] * 5 and found[-1] == 429


@pytest.mark.skipif(os.getuid() != 0, reason="needs root to be another user")
def test_each_user_of_the_unix_socket_has_a_rate(daemons):
    daemon = daemons(config="rate_limit = 1\nrate_burst = 3\n")
    os.chmod(daemon.dir, 0o755)
    os.chmod(daemon.socket, 0o666)  # who may use it is asked next: 403, and the rate counts that as well
    script = ("import sys; sys.path.insert(0, sys.argv[1]); from lib.client import Client\n"
              "found = []\n"
              "while 429 not in found and len(found) < 100:\n"
              "    found.append(Client(sys.argv[2]).get('/v1/version', check=False).status)\n"
              "print(found[:3], found[-1])")
    for uid in (12345, 12346):
        done = subprocess.run([sys.executable, "-c", script, os.path.join(ROOT, "tests"), daemon.socket], check=True,
                              stdout=subprocess.PIPE, text=True, user=uid, group=uid, extra_groups=[])
        assert done.stdout == "[403, 403, 403] 429\n"
