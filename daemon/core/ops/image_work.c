/* image_work.c - what the steps of an image's operation have done on the pool: files removed, and put where they belong.
 *
 * Happy path: the work is copied, runs on the pool, and its step goes on with what it told.
 * Failure modes: the step fails with the work's error; the operation is given up meanwhile: the work ends by itself, and nobody hears. */
#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/crash.h"
#include "base/fd.h"
#include "base/mem.h"
#include "core/ops/image_op.h"
#include "loop/work.h"

static void work_free(struct image_work *work)
{
    fd_close(work->fd);
    fd_close(work->out_fd);
    mem_free(work->from);
    mem_free(work->to);
    mem_free(work->dir);
    mem_free(work->note);
    mem_free(work);
}

static int work_fn(void *data, struct error *err)
{
    struct image_work *work = data;

    return work->fn(work, err);
}

static void work_done(void *arg, void *data, int rc, struct error *err)
{
    struct image_work *work = data;
    struct image_op *io = work->io;

    (void)arg;
    (void)rc;
    if (io != NULL) {
        io->work = NULL;
        if (work->done != NULL && !io->parked)
            work->done(io, work, err);
        else
            image_op_resume(io, err);
    }
    work_free(work);
}

static bool copy(char **ret, const char *text)
{
    *ret = text != NULL ? mem_strdup(text) : NULL;
    return text == NULL || *ret != NULL;
}

int image_work_run(struct image_op *io, const struct image_work *work, struct error *err)
{
    struct image_work *mine = mem_zalloc(sizeof(*mine));

    if (mine == NULL)
        return error_set(err, ERR_DAEMON_OVERLOADED, "out of memory");
    *mine = (struct image_work){.io = io,
                                .fn = work->fn,
                                .done = work->done,
                                .peer = work->peer,
                                .move = work->move,
                                .sync = work->sync,
                                .fd = -1,
                                .out_fd = -1};
    bool good = copy(&mine->from, work->from) && copy(&mine->to, work->to) && copy(&mine->dir, work->dir) &&
                copy(&mine->note, work->note);
    if (!good)
        error_set(err, ERR_DAEMON_OVERLOADED, "out of memory");
    else if (work_run(io->core->loop, work_fn, work_done, mine, NULL, err) == 0) {
        io->work = mine;
        return OP_WAIT;
    }
    work_free(mine);
    return -1;
}

int image_remove_file(struct image_work *work, struct error *err)
{
    if (unlink(work->from) < 0 && errno != ENOENT)
        return error_errno(err, errno, "cannot remove %s", work->from);
    CRASH_POINT("image:file-removed");
    return 0;
}

int image_link_file(struct image_work *work, struct error *err)
{
    struct stat st;

    if (work->sync) {
        CLEANUP_FD int file = open(work->from, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
        if (file < 0 || fsync(file) < 0 || (geteuid() == 0 && fchown(file, 0, 0) < 0))
            return error_errno(err, errno, "cannot flush %s", work->from);
    }
    if (chmod(work->from, 0444) < 0 || (work->move ? rename(work->from, work->to) : link(work->from, work->to)) < 0)
        return error_errno(err, errno, "cannot make %s", work->to);
    CRASH_POINT("image:file-in-place"); /* and no row has it */
    CLEANUP_FD int dir = open(work->dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (dir < 0 || fsync(dir) < 0 || stat(work->to, &st) < 0) {
        int saved = errno;
        unlink(work->to);
        return error_errno(err, saved, "cannot make %s durable", work->to);
    }
    work->size = st.st_size;
    if (work->note != NULL)
        unlink(work->note);
    return 0;
}
