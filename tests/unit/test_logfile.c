/* test_logfile.c - the bounded, offset-addressed log. */
#include <fcntl.h>
#include <glob.h>
#include <inttypes.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <signal.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/fd.h"
#include "base/mem.h"
#include "loop/logfile.h"
#include "peer.h"

enum { PATIENCE_MS = 20000 };

struct fixture {
    struct loop *loop;
    char dir[32];
    char prefix[64];
    struct logfile *log;
    char *data; /* of the last read */
    struct logfile_chunk chunk;
    unsigned reads, failed, told, ended, closed;
    struct logfile_watch *watch;
    bool unwatch_when_told, free_when_told;
};

static int setup(void **state)
{
    struct fixture *f = calloc(1, sizeof(*f));

    snprintf(f->dir, sizeof(f->dir), "/tmp/test-logfile-XXXXXX");
    assert_non_null(mkdtemp(f->dir));
    snprintf(f->prefix, sizeof(f->prefix), "%s/console", f->dir);
    f->loop = loop_new(NULL);
    assert_non_null(f->loop);
    *state = f;
    return 0;
}

static int teardown(void **state)
{
    struct fixture *f = *state;

    logfile_free(f->log);
    int left = loop_free(f->loop);
    int rc = dir_remove(f->dir, NULL);
    free(f->data);
    free(f);
    return left == 0 && rc == 0 ? 0 : -1;
}

static void on_read(void *arg, const struct logfile_chunk *chunk, struct error *err)
{
    struct fixture *f = arg;

    f->reads++;
    free(f->data);
    f->data = NULL;
    if (chunk == NULL) {
        assert_true(error_is_set(err));
        f->failed++;
        return;
    }
    f->chunk = *chunk;
    f->data = calloc(1, chunk->len + 1);
    memcpy(f->data, chunk->data, chunk->len);
}

static bool has_read(void *arg)
{
    return ((struct fixture *)arg)->reads > 0;
}

static bool is_ready(void *arg)
{
    return logfile_is_ready(((struct fixture *)arg)->log);
}

static bool is_closed(void *arg)
{
    return ((struct fixture *)arg)->closed > 0;
}

static void on_closed(void *arg)
{
    ((struct fixture *)arg)->closed++;
}

#define UNTIL(cond) assert_true(run_until(f->loop, cond, f, PATIENCE_MS))

static void open_log(struct fixture *f, size_t max)
{
    f->log = logfile_open(f->loop, f->prefix, max, NULL);
    assert_non_null(f->log);
}

static void open_ready(struct fixture *f, size_t max)
{
    open_log(f, max);
    UNTIL(is_ready);
}

static void close_log(struct fixture *f)
{
    f->closed = 0;
    logfile_close(f->log, on_closed, f);
    f->log = NULL;
    UNTIL(is_closed);
}

static const char *read_log(struct fixture *f, uint64_t offset, size_t max)
{
    f->reads = 0;
    assert_non_null(logfile_read(f->log, offset, max, on_read, f, NULL));
    assert_int_equal(f->reads, 0);
    UNTIL(has_read);
    return f->data;
}

static void append(struct fixture *f, const char *text)
{
    logfile_append(f->log, text, strlen(text));
}

static uint64_t bytes_on_disk(const struct fixture *f, size_t *ret_files)
{
    char pattern[96];
    glob_t g;
    uint64_t sum = 0;

    snprintf(pattern, sizeof(pattern), "%s.*", f->prefix);
    *ret_files = 0;
    if (glob(pattern, 0, NULL, &g) != 0)
        return 0;
    for (size_t i = 0; i < g.gl_pathc; i++) {
        struct stat st;
        if (stat(g.gl_pathv[i], &st) != 0) /* pruned since */
            continue;
        sum += (uint64_t)st.st_size;
        (*ret_files)++;
    }
    globfree(&g);
    return sum;
}

static void memory_and_disk_read_as_one(void **state)
{
    struct fixture *f = *state;

    open_ready(f, 1 << 20);
    assert_int_equal(logfile_next(f->log), 0);
    append(f, "hello ");
    append(f, "world\n");
    assert_int_equal(logfile_next(f->log), 12);
    assert_string_equal(read_log(f, 0, 100), "hello world\n");
    run_for(f->loop, 50); /* all on disk now */
    append(f, "more\n");
    assert_string_equal(read_log(f, 6, 100), "world\nmore\n");
    assert_int_equal(f->chunk.offset, 6);
    assert_int_equal(f->chunk.next, 17);
    assert_string_equal(read_log(f, 0, 5), "hello");
    assert_string_equal(read_log(f, 17, 100), "");
    assert_int_equal(f->chunk.offset, 17);
    assert_string_equal(read_log(f, 1000, 100), "");
    assert_int_equal(f->chunk.offset, 17);
}

