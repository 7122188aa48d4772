/* reap.c - removes what nobody owns: processes first, directories last, all on the pool.
 *
 *     each trace ─► is it still what was seen? ─► does a process hold its VM? ─► ended, unlinked, removed
 *
 * A process is signalled through its pidfd, after its pid, start time, program and command line were found to be what they were.
 * A path is only ever one of RUNTIME/vms or DATA, is the same inode as before, and no link is followed.
 * Failure modes: anything that is not so stays, with the reason. */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/pidfd.h>
#include <sys/stat.h>
#include <unistd.h>

#include "backend/qemu/internal.h"
#include "base/fd.h"
#include "base/mem.h"
#include "base/str.h"
#include "loop/work.h"
#include "net/tap.h"

enum { KILL_WAIT_MS = 10000 };

struct reap_job {
    char *data_dir, *runtime_dir;
    struct backend_trace *list;
    struct living *living;
    bool short_of_memory;
    void (*done)(void *arg, struct backend_trace *list, struct error *err);
    void *arg;
};

/* ---- processes ---- */

/* A QEMU of ours that lives. */
struct living {
    struct living *next;
    pid_t pid;
    char uuid[UUID_TEXT_MAX];
    char dir[UUID_TEXT_MAX]; /* its runtime directory's name */
};

static void note_living(void *arg, pid_t pid, const char *dir, const char *uuid)
{
    struct reap_job *r = arg;
    struct living *l = mem_zalloc(sizeof(*l));

    if (!l) {
        r->short_of_memory = true;
        return;
    }
    l->pid = pid;
    snprintf(l->uuid, sizeof(l->uuid), "%s", uuid);
    snprintf(l->dir, sizeof(l->dir), "%s", dir);
    l->next = r->living;
    r->living = l;
}

static void forget_living(struct reap_job *r)
{
    for (struct living *l = r->living, *next; l; l = next) {
        next = l->next;
        mem_free(l);
    }
    r->living = NULL;
}

static void note_all_living(struct reap_job *r)
{
    forget_living(r);
    survey_processes(r->runtime_dir, note_living, r);
}

static bool is_ours(const struct reap_job *r, const struct backend_trace *t)
{
    char id[UUID_TEXT_MAX];

    for (const struct living *l = r->living; l; l = l->next)
        if (l->pid == t->proc.pid)
            return !t->has_vm || strcmp(l->uuid, uuid_text(&t->vm_id, id)) == 0;
    return false;
}

static int end_process(struct reap_job *r, const struct backend_trace *t, struct error *err)
{
    CLEANUP_FD int pidfd = pidfd_open(t->proc.pid, 0);
    struct pollfd p = {.fd = pidfd, .events = POLLIN};

    if (pidfd < 0)
        return errno == ESRCH ? 0 : error_errno(err, errno, "%s cannot be held", t->what);
    /* What the fd holds is what is looked at from here on. */
    if (!proc_is(&t->proc))
        return 0;
    note_all_living(r);
    if (!is_ours(r, t))
        return error_set(err, ERR_IO, "%s is no QEMU of ours by now", t->what);
    if (pidfd_send_signal(pidfd, SIGKILL, NULL, 0) < 0 && errno != ESRCH)
        return error_errno(err, errno, "%s cannot be ended", t->what);
    if (poll(&p, 1, KILL_WAIT_MS) != 1)
        return error_set(err, ERR_IO, "%s was killed and has not ended yet", t->what);
    return 0;
}

/* ---- what is on disk ---- */

/* Directly in RUNTIME/vms or DATA/vms, or a temporary file in DATA or in a directory of DATA/vms. */
static bool is_below(const struct reap_job *r, const struct backend_trace *t)
{
    const char *const tops[] = {r->runtime_dir, r->data_dir};

    if (strstr(t->what, "/../") || strstr(t->what, "/./"))
        return false;
    for (size_t i = 0; i < 2; i++) {
        size_t n = strlen(tops[i]);
        const char *rest = t->what + n;

        if (strncmp(t->what, tops[i], n) != 0 || *rest != '/')
            continue;
        if (str_prefix(rest, "/vms/") && rest[5] != '\0' && (!strchr(rest + 5, '/') || t->kind == BACKEND_TRACE_FILE))
            return true;
        if (t->kind == BACKEND_TRACE_FILE && i == 1 && rest[1] != '\0' && !strchr(rest + 1, '/'))
            return true;
    }
    return false;
}

static bool kind_fits(const struct backend_trace *t, mode_t mode)
{
    return S_ISDIR(mode)    ? t->kind == BACKEND_TRACE_RUNTIME_DIR || t->kind == BACKEND_TRACE_DATA_DIR
           : S_ISSOCK(mode) ? t->kind == BACKEND_TRACE_SOCKET
                            : t->kind == BACKEND_TRACE_FILE;
}

/* The directory that it lies in: `vms` may be a link that the host's owner made, a VM's directory may not. */
static int open_parent(const struct reap_job *r, const struct backend_trace *t, const char **ret_name)
{
    char parent[PATH_MAX];
    const char *slash = strrchr(t->what, '/');
    const char *rest = t->what + strlen(str_prefix(t->what, r->data_dir) ? r->data_dir : r->runtime_dir);

    snprintf(parent, sizeof(parent), "%.*s", (int)(slash - t->what), t->what);
    *ret_name = slash + 1;
    bool in_vm = str_prefix(rest, "/vms/") && strchr(rest + 5, '/');
    return open(parent, O_RDONLY | O_DIRECTORY | O_CLOEXEC | (in_vm ? O_NOFOLLOW : 0));
}

