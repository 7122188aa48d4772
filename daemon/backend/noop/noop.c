/* noop.c - the backend that runs nothing.
 *
 * Happy path: each verb notes what there would be and is done at once; what a guest would do (power off, answer as an
 * agent) comes as an event on a later turn.
 * Failure modes: those that the labels ask for, injected before the step: after the delay, if there is one.  A verb
 * that needs a process and finds none fails as a monitor would. */
#include "backend/noop/noop.h"

#include <signal.h>
#include <stdio.h>
#include <string.h>

#include "backend/noop/guest.h"
#include "base/clock.h"
#include "base/mem.h"
#include "loop/timer.h"

enum { EXIT_AFTER_MS = 50, DELAY_MAX_MS = 3600000 };

struct noop {
    struct backend be;
    struct loop *loop;
};

struct backend_vm {
    struct noop *noop;
    struct vm *vm;
    const struct backend_events *events;
    void *arg;
    bool alive;      /* there would be a process */
    bool exit_armed; /* it ends by itself, once per process */

    struct backend_call *call; /* a step that is delayed */
    const char *kind, *step;
    struct timer *delay;
    struct loop_task cancel_task;

    struct noop_exec *execs;
    struct timer *exit_timer;
    bool agent_lost, agent_up, off; /* to be told */
    struct loop_task event_task;
};

/* --- labels --- */

static const char *label(const struct backend_vm *b, const char *key)
{
    return vm_label_get(&b->vm->labels, key);
}

static bool label_is(const struct backend_vm *b, const char *key, const char *value)
{
    const char *found = label(b, key);

    return found != NULL && strcmp(found, value) == 0;
}

static int64_t label_ms(const struct backend_vm *b, const char *key, int64_t missing)
{
    const char *text = label(b, key);
    long long ms = text != NULL ? strtoll(text, NULL, 10) : missing;

    return ms < 0 ? 0 : ms > DELAY_MAX_MS ? DELAY_MAX_MS : ms;
}

/* Whether the comma-separated list names the step, alone or with its kind. */
static bool names_step(const char *list, const char *kind, const char *step)
{
    size_t kind_len = strlen(kind), step_len = strlen(step);

    for (const char *item = list; item != NULL; item = strchr(item, ',')) {
        item += *item == ',';
        size_t len = strcspn(item, ",");
        if (len == step_len && strncmp(item, step, len) == 0)
            return true;
        if (len == kind_len + 1 + step_len && strncmp(item, kind, kind_len) == 0 && item[kind_len] == ':' &&
            strncmp(item + kind_len + 1, step, step_len) == 0)
            return true;
    }
    return false;
}

static int64_t delay_of(const struct backend_vm *b, const char *kind, const char *step)
{
    char key[128];

    snprintf(key, sizeof(key), "noop.delay_ms.%s:%s", kind, step);
    if (label(b, key) == NULL)
        snprintf(key, sizeof(key), "noop.delay_ms.%s", step);
    return label_ms(b, key, 0);
}

/* --- events, on a later turn --- */

static bool parse_end(const char *how, struct backend_exit *ret)
{
    int n = 0;

    *ret = (struct backend_exit){.end = BACKEND_END_GUEST_OFF, .status = {.known = true}, .stderr_tail = ""};
    snprintf(ret->detail, sizeof(ret->detail), "the guest powered off");
    if (strcmp(how, "guest-off") == 0)
        return true;
    if (strcmp(how, "panic") == 0) {
        ret->end = BACKEND_END_PANIC;
        snprintf(ret->detail, sizeof(ret->detail), "the guest panicked");
        return true;
    }
    if (strcmp(how, "oom") == 0) {
        ret->end = BACKEND_END_OOM;
        ret->status = (struct exit_status){.known = true, .code = -1, .signal = SIGKILL};
        snprintf(ret->detail, sizeof(ret->detail), "the process was killed by the kernel for want of memory (OOM)");
        return true;
    }
    if (sscanf(how, "exited:%d", &n) == 1 && n >= 0 && n <= 255) {
        ret->end = BACKEND_END_EXITED;
        ret->status.code = n;
        snprintf(ret->detail, sizeof(ret->detail), "the process exited with status %d", n);
        return true;
    }
    if (sscanf(how, "killed:%d", &n) == 1 && n > 0 && n <= 64) {
        ret->end = BACKEND_END_KILLED;
        ret->status.code = -1;
        ret->status.signal = n;
        snprintf(ret->detail, sizeof(ret->detail), "the process was killed by signal %d", n);
        return true;
    }
    return false;
}

