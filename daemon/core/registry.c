/* registry.c - the VMs in memory: by id, by name, and in order of names; and the ids of those destroyed. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "base/mem.h"
#include "base/str.h"
#include "core/internal.h"
#include "core/leftover.h"

struct tombstone {
    struct table_node node;
    struct uuid id;
    int64_t at;
    char name[64];
};

static bool id_equal(const struct table_node *node, const void *key)
{
    return uuid_equal(&CONTAINER_OF(node, struct live_vm, id_node)->vm.id, key);
}

static bool name_equal(const struct table_node *node, const void *key)
{
    return strcmp(CONTAINER_OF(node, struct live_vm, name_node)->vm.name, key) == 0;
}

static bool tombstone_equal(const struct table_node *node, const void *key)
{
    return uuid_equal(&CONTAINER_OF(node, struct tombstone, node)->id, key);
}

/* The index of the first VM whose name is not before `name`. */
static size_t order_index(const struct core *core, const char *name)
{
    size_t low = 0, high = core->n_vms;

    while (low < high) {
        size_t mid = low + (high - low) / 2;
        if (strcmp(core->by_order[mid]->vm.name, name) < 0)
            low = mid + 1;
        else
            high = mid;
    }
    return low;
}

static int order_insert(struct core *core, struct live_vm *vm)
{
    if (core->n_vms == core->cap_order) {
        size_t cap = core->cap_order > 0 ? core->cap_order * 2 : 64;
        struct live_vm **grown = mem_realloc(core->by_order, cap * sizeof(*grown));
        if (grown == NULL)
            return -1;
        core->by_order = grown;
        core->cap_order = cap;
    }
    size_t at = order_index(core, vm->vm.name);
    memmove(&core->by_order[at + 1], &core->by_order[at], (core->n_vms - at) * sizeof(core->by_order[0]));
    core->by_order[at] = vm;
    core->n_vms++;
    return 0;
}

struct live_vm *registry_add(struct core *core, struct vm *vm, struct backend *be, struct error *err)
{
    struct live_vm *live = mem_zalloc(sizeof(*live));

    if (live == NULL)
        goto no_memory;
    live->vm = *vm;
    live->core = core;
    live->refs = 1;
    live->be = be;
    live->pub_state = vm->state;
    live->pub_generation = vm->generation;
    if (table_add(&core->by_id, &live->id_node, uuid_hash(&vm->id)) < 0)
        goto no_memory;
    if (table_add(&core->by_name, &live->name_node, str_hash(vm->name)) < 0) {
        table_remove(&core->by_id, &live->id_node);
        goto no_memory;
    }
    if (order_insert(core, live) < 0) {
        table_remove(&core->by_id, &live->id_node);
        table_remove(&core->by_name, &live->name_node);
        goto no_memory;
    }
    *vm = (struct vm){0};
    return live;
no_memory:
    mem_free(live);
    error_set(err, ERR_DAEMON_OVERLOADED, "out of memory");
    return NULL;
}

void registry_remove(struct live_vm *vm)
{
    struct core *core = vm->core;

    if (vm->gone)
        return;
    vm->gone = true;
    size_t at = order_index(core, vm->vm.name);
    memmove(&core->by_order[at], &core->by_order[at + 1], (core->n_vms - at - 1) * sizeof(core->by_order[0]));
    core->n_vms--;
    table_remove(&core->by_id, &vm->id_node);
    table_remove(&core->by_name, &vm->name_node);
    image_unuse(vm);
    if (vm->visible && tombstone_add(core, &vm->vm.id, vm->vm.name, vm->vm.updated_at) < 0)
        LOG_WARN("no memory for a destroyed VM's id: it will answer 404 until the next start", "vm", vm->vm.name);
    core_vm_unref(vm);
}

int tombstone_add(struct core *core, const struct uuid *id, const char *name, int64_t at)
{
    struct tombstone *t = mem_zalloc(sizeof(*t));

    if (t == NULL)
        return -1;
    t->id = *id;
    t->at = at;
    snprintf(t->name, sizeof(t->name), "%s", name);
    if (table_add(&core->tombstones, &t->node, uuid_hash(id)) < 0) {
        mem_free(t);
        return -1;
    }
    return 0;
}

const char *tombstone_find(struct core *core, const struct uuid *id)
{
    struct table_node *node = table_find(&core->tombstones, uuid_hash(id), tombstone_equal, id);

    return node != NULL ? CONTAINER_OF(node, struct tombstone, node)->name : NULL;
}

struct prune {
    struct core *core;
    int64_t before;
};

static void prune_one(struct table_node *node, void *arg)
{
    struct prune *p = arg;
    struct tombstone *t = CONTAINER_OF(node, struct tombstone, node);

    if (t->at < p->before) {
        table_remove(&p->core->tombstones, node);
        mem_free(t);
    }
}

void tombstones_prune(struct core *core, int64_t before)
{
    struct prune p = {core, before};

    table_each(&core->tombstones, prune_one, &p);
}

struct live_vm *registry_by_name(struct core *core, const char *name)
{
    struct table_node *node = table_find(&core->by_name, str_hash(name), name_equal, name);

    return node != NULL ? CONTAINER_OF(node, struct live_vm, name_node) : NULL;
}

