/* test_memory.c - memory is checked before a start: what the host has, a cgroup's limit, the reserve, and what other starts
 * were promised.  The host is a directory of files. */
#include "core_bed.h"

#include <stdio.h>
#include <sys/stat.h>

#include "base/fd.h"
#include "base/mem.h"
#include "core/ops/ops.h"

#define VM(name, more) "{\"name\":\"" name "\",\"backend\":\"noop\",\"spec\":{\"memory_mb\":1000}" more "}"

static char root[128];

static unsigned overhead(struct backend *be, const struct vm_spec *spec)
{
    (void)be;
    (void)spec;
    return 24;
}

static void put(const char *path, const char *text)
{
    CLEANUP_ERROR struct error err = ERROR_INIT;
    CLEANUP_FREE char *whole = mem_printf("%s%s", root, path), *dir = mem_strdup(whole);

    *strrchr(dir, '/') = '\0';
    assert_int_equal(dir_make(dir, 0700, &err), 0);
    assert_int_equal(file_write(whole, text, strlen(text), 0600, &err), 0);
}

/* The host has so much, and it is read at once. */
static void has(struct core_bed *b, unsigned mb)
{
    char text[128];

    snprintf(text, sizeof(text), "MemTotal:       99999999 kB\nMemFree:  1 kB\nMemAvailable:   %u kB\nBuffers: 5 kB\n",
             mb * 1024);
    put("/proc/meminfo", text);
    b->core->memory_read_at = 0;
}

static int set_up(void **state)
{
    if (core_bed_set_up(state) != 0)
        return -1;
    struct core_bed *b = *state;
    snprintf(root, sizeof(root), "%s-host", b->dir);
    b->noop->overhead_mb = overhead;
    b->core->config.host_root = root;
    b->core->config.memory_reserve_mb = 100;
    b->core->config.restart_delay_ms = 1;
    has(b, 100000);
    return 0;
}

static int tear_down(void **state)
{
    CLEANUP_ERROR struct error err = ERROR_INIT;

    return core_bed_tear_down(state) + dir_remove(root, &err);
}

static void start_that_does_not_fit_is_refused(void **state)
{
    struct core_bed *b = *state;
    CLEANUP_ERROR struct error err = ERROR_INIT;

    core_bed_make(b, VM("web", ""));
    has(b, 1123); /* 1000 + 24 + 100 */
    assert_null(core_bed_verb(b, "web", VM_START, &err));
    assert_int_equal(err.code, ERR_HOST_INSUFFICIENT_MEMORY);
    assert_non_null(strstr(err.message, "needs 1024 MiB"));
    assert_non_null(strstr(err.message, "available are 1123"));
    assert_non_null(strstr(err.message, "100 are kept"));
    assert_string_equal(core_bed_get(b, "web", "state"), "prepared");
    assert_string_equal(core_bed_get(b, "web", "operation"), "null");
    assert_int_equal(b->core->promised_mb, 0);
    assert_int_equal(core_operation_count(b->core), 0);
    has(b, 1124);
    assert_int_equal(core_bed_do(b, "web", VM_START), ERR_NONE);
    core_bed_quiet(b);
    assert_int_equal(b->core->promised_mb, 0);
}

static void create_that_is_to_start_leaves_nothing(void **state)
{
    struct core_bed *b = *state;
    CLEANUP_ERROR struct error err = ERROR_INIT;

    has(b, 500);
    assert_null(core_bed_create(b, VM("web", ",\"start\":true"), "key", &err));
    assert_int_equal(err.code, ERR_HOST_INSUFFICIENT_MEMORY);
    assert_int_equal(b->core->n_vms, 0);
    assert_int_equal(b->core->n_running, 0);
    core_bed_make(b, VM("web", "")); /* the name is free; what is not started needs nothing */
    has(b, 5000);
    CLEANUP_ERROR struct error none = ERROR_INIT;
    struct operation *op = core_bed_create(b, VM("two", ",\"start\":true"), "key", &none); /* and so is the key */
    assert_non_null(op);
    assert_int_equal(core_bed_end(b, op), ERR_NONE);
}

static void starts_under_way_have_their_part(void **state)
{
    struct core_bed *b = *state;
    CLEANUP_ERROR struct error err = ERROR_INIT;

    core_bed_make(b, VM("one", ",\"labels\":{\"noop.delay_ms.spawn\":\"60000\"}"));
    core_bed_make(b, VM("two", ""));
    has(b, 2000);
    struct operation *op = core_bed_verb(b, "one", VM_START, &err);
    assert_non_null(op);
    assert_null(core_bed_verb(b, "two", VM_START, &err));
    assert_int_equal(err.code, ERR_HOST_INSUFFICIENT_MEMORY);
    assert_non_null(strstr(err.message, "1024 promised"));
    assert_int_equal(core_bed_do(b, "one", VM_KILL), ERR_NONE); /* cancels it */
    assert_int_equal(core_bed_end(b, op), ERR_OPERATION_CANCELLED);
    assert_int_equal(core_bed_do(b, "two", VM_START), ERR_NONE);
    core_bed_quiet(b);
    assert_int_equal(b->core->promised_mb, 0);
}

