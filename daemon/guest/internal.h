/* internal.h - what the guest agent client's parts share: agent.c (connection and probing), request.c (the queue). */
#ifndef GUEST_INTERNAL_H
#define GUEST_INTERNAL_H

#include "base/lines.h"
#include "guest/agent.h"
#include "loop/stream.h"
#include "loop/timer.h"

enum { AGENT_NAME_MAX = 64, AGENT_GRACE_MS = 1000 };

/* The first request in the queue walks:  QUEUED ──► SYNCING (sync written) ──► SENT (sync answered, command written) */
enum request_state { REQUEST_QUEUED, REQUEST_SYNCING, REQUEST_SENT };

struct request {
    struct request *next;
    enum request_state state;
    bool notify; /* silence is success */
    bool ping;   /* our own: its deadline counts from when its turn comes */
    int64_t deadline_ms;
    int64_t grace_ms; /* when silence becomes success, once SENT */
    int64_t timeout_ms;
    json_int_t sync;
    char name[AGENT_NAME_MAX];
    char *line; /* the command as it goes over the wire */
    size_t line_len;
    void (*reply)(void *arg, json_t *ret, struct error *err);
    void *arg;
};

struct agent {
    struct loop *loop;
    const struct agent_events *events;
    void *arg;
    char *path;

    struct stream *stream; /* NULL: waiting to reconnect */
    bool connected;
    int64_t reconnect_at_ms;
    int64_t reconnect_backoff_ms;
    unsigned connection; /* counts connections, so that a callback can tell that its own has ended */
    unsigned unanswered; /* syncs written on this connection since the last sign of life */
    struct lines lines;
    struct timer *timer; /* the nearest of all times */

    struct request *queue; /* oldest first; the first one runs */
    unsigned n_queue;
    json_int_t last_sync;
    unsigned garbage;

    bool probing;
    bool up;
    int64_t probe_at_ms;
    int64_t probe_backoff_ms;
    int64_t probe_interval_ms;

    struct agent_x *execs; /* agent_exec.c: not ended */
    struct agent_f *files; /* agent_files.c: not freed, or not cleaned up after */

    unsigned pins;
    bool freed;
};

/* Keeps the memory while calling out; unpin frees it when agent_free came in between, else sets the timer anew. */
void agent_pin(struct agent *a);
void agent_unpin(struct agent *a);

/* Queues our own ping unless something is queued already, which tells as much. */
void agent_ping(struct agent *a);
/* The agent has answered a request or a sync. */
void agent_alive(struct agent *a);
/* The agent has let a deadline pass: down, and a new connection when too much lies unanswered. */
void agent_mute(struct agent *a);

/* Gives the first request its turn if the socket is connected. */
void request_advance(struct agent *a);
/* A JSON value from the guest. */
void request_answer(struct agent *a, const json_t *value);
/* Fails the requests whose deadline has passed; ends a notify after its grace. */
void request_expire(struct agent *a, int64_t now);
/* The connection ended: fails the running request, keeps the waiting ones. */
void request_interrupt(struct agent *a);
/* The guest opened or closed its end: what was not read yet may be lost.  A sync is written anew in its turn; a command
 * sent before the port closed has ended. */
void request_resync(struct agent *a, bool closed);
/* A line was too long to be kept: the output of a command is lost, and with it its end. */
void request_too_long(struct agent *a);
/* agent_exec.c: the agent is freed; fails them all. */
void agent_execs_end(struct agent *a);
/* agent_files.c: the same, after that. */
void agent_files_end(struct agent *a);
/* The time at which request_expire has something to do, INT64_MAX: none. */
int64_t request_next_time(const struct agent *a);
/* Forgets all without a reply. */
void request_drop_all(struct agent *a);

#endif
