/* test_agent.c - the guest agent client against a scripted guest. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/mem.h"
#include "guest/agent.h"
#include "peer.h"

#define SYNC EXPECT("guest-sync-delimited"), SEND("\xff{\"return\": $ID}\n")
#define PONG SYNC, EXPECT("guest-ping"), SEND("{\"return\": {}}\n")

enum { PATIENCE_MS = 20000 };

enum free_when { FREE_NEVER, FREE_IN_UP, FREE_IN_DOWN, FREE_IN_REPLY };

struct fixture {
    struct loop *loop;
    char dir[32];
    char path[64];
    struct peer *peer;
    struct agent *a;
    char trace[1024];
    unsigned ups, downs, replies, wanted;
    enum free_when free_when;
};

static void note(struct fixture *f, const char *a, const char *b)
{
    size_t len = strlen(f->trace);

    snprintf(f->trace + len, sizeof(f->trace) - len, "%s%s|", a, b);
}

static void maybe_free(struct fixture *f, enum free_when now)
{
    if (f->free_when == now) {
        agent_free(f->a);
        f->a = NULL;
    }
}

static void on_up(void *arg)
{
    struct fixture *f = arg;

    f->ups++;
    assert_true(agent_is_up(f->a));
    note(f, "up", "");
    maybe_free(f, FREE_IN_UP);
}

static void on_down(void *arg)
{
    struct fixture *f = arg;

    f->downs++;
    assert_false(agent_is_up(f->a));
    note(f, "down", "");
    maybe_free(f, FREE_IN_DOWN);
}

static const struct agent_events events = {.up = on_up, .down = on_down};

static void on_reply(void *arg, json_t *ret, struct error *err)
{
    struct fixture *f = arg;

    f->replies++;
    assert_non_null(err);
    if (ret != NULL) {
        char *text = json_dumps(ret, JSON_COMPACT | JSON_ENCODE_ANY);
        assert_false(error_is_set(err));
        note(f, "ok ", text != NULL ? text : "?");
        mem_free(text);
    } else if (error_is_set(err)) {
        note(f, error_info(err->code)->name, err->n_causes > 0 ? err->causes[0] : "");
    } else {
        note(f, "delivered", "");
    }
    maybe_free(f, FREE_IN_REPLY);
}

static int setup(void **state)
{
    struct fixture *f = calloc(1, sizeof(*f));

    snprintf(f->dir, sizeof(f->dir), "/tmp/test-agent-XXXXXX");
    assert_non_null(mkdtemp(f->dir));
    snprintf(f->path, sizeof(f->path), "%s/agent", f->dir);
    f->loop = loop_new(NULL);
    assert_non_null(f->loop);
    *state = f;
    return 0;
}

static int teardown(void **state)
{
    struct fixture *f = *state;

    agent_free(f->a);
    if (f->peer != NULL)
        peer_free(f->peer);
    int left = loop_free(f->loop);
    int rc = rmdir(f->dir);
    free(f);
    return left == 0 && rc == 0 ? 0 : -1;
}

static void start(struct fixture *f, const struct peer_step *script)
{
    f->peer = peer_new(f->loop, f->path, script);
    f->a = agent_new(f->loop, f->path, &events, f, NULL);
    assert_non_null(f->a);
}

static int execute(struct fixture *f, const char *command, int64_t timeout_ms)
{
    return agent_execute(f->a, command, NULL, timeout_ms, on_reply, f, NULL);
}

static bool is_up(void *arg)
{
    return ((struct fixture *)arg)->ups > 0;
}

static bool is_up_twice(void *arg)
{
    return ((struct fixture *)arg)->ups == 2;
}

static bool is_down(void *arg)
{
    return ((struct fixture *)arg)->downs > 0;
}

static bool has_replies(void *arg)
{
    struct fixture *f = arg;

    return f->replies >= f->wanted && f->replies > 0;
}

static bool is_over(void *arg)
{
    return peer_ended(((struct fixture *)arg)->peer);
}

static bool is_freed(void *arg)
{
    return ((struct fixture *)arg)->a == NULL;
}

#define UNTIL(cond) assert_true(run_until(f->loop, cond, f, PATIENCE_MS))

static void pings_until_up_and_goes_on(void **state)
{
    struct fixture *f = *state;

    start(f, SCRIPT(ACCEPT, PONG, PONG, PONG));
    agent_start_probing(f->a, 50);
    UNTIL(is_over);
    run_for(f->loop, 20);
    assert_string_equal(f->trace, "up|");
    assert_int_equal(agent_garbage(f->a), 0);
}

static void a_mute_agent_goes_down_and_comes_back(void **state)
{
    struct fixture *f = *state;

    start(f, SCRIPT(ACCEPT, PONG, EXPECT("guest-sync-delimited"), PAUSE(3300), PONG));
    agent_start_probing(f->a, 50);
    UNTIL(is_up_twice);
    assert_string_equal(f->trace, "up|down|up|");
}

static void the_port_tells_open_and_closed(void **state)
{
    struct fixture *f = *state;

    start(f, SCRIPT(ACCEPT, PONG, PONG));
    agent_start_probing(f->a, 100000);
    UNTIL(is_up);
    agent_hint_open(f->a, false);
    assert_string_equal(f->trace, "up|down|"); /* at once */
    agent_hint_open(f->a, true);
    UNTIL(is_up_twice);
    agent_hint_open(f->a, true);
    agent_hint_open(f->a, true);
    assert_string_equal(f->trace, "up|down|up|");
}

