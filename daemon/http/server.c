/* server.c - the server: libmicrohttpd's daemons driven by the loop, one per listener; start, sweep, drain, end.
 *
 * Connections are accepted by us (accept.c) and handed over.  Each daemon has one epoll fd, watched by one poller, and one timer for what it says it waits for; both call MHD_run
 * and ask again.  A resumed connection is not noticed by libmicrohttpd by itself: http_kick runs it on a later turn,
 * once for all that was resumed.  MHD_run is never called from within itself: handlers only ever kick.
 * libmicrohttpd's own timeout ends connections that stall; a client that drips is ended by the sweep's deadlines. */
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>

#include "base/fd.h"
#include "base/log.h"
#include "base/mem.h"
#include "http/private.h"

enum { CONNECTION_MEMORY = 32 * 1024, SWEEP_MS = 1000, SWEEP_MIN_MS = 20, LEAVING_MAX = 1024 };

void http_config_defaults(struct http_config *config)
{
    *config = (struct http_config){
        .socket_group = "vmmd",
        .max_connections = 1024,
        .max_waits = 512,
        .max_streams = 256,
        .rate_burst = 100,
        .header_timeout_ms = 10000,
        .body_timeout_ms = 30000,
        .idle_timeout_ms = 60000,
    };
}

static void listener_run(struct http_listener *l)
{
    MHD_UNSIGNED_LONG_LONG ms;

    MHD_run(l->mhd);
    if (MHD_get_timeout(l->mhd, &ms) != MHD_YES)
        timer_stop(l->timer);
    else if (ms == 0)
        http_kick(l);
    else if (!timer_active(l->timer))
        timer_start(l->timer, ms < SWEEP_MS ? (int64_t)ms + 1 : SWEEP_MS, 0); /* coarse: asks again then */
}

static void listener_ready(void *arg, int events)
{
    (void)events;
    listener_run(arg);
}

static void listener_timeout(void *arg)
{
    listener_run(arg);
}

static void listener_task(struct loop_task *task)
{
    listener_run(CONTAINER_OF(task, struct http_listener, task));
}

static void mhd_log(void *cls, const char *fmt, va_list ap) __attribute__((format(printf, 2, 0)));
static void mhd_log(void *cls, const char *fmt, va_list ap)
{
    char text[256];

    (void)cls;
    if (!log_enabled(LOG_LEVEL_DEBUG))
        return;
    vsnprintf(text, sizeof(text), fmt, ap);
    text[strcspn(text, "\n")] = '\0';
    LOG_DEBUG("libmicrohttpd", "text", text);
}

static int listener_start(struct http_listener *l, struct error *err)
{
    struct http_server *server = l->server;
    unsigned stall_s = HTTP_STALL_MS / 1000;
    unsigned idle_s = (unsigned)(server->config.idle_timeout_ms / 1000) + 2;

    l->task.run = listener_task;
    l->mhd = MHD_start_daemon(
        MHD_USE_EPOLL | MHD_USE_NO_LISTEN_SOCKET | MHD_ALLOW_SUSPEND_RESUME | MHD_ALLOW_UPGRADE | MHD_USE_ERROR_LOG, 0,
        NULL, NULL, http_on_access, l, MHD_OPTION_EXTERNAL_LOGGER, mhd_log, NULL, MHD_OPTION_NOTIFY_CONNECTION,
        http_on_connection, l, MHD_OPTION_URI_LOG_CALLBACK, http_on_target, l, MHD_OPTION_NOTIFY_COMPLETED,
        http_on_completed, l, MHD_OPTION_CONNECTION_LIMIT, server->config.max_connections + LEAVING_MAX,
        MHD_OPTION_CONNECTION_MEMORY_LIMIT, (size_t)CONNECTION_MEMORY, MHD_OPTION_CONNECTION_TIMEOUT,
        stall_s > idle_s ? stall_s : idle_s, MHD_OPTION_STRICT_FOR_CLIENT, 1, MHD_OPTION_END);
    if (l->mhd == NULL)
        return error_set(err, ERR_IO, "libmicrohttpd did not start");
    const union MHD_DaemonInfo *info = MHD_get_daemon_info(l->mhd, MHD_DAEMON_INFO_EPOLL_FD);
    if (info == NULL)
        return error_set(err, ERR_IO, "libmicrohttpd has no epoll");
    l->timer = timer_new(server->loop, listener_timeout, l);
    l->poller = poller_new(server->loop, info->epoll_fd, POLLER_READ, listener_ready, l, err);
    if (l->timer == NULL || l->poller == NULL)
        return error_set(err, ERR_HOST_INSUFFICIENT_MEMORY, "no memory for a listener");
    listener_run(l);
    return http_accept_start(l, err);
}

static void listener_quiesce(struct http_listener *l)
{
    if (l->fd < 0)
        return;
    http_accept_stop(l);
    http_listener_close(l);
}

static void listener_free(struct http_listener *l)
{
    listener_quiesce(l);
    http_accept_stop(l);
    poller_free(l->poller);
    timer_free(l->timer);
    if (l->mhd != NULL)
        MHD_stop_daemon(l->mhd);
    loop_revoke(l->server->loop, &l->task);
    mem_free(l);
}

