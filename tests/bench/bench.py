"""Speed and size of vmmd, as ratios against bare references measured in the same run, interleaved; medians.

    bench.py [WHAT ...]     of: get start end size create pull exec put; all by default

Everything runs on loopback and in one directory, which is removed; every process is ended by its pid."""
import json
import os
import platform
import random
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time

from guests import guest_rows
from wire import Wire, cpu_us, free_port, median, ratio, until

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
BUILD = os.environ.get("BUILD", os.path.join(ROOT, "build"))
GUEST = os.path.join(ROOT, "build", "guest")
# A VM with the default network holds a port of 9,000; those that fill up to VMS have none.
VMS, CREATES, CREATE_ROUNDS, CONNECTIONS = 10000, 8000, 5, 32
GET_ROUNDS, GET_CONNECTIONS = 11, 16
START_ROUNDS = 15
LIST_ROUNDS, READY_ROUNDS = 41, 7
PULL_ROUNDS, PULL_MIB = 7, int(os.environ.get("VMMD_BENCH_PULL_MIB", "1024"))


class Vmmd:
    def __init__(self, parent, name):
        self.dir = os.path.join(parent, name)
        os.mkdir(self.dir)
        self.socket = os.path.join(self.dir, "s")
        self.port = free_port()
        self.proc = None
        self.start()

    def start(self):
        """Returns the seconds from exec to the first answer."""
        argv = [f"{BUILD}/vmmd", "--data-dir", f"{self.dir}/data", "--runtime-dir", f"{self.dir}/run", "--socket", self.socket,
                "--listen", f"127.0.0.1:{self.port}", "--no-auth", "--log-level", "warn"]
        with open(f"{self.dir}/log", "ab") as log:
            began = time.monotonic()
            self.proc = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        until(self.answers, 30, f"vmmd did not come up, see {self.dir}/log")
        return time.monotonic() - began

    def answers(self):
        if self.proc.poll() is not None:
            with open(f"{self.dir}/log", encoding="utf-8") as log:
                raise SystemExit(f"bench: vmmd ended at its start: {log.read()[-2000:]}")
        try:
            wire = Wire(self.socket)
        except OSError:
            return False
        wire.must("GET", "/v1/health")
        wire.close()
        return True

    def rss(self):
        with open(f"/proc/{self.proc.pid}/status", encoding="ascii") as file:
            return next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmRSS:"))

    def metric(self, name):
        wire = Wire(self.socket)
        text = wire.must("GET", "/metrics").decode()
        wire.close()
        return next(float(line.split()[1]) for line in text.splitlines() if line.startswith(name + " "))

    def stop(self):
        if self.proc.poll() is None:
            self.proc.send_signal(signal.SIGTERM)
            try:
                self.proc.wait(20)
            except subprocess.TimeoutExpired:
                self.proc.kill()
                self.proc.wait()


