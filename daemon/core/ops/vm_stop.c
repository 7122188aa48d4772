/* vm_stop.c - stop and kill.
 *
 * stop, happy path: press (the ACPI power button, again every few seconds, for a press before the guest listens is lost)
 * until the guest powers off, persist.  Failure modes: it does not within timeout_s: terminate (SIGTERM), then kill
 * (SIGKILL); the operation says by which method it came to its end.
 * kill: SIGKILL at once; it also comes when another operation holds the VM, after cancelling that. */
#include "base/mem.h"
#include "core/ops/ops.h"

static const struct vm_step stop_steps[] = {
    STOP_STEPS,
    END_STEPS(step_persist_stopped),
};

static const struct vm_step kill_steps[] = {
    {"kill", step_stop_kill, .timeout_ms = 20000},
    END_STEPS(step_persist_stopped),
};

const struct vm_plan vm_stop_plan = {"vm.stop", VM_STOP, stop_steps, ARRAY_SIZE(stop_steps), 60000};
const struct vm_plan vm_kill_plan = {"vm.kill", VM_KILL, kill_steps, ARRAY_SIZE(kill_steps), 60000};
