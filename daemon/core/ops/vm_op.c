/* vm_op.c - the frame of an operation on a VM, from its first step to its end.
 *
 *   begin.c ─► engine walks the table ─► persist (durable, published, VM let go) ─► announce ─► freed
 *                   │ a step fails, times out, is cancelled, or the process dies
 *                   └─► undone ─► the VM settled ─► the failure durable, published ─► freed
 */
#include <stdio.h>
#include <string.h>

#include "base/clock.h"
#include "base/crash.h"
#include "base/log.h"
#include "base/mem.h"
#include "core/ops/frame.h"

void vm_op_free(struct vm_op *vo)
{
    if (vo->all_at != NULL) {
        *vo->all_at = vo->all_next;
        if (vo->all_next != NULL)
            vo->all_next->all_at = vo->all_at;
    }
    memory_release(vo);
    vm_create_forget_check(vo);
    vm_image_forget(vo);
    provision_free(vo->provision);
    if (vo->disk_ask != NULL)
        disk_forget(vo->disk_ask);
    change_drop(vo->intent);
    vo->core->disk_promised -= vo->room;
    timer_free(vo->timer);
    error_done(&vo->cancelled);
    vm_failure_done(&vo->failure);
    mem_free(vo->end_tail);
    mem_free(vo->key);
    mem_free(vo->fingerprint);
    operation_unref(vo->res);
    core_vm_unref(vo->vm);
    mem_free(vo);
}

const struct vm_plan *vm_plan_of(enum vm_verb verb)
{
    static const struct vm_plan *const plans[VM_VERB_MAX] = {
        [VM_CREATE] = &vm_create_plan,       [VM_START] = &vm_start_plan,   [VM_STOP] = &vm_stop_plan,
        [VM_KILL] = &vm_kill_plan,           [VM_RESET] = &vm_reset_plan,   [VM_RESTART] = &vm_restart_plan,
        [VM_SUSPEND] = &vm_suspend_plan,     [VM_RESUME] = &vm_resume_plan, [VM_DESTROY] = &vm_destroy_plan,
        [VM_PROVISION] = &vm_provision_plan,
    };

    return plans[verb];
}

const struct vm_step *vm_step_named(const char *kind, const char *name)
{
    for (enum vm_verb verb = 0; verb < VM_VERB_MAX; verb++) {
        const struct vm_plan *plan = verb == VM_CREATE ? &vm_create_start_plan : vm_plan_of(verb);
        for (unsigned i = 0; strcmp(plan->kind, kind) == 0 && i < plan->n_steps; i++)
            if (strcmp(plan->steps[i].name, name) == 0)
                return &plan->steps[i];
    }
    return NULL;
}

/* --- the end: the VM is let go, the next in the queue begins --- */

void vm_op_begin_next(struct live_vm *vm)
{
    struct vm_op *next = vm->op_next;

    if (next == NULL || vm->op != NULL || vm->core->parked)
        return;
    vm->op_next = next->next;
    next->next = NULL;
    vm->op = next;
    if (next->res->accepted)
        vm_op_walk(next);
}

void vm_op_let_go(struct vm_op *vo)
{
    struct live_vm *vm = vo->vm;

    if (vm->op == vo) {
        vm->op = NULL;
        live_vm_told_late(vm);
    }
    if (vo->core->n_running > 0) /* parking gave all up at once */
        vo->core->n_running--;
    vo->core->files_promised -= vo->files;
    vo->files = 0;
    core_check_idle(vo->core);
    if (vm->vm.state != VM_RUNNING && vm->vm.state != VM_SUSPENDED && vm->op == NULL && vm->op_next == NULL)
        live_vm_detach(vm);
}

json_t *vm_op_finish_data(const struct operation *res)
{
    json_t *data = json_pack("{s:s,s:s}", "kind", res->kind, "state", operation_state_text(res->state));

    if (error_is_set(&res->error))
        json_object_set_new(data, "code", json_string(error_info(res->error.code)->code));
    if (res->method != NULL)
        json_object_set_new(data, "method", json_string(res->method));
    return data;
}

