/* script.h - a command with its environment, directory and user as text for the guest's shell: quoted once, here.
 *
 * Whatever carries it (SSH, the guest agent), the guest runs `/bin/sh -c STUB sh BODY STUB`.  The stub makes the shell the leader
 * of a session of its own, so that all of the command can be killed by its process group; the body says so in a first line
 * (base/frame.h: MARK_START nonce, then "PID 1 START", or "PID 0 START" where there is no setsid, or "!WORD" for what it cannot do),
 * sets directory and environment and becomes the command: its exit status and signal are the process's own.
 * Any thread. */
#ifndef GUEST_SCRIPT_H
#define GUEST_SCRIPT_H

#include <stdbool.h>

#include "base/buf.h"
#include "base/frame.h"
#include "guest/exec.h"

/* SCRIPT_SUDO: over SSH, as another user than the one that logs in. */
enum script_channel { SCRIPT_SSH, SCRIPT_SUDO, SCRIPT_AGENT };

/* A fresh nonce. */
void script_nonce(char out[NONCE_MAX]);
/* The body.  -1: memory, or it is too long. */
int script_body(struct buf *out, const struct exec_request *req, const char *nonce, enum script_channel channel);
/* The one line for SSH; a body that is too long for it goes through stdin before the command's own (*ret_feed). */
int script_ssh_command(struct buf *out, const struct buf *body, const char *sudo_user, const char *nonce,
                       bool *ret_feed);
/* Kills a process group, if its leader is still the process that began at `start` (/proc/PID/stat). */
int script_ssh_kill(struct buf *out, long pid, long long start, bool sudo);
/* For the agent: /bin/sh -c stub sh BODY stub USER NONCE; USER may be "". */
extern const char script_agent_stub[];
/* What a first line's "!WORD" means; always -1 with err set. */
int script_refusal(const char *word, const struct exec_request *req, const char *user, struct error *err);

#endif
