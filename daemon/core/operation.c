/* operation.c - the operation as a resource: its document, who watches it, and how long it is remembered.
 *
 * An operation is durable (accepted) before its first effect, and its end is durable before anybody is told of it.  Those
 * that ended stay in memory up to ENDED_MAX, the others are read from the store. */
#include <stdio.h>
#include <string.h>

#include "base/clock.h"
#include "base/mem.h"
#include "base/problem.h"
#include "base/str.h"
#include "core/internal.h"
#include "model/json_text.h"
#include "model/fields.h"

enum { ENDED_MAX = 1000, PROGRESS_EVENT_MS = 1000 };

static const char *const state_texts[] = {"pending", "running", "succeeded", "failed", "cancelled"};
static const char *const step_texts[] = {"pending", "running", "done", "failed", "undoing", "undone"};

const char *operation_state_text(enum operation_state state)
{
    return state_texts[state];
}

const char *operation_step_text(const struct operation_step *step)
{
    return step->skipped ? "skipped" : step_texts[step->state];
}

static bool node_equal(const struct table_node *node, const void *key)
{
    return strcmp(CONTAINER_OF(node, struct operation, node)->id, key) == 0;
}

static struct operation *make(struct core *core, const char *kind, const struct live_vm *vm,
                              const struct core_request *req, const struct uuid *id, struct error *err)
{
    struct operation *op = mem_zalloc(sizeof(*op));

    if (op == NULL)
        goto no_memory;
    op->core = core;
    op->refs = 1;
    op->uuid = *id;
    uuid_text(&op->uuid, op->id);
    op->kind = kind;
    op->created_at = clock_wall_ms();
    op->dirty = true;
    op->cancellable = true;
    if (vm != NULL) {
        uuid_text(&vm->vm.id, op->vm_id);
        op->vm_name = mem_strdup(vm->vm.name);
        op->path = mem_printf("/v1/vms/%s", vm->vm.name);
    }
    if (req != NULL && req->request_id != NULL)
        op->request_id = mem_strdup(req->request_id);
    if ((vm != NULL && (op->vm_name == NULL || op->path == NULL)) ||
        table_add(&core->operations, &op->node, str_hash(op->id)) < 0) {
        mem_free(op->vm_name);
        mem_free(op->path);
        mem_free(op->request_id);
        mem_free(op);
        goto no_memory;
    }
    return op;
no_memory:
    error_set(err, ERR_DAEMON_OVERLOADED, "out of memory");
    return NULL;
}

struct operation *operation_new(struct core *core, const char *kind, const struct live_vm *vm,
                                const struct core_request *req, struct error *err)
{
    struct uuid id = uuid_new();

    return make(core, kind, vm, req, &id, err);
}

struct operation *operation_again(struct core *core, const char *kind, const struct live_vm *vm, const char *id,
                                  int64_t created_at, struct error *err)
{
    struct uuid uuid;

    if (!uuid_parse(id, &uuid)) {
        error_set(err, ERR_DAEMON_INTERNAL, "the store has an operation with the id %s", id);
        return NULL;
    }
    struct operation *op = make(core, kind, vm, NULL, &uuid, err);
    if (op != NULL) {
        op->created_at = created_at;
        op->accepted = true;
    }
    return op;
}

struct operation *operation_new_image(struct core *core, const char *kind, const char *image_name,
                                      const struct core_request *req, struct error *err)
{
    struct operation *op = operation_new(core, kind, NULL, req, err);

    if (op == NULL)
        return NULL;
    op->image_name = mem_strdup(image_name);
    op->path = mem_printf("/v1/images/%s", image_name);
    if (op->image_name != NULL && op->path != NULL)
        return op;
    operation_unref(op);
    error_set(err, ERR_DAEMON_OVERLOADED, "out of memory");
    return NULL;
}

static const char *progress_unit(const struct operation *op)
{
    return op->progress_unit != NULL ? op->progress_unit : "bytes";
}

void operation_progress(struct operation *op, int64_t done, int64_t total)
{
    int64_t now = clock_mono_ms();

    op->has_progress = true;
    op->progress_done = done;
    op->progress_total = total;
    op->dirty = true;
    if (now - op->progress_told < PROGRESS_EVENT_MS || !op->accepted)
        return;
    op->progress_told = now;
    change_lazy_event(op->core, "operation.progress", NULL, op,
                      json_pack("{s:s,s:I,s:o,s:s}", "kind", op->kind, "done", (json_int_t)done, "total",
                                total >= 0 ? json_integer(total) : json_null(), "unit", progress_unit(op)));
}

