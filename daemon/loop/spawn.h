/* spawn.h - the start of a process: from a child_spec to a pid and a pidfd.  Part of child.c; loop thread only. */
#ifndef LOOP_SPAWN_H
#define LOOP_SPAWN_H

#include "loop/child.h"

/* Starts it and returns once the program runs in the child.  Fails: ERR_IO with the errno of whatever failed, exec in
 * the child included; no zombie is left then.  The pidfd is the caller's. */
int spawn(const struct child_spec *spec, pid_t *ret_pid, int *ret_pidfd, struct error *err);

#endif
