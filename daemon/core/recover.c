/* recover.c - the start of the daemon: what the store says and what the host shows are brought together.
 *
 *   load VMs, keys, unfinished operations
 *   for each VM that ran, or that an operation held:  adopt ─► kill? ─► sweep or remove? ─► settled, durable
 *
 * What becomes of an operation that the last daemon left behind:
 *   create            undone: process ended, files removed, name free; the operation is operation::interrupted
 *   start             undone: the process is ended, the VM is as it was before; interrupted
 *   restart           the VM is as it is found; interrupted
 *   stop, kill        finished if the process is gone, else interrupted and the VM runs on
 *   suspend, resume   finished if the VM is found so, else interrupted
 *   reset             interrupted: whether it happened cannot be seen
 *   destroy           finished: ended, removed
 * A VM that ran and whose process is gone is failed, or stopped when its guest had powered off or the host was restarted. */
#include <stdio.h>
#include <string.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/mem.h"
#include "base/problem.h"
#include "core/internal.h"
#include "model/json_text.h"
#include "core/ops/ops.h"

struct recovery;
typedef int recovery_step(struct recovery *r, struct error *err);

/* An operation left unfinished. */
struct leftover {
    struct leftover *next;
    char *id, *kind, *vm_id;
    int64_t created_at;
    json_t *doc;
};

struct recovery {
    struct core *core;
    struct recovery *next, **at; /* in the core's list */
    struct live_vm *vm;
    struct leftover *left; /* NULL: none held it */
    struct backend_adoption found;
    struct backend_call call;
    recovery_step *const *chain; /* what is still to do, NULL-terminated */
    bool unplanned;              /* it ended while nobody looked, and nobody had asked for it */
    bool finished;               /* the operation reached its goal */
    const char *undone;          /* what was rolled back, for the error's context */
};

static void leftover_free(struct leftover *l)
{
    if (l == NULL)
        return;
    mem_free(l->id);
    mem_free(l->kind);
    mem_free(l->vm_id);
    json_decref(l->doc);
    mem_free(l);
}

/* --- loading --- */

static int load_vm(void *arg, const struct store_vm_row *row, struct error *err)
{
    struct core *core = arg;
    struct uuid id;
    struct vm vm;

    if (!uuid_parse(row->id, &id))
        return error_set(err, ERR_DAEMON_INTERNAL, "the store has a VM with the id %s", row->id);
    if (row->destroyed_at > 0)
        return tombstone_add(core, &id, row->name, row->destroyed_at) == 0
                   ? 0
                   : error_set(err, ERR_DAEMON_OVERLOADED, "out of memory");
    json_t *doc = json_loads(row->doc, 0, NULL), *private_doc = json_loads(row->private_doc, 0, NULL);
    int rc = vm_from_json(doc, private_doc, (const char *const *)core->backend_names, &vm, err);
    json_decref(doc);
    json_decref(private_doc);
    if (rc < 0)
        return error_wrap(err, ERR_DAEMON_INTERNAL, "the stored VM %s (%s) cannot be read", row->name, row->id);
    struct live_vm *live = registry_add(core, &vm, core_backend(core, vm.backend), err);
    if (live == NULL) {
        vm_done(&vm);
        return -1;
    }
    live->visible = true;
    live->doc = mem_strdup(row->doc);
    live->doc_len = strlen(row->doc);
    for (int i = 0; i < VM_COND_MAX; i++)
        live->pub_conditions[i] = live->vm.conditions[i].known && live->vm.conditions[i].status;
    return live->doc != NULL ? alloc_vm(live, false, err) : error_set(err, ERR_DAEMON_OVERLOADED, "out of memory");
}

static int load_key(void *arg, const struct store_key_row *row, struct error *err)
{
    struct core *core = arg;

    if (row->created_at < clock_wall_ms() - core->config.operations_keep_s * 1000)
        return 0;
    return keys_add(core, row->key, row->fingerprint, row->operation_id, row->created_at) == 0
               ? 0
               : error_set(err, ERR_DAEMON_OVERLOADED, "out of memory");
}

