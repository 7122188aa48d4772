/* test_core.c - the rules that are not about one operation: keys, queues, waits, PATCH, tombstones, events, lists,
 * ports, and what the next daemon makes of what the last one left. */
#include "core_bed.h"

#include <stdio.h>

#include "base/clock.h"
#include "base/mem.h"
#include "base/problem.h"
#include "core/ops/ops.h"

#define WEB "{\"name\":\"web\",\"backend\":\"noop\"}"
#define WEB_UP "{\"name\":\"web\",\"backend\":\"noop\",\"start\":true}"

static void plant(struct core_bed *b, const char *sql)
{
    mem_free(core_bed_sql(b, sql, NULL));
}

/* The text of the first column, which is compared with `want`. */
static void row_is(struct core_bed *b, const char *sql, const char *arg, const char *want)
{
    CLEANUP_FREE char *got = core_bed_sql(b, sql, arg);

    assert_string_equal(got != NULL ? got : "(null)", want);
}

/* --- idempotency keys --- */

static struct operation *lookup(struct core_bed *b, const char *key, const char *print, char *id, enum error_code *code)
{
    CLEANUP_ERROR struct error err = ERROR_INIT;
    struct core_request req = {.idempotency_key = key, .fingerprint = print};
    struct operation *op = NULL;

    core_key_lookup(b->core, &req, &op, id, &err);
    *code = err.code;
    return op;
}

static void keys(void **state)
{
    struct core_bed *b = *state;
    CLEANUP_ERROR struct error err = ERROR_INIT;
    char id[UUID_TEXT_MAX], first[UUID_TEXT_MAX];
    enum error_code code;

    assert_null(lookup(b, "k1", WEB, id, &code));
    assert_string_equal(id, "");
    struct operation *op = core_bed_create(b, WEB, "k1", &err);
    assert_ptr_equal(lookup(b, "k1", WEB, id, &code), op); /* before it is durable too */
    snprintf(first, sizeof(first), "%s", operation_id(op));
    assert_string_equal(id, first);
    assert_int_equal(core_bed_end(b, op), ERR_NONE);
    assert_null(lookup(b, "k1", "another", id, &code));
    assert_int_equal(code, ERR_API_IDEMPOTENCY_MISMATCH);
    assert_non_null(lookup(b, "k1", WEB, id, &code));
    /* a refusal before any effect is not remembered */
    assert_null(core_bed_create(b, WEB, "k2", &err));
    assert_int_equal(err.code, ERR_VM_ALREADY_EXISTS);
    lookup(b, "k2", WEB, id, &code);
    assert_string_equal(id, "");
    plant(b, "CREATE TRIGGER no BEFORE INSERT ON operations BEGIN SELECT RAISE(ABORT, 'full'); END");
    op = core_bed_create(b, "{\"name\":\"db\",\"backend\":\"noop\"}", "k3", &err);
    assert_non_null(op);
    assert_int_equal(core_bed_end(b, op), ERR_DAEMON_INTERNAL);
    plant(b, "DROP TRIGGER no");
    lookup(b, "k3", WEB, id, &code);
    assert_string_equal(id, "");
    assert_int_equal(b->core->n_running, 0);
    assert_null(core_bed_vm(b, "db"));
    core_bed_make(b, "{\"name\":\"db\",\"backend\":\"noop\"}");
    /* and over a restart */
    core_bed_close(b, 1000);
    core_bed_open(b);
    assert_null(lookup(b, "k1", WEB, id, &code));
    assert_int_equal(code, ERR_NONE);
    assert_string_equal(id, first);
    lookup(b, "k1", "another", id, &code);
    assert_int_equal(code, ERR_API_IDEMPOTENCY_MISMATCH);
}

/* --- who holds the VM, who waits --- */

static bool under_way(void *arg)
{
    const struct operation *op = arg;

    return op->step_begun;
}

static struct operation *slow_start(struct core_bed *b, const char *body)
{
    CLEANUP_ERROR struct error err = ERROR_INIT;
    struct operation *op = core_bed_create(b, body, NULL, &err);

    assert_non_null(op);
    core_bed_await(b, op, false);
    assert_true(core_bed_poll(b, under_way, op));
    return op;
}

#define SLOW "{\"name\":\"web\",\"backend\":\"noop\",\"start\":true,\"labels\":{\"noop.delay_ms.greet\":\"60000\"}}"

static void busy_and_queues(void **state)
{
    struct core_bed *b = *state;
    CLEANUP_ERROR struct error err = ERROR_INIT;

    core_bed_make(b, "{\"name\":\"web\",\"backend\":\"noop\",\"labels\":{\"noop.delay_ms.greet\":\"60000\"}}");
    struct operation *start = core_bed_verb(b, "web", VM_START, &err);
    core_bed_await(b, start, false);
    assert_null(core_bed_verb(b, "web", VM_STOP, &err));
    assert_int_equal(err.code, ERR_VM_BUSY);
    assert_string_equal(error_ctx_get(&err, "operation"), operation_id(start));
    error_done(&err);
    struct operation *kill = core_bed_verb(b, "web", VM_KILL, &err);
    struct operation *destroy = core_bed_verb(b, "web", VM_DESTROY, &err);
    assert_non_null(kill);
    assert_non_null(destroy);
    assert_int_equal(core_bed_end(b, start), ERR_OPERATION_CANCELLED);
    /* the destroy cancelled the holder as well, and comes last */
    enum error_code code = core_bed_end(b, kill);
    assert_true(code == ERR_NONE || code == ERR_OPERATION_CANCELLED);
    assert_int_equal(core_bed_end(b, destroy), ERR_NONE);
    assert_null(core_bed_vm(b, "web"));
    assert_int_equal(b->core->n_running, 0);
}

