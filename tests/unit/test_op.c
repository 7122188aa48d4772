/* test_op.c - the operation engine: each fault at each step of generated tables, by the rules of loop/op.h.
 *
 * A world has five steps whose behaviour is data.  Whatever happens, the same laws are checked at the end: steps ran in
 * order, exactly the steps that were done are undone, in reverse, unless the commit step was done, `finished` came once
 * and from the loop, and the loop closes clean. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "base/clock.h"
#include "base/mem.h"
#include "loop/op.h"
#include "loop/timer.h"

/* Waits that are meant to be late get SHORT_MS; the others LONG_MS, so that a busy machine changes nothing. */
enum { STEPS = 5, SHORT_MS = 3, LONG_MS = 20000, NEVER = -1 };

/* How a call of run or undo goes about its end. */
enum manner {
    AT_ONCE, /* returns its result */
    LATER,   /* waits; resumed two turns on */
    EARLY,   /* resumes, then returns OP_WAIT */
    MANNERS,
    HANGS,    /* waits; only .cancel resumes it, with an error */
    HANGS_OK, /* waits; .cancel resumes it with success */
    SLOW,     /* waits; resumed by a timer after SLOW_MS, whatever .cancel says */
};
enum { SLOW_MS = 25 };

struct step_plan {
    enum manner run;
    enum manner undo;
    bool run_fails;
    bool undo_fails;
};

struct resumer {
    struct loop_task task;
    struct world *world;
    struct timer *timer;
    unsigned turns;
    bool fails;
};

struct world {
    struct loop *loop;
    struct op *op;
    struct step_plan plan[STEPS];
    struct resumer resumers[2 * STEPS];
    int commit;
    char trace[256]; /* r0 d0 ... f2 u1 U1 u0 U0 */
    enum op_step_state states[STEPS];
    unsigned cancels;
    unsigned undo_errors;
    unsigned outside; /* depth of calls into the engine from outside the loop */
    unsigned finished;
    enum op_outcome outcome;
    enum error_code code;
    char message[ERROR_MESSAGE_MAX];
    char late_step[32];
    int cancel_in_step;   /* op_cancel from within this step's run */
    int cancel_in_report; /* op_cancel from within this step's DONE report */
    int abandon_in_step;
    int cancel_rc;
};

static void note(struct world *w, char what, unsigned index)
{
    size_t len = strlen(w->trace);

    assert_true(len + 3 < sizeof(w->trace));
    snprintf(w->trace + len, sizeof(w->trace) - len, "%c%u", what, index);
}

static void resume(struct world *w, bool fails)
{
    CLEANUP_ERROR struct error err = ERROR_INIT;

    if (fails)
        error_set(&err, ERR_IO, "resumed badly");
    w->outside++;
    op_resume(w->op, &err);
    w->outside--;
    assert_false(error_is_set(&err));
}

static void on_resumer_task(struct loop_task *task)
{
    struct resumer *r = CONTAINER_OF(task, struct resumer, task);

    if (--r->turns > 0)
        loop_defer(r->world->loop, task);
    else
        resume(r->world, r->fails);
}

static void on_resumer_timer(void *arg)
{
    struct resumer *r = arg;

    resume(r->world, r->fails);
}

static int act(struct world *w, struct resumer *r, enum manner manner, bool fails, struct error *err)
{
    r->world = w;
    r->fails = fails;
    if (manner > MANNERS)
        op_set_step_timeout(w->op, SHORT_MS);
    switch (manner) {
    case AT_ONCE:
        return fails ? error_set(err, ERR_IO, "failed at once") : 0;
    case EARLY:
        resume(w, fails);
        return OP_WAIT;
    case LATER:
        r->task.run = on_resumer_task;
        r->turns = 2;
        loop_defer(w->loop, &r->task);
        return OP_WAIT;
    case SLOW:
        if (r->timer == NULL)
            r->timer = timer_new(w->loop, on_resumer_timer, r);
        assert_non_null(r->timer);
        timer_start(r->timer, SLOW_MS, 0);
        return OP_WAIT;
    default:
        return OP_WAIT;
    }
}

