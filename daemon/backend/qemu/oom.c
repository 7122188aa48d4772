/* oom.c - did the kernel kill this QEMU for want of memory?
 *
 * Happy path: QEMU died by a SIGKILL that is not ours ─► on the pool the kernel's log (/dev/kmsg) is searched for the
 * pid's OOM record, one not older than the process.
 * Where the log may not be read (it takes CAP_SYSLOG), or counts pids otherwise (a container), the cgroup's count of OOM
 * kills tells: one that no other end has accounted for is this one's.
 * Failure modes: neither is to be had: a plain kill.  Command names in the log are hostile text: what is believed stands
 * before or behind them, and only in records of the kernel's own. */
#include "backend/qemu/oom.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "backend/qemu/internal.h"
#include "base/fd.h"
#include "base/mem.h"
#include "base/str.h"

enum { RECORD_MAX = 16384, RECORDS_MAX = 200000, GROUPS_MAX = 1024, LOG_SLACK_US = 2000000 };
#define INITIAL_PID_NAMESPACE 0xEFFFFFFCU /* the inode, in every kernel */

/* ---- the log ---- */

/* "…task=COMM,pid=17,uid=0": a COMM may hold all of that itself, but not behind it. */
static bool pid_at_end(const char *message, size_t len, pid_t *ret)
{
    static const char key[] = ",pid=";
    int pid, n = 0;

    for (const char *p = message + len - 1; p > message; p--) {
        if (strncmp(p, key, sizeof(key) - 1) != 0)
            continue;
        if (sscanf(p, ",pid=%d,uid=%*u%n", &pid, &n) != 1 || n == 0 || p + n != message + len || pid <= 0)
            return false;
        *ret = pid;
        return true;
    }
    return false;
}

bool oom_record(const char *record, pid_t *ret_pid, int64_t *ret_us)
{
    static const char *const killed[] = {
        "Out of memory: Killed process ", "Memory cgroup out of memory: Killed process ",
        "Out of memory (oom_kill_allocating_task): Killed process ", "Killed process "};
    const char *message = strchr(record, ';');
    unsigned priority;
    unsigned long long seq;
    long long us;
    int pid;

    if (message == NULL || sscanf(record, "%u,%llu,%lld,", &priority, &seq, &us) != 3 || priority >> 3 != 0)
        return false;
    size_t len = strcspn(++message, "\n");
    *ret_us = us;
    if (str_prefix(message, "oom-kill:constraint="))
        return pid_at_end(message, len, ret_pid);
    for (size_t i = 0; i < sizeof(killed) / sizeof(killed[0]); i++) {
        char bracket = 0;
        if (!str_prefix(message, killed[i]) || sscanf(message + strlen(killed[i]), "%d %c", &pid, &bracket) != 2 ||
            bracket != '(' || pid <= 0)
            continue;
        *ret_pid = pid;
        return true;
    }
    return false;
}

static void search_log(struct oom_question *q)
{
    CLEANUP_FD int fd = open("/dev/kmsg", O_RDONLY | O_NONBLOCK | O_CLOEXEC);
    CLEANUP_FREE char *record = fd >= 0 ? mem_alloc(RECORD_MAX) : NULL;
    struct stat st;

    if (record == NULL)
        return;
    for (int i = 0; i < RECORDS_MAX && !q->killed; i++) { /* each read is one record, from the oldest on */
        ssize_t n = read(fd, record, RECORD_MAX - 1);
        pid_t pid;
        int64_t us;
        if (n < 0 && (errno == EPIPE || errno == EINTR)) /* EPIPE: overtaken by the log's end */
            continue;
        if (n <= 0) {
            q->log_read = n < 0 && errno == EAGAIN;
            break;
        }
        record[n] = '\0';
        q->killed = oom_record(record, &pid, &us) && pid == q->pid && us >= q->since_us;
    }
    if (stat("/proc/self/ns/pid", &st) < 0 || st.st_ino != INITIAL_PID_NAMESPACE)
        q->log_read = q->killed = false; /* it speaks of another pid */
}

/* ---- the cgroup ---- */

static int64_t kills_in(const char *group, const char *file)
{
    CLEANUP_ERROR struct error err = ERROR_INIT;
    CLEANUP_FREE char *path = mem_printf("%s/%s", group, file);
    CLEANUP_FREE char *text = NULL;
    size_t len;
    long long n;

    if (path == NULL || file_read(path, 4096, &text, &len, &err) < 0)
        return -1;
    for (const char *line = text; line != NULL; line = strchr(line, '\n')) {
        line += *line == '\n';
        if (sscanf(line, "oom_kill %lld", &n) == 1 && n >= 0)
            return n;
    }
    return -1;
}