static void destroy_of_a_half_made_vm(void **state)
{
    struct core_bed *b = *state;
    CLEANUP_ERROR struct error err = ERROR_INIT;
    struct operation *create = slow_start(b, SLOW);
    struct operation *kill = core_bed_verb(b, "web", VM_KILL, &err);
    struct operation *destroy = core_bed_verb(b, "web", VM_DESTROY, &err);

    assert_int_equal(core_bed_end(b, create), ERR_OPERATION_CANCELLED);
    assert_int_equal(core_bed_end(b, kill), ERR_LIFECYCLE_DESTROYED);
    assert_int_equal(core_bed_end(b, destroy), ERR_NONE);
    assert_int_equal(b->core->n_running, 0);
    row_is(b, "SELECT count(*) FROM vms WHERE destroyed_at = 0", NULL, "0");
    row_is(b, "SELECT count(*) FROM operations WHERE finished_at = 0", NULL, "0");
}

static void one_that_waits_is_cancelled_or_refused(void **state)
{
    struct core_bed *b = *state;
    CLEANUP_ERROR struct error err = ERROR_INIT;

    core_bed_make(
        b, "{\"name\":\"web\",\"backend\":\"noop\",\"start\":true,\"labels\":{\"noop.delay_ms.persist\":\"300\"}}");
    struct operation *suspend = core_bed_verb(b, "web", VM_SUSPEND, &err);
    core_bed_await(b, suspend, false);
    struct operation *kill = core_bed_verb(b, "web", VM_KILL, &err);
    core_bed_await(b, kill, false);
    assert_int_equal(core_operation_cancel(b->core, kill, NULL, &err), 0);
    plant(b, "CREATE TRIGGER no BEFORE INSERT ON operations WHEN new.kind = 'vm.destroy' BEGIN SELECT RAISE(ABORT, "
             "'full'); END");
    struct operation *destroy = core_bed_verb(b, "web", VM_DESTROY, &err);
    assert_int_equal(core_bed_end(b, destroy), ERR_DAEMON_INTERNAL);
    plant(b, "DROP TRIGGER no");
    core_bed_end(b, suspend);
    assert_int_equal(core_bed_end(b, kill), ERR_OPERATION_CANCELLED);
    core_bed_quiet(b);
    assert_int_equal(b->core->n_running, 0);
    assert_int_equal(core_bed_do(b, "web", VM_DESTROY), ERR_NONE);
}

static void stop_escalates(void **state)
{
    struct core_bed *b = *state;
    CLEANUP_ERROR struct error err = ERROR_INIT;
    static const char *const labels[] = {"{\"noop.method\":\"agent\"}",
                                         "{\"noop.method\":null,\"noop.ignore_acpi\":\"true\"}",
                                         "{\"noop.ignore_acpi\":\"true\",\"noop.ignore_term\":\"true\"}"};
    static const char *const methods[] = {"agent", "term", "kill"};
    char patch[160];

    core_bed_make(b, WEB);
    for (size_t i = 0; i < ARRAY_SIZE(labels); i++) {
        snprintf(patch, sizeof(patch), "{\"labels\":%s}", labels[i]);
        assert_int_equal(core_bed_patch(b, "web", patch), ERR_NONE);
        assert_int_equal(core_bed_do(b, "web", VM_START), ERR_NONE);
        struct operation *op = core_bed_verb(b, "web", VM_STOP, &err);
        core_bed_await(b, op, true);
        assert_null(operation_error(op));
        assert_string_equal(op->method, methods[i]);
        operation_unref(op);
        assert_string_equal(core_bed_get(b, "web", "state"), "stopped");
    }
    struct operation *again = core_bed_verb(b, "web", VM_STOP, &err);
    core_bed_await(b, again, true);
    assert_string_equal(again->method, "none");
    operation_unref(again);
}

/* --- ends that nobody asked for --- */

static void processes_end(void **state)
{
    struct core_bed *b = *state;
    static const struct {
        const char *how, *state, *reason, *signal;
    } cases[] = {{"guest-off", "stopped", NULL, NULL},
                 {"panic", "failed", "panic", NULL},
                 {"exited:3", "failed", "exited", NULL},
                 {"killed:9", "failed", "killed", "SIGKILL"}};
    char patch[128];

    core_bed_make(b, WEB);
    for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
        snprintf(patch, sizeof(patch), "{\"labels\":{\"noop.exit\":\"%s\",\"noop.exit_after_ms\":\"100\"}}",
                 cases[i].how);
        assert_int_equal(core_bed_patch(b, "web", patch), ERR_NONE);
        assert_int_equal(core_bed_do(b, "web", VM_START), ERR_NONE);
        timer_start(b->alarm, 20000, 0);
        while (strcmp(core_bed_get(b, "web", "state"), "running") == 0 && !b->late)
            loop_run_once(b->loop, true);
        core_bed_quiet(b);
        assert_string_equal(core_bed_get(b, "web", "state"), cases[i].state);
        assert_string_equal(core_bed_get(b, "web", "failure.reason"),
                            cases[i].reason != NULL ? cases[i].reason : "(none)");
        if (cases[i].signal != NULL)
            assert_string_equal(core_bed_get(b, "web", "failure.signal"), cases[i].signal);
        assert_null(core_vm_attached(core_bed_vm(b, "web")));
    }
}

/* --- waits --- */

struct waited {
    bool over;
    enum error_code code;
};

static void waited(void *arg, struct live_vm *vm, struct error *err)
{
    struct waited *w = arg;

    (void)vm;
    w->over = true;
    w->code = err->code;
}

