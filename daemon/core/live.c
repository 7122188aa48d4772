/* live.c - what happens to a VM outside its operations: its guest powers off, its QEMU dies, its agent answers. */
#include <stdio.h>
#include <string.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/mem.h"
#include "core/internal.h"
#include "core/ops/ops.h"

void live_vm_set_failure(struct live_vm *vm, enum error_code code, enum vm_failure_reason reason,
                         const struct exit_status *status, const char *detail, const char *stderr_tail)
{
    struct vm_failure *f = &vm->vm.failure;

    vm_failure_done(f);
    f->set = true;
    f->code = code;
    f->reason = reason;
    f->at = clock_wall_ms();
    f->status_known = status != NULL && status->known;
    f->exit_status = f->status_known ? status->code : 0;
    f->signal = f->status_known ? status->signal : 0;
    f->detail = detail != NULL ? mem_strdup(detail) : NULL;
    f->stderr_tail = stderr_tail != NULL ? mem_strdup(stderr_tail) : NULL;
}

static bool has_ssh(const struct live_vm *vm)
{
    return vm->be->exec != NULL && vm->be->has_guest == NULL && vm_ssh_key(&vm->vm) != NULL;
}

void live_vm_conditions_down(struct live_vm *vm, const char *reason)
{
    vm->agent_runs = false;
    vm_condition_set(&vm->vm, VM_COND_READY, false, reason, "");
    vm_condition_set(&vm->vm, VM_COND_AGENT, false, reason, "");
    if (has_ssh(vm))
        vm_condition_set(&vm->vm, VM_COND_SSH, false, reason, "");
    vm->vm.conditions[VM_COND_DISK_IO].known = false;
    live_vm_observed_none(vm, true, reason);
}

/* What was done in a guest without a disk is gone with its boot. */
static void forget_provisioned(struct live_vm *vm)
{
    if (!vm_spec_has_image(&vm->vm.spec))
        vm_provisioned_forget(&vm->vm);
}

void live_vm_conditions_booting(struct live_vm *vm)
{
    vm->agent_runs = false;
    forget_provisioned(vm);
    vm_condition_set(&vm->vm, VM_COND_READY, false, "booting", "");
    vm_condition_set(&vm->vm, VM_COND_AGENT, false, "booting", "");
    vm->vm.conditions[VM_COND_DISK_IO].known = false;
    live_vm_observed_none(vm, false, "booting");
    if (has_ssh(vm))
        vm_condition_set(&vm->vm, VM_COND_SSH, false, "booting", "");
}

/* Which channel's answer makes the VM ready: the one that exec takes by itself. */
static enum vm_condition_type ready_channel(const struct live_vm *vm)
{
    uint16_t port;

    return has_ssh(vm) && vm_ssh_host(&vm->vm, &port) != NULL ? VM_COND_SSH : VM_COND_AGENT;
}

static bool answers_on(const struct live_vm *vm, enum vm_condition_type channel)
{
    const struct vm_condition *c = &vm->vm.conditions[channel];

    return c->known && c->status && (channel != VM_COND_AGENT || vm->agent_runs);
}

void live_vm_ready_again(struct live_vm *vm)
{
    enum vm_condition_type channel = ready_channel(vm);

    if (answers_on(vm, channel))
        vm_condition_set(&vm->vm, VM_COND_READY, true, vm_condition_text(channel), "");
}

void live_vm_ready_by(struct live_vm *vm, struct change *ch)
{
    const struct vm_condition *ready = &vm->vm.conditions[VM_COND_READY];
    enum vm_condition_type channel = ready_channel(vm);
    bool answers = answers_on(vm, channel);

    if (vm->vm.state == VM_RUNNING && !vm->unresponsive && ready->status != answers &&
        (answers || strcmp(ready->reason, vm_condition_text(channel)) != 0))
        live_vm_condition(vm, VM_COND_READY, answers, answers ? vm_condition_text(channel) : "booting", "", ch);
}

static void settled(void *arg, struct error *err)
{
    struct live_vm *vm = arg;

    (void)err;
    vm->settling = false;
    if (vm->op == NULL && vm->vm.state != VM_RUNNING && vm->vm.state != VM_SUSPENDED)
        live_vm_detach(vm);
    vm_waits_check(vm);
    core_vm_unref(vm);
}

static const struct {
    enum error_code code;
    enum vm_failure_reason reason;
    const char *cause;
} ends[] = {
    [BACKEND_END_GUEST_OFF] = {ERR_NONE, 0, "guest powered off"},
    [BACKEND_END_PANIC] = {ERR_LIFECYCLE_OTHER, VM_FAILURE_PANIC, "guest panicked"},
    [BACKEND_END_EXITED] = {ERR_LIFECYCLE_OTHER, VM_FAILURE_EXITED, "QEMU exited"},
    [BACKEND_END_KILLED] = {ERR_LIFECYCLE_OTHER, VM_FAILURE_KILLED, "QEMU was killed"},
    [BACKEND_END_OOM] = {ERR_HOST_INSUFFICIENT_MEMORY, VM_FAILURE_OOM, "QEMU was killed for want of memory"},
};

