/* exec.c - see exec.h.
 *
 * Happy path: the backend runs the command; its end is told with how long it took and over what.
 * Failures.  The deadline: the process group is killed, and its end told with timed_out; a channel that does not tell that
 * end is given up after GRACE_MS.  The VM ends: the backend fails the command. */
#include "core/exec.h"

#include <stdio.h>

#include "base/clock.h"
#include "base/limit.h"
#include "base/mem.h"
#include "core/files.h"
#include "core/internal.h"

enum { GRACE_MS = 8000 };

struct core_exec {
    struct live_vm *vm; /* referenced */
    struct exec *exec;
    struct timer *timer;
    int64_t began;
    int64_t timeout_ms;
    bool timed_out;
    enum exec_via via;
    struct core_exec_events events;
    void *arg;
};

static int refuse_state(const struct live_vm *vm, struct error *err)
{
    static const char *const expected[] = {"running", NULL};

    error_set(err, ERR_VM_INVALID_STATE, "VM %s is %s; its guest is reached while it is running", vm->vm.name,
              vm_state_text(vm->pub_state));
    error_help(err,
               vm->pub_state == VM_SUSPENDED ? "resume it with `vmctl resume %s`" : "start it with `vmctl start %s`",
               vm->vm.name);
    error_ctx_str(err, "vm", vm->vm.name);
    error_ctx_str(err, "current", vm_state_text(vm->pub_state));
    error_ctx_list(err, "expected", expected);
    return -1;
}

int core_guest_check(const struct live_vm *vm, struct error *err)
{
    if (vm->be->exec != NULL && (vm->be->has_guest == NULL || vm->be->has_guest(&vm->vm)))
        return 0;
    return error_set(err, ERR_BACKEND_NOT_AVAILABLE, "backend %s runs no commands", vm->be->name);
}

static int check(const struct live_vm *vm, struct error *err)
{
    const struct core_config *config = &vm->core->config;

    if (core_guest_check(vm, err) < 0)
        return -1;
    if (vm->vm.state != VM_RUNNING || vm->bvm == NULL)
        return refuse_state(vm, err);
    if (vm->core->stopping)
        return error_set(err, ERR_DAEMON_SHUTTING_DOWN, "vmmd is stopping");
    if (vm->n_execs >= config->max_execs_per_vm)
        return limit_refuse(LIMIT_VM_EXECS, config->max_execs_per_vm, err, "VM %s runs %u commands already",
                            vm->vm.name, vm->n_execs);
    if (vm->core->n_execs >= config->max_execs)
        return limit_refuse(LIMIT_EXECS, config->max_execs, err, "%u commands run in guests already",
                            vm->core->n_execs);
    return 0;
}

static void on_output(void *arg, bool is_stderr, const char *data, size_t len)
{
    struct core_exec *x = arg;

    x->events.output(x->arg, is_stderr, data, len);
}

static void tell_end(struct core_exec *x, const struct exec_end *end, struct error *err)
{
    struct core_exec_end result = {
        .timed_out = x->timed_out,
        .via = x->via,
        .duration_ms = clock_mono_ms() - x->began,
    };

    timer_stop(x->timer);
    if (end != NULL)
        result.end = *end;
    else
        result.end.exit_code = -1;
    x->events.ended(x->arg, end != NULL || x->timed_out ? &result : NULL, err);
}

static void on_ended(void *arg, const struct exec_end *end, struct error *err)
{
    struct core_exec *x = arg;

    exec_free(TAKE_PTR(x->exec));
    tell_end(x, end, err);
}

static void deadline(void *arg)
{
    struct core_exec *x = arg;
    CLEANUP_ERROR struct error none = ERROR_INIT;

    if (!x->timed_out) {
        x->timed_out = true;
        exec_kill(x->exec);
        timer_start(x->timer, GRACE_MS, 0);
        return;
    }
    exec_free(TAKE_PTR(x->exec));
    tell_end(x, NULL, &none);
}

struct core_exec *core_exec_new(struct live_vm *vm, const struct exec_request *req, int64_t timeout_ms,
                                const struct core_exec_events *events, void *arg, struct error *err)
{
    static const struct exec_events own = {.output = on_output, .ended = on_ended};
    struct exec_request request = *req;
    struct core_exec *x;

    if (check(vm, err) < 0)
        return NULL;
    x = mem_zalloc(sizeof(*x));
    if (x != NULL)
        x->timer = timer_new(vm->core->loop, deadline, x);
    if (x == NULL || x->timer == NULL) {
        mem_free(x);
        error_set(err, ERR_DAEMON_OVERLOADED, "out of memory");
        return NULL;
    }
    request.default_user = vm_ssh_user(&vm->vm);
    x->events = *events;
    x->arg = arg;
    x->began = clock_mono_ms();
    x->timeout_ms = timeout_ms;
    x->exec = vm->be->exec(vm->bvm, &request, &own, x, err);
    if (x->exec == NULL) {
        timer_free(x->timer);
        mem_free(x);
        return NULL;
    }
    x->via = x->exec->via;
    x->vm = core_vm_ref(vm);
    vm->n_execs++;
    vm->core->n_execs++;
    vm->core->execs_total++;
    timer_start(x->timer, timeout_ms, 0);
    return x;
}

enum exec_via core_exec_via(const struct core_exec *x)
{
    return x->via;
}

void core_exec_pause(struct core_exec *x, bool paused)
{
    if (x->exec != NULL)
        exec_pause(x->exec, paused);
}

void core_exec_free(struct core_exec *x)
{
    if (x == NULL)
        return;
    exec_free(x->exec);
    timer_free(x->timer);
    x->vm->n_execs--;
    x->vm->core->n_execs--;
    core_vm_unref(x->vm);
    mem_free(x);
}

void core_exec_stats(const struct core *core, struct core_exec_stats *ret)
{
    *ret = (struct core_exec_stats){.now = core->n_execs, .total = core->execs_total};
    for (size_t i = 0; i < core->n_vms; i++)
        if (core->by_order[i]->n_execs > ret->most)
            ret->most = core->by_order[i]->n_execs;
}

void core_vm_ssh(const struct live_vm *vm, struct core_ssh *ret)
{
    *ret = (struct core_ssh){.user = vm_ssh_user(&vm->vm), .key_path = vm_ssh_key(&vm->vm)};
    ret->host = vm_ssh_host(&vm->vm, &ret->port);
    ret->host_key = vm->vm.runtime.ssh_host_key;
    if (ret->host_key != NULL && vm->vm.runtime.work_dir != NULL)
        snprintf(ret->known_hosts, sizeof(ret->known_hosts), "%s/known_hosts", vm->vm.runtime.work_dir);
}

struct files *core_files(struct live_vm *vm, const struct files_request *req, const struct files_events *events,
                         void *arg, struct error *err)
{
    if (vm->be->guest_files == NULL) {
        error_set(err, ERR_BACKEND_NOT_AVAILABLE, "backend %s has no files of guests", vm->be->name);
        return NULL;
    }
    if (vm->vm.state != VM_RUNNING || vm->bvm == NULL) {
        refuse_state(vm, err);
        return NULL;
    }
    return vm->be->guest_files(vm->bvm, req, events, arg, err);
}
