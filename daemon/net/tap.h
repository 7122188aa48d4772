/* tap.h - tap devices on bridges.  Any thread; a few system calls, completes before return. */
#ifndef NET_TAP_H
#define NET_TAP_H

#include <stdbool.h>

#include "base/error.h"

enum { TAP_NAME_MAX = 16 };

/* Whether a bridge of this name exists in our network namespace. */
bool bridge_exists(const char *name);
/* Makes the tap device `name`, puts it on the bridge and sets it up; returns its fd, the caller's.  The device is not
 * persistent: it goes away with the last copy of the fd, so it outlives neither QEMU nor us.
 * Fails: ERR_NETWORK_BRIDGE_NOT_FOUND, ERR_IO (EBUSY: the name is taken; EPERM: CAP_NET_ADMIN is missing). */
int tap_open(const char *name, const char *bridge, struct error *err);
/* Calls fn for each tap device of our network namespace that is named as vmmd names them ("vm" and eight hex digits) and
 * carries nothing: no process holds it. */
void tap_each_idle(void (*fn)(void *arg, const char *name), void *arg);
/* Removes a tap device; one that a process holds stays: ERR_IO (EBUSY).  One that is gone is fine. */
int tap_remove(const char *name, struct error *err);

#endif
