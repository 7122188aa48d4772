/* stream.c - a byte stream over a non-blocking socket and a poller.
 *
 * A write goes out at once as far as the socket takes it; the rest waits in a bounded buffer for writability.  Reading
 * goes through the loop's one buffer, a few rounds per turn, so that no peer starves the others.
 *
 * What happens inside the caller's own call (connected at once, refused, write failed, all written) is told from a
 * deferred task, so no callback ever comes from within stream_connect or stream_write.
 *
 * Failure: when writing fails, what the peer sent before it left is still read, then `closed` comes.  A full listen
 * backlog (EAGAIN) is tried again for a second.  `closed` finds the socket already closed. */
#include "loop/stream.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/buf.h"
#include "base/fd.h"
#include "base/mem.h"
#include "loop/private.h"
#include "loop/timer.h"

enum { CONNECT_RETRY_MS = 10, CONNECT_RETRIES = 100, READ_ROUNDS = 4, KEEP_BUFFER = 64 * 1024 };

enum stream_state { STREAM_CONNECTING, STREAM_OPEN, STREAM_CLOSED };

struct stream {
    struct loop *loop;
    enum stream_state state;
    int fd;
    struct poller *poller;   /* NULL until `connected` was told */
    struct timer *retry;     /* only while connecting */
    struct sockaddr_un addr; /* likewise */
    unsigned retries;
    struct loop_task task; /* tells what happened inside a call of the owner */
    bool tell_connected;
    bool tell_drained;
    int broken; /* errno of a failed connect or write, told by the task */
    bool paused;
    struct buf out;
    size_t sent; /* bytes of out that left */
    size_t max_pending;
    const struct stream_events *events;
    void *arg;
    unsigned busy; /* callbacks on the stack: the memory must stay */
    bool freed;
};

/* ---- ends ---- */

static void release(struct stream *s)
{
    poller_free(s->poller);
    s->poller = NULL;
    timer_free(s->retry);
    s->retry = NULL;
    s->fd = fd_close(s->fd);
    loop_revoke(s->loop, &s->task);
    buf_done(&s->out);
    s->sent = 0;
    s->state = STREAM_CLOSED;
}

static void enter(struct stream *s)
{
    s->busy++;
}

static void leave(struct stream *s)
{
    if (--s->busy == 0 && s->freed)
        mem_free(s);
}

static void end(struct stream *s, int errnum)
{
    if (s->state == STREAM_CLOSED)
        return;
    release(s);
    s->events->closed(s->arg, errnum);
}

void stream_free(struct stream *s)
{
    if (s == NULL || s->freed)
        return;
    release(s);
    s->freed = true;
    if (s->busy == 0)
        mem_free(s);
}

/* ---- reading and writing ---- */

size_t stream_pending(const struct stream *s)
{
    return s->out.len - s->sent;
}

static void want(struct stream *s)
{
    bool write = stream_pending(s) > 0 && s->broken == 0;

    if (s->poller != NULL)
        poller_set(s->poller, (s->paused ? 0 : POLLER_READ) | (write ? POLLER_WRITE : 0));
}

/* Sends what the socket takes; 0, or an errno. */
static int flush(struct stream *s)
{
    while (stream_pending(s) > 0) {
        ssize_t n = send(s->fd, s->out.data + s->sent, stream_pending(s), MSG_NOSIGNAL | MSG_DONTWAIT);
        if (n >= 0)
            s->sent += (size_t)n;
        else if (errno == EAGAIN || errno == EWOULDBLOCK)
            return 0;
        else if (errno != EINTR)
            return errno;
    }
    s->sent = 0;
    if (s->out.cap > KEEP_BUFFER)
        buf_done(&s->out);
    else
        buf_reset(&s->out);
    return 0;
}

/* Writing failed: the task reads what is left, then ends the stream. */
static void break_off(struct stream *s, int errnum)
{
    s->broken = errnum;
    s->sent = 0;
    buf_reset(&s->out);
    want(s);
    loop_defer(s->loop, &s->task);
}

/* Reads up to READ_ROUNDS buffers.  Returns false when nothing more is there now, or the stream has ended. */
static bool read_some(struct stream *s)
{
    for (int i = 0; i < READ_ROUNDS; i++) {
        ssize_t n = recv(s->fd, s->loop->read_buf, sizeof(s->loop->read_buf), MSG_DONTWAIT);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK))
            return false;
        if (n <= 0) {
            end(s, n == 0 ? 0 : errno);
            return false;
        }
        s->events->data(s->arg, s->loop->read_buf, (size_t)n);
        if (s->state != STREAM_OPEN || s->paused)
            return false;
    }
    return true;
}

static void on_ready(void *arg, int events)
{
    struct stream *s = arg;

    enter(s);
    if ((events & POLLER_WRITE) != 0 && stream_pending(s) > 0 && s->broken == 0) {
        int errnum = flush(s);
        if (errnum != 0)
            break_off(s, errnum);
        else if (stream_pending(s) == 0) {
            want(s);
            if (s->events->drained != NULL)
                s->events->drained(s->arg);
        }
    }
    if ((events & POLLER_READ) != 0 && s->state == STREAM_OPEN && !s->paused)
        read_some(s);
    leave(s);
}

