/* loop.c - the event loop on libuv.
 *
 * Deferred tasks sit in a FIFO.  While it is not empty an idle handle is active, so libuv neither sleeps nor thinks
 * that nothing is left; each turn takes the whole FIFO and runs it, and what is deferred meanwhile waits for the next
 * turn.  The lag metric is the wall time of an iteration less what libuv says it slept.
 *
 * Failure: handles that their owners forgot keep libuv from closing.  loop_free names them and leaves the memory alone,
 * for something may still point there. */
#include "loop/loop.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>

#include "base/mem.h"
#include "loop/private.h"

enum { LOOP_FREE_TURNS = 64 };

int loop_uv_error(struct error *err, int rc, const char *what)
{
    return error_errno(err, -rc, "%s", what);
}

/* ---- deferred tasks ---- */

static void queue_push(struct loop_queue *q, struct loop_task *task)
{
    task->next = NULL;
    if (q->tail != NULL)
        q->tail->next = task;
    else
        q->head = task;
    q->tail = task;
}

static struct loop_task *queue_pop(struct loop_queue *q)
{
    struct loop_task *task = q->head;

    if (task != NULL) {
        q->head = task->next;
        if (q->head == NULL)
            q->tail = NULL;
        task->next = NULL;
    }
    return task;
}

static bool queue_remove(struct loop_queue *q, struct loop_task *task)
{
    struct loop_task *prev = NULL;

    for (struct loop_task *t = q->head; t != NULL; prev = t, t = t->next) {
        if (t != task)
            continue;
        if (prev != NULL)
            prev->next = t->next;
        else
            q->head = t->next;
        if (q->tail == t)
            q->tail = prev;
        t->next = NULL;
        return true;
    }
    return false;
}

static void on_idle(uv_idle_t *idle)
{
    struct loop *loop = idle->data;
    struct loop_task *task;

    loop->turn = loop->queued;
    loop->queued = (struct loop_queue){0};
    while ((task = queue_pop(&loop->turn)) != NULL) {
        task->queued = false;
        task->run(task);
    }
    if (loop->queued.head == NULL)
        uv_idle_stop(idle);
}

void loop_defer(struct loop *loop, struct loop_task *task)
{
    if (task->queued)
        return;
    task->queued = true;
    queue_push(&loop->queued, task);
    if (!uv_is_closing((uv_handle_t *)&loop->idle))
        uv_idle_start(&loop->idle, on_idle);
}

void loop_revoke(struct loop *loop, struct loop_task *task)
{
    if (!task->queued)
        return;
    task->queued = false;
    if (!queue_remove(&loop->turn, task))
        queue_remove(&loop->queued, task);
    if (loop->queued.head == NULL && loop->turn.head == NULL)
        uv_idle_stop(&loop->idle);
}

/* ---- lag ---- */

static void lag_begin(struct loop *loop)
{
    loop->mark_ns = uv_hrtime();
    loop->mark_idle_ns = uv_metrics_idle_time(&loop->uv);
}

static void lag_measure(struct loop *loop)
{
    uint64_t began = loop->mark_ns, idle_then = loop->mark_idle_ns;

    lag_begin(loop);
    uint64_t wall = loop->mark_ns - began, slept = loop->mark_idle_ns - idle_then;
    uint64_t busy = wall > slept ? wall - slept : 0;
    if (busy > loop->lag_max_ns)
        loop->lag_max_ns = busy;
}

static void on_prepare(uv_prepare_t *prepare)
{
    lag_measure(prepare->data);
}

int64_t loop_lag_max_ms(struct loop *loop)
{
    int64_t ms = (int64_t)(loop->lag_max_ns / 1000000);

    loop->lag_max_ns = 0;
    return ms;
}

/* ---- birth, run, end ---- */

/* Children are reaped by us alone: an inherited "ignore" would let the kernel reap them and reuse their pids. */
static void claim_children(void)
{
    struct sigaction sa;

    if (sigaction(SIGCHLD, NULL, &sa) != 0)
        return;
    bool ignored = (sa.sa_flags & SA_SIGINFO) == 0 && sa.sa_handler == SIG_IGN;
    if (!ignored && (sa.sa_flags & SA_NOCLDWAIT) == 0)
        return;
    if (ignored)
        sa.sa_handler = SIG_DFL;
    sa.sa_flags &= ~SA_NOCLDWAIT;
    sigaction(SIGCHLD, &sa, NULL);
}

struct loop *loop_new(struct error *err)
{
    struct loop *loop = mem_zalloc(sizeof(*loop));

    if (loop == NULL) {
        error_errno(err, ENOMEM, "cannot make an event loop");
        return NULL;
    }
    int rc = uv_loop_init(&loop->uv);
    if (rc != 0) {
        loop_uv_error(err, rc, "cannot make an event loop");
        mem_free(loop);
        return NULL;
    }
    claim_children();
    loop->uv.data = loop;
    uv_loop_configure(&loop->uv, UV_METRICS_IDLE_TIME);
    uv_prepare_init(&loop->uv, &loop->prepare);
    loop->prepare.data = loop;
    uv_prepare_start(&loop->prepare, on_prepare);
    uv_unref((uv_handle_t *)&loop->prepare);
    uv_idle_init(&loop->uv, &loop->idle);
    loop->idle.data = loop;
    return loop;
}

