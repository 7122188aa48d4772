/* websocket.c - a connection upgraded to RFC 6455 frames: its socket is read and written here, with a poller.
 *
 *   http_ws_accept ──► OPENING ──101 sent──► OPEN ──► CLOSING ──► over (libmicrohttpd takes its socket back)
 *                        │ what is sent waits       │ http_ws_close, the peer's close, a bad frame, a drain
 * Two hold it: its owner, until http_ws_close or `closed`, and the connection, until libmicrohttpd completes it.  In
 * CLOSING what was sent goes out, our close frame last, and the peer has CLOSE_MS to answer.  `closed` comes on a turn
 * of its own, but in http_server_free, where no later turn may come. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>

#include "base/mem.h"
#include "http/private.h"
#include "http/ws_frame.h"

enum { WS_CLOSE_MS = 2000, WS_READ_MAX = 16384, WS_CONTROL_ROOM = 16384 };

enum ws_state { WS_OPENING, WS_OPEN, WS_CLOSING, WS_OVER };

struct http_ws {
    struct http_conn *conn; /* NULL once libmicrohttpd is through with it */
    struct http_server *server;
    struct loop *loop;
    enum ws_state state;
    int fd; /* -1 until upgraded */
    struct MHD_UpgradeResponseHandle *urh;
    struct poller *poller;
    struct ws_parser parser;
    uint8_t in[WS_READ_MAX]; /* read, not yet parsed (a pause) */
    size_t in_at, in_len;
    struct buf extra; /* what libmicrohttpd had read beyond the handshake */
    struct buf out;
    size_t sent; /* of out */
    size_t max_pending;
    struct http_ws_events events;
    void *arg;
    int64_t moved, deadline;
    bool owned, paused, busy, close_queued, peer_closed, tell_closed, tell_drained;
    struct loop_task task;
};

size_t http_ws_pending(const struct http_ws *ws)
{
    return ws->out.len - ws->sent;
}

static void maybe_free(struct http_ws *ws)
{
    if (ws->owned || ws->conn != NULL || ws->busy)
        return;
    loop_revoke(ws->loop, &ws->task);
    poller_free(ws->poller);
    ws_parser_done(&ws->parser);
    buf_done(&ws->extra);
    buf_done(&ws->out);
    mem_free(ws);
}

static void want(struct http_ws *ws)
{
    int events = 0;

    if (ws->poller == NULL)
        return;
    /* In CLOSING the peer's bytes are read too, to meet its close frame, however paused its owner was. */
    if ((!ws->paused || ws->state == WS_CLOSING) && ws->in_len == 0 && ws->extra.len == 0)
        events |= POLLER_READ;
    if (http_ws_pending(ws) > 0)
        events |= POLLER_WRITE;
    poller_set(ws->poller, ws->state == WS_OVER ? 0 : events);
}

/* Gives the socket back; libmicrohttpd closes it and completes the connection. */
static void over(struct http_ws *ws)
{
    if (ws->state == WS_OVER)
        return;
    ws->state = WS_OVER;
    poller_free(ws->poller);
    ws->poller = NULL;
    if (ws->urh != NULL) {
        shutdown(ws->fd, SHUT_WR);
        MHD_upgrade_action(ws->urh, MHD_UPGRADE_ACTION_CLOSE);
        ws->urh = NULL;
        http_kick(ws->conn->listener);
    } else if (ws->conn != NULL) {
        http_cut(ws->conn);
    }
    ws->fd = -1;
    if (ws->owned) {
        ws->tell_closed = true;
        loop_defer(ws->loop, &ws->task);
    }
}

static int queue_frame(struct http_ws *ws, enum ws_opcode opcode, const void *data, size_t len)
{
    uint8_t head[WS_HEAD_MAX];
    size_t n = ws_frame_head(opcode, len, head);

    if (ws->sent > 0) {
        buf_consume(&ws->out, ws->sent);
        ws->sent = 0;
    }
    if (ws->out.len == 0)
        ws->moved = loop_now_ms(ws->loop);
    size_t before = ws->out.len;
    if (buf_append(&ws->out, head, n) == 0 && buf_append(&ws->out, data, len) == 0)
        return 0;
    ws->out.failed = false; /* half a frame must not stay */
    ws->out.len = before;
    if (ws->out.data != NULL)
        ws->out.data[before] = '\0';
    return -1;
}

