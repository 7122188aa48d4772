"""Commands in guests, over SSH and over the guest agent."""
import base64
import json
import os
import re
import signal
import stat
import subprocess
import threading
import time

import pytest

from e2e import guest
from e2e.guest import eventually
from e2e.lan import tap
from lib.client import _Connection
from lib.vms import create_body, get_vm

VIAS = ["ssh", "agent"]


@pytest.fixture(scope="module")
def api(shared_vmmd):
    """A daemon with one guest that has a key."""
    api = shared_vmmd.client()
    api.daemon = shared_vmmd
    vm = guest.booted(api, "web", **with_key())
    assert guest.condition(vm, "ready")["reason"] == "ssh"
    return api


def with_key(machine="microvm", **more):
    return guest.direct(machine, **{"network": {"type": "user"}, "cloud_init": {"hostname": "web"}, **more})


def run(api, body, expect=200, name="web", timeout=60):
    answer = api.post(f"/v1/vms/{name}/exec", body, timeout=timeout + 30)
    assert answer.status == expect, answer
    return answer.json if expect == 200 else answer


class Live:
    """Lines of live output."""

    def __init__(self, api, body, name="web"):
        self.connection = _Connection(api, 60)
        self.connection.request("POST", f"/v1/vms/{name}/exec", json.dumps(body),
                                {"Content-Type": "application/json", "Accept": "application/x-ndjson", "Host": "vmmd"})
        self.sock = self.connection.sock
        self.answer = self.connection.getresponse()
        assert self.answer.status == 200, self.answer.read()
        assert self.answer.headers["Content-Type"] == "application/x-ndjson"

    def __iter__(self):
        return (json.loads(line) for line in self.answer)

    def leave(self):
        self.sock.shutdown(2)
        self.connection.close()


def count(api, pattern, name="web"):
    """Processes of the guest whose command line matches; asked over the agent."""
    body = {"script": f"ps -o args | grep -c '{pattern}'; exit 0", "via": "agent", "user": "root"}
    answer = eventually(lambda: api.post(f"/v1/vms/{name}/exec", body), lambda a: a.status != 503)
    assert answer.status == 200, answer
    return int(answer.json["stdout"])


def helpers(daemon):
    return daemon.leftovers("vmmd-ssh")


# ---- the same on both channels ----

@pytest.mark.parametrize("via", VIAS)
def test_output_exit_code_and_user(api, via):
    out = run(api, {"command": ["sh", "-c", "id -un; pwd; echo err >&2; exit 3"], "via": via})
    assert (out["exit_code"], out["signal"], out["via"]) == (3, None, via)
    assert out["stdout"] == "vm\n/home/vm\n"
    assert out["stderr"] == "err\n"
    assert out["truncated"] is False and out["timed_out"] is False and out["duration_ms"] >= 0


@pytest.mark.parametrize("via", VIAS)
def test_words_environment_and_directory_arrive_as_they_are(api, via):
    words = ["a b", "$HOME", "'", '"', "\\", "`id`", "*", "new\nline", "ä", ""]
    out = run(api, {"command": ["sh", "-c", 'pwd; printf "%s|" "$X" "$@"', "sh"] + words, "env": {"X": "it's $HOME"},
                    "cwd": "/tmp", "via": via})
    assert out["stdout"] == "/tmp\n" + "|".join(["it's $HOME"] + words) + "|"


@pytest.mark.parametrize("via", VIAS)
def test_input_and_bytes_that_are_no_text(api, via):
    data = bytes(range(256))
    out = run(api, {"command": ["cat"], "stdin_base64": base64.b64encode(data).decode(), "via": via})
    assert base64.b64decode(out["stdout_base64"]) == data
    assert "stdout" not in out and out["stderr"] == ""


@pytest.mark.parametrize("via", VIAS)
def test_a_signal_is_told(api, via):
    out = run(api, {"command": ["sh", "-c", "kill -9 $$"], "via": via, "user": "root" if via == "agent" else None})
    assert (out["exit_code"], out["signal"]) == (None, "SIGKILL")


