/* adopt.c - after a restart of the daemon: finds a VM's QEMU again and learns how it stands.
 *
 *     recorded process alive? ─no─► search by command line ─none─► clear remains ─► NOTHING
 *             └─yes──────────────┬──────────┘
 *          watch it ─► monitor ─► query-uuid ─► query-kvm ─► query-status ─► RUNNING, SUSPENDED
 *                         └ mute: RUNNING, unresponsive told after       └► ended meanwhile: quit ─► ENDED
 *
 * A process is trusted when its boot, pid, start time and program are the recorded ones and its monitor names the VM.
 * One that dies in the middle is found as NOTHING, with its end described.  A monitor of another VM is let alone. */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "backend/qemu/internal.h"
#include "base/log.h"
#include "base/mem.h"

/* ---- the search, on the pool ---- */

struct search_job {
    struct job job;
    char id[UUID_TEXT_MAX];
    char run_dir[PATH_MAX];
    pid_t pid; /* result; 0: none */
    struct proc_id found;
};

static int search_fn(struct job *job, struct error *err)
{
    struct search_job *s = CONTAINER_OF(job, struct search_job, job);
    CLEANUP_ERROR struct error ignored = ERROR_INIT;

    (void)err;
    s->pid = qemu_find(s->id, s->run_dir);
    if (s->pid && proc_identify(s->pid, &s->found, &ignored) < 0)
        s->pid = 0;
    return 0;
}

/* ---- results ---- */

static void adopt_finish(struct backend_vm *bvm, enum backend_found found)
{
    bvm->adoption->found = found;
    bvm->adoption = NULL;
    bvm->adopting = false;
    bvm->ended = NULL;
    if (found == BACKEND_FOUND_RUNNING || found == BACKEND_FOUND_SUSPENDED) {
        bvm->started = true;
        bvm->paused = found == BACKEND_FOUND_SUSPENDED;
        guest_open(bvm);
    }
    call_end(bvm, NULL);
}

/* The process and what it left are gone. */
static void adopt_gone(struct backend_vm *bvm)
{
    process_describe_end(bvm, &bvm->adoption->end);
    adopt_finish(bvm, bvm->guest_end == GUEST_RUNS && !bvm->oom ? BACKEND_FOUND_NOTHING : BACKEND_FOUND_ENDED);
}

static void adopt_nothing(struct backend_vm *bvm)
{
    bvm->ended = adopt_gone;
    process_clear(bvm, false);
}

static void adopt_mute(struct backend_vm *bvm)
{
    bool gone = false;

    bvm->gone = &gone;
    /* What it does cannot be asked: it is believed to do what it last did. */
    adopt_finish(bvm, bvm->vm->state == VM_SUSPENDED ? BACKEND_FOUND_SUSPENDED : BACKEND_FOUND_RUNNING);
    if (gone)
        return;
    bvm->gone = NULL;
    monitor_set_mute(bvm, true);
}

/* ---- the conversation ---- */

static void adopt_status(struct backend_vm *bvm, json_t *ret, struct error *err)
{
    const char *status = json_string_value(json_object_get(ret, "status"));
    bool gone = false;

    if (error_is_set(err) || !status) {
        adopt_mute(bvm);
        return;
    }
    if (strcmp(status, "shutdown") == 0 || strcmp(status, "guest-panicked") == 0) {
        monitor_take_status(bvm, status); /* QEMU is asked to go; adopt_gone follows */
        return;
    }
    bvm->gone = &gone;
    adopt_finish(bvm, strcmp(status, "running") == 0 ? BACKEND_FOUND_RUNNING : BACKEND_FOUND_SUSPENDED);
    if (gone)
        return;
    bvm->gone = NULL;
    if (strcmp(status, "io-error") == 0)
        monitor_found_io_error(bvm);
}

static void adopt_kvm(struct backend_vm *bvm, json_t *ret, struct error *err)
{
    CLEANUP_ERROR struct error own = ERROR_INIT;

    if (!error_is_set(err))
        set_text(&bvm->vm->runtime.accel, json_is_true(json_object_get(ret, "enabled")) ? "kvm" : "tcg");
    if (monitor_ask(bvm, "query-status", NULL, adopt_status, &own) < 0)
        adopt_mute(bvm);
}

static void adopt_uuid(struct backend_vm *bvm, json_t *ret, struct error *err)
{
    const char *uuid = json_string_value(json_object_get(ret, "UUID"));
    CLEANUP_ERROR struct error own = ERROR_INIT;

    if (error_is_set(err)) {
        adopt_mute(bvm);
    } else if (!uuid || strcmp(uuid, bvm->id) != 0) {
        LOG_WARN("a monitor answers for another VM", "vm", bvm->vm->name, "uuid", uuid);
        process_detach(bvm);
        adopt_finish(bvm, BACKEND_FOUND_NOTHING);
    } else if (monitor_ask(bvm, "query-kvm", NULL, adopt_kvm, &own) < 0) {
        adopt_mute(bvm);
    }
}

