/* image_pull.c - an image comes into the cache: by URL, or as what a client sends.
 *
 * Happy path: reserve (who asks may have what is asked for), fetch, inspect, convert (what is neither qcow2 nor raw), store
 * (a link of its own), persist, announce.  Fetch to convert are the pull's phases (pull.c), which all who ask for the same
 * share; an image that is there already with this URL and this digest is linked, not fetched.
 * Failure modes: the server, the bytes, the digest, the disk: the operation fails with the code that says so, and the image
 * is gone again; cancelled: the others who hold the pull go on; the daemon killed: interrupted, and the next pull of the same
 * goes on with the part file where the server allows it. */
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "base/clock.h"
#include "base/mem.h"
#include "core/ops/image_op.h"
#include "core/ops/ops.h"
#include "image/image.h"

enum { DEADLINE_MS = 24 * 3600 * 1000, FETCH_MS = 23 * 3600 * 1000, CONVERT_MS = 4000 * 1000, FETCH_STEP = 1 };

static void waited(void *arg, struct error *err)
{
    image_op_resume(arg, err);
}

static int wait_beyond(struct image_op *io, enum pull_phase phase, struct error *err)
{
    if (io->pull == NULL) {
        error_move(err, &io->failed);
        return -1;
    }
    return pull_wait(io->pull, &io->wait, phase, waited, io, err);
}

static void pull_drop(struct image_op *io)
{
    if (io->pull != NULL)
        pull_leave(io->pull, io);
}

static void hurry(struct image_op *io)
{
    CLEANUP_ERROR struct error err = ERROR_INIT;

    if (io->wait.pull == NULL && io->follows == NULL)
        return;
    operation_unwatch(TAKE_PTR(io->follows));
    pull_unwait(&io->wait);
    if (op_step_index(io->op) == FETCH_STEP) /* a step that fails cleans up after itself */
        pull_drop(io);
    error_set(&err, ERR_OPERATION_CANCELLED, "the pull of image %s was cancelled", io->image->image.name);
    image_op_resume(io, &err);
}

/* --- the steps --- */

static int check_peer(struct image_work *work, struct error *err)
{
    struct vm_spec paths = {.image = work->from};

    return peer_check_files(&paths, &work->peer, err);
}

static int pull_reserve(struct image_op *io, struct error *err)
{
    const char *url = io->source.url;

    if (url == NULL || strncmp(url, "file://", 7) != 0 || !io->peer_known || !peer_is_other(&io->peer))
        return 0;
    struct image_work work = {.fn = check_peer, .from = (char *)(uintptr_t)url + 7, .peer = io->peer};
    return image_work_run(io, &work, err);
}

/* One that is there already and is the same for sure. */
static struct live_image *twin_of(const struct image_op *io)
{
    const struct pull_source *s = &io->source;
    struct core *core = io->core;

    for (size_t i = 0; s->url != NULL && s->sha256[0] != '\0' && i < core->n_images; i++) {
        struct live_image *other = core->images[i];
        const struct image *im = &other->image;
        if (im->state == IMAGE_READY && !other->deleting && im->url != NULL && im->sha256 != NULL &&
            strcmp(im->url, s->url) == 0 && strcmp(im->sha256, s->sha256) == 0 &&
            (s->format[0] == '\0' || strcmp(s->format, im->source_format) == 0))
            return other;
    }
    return NULL;
}

/* Another operation makes the same image of the same: this one holds the pull as well, so that it goes on whatever becomes of
 * the other, and takes the image over where that one is cancelled. */
static int follow(struct image_op *io, struct error *err);

static void followed(void *arg, struct error *err)
{
    struct image_op *io = arg;
    const struct error *why = operation_error(io->followed);
    CLEANUP_ERROR struct error own = ERROR_INIT;
    int rc = 0;

    (void)err;
    io->follows = NULL;
    if (io->image->image.state == IMAGE_READY) {
        io->settled = true;
    } else if (why != NULL && why->code != ERR_OPERATION_CANCELLED) {
        error_copy(&own, why);
        rc = -1;
    } else if (io->image->op == NULL) {
        io->image->op = io;
        rc = wait_beyond(io, PULL_FETCHING, &own);
    } else {
        rc = follow(io, &own);
    }
    if (rc < 0)
        pull_drop(io);
    if (rc != OP_WAIT)
        image_op_resume(io, &own);
}

static int follow(struct image_op *io, struct error *err)
{
    operation_unref(io->followed);
    io->followed = operation_ref(io->image->op->res);
    io->follows = operation_watch(io->followed, true, followed, io);
    return io->follows != NULL ? OP_WAIT : error_set(err, ERR_DAEMON_OVERLOADED, "out of memory");
}

static int pull_fetch(struct image_op *io, struct error *err)
{
    char id[UUID_TEXT_MAX];
    struct live_image *twin = twin_of(io);

    if (twin != NULL) {
        io->from = image_ref(twin);
        return 0;
    }
    uuid_text(&io->image->image.id, id);
    if (pull_join(io->core, &io->source, io->source.url == NULL ? id : NULL, io, err) == NULL)
        return -1;
    disk_promise(io->core, &io->room, IMAGE_ROOM); /* the bytes are the pull's from now on */
    int rc = io->image->op != io && io->image->op != NULL ? follow(io, err) : 0;
    if (rc == 0) {
        io->image->op = io;
        rc = wait_beyond(io, PULL_FETCHING, err);
    }
    if (rc < 0)
        pull_drop(io);
    return rc;
}

