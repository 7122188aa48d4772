/* timer.c - timers on libuv's heap.
 *
 * libuv counts from the iteration's cached time, which is old after a long callback, so the delay is made good for
 * that: a timer is never early (beyond the rounding to ms).  A delay of 0 counts as 1 ms: libuv 1.44 would run a timer
 * that restarts itself at once for ever, within one iteration. */
#include "loop/timer.h"

#include "base/mem.h"
#include "loop/private.h"

struct timer {
    uv_timer_t uv;
    void (*fn)(void *arg);
    void *arg;
};

static void on_timer(uv_timer_t *uv)
{
    struct timer *timer = uv->data;

    timer->fn(timer->arg);
}

static void on_closed(uv_handle_t *handle)
{
    mem_free(handle->data);
}

struct timer *timer_new(struct loop *loop, void (*fn)(void *arg), void *arg)
{
    struct timer *timer = mem_zalloc(sizeof(*timer));

    if (timer == NULL)
        return NULL;
    timer->fn = fn;
    timer->arg = arg;
    uv_timer_init(&loop->uv, &timer->uv);
    timer->uv.data = timer;
    return timer;
}

void timer_start(struct timer *timer, int64_t delay_ms, int64_t repeat_ms)
{
    uint64_t now = uv_hrtime() / 1000000, cached = uv_now(timer->uv.loop);
    uint64_t delay = delay_ms > 0 ? (uint64_t)delay_ms : 1;
    uint64_t repeat = repeat_ms > 0 ? (uint64_t)repeat_ms : 0;

    if (now > cached)
        delay += now - cached;
    uv_timer_start(&timer->uv, on_timer, delay, repeat);
}

void timer_stop(struct timer *timer)
{
    uv_timer_stop(&timer->uv);
}

bool timer_active(const struct timer *timer)
{
    return uv_is_active((const uv_handle_t *)&timer->uv) != 0;
}

void timer_unref(struct timer *timer)
{
    uv_unref((uv_handle_t *)&timer->uv);
}

void timer_free(struct timer *timer)
{
    if (timer != NULL)
        uv_close((uv_handle_t *)&timer->uv, on_closed);
}
