/* op.c - the operation engine.
 *
 * A deferred task drives the op: it takes step after step in a loop until one waits.  A resume, a deadline and a cancel
 * only note what happened and defer the task again, so nothing ever recurses, and `finished` comes from the loop.
 *
 *   FORWARD --(a step failed, or the op was cancelled or late, before the commit step began)--> BACKWARD --> ENDED
 *      `--(all steps taken)--------------------------------------------------------------------------------^
 *
 * `failure` is the first error, and it decides: it is set by the failing step, by op_cancel or by a deadline, whichever
 * came first, and nothing replaces it.  A step that was cancelled but resumes with success is done, so it is undone.
 * The commit step and those behind it can be late, but not cancelled: their deadline only hurries them, and what they
 * resume with counts.
 *
 * An undo that misses its deadline is left behind, still owing its resume.  A resume does not say whose it is, so from
 * then on a waiting undo ends when all owed resumes have come or at its own deadline: never before it is really done.
 * `finished` comes after the last owed resume, because the caller frees `data` there. */
#include "loop/op.h"

#include "base/clock.h"
#include "base/log.h"
#include "base/mem.h"
#include "loop/timer.h"

enum phase { PHASE_FORWARD, PHASE_BACKWARD, PHASE_ENDED };

struct op {
    struct loop *loop;
    const struct op_step *steps;
    unsigned n_steps;
    unsigned index;   /* the step being run or undone; forward, those before it are done */
    unsigned to_undo; /* backward: those before it are still to be undone */
    enum phase phase;
    const struct op_observer *observer;
    void *data;
    struct loop_task task;
    struct timer *step_timer;
    struct timer *op_timer; /* NULL: no deadline over the whole */
    int64_t deadline_ms;    /* of the whole */
    int64_t step_began_ms;
    int64_t step_due_ms;
    int owed;     /* resumes to come; -1 when one came before its step returned */
    bool waiting; /* the current step or undo returned OP_WAIT */
    bool late;    /* the current step or undo passed its deadline */
    bool hurried; /* .cancel was called for the current step */
    bool commit_begun;
    bool committed;
    bool driving; /* drive is on the stack */
    bool in_step; /* a step's run or undo is on the stack */
    bool abandoned;
    struct error resumed; /* what the current wait ended with */
    struct error failure;
};

static const struct op_step *current(const struct op *op)
{
    return &op->steps[op_step_index(op)];
}

static void report(struct op *op, enum op_step_state state, const struct error *err)
{
    if (op->observer->step != NULL && !op->abandoned)
        op->observer->step(op, op->index, state, err != NULL && error_is_set(err) ? err : NULL);
}

static void destroy(struct op *op)
{
    loop_revoke(op->loop, &op->task);
    timer_free(op->step_timer);
    timer_free(op->op_timer);
    error_done(&op->resumed);
    error_done(&op->failure);
    mem_free(op);
}

/* ---- deadlines and cancelling ---- */

static int64_t seconds(int64_t ms)
{
    return (ms + 999) / 1000;
}

static void set_late(const struct op *op, struct error *err)
{
    int64_t s = seconds(op->step_due_ms - op->step_began_ms);

    error_set(err, ERR_OPERATION_DEADLINE_EXCEEDED, "step %s did not end within %lld s", op_step_name(op),
              (long long)s);
    error_ctx_str(err, "step", op_step_name(op));
    error_ctx_int(err, "timeout_s", s);
}

/* Hurries the step that waits, once.  The op may be gone afterwards unless drive is on the stack. */
static void hurry(struct op *op)
{
    if (!op->waiting || op->owed <= 0 || op->hurried || op->phase != PHASE_FORWARD)
        return;
    op->hurried = true;
    if (current(op)->cancel != NULL)
        current(op)->cancel(op);
}

static void on_step_due(void *arg)
{
    struct op *op = arg;

    if (!op->waiting || op->owed <= 0)
        return; /* its resume came in this very iteration */
    op->late = true;
    if (op->phase == PHASE_BACKWARD) {
        loop_defer(op->loop, &op->task);
        return;
    }
    if (!op->commit_begun && !error_is_set(&op->failure))
        set_late(op, &op->failure);
    hurry(op);
}

