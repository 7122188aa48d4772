#!/usr/bin/python3
"""Crashes vmmd at every crash point of every operation (daemon/base/crash.h), and looks at what the next daemon makes of it.

    tests/fault/crash.py [--backend noop|qemu|all] [--jobs N] [--only CASE] [--point POINT[#N]] [--list]

Each case of crash_cases.py is run once to learn the points it passes, then once for each of them: a VM in the state it comes from, the
request, the crash; then a new daemon, which must find
  - no process, file, socket, tap, port or key that no VM or operation has, and none missing (crash_world.py);
  - the VM in a state it may have, and the operation finished, undone, operation::interrupted, or never taken and without effect;
  - the same once more, when it is killed and started again: nothing changes;
  - one operation, and the goal, when the same request comes again with the same key;
  - nothing of the VM when it is destroyed.
After some points the next daemon is made to crash in its recovery, too, at each of the points of that. What is durable of an operation's
steps is a matter of moments, and with it the way of its recovery: a point that is not passed for that is counted as "another way".

The table is printed by case and written by point to build/check/crash.txt."""
import argparse
import collections
import concurrent.futures
import dataclasses
import os
import sys
import time
import traceback

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [HERE, os.path.dirname(HERE)]
ROOT = os.path.dirname(os.path.dirname(HERE))
os.environ.setdefault("VMMD_BIN", os.path.join(ROOT, "build-crash", "vmmd"))

import crash_cases  # noqa: E402
from crash_images import ImageRun, check_images, make_disk, remove_images  # noqa: E402
from crash_world import GONE, INTERRUPTED, Unreached, World, body_of, check_operation  # noqa: E402
from lib.vms import eventually  # noqa: E402

ELSEWHERE = "another way"