/* The process is gone, and with it what it would have told. */
static void process_over(struct backend_vm *b)
{
    b->alive = b->agent_lost = b->agent_up = b->off = false;
    loop_revoke(b->noop->loop, &b->event_task);
    if (b->exit_timer != NULL)
        timer_stop(b->exit_timer);
    noop_execs_end(&b->execs, b->vm->name);
}

/* The last that is done: the owner may detach in it. */
static void tell_exit(struct backend_vm *b, const char *how)
{
    struct backend_exit end;

    if (!parse_end(how, &end))
        return;
    process_over(b);
    b->events->exited(b->arg, &end);
}

static void exit_due(void *arg)
{
    struct backend_vm *b = arg;
    const char *how = label(b, "noop.exit");

    if (b->alive && how != NULL)
        tell_exit(b, how);
}

static void tell_addresses(struct backend_vm *b)
{
    struct vm_address list[VM_ADDRESSES_MAX];
    const char *ips = label(b, "noop.ip");
    enum vm_address_source source = label_is(b, "noop.ip_source", "lease")       ? VM_ADDRESS_LEASE
                                    : label_is(b, "noop.ip_source", "neighbour") ? VM_ADDRESS_NEIGHBOUR
                                                                                 : VM_ADDRESS_AGENT;
    unsigned n = 0;

    for (const char *ip = ips; ip != NULL && n < VM_ADDRESSES_MAX; ip = strchr(ip, ',')) {
        ip += *ip == ',';
        list[n] = (struct vm_address){.source = source, .seen_at = clock_wall_ms()};
        snprintf(list[n++].ip, VM_IP_MAX, "%.*s", (int)strcspn(ip, ","), ip);
    }
    if (n > 0)
        b->events->addresses(b->arg, list, n);
}

static void tell_cloud_init(struct backend_vm *b)
{
    const char *how = label(b, "noop.cloud_init");
    char reason[32];

    if (!b->vm->spec.has_cloud_init)
        return;
    how = how != NULL ? how : "done";
    size_t len = strcspn(how, ":");
    snprintf(reason, sizeof(reason), "%.*s", (int)len, how);
    b->events->cloud_init(b->arg, strcmp(reason, "done") == 0, reason, how[len] != '\0' ? how + len + 1 : "");
}

static void event_run(struct loop_task *task)
{
    struct backend_vm *b = CONTAINER_OF(task, struct backend_vm, event_task);

    if (b->agent_lost) {
        b->agent_lost = false;
        b->events->agent(b->arg, false);
    }
    if (b->agent_up) {
        b->agent_up = false;
        tell_addresses(b);
        tell_cloud_init(b);
        b->events->agent(b->arg, true);
        b->events->agent_runs(b->arg, true, "");
    }
    if (b->off)
        tell_exit(b, "guest-off");
}

static void agent_soon(struct backend_vm *b, bool lost_first)
{
    if (label_is(b, "noop.agent", "false"))
        return;
    b->agent_lost = lost_first;
    b->agent_up = true;
    loop_defer(b->noop->loop, &b->event_task);
}

static void off_soon(struct backend_vm *b)
{
    b->off = true;
    loop_defer(b->noop->loop, &b->event_task);
}