@pytest.mark.parametrize("via", VIAS)
def test_what_cannot_begin_says_why(api, via):
    assert run(api, {"command": ["nonesuch"], "via": via})["exit_code"] == 127
    assert run(api, {"command": ["true"], "cwd": "/nope", "via": via}, 404).code == "guest::file_not_found"
    assert run(api, {"command": ["true"], "cwd": "/etc/passwd", "via": via}, 409).code == "guest::not_a_directory"
    assert run(api, {"command": ["true"], "cwd": "/root", "via": via}, 403).code == "guest::file_permission_denied"


@pytest.mark.parametrize("via", VIAS)
def test_a_timeout_kills_the_group_and_not_the_vm(api, via):
    body = {"script": "sleep 4711 & sleep 4711", "timeout_s": 1, "via": via}
    answer = run(api, body, 504)
    assert answer.code == "exec::timed_out"
    eventually(lambda: count(api, "^sleep 4711"), lambda n: n == 0)
    assert get_vm(api, "web")["state"] == "running"
    assert run(api, {"command": ["true"], "via": via})["exit_code"] == 0


@pytest.mark.parametrize("via", VIAS)
def test_a_client_that_leaves_kills_the_command(api, via):
    sock = api.connect(30)
    body = json.dumps({"script": "sleep 4712 & sleep 4712", "timeout_s": 300, "via": via}).encode()
    sock.sendall(b"POST /v1/vms/web/exec HTTP/1.1\r\nHost: vmmd\r\nContent-Type: application/json\r\n"
                 b"Content-Length: %d\r\n\r\n%s" % (len(body), body))
    eventually(lambda: count(api, "^sleep 4712"), lambda n: n == 2)
    sock.close()
    eventually(lambda: count(api, "^sleep 4712"), lambda n: n == 0)


@pytest.mark.parametrize("via", VIAS)
def test_a_grandchild_that_holds_the_output_hangs_nobody(api, via):
    out = run(api, {"script": "sleep 60 & echo done", "timeout_s": 50, "via": via})
    assert out["stdout"] == "done\n" and out["exit_code"] == 0
    assert out["duration_ms"] < 30000


@pytest.mark.parametrize("via", VIAS)
def test_output_is_cut_at_max_output(api, via):
    out = run(api, {"command": ["head", "-c", "100000", "/dev/zero"], "max_output": 1000, "via": via})
    assert len(base64.b64decode(out["stdout_base64"])) == 1000
    assert out["truncated"] is True and out["exit_code"] == 0


def test_more_than_the_agent_can_carry_is_said(api):
    answer = run(api, {"script": "head -c 6000000 /dev/zero", "via": "agent"}, 503)
    assert answer.code == "guest::unavailable"
    answer = run(api, {"script": "true", "stdin_base64": base64.b64encode(bytes(200000)).decode(), "via": "agent"}, 422)
    assert answer.context["pointer"] == "/stdin_base64"


def test_a_user_that_the_guest_has_not(api):
    answer = run(api, {"command": ["true"], "user": "nobody-here", "via": "agent"}, 422)
    assert answer.code == "api::invalid_field" and answer.context["pointer"] == "/user"
    assert run(api, {"command": ["id", "-u"], "user": "root", "via": "agent"})["stdout"] == "0\n"


# ---- SSH ----

def test_a_long_script_and_a_large_input_over_ssh(api):
    script = ": " + "x" * 150000 + "\nwc -c"
    data = bytes(500000)
    out = run(api, {"script": script, "stdin_base64": base64.b64encode(data).decode(), "via": "ssh", "timeout_s": 120}, timeout=150)
    assert out["stdout"].split() == ["500000"]


