/* vm_start.c - start a VM.
 *
 * Happy path: reserve (the spec still fits this host, its ports are free), prepare (runtime directory, devices), spawn
 * (the process, paused), greet (its monitor answers), verify (it runs), persist (durable), announce. Failure modes: a
 * port in use, no memory: 409 or 507, nothing happened; QEMU ends early: its last words, the VM is failed; its monitor
 * stays mute: killed at the deadline; cancelled: as before. */
#include "base/clock.h"
#include "base/mem.h"
#include "core/ops/ops.h"

int step_reserve(struct vm_op *vo, struct error *err)
{
    struct live_vm *vm = vo->vm;

    vo->started = true;
    if (vm->be->check(vm->be, &vm->vm.spec, err) < 0)
        return -1;
    return alloc_vm(vm, true, err);
}

int step_prepare(struct vm_op *vo, struct error *err)
{
    vo->started = true;
    return vo->vm->be->prepare(vo->vm->bvm, &vo->call, err);
}

int step_sweep(struct vm_op *vo, struct error *err)
{
    return vo->vm->be->sweep(vo->vm->bvm, &vo->call, err);
}

int step_spawn(struct vm_op *vo, struct error *err)
{
    vo->ended = false;
    return vo->vm->be->spawn(vo->vm->bvm, &vo->call, err);
}

int step_undo_spawn(struct vm_op *vo, struct error *err)
{
    vo->stop_asked = true;
    return vo->vm->be->kill(vo->vm->bvm, &vo->call, err);
}

int step_greet(struct vm_op *vo, struct error *err)
{
    return vo->vm->be->greet(vo->vm->bvm, &vo->call, err);
}

int step_verify(struct vm_op *vo, struct error *err)
{
    live_vm_conditions_booting(vo->vm);
    return vo->vm->be->verify(vo->vm->bvm, &vo->call, err);
}

int step_persist_running(struct vm_op *vo, struct error *err)
{
    live_vm_ready_again(vo->vm); /* the guest was quicker */
    if (vo->vm->vm.runtime.started_at == 0)
        vo->vm->vm.runtime.started_at = clock_wall_ms();
    return vm_op_persist(vo, VM_RUNNING, vo->plan->kind, false, err);
}

/* The same steps stand in a create that starts and in a restart: START_STEPS of ops.h. */
static const struct vm_step start_steps[] = {
    {"reserve", step_reserve, .timeout_ms = 10000},
    {"prepare", step_prepare, .undo = step_sweep, .timeout_ms = 60000},
    {"spawn", step_spawn, .undo = step_undo_spawn, .timeout_ms = 20000},
    {"greet", step_greet, .timeout_ms = 20000},
    {"verify", step_verify, .timeout_ms = 10000},
    {"persist", step_persist_running, .commit = true}, /* the point of no return */
    {"announce", step_announce},
};

const struct vm_plan vm_start_plan = {"vm.start", VM_START, start_steps, ARRAY_SIZE(start_steps), 180000};