static void queue_close(struct http_ws *ws, int code, const char *reason)
{
    uint8_t payload[WS_CONTROL_MAX] = {(uint8_t)(code >> 8), (uint8_t)code};
    size_t len = reason != NULL ? strlen(reason) : 0;

    if (ws->close_queued)
        return;
    if (len > WS_CONTROL_MAX - 2)
        len = WS_CONTROL_MAX - 2;
    if (len > 0)
        memcpy(payload + 2, reason, len);
    ws->close_queued = true;
    queue_frame(ws, WS_CLOSE, payload, code == 1005 ? 0 : len + 2);
    if (ws->state == WS_OPEN || ws->state == WS_OPENING) {
        if (ws->state == WS_OPEN)
            ws->state = WS_CLOSING;
        ws->deadline = loop_now_ms(ws->loop) + WS_CLOSE_MS;
    }
}

/* Sends what is pending; false when the connection is over. */
static bool flush(struct http_ws *ws)
{
    while (ws->fd >= 0 && http_ws_pending(ws) > 0) {
        ssize_t n = send(ws->fd, ws->out.data + ws->sent, http_ws_pending(ws), MSG_NOSIGNAL | MSG_DONTWAIT);

        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0 && errno == EAGAIN)
            return true;
        if (n < 0) {
            over(ws);
            return false;
        }
        ws->sent += (size_t)n;
        ws->moved = loop_now_ms(ws->loop);
        if (http_ws_pending(ws) == 0) {
            buf_reset(&ws->out);
            ws->sent = 0;
            ws->tell_drained = ws->owned && ws->events.drained != NULL;
            if (ws->tell_drained)
                loop_defer(ws->loop, &ws->task);
        }
    }
    if (ws->state == WS_CLOSING && ws->peer_closed && http_ws_pending(ws) == 0) {
        over(ws);
        return false;
    }
    return true;
}

/* The peer's close, or what must be answered with one. */
static void peer_close(struct http_ws *ws, int code, bool error)
{
    ws->peer_closed = !error;
    queue_close(ws, code, "");
    ws->paused = false;
}

static void on_event(struct http_ws *ws, enum ws_event event)
{
    struct ws_parser *p = &ws->parser;

    if (event == WS_EVENT_MESSAGE && ws->state == WS_OPEN && ws->owned)
        ws->events.message(ws->arg, p->binary, p->data, p->len);
    else if (event == WS_EVENT_PING && ws->state == WS_OPEN && http_ws_pending(ws) + p->len < ws->max_pending)
        queue_frame(ws, WS_PONG, p->data, p->len); /* a flood of pings that is not read goes unanswered */
    else if (event == WS_EVENT_CLOSE || event == WS_EVENT_ERROR)
        peer_close(ws, p->code, event == WS_EVENT_ERROR);
}

/* Parses what has been read, until a pause. */
static void parse(struct http_ws *ws)
{
    while ((!ws->paused || ws->state == WS_CLOSING) && (ws->extra.len > 0 || ws->in_len > 0)) {
        bool extra = ws->extra.len > 0;
        const uint8_t *at = extra ? (const uint8_t *)ws->extra.data : ws->in + ws->in_at;
        size_t len = extra ? ws->extra.len : ws->in_len;
        const uint8_t *start = at;

        enum ws_event event = ws_parser_next(&ws->parser, &at, &len);
        if (extra) {
            buf_consume(&ws->extra, (size_t)(at - start));
        } else {
            ws->in_at += (size_t)(at - start);
            ws->in_len = len;
        }
        on_event(ws, event);
        if (ws->state == WS_OVER)
            return;
    }
}

