/* change.h - a request that changes something, and the operation it starts. */
#ifndef VMCTL_CHANGE_H
#define VMCTL_CHANGE_H

#include <jansson.h>

#include "base/uuid.h"
#include "cli.h"

/* One change. The caller sets the first group, change_done frees the second. */
struct change {
    const char *method;  /* POST or DELETE */
    char *path;          /* owned */
    json_t *body;        /* owned, or NULL */
    const char *subject; /* the VM's name */
    const char *key;     /* Idempotency-Key, NULL for one of vmctl's own */

    void (*tick)(void *arg); /* now and then while change_wait waits, and at its end; NULL: not */
    void *tick_arg;

    json_t *operation; /* as it was last seen */
    json_t *problem;   /* why it failed */
    char own_key[UUID_TEXT_MAX];
    int sent; /* for callers that send many: what change_send returned */
};

/* Sends the change. Returns EXIT_DONE with the operation, or the exit code with the problem (no problem: Ctrl+C). A
 * connection that breaks before the answer is made again for up to 30 s; the key keeps the change from being made
 * twice. */
int change_send(const struct cli *cli, struct change *c);

/* Waits for the end of the operation that change_send got and shows its progress. Returns as change_send. A daemon that
 * goes away is waited for up to 30 s. Ctrl+C leaves the operation alone and says how to cancel it. */
int change_wait(const struct cli *cli, struct change *c);

void change_done(struct change *c);

/* The name of what it is about: a VM, or an image. */
const char *operation_subject(const json_t *operation);

/* Whether the operation has ended. */
bool operation_ended(const json_t *operation);

#endif
