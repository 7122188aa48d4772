"""Fixtures of the tests with real guests. Each test ends with every VM destroyed and nothing left of any."""
import os
import sys

import pytest

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from e2e import guest  # noqa: E402
from lib.vmmd import Daemon  # noqa: E402


def pytest_collection_modifyitems(items):
    """Without the guest no test here can say anything."""
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
