"""What is asked of vmmd when it is made to crash: a row for each operation, with the state of the VM that it comes from and its goal.

A new operation is a new row; its points are learnt by running it once (crash.py)."""
import os
from dataclasses import dataclass, field
from typing import Callable, Optional

from lib.conform import ROOT

GUEST = os.environ.get("VMMD_GUEST", os.path.join(ROOT, "build", "guest"))
FORWARDS = {"network": {"type": "user", "forwards": [{"guest_port": 80}, {"guest_port": 53, "proto": "udp"}]}}


@dataclass
class Case:
    name: str
    verb: str                       # create, start, …, destroy, patch, cancel
    state: Optional[str] = None     # of the VM before; None: there is none
    goal: Optional[str] = None      # of the VM when it is done; None: there is none
    body: Optional[dict] = None
    labels: dict = field(default_factory=dict)   # while it crashes; gone before the retry
    kept: dict = field(default_factory=dict)     # from its making to its end
    spec: dict = field(default_factory=dict)
    start: bool = False             # create does
    holder: Optional[tuple] = None  # (verb, step): an operation that holds the VM in this step
    fails: Optional[str] = None     # the code that it fails with, when it is let
    retried: Optional[str] = "goal"  # the goal of a retry without the labels
    also: tuple = ()                # further states that the VM may be left in
    backend: str = "noop"
    points: Optional[Callable] = None  # which of those that were learnt; None: all
    again: tuple = ()               # points after which the next daemon is made to crash at each of its own
    again_points: Optional[Callable] = None
    until: Optional[str] = None     # a state that comes by itself after the request
    bridge: bool = False            # in a network namespace with a bridge br0
    pulls: bool = False             # create brings its image by a URL
    image: Optional[str] = None     # of no VM, but of an image of this format (crash_images.py)


def slow(step):
    return {f"noop.delay_ms.{step}": "20000"}


def fail(step):
    return {"noop.fail": step}


def after(*names):
    return tuple(names)


# What comes by chance beside an operation, or behind it: an agent's answer, the steps' events 50 ms later.
BY_CHANCE = ("store:vm:", "store:events:", "store:prune:")


def between(first, last):
    """Of the points as they were passed, those from `first` to `last`, which are there whatever the moment."""
    return lambda points: [point for point in points[points.index((first, 1)):points.index((last, 1)) + 1]
                           if not point[0].startswith(BY_CHANCE)]


