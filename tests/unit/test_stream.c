/* test_stream.c - streams against peers made of bare sockets: order, bounds, ends, and freeing from any callback. */
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/buf.h"
#include "base/clock.h"
#include "base/mem.h"
#include "loop/stream.h"
#include "loop/timer.h"

enum { MAX_PENDING = 4 * 1024 * 1024, BIG = 3 * 1024 * 1024, TURNS = 20000 };

enum where { NOWHERE, IN_CONNECTED, IN_DATA, IN_CLOSED, IN_DRAINED };

struct side {
    struct stream *stream;
    struct buf got;
    int connected;
    int closed;
    int drained;
    int errnum;
    enum where free_in;
    bool pause_after_data;
    bool inside; /* a call of ours into the stream: no callback may come */
};

static struct loop *loop;
static struct side side;
static char dir[64];
static char path[96];

static void maybe_free(struct side *s, enum where where)
{
    assert_false(s->inside);
    if (s->free_in == where) {
        stream_free(s->stream);
        s->stream = NULL;
    }
}

static void on_connected(void *arg)
{
    struct side *s = arg;

    assert_int_equal(s->closed, 0);
    s->connected++;
    maybe_free(s, IN_CONNECTED);
}

static void on_data(void *arg, const char *data, size_t len)
{
    struct side *s = arg;

    assert_true(len > 0);
    assert_int_equal(s->closed, 0);
    assert_int_equal(buf_append(&s->got, data, len), 0);
    if (s->pause_after_data)
        stream_pause(s->stream, true);
    maybe_free(s, IN_DATA);
}

static void on_closed(void *arg, int errnum)
{
    struct side *s = arg;

    s->closed++;
    s->errnum = errnum;
    assert_int_equal(stream_write(s->stream, "x", 1), -1);
    assert_int_equal(stream_pending(s->stream), 0);
    maybe_free(s, IN_CLOSED);
}

static void on_drained(void *arg)
{
    struct side *s = arg;

    assert_int_equal(stream_pending(s->stream), 0);
    s->drained++;
    maybe_free(s, IN_DRAINED);
}

static const struct stream_events events = {on_connected, on_data, on_closed, on_drained};

static int setup(void **state)
{
    CLEANUP_ERROR struct error err = ERROR_INIT;

    (void)state;
    loop = loop_new(&err);
    memset(&side, 0, sizeof(side));
    buf_init(&side.got, 2 * (size_t)BIG);
    snprintf(dir, sizeof(dir), "/tmp/test_stream_XXXXXX");
    if (mkdtemp(dir) == NULL)
        return -1;
    snprintf(path, sizeof(path), "%s/socket", dir);
    return loop != NULL ? 0 : -1;
}

static int teardown(void **state)
{
    (void)state;
    stream_free(side.stream);
    buf_done(&side.got);
    unlink(path);
    rmdir(dir);
    return loop_free(loop);
}

/* One turn at a time until *what is set; a stream alone keeps the loop waiting, a tick makes sure of it. */
static void on_tick(void *arg)
{
    (void)arg;
}

static void run_until(const int *what)
{
    struct timer *tick = timer_new(loop, on_tick, NULL);

    timer_start(tick, 1, 1);
    for (int i = 0; i < TURNS && *what == 0; i++)
        loop_run_once(loop, true);
    timer_free(tick);
    assert_int_not_equal(*what, 0);
}

static void turns(int n)
{
    for (int i = 0; i < n; i++)
        loop_run_once(loop, false);
}

static int listener(int backlog)
{
    struct sockaddr_un addr = {.sun_family = AF_UNIX};
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

    snprintf(addr.sun_path, sizeof(addr.sun_path), "%s", path);
    assert_int_equal(bind(fd, (struct sockaddr *)&addr, sizeof(addr)), 0);
    assert_int_equal(listen(fd, backlog), 0);
    return fd;
}

static void connect_side(void)
{
    CLEANUP_ERROR struct error err = ERROR_INIT;

    side.inside = true;
    side.stream = stream_connect(loop, path, MAX_PENDING, &events, &side, &err);
    side.inside = false;
    assert_non_null(side.stream);
}

