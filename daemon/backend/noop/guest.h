/* guest.h - commands in the guest that a noop VM would have: they end as a label says.  Loop thread. */
#ifndef BACKEND_NOOP_GUEST_H
#define BACKEND_NOOP_GUEST_H

#include "guest/exec.h"
#include "loop/loop.h"

struct noop_exec;

/* how: an exit code, SIGNAME, or "hang" until it is killed; `delay_ms` later.  What it writes is its script or first word.  It is in
 * *list while it runs. */
struct exec *noop_exec_new(struct loop *loop, const char *how, int64_t delay_ms, const struct exec_request *req,
                           const struct exec_events *events, void *arg, struct noop_exec **list, struct error *err);
/* The VM has ended: all of them fail. */
void noop_execs_end(struct noop_exec **list, const char *vm_name);

#endif
