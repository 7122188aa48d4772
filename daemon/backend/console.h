/* console.h - a VM's live serial console: always drained into a bounded, offset-addressed log; many readers, one writer.
 *
 * Loop thread.  Readers are told of new bytes and read them from the log by offset at their own speed: a slow reader
 * costs nothing but its own gap. */
#ifndef BACKEND_CONSOLE_H
#define BACKEND_CONSOLE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "loop/logfile.h"

struct console;

/* The log behind it; valid while the console is. */
struct logfile *console_log(struct console *c);
/* Becomes the one writer.  `force` takes it from the present one, whose `lost` is called.  -1: somebody has it. */
int console_claim(struct console *c, bool force, void (*lost)(void *arg), void *arg);
void console_release(struct console *c, void *arg);
/* Sends bytes to the guest; -1 when not connected or too much is waiting (64 KiB). */
int console_write(struct console *c, const void *data, size_t len);
/* Calls fn(arg) once when the console goes away (the VM's process ended); revoked by console_unwatch. */
struct console_watch;
struct console_watch *console_watch(struct console *c, void (*gone)(void *arg), void *arg);
void console_unwatch(struct console_watch *w);

#endif
