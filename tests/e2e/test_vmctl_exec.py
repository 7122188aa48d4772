"""vmctl exec, ssh and ssh-config against a real guest."""
import os
import signal
import subprocess
import time

import pytest

from e2e import guest
from e2e.guest import eventually
from lib.vmmd import VMCTL


@pytest.fixture(scope="module")
def daemon(shared_vmmd):
    guest.booted(shared_vmmd.client(), "web", **guest.direct("microvm", network={"type": "user"}, cloud_init={"hostname": "web"}))
    return shared_vmmd


def test_output_and_exit_code_are_the_commands(daemon):
    done = daemon.vmctl("exec", "-e", "X=a b", "--cwd", "/tmp", "web", "--", "sh", "-c", 'echo "$X"; pwd; echo err >&2; exit 7')
    assert (done.returncode, done.stdout, done.stderr) == (7, "a b\n/tmp\n", "err\n")
    assert daemon.vmctl("exec", "web", "--", "sh", "-c", "kill -9 $$").returncode == 137
    assert daemon.vmctl("exec", "--via", "agent", "-u", "root", "web", "--", "id", "-un").stdout == "root\n"


def test_bytes_go_both_ways(daemon):
    data = bytes(range(256)) * 100
    env = dict(daemon.env, VMMD_SOCKET=daemon.socket)
    done = subprocess.run([VMCTL, "exec", "-i", "web", "--", "cat"], input=data, stdout=subprocess.PIPE, env=env, check=False, timeout=60)
    assert done.returncode == 0 and done.stdout == data


def test_options_behind_the_command_are_the_commands(daemon):
    done = daemon.vmctl("exec", "web", "ls", "-d", "/etc")
    assert (done.returncode, done.stdout) == (0, "/etc\n"), done.stderr
    assert daemon.vmctl("ssh", "web", "ls", "-d", "/etc").stdout == "/etc\n"


def test_125_is_vmctl_itself(daemon):
    assert daemon.vmctl("exec", "nobody", "--", "true").returncode == 125
    assert daemon.vmctl("exec", "web").returncode == 125
    assert daemon.vmctl("--socket", "/nonexistent/s", "exec", "web", "true").returncode == 125
    done = daemon.vmctl("exec", "--timeout", "1", "web", "--", "sleep", "60")
    assert done.returncode == 125 and "too long" in done.stderr
    done = daemon.vmctl("exec", "--cwd", "/nope", "web", "--", "true")
    assert done.returncode == 125 and "guest::file_not_found" in done.stderr


def test_ctrl_c_kills_the_command(daemon):
    api = daemon.client()

    def sleepers():
        body = {"script": "ps -o args | grep -c '^sleep 4714'; exit 0", "via": "agent", "user": "root"}
        return api.post("/v1/vms/web/exec", body).json["stdout"].strip()
    env = dict(daemon.env, VMMD_SOCKET=daemon.socket)
    with subprocess.Popen([VMCTL, "exec", "web", "--", "sleep", "4714"], env=env, stdin=subprocess.DEVNULL) as process:
        eventually(sleepers, lambda n: n == "1")
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 130
    eventually(sleepers, lambda n: n == "0")


def test_ssh_logs_in_with_the_pinned_key_and_keeps_the_exit_code(daemon):
    done = daemon.vmctl("ssh", "web", "--", "sh", "-c", "echo $0 'a  b'; exit 9")
    assert (done.returncode, done.stdout, done.stderr) == (9, "sh a  b\n", "")
    done = daemon.vmctl("ssh", "web", "--", "id -un; exit 5")
    assert (done.returncode, done.stdout) == (5, "vm\n")
    assert daemon.vmctl("ssh", "nobody").returncode == 125
    assert daemon.vmctl("ssh", "--", "hostname").stdout == "web\n"  # the only one
    done = daemon.vmctl("ssh", "--user", "root", "web", "--", "id", "-un")
    assert done.stdout == "root\n"


def test_exec_on_a_terminal(daemon):
    done = daemon.vmctl("exec", "-t", "web", "--", "sh", "-c", "exit 4")
    assert done.returncode == 4


def test_ssh_config_is_understood_by_ssh(daemon):
    config = os.path.join(daemon.dir, "ssh_config")
    with open(config, "w", encoding="utf-8") as file:
        file.write(daemon.vmctl("ssh-config", "web").stdout)
    done = subprocess.run(["ssh", "-F", config, "-o", "BatchMode=yes", "web", "hostname"], stdout=subprocess.PIPE, text=True, check=True)
    assert done.stdout == "web\n"


def test_live_output_is_not_held_back(daemon):
    env = dict(daemon.env, VMMD_SOCKET=daemon.socket)
    with subprocess.Popen([VMCTL, "exec", "web", "--", "sh", "-c", "echo now; sleep 60"], env=env, stdout=subprocess.PIPE,
                          stdin=subprocess.DEVNULL, text=True) as process:
        begin = time.monotonic()
        assert process.stdout.readline() == "now\n"
        assert time.monotonic() - begin < 30
        process.send_signal(signal.SIGINT)


def test_cp_both_ways_and_recursive(daemon):
    top = os.path.join(daemon.dir, "tree")
    os.makedirs(os.path.join(top, "sub dir"))
    for name in ("a", "sub dir/b"):
        with open(os.path.join(top, name), "wb") as file:
            file.write(os.urandom(50000))
    os.chmod(os.path.join(top, "a"), 0o751)
    assert daemon.vmctl("cp", "-r", top, "web:/tmp/tree").returncode == 0
    assert daemon.vmctl("exec", "web", "--", "stat", "-c", "%a", "/tmp/tree/a").stdout == "751\n"
    back = os.path.join(daemon.dir, "back")
    done = daemon.vmctl("cp", "-r", "web:/tmp/tree", back)
    assert done.returncode == 0, done
    assert subprocess.run(["diff", "-r", top, back], check=False).returncode == 0
    assert daemon.vmctl("cp", "web:/nope", back).returncode == 3


def test_cp_with_a_key_keeps_times(daemon):
    key, mine = daemon.client().get("/v1/vms/web/ssh").json["private_key_path"], os.path.join(daemon.dir, "dated")
    with open(mine, "wb") as file:
        file.write(b"x")
    os.utime(mine, (1, 1000000000))
    assert daemon.vmctl("cp", "-i", key, mine, "web:/tmp/dated").returncode == 0
    assert daemon.vmctl("exec", "web", "--", "stat", "-c", "%Y", "/tmp/dated").stdout == "1000000000\n"


def test_what_cp_does_not_do_is_said(daemon):
    top = back = daemon.dir
    assert daemon.vmctl("cp", top, back).returncode == 2
    assert daemon.vmctl("cp", "nobody:/x", back).returncode == 3
