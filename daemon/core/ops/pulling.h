/* pulling.h - what the two halves of a pull share: pull.c (who holds it, and its end) and pull_run.c (its phases). */
#ifndef CORE_OPS_PULLING_H
#define CORE_OPS_PULLING_H

#include "core/ops/image_op.h"
#include "core/ops/pull.h"
#include "image/convert.h"
#include "image/fetch.h"
#include "image/image.h"

struct pull {
    struct core *core;
    struct pull *next, **at;
    struct pull *nowhere; /* in the list of none: the core is going */
    char key[65];         /* who asks for the same; "": nobody joins it any more */
    char stem[65];        /* of its files */
    struct pull_source source;
    struct image_op *holders;
    struct pull_wait *waits;
    enum pull_phase phase;
    bool keep;     /* the part file may be gone on with */
    bool stopping; /* the helper is being ended, for nobody held the pull */
    bool dropped;  /* the daemon leaves */
    bool working;  /* on the pool */
    char *dir, *part, *note, *made;
    int part_fd, note_fd, made_fd, source_fd;
    char *auth_host, *auth_basic;
    struct image_fetch *fetch;
    struct image_inspection *inspection;
    struct image_job *job;
    struct disk_ask *disk_ask; /* before a conversion */
    uint64_t room, asked;      /* for what is still to come: counted in core->disk_promised; not yet */
    struct pull_result result;
    struct error err;
};

/* Work on the pool: copies in, results out. */
struct pull_work {
    struct pull *pull; /* NULL: it was dropped */
    int (*fn)(struct pull_work *w, struct error *err);
    void (*done)(struct pull *p, struct pull_work *w, int rc, struct error *err);
    char *dir, *part, *note, *made, *source, *registry;
    int fds[3];
    char *auth_host, *auth_basic;
    const char *const *image_dirs; /* the config's */
    bool keep;
    int fd;
    int64_t allocated; /* told */
};

int pull_work_begin(struct pull *p, int (*fn)(struct pull_work *w, struct error *err),
                    void (*done)(struct pull *p, struct pull_work *w, int rc, struct error *err), struct error *err);
/* Begins, from the opening of the files. */
void pull_start(struct pull *p);
void pull_close_fds(struct pull *p);
void pull_forget_room(struct pull *p); /* nothing more is to come */
/* It has come to this phase: who waits for that is told. */
void pull_reach(struct pull *p, enum pull_phase phase);
/* All are told, also those that do not wait just now, and hold it no longer: whoever asks from now on begins anew. */
void pull_fail(struct pull *p, bool keep, struct error *err);
/* Ends it when nobody holds it any more. */
void pull_end_if_left(struct pull *p);

#endif