def test_a_hundred_at_once(api):
    seen = []

    def one(i):
        try:
            answer = api.post("/v1/vms/web/exec", {"command": ["sh", "-c", f"sleep 1; echo {i}"], "timeout_s": 110}, timeout=120)
            seen.append(answer.json["stdout"].strip() if answer.status == 200 else answer)
        except OSError as error:
            seen.append(error)
    threads = [threading.Thread(target=one, args=(i,)) for i in range(100)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [one for one in seen if not isinstance(one, str)] == []
    assert sorted(seen) == sorted(map(str, range(100)))


def test_short_commands_beside_each_other_do_not_end_each_other(api):
    """The guest's dropbear ends a connection when a command on it ends while another is being begun."""
    seen = []

    def some(i):
        for n in range(40):
            seen.append((i, n, api.post("/v1/vms/web/exec", {"command": ["echo", f"{i}-{n}"]}, timeout=120)))
    threads = [threading.Thread(target=some, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [answer for _, _, answer in seen if answer.status != 200] == []
    assert len(seen) == 160 and all(answer.json["stdout"] == f"{i}-{n}\n" for i, n, answer in seen)


def test_live_lines_come_as_they_are_written(api):
    lines = Live(api, {"script": "echo one; read x; echo two >&2; exit 5", "stdin_base64": base64.b64encode(b"x\n").decode()})
    got = list(lines)
    assert [(x["stream"], x["data"]) for x in got[:-1]] == [("stdout", "one\n"), ("stderr", "two\n")]
    assert got[-1]["exit_code"] == 5 and got[-1]["timed_out"] is False
    # The command ends only after its first line was seen.
    lines = iter(Live(api, {"script": "echo first; while [ ! -e /tmp/seen ]; do sleep 0.1; done; echo last", "timeout_s": 60}))
    assert next(lines)["data"] == "first\n"
    run(api, {"command": ["touch", "/tmp/seen"]})
    assert next(lines)["data"] == "last\n"
    assert next(lines)["exit_code"] == 0
    run(api, {"command": ["rm", "/tmp/seen"]})
    assert list(Live(api, {"script": "sleep 30", "timeout_s": 1}))[-1]["timed_out"] is True


def test_a_slow_reader_pauses_its_command_and_nobody_else(api):
    lines = Live(api, {"command": ["yes"], "timeout_s": 60})
    time.sleep(2)
    before = resident(api.daemon.pid)
    for _ in range(10):
        assert run(api, {"command": ["true"]})["exit_code"] == 0
    time.sleep(1)
    assert resident(api.daemon.pid) < before + 4096
    lines.leave()
    eventually(lambda: count(api, "^yes"), lambda n: n == 0)


def resident(pid):
    """KiB"""
    with open(f"/proc/{pid}/status", encoding="utf-8") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmRSS:"))


def test_the_helper_has_no_privileges_and_one_process_serves_a_vm(api):
    run(api, {"command": ["true"]})
    (pid,) = helpers(api.daemon)
    with open(f"/proc/{pid}/status", encoding="utf-8") as file:
        status = dict(line.rstrip("\n").split(":\t", 1) for line in file if ":\t" in line)
    if os.geteuid() == 0:
        assert status["Uid"].split() == ["65534"] * 4
        assert int(status["CapEff"], 16) == 0
    assert status["NoNewPrivs"] == "1" and status["Seccomp"] == "2"


def test_a_helper_that_dies_fails_its_command_and_is_replaced(api):
    run(api, {"command": ["true"]})
    (pid,) = helpers(api.daemon)
    answers = []
    thread = threading.Thread(target=lambda: answers.append(api.post("/v1/vms/web/exec", {"command": ["sleep", "40"]})))
    thread.start()
    eventually(lambda: count(api, "^sleep 40"), lambda n: n == 1)
    os.kill(pid, signal.SIGKILL)
    thread.join()
    assert answers[0].status == 502 and answers[0].code == "ssh::failed"
    assert run(api, {"command": ["echo", "new"]})["stdout"] == "new\n"
    assert helpers(api.daemon) != [pid]
    eventually(lambda: count(api, "^sleep 40"), lambda n: n == 0)  # the next helper has killed it


def test_a_command_whose_helper_dies_before_the_guest_is_asked_runs_on_the_next(api):
    run(api, {"command": ["true"]})
    (pid,) = helpers(api.daemon)
    os.kill(pid, signal.SIGSTOP)
    answers = []
    threads = [threading.Thread(target=lambda i=i: answers.append(run(api, {"command": ["echo", str(i)]})["stdout"])) for i in range(3)]
    for thread in threads:
        thread.start()
    eventually(lambda: api.get("/metrics").text, lambda text: 'vmmd_limit_used{limit="execs"} 3' in text)
    os.kill(pid, signal.SIGKILL)
    for thread in threads:
        thread.join()
    assert sorted(answers) == ["0\n", "1\n", "2\n"]
    assert pid not in helpers(api.daemon)


def test_keys_are_private_from_birth_and_open_the_guest(api):
    access = api.get("/v1/vms/web/ssh").json
    key = access["private_key_path"]
    assert stat.S_IMODE(os.stat(key).st_mode) == 0o600
    with open(key + ".pub", encoding="utf-8") as file:
        public = file.read()
    derived = subprocess.run(["ssh-keygen", "-y", "-f", key], stdout=subprocess.PIPE, text=True, check=True).stdout
    assert derived.split()[:2] == public.split()[:2]
    done = subprocess.run(["ssh", "-F", "none", "-i", key, "-p", str(access["port"]), "-o", "BatchMode=yes",
                           "-o", "StrictHostKeyChecking=yes", "-o", "UserKnownHostsFile=" + access["known_hosts"],
                           f"{access['user']}@{access['host']}", "id -un"], stdout=subprocess.PIPE, text=True, check=True)
    assert done.stdout == "vm\n"
    with open(access["known_hosts"], encoding="utf-8") as file:
        assert access["host_key"] in file.read()


# ---- guests of their own ----

def test_via_needs_its_channel(vmmd):
    api = vmmd.client()
    vm = guest.booted(api, "bare")  # no key, no network
    assert guest.condition(vm, "ready")["reason"] == "agent"
    assert guest.condition(vm, "ssh") is None
    assert api.get("/v1/vms/bare/ssh").json == {"user": "vm", "host": None, "port": None, "private_key_path": None,
                                                "host_key": None, "known_hosts": None}
    assert run(api, {"command": ["true"], "via": "ssh"}, 503, "bare").code == "guest::unavailable"
    assert run(api, {"command": ["true"], "via": "vsock"}, 501, "bare").code == "lifecycle::vsock_unavailable"
    assert run(api, {"command": ["true"], "user": "root"}, name="bare")["via"] == "agent"
    guest.do(api, "suspend", "bare")
    answer = run(api, {"command": ["true"]}, 409, "bare")
    assert answer.code == "vm::invalid_state" and answer.context["expected"] == ["running"]


def test_guest_whose_agent_takes_no_commands_is_not_ready(vmmd):
    api = vmmd.client()
    guest.make(api, "bare", start=True, **guest.direct(
        cloud_init={"user_data": "#!/bin/sh\n"
                    "kill $(awk '/^PPid/ {print $2}' /proc/$(pidof qemu-ga)/status); killall qemu-ga; sleep 1\n"
                    "qemu-ga -d -b guest-exec -m virtio-serial -p /dev/virtio-ports/org.qemu.guest_agent.0 -t /run\n"}))
    eventually(lambda: guest.condition(get_vm(api, "bare"), "ready"), lambda c: c["reason"] == "agent_refuses", guest.PATIENCE)
    vm = get_vm(api, "bare")
    assert guest.condition(vm, "ready")["status"] is False and "guest-exec" in guest.condition(vm, "ready")["message"]
    assert guest.condition(vm, "agent")["status"] is True
    assert run(api, {"command": ["true"]}, 503, "bare").code == "guest::unavailable"


def test_ready_waits_for_the_user_that_the_seed_makes(vmmd):
    api = vmmd.client()
    vm = guest.booted(api, "bare", **guest.direct(cloud_init={"hostname": "bare"}))
    assert guest.condition(vm, "ready")["reason"] == "agent" and guest.condition(vm, "ready")["message"] == ""
    assert run(api, {"command": ["id", "-un"]}, name="bare")["stdout"] == "vm\n"


@pytest.mark.parametrize("limit", ["execs", "execs_per_vm"])
def test_one_command_too_many_is_refused(daemons, limit):
    api = daemons(config=f"max_{limit} = 1\n").client()
    guest.booted(api, "web")
    thread = threading.Thread(target=lambda: api.post("/v1/vms/web/exec", {"command": ["sleep", "8"], "user": "root"}))
    thread.start()
    eventually(lambda: api.get("/metrics").text, lambda text: f'vmmd_limit_used{{limit="{limit}"}} 1' in text)
    answer = api.post("/v1/vms/web/exec", {"command": ["true"], "user": "root"})
    assert answer.status == 503 and answer.code == "daemon::overloaded"
    assert answer.context == {"limit": limit, "max": 1, "config_key": f"max_{limit}"}
    thread.join()
    assert run(api, {"command": ["true"], "user": "root"})["exit_code"] == 0


def test_neither_key_nor_agent(vmmd):
    api = vmmd.client()
    guest.make(api, "deaf", start=True, **guest.deaf())
    assert run(api, {"command": ["true"]}, 503, "deaf").code == "guest::unavailable"


def test_a_vm_that_ends_fails_its_commands(vmmd):
    api = vmmd.client()
    guest.booted(api, "web", **with_key())
    answers = []
    bodies = [{"command": ["sleep", "100"], "via": via, "timeout_s": 100} for via in VIAS]
    threads = [threading.Thread(target=lambda b=b: answers.append(api.post("/v1/vms/web/exec", b, timeout=120))) for b in bodies]
    for thread in threads:
        thread.start()
    eventually(lambda: count(api, "^sleep 100"), lambda n: n == 2)
    guest.do(api, "kill")
    for thread in threads:
        thread.join()
    assert sorted(answer.code for answer in answers) == ["guest::unavailable", "ssh::failed"]
    eventually(lambda: helpers(vmmd), lambda found: not found)


def test_another_host_key_is_refused(vmmd):
    api = vmmd.client()
    guest.booted(api, "web", **guest.from_disk(network={"type": "user"}, cloud_init={"hostname": "web"}))
    before = api.get("/v1/vms/web/ssh").json["host_key"]
    run(api, {"script": "rm /etc/dropbear/key; sync", "user": "root", "via": "agent"})
    guest.do(api, "restart")  # it makes itself a new one
    guest.wait_for(api, "web", "agent")
    answer = eventually(lambda: api.post("/v1/vms/web/exec", {"command": ["true"], "via": "ssh"}),
                        lambda a: a.status == 502 and "host key" in a.json["detail"], guest.PATIENCE)
    assert answer.code == "ssh::failed" and "known_hosts" in answer.json["help"]
    assert not guest.is_ready(get_vm(api, "web"))
    access = api.get("/v1/vms/web/ssh").json
    assert access["host_key"] == before
    assert f"remove {access['known_hosts']} " in answer.json["help"]
    os.unlink(access["known_hosts"])  # what the help says
    guest.do(api, "restart")
    guest.wait_ready(api)
    assert run(api, {"command": ["true"], "via": "ssh"})["exit_code"] == 0
    access = api.get("/v1/vms/web/ssh").json
    assert access["host_key"] != before
    with open(access["known_hosts"], encoding="utf-8") as file:
        assert access["host_key"] in file.read()


def test_a_guest_without_a_disk_is_pinned_for_one_boot(vmmd):
    api = vmmd.client()
    guest.booted(api, "web", **with_key())
    before = api.get("/v1/vms/web/ssh").json["host_key"]
    for verb in ("restart", "reset"):
        guest.do(api, verb)
        guest.wait_ready(api)
        assert run(api, {"command": ["true"], "via": "ssh"})["exit_code"] == 0
        after = api.get("/v1/vms/web/ssh").json
        assert after["host_key"] != before
        with open(after["known_hosts"], encoding="utf-8") as file:
            assert after["host_key"] in file.read()
        before = after["host_key"]


def test_without_the_helper_no_key_can_be_made(daemons):
    daemon = daemons(start=False)
    daemon.install("vmmd", "vmmd-inspect")
    daemon.start()
    api = daemon.client()
    answer = api.post("/v1/vms", create_body("web", "qemu", **with_key()), prefer_wait=60)
    assert answer.status == 500 and answer.code == "ssh::keygen_failed"
    assert guest.vm_files(daemon) == []


def test_a_daemon_that_dies_leaves_no_helper_and_no_command(vmmd):
    api = vmmd.client()
    guest.booted(api, "web", **with_key())
    sock = api.connect(30)
    body = json.dumps({"script": "sleep 4713 & sleep 4713", "timeout_s": 300}).encode()
    sock.sendall(b"POST /v1/vms/web/exec HTTP/1.1\r\nHost: vmmd\r\nContent-Type: application/json\r\n"
                 b"Content-Length: %d\r\n\r\n%s" % (len(body), body))
    eventually(lambda: count(api, "^sleep 4713"), lambda n: n == 2)
    vmmd.kill9()
    sock.close()
    eventually(lambda: helpers(vmmd), lambda found: not found)
    vmmd.start()
    api = vmmd.client()
    guest.wait_ready(api)
    assert count(api, "^sleep 4713") == 0


# ---- a guest on a bridge ----

def test_an_address_that_comes_is_waited_for(lan):
    daemon, _ = lan
    api = daemon.client()
    guest.make(api, "web", start=True, **with_key(network=tap()))
    guest.wait_for(api, "web", "agent")
    answers = []
    requests = [threading.Thread(target=lambda: answers.append(api.post("/v1/vms/web/exec", {"command": ["id", "-un"], "via": "ssh", "timeout_s": 60}, timeout=90))),
                threading.Thread(target=lambda: answers.append(api.request("PUT", "/v1/vms/web/files", body=b"x", query={"path": "/tmp/x"}, timeout=90)))]
    for thread in requests:
        thread.start()
    eventually(lambda: api.get("/metrics").text, lambda text: 'vmmd_limit_used{limit="execs"} 1' in text)
    card = "$(for n in /sys/class/net/*; do [ -e $n/device ] && echo ${n##*/}; done)"
    guest.in_guest(api, f"ip addr add 192.0.2.50/24 dev {card}; ip link set {card} up")
    for thread in requests:
        thread.join()
    assert [answer.status for answer in answers] == [200, 200], answers
    assert api.get("/v1/vms/web/ssh").json["host"] == "192.0.2.50"


def test_an_address_that_does_not_come_is_waited_for_in_vain(lan):
    daemon, _ = lan
    api = daemon.client()
    guest.make(api, "web", start=True, **guest.deaf(network=tap(), cloud_init={"hostname": "web"}))
    mac = get_vm(api, "web")["runtime"]["mac_addr"]
    answers = []
    threads = [threading.Thread(target=lambda: answers.append(api.get("/v1/vms/web/files", query={"path": "/etc/passwd"}, timeout=60))),
               threading.Thread(target=lambda: answers.append(daemon.vmctl("ssh", "web", "--", "true", timeout=60)))]
    for thread in threads:
        thread.start()
    answer = run(api, {"command": ["true"], "timeout_s": 2}, 504)
    assert answer.code == "network::ip_discovery_timeout"
    assert re.search(r"within \d+ ms$", answer.json["detail"]), answer
    tried = " ".join(answer.json["causes"])
    assert "guest agent" in tried and "leases" in tried and mac in tried and "br0" in tried
    for thread in threads:
        thread.join()
    http, = [a for a in answers if hasattr(a, "code")]
    done, = [a for a in answers if hasattr(a, "returncode")]
    assert (http.status, http.code) == (504, "network::ip_discovery_timeout")
    assert done.returncode == 125 and "network::ip_discovery_timeout" in done.stderr
    # A VM that ends is not waited for.
    thread = threading.Thread(target=lambda: answers.append(api.post("/v1/vms/web/exec", {"command": ["true"]}, timeout=60)))
    thread.start()
    eventually(lambda: api.get("/metrics").text, lambda text: 'vmmd_limit_used{limit="execs"} 1' in text)
    guest.do(api, "kill")
    thread.join()
    assert answers[-1].code == "vm::invalid_state"
