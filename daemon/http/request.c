/* request.c - a request from its first byte to its end, as libmicrohttpd calls us.
 *
 * Target parsed, headers walked once, peer admitted, route found, body collected, handler called; it answers at once or
 * the connection is suspended until it does.  What is refused before its body was read is answered at once and the
 * connection closed after lingering; a refusal without a body keeps the connection.  libmicrohttpd takes no answer in
 * the midst of a body: there the refusal is written by us and the connection cut. */
#include <string.h>
#include <sys/socket.h>

#include "base/log.h"
#include "base/mem.h"
#include "http/private.h"

enum { TARGET_KEEP = 4096 };

static int64_t after(const struct http_conn *conn, int64_t ms)
{
    return loop_now_ms(conn_server(conn)->loop) + ms;
}

void http_kick(struct http_listener *l)
{
    loop_defer(l->server->loop, &l->task);
}

void http_suspend(struct http_conn *conn)
{
    conn->suspended = true;
    MHD_suspend_connection(conn->mhd);
}

void http_resume(struct http_conn *conn)
{
    if (!conn->suspended)
        return;
    conn->suspended = false;
    MHD_resume_connection(conn->mhd);
    http_kick(conn->listener);
}

static void unpark(struct http_conn *conn)
{
    if (conn->parked)
        conn_server(conn)->stats.parked--;
    conn->parked = false;
    http_slot_drop(conn, LIMIT_WAITS);
}

static void enter(struct http_conn *conn, enum conn_state state)
{
    conn->state = state;
    conn->since = loop_now_ms(conn_server(conn)->loop);
}

/* Tells the handler's side, once, that its request is gone. */
static void call_gone(struct http_conn *conn)
{
    void (*gone)(void *arg, struct http_request *req) = conn->gone;

    conn->gone = NULL;
    unpark(conn);
    if (gone != NULL)
        gone(conn->gone_arg, &conn->req);
}

static void hung_up(void *arg, int events)
{
    struct http_conn *conn = arg;

    (void)events;
    poller_set(conn->watch, 0);
    if (conn->stream != NULL) {
        http_stream_left(conn->stream);
    } else if ((conn->state == CONN_PARKED || conn->body_events != NULL) && conn->gone != NULL) {
        conn->abort = true;
        http_resume(conn);
        call_gone(conn);
    }
}

bool http_stopping(const struct http_request *req)
{
    const struct http_conn *conn = conn_of(req);

    return conn_server(conn)->draining && conn->suspended && !conn->abort;
}

bool http_watch(struct http_conn *conn)
{
    if (conn->watch == NULL)
        conn->watch = poller_new(conn_server(conn)->loop, conn->fd, POLLER_HANGUP, hung_up, conn, NULL);
    return conn->watch != NULL;
}

void http_unwatch(struct http_conn *conn)
{
    poller_free(conn->watch);
    conn->watch = NULL;
}

void http_on_gone(struct http_request *req, void (*fn)(void *arg, struct http_request *req), void *arg)
{
    struct http_conn *conn = conn_of(req);

    if (conn->abort || (conn->state != CONN_PARKED && conn->body_events == NULL))
        return;
    conn->gone = fn;
    conn->gone_arg = arg;
    if (!conn->suspended)
        return; /* in its handler: park() looks */
    if (fn != NULL)
        http_watch(conn);
    else
        http_unwatch(conn);
}

void http_cut(struct http_conn *conn)
{
    conn->abort = true;
    shutdown(conn->fd, SHUT_RDWR);
    http_resume(conn);
}

enum MHD_Result http_queue_answer(struct http_conn *conn)
{
    struct http_server *server = conn_server(conn);
    struct MHD_Response *answer = conn->answer;
    unsigned status = conn->answer_status;
    enum MHD_Result rc;

    conn->answer = NULL;
    enter(conn, CONN_REPLY);
    conn->deadline = 0;
    server->stats.responses[status / 100 <= 5 ? status / 100 : 5]++;
    rc = MHD_queue_response(conn->mhd, status, answer);
    MHD_destroy_response(answer);
    LOG_DEBUG("answered", "path", conn->target.path, "request_id", conn->request_id);
    return rc;
}

void http_answer(struct http_conn *conn, unsigned status, struct MHD_Response *response)
{
    if (conn->abort || conn->state != CONN_PARKED || conn->answer != NULL) {
        if (response != NULL)
            MHD_destroy_response(response);
        return;
    }
    conn->gone = NULL;
    unpark(conn);
    if (conn->stream == NULL)
        http_unwatch(conn);
    conn->answer = response;
    conn->answer_status = status;
    conn->abort = response == NULL;
    http_resume(conn); /* nothing in the handler: dispatch() queues it there */
}

