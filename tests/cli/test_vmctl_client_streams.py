"""Logs and events: bytes as they are, and streams that go on where they broke."""
import json
import re
import signal
import subprocess
import time

from lib.vmmd import VMCTL
from scripted import Hangup, problem, stream

LOG = bytes(range(256)) * 300


def read(vmctl, size):
    data = b""
    while len(data) < size:
        part = vmctl.stdout.read1(size - len(data))
        assert part, vmctl.stderr.read()
        data += part
    return data


def end(vmctl):
    vmctl.send_signal(signal.SIGINT)
    _, err = vmctl.communicate(timeout=60)
    assert vmctl.returncode == 130
    return err.decode()


def test_log_is_binary_safe(peer):
    peer.on("GET", "/v1/vms/web/logs/console", (200, LOG, {"Content-Type": "application/octet-stream", "X-Next-Offset": str(len(LOG))}))
    for args in (("log", "web"), ("log", "web", "--console"), ("log", "--tail", "0", "web")):
        run = peer.vmctl(*args, text=False)
        assert (run.returncode, run.stdout, run.stderr) == (0, LOG, b""), args


def test_log_choices(peer):
    peer.on("GET", "/v1/vms/web/logs/console.*", (200, b"c\n"))
    peer.on("GET", "/v1/vms/web/logs/vmm.*", (200, b"v\n"))
    assert peer.vmctl("log", "web", "--vmm", "-n5").stdout == "v\n" and peer.requests[-1].path == "/v1/vms/web/logs/vmm?tail=5"
    assert peer.vmctl("log", "web", "--vmm", "--console").stdout == "==> console of web <==\nc\n\n==> vmm of web <==\nv\n"
    assert peer.vmctl("log", "web").stdout == "c\n"
    run = peer.vmctl("log", "web", "--provision")
    assert run.returncode == 3 and "api::not_found" in run.stderr
    peer.on("GET", "/v1/vms/web/logs/provision.*", (200, b"p\n"))
    assert peer.vmctl("log", "web").stdout == "==> console of web <==\nc\n\n==> provision of web <==\np\n"
    assert peer.vmctl("log", "web", "-f", "--vmm", "--console").returncode == 2
    peer.on("GET", ".*", problem("vm::not_found", 404, "no VM web"))
    run = peer.vmctl("log", "web")
    assert run.returncode == 3 and run.stdout == "" and run.stderr.count("error:") == 1


def test_follow_goes_on_where_it_broke(peer):
    """Lost twice: in the middle of the stream, and with the daemon away for a while."""
    total = LOG + LOG[:1000]

    def follow(request):
        at = int(re.search(r"from=(\d+)", request.path)[1])
        send = stream(request)
        send(total[at:at + 30000])
        if at + 30000 >= len(total):
            time.sleep(60)
        raise Hangup

    peer.on("GET", "/v1/vms/web/logs/console", (200, LOG[:100], {"X-Next-Offset": "100"}))
    peer.on("GET", "/v1/vms/web/logs/console.follow=1&from=.*", follow)
    vmctl = peer.popen("log", "-f", "web")
    assert read(vmctl, len(total)) == total
    end(vmctl)
    offsets = [int(r.path.rsplit("=", 1)[1]) for r in peer.seen("GET", ".*follow.*")]
    assert offsets == [100, 30100, 60100]


def test_follow_ends_when_its_reader_goes(peer):
    def follow(request):
        send = stream(request)
        while True:
            send(b"line\n")
            time.sleep(0.01)

    peer.on("GET", "/v1/vms/web/logs/console", (200, b"", {"X-Next-Offset": "0"}))
    peer.on("GET", "/v1/vms/web/logs/console.follow.*", follow)
    run = subprocess.run(["/bin/bash", "-c", f"{VMCTL} log -f web | head -2; echo ${{PIPESTATUS[0]}}"], env=peer.env(), capture_output=True,
                         text=True, timeout=20, check=False)
    assert run.stdout == "line\nline\n0\n" and run.stderr == ""


