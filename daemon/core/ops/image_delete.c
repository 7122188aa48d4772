/* image_delete.c - an image leaves the cache.
 *
 * Happy path: check (nobody stands on it), remove (its file), persist (its row is gone).  There is no undo: a daemon killed in between
 * finishes it at its next start.
 * Failure modes: a VM stands on it: image::in_use; the file cannot be removed, or the row: it is removed again. */
#include <string.h>

#include "base/mem.h"
#include "core/ops/image_op.h"

static int delete_check(struct image_op *io, struct error *err)
{
    const struct live_image *image = io->image;

    if (image->users == NULL)
        return 0;
    error_set(err, ERR_IMAGE_IN_USE, "image %s is in use by VM %s", image->image.name, image->users->vm.name);
    error_ctx_str(err, "image", image->image.name);
    error_ctx_str(err, "vm", image->users->vm.name);
    return -1;
}

static int delete_file(struct image_op *io, struct error *err)
{
    struct image_work work = {.fn = image_remove_file, .from = io->image->image.path};

    io->removing = true; /* nobody comes to stand on it any more */
    return io->image->image.path != NULL ? image_work_run(io, &work, err) : 0;
}

static const struct image_step delete_steps[] = {
    {"check", delete_check},
    {"remove", delete_file, .no_cancel = true},
    {"persist", image_op_persist_gone, .commit = true},
};

const struct image_plan image_delete_plan = {"image.delete", delete_steps, ARRAY_SIZE(delete_steps), 120000};