void vm_op_log_finish(const struct vm_op *vo)
{
    const struct operation *res = vo->res;
    char ms[24];

    snprintf(ms, sizeof(ms), "%lld", (long long)(res->finished_at - res->created_at));
    log_write(res->state == OPERATION_FAILED ? LOG_LEVEL_WARN : LOG_LEVEL_INFO, "operation finished", "operation",
              res->id, "kind", res->kind, "vm", res->vm_name, "state", operation_state_text(res->state), "ms", ms,
              "error", error_is_set(&res->error) ? res->error.message : "", "request_id", res->request_id, NULL);
}

/* The failure is durable, or the disk refuses: then it is told all the same, and its row is owed.  A destroy that was
 * told to have failed must not be finished by the next start. */
static void failure_durable(void *arg, struct error *err)
{
    struct vm_op *vo = arg;
    struct live_vm *vm = vo->vm;

    if (error_is_set(err))
        owed_operation(vo->res);
    vm_op_log_finish(vo);
    vm_op_let_go(vo);
    operation_publish_end(vo->res);
    vm_waits_check(vm);
    vm_op_begin_next(vm);
    vm_op_free(vo);
}

/* The VM has come to rest by this failure and nobody had asked for that, or its policy's own start failed. */
static void op_failed_policy(struct vm_op *vo, enum vm_state was, struct change *ch)
{
    struct live_vm *vm = vo->vm;
    bool ran = was == VM_RUNNING || was == VM_SUSPENDED,
         runs = vm->vm.state == VM_RUNNING || vm->vm.state == VM_SUSPENDED;
    bool own = vo->by_policy && vo->plan->verb == VM_START;

    if (vm->op_next == NULL && ((ran && !runs && !vo->stop_asked && vo->plan->verb != VM_RESTART) ||
                                (own && vo->res->state == OPERATION_FAILED)))
        policy_ended(vm, ch);
    else if (own) /* cancelled by somebody */
        vm->vm.policy.restart_at = 0;
}

static void op_failed(struct vm_op *vo, enum op_outcome outcome, struct error *err)
{
    struct live_vm *vm = vo->vm;
    enum vm_state was = vm->vm.state;
    bool created = vo->plan->verb == VM_CREATE;

    vo->res->state = outcome == OP_CANCELLED ? OPERATION_CANCELLED : OPERATION_FAILED;
    vo->res->finished_at = clock_wall_ms();
    vo->res->dirty = true;
    error_move(&vo->res->error, err);
    struct change *ch = change_new(vo->core);
    change_happened(ch);
    if (!vm->gone) {
        vm->vm.has_operation = false;
        vm_op_settle(vo, outcome == OP_CANCELLED);
        if (created)
            vm->vm.state = VM_DESTROYED;
        op_failed_policy(vo, was, ch);
        change_vm(ch, vm, created);
        if (created)
            change_ports(ch, vm, true);
        change_state_event(ch, vm, vo->res, was, vo->plan->kind);
    }
    change_operation(ch, vo->res);
    change_event(ch, "operation.finished", vm, vo->res, NULL, vm_op_finish_data(vo->res));
    if (created) {
        alloc_release(vm);
        registry_remove(vm);
    }
    change_commit(ch, failure_durable, vo);
}

static void engine_finished(struct op *op, enum op_outcome outcome, struct error *err)
{
    struct vm_op *vo = op_data(op);

    vo->op = NULL;
    if (!vo->persisted) {
        op_failed(vo, outcome, err);
        return;
    }
    struct live_vm *vm = vo->vm;
    if (error_is_set(err))
        LOG_WARN("after the end of the operation", "operation", vo->res->id, "error", err->message);
    vm_op_let_go(vo);
    vm_op_begin_next(vm);
    vm_op_free(vo);
}

/* --- steps: the fault seam, then the step itself --- */

#ifdef VMMD_CRASH_POINTS
const char *const op_crash_names[] = {"", "before", "after", "failed", "undo-before", "undo-after"};
#endif

