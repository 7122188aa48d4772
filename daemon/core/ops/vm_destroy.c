/* vm_destroy.c - destroy a VM, from any state.
 *
 * Happy path: kill (whatever runs), remove (what it owns on disk), persist (a tombstone), announce (name and ports are
 * free). Failure modes: the process cannot be ended or a file not removed: the VM stays, stopped or as it was; destroy
 * it again. There is no undo: each step may be done twice. */
#include "base/mem.h"
#include "core/ops/ops.h"

static int destroy_remove(struct vm_op *vo, struct error *err)
{
    return vo->vm->be->remove(vo->vm->bvm, &vo->call, err);
}

static int destroy_persist(struct vm_op *vo, struct error *err)
{
    vm_runtime_stopped(&vo->vm->vm.runtime);
    return vm_op_persist(vo, VM_DESTROYED, vo->plan->kind, true, err);
}

static const struct vm_step destroy_steps[] = {
    {"kill", step_kill, .timeout_ms = 20000},
    {"remove", destroy_remove, .timeout_ms = 120000, .no_cancel = true},
    END_STEPS(destroy_persist),
};

const struct vm_plan vm_destroy_plan = {"vm.destroy", VM_DESTROY, destroy_steps, ARRAY_SIZE(destroy_steps), 180000};
