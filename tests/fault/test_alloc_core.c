/* test_alloc_core.c - create, start, stop, PATCH and destroy through core and the store with every allocation failing
 * once: each ends well or with an error, and the VM, its rows and its ports agree afterwards. */
#include "../ops/core_bed.h"

#include <stdio.h>
#include <time.h>

#include "base/mem.h"
#include "core/ops/ops.h"

static const char body[] = "{\"name\":\"web\",\"backend\":\"noop\",\"labels\":{\"a\":\"b\"},\"start\":%s,\"spec\":{"
                           "\"network\":{\"type\":\"user\","
                           "\"forwards\":[{\"guest_port\":80}]}}}";

struct story {
    const char *name;
    enum vm_verb verb; /* VM_VERB_MAX: a PATCH */
    bool start;        /* the VM of before runs; or the create starts it */
};

static const struct story stories[] = {
    {"create", VM_CREATE, false}, {"create and start", VM_CREATE, true}, {"start", VM_START, false},
    {"stop", VM_STOP, true},      {"suspend", VM_SUSPEND, true},         {"restart", VM_RESTART, true},
    {"kill", VM_KILL, true},      {"destroy", VM_DESTROY, true},         {"patch", VM_VERB_MAX, false},
};

/* What is under way has come to its end, also where memory was short for telling it. */
static bool at_rest(void *arg)
{
    struct core_bed *b = arg;
    struct live_vm *vm = registry_by_name(b->core, "web");

    return b->core->n_running == 0 && b->core->n_changes == 0 && b->core->lazy == NULL &&
           (vm == NULL || (vm->op == NULL && !vm->settling));
}

static void patched(void *arg, struct live_vm *vm, struct error *err)
{
    (void)vm;
    *(enum error_code *)arg = err->code;
}

/* One verb with the nth allocation failing; its refusal is a clean one. */
static size_t act(struct core_bed *b, const struct story *s, json_t *json, size_t nth)
{
    CLEANUP_ERROR struct error err = ERROR_INIT;
    struct core_request req = {.request_id = "r", .idempotency_key = "key", .fingerprint = "print"};
    struct core_verb_args args = {.timeout_s = 1};
    struct operation *op = NULL;
    enum error_code patch_code = ERR_NONE;
    int rc;

    mem_fail_nth(nth);
    if (s->verb == VM_CREATE)
        rc = core_vm_create(b->core, &req, json, &op, &err);
    else if (s->verb == VM_VERB_MAX)
        rc = core_vm_patch(b->core, &req, "web", json, NULL, patched, &patch_code, &err);
    else
        rc = core_vm_verb(b->core, &req, "web", s->verb, &args, NULL, &op, &err);
    if (op != NULL && rc == 0)
        operation_ref(op);
    assert_true(rc == 0 || err.code == ERR_DAEMON_OVERLOADED || err.code == ERR_DAEMON_INTERNAL);
    if (!core_bed_poll(b, at_rest, b))
        fail_msg("%s, allocation %zu: not at rest", s->name, nth);
    size_t made = mem_fail_nth(0);
    if (op != NULL && rc == 0) {
        assert_true(operation_ended(op) || op->refused);
        operation_unref(op);
    }
    return made;
}

/* Memory, rows and the published document agree. */
static void agree(struct core_bed *b, const struct story *s, size_t nth)
{
    struct live_vm *vm = core_bed_vm(b, "web");
    CLEANUP_FREE char *alive = core_bed_sql(b, "SELECT count(*) FROM vms WHERE destroyed_at = 0", NULL);
    CLEANUP_FREE char *row = core_bed_sql(b, "SELECT doc FROM vms WHERE destroyed_at = 0", NULL);
    CLEANUP_FREE char *ports = core_bed_sql(b, "SELECT count(*) FROM ports", NULL);
    size_t len = 0;

    (void)s;
    (void)nth;
    if (registry_by_name(b->core, "web") == NULL) {
        assert_int_equal(b->core->ports.n, 0);
        return; /* the rows may still tell of it where even the failure found no memory: the next start settles them */
    }
    assert_non_null(vm);
    assert_string_equal(alive, "1");
    assert_string_equal(ports, "2");
    assert_int_equal(b->core->ports.n, 2);
    assert_string_equal(row, core_vm_doc(vm, &len));
    assert_true((core_vm_attached(vm) != NULL) == (vm->vm.state == VM_RUNNING || vm->vm.state == VM_SUSPENDED));
}

/* Nothing is left half done: at once, or by a restart where even the failure could not be written. */
static void settle(struct core_bed *b, bool restart)
{
    core_bed_quiet(b);
    CLEANUP_FREE char *left = core_bed_sql(b, "SELECT count(*) FROM operations WHERE finished_at = 0", NULL);
    if (restart || strcmp(left, "0") != 0) {
        core_bed_close(b, 1000);
        core_bed_open(b);
        core_bed_quiet(b);
    }
    if (core_bed_vm(b, "web") != NULL)
        assert_int_equal(core_bed_do(b, "web", VM_DESTROY), ERR_NONE);
    CLEANUP_FREE char *open = core_bed_sql(b, "SELECT count(*) FROM operations WHERE finished_at = 0", NULL);
    CLEANUP_FREE char *alive = core_bed_sql(b, "SELECT count(*) FROM vms WHERE destroyed_at = 0", NULL);
    CLEANUP_FREE char *ports = core_bed_sql(b, "SELECT count(*) FROM ports", NULL);
    assert_string_equal(open, "0");
    assert_string_equal(alive, "0");
    assert_string_equal(ports, "0");
    keys_remove(b->core, "key");
    mem_free(core_bed_sql(b, "DELETE FROM idempotency_keys", NULL));
}

static const struct story *current;

static void sweep(void **state)
{
    struct core_bed *b = *state;
    const struct story *s = current;
    size_t n, made = 1, stride = getenv("VMMD_SWEEP_ALL") != NULL ? 1 : 7, tried = 0;
    size_t first = 1 + (size_t)time(NULL) % stride; /* not always the same ones */
    char text[256];

    for (n = 0; n <= made && n < 5000; n = n == 0 ? first : n + stride) {
        tried++;
        snprintf(text, sizeof(text), body, s->start ? "true" : "false");
        if (s->verb != VM_CREATE)
            core_bed_make(b, text);
        json_t *json =
            json_loads(s->verb == VM_CREATE ? text : "{\"labels\":{\"a\":\"c\"},\"spec\":{\"vcpus\":2}}", 0, NULL);
        if (getenv("SWEEP_VERBOSE") != NULL)
            print_message("  %s, %zu\n", s->name, n);
        core_bed_quiet(b);
        size_t used = act(b, s, json, n);
        if (n == 0)
            made = used;
        agree(b, s, n);
        json_decref(json);
        settle(b, tried % 16 == 0);
    }
    print_message("  %s: %zu of %zu allocations, the first is %zu\n", s->name, tried - 1, made, first);
}

static int set_up(void **state)
{
    current = current == NULL ? stories : current + 1;
    return core_bed_set_up(state);
}

int main(void)
{
    struct CMUnitTest tests[ARRAY_SIZE(stories)];

    for (size_t i = 0; i < ARRAY_SIZE(stories); i++)
        tests[i] = (struct CMUnitTest){stories[i].name, sweep, set_up, core_bed_tear_down, NULL};
    json_set_alloc_funcs(mem_alloc, mem_free);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
