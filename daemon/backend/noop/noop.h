/* noop.h - the backend that runs nothing: every verb, no process, no file.  For scale, and for faults at will.
 *
 * A VM's labels tell it what to do, read when a step begins, so that a PATCH changes them under way.  STEP is a step's
 * name
 * ("spawn") or "KIND:STEP" ("vm.start:spawn"); a list is separated by commas.
 *   noop.fail=STEP[,STEP...]   the step fails, by a code that fits it, or by
 *   noop.fail_code=CODE        this one ("host::disk_full")
 *   noop.delay_ms.STEP=MS      the step begins so much later; a cancel ends the delay
 *   noop.exit=HOW              the VM ends by itself: guest-off, panic, oom, exited:CODE or killed:SIGNAL,
 *   noop.exit_after_ms=MS      so long after it runs (50), or after
 *   noop.exit_step=STEP        this step begins
 *   noop.ignore_acpi=true, noop.ignore_term=true   the guest does not power off when asked, the process does not end
 *   noop.ignore_term=refused   the process cannot even be asked
 *   noop.agent=false           no guest agent; noop.method=agent: the agent was what powered it off
 *   noop.ip=IP[,IP...]         the guest's addresses, told before its agent answers; noop.ip_source=lease or neighbour
 *   noop.cloud_init=REASON[:MESSAGE]   how cloud-init ends where there is a seed (done)
 *   noop.adopt=HOW             what a restarted daemon finds: running, suspended, nothing, or an end as above
 *   noop.exec=HOW              its guest runs commands, which end so: an exit code, SIGNAME, or hang; noop.exec_ms=MS later
 * A noop VM outlives the daemon: it is found in the state that its row tells. */
#ifndef BACKEND_NOOP_NOOP_H
#define BACKEND_NOOP_NOOP_H

#include "backend/backend.h"

/* data_dir is not used yet.  ->free frees it, after its VMs were detached.  Fails: ERR_DAEMON_OVERLOADED. */
struct backend *noop_backend_new(struct loop *loop, const char *data_dir, struct error *err);

#endif