class Run:
    """One point of one case, from the VM that is made to nothing."""

    def __init__(self, world, number):
        self.world, self.case, self.api = world, world.case, world.api
        self.name = f"vm{number}"
        self.key = f"key-{number}"
        self.vm_id = None
        self.known = {}          # acknowledged operations: id: kind
        self.holder = None

    # --- before ---

    def prepare(self):
        """The VM in its state, held where the case wants that; then nothing moves."""
        case = self.case
        if case.state is not None:
            self.bring(case.state)
            if case.labels:
                self.set_labels(case.labels)
        if case.holder:
            verb, step = case.holder
            answer = self.hold(verb)
            assert answer.status == 202, answer
            self.holder = answer.json["id"]
            self.vm_id = answer.json["target"]["vm_id"]
            eventually(lambda: self.world.operations()[self.holder], lambda op: op["step"] == step)
        self.before = self.world.vm(self.vm_id) if self.vm_id else None
        self.seen = set(self.world.operations())

    def hold(self, verb):
        if verb == "create":
            return self.ask("POST", "/v1/vms", body_of(self.case, self.name))
        if verb == "destroy":
            return self.ask("DELETE", self.path())
        return self.ask("POST", f"{self.path()}/{verb}")

    def bring(self, state):
        case = self.case
        labels = {"noop.fail": "spawn"} if state == "failed" and not self.world.qemu else {}
        answer = self.api.post("/v1/vms", {"name": self.name, "backend": case.backend, "labels": {**labels, **case.kept}, "spec": case.spec},
                               prefer_wait=60)
        assert answer.status == 200, answer
        self.vm_id = answer.json["result"]["id"]
        if state != "prepared":
            self.verb("start", expect=500 if state == "failed" else 200)
            if labels:
                self.set_labels({"noop.fail": None})
        if state in ("running", "suspended") and not self.world.qemu:
            self.world.quiet()
        if state == "suspended":
            self.verb("suspend")
        if state == "stopped":
            self.verb("kill")
        assert self.world.vm(self.vm_id)["state"] == state

    def verb(self, verb, expect=200):
        answer = self.api.post(f"{self.path()}/{verb}", prefer_wait=60)
        assert answer.status == expect, answer

    def set_labels(self, labels):
        answer = self.api.patch(self.path(), {"labels": labels})
        assert answer.status == 200, answer

    def path(self):
        return f"/v1/vms/{self.vm_id}"

    # --- the request ---

    def ask(self, method, path, body=None, key=None, wait=None):
        headers = {"Idempotency-Key": key} if key else None
        answer = self.api.request(method, path, json=body, headers=headers, prefer_wait=wait)
        if answer.status in (200, 202) and "kind" in answer.json and method != "PATCH":
            self.known[answer.json["id"]] = answer.json["kind"]
        return answer

    def send(self, wait=None):
        case = self.case
        if case.verb == "create":
            return self.ask("POST", "/v1/vms", body_of(case, self.name), self.key, wait)
        if case.verb == "destroy":
            return self.ask("DELETE", self.path(), wait=wait)
        if case.verb == "patch":
            return self.ask("PATCH", self.path(), case.body)
        if case.verb == "cancel":
            return self.ask("DELETE", f"/v1/operations/{self.holder}")
        return self.ask("POST", f"{self.path()}/{case.verb}", case.body, self.key, wait)

    def send_and_crash(self):
        try:
            self.send()
        except GONE:
            pass
        self.world.await_crash()

    # --- after ---

    def kind(self):
        return {"patch": None, "cancel": None}.get(self.case.verb, f"vm.{self.case.verb}")

    def main(self, operations):
        """The request's own operation, acknowledged or not."""
        mine = [op for op in operations.values() if op["id"] not in self.seen and op["kind"] == self.kind()]
        assert len(mine) <= 1, mine
        return mine[0] if mine else None

    def settled(self):
        """After a restart; what became of the operation, in a word."""
        case, world = self.case, self.world
        operations = world.quiet()
        for op_id in self.known:
            answer = self.api.get(f"/v1/operations/{op_id}")
            assert answer.status == 200, f"an acknowledged operation is lost: {answer}"
        op = self.main(operations)
        if self.vm_id is None and op is not None:
            self.vm_id = op["target"]["vm_id"]
        vm = world.vm(self.vm_id) if self.vm_id else None
        by_name = world.vm(self.name)
        assert (vm and vm["id"]) == (by_name and by_name["id"]), (vm, by_name)
        word = check_operation(op, case) if op else "not taken"
        if self.holder:
            self.check_holder(operations[self.holder])
        state, was = vm and vm["state"], self.before and self.before["state"]
        if was == "preparing":
            was = None
        may = {"finished": {case.goal if not case.fails else self.retried()}, "failed": {case.goal}, "cancelled": {case.goal}, "undone": {was},
               "not taken": {was}, "interrupted": {was, case.goal}}[word] | set(case.also if word in ("interrupted", "not taken") else ())
        if self.kind() is None:
            may = {was, case.goal}
            word = self.word_of_others(vm, operations)
        if word == "not taken" and self.holder and operations[self.holder]["state"] == "succeeded":
            may = may | {case.goal}
        assert state in may, f"the VM is {state}, may be {may}; {word}: {op}"
        if word == "not taken" and vm and not self.holder and case.verb != "patch":
            for what in ("spec", "labels", "failure", "generation"):
                assert vm[what] == self.before[what], (what, vm, self.before)
        world.check_host()
        self.op, self.word = op, word
        return word

    def word_of_others(self, vm, operations):
        """Of what is no operation of its own."""
        if self.case.verb == "cancel":
            return "its operation " + check_operation(operations[self.holder], self.case)
        taken = all(vm["labels"].get(k) == v for k, v in self.case.body["labels"].items())
        assert taken == all(vm["spec"][k] == v for k, v in self.case.body["spec"].items()), vm
        return "finished" if taken else "not taken"

    def retried(self):
        return self.case.goal if self.case.retried == "goal" else self.case.retried

    def check_holder(self, op):
        """What held the VM: done, cancelled or interrupted."""
        assert check_operation(op, self.case) in ("finished", "cancelled", "interrupted", "undone"), op

    def unlabel(self):
        """The retry meets no faults."""
        vm = self.world.vm(self.vm_id) if self.vm_id else None
        if vm and self.case.labels:
            self.set_labels({name: None for name in self.case.labels})

    def once_more(self):
        """Killed and started again, nothing changes."""
        world = self.world

        def look():
            vm = world.vm(self.vm_id) if self.vm_id else None
            if vm:
                vm = {k: v for k, v in vm.items() if k not in ("revision", "updated_at", "conditions")}
            return vm, world.quiet()
        before = look()
        world.daemon.kill9()
        world.check_store({self.key: self.op["id"] if self.op and self.kept() else None} if self.keyed() else {})
        world.check_monitors()
        world.start()
        after = look()
        assert after == before, f"another start changed something:\n{before}\n{after}"
        world.check_host()

    def keyed(self):
        return self.case.verb not in ("destroy", "patch", "cancel")

    def kept(self):
        """Whether the key still belongs to the operation."""
        return not (self.op["error"] and self.op["error"]["code"].endswith(INTERRUPTED))

    def retry(self):
        case = self.case
        answer = self.send(wait=60)
        if case.verb == "cancel":
            assert answer.status in (200, 409), answer
            return
        if self.keyed() and self.op and self.kept():
            assert answer.headers["Idempotency-Replayed"] == "true", answer
            assert answer.status == 200 if self.word == "finished" else answer.status >= 400, answer
            assert answer.status >= 400 or answer.json["id"] == self.op["id"], answer
            goal = case.goal if self.word != "finished" or not case.fails else self.retried()
        else:
            assert answer.headers.get("Idempotency-Replayed") is None, answer
            goal = self.retried()
            if case.verb == "kill" and goal is None:
                assert answer.status == 410, answer
            elif case.verb == "kill" and goal not in ("stopped", "running"):
                assert answer.code == "vm::invalid_state", answer
            elif case.verb == "create" and case.fails:
                assert answer.code == case.fails, answer
            else:
                assert answer.status == 200, answer
        if self.vm_id is None or case.verb == "create":
            named = self.world.vm(self.name)
            self.vm_id = named["id"] if named else self.vm_id
        vm = self.world.vm(self.vm_id) if self.vm_id else None
        assert (vm and vm["state"]) == goal, (goal, vm, answer)
        if case.verb == "patch":
            assert all(vm["labels"][k] == v for k, v in case.body["labels"].items()), vm
            assert all(vm["spec"][k] == v for k, v in case.body["spec"].items()), vm

    def destroy(self):
        for vm in self.api.get("/v1/vms").json["items"]:
            assert vm["name"] == self.name, f"a VM too many: {vm}"
            answer = self.api.delete(f"/v1/vms/{vm['id']}", prefer_wait=60)
            assert answer.status == 200, answer
        self.world.quiet()
        self.world.check_host()
        assert self.api.get("/v1/vms").json["items"] == []

    def after(self):
        word = self.settled()
        self.unlabel()
        self.once_more()
        self.retry()
        self.destroy()
        return word


