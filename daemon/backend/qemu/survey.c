/* survey.c - what the host holds of VMs, whoever knows of them: processes, directories, sockets, files, taps.
 *
 *     pool: /proc ─► RUNTIME/vms/ ─► DATA/vms/ ─► tap devices ─► whose is each? ─► loop: done(list)
 *
 * Runtime directories are listed before data directories: a VM has the latter from its creation to its end, so that what is
 * found in the first list and in none of the second belongs to nobody.  A runtime directory is named by the end of its VM's id
 * alone; whose it is follows from the known ids, its manifest, its process, or a data directory.
 * Failure modes: memory is short, or a directory cannot be listed: there is no survey.  What vanishes while it is looked at
 * was no leftover. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <fts.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "backend/qemu/internal.h"
#include "base/clock.h"
#include "base/fd.h"
#include "base/mem.h"
#include "base/str.h"
#include "loop/work.h"
#include "net/tap.h"

enum {
    TAIL = 12,            /* characters of an id that name its runtime directory */
    TAP_TAIL = 8,         /* and its tap */
    COUNTED_MAX = 20000,  /* files whose sizes are added up for one directory */
    TEMPORARY_MS = 60000, /* a temporary file that old is nobody's any more */
};

struct survey_job {
    char *data_dir, *runtime_dir;
    char (*known)[UUID_TEXT_MAX]; /* sorted */
    size_t n_known;
    const char **by_tail; /* the known ids, sorted by their ends */
    bool failed;          /* memory was short */
    int64_t now;
    struct backend_trace *list, **end;
    void (*done)(void *arg, struct backend_trace *list, struct error *err);
    void *arg;
};

static void job_free(struct survey_job *s)
{
    mem_free(s->data_dir);
    mem_free(s->runtime_dir);
    mem_free(s->known);
    mem_free(s->by_tail);
    mem_free(s);
}

/* ---- the known ---- */

static const char *tail_of(const char *id)
{
    return id + UUID_TEXT_MAX - 1 - TAIL;
}

static int compare_ids(const void *a, const void *b)
{
    return strcmp(a, b);
}

static int compare_tails(const void *a, const void *b)
{
    return strcmp(tail_of(*(const char *const *)a), tail_of(*(const char *const *)b));
}

static bool is_known(const struct survey_job *s, const char *id)
{
    return bsearch(id, s->known, s->n_known, sizeof(s->known[0]), compare_ids) != NULL;
}

static const char *known_by_tail(const struct survey_job *s, const char *tail)
{
    char key[UUID_TEXT_MAX];
    const char *p = key;
    const char **found;

    snprintf(key, sizeof(key), "%*s", UUID_TEXT_MAX - 1, tail);
    found = bsearch(&p, s->by_tail, s->n_known, sizeof(s->by_tail[0]), compare_tails);
    return found ? *found : NULL;
}

/* ---- one trace ---- */

static struct backend_trace *add(struct survey_job *s, enum backend_trace_kind kind, const char *what)
{
    struct backend_trace *t = mem_zalloc(sizeof(*t));

    if (t)
        t->what = mem_strdup(what);
    if (!t || !t->what) {
        mem_free(t);
        s->failed = true;
        return NULL;
    }
    t->kind = kind;
    t->size = -1;
    *s->end = t;
    s->end = &t->next;
    return t;
}

static void set_vm(struct backend_trace *t, const char *id)
{
    t->has_vm = id && uuid_parse(id, &t->vm_id);
}

static void set_stat(struct backend_trace *t, const struct stat *st)
{
    t->born = (int64_t)st->st_mtim.tv_sec * 1000 + st->st_mtim.tv_nsec / 1000000;
    t->dev = st->st_dev;
    t->ino = st->st_ino;
    if (!S_ISDIR(st->st_mode))
        t->size = (int64_t)st->st_blocks * 512;
}

static int64_t size_below(const char *path)
{
    CLEANUP_FREE char *copy = mem_strdup(path);
    char *const roots[] = {copy, NULL};
    FTS *walk = copy ? fts_open(roots, FTS_PHYSICAL | FTS_NOCHDIR | FTS_XDEV, NULL) : NULL;
    int64_t size = 0;
    int n = 0;

    if (!walk)
        return -1;
    for (FTSENT *e; n < COUNTED_MAX && (e = fts_read(walk)) != NULL; n++)
        if (e->fts_info != FTS_DP && e->fts_statp)
            size += (int64_t)e->fts_statp->st_blocks * 512;
    fts_close(walk);
    return size;
}

