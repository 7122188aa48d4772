#!/usr/bin/python3
"""A soak of one vmmd with 1,000 noop VMs and 20 real ones: random verbs, kill -9 and restarts of vmmd, SIGKILL and SIGSTOP of QEMUs, and
after each step a model of what must hold.

    tests/fault/soak.py [--seed N] [--seconds S] [--noop N] [--real N]

For each VM the model knows the states it may be in, given what was acknowledged; an answer, a refusal or a cut connection changes the
set, and every look at the VM must find it in one of them.  Beside that:
  - an acknowledged operation ends, with a code that is possible there; one cut off by kill -9 is finished, undone or interrupted;
  - an acknowledged VM is there until it is destroyed (200 or 410, never 404); a retried key makes no second VM;
  - a real VM has a process, the one of its document, exactly while it is running or suspended, and no uuid has two;
  - names, MACs and ports are unique, lists are whole and in order, and quick; replayed events ascend and none is missed;
  - memory stays (after a warm-up, with the same population), and after all is destroyed fds and threads are where they began, the
    directories are empty and no process is left.
VMMD_BIN names the vmmd, VMMD_TEST_SLOW stretches the waits.  Ctrl+C ends it.  A run that fails leaves its directory."""
import argparse
import collections
import concurrent.futures
import http.client
import os
import random
import signal
import sys
import time
import traceback

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
from e2e.guest import KERNEL, INITRD  # noqa: E402
from lib import storm  # noqa: E402
from lib.conform import PREFIX, contract  # noqa: E402
from lib.vmmd import SLOW  # noqa: E402
from lib.vms import VERBS  # noqa: E402

CONFIG = "shutdown_grace_s = 2\nevents_keep = 1000000\n"
ABSENT = "absent"
REST = {"prepared", "stopped", "failed"}
UP = {"running", "suspended"}
ANY = REST | UP
STEPS = ["reserve", "build", "prepare", "spawn", "greet", "verify", "kill", "remove", "suspend", "resume", "reset", "persist"]
RUNNING_MOST = 4        # real guests that run at once; others are suspended or at rest: TCG boots cost a processor each
LIST_S = 1.5            # a list of 1,000 VMs takes less
CHECKPOINT_S = 20
WARM_CHANGES = 2500     # vmmd keeps the newest 1,000 operations in memory
EMPTY_FDS, EMPTY_THREADS = 4, 1     # more than at the beginning that are not a leak: a connection that is closing
RSS_SHARE, RSS_SLACK, RSS_EACH = 1.10, 8 << 20, 400     # growth of the calm part; the last for each id and key it must remember
CUT = (OSError, http.client.HTTPException)
# What may befall an operation of a VM whose labels ask for faults, and of a real one whose QEMU is killed, stopped or slow.
FAULTY = {"io", "image::overlay_creation_failed", "qemu::spawn_failed", "qemu::qmp_connect_failed", "qemu::qmp_command_failed"}
REAL = {"qemu::spawn_failed", "qemu::qmp_connect_failed", "qemu::qmp_command_failed", "vm::unresponsive", "network::port_in_use",
        "operation::deadline_exceeded", "vm::invalid_state"}
ALWAYS = {"operation::interrupted", "daemon::shutting_down"}


class Vm:
    def __init__(self, name, real):
        self.name, self.real = name, real
        self.id = None
        self.may = {ABSENT}
        self.body = None        # of its create
        self.taken = False      # a job of its own is at it
        self.left = None        # (verb, operation or None, states before, key): cut off
        self.process = None     # (pid, start time) when it was last seen up
        self.late = False       # its QEMU was asked while it hung: what it does late is taken back, unless vmmd is gone by then
        self.story = collections.deque(maxlen=10)


def process_of(pid):
    """(pid, start time) of a process that is no zombie, or None."""
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as file:
            fields = file.read().rsplit(")", 1)[1].split()
        return None if fields[0] == "Z" else (pid, int(fields[19]))
    except OSError:
        return None


