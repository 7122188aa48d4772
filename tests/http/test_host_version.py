"""GET /v1/health, /v1/version, /v1/host."""
import os
import platform
import re
import shutil

from lib.vmmd import run_vmmd
from lib.vms import eventually


def test_health_is_ok(shared_api):
    assert shared_api.get("/v1/health").json["status"] == "ok"


def test_version_is_that_of_the_command(shared_api):
    version = shared_api.get("/v1/version").json["version"]
    assert re.match(r"^\d+\.\d+", version)
    assert version in run_vmmd("--version").stdout


def test_host_tells_cpu_memory_and_disk_as_they_are(shared_api, shared_vmmd):
    host = shared_api.get("/v1/host").json
    assert host["cpu"]["count"] == os.cpu_count()
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") >> 20
    assert abs(host["memory"]["total_mb"] - total) <= 2
    assert 0 < host["memory"]["available_mb"] <= host["memory"]["total_mb"]
    size = os.statvfs(shared_vmmd.data_dir)
    assert abs(host["disk"]["total_gb"] - (size.f_blocks * size.f_frsize >> 30)) <= 1
    assert (host["hostname"], host["arch"]) == (platform.node(), platform.machine())


def probed(api):
    """The host once the accelerators are known: the probe starts a QEMU."""
    return eventually(lambda: api.get("/v1/host").json, lambda host: all("prob" not in a["reason"] for a in host["accelerators"]))


def test_accelerators_are_told_with_a_reason(shared_api):
    accelerators = {a["name"]: a for a in probed(shared_api)["accelerators"]}
    assert set(accelerators) == {"kvm", "tcg"}
    assert accelerators["kvm"]["reason"] and (os.path.exists("/dev/kvm") or not accelerators["kvm"]["available"])
    assert accelerators["tcg"]["available"] == bool(shutil.which("qemu-system-x86_64"))


def test_backends_are_told(shared_api):
    backends = {b["name"]: b for b in shared_api.get("/v1/host").json["backends"]}
    assert backends["noop"]["available"] is True and "qemu" in backends


def test_qemu_version_is_that_of_the_binary(shared_api):
    binary = shutil.which("qemu-system-x86_64")
    qemu = probed(shared_api)["qemu"]
    if not binary:
        assert qemu["version"] is None
    else:
        assert re.match(r"^\d+\.\d+", qemu["version"]) and qemu["path"]


def test_tools_are_told_present_or_missing(shared_api):
    for tool in shared_api.get("/v1/host").json["tools"]:
        assert tool["present"] == bool(tool["path"])
        if tool["path"]:
            assert os.access(tool["path"], os.X_OK)


def test_limits_are_numbers(shared_api):
    assert shared_api.get("/v1/host").json["limits"]
