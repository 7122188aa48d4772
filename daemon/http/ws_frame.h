/* ws_frame.h - the frames of RFC 6455, server side: a parser that is fed bytes and gives events, and frame heads.
 *
 * The bytes are hostile.  Refused, each with its close code: an unmasked frame, reserved bits, unknown opcodes, a control
 * frame that is long or fragmented, a continuation of nothing or none of something (1002), text that is not UTF-8 (1007),
 * a message over WS_MESSAGE_MAX (1009).  No more than one message is held.  Any thread; completes before return. */
#ifndef HTTP_WS_FRAME_H
#define HTTP_WS_FRAME_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/buf.h"

enum { WS_MESSAGE_MAX = 65536, WS_CONTROL_MAX = 125, WS_HEAD_MAX = 10, WS_ACCEPT_MAX = 29, WS_KEY_LEN = 24 };
enum ws_opcode { WS_CONT = 0, WS_TEXT = 1, WS_BINARY = 2, WS_CLOSE = 8, WS_PING = 9, WS_PONG = 10 };

enum ws_event {
    WS_EVENT_MORE,    /* all input is used up */
    WS_EVENT_MESSAGE, /* data, len, and binary or text */
    WS_EVENT_PING,
    WS_EVENT_PONG,
    WS_EVENT_CLOSE, /* code (1005: none was given) */
    WS_EVENT_ERROR, /* code to close with; the parser takes nothing more */
};

struct ws_parser {
    uint8_t head[14];
    size_t head_len;
    bool in_payload;
    bool failed;
    bool deliver; /* the message was given out: emptied at the next call */
    bool fin;
    uint8_t opcode;
    uint8_t mask[4];
    uint64_t payload_len, payload_at;
    int message_opcode; /* 0: none begun */
    struct buf message;
    uint8_t control[WS_CONTROL_MAX];
    /* Of the event: */
    const uint8_t *data;
    size_t len;
    bool binary;
    int code;
};

void ws_parser_init(struct ws_parser *p);
void ws_parser_done(struct ws_parser *p);
/* Takes bytes from *in (moving it and *in_len) up to the next event.  p->data is valid until the next call. */
enum ws_event ws_parser_next(struct ws_parser *p, const uint8_t **in, size_t *in_len);
/* The head of an unfragmented, unmasked frame; returns its length (at most WS_HEAD_MAX). */
size_t ws_frame_head(enum ws_opcode opcode, uint64_t payload_len, uint8_t out[WS_HEAD_MAX]);
/* Whether a client may send this close code. */
bool ws_close_code_ok(int code);
/* Sec-WebSocket-Accept of a Sec-WebSocket-Key; false when the key is not 16 bytes in base64. */
bool ws_accept_key(const char *key, char out[WS_ACCEPT_MAX]);

#endif
