/* monitor.c - the conversation with one QEMU: commands, events, the loss of the connection, muteness.
 *
 * Happy path: connected once, commands answered, events turned into those of backend.h.
 * Failures: a lost connection of a live process is made again, and the state asked for anew, since events in between are
 * lost.  A command that is not answered in time, or a connection that cannot be made, means mute: told once, then asked
 * again and again until there is an answer.  A guest that powered off or panicked left QEMU paused: it is asked to quit,
 * and killed if it does not; the end of the process is what core hears. */
#include <signal.h>
#include <string.h>

#include "backend/qemu/internal.h"
#include "backend/qemu/observe.h"
#include "base/mem.h"

enum { RETRY_MS = 1000, HEARTBEAT_MS = 2000, QUIT_MS = 3000, RESET_MS = 1500, LAST_WORDS_MS = 2000 };

struct ask {
    struct backend_vm *bvm;
    struct ask *next;
    unsigned seq; /* 0: of no call */
    void (*fn)(struct backend_vm *bvm, json_t *ret, struct error *err);
};

bool monitor_await_end(struct backend_vm *bvm, const struct error *err)
{
    if (!bvm->call || bvm->adopting || !bvm->alive || !bvm->qmp || qmp_is_ready(bvm->qmp))
        return false;
    error_done(&bvm->failure);
    error_copy(&bvm->failure, err);
    bvm->awaiting_end = true;
    if (bvm->guest_end == GUEST_RUNS) /* else the timer already sees to the end */
        timer_start(bvm->timer, LAST_WORDS_MS, 0);
    return true;
}

static void on_reply(void *arg, json_t *ret, struct error *err)
{
    struct ask *ask = arg;
    struct backend_vm *bvm = ask->bvm;
    struct ask **p = &bvm->asks;
    bool current = ask->seq == 0 || ask->seq == bvm->seq;
    bool of_call = ask->seq != 0;
    bool unanswered = error_is_set(err) && err->code == ERR_VM_UNRESPONSIVE;
    bool gone = false, *outer = bvm->gone;
    void (*fn)(struct backend_vm *, json_t *, struct error *) = ask->fn;

    while (*p != ask)
        p = &(*p)->next;
    *p = ask->next;
    mem_free(ask);
    bvm->gone = &gone;
    if (current && fn && !(of_call && error_is_set(err) && monitor_await_end(bvm, err)))
        fn(bvm, ret, err);
    if (gone) {
        if (outer)
            *outer = true;
        return;
    }
    bvm->gone = outer;
    if (unanswered && bvm->alive && bvm->started)
        monitor_set_mute(bvm, true);
    else if (!error_is_set(err))
        monitor_set_mute(bvm, false);
}

static int ask_monitor(struct backend_vm *bvm, unsigned seq, const char *command, json_t *arguments,
                       void (*fn)(struct backend_vm *bvm, json_t *ret, struct error *err), struct error *err)
{
    struct ask *ask;

    if (!bvm->qmp || !qmp_is_ready(bvm->qmp)) {
        json_decref(arguments);
        return error_set(err, ERR_VM_UNRESPONSIVE, "QEMU of VM %s does not answer its monitor", bvm->vm->name);
    }
    ask = mem_zalloc(sizeof(*ask));
    if (!ask) {
        json_decref(arguments);
        return error_set(err, ERR_DAEMON_INTERNAL, "no memory for a monitor command");
    }
    ask->bvm = bvm;
    ask->seq = seq;
    ask->fn = fn;
    if (qmp_execute(bvm->qmp, command, arguments, QEMU_COMMAND_MS, on_reply, ask, err) < 0) {
        mem_free(ask);
        return -1;
    }
    ask->next = bvm->asks;
    bvm->asks = ask;
    return 0;
}

int monitor_ask(struct backend_vm *bvm, const char *command, json_t *arguments,
                void (*fn)(struct backend_vm *bvm, json_t *ret, struct error *err), struct error *err)
{
    return ask_monitor(bvm, bvm->seq, command, arguments, fn, err);
}

int monitor_ask_aside(struct backend_vm *bvm, const char *command,
                      void (*fn)(struct backend_vm *bvm, json_t *ret, struct error *err), struct error *err)
{
    return ask_monitor(bvm, 0, command, NULL, fn, err);
}