static enum error_code wait_for(struct core_bed *b, const char *condition, int64_t ms)
{
    CLEANUP_ERROR struct error err = ERROR_INIT;
    struct waited w = {0};

    if (core_vm_wait(core_bed_vm(b, "web"), &condition, 1, ms, waited, &w, &err) == NULL)
        return err.code;
    assert_true(core_bed_until(b, &w.over));
    return w.code;
}

static void waits(void **state)
{
    struct core_bed *b = *state;
    CLEANUP_ERROR struct error err = ERROR_INIT;
    const char *both[] = {"state:running", "ready"}, *never[] = {"state:running"};
    struct waited met = {0}, gone = {0};

    core_bed_make(b, WEB);
    assert_int_equal(wait_for(b, "state:prepared", 1000), ERR_NONE);
    assert_int_equal(wait_for(b, "state:rnning", 1000), ERR_API_INVALID_FIELD);
    assert_int_equal(wait_for(b, "ready", 30), ERR_WAIT_TIMED_OUT);
    assert_non_null(core_vm_wait(core_bed_vm(b, "web"), both, 2, 10000, waited, &met, &err));
    assert_int_equal(core_bed_do(b, "web", VM_START), ERR_NONE);
    assert_true(core_bed_until(b, &met.over));
    assert_int_equal(met.code, ERR_NONE);
    assert_int_equal(core_bed_do(b, "web", VM_STOP), ERR_NONE);
    assert_int_equal(wait_for(b, "ready", 10000), ERR_WAIT_IMPOSSIBLE);
    struct vm_wait *dropped = core_vm_wait(core_bed_vm(b, "web"), both, 2, 10000, waited, &gone, &err);
    core_vm_unwait(dropped);
    /* one that waits when the VM fails: told at once, not at its time */
    assert_int_equal(core_bed_patch(b, "web", "{\"labels\":{\"noop.fail\":\"verify\"}}"), ERR_NONE);
    struct operation *start = core_bed_verb(b, "web", VM_START, &err);
    met = (struct waited){0};
    assert_non_null(core_vm_wait(core_bed_vm(b, "web"), never, 1, 60000, waited, &met, &err));
    assert_int_equal(core_bed_end(b, start), ERR_QEMU_QMP_COMMAND_FAILED);
    assert_true(core_bed_until(b, &met.over));
    assert_int_equal(met.code, ERR_WAIT_IMPOSSIBLE);
    /* and when it is destroyed */
    const char *destroyed[] = {"state:destroyed"};
    struct waited end = {0};
    met = (struct waited){0};
    assert_int_equal(core_bed_patch(b, "web", "{\"labels\":{\"noop.fail\":null,\"noop.delay_ms.spawn\":\"60000\"}}"),
                     ERR_NONE);
    start = core_bed_verb(b, "web", VM_START, &err);
    assert_non_null(core_vm_wait(core_bed_vm(b, "web"), never, 1, 60000, waited, &met, &err));
    assert_non_null(core_vm_wait(core_bed_vm(b, "web"), destroyed, 1, 60000, waited, &end, &err));
    assert_int_equal(core_bed_do(b, "web", VM_DESTROY), ERR_NONE);
    assert_int_equal(core_bed_end(b, start), ERR_OPERATION_CANCELLED);
    assert_true(core_bed_until(b, &met.over) && core_bed_until(b, &end.over));
    assert_int_equal(met.code, ERR_WAIT_IMPOSSIBLE);
    assert_int_equal(end.code, ERR_NONE);
    assert_false(gone.over);
}

/* --- PATCH --- */

static void on_patched(void *arg, struct live_vm *vm, struct error *err)
{
    waited(arg, vm, err);
}

static void patch_soon(struct core_bed *b, const char *text, struct waited *ret)
{
    CLEANUP_ERROR struct error err = ERROR_INIT;
    struct core_request req = {.request_id = "test"};
    json_t *patch = json_loads(text, 0, NULL);

    assert_int_equal(core_vm_patch(b->core, &req, "web", patch, NULL, on_patched, ret, &err), 0);
    json_decref(patch);
}

static void patches_are_reverted(void **state)
{
    struct core_bed *b = *state;
    struct waited one = {0}, two = {0}, three = {0};

    core_bed_make(b, "{\"name\":\"web\",\"backend\":\"noop\",\"labels\":{\"a\":\"1\"},\"spec\":{\"vcpus\":2}}");
    plant(b, "CREATE TRIGGER no BEFORE INSERT ON vms BEGIN SELECT RAISE(ABORT, 'full'); END");
    patch_soon(b, "{\"labels\":{\"a\":\"2\"},\"spec\":{\"vcpus\":4}}", &one);
    patch_soon(b, "{\"spec\":{\"vcpus\":8}}", &two);
    patch_soon(b, "{\"labels\":{\"b\":\"3\"}}", &three);
    assert_true(core_bed_until(b, &one.over) && core_bed_until(b, &two.over) && core_bed_until(b, &three.over));
    assert_true(one.code == ERR_DAEMON_INTERNAL && two.code == ERR_DAEMON_INTERNAL &&
                three.code == ERR_DAEMON_INTERNAL);
    const struct vm *vm = core_vm_data(core_bed_vm(b, "web"));
    assert_int_equal(vm->spec.vcpus, 2);
    assert_int_equal(vm->generation, 1);
    assert_int_equal(vm->labels.n, 1);
    assert_string_equal(vm_label_get(&vm->labels, "a"), "1");
    plant(b, "DROP TRIGGER no");
    assert_int_equal(core_bed_patch(b, "web", "{\"spec\":{\"vcpus\":3}}"), ERR_NONE);
    assert_string_equal(core_bed_get(b, "web", "spec.vcpus"), "3");
    assert_string_equal(core_bed_get(b, "web", "generation"), "2");
    assert_int_equal(core_bed_patch(b, "web", "{\"spec\":{\"machine\":\"microvm\"}}"), ERR_API_INVALID_FIELD);
    assert_int_equal(core_bed_do(b, "web", VM_START), ERR_NONE);
    assert_int_equal(core_bed_patch(b, "web", "{\"spec\":{\"vcpus\":4}}"), ERR_VM_INVALID_STATE);
    assert_int_equal(core_bed_patch(b, "web", "{\"spec\":{\"protect\":true}}"), ERR_NONE);
    assert_int_equal(core_bed_do(b, "web", VM_DESTROY), ERR_VM_PROTECTED);
}

