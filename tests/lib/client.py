"""A small HTTP/1.1 client over a Unix socket or TCP. What it receives is held against the contract (lib/conform.py)."""
import http.client
import json as jsonlib
import queue
import socket
import threading
import time
from urllib.parse import quote, urlencode

from lib.conform import contract, record_route

TIMEOUT = 90  # longer than what a test lets the daemon wait


class _Connection(http.client.HTTPConnection):
    def __init__(self, client, timeout):
        super().__init__("vmmd", timeout=timeout)
        self._client = client

    def connect(self):
        self.sock = self._client.connect(self.timeout)


class Response:
    def __init__(self, method, path, status, headers, body):
        self.method, self.path, self.status, self.headers, self.body = method, path, status, headers, body

    @property
    def text(self):
        return self.body.decode("utf-8")

    @property
    def json(self):
        return jsonlib.loads(self.body)

    @property
    def code(self):
        """The problem's code without its prefix, or None."""
        if self.status < 400 or not self.body:
            return None
        return self.json["code"].replace("vm_manager::", "", 1)

    @property
    def context(self):
        return self.json["context"]

    def __repr__(self):
        return f"<{self.method} {self.path} -> {self.status} {self.body[:2000]!r}>"


class Client:
    def __init__(self, socket_path=None, address=None, token=None, headers=None, timeout=TIMEOUT):
        """socket_path, or address = (host, port)"""
        assert (socket_path is None) != (address is None)
        self.socket_path, self.address, self.token, self.timeout = socket_path, address, token, timeout
        self.headers = dict(headers or {})

    def connect(self, timeout=None):
        timeout = self.timeout if timeout is None else timeout
        if self.address:
            return socket.create_connection(self.address, timeout)
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.settimeout(timeout)
        sock.connect(self.socket_path)
        return sock

    def _host(self):
        return f"{self.address[0]}:{self.address[1]}" if self.address else "vmmd"

    def _prepare(self, json, body, headers, prefer_wait):
        send = {"Host": self._host(), **self.headers}
        if self.token:
            send["Authorization"] = f"Bearer {self.token}"
        if json is not None:
            assert body is None
            body = jsonlib.dumps(json).encode()
            send["Content-Type"] = "application/json"
        if prefer_wait is not None:
            send["Prefer"] = f"wait={prefer_wait}"
        send.update(headers or {})
        return body, {name: value for name, value in send.items() if value is not None}

    def request(self, method, path, json=None, body=None, headers=None, prefer_wait=None, query=None, timeout=None,
                check=True):
        """A header of None is left out. query: a mapping or pairs. check=False for deliberately malformed traffic only."""
        if query:
            path += "?" + urlencode(query, doseq=True)
        body, send = self._prepare(json, body, headers, prefer_wait)
        connection = _Connection(self, (timeout or self.timeout) + (prefer_wait or 0))
        try:
            connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
            for name, value in send.items():
                connection.putheader(name, value)
            if body is not None and "Content-Length" not in send and "Transfer-Encoding" not in send:
                connection.putheader("Content-Length", str(len(body)))
            elif body is None and method in ("POST", "PUT", "PATCH"):
                connection.putheader("Content-Length", "0")
            connection.endheaders(body)
            answer = connection.getresponse()
            response = Response(method, path, answer.status, answer.headers, answer.read())
        finally:
            connection.close()
        if check:
            contract().check(method, path, response.status, response.headers, response.body)
        return response

    def get(self, path, **kw):
        return self.request("GET", path, **kw)

    def head(self, path, **kw):
        return self.request("HEAD", path, **kw)

    def post(self, path, json=None, **kw):
        return self.request("POST", path, json=json, **kw)

    def patch(self, path, json=None, **kw):
        return self.request("PATCH", path, json=json, **kw)

    def delete(self, path, **kw):
        return self.request("DELETE", path, **kw)

    def raw(self, data, timeout=60, half_close=False):
        """Sends bytes as they are and returns all that comes until the server closes or `timeout` passes in silence."""
        sock = self.connect(timeout)
        try:
            try:
                sock.sendall(data)
            except (BrokenPipeError, ConnectionResetError):
                pass  # it may refuse before it has read everything
            if half_close:
                sock.shutdown(socket.SHUT_WR)
            received = b""
            while True:
                try:
                    piece = sock.recv(65536)
                except (socket.timeout, ConnectionResetError):
                    return received
                if not piece:
                    return received
                received += piece
        finally:
            sock.close()

    def raw_response(self, data, timeout=60):
        """Sends bytes as they are and returns the first answer as a Response (unchecked); None when there is none."""
        sock = self.connect(timeout)
        try:
            try:
                sock.sendall(data)
            except (BrokenPipeError, ConnectionResetError):
                pass
            answer = http.client.HTTPResponse(sock)
            try:
                answer.begin()
                body = answer.read()
            except (http.client.HTTPException, ConnectionResetError):
                return None
            return Response("RAW", "", answer.status, answer.headers, body)
        finally:
            sock.close()

    def websocket(self, path, timeout=60, headers=None):
        """Opens a WebSocket: a websocket.WebSocket, or a websocket.WebSocketBadStatusException."""
        import websocket  # only where it is used: it is slow to load
        _, send = self._prepare(None, None, headers, None)
        host = send.pop("Host")
        ws = websocket.create_connection(f"ws://{host}{path}", timeout=timeout, socket=self.connect(timeout),
                                         header=[f"{name}: {value}" for name, value in send.items()],
                                         suppress_origin=True)
        template, _ = contract().route(path)
        record_route(f"GET {template}", 101)
        return ws

    def events(self, timeout=60, **query):
        """Opens /v1/events; see EventStream."""
        headers = query.pop("headers", None)
        return EventStream(self, query, headers, timeout)


