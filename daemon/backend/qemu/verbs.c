/* verbs.c - the verbs that talk to the monitor: greet and verify of a start, press, reset, suspend, resume.
 *
 * Happy path: one or two commands, and the state that QEMU then says it is in.  Failures: QEMU's own error, no answer in
 * time, or the process ending in the middle (process.c fails the call then). */
#include <string.h>

#include "backend/qemu/internal.h"
#include "backend/qemu/observe.h"
#include "base/clock.h"
#include "base/mem.h"

enum { AGENT_SHUTDOWN_MS = 5000 };

static int not_running(struct backend_vm *bvm, struct error *err)
{
    return error_set(err, ERR_QEMU_QMP_COMMAND_FAILED, "VM %s has no QEMU", bvm->vm->name);
}

/* The process ended between two steps of the start. */
static int died_error(struct backend_vm *bvm, struct error *err)
{
    bvm->died = false;
    return process_ended_error(bvm, err);
}

/* ---- greet: connect, and make sure that it is this VM's QEMU ---- */

static void greet_uuid(struct backend_vm *bvm, json_t *ret, struct error *err)
{
    const char *uuid = json_string_value(json_object_get(ret, "UUID"));

    if (!error_is_set(err) && (!uuid || strcmp(uuid, bvm->id) != 0))
        error_set(err, ERR_QEMU_QMP_CONNECT_FAILED, "the monitor of VM %s is another VM's", bvm->vm->name);
    call_end(bvm, err);
}

void greet_connected(struct backend_vm *bvm, struct error *err)
{
    CLEANUP_ERROR struct error own = ERROR_INIT;

    if (!bvm->call) /* lost between two steps: the next command says so */
        return;
    if (!err || !error_is_set(err)) {
        if (monitor_ask(bvm, "query-uuid", NULL, greet_uuid, &own) == 0)
            return;
        err = &own;
    }
    call_end(bvm, err);
}

int qemu_greet(struct backend_vm *bvm, struct backend_call *call, struct error *err)
{
    if (bvm->died)
        return died_error(bvm, err);
    if (!bvm->alive && !bvm->ending)
        return not_running(bvm, err);
    call_begin(bvm, call, call_hurry);
    if (bvm->ending)
        return OP_WAIT; /* the end fails the call */
    if (monitor_open(bvm, bvm->vm->runtime.qmp_socket, QEMU_GREET_MS, err) < 0 ||
        console_connect(bvm->console, bvm->vm->runtime.console_socket, err) < 0) {
        bvm->call = NULL;
        return -1;
    }
    return OP_WAIT;
}

/* ---- cont, stop: then the state is asked for until it is the one wanted ---- */

/* It went on, its write failed again, and so it waits again. */
static void paused_again(struct backend_vm *bvm, struct error *err)
{
    const char *name = bvm->vm->name;

    if (!bvm->disk_full) {
        error_set(err, ERR_IO, "VM %s was paused again at once: its disk failed again", name);
        error_help(err, "see to the disk of %s, then `vmctl resume %s`", bvm->work_dir, name);
        return;
    }
    error_set(err, ERR_HOST_DISK_FULL, "VM %s was paused again at once: there is no room for its writes in %s", name,
              bvm->work_dir);
    error_help(err, "free space on the file system of %s, then `vmctl resume %s`", bvm->work_dir, name);
}

static void run_status(struct backend_vm *bvm, json_t *ret, struct error *err)
{
    const char *status = json_string_value(json_object_get(ret, "status"));

    if (!error_is_set(err) && status && strcmp(status, "io-error") == 0 && strcmp(bvm->wanted, "running") == 0) {
        paused_again(bvm, err);
        monitor_take_status(bvm, status);
    } else if (!error_is_set(err) && (!status || strcmp(status, bvm->wanted) != 0)) {
        error_set(err, ERR_QEMU_QMP_COMMAND_FAILED, "QEMU of VM %s says %s, not %s", bvm->vm->name,
                  status ? status : "nothing", bvm->wanted);
        if (status)
            monitor_take_status(bvm, status);
    }
    if (!error_is_set(err))
        bvm->paused = strcmp(bvm->wanted, "paused") == 0;
    if (!error_is_set(err) && !bvm->started) {
        bvm->started = true;
        guest_begin(bvm);
    }
    call_end(bvm, err);
}

