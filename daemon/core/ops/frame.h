/* frame.h - what the two halves of an operation's frame, begin.c and vm_op.c, share. */
#ifndef CORE_OPS_FRAME_H
#define CORE_OPS_FRAME_H

#include "core/ops/ops.h"

void vm_op_free(struct vm_op *vo);
/* The engine's table and the backend's call, from the plan. */
void vm_op_build_steps(struct vm_op *vo);
/* The intent is durable and the VM is held: the engine begins. */
void vm_op_walk(struct vm_op *vo);
/* The VM is no longer held; the next in its queue may begin. */
void vm_op_let_go(struct vm_op *vo);
void vm_op_begin_next(struct live_vm *vm);

#endif
