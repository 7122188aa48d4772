"""Fixtures of the tests with real guests. Each test ends with every VM destroyed and nothing left of any."""
import os
import secrets
import subprocess
import sys

import pytest

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from e2e import guest  # noqa: E402
from e2e.lan import entered, taps  # noqa: E402
from lib.vmmd import Daemon  # noqa: E402


def pytest_collection_modifyitems(items):
    """Without the guests no test here can say anything."""
    if items and not all(os.path.exists(path) for path in (guest.KERNEL, guest.INITRD, guest.TINY)):
        raise pytest.UsageError(f"{guest.GUEST} has no guest: make guest")


def _lives(daemon):
    with daemon:
        yield daemon
        guest.tell(daemon)
        guest.destroy_all(daemon)


@pytest.fixture
def vmmd():
    yield from _lives(Daemon())


@pytest.fixture(scope="module")
def shared_vmmd():
    yield from _lives(Daemon())


@pytest.fixture
def daemons():
    """Makes daemons with options; all are ended afterwards, with nothing left."""
    made = []

    def make(*args, **kw):
        start = kw.pop("start", True)
        daemon = Daemon(*args, start=False, **kw)
        made.append(daemon)
        return daemon.start() if start else daemon

    yield make
    try:
        for daemon in made:
            guest.tell(daemon)
            guest.destroy_all(daemon)
    finally:
        for daemon in made:
            daemon.close()


@pytest.fixture
def lan():
    """A daemon in a network namespace of its own, with a bridge br0 that has the address 192.0.2.1: (daemon, namespace).
    Its socket is on
    the file system, which is shared. It reads DHCP leases from DIR/leases."""
    if os.geteuid() != 0:
        pytest.skip("tap devices need root")
    namespace = f"vmmd-{secrets.token_hex(4)}"
    subprocess.run(["ip", "netns", "add", namespace], check=True)
    try:
        for command in ("link set lo up", "link add br0 type bridge", "addr add 192.0.2.1/24 dev br0", "link set br0 up"):
            subprocess.run(["ip", "-n", namespace, *command.split()], check=True)
        with Daemon(start=False) as daemon:
            daemon.write_config(f"lease_files = {daemon.dir}/leases\n")
            with entered(namespace):
                daemon.start()
            yield daemon, namespace
            guest.tell(daemon)
            guest.destroy_all(daemon)
            assert taps(namespace) == {}
    finally:
        subprocess.run(["ip", "netns", "del", namespace], check=True)
