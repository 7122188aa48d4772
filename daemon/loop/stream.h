/* stream.h - a connected byte stream (Unix socket, or any socket given as an fd), read as it comes, written in order.
 *
 * After stream_connect returned a stream, exactly one of {connected, closed} comes first; `closed` comes at most once
 * and is the last callback.  stream_free may be called at any time, from any callback, and silences all callbacks.
 * Written bytes are copied; more than `max_pending` waiting bytes are refused.  Writing before `connected` waits for
 * it.  No callback comes from within a call of the owner.  After `closed` the socket is closed; stream_free frees the
 * rest.  Loop thread only. */
#ifndef LOOP_STREAM_H
#define LOOP_STREAM_H

#include <stdbool.h>
#include <stddef.h>

#include "loop/loop.h"

struct stream;

struct stream_events {
    void (*connected)(void *arg);                          /* may be NULL */
    void (*data)(void *arg, const char *data, size_t len); /* len > 0 */
    void (*closed)(void *arg, int errnum);                 /* 0: the peer ended it; else an errno */
    void (*drained)(void *arg);                            /* may be NULL: all written bytes left */
};

/* Connects to a Unix socket path (longer than 107 bytes: ERR_IO at once).  A refusal comes as `closed`; a full backlog
 * is tried again for a second first. */
struct stream *stream_connect(struct loop *loop, const char *path, size_t max_pending,
                              const struct stream_events *events, void *arg, struct error *err);
/* Takes a connected socket over (also closes it on failure); `connected` is not called. */
struct stream *stream_from_fd(struct loop *loop, int fd, size_t max_pending, const struct stream_events *events,
                              void *arg, struct error *err);
/* -1 when closed, when it would pass max_pending or when the peer turns out to be gone (`closed` comes then); nothing
 * was queued then. */
int stream_write(struct stream *s, const void *data, size_t len);
size_t stream_pending(const struct stream *s);
/* Stops and goes on reading: back-pressure.  While paused the peer's end is not seen either. */
void stream_pause(struct stream *s, bool paused);
void stream_free(struct stream *s); /* NULL is fine; what was written and not yet sent is lost */

#endif
