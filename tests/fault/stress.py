#!/usr/bin/python3
"""A seeded storm on one vmmd: many clients, any verb, any moment; ends, kills and restarts; and a simple model of what must hold.

    tests/fault/stress.py [--seed N] [--seconds S] [--threads N] [--vms N] [--no-kill]

What it holds vmmd to:
  - a create that was acknowledged is there or was destroyed, over every SIGKILL: its id answers 200 or 410, never 404;
  - what was never asked to be destroyed, and whose create succeeded, is there;
  - an operation that was acknowledged comes to an end, one that failed says why, and no VM stays held;
  - event ids ascend strictly, live and replayed, and a follower that comes back with Last-Event-ID misses none;
  - SIGTERM ends it with 0 (no leak, no sanitizer's report, the loop closes clean), whatever is under way, also asked twice.
VMMD_BIN names the vmmd, VMMD_TEST_SLOW stretches the waits.  The seed decides what is asked; the threads decide the order."""
import argparse
import http.client
import json
import os
import random
import signal
import socket
import sys
import threading
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
from lib import storm  # noqa: E402
from lib.vmmd import SLOW  # noqa: E402

CONFIG = "shutdown_grace_s = 2\n"
STEPS = ["reserve", "build", "prepare", "spawn", "greet", "verify", "press", "terminate", "kill", "remove", "suspend", "resume", "reset",
         "persist", "announce"]
VERBS = ["start", "start", "start", "stop", "kill", "reset", "restart", "suspend", "resume"]
MERGE = {"Content-Type": "application/merge-patch+json"}


