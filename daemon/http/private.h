/* private.h - what the files of daemon/http share.  Nobody else includes it, but its tests.
 *
 * A connection, seen from here; one request at a time:
 *
 *            request line        headers checked        body whole           http_reply
 *   IDLE ──────────────► HEADERS ──────────────► BODY ────────────► PARKED ─────────────► REPLY ──► IDLE
 *     ▲                                            │ refused          │ http_stream_start  ▲         or closed
 *     └── connection begins                        └──────────────────┼────────────────────┘
 *                                                                     └ http_ws_accept: REPLY ──► UPGRADED
 * A route that takes its body as it comes has its handler called between HEADERS and BODY.
 * PARKED is also the state while the handler runs.  Runs on: the loop thread. */
#ifndef HTTP_PRIVATE_H
#define HTTP_PRIVATE_H

#include <microhttpd.h>
#include <netinet/in.h>
#include <sys/socket.h>

#include "base/buf.h"
#include "base/error.h"
#include "base/limit.h"
#include "http/http.h"
#include "loop/poller.h"
#include "loop/timer.h"

enum {
    HTTP_SEGMENTS_MAX = 8,
    HTTP_EXTRA_MAX = 8,
    HTTP_ID_MAX = 64,
    HTTP_ROUTES_MAX = 256,
    HTTP_STALL_MS = 60000, /* a reader that takes nothing for so long is dropped */
    HTTP_LINGERS_MAX = 64,
    HTTP_LINGERS_FEW = 4, /* while files are short */
    HTTP_BACKLOG = 4096,  /* the kernel takes less where somaxconn is less */
    HTTP_EXTRA_MEM = 192,
    HTTP_HOST_KEEP = 32,
    HTTP_REPLY_KEEP = 4096,
};

enum conn_state { CONN_IDLE, CONN_HEADERS, CONN_BODY, CONN_PARKED, CONN_REPLY, CONN_UPGRADED };

/* What one walk over the headers found; strings are libmicrohttpd's, as long as the request. */
struct http_headers {
    const char *host, *content_length, *transfer_encoding, *content_type, *origin, *authorization, *fetch_site, *id;
    unsigned n_host, n_content_length, n_transfer_encoding, n_authorization, n_content_type;
    int prefer_wait;
    bool bad_name, bad_value;
};

/* The request line's target, taken apart; all strings lie in mem. */
struct http_target {
    char *mem;
    size_t cap;
    const char *path; /* decoded */
    const char *segments[HTTP_SEGMENTS_MAX];
    unsigned n_segments; /* HTTP_SEGMENTS_MAX + 1: too many to match anything */
    const char *query;   /* name NUL value NUL …, n_query pairs */
    unsigned n_query;
    const char *bad; /* why it was refused, or NULL */
};

struct http_extra {
    char *name, *value;
};

struct http_listener;

struct http_conn {
    struct http_request req; /* what the handler sees; its address is the handle */
    struct http_listener *listener;
    struct MHD_Connection *mhd;
    struct http_conn *next, *prev; /* of the server */
    int fd;
    enum conn_state state;
    int64_t deadline; /* of what the client is to send now; 0: nothing is awaited from it */
    bool fresh;       /* no request yet: the deadline runs from the connection's begin */
    bool allowed;     /* the peer of a Unix socket may talk to us */
    bool suspended;
    int64_t since; /* when its state began; of a body taken as it comes: when the last of it came */
    bool parked;   /* counted in the server's parked */
    bool waits;    /* counted in the server's waits */
    bool evicted;  /* on its way out, and counted no more */
    bool in_handler;
    bool abort;   /* nothing more is sent: close at libmicrohttpd's next call */
    bool closing; /* tell the client that the connection ends with this answer */
    bool has_body;
    bool extra_failed;
    const struct http_route *route;
    struct http_target target;
    struct http_headers headers;
    struct buf body;
    size_t body_seen;
    const struct http_body_events *body_events; /* it is taken as it comes */
    void *body_arg;
    char request_id[HTTP_ID_MAX + 1];
    struct http_extra extra[HTTP_EXTRA_MAX];
    unsigned n_extra;
    char extra_mem[HTTP_EXTRA_MEM]; /* holds the short ones: most answers need no allocation for their headers */
    size_t extra_used;
    char *reply_mem; /* the body of a short answer; kept for the next one */
    size_t reply_cap;
    bool reply_busy;              /* an answer of this request uses it */
    char host_ok[HTTP_HOST_KEEP]; /* the Host last found good here; "": none */
    void (*gone)(void *arg, struct http_request *req);
    void *gone_arg;
    struct poller *watch; /* for the client's leaving while libmicrohttpd does not look */
    struct MHD_Response *answer;
    unsigned answer_status;
    struct http_stream *stream;
    struct http_ws *ws;
};

