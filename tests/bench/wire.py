"""What every row needs: medians, waits, and one kept connection."""
import json
import os
import socket
import statistics
import time


def median(values):
    return statistics.median(values)


def ratio(ours, reference):
    """The median of the rounds' ratios: what else the machine does in a round meets both of a pair."""
    return median([a / b for a, b in zip(ours, reference, strict=True)])


def cpu_us(pid):
    """User and system time of a process in microseconds, by its scheduler's own count."""
    total = 0
    for task in os.listdir(f"/proc/{pid}/task"):
        with open(f"/proc/{pid}/task/{task}/schedstat", encoding="ascii") as file:
            total += int(file.read().split()[0])
    return total / 1000


def free_port():
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


def until(holds, seconds, what, pause=0.0005):
    end = time.monotonic() + seconds
    while True:
        value = holds()
        if value:
            return value
        if time.monotonic() > end:
            raise SystemExit(f"bench: {what}: not within {seconds} s")
        time.sleep(pause)


class Wire:
    """One kept connection over a Unix socket, with as little of our own time in it as Python allows."""

    def __init__(self, path):
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(60)
        self.sock.connect(path)

    def ask(self, method, path, body=None, wait=True):
        data = b"" if body is None else json.dumps(body).encode()
        head = f"{method} {path} HTTP/1.1\r\nHost: vmmd\r\n"
        if wait and method != "GET":
            head += "Prefer: wait=60\r\n"
        if method == "POST":
            head += f"Content-Type: application/json\r\nContent-Length: {len(data)}\r\n"
        self.sock.sendall(head.encode() + b"\r\n" + data)
        return self._answer()

    def put(self, path, file):
        """A file as the body."""
        length = os.fstat(file.fileno()).st_size
        self.sock.settimeout(300)
        self.sock.sendall(f"PUT {path} HTTP/1.1\r\nHost: vmmd\r\nContent-Length: {length}\r\n\r\n".encode())
        file.seek(0)
        self.sock.sendfile(file)
        return self._succeeded(f"PUT {path}", *self._answer())

    def _answer(self):
        have = self.sock.recv(1 << 20)
        while b"\r\n\r\n" not in have:
            have += self._more()
        head, _, rest = have.partition(b"\r\n\r\n")
        length = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
        pieces, got = [rest], len(rest)
        while got < length:
            pieces.append(self._more())
            got += len(pieces[-1])
        return head, b"".join(pieces)

    def _more(self):
        piece = self.sock.recv(1 << 20)
        if not piece:
            raise SystemExit("bench: vmmd ended the connection")
        return piece

    def must(self, method, path, body=None):
        return self._succeeded(f"{method} {path}", *self.ask(method, path, body))

    @staticmethod
    def _succeeded(what, head, answer):
        if not head.startswith(b"HTTP/1.1 2"):
            raise SystemExit(f"bench: {what}: {head!r} {answer[:500]!r}")
        return answer

    def close(self):
        self.sock.close()