static void commands_run_one_after_the_other(void **state)
{
    struct fixture *f = *state;

    start(f,
          SCRIPT(ACCEPT, SYNC, EXPECT("{\"execute\":\"guest-a\",\"arguments\":{\"x\":1}}"), SEND("{\"return\": [1]}\n"),
                 SYNC, EXPECT("guest-b"), SEND("{\"error\": {\"class\": \"CommandNotFound\", \"desc\": \"no b\"}}\n"),
                 SYNC, EXPECT("guest-c"), DRIP("{\"return\": \"c\"}\n")));
    f->wanted = 3;
    assert_int_equal(agent_execute(f->a, "guest-a", json_pack("{s:i}", "x", 1), 5000, on_reply, f, NULL), 0);
    assert_int_equal(execute(f, "guest-b", 5000), 0);
    assert_int_equal(execute(f, "guest-c", 5000), 0);
    UNTIL(has_replies);
    assert_string_equal(f->trace, "ok [1]|IOCommandNotFound: no b|ok \"c\"|");
}

static void hostile_bytes_are_passed_over(void **state)
{
    struct fixture *f = *state;

    start(f,
          SCRIPT(ACCEPT, EXPECT("guest-sync-delimited"), SEND_BYTES("\0\0{\"return\":\n[[[\n{}\n{\"return\": 7}\n", 34),
                 FLOOD(4 << 20), SEND("\xffjunk\xff{\"return\": $ID}\n"), EXPECT("guest-a"),
                 SEND("7\n{}\n{\"error\": 5}\n{\"return\": \"yes\"}\n{\"return\": \"again\"}\n")));
    execute(f, "guest-a", 10000);
    UNTIL(has_replies);
    run_for(f->loop, 30);
    assert_string_equal(f->trace, "ok \"yes\"|");
    assert_true(agent_garbage(f->a) >= 8);
}

static void a_late_answer_is_not_taken_for_the_next(void **state)
{
    struct fixture *f = *state;

    start(f, SCRIPT(ACCEPT, SYNC, EXPECT("guest-a"), EXPECT("guest-sync-delimited"),
                    SEND("{\"return\": \"late\"}\n\xff{\"return\": $ID}\n"), EXPECT("guest-b"),
                    SEND("{\"return\": \"b\"}\n")));
    f->wanted = 2;
    execute(f, "guest-a", 60);
    execute(f, "guest-b", 5000);
    UNTIL(has_replies);
    assert_string_equal(f->trace, "VM_UNRESPONSIVE|ok \"b\"|");
}

