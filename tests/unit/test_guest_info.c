/* test_guest_info.c - what a guest tells of itself: its addresses, cloud-init's result, and small files by its agent; told by
 * honest guests and by others. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/mem.h"
#include "base/str.h"
#include "guest/info.h"
#include "guest/peek.h"
#include "peer.h"

#define MAC "52:54:00:12:34:56"

/* ---- addresses ---- */

/* The addresses as text, separated by spaces. */
static const char *addresses(const char *json, unsigned max)
{
    static char text[1024];
    char out[16][GUEST_IP_MAX];
    json_t *doc = json_loads(json, JSON_DECODE_ANY, NULL);

    assert_non_null(doc);
    assert_true(max <= 16);
    unsigned n = guest_info_addresses(doc, MAC, out, max);
    assert_true(n <= max);
    text[0] = '\0';
    for (unsigned i = 0; i < n; i++)
        snprintf(text + strlen(text), sizeof(text) - strlen(text), "%s%s", i > 0 ? " " : "", out[i]);
    json_decref(doc);
    return text;
}

#define IP(ip) "{\"ip-address\":\"" ip "\",\"ip-address-type\":\"ipv4\",\"prefix\":24}"
#define NIC(mac, ips) "{\"name\":\"eth0\",\"hardware-address\":\"" mac "\",\"ip-addresses\":[" ips "]}"

static void addresses_are_those_of_the_card(void **state)
{
    (void)state;
    assert_string_equal(
        addresses("[" NIC("00:00:00:00:00:00", IP("127.0.0.1")) "," NIC(
                      MAC, IP("2001:db8::5") "," IP("192.0.2.7")) "," NIC("02:42:00:00:00:01", IP("172.17.0.1")) "]",
                  8),
        "192.0.2.7 2001:db8::5");
    assert_string_equal(addresses("[" NIC("52:54:00:12:34:56", IP("10.0.2.15")) "]", 8), "10.0.2.15");
    assert_string_equal(addresses("[" NIC("52:54:00:12:34:56", "") "]", 8), "");
    /* any case, canonical text, none twice */
    assert_string_equal(addresses("[" NIC("52:54:00:12:34:56", IP("2001:DB8:0:0::5") "," IP("2001:db8::5")) "]", 8),
                        "2001:db8::5");
    assert_string_equal(addresses("[" NIC(MAC, IP("192.0.2.1") "," IP("192.0.2.2") "," IP("192.0.2.3")) "]", 2),
                        "192.0.2.1 192.0.2.2");
}

static void addresses_nobody_is_reached_by_are_left_out(void **state)
{
    static const char *const useless[] = {
        "127.0.0.1", "0.0.0.0",     "169.254.3.4",      "224.0.0.1", "255.255.255.255", "::",           "::1",
        "fe80::1",   "ff02::1",     "::ffff:192.0.2.1", "",          "192.0.2",         "192.0.2.1/24", "web",
        "1.2.3.4 ",  "192.0.2.256", "0x7f.1",           "::1%eth0"};
    char out[GUEST_IP_MAX];

    (void)state;
    for (size_t i = 0; i < ARRAY_SIZE(useless); i++)
        assert_false(guest_info_ip(useless[i], out));
    assert_true(guest_info_ip("192.0.2.1", out));
    assert_string_equal(out, "192.0.2.1");
}

