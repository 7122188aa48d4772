/* test_agent_files.c - transfers over the guest agent when it refuses, lies, or is gone: each ends once, and nothing is left. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "guest/agent_files.h"
#include "peer.h"

#define SYNC EXPECT("guest-sync-delimited"), SEND("\xff{\"return\": $ID}\n")
#define STARTED SYNC, EXPECT("\"guest-exec\""), SEND("{\"return\": {\"pid\": 77}}\n")
#define STATUS SYNC, EXPECT("guest-exec-status")

enum { PATIENCE_MS = 20000 };

struct fixture {
    struct loop *loop;
    char dir[32], path[64];
    struct peer *peer;
    struct agent *agent;
    struct files *files;
    bool keep; /* it is freed by the test */
    unsigned began, ended;
    enum error_code code;
};

static void on_began(void *arg, const json_t *stat)
{
    struct fixture *f = arg;

    assert_non_null(stat);
    f->began++;
}

static void on_data(void *arg, const char *data, size_t len)
{
    (void)arg;
    (void)data;
    (void)len;
    fail();
}

static void on_room(void *arg)
{
    (void)arg;
}

static void on_ended(void *arg, const json_t *stat, struct error *err)
{
    struct fixture *f = arg;

    f->ended++;
    f->code = error_is_set(err) ? err->code : 0;
    assert_true(error_is_set(err) == (stat == NULL));
    if (!f->keep) {
        files_free(f->files);
        f->files = NULL;
    }
}

static const struct agent_events agent_events;
static const struct files_events events = {.began = on_began, .data = on_data, .room = on_room, .ended = on_ended};

static int setup(void **state)
{
    struct fixture *f = calloc(1, sizeof(*f));

    snprintf(f->dir, sizeof(f->dir), "/tmp/test-afiles-XXXXXX");
    assert_non_null(mkdtemp(f->dir));
    snprintf(f->path, sizeof(f->path), "%s/agent", f->dir);
    f->loop = loop_new(NULL);
    *state = f;
    return 0;
}

static int teardown(void **state)
{
    struct fixture *f = *state;

    agent_free(f->agent);
    peer_free(f->peer);
    int left = loop_free(f->loop);
    int rc = rmdir(f->dir);
    free(f);
    return left == 0 && rc == 0 ? 0 : -1;
}

static struct files *begin(struct fixture *f, enum files_op op, struct error *err)
{
    const struct files_request req = {.op = op, .path = "/tmp/x"};

    return agent_files(f->loop, f->agent, "web", "vm", &req, &events, f, err);
}

static void start(struct fixture *f, enum files_op op, const struct peer_step *script)
{
    f->peer = peer_new(f->loop, f->path, script);
    f->agent = agent_new(f->loop, f->path, &agent_events, f, NULL);
    f->files = begin(f, op, NULL);
    assert_non_null(f->files);
}

static bool is_ended(void *arg)
{
    return ((struct fixture *)arg)->ended > 0;
}

static bool has_begun(void *arg)
{
    return ((struct fixture *)arg)->began > 0;
}

static bool is_over(void *arg)
{
    return peer_ended(((struct fixture *)arg)->peer);
}

#define UNTIL(cond) assert_true(run_until(f->loop, cond, f, PATIENCE_MS))

static void an_agent_that_may_run_nothing_says_so(void **state)
{
    struct fixture *f = *state;

    start(f, FILES_GET,
          SCRIPT(ACCEPT, SYNC, EXPECT("\"guest-exec\""),
                 SEND("{\"error\": {\"class\": \"CommandNotFound\", \"desc\": \"disabled\"}}\n")));
    UNTIL(is_ended);
    assert_int_equal(f->code, ERR_GUEST_UNAVAILABLE);
    assert_null(f->files);
}

static void an_answer_without_the_scripts_line_is_none(void **state)
{
    struct fixture *f = *state;

    start(f, FILES_LIST,
          SCRIPT(ACCEPT, STARTED, STATUS,
                 SEND("{\"return\": {\"exited\": true, \"exitcode\": 0, \"out-data\": \"ZW5kCg==\"}}\n")));
    UNTIL(is_ended);
    assert_int_equal(f->code, ERR_GUEST_UNAVAILABLE);
}

static void a_vm_that_ends_ends_them_all_once(void **state)
{
    struct fixture *f = *state;

    start(f, FILES_GET, SCRIPT(ACCEPT, STARTED, EXPECT("guest-sync-delimited")));
    f->keep = true;
    struct files *idle = begin(f, FILES_PUT, NULL);
    assert_non_null(idle);
    UNTIL(has_begun);
    UNTIL(is_over);
    agent_free(f->agent);
    f->agent = NULL;
    assert_int_equal(f->ended, 2);
    assert_int_equal(f->code, ERR_GUEST_UNAVAILABLE);
    assert_int_equal(files_write(idle, "x", 1), 0);
    files_write_end(idle);
    files_free(idle);
    files_free(f->files);
    run_for(f->loop, 20);
    assert_int_equal(f->ended, 2);
}

static void an_upload_given_up_is_killed_and_removed(void **state)
{
    struct fixture *f = *state;

    start(f, FILES_PUT,
          SCRIPT(ACCEPT, STARTED, SYNC, EXPECT("kill -KILL -- -77"), SEND("{\"return\": {\"pid\": 78}}\n"), STATUS,
                 SEND("{\"return\": {\"exited\": true, \"signal\": 9}}\n"), SYNC, EXPECT("rm -f"),
                 SEND("{\"return\": {\"pid\": 79}}\n"), STATUS,
                 SEND("{\"return\": {\"exited\": true, \"exitcode\": 0}}\n")));
    UNTIL(has_begun);
    assert_int_equal(files_write(f->files, "x", 1), 1);
    files_write_end(f->files);
    run_for(f->loop, 10); /* it is under way */
    files_free(f->files);
    UNTIL(is_over);
    run_for(f->loop, 20);
    assert_int_equal(f->ended, 0); /* silenced */
}

static void so_many_and_no_more(void **state)
{
    struct fixture *f = *state;
    CLEANUP_ERROR struct error err = ERROR_INIT;
    struct files *more[AGENT_FILES_MAX];

    start(f, FILES_PUT, SCRIPT(ACCEPT));
    for (unsigned i = 1; i < AGENT_FILES_MAX; i++)
        assert_non_null(more[i] = begin(f, FILES_PUT, NULL));
    assert_null(begin(f, FILES_GET, &err));
    assert_int_equal(err.code, ERR_DAEMON_OVERLOADED);
    files_free(more[1]);
    assert_non_null(more[1] = begin(f, FILES_PUT, NULL));
    for (unsigned i = 1; i < AGENT_FILES_MAX; i++)
        files_free(more[i]);
    files_free(f->files);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(an_agent_that_may_run_nothing_says_so, setup, teardown),
        cmocka_unit_test_setup_teardown(an_answer_without_the_scripts_line_is_none, setup, teardown),
        cmocka_unit_test_setup_teardown(a_vm_that_ends_ends_them_all_once, setup, teardown),
        cmocka_unit_test_setup_teardown(an_upload_given_up_is_killed_and_removed, setup, teardown),
        cmocka_unit_test_setup_teardown(so_many_and_no_more, setup, teardown),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