static void a_command_whose_sync_was_not_answered_is_never_sent(void **state)
{
    struct fixture *f = *state;

    start(f, SCRIPT(ACCEPT, EXPECT("guest-sync-delimited"), PAUSE(150), SEND("\xff{\"return\": $ID}\n"),
                    EXPECT("guest-a")));
    execute(f, "guest-a", 50);
    UNTIL(has_replies);
    run_for(f->loop, 250);
    assert_false(peer_ended(f->peer)); /* still expects it */
    assert_string_equal(f->trace, "VM_UNRESPONSIVE|");
}

static void silence_is_success_for_a_notify(void **state)
{
    struct fixture *f = *state;

    start(f, SCRIPT(ACCEPT, SYNC, EXPECT("guest-shutdown"), SYNC, EXPECT("guest-shutdown"),
                    SEND("{\"error\": {\"class\": \"GenericError\", \"desc\": \"no\"}}\n"), SYNC,
                    EXPECT("guest-shutdown"), CLOSE));
    f->wanted = 3;
    for (int i = 0; i < 3; i++)
        assert_int_equal(
            agent_notify(f->a, "guest-shutdown", json_pack("{s:s}", "mode", "powerdown"), 5000, on_reply, f, NULL), 0);
    UNTIL(has_replies);
    assert_string_equal(f->trace, "delivered|IOGenericError: no|delivered|");
}

static void a_notify_nobody_takes_fails(void **state)
{
    struct fixture *f = *state;

    start(f, SCRIPT(ACCEPT, PAUSE(100000)));
    agent_notify(f->a, "guest-shutdown", NULL, 60, on_reply, f, NULL);
    UNTIL(has_replies);
    assert_string_equal(f->trace, "VM_UNRESPONSIVE|");
}

static void a_lost_socket_is_connected_again(void **state)
{
    struct fixture *f = *state;

    start(f, SCRIPT(ACCEPT, PONG, SYNC, EXPECT("guest-a"), CLOSE, ACCEPT, SYNC, EXPECT("guest-b"),
                    SEND("{\"return\":2}\n"), PONG));
    agent_start_probing(f->a, 100);
    UNTIL(is_up);
    f->wanted = 2;
    execute(f, "guest-a", 5000);
    execute(f, "guest-b", 5000);
    UNTIL(has_replies);
    assert_string_equal(f->trace, "up|VM_UNRESPONSIVE|down|up|ok 2|"); /* b's answer is a sign of life too */
}

static void the_socket_may_come_later(void **state)
{
    struct fixture *f = *state;

    f->a = agent_new(f->loop, f->path, &events, f, NULL);
    agent_start_probing(f->a, 1000);
    execute(f, "guest-x", 20);
    UNTIL(has_replies); /* queued, and failed by its deadline */
    f->peer = peer_new(f->loop, f->path, SCRIPT(ACCEPT, PONG));
    UNTIL(is_up);
    assert_string_equal(f->trace, "VM_UNRESPONSIVE|up|");
}

static void unanswered_syncs_do_not_pile_up(void **state)
{
    struct fixture *f = *state;

    start(f, SCRIPT(ACCEPT, GONE, ACCEPT, SYNC, EXPECT("guest-last"), SEND("{\"return\":1}\n")));
    run_for(f->loop, 200); /* connected */
    for (f->wanted = 1; f->wanted <= 8; f->wanted++) {
        execute(f, "guest-a", 20);
        UNTIL(has_replies);
    }
    f->wanted = 9;
    f->trace[0] = '\0';
    execute(f, "guest-last", 5000);
    UNTIL(has_replies);
    assert_string_equal(f->trace, "ok 1|");
}

static void the_queue_is_bounded(void **state)
{
    struct fixture *f = *state;
    struct error err = ERROR_INIT;

    start(f, SCRIPT(ACCEPT, PAUSE(100000)));
    for (int i = 0; i < AGENT_QUEUE_MAX; i++)
        assert_int_equal(execute(f, "guest-a", 5000), 0);
    assert_int_equal(agent_execute(f->a, "guest-b", json_object(), 5000, on_reply, f, &err), -1);
    assert_int_equal(err.code, ERR_VM_UNRESPONSIVE);
    error_done(&err);
    assert_int_equal(f->replies, 0);
}

