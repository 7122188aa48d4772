"""Fixtures of the black box tests. Each vmmd has its own directories and socket, so that all tests run side by side."""
import os
import sys

import pytest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

from lib import conform  # noqa: E402
from lib.vmmd import Daemon  # noqa: E402


@pytest.fixture
def vmmd():
    """A fresh daemon."""
    with Daemon() as daemon:
        yield daemon


@pytest.fixture
def daemons():
    """Makes daemons with options: daemons(config=…, extra_args=…); all are ended afterwards."""
    made = []

    def make(*args, **kw):
        # Known before it starts: one that does not come up is cleaned up as well.
        start = kw.pop("start", True)
        daemon = Daemon(*args, start=False, **kw)
        made.append(daemon)
        return daemon.start() if start else daemon

    yield make
    for daemon in reversed(made):
        daemon.close()


@pytest.fixture(scope="module")
def shared_vmmd():
    """One daemon for a module's tests that change nothing."""
    with Daemon() as daemon:
        yield daemon


@pytest.fixture
def api(vmmd):
    return vmmd.client()


@pytest.fixture
def shared_api(shared_vmmd):
    return shared_vmmd.client()


def pytest_sessionfinish(session):
    worker = getattr(session.config, "workerinput", {}).get("workerid", "main")
    conform.COVERAGE.save(worker)
