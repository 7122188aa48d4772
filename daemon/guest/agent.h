/* agent.h - a client of the qemu-guest-agent, through the Unix socket of its QEMU character device.  Loop thread only.
 *
 * The guest is hostile: lines are bounded (AGENT_LINE_MAX), garbage is passed over, and every command first syncs
 * (guest-sync-delimited with a fresh id), so that no stale answer is taken for its own.  Commands run one at a time, in
 * order.  A command is sent only after the agent answered the sync: one that timed out earlier never takes effect
 * later. The socket may vanish and come back: the client reconnects until it is freed.  agent_free may be called from
 * every callback and silences all. */
#ifndef GUEST_AGENT_H
#define GUEST_AGENT_H

#include <stdbool.h>
#include <stdint.h>

#include <jansson.h>

#include "base/error.h"
#include "loop/loop.h"

enum {
    AGENT_LINE_MAX = 4 << 20, /* a command's output comes in one line */
    AGENT_QUEUE_MAX = 16,     /* commands waiting or running */
    AGENT_PING_MS = 3000,     /* a ping unanswered for so long means down */
};

struct agent;

struct agent_events {
    void (*up)(void *arg);   /* a ping was answered, and the last one was not */
    void (*down)(void *arg); /* was up, and a ping was not answered, the port closed or the socket went away */
};

/* Starts connecting to the socket at path, and goes on trying (100 ms, doubling up to 2 s) until it is freed.  `events`
 * must outlive the agent.  Fails: ERR_IO (path too long, memory). */
struct agent *agent_new(struct loop *loop, const char *path, const struct agent_events *events, void *arg,
                        struct error *err);
/* Pings until answered: after 100 ms, then with back-off up to 2 s between the attempts; when up, every interval_ms. */
void agent_start_probing(struct agent *a, int64_t interval_ms);
/* What QEMU says of the guest's end of the port (VSERPORT_CHANGE): open pings at once, closed means down at once. */
void agent_hint_open(struct agent *a, bool open);
bool agent_is_up(const struct agent *a);

/* Queues a command.  `arguments` (NULL: none) is stolen, also on failure.  -1 when the queue is full or memory is
 * short: reply never comes.  On 0 the reply comes exactly once, not before this returns: `ret` is borrowed and NULL on
 * error; `err` is never NULL, and unset on success.  timeout_ms counts from now, waiting included. Errors:
 * ERR_VM_UNRESPONSIVE (no answer in time, or the connection ended meanwhile), ERR_IO (the agent refused; its text in
 * causes). */
int agent_execute(struct agent *a, const char *command, json_t *arguments, int64_t timeout_ms,
                  void (*reply)(void *arg, json_t *ret, struct error *err), void *arg, struct error *err);
/* The same for a command that answers only when it fails (guest-shutdown): success, with ret NULL, is that it was
 * delivered and no refusal came within a second, or that the connection ended after it was delivered. */
int agent_notify(struct agent *a, const char *command, json_t *arguments, int64_t timeout_ms,
                 void (*reply)(void *arg, json_t *ret, struct error *err), void *arg, struct error *err);

/* How many lines made no sense. */
unsigned agent_garbage(const struct agent *a);
/* Fails the commands of agent_exec.h and the transfers of agent_files.h, silences all else.  NULL is fine. */
void agent_free(struct agent *a);

#endif
