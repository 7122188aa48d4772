/* policy.c - what vmmd does to VMs by itself: restart one that ended, destroy one whose time is over.  boot.c has autostart.
 *
 *   unplanned end ─► wanted by spec.restart? ─► restart_at (1 s, 2 s, 4 s … apart) ─► tick ─► vm.start ─► runs
 *                                            └─ five in ten minutes: given up, told by an event and in explain
 *   created_at + ttl_s is over, and the VM is not protected ─► tick ─► vm.destroy
 *
 * What is in mind for a VM (struct vm_policy) is written with the end that it answers, and stays in the row until the start
 * has ended: a daemon that is killed anywhere between loses no restart, and counts the one it was at.
 * A stop, kill or destroy that somebody asks for wins: it ends no VM "unplanned", and any operation takes a restart that
 * waits back.  Failure modes: the start fails: one more end, a longer delay; it cannot begin (no memory, too much under
 * way, a full disk): nothing was tried, so nothing is counted, and it is tried again later.  Runs on the loop. */
#include <stdio.h>
#include <string.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/mem.h"
#include "core/internal.h"
#include "core/ops/ops.h"

enum {
    TICK_MS = 500,
    DELAY_MAX_MS = 300000, /* however often it is doubled */
    REFUSED_DOUBLED = 4,   /* the delay after a start that could not begin: the longest of the usual row */
    TTL_AGAIN_MS = 60000
};

static bool wants_restart(const struct live_vm *vm)
{
    const struct vm *v = &vm->vm;

    if (v->state != VM_FAILED && v->state != VM_STOPPED)
        return false;
    return v->spec.restart == VM_RESTART_ALWAYS || (v->spec.restart == VM_RESTART_ON_FAILURE && v->state == VM_FAILED);
}

static int64_t delay_ms(const struct core *core, int64_t doubled)
{
    int64_t delay = core->config.restart_delay_ms;

    while (doubled-- > 0 && delay < DELAY_MAX_MS)
        delay *= 2;
    return delay < DELAY_MAX_MS ? delay : DELAY_MAX_MS;
}

/* The row keeps the wall's time, for the next daemon; this one goes by a clock that nobody sets. */
static void schedule(struct live_vm *vm, int64_t delay, const char *refused, struct change *ch)
{
    vm->vm.policy.restart_at = clock_wall_ms() + delay;
    vm->restart_due = clock_mono_ms() + delay;
    json_t *data = json_pack("{s:I,s:I}", "delay_ms", (json_int_t)delay, "restart", (json_int_t)vm->vm.policy.restarts);
    if (refused != NULL)
        json_object_set_new(data, "refused", json_string(refused));
    change_event(ch, "vm.restart_scheduled", vm, NULL, NULL, data);
}

static void give_up(struct live_vm *vm, struct change *ch)
{
    struct vm_policy *p = &vm->vm.policy;
    struct vm_failure *f = &vm->vm.failure;
    int64_t window = vm->core->config.restart_window_s;

    p->given_up = true;
    LOG_WARN("restarted too often, left as it is", "vm", vm->vm.name);
    char *detail =
        f->set ? mem_printf("%s; not started again after %lld restarts in %lld s",
                            f->detail != NULL ? f->detail : "it ended", (long long)p->restarts, (long long)window)
               : NULL;
    if (detail != NULL) {
        mem_free(f->detail);
        f->detail = detail;
    }
    change_event(ch, "vm.restart_given_up", vm, NULL, NULL,
                 json_pack("{s:I,s:I}", "restarts", (json_int_t)p->restarts, "window_s", (json_int_t)window));
}

void policy_ended(struct live_vm *vm, struct change *ch)
{
    const struct core *core = vm->core;
    struct vm_policy *p = &vm->vm.policy;
    int64_t now = clock_wall_ms();

    p->restart_at = vm->restart_due = 0;
    if (vm->gone || !wants_restart(vm))
        return;
    if (p->restarts_from > now || now - p->restarts_from > core->config.restart_window_s * 1000) {
        p->restarts = 0;
        p->restarts_from = now;
    }
    if (p->restarts >= core->config.restart_max) {
        give_up(vm, ch);
        return;
    }
    int64_t delay = delay_ms(core, p->restarts++);
    p->given_up = false;
    schedule(vm, delay, NULL, ch);
}

