/* test_loop.c - the loop itself: deferred tasks, timers, pollers, wakers, signals, the thread pool, a clean end. */
#include <errno.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/clock.h"
#include "base/mem.h"
#include "loop/loop.h"
#include "loop/poller.h"
#include "loop/timer.h"
#include "loop/work.h"

static struct loop *loop;

static int open_loop(void **state)
{
    CLEANUP_ERROR struct error err = ERROR_INIT;

    (void)state;
    loop = loop_new(&err);
    return loop != NULL ? 0 : -1;
}

static int close_loop(void **state)
{
    (void)state;
    return loop_free(loop);
}

static void nap(long ms)
{
    struct timespec ts = {.tv_sec = ms / 1000, .tv_nsec = ms % 1000 * 1000000};

    while (nanosleep(&ts, &ts) != 0)
        ;
}

/* ---- deferred tasks ---- */

struct note {
    struct loop_task task;
    char name;
    int again; /* how often it defers itself again */
    struct note *revokes;
};

static char said[64];

static void say(struct loop_task *task)
{
    struct note *n = CONTAINER_OF(task, struct note, task);
    size_t len = strlen(said);

    said[len] = n->name;
    said[len + 1] = '\0';
    if (n->again-- > 0)
        loop_defer(loop, task);
    if (n->revokes != NULL)
        loop_revoke(loop, &n->revokes->task);
}

static void test_tasks_run_in_order_on_the_next_turn(void **state)
{
    struct note a = {{.run = say}, 'a', 2, NULL}, b = {{.run = say}, 'b', 1, NULL}, c = {{.run = say}, 'c', 0, NULL};

    (void)state;
    said[0] = '\0';
    loop_defer(loop, &a.task);
    loop_defer(loop, &b.task);
    loop_defer(loop, &c.task);
    loop_defer(loop, &a.task); /* queued once */
    assert_string_equal(said, "");
    assert_true(loop_run_once(loop, true));
    assert_string_equal(said, "abc");
    assert_true(loop_run_once(loop, true));
    assert_string_equal(said, "abcab");
    assert_false(loop_run_once(loop, true));
    assert_string_equal(said, "abcaba");
    assert_false(loop_run_once(loop, false));
    assert_string_equal(said, "abcaba");
}

static void test_revoke(void **state)
{
    struct note a = {{.run = say}, 'a', 0, NULL}, b = {{.run = say}, 'b', 0, NULL}, c = {{.run = say}, 'c', 0, NULL};

    (void)state;
    said[0] = '\0';
    loop_revoke(loop, &a.task);
    loop_defer(loop, &a.task);
    loop_defer(loop, &b.task);
    loop_defer(loop, &c.task);
    loop_revoke(loop, &c.task); /* the last one */
    loop_defer(loop, &c.task);
    loop_revoke(loop, &b.task); /* the middle one */
    loop_run(loop);
    assert_string_equal(said, "ac");
    /* One that is revoked in the very turn that would run it. */
    said[0] = '\0';
    a.revokes = &b;
    loop_defer(loop, &a.task);
    loop_defer(loop, &b.task);
    loop_defer(loop, &c.task);
    loop_run(loop);
    assert_string_equal(said, "ac");
    /* The only one: nothing is left to wait for. */
    loop_defer(loop, &b.task);
    loop_revoke(loop, &b.task);
    assert_false(loop_run_once(loop, true));
    assert_string_equal(said, "ac");
}

static void test_revoke_self_again(void **state)
{
    struct note a = {{.run = say}, 'a', 3, NULL};

    (void)state;
    said[0] = '\0';
    a.revokes = &a; /* defers itself and takes that back */
    loop_defer(loop, &a.task);
    loop_run(loop);
    assert_string_equal(said, "a");
}

/* ---- timers ---- */

struct alarm {
    struct timer *timer;
    int fired;
    int stop_at;
    bool frees;
    int64_t at;
};

static void on_alarm(void *arg)
{
    struct alarm *a = arg;

    a->fired++;
    a->at = clock_mono_ms();
    if (a->frees) {
        timer_free(a->timer);
        a->timer = NULL;
    } else if (a->stop_at != 0 && a->fired == a->stop_at) {
        timer_stop(a->timer);
    }
}