static void step_changed(struct op *op, unsigned index, enum op_step_state state, const struct error *err)
{
    struct vm_op *vo = op_data(op);

    index += vo->first;
    struct operation_step *s = &vo->res->steps[index];
    CRASH_POINT("op:%s:%s:%s", vo->plan->kind, s->name, op_crash_names[state]);
    if (vo->persisted)
        return;
    if (state == OP_STEP_RUNNING)
        s->started_ms = clock_mono_ms();
    if (state == OP_STEP_DONE && s->skipped)
        return;
    s->skipped = state == OP_STEP_RUNNING && vo->plan->steps[index].skip != NULL && vo->plan->steps[index].skip(vo);
    s->state = state;
    s->ms = clock_mono_ms() - s->started_ms;
    vo->res->step = index;
    vo->res->step_begun = true;
    vo->res->cancellable = op_cancellable(op) && !vo->plan->steps[index].no_cancel;
    vo->res->dirty = true;
    LOG_DEBUG("step", "operation", vo->res->id, "kind", vo->res->kind, "vm", vo->res->vm_name, "step", s->name, "state",
              operation_step_text(s), "error", err != NULL && error_is_set(err) ? err->message : NULL);
    if (state == OP_STEP_UNDONE && err != NULL && error_is_set(err))
        LOG_WARN("undo failed", "operation", vo->res->id, "step", s->name, "error", err->message);
    change_lazy_event(vo->core, "operation.step", vo->vm, vo->res,
                      json_pack("{s:s,s:s,s:s,s:I}", "kind", vo->res->kind, "step", s->name, "state",
                                operation_step_text(s), "ms", (json_int_t)s->ms));
}

static const struct op_observer observer = {.step = step_changed, .finished = engine_finished};

static const struct vm_step *current(const struct vm_op *vo)
{
    return &vo->plan->steps[vo->first + op_step_index(vo->op)];
}

static int run_current(struct vm_op *vo, struct error *err)
{
    const struct vm_step *step = current(vo);

    if (vo->res->steps[vo->first + op_step_index(vo->op)].skipped)
        return 0;
    vo->phase = VM_OP_RUN;
    vo->calling = true;
    int rc = step->run(vo, err);
    if (rc != OP_WAIT)
        vo->calling = false;
    return rc;
}

static void call_done(struct backend_call *call, struct error *err)
{
    struct vm_op *vo = CONTAINER_OF(call, struct vm_op, call);
    CLEANUP_ERROR struct error own = ERROR_INIT;

    vo->calling = false;
    if (vo->parked)
        return;
    if (vo->phase == VM_OP_HOOK && !error_is_set(err)) {
        int rc = run_current(vo, &own);
        if (rc == OP_WAIT)
            return;
        op_resume(vo->op, rc < 0 ? &own : NULL);
        return;
    }
    op_resume(vo->op, err);
}

static int engine_run(struct op *op, struct error *err)
{
    struct vm_op *vo = op_data(op);

    vo->op = op; /* the first step may run before op_start's caller has its result */
    const struct vm_step *step = current(vo);
    if (step->run == step_spawn)
        vo->spawn_failed =
            true; /* the process is the reason of what fails from now on, until its end is to be written */
    else if (step->commit)
        vo->spawn_failed = false;
    vo->call.done = call_done;
    if (vo->vm->be->before_step != NULL) {
        vo->phase = VM_OP_HOOK;
        vo->calling = true;
        int rc = vo->vm->be->before_step(vo->vm->bvm, vo->plan->kind, step->name, &vo->call, err);
        if (rc == OP_WAIT)
            return OP_WAIT;
        vo->calling = false;
        if (rc < 0)
            return -1;
    }
    return run_current(vo, err);
}

static int engine_undo(struct op *op, struct error *err)
{
    struct vm_op *vo = op_data(op);
    const struct vm_step *step = current(vo);

    vo->phase = VM_OP_UNDO;
    vo->call.done = call_done;
    vo->calling = true;
    int rc = step->undo(vo, err);
    if (rc != OP_WAIT)
        vo->calling = false;
    return rc;
}

