/* http.h - HTTP/1.1 on the loop: listeners, routes, requests and the three kinds of answers (whole, stream, WebSocket).
 *
 * daemon/http is the only user of microhttpd.h.  A request reaches its handler whole (headers checked, body read within
 * its bound, peer admitted).  The handler answers exactly once by http_reply*, http_stream_start or http_ws_accept, at
 * once or later; until it does, the request is parked.  When the client leaves a parked request, `gone` is called and
 * the request must not be touched again.
 * Runs on: the loop thread. */
#ifndef HTTP_HTTP_H
#define HTTP_HTTP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "base/error.h"
#include "loop/loop.h"

enum http_method {
    HTTP_GET = 1,
    HTTP_POST = 2,
    HTTP_PUT = 4,
    HTTP_PATCH = 8,
    HTTP_DELETE = 16
}; /* HEAD comes as GET */

enum { HTTP_PARAMS_MAX = 3, HTTP_BODY_MAX = 1048576 };

struct http_peer {
    bool is_unix;
    uid_t uid;
    gid_t gid;
    pid_t pid;
};

/* Read-only for handlers; strings live as long as the request. */
struct http_request {
    enum http_method method;
    bool head;                           /* the answer's body is not sent */
    const char *path;                    /* as sent, without the query; percent-decoded */
    const char *params[HTTP_PARAMS_MAX]; /* what {…} of the route's pattern matched, in order */
    const char *body;                    /* NUL-terminated, "" without one */
    size_t body_len;
    int64_t content_length; /* announced; -1: not */
    const char *request_id;
    struct http_peer peer;
};

typedef void http_handler(struct http_request *req, void *arg);

struct http_route {
    enum http_method method;
    const char *pattern; /* "/v1/vms/{vm}/start" */
    http_handler *handler;
    bool merge_patch; /* application/merge-patch+json is accepted too */
    bool no_body;     /* GET-like: a body is ignored */
    bool stream_body; /* the handler is called before the body, which may be of any type and length: http_body_take */
};

struct http_config {
    const char *socket_path;   /* Unix socket; NULL: none */
    const char *socket_group;  /* its group, "vmmd"; where it does not exist the socket is the owner's alone */
    const char *const *listen; /* "127.0.0.1:8080", "[::1]:8080"; NULL-terminated or NULL */
    const char *token;         /* for TCP; NULL: none */
    bool no_auth;              /* TCP on loopback without a token */
    unsigned max_connections;  /* in all; an eighth of them is for the Unix socket alone */
    unsigned max_waits;        /* Prefer: wait, and http_wait_take; an eighth likewise */
    unsigned max_streams;      /* SSE, follow, WebSocket; likewise.  With the waits at most 7/8 of max_connections */
    unsigned rate_limit;       /* requests a second of one peer; 0: any */
    unsigned rate_burst;       /* at once, after a silence */
    int64_t header_timeout_ms; /* from the first byte of a connection to complete headers */
    int64_t body_timeout_ms;   /* for a whole body */
    int64_t idle_timeout_ms;   /* between requests */
};
void http_config_defaults(struct http_config *config);

struct http_server;

/* Binds and serves; sockets passed by systemd (LISTEN_FDS, LISTEN_PID) are used in place of socket_path when they are there.
 * `routes` ends with a zeroed row and outlives the server; `arg` goes to each handler.
 * Fails: ERR_IO (address in use: says by whom where it can be told), ERR_API_UNAUTHORIZED-free ERR_API_FORBIDDEN when TCP is asked without token and
 * without no_auth on loopback.  Not to be freed from within a handler. */
struct http_server *http_server_new(struct loop *loop, const struct http_config *config,
                                    const struct http_route *routes, void *arg, struct error *err);
/* No new connections; parked requests are answered 503 daemon::shutting_down, streams ended, answers in flight go out.
 * `done` comes when all connections are gone, after grace_ms at the latest. */
void http_server_drain(struct http_server *server, int64_t grace_ms, void (*done)(void *arg), void *arg);
void http_server_free(struct http_server *server); /* also unlinks the Unix socket it made */

/* Replaces the token of TCP requests from now on; -1 when memory is short and the old one stays. */
int http_server_set_token(struct http_server *server, const char *token);

struct http_stats {
    uint64_t requests;
    uint64_t responses[6]; /* by status / 100 */
    uint64_t refused;      /* malformed, unauthorised, over a limit */
    unsigned connections, parked, waits, streams;
};
void http_server_stats(const struct http_server *server, struct http_stats *ret);