/* --- tombstones --- */

static void tombstones(void **state)
{
    struct core_bed *b = *state;
    CLEANUP_ERROR struct error err = ERROR_INIT;
    char id[UUID_TEXT_MAX];

    core_bed_make(b, WEB);
    uuid_text(&core_bed_vm(b, "web")->vm.id, id);
    assert_int_equal(core_bed_do(b, "web", VM_DESTROY), ERR_NONE);
    for (int again = 0; again < 2; again++) {
        assert_null(core_vm_find(b->core, "web", &err));
        assert_int_equal(err.code, ERR_VM_NOT_FOUND);
        error_done(&err);
        assert_null(core_vm_find(b->core, id, &err));
        assert_int_equal(err.code, ERR_LIFECYCLE_DESTROYED);
        error_done(&err);
        assert_int_equal(core_bed_do(b, id, VM_DESTROY), ERR_NONE); /* nothing to do */
        assert_int_equal(core_bed_do(b, id, VM_START), ERR_LIFECYCLE_DESTROYED);
        core_bed_close(b, 1000);
        core_bed_open(b);
    }
    core_bed_make(b, WEB); /* the name is free */
    assert_non_null(core_bed_vm(b, "web"));
}

/* --- events --- */

struct heard {
    int64_t last;
    unsigned n, wrong;
    unsigned stop_after;
    struct event_sub *sub;
};

static void hear(void *arg, int64_t id, const char *type, const char *doc)
{
    struct heard *h = arg;

    (void)type;
    (void)doc;
    h->wrong += id <= h->last;
    h->last = id;
    h->n++;
    if (h->n == h->stop_after)
        core_events_unsubscribe(h->sub);
}

static bool caught_up(void *arg)
{
    const struct heard *h = arg;

    return h->sub == NULL || h->n >= 1500;
}

static void events_are_replayed_then_live(void **state)
{
    struct core_bed *b = *state;
    CLEANUP_ERROR struct error err = ERROR_INIT;
    struct heard all = {0}, late = {0}, other = {0}, few = {.stop_after = 3};
    char body[96];

    for (int i = 0; i < 100; i++) { /* more than one batch of the replay */
        snprintf(body, sizeof(body), "{\"name\":\"vm-%d\",\"backend\":\"noop\",\"start\":true}", i);
        core_bed_make(b, body);
    }
    core_bed_quiet(b);
    int64_t middle = core_event_newest(b->core) / 2;
    all.sub = core_events_subscribe(b->core, 0, &(struct event_filter){0}, hear, &all, &err);
    late.sub = core_events_subscribe(b->core, middle, &(struct event_filter){0}, hear, &late, &err);
    other.sub = core_events_subscribe(b->core, 0, &(struct event_filter){.vm = "vm-7", .type_glob = "vm.*"}, hear,
                                      &other, &err);
    few.sub = core_events_subscribe(b->core, 0, &(struct event_filter){0}, hear, &few, &err);
    core_bed_make(b, WEB_UP); /* live events come while the replay runs */
    core_bed_poll(b, caught_up, &all);
    core_bed_make(b, "{\"name\":\"db\",\"backend\":\"noop\"}");
    core_bed_quiet(b);
    core_bed_turns(b, 50);
    core_bed_quiet(b);
    int64_t newest = core_event_newest(b->core);
    row_is(b, "SELECT count(*) - max(id) FROM events", NULL, "0");
    assert_int_equal(all.wrong + late.wrong + other.wrong, 0);
    assert_int_equal(all.last, newest);
    assert_int_equal(all.n, newest); /* each once */
    assert_int_equal(late.n, newest - middle);
    CLEANUP_FREE char *sevens = core_bed_sql(
        b, "SELECT count(*) FROM events WHERE type GLOB 'vm.*' AND doc LIKE '%\"vm_name\":\"vm-7\"%'", NULL);
    assert_int_equal(other.n, strtol(sevens, NULL, 10));
    assert_int_equal(few.n, 3);
    core_events_unsubscribe(all.sub);
    core_events_unsubscribe(late.sub);
    core_events_unsubscribe(other.sub);
    b->core->event_oldest = 5;
    assert_null(core_events_subscribe(b->core, 1, &(struct event_filter){0}, hear, &all, &err));
    assert_int_equal(err.code, ERR_EVENTS_CURSOR_EXPIRED);
}

/* --- lists --- */

