/* core.c - the core's life, and the requests that change VMs: create, the verbs, PATCH. */
#include "core/core.h"

#include <stdio.h>
#include <string.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/mem.h"
#include "core/internal.h"
#include "core/ops/ops.h"
#include "model/fields.h"

enum { PRUNE_EVERY_MS = 600000 };

void core_config_defaults(struct core_config *config)
{
    *config = (struct core_config){
        .events_keep = 100000,
        .operations_keep_s = 86400,
        .tombstones_keep_s = 7 * 86400,
        .max_vms = 20000,
        .max_operations = 10000,
    };
}

static void lazy_over(void *arg)
{
    change_flush_lazy(arg);
}

void core_prune(struct core *core)
{
    int64_t now = clock_wall_ms(), keys = now - core->config.operations_keep_s * 1000;
    struct store_tx *tx = store_tx_new(core->store);

    operations_prune(core, keys);
    keys_prune(core, keys);
    tombstones_prune(core, now - core->config.tombstones_keep_s * 1000);
    store_prune(tx, keys, keys, now - core->config.tombstones_keep_s * 1000, core->config.events_keep);
    if (tx != NULL)
        store_commit(core->store, tx, NULL, NULL);
    int64_t oldest = core->event_newest - core->config.events_keep + 1;
    if (oldest > core->event_oldest)
        core->event_oldest = oldest;
}

static void prune_due(void *arg)
{
    core_prune(arg);
}

struct core *core_new(struct loop *loop, struct store *store, struct backend *const *backends,
                      const struct core_config *config, struct error *err)
{
    struct core *core = mem_zalloc(sizeof(*core));
    size_t n = 0;

    while (backends[n] != NULL)
        n++;
    if (core != NULL) {
        *core = (struct core){.loop = loop, .store = store, .backends = backends, .config = *config, .event_next = 1};
        core->backend_names = mem_zalloc((n + 1) * sizeof(char *));
        core->lazy_timer = timer_new(loop, lazy_over, core);
        core->prune_timer = timer_new(loop, prune_due, core);
        core->policy_timer = policy_timer_new(core);
        core->owed_timer = timer_new(loop, owed_due, core);
    }
    if (core == NULL || core->backend_names == NULL || core->lazy_timer == NULL || core->prune_timer == NULL ||
        core->policy_timer == NULL || core->owed_timer == NULL) {
        core_free(core);
        error_set(err, ERR_DAEMON_OVERLOADED, "out of memory");
        return NULL;
    }
    for (size_t i = 0; i < n; i++)
        core->backend_names[i] = backends[i]->name;
    timer_unref(core->prune_timer);
    timer_start(core->prune_timer, PRUNE_EVERY_MS, PRUNE_EVERY_MS);
    return core;
}

void core_free(struct core *core)
{
    if (core == NULL)
        return;
    loop_revoke(core->loop, &core->idle_task);
    vm_ops_park(core);
    vm_ops_drop(core);
    recoveries_drop(core);
    change_drop(core->lazy);
    owed_drop(core);
    events_free(core);
    operations_free(core);
    keys_free(core);
    alloc_free(core);
    registry_free(core);
    timer_free(core->lazy_timer);
    timer_free(core->prune_timer);
    timer_free(core->policy_timer);
    timer_free(core->owed_timer);
    timer_free(core->stop_timer);
    mem_free(core->backend_names);
    mem_free(core);
}

void core_store_ready(struct core *core)
{
    store_dispatch(core->store);
}

struct loop *core_loop(struct core *core)
{
    return core->loop;
}

struct store *core_store(struct core *core)
{
    return core->store;
}

bool core_stopping(const struct core *core)
{
    return core->stopping;
}

struct backend *core_backend(struct core *core, const char *name)
{
    for (size_t i = 0; core->backends[i] != NULL; i++)
        if (strcmp(core->backends[i]->name, name) == 0)
            return core->backends[i];
    return NULL;
}

struct backend *const *core_backends(struct core *core)
{
    return core->backends;
}

const struct core_config *core_get_config(const struct core *core)
{
    return &core->config;
}

static int stopping_error(const struct core *core, struct error *err)
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
        return error_set(err, ERR_DAEMON_OVERLOADED, "there are %zu VMs, the limit", core->n_vms);
    struct live_vm *holder = registry_by_name(core, vm->name);
    if (holder != NULL) {
        char id[UUID_TEXT_MAX];
        error_set(err, ERR_VM_ALREADY_EXISTS, "a VM named %s exists", vm->name);
        error_ctx_str(err, "vm", vm->name);
        error_ctx_str(err, "vm_id", uuid_text(&holder->vm.id, id));
        return -1;
    }
    if (vm->spec.image != NULL && vm->spec.image[0] != '/') {
        error_set(err, ERR_IMAGE_NOT_FOUND, "there is no image named %s", vm->spec.image);
        error_ctx_str(err, "image", vm->spec.image);
        return -1;
    }
    return be->check(be, &vm->spec, err);
}

