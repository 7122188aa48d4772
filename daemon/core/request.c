/* request.c - the requests that begin operations: create and the verbs.
 *
 * Happy path: what is asked is checked against the spec, the VM's state and the host, then an operation begins (ops/begin.c).
 * Failure modes: a refusal, before anything has happened. */
#include <stdio.h>
#include <string.h>

#include "base/clock.h"
#include "base/limit.h"
#include "base/mem.h"
#include "core/exec.h"
#include "core/internal.h"
#include "core/ops/ops.h"
#include "model/fields.h"

int core_stopping_error(const struct core *core, struct error *err)
{
    return core->stopping ? error_set(err, ERR_DAEMON_SHUTTING_DOWN, "vmmd is stopping and takes no changes") : 0;
}

/* --- create --- */

static int parse_create(struct core *core, const json_t *body, struct vm *vm, struct backend **ret_be, bool *ret_start,
                        struct error *err)
{
    static const char *const names[] = {"name", "backend", "labels", "start", "spec", NULL};
    CLEANUP_FREE char *backend = NULL;
    struct fields f;

    if (fields_open(&f, body, "", names, err) < 0 || field_str(&f, "name", 255, &vm->name) < 0 ||
        field_str(&f, "backend", 32, &backend) < 0 || field_bool(&f, "start", ret_start) < 0)
        return -1;
    if (vm->name == NULL || !vm_name_valid(vm->name))
        return field_error(&f, "name", "1–63 characters a–z, 0–9 and -, beginning and ending with a letter or digit");
    const json_t *labels = field_get(&f, "labels"), *spec = field_get(&f, "spec");
    if (labels != NULL && vm_labels_parse(labels, "/labels", &vm->labels, err) < 0)
        return -1;
    *ret_be = core_backend(core, backend != NULL ? backend : "qemu");
    if (*ret_be == NULL && strcmp(backend, "propolis") == 0)
        return error_set(err, ERR_BACKEND_NOT_AVAILABLE, "backend propolis is not supported on this host");
    if (*ret_be == NULL) {
        field_error(&f, "backend", "qemu, noop or propolis");
        return -1;
    }
    json_t *empty = spec == NULL ? json_object() : NULL;
    int rc = vm_spec_parse(spec != NULL ? spec : empty, "/spec", &vm->spec, err);
    json_decref(empty);
    return rc;
}

static int check_new(struct core *core, const struct vm *vm, struct backend *be, struct error *err)
{
    if (core->n_vms >= core->config.max_vms)
        return limit_refuse(LIMIT_VMS, core->config.max_vms, err, "there are %zu VMs already", core->n_vms);
    struct live_vm *holder = registry_by_name(core, vm->name);
    if (holder != NULL) {
        char id[UUID_TEXT_MAX];
        error_set(err, ERR_VM_ALREADY_EXISTS, "a VM named %s exists", vm->name);
        error_ctx_str(err, "vm", vm->name);
        error_ctx_str(err, "vm_id", uuid_text(&holder->vm.id, id));
        return -1;
    }
    const char *name = vm->spec.image != NULL && vm->spec.image[0] != '/' ? vm->spec.image : NULL;
    const struct live_image *image = name != NULL ? core_image_find(core, name, err) : NULL;
    if (name != NULL && image == NULL)
        return -1;
    if (image != NULL && image->deleting) {
        error_set(err, ERR_IMAGE_NOT_FOUND, "image %s is being removed", name);
        error_ctx_str(err, "image", name);
        return -1;
    }
    return be->check(be, &vm->spec, err);
}

/* The files themselves are looked at by the operation: that may wait for a disk. */
static int check_peer(const struct core *core, const struct core_request *req, const struct vm_spec *spec,
                      struct error *err)
{
    bool over_tcp = req->peer != NULL && !req->peer->is_unix;

    if (over_tcp && spec->image_url != NULL && strncmp(spec->image_url, "file://", 7) == 0) {
        struct vm_spec paths = {.image = spec->image_url + 7};
        if (peer_check_dirs(&paths, core->config.image_dirs, err) < 0)
            return -1;
    }
    return over_tcp ? peer_check_dirs(spec, core->config.image_dirs, err) : 0;
}

int core_vm_create(struct core *core, const struct core_request *req, const json_t *body, struct operation **ret,
                   struct error *err)
{
    struct vm vm = {.state = VM_PREPARING, .generation = 1};
    struct live_vm *live = NULL;
    struct backend *be = NULL;
    bool start = false;