static int load_leftover(void *arg, const struct store_operation_row *row, struct error *err)
{
    struct leftover **list = arg, *l = mem_zalloc(sizeof(*l));

    if (l == NULL)
        return error_set(err, ERR_DAEMON_OVERLOADED, "out of memory");
    l->id = mem_strdup(row->id);
    l->kind = mem_strdup(row->kind);
    l->vm_id = mem_strdup(row->vm_id != NULL ? row->vm_id : "");
    l->doc = json_loads(row->doc, 0, NULL);
    l->created_at = row->created_at;
    l->next = *list;
    *list = l;
    if (l->id == NULL || l->kind == NULL || l->vm_id == NULL || l->doc == NULL)
        return error_set(err, ERR_DAEMON_INTERNAL, "the stored operation %s cannot be read", row->id);
    return 0;
}

/* --- the end of one --- */

static void end_doc(struct leftover *l, bool finished, int64_t now)
{
    char at[CLOCK_TEXT_MAX];

    json_object_set_new(l->doc, "state", json_string(finished ? "succeeded" : "failed"));
    json_object_set_new(l->doc, "step", json_null());
    json_object_set_new(l->doc, "cancellable", json_false());
    json_object_set_new(l->doc, "finished_at", json_string(clock_text(now, at)));
}

static void put_interrupted(struct leftover *l, const char *name, const char *undone)
{
    CLEANUP_ERROR struct error err = ERROR_INIT;
    CLEANUP_BUF struct buf problem = BUF_INIT(65536);
    CLEANUP_FREE char *path = mem_printf("/v1/vms/%s", name);

    error_set(&err, ERR_OPERATION_INTERRUPTED, "%s of VM %s was interrupted: vmmd stopped; %s", l->kind, name, undone);
    error_ctx_str(&err, "vm", name);
    error_ctx_str(&err, "rolled_back", undone);
    error_problem(&err, path != NULL ? path : "", "", &problem);
    json_object_set_new(l->doc, "error", json_loadb(problem.data, problem.len, 0, NULL));
}

static void put_leftover(struct change *ch, struct recovery *r, struct leftover *l)
{
    int64_t now = clock_wall_ms();
    const char *name = r->vm->vm.name;

    end_doc(l, r->finished, now);
    if (r->finished)
        json_object_set_new(l->doc, "result", vm_json(&r->vm->vm));
    else
        put_interrupted(l, name, r->undone);
    char *doc = json_text(json_incref(l->doc), 0, NULL);
    change_leftover(ch, l->id, l->kind, l->vm_id, r->finished ? "succeeded" : "failed", doc, l->created_at, now);
    change_event(
        ch, "operation.finished", r->vm, NULL, NULL,
        json_pack("{s:s,s:s,s:s}", "operation", l->id, "kind", l->kind, "state", r->finished ? "succeeded" : "failed"));
    LOG_INFO("operation settled", "operation", l->id, "kind", l->kind, "vm", name, "result",
             r->finished ? "finished" : r->undone);
    mem_free(doc);
    if (!r->finished)
        keys_forget_operation(r->core, ch, l->id);
}

static void recovery_unlink(struct recovery *r)
{
    *r->at = r->next;
    if (r->next != NULL)
        r->next->at = r->at;
}

void recoveries_drop(struct core *core)
{
    for (struct recovery *r; (r = core->recoveries) != NULL;) {
        recovery_unlink(r);
        live_vm_detach(r->vm); /* silences its call */
        core_vm_unref(r->vm);
        leftover_free(r->left);
        mem_free(r);
    }
}

