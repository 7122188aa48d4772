/* change.c - render, write, publish.
 *
 * Happy path: documents and events are rendered when they are added, so that a change is a picture of one moment; the store
 * writes them as one transaction; when it is durable the rendered documents replace the published ones, the events go
 * out, the waits are looked at, and `done` is told.  Changes become durable in the order they were committed.
 * Failure modes: no memory or no disk: nothing of it is published, and `done` gets the error; who made it restores what it
 * had changed in memory, and what the VMs then are is written again later (owed.c).  What happened by itself (a QEMU that died)
 * is not restored: readers see it at once, and its event comes when it is written. */
#include <stdio.h>
#include <string.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/mem.h"
#include "core/internal.h"
#include "model/fields.h"
#include "model/json_text.h"

enum { LAZY_MS = 50 };

struct change_event {
    struct change_event *next;
    int64_t id, at;
    const char *type;
    char vm_id[UUID_TEXT_MAX];
    char *vm_name;
    json_t *json; /* without its id */
    char *doc;
};

struct change_vm_doc {
    struct change_vm_doc *next;
    struct live_vm *vm;
    char *doc;
    size_t len;
    enum vm_state state;
    int64_t generation;
    bool conditions[VM_COND_MAX];
};

struct change_image_doc {
    struct change_image_doc *next;
    struct live_image *image;
    char *doc; /* NULL: it is gone */
};

struct change {
    struct core *core;
    struct store_tx *tx;
    struct change_event *events, **events_end;
    struct change_vm_doc *docs, **docs_end;
    struct change_image_doc *images;
    bool failed;           /* memory was short */
    bool happened;         /* what is, whether it can be written or not */
    struct loop_task task; /* tells a failed one */
    void (*done)(void *arg, struct error *err);
    void *arg;
};

struct change *change_new(struct core *core)
{
    struct change *ch = mem_zalloc(sizeof(*ch));

    if (ch == NULL)
        return NULL;
    ch->core = core;
    ch->tx = store_tx_new(core->store);
    ch->failed = ch->tx == NULL;
    ch->events_end = &ch->events;
    ch->docs_end = &ch->docs;
    return ch;
}

static void change_free(struct change *ch)
{
    for (struct change_event *e = ch->events, *next; e != NULL; e = next) {
        next = e->next;
        mem_free(e->vm_name);
        json_decref(e->json);
        mem_free(e->doc);
        mem_free(e);
    }
    for (struct change_vm_doc *d = ch->docs, *next; d != NULL; d = next) {
        next = d->next;
        core_vm_unref(d->vm);
        mem_free(d->doc);
        mem_free(d);
    }
    for (struct change_image_doc *i = ch->images, *next; i != NULL; i = next) {
        next = i->next;
        image_unref(i->image);
        mem_free(i->doc);
        mem_free(i);
    }
    mem_free(ch);
}

void change_frees(struct change *ch, enum vm_verb verb)
{
    if (ch != NULL && (verb == VM_DESTROY || verb == VM_KILL || verb == VM_STOP))
        store_tx_use_reserve(ch->tx);
}

void change_happened(struct change *ch)
{
    if (ch == NULL)
        return;
    ch->happened = true;
    store_tx_use_reserve(ch->tx);
}

void change_drop(struct change *ch)
{
    if (ch == NULL)
        return;
    store_tx_free(ch->tx);
    change_free(ch);
}

