"""A guest's addresses: who tells them, and that none is another's."""
import contextlib
import os
import socket
import subprocess

from e2e import guest
from e2e.guest import PATIENCE, booted, condition, direct, do, in_guest, make, wait_for
from e2e.lan import entered, tap
from lib.vms import eventually, get_vm

NIC = "$(for n in /sys/class/net/*; do [ -e $n/device ] && echo ${n##*/}; done)"


def addresses(api, name="web"):
    """Of IPv4: QEMU's user network also gives one of IPv6, whenever the guest asks for it."""
    return {a["ip"]: a["source"] for a in get_vm(api, name)["runtime"]["addresses"] if ":" not in a["ip"]}


def test_agent_tells_the_address_on_the_user_network(vmmd, api):
    booted(api, **direct(network={"type": "user"}))
    vm = wait_for(api, "web", "ip")
    assert vm["runtime"]["addresses"][0]["ip"] == "10.0.2.15" and vm["runtime"]["addresses"][0]["source"] == "agent"
    assert "10.0.2.15 (agent" in vmmd.vmctl("status", "web").stdout
    # What a guest loses, its agent no longer tells; a reset forgets all until it is told anew.
    in_guest(api, f"ip addr del 10.0.2.15/24 dev {NIC}; ip addr add 10.0.2.77/24 dev {NIC}")
    vmmd.kill9()
    vmmd.start()
    eventually(lambda: addresses(api), lambda all_: all_ == {"10.0.2.77": "agent"}, PATIENCE)
    do(api, "reset")
    vm = wait_for(api, "web", "ip", "ready")
    assert addresses(api) == {"10.0.2.15": "agent"}
    do(api, "kill")
    assert addresses(api) == {} and condition(get_vm(api), "ip")["status"] is False


def test_vm_without_a_network_has_no_address(api):
    vm = booted(api)
    assert condition(vm, "ip") is None and vm["runtime"]["addresses"] == []


@contextlib.contextmanager
def dhcp(namespace, leases):
    with open(os.path.join(os.path.dirname(leases), "dnsmasq.log"), "wb") as log:
        server = subprocess.Popen(
            ["ip", "netns", "exec", namespace, "dnsmasq", "--keep-in-foreground", "--conf-file=/dev/null", "--port=0",
             "--interface=br0", "--bind-interfaces", "--dhcp-range=192.0.2.100,192.0.2.120,1h", "--pid-file=", "--user=root",
             f"--dhcp-leasefile={leases}", "--log-facility=-"], stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        yield
    finally:
        server.terminate()
        assert server.wait(30) == 0


def leased(leases):
    """mac -> ip"""
    with open(leases, encoding="ascii") as file:
        return {line.split()[1]: line.split()[2] for line in file}


def test_on_a_bridge_each_source_tells_a_guests_own_address(lan):
    daemon, namespace = lan
    api = daemon.client()
    leases = os.path.join(daemon.dir, "leases")

    def anew():
        daemon.kill9()
        with entered(namespace):
            daemon.start()

    with dhcp(namespace, leases):
        for name in ("web", "thief"):
            make(api, name, start=True, **direct(network=tap()))
        for name in ("web", "thief"):
            wait_for(api, name, "ready", "ip")
        # At first it may be dnsmasq that has told the host's neighbour table what it offers.
        mac = get_vm(api)["runtime"]["mac_addr"]
        ip = eventually(lambda: leased(leases), lambda all_: len(all_) == 2, PATIENCE)[mac]
        eventually(lambda: addresses(api), lambda all_: all_ == {ip: "agent"}, PATIENCE)

        # The thief's agent says that it has the web's address as well; the host knows better.
        own = leased(leases)[get_vm(api, "thief")["runtime"]["mac_addr"]]
        in_guest(api, f"ip addr add {ip}/32 dev {NIC}; ip addr add 192.0.2.99/32 dev {NIC}", "thief")
        anew()
        eventually(lambda: addresses(api, "thief"), lambda all_: "192.0.2.99" in all_, PATIENCE)
        assert addresses(api, "thief") == {own: "agent", "192.0.2.99": "agent"}
        do(api, "kill", "thief")

        # Without an agent the lease tells. The guest would start it again: first whoever does so.
        in_guest(api, "kill $(awk '/^PPid/ {print $2}' /proc/$(pidof qemu-ga)/status); killall qemu-ga; true")
        anew()
        eventually(lambda: addresses(api), lambda all_: all_ == {ip: "lease"}, PATIENCE)
        assert condition(get_vm(api), "ip")["reason"] == "lease"

    # And without a lease whom the host has heard there.
    with open(leases, "w", encoding="ascii"):
        pass
    with entered(namespace):
        socket.create_connection((ip, 22), timeout=PATIENCE).close()
    anew()
    eventually(lambda: addresses(api), lambda all_: all_.get(ip) == "neighbour", PATIENCE)
    assert get_vm(api)["runtime"]["mac_addr"] == mac
    # Heard at another's card, it is not the VM's.
    subprocess.run(["ip", "-n", namespace, "neigh", "replace", ip, "lladdr", "52:54:00:00:00:99", "dev", "br0", "nud", "permanent"],
                   check=True)
    anew()
    eventually(lambda: addresses(api), lambda all_: all_ == {}, PATIENCE)
    assert condition(get_vm(api), "ip")["status"] is False
    guest.do(api, "kill")
