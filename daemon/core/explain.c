/* explain.c - why is the VM in this state: transitions, the last operation, the last words of QEMU and of the guest.
 *
 * Four readings, one after the other: events, operation, QEMU's stderr, console; what cannot be read is null. */
#include <string.h>

#include "base/clock.h"
#include "base/mem.h"
#include "base/str.h"
#include "core/internal.h"
#include "model/json_text.h"
#include "core/ops/ops.h"

enum { TRANSITIONS = 20, TAIL_LINES = 20 };

struct explain {
    struct live_vm *vm;
    json_t *transitions, *operation, *stderr_tail, *console_tail;
    char id[UUID_TEXT_MAX];
    struct store_read *read; /* one of the two is under way */
    struct log_read *log;
    void (*done)(void *arg, char *json, struct error *err);
    void *arg;
};

static json_t *or_null(json_t *v)
{
    return v != NULL ? v : json_null();
}

void core_explain_cancel(struct explain *e)
{
    store_read_cancel(e->read);
    if (e->log != NULL)
        log_read_cancel(e->log);
    json_decref(e->transitions);
    json_decref(e->operation);
    json_decref(e->stderr_tail);
    core_vm_unref(e->vm);
    mem_free(e);
}

/* What the restart policy did and will do; NULL: memory was short. */
static json_t *restart_json(const struct live_vm *vm, const json_t *doc)
{
    const struct vm_policy *p = &vm->vm.policy;
    char at[CLOCK_TEXT_MAX];

    return json_pack("{s:O,s:I,s:o,s:b}", "policy", json_object_get(json_object_get(doc, "spec"), "restart"), "count",
                     (json_int_t)p->restarts, "next_at",
                     policy_restart_waits(vm) ? json_string(clock_text(p->restart_at, at)) : json_null(), "given_up",
                     p->given_up);
}

static void explain_finish(struct explain *e)
{
    CLEANUP_ERROR struct error err = ERROR_INIT;
    json_t *vm = json_loadb(e->vm->doc, e->vm->doc_len, 0, NULL);
    json_t *failure = json_object_get(vm, "failure");
    json_t *doc = json_pack("{s:O,s:O,s:O,s:O,s:o,s:O,s:o,s:o,s:o,s:o,s:o,s:o}", "id", json_object_get(vm, "id"),
                            "name", json_object_get(vm, "name"), "state", json_object_get(vm, "state"), "conditions",
                            json_object_get(vm, "conditions"), "transitions", or_null(e->transitions), "failure",
                            failure, "exit_status", or_null(json_incref(json_object_get(failure, "exit_status"))),
                            "signal", or_null(json_incref(json_object_get(failure, "signal"))), "operation",
                            or_null(e->operation), "stderr_tail", or_null(e->stderr_tail), "console_tail",
                            or_null(e->console_tail), "restart", or_null(restart_json(e->vm, vm)));
    char *text = json_text(doc, 0, NULL);

    json_decref(vm);
    if (text == NULL)
        error_set(&err, ERR_DAEMON_OVERLOADED, "out of memory");
    e->done(e->arg, text, &err);
    core_vm_unref(e->vm);
    mem_free(e);
}

/* Guest bytes as text: what is no UTF-8 becomes U+FFFD, NULs too. */
static json_t *text_json(const char *data, size_t len)
{
    CLEANUP_BUF struct buf b = BUF_INIT(len * 3 + 16);

    while (len > 0) {
        size_t n = *data != '\0' ? utf8_sequence(data, len) : 0;
        if (n > 0)
            buf_append(&b, data, n);
        else
            buf_str(&b, "\xef\xbf\xbd");
        n = n > 0 ? n : 1;
        data += n;
        len -= n;
    }
    return b.data != NULL && !b.failed ? json_stringn(b.data, b.len) : json_string("");
}

static void got_console(void *arg, const struct core_log_chunk *chunk, struct error *err)
{
    struct explain *e = arg;

    (void)err;
    if (chunk != NULL && chunk->len > 0)
        e->console_tail = text_json(chunk->data, chunk->len);
    explain_finish(e);
}

static void got_stderr(void *arg, const struct core_log_chunk *chunk, struct error *err)
{
    struct explain *e = arg;
    CLEANUP_ERROR struct error own = ERROR_INIT;

    (void)err;
    if (chunk != NULL && chunk->len > 0)
        e->stderr_tail = text_json(chunk->data, chunk->len);
    e->log = core_log_read(e->vm, BACKEND_LOG_CONSOLE, TAIL_LINES, 0, 65536, got_console, e, &own);
    if (e->log == NULL)
        explain_finish(e);
}

static void read_stderr(struct explain *e)
{
    CLEANUP_ERROR struct error err = ERROR_INIT;

    e->read = NULL;
    e->log = core_log_read(e->vm, BACKEND_LOG_VMM, TAIL_LINES, 0, 65536, got_stderr, e, &err);
    if (e->log == NULL)
        explain_finish(e);
}

static void operation_row(void *arg, const struct store_operation_row *row)
{
    struct explain *e = arg;

    if (e->operation == NULL)
        e->operation = json_loads(row->doc, 0, NULL);
}

static void operations_read(void *arg, struct error *err)
{
    (void)err;
    read_stderr(arg);
}

static void read_operation(struct explain *e)
{
    if (e->vm->op != NULL && e->vm->op->res->accepted) {
        e->operation = json_loads(operation_doc(e->vm->op->res), 0, NULL);
        read_stderr(e);
        return;
    }
    e->read = store_read_operations(e->vm->core->store, NULL, NULL, e->id, 1, operation_row, operations_read, e);
    if (e->read == NULL)
        read_stderr(e);
}

static void event_row(void *arg, const struct store_event_row *row)
{
    struct explain *e = arg;
    json_t *event = json_loads(row->doc, 0, NULL), *data = json_object_get(event, "data");

    /* newest first from the store, oldest first in the answer */
    json_array_insert_new(e->transitions, 0,
                          json_pack("{s:O,s:O,s:O,s:O,s:O}", "at", json_object_get(event, "at"), "from",
                                    json_object_get(data, "from"), "to", json_object_get(data, "to"), "cause",
                                    json_object_get(data, "cause"), "operation_id",
                                    json_object_get(event, "operation_id")));
    json_decref(event);
}

static void events_read(void *arg, struct error *err)
{
    (void)err;
    read_operation(arg);
}

int core_vm_explain(struct live_vm *vm, void (*done)(void *arg, char *json, struct error *err), void *arg,
                    struct explain **ret, struct error *err)
{
    struct explain *e = mem_zalloc(sizeof(*e));

    if (e == NULL)
        return error_set(err, ERR_DAEMON_OVERLOADED, "out of memory");
    *e = (struct explain){.vm = core_vm_ref(vm), .transitions = json_array(), .done = done, .arg = arg};
    uuid_text(&vm->vm.id, e->id);
    change_flush_lazy(vm->core);
    *ret = e;
    e->read =
        store_read_events(vm->core->store, 0, e->id, "vm.state_changed", true, TRANSITIONS, event_row, events_read, e);
    if (e->read == NULL)
        read_operation(e);
    return 0;
}
