/* image_op.h - the frame of the operations on images: what vm_op is for VMs, smaller, for no process runs beneath one.
 *
 * A table of image_steps is walked by the same engine (loop/op.h); each step's change is an event and a log line; the intent is
 * durable before the first effect, the end before anybody is told.  One operation holds an image at a time. */
#ifndef CORE_OPS_IMAGE_OP_H
#define CORE_OPS_IMAGE_OP_H

#include "core/internal.h"
#include "core/ops/pull.h"
#include "loop/op.h"

struct image_op;
struct image_work;

struct image_step {
    const char *name;
    int (*run)(struct image_op *io, struct error *err);
    int (*undo)(struct image_op *io, struct error *err);
    void (*cancel)(struct image_op *io);
    int64_t timeout_ms;
    bool commit;
    bool no_cancel; /* what it does cannot be taken back */
    bool (*skip)(const struct image_op *io);
};

struct image_plan {
    const char *kind;
    const struct image_step *steps;
    unsigned n_steps;
    int64_t deadline_ms;
    bool makes;     /* the image comes to be with it, and is not where it fails */
    const char *of; /* "of": for messages */
};

struct image_op {
    struct core *core;
    struct live_image *image; /* referenced */
    struct operation *res;    /* referenced */
    const struct image_plan *plan;
    struct op *op; /* NULL before the intent is durable */
    struct op_step steps[OPERATION_STEPS_MAX];
    struct image_op *next, **at; /* in the core's list */
    char *key, *fingerprint;     /* idempotency */
    bool persisted, parked, ran, removing;
    bool for_vms;   /* begun by creates alone: it ends with the last that waits */
    bool counted;   /* in the image's n_ops */
    bool exclusive; /* nobody may come to stand on the image meanwhile */
    bool settled;   /* the one that it followed has made the image */
    struct operation_watch *follows;
    struct operation *followed; /* referenced */
    struct error cancelled;     /* asked for before it began to walk */
    bool peer_known;
    struct core_peer peer;

    struct pull_source source; /* of a pull */
    struct pull *pull;
    struct pull_wait wait;
    struct error failed;        /* why the pull let go of it */
    struct image_op *pull_next; /* of those that hold the pull */
    struct image_work *work;    /* under way on the pool */
    struct live_image *from;    /* of a conversion; referenced, and held */
    char to[8];                 /* the format that is wanted */
    struct image_job *job;
    int in_fd, out_fd;
    struct disk_ask *disk_ask;             /* before the intent is written, and before a conversion */
    struct change *intent;                 /* until there is room for it */
    uint64_t room, asked;                  /* counted in core->disk_promised; not yet */
    char *new_path, *old_path, *temp_path; /* made by it; to be removed after it; before it is whole */
    struct image made;                     /* what the image will be when the end is durable */
};

/* Begins it on the image, which it holds; the row of one that it makes comes with the intent.  What the steps need the caller puts
 * into the result before the loop turns.  Where `room` is not 0, ERR_HOST_DISK_FULL comes on a later turn unless that and the intent
 * find room beside the reserve. */
enum { IMAGE_ROOM = 65536 /* what an operation takes in the database */ };
struct image_op *image_op_begin(struct live_image *image, const struct image_plan *plan, const struct core_request *req,
                                uint64_t room, struct error *err);
/* The same for what another operation is about to do: it follows that one. */
struct image_op *image_op_follow(struct live_image *image, const struct image_plan *plan,
                                 const struct core_request *req, uint64_t room, struct error *err);
int image_busy_error(const struct live_image *image, struct error *err); /* -1: another operation holds it */
/* An operation that has nothing to do. */
int image_op_nothing(const struct live_image *image, const char *kind, const struct core_request *req,
                     struct operation **ret, struct error *err);
void image_op_resume(struct image_op *io, struct error *err);
/* The commit step: the image as io->made says, and the operation's success. */
int image_op_persist(struct image_op *io, struct error *err);
/* The commit step of a removal. */
int image_op_persist_gone(struct image_op *io, struct error *err);

/* Work on the pool for a step, which waits for it: then done, or a plain resume where done is NULL.  The work is copied from. */
struct image_work {
    struct image_op *io; /* NULL: it was given up */
    int (*fn)(struct image_work *work, struct error *err);
    void (*done)(struct image_op *io, struct image_work *work, struct error *err);
    char *from, *to, *dir, *note;
    bool move, sync;
    struct core_peer peer;
    int64_t size, allocated; /* told */
    int fd, out_fd;          /* made; whoever takes one sets it to -1 */
};
int image_work_run(struct image_op *io, const struct image_work *work, struct error *err);
/* A resume of what work has told. */
int image_remove_file(struct image_work *work, struct error *err);
/* A hard link from `from` to `to` (moved where `move`, flushed where `sync`), of mode 0444; `dir` is flushed, size told, `note` removed. */
int image_link_file(struct image_work *work, struct error *err);

/* Begins the pull (or upload) of an image, or follows the one that is under way; the source is taken over (image_request.c).  NULL:
 * ERR_IMAGE_ALREADY_EXISTS and what image_op_begin fails with. */
struct image_op *images_begin_pull(struct core *core, const struct core_request *req, const char *name,
                                   struct pull_source *source, struct error *err);

extern const struct image_plan image_pull_plan, image_upload_plan, image_convert_plan, image_convert_in_place_plan,
    image_delete_plan;

#endif
