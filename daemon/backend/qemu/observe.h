/* observe.h - what is learnt of a guest while it runs: its addresses, and how cloud-init ended.  Loop thread. */
#ifndef BACKEND_QEMU_OBSERVE_H
#define BACKEND_QEMU_OBSERVE_H

#include <stdint.h>

struct backend_vm;

/* The guest runs, since ran_ms.  Told by backend_events.addresses and .cloud_init, again and again, the same or not.  Without
 * memory nothing is told. */
void observe_start(struct backend_vm *bvm, int64_t ran_ms);
/* The agent answers: looks at once. */
void observe_agent_up(struct backend_vm *bvm);
/* The guest begins anew: so does what is known of it. */
void observe_guest_reset(struct backend_vm *bvm);
/* Before the agent is freed, which then must be. */
void observe_stop(struct backend_vm *bvm);

#endif