/* The process ends by itself after a while, if a label says so; kind NULL: it began to run. */
static void arm_exit(struct backend_vm *b, const char *kind, const char *step)
{
    const char *at = label(b, "noop.exit_step");

    if (!b->alive || b->exit_armed || label(b, "noop.exit") == NULL)
        return;
    if (at != NULL && (kind == NULL || !names_step(at, kind, step)))
        return;
    if (b->exit_timer == NULL)
        b->exit_timer = timer_new(b->noop->loop, exit_due, b);
    if (b->exit_timer == NULL)
        return;
    b->exit_armed = true;
    timer_start(b->exit_timer, label_ms(b, "noop.exit_after_ms", EXIT_AFTER_MS), 0);
}

/* --- the fault seam --- */

static enum error_code code_of(const struct backend_vm *b, const char *step)
{
    static const struct {
        const char *step;
        enum error_code code;
    } codes[] = {
        {"build", ERR_IMAGE_OVERLAY_CREATION_FAILED}, {"spawn", ERR_QEMU_SPAWN_FAILED},
        {"greet", ERR_QEMU_QMP_CONNECT_FAILED},       {"verify", ERR_QEMU_QMP_COMMAND_FAILED},
        {"press", ERR_QEMU_QMP_COMMAND_FAILED},       {"reset", ERR_QEMU_QMP_COMMAND_FAILED},
        {"suspend", ERR_QEMU_QMP_COMMAND_FAILED},     {"resume", ERR_QEMU_QMP_COMMAND_FAILED},
    };
    const char *name = label(b, "noop.fail_code");
    enum error_code code = name != NULL ? error_by_name(name) : ERR_NONE;

    if (code != ERR_NONE)
        return code;
    for (size_t i = 0; i < ARRAY_SIZE(codes); i++)
        if (strcmp(codes[i].step, step) == 0)
            return codes[i].code;
    return ERR_IO;
}

static int inject(const struct backend_vm *b, const char *kind, const char *step, struct error *err)
{
    const char *list = label(b, "noop.fail");

    if (list == NULL || !names_step(list, kind, step))
        return 0;
    error_set(err, code_of(b, step), "injected by label noop.fail: %s", step);
    error_ctx_str(err, "step", step);
    return -1;
}

static struct backend_call *take_call(struct backend_vm *b)
{
    if (b->delay != NULL)
        timer_stop(b->delay);
    return TAKE_PTR(b->call);
}

static void delay_over(void *arg)
{
    struct backend_vm *b = arg;
    CLEANUP_ERROR struct error err = ERROR_INIT;

    if (b->call == NULL)
        return;
    inject(b, b->kind, b->step, &err);
    struct backend_call *call = take_call(b);
    call->done(call, &err);
}

static void delay_cancelled(struct loop_task *task)
{
    struct backend_vm *b = CONTAINER_OF(task, struct backend_vm, cancel_task);
    CLEANUP_ERROR struct error err = ERROR_INIT;

    if (b->call == NULL)
        return;
    error_set(&err, ERR_OPERATION_CANCELLED, "step %s was cancelled before it began", b->step);
    struct backend_call *call = take_call(b);
    call->done(call, &err);
}

static int noop_before_step(struct backend_vm *b, const char *kind, const char *step, struct backend_call *call,
                            struct error *err)
{
    int64_t ms = delay_of(b, kind, step);

    arm_exit(b, kind, step);
    if (ms == 0)
        return inject(b, kind, step, err);
    if (b->delay == NULL)
        b->delay = timer_new(b->noop->loop, delay_over, b);
    if (b->delay == NULL)
        return error_set(err, ERR_DAEMON_OVERLOADED, "out of memory");
    b->call = call;
    b->kind = kind;
    b->step = step;
    timer_start(b->delay, ms, 0);
    return OP_WAIT;
}

