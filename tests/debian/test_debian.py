"""A stock Debian 12 cloud guest: what its own cloud-init makes of the seed, and its life from the first boot to the end.

A boot takes a minute under TCG and more beside others, so one boot proves much."""
import os
import subprocess

import pytest

from e2e import guest
from e2e.guest import condition, destroy, do, key_pair, make, ssh, wait_for
from lib.vms import eventually, get_vm

# cloud-init is done a minute after power-on, alone on the machine.
PATIENCE = 420


def debian(**more):
    return {"image": guest.DEBIAN, "memory_mb": 512, "vcpus": 2, **more}


def wait(api, name, *what):
    return wait_for(api, name, *what, patience=PATIENCE)


class Guest:
    """A user's shell in the guest, by the system's ssh."""

    def __init__(self, api, key, name="web", user="vm"):
        self.port, self.key, self.user = get_vm(api, name)["runtime"]["ssh_host_port"], key, user

    def run(self, command):
        return ssh(self.port, self.key, self.user, command)


def files_of(vm):
    return vm["runtime"]["overlay_path"], vm["runtime"]["seed_iso_path"]


def test_debian_lives_from_seed_to_destroy(vmmd, api, tmp_path):
    key, public = key_pair(str(tmp_path))
    make(api, start=True, **debian(disk_gb=4), cloud_init={
        "hostname": "debby", "ssh_authorized_keys": [public],
        "vendor_data": "#cloud-config\nruncmd: [[sh, -c, 'echo vendor >/run/vendor-was-here']]\n",
    })
    # While it boots, cloud-init is not done, and says so.
    vm = wait(api, "web", "agent", "ip")
    assert vm["runtime"]["addresses"] == [{"ip": "10.0.2.15", "source": "agent", "seen_at": vm["runtime"]["addresses"][0]["seen_at"]},
                                          *vm["runtime"]["addresses"][1:]]
    assert condition(vm, "ip")["reason"] == "agent" and condition(vm, "ip")["message"] == "10.0.2.15"
    vm = wait(api, "web", "cloud_init")
    done = condition(vm, "cloud_init")
    assert (done["reason"], done["message"]) == ("done", "")

    # The user, its key, the host's name, the disk, the vendor's command; the seed is one that cloud-init takes for valid.
    shell = Guest(api, key)
    assert shell.run("id -un; sudo -n id -u; hostname").split() == ["vm", "0", "debby"]
    assert shell.run("cat /run/vendor-was-here") == "vendor"
    assert int(shell.run("df --output=size -B 1M / | tail -1")) > 3500
    assert "Valid cloud-config" in shell.run("sudo cloud-init schema --system 2>&1")
    assert shell.run("sudo cat /etc/shadow | grep ^vm: | cut -d: -f2")[0] in "!*"
    assert shell.run("cloud-init status") == "status: done"

    # A new daemon finds the same.
    vmmd.kill9()
    vmmd.start()
    vm = wait(api, "web", "cloud_init", "ip", "ready")
    assert condition(vm, "cloud_init")["reason"] == "done"

    # ACPI: systemd powers off in order.
    stopped = do(api, "stop", body={"timeout_s": 120}).json
    assert stopped["method"] == "acpi", stopped
    vm = get_vm(api)
    assert vm["state"] == "stopped" and vm["runtime"]["addresses"] == []
    assert condition(vm, "ip")["status"] is False and condition(vm, "cloud_init")["status"] is False
    assert "reboot: Power down" in guest.console(api)
    paths = files_of(vm)
    assert all(os.path.exists(path) for path in paths)
    destroy(api)
    assert not any(os.path.exists(path) for path in paths)
    guest.assert_nothing_left(vmmd)


def test_debian_reboots_itself(api, tmp_path):
    """What was known of it is not, until it is again; the instance is the same."""
    key, public = key_pair(str(tmp_path))
    make(api, start=True, **debian(cloud_init={"hostname": "twice", "ssh_authorized_keys": [public]}))
    wait(api, "web", "cloud_init", "ip", "ready")
    shell = Guest(api, key)
    before = shell.run("cat /proc/sys/kernel/random/boot_id; cat /etc/machine-id; sha256sum /etc/ssh/ssh_host_ed25519_key.pub").split()
    newest = api.get("/v1/vms").json["as_of_event"]
    with api.events(since=newest, vm="web") as stream:
        ssh_once(shell, "sudo systemctl reboot")
        stream.until(lambda e: e.type == "vm.guest_reset", timeout=PATIENCE)
        assert condition(get_vm(api), "cloud_init")["status"] is False
        stream.until(lambda e: e.type == "vm.condition_changed" and e.data["data"]["type"] == "cloud_init" and
                     e.data["data"]["status"], timeout=PATIENCE)
    wait(api, "web", "cloud_init", "ip", "ready")
    after = shell.run("cat /proc/sys/kernel/random/boot_id; cat /etc/machine-id; sha256sum /etc/ssh/ssh_host_ed25519_key.pub").split()
    assert after[0] != before[0] and after[1:] == before[1:]


def ssh_once(shell, command):
    """For a command that takes the connection with it."""
    subprocess.run(["ssh", "-F", "none", "-i", shell.key, "-p", str(shell.port), "-o", "StrictHostKeyChecking=no",
                    "-o", "UserKnownHostsFile=/dev/null", "-o", "BatchMode=yes", "-o", "LogLevel=ERROR",
                    f"{shell.user}@127.0.0.1", command], stdin=subprocess.DEVNULL, timeout=120, check=False)


USER_DATA = """#cloud-config
# Passed as it is: this comment too, and ünicode.
runcmd:
  - [sh, -c, 'echo the step that fails >&2; exit 7']
write_files:
  - path: /etc/motd
    content: "from user-data\n"
"""


def test_debian_tells_what_failed_in_cloud_init(api):
    make(api, start=True, **debian(cloud_init={"hostname": "sad", "user_data": USER_DATA}))
    failed = eventually(lambda: condition(get_vm(api), "cloud_init"),
                        lambda c: c["reason"] not in ("booting", "running"), PATIENCE)
    assert failed["status"] is False and failed["reason"] == "error"
    assert "runcmd" in failed["message"] and "scripts" in failed["message"], failed
    # Who waits for it is told why it does not come.
    answer = api.get("/v1/vms/web/wait", query={"for": "cloud_init", "timeout": 1})
    assert (answer.status, answer.code) == (504, "wait::timed_out") and "runcmd" in answer.json["causes"][0]
    do(api, "kill")
    # It is told still when the guest is gone.
    assert "runcmd" in condition(get_vm(api), "cloud_init")["message"]