static void lists(void **state)
{
    struct core_bed *b = *state;
    CLEANUP_ERROR struct error err = ERROR_INIT;
    char body[128], after[64] = "", names[512] = "";
    unsigned pages = 0;

    for (int i = 0; i < 25; i++) {
        snprintf(body, sizeof(body),
                 "{\"name\":\"vm-%02d\",\"backend\":\"noop\",\"labels\":{\"odd\":\"%d\"},\"start\":%s}", i, i % 2,
                 i < 5 ? "true" : "false");
        core_bed_make(b, body);
    }
    struct core_filter odd = {.n_labels = 1, .label_keys = {"odd"}, .label_values = {"1"}, .name_glob = "vm-?[13579]"};
    for (;;) {
        CLEANUP_BUF struct buf out = BUF_INIT(1 << 20);
        CLEANUP_FREE char *last = NULL;
        buf_char(&out, '[');
        assert_int_equal(core_vm_list(b->core, &odd, after, 5, &out, &last, &err), 0);
        buf_char(&out, ']');
        json_t *page = json_loadb(out.data, out.len, 0, NULL), *doc;
        size_t i;
        assert_non_null(page);
        json_array_foreach(page, i, doc)
        {
            size_t len = strlen(names);
            snprintf(names + len, sizeof(names) - len, "%s ", json_string_value(json_object_get(doc, "name")) + 3);
        }
        json_decref(page);
        pages++;
        if (last == NULL)
            break;
        snprintf(after, sizeof(after), "%s", last);
        if (pages == 1) /* what goes or comes before the cursor does not matter */
            assert_int_equal(core_bed_do(b, "vm-01", VM_DESTROY), ERR_NONE);
    }
    assert_string_equal(names, "01 03 05 07 09 11 13 15 17 19 21 23 ");
    assert_int_equal(pages, 3);
    CLEANUP_BUF struct buf out = BUF_INIT(1 << 20);
    CLEANUP_FREE char *last = NULL;
    struct core_filter running = {.by_state = true, .states = 1U << VM_RUNNING, .backend = "noop"};
    assert_int_equal(core_vm_list(b->core, &running, "", 4, &out, &last, &err), 0);
    assert_null(last); /* vm-00, 02, 03, 04: exactly a page */
    unsigned by_state[VM_STATE_MAX];
    assert_int_equal(core_vm_count(b->core, by_state), 24);
    assert_int_equal(by_state[VM_RUNNING], 4);
    assert_int_equal(by_state[VM_PREPARED], 20);
}

/* --- ports --- */

static void ports_have_one_holder(void **state)
{
    struct core_bed *b = *state;
    CLEANUP_ERROR struct error err = ERROR_INIT;
    static const char one[] =
        "{\"name\":\"one\",\"backend\":\"noop\",\"spec\":{\"network\":{\"type\":\"user\",\"forwards\":"
        "[{\"host_port\":18080,\"guest_port\":80},{\"proto\":\"udp\",\"host_port\":18080,\"guest_port\":53}]}}}";
    static const char two[] =
        "{\"name\":\"two\",\"backend\":\"noop\",\"spec\":{\"network\":{\"type\":\"user\",\"forwards\":"
        "[{\"guest_port\":22},{\"host_port\":18080,\"guest_port\":80}]}}}";

    core_bed_make(b, one);
    row_is(b, "SELECT count(*) FROM ports", NULL, "3");
    assert_null(core_bed_create(b, two, NULL, &err));
    assert_int_equal(err.code, ERR_NETWORK_PORT_IN_USE);
    assert_string_equal(error_ctx_get(&err, "holder"), "one");
    assert_int_equal(b->core->ports.n, 3); /* what it had claimed is free again */
    core_bed_close(b, 1000);
    core_bed_open(b);
    error_done(&err);
    assert_null(core_bed_create(b, two, NULL, &err));
    assert_int_equal(err.code, ERR_NETWORK_PORT_IN_USE);
    assert_int_equal(core_bed_do(b, "one", VM_DESTROY), ERR_NONE);
    core_bed_make(b, two);
    row_is(b, "SELECT count(*) FROM ports", NULL, "3");
}

/* --- recovery --- */

/* A row as a daemon that was killed leaves it: an operation that has begun and not ended, and the VM held by it. */
static void leave_behind(struct core_bed *b, const char *kind, const char *key)
{
    struct uuid uuid = uuid_new();
    char op[UUID_TEXT_MAX], sql[2048], at[CLOCK_TEXT_MAX];
    CLEANUP_FREE char *vm = core_bed_sql(b, "SELECT id FROM vms WHERE destroyed_at = 0", NULL);

    uuid_text(&uuid, op);
    clock_text(clock_wall_ms(), at);
    snprintf(sql, sizeof(sql),
             "INSERT INTO operations VALUES ('%s', '%s', '%s', 'pending', "
             "'{\"id\":\"%s\",\"kind\":\"%s\",\"target\":{\"vm_id\":\"%s\","
             "\"vm_name\":\"web\"},\"state\":\"pending\",\"step\":null,\"steps\":[],\"progress\":null,\"error\":null,"
             "\"result\":null,"
             "\"cancellable\":true,\"created_at\":\"%s\",\"deadline\":null,\"finished_at\":null}', 1, 0)",
             op, kind, vm, op, kind, vm, at);
    plant(b, sql);
    snprintf(sql, sizeof(sql), "UPDATE vms SET doc = json_set(doc, '$.operation', '%s') WHERE id = '%s'", op, vm);
    plant(b, sql);
    snprintf(sql, sizeof(sql), "INSERT INTO idempotency_keys VALUES ('%s', 'p', '%s', %lld)", key, op,
             (long long)clock_wall_ms());
    plant(b, sql);
}

