/* console.c - the serial console of a running VM: a stream that is always read, into a bounded log.
 *
 * Happy path: connected from before the guest's first instruction to QEMU's end, every byte goes into the log; what the
 * one writer sends goes the other way.  QEMU serves one client: a lost connection is made again, and a line in the log
 * says that bytes may be missing.  When the process is gone the socket is read to its end (half a second at most). */
#include "backend/console.h"

#include <string.h>

#include "backend/qemu/internal.h"
#include "base/mem.h"
#include "loop/stream.h"

enum { WRITE_MAX = 64 * 1024, RECONNECT_MS = 200, DRAIN_MS = 500 };

struct console_watch {
    struct console *console; /* NULL: it is gone */
    void (*gone)(void *arg);
    void *arg;
    struct console_watch *next;
};

struct console {
    struct loop *loop;
    struct logfile *log;
    struct stream *stream;
    struct timer *timer; /* reconnect; while ending: how long to drain */
    char path[QEMU_SOCKET_MAX];
    bool connected;
    bool lost_once;
    bool ending;
    void (*lost)(void *arg); /* the writer's */
    void *writer;
    bool claimed;
    struct console_watch *watches;
    void (*ended)(void *arg);
    void *ended_arg;
};

static void tell_watches(struct console *c)
{
    while (c->watches) {
        struct console_watch *w = c->watches;

        c->watches = w->next;
        w->console = NULL;
        w->gone(w->arg);
    }
}

static void log_closed(void *arg)
{
    struct console *c = arg;
    void (*ended)(void *) = c->ended;
    void *ended_arg = c->ended_arg;

    mem_free(c);
    if (ended)
        ended(ended_arg);
}

/* Nothing comes from the socket any more. */
static void drained(struct console *c)
{
    struct logfile *log = c->log;

    stream_free(c->stream);
    c->stream = NULL;
    timer_free(c->timer);
    c->timer = NULL;
    tell_watches(c);
    c->log = NULL;
    logfile_close(log, log_closed, c);
}

static void on_connected(void *arg)
{
    struct console *c = arg;

    c->connected = true;
    if (c->lost_once)
        logfile_gap(c->log, "the console was reconnected: output may be missing here");
}

static void on_data(void *arg, const char *data, size_t len)
{
    struct console *c = arg;

    logfile_append(c->log, data, len);
}

static void on_closed(void *arg, int errnum)
{
    struct console *c = arg;

    (void)errnum;
    stream_free(c->stream);
    c->stream = NULL;
    if (c->connected)
        c->lost_once = true;
    c->connected = false;
    if (c->ending)
        drained(c);
    else
        timer_start(c->timer, RECONNECT_MS, 0);
}

static const struct stream_events stream_events = {.connected = on_connected, .data = on_data, .closed = on_closed};

static void on_timer(void *arg)
{
    struct console *c = arg;
    CLEANUP_ERROR struct error err = ERROR_INIT;

    if (c->ending) {
        drained(c);
        return;
    }
    c->stream = stream_connect(c->loop, c->path, WRITE_MAX, &stream_events, c, &err);
    if (!c->stream)
        timer_start(c->timer, RECONNECT_MS, 0);
}

struct console *console_new(struct loop *loop, const char *log_prefix, size_t log_max, struct error *err)
{
    struct console *c = mem_zalloc(sizeof(*c));

    if (c) {
        c->loop = loop;
        c->timer = timer_new(loop, on_timer, c);
        c->log = logfile_open(loop, log_prefix, log_max, err);
    }
    if (!c || !c->timer || !c->log) {
        error_set(err, ERR_DAEMON_INTERNAL, "no memory for a console");
        if (c)
            console_free(c);
        return NULL;
    }
    return c;
}

int console_connect(struct console *c, const char *path, struct error *err)
{
    memset(c->path, 0, sizeof(c->path));
    memcpy(c->path, path, strnlen(path, sizeof(c->path) - 1));
    c->stream = stream_connect(c->loop, c->path, WRITE_MAX, &stream_events, c, err);
    return c->stream ? 0 : -1;
}

void console_end(struct console *c, void (*done)(void *arg), void *arg)
{
    c->ending = true;
    c->ended = done;
    c->ended_arg = arg;
    /* On a later turn in any case: the caller is in the middle of the process' end. */
    timer_start(c->timer, c->connected ? DRAIN_MS : 0, 0);
}

void console_free(struct console *c)
{
    stream_free(c->stream);
    timer_free(c->timer);
    tell_watches(c);
    if (c->ending && !c->log) {
        c->ended = NULL; /* the log is being closed, log_closed frees */
        return;
    }
    if (c->log)
        logfile_close(c->log, NULL, NULL);
    mem_free(c);
}

struct logfile *console_log(struct console *c)
{
    return c->log;
}

int console_claim(struct console *c, bool force, void (*lost)(void *arg), void *arg)
{
    void (*old)(void *) = c->lost;
    void *old_arg = c->writer;
    bool was_claimed = c->claimed;

    if (was_claimed && !force)
        return -1;
    c->claimed = true;
    c->lost = lost;
    c->writer = arg;
    if (was_claimed && old)
        old(old_arg);
    return 0;
}

void console_release(struct console *c, void *arg)
{
    if (!c->claimed || c->writer != arg)
        return;
    c->claimed = false;
    c->lost = NULL;
    c->writer = NULL;
}

int console_write(struct console *c, const void *data, size_t len)
{
    return c->connected && c->stream ? stream_write(c->stream, data, len) : -1;
}

struct console_watch *console_watch(struct console *c, void (*gone)(void *arg), void *arg)
{
    struct console_watch *w = mem_zalloc(sizeof(*w));

    if (!w)
        return NULL;
    w->console = c;
    w->gone = gone;
    w->arg = arg;
    w->next = c->watches;
    c->watches = w;
    return w;
}

void console_unwatch(struct console_watch *w)
{
    struct console_watch **p;

    if (!w)
        return;
    if (w->console) {
        for (p = &w->console->watches; *p != w;)
            p = &(*p)->next;
        *p = w->next;
    }
    mem_free(w);
}