void change_vm(struct change *ch, struct live_vm *vm, bool destroyed)
{
    struct change_vm_doc *d = ch != NULL ? mem_zalloc(sizeof(*d)) : NULL;
    char id[UUID_TEXT_MAX];

    if (d == NULL) {
        if (ch != NULL)
            ch->failed = true;
        return;
    }
    vm->vm.revision++;
    vm->vm.updated_at = clock_wall_ms();
    d->doc = json_text(vm_json(&vm->vm), 0, &d->len);
    CLEANUP_FREE char *private_doc = json_text(vm_private_json(&vm->vm), 0, NULL);
    d->vm = core_vm_ref(vm);
    d->state = vm->vm.state;
    d->generation = vm->vm.generation;
    for (int i = 0; i < VM_COND_MAX; i++)
        d->conditions[i] = vm->vm.conditions[i].known && vm->vm.conditions[i].status;
    *ch->docs_end = d;
    ch->docs_end = &d->next;
    if (d->doc == NULL || private_doc == NULL) {
        ch->failed = true;
        return;
    }
    struct store_vm_row row = {.id = uuid_text(&vm->vm.id, id),
                               .name = vm->vm.name,
                               .doc = d->doc,
                               .private_doc = private_doc,
                               .destroyed_at = destroyed || vm->vm.state == VM_DESTROYED ? vm->vm.updated_at : 0};
    store_put_vm(ch->tx, &row);
    if (vm->ports_moved) /* for good: the next commit may be the first that succeeds */
        change_ports(ch, vm, false);
}

void change_image(struct change *ch, struct live_image *image, bool drop, const struct operation *op, const char *event)
{
    struct change_image_doc *i = ch != NULL ? mem_zalloc(sizeof(*i)) : NULL;
    char id[UUID_TEXT_MAX];

    if (i == NULL) {
        if (ch != NULL)
            ch->failed = true;
        return;
    }
    i->image = image_ref(image);
    i->next = ch->images;
    ch->images = i;
    uuid_text(&image->image.id, id);
    if (drop) {
        store_drop_image(ch->tx, id);
    } else {
        image->image.updated_at = clock_wall_ms();
        i->doc = json_text(image_json(&image->image), 0, NULL);
        struct store_image_row row = {.id = id, .name = image->image.name, .doc = i->doc};
        if (i->doc == NULL)
            ch->failed = true;
        else
            store_put_image(ch->tx, &row);
    }
    change_event(ch, event, NULL, op, NULL,
                 json_pack("{s:s,s:s,s:s}", "image", image->image.name, "image_id", id, "state",
                           drop ? "gone" : image_state_text(image->image.state)));
}

void change_operation(struct change *ch, struct operation *op)
{
    CLEANUP_FREE char *doc = ch != NULL ? operation_render(op) : NULL;

    if (doc == NULL) {
        if (ch != NULL)
            ch->failed = true;
        return;
    }
    struct store_operation_row row = {.id = op->id,
                                      .kind = op->kind,
                                      .vm_id = op->vm_id[0] != '\0' ? op->vm_id : NULL,
                                      .state = operation_state_text(op->state),
                                      .doc = doc,
                                      .created_at = op->created_at,
                                      .finished_at = op->finished_at};
    store_put_operation(ch->tx, &row);
}

void change_leftover(struct change *ch, const char *id, const char *kind, const char *vm_id, const char *state,
                     const char *doc, int64_t created_at, int64_t finished_at)
{
    struct store_operation_row row = {.id = id,
                                      .kind = kind,
                                      .vm_id = vm_id,
                                      .state = state,
                                      .doc = doc,
                                      .created_at = created_at,
                                      .finished_at = finished_at};

    if (ch != NULL && doc != NULL)
        store_put_operation(ch->tx, &row);
    else if (ch != NULL)
        ch->failed = true;
}

void change_key(struct change *ch, const char *key, const char *fingerprint, const char *operation_id, int64_t at)
{
    struct store_key_row row = {.key = key, .fingerprint = fingerprint, .operation_id = operation_id, .created_at = at};

    if (ch != NULL)
        store_put_key(ch->tx, &row);
}

void change_ports(struct change *ch, const struct live_vm *vm, bool drop)
{
    char id[UUID_TEXT_MAX];

    if (ch == NULL)
        return;
    uuid_text(&vm->vm.id, id);
    store_drop_ports(ch->tx, id);
    if (drop)
        return;
    if (vm->vm.runtime.ssh_host_port != 0)
        store_put_port(ch->tx, false, "127.0.0.1", vm->vm.runtime.ssh_host_port, id);
    for (size_t i = 0; i < vm->vm.spec.network.n_forwards; i++) {
        const struct vm_forward *f = &vm->vm.spec.network.forwards[i];
        store_put_port(ch->tx, f->udp, f->host_ip, f->host_port, id);
    }
}

