/* loop.h - the event loop.  daemon/loop is the only user of uv.h; everything else sees these few opaque things.
 *
 * All functions run on the loop thread unless they say otherwise.  Handles (timer, poller, stream, child, proc_watch)
 * are on the heap; x_free ends them at once for their owner: no callback comes afterwards, memory goes when libuv lets
 * go. */
#ifndef LOOP_LOOP_H
#define LOOP_LOOP_H

#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"

struct loop;

/* Fails: ERR_IO. */
struct loop *loop_new(struct error *err);
/* Runs what is still closing, deferred or on the thread pool to its end, then closes the loop.  Returns 0, or how many
 * handles and tasks were left (each is named on stderr): a defect of the caller. */
int loop_free(struct loop *loop);
/* Runs until loop_stop, or until nothing is left to wait for. */
void loop_run(struct loop *loop);
/* Runs one iteration; waits for events only if `wait`.  Returns whether anything is left to wait for. */
bool loop_run_once(struct loop *loop, bool wait);
void loop_stop(struct loop *loop);
/* Cached monotonic milliseconds of this iteration. */
int64_t loop_now_ms(struct loop *loop);
/* The longest time in ms that one iteration kept other work waiting, since the last call; for the lag metric. */
int64_t loop_lag_max_ms(struct loop *loop);

/* A piece of work embedded in its owner; it must stay valid until it ran or was revoked. */
struct loop_task {
    void (*run)(struct loop_task *task);
    struct loop_task *next; /* private */
    bool queued;            /* private */
};

/* Runs the task once, on a later turn of the loop; a task already queued stays queued once.  Never recurses. */
void loop_defer(struct loop *loop, struct loop_task *task);
/* Takes a deferred task back; nothing happens if it is not queued. */
void loop_revoke(struct loop *loop, struct loop_task *task);

/* Any thread: makes the loop call fn(arg) on its own thread.  Calls may be merged: fn must look for all there is to do.
 * A waker alone does not keep loop_run alive; nor does a signal watch. */
struct loop_waker;
struct loop_waker *loop_waker_new(struct loop *loop, void (*fn)(void *arg), void *arg, struct error *err);
void loop_waker_wake(struct loop_waker *waker); /* any thread */
void loop_waker_free(struct loop_waker *waker);

/* Calls fn(arg, signum) on the loop for each signal.  One watch per signal. */
struct loop_signal;
struct loop_signal *loop_signal_new(struct loop *loop, int signum, void (*fn)(void *arg, int signum), void *arg,
                                    struct error *err);
void loop_signal_free(struct loop_signal *sig);

#endif
