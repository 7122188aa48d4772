"""The command line itself: prefixes, near misses, help, completion. No daemon is asked."""
import os
import re
import shutil
import subprocess

import pytest

from lib.vmmd import VMCTL

COMMANDS = ("create start stop kill reset restart suspend resume destroy list status explain wait log console provision exec ssh cp ssh-config events ops doctor adopt image host errors version "
            "completion help").split()


def vmctl(*args, env=None):
    return subprocess.run([VMCTL, *args], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=30, check=False,
                          env=dict(os.environ, VMMD_SOCKET="/nonexistent/vmmd.sock", **(env or {})))


def test_help_lists_every_command():
    for args in (("help",), ("--help",), ("-h",)):
        run = vmctl(*args)
        assert run.returncode == 0 and run.stderr == ""
        assert re.findall(r"^  ([a-z-]+) +[a-z]", run.stdout.split("Options of every")[0], re.M) == COMMANDS


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_a_command(command):
    pages = [vmctl(*args) for args in (("help", command), (command, "--help"), ("-h", command))]
    assert all(run.returncode == 0 and run.stdout == pages[0].stdout for run in pages)
    assert pages[0].stdout.startswith(f"vmctl {command}") and "--socket PATH" in pages[0].stdout


def test_unique_prefixes():
    assert vmctl("vers", "--help").stdout == vmctl("version", "--help").stdout
    assert vmctl("li", "--help").stdout == vmctl("list", "--help").stdout
    for prefix, candidates in (("st", "start, stop, status"), ("res", "reset, restart, resume"), ("e", "explain, exec, events, errors")):
        run = vmctl(prefix, "x")
        assert run.returncode == 2 and f"{prefix} is ambiguous: {candidates}" in run.stderr
    assert vmctl("").returncode == 2


@pytest.mark.parametrize("args,said", [
    (("lst",), "did you mean list?"), (("strat", "x"), "did you mean start?"), (("xyzzy",), "unknown command xyzzy"),
    (("list", "--lable", "a=b"), "did you mean --label?"), (("list", "-z"), "unknown option -z"), (("--nowait", "list"), "did you mean --no-wait?"),
    (("--state", "x", "list"), "unknown option --state"), (("start",), "start needs NAME"), (("status",), "status needs NAME"),
    (("list", "x"), "unexpected word x"), (("wait", "a", "b"), "unexpected word b"), (("stop", "x", "--timeout", "soon"), "--timeout takes"),
    (("stop", "x", "--timeout", "-1"), "--timeout takes"), (("-o",), "-o needs a value"), (("list", "-o", "yaml"), "-o takes table, json or name"),
    ((), "no command given"), (("help", "lst"), "did you mean list?"), (("completion", "ksh"), "bash, zsh and fish"),
    (("list", "--no-wait=1"), "takes no value"), (("help", "foo"), "unknown command foo\n"), (("create", "x", "--wait", "readyy"), "--wait takes a state or ready"), (("log", "x", "-n"), "-n needs a value"), (("ops", "list", "x"), "unexpected word x"),
])
def test_usage_errors(args, said):
    run = vmctl(*args)
    assert run.returncode == 2 and run.stdout == "" and said in run.stderr and "usage: vmctl" in run.stderr


def test_words_after_two_dashes_are_names():
    run = vmctl("status", "--", "--help")
    assert run.returncode == 5, "it asked for a VM of that name"


def completion(shell, tmp_path):
    run = vmctl("completion", shell)
    assert run.returncode == 0 and run.stderr == ""
    path = tmp_path / "vmctl"
    path.write_text(run.stdout)
    return path


@pytest.fixture
def fake_bin(tmp_path):
    """A directory with a vmctl that lists two VMs."""
    directory = tmp_path / "bin"
    directory.mkdir()
    script = directory / "vmctl"
    script.write_text('#!/bin/sh\n[ "$*" = "list -o name" ] && printf "web\\nwest\\n"\n')
    script.chmod(0o755)
    return f"{directory}:{os.environ['PATH']}"


@pytest.mark.parametrize("words,expected", [
    (["vmctl", "susp"], ["suspend"]), (["vmctl", "start", "we"], ["web", "west"]), (["vmctl", "-o", "js"], ["json"]),
    (["vmctl", "list", "--sta"], ["--state"]), (["vmctl", "list", "--state", "st"], ["stopped"]), (["vmctl", "completion", "z"], ["zsh"]),
    (["vmctl", "--socket", "/x", "stop", "web"], ["web"]), (["vmctl", "create", "--no-w"], ["--no-wait"]), (["vmctl", "help", "des"], ["destroy"]),
    (["vmctl", "ops", "ca"], ["cancel"]), (["vmctl", "list", "x"], []),
])
def test_bash_completes(tmp_path, fake_bin, words, expected):
    path = completion("bash", tmp_path)
    quoted = " ".join(f"'{word}'" for word in words)
    script = f"source {path}; COMP_WORDS=({quoted}); COMP_CWORD={len(words) - 1}; _vmctl; printf '%s\\n' \"${{COMPREPLY[@]}}\""
    run = subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=30, check=True, env=dict(os.environ, PATH=fake_bin))
    assert run.stdout.split() == expected and run.stderr == ""


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts_parse_and_know_every_command(shell, tmp_path):
    path = completion(shell, tmp_path)
    text = path.read_text()
    assert all(command in text for command in COMMANDS) and "vmctl list -o name" in text
    if shutil.which(shell):
        subprocess.run([shell, "-n", str(path)], check=True, timeout=30)


@pytest.mark.skipif(not shutil.which("fish"), reason="fish is not installed")
def test_fish_completes(tmp_path, fake_bin):
    path = completion("fish", tmp_path)
    for line, expected in (("vmctl susp", ["suspend"]), ("vmctl start we", ["web", "west"]), ("vmctl list --state st", ["stopped"])):
        run = subprocess.run(["fish", "-N", "-c", f"source {path}; complete -C '{line}'"], capture_output=True, text=True, timeout=30,
                             check=True, env=dict(os.environ, PATH=fake_bin, HOME=str(tmp_path)))
        assert [got.split("\t")[0] for got in run.stdout.splitlines()] == expected, line
