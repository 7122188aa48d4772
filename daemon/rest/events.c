/* events.c - GET /v1/events: server-sent events, replayed and live.
 *
 * Each event is `id:`, `event:`, `data:`.  A comment goes out every 15 s.  A replay goes as fast as it is read.  A reader that
 * does not keep up with what is live (256 KiB waiting), or takes nothing for a minute, is dropped; one for which what comes next is
 * no longer kept is ended.  It comes back with Last-Event-ID and misses nothing, or is told that it did. */
#include <stdio.h>
#include <string.h>

#include "base/buf.h"
#include "base/mem.h"
#include "base/str.h"
#include "loop/timer.h"
#include "model/fields.h"
#include "rest/rest.h"

enum { PENDING_MAX = 1 << 18, PENDING_HOLD = 1 << 16, EVENT_MAX = 1 << 20, HEARTBEAT_MS = 15000 };

struct sse {
    struct http_stream *stream;
    struct event_sub *sub;
    struct timer *heartbeat;
};

static void sse_free(struct sse *s)
{
    core_events_unsubscribe(s->sub);
    timer_free(s->heartbeat);
    mem_free(s);
}

static void sse_gone(void *arg)
{
    sse_free(arg);
}

static void sse_end(struct sse *s)
{
    http_stream_end(s->stream);
    sse_free(s);
}

static void sse_event(void *arg, int64_t id, const char *type, const char *doc)
{
    struct sse *s = arg;
    CLEANUP_BUF struct buf b = BUF_INIT(EVENT_MAX);

    if (type != NULL) {
        buf_printf(&b, "id: %lld\nevent: %s\ndata: ", (long long)id, type);
        buf_str(&b, doc);
        buf_str(&b, "\n\n");
    }
    if (type == NULL || b.failed) { /* what it cannot have now it asks for again */
        sse_end(s);
        return;
    }
    if (http_stream_write(s->stream, b.data, b.len) < 0) /* one that is full is dropped: gone follows */
        return;
    if (http_stream_pending(s->stream) > PENDING_HOLD)
        core_events_hold(s->sub, true);
}

static void sse_drained(void *arg)
{
    struct sse *s = arg;

    core_events_hold(s->sub, false);
}

static void sse_heartbeat(void *arg)
{
    struct sse *s = arg;

    http_stream_write(s->stream, ":\n\n", 3);
}

static int read_since(struct http_request *req, int64_t *ret, struct error *err)
{
    const char *last = http_header(req, "Last-Event-ID");

    *ret = -1;
    if (last != NULL && !str_to_i64(last, 0, INT64_MAX, ret))
        return field_pointer_error(err, "/Last-Event-ID", "the id of an event",
                                   "Last-Event-ID must be the id of an event");
    return last != NULL ? 0 : rest_query_int(req, "since", 0, INT64_MAX, ret, err);
}

void rest_events(struct http_request *req, void *arg)
{
    static const struct http_stream_events stream_events = {.gone = sse_gone, .drained = sse_drained};
    struct rest *rest = arg;
    CLEANUP_ERROR struct error err = ERROR_INIT;
    struct event_filter filter = {.vm = http_query(req, "vm"), .type_glob = http_query(req, "type")};
    struct sse *s = mem_zalloc(sizeof(*s));
    int64_t since;

    if (s != NULL)
        s->heartbeat = timer_new(rest->loop, sse_heartbeat, s);
    if (s == NULL || s->heartbeat == NULL)
        error_set(&err, ERR_DAEMON_OVERLOADED, "out of memory");
    else if (read_since(req, &since, &err) == 0)
        s->sub = core_events_subscribe(rest->core, since, &filter, sse_event, s, &err);
    if (s == NULL || s->sub == NULL) {
        if (s != NULL)
            sse_free(s);
        http_reply_error(req, &err);
        return;
    }
    http_add_header(req, "Cache-Control", "no-store");
    s->stream = http_stream_start(req, 200, "text/event-stream", PENDING_MAX, &stream_events, s);
    if (s->stream == NULL) { /* answered */
        sse_free(s);
        return;
    }
    http_stream_write(s->stream, ":\n\n", 3); /* the headers go out at once */
    timer_start(s->heartbeat, HEARTBEAT_MS, HEARTBEAT_MS);
}
