"""Real guests: what they boot from, how they are reached, and what must not be left of them."""
import glob
import json
import os
import re
import secrets
import signal
import socket
import subprocess
import time

import websocket

from lib import vms
from lib.conform import ROOT
from lib.vmmd import SLOW
from lib.vms import create_body, get_vm

GUEST = os.environ.get("VMMD_GUEST", os.path.join(ROOT, "build", "guest"))
KERNEL = os.path.join(GUEST, "vmlinuz")
INITRD = os.path.join(GUEST, "initrd.img")
TINY = os.path.join(GUEST, "tiny.qcow2")
DEBIAN = os.path.join(GUEST, "debian-12.qcow2")
# A guest is up in 3 to 9 s; a busy machine may take its time.
PATIENCE = 120
UP = "vmmd-guest: up"
# A tenth of a boot under TCG is the kernel's test of its own ciphers; on a busy machine it warns of its clocks, in the midst of what
# the shell says. test_boot.py boots with vmmd's own line as well.
CMDLINE = "console=ttyS0 quiet loglevel=1 cryptomgr.notests"


def eventually(read, holds, timeout=PATIENCE):
    """As that of lib/vms.py, with the patience that what goes on in a guest needs."""
    return vms.eventually(read, holds, timeout)


def direct(machine="q35", **more):
    """A spec that boots the kernel directly: the quickest guest."""
    return {"boot": {"kernel": KERNEL, "initrd": INITRD, "cmdline": CMDLINE}, "memory_mb": 128, "machine": machine,
            "network": {"type": "none"}, **more}


def deaf(**more):
    """A guest whose init is a shell: no agent, and nobody hears the power button."""
    spec = direct(**more)
    spec["boot"]["cmdline"] += " rdinit=/bin/sh"
    return spec


def from_disk(**more):
    return {"image": TINY, "memory_mb": 256, "network": {"type": "none"}, **more}


def make(api, name="web", start=False, labels=None, **spec):
    """Creates a VM of the backend qemu and returns it."""
    answer = api.post("/v1/vms", create_body(name, "qemu", labels, start, **spec), prefer_wait=PATIENCE)
    assert answer.status == 200, answer
    return answer.json["result"]


def do(api, verb, name="web", body=None, expect=200):
    """A verb, waited for as long as a busy machine needs; the response."""
    answer = api.post(f"/v1/vms/{name}/{verb}", body, prefer_wait=PATIENCE)
    assert answer.status == expect, answer
    return answer


def destroy(api, name="web"):
    answer = api.delete(f"/v1/vms/{name}", prefer_wait=PATIENCE)
    assert answer.status == 200, answer
    return answer


def wait_for(api, name="web", *what, patience=PATIENCE):
    """Waits for conditions such as "ready" and "state:stopped"; the VM."""
    patience = min(600, int(patience * SLOW))
    query = [("for", one) for one in what] + [("timeout", patience)]
    answer = api.get(f"/v1/vms/{name}/wait", query=query, timeout=patience + 10)
    assert answer.status == 200, f"{answer}\n--- console\n{console(api, name)[-3000:]}"
    return answer.json["vm"]


def wait_ready(api, name="web"):
    return wait_for(api, name, "ready")


def booted(api, name="web", **spec):
    """A guest that is ready, by direct boot unless the spec says otherwise."""
    make(api, name, start=True, **(spec or direct()))
    return wait_ready(api, name)


def bring_ready(api, name="web"):
    """Whatever the VM's state, it then runs and is ready; for VMs that several tests share."""
    state = get_vm(api, name)["state"]
    if state == "suspended":
        do(api, "resume", name)
    elif state != "running":
        do(api, "start", name)
    return wait_ready(api, name)


def condition(vm, kind):
    return next((c for c in vm["conditions"] if c["type"] == kind), None)


def is_ready(vm):
    return bool(condition(vm, "ready") and condition(vm, "ready")["status"])


def log(api, name="web", which="console", **query):
    answer = api.get(f"/v1/vms/{name}/logs/{which}", query=query)
    assert answer.status == 200, answer
    return answer


def console(api, name="web", **query):
    return log(api, name, **query).body.decode("utf-8", "replace")


def wait_console(api, text, name="web", start=0):
    """Waits for a text on the console behind an offset."""
    return eventually(lambda: console(api, name, **{"from": start}), lambda all_: text in all_, PATIENCE)


def console_end(api, name="web"):
    return int(log(api, name, tail=0).headers["X-Next-Offset"])


class Shell:
    """Root's shell on the guest's serial line, over the console's WebSocket. A context manager."""

    def __init__(self, api, name="web", force=False):
        self.ws = api.websocket(f"/v1/vms/{name}/console" + ("?force=1" if force else ""), timeout=60)
        self.text = ""

    def send(self, text):
        self.ws.send_binary(text.encode())

    def until(self, pattern, timeout=PATIENCE):
        """Reads until the pattern is found in what has come; the match."""
        end = time.monotonic() + timeout * SLOW
        while True:
            match = re.search(pattern, self.text, re.S)
            if match:
                self.text = self.text[match.end():]
                return match
            assert time.monotonic() < end, f"no {pattern!r} within {timeout} s in {self.text[:1000]!r} … {self.text[-1000:]!r}"
            try:
                self.ws.settimeout(0.5)
                self.text += self.ws.recv().decode("utf-8", "replace")
            except websocket.WebSocketTimeoutException:
                pass

    def run(self, command, timeout=PATIENCE):
        """Runs a command; its output, stripped. It must succeed."""
        mark = secrets.token_hex(4)
        self.send(f"echo beg-''{mark}; {command}; echo end-$?-{mark}\r")
        match = self.until(rf"beg-{mark}\r?\n(.*?)end-(\d+)-{mark}", timeout)
        assert match[2] == "0", f"{command}: exit {match[2]}: {match[1]!r}"
        return match[1].replace("\r", "").strip()

    def close(self):
        try:
            self.ws.close(timeout=2)
        except (OSError, websocket.WebSocketException):
            pass

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


