"""A vmmd of its own for a test: private socket, data and runtime directories, and a log that is read at the end."""
import contextlib
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time

from lib.client import Client
from lib.conform import ROOT

VMMD = os.environ.get("VMMD_BIN", os.path.join(ROOT, "build", "vmmd"))
VMCTL = os.environ.get("VMCTL_BIN", os.path.join(ROOT, "build", "vmctl"))
# Sanitized and valgrind builds are slower by this factor; waits are stretched by it.
SLOW = float(os.environ.get("VMMD_TEST_SLOW", "1"))
REPORTS = re.compile(r"ERROR: AddressSanitizer|ERROR: LeakSanitizer|runtime error:|WARNING: ThreadSanitizer"
                     r"|ERROR: ThreadSanitizer|ERROR SUMMARY: [1-9]|Assertion .* failed")


def free_port():
    """A TCP port of 127.0.0.1 that nobody listens on now. Not of those that the kernel gives to whoever connects: the crowds
    of the tests beside would take it before the daemon does."""
    while True:
        with socket.socket() as sock, contextlib.suppress(OSError):
            sock.bind(("127.0.0.1", random.randrange(10000, 20000)))
            return sock.getsockname()[1]


class Daemon:
    def __init__(self, extra_args=(), config=None, env=None, start=True):
        # Short: a Unix socket's path has 107 bytes.
        self.dir = tempfile.mkdtemp(prefix="vmmd-", dir="/tmp")
        self.data_dir = os.path.join(self.dir, "data")
        self.runtime_dir = os.path.join(self.dir, "run")
        self.socket = os.path.join(self.dir, "vmmd.sock")
        self.log_path = os.path.join(self.dir, "vmmd.log")
        self.config_path = None
        self.extra_args = list(extra_args)
        self.env = dict(os.environ, **(env or {}))
        self.proc = None
        self.binary = VMMD
        if config is not None:
            self.write_config(config)
        if start:
            self.start()

    @property
    def pid(self):
        return self.proc.pid

    def write_config(self, text):
        self.config_path = os.path.join(self.dir, "vmmd.conf")
        with open(self.config_path, "w", encoding="utf-8") as file:
            file.write(text)

    def install(self, *programs):
        """Runs vmmd from a directory of its own with these programs and no other helper."""
        folder = os.path.join(self.dir, "bin")
        os.makedirs(folder)
        for name in programs:
            shutil.copy(os.path.join(os.path.dirname(VMMD), name), folder)
        self.binary = os.path.join(folder, "vmmd")

    def argv(self):
        argv = [self.binary, "--data-dir", self.data_dir, "--runtime-dir", self.runtime_dir, "--socket", self.socket]
        if self.config_path:
            argv += ["--config", self.config_path]
        return argv + self.extra_args

    def start(self, timeout=60):
        assert self.proc is None or self.proc.poll() is not None, "it runs already"
        assert os.access(VMMD, os.X_OK), f"{VMMD} is missing: make all"
        with open(self.log_path, "ab") as log:
            self.proc = subprocess.Popen(self.argv(), stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=self.env)
        end = time.monotonic() + timeout * SLOW
        while True:
            try:
                if self.client(timeout=5).get("/v1/health").status == 200:
                    return self
            except OSError:
                pass
            if self.proc.poll() is not None:
                raise AssertionError(f"vmmd ended with {self.proc.returncode} at start:\n{self.log()}")
            if time.monotonic() > end:
                self.proc.kill()
                self.proc.wait()
                raise AssertionError(f"vmmd is not ready after {timeout} s:\n{self.log()}")
            time.sleep(0.005)

    def stop(self, timeout=60):
        """SIGTERM: it must end with 0 in time."""
        self.proc.send_signal(signal.SIGTERM)
        try:
            status = self.proc.wait(timeout * SLOW)
        except subprocess.TimeoutExpired:
            self.proc.kill()
            self.proc.wait()
            raise AssertionError(f"vmmd did not end within {timeout} s of SIGTERM:\n{self.log()}") from None
        assert status == 0, f"vmmd ended with {status}:\n{self.log()}"

    def kill9(self):
        self.proc.kill()
        self.proc.wait()

    def restart(self):
        self.stop()
        return self.start()

    def running(self):
        return self.proc is not None and self.proc.poll() is None

    def log(self):
        try:
            with open(self.log_path, encoding="utf-8", errors="replace") as file:
                return file.read()
        except FileNotFoundError:
            return ""

    def client(self, **kw):
        return Client(self.socket, **kw)

    def vmctl(self, *args, timeout=60, **kw):
        """Runs build/vmctl against this daemon; subprocess.CompletedProcess with text."""
        env = dict(self.env, VMMD_SOCKET=self.socket)
        env.pop("VMMD_URL", None)
        env.update(kw.pop("env", {}))
        kw.setdefault("stdin", subprocess.DEVNULL)
        return subprocess.run([VMCTL, *args], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                              timeout=timeout * SLOW, check=False, **kw)

    def leftovers(self, program=""):
        """Processes other than the daemon whose command line names this daemon's directory: its QEMUs and helpers; or only
        those whose program's name has this in it."""
        found = []
        mark = (self.dir + "/").encode()
        for entry in os.listdir("/proc"):
            if not entry.isdigit() or int(entry) in (os.getpid(), self.proc.pid if self.proc else 0):
                continue
            try:
                with open(f"/proc/{entry}/cmdline", "rb") as file:
                    line = file.read()
                    if mark in line and program.encode() in os.path.basename(line.split(b"\0")[0]):
                        found.append(int(entry))
            except OSError:
                pass
        return found

    def close(self):
        """Ends everything, then says what was wrong: a bad exit, or a sanitizer's report."""
        try:
            if self.running():
                self.stop()
        finally:
            for pid in self.leftovers():
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    pass
            log = self.log()
            shutil.rmtree(self.dir, ignore_errors=True)
        report = REPORTS.search(log)
        assert not report, f"{report[0]}:\n{log[max(0, report.start() - 500):report.start() + 6000]}"

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


def run_vmmd(*args, timeout=60, env=None):
    """Runs vmmd to its end; for flags and refusals."""
    return subprocess.run([VMMD, *args], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                          timeout=timeout * SLOW, check=False, env=dict(os.environ, **(env or {})))
