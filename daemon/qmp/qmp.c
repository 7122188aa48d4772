/* qmp.c - the connection half of the QMP client.  See qmp.h; the states are drawn in internal.h.
 *
 * Happy path: connect, QEMU greets with its version, we negotiate no capabilities (qmp_capabilities), `ready`; from
 * then on a line is an event or an answer to a command.
 *
 * Failure modes.  QEMU is not listening yet, or hangs up before its greeting: tried again until the connect deadline.
 * QEMU serves one monitor client at a time; a second one is accepted by the kernel and never greeted: the deadline ends
 * that too.  A line that is no JSON, or is over QMP_LINE_MAX: the two sides have lost step, so the connection is
 * dropped. JSON of a shape we do not know, answers to nobody: counted and passed over.  Whatever ends the connection
 * fails every pending command and then says `lost`, once; the owner decides whether to reconnect. */
#include "qmp/internal.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/clock.h"
#include "base/mem.h"

enum { BACKOFF_FIRST_MS = 5, BACKOFF_MAX_MS = 100 };

static void lose(struct qmp *q, struct error *why);

void qmp_pin(struct qmp *q)
{
    q->pins++;
}

static void release(struct qmp *q)
{
    mem_free(q->path);
    mem_free(q);
}

/* Sets the one timer to the nearest of the times that matter in this state. */
static void rearm(struct qmp *q)
{
    int64_t at = INT64_MAX;
    int64_t now = loop_now_ms(q->loop);

    if (q->state == QMP_WAITING)
        at = q->retry_at_ms;
    if (q->state < QMP_READY && q->connect_deadline_ms < at)
        at = q->connect_deadline_ms;
    for (const struct qmp_command *c = q->pending; c != NULL; c = c->next)
        if (c->deadline_ms < at)
            at = c->deadline_ms;
    if (at == INT64_MAX)
        timer_stop(q->timer);
    else
        timer_start(q->timer, at > now ? at - now : 0, 0);
}

void qmp_unpin(struct qmp *q)
{
    q->pins--;
    if (q->pins > 0)
        return;
    if (q->freed)
        release(q);
    else
        rearm(q);
}

static void hang_up(struct qmp *q)
{
    q->connection++;
    stream_free(TAKE_PTR(q->stream));
    lines_done(&q->lines);
}

/* ---- what QEMU says ---- */

static void handle_greeting(struct qmp *q, const json_t *line)
{
    const json_t *version = json_object_get(json_object_get(json_object_get(line, "QMP"), "version"), "qemu");
    struct error err = ERROR_INIT;

    if (!json_is_object(version)) {
        q->garbage++;
        return;
    }
    snprintf(q->version, sizeof(q->version), "%u.%u.%u",
             (unsigned)json_integer_value(json_object_get(version, "major")),
             (unsigned)json_integer_value(json_object_get(version, "minor")),
             (unsigned)json_integer_value(json_object_get(version, "micro")));
    q->state = QMP_NEGOTIATING;
    if (qmp_send(q, "qmp_capabilities", NULL, &q->negotiation_id, &err) < 0) {
        error_wrap(&err, ERR_QEMU_QMP_CONNECT_FAILED, "%s greeted, but does not take commands", q->who);
        lose(q, &err);
    }
}

static void handle_negotiated(struct qmp *q, const json_t *line)
{
    struct error err = ERROR_INIT;

    if (json_object_get(line, "return") == NULL) {
        qmp_answer_error(q, "qmp_capabilities", line, &err);
        error_wrap(&err, ERR_QEMU_QMP_CONNECT_FAILED, "%s greeted, but does not take commands", q->who);
        lose(q, &err);
        return;
    }
    q->state = QMP_READY;
    q->events->ready(q->arg, q->version);
}

static void handle_event(struct qmp *q, const char *name, const json_t *line)
{
    const json_t *stamp = json_object_get(line, "timestamp");
    json_int_t s = json_integer_value(json_object_get(stamp, "seconds"));
    json_int_t us = json_integer_value(json_object_get(stamp, "microseconds"));
    bool plausible = s > 0 && s < INT64_MAX / 1000 - 1000 && us >= 0 && us < 1000000; /* -1: QEMU had no time */

    if (q->state == QMP_READY && q->events->event != NULL)
        q->events->event(q->arg, name, json_object_get(line, "data"),
                         plausible ? s * 1000 + us / 1000 : clock_wall_ms());
}

