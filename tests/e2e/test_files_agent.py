"""Files of a guest without SSH: over its agent, held to the same as over SSH."""
import http.client
import threading

import pytest

from e2e import guest
from e2e.guest import eventually
from e2e.test_exec import run
from e2e.test_files import (  # noqa: F401
    FILES, put, test_a_directory_of_thousands, test_a_file_of_somebody_else_in_a_sticky_directory_is_not_replaced,
    test_a_full_disk_is_told_and_leaves_nothing,
    test_a_large_file_both_ways_in_constant_memory, test_a_second_put_replaces_and_keeps_the_mode,
    test_an_upload_that_breaks_off_leaves_what_was_there, test_bytes_and_mode_are_kept, test_errors_are_typed,
    test_files_without_a_size, test_list_mkdir_rename_delete, test_names_with_any_character,
    test_transfers_and_commands_do_not_wait_for_each_other, test_what_is_no_empty_directory_stays)
from e2e.test_vmctl_exec import test_cp_both_ways_and_recursive  # noqa: F401


@pytest.fixture(scope="module")
def api(shared_vmmd):
    """A guest with a user, and without a way to reach it by SSH."""
    api = shared_vmmd.client(timeout=300)
    api.daemon = shared_vmmd
    api.large = 3 << 20
    vm = guest.booted(api, "web", **guest.direct("microvm", memory_mb=512, cloud_init={"hostname": "web"}))
    assert guest.condition(vm, "ready")["reason"] == "agent"
    eventually(lambda: run(api, {"script": "id -u vm; exit 0", "user": "root"})["stdout"], lambda out: out != "")
    return api


@pytest.fixture
def daemon(api):
    return api.daemon


@pytest.fixture(autouse=True)
def ready(api):
    guest.bring_ready(api)


def open_put(api, path, size, *pieces):
    sock = api.connect(60)
    sock.sendall(f"PUT {FILES}?path={path} HTTP/1.1\r\nHost: vmmd\r\nContent-Length: {size}\r\n\r\n".encode())
    for piece in pieces:
        sock.sendall(piece)
    return sock


def answer_of(sock):
    answer = http.client.HTTPResponse(sock)
    answer.begin()
    return answer


def temps(api):
    return int(run(api, {"script": "ls -A /tmp | grep -c '^.vmmd-'; exit 0"})["stdout"])


def test_a_guest_without_the_user_is_told(api):
    as_root = lambda script: run(api, {"script": script, "user": "root"})
    assert as_root("sed -i 's/^vm:/wm:/' /etc/passwd")["exit_code"] == 0
    answer = api.get(FILES, query={"path": "/etc/passwd"})
    as_root("sed -i 's/^wm:/vm:/' /etc/passwd")
    assert answer.status == 422 and answer.context["pointer"] == "/spec/ssh/user"


def test_one_transfer_too_many_is_refused_and_the_others_go_on(api):
    socks = [open_put(api, f"/tmp/idle{i}", 3, b"x") for i in range(4)]
    answer = eventually(lambda: api.get(FILES, query={"path": "/etc/passwd"}), lambda a: a.status == 503)
    assert answer.code == "daemon::overloaded"
    for sock in socks:
        sock.sendall(b"yz")
        assert answer_of(sock).status == 200
        sock.close()
    assert api.get(FILES, query={"path": "/tmp/idle3"}).body == b"xyz"


def test_a_file_that_is_replaced_is_not_mixed_with_the_new_one(api):
    run(api, {"script": "head -c 8000000 /dev/zero >/tmp/old; echo new >/tmp/new"})
    sock = api.connect(60)
    sock.sendall(f"GET {FILES}?path=/tmp/old HTTP/1.1\r\nHost: vmmd\r\n\r\n".encode())
    answer = answer_of(sock)  # and reads slowly: the guest's side waits
    run(api, {"script": "mv /tmp/new /tmp/old"})
    with pytest.raises(http.client.IncompleteRead):
        answer.read()
    sock.close()


def test_what_another_wrote_into_an_upload_is_no_part_of_it(api):
    sock = open_put(api, "/tmp/mine", 300001, bytes(300000))
    eventually(lambda: temps(api), lambda n: n == 1)
    eventually(lambda: run(api, {"script": "cat /tmp/.vmmd-* | wc -c"})["stdout"].strip(), lambda n: n == "262144")
    run(api, {"script": "for f in /tmp/.vmmd-*; do echo more >>$f; done"})
    sock.sendall(b"x")
    answer = answer_of(sock)
    assert answer.status == 503 and b"guest::unavailable" in answer.read()
    sock.close()
    assert api.get(FILES, query={"path": "/tmp/mine"}).code == "guest::file_not_found"
    assert eventually(lambda: temps(api), lambda n: n == 0) == 0


@pytest.mark.parametrize("verb", ["reset", "kill"])
def test_a_guest_that_ends_fails_its_transfers(api, verb):
    run(api, {"script": "head -c 8000000 /dev/zero >/tmp/slow"})
    idle = open_put(api, "/tmp/idle", 600000, bytes(300000))
    busy = open_put(api, "/tmp/busy", 3 << 20)
    feed = threading.Thread(target=lambda: feed_all(busy, bytes(3 << 20)))
    eventually(lambda: temps(api), lambda n: n >= 1)
    feed.start()
    eventually(lambda: temps(api), lambda n: n == 2)
    guest.do(api, verb)
    if verb == "reset":
        guest.wait_ready(api)
        idle.sendall(bytes(300000))
    for sock in (idle, busy):
        assert answer_of(sock).status == 503
        sock.close()
    feed.join()


def feed_all(sock, data):
    try:
        sock.sendall(data)
    except OSError:
        pass