static enum MHD_Result refuse_now(struct http_conn *conn, const struct error *err)
{
    conn->answer = http_make_problem(conn, err, &conn->answer_status);
    return conn->answer != NULL ? http_queue_answer(conn) : MHD_NO;
}

/* Suspends until http_answer.  A read whose client's leaving cannot be seen is refused; a change has begun, so it waits in any
 * case, and a client that leaves it unseen is noticed at the answer. */
enum MHD_Result http_park(struct http_conn *conn)
{
    struct http_server *server = conn_server(conn);
    bool watched = conn->gone == NULL || http_watch(conn);

    if (conn->gone != NULL && conn->req.method == HTTP_GET && !watched) {
        struct error err = ERROR_INIT;

        call_gone(conn);
        server->stats.refused++;
        error_set(&err, ERR_DAEMON_OVERLOADED, "no memory beside %u waiting requests", server->stats.parked);
        enum MHD_Result rc = refuse_now(conn, &err);
        error_done(&err);
        return rc;
    }
    conn->parked = true;
    server->stats.parked++;
    http_suspend(conn);
    return MHD_YES;
}

static enum MHD_Result dispatch(struct http_conn *conn)
{
    struct http_server *server = conn_server(conn);

    conn->state = CONN_PARKED;
    conn->deadline = 0;
    conn->req.body = conn->body.data != NULL ? conn->body.data : "";
    conn->req.body_len = conn->body.len;
    conn->in_handler = true;
    conn->route->handler(&conn->req, server->arg);
    conn->in_handler = false;
    if (conn->abort)
        return MHD_NO;
    return conn->answer != NULL ? http_queue_answer(conn) : http_park(conn);
}

static bool takes_body(const struct http_conn *conn)
{
    return conn->route->method != HTTP_GET && !conn->route->no_body;
}

static bool wants_media_type(const struct http_conn *conn)
{
    return takes_body(conn) && conn->route->method != HTTP_DELETE && !conn->route->stream_body;
}

static int refuse_media_type(const struct http_conn *conn, struct error *err)
{
    const char *type = conn->headers.content_type;

    error_set(err, ERR_API_UNSUPPORTED_MEDIA_TYPE,
              type != NULL ? "the body is %.100s; this route takes application/json%s"
                           : "the body has no Content-Type%s%s",
              type != NULL ? type : "", conn->route->merge_patch ? " or application/merge-patch+json" : "");
    if (conn->route->merge_patch)
        error_help(err, "send it with -H 'Content-Type: application/merge-patch+json'");
    return -1;
}

/* All that can be said before the body. */
static int admit(struct http_conn *conn, const char *method, const char *version, struct error *err)
{
    uint64_t length = 0;

    if (http_rate_take(conn, err) != 0 || (conn->listener->is_unix && http_auth(conn, err) != 0))
        return -1;
    if (http_headers_check(conn, version, &length, err) != 0) {
        conn->closing = true;
        return -1;
    }
    conn->has_body = conn->headers.n_transfer_encoding > 0 || length > 0;
    if (!conn->listener->is_unix && http_auth(conn, err) != 0)
        return -1;
    if (conn_server(conn)->draining)
        return error_set(err, ERR_DAEMON_SHUTTING_DOWN, "vmmd is stopping");
    if (http_router_find(conn, method, err) != 0)
        return -1;
    conn->req.head = strcmp(method, "HEAD") == 0;
    conn->req.content_length = conn->headers.n_content_length > 0 ? (int64_t)length : -1;
    if (length > HTTP_BODY_MAX && !conn->route->stream_body)
        return error_set(err, ERR_API_BODY_TOO_LARGE, "the body has %llu bytes; %d are taken",
                         (unsigned long long)length, HTTP_BODY_MAX);
    /* A chunked body without a type may yet turn out to be empty. */
    bool open = conn->headers.n_transfer_encoding > 0 && conn->headers.content_type == NULL;
    if (conn->has_body && wants_media_type(conn) && !open &&
        !http_media_type_ok(conn->route, conn->headers.content_type))
        return refuse_media_type(conn, err);
    return 0;
}

/* The headers are complete. */
static enum MHD_Result begin(struct http_conn *conn, const char *method, const char *version)
{
    struct error err = ERROR_INIT;