static void free_in(struct fixture *f, enum free_when when)
{
    f->free_when = when;
    start(f, SCRIPT(ACCEPT, PONG, SYNC, EXPECT("guest-a"), SEND("{\"return\":1}\n{\"return\":2}\n"), CLOSE));
    agent_start_probing(f->a, 100000);
    UNTIL(is_up);
    if (f->a != NULL)
        execute(f, "guest-a", 5000);
    UNTIL(is_freed);
    run_for(f->loop, 30);
}

static void free_in_up(void **state)
{
    free_in(*state, FREE_IN_UP);
    assert_string_equal(((struct fixture *)*state)->trace, "up|");
}

static void free_in_reply(void **state)
{
    free_in(*state, FREE_IN_REPLY);
    assert_string_equal(((struct fixture *)*state)->trace, "up|ok 1|");
}

static void free_in_down(void **state)
{
    free_in(*state, FREE_IN_DOWN);
    assert_string_equal(((struct fixture *)*state)->trace, "up|ok 1|down|");
}

static void free_in_down_by_hint(void **state)
{
    struct fixture *f = *state;

    f->free_when = FREE_IN_DOWN;
    start(f, SCRIPT(ACCEPT, PONG, PAUSE(100000)));
    agent_start_probing(f->a, 100000);
    UNTIL(is_up);
    execute(f, "guest-a", 5000);
    agent_hint_open(f->a, false);
    assert_null(f->a);
    assert_true(is_down(f));
    assert_int_equal(f->replies, 0);
}

static void every_allocation_may_fail(void **state)
{
    struct fixture *f = *state;

    for (size_t nth = 1; nth < 400; nth++) {
        f->replies = f->ups = f->downs = 0;
        f->trace[0] = '\0';
        f->peer = peer_new(f->loop, f->path,
                           SCRIPT(ACCEPT, SYNC, EXPECT("guest-a"), SEND("{\"return\": {\"a\": [1, \"b\"]}}\n")));
        mem_fail_nth(nth);
        f->a = agent_new(f->loop, f->path, &events, f, NULL);
        int rc =
            f->a == NULL ? -1 : agent_execute(f->a, "guest-a", json_pack("{s:[i]}", "a", 1), 300, on_reply, f, NULL);
        if (rc == 0)
            UNTIL(has_replies);
        size_t made = mem_fail_nth(0);
        run_for(f->loop, 1);
        assert_int_equal(f->replies, rc == 0 ? 1 : 0);
        agent_free(f->a);
        f->a = NULL;
        peer_free(f->peer);
        f->peer = NULL;
        run_for(f->loop, 1);
        if (made < nth) {
            assert_string_equal(f->trace, "ok {\"a\":[1,\"b\"]}|");
            return;
        }
    }
    fail_msg("the sweep did not come to its end");
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(pings_until_up_and_goes_on),
        TEST(a_mute_agent_goes_down_and_comes_back),
        TEST(the_port_tells_open_and_closed),
        TEST(commands_run_one_after_the_other),
        TEST(hostile_bytes_are_passed_over),
        TEST(a_late_answer_is_not_taken_for_the_next),
        TEST(a_command_whose_sync_was_not_answered_is_never_sent),
        TEST(silence_is_success_for_a_notify),
        TEST(a_notify_nobody_takes_fails),
        TEST(a_lost_socket_is_connected_again),
        TEST(the_socket_may_come_later),
        TEST(unanswered_syncs_do_not_pile_up),
        TEST(the_queue_is_bounded),
        TEST(free_in_up),
        TEST(free_in_reply),
        TEST(free_in_down),
        TEST(free_in_down_by_hint),
        TEST(every_allocation_may_fail),
    };

    json_set_alloc_funcs(mem_alloc, mem_free);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