class Bench:
    build = BUILD

    def __init__(self, seed):
        self.random = random.Random(seed)
        self.dir = tempfile.mkdtemp(prefix="vmmd-bench-", dir=os.environ.get("VMMD_BENCH_DIR", "/var/tmp"))
        self.ended_by_us = []
        self.rows, self.notes = [], []

    def close(self):
        for proc in reversed(self.ended_by_us):
            if proc.poll() is None:
                proc.terminate()
                try:
                    proc.wait(10)
                except subprocess.TimeoutExpired:
                    proc.kill()
                    proc.wait()
        shutil.rmtree(self.dir, ignore_errors=True)

    def vmmd(self, name):
        vmmd = Vmmd(self.dir, name)
        self.ended_by_us.append(vmmd.proc)
        return vmmd

    def row(self, what, ours, reference, ratio, target, met):
        self.rows.append((what, ours, reference, ratio, target, "yes" if met else "NO"))
        print(f"  {what}: {ours}, {reference or 'no reference'}{', ratio ' + ratio if ratio else ''}", file=sys.stderr)

    def note(self, text):
        self.notes.append(text)

    def pair(self, ours, reference):
        """Both, in an order the seed chooses."""
        for measure in self.random.sample((ours, reference), 2):
            measure()

    @staticmethod
    def timed(took, what):
        began = time.monotonic()
        what()
        took.append(time.monotonic() - began)

    def bare(self, get, post):
        """bare libmicrohttpd on the loop, answering these bytes."""
        port, files = free_port(), []
        for name, (head, body) in (("get", get), ("post", post)):
            files.append(os.path.join(self.dir, f"answer.{name}"))
            with open(files[-1], "wb") as file:
                file.write(head + b"\r\n\r\n" + body)
        proc = subprocess.Popen([f"{BUILD}/bench/bare_mhd", str(port), *files], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
        self.ended_by_us.append(proc)
        if proc.stdout.readline() != b"ready\n":
            raise SystemExit("bench: bare_mhd did not start")
        return proc, port

    # --- 1: GET of one VM ---

    def get(self):
        vmmd = self.vmmd("get")
        wire = Wire(vmmd.socket)
        for i in range(10):
            wire.must("POST", "/v1/vms", {"name": f"vm-{i}", "backend": "noop"})
        path = f"/v1/vms/vm-{self.random.randrange(10)}"
        answer = wire.ask("GET", path)
        bare, port = self.bare(answer, answer)
        rates, cpu = {"ours": [], "bare": []}, {"ours": [], "bare": []}

        def wrk(name, pid, port):
            before = cpu_us(pid)
            out = subprocess.run(["wrk", "-t1", f"-c{GET_CONNECTIONS}", "-d1s", f"http://127.0.0.1:{port}{path}"], check=True,
                                 stdout=subprocess.PIPE, text=True, timeout=30).stdout
            if "Non-2xx" in out or "Socket errors" in out:
                raise SystemExit(f"bench: wrk: {out}")
            rates[name].append(float(next(line for line in out.splitlines() if "Requests/sec" in line).split()[1]))
            requests = int(next(line for line in out.splitlines() if " requests in " in line).split()[0])
            cpu[name].append((cpu_us(pid) - before) / requests)

        for _ in range(GET_ROUNDS):
            self.pair(lambda: wrk("ours", vmmd.proc.pid, vmmd.port), lambda: wrk("bare", bare.pid, port))
        wire.close()
        vmmd.stop()
        bare.terminate()
        ours, ref, by = median(rates["ours"]), median(rates["bare"]), ratio(rates["ours"], rates["bare"])
        self.row(f"GET /v1/vms/{{vm}}, {GET_CONNECTIONS} connections", f"{ours:.0f}/s", f"bare libmicrohttpd {ref:.0f}/s",
                 f"{by:.2f}", ">= 0.8", by >= 0.8)
        self.note(f"CPU of a GET: {median(cpu['ours']):.1f} us, bare {median(cpu['bare']):.1f} us; "
                  f"ratios of the rounds {' '.join(f'{a / b:.2f}' for a, b in zip(rates['ours'], rates['bare'], strict=True))}")

    # --- 2 and 3: start, and the end, of a real VM ---

    def qemu_argv(self, vmmd, wire):
        """The command line of a started VM, with other paths and another port."""
        vm = json.loads(wire.must("GET", "/v1/vms/a"))
        with open(f"/proc/{vm['runtime']['pid']}/cmdline", "rb") as file:
            text = file.read().decode()
        bare = os.path.join(self.dir, "q")
        os.makedirs(bare, exist_ok=True)
        text = text.replace(os.path.dirname(vm["runtime"]["qmp_socket"]), bare)
        if vm["runtime"]["ssh_host_port"]:
            text = text.replace(f":{vm['runtime']['ssh_host_port']}-", f":{free_port()}-")
        if vmmd.dir + "/" in text:
            raise SystemExit(f"bench: a path of vmmd is left in {text!r}")
        return text.split("\0")[:-1], os.path.join(bare, "qmp.sock")

    def bare_start(self, argv, path):
        if os.path.exists(path):
            os.unlink(path)
        with open(os.path.join(self.dir, "q", "log"), "ab") as log:
            null = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
            actions = [(os.POSIX_SPAWN_DUP2, null, 0), (os.POSIX_SPAWN_DUP2, log.fileno(), 1), (os.POSIX_SPAWN_DUP2, log.fileno(), 2)]
            began = time.monotonic()
            pid = os.posix_spawn(argv[0], argv, os.environ, file_actions=actions)
            os.close(null)

        def connected():
            sock = socket.socket(socket.AF_UNIX)
            sock.settimeout(30)
            try:
                sock.connect(path)
                return sock
            except OSError:
                sock.close()
                return None

        sock = until(connected, 30, "QEMU's monitor", pause=0.0002)
        qmp = sock.makefile("rwb", buffering=0)
        greeting = json.loads(qmp.readline())
        assert "QMP" in greeting
        for command in ("qmp_capabilities", "cont"):
            self.qmp(qmp, command)
        while self.qmp(qmp, "query-status")["status"] != "running":
            pass
        return time.monotonic() - began, pid, sock, qmp

    @staticmethod
    def qmp(stream, command):
        stream.write(json.dumps({"execute": command}).encode() + b"\n")
        while True:
            answer = json.loads(stream.readline())
            if "return" in answer:
                return answer["return"]
            assert "event" in answer, answer

    @staticmethod
    def bare_quit(pid, qmp):
        began = time.monotonic()
        qmp.write(b'{"execute":"quit"}\n')
        os.waitpid(pid, 0)
        return time.monotonic() - began

    def start_end(self):
        for name in ("vmlinuz", "initrd.img"):
            if not os.path.exists(os.path.join(GUEST, name)):
                raise SystemExit("bench: the guest is missing: make guest")
        vmmd = self.vmmd("vm")
        wire = Wire(vmmd.socket)
        db = sqlite3.connect(os.path.join(self.dir, "commits.db"), isolation_level=None)
        for sql in ("PRAGMA journal_mode = WAL", "PRAGMA synchronous = FULL", "CREATE TABLE t (id INTEGER PRIMARY KEY, doc TEXT)"):
            db.execute(sql)
        spec = {"boot": {"kernel": f"{GUEST}/vmlinuz", "initrd": f"{GUEST}/initrd.img"}, "memory_mb": 256}
        took = {"start": [], "end": [], "bare start": [], "quit": [], "commits": []}
        bare = {}

        def create():
            wire.must("POST", "/v1/vms", {"name": "a", "backend": "qemu", "spec": spec})

        def timed(ask):
            began = time.monotonic()
            for method, path in ask:
                wire.must(method, path)
            return time.monotonic() - began

        def ours():
            create()
            took["start"].append(timed([("POST", "/v1/vms/a/start")]))
            took["end"].append(timed([("POST", "/v1/vms/a/kill"), ("DELETE", "/v1/vms/a")]))

        def reference():
            seconds, pid, sock, qmp = self.bare_start(bare["argv"], bare["path"])
            took["bare start"].append(seconds)
            took["quit"].append(self.bare_quit(pid, qmp))
            sock.close()
            began = time.monotonic()
            for _ in range(2):
                db.execute("INSERT INTO t (doc) VALUES (?)", ("x" * 2000,))
            took["commits"].append(time.monotonic() - began)

        create()
        timed([("POST", "/v1/vms/a/start")])
        bare["argv"], bare["path"] = self.qemu_argv(vmmd, wire)
        timed([("POST", "/v1/vms/a/kill"), ("DELETE", "/v1/vms/a")])
        for _ in range(START_ROUNDS):
            self.pair(ours, reference)
        db.close()
        wire.close()
        vmmd.stop()
        ms = {name: 1000 * median(values) for name, values in took.items()}
        by = ratio(took["start"], took["bare start"])
        self.row("start, direct kernel, to verified running", f"{ms['start']:.1f} ms", f"bare QEMU + QMP {ms['bare start']:.1f} ms",
                 f"{by:.2f}", "<= 1.3", by <= 1.3)
        by = ratio(took["end"], [a + b for a, b in zip(took["quit"], took["commits"], strict=True)])
        self.row("kill + destroy of a running VM", f"{ms['end']:.1f} ms",
                 f"quit {ms['quit']:.1f} + 2 commits {ms['commits']:.1f} ms", f"{by:.2f}", "< 3", by < 3)

    # --- 5: durable creates; and 4: many VMs, which they leave ---

    @staticmethod
    def post_load(port, count, prefix, spec="{}"):
        out = subprocess.run([f"{BUILD}/bench/post_load", str(port), str(CONNECTIONS), str(count), prefix, "Prefer: wait=60", spec],
                             check=True, stdout=subprocess.PIPE, text=True, timeout=70).stdout.split()
        return int(out[0]) / float(out[1])

    def sqlite_rows(self, vmmd, copy, prefix, commits):
        """SQLite reads the WAL of a copy: nobody else may open vmmd's own file."""
        os.makedirs(copy, exist_ok=True)
        time.sleep(0.2)  # what comes late is written by then
        for name in ("vmmd.db", "vmmd.db-wal"):
            if os.path.exists(f"{vmmd.dir}/data/{name}"):
                shutil.copyfile(f"{vmmd.dir}/data/{name}", f"{copy}/{name}")
        target = os.path.join(self.dir, "alone")
        os.makedirs(target, exist_ok=True)
        out = subprocess.run([f"{BUILD}/bench/sqlite_rows", f"{copy}/vmmd.db", target, prefix, str(commits)], check=True,
                             stdout=subprocess.PIPE, text=True, timeout=70).stdout.split()
        shutil.rmtree(copy)
        return int(out[0]) / float(out[1])

    def create_size(self, want_create, want_size):
        vmmd = self.vmmd("many")
        wire = Wire(vmmd.socket)
        wire.must("GET", "/v1/vms")
        empty = vmmd.rss()
        probe = self.vmmd("one")
        one = Wire(probe.socket)
        answer = one.ask("POST", "/v1/vms", {"name": "round0-000000", "backend": "noop"})
        one.close()
        probe.stop()
        bare, port = self.bare(answer, answer)
        rates = {"ours": [], "bare": [], "sqlite": []}
        count = CREATES // CREATE_ROUNDS
        per_commit = []
        for n in range(CREATE_ROUNDS):
            prefix = f"round{n}"

            def ours(prefix=prefix):
                commits = vmmd.metric("vmmd_store_commits_total")
                rates["ours"].append(self.post_load(vmmd.port, count, prefix))
                commits = int(vmmd.metric("vmmd_store_commits_total") - commits)
                per_commit.append(count / commits)
                if want_create:
                    rates["sqlite"].append(self.sqlite_rows(vmmd, os.path.join(self.dir, "copy"), prefix, commits))

            self.pair(ours, lambda prefix=prefix: rates["bare"].append(self.post_load(port, count, prefix)))
        bare.terminate()
        if want_create:
            ours, mhd, alone = (median(rates[name]) for name in ("ours", "bare", "sqlite"))
            ref = min(mhd, alone)
            self.row(f"durable creates, {CONNECTIONS} connections", f"{ours:.0f}/s",
                     f"libmicrohttpd POSTs {mhd:.0f}/s; SQLite alone {alone:.0f}/s ({median(per_commit):.1f} creates a commit)",
                     f"{ours / ref:.2f}", ">= 0.3", ours / ref >= 0.3)
        if want_size:
            self.post_load(vmmd.port, VMS - CREATES, "filler", '{"network":{"type":"none"}}')
            for verb in ("/start", "/stop"):
                for prefix in [f"round{n}" for n in range(CREATE_ROUNDS)]:
                    self.post_load(vmmd.port, count, prefix, verb)
                self.post_load(vmmd.port, VMS - CREATES, "filler", verb)
            if vmmd.metric('vmmd_vms{state="stopped"}') != VMS:
                raise SystemExit("bench: not all VMs are stopped")
            self.size(vmmd, wire, empty)
        wire.close()
        vmmd.stop()

    def size(self, vmmd, wire, empty):
        pages = []
        for _ in range(LIST_ROUNDS):
            began = time.monotonic()
            page = wire.must("GET", "/v1/vms?limit=1000")
            pages.append(1000 * (time.monotonic() - began))
        assert page.count(b'"revision":') == 1000
        before = (vmmd.rss() - empty) / VMS / 1024
        wire.close()
        ready = []
        for _ in range(READY_ROUNDS):
            vmmd.stop()
            ready.append(vmmd.start())
            self.ended_by_us.append(vmmd.proc)
        after = (vmmd.rss() - empty) / VMS / 1024
        again = Wire(vmmd.socket)
        first = json.loads(again.must("GET", "/v1/vms?limit=1"))
        assert len(first["items"]) == 1
        again.close()
        self.row(f"list page of 1,000 of {VMS:,} VMs", f"{median(pages):.1f} ms", f"{len(page) / 1024:.0f} KiB", "", "< 10 ms",
                 median(pages) < 10)
        self.row("memory per stopped VM, after a restart", f"{after:.1f} KiB", f"empty {empty / 1048576:.1f} MiB", "", "< 6 KiB", after < 6)
        self.row("memory per stopped VM, before it", f"{before:.1f} KiB", "with the operations kept in memory", "", "< 6 KiB", before < 6)
        self.row(f"exec to ready with {VMS:,} VMs", f"{median(ready):.2f} s", "", "", "< 0.5 s", median(ready) < 0.5)


    def pull(self):
        """An image with its digest, flushed and looked at, against `curl -o` of the same."""
        image, copy = os.path.join(self.dir, "image.raw"), os.path.join(self.dir, "copy")
        with open(image, "wb") as file:
            for _ in range(PULL_MIB):
                file.write(os.urandom(1 << 20))
        port = free_port()
        code = ("import http.server, os, sys\nclass H(http.server.BaseHTTPRequestHandler):\n def log_message(self, *a): pass\n"
                " def do_GET(self):\n  with open(sys.argv[2], 'rb') as f:\n   n = os.fstat(f.fileno()).st_size\n"
                "   self.send_response(200); self.send_header('Content-Length', str(n)); self.end_headers(); self.wfile.flush()\n"
                "   at = 0\n   while at < n: at += os.sendfile(self.connection.fileno(), f.fileno(), at, n - at)\n"
                "http.server.ThreadingHTTPServer(('127.0.0.1', int(sys.argv[1])), H).serve_forever()")
        self.ended_by_us.append(subprocess.Popen([sys.executable, "-c", code, str(port), image]))
        url = f"http://127.0.0.1:{port}/image"
        until(lambda: socket.socket().connect_ex(("127.0.0.1", port)) == 0, 10, "the web server")
        vmmd = self.vmmd("pull")
        wire = Wire(vmmd.socket)
        ours, reference = [], []

        def by_vmmd():
            began = time.monotonic()
            answer = wire.must("POST", "/v1/images", {"name": "image", "url": url, "format": "raw"})
            ours.append(time.monotonic() - began)
            assert json.loads(answer)["state"] == "succeeded"
            wire.must("DELETE", "/v1/images/image")

        def by_curl():
            began = time.monotonic()
            subprocess.run(["curl", "-sS", "-o", copy, url], check=True)
            reference.append(time.monotonic() - began)
            os.unlink(copy)
        for _ in range(PULL_ROUNDS):
            self.pair(by_vmmd, by_curl)
        wire.close()
        vmmd.stop()
        speed = ratio(reference, ours)
        self.row(f"pull of {PULL_MIB} MiB with digest, durable", f"{PULL_MIB / median(ours):.0f} MiB/s",
                 f"curl -o {PULL_MIB / median(reference):.0f} MiB/s", f"{speed:.2f}", "> 0.8", speed > 0.8)
        os.unlink(image)


def print_table(rows, notes, seed, seconds):
    head = ("what", "ours", "reference", "ratio", "target", "met")
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    for row in [head, tuple("-" * w for w in widths), *rows]:
        print("  ".join(cell.ljust(w) for cell, w in zip(row, widths)).rstrip())
    print("", *notes, sep="\n")
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        cpu = next((line.split(":")[1].strip() for line in file if line.startswith("model name")), platform.machine())
    print(f"machine: {cpu}, {os.cpu_count()} CPUs, Linux {platform.release()}, load {os.getloadavg()[0]:.2f}; "
          f"seed {seed}; {seconds:.0f} s")


def main():
    wanted = set(sys.argv[1:]) or {"get", "start", "end", "create", "size", "pull", "exec", "put"}
    seed = int(os.environ.get("VMMD_BENCH_SEED", time.time_ns() % 1000000))
    began = time.monotonic()
    bench = Bench(seed)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    try:
        if "get" in wanted:
            bench.get()
        if wanted & {"start", "end"}:
            bench.start_end()
        if "pull" in wanted:
            bench.pull()
        if wanted & {"exec", "put"}:
            guest_rows(bench, wanted, f"{GUEST}/vmlinuz", f"{GUEST}/initrd.img")
        if wanted & {"create", "size"}:
            bench.create_size("create" in wanted, "size" in wanted)
    finally:
        bench.close()
    print_table(bench.rows, bench.notes, seed, time.monotonic() - began)


if __name__ == "__main__":
    main()
