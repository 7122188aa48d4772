"""Provisioning of guests, over SSH and over the guest agent."""
import base64
import json
import os
import signal
import subprocess

import pytest

from e2e import guest
from e2e.guest import eventually
from lib.vmmd import VMCTL
from lib.vms import get_vm

VMS = ["web", "bare"]  # by SSH, as the user who logs in; by the agent, as root


@pytest.fixture(scope="module")
def api(shared_vmmd):
    api = shared_vmmd.client()
    api.daemon = shared_vmmd
    guest.make(api, "bare", start=True, **guest.direct("microvm"))
    guest.make(api, "web", start=True, **guest.direct("microvm", network={"type": "user"}, cloud_init={"hostname": "web"}))
    for name in VMS:
        guest.wait_ready(api, name)
    return api


def provision(api, steps, name="web", expect=200):
    answer = api.post(f"/v1/vms/{name}/provision", {"steps": steps}, prefer_wait=guest.PATIENCE)
    assert answer.status == expect, f"{answer}\n{log(api, name)[-3000:]}"
    return answer


def begin(api, steps, name="web"):
    answer = api.post(f"/v1/vms/{name}/provision", {"steps": steps})
    assert answer.status == 202, answer
    return answer.json["id"]


def ended(api, operation):
    return api.get(f"/v1/operations/{operation}", prefer_wait=guest.PATIENCE)


def shell(text, **more):
    return {"type": "shell", "inline": text, **more}


def script(text, **more):
    return {"type": "shell", "script": text, **more}


def file(content, destination, **more):
    return {"type": "file", "content_base64": base64.b64encode(content).decode(), "destination": destination, **more}


def log(api, name="web", **query):
    return guest.log(api, name, "provision", **query).body.decode("utf-8", "replace")


def end_of_log(api, name="web"):
    return int(guest.log(api, name, "provision", tail=0).headers["X-Next-Offset"])


def run(api, text, name="web", user="root"):
    """By the agent, whoever the provisioning runs as."""
    answer = eventually(lambda: api.post(f"/v1/vms/{name}/exec", {"script": text, "via": "agent", "user": user}),
                        lambda a: a.status != 503, 30)
    assert answer.status == 200, answer
    return answer.json["stdout"]


def leftovers(api, name="web"):
    return run(api, "ls -d /tmp/.vmmd-provision* /tmp/*/.vmmd-provision* /tmp/made/by/us/.vmmd-provision* 2>/dev/null; exit 0", name)


# ---- the three kinds ----

@pytest.mark.parametrize("name", VMS)
def test_all_kinds_in_order(api, name):
    start = end_of_log(api, name)
    data = bytes(range(256)) * 1000  # in four parts
    steps = [
        shell("echo one; id -un; echo err >&2", name="first"),
        file(data, "/tmp/made/by/us/data", mode="0640"),
        script('#!/bin/sh -e\necho "two $GREETING $0"; stat -c %a "$0"; false || echo three\n', env={"GREETING": "it's $HOME"}),
        file(b"", "/tmp/made/empty"),
    ]
    result = provision(api, steps, name)
    assert result.json["state"] == "succeeded" and result.json["result"]["name"] == name
    assert result.json["progress"] == {"done": 4, "total": 4, "unit": "steps"}
    text = log(api, name, **{"from": start})
    user = "vm" if name == "web" else "root"
    assert [line for line in text.splitlines() if line in ("one", "err", "three", user) or "step" in line or "two" in line] != []
    at = [text.index(part) for part in ("=== step 1/4: shell, inline: first", f"one\n{user}\n", "=== step 1/4 succeeded",
                                        "=== step 2/4: file: /tmp/made/by/us/data", "=== step 3/4: shell, script: ",
                                        "two it's $HOME /tmp/.vmmd-provision-", "700\nthree\n", "=== step 4/4 succeeded",
                                        "=== provisioning is done")]
    assert at == sorted(at) and "err\n" in text
    assert run(api, "stat -c '%a %U' /tmp/made/by/us/data /tmp/made/empty; sha256sum </tmp/made/by/us/data | cut -c1-64", name).split() == \
        ["640", user, "644", user, subprocess.run(["sha256sum"], input=data, stdout=subprocess.PIPE, check=True).stdout.decode()[:64]]
    assert leftovers(api, name) == ""
    run(api, "rm -r /tmp/made", name)


