/* test_image_matrix.c - every operation on images × every step of its table × every fault: how it ends, that the images
 * and their files are as they were or as they shall be, that nothing is held, and that the same request then succeeds.
 *
 * The cells are made of the step tables.  A fault before the commit step has ended well takes all back; behind it nothing.  A delete
 * that has begun to remove goes on when it is asked for again.  Creates by URL have the faults in the VM's steps. */
#include "image_bed.h"

#include <dirent.h>
#include <stdio.h>

#include "base/clock.h"
#include "base/mem.h"
#include "core/ops/image_op.h"
#include "core/ops/ops.h"

enum { LATE_MS = 10 };

struct scenario {
    const char *name;
    enum image_act act;
    const struct image_plan *plan;
};

static const struct scenario scenarios[] = {
    {"pull", ACT_PULL, &image_pull_plan},
    {"pull and convert", ACT_PULL_CONVERT, &image_pull_plan},
    {"convert", ACT_CONVERT, &image_convert_plan},
    {"convert in place", ACT_CONVERT_IN_PLACE, &image_convert_in_place_plan},
    {"delete", ACT_DELETE, &image_delete_plan},
};

enum fault { FAULT_NONE, FAULT_FAIL, FAULT_CANCEL, FAULT_DEADLINE, FAULT_DEATH, FAULT_DISK };
static const char *const fault_names[] = {"no fault", "fails",       "is cancelled",
                                          "is late",  "helper dies", "disk refuses"};

struct cell {
    struct image_bed *b;
    const struct scenario *s;
    enum fault fault;
    unsigned k;
    struct image_op *held;
    bool passed; /* the fault has been */
    int64_t due_ms;
};

static struct cell *cell;

static unsigned commit_of(const struct image_plan *plan)
{
    for (unsigned i = 0; i < plan->n_steps; i++)
        if (plan->steps[i].commit)
            return i;
    fail_msg("%s has no commit step", plan->kind);
    return 0;
}

/* Fails when the step begins; holds it when it has been done. */
static int probe(struct image_op *io, bool done, struct error *err)
{
    if (cell == NULL || cell->passed || io->op == NULL || op_step_index(io->op) != cell->k ||
        (cell->fault == FAULT_FAIL) == done)
        return 0;
    if (cell->fault == FAULT_FAIL) {
        cell->passed = true;
        return error_set(err, ERR_IO, "the step was made to fail");
    }
    if (cell->fault != FAULT_CANCEL && cell->fault != FAULT_DEADLINE)
        return 0;
    cell->passed = true;
    cell->held = io;
    if (cell->fault == FAULT_DEADLINE) {
        cell->due_ms = clock_mono_ms() + LATE_MS;
        op_set_step_timeout(io->op, LATE_MS);
    }
    return OP_WAIT;
}

static enum error_code want_code(const struct cell *c)
{
    unsigned commit = commit_of(c->s->plan);
    const char *step = c->s->plan->steps[c->k].name;

    switch (c->fault) {
    case FAULT_FAIL:
        return c->k <= commit ? ERR_IO : ERR_NONE;
    case FAULT_CANCEL:
        return c->k < commit && !c->s->plan->steps[c->k].no_cancel ? ERR_OPERATION_CANCELLED : ERR_NONE;
    case FAULT_DEADLINE:
        return c->k < commit ? ERR_OPERATION_DEADLINE_EXCEEDED : ERR_NONE;
    case FAULT_DEATH:
        return strcmp(step, "fetch") == 0     ? ERR_IMAGE_DOWNLOAD_FAILED
               : strcmp(step, "inspect") == 0 ? ERR_IMAGE_UNSAFE
                                              : ERR_IMAGE_CONVERSION_FAILED;
    case FAULT_DISK:
        return ERR_DAEMON_INTERNAL;
    case FAULT_NONE:
    default:
        return ERR_NONE;
    }
}

static bool is_held(void *arg)
{
    const struct cell *c = arg;

    return c->held != NULL;
}

static bool is_late(void *arg)
{
    const struct cell *c = arg;

    return clock_mono_ms() >= c->due_ms;
}