static void take_manifest(struct survey_job *s, struct backend_trace *t, const struct uuid *id)
{
    CLEANUP_ERROR struct error err = ERROR_INIT;
    struct vm *vm = mem_zalloc(sizeof(*vm));

    if (!vm) {
        s->failed = true;
        return;
    }
    if (manifest_read(t->what, id, vm, &err) < 0) {
        snprintf(t->note, sizeof(t->note), "%.150s", err.message);
        mem_free(vm);
        return;
    }
    t->manifest = vm;
}

/* ---- processes ---- */

struct each_process {
    const char *runtime_dir;
    void (*fn)(void *arg, pid_t pid, const char *dir, const char *uuid);
    void *arg;
};

static void see_process(void *arg, pid_t pid, const char *cmdline, size_t len)
{
    const struct each_process *e = arg;
    const char *pidfile = qemu_argument(cmdline, len, "-pidfile"), *uuid = qemu_argument(cmdline, len, "-uuid");
    size_t n = strlen(e->runtime_dir);
    char dir[NAME_MAX + 1], proc[32];
    struct stat st;

    if (!pidfile || strncmp(pidfile, e->runtime_dir, n) != 0 || !str_prefix(pidfile + n, "/vms/"))
        return;
    pidfile += n + 5;
    n = strcspn(pidfile, "/");
    if (n == 0 || n > NAME_MAX || pidfile[n] != '/' || strchr(pidfile + n + 1, '/'))
        return;
    memcpy(dir, pidfile, n);
    dir[n] = '\0';
    snprintf(proc, sizeof(proc), "/proc/%d", (int)pid);
    if (stat(proc, &st) == 0 && st.st_uid == geteuid()) /* anybody may write anything on a command line */
        e->fn(e->arg, pid, dir, uuid ? uuid : "");
}

void survey_processes(const char *runtime_dir, void (*fn)(void *arg, pid_t pid, const char *dir, const char *uuid),
                      void *arg)
{
    struct each_process e = {runtime_dir, fn, arg};

    proc_each("qemu", see_process, &e);
}

/* Start times count from the boot, and go on while the host sleeps. */
static int64_t started_at(const struct survey_job *s, uint64_t ticks)
{
    struct timespec up;
    long hz = sysconf(_SC_CLK_TCK);

    if (hz <= 0 || clock_gettime(CLOCK_BOOTTIME, &up) != 0)
        return 0;
    return s->now - (up.tv_sec * 1000 + up.tv_nsec / 1000000) + (int64_t)(ticks * 1000 / (uint64_t)hz);
}

static void take_process(void *arg, pid_t pid, const char *dir, const char *uuid)
{
    struct survey_job *s = arg;
    CLEANUP_ERROR struct error gone = ERROR_INIT;
    char what[32];
    struct proc_id id;

    if (proc_identify(pid, &id, &gone) < 0)
        return;
    snprintf(what, sizeof(what), "pid %d", (int)pid);
    struct backend_trace *t = add(s, BACKEND_TRACE_PROCESS, what);
    if (!t)
        return;
    t->proc = id;
    t->born = started_at(s, id.start_ticks);
    if (strlen(uuid) == UUID_TEXT_MAX - 1 && strcmp(tail_of(uuid), dir) == 0)
        set_vm(t, uuid);
    else
        snprintf(t->note, sizeof(t->note), "its command line does not say which VM it is");
}

/* ---- directories ---- */

static bool temporary(const char *name)
{
    size_t len = strlen(name);

    return (len > 4 && strcmp(name + len - 4, ".tmp") == 0) || (len > 5 && strcmp(name + len - 5, ".part") == 0);
}

/* A file that somebody was writing, and is not any more. */
static void take_temporary(struct survey_job *s, const char *dir, const char *name, const char *vm_id)
{
    char path[PATH_MAX];
    struct stat st;

    if (path_join(path, sizeof(path), dir, name, NULL) < 0 || lstat(path, &st) < 0 || S_ISDIR(st.st_mode) ||
        s->now - ((int64_t)st.st_mtim.tv_sec * 1000) < TEMPORARY_MS)
        return;
    struct backend_trace *t = add(s, BACKEND_TRACE_FILE, path);
    if (t) {
        set_stat(t, &st);
        set_vm(t, vm_id);
    }
}

static int each_name(const char *dir, void (*fn)(struct survey_job *s, const char *dir, const char *name),
                     struct survey_job *s, struct error *err)
{
    DIR *d = opendir(dir);
    const struct dirent *entry;

