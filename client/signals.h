/* signals.h - Ctrl+C as something one can wait for. */
#ifndef VMCTL_SIGNALS_H
#define VMCTL_SIGNALS_H

#include <stdbool.h>

/* From now on SIGINT is remembered instead of ending vmctl, and SIGPIPE is ignored (writes say EPIPE). Call once. */
void signals_init(void);

/* Readable once SIGINT came. */
int signals_fd(void);

/* Whether SIGINT came. */
bool signals_interrupted(void);

/* Sleeps so long, or until SIGINT. */
void signals_sleep(int ms);

#endif