static bool run(struct loop *loop, uv_run_mode mode)
{
    lag_begin(loop);
    int more = uv_run(&loop->uv, mode);
    lag_measure(loop);
    return more != 0;
}

void loop_run(struct loop *loop)
{
    run(loop, UV_RUN_DEFAULT);
}

bool loop_run_once(struct loop *loop, bool wait)
{
    return run(loop, wait ? UV_RUN_ONCE : UV_RUN_NOWAIT);
}

void loop_stop(struct loop *loop)
{
    uv_stop(&loop->uv);
}

int64_t loop_now_ms(struct loop *loop)
{
    return (int64_t)uv_now(&loop->uv);
}

static void count_closing(uv_handle_t *handle, void *arg)
{
    int *n = arg;

    if (uv_is_closing(handle))
        (*n)++;
}

static int closing(struct loop *loop)
{
    int n = 0;

    uv_walk(&loop->uv, count_closing, &n);
    return n;
}

static void name_handle(uv_handle_t *handle, void *arg)
{
    int *n = arg;

    (*n)++;
    fprintf(stderr, "loop_free: a %s handle is left open (%sactive)\n", uv_handle_type_name(handle->type),
            uv_is_active(handle) ? "" : "in");
}

int loop_free(struct loop *loop)
{
    int left = 0;

    if (loop == NULL)
        return 0;
    child_drop_orphans(loop);
    while (loop->works > 0) /* their `done` is promised */
        uv_run(&loop->uv, UV_RUN_ONCE);
    for (int i = 0; i < LOOP_FREE_TURNS && (loop->queued.head != NULL || closing(loop) > 0); i++)
        uv_run(&loop->uv, UV_RUN_NOWAIT);
    child_drop_orphans(loop); /* a task may have freed a child */
    for (struct loop_task *t = loop->queued.head; t != NULL; t = t->next) {
        left++;
        fprintf(stderr, "loop_free: a deferred task is left\n");
    }
    if (!uv_is_closing((uv_handle_t *)&loop->idle)) { /* else an earlier loop_free found something left */
        uv_close((uv_handle_t *)&loop->idle, NULL);
        uv_close((uv_handle_t *)&loop->prepare, NULL);
    }
    for (int i = 0; i < LOOP_FREE_TURNS && closing(loop) > 0; i++)
        uv_run(&loop->uv, UV_RUN_NOWAIT);
    if (uv_loop_close(&loop->uv) == UV_EBUSY) {
        int handles = 0;
        uv_walk(&loop->uv, name_handle, &handles);
        if (handles == 0) {
            handles = 1;
            fprintf(stderr, "loop_free: a request is left open\n");
        }
        return left + handles;
    }
    if (left == 0)
        mem_free(loop);
    return left;
}

/* ---- waker ---- */

struct loop_waker {
    uv_async_t uv;
    void (*fn)(void *arg);
    void *arg;
};

static void on_closed(uv_handle_t *handle)
{
    mem_free(handle->data);
}

static void on_wake(uv_async_t *async)
{
    struct loop_waker *waker = async->data;

    if (!uv_is_closing((uv_handle_t *)async))
        waker->fn(waker->arg);
}

struct loop_waker *loop_waker_new(struct loop *loop, void (*fn)(void *arg), void *arg, struct error *err)
{
    struct loop_waker *waker = mem_zalloc(sizeof(*waker));
    int rc = waker == NULL ? UV_ENOMEM : uv_async_init(&loop->uv, &waker->uv, on_wake);

    if (rc != 0) {
        loop_uv_error(err, rc, "cannot make a waker for the event loop");
        mem_free(waker);
        return NULL;
    }
    waker->fn = fn;
    waker->arg = arg;
    waker->uv.data = waker;
    uv_unref((uv_handle_t *)&waker->uv);
    return waker;
}

void loop_waker_wake(struct loop_waker *waker)
{
    uv_async_send(&waker->uv);
}

void loop_waker_free(struct loop_waker *waker)
{
    if (waker != NULL)
        uv_close((uv_handle_t *)&waker->uv, on_closed);
}

/* ---- signals ---- */

struct loop_signal {
    uv_signal_t uv;
    void (*fn)(void *arg, int signum);
    void *arg;
};

static void on_signal(uv_signal_t *signal, int signum)
{
    struct loop_signal *sig = signal->data;

    sig->fn(sig->arg, signum);
}

struct loop_signal *loop_signal_new(struct loop *loop, int signum, void (*fn)(void *arg, int signum), void *arg,
                                    struct error *err)
{
    struct loop_signal *sig = mem_zalloc(sizeof(*sig));
    int rc = sig == NULL ? UV_ENOMEM : uv_signal_init(&loop->uv, &sig->uv);

    if (rc != 0) {
        loop_uv_error(err, rc, "cannot watch a signal");
        mem_free(sig);
        return NULL;
    }
    sig->fn = fn;
    sig->arg = arg;
    sig->uv.data = sig;
    rc = uv_signal_start(&sig->uv, on_signal, signum);
    if (rc != 0) {
        loop_uv_error(err, rc, "cannot watch a signal");
        uv_close((uv_handle_t *)&sig->uv, on_closed);
        return NULL;
    }
    uv_unref((uv_handle_t *)&sig->uv);
    return sig;
}

void loop_signal_free(struct loop_signal *sig)
{
    if (sig != NULL)
        uv_close((uv_handle_t *)&sig->uv, on_closed);
}