class Soak(storm.Storm):
    def __init__(self, args):
        super().__init__(args.seed, CONFIG)
        self.args = args
        self.rng = random.Random(args.seed)
        self.vms = [Vm(f"n{i:04}", False) for i in range(args.noop)] + [Vm(f"real{i:02}", True) for i in range(args.real)]
        self.pool = concurrent.futures.ThreadPoolExecutor(24)
        self.long = set()           # jobs of real VMs
        self.acknowledged = {}      # operation: kind, since the last checkpoint
        self.destroyed = []         # ids
        self.codes = {}
        self.event_mark = 0
        self.operation_mark = ""
        self.asked = 0
        self.remembered = 0         # ids and keys that vmmd must remember
        self.interrupted = False
        self.slowest_list = 0.0
        self.leaks = "/v1/host/leaks" in contract().doc["paths"]

    # --- the model ---

    @staticmethod
    def reaches(verb, before, body):
        """The states after its success."""
        if verb == "create":
            return {"running" if body["start"] else "prepared"}
        if verb == "destroy":
            return {ABSENT}
        if verb in ("stop", "kill"):
            return {"stopped"} | before & REST
        return {VERBS[verb][1]}

    @staticmethod
    def falls(verb, before):
        """The states after its failure."""
        if verb == "create":
            return {ABSENT}
        if verb in ("suspend", "resume", "reset"):
            return before | {"failed", "stopped"}
        if verb == "stop" and "suspended" in before:  # it is resumed first, to hear the power button
            return before | {"failed", "stopped", "running"}
        return before | ANY if verb in ("restart", "destroy") else before | {"failed", "stopped"}

    def allowed(self, vm, code):
        return code in ALWAYS or vm.real and code in REAL or vm.body and "noop.fail" in vm.body["labels"] and code in FAULTY

    def told(self, vm, holds, text):
        """As hold(), with the VM's story."""
        return self.hold(holds, lambda: f"{vm.name}: {text}\n    " + "\n    ".join(vm.story))

    def note_code(self, code):
        with self.lock:
            self.codes[code] = self.codes.get(code, 0) + 1

    def succeeded(self, vm, verb, before):
        vm.may = self.reaches(verb, before, vm.body)
        if verb == "destroy" and vm.id:
            with self.lock:
                self.destroyed.append(vm.id)
            vm.id = vm.process = None

    def refused(self, vm, verb, before, document):
        """A problem: refused, or an operation that failed while it was waited for."""
        code = document["code"].removeprefix(PREFIX) if document else "none"
        self.note_code(code)
        vm.story.append(f"{verb} in {before}: {code}")
        if code == "vm::not_found":
            self.told(vm, ABSENT in before, f"{verb}: not found, it was {before}")
        elif code == "vm::already_exists":
            self.told(vm, before != {ABSENT}, "exists, and should not")
        elif code == "vm::invalid_state" and verb in VERBS:
            self.told(vm, not before <= VERBS[verb][0] or vm.real, f"{verb} is refused in {before}: {document['detail']}")
        else:
            self.told(vm, self.allowed(vm, code), f"{verb} ({before}): {code}: {document}")
            vm.may = self.falls(verb, before) | (self.reaches(verb, before, vm.body) if code in ALWAYS else set())

    def ended(self, vm, verb, before, operation):
        """The document of an operation that has ended."""
        vm.story.append(f"{verb} in {before}: {operation['id']} {operation['state']} {(operation['error'] or {}).get('detail', '')}")
        if operation["state"] == "succeeded":
            self.succeeded(vm, verb, before)
        else:
            code = operation["error"]["code"].removeprefix(PREFIX) if operation["error"] else "none"
            self.note_code(code)
            self.told(vm, self.allowed(vm, code), f"{verb} ({before}) ended {operation}")
            vm.may = self.falls(verb, before) | (self.reaches(verb, before, vm.body) - {ABSENT} if verb != "create" else set())
        if verb == "create" and vm.may == {ABSENT}:
            vm.id = None

    # --- one change ---

    def request(self, vm, verb, timeout):
        if verb == "create":
            return "POST", "/v1/vms", vm.body
        if verb == "destroy":
            return "DELETE", f"/v1/vms/{vm.name}", None
        return "POST", f"/v1/vms/{vm.name}/{verb}", {"timeout_s": timeout} if verb in ("stop", "restart") else {}

    def change(self, vm, verb, rng, key=None):
        """Asks, waits for the end, and notes what the VM may be.  Raises nothing: what was cut is left for resolve()."""
        before, operation = set(vm.may), None
        timeout = rng.choice([0, 1])
        headers = {"Prefer": "wait=60"} if rng.random() < 0.5 else {}
        if key is None and verb != "destroy" and rng.random() < 0.3:
            key = f"{vm.name}-{rng.getrandbits(60)}"
        if key:
            headers["Idempotency-Key"] = key
        self.count(f"verb {verb}")
        self.asked += 1
        self.remembered += (verb in ("create", "destroy")) + (key is not None)
        if verb in ("start", "restart", "create"):
            vm.process = None
        try:
            vm.left = (verb, None, before, (key, timeout))
            status, document = self.ask(*self.request(vm, verb, timeout), headers, timeout=90)
            if status not in (200, 202):
                vm.left = None
                self.refused(vm, verb, before, document)
                return
            if not self.told(vm, "kind" in document, f"{verb}: {status} {document}"):
                vm.left = None
                return
            operation = document["id"]
            with self.lock:
                self.acknowledged[operation] = verb
            if verb == "create":
                vm.id = document["target"]["vm_id"]
            vm.left = (verb, operation, before, None)
            while document["state"] not in storm.ENDED:
                self.ask("GET", f"/v1/operations/{operation}", None, {"Prefer": "wait=60"}, timeout=90)  # a failed one is a problem
                status, document = self.ask("GET", f"/v1/operations/{operation}")
                if not self.hold(status in (200, 202) and "kind" in document, f"{verb} of {vm.name}, {operation}: {status} {document}"):
                    vm.left = None
                    return
            vm.left = None
            self.ended(vm, verb, before, document)
        except CUT as error:
            vm.story.append(f"{verb} in {before}: cut off, {operation} {error!r}")
            self.count("cut off")

    def resolve(self, vm, rng):
        """After a restart: what became of the change that was cut off?"""
        verb, operation, before, (key, _) = vm.left[0], vm.left[1], vm.left[2], vm.left[3] or (None, 0)
        vm.left = None
        if operation:
            status, document = self.ask("GET", f"/v1/operations/{operation}")
            self.check_operation(operation, verb, status, document)
            if status == 200:
                interrupted = document["error"] and document["error"]["code"] == PREFIX + "operation::interrupted"
                self.hold(verb != "destroy" or not interrupted or vm.real, f"the destroy {operation} was not finished")
                self.ended(vm, verb, before, document)
            return
        vm.may = before | self.reaches(verb, before, vm.body) | self.falls(verb, before)
        if key and verb == "create":
            self.count("retried keys")
            vm.may |= {ABSENT}
            self.observe(vm, adopt=True)
            vm.may |= {ABSENT}  # the key belongs to a create that may have to be done anew
            self.retry(vm, rng, key)
        else:
            self.observe(vm, adopt=True)

    def retry(self, vm, rng, key):
        """The create again, under its key: the same VM, or the first."""
        status, document = self.ask("POST", "/v1/vms", vm.body, {"Idempotency-Key": key, "Prefer": "wait=60"}, timeout=90)
        if status not in (200, 202):
            self.refused(vm, "create", {ABSENT}, document)
            return
        vm.story.append(f"the create again: {status} {document['id']} {document['state']} of {document['target']['vm_id']}")
        self.told(vm, vm.id in (None, document["target"]["vm_id"]), f"the retried create made another VM than {vm.id}")
        vm.id = document["target"]["vm_id"]
        if document["state"] == "succeeded":
            vm.may = ANY
            self.observe(vm)

    # --- what is there ---

    def qemus(self):
        """{uuid: [process, ...]} of this daemon's QEMUs."""
        found = {}
        for pid in self.daemon.leftovers("qemu"):
            try:
                with open(f"/proc/{pid}/cmdline", "rb") as file:
                    words = file.read().decode("utf-8", "replace").split("\0")
            except OSError:
                continue
            process = process_of(pid)
            if process and "-uuid" in words:
                found.setdefault(words[words.index("-uuid") + 1], []).append(process)
        return found

    def observe(self, vm, adopt=False):
        """Looks at the VM: it must be as the model says.  `adopt`: whether its create was carried out is not known."""
        status, document = self.ask("GET", f"/v1/vms/{vm.name}")
        state = document["state"] if status == 200 else ABSENT
        if self.hold(status in (200, 404), f"GET {vm.name}: {status} {document}") and status == 200:
            if adopt and vm.id is None:
                vm.id = document["id"]
            self.told(vm, document["id"] == vm.id, f"is {document['id']}, and was {vm.id}")
            self.told(vm, document["operation"] is None, f"is still held by {document['operation']}")
        self.told(vm, state in vm.may, f"is {state}, and may be {vm.may}: {document}")
        if state == ABSENT and vm.id:
            self.destroyed.append(vm.id)
            vm.id = None
        vm.may = {state}
        if vm.real and status == 200:
            self.check_process(vm, document)

    def check_process(self, vm, document):
        end = time.monotonic() + 3 * SLOW
        while True:
            found = self.qemus().get(vm.id, [])
            right = len(found) == (document["state"] in UP)
            if right or time.monotonic() > end:
                break
            time.sleep(0.05)
        self.told(vm, right, f"is {document['state']} and has the processes {found}")
        if not right or document["state"] not in UP:
            vm.process = None
            return
        self.told(vm, found[0][0] == document["runtime"]["pid"], f"runs as {found[0]}, its document says {document['runtime']['pid']}")
        self.told(vm, vm.process in (None, found[0]), f"ran as {vm.process} and runs as {found[0]}")
        vm.process = found[0]

    # --- jobs ---

    def new_body(self, vm, rng):
        labels, spec = {"soak": "yes"}, {"vcpus": 1, "memory_mb": 96}
        if vm.real:
            spec.update(machine="microvm", boot={"kernel": KERNEL, "initrd": INITRD, "cmdline": "console=ttyS0 quiet rdinit=/bin/sh"},
                        network={"type": rng.choice(["none", "user"])})
        elif rng.random() < 0.05:
            labels["noop.fail"] = rng.choice(STEPS[1:])
        elif rng.random() < 0.3:
            labels[f"noop.delay_ms.{rng.choice(STEPS)}"] = str(rng.choice([1, 5, 20, 100]))
        vm.body = {"name": vm.name, "backend": "qemu" if vm.real else "noop", "labels": labels, "start": rng.random() < 0.4, "spec": spec}
        if vm.real:
            vm.body["start"] = False

    def noop_job(self, vm, seed):
        rng = random.Random(seed)
        if rng.random() < 0.1 and ABSENT not in vm.may:
            self.small_change(vm, rng)
        verb = "create" if vm.may == {ABSENT} else rng.choices([*VERBS, "destroy"], [4, 2, 2, 1, 1, 2, 2, 3])[0]
        fits = verb in ("create", "destroy") or vm.may & VERBS[verb][0]
        if not fits and rng.random() < 0.8:  # most of what is asked for makes sense
            verb = "start" if vm.may & REST else rng.choice(["stop", "kill"])
        if verb == "create":
            self.new_body(vm, rng)
        self.change(vm, verb, rng)
        if vm.left is None:
            self.look(vm)

    def look(self, vm):
        try:
            self.observe(vm)
        except CUT:
            self.count("cut off")

    def small_change(self, vm, rng):
        """A PATCH, a wait, a log, an explanation: they change no state."""
        act = rng.choice(["patch", "wait", "explain", "logs"])
        self.count(f"verb {act}")
        try:
            if act == "patch":
                status, document = self.ask("PATCH", f"/v1/vms/{vm.name}", {"labels": {"n": str(rng.random())}},
                                            {"Content-Type": "application/merge-patch+json"})
            elif act == "wait":
                status, document = self.ask("GET", f"/v1/vms/{vm.name}/wait?for=state:running&timeout=0")
                status = 200 if status in (409, 504) else status
            else:
                status, document = self.ask("GET", f"/v1/vms/{vm.name}/" + ("explain" if act == "explain" else "logs/vmm"))
            self.hold(status in (200, 503), f"{act} of {vm.name}: {status} {document}")
        except CUT:
            self.count("cut off")

    def real_verb(self, vm, rng):
        running = sum(1 for other in self.vms if other.real and other.may & {"running"})
        if vm.may == {ABSENT}:
            return "create"
        if vm.may == {"running"}:
            return rng.choices(["suspend", "kill", "stop", "reset", "restart", "destroy"],
                               [4, 2, 2, 1, 1, 1] if running < RUNNING_MOST else [6, 3, 3, 0, 0, 1])[0]
        if vm.may == {"suspended"}:
            return rng.choices(["resume", "kill", "stop", "destroy"], [4 if running < RUNNING_MOST else 0, 2, 2, 1])[0]
        return "start" if running < RUNNING_MOST else "destroy" if rng.random() < 0.2 else None

    def real_job(self, vm, seed):
        rng = random.Random(seed)
        try:
            act = rng.choices(["verb", "kill", "hang"], [12, 2, 1])[0]
            if act != "verb" and vm.process and vm.may <= UP:
                (self.kill_qemu if act == "kill" else self.hang_qemu)(vm, rng)
                return
            verb = self.real_verb(vm, rng)
            if verb is None:
                return
            if verb == "create":
                self.new_body(vm, rng)
            self.change(vm, verb, rng)
            if vm.left is None:
                self.observe(vm)
        except CUT:
            self.count("cut off")
        finally:
            vm.taken = False

    def signal_qemu(self, vm, number):
        """Only the process that was seen, never one that got its pid."""
        if process_of(vm.process[0]) == vm.process:
            os.kill(vm.process[0], number)

    def kill_qemu(self, vm, _):
        self.count("SIGKILL of a QEMU")
        self.signal_qemu(vm, signal.SIGKILL)
        vm.may = {"failed"}
        self.until_state(vm)

    def until_state(self, vm, patience=20):
        """Until it has come to what the model says: it takes a moment to be seen."""
        end = time.monotonic() + patience * SLOW
        while time.monotonic() < end:
            status, document = self.ask("GET", f"/v1/vms/{vm.name}")
            if status == 200 and document["state"] in vm.may and document["operation"] is None:
                break
            time.sleep(0.05)
        self.observe(vm)

    def hang_qemu(self, vm, rng):
        self.count("SIGSTOP of a QEMU")
        process, before = vm.process, set(vm.may)
        self.signal_qemu(vm, signal.SIGSTOP)
        try:
            started = time.monotonic()
            self.ask("GET", f"/v1/vms/{vm.name}")
            self.hold(time.monotonic() - started < LIST_S * SLOW, "a hung QEMU slows a read")
            vm.late = True
            self.change(vm, rng.choice(["suspend" if before == {"running"} else "resume", "kill", "stop"]), rng)
        finally:
            if process_of(process[0]) == process:
                os.kill(process[0], signal.SIGCONT)
        if vm.left is None:
            self.until_state(vm)

    # --- steps ---

    def begin_long(self):
        free = [vm for vm in self.vms if vm.real and not vm.taken and vm.left is None]
        if free and len(self.long) < 3:
            vm = self.rng.choice(free)
            vm.taken = True
            self.long.add(self.pool.submit(self.real_job, vm, self.rng.random()))
        self.join({job for job in self.long if job.done()})

    def join(self, jobs):
        for job in list(jobs):
            job.result(300 * SLOW)
            self.long.discard(job)

    def batch(self, most=40):
        chosen = self.rng.sample([vm for vm in self.vms if not vm.real], min(self.rng.randint(1, most), self.args.noop))
        return [self.pool.submit(self.noop_job, vm, self.rng.random()) for vm in chosen]

    def step(self):
        self.count("steps")
        self.begin_long()
        self.join(self.batch())

    def crash(self):
        """vmmd ends in the middle of it, and comes back; QEMUs may end meanwhile."""
        rng = self.rng
        self.begin_long()
        jobs = self.batch()
        time.sleep(rng.random() * 0.2)
        self.end(rng.choice(["kill", "kill", "kill", "term", "twice"]), rng)
        self.join(jobs)
        self.join(self.long)
        for vm in self.vms:
            if vm.real and vm.process and vm.left is None and vm.may <= UP and rng.random() < 0.1:
                self.count("SIGKILL of a QEMU")
                self.signal_qemu(vm, signal.SIGKILL)
                vm.may = {"failed"}
        for vm in self.vms:
            if vm.late and vm.may & UP:
                vm.may |= UP
            vm.late = False
        for _ in range(rng.choice([0, 0, 0, 1, 2])):
            self.blink(rng, rng.choice([signal.SIGTERM, signal.SIGKILL]))
        self.start()
        self.settle()
        for vm in self.vms:
            if vm.left is not None:
                self.resolve(vm, rng)
                self.observe(vm)
        self.check_all()

    # --- checkpoints ---

    def check_all(self):
        """The list, against the model; with no job under way."""
        started = time.monotonic()
        status, _ = self.ask("GET", "/v1/vms?limit=1000")
        self.slowest_list = max(self.slowest_list, time.monotonic() - started)
        self.hold(status == 200 and time.monotonic() - started < LIST_S * SLOW, f"the list took {time.monotonic() - started:.2f} s")
        found = self.items(f"/v1/vms?limit={self.rng.choice([7, 100, 333, 1000])}")
        names = [vm["name"] for vm in found]
        self.hold(names == sorted(set(names)), "the list is not in order, or has a VM twice")
        documents = {vm["name"]: vm for vm in found}
        self.hold(set(names) <= {vm.name for vm in self.vms}, lambda: f"unknown VMs: {set(names) - {vm.name for vm in self.vms}}")
        qemus = self.qemus()
        for vm in self.vms:
            document = documents.get(vm.name)
            state = document["state"] if document else ABSENT
            if not self.told(vm, state in vm.may, f"is {state}, and may be {vm.may}: {document}"):
                vm.may = {state}
            if document and not self.told(vm, document["id"] == vm.id, f"is {document['id']}, and was {vm.id}"):
                vm.id = document["id"]
            if vm.real and document:
                self.check_process(vm, document)
                qemus.pop(vm.id, None)
        self.hold(not qemus, f"QEMUs of no VM: {qemus}")
        for what, values in (("id", [vm["id"] for vm in found]), ("MAC", [vm["runtime"]["mac_addr"] for vm in found]),
                             ("port", [vm["runtime"]["ssh_host_port"] for vm in found])):
            values = [value for value in values if value]
            self.hold(len(values) == len(set(values)), f"two VMs have one {what}")

    def checkpoint(self):
        self.join(self.long)
        self.settle()
        self.check_all()
        self.check_operations()
        for vm in self.destroyed[-20:] + self.rng.sample(self.destroyed, min(20, len(self.destroyed))):
            status, _ = self.ask("GET", f"/v1/vms/{vm}")
            self.hold(status == 410, f"the destroyed VM {vm} answers {status}")
        newest = self.newest_event()
        end = time.monotonic() + 20 * SLOW
        while (not self.seen or self.seen[-1] < newest) and newest > 0 and time.monotonic() < end:
            time.sleep(0.05)  # the follower has all of it too
        self.check_events(self.event_mark, newest)
        self.event_mark = newest
        del self.seen[:max(0, len(self.seen) - 1000)]
        if self.leaks:
            status, document = self.ask("GET", "/v1/host/leaks")
            self.hold(status == 200 and not document.get("items"), f"leaks: {document}")

    def check_operations(self):
        """All that was acknowledged since the last time, by the list."""
        known, cursor, newest = {}, None, None
        while True:
            status, page = self.ask("GET", "/v1/operations?limit=1000" + (f"&cursor={cursor}" if cursor else ""))
            if not self.hold(status == 200, f"GET /v1/operations: {status}"):
                return
            known.update({operation["id"]: operation for operation in page["items"]})
            newest = newest or (page["items"][0]["id"] if page["items"] else self.operation_mark)
            cursor = page["next_cursor"]
            if not cursor or page["items"][-1]["id"] < self.operation_mark:
                break
        for operation, kind in self.acknowledged.items():
            self.check_operation(operation, kind, 200 if operation in known else 404, known.get(operation))
        self.acknowledged.clear()
        self.operation_mark = newest

    # --- what vmmd takes of the host ---

    def measure(self):
        """(fds, threads, bytes resident)"""
        proc = f"/proc/{self.daemon.pid}"
        with open(f"{proc}/statm", encoding="ascii") as file:
            rss = int(file.read().split()[1]) * os.sysconf("SC_PAGESIZE")
        return len(os.listdir(f"{proc}/fd")), len(os.listdir(f"{proc}/task")), rss

    def build(self):
        for vm in self.vms:
            self.new_body(vm, self.rng)
        self.join([self.pool.submit(self.change, vm, "create", random.Random(self.rng.random())) for vm in self.vms])
        for vm in self.vms:
            if vm.left is None:
                self.observe(vm)

    def destroy_all(self, vms):
        present = [vm for vm in vms if vm.may != {ABSENT}]
        self.join([self.pool.submit(self.change, vm, "destroy", random.Random(self.rng.random())) for vm in present])
        for vm in present:  # a fault that its label asked for
            while vm.may != {ABSENT} and vm.body and vm.body["labels"].pop("noop.fail", None):
                self.ask("PATCH", f"/v1/vms/{vm.name}", {"labels": {"noop.fail": None}}, {"Content-Type": "application/merge-patch+json"})
                self.change(vm, "destroy", self.rng)
            self.observe(vm)

    # --- the run ---

    def going(self, until):
        return time.monotonic() < until and len(self.faults) < 10 and not self.interrupted

    def leg(self, until, crashes, changes=0):
        """Until then, and until so much was asked for."""
        mark, asked = time.monotonic(), self.asked
        while self.going(until) or self.asked - asked < changes and self.going(until + 120 * SLOW):
            if crashes and self.rng.random() < 0.07:
                self.crash()
            else:
                self.step()
            if time.monotonic() - mark > CHECKPOINT_S:
                self.checkpoint()
                mark = time.monotonic()
        if not self.interrupted:
            self.checkpoint()

    def drive(self):
        began = time.monotonic()
        self.start()
        self.pool.submit(self.follow)
        self.build_small()
        begin = self.measure()
        self.build()
        print(f"{len(self.vms)} VMs made in {time.monotonic() - began:.1f} s", flush=True)
        self.leg(began + 0.65 * self.args.seconds, True)
        if self.interrupted:
            return
        self.crash()
        self.leg(began + 0.75 * self.args.seconds, False, WARM_CHANGES)
        warm, remembered = self.measure(), self.remembered
        self.leg(began + self.args.seconds, False)
        if self.interrupted:
            return
        end = self.measure()
        allowed = warm[2] * RSS_SHARE + RSS_SLACK + (self.remembered - remembered) * RSS_EACH
        print(f"resident: {warm[2] >> 10} KiB when warm, {end[2] >> 10} KiB at the end, {int(allowed) >> 10} KiB allowed", flush=True)
        self.hold(end[2] <= allowed, f"memory grew from {warm[2]} to {end[2]} bytes, {int(allowed)} are allowed")
        self.destroy_all(self.vms)
        self.checkpoint()
        self.check_empty(begin)

    def build_small(self):
        """A few of each, made, started and destroyed: what is opened once is open."""
        few = self.vms[:50] + self.vms[-2:]
        for vm in few:
            self.new_body(vm, self.rng)
        self.join([self.pool.submit(self.change, vm, "create", random.Random(self.rng.random())) for vm in few])
        for vm in few[-2:]:
            self.change(vm, "start", self.rng)
            self.change(vm, "kill", self.rng)
        self.destroy_all(few)

    def check_empty(self, begin):
        deadline = time.monotonic() + 10 * SLOW
        while True:  # connections that are closing
            end = self.measure()
            if end[0] <= begin[0] + EMPTY_FDS and end[1] <= begin[1] + EMPTY_THREADS or time.monotonic() > deadline:
                break
            time.sleep(0.1)
        print(f"with no VM: {begin[0]} fds and {begin[1]} threads at the beginning, {end[0]} and {end[1]} at the end", flush=True)
        self.hold(end[0] <= begin[0] + EMPTY_FDS, f"fds: {begin[0]} at the beginning, {end[0]} at the end")
        self.hold(end[1] <= begin[1] + EMPTY_THREADS, f"threads: {begin[1]} at the beginning, {end[1]} at the end")
        for place in (self.daemon.data_dir, self.daemon.runtime_dir):
            path = os.path.join(place, "vms")
            left = os.listdir(path) if os.path.isdir(path) else []
            self.hold(not left, f"left in {path}: {left}")
        self.end("term", self.rng)
        self.hold(self.daemon.leftovers() == [], f"processes are left: {self.daemon.leftovers()}")

    def run(self):
        def stop(*_):
            self.interrupted = True
            self.over.set()
        signal.signal(signal.SIGINT, stop)
        signal.signal(signal.SIGTERM, stop)
        try:
            self.drive()
        except (AssertionError, KeyError, TypeError, *CUT) as error:
            if not self.interrupted:
                self.fault(f"the soak itself: {type(error).__name__}: {error}\n{traceback.format_exc()}")
        self.over.set()
        self.up.set()
        self.pool.shutdown(cancel_futures=True)
        self.check_log()
        self.report()
        self.close()
        print(f"soak: {self.checks - len(self.faults)} passed, {len(self.faults)} failed" + (" (interrupted)" if self.interrupted else ""))
        return 130 if self.interrupted else 1 if self.faults else 0

    def report(self):
        print(f"seed {self.seed}; the slowest list took {self.slowest_list * 1000:.0f} ms")
        for what, number in sorted([*self.counts.items(), *((f"code {code}", number) for code, number in self.codes.items())], key=lambda c: str(c[0])):
            print(f"  {what:<34}{number:>9}")


def main():
    parser = argparse.ArgumentParser(description="a soak of one vmmd, against a model")
    parser.add_argument("--seed", type=int, default=storm.seed_of())
    parser.add_argument("--seconds", type=float, default=3600)
    parser.add_argument("--noop", type=int, default=1000)
    parser.add_argument("--real", type=int, default=20)
    args = parser.parse_args()
    if args.real and not (os.path.exists(KERNEL) and os.path.exists(INITRD)):
        parser.error(f"there is no guest ({KERNEL}): make guest")
    print(f"seed {args.seed}, {args.seconds:g} s", flush=True)
    sys.exit(Soak(args).run())


if __name__ == "__main__":
    main()
