/* ws_frame.c - see ws_frame.h.  Head first, then payload; a frame's length is judged before any of its payload is. */
#include "http/ws_frame.h"

#include <string.h>

#include <nettle/base64.h>
#include <nettle/sha1.h>

#include "base/str.h"

void ws_parser_init(struct ws_parser *p)
{
    *p = (struct ws_parser){0};
    buf_init(&p->message, WS_MESSAGE_MAX);
}

void ws_parser_done(struct ws_parser *p)
{
    buf_done(&p->message);
}

static enum ws_event fail(struct ws_parser *p, int code)
{
    p->failed = true;
    p->code = code;
    return WS_EVENT_ERROR;
}

static size_t head_need(const struct ws_parser *p)
{
    if (p->head_len < 2)
        return 2;
    uint8_t len7 = p->head[1] & 0x7f;
    return (size_t)(2 + 4 + (len7 == 126 ? 2 : len7 == 127 ? 8 : 0));
}

static bool is_control(uint8_t opcode)
{
    return (opcode & 8) != 0;
}

/* Judges the first two bytes; returns 0 or the close code. */
static int judge_start(struct ws_parser *p)
{
    p->fin = (p->head[0] & 0x80) != 0;
    p->opcode = p->head[0] & 0x0f;
    if ((p->head[0] & 0x70) != 0 || (p->head[1] & 0x80) == 0)
        return 1002;
    if (is_control(p->opcode))
        return !p->fin || p->opcode > WS_PONG || (p->head[1] & 0x7f) > WS_CONTROL_MAX ? 1002 : 0;
    if (p->opcode > WS_BINARY)
        return 1002;
    return (p->opcode == WS_CONT) == (p->message_opcode != 0) ? 0 : 1002;
}

/* The head is whole: lengths.  Returns 0 or the close code. */
static int judge_head(struct ws_parser *p)
{
    uint8_t len7 = p->head[1] & 0x7f;
    size_t n = len7 == 126 ? 2 : len7 == 127 ? 8 : 0;
    uint64_t len = n == 0 ? len7 : 0;

    for (size_t i = 0; i < n; i++)
        len = len << 8 | p->head[2 + i];
    memcpy(p->mask, p->head + 2 + n, 4);
    if ((n == 2 && len < 126) || (n == 8 && (len < 65536 || len >> 63 != 0)))
        return 1002; /* not the shortest form */
    if (!is_control(p->opcode) && (len > WS_MESSAGE_MAX || p->message.len + len > WS_MESSAGE_MAX))
        return 1009;
    p->payload_len = len;
    p->payload_at = 0;
    p->in_payload = true;
    if (!is_control(p->opcode) && p->opcode != WS_CONT)
        p->message_opcode = p->opcode;
    return 0;
}

static enum ws_event take_head(struct ws_parser *p, const uint8_t **in, size_t *in_len)
{
    while (p->head_len < head_need(p)) {
        int code;

        if (*in_len == 0)
            return WS_EVENT_MORE;
        p->head[p->head_len++] = *(*in)++;
        (*in_len)--;
        if (p->head_len == 2 && (code = judge_start(p)) != 0)
            return fail(p, code);
    }
    int code = judge_head(p);
    return code != 0 ? fail(p, code) : WS_EVENT_MORE;
}

static int take_payload(struct ws_parser *p, const uint8_t **in, size_t *in_len)
{
    uint8_t block[1024];

    while (*in_len > 0 && p->payload_at < p->payload_len) {
        uint64_t want = p->payload_len - p->payload_at;
        size_t n = *in_len < sizeof(block) ? *in_len : sizeof(block);
        uint8_t *out = is_control(p->opcode) ? p->control + p->payload_at : block;

        n = want < n ? (size_t)want : n;
        for (size_t i = 0; i < n; i++)
            out[i] = (*in)[i] ^ p->mask[(p->payload_at + i) & 3];
        if (!is_control(p->opcode) && buf_append(&p->message, block, n) != 0)
            return -1;
        *in += n;
        *in_len -= n;
        p->payload_at += n;
    }
    return 0;
}

