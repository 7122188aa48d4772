/* internal.h - what the QMP client's two halves share: qmp.c (connection) and command.c (commands, answers). */
#ifndef QMP_INTERNAL_H
#define QMP_INTERNAL_H

#include "base/lines.h"
#include "loop/stream.h"
#include "loop/timer.h"
#include "qmp/qmp.h"

/*            qmp_new
 *               │
 *         ┌─ WAITING ◄──────┐ refused, or hung up before the greeting
 *         ▼ back-off        │
 *     CONNECTING ──► GREETING ──► NEGOTIATING ──► READY
 *         │              │             │            │
 *         └──────────────┴──── LOST ◄──┴────────────┘   deadline, garbage, end of connection
 *                               │ qmp_reconnect
 *                               ▼ CONNECTING                                              */
enum qmp_state { QMP_WAITING, QMP_CONNECTING, QMP_GREETING, QMP_NEGOTIATING, QMP_READY, QMP_LOST };

enum { QMP_NAME_MAX = 96, QMP_COMMAND_NAME_MAX = 64, QMP_VERSION_MAX = 48 };

struct qmp_command {
    struct qmp_command *next;
    json_int_t id;
    int64_t deadline_ms;
    int64_t timeout_ms;
    char name[QMP_COMMAND_NAME_MAX];
    void (*reply)(void *arg, json_t *ret, struct error *err);
    void *arg;
};

struct qmp {
    struct loop *loop;
    const struct qmp_events *events;
    void *arg;
    char *path;
    char who[QMP_NAME_MAX];
    char version[QMP_VERSION_MAX];

    enum qmp_state state;
    struct stream *stream;
    struct lines lines;
    struct timer *timer; /* the nearest of all times below */
    int64_t connect_ms;
    int64_t connect_deadline_ms; /* before READY */
    int64_t retry_at_ms;         /* while WAITING */
    int64_t backoff_ms;
    int last_errnum;     /* why the last attempt ended */
    unsigned connection; /* counts connections, so that a callback can tell that its own has ended */

    struct qmp_command *pending; /* oldest first */
    unsigned n_pending;
    json_int_t last_id;
    json_int_t negotiation_id;
    unsigned garbage;

    unsigned pins; /* callbacks on the stack: the memory stays */
    bool freed;
    bool losing; /* failing the pending commands */
};

/* Keeps the memory while calling out; unpin frees it when qmp_free came in between, else sets the timer anew. */
void qmp_pin(struct qmp *q);
void qmp_unpin(struct qmp *q);

/* Writes one command line; *ret_id is its id.  -1: refused or no memory. */
int qmp_send(struct qmp *q, const char *command, const json_t *arguments, json_int_t *ret_id, struct error *err);
/* The answer to a command of ours: finds it and ends it. */
void qmp_answer(struct qmp *q, json_int_t id, const json_t *line);
/* Makes the error of an answer that is not {"return": ...}; -1 always. */
int qmp_answer_error(const struct qmp *q, const char *command, const json_t *line, struct error *err);
/* Fails every command whose deadline has passed. */
void qmp_expire(struct qmp *q, int64_t now);
/* Fails every command: the connection is gone. */
void qmp_fail_pending(struct qmp *q, const struct error *why);
/* Forgets every command without a reply. */
void qmp_drop_pending(struct qmp *q);

#endif
