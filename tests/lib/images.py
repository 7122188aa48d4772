"""Pulling images in tests."""
import hashlib
import os
import subprocess
import time

from lib.vmmd import SLOW

PATIENCE = 60


def sha256(data):
    return hashlib.sha256(data).hexdigest()


def raw_disk(size=1 << 20, seed=1):
    """A disk with an MBR and contents that do not pack well."""
    data = bytearray(size)
    data[446:462] = bytes([0x80, 0, 2, 0, 0x83, 0, 2, 0]) + (1).to_bytes(4, "little") + (size // 512 - 1).to_bytes(4, "little")
    data[510:512] = b"\x55\xaa"
    block, at = hashlib.sha256(str(seed).encode()).digest(), 4096
    while at < size:
        data[at:at + 32] = block
        block, at = hashlib.sha256(block).digest(), at + 32 if size < 1 << 21 else at + 1024
    return bytes(data)


DISK = raw_disk()


def pull(api, url, name=None, prefer_wait=PATIENCE, **body):
    return api.post("/v1/images", {**({"name": name} if name else {}), "url": url, **body}, prefer_wait=prefer_wait)


def pulled(api, url, name=None, **body):
    answer = pull(api, url, name, **body)
    assert answer.status == 200, answer
    return answer.json["result"]


def begin(api, url, name, **body):
    answer = api.post("/v1/images", {"name": name, "url": url, **body})
    assert answer.status == 202, answer
    return answer.json


def ended(api, operation):
    answer = api.get(f"/v1/operations/{operation['id']}", headers={"Prefer": f"wait={PATIENCE}"}, timeout=PATIENCE + 10)
    return answer


def files(vmmd):
    path = os.path.join(vmmd.data_dir, "images")
    return sorted(os.listdir(path)) if os.path.isdir(path) else []


def until(condition, seconds=60):
    end = time.monotonic() + seconds * SLOW
    while not condition():
        assert time.monotonic() < end, "it did not come to be in time"
        time.sleep(0.02)


def refused(vmmd, answer, status, code, name="x"):
    """The pull failed as it must, and left nothing."""
    assert answer.status == status and answer.code == code, answer
    assert vmmd.client().get(f"/v1/images/{name}").status == 404
    until(lambda: files(vmmd) == [])
    return answer


def qemu_img(*args):
    subprocess.run(["qemu-img", *args], check=True, stdout=subprocess.DEVNULL)