static int step_run(struct op *op, struct error *err)
{
    struct world *w = op_data(op);
    unsigned i = op_step_index(op);

    assert_int_equal(w->outside, 0);
    assert_ptr_equal(op_loop(op), w->loop);
    note(w, 'r', i);
    if (w->cancel_in_step == (int)i)
        w->cancel_rc = op_cancel(op, NULL);
    if (w->abandon_in_step == (int)i)
        op_abandon(op);
    return act(w, &w->resumers[i], w->plan[i].run, w->plan[i].run_fails, err);
}

static int step_undo(struct op *op, struct error *err)
{
    struct world *w = op_data(op);
    unsigned i = op_step_index(op);

    assert_int_equal(w->outside, 0);
    note(w, 'u', i);
    return act(w, &w->resumers[STEPS + i], w->plan[i].undo, w->plan[i].undo_fails, err);
}

static void step_cancel(struct op *op)
{
    struct world *w = op_data(op);
    enum manner manner = w->plan[op_step_index(op)].run;

    w->cancels++;
    if (manner == HANGS || manner == HANGS_OK)
        resume(w, manner == HANGS);
}

static void on_step(struct op *op, unsigned index, enum op_step_state state, const struct error *err)
{
    struct world *w = op_data(op);

    assert_int_equal(w->finished, 0);
    assert_int_equal(op_step_index(op), index);
    w->states[index] = state;
    if (state == OP_STEP_DONE)
        note(w, 'd', index);
    else if (state == OP_STEP_FAILED)
        note(w, 'f', index);
    else if (state == OP_STEP_UNDONE)
        note(w, 'U', index);
    if (state == OP_STEP_UNDONE && err != NULL)
        w->undo_errors++;
    assert_int_equal(state == OP_STEP_FAILED && err == NULL, 0);
    if (state == OP_STEP_DONE && w->cancel_in_report == (int)index)
        w->cancel_rc = op_cancel(op, NULL);
}

static void on_finished(struct op *op, enum op_outcome outcome, struct error *err)
{
    struct world *w = op_data(op);

    assert_int_equal(w->outside, 0);
    assert_ptr_equal(op, w->op);
    w->finished++;
    w->outcome = outcome;
    w->code = err->code;
    snprintf(w->message, sizeof(w->message), "%s", err->message);
    if (error_ctx_get(err, "step") != NULL)
        snprintf(w->late_step, sizeof(w->late_step), "%s", error_ctx_get(err, "step"));
    assert_int_equal(op_cancel(op, NULL), -1);
    op_abandon(op);
    w->op = NULL;
}

static const struct op_observer observer = {on_step, on_finished};

#define ROW(n, c)                                                                                                   \
    {                                                                                                               \
        .name = #n, .run = step_run, .undo = step_undo, .cancel = step_cancel, .timeout_ms = LONG_MS, .commit = (c) \
    }
static const struct op_step tables[][STEPS] = {
    {ROW(zero, false), ROW(one, false), ROW(two, false), ROW(three, false), ROW(four, false)},
    {ROW(zero, true), ROW(one, false), ROW(two, false), ROW(three, false), ROW(four, false)},
    {ROW(zero, false), ROW(one, false), ROW(two, false), ROW(three, true), ROW(four, false)},
    {ROW(zero, false), ROW(one, false), ROW(two, false), ROW(three, false), ROW(four, true)},
};
static const int commits[] = {STEPS, 0, 3, 4}; /* STEPS: none */
static const char *const names[] = {"zero", "one", "two", "three", "four"};

static void world_open(struct world *w, size_t table, enum manner run, enum manner undo)
{
    CLEANUP_ERROR struct error err = ERROR_INIT;

    memset(w, 0, sizeof(*w));
    w->cancel_in_step = w->cancel_in_report = w->abandon_in_step = NEVER;
    w->commit = commits[table];
    for (unsigned i = 0; i < STEPS; i++)
        w->plan[i] = (struct step_plan){.run = run, .undo = undo};
    w->loop = loop_new(&err);
    assert_non_null(w->loop);
}

static void world_start(struct world *w, size_t table, int64_t deadline_ms)
{
    w->outside++;
    w->op = op_start(w->loop, tables[table], STEPS, deadline_ms, &observer, w);
    w->outside--;
    assert_non_null(w->op);
    assert_string_equal(w->trace, "");
}

static void world_close(struct world *w)
{
    for (unsigned i = 0; i < 2 * STEPS; i++) {
        timer_free(w->resumers[i].timer);
        loop_revoke(w->loop, &w->resumers[i].task);
    }
    assert_int_equal(loop_free(w->loop), 0);
}

