/* test_matrix.c - every operation × every step of its table × every fault: what the operation says, what was undone and
 * in which order, what the VM is, and that nothing is left behind.
 *
 * The cells are made from the step tables themselves, so a new step is covered when it is written.  What is expected
 * follows from rules, not from a list: a fault before the commit step ended well fails the operation and undoes what
 * was done; one behind it changes nothing.  The VM is as before, unless its process is gone by then. */
#include "core_bed.h"

#include <stdio.h>

#include "base/mem.h"
#include "core/ops/ops.h"

struct scenario {
    const char *name;
    const struct vm_plan *plan;
    enum vm_state from, to;
};

static const struct scenario scenarios[] = {
    {"create", &vm_create_plan, VM_PREPARING, VM_PREPARED},
    {"create and start", &vm_create_start_plan, VM_PREPARING, VM_RUNNING},
    {"start, prepared", &vm_start_plan, VM_PREPARED, VM_RUNNING},
    {"start, stopped", &vm_start_plan, VM_STOPPED, VM_RUNNING},
    {"start, failed", &vm_start_plan, VM_FAILED, VM_RUNNING},
    {"stop, running", &vm_stop_plan, VM_RUNNING, VM_STOPPED},
    {"stop, suspended", &vm_stop_plan, VM_SUSPENDED, VM_STOPPED},
    {"kill, running", &vm_kill_plan, VM_RUNNING, VM_STOPPED},
    {"kill, suspended", &vm_kill_plan, VM_SUSPENDED, VM_STOPPED},
    {"reset, running", &vm_reset_plan, VM_RUNNING, VM_RUNNING},
    {"restart, running", &vm_restart_plan, VM_RUNNING, VM_RUNNING},
    {"restart, suspended", &vm_restart_plan, VM_SUSPENDED, VM_RUNNING},
    {"suspend", &vm_suspend_plan, VM_RUNNING, VM_SUSPENDED},
    {"resume", &vm_resume_plan, VM_SUSPENDED, VM_RUNNING},
    {"destroy, prepared", &vm_destroy_plan, VM_PREPARED, VM_DESTROYED},
    {"destroy, running", &vm_destroy_plan, VM_RUNNING, VM_DESTROYED},
    {"destroy, suspended", &vm_destroy_plan, VM_SUSPENDED, VM_DESTROYED},
    {"destroy, failed", &vm_destroy_plan, VM_FAILED, VM_DESTROYED},
};

enum fault { FAULT_NONE, FAULT_FAIL, FAULT_CANCEL, FAULT_DEADLINE, FAULT_DEATH, FAULT_DISK, FAULT_MAX };
static const char *const fault_names[] = {"no fault", "fails",        "is cancelled",
                                          "is late",  "process dies", "disk refuses"};

static const char spec[] = "{\"network\":{\"type\":\"user\",\"forwards\":[{\"guest_port\":80}]}}";

struct cell {
    struct core_bed *b;
    const struct scenario *s;
    enum fault fault;
    unsigned k; /* the step that it hits */
    char name[32], id[UUID_TEXT_MAX];
    json_t *before;   /* the VM's document */
    char *ports;      /* the rows of the ports */
    char trace[4096]; /* "reserve:running reserve:done ..." as the events told it */
    struct operation *op;
};

/* --- what is expected --- */

static unsigned commit_of(const struct vm_plan *plan)
{
    for (unsigned i = 0; i < plan->n_steps; i++)
        if (plan->steps[i].commit)
            return i;
    fail_msg("%s has no commit step", plan->kind);
    return 0;
}

static bool cancellable(const struct vm_plan *plan, unsigned k)
{
    return k < commit_of(plan) && !plan->steps[k].no_cancel;
}

static bool up(enum vm_state state)
{
    return state == VM_RUNNING || state == VM_SUSPENDED;
}

static bool has_step(const struct vm_plan *plan, const char *name, unsigned *ret)
{
    for (unsigned i = 0; i < plan->n_steps; i++)
        if (strcmp(plan->steps[i].name, name) == 0) {
            *ret = i;
            return true;
        }
    return false;
}

