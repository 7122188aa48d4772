/* bare_mhd.c - what libmicrohttpd alone would do: one listener on the daemon's loop, with the daemon's flags, which
 * answers every request with the bytes of a file.
 *
 *   bare_mhd PORT GET-FILE POST-FILE
 *
 * A file is an answer as it went over the wire: status line, headers, an empty line, the body.  A GET gets the first,
 * anything else the second once its body was read.  Prints "ready"; SIGTERM ends it. */
#include <arpa/inet.h>
#include <errno.h>
#include <microhttpd.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>

#include "base/mem.h"
#include "loop/loop.h"
#include "loop/poller.h"
#include "loop/timer.h"

enum { HEADERS_MAX = 16, ANSWER_MAX = 65536, COARSE_MS = 1000, BACKLOG = 512 };

struct answer {
    char mem[ANSWER_MAX];
    unsigned status;
    struct {
        char *name, *value;
    } headers[HEADERS_MAX];
    unsigned n_headers;
    char *body;
    size_t body_len;
};

struct bare {
    struct loop *loop;
    struct MHD_Daemon *mhd;
    struct timer *timer;
    struct loop_task task;
    struct answer get, post;
};

static void die(const char *what, const char *why)
{
    fprintf(stderr, "bare_mhd: %s: %s\n", what, why);
    exit(1);
}

/* What libmicrohttpd adds by itself is left out. */
static bool by_itself(const char *name)
{
    return strcasecmp(name, "Date") == 0 || strcasecmp(name, "Content-Length") == 0 ||
           strcasecmp(name, "Connection") == 0;
}

static void load(struct answer *a, const char *path)
{
    FILE *f = fopen(path, "re");
    if (f == NULL)
        die(path, strerror(errno));
    size_t len = fread(a->mem, 1, sizeof(a->mem) - 1, f);
    fclose(f);
    a->mem[len] = '\0';
    char *end = strstr(a->mem, "\r\n\r\n");
    if (end == NULL || sscanf(a->mem, "HTTP/1.1 %u", &a->status) != 1)
        die(path, "no HTTP answer");
    a->body = end + 4;
    a->body_len = len - (size_t)(a->body - a->mem);
    *end = '\0';
    char *save = NULL;
    strtok_r(a->mem, "\r\n", &save); /* the status line */
    for (char *line; (line = strtok_r(NULL, "\r\n", &save)) != NULL && a->n_headers < HEADERS_MAX;) {
        char *colon = strchr(line, ':');
        if (colon == NULL)
            die(path, "a header without a colon");
        *colon = '\0';
        if (by_itself(line))
            continue;
        a->headers[a->n_headers].name = line;
        a->headers[a->n_headers++].value = colon + 1 + strspn(colon + 1, " ");
    }
}

static enum MHD_Result send_answer(struct MHD_Connection *conn, const struct answer *a)
{
    struct MHD_Response *r = MHD_create_response_from_buffer(a->body_len, a->body, MHD_RESPMEM_PERSISTENT);

    if (r == NULL)
        return MHD_NO;
    for (unsigned i = 0; i < a->n_headers; i++)
        MHD_add_response_header(r, a->headers[i].name, a->headers[i].value);
    enum MHD_Result rc = MHD_queue_response(conn, a->status, r);
    MHD_destroy_response(r);
    return rc;
}

static enum MHD_Result on_access(void *cls, struct MHD_Connection *conn, const char *url, const char *method,
                                 const char *version, const char *data, size_t *len, void **ctx)
{
    struct bare *b = cls;

    (void)url;
    (void)version;
    (void)data;
    if (*ctx == NULL) {
        *ctx = b;
        return MHD_YES;
    }
    if (*len > 0) {
        *len = 0;
        return MHD_YES;
    }
    return send_answer(conn, strcmp(method, "GET") == 0 ? &b->get : &b->post);
}

static void run(struct bare *b)
{
    MHD_UNSIGNED_LONG_LONG ms;

    MHD_run(b->mhd);
    if (MHD_get_timeout(b->mhd, &ms) != MHD_YES)
        timer_stop(b->timer);
    else if (ms == 0)
        loop_defer(b->loop, &b->task);
    else if (!timer_active(b->timer))
        timer_start(b->timer, ms < COARSE_MS ? (int64_t)ms + 1 : COARSE_MS, 0);
}

static void on_ready(void *arg, int events)
{
    (void)events;
    run(arg);
}

static void on_timeout(void *arg)
{
    run(arg);
}

static void on_task(struct loop_task *task)
{
    run(CONTAINER_OF(task, struct bare, task));
}

static void on_signal(void *arg, int signum)
{
    (void)signum;
    loop_stop(arg);
}

static int listen_on(const char *port)
{
    struct sockaddr_in addr = {.sin_family = AF_INET,
                               .sin_addr.s_addr = htonl(INADDR_LOOPBACK),
                               .sin_port = htons((uint16_t)strtoul(port, NULL, 10))};
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0), one = 1;

    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
    if (fd < 0 || bind(fd, (struct sockaddr *)&addr, sizeof(addr)) != 0 || listen(fd, BACKLOG) != 0)
        die(port, strerror(errno));
    return fd;
}

int main(int argc, char **argv)
{
    static struct bare b;
    CLEANUP_ERROR struct error err = ERROR_INIT;

    if (argc != 4)
        die("usage", "bare_mhd PORT GET-FILE POST-FILE");
    load(&b.get, argv[2]);
    load(&b.post, argv[3]);
    b.task.run = on_task;
    b.loop = loop_new(&err);
    b.mhd = MHD_start_daemon(MHD_USE_EPOLL | MHD_ALLOW_SUSPEND_RESUME | MHD_ALLOW_UPGRADE | MHD_USE_ERROR_LOG, 0, NULL,
                             NULL, on_access, &b, MHD_OPTION_LISTEN_SOCKET, listen_on(argv[1]),
                             MHD_OPTION_CONNECTION_LIMIT, 1024U, MHD_OPTION_CONNECTION_MEMORY_LIMIT, (size_t)32768,
                             MHD_OPTION_CONNECTION_TIMEOUT, 62U, MHD_OPTION_END);
    const union MHD_DaemonInfo *info = b.mhd != NULL ? MHD_get_daemon_info(b.mhd, MHD_DAEMON_INFO_EPOLL_FD) : NULL;
    if (b.loop == NULL || info == NULL)
        die("libmicrohttpd", "did not start");
    b.timer = timer_new(b.loop, on_timeout, &b);
    struct poller *poller = poller_new(b.loop, info->epoll_fd, POLLER_READ, on_ready, &b, &err);
    struct loop_signal *sig = loop_signal_new(b.loop, SIGTERM, on_signal, b.loop, &err);
    if (b.timer == NULL || poller == NULL || sig == NULL)
        die("loop", err.message);
    puts("ready");
    fflush(stdout);
    run(&b);
    loop_run(b.loop);
    poller_free(poller);
    timer_free(b.timer);
    loop_signal_free(sig);
    loop_revoke(b.loop, &b.task);
    MHD_stop_daemon(b.mhd);
    return loop_free(b.loop) == 0 ? 0 : 1;
}