/* Rebuilds what the trace must be from which steps were done, and compares. */
static void check_laws(const struct world *w)
{
    bool done[STEPS] = {false}, committed = false;
    char want[sizeof(w->trace)] = "";
    size_t at = 0, len = 0;
    unsigned i;

    assert_int_equal(w->finished, 1);
    for (i = 0; i < STEPS && w->trace[at] == 'r'; i++, at += 4) {
        assert_int_equal(w->trace[at + 1], '0' + i);
        assert_int_equal(w->trace[at + 3], '0' + i);
        done[i] = w->trace[at + 2] == 'd';
        committed = committed || (done[i] && w->commit == (int)i);
        if (!done[i] && !committed) {
            i++;
            at += 4;
            break;
        }
    }
    committed = committed || (w->commit == STEPS && w->outcome == OP_SUCCEEDED);
    for (unsigned k = i; k-- > 0 && !committed;)
        if (done[k])
            len += (size_t)snprintf(want + len, sizeof(want) - len, "u%uU%u", k, k);
    assert_string_equal(w->trace + at, want);
    if (committed) {
        assert_int_equal(i, STEPS);
        assert_int_equal(w->outcome, OP_SUCCEEDED);
        assert_int_equal(w->code, ERR_NONE);
    } else {
        assert_int_not_equal(w->outcome, OP_SUCCEEDED);
        assert_int_not_equal(w->code, ERR_NONE);
        assert_int_equal(w->outcome == OP_CANCELLED, w->code == ERR_OPERATION_CANCELLED);
    }
}

/* Ready-made cases: every table, every manner of running and undoing. */
#define EACH_TABLE(t) for (size_t t = 0; t < ARRAY_SIZE(tables); t++)
#define EACH_MANNER(m) for (enum manner m = AT_ONCE; m < MANNERS; m++)

static void test_success(void **state)
{
    struct world w;

    (void)state;
    EACH_TABLE(t)
    EACH_MANNER(m)
    {
        world_open(&w, t, m, AT_ONCE);
        world_start(&w, t, 0);
        assert_true(op_cancellable(w.op));
        loop_run(w.loop);
        check_laws(&w);
        assert_string_equal(w.trace, "r0d0r1d1r2d2r3d3r4d4");
        world_close(&w);
    }
}

static void test_fail_at_each_step(void **state)
{
    struct world w;

    (void)state;
    EACH_TABLE(t)
    EACH_MANNER(m)
    EACH_MANNER(u)
    {
        for (int at = 0; at < STEPS; at++) {
            for (int bad_undo = 0; bad_undo < 2; bad_undo++) {
                world_open(&w, t, m, u);
                w.plan[at].run_fails = true;
                for (int i = 0; i < STEPS; i++)
                    w.plan[i].undo_fails = bad_undo != 0;
                world_start(&w, t, 0);
                loop_run(w.loop);
                check_laws(&w);
                bool after = at > w.commit;
                assert_int_equal(w.outcome, after ? OP_SUCCEEDED : OP_FAILED);
                assert_int_equal(w.code, after ? ERR_NONE : ERR_IO);
                assert_int_equal(w.undo_errors, after || !bad_undo ? 0 : at);
                assert_int_equal(w.states[at], OP_STEP_FAILED);
                world_close(&w);
            }
        }
    }
}

static void test_cancel_at_each_turn(void **state)
{
    struct world w;
    unsigned cancelled = 0, refused = 0;

    (void)state;
    EACH_TABLE(t)
    EACH_MANNER(m)
    EACH_MANNER(u)
    {
        for (unsigned turn = 0;; turn++) {
            CLEANUP_ERROR struct error reason = ERROR_INIT;
            bool asked = false;
            int rc = 0;
            world_open(&w, t, m, u);
            world_start(&w, t, 0);
            for (unsigned i = 0; w.finished == 0; i++) {
                if (i == turn) {
                    bool can = op_cancellable(w.op);
                    asked = true;
                    error_set(&reason, turn % 2 == 0 ? ERR_OPERATION_CANCELLED : ERR_VM_UNRESPONSIVE, "because");
                    w.outside++;
                    rc = op_cancel(w.op, &reason);
                    w.outside--;
                    assert_int_equal(rc, can ? 0 : -1);
                    assert_int_equal(error_is_set(&reason), !can);
                    if (can) /* the second one changes nothing */
                        assert_int_equal(op_cancel(w.op, NULL), 0);
                }
                loop_run_once(w.loop, true);
            }
            check_laws(&w);
            if (asked && rc == 0) {
                cancelled++;
                assert_int_equal(w.outcome, turn % 2 == 0 ? OP_CANCELLED : OP_FAILED);
                assert_string_equal(w.message, "because");
            } else {
                refused += asked;
                assert_int_equal(w.outcome, OP_SUCCEEDED);
            }
            world_close(&w);
            if (!asked)
                break;
        }
    }
    assert_true(cancelled > 50);
    assert_true(refused > 20);
}