static void noop_cancel(struct backend_vm *b)
{
    if (b->call == NULL)
        return;
    timer_stop(b->delay);
    loop_defer(b->noop->loop, &b->cancel_task);
}

/* --- the verbs --- */

static int noop_check(struct backend *be, const struct vm_spec *spec, struct error *err)
{
    const char *pointer = spec->vsock                             ? "/spec/vsock"
                          : spec->network.type == VM_NETWORK_VNIC ? "/spec/network/type"
                                                                  : NULL;

    (void)be;
    if (pointer == NULL)
        return 0;
    error_set(err, ERR_BACKEND_NOT_AVAILABLE, "the noop backend has no %s", spec->vsock ? "vsock" : "vnic network");
    error_ctx_str(err, "pointer", pointer);
    return -1;
}

static struct backend_vm *noop_attach(struct backend *be, struct vm *vm, const struct backend_events *events, void *arg,
                                      struct error *err)
{
    struct backend_vm *b = mem_zalloc(sizeof(*b));

    if (b == NULL) {
        error_set(err, ERR_DAEMON_OVERLOADED, "out of memory");
        return NULL;
    }
    b->noop = CONTAINER_OF(be, struct noop, be);
    b->vm = vm;
    b->events = events;
    b->arg = arg;
    b->cancel_task.run = delay_cancelled;
    b->event_task.run = event_run;
    return b;
}

static void noop_detach(struct backend_vm *b)
{
    noop_execs_end(&b->execs, b->vm->name);
    loop_revoke(b->noop->loop, &b->cancel_task);
    loop_revoke(b->noop->loop, &b->event_task);
    timer_free(b->delay);
    timer_free(b->exit_timer);
    mem_free(b);
}

/* create, remove, prepare, sweep, greet: there is nothing to do. */
static int noop_nothing(struct backend_vm *b, struct backend_call *call, struct error *err)
{
    (void)b;
    (void)call;
    (void)err;
    return 0;
}

static int noop_spawn(struct backend_vm *b, struct backend_call *call, struct error *err)
{
    char *accel = mem_strdup("noop");

    (void)call;
    if (accel == NULL)
        return error_set(err, ERR_DAEMON_OVERLOADED, "out of memory");
    mem_free(b->vm->runtime.accel);
    b->vm->runtime.accel = accel;
    b->alive = true;
    b->exit_armed = false;
    return 0;
}

static int need_process(const struct backend_vm *b, struct error *err)
{
    return b->alive ? 0 : error_set(err, ERR_QEMU_QMP_COMMAND_FAILED, "VM %s has no process", b->vm->name);
}

static int noop_greet(struct backend_vm *b, struct backend_call *call, struct error *err)
{
    (void)call;
    return need_process(b, err);
}

static int noop_verify(struct backend_vm *b, struct backend_call *call, struct error *err)
{
    (void)call;
    if (need_process(b, err) < 0)
        return -1;
    agent_soon(b, false);
    arm_exit(b, NULL, NULL);
    return 0;
}

static int noop_kill(struct backend_vm *b, struct backend_call *call, struct error *err)
{
    (void)call;
    (void)err;
    process_over(b);
    return 0;
}

static int noop_press(struct backend_vm *b, struct backend_call *call, struct error *err)
{
    (void)call;
    if (need_process(b, err) < 0)
        return -1;
    if (!label_is(b, "noop.ignore_acpi", "true"))
        off_soon(b);
    return 0;
}

static int noop_terminate(struct backend_vm *b, struct error *err)
{
    if (need_process(b, err) < 0)
        return -1;
    if (label_is(b, "noop.ignore_term", "refused"))
        return error_set(err, ERR_IO, "VM %s takes no signal", b->vm->name);
    if (!label_is(b, "noop.ignore_term", "true"))
        off_soon(b);
    return 0;
}

static int noop_reset(struct backend_vm *b, struct backend_call *call, struct error *err)
{
    (void)call;
    if (need_process(b, err) < 0)
        return -1;
    agent_soon(b, true);
    return 0;
}