static void on_op_due(void *arg)
{
    struct op *op = arg;

    if (!op_cancellable(op) || error_is_set(&op->failure))
        return;
    int64_t s = seconds(op->deadline_ms);
    error_set(&op->failure, ERR_OPERATION_DEADLINE_EXCEEDED,
              "the operation did not end within %lld s (it is at step %s)", (long long)s, op_step_name(op));
    error_ctx_str(&op->failure, "step", op_step_name(op));
    error_ctx_int(&op->failure, "timeout_s", s);
    hurry(op);
}

static void arm(struct op *op)
{
    timer_start(op->step_timer, op->step_due_ms - clock_mono_ms(), 0);
}

/* ---- the walk ---- */

static void finish(struct op *op)
{
    enum op_outcome outcome = OP_FAILED;

    if (op->committed || op->phase == PHASE_FORWARD)
        outcome = OP_SUCCEEDED;
    else if (op->failure.code == ERR_OPERATION_CANCELLED)
        outcome = OP_CANCELLED;
    op->phase = PHASE_ENDED;
    timer_stop(op->step_timer);
    if (op->op_timer != NULL)
        timer_stop(op->op_timer);
    op->observer->finished(op, outcome, &op->failure);
}

/* Calls run or undo and, if it waits, arms its deadline.  Returns whether it has ended; *err is what it ended with. */
static bool enter(struct op *op, int (*fn)(struct op *op, struct error *err), struct error *err)
{
    int64_t timeout = current(op)->timeout_ms;

    error_done(&op->resumed);
    op->late = op->hurried = false;
    op->step_began_ms = clock_mono_ms();
    op->step_due_ms = op->step_began_ms + (timeout > 0 ? timeout : OP_STEP_TIMEOUT_MS);
    op->in_step = true;
    int rc = fn(op, err);
    op->in_step = false;
    if (rc != OP_WAIT) {
        if (op->owed < 0)
            op->owed = 0; /* resumed although it did not wait */
        if (rc == 0)
            error_done(err);
        else if (!error_is_set(err))
            error_set(err, ERR_DAEMON_INTERNAL, "step %s failed and did not say why", op_step_name(op));
        return true;
    }
    error_done(err);
    op->owed++;
    op->waiting = true;
    if (error_is_set(&op->failure))
        hurry(op); /* cancelled from within the step */
    if (op->owed > 0 && !op->abandoned)
        arm(op);
    return false;
}

/* The current step has ended, with *err if it failed. */
static void leave_forward(struct op *op, struct error *err)
{
    const struct op_step *step = current(op);

    if (!error_is_set(err)) {
        op->committed = op->committed || step->commit;
        report(op, OP_STEP_DONE, NULL);
        op->index++;
        return;
    }
    if (op->late && op->commit_begun) { /* the deadline came first, so it is the error */
        CLEANUP_ERROR struct error late = ERROR_INIT;
        set_late(op, &late);
        error_cause(&late, "%s", err->message);
        error_move(err, &late);
    }
    if (op->committed) {
        report(op, OP_STEP_FAILED, err);
        op->index++;
        return;
    }
    if (!error_is_set(&op->failure))
        error_move(&op->failure, err);
    report(op, OP_STEP_FAILED, &op->failure);
}

static void leave_backward(struct op *op, struct error *err)
{
    if (op->late && !error_is_set(err))
        set_late(op, err);
    report(op, OP_STEP_UNDONE, err);
    op->to_undo--;
}

static void leave(struct op *op, struct error *err)
{
    if (op->phase == PHASE_FORWARD)
        leave_forward(op, err);
    else
        leave_backward(op, err);
}

static bool forward(struct op *op)
{
    CLEANUP_ERROR struct error err = ERROR_INIT;

    if (op->index == op->n_steps) {
        finish(op);
        return false;
    }
    if (current(op)->commit)
        op->commit_begun = true;
    report(op, OP_STEP_RUNNING, NULL);
    if (op->abandoned)
        return false;
    if (enter(op, current(op)->run, &err))
        leave(op, &err);
    return true;
}

static bool backward(struct op *op)
{
    CLEANUP_ERROR struct error err = ERROR_INIT;

    while (op->to_undo > 0 && op->steps[op->to_undo - 1].undo == NULL)
        op->to_undo--;
    if (op->to_undo == 0) {
        if (op->owed > 0)
            return false; /* an undo that was late still holds on to `data` */
        finish(op);
        return false;
    }
    op->index = op->to_undo - 1;
    report(op, OP_STEP_UNDOING, NULL);
    if (op->abandoned)
        return false;
    if (enter(op, current(op)->undo, &err))
        leave(op, &err);
    return true;
}