static void test_timers(void **state)
{
    struct alarm once = {0}, thrice = {.stop_at = 3}, gone = {.frees = true}, never = {0};

    (void)state;
    once.timer = timer_new(loop, on_alarm, &once);
    thrice.timer = timer_new(loop, on_alarm, &thrice);
    gone.timer = timer_new(loop, on_alarm, &gone);
    never.timer = timer_new(loop, on_alarm, &never);
    assert_false(timer_active(once.timer));
    nap(20); /* the loop's cached time is old now; the delay must not suffer */
    int64_t began = clock_mono_ms();
    timer_start(once.timer, 20, 0);
    timer_start(thrice.timer, 0, 2);
    timer_start(gone.timer, 3, 5);
    timer_start(never.timer, 60000, 0);
    timer_unref(never.timer);
    assert_true(timer_active(once.timer));
    loop_run(loop);
    assert_int_equal(once.fired, 1);
    assert_true(once.at - began >= 20);
    assert_int_equal(thrice.fired, 3);
    assert_int_equal(gone.fired, 1);
    assert_null(gone.timer);
    assert_int_equal(never.fired, 0);
    assert_true(timer_active(never.timer));
    assert_true(clock_mono_ms() - loop_now_ms(loop) < 10000);
    timer_free(once.timer);
    timer_free(thrice.timer);
    timer_free(never.timer);
    timer_free(NULL);
}

static void restart(void *arg)
{
    struct alarm *a = arg;

    if (++a->fired < 50)
        timer_start(a->timer, 0, 0);
}

/* A timer that restarts itself with 0 must not keep the rest of the loop from running. */
static void test_timer_does_not_starve(void **state)
{
    struct alarm a = {0};

    (void)state;
    a.timer = timer_new(loop, restart, &a);
    timer_start(a.timer, 0, 0);
    loop_run_once(loop, true);
    assert_true(a.fired < 5);
    loop_run(loop);
    assert_int_equal(a.fired, 50);
    timer_free(a.timer);
}

static void stop_loop(void *arg)
{
    (void)arg;
    loop_stop(loop);
}

static void test_stop_with_active_handles(void **state)
{
    struct alarm far = {0};
    struct timer *stopper = timer_new(loop, stop_loop, NULL);

    (void)state;
    far.timer = timer_new(loop, on_alarm, &far);
    timer_start(far.timer, 60000, 0);
    timer_start(stopper, 2, 0);
    loop_run(loop);
    assert_int_equal(far.fired, 0);
    assert_true(timer_active(far.timer));
    timer_free(far.timer);
    timer_free(stopper);
}

static void block(void *arg)
{
    (void)arg;
    nap(60);
}

static void test_lag(void **state)
{
    struct alarm idle = {0};
    struct timer *blocker = timer_new(loop, block, NULL);

    (void)state;
    timer_start(blocker, 1, 0);
    loop_run(loop);
    int64_t lag = loop_lag_max_ms(loop);
    assert_true(lag >= 55);
    assert_int_equal(loop_lag_max_ms(loop), 0);
    /* Time slept is no lag.  A busy machine may delay us, but hardly by all of the sleep, five times. */
    idle.timer = timer_new(loop, on_alarm, &idle);
    for (int i = 0; i < 5; i++) {
        timer_start(idle.timer, 120, 0);
        loop_run(loop);
        lag = loop_lag_max_ms(loop);
        if (lag < 60)
            break;
    }
    assert_true(lag < 60);
    timer_free(idle.timer);
    timer_free(blocker);
}

/* ---- wakers, signals, work ---- */

struct mail {
    struct loop_waker *waker;
    pthread_mutex_t lock;
    int sent;
    int seen;
};

static void on_mail(void *arg)
{
    struct mail *m = arg;

    pthread_mutex_lock(&m->lock);
    m->seen = m->sent;
    pthread_mutex_unlock(&m->lock);
    if (m->seen == 1000)
        loop_stop(loop);
}

static void *post(void *arg)
{
    struct mail *m = arg;

    for (int i = 0; i < 1000; i++) {
        pthread_mutex_lock(&m->lock);
        m->sent++;
        pthread_mutex_unlock(&m->lock);
        loop_waker_wake(m->waker);
    }
    return NULL;
}

