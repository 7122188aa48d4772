/* test_qmp.c - the QMP client against a scripted peer, and against a real QEMU. */
#include <inttypes.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/mem.h"
#include "peer.h"
#include "qmp/qmp.h"

#define GREETING                                                                                                 \
    "{\"QMP\": {\"version\": {\"qemu\": {\"micro\": 22, \"minor\": 2, \"major\": 7}, \"package\": \"Debian\"}, " \
    "\"capabilities\": [\"oob\"]}}\r\n"
#define OK "{\"return\": {}, \"id\": $ID}\r\n"
#define HELLO ACCEPT, SEND(GREETING), EXPECT("\"qmp_capabilities\""), SEND(OK)

#define LOST_BEFORE(command)                                                                      \
    "QEMU_QMP_COMMAND_FAILED: the monitor of QEMU of VM web was lost before it answered " command \
    " < QEMU of VM web closed its monitor|"

enum { PATIENCE_MS = 20000 };

enum free_when { FREE_NEVER, FREE_IN_READY, FREE_IN_EVENT, FREE_IN_REPLY, FREE_IN_LOST };

struct fixture {
    struct loop *loop;
    char dir[32];
    char path[64];
    struct peer *peer;
    struct qmp *q;
    char trace[1024]; /* what was called back: "ready 7.2.22|ok a|..." */
    unsigned ready, events, lost, replies;
    enum free_when free_when;
    bool reconnect_when_lost;
    const char *execute_when_ready; /* a command to give from within `ready` */
    int64_t event_ms;
};

