"""The console: bytes both ways over a WebSocket, and a terminal that is given back whatever happens."""
import json
import os
import re
import signal
import struct
import subprocess
import sys
import termios
import threading
import time

import pytest

from lib.vmmd import VMCTL
from scripted import Terminal, WebSocket, problem

CONSOLE = "/v1/vms/web/console.*"


@pytest.fixture(autouse=True)
def health(peer):
    peer.on("GET", "/v1/health", (200, {"status": "ok"}))


def echo(ws, received=None):
    """Sends back what comes until the end."""
    while True:
        opcode, data = ws.receive()
        if received is not None:
            received.append((opcode, data))
        try:
            if opcode in (2, 8):
                ws.send(opcode, data)
        except OSError:
            pass  # a client that detached reads no more; what it sent is still to be read
        if opcode in (8, None):
            return


def modes(term):
    return termios.tcgetattr(term.slave)[:4]


def is_raw(term):
    return not termios.tcgetattr(term.slave)[3] & (termios.ICANON | termios.ECHO | termios.ISIG)


def until(condition, timeout=60, context=None):
    end = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < end, f"it did not come about: {context}"
        time.sleep(0.005)


@pytest.fixture
def attach(peer, terminal):
    """Runs `vmctl console web` on a terminal until the script's WebSocket is open; returns (terminal, WebSocket, modes before)."""
    def run(*args, script=None):
        opened = threading.Event()
        box = []

        def serve(request):
            box.append(WebSocket(request).open())
            opened.set()
            (script or echo)(box[0])

        peer.on("GET", CONSOLE, serve)
        # The terminal's modes are those of every new one; they are read before vmctl can have changed them.
        master, slave = os.openpty()
        before = termios.tcgetattr(slave)[:4]
        os.close(master)
        os.close(slave)
        term = terminal("console", "web", *args)
        assert opened.wait(60)
        until(lambda: is_raw(term))
        return term, box[0], before

    return run


def test_bytes_go_both_ways_and_ctrl_bracket_detaches(attach):
    term, _, before = attach()
    term.expect(b"attached to web; Ctrl+] detaches")
    term.type(b"hello\x03\x1a\x00\xff")
    term.expect(b"hello\x03\x1a\x00\xff")
    term.type(b"last\x1dnever")
    assert term.wait() == 0
    term.expect(b"detached from web")
    assert modes(term) == before and b"never" not in term.output


def test_close_handshake_on_detach(attach):
    received = []
    term, _, _ = attach(script=lambda ws: echo(ws, received))
    term.type(b"last\x1d")
    assert term.wait() == 0
    until(lambda: received and received[-1][0] in (8, None), context=received)
    assert received[:2] == [(2, b"last"), (8, struct.pack("!H", 1000))]


def test_large_output_in_fragments_with_pings_between(peer):
    text = bytes(range(256)) * 1024
    pongs = []

    def serve(request):
        ws = WebSocket(request)
        ws.open(more=ws.frame(2, b"first|"))
        ws.send(2, text[:70000], fin=False)
        ws.send(9, b"are you there")
        ws.send(0, text[70000:70001], fin=False)
        ws.send(0, b"", fin=False)
        ws.send(0, text[70001:])
        pongs.append(ws.receive())
        ws.send(8, struct.pack("!H", 1000) + b"bye")
        ws.receive()

    peer.on("GET", CONSOLE, serve)
    typed, held = os.pipe()  # at its end vmctl would wait no longer than a second
    run = peer.vmctl("console", "web", text=False, stdin=typed)
    os.close(typed)
    os.close(held)
    assert run.returncode == 0, run.stderr
    assert run.stdout == b"first|" + text and pongs == [(10, b"are you there")]
    assert b"bye" in run.stderr


def test_stdin_from_a_pipe_is_typed_and_the_answer_shown(peer):
    peer.on("GET", CONSOLE, lambda r: echo(WebSocket(r).open()))
    data = bytes(range(256)) * 2000  # Ctrl+] among them is a byte like any other
    run = subprocess.run([VMCTL, "console", "web"], env=peer.env(), input=data, capture_output=True, timeout=60, check=False)
    assert run.returncode == 0 and run.stdout == data


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGABRT, signal.SIGSEGV])
def test_signals_give_the_terminal_back(attach, number):
    term, _, before = attach()
    term.proc.send_signal(number)
    assert term.wait() == (130 if number == signal.SIGINT else -number) or os.environ.get("ASAN_OPTIONS")
    assert modes(term) == before


def go_on(term):
    """SIGCONT, again and again: one that comes before the stop is lost."""
    term.proc.send_signal(signal.SIGCONT)
    return is_raw(term)


