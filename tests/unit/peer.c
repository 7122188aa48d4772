/* peer.c - the scripted peer.  See peer.h. */
#include "peer.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/buf.h"
#include "base/clock.h"
#include "loop/poller.h"
#include "loop/stream.h"
#include "loop/timer.h"

enum { FLOOD_CHUNK = 65536, SEND_MAX = 8 << 20 };

struct peer {
    struct loop *loop;
    char path[108];
    int fd;
    struct poller *listener;
    struct stream *conn;
    struct timer *timer;
    struct loop_task task;
    const struct peer_step *step;
    struct buf in;
    struct buf out; /* what PEER_DRIP still has to send */
    size_t flooded;
    bool begun; /* the current step has started */
    char id[32];
};

static void need(bool ok, const char *what)
{
    if (!ok) {
        perror(what);
        abort();
    }
}

static void on_data(void *arg, const char *data, size_t len)
{
    struct peer *p = arg;

    buf_append(&p->in, data, len);
    loop_defer(p->loop, &p->task);
}

static void on_closed(void *arg, int errnum)
{
    struct peer *p = arg;

    (void)errnum;
    stream_free(p->conn);
    p->conn = NULL;
    loop_defer(p->loop, &p->task);
}

static void on_drained(void *arg)
{
    struct peer *p = arg;

    loop_defer(p->loop, &p->task);
}

static const struct stream_events events = {.data = on_data, .closed = on_closed, .drained = on_drained};