static void note(struct fixture *f, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
static void note(struct fixture *f, const char *fmt, ...)
{
    size_t len = strlen(f->trace);
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(f->trace + len, sizeof(f->trace) - len, fmt, ap);
    va_end(ap);
    len = strlen(f->trace);
    snprintf(f->trace + len, sizeof(f->trace) - len, "|");
}

static void maybe_free(struct fixture *f, enum free_when now)
{
    if (f->free_when == now) {
        qmp_free(f->q);
        f->q = NULL;
    }
}

static void on_reply(void *arg, json_t *ret, struct error *err)
{
    struct fixture *f = arg;

    f->replies++;
    assert_non_null(err);
    assert_true((ret == NULL) == error_is_set(err));
    if (ret != NULL) {
        char *text = json_dumps(ret, JSON_COMPACT | JSON_SORT_KEYS | JSON_ENCODE_ANY);
        note(f, "ok %s", text != NULL ? text : "?");
        mem_free(text);
    } else {
        note(f, "%s: %s%s%s", error_info(err->code)->name, err->message, err->n_causes > 0 ? " < " : "",
             err->n_causes > 0 ? err->causes[0] : "");
    }
    maybe_free(f, FREE_IN_REPLY);
}

static void on_ready(void *arg, const char *version)
{
    struct fixture *f = arg;

    f->ready++;
    note(f, "ready %s", version);
    if (f->execute_when_ready != NULL)
        qmp_execute(f->q, f->execute_when_ready, NULL, 5000, on_reply, f, NULL);
    maybe_free(f, FREE_IN_READY);
}

static void on_event(void *arg, const char *name, json_t *data, int64_t wall_ms)
{
    struct fixture *f = arg;

    f->events++;
    f->event_ms = wall_ms;
    note(f, "event %s%s", name, json_is_object(data) ? " with data" : "");
    maybe_free(f, FREE_IN_EVENT);
}

static void on_lost(void *arg, const struct error *err)
{
    struct fixture *f = arg;

    f->lost++;
    assert_int_equal(err->code, ERR_QEMU_QMP_CONNECT_FAILED);
    note(f, "lost: %s", err->message);
    maybe_free(f, FREE_IN_LOST);
    if (f->q != NULL && f->reconnect_when_lost && f->lost == 1)
        assert_int_equal(qmp_reconnect(f->q, NULL), 0);
}

static const struct qmp_events events = {.ready = on_ready, .event = on_event, .lost = on_lost};

static int setup(void **state)
{
    struct fixture *f = calloc(1, sizeof(*f));

    snprintf(f->dir, sizeof(f->dir), "/tmp/test-qmp-XXXXXX");
    assert_non_null(mkdtemp(f->dir));
    snprintf(f->path, sizeof(f->path), "%s/qmp", f->dir);
    f->loop = loop_new(NULL);
    assert_non_null(f->loop);
    *state = f;
    return 0;
}

static int teardown(void **state)
{
    struct fixture *f = *state;

    qmp_free(f->q);
    if (f->peer != NULL)
        peer_free(f->peer);
    int left = loop_free(f->loop);
    unlink(f->path);
    int rc = rmdir(f->dir);
    free(f);
    return left == 0 && rc == 0 ? 0 : -1;
}

static void start(struct fixture *f, const struct peer_step *script)
{
    f->peer = peer_new(f->loop, f->path, script);
    f->q = qmp_new(f->loop, f->path, &events, f, NULL);
    assert_non_null(f->q);
    qmp_set_name(f->q, "web");
}

static int execute(struct fixture *f, const char *command, json_t *arguments, int64_t timeout_ms)
{
    return qmp_execute(f->q, command, arguments, timeout_ms, on_reply, f, NULL);
}

static bool is_settled(void *arg)
{
    struct fixture *f = arg;

    return f->ready + f->lost > 0;
}

static bool is_lost(void *arg)
{
    struct fixture *f = arg;

    return f->lost > 0;
}

static bool is_over(void *arg)
{
    struct fixture *f = arg;

    return peer_ended(f->peer);
}

static bool has_replies(void *arg)
{
    struct fixture *f = arg;

    return f->replies > 0;
}

static bool is_ready_twice(void *arg)
{
    struct fixture *f = arg;

    return f->ready == 2;
}

#define UNTIL(cond) assert_true(run_until(f->loop, cond, f, PATIENCE_MS))

static void greets_and_executes(void **state)
{
    struct fixture *f = *state;

    start(f, SCRIPT(HELLO, EXPECT("{\"execute\":\"query-x\",\"arguments\":{\"a\":\"b\\\"c\"},\"id\":"),
                    SEND("{\"return\": {\"status\": \"running\"}, \"id\": $ID}\r\n")));
    assert_int_equal(execute(f, "query-x", json_object(), 5000), -1); /* not ready yet; the arguments are freed */
    UNTIL(is_settled);
    assert_true(qmp_is_ready(f->q));
    assert_string_equal(qmp_version(f->q), "7.2.22");
    assert_int_equal(execute(f, "query-x", json_pack("{s:s}", "a", "b\"c"), 5000), 0);
    assert_int_equal(f->replies, 0);
    UNTIL(has_replies);
    assert_string_equal(f->trace, "ready 7.2.22|ok {\"status\":\"running\"}|");
    assert_int_equal(qmp_garbage(f->q), 0);
}

static void an_error_reply_tells_class_and_text(void **state)
{
    struct fixture *f = *state;

    f->execute_when_ready = "device_del";
    start(f, SCRIPT(HELLO, EXPECT("device_del"),
                    SEND("{\"id\": $ID, \"error\": {\"class\": \"DeviceNotFound\", \"desc\": \"no x\"}}\n")));
    UNTIL(has_replies);
    assert_string_equal(f->trace, "ready 7.2.22|QEMU_QMP_COMMAND_FAILED: QEMU of VM web refused device_del < "
                                  "DeviceNotFound: no x|");
}

static void an_answer_of_no_known_shape_fails_its_command(void **state)
{
    struct fixture *f = *state;

    f->execute_when_ready = "stop";
    start(f, SCRIPT(HELLO, EXPECT("stop"), SEND("{\"id\": $ID, \"error\": [1]}\n")));
    UNTIL(has_replies);
    assert_non_null(strstr(f->trace, "refused stop < its answer has neither a result nor an error"));
}

static void events_come_between_replies(void **state)
{
    struct fixture *f = *state;

    f->execute_when_ready = "stop";
    start(f, SCRIPT(HELLO, EXPECT("stop"),
                    SEND("{\"timestamp\": {\"seconds\": 1700000000, \"microseconds\": 123456}, \"event\": "
                         "\"STOP\"}\r\n" OK "{\"event\": \"SHUTDOWN\", \"data\": {\"guest\": true}}\r\n")));
    UNTIL(is_over);
    run_for(f->loop, 30);
    assert_string_equal(f->trace, "ready 7.2.22|event STOP|ok {}|event SHUTDOWN with data|");
    assert_true(f->event_ms > 1700000000123); /* the second had no time stamp: now */
}

static void bytes_may_drip(void **state)
{
    struct fixture *f = *state;

    f->execute_when_ready = "stop";
    start(f, SCRIPT(ACCEPT, DRIP(GREETING), EXPECT("\"qmp_capabilities\""), DRIP(OK), EXPECT("stop"),
                    DRIP("{\"event\":\"A\",\"timestamp\":{\"seconds\":1700000000,"
                         "\"microseconds\":5000}}\r\n" OK)));
    UNTIL(has_replies);
    assert_string_equal(f->trace, "ready 7.2.22|event A|ok {}|");
    assert_true(f->event_ms == 1700000000005);
}

static void shapes_we_do_not_know_are_counted(void **state)
{
    struct fixture *f = *state;

    f->execute_when_ready = "stop";
    start(f, SCRIPT(ACCEPT, SEND("{}\n\r\n"), SEND(GREETING), EXPECT("\"qmp_capabilities\""), SEND(OK), EXPECT("stop"),
                    SEND("[]\n{}\n{\"return\":{},\"id\":\"1\"}\n{\"return\":{},\"id\":999999}\n"
                         "{\"return\":{},\"id\":-1}\n{\"event\":7}\n" GREETING "{\"return\":{}}\n" OK OK)));
    UNTIL(has_replies);
    run_for(f->loop, 30);
    assert_string_equal(f->trace, "ready 7.2.22|ok {}|"); /* and the duplicate answer is nobody's */
    assert_int_equal(qmp_garbage(f->q), 9);
    assert_true(qmp_is_ready(f->q));
}

static void expect_dropped(struct fixture *f, const char *bytes, size_t n)
{
    f->execute_when_ready = "stop";
    start(f, SCRIPT(HELLO, EXPECT("stop"), SEND_BYTES(bytes, n), GONE));
    UNTIL(is_over);
    assert_string_equal(f->trace,
                        "ready 7.2.22|QEMU_QMP_COMMAND_FAILED: the monitor of QEMU of VM web was lost before it "
                        "answered stop < QEMU of VM web sent a line that is not JSON|"
                        "lost: QEMU of VM web sent a line that is not JSON|");
    assert_int_equal(qmp_garbage(f->q), 1);
    assert_false(qmp_is_ready(f->q));
}

static void garbage_loses_the_connection(void **state)
{
    expect_dropped(*state, "hello?\n{\"return\":{},\"id\":2}\n", 0);
}

static void nul_bytes_lose_the_connection(void **state)
{
    expect_dropped(*state, "{\"return\":\0{}}\n", 15);
}

static void huge_numbers_lose_the_connection(void **state)
{
    expect_dropped(*state, "{\"return\":1000000000000000000000000000000,\"id\":2}\n", 0);
}

static void deep_nesting_loses_the_connection(void **state)
{
    enum { DEPTH = 100000 };
    static char deep[DEPTH + 2];

    memset(deep, '[', DEPTH);
    deep[DEPTH] = '\n';
    expect_dropped(*state, deep, DEPTH + 1);
}

static long resident_kib(void)
{
    long pages = 0;
    FILE *fp = fopen("/proc/self/statm", "re");

    assert_non_null(fp);
    assert_int_equal(fscanf(fp, "%*d %ld", &pages), 1);
    fclose(fp);
    return pages * (sysconf(_SC_PAGESIZE) / 1024);
}

static void an_endless_line_is_dropped_and_the_client_can_reconnect(void **state)
{
    struct fixture *f = *state;
    long before = resident_kib();

    f->reconnect_when_lost = true;
    start(f, SCRIPT(HELLO, FLOOD(100 << 20), GONE, HELLO));
    UNTIL(is_ready_twice);
    assert_true(peer_sent(f->peer) < 8 << 20);
    assert_true(resident_kib() - before < 64 * 1024);
    assert_string_equal(f->trace, "ready 7.2.22|lost: QEMU of VM web sent a line that is longer than 1 MiB|"
                                  "ready 7.2.22|");
}

static void a_peer_that_never_greets_meets_the_deadline(void **state)
{
    struct fixture *f = *state;

    start(f, SCRIPT(ACCEPT, GONE));
    qmp_set_connect_deadline(f->q, 120);
    UNTIL(is_lost);
    assert_string_equal(f->trace,
                        "lost: QEMU of VM web accepted a monitor connection and did not greet within 120 ms|");
    UNTIL(is_over);
    assert_int_equal(f->lost, 1);
}

static void a_peer_that_never_negotiates_meets_the_deadline(void **state)
{
    struct fixture *f = *state;

    start(f, SCRIPT(ACCEPT, SEND(GREETING)));
    qmp_set_connect_deadline(f->q, 120);
    UNTIL(is_lost);
    assert_non_null(strstr(f->trace, "did not take up commands within 120 ms"));
}

static void refused_capabilities_lose(void **state)
{
    struct fixture *f = *state;

    start(f, SCRIPT(ACCEPT, SEND(GREETING), EXPECT("qmp_capabilities"),
                    SEND("{\"id\":$ID,\"error\":{\"class\":\"GenericError\",\"desc\":\"no\"}}\n")));
    UNTIL(is_lost);
    assert_int_equal(f->lost, 1);
    assert_int_equal(f->ready, 0);
}

static void nobody_listens_until_the_deadline(void **state)
{
    struct fixture *f = *state;

    f->q = qmp_new(f->loop, f->path, &events, f, NULL);
    qmp_set_connect_deadline(f->q, 150);
    UNTIL(is_lost);
    assert_string_equal(f->trace, "lost: QEMU served no monitor within 150 ms|");
}

static void qemu_that_starts_late_is_found(void **state)
{
    struct fixture *f = *state;

    f->q = qmp_new(f->loop, f->path, &events, f, NULL);
    run_for(f->loop, 150);
    assert_int_equal(f->ready + f->lost, 0);
    f->peer = peer_new(f->loop, f->path, SCRIPT(ACCEPT, CLOSE, HELLO)); /* the first time it hangs up */
    UNTIL(is_settled);
    assert_string_equal(f->trace, "ready 7.2.22|");
}

static void a_path_too_long_is_refused(void **state)
{
    struct fixture *f = *state;
    char path[300];

    memset(path, 'a', sizeof(path) - 1);
    path[sizeof(path) - 1] = '\0';
    struct error err = ERROR_INIT;
    assert_null(qmp_new(f->loop, path, &events, f, &err));
    assert_int_equal(err.code, ERR_IO);
    error_done(&err);
}

static void a_lost_connection_fails_all_pending_once(void **state)
{
    struct fixture *f = *state;

    start(f, SCRIPT(HELLO, EXPECT("three"), CLOSE));
    UNTIL(is_settled);
    execute(f, "one", NULL, 5000);
    execute(f, "two", NULL, 5000);
    execute(f, "three", NULL, 5000);
    UNTIL(is_lost);
    run_for(f->loop, 50);
    assert_int_equal(f->replies, 3);
    assert_int_equal(f->lost, 1);
    assert_string_equal(f->trace, "ready 7.2.22|" LOST_BEFORE("one") LOST_BEFORE("two")
                                      LOST_BEFORE("three") "lost: QEMU of VM web closed its monitor|");
    assert_int_equal(execute(f, "four", NULL, 5000), -1);
}

static void a_late_answer_is_ignored(void **state)
{
    struct fixture *f = *state;

    start(f, SCRIPT(HELLO, EXPECT("query-status"), PAUSE(200), SEND(OK), EXPECT("second"),
                    SEND("{\"return\":2,\"id\":$ID}\n")));
    UNTIL(is_settled);
    execute(f, "query-status", NULL, 60);
    UNTIL(has_replies);
    run_for(f->loop, 250);
    f->replies = 0;
    execute(f, "second", NULL, 5000);
    UNTIL(has_replies);
    assert_string_equal(f->trace, "ready 7.2.22|VM_UNRESPONSIVE: QEMU of VM web has not answered query-status for 60 "
                                  "ms|ok 2|");
    assert_int_equal(qmp_garbage(f->q), 0);
}

static void answers_come_in_any_order(void **state)
{
    struct fixture *f = *state;

    start(f, SCRIPT(HELLO, EXPECT("two"), SEND("{\"return\":\"two\",\"id\":3}\n{\"return\":\"one\",\"id\":2}\n")));
    UNTIL(is_settled);
    execute(f, "one", NULL, 5000);
    execute(f, "two", NULL, 5000);
    UNTIL(is_over);
    run_for(f->loop, 30);
    assert_string_equal(f->trace, "ready 7.2.22|ok \"two\"|ok \"one\"|");
}

static void too_many_commands_are_refused(void **state)
{
    struct fixture *f = *state;

    start(f, SCRIPT(HELLO, PAUSE(100000)));
    UNTIL(is_settled);
    for (int i = 0; i < QMP_PENDING_MAX; i++)
        assert_int_equal(execute(f, "x", NULL, 100000), 0);
    struct error err = ERROR_INIT;
    assert_int_equal(qmp_execute(f->q, "y", json_object(), 5000, on_reply, f, &err), -1);
    assert_int_equal(err.code, ERR_VM_UNRESPONSIVE);
    error_done(&err);
    assert_int_equal(f->replies, 0);
}

static void a_peer_that_does_not_read_is_bounded(void **state)
{
    struct fixture *f = *state;
    static char text[300 * 1024];
    int refused = 0;

    memset(text, 'y', sizeof(text) - 1);
    start(f, SCRIPT(HELLO, PAUSE(100000)));
    UNTIL(is_settled);
    for (int i = 0; i < 8; i++) /* nothing is read: the loop does not turn */
        refused += execute(f, "x", json_pack("{s:s}", "a", text), 100000) != 0;
    assert_true(refused >= 3);
    assert_int_equal(f->replies, 0);
}

static void free_in(struct fixture *f, enum free_when when)
{
    f->free_when = when;
    f->execute_when_ready = "stop";
    start(f, SCRIPT(HELLO, EXPECT("stop"), SEND("{\"event\":\"STOP\"}\n" OK OK "{\"event\":\"RESUME\"}\n"), CLOSE));
    for (int i = 0; i < 500 && f->q != NULL; i++)
        run_for(f->loop, 10);
    assert_null(f->q);
    run_for(f->loop, 30);
}

static void free_in_ready(void **state)
{
    free_in(*state, FREE_IN_READY);
    assert_string_equal(((struct fixture *)*state)->trace, "ready 7.2.22|");
}

static void free_in_event(void **state)
{
    free_in(*state, FREE_IN_EVENT);
    assert_string_equal(((struct fixture *)*state)->trace, "ready 7.2.22|event STOP|");
}

static void free_in_reply(void **state)
{
    free_in(*state, FREE_IN_REPLY);
    assert_string_equal(((struct fixture *)*state)->trace, "ready 7.2.22|event STOP|ok {}|");
}

static void free_in_lost(void **state)
{
    free_in(*state, FREE_IN_LOST);
    assert_string_equal(((struct fixture *)*state)->trace,
                        "ready 7.2.22|event STOP|ok {}|event RESUME|lost: QEMU of VM web closed its monitor|");
}

static void free_in_failed_reply(void **state)
{
    struct fixture *f = *state;

    f->free_when = FREE_IN_REPLY;
    start(f, SCRIPT(HELLO, EXPECT("two"), CLOSE));
    UNTIL(is_settled);
    execute(f, "one", NULL, 5000);
    execute(f, "two", NULL, 5000);
    UNTIL(has_replies);
    run_for(f->loop, 30);
    assert_int_equal(f->replies, 1); /* the free silences the second, and lost */
    assert_int_equal(f->lost, 0);
}

static void free_in_timed_out_reply(void **state)
{
    struct fixture *f = *state;

    f->free_when = FREE_IN_REPLY;
    start(f, SCRIPT(HELLO, PAUSE(100000)));
    UNTIL(is_settled);
    execute(f, "one", NULL, 20);
    execute(f, "two", NULL, 20);
    UNTIL(has_replies);
    run_for(f->loop, 30);
    assert_int_equal(f->replies, 1);
}

static void reconnect_is_refused_while_connected(void **state)
{
    struct fixture *f = *state;

    start(f, SCRIPT(HELLO));
    assert_int_equal(qmp_reconnect(f->q, NULL), -1);
    UNTIL(is_settled);
    assert_int_equal(qmp_reconnect(f->q, NULL), -1);
    assert_true(qmp_is_ready(f->q));
}

/* One allocation after the other fails: nothing crashes, leaks, or stays unanswered. */
static void every_allocation_may_fail(void **state)
{
    struct fixture *f = *state;

    for (size_t nth = 1; nth < 400; nth++) {
        f->ready = f->lost = f->replies = 0;
        f->trace[0] = '\0';
        f->peer = peer_new(f->loop, f->path,
                           SCRIPT(HELLO, EXPECT("stop"), SEND("{\"event\":\"STOP\",\"data\":{\"a\":[1,\"b\"]}}\n" OK)));
        mem_fail_nth(nth);
        f->q = qmp_new(f->loop, f->path, &events, f, NULL);
        int rc = -1;
        if (f->q != NULL) {
            qmp_set_connect_deadline(f->q, 150);
            UNTIL(is_settled);
            if (qmp_is_ready(f->q) && (rc = execute(f, "stop", json_pack("{s:[i]}", "a", 1), 100)) == 0)
                UNTIL(has_replies);
        }
        size_t made = mem_fail_nth(0);
        run_for(f->loop, 1);
        assert_int_equal(f->replies, rc == 0 ? 1 : 0);
        qmp_free(f->q);
        f->q = NULL;
        peer_free(f->peer);
        f->peer = NULL;
        run_for(f->loop, 1);
        if (made < nth) {
            assert_string_equal(f->trace, "ready 7.2.22|event STOP with data|ok {}|");
            return;
        }
    }
    fail_msg("the sweep did not come to its end");
}

static void a_real_qemu(void **state)
{
    struct fixture *f = *state;
    char arg[128];

    snprintf(arg, sizeof(arg), "unix:%s,server=on,wait=off", f->path);
    pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL); /* a test that fails leaves no QEMU */
        execlp("qemu-system-x86_64", "qemu-system-x86_64", "-M", "none", "-nodefaults", "-display", "none", "-S",
               "-qmp", arg, (char *)NULL);
        _exit(127);
    }
    f->execute_when_ready = "query-status";
    f->q = qmp_new(f->loop, f->path, &events, f, NULL);
    qmp_set_connect_deadline(f->q, PATIENCE_MS);
    UNTIL(has_replies);
    assert_int_equal(f->ready, 1);
    assert_non_null(strstr(f->trace, "ok {\"running\":false,"));
    f->replies = 0;
    execute(f, "no-such-command", NULL, 5000);
    UNTIL(has_replies);
    assert_non_null(strstr(f->trace, "CommandNotFound: "));
    f->replies = 0;
    execute(f, "quit", NULL, 5000);
    UNTIL(is_lost);
    assert_int_equal(f->replies, 1);
    assert_non_null(strstr(f->trace, "|ok {}|"));
    assert_non_null(strstr(f->trace, "|event SHUTDOWN with data|")); /* before or after the answer */
    assert_non_null(strstr(f->trace, "|lost: QEMU closed its monitor|"));
    int status;
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(greets_and_executes),
        TEST(an_error_reply_tells_class_and_text),
        TEST(an_answer_of_no_known_shape_fails_its_command),
        TEST(events_come_between_replies),
        TEST(bytes_may_drip),
        TEST(shapes_we_do_not_know_are_counted),
        TEST(garbage_loses_the_connection),
        TEST(nul_bytes_lose_the_connection),
        TEST(huge_numbers_lose_the_connection),
        TEST(deep_nesting_loses_the_connection),
        TEST(an_endless_line_is_dropped_and_the_client_can_reconnect),
        TEST(a_peer_that_never_greets_meets_the_deadline),
        TEST(a_peer_that_never_negotiates_meets_the_deadline),
        TEST(refused_capabilities_lose),
        TEST(nobody_listens_until_the_deadline),
        TEST(qemu_that_starts_late_is_found),
        TEST(a_path_too_long_is_refused),
        TEST(a_lost_connection_fails_all_pending_once),
        TEST(a_late_answer_is_ignored),
        TEST(answers_come_in_any_order),
        TEST(too_many_commands_are_refused),
        TEST(a_peer_that_does_not_read_is_bounded),
        TEST(free_in_ready),
        TEST(free_in_event),
        TEST(free_in_reply),
        TEST(free_in_lost),
        TEST(free_in_failed_reply),
        TEST(free_in_timed_out_reply),
        TEST(reconnect_is_refused_while_connected),
        TEST(every_allocation_may_fail),
        TEST(a_real_qemu),
    };

    json_set_alloc_funcs(mem_alloc, mem_free);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
