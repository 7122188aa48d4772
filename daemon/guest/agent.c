/* agent.c - the guest agent client's connection and its probing.  See agent.h; commands are in request.c.
 *
 * Happy path: connect, ping after 100 ms, `up` at the answer, then a ping every interval.
 *
 * Failure modes.  The guest has no agent, or none yet: QEMU takes our bytes only when the guest opens the port, so they
 * wait in the socket; after UNANSWERED_MAX of them we reconnect, for QEMU forgets what it has not read.  The agent
 * dies: the next ping passes its deadline, `down`, and the pings start over.  The guest floods us: lines over the
 * maximum and garbage are passed over, and 0xff starts a line afresh.  The socket goes away with its QEMU: the owner
 * frees us. */
#include "guest/internal.h"

#include "base/mem.h"

enum {
    RECONNECT_FIRST_MS = 100,
    RECONNECT_MAX_MS = 2000,
    PROBE_FIRST_MS = 100,
    PROBE_MAX_MS = 2000,
    UNANSWERED_MAX = 8,
    BACKLOG_MAX = 512 * 1024,
};

static void lose(struct agent *a);

void agent_pin(struct agent *a)
{
    a->pins++;
}

static void release(struct agent *a)
{
    mem_free(a->path);
    mem_free(a);
}

static void rearm(struct agent *a)
{
    int64_t now = loop_now_ms(a->loop);
    int64_t at = request_next_time(a);

    if (a->stream == NULL && a->reconnect_at_ms < at)
        at = a->reconnect_at_ms;
    if (a->probing && a->queue == NULL && a->connected && a->probe_at_ms < at)
        at = a->probe_at_ms;
    if (at == INT64_MAX)
        timer_stop(a->timer);
    else
        timer_start(a->timer, at > now ? at - now : 0, 0);
}

void agent_unpin(struct agent *a)
{
    a->pins--;
    if (a->pins > 0)
        return;
    if (a->freed)
        release(a);
    else
        rearm(a);
}

/* ---- up and down ---- */

void agent_alive(struct agent *a)
{
    a->unanswered = 0;
    a->probe_backoff_ms = PROBE_FIRST_MS;
    a->probe_at_ms = loop_now_ms(a->loop) + a->probe_interval_ms;
    if (a->probing && !a->up) {
        a->up = true;
        a->events->up(a->arg);
    }
}

/* Probing starts over: soon, and then with back-off. */
static void set_down(struct agent *a)
{
    a->probe_at_ms = loop_now_ms(a->loop) + a->probe_backoff_ms;
    a->probe_backoff_ms = a->probe_backoff_ms * 2 < PROBE_MAX_MS ? a->probe_backoff_ms * 2 : PROBE_MAX_MS;
    if (a->up) {
        a->up = false;
        a->events->down(a->arg);
    }
}

void agent_mute(struct agent *a)
{
    if (a->unanswered >= UNANSWERED_MAX)
        lose(a);
    else
        set_down(a);
}

void agent_start_probing(struct agent *a, int64_t interval_ms)
{
    a->probing = true;
    a->probe_interval_ms = interval_ms;
    a->probe_backoff_ms = PROBE_FIRST_MS;
    a->probe_at_ms = loop_now_ms(a->loop) + PROBE_FIRST_MS;
    agent_pin(a);
    agent_unpin(a); /* sets the timer */
}

void agent_hint_open(struct agent *a, bool open)
{
    agent_pin(a);
    a->probe_backoff_ms = PROBE_FIRST_MS;
    request_resync(a, !open);
    if (!a->freed && a->unanswered >= UNANSWERED_MAX)
        lose(a);
    else if (!a->freed && !open)
        set_down(a);
    else if (!a->freed && a->probing && a->connected)
        agent_ping(a);
    if (!a->freed)
        request_advance(a);
    agent_unpin(a);
}

bool agent_is_up(const struct agent *a)
{
    return a->up;
}

/* ---- the connection ---- */