static void a_lying_answer_has_no_addresses(void **state)
{
    static const char *const lies[] = {
        "null",
        "{}",
        "\"x\"",
        "[]",
        "[null,1,\"x\",[],{}]",
        "[{\"hardware-address\":1,\"ip-addresses\":[" IP("192.0.2.1") "]}]",
        "[{\"hardware-address\":\"" MAC "\",\"ip-addresses\":{\"ip-address\":\"192.0.2.1\"}}]",
        "[{\"hardware-address\":\"" MAC "\",\"ip-addresses\":[null,1,{\"ip-address\":7},{\"ip-address\":null}]}]",
        "[{\"hardware-address\":\"" MAC "x\",\"ip-addresses\":[" IP("192.0.2.1") "]}]",
        "[{\"hardware-address\":\"\",\"ip-addresses\":[" IP("192.0.2.1") "]}]",
    };

    (void)state;
    for (size_t i = 0; i < ARRAY_SIZE(lies); i++)
        assert_string_equal(addresses(lies[i], 8), "");
    char out[1][GUEST_IP_MAX];
    json_t *doc = json_loads("[" NIC("", IP("192.0.2.1")) "]", 0, NULL);
    assert_int_equal(guest_info_addresses(doc, "", out, 1), 0); /* a VM without a card */
    json_decref(doc);
}

static void a_flood_of_interfaces_is_cut(void **state)
{
    char out[8][GUEST_IP_MAX];
    json_t *list = json_array(), *ips = json_array();

    (void)state;
    for (int i = 0; i < 100000; i++)
        json_array_append_new(ips, json_pack("{s:s}", "ip-address", "fe80::1"));
    for (int i = 0; i < 100000; i++)
        json_array_append_new(list, json_pack("{s:s,s:O}", "hardware-address", MAC, "ip-addresses", ips));
    assert_int_equal(guest_info_addresses(list, MAC, out, 8), 0);
    json_decref(ips);
    json_decref(list);
}

/* ---- cloud-init ---- */

static enum guest_seed_state result(const char *text, const char *message)
{
    char out[GUEST_TEXT_MAX];
    enum guest_seed_state state = guest_info_seed_result(text, strlen(text), out);

    assert_true(utf8_valid(out, strlen(out)));
    assert_string_equal(out, message);
    return state;
}

static void result_json_tells_how_it_ended(void **state)
{
    (void)state;
    assert_int_equal(result("{\"v1\":{\"datasource\":\"DataSourceNoCloud [seed=/dev/sr0]\",\"errors\":[]}}", ""),
                     GUEST_SEED_DONE);
    assert_int_equal(
        result("{\"v1\":{\"datasource\":null,\"errors\":[\"('scripts_user', RuntimeError('Runparts: 1 failures'))\"]}}",
               "('scripts_user', RuntimeError('Runparts: 1 failures'))"),
        GUEST_SEED_ERROR);
    assert_int_equal(result("{\"v1\":{\"errors\":[\"a\\nb\",\"c\\u0007\\u001b[31m\"]}}", "a b; c  [31m"),
                     GUEST_SEED_ERROR);
    assert_int_equal(result("{\"v1\":{\"errors\":[7]}}", "an error without a text"), GUEST_SEED_ERROR);
    assert_int_equal(result("{\"v1\":{\"datasource\":\"DataSourceNone\",\"errors\":[]}}",
                            "cloud-init found no seed (DataSourceNone)"),
                     GUEST_SEED_ERROR);
}

static void what_is_no_result_is_unknown(void **state)
{
    static const char *const lies[] = {"", "x", "{", "[]", "null", "{}", "{\"v1\":[]}", "{\"v1\":null}", "{\"v1\":{}"};
    char out[GUEST_TEXT_MAX];

    (void)state;
    for (size_t i = 0; i < ARRAY_SIZE(lies); i++) {
        assert_int_equal(guest_info_seed_result(lies[i], strlen(lies[i]), out), GUEST_SEED_UNKNOWN);
        assert_int_equal(guest_info_seed_status(lies[i], strlen(lies[i]), out), GUEST_SEED_UNKNOWN);
    }
    assert_int_equal(guest_info_seed_result("{\"v1\":{}}\0{", 11, out), GUEST_SEED_UNKNOWN);
}