static json_t *text_or_null(const char *s)
{
    return s != NULL ? json_string(s) : json_null();
}

/* Whom an event is about; everything may be NULL. */
struct about {
    const char *vm_id, *vm_name, *request_id, *operation_id;
};

static void put_event(struct change *ch, const char *type, const struct about *about, json_t *data)
{
    struct change_event *e = ch != NULL ? mem_zalloc(sizeof(*e)) : NULL;
    char at[CLOCK_TEXT_MAX];

    if (e == NULL) {
        json_decref(data);
        if (ch != NULL)
            ch->failed = true;
        return;
    }
    e->at = clock_wall_ms();
    e->type = type;
    if (about->vm_id != NULL) {
        snprintf(e->vm_id, sizeof(e->vm_id), "%s", about->vm_id);
        e->vm_name = mem_strdup(about->vm_name);
    }
    e->json = json_pack("{s:i,s:s,s:s,s:o,s:o,s:o,s:o,s:o}", "id", 0, "type", type, "at", clock_text(e->at, at),
                        "vm_id", text_or_null(about->vm_id), "vm_name", text_or_null(e->vm_name), "request_id",
                        text_or_null(about->request_id), "operation_id", text_or_null(about->operation_id), "data",
                        data != NULL ? data : json_object());
    *ch->events_end = e;
    ch->events_end = &e->next;
    ch->failed |= e->json == NULL;
}

/* Events get their ids in the order in which they are written, so that readers see them rise.  What is refused leaves a
 * gap: no id is given twice. */
static void number_events(struct change *ch)
{
    for (struct change_event *e = ch->events; e != NULL && !ch->failed; e = e->next) {
        e->id = ch->core->event_next++;
        e->json = field_set(e->json, "id", json_integer(e->id));
        e->doc = json_text(e->json, 0, NULL);
        e->json = NULL;
        if (e->doc == NULL)
            ch->failed = true;
        else
            store_put_event(ch->tx, e->id, e->at, e->type, e->vm_id, e->doc);
    }
}

void change_event(struct change *ch, const char *type, const struct live_vm *vm, const struct operation *op,
                  const char *request_id, json_t *data)
{
    char id[UUID_TEXT_MAX];
    struct about about = {.request_id = request_id == NULL && op != NULL ? op->request_id : request_id,
                          .operation_id = op != NULL ? op->id : NULL};

    if (vm != NULL) {
        about.vm_id = uuid_text(&vm->vm.id, id);
        about.vm_name = vm->vm.name;
    }
    put_event(ch, type, &about, data);
}

void change_leftover_event(struct change *ch, const char *vm_id, const char *vm_name, const char *operation_id,
                           json_t *data)
{
    put_event(ch, "operation.finished",
              &(struct about){.vm_id = vm_id, .vm_name = vm_name, .operation_id = operation_id}, data);
}

void change_state_event(struct change *ch, const struct live_vm *vm, const struct operation *op, enum vm_state from,
                        const char *cause)
{
    if (from == vm->vm.state)
        return;
    LOG_INFO("vm state", "vm", vm->vm.name, "from", vm_state_text(from), "to", vm_state_text(vm->vm.state), "cause",
             cause, "request_id", op != NULL ? op->request_id : NULL);
    json_t *data =
        json_pack("{s:s,s:s,s:s}", "from", vm_state_text(from), "to", vm_state_text(vm->vm.state), "cause", cause);
    if (vm->vm.failure.set && vm->vm.state == VM_FAILED && vm->vm.failure.detail != NULL)
        json_object_set_new(data, "detail", json_string(vm->vm.failure.detail));
    change_event(ch, "vm.state_changed", vm, op, NULL, data);
}