class Storm(storm.Storm):
    def __init__(self, args):
        super().__init__(args.seed, CONFIG)
        self.args = args
        self.created = {}               # id: name, of acknowledged creates
        self.succeeded = set()          # ids whose create is known to have ended well
        self.doomed = set()             # names a destroy was sent for
        self.gone = set()               # ids whose destroy ended well
        self.operations = {}            # id: kind, acknowledged
        self.names = [f"vm{i}" for i in range(args.vms)]
        self.safe = 0

    # --- requests ---

    def labels(self, rng):
        labels = {}
        for _ in range(rng.choice([0, 0, 1, 1, 2])):
            labels[f"noop.delay_ms.{rng.choice(STEPS)}"] = str(rng.choice([1, 5, 20, 100, 700, 3000]))
        if rng.random() < 0.15:
            labels["noop.fail"] = rng.choice(STEPS[1:])
        if rng.random() < 0.2:
            labels["noop.exit"] = rng.choice(["guest-off", "panic", "exited:3", "killed:9"])
            if rng.random() < 0.5:
                labels["noop.exit_step"] = rng.choice(STEPS)
            else:
                labels["noop.exit_after_ms"] = str(rng.choice([0, 1, 50, 500]))
        for key in ("noop.ignore_acpi", "noop.ignore_term"):
            if rng.random() < 0.15:
                labels[key] = "true"
        if rng.random() < 0.5:
            labels["noop.adopt"] = rng.choice(["running", "suspended", "nothing", "guest-off", "panic"])
        return labels

    def note(self, status, document):
        """An acknowledged operation."""
        if status not in (200, 202) or not isinstance(document, dict) or "kind" not in document:
            return
        with self.lock:
            self.operations[document["id"]] = document["kind"]
            vm = document["target"]["vm_id"]
            if document["kind"] == "vm.create":
                self.created[vm] = document["target"]["vm_name"]
                if document["state"] == "succeeded":
                    self.succeeded.add(vm)
            if document["kind"] == "vm.destroy" and document["state"] == "succeeded" and vm:
                self.gone.add(vm)

    def prefer(self, rng):
        return rng.choice([{}, {"Prefer": "wait=60"}, {"Prefer": f"wait={rng.randint(2, 5)}"}])

    def spec(self, rng):
        spec = {"vcpus": 1, "memory_mb": 64}
        if rng.random() < 0.2:
            spec["network"] = {"type": "user", "forwards": [{"guest_port": 80, "host_port": rng.choice([0, 39000 + rng.randint(0, 9)])}]}
        return spec

    def create(self, rng):
        if rng.random() < 0.1 and self.safe < 200:  # one that nobody destroys, and nothing ails
            with self.lock:
                self.safe += 1
                body = {"name": f"safe{self.safe}", "backend": "noop", "spec": {"vcpus": 1, "memory_mb": 64}}
        else:
            body = {"name": rng.choice(self.names), "backend": "noop", "labels": self.labels(rng), "start": rng.random() < 0.5,
                    "spec": self.spec(rng)}
        headers = self.prefer(rng)
        if rng.random() < 0.3:
            headers["Idempotency-Key"] = f"key-{rng.randint(1, 10 ** 9)}"
        status, document = self.ask("POST", "/v1/vms", body, headers)
        self.note(status, document)
        if status in (200, 202) and "Idempotency-Key" in headers and rng.random() < 0.5:
            again, same = self.ask("POST", "/v1/vms", body, headers)
            if again in (200, 202) and same["id"] != document["id"] and same["target"]["vm_id"] == document["target"]["vm_id"]:
                self.fault(f"a replayed key began another operation: {document['id']} and {same['id']}")

    def verb(self, rng):
        name, verb = rng.choice(self.names), rng.choice(VERBS)
        body = {"timeout_s": rng.choice([0, 1, 3])} if verb in ("stop", "restart") else {}
        self.note(*self.ask("POST", f"/v1/vms/{name}/{verb}", body, self.prefer(rng)))

    def destroy(self, rng):
        name = rng.choice(self.names)
        with self.lock:
            self.doomed.add(name)
        self.note(*self.ask("DELETE", f"/v1/vms/{name}", None, self.prefer(rng)))

    def patch(self, rng):
        patch = rng.choice([{"labels": {"a": str(rng.random())}}, {"labels": self.labels(rng)}, {"spec": {"vcpus": rng.randint(1, 4)}},
                            {"spec": {"memory_mb": rng.choice([64, 128])}, "labels": {"a": None}},
                            {"labels": {"noop.fail": None, "noop.exit": None}}])
        self.ask("PATCH", f"/v1/vms/{rng.choice(self.names)}", patch, MERGE)

    def cancel(self, rng):
        with self.lock:
            recent = list(self.operations)[-20:]
        if recent:
            self.ask("DELETE", f"/v1/operations/{rng.choice(recent)}")

    def look(self, rng):
        name = rng.choice(self.names)
        with self.lock:
            recent = list(self.operations)[-2000:]
        path = rng.choice(["/v1/vms", "/v1/vms?limit=3", f"/v1/vms/{name}", f"/v1/vms/{name}/explain", "/v1/operations?limit=20",
                           f"/v1/vms/{name}/logs/console?tail=5", f"/v1/vms/{name}/logs/vmm", "/metrics", "/v1/host",
                           f"/v1/operations/{rng.choice(recent)}" if recent else "/v1/errors"])
        status, document = self.ask("GET", path, None, self.prefer(rng) if "/v1/operations/" in path else {})
        if status == 200 and path == "/v1/vms":
            names = [vm["name"] for vm in document["items"]]
            if names != sorted(set(names)):
                self.fault(f"the list is not in order: {names}")

    def wait(self, rng):
        wanted = rng.choice(["state:running", "state:stopped", "state:destroyed", "ready", "agent", "state:failed"])
        self.ask("GET", f"/v1/vms/{rng.choice(self.names)}/wait?for={wanted}&timeout={rng.randint(0, 3)}")

    def rude(self, rng):
        """Leaves at a random moment."""
        name = rng.choice(self.names)
        body = {"POST /v1/vms": {"name": name, "backend": "noop", "labels": self.labels(rng), "start": True, "spec": self.spec(rng)},
                f"PATCH /v1/vms/{name}": {"labels": {"rude": str(rng.random())}}, f"POST /v1/vms/{name}/start": {},
                f"POST /v1/vms/{name}/stop": {"timeout_s": 1}, f"POST /v1/vms/{name}/restart": {"timeout_s": 1}}
        line = rng.choice([*body, f"GET /v1/vms/{name}/wait?for=state:destroyed&timeout=60", f"GET /v1/vms/{name}/explain",
                           "GET /v1/events?since=0", f"GET /v1/events?vm={name}&since=0", f"GET /v1/vms/{name}/logs/vmm?follow=1",
                           f"GET /v1/vms/{name}/logs/console?follow=1", "GET /v1/operations?limit=1000", f"GET /v1/vms/{name}/logs/console"])
        text = f"{line} HTTP/1.1\r\nHost: vmmd\r\nPrefer: wait=20\r\n"
        if line in body:
            data = json.dumps(body[line])
            text += f"Content-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n{data}"
        else:
            text += "\r\n"
        raw = text.encode()
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
            sock.settimeout(1)
            sock.connect(self.daemon.socket)
            sock.sendall(raw[:rng.randint(1, len(raw))] if rng.random() < 0.3 else raw)
            time.sleep(rng.choice([0, 0, 0.001, 0.01, 0.1, 0.5]))
            if rng.random() < 0.3:
                try:
                    sock.recv(rng.choice([1, 100, 100000]))
                except socket.timeout:
                    pass
        self.count("rude")

    # --- threads ---

    def client(self, number):
        rng = random.Random(f"{self.args.seed}/{number}")
        acts = [(self.create, 22), (self.verb, 26), (self.destroy, 9), (self.patch, 7), (self.cancel, 6), (self.look, 12), (self.wait, 6),
                (self.rude, 18)]
        what, weights = [act for act, _ in acts], [weight for _, weight in acts]
        while not self.over.is_set():
            if not self.up.wait(0.2):
                continue
            act = rng.choices(what, weights)[0]
            try:
                act(rng)
            except socket.timeout:
                if self.up.is_set() and not self.over.is_set():
                    self.fault(f"client {number}: no answer to {act.__name__}")
            except (OSError, http.client.HTTPException):
                self.count("cut")
                time.sleep(0.01)

    # --- ends and restarts ---

    def end_somehow(self, rng):
        self.end(rng.choice(["term", "term", "twice", "kill", "kill"] if self.args.kill else ["term", "twice"]), rng)

    # --- what must hold ---

    def check(self):
        self.settle()
        for vm in self.ask("GET", "/v1/vms?limit=1000")[1]["items"]:
            if vm["operation"] is not None:
                self.fault(f"VM {vm['name']} is still held: {vm['operation']}")
            if vm["state"] in ("preparing", "destroyed"):
                self.fault(f"VM {vm['name']} is {vm['state']}")
        for vm, name in self.created.items():
            status, document = self.ask("GET", f"/v1/vms/{vm}")
            if status not in (200, 410):
                self.fault(f"the acknowledged VM {name} ({vm}) answers {status}")
            if status == 200 and vm in self.gone:
                self.fault(f"the destroyed VM {name} ({vm}) is there, {document['state']}")
            if status != 200 and vm in self.succeeded and name not in self.doomed:
                self.fault(f"VM {name} ({vm}) was created and never destroyed, and answers {status}")
        for operation, kind in self.operations.items():
            self.check_operation(operation, kind, *self.ask("GET", f"/v1/operations/{operation}"))

    def run(self):
        rng = random.Random(self.args.seed)
        threads = [threading.Thread(target=self.client, args=(i,), daemon=True) for i in range(self.args.threads)]
        threads.append(threading.Thread(target=self.follow, daemon=True))
        self.start()
        for thread in threads:
            thread.start()
        end = time.monotonic() + self.args.seconds
        while not self.faults:
            time.sleep(min(rng.uniform(0.3, 6), max(0.1, end - time.monotonic())))
            if self.faults or time.monotonic() > end:
                break
            self.end_somehow(rng)
            for _ in range(rng.choice([0, 0, 1, 2])):
                if not self.faults:
                    self.blink(rng)
            if not self.faults:
                self.start()
        self.over.set()
        for thread in threads:
            thread.join(45 * SLOW)
        if self.daemon.running():
            self.check()
            self.check_events()
            self.end_somehow(rng)
            self.start()  # what it had left is found again
            self.check()
            self.daemon.proc.send_signal(signal.SIGTERM)
            self.ended_well()
        self.check_log()
        counts = " ".join(f"{what}={n}" for what, n in sorted(self.counts.items(), key=lambda c: str(c[0])))
        print(f"seed {self.args.seed}: {len(self.created)} creates, {len(self.operations)} operations, {len(self.seen)} events; {counts}")
        self.close()
        print(f"storm: {0 if self.faults else 1} passed, {len(self.faults)} failed")
        return 1 if self.faults else 0


def main():
    parser = argparse.ArgumentParser(description="a seeded storm on one vmmd")
    parser.add_argument("--seed", type=int, default=storm.seed_of())
    parser.add_argument("--seconds", type=float, default=30)
    parser.add_argument("--threads", type=int, default=24)
    parser.add_argument("--vms", type=int, default=30)
    parser.add_argument("--no-kill", dest="kill", action="store_false", help="SIGTERM only")
    args = parser.parse_args()
    print(f"seed {args.seed}, {args.seconds:g} s", flush=True)
    sys.exit(Storm(args).run())


if __name__ == "__main__":
    main()