static const struct {
    const char *kind;
    enum vm_state was;
    const char *found; /* of the process, by the label noop.adopt */
    const char *outcome, *now;
} leftovers[] = {
    {"vm.create", VM_PREPARING, NULL, "failed", "destroyed"},
    {"vm.create", VM_PREPARING, "running", "failed", "destroyed"},
    {"vm.start", VM_PREPARED, NULL, "failed", "prepared"},
    {"vm.start", VM_STOPPED, "running", "failed", "stopped"},
    {"vm.start", VM_FAILED, "running", "failed", "failed"},
    {"vm.stop", VM_RUNNING, NULL, "failed", "running"},
    {"vm.stop", VM_RUNNING, "nothing", "succeeded", "stopped"},
    {"vm.stop", VM_SUSPENDED, "suspended", "failed", "suspended"},
    {"vm.stop", VM_RUNNING, "guest-off", "succeeded", "stopped"},
    {"vm.kill", VM_RUNNING, NULL, "succeeded", "stopped"},
    {"vm.kill", VM_PREPARED, NULL, "succeeded", "prepared"},
    {"vm.kill", VM_SUSPENDED, "nothing", "succeeded", "stopped"},
    {"vm.restart", VM_RUNNING, NULL, "failed", "running"},
    {"vm.restart", VM_RUNNING, "nothing", "succeeded", "running"},
    {"vm.suspend", VM_RUNNING, "suspended", "succeeded", "suspended"},
    {"vm.suspend", VM_RUNNING, "running", "failed", "running"},
    {"vm.suspend", VM_RUNNING, "nothing", "failed", "failed"},
    {"vm.resume", VM_SUSPENDED, "running", "succeeded", "running"},
    {"vm.resume", VM_SUSPENDED, "suspended", "failed", "suspended"},
    {"vm.reset", VM_RUNNING, "running", "failed", "running"},
    {"vm.destroy", VM_PREPARED, NULL, "succeeded", "destroyed"},
    {"vm.destroy", VM_RUNNING, NULL, "succeeded", "destroyed"},
    {"vm.destroy", VM_FAILED, "nothing", "succeeded", "destroyed"},
    /* no operation: what became of it while nobody looked */
    {NULL, VM_RUNNING, NULL, NULL, "running"},
    {NULL, VM_SUSPENDED, NULL, NULL, "suspended"},
    {NULL, VM_RUNNING, "suspended", NULL, "suspended"},
    {NULL, VM_RUNNING, "guest-off", NULL, "stopped"},
    {NULL, VM_RUNNING, "panic", NULL, "failed"},
    {NULL, VM_RUNNING, "nothing", NULL, "failed"},
    {NULL, VM_SUSPENDED, "exited:1", NULL, "failed"},
};

static void interrupted(void **state)
{
    struct core_bed *b = *state;
    char body[256], id[UUID_TEXT_MAX];

    for (size_t i = 0; i < ARRAY_SIZE(leftovers); i++) {
        bool up = leftovers[i].was == VM_RUNNING || leftovers[i].was == VM_SUSPENDED || leftovers[i].was == VM_STOPPED;
        snprintf(body, sizeof(body), "{\"name\":\"web\",\"backend\":\"noop\",\"start\":%s,\"labels\":{\"%s\":\"%s\"}}",
                 up ? "true" : "false", leftovers[i].found != NULL ? "noop.adopt" : "none",
                 leftovers[i].found != NULL ? leftovers[i].found : "");
        print_message("  %s, %s, found %s\n", leftovers[i].kind != NULL ? leftovers[i].kind : "-",
                      vm_state_text(leftovers[i].was), leftovers[i].found != NULL ? leftovers[i].found : "as it was");
        core_bed_make(b, body);
        uuid_text(&core_bed_vm(b, "web")->vm.id, id);
        if (leftovers[i].was == VM_SUSPENDED)
            assert_int_equal(core_bed_do(b, "web", VM_SUSPEND), ERR_NONE);
        if (leftovers[i].was == VM_STOPPED)
            assert_int_equal(core_bed_do(b, "web", VM_STOP), ERR_NONE);
        core_bed_quiet(b);
        core_bed_close(b, 1000);
        core_bed_open_store(b);
        if (leftovers[i].was == VM_PREPARING)
            plant(b, "UPDATE vms SET doc = json_set(doc, '$.state', 'preparing') WHERE destroyed_at = 0");
        if (leftovers[i].was == VM_FAILED)
            plant(b, "UPDATE vms SET doc = json_set(doc, '$.state', 'failed') WHERE destroyed_at = 0");
        if (leftovers[i].kind != NULL)
            leave_behind(b, leftovers[i].kind, "left");
        core_bed_open(b);
        core_bed_quiet(b);
        row_is(b, "SELECT count(*) FROM operations WHERE finished_at = 0", NULL, "0");
        if (strcmp(leftovers[i].now, "destroyed") == 0) {
            assert_null(core_bed_vm(b, "web"));
            row_is(b, "SELECT count(*) FROM ports", NULL, "0");
            row_is(b, "SELECT destroyed_at > 0 FROM vms WHERE id = ?", id, "1");
        } else {
            assert_string_equal(core_bed_get(b, "web", "state"), leftovers[i].now);
            assert_string_equal(core_bed_get(b, "web", "operation"), "null");
            row_is(b, "SELECT json_extract(doc, '$.state') FROM vms WHERE id = ?", id, leftovers[i].now);
        }
        if (leftovers[i].kind != NULL) {
            bool failed = strcmp(leftovers[i].outcome, "failed") == 0;
            row_is(b, "SELECT state FROM operations WHERE created_at = 1 ORDER BY id DESC LIMIT 1", NULL,
                   leftovers[i].outcome);
            row_is(b,
                   "SELECT json_extract(doc, '$.state') FROM operations WHERE created_at = 1 ORDER BY id DESC LIMIT 1",
                   NULL, leftovers[i].outcome);
            row_is(b,
                   "SELECT json_extract(doc, '$.error.code') FROM operations WHERE created_at = 1 ORDER BY id DESC "
                   "LIMIT 1",
                   NULL, failed ? "vm_manager::operation::interrupted" : "(null)");
            /* an interrupted one gives its key back: it is as old as can be */
            row_is(b, "SELECT count(*) FROM idempotency_keys WHERE created_at > 0", NULL, failed ? "0" : "1");
            plant(b, "DELETE FROM idempotency_keys");
            keys_remove(b->core, "left");
        }
        if (core_bed_vm(b, "web") != NULL)
            assert_int_equal(core_bed_do(b, "web", VM_DESTROY), ERR_NONE);
    }
}

