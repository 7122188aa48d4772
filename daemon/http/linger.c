/* linger.c - lingering close.
 *
 * A refusal goes out before the client has sent its whole body.  Closing a socket with unread bytes resets it, and the
 * client's write fails before it reads why.  So a duplicate of the socket stays open for a moment and what still comes
 * is read and thrown away: bounded in time and bytes, and in number, where the oldest makes way. */
#include <errno.h>
#include <fcntl.h>
#include <unistd.h>

#include "base/fd.h"
#include "base/limit.h"
#include "base/mem.h"
#include "http/private.h"

enum { LINGER_MS = 2000, LINGER_BYTES = 64 * 1024 * 1024 };

static void linger_free(struct http_linger *g)
{
    struct http_linger **at = &g->server->lingers;

    while (*at != g)
        at = &(*at)->next;
    *at = g->next;
    g->server->n_lingers--;
    poller_free(g->poller);
    fd_close(g->fd);
    mem_free(g);
}

static void linger_readable(void *arg, int events)
{
    struct http_linger *g = arg;
    char junk[16384];

    (void)events;
    for (int turn = 0; turn < 8; turn++) {
        ssize_t n = recv(g->fd, junk, sizeof(junk), MSG_DONTWAIT);

        if (n < 0 && (errno == EAGAIN || errno == EINTR))
            return;
        if (n <= 0 || (size_t)n >= g->left) {
            linger_free(g);
            return;
        }
        g->left -= (size_t)n;
    }
}

void http_linger_take(struct http_server *server, int fd, unsigned most)
{
    struct http_linger *g;

    if (fd < 0)
        return;
    while (server->n_lingers >= most && server->lingers != NULL) {
        for (g = server->lingers; g->next != NULL; g = g->next) {
        }
        linger_free(g);
    }
    if (most == 0 || server->freeing || (g = mem_zalloc(sizeof(*g))) == NULL) {
        fd_close(fd);
        return;
    }
    g->server = server;
    g->left = LINGER_BYTES;
    g->deadline = loop_now_ms(server->loop) + LINGER_MS;
    g->fd = fd;
    g->next = server->lingers;
    server->lingers = g;
    server->n_lingers++;
    if ((g->poller = poller_new(server->loop, g->fd, POLLER_READ, linger_readable, g, NULL)) == NULL)
        linger_free(g);
}

void http_linger(struct http_server *server, int fd)
{
    bool room = limit_files_room(FILES_FOR_SOCKET, 1);

    http_linger_take(server, fcntl(fd, F_DUPFD_CLOEXEC, 3), room ? HTTP_LINGERS_MAX : HTTP_LINGERS_FEW);
}

void http_linger_sweep(struct http_server *server, int64_t now)
{
    for (struct http_linger *g = server->lingers, *next; g != NULL; g = next) {
        next = g->next;
        if (now >= g->deadline)
            linger_free(g);
    }
}

void http_linger_done(struct http_server *server)
{
    while (server->lingers != NULL)
        linger_free(server->lingers);
}