static void test_waker(void **state)
{
    CLEANUP_ERROR struct error err = ERROR_INIT;
    struct mail m = {.lock = PTHREAD_MUTEX_INITIALIZER};
    struct alarm hold = {0};
    pthread_t thread;

    (void)state;
    m.waker = loop_waker_new(loop, on_mail, &m, &err);
    assert_non_null(m.waker);
    loop_run(loop); /* a waker alone is nothing to wait for */
    hold.timer = timer_new(loop, on_alarm, &hold);
    timer_start(hold.timer, 30000, 0);
    assert_int_equal(pthread_create(&thread, NULL, post, &m), 0);
    loop_run(loop);
    pthread_join(thread, NULL);
    assert_int_equal(m.seen, 1000);
    assert_int_equal(hold.fired, 0);
    timer_free(hold.timer);
    loop_waker_wake(m.waker);
    loop_waker_free(m.waker); /* the wake under way comes to nothing */
    loop_waker_free(NULL);
}

static void on_signal(void *arg, int signum)
{
    *(int *)arg += signum;
    loop_stop(loop);
}

static void test_signal(void **state)
{
    CLEANUP_ERROR struct error err = ERROR_INIT;
    struct alarm hold = {0};
    int seen = 0;
    struct loop_signal *sig = loop_signal_new(loop, SIGUSR2, on_signal, &seen, &err);

    (void)state;
    assert_non_null(sig);
    loop_run(loop);
    hold.timer = timer_new(loop, on_alarm, &hold);
    timer_start(hold.timer, 30000, 0);
    raise(SIGUSR2);
    loop_run(loop);
    assert_int_equal(seen, SIGUSR2);
    timer_free(hold.timer);
    loop_signal_free(sig);
    loop_signal_free(NULL);
    assert_null(loop_signal_new(loop, 4711, on_signal, &seen, &err));
    assert_int_equal(err.code, ERR_IO);
}

struct job {
    int input;
    int output;
    int done;
    int rc;
    char message[ERROR_MESSAGE_MAX];
};

static int work(void *data, struct error *err)
{
    struct job *job = data;

    job->output = 2 * job->input;
    return job->input < 0 ? error_set(err, ERR_IO, "negative: %d", job->input) : 0;
}

static void worked(void *arg, void *data, int rc, struct error *err)
{
    struct job *job = data;

    assert_ptr_equal(arg, &loop);
    job->done++;
    job->rc = rc;
    snprintf(job->message, sizeof(job->message), "%s", err->message);
}

static void test_work(void **state)
{
    CLEANUP_ERROR struct error err = ERROR_INIT;
    struct job good = {.input = 21}, bad = {.input = -1}, late = {.input = 1};

    (void)state;
    assert_int_equal(work_run(loop, work, worked, &good, &loop, &err), 0);
    assert_int_equal(work_run(loop, work, worked, &bad, &loop, &err), 0);
    assert_int_equal(good.done, 0);
    loop_run(loop);
    assert_int_equal(good.output, 42);
    assert_int_equal(good.done, 1);
    assert_int_equal(good.rc, 0);
    assert_int_equal(bad.done, 1);
    assert_int_equal(bad.rc, -1);
    assert_string_equal(bad.message, "negative: -1");
    mem_fail_nth(1);
    assert_int_equal(work_run(loop, work, worked, &good, &loop, &err), -1);
    mem_fail_nth(0);
    assert_int_equal(err.code, ERR_IO);
    assert_int_equal(good.done, 1);
    /* loop_free waits for what was promised. */
    error_done(&err);
    assert_int_equal(work_run(loop, work, worked, &late, &loop, &err), 0);
    assert_int_equal(loop_free(loop), 0);
    assert_int_equal(late.done, 1);
    loop = loop_new(&err);
    assert_non_null(loop);
}

/* ---- pollers ---- */

struct watcher {
    struct poller *poller;
    int fd;
    int events;
    int calls;
};

static void on_ready(void *arg, int events)
{
    struct watcher *w = arg;

    w->events = events;
    w->calls++;
}

