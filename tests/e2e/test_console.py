"""The console and the logs: by offset, followed, typed into, and bounded."""
import http.client
import os
import pty
import re
import subprocess
import termios
import threading

import pytest
import websocket

from e2e.guest import PATIENCE, UP, Shell, bring_ready, console, console_end, deaf, direct, do, log, make, wait_console
from lib.vmmd import SLOW, VMCTL
from lib.vms import eventually


@pytest.fixture(scope="module")
def shared(shared_vmmd):
    """One guest for the module."""
    api = shared_vmmd.client()
    make(api, **direct())
    bring_ready(api)
    return api


def test_log_begins_at_zero_and_offsets_add_up(shared):
    answer = log(shared)
    assert UP in answer.text and answer.headers["X-Oldest-Offset"] == "0"
    assert int(answer.headers["X-Next-Offset"]) == len(answer.body)


def test_log_from_an_offset(shared):
    whole = log(shared).body
    answer = log(shared, **{"from": 10})
    assert answer.body[:20] == whole[10:30]
    beyond = log(shared, **{"from": int(answer.headers["X-Next-Offset"])})
    assert beyond.body == b""


def test_tail_counts_lines(shared):
    with Shell(shared) as shell:
        shell.run("echo one; echo two; echo three")
    assert len(log(shared, tail=2).text.splitlines()) == 2
    assert log(shared, tail=0).body == b""


def test_followed_log_shows_what_comes(shared):
    start = console_end(shared)
    sock = shared.connect(PATIENCE)
    sock.sendall(f"GET /v1/vms/web/logs/console?follow=1&from={start} HTTP/1.1\r\nHost: vmmd\r\n\r\n".encode())
    answer = http.client.HTTPResponse(sock)
    answer.begin()
    assert answer.status == 200
    with Shell(shared) as shell:
        shell.run("echo followed-$((40 + 2))")
    text = b""
    while b"followed-42\r\n" not in text:
        piece = answer.read1(65536)
        assert piece, text
        text += piece
    sock.close()
    assert int(answer.getheader("X-Next-Offset")) == start and int(answer.getheader("X-Oldest-Offset")) <= start


def test_websocket_types_and_shows_the_output(shared):
    with Shell(shared) as shell:
        assert shell.run("echo $((6 * 7))") == "42"


def test_websocket_from_an_offset_begins_with_the_past(shared):
    ws = shared.websocket("/v1/vms/web/console?from=0", timeout=PATIENCE)
    text = ""
    while UP not in text:
        text += ws.recv().decode("utf-8", "replace")
    ws.close()


def test_two_read_and_one_writes(shared):
    with Shell(shared) as writer, Shell(shared) as reader:
        writer.run("echo both-see-$((1 + 1))")
        reader.until("both-see-2")
        reader.send("x")
        assert closed_with(reader.ws) == 1008
        writer.run("true")


def test_force_takes_the_pen(shared):
    with Shell(shared) as first:
        first.run("true")
        with Shell(shared, force=True) as second:
            assert closed_with(first.ws) == 1008
            second.run("true")


def test_pen_is_free_when_its_holder_leaves(shared):
    with Shell(shared) as first:
        first.run("true")
    with Shell(shared) as second:
        second.run("true")


def closed_with(ws):
    """The close code of a WebSocket that the daemon ends."""
    ws.settimeout(PATIENCE)
    while True:
        opcode, data = ws.recv_data(control_frame=True)
        if opcode == websocket.ABNF.OPCODE_CLOSE:
            return int.from_bytes(data[:2], "big")


def test_console_of_a_vm_at_rest_is_refused_and_its_log_stays(api):
    make(api, start=True, **deaf())
    wait_console(api, "# ")
    do(api, "kill")
    assert "# " in console(api)
    assert api.get("/v1/vms/web/console", headers={
        "Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ=="}).code == "vm::invalid_state"


def test_open_console_closes_with_the_vm(api):
    make(api, start=True, **deaf())
    with Shell(api) as shell:
        do(api, "kill")
        assert closed_with(shell.ws) == 1000


def test_log_is_bounded_to_a_mebibyte(api):
    make(api, **direct())
    bring_ready(api)
    with Shell(api) as shell:
        shell.run("flood() { i=0; while [ $i -lt 1100 ]; do printf '%01000d\\n' $i; i=$((i + 1)); done; }")
        shell.send("flood\r")
        shell.until(r"0000\d\r?\n")
    # Nobody reads along: who reads slower than the guest writes is dropped.
    eventually(lambda: console(api, tail=5), lambda text: "0001099" in text, 5 * PATIENCE)
    answer = log(api)
    oldest, next_ = int(answer.headers["X-Oldest-Offset"]), console_end(api)
    assert next_ > 1100 * 1000 and oldest > 0
    assert next_ - oldest <= 1 << 20
    assert "1099" in console(api, tail=5)
    # An offset that is gone is answered from the oldest kept.
    assert int(log(api, **{"from": 0}).headers["X-Oldest-Offset"]) >= oldest


def test_vmm_log_has_qemus_words(api):
    make(api, start=True, **deaf())
    do(api, "stop", body={"timeout_s": 0})
    assert "terminating on signal 15" in log(api, "web", "vmm").text


# ---- vmctl ----

class Terminal:
    """vmctl on a terminal of its own."""

    def __init__(self, daemon, *args):
        self.master, self.slave = pty.openpty()
        self.before = termios.tcgetattr(self.slave)
        self.proc = subprocess.Popen([VMCTL, *args], env=dict(os.environ, VMMD_SOCKET=daemon.socket), start_new_session=True,
                                     stdin=self.slave, stdout=self.slave, stderr=self.slave)
        self.text = b""
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self):
        try:
            while True:
                self.text += os.read(self.master, 65536)
        except OSError:
            pass

    def type(self, data):
        os.write(self.master, data)

    def expect(self, pattern, timeout=PATIENCE):
        eventually(lambda: self.text, lambda text: re.search(pattern, text), timeout)

    def close(self):
        if self.proc.poll() is None:
            self.proc.kill()
        self.proc.wait()
        os.close(self.slave)
        os.close(self.master)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


def raw(terminal):
    return not termios.tcgetattr(terminal.slave)[3] & termios.ICANON


def test_vmctl_console_types_and_ctrl_bracket_detaches(shared, shared_vmmd):
    with Terminal(shared_vmmd, "console", "web") as terminal:
        eventually(lambda: raw(terminal), bool)
        terminal.type(b"echo seen-$((20 + 3))\r")
        terminal.expect(rb"seen-23")
        terminal.type(b"\x1d")
        assert terminal.proc.wait(30 * SLOW) == 0
        assert termios.tcgetattr(terminal.slave) == terminal.before


@pytest.mark.parametrize("signum", [15, 1])
def test_vmctl_console_restores_the_terminal_when_it_is_ended(shared, shared_vmmd, signum):
    with Terminal(shared_vmmd, "console", "web") as terminal:
        eventually(lambda: raw(terminal), bool)
        terminal.proc.send_signal(signum)
        terminal.proc.wait(30 * SLOW)
        assert termios.tcgetattr(terminal.slave) == terminal.before


def test_vmctl_log_follows(shared, shared_vmmd):
    with Terminal(shared_vmmd, "log", "-f", "web") as terminal:
        terminal.expect(UP.encode())
        with Shell(shared) as shell:
            shell.run("echo later-$((30 + 4))")
        terminal.expect(rb"later-34")