static void handle(struct qmp *q, const json_t *line)
{
    const json_t *id = json_object_get(line, "id");
    const char *event = json_string_value(json_object_get(line, "event"));

    if (q->state == QMP_GREETING)
        handle_greeting(q, line);
    else if (event != NULL)
        handle_event(q, event, line);
    else if (!json_is_integer(id))
        q->garbage++; /* also QEMU's complaint about a line it could not read */
    else if (q->state == QMP_NEGOTIATING && json_integer_value(id) == q->negotiation_id)
        handle_negotiated(q, line);
    else
        qmp_answer(q, json_integer_value(id), line);
}

static bool blank(const char *line, size_t len)
{
    for (size_t i = 0; i < len; i++)
        if (line[i] != '\r' && line[i] != ' ' && line[i] != '\t')
            return false;
    return true;
}

static bool on_line(void *arg, enum lines_what what, const char *line, size_t len)
{
    struct qmp *q = arg;
    unsigned connection = q->connection;
    struct error err = ERROR_INIT;
    json_error_t fault;

    if (what == LINES_LINE && blank(line, len))
        return true;
    if (what != LINES_LINE) {
        q->garbage++;
        error_set(&err, ERR_QEMU_QMP_CONNECT_FAILED, "%s sent a line that %s", q->who,
                  what == LINES_TOO_LONG ? "is longer than 1 MiB" : "found no memory");
        lose(q, &err);
        return false;
    }
    json_t *value = json_loadb(line, len, 0, &fault);
    if (value == NULL) {
        q->garbage++;
        error_set(&err, ERR_QEMU_QMP_CONNECT_FAILED, "%s sent a line that is not JSON", q->who);
        error_cause(&err, "%s", fault.text[0] != '\0' ? fault.text : "memory is short");
        lose(q, &err);
        return false;
    }
    if (json_is_object(value))
        handle(q, value);
    else
        q->garbage++;
    json_decref(value);
    return !q->freed && connection == q->connection;
}

/* ---- the connection ---- */

static void on_connected(void *arg)
{
    struct qmp *q = arg;

    q->state = QMP_GREETING;
    q->last_errnum = 0; /* that of an earlier try explains nothing any more */
}

static void on_data(void *arg, const char *data, size_t len)
{
    struct qmp *q = arg;

    qmp_pin(q);
    if (q->state == QMP_CONNECTING)
        q->state = QMP_GREETING;
    lines_feed(&q->lines, data, len, on_line, q);
    qmp_unpin(q);
}

/* Whether QEMU may only not be there yet. */
static bool worth_retrying(int errnum)
{
    return errnum == 0 || errnum == ENOENT || errnum == ECONNREFUSED || errnum == ECONNRESET || errnum == EPIPE ||
           errnum == EAGAIN;
}

static void on_closed(void *arg, int errnum)
{
    struct qmp *q = arg;
    struct error err = ERROR_INIT;

    qmp_pin(q);
    if (q->state < QMP_NEGOTIATING && worth_retrying(errnum)) {
        hang_up(q);
        q->state = QMP_WAITING;
        q->last_errnum = errnum;
        q->retry_at_ms = loop_now_ms(q->loop) + q->backoff_ms;
        q->backoff_ms = q->backoff_ms * 2 < BACKOFF_MAX_MS ? q->backoff_ms * 2 : BACKOFF_MAX_MS;
    } else {
        error_set(&err, ERR_QEMU_QMP_CONNECT_FAILED,
                  q->state < QMP_NEGOTIATING ? "the monitor of %s could not be reached" : "%s closed its monitor",
                  q->who);
        if (errnum != 0)
            error_cause(&err, "%s: %s", q->path, strerror(errnum));
        lose(q, &err);
    }
    qmp_unpin(q);
}

static const struct stream_events stream_events = {
    .connected = on_connected,
    .data = on_data,
    .closed = on_closed,
};

static int start_connecting(struct qmp *q, struct error *err)
{
    q->stream = stream_connect(q->loop, q->path, QMP_BACKLOG_MAX, &stream_events, q, err);
    if (q->stream == NULL)
        return -1;
    q->state = QMP_CONNECTING;
    return 0;
}