/* One turn of work: parse, answer, send.  `busy` keeps it alive over its owner's callbacks. */
static void turn(struct http_ws *ws)
{
    ws->busy = true;
    if (ws->state == WS_OPEN || ws->state == WS_CLOSING)
        parse(ws);
    if (ws->state != WS_OVER && ws->fd >= 0 && flush(ws))
        want(ws);
    ws->busy = false;
    maybe_free(ws);
}

static void readable(struct http_ws *ws)
{
    ssize_t n = recv(ws->fd, ws->in, sizeof(ws->in), MSG_DONTWAIT);

    if (n < 0 && (errno == EAGAIN || errno == EINTR))
        return;
    if (n <= 0) {
        over(ws);
        return;
    }
    ws->in_at = 0;
    ws->in_len = (size_t)n;
}

static void ready(void *arg, int events)
{
    struct http_ws *ws = arg;

    ws->busy = true;
    if ((events & POLLER_READ) != 0 && ws->in_len == 0 && ws->extra.len == 0)
        readable(ws);
    turn(ws);
}

static void ws_task(struct loop_task *task)
{
    struct http_ws *ws = CONTAINER_OF(task, struct http_ws, task);

    ws->busy = true;
    if (ws->tell_closed && ws->owned) {
        ws->owned = false;
        ws->events.closed(ws->arg);
    } else if (ws->tell_drained && ws->owned && http_ws_pending(ws) == 0) {
        ws->tell_drained = false;
        ws->events.drained(ws->arg);
    }
    turn(ws);
}

static void upgraded(void *cls, struct MHD_Connection *mhd, void *con_cls, const char *extra, size_t extra_len,
                     MHD_socket fd, struct MHD_UpgradeResponseHandle *urh)
{
    struct http_ws *ws = cls;

    (void)mhd;
    (void)con_cls;
    ws->fd = fd;
    ws->urh = urh;
    ws->conn->state = CONN_UPGRADED;
    http_unwatch(ws->conn);
    fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK);
    ws->state = ws->close_queued ? WS_CLOSING : WS_OPEN;
    ws->poller = poller_new(ws->loop, fd, 0, ready, ws, NULL);
    if (ws->poller == NULL || (extra_len > 0 && buf_append(&ws->extra, extra, extra_len) != 0)) {
        over(ws);
        return;
    }
    loop_defer(ws->loop, &ws->task); /* not from within libmicrohttpd */
}

static bool has_token(const char *list, const char *token)
{
    size_t n = strlen(token);

    while (list != NULL && *list != '\0') {
        list += strspn(list, " \t,");
        size_t len = strcspn(list, " \t,");
        if (len == n && strncasecmp(list, token, n) == 0)
            return true;
        list += len;
    }
    return false;
}

static int handshake(const struct http_request *req, char accept[WS_ACCEPT_MAX], struct error *err)
{
    const char *key = http_header(req, "Sec-WebSocket-Key");
    const char *version = http_header(req, "Sec-WebSocket-Version");

    if (!has_token(http_header(req, "Upgrade"), "websocket") || !has_token(http_header(req, "Connection"), "upgrade"))
        return error_set(err, ERR_API_BAD_REQUEST, "this route takes a WebSocket handshake (Upgrade: websocket)");
    if (version == NULL || strcmp(version, "13") != 0)
        return error_set(err, ERR_API_BAD_REQUEST, "Sec-WebSocket-Version must be 13");
    if (key == NULL || !ws_accept_key(key, accept))
        return error_set(err, ERR_API_BAD_REQUEST, "Sec-WebSocket-Key must be 16 bytes in base64");
    return 0;
}

static struct http_ws *ws_new(struct http_conn *conn, size_t max_pending, const struct http_ws_events *events,
                              void *arg)
{
    struct http_ws *ws = mem_zalloc(sizeof(*ws));

    if (ws == NULL)
        return NULL;
    ws->conn = conn;
    ws->server = conn_server(conn);
    ws->loop = ws->server->loop;
    ws->fd = -1;
    ws_parser_init(&ws->parser);
    buf_init(&ws->extra, 64 * 1024);
    buf_init(&ws->out, max_pending + WS_CONTROL_ROOM);
    ws->max_pending = max_pending;
    ws->events = *events;
    ws->arg = arg;
    ws->owned = true;
    ws->task.run = ws_task;
    return ws;
}

