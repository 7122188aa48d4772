/* agent_exec.h - a command over the guest agent: the same request as over SSH, with what this transport can.  Loop thread.
 *
 * Its output comes whole at the end, at most AGENT_OUTPUT_MAX of it; there is no back-pressure.  The agent runs as root and
 * becomes the user by runuser (or su). */
#ifndef GUEST_AGENT_EXEC_H
#define GUEST_AGENT_EXEC_H

#include "guest/agent.h"
#include "guest/exec.h"

enum { AGENT_INPUT_MAX = 128 << 10, AGENT_OUTPUT_MAX = 1 << 20 };

/* See exec.h.  NULL with err set: ERR_API_INVALID_FIELD (too much input), ERR_DAEMON_OVERLOADED.  `ended` fails with
 * ERR_GUEST_UNAVAILABLE.  The agent must outlive it. */
struct exec *agent_exec(struct loop *loop, struct agent *agent, const char *vm_name, const struct exec_request *req,
                        const struct exec_events *events, void *arg, struct error *err);

/* The same with another bound on what goes in. */
struct exec *agent_exec_up_to(size_t input_max, struct loop *loop, struct agent *agent, const char *vm_name,
                              const struct exec_request *req, const struct exec_events *events, void *arg,
                              struct error *err);

#endif