def test_follow_of_a_vm_that_is_destroyed(peer):
    def follow(request):
        send = stream(request)
        send(b"bye\n")
        send(b"")

    peer.on("GET", "/v1/vms/web/logs/console", (200, b"", {"X-Next-Offset": "0"}))
    peer.on("GET", "/v1/vms/web/logs/console.follow.*", follow)
    run = peer.vmctl("log", "-f", "web")
    assert run.returncode == 0 and run.stdout == "bye\n"


def event(ident, kind="vm.state_changed", name="web", **data):
    document = {"id": ident, "type": kind, "at": "2026-01-01T00:00:00.000Z", "vm_id": "id-" + name, "vm_name": name, "request_id": None,
                "operation_id": None, "data": data or {"from": "running", "to": "stopped", "cause": None}}
    return f"id: {ident}\nevent: {kind}\ndata: {json.dumps(document)}\n\n".encode(), document


def test_events_as_lines_and_as_json(peer):
    first, document = event(1)
    second, _ = event(2, kind="operation.step", step="a\x1bb", n=3)

    def serve(request):
        send = stream(request, "text/event-stream")
        for byte in b": hello\n\n" + first.replace(b"\n", b"\r\n"):
            send(bytes([byte]))
        send(second)
        time.sleep(60)

    peer.on("GET", "/v1/events.*", serve)
    vmctl = peer.popen("events", "--vm", "web", "--type", "vm.*", "--since", "0")
    assert vmctl.stdout.readline() == b"1  2026-01-01T00:00:00.000Z  vm.state_changed  web from=running to=stopped\n"
    assert vmctl.stdout.readline() == b"2  2026-01-01T00:00:00.000Z  operation.step  web step=a\\x1bb n=3\n"
    end(vmctl)
    assert peer.requests[0].path == "/v1/events?since=0&vm=web&type=vm.%2A"
    vmctl = peer.popen("events", "-o", "json")
    assert json.loads(vmctl.stdout.readline()) == document
    end(vmctl)
    assert peer.requests[-1].path == "/v1/events"


def test_events_go_on_after_the_last_one_seen(peer):
    def serve(request):
        last = request.headers["Last-Event-ID"]
        send = stream(request, "text/event-stream")
        if last is None:
            send(event(7)[0] + event(8)[0] + event(9)[0][:20])  # and a part of one
            raise Hangup
        assert last == "8"
        send(event(9)[0])
        time.sleep(60)

    peer.on("GET", "/v1/events.*", serve)
    vmctl = peer.popen("events")
    assert [vmctl.stdout.readline().split()[0] for _ in range(3)] == [b"7", b"8", b"9"]
    assert "vmmd went away" in end(vmctl)


def test_no_follow_ends_with_the_newest_and_begins_with_the_oldest(peer):
    def serve(request):
        since = int(re.search(r"since=(\d+)", request.path)[1])
        if since < 4:
            return problem("events::cursor_expired", 410, "too old", context={"oldest": 5})
        send = stream(request, "text/event-stream")
        for i in range(since + 1, 12):
            send(event(i, name="web" if i % 2 else "db")[0])
        time.sleep(60)
        return None

    peer.on("GET", "/v1/vms.limit=1", (200, {"items": [], "next_cursor": None, "as_of_event": 10}))
    peer.on("GET", "/v1/events.*", serve)
    run = peer.vmctl("events", "--no-follow", timeout=40)
    assert run.returncode == 0 and [line.split()[0] for line in run.stdout.splitlines()] == [str(i) for i in range(5, 11)]
    run = peer.vmctl("events", "--no-follow", "--vm", "web", "--type", "vm.*", "--since", "6", timeout=40)
    assert [line.split()[0] for line in run.stdout.splitlines()] == ["7", "9"]
    assert peer.vmctl("events", "--no-follow", "--since", "10", timeout=40).stdout == ""
    run = peer.vmctl("events", "--no-follow", "--since", "2")
    assert run.returncode == 1 and "events::cursor_expired" in run.stderr
    assert peer.vmctl("events", "--no-follow", "-f").returncode == 2
