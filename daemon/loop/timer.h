/* timer.h - timers on the loop, in milliseconds of monotonic time.  Loop thread only. */
#ifndef LOOP_TIMER_H
#define LOOP_TIMER_H

#include <stdbool.h>
#include <stdint.h>

#include "loop/loop.h"

struct timer;

/* A stopped timer; NULL when memory is short. */
struct timer *timer_new(struct loop *loop, void (*fn)(void *arg), void *arg);
/* (Re)starts: fires after delay_ms, then every repeat_ms (0: once). */
void timer_start(struct timer *timer, int64_t delay_ms, int64_t repeat_ms);
void timer_stop(struct timer *timer);
bool timer_active(const struct timer *timer);
/* A timer that must not keep loop_run alive. */
void timer_unref(struct timer *timer);
void timer_free(struct timer *timer); /* NULL is fine; may be called from its own callback */

#endif
