/* exec.c - see exec.h.
 *
 * Happy path: the backend runs the command; its end is told with how long it took and over what.
 * The address of a guest on a bridge is not known at once: it is waited for first, as a part of the command's time.
 * Failures.  No address comes: network::ip_discovery_timeout.  The deadline: the process group is killed, and its end told with timed_out; a channel that does not tell that
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
    struct vm_wait *wait;         /* for an address */
    struct exec_request *request; /* kept while it is waited for */
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

/* --- the address of a guest on a bridge --- */

bool core_address_missing(const struct live_vm *vm, enum exec_via via)
{
    const struct vm_condition *agent = &vm->vm.conditions[VM_COND_AGENT];
    uint16_t port;

    return vm->be->exec != NULL && vm->vm.state == VM_RUNNING && vm->bvm != NULL &&
           (via == EXEC_SSH || (via == EXEC_AUTO && !(agent->known && agent->status))) &&
           vm->vm.spec.network.type == VM_NETWORK_TAP && vm_ssh_key(&vm->vm) != NULL &&
           vm_ssh_host(&vm->vm, &port) == NULL;
}

void core_address_refuse(const struct live_vm *vm, int64_t waited_ms, struct error *err)
{
    const struct vm_condition *agent = &vm->vm.conditions[VM_COND_AGENT];
    const char *bridge = vm->vm.spec.network.bridge;

    error_done(err);
    error_set(err, ERR_NETWORK_IP_DISCOVERY_TIMEOUT, "no address of VM %s has become known within %lld ms", vm->vm.name,
              (long long)waited_ms);
    error_cause(err, "guest agent: %s", agent->known && agent->status ? "answers, and tells none" : "does not answer");
    error_cause(err, "DHCP leases (lease_files of vmmd.conf): none for its MAC %s", vm->vm.runtime.mac_addr);
    error_cause(err, "neighbours on bridge %s: none with that MAC", bridge != NULL ? bridge : "");
    error_ctx_str(err, "vm", vm->vm.name);
    error_ctx_int(err, "waited_ms", waited_ms);
}

static int begin(struct core_exec *x, const struct exec_request *req, struct error *err)
{
    static const struct exec_events own = {.output = on_output, .ended = on_ended};
    int64_t left = x->timeout_ms - (clock_mono_ms() - x->began);

    x->exec = x->vm->be->exec(x->vm->bvm, req, &own, x, err);
    if (x->exec == NULL)
        return -1;
    x->via = x->exec->via;
    timer_start(x->timer, left > 0 ? left : 0, 0);
    return 0;
}

static void address_came(void *arg, struct live_vm *vm, struct error *err)
{
    struct core_exec *x = arg;
    CLEANUP_FREE struct exec_request *request = TAKE_PTR(x->request);
    int64_t waited = clock_mono_ms() - x->began;

    x->wait = NULL;
    if (err->code == ERR_WAIT_TIMED_OUT && core_address_missing(vm, request->via))
        core_address_refuse(vm, waited, err);
    else if (err->code == ERR_WAIT_TIMED_OUT || err->code == ERR_WAIT_IMPOSSIBLE)
        error_done(err); /* an agent has come, or the VM has ended */
    if (!error_is_set(err) && (vm->vm.state != VM_RUNNING || vm->bvm == NULL))
        refuse_state(vm, err);
    if (error_is_set(err) || begin(x, request, err) < 0)
        tell_end(x, NULL, err);
}

static int await_address(struct core_exec *x, const struct exec_request *req, struct error *err)
{
    static const char *const ip[] = {"ip"};
    int64_t most = x->timeout_ms < ADDRESS_WAIT_MS ? x->timeout_ms : ADDRESS_WAIT_MS;

    x->via = EXEC_SSH;
    x->request = exec_request_copy(req);
    if (x->request == NULL)
        return error_set(err, ERR_DAEMON_OVERLOADED, "out of memory");
    x->wait = core_vm_wait(x->vm, ip, 1, most, address_came, x, err);
    return x->wait != NULL ? 0 : -1;
}

/* --- the command --- */

struct core_exec *core_exec_new(struct live_vm *vm, const struct exec_request *req, int64_t timeout_ms,
                                const struct core_exec_events *events, void *arg, struct error *err)
{
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
    x->vm = core_vm_ref(vm);
    vm->n_execs++;
    vm->core->n_execs++;
    if ((core_address_missing(vm, req->via) ? await_address(x, &request, err) : begin(x, &request, err)) < 0) {
        core_exec_free(x);
        return NULL;
    }
    vm->core->execs_total++;
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
    core_vm_unwait(x->wait);
    mem_free(x->request);
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
