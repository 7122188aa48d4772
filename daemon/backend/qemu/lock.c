/* lock.c - who has a VM's disk: a lock that outlives vmmd, and the search for a VM's process.
 *
 *     vms/ID/lock, flock'ed ─► the open file is QEMU's as well (an fd that it inherits) ─► the kernel lets go when both are gone
 *
 * So the kernel itself says that some process has the disk, whatever vmmd knows: also a vmmd whose database is lost or old.
 * vmmd holds it from prepare to spawn, and while it removes what a VM had; QEMU holds it as long as it lives.
 * Failure modes: the lock is held: the holder is looked for by its command line and named, and nothing is touched.  A QEMU
 * that is just ending, or is not yet past its exec, is waited for a moment. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "backend/qemu/internal.h"
#include "base/crash.h"
#include "base/fd.h"
#include "base/mem.h"

enum { TRIES = 20, WAIT_US = 50000 };

/* ---- the process ---- */

const char *qemu_argument(const char *args, size_t len, const char *option)
{
    if (len == 0 || args[len - 1] != '\0')
        return NULL;
    for (const char *p = args; p < args + len; p += strlen(p) + 1) {
        const char *next = p + strlen(p) + 1;

        if (strcmp(p, option) == 0)
            return next < args + len ? next : NULL;
    }
    return NULL;
}

struct search {
    const char *id, *pidfile;
    pid_t pid;
};

static void look_at(void *arg, pid_t pid, const char *cmdline, size_t len)
{
    struct search *s = arg;
    const char *uuid = qemu_argument(cmdline, len, "-uuid"), *pidfile = qemu_argument(cmdline, len, "-pidfile");

    if (!s->pid && uuid && pidfile && strcmp(uuid, s->id) == 0 && strcmp(pidfile, s->pidfile) == 0)
        s->pid = pid;
}

pid_t qemu_find(const char *id, const char *run_dir)
{
    char pidfile[PATH_MAX];
    struct search s = {.id = id, .pidfile = pidfile};

    if (path_join(pidfile, sizeof(pidfile), run_dir, "qemu.pid", NULL) == 0)
        proc_each("qemu", look_at, &s);
    return s.pid;
}

int qemu_lives_error(const struct vm_place *place, pid_t pid, struct error *err)
{
    char who[64] = "some process";

    if (pid)
        snprintf(who, sizeof(who), "its QEMU (pid %d)", (int)pid);
    error_set(err, ERR_VM_INVALID_STATE, "VM %s is not known to run, but %s lives and has its disk", place->name, who);
    error_help(err, "nothing was touched; take it back with `vmctl adopt %s`", place->id);
    error_ctx_str(err, "vm", place->name);
    if (pid)
        error_ctx_int(err, "pid", pid);
    return -1;
}

/* ---- the lock ---- */

/* Once; -1 with errno (EWOULDBLOCK: held). */
static int take(const char *path, bool make)
{
    CLEANUP_FD int fd = open(path, O_RDWR | (make ? O_CREAT : 0) | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK, 0600);
    struct stat ours, there;

    if (fd < 0 || flock(fd, LOCK_EX | LOCK_NB) < 0)
        return -1;
    if (fstat(fd, &ours) == 0 && lstat(path, &there) == 0 && ours.st_ino == there.st_ino && ours.st_dev == there.st_dev)
        return TAKE_FD(fd);
    errno = EWOULDBLOCK; /* it was removed meanwhile */
    return -1;
}

int vm_lock_make(const char *work_dir, struct error *err)
{
    char path[PATH_MAX];

    if (path_join(path, sizeof(path), work_dir, "lock", err) < 0)
        return -1;
    CLEANUP_FD int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
    return fd < 0 ? error_errno(err, errno, "cannot make %s", path) : 0;
}

int vm_lock_take(const struct vm_place *place, bool make, struct error *err)
{
    char path[PATH_MAX];

    if (path_join(path, sizeof(path), place->work_dir, "lock", err) < 0)
        return -1;
    for (int i = 0; i < TRIES; i++) {
        int fd = take(path, make);

        if (fd >= 0 || errno == ENOENT)
            return fd;
        if (errno != EWOULDBLOCK)
            return error_errno(err, errno, "cannot lock %s", path);
        pid_t pid = qemu_find(place->id, place->run_dir);
        if (pid)
            return qemu_lives_error(place, pid, err);
        usleep(WAIT_US);
    }
    return qemu_lives_error(place, 0, err);
}

int vm_place_clear(const struct vm_place *place, bool known_dead, bool all, struct error *err)
{
    CLEANUP_FD int lock = vm_lock_take(place, false, err);
    struct stat st;

    if (lock < 0 && error_is_set(err))
        return -1;
    if (!known_dead && lstat(place->run_dir, &st) == 0) { /* one of an older vmmd holds no lock */
        pid_t pid = qemu_find(place->id, place->run_dir);

        if (pid)
            return qemu_lives_error(place, pid, err);
    }
    if (dir_remove(place->run_dir, err) < 0)
        return -1;
    if (all)
        CRASH_POINT("qemu:remove:run-dir-removed");
    /* A manifest that was being written may come in between. */
    for (int i = 0; all && i < 3; i++) {
        CLEANUP_ERROR struct error own = ERROR_INIT;

        if (dir_remove(place->work_dir, &own) == 0)
            return 0;
        if (i == 2)
            error_move(err, &own);
    }
    return all ? -1 : 0;
}

void vm_place_of(const struct backend_vm *bvm, struct vm_place *ret)
{
    memcpy(ret->id, bvm->id, sizeof(ret->id));
    memcpy(ret->work_dir, bvm->work_dir, sizeof(ret->work_dir));
    memcpy(ret->run_dir, bvm->run_dir, sizeof(ret->run_dir));
    snprintf(ret->name, sizeof(ret->name), "%s", bvm->vm->name);
}