struct operation *operation_ref(struct operation *op)
{
    op->refs++;
    return op;
}

void operation_unref(struct operation *op)
{
    if (op == NULL || --op->refs > 0)
        return;
    table_remove(&op->core->operations, &op->node);
    mem_free(op->vm_name);
    mem_free(op->image_name);
    mem_free(op->request_id);
    mem_free(op->path);
    mem_free(op->doc);
    json_decref(op->result);
    error_done(&op->error);
    error_done(&op->refusal);
    mem_free(op);
}

static json_t *text_or_null(const char *s)
{
    return s != NULL && *s != '\0' ? json_string(s) : json_null();
}

static json_t *steps_json(const struct operation *op)
{
    json_t *list = json_array();

    for (unsigned i = 0; i < op->n_steps; i++) {
        const struct operation_step *s = &op->steps[i];
        list = field_append(list, json_pack("{s:s,s:s,s:o}", "name", s->name, "state", operation_step_text(s), "ms",
                                            s->state == OP_STEP_PENDING ? json_null() : json_integer(s->ms)));
    }
    return list;
}

static json_t *error_json(const struct operation *op)
{
    CLEANUP_BUF struct buf b = BUF_INIT(262144);

    if (!error_is_set(&op->error))
        return json_null();
    if (error_problem(&op->error, op->path != NULL ? op->path : "/v1/operations",
                      op->request_id != NULL ? op->request_id : "", &b) < 0)
        return NULL;
    return json_loadb(b.data, b.len, 0, NULL);
}

char *operation_render(const struct operation *op)
{
    char created[CLOCK_TEXT_MAX], at[CLOCK_TEXT_MAX];
    bool ended = op->state >= OPERATION_SUCCEEDED;
    const char *step = op->n_steps > 0 && op->step_begun && !ended ? op->steps[op->step].name : NULL;
    json_t *target = json_pack("{s:o,s:o}", "vm_id", text_or_null(op->vm_id), "vm_name", text_or_null(op->vm_name));
    if (op->image_name != NULL)
        target = field_set(target, "image", json_string(op->image_name));
    json_t *progress = op->has_progress
                           ? json_pack("{s:I,s:o,s:s}", "done", (json_int_t)op->progress_done, "total",
                                       op->progress_total >= 0 ? json_integer(op->progress_total) : json_null(), "unit",
                                       progress_unit(op))
                           : json_null();
    json_t *doc = json_pack("{s:s,s:s,s:o,s:s,s:o,s:o,s:o,s:o,s:o,s:b,s:s,s:o,s:o}", "id", op->id, "kind", op->kind,
                            "target", target, "state", state_texts[op->state], "step", text_or_null(step), "steps",
                            steps_json(op), "progress", progress, "error", error_json(op), "result",
                            op->result != NULL ? json_incref(op->result) : json_null(), "cancellable",
                            !ended && op->cancellable, "created_at", clock_text(op->created_at, created), "deadline",
                            op->deadline > 0 ? json_string(clock_text(op->deadline, at)) : json_null(), "finished_at",
                            op->finished_at > 0 ? json_string(clock_text(op->finished_at, at)) : json_null());
    if (doc == NULL)
        return NULL;
    if (op->method != NULL)
        doc = field_set(doc, "method", json_string(op->method));
    return json_text(doc, 0, NULL);
}

/* As it was just before its end. */
static char *render_running(const struct operation *op)
{
    struct operation as_it_was = *op;

    as_it_was.state = OPERATION_RUNNING;
    as_it_was.finished_at = 0;
    as_it_was.result = NULL;
    as_it_was.method = NULL;
    as_it_was.error = (struct error)ERROR_INIT;
    return operation_render(&as_it_was);
}

const char *operation_doc(struct operation *op)
{
    if (op->dirty || op->doc == NULL) {
        /* An end that is not durable yet does not show. */
        bool on_its_way = op->pub_state < OPERATION_SUCCEEDED && op->state >= OPERATION_SUCCEEDED;
        if (on_its_way && op->doc != NULL)
            return op->doc;
        char *doc = on_its_way ? render_running(op) : operation_render(op);
        if (doc != NULL && on_its_way) {
            op->doc = doc;
            return doc; /* still dirty */
        }
        if (doc != NULL) {
            mem_free(op->doc);
            op->doc = doc;
            op->dirty = false;
        }
    }
    return op->doc != NULL ? op->doc : "{}";
}

