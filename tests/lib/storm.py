"""What the storms share: one vmmd that is driven, ended and started again, and what is noted and held against it."""
import http.client
import json
import os
import random
import signal
import socket
import subprocess
import threading
import time

from lib.vmmd import SLOW, Daemon

BAD_LOG = ["loop_free:", "resumed twice", "Sanitizer", "runtime error:", "UNIQUE", "constraint failed"]
ENDED = ("succeeded", "failed", "cancelled")


class Local(http.client.HTTPConnection):
    def __init__(self, path, timeout):
        super().__init__("vmmd", timeout=timeout)
        self.path = path

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self.path)


class Storm:
    """One vmmd and its follower of events. The seed decides what is asked; the threads decide the order."""

    def __init__(self, seed, config):
        self.seed = seed
        self.daemon = Daemon(config=config, start=False)
        self.lock = threading.Lock()
        self.up = threading.Event()     # requests may be sent
        self.over = threading.Event()
        self.faults = []
        self.checks = 0
        self.counts = {}
        self.seen = []                  # event ids of the follower

    def fault(self, text):
        with self.lock:
            self.faults.append(text)
        print("FAULT:", text, flush=True)

    def hold(self, holds, text):
        """One thing that must be so; `text` may be a function."""
        with self.lock:
            self.checks += 1
        if not holds:
            self.fault(text() if callable(text) else text)
        return holds

    def count(self, what, number=1):
        with self.lock:
            self.counts[what] = self.counts.get(what, 0) + number

    # --- requests ---

    def ask(self, method, path, body=None, headers=None, timeout=90):
        """(status, document or None); OSError and HTTPException when the daemon went away."""
        connection = Local(self.daemon.socket, timeout * SLOW)
        try:
            data = None if body is None else json.dumps(body).encode()
            send = dict(headers or {})
            if data is not None:
                send.setdefault("Content-Type", "application/json")
            connection.request(method, path, data, send)
            answer = connection.getresponse()
            raw = answer.read()
        finally:
            connection.close()
        self.count(answer.status)
        if b"daemon::internal" in raw and answer.status == 500:
            self.fault(f"{method} {path}: 500 {raw[:500]!r}")
        return answer.status, json.loads(raw) if raw and "json" in answer.headers.get("Content-Type", "") else None

    def items(self, path):
        """All items of a list, page by page."""
        found, cursor = [], None
        while True:
            status, document = self.ask("GET", path + (f"&cursor={cursor}" if cursor else ""))
            if not self.hold(status == 200, f"GET {path}: {status} {document}"):
                return found
            found += document["items"]
            cursor = document["next_cursor"]
            if not cursor:
                return found

    # --- events ---

    def stream(self, since, upto=None):
        """Ids of events after `since`, until cut, or until `upto` has come."""
        connection = Local(self.daemon.socket, 60 * SLOW)
        try:
            connection.request("GET", "/v1/events", None, {"Last-Event-ID": str(since)})
            answer = connection.getresponse()
            while not (upto is None and self.over.is_set()):
                line = answer.readline()
                if not line.endswith(b"\n"):
                    return
                if line.startswith(b"id: "):
                    yield int(line[4:])
                    if upto is not None and int(line[4:]) >= upto:
                        return
        except (OSError, http.client.HTTPException):
            self.count("stream cut")
        finally:
            connection.close()

    def follow(self):
        """One follower of all events, over every restart."""
        last = 0
        while not self.over.is_set():
            if not self.up.wait(0.2):
                continue
            for number in self.stream(last):
                if number <= last:
                    self.fault(f"event {number} came after {last}")
                last = number
                self.seen.append(number)
            time.sleep(0.02)

    def newest_event(self):
        return self.ask("GET", "/v1/vms?limit=1")[1]["as_of_event"]

    def check_events(self, since=0, newest=None):
        """A replay of (since, newest] ascends, is whole, and is what the follower saw of it."""
        newest = self.newest_event() if newest is None else newest
        ids, last, turns = [], since, 0
        while last < newest and turns < 100:  # a reader that is too slow is dropped, and comes back
            turns += 1
            for last in self.stream(last, newest):
                ids.append(last)
        self.count("events replayed", len(ids))
        self.hold(last >= newest, f"the replay ends at {last}, the newest is {newest}")
        self.hold(ids == sorted(set(ids)), "replayed ids do not ascend strictly")
        seen = list(self.seen)
        known, kept = {i for i in seen if i > since}, set(ids)
        missed = [i for i in ids if seen and i <= seen[-1] and i not in known][:10]
        ghosts = sorted(i for i in known - kept if i <= newest)[:10] if len(ids) < 90000 else []
        self.hold(not missed, f"the follower missed events {missed} of {len(ids)}")
        self.hold(not ghosts, f"events were told that are not kept: {ghosts}")

    # --- ends and restarts ---

    def start(self):
        self.daemon.start(timeout=60)
        self.up.set()

    def end(self, how, rng):
        """kill, term or twice."""
        self.count(f"end by {how}")
        if how == "kill":
            self.daemon.kill9()
            self.up.clear()
            return
        self.daemon.proc.send_signal(signal.SIGTERM)
        if how == "twice":
            time.sleep(rng.choice([0, 0.01, 0.3]))
            self.daemon.proc.send_signal(signal.SIGTERM)
        self.ended_well()
        self.up.clear()

    def ended_well(self):
        try:
            status = self.daemon.proc.wait(60 * SLOW)
        except subprocess.TimeoutExpired:
            self.daemon.proc.send_signal(signal.SIGABRT)
            self.daemon.proc.wait()
            self.fault("vmmd does not end after SIGTERM")
            return
        self.hold(status == 0, f"vmmd ended with {status}")

    def blink(self, rng, how=signal.SIGTERM):
        """Started, and asked to end while it probes, recovers or has just begun to serve."""
        with open(self.daemon.log_path, "ab") as log:
            self.daemon.proc = subprocess.Popen(self.daemon.argv(), stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=self.daemon.env)
        while self.daemon.proc.poll() is None:  # until SIGTERM has a handler it ends the process by its default
            with open(f"/proc/{self.daemon.proc.pid}/status", encoding="ascii") as file:
                caught = [int(line.split()[1], 16) for line in file if line.startswith("SigCgt:")]
            if caught and caught[0] & 1 << signal.SIGTERM - 1:
                break
            time.sleep(0.001)
        time.sleep(rng.random() * rng.choice([0.01, 0.1, 0.5]) * SLOW)
        self.daemon.proc.send_signal(how)
        self.count("blink")
        if how == signal.SIGTERM:
            self.ended_well()
        else:
            self.daemon.proc.wait()

    # --- what must hold ---

    def settle(self):
        """Waits until no operation is under way."""
        end = time.monotonic() + 90 * SLOW
        while time.monotonic() < end:
            left = [o for state in ("running", "pending") for o in self.ask("GET", f"/v1/operations?state={state}&limit=1000")[1]["items"]]
            if not left:
                return
            time.sleep(0.1)
        self.fault(f"operations do not end: {[(o['id'], o['kind'], o['step'], o['state']) for o in left][:10]}")

    def check_operation(self, operation, kind, status, document):
        """One that was acknowledged and must have ended by now."""
        if not self.hold(status == 200, f"the acknowledged operation {operation} ({kind}) answers {status}"):
            return
        self.hold(document["state"] in ENDED, f"operation {operation} ({kind}) is {document['state']}")
        self.hold(document["state"] != "failed" or document["error"], f"operation {operation} ({kind}) failed and does not say why")
        self.hold(document["finished_at"] is not None, f"operation {operation} ({kind}) ended at no time")

    def check_log(self):
        log = self.daemon.log()
        for bad in BAD_LOG:
            at = log.find(bad)
            self.hold(at < 0, lambda: f"the log has \"{bad}\":\n{log[max(0, at - 300):at + 5000]}")

    def close(self):
        """The daemon's directory is kept after a fault, its processes are not."""
        if not self.faults:
            self.daemon.close()
            return
        if self.daemon.running():
            self.daemon.proc.kill()
            self.daemon.proc.wait()
        for pid in self.daemon.leftovers():
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        print(f"seed {self.seed}; kept: {self.daemon.dir}, its log {self.daemon.log_path}, its data {self.daemon.data_dir}", flush=True)


def seed_of():
    """One by chance."""
    return random.SystemRandom().randint(1, 10 ** 6)
