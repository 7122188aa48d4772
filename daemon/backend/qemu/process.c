/* process.c - QEMU's process: its end, and ending it.
 *
 *     exit ─► close monitor and agent ─► drain the console ─┐
 *                    └─► pool: last words, OOM? sockets ────┴─► tell: the kill that asked, the call that failed, core
 *
 * The end is told once, after everything of the process is gone.  During a start there is no event: the step under way
 * fails with QEMU's last words, or the next one does.  Sockets are removed only when the process is proven dead
 * (lock.c). */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "backend/qemu/internal.h"
#include "backend/qemu/oom.h"
#include "backend/qemu/observe.h"
#include "base/crash.h"
#include "base/fd.h"
#include "base/log.h"
#include "base/mem.h"

enum { CAUSE_LINES = 6 };

struct end_job {
    struct job job;
    char vmm_log[PATH_MAX];
    struct vm_place place;
    bool known_dead;
    off_t from;
    size_t log_max;
    char tail[QEMU_STDERR_TAIL + 1];
    struct oom_question oom;
};

static void read_tail(struct end_job *e)
{
    CLEANUP_FD int fd = open(e->vmm_log, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
    struct stat st;
    off_t at;
    ssize_t n;

    if (fd < 0 || fstat(fd, &st) < 0)
        return;
    at = e->from < st.st_size ? e->from : st.st_size;
    if (st.st_size - at > QEMU_STDERR_TAIL)
        at = st.st_size - QEMU_STDERR_TAIL;
    n = pread(fd, e->tail, QEMU_STDERR_TAIL, at);
    e->tail[n > 0 ? n : 0] = '\0';
}

static int end_fn(struct job *job, struct error *err)
{
    struct end_job *e = CONTAINER_OF(job, struct end_job, job);
    CLEANUP_ERROR struct error ignored = ERROR_INIT;

    read_tail(e);
    oom_answer(&e->oom);
    logfile_trim(e->vmm_log, e->log_max, &ignored);
    CRASH_POINT("qemu:end:sockets-there");
    int rc = vm_place_clear(&e->place, e->known_dead, false, err);
    CRASH_POINT("qemu:end:sockets-removed");
    return rc;
}

void process_describe_end(struct backend_vm *bvm, struct backend_exit *end)
{
    memset(end, 0, sizeof(*end));
    end->status = bvm->status;
    end->stderr_tail = bvm->stderr_tail;
    if (bvm->guest_end == GUEST_OFF) {
        end->end = BACKEND_END_GUEST_OFF;
        snprintf(end->detail, sizeof(end->detail), "the guest powered off");
    } else if (bvm->guest_end == GUEST_PANICKED) {
        end->end = BACKEND_END_PANIC;
        snprintf(end->detail, sizeof(end->detail), "the guest panicked");
    } else if (bvm->term_asked && (!bvm->status.known || bvm->status.signal == 0 || bvm->status.signal == SIGTERM)) {
        end->end = BACKEND_END_GUEST_OFF;
        snprintf(end->detail, sizeof(end->detail), "QEMU ended when asked to");
    } else if (bvm->oom) {
        end->end = BACKEND_END_OOM;
        snprintf(end->detail, sizeof(end->detail), "QEMU was killed by the kernel for want of memory (OOM)");
    } else if (!bvm->status.known) {
        end->end = BACKEND_END_KILLED;
        snprintf(end->detail, sizeof(end->detail), "QEMU vanished");
    } else if (bvm->status.signal) {
        const char *name = sigabbrev_np(bvm->status.signal);

        end->end = BACKEND_END_KILLED;
        snprintf(end->detail, sizeof(end->detail), "QEMU was killed by SIG%s", name ? name : "?");
    } else {
        end->end = BACKEND_END_EXITED;
        snprintf(end->detail, sizeof(end->detail), "QEMU exited with status %d", bvm->status.code);
    }
}

/* The last lines of text become causes. */
static void add_causes(struct error *err, const char *text)
{
    const char *lines[CAUSE_LINES];
    size_t n = 0;

    for (const char *p = text; *p;) {
        size_t len = strcspn(p, "\n");

        if (len > 0)
            lines[n++ % CAUSE_LINES] = p;
        p += len + (p[len] == '\n');
    }
    for (size_t i = n > CAUSE_LINES ? n - CAUSE_LINES : 0; i < n; i++) {
        const char *line = lines[i % CAUSE_LINES];

        error_cause(err, "%.*s", (int)strcspn(line, "\n"), line);
    }
}

int process_ended_error(struct backend_vm *bvm, struct error *err)
{
    struct backend_exit end;

    process_describe_end(bvm, &end);
    if (bvm->started)
        error_set(err, ERR_QEMU_QMP_COMMAND_FAILED, "VM %s ended meanwhile: %s", bvm->vm->name, end.detail);
    else
        error_set(err, ERR_QEMU_SPAWN_FAILED, "VM %s did not start: %s", bvm->vm->name, end.detail);
    add_causes(err, bvm->stderr_tail);
    return -1;
}

/* Everything is gone; the last thing done for the process. */
static void deliver(struct backend_vm *bvm)
{
    CLEANUP_ERROR struct error err = ERROR_INIT;
    struct backend_exit end;
    bool was_started = bvm->started, gone = false;

    if (bvm->ended) {
        void (*ended)(struct backend_vm *) = bvm->ended;

        bvm->ended = NULL;
        ended(bvm);
        return;
    }
    if (bvm->kill_asked) {
        bvm->started = false;
        call_end(bvm, NULL);
        return;
    }
    process_describe_end(bvm, &end);
    bvm->ended_early = !was_started;
    if (bvm->call) {
        if (!bvm->press_asked)
            process_ended_error(bvm, &err);
        bvm->gone = &gone;
        call_end(bvm, &err);
        if (gone)
            return;
        bvm->gone = NULL;
    } else if (!was_started) {
        bvm->died = true;
    }
    bvm->started = false;
    if (was_started)
        bvm->events->exited(bvm->arg, &end);
}

static void deliver_if_clear(struct backend_vm *bvm)
{
    if (!bvm->cleared || !bvm->drained)
        return;
    bvm->ending = false;
    bvm->tap_fd = fd_close(bvm->tap_fd);
    deliver(bvm);
}

static void end_done(struct backend_vm *bvm, struct job *job, int rc, struct error *err)
{
    struct end_job *e = CONTAINER_OF(job, struct end_job, job);

    if (rc < 0)
        LOG_WARN("runtime files of a VM stay behind", "vm", bvm->vm->name, "error", err->message);
    memcpy(bvm->stderr_tail, e->tail, sizeof(bvm->stderr_tail));
    oom_told(bvm, &e->oom);
    bvm->cleared = true;
    deliver_if_clear(bvm);
}

static void console_drained(void *arg)
{
    struct backend_vm *bvm = arg;

    bvm->console = NULL;
    bvm->drained = true;
    deliver_if_clear(bvm);
}

void process_clear(struct backend_vm *bvm, bool known_dead)
{
    CLEANUP_ERROR struct error err = ERROR_INIT;
    struct end_job *e = mem_zalloc(sizeof(*e));

    bvm->ending = true;
    bvm->cleared = false;
    bvm->drained = bvm->console == NULL;
    bvm->stderr_tail[0] = '\0';
    if (bvm->console)
        console_end(bvm->console, console_drained, bvm);
    if (e) {
        e->job.fn = end_fn;
        e->job.done = end_done;
        memcpy(e->vmm_log, bvm->vmm_log, sizeof(e->vmm_log));
        vm_place_of(bvm, &e->place);
        e->known_dead = known_dead;
        e->from = (off_t)bvm->log_start;
        e->log_max = bvm->be->vmm_log_max;
        oom_ask(bvm, &e->oom);
    }
    if (job_run(bvm, e ? &e->job : NULL, &err) < 0) {
        LOG_WARN("runtime files of a VM stay behind", "vm", bvm->vm->name, "error", err.message);
        bvm->cleared = true;
        deliver_if_clear(bvm);
    }
}

void process_exited(void *arg, const struct exit_status *status)
{
    struct backend_vm *bvm = arg;

    bvm->status = *status;
    bvm->alive = false;
    vmmlog_stop(bvm);
    child_free(bvm->child);
    bvm->child = NULL;
    proc_watch_free(bvm->watch);
    bvm->watch = NULL;
    monitor_close(bvm);
    guest_close(bvm);
    process_clear(bvm, true);
}

int process_signal(struct backend_vm *bvm, int signum)
{
    if (bvm->child)
        return child_signal(bvm->child, signum);
    if (bvm->watch)
        return proc_watch_signal(bvm->watch, signum);
    errno = ESRCH;
    return -1;
}

int qemu_kill(struct backend_vm *bvm, struct backend_call *call, struct error *err)
{
    (void)err;
    if (!bvm->alive && !bvm->ending)
        return 0;
    call_begin(bvm, call, call_hurry);
    bvm->kill_asked = true;
    if (bvm->alive)
        process_signal(bvm, SIGKILL); /* gone already: its exit is on the way */
    CRASH_POINT("qemu:kill:signalled");
    return OP_WAIT;
}

int qemu_terminate(struct backend_vm *bvm, struct error *err)
{
    if (!bvm->alive && !bvm->ending)
        return error_set(err, ERR_IO, "VM %s has no process", bvm->vm->name);
    bvm->term_asked = true;
    if (bvm->alive && process_signal(bvm, SIGTERM) < 0 && errno != ESRCH)
        return error_errno(err, errno, "QEMU of VM %s cannot be signalled", bvm->vm->name);
    return 0;
}

void process_detach(struct backend_vm *bvm)
{
    child_free(TAKE_PTR(bvm->child));
    proc_watch_free(TAKE_PTR(bvm->watch));
    monitor_close(bvm);
    guest_close(bvm);
    if (bvm->console)
        console_free(TAKE_PTR(bvm->console));
    bvm->tap_fd = fd_close(bvm->tap_fd);
    bvm->lock_fd = fd_close(bvm->lock_fd);
    bvm->alive = false;
    vmmlog_stop(bvm);
}
