/* reply.c - whole answers: the handler's bytes, or an error's problem document, with the headers each answer has.
 *
 * Where memory is short for an answer, a small static one goes out; where there is not even that, the connection is
 * cut: a client is never left waiting, and never told a lie. */
#include <stdio.h>
#include <string.h>

#include "base/mem.h"
#include "base/problem.h"
#include "http/private.h"

enum { PROBLEM_MAX = 64 * 1024 };

static const char no_memory_problem[] =
    "{\"type\":\"/v1/errors/vm_manager::daemon::overloaded\",\"title\":\"The daemon is at a limit\",\"status\":503,"
    "\"detail\":\"memory is short\",\"instance\":\"\",\"code\":\"vm_manager::daemon::overloaded\","
    "\"help\":\"try again in a moment; `vmctl host` shows the limits\",\"retryable\":true,\"request_id\":\"\","
    "\"context\":{},\"causes\":[]}";

static char *extra_keep(struct http_conn *conn, const char *s)
{
    size_t size = strlen(s) + 1;

    if (size > sizeof(conn->extra_mem) - conn->extra_used)
        return mem_strdup(s);
    char *copy = memcpy(conn->extra_mem + conn->extra_used, s, size);
    conn->extra_used += size;
    return copy;
}

static void extra_free(struct http_conn *conn, char *s)
{
    if (s < conn->extra_mem || s >= conn->extra_mem + sizeof(conn->extra_mem))
        mem_free(s);
}

void http_extra_clear(struct http_conn *conn)
{
    for (unsigned i = 0; i < conn->n_extra; i++) {
        extra_free(conn, conn->extra[i].name);
        extra_free(conn, conn->extra[i].value);
    }
    conn->n_extra = 0;
    conn->extra_used = 0;
    conn->extra_failed = false;
}

void http_add_header(struct http_request *req, const char *name, const char *value)
{
    struct http_conn *conn = conn_of(req);

    if (conn->abort)
        return;
    if (conn->n_extra == HTTP_EXTRA_MAX) {
        conn->extra_failed = true;
        return;
    }
    struct http_extra *e = &conn->extra[conn->n_extra];
    e->name = extra_keep(conn, name);
    e->value = extra_keep(conn, value);
    if (e->name == NULL || e->value == NULL) {
        extra_free(conn, e->name);
        extra_free(conn, e->value);
        conn->extra_failed = true;
        return;
    }
    conn->n_extra++;
}

void http_decorate(struct http_conn *conn, struct MHD_Response *response, const char *content_type)
{
    if (content_type != NULL)
        MHD_add_response_header(response, "Content-Type", content_type);
    MHD_add_response_header(response, "X-Request-Id", conn->request_id);
    for (unsigned i = 0; i < conn->n_extra; i++)
        MHD_add_response_header(response, conn->extra[i].name, conn->extra[i].value);
    if (conn->closing || conn_server(conn)->draining)
        MHD_add_response_header(response, "Connection", "close");
}

/* A short body is copied to the connection's own memory, which outlives the answer and serves the next one; NULL for a
 * long one, which libmicrohttpd copies.  An answer whose body lies there already is still on its way: that one stays.
 */
static const void *reply_keep(struct http_conn *conn, const void *body, size_t len)
{
    if (len == 0 || len > HTTP_REPLY_KEEP || conn->reply_busy)
        return NULL;
    if (conn->reply_cap < len) {
        size_t cap = (len + 511) / 512 * 512;
        mem_free(conn->reply_mem);
        conn->reply_mem = mem_alloc(cap);
        conn->reply_cap = conn->reply_mem != NULL ? cap : 0;
    }
    if (conn->reply_mem == NULL)
        return NULL;
    conn->reply_busy = true;
    return memcpy(conn->reply_mem, body, len);
}

struct MHD_Response *http_make(struct http_conn *conn, const char *content_type, const void *body, size_t len)
{
    const void *kept = reply_keep(conn, body, len);
    /* libmicrohttpd's parameter is not const for modes that are not these. */
    struct MHD_Response *r =
        MHD_create_response_from_buffer(len, (void *)(uintptr_t)(kept != NULL ? kept : body),
                                        kept != NULL ? MHD_RESPMEM_PERSISTENT : MHD_RESPMEM_MUST_COPY);

    if (r != NULL)
        http_decorate(conn, r, content_type);
    return r;
}

static int problem_status(const struct error *err)
{
    int status = error_info(err->code)->status;

    return status != 0 ? status : 500;
}

struct MHD_Response *http_make_problem(struct http_conn *conn, const struct error *err, unsigned *ret_status)
{
    CLEANUP_BUF struct buf doc = BUF_INIT(PROBLEM_MAX);
    int status = problem_status(err);
    const char *text = no_memory_problem;

    if (error_problem(err, conn->target.path, conn->request_id, &doc) == 0)
        text = doc.data;
    else
        status = 503;
    if (status == 503 || status == 429)
        http_add_header(&conn->req, "Retry-After", "1");
    if (status == 401)
        http_add_header(&conn->req, "WWW-Authenticate", "Bearer");
    *ret_status = (unsigned)status;
    return http_make(conn, "application/problem+json", text, strlen(text));
}

int http_raw_problem(const char *path, const char *request_id, const struct error *err, struct buf *out)
{
    CLEANUP_BUF struct buf doc = BUF_INIT(PROBLEM_MAX);
    const char *text = no_memory_problem;
    int status = problem_status(err);

    if (error_problem(err, path, request_id, &doc) == 0)
        text = doc.data;
    else
        status = 503;
    buf_printf(out,
               "HTTP/1.1 %d %s\r\nConnection: close\r\nContent-Type: application/problem+json\r\n%s"
               "X-Request-Id: %s\r\nContent-Length: %zu\r\n\r\n",
               status, MHD_get_reason_phrase_for((unsigned)status), status == 503 ? "Retry-After: 1\r\n" : "",
               request_id, strlen(text));
    return buf_str(out, text);
}

void http_reply(struct http_request *req, int status, const char *content_type, const void *body, size_t len)
{
    struct http_conn *conn = conn_of(req);

    if (conn->extra_failed) {
        struct error err = ERROR_INIT;

        error_set(&err, ERR_DAEMON_OVERLOADED, "no memory for the answer's headers");
        conn->extra_failed = false;
        http_reply_error(req, &err);
        error_done(&err);
        return;
    }
    http_answer(conn, (unsigned)status, conn->abort ? NULL : http_make(conn, content_type, body, len));
}

void http_reply_json(struct http_request *req, int status, const char *json)
{
    http_reply(req, status, "application/json", json, strlen(json));
}

void http_reply_error(struct http_request *req, const struct error *err)
{
    struct http_conn *conn = conn_of(req);
    unsigned status = 503;
    struct MHD_Response *r = conn->abort ? NULL : http_make_problem(conn, err, &status);

    http_answer(conn, status, r);
}