def quoted(name):
    return quote(name, safe="")


class Event:
    def __init__(self, id_, type_, data):
        self.id, self.type, self.data = id_, type_, data

    def __repr__(self):
        return f"<event {self.id} {self.type} {self.data}>"


class EventStream:
    """Server-sent events. Each one is held against the contract's Event. A context manager."""

    def __init__(self, client, query, headers, timeout):
        self.timeout = timeout
        self.comments = 0
        self._queue = queue.Queue()
        path = "/v1/events" + ("?" + urlencode(query, doseq=True) if query else "")
        _, send = client._prepare(None, None, {"Accept": "text/event-stream", **(headers or {})}, None)
        self._connection = _Connection(client, TIMEOUT)
        self._connection.putrequest("GET", path, skip_host=True, skip_accept_encoding=True)
        for name, value in send.items():
            self._connection.putheader(name, value)
        self._connection.endheaders()
        # http.client lets go of the connection of an answer without length; the socket is needed for close().
        self._sock = self._connection.sock
        self._answer = self._connection.getresponse()
        self.status, self.headers = self._answer.status, self._answer.headers
        body = b"" if self.status == 200 else self._answer.read()
        contract().check("GET", path, self.status, self.headers, body)
        self.response = Response("GET", path, self.status, self.headers, body)
        self._sock.settimeout(None)
        if self.status == 200:
            threading.Thread(target=self._read, daemon=True).start()

    def _read(self):
        fields = {}
        try:
            while True:
                line = self._answer.readline()
                if not line:
                    break
                line = line.decode("utf-8").rstrip("\r\n")
                if not line:
                    if fields:
                        self._queue.put(fields)
                    fields = {}
                elif line.startswith(":"):
                    self.comments += 1
                else:
                    name, _, value = line.partition(":")
                    value = value[1:] if value.startswith(" ") else value
                    fields[name] = fields[name] + "\n" + value if name == "data" and name in fields else value
        except (OSError, ValueError, http.client.HTTPException, AttributeError):
            pass
        self._queue.put(None)

    def next(self, timeout=None):
        """The next event; AssertionError when none comes in time, StopIteration at the stream's end."""
        try:
            fields = self._queue.get(timeout=self.timeout if timeout is None else timeout)
        except queue.Empty:
            raise AssertionError("no event came in time") from None
        if fields is None:
            raise StopIteration
        if "data" not in fields:
            return self.next(timeout)
        data = jsonlib.loads(fields["data"])
        contract().assert_is("Event", data)
        assert fields.get("id") == str(data["id"]), f"id: {fields.get('id')} of event {data['id']}"
        assert fields.get("event", data["type"]) == data["type"]
        return Event(data["id"], data["type"], data)

    def until(self, wanted, timeout=None):
        """All events up to and with the first for which wanted(event) holds."""
        end = time.monotonic() + (self.timeout if timeout is None else timeout)
        events = []
        while True:
            event = self.next(max(0.01, end - time.monotonic()))
            events.append(event)
            if wanted(event):
                return events

    def silent(self, seconds):
        """True when no event comes for so long."""
        try:
            fields = self._queue.get(timeout=seconds)
        except queue.Empty:
            return True
        self._queue.put(fields)
        return False

    def ended(self, timeout=None):
        """Waits for the stream's end."""
        try:
            while self.next(timeout):
                pass
        except StopIteration:
            return True

    def close(self):
        try:
            self._sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        self._sock.close()
        self._connection.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()
