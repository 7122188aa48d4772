/* oom.h - did the kernel kill a process for want of memory?  The part that runs on the pool, for process.c and tests. */
#ifndef BACKEND_QEMU_OOM_H
#define BACKEND_QEMU_OOM_H

#include <limits.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

struct oom_question {
    pid_t pid;            /* 0: nothing is asked */
    int64_t since_us;     /* in the kernel log's time: older records are of another process */
    char group[PATH_MAX]; /* its memory cgroup's directory; "": not known */
    /* answers */
    bool log_read; /* the kernel's log could be read, and it speaks of pids as we do */
    bool killed;   /* it says so */
    int64_t kills; /* in the cgroup, so far; -1: not told */
};

/* A record of /dev/kmsg: true when it is the kernel's word that it killed *ret_pid for want of memory, *ret_us after boot. */
bool oom_record(const char *record, pid_t *ret_pid, int64_t *ret_us);
/* What the log and the cgroup say.  Blocks on neither; reads at most a kernel log. */
void oom_answer(struct oom_question *q);
/* The kernel's count of OOM kills in a cgroup (v2 or v1); -1: not told. */
int64_t oom_kills(const char *group);
/* The directory of the memory cgroup that the text of /proc/PID/cgroup names; "" when there is none. */
void oom_group(const char *proc_cgroup, char out[PATH_MAX]);

#endif