@pytest.mark.parametrize("name", VMS)
def test_the_first_failure_ends_it_and_says_where(api, name):
    steps = [shell("true"), script("#!/bin/sh\nseq 1 100; printf 'caf\\303'; exit 7"), shell("touch /tmp/never")]
    answer = provision(api, steps, name, 424)
    assert answer.code == "provision::failed"
    assert (answer.context["step"], answer.context["exit_code"]) == (2, 7)
    assert answer.context["tail"].splitlines()[0] == "82" and answer.context["tail"].endswith("100\ncaf\ufffd")
    assert f"vmctl log --provision" in answer.json["help"]
    assert run(api, "ls /tmp/never 2>&1 || true", name) != "/tmp/never\n"
    assert "=== step 2/3 failed: " in log(api, name, tail=5) and leftovers(api, name) == ""


@pytest.mark.parametrize("name", VMS)
def test_a_timeout_kills_the_step_and_leaves_nothing(api, name):
    answer = provision(api, [script("#!/bin/sh\necho begun\nsleep 4811 & sleep 4811", timeout_s=2)], name, 424)
    assert answer.context["exit_code"] is None and answer.context["timeout_s"] == 2 and answer.context["tail"] == "begun\n"
    assert "did not end within 2 s" in answer.json["detail"]
    eventually(lambda: run(api, "ps -o args | grep -c '^sleep 4811'; exit 0", name), lambda n: n == "0\n")
    assert leftovers(api, name) == ""


@pytest.mark.parametrize("name", VMS)
def test_a_cancel_kills_the_step_and_leaves_nothing(api, name):
    operation = begin(api, [script("#!/bin/sh\nsleep 4812 & sleep 4812")], name)
    try:
        cancel_it(api, name, operation)
    finally:
        api.delete(f"/v1/operations/{operation}")


def cancel_it(api, name, operation):
    eventually(lambda: run(api, "ps -o args | grep -c '^sleep 4812'; exit 0", name), lambda n: n == "2\n")
    seen = api.get(f"/v1/operations/{operation}").json
    assert seen["step"] == "run" and seen["progress"] == {"done": 0, "total": 1, "unit": "steps"} and seen["cancellable"]
    assert leftovers(api, name).count("\n") == 1
    assert run(api, "stat -c %a /tmp/.vmmd-provision-*", name) == "700\n"
    assert api.delete(f"/v1/operations/{operation}").status == 200
    assert ended(api, operation).code == "operation::cancelled"
    eventually(lambda: run(api, "ps -o args | grep -c '^sleep 4812'; exit 0", name), lambda n: n == "0\n")
    assert leftovers(api, name) == "" and "cancelled" in log(api, name, tail=1)


def test_a_signal_is_told(api):
    answer = provision(api, [shell("kill -9 $$")], "web", 424)
    assert (answer.context["signal"], answer.context["exit_code"]) == ("SIGKILL", None)


def test_a_file_that_cannot_be_written(api):
    answer = provision(api, [file(b"x", "/etc/vmmd-test")], "web", 424)
    assert answer.context["step"] == 1 and answer.context["exit_code"] != 0 and "ermission denied" in answer.context["tail"]
    answer = provision(api, [file(b"x", "/tmp")], "bare", 424)
    assert "/tmp is a directory" in answer.context["tail"]
    answer = provision(api, [shell("true", user="nobody-here")], "bare", 424)
    assert any("no user nobody-here" in cause for cause in answer.json["causes"])


