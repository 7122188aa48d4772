/* leaks_judge.c - a survey against the rows: what of all that is there does nobody own?
 *
 *     the VM has something under way, or had while the survey was made ─► hidden: not judged now
 *     the VM runs          its process, directories and tap are its own; a second process is a leftover
 *     the VM is at rest    a process, runtime directory or tap of it is a leftover; with the process it is adoptable
 *     no VM is this one    destroyed: a leftover; with a manifest: adoptable; else a leftover without an owner
 *
 * Pure but for the survey's traces, which the list points at. */
#include "core/leaks.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/mem.h"
#include "model/digest.h"

/* What the traces say of one VM together. */
struct vm_seen {
    struct uuid id;
    pid_t pid; /* of its process; 0: none was seen */
    const struct vm *manifest;
    const char *note;
};

struct judge {
    struct survey *s;
    struct core *core;
    struct vm_seen *seen; /* sorted */
    size_t n_seen;
    struct leak_list *list;
    bool failed;
};

bool leaks_vm_busy(const struct live_vm *vm)
{
    return vm->op != NULL || vm->op_next != NULL || vm->settling || !vm->visible || vm->vm.state == VM_PREPARING;
}

static int compare_uuid(const void *a, const void *b)
{
    return memcmp(a, b, sizeof(struct uuid));
}

static const struct known_vm *known_find(const struct survey *s, const struct uuid *id)
{
    return bsearch(id, s->known, s->n_known, sizeof(*s->known), compare_uuid); /* the id is its first member */
}

/* --- all that was seen of a VM --- */

static int compare_seen(const void *a, const void *b)
{
    return compare_uuid(&((const struct vm_seen *)a)->id, &((const struct vm_seen *)b)->id);
}

static struct vm_seen *seen_find(const struct judge *j, const struct uuid *id)
{
    return bsearch(id, j->seen, j->n_seen, sizeof(*j->seen), compare_uuid);
}

static int gather(struct judge *j)
{
    size_t n = 0, kept = 0;

    for (const struct backend_trace *t = j->s->traces; t != NULL; t = t->next)
        n += t->has_vm;
    j->seen = mem_zalloc((n + 1) * sizeof(*j->seen));
    if (j->seen == NULL)
        return -1;
    for (const struct backend_trace *t = j->s->traces; t != NULL; t = t->next)
        if (t->has_vm)
            j->seen[j->n_seen++].id = t->vm_id;
    qsort(j->seen, j->n_seen, sizeof(*j->seen), compare_seen);
    for (size_t i = 0; i < j->n_seen; i++)
        if (i == 0 || !uuid_equal(&j->seen[i].id, &j->seen[kept - 1].id))
            j->seen[kept++] = j->seen[i];
    j->n_seen = kept;
    for (const struct backend_trace *t = j->s->traces; t != NULL; t = t->next) {
        struct vm_seen *v = t->has_vm ? seen_find(j, &t->vm_id) : NULL;
        if (v == NULL)
            continue;
        if (t->kind == BACKEND_TRACE_PROCESS)
            v->pid = t->proc.pid;
        if (t->manifest != NULL && (v->manifest == NULL || t->manifest->revision > v->manifest->revision))
            v->manifest = t->manifest;
        if (t->note[0] != '\0')
            v->note = t->note;
    }
    return 0;
}

/* --- one leftover --- */

static struct leak *add(struct judge *j, enum leak_kind kind, const char *what)
{
    struct leak_list *list = j->list;
    struct leak *leak = mem_zalloc(sizeof(*leak));

    if (leak != NULL)
        leak->what = mem_strdup(what);
    if (leak != NULL && leak->what != NULL && list->n == list->cap) {
        size_t cap = list->cap > 0 ? list->cap * 2 : 16;
        struct leak **grown = mem_realloc(list->items, cap * sizeof(struct leak *));
        if (grown != NULL) {
            list->items = grown;
            list->cap = cap;
        }
    }
    if (leak == NULL || leak->what == NULL || list->n == list->cap) {
        if (leak != NULL)
            mem_free(leak->what);
        mem_free(leak);
        j->failed = true;
        return NULL;
    }
    list->items[list->n++] = leak;
    leak->kind = kind;
    leak->size = -1;
    leak->since = j->s->at;
    return leak;
}

static void name_it(struct leak *leak, uint64_t start_ticks)
{
    char text[1100], digest[DIGEST_TEXT_MAX];

    snprintf(text, sizeof(text), "%d %llu %.1000s", (int)leak->kind, (unsigned long long)start_ticks, leak->what);
    snprintf(leak->id, sizeof(leak->id), "%.16s", digest_sha256(text, strlen(text), digest));
}

static struct leak *add_trace(struct judge *j, struct backend_trace *t)
{
    struct leak *leak = add(j, (enum leak_kind)t->kind, t->what);

    if (leak == NULL)
        return NULL;
    name_it(leak, t->proc.start_ticks);
    leak->trace = t;
    leak->pid = t->kind == BACKEND_TRACE_PROCESS ? t->proc.pid : 0;
    leak->has_owner = t->has_vm;
    leak->vm_id = t->vm_id;
    leak->size = t->size;
    if (t->born > 0 && t->born <= clock_wall_ms()) /* it may be younger than the look's begin */
        leak->since = t->born;
    return leak;
}

static void set_name(struct leak *leak, const char *name)
{
    snprintf(leak->vm_name, sizeof(leak->vm_name), "%s", name);
}

/* --- whose VM lives --- */

