/* proc.c - who a process is (proc file system), and the watch on one that need not be our child.
 *
 * A pid alone is nobody: it is reused.  Boot id, start time and executable make it one process.  The watch opens the
 * pidfd first and compares after, so that what it holds is what it compared.
 *
 * Failure: a process that is gone or a zombie has no identity: ESRCH.  A watch that gets no pidfd (too many open files) looks
 * from time to time instead, until it gets one: an end is told late then, and is told. */
#include "loop/child.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/pidfd.h>
#include <unistd.h>

#include "base/fd.h"
#include "base/mem.h"
#include "base/str.h"
#include "loop/poller.h"
#include "loop/timer.h"

enum { STAT_MAX = 4096, CMDLINE_MAX = 1024 * 1024, LOOK_AGAIN_MS = 500 };

void proc_boot_id(char out[37])
{
    CLEANUP_FREE char *text = NULL;
    CLEANUP_ERROR struct error err = ERROR_INIT;
    size_t len = 0;

    out[0] = '\0';
    if (file_read("/proc/sys/kernel/random/boot_id", 64, &text, &len, &err) == 0 && len >= 36)
        snprintf(out, 37, "%.36s", text);
}

/* State and start time: the fields after the command's name, which may itself hold spaces and brackets. */
static int read_stat(pid_t pid, char *ret_state, uint64_t *ret_start)
{
    CLEANUP_FREE char *text = NULL;
    CLEANUP_ERROR struct error err = ERROR_INIT;
    char path[64];
    size_t len = 0;
    char state;
    unsigned long long start;

    snprintf(path, sizeof(path), "/proc/%d/stat", (int)pid);
    if (file_read(path, STAT_MAX, &text, &len, &err) != 0)
        return -1;
    const char *after = strrchr(text, ')');
    if (after == NULL ||
        sscanf(after + 1, " %c %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %llu", &state,
               &start) != 2)
        return -1;
    *ret_state = state;
    *ret_start = start;
    return 0;
}

/* The executable's path; empty where the kernel does not let us see it.  -1 when there is none. */
static int read_exe(pid_t pid, char *out, size_t size)
{
    static const char deleted[] = " (deleted)";
    char path[64];

    snprintf(path, sizeof(path), "/proc/%d/exe", (int)pid);
    ssize_t n = readlink(path, out, size - 1);
    if (n < 0 && errno != EACCES && errno != EPERM)
        return -1;
    out[n < 0 ? 0 : n] = '\0';
    size_t len = strlen(out), tail = sizeof(deleted) - 1;
    if (len > tail && strcmp(out + len - tail, deleted) == 0)
        out[len - tail] = '\0';
    return 0;
}

int proc_identify(pid_t pid, struct proc_id *ret, struct error *err)
{
    struct proc_id id = {.pid = pid};
    char state = 'Z';

    if (pid <= 0 || read_stat(pid, &state, &id.start_ticks) != 0 || state == 'Z' || state == 'X' ||
        read_exe(pid, id.exe, sizeof(id.exe)) != 0)
        return error_errno(err, ESRCH, "process %d is gone", (int)pid);
    proc_boot_id(id.boot_id);
    *ret = id;
    return 0;
}

bool proc_is(const struct proc_id *id)
{
    CLEANUP_ERROR struct error err = ERROR_INIT;
    struct proc_id now;

    return proc_identify(id->pid, &now, &err) == 0 && now.start_ticks == id->start_ticks &&
           strcmp(now.boot_id, id->boot_id) == 0 && strcmp(now.exe, id->exe) == 0;
}

static void offer(pid_t pid, const char *exe_prefix, void (*fn)(void *arg, pid_t pid, const char *cmdline, size_t len),
                  void *arg)
{
    CLEANUP_FREE char *cmdline = NULL;
    CLEANUP_ERROR struct error err = ERROR_INIT;
    char exe[PATH_MAX], path[64];
    size_t len = 0;

    if (read_exe(pid, exe, sizeof(exe)) != 0)
        return;
    const char *slash = strrchr(exe, '/');
    if (slash == NULL || !str_prefix(slash + 1, exe_prefix))
        return;
    snprintf(path, sizeof(path), "/proc/%d/cmdline", (int)pid);
    if (file_read(path, CMDLINE_MAX, &cmdline, &len, &err) == 0 && len > 0) /* a zombie has none */
        fn(arg, pid, cmdline, len);
}

