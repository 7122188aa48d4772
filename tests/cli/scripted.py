"""A scripted peer for vmctl: an HTTP server on a Unix socket whose answers a test writes, for what a real vmmd does not do on request."""
import base64
import hashlib
import json
import os
import pty
import re
import shutil
import socket
import socketserver
import struct
import subprocess
import tempfile
import threading
import time
from http.server import BaseHTTPRequestHandler

from lib.vmmd import SLOW, VMCTL


class Hangup(Exception):
    """Raised by a script: the connection ends without an answer."""


class Request:
    def __init__(self, handler, body):
        self.method, self.path, self.headers, self.handler = handler.command, handler.path, handler.headers, handler
        self.body = body

    @property
    def json(self):
        return json.loads(self.body)

    def send(self, data):
        """Sends bytes of a streamed answer at once."""
        self.handler.wfile.write(data)
        self.handler.wfile.flush()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def address_string(self):
        return "unix"

    def _answer(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        request = Request(self, body)
        self.server.owner.requests.append(request)
        for method, pattern, script in self.server.owner.scripts:
            if method == self.command and re.fullmatch(pattern, self.path):
                break
        else:
            script = problem("api::not_found", 404, f"no script for {self.command} {self.path}")
        try:
            answer = script(request) if callable(script) else script
        except (Hangup, BrokenPipeError, ConnectionResetError):
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        if answer is None:  # the script wrote it
            self.close_connection = True
            return
        status, document, *more = answer
        data = document if isinstance(document, bytes) else json.dumps(document).encode()
        headers = {"Content-Type": "application/json" if status < 400 else "application/problem+json", **(more[0] if more else {})}
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    do_GET = do_POST = do_PUT = do_DELETE = _answer


class _Unix(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 64


class Peer:
    def __init__(self):
        self.dir = tempfile.mkdtemp(prefix="vmctl-", dir="/tmp")
        self.socket = os.path.join(self.dir, "vmmd.sock")
        self.scripts, self.requests, self.server = [], [], None

    def on(self, method, pattern, script):
        """Later scripts go before earlier ones. A script is (status, document[, headers]) or a function of the request."""
        self.scripts.insert(0, (method, pattern, script))

    def start(self):
        self.server = _Unix(self.socket, _Handler)
        self.server.owner = self
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    def stop(self):
        """As when a daemon ends: nobody listens, and the socket's file is gone."""
        server, self.server = self.server, None
        server.shutdown()
        server.server_close()
        os.unlink(self.socket)

    def env(self, **more):
        env = {key: value for key, value in os.environ.items() if not key.startswith("VMMD_") and key != "NO_COLOR"}
        return dict(env, VMMD_SOCKET=self.socket, TERM="xterm", **more)

    def vmctl(self, *args, timeout=60, text=True, env=None, **kw):
        kw.setdefault("stdin", subprocess.DEVNULL)
        return subprocess.run([VMCTL, *args], env=self.env(**(env or {})), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=text,
                              timeout=timeout * SLOW, check=False, **kw)

    def popen(self, *args, **kw):
        kw.setdefault("stdin", subprocess.DEVNULL)
        kw.setdefault("stdout", subprocess.PIPE)
        kw.setdefault("stderr", subprocess.PIPE)
        return subprocess.Popen([VMCTL, *args], env=self.env(), **kw)

    def seen(self, method, pattern):
        return [r for r in self.requests if r.method == method and re.fullmatch(pattern, r.path)]

    def wait_for(self, method, pattern, count=1, timeout=60):
        until = time.monotonic() + timeout * SLOW
        while len(self.seen(method, pattern)) < count:
            assert time.monotonic() < until, f"{method} {pattern} did not come {count} times: {[r.path for r in self.requests]}"
            time.sleep(0.005)

    def close(self):
        if self.server:
            self.stop()
        shutil.rmtree(self.dir, ignore_errors=True)


def problem(code, status, detail="", **more):
    return status, {"type": f"/v1/errors/vm_manager::{code}", "title": "T", "status": status, "detail": detail, "instance": "/",
                    "code": f"vm_manager::{code}", "help": "do this next", "retryable": False, "request_id": "r1", "context": {},
                    "causes": [], **more}


STEPS = ("reserve", "prepare", "spawn", "persist")


def operation(state="running", at=0, kind="vm.start", vm="web", ident="op-1", **more):
    """An operation whose steps before `at` are done and whose step `at` runs."""
    steps = [{"name": name, "state": "succeeded" if i < at else "running" if i == at and state == "running" else "pending", "ms": i}
             for i, name in enumerate(STEPS)]
    return {"id": ident, "kind": kind, "target": {"vm_id": "id-" + vm, "vm_name": vm}, "state": state,
            "step": STEPS[at] if at < len(STEPS) else None, "steps": steps, "progress": None, "error": None, "result": None,
            "cancellable": True, "created_at": "2026-01-01T00:00:00.000Z", "deadline": None, "finished_at": None, **more}


def done(**more):
    return operation("succeeded", at=len(STEPS), **more)


def vm(name, **more):
    return {"id": "id-" + name, "name": name, "backend": "noop", "state": "running", "generation": 1, "revision": 1, "labels": {},
            "spec": {"image": None, "vcpus": 2, "memory_mb": 512, "disk_gb": None, "machine": "q35", "boot": None,
                     "network": {"type": "user", "forwards": []}},
            "runtime": {"pid": None, "ssh_host_port": None, "addresses": []}, "conditions": [], "failure": None, "operation": None,
            "created_at": "2026-01-01T00:00:00.000Z", "updated_at": "2026-01-01T00:00:00.000Z", **more}


def stream(request, content_type="application/octet-stream", headers=None):
    """Begins a chunked answer; the script sends its parts with what is returned, b"" being the end, and returns None."""
    head = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Type: " + content_type + "\r\n"
    for name, value in (headers or {}).items():
        head += f"{name}: {value}\r\n"
    request.send(head.encode() + b"\r\n")
    return lambda data: request.send(b"%x\r\n" % len(data) + data + b"\r\n")


class WebSocket:
    """The server's side of an upgraded request."""

    def __init__(self, request):
        self.request = request
        digest = hashlib.sha1((request.headers["Sec-WebSocket-Key"] + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11").encode()).digest()
        self.accept = base64.b64encode(digest).decode()

    def open(self, accept=None, more=b""):
        self.request.send(("HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                           f"Sec-WebSocket-Accept: {accept or self.accept}\r\n\r\n").encode() + more)
        return self

    @staticmethod
    def frame(opcode, data, fin=True):
        size = bytes([len(data)]) if len(data) < 126 else b"\x7e" + struct.pack("!H", len(data)) if len(data) < 65536 \
            else b"\x7f" + struct.pack("!Q", len(data))
        return bytes([(0x80 if fin else 0) | opcode]) + size + data

    def send(self, opcode, data, fin=True):
        self.request.send(self.frame(opcode, data, fin))

    def receive(self):
        """(opcode, data) of the next frame, (None, b"") at the end."""
        head = self._read(2)
        if len(head) < 2:
            return None, b""
        assert head[1] & 0x80, "a client's frame is masked"
        size = head[1] & 127
        if size == 126:
            size = struct.unpack("!H", self._read(2))[0]
        elif size == 127:
            size = struct.unpack("!Q", self._read(8))[0]
        mask = self._read(4)
        data = self._read(size)
        return head[0] & 15, bytes(byte ^ mask[i % 4] for i, byte in enumerate(data))

    def _read(self, size):
        try:
            return self.request.handler.rfile.read(size)
        except OSError:
            return b""


class Terminal:
    """A process on a terminal of its own, and all that it wrote there."""

    def __init__(self, argv, env, **kw):
        self.master, slave = pty.openpty()
        kw.setdefault("stdin", slave)
        kw.setdefault("stdout", slave)
        kw.setdefault("stderr", slave)
        self.proc = subprocess.Popen(argv, env=env, start_new_session=True, **kw)
        self.slave = slave
        self.output = b""
        self.lock = threading.Lock()
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def _read(self):
        while True:
            try:
                data = os.read(self.master, 65536)
            except OSError:
                return
            with self.lock:
                self.output += data

    def type(self, data):
        os.write(self.master, data)

    def expect(self, what, timeout=60):
        until = time.monotonic() + timeout * SLOW
        while what not in self.output:
            assert time.monotonic() < until, f"{what!r} did not come: {self.output!r}"
            time.sleep(0.005)

    def wait(self, timeout=20):
        return self.proc.wait(timeout * SLOW)

    def close(self):
        if self.proc.poll() is None:
            self.proc.kill()
            self.proc.wait()
        os.close(self.slave)
        # It has its end now; one that read on would read what comes to the next terminal with this number.
        self.reader.join(60)
        os.close(self.master)
