/* settle.c - the ends that all operations share: the announcement, and what the VM is when one did not come to its end.
 */
#include "core/ops/ops.h"

/* What could not be told while the operation held the VM: the agent may have answered, the process may have died. */
int step_announce(struct vm_op *vo, struct error *err)
{
    (void)err;
    if (vo->ended && !vo->stop_asked && (vo->vm->vm.state == VM_RUNNING || vo->vm->vm.state == VM_SUSPENDED))
        live_vm_ended(vo->vm, &vo->end);
    return 0;
}

static enum vm_state state_of_end(enum backend_end end)
{
    return end == BACKEND_END_GUEST_OFF ? VM_STOPPED : VM_FAILED;
}

/* The process ended during the start, was ended as mute, or was never there. */
static void set_start_failure(struct vm_op *vo)
{
    const struct error *err = &vo->res->error;
    struct live_vm *vm = vo->vm;
    struct backend_exit end = {0};

    if (vo->ended)
        end = vo->end;
    else if (vm->bvm != NULL && vm->be->failed_start != NULL)
        vm->be->failed_start(vm->bvm, &end);
    else if (err->n_causes > 0)
        end.stderr_tail = err->causes[0];
    live_vm_set_failure(vm, err->code, end.end == BACKEND_END_OOM ? VM_FAILURE_OOM : VM_FAILURE_SPAWN, &end.status,
                        err->message, end.stderr_tail);
}

void vm_op_settle(struct vm_op *vo, bool cancelled)
{
    struct vm *vm = &vo->vm->vm;

    if (vo->started && vo->spawn_failed && !cancelled) {
        set_start_failure(vo);
        vm->state = VM_FAILED;
    } else if (vo->ended && (vm->state == VM_RUNNING || vm->state == VM_SUSPENDED)) {
        vm->state = vo->stop_asked ? VM_STOPPED : state_of_end(vo->end.end);
        if (vm->state == VM_FAILED)
            live_vm_set_end(vo->vm, &vo->end);
    }
    if (vm->state != VM_RUNNING && vm->state != VM_SUSPENDED) {
        vm_runtime_stopped(&vm->runtime);
        if (vm->conditions[VM_COND_READY].known)
            live_vm_conditions_down(vo->vm, vm->state == VM_FAILED ? "failed" : "stopped");
    }
}
