"""A small file system for a daemon's data, to be filled and emptied: a tmpfs, which needs root."""
import contextlib
import os
import subprocess

import pytest

from lib.vmmd import Daemon


def mount(path, size, options="mode=700"):
    """Mounts a tmpfs of this size; skips the test, and says why, where that may not be."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small file system needs root")
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size},{options}", "vmmd-test", path], check=False,
                          stderr=subprocess.PIPE, text=True)
    if done.returncode != 0:
        pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")


def unmount(path):
    subprocess.run(["umount", "--lazy", path], check=True)


class Disk:
    """The file system below a directory. What fills it is a file without a name."""

    def __init__(self, path):
        self.path = path
        self.ballast = None

    def free(self):
        """Bytes."""
        found = os.statvfs(self.path)
        return found.f_bavail * found.f_bsize

    def make_room(self):
        if self.ballast is not None:
            os.close(self.ballast)
        self.ballast = None

    def _take(self, size):
        if self.ballast is None:
            self.ballast = os.open(self.path, os.O_TMPFILE | os.O_RDWR, 0o600)
        if size > 0:
            os.posix_fallocate(self.ballast, os.fstat(self.ballast).st_size, size)

    def leave(self, kib):
        """Leaves so much free, or less."""
        self.make_room()
        while self.ballast is None or self.free() > kib * 1024:
            with contextlib.suppress(OSError):
                self._take(self.free() - kib * 1024)

    def fill(self):
        """To the last page, and again until there is none: the daemon may be writing."""
        while self.free() > 0:
            with contextlib.suppress(OSError):
                self._take(self.free())


@contextlib.contextmanager
def small_daemon(size="8m", config=None, start=True, options="mode=700", below=None):
    """(daemon, disk): a daemon whose data, or the directory `below` them, lie on a file system of this size.  Whatever happens,
    it is ended and the file system gone."""
    daemon = Daemon(config=config, start=False)
    path = os.path.join(daemon.data_dir, below) if below else daemon.data_dir
    os.makedirs(path, mode=0o700)
    try:
        mount(path, size, options)
        disk = Disk(path)
        try:
            if start:
                daemon.start()
            yield daemon, disk
        finally:
            if daemon.running():
                daemon.stop()
            disk.make_room()
            unmount(path)
    finally:
        daemon.close()