static int pull_let_go(struct image_op *io, struct error *err)
{
    (void)err;
    pull_drop(io);
    image_unref(io->from);
    io->from = NULL;
    return 0;
}

static bool is_settled(const struct image_op *io)
{
    return io->settled;
}

static bool is_known(const struct image_op *io)
{
    return io->settled || io->from != NULL;
}

static bool is_plain(const struct image_op *io)
{
    const struct pull_result *r = io->pull != NULL ? pull_result(io->pull) : NULL;

    return is_known(io) ||
           (r != NULL && (strcmp(r->source_format, "qcow2") == 0 || strcmp(r->source_format, "raw") == 0));
}

static int pull_inspect(struct image_op *io, struct error *err)
{
    return wait_beyond(io, PULL_INSPECTING, err);
}

static int pull_convert(struct image_op *io, struct error *err)
{
    return wait_beyond(io, PULL_CONVERTING, err);
}

static bool set(char **field, const char *value)
{
    mem_free(*field);
    *field = value != NULL ? mem_strdup(value) : NULL;
    return value == NULL || *field != NULL;
}

/* What the image will be. */
static int make(struct image_op *io, const char *path, int64_t size, struct error *err)
{
    const struct image *is = &io->image->image, *twin = io->from != NULL ? &io->from->image : NULL;
    const struct pull_result *r = io->pull != NULL ? pull_result(io->pull) : NULL;
    struct image *m = &io->made;
    const char *packing = twin != NULL ? twin->packing : strcmp(r->packing, "none") == 0 ? NULL : r->packing;

    *m = (struct image){.id = is->id,
                        .state = IMAGE_READY,
                        .verified = io->image->image.verified,
                        .size = size,
                        .virtual_size = twin != NULL ? twin->virtual_size : (int64_t)r->virtual_size,
                        .created_at = is->created_at};
    if (set(&m->name, is->name) && set(&m->url, is->url) && set(&m->sha256, twin != NULL ? twin->sha256 : r->sha256) &&
        set(&m->format, twin != NULL ? twin->format : r->format) &&
        set(&m->source_format, twin != NULL ? twin->source_format : r->source_format) && set(&m->packing, packing) &&
        set(&m->path, path))
        return 0;
    image_done(m);
    return error_set(err, ERR_DAEMON_OVERLOADED, "out of memory");
}

static void stored(struct image_op *io, struct image_work *work, struct error *err)
{
    CLEANUP_ERROR struct error own = ERROR_INIT;

    if (!error_is_set(err))
        make(io, io->new_path, work->size, &own);
    image_op_resume(io, error_is_set(err) ? err : &own);
}

static int pull_store(struct image_op *io, struct error *err)
{
    CLEANUP_FREE char *dir = images_path(io->core, NULL, NULL);
    char id[UUID_TEXT_MAX];

    if (io->from == NULL && io->pull == NULL) {
        error_move(err, &io->failed);
        return -1;
    }
    io->new_path = images_path(io->core, uuid_text(&io->image->image.id, id), ".img");
    if (io->new_path == NULL || dir == NULL)
        return error_set(err, ERR_DAEMON_OVERLOADED, "out of memory");
    const char *from = io->from != NULL ? io->from->image.path : pull_result(io->pull)->path;
    struct image_work work = {
        .fn = image_link_file, .done = stored, .from = (char *)(uintptr_t)from, .to = io->new_path, .dir = dir};
    const char *note = NULL;
    work.move = io->from == NULL && pull_take(io->pull, io, &note);
    work.note = work.move ? (char *)(uintptr_t)note : NULL;
    return image_work_run(io, &work, err);
}

static int pull_unstore(struct image_op *io, struct error *err)
{
    struct image_work work = {.fn = image_remove_file, .from = io->new_path};

    if (io->settled)
        return 0;
    return image_work_run(io, &work, err);
}

static const struct image_step pull_steps[] = {
    {"reserve", pull_reserve},
    {"fetch", pull_fetch, .undo = pull_let_go, .cancel = hurry, .timeout_ms = FETCH_MS},
    {"inspect", pull_inspect, .cancel = hurry, .skip = is_known},
    {"convert", pull_convert, .cancel = hurry, .timeout_ms = CONVERT_MS, .skip = is_plain},
    {"store", pull_store, .undo = pull_unstore, .skip = is_settled},
    {"persist", image_op_persist, .commit = true},
    {"announce", pull_let_go},
};

const struct image_plan image_pull_plan = {"image.pull", pull_steps, ARRAY_SIZE(pull_steps), DEADLINE_MS,
                                           .makes = true};
const struct image_plan image_upload_plan = {"image.upload", pull_steps, ARRAY_SIZE(pull_steps), DEADLINE_MS,
                                             .makes = true};