static void test_cancel_hurries_a_wait(void **state)
{
    static const enum manner waits[] = {HANGS, HANGS_OK};
    struct world w;

    (void)state;
    for (size_t k = 0; k < ARRAY_SIZE(waits); k++) {
        for (int at = 0; at < STEPS; at++) {
            world_open(&w, 0, AT_ONCE, LATER);
            w.plan[at].run = waits[k];
            world_start(&w, 0, 0);
            loop_run_once(w.loop, false);
            assert_int_equal(op_step_index(w.op), at);
            assert_string_equal(op_step_name(w.op), names[at]);
            w.outside++;
            assert_int_equal(op_cancel(w.op, NULL), 0);
            w.outside--;
            assert_int_equal(w.cancels, 1);
            loop_run(w.loop);
            check_laws(&w);
            assert_int_equal(w.outcome, OP_CANCELLED);
            assert_int_equal(w.states[at], waits[k] == HANGS ? OP_STEP_FAILED : OP_STEP_UNDONE);
            world_close(&w);
        }
    }
}

static void test_time_out_at_each_step(void **state)
{
    static const enum manner waits[] = {HANGS, HANGS_OK, SLOW};
    struct world w;

    (void)state;
    EACH_TABLE(t)
    for (size_t k = 0; k < ARRAY_SIZE(waits); k++) {
        for (int at = 0; at < STEPS; at++) {
            world_open(&w, t, at % 2 == 0 ? AT_ONCE : EARLY, AT_ONCE);
            w.plan[at].run = waits[k];
            world_start(&w, t, 0);
            loop_run(w.loop);
            check_laws(&w);
            assert_int_equal(w.cancels, 1);
            /* From the commit step on what the resume says counts. */
            bool fails = at < w.commit || (at == w.commit && waits[k] == HANGS);
            assert_int_equal(w.outcome, fails ? OP_FAILED : OP_SUCCEEDED);
            assert_int_equal(w.code, fails ? ERR_OPERATION_DEADLINE_EXCEEDED : ERR_NONE);
            assert_string_equal(w.late_step, fails ? names[at] : "");
            world_close(&w);
        }
    }
}

static void test_deadline_of_the_whole(void **state)
{
    struct world w;

    (void)state;
    EACH_TABLE(t)
    {
        world_open(&w, t, AT_ONCE, AT_ONCE);
        w.plan[2].run = HANGS;
        world_start(&w, t, 60);
        loop_run_once(w.loop, false);
        op_set_step_timeout(w.op, 300);
        loop_run(w.loop);
        check_laws(&w);
        assert_int_equal(w.outcome, w.commit < 2 ? OP_SUCCEEDED : OP_FAILED);
        if (w.commit >= 2) {
            assert_int_equal(w.code, ERR_OPERATION_DEADLINE_EXCEEDED);
            assert_string_equal(w.late_step, "two");
        }
        world_close(&w);
    }
}

static void test_step_timeout_moves(void **state)
{
    struct world w;

    (void)state;
    world_open(&w, 0, AT_ONCE, AT_ONCE);
    w.plan[1].run = SLOW;
    world_start(&w, 0, 0);
    loop_run_once(w.loop, false);
    op_set_step_timeout(w.op, 100 * SLOW_MS);
    loop_run(w.loop);
    check_laws(&w);
    assert_int_equal(w.outcome, OP_SUCCEEDED);
    world_close(&w);
}