    if (core_stopping_error(core, err) < 0 || parse_create(core, body, &vm, &be, &start, err) < 0 ||
        check_peer(core, req, &vm.spec, err) < 0 || check_new(core, &vm, be, err) < 0)
        goto fail;
    vm.id = uuid_new();
    vm.backend = be->name;
    vm.created_at = clock_wall_ms();
    vm.updated_at = vm.created_at;
    live = registry_add(core, &vm, be, err);
    if (live == NULL)
        goto fail;
    if (alloc_vm(live, true, err) == 0 &&
        vm_op_begin(live, start ? &vm_create_start_plan : &vm_create_plan, req, NULL, false, ret, err) == 0)
        return 0;
    alloc_release(live);
    registry_remove(live);
    return -1;
fail:
    vm_done(&vm);
    return -1;
}
/* --- verbs --- */

int core_check_etag(const struct live_vm *vm, const char *if_match, struct error *err)
{
    char etag[32];

    if (if_match == NULL || strcmp(if_match, "*") == 0)
        return 0;
    snprintf(etag, sizeof(etag), "\"%lld\"", (long long)vm->pub_generation);
    for (const char *item = if_match; *item != '\0';) { /* one of a list is enough */
        item += strspn(item, " \t,");
        size_t len = strcspn(item, " \t,");
        if (len == strlen(etag) && strncmp(item, etag, len) == 0)
            return 0;
        item += len;
    }
    error_set(err, ERR_API_PRECONDITION_FAILED, "VM %s is at generation %s, not %.40s", vm->vm.name, etag, if_match);
    error_ctx_str(err, "vm", vm->vm.name);
    error_ctx_str(err, "etag", etag);
    return -1;
}

/* DELETE of an id that is a tombstone: nothing to do, told by an operation that has ended. */
static int destroy_again(struct core *core, const struct core_request *req, const char *ref, struct operation **ret,
                         struct error *err)
{
    struct vm vm = {.state = VM_DESTROYED, .backend = core->backend_names[0]};
    struct live_vm *ghost = mem_zalloc(sizeof(*ghost));

    if (ghost == NULL || !uuid_parse(ref, &vm.id) || (vm.name = mem_strdup(tombstone_find(core, &vm.id))) == NULL) {
        mem_free(ghost);
        return error_set(err, ERR_DAEMON_OVERLOADED, "out of memory");
    }
    *ghost = (struct live_vm){.vm = vm, .core = core, .refs = 1, .gone = true};
    int rc = vm_op_nothing(ghost, core, "vm.destroy", req, ret, err);
    core_vm_unref(ghost);
    return rc;
}

int core_vm_verb(struct core *core, const struct core_request *req, const char *ref, enum vm_verb verb,
                 const struct core_verb_args *args, const char *if_match, struct operation **ret, struct error *err)
{
    CLEANUP_ERROR struct error missing = ERROR_INIT;
    bool forced = verb == VM_KILL || verb == VM_DESTROY;
    struct live_vm *vm;

    if (core_stopping_error(core, err) < 0)
        return -1;
    vm = core_vm_find(core, ref, &missing);
    if (vm == NULL && verb == VM_DESTROY && missing.code == ERR_LIFECYCLE_DESTROYED)
        return destroy_again(core, req, ref, ret, err);
    if (vm == NULL) {
        error_move(err, &missing);
        return -1;
    }
    if (core_check_etag(vm, if_match, err) < 0)
        return -1;
    if (verb == VM_DESTROY && vm->vm.spec.protect) {
        error_set(err, ERR_VM_PROTECTED, "VM %s is protected against destroy", vm->vm.name);
        error_ctx_str(err, "vm", vm->vm.name);
        return -1;
    }
    bool held = vm->op != NULL && !vm->op->persisted;
    if (!held && vm_verb_satisfied(verb, vm->vm.state))
        return vm_op_nothing(vm, core, vm_plan_of(verb)->kind, req, ret, err);
    if (!held && (verb == VM_STOP || verb == VM_KILL) && policy_restart_waits(vm)) /* it stays down: that is all */
        return vm_op_nothing(vm, core, vm_plan_of(verb)->kind, req, ret, err);
    if (!held && !vm_verb_allowed(verb, vm->vm.state))
        return vm_state_error(verb, vm->vm.name, vm->vm.state, err);
    if (verb == VM_PROVISION) {
        if (!held && json_array_size(args->steps != NULL ? args->steps : vm->vm.spec.provision) == 0)
            return vm_op_nothing(vm, core, vm_plan_of(verb)->kind, req, ret, err);
        if (core_guest_check(vm, err) < 0)
            return -1;
    }
    return vm_op_begin(vm, vm_plan_of(verb), req, args, forced, ret, err);
}
