/* request.c - the queue of guest agent commands: sync, command, answer, one after the other.
 *
 * Happy path: "\xff" + guest-sync-delimited(id) is written; lines are passed over until {"return": id} comes; then the
 * command is written, and the next object with `return` or `error` is its answer.
 *
 * Failure modes.  No agent listens in the guest: the sync lies in the socket until the deadline, and the command was
 * never written.  The answer comes after the deadline: it meets a later sync and is passed over.  The guest lies: it
 * can only lie about its own answers. */
#include "guest/internal.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/buf.h"
#include "base/mem.h"

static int dump_to_buf(const char *text, size_t len, void *arg)
{
    return buf_append(arg, text, len);
}

static char *format_line(const char *command, const json_t *arguments, size_t *ret_len)
{
    CLEANUP_BUF struct buf line = BUF_INIT(AGENT_LINE_MAX);

    buf_str(&line, "{\"execute\":");
    buf_json_str(&line, command);
    if (arguments != NULL) {
        buf_str(&line, ",\"arguments\":");
        if (json_dump_callback(arguments, dump_to_buf, &line, JSON_COMPACT) < 0)
            line.failed = true;
    }
    buf_str(&line, "}\n");
    return buf_take(&line, ret_len);
}

static void request_free(struct request *r)
{
    mem_free(r->line);
    mem_free(r);
}

static int enqueue(struct agent *a, const char *command, const json_t *arguments, const struct request *like,
                   struct error *err)
{
    struct request **at = &a->queue;

    if (a->n_queue >= AGENT_QUEUE_MAX)
        return error_set(err, ERR_VM_UNRESPONSIVE, "the guest agent has %d commands waiting already: %s was not queued",
                         AGENT_QUEUE_MAX, command);
    struct request *r = mem_alloc(sizeof(*r));
    if (r == NULL)
        return error_set(err, ERR_IO, "no memory for the guest agent command %s", command);
    *r = *like;
    snprintf(r->name, sizeof(r->name), "%s", command);
    r->line = format_line(command, arguments, &r->line_len);
    if (r->line == NULL) {
        request_free(r);
        return error_set(err, ERR_IO, "the guest agent command %s is too large or memory is short", command);
    }
    r->deadline_ms = loop_now_ms(a->loop) + r->timeout_ms;
    while (*at != NULL)
        at = &(*at)->next;
    *at = r;
    a->n_queue++;
    return 0;
}

static int execute(struct agent *a, const char *command, json_t *arguments, const struct request *like,
                   struct error *err)
{
    int rc = enqueue(a, command, arguments, like, err);

    json_decref(arguments);
    if (rc < 0)
        return -1;
    agent_pin(a);
    request_advance(a);
    agent_unpin(a);
    return 0;
}

int agent_execute(struct agent *a, const char *command, json_t *arguments, int64_t timeout_ms,
                  void (*reply)(void *arg, json_t *ret, struct error *err), void *arg, struct error *err)
{
    const struct request like = {.timeout_ms = timeout_ms, .reply = reply, .arg = arg};

    return execute(a, command, arguments, &like, err);
}

int agent_notify(struct agent *a, const char *command, json_t *arguments, int64_t timeout_ms,
                 void (*reply)(void *arg, json_t *ret, struct error *err), void *arg, struct error *err)
{
    const struct request like = {.timeout_ms = timeout_ms, .reply = reply, .arg = arg, .notify = true};

    return execute(a, command, arguments, &like, err);
}

static void ignore_ping(void *arg, json_t *ret, struct error *err)
{
    (void)arg;
    (void)ret;
    (void)err;
}

void agent_ping(struct agent *a)
{
    const struct request like = {.timeout_ms = AGENT_PING_MS, .reply = ignore_ping, .ping = true};

    if (a->queue != NULL)
        return;
    if (enqueue(a, "guest-ping", NULL, &like, NULL) == 0)
        request_advance(a);
}

/* Takes the request off the queue (*at is its link) and answers it. */
static void end_request(struct agent *a, struct request **at, json_t *ret, struct error *err)
{
    struct request *r = *at;

    *at = r->next;
    a->n_queue--;
    r->reply(r->arg, ret, err);
    error_done(err);
    request_free(r);
}

void request_advance(struct agent *a)
{
    struct request *r = a->queue;
    char sync[128];

    if (r == NULL || r->state != REQUEST_QUEUED || !a->connected)
        return;
    r->sync = ++a->last_sync;
    if (r->ping)
        r->deadline_ms = loop_now_ms(a->loop) + r->timeout_ms;
    int n = snprintf(sync, sizeof(sync),
                     "\xff{\"execute\":\"guest-sync-delimited\",\"arguments\":{\"id\":%" JSON_INTEGER_FORMAT "}}\n",
                     r->sync);
    r->state = REQUEST_SYNCING;
    a->unanswered++;
    stream_write(a->stream, sync, (size_t)n); /* what the socket does not take, the deadline finds out */
}