static void on_client(void *arg, int ready)
{
    struct peer *p = arg;

    (void)ready;
    int fd = accept4(p->fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
    if (fd < 0)
        return;
    buf_reset(&p->in);
    p->conn = stream_from_fd(p->loop, fd, SEND_MAX, &events, p, NULL);
    if (p->conn == NULL)
        return; /* an allocation was made to fail: the client sees us hang up */
    poller_set(p->listener, 0);
    loop_defer(p->loop, &p->task);
}

static void on_timer(void *arg)
{
    struct peer *p = arg;

    loop_defer(p->loop, &p->task);
}

static void remember_id(struct peer *p, const char *line, size_t len)
{
    const char *at = memmem(line, len, "\"id\":", 5);

    if (at != NULL)
        snprintf(p->id, sizeof(p->id), "%ld", strtol(at + 5, NULL, 10));
}

/* Looks for the expected line; consumes up to its end. */
static bool expect(struct peer *p)
{
    char *nl;

    while (p->in.len > 0 && (nl = memchr(p->in.data, '\n', p->in.len)) != NULL) {
        size_t len = (size_t)(nl - p->in.data);
        bool found = memmem(p->in.data, len, p->step->text, strlen(p->step->text)) != NULL;
        if (found)
            remember_id(p, p->in.data, len);
        buf_consume(&p->in, len + 1);
        if (found)
            return true;
    }
    return false;
}

static void expand(struct peer *p, struct buf *out)
{
    const char *at = p->step->text;
    size_t left = p->step->n > 0 ? p->step->n : strlen(at);
    const char *mark;

    while ((mark = memmem(at, left, "$ID", 3)) != NULL) {
        buf_append(out, at, (size_t)(mark - at));
        buf_str(out, p->id);
        left -= (size_t)(mark - at) + 3;
        at = mark + 3;
    }
    buf_append(out, at, left);
}

static bool drip(struct peer *p)
{
    if (!p->begun)
        expand(p, &p->out);
    if (p->out.len == 0 || p->conn == NULL)
        return true;
    stream_write(p->conn, p->out.data, 1);
    buf_consume(&p->out, 1);
    loop_defer(p->loop, &p->task);
    return false;
}

static bool flood(struct peer *p)
{
    static char chunk[FLOOD_CHUNK];

    memset(chunk, 'x', sizeof(chunk));
    if (p->conn == NULL || p->flooded >= p->step->n)
        return true;
    if (stream_pending(p->conn) > 0)
        return false; /* `drained` comes */
    if (stream_write(p->conn, chunk, sizeof(chunk)) == 0)
        p->flooded += sizeof(chunk);
    return false;
}

static bool send_text(struct peer *p)
{
    struct buf out = BUF_INIT(SEND_MAX);

    expand(p, &out);
    if (p->conn != NULL)
        stream_write(p->conn, out.data, out.len);
    buf_done(&out);
    return true;
}

/* Does what it can of the current step; whether it is done. */
static bool play(struct peer *p)
{
    switch (p->step->action) {
    case PEER_END:
        return false;
    case PEER_ACCEPT:
        if (!p->begun)
            poller_set(p->listener, POLLER_READ);
        return p->conn != NULL;
    case PEER_EXPECT:
        return expect(p);
    case PEER_SEND:
        return send_text(p);
    case PEER_DRIP:
        return drip(p);
    case PEER_FLOOD:
        return flood(p);
    case PEER_GONE:
        return p->conn == NULL;
    case PEER_CLOSE:
        stream_free(p->conn);
        p->conn = NULL;
        return true;
    case PEER_PAUSE:
        if (!p->begun)
            timer_start(p->timer, (int64_t)p->step->n, 0);
        return p->begun && !timer_active(p->timer);
    }
    return false;
}

static void on_turn(struct loop_task *task)
{
    struct peer *p = (struct peer *)(void *)((char *)task - offsetof(struct peer, task));

    while (play(p)) {
        p->step++;
        p->begun = false;
    }
    p->begun = true;
}

struct peer *peer_new(struct loop *loop, const char *path, const struct peer_step *steps)
{
    struct peer *p = calloc(1, sizeof(*p));
    struct sockaddr_un addr = {.sun_family = AF_UNIX};

    need(p != NULL, "calloc");
    p->loop = loop;
    p->step = steps;
    p->task.run = on_turn;
    buf_init(&p->in, SEND_MAX);
    buf_init(&p->out, SEND_MAX);
    snprintf(p->path, sizeof(p->path), "%s", path);
    snprintf(addr.sun_path, sizeof(addr.sun_path), "%s", p->path);
    unlink(path);
    p->fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    need(p->fd >= 0, "socket");
    need(bind(p->fd, (struct sockaddr *)&addr, sizeof(addr)) == 0, "bind");
    need(listen(p->fd, 4) == 0, "listen");
    p->listener = poller_new(loop, p->fd, 0, on_client, p, NULL);
    p->timer = timer_new(loop, on_timer, p);
    need(p->listener != NULL && p->timer != NULL, "poller_new");
    loop_defer(loop, &p->task);
    return p;
}

bool peer_ended(const struct peer *p)
{
    return p->step->action == PEER_END;
}

size_t peer_sent(const struct peer *p)
{
    return p->flooded;
}

void peer_free(struct peer *p)
{
    loop_revoke(p->loop, &p->task);
    stream_free(p->conn);
    poller_free(p->listener);
    timer_free(p->timer);
    close(p->fd);
    unlink(p->path);
    buf_done(&p->in);
    buf_done(&p->out);
    free(p);
}

static void nothing(void *arg)
{
    (void)arg;
}

bool run_until(struct loop *loop, bool (*cond)(void *arg), void *arg, int64_t ms)
{
    int64_t end = clock_mono_ms() + ms;
    struct timer *tick = timer_new(loop, nothing, NULL);
    bool ok = false;

    if (tick == NULL) /* an allocation was made to fail: it was this one */
        tick = timer_new(loop, nothing, NULL);
    need(tick != NULL, "timer_new");
    timer_start(tick, 10, 10);
    while (!(ok = cond(arg)) && clock_mono_ms() < end)
        loop_run_once(loop, true);
    timer_free(tick);
    return ok;
}

static bool never(void *arg)
{
    (void)arg;
    return false;
}

void run_for(struct loop *loop, int64_t ms)
{
    run_until(loop, never, NULL, ms);
}