void monitor_guest_ended(struct backend_vm *bvm, enum guest_end end)
{
    CLEANUP_ERROR struct error err = ERROR_INIT;

    if (bvm->guest_end != GUEST_RUNS || !bvm->alive)
        return;
    bvm->guest_end = end;
    if (monitor_ask_aside(bvm, "quit", NULL, &err) < 0)
        process_signal(bvm, SIGTERM);
    timer_start(bvm->timer, QUIT_MS, 0);
}

static void on_blocks(struct backend_vm *bvm, json_t *ret, struct error *err)
{
    const char *reason = "error";
    json_t *block;
    size_t i;

    json_array_foreach(ret, i, block)
    {
        const char *status = json_string_value(json_object_get(block, "io-status"));
        if (!error_is_set(err) && status && strcmp(status, "nospace") == 0)
            reason = "enospc";
    }
    if (bvm->alive && bvm->started)
        bvm->events->io_error(bvm->arg, reason);
}

/* Its event passed unheard: the disks tell why. */
void monitor_found_io_error(struct backend_vm *bvm)
{
    CLEANUP_ERROR struct error err = ERROR_INIT;

    if (monitor_ask_aside(bvm, "query-block", on_blocks, &err) < 0)
        bvm->events->io_error(bvm->arg, "error");
}

static void take_io_error(struct backend_vm *bvm, bool full)
{
    bvm->disk_full = full;
    bvm->events->io_error(bvm->arg, full ? "enospc" : "error");
}

void monitor_take_status(struct backend_vm *bvm, const char *status)
{
    if (strcmp(status, "shutdown") == 0)
        monitor_guest_ended(bvm, GUEST_OFF);
    else if (strcmp(status, "guest-panicked") == 0)
        monitor_guest_ended(bvm, GUEST_PANICKED);
    else if (strcmp(status, "io-error") == 0 && bvm->started)
        monitor_found_io_error(bvm);
}

/* A stop or cont that was given up is carried out when QEMU comes to itself: it is taken back. */
static void take_back(struct backend_vm *bvm, const char *status)
{
    CLEANUP_ERROR struct error err = ERROR_INIT;

    if (bvm->call || !bvm->started || bvm->guest_end != GUEST_RUNS)
        return;
    if (!bvm->paused && strcmp(status, "paused") == 0)
        monitor_ask_aside(bvm, "cont", NULL, &err);
    else if (bvm->paused && strcmp(status, "running") == 0)
        monitor_ask_aside(bvm, "stop", NULL, &err);
}

static void on_status(struct backend_vm *bvm, json_t *ret, struct error *err)
{
    const char *status = json_string_value(json_object_get(ret, "status"));

    if (error_is_set(err) || !status)
        return;
    monitor_take_status(bvm, status);
    take_back(bvm, status);
}

static void ask_status(struct backend_vm *bvm)
{
    CLEANUP_ERROR struct error err = ERROR_INIT;

    monitor_ask_aside(bvm, "query-status", on_status, &err); /* where it fails, a loss or a heartbeat follows */
}

void monitor_set_mute(struct backend_vm *bvm, bool mute)
{
    if (mute && bvm->guest_end == GUEST_RUNS && !timer_active(bvm->timer))
        timer_start(bvm->timer, HEARTBEAT_MS, 0);
    if (bvm->mute == mute)
        return;
    bvm->mute = mute;
    bvm->events->unresponsive(bvm->arg, mute);
}

/* The process did not end after all: the call fails with the loss.  True when the VM is still there and runs. */
static bool fail_awaiting(struct backend_vm *bvm)
{
    CLEANUP_ERROR struct error err = ERROR_INIT;
    bool gone = false;

    error_move(&err, &bvm->failure);
    bvm->gone = &gone;
    call_end(bvm, &err);
    if (gone)
        return false;
    bvm->gone = NULL;
    return bvm->started;
}

/* The guest has ended and QEMU does not; or it is time to connect or ask again. */
static void on_timer(void *arg)
{
    struct backend_vm *bvm = arg;
    CLEANUP_ERROR struct error err = ERROR_INIT;

    if (!bvm->alive || (bvm->awaiting_end && bvm->guest_end == GUEST_RUNS && !fail_awaiting(bvm)))
        return;
    if (bvm->guest_end != GUEST_RUNS) {
        process_signal(bvm, SIGKILL);
    } else if (bvm->qmp && qmp_is_ready(bvm->qmp)) {
        if (bvm->mute)
            ask_status(bvm);
    } else if (bvm->qmp && qmp_reconnect(bvm->qmp, &err) < 0) {
        timer_start(bvm->timer, RETRY_MS, 0);
    }
}