int64_t oom_kills(const char *group)
{
    static const char *const files[] = {"memory.events.local", "memory.events", "memory.oom_control"};
    int64_t kills = -1;

    for (size_t i = 0; i < sizeof(files) / sizeof(files[0]) && kills < 0; i++)
        kills = kills_in(group, files[i]);
    return kills;
}

void oom_group(const char *text, char out[PATH_MAX])
{
    out[0] = '\0';
    for (const char *line = text; line != NULL && *line != '\0'; line = strchr(line, '\n')) {
        line += *line == '\n';
        const char *names = strchr(line, ':'), *path = names != NULL ? strchr(names + 1, ':') : NULL;
        if (path == NULL)
            return;
        int len = (int)strcspn(++path, "\n");
        if (strncmp(names, ":memory:", 8) == 0) { /* v1 has it: v2 has not */
            snprintf(out, PATH_MAX, "/sys/fs/cgroup/memory%.*s", len, path);
            return;
        }
        if (strncmp(line, "0::", 3) == 0)
            snprintf(out, PATH_MAX, "/sys/fs/cgroup%.*s", len, path);
    }
}

void oom_answer(struct oom_question *q)
{
    q->kills = -1;
    if (q->pid == 0)
        return;
    search_log(q);
    if (q->group[0])
        q->kills = oom_kills(q->group);
}

/* ---- on the loop ---- */

/* A cgroup that QEMUs run in, and how many of its OOM kills their ends account for. */
struct oom_group {
    struct oom_group *next;
    int64_t accounted;
    char dir[];
};

static struct oom_group *group_of(struct qemu_backend *be, const char *dir)
{
    size_t n = 0;
    struct oom_group *g;

    for (g = be->oom_groups; g != NULL; g = g->next, n++)
        if (strcmp(g->dir, dir) == 0)
            return g;
    g = n < GROUPS_MAX ? mem_zalloc(sizeof(*g) + strlen(dir) + 1) : NULL;
    if (g == NULL)
        return NULL;
    memcpy(g->dir, dir, strlen(dir) + 1);
    g->accounted = oom_kills(dir);
    g->next = be->oom_groups;
    be->oom_groups = g;
    return g;
}

void oom_watch(struct backend_vm *bvm)
{
    CLEANUP_ERROR struct error err = ERROR_INIT;
    CLEANUP_FREE char *text = NULL;
    char path[64], dir[PATH_MAX];
    size_t len;

    bvm->oom_group = NULL;
    snprintf(path, sizeof(path), "/proc/%d/cgroup", (int)bvm->vm->runtime.pid);
    if (file_read(path, 65536, &text, &len, &err) < 0)
        return;
    oom_group(text, dir);
    if (dir[0])
        bvm->oom_group = group_of(bvm->be, dir);
}

static int64_t clock_us(clockid_t id)
{
    struct timespec ts = {0};

    clock_gettime(id, &ts);
    return (int64_t)ts.tv_sec * 1000000 + ts.tv_nsec / 1000;
}

void oom_ask(struct backend_vm *bvm, struct oom_question *q)
{
    const struct vm_runtime *rt = &bvm->vm->runtime;
    int64_t hz = sysconf(_SC_CLK_TCK);
    char now[37];

    bvm->oom = false;
    *q = (struct oom_question){.pid = 0};
    if (bvm->kill_asked || bvm->guest_end != GUEST_RUNS || rt->pid <= 0 ||
        (bvm->status.known ? bvm->status.signal != SIGKILL : bvm->term_asked))
        return;
    proc_boot_id(now);
    if (strcmp(now, rt->boot_id) != 0) /* its log is gone */
        return;
    q->pid = rt->pid;
    /* The process's start counts the time that the host slept, the log does not. */
    if (hz > 0)
        q->since_us = (int64_t)rt->start_ticks * 1000000 / hz - (clock_us(CLOCK_BOOTTIME) - clock_us(CLOCK_MONOTONIC)) -
                      LOG_SLACK_US;
    if (bvm->oom_group != NULL)
        snprintf(q->group, sizeof(q->group), "%s", bvm->oom_group->dir);
}

void oom_told(struct backend_vm *bvm, const struct oom_question *q)
{
    struct oom_group *g = bvm->oom_group;
    bool counted = q->pid != 0 && g != NULL && g->accounted >= 0 && q->kills > g->accounted;

    bvm->oom = q->killed || (counted && !q->log_read);
    if (bvm->oom && counted)
        g->accounted++;
}

void oom_free(struct qemu_backend *be)
{
    for (struct oom_group *g = be->oom_groups, *next; g != NULL; g = next) {
        next = g->next;
        mem_free(g);
    }
    be->oom_groups = NULL;
}