void proc_each(const char *exe_prefix, void (*fn)(void *arg, pid_t pid, const char *cmdline, size_t len), void *arg)
{
    DIR *dir = opendir("/proc");
    const struct dirent *entry;

    if (dir == NULL)
        return;
    while ((entry = readdir(dir)) != NULL) {
        int64_t pid;
        if (str_to_i64(entry->d_name, 1, INT_MAX, &pid))
            offer((pid_t)pid, exe_prefix, fn, arg);
    }
    closedir(dir);
}

/* ---- the watch ---- */

struct proc_watch {
    struct loop *loop;
    struct proc_id id;
    int pidfd; /* -1: none to be had so far */
    struct poller *poller;
    struct timer *timer; /* looks again, while there is no poller */
    void (*exited)(void *arg, const struct exit_status *status);
    void *arg;
};

static void tell_exit(struct proc_watch *w)
{
    struct exit_status status = {.known = false, .code = -1};

    poller_free(w->poller);
    w->poller = NULL;
    timer_free(w->timer);
    w->timer = NULL;
    w->exited(w->arg, &status);
}

static void on_exit_of(void *arg, int events)
{
    (void)events;
    tell_exit(arg);
}

/* 0: held; -1: there is no fd for it now.  ESRCH in errno: it is gone, or another one by now. */
static int hold(struct proc_watch *w)
{
    CLEANUP_ERROR struct error err = ERROR_INIT;
    CLEANUP_FD int pidfd = pidfd_open(w->id.pid, 0);

    if (pidfd < 0)
        return -1;
    if (!proc_is(&w->id)) {
        CLEANUP_FD int other = open("/proc/self/stat", O_RDONLY | O_CLOEXEC);
        errno = other < 0 ? errno : ESRCH; /* without an fd nothing can be compared */
        return -1;
    }
    w->poller = poller_new(w->loop, pidfd, POLLER_READ, on_exit_of, w, &err);
    if (w->poller == NULL) {
        errno = ENOMEM;
        return -1;
    }
    w->pidfd = TAKE_FD(pidfd);
    return 0;
}

static void look_again(void *arg)
{
    struct proc_watch *w = arg;

    if (hold(w) == 0)
        timer_stop(w->timer);
    else if (errno == ESRCH)
        tell_exit(w);
}

struct proc_watch *proc_watch_new(struct loop *loop, const struct proc_id *id,
                                  void (*exited)(void *arg, const struct exit_status *status), void *arg,
                                  struct error *err)
{
    struct proc_watch *w = mem_zalloc(sizeof(*w));

    if (w == NULL) {
        error_errno(err, ENOMEM, "cannot watch process %d", (int)id->pid);
        return NULL;
    }
    *w = (struct proc_watch){.loop = loop, .id = *id, .pidfd = -1, .exited = exited, .arg = arg};
    if (hold(w) == 0)
        return w;
    int errnum = errno;
    if (errnum != ESRCH)
        w->timer = timer_new(loop, look_again, w);
    if (w->timer != NULL) {
        timer_start(w->timer, LOOK_AGAIN_MS, LOOK_AGAIN_MS);
        return w;
    }
    mem_free(w);
    error_errno(err, errnum, "process %d is gone, or another one by now, or cannot be watched", (int)id->pid);
    return NULL;
}

int proc_watch_signal(struct proc_watch *w, int signum)
{
    if (w->pidfd >= 0)
        return pidfd_send_signal(w->pidfd, signum, NULL, 0);
    if (hold(w) < 0)
        return -1;
    timer_stop(w->timer);
    return pidfd_send_signal(w->pidfd, signum, NULL, 0);
}

void proc_watch_free(struct proc_watch *w)
{
    if (w == NULL)
        return;
    poller_free(w->poller);
    timer_free(w->timer);
    fd_close(w->pidfd);
    mem_free(w);
}
