"""Events over the daemon's ends, and readers that are slow, many, or gone."""
import concurrent.futures
import http.client
import resource
import select
import shutil
import socket
import threading
import time

import pytest

from lib.client import EventStream
from lib.metrics import limit_used, samples
from lib.smalldisk import small_daemon
from lib.vmmd import SLOW, VMMD
from lib.vms import create_body, destroy, eventually, make_vm

LONG_ID = "r" * 60  # a request id that makes an event long


def as_of(api):
    return api.get("/v1/vms").json["as_of_event"]


def replay(api, since=0):
    newest = as_of(api)
    with api.events(since=since) as stream:
        return [event.data for event in stream.until(lambda e: e.id >= newest)]


def refusal(api, headers=None, **query):
    """The answer to a stream that is refused, or None."""
    with EventStream(api, query, headers, 60) as stream:
        return None if stream.status == 200 else stream.response


def patches(api, number):
    """As many events, by eight clients: their commits go together."""
    def work(count):
        for n in range(count):
            assert api.patch("/v1/vms/web", {"labels": {"n": f"{n}-{threading.get_ident()}"}},
                             headers={"X-Request-Id": LONG_ID}, check=False).status == 200
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        for done in [pool.submit(work, number // 8) for _ in range(8)]:
            done.result()


class Follower(threading.Thread):
    """Reads all events as a client would: again from the last one seen whenever the stream ends."""

    def __init__(self, api):
        super().__init__(daemon=True)
        self.api, self.seen, self.over = api, [], False
        self.start()

    def run(self):
        while not self.over:
            last = self.seen[-1]["id"] if self.seen else 0
            try:
                with EventStream(self.api, {}, {"Last-Event-ID": str(last)}, 1) as stream:
                    while not self.over:
                        try:
                            self.seen.append(stream.next().data)
                        except AssertionError:
                            pass  # silence
            except (OSError, http.client.HTTPException, StopIteration):
                time.sleep(0.02)

    def has_come_to(self, newest):
        eventually(lambda: self.seen[-1]["id"] if self.seen else 0, lambda last: last >= newest)

    def end(self):
        self.over = True
        self.join()


def test_no_event_is_lost_and_no_id_comes_twice_over_kill9(api, vmmd):
    follower = Follower(api)
    for turn in range(6):
        def work(worker, turn=turn):
            try:
                for number in range(1000):
                    api.post("/v1/vms", create_body(f"v{turn}-{worker}-{number}", start=True))
            except (OSError, http.client.HTTPException):
                pass
        before = as_of(api)
        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            workers = [pool.submit(work, worker) for worker in range(4)]
            eventually(lambda: as_of(api), lambda newest, before=before: newest >= before + 100)
            vmmd.kill9()
            for worker in workers:
                worker.result()
        vmmd.start()
    newest = as_of(api)
    follower.has_come_to(newest)
    follower.end()
    ids = [event["id"] for event in follower.seen]
    assert len(ids) > 50 and ids == sorted(set(ids)), "strictly ascending"
    assert follower.seen == replay(api)[:len(ids)], "what was seen is what is kept"


def test_events_that_the_disk_refused_leave_a_gap_and_no_id_twice():
    with small_daemon("8m") as (daemon, disk):
        api = daemon.client()
        make_vm(api)
        follower = Follower(api)
        refused = 0
        for number in range(3000):
            disk.fill()
            patch = {"labels": {f"l{i}": f"{number}" * 30 for i in range(60)}}
            refused += api.patch("/v1/vms/web", patch).status == 507
            if refused > 5:
                break
        assert refused > 5
        disk.make_room()
        eventually(lambda: api.post("/v1/vms", create_body("after"), prefer_wait=60).status, lambda s: s == 200)
        newest = as_of(api)
        follower.has_come_to(newest)
        follower.end()
        ids = [event["id"] for event in follower.seen]
        assert ids == sorted(set(ids)) and ids[-1] - ids[0] >= len(ids), "ascending, with a gap"
        assert replay(api, since=ids[-10]) == follower.seen[-9:], "the oldest may have given way"


def test_cursor_of_a_lost_database_is_told(api, vmmd):
    make_vm(api)
    newest = as_of(api)
    vmmd.stop()
    shutil.rmtree(vmmd.data_dir)
    vmmd.start()
    make_vm(api)
    for query, headers in (({"since": newest + 1000}, {}), ({}, {"Last-Event-ID": str(newest + 1000)})):
        answer = refusal(api, headers, **query)
        assert (answer.status, answer.code) == (410, "events::cursor_expired"), answer
        assert answer.context == {"oldest": 1, "newest": as_of(api)}
    with api.events(since=as_of(api)) as stream:  # the newest itself is no mistake
        destroy(api)
        assert stream.next().id > newest - 1000


def test_log_of_events_is_cut_to_what_the_config_keeps(daemons):
    api = daemons(config="events_keep = 50\n").client()
    make_vm(api)
    most = 0
    for _ in range(20):
        patches(api, 16)
        refused = refusal(api, since=0)
        oldest = refused.context["oldest"] if refused else 1
        most = max(most, as_of(api) - oldest + 1)
        if refused:
            assert replay(api, oldest - 1)[0]["id"] == oldest, "what is said to be kept is kept"
            assert refusal(api, since=oldest - 2).status == 410
    assert 50 < most <= 50 + 5 + 100 + 5 and oldest > 200


def test_ids_go_on_when_all_events_are_gone(daemons):
    daemon = daemons(config="events_keep = 10\n")
    api = daemon.client()
    make_vm(api)
    patches(api, 152)
    before = as_of(api)
    daemon.kill9()
    daemon.start()
    make_vm(api, "other")
    assert as_of(api) > before
    assert refusal(api, since=1).code == "events::cursor_expired"


class Raw:
    """An SSE reader that reads when it is told to, and keeps only the ids. HTTP/1.0: no chunks within the lines."""

    def __init__(self, api, since=None):
        self.sock = api.connect(60)
        query = "" if since is None else f"?since={since}"
        self.sock.sendall(f"GET /v1/events{query} HTTP/1.0\r\nHost: vmmd\r\n\r\n".encode())
        self.last, self.tail, self.ended = 0, b"", False

    def read(self):
        """Once, what is there; False at the end."""
        try:
            data = self.sock.recv(262144)
        except OSError:
            data = b""
        self.ended = not data
        lines = (self.tail + data).split(b"\n")
        self.tail = lines.pop()
        for line in lines:
            if line.startswith(b"id: "):
                number = int(line[4:])
                assert number > self.last, f"{number} after {self.last}"
                self.last = number
        return not self.ended


@pytest.fixture
def many_files():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def rss_mb(api):
    return samples(api)[("process_resident_memory_bytes", None)] / (1 << 20)


def test_readers_that_do_not_read_cost_others_nothing(daemons, many_files):
    """500 readers; 100 of them never read: they are dropped, memory is bounded, the others get everything."""
    api = daemons(config="max_streams = 600\nmax_connections = 1200\n").client()
    make_vm(api)
    start = rss_mb(api)
    readers = [Raw(api) for _ in range(500)]
    eventually(lambda: limit_used(api, "streams"), lambda n: n == 500)
    quick = {reader.sock.fileno(): reader for reader in readers[100:]}
    poll = select.epoll()
    for fd in quick:
        poll.register(fd, select.EPOLLIN)
    begun, newest, most = as_of(api), 0, 0.0
    for _ in range(12):  # as much as may wait for one who reads: however slow this machine, the quick ones stay quick
        patches(api, 200)
        newest = as_of(api)
        most = max(most, rss_mb(api))
        end = time.monotonic() + 60 * SLOW
        while any(reader.last < newest for reader in quick.values()) and time.monotonic() < end:
            for fd, _ in poll.poll(0.05):
                assert quick[fd].read(), "a quick reader was dropped"
        assert {reader.last for reader in quick.values()} == {newest}
    assert newest >= begun + 2400
    most = max(most, rss_mb(api))
    print(f"memory: {start:.1f} MiB before, {most:.1f} MiB at most")
    # 100 x 256 KiB, and 500 x what a connection has.
    assert most - start < 100 or "asan" in VMMD or "tsan" in VMMD, "sanitizers keep what was freed"
    eventually(lambda: limit_used(api, "streams"), lambda n: n == 400)
    # One that was dropped comes back with the last event it saw, and misses nothing.
    slow = readers[0]
    while slow.read():
        pass
    assert begun < slow.last < newest
    again = Raw(api, since=slow.last)
    first = slow.last + 1
    while again.last < newest:
        assert again.read()
    assert replay(api, slow.last)[0]["id"] == first
    for reader in [*readers, again]:
        reader.sock.close()


def test_replay_goes_as_it_is_read_and_never_skips(daemons):
    """A reader stalls in a long replay until what it has not seen is no longer kept: it is ended, and told why at its return."""
    api = daemons(config="events_keep = 1500\n").client()
    make_vm(api)
    patches(api, 1400)
    reader = Raw(api, since=0)
    eventually(lambda: reader.sock.recv(65536, socket.MSG_PEEK), lambda data: b"\nid: " in data)  # under way
    patches(api, 1760)
    while reader.read():
        pass
    assert 0 < reader.last < 1450, "it got what was under way, not what came after a gap"
    assert refusal(api, {"Last-Event-ID": str(reader.last)}).code == "events::cursor_expired"
    eventually(lambda: limit_used(api, "streams"), lambda n: n == 0)
    reader.sock.close()


def test_reader_that_left_is_noticed(api):
    readers = [Raw(api) for _ in range(20)]
    eventually(lambda: limit_used(api, "streams"), lambda n: n == 20)
    for reader in readers[:10]:
        reader.sock.close()
    for reader in readers[10:]:
        reader.sock.shutdown(socket.SHUT_RDWR)
    eventually(lambda: limit_used(api, "streams"), lambda n: n == 0)