static void recovery_free(struct recovery *r)
{
    struct core *core = r->core;

    recovery_unlink(r);
    r->vm->settling = false;
    if (r->vm->op == NULL && r->vm->vm.state != VM_RUNNING && r->vm->vm.state != VM_SUSPENDED)
        live_vm_detach(r->vm);
    vm_waits_check(r->vm);
    core_vm_unref(r->vm);
    leftover_free(r->left);
    mem_free(r);
    if (--core->recovering == 0 && core->recovered != NULL) {
        policy_begin(core);
        leaks_begin(core);
        core->recovered(core->recovered_arg);
    }
}

static void recovery_durable(void *arg, struct error *err)
{
    struct recovery *r = arg;

    if (r->unplanned && !error_is_set(err))
        policy_ended(r->vm);
    recovery_free(arg);
}

static void recovery_settle(struct recovery *r, enum vm_state state, const char *cause)
{
    struct live_vm *vm = r->vm;
    enum vm_state from = vm->vm.state;
    struct change *ch = change_new(r->core);

    vm->vm.state = state;
    vm->vm.has_operation = false;
    if (state == VM_RUNNING && !vm->vm.conditions[VM_COND_AGENT].known)
        live_vm_conditions_booting(vm);
    if (state != VM_RUNNING && state != VM_SUSPENDED) {
        vm_runtime_stopped(&vm->vm.runtime);
        if (vm->vm.conditions[VM_COND_READY].known)
            live_vm_conditions_down(vm, state == VM_FAILED ? "failed" : "stopped");
    }
    change_vm(ch, vm, state == VM_DESTROYED);
    if (state == VM_DESTROYED)
        change_ports(ch, vm, true);
    change_state_event(ch, vm, NULL, from, cause);
    if (state == from && (state == VM_RUNNING || state == VM_SUSPENDED))
        change_event(ch, "vm.adopted", vm, NULL, NULL, json_pack("{s:i}", "pid", (int)vm->vm.runtime.pid));
    if (r->left != NULL)
        put_leftover(ch, r, r->left);
    if (state == VM_DESTROYED) {
        alloc_release(vm);
        registry_remove(vm);
    }
    change_commit(ch, recovery_durable, r);
}

/* --- the chain of backend calls --- */

static void chain_next(struct recovery *r);

static void chain_done(struct backend_call *call, struct error *err)
{
    struct recovery *r = CONTAINER_OF(call, struct recovery, call);

    if (error_is_set(err))
        LOG_WARN("recovery step failed", "vm", r->vm->vm.name, "error", err->message);
    chain_next(r);
}

static void chain_next(struct recovery *r)
{
    while (*r->chain != NULL) {
        CLEANUP_ERROR struct error err = ERROR_INIT;
        int rc = (*r->chain++)(r, &err);
        if (rc == OP_WAIT)
            return;
        if (rc < 0)
            LOG_WARN("recovery step failed", "vm", r->vm->vm.name, "error", err.message);
    }
}

static int do_kill(struct recovery *r, struct error *err)
{
    return r->vm->be->kill(r->vm->bvm, &r->call, err);
}

static int do_sweep(struct recovery *r, struct error *err)
{
    return r->vm->be->sweep(r->vm->bvm, &r->call, err);
}

static int do_remove(struct recovery *r, struct error *err)
{
    return r->vm->be->remove(r->vm->bvm, &r->call, err);
}

static int end_destroyed(struct recovery *r, struct error *err)
{
    (void)err;
    recovery_settle(r, VM_DESTROYED, "interrupted operation");
    return OP_WAIT;
}

/* As it stood before the operation. */
static int end_as_it_was(struct recovery *r, struct error *err)
{
    (void)err;
    recovery_settle(r, r->vm->vm.state, "interrupted operation");
    return OP_WAIT;
}

static int end_stopped(struct recovery *r, struct error *err)
{
    (void)err;
    recovery_settle(r, VM_STOPPED, r->left != NULL ? r->left->kind : "guest powered off");
    return OP_WAIT;
}