static struct http_ws *refuse(struct http_request *req, struct error *err)
{
    conn_server(conn_of(req))->stats.refused++;
    if (err->code == ERR_API_BAD_REQUEST)
        http_add_header(req, "Sec-WebSocket-Version", "13");
    http_reply_error(req, err);
    return NULL;
}

struct http_ws *http_ws_accept(struct http_request *req, size_t max_pending, const struct http_ws_events *events,
                               void *arg)
{
    CLEANUP_ERROR struct error err = ERROR_INIT;
    struct http_conn *conn = conn_of(req);
    char accept[WS_ACCEPT_MAX];
    struct MHD_Response *response = NULL;
    struct http_ws *ws;

    if (conn->abort)
        return NULL;
    if (handshake(req, accept, &err) != 0)
        return refuse(req, &err);
    if (http_slot_take(conn, LIMIT_STREAMS, &err) != 0)
        return refuse(req, &err);
    ws = ws_new(conn, max_pending, events, arg);
    if (ws != NULL)
        response = MHD_create_response_for_upgrade(upgraded, ws);
    if (response == NULL) {
        mem_free(ws);
        http_slot_drop(conn, LIMIT_STREAMS);
        error_set(&err, ERR_DAEMON_OVERLOADED, "no memory for a WebSocket");
        return refuse(req, &err);
    }
    http_decorate(conn, response, NULL);
    MHD_add_response_header(response, "Upgrade", "websocket");
    MHD_add_response_header(response, "Sec-WebSocket-Accept", accept);
    conn->ws = ws;
    http_answer(conn, MHD_HTTP_SWITCHING_PROTOCOLS, response);
    return ws;
}

int http_ws_send(struct http_ws *ws, const void *data, size_t len)
{
    if (ws->state == WS_OVER || ws->close_queued || http_ws_pending(ws) + len + WS_HEAD_MAX > ws->max_pending ||
        queue_frame(ws, WS_BINARY, data, len) != 0)
        return -1;
    if (ws->state == WS_OPEN)
        loop_defer(ws->loop, &ws->task); /* many small messages leave in one write */
    return 0;
}

void http_ws_pause(struct http_ws *ws, bool paused)
{
    ws->paused = paused;
    if (ws->state == WS_OPEN && !ws->busy)
        loop_defer(ws->loop, &ws->task);
}

void http_ws_close(struct http_ws *ws, int code, const char *reason)
{
    ws->owned = false;
    ws->paused = false;
    ws->tell_drained = false;
    if (ws->state != WS_OVER) {
        queue_close(ws, code, reason);
        loop_defer(ws->loop, &ws->task);
    }
    maybe_free(ws);
}

void http_ws_completed(struct http_ws *ws)
{
    http_slot_drop(ws->conn, LIMIT_STREAMS);
    ws->conn = NULL;
    ws->urh = NULL;
    if (ws->state != WS_OVER) /* it ended before it was upgraded */
        over(ws);
    maybe_free(ws);
}

void http_ws_sweep(struct http_ws *ws, int64_t now)
{
    bool stalled = http_ws_pending(ws) > 0 && now - ws->moved > HTTP_STALL_MS;
    bool late = ws->close_queued && now >= ws->deadline;

    if (ws->state != WS_OVER && (stalled || late))
        over(ws);
}

void http_ws_drain(struct http_ws *ws)
{
    if (ws->state == WS_OVER)
        return;
    queue_close(ws, 1001, "vmmd is stopping");
    ws->tell_closed = true;
    loop_defer(ws->loop, &ws->task);
}

void http_ws_abort(struct http_ws *ws)
{
    ws->busy = true;
    over(ws);
    if (ws->owned) {
        ws->owned = false;
        ws->events.closed(ws->arg);
    }
    loop_revoke(ws->loop, &ws->task);
    ws->busy = false;
    maybe_free(ws);
}
