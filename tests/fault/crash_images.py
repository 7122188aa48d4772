"""Of images what crash.py's Run is of VMs: a request, a crash, and what the next vmmd must make of it.

A pull, a conversion or a delete has come to its end or had no effect. What a pull had fetched may stay where it can be gone on with, which of
a file it cannot; nothing else may."""
import os
import subprocess

from crash_world import GONE, INTERRUPTED, check_operation
from lib.vms import eventually


def make_disk(world, name, kind):
    """The URL of an empty disk."""
    path = os.path.join(world.daemon.dir, f"{name}.{kind}")
    subprocess.run(["qemu-img", "create", "-q", "-f", kind, path, "1M"], check=True)
    return f"file://{path}"


def check_images(world):
    """A file for each image, which is ready, nothing else, and no helper. What a pull needs no longer goes a moment after its end."""
    top = os.path.join(world.daemon.data_dir, "images")
    images = world.api.get("/v1/images").json["items"]
    assert all(image["state"] == "ready" for image in images), images
    files = {os.path.basename(image["path"]) for image in images}
    eventually(lambda: set(os.listdir(top)) if os.path.isdir(top) else set(), lambda there: there == files)
    eventually(world.daemon.leftovers, lambda pids: not pids)


def remove_images(world):
    for image in world.api.get("/v1/images").json["items"]:
        answer = world.api.delete(f"/v1/images/{image['name']}", prefer_wait=60)
        assert answer.status == 200, answer
    world.quiet()
    check_images(world)


class ImageRun:
    def __init__(self, world, number):
        self.world, self.case, self.api = world, world.case, world.api
        self.name, self.made = f"im{number}", f"im{number}-raw"
        self.key = f"image-key-{number}"
        self.known = set()
        self.vm_id = self.op = self.word = None

    # --- before ---

    def prepare(self):
        self.url = make_disk(self.world, self.name, self.case.image)
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
        check_images(self.world)
        return self.word

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
        check_images(self.world)

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
        remove_images(self.world)

    def after(self):
        word = self.settled()
        self.once_more()
        self.retry()
        self.destroy()
        return word
