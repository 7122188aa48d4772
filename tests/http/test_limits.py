"""At its limits the daemon says so, and goes on."""
import socket
import threading

from lib.client import EventStream
from lib.vms import create_body, make_vm


def test_too_many_streams_are_refused_as_overload(api):
    streams = []
    try:
        for _ in range(2000):
            stream = EventStream(api, {}, None, 60)
            streams.append(stream)
            if stream.status != 200:
                break
        assert streams[-1].status == 503, "no bound on streams"
        assert streams[-1].response.code == "daemon::overloaded"
        assert streams[-1].headers["Retry-After"]
        assert api.get("/v1/vms").status == 200, "streams use up what other requests need"
    finally:
        for stream in streams:
            stream.close()


def test_streams_that_left_make_room_again(api):
    for _ in range(3):
        streams = [EventStream(api, {}, None, 60) for _ in range(20)]
        assert all(stream.status == 200 for stream in streams)
        for stream in streams:
            stream.close()
    assert api.get("/v1/health").status == 200


def test_too_many_parked_waits_are_refused_as_overload(api):
    make_vm(api)
    socks, refused = [], None
    request = b"GET /v1/vms/web/wait?for=state:running&timeout=60 HTTP/1.1\r\nHost: vmmd\r\n\r\n"
    try:
        for number in range(4000):
            try:
                sock = api.connect(60)
            except OSError:
                break
            socks.append(sock)
            sock.sendall(request)
            if number % 64 == 63:
                sock.settimeout(0.2)
                try:
                    refused = sock.recv(4096)
                    break
                except socket.timeout:
                    pass
        assert refused and refused.startswith(b"HTTP/1.1 503") and b"daemon::overloaded" in refused
        assert api.get("/v1/health").status == 200, "waits use up what other requests need"
    finally:
        for sock in socks:
            sock.close()


def test_idle_connections_do_not_lock_others_out(api):
    request = b"GET /v1/health HTTP/1.1\r\nHost: vmmd\r\n\r\n"
    most = api.get("/v1/host").json["limits"]["max_connections"]
    socks = []
    try:
        for _ in range(most + 50):
            sock = api.connect(60)
            socks.append(sock)
            sock.sendall(request)
            assert sock.recv(4096).startswith(b"HTTP/1.1 200"), len(socks)
        socks[-1].sendall(request)
        assert socks[-1].recv(4096).startswith(b"HTTP/1.1 200"), "the newest went, not the oldest"
    finally:
        for sock in socks:
            sock.close()


def test_burst_of_connections_is_taken(api):
    """A client's connect does not fail for a backlog that is full."""
    socks = [api.connect(60) for _ in range(900)]
    for sock in socks:
        sock.close()
    assert api.get("/v1/health").status == 200


def test_thousand_vms_at_once(api):
    failures = []

    def work(worker):
        for number in range(25):
            answer = api.post("/v1/vms", create_body(f"v{worker}-{number}"), prefer_wait=60)
            if answer.status != 200:
                failures.append(answer)
    threads = [threading.Thread(target=work, args=(worker,)) for worker in range(40)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    page = api.get("/v1/vms", query={"limit": 1000}).json
    assert len(page["items"]) == 1000 and page["next_cursor"] is None
