/* qmp.h - an asynchronous client of one QEMU's monitor (QMP) on a Unix socket.  Loop thread only; nothing blocks.
 *
 * Exactly one of {ready, lost} answers qmp_new and each qmp_reconnect; after ready, `lost` comes at most once. Commands
 * are answered in any order, each exactly once.  qmp_free may be called from every callback and silences all: neither
 * replies nor `lost` come afterwards.  Events are delivered while the client is ready; those in between are QEMU's to
 * lose, so the owner asks for the state again in `ready`. */
#ifndef QMP_QMP_H
#define QMP_QMP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <jansson.h>

#include "base/error.h"
#include "loop/loop.h"

enum {
    QMP_LINE_MAX = 1 << 20,    /* a longer line loses the connection */
    QMP_BACKLOG_MAX = 1 << 20, /* bytes waiting to be written; more are refused */
    QMP_PENDING_MAX = 64,      /* commands waiting for their answers; more are refused */
    QMP_CONNECT_MS = 10000,    /* default of qmp_set_connect_deadline */
};

struct qmp;

struct qmp_events {
    /* Greeted, capabilities negotiated: commands may be given.  qemu_version is "7.2.22". */
    void (*ready)(void *arg, const char *qemu_version);
    /* An event of QEMU: data is borrowed and may be NULL; wall_ms is QEMU's time stamp.  May be NULL. */
    void (*event)(void *arg, const char *name, json_t *data, int64_t wall_ms);
    /* The connection is gone (ERR_QEMU_QMP_CONNECT_FAILED) and every pending command has failed.  qmp_reconnect may be
     * called from here. */
    void (*lost)(void *arg, const struct error *err);
};

/* Starts connecting to the socket at path.  While QEMU is not listening yet, or hangs up before it greets, the client
 * tries again (5 ms, doubling up to 100 ms) until the connect deadline.  `events` must outlive the client.
 * Fails: ERR_IO (path too long, memory). */
struct qmp *qmp_new(struct loop *loop, const char *path, const struct qmp_events *events, void *arg, struct error *err);
/* Whom the messages speak of: "QEMU of VM web" instead of "QEMU". */
void qmp_set_name(struct qmp *q, const char *vm);
/* The time from qmp_new or qmp_reconnect to `ready`; counted from now when it is connecting. */
void qmp_set_connect_deadline(struct qmp *q, int64_t ms);
/* Connects again after `lost`.  -1 (ERR_QEMU_QMP_CONNECT_FAILED) when it was not lost, or ERR_IO; `lost` does not come
 * then. */
int qmp_reconnect(struct qmp *q, struct error *err);

/* Gives a command.  `arguments` (NULL: none) is stolen, also on failure.  Returns -1 when nothing was sent: not ready,
 * too much waiting, no memory; reply never comes then.  On 0 the reply comes exactly once, not before this returns:
 * `ret` is borrowed, and NULL on error; `err` is never NULL, and unset on success.
 * Errors: ERR_QEMU_QMP_COMMAND_FAILED (QEMU's class and text in causes, or the connection was lost),
 * ERR_VM_UNRESPONSIVE (too much waits for answers already, or no answer within timeout_ms; a late one is dropped, and the command may still take effect). */
int qmp_execute(struct qmp *q, const char *command, json_t *arguments, int64_t timeout_ms,
                void (*reply)(void *arg, json_t *ret, struct error *err), void *arg, struct error *err);

bool qmp_is_ready(const struct qmp *q);
/* The version of the last greeting, "" before the first. */
const char *qmp_version(const struct qmp *q);
/* How many lines made no sense, over all connections (late answers are no garbage). */
unsigned qmp_garbage(const struct qmp *q);
/* Disconnects without a further callback.  NULL is fine. */
void qmp_free(struct qmp *q);

#endif