void policy_refused(struct live_vm *vm, const struct error *err)
{
    struct change *ch = vm->gone ? NULL : change_new(vm->core);

    vm->vm.policy.restart_at = vm->restart_due = 0;
    if (vm->gone)
        return;
    if (wants_restart(vm))
        schedule(vm, delay_ms(vm->core, REFUSED_DOUBLED), error_info(err->code)->code, ch);
    change_vm(ch, vm, false);
    change_commit(ch, NULL, NULL);
}

bool policy_overruled(struct live_vm *vm, struct change *ch, const char *by)
{
    struct vm_policy *p = &vm->vm.policy, was = *p;

    if (vm->restart_due != 0)
        change_event(ch, "vm.restart_cancelled", vm, NULL, NULL, json_pack("{s:s}", "by", by));
    p->restart_at = vm->restart_due = 0;
    if (strcmp(by, "vm.start") == 0 || strcmp(by, "vm.stop") == 0 || strcmp(by, "vm.kill") == 0 ||
        strcmp(by, "vm.restart") == 0) { /* somebody looks after it: it begins anew */
        p->restarts = p->restarts_from = 0;
        p->given_up = false;
    }
    if (boot_start_waits(vm))
        p->autostart_at = clock_wall_ms();
    return p->restart_at != was.restart_at || p->restarts != was.restarts || p->given_up != was.given_up ||
           p->autostart_at != was.autostart_at;
}

bool policy_restart_waits(const struct live_vm *vm)
{
    return vm->restart_due != 0 && wants_restart(vm);
}

struct operation *policy_op(struct live_vm *vm, const struct vm_plan *plan, bool queue, const char *why,
                            struct error *err)
{
    struct operation *op = NULL;

    LOG_INFO("begun by policy", "vm", vm->vm.name, "kind", plan->kind, "policy", why);
    vm->restart_due = 0; /* restart_at stays until it is known how this ends */
    if (vm_op_begin(vm, plan, NULL, NULL, queue, &op, err) == 0)
        return op;
    LOG_WARN("not begun", "vm", vm->vm.name, "kind", plan->kind, "policy", why, "error", err->message);
    return NULL;
}

bool policy_startable(const struct live_vm *vm)
{
    return vm->op == NULL && vm->op_next == NULL && !vm->settling && vm_verb_allowed(VM_START, vm->vm.state);
}

static void restart(struct live_vm *vm)
{
    CLEANUP_ERROR struct error err = ERROR_INIT;

    if (wants_restart(vm) && policy_startable(vm)) {
        if (policy_op(vm, &vm_start_plan, false, "restart", &err) == NULL)
            policy_refused(vm, &err);
        return;
    }
    struct change *ch = change_new(vm->core); /* the policy was changed meanwhile */
    policy_overruled(vm, ch, "policy");
    change_vm(ch, vm, false);
    change_commit(ch, NULL, NULL);
    vm_waits_check(vm);
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
    CLEANUP_ERROR struct error err = ERROR_INIT;

    if (time_is_over(vm, wall) && now >= vm->ttl_again && !being_destroyed(vm)) {
        vm->ttl_again = now + TTL_AGAIN_MS; /* should it fail */
        policy_op(vm, &vm_destroy_plan, true, "ttl", &err);
    } else if (vm->restart_due != 0 && now >= vm->restart_due && !vm->settling) {
        restart(vm);
    }
}

static void tick(void *arg)
{
    struct core *core = arg;
    int64_t now = clock_mono_ms(), wall = clock_wall_ms();

    if (core->stopping || core->recovering > 0)
        return;
    for (size_t i = 0; i < core->n_vms; i++) /* nothing that begins here takes a VM out of the list at once */
        if (core->by_order[i]->restart_due != 0 || core->by_order[i]->vm.spec.ttl_s > 0)
            look_at(core->by_order[i], now, wall);
}

void policy_begin(struct core *core)
{
    int64_t now = clock_mono_ms(), wall = clock_wall_ms();

    for (size_t i = 0; i < core->n_vms; i++) {
        struct live_vm *vm = core->by_order[i];
        int64_t left = vm->vm.policy.restart_at - wall;
        if (vm->vm.policy.restart_at == 0 || vm->restart_due != 0)
            continue;
        left = left < 0 ? 0 : left < DELAY_MAX_MS ? left : DELAY_MAX_MS; /* somebody may have set the clock */
        vm->restart_due = now + left;
        LOG_INFO("restart taken over", "vm", vm->vm.name);
    }
    boot_begin(core);
    timer_start(core->policy_timer, TICK_MS, TICK_MS);
}

struct timer *policy_timer_new(struct core *core)
{
    struct timer *timer = timer_new(core->loop, tick, core);

    if (timer != NULL)
        timer_unref(timer);
    return timer;
}