struct live_vm *registry_by_id(struct core *core, const char *text)
{
    struct uuid id;
    struct table_node *node = uuid_parse(text, &id) ? table_find(&core->by_id, uuid_hash(&id), id_equal, &id) : NULL;

    return node != NULL ? CONTAINER_OF(node, struct live_vm, id_node) : NULL;
}

struct live_vm *core_vm_find(struct core *core, const char *ref, struct error *err)
{
    struct uuid id;
    struct live_vm *vm = registry_by_id(core, ref);

    if (vm != NULL && vm->visible)
        return vm;
    if (uuid_parse(ref, &id)) { /* an id stays an id, also where a VM took it for its name */
        const char *name = tombstone_find(core, &id);
        if (name != NULL) {
            error_set(err, ERR_LIFECYCLE_DESTROYED, "VM %s (%s) was destroyed", name, ref);
            error_ctx_str(err, "vm", name);
            return NULL;
        }
    }
    vm = registry_by_name(core, ref);
    if (vm != NULL && vm->visible)
        return vm;
    error_set(err, ERR_VM_NOT_FOUND, "there is no VM %.100s", ref);
    error_ctx_str(err, "vm", ref);
    return NULL;
}

struct live_vm *core_vm_ref(struct live_vm *vm)
{
    vm->refs++;
    return vm;
}

void core_vm_unref(struct live_vm *vm)
{
    if (vm == NULL || --vm->refs > 0)
        return;
    live_vm_detach(vm);
    image_unuse(vm);
    vm_done(&vm->vm);
    mem_free(vm->doc);
    leftovers_free(vm->left);
    mem_free(vm);
}

int live_vm_attach(struct live_vm *vm, struct error *err)
{
    if (vm->bvm == NULL)
        vm->bvm = vm->be->attach(vm->be, &vm->vm, &live_vm_events, vm, err);
    return vm->bvm != NULL ? 0 : -1;
}

void live_vm_detach(struct live_vm *vm)
{
    if (vm->bvm != NULL)
        vm->be->detach(vm->bvm);
    vm->bvm = NULL;
}

const char *core_vm_doc(const struct live_vm *vm, size_t *ret_len)
{
    *ret_len = vm->doc_len;
    return vm->doc;
}

const struct vm *core_vm_data(const struct live_vm *vm)
{
    return &vm->vm;
}

int64_t core_vm_generation(const struct live_vm *vm)
{
    return vm->pub_generation;
}

struct backend *core_vm_backend(const struct live_vm *vm)
{
    return vm->be;
}

struct backend_vm *core_vm_attached(const struct live_vm *vm)
{
    return vm->bvm;
}

static bool filter_matches(const struct core_filter *f, const struct live_vm *vm)
{
    if (f->by_state && (f->states & (1U << vm->pub_state)) == 0)
        return false;
    if (f->backend != NULL && strcmp(f->backend, vm->vm.backend) != 0)
        return false;
    if (f->name_glob != NULL && !str_glob(f->name_glob, vm->vm.name))
        return false;
    for (unsigned i = 0; i < f->n_labels; i++) {
        const char *value = vm_label_get(&vm->vm.labels, f->label_keys[i]);
        if (value == NULL || strcmp(value, f->label_values[i]) != 0)
            return false;
    }
    return true;
}

int core_vm_list(struct core *core, const struct core_filter *filter, const char *after, unsigned limit,
                 struct buf *out, char **ret_last, struct error *err)
{
    size_t i = order_index(core, after);
    const struct live_vm *last = NULL;
    unsigned n = 0;

    *ret_last = NULL;
    for (; i < core->n_vms; i++) {
        const struct live_vm *vm = core->by_order[i];
        if (!vm->visible || strcmp(vm->vm.name, after) == 0 || !filter_matches(filter, vm))
            continue;
        if (n == limit) {
            *ret_last = mem_strdup(last->vm.name);
            break;
        }
        if (n > 0)
            buf_char(out, ',');
        buf_append(out, vm->doc, vm->doc_len);
        last = vm;
        n++;
    }
    if (out->failed || (i < core->n_vms && *ret_last == NULL))
        return error_set(err, ERR_DAEMON_OVERLOADED, "out of memory for the list; ask for a smaller limit");
    return 0;
}

unsigned core_vm_count(const struct core *core, unsigned by_state[VM_STATE_MAX])
{
    memset(by_state, 0, VM_STATE_MAX * sizeof(by_state[0]));
    for (size_t i = 0; i < core->n_vms; i++)
        by_state[core->by_order[i]->pub_state]++;
    return (unsigned)core->n_vms;
}

static void tombstone_free(struct table_node *node, void *arg)
{
    (void)arg;
    mem_free(CONTAINER_OF(node, struct tombstone, node));
}

void registry_free(struct core *core)
{
    for (size_t i = 0; i < core->n_vms; i++) {
        live_vm_detach(core->by_order[i]);
        core_vm_unref(core->by_order[i]);
    }
    core->n_vms = 0;
    mem_free(core->by_order);
    table_each(&core->tombstones, tombstone_free, NULL);
    table_done(&core->tombstones);
    table_done(&core->by_id);
    table_done(&core->by_name);
}
