/* manifest.c - each VM written down beside its disk, and beside its sockets while it runs.
 *
 *     create ─► vms/ID/manifest.json        start ─► the same anew, and RUNTIME/vms/SHORTID/manifest.json
 *     PATCH  ─► both where they are, a while later
 *
 * Rendered on the loop, written on the pool (temporary file, fsync, rename), one after the other for each VM, so that the
 * newest is what stays.
 * Failure modes: no room: a create fails, a start fails unless there is an older one; a PATCH is logged and goes on. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "backend/qemu/internal.h"
#include "base/fd.h"
#include "base/log.h"
#include "base/mem.h"
#include "loop/work.h"
#include "model/manifest.h"

struct manifest_write {
    struct manifest_write *next;     /* under way */
    struct manifest_write *follower; /* of the same VM, to be written after */
    struct qemu_backend *be;         /* NULL: freed meanwhile */
    struct backend_vm *bvm;          /* whose call it is; NULL: nobody's, or detached */
    void (*done)(struct backend_vm *bvm, struct error *err);
    char id[UUID_TEXT_MAX];
    char name[64];
    char work_dir[PATH_MAX], run_dir[PATH_MAX];
    bool with_run_dir; /* else where it is */
    bool by_call;
    char *text;
    size_t len;
    struct error warning;
};

static void write_free(struct manifest_write *w)
{
    mem_free(w->text);
    error_done(&w->warning);
    mem_free(w);
}

/* ---- on the pool ---- */

static int write_in(const struct manifest_write *w, const char *dir, struct error *err)
{
    char path[PATH_MAX];

    return path_join(path, sizeof(path), dir, MANIFEST_NAME, err) < 0 ? -1
                                                                      : file_write(path, w->text, w->len, 0600, err);
}

static bool is_in(const char *dir, const char *name)
{
    char path[PATH_MAX];

    return path_join(path, sizeof(path), dir, name, NULL) == 0 && access(path, F_OK) == 0;
}

static int write_fn(void *data, struct error *err)
{
    struct manifest_write *w = data;

    if (!w->by_call && access(w->work_dir, F_OK) != 0)
        return 0; /* it was destroyed meanwhile */
    if (write_in(w, w->work_dir, &w->warning) < 0 &&
        !(w->by_call && w->with_run_dir && is_in(w->work_dir, MANIFEST_NAME))) {
        error_move(err, &w->warning);
        return -1;
    }
    if (!w->with_run_dir && access(w->run_dir, F_OK) != 0)
        return 0;
    return w->by_call && !w->with_run_dir ? 0 : write_in(w, w->run_dir, err);
}

int manifest_read(const char *dir, const struct uuid *id, struct vm *ret, struct error *err)
{
    CLEANUP_FREE char *text = NULL;
    char path[PATH_MAX];
    struct stat st;
    size_t len = 0;

    if (path_join(path, sizeof(path), dir, MANIFEST_NAME, err) < 0)
        return -1;
    CLEANUP_FD int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY);
    if (fd < 0 && errno == ENOENT)
        return error_set(err, ERR_IO, "there is no manifest");
    if (fd < 0 || fstat(fd, &st) < 0)
        return error_errno(err, errno, "the manifest cannot be opened");
    if (!S_ISREG(st.st_mode) || st.st_uid != geteuid() || st.st_size > MANIFEST_MAX)
        return error_set(err, ERR_IO, "the manifest is no file of ours");
    text = mem_alloc((size_t)st.st_size + 1);
    if (!text)
        return error_set(err, ERR_DAEMON_OVERLOADED, "out of memory");
    while (len < (size_t)st.st_size) {
        ssize_t n = read(fd, text + len, (size_t)st.st_size - len);

        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            break;
        len += (size_t)n;
    }
    return vm_manifest_parse(text, len, id, "qemu", ret, err);
}

/* ---- on the loop ---- */

static void begin(struct qemu_backend *be, struct manifest_write *w);

