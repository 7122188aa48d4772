/* exec.h - a worker's sessions: command.c (one session: its request, its channel, its end) and exec.c (the worker). */
#ifndef HELPERS_SSH_EXEC_H
#define HELPERS_SSH_EXEC_H

#include <libssh/callbacks.h>

#include "helpers/ssh/ssh.h"

struct session {
    struct session *next;
    int fd;
    struct frames in;
    bool gone;  /* vmmd closed it */
    bool ended; /* FRAME_END is in out */
    /* the request */
    bool asked, probe, sudo;
    char *command;
    char nonce[NONCE_MAX];
    struct buf input;
    bool input_end, input_end_sent;
    /* the command */
    bool told;         /* FRAME_ASKED was sent */
    unsigned refusals; /* of a connection or a channel */
    ssh_channel channel;
    struct ssh_channel_callbacks_struct callbacks;
    struct buf scan; /* stdout before the first line */
    bool marked, leader;
    long pid;
    bool exited;
    int code;
    char signal[16];
    int64_t exited_at, killed_at, kill_asked_at;
    size_t drained;
    bool kill_asked, killed;
    struct buf out;
    size_t sent;
};

struct exec {
    struct worker *w;
    ssh_session ssh;
    ssh_event event;
    struct session *sessions;
    bool lost;
    char why[256];
    const char *kind;
};

/* A session of the socket, which it takes; NULL when memory is short (the socket is closed then). */
struct session *session_new(int fd);
void session_close(struct session *s);
/* Reads what vmmd sent; writes what there is for it (true: some of it left). */
void session_read(struct session *s);
bool session_write(struct session *s);
bool session_wants_input(const struct session *s);
/* Ends it with an error; its channel is closed. */
void session_fail(struct session *s, const char *kind, const char *detail);
/* Nothing of it has reached the guest: another connection may do. */
bool session_is_fresh(const struct session *s);
/* It has no channel yet, and is to have one. */
bool session_is_waiting(const struct session *s);
/* Moves what can be moved; true when anything was. */
bool session_step(struct exec *x, struct session *s);
/* Nothing is left to do for it. */
bool session_done(const struct session *s);
/* Kills, with one command, all that are to die now. */
bool sessions_kill(struct exec *x);

#endif