NOOP = [
    Case("create", "create", None, "prepared", spec=FORWARDS, again=after("op:vm.create:build:after")),
    Case("create and start", "create", None, "running", start=True, spec=FORWARDS, again=after("op:vm.create:greet:before")),
    Case("create that fails", "create", None, None, labels=fail("build"), fails="image::overlay_creation_failed"),
    Case("create and start that fails", "create", None, None, start=True, labels=fail("verify"), spec=FORWARDS,
         fails="qemu::qmp_command_failed"),
    Case("start, prepared", "start", "prepared", "running", again=after("op:vm.start:spawn:after")),
    Case("start, stopped", "start", "stopped", "running"),
    Case("start, failed", "start", "failed", "running"),
    Case("start that fails", "start", "stopped", "failed", labels=fail("verify"), fails="qemu::qmp_command_failed",
         retried="running"),
    Case("start that fails to be written", "start", "stopped", "stopped", labels=fail("persist"), fails="io",
         retried="running"),
    Case("stop, running", "stop", "running", "stopped", again=after("op:vm.stop:press:after")),
    Case("stop, suspended", "stop", "suspended", "stopped", also=("running",)),
    Case("stop by TERM", "stop", "running", "stopped", body={"timeout_s": 0}),
    Case("stop by KILL", "stop", "running", "stopped", body={"timeout_s": 0}, labels={"noop.ignore_term": "refused"}),
    Case("stop, stopped", "stop", "stopped", "stopped"),
    Case("kill, running", "kill", "running", "stopped", again=after("op:vm.kill:intent:durable")),
    Case("kill, suspended", "kill", "suspended", "stopped"),
    Case("reset, running", "reset", "running", "running"),
    Case("reset, suspended", "reset", "suspended", "running"),
    Case("reset that fails", "reset", "running", "running", labels=fail("reset"), fails="qemu::qmp_command_failed"),
    Case("restart, running", "restart", "running", "running",
         again=after("op:vm.restart:press:after", "op:vm.restart:greet:after")),
    Case("restart, suspended", "restart", "suspended", "running"),
    Case("restart, process gone", "restart", "running", "running", labels={"noop.adopt": "nothing"},
         points=between("op:vm.restart:intent:durable", "op:vm.restart:persist:before")),
    Case("suspend", "suspend", "running", "suspended"),
    Case("suspend, found suspended", "suspend", "running", "suspended", labels={"noop.adopt": "suspended"},
         points=between("op:vm.suspend:suspend:after", "store:vm.suspend:succeeded:before")),
    Case("suspend that fails to be written", "suspend", "running", "running", labels=fail("persist"), fails="io",
         retried="suspended"),
    Case("resume", "resume", "suspended", "running"),
    Case("guest powers off", "suspend", "running", "stopped", until="stopped",
         labels={"noop.exit": "guest-off", "noop.exit_step": "announce", "noop.exit_after_ms": "200", "noop.adopt": "guest-off"},
         points=lambda points: [point for point in points if point[0].startswith("store:vm:")]),
    Case("process is killed", "suspend", "running", "failed", until="failed",
         labels={"noop.exit": "killed:9", "noop.exit_step": "announce", "noop.exit_after_ms": "200", "noop.adopt": "killed:9"},
         points=lambda points: [point for point in points if point[0].startswith("store:vm:")]),
    Case("resume, found running", "resume", "suspended", "running", labels={"noop.adopt": "running"},
         points=between("op:vm.resume:resume:after", "store:vm.resume:succeeded:before")),
    Case("provision", "provision", "running", "running", body={"steps": [{"type": "shell", "script": "#!/bin/sh", "run": "once"}]},
         kept={"noop.exec": "0"}),
    Case("destroy, prepared", "destroy", "prepared", None, spec=FORWARDS),
    Case("destroy, running", "destroy", "running", None, spec=FORWARDS, again=after("op:vm.destroy:kill:after")),
    Case("destroy, suspended", "destroy", "suspended", None),
    Case("destroy, stopped", "destroy", "stopped", None),
    Case("destroy, failed", "destroy", "failed", None),
    Case("destroy that fails", "destroy", "running", "stopped", labels=fail("remove"), fails="io", retried=None),
    Case("patch, prepared", "patch", "prepared", "prepared", body={"labels": {"a": "b"}, "spec": {"vcpus": 3}}),
    Case("patch, running", "patch", "running", "running", body={"labels": {"a": "b"}, "spec": {"restart": "always"}}),
    Case("cancel of a start", "cancel", "prepared", "prepared", labels=slow("greet"), holder=("start", "greet")),
    Case("cancel of a create", "cancel", None, None, labels=slow("build"), holder=("create", "build")),
    Case("cancel of a suspend", "cancel", "running", "running", labels=slow("suspend"), holder=("suspend", "suspend")),
    Case("kill that cancels a start", "kill", "prepared", "prepared", labels=slow("greet"), holder=("start", "greet"),
         again=after("op:vm.kill:intent:durable")),
    Case("kill that cancels a restart", "kill", "running", "stopped", labels={"noop.delay_ms.spawn": "4000"}, holder=("restart", "spawn"),
         also=("running",)),
    Case("kill that cancels a create", "kill", None, None, labels=slow("build"), holder=("create", "build"),
         fails="lifecycle::destroyed"),
    Case("destroy that cancels a start", "destroy", "prepared", None, labels=slow("greet"), holder=("start", "greet"),
         again=after("op:vm.destroy:intent:durable")),
    Case("destroy that cancels a create", "destroy", None, None, labels=slow("build"), holder=("create", "build")),
    Case("destroy behind a destroy", "destroy", "running", None, labels={"noop.delay_ms.kill": "800"}, holder=("destroy", "kill"),
         again=after("store:vm.destroy:succeeded:after")),
]

KERNEL = {"kernel": os.path.join(GUEST, "vmlinuz"), "initrd": os.path.join(GUEST, "initrd.img"),
          "cmdline": "console=ttyS0 quiet rdinit=/bin/sh"}
DIRECT = {"boot": KERNEL, "memory_mb": 128, "network": {"type": "user", "forwards": [{"guest_port": 80}]}}
WITH_DISK = {**DIRECT, "image": os.path.join(GUEST, "tiny.qcow2"), "cloud_init": {"hostname": "web"}}
TAP = {**DIRECT, "network": {"type": "tap", "bridge": "br0"}}


