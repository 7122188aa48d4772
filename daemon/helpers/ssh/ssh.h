/* ssh.h - the parts of vmmd-ssh among themselves.
 *
 *   vmmd-ssh.c   arguments, confinement, the control socket: sessions to their workers
 *   conn.c       a connection: TCP, banner, host key, user key
 *   exec.c       a worker with one connection and some channels, each a command
 *   files.c      a worker with one connection and SFTP, one transfer after the other; sftp_ahead.c, its writes
 *
 * One thread per worker, one connection per thread: libssh is never shared.  What threads share is in `struct helper`. */
#ifndef HELPERS_SSH_SSH_H
#define HELPERS_SSH_SSH_H

#include <libssh/libssh.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/frame.h"

enum {
    CONTROL_FD = 3,
    KEY_FD = 4,
    EXEC_WORKERS_MAX = 32,  /* many only where a connection takes no more than one command */
    EXEC_CHANNELS_MAX = 8,  /* sshd's MaxSessions is 10; one is kept for kills */
    SESSIONS_MAX = 128 + 8, /* all that a VM may have (max_execs_per_vm), waiting for one connection */
    FILE_WORKERS_MAX = 4,
    FILES_WAITING_MAX = 8,
    FILES_WAIT_MS = 2000,
    CONNECT_S = 10,
    BUSY_S = 25, /* for a guest that let us in before: it may be busy, and its sshd drop those that come in a crowd */
    CONNECTING_MAX = 3,
    IDLE_MS = 60000,
};

struct helper {
    char user[128];
    char host[64];
    int port;
    ssh_key key;
    atomic_bool entered; /* the guest let us in once */
    sem_t connecting;    /* few at once: an sshd drops those that come in a crowd (MaxStartups) */
    atomic_bool crowded; /* it did: from then on one after the other */
    pthread_mutex_t single;
    pthread_mutex_t lock; /* of what follows */
    char host_key[2048];  /* "ssh-ed25519 AAAA..."; "" until the first contact */
    bool stopping;
    unsigned commands; /* that would have to be killed */
};
extern struct helper helper;

int64_t now_ms(void);
/* Tells vmmd; short messages, whole or not at all. */
void control_send(char what, const char *text);

/* A connected and authenticated session.  The banner is awaited until something comes over `wake` (-1: nothing does).  A guest
 * that let us in before is tried for BUSY_S.  NULL with why (256 bytes) and *ret_kind: "connect" (may come yet), "host_key", "auth", "error". */
ssh_session conn_open(int64_t banner_ms, int wake, char *why, const char **ret_kind);
void conn_close(ssh_session s);
/* Whether its sshd bears no second command on a connection: dropbear before 2024.86 (or of a version it does not tell) ends the
 * connection, with all that runs on it, when a command ends between another channel's opening and its request (its issue 321). */
bool conn_takes_one(ssh_session s);
bool helper_stops(void);

/* --- sending on a session's socket --- */

/* FRAME_END that tells of an error; "kind" as above, or "missing", "denied", "no_space", "not_directory", "large", "failed". */
void end_error(struct buf *out, const char *kind, const char *detail);

/* --- workers --- */

struct session;

/* A new session's socket; or one that another worker could not serve. */
struct given {
    int fd;
    struct session *session;
};

struct worker {
    pthread_t thread;
    bool used;   /* has a thread, or one to be joined */
    bool over;   /* the thread has returned */
    bool broken; /* takes no more */
    bool ready;  /* is connected */
    bool alone;  /* its connection takes one command; its thread's */
    int wake[2]; /* a pipe */
    struct given incoming[SESSIONS_MAX];
    unsigned n_incoming;
    unsigned busy;   /* sessions given and not ended */
    atomic_uint cap; /* of those at once; more wait */
    int64_t idle_since;
};

void *exec_worker(void *arg);
void *files_worker(void *arg);
/* Takes one of those given, if there is any.  The lock is held by nobody, here and below. */
bool worker_take(struct worker *w, struct given *ret);
void worker_ended(struct worker *w); /* one session less */
/* It is connected, or is not any more. */
void worker_ready(struct worker *w, bool ready);
/* The guest lets it have so many channels and no more.  Two and more are sshd's rule, for the other connections too. */
void worker_cap(struct worker *w, unsigned channels);
/* This guest's connections take one command each. */
void worker_alone(struct worker *w);
/* Gives a session to another worker that has room, else to a new one, else, to_wait, to one that is connected. */
bool worker_pass_on(struct worker *from, struct session *s, bool to_wait);
/* Whether the worker has been idle for long, or the helper stops: then it is over for good. */
bool worker_retire(struct worker *w);

#endif
