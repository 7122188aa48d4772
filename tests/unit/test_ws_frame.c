/* The RFC 6455 codec: whole, byte by byte, fragmented, interleaved with control frames, and everything it refuses. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <string.h>

#include "base/mem.h"
#include "http/ws_frame.h"

static uint8_t wire[3 * WS_MESSAGE_MAX];
static size_t wire_len;

static void put(bool fin, int opcode, const void *data, size_t len)
{
    static const uint8_t mask[4] = {0x37, 0xfa, 0x21, 0x3d};
    uint8_t head[WS_HEAD_MAX];
    size_t n = ws_frame_head((enum ws_opcode)opcode, len, head);

    head[0] = (uint8_t)((fin ? 0x80 : 0) | opcode);
    head[1] |= 0x80;
    memcpy(wire + wire_len, head, n);
    memcpy(wire + wire_len + n, mask, 4);
    for (size_t i = 0; i < len; i++)
        wire[wire_len + n + 4 + i] = ((const uint8_t *)data)[i] ^ mask[i & 3];
    wire_len += n + 4 + len;
}

/* Feeds `wire` in pieces; returns the first event that is none of MORE. */
static enum ws_event feed(struct ws_parser *p, size_t *at, size_t piece)
{
    while (*at < wire_len) {
        const uint8_t *in = wire + *at;
        size_t len = piece < wire_len - *at ? piece : wire_len - *at;

        enum ws_event event = ws_parser_next(p, &in, &len);
        *at = (size_t)(in - wire);
        if (event != WS_EVENT_MORE)
            return event;
    }
    return WS_EVENT_MORE;
}

static void messages_in_pieces(void **state)
{
    static const size_t pieces[] = {1, 2, 7, 1000000};

    (void)state;
    for (size_t i = 0; i < ARRAY_SIZE(pieces); i++) {
        struct ws_parser p;
        size_t at = 0;

        wire_len = 0;
        put(true, WS_TEXT, "h\xc3\xa9", 3);
        put(false, WS_BINARY, "ab", 2);
        put(true, WS_PING, "are you there", 13);
        put(false, WS_CONT, "", 0);
        put(true, WS_CONT, "cd", 2);
        put(true, WS_PONG, "", 0);
        put(true, WS_BINARY, "", 0);
        put(true, WS_CLOSE,
            "\x03\xe8"
            "bye",
            5);
        put(true, WS_BINARY, "after the end", 13);
        ws_parser_init(&p);
        assert_int_equal(feed(&p, &at, pieces[i]), WS_EVENT_MESSAGE);
        assert_false(p.binary);
        assert_int_equal(p.len, 3);
        assert_memory_equal(p.data, "h\xc3\xa9", 3);
        assert_int_equal(feed(&p, &at, pieces[i]), WS_EVENT_PING);
        assert_int_equal(p.len, 13);
        assert_memory_equal(p.data, "are you there", 13);
        assert_int_equal(feed(&p, &at, pieces[i]), WS_EVENT_MESSAGE);
        assert_true(p.binary);
        assert_int_equal(p.len, 4);
        assert_memory_equal(p.data, "abcd", 4);
        assert_int_equal(feed(&p, &at, pieces[i]), WS_EVENT_PONG);
        assert_int_equal(feed(&p, &at, pieces[i]), WS_EVENT_MESSAGE);
        assert_int_equal(p.len, 0);
        assert_int_equal(feed(&p, &at, pieces[i]), WS_EVENT_CLOSE);
        assert_int_equal(p.code, 1000);
        assert_int_equal(feed(&p, &at, pieces[i]), WS_EVENT_MORE);
        ws_parser_done(&p);
    }
}

static int refused(void)
{
    struct ws_parser p;
    size_t at = 0;
    enum ws_event event;

    ws_parser_init(&p);
    do
        event = feed(&p, &at, 4096);
    while (event != WS_EVENT_ERROR && event != WS_EVENT_MORE);
    int code = event == WS_EVENT_ERROR ? p.code : 0;
    assert_int_equal(feed(&p, &at, 4096), WS_EVENT_MORE); /* takes nothing more */
    ws_parser_done(&p);
    wire_len = 0;
    return code;
}

static int refused_bytes(const char *bytes, size_t len)
{
    memcpy(wire, bytes, len);
    wire_len = len;
    return refused();
}