const char *operation_id(const struct operation *op)
{
    return op->id;
}

bool operation_ended(const struct operation *op)
{
    return op->pub_state >= OPERATION_SUCCEEDED;
}

const struct error *operation_error(const struct operation *op)
{
    return operation_ended(op) && error_is_set(&op->error) ? &op->error : NULL;
}

const char *operation_path(const struct operation *op)
{
    return op->path;
}

struct operation *operation_find_any(struct core *core, const char *id)
{
    struct table_node *node = table_find(&core->operations, str_hash(id), node_equal, id);

    return node != NULL ? CONTAINER_OF(node, struct operation, node) : NULL;
}

struct operation *core_operation_find(struct core *core, const char *id)
{
    struct operation *op = operation_find_any(core, id);

    return op != NULL && op->accepted ? op : NULL;
}

unsigned core_operation_count(const struct core *core)
{
    return core->n_running;
}

/* --- watches: told on a later turn, so that the one who tells never finds the floor gone --- */

struct operation_watch {
    struct operation_watch *next;
    struct operation *op;
    struct loop_task task;
    bool ended;
    void (*fn)(void *arg, struct error *err);
    void *arg;
};

static void watch_run(struct loop_task *task)
{
    struct operation_watch *w = CONTAINER_OF(task, struct operation_watch, task);
    CLEANUP_ERROR struct error err = ERROR_INIT;
    void (*fn)(void *, struct error *) = w->fn;
    void *arg = w->arg;

    if (w->op->refused)
        error_copy(&err, &w->op->refusal);
    operation_unwatch(w);
    fn(arg, &err);
}

static bool watch_due(const struct operation_watch *w)
{
    return w->op->refused || (w->ended ? operation_ended(w->op) : w->op->accepted);
}

static void watches_tell(struct operation *op)
{
    for (struct operation_watch *w = op->watches; w != NULL; w = w->next)
        if (watch_due(w))
            loop_defer(op->core->loop, &w->task);
}

struct operation_watch *operation_watch(struct operation *op, bool ended, void (*fn)(void *arg, struct error *err),
                                        void *arg)
{
    struct operation_watch *w = mem_zalloc(sizeof(*w));

    if (w == NULL)
        return NULL;
    *w = (struct operation_watch){
        .next = op->watches, .op = operation_ref(op), .task.run = watch_run, .ended = ended, .fn = fn, .arg = arg};
    op->watches = w;
    if (watch_due(w))
        loop_defer(op->core->loop, &w->task);
    return w;
}

void operation_unwatch(struct operation_watch *w)
{
    if (w == NULL)
        return;
    loop_revoke(w->op->core->loop, &w->task);
    for (struct operation_watch **p = &w->op->watches; *p != NULL; p = &(*p)->next)
        if (*p == w) {
            *p = w->next;
            break;
        }
    operation_unref(w->op);
    mem_free(w);
}

void operation_accepted(struct operation *op)
{
    op->accepted = true;
    operation_doc(op); /* it may end, and be asked for, before its end is durable */
    watches_tell(op);
}

void operation_refused(struct operation *op, struct error *err)
{
    op->refused = true;
    error_move(&op->refusal, err);
    watches_tell(op);
}

static void forget_first(struct core *core)
{
    struct operation *op = core->ended_first;

    core->ended_first = op->ended_next;
    if (core->ended_first == NULL)
        core->ended_last = NULL;
    core->n_ended--;
    operation_unref(op);
}

void operation_publish_end(struct operation *op)
{
    struct core *core = op->core;

    op->pub_state = op->state;
    op->dirty = true;
    op->accepted = true;
    operation_ref(op); /* the list of the ended holds it */
    if (core->ended_last != NULL)
        core->ended_last->ended_next = op;
    else
        core->ended_first = op;
    core->ended_last = op;
    core->n_ended++;
    watches_tell(op);
    if (core->n_ended > ENDED_MAX)
        forget_first(core);
}

void operations_prune(struct core *core, int64_t before)
{
    while (core->ended_first != NULL && core->ended_first->finished_at < before)
        forget_first(core);
}

void operations_free(struct core *core)
{
    while (core->ended_first != NULL)
        forget_first(core);
    table_done(&core->operations);
}
