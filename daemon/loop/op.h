/* op.h - the operation engine: a table of steps, walked forward; undone backwards when one fails.
 *
 *        op_start ──► run step 0 ──► run step 1 ──► … ──► last step ──► finished(NULL)
 *                        │ error, timeout or op_cancel before the commit step began
 *                        ▼
 *                     undo the finished steps in reverse ──► finished(error)
 *
 * Rules, the same for every operation:
 *  - A step returns 0 (done), OP_WAIT, or -1 with err set.  After OP_WAIT exactly one op_resume comes, which may come
 *    before the step returned.  The engine loops, it never recurses.
 *  - The first error wins; a later success or error never replaces it.
 *  - A step that fails cleans up after itself: it is not undone, the finished steps before it are, in reverse.
 *  - `undo` has the same contract as `run`; its errors are only reported to the observer.
 *  - `cancel` hurries a step that waits; the resume still comes.  A step without it is waited for.
 *  - Once the commit step has begun nothing cancels; once it is done nothing is undone, and an error after it is only
 *    reported to the observer: the operation has succeeded.
 *  - Every step has a deadline: its own timeout_ms or OP_STEP_TIMEOUT_MS.  At the deadline the step is cancelled and
 *    the operation fails with operation::deadline_exceeded - after the resume.  The operation may have one over all
 *    steps.  From the commit step on a deadline only hurries the step by its `cancel`: what the resume says counts.
 *  - An undo that misses its deadline is reported with that error and left behind: the engine goes on to the next undo.
 *    Its resume is still owed.  A resume does not say whose it is, so as long as one is owed a waiting undo ends when
 *    all of them have come, or at its own deadline.  `finished` waits for the last owed resume, so that `data` outlives
 *    it.
 *  - FAILED is reported with the operation's error when it fails by it: the first one, not what the step said later.
 *  - The engine never frees what it does not own: `data` belongs to the caller, who frees it in `finished`.
 * Runs on: the loop thread. */
#ifndef LOOP_OP_H
#define LOOP_OP_H

#include <stdbool.h>
#include <stdint.h>

#include "loop/loop.h"

enum { OP_WAIT = 1, OP_STEP_TIMEOUT_MS = 60000 };

struct op;

struct op_step {
    const char *name;
    int (*run)(struct op *op, struct error *err);
    int (*undo)(struct op *op, struct error *err); /* NULL: nothing to undo */
    void (*cancel)(struct op *op);                 /* NULL: waits cannot be hurried */
    int64_t timeout_ms;                            /* 0: OP_STEP_TIMEOUT_MS */
    bool commit;                                   /* the point of no return */
};

enum op_step_state { OP_STEP_PENDING, OP_STEP_RUNNING, OP_STEP_DONE, OP_STEP_FAILED, OP_STEP_UNDOING, OP_STEP_UNDONE };

enum op_outcome { OP_SUCCEEDED, OP_FAILED, OP_CANCELLED };

struct op_observer {
    /* Each change of a step's state.  `err` is set for FAILED, and for UNDONE when the undo went wrong.  May be
     * NULL. */
    void (*step)(struct op *op, unsigned index, enum op_step_state state, const struct error *err);
    /* The end, exactly once, from a turn of the loop: never from within op_start, op_resume or op_cancel.  The outcome
     * is OP_CANCELLED when the first error is operation::cancelled.  `err` is unset on success, may be moved out
     * otherwise.  The op is freed after it returns. */
    void (*finished)(struct op *op, enum op_outcome outcome, struct error *err);
};

/* Starts walking `steps` (n_steps > 0; the table must outlive the op) on the next turn of the loop.  `data` is the
 * operation's struct.  deadline_ms bounds the whole (0: none).  NULL when memory is short: `finished` does not come
 * then. */
struct op *op_start(struct loop *loop, const struct op_step *steps, unsigned n_steps, int64_t deadline_ms,
                    const struct op_observer *observer, void *data);
void *op_data(const struct op *op);
struct loop *op_loop(const struct op *op);
/* Ends the wait of the current step: err NULL or unset is success; a set error is moved out of *err.  The next step
 * runs on a later turn. */
void op_resume(struct op *op, struct error *err);
/* Asks the operation to end with this reason (moved out of *reason; NULL: operation::cancelled); -1 when the commit has
 * begun (nothing happens then).  A second cancel, or one while it is being undone, drops its reason and returns 0.
 * May be called from within a step or the observer. */
int op_cancel(struct op *op, struct error *reason);
bool op_cancellable(const struct op *op);
/* The step being run or undone, for messages. */
const char *op_step_name(const struct op *op);
unsigned op_step_index(const struct op *op);
/* Moves the current step's deadline to delay_ms from now (a step that knows better, for instance `stop` with
 * timeout_s). */
void op_set_step_timeout(struct op *op, int64_t delay_ms);
/* Ends the operation without undo or finished: for a daemon that is leaving (the rows say what to do at the next
 * start).  The current step must not resume afterwards; the caller silences it first.  Nothing happens from within
 * `finished`. */
void op_abandon(struct op *op);

#endif
