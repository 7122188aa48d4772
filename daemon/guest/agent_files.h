/* agent_files.h - files over the guest agent, for a guest without SSH: the same request as over SFTP.  Loop thread.
 *
 * Each step is a command of the guest's shell, run as the user (agent_exec.h), so that the user's rights decide; between two
 * steps the agent serves others. */
#ifndef GUEST_AGENT_FILES_H
#define GUEST_AGENT_FILES_H

#include "guest/agent.h"
#include "guest/files.h"

enum { AGENT_FILES_MAX = 4 }; /* transfers of one VM, as over SSH */

/* See files.h.  NULL with err set: ERR_DAEMON_OVERLOADED.  agent_free fails it. */
struct files *agent_files(struct loop *loop, struct agent *agent, const char *vm_name, const char *user,
                          const struct files_request *req, const struct files_events *events, void *arg,
                          struct error *err);

#endif