static void a_long_error_is_cut_between_characters(void **state)
{
    char out[GUEST_TEXT_MAX];
    json_t *doc, *text;
    char *dump, long_text[1210] = "";

    (void)state;
    for (int lead = 0; lead < 3; lead++) {
        memset(long_text, 'x', (size_t)lead);
        for (int i = 0; i < 300; i++)
            memcpy(long_text + lead + 3 * i, "\xe2\x82\xac", 4);
        text = json_string(long_text);
        doc = json_pack("{s:{s:[o]}}", "v1", "errors", text);
        dump = json_dumps(doc, 0);
        assert_int_equal(guest_info_seed_result(dump, strlen(dump), out), GUEST_SEED_ERROR);
        assert_true(utf8_valid(out, strlen(out)));
        assert_in_range(strlen(out), GUEST_TEXT_MAX - 4, GUEST_TEXT_MAX - 1);
        mem_free(dump);
        json_decref(doc);
    }
}

static void status_json_tells_the_stage(void **state)
{
    static const char running[] = "{\"v1\":{\"stage\":\"modules-final\",\"init\":{\"errors\":[]}}}";
    char out[GUEST_TEXT_MAX];

    (void)state;
    assert_int_equal(guest_info_seed_status(running, strlen(running), out), GUEST_SEED_RUNNING);
    assert_string_equal(out, "at stage modules-final");
    assert_int_equal(guest_info_seed_status("{\"v1\":{\"stage\":null}}", 21, out), GUEST_SEED_RUNNING);
    assert_string_equal(out, "");
}

/* ---- small files ---- */

#define SYNC EXPECT("guest-sync-delimited"), SEND("\xff{\"return\": $ID}\n")
#define ANSWERS(command, answer) SYNC, EXPECT(command), SEND(answer "\n")
#define OPENED ANSWERS("guest-file-open", "{\"return\": 1000}")
#define CLOSED ANSWERS("guest-file-close", "{\"return\": {}}")

enum { PATIENCE_MS = 20000 };

struct fixture {
    struct loop *loop;
    char dir[32], path[64];
    struct peer *peer;
    struct agent *agent;
    struct guest_peek peek;
    unsigned done;
    char seen[64];
};

static void nothing(void *arg)
{
    (void)arg;
}

static const struct agent_events events = {.up = nothing, .down = nothing};

static int setup(void **state)
{
    struct fixture *f = calloc(1, sizeof(*f));

    snprintf(f->dir, sizeof(f->dir), "/tmp/test-info-XXXXXX");
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
    guest_peek_forget(&f->peek);
    if (f->peer != NULL)
        peer_free(f->peer);
    int left = loop_free(f->loop);
    int rc = rmdir(f->dir);
    free(f);
    return left == 0 && rc == 0 ? 0 : -1;
}

static void peeked(void *arg, struct guest_peek *peek)
{
    struct fixture *f = arg;

    f->done++;
    snprintf(f->seen, sizeof(f->seen), "%.*s",
             peek->data != NULL && peek->result == GUEST_PEEK_READ ? (int)peek->len : 0,
             peek->data != NULL ? peek->data : "");
}

static void start(struct fixture *f, const struct peer_step *script)
{
    f->peer = peer_new(f->loop, f->path, script);
    f->agent = agent_new(f->loop, f->path, &events, f, NULL);
    assert_non_null(f->agent);
    assert_int_equal(guest_peek(&f->peek, f->agent, "/run/x", peeked, f), 0);
    assert_int_equal(f->done, 0);
}

static bool is_done(void *arg)
{
    return ((struct fixture *)arg)->done > 0;
}

static void peek(struct fixture *f, const struct peer_step *script, enum guest_peek_result result)
{
    start(f, script);
    assert_true(run_until(f->loop, is_done, f, PATIENCE_MS));
    run_for(f->loop, 20);
    assert_int_equal(f->done, 1);
    assert_int_equal(f->peek.result, result);
    assert_true(peer_ended(f->peer)); /* the file was closed where it was opened */
}

static void a_file_is_read_and_closed(void **state)
{
    struct fixture *f = *state;

    peek(f,
         SCRIPT(ACCEPT, OPENED,
                ANSWERS("guest-file-read", "{\"return\":{\"count\":5,\"buf-b64\":\"aGVsbG8=\",\"eof\":true}}"), CLOSED),
         GUEST_PEEK_READ);
    assert_string_equal(f->seen, "hello");
}