/* suspend and resume */
static int noop_command(struct backend_vm *b, struct backend_call *call, struct error *err)
{
    (void)call;
    return need_process(b, err);
}

static int noop_adopt(struct backend_vm *b, struct backend_adoption *ret, struct backend_call *call, struct error *err)
{
    const char *how = label(b, "noop.adopt");
    enum vm_state state = b->vm->state;

    (void)call;
    (void)err;
    *ret = (struct backend_adoption){.found = BACKEND_FOUND_NOTHING};
    if (how == NULL)
        how = state == VM_RUNNING ? "running" : state == VM_SUSPENDED ? "suspended" : "nothing";
    if (strcmp(how, "running") == 0)
        ret->found = BACKEND_FOUND_RUNNING;
    else if (strcmp(how, "suspended") == 0)
        ret->found = BACKEND_FOUND_SUSPENDED;
    else if (parse_end(how, &ret->end))
        ret->found = BACKEND_FOUND_ENDED;
    b->alive = ret->found == BACKEND_FOUND_RUNNING || ret->found == BACKEND_FOUND_SUSPENDED;
    if (ret->found == BACKEND_FOUND_RUNNING)
        agent_soon(b, false);
    arm_exit(b, NULL, NULL);
    return 0;
}

static bool noop_pressed_agent(struct backend_vm *b)
{
    return label_is(b, "noop.method", "agent");
}

static int noop_log_path(struct backend *be, const struct vm *vm, enum backend_log which, char *out)
{
    (void)be;
    (void)vm;
    (void)which;
    (void)out;
    return -1;
}

static bool noop_has_guest(const struct vm *vm)
{
    return vm_label_get(&vm->labels, "noop.exec") != NULL;
}

static struct exec *noop_exec(struct backend_vm *b, const struct exec_request *req, const struct exec_events *events,
                              void *arg, struct error *err)
{
    const char *how = label(b, "noop.exec");

    return noop_exec_new(b->noop->loop, how != NULL ? how : "0", label_ms(b, "noop.exec_ms", 0), req, events, arg,
                         &b->execs, err);
}

static json_t *noop_describe(struct backend *be)
{
    return json_pack("{s:s,s:b,s:s,s:s,s:[{s:s,s:b,s:s}]}", "name", be->name, "available", 1, "reason",
                     "it runs nothing", "version", VMMD_VERSION, "accelerators", "name", "noop", "available", 1,
                     "reason", "nothing is run");
}

static void noop_free(struct backend *be)
{
    mem_free(CONTAINER_OF(be, struct noop, be));
}

struct backend *noop_backend_new(struct loop *loop, const char *data_dir, struct error *err)
{
    struct noop *noop = mem_zalloc(sizeof(*noop));

    (void)data_dir;
    if (noop == NULL) {
        error_set(err, ERR_DAEMON_OVERLOADED, "out of memory");
        return NULL;
    }
    noop->loop = loop;
    noop->be = (struct backend){
        .name = "noop",
        .check = noop_check,
        .attach = noop_attach,
        .detach = noop_detach,
        .before_step = noop_before_step,
        .cancel = noop_cancel,
        .create = noop_nothing,
        .remove = noop_nothing,
        .prepare = noop_nothing,
        .sweep = noop_nothing,
        .spawn = noop_spawn,
        .greet = noop_greet,
        .verify = noop_verify,
        .kill = noop_kill,
        .press = noop_press,
        .terminate = noop_terminate,
        .reset = noop_reset,
        .suspend = noop_command,
        .resume = noop_command,
        .adopt = noop_adopt,
        .pressed_agent = noop_pressed_agent,
        .log_path = noop_log_path,
        .exec = noop_exec,
        .has_guest = noop_has_guest,
        .describe = noop_describe,
        .free = noop_free,
    };
    return &noop->be;
}