/* A later operation that waited behind another: both end, and the later one decides. */
static const struct {
    const char *older, *newer, *older_ends, *newer_ends, *now;
} pairs[] = {
    {"vm.start", "vm.kill", "failed", "succeeded", "prepared"},
    {"vm.start", "vm.destroy", "failed", "succeeded", "destroyed"},
    {"vm.kill", "vm.kill", "succeeded", "succeeded", "prepared"},
    {"vm.destroy", "vm.destroy", "succeeded", "succeeded", "destroyed"},
    {"vm.kill", "vm.destroy", "failed", "succeeded", "destroyed"},
};

static void interrupted_together(void **state)
{
    struct core_bed *b = *state;
    char id[UUID_TEXT_MAX];

    for (size_t i = 0; i < ARRAY_SIZE(pairs); i++) {
        print_message("  %s, %s\n", pairs[i].older, pairs[i].newer);
        core_bed_make(b, "{\"name\":\"web\",\"backend\":\"noop\"}");
        uuid_text(&core_bed_vm(b, "web")->vm.id, id);
        core_bed_quiet(b);
        core_bed_close(b, 1000);
        core_bed_open_store(b);
        plant(b, "DELETE FROM events");
        leave_behind(b, pairs[i].older, "older");
        leave_behind(b, pairs[i].newer, "newer");
        core_bed_open(b);
        core_bed_quiet(b);
        row_is(b, "SELECT state FROM operations WHERE created_at = 1 ORDER BY id LIMIT 1", NULL, pairs[i].older_ends);
        row_is(b, "SELECT state FROM operations WHERE created_at = 1 ORDER BY id DESC LIMIT 1", NULL,
               pairs[i].newer_ends);
        row_is(b, "SELECT json_extract(doc, '$.state') FROM vms WHERE id = ?", id, pairs[i].now);
        row_is(b,
               "SELECT count(*) FROM events JOIN operations ON operations.id = json_extract(events.doc, "
               "'$.operation_id') WHERE type = 'operation.finished' AND state = json_extract(events.doc, "
               "'$.data.state')",
               NULL, "2");
        plant(b, "DELETE FROM operations");
        plant(b, "DELETE FROM idempotency_keys");
        keys_remove(b->core, "older");
        keys_remove(b->core, "newer");
        if (core_bed_vm(b, "web") != NULL)
            assert_int_equal(core_bed_do(b, "web", VM_DESTROY), ERR_NONE);
    }
}

/* The daemon leaves in the middle of a start: parked now, undone at the next start. */
static void parked(void **state)
{
    struct core_bed *b = *state;
    CLEANUP_ERROR struct error err = ERROR_INIT;

    core_bed_make(b, "{\"name\":\"web\",\"backend\":\"noop\",\"labels\":{\"noop.delay_ms.greet\":\"60000\"}}");
    struct operation *op = core_bed_verb(b, "web", VM_START, &err);
    core_bed_await(b, op, false);
    assert_true(core_bed_poll(b, under_way, op));
    operation_unref(op);
    struct operation *later =
        slow_start(b, "{\"name\":\"db\",\"backend\":\"noop\",\"labels\":{\"noop.delay_ms.build\":\"60000\"}}");
    operation_unref(later);
    core_bed_close(b, 1);
    core_bed_open(b);
    assert_string_equal(core_bed_get(b, "web", "state"), "prepared");
    assert_null(core_bed_vm(b, "db"));
    row_is(b, "SELECT count(*) FROM operations WHERE finished_at = 0", NULL, "0");
    row_is(b, "SELECT count(*) FROM operations WHERE state = 'failed'", NULL, "2");
    /* and what is asked of one that is leaving is refused; an intent on its way is parked as well */
    op = core_bed_verb(b, "web", VM_START, &err);
    assert_non_null(op);
    operation_unref(op);
    core_bed_close(b, 0);
    core_bed_open(b);
    assert_string_equal(core_bed_get(b, "web", "state"), "prepared");
}

/* --- what the store refuses --- */

static bool failed_in_store(void *arg)
{
    char *n = core_bed_sql(
        arg, "SELECT count(*) FROM vms WHERE name = 'web' AND json_extract(doc, '$.state') = 'failed'", NULL);
    bool yes = strcmp(n, "1") == 0;

    mem_free(n);
    return yes;
}

static bool ended_in_memory(void *arg)
{
    struct live_vm *vm = core_bed_vm(arg, "web");

    return core_vm_data(vm)->state == VM_FAILED && vm->owed;
}

/* A process that dies while the disk is full: the VM is failed to every reader as soon as there is room. */
static bool end_on_its_way(void *arg)
{
    const struct operation *op = arg;

    return op->accepted && op->state == OPERATION_SUCCEEDED && op->pub_state != OPERATION_SUCCEEDED;
}

