"""A vmmd that is made to crash, and what must hold of it afterwards. One world is one daemon's directory: its daemons come and go, and
each point ends with nothing left in it."""
import contextlib
import ctypes
import http.client
import json
import os
import re
import secrets
import socket
import sqlite3
import subprocess
import time

from lib.vmmd import SLOW, Daemon
from lib.vms import create_body, eventually

CRASH_STATUS = 77
CALM_S = 1.5  # so long nothing is under way: no point will be passed any more
CLONE_NEWNET = 0x40000000
GONE = (OSError, http.client.HTTPException)
ENDED = ("succeeded", "failed", "cancelled")
INTERRUPTED = "operation::interrupted"


class Unreached(Exception):
    """The daemon did not pass the point."""


def below(top):
    return {os.path.relpath(os.path.join(base, name), top) for base, dirs, files in os.walk(top) for name in dirs + files}


class World:
    def __init__(self, case):
        self.case = case
        self.qemu = case.backend == "qemu"
        self.namespace = None
        self.daemon = Daemon(start=False)
        self.control = os.path.join(self.daemon.dir, "crash")
        self.daemon.env["VMMD_CRASH_FILE"] = self.control
        try:
            if self.qemu and os.geteuid() == 0:
                self.make_network()
            self.start()
            self.api = self.daemon.client(timeout=60 * SLOW)
            # What a vmmd without VMs has; the log of the database comes and goes.
            self.base = {"data": below(self.daemon.data_dir) | {"vmmd.db-wal", "vmmd.db-shm", "vms"},
                         "run": below(self.daemon.runtime_dir) | {"vms"}}
        except BaseException:
            self.close()
            raise

    def close(self):
        if self.daemon.running():
            self.daemon.kill9()
        self.daemon.close()
        if self.namespace:
            subprocess.run(["ip", "netns", "del", self.namespace], check=True)

    # --- the network ---

    def make_network(self):
        """Of its own: no other QEMU on this host takes a port between its choice and its use."""
        name = f"vmmd-{secrets.token_hex(4)}"
        subprocess.run(["ip", "netns", "add", name], check=True)
        self.namespace = name
        bridge = ("link add br0 type bridge", "link set br0 up") if self.case.bridge else ()
        for command in ("link set lo up", *bridge):
            subprocess.run(["ip", "-n", name, *command.split()], check=True)

    @contextlib.contextmanager
    def entered(self):
        if not self.namespace:
            yield
            return
        setns = ctypes.CDLL(None, use_errno=True).setns
        with open("/proc/thread-self/ns/net", "rb") as home, open(f"/run/netns/{self.namespace}", "rb") as there:
            assert setns(there.fileno(), CLONE_NEWNET) == 0
            try:
                yield
            finally:
                assert setns(home.fileno(), CLONE_NEWNET) == 0

    def taps(self):
        if not self.namespace:
            return 0
        done = subprocess.run(["ip", "-n", self.namespace, "-j", "-d", "link"], check=True, stdout=subprocess.PIPE)
        return sum(link.get("linkinfo", {}).get("info_kind") == "tun" for link in json.loads(done.stdout))

    # --- the daemon and its points ---

    def arm(self, *lines):
        with open(self.control + ".new", "w", encoding="utf-8") as file:
            file.write("".join(line + "\n" for line in lines))
        os.rename(self.control + ".new", self.control)

    def start(self):
        self.arm()
        with self.entered():
            self.daemon.start(timeout=60)

    def start_armed(self, *lines):
        """A start that may crash at a point; whether it did."""
        self.arm(*lines)
        try:
            with self.entered():
                self.daemon.start(timeout=60)
        except AssertionError:
            if self.daemon.proc.returncode != CRASH_STATUS:
                raise
            return True
        return False

    def await_crash(self):
        try:
            status = self.daemon.proc.wait(20 * SLOW)
        except subprocess.TimeoutExpired:
            raise Unreached(f"not passed\n{self.daemon.log()[-3000:]}") from None
        assert status == CRASH_STATUS, f"vmmd ended with {status}:\n{self.daemon.log()[-3000:]}"

    def crashed_or_settled(self):
        """After a start that may crash later: whether it did, or all is done without it."""
        end, calm = time.monotonic() + 30 * SLOW, None
        while time.monotonic() < end and (calm is None or time.monotonic() < calm + CALM_S * SLOW):
            if self.daemon.proc.poll() is not None:
                self.await_crash()
                return True
            try:
                busy = any(op["state"] not in ENDED for op in self.operations().values())
            except GONE:
                busy = True
            calm = None if busy else calm or time.monotonic()
            time.sleep(0.02)
        return False

    def trace_path(self):
        path = os.path.join(self.daemon.dir, "trace")
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        return path

    # --- reading ---

    def vm(self, ref):
        answer = self.api.get(f"/v1/vms/{ref}")
        assert answer.status in (200, 404, 410), answer
        return answer.json if answer.status == 200 else None

    def operations(self):
        """The newest, which are more than one point makes; held against the contract one by one where they matter."""
        answer = self.api.get("/v1/operations", query={"limit": 30}, check=False)
        assert answer.status == 200, answer
        return {op["id"]: op for op in answer.json["items"]}

    def quiet(self):
        """No operation is under way, and no VM that has an agent waits for it; the operations."""
        operations = eventually(self.operations, lambda ops: all(op["state"] in ENDED for op in ops.values()), 60)
        for vm in self.api.get("/v1/vms").json["items"]:
            if vm["state"] == "running" and not self.qemu:
                answer = self.api.get(f"/v1/vms/{vm['id']}/wait", query={"for": "ready", "timeout": 20})
                assert answer.status == 200, f"{vm['name']} runs and is not ready: {answer}"
        return operations

    # --- what must hold ---

    def check_host(self):
        """Processes, files, sockets, taps: exactly what the VMs say."""
        vms = self.api.get("/v1/vms").json["items"]
        alive = {vm["runtime"]["pid"] for vm in vms if vm["state"] in ("running", "suspended")} if self.qemu else set()
        assert None not in alive, vms
        eventually(lambda: set(self.daemon.leftovers("qemu")), lambda pids: pids == alive)
        assert self.taps() == (len(alive) if self.case.bridge else 0)
        for which, top in (("data", self.daemon.data_dir), ("run", self.daemon.runtime_dir)):
            mine = {vm["id"] if which == "data" else vm["id"][-12:] for vm in vms
                    if self.qemu and (which == "data" or vm["runtime"]["pid"] in alive)}
            found = below(top) - self.base[which]
            found = {path for path in found if path.split("/")[0] != "images"}  # crash_images.py looks at those
            strangers = {path for path in found if path.split("/")[:1] != ["vms"] or path.split("/")[1] not in mine}
            assert not strangers, f"left in {top}: {sorted(strangers)}"
            assert {path.split("/")[1] for path in found} == mine, f"missing in {top}: {sorted(found)}"
        for vm in vms:
            assert vm["operation"] is None, vm
            assert vm["state"] in ("prepared", "running", "suspended", "stopped", "failed"), vm
            assert vm["runtime"]["pid"] is None or vm["runtime"]["pid"] in alive, vm
            self.check_files(vm)
            ready = next((c["status"] for c in vm["conditions"] if c["type"] == "ready"), None)
            assert not ready or vm["state"] == "running", vm

    def check_files(self, vm):
        """What its document names is there, and nothing else but logs and the like."""
        for key in ("work_dir", "overlay_path", "seed_iso_path", "qmp_socket", "console_socket"):
            path = vm["runtime"][key]
            assert path is None or os.path.exists(path), f"{key} of {vm['name']} is not there: {path}"

    def check_store(self, keys):
        """The rows, while no daemon runs. keys: each with the operation that it must have, or None."""
        with contextlib.closing(sqlite3.connect(f"file:{self.daemon.data_dir}/vmmd.db?mode=ro", uri=True)) as db:
            vms = {row[0]: json.loads(row[1]) for row in db.execute("SELECT id, doc FROM vms WHERE destroyed_at = 0")}
            operations = {row[0]: json.loads(row[1]) for row in db.execute("SELECT id, doc FROM operations")}
            assert db.execute("SELECT count(*) FROM operations WHERE finished_at = 0").fetchone()[0] == 0
            ports = sorted(db.execute("SELECT udp, port, vm_id FROM ports"))
            held = dict(db.execute("SELECT key, operation_id FROM idempotency_keys WHERE created_at > 0"))
            events = [json.loads(row[0]) for row in db.execute("SELECT doc FROM events ORDER BY id")]
        assert ports == sorted(port for vm in vms.values() for port in ports_of(vm)), ports
        macs = [vm["runtime"]["mac_addr"] for vm in vms.values() if vm["runtime"]["mac_addr"]]
        assert len(macs) == len(set(macs)), macs
        assert all(vm["operation"] is None and vm["state"] != "preparing" for vm in vms.values()), vms
        assert set(held.values()) <= set(operations), f"keys of operations that are not there: {held}"
        for key, operation in keys.items():
            assert held.get(key) == operation, f"key {key} belongs to {held.get(key)}, not {operation}"
        check_events(events, operations)

    def check_monitors(self):
        """While no daemon runs: QEMU does what the row says."""
        if not self.qemu:
            return
        with contextlib.closing(sqlite3.connect(f"file:{self.daemon.data_dir}/vmmd.db?mode=ro", uri=True)) as db:
            vms = [json.loads(row[0]) for row in db.execute("SELECT doc FROM vms WHERE destroyed_at = 0")]
        for vm in vms:
            if vm["state"] in ("running", "suspended"):
                status = query_status(vm["runtime"]["qmp_socket"])
                assert status == {"running": "running", "suspended": "paused"}[vm["state"]], f"{vm['name']}: {status}"


