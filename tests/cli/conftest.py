"""Fixtures of vmctl's tests."""
import os
import sys

import pytest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

from lib.vmmd import VMCTL  # noqa: E402
from scripted import Peer, Terminal  # noqa: E402


@pytest.fixture
def peer():
    """A scripted server that runs."""
    made = Peer().start()
    yield made
    made.close()


@pytest.fixture
def terminal(peer):
    """Runs vmctl on a terminal: terminal(*args, **Popen's)."""
    made = []

    def run(*args, env=None, **kw):
        made.append(Terminal([VMCTL, *args], peer.env(**(env or {})), **kw))
        return made[-1]

    yield run
    for one in made:
        one.close()
