/* poller.h - readiness of a file descriptor that something else reads and writes (MHD's epoll, pidfds, sockets).
 * Level-triggered.  Loop thread only; one poller per fd; the fd stays the caller's and must outlive the poller. */
#ifndef LOOP_POLLER_H
#define LOOP_POLLER_H

#include "loop/loop.h"

enum { POLLER_READ = 1, POLLER_WRITE = 2, POLLER_HANGUP = 4 };

struct poller;

/* Calls fn(arg, events) when any of `events` holds; an error on the fd is reported as all that were asked.  ERR_IO. */
struct poller *poller_new(struct loop *loop, int fd, int events, void (*fn)(void *arg, int events), void *arg,
                          struct error *err);
void poller_set(struct poller *p, int events); /* 0: asleep */
void poller_free(struct poller *p);            /* NULL is fine; the fd may be closed right after */

#endif