static void release(struct cell *c, struct operation *op)
{
    CLEANUP_ERROR struct error err = ERROR_INIT;

    assert_true(core_bed_poll(&c->b->core, is_held, c));
    if (c->fault == FAULT_CANCEL) {
        bool may = want_code(c) == ERR_OPERATION_CANCELLED;
        assert_int_equal(core_operation_cancel(c->b->core.core, op, "test", &err), may ? 0 : -1);
        assert_true(may || err.code == ERR_OPERATION_NOT_CANCELLABLE);
    } else { /* its deadline comes first */
        assert_true(core_bed_poll(&c->b->core, is_late, c));
        core_bed_turns(&c->b->core, 2);
    }
    image_op_resume(c->held, NULL);
}

static size_t files_open(void)
{
    DIR *dir = opendir("/proc/self/fd");
    size_t n = 0;

    while (readdir(dir) != NULL)
        n++;
    closedir(dir);
    return n;
}

static const char *helper_of(const char *step)
{
    return strcmp(step, "fetch") == 0     ? "vmmd-fetch"
           : strcmp(step, "inspect") == 0 ? "vmmd-inspect"
           : strcmp(step, "convert") == 0 ? "vmmd-confine"
                                          : NULL;
}

static void run_cell(struct cell *c)
{
    CLEANUP_ERROR struct error err = ERROR_INIT;
    struct image_bed *b = c->b;
    const char *helper = c->fault == FAULT_DEATH ? helper_of(c->s->plan->steps[c->k].name) : NULL;
    enum error_code want = want_code(c);

    if (getenv("MATRIX_VERBOSE") != NULL)
        print_message("  %s: %s %s\n", c->s->name, c->s->plan->steps[c->k].name, fault_names[c->fault]);
    image_bed_prepare(b, c->s->act);
    CLEANUP_FREE char *list = image_bed_list(b), *files = image_bed_files(b);
    size_t open = files_open();
    if (helper != NULL)
        image_bed_replace(b, helper, "case \"$4\" in info) exec \"$real\" \"$@\";; esac; kill -9 $$");
    if (c->fault == FAULT_DISK)
        mem_free(core_bed_sql(&b->core,
                              "CREATE TRIGGER no_end BEFORE INSERT ON operations WHEN new.state = "
                              "'succeeded' BEGIN SELECT RAISE(ABORT, 'full'); END",
                              NULL));
    cell = c;
    struct operation *op = image_bed_begin(b, c->s->act, NULL, NULL, &err);
    if (op == NULL)
        fail_msg("%s: not begun: %s", c->s->name, err.message);
    if (c->fault == FAULT_CANCEL || c->fault == FAULT_DEADLINE)
        release(c, op);
    enum error_code got = core_bed_end(&b->core, op);
    cell = NULL;
    if (got != want)
        fail_msg("%s: %s %s: %s, not %s", c->s->name, c->s->plan->steps[c->k].name, fault_names[c->fault],
                 error_info(got)->code, error_info(want)->code);
    if (c->fault == FAULT_DISK)
        mem_free(core_bed_sql(&b->core, "DROP TRIGGER no_end", NULL));
    if (helper != NULL)
        image_bed_replace(b, helper, NULL);
    image_bed_rest(b);
    core_bed_quiet(&b->core);
    CLEANUP_FREE char *list_after = image_bed_list(b), *files_after = image_bed_files(b);
    if (want != ERR_NONE) {
        assert_string_equal(list_after, list);
        if (c->s->act != ACT_DELETE)
            assert_string_equal(files_after, files);
        op = image_bed_begin(b, c->s->act, NULL, NULL, &err);
        if (op == NULL)
            fail_msg("%s: %s %s: not begun again: %s", c->s->name, c->s->plan->steps[c->k].name, fault_names[c->fault],
                     err.message);
        assert_int_equal(core_bed_end(&b->core, op), ERR_NONE);
        image_bed_rest(b);
    } else {
        assert_string_not_equal(list_after, list);
    }
    if (c->fault == FAULT_FAIL && want == ERR_NONE) { /* what could not be removed behind the end is the next start's */
        core_bed_close(&b->core, 1000);
        core_bed_open(&b->core);
        b->core.core->image_probe = probe;
        core_bed_quiet(&b->core);
    } else
        assert_int_equal(files_open(), open);
    image_bed_clear(b);
}