/* Whether the process ends in this step.  In the cells of terminate and kill the gentler steps do not help. */
static bool ends_in(const struct vm_plan *plan, unsigned k, const char *name)
{
    const char *hit = plan->steps[k].name;

    if (strcmp(name, "press") == 0)
        return strcmp(hit, "terminate") != 0 && strcmp(hit, "kill") != 0;
    if (strcmp(name, "terminate") == 0)
        return strcmp(hit, "kill") != 0;
    return strcmp(name, "kill") == 0;
}

/* Whether a process is there when step i begins, in the cells of step k. */
static bool alive_in(const struct scenario *s, unsigned k, unsigned i)
{
    bool alive = up(s->from);

    for (unsigned j = 0; j < i; j++) {
        if (ends_in(s->plan, k, s->plan->steps[j].name))
            alive = false;
        else if (strcmp(s->plan->steps[j].name, "spawn") == 0)
            alive = true;
    }
    return alive;
}

static bool alive_at(const struct scenario *s, unsigned k)
{
    return alive_in(s, k, k);
}

/* A step of a stop that finds the process gone. */
static bool skipped(const struct cell *c, unsigned i)
{
    return c->s->plan->steps[i].skip != NULL && (!alive_in(c->s, c->k, i) || (c->fault == FAULT_DEATH && i > c->k));
}

/* An end of the process is what these want, up to their own spawn. */
static bool wants_end(const struct cell *c)
{
    unsigned spawn = c->s->plan->n_steps;
    enum vm_verb verb = c->s->plan->verb;

    has_step(c->s->plan, "spawn", &spawn);
    return (verb == VM_STOP || verb == VM_KILL || verb == VM_DESTROY || verb == VM_RESTART) && c->k <= spawn;
}

static enum error_code want_code(const struct cell *c)
{
    unsigned commit = commit_of(c->s->plan);

    if (c->fault == FAULT_NONE || c->k > commit)
        return ERR_NONE;
    switch (c->fault) {
    case FAULT_FAIL:
        return ERR_HOST_DISK_FULL; /* by noop.fail_code */
    case FAULT_CANCEL:
        return cancellable(c->s->plan, c->k) ? ERR_OPERATION_CANCELLED : ERR_NONE;
    case FAULT_DEADLINE:
        return ERR_OPERATION_DEADLINE_EXCEEDED;
    case FAULT_DEATH:
        if (c->k == commit || wants_end(c))
            return ERR_NONE;
        return has_step(c->s->plan, "spawn", &commit) ? ERR_QEMU_SPAWN_FAILED : ERR_QEMU_QMP_COMMAND_FAILED;
    case FAULT_DISK:
        return ERR_DAEMON_INTERNAL; /* a constraint of the store */
    default:
        return ERR_NONE;
    }
}

static enum vm_state want_state(const struct cell *c)
{
    const struct vm_plan *plan = c->s->plan;
    enum error_code code = want_code(c);
    unsigned spawn = 0, commit = commit_of(plan);

    if (code == ERR_NONE) /* a process that died while the end was written, or after */
        return c->fault == FAULT_DEATH && c->k >= commit && up(c->s->to) ? VM_FAILED : c->s->to;
    if (plan->verb == VM_CREATE)
        return VM_DESTROYED;
    if (has_step(plan, "spawn", &spawn) && c->k >= spawn && c->k < commit && code != ERR_OPERATION_CANCELLED)
        return VM_FAILED;
    if (c->fault == FAULT_DEATH)
        return VM_FAILED;
    if (!up(c->s->from) || (alive_at(c->s, c->k) && (plan->verb != VM_RESTART || c->k < spawn)))
        return c->s->from;
    return VM_STOPPED;
}

static void want_steps(const struct cell *c, char *trace, size_t size, char *states, size_t states_size)
{
    const struct vm_plan *plan = c->s->plan;
    bool good = want_code(c) == ERR_NONE;
    unsigned last = good ? commit_of(plan) : c->k;
    size_t n = 0, m = 0;

    trace[0] = states[0] = '\0';
    for (unsigned i = 0; i <= last; i++) {
        n +=
            (size_t)snprintf(trace + n, size - n, "%s:%s ", plan->steps[i].name, skipped(c, i) ? "skipped" : "running");
        if (i < last && !skipped(c, i))
            n += (size_t)snprintf(trace + n, size - n, "%s:done ", plan->steps[i].name);
    }
    for (unsigned i = last; good && i < plan->n_steps; i++) /* what follows the commit changes nothing: told with it */
        n += (size_t)snprintf(trace + n, size - n, "%s:done ", plan->steps[i].name);
    if (!good)
        n += (size_t)snprintf(trace + n, size - n, "%s:failed ", plan->steps[last].name);
    for (unsigned i = good ? 0 : last; i-- > 0;)
        if (plan->steps[i].undo != NULL)
            n += (size_t)snprintf(trace + n, size - n, "%s:undoing %s:undone ", plan->steps[i].name,
                                  plan->steps[i].name);
    for (unsigned i = 0; i < plan->n_steps; i++)
        m += (size_t)snprintf(states + m, states_size - m, "%s ",
                              (good || i < last) && skipped(c, i)                 ? "skipped"
                              : good || (i < last && plan->steps[i].undo == NULL) ? "done"
                              : i == last                                         ? "failed"
                              : i > last                                          ? "pending"
                                                                                  : "undone");
}

