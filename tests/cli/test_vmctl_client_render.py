"""How vmctl writes: problem documents, tables, JSON, and what a hostile or strange answer becomes."""
import json
import subprocess

from lib.vmmd import VMCTL
from scripted import Hangup, done, operation, problem, vm


def page(*items, cursor=None):
    return 200, {"items": list(items), "next_cursor": cursor, "as_of_event": 7}


def test_a_problem_in_full(peer):
    peer.on("GET", "/v1/vms/web", problem("vm::not_found", 404, "no VM web", causes=["first", "second\nline"]))
    run = peer.vmctl("status", "web")
    assert run.returncode == 3 and run.stdout == ""
    assert run.stderr == ("error: vm_manager::vm::not_found\n  message: no VM web\n  cause: first\n  cause: second\n         line\n"
                          "  help: do this next\n")


def test_exit_codes_by_code_and_by_status(peer):
    expected = {("vm::busy", 409): 4, ("api::invalid_field", 422): 2, ("wait::timed_out", 504): 6, ("api::unauthorized", 401): 7,
                ("new::one", 404): 3, ("new::one", 410): 3, ("new::one", 409): 4, ("new::one", 412): 4, ("new::one", 504): 6,
                ("new::one", 403): 7, ("new::one", 418): 1, ("lifecycle::destroyed", 410): 3, ("daemon::internal", 500): 1}
    for (code, status), exit_code in expected.items():
        peer.on("GET", "/v1/vms/web", problem(code, status))
        assert peer.vmctl("status", "web").returncode == exit_code, (code, status)


def test_colours_on_a_terminal_only_and_not_with_no_color(peer, terminal):
    peer.on("GET", "/v1/vms/web", problem("vm::not_found", 404, "no VM web"))
    assert "\x1b" not in peer.vmctl("status", "web").stderr
    run = terminal("status", "web")
    assert run.wait() == 3
    run.expect(b"do this next")
    assert b"\x1b[" in run.output
    run = terminal("status", "web", env={"NO_COLOR": "1"})
    assert run.wait() == 3
    run.expect(b"do this next")
    assert b"\x1b" not in run.output


def test_control_characters_are_made_visible(peer):
    hostile = "a\x1b[31mb\x07\x9b\nc\u009bd\x7f"
    peer.on("GET", "/v1/vms/web", (200, vm("web", labels={"k": hostile})))
    peer.on("GET", "/v1/vms/bad", problem("vm::not_found", 404, hostile, causes=[hostile], help=hostile))
    peer.on("GET", "/v1/vms[?].*", page(vm("web", state=hostile)))
    for args in (("status", "web"), ("status", "bad"), ("list",)):
        run = peer.vmctl(*args)
        text = run.stdout + run.stderr
        assert "\\x1b[31m" in text and "\\x9b" in text and "\\x7f" in text
        assert not any(char in text for char in "\x1b\x07\x9b\x7f"), args
    assert len(peer.vmctl("list").stdout.splitlines()) == 2, "a newline in a cell breaks no row"


def test_an_answer_that_is_no_problem_document(peer):
    for status, body in ((431, b"<html>too large</html>"), (500, b""), (502, b'{"x":1}'), (400, b"[]")):
        peer.on("GET", "/v1/vms/web", (status, body))
        run = peer.vmctl("status", "web")
        assert run.returncode in (1, 2) and str(status) in run.stderr and "vm_manager::" in run.stderr
    peer.on("GET", "/v1/vms/web", (200, b"not json"))
    assert peer.vmctl("status", "web").returncode == 1