static void what_comes_before_the_disk_was_seen_follows_it(void **state)
{
    struct fixture *f = *state;

    open_log(f, 1 << 20);
    append(f, "one\n");
    close_log(f);
    open_log(f, 1 << 20);
    append(f, "two\n"); /* not ready yet */
    assert_false(logfile_is_ready(f->log));
    UNTIL(is_ready);
    assert_int_equal(logfile_next(f->log), 8);
    assert_string_equal(read_log(f, 0, 100), "one\ntwo\n");
}

static void a_restart_continues_the_offsets(void **state)
{
    struct fixture *f = *state;

    for (int i = 0; i < 5; i++) {
        char text[32];
        snprintf(text, sizeof(text), "run %d..............\n", i); /* 20 bytes */
        open_ready(f, 64);
        assert_int_equal(logfile_next(f->log), i * 20);
        append(f, text);
        close_log(f);
    }
    open_ready(f, 64);
    assert_int_equal(logfile_next(f->log), 100);
    assert_true(logfile_oldest(f->log) > 0);
    read_log(f, 0, 1000);
    assert_int_equal(f->chunk.offset, logfile_oldest(f->log)); /* clamped, and it says so */
    assert_int_equal(f->chunk.offset + f->chunk.len, 100);
    assert_non_null(strstr(f->data, "run 4..............\n"));
}

static void the_disk_holds_no_more_than_the_maximum(void **state)
{
    enum { MAX = 10000, LINE = 100 };
    struct fixture *f = *state;
    char line[LINE + 1];
    size_t files;

    open_ready(f, MAX);
    for (int i = 0; i < 1000; i++) {
        snprintf(line, sizeof(line), "%099d\n", i);
        append(f, line);
        if (i % 50 == 0) {
            run_for(f->loop, 1);
            assert_true(bytes_on_disk(f, &files) <= MAX);
            assert_true(files <= 3); /* the third lives for the instant until it is pruned */
        }
    }
    close_log(f);
    assert_true(bytes_on_disk(f, &files) <= MAX);
    assert_int_equal(files, 2);
    struct logfile_chunk chunk;
    assert_int_equal(logfile_read_at(f->prefix, 0, 1 << 20, &chunk, NULL), 0);
    assert_int_equal(chunk.next, 1000 * LINE);
    assert_true(chunk.len >= MAX / 2 && chunk.len <= MAX);
    for (size_t i = 0; i < chunk.len; i += LINE) /* each byte stands where its offset says */
        assert_int_equal(atoi(chunk.data + i), (chunk.offset + i) / LINE);
    mem_free((char *)(uintptr_t)chunk.data);
}

static void a_flood_is_dropped_and_marked(void **state)
{
    struct fixture *f = *state;
    static char flood[LOGFILE_PENDING_MAX];

    memset(flood, 'f', sizeof(flood));
    open_ready(f, 1 << 20);
    for (int i = 0; i < 10; i++) /* the loop does not turn */
        logfile_append(f->log, flood, sizeof(flood));
    assert_int_equal(logfile_next(f->log), LOGFILE_PENDING_MAX);
    run_for(f->loop, 100);
    append(f, "after\n");
    close_log(f);
    struct logfile_chunk chunk;
    assert_int_equal(logfile_read_at(f->prefix, LOGFILE_PENDING_MAX, 1000, &chunk, NULL), 0);
    assert_string_equal(chunk.data, "\n[vmmd: 2359296 bytes of output dropped]\nafter\n");
    mem_free((char *)(uintptr_t)chunk.data);
}

static void a_gap_is_a_line(void **state)
{
    struct fixture *f = *state;

    open_ready(f, 1 << 20);
    append(f, "login:");
    logfile_gap(f->log, "12 s of output lost while vmmd was down");
    assert_string_equal(read_log(f, 0, 1000), "login:\n[vmmd: 12 s of output lost while vmmd was down]\n");
}

