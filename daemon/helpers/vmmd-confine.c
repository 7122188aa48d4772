/* vmmd-confine - runs a program that is not ours on an image, with as little as it needs.
 *
 *   vmmd-confine CPU_SECONDS FILE_BYTES PROGRAM ARG…
 *
 * The program gets the fds it was given (3 and 4: it names them as /proc/self/fd/3) and nothing else: it runs as nobody
 * where we are root, without sockets, new privileges, mounts, tracing or core files, with limits on its time and on what it
 * writes.  So an image that talks qemu-img into opening another file finds none that it may read.
 * Failures: exit 126 when it cannot be confined, 127 when the program cannot be started. */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/str.h"
#include "helpers/cage/cage.h"

enum { FILES_MAX = 256, MEMORY_MAX = 4095 };

static const char *const denied[] = {
    "socket",
    "connect",
    "bind",
    "listen",
    "accept",
    "accept4",
    "ptrace",
    "process_vm_readv",
    "process_vm_writev",
    "pidfd_getfd",
    "kcmp",
    "mount",
    "umount2",
    "pivot_root",
    "chroot",
    "unshare",
    "setns",
    "bpf",
    "keyctl",
    "add_key",
    "request_key",
    "userfaultfd",
    "perf_event_open",
    "init_module",
    "finit_module",
    "kexec_load",
    "open_by_handle_at",
    "io_uring_setup",
    NULL,
};

int main(int argc, char **argv)
{
    int64_t cpu_s, bytes;
    struct cage_limits limits = {.memory = (uint64_t)MEMORY_MAX << 20, .files = FILES_MAX};

    if (argc < 4 || !str_to_i64(argv[1], 1, 1000000, &cpu_s) || !str_to_i64(argv[2], 0, INT64_MAX, &bytes)) {
        fprintf(stderr, "usage: vmmd-confine CPU_SECONDS FILE_BYTES PROGRAM ARG...\n");
        return 2;
    }
    limits.cpu_s = (uint64_t)cpu_s;
    limits.file_bytes = (uint64_t)bytes;
    if (cage_drop(&limits) < 0 || cage_deny(denied) < 0) {
        fprintf(stderr, "vmmd-confine: cannot confine %s: %s\n", argv[3], strerror(errno));
        return 126;
    }
    execvp(argv[3], argv + 3);
    fprintf(stderr, "vmmd-confine: cannot start %s: %s\n", argv[3], strerror(errno));
    return 127;
}
