"""What a VM's network is to its host: forwards carry both protocols and are for this host alone, ports and addresses stay,
and no tap device outlives its QEMU."""
import contextlib
import os
import socket

import pytest

from e2e import guest
from e2e.guest import PATIENCE, booted, deaf, destroy, direct, do, in_guest, make
from e2e.lan import entered, tap, taps
from lib.vms import create_body, eventually, get_vm

NICS = "for n in /sys/class/net/*; do [ -e $n/device ] && echo ${n##*/}; done; true"


def forward(guest_port, host_port=0, **more):
    return {"host_port": host_port, "guest_port": guest_port, **more}


def user(*forwards):
    return {"type": "user", "forwards": list(forwards)}


def host_port(api, guest_port, name="web"):
    return next(f["host_port"] for f in get_vm(api, name)["spec"]["network"]["forwards"] if f["guest_port"] == guest_port)


def read_tcp(port, send=b""):
    """What the other side says up to its end; None when it does not."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=60) as sock:
            sock.sendall(send)
            data = b""
            while piece := sock.recv(4096):
                data += piece
            return data
    except OSError:
        return None


@pytest.mark.parametrize("machine", ["q35", "microvm"])
def test_forwards_reach_the_guest(api, machine):
    vm = booted(api, **direct(machine, network=user(forward(80), forward(7, proto="udp"))))
    nic = in_guest(api, NICS)
    assert nic and "\n" not in nic
    assert in_guest(api, f"cat /sys/class/net/{nic}/address") == vm["runtime"]["mac_addr"]
    assert "10.0.2.15/24" in in_guest(api, f"ip -4 addr show {nic}")

    in_guest(api, "mkdir -p /tmp/www; echo hello from $(hostname) >/tmp/www/index.html; httpd -p 80 -h /tmp/www")
    tcp, ssh = host_port(api, 80), vm["runtime"]["ssh_host_port"]
    assert tcp != ssh and min(tcp, ssh) >= 1024
    page = eventually(lambda: read_tcp(tcp, b"GET / HTTP/1.0\r\n\r\n"), lambda data: data and b"hello" in data, PATIENCE)
    assert b"hello from vmmd-guest" in page
    # The forward for SSH is there unasked.
    with socket.create_connection(("127.0.0.1", ssh), timeout=PATIENCE) as sock:
        assert sock.recv(8) == b"SSH-2.0-"

    # Nothing there serves UDP, but the guest counts what comes for nobody.
    count = "awk '/^Udp:/ {n = $3} END {print n}' /proc/net/snmp"
    before = int(in_guest(api, count))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        for _ in range(20):
            with contextlib.suppress(OSError):  # the guest's refusal of the one before
                sock.sendto(b"is anybody there", ("127.0.0.1", host_port(api, 7)))
    eventually(lambda: int(in_guest(api, count)), lambda n: n >= before + 10)


def listens_on(port):
    """The local addresses of the listeners on this port, as the kernel writes them."""
    found = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        with open(table, encoding="ascii") as file:
            for line in list(file)[1:]:
                address, number = line.split()[1].split(":")
                if int(number, 16) == port and line.split()[3] == "0A":
                    found.add(address)
    return found


def test_forwards_are_for_this_host_alone(api):
    make(api, start=True, **deaf(network=user(forward(80))))
    vm = get_vm(api)
    for port in (host_port(api, 80), vm["runtime"]["ssh_host_port"]):
        assert listens_on(port) == {"0100007F"}
    do(api, "kill")
    assert listens_on(host_port(api, 80)) == set()


def test_vm_keeps_its_ports_and_address(vmmd, api):
    make(api, start=True, **deaf(network=user(forward(80))))
    before = get_vm(api)
    do(api, "kill")
    vmmd.restart()
    do(api, "start")
    after = get_vm(api)
    assert after["spec"]["network"] == before["spec"]["network"]
    for what in ("ssh_host_port", "mac_addr"):
        assert after["runtime"][what] == before["runtime"][what] is not None


@pytest.mark.parametrize("proto", ["tcp", "udp"])
def test_port_held_by_a_stranger_is_refused_at_create(vmmd, api, proto):
    kind = socket.SOCK_STREAM if proto == "tcp" else socket.SOCK_DGRAM
    with socket.socket(socket.AF_INET, kind) as stranger:
        stranger.bind(("127.0.0.1", 0))
        if proto == "tcp":
            stranger.listen()
        port = stranger.getsockname()[1]
        body = create_body("web", "qemu", **direct(network=user(forward(80, port, proto=proto))))
        answer = api.post("/v1/vms", body, prefer_wait=PATIENCE)
        assert (answer.status, answer.code) == (409, "network::port_in_use"), answer
        assert answer.context["port"] == port and answer.context["proto"] == proto
        assert "another process" in answer.context["holder"] and str(port) in answer.json["detail"]
        assert api.get("/v1/vms/web").status == 404 and guest.vm_files(vmmd) == []
    answer = api.post("/v1/vms", body, prefer_wait=PATIENCE)
    assert answer.status == 200, answer


def test_each_vm_has_its_tap_and_none_outlives_it(lan):
    daemon, namespace = lan
    api = daemon.client()
    for name in ("one", "two"):
        make(api, name, start=True, **deaf(network=tap()))
    assert len(taps(namespace)) == 2 and {link["master"] for link in taps(namespace).values()} == {"br0"}
    os.kill(get_vm(api, "one")["runtime"]["pid"], 9)
    guest.wait_for(api, "one", "state:failed")
    assert len(taps(namespace)) == 1
    # It belongs to QEMU, not to the daemon.
    daemon.kill9()
    assert len(taps(namespace)) == 1
    with entered(namespace):
        daemon.start()
    assert get_vm(api, "two")["state"] == "running"
    destroy(api, "two")
    assert taps(namespace) == {}


def test_tap_is_removed_when_qemu_does_not_start(lan, tmp_path):
    daemon, namespace = lan
    api = daemon.client()
    kernel = tmp_path / "kernel"
    kernel.write_bytes(b"")
    spec = deaf(network=tap())
    spec["boot"]["kernel"] = str(kernel)
    make(api, **spec)
    assert do(api, "start", expect=500).code == "qemu::spawn_failed"
    assert taps(namespace) == {} and daemon.leftovers() == []