static void test_cancel_from_within(void **state)
{
    struct world w;

    (void)state;
    EACH_TABLE(t)
    EACH_MANNER(m)
    for (int at = 0; at < STEPS; at++) {
        for (int in_report = 0; in_report < 2; in_report++) {
            world_open(&w, t, m, m);
            *(in_report ? &w.cancel_in_report : &w.cancel_in_step) = at;
            world_start(&w, t, 0);
            loop_run(w.loop);
            check_laws(&w);
            assert_int_equal(w.cancel_rc, at >= w.commit ? -1 : 0);
            assert_int_equal(w.outcome, at >= w.commit ? OP_SUCCEEDED : OP_CANCELLED);
            world_close(&w);
        }
    }
    world_open(&w, 0, AT_ONCE, AT_ONCE);
    w.plan[3].run = HANGS;
    w.cancel_in_step = 3; /* before it waits: .cancel comes once it does */
    world_start(&w, 0, 0);
    loop_run(w.loop);
    check_laws(&w);
    assert_int_equal(w.cancels, 1);
    world_close(&w);
}

static void test_late_undo(void **state)
{
    struct world w;

    (void)state;
    /* Undo 3 misses its deadline; 2 waits and cannot tell whose resume comes, so it ends when both have. */
    world_open(&w, 0, AT_ONCE, AT_ONCE);
    w.plan[4].run_fails = true;
    w.plan[3].undo = SLOW;
    w.plan[2].undo = LATER;
    world_start(&w, 0, 0);
    int64_t began = clock_mono_ms();
    loop_run(w.loop);
    check_laws(&w);
    assert_string_equal(w.trace, "r0d0r1d1r2d2r3d3r4f4u3U3u2U2u1U1u0U0");
    assert_int_equal(w.undo_errors, 1);
    assert_int_equal(w.cancels, 0);
    assert_true(clock_mono_ms() - began >= SLOW_MS - 1); /* `finished` waited for the resume that was owed */
    world_close(&w);
    /* Undo 0 is late and nothing is left to do: `finished` still waits. */
    world_open(&w, 0, AT_ONCE, AT_ONCE);
    w.plan[1].run_fails = true;
    w.plan[0].undo = SLOW;
    world_start(&w, 0, 0);
    began = clock_mono_ms();
    loop_run(w.loop);
    check_laws(&w);
    assert_int_equal(w.undo_errors, 1);
    assert_true(clock_mono_ms() - began >= SLOW_MS - 1);
    world_close(&w);
    /* All of them late. */
    world_open(&w, 0, AT_ONCE, SLOW);
    w.plan[4].run_fails = true;
    world_start(&w, 0, 0);
    loop_run(w.loop);
    check_laws(&w);
    assert_int_equal(w.undo_errors, 4);
    world_close(&w);
}

static void test_resumed_twice(void **state)
{
    struct world w;

    (void)state;
    world_open(&w, 0, AT_ONCE, AT_ONCE);
    w.plan[1].run = SLOW;
    w.plan[2].run = SLOW;
    world_start(&w, 0, 0);
    resume(&w, true); /* nothing waits yet */
    loop_run_once(w.loop, false);
    op_set_step_timeout(w.op, 1000);
    assert_string_equal(w.trace, "r0d0r1");
    timer_stop(w.resumers[1].timer);
    resume(&w, false);
    resume(&w, true); /* one too many */
    loop_run_once(w.loop, false);
    op_set_step_timeout(w.op, 1000);
    loop_run(w.loop);
    check_laws(&w);
    assert_int_equal(w.outcome, OP_SUCCEEDED);
    world_close(&w);
}

static void test_abandon(void **state)
{
    struct world w;

    (void)state;
    for (int turns = 0; turns < 2; turns++) {
        world_open(&w, 2, AT_ONCE, AT_ONCE);
        w.plan[2].run = HANGS;
        world_start(&w, 2, 1000);
        for (int i = 0; i < turns; i++)
            loop_run_once(w.loop, false);
        op_abandon(w.op);
        loop_run(w.loop);
        assert_string_equal(w.trace, turns == 0 ? "" : "r0d0r1d1r2");
        assert_int_equal(w.finished, 0);
        world_close(&w);
    }
    for (int at = 0; at < STEPS; at++) {
        for (int m = 0; m < 2; m++) {
            world_open(&w, 2, AT_ONCE, AT_ONCE);
            w.abandon_in_step = at;
            w.plan[at].run = m == 0 ? AT_ONCE : HANGS;
            world_start(&w, 2, 0);
            loop_run(w.loop);
            assert_int_equal(w.finished, 0);
            assert_int_equal(strlen(w.trace), (size_t)(4 * at + 2));
            world_close(&w);
        }
    }
}