def ports_of(vm):
    if vm["spec"]["network"]["type"] != "user":
        return []
    forwards = [(f["proto"] == "udp", f["host_port"], vm["id"]) for f in vm["spec"]["network"]["forwards"]]
    return [(int(udp), port, vm_id) for udp, port, vm_id in forwards] + [(0, vm["runtime"]["ssh_host_port"], vm["id"])]


def query_status(path):
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(20 * SLOW)
        sock.connect(path)
        with sock.makefile("rw", encoding="utf-8") as file:
            file.readline()
            answer = None
            for command in ("qmp_capabilities", "query-status"):
                file.write(json.dumps({"execute": command}) + "\n")
                file.flush()
                answer = json.loads(file.readline())
                while "event" in answer:
                    answer = json.loads(file.readline())
            return answer["return"]["status"]


def check_events(events, operations):
    """Each operation that began is told to have ended once, as it did; a VM's states follow one another."""
    ends, states = {}, {}
    for event in events:
        if event["type"] == "operation.finished":
            assert event["operation_id"] not in ends, f"ended twice: {event}"
            ends[event["operation_id"]] = event["data"]["state"]
        if event["type"] == "vm.state_changed":
            before = states.get(event["vm_id"])
            assert before in (None, event["data"]["from"]), f"from {before}, says {event}"
            states[event["vm_id"]] = event["data"]["to"]
    for event in events:
        if event["type"] == "operation.started":
            operation = operations[event["operation_id"]]
            assert ends.get(event["operation_id"]) == operation["state"], f"not told how it ended: {operation}"


def check_operation(op, case):
    """A document that an ended operation can have; how it ended, in a word."""
    steps = {step["state"] for step in op["steps"]}
    assert op["state"] in ENDED and op["finished_at"] and op["step"] is None and not op["cancellable"], op
    assert not steps & {"running", "undoing"}, op
    if op["state"] == "succeeded":
        assert op["error"] is None and steps <= {"done", "skipped"}, op
        return "finished"
    if op["state"] == "cancelled":
        assert op["error"]["code"].endswith("operation::cancelled"), op
        return "cancelled"
    code = op["error"]["code"].replace("vm_manager::", "", 1)
    if code == INTERRUPTED:
        undone = op["error"]["context"]["rolled_back"]
        assert undone, op
        return "undone" if re.search("as it was before|was removed", undone) else "interrupted"
    assert code == case.fails, op
    return "failed"


def body_of(case, name):
    if case.verb == "create" or (case.holder and case.holder[0] == "create"):
        return create_body(name, case.backend, case.labels, case.start, **case.spec)
    return case.body