void adopt_connected(struct backend_vm *bvm, struct error *err)
{
    CLEANUP_ERROR struct error own = ERROR_INIT;

    if (!bvm->call)
        return;
    if ((err && error_is_set(err)) || monitor_ask(bvm, "query-uuid", NULL, adopt_uuid, &own) < 0)
        adopt_mute(bvm);
}

/* ---- the process is there ---- */

static void record(struct backend_vm *bvm, const struct proc_id *id, const struct plan_paths *paths)
{
    struct vm_runtime *rt = &bvm->vm->runtime;

    rt->pid = id->pid;
    rt->start_ticks = id->start_ticks;
    memcpy(rt->boot_id, id->boot_id, sizeof(rt->boot_id));
    set_text(&rt->exe, id->exe);
    set_text(&rt->qmp_socket, paths->qmp);
    set_text(&rt->console_socket, paths->console);
}

static void open_console(struct backend_vm *bvm, const struct plan_paths *paths)
{
    CLEANUP_ERROR struct error err = ERROR_INIT;

    bvm->console = console_new(bvm->be->loop, bvm->console_log, bvm->be->console_log_max, &err);
    if (!bvm->console)
        return;
    logfile_gap(console_log(bvm->console), "vmmd was away: console output may be missing here");
    if (console_connect(bvm->console, paths->console, &err) < 0) {
        console_free(bvm->console);
        bvm->console = NULL;
    }
}

static int take_process(struct backend_vm *bvm, const struct proc_id *id)
{
    CLEANUP_ERROR struct error err = ERROR_INIT;
    struct plan_paths paths;

    if (plan_paths(bvm, &paths, &err) < 0)
        return -1;
    bvm->watch = proc_watch_new(bvm->be->loop, id, process_exited, bvm, &err);
    if (!bvm->watch)
        return -1;
    bvm->alive = true;
    vmmlog_keep(bvm);
    bvm->ended = adopt_gone;
    record(bvm, id, &paths);
    oom_watch(bvm);
    open_console(bvm, &paths);
    if (monitor_open(bvm, paths.qmp, QEMU_COMMAND_MS, &err) < 0)
        LOG_WARN("the monitor of an adopted VM cannot be opened", "vm", bvm->vm->name, "error", err.message);
    return 0;
}

static void searched(struct backend_vm *bvm, struct job *job, int rc, struct error *err)
{
    struct search_job *s = CONTAINER_OF(job, struct search_job, job);

    (void)rc;
    (void)err;
    if (!bvm->call) /* cancelled meanwhile */
        return;
    if (!s->pid || take_process(bvm, &s->found) < 0)
        adopt_nothing(bvm);
    else if (!bvm->qmp)
        adopt_mute(bvm);
}

static int search(struct backend_vm *bvm, struct error *err)
{
    struct search_job *s = mem_zalloc(sizeof(*s));

    if (s) {
        s->job.fn = search_fn;
        s->job.done = searched;
        memcpy(s->id, bvm->id, sizeof(s->id));
        memcpy(s->run_dir, bvm->run_dir, sizeof(s->run_dir));
    }
    return job_run(bvm, s ? &s->job : NULL, err);
}

static void adopt_hurry(struct backend_vm *bvm)
{
    bvm->adopting = false;
    bvm->adoption = NULL;
    bvm->ended = NULL;
    call_hurry(bvm);
}

int qemu_adopt(struct backend_vm *bvm, struct backend_adoption *ret, struct backend_call *call, struct error *err)
{
    const struct vm_runtime *rt = &bvm->vm->runtime;
    struct proc_id id = {.pid = rt->pid, .start_ticks = rt->start_ticks};

    memset(ret, 0, sizeof(*ret));
    bvm->adoption = ret;
    bvm->adopting = true;
    call_begin(bvm, call, adopt_hurry);
    if (rt->pid && rt->exe) {
        memcpy(id.boot_id, rt->boot_id, sizeof(id.boot_id));
        snprintf(id.exe, sizeof(id.exe), "%s", rt->exe);
        if (proc_is(&id) && take_process(bvm, &id) == 0) {
            if (!bvm->qmp)
                adopt_mute(bvm);
            return OP_WAIT;
        }
    }
    if (search(bvm, err) < 0) {
        bvm->call = NULL;
        bvm->adopting = false;
        bvm->adoption = NULL;
        return -1;
    }
    return OP_WAIT;
}