/* Ends the connection for good: the pending commands fail, then the owner hears.  Frees *why.  The caller has a pin. */
static void lose(struct qmp *q, struct error *why)
{
    hang_up(q);
    q->state = QMP_LOST;
    q->losing = true;
    qmp_fail_pending(q, why);
    q->losing = false;
    if (!q->freed)
        q->events->lost(q->arg, why);
    error_done(why);
}

static void connect_deadline_passed(struct qmp *q)
{
    struct error err = ERROR_INIT;
    bool greeted = q->state == QMP_NEGOTIATING;

    if (q->state == QMP_GREETING || greeted)
        error_set(&err, ERR_QEMU_QMP_CONNECT_FAILED, "%s accepted a monitor connection and %s within %" PRId64 " ms",
                  q->who, greeted ? "did not take up commands" : "did not greet", q->connect_ms);
    else
        error_set(&err, ERR_QEMU_QMP_CONNECT_FAILED, "%s served no monitor within %" PRId64 " ms", q->who,
                  q->connect_ms);
    if (q->last_errnum != 0)
        error_cause(&err, "%s: %s", q->path, strerror(q->last_errnum));
    lose(q, &err);
}

static void on_timer(void *arg)
{
    struct qmp *q = arg;
    int64_t now = loop_now_ms(q->loop);
    struct error err = ERROR_INIT;

    qmp_pin(q);
    if (q->state < QMP_READY && q->connect_deadline_ms <= now)
        connect_deadline_passed(q);
    else if (q->state == QMP_WAITING && q->retry_at_ms <= now && start_connecting(q, &err) < 0) {
        error_wrap(&err, ERR_QEMU_QMP_CONNECT_FAILED, "the monitor of %s could not be reached", q->who);
        lose(q, &err);
    }
    if (!q->freed)
        qmp_expire(q, now);
    qmp_unpin(q);
}

/* ---- the owner's side ---- */

static int begin(struct qmp *q, struct error *err)
{
    q->backoff_ms = BACKOFF_FIRST_MS;
    q->last_errnum = 0;
    if (start_connecting(q, err) < 0)
        return -1;
    qmp_set_connect_deadline(q, q->connect_ms);
    return 0;
}

struct qmp *qmp_new(struct loop *loop, const char *path, const struct qmp_events *events, void *arg, struct error *err)
{
    struct qmp *q = mem_zalloc(sizeof(*q));

    if (q == NULL) {
        error_set(err, ERR_IO, "no memory for a monitor client");
        return NULL;
    }
    *q = (struct qmp){.loop = loop, .events = events, .arg = arg, .connect_ms = QMP_CONNECT_MS, .state = QMP_LOST};
    lines_init(&q->lines, QMP_LINE_MAX, -1);
    snprintf(q->who, sizeof(q->who), "QEMU");
    q->path = mem_strdup(path);
    q->timer = timer_new(loop, on_timer, q);
    if (q->path == NULL || q->timer == NULL) {
        error_set(err, ERR_IO, "no memory for a monitor client");
        qmp_free(q);
        return NULL;
    }
    if (begin(q, err) < 0) {
        qmp_free(q);
        return NULL;
    }
    return q;
}

void qmp_set_name(struct qmp *q, const char *vm)
{
    snprintf(q->who, sizeof(q->who), "QEMU of VM %s", vm);
}

void qmp_set_connect_deadline(struct qmp *q, int64_t ms)
{
    q->connect_ms = ms;
    q->connect_deadline_ms = loop_now_ms(q->loop) + ms;
    if (q->pins == 0)
        rearm(q);
}

int qmp_reconnect(struct qmp *q, struct error *err)
{
    if (q->state != QMP_LOST || q->losing)
        return error_set(err, ERR_QEMU_QMP_CONNECT_FAILED, "the monitor of %s is connected or being given up", q->who);
    return begin(q, err);
}

bool qmp_is_ready(const struct qmp *q)
{
    return q->state == QMP_READY;
}

const char *qmp_version(const struct qmp *q)
{
    return q->version;
}

unsigned qmp_garbage(const struct qmp *q)
{
    return q->garbage;
}

void qmp_free(struct qmp *q)
{
    if (q == NULL)
        return;
    hang_up(q);
    timer_free(TAKE_PTR(q->timer));
    qmp_drop_pending(q);
    q->freed = true;
    if (q->pins == 0)
        release(q);
}