static void refusals(void **state)
{
    static uint8_t big[WS_MESSAGE_MAX + 1];

    (void)state;
    wire_len = 0;
    assert_int_equal(refused_bytes("\x81\x02hi", 4), 1002);                   /* unmasked */
    assert_int_equal(refused_bytes("\xc1\x80\0\0\0\0", 6), 1002);             /* reserved bit */
    assert_int_equal(refused_bytes("\x83\x80\0\0\0\0", 6), 1002);             /* reserved opcode */
    assert_int_equal(refused_bytes("\x8b\x80\0\0\0\0", 6), 1002);             /* reserved control opcode */
    assert_int_equal(refused_bytes("\x09\x80\0\0\0\0", 6), 1002);             /* fragmented ping */
    assert_int_equal(refused_bytes("\x89\xfe\0\x80", 4), 1002);               /* long ping */
    assert_int_equal(refused_bytes("\x80\x80\0\0\0\0", 6), 1002);             /* continuation of nothing */
    assert_int_equal(refused_bytes("\x82\xfe\0\x05\0\0\0\0hello", 13), 1002); /* not the shortest length */
    assert_int_equal(refused_bytes("\x82\xff\xff\xff\xff\xff\xff\xff\xff\xff\0\0\0\0", 14), 1002);
    assert_int_equal(refused_bytes("\x82\xff\0\0\0\1\0\0\0\0\0\0\0\0", 14), 1009); /* 4 GiB */
    assert_int_equal(refused_bytes("\x88\x81\0\0\0\0x", 7), 1002);                 /* half a close code */
    put(true, WS_CLOSE, "\x03\xed", 2);                                            /* 1005 is not to be sent */
    assert_int_equal(refused(), 1002);
    put(true, WS_CLOSE, "\x03\xe8\xff", 3);
    assert_int_equal(refused(), 1007);
    put(true, WS_TEXT, "\xc3\x28", 2);
    assert_int_equal(refused(), 1007);
    put(false, WS_TEXT, "a", 1);
    put(true, WS_TEXT, "b", 1); /* a new message within one */
    assert_int_equal(refused(), 1002);
    put(true, WS_BINARY, big, WS_MESSAGE_MAX);
    assert_int_equal(refused(), 0);
    put(true, WS_BINARY, big, WS_MESSAGE_MAX + 1);
    assert_int_equal(refused(), 1009);
    put(false, WS_BINARY, big, WS_MESSAGE_MAX);
    put(true, WS_CONT, big, 1); /* the sum counts */
    assert_int_equal(refused(), 1009);
}

static void memory_short(void **state)
{
    struct ws_parser p;
    size_t at = 0;

    (void)state;
    wire_len = 0;
    put(true, WS_BINARY, "data", 4);
    ws_parser_init(&p);
    mem_fail_nth(1);
    assert_int_equal(feed(&p, &at, 100), WS_EVENT_ERROR);
    mem_fail_nth(0);
    assert_int_equal(p.code, 1011);
    ws_parser_done(&p);
}

static void heads_and_keys(void **state)
{
    uint8_t head[WS_HEAD_MAX];
    char accept[WS_ACCEPT_MAX];

    (void)state;
    assert_int_equal(ws_frame_head(WS_BINARY, 125, head), 2);
    assert_memory_equal(head, "\x82\x7d", 2);
    assert_int_equal(ws_frame_head(WS_PONG, 126, head), 4);
    assert_memory_equal(head, "\x8a\x7e\0\x7e", 4);
    assert_int_equal(ws_frame_head(WS_BINARY, 65536, head), 10);
    assert_memory_equal(head, "\x82\x7f\0\0\0\0\0\1\0\0", 10);
    assert_true(ws_accept_key("dGhlIHNhbXBsZSBub25jZQ==", accept));
    assert_string_equal(accept, "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    assert_false(ws_accept_key("dGhlIHNhbXBsZSBub25jZQ=", accept));
    assert_false(ws_accept_key("dGhlIHNhbXBsZSBub25jZQ!=", accept));
    assert_false(ws_accept_key("dGhlIHNhbXBsZSBub25jZQAA", accept)); /* 18 bytes */
    assert_true(ws_close_code_ok(1000) && ws_close_code_ok(3000) && ws_close_code_ok(4999));
    assert_false(ws_close_code_ok(999) || ws_close_code_ok(1006) || ws_close_code_ok(2999) || ws_close_code_ok(5000));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(messages_in_pieces),
        cmocka_unit_test(refusals),
        cmocka_unit_test(memory_short),
        cmocka_unit_test(heads_and_keys),
    };

    return cmocka_run_group_tests_name("ws_frame", tests, NULL, NULL);
}
