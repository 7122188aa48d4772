/* exec.h - running a command in a guest: what every channel (SSH, guest agent) offers in the same shape.  Loop thread.
 *
 *   x_exec(request) ─► started ─► output ... ─► ended          exec_free at any time: the command's process group is killed
 *
 * The exit status is told apart from the end of the output: a grandchild that holds a pipe open delays `ended` by a second. */
#ifndef GUEST_EXEC_H
#define GUEST_EXEC_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/error.h"

enum exec_via { EXEC_AUTO, EXEC_SSH, EXEC_AGENT, EXEC_VSOCK };
const char *exec_via_text(enum exec_via via);
bool exec_via_parse(const char *text, enum exec_via *ret);

struct exec_env {
    const char *name, *value;
};

/* ^[A-Za-z_][A-Za-z0-9_]*$ */
bool exec_env_name_valid(const char *name);

/* Borrowed during the call. */
struct exec_request {
    const char *const *command; /* NULL: script */
    size_t n_command;
    const char *script; /* for /bin/sh */
    const struct exec_env *env;
    size_t n_env;
    const char *cwd;          /* NULL: the user's home */
    const char *user;         /* NULL: the VM's spec.ssh.user */
    const char *default_user; /* that one */
    const void *input;
    size_t input_len;
    enum exec_via via;
    size_t max_output; /* of each stream; for a channel that can only gather */
};

/* All in one piece, for mem_free; NULL: no memory. */
struct exec_request *exec_request_copy(const struct exec_request *req);

struct exec_end {
    int exit_code;   /* -1 when a signal ended it */
    char signal[16]; /* "SIGKILL"; "" none */
    bool truncated;  /* the channel itself lost output */
};

struct exec_events {
    void (*output)(void *arg, bool is_stderr, const char *data, size_t len);
    /* Once, the last; err set: the command did not run, or the channel was lost (end NULL). */
    void (*ended)(void *arg, const struct exec_end *end, struct error *err);
};

struct exec;
struct exec_ops {
    void (*pause)(struct exec *e, bool paused);
    void (*kill)(struct exec *e);
    void (*free)(struct exec *e);
};

/* The head of a channel's own struct. */
struct exec {
    const struct exec_ops *ops;
    enum exec_via via;
    struct exec_events events;
    void *arg;
};

/* Back-pressure: no output while paused (`ended` waits too). */
static inline void exec_pause(struct exec *e, bool paused)
{
    e->ops->pause(e, paused);
}
/* Kills the process group; what it wrote until then and `ended` still come. */
static inline void exec_kill(struct exec *e)
{
    e->ops->kill(e);
}
/* Silences the events; a command that still runs is killed.  Also from its events.  NULL is fine. */
static inline void exec_free(struct exec *e)
{
    if (e != NULL)
        e->ops->free(e);
}

#endif
