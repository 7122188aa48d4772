"""Fixtures of the tests with the Debian guest: those of the other tests with real guests."""
import os

import pytest

from e2e import guest
from e2e.conftest import vmmd  # noqa: F401


def pytest_collection_modifyitems(items):
    if items and not os.path.exists(guest.DEBIAN):
        raise pytest.UsageError(f"{guest.GUEST} has no Debian guest: make guest-debian")