static void publish_docs(struct change *ch)
{
    for (struct change_vm_doc *d = ch->docs; d != NULL; d = d->next) {
        char *old = d->vm->doc;
        d->vm->doc = d->doc;
        d->vm->doc_len = d->len;
        d->doc = old;
        d->vm->pub_state = d->state;
        d->vm->pub_generation = d->generation;
        d->vm->visible = true;
        memcpy(d->vm->pub_conditions, d->conditions, sizeof(d->conditions));
    }
}

static void publish(struct change *ch)
{
    struct core *core = ch->core;

    publish_docs(ch);
    for (struct change_vm_doc *d = ch->docs; d != NULL; d = d->next)
        d->vm->owes_event = false;
    for (struct change_image_doc *i = ch->images; i != NULL; i = i->next) {
        mem_free(i->image->doc);
        i->image->doc = TAKE_PTR(i->doc);
    }
    for (struct change_event *e = ch->events; e != NULL; e = e->next)
        events_publish(core, e->id, e->type, e->vm_id, e->vm_name, e->doc);
    for (struct change_vm_doc *d = ch->docs; d != NULL; d = d->next)
        vm_waits_check(d->vm);
}

static void change_durable(void *arg, struct error *err)
{
    struct change *ch = arg;
    struct core *core = ch->core;

    if (!error_is_set(err))
        publish(ch);
    else
        LOG_ERROR("change not written", "error", err->message, "cause", err->n_causes > 0 ? err->causes[0] : NULL);
    void (*done)(void *, struct error *) = ch->done;
    void *done_arg = ch->arg;
    if (error_is_set(err))
        for (struct change_vm_doc *d = ch->docs; d != NULL; d = d->next)
            owed_vm(d->vm);
    if (error_is_set(err) && ch->happened) {
        publish_docs(ch);
        for (struct change_vm_doc *d = ch->docs; d != NULL; d = d->next)
            vm_waits_check(d->vm);
    }
    change_free(ch);
    core->n_changes--;
    if (done != NULL)
        done(done_arg, err);
    core_check_idle(core);
}

/* A change that could not be built is told on a later turn, as if the store had refused. */
static void failed_run(struct loop_task *task)
{
    CLEANUP_ERROR struct error err = ERROR_INIT;

    error_set(&err, ERR_DAEMON_OVERLOADED, "out of memory");
    change_durable(CONTAINER_OF(task, struct change, task), &err);
}

void change_commit(struct change *ch, void (*done)(void *arg, struct error *err), void *arg)
{
    if (ch == NULL) {
        LOG_ERROR("change not written", "error", "out of memory");
        if (done != NULL) {
            CLEANUP_ERROR struct error err = ERROR_INIT;
            error_set(&err, ERR_DAEMON_OVERLOADED, "out of memory");
            done(arg, &err);
        }
        return;
    }
    struct core *core = ch->core;
    if (ch != core->lazy)
        change_flush_lazy(core);
    ch->done = done;
    ch->arg = arg;
    core->n_changes++;
    number_events(ch);
    if (ch->failed) {
        store_tx_free(ch->tx);
        ch->tx = NULL;
        ch->task.run = failed_run;
        loop_defer(core->loop, &ch->task);
        return;
    }
    store_commit(core->store, ch->tx, change_durable, ch);
}

void change_flush_lazy(struct core *core)
{
    struct change *ch = core->lazy;

    if (ch == NULL)
        return;
    core->lazy = NULL;
    timer_stop(core->lazy_timer);
    change_commit(ch, NULL, NULL);
}

void change_lazy_event(struct core *core, const char *type, const struct live_vm *vm, const struct operation *op,
                       json_t *data)
{
    if (core->lazy == NULL) {
        core->lazy = change_new(core);
        timer_start(core->lazy_timer, LAZY_MS, 0);
    }
    if (core->lazy == NULL)
        json_decref(data);
    else
        change_event(core->lazy, type, vm, op, NULL, data);
}