static void run_answered(struct backend_vm *bvm, json_t *ret, struct error *err)
{
    (void)ret;
    if (!error_is_set(err) && monitor_ask(bvm, "query-status", NULL, run_status, err) == 0)
        return;
    call_end(bvm, err);
}

/* The call's first command, unless the end is on its way and answers the call. */
static int ask_first(struct backend_vm *bvm, const char *command,
                     void (*answered)(struct backend_vm *bvm, json_t *ret, struct error *err), struct error *err)
{
    if (bvm->ending || bvm->guest_end != GUEST_RUNS || monitor_ask(bvm, command, NULL, answered, err) == 0)
        return OP_WAIT;
    if (monitor_await_end(bvm, err)) {
        error_done(err);
        return OP_WAIT;
    }
    bvm->call = NULL;
    return -1;
}

static int run_command(struct backend_vm *bvm, struct backend_call *call, const char *command, const char *wanted,
                       struct error *err)
{
    if (!bvm->alive && !bvm->ending)
        return not_running(bvm, err);
    call_begin(bvm, call, call_hurry);
    bvm->wanted = wanted;
    /* A guest that has ended is never let run on: its end fails the call. */
    return ask_first(bvm, command, run_answered, err);
}

int qemu_verify(struct backend_vm *bvm, struct backend_call *call, struct error *err)
{
    if (bvm->died)
        return died_error(bvm, err);
    return run_command(bvm, call, "cont", "running", err);
}

int qemu_suspend(struct backend_vm *bvm, struct backend_call *call, struct error *err)
{
    return run_command(bvm, call, "stop", "paused", err);
}

int qemu_resume(struct backend_vm *bvm, struct backend_call *call, struct error *err)
{
    return run_command(bvm, call, "cont", "running", err);
}

/* ---- press, reset: one command ---- */

static void only_answer(struct backend_vm *bvm, json_t *ret, struct error *err)
{
    (void)ret;
    call_end(bvm, err);
}

static int one_command(struct backend_vm *bvm, struct backend_call *call, const char *command, struct error *err)
{
    if (!bvm->alive && !bvm->ending)
        return not_running(bvm, err);
    call_begin(bvm, call, call_hurry);
    return ask_first(bvm, command, only_answer, err);
}

/* A paused machine stays paused over its reset. */
static void reset_answered(struct backend_vm *bvm, json_t *ret, struct error *err)
{
    (void)ret;
    if (!error_is_set(err) && bvm->guest_end == GUEST_RUNS && monitor_ask(bvm, "cont", NULL, run_answered, err) == 0)
        return;
    if (error_is_set(err)) /* else the end of the process fails the call */
        call_end(bvm, err);
}

int qemu_reset(struct backend_vm *bvm, struct backend_call *call, struct error *err)
{
    if (!bvm->alive && !bvm->ending)
        return not_running(bvm, err);
    call_begin(bvm, call, call_hurry);
    bvm->wanted = "running";
    return ask_first(bvm, "system_reset", reset_answered, err);
}

/* The exit is the answer that counts. */
static void agent_answered(void *arg, json_t *ret, struct error *err)
{
    (void)arg;
    (void)ret;
    (void)err;
}

/* The button first; a guest that did not mind it is asked through its agent as well. */
int qemu_press(struct backend_vm *bvm, struct backend_call *call, struct error *err)
{
    CLEANUP_ERROR struct error ignored = ERROR_INIT;
    int rc = one_command(bvm, call, "system_powerdown", err);

    bvm->press_asked = rc == OP_WAIT;
    bvm->pressed_agent = false;
    if (rc == OP_WAIT && bvm->presses++ > 0 && bvm->agent && agent_is_up(bvm->agent))
        bvm->pressed_agent = agent_notify(bvm->agent, "guest-shutdown", json_pack("{s:s}", "mode", "powerdown"),
                                          AGENT_SHUTDOWN_MS, agent_answered, bvm, &ignored) == 0;
    return rc;
}
