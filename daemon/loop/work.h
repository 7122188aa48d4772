/* work.h - a blocking function on libuv's thread pool (file work), answered on the loop.
 *
 * Copy inputs in, results out: no VM, store or lock crosses the line.  Loop thread only. */
#ifndef LOOP_WORK_H
#define LOOP_WORK_H

#include "loop/loop.h"

/* fn(data, err) runs on a pool thread: 0, or -1 with err set.  Then done(arg, data, rc, err) runs on the loop, exactly
 * once; err is valid during the call.  `data` stays the caller's to free (in done).  Returns -1 (ERR_IO) when nothing
 * was queued; done is not called then. */
int work_run(struct loop *loop, int (*fn)(void *data, struct error *err),
             void (*done)(void *arg, void *data, int rc, struct error *err), void *data, void *arg, struct error *err);

#endif
