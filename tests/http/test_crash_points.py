"""Crash points are in test builds only: the release has neither their code nor their names, and minds no file of theirs."""
import os
import subprocess

from lib.vmmd import VMMD
from lib.vms import make_vm


def test_release_has_no_crash_points():
    text = subprocess.run(["strings", "-a", "-n", "5", VMMD], check=True, stdout=subprocess.PIPE, text=True).stdout
    assert "shutdown_grace_s" in text  # strings finds what is there
    for name in ("VMMD_CRASH_FILE", "op:%s:%s:%s", "undo-before", "store:%s", "recover:", "run-dir-removed"):
        assert name not in text, name
    symbols = subprocess.run(["nm", VMMD], check=True, stdout=subprocess.PIPE, text=True).stdout
    assert "core_recover" in symbols and "crash_point" not in symbols


def test_release_minds_no_crash_file(daemons):
    daemon = daemons(start=False)
    control, trace = os.path.join(daemon.dir, "crash"), os.path.join(daemon.dir, "trace")
    with open(control, "w", encoding="utf-8") as file:
        file.write(f"trace {trace}\ncrash op:vm.create:persist:after 1\n")
    daemon.env["VMMD_CRASH_FILE"] = control
    daemon.start()
    assert make_vm(daemon.client())["state"] == "prepared"
    assert daemon.running() and not os.path.exists(trace)