/* --- the setting --- */

static void patch(struct cell *c, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
static void patch(struct cell *c, const char *fmt, ...)
{
    char text[512];
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(text, sizeof(text), fmt, ap);
    va_end(ap);
    assert_int_equal(core_bed_patch(c->b, c->name, text), ERR_NONE);
}

static void bring_to(struct cell *c)
{
    char body[512];

    snprintf(body, sizeof(body), "{\"name\":\"%s\",\"backend\":\"noop\",\"spec\":%s,\"start\":%s}", c->name, spec,
             up(c->s->from) || c->s->from == VM_STOPPED ? "true" : "false");
    core_bed_make(c->b, body);
    if (c->s->from == VM_SUSPENDED)
        assert_int_equal(core_bed_do(c->b, c->name, VM_SUSPEND), ERR_NONE);
    if (c->s->from == VM_STOPPED)
        assert_int_equal(core_bed_do(c->b, c->name, VM_STOP), ERR_NONE);
    if (c->s->from == VM_FAILED) {
        patch(c, "{\"labels\":{\"noop.fail\":\"greet\"}}");
        assert_int_equal(core_bed_do(c->b, c->name, VM_START), ERR_QEMU_QMP_CONNECT_FAILED);
        patch(c, "{\"labels\":{\"noop.fail\":null}}");
    }
    core_bed_quiet(c->b);
    assert_string_equal(core_bed_get(c->b, c->name, "state"), vm_state_text(c->s->from));
}

static void labels_of(const struct cell *c, char *out, size_t size)
{
    const char *kind = c->s->plan->kind, *step = c->s->plan->steps[c->k].name;

    switch (c->fault) {
    case FAULT_FAIL:
        snprintf(out, size, "{\"noop.fail\":\"%s:%s\",\"noop.fail_code\":\"host::disk_full\"}", kind, step);
        break;
    case FAULT_CANCEL:
        snprintf(out, size, "{\"noop.delay_ms.%s:%s\":\"%u\"}", kind, step, cancellable(c->s->plan, c->k) ? 60000 : 60);
        break;
    case FAULT_DEADLINE:
        snprintf(out, size, "{\"noop.delay_ms.%s:%s\":\"60000\",\"test.timeout_ms.%s\":\"15\"}", kind, step, step);
        break;
    case FAULT_DEATH:
        snprintf(out, size,
                 "{\"noop.delay_ms.%s:%s\":\"60\",\"noop.exit\":\"killed:9\",\"noop.exit_step\":\"%s:%s\","
                 "\"noop.exit_after_ms\":\"5\"}",
                 kind, step, kind, step);
        break;
    default:
        snprintf(out, size, "{}");
    }
}

static int (*noop_before_step)(struct backend_vm *bvm, const char *kind, const char *step, struct backend_call *call,
                               struct error *err);

/* The tables' deadlines are of seconds and minutes: a label shortens that of the step which begins. */
static int before_step(struct backend_vm *bvm, const char *kind, const char *step, struct backend_call *call,
                       struct error *err)
{
    struct vm_op *vo = CONTAINER_OF(call, struct vm_op, call);
    char key[64];

    snprintf(key, sizeof(key), "test.timeout_ms.%s", step);
    const char *ms = vm_label_get(&vo->vm->vm.labels, key);
    if (ms != NULL)
        op_set_step_timeout(vo->op, atoi(ms));
    return noop_before_step(bvm, kind, step, call, err);
}

static void trace(void *arg, int64_t id, const char *type, const char *doc)
{
    struct cell *c = arg;
    json_t *json = json_loads(doc, 0, NULL), *data = json_object_get(json, "data");
    const char *op = json_string_value(json_object_get(json, "operation_id"));
    size_t len = strlen(c->trace);

    (void)id;
    (void)type;
    if (c->op != NULL && op != NULL && strcmp(op, operation_id(c->op)) == 0)
        snprintf(c->trace + len, sizeof(c->trace) - len, "%s:%s ", json_string_value(json_object_get(data, "step")),
                 json_string_value(json_object_get(data, "state")));
    json_decref(json);
}

static char *port_rows(struct core_bed *b)
{
    return core_bed_sql(
        b,
        "SELECT count(*) || ':' || ifnull(group_concat(p), '') FROM (SELECT udp || host_ip || port || vm_id AS p FROM "
        "ports ORDER BY p)",
        NULL);
}

static void plant(struct cell *c, const char *sql)
{
    mem_free(core_bed_sql(c->b, sql, NULL));
}

/* --- one cell --- */

static void be_deaf(struct cell *c)
{
    unsigned press = 0;
    bool gentle = ends_in(c->s->plan, c->k, "press") || !has_step(c->s->plan, "press", &press);

    c->b->timeout_s = gentle ? 1 : 0;
    if (!gentle && !ends_in(c->s->plan, c->k, "terminate"))
        patch(c, "{\"labels\":{\"noop.ignore_term\":\"refused\"}}");
}

static void begin(struct cell *c)
{
    CLEANUP_ERROR struct error err = ERROR_INIT;
    char labels[512], body[1024];

    labels_of(c, labels, sizeof(labels));
    be_deaf(c);
    if (c->s->plan->verb == VM_CREATE) {
        snprintf(body, sizeof(body), "{\"name\":\"%s\",\"backend\":\"noop\",\"spec\":%s,\"start\":%s,\"labels\":%s}",
                 c->name, spec, c->s->plan == &vm_create_start_plan ? "true" : "false", labels);
        c->op = core_bed_create(c->b, body, NULL, &err);
    } else {
        patch(c, "{\"labels\":%s}", labels);
        c->before = core_bed_doc(c->b, c->name);
        c->op = core_bed_verb(c->b, c->name, c->s->plan->verb, &err);
    }
    if (c->op == NULL)
        fail_msg("not begun: %s", err.message);
    memcpy(c->id, c->op->vm_id, sizeof(c->id));
}

static bool at_step(void *arg)
{
    const struct cell *c = arg;

    return operation_ended(c->op) ||
           (c->op->step_begun && c->op->step == c->k && c->op->steps[c->k].state == OP_STEP_RUNNING);
}

static bool let_go(void *arg)
{
    struct cell *c = arg;
    struct live_vm *vm = core_bed_vm(c->b, c->name);

    return c->b->core->n_running == 0 && (vm == NULL || !vm->settling);
}

static void cancel_at(struct cell *c)
{
    CLEANUP_ERROR struct error err = ERROR_INIT;
    bool allowed = cancellable(c->s->plan, c->k);

    assert_true(core_bed_poll(c->b, at_step, c));
    int rc = core_operation_cancel(c->b->core, c->op, "test", &err);
    assert_int_equal(rc, allowed ? 0 : -1);
    if (rc < 0)
        assert_int_equal(err.code, ERR_OPERATION_NOT_CANCELLABLE);
}

static void check_operation(struct cell *c)
{
    CLEANUP_FREE char *row = core_bed_sql(c->b, "SELECT doc FROM operations WHERE id = ?", operation_id(c->op));
    const struct error *got = operation_error(c->op);
    enum error_code want = want_code(c);
    char want_trace[4096], want_states[256], states[256] = "";
    json_t *doc = json_loads(operation_doc(c->op), 0, NULL), *step;
    size_t i;

    assert_string_equal(got != NULL ? error_info(got->code)->code : "", want != ERR_NONE ? error_info(want)->code : "");
    assert_string_equal(json_string_value(json_object_get(doc, "state")), want == ERR_NONE ? "succeeded"
                                                                          : want == ERR_OPERATION_CANCELLED
                                                                              ? "cancelled"
                                                                              : "failed");
    assert_string_equal(row, operation_doc(c->op));
    assert_true(json_is_null(json_object_get(doc, "step")));
    assert_true(json_is_false(json_object_get(doc, "cancellable")));
    want_steps(c, want_trace, sizeof(want_trace), want_states, sizeof(want_states));
    assert_string_equal(c->trace, want_trace);
    json_array_foreach(json_object_get(doc, "steps"), i, step)
    {
        size_t len = strlen(states);
        snprintf(states + len, sizeof(states) - len, "%s ", json_string_value(json_object_get(step, "state")));
    }
    assert_string_equal(states, want_states);
    json_decref(doc);
}

static void same(const json_t *a, const json_t *b, const char *member)
{
    CLEANUP_FREE char *ta = json_dumps(json_object_get(a, member), JSON_ENCODE_ANY | JSON_SORT_KEYS);
    CLEANUP_FREE char *tb = json_dumps(json_object_get(b, member), JSON_ENCODE_ANY | JSON_SORT_KEYS);

    assert_string_equal(ta, tb);
}

static void check_vm(struct cell *c)
{
    enum vm_state want = want_state(c);
    CLEANUP_FREE char *row = core_bed_sql(c->b, "SELECT doc FROM vms WHERE id = ?", c->id);
    CLEANUP_FREE char *dead = core_bed_sql(c->b, "SELECT destroyed_at > 0 FROM vms WHERE id = ?", c->id);
    CLEANUP_FREE char *ports = port_rows(c->b);
    struct live_vm *vm = core_bed_vm(c->b, c->name);

    assert_string_equal(dead, want == VM_DESTROYED ? "1" : "0");
    if (want == VM_DESTROYED) {
        CLEANUP_ERROR struct error err = ERROR_INIT;
        assert_null(vm);
        assert_null(core_vm_find(c->b->core, c->id, &err));
        assert_int_equal(err.code, ERR_LIFECYCLE_DESTROYED);
        assert_string_equal(ports, "0:");
        assert_int_equal(c->b->core->ports.n, 0);
        return;
    }
    json_t *doc = core_bed_doc(c->b, c->name);
    assert_non_null(doc);
    assert_string_equal(json_string_value(json_object_get(doc, "state")), vm_state_text(want));
    assert_int_equal(vm->vm.state, want);
    size_t len = 0;
    assert_string_equal(row, core_vm_doc(vm, &len));
    assert_int_equal(len, strlen(row));
    assert_true(json_is_null(json_object_get(doc, "operation")));
    assert_true((want == VM_FAILED) == json_is_object(json_object_get(doc, "failure")));
    assert_true(up(want) == (core_vm_attached(vm) != NULL));
    assert_null(vm->op);
    assert_true(up(want) == json_is_string(json_object_get(json_object_get(doc, "runtime"), "accel")));
    if (c->before != NULL) {
        same(c->before, doc, "spec");
        same(c->before, doc, "labels");
        same(c->before, doc, "generation");
        if (want == c->s->from && want_code(c) != ERR_NONE)
            same(c->before, doc, "runtime");
        if (want == c->s->from && want_code(c) != ERR_NONE &&
            (want != VM_FAILED || c->k == 0 || c->fault == FAULT_DISK))
            same(c->before, doc, "failure");
        assert_string_equal(ports, c->ports);
    }
    assert_int_equal(c->b->core->ports.n, 2);
    json_decref(doc);
}

/* The VM is nobody's: what is legal in its state works. */
static void check_free(struct cell *c)
{
    struct live_vm *vm = core_bed_vm(c->b, c->name);

    c->b->timeout_s = 1;
    if (vm != NULL) {
        enum vm_state state = vm->vm.state;
        patch(c,
              "{\"labels\":{\"noop.fail\":null,\"noop.exit\":null,\"noop.exit_step\":null,\"noop.delay_ms.%s:%s\":null,"
              "\"test.timeout_ms.%s\":null}}",
              c->s->plan->kind, c->s->plan->steps[c->k].name, c->s->plan->steps[c->k].name);
        assert_int_equal(core_bed_do(c->b, c->name,
                                     state == VM_RUNNING     ? VM_STOP
                                     : state == VM_SUSPENDED ? VM_RESUME
                                                             : VM_START),
                         ERR_NONE);
        assert_int_equal(core_bed_do(c->b, c->name, VM_DESTROY), ERR_NONE);
    }
    core_bed_quiet(c->b);
    assert_int_equal(c->b->core->n_running, 0);
    assert_int_equal(c->b->core->n_changes, 0);
    CLEANUP_FREE char *open = core_bed_sql(c->b, "SELECT count(*) FROM operations WHERE finished_at = 0", NULL);
    assert_string_equal(open, "0");
    CLEANUP_FREE char *alive = core_bed_sql(c->b, "SELECT count(*) FROM vms WHERE destroyed_at = 0", NULL);
    assert_string_equal(alive, "0");
}

static void run_cell(struct core_bed *b, const struct scenario *s, unsigned k, enum fault fault, unsigned serial)
{
    CLEANUP_ERROR struct error err = ERROR_INIT;
    struct cell c = {.b = b, .s = s, .fault = fault, .k = k};

    if (getenv("MATRIX_VERBOSE") != NULL)
        print_message("  %s: %s %s\n", s->name, s->plan->steps[k].name, fault_names[fault]);
    snprintf(c.name, sizeof(c.name), "vm-%u", serial);
    if (s->plan->verb != VM_CREATE)
        bring_to(&c);
    c.ports = port_rows(b);
    struct event_sub *sub =
        core_events_subscribe(b->core, -1, &(struct event_filter){.type_glob = "operation.step"}, trace, &c, &err);
    assert_non_null(sub);
    core_bed_turns(b, 2);
    if (fault == FAULT_DISK) /* its intent is written, its end is not */
        plant(&c, "CREATE TRIGGER no_end BEFORE INSERT ON operations WHEN new.state = 'succeeded' BEGIN SELECT "
                  "RAISE(ABORT, 'full'); END");
    begin(&c);
    if (fault == FAULT_CANCEL)
        cancel_at(&c);
    core_bed_await(b, c.op, true);
    if (fault == FAULT_DISK)
        plant(&c, "DROP TRIGGER no_end");
    assert_true(core_bed_poll(b, let_go, &c));
    core_bed_quiet(b);
    check_operation(&c);
    check_vm(&c);
    core_events_unsubscribe(sub);
    operation_unref(c.op);
    check_free(&c);
    json_decref(c.before);
    mem_free(c.ports);
}

static const struct scenario *current; /* set-up moves on to the next */

static void matrix(void **state)
{
    struct core_bed *b = *state;
    const struct scenario *s = current;
    unsigned serial = 0, commit = commit_of(s->plan);

    noop_before_step = b->noop->before_step;
    b->noop->before_step = before_step;
    run_cell(b, s, s->plan->n_steps - 1, FAULT_NONE, serial++);
    run_cell(b, s, commit, FAULT_DISK, serial++);
    for (unsigned k = 0; k < s->plan->n_steps; k++)
        for (int fault = FAULT_FAIL; fault <= FAULT_DEATH; fault++)
            if (fault != FAULT_DEATH || alive_at(s, k))
                run_cell(b, s, k, (enum fault)fault, serial++);
    print_message("  %s: %u cells\n", s->name, serial);
}

static int set_up(void **state)
{
    int rc = core_bed_set_up(state);

    current = current == NULL ? scenarios : current + 1;
    return rc;
}

/* A start is the same wherever it stands: alone, behind a create, in a restart. */
static void same_start(void **state)
{
    static const struct vm_plan *const longer[] = {&vm_create_start_plan, &vm_restart_plan};

    (void)state;
    for (size_t p = 0; p < ARRAY_SIZE(longer); p++) {
        unsigned at = 0;
        assert_true(has_step(longer[p], "prepare", &at));
        for (unsigned i = 1; i < vm_start_plan.n_steps; i++) {
            const struct vm_step *one = &vm_start_plan.steps[i], *other = &longer[p]->steps[at + i - 1];
            assert_string_equal(one->name, other->name);
            assert_ptr_equal(one->run, other->run);
            assert_ptr_equal(one->undo, other->undo);
            assert_int_equal(one->timeout_ms, other->timeout_ms);
        }
    }
}

int main(void)
{
    struct CMUnitTest tests[ARRAY_SIZE(scenarios) + 1];

    for (size_t i = 0; i < ARRAY_SIZE(scenarios); i++)
        tests[i] = (struct CMUnitTest){scenarios[i].name, matrix, set_up, core_bed_tear_down, NULL};
    tests[ARRAY_SIZE(scenarios)] = (struct CMUnitTest)cmocka_unit_test(same_start);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