    enter(conn, CONN_BODY);
    conn_server(conn)->stats.requests++;
    http_headers_walk(conn);
    http_request_id(conn);
    /* Until proven otherwise: a refusal of the peer must not wait for a body. */
    conn->has_body = conn->headers.n_transfer_encoding > 0 || conn->headers.n_content_length > 0;
    conn->req.path = conn->target.path;
    if (admit(conn, method, version, &err) == 0 && conn->route->stream_body)
        return http_body_begin(conn);
    if (!error_is_set(&err)) {
        conn->deadline = conn->has_body ? after(conn, conn_server(conn)->config.body_timeout_ms) : 0;
        return MHD_YES;
    }
    conn_server(conn)->stats.refused++;
    conn->closing |= conn->has_body;
    conn->answer = http_make_problem(conn, &err, &conn->answer_status);
    error_done(&err);
    if (conn->answer == NULL)
        return MHD_NO;
    if (!conn->closing)
        return MHD_YES; /* queued at the next call: so the connection is kept */
    http_linger(conn_server(conn), conn->fd);
    return http_queue_answer(conn);
}

/* In the midst of a body only bytes of our own get out; then the connection is cut. */
static enum MHD_Result refuse_body(struct http_conn *conn)
{
    CLEANUP_BUF struct buf out = BUF_INIT(16384);
    CLEANUP_ERROR struct error err = ERROR_INIT;

    if (conn->body_seen > HTTP_BODY_MAX)
        error_set(&err, ERR_API_BODY_TOO_LARGE, "the body has more than %d bytes", HTTP_BODY_MAX);
    else
        error_set(&err, ERR_DAEMON_OVERLOADED, "no memory for the body");
    conn_server(conn)->stats.refused++;
    conn_server(conn)->stats.responses[error_info(err.code)->status / 100]++;
    if (http_raw_problem(conn->target.path, conn->request_id, &err, &out) == 0 &&
        send(conn->fd, out.data, out.len, MSG_DONTWAIT | MSG_NOSIGNAL) == (ssize_t)out.len)
        http_linger(conn_server(conn), conn->fd);
    conn->abort = true;
    return MHD_NO;
}

static enum MHD_Result take_body(struct http_conn *conn, const char *data, size_t *len)
{
    if (conn->body_events != NULL)
        return http_body_data(conn, data, len);
    conn->body_seen += *len;
    if (conn->body_seen > HTTP_BODY_MAX || (takes_body(conn) && buf_append(&conn->body, data, *len) != 0))
        return refuse_body(conn);
    *len = 0;
    return MHD_YES;
}

static enum MHD_Result body_whole(struct http_conn *conn)
{
    if (conn->answer != NULL)
        return http_queue_answer(conn);
    if (conn->body_events != NULL)
        return http_body_whole(conn);
    if (conn->body.len > 0 && conn->headers.content_type == NULL && wants_media_type(conn)) {
        struct error err = ERROR_INIT;

        refuse_media_type(conn, &err);
        conn_server(conn)->stats.refused++;
        enum MHD_Result rc = refuse_now(conn, &err);
        error_done(&err);
        return rc;
    }
    return dispatch(conn);
}

enum MHD_Result http_on_access(void *cls, struct MHD_Connection *mhd, const char *url, const char *method,
                               const char *version, const char *data, size_t *len, void **ctx)
{
    struct http_conn *conn = *ctx;

    (void)cls;
    (void)mhd;
    (void)url;
    if (conn == NULL || conn->abort)
        return MHD_NO;
    switch (conn->state) {
    case CONN_HEADERS:
        return begin(conn, method, version);
    case CONN_BODY:
        return *len > 0 ? take_body(conn, data, len) : body_whole(conn);
    case CONN_PARKED:
        if (conn->answer != NULL)
            return http_queue_answer(conn);
        http_suspend(conn);
        return MHD_YES;
    case CONN_IDLE:
    case CONN_REPLY:
    case CONN_UPGRADED:
    default:
        return MHD_NO;
    }
}

void *http_on_target(void *cls, const char *uri, struct MHD_Connection *mhd)
{
    const union MHD_ConnectionInfo *info = MHD_get_connection_info(mhd, MHD_CONNECTION_INFO_SOCKET_CONTEXT);
    struct http_conn *conn = info != NULL ? info->socket_context : NULL;

    (void)cls;
    if (conn == NULL)
        return NULL;
    conn->mhd = mhd;
    enter(conn, CONN_HEADERS);
    if (!conn->fresh)
        conn->deadline = after(conn, conn_server(conn)->config.header_timeout_ms);
    conn->fresh = false;
    http_target_parse(&conn->target, uri);
    return conn;
}

