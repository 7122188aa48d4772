/* ws.h - a WebSocket client (RFC 6455), as much as a console needs: binary bytes both ways, pings answered, closes
 * told. Over libcurl's connection, because Debian's libcurl has no WebSocket of its own switched on. */
#ifndef VMCTL_WS_H
#define VMCTL_WS_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>

#include "cli.h"

struct ws;

enum ws_result {
    WS_OPEN,    /* go on */
    WS_CLOSED,  /* the daemon said goodbye: ws_close_code, ws_close_reason */
    WS_LOST,    /* the connection broke */
    WS_WRONG,   /* the other side broke the protocol */
    WS_STOPPED, /* the sink asked to stop */
};

/* Connects and upgrades. Returns the socket, which ws_free ends, or NULL with a problem document that the caller owns.
 * Blocks for 5 s at most while connecting, 10 s for the answer. */
struct ws *ws_open(const struct cli *cli, const char *path, json_t **ret_problem);
void ws_free(struct ws *ws);

/* For poll: the descriptor, and whether something waits to be written. */
int ws_fd(const struct ws *ws);
bool ws_wants_write(const struct ws *ws);

/* Whether more may be given to ws_send now; else wait until what is queued is written. */
bool ws_has_room(const struct ws *ws);

/* Queues bytes as one binary message; ws_write sends what is queued as far as the connection takes it. */
void ws_send(struct ws *ws, const char *bytes, size_t size);
enum ws_result ws_write(struct ws *ws);

/* Says goodbye (status 1000), as far as it can be sent at once. */
void ws_close(struct ws *ws);

/* Reads what came and gives the messages' bytes to `sink`, which returns false to stop. Never blocks. */
enum ws_result ws_read(struct ws *ws, bool (*sink)(void *arg, const char *bytes, size_t size), void *arg);

/* After WS_CLOSED: the status (1005 when none was given) and the reason ("" when none). */
unsigned ws_close_code(const struct ws *ws);
const char *ws_close_reason(const struct ws *ws);

#endif
