"""The display: VNC on a Unix socket of the VM, carried by a WebSocket."""
import os
import stat

import pytest
import websocket

from e2e.guest import PATIENCE, deaf, do, make
from lib.vms import get_vm

RFB = b"RFB 003.008\n"
SMALLEST = 640 * 400 * 4


class Vnc:
    """The RFB protocol's first steps. A context manager."""

    def __init__(self, api, name="web"):
        self.ws = api.websocket(f"/v1/vms/{name}/vnc", timeout=PATIENCE)
        self.data = b""

    def take(self, count):
        while len(self.data) < count:
            opcode, piece = self.ws.recv_data()
            assert opcode == websocket.ABNF.OPCODE_BINARY, (opcode, piece)
            self.data += piece
        taken, self.data = self.data[:count], self.data[count:]
        return taken

    def shake_hands(self):
        """Up to ServerInit; (width, height, the desktop's name)"""
        assert self.take(12) == RFB
        self.ws.send_binary(RFB)
        kinds = self.take(self.take(1)[0])
        assert 1 in kinds  # none: the socket's directory is private
        self.ws.send_binary(b"\x01")
        assert self.take(4) == b"\0\0\0\0"
        self.ws.send_binary(b"\x01")  # shared
        head = self.take(24)
        return int.from_bytes(head[:2], "big"), int.from_bytes(head[2:4], "big"), self.take(int.from_bytes(head[20:], "big"))

    def picture(self, width, height):
        """A picture, raw, of which every byte must come through; the bytes of the largest of some. The firmware changes the
        display's size meanwhile, and what is beyond the smaller of the two is not sent."""
        self.ws.send_binary(b"\x02\0\0\x01" + bytes(4))
        largest = 0
        for _ in range(20):
            self.ws.send_binary(b"\x03\0\0\0\0\0" + width.to_bytes(2, "big") + height.to_bytes(2, "big"))
            head = self.take(4)
            assert head[0] == 0
            size = 0
            for _ in range(int.from_bytes(head[2:], "big")):
                rect = self.take(12)
                size += len(self.take(int.from_bytes(rect[4:6], "big") * int.from_bytes(rect[6:8], "big") * 4))
            largest = max(largest, size)
            if largest >= SMALLEST:
                break
        return largest

    def close(self):
        self.ws.close(timeout=2)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


def refused(api, name="web"):
    """The answer to a plain request to open it, which is the answer to an upgrade as well."""
    with pytest.raises(websocket.WebSocketBadStatusException) as told:
        api.websocket(f"/v1/vms/{name}/vnc")
    answer = api.get(f"/v1/vms/{name}/vnc")
    assert answer.status == told.value.status_code, answer
    return answer


@pytest.fixture
def vga(api):
    make(api, start=True, **deaf(display="vga"))
    return get_vm(api)


def test_display_is_reached_by_websocket(api, vga):
    path = vga["runtime"]["vnc_addr"].removeprefix("unix:")
    assert stat.S_ISSOCK(os.stat(path).st_mode) and os.stat(os.path.dirname(path)).st_mode & 0o077 == 0
    with Vnc(api) as vnc:
        width, height, name = vnc.shake_hands()
        assert width >= 640 and height >= 400 and b"web" in name
        assert vnc.picture(width, height) >= SMALLEST


def test_several_see_the_same_display(api, vga):
    with Vnc(api) as one, Vnc(api) as two:
        assert one.shake_hands() == two.shake_hands()
        one.ws.shutdown()  # goes without a word
        assert two.picture(640, 400) >= SMALLEST
    with Vnc(api) as three:
        three.shake_hands()


def test_display_ends_with_its_vm(api, vga):
    with Vnc(api) as vnc:
        vnc.shake_hands()
        do(api, "kill")
        opcode, data = vnc.ws.recv_data(control_frame=True)
        assert opcode == websocket.ABNF.OPCODE_CLOSE and int.from_bytes(data[:2], "big") == 1000
    assert get_vm(api)["runtime"]["vnc_addr"] is None
    answer = refused(api)
    assert (answer.status, answer.code) == (409, "vm::invalid_state"), answer
    do(api, "start")
    with Vnc(api) as vnc:
        vnc.shake_hands()


def test_display_is_there_after_a_restart_of_the_daemon(vmmd, api, vga):
    vmmd.kill9()
    vmmd.start()
    assert get_vm(api)["runtime"]["vnc_addr"] == vga["runtime"]["vnc_addr"]
    with Vnc(api) as vnc:
        vnc.shake_hands()


@pytest.mark.parametrize("machine", ["q35", "microvm"])
def test_vm_without_display(api, machine):
    make(api, start=True, **deaf(machine=machine))
    assert get_vm(api)["runtime"]["vnc_addr"] is None
    answer = refused(api)
    assert (answer.status, answer.code) == (501, "backend::not_available"), answer
    assert "vga" in answer.json["help"]