/* Readies the connection for its next request. */
static void reset(struct http_conn *conn)
{
    http_unwatch(conn);
    if (conn->answer != NULL)
        MHD_destroy_response(conn->answer);
    conn->answer = NULL;
    http_extra_clear(conn);
    conn->reply_busy = false;
    buf_done(&conn->body);
    if (conn->target.cap > TARGET_KEEP)
        http_target_done(&conn->target);
    conn->body_seen = 0;
    conn->body_events = NULL;
    conn->route = NULL;
    conn->has_body = false;
    conn->closing = false;
    conn->suspended = false;
    memset(conn->req.params, 0, sizeof(conn->req.params));
    enter(conn, CONN_IDLE);
}

void http_on_completed(void *cls, struct MHD_Connection *mhd, void **ctx, enum MHD_RequestTerminationCode code)
{
    struct http_conn *conn = *ctx;

    (void)cls;
    (void)mhd;
    (void)code;
    *ctx = NULL;
    if (conn == NULL)
        return;
    call_gone(conn);
    if (conn->stream != NULL)
        http_stream_completed(conn->stream);
    conn->stream = NULL;
    if (conn->ws != NULL)
        http_ws_completed(conn->ws);
    conn->ws = NULL;
    reset(conn);
    conn->deadline = after(conn, conn_server(conn)->config.idle_timeout_ms);
    if (conn_server(conn)->draining)
        shutdown(conn->fd, SHUT_RD); /* no next request; what was sent goes out */
}

static void connection_begins(struct http_listener *l, struct MHD_Connection *mhd, void **ctx)
{
    const union MHD_ConnectionInfo *info = MHD_get_connection_info(mhd, MHD_CONNECTION_INFO_CONNECTION_FD);
    struct http_server *server = l->server;
    struct http_conn *conn = mem_zalloc(sizeof(*conn));

    *ctx = conn;
    if (conn == NULL || info == NULL) {
        mem_free(conn);
        *ctx = NULL;
        if (info != NULL)
            shutdown(info->connect_fd, SHUT_RDWR);
        return;
    }
    conn->listener = l;
    conn->mhd = mhd;
    conn->fd = info->connect_fd;
    conn->fresh = true;
    conn->allowed = http_peer_allowed(l, conn->fd, &conn->req.peer);
    conn->req.request_id = conn->request_id;
    buf_init(&conn->body, HTTP_BODY_MAX);
    conn->deadline = after(conn, server->config.header_timeout_ms);
    conn->since = loop_now_ms(server->loop);
    conn->next = server->conns;
    if (conn->next != NULL)
        conn->next->prev = conn;
    server->conns = conn;
    server->stats.connections++;
}

static void connection_ends(struct http_server *server, struct http_conn *conn)
{
    if (conn->prev != NULL)
        conn->prev->next = conn->next;
    else
        server->conns = conn->next;
    if (conn->next != NULL)
        conn->next->prev = conn->prev;
    server->stats.connections -= !conn->evicted;
    unpark(conn);
    reset(conn);
    http_target_done(&conn->target);
    mem_free(conn->reply_mem);
    mem_free(conn);
    http_check_drained(server);
}

void http_on_connection(void *cls, struct MHD_Connection *mhd, void **ctx, enum MHD_ConnectionNotificationCode code)
{
    struct http_listener *l = cls;

    if (code == MHD_CONNECTION_NOTIFY_STARTED)
        connection_begins(l, mhd, ctx);
    else if (*ctx != NULL)
        connection_ends(l->server, *ctx);
}

void http_drain_conn(struct http_conn *conn)
{
    if (conn->ws != NULL) {
        http_ws_drain(conn->ws);
    } else if (conn->stream != NULL) {
        http_stream_drain(conn->stream);
    } else if (conn->state == CONN_IDLE) {
        shutdown(conn->fd, SHUT_RDWR);
    } else if (conn->body_events != NULL && conn->state == CONN_BODY) {
        call_gone(conn);
        http_cut(conn);
    } else if (conn->state == CONN_PARKED && conn->suspended && conn->gone != NULL) {
        struct error err = ERROR_INIT;

        call_gone(conn);
        if (conn->state != CONN_PARKED || conn->gone != NULL) /* it had an answer, or will have one soon */
            return;
        error_set(&err, ERR_DAEMON_SHUTTING_DOWN, "vmmd stopped while the request waited");
        http_reply_error(&conn->req, &err);
        error_done(&err);
    }
}

void http_free_conn_users(struct http_conn *conn)
{
    conn->abort = true;
    call_gone(conn);
    if (conn->ws != NULL)
        http_ws_abort(conn->ws);
    else
        http_resume(conn);
}
