/* private.h - what the files of loop/ share; nobody else includes it (it shows uv.h). */
#ifndef LOOP_PRIVATE_H
#define LOOP_PRIVATE_H

#include <uv.h>

#include "loop/child.h"
#include "loop/loop.h"
#include "loop/poller.h"

enum { LOOP_READ_SIZE = 64 * 1024 };

struct loop_queue {
    struct loop_task *head;
    struct loop_task *tail;
};

struct loop {
    uv_loop_t uv;
    uv_prepare_t prepare;     /* measures, just before the loop sleeps */
    uv_idle_t idle;           /* active while tasks are queued: it runs them and keeps the loop from sleeping */
    struct loop_queue queued; /* for the next turn */
    struct loop_queue turn;   /* being run */
    uint64_t mark_ns;         /* when the current iteration's callbacks began, idle time taken out */
    uint64_t mark_idle_ns;
    uint64_t lag_max_ns;
    unsigned works;                /* calls on the thread pool whose `done` is still to come */
    struct child *orphans;         /* freed by their owners, not yet dead: reaped silently */
    char read_buf[LOOP_READ_SIZE]; /* of whichever stream reads right now */
};

/* The poller no longer keeps loop_run alive. */
void poller_unref(struct poller *p);
/* Forgets the children that outlive their owners. */
void child_drop_orphans(struct loop *loop);
/* error_errno for a negative libuv result. */
int loop_uv_error(struct error *err, int rc, const char *what);

#endif
