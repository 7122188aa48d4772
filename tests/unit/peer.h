/* peer.h - a scripted server on a Unix socket, played on the loop of the test: what a QEMU or a guest might say. */
#ifndef TESTS_UNIT_PEER_H
#define TESTS_UNIT_PEER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "loop/loop.h"

enum peer_action {
    PEER_END,    /* the script is over; the connection stays */
    PEER_ACCEPT, /* waits for a client (the first one too) */
    PEER_EXPECT, /* waits for a line that contains text; lines before it are passed over */
    PEER_SEND,   /* sends text; "$ID" becomes the id of the last expected line */
    PEER_DRIP,   /* the same, one byte per turn of the loop */
    PEER_FLOOD,  /* sends n bytes of 'x', until the client hangs up */
    PEER_GONE,   /* waits until the client has hung up */
    PEER_CLOSE,  /* hangs up */
    PEER_PAUSE,  /* n milliseconds */
};

struct peer_step {
    enum peer_action action;
    const char *text;
    size_t n; /* length of text where it holds NULs, bytes or milliseconds */
};

/* A script reads like the conversation it plays. */
/* clang-format off */
#define SCRIPT(...) (const struct peer_step[]){__VA_ARGS__, {.action = PEER_END}}
#define ACCEPT {.action = PEER_ACCEPT}
#define EXPECT(what) {.action = PEER_EXPECT, .text = (what)}
#define SEND(what) {.action = PEER_SEND, .text = (what)}
#define SEND_BYTES(what, len) {.action = PEER_SEND, .text = (what), .n = (len)}
#define DRIP(what) {.action = PEER_DRIP, .text = (what)}
#define FLOOD(bytes) {.action = PEER_FLOOD, .n = (bytes)}
#define GONE {.action = PEER_GONE}
#define CLOSE {.action = PEER_CLOSE}
#define PAUSE(ms) {.action = PEER_PAUSE, .n = (ms)}
/* clang-format on */

struct peer;

/* Listens at path at once and plays the steps up to PEER_END.  Aborts the test when it cannot. */
struct peer *peer_new(struct loop *loop, const char *path, const struct peer_step *steps);
bool peer_ended(const struct peer *p);
size_t peer_sent(const struct peer *p); /* bytes that left by PEER_FLOOD */
void peer_free(struct peer *p);         /* removes the socket */

/* Turns the loop until cond(arg) holds; false when it does not within `ms`. */
bool run_until(struct loop *loop, bool (*cond)(void *arg), void *arg, int64_t ms);
/* Turns the loop for `ms`. */
void run_for(struct loop *loop, int64_t ms);

#endif
