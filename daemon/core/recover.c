/* recover.c - the start of the daemon: what the store says and what the host shows are brought together.
 *
 *   load VMs, keys, unfinished operations
 *   for each VM that ran, or that an operation held:  adopt ─► kill? ─► sweep or remove? ─► settled, durable
 *
 * What becomes of the operations that the last daemon left behind (leftover.c), the newest of a VM deciding:
 *   create            undone: process ended, files removed, name free; the operation is operation::interrupted
 *   start             undone: the process is ended, the VM is as it was before; interrupted
 *   restart           carried on when the first process is gone, else the VM runs on; interrupted
 *   stop              finished if the process is gone, else interrupted and the VM runs on
 *   kill              finished: the process is ended
 *   suspend, resume   finished if the VM is found so, else interrupted
 *   reset             interrupted: whether it happened cannot be seen
 *   destroy           finished: ended, removed; interrupted where a file or the process resists
 *   image.delete      finished: its file and its row are gone
 *   image.*           interrupted: an image that was to come is gone, what had been fetched is kept for the next pull
 * All of it is one transaction with the VM's row, so that a daemon that is killed in the middle finds the same again.
 * A VM that ran and whose process is gone is failed, or stopped when its guest had powered off or the host was restarted. */
#include <stdio.h>
#include <string.h>

#include "base/clock.h"
#include "base/crash.h"
#include "base/log.h"
#include "base/mem.h"
#include "core/leftover.h"
#include "core/ops/ops.h"

struct recovery {
    struct core *core;
    struct recovery *next, **at; /* in the core's list */
    struct live_vm *vm;
    struct leftover *left; /* what held it or was to follow, the newest first; NULL: nothing */
    pid_t pid;             /* as the row had it */
    struct backend_adoption found;
    struct backend_call call;
    const struct recovery_step *chain; /* what is still to do */
    bool resisted;                     /* a step of it failed */
    bool unplanned;                    /* it ended while nobody looked, and nobody had asked for it */
    struct leftover_end end;           /* of the newest operation */
};

struct recovery_step {
    const char *name;
    int (*run)(struct recovery *r, struct error *err);
};

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
    image_reuse(live);
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

/* --- the end of one --- */

static bool left_is(const struct recovery *r, const char *kind)
{
    return r->left != NULL && strcmp(r->left->kind, kind) == 0;
}

/* An older one has its goal if a newer one brought it about. */
static bool reached_too(const struct live_vm *vm, const char *kind)
{
    enum vm_state state = vm->vm.state;

    if (strcmp(kind, "vm.destroy") == 0)
        return state == VM_DESTROYED;
    return strcmp(kind, "vm.kill") == 0 && state != VM_RUNNING && state != VM_SUSPENDED && state != VM_DESTROYED;
}

static void put_leftovers(struct change *ch, struct recovery *r, struct leftover *list)
{
    for (struct leftover *l = list; l != NULL; l = l->next) {
        struct leftover_end end = r->end;
        if (l != r->left) {
            end = (struct leftover_end){.finished = reached_too(r->vm, l->kind), .rolled_back = true};
            end.undone = r->end.finished ? "a later operation has ended the VM's process" : r->end.undone;
        }
        leftover_end(r->core, ch, r->vm, l, &end);
    }
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
        leftovers_free(r->left);
        mem_free(r);
    }
}

/* One of the things that the start waits for is done. */
static void recovery_over(struct core *core)
{
    if (--core->recovering > 0 || core->recovered == NULL)
        return;
    policy_begin(core);
    leaks_begin(core);
    core->recovered(core->recovered_arg);
}

static void recovery_free(struct recovery *r)
{
    struct core *core = r->core;

    recovery_unlink(r);
    r->vm->settling = false;
    if (r->vm->op == NULL && r->vm->vm.state != VM_RUNNING && r->vm->vm.state != VM_SUSPENDED)
        live_vm_detach(r->vm);
    live_vm_told_late(r->vm);
    vm_waits_check(r->vm);
    core_vm_unref(r->vm);
    leftovers_free(r->left);
    mem_free(r);
    recovery_over(core);
}

