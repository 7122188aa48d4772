"""autostart: which VMs start with the host, in which order, and what becomes of the others. A boot is faked by another
boot id in the data directory; a noop VM that ran is then found gone by its label noop.adopt."""
import os
import threading
import time

from lib.metrics import limit_used
from lib.policy import ends, explain, starts, told
from lib.vms import do, eventually, get_vm, make_vm, settled


def fake_boot(vmmd, kill=False):
    """The host goes down and comes up again."""
    if vmmd.running():
        if kill:
            vmmd.kill9()
        else:
            vmmd.stop()
    with open(os.path.join(vmmd.data_dir, "boot_id"), "w", encoding="utf-8") as file:
        file.write("another boot of the host\n")
    vmmd.start()
    return vmmd.client()


def state(api, name):
    return get_vm(api, name)["state"]


def comes_up(api, *names):
    for name in names:
        eventually(lambda name=name: state(api, name), lambda now: now == "running")


def row_is_done(vmmd):
    eventually(lambda: os.path.exists(os.path.join(vmmd.data_dir, "autostart")), lambda there: not there)


def begun(api):
    """Names in the order in which their starts began, and when each start began and ended."""
    items = [item for item in api.get("/v1/operations").json["items"] if item["kind"] == "vm.start"]
    items.sort(key=lambda item: item["created_at"])
    return [(item["target"]["vm_name"], item["created_at"], item["finished_at"]) for item in items]


def test_autostart_starts_with_the_host_and_not_with_the_daemon(vmmd, api):
    make_vm(api, "one", autostart=True)
    make_vm(api, "two")
    vmmd.restart()
    time.sleep(0.7)
    assert state(vmmd.client(), "one") == "prepared"
    api = fake_boot(vmmd)
    comes_up(api, "one")
    assert state(api, "two") == "prepared"


def test_vms_start_in_order_of_names_one_after_another(vmmd, api):
    for name in ("c", "a", "d", "b"):
        make_vm(api, name, autostart=True, labels={"noop.delay_ms.vm.start:spawn": "150"})
    api = fake_boot(vmmd)
    comes_up(api, "a", "b", "c", "d")
    row = begun(api)
    assert [name for name, _, _ in row] == ["a", "b", "c", "d"]
    for before, after in zip(row, row[1:]):
        assert before[2] <= after[1], "one began before the other had ended"
    row_is_done(vmmd)


def test_start_that_fails_does_not_stop_the_row(vmmd, api):
    make_vm(api, "a", autostart=True, labels={"noop.fail": "vm.start:spawn"})
    make_vm(api, "b", autostart=True)
    api = fake_boot(vmmd)
    comes_up(api, "b")
    assert state(api, "a") == "failed"


def test_vm_in_the_row_can_be_waited_for(vmmd, api):
    make_vm(api, "a", autostart=True, labels={"noop.delay_ms.vm.start:prepare": "600000"})
    make_vm(api, "b", start=True, autostart=True)
    do(api, "stop", "b")
    api = fake_boot(vmmd)
    starts_a = eventually(lambda: get_vm(api, "a")["operation"], bool)
    answers = []
    thread = threading.Thread(target=lambda: answers.append(api.get("/v1/vms/b/wait", query={"for": "state:running", "timeout": 60})))
    thread.start()
    eventually(lambda: limit_used(api, "waits"), lambda n: n == 1)
    assert state(api, "b") == "stopped"
    assert api.delete(f"/v1/operations/{starts_a}").status in (200, 202)
    thread.join()
    assert answers[0].status == 200, answers


def test_kill_9_in_the_middle_of_the_row_loses_nobody(vmmd, api):
    for name in ("a", "b", "c", "d"):
        make_vm(api, name, autostart=True, labels={"noop.delay_ms.vm.start:spawn": "60000"} if name == "b" else {})
    api = fake_boot(vmmd)
    eventually(lambda: get_vm(api, "b")["operation"], lambda operation: operation is not None)
    vmmd.kill9()  # b is being started, c and d have their turn still to come
    vmmd.start()
    api = vmmd.client()
    eventually(lambda: get_vm(api, "b")["operation"], lambda operation: operation is not None)
    api.delete(f"/v1/operations/{get_vm(api, 'b')['operation']}")
    comes_up(api, "a", "c", "d")
    assert starts(api, "a") == 1 and starts(api, "c") == 1 and starts(api, "d") == 1
    row_is_done(vmmd)
    vmmd.restart()
    time.sleep(0.7)
    assert state(vmmd.client(), "b") == "prepared", "the row is over"


