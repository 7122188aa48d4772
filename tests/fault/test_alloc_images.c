/* test_alloc_images.c - pull, pull and convert, convert, delete and create by URL with every allocation failing once: each ends
 * well or with an error, images, rows and files agree afterwards, and the same request then succeeds. */
#include "../ops/image_bed.h"

#include <stdio.h>
#include <time.h>

#include "base/mem.h"
#include "core/ops/ops.h"

struct story {
    const char *name;
    enum image_act act;
};

static const struct story stories[] = {
    {"pull", ACT_PULL},       {"pull and convert", ACT_PULL_CONVERT},
    {"convert", ACT_CONVERT}, {"convert in place", ACT_CONVERT_IN_PLACE},
    {"delete", ACT_DELETE},   {"create by URL", ACT_CREATE},
};

static bool is_clean(enum error_code code)
{
    return code == ERR_DAEMON_OVERLOADED || code == ERR_DAEMON_INTERNAL || code == ERR_IO;
}

/* The act with the nth allocation failing. */
static size_t act(struct image_bed *b, const struct story *s, size_t nth)
{
    CLEANUP_ERROR struct error err = ERROR_INIT;

    b->arm = true;
    b->fail_nth = nth;
    struct operation *op = image_bed_begin(b, s->act, NULL, NULL, &err);
    if (op == NULL && !is_clean(err.code))
        fail_msg("%s, allocation %zu: refused with %s", s->name, nth, error_info(err.code)->code);
    image_bed_rest(b);
    size_t made = mem_fail_nth(0);
    if (op != NULL) {
        assert_true(operation_ended(op) || op->refused);
        operation_unref(op);
    }
    return made;
}

/* Each image that is ready has its file, and each file has its image. */
static void agree(struct image_bed *b, const struct story *s, size_t nth)
{
    CLEANUP_FREE char *files = image_bed_files(b);
    struct core *core = b->core.core;
    size_t n = 0;

    for (size_t i = 0; i < core->n_images; i++) {
        const struct live_image *image = core->images[i];
        if (image->deleting)
            continue; /* half removed: a delete finishes it */
        assert_int_equal(image->image.state, IMAGE_READY);
        if (strstr(files, strrchr(image->image.path, '/') + 1) == NULL)
            fail_msg("%s, allocation %zu: %s is not in %s", s->name, nth, image->image.path, files);
        n++;
    }
    for (const char *p = files; *p != '\0'; p++)
        n -= *p == ' ';
    if ((ssize_t)n > 0)
        fail_msg("%s, allocation %zu: images without files: %s", s->name, nth, files);
    assert_int_equal(core->disk_promised, 0);
}

/* What memory was short for telling or removing is the next start's. */
static void settle(struct image_bed *b, const struct story *s, bool restart)
{
    CLEANUP_ERROR struct error err = ERROR_INIT;

    core_bed_quiet(&b->core);
    CLEANUP_FREE char *open = core_bed_sql(&b->core, "SELECT count(*) FROM operations WHERE finished_at = 0", NULL);
    if (restart || strcmp(open, "0") != 0) {
        core_bed_close(&b->core, 1000);
        core_bed_open(&b->core);
        core_bed_quiet(&b->core);
    }
    bool over =
        s->act == ACT_DELETE ? b->core.core->n_images == 0 : s->act == ACT_CONVERT && b->core.core->n_images == 2;
    struct operation *op = over || (s->act == ACT_CREATE && core_bed_vm(&b->core, "web") != NULL)
                               ? NULL
                               : image_bed_begin(b, s->act, NULL, NULL, &err);
    if (op != NULL)
        assert_int_equal(core_bed_end(&b->core, op), ERR_NONE);
    else if (error_is_set(&err))
        fail_msg("%s: not begun again: %s", s->name, err.message);
}

static void clear(struct image_bed *b)
{
    CLEANUP_FREE char *files = NULL;

    if (core_bed_vm(&b->core, "web") != NULL)
        assert_int_equal(core_bed_do(&b->core, "web", VM_DESTROY), ERR_NONE);
    files = image_bed_files(b);
    size_t n = 0;
    for (const char *p = files; *p != '\0'; p++)
        n += *p == ' ';
    if (n != b->core.core->n_images) { /* a file that no memory was found for removing: the next start's */
        core_bed_close(&b->core, 1000);
        core_bed_open(&b->core);
    }
    image_bed_clear(b);
}

static const struct story *current;

static void sweep(void **state)
{
    struct image_bed *b = *state;
    const struct story *s = current;
    size_t made = 1, stride = getenv("VMMD_SWEEP_ALL") != NULL ? 1 : 41, tried = 0;
    size_t first = 1 + (size_t)time(NULL) % stride; /* not always the same ones */

    for (size_t n = 0; n <= made && n < 5000; n = n == 0 ? first : n + stride) {
        tried++;
        image_bed_prepare(b, s->act);
        core_bed_quiet(&b->core);
        if (getenv("SWEEP_VERBOSE") != NULL)
            print_message("  %s, %zu\n", s->name, n);
        size_t used = act(b, s, n);
        if (n == 0)
            made = used;
        agree(b, s, n);
        settle(b, s, tried % 16 == 0);
        clear(b);
    }
    print_message("  %s: %zu of %zu allocations, the first is %zu\n", s->name, tried - 1, made, first);
}

static int set_up(void **state)
{
    current = current == NULL ? stories : current + 1;
    return image_bed_set_up(state);
}

int main(void)
{
    struct CMUnitTest tests[ARRAY_SIZE(stories)];

    for (size_t i = 0; i < ARRAY_SIZE(stories); i++)
        tests[i] = (struct CMUnitTest){stories[i].name, sweep, set_up, image_bed_tear_down, NULL};
    json_set_alloc_funcs(mem_alloc, mem_free);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