static void end(struct manifest_write *w, struct error *err)
{
    if (error_is_set(&w->warning))
        LOG_WARN("the VM's manifest is not the newest", "vm", w->name, "error", w->warning.message);
    if (w->bvm)
        w->done(w->bvm, err);
    else if (error_is_set(err) && !w->by_call)
        LOG_WARN("the VM's manifest could not be written", "vm", w->name, "error", err->message);
}

static void written(void *arg, void *data, int rc, struct error *err)
{
    struct manifest_write *w = data;
    struct qemu_backend *be = w->be;

    (void)arg;
    (void)rc;
    if (be) {
        struct manifest_write **p = &be->manifests;

        while (*p != w)
            p = &(*p)->next;
        *p = w->next;
        if (w->follower)
            begin(be, w->follower);
    }
    end(w, err);
    write_free(w);
}

static void begin(struct qemu_backend *be, struct manifest_write *w)
{
    CLEANUP_ERROR struct error err = ERROR_INIT;

    w->next = be->manifests;
    be->manifests = w;
    if (work_run(be->loop, write_fn, written, w, NULL, &err) == 0)
        return;
    written(NULL, w, -1, &err);
}

/* After the one of the same VM that was asked for last, if there is one. */
static void enqueue(struct qemu_backend *be, struct manifest_write *w)
{
    struct manifest_write *before = be->manifests;

    while (before && strcmp(before->id, w->id) != 0)
        before = before->next;
    if (!before) {
        begin(be, w);
        return;
    }
    while (before->follower)
        before = before->follower;
    before->follower = w;
}

static struct manifest_write *write_new(struct qemu_backend *be, const struct vm *vm)
{
    struct manifest_write *w = mem_zalloc(sizeof(*w));

    if (!w)
        return NULL;
    w->be = be;
    uuid_text(&vm->id, w->id);
    snprintf(w->name, sizeof(w->name), "%s", vm->name);
    w->text = vm_manifest_text(vm, &w->len);
    if (!w->text || qemu_dirs(be, w->id, w->work_dir, w->run_dir, NULL) < 0) {
        write_free(w);
        return NULL;
    }
    return w;
}

int manifest_write(struct backend_vm *bvm, bool with_run_dir, void (*done)(struct backend_vm *bvm, struct error *err),
                   struct error *err)
{
    struct manifest_write *w = write_new(bvm->be, bvm->vm);

    if (!w)
        return error_set(err, ERR_DAEMON_OVERLOADED, "no memory for the manifest of VM %s", bvm->vm->name);
    w->bvm = bvm;
    w->done = done;
    w->by_call = true;
    w->with_run_dir = with_run_dir;
    enqueue(bvm->be, w);
    return 0;
}

void qemu_manifest(struct backend *ops, const struct vm *vm)
{
    struct qemu_backend *be = CONTAINER_OF(ops, struct qemu_backend, ops);
    struct manifest_write *w = write_new(be, vm);

    if (w)
        enqueue(be, w);
    else
        LOG_WARN("the VM's manifest could not be written", "vm", vm->name, "error", "out of memory");
}

static void forget(struct manifest_write *list, const struct backend_vm *bvm)
{
    for (struct manifest_write *w = list; w; w = w->next)
        for (struct manifest_write *f = w; f; f = f->follower)
            if (!bvm || f->bvm == bvm)
                f->bvm = NULL;
}

void manifests_forget(struct backend_vm *bvm)
{
    forget(bvm->be->manifests, bvm);
}

void manifests_drop(struct qemu_backend *be)
{
    forget(be->manifests, NULL);
    for (struct manifest_write *w = be->manifests; w; w = w->next) {
        w->be = NULL; /* the pool ends it; what was to follow is not written */
        for (struct manifest_write *f = w->follower, *next; f; f = next) {
            next = f->follower;
            write_free(f);
        }
        w->follower = NULL;
    }
    be->manifests = NULL;
}