def test_vm_that_somebody_stopped_in_the_middle_of_the_row_stays_stopped(vmmd, api):
    make_vm(api, "a", autostart=True)
    make_vm(api, "b", autostart=True, labels={"noop.delay_ms.vm.start:spawn": "60000"})
    make_vm(api, "c", start=True, autostart=True)
    do(api, "stop", "c")
    api = fake_boot(vmmd)
    eventually(lambda: get_vm(api, "b")["operation"], lambda operation: operation is not None)
    do(api, "stop", "a")  # it had its turn
    do(api, "stop", "c")  # its turn was to come
    vmmd.kill9()
    vmmd.start()
    api = vmmd.client()
    eventually(lambda: get_vm(api, "b")["operation"], lambda operation: operation is not None)
    api.patch("/v1/vms/b", {"labels": {"noop.delay_ms.vm.start:spawn": None}})
    do(api, "kill", "b")
    row_is_done(vmmd)
    assert (state(api, "a"), state(api, "c")) == ("stopped", "stopped")


def test_vm_that_ran_when_the_host_went_down_stays_stopped_without_autostart(vmmd, api):
    make_vm(api, "one", start=True, restart="always", labels={"noop.adopt": "nothing"})
    make_vm(api, "two", start=True, restart="always", autostart=True, labels={"noop.adopt": "nothing"})
    since = settled(api)
    api = fake_boot(vmmd, kill=True)
    comes_up(api, "two")
    time.sleep(1.5)
    one = get_vm(api, "one")
    assert one["state"] == "stopped" and one["failure"] is None
    changed = told(api, since, "vm.state_changed", 3)
    assert {"from": "running", "to": "stopped", "cause": "the host was restarted"} in changed
    assert explain(api, "one")["next_at"] is None and starts(api, "one") == 0


def test_restart_that_waited_when_the_host_went_down_is_forgotten(daemons):
    vmmd = daemons(config="restart_delay_ms = 6000\n")
    for name, autostart in (("one", False), ("two", True)):
        make_vm(vmmd.client(), name, start=True, restart="always", autostart=autostart)
    for name in ("one", "two"):
        ends(vmmd.client(), "killed:9", name)
    api = fake_boot(vmmd, kill=True)
    comes_up(api, "two")
    time.sleep(6.8)
    assert state(api, "one") == "failed" and starts(api, "one") == 0
    assert explain(api, "one") == {"policy": "always", "count": 0, "next_at": None, "given_up": False}
    assert starts(api, "two") == 1


def test_start_by_the_row_that_fails_follows_the_restart_policy(daemons):
    vmmd = daemons(config="restart_delay_ms = 20\nrestart_max = 1000\n")
    make_vm(vmmd.client(), autostart=True, restart="on-failure", labels={"noop.fail": "vm.start:spawn"})
    api = fake_boot(vmmd)
    eventually(lambda: get_vm(api)["failure"], lambda failure: failure is not None)
    api.patch("/v1/vms/web", {"labels": {"noop.fail": None}})
    comes_up(api, "web")


def test_vm_made_during_this_boot_starts_with_the_next(vmmd, api):
    make_vm(api, "a", autostart=True, labels={"noop.delay_ms.vm.start:spawn": "60000"})
    api = fake_boot(vmmd)
    eventually(lambda: get_vm(api, "a")["operation"], lambda operation: operation is not None)
    make_vm(api, "b", autostart=True)
    api.delete(f"/v1/operations/{get_vm(api, 'a')['operation']}")
    row_is_done(vmmd)
    assert state(api, "b") == "prepared"
    api.patch("/v1/vms/a", {"spec": {"autostart": False}})
    api = fake_boot(vmmd)
    comes_up(api, "b")
    assert starts(api, "a") == 1