int stream_write(struct stream *s, const void *data, size_t len)
{
    if (s->state == STREAM_CLOSED || s->broken != 0 || len > s->max_pending - stream_pending(s))
        return -1;
    if (len == 0)
        return 0;
    if (s->sent > 0 && (s->sent >= stream_pending(s) || s->out.len + len > s->out.max)) {
        buf_consume(&s->out, s->sent);
        s->sent = 0;
    }
    bool idle = stream_pending(s) == 0;
    if (buf_append(&s->out, data, len) != 0) {
        s->out.failed = false; /* this write is refused, not the later ones */
        return -1;
    }
    if (!idle || s->poller == NULL)
        return 0;
    int errnum = flush(s);
    if (errnum != 0) {
        break_off(s, errnum);
        return -1;
    }
    if (stream_pending(s) == 0 && s->events->drained != NULL) {
        s->tell_drained = true;
        loop_defer(s->loop, &s->task);
    }
    want(s);
    return 0;
}

void stream_pause(struct stream *s, bool paused)
{
    s->paused = paused;
    want(s);
    if (s->broken != 0 && !paused && s->state == STREAM_OPEN)
        loop_defer(s->loop, &s->task);
}

/* ---- birth ---- */

static int watch(struct stream *s, struct error *err)
{
    s->poller = poller_new(s->loop, s->fd, 0, on_ready, s, err);
    if (s->poller == NULL)
        return -1;
    want(s);
    return 0;
}

static void tell_connected(struct stream *s)
{
    CLEANUP_ERROR struct error err = ERROR_INIT;

    s->tell_connected = false;
    timer_free(s->retry);
    s->retry = NULL;
    if (watch(s, &err) != 0) {
        end(s, ENOMEM);
        return;
    }
    s->state = STREAM_OPEN;
    if (s->events->connected != NULL)
        s->events->connected(s->arg);
}

static void on_task(struct loop_task *task)
{
    struct stream *s = CONTAINER_OF(task, struct stream, task);

    enter(s);
    if (s->tell_connected)
        tell_connected(s);
    if (s->state == STREAM_CONNECTING && s->broken != 0)
        end(s, s->broken);
    if (s->state == STREAM_OPEN && s->tell_drained) {
        s->tell_drained = false;
        if (stream_pending(s) == 0 && s->broken == 0)
            s->events->drained(s->arg);
    }
    if (s->state == STREAM_OPEN && s->broken != 0 && !s->paused) {
        if (read_some(s))
            loop_defer(s->loop, &s->task);
        else if (!s->paused)
            end(s, s->broken);
    }
    leave(s);
}

static void try_connect(void *arg)
{
    struct stream *s = arg;

    if (connect(s->fd, (const struct sockaddr *)&s->addr, sizeof(s->addr)) == 0)
        s->tell_connected = true;
    else if ((errno == EAGAIN || errno == EINTR) && s->retries++ < CONNECT_RETRIES) {
        timer_start(s->retry, CONNECT_RETRY_MS, 0);
        return;
    } else
        s->broken = errno;
    loop_defer(s->loop, &s->task);
}

static struct stream *make(struct loop *loop, int fd, size_t max_pending, const struct stream_events *events, void *arg,
                           struct error *err)
{
    struct stream *s = mem_zalloc(sizeof(*s));

    if (s == NULL) {
        fd_close(fd);
        error_errno(err, ENOMEM, "cannot make a stream");
        return NULL;
    }
    *s = (struct stream){.loop = loop, .fd = fd, .max_pending = max_pending, .events = events, .arg = arg};
    /* Twice the bound, so that what left is not moved out of the way for every write. */
    buf_init(&s->out, max_pending > SIZE_MAX / 2 ? max_pending : 2 * max_pending);
    s->task.run = on_task;
    return s;
}

struct stream *stream_connect(struct loop *loop, const char *path, size_t max_pending,
                              const struct stream_events *events, void *arg, struct error *err)
{
    size_t len = strlen(path);

    if (len == 0 || len >= sizeof(((struct sockaddr_un *)0)->sun_path)) {
        error_errno(err, len == 0 ? ENOENT : ENAMETOOLONG, "cannot connect to %s", path);
        return NULL;
    }
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0) {
        error_errno(err, errno, "cannot connect to %s", path);
        return NULL;
    }
    struct stream *s = make(loop, fd, max_pending, events, arg, err);
    if (s == NULL)
        return NULL;
    s->state = STREAM_CONNECTING;
    s->addr.sun_family = AF_UNIX;
    memcpy(s->addr.sun_path, path, len + 1);
    s->retry = timer_new(loop, try_connect, s);
    if (s->retry == NULL) {
        error_errno(err, ENOMEM, "cannot connect to %s", path);
        stream_free(s);
        return NULL;
    }
    try_connect(s);
    return s;
}

struct stream *stream_from_fd(struct loop *loop, int fd, size_t max_pending, const struct stream_events *events,
                              void *arg, struct error *err)
{
    struct stream *s = make(loop, fd, max_pending, events, arg, err);

    if (s == NULL)
        return NULL;
    s->state = STREAM_OPEN;
    fcntl(fd, F_SETFD, FD_CLOEXEC);
    if (watch(s, err) != 0) {
        stream_free(s);
        return NULL;
    }
    return s;
}
