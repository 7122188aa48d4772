/* post_load.c - creates VMs, or has a verb done to them, over many connections at once, and says how long it took.
 *
 *   post_load PORT CONNECTIONS COUNT PREFIX HEADER [SPEC | /VERB]
 *
 * Each connection sends POST /v1/vms (PREFIX-000000, PREFIX-000001, ...; HEADER beside the usual ones;
 * SPEC is the JSON of the spec, {} without it) and its next one when
 * the answer has come whole.  Prints "COUNT SECONDS"; an answer that is not 2xx or a lost connection ends it with 1. */
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/clock.h"

enum { CONNECTIONS_MAX = 256, ANSWER_MAX = 32768, REQUEST_MAX = 512, DEADLINE_S = 60 };

struct conn {
    int fd;
    char in[ANSWER_MAX];
    size_t have;
};

struct load {
    int epoll;
    const char *port, *prefix, *header, *spec;
    unsigned count, sent, done;
};

static void die(const char *what, const char *why)
{
    fprintf(stderr, "post_load: %s: %s\n", what, why);
    exit(1);
}

static void send_next(struct load *l, struct conn *c)
{
    char body[160] = "", path[80] = "/v1/vms", request[REQUEST_MAX];
    int body_len = 0;

    if (l->spec[0] == '/')
        snprintf(path, sizeof(path), "/v1/vms/%.40s-%06u%.20s", l->prefix, l->sent++, l->spec);
    else
        body_len = snprintf(body, sizeof(body), "{\"name\":\"%.40s-%06u\",\"backend\":\"noop\",\"spec\":%.60s}",
                            l->prefix, l->sent++, l->spec);
    int len = snprintf(request, sizeof(request),
                       "POST %s HTTP/1.1\r\nHost: 127.0.0.1:%s\r\nContent-Type: application/json\r\n%.100s\r\n"
                       "Content-Length: %d\r\n\r\n%s",
                       path, l->port, l->header, body_len, body);
    if (send(c->fd, request, (size_t)len, MSG_NOSIGNAL) != len)
        die("send", strerror(errno));
}

static void connect_one(struct load *l, struct conn *c)
{
    struct sockaddr_in addr = {.sin_family = AF_INET,
                               .sin_addr.s_addr = htonl(INADDR_LOOPBACK),
                               .sin_port = htons((uint16_t)strtoul(l->port, NULL, 10))};
    struct epoll_event ev = {.events = EPOLLIN, .data.ptr = c};
    int one = 1;

    c->fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (c->fd < 0 || connect(c->fd, (struct sockaddr *)&addr, sizeof(addr)) != 0)
        die("connect", strerror(errno));
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
    if (epoll_ctl(l->epoll, EPOLL_CTL_ADD, c->fd, &ev) != 0)
        die("epoll", strerror(errno));
}

/* Whether the answer is whole; one request is under way on a connection, so nothing comes after it. */
static bool whole(const struct conn *c)
{
    const char *end = strstr(c->in, "\r\n\r\n"), *length = strcasestr(c->in, "\r\nContent-Length:");

    if (end == NULL)
        return false;
    if (strncmp(c->in, "HTTP/1.1 2", 10) != 0)
        die("answer", c->in);
    if (length == NULL || length > end)
        die("answer", "it has no Content-Length");
    return c->have >= (size_t)(end + 4 - c->in) + strtoul(length + 17, NULL, 10);
}

static void receive(struct load *l, struct conn *c)
{
    ssize_t n = recv(c->fd, c->in + c->have, sizeof(c->in) - 1 - c->have, MSG_DONTWAIT);

    if (n < 0 && (errno == EAGAIN || errno == EINTR))
        return;
    if (n <= 0)
        die("receive", n == 0 ? "the connection ended or the answer is too long" : strerror(errno));
    c->have += (size_t)n;
    c->in[c->have] = '\0';
    if (!whole(c))
        return;
    c->have = 0;
    l->done++;
    if (l->sent < l->count)
        send_next(l, c);
}

int main(int argc, char **argv)
{
    static struct conn conns[CONNECTIONS_MAX];
    struct epoll_event events[CONNECTIONS_MAX];

    if (argc != 6 && argc != 7)
        die("usage", "post_load PORT CONNECTIONS COUNT PREFIX HEADER [SPEC]");
    struct load l = {.epoll = epoll_create1(EPOLL_CLOEXEC),
                     .port = argv[1],
                     .prefix = argv[4],
                     .header = argv[5],
                     .spec = argc > 6 ? argv[6] : "{}",
                     .count = (unsigned)strtoul(argv[3], NULL, 10)};
    unsigned n_conns = (unsigned)strtoul(argv[2], NULL, 10);
    if (n_conns < 1 || n_conns > CONNECTIONS_MAX || l.count < n_conns)
        die("usage", "1 to 256 connections, and no fewer requests");
    alarm(DEADLINE_S);
    for (unsigned i = 0; i < n_conns; i++)
        connect_one(&l, &conns[i]);
    int64_t start = clock_mono_us();
    for (unsigned i = 0; i < n_conns; i++)
        send_next(&l, &conns[i]);
    while (l.done < l.count) {
        int n = epoll_wait(l.epoll, events, CONNECTIONS_MAX, -1);
        for (int i = 0; i < n; i++)
            receive(&l, events[i].data.ptr);
    }
    printf("%u %.6f\n", l.count, (double)(clock_mono_us() - start) / 1e6);
    return 0;
}