static const struct scenario *current;

static void matrix(void **state)
{
    struct image_bed *b = *state;
    const struct scenario *s = current;
    unsigned n = 0, commit = commit_of(s->plan);

    b->core.core->image_probe = probe;
    run_cell(&(struct cell){.b = b, .s = s, .fault = FAULT_NONE, .k = commit});
    run_cell(&(struct cell){.b = b, .s = s, .fault = FAULT_DISK, .k = commit});
    for (unsigned k = 0; k < s->plan->n_steps; k++)
        for (enum fault fault = FAULT_FAIL; fault <= FAULT_DEATH; fault++) {
            const char *step = s->plan->steps[k].name;
            if ((fault == FAULT_CANCEL || fault == FAULT_DEADLINE) && k > commit)
                continue;
            if (fault == FAULT_DEATH &&
                (helper_of(step) == NULL || (s->act == ACT_PULL && strcmp(step, "convert") == 0)))
                continue;
            run_cell(&(struct cell){.b = b, .s = s, .fault = fault, .k = k});
            n++;
        }
    print_message("  %s: %u cells\n", s->name, n + 2);
}

/* --- create by URL: faults in the VM's steps, and the death of what fetches --- */

static void create_cell(struct image_bed *b, const char *labels, const char *helper, enum error_code want)
{
    CLEANUP_ERROR struct error err = ERROR_INIT;

    if (helper != NULL)
        image_bed_replace(b, helper, "kill -9 $$");
    struct operation *op = image_bed_begin(b, ACT_CREATE, "key", labels, &err);
    assert_non_null(op);
    enum error_code got = core_bed_end(&b->core, op);
    if (got != want)
        fail_msg("create with %s, %s: %s, not %s", labels, helper != NULL ? helper : "helpers", error_info(got)->code,
                 error_info(want)->code);
    if (helper != NULL)
        image_bed_replace(b, helper, NULL);
    image_bed_rest(b);
    core_bed_quiet(&b->core);
    assert_true((core_bed_vm(&b->core, "web") == NULL) == (want != ERR_NONE));
    assert_true(b->core.core->n_images == 0 || (b->core.core->n_images == 1 && b->core.core->images[0]->awaited == 0 &&
                                                b->core.core->images[0]->image.state == IMAGE_READY));
    if (want != ERR_NONE) {
        assert_int_equal(core_bed_end(&b->core, image_bed_begin(b, ACT_CREATE, NULL, NULL, &err)), ERR_NONE);
        assert_int_equal(b->core.core->n_images, 1);
    }
    core_bed_quiet(&b->core);
    image_bed_clear(b);
    keys_remove(b->core.core, "key");
}

static void create_by_url(void **state)
{
    struct image_bed *b = *state;
    unsigned commit = 0;
    char labels[256];

    while (!vm_create_plan.steps[commit].commit)
        commit++;
    create_cell(b, NULL, NULL, ERR_NONE);
    size_t open = files_open(); /* the store has its readers by now */
    for (unsigned k = 0; k < vm_create_plan.n_steps; k++) {
        snprintf(labels, sizeof(labels), "{\"noop.fail\":\"%s\",\"noop.fail_code\":\"host::disk_full\"}",
                 vm_create_plan.steps[k].name);
        create_cell(b, labels, NULL, k <= commit ? ERR_HOST_DISK_FULL : ERR_NONE);
    }
    create_cell(b, NULL, "vmmd-fetch", ERR_IMAGE_DOWNLOAD_FAILED);
    create_cell(b, NULL, "vmmd-inspect", ERR_IMAGE_UNSAFE);
    assert_int_equal(files_open(), open);
}