static bool on_line(void *arg, enum lines_what what, const char *line, size_t len)
{
    struct agent *a = arg;
    unsigned connection = a->connection;
    json_t *value = what == LINES_LINE ? json_loadb(line, len, 0, NULL) : NULL;

    if (json_is_object(value))
        request_answer(a, value);
    else if (what != LINES_LINE || len > 0)
        a->garbage++;
    if (what == LINES_TOO_LONG)
        request_too_long(a);
    json_decref(value);
    return !a->freed && connection == a->connection;
}

static void on_connected(void *arg)
{
    struct agent *a = arg;

    agent_pin(a);
    a->connected = true;
    a->reconnect_backoff_ms = RECONNECT_FIRST_MS;
    request_advance(a);
    agent_unpin(a);
}

static void on_data(void *arg, const char *data, size_t len)
{
    struct agent *a = arg;

    agent_pin(a);
    lines_feed(&a->lines, data, len, on_line, a);
    agent_unpin(a);
}

static void on_closed(void *arg, int errnum)
{
    struct agent *a = arg;

    (void)errnum; /* whatever it was, we try again */
    agent_pin(a);
    lose(a);
    agent_unpin(a);
}

static const struct stream_events stream_events = {
    .connected = on_connected,
    .data = on_data,
    .closed = on_closed,
};

static void hang_up(struct agent *a)
{
    a->connection++;
    a->connected = false;
    a->unanswered = 0;
    stream_free(TAKE_PTR(a->stream));
    lines_done(&a->lines);
}

static void plan_reconnect(struct agent *a)
{
    a->reconnect_at_ms = loop_now_ms(a->loop) + a->reconnect_backoff_ms;
    a->reconnect_backoff_ms =
        a->reconnect_backoff_ms * 2 < RECONNECT_MAX_MS ? a->reconnect_backoff_ms * 2 : RECONNECT_MAX_MS;
}

/* Ends this connection and plans the next.  The caller has a pin. */
static void lose(struct agent *a)
{
    hang_up(a);
    plan_reconnect(a);
    request_interrupt(a);
    if (!a->freed)
        set_down(a);
}

static void on_timer(void *arg)
{
    struct agent *a = arg;
    int64_t now = loop_now_ms(a->loop);

    agent_pin(a);
    if (a->stream == NULL && a->reconnect_at_ms <= now) {
        a->stream = stream_connect(a->loop, a->path, BACKLOG_MAX, &stream_events, a, NULL);
        if (a->stream == NULL)
            plan_reconnect(a);
    }
    request_expire(a, now);
    if (!a->freed && a->probing && a->connected && a->queue == NULL && a->probe_at_ms <= now) {
        agent_ping(a);
        if (a->queue == NULL)
            a->probe_at_ms = now + PROBE_MAX_MS; /* memory was short */
    }
    agent_unpin(a);
}

struct agent *agent_new(struct loop *loop, const char *path, const struct agent_events *events, void *arg,
                        struct error *err)
{
    struct agent *a = mem_zalloc(sizeof(*a));

    if (a == NULL) {
        error_set(err, ERR_IO, "no memory for a guest agent client");
        return NULL;
    }
    *a = (struct agent){
        .loop = loop,
        .events = events,
        .arg = arg,
        .reconnect_backoff_ms = RECONNECT_FIRST_MS,
        .probe_backoff_ms = PROBE_FIRST_MS,
        .last_sync = (json_int_t)(loop_now_ms(loop) & 0xfffff) << 20, /* not the ids of a client before us */
    };
    lines_init(&a->lines, AGENT_LINE_MAX, 0xff);
    a->path = mem_strdup(path);
    a->timer = timer_new(loop, on_timer, a);
    if (a->path == NULL || a->timer == NULL)
        error_set(err, ERR_IO, "no memory for a guest agent client");
    else
        a->stream = stream_connect(loop, path, BACKLOG_MAX, &stream_events, a, err);
    if (a->stream == NULL) {
        agent_free(a);
        return NULL;
    }
    return a;
}

unsigned agent_garbage(const struct agent *a)
{
    return a->garbage;
}

void agent_free(struct agent *a)
{
    if (a == NULL)
        return;
    agent_execs_end(a);
    agent_files_end(a);
    hang_up(a);
    timer_free(TAKE_PTR(a->timer));
    request_drop_all(a);
    a->freed = true;
    if (a->pins == 0)
        release(a);
}
