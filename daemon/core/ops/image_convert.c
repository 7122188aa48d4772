/* image_convert.c - an image becomes qcow2, or raw.
 *
 * Happy path: reserve (the file there is, an empty one beside it, and room for as much as the first takes), convert (qemu-img in its cage), store (the new file is whole
 * and where it belongs), persist, announce.  With another name it is a new image; without one the image itself has another
 * file from the persist step on, and the old one is removed after it.
 * Failure modes: there is no room, qemu-img fails, the disk is full in the midst: the new file is removed, the image is as it was. */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/fd.h"
#include "base/mem.h"
#include "core/ops/image_op.h"
#include "core/ops/ops.h"
#include "image/convert.h"

enum { NOBODY = 65534, CONVERT_MS = 4000 * 1000, DEADLINE_MS = 4200 * 1000 };

static int open_both(struct image_work *work, struct error *err)
{
    struct stat st;

    work->fd = open(work->from, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
    if (work->fd < 0)
        return error_errno(err, errno, "cannot open %s", work->from);
    if (fstat(work->fd, &st) == 0)
        work->allocated = (int64_t)st.st_blocks * 512;
    unlink(work->to);
    work->out_fd = open(work->to, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (work->out_fd < 0)
        return error_errno(err, errno, "cannot make %s", work->to);
    /* qemu-img writes it as nobody where we are root. */
    if (geteuid() == 0 && fchown(work->out_fd, NOBODY, NOBODY) < 0 && errno != EPERM && errno != EINVAL) {
        unlink(work->to);
        return error_errno(err, errno, "cannot make %s nobody's", work->to);
    }
    return 0;
}

static void swept(struct image_op *io, struct image_work *work, struct error *err)
{
    (void)work;
    (void)err;
    image_op_resume(io, &io->failed);
}

static void room_known(void *arg, struct error *err)
{
    struct image_op *io = arg;
    struct image_work work = {.fn = image_remove_file, .done = swept, .from = io->temp_path};
    CLEANUP_ERROR struct error own = ERROR_INIT;

    io->disk_ask = NULL;
    if (!error_is_set(err)) {
        io->room += io->asked;
        image_op_resume(io, NULL);
        return;
    }
    error_move(&io->failed, err);
    if (image_work_run(io, &work, &own) < 0)
        swept(io, NULL, &own);
}

static void opened(struct image_op *io, struct image_work *work, struct error *err)
{
    io->in_fd = TAKE_FD(work->fd);
    io->out_fd = TAKE_FD(work->out_fd);
    io->asked = (uint64_t)work->allocated;
    io->disk_ask = !error_is_set(err) ? disk_ask(io->core, io->asked, 0, room_known, io) : NULL;
    if (io->disk_ask == NULL) /* short of memory it goes unasked */
        image_op_resume(io, err);
}

static int convert_reserve(struct image_op *io, struct error *err)
{
    const struct uuid id = uuid_new();
    char stem[UUID_TEXT_MAX];

    if (!io->plan->makes && io->image->users != NULL)
        return error_set(err, ERR_IMAGE_IN_USE, "image %s is in use by VM %s", io->image->image.name,
                         io->image->users->vm.name);
    uuid_text(&id, stem);
    io->new_path = images_path(io->core, stem, ".img");
    io->temp_path = images_path(io->core, stem, ".new");
    if (io->new_path == NULL || io->temp_path == NULL)
        return error_set(err, ERR_DAEMON_OVERLOADED, "out of memory");
    struct image_work work = {.fn = open_both, .done = opened, .from = io->from->image.path, .to = io->temp_path};
    return image_work_run(io, &work, err);
}

static int convert_sweep(struct image_op *io, struct error *err)
{
    struct image_work work = {.fn = image_remove_file, .from = io->temp_path};

    return image_work_run(io, &work, err);
}

static void converted(void *arg, const struct image_info *info, struct error *err)
{
    struct image_op *io = arg;

    (void)info;
    io->job = NULL;
    image_op_resume(io, err);
}

static int convert_run(struct image_op *io, struct error *err)
{
    const struct core_config *c = &io->core->config;
    char confine[PATH_MAX];
    struct image_tool tool = {.confine = confine, .qemu_img = "qemu-img", .max_bytes = c->max_image_bytes};

    if (c->helper_dir == NULL)
        return error_set(err, ERR_BACKEND_NOT_AVAILABLE, "the helpers of the image cache are not installed");
    snprintf(confine, sizeof(confine), "%s/vmmd-confine", c->helper_dir);
    io->job =
        image_convert(io->core->loop, &tool, io->in_fd, io->from->image.format, io->out_fd, io->to, converted, io, err);
    return io->job != NULL ? OP_WAIT : -1;
}

static void convert_hurry(struct image_op *io)
{
    CLEANUP_ERROR struct error err = ERROR_INIT;

    if (io->job == NULL)
        return;
    image_job_free(TAKE_PTR(io->job));
    error_set(&err, ERR_OPERATION_CANCELLED, "the conversion of image %s was cancelled", io->from->image.name);
    image_op_resume(io, &err);
}

static bool copy(char **ret, const char *text)
{
    *ret = text != NULL ? mem_strdup(text) : NULL;
    return text == NULL || *ret != NULL;
}

static void stored(struct image_op *io, struct image_work *work, struct error *err)
{
    const struct image *from = &io->from->image, *is = &io->image->image;
    bool makes = io->plan->makes;

    if (!error_is_set(err)) {
        io->made = (struct image){.id = is->id,
                                  .state = IMAGE_READY,
                                  .verified = makes ? false : is->verified,
                                  .size = work->size,
                                  .virtual_size = from->virtual_size,
                                  .created_at = is->created_at};
        bool good = copy(&io->made.name, is->name) && copy(&io->made.format, io->to) &&
                    copy(&io->made.source_format, from->source_format) && copy(&io->made.path, io->new_path) &&
                    (makes || (copy(&io->made.url, is->url) && copy(&io->made.sha256, is->sha256) &&
                               copy(&io->made.packing, is->packing)));
        if (!good)
            error_set(err, ERR_DAEMON_OVERLOADED, "out of memory");
    }
    image_op_resume(io, err);
}

static int convert_store(struct image_op *io, struct error *err)
{
    CLEANUP_FREE char *dir = images_path(io->core, NULL, NULL);

    if (!io->plan->makes)
        io->old_path = mem_strdup(io->image->image.path);
    if (dir == NULL || (!io->plan->makes && io->old_path == NULL))
        return error_set(err, ERR_DAEMON_OVERLOADED, "out of memory");
    struct image_work work = {.fn = image_link_file,
                              .done = stored,
                              .from = io->temp_path,
                              .to = io->new_path,
                              .dir = dir,
                              .move = true,
                              .sync = true};
    return image_work_run(io, &work, err);
}

static int convert_unstore(struct image_op *io, struct error *err)
{
    struct image_work work = {.fn = image_remove_file, .from = io->new_path};

    return image_work_run(io, &work, err);
}

static int convert_announce(struct image_op *io, struct error *err)
{
    struct image_work work = {.fn = image_remove_file, .from = io->old_path};

    return io->old_path != NULL ? image_work_run(io, &work, err) : 0;
}

static const struct image_step convert_steps[] = {
    {"reserve", convert_reserve, .undo = convert_sweep},
    {"convert", convert_run, .cancel = convert_hurry, .timeout_ms = CONVERT_MS},
    {"store", convert_store, .undo = convert_unstore},
    {"persist", image_op_persist, .commit = true},
    {"announce", convert_announce},
};

const struct image_plan image_convert_plan = {"image.convert", convert_steps, ARRAY_SIZE(convert_steps), DEADLINE_MS,
                                              .makes = true};
const struct image_plan image_convert_in_place_plan = {"image.convert", convert_steps, ARRAY_SIZE(convert_steps),
                                                       DEADLINE_MS};