void live_vm_set_end(struct live_vm *vm, const struct backend_exit *end)
{
    live_vm_set_failure(vm, ends[end->end].code, ends[end->end].reason, &end->status, end->detail, end->stderr_tail);
}

/* The process ended and no operation had asked for it. */
void live_vm_ended(struct live_vm *vm, const struct backend_exit *end)
{
    enum vm_state from = vm->vm.state;

    if (from != VM_RUNNING && from != VM_SUSPENDED)
        return;
    vm_runtime_stopped(&vm->vm.runtime);
    vm->vm.state = end->end == BACKEND_END_GUEST_OFF ? VM_STOPPED : VM_FAILED;
    if (vm->vm.state == VM_FAILED)
        live_vm_set_end(vm, end);
    else
        vm_failure_done(&vm->vm.failure);
    live_vm_conditions_down(vm, vm->vm.state == VM_FAILED ? "failed" : "stopped");
    vm->settling = true;
    struct change *ch = change_new(vm->core);
    policy_ended(vm, ch);
    change_happened(ch);
    change_vm(ch, vm, false);
    change_state_event(ch, vm, NULL, from, ends[end->end].cause);
    change_commit(ch, settled, core_vm_ref(vm));
}

static void on_exited(void *arg, const struct backend_exit *end)
{
    struct live_vm *vm = arg;

    if (vm->op != NULL && !vm->op->persisted)
        vm_op_exited(vm->op, end);
    else
        live_vm_ended(vm, end);
}

/* Conditions are written when they change, unless an operation is about to write the VM anyway. */
bool live_vm_condition(struct live_vm *vm, enum vm_condition_type type, bool status, const char *reason,
                       const char *message, struct change *ch)
{
    json_t *data;

    if (!vm_condition_set(&vm->vm, type, status, reason, message))
        return false;
    data = json_pack("{s:s,s:b,s:s}", "type", vm_condition_text(type), "status", status, "reason", reason);
    if (*message != '\0')
        json_object_set_new(data, "message", json_string(message));
    change_event(ch, "vm.condition_changed", vm, NULL, NULL, data);
    return true;
}

static void condition(struct live_vm *vm, enum vm_condition_type type, bool status, const char *reason,
                      const char *message, struct change *ch)
{
    live_vm_condition(vm, type, status, reason, message, ch);
}

static void write_conditions(struct live_vm *vm, struct change *ch)
{
    change_vm(ch, vm, false);
    change_commit(ch, NULL, NULL);
}

static void on_agent(void *arg, bool answers)
{
    struct live_vm *vm = arg;
    struct change *ch;

    if (vm->gone || vm->vm.conditions[VM_COND_AGENT].status == answers)
        return;
    ch = change_new(vm->core);
    condition(vm, VM_COND_AGENT, answers,
              answers                        ? "ping"
              : vm->vm.state == VM_SUSPENDED ? "suspended"
                                             : "no_answer",
              "", ch);
    if (!answers) {
        vm->agent_runs = false;
        if (ready_channel(vm) == VM_COND_AGENT)
            condition(vm, VM_COND_READY, false, vm->vm.state == VM_SUSPENDED ? "suspended" : "agent_lost", "", ch);
    }
    write_conditions(vm, ch);
}

static void on_agent_runs(void *arg, bool runs, const char *message)
{
    struct live_vm *vm = arg;
    struct change *ch;

    if (vm->gone)
        return;
    vm->agent_runs = runs;
    if (ready_channel(vm) != VM_COND_AGENT || vm->vm.state != VM_RUNNING || vm->unresponsive)
        return;
    ch = change_new(vm->core);
    condition(vm, VM_COND_READY, runs, runs ? "agent" : "agent_refuses", message, ch);
    write_conditions(vm, ch);
}

static void on_ssh(void *arg, bool answers)
{
    struct live_vm *vm = arg;
    struct change *ch;

    if (vm->gone || vm->vm.conditions[VM_COND_SSH].status == answers)
        return;
    ch = change_new(vm->core);
    condition(vm, VM_COND_SSH, answers, answers ? "exec" : "lost", "", ch);
    if (ready_channel(vm) == VM_COND_SSH && (!answers || vm->vm.state == VM_RUNNING))
        condition(vm, VM_COND_READY, answers, answers ? "ssh" : "ssh_lost", "", ch);
    write_conditions(vm, ch);
}

