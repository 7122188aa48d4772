/* stream.c - an answer that is written piece by piece (SSE, logs), pulled by libmicrohttpd and parked when dry.
 *
 *   http_stream_write ──► pending ──► read_pending (libmicrohttpd) ──► socket
 *                                      │ nothing there: suspended until the next write
 * Two hold it: its owner, until http_stream_end or `gone`, and libmicrohttpd's response, until its free callback.
 * A client that leaves is seen by the hangup watch while suspended, else by libmicrohttpd.  One that reads too slowly
 * (max_pending passed, or nothing taken for a minute) is dropped.  `gone` always comes on a turn of its own, but in
 * http_server_free, where no later turn may come. */
#include <netinet/tcp.h>
#include <string.h>

#include "base/mem.h"
#include "http/private.h"

enum { STREAM_BLOCK = 16384 };

struct http_stream {
    struct http_conn *conn; /* NULL once the connection is through with it */
    struct http_server *server;
    struct loop *loop;
    struct buf pending;
    size_t taken; /* bytes of pending already read by libmicrohttpd */
    struct http_stream_events events;
    void *arg;
    int64_t moved; /* when something was last taken, or became pending */
    bool owned, held, ended, dead, flushed, tell_drained;
    struct loop_task task;
};

static size_t left(const struct http_stream *s)
{
    return s->pending.len - s->taken;
}

static void maybe_free(struct http_stream *s)
{
    if (s->owned || s->held)
        return;
    loop_revoke(s->loop, &s->task);
    buf_done(&s->pending);
    mem_free(s);
}

static void tell_gone(struct http_stream *s)
{
    s->owned = false;
    s->events.gone(s->arg);
    maybe_free(s);
}

static void stream_task(struct loop_task *task)
{
    struct http_stream *s = CONTAINER_OF(task, struct http_stream, task);

    if (!s->owned)
        return;
    if (s->dead) {
        tell_gone(s);
    } else if (s->tell_drained) {
        s->tell_drained = false;
        if (left(s) == 0)
            s->events.drained(s->arg);
    }
}

/* The stream is over for its owner, who hears of it soon. */
static void die(struct http_stream *s)
{
    if (s->dead)
        return;
    s->dead = true;
    if (s->owned)
        loop_defer(s->loop, &s->task);
}

static void drop(struct http_stream *s)
{
    die(s);
    if (s->conn != NULL)
        http_cut(s->conn);
}

