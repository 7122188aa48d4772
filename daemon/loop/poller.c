/* poller.c - readiness of a descriptor, on uv_poll.
 *
 * libuv stops a poll that meets EPOLLERR; the owner is told that all it asked for holds (its next read or write says
 * what is wrong) and the poll goes on, for errors like those of a datagram socket pass. */
#include "loop/poller.h"

#include "base/mem.h"
#include "loop/private.h"

struct poller {
    uv_poll_t uv;
    int events;
    void (*fn)(void *arg, int events);
    void *arg;
};

static int to_uv(int events)
{
    return ((events & POLLER_READ) != 0 ? UV_READABLE : 0) | ((events & POLLER_WRITE) != 0 ? UV_WRITABLE : 0) |
           ((events & POLLER_HANGUP) != 0 ? UV_DISCONNECT : 0);
}

static int from_uv(int events)
{
    return ((events & UV_READABLE) != 0 ? POLLER_READ : 0) | ((events & UV_WRITABLE) != 0 ? POLLER_WRITE : 0) |
           ((events & UV_DISCONNECT) != 0 ? POLLER_HANGUP : 0);
}

static void on_closed(uv_handle_t *handle)
{
    mem_free(handle->data);
}

static void on_poll(uv_poll_t *uv, int status, int uv_events)
{
    struct poller *p = uv->data;
    int events = status < 0 ? p->events : from_uv(uv_events) & p->events;

    if (status < 0 && p->events != 0)
        uv_poll_start(uv, to_uv(p->events), on_poll);
    if (events != 0)
        p->fn(p->arg, events);
}

struct poller *poller_new(struct loop *loop, int fd, int events, void (*fn)(void *arg, int events), void *arg,
                          struct error *err)
{
    struct poller *p = mem_zalloc(sizeof(*p));
    int rc = p == NULL ? UV_ENOMEM : uv_poll_init(&loop->uv, &p->uv, fd);

    if (rc != 0) {
        loop_uv_error(err, rc, "cannot watch a file descriptor");
        mem_free(p);
        return NULL;
    }
    p->uv.data = p;
    p->fn = fn;
    p->arg = arg;
    poller_set(p, events);
    return p;
}

void poller_set(struct poller *p, int events)
{
    if (events == p->events)
        return;
    p->events = events;
    if (events == 0)
        uv_poll_stop(&p->uv);
    else
        uv_poll_start(&p->uv, to_uv(events), on_poll);
}

void poller_unref(struct poller *p)
{
    uv_unref((uv_handle_t *)&p->uv);
}

void poller_free(struct poller *p)
{
    if (p != NULL)
        uv_close((uv_handle_t *)&p->uv, on_closed);
}