/* The request.  NULL: not there.  Query values are percent-decoded and valid UTF-8 without NUL (else 400 before the
 * handler). */
const char *http_header(const struct http_request *req, const char *name);
const char *http_query(const struct http_request *req, const char *name); /* its first value; "" for ?name */
void http_query_each(const struct http_request *req, bool (*fn)(void *arg, const char *name, const char *value),
                     void *arg);
/* N of `Prefer: wait=N`, capped at 600; 0 without one, or where no more may wait: then a change answers 202 at once. */
int http_prefer_wait(const struct http_request *req);
/* Before a GET that waits for something that may take long: a place among max_waits until the answer.
 * ERR_DAEMON_OVERLOADED. */
int http_wait_take(struct http_request *req, struct error *err);
/* Called once if the client leaves before the answer, or the wait ends otherwise (drain, server freed);
 * the request must not be touched afterwards.  fn NULL revokes: then the request stays valid until it is answered, even
 * when its client has left, and a drain waits for it. */
void http_on_gone(struct http_request *req, void (*fn)(void *arg, struct http_request *req), void *arg);
/* Whether `gone` was called because the daemon stops: it may answer then, or stay by http_on_gone until it can; the drain waits
 * for it. */
bool http_stopping(const struct http_request *req);

struct http_body_events {
    /* A piece of the body; returns how much of it was taken.  Less than all: no more comes before http_body_more. */
    size_t (*data)(void *arg, const void *data, size_t len);
    void (*whole)(void *arg); /* once, unless `gone` comes first; then the request is as any other */
};
/* For the handler of a route with stream_body, from within it, in place of an answer: the body comes piece by piece, as fast as it
 * is taken.  http_on_gone tells of a client that leaves in between. */
void http_body_take(struct http_request *req, const struct http_body_events *events, void *arg);
void http_body_more(struct http_request *req);
/* Answers in the midst of the body, and ends the connection; the request is dead afterwards. */
void http_body_refuse(struct http_request *req, const struct error *err);

/* Answers.  Headers first; `body` is copied. */
void http_add_header(struct http_request *req, const char *name, const char *value);
void http_reply(struct http_request *req, int status, const char *content_type, const void *body, size_t len);
void http_reply_json(struct http_request *req, int status, const char *json); /* application/json */
/* The problem document of err, with the request's path as instance; adds Retry-After: 1 to a 503 and 429. */
void http_reply_error(struct http_request *req, const struct error *err);

struct http_stream;
struct http_stream_events {
    void (*drained)(void *arg); /* all written bytes left; may be NULL */
    void (*gone)(
        void *
            arg); /* the client left, or was too slow and was dropped; the stream is dead.  Once, not after http_stream_end */
};
/* A streamed answer (chunked), for SSE and logs.  The request is dead afterwards.  NULL: over the limit of streams; then
 * the request has been answered 503 daemon::overloaded. */
struct http_stream *http_stream_start(struct http_request *req, int status, const char *content_type,
                                      size_t max_pending, const struct http_stream_events *events, void *arg);
/* -1: it would pass max_pending; the client is dropped then (`gone` follows on a later turn). */
int http_stream_write(struct http_stream *s, const void *data, size_t len);
size_t http_stream_pending(const struct http_stream *s);
void http_stream_end(struct http_stream *s); /* sends the rest, then ends */
/* Breaks off: the client sees an answer without its end. */
void http_stream_break(struct http_stream *s);

struct http_ws;
struct http_ws_events {
    void (*message)(void *arg, bool binary, const void *data, size_t len);
    void (*drained)(void *arg); /* may be NULL */
    void (*closed)(void *arg);  /* once; the ws is dead.  Not after http_ws_close */
};
/* Upgrades (RFC 6455); a request that is no WebSocket handshake has been answered 400 and NULL is returned.  The request
 * is dead afterwards. */
struct http_ws *http_ws_accept(struct http_request *req, size_t max_pending, const struct http_ws_events *events,
                               void *arg);
/* One binary message. -1: it would pass max_pending; nothing was sent. */
int http_ws_send(struct http_ws *ws, const void *data, size_t len);
size_t http_ws_pending(const struct http_ws *ws);
void http_ws_pause(struct http_ws *ws, bool paused); /* back-pressure towards the client */
/* Sends a close frame (1000, 1001, 1008, 1011 ...) and lets go. */
void http_ws_close(struct http_ws *ws, int code, const char *reason);

#endif