/* Firmware resets again on its way up: several events are one reset. */
static void take_reset(struct backend_vm *bvm)
{
    int64_t now = loop_now_ms(bvm->be->loop);
    bool first = bvm->reset_at == 0 || now - bvm->reset_at > RESET_MS;

    bvm->reset_at = now;
    if (!first)
        return;
    observe_guest_reset(bvm);
    bvm->events->guest_reset(bvm->arg);
    guest_reopen(bvm);
}

static void take_event(struct backend_vm *bvm, const char *name, json_t *data)
{
    const char *reason = json_string_value(json_object_get(data, "reason"));
    const char *action = json_string_value(json_object_get(data, "action"));
    const char *id = json_string_value(json_object_get(data, "id"));

    if (strcmp(name, "SHUTDOWN") == 0 && json_is_true(json_object_get(data, "guest")))
        monitor_guest_ended(bvm, reason && strcmp(reason, "guest-panic") == 0 ? GUEST_PANICKED : GUEST_OFF);
    else if (strcmp(name, "GUEST_PANICKED") == 0)
        monitor_guest_ended(bvm, GUEST_PANICKED);
    else if (strcmp(name, "RESET") == 0 && bvm->started)
        take_reset(bvm);
    else if (strcmp(name, "BLOCK_IO_ERROR") == 0 && bvm->started && action && strcmp(action, "stop") == 0)
        take_io_error(bvm, json_is_true(json_object_get(data, "nospace")));
    else if (strcmp(name, "VSERPORT_CHANGE") == 0 && bvm->agent && id && strcmp(id, QEMU_AGENT_PORT_ID) == 0)
        agent_hint_open(bvm->agent, json_is_true(json_object_get(data, "open")));
}

static void on_event(void *arg, const char *name, json_t *data, int64_t wall_ms)
{
    (void)wall_ms;
    take_event(arg, name, data);
}

static void on_ready(void *arg, const char *version)
{
    struct backend_vm *bvm = arg;

    (void)version;
    bvm->reconnecting = false;
    if (bvm->adopting)
        adopt_connected(bvm, NULL);
    else if (!bvm->started)
        greet_connected(bvm, NULL);
    else
        ask_status(bvm);
}

static void on_lost(void *arg, const struct error *err)
{
    struct backend_vm *bvm = arg;
    CLEANUP_ERROR struct error copy = ERROR_INIT;

    /* A QEMU that was asked to go hangs up before its exit is seen. */
    if (!bvm->alive || bvm->guest_end != GUEST_RUNS)
        return;
    if (!bvm->started) {
        error_copy(&copy, err);
        if (bvm->adopting)
            adopt_connected(bvm, &copy);
        else if (!monitor_await_end(bvm, &copy))
            greet_connected(bvm, &copy);
        return;
    }
    /* A first loss may be the process ending: its exit comes right behind.  A second one means mute. */
    if (!bvm->reconnecting && qmp_reconnect(bvm->qmp, &copy) == 0) {
        bvm->reconnecting = true;
        qmp_set_connect_deadline(bvm->qmp, QEMU_COMMAND_MS);
    } else {
        monitor_set_mute(bvm, true);
    }
}

static const struct qmp_events qmp_events = {.ready = on_ready, .event = on_event, .lost = on_lost};

int monitor_open(struct backend_vm *bvm, const char *path, int64_t timeout_ms, struct error *err)
{
    if (!bvm->timer)
        bvm->timer = timer_new(bvm->be->loop, on_timer, bvm);
    if (!bvm->timer)
        return error_set(err, ERR_DAEMON_INTERNAL, "no memory for VM %s", bvm->vm->name);
    bvm->qmp = qmp_new(bvm->be->loop, path, &qmp_events, bvm, err);
    if (!bvm->qmp)
        return -1;
    qmp_set_name(bvm->qmp, bvm->vm->name);
    qmp_set_connect_deadline(bvm->qmp, timeout_ms);
    return 0;
}

void monitor_close(struct backend_vm *bvm)
{
    qmp_free(bvm->qmp);
    bvm->qmp = NULL;
    while (bvm->asks) {
        struct ask *ask = bvm->asks;

        bvm->asks = ask->next;
        mem_free(ask);
    }
    timer_free(bvm->timer);
    bvm->timer = NULL;
    bvm->mute = false;
}
