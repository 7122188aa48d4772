/* vm_provision.c - provisioning: shell commands, scripts and files, one after another, in a guest that runs.
 *
 * Happy path: ready (the guest answers), run (each step: a script or file is sent under a private name, run or moved to its place,
 * the script removed), persist, announce.  Steps run as root where that is to be had (sudo -n, or the agent), else as who
 * logs in, or as their own user.
 *
 *   look ─► step: note ─► send ─► … ─► run ─► clean ─► next step ─► … ─► the log is closed
 *                                       │ fails, is late, is cancelled
 *                                       └─► killed ─► clean ─► the log is closed ─► provision::failed
 *
 * Failure modes.  A step fails: those behind it do not begin; its number, exit code and last lines are the error.  Cancelled,
 * or too late: its process group is killed and its script removed.  The VM is to be killed or destroyed, or has ended: nothing is
 * removed.  vmmd is killed: the operation is interrupted, the guest runs on; the one file that may be left in it had been
 * noted with the VM before it was made, and the next provisioning removes it. */
#include <stdio.h>
#include <string.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/mem.h"
#include "core/ops/provision.h"

enum {
    READY_MS = 600000,
    LOOK_MS = 30000,
    LOOKS_MAX = 3,
    CLEAN_MS = 8000,
    STEP_MARGIN_MS = 60000, /* of the operation, for what stands around a step's own time */
    LOGIN_MAY_BE_ROOT = 77,
};

static const struct core_exec_events exec_events;

static void walk(struct provision *p);
static void step_over(struct provision *p, struct error *err);

struct provision *provision_new(struct vm_op *vo, const json_t *steps)
{
    struct provision *p = mem_zalloc(sizeof(*p));

    if (p == NULL || (p->steps = json_deep_copy(steps)) == NULL) {
        mem_free(p);
        return NULL;
    }
    p->vo = vo;
    p->n = (unsigned)json_array_size(steps);
    p->vo->res->progress_unit = "steps";
    return p;
}

int64_t provision_deadline_ms(const struct provision *p)
{
    return provision_timeout_s(p->steps) * 1000 + (int64_t)p->n * STEP_MARGIN_MS;
}

static void drop_temp(struct provision *p)
{
    mem_free(TAKE_PTR(p->temp));
    mem_free(TAKE_PTR(p->sent));
}

void provision_park(struct provision *p)
{
    if (p == NULL)
        return;
    core_vm_unwait(TAKE_PTR(p->wait));
    core_exec_free(TAKE_PTR(p->exec));
    if (p->out.timer != NULL)
        timer_stop(p->out.timer);
    if (p->out.log != NULL)
        provision_out_line(p, "=== interrupted: vmmd ends");
    if (p->out.log != NULL && p->phase != PROVISION_CLOSE) {
        logfile_unwatch(TAKE_PTR(p->out.watch));
        p->vo->vm->provision_log = NULL;
        logfile_close(TAKE_PTR(p->out.log), NULL, NULL);
    }
}

void provision_free(struct provision *p)
{
    if (p == NULL)
        return;
    core_vm_unwait(p->wait);
    core_exec_free(p->exec);
    provision_out_free(p);
    drop_temp(p);
    error_done(&p->failure);
    json_decref(p->steps);
    mem_free(p);
}

/* --- ready --- */

static void wait_over(struct vm_op *vo, struct error *err)
{
    core_vm_unwait(TAKE_PTR(vo->provision->wait));
    vo->hurry = NULL;
    vm_op_resume(vo, err);
}

static void guest_ready(void *arg, struct live_vm *vm, struct error *err)
{
    struct vm_op *vo = arg;

    (void)vm;
    vo->provision->wait = NULL; /* it has ended */
    wait_over(vo, err);
}

static void hurry_ready(struct vm_op *vo)
{
    wait_over(vo, NULL);
}

static int step_ready(struct vm_op *vo, struct error *err)
{
    static const char *const ready[] = {"ready"};
    struct provision *p = vo->provision;

    operation_progress(vo->res, 0, p->n);
    p->wait = core_vm_wait(vo->vm, ready, 1, READY_MS, guest_ready, vo, err);
    if (p->wait == NULL)
        return -1;
    vo->calling = false; /* it is not the backend that is waited for */
    vo->hurry = hurry_ready;
    return OP_WAIT;
}

/* --- the end of the run --- */

static void closed(void *arg)
{
    struct provision *p = arg;
    struct vm_op *vo = p->vo;
    CLEANUP_ERROR struct error err = ERROR_INIT;

    error_move(&err, &p->failure);
    p->phase = PROVISION_IDLE;
    vo->hurry = NULL;
    vm_op_resume(vo, &err);
}

