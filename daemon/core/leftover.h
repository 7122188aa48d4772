/* leftover.h - operations that the last daemon left unfinished, between recover.c and leftover.c. */
#ifndef CORE_LEFTOVER_H
#define CORE_LEFTOVER_H

#include "core/internal.h"

struct leftover {
    struct leftover *next;
    char *id, *kind, *vm_id;
    int64_t created_at;
    json_t *doc;
};

/* Reads them, with the steps that they are known to have taken.  Those of a living VM hang on it, the newest first; the
 * others are settled at once: their VM is gone. */
int leftovers_load(struct core *core, struct error *err);
void leftovers_free(struct leftover *list);

/* What became of it; `undone` says it where it did not reach its goal. */
struct leftover_end {
    bool finished;
    bool rolled_back; /* what its steps had made is gone again */
    const char *undone;
};

/* Adds its end to the change: document, event, and the key given back where it was interrupted.  vm NULL: it is gone. */
void leftover_end(struct core *core, struct change *ch, const struct live_vm *vm, struct leftover *l,
                  const struct leftover_end *end);

#endif
