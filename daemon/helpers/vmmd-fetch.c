/* vmmd-fetch - gets an image into a part file (fd 3).
 *
 * Happy path: the job is read from stdin (JSON), every privilege is dropped, the source is read to its end: an URL by
 * libcurl (http.c), an artifact of an OCI registry (oci.c), or what fd 5 gives; the bytes go through the sink (sink.c) into
 * the part file.  Progress and the result are lines of JSON on stdout (report.c), and the exit status is 0, also for a failure that
 * was told.  Anything else means that this process met what it could not stand.
 *
 * It opens nothing for writing and starts nothing: seccomp says so.  fd 4 is the note beside the part file (resume.c). */
#include <curl/curl.h>
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/fd.h"
#include "helpers/cage/cage.h"
#include "helpers/fetch/fetch.h"

enum { JOB_MAX = 1 << 20, CA_MAX = 4 << 20, PIECE = 1 << 20, MEMORY_MAX = 2047 };

struct job job;

/* What libcurl, OpenSSL, glibc's resolver and the decoders need. */
static const char *const calls[] = {
    "read",
    "write",
    "pread64",
    "pwrite64",
    "readv",
    "writev",
    "close",
    "fstat",
    "newfstatat",
    "statx",
    "lseek",
    "mmap",
    "munmap",
    "mremap",
    "mprotect",
    "madvise",
    "brk",
    "futex",
    "rt_sigaction",
    "rt_sigprocmask",
    "rt_sigreturn",
    "poll",
    "ppoll",
    "select",
    "pselect6",
    "epoll_create1",
    "epoll_ctl",
    "epoll_wait",
    "epoll_pwait",
    "socket",
    "connect",
    "bind",
    "getsockname",
    "getpeername",
    "getsockopt",
    "setsockopt",
    "sendto",
    "sendmsg",
    "sendmmsg",
    "recvfrom",
    "recvmsg",
    "recvmmsg",
    "shutdown",
    "socketpair",
    "pipe",
    "pipe2",
    "eventfd2",
    "fcntl",
    "ioctl",
    "ftruncate",
    "fsync",
    "fdatasync",
    "sync_file_range",
    "fstatfs",
    "fallocate",
    "getrandom",
    "clock_gettime",
    "clock_nanosleep",
    "nanosleep",
    "gettimeofday",
    "getpid",
    "gettid",
    "getuid",
    "geteuid",
    "getgid",
    "getegid",
    "uname",
    "sysinfo",
    "sched_yield",
    "sched_getaffinity",
    "set_robust_list",
    "rseq",
    "exit",
    "exit_group",
    "access",
    "faccessat",
    "readlink",
    "readlinkat",
    "getdents64",
    "prlimit64",
    "tgkill",
    "restart_syscall",
    "set_tid_address",
    "membarrier",
    NULL,
};

static json_t *read_job(void)
{
    static char text[JOB_MAX];
    size_t len = fread(text, 1, sizeof(text), stdin);

    return json_loadb(text, len, JSON_REJECT_DUPLICATES, NULL);
}

static void take_job(json_t *doc)
{
    const char *ca = NULL;
    json_int_t max_bytes = 0, stall_s = 30, timeout_s = 21600, length = -1, reserve = 0, promised = 0;
    struct error err = ERROR_INIT;
    char *pem;

    if (json_unpack(doc, "{s:s,s:s,s?s,s:I,s?I,s?I,s:s,s?o,s?o,s?s,s?s,s?s,s?I,s?I,s?I}", "source", &job.source, "url",
                    &job.url, "sha256", &job.sha256, "max_bytes", &max_bytes, "stall_s", &stall_s, "timeout_s",
                    &timeout_s, "boot_id", &job.boot_id, "allow", &job.allow, "plain_http", &job.plain_http,
                    "auth_host", &job.auth_host, "auth_basic", &job.auth_basic, "ca_file", &ca, "length", &length,
                    "reserve", &reserve, "promised", &promised) < 0 ||
        strlen(job.url) >= URL_MAX) {
        fprintf(stderr, "vmmd-fetch: the job on stdin is none\n");
        exit(2);
    }
    job.sha256_known = job.sha256 != NULL;
    job.max_bytes = (uint64_t)max_bytes;
    job.length = length;
    job.reserve = (uint64_t)reserve;
    job.promised = (uint64_t)promised;
    job.stall_s = stall_s;
    job.timeout_s = timeout_s;
    if (ca == NULL)
        return;
    if (file_read(ca, CA_MAX, &pem, &job.ca_len, &err) < 0)
        fail("io", "the certificates in %s cannot be read", ca);
    job.ca = pem;
}

static void confine(void)
{
    const struct cage_limits limits = {.cpu_s = (uint64_t)job.timeout_s + 60,
                                       .file_bytes = job.max_bytes + (1 << 20),
                                       .memory = (uint64_t)MEMORY_MAX << 20,
                                       .files = 64};

    signal(SIGXFSZ, SIG_IGN);
    signal(SIGPIPE, SIG_IGN);
    if (cage_drop(&limits) < 0 || cage_allow(calls) < 0) {
        fprintf(stderr, "vmmd-fetch: cannot confine itself: %s\n", strerror(errno));
        exit(1);
    }
}

/* A file on this host, or what a client sends: to its end. */
static void from_fd(void)
{
    static uint8_t piece[PIECE];
    struct stat st;
    int64_t total = job.length;

    if (fstat(SOURCE_FD, &st) == 0 && S_ISREG(st.st_mode))
        total = st.st_size;
    sink_begin(0);
    part_note(&(struct part){.total = -1});
    if (total > 0)
        sink_expect((uint64_t)total);
    for (;;) {
        ssize_t n = read(SOURCE_FD, piece, sizeof(piece));
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            fail("download", "it cannot be read: %s", strerror(errno));
        if (n == 0)
            break;
        sink_write(piece, (size_t)n);
        report_progress(sink_fetched(), total);
    }
    if (total >= 0 && sink_fetched() < (uint64_t)total)
        fail("download", "it ended after %llu of %lld bytes", (unsigned long long)sink_fetched(), (long long)total);
    sink_end(0);
}

int main(void)
{
    struct http_answer answer = {0};

    take_job(read_job());
    flock(PART_FD, LOCK_EX); /* the helper of a daemon that was killed may not be quite gone */
    http_init();             /* it reads OpenSSL's configuration */
    confine();
    if (strcmp(job.source, "fd") == 0)
        from_fd();
    if (strcmp(job.source, "oci") == 0)
        oci_pull();
    else
        http_get(&(struct http_get){.url = job.url, .error_kind = "download", .to_sink = true}, &answer);
    return 1;
}