/* The files themselves are looked at by the operation: that may wait for a disk. */
static int check_peer(const struct core *core, const struct core_request *req, const struct vm_spec *spec,
                      struct error *err)
{
    return req->peer != NULL && !req->peer->is_unix ? peer_check_dirs(spec, core->config.image_dirs, err) : 0;
}

int core_vm_create(struct core *core, const struct core_request *req, const json_t *body, struct operation **ret,
                   struct error *err)
{
    struct vm vm = {.state = VM_PREPARING, .generation = 1};
    struct live_vm *live = NULL;
    struct backend *be = NULL;
    bool start = false;

    if (stopping_error(core, err) < 0 || parse_create(core, body, &vm, &be, &start, err) < 0 ||
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

static int check_etag(const struct live_vm *vm, const char *if_match, struct error *err)
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

    if (stopping_error(core, err) < 0)
        return -1;
    vm = core_vm_find(core, ref, &missing);
    if (vm == NULL && verb == VM_DESTROY && missing.code == ERR_LIFECYCLE_DESTROYED)
        return destroy_again(core, req, ref, ret, err);
    if (vm == NULL) {
        error_move(err, &missing);
        return -1;
    }
    if (check_etag(vm, if_match, err) < 0)
        return -1;
    if (verb == VM_DESTROY && vm->vm.spec.protect) {
        error_set(err, ERR_VM_PROTECTED, "VM %s is protected against destroy", vm->vm.name);
        error_ctx_str(err, "vm", vm->vm.name);
        return -1;
    }
    bool held = vm->op != NULL && !vm->op->persisted;
    if (!held && vm_verb_satisfied(verb, vm->vm.state))
        return vm_op_nothing(vm, core, vm_plan_of(verb)->kind, req, ret, err);
    if (!held && !vm_verb_allowed(verb, vm->vm.state))
        return vm_state_error(verb, vm->vm.name, vm->vm.state, err);
    return vm_op_begin(vm, vm_plan_of(verb), req, args, forced, ret, err);
}

/* --- PATCH --- */

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

    if (vm == NULL || stopping_error(core, err) < 0 || check_etag(vm, if_match, err) < 0 ||
        fields_open(&f, patch, "", names, err) < 0)
        return -1;
    if (vm->vm.state == VM_DESTROYED) { /* on its way to the store */
        error_set(err, ERR_LIFECYCLE_DESTROYED, "VM %s was destroyed", vm->vm.name);
        error_ctx_str(err, "vm", vm->vm.name);
        return -1;
    }
    if (vm->vm.state == VM_DESTROYED) /* its tombstone is being written */
        return error_set(err, ERR_LIFECYCLE_DESTROYED, "VM %s is being destroyed", vm->vm.name);
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

/* --- the end --- */

void core_check_idle(struct core *core)
{
    if (core->stopped == NULL || core->n_changes > 0 || core->n_running > 0)
        return;
    if (core->lazy != NULL) { /* it asks again when it is written */
        change_flush_lazy(core);
        return;
    }
    loop_defer(core->loop, &core->idle_task);
}

static void idle(struct loop_task *task)
{
    struct core *core = CONTAINER_OF(task, struct core, idle_task);
    void (*stopped)(void *) = core->stopped;

    if (stopped == NULL || core->n_changes > 0)
        return;
    core->stopped = NULL;
    stopped(core->stopped_arg);
}

/* Operations that have not ended by now are given up where they stand: their rows say what to do at the next start. */
static void park_all(void *arg)
{
    struct core *core = arg;

    vm_ops_park(core);
    core_check_idle(core);
}

void core_abandon(struct core *core)
{
    core->stopping = true;
    core->stopped = NULL;
    core->recovered = NULL;
    vm_ops_park(core);
    change_flush_lazy(core);
}

void core_shutdown(struct core *core, int64_t grace_ms, void (*done)(void *arg), void *arg)
{
    core->stopping = true;
    core->stopped = done;
    core->stopped_arg = arg;
    core->idle_task.run = idle;
    change_flush_lazy(core);
    if (core->n_running > 0) {
        core->stop_timer = timer_new(core->loop, park_all, core);
        if (core->stop_timer != NULL)
            timer_start(core->stop_timer, grace_ms, 0);
        else
            park_all(core);
    }
    core_check_idle(core);
}
