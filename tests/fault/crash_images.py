"""Of images what crash.py's Run is of VMs: a request, a crash, and what the next vmmd must make of it.

A pull, a conversion or a delete has come to its end or had no effect; what a pull had fetched may stay, to be gone on with; nothing else
may."""
import os
import subprocess

from crash_world import GONE, INTERRUPTED, check_operation
from lib.vms import eventually

GOES_ON = (".part", ".note")    # of a pull that was interrupted


class ImageRun:
    def __init__(self, world, number):
        self.world, self.case, self.api = world, world.case, world.api
        self.name, self.made = f"im{number}", f"im{number}-raw"
        self.key = f"image-key-{number}"
        self.known = set()
        self.vm_id = self.op = self.word = None

    # --- before ---

    def prepare(self):
        path = os.path.join(self.world.daemon.dir, f"{self.name}.{self.case.image}")
        subprocess.run(["qemu-img", "create", "-q", "-f", self.case.image, path, "1M"], check=True)
        self.url = f"file://{path}"
        if self.case.state:
            answer = self.api.post("/v1/images", {"name": self.name, "url": self.url}, prefer_wait=60)
            assert answer.status == 200, answer
        self.seen = set(self.world.quiet())

    # --- the request ---

    def ask(self, wait=None):
        headers = {"Idempotency-Key": self.key}
        if self.case.verb == "pull":
            return self.api.post("/v1/images", {"name": self.name, "url": self.url}, headers=headers, prefer_wait=wait)
        if self.case.verb == "convert":
            return self.api.post(f"/v1/images/{self.name}/convert", {"format": "raw", "name": self.made}, headers=headers,
                                 prefer_wait=wait)
        return self.api.delete(f"/v1/images/{self.name}", prefer_wait=wait)

    def send(self, wait=None):
        answer = self.ask(wait)
        if answer.status in (200, 202):
            self.known.add(answer.json["id"])
        return answer

    def send_and_crash(self):
        try:
            self.send()
        except GONE:
            pass
        self.world.await_crash()

    # --- after ---

    def kind(self):
        return f"image.{self.case.verb}"

    def image(self, name):
        answer = self.api.get(f"/v1/images/{name}")
        assert answer.status in (200, 404), answer
        return answer.json if answer.status == 200 else None

    def settled(self):
        operations = self.world.quiet()
        for op_id in self.known:
            answer = self.api.get(f"/v1/operations/{op_id}")
            assert answer.status == 200, f"an acknowledged operation is lost: {answer}"
        mine = [op for op in operations.values() if op["id"] not in self.seen and op["kind"] == self.kind()]
        assert len(mine) <= 1, mine
        self.op = mine[0] if mine else None
        self.word = check_operation(self.op, self.case) if self.op else "not taken"
        done = self.word == "finished"
        made, source = self.image(self.made), self.image(self.name)
        assert (made is not None) == (done and self.case.verb == "convert"), (self.word, made)
        assert (source is not None) == (done if self.case.verb == "pull" else not done or self.case.verb == "convert"), (self.word, source)
        assert self.case.verb != "delete" or self.word in ("finished", "not taken"), self.op
        assert all(image is None or image["state"] == "ready" for image in (made, source)), (made, source)
        self.check_files()
        return self.word

    def check_files(self):
        """A file for each image, what can be gone on with, and no helper."""
        top = os.path.join(self.world.daemon.data_dir, "images")
        mine = {os.path.basename(image["path"]) for image in self.api.get("/v1/images").json["items"]}
        there = set(os.listdir(top)) if os.path.isdir(top) else set()
        assert mine <= there, f"missing: {mine - there}"
        assert not {name for name in there - mine if not name.endswith(GOES_ON)}, f"left: {there - mine}"
        eventually(self.world.daemon.leftovers, lambda pids: not pids, 10)

    def unlabel(self):
        pass

    def once_more(self):
        """Killed and started again, nothing changes."""
        def look():
            return self.api.get("/v1/images").json["items"], self.world.quiet()
        before = look()
        self.world.daemon.kill9()
        kept = self.op and not (self.op["error"] and self.op["error"]["code"].endswith(INTERRUPTED))
        self.world.check_store({} if self.case.verb == "delete" else {self.key: self.op["id"] if kept else None})
        self.world.start()
        after = look()
        assert after == before, f"another start changed something:\n{before}\n{after}"
        self.check_files()

    def retry(self):
        answer = self.send(wait=60)
        again = self.case.verb == "delete" and self.word == "finished"
        assert answer.status == (404 if again else 200), answer
        if self.word == "finished" and not again:
            assert answer.json["id"] == self.op["id"] and answer.headers["Idempotency-Replayed"] == "true", answer
        assert (self.image(self.made if self.case.verb == "convert" else self.name) is None) == (self.case.goal is None)

    def destroy(self):
        for image in self.api.get("/v1/images").json["items"]:
            assert image["name"] in (self.name, self.made), f"an image too many: {image}"
            answer = self.api.delete(f"/v1/images/{image['name']}", prefer_wait=60)
            assert answer.status == 200, answer
        assert self.api.post("/v1/images/prune", {}).status == 200
        self.world.quiet()
        top = os.path.join(self.world.daemon.data_dir, "images")
        assert not os.path.isdir(top) or os.listdir(top) == [], os.listdir(top)

    def after(self):
        word = self.settled()
        self.once_more()
        self.retry()
        self.destroy()
        return word