static void finish(struct provision *p)
{
    double s = (double)(clock_mono_ms() - p->began_ms) / 1000;

    provision_out_flush(p);
    if (p->hurried)
        provision_out_line(p, "=== provisioning was cancelled after %.1f s", s);
    else if (error_is_set(&p->failure))
        provision_out_line(p, "=== provisioning failed after %.1f s", s);
    else
        provision_out_line(p, "=== provisioning is done, %.1f s", s);
    p->phase = PROVISION_CLOSE;
    provision_out_close(p, closed);
}

/* --- a step --- */

static struct provision_guest guest_for(const struct provision *p, int64_t at_most)
{
    int64_t left = p->step_began_ms + p->step.timeout_s * 1000 - clock_mono_ms();

    left = at_most > 0 ? at_most : left > 0 ? left : 1;
    return (struct provision_guest){.events = &exec_events, .timeout_ms = left};
}

/* The VM is going, and everything in it: nothing needs to be tidy. */
static bool guest_is_lost(const struct provision *p)
{
    for (const struct vm_op *next = p->vo->vm->op_next; next != NULL; next = next->next)
        if (next->plan->verb == VM_KILL || next->plan->verb == VM_DESTROY)
            return true;
    return p->vo->ended || p->vo->vm->vm.state != VM_RUNNING;
}

static void describe_step(struct provision *p, struct error *err)
{
    CLEANUP_FREE char *tail = provision_out_tail(p);

    error_ctx_int(err, "step", (int64_t)p->at + 1);
    error_ctx_str(err, "tail", tail != NULL ? tail : "");
    error_ctx_str(err, "vm", p->vo->vm->vm.name);
}

/* What the command's end says of the step; err stays unset where it is a success. */
static void judge(struct provision *p, const struct core_exec_end *end, struct error *err)
{
    const char *vm = p->vo->vm->vm.name;
    CLEANUP_ERROR struct error own = ERROR_INIT;

    if (end == NULL) {
        error_set(&own, ERR_PROVISION_FAILED, "step %u of %u (%s) was lost in VM %s", p->at + 1, p->n, p->label, vm);
        error_cause(&own, "%s", err->message);
        for (size_t i = 0; i < err->n_causes; i++)
            error_cause(&own, "%s", err->causes[i]);
    } else if (end->timed_out) {
        error_set(&own, ERR_PROVISION_FAILED, "step %u of %u (%s) did not end within %lld s in VM %s", p->at + 1, p->n,
                  p->label, (long long)p->step.timeout_s, vm);
    } else if (end->end.signal[0] != '\0') {
        error_set(&own, ERR_PROVISION_FAILED, "step %u of %u (%s) was ended by %s in VM %s", p->at + 1, p->n, p->label,
                  end->end.signal, vm);
    } else if (end->end.exit_code != 0) {
        error_set(&own, ERR_PROVISION_FAILED, "step %u of %u (%s) failed with exit code %d in VM %s", p->at + 1, p->n,
                  p->label, end->end.exit_code, vm);
    } else {
        return;
    }
    describe_step(p, &own);
    bool exited = end != NULL && !end->timed_out && end->end.signal[0] == '\0';
    if (exited)
        error_ctx_int(&own, "exit_code", end->end.exit_code);
    else
        error_ctx_null(&own, "exit_code");
    if (end != NULL && end->timed_out)
        error_ctx_int(&own, "timeout_s", p->step.timeout_s);
    else if (end != NULL && end->end.signal[0] != '\0')
        error_ctx_str(&own, "signal", end->end.signal);
    error_done(err);
    error_move(err, &own);
}

/* The note of the file in the guest, and of steps that run once, stand in the VM's row. */
static void write_vm(struct provision *p, struct change *ch, void (*done)(void *arg, struct error *err))
{
    change_happened(ch);
    change_vm(ch, p->vo->vm, false);
    change_commit(ch, done, p);
}

static void succeeded(struct provision *p)
{
    double s = (double)(clock_mono_ms() - p->step_began_ms) / 1000;
    struct vm *vm = &p->vo->vm->vm;
    bool write = p->digest[0] != '\0' || vm->provisioned.temp != NULL;

    provision_out_flush(p);
    provision_out_line(p, "=== step %u/%u succeeded, %.1f s", p->at + 1, p->n, s);
    if (p->digest[0] != '\0' && !vm_provisioned_has(vm, p->digest))
        vm_provisioned_add(vm, p->digest);
    mem_free(TAKE_PTR(vm->provisioned.temp));
    struct change *ch = write ? change_new(p->vo->core) : NULL;
    provision_out_event(p, ch, "succeeded", NULL);
    if (ch != NULL)
        write_vm(p, ch, NULL);
    p->at++;
    operation_progress(p->vo->res, p->at, p->n);
}