    if (!d)
        return errno == ENOENT ? 0 : error_errno(err, errno, "cannot list %s", dir);
    while ((entry = readdir(d)) != NULL)
        if (strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0)
            fn(s, dir, entry->d_name);
    closedir(d);
    return 0;
}

/* What is no directory, in a place that has directories only. */
static struct backend_trace *take_entry(struct survey_job *s, const char *path, enum backend_trace_kind dir_kind)
{
    struct stat st;

    if (lstat(path, &st) < 0)
        return NULL;
    struct backend_trace *t = add(s,
                                  S_ISDIR(st.st_mode)    ? dir_kind
                                  : S_ISSOCK(st.st_mode) ? BACKEND_TRACE_SOCKET
                                                         : BACKEND_TRACE_FILE,
                                  path);
    if (t)
        set_stat(t, &st);
    return t;
}

static void see_runtime(struct survey_job *s, const char *dir, const char *name)
{
    char path[PATH_MAX], id[UUID_TEXT_MAX];
    const char *known = strlen(name) == TAIL ? known_by_tail(s, name) : NULL;

    if (path_join(path, sizeof(path), dir, name, NULL) < 0)
        return;
    struct backend_trace *t = take_entry(s, path, BACKEND_TRACE_RUNTIME_DIR);
    if (!t || t->kind != BACKEND_TRACE_RUNTIME_DIR)
        return;
    set_vm(t, known);
    if (known)
        return;
    t->size = size_below(path);
    if (strlen(name) != TAIL)
        return;
    take_manifest(s, t, NULL);
    if (t->manifest && strcmp(tail_of(uuid_text(&t->manifest->id, id)), name) == 0) {
        set_vm(t, id);
    } else if (t->manifest) {
        snprintf(t->note, sizeof(t->note), "its manifest is another VM's");
        vm_done(t->manifest);
        mem_free(TAKE_PTR(t->manifest));
    }
}