static int remove_path(const struct reap_job *r, const struct backend_trace *t, struct error *err)
{
    const char *name;
    struct stat st;

    if (!is_below(r, t))
        return error_set(err, ERR_IO, "%s is not below vmmd's directories", t->what);
    CLEANUP_FD int parent = open_parent(r, t, &name);
    if (parent < 0 || fstatat(parent, name, &st, AT_SYMLINK_NOFOLLOW) < 0)
        return errno == ENOENT ? 0 : error_errno(err, errno, "cannot look at %s", t->what);
    if (st.st_dev != t->dev || st.st_ino != t->ino || !kind_fits(t, st.st_mode))
        return error_set(err, ERR_IO, "%s is another one by now", t->what);
    if (S_ISDIR(st.st_mode))
        return dir_remove(t->what, err);
    return unlinkat(parent, name, 0) == 0 || errno == ENOENT ? 0 : error_errno(err, errno, "cannot remove %s", t->what);
}

static pid_t holder(const struct reap_job *r, const struct backend_trace *t)
{
    char id[UUID_TEXT_MAX] = "";
    const char *slash = strrchr(t->what, '/');

    if (t->has_vm)
        uuid_text(&t->vm_id, id);
    for (const struct living *l = r->living; l; l = l->next)
        if ((t->has_vm && strcmp(l->uuid, id) == 0) ||
            (t->kind == BACKEND_TRACE_RUNTIME_DIR && strcmp(l->dir, slash + 1) == 0))
            return l->pid;
    return 0;
}

/* Nothing is taken from a VM whose QEMU lives, or that is just being started: a start takes the same lock. */
static int hold(const struct reap_job *r, const struct backend_trace *t, int *ret_lock, struct error *err)
{
    struct vm_place place;
    struct stat st;
    pid_t pid = holder(r, t);

    if (pid)
        return error_set(err, ERR_VM_INVALID_STATE, "the QEMU that has it (pid %d) lives", (int)pid);
    if (!t->has_vm)
        return 0;
    uuid_text(&t->vm_id, place.id);
    snprintf(place.name, sizeof(place.name), "%s", place.id);
    if (qemu_dirs_in(r->data_dir, r->runtime_dir, place.id, place.work_dir, place.run_dir, err) < 0)
        return -1;
    if (lstat(place.work_dir, &st) < 0 || !S_ISDIR(st.st_mode))
        return 0;
    *ret_lock = vm_lock_take(&place, t->kind != BACKEND_TRACE_DATA_DIR, err);
    return *ret_lock < 0 && error_is_set(err) ? -1 : 0;
}

static int reap_one(struct reap_job *r, const struct backend_trace *t, struct error *err)
{
    CLEANUP_FD int lock = -1;

    if (t->kind == BACKEND_TRACE_PROCESS)
        return end_process(r, t, err);
    /* A temporary file that old is no part of anything that runs. */
    if (t->kind != BACKEND_TRACE_FILE && hold(r, t, &lock, err) < 0)
        return -1;
    return t->kind == BACKEND_TRACE_TAP ? tap_remove(t->what, err) : remove_path(r, t, err);
}

static int reap_fn(void *data, struct error *err)
{
    struct reap_job *r = data;

    (void)err;
    for (int kind = BACKEND_TRACE_PROCESS; kind <= BACKEND_TRACE_DATA_DIR; kind++) {
        if (kind == BACKEND_TRACE_PROCESS + 1)
            note_all_living(r);
        for (struct backend_trace *t = r->list; t; t = t->next) {
            if ((int)t->kind != kind)
                continue;
            if (r->short_of_memory)
                error_set(&t->failure, ERR_DAEMON_OVERLOADED, "out of memory to look at who lives");
            else
                t->removed = reap_one(r, t, &t->failure) == 0;
        }
    }
    forget_living(r);
    return 0;
}

static void reap_free(struct reap_job *r)
{
    mem_free(r->data_dir);
    mem_free(r->runtime_dir);
    mem_free(r);
}

static void reaped(void *arg, void *data, int rc, struct error *err)
{
    struct reap_job *r = data;

    (void)arg;
    (void)rc;
    r->done(r->arg, r->list, err);
    reap_free(r);
}

int qemu_reap(struct backend *ops, struct backend_trace *list,
              void (*done)(void *arg, struct backend_trace *list, struct error *err), void *arg, struct error *err)
{
    const struct qemu_backend *be = CONTAINER_OF(ops, struct qemu_backend, ops);
    struct reap_job *r = mem_zalloc(sizeof(*r));

    if (r) {
        *r = (struct reap_job){.list = list, .done = done, .arg = arg};
        r->data_dir = mem_strdup(be->data_dir);
        r->runtime_dir = mem_strdup(be->runtime_dir);
    }
    if (!r || !r->data_dir || !r->runtime_dir) {
        if (r)
            reap_free(r);
        return error_set(err, ERR_DAEMON_OVERLOADED, "out of memory to remove what is left behind");
    }
    if (work_run(be->loop, reap_fn, reaped, r, NULL, err) == 0)
        return 0;
    reap_free(r);
    return -1;
}