/* A stream on one end of a pair; returns the other end. */
static int pair_side(void)
{
    CLEANUP_ERROR struct error err = ERROR_INIT;
    int ends[2];

    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends), 0);
    side.stream = stream_from_fd(loop, ends[0], MAX_PENDING, &events, &side, &err);
    assert_non_null(side.stream);
    fcntl(ends[1], F_SETFL, O_NONBLOCK);
    return ends[1];
}

static int write_side(const void *data, size_t len)
{
    side.inside = true;
    int rc = stream_write(side.stream, data, len);
    side.inside = false;
    return rc;
}

static void test_connect_and_talk(void **state)
{
    int server = listener(5);
    char text[32] = "";

    (void)state;
    connect_side();
    assert_int_equal(write_side("early ", 6), 0); /* waits for the connection */
    run_until(&side.connected);
    assert_int_equal(write_side("late", 4), 0);
    run_until(&side.drained);
    int peer = accept4(server, NULL, NULL, SOCK_CLOEXEC);
    assert_true(peer >= 0);
    assert_int_equal(read(peer, text, sizeof(text) - 1), 10);
    assert_string_equal(text, "early late");
    assert_int_equal(write(peer, "hello", 5), 5);
    close(peer);
    run_until(&side.closed);
    assert_int_equal(side.errnum, 0);
    assert_int_equal(side.connected, 1);
    assert_string_equal(side.got.data, "hello");
    turns(3);
    assert_int_equal(side.closed, 1);
    close(server);
}

static void test_refusals(void **state)
{
    CLEANUP_ERROR struct error err = ERROR_INIT;
    char lengthy[200];

    (void)state;
    connect_side();
    run_until(&side.closed);
    assert_int_equal(side.errnum, ENOENT);
    assert_int_equal(side.connected, 0);
    stream_free(side.stream);
    close(listener(1)); /* the file stays, nobody listens */
    side.closed = 0;
    connect_side();
    run_until(&side.closed);
    assert_int_equal(side.errnum, ECONNREFUSED);
    memset(lengthy, 'x', sizeof(lengthy));
    lengthy[108] = '\0';
    assert_null(stream_connect(loop, lengthy, 10, &events, &side, &err));
    assert_int_equal(err.code, ERR_IO);
    error_done(&err);
    assert_null(stream_connect(loop, "", 10, &events, &side, &err));
    assert_int_equal(err.code, ERR_IO);
    lengthy[107] = '\0'; /* the longest that fits: refused by the file system, not by us */
    error_done(&err);
    struct stream *fits = stream_connect(loop, lengthy, 10, &events, &side, &err);
    assert_non_null(fits);
    stream_free(fits); /* at once: no callback */
    side.closed = 0;
    turns(3);
    assert_int_equal(side.closed, 0);
}

/* Fills the backlog; returns how many sockets were needed. */
static size_t fill(int *fds, size_t max)
{
    struct sockaddr_un addr = {.sun_family = AF_UNIX};

    snprintf(addr.sun_path, sizeof(addr.sun_path), "%s", path);
    for (size_t n = 0; n < max; n++) {
        fds[n] = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
        if (connect(fds[n], (struct sockaddr *)&addr, sizeof(addr)) != 0) {
            assert_int_equal(errno, EAGAIN);
            close(fds[n]);
            return n;
        }
    }
    return max;
}

static void test_full_backlog(void **state)
{
    int fds[8], server = listener(0);
    size_t n = fill(fds, ARRAY_SIZE(fds));

    (void)state;
    assert_true(n < ARRAY_SIZE(fds));
    /* Room comes after a while. */
    connect_side();
    for (int i = 0; i < 3; i++)
        loop_run_once(loop, true);
    assert_int_equal(side.closed + side.connected, 0);
    for (size_t i = 0; i < n; i++)
        close(accept4(server, NULL, NULL, SOCK_CLOEXEC));
    run_until(&side.connected);
    stream_free(side.stream);
    side.stream = NULL;
    close(accept4(server, NULL, NULL, SOCK_CLOEXEC));
    for (size_t i = 0; i < n; i++)
        close(fds[i]);
    /* It never comes. */
    n = fill(fds, ARRAY_SIZE(fds));
    int64_t began = clock_mono_ms();
    connect_side();
    run_until(&side.closed);
    assert_int_equal(side.errnum, EAGAIN);
    assert_true(clock_mono_ms() - began >= 900);
    for (size_t i = 0; i < n; i++)
        close(fds[i]);
    close(server);
}