/* Only its manifest, and what was left half written. */
static void see_known(struct survey_job *s, const char *path, const char *id)
{
    int fd = open(path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    DIR *d = fd >= 0 ? fdopendir(fd) : NULL;
    const struct dirent *entry;
    bool has_manifest = false;

    while (d && (entry = readdir(d)) != NULL) {
        has_manifest |= strcmp(entry->d_name, MANIFEST_NAME) == 0;
        if (temporary(entry->d_name))
            take_temporary(s, path, entry->d_name, id);
    }
    if (!d) {
        fd_close(fd);
        return;
    }
    closedir(d);
    if (has_manifest)
        return;
    struct backend_trace *t = add(s, BACKEND_TRACE_DATA_DIR, path);
    if (t) {
        set_vm(t, id);
        t->lacks_manifest = true;
    }
}

static void see_data(struct survey_job *s, const char *dir, const char *name)
{
    char path[PATH_MAX];
    struct uuid id;

    if (path_join(path, sizeof(path), dir, name, NULL) < 0)
        return;
    bool is_id = strlen(name) == UUID_TEXT_MAX - 1 && uuid_parse(name, &id);
    if (is_id && is_known(s, name)) {
        see_known(s, path, name);
        return;
    }
    struct backend_trace *t = take_entry(s, path, BACKEND_TRACE_DATA_DIR);
    if (!t || t->kind != BACKEND_TRACE_DATA_DIR)
        return;
    if (is_id) {
        set_vm(t, name);
        take_manifest(s, t, &id);
    }
    t->size = size_below(path);
}

static void see_top(struct survey_job *s, const char *dir, const char *name)
{
    if (temporary(name))
        take_temporary(s, dir, name, NULL);
}

/* ---- whose it is ---- */

static void see_tap(void *arg, const char *name)
{
    add(arg, BACKEND_TRACE_TAP, name);
}

/* By the other traces, which may be of a VM that nobody knows. */
static void find_owners(struct survey_job *s)
{
    char id[UUID_TEXT_MAX];

    for (struct backend_trace *t = s->list; t; t = t->next) {
        size_t tail = t->kind == BACKEND_TRACE_TAP ? TAP_TAIL : TAIL;
        const char *slash = strrchr(t->what, '/'), *name = t->kind == BACKEND_TRACE_TAP ? t->what + 2 : slash + 1;

        if (t->has_vm || (t->kind != BACKEND_TRACE_TAP && t->kind != BACKEND_TRACE_RUNTIME_DIR) || strlen(name) != tail)
            continue;
        for (size_t i = 0; i < s->n_known && !t->has_vm; i++)
            if (strcmp(s->known[i] + UUID_TEXT_MAX - 1 - tail, name) == 0)
                set_vm(t, s->known[i]);
        for (struct backend_trace *o = s->list; o && !t->has_vm; o = o->next)
            if (o->has_vm && (o->kind == BACKEND_TRACE_PROCESS || o->kind == BACKEND_TRACE_DATA_DIR) &&
                strcmp(uuid_text(&o->vm_id, id) + UUID_TEXT_MAX - 1 - tail, name) == 0)
                set_vm(t, id);
    }
}

/* The directories of the manifest's VM are where this vmmd has them, whatever it says. */
static void set_places(struct survey_job *s)
{
    char id[UUID_TEXT_MAX], work_dir[PATH_MAX], path[PATH_MAX];

    for (struct backend_trace *t = s->list; t; t = t->next) {
        struct vm *vm = t->manifest;

        if (!vm || snprintf(work_dir, sizeof(work_dir), "%s/vms/%s", s->data_dir, uuid_text(&vm->id, id)) >=
                       (int)sizeof(work_dir) - 32)
            continue;
        set_text(&vm->runtime.work_dir, work_dir);
        if (path_join(path, sizeof(path), work_dir, "overlay.qcow2", NULL) == 0 && vm_spec_has_image(&vm->spec))
            set_text(&vm->runtime.overlay_path, path);
        if (path_join(path, sizeof(path), work_dir, "seed.iso", NULL) == 0 && vm->spec.has_cloud_init)
            set_text(&vm->runtime.seed_iso_path, path);
        if (access(work_dir, F_OK) != 0 || (vm->runtime.overlay_path && access(vm->runtime.overlay_path, F_OK) != 0)) {
            snprintf(t->note, sizeof(t->note), "the disk that its manifest speaks of is gone");
            vm_done(vm);
            mem_free(TAKE_PTR(t->manifest));
        }
    }
}

static int survey_fn(void *data, struct error *err)
{
    struct survey_job *s = data;
    char data_vms[PATH_MAX], runtime_vms[PATH_MAX];

    s->now = clock_wall_ms();
    if (path_join(data_vms, sizeof(data_vms), s->data_dir, "vms", err) < 0 ||
        path_join(runtime_vms, sizeof(runtime_vms), s->runtime_dir, "vms", err) < 0)
        return -1;
    survey_processes(s->runtime_dir, take_process, s);
    if (each_name(runtime_vms, see_runtime, s, err) < 0 || each_name(data_vms, see_data, s, err) < 0 ||
        each_name(s->data_dir, see_top, s, err) < 0)
        return -1;
    tap_each_idle(see_tap, s);
    find_owners(s);
    set_places(s);
    return s->failed ? error_set(err, ERR_DAEMON_OVERLOADED, "out of memory for a look at the host") : 0;
}

static void surveyed(void *arg, void *data, int rc, struct error *err)
{
    struct survey_job *s = data;

    (void)arg;
    if (rc < 0) {
        backend_trace_free(s->list);
        s->list = NULL;
    }
    s->done(s->arg, s->list, err);
    job_free(s);
}

int qemu_survey(struct backend *ops, const struct uuid *known, size_t n_known,
                void (*done)(void *arg, struct backend_trace *list, struct error *err), void *arg, struct error *err)
{
    const struct qemu_backend *be = CONTAINER_OF(ops, struct qemu_backend, ops);
    struct survey_job *s = mem_zalloc(sizeof(*s));

    if (s) {
        s->end = &s->list;
        s->done = done;
        s->arg = arg;
        s->n_known = n_known;
        s->data_dir = mem_strdup(be->data_dir);
        s->runtime_dir = mem_strdup(be->runtime_dir);
        s->known = mem_zalloc((n_known + 1) * sizeof(s->known[0]));
        s->by_tail = mem_zalloc((n_known + 1) * sizeof(s->by_tail[0]));
    }
    if (!s || !s->data_dir || !s->runtime_dir || !s->known || !s->by_tail) {
        if (s)
            job_free(s);
        return error_set(err, ERR_DAEMON_OVERLOADED, "out of memory for a look at the host");
    }
    for (size_t i = 0; i < n_known; i++)
        s->by_tail[i] = uuid_text(&known[i], s->known[i]);
    qsort(s->by_tail, n_known, sizeof(s->by_tail[0]), compare_tails);
    if (work_run(be->loop, survey_fn, surveyed, s, NULL, err) == 0)
        return 0;
    job_free(s);
    return -1;
}