struct http_listener {
    struct http_server *server;
    struct MHD_Daemon *mhd;
    int fd;
    bool is_unix;
    bool wildcard; /* TCP: any address of the host */
    struct sockaddr_storage addr;
    gid_t gid;  /* Unix: the socket's group, (gid_t)-1: none */
    char *path; /* Unix: the file we made and unlink; NULL: not ours */
    dev_t dev;
    ino_t ino;
    struct poller *accepts;
    struct timer *again; /* accepts after a pause */
    struct poller *poller;
    struct timer *timer;
    struct loop_task task;
    struct http_listener *next;
};

struct http_rate;

/* A pattern cut at its slashes. */
struct http_pattern {
    const struct http_route *route;
    char *mem;
    const char *segments[HTTP_SEGMENTS_MAX]; /* NULL: a parameter */
    unsigned n_segments, n_params;
};

struct http_linger {
    struct http_server *server;
    struct poller *poller;
    int fd;
    int64_t deadline;
    size_t left;
    struct http_linger *next;
};

struct http_server {
    struct loop *loop;
    struct http_config config; /* its strings are not kept, but for token */
    char *token;
    const struct http_route *routes;
    void *arg;
    struct http_pattern *patterns;
    unsigned n_patterns;
    struct http_listener *listeners;
    struct http_conn *conns;
    struct http_linger *lingers;
    unsigned n_lingers;
    struct timer *sweep;
    struct timer *grace;
    struct http_stats stats;
    unsigned tcp_waits, tcp_streams;
    int spare_fd; /* given away to tell a client that there are no more */
    int64_t warned_at;
    struct http_rate *rate; /* NULL: no limit */
    unsigned char random[512];
    unsigned random_left;
    bool draining, freeing;
    void (*drained)(void *arg);
    void *drained_arg;
    struct loop_task drained_task;
};

static inline struct http_conn *conn_of(const struct http_request *req)
{
    return (struct http_conn *)(void *)(uintptr_t)req; /* req is its first member */
}

static inline struct http_server *conn_server(const struct http_conn *conn)
{
    return conn->listener->server;
}

/* server.c */
void http_kick(struct http_listener *l); /* MHD_run on a later turn: after every resume */
void http_check_drained(struct http_server *server);

/* listen.c */
int http_listen(struct http_server *server,
                struct error *err);                /* makes server->listeners, sockets bound, no daemon yet */
void http_listener_close(struct http_listener *l); /* closes the socket and unlinks its file if it is still ours */

/* accept.c: connections come in, or are refused. */
int http_accept_start(struct http_listener *l, struct error *err);
void http_accept_stop(struct http_listener *l);

/* limits.c */
/* A place among the waits or streams, until http_slot_drop; refused where there is none for this client. */
int http_slot_take(struct http_conn *conn, enum limit which, struct error *err);
void http_slot_drop(struct http_conn *conn, enum limit which);
struct http_rate *http_rate_new(unsigned per_s, unsigned burst); /* NULL: memory is short */
int http_rate_take(struct http_conn *conn, struct error *err);

/* auth.c */
bool http_peer_allowed(struct http_listener *l, int fd, struct http_peer *ret_peer);
/* Host, Origin and token of a request over TCP. */
int http_auth(struct http_conn *conn, struct error *err);