static unsigned char pattern(size_t i)
{
    return (unsigned char)(i * 31 + (i >> 12));
}

static void test_bounds_and_order(void **state)
{
    int peer = pair_side();
    CLEANUP_FREE char *chunk = mem_alloc(BIG);
    CLEANUP_FREE char *back = mem_alloc(BIG);
    size_t sent = 0, got = 0;

    (void)state;
    for (size_t i = 0; i < BIG; i++)
        chunk[i] = (char)pattern(i);
    while (sent < BIG) { /* pieces of many sizes; the peer does not read yet */
        size_t len = 1 + (sent * 7) % 9000;
        len = len < BIG - sent ? len : BIG - sent;
        assert_int_equal(write_side(chunk + sent, len), 0);
        sent += len;
    }
    size_t pending = stream_pending(side.stream);
    assert_true(pending > 0 && pending < BIG);
    turns(3);
    assert_int_equal(side.drained, 0);
    /* More than max_pending is refused as a whole, the rest goes on. */
    assert_int_equal(write_side(chunk, MAX_PENDING - pending + 1), -1);
    assert_int_equal(stream_pending(side.stream), pending);
    assert_int_equal(write_side(chunk, SIZE_MAX), -1);
    assert_int_equal(write_side("", 0), 0);
    while (got < BIG) {
        ssize_t n = read(peer, back + got, BIG - got);
        if (n > 0)
            got += (size_t)n;
        else
            loop_run_once(loop, false);
    }
    assert_memory_equal(back, chunk, BIG);
    run_until(&side.drained);
    assert_int_equal(stream_pending(side.stream), 0);
    assert_int_equal(side.drained, 1);
    close(peer);
    run_until(&side.closed);
}

static void test_big_read_and_pause(void **state)
{
    int peer = pair_side();
    CLEANUP_FREE char *chunk = mem_alloc(BIG);
    size_t sent = 0;

    (void)state;
    for (size_t i = 0; i < BIG; i++)
        chunk[i] = (char)pattern(i);
    while (sent < BIG) {
        ssize_t n = write(peer, chunk + sent, BIG - sent);
        if (n > 0)
            sent += (size_t)n;
        loop_run_once(loop, false);
    }
    turns(50);
    assert_int_equal(side.got.len, BIG);
    assert_memory_equal(side.got.data, chunk, BIG);
    buf_reset(&side.got);
    /* Paused from within `data`: not one more byte until it goes on. */
    side.pause_after_data = true;
    assert_true(write(peer, chunk, 150000) > 70000);
    turns(10);
    size_t first = side.got.len;
    assert_true(first > 0 && first <= 64 * 1024);
    side.pause_after_data = false;
    stream_pause(side.stream, false);
    turns(10);
    assert_true(side.got.len > first);
    assert_memory_equal(side.got.data, chunk, side.got.len);
    stream_pause(side.stream, true);
    close(peer);
    turns(10);
    assert_int_equal(side.closed, 0);
    stream_pause(side.stream, false);
    run_until(&side.closed);
}

/* The peer said something and left; we notice by writing, yet hear it out. */
static void test_last_words(void **state)
{
    int peer = pair_side();

    (void)state;
    assert_int_equal(write(peer, "goodbye", 7), 7);
    close(peer);
    assert_int_equal(write_side("are you there?", 14), -1);
    assert_int_equal(side.closed, 0);
    run_until(&side.closed);
    assert_string_equal(side.got.data, "goodbye");
    assert_int_equal(side.closed, 1);
}

/* The peer no longer reads, but lives: no end of file will ever come. */
static void test_peer_shut_for_reading(void **state)
{
    int peer = pair_side();

    (void)state;
    assert_int_equal(shutdown(peer, SHUT_RD), 0);
    assert_int_equal(write(peer, "bye", 3), 3);
    assert_int_equal(write_side("hello", 5), -1);
    run_until(&side.closed);
    assert_int_equal(side.errnum, EPIPE);
    assert_string_equal(side.got.data, "bye");
    close(peer);
}

static void test_broken_while_queued_and_paused(void **state)
{
    int peer = pair_side();
    CLEANUP_FREE char *chunk = mem_zalloc(BIG);

    (void)state;
    assert_int_equal(write_side(chunk, BIG), 0);
    stream_pause(side.stream, true);
    assert_int_equal(write(peer, "x", 1), 1);
    close(peer);
    turns(10);
    assert_int_equal(side.closed, 0); /* the bytes before the end wait for us */
    stream_pause(side.stream, false);
    run_until(&side.closed);
    assert_int_equal(side.got.len, 1);
}