/* Its file is gone from the guest, or it had none, or nobody can remove it: the next provisioning tries again. */
static void cleaned(struct provision *p, bool removed)
{
    drop_temp(p);
    if (!p->hurried && !error_is_set(&p->failure)) {
        succeeded(p);
        walk(p);
        return;
    }
    struct vm *vm = &p->vo->vm->vm;
    bool write = removed && vm->provisioned.temp != NULL;
    if (write)
        mem_free(TAKE_PTR(vm->provisioned.temp));
    struct change *ch = write ? change_new(p->vo->core) : NULL;
    provision_out_flush(p);
    if (error_is_set(&p->failure))
        provision_out_line(p, "=== step %u/%u failed: %s", p->at + 1, p->n, p->failure.message);
    provision_out_event(p, ch, p->hurried ? "cancelled" : "failed", p->hurried ? NULL : &p->failure);
    if (ch != NULL)
        write_vm(p, ch, NULL);
    finish(p);
}

/* The command of the step has ended. */
static void step_over(struct provision *p, struct error *err)
{
    CLEANUP_ERROR struct error own = ERROR_INIT;
    struct provision_guest g = guest_for(p, CLEAN_MS);
    bool moved = p->step.kind == PROVISION_FILE && !error_is_set(err) && !p->hurried;

    if (error_is_set(err) && !error_is_set(&p->failure))
        error_move(&p->failure, err);
    if (p->temp == NULL || moved || guest_is_lost(p)) {
        cleaned(p, p->temp == NULL || moved);
        return;
    }
    p->phase = PROVISION_CLEAN;
    if (provision_guest_clean(p, &g, &own) < 0)
        cleaned(p, false);
}

static void begin_command(struct provision *p, bool run)
{
    CLEANUP_ERROR struct error err = ERROR_INIT;
    struct provision_guest g = guest_for(p, 0);

    p->phase = run ? PROVISION_RUN : PROVISION_SEND;
    if ((run ? provision_guest_run(p, &g, &err) : provision_guest_send(p, &g, &err)) < 0) {
        judge(p, NULL, &err);
        step_over(p, &err);
    }
}

/* The name of the file is durable: now it may be made. */
static void noted(void *arg, struct error *err)
{
    struct provision *p = arg;

    if (p->vo->parked)
        return;
    if (p->hurried || error_is_set(err)) {
        mem_free(TAKE_PTR(p->vo->vm->vm.provisioned.temp));
        if (error_is_set(err))
            judge(p, NULL, err);
        drop_temp(p); /* nothing is there */
        step_over(p, err);
        return;
    }
    begin_command(p, false);
}

static void begin_step(struct provision *p)
{
    CLEANUP_ERROR struct error err = ERROR_INIT;
    int sends = provision_guest_prepare(p, &err);

    if (sends == 0) {
        begin_command(p, true);
        return;
    }
    char *note = sends > 0 ? mem_strdup(p->temp) : NULL;
    if (note == NULL) {
        error_set(&err, ERR_DAEMON_OVERLOADED, "out of memory");
        judge(p, NULL, &err);
        drop_temp(p);
        step_over(p, &err);
        return;
    }
    mem_free(p->vo->vm->vm.provisioned.temp);
    p->vo->vm->vm.provisioned.temp = note;
    p->phase = PROVISION_NOTE;
    write_vm(p, change_new(p->vo->core), noted);
}

static bool skipped(struct provision *p)
{
    p->digest[0] = '\0';
    if (!p->step.once || !provision_step_digest(&p->step, p->digest) || !vm_provisioned_has(&p->vo->vm->vm, p->digest))
        return false;
    provision_out_line(p, "=== step %u/%u skipped, it has succeeded before: %s", p->at + 1, p->n, p->label);
    provision_out_event(p, NULL, "skipped", NULL);
    return true;
}

/* To the next step that is to run, or the end. */
static void walk(struct provision *p)
{
    for (; p->at < p->n && !p->hurried; operation_progress(p->vo->res, ++p->at, p->n)) {
        provision_step_read(json_array_get(p->steps, p->at), &p->step);
        provision_step_label(&p->step, p->label);
        p->step_began_ms = clock_mono_ms();
        provision_out_step(p);
        if (skipped(p))
            continue;
        provision_out_line(p, "=== step %u/%u: %s", p->at + 1, p->n, p->label);
        provision_out_event(p, NULL, "started", NULL);
        begin_step(p);
        return;
    }
    finish(p);
}