/* One move; false when the op waits or has ended. */
static bool move(struct op *op)
{
    if (op->waiting) {
        if (op->owed > 0 && !(op->late && op->phase == PHASE_BACKWARD))
            return false;
        op->waiting = false;
        timer_stop(op->step_timer);
        CLEANUP_ERROR struct error err = ERROR_INIT;
        error_move(&err, &op->resumed);
        leave(op, &err);
        return true;
    }
    if (op->phase == PHASE_BACKWARD)
        return backward(op);
    if (error_is_set(&op->failure)) {
        op->phase = PHASE_BACKWARD;
        op->to_undo = op->index;
        return true;
    }
    return forward(op);
}

static void drive(struct loop_task *task)
{
    struct op *op = CONTAINER_OF(task, struct op, task);

    op->driving = true;
    while (!op->abandoned && move(op))
        ;
    op->driving = false;
    if (op->abandoned || op->phase == PHASE_ENDED)
        destroy(op);
}

/* ---- the caller's side ---- */

struct op *op_start(struct loop *loop, const struct op_step *steps, unsigned n_steps, int64_t deadline_ms,
                    const struct op_observer *observer, void *data)
{
    struct op *op = mem_zalloc(sizeof(*op));

    if (op == NULL)
        return NULL;
    *op = (struct op){.loop = loop, .steps = steps, .n_steps = n_steps, .observer = observer, .data = data};
    op->task.run = drive;
    op->deadline_ms = deadline_ms;
    op->step_timer = timer_new(loop, on_step_due, op);
    if (op->step_timer != NULL && deadline_ms > 0)
        op->op_timer = timer_new(loop, on_op_due, op);
    if (op->step_timer == NULL || (deadline_ms > 0 && op->op_timer == NULL)) {
        destroy(op);
        return NULL;
    }
    if (op->op_timer != NULL)
        timer_start(op->op_timer, deadline_ms, 0);
    loop_defer(loop, &op->task);
    return op;
}

void *op_data(const struct op *op)
{
    return op->data;
}

struct loop *op_loop(const struct op *op)
{
    return op->loop;
}

void op_resume(struct op *op, struct error *err)
{
    CLEANUP_ERROR struct error got = ERROR_INIT;

    if (err != NULL && error_is_set(err))
        error_move(&got, err);
    if (op->owed < (op->in_step ? 0 : 1)) {
        LOG_ERROR("a step was resumed twice", "step", op_step_name(op));
        return;
    }
    op->owed--;
    if (error_is_set(&got) && !error_is_set(&op->resumed))
        error_move(&op->resumed, &got);
    if (op->owed <= 0 && !op->driving)
        loop_defer(op->loop, &op->task);
}

int op_cancel(struct op *op, struct error *reason)
{
    if (op->phase == PHASE_ENDED)
        return -1;
    if (error_is_set(&op->failure)) {
        if (reason != NULL)
            error_done(reason);
        return 0;
    }
    if (op->commit_begun)
        return -1;
    if (reason != NULL)
        error_move(&op->failure, reason);
    if (!error_is_set(&op->failure))
        error_set(&op->failure, ERR_OPERATION_CANCELLED, "the operation was cancelled");
    hurry(op);
    return 0;
}

bool op_cancellable(const struct op *op)
{
    return op->phase == PHASE_FORWARD && !op->commit_begun;
}

unsigned op_step_index(const struct op *op)
{
    return op->index < op->n_steps ? op->index : op->n_steps - 1;
}

const char *op_step_name(const struct op *op)
{
    return op->steps[op_step_index(op)].name;
}

void op_set_step_timeout(struct op *op, int64_t delay_ms)
{
    op->step_due_ms = clock_mono_ms() + (delay_ms > 0 ? delay_ms : 0);
    if (op->waiting && op->owed > 0 && !op->late)
        arm(op);
}

void op_abandon(struct op *op)
{
    if (op->phase == PHASE_ENDED)
        return; /* from within `finished` */
    op->abandoned = true;
    if (!op->driving)
        destroy(op);
}