static void test_free_from_each_callback(void **state)
{
    int server = listener(5), peer;

    (void)state;
    for (enum where where = IN_CONNECTED; where <= IN_DRAINED; where++) {
        side.free_in = where;
        side.connected = side.closed = side.drained = 0;
        buf_reset(&side.got);
        connect_side();
        assert_int_equal(write_side("x", 1), 0);
        peer = accept4(server, NULL, NULL, SOCK_CLOEXEC);
        assert_int_equal(write(peer, "y", 1), 1);
        if (where == IN_CLOSED)
            close(peer);
        for (int i = 0; i < TURNS && side.stream != NULL; i++)
            loop_run_once(loop, true);
        assert_null(side.stream);
        int calls = side.connected + side.closed + side.drained + (int)side.got.len;
        turns(5);
        assert_int_equal(side.connected + side.closed + side.drained + (int)side.got.len, calls);
        if (where != IN_CLOSED)
            close(peer);
    }
    /* In `drained` after a write that left at once. */
    peer = pair_side();
    side.free_in = IN_DRAINED;
    side.drained = 0;
    assert_int_equal(write_side("x", 1), 0);
    assert_int_equal(side.drained, 0);
    run_until(&side.drained);
    assert_null(side.stream);
    /* In `closed` after a write that failed. */
    close(peer);
    peer = pair_side();
    close(peer);
    side.free_in = IN_CLOSED;
    side.closed = 0;
    assert_int_equal(write_side("x", 1), -1);
    run_until(&side.closed);
    assert_null(side.stream);
    stream_free(NULL);
    close(server);
}

static void test_bad_fd(void **state)
{
    CLEANUP_ERROR struct error err = ERROR_INIT;

    (void)state;
    assert_null(stream_from_fd(loop, 987, 10, &events, &side, &err));
    assert_int_equal(err.code, ERR_IO);
}

static int open_fds(void)
{
    int n = 0;

    for (int fd = 0; fd < 256; fd++)
        n += fcntl(fd, F_GETFD) >= 0;
    return n;
}

static void test_allocation_sweep(void **state)
{
    int server = listener(100), before = open_fds();
    unsigned refused = 0;

    (void)state;
    for (size_t nth = 1; nth <= 10; nth++) {
        CLEANUP_ERROR struct error err = ERROR_INIT;
        mem_fail_nth(nth);
        side.closed = side.connected = 0;
        side.stream = stream_connect(loop, path, MAX_PENDING, &events, &side, &err);
        if (side.stream != NULL) {
            int written = stream_write(side.stream, "abc", 3);
            turns(3);
            assert_int_equal(side.connected + side.closed, 1);
            if (written != 0 && side.closed == 0) /* a write that found no memory harms only itself */
                assert_int_equal(stream_write(side.stream, "abc", 3), 0);
        } else {
            refused++;
            assert_int_equal(err.code, ERR_IO);
        }
        mem_fail_nth(0);
        stream_free(side.stream);
        side.stream = NULL;
        turns(1);
        assert_int_equal(open_fds(), before);
        int ends[2];
        error_done(&err);
        assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, ends), 0);
        mem_fail_nth(nth);
        side.stream = stream_from_fd(loop, ends[0], MAX_PENDING, &events, &side, &err);
        mem_fail_nth(0);
        assert_int_equal(side.stream == NULL, error_is_set(&err));
        refused += side.stream == NULL;
        stream_free(side.stream);
        side.stream = NULL;
        close(ends[1]);
        assert_int_equal(open_fds(), before);
    }
    assert_true(refused >= 4);
    close(server);
}

#define TEST(f) cmocka_unit_test_setup_teardown(f, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_connect_and_talk),
        TEST(test_refusals),
        TEST(test_full_backlog),
        TEST(test_bounds_and_order),
        TEST(test_big_read_and_pause),
        TEST(test_last_words),
        TEST(test_peer_shut_for_reading),
        TEST(test_broken_while_queued_and_paused),
        TEST(test_free_from_each_callback),
        TEST(test_bad_fd),
        TEST(test_allocation_sweep),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