static int end_failed(struct recovery *r, struct error *err)
{
    (void)err;
    recovery_settle(r, VM_FAILED, "ended while vmmd was down");
    return OP_WAIT;
}

static int end_alive(struct recovery *r, struct error *err)
{
    (void)err;
    recovery_settle(r, r->found.found == BACKEND_FOUND_SUSPENDED ? VM_SUSPENDED : VM_RUNNING, "adopted");
    return OP_WAIT;
}

static recovery_step *const undo_create[] = {do_kill, do_remove, end_destroyed, NULL};
static recovery_step *const undo_start[] = {do_kill, do_sweep, end_as_it_was, NULL};
static recovery_step *const now_alive[] = {end_alive, NULL};
static recovery_step *const now_stopped[] = {do_sweep, end_stopped, NULL};
static recovery_step *const now_failed[] = {do_sweep, end_failed, NULL};

static bool left_is(const struct recovery *r, const char *kind)
{
    return r->left != NULL && strcmp(r->left->kind, kind) == 0;
}

static bool alive(const struct recovery *r)
{
    return r->found.found == BACKEND_FOUND_RUNNING || r->found.found == BACKEND_FOUND_SUSPENDED;
}

static bool host_restarted(const struct vm *vm)
{
    char now[37];

    proc_boot_id(now);
    return vm->runtime.boot_id[0] != '\0' && strcmp(vm->runtime.boot_id, now) != 0;
}

/* The VM ran when the last daemon wrote its row, and it does not now. */
static recovery_step *const *chain_gone(struct recovery *r)
{
    struct live_vm *vm = r->vm;
    bool stopping = left_is(r, "vm.stop") || left_is(r, "vm.kill") || left_is(r, "vm.restart");

    r->finished = left_is(r, "vm.stop") || left_is(r, "vm.kill");
    r->undone = "the VM is stopped";
    r->unplanned = !stopping && !host_restarted(&vm->vm); /* a boot of the host is autostart's affair */
    if (stopping || (r->found.found == BACKEND_FOUND_ENDED && r->found.end.end == BACKEND_END_GUEST_OFF) ||
        host_restarted(&vm->vm))
        return now_stopped;
    r->undone = "the VM has failed";
    if (r->found.found == BACKEND_FOUND_ENDED)
        live_vm_set_failure(vm, ERR_LIFECYCLE_OTHER,
                            r->found.end.end == BACKEND_END_PANIC ? VM_FAILURE_PANIC : VM_FAILURE_EXITED,
                            &r->found.end.status, r->found.end.detail, r->found.end.stderr_tail);
    else
        live_vm_set_failure(vm, ERR_LIFECYCLE_OTHER, VM_FAILURE_KILLED, NULL, "QEMU ended while vmmd was down", NULL);
    return now_failed;
}

static recovery_step *const *choose(struct recovery *r)
{
    bool ran = r->vm->vm.state == VM_RUNNING || r->vm->vm.state == VM_SUSPENDED;

    if (left_is(r, "vm.destroy")) {
        r->finished = true;
        return undo_create;
    }
    if (r->vm->vm.state == VM_PREPARING || left_is(r, "vm.create")) {
        r->undone = "what had been made of the VM was removed";
        return undo_create;
    }
    if (!ran) {
        r->undone = "the process was ended and the VM is as it was before";
        return undo_start;
    }
    if (!alive(r))
        return chain_gone(r);
    r->finished = (left_is(r, "vm.suspend") && r->found.found == BACKEND_FOUND_SUSPENDED) ||
                  (left_is(r, "vm.resume") && r->found.found == BACKEND_FOUND_RUNNING);
    r->undone = r->found.found == BACKEND_FOUND_RUNNING ? "the VM runs on" : "the VM is suspended";
    return now_alive;
}

