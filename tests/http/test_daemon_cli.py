"""vmmd's own flags, config and refusals."""
import os
import re
import signal
import sqlite3
import subprocess
import time

import pytest

from lib.vmmd import SLOW, VMMD, run_vmmd
from lib.vms import make_vm


def dirs(path):
    return ["--data-dir", str(path / "d"), "--runtime-dir", str(path / "r"), "--socket", str(path / "s")]


def test_version_is_printed(tmp_path):
    done = run_vmmd("--version")
    assert done.returncode == 0 and re.match(r"^vmmd \d+\.\d+", done.stdout)


def test_help_names_every_flag():
    done = run_vmmd("--help")
    assert done.returncode == 0
    for flag in ("--config", "--data-dir", "--runtime-dir", "--socket", "--listen", "--no-auth", "--log-level", "--check", "--version"):
        assert flag in done.stdout, flag


@pytest.mark.parametrize("args", [
    ["--nonsense"], ["extra"], ["--data-dir"], ["--log-level", "loud"], ["--socket", ""], ["--listen"],
])
def test_bad_flag_is_a_usage_error(tmp_path, args):
    done = run_vmmd(*dirs(tmp_path), *args)
    assert done.returncode == 2 and done.stderr.strip()
    assert not (tmp_path / "d").exists()


def test_socket_path_that_is_too_long_is_told(tmp_path):
    done = run_vmmd("--data-dir", str(tmp_path / "d"), "--runtime-dir", str(tmp_path / "r"), "--socket", "/tmp/" + "x" * 200)
    assert done.returncode in (1, 2) and "socket" in done.stderr


def config(tmp_path, text):
    path = tmp_path / "vmmd.conf"
    path.write_text(text)
    return run_vmmd(*dirs(tmp_path), "--config", str(path))


@pytest.mark.parametrize("text, line", [
    ("nonsense = 1\n", 1),
    ("# a comment\n\nnonsense = 1\n", 3),
    ("no equals sign here\n", 1),
    ("log_level = loud\n", 1),
    ("= x\n", 1),
    ("# fine\nlog_level = info\nlog_levle = info\n", 3),
])
def test_bad_config_is_refused_with_its_line(tmp_path, text, line):
    done = config(tmp_path, text)
    assert done.returncode in (1, 2)
    assert f"vmmd.conf:{line}" in done.stderr, done.stderr


def test_missing_config_is_refused(tmp_path):
    done = run_vmmd(*dirs(tmp_path), "--config", str(tmp_path / "none.conf"))
    assert done.returncode in (1, 2) and "none.conf" in done.stderr


def test_comments_and_blank_lines_of_a_config_are_fine(daemons):
    assert daemons(config="# comment\n\nlog_level = debug\n").running()


def test_second_daemon_on_the_same_data_is_refused(vmmd, tmp_path):
    done = run_vmmd("--data-dir", vmmd.data_dir, "--runtime-dir", str(tmp_path / "r"), "--socket", str(tmp_path / "s"))
    assert done.returncode == 1
    assert vmmd.data_dir in done.stderr and str(vmmd.pid) in done.stderr
    assert vmmd.client().get("/v1/health").status == 200


def test_second_daemon_on_the_same_socket_is_refused(vmmd, tmp_path):
    done = run_vmmd("--data-dir", str(tmp_path / "d"), "--runtime-dir", str(tmp_path / "r"), "--socket", vmmd.socket)
    assert done.returncode == 1 and vmmd.socket in done.stderr
    assert vmmd.client().get("/v1/health").status == 200


def test_check_of_a_sound_database_passes(vmmd, api):
    make_vm(api)
    vmmd.stop()
    done = run_vmmd("--data-dir", vmmd.data_dir, "--check")
    assert done.returncode == 0, done
    vmmd.start()


def test_check_of_a_damaged_database_fails(vmmd, api):
    for number in range(20):
        make_vm(api, f"v{number}", labels={"filler": "x" * 100})
    vmmd.stop()
    path = os.path.join(vmmd.data_dir, "vmmd.db")
    with open(path, "r+b") as file:
        size = os.path.getsize(path)
        for offset in range(4096, size, 4096):
            file.seek(offset)
            file.write(b"\xa5" * 64)
    done = run_vmmd("--data-dir", vmmd.data_dir, "--check")
    assert done.returncode == 1 and (done.stdout + done.stderr).strip()


def test_database_that_is_none_is_refused(tmp_path):
    (tmp_path / "d").mkdir(mode=0o700)
    (tmp_path / "d" / "vmmd.db").write_bytes(b"this is no database\n" * 500)
    done = run_vmmd(*dirs(tmp_path))
    assert done.returncode == 1 and "vmmd.db" in done.stderr


def test_newer_schema_is_refused(vmmd, api):
    make_vm(api)
    vmmd.stop()
    path = os.path.join(vmmd.data_dir, "vmmd.db")
    with sqlite3.connect(path) as db:
        version = db.execute("PRAGMA user_version").fetchone()[0]
        assert version >= 1
        db.execute(f"PRAGMA user_version = {version + 1}")
    db.close()
    done = run_vmmd(*vmmd.argv()[1:])
    assert done.returncode == 1 and "newer" in done.stderr
    done = run_vmmd("--data-dir", vmmd.data_dir, "--check")
    assert done.returncode == 1
    with sqlite3.connect(path) as db:
        db.execute(f"PRAGMA user_version = {version}")
    db.close()
    vmmd.start()
    assert api.get("/v1/vms/web").status == 200


def test_data_directory_that_cannot_be_made_is_told(tmp_path):
    (tmp_path / "file").write_text("x")
    done = run_vmmd("--data-dir", str(tmp_path / "file" / "d"), "--runtime-dir", str(tmp_path / "r"), "--socket", str(tmp_path / "s"))
    assert done.returncode == 1 and "file" in done.stderr


def test_database_is_its_owners_alone(vmmd):
    assert os.stat(os.path.join(vmmd.data_dir, "vmmd.db")).st_mode & 0o077 == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_ends_it_with_success(vmmd, number):
    vmmd.proc.send_signal(number)
    assert vmmd.proc.wait(60 * SLOW) == 0


def test_sighup_is_survived_and_reloads(vmmd, api):
    vmmd.proc.send_signal(signal.SIGHUP)
    time.sleep(0.3)
    assert api.get("/v1/health").status == 200 and vmmd.running()


def test_readiness_is_told_to_systemd(daemons, tmp_path):
    import socket
    path = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(path)
        sock.settimeout(60)
        daemon = daemons(env={"NOTIFY_SOCKET": path})
        said = b""
        while b"READY=1" not in said:
            said = sock.recv(4096)
        daemon.stop()
        while b"STOPPING=1" not in said:
            said = sock.recv(4096)


def test_socket_of_systemd_is_used(tmp_path, daemons):
    import socket
    daemon = daemons(start=False)
    path = os.path.join(daemon.dir, "activated.sock")
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(path)
        sock.listen()
        daemon.socket = path
        shell = 'exec 3<&0 </dev/null; export LISTEN_FDS=1 LISTEN_PID=$$; exec "$@"'
        argv = [VMMD, "--data-dir", daemon.data_dir, "--runtime-dir", daemon.runtime_dir]
        with open(daemon.log_path, "ab") as log:
            daemon.proc = subprocess.Popen(["sh", "-c", shell, "sh", *argv], stdin=sock, stdout=log, stderr=log)
        assert daemon.client().get("/v1/health").status == 200
    daemon.stop()
    assert os.path.exists(path), "the socket is systemd's"