def test_another_user(api):
    run(api, "grep -q ^app: /etc/passwd || echo 'app:x:4242:4242:app:/tmp:/bin/sh' >>/etc/passwd", "bare")
    provision(api, [file(b"x", "/tmp/of-app", user="app"), shell("id -un >/tmp/who; stat -c %u /tmp/of-app >>/tmp/who", user="app")], "bare")
    assert run(api, "cat /tmp/who; rm /tmp/who /tmp/of-app", "bare") == "app\n4242\n"


def test_once_runs_once_in_a_boot_without_a_disk(api):
    step = shell("echo $((1 + 41)) >>/tmp/count", run="once", name="a")
    for _ in range(2):
        provision(api, [step, shell("true")])
    provision(api, [{**step, "name": "b", "timeout_s": 5}])
    assert run(api, "cat /tmp/count") == "42\n"
    assert "skipped, it has succeeded before: shell, inline: b" in log(api, tail=3)
    failing = shell("echo x >>/tmp/count; false", run="once")
    for _ in range(2):
        provision(api, [failing], expect=424)
    assert run(api, "cat /tmp/count; rm /tmp/count") == "42\nx\nx\n"
    guest.do(api, "reset")
    guest.wait_ready(api)
    provision(api, [step])
    assert run(api, "cat /tmp/count; rm /tmp/count") == "42\n"


def test_a_long_inline_and_much_output(api):
    """More than the log keeps, and than memory should hold; and an inline text that is too long for a command line."""
    since = api.get("/v1/vms").json["as_of_event"]
    result = provision(api, [shell("head -c 8000000 /dev/zero | tr '\\0' x; echo; echo end"), shell(": " + "y" * 100000 + "\necho long")])
    text = log(api)
    assert text.endswith("succeeded, " + text.rsplit("succeeded, ", 1)[1]) and "\nend\n=== step 1/2" in text and "long\n" in text
    assert len(text) <= 1 << 20 and "dropped" not in text
    told = [e for e in all_events(api, since) if e["operation_id"] == result.json["id"]]
    outputs = [e["data"] for e in told if e["type"] == "vm.provision_output" and e["data"]["step"] == 1]
    assert sum(len(o["data"]) for o in outputs) <= 64 << 10 and sum(len(o["data"]) + o["skipped"] for o in outputs) == 8000005
    states = [(e["data"]["step"], e["data"]["state"]) for e in told if e["type"] == "vm.provision_step"]
    assert states == [(1, "started"), (1, "succeeded"), (2, "started"), (2, "succeeded")]