static void what_could_not_be_written_is_tried_again(void **state)
{
    struct fixture *f = *state;
    char away[64];

    open_ready(f, 1 << 20);
    snprintf(away, sizeof(away), "%s.away", f->dir);
    assert_int_equal(rename(f->dir, away), 0); /* no segment can be made now */
    append(f, "waits\n");
    run_for(f->loop, 100);
    assert_string_equal(read_log(f, 0, 1000), "waits\n");
    assert_int_equal(logfile_waiting(f->log), 0); /* nobody need wait for it */
    assert_int_equal(rename(away, f->dir), 0);
    append(f, "too\n");
    close_log(f);
    struct logfile_chunk chunk;
    assert_int_equal(logfile_read_at(f->prefix, 0, 1000, &chunk, NULL), 0);
    assert_string_equal(chunk.data, "waits\ntoo\n");
    mem_free((char *)(uintptr_t)chunk.data);
}

/* A disk that takes no more than so many bytes of a file. */
static struct rlimit disk_of(rlim_t bytes)
{
    struct rlimit old, small;

    signal(SIGXFSZ, SIG_IGN);
    getrlimit(RLIMIT_FSIZE, &old);
    small = (struct rlimit){.rlim_cur = bytes, .rlim_max = old.rlim_max};
    setrlimit(RLIMIT_FSIZE, &small);
    return old;
}

static void a_full_disk_loses_nothing_that_memory_holds(void **state)
{
    struct fixture *f = *state;
    char line[32];

    open_ready(f, 1 << 20);
    append(f, "before\n");
    run_for(f->loop, 50);
    struct rlimit old = disk_of(100); /* some of it fits */
    for (int i = 0; i < 50; i++) {
        snprintf(line, sizeof(line), "line %04d\n", i);
        append(f, line);
        run_for(f->loop, 2);
    }
    assert_int_equal(logfile_oldest(f->log), 0); /* failing does not push out what was there */
    setrlimit(RLIMIT_FSIZE, &old);
    append(f, "after\n");
    close_log(f);
    struct logfile_chunk chunk;
    assert_int_equal(logfile_read_at(f->prefix, 0, 1000, &chunk, NULL), 0);
    assert_int_equal(chunk.len, 7 + 50 * 10 + 6);
    assert_int_equal(strncmp(chunk.data, "before\n", 7), 0);
    for (int i = 0; i < 50; i++)
        assert_int_equal(atoi(chunk.data + 7 + i * 10 + 5), i);
    mem_free((char *)(uintptr_t)chunk.data);
}

static void a_full_disk_drops_what_memory_does_not_hold_and_tells(void **state)
{
    struct fixture *f = *state;
    static char block[LOGFILE_PENDING_MAX / 2];

    memset(block, 'b', sizeof(block));
    open_ready(f, 1 << 20);
    struct rlimit old = disk_of(0);
    for (int i = 0; i < 5; i++) {
        logfile_append(f->log, block, sizeof(block));
        run_for(f->loop, 20);
    }
    setrlimit(RLIMIT_FSIZE, &old);
    append(f, "x"); /* has no place yet; it lets the disk be tried */
    run_for(f->loop, 100);
    assert_int_equal(logfile_next(f->log), LOGFILE_PENDING_MAX + strlen("\n[vmmd: 393217 bytes of output dropped]\n"));
    append(f, "after\n");
    close_log(f);
    struct logfile_chunk chunk;
    assert_int_equal(logfile_read_at(f->prefix, LOGFILE_PENDING_MAX, 1000, &chunk, NULL), 0);
    assert_string_equal(chunk.data, "\n[vmmd: 393217 bytes of output dropped]\nafter\n");
    mem_free((char *)(uintptr_t)chunk.data);
}

static void a_hole_on_disk_is_stepped_over(void **state)
{
    struct fixture *f = *state;
    char path[128];
    struct logfile_chunk chunk;

    snprintf(path, sizeof(path), "%s.%020d", f->prefix, 0);
    assert_int_equal(file_write(path, "first\n", 6, 0600, NULL), 0);
    snprintf(path, sizeof(path), "%s.%020d", f->prefix, 300);
    assert_int_equal(file_write(path, "second\nthird\n", 13, 0600, NULL), 0);
    assert_int_equal(logfile_read_at(f->prefix, 0, 1000, &chunk, NULL), 0);
    assert_int_equal(chunk.len, 6); /* up to the hole */
    mem_free((char *)(uintptr_t)chunk.data);
    assert_int_equal(logfile_read_at(f->prefix, 6, 1000, &chunk, NULL), 0);
    assert_int_equal(chunk.offset, 300); /* over it */
    assert_string_equal(chunk.data, "second\nthird\n");
    mem_free((char *)(uintptr_t)chunk.data);
    assert_int_equal(logfile_tail_at(f->prefix, 1, &chunk, NULL), 0);
    assert_string_equal(chunk.data, "third\n");
    mem_free((char *)(uintptr_t)chunk.data);
}

