/* accept.c - connections come in, or are refused.
 *
 * Happy path: accepted by us, within the limits handed to libmicrohttpd.  Near a limit (connections, open files) the new one takes
 * the place of one that does nothing: idle longest, else the slowest with its headers or body, else one that does not read its
 * answer.  A long body (body.c) is slow only when its bytes have stopped: one that goes on is the last to go, for the Unix socket alone.
 * Where there is none, it is answered 503 at once and closed.
 * The network has seven eighths of the connections and stops first when files get short; for the Unix socket a dripping client of
 * the network is ended rather than a request refused.  Without any file left, the one kept aside tells a client so, and
 * accepting pauses: there is no spinning. */
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <string.h>
#include <unistd.h>

#include "base/fd.h"
#include "base/log.h"
#include "base/mem.h"
#include "http/private.h"

enum { BATCH = 32, PAUSE_MS = 100, MOMENT_MS = 1000, STUCK_MS = 2000, WARN_MS = 10000 };

/* --- who may be ended for a new one --- */

/* The lower the sooner; -1: stays. */
static int rank(const struct http_conn *c, bool for_unix, int64_t now)
{
    bool of_unix = c->listener->is_unix;

    if (c->evicted || c->stream != NULL || c->ws != NULL || (c->body_events != NULL && c->suspended))
        return -1;
    if (c->state == CONN_IDLE && !c->fresh)
        return 0;
    if (c->body_events != NULL && now - c->since < STUCK_MS)
        return for_unix && !of_unix ? 4 : -1;
    if (!for_unix && (of_unix || now - c->since < MOMENT_MS))
        return -1;
    if (c->state == CONN_IDLE || c->state == CONN_HEADERS || c->state == CONN_BODY)
        return of_unix ? 2 : 1;
    return c->state == CONN_REPLY && now - c->since >= STUCK_MS ? 3 : -1;
}

static bool evict_for(struct http_server *server, bool for_unix)
{
    int64_t now = loop_now_ms(server->loop);
    struct http_conn *victim = NULL;
    int lowest = 0;

    for (struct http_conn *c = server->conns; c != NULL; c = c->next) {
        int r = rank(c, for_unix, now);
        if (r >= 0 && (victim == NULL || r < lowest || (r == lowest && c->since <= victim->since))) {
            victim = c;
            lowest = r;
        }
    }
    if (victim == NULL)
        return false;
    victim->evicted = true;
    victim->deadline = 0;
    server->stats.connections--;
    shutdown(victim->fd, SHUT_RDWR); /* libmicrohttpd sees it and closes */
    return true;
}

/* --- refusal --- */

static void warn(struct http_server *server, const struct error *err)
{
    int64_t now = loop_now_ms(server->loop);

    if (server->warned_at != 0 && now - server->warned_at < WARN_MS)
        return;
    server->warned_at = now;
    LOG_WARN("connections are refused", "why", err->message);
}

/* What has come is read away first, else closing resets the connection before the answer is read. */
static void refuse(struct http_server *server, int fd, const struct error *err, unsigned lingers)
{
    CLEANUP_BUF struct buf out = BUF_INIT(16384);
    char id[HTTP_ID_MAX + 1], junk[16384];

    server->stats.refused++;
    server->stats.responses[5]++;
    warn(server, err);
    http_random_id(server, id);
    (void)!recv(fd, junk, sizeof(junk), MSG_DONTWAIT);
    if (http_raw_problem("", id, err, &out) == 0)
        (void)!send(fd, out.data, out.len, MSG_DONTWAIT | MSG_NOSIGNAL);
    shutdown(fd, SHUT_WR);
    http_linger_take(server, fd, lingers);
}

static int no_files(struct error *err)
{
    return limit_refuse(LIMIT_OPEN_FILES, limit_files_max(), err, "vmmd has %u files open and keeps the rest aside",
                        limit_files_used());
}

static int admit(struct http_listener *l, struct error *err)
{
    struct http_server *server = l->server;
    unsigned max = server->config.max_connections, most = l->is_unix ? max : limit_share(max);

    if (server->stats.connections >= most && !evict_for(server, l->is_unix))
        return limit_refuse(LIMIT_CONNECTIONS, max, err, "%u connections are open", server->stats.connections);
    enum limit_files_for who = l->is_unix ? FILES_FOR_SOCKET : FILES_FOR_NETWORK;
    if (limit_files_room(who, 1) || evict_for(server, l->is_unix))
        return 0;
    limit_files_recount(); /* those of a crowd that has just left are closed by now */
    return limit_files_room(who, 1) ? 0 : no_files(err);
}

/* --- accepting --- */

static void rest_a_while(struct http_listener *l)
{
    poller_set(l->accepts, 0);
    timer_start(l->again, PAUSE_MS, 0);
}

static void go_on(void *arg)
{
    struct http_listener *l = arg;

    poller_set(l->accepts, POLLER_READ);
}

/* The kernel has no file for us. */
static void out_of_files(struct http_listener *l)
{
    struct http_server *server = l->server;
    CLEANUP_ERROR struct error err = ERROR_INIT;

    if (l->is_unix && evict_for(server, true)) { /* its file comes soon */
        rest_a_while(l);
        return;
    }
    server->spare_fd = fd_close(server->spare_fd);
    int fd = accept4(l->fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
    if (fd >= 0) {
        no_files(&err);
        refuse(server, fd, &err, 0);
    }
    server->spare_fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
    rest_a_while(l);
}

static void take(struct http_listener *l, int fd, const struct sockaddr_storage *addr, socklen_t len)
{
    CLEANUP_ERROR struct error err = ERROR_INIT;
    int dead_ms = HTTP_STALL_MS;

    if (admit(l, &err) < 0) {
        refuse(l->server, fd, &err, limit_files_room(FILES_FOR_NETWORK, 1) ? HTTP_LINGERS_MAX : HTTP_LINGERS_FEW);
        return;
    }
    if (!l->is_unix) /* a peer that vanished is found out by what is written to it */
        setsockopt(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, &dead_ms, sizeof(dead_ms));
    limit_files_opened();
    MHD_add_connection(l->mhd, fd, (const struct sockaddr *)addr, len); /* closes it where it fails */
}

static void acceptable(void *arg, int events)
{
    struct http_listener *l = arg;

    (void)events;
    for (int i = 0; i < BATCH && l->fd >= 0; i++) {
        struct sockaddr_storage addr = {0};
        socklen_t len = sizeof(addr);
        int fd = accept4(l->fd, (struct sockaddr *)&addr, &len, SOCK_CLOEXEC | SOCK_NONBLOCK);

        if (fd >= 0) {
            take(l, fd, &addr, len);
            continue;
        }
        if (errno == EMFILE || errno == ENFILE || errno == ENOMEM || errno == ENOBUFS)
            out_of_files(l);
        else if (errno == EINTR || errno == ECONNABORTED)
            continue;
        else if (errno != EAGAIN)
            rest_a_while(l);
        return;
    }
}

int http_accept_start(struct http_listener *l, struct error *err)
{
    l->again = timer_new(l->server->loop, go_on, l);
    l->accepts = poller_new(l->server->loop, l->fd, POLLER_READ, acceptable, l, err);
    return l->again != NULL && l->accepts != NULL
               ? 0
               : error_set(err, ERR_HOST_INSUFFICIENT_MEMORY, "no memory for a listener");
}

void http_accept_stop(struct http_listener *l)
{
    poller_free(l->accepts);
    timer_free(l->again);
    l->accepts = NULL;
    l->again = NULL;
}