/* target.c */
void http_target_parse(struct http_target *t, const char *raw);
void http_target_done(struct http_target *t);

/* headers.c: the walk, and what is refused whatever the route. */
void http_headers_walk(struct http_conn *conn);
int http_headers_check(struct http_conn *conn, const char *version, uint64_t *ret_length, struct error *err);
bool http_media_type_ok(const struct http_route *route, const char *content_type);
void http_request_id(struct http_conn *conn);
void http_random_id(struct http_server *server, char out[HTTP_ID_MAX + 1]);

/* router.c */
int http_router_init(struct http_server *server, struct error *err);
void http_router_done(struct http_server *server);
/* Sets conn->route and the params; api::not_found or api::method_not_allowed (with its Allow header added). */
int http_router_find(struct http_conn *conn, const char *method, struct error *err);

/* request.c: libmicrohttpd's callbacks. */
void http_on_connection(void *cls, struct MHD_Connection *mhd, void **ctx, enum MHD_ConnectionNotificationCode code);
void *http_on_target(void *cls, const char *uri, struct MHD_Connection *mhd);
enum MHD_Result http_on_access(void *cls, struct MHD_Connection *mhd, const char *url, const char *method,
                               const char *version, const char *data, size_t *len, void **ctx);
void http_on_completed(void *cls, struct MHD_Connection *mhd, void **ctx, enum MHD_RequestTerminationCode code);
/* Gives the request its answer, now or by resuming it; takes the response over (NULL: the connection is cut). */
void http_answer(struct http_conn *conn, unsigned status, struct MHD_Response *response);
void http_suspend(struct http_conn *conn);
void http_resume(struct http_conn *conn);
bool http_watch(struct http_conn *conn); /* looks out for the client's leaving; false: no memory */
void http_unwatch(struct http_conn *conn);
void http_cut(struct http_conn *conn); /* the connection ends, whatever it is doing */
void http_drain_conn(struct http_conn *conn);
void http_free_conn_users(struct http_conn *conn); /* server_free: nobody may touch it after */

enum MHD_Result http_queue_answer(struct http_conn *conn);
enum MHD_Result http_park(struct http_conn *conn); /* suspends until http_answer */

/* body.c: a body that is taken as it comes; each returns what libmicrohttpd's callback returns. */
enum MHD_Result http_body_begin(struct http_conn *conn);
enum MHD_Result http_body_data(struct http_conn *conn, const char *data, size_t *len);
enum MHD_Result http_body_whole(struct http_conn *conn);

/* reply.c */
struct MHD_Response *http_make(struct http_conn *conn, const char *content_type, const void *body, size_t len);
void http_decorate(struct http_conn *conn, struct MHD_Response *response, const char *content_type);
struct MHD_Response *http_make_problem(struct http_conn *conn, const struct error *err, unsigned *ret_status);
/* The whole answer as bytes, for where libmicrohttpd takes none any more (in the midst of a body). */
int http_raw_problem(const char *path, const char *request_id, const struct error *err, struct buf *out);
void http_extra_clear(struct http_conn *conn);

/* linger.c: reads away what a refused client still sends, so that it can read the refusal. */
void http_linger(struct http_server *server, int fd);
/* The fd is its own now; of more than `most` the oldest make way. */
void http_linger_take(struct http_server *server, int fd, unsigned most);
void http_linger_sweep(struct http_server *server, int64_t now);
void http_linger_done(struct http_server *server);

/* stream.c */
void http_stream_left(struct http_stream *s);      /* the client left */
void http_stream_completed(struct http_stream *s); /* the connection is through with it */
void http_stream_sweep(struct http_stream *s, int64_t now);
void http_stream_drain(struct http_stream *s);

/* websocket.c */
void http_ws_completed(struct http_ws *ws);
void http_ws_sweep(struct http_ws *ws, int64_t now);
void http_ws_drain(struct http_ws *ws);
void http_ws_abort(struct http_ws *ws); /* server_free: lets go of the socket at once */

#endif
