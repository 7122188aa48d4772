/* trace.c - the traces that a survey brings: their memory. */
#include "backend/backend.h"

#include "base/mem.h"

void backend_trace_free(struct backend_trace *list)
{
    for (struct backend_trace *t = list, *next; t != NULL; t = next) {
        next = t->next;
        if (t->manifest != NULL)
            vm_done(t->manifest);
        mem_free(t->manifest);
        mem_free(t->what);
        error_done(&t->failure);
        mem_free(t);
    }
}