def type_alone(daemon, command):
    """Types a command into the only guest's serial line while no vmmd does; its echo says that it has arrived."""
    (path,) = glob.glob(os.path.join(daemon.runtime_dir, "vms", "*", "console.sock"))
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(PATIENCE * SLOW)
        sock.connect(path)
        sock.sendall(command.encode() + b"\r")
        seen = b""
        while command.encode() + b"\r\n" not in seen:
            piece = sock.recv(65536)
            assert piece, seen
            seen += piece


def until_paused(daemon, status):
    """Asks the only guest's QEMU itself, while no vmmd does."""
    def ask():
        (path,) = glob.glob(os.path.join(daemon.runtime_dir, "vms", "*", "qmp.sock"))
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(30)
            sock.connect(path)
            stream = sock.makefile("rw")
            stream.readline()
            for command in ("qmp_capabilities", "query-status"):
                stream.write(json.dumps({"execute": command}) + "\n")
                stream.flush()
                while True:
                    answer = json.loads(stream.readline())
                    if "return" in answer:
                        break
            return answer["return"]["status"]
    eventually(ask, lambda now: now == status, PATIENCE)


def type_and_leave(api, command, name="web"):
    """Types what ends the guest, or keeps it busy; the pen is given back when it has arrived."""
    with Shell(api, name) as shell:
        shell.run("true")
        shell.send(command + "\r")
        shell.until(re.escape(command))


def in_guest(api, command, name="web"):
    with Shell(api, name) as shell:
        return shell.run(command)


def key_pair(directory):
    """(path of the private key, public key)"""
    path = os.path.join(directory, "key")
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", path], check=True, stdin=subprocess.DEVNULL)
    with open(path + ".pub", encoding="utf-8") as file:
        return path, file.read().strip()


def ssh(port, key, user, command):
    """Runs a command in the guest by the system's ssh; its output. The connection is tried again until sshd is there."""
    argv = ["ssh", "-F", "none", "-i", key, "-p", str(port), "-o", "StrictHostKeyChecking=no",
            "-o", "UserKnownHostsFile=/dev/null", "-o", "BatchMode=yes", "-o", "IdentitiesOnly=yes",
            "-o", "ConnectTimeout=20", "-o", "LogLevel=ERROR", f"{user}@127.0.0.1", command]

    def once():
        return subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=PATIENCE, check=False)
    result = eventually(once, lambda r: r.returncode != 255, PATIENCE)
    assert result.returncode == 0, result
    return result.stdout.strip()


# ---- what must not be left ----

def process_alive(pid):
    """A zombie is not alive."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def gone(pid, timeout=PATIENCE):
    eventually(lambda: process_alive(pid), lambda alive: not alive, timeout)


def files_below(*dirs):
    return sorted(path for one in dirs for path in glob.glob(os.path.join(one, "**"), recursive=True) if path != one + "/")


def vm_files(daemon):
    """What the daemon's VMs own on disk, and their sockets."""
    return files_below(os.path.join(daemon.data_dir, "vms"), os.path.join(daemon.runtime_dir, "vms"))


def assert_nothing_left(daemon):
    """No QEMU or helper, no file of a VM, no socket."""
    assert daemon.leftovers() == [], [open(f"/proc/{pid}/cmdline", "rb").read() for pid in daemon.leftovers()]
    assert vm_files(daemon) == []


def destroy_all(daemon):
    """Every VM, by the API; then nothing may be left."""
    if not daemon.running():
        daemon.start()
    api = daemon.client()
    for vm in api.get("/v1/vms").json["items"]:
        if vm["spec"]["protect"]:
            api.patch(f"/v1/vms/{vm['name']}", {"spec": {"protect": False}})
        destroy(api, vm["name"])
    assert api.get("/v1/vms").json["items"] == []
    assert_nothing_left(daemon)


def tell(daemon):
    """For the report of a test that failed."""
    print(f"--- vmmd's log\n{daemon.log()[-6000:]}")
    if not daemon.running():
        return
    try:
        api = daemon.client(timeout=5)
        for vm in api.get("/v1/vms").json["items"]:
            print(f"--- {vm['name']}: {vm['state']} {vm['failure']}\n--- console\n{console(api, vm['name'], tail=30)}")
            print(f"--- vmm\n{log(api, vm['name'], 'vmm', tail=20).body.decode('utf-8', 'replace')}")
    except (OSError, AssertionError) as error:
        print(error)


def resume_stopped(pid):
    try:
        os.kill(pid, signal.SIGCONT)
    except ProcessLookupError:
        pass
