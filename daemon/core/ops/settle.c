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

void vm_op_settle(struct vm_op *vo, bool cancelled)
{
    struct vm *vm = &vo->vm->vm;
    const struct error *err = &vo->res->error;

    if (vo->started && vo->spawn_failed && !cancelled) {
        live_vm_set_failure(vo->vm, err->code, VM_FAILURE_SPAWN, vo->ended ? &vo->end.status : NULL, err->message,
                            vo->end_tail != NULL ? vo->end_tail
                            : err->n_causes > 0  ? err->causes[0]
                                                 : NULL);
        vm->state = VM_FAILED;
    } else if (vo->ended && (vm->state == VM_RUNNING || vm->state == VM_SUSPENDED)) {
        vm->state = vo->stop_asked ? VM_STOPPED : state_of_end(vo->end.end);
        if (vm->state == VM_FAILED)
            live_vm_set_failure(vo->vm, ERR_LIFECYCLE_OTHER,
                                vo->end.end == BACKEND_END_PANIC    ? VM_FAILURE_PANIC
                                : vo->end.end == BACKEND_END_EXITED ? VM_FAILURE_EXITED
                                                                    : VM_FAILURE_KILLED,
                                &vo->end.status, vo->end.detail, vo->end_tail);
    }
    if (vm->state != VM_RUNNING && vm->state != VM_SUSPENDED) {
        vm_runtime_stopped(&vm->runtime);
        if (vm->conditions[VM_COND_READY].known)
            live_vm_conditions_down(vo->vm, vm->state == VM_FAILED ? "failed" : "stopped");
    }
}
