/* vm_stop.c - stop and kill.
 *
 * stop, happy path: press (the ACPI power button, again every few seconds, for a press before the guest listens is
 * lost) until the guest powers off, persist.  Failure modes: it does not within timeout_s: terminate (SIGTERM), then
 * kill (SIGKILL); the operation says by which method it came to its end. kill: SIGKILL at once; it also comes when
 * another operation holds the VM, after cancelling that. */
#include <stdio.h>
#include <string.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/mem.h"
#include "core/ops/ops.h"

enum { PRESS_EVERY_MS = 3000, TERMINATE_WAIT_MS = 5000 };

void step_stop_wait(struct vm_op *vo)
{
    vo->on_exit = NULL;
    vo->hurry = NULL;
    if (vo->timer != NULL)
        timer_stop(vo->timer);
}

static void stop_waited(struct vm_op *vo)
{
    step_stop_wait(vo);
    vm_op_resume(vo, NULL);
}

/* The press step ends: at once, or when the backend has answered the press that is under way. */
static void press_end(struct vm_op *vo)
{
    step_stop_wait(vo);
    if (!vo->pressing) {
        vm_op_resume(vo, NULL);
        return;
    }
    vo->press_ending = true;
    vo->vm->be->cancel(vo->vm->bvm);
}

static void press_done(struct backend_call *call, struct error *err)
{
    struct vm_op *vo = CONTAINER_OF(call, struct vm_op, press_call);

    (void)err;
    vo->pressing = false;
    if (!vo->press_ending)
        return;
    vo->press_ending = false;
    vm_op_resume(vo, NULL);
}

static void press_exited(struct vm_op *vo)
{
    vo->method = vo->vm->be->pressed_agent != NULL && vo->vm->be->pressed_agent(vo->vm->bvm) ? "agent" : "acpi";
    press_end(vo);
}

/* Asks the guest once more.  A monitor that does not answer is no reason to wait on: TERM comes next. */
static void press_again(void *arg)
{
    struct vm_op *vo = arg;
    CLEANUP_ERROR struct error err = ERROR_INIT;
    int64_t left = vo->res->steps[vo->res->step].started_ms + vo->timeout_s * 1000 - clock_mono_ms();

    if (vo->on_exit == NULL)
        return;
    if (left <= 0) {
        press_end(vo);
        return;
    }
    timer_start(vo->timer, left < PRESS_EVERY_MS ? left : PRESS_EVERY_MS, 0);
    if (vo->pressing)
        return; /* the last press has not been answered yet */
    vo->pressing = true;
    int rc = vo->vm->be->press(vo->vm->bvm, &vo->press_call, &err);
    if (rc != OP_WAIT)
        vo->pressing = false;
    if (rc < 0) {
        LOG_WARN("power button not pressed", "vm", vo->vm->vm.name, "error", err.message);
        if (vo->on_exit != NULL)
            press_end(vo);
    }
}

static void press_begin(struct vm_op *vo)
{
    vo->press_call.done = press_done;
    vo->on_exit = press_exited;
    vo->hurry = press_end;
    press_again(vo);
}

/* The suspended guest has been resumed (or not: then the monitor is of no use, and TERM is next). */
static void press_resumed(struct backend_call *call, struct error *err)
{
    struct vm_op *vo = CONTAINER_OF(call, struct vm_op, call);

    vo->calling = false;
    if (vo->parked)
        return;
    if (vo->ended)
        vo->method = "acpi";
    if (error_is_set(err) || vo->ended)
        vm_op_resume(vo, NULL);
    else
        press_begin(vo);
}

int step_press(struct vm_op *vo, struct error *err)
{
    if (vo->ended) {
        vo->method = "none"; /* it was quicker than we */
        return 0;
    }
    if (vo->timeout_s < 0)
        vo->timeout_s = STOP_TIMEOUT_S;
    if (vo->timeout_s == 0)
        return 0;
    if (vo->timer == NULL)
        vo->timer = timer_new(vo->core->loop, press_again, vo);
    if (vo->timer == NULL)
        return error_set(err, ERR_DAEMON_OVERLOADED, "out of memory");
    op_set_step_timeout(vo->op, vo->timeout_s * 1000 + 10000);
    if (vo->vm->vm.state == VM_SUSPENDED) {
        vo->call.done = press_resumed;
        int rc = vo->vm->be->resume(vo->vm->bvm, &vo->call, err);
        if (rc == OP_WAIT)
            return OP_WAIT;
        if (rc < 0) {
            error_done(err);
            return 0;
        }
    }
    vo->calling = false;
    press_begin(vo);
    return OP_WAIT;
}

static void terminate_over(void *arg)
{
    struct vm_op *vo = arg;

    if (vo->on_exit != NULL)
        stop_waited(vo);
}

static void terminate_exited(struct vm_op *vo)
{
    vo->method = "term";
    stop_waited(vo);
}

bool step_ended(const struct vm_op *vo)
{
    return vo->ended;
}

int step_terminate(struct vm_op *vo, struct error *err)
{
    if (vo->ended)
        return 0;
    timer_free(vo->timer);
    vo->timer = timer_new(vo->core->loop, terminate_over, vo);
    if (vo->timer == NULL)
        return error_set(err, ERR_DAEMON_OVERLOADED, "out of memory");
    if (vo->vm->be->terminate(vo->vm->bvm, err) < 0) {
        error_done(err);
        return 0; /* KILL is next */
    }
    if (vo->ended) {
        vo->method = "term";
        return 0;
    }
    vo->on_exit = terminate_exited;
    vo->hurry = stop_waited;
    vo->calling = false;
    timer_start(vo->timer, TERMINATE_WAIT_MS, 0);
    return OP_WAIT;
}

int step_stop_kill(struct vm_op *vo, struct error *err)
{
    if (vo->ended)
        return 0;
    vo->method = vo->from == VM_RUNNING || vo->from == VM_SUSPENDED ? "kill" : "none";
    return step_kill(vo, err);
}

static void killed(struct backend_call *call, struct error *err)
{
    struct vm_op *vo = CONTAINER_OF(call, struct vm_op, call);

    if (!error_is_set(err))
        vo->ended = true;
    vm_op_resume(vo, err);
}

int step_kill(struct vm_op *vo, struct error *err)
{
    vo->stop_asked = true;
    vo->call.done = killed;
    int rc = vo->vm->be->kill(vo->vm->bvm, &vo->call, err);
    if (rc == 0)
        vo->ended = true;
    return rc;
}

int step_persist_stopped(struct vm_op *vo, struct error *err)
{
    bool was_up = vo->from == VM_RUNNING || vo->from == VM_SUSPENDED;

    if (!was_up) /* a kill that found the VM at rest: it stays as it is */
        return vm_op_persist(vo, vo->vm->vm.state, vo->plan->kind, false, err);
    vm_runtime_stopped(&vo->vm->vm.runtime);
    live_vm_conditions_down(vo->vm, "stopped");
    return vm_op_persist(vo, VM_STOPPED, vo->plan->kind, false, err);
}

static const struct vm_step stop_steps[] = {
    STOP_STEPS,
    END_STEPS(step_persist_stopped),
};

static const struct vm_step kill_steps[] = {
    {"kill", step_stop_kill, .timeout_ms = 20000},
    END_STEPS(step_persist_stopped),
};

const struct vm_plan vm_stop_plan = {"vm.stop", VM_STOP, stop_steps, ARRAY_SIZE(stop_steps), 60000};
const struct vm_plan vm_kill_plan = {"vm.kill", VM_KILL, kill_steps, ARRAY_SIZE(kill_steps), 60000};
