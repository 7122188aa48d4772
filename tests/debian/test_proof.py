"""From a URL to nothing left: a stock Debian 12 cloud guest, named by where its image is, in all that a user does with a VM.

A boot takes a minute under TCG, so one test in one guest proves it all, in the order of its life."""
import hashlib
import os

import pytest

from debian.machine import PATIENCE, wait
from e2e import guest
from e2e.guest import condition, destroy, do, key_pair, make, ssh
from lib.images import files as image_files
from lib.vms import get_vm
from lib.webserver import Server

VIAS = ("ssh", "agent")
FILES = "/v1/vms/web/files"
# What only a boot changes, what only an instance has, and the key that sshd shows.
IDENTITY = "cat /proc/sys/kernel/random/boot_id /etc/machine-id; cut -d' ' -f1,2 /etc/ssh/ssh_host_ed25519_key.pub"

# An RSA key takes seconds to be found under TCG.
VENDOR_DATA = """#cloud-config
ssh_genkeytypes: [ed25519]
runcmd: [[sh, -c, 'echo vendor >/run/vendor-was-here']]
"""

ASK = """id -un; sudo -n id -u; hostname; cat /run/vendor-was-here; cloud-init status | grep -qx 'status: done' && echo ok
sudo getent shadow ada | cut -d: -f2 | cut -c1; cat /sys/class/dmi/id/product_name
df --output=size -B 1M / | tail -1; sudo cloud-init schema --system 2>&1"""


@pytest.fixture(scope="module")
def web():
    with open(guest.DEBIAN + ".xz", "rb") as file:
        packed = file.read()
    with Server({"debian-12.qcow2.xz": packed}) as server:
        server.digest = hashlib.sha256(packed).hexdigest()
        yield server


def run(api, script, via="auto", **more):
    """A script that must succeed; what it wrote."""
    answer = api.post("/v1/vms/web/exec", {"script": script, "via": via, "timeout_s": 120, **more}, timeout=150)
    assert answer.status == 200 and answer.json["exit_code"] == 0, answer
    return answer.json["stdout"]


def test_debian_lives_from_its_url_to_nothing_left(vmmd, web, tmp_path):
    api = vmmd.client(timeout=120)
    key, public = key_pair(str(tmp_path))
    is_created(vmmd, api, web, public)
    is_what_was_asked_for(api, key)
    runs_commands(api)
    takes_and_gives_files(api)
    obeys_vmctl(vmmd, tmp_path)
    is_provisioned(api)
    is_found_by_a_new_daemon(vmmd, api)
    reboots_as_itself(api)
    ends_and_leaves_nothing(vmmd, api)


def is_created(vmmd, api, web, public):
    """Pulled packed, with its digest; cloud-init tells its end, and the ways in are there."""
    vm = make(api, start=True, image_url=web.url("debian-12.qcow2.xz"), image_sha256=web.digest, machine="q35", vcpus=2, memory_mb=512,
              disk_gb=4, ssh={"user": "ada"}, cloud_init={
                  "hostname": "debby", "ssh_authorized_keys": [public],
                  "vendor_data": VENDOR_DATA})
    assert vm["runtime"]["accel"] == "tcg" or os.path.exists("/dev/kvm")
    image = api.get("/v1/images/debian-12.qcow2").json
    assert (image["sha256"], image["sha256_verified"], image["packing"], image["format"]) == (web.digest, True, "xz", "qcow2")
    assert image["used_by"] == [{"kind": "vm", "id": vm["id"], "name": "web"}]
    assert len(web.gets("/debian-12.qcow2.xz")) == 1
    vm = wait(api, "agent", "ip")
    assert vm["runtime"]["addresses"][0]["ip"] == "10.0.2.15" and vm["runtime"]["addresses"][0]["source"] == "agent"
    assert (condition(vm, "ip")["reason"], condition(vm, "ip")["message"]) == ("agent", "10.0.2.15")
    vm = wait(api, "cloud_init", "ready")
    assert (condition(vm, "cloud_init")["reason"], condition(vm, "cloud_init")["message"]) == ("done", "")
    assert condition(vm, "ready")["reason"] == "ssh"


def is_what_was_asked_for(api, key):
    """The user, its key, the host's name, the disk, the vendor's command, seen by the system's ssh with the user's own key."""
    said = ssh(get_vm(api)["runtime"]["ssh_host_port"], key, "ada", ASK).split("\n")
    assert said[:5] == ["ada", "0", "debby", "vendor", "ok"] and said[5] in "!*", said
    assert "Q35" in said[6] and int(said[7]) > 3500 and any("Valid cloud-config" in line for line in said[8:]), said


def runs_commands(api):
    """The same over both channels."""
    answers = []
    for via in VIAS:
        body = {"command": ["sh", "-c", 'id -un; pwd; hostname; cat; echo "$X $1" >&2; exit 7', "sh", "it's $1"], "env": {"X": "a  b"},
                "cwd": "/tmp", "stdin_base64": "aW5wdXQK", "via": via}
        answer = api.post("/v1/vms/web/exec", body).json
        assert answer.pop("via") == via and answer.pop("duration_ms") >= 0
        answers.append(answer)
        assert run(api, "id -un", via, user="root") == "root\n"
    assert answers[0] == answers[1] == {"exit_code": 7, "signal": None, "stdout": "ada\n/tmp\ndebby\ninput\n", "stderr": "a  b it's $1\n",
                                        "truncated": False, "timed_out": False}


