/* frame.h - the framed protocol of vmmd and its long-lived helpers: a type, a length, and so many bytes.  Any thread.
 *
 * The peer may be hostile: a length over the maximum ends the reading for good.  What vmmd-ssh and vmmd say to each other:
 *
 *   control (SOCK_SEQPACKET, one per helper)
 *     vmmd ─► {"user","host","port","host_key"}, then one message per session: 'x' (exec) or 'f' (files) with its socket
 *     ◄─ helper   'H' "ssh-ed25519 AAAA..."  the guest's host key, when none was given;   'L'  the guest hung up
 *
 *   session (SOCK_STREAM, one per command or transfer; closing it ends what it is about)
 *     vmmd ─► FRAME_REQUEST json, FRAME_INPUT ..., FRAME_INPUT_END; FRAME_KILL
 *     ◄─ helper   FRAME_ASKED before the guest is asked for anything that must not happen twice;
 *                 FRAME_STARTED json, FRAME_OUT, FRAME_ERR ..., FRAME_END json
 *
 * A session's socket is its back-pressure: who reads slowly fills it, and nobody else waits. */
#ifndef BASE_FRAME_H
#define BASE_FRAME_H

#include <stdbool.h>
#include <stddef.h>

#include "base/buf.h"

enum {
    FRAME_HEAD = 5, /* the type, and the length, most significant byte first */
    FRAME_MAX = 65536,
    FRAME_REQUEST = 'R',
    FRAME_INPUT = 'I',
    FRAME_INPUT_END = 'E',
    FRAME_KILL = 'K',
    FRAME_ASKED = 'A',
    FRAME_STARTED = 'S',
    FRAME_OUT = 'O',
    FRAME_ERR = 'X',
    FRAME_END = 'F',
};

struct frames {
    struct buf part; /* the frame begun */
};

/* Called for each whole frame, valid during the call.  Returns whether to go on: after false the reader is not touched
 * again, so the callee may have freed it. */
typedef bool frame_fn(void *arg, int type, const char *data, size_t len);

void frames_init(struct frames *f);
void frames_done(struct frames *f);
/* Feeds bytes; -1 when a frame is too long or memory is short. */
int frames_feed(struct frames *f, const char *data, size_t len, frame_fn *fn, void *arg);
void frame_head(char out[FRAME_HEAD], int type, size_t len);
/* Appends whole frames of at most FRAME_MAX bytes each; an empty one for len 0. */
int frame_append(struct buf *out, int type, const void *data, size_t len);

/* The first line that a wrapped command writes (guest/script.h): MARK_START nonce, then what the guest says, '\n'.
 * *ret_said is behind the nonce, NUL-terminated; *ret_end is the offset behind the line.  0: not there yet; 1: found. */
#define MARK_START "\001vmmd "
enum { MARK_SCAN_MAX = 65536, NONCE_MAX = 33 };
int mark_find(char *data, size_t len, const char *nonce, char **ret_said, size_t *ret_end);

/* Appends s as one word of a POSIX shell. */
int shell_quote(struct buf *out, const char *s);

/* What the last line means that a file's command (LC_ALL=C) wrote on stderr: behind the last ": ", for a name may say anything.
 * "missing", "denied", "no_space", "not_empty"; NULL: nothing that is known. */
const char *shell_failure(const char *line);

#endif
