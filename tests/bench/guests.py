"""What is done in a guest, against OpenSSH's client in the same guest: commands and files.

The guest is the small one, whose sshd is dropbear and whose files are in memory; VMMD_BENCH_IMAGE names another's disk image."""
import os
import subprocess

from wire import Wire, median, ratio, until

EXEC_ROUNDS = 101
PUT_ROUNDS, PUT_MIB = 3, int(os.environ.get("VMMD_BENCH_PUT_MIB", "256"))
BOOT_S = 300


class Guest:
    """One guest, a connection to vmmd, and OpenSSH's client with a connection of its own that stays open."""

    def __init__(self, bench):
        self.bench, self.vmmd = bench, bench.vmmd("guest")
        self.wire = Wire(self.vmmd.socket)
        self.config, self.control = os.path.join(bench.dir, "ssh_config"), os.path.join(bench.dir, "ssh")
        self.master = None

    def boot(self, kernel, initrd):
        image = os.environ.get("VMMD_BENCH_IMAGE")
        start = {"image": image, "disk_gb": 4} if image else {"machine": "microvm", "boot": {"kernel": kernel, "initrd": initrd}}
        self.wire.must("POST", "/v1/vms", {"name": "guest", "start": True, "spec": {
            **start, "memory_mb": 1024, "network": {"type": "user"}, "cloud_init": {"hostname": "guest"}}})
        self.wire.sock.settimeout(BOOT_S + 10)
        self.wire.must("GET", f"/v1/vms/guest/wait?for={'cloud_init&for=' if image else ''}ready&timeout={BOOT_S}")
        with open(self.config, "wb") as file:
            file.write(subprocess.run([os.path.join(self.bench.build, "vmctl"), "--socket", self.vmmd.socket, "ssh-config", "guest"], check=True,
                                      stdout=subprocess.PIPE, timeout=30).stdout)
        self.master = subprocess.Popen(["ssh", "-F", self.config, "-MNS", self.control, "guest"], stdin=subprocess.DEVNULL)
        self.bench.ended_by_us.append(self.master)
        until(lambda: os.path.exists(self.control), 60, "ssh's control socket")

    def close(self):
        """Also when a row broke off: the guest would outlive its vmmd."""
        if self.master:
            self.master.terminate()
            self.master.wait(10)
        self.wire.close()
        wire = Wire(self.vmmd.socket)
        for method, path in (("POST", "/v1/vms/guest/kill"), ("DELETE", "/v1/vms/guest")):
            wire.ask(method, path)
        wire.close()
        self.vmmd.stop()

    def run(self, *command):
        answer = self.wire.must("POST", "/v1/vms/guest/exec", {"command": command})
        if b'"exit_code":0' not in answer:
            raise SystemExit(f"bench: {command}: {answer!r}")

    def ssh(self, *argv):
        subprocess.run([argv[0], "-F", self.config, "-o", f"ControlPath={self.control}", *argv[1:]], check=True, stdin=subprocess.DEVNULL,
                       timeout=300)


def exec_row(bench, guest):
    """`true`, each in a channel of a connection that is open: ours by HTTP, OpenSSH's by its control socket."""
    ours, reference = [], []
    for _ in range(EXEC_ROUNDS):
        bench.pair(lambda: bench.timed(ours, lambda: guest.run("true")),
                   lambda: bench.timed(reference, lambda: guest.ssh("ssh", "guest", "true")))
    by = ratio(ours, reference)
    bench.row("exec of `true`, open connections", f"{1000 * median(ours):.1f} ms", f"ssh, control socket {1000 * median(reference):.1f} ms",
              f"{by:.2f}", "< 3", by < 3)


def put_row(bench, guest):
    """A file from the host's page cache, under a name that is new each time: PUT, and scp by the open connection."""
    path = os.path.join(bench.dir, "put")
    with open(path, "wb") as file:
        for _ in range(PUT_MIB):
            file.write(os.urandom(1 << 20))
    ours, reference = [], []
    with open(path, "rb") as file:
        def by_vmmd():
            bench.timed(ours, lambda: guest.wire.put("/v1/vms/guest/files?path=/tmp/put", file))
            guest.run("rm", "/tmp/put")

        def by_scp():
            bench.timed(reference, lambda: guest.ssh("scp", "-q", path, "guest:/tmp/put"))
            guest.run("rm", "/tmp/put")
        for _ in range(PUT_ROUNDS):
            bench.pair(by_vmmd, by_scp)
    os.unlink(path)
    speed = ratio(reference, ours)
    bench.row(f"put of {PUT_MIB} MiB into a guest", f"{PUT_MIB / median(ours):.1f} MiB/s", f"scp {PUT_MIB / median(reference):.1f} MiB/s",
              f"{speed:.2f}", ">= 0.7", speed >= 0.7)
    bench.note(f"put: ratios of the rounds {' '.join(f'{b / a:.2f}' for a, b in zip(ours, reference, strict=True))}")


def guest_rows(bench, wanted, kernel, initrd):
    guest = Guest(bench)
    try:
        guest.boot(kernel, initrd)
        if "exec" in wanted:
            exec_row(bench, guest)
        if "put" in wanted:
            put_row(bench, guest)
    finally:
        guest.close()
