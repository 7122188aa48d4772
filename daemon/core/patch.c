/* patch.c - PATCH of labels and spec: memory at once, readers when it is durable, and back again where the disk refuses. */
#include <string.h>

#include "base/mem.h"
#include "core/internal.h"
#include "core/ops/ops.h"
#include "model/fields.h"

struct patch {
    struct patch *next; /* of the same VM */
    struct live_vm *vm;
    bool has_spec, has_labels;
    struct vm_spec spec; /* what it was, for a disk that refuses */
    struct vm_labels labels;
    int64_t generation;
    void (*done)(void *arg, struct live_vm *vm, struct error *err);
    void *arg;
};

/* What was before goes back to the VM; or to the next patch of the same, which stands on this one. */
static void patch_revert(struct patch *p)
{
    struct vm *vm = &p->vm->vm;
    struct vm_spec *spec = &vm->spec;
    struct vm_labels *labels = &vm->labels;
    int64_t *generation = &vm->generation;

    for (struct patch *n = p->next; n != NULL && spec == &vm->spec; n = n->next)
        if (n->has_spec) {
            spec = &n->spec;
            generation = &n->generation;
        }
    for (struct patch *n = p->next; n != NULL && labels == &vm->labels; n = n->next)
        if (n->has_labels)
            labels = &n->labels;
    if (p->has_spec) {
        struct vm_spec was = p->spec;
        p->spec = *spec;
        *spec = was;
        *generation = p->generation;
    }
    if (p->has_labels) {
        struct vm_labels was = p->labels;
        p->labels = *labels;
        *labels = was;
    }
}

static void patch_durable(void *arg, struct error *err)
{
    struct patch *p = arg;

    p->vm->patches = p->next; /* they become durable in order */
    if (error_is_set(err))
        patch_revert(p);
    else if (p->vm->be->manifest != NULL && !p->vm->gone)
        p->vm->be->manifest(p->vm->be, &p->vm->vm);
    p->done(p->arg, p->vm, err);
    vm_spec_done(&p->spec);
    vm_labels_done(&p->labels);
    core_vm_unref(p->vm);
    mem_free(p);
}

/* Fields of the spec that may change, and when. */
static const struct {
    const char *name;
    bool at_rest; /* only while the VM does not run */
} patchable[] = {{"vcpus", true},      {"memory_mb", true}, {"disk_gb", true}, {"restart", false},
                 {"autostart", false}, {"protect", false},  {"ttl_s", false}};

static int check_patch_field(const struct live_vm *vm, const char *name, struct error *err)
{
    char pointer[FIELD_POINTER_MAX];

    field_pointer(pointer, "/spec", name);
    for (size_t i = 0; i < ARRAY_SIZE(patchable); i++) {
        if (strcmp(patchable[i].name, name) != 0)
            continue;
        if (!patchable[i].at_rest)
            return 0;
        if (vm->op != NULL && !vm->op->persisted) {
            error_set(err, ERR_VM_BUSY, "VM %s is held by operation %s (%s)", vm->vm.name, vm->op->res->id,
                      vm->op->res->kind);
            error_ctx_str(err, "operation", vm->op->res->id);
            return -1;
        }
        if (vm->vm.state != VM_RUNNING && vm->vm.state != VM_SUSPENDED)
            return 0;
        static const char *const at_rest[] = {"prepared", "stopped", "failed", NULL};
        error_set(err, ERR_VM_INVALID_STATE, "VM %s is %s; a change of %s needs prepared, stopped or failed",
                  vm->vm.name, vm_state_text(vm->vm.state), name);
        error_help(err, "stop it first with `vmctl stop %s`", vm->vm.name);
        error_ctx_str(err, "vm", vm->vm.name);
        error_ctx_str(err, "current", vm_state_text(vm->vm.state));
        error_ctx_list(err, "expected", at_rest);
        return -1;
    }
    return field_pointer_error(err, pointer, "vcpus, memory_mb, disk_gb, restart, autostart, protect or ttl_s",
                               "%s cannot be changed after create", pointer);
}

/* RFC 7396 on one level: null removes, anything else replaces. */
static json_t *merged(json_t *target, const json_t *patch)
{
    const char *key;
    json_t *value;

    json_object_foreach((json_t *)patch, key, value)
    {
        if (json_is_null(value))
            json_object_del(target, key);
        else
            json_object_set(target, key, value);
    }
    return target;
}