static void adopted(struct backend_call *call, struct error *err)
{
    struct recovery *r = CONTAINER_OF(call, struct recovery, call);

    if (error_is_set(err))
        LOG_WARN("VM not adopted", "vm", r->vm->vm.name, "error", err->message);
    r->call.done = chain_done;
    r->chain = choose(r);
    chain_next(r);
}

static int recover_vm(struct core *core, struct live_vm *vm, struct leftover *left, struct error *err)
{
    struct recovery *r = mem_zalloc(sizeof(*r));

    if (r == NULL || live_vm_attach(vm, err) < 0) {
        mem_free(r);
        leftover_free(left);
        return error_set(err, ERR_DAEMON_OVERLOADED, "out of memory");
    }
    *r = (struct recovery){.core = core,
                           .vm = core_vm_ref(vm),
                           .left = left,
                           .call.done = adopted,
                           .undone = "",
                           .next = core->recoveries,
                           .at = &core->recoveries};
    if (r->next != NULL)
        r->next->at = &r->next;
    core->recoveries = r;
    vm->settling = true;
    core->recovering++;
    CLEANUP_ERROR struct error own = ERROR_INIT;
    int rc = vm->be->adopt(vm->bvm, &r->found, &r->call, &own);
    if (rc != OP_WAIT)
        adopted(&r->call, &own);
    return 0;
}

/* An operation whose VM is gone for good, or that another one was to follow: nothing to settle but its row. */
static void orphan(struct core *core, struct leftover *l)
{
    const char *name = json_string_value(json_object_get(json_object_get(l->doc, "target"), "vm_name"));
    struct change *ch = change_new(core);
    int64_t now = clock_wall_ms();

    end_doc(l, false, now);
    put_interrupted(l, name != NULL ? name : l->vm_id, "a later operation settles the VM, or it is gone");
    char *doc = json_text(json_incref(l->doc), 0, NULL);
    change_leftover(ch, l->id, l->kind, l->vm_id, "failed", doc, l->created_at, now);
    mem_free(doc);
    keys_forget_operation(core, ch, l->id);
    leftover_free(l);
    change_commit(ch, NULL, NULL);
}

static void leftovers_free(struct leftover *l)
{
    for (struct leftover *next; l != NULL; l = next) {
        next = l->next;
        leftover_free(l);
    }
}

int core_recover(struct core *core, void (*done)(void *arg), void *arg, struct error *err)
{
    struct leftover *left = NULL;
    struct live_vm *seen = NULL;
    int64_t newest = 0;

    core->recovered = done;
    core->recovered_arg = arg;
    core->recovering = 1;
    if (store_load_vms(core->store, load_vm, core, err) < 0 || store_load_keys(core->store, load_key, core, err) < 0 ||
        store_event_range(core->store, &core->event_oldest, &newest, err) < 0 ||
        store_load_operations(core->store, load_leftover, &left, err) < 0) {
        leftovers_free(left);
        return -1;
    }
    core->event_newest = newest;
    core->event_next = newest + 1;
    core_prune(core);
    for (struct leftover *l = left, *next; l != NULL; l = next) {
        next = l->next;
        struct live_vm *vm = registry_by_id(core, l->vm_id);
        if (vm == NULL || vm->settling) {
            orphan(core, l);
        } else if (recover_vm(core, vm, l, err) < 0) {
            leftovers_free(next);
            return -1;
        }
    }
    for (size_t i = 0; i < core->n_vms;
         i += i < core->n_vms && core->by_order[i] == seen) { /* one may be removed at once */
        struct live_vm *vm = seen = core->by_order[i];
        bool ran = vm->vm.state == VM_RUNNING || vm->vm.state == VM_SUSPENDED || vm->vm.state == VM_PREPARING ||
                   vm->vm.has_operation;
        if (ran && !vm->settling && recover_vm(core, vm, NULL, err) < 0)
            return -1;
    }
    if (--core->recovering == 0) {
        policy_begin(core);
        leaks_begin(core);
        done(arg);
    }
    return 0;
}