def takes_and_gives_files(api):
    data = os.urandom(3 << 20)
    digest = hashlib.sha256(data).hexdigest()
    put = api.request("PUT", FILES, body=data, query={"path": "/home/ada/blob"}, headers={"X-File-Mode": "0751"})
    assert put.status == 200 and (put.json["size"], put.json["mode"]) == (len(data), "0751"), put
    assert run(api, "sha256sum <blob; stat -c '%a %U' blob").split() == [digest, "-", "751", "ada"]
    run(api, "cp -p blob copy && chmod 640 copy")
    got = api.get(FILES, query={"path": "copy"})
    assert got.headers["X-File-Mode"] == "0640" and hashlib.sha256(got.body).hexdigest() == digest


def obeys_vmctl(vmmd, tmp_path):
    """exec, cp and ssh: words, bytes, modes and exit codes arrive."""
    done = vmmd.vmctl("exec", "-e", "X=a b", "web", "--", "sh", "-c", 'echo "$X"; echo err >&2; exit 5')
    assert (done.returncode, done.stdout, done.stderr) == (5, "a b\n", "err\n")
    there, back = tmp_path / "there", tmp_path / "back"
    there.write_bytes(os.urandom(100000))
    there.chmod(0o710)
    for source, target in ((str(there), "web:/tmp/there"), ("web:/tmp/there", str(back))):
        done = vmmd.vmctl("cp", source, target)
        assert done.returncode == 0, done
    assert back.read_bytes() == there.read_bytes() and back.stat().st_mode & 0o777 == 0o710
    done = vmmd.vmctl("ssh", "web", "--", "sh", "-c", 'echo $(hostname) "$USER"; exit 9')
    assert (done.returncode, done.stdout) == (9, "debby ada\n"), done


def is_provisioned(api):
    """By all three kinds of steps, in order; one that fails says which, how and what it last wrote."""
    steps = [{"type": "shell", "inline": 'id -un; echo "$X" >/var/provisioned', "env": {"X": "a  b"}},
             {"type": "shell", "script": "#!/bin/sh\necho two >>/var/provisioned\n"},
             {"type": "file", "content_base64": "dGhyZWUK", "destination": "/etc/app/three", "mode": "0640"},
             {"type": "shell", "inline": "cat /etc/app/three >>/var/provisioned"}]
    answer = api.post("/v1/vms/web/provision", {"steps": steps}, prefer_wait=guest.PATIENCE)
    assert answer.status == 200, answer
    assert run(api, "cat /var/provisioned; stat -c '%a %U' /etc/app/three; ls -d /tmp/*vmmd* 2>/dev/null; exit 0").split("\n") == \
        ["a  b", "two", "three", "640 root", ""]
    assert "root\n" in guest.log(api, which="provision").text
    answer = api.post("/v1/vms/web/provision", {"steps": [steps[0], {"type": "shell", "inline": "echo because >&2; exit 3"}]},
                      prefer_wait=guest.PATIENCE)
    assert (answer.status, answer.code) == (424, "provision::failed"), answer
    assert answer.context["step"] == 2 and answer.context["exit_code"] == 3 and "because" in str(answer.context["tail"]), answer


def is_found_by_a_new_daemon(vmmd, api):
    vmmd.kill9()
    vmmd.start()
    vm = wait(api, "cloud_init", "ip", "ready")
    assert condition(vm, "cloud_init")["reason"] == "done" and run(api, "hostname") == "debby\n"


def reboots_as_itself(api):
    """From inside; what was known of it is not, until it is again; the same instance, disk and host key."""
    before, access = run(api, IDENTITY).split("\n"), api.get("/v1/vms/web/ssh").json
    assert before[2] == access["host_key"]
    newest = api.get("/v1/vms").json["as_of_event"]
    with api.events(since=newest, vm="web") as stream:
        api.post("/v1/vms/web/exec", {"command": ["systemctl", "--no-block", "reboot"], "user": "root"})
        stream.until(lambda e: e.type == "vm.guest_reset", timeout=PATIENCE)
        assert condition(get_vm(api), "cloud_init")["status"] is False
        stream.until(lambda e: e.type == "vm.condition_changed" and e.data["data"]["type"] == "cloud_init" and e.data["data"]["status"],
                     timeout=PATIENCE)
    wait(api, "cloud_init", "ip", "ready")
    after = run(api, IDENTITY + "; sha256sum blob copy | uniq -w 64 | wc -l").split("\n")
    assert after[0] != before[0] and after[1:3] == before[1:3] and after[3] == "1"
    assert api.get("/v1/vms/web/ssh").json == access


def ends_and_leaves_nothing(vmmd, api):
    """systemd powers off in order, by ACPI; then no file, process or leak is left, and the image goes when it is told to."""
    stopped = do(api, "stop", body={"timeout_s": 120}).json
    assert stopped["method"] == "acpi", stopped
    vm = get_vm(api)
    assert vm["state"] == "stopped" and vm["runtime"]["addresses"] == []
    assert condition(vm, "ip")["status"] is False and condition(vm, "cloud_init")["status"] is False
    assert "reboot: Power down" in guest.console(api)
    paths = vm["runtime"]["overlay_path"], vm["runtime"]["seed_iso_path"]
    assert all(os.path.exists(path) for path in paths)
    destroy(api)
    assert not any(os.path.exists(path) for path in paths)
    guest.assert_nothing_left(vmmd)
    assert api.get("/v1/host/leaks").json["items"] == []
    assert api.get("/v1/images/debian-12.qcow2").json["used_by"] == []
    assert api.delete("/v1/images/debian-12.qcow2", prefer_wait=guest.PATIENCE).status == 200
    assert image_files(vmmd) == []