static void on_watch(void *arg, bool ended)
{
    struct fixture *f = arg;

    f->told++;
    f->ended += ended;
    if (f->unwatch_when_told || ended) {
        logfile_unwatch(f->watch);
        f->watch = NULL;
    }
    if (f->free_when_told && f->log != NULL) {
        logfile_free(f->log);
        f->log = NULL;
    }
}

static void watchers_are_told_of_bytes_and_of_the_end(void **state)
{
    struct fixture *f = *state;

    open_ready(f, 1 << 20);
    run_for(f->loop, 20);
    f->watch = logfile_watch(f->log, on_watch, f);
    append(f, "a");
    append(f, "b");
    assert_int_equal(f->told, 0); /* never from within the append */
    run_for(f->loop, 50);
    assert_in_range(f->told, 1, 3);
    f->told = 0;
    run_for(f->loop, 20);
    assert_int_equal(f->told, 0);
    close_log(f);
    assert_int_equal(f->ended, 1);
    assert_null(f->watch);
}

static void a_watcher_may_leave_or_end_the_log(void **state)
{
    struct fixture *f = *state;

    open_ready(f, 1 << 20);
    run_for(f->loop, 20);
    f->watch = logfile_watch(f->log, on_watch, f);
    f->unwatch_when_told = true;
    append(f, "a");
    run_for(f->loop, 20);
    assert_int_equal(f->told, 1);
    f->unwatch_when_told = false;
    f->free_when_told = true;
    f->watch = logfile_watch(f->log, on_watch, f);
    append(f, "b");
    run_for(f->loop, 50);
    assert_null(f->log);
    assert_int_equal(f->ended, 1);
    assert_null(f->watch);
}

static void a_read_may_be_cancelled_and_ends_with_the_log(void **state)
{
    struct fixture *f = *state;

    open_ready(f, 1 << 20);
    append(f, "text\n");
    logfile_cancel(logfile_read(f->log, 0, 100, on_read, f, NULL));
    assert_non_null(logfile_read(f->log, 0, 100, on_read, f, NULL));
    logfile_free(f->log);
    f->log = NULL;
    run_for(f->loop, 50);
    assert_int_equal(f->reads, 0);
}

static void a_read_under_way_is_answered_when_the_log_closes(void **state)
{
    struct fixture *f = *state;

    open_ready(f, 1 << 20);
    append(f, "text\n");
    f->reads = 0;
    assert_non_null(logfile_read(f->log, 0, 100, on_read, f, NULL));
    logfile_cancel(logfile_read(f->log, 0, 100, on_read, f, NULL));
    close_log(f);
    assert_int_equal(f->reads, 1);
    assert_string_equal(f->data, "text\n");
}

static void the_tail_is_counted_in_lines(void **state)
{
    struct fixture *f = *state;
    static const char text[] = "one\ntwo\nthree";
    const size_t len = sizeof(text) - 1;

    assert_int_equal(logfile_tail_start(text, len, 0), len);
    assert_int_equal(logfile_tail_start(text, len, 1), 8);
    assert_int_equal(logfile_tail_start(text, len, 2), 4);
    assert_int_equal(logfile_tail_start(text, len, 3), 0);
    assert_int_equal(logfile_tail_start(text, len, 9), 0);
    assert_int_equal(logfile_tail_start(text, 8, 1), 4); /* ends in a newline */
    assert_int_equal(logfile_tail_start("\n\n", 2, 1), 1);
    assert_int_equal(logfile_tail_start("", 0, 1), 0);

    open_ready(f, 1 << 20);
    append(f, "one\ntwo\n");
    run_for(f->loop, 30);
    append(f, "three\n");
    assert_non_null(logfile_tail(f->log, 2, on_read, f, NULL));
    UNTIL(has_read);
    assert_string_equal(f->data, "two\nthree\n");
    assert_int_equal(f->chunk.offset, 4);
    close_log(f);
    struct logfile_chunk chunk;
    assert_int_equal(logfile_tail_at(f->prefix, 1, &chunk, NULL), 0);
    assert_string_equal(chunk.data, "three\n");
    assert_int_equal(chunk.offset, 8);
    mem_free((char *)(uintptr_t)chunk.data);
}

static void no_log_is_an_empty_one(void **state)
{
    struct fixture *f = *state;
    struct logfile_chunk chunk;
    char path[96];

    snprintf(path, sizeof(path), "%s/no/such", f->dir);
    assert_int_equal(logfile_read_at(path, 5, 100, &chunk, NULL), 0);
    assert_int_equal(chunk.len + chunk.next + chunk.offset, 0);
    mem_free((char *)(uintptr_t)chunk.data);
}

