"""Bridges and taps: network namespaces of their own."""
import contextlib
import ctypes
import json
import os
import subprocess

CLONE_NEWNET = 0x40000000


@contextlib.contextmanager
def entered(namespace):
    """This thread, and what it starts, lives in the network namespace meanwhile."""
    setns = ctypes.CDLL(None, use_errno=True).setns
    with open("/proc/thread-self/ns/net", "rb") as home, open(f"/run/netns/{namespace}", "rb") as there:
        assert setns(there.fileno(), CLONE_NEWNET) == 0, os.strerror(ctypes.get_errno())
        try:
            yield
        finally:
            assert setns(home.fileno(), CLONE_NEWNET) == 0


def links(namespace):
    """name -> what `ip` says of it"""
    done = subprocess.run(["ip", "-n", namespace, "-j", "-d", "link"], check=True, stdout=subprocess.PIPE)
    return {link["ifname"]: link for link in json.loads(done.stdout)}


def taps(namespace):
    return {name: link for name, link in links(namespace).items() if link.get("linkinfo", {}).get("info_kind") == "tun"}


def tap(bridge="br0"):
    return {"type": "tap", "bridge": bridge}
