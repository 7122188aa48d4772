/* owed.c - what the store refused and is still owed.
 *
 * Memory is what is: a VM whose process died is failed, whether the disk is full or not.  What could not be written is written
 * again, as it then stands, until the disk takes it, so that the store and what readers see come to agree with memory.
 * Failure modes: no memory for the note: the next change of the VM writes it.  The daemon leaves before: the next start
 * settles it. */
#include "base/mem.h"
#include "core/internal.h"

enum { AGAIN_MS = 1000 };

struct owed {
    struct owed *next;
    struct live_vm *vm; /* one of the two */
    struct operation *op;
};

static void owed_free(struct owed *list)
{
    for (struct owed *next; list != NULL; list = next) {
        next = list->next;
        core_vm_unref(list->vm);
        operation_unref(list->op);
        mem_free(list);
    }
}

static struct owed *owed_add(struct core *core)
{
    struct owed *o = core->stopping ? NULL : mem_zalloc(sizeof(*o));

    if (o == NULL)
        return NULL;
    if (core->owed == NULL)
        timer_start(core->owed_timer, AGAIN_MS, 0);
    o->next = core->owed;
    core->owed = o;
    return o;
}

void owed_vm(struct live_vm *vm)
{
    /* One that nobody saw has no row. */
    struct owed *o = vm->owed || (vm->gone && !vm->visible) ? NULL : owed_add(vm->core);

    if (!vm->owes_event) { /* readers may see what it became before that is written */
        vm->owes_event = true;
        vm->owed_from = vm->pub_state;
    }
    if (o == NULL)
        return;
    o->vm = core_vm_ref(vm);
    vm->owed = true;
}

void owed_operation(struct operation *op)
{
    struct owed *o = owed_add(op->core);

    if (o != NULL)
        o->op = operation_ref(op);
}

/* The change's VMs are noted anew where it was refused. */
static void owed_written(void *arg, struct error *err)
{
    struct owed *list = arg;

    for (struct owed *o = list; o != NULL && error_is_set(err); o = o->next)
        if (o->op != NULL)
            owed_operation(o->op);
    owed_free(list);
}

void owed_due(void *arg)
{
    struct core *core = arg;
    struct owed *list = core->owed;
    struct change *ch = list != NULL && !core->stopping ? change_new(core) : NULL;

    if (ch == NULL) {
        if (list != NULL)
            timer_start(core->owed_timer, AGAIN_MS, 0);
        return;
    }
    core->owed = NULL;
    for (struct owed *o = list; o != NULL; o = o->next) {
        if (o->op != NULL) {
            change_operation(ch, o->op);
            continue;
        }
        o->vm->owed = false;
        change_vm(ch, o->vm, o->vm->gone);
        if (o->vm->gone)
            change_ports(ch, o->vm, true);
        change_state_event(ch, o->vm, NULL, o->vm->owes_event ? o->vm->owed_from : o->vm->pub_state, "written late");
    }
    change_commit(ch, owed_written, list);
}

void owed_drop(struct core *core)
{
    owed_free(core->owed);
    core->owed = NULL;
}