/* Whoever asks while the end is being written sees an operation that runs, not nothing. */
static void end_is_not_told_before_it_is_written(void **state)
{
    struct core_bed *b = *state;
    CLEANUP_ERROR struct error err = ERROR_INIT;

    core_bed_make(b, "{\"name\":\"web\",\"backend\":\"noop\"}");
    struct operation *op = core_bed_verb(b, "web", VM_START, &err);
    assert_true(core_bed_poll(b, end_on_its_way, op));
    json_t *doc = json_loads(operation_doc(op), 0, NULL);
    assert_string_equal(json_string_value(json_object_get(doc, "state")), "running");
    assert_true(json_is_null(json_object_get(doc, "finished_at")) && json_is_null(json_object_get(doc, "result")));
    json_decref(doc);
    core_bed_await(b, op, true);
    assert_non_null(strstr(operation_doc(op), "\"succeeded\""));
    operation_unref(op);
}

static void refused_is_written_again(void **state)
{
    struct core_bed *b = *state;

    core_bed_make(b, "{\"name\":\"web\",\"backend\":\"noop\",\"start\":true,\"labels\":"
                     "{\"noop.exit\":\"killed:9\",\"noop.exit_after_ms\":\"200\"}}");
    plant(b, "CREATE TRIGGER no BEFORE INSERT ON vms BEGIN SELECT RAISE(ABORT, 'full'); END");
    assert_true(core_bed_poll(b, ended_in_memory, b));
    core_bed_quiet(b);
    assert_string_equal(core_bed_get(b, "web", "state"), "failed"); /* it is, whether it can be written or not */
    assert_false(failed_in_store(b));
    plant(b, "DROP TRIGGER no");
    assert_true(core_bed_poll(b, failed_in_store, b));
    core_bed_quiet(b);
    assert_string_equal(core_bed_get(b, "web", "state"), "failed");
}

static bool failed_row(void *arg)
{
    char *n = core_bed_sql(arg, "SELECT count(*) FROM operations WHERE kind = 'vm.destroy' AND state = 'failed'", NULL);
    bool yes = strcmp(n, "1") == 0;

    mem_free(n);
    return yes;
}

/* A destroy that was told to have failed is not finished by the next start. */
static void refused_failure_stays_one(void **state)
{
    struct core_bed *b = *state;

    core_bed_make(b, "{\"name\":\"web\",\"backend\":\"noop\",\"labels\":{\"noop.fail\":\"remove\"}}");
    plant(b, "CREATE TRIGGER no BEFORE INSERT ON operations WHEN new.state = 'failed' BEGIN SELECT RAISE(ABORT, "
             "'full'); END");
    assert_int_equal(core_bed_do(b, "web", VM_DESTROY), ERR_IO);
    plant(b, "DROP TRIGGER no");
    assert_true(core_bed_poll(b, failed_row, b));
    core_bed_close(b, 0);
    core_bed_open(b);
    assert_string_equal(core_bed_get(b, "web", "state"), "prepared");
}

static bool being_destroyed(void *arg)
{
    struct live_vm *vm = core_bed_vm(arg, "web");

    return vm == NULL || core_vm_data(vm)->state == VM_DESTROYED;
}

/* A PATCH that comes while a destroy is on its way to the store does not bring the VM's row back. */
static void patch_beside_destroy(void **state)
{
    struct core_bed *b = *state;
    CLEANUP_ERROR struct error err = ERROR_INIT;

    core_bed_make(b, "{\"name\":\"web\",\"backend\":\"noop\"}");
    struct operation *op = core_bed_verb(b, "web", VM_DESTROY, &err);
    assert_true(core_bed_poll(b, being_destroyed, b));
    assert_int_equal(core_bed_patch(b, "web", "{\"labels\":{\"a\":\"b\"}}"), ERR_LIFECYCLE_DESTROYED);
    core_bed_await(b, op, true);
    operation_unref(op);
    core_bed_quiet(b);
    row_is(b, "SELECT count(*) FROM vms WHERE destroyed_at = 0", NULL, "0");
}

/* An announcement that takes its time holds the next operation back, and outlives its VM; a stop leaves nothing of it. */
static void slow_announcements(void **state)
{
    struct core_bed *b = *state;
    CLEANUP_ERROR struct error err = ERROR_INIT;

    core_bed_make(b,
                  "{\"name\":\"web\",\"backend\":\"noop\",\"labels\":{\"noop.delay_ms.vm.start:announce\":\"150\"}}");
    assert_int_equal(core_bed_do(b, "web", VM_START), ERR_NONE);
    assert_int_equal(core_bed_do(b, "web", VM_SUSPEND), ERR_NONE);
    core_bed_quiet(b);
    core_bed_make(
        b, "{\"name\":\"db\",\"backend\":\"noop\",\"labels\":{\"noop.delay_ms.vm.destroy:announce\":\"60000\"}}");
    struct operation *op = core_bed_verb(b, "db", VM_DESTROY, &err);
    core_bed_await(b, op, true);
    operation_unref(op);
    core_bed_close(b, 1); /* the loop closes clean, or this fails */
    core_bed_open(b);
    assert_null(core_bed_vm(b, "db"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        CORE_TEST(keys),
        CORE_TEST(busy_and_queues),
        CORE_TEST(destroy_of_a_half_made_vm),
        CORE_TEST(one_that_waits_is_cancelled_or_refused),
        CORE_TEST(stop_escalates),
        CORE_TEST(processes_end),
        CORE_TEST(waits),
        CORE_TEST(patches_are_reverted),
        CORE_TEST(tombstones),
        CORE_TEST(events_are_replayed_then_live),
        CORE_TEST(lists),
        CORE_TEST(ports_have_one_holder),
        CORE_TEST(interrupted),
        CORE_TEST(interrupted_together),
        CORE_TEST(parked),
        CORE_TEST(end_is_not_told_before_it_is_written),
        CORE_TEST(refused_is_written_again),
        CORE_TEST(refused_failure_stays_one),
        CORE_TEST(patch_beside_destroy),
        CORE_TEST(slow_announcements),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
