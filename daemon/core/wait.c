/* wait.c - waiting for a VM: driven by what is published, and ended early when what is waited for cannot happen. */
#include <stdio.h>
#include <string.h>

#include "base/mem.h"
#include "base/str.h"
#include "core/internal.h"
#include "core/ops/ops.h"

struct wait_condition {
    bool is_state;
    enum vm_state state;
    enum vm_condition_type type;
    char text[32];
};

struct vm_wait {
    struct vm_wait *next;
    struct live_vm *vm;
    struct wait_condition conditions[VM_WAIT_CONDITIONS_MAX];
    unsigned n;
    int64_t timeout_ms;
    struct timer *timer;
    struct loop_task task;
    struct error result;
    bool over;
    void (*done)(void *arg, struct live_vm *vm, struct error *err);
    void *arg;
};

static int parse(const char *text, struct wait_condition *ret, struct error *err)
{
    static const char *const known[] = {"state:prepared",
                                        "state:running",
                                        "state:suspended",
                                        "state:stopped",
                                        "state:failed",
                                        "state:destroyed",
                                        "ready",
                                        "agent",
                                        "ssh",
                                        "ip",
                                        "cloud_init",
                                        "disk_io",
                                        NULL};

    snprintf(ret->text, sizeof(ret->text), "%s", text);
    ret->is_state = str_prefix(text, "state:");
    if (ret->is_state ? vm_state_parse(text + 6, &ret->state) : vm_condition_parse(text, &ret->type))
        return 0;
    error_set(err, ERR_API_INVALID_FIELD, "\"%.40s\" is nothing to wait for", text);
    error_ctx_str(err, "pointer", "/for");
    error_ctx_str(err, "expected", "state:STATE, ready, agent, ssh, ip, cloud_init or disk_io");
    const char *near = str_nearest(text, known);
    if (near != NULL)
        error_ctx_str(err, "nearest", near);
    return -1;
}

static bool holds(const struct live_vm *vm, const struct wait_condition *c)
{
    return c->is_state ? vm->pub_state == c->state : vm->pub_conditions[c->type];
}

static const struct wait_condition *first_missing(const struct vm_wait *w)
{
    for (unsigned i = 0; i < w->n; i++)
        if (!holds(w->vm, &w->conditions[i]))
            return &w->conditions[i];
    return NULL;
}

/* Nothing is under way and the VM is at rest for good: what is missing will not come by itself. */
static bool impossible(const struct live_vm *vm)
{
    if ((vm->op != NULL && !vm->op->persisted) || vm->op_next != NULL || vm->settling || policy_restart_waits(vm) ||
        boot_start_waits(vm))
        return vm->pub_state == VM_DESTROYED;
    return vm->pub_state == VM_DESTROYED || vm->pub_state == VM_FAILED || vm->pub_state == VM_STOPPED;
}

static void wait_over(struct vm_wait *w)
{
    w->over = true;
    timer_stop(w->timer);
    loop_defer(w->vm->core->loop, &w->task);
}

static void wait_check(struct vm_wait *w)
{
    const struct wait_condition *missing = first_missing(w);

    if (missing == NULL) {
        wait_over(w);
        return;
    }
    if (!impossible(w->vm))
        return;
    error_set(&w->result, ERR_WAIT_IMPOSSIBLE, "VM %s is %s and nothing is under way; %s cannot come", w->vm->vm.name,
              vm_state_text(w->vm->pub_state), missing->text);
    error_ctx_str(&w->result, "vm", w->vm->vm.name);
    error_ctx_str(&w->result, "waited_for", missing->text);
    error_ctx_str(&w->result, "current", vm_state_text(w->vm->pub_state));
    if (w->vm->vm.failure.set && w->vm->vm.failure.detail != NULL)
        error_cause(&w->result, "%s", w->vm->vm.failure.detail);
    wait_over(w);
}

static void wait_run(struct loop_task *task)
{
    struct vm_wait *w = CONTAINER_OF(task, struct vm_wait, task);
    struct live_vm *vm = core_vm_ref(w->vm);
    void (*done)(void *, struct live_vm *, struct error *) = w->done;
    void *arg = w->arg;
    struct error result = ERROR_INIT;

    error_move(&result, &w->result);
    core_vm_unwait(w);
    done(arg, vm, &result);
    error_done(&result);
    core_vm_unref(vm);
}

/* How the condition stands: why it has not come, where that is known. */
static void condition_cause(struct vm_wait *w, const struct vm_condition *c)
{
    if (c->known && !c->status)
        error_cause(&w->result, "%s%s%s", c->reason, *c->message != '\0' ? ": " : "", c->message);
}

static void wait_timeout(void *arg)
{
    struct vm_wait *w = arg;
    const struct wait_condition *missing = first_missing(w);

    error_set(&w->result, ERR_WAIT_TIMED_OUT, "VM %s is %s; %s has not come within %lld s", w->vm->vm.name,
              vm_state_text(w->vm->pub_state), missing != NULL ? missing->text : "it",
              (long long)(w->timeout_ms / 1000));
    error_ctx_str(&w->result, "vm", w->vm->vm.name);
    error_ctx_str(&w->result, "waited_for", missing != NULL ? missing->text : "");
    error_ctx_str(&w->result, "current", vm_state_text(w->vm->pub_state));
    if (missing != NULL && !missing->is_state)
        condition_cause(w, &w->vm->vm.conditions[missing->type]);
    wait_over(w);
}

struct vm_wait *core_vm_wait(struct live_vm *vm, const char *const *conditions, unsigned n, int64_t timeout_ms,
                             void (*done)(void *arg, struct live_vm *vm, struct error *err), void *arg,
                             struct error *err)
{
    struct vm_wait *w = mem_zalloc(sizeof(*w));

    if (w == NULL) {
        error_set(err, ERR_DAEMON_OVERLOADED, "out of memory");
        return NULL;
    }
    for (unsigned i = 0; i < n && i < VM_WAIT_CONDITIONS_MAX; i++, w->n++)
        if (parse(conditions[i], &w->conditions[i], err) < 0) {
            mem_free(w);
            return NULL;
        }
    w->timer = timer_new(vm->core->loop, wait_timeout, w);
    if (w->timer == NULL) {
        mem_free(w);
        error_set(err, ERR_DAEMON_OVERLOADED, "out of memory");
        return NULL;
    }
    w->vm = core_vm_ref(vm);
    w->task.run = wait_run;
    w->timeout_ms = timeout_ms;
    w->done = done;
    w->arg = arg;
    w->next = vm->waits;
    vm->waits = w;
    timer_start(w->timer, timeout_ms, 0);
    wait_check(w);
    return w;
}

void core_vm_unwait(struct vm_wait *w)
{
    if (w == NULL)
        return;
    loop_revoke(w->vm->core->loop, &w->task);
    for (struct vm_wait **p = &w->vm->waits; *p != NULL; p = &(*p)->next)
        if (*p == w) {
            *p = w->next;
            break;
        }
    timer_free(w->timer);
    error_done(&w->result);
    core_vm_unref(w->vm);
    mem_free(w);
}

void vm_waits_check(struct live_vm *vm)
{
    for (struct vm_wait *w = vm->waits; w != NULL; w = w->next)
        if (!w->over)
            wait_check(w);
}

void vm_waits_fail(struct live_vm *vm, const struct error *err)
{
    for (struct vm_wait *w = vm->waits; w != NULL; w = w->next)
        if (!w->over) {
            error_copy(&w->result, err);
            wait_over(w);
        }
}
