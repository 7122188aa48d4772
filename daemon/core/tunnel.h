/* tunnel.h - the bytes of a running VM's console and display, for resources that carry them to a client.
 *
 * Runs on the loop.  Each x_new is given back by x_free, which silences its callbacks. */
#ifndef CORE_TUNNEL_H
#define CORE_TUNNEL_H

#include <stdbool.h>
#include <stddef.h>

#include "core/core.h"

/* The pen of a VM's console: many read its log, one writes. */
struct console_pen;
/* `lost`: somebody took it by force, or the console is gone.  With force the pen is taken at once, else by the first write.
 * ERR_VM_INVALID_STATE when the VM has no live console. */
struct console_pen *console_pen_new(struct live_vm *vm, bool force, void (*lost)(void *arg, const char *why), void *arg,
                                    struct error *err);
/* -1: somebody else writes (`*ret_taken`), or too much is waiting. */
int console_pen_write(struct console_pen *pen, const void *data, size_t len, bool *ret_taken);
void console_pen_free(struct console_pen *pen);

/* A connection to the VM's VNC socket. */
struct vnc_tunnel;
struct vnc_tunnel_events {
    void (*data)(void *arg, const void *data, size_t len);
    void (*closed)(void *arg);
    void (*drained)(void *arg);
};
struct vnc_tunnel *vnc_tunnel_new(struct live_vm *vm, const struct vnc_tunnel_events *events, void *arg,
                                  struct error *err);
int vnc_tunnel_write(struct vnc_tunnel *t, const void *data, size_t len);
void vnc_tunnel_pause(struct vnc_tunnel *t, bool paused);
void vnc_tunnel_free(struct vnc_tunnel *t);

#endif