static void answer_sent(struct agent *a, const json_t *value)
{
    json_t *ret = json_object_get(value, "return");
    const json_t *fault = json_object_get(value, "error");
    struct error err = ERROR_INIT;

    if (ret == NULL && !json_is_object(fault)) {
        a->garbage++;
        return;
    }
    if (ret == NULL) {
        const char *class = json_string_value(json_object_get(fault, "class"));
        const char *desc = json_string_value(json_object_get(fault, "desc"));
        error_set(&err, ERR_IO, "the guest agent refused %s", a->queue->name);
        error_cause(&err, "%s: %s", class != NULL ? class : "GenericError", desc != NULL ? desc : "no reason given");
    }
    unsigned connection = a->connection;
    agent_alive(a);
    if (a->freed || connection != a->connection || a->queue == NULL || a->queue->state != REQUEST_SENT) {
        error_done(&err);
        return;
    }
    end_request(a, &a->queue, ret, &err);
    if (!a->freed)
        request_advance(a);
}

void request_answer(struct agent *a, const json_t *value)
{
    struct request *r = a->queue;

    if (r != NULL && r->state == REQUEST_SENT) {
        answer_sent(a, value);
        return;
    }
    const json_t *ret = json_object_get(value, "return");
    if (r == NULL || r->state != REQUEST_SYNCING || !json_is_integer(ret) || json_integer_value(ret) != r->sync) {
        if (json_object_get(value, "error") == NULL) /* the agent's complaint about our 0xff */
            a->garbage++;                            /* or the late answer to a request given up */
        return;
    }
    a->unanswered = 0;
    if (stream_write(a->stream, r->line, r->line_len) < 0)
        return; /* until its deadline */
    r->state = REQUEST_SENT;
    r->grace_ms = loop_now_ms(a->loop) + AGENT_GRACE_MS;
}

void request_too_long(struct agent *a)
{
    struct error err = ERROR_INIT;

    if (a->queue == NULL || a->queue->state != REQUEST_SENT || strcmp(a->queue->name, "guest-exec-status") != 0)
        return;
    error_set(&err, ERR_IO, "the guest agent's answer to %s is too long", a->queue->name);
    end_request(a, &a->queue, NULL, &err);
    if (!a->freed)
        request_advance(a);
}

/* The time at which this request ends without an answer. */
static int64_t end_time(const struct request *r)
{
    if (r->ping && r->state == REQUEST_QUEUED)
        return INT64_MAX;
    if (r->notify && r->state == REQUEST_SENT)
        return r->grace_ms;
    return r->deadline_ms;
}

int64_t request_next_time(const struct agent *a)
{
    int64_t at = INT64_MAX;

    for (const struct request *r = a->queue; r != NULL; r = r->next)
        if (end_time(r) < at)
            at = end_time(r);
    return at;
}

static void expire(struct agent *a, struct request **at)
{
    struct error err = ERROR_INIT;
    bool running = (*at)->state != REQUEST_QUEUED;
    bool delivered = (*at)->notify && (*at)->state == REQUEST_SENT;

    if (!delivered)
        error_set(&err, ERR_VM_UNRESPONSIVE, "the guest agent has not answered %s for %" PRId64 " ms", (*at)->name,
                  (*at)->timeout_ms);
    end_request(a, at, NULL, &err);
    if (running && !delivered && !a->freed)
        agent_mute(a);
}

void request_expire(struct agent *a, int64_t now)
{
    struct request **at = &a->queue;

    while (!a->freed && *at != NULL) {
        if (end_time(*at) > now) {
            at = &(*at)->next;
            continue;
        }
        expire(a, at);
        at = &a->queue; /* the callbacks may have changed the queue */
    }
    if (!a->freed)
        request_advance(a);
}

void request_interrupt(struct agent *a)
{
    struct request *r = a->queue;
    struct error err = ERROR_INIT;

    if (r == NULL || r->state == REQUEST_QUEUED)
        return;
    if (!r->notify || r->state != REQUEST_SENT)
        error_set(&err, ERR_VM_UNRESPONSIVE, "the guest agent's connection ended before it answered %s", r->name);
    end_request(a, &a->queue, NULL, &err);
}

void request_resync(struct agent *a, bool closed)
{
    struct request *r = a->queue;

    if (r != NULL && r->state == REQUEST_SYNCING && !r->ping)
        r->state = REQUEST_QUEUED;
    else if (r != NULL && (r->ping || closed))
        request_interrupt(a);
}

void request_drop_all(struct agent *a)
{
    while (a->queue != NULL) {
        struct request *r = a->queue;
        a->queue = r->next;
        request_free(r);
    }
    a->n_queue = 0;
}