bool ws_close_code_ok(int code)
{
    return (code >= 1000 && code <= 1014 && code != 1004 && code != 1005 && code != 1006) ||
           (code >= 3000 && code <= 4999);
}

static enum ws_event control_whole(struct ws_parser *p)
{
    p->data = p->control;
    p->len = (size_t)p->payload_len;
    if (p->opcode != WS_CLOSE)
        return p->opcode == WS_PING ? WS_EVENT_PING : WS_EVENT_PONG;
    p->code = p->len >= 2 ? p->control[0] << 8 | p->control[1] : 1005;
    if (p->len == 1 || (p->len >= 2 && !ws_close_code_ok(p->code)))
        return fail(p, 1002);
    if (p->len > 2 && !utf8_valid((const char *)p->control + 2, p->len - 2))
        return fail(p, 1007);
    p->failed = true; /* nothing after a close frame counts */
    return WS_EVENT_CLOSE;
}

static enum ws_event frame_whole(struct ws_parser *p)
{
    p->in_payload = false;
    p->head_len = 0;
    if (is_control(p->opcode))
        return control_whole(p);
    if (!p->fin)
        return WS_EVENT_MORE;
    p->data = (const uint8_t *)(p->message.data != NULL ? p->message.data : "");
    p->len = p->message.len;
    p->binary = p->message_opcode == WS_BINARY;
    p->message_opcode = 0;
    p->deliver = true;
    if (!p->binary && !utf8_valid((const char *)p->data, p->len))
        return fail(p, 1007);
    return WS_EVENT_MESSAGE;
}

enum ws_event ws_parser_next(struct ws_parser *p, const uint8_t **in, size_t *in_len)
{
    if (p->deliver)
        buf_reset(&p->message);
    p->deliver = false;
    while (!p->failed) {
        if (!p->in_payload && take_head(p, in, in_len) == WS_EVENT_ERROR)
            return WS_EVENT_ERROR;
        if (!p->in_payload)
            return WS_EVENT_MORE;
        if (take_payload(p, in, in_len) != 0)
            return fail(p, 1011);
        if (p->payload_at < p->payload_len)
            return WS_EVENT_MORE;
        enum ws_event event = frame_whole(p);
        if (event != WS_EVENT_MORE)
            return event;
    }
    *in += *in_len;
    *in_len = 0;
    return WS_EVENT_MORE;
}

size_t ws_frame_head(enum ws_opcode opcode, uint64_t payload_len, uint8_t out[WS_HEAD_MAX])
{
    size_t n = payload_len < 126 ? 0 : payload_len < 65536 ? 2 : 8;

    out[0] = (uint8_t)(0x80 | opcode);
    out[1] = n == 0 ? (uint8_t)payload_len : n == 2 ? 126 : 127;
    for (size_t i = 0; i < n; i++)
        out[2 + i] = (uint8_t)(payload_len >> (8 * (n - 1 - i)));
    return 2 + n;
}

bool ws_accept_key(const char *key, char out[WS_ACCEPT_MAX])
{
    static const char guid[] = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";
    struct base64_decode_ctx decode;
    struct sha1_ctx sha;
    uint8_t raw[BASE64_DECODE_LENGTH(WS_KEY_LEN)], digest[SHA1_DIGEST_SIZE];
    size_t raw_len = sizeof(raw);

    if (strlen(key) != WS_KEY_LEN)
        return false;
    base64_decode_init(&decode);
    if (!base64_decode_update(&decode, &raw_len, raw, WS_KEY_LEN, key) || !base64_decode_final(&decode) ||
        raw_len != 16)
        return false;
    sha1_init(&sha);
    sha1_update(&sha, WS_KEY_LEN, (const uint8_t *)key);
    sha1_update(&sha, sizeof(guid) - 1, (const uint8_t *)guid);
    sha1_digest(&sha, sizeof(digest), digest);
    base64_encode_raw(out, sizeof(digest), digest);
    out[WS_ACCEPT_MAX - 1] = '\0';
    return true;
}