static void recovery_durable(void *arg, struct error *err)
{
    (void)err;
    CRASH_POINT("recover:durable");
    recovery_free(arg);
}

/* What the VM is found doing may not be what it last did. */
static void settle_conditions(struct recovery *r, enum vm_state from)
{
    struct vm *vm = &r->vm->vm;
    bool agent = vm->conditions[VM_COND_AGENT].known && vm->conditions[VM_COND_AGENT].status;

    if (vm->state == VM_SUSPENDED) {
        vm_condition_set(vm, VM_COND_READY, false, "suspended", "");
    } else if (vm->state == VM_RUNNING) {
        if (!vm->conditions[VM_COND_AGENT].known || left_is(r, "vm.reset"))
            live_vm_conditions_booting(r->vm);
        else if (from == VM_SUSPENDED)
            vm_condition_set(vm, VM_COND_READY, agent, agent ? "agent" : "booting", "");
    } else if (vm->conditions[VM_COND_READY].known) {
        live_vm_conditions_down(r->vm, vm->state == VM_FAILED ? "failed" : "stopped");
    }
}

/* What vmmd had in mind for it goes on: a start by policy that was interrupted counts as one that failed. */
static void recovery_policy(struct recovery *r, struct change *ch)
{
    struct live_vm *vm = r->vm;
    bool started = left_is(r, "vm.start");

    if (started)
        vm->vm.policy.autostart_at = 0; /* its turn in the row comes again */
    if (r->unplanned || (started && vm->vm.policy.restart_at != 0))
        policy_ended(vm, ch);
}

static void recovery_settle(struct recovery *r, enum vm_state state, const char *cause)
{
    struct live_vm *vm = r->vm;
    enum vm_state from = vm->vm.state;
    struct change *ch = change_new(r->core);

    change_happened(ch);
    vm->vm.state = state;
    vm->vm.has_operation = false;
    if (state != VM_RUNNING && state != VM_SUSPENDED)
        vm_runtime_stopped(&vm->vm.runtime);
    settle_conditions(r, from);
    recovery_policy(r, ch);
    change_vm(ch, vm, state == VM_DESTROYED);
    if (state == VM_DESTROYED)
        change_ports(ch, vm, true);
    change_state_event(ch, vm, NULL, from, cause);
    if (state == from && (state == VM_RUNNING || state == VM_SUSPENDED))
        change_event(ch, "vm.adopted", vm, NULL, NULL, json_pack("{s:i}", "pid", (int)vm->vm.runtime.pid));
    put_leftovers(ch, r, r->left);
    if (state == VM_DESTROYED) {
        alloc_release(vm);
        registry_remove(vm);
    }
    change_commit(ch, recovery_durable, r);
}

/* --- the chain of backend calls --- */

static void chain_next(struct recovery *r);

static void resisted(struct recovery *r, const struct error *err)
{
    LOG_WARN("recovery step failed", "vm", r->vm->vm.name, "error", err->message);
    r->resisted = true;
}

static void chain_done(struct backend_call *call, struct error *err)
{
    struct recovery *r = CONTAINER_OF(call, struct recovery, call);

    CRASH_POINT("recover:%s:after", (r->chain - 1)->name);
    if (error_is_set(err))
        resisted(r, err);
    chain_next(r);
}

