/* channel.h - a session with vmmd-ssh, as ssh_exec.c and ssh_files.c use it.  Part of guest/; loop thread only. */
#ifndef GUEST_CHANNEL_H
#define GUEST_CHANNEL_H

#include <jansson.h>

#include "base/frame.h"
#include "guest/ssh.h"
#include "loop/stream.h"

struct channel;
struct channel_events {
    void (*frame)(void *arg, int type, const char *data, size_t len);
    void (*drained)(void *arg); /* may be NULL */
    /* The helper is gone, or talks nonsense; once, the last. */
    void (*broken)(void *arg, struct error *err);
};

/* kind: 'x' or 'f'.  Starts the helper if there is none. */
struct channel *channel_open(struct ssh *ssh, char kind, const struct channel_events *events, void *arg,
                             struct error *err);
/* -1: too much is waiting (CHANNEL_PENDING_MAX), or it is broken; `broken` comes then. */
enum { CHANNEL_PENDING_MAX = 4 << 20 };
int channel_send(struct channel *c, int type, const void *data, size_t len);
/* The object, compact; takes it. */
int channel_send_json(struct channel *c, int type, json_t *object);
size_t channel_pending(const struct channel *c);
void channel_pause(struct channel *c, bool paused);
void channel_free(struct channel *c); /* NULL is fine */

const struct ssh_config *ssh_get_config(const struct ssh *ssh);
bool ssh_is_ending(const struct ssh *ssh); /* inside ssh_free */
/* What FRAME_END's {"error","detail"} means, for what concerns the connection; false: something else, for the caller. */
bool ssh_error(const struct ssh *ssh, const char *kind, const char *detail, struct error *err);

#endif