def all_events(api, since):
    """The events behind `since` until now, by vmctl."""
    done = subprocess.run([VMCTL, "--socket", api.daemon.socket, "-o", "json", "events", "--since", str(since), "--no-follow"],
                          stdout=subprocess.PIPE, check=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_the_log_is_live(api):
    start = end_of_log(api)
    operation = begin(api, [shell("echo early; while [ ! -e /tmp/go ]; do sleep 0.1; done; echo late")])
    eventually(lambda: log(api, **{"from": start}), lambda text: "early\n" in text)
    assert api.get(f"/v1/operations/{operation}").json["state"] == "running"
    follow = subprocess.Popen([VMCTL, "--socket", api.daemon.socket, "log", "--provision", "-f", "web"], stdout=subprocess.PIPE)
    try:
        seen = b""
        while b"early\n" not in seen:
            seen += follow.stdout.readline()
        run(api, "touch /tmp/go")
        while b"provisioning is done" not in seen:
            line = follow.stdout.readline()
            assert line, seen
            seen += line
        assert b"late\n" in seen
    finally:
        follow.kill()
        follow.wait()
        follow.stdout.close()
    assert ended(api, operation).json["state"] == "succeeded"
    run(api, "rm /tmp/go")


# ---- vmctl ----

def vmctl(api, *words, code=0, **more):
    done = subprocess.run([VMCTL, "--socket", api.daemon.socket, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                          timeout=180, check=False, text=True, **more)
    assert done.returncode == code, f"{done.returncode}: {done.stdout}{done.stderr}"
    return done


def test_vmctl_provision(api, tmp_path):
    (tmp_path / "setup.sh").write_text("#!/bin/sh\necho script $WHO; cat /tmp/vmctl-file\n")
    (tmp_path / "file").write_bytes(b"file\n")
    done = vmctl(api, "provision", "web", "--inline", "echo inline; rm -f /tmp/vmctl-file", "--file", f"{tmp_path}/file:/tmp/vmctl-file:0600",
                 "--script", str(tmp_path / "setup.sh"), "--env", "WHO=me")
    text = done.stdout
    at = [text.index(part) for part in ("inline\n", "script me\nfile\n", "web provisioned\n")]
    assert at == sorted(at)
    assert run(api, "stat -c %a /tmp/vmctl-file; rm /tmp/vmctl-file") == "600\n"
    failed = vmctl(api, "provision", "web", "--inline", "echo words; exit 5", code=1)
    assert "words\n" in failed.stdout and "provision::failed" in failed.stderr and "exit code 5" in failed.stderr
    assert json.loads(vmctl(api, "-o", "json", "provision", "web").stdout)["method"] == "none"


def test_vmctl_creates_waits_and_provisions(vmmd, tmp_path):
    api = vmmd.client()
    api.daemon = vmmd
    spec = tmp_path / "spec.json"
    spec.write_text(json.dumps(guest.direct("microvm")))
    done = vmctl(api, "create", "fresh", "--spec", str(spec), "--inline", "echo hello from inside", "--provision", "--wait", "ready")
    assert "hello from inside\n" in done.stdout and "fresh provisioned\n" in done.stdout
    assert get_vm(api, "fresh")["spec"]["provision"] == [{"type": "shell", "inline": "echo hello from inside"}]
    # The daemon is killed in the midst of a step.
    operation = begin(api, [shell("true", run="once"), script("#!/bin/sh\necho begun; sleep 4813")], "fresh")
    eventually(lambda: log(api, "fresh"), lambda text: "step 2/2" in text)
    eventually(lambda: run(api, "ps -o args | grep -c '^sleep 4813'; exit 0", "fresh"), lambda n: n == "1\n")
    vmmd.kill9()
    vmmd.start()
    assert ended(api, operation).code == "operation::interrupted"
    assert get_vm(api, "fresh")["state"] == "running"
    guest.wait_ready(api, "fresh")
    assert "hello from inside" in log(api, "fresh")
    assert leftovers(api, "fresh").count("\n") <= 1
    provision(api, [shell("echo again", run="once"), shell("true", run="once")], "fresh")
    assert leftovers(api, "fresh") == "" and "step 2/2 skipped" in log(api, "fresh", tail=3)
    # A kill of the VM comes through at once.
    operation = begin(api, [shell("sleep 100")], "fresh")
    eventually(lambda: api.get(f"/v1/operations/{operation}").json["step"], lambda step: step == "run")
    guest.do(api, "kill", "fresh")
    assert ended(api, operation).code == "operation::cancelled"


def test_a_wait_that_is_hopeless_ends(vmmd):
    api = vmmd.client()
    guest.make(api, "deaf", start=True, **guest.deaf())
    operation = begin(api, [shell("true")], "deaf")
    assert api.get(f"/v1/operations/{operation}").json["step"] in (None, "ready")
    with open(f"/proc/{get_vm(api, 'deaf')['runtime']['pid']}/comm", encoding="utf-8"):
        os.kill(get_vm(api, "deaf")["runtime"]["pid"], signal.SIGKILL)
    answer = ended(api, operation)
    assert answer.status == 502 and "ended during vm.provision" in answer.json["detail"]