static void engine_cancel(struct op *op)
{
    struct vm_op *vo = op_data(op);

    if (vo->hurry != NULL)
        vo->hurry(vo);
    else if (vo->calling && vo->vm->bvm != NULL)
        vo->vm->be->cancel(vo->vm->bvm);
}

void vm_op_resume(struct vm_op *vo, struct error *err)
{
    vo->calling = false;
    if (!vo->parked)
        op_resume(vo->op, err);
}

/* A destroy that waited for an operation which ended with the VM gone: what it asks for already is. */
static void already_destroyed(struct vm_op *vo)
{
    vo->res->state = OPERATION_SUCCEEDED;
    vo->res->method = "none";
    vo->res->finished_at = clock_wall_ms();
    vo->res->n_steps = 0;
    vo->res->result = vm_json(&vo->vm->vm);
    struct change *ch = change_new(vo->core);
    change_happened(ch);
    change_operation(ch, vo->res);
    change_event(ch, "operation.finished", vo->vm, vo->res, NULL, vm_op_finish_data(vo->res));
    change_commit(ch, failure_durable, vo);
}

/* It may have waited for another that was about to let go, and the VM may have ended meanwhile.  One that is carried on
 * was. */
static bool still_allowed(const struct vm_op *vo)
{
    enum vm_verb verb = vo->plan->verb;

    return vo->first > 0 || verb == VM_CREATE || verb == VM_KILL || verb == VM_DESTROY ||
           vm_verb_allowed(verb, vo->vm->vm.state);
}

void vm_op_walk(struct vm_op *vo)
{
    struct live_vm *vm = vo->vm;
    CLEANUP_ERROR struct error err = ERROR_INIT;

    vo->ran = true;
    vo->from = vm->vm.state;
    vo->stop_asked = vo->plan->verb == VM_STOP || vo->plan->verb == VM_KILL || vo->plan->verb == VM_RESTART ||
                     vo->plan->verb == VM_DESTROY;
    if (vm->gone && vo->plan->verb == VM_DESTROY && !error_is_set(&vo->cancelled)) {
        already_destroyed(vo);
        return;
    }
    if (error_is_set(&vo->cancelled))
        error_move(&err, &vo->cancelled);
    else if (vm->gone)
        error_set(&err, ERR_LIFECYCLE_DESTROYED, "VM %s was destroyed meanwhile", vm->vm.name);
    else if (!still_allowed(vo))
        vm_state_error(vo->plan->verb, vm->vm.name, vm->vm.state, &err);
    else if (live_vm_attach(vm, &err) == 0) {
        vo->res->state = OPERATION_RUNNING;
        vo->op = op_start(vo->core->loop, vo->steps + vo->first, vo->plan->n_steps - vo->first, vo->deadline_ms,
                          &observer, vo);
        if (vo->op == NULL)
            error_set(&err, ERR_DAEMON_OVERLOADED, "out of memory");
    }
    if (vo->op == NULL)
        op_failed(vo, err.code == ERR_OPERATION_CANCELLED ? OP_CANCELLED : OP_FAILED, &err);
}

void vm_op_build_steps(struct vm_op *vo)
{
    vo->call.done = call_done;
    for (unsigned i = 0; i < vo->plan->n_steps; i++) {
        const struct vm_step *s = &vo->plan->steps[i];
        vo->steps[i] = (struct op_step){.name = s->name,
                                        .run = engine_run,
                                        .undo = s->undo != NULL ? engine_undo : NULL,
                                        .cancel = engine_cancel,
                                        .timeout_ms = s->timeout_ms,
                                        .commit = s->commit};
        vo->res->steps[i].name = s->name;
    }
    vo->res->n_steps = vo->plan->n_steps;
}

/* --- from outside --- */