/* --- commands' ends --- */

static void look(struct provision *p, bool root)
{
    struct provision_guest g = guest_for(p, LOOK_MS);

    p->phase = root ? PROVISION_ROOT : PROVISION_LOGIN;
    if (provision_guest_look(p, root, &g, &p->failure) < 0)
        finish(p);
}

static void looked(struct provision *p, const struct core_exec_end *end, struct error *err)
{
    bool done = end != NULL && end->end.exit_code == 0, root = p->phase == PROVISION_ROOT;

    if (p->hurried) {
        finish(p);
    } else if (done) {
        p->root = root;
        walk(p);
    } else if (root) {
        look(p, false);
    } else if (end != NULL && end->end.exit_code == LOGIN_MAY_BE_ROOT && ++p->retries < LOOKS_MAX) {
        look(p, true);
    } else {
        if (error_is_set(err))
            error_move(&p->failure, err);
        else
            error_set(&p->failure, ERR_GUEST_UNAVAILABLE, "the guest of VM %s runs no commands for provisioning",
                      p->vo->vm->vm.name);
        finish(p);
    }
}

static void exec_output(void *arg, bool is_stderr, const char *data, size_t len)
{
    struct provision *p = arg;

    (void)is_stderr;
    if (p->phase == PROVISION_RUN || p->phase == PROVISION_SEND)
        provision_out_put(p, data, len);
}

static void exec_ended(void *arg, const struct core_exec_end *end, struct error *err)
{
    struct provision *p = arg;
    enum provision_phase phase = p->phase;

    core_exec_free(TAKE_PTR(p->exec));
    if (phase == PROVISION_ROOT || phase == PROVISION_LOGIN) {
        looked(p, end, err);
        return;
    }
    if (phase == PROVISION_CLEAN) {
        cleaned(p, end != NULL && end->end.exit_code == 0 && !end->timed_out);
        return;
    }
    judge(p, end, err);
    if (error_is_set(err))
        step_over(p, err);
    else if (phase == PROVISION_SEND && p->sent_at < p->sent_len)
        begin_command(p, false);
    else if (phase == PROVISION_SEND && p->step.kind != PROVISION_FILE)
        begin_command(p, true);
    else
        step_over(p, err);
}

static const struct core_exec_events exec_events = {.output = exec_output, .ended = exec_ended};

/* Cancelled, or too late, or the VM has ended. */
static void hurry_run(struct vm_op *vo)
{
    CLEANUP_ERROR struct error none = ERROR_INIT;
    struct provision *p = vo->provision;
    enum provision_phase phase = p->phase;

    if (p->hurried)
        return;
    p->hurried = true;
    if (phase == PROVISION_NOTE || phase == PROVISION_CLOSE || (phase == PROVISION_CLEAN && !guest_is_lost(p)))
        return;                        /* its end comes soon */
    core_exec_free(TAKE_PTR(p->exec)); /* the process group is killed */
    if (phase == PROVISION_CLEAN)
        cleaned(p, false);
    else if (phase == PROVISION_ROOT || phase == PROVISION_LOGIN)
        finish(p);
    else
        step_over(p, &none);
}

static int step_run(struct vm_op *vo, struct error *err)
{
    struct provision *p = vo->provision;

    if (provision_out_open(p, err) < 0)
        return -1;
    op_set_step_timeout(vo->op, provision_deadline_ms(p) + STEP_MARGIN_MS);
    vo->calling = false;
    vo->hurry = hurry_run;
    p->began_ms = clock_mono_ms();
    provision_out_line(p, "=== provisioning of %s: %u step%s, operation %s", vo->vm->vm.name, p->n,
                       p->n == 1 ? "" : "s", vo->res->id);
    look(p, true);
    return OP_WAIT;
}

static int step_persist(struct vm_op *vo, struct error *err)
{
    return vm_op_persist(vo, VM_RUNNING, vo->plan->kind, false, err);
}

static const struct vm_step provision_steps[] = {
    {"ready", step_ready, .timeout_ms = READY_MS + 10000},
    {"run", step_run},
    END_STEPS(step_persist),
};

const struct vm_plan vm_provision_plan = {"vm.provision", VM_PROVISION, provision_steps, ARRAY_SIZE(provision_steps),
                                          READY_MS + 2 * STEP_MARGIN_MS};