/* A host key was pinned. */
static void on_runtime_changed(void *arg)
{
    struct live_vm *vm = arg;

    if (!vm->gone)
        write_conditions(vm, change_new(vm->core));
}

static void on_guest_reset(void *arg)
{
    struct live_vm *vm = arg;

    if (vm->gone || (vm->op != NULL && !vm->op->persisted && vm->op->plan->verb != VM_PROVISION))
        return;
    struct change *ch = change_new(vm->core);
    change_event(ch, "vm.guest_reset", vm, NULL, NULL, NULL);
    vm->agent_runs = false;
    forget_provisioned(vm);
    condition(vm, VM_COND_READY, false, "booting", "", ch);
    condition(vm, VM_COND_AGENT, false, "booting", "", ch);
    live_vm_observed_none(vm, false, "booting");
    if (has_ssh(vm))
        condition(vm, VM_COND_SSH, false, "booting", "", ch);
    write_conditions(vm, ch);
}

static bool disk_failed(const struct live_vm *vm)
{
    const struct vm_condition *c = &vm->vm.conditions[VM_COND_DISK_IO];

    return c->known && !c->status;
}

/* The guest's write failed and QEMU waits.  It may have been found so, by a vmmd that comes back. */
static void io_failed(struct live_vm *vm, const char *reason)
{
    enum vm_state from = vm->vm.state;
    char message[160];

    if (from != VM_RUNNING && (from != VM_SUSPENDED || disk_failed(vm)))
        return;
    if (strcmp(reason, "enospc") == 0)
        snprintf(message, sizeof(message),
                 "no room for the guest's writes: free some where its disk is, then `vmctl resume %s`", vm->vm.name);
    else
        snprintf(message, sizeof(message), "the guest's disk failed: see to the host's, then `vmctl resume %s`",
                 vm->vm.name);
    LOG_WARN("the guest is paused: its disk failed", "vm", vm->vm.name, "reason", reason);
    struct change *ch = change_new(vm->core);
    change_happened(ch);
    vm->vm.state = VM_SUSPENDED;
    condition(vm, VM_COND_DISK_IO, false, reason, message, ch);
    condition(vm, VM_COND_READY, false, "suspended", "", ch);
    change_vm(ch, vm, false);
    change_state_event(ch, vm, NULL, from, "disk write failed");
    change_commit(ch, NULL, NULL);
}

/* What runs in the guest stands still with it, and would do so until its deadline. */
static void provision_stopped(struct live_vm *vm, const char *reason)
{
    CLEANUP_ERROR struct error err = ERROR_INIT;

    if (vm->op == NULL || vm->op->plan->verb != VM_PROVISION)
        return;
    error_set(&err, strcmp(reason, "enospc") == 0 ? ERR_HOST_DISK_FULL : ERR_IO,
              "the guest of VM %s was paused: a write to its disk failed (%s)", vm->vm.name, reason);
    error_help(&err, "see to the host's disk, `vmctl resume %s`, then provision it again", vm->vm.name);
    vm_op_cancel(vm->op, &err);
}

static void on_io_error(void *arg, const char *reason)
{
    struct live_vm *vm = arg;

    if (vm->gone)
        return;
    if ((vm->op != NULL && !vm->op->persisted) || vm->settling) {
        vm->io_late = reason;
        provision_stopped(vm, reason);
    } else {
        io_failed(vm, reason);
    }
}

void live_vm_told_late(struct live_vm *vm)
{
    const char *reason = TAKE_PTR(vm->io_late);

    if (reason != NULL && !vm->gone)
        io_failed(vm, reason);
}

static void on_unresponsive(void *arg, bool unresponsive)
{
    struct live_vm *vm = arg;

    if (vm->gone || vm->unresponsive == unresponsive)
        return;
    vm->unresponsive = unresponsive;
    LOG_WARN(unresponsive ? "monitor does not answer" : "monitor answers again", "vm", vm->vm.name);
    struct change *ch = change_new(vm->core);
    change_event(ch, unresponsive ? "vm.unresponsive" : "vm.responsive", vm, NULL, NULL, NULL);
    if (unresponsive)
        condition(vm, VM_COND_READY, false, "unresponsive", "", ch);
    else if (answers_on(vm, ready_channel(vm)) && vm->vm.state == VM_RUNNING)
        condition(vm, VM_COND_READY, true, vm_condition_text(ready_channel(vm)), "", ch);
    write_conditions(vm, ch);
}

const struct backend_events live_vm_events = {
    .exited = on_exited,
    .guest_reset = on_guest_reset,
    .agent = on_agent,
    .agent_runs = on_agent_runs,
    .addresses = live_vm_addresses,
    .cloud_init = live_vm_cloud_init,
    .ssh = on_ssh,
    .runtime_changed = on_runtime_changed,
    .io_error = on_io_error,
    .unresponsive = on_unresponsive,
};