/* Header bytes may wait in the kernel for the first piece of the body; a stream that is dry shows them now. */
static void flush_head(struct http_stream *s)
{
    int one = 1;

    if (!s->flushed && !s->conn->listener->is_unix)
        setsockopt(s->conn->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
    s->flushed = true;
}

static ssize_t read_pending(void *cls, uint64_t pos, char *out, size_t max)
{
    struct http_stream *s = cls;
    size_t n = left(s);

    (void)pos;
    if (s->conn == NULL || (s->dead && !s->ended))
        return MHD_CONTENT_READER_END_WITH_ERROR;
    if (n == 0) {
        if (s->ended)
            return MHD_CONTENT_READER_END_OF_STREAM;
        flush_head(s);
        http_suspend(s->conn);
        return 0;
    }
    if (n > max)
        n = max;
    memcpy(out, s->pending.data + s->taken, n);
    s->taken += n;
    s->moved = loop_now_ms(s->loop);
    if (left(s) == 0) {
        buf_reset(&s->pending);
        s->taken = 0;
        if (s->owned && s->events.drained != NULL) {
            s->tell_drained = true;
            loop_defer(s->loop, &s->task);
        }
    }
    return (ssize_t)n;
}

static void response_freed(void *cls)
{
    struct http_stream *s = cls;

    s->held = false;
    maybe_free(s);
}

static struct http_stream *stream_new(struct http_conn *conn, size_t max_pending,
                                      const struct http_stream_events *events, void *arg)
{
    struct http_stream *s = mem_zalloc(sizeof(*s));

    if (s == NULL)
        return NULL;
    s->conn = conn;
    s->server = conn_server(conn);
    s->loop = s->server->loop;
    buf_init(&s->pending, max_pending);
    s->events = *events;
    s->arg = arg;
    s->owned = true;
    s->task.run = stream_task;
    return s;
}

struct http_stream *http_stream_start(struct http_request *req, int status, const char *content_type,
                                      size_t max_pending, const struct http_stream_events *events, void *arg)
{
    struct http_conn *conn = conn_of(req);
    struct http_server *server = conn_server(conn);
    struct MHD_Response *response = NULL;
    struct http_stream *s = NULL;

    CLEANUP_ERROR struct error err = ERROR_INIT;

    if (conn->abort)
        return NULL;
    if (http_slot_take(conn, LIMIT_STREAMS, &err) == 0) {
        if (!conn->extra_failed)
            s = stream_new(conn, max_pending, events, arg);
        if (s != NULL && http_watch(conn))
            response =
                MHD_create_response_from_callback(MHD_SIZE_UNKNOWN, STREAM_BLOCK, read_pending, s, response_freed);
        if (response == NULL) {
            mem_free(s);
            http_slot_drop(conn, LIMIT_STREAMS);
            error_set(&err, ERR_DAEMON_OVERLOADED, "no memory for a stream");
        }
    }
    if (response == NULL) {
        server->stats.refused++;
        http_reply_error(req, &err);
        return NULL;
    }
    s->held = true;
    http_decorate(conn, response, content_type);
    conn->stream = s;
    http_answer(conn, (unsigned)status, response);
    return s;
}

int http_stream_write(struct http_stream *s, const void *data, size_t len)
{
    if (s->dead || s->ended || s->conn == NULL)
        return -1;
    if (len == 0)
        return 0;
    if (s->taken > 0 && s->taken >= s->pending.len / 2) {
        buf_consume(&s->pending, s->taken);
        s->taken = 0;
    }
    if (left(s) == 0)
        s->moved = loop_now_ms(s->loop);
    if (left(s) + len > s->pending.max) {
        drop(s);
        return -1;
    }
    if (s->taken > 0 && s->pending.len + len > s->pending.max) {
        buf_consume(&s->pending, s->taken);
        s->taken = 0;
    }
    if (buf_append(&s->pending, data, len) != 0) {
        drop(s);
        return -1;
    }
    if (s->conn->state == CONN_REPLY)
        http_resume(s->conn);
    return 0;
}

size_t http_stream_pending(const struct http_stream *s)
{
    return left(s);
}

void http_stream_end(struct http_stream *s)
{
    s->ended = true;
    s->owned = false;
    loop_revoke(s->loop, &s->task);
    if (s->conn != NULL && s->conn->state == CONN_REPLY)
        http_resume(s->conn);
    maybe_free(s);
}

void http_stream_break(struct http_stream *s)
{
    s->owned = false;
    loop_revoke(s->loop, &s->task);
    drop(s);
    maybe_free(s);
}

void http_stream_left(struct http_stream *s)
{
    drop(s);
}

void http_stream_completed(struct http_stream *s)
{
    http_slot_drop(s->conn, LIMIT_STREAMS);
    s->conn = NULL;
    if (s->server->freeing && s->owned) {
        s->dead = true;
        loop_revoke(s->loop, &s->task);
        tell_gone(s);
        return;
    }
    die(s);
}

void http_stream_sweep(struct http_stream *s, int64_t now)
{
    if (left(s) > 0 && now - s->moved > HTTP_STALL_MS)
        drop(s);
}

void http_stream_drain(struct http_stream *s)
{
    s->ended = true;
    die(s);
    if (s->conn != NULL && s->conn->state == CONN_REPLY)
        http_resume(s->conn);
}