/* The pull of a create is held in each of its steps while the create is cancelled, or late. */
static void create_by_url_is_cancelled(void **state)
{
    struct image_bed *b = *state;
    const struct scenario s = {"create by URL", ACT_CREATE, &image_pull_plan};

    create_cell(b, NULL, NULL, ERR_NONE);
    size_t open = files_open();
    b->core.core->image_probe = probe;
    for (unsigned k = 0; k <= commit_of(&image_pull_plan); k++) {
        CLEANUP_ERROR struct error err = ERROR_INIT;
        struct cell c = {.b = b, .s = &s, .fault = FAULT_CANCEL, .k = k};

        cell = &c;
        struct operation *op = image_bed_begin(b, ACT_CREATE, NULL, NULL, &err);
        assert_non_null(op);
        assert_true(core_bed_poll(&b->core, is_held, &c));
        assert_int_equal(core_operation_cancel(b->core.core, op, "test", &err), 0);
        core_bed_turns(&b->core, 4);
        image_op_resume(c.held, NULL);
        assert_int_equal(core_bed_end(&b->core, op), ERR_OPERATION_CANCELLED);
        cell = NULL;
        image_bed_rest(b);
        assert_null(core_bed_vm(&b->core, "web"));
        assert_int_equal(b->core.core->n_images, k == commit_of(&image_pull_plan) ? 1 : 0);
        assert_int_equal(core_bed_end(&b->core, image_bed_begin(b, ACT_CREATE, NULL, NULL, &err)), ERR_NONE);
        image_bed_clear(b);
        assert_int_equal(files_open(), open);
    }
}

/* A pull that fails as it begins is gone when its operation hears of it. */
static void without_helpers(void **state)
{
    struct image_bed *b = *state;
    CLEANUP_ERROR struct error err = ERROR_INIT;

    core_bed_close(&b->core, 1000);
    b->core.helper_dir = NULL;
    core_bed_open(&b->core);
    assert_int_equal(core_bed_end(&b->core, image_bed_begin(b, ACT_PULL, NULL, NULL, &err)), ERR_BACKEND_NOT_AVAILABLE);
    core_bed_close(&b->core, 1000);
    b->core.helper_dir = b->helpers;
    core_bed_open(&b->core);
    assert_int_equal(core_bed_end(&b->core, image_bed_begin(b, ACT_PULL, NULL, NULL, &err)), ERR_NONE);
    image_bed_clear(b);
}

/* Who hears of an operation's end may begin the next one on that image: nothing of the first holds it. */
static void next_begins_at_the_end(void **state)
{
    struct image_bed *b = *state;
    CLEANUP_ERROR struct error err = ERROR_INIT;

    for (enum image_act act = ACT_PULL; act <= ACT_CONVERT_IN_PLACE; act++) {
        image_bed_prepare(b, act);
        struct operation *op = image_bed_begin(b, act, NULL, NULL, &err);
        assert_non_null(op);
        assert_int_equal(core_bed_end(&b->core, op), ERR_NONE);
        for (size_t i = 0; i < b->core.core->n_images; i++) {
            assert_null(b->core.core->images[i]->op);
            assert_false(b->core.core->images[i]->deleting);
        }
        op = image_bed_begin(b, ACT_DELETE, NULL, NULL, &err);
        if (op == NULL)
            fail_msg("after act %d: %s", act, err.message);
        assert_int_equal(core_bed_end(&b->core, op), ERR_NONE);
        image_bed_rest(b);
        image_bed_clear(b);
    }
}

static int set_up(void **state)
{
    int rc = image_bed_set_up(state);

    current = current == NULL ? scenarios : current + 1;
    return rc;
}

int main(void)
{
    struct CMUnitTest tests[ARRAY_SIZE(scenarios) + 4];
    size_t n = ARRAY_SIZE(scenarios);

    for (size_t i = 0; i < n; i++)
        tests[i] = (struct CMUnitTest){scenarios[i].name, matrix, set_up, image_bed_tear_down, NULL};
    tests[n] = (struct CMUnitTest){"create by URL", create_by_url, image_bed_set_up, image_bed_tear_down, NULL};
    tests[n + 1] = (struct CMUnitTest){"create by URL is cancelled", create_by_url_is_cancelled, image_bed_set_up,
                                       image_bed_tear_down, NULL};
    tests[n + 2] =
        (struct CMUnitTest){"pull without helpers", without_helpers, image_bed_set_up, image_bed_tear_down, NULL};
    tests[n + 3] = (struct CMUnitTest){"the next begins at the end", next_begins_at_the_end, image_bed_set_up,
                                       image_bed_tear_down, NULL};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