static void restart_is_checked_between_its_halves(void **state)
{
    struct core_bed *b = *state;

    core_bed_make(b, VM("web", ",\"start\":true"));
    has(b, 10);
    assert_int_equal(core_bed_do(b, "web", VM_RESTART), ERR_HOST_INSUFFICIENT_MEMORY);
    assert_string_equal(core_bed_get(b, "web", "state"), "stopped");
    has(b, 2000);
    assert_int_equal(core_bed_do(b, "web", VM_START), ERR_NONE);
    assert_int_equal(core_bed_do(b, "web", VM_RESTART), ERR_NONE);
    core_bed_quiet(b);
    assert_int_equal(b->core->promised_mb, 0);
}

static void limit_of_a_cgroup_counts(void **state)
{
    struct core_bed *b = *state;
    static const struct {
        const char *self, *dir, *limit, *used, *inactive;
    } kinds[] = {
        {"0::/system.slice/vmmd.service\n", "/sys/fs/cgroup", "memory.max", "memory.current", "inactive_file"},
        {"9:name=systemd:/x\n4:memory:/system.slice/vmmd.service\n0::/\n", "/sys/fs/cgroup/memory",
         "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"},
    };
    char path[256], text[256];

    core_bed_make(b, VM("web", ""));
    for (size_t i = 0; i < ARRAY_SIZE(kinds); i++) {
        CLEANUP_ERROR struct error err = ERROR_INIT;
        put("/proc/self/cgroup", kinds[i].self);
        snprintf(path, sizeof(path), "%s/system.slice/vmmd.service/%s", kinds[i].dir, kinds[i].limit);
        put(path, i == 0 ? "max\n" : "9223372036854771712\n");
        snprintf(path, sizeof(path), "%s/system.slice/%s", kinds[i].dir, kinds[i].limit); /* one above has it */
        put(path, "4294967296\n");
        snprintf(path, sizeof(path), "%s/system.slice/%s", kinds[i].dir, kinds[i].used);
        put(path, "4194304000\n"); /* 96 MiB are left */
        has(b, 100000);
        assert_null(core_bed_verb(b, "web", VM_START, &err));
        assert_int_equal(err.code, ERR_HOST_INSUFFICIENT_MEMORY);
        assert_non_null(strstr(err.message, "limit of vmmd's cgroup are 96,"));
        snprintf(path, sizeof(path), "%s/system.slice/memory.stat", kinds[i].dir); /* but page cache can be had back */
        snprintf(text, sizeof(text), "anon 1\n%s 2147483648\n", kinds[i].inactive);
        put(path, text);
        has(b, 100000);
        assert_int_equal(core_bed_do(b, "web", VM_START), ERR_NONE);
        assert_int_equal(core_bed_do(b, "web", VM_KILL), ERR_NONE);
    }
}

static void what_cannot_be_read_refuses_nothing(void **state)
{
    struct core_bed *b = *state;

    core_bed_make(b, VM("web", ""));
    put("/proc/meminfo", "MemTotal: 5 kB\nMemAvailable: many\n");
    b->core->memory_read_at = 0;
    assert_int_equal(core_bed_do(b, "web", VM_START), ERR_NONE);
}

static void it_is_not_read_at_every_start(void **state)
{
    struct core_bed *b = *state;

    core_bed_make(b, VM("web", ""));
    assert_int_equal(core_bed_do(b, "web", VM_START), ERR_NONE);
    assert_int_equal(core_bed_do(b, "web", VM_KILL), ERR_NONE);
    int64_t read_at = b->core->memory_read_at;
    put("/proc/meminfo", "MemAvailable: 5 kB\n");
    if (core_bed_do(b, "web", VM_START) != ERR_NONE) /* a machine so slow that it was time */
        assert_true(b->core->memory_read_at > read_at);
}

static bool runs(void *arg)
{
    return strcmp(core_bed_get(arg, "web", "state"), "running") == 0;
}

static bool refused(void *arg)
{
    struct core_bed *b = arg;

    return b->core->by_order[0]->vm.policy.restarts == 1 && b->core->by_order[0]->restart_due != 0 &&
           b->core->memory_mb == 10;
}

/* A restart by policy that finds no memory has tried nothing: it is not counted, and comes when there is some. */
static void restart_by_policy_waits_for_memory(void **state)
{
    struct core_bed *b = *state;

    core_bed_make(b, "{\"name\":\"web\",\"backend\":\"noop\",\"start\":true,\"labels\":{\"noop.exit\":\"killed:9\","
                     "\"noop.exit_step\":\"suspend\",\"noop.exit_after_ms\":\"1\"},"
                     "\"spec\":{\"memory_mb\":1000,\"restart\":\"on-failure\"}}");
    has(b, 10);
    assert_int_equal(core_bed_do(b, "web", VM_SUSPEND), ERR_NONE);
    assert_true(core_bed_poll(b, refused, b));
    core_bed_quiet(b);
    assert_string_equal(core_bed_get(b, "web", "state"), "failed");
    has(b, 5000);
    assert_true(core_bed_poll(b, runs, b));
    assert_int_equal(b->core->by_order[0]->vm.policy.restarts, 1);
}

int main(void)
{
#define MEMORY_TEST(f) cmocka_unit_test_setup_teardown(f, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        MEMORY_TEST(start_that_does_not_fit_is_refused), MEMORY_TEST(create_that_is_to_start_leaves_nothing),
        MEMORY_TEST(starts_under_way_have_their_part),   MEMORY_TEST(restart_is_checked_between_its_halves),
        MEMORY_TEST(limit_of_a_cgroup_counts),           MEMORY_TEST(what_cannot_be_read_refuses_nothing),
        MEMORY_TEST(it_is_not_read_at_every_start),      MEMORY_TEST(restart_by_policy_waits_for_memory),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
