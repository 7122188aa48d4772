/* vm_power.c - what is asked of a VM that runs: reset, suspend, resume, restart.
 *
 * Happy path: one command to the backend, then persist.  Failure modes: the monitor refuses or stays mute: the VM stays
 * as it was, the operation says why; the process dies meanwhile: the operation fails and the VM is settled by how it
 * ended. */
#include "base/mem.h"
#include "core/ops/ops.h"

static int power_reset(struct vm_op *vo, struct error *err)
{
    live_vm_conditions_booting(vo->vm);
    return vo->vm->be->reset(vo->vm->bvm, &vo->call, err);
}

static int power_suspend(struct vm_op *vo, struct error *err)
{
    return vo->vm->be->suspend(vo->vm->bvm, &vo->call, err);
}

static int power_resume(struct vm_op *vo, struct error *err)
{
    return vo->vm->be->resume(vo->vm->bvm, &vo->call, err);
}

/* The guest goes on where the end could not be written. */
static int undo_suspend(struct vm_op *vo, struct error *err)
{
    live_vm_ready_again(vo->vm);
    return power_resume(vo, err);
}

static int undo_resume(struct vm_op *vo, struct error *err)
{
    vm_condition_set(&vo->vm->vm, VM_COND_READY, false, "suspended", "");
    return power_suspend(vo, err);
}

static int persist_reset(struct vm_op *vo, struct error *err)
{
    return vm_op_persist(vo, VM_RUNNING, vo->plan->kind, false, err);
}

static int persist_suspended(struct vm_op *vo, struct error *err)
{
    vm_condition_set(&vo->vm->vm, VM_COND_READY, false, "suspended", "");
    return vm_op_persist(vo, VM_SUSPENDED, vo->plan->kind, false, err);
}

static int persist_resumed(struct vm_op *vo, struct error *err)
{
    struct vm *vm = &vo->vm->vm;

    if (vm->conditions[VM_COND_DISK_IO].known)
        vm_condition_set(vm, VM_COND_DISK_IO, true, "ok", "");
    live_vm_ready_again(vo->vm);
    return vm_op_persist(vo, VM_RUNNING, vo->plan->kind, false, err);
}

/* Between the two halves of a restart: the first process is gone, nothing of it remains. */
static int restart_turn(struct vm_op *vo, struct error *err)
{
    enum vm_state from = vo->vm->vm.state;

    vo->stop_asked = false;
    vo->ended = false;
    vm_runtime_stopped(&vo->vm->vm.runtime);
    live_vm_conditions_down(vo->vm, "stopped");
    vo->vm->vm.state = VM_STOPPED;
    if (from !=
        VM_STOPPED) { /* a daemon that finds this carries the restart on; one that does not finds the process gone */
        struct change *ch = change_new(vo->core);
        change_happened(ch);
        change_vm(ch, vo->vm, false);
        change_state_event(ch, vo->vm, vo->res, from, vo->plan->kind);
        change_commit(ch, NULL, NULL);
    }
    return memory_promise(vo, err) < 0 ? -1 : step_reserve(vo, err);
}

static const struct vm_step reset_steps[] = {{"reset", power_reset, .timeout_ms = 15000}, END_STEPS(persist_reset)};
static const struct vm_step suspend_steps[] = {{"suspend", power_suspend, .undo = undo_suspend, .timeout_ms = 15000},
                                               END_STEPS(persist_suspended)};
static const struct vm_step resume_steps[] = {{"resume", power_resume, .undo = undo_resume, .timeout_ms = 15000},
                                              END_STEPS(persist_resumed)};
static const struct vm_step restart_steps[] = {
    STOP_STEPS,
    {"reserve", restart_turn, .timeout_ms = 10000},
    START_STEPS,
    END_STEPS(step_persist_running),
};

const struct vm_plan vm_reset_plan = {"vm.reset", VM_RESET, reset_steps, ARRAY_SIZE(reset_steps), 60000};
const struct vm_plan vm_suspend_plan = {"vm.suspend", VM_SUSPEND, suspend_steps, ARRAY_SIZE(suspend_steps), 60000};
const struct vm_plan vm_resume_plan = {"vm.resume", VM_RESUME, resume_steps, ARRAY_SIZE(resume_steps), 60000};
const struct vm_plan vm_restart_plan = {"vm.restart", VM_RESTART, restart_steps, ARRAY_SIZE(restart_steps), 240000};