static int patch_spec(struct live_vm *vm, const json_t *patch, struct vm_spec *ret, struct error *err)
{
    const char *key;
    json_t *value;

    if (!json_is_object(patch))
        return field_pointer_error(err, "/spec", "an object", "/spec must be an object");
    json_t *spec = vm_spec_json(&vm->vm.spec);
    if (spec == NULL)
        return error_set(err, ERR_DAEMON_OVERLOADED, "out of memory");
    json_object_foreach((json_t *)patch, key, value)
    {
        const json_t *now = json_object_get(spec, key);
        if (now != NULL && json_equal(now, value))
            continue;
        if (check_patch_field(vm, key, err) < 0) {
            json_decref(spec);
            return -1;
        }
    }
    int rc = vm_spec_parse(merged(spec, patch), "/spec", ret, err);
    json_decref(spec);
    if (rc < 0)
        return -1;
    if (vm->vm.spec.disk_gb > 0 && ret->disk_gb < vm->vm.spec.disk_gb)
        field_pointer_error(err, "/spec/disk_gb", "not less than it is", "/spec/disk_gb is %u and cannot shrink",
                            vm->vm.spec.disk_gb);
    else if (vm->be->check(vm->be, ret, err) == 0)
        return 0;
    vm_spec_done(ret);
    return -1;
}

static int patch_labels(const struct live_vm *vm, const json_t *patch, struct vm_labels *ret, struct error *err)
{
    if (!json_is_object(patch))
        return field_pointer_error(err, "/labels", "an object", "/labels must be an object");
    json_t *labels = vm_labels_json(&vm->vm.labels);
    if (labels == NULL)
        return error_set(err, ERR_DAEMON_OVERLOADED, "out of memory");
    int rc = vm_labels_parse(merged(labels, patch), "/labels", ret, err);
    json_decref(labels);
    return rc;
}

/* Steals both. */
static bool json_same(json_t *a, json_t *b)
{
    bool same = a != NULL && b != NULL && json_equal(a, b);

    json_decref(a);
    json_decref(b);
    return same;
}

int core_vm_patch(struct core *core, const struct core_request *req, const char *ref, const json_t *patch,
                  const char *if_match, void (*done)(void *arg, struct live_vm *vm, struct error *err), void *arg,
                  struct error *err)
{
    static const char *const names[] = {"labels", "spec", NULL};
    struct live_vm *vm = core_vm_find(core, ref, err);
    struct vm_spec spec;
    struct vm_labels labels;
    struct fields f;

    if (vm == NULL || core_stopping_error(core, err) < 0 || core_check_etag(vm, if_match, err) < 0 ||
        fields_open(&f, patch, "", names, err) < 0)
        return -1;
    if (vm->vm.state == VM_DESTROYED) { /* on its way to the store */
        error_set(err, ERR_LIFECYCLE_DESTROYED, "VM %s was destroyed", vm->vm.name);
        error_ctx_str(err, "vm", vm->vm.name);
        return -1;
    }
    bool has_labels = json_object_get(patch, "labels") != NULL, has_spec = json_object_get(patch, "spec") != NULL;
    if (has_spec && patch_spec(vm, json_object_get(patch, "spec"), &spec, err) < 0)
        return -1;
    if (has_labels && patch_labels(vm, json_object_get(patch, "labels"), &labels, err) < 0) {
        if (has_spec)
            vm_spec_done(&spec);
        return -1;
    }
    struct patch *p = mem_zalloc(sizeof(*p)), **end = &vm->patches;
    struct change *ch = p != NULL ? change_new(core) : NULL;
    if (ch == NULL) {
        mem_free(p);
        if (has_spec)
            vm_spec_done(&spec);
        if (has_labels)
            vm_labels_done(&labels);
        return error_set(err, ERR_DAEMON_OVERLOADED, "out of memory");
    }
    *p = (struct patch){.vm = core_vm_ref(vm),
                        .generation = vm->vm.generation,
                        .done = done,
                        .arg = arg,
                        .has_spec = has_spec,
                        .has_labels = has_labels};
    bool new_labels = has_labels && !json_same(vm_labels_json(&vm->vm.labels), vm_labels_json(&labels));
    bool new_spec = has_spec && !json_same(vm_spec_json(&vm->vm.spec), vm_spec_json(&spec));
    if (has_labels) {
        p->labels = vm->vm.labels;
        vm->vm.labels = labels;
    }
    if (has_spec) {
        vm->vm.generation += new_spec;
        p->spec = vm->vm.spec;
        vm->vm.spec = spec;
    }
    while (*end != NULL)
        end = &(*end)->next;
    *end = p;
    if (new_labels || new_spec) { /* one that changes nothing only waits for those before it */
        change_vm(ch, vm, false);
        change_event(ch, "vm.updated", vm, NULL, req->request_id,
                     json_pack("{s:I,s:b,s:b}", "generation", (json_int_t)vm->vm.generation, "labels", new_labels,
                               "spec", new_spec));
    }
    change_commit(ch, patch_durable, p);
    return 0;
}
