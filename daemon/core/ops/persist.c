/* persist.c - the commit step of every table: the VM in its new state and the operation's success become durable
 * together.
 *
 * Happy path: rendered, written, published; the VM is let go after the announcement.  Failure modes: the disk refuses:
 * all is as when the step began, the operation fails and is undone. */
#include "base/clock.h"
#include "base/mem.h"
#include "core/ops/ops.h"

/* The disk refused the end: all is as when the step began. */
static void persist_back(struct vm_op *vo)
{
    struct vm *vm = &vo->vm->vm;
    struct operation *res = vo->res;

    vm->state = vo->before;
    vm->has_operation = true;
    if (vo->failure.set) {
        vm_failure_done(&vm->failure);
        vm->failure = vo->failure;
        vo->failure = (struct vm_failure){0};
    }
    for (unsigned i = res->step; i < res->n_steps; i++)
        res->steps[i].state = i == res->step ? OP_STEP_RUNNING : OP_STEP_PENDING;
    res->state = OPERATION_RUNNING;
    res->finished_at = 0;
    res->method = NULL;
    res->dirty = true;
    json_decref(res->result);
    res->result = NULL;
}

static void persist_durable(void *arg, struct error *err)
{
    struct vm_op *vo = arg;
    struct live_vm *vm = vo->vm;

    if (error_is_set(err)) {
        persist_back(vo);
        vm_op_resume(vo, err);
        return;
    }
    vm_failure_done(&vo->failure);
    vo->persisted = true;
    if (vm->vm.state == VM_DESTROYED) { /* the name and the ports are free at once */
        alloc_release(vm);
        registry_remove(vm);
    }
    vm_op_log_finish(vo);
    operation_publish_end(vo->res);
    vm_waits_check(vm);
    vm_op_resume(vo, NULL);
}

int vm_op_persist(struct vm_op *vo, enum vm_state to, const char *cause, bool destroyed, struct error *err)
{
    struct live_vm *vm = vo->vm;

    (void)err;
    vo->before = vm->vm.state;
    vm->vm.state = to;
    vm->vm.has_operation = false;
    vm->vm.policy.restart_at = 0;
    if (to == VM_RUNNING || to == VM_STOPPED) {
        vo->failure = vm->vm.failure;
        vm->vm.failure = (struct vm_failure){0};
    }
    vo->res->state = OPERATION_SUCCEEDED;
    vo->res->method = vo->plan->verb == VM_RESTART ? NULL : vo->method;
    vo->res->finished_at = clock_wall_ms();
    for (unsigned i = 0; i < vo->res->n_steps; i++)
        vo->res->steps[i].state = OP_STEP_DONE;
    struct change *ch = change_new(vo->core);
    change_frees(ch, vo->plan->verb);
    change_vm(ch, vm, destroyed);
    vo->res->result = vm_json(&vm->vm);
    change_operation(ch, vo->res);
    if (destroyed)
        change_ports(ch, vm, true);
    change_state_event(ch, vm, vo->res, vo->before, cause);
    for (unsigned i = vo->res->step; i < vo->res->n_steps; i++) /* they follow at once and change nothing any more */
        change_event(ch, "operation.step", vm, vo->res, NULL,
                     json_pack("{s:s,s:s,s:s,s:i}", "kind", vo->res->kind, "step", vo->res->steps[i].name, "state",
                               "done", "ms", 0));
    change_event(ch, "operation.finished", vm, vo->res, NULL, vm_op_finish_data(vo->res));
    change_commit(ch, persist_durable, vo);
    return OP_WAIT;
}
