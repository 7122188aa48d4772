/* notify.h - the service manager's protocol (sd_notify): one datagram each.  Nothing happens without NOTIFY_SOCKET. */
#ifndef NOTIFY_H
#define NOTIFY_H

#include <stdint.h>

/* "READY=1", "STOPPING=1", "STATUS=…"; lines separated by \n.  Never fails, never waits. */
void notify(const char *state);
/* RELOADING=1 with the monotonic time the protocol wants beside it. */
void notify_reloading(void);
/* How often WATCHDOG=1 is wanted, in ms; 0: not at all. */
int64_t notify_watchdog_ms(void);

#endif
