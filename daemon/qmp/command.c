/* command.c - QMP commands: written with an id, answered by id, ended by a deadline or by the loss of the connection.
 *
 * A command is on the pending list from the moment its line was queued until its reply is called; it leaves the list
 * first, so a reply may do anything: give commands, free the client. */
#include "qmp/internal.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/buf.h"
#include "base/mem.h"

static int dump_to_buf(const char *text, size_t len, void *arg)
{
    return buf_append(arg, text, len);
}

int qmp_send(struct qmp *q, const char *command, const json_t *arguments, json_int_t *ret_id, struct error *err)
{
    CLEANUP_BUF struct buf line = BUF_INIT(QMP_BACKLOG_MAX);
    json_int_t id = q->last_id + 1;

    buf_str(&line, "{\"execute\":");
    buf_json_str(&line, command);
    if (arguments != NULL) {
        buf_str(&line, ",\"arguments\":");
        if (json_dump_callback(arguments, dump_to_buf, &line, JSON_COMPACT) < 0)
            line.failed = true;
    }
    buf_printf(&line, ",\"id\":%" JSON_INTEGER_FORMAT "}\n", id);
    if (line.failed)
        return error_set(err, ERR_QEMU_QMP_COMMAND_FAILED, "the command %s is too large for %s or memory is short",
                         command, q->who);
    if (stream_write(q->stream, line.data, line.len) < 0)
        return error_set(err, ERR_VM_UNRESPONSIVE, "%s does not read its monitor: too much is waiting for %s", q->who,
                         command);
    q->last_id = id;
    *ret_id = id;
    return 0;
}

static struct qmp_command *command_new(struct qmp *q, const char *name, int64_t timeout_ms)
{
    struct qmp_command *c = mem_zalloc(sizeof(*c));

    if (c == NULL)
        return NULL;
    snprintf(c->name, sizeof(c->name), "%s", name);
    c->timeout_ms = timeout_ms;
    c->deadline_ms = loop_now_ms(q->loop) + timeout_ms;
    return c;
}

static void append_pending(struct qmp *q, struct qmp_command *c)
{
    struct qmp_command **at = &q->pending;

    while (*at != NULL)
        at = &(*at)->next;
    *at = c;
    q->n_pending++;
}

static int execute(struct qmp *q, const char *command, const json_t *arguments, int64_t timeout_ms,
                   struct qmp_command **ret, struct error *err)
{
    if (q->state != QMP_READY)
        return error_set(err, ERR_QEMU_QMP_CONNECT_FAILED, "the monitor of %s is not connected: %s was not sent",
                         q->who, command);
    if (q->n_pending >= QMP_PENDING_MAX)
        return error_set(err, ERR_VM_UNRESPONSIVE, "%s has %d commands to answer already: %s was not sent", q->who,
                         QMP_PENDING_MAX, command);
    struct qmp_command *c = command_new(q, command, timeout_ms);
    if (c == NULL)
        return error_set(err, ERR_QEMU_QMP_COMMAND_FAILED, "no memory for the command %s of %s", command, q->who);
    if (qmp_send(q, command, arguments, &c->id, err) < 0) {
        mem_free(c);
        return -1;
    }
    *ret = c;
    return 0;
}

int qmp_execute(struct qmp *q, const char *command, json_t *arguments, int64_t timeout_ms,
                void (*reply)(void *arg, json_t *ret, struct error *err), void *arg, struct error *err)
{
    struct qmp_command *c = NULL;
    int rc = execute(q, command, arguments, timeout_ms, &c, err);

    json_decref(arguments);
    if (rc < 0)
        return -1;
    c->reply = reply;
    c->arg = arg;
    append_pending(q, c);
    qmp_pin(q);
    qmp_unpin(q); /* sets the timer */
    return 0;
}

/* Takes the command off the list (*at is its link) and answers it. */
static void end_command(struct qmp *q, struct qmp_command **at, json_t *ret, struct error *err)
{
    struct qmp_command *c = *at;

    *at = c->next;
    q->n_pending--;
    c->reply(c->arg, ret, err);
    error_done(err);
    mem_free(c);
}

int qmp_answer_error(const struct qmp *q, const char *command, const json_t *line, struct error *err)
{
    const json_t *fault = json_object_get(line, "error");
    const char *class = json_string_value(json_object_get(fault, "class"));
    const char *desc = json_string_value(json_object_get(fault, "desc"));

    error_set(err, ERR_QEMU_QMP_COMMAND_FAILED, "%s refused %s", q->who, command);
    if (desc != NULL)
        error_cause(err, "%s: %s", class != NULL ? class : "GenericError", desc);
    else
        error_cause(err, "its answer has neither a result nor an error");
    error_ctx_str(err, "command", command);
    if (class != NULL)
        error_ctx_str(err, "qmp_class", class);
    return -1;
}

void qmp_answer(struct qmp *q, json_int_t id, const json_t *line)
{
    struct qmp_command **at = &q->pending;
    struct error err = ERROR_INIT;

    while (*at != NULL && (*at)->id != id)
        at = &(*at)->next;
    if (*at == NULL) {
        if (id <= 0 || id > q->last_id)
            q->garbage++; /* never given; else it came too late or twice */
        return;
    }
    json_t *ret = json_object_get(line, "return");
    if (ret == NULL)
        qmp_answer_error(q, (*at)->name, line, &err);
    end_command(q, at, ret, &err);
}

void qmp_expire(struct qmp *q, int64_t now)
{
    struct qmp_command **at = &q->pending;

    while (!q->freed && *at != NULL) {
        if ((*at)->deadline_ms > now) {
            at = &(*at)->next;
            continue;
        }
        struct error err = ERROR_INIT;
        int64_t ms = (*at)->timeout_ms;
        if (ms % 1000 == 0)
            error_set(&err, ERR_VM_UNRESPONSIVE, "%s has not answered %s for %" PRId64 " s", q->who, (*at)->name,
                      ms / 1000);
        else
            error_set(&err, ERR_VM_UNRESPONSIVE, "%s has not answered %s for %" PRId64 " ms", q->who, (*at)->name, ms);
        error_ctx_str(&err, "command", (*at)->name);
        end_command(q, at, NULL, &err);
        at = &q->pending; /* the reply may have changed the list */
    }
}

void qmp_fail_pending(struct qmp *q, const struct error *why)
{
    while (!q->freed && q->pending != NULL) {
        struct error err = ERROR_INIT;
        error_set(&err, ERR_QEMU_QMP_COMMAND_FAILED, "the monitor of %s was lost before it answered %s", q->who,
                  q->pending->name);
        error_cause(&err, "%s", why->message);
        error_ctx_str(&err, "command", q->pending->name);
        end_command(q, &q->pending, NULL, &err);
    }
}

void qmp_drop_pending(struct qmp *q)
{
    while (q->pending != NULL) {
        struct qmp_command *c = q->pending;
        q->pending = c->next;
        mem_free(c);
    }
    q->n_pending = 0;
}
