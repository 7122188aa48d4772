/* body.c - a body that is taken as it comes, of any length.
 *
 * Happy path: the handler is called when the headers are complete; each piece goes to it; what it does not take yet suspends the
 * connection, so that the client is held back by its socket; at the end the request is parked, and answered as any other.
 * Failure modes: the handler answers at once: the body is not read; it answers in the midst: the answer goes out by hand and the
 * connection ends; the client leaves, or sends nothing for a while: `gone`. */
#include <sys/socket.h>

#include "http/private.h"

enum { SILENCE_MS = 60000, REFUSED_MS = 1000 };

/* Its bytes come: it is as if its state had begun just now. */
static void await_client(struct http_conn *conn)
{
    conn->since = loop_now_ms(conn_server(conn)->loop);
    conn->deadline = conn->since + SILENCE_MS;
}

enum MHD_Result http_body_begin(struct http_conn *conn)
{
    struct http_server *server = conn_server(conn);

    conn->state = CONN_PARKED;
    conn->deadline = 0;
    conn->req.body = "";
    conn->req.body_len = 0;
    conn->in_handler = true;
    conn->route->handler(&conn->req, server->arg);
    conn->in_handler = false;
    if (conn->abort)
        return MHD_NO;
    if (conn->answer != NULL) { /* refused: the body is not wanted */
        conn->closing = conn->has_body;
        if (conn->has_body)
            http_linger(server, conn->fd);
        return http_queue_answer(conn);
    }
    if (conn->body_events == NULL)
        return MHD_NO;
    conn->state = CONN_BODY;
    await_client(conn);
    return MHD_YES;
}

void http_body_take(struct http_request *req, const struct http_body_events *events, void *arg)
{
    struct http_conn *conn = conn_of(req);

    conn->body_events = events;
    conn->body_arg = arg;
}

enum MHD_Result http_body_data(struct http_conn *conn, const char *data, size_t *len)
{
    size_t taken = conn->body_events->data(conn->body_arg, data, *len);

    if (conn->abort)
        return MHD_NO;
    conn->body_seen += taken;
    *len -= taken;
    if (*len == 0) {
        await_client(conn);
        return MHD_YES;
    }
    conn->deadline = 0; /* it is not the client that is waited for */
    http_suspend(conn);
    if (conn->gone != NULL)
        http_watch(conn);
    return MHD_YES;
}

void http_body_more(struct http_request *req)
{
    struct http_conn *conn = conn_of(req);

    if (!conn->suspended || conn->state != CONN_BODY)
        return;
    http_unwatch(conn);
    await_client(conn);
    http_resume(conn);
}

enum MHD_Result http_body_whole(struct http_conn *conn)
{
    const struct http_body_events *events = conn->body_events;

    conn->deadline = 0;
    conn->body_events = NULL;
    conn->state = CONN_PARKED;
    conn->in_handler = true;
    events->whole(conn->body_arg);
    conn->in_handler = false;
    if (conn->abort)
        return MHD_NO;
    return conn->answer != NULL ? http_queue_answer(conn) : http_park(conn);
}

void http_body_refuse(struct http_request *req, const struct error *err)
{
    struct http_conn *conn = conn_of(req);
    CLEANUP_BUF struct buf out = BUF_INIT(16384);

    conn->gone = NULL;
    conn->body_events = NULL;
    http_unwatch(conn);
    conn_server(conn)->stats.responses[error_info(err->code)->status / 100]++;
    if (http_raw_problem(conn->target.path, conn->request_id, err, &out) == 0 &&
        send(conn->fd, out.data, out.len, MSG_DONTWAIT | MSG_NOSIGNAL) == (ssize_t)out.len)
        http_linger(conn_server(conn), conn->fd);
    conn->abort = true;
    conn->deadline = loop_now_ms(conn_server(conn)->loop) + REFUSED_MS; /* where the client sends no more */
    http_resume(conn);
}