/* A step's own timeout_ms, without .cancel: it fails by the deadline, after the resume. */
struct own {
    struct timer *timer;
    struct op *op;
    enum error_code code;
};

static void own_resume(void *arg)
{
    struct own *own = arg;

    op_resume(own->op, NULL);
}

static int own_run(struct op *op, struct error *err)
{
    struct own *own = op_data(op);

    (void)err;
    timer_start(own->timer, SLOW_MS, 0);
    return OP_WAIT;
}

static void own_finished(struct op *op, enum op_outcome outcome, struct error *err)
{
    struct own *own = op_data(op);

    assert_int_equal(outcome, OP_FAILED);
    own->code = err->code;
    assert_string_equal(err->message, "step own did not end within 1 s");
}

static void test_own_timeout(void **state)
{
    static const struct op_step steps[] = {{.name = "own", .run = own_run, .timeout_ms = SHORT_MS}};
    static const struct op_observer quiet = {.finished = own_finished};
    CLEANUP_ERROR struct error err = ERROR_INIT;
    struct loop *loop = loop_new(&err);
    struct own own = {0};

    (void)state;
    own.timer = timer_new(loop, own_resume, &own);
    own.op = op_start(loop, steps, 1, 0, &quiet, &own);
    loop_run(loop);
    assert_int_equal(own.code, ERR_OPERATION_DEADLINE_EXCEEDED);
    timer_free(own.timer);
    assert_int_equal(loop_free(loop), 0);
}

/* A step that says "failed" without an error still fails with one. */
static int mute_run(struct op *op, struct error *err)
{
    (void)op;
    (void)err;
    return -1;
}

static void mute_finished(struct op *op, enum op_outcome outcome, struct error *err)
{
    assert_int_equal(outcome, OP_FAILED);
    assert_int_equal(err->code, ERR_DAEMON_INTERNAL);
    *(bool *)op_data(op) = true;
}

static void test_mute_failure_and_no_observer(void **state)
{
    static const struct op_step steps[] = {{.name = "mute", .run = mute_run}};
    static const struct op_observer quiet = {.finished = mute_finished};
    CLEANUP_ERROR struct error err = ERROR_INIT;
    struct loop *loop = loop_new(&err);
    bool seen = false;

    (void)state;
    assert_non_null(op_start(loop, steps, 1, 0, &quiet, &seen));
    loop_run(loop);
    assert_true(seen);
    assert_int_equal(loop_free(loop), 0);
}

static void test_allocation_sweep(void **state)
{
    unsigned refused = 0;

    (void)state;
    for (size_t nth = 1; nth <= 24; nth++) {
        struct world w;
        world_open(&w, 2, LATER, EARLY);
        w.plan[2].run_fails = true;
        mem_fail_nth(nth);
        w.op = op_start(w.loop, tables[2], STEPS, 1000, &observer, &w);
        refused += w.op == NULL;
        loop_run(w.loop);
        mem_fail_nth(0);
        if (w.op == NULL && w.finished == 0) {
            assert_string_equal(w.trace, "");
        } else {
            check_laws(&w);
            assert_int_equal(w.outcome, OP_FAILED);
        }
        world_close(&w);
    }
    assert_int_equal(refused, 3);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_success),
        cmocka_unit_test(test_fail_at_each_step),
        cmocka_unit_test(test_cancel_at_each_turn),
        cmocka_unit_test(test_cancel_hurries_a_wait),
        cmocka_unit_test(test_time_out_at_each_step),
        cmocka_unit_test(test_deadline_of_the_whole),
        cmocka_unit_test(test_step_timeout_moves),
        cmocka_unit_test(test_cancel_from_within),
        cmocka_unit_test(test_late_undo),
        cmocka_unit_test(test_resumed_twice),
        cmocka_unit_test(test_abandon),
        cmocka_unit_test(test_own_timeout),
        cmocka_unit_test(test_mute_failure_and_no_observer),
        cmocka_unit_test(test_allocation_sweep),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
