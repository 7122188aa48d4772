/* vm_create.c - create a VM, and start it when asked.
 *
 * Happy path: reserve (ports, address), build (work directory, disk, seed), persist; or on through the steps of a
 * start. Failure modes: whatever fails, what was built is removed, the name and the ports are free again, and the id
 * answers 410. */
#include "base/mem.h"
#include "core/ops/ops.h"

static int create_build(struct vm_op *vo, struct error *err)
{
    return vo->vm->be->create(vo->vm->bvm, &vo->call, err);
}

static int create_remove(struct vm_op *vo, struct error *err)
{
    return vo->vm->be->remove(vo->vm->bvm, &vo->call, err);
}

static int create_reserve(struct vm_op *vo, struct error *err)
{
    return alloc_vm(vo->vm, true, err); /* claimed when the request came; here the fault matrix finds a step */
}

static int create_persist(struct vm_op *vo, struct error *err)
{
    return vm_op_persist(vo, VM_PREPARED, vo->plan->kind, false, err);
}

static const struct vm_step create_steps[] = {
    {"reserve", create_reserve},
    {"build", create_build, .undo = create_remove, .timeout_ms = 300000},
    END_STEPS(create_persist),
};

static const struct vm_step create_start_steps[] = {
    {"reserve", create_reserve},
    {"build", create_build, .undo = create_remove, .timeout_ms = 300000},
    START_STEPS,
    END_STEPS(step_persist_running),
};

const struct vm_plan vm_create_plan = {"vm.create", VM_CREATE, create_steps, ARRAY_SIZE(create_steps), 600000};
const struct vm_plan vm_create_start_plan = {"vm.create", VM_CREATE, create_start_steps, ARRAY_SIZE(create_start_steps),
                                             600000};