def only(*names):
    """Of the points, these; each must be there."""
    def choose(points):
        missing = set(names) - {name for name, _ in points}
        assert not missing, f"not passed: {sorted(missing)}"
        return [point for point in points if point[0] in names and point[1] == 1]
    return choose


def qemu(name, verb, state, goal, points, **more):
    """A case with a real QEMU; sixty points in all, in the order of their effects on the host."""
    return Case("qemu: " + name, verb, state, goal, backend="qemu", points=only(*points), **{"spec": WITH_DISK, **more})


QEMU = [
    qemu("create", "create", None, "prepared",
         ["store:vm.create:running:after", "qemu:create:dir-made", "qemu:create:seed-written", "qemu:create:key-written",
          "qemu:create:overlay-made", "qemu:create:synced", "op:vm.create:build:after", "store:vm.create:succeeded:before",
          "store:vm.create:succeeded:after"]),
    qemu("create and start", "create", None, "running",
         ["op:vm.create:build:after", "qemu:prepare:run-dir-made", "qemu:spawn:process-there", "op:vm.create:greet:before",
          "op:vm.create:verify:after", "store:vm.create:succeeded:before"], start=True,
         again=after("qemu:spawn:process-there"),
         again_points=only("recover:adopted", "qemu:kill:signalled", "qemu:end:sockets-there", "recover:kill:after",
                           "qemu:remove:run-dir-removed", "recover:remove:after")),
    qemu("start", "start", "prepared", "running",
         ["store:vm.start:running:after", "qemu:prepare:run-dir-made",
          "op:vm.start:prepare:after", "qemu:spawn:process-there", "op:vm.start:spawn:after", "op:vm.start:greet:after",
          "op:vm.start:verify:after", "store:vm.start:succeeded:before", "store:vm.start:succeeded:after"]),
    qemu("start with a tap", "start", "prepared", "running",
         ["qemu:prepare:tap-open", "qemu:spawn:process-there", "op:vm.start:verify:after"], spec=TAP, bridge=True),
    qemu("stop", "stop", "running", "stopped",
         ["store:vm.stop:running:after", "op:vm.stop:terminate:before", "qemu:end:sockets-there", "qemu:end:sockets-removed",
          "op:vm.stop:terminate:after", "store:vm.stop:succeeded:before", "store:vm.stop:succeeded:after"], body={"timeout_s": 0}),
    qemu("kill", "kill", "running", "stopped",
         ["op:vm.kill:kill:before", "qemu:kill:signalled", "qemu:end:sockets-there", "store:vm.kill:succeeded:before"]),
    qemu("suspend", "suspend", "running", "suspended",
         ["op:vm.suspend:suspend:after", "store:vm.suspend:succeeded:after"]),
    qemu("restart", "restart", "running", "running",
         ["op:vm.restart:press:before", "qemu:end:sockets-removed", "op:vm.restart:reserve:before", "op:vm.restart:prepare:after",
          "qemu:spawn:process-there", "op:vm.restart:greet:after", "op:vm.restart:verify:after"], body={"timeout_s": 0}),
    qemu("destroy, prepared", "destroy", "prepared", None,
         ["qemu:remove:run-dir-removed", "op:vm.destroy:remove:after"]),
    qemu("destroy, running", "destroy", "running", None,
         ["qemu:kill:signalled", "qemu:end:sockets-there", "op:vm.destroy:kill:after",
          "qemu:remove:run-dir-removed", "op:vm.destroy:remove:after", "store:vm.destroy:succeeded:after"]),
]

IMAGES = [
    Case("image: pull", "pull", None, "ready", image="qcow2"),
    Case("image: pull and convert", "pull", None, "ready", image="vmdk"),
    Case("image: convert", "convert", "ready", "ready", image="qcow2"),
    Case("image: delete", "delete", "ready", None, image="qcow2"),
    Case("image: pulled by a create", "create", None, "prepared", pulls=True, again=after("image:file-in-place"),
         points=lambda points: [point for point in points if "image" in point[0] or point[0].startswith(("op:vm.create:build", "store:vm.create"))]),
]

CASES = NOOP + IMAGES + QEMU