int vm_op_cancel(struct vm_op *vo, struct error *reason)
{
    if (vo->op != NULL)
        return vo->res->step_begun && vo->plan->steps[vo->res->step].no_cancel ? -1 : op_cancel(vo->op, reason);
    if (vo->ran)
        return -1;
    if (!error_is_set(&vo->cancelled))
        error_move(&vo->cancelled, reason);
    return 0;
}

void vm_op_exited(struct vm_op *vo, const struct backend_exit *end)
{
    vo->ended = true;
    vo->end = *end;
    mem_free(vo->end_tail);
    vo->end_tail = end->stderr_tail != NULL ? mem_strdup(end->stderr_tail) : NULL;
    vo->end.stderr_tail = vo->end_tail;
    if (vo->on_exit != NULL) {
        vo->on_exit(vo);
        return;
    }
    if (vo->stop_asked || vo->op == NULL || vo->persisted)
        return;
    struct error reason = ERROR_INIT;
    error_set(&reason, vo->started ? ERR_QEMU_SPAWN_FAILED : ERR_QEMU_QMP_COMMAND_FAILED, "VM %s ended during %s: %s",
              vo->vm->vm.name, vo->plan->kind, end->detail);
    if (vo->end_tail != NULL && *vo->end_tail != '\0')
        error_cause(&reason, "%s", vo->end_tail);
    op_cancel(vo->op, &reason);
    error_done(&reason);
}

void vm_op_park(struct vm_op *vo)
{
    vo->parked = true;
    vm_image_forget(vo);
    provision_park(vo->provision);
    step_stop_wait(vo);
    if (vo->op != NULL)
        op_abandon(vo->op);
    vo->op = NULL;
}

void vm_ops_park(struct core *core)
{
    core->parked = true;
    for (struct vm_op *vo = core->vm_ops; vo != NULL; vo = vo->all_next)
        vm_op_park(vo);
    image_ops_park(core);
    core->n_running = 0;
}

void vm_ops_drop(struct core *core)
{
    for (struct vm_op *vo = core->vm_ops; vo != NULL; vo = vo->all_next) {
        live_vm_detach(vo->vm); /* silences the calls that still hold an operation */
        vo->vm->op = vo->vm->op_next = NULL;
    }
    while (core->vm_ops != NULL)
        vm_op_free(core->vm_ops);
}

static int past_return(const struct operation *op, struct error *err)
{
    error_set(err, ERR_OPERATION_NOT_CANCELLABLE, "operation %s (%s) has passed its point of no return", op->id,
              op->kind);
    error_ctx_str(err, "operation", op->id);
    return -1;
}

int core_operation_cancel(struct core *core, struct operation *op, const char *request_id, struct error *err)
{
    struct error reason = ERROR_INIT;

    (void)request_id;
    if (operation_ended(op)) {
        error_set(err, ERR_OPERATION_NOT_CANCELLABLE, "operation %s (%s) has already ended: %s", op->id, op->kind,
                  operation_state_text(op->pub_state));
        return -1;
    }
    if (op->io != NULL || op->image_name != NULL) {
        error_set(&reason, ERR_OPERATION_CANCELLED, "operation %s (%s of image %s) was cancelled on request", op->id,
                  op->kind, op->image_name);
        int left = op->io != NULL ? image_op_cancel(op->io, &reason) : -1;
        error_done(&reason);
        return left == 0 ? 0 : past_return(op, err);
    }
    struct live_vm *vm = registry_by_id(core, op->vm_id);
    struct vm_op *vo = vm != NULL ? vm->op : NULL;
    if (vo != NULL && vo->res != op)
        for (vo = vm->op_next; vo != NULL && vo->res != op;)
            vo = vo->next;
    error_set(&reason, ERR_OPERATION_CANCELLED, "operation %s (%s of VM %s) was cancelled on request", op->id, op->kind,
              op->vm_name);
    int rc = vo != NULL && vo->res == op ? vm_op_cancel(vo, &reason) : -1;
    error_done(&reason);
    return rc == 0 ? 0 : past_return(op, err);
}
