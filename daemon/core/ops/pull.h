/* pull.h - one download for all who ask for the same: fetched, looked at, converted where it must be; then each takes a link.
 *
 *   OPENING ──► FETCHING ──► INSPECTING ──► CONVERTING ──► READY      any ──► FAILED
 *
 * Those who hold a pull wait for its phases.  It goes on as long as anybody holds it; when the last one leaves, the helper is ended
 * and what it made is removed, but for a part file that a later pull may go on with.  Loop thread. */
#ifndef CORE_OPS_PULL_H
#define CORE_OPS_PULL_H

#include "core/internal.h"

enum pull_phase { PULL_OPENING, PULL_FETCHING, PULL_INSPECTING, PULL_CONVERTING, PULL_READY, PULL_FAILED, PULL_ENDING };

/* What is asked for.  Strings owned. */
struct pull_source {
    char *url;                         /* NULL: an upload */
    char sha256[IMAGE_SHA256_LEN + 1]; /* "": not known */
    char format[8];                    /* as who asks says; "": by the header */
    int fd;                            /* of an upload: where its bytes come from; -1 */
    int64_t length;                    /* of an upload: bytes that will come; -1: not known */
};
void pull_source_done(struct pull_source *source);

struct pull_wait {
    struct pull_wait *next;
    struct pull *pull; /* NULL: it does not wait */
    enum pull_phase beyond;
    void (*done)(void *arg, struct error *err);
    void *arg;
};

struct pull_result {
    char sha256[IMAGE_SHA256_LEN + 1];
    char packing[8], source_format[8], format[8];
    const char *path; /* the file, until the last one leaves */
    uint64_t virtual_size;
};

/* Joins the pull of this source, or begins it: it is holder->pull from now on; `stem` names an upload's files.  NULL: it could not begin. */
struct pull *pull_join(struct core *core, struct pull_source *source, const char *stem, struct image_op *holder,
                       struct error *err);
/* Waits until the phase is past: 0 it is, OP_WAIT, or -1 where the pull has failed. */
int pull_wait(struct pull *pull, struct pull_wait *wait, enum pull_phase beyond,
              void (*done)(void *arg, struct error *err), void *arg, struct error *err);
void pull_unwait(struct pull_wait *wait);
void pull_leave(struct pull *pull, struct image_op *holder);
/* Whether the holder is the only one: then the file is its own from now on, to be moved, with `note` to be removed, and who asks for
 * the same begins anew. */
bool pull_take(struct pull *pull, const struct image_op *holder, const char **ret_note);
const struct pull_result *pull_result(const struct pull *pull);
/* The names of their files without the suffix, NULL-terminated; the caller mem_frees both levels.  NULL: no memory. */
char **pulls_stems(const struct core *core);
void pulls_drop(struct core *core); /* the daemon leaves: all are given up where they stand */

#endif