def test_stop_and_continue(attach):
    term, _, before = attach()
    term.proc.send_signal(signal.SIGTSTP)
    time.sleep(0.1)  # a SIGCONT at once would take it back
    # A process group without a parent in its session is not stopped by the kernel: vmctl must be raw again either way.
    until(lambda: go_on(term))
    term.type(b"still here")
    term.expect(b"still here")
    term.proc.send_signal(signal.SIGTSTP)
    until(lambda: go_on(term))
    term.type(b"\x1d")
    assert term.wait() == 0 and modes(term) == before


# What a shell does for a job in the foreground: a process group of its own, on a terminal that controls the session.
SHELL = """
import fcntl, os, signal, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
signal.signal(signal.SIGTTOU, signal.SIG_IGN)
pid = os.fork()
if pid == 0:
    os.setpgid(0, 0)
    os.tcsetpgrp(0, os.getpid())
    signal.signal(signal.SIGTTOU, signal.SIG_DFL)
    os.execv(sys.argv[1], sys.argv[1:])
print("child", pid, flush=True)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""


def test_sigtstp_stops_with_the_terminal_given_back(peer):
    peer.on("GET", CONSOLE, lambda r: echo(WebSocket(r).open()))
    term = Terminal([sys.executable, "-c", SHELL, VMCTL, "console", "web"], peer.env())
    try:
        before = modes(term)
        until(lambda: re.search(rb"child \d+\r?\n", term.output))
        until(lambda: is_raw(term))
        child = int(re.search(rb"child (\d+)", term.output)[1])
        for _ in range(2):
            os.kill(child, signal.SIGTSTP)
            until(lambda: open(f"/proc/{child}/stat", encoding="ascii").read().rsplit(")", 1)[1].split()[0] == "T")
            assert modes(term) == before
            os.kill(child, signal.SIGCONT)
            until(lambda: is_raw(term))
        term.type(b"x\x1d")
        assert term.wait() == 0 and modes(term) == before
    finally:
        term.close()


def test_the_daemon_dies(peer, attach):
    def die(ws):
        ws.receive()
        raise BrokenPipeError

    term, _, before = attach(script=die)
    term.type(b"x")
    assert term.wait() == 5
    term.expect(b"the VM goes on")
    assert modes(term) == before


@pytest.mark.parametrize("code,reason,exit_code,text", [
    (1000, b"", 0, b"was closed"), (1001, b"stopping", 5, b"daemon::shutting_down"), (4000, b"taken by another client", 1, b"taken by another"),
])
def test_the_daemon_closes(attach, code, reason, exit_code, text):
    def close(ws):
        ws.send(8, struct.pack("!H", code) + reason)
        ws.receive()

    term, _, before = attach(script=lambda ws: (ws.receive(), close(ws)))
    term.type(b"x")
    assert term.wait() == exit_code
    term.expect(text)
    assert modes(term) == before


@pytest.mark.parametrize("frame", [b"\x82\x81\0\0\0\0a", b"\xc2\x01a", b"\x83\x01a", b"\x89\x7e\x00\x7e" + 126 * b"a", b"\x09\x00", b"\x8b\x00"],
                         ids=["masked", "reserved bit", "unknown", "long ping", "fragmented ping", "unknown control"])
def test_frames_that_no_server_may_send(peer, frame):
    def serve(request):
        WebSocket(request).open(more=frame)
        time.sleep(0.5)

    peer.on("GET", CONSOLE, serve)
    run = peer.vmctl("console", "web", stdin=subprocess.PIPE)
    assert run.returncode == 1 and "WebSocket protocol" in run.stderr


def test_refusals_are_problem_documents(peer):
    peer.on("GET", CONSOLE, problem("vm::busy", 409, "the console of web is held"))
    run = peer.vmctl("console", "web")
    assert run.returncode == 4 and "the console of web is held" in run.stderr
    run = peer.vmctl("console", "web", "-o", "json")
    assert json.loads(run.stdout)["code"] == "vm_manager::vm::busy" and run.stderr == ""
    peer.on("GET", CONSOLE, (200, b"hello"))
    assert peer.vmctl("console", "web").returncode == 1


def test_a_wrong_accept_is_refused(peer):
    peer.on("GET", CONSOLE, lambda r: WebSocket(r).open(accept="AAAA"))
    run = peer.vmctl("console", "web")
    assert run.returncode == 1 and "Sec-WebSocket-Accept" in run.stderr


def test_force_and_from(peer):
    peer.on("GET", CONSOLE, problem("vm::busy", 409))
    for args, query in (((), ""), (("--force",), "?force=1"), (("--from", "12"), "?from=12"), (("--force", "--from", "0"), "?force=1&from=0")):
        peer.vmctl("console", "web", *args)
        assert peer.requests[-1].path == "/v1/vms/web/console" + query
        assert peer.requests[-1].headers["Sec-WebSocket-Version"] == "13" and peer.requests[-1].headers["Host"] == "vmmd"
