"""A QEMU that the kernel kills for want of memory: real OOM kills, in a memory cgroup made for the purpose."""
import os
import signal
import time

import pytest

from e2e.guest import PATIENCE, booted, deaf, direct, gone, make, type_alone, type_and_leave, wait_for
from lib.vms import do, get_vm

V1 = "/sys/fs/cgroup/memory"
V2 = "/sys/fs/cgroup"
MB = 1 << 20


def _make_group(name):
    """The directory and the file of its limit, or None where this host lets nobody make one."""
    for base, probe, limit in ((V1, "memory.limit_in_bytes", "memory.limit_in_bytes"), (V2, "cgroup.subtree_control", "memory.max")):
        path = os.path.join(base, name)
        if not os.path.exists(os.path.join(base, probe)):
            continue
        try:
            os.mkdir(path)
        except OSError:
            continue
        if os.path.exists(os.path.join(path, limit)):
            return path, os.path.join(path, limit)
        os.rmdir(path)
    return None


@pytest.fixture
def group():
    made = _make_group(f"vmmd-oom-{os.getpid()}")
    if made is None:
        pytest.skip("no memory cgroup can be made here")
    yield made
    path, _ = made
    with open(os.path.join(path, "cgroup.procs"), encoding="ascii") as file:
        for pid in file.read().split():
            try:
                os.kill(int(pid), signal.SIGKILL)
            except ProcessLookupError:
                pass
    end = time.monotonic() + 20
    while True:
        try:
            os.rmdir(path)
            return
        except OSError:
            assert time.monotonic() < end
            time.sleep(0.05)


def write(path, text):
    with open(path, "w", encoding="ascii") as file:
        file.write(text)


def starve(group, pid):
    """From now on QEMU gets next to nothing more."""
    path, limit = group
    write(limit, str(8 * MB))
    write(os.path.join(path, "cgroup.procs"), str(pid))


# The guest takes memory that it had not touched.
FILL = "dd if=/dev/zero of=/fill bs=1M count=150"


def can_read_the_log():
    try:
        os.close(os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK))
        return True
    except OSError:
        return False


def test_oom_kill_is_named(api, group):
    if not can_read_the_log():
        pytest.skip("the kernel's log may not be read here")
    pid = booted(api, **direct(memory_mb=256))["runtime"]["pid"]
    starve(group, pid)
    type_and_leave(api, FILL)
    failure = wait_for(api, "web", "state:failed")["failure"]
    assert failure["reason"] == "oom", failure
    assert failure["signal"] == "SIGKILL" and failure["code"] == "vm_manager::host::insufficient_memory"
    assert failure["detail"] == "QEMU was killed by the kernel for want of memory (OOM)"
    changed = api.get("/v1/vms/web/explain").json["transitions"][-1]
    assert changed["cause"] == "QEMU was killed for want of memory"
    do(api, "start")
    # And one that somebody kills is only that.
    os.kill(get_vm(api)["runtime"]["pid"], signal.SIGKILL)
    assert wait_for(api, "web", "state:failed")["failure"]["reason"] == "killed"


def test_oom_kill_of_an_adopted_vm_is_named(vmmd, group):
    if not can_read_the_log():
        pytest.skip("the kernel's log may not be read here")
    pid = booted(vmmd.client(), **direct(memory_mb=256))["runtime"]["pid"]
    vmmd.kill9()
    vmmd.start()
    starve(group, pid)
    type_and_leave(vmmd.client(), FILL)
    failure = wait_for(vmmd.client(), "web", "state:failed")["failure"]
    assert (failure["reason"], failure["signal"]) == ("oom", None)


def test_oom_kill_while_the_daemon_is_away_is_named(vmmd, group):
    if not can_read_the_log():
        pytest.skip("the kernel's log may not be read here")
    pid = booted(vmmd.client(), **direct(memory_mb=256))["runtime"]["pid"]
    vmmd.kill9()
    starve(group, pid)
    type_alone(vmmd, FILL)
    gone(pid, PATIENCE)
    vmmd.start()
    vm = get_vm(vmmd.client())
    assert vm["state"] == "failed" and vm["failure"]["reason"] == "oom"


def test_vm_killed_for_want_of_memory_is_restarted_on_failure(daemons, group):
    if not can_read_the_log():
        pytest.skip("the kernel's log may not be read here")
    api = daemons(config="restart_delay_ms = 100\n").client()
    pid = booted(api, **direct(restart="on-failure", memory_mb=256))["runtime"]["pid"]
    since = api.get("/v1/vms").json["as_of_event"]
    starve(group, pid)
    type_and_leave(api, FILL)
    with api.events(since=since, type="vm.restart_scheduled") as stream:
        stream.until(lambda e: e.type == "vm.restart_scheduled", 60)
    vm = wait_for(api, "web", "state:running")
    assert vm["runtime"]["pid"] != pid


def test_cgroups_count_tells_where_the_log_may_not_be_read(daemons, group):
    """As under vmmd.service: vmmd without CAP_SYSLOG, and its QEMUs in its own cgroup."""
    if not os.path.exists("/usr/bin/setpriv"):
        pytest.skip("no setpriv")
    path, limit = group
    vmmd = daemons(start=False)
    argv = vmmd.argv()
    vmmd.argv = lambda: ["/usr/bin/setpriv", "--bounding-set", "-syslog", "--inh-caps", "-syslog", *argv]
    vmmd.start()
    write(os.path.join(path, "cgroup.procs"), str(vmmd.pid))
    api = vmmd.client()
    make(api, "other", start=True, **deaf())
    booted(api, **direct(memory_mb=256))
    with open(os.path.join(path, "memory.usage_in_bytes" if limit.endswith("in_bytes") else "memory.current"),
              encoding="ascii") as file:
        used = int(file.read())
    write(limit, str(used + 24 * MB))
    type_and_leave(api, FILL)
    # The kernel chooses the largest.
    failure = wait_for(api, "web", "state:failed")["failure"]
    assert failure["reason"] == "oom"
    os.kill(get_vm(api, "other")["runtime"]["pid"], signal.SIGKILL)
    assert wait_for(api, "other", "state:failed")["failure"]["reason"] == "killed"