/* The last step of a chain waits, and takes the recovery with it. */
static void chain_next(struct recovery *r)
{
    for (;;) {
        CLEANUP_ERROR struct error err = ERROR_INIT;
        const struct recovery_step *step = r->chain++;
        CRASH_POINT("recover:%s:before", step->name);
        int rc = step->run(r, &err);
        if (rc == OP_WAIT)
            return;
        CRASH_POINT("recover:%s:after", step->name);
        if (rc < 0)
            resisted(r, &err);
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

static bool ran(const struct recovery *r)
{
    return r->vm->vm.state == VM_RUNNING || r->vm->vm.state == VM_SUSPENDED;
}

static int end_destroyed(struct recovery *r, struct error *err)
{
    (void)err;
    if (r->resisted && r->end.finished) { /* it can be destroyed again; nothing is forgotten that is still there */
        r->end.finished = false;
        r->end.undone = "not all of the VM could be removed; destroy it again";
        recovery_settle(r, ran(r) || r->vm->vm.state == VM_PREPARING ? VM_STOPPED : r->vm->vm.state,
                        "interrupted operation");
        return OP_WAIT;
    }
    recovery_settle(r, VM_DESTROYED, r->end.finished ? "vm.destroy" : "interrupted operation");
    return OP_WAIT;
}

/* As it stood before the operation. */
static int end_as_it_was(struct recovery *r, struct error *err)
{
    (void)err;
    recovery_settle(r, r->vm->vm.state, "interrupted operation");
    return OP_WAIT;
}

static bool host_restarted(const struct live_vm *live)
{
    const struct vm *vm = &live->vm;
    char now[37];

    proc_boot_id(now);
    return live->core->booted || (vm->runtime.boot_id[0] != '\0' && strcmp(vm->runtime.boot_id, now) != 0);
}

static int end_stopped(struct recovery *r, struct error *err)
{
    (void)err;
    vm_failure_done(&r->vm->vm.failure);
    recovery_settle(r, VM_STOPPED,
                    r->left != NULL         ? r->left->kind
                    : host_restarted(r->vm) ? "the host was restarted"
                                            : "guest powered off");
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

/* The first half of a restart is done: the second one is the operation's own, as if nothing had happened. */
static int carry_on(struct recovery *r, struct error *err)
{
    struct leftover *older = r->left->next;

    if (vm_op_carry_on(r->vm, &vm_restart_plan, "reserve", r->left, err) < 0) {
        r->end.undone = "the VM is stopped";
        return -1;
    }
    if (older != NULL) {
        struct change *ch = change_new(r->core);
        put_leftovers(ch, r, older);
        change_commit(ch, NULL, NULL);
    }
    recovery_free(r);
    return OP_WAIT;
}

static const struct recovery_step undo_create[] = {
    {"kill", do_kill}, {"remove", do_remove}, {"destroyed", end_destroyed}};
static const struct recovery_step undo_start[] = {{"kill", do_kill}, {"sweep", do_sweep}, {"as-it-was", end_as_it_was}};
static const struct recovery_step now_alive[] = {{"alive", end_alive}};
static const struct recovery_step now_stopped[] = {{"kill", do_kill}, {"sweep", do_sweep}, {"stopped", end_stopped}};
static const struct recovery_step now_failed[] = {{"sweep", do_sweep}, {"failed", end_failed}};
static const struct recovery_step start_again[] = {
    {"kill", do_kill}, {"sweep", do_sweep}, {"carry-on", carry_on}, {"stopped", end_stopped}};

static bool alive(const struct recovery *r)
{
    return r->found.found == BACKEND_FOUND_RUNNING || r->found.found == BACKEND_FOUND_SUSPENDED;
}

/* The VM ran when the last daemon wrote its row, and it does not now. */
static const struct recovery_step *chain_gone(struct recovery *r)
{
    struct live_vm *vm = r->vm;

    if (left_is(r, "vm.restart") && !host_restarted(vm))
        return start_again;
    r->end.finished = left_is(r, "vm.stop");
    r->end.undone = "the VM is stopped";
    r->unplanned = !r->end.finished && !host_restarted(vm); /* a boot of the host is autostart's affair */
    if (r->end.finished || (r->found.found == BACKEND_FOUND_ENDED && r->found.end.end == BACKEND_END_GUEST_OFF) ||
        host_restarted(vm))
        return now_stopped;
    r->end.undone = "the VM has failed";
    if (r->found.found == BACKEND_FOUND_ENDED)
        live_vm_set_end(vm, &r->found.end);
    else
        live_vm_set_failure(vm, ERR_LIFECYCLE_OTHER, VM_FAILURE_KILLED, NULL, "QEMU ended while vmmd was down", NULL);
    return now_failed;
}

/* Whether the process is the one that a restart had begun: the row knows the first one. */
static bool second_half(const struct recovery *r)
{
    return left_is(r, "vm.restart") && r->pid != r->vm->vm.runtime.pid;
}

static const struct recovery_step *choose(struct recovery *r)
{
    if (left_is(r, "vm.destroy")) {
        r->end.finished = true;
        return undo_create;
    }
    if (r->vm->vm.state == VM_PREPARING || left_is(r, "vm.create")) {
        r->end.rolled_back = true;
        r->end.undone = "what had been made of the VM was removed";
        return undo_create;
    }
    if (!ran(r) && left_is(r, "vm.restart"))
        return start_again;
    if (!ran(r)) {
        r->end.finished = left_is(r, "vm.kill");
        r->end.rolled_back = true;
        r->end.undone = "the process was ended and the VM is as it was before";
        return undo_start;
    }
    if (left_is(r, "vm.kill")) {
        r->end.finished = true;
        return now_stopped;
    }
    if (!alive(r))
        return chain_gone(r);
    if (second_half(r))
        return start_again;
    r->end.finished = (left_is(r, "vm.suspend") && r->found.found == BACKEND_FOUND_SUSPENDED) ||
                      (left_is(r, "vm.resume") && r->found.found == BACKEND_FOUND_RUNNING);
    r->end.undone = r->found.found == BACKEND_FOUND_RUNNING ? "the VM runs on" : "the VM is suspended";
    return now_alive;
}

static void adopted(struct backend_call *call, struct error *err)
{
    struct recovery *r = CONTAINER_OF(call, struct recovery, call);

    if (error_is_set(err))
        LOG_WARN("VM not adopted", "vm", r->vm->vm.name, "error", err->message);
    CRASH_POINT("recover:adopted");
    r->call.done = chain_done;
    r->chain = choose(r);
    chain_next(r);
}

static int recover_vm(struct core *core, struct live_vm *vm, struct error *err)
{
    struct recovery *r = mem_zalloc(sizeof(*r));

    if (r == NULL || live_vm_attach(vm, err) < 0) {
        mem_free(r);
        return error_set(err, ERR_DAEMON_OVERLOADED, "out of memory");
    }
    *r = (struct recovery){.core = core,
                           .vm = core_vm_ref(vm),
                           .left = TAKE_PTR(vm->left),
                           .pid = vm->vm.runtime.pid,
                           .call.done = adopted,
                           .end.undone = "",
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

static void restarts_forgotten(void *arg, struct error *err)
{
    (void)err;
    recovery_over(arg);
}

/* The host was booted: a restart that waited is none any more, and that is durable before the boot is remembered. */
static void forget_restarts(struct core *core)
{
    struct change *ch = core->booted ? change_new(core) : NULL;

    if (ch == NULL || !boot_forget_restarts(core, ch)) {
        change_drop(ch);
        return;
    }
    core->recovering++;
    change_commit(ch, restarts_forgotten, core);
}

int core_recover(struct core *core, void (*done)(void *arg), void *arg, struct error *err)
{
    struct live_vm *seen = NULL;
    int64_t newest = 0;

    core->recovered = done;
    core->recovered_arg = arg;
    core->recovering = 1;
    if (images_load(core, err) < 0 || store_load_vms(core->store, load_vm, core, err) < 0 ||
        store_load_keys(core->store, load_key, core, err) < 0 ||
        store_event_range(core->store, &core->event_oldest, &newest, err) < 0)
        return -1;
    core->event_newest = newest;
    core->event_next = newest + 1;
    CRASH_POINT("recover:loaded");
    core_prune(core);
    if (leftovers_load(core, err) < 0)
        return -1;
    images_settle(core);
    boot_detect(core);
    forget_restarts(core);
    for (size_t i = 0; i < core->n_vms;
         i += i < core->n_vms && core->by_order[i] == seen) { /* one may be removed at once */
        struct live_vm *vm = seen = core->by_order[i];
        bool unsettled = vm->vm.state == VM_RUNNING || vm->vm.state == VM_SUSPENDED || vm->vm.state == VM_PREPARING ||
                         vm->vm.has_operation || vm->left != NULL;
        if (unsettled && !vm->settling && recover_vm(core, vm, err) < 0)
            return -1;
    }
    recovery_over(core);
    return 0;
}