static void strange_files_are_left_alone(void **state)
{
    static const char *const names[] = {"console.1", "console.0000000000000000000x", "console.99999999999999999999",
                                        "other.00000000000000000000"};
    struct fixture *f = *state;
    char path[128];

    for (size_t i = 0; i < ARRAY_SIZE(names); i++) {
        snprintf(path, sizeof(path), "%s/%s", f->dir, names[i]);
        assert_int_equal(file_write(path, "x", 1, 0600, NULL), 0);
    }
    snprintf(path, sizeof(path), "%s.%020d", f->prefix, 7);
    assert_int_equal(symlink("/etc/passwd", path), 0);
    open_ready(f, 64);
    assert_int_equal(logfile_next(f->log), 0);
    append(f, "fine\n");
    assert_string_equal(read_log(f, 0, 100), "fine\n");
    close_log(f);
    for (size_t i = 0; i < ARRAY_SIZE(names); i++) {
        snprintf(path, sizeof(path), "%s/%s", f->dir, names[i]);
        assert_int_equal(access(path, F_OK), 0);
    }
}

static void a_foreign_file_is_trimmed(void **state)
{
    enum { MAX = 4096, LINES = 1000 };
    struct fixture *f = *state;
    char path[96], line[32];
    CLEANUP_FREE char *text = NULL;
    size_t len;

    snprintf(path, sizeof(path), "%s/stderr", f->dir);
    assert_int_equal(logfile_trim(path, MAX, NULL), 0); /* not there */
    CLEANUP_FD int fd = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    for (int i = 0; i < LINES; i++) {
        snprintf(line, sizeof(line), "line %06d\n", i);
        assert_int_equal(fd_write_all(fd, line, strlen(line)), 0);
        if (i == 100)
            assert_int_equal(logfile_trim(path, MAX, NULL), 0); /* short enough */
    }
    assert_int_equal(logfile_trim(path, MAX, NULL), 1);
    assert_int_equal(logfile_trim(path, MAX, NULL), 0);
    assert_int_equal(fd_write_all(fd, "end\n", 4), 0); /* the writer goes on at the new end */
    assert_int_equal(file_read(path, 1 << 20, &text, &len, NULL), 0);
    assert_true(len <= MAX / 2 + 64 && len > MAX / 4);
    assert_int_equal(strncmp(text, "[vmmd: ", 7), 0);
    assert_int_equal(strncmp(strchr(text, '\n') + 1, "line 000", 8), 0);
    assert_string_equal(text + len - 4 - 12, "line 000999\nend\n");
}

static void every_allocation_may_fail(void **state)
{
    struct fixture *f = *state;

    for (size_t nth = 1; nth < 200; nth++) {
        f->reads = f->failed = f->closed = 0;
        mem_fail_nth(nth);
        f->log = logfile_open(f->loop, f->prefix, 1 << 20, NULL);
        if (f->log != NULL) {
            append(f, "some text\n");
            f->watch = logfile_watch(f->log, on_watch, f);
            append(f, "and more\n");
            if (logfile_tail(f->log, 1, on_read, f, NULL) != NULL)
                UNTIL(has_read);
            logfile_close(f->log, on_closed, f);
            f->log = NULL;
            UNTIL(is_closed);
            assert_null(f->watch);
        }
        if (mem_fail_nth(0) < nth)
            return;
    }
    fail_msg("the sweep did not come to its end");
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(memory_and_disk_read_as_one),
        TEST(what_comes_before_the_disk_was_seen_follows_it),
        TEST(a_restart_continues_the_offsets),
        TEST(the_disk_holds_no_more_than_the_maximum),
        TEST(a_flood_is_dropped_and_marked),
        TEST(a_gap_is_a_line),
        TEST(what_could_not_be_written_is_tried_again),
        TEST(a_full_disk_loses_nothing_that_memory_holds),
        TEST(a_full_disk_drops_what_memory_does_not_hold_and_tells),
        TEST(a_hole_on_disk_is_stepped_over),
        TEST(watchers_are_told_of_bytes_and_of_the_end),
        TEST(a_watcher_may_leave_or_end_the_log),
        TEST(a_read_may_be_cancelled_and_ends_with_the_log),
        TEST(a_read_under_way_is_answered_when_the_log_closes),
        TEST(the_tail_is_counted_in_lines),
        TEST(no_log_is_an_empty_one),
        TEST(strange_files_are_left_alone),
        TEST(a_foreign_file_is_trimmed),
        TEST(every_allocation_may_fail),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