static bool owns(const struct live_vm *vm, const struct backend_trace *t)
{
    bool runs = vm->vm.state == VM_RUNNING || vm->vm.state == VM_SUSPENDED;

    switch (t->kind) {
    case BACKEND_TRACE_PROCESS:
        return runs && vm->vm.runtime.pid == t->proc.pid;
    case BACKEND_TRACE_RUNTIME_DIR:
    case BACKEND_TRACE_TAP:
        return runs;
    case BACKEND_TRACE_DATA_DIR:
        return true;
    case BACKEND_TRACE_SOCKET:
    case BACKEND_TRACE_FILE:
        return false;
    }
    return false;
}

static void judge_living(struct judge *j, struct backend_trace *t, const struct live_vm *vm, bool unsteady)
{
    const struct vm_seen *seen = seen_find(j, &t->vm_id);
    bool runs = vm->vm.state == VM_RUNNING || vm->vm.state == VM_SUSPENDED;

    if (owns(vm, t))
        return;
    struct leak *leak = add_trace(j, t);
    if (leak == NULL)
        return;
    const char *state = vm_state_text(vm->vm.state);
    set_name(leak, vm->vm.name);
    leak->hidden = unsteady;
    leak->adoptable = !runs && seen->pid != 0 && t->kind != BACKEND_TRACE_FILE && t->kind != BACKEND_TRACE_SOCKET;
    if (t->kind == BACKEND_TRACE_FILE || t->kind == BACKEND_TRACE_SOCKET)
        snprintf(leak->reason, sizeof(leak->reason), "nobody is writing it any more");
    else if (runs)
        snprintf(leak->reason, sizeof(leak->reason), "VM %s has another process, pid %d", vm->vm.name,
                 (int)vm->vm.runtime.pid);
    else if (leak->adoptable)
        snprintf(leak->reason, sizeof(leak->reason), "VM %s is %s by its row, but its QEMU (pid %d) lives", vm->vm.name,
                 state, (int)seen->pid);
    else
        snprintf(leak->reason, sizeof(leak->reason), "VM %s is %s and needs it no more", vm->vm.name, state);
}

/* --- whose VM does not --- */

static void judge_unknown(struct judge *j, struct backend_trace *t)
{
    const char *destroyed = tombstone_find(j->core, &t->vm_id);
    const struct vm_seen *seen = seen_find(j, &t->vm_id);
    struct leak *leak = add_trace(j, t);

    if (leak == NULL)
        return;
    if (destroyed != NULL) {
        set_name(leak, destroyed);
        snprintf(leak->reason, sizeof(leak->reason), "VM %s was destroyed", destroyed);
    } else if (seen->manifest != NULL && t->kind != BACKEND_TRACE_FILE && t->kind != BACKEND_TRACE_SOCKET) {
        set_name(leak, seen->manifest->name);
        leak->adoptable = true;
        snprintf(leak->reason, sizeof(leak->reason), "the database does not know VM %s; its manifest does",
                 seen->manifest->name);
    } else {
        snprintf(leak->reason, sizeof(leak->reason), "the database does not know its VM%s%s",
                 seen->note != NULL ? ", and " : "", seen->note != NULL ? seen->note : "");
    }
}

static void judge_trace(struct judge *j, struct backend_trace *t)
{
    char id[UUID_TEXT_MAX];
    const struct known_vm *known = t->has_vm ? known_find(j->s, &t->vm_id) : NULL;
    const struct live_vm *vm = t->has_vm ? registry_by_id(j->core, uuid_text(&t->vm_id, id)) : NULL;

    if (!t->has_vm) {
        struct leak *leak = add_trace(j, t);
        if (leak != NULL)
            snprintf(leak->reason, sizeof(leak->reason), "it belongs to no VM%s%s", t->note[0] != '\0' ? "; " : "",
                     t->note);
        return;
    }
    if (vm != NULL)
        judge_living(j, t, vm, known == NULL || known->busy || known->revision != vm->vm.revision || leaks_vm_busy(vm));
    else if (known == NULL) /* else it was destroyed meanwhile */
        judge_unknown(j, t);
}

/* --- ports --- */

static void judge_ports(struct judge *j)
{
    char id[UUID_TEXT_MAX];

    for (const struct orphan_port *p = j->s->ports; p != NULL; p = p->next) {
        if (registry_by_id(j->core, uuid_text(&p->vm_id, id)) != NULL)
            continue;
        struct leak *leak = add(j, LEAK_PORT, p->text);
        if (leak == NULL)
            return;
        name_it(leak, 0);
        leak->has_owner = true;
        leak->vm_id = p->vm_id;
        set_name(leak, p->vm_name);
        snprintf(leak->reason, sizeof(leak->reason), "the database keeps it for a VM that is destroyed");
    }
}

static int compare_leaks(const void *a, const void *b)
{
    const struct leak *x = *(struct leak *const *)a, *y = *(struct leak *const *)b;

    return x->kind != y->kind ? (x->kind < y->kind ? -1 : 1) : strcmp(x->what, y->what);
}

int leaks_judge(struct survey *s, struct leak_list *ret)
{
    struct judge j = {.s = s, .core = s->core, .list = ret};

    if (gather(&j) < 0)
        return -1;
    for (struct backend_trace *t = s->traces; t != NULL; t = t->next)
        if (!t->lacks_manifest)
            judge_trace(&j, t);
    judge_ports(&j);
    mem_free(j.seen);
    if (ret->n > 0)
        qsort(ret->items, ret->n, sizeof(ret->items[0]), compare_leaks);
    return j.failed ? -1 : 0;
}
