/* vm_start.c - start a VM.
 *
 * Happy path: reserve (the spec still fits this host, its ports are free), prepare (runtime directory, devices), spawn (the
 * process, paused), greet (its monitor answers), verify (it runs), persist (durable), announce.
 * Failure modes: a port in use, no memory: 409 or 507, nothing happened; QEMU ends early: its last words, the VM is failed;
 * its monitor stays mute: killed at the deadline; cancelled: as before. */
#include "base/mem.h"
#include "core/ops/ops.h"

static const struct vm_step start_steps[] = {
    {"reserve", step_reserve, .timeout_ms = 10000},
    START_STEPS,
    END_STEPS(step_persist_running),
};

const struct vm_plan vm_start_plan = {"vm.start", VM_START, start_steps, ARRAY_SIZE(start_steps), 180000};