static void sweep(void *arg)
{
    struct http_server *server = arg;
    int64_t now = loop_now_ms(server->loop);

    for (struct http_conn *conn = server->conns, *next; conn != NULL; conn = next) {
        next = conn->next;
        if (conn->ws != NULL)
            http_ws_sweep(conn->ws, now);
        else if (conn->stream != NULL)
            http_stream_sweep(conn->stream, now);
        else if (conn->deadline != 0 && now >= conn->deadline)
            shutdown(conn->fd, SHUT_RDWR); /* libmicrohttpd sees it and closes */
    }
    http_linger_sweep(server, now);
}

static int64_t sweep_interval(const struct http_config *c)
{
    int64_t least = c->header_timeout_ms < c->body_timeout_ms ? c->header_timeout_ms : c->body_timeout_ms;

    least = (c->idle_timeout_ms < least ? c->idle_timeout_ms : least) / 2;
    return least > SWEEP_MS ? SWEEP_MS : least < SWEEP_MIN_MS ? SWEEP_MIN_MS : least;
}

static void call_drained(struct loop_task *task)
{
    struct http_server *server = CONTAINER_OF(task, struct http_server, drained_task);
    void (*drained)(void *arg) = server->drained;

    timer_stop(server->grace);
    server->drained = NULL;
    if (drained != NULL)
        drained(server->drained_arg);
}

void http_check_drained(struct http_server *server)
{
    if (server->drained != NULL && server->conns == NULL && !server->freeing)
        loop_defer(server->loop, &server->drained_task);
}

static void grace_over(void *arg)
{
    struct http_server *server = arg;

    loop_defer(server->loop, &server->drained_task);
}

static int server_start(struct http_server *server, struct error *err)
{
    int64_t ms = sweep_interval(&server->config);

    server->sweep = timer_new(server->loop, sweep, server);
    server->grace = timer_new(server->loop, grace_over, server);
    if (server->sweep == NULL || server->grace == NULL)
        return error_set(err, ERR_HOST_INSUFFICIENT_MEMORY, "no memory for the HTTP server");
    if (server->config.rate_limit > 0 &&
        (server->rate = http_rate_new(server->config.rate_limit, server->config.rate_burst)) == NULL)
        return error_set(err, ERR_HOST_INSUFFICIENT_MEMORY, "no memory for the table of peers");
    if (http_router_init(server, err) != 0 || http_listen(server, err) != 0)
        return -1;
    for (struct http_listener *l = server->listeners; l != NULL; l = l->next)
        if (listener_start(l, err) != 0)
            return -1;
    timer_start(server->sweep, ms, ms);
    return 0;
}

struct http_server *http_server_new(struct loop *loop, const struct http_config *config,
                                    const struct http_route *routes, void *arg, struct error *err)
{
    struct http_server *server = mem_zalloc(sizeof(*server));

    if (server == NULL || (config->token != NULL && (server->token = mem_strdup(config->token)) == NULL)) {
        mem_free(server);
        error_set(err, ERR_HOST_INSUFFICIENT_MEMORY, "no memory for the HTTP server");
        return NULL;
    }
    server->loop = loop;
    server->config = *config;
    server->routes = routes;
    server->arg = arg;
    server->drained_task.run = call_drained;
    server->spare_fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
    if (server_start(server, err) != 0) {
        http_server_free(server);
        return NULL;
    }
    server->config.socket_path = server->config.socket_group = server->config.token = NULL;
    server->config.listen = NULL;
    return server;
}

void http_server_drain(struct http_server *server, int64_t grace_ms, void (*done)(void *arg), void *arg)
{
    if (server->draining)
        return;
    server->draining = true;
    server->drained = done;
    server->drained_arg = arg;
    for (struct http_listener *l = server->listeners; l != NULL; l = l->next)
        listener_quiesce(l);
    for (struct http_conn *conn = server->conns, *next; conn != NULL; conn = next) {
        next = conn->next;
        http_drain_conn(conn);
    }
    timer_start(server->grace, grace_ms, 0);
    http_check_drained(server);
}

int http_server_set_token(struct http_server *server, const char *token)
{
    char *copy = mem_strdup(token);

    if (copy == NULL)
        return -1;
    mem_free(server->token);
    server->token = copy;
    return 0;
}

void http_server_free(struct http_server *server)
{
    if (server == NULL)
        return;
    server->freeing = true;
    for (struct http_conn *conn = server->conns, *next; conn != NULL; conn = next) {
        next = conn->next;
        http_free_conn_users(conn);
    }
    for (struct http_listener *l = server->listeners, *next; l != NULL; l = next) {
        next = l->next;
        listener_free(l);
    }
    http_linger_done(server);
    loop_revoke(server->loop, &server->drained_task);
    timer_free(server->sweep);
    timer_free(server->grace);
    http_router_done(server);
    fd_close(server->spare_fd);
    mem_free(server->rate);
    mem_free(server->token);
    mem_free(server);
}

void http_server_stats(const struct http_server *server, struct http_stats *ret)
{
    *ret = server->stats;
}
