/* policy.c - what vmmd does to VMs by itself: restart one that ended, start some with the host, end those whose time is over.
 *
 *   unplanned end ─► wanted by spec.restart? ─► restart_at (1 s, 2 s, 4 s … apart) ─► tick ─► vm.start
 *                                            └─ five in ten minutes: given up, told by an event
 *   first start after a boot of the host ─► vm.start of each VM with spec.autostart, in order of names
 *   created_at + ttl_s is over, and the VM is not protected ─► tick ─► vm.destroy
 *
 * A stop, kill or destroy that somebody asks for wins: it ends no VM "unplanned", and any operation takes a restart that
 * waits back.  Runs on the loop; what it begins are operations like any other. */
#include <stdio.h>
#include <string.h>

#include "base/clock.h"
#include "base/fd.h"
#include "base/log.h"
#include "base/mem.h"
#include "core/internal.h"
#include "core/ops/ops.h"

enum {
    TICK_MS = 500,
    FIRST_DELAY_MS = 1000,
    RESTARTS_MAX = 5,
    RESTARTS_WINDOW_MS = 600000,
    TTL_AGAIN_MS = 60000,
    REFUSED_AGAIN_MS = 10000
};

static bool wants_restart(const struct live_vm *vm)
{
    const struct vm *v = &vm->vm;

    if (v->state != VM_FAILED && v->state != VM_STOPPED)
        return false;
    return v->spec.restart == VM_RESTART_ALWAYS || (v->spec.restart == VM_RESTART_ON_FAILURE && v->state == VM_FAILED);
}

void policy_ended(struct live_vm *vm)
{
    struct core *core = vm->core;
    int64_t now = clock_mono_ms();

    if (vm->gone || core->stopping || !wants_restart(vm))
        return;
    if (now - vm->last_restart > RESTARTS_WINDOW_MS)
        vm->restarts = 0;
    struct change *ch = change_new(core);
    if (vm->restarts >= RESTARTS_MAX) {
        LOG_WARN("restarted too often, left as it is", "vm", vm->vm.name);
        change_event(ch, "vm.restart_given_up", vm, NULL, NULL, json_pack("{s:i}", "restarts", (int)vm->restarts));
    } else {
        int64_t delay = (int64_t)FIRST_DELAY_MS << vm->restarts;
        vm->restart_at = now + delay;
        vm->last_restart = now + delay;
        change_event(ch, "vm.restart_scheduled", vm, NULL, NULL,
                     json_pack("{s:I,s:i}", "delay_ms", (json_int_t)delay, "restart", (int)++vm->restarts));
    }
    change_commit(ch, NULL, NULL);
}

void policy_refused(struct live_vm *vm, const struct vm_plan *plan)
{
    if (plan->verb == VM_START && !vm->gone)
        vm->restart_at = clock_mono_ms() + REFUSED_AGAIN_MS;
}

void policy_overruled(struct live_vm *vm)
{
    vm->restart_at = 0;
}

bool policy_restart_waits(const struct live_vm *vm)
{
    return vm->restart_at != 0;
}

static void begin(struct live_vm *vm, const struct vm_plan *plan, bool queue, const char *why)
{
    CLEANUP_ERROR struct error err = ERROR_INIT;
    struct operation *op;

    LOG_INFO("begun by policy", "vm", vm->vm.name, "kind", plan->kind, "policy", why);
    if (vm_op_begin(vm, plan, NULL, NULL, queue, &op, &err) < 0)
        LOG_WARN("not begun", "vm", vm->vm.name, "kind", plan->kind, "policy", why, "error", err.message);
    else
        vm_op_by_policy(vm);
}

static bool startable(const struct live_vm *vm)
{
    return vm->op == NULL && vm->op_next == NULL && !vm->settling && vm_verb_allowed(VM_START, vm->vm.state);
}

static bool time_is_over(const struct live_vm *vm, int64_t wall)
{
    const struct vm_spec *spec = &vm->vm.spec;

    return spec->ttl_s > 0 && !spec->protect && wall >= vm->vm.created_at + spec->ttl_s * 1000;
}

static bool being_destroyed(const struct live_vm *vm)
{
    for (const struct vm_op *vo = vm->op; vo != NULL; vo = vo == vm->op ? vm->op_next : vo->next)
        if (vo->plan->verb == VM_DESTROY)
            return true;
    return false;
}

static void look_at(struct live_vm *vm, int64_t now, int64_t wall)
{
    if (time_is_over(vm, wall) && now >= vm->ttl_again && !being_destroyed(vm)) {
        vm->ttl_again = now + TTL_AGAIN_MS; /* should it fail */
        begin(vm, &vm_destroy_plan, true, "ttl");
    } else if (vm->restart_at != 0 && now >= vm->restart_at && !vm->settling) {
        vm->restart_at = 0;
        if (startable(vm))
            begin(vm, &vm_start_plan, false, "restart");
        vm_waits_check(vm);
    }
}

static void tick(void *arg)
{
    struct core *core = arg;
    int64_t now = clock_mono_ms(), wall = clock_wall_ms();

    if (core->stopping || core->recovering > 0)
        return;
    for (size_t i = 0; i < core->n_vms; i++) /* nothing that begins here takes a VM out of the list at once */
        if (core->by_order[i]->restart_at != 0 || core->by_order[i]->vm.spec.ttl_s > 0)
            look_at(core->by_order[i], now, wall);
}

/* Whether the host has been booted since the last start of vmmd; remembers this boot. */
static bool host_was_booted(struct core *core)
{
    CLEANUP_ERROR struct error err = ERROR_INIT;
    const char *dir = core->config.data_dir;
    CLEANUP_FREE char *path = dir != NULL ? mem_printf("%s/boot_id", dir) : NULL;
    CLEANUP_FREE char *before = NULL;
    char now[37];
    size_t len;

    if (path == NULL)
        return false;
    proc_boot_id(now);
    if (file_read(path, 64, &before, &len, &err) == 0 && strcmp(before, now) == 0)
        return false;
    error_done(&err);
    if (file_write(path, now, strlen(now), 0600, &err) < 0) /* an autostart too many at the next start is no harm */
        LOG_WARN("this boot of the host not remembered", "path", path, "error", err.message);
    return true;
}

void policy_begin(struct core *core)
{
    if (host_was_booted(core))
        for (size_t i = 0; i < core->n_vms; i++)
            if (core->by_order[i]->vm.spec.autostart && startable(core->by_order[i]))
                begin(core->by_order[i], &vm_start_plan, false, "autostart");
    timer_start(core->policy_timer, TICK_MS, TICK_MS);
}

struct timer *policy_timer_new(struct core *core)
{
    struct timer *timer = timer_new(core->loop, tick, core);

    if (timer != NULL)
        timer_unref(timer);
    return timer;
}