static void test_poller(void **state)
{
    CLEANUP_ERROR struct error err = ERROR_INIT;
    int pair[2];
    struct watcher w = {0};
    char byte;

    (void)state;
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
    w.poller = poller_new(loop, pair[0], POLLER_READ, on_ready, &w, &err);
    assert_non_null(w.poller);
    loop_run_once(loop, false);
    assert_int_equal(w.calls, 0);
    assert_int_equal(write(pair[1], "x", 1), 1);
    loop_run_once(loop, false);
    loop_run_once(loop, false);
    assert_int_equal(w.calls, 2); /* level-triggered */
    assert_int_equal(w.events, POLLER_READ);
    assert_int_equal(read(pair[0], &byte, 1), 1);
    poller_set(w.poller, POLLER_READ | POLLER_WRITE);
    loop_run_once(loop, false);
    assert_int_equal(w.events, POLLER_WRITE);
    poller_set(w.poller, 0);
    w.calls = 0;
    assert_false(loop_run_once(loop, false)); /* asleep: nothing to wait for */
    poller_set(w.poller, POLLER_HANGUP);
    loop_run_once(loop, false);
    assert_int_equal(w.calls, 0);
    close(pair[1]);
    loop_run_once(loop, false);
    assert_int_equal(w.events, POLLER_HANGUP);
    poller_free(w.poller);
    close(pair[0]);
    poller_free(NULL);
    /* Not a descriptor that can be watched. */
    assert_null(poller_new(loop, -1, POLLER_READ, on_ready, &w, &err));
    assert_int_equal(err.code, ERR_IO);
}

/* The write end of a pipe whose reader left has an error: it is told, and the poll goes on. */
static void test_poller_error(void **state)
{
    CLEANUP_ERROR struct error err = ERROR_INIT;
    int ends[2];
    struct watcher w = {0};

    (void)state;
    assert_int_equal(pipe(ends), 0);
    w.poller = poller_new(loop, ends[1], POLLER_HANGUP, on_ready, &w, &err);
    close(ends[0]);
    loop_run_once(loop, false);
    loop_run_once(loop, false);
    assert_int_equal(w.calls, 2);
    assert_int_equal(w.events, POLLER_HANGUP);
    poller_free(w.poller);
    close(ends[1]);
}

/* ---- the end ---- */

static void test_free_names_what_is_left(void **state)
{
    CLEANUP_ERROR struct error err = ERROR_INIT;
    struct loop *other = loop_new(&err);
    struct timer *left = timer_new(other, stop_loop, NULL), *too = timer_new(other, stop_loop, NULL);

    (void)state;
    assert_int_equal(loop_free(other), 2);
    timer_free(left);
    assert_int_equal(loop_free(other), 1);
    timer_free(too);
    assert_int_equal(loop_free(other), 0);
    assert_int_equal(loop_free(NULL), 0);
}

static void test_allocation_failures(void **state)
{
    CLEANUP_ERROR struct error err = ERROR_INIT;
    int seen = 0;

    (void)state;
    mem_fail_nth(1);
    assert_null(loop_new(&err));
    mem_fail_nth(1);
    assert_null(timer_new(loop, stop_loop, NULL));
    mem_fail_nth(1);
    assert_null(loop_waker_new(loop, stop_loop, NULL, &err));
    mem_fail_nth(1);
    assert_null(loop_signal_new(loop, SIGUSR2, on_signal, &seen, &err));
    mem_fail_nth(1);
    assert_null(poller_new(loop, 0, POLLER_READ, on_ready, NULL, &err));
    mem_fail_nth(0);
    assert_int_equal(err.code, ERR_IO);
}

#define TEST(f) cmocka_unit_test_setup_teardown(f, open_loop, close_loop)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_tasks_run_in_order_on_the_next_turn),
        TEST(test_revoke),
        TEST(test_revoke_self_again),
        TEST(test_timers),
        TEST(test_timer_does_not_starve),
        TEST(test_stop_with_active_handles),
        TEST(test_lag),
        TEST(test_waker),
        TEST(test_signal),
        TEST(test_work),
        TEST(test_poller),
        TEST(test_poller_error),
        TEST(test_free_names_what_is_left),
        TEST(test_allocation_failures),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
