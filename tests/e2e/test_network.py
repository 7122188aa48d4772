"""The guest's network: forwards and who holds their ports, a tap device on a bridge, none."""
import contextlib
import os
import re
import socket
import sqlite3
import subprocess

import pytest

from e2e.guest import PATIENCE, booted, deaf, destroy, direct, do, in_guest, make
from lib.vmmd import Daemon, free_port
from lib.vms import create_body, get_vm


def forward(port, guest_port=22):
    return {"type": "user", "forwards": [{"proto": "tcp", "host_port": port, "guest_port": guest_port}]}


def test_forward_leads_to_the_guest(api):
    port = free_port()
    booted(api, **direct(network=forward(port), cloud_init={"hostname": "web"}))
    with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as sock:
        assert sock.recv(64).startswith(b"SSH-2.0-")


def test_port_held_by_a_stranger_is_refused_at_create(api):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        answer = api.post("/v1/vms", create_body("web", "qemu", **direct(network=forward(port))), prefer_wait=PATIENCE)
    assert (answer.status, answer.code) == (409, "network::port_in_use"), answer
    assert answer.context["port"] == port and answer.context["holder"]
    assert api.get("/v1/vms").json["items"] == []


def test_port_taken_by_a_stranger_meanwhile_is_refused_at_start(api):
    port = free_port()
    make(api, **deaf(network=forward(port)))
    with socket.create_server(("127.0.0.1", port)):
        answer = do(api, "start", expect=409)
        assert answer.code == "network::port_in_use" and answer.context["port"] == port
        assert f"pid {os.getpid()}" in answer.context["holder"]
        assert get_vm(api)["state"] == "prepared"
    do(api, "start")


def test_ssh_port_taken_by_a_stranger_meanwhile_moves(vmmd, api):
    """Nobody asked for its number, so nobody can be told to give another."""
    def rows():
        with contextlib.closing(sqlite3.connect(f"file:{vmmd.data_dir}/vmmd.db?mode=ro", uri=True)) as db:
            return [row[0] for row in db.execute("SELECT port FROM ports")]
    make(api, **deaf(network={"type": "user"}))
    port = get_vm(api)["runtime"]["ssh_host_port"]
    with socket.create_server(("127.0.0.1", port)):
        do(api, "start")
        moved = get_vm(api)["runtime"]["ssh_host_port"]
        assert moved != port and rows() == [moved]
        vmmd.kill9()
        vmmd.start()
        assert get_vm(api)["runtime"]["ssh_host_port"] == moved
    do(api, "kill")
    do(api, "start")
    assert get_vm(api)["runtime"]["ssh_host_port"] == moved


def test_port_of_another_vm_is_refused_and_its_holder_named(api):
    port = free_port()
    make(api, "first", **deaf(network=forward(port)))
    answer = api.post("/v1/vms", create_body("second", "qemu", **deaf(network=forward(port))), prefer_wait=PATIENCE)
    assert (answer.status, answer.code) == (409, "network::port_in_use"), answer
    assert answer.context["holder"] == "first"
    destroy(api, "first")
    make(api, "second", start=True, **deaf(network=forward(port)))


def test_port_0_is_chosen(api):
    vm = make(api, start=True, **deaf(network=forward(0)))
    assert vm["spec"]["network"]["forwards"][0]["host_port"] > 1023


def test_network_none_has_no_card(api):
    booted(api, **direct())
    assert in_guest(api, "ls /sys/class/net") == "lo"
    assert get_vm(api)["runtime"]["ssh_host_port"] is None


def test_bridge_that_does_not_exist(api):
    answer = api.post("/v1/vms", create_body("web", "qemu", **direct(network={"type": "tap", "bridge": "no-such-br"})))
    assert (answer.status, answer.code) == (422, "network::bridge_not_found"), answer
    assert api.get("/v1/vms").json["items"] == []


def test_interface_that_is_no_bridge(api):
    answer = api.post("/v1/vms", create_body("web", "qemu", **direct(network={"type": "tap", "bridge": "lo"})))
    assert (answer.status, answer.code) == (422, "network::bridge_not_found"), answer


class Namespaced(Daemon):
    """A vmmd in a network namespace of its own, with a bridge br0."""

    def argv(self):
        return ["unshare", "--net", "sh", "-c",
                'ip link add br0 type bridge && ip addr add 10.9.0.1/24 dev br0 && ip link set br0 up && ip link set lo up && exec "$@"',
                "sh", *super().argv()]

    def inside(self, *argv):
        return subprocess.run(["nsenter", "--net", "--target", str(self.pid), *argv], check=True, capture_output=True,
                              text=True, stdin=subprocess.DEVNULL, timeout=30).stdout

    def taps(self):
        return re.findall(r"^(vm[0-9a-f]{8})\b", self.inside("ip", "-br", "link", "show", "type", "tun"), re.M)


@pytest.fixture
def bridged(daemons, monkeypatch):
    """A daemon beside a bridge."""
    if os.geteuid() != 0:
        pytest.skip("a network namespace needs root")
    monkeypatch.setattr("e2e.conftest.Daemon", Namespaced)
    return daemons()


TAP = {"type": "tap", "bridge": "br0"}


@pytest.mark.parametrize("machine", ["q35", "microvm"])
def test_tap_joins_the_bridge_and_carries_packets(bridged, machine):
    api = bridged.client()
    booted(api, **direct(machine, network=TAP))
    [tap] = bridged.taps()
    assert "master br0" in bridged.inside("ip", "link", "show", tap)
    assert in_guest(api, "cat /sys/class/net/eth0/carrier; cat /sys/class/net/eth0/address").split() == [
        "1", get_vm(api)["runtime"]["mac_addr"]]
    in_guest(api, "ip addr add 10.9.0.2/24 dev eth0; ping -c 1 -W 30 10.9.0.1 >/dev/null")


@pytest.mark.parametrize("end", ["stop", "kill", "destroy"])
def test_tap_is_removed_with_its_vm(bridged, end):
    api = bridged.client()
    make(api, start=True, **deaf(network=TAP))
    assert len(bridged.taps()) == 1
    if end == "destroy":
        destroy(api)
    else:
        do(api, end, body={"timeout_s": 0} if end == "stop" else None)
    assert bridged.taps() == []


def test_tap_stays_while_vmmd_is_away(bridged):
    api = bridged.client()
    make(api, start=True, **deaf(network=TAP))
    [tap] = bridged.taps()
    pid = get_vm(api)["runtime"]["pid"]
    # The next vmmd must come into the same namespace: QEMU's.
    namespace = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY)
    try:
        bridged.kill9()
        bridged.argv = lambda: ["nsenter", f"--net=/proc/{pid}/ns/net", *Daemon.argv(bridged)]
        bridged.start()
        assert bridged.taps() == [tap] and get_vm(api)["runtime"]["pid"] == pid
        do(api, "kill")
        assert bridged.taps() == []
    finally:
        os.close(namespace)


def test_start_on_a_bridge_that_vanished(bridged):
    api = bridged.client()
    make(api, **deaf(network=TAP))
    bridged.inside("ip", "link", "del", "br0")
    answer = do(api, "start", expect=422)
    assert answer.code == "network::bridge_not_found" and bridged.taps() == []