class PulledRun(Run):
    """A create that brings its image: one VM of one image, however often it is asked for."""

    def prepare(self):
        spec = {**self.case.spec, "image_url": make_disk(self.world, self.name, "vmdk")}
        self.case = dataclasses.replace(self.case, spec=spec)
        super().prepare()

    def settled(self):
        word = super().settled()
        check_images(self.world)
        return word

    def once_more(self):
        super().once_more()
        check_images(self.world)

    def retry(self):
        super().retry()
        images = self.api.get("/v1/images").json["items"]
        assert [[user["name"] for user in image["used_by"]] for image in images] == [[self.name]], images

    def destroy(self):
        super().destroy()
        remove_images(self.world)


def run_of(world, number):
    return (ImageRun if world.case.image else PulledRun if world.case.pulls else Run)(world, number)


def counted(path):
    """The points of a trace as they were passed: [(name, which time)]."""
    seen, points = collections.Counter(), []
    if os.path.exists(path):
        with open(path, encoding="utf-8") as file:
            for name in file.read().split():
                seen[name] += 1
                if seen[name] == 1 or not name.startswith(crash_cases.BY_CHANCE):  # of those the first is enough
                    points.append((name, seen[name]))
    return points


def learn(world):
    """The points of the case, by letting it happen."""
    run = run_of(world, 0)
    run.prepare()
    path = world.trace_path()
    world.arm(f"trace {path}")
    answer = run.send()
    assert answer.status in (200, 202), answer
    world.quiet()
    if world.case.until:
        eventually(lambda: world.vm(run.vm_id)["state"], lambda state: state == world.case.until)
    if run.kind():
        run.settled()
    world.arm()
    points = counted(path)
    run.unlabel()
    run.destroy()
    return world.case.points(points) if world.case.points else points


def learn_recovery(world, number, point):
    run = run_of(world, number)
    run.prepare()
    world.arm("crash {} {}".format(*point))
    run.send_and_crash()
    path = world.trace_path()
    assert not world.start_armed(f"trace {path}")
    run.settled()
    world.arm()
    points = counted(path)
    run.unlabel()
    run.destroy()
    return world.case.again_points(points) if world.case.again_points else points


def run_point(world, number, point, second=None):
    """Raises Unreached where the recovery went another way, and all was well there: which steps were durable is a matter of moments."""
    run = run_of(world, number)
    run.prepare()
    world.arm("crash {} {}".format(*point))
    run.send_and_crash()
    reached = True
    if second and not world.start_armed("crash {} {}".format(*second)):
        reached = world.crashed_or_settled()
        if not reached:
            world.arm()
            world.daemon.kill9()
    world.start()
    what = run.after()
    if not reached:
        raise Unreached("not passed")
    return what