def test_a_connection_that_ends_early(peer):
    def cut(request):
        request.send(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{")

    def hang_up(_):
        raise Hangup

    for script in (cut, hang_up):
        peer.on("GET", "/v1/vms/web", script)
        run = peer.vmctl("status", "web")
        assert run.returncode == 5 and "was lost" in run.stderr


def test_list_is_aligned_and_never_cut(peer):
    long_name = 63 * "x"
    tap = vm("b", spec={"vcpus": 255, "memory_mb": 123456, "network": {"type": "tap", "bridge": "br-long-name"}},
             runtime={"pid": 4242, "ssh_host_port": 40022})
    peer.on("GET", "/v1/vms.*", page(vm("a"), tap, vm(long_name)))
    lines = peer.vmctl("list").stdout.splitlines()
    assert lines[0].split() == ["NAME", "STATE", "BACKEND", "VCPUS", "MEM", "NETWORK", "PID", "SSH", "IP", "AGE"]
    assert lines[2].split()[:-1] == ["b", "running", "noop", "255", "123456MiB", "tap:br-long-name", "4242", ":40022", "-"]
    assert lines[3].startswith(long_name + "  running")
    for column in ("STATE", "BACKEND", "VCPUS", "NETWORK", "PID", "SSH", "IP", "AGE"):
        at = lines[0].index(column)
        assert all(line[at - 1] == " " and line[at] != " " for line in lines), column
    assert all(line == line.rstrip() for line in lines)


def test_list_follows_cursors_and_passes_filters(peer):
    def pages(request):
        return page(vm("c")) if "cursor=n%2F%3D" in request.path else page(vm("a"), vm("b"), cursor="n/=")

    peer.on("GET", "/v1/vms.*", pages)
    run = peer.vmctl("list", "--state", "running", "--label", "a=b&c", "--label", "x=y", "--name", "w*", "--backend", "noop", "-o", "name")
    assert run.stdout == "a\nb\nc\n"
    assert peer.requests[0].path == "/v1/vms?limit=1000&state=running&backend=noop&name=w%2A&label=a%3Db%26c&label=x%3Dy"
    document = json.loads(peer.vmctl("list", "-o", "json").stdout)
    assert [item["name"] for item in document["items"]] == ["a", "b", "c"] and document["next_cursor"] is None


def test_an_empty_list(peer):
    peer.on("GET", "/v1/vms.*", page())
    run = peer.vmctl("list")
    assert (run.returncode, run.stdout) == (0, "") and "there are no VMs" in run.stderr
    assert peer.vmctl("list", "-o", "json").stdout != "" and peer.vmctl("list", "-o", "name").stdout == ""


def test_status_in_full(peer):
    document = vm("web", labels={"app": "shop"}, state="failed",
                  conditions=[{"type": "ready", "status": False, "reason": "starting", "message": "m", "since": ""}],
                  failure={"code": "vm_manager::x", "reason": "killed", "at": "T", "detail": "QEMU was killed"},
                  operation={"id": "op-9", "kind": "vm.start"})
    document["spec"]["network"]["forwards"] = [{"proto": "tcp", "host_ip": "127.0.0.1", "host_port": 8080, "guest_port": 80}]
    peer.on("GET", "/v1/vms/web", (200, document))
    text = peer.vmctl("status", "web").stdout
    for part in ("Name:        web", "State:       failed", "Memory:      512 MiB", "user (SLIRP)", "127.0.0.1:8080 -> 80/tcp", "app=shop",
                 "ready no (starting): m", "QEMU was killed", "vm.start op-9", "vmctl explain web"):
        assert part in text, part
    assert json.loads(peer.vmctl("status", "web", "-o", "json").stdout) == document
    assert len(json.loads(peer.vmctl("status", "web", "web", "-o", "json").stdout)["items"]) == 2


def test_documents_without_a_table(peer):
    peer.on("GET", "/v1/host", (200, {"hostname": "h", "cpu": {"count": 2, "model": None}, "tools": [{"name": "qemu-img", "present": True}],
                                      "limits": {}}))
    assert peer.vmctl("host").stdout == ("hostname: h\ncpu:\n  count: 2\n  model: -\ntools:\n  -\n    name: qemu-img\n    present: yes\n"
                                         "limits: -\n")
    assert peer.vmctl("host", "-o", "name").stdout == "h\n"
    peer.on("GET", "/v1/vms/web/explain", (200, {
        "id": "i", "name": "web", "state": "failed", "failure": None, "exit_status": 1, "signal": None, "stderr_tail": "one\r\n\x1btwo\n",
        "console_tail": None, "operation": done(),
        "transitions": [{"at": "T1", "from": None, "to": "preparing", "cause": "create"}, {"at": "T2", "from": "running", "to": "failed",
                                                                                           "cause": "exit"}]}))
    text = peer.vmctl("explain", "web").stdout
    assert "web is failed\n  T1  preparing: create\n  T2  running -> failed: exit\n" in text
    assert "operation: vm.start succeeded (op-1)" in text and "stderr_tail:\n  one\n  \\x1btwo\n" in text


def test_ops(peer):
    listing = {"items": [operation(), done(ident="op-2", vm="db")], "next_cursor": None, "as_of_event": 1}
    peer.on("GET", "/v1/operations.*", (200, listing))
    lines = peer.vmctl("ops").stdout.splitlines()
    assert lines[0].split() == ["ID", "KIND", "SUBJECT", "STATE", "STEP", "AGE"] and lines[2].split()[:5] == ["op-2", "vm.start", "db", "succeeded",
                                                                                                        "-"]
    assert peer.vmctl("ops", "list", "-o", "name", "--state", "running", "-n", "5").stdout == "op-1\nop-2\n"
    assert peer.requests[-1].path == "/v1/operations?limit=5&state=running"
    peer.on("GET", "/v1/operations/op-1", (200, operation("failed", at=1, error=problem("io", 500, "broken", causes=["EIO"])[1])))
    text = peer.vmctl("ops", "show", "op-1").stdout
    assert "Step:        reserve succeeded (0 ms)" in text and "vm_manager::io" in text and "EIO" in text
    peer.on("DELETE", "/v1/operations/op-1", (200, operation("cancelled")))
    assert peer.vmctl("ops", "cancel", "op-1").stdout == "operation op-1 cancelled\n"
    assert peer.vmctl("ops", "cancel").returncode == 2 and peer.vmctl("ops", "undo").returncode == 2


def test_a_reader_that_goes_away_ends_vmctl_quietly(peer):
    peer.on("GET", "/v1/vms.*", page(*[vm(f"vm-{i:05}") for i in range(5000)]))
    vmctl = peer.popen("list", text=True)
    assert vmctl.stdout.readline().startswith("NAME")
    vmctl.stdout.close()
    assert vmctl.wait(60) == 0 and vmctl.stderr.read() == ""
    vmctl.stderr.close()


def test_a_full_stdout_is_a_failure(peer):
    peer.on("GET", "/v1/vms.*", page(vm("a")))
    with open("/dev/full", "wb") as full:
        run = subprocess.run([VMCTL, "list"], env=peer.env(), stdout=full, stderr=subprocess.PIPE, text=True, timeout=30, check=False)
    assert run.returncode == 1 and "No space left" in run.stderr


def test_the_token_goes_to_tcp_only(peer):
    peer.on("GET", "/v1/vms.*", page(vm("a")))
    assert peer.vmctl("list", env={"VMMD_TOKEN": "secret"}).returncode == 0
    assert peer.requests[0].headers["Authorization"] is None
    assert peer.vmctl("list", env={"VMMD_TOKEN": "a\nb"}).returncode == 2


def test_names_are_encoded(peer):
    peer.on("GET", ".*", problem("vm::not_found", 404))
    for name, path in (("a/b", "/v1/vms/a%2Fb"), ("..", "/v1/vms/.."), ("ü?x#", "/v1/vms/%C3%BC%3Fx%23")):
        assert peer.vmctl("status", name).returncode == 3
        assert peer.requests[-1].path == path