static void a_missing_file_is_told_apart(void **state)
{
    peek(*state,
         SCRIPT(ACCEPT, ANSWERS("guest-file-open", "{\"error\":{\"class\":\"GenericError\",\"desc\":\"failed to open "
                                                   "file '/run/x' (mode: 'r'): No such file or directory\"}}")),
         GUEST_PEEK_MISSING);
}

static void an_agent_that_may_not_is_told_apart(void **state)
{
    struct fixture *f = *state;

    peek(f,
         SCRIPT(ACCEPT, ANSWERS("guest-file-open", "{\"error\":{\"class\":\"CommandNotFound\",\"desc\":\"The command "
                                                   "guest-file-open has been disabled\\u001b for this instance\"}}")),
         GUEST_PEEK_REFUSED);
    assert_non_null(strstr(f->peek.why, "has been disabled  for"));
}

static void a_lying_open_is_refused(void **state)
{
    peek(*state, SCRIPT(ACCEPT, ANSWERS("guest-file-open", "{\"return\":\"1\"}")), GUEST_PEEK_REFUSED);
}

static void a_lying_read_is_refused_and_closed(void **state)
{
    peek(*state,
         SCRIPT(ACCEPT, OPENED, ANSWERS("guest-file-read", "{\"return\":{\"count\":5,\"buf-b64\":\"a?!=\"}}"), CLOSED),
         GUEST_PEEK_REFUSED);
}

static void a_read_that_fails_is_closed(void **state)
{
    peek(*state,
         SCRIPT(ACCEPT, OPENED,
                ANSWERS("guest-file-read", "{\"error\":{\"class\":\"GenericError\",\"desc\":\"Is a directory\"}}"),
                CLOSED),
         GUEST_PEEK_REFUSED);
}

static void a_large_file_is_refused(void **state)
{
    struct fixture *f = *state;
    size_t n = 4 * (GUEST_PEEK_MAX / 3 + 2);
    char *answer = malloc(n + 100);

    snprintf(answer, n + 100, "%s", "{\"return\":{\"count\":1,\"buf-b64\":\"");
    size_t at = strlen(answer);
    memset(answer + at, 'A', n);
    snprintf(answer + at + n, 8, "%s", "\"}}\n");
    peek(f, SCRIPT(ACCEPT, OPENED, SYNC, EXPECT("guest-file-read"), SEND(answer), CLOSED), GUEST_PEEK_REFUSED);
    free(answer);
}

static void an_agent_freed_meanwhile_is_silent(void **state)
{
    struct fixture *f = *state;

    start(f, SCRIPT(ACCEPT, OPENED, EXPECT("guest-sync-delimited")));
    run_for(f->loop, 50);
    agent_free(f->agent);
    f->agent = NULL;
    guest_peek_forget(&f->peek);
    run_for(f->loop, 20);
    assert_int_equal(f->done, 0);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(addresses_are_those_of_the_card),
        cmocka_unit_test(addresses_nobody_is_reached_by_are_left_out),
        cmocka_unit_test(a_lying_answer_has_no_addresses),
        cmocka_unit_test(a_flood_of_interfaces_is_cut),
        cmocka_unit_test(result_json_tells_how_it_ended),
        cmocka_unit_test(what_is_no_result_is_unknown),
        cmocka_unit_test(a_long_error_is_cut_between_characters),
        cmocka_unit_test(status_json_tells_the_stage),
        TEST(a_file_is_read_and_closed),
        TEST(a_missing_file_is_told_apart),
        TEST(an_agent_that_may_not_is_told_apart),
        TEST(a_lying_open_is_refused),
        TEST(a_lying_read_is_refused_and_closed),
        TEST(a_read_that_fails_is_closed),
        TEST(a_large_file_is_refused),
        TEST(an_agent_freed_meanwhile_is_silent),
    };

    json_set_alloc_funcs(mem_alloc, mem_free);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
