/* test_lines.c - the bounded line splitter. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/lines.h"
#include "base/mem.h"

struct seen {
    char text[512]; /* the lines, joined by '|'; NULs shown as '0' */
    size_t len;
    unsigned lines;
    unsigned too_long;
    unsigned no_memory;
    unsigned stop_after; /* 0: never */
    struct lines *free_at_stop;
};

static bool on_line(void *arg, enum lines_what what, const char *line, size_t len)
{
    struct seen *s = arg;

    if (what == LINES_TOO_LONG) {
        s->too_long++;
        return true;
    }
    if (what == LINES_NO_MEMORY) {
        s->no_memory++;
        return true;
    }
    for (size_t i = 0; i < len && s->len < sizeof(s->text) - 2; i++)
        s->text[s->len++] = line[i] != '\0' ? line[i] : '0';
    s->text[s->len++] = '|';
    s->text[s->len] = '\0';
    s->lines++;
    if (s->lines != s->stop_after)
        return true;
    if (s->free_at_stop != NULL) {
        lines_done(s->free_at_stop);
        mem_free(s->free_at_stop);
    }
    return false;
}

static void lines_come_whole(void **state)
{
    struct seen s = {0};
    struct lines l;
    (void)state;

    lines_init(&l, 100, -1);
    assert_true(lines_feed(&l, "one\ntwo\n\nfo", 11, on_line, &s));
    assert_string_equal(s.text, "one|two||");
    assert_true(lines_feed(&l, "ur\n", 3, on_line, &s));
    assert_true(lines_feed(&l, "a\0b\n", 4, on_line, &s));
    assert_string_equal(s.text, "one|two||four|a0b|");
    lines_done(&l);
}

static void bytes_come_one_by_one(void **state)
{
    static const char text[] = "hello\nworld\n\n";
    struct seen s = {0};
    struct lines l;
    (void)state;

    lines_init(&l, 5, -1);
    for (size_t i = 0; i < sizeof(text) - 1; i++)
        assert_true(lines_feed(&l, &text[i], 1, on_line, &s));
    assert_string_equal(s.text, "hello|world||");
    assert_int_equal(s.too_long, 0);
    lines_done(&l);
}

static void a_long_line_is_dropped_and_reported_once(void **state)
{
    struct seen s = {0};
    struct lines l;
    (void)state;

    lines_init(&l, 5, -1);
    assert_true(lines_feed(&l, "ok\n123456\n", 10, on_line, &s)); /* whole in one feed */
    assert_int_equal(s.too_long, 1);
    for (int i = 0; i < 20; i++)
        assert_true(lines_feed(&l, "xyz", 3, on_line, &s));
    assert_int_equal(s.too_long, 2);
    assert_true(lines_feed(&l, "tail\n12345\n", 11, on_line, &s));
    assert_string_equal(s.text, "ok|12345|");
    assert_int_equal(s.too_long, 2);
    lines_done(&l);
}

static void a_line_of_100_mb_costs_no_memory(void **state)
{
    enum { CHUNK = 65536, CHUNKS = 1600, MAX = 1 << 20 };
    static char chunk[CHUNK];
    struct seen s = {0};
    struct lines l;
    (void)state;

    memset(chunk, 'x', sizeof(chunk));
    lines_init(&l, MAX, -1);
    for (int i = 0; i < CHUNKS; i++) {
        assert_true(lines_feed(&l, chunk, sizeof(chunk), on_line, &s));
        assert_true(l.part.cap <= 2 * MAX);
    }
    assert_int_equal(l.part.cap, 0);
    assert_int_equal(s.too_long, 1);
    assert_int_equal(s.lines, 0);
    lines_done(&l);
}

static void a_restart_byte_throws_the_begun_line_away(void **state)
{
    struct seen s = {0};
    struct lines l;
    (void)state;

    lines_init(&l, 8, 0xff);
    assert_true(lines_feed(&l, "junk", 4, on_line, &s));
    assert_true(lines_feed(&l, "more\xff{}\n", 8, on_line, &s));
    assert_true(lines_feed(&l, "0123456789", 10, on_line, &s)); /* too long; the restart ends the skipping */
    assert_true(lines_feed(&l, "\xff\xff!\n", 4, on_line, &s));
    assert_string_equal(s.text, "{}|!|");
    assert_int_equal(s.too_long, 1);
    lines_done(&l);
}

static void the_callback_may_stop_and_free(void **state)
{
    struct lines *l = mem_alloc(sizeof(*l));
    struct seen s = {.stop_after = 2, .free_at_stop = l};
    (void)state;

    lines_init(l, 100, -1);
    assert_true(lines_feed(l, "a", 1, on_line, &s));
    assert_false(lines_feed(l, "b\nc\nd\n", 6, on_line, &s));
    assert_string_equal(s.text, "ab|c|");
}

static void a_failed_allocation_drops_one_line(void **state)
{
    struct seen s = {0};
    struct lines l;
    (void)state;

    lines_init(&l, 100, -1);
    mem_fail_nth(1);
    assert_true(lines_feed(&l, "half", 4, on_line, &s));
    assert_true(lines_feed(&l, "rest\nnext", 9, on_line, &s));
    assert_true(lines_feed(&l, "\n", 1, on_line, &s));
    mem_fail_nth(0);
    assert_int_equal(s.no_memory, 1);
    assert_string_equal(s.text, "next|");
    lines_done(&l);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(lines_come_whole),
        cmocka_unit_test(bytes_come_one_by_one),
        cmocka_unit_test(a_long_line_is_dropped_and_reported_once),
        cmocka_unit_test(a_line_of_100_mb_costs_no_memory),
        cmocka_unit_test(a_restart_byte_throws_the_begun_line_away),
        cmocka_unit_test(the_callback_may_stop_and_free),
        cmocka_unit_test(a_failed_allocation_drops_one_line),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
