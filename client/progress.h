/* progress.h - how a long operation comes along, on stderr. */
#ifndef VMCTL_PROGRESS_H
#define VMCTL_PROGRESS_H

#include <jansson.h>
#include <stdint.h>

#include "cli.h"

/* The progress of one operation. */
struct progress {
    bool on;
    bool line;       /* one line that changes, on a terminal; else one line per step */
    size_t reported; /* steps that had their line */
    int64_t since;
};

/* Begins; with -o json nothing is shown. */
void progress_init(struct progress *p, const struct cli *cli);

/* Shows where the operation stands. */
void progress_update(struct progress *p, const json_t *operation);

/* Shows how much of something of vmctl's own is done, on a terminal; total -1: not known. */
void progress_amount(const struct progress *p, const char *subject, const char *verb, long long done, long long total);

/* Takes the changing line off the terminal, so that something else can be written; the next update brings it back. */
void progress_clear(void);

#endif