class Session:
    """A case and its points, in one worker."""

    def __init__(self, case, only=None):
        self.case, self.only = case, only
        self.world = None
        self.number = 0
        self.rows = []  # (point, second, passed, what)

    def fresh(self):
        if self.world is None:
            self.world = World(self.case)
        self.number += 1
        return self.world

    def attempt(self, label, second, fn):
        """A world in which something went wrong is not used again."""
        try:
            what = fn(self.fresh())
            self.rows.append((label, second, True, what))
            return what
        except BaseException as error:  # pylint: disable=broad-except
            text = "".join(traceback.format_exception_only(type(error), error)).strip()
            where = [f"{f.name}:{f.lineno}" for f in traceback.extract_tb(error.__traceback__) if "fault/" in f.filename]
            self.rows.append((label, second, False, f"{text[:4000]}\n  at {' '.join(where)}"))
            self.drop()
            if not isinstance(error, Exception):
                raise
            return None

    def again(self, point, second, tries=3):
        for _ in range(tries):
            try:
                return run_point(self.fresh(), self.number, point, second)
            except Unreached:
                pass
        return ELSEWHERE

    def drop(self):
        if self.world is not None:
            world, self.world = self.world, None
            try:
                world.close()
            except AssertionError as error:  # a sanitizer's report
                self.rows.append(("the log", None, False, str(error)[:4000]))

    def all(self):
        points = []
        try:
            self.attempt("learn", None, lambda world: points.extend(learn(world)) or f"{len(points)} points")
            for point in points:
                if self.only and not label_of(point) == self.only:
                    continue
                self.attempt(label_of(point), None, lambda world, p=point: run_point(world, self.number, p))
                if point[0] in self.case.again and point[1] == 1:
                    self.all_again(point)
        finally:
            self.drop()
        return self.case.name, self.rows

    def all_again(self, point):
        """Where the recovery goes another way than it did when it was learnt, that way is learnt and tried, too."""
        words = {}
        for _ in range(4):
            seconds = []
            self.attempt(label_of(point), "learn", lambda world, found=seconds: found.extend(learn_recovery(world, self.number, point)))
            new = [second for second in seconds if second not in words]
            for second in new:
                words[second] = self.attempt(label_of(point), label_of(second), lambda _, s=second: self.again(point, s))
            if ELSEWHERE not in [words[second] for second in new]:
                break
        if all(word == ELSEWHERE for word in words.values()):
            self.rows.append((label_of(point), "any", False, "the recovery never passed what it had passed when it was learnt"))


def label_of(point):
    return point[0] if point[1] == 1 else f"{point[0]}#{point[1]}"


def run_case(index, only):
    return Session(crash_cases.CASES[index], only).all()


def report(rows_by_case, out):
    passed = failed = 0
    for name, rows in rows_by_case:
        words = collections.Counter(what for _, _, good, what in rows if good and what and " points" not in what)
        bad = [row for row in rows if not row[2]]
        counted_rows = [row for row in rows if "learn" not in row[:2] or not row[2]]
        passed += len(counted_rows) - len(bad)
        failed += len(bad)
        line = f"{'ok  ' if not bad else 'FAIL'}  {name:32} {len(counted_rows):4} points   " + \
            ", ".join(f"{n} {word}" for word, n in sorted(words.items()))
        print(line)
        out.write(line + "\n")
        for point, second, good, what in rows:
            where = point + (f"  then  {second}" if second else "")
            out.write(f"        {'ok  ' if good else 'FAIL'}  {where:100} {what or ''}\n")
        for point, second, _, what in bad:
            print(f"      {point}{'  then  ' + second if second else ''}\n        {what}\n"
                  f"        alone: tests/fault/crash.py --only '{name}' --point '{point}'")
    return passed, failed


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backend", choices=["noop", "qemu", "all"], default="all")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--only", help="one case, by its name")
    parser.add_argument("--point", help="one point of it")
    parser.add_argument("--list", action="store_true", help="the cases")
    args = parser.parse_args()
    chosen = [i for i, case in enumerate(crash_cases.CASES)
              if args.backend in (case.backend, "all") and args.only in (None, case.name)]
    if args.list:
        print("\n".join(crash_cases.CASES[i].name for i in chosen))
        return 0
    if os.geteuid() != 0:
        for i in [i for i in chosen if crash_cases.CASES[i].bridge]:
            print(f"{crash_cases.CASES[i].name}: not run: a bridge needs root")
            chosen.remove(i)
    if not chosen:
        parser.error("there is no such case; --list has their names")
    began = time.monotonic()
    with concurrent.futures.ProcessPoolExecutor(args.jobs) as pool:
        rows = list(pool.map(run_case, chosen, [args.point] * len(chosen)))
    path = os.path.join(ROOT, "build", "check", "crash.txt")
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w", encoding="utf-8") as out:
        passed, failed = report(rows, out)
        line = f"crash: {passed} passed, {failed} failed"
        out.write(line + "\n")
    for name, points in rows:
        for point, second, good, what in points:
            if not good:
                print(f"FAILED {name}, {point}{', then ' + second if second else ''}: {what.splitlines()[0][:300]}")
    print(f"({time.monotonic() - began:.0f} s; by point in build/check/crash.txt)\n{line}")
    return 1 if failed or not passed else 0


if __name__ == "__main__":
    sys.exit(main())
