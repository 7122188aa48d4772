/* begin.c - how an operation begins: the VM is held, or queued for; is there room? (create, start, restart); the intent is
 * written; then the table is walked.
 *
 * Failure modes: the VM is busy: 409, but kill and destroy cancel the holder and queue behind it; too much is under
 * way, or memory is short: 503; the disk has no room, or refuses the intent: refused, and nothing has happened. */
#include <stdio.h>
#include <string.h>

#include "base/clock.h"
#include "base/crash.h"
#include "base/limit.h"
#include "base/log.h"
#include "base/mem.h"
#include "core/leftover.h"
#include "core/ops/frame.h"

/* Not before there is a row that says why. */
static void cancel_holder(struct vm_op *vo)
{
    struct vm_op *holder = vo->vm->op;
    CLEANUP_ERROR struct error reason = ERROR_INIT;

    /* A second kill or destroy waits for the first: they ask for the same. */
    if (holder == NULL || holder->persisted || holder->plan == vo->plan)
        return;
    error_set(&reason, ERR_OPERATION_CANCELLED, "%s of VM %s was cancelled: %s was asked for", holder->plan->kind,
              vo->vm->vm.name, vo->plan->kind);
    vm_op_cancel(holder, &reason);
}
/* What a change takes in the database and its log, and a VM that runs in the runtime directory. */
enum { STORE_ROOM = 65536, RUN_ROOM = 65536, WRITTEN_TIMES = 4 };

static void intent_durable(void *arg, struct error *err)
{
    struct vm_op *vo = arg;
    struct live_vm *vm = vo->vm;

    if (!error_is_set(err)) {
        CRASH_POINT("op:%s:intent:durable", vo->plan->kind);
        operation_accepted(vo->res);
        if (vm->op == vo && !vo->parked)
            vm_op_walk(vo);
        else if (vm->op != vo)
            cancel_holder(vo);
        return;
    }
    operation_refused(vo->res, err);
    if (vo->key != NULL)
        keys_remove(vo->core, vo->key);
    if (vm->vm.has_operation && uuid_equal(&vm->vm.operation, &vo->res->uuid))
        vm->vm.has_operation = false;
    if (vo->plan->verb == VM_CREATE) {
        alloc_release(vm);
        registry_remove(vm);
    }
    if (vm->op != vo) {
        for (struct vm_op **p = &vm->op_next; *p != NULL; p = &(*p)->next)
            if (*p == vo) {
                *p = vo->next;
                break;
            }
    }
    vm_op_let_go(vo);
    if (vo->by_policy && vo->plan->verb == VM_START)
        policy_refused(vm, &vo->res->refusal);
    vm_op_begin_next(vm);
    vm_op_free(vo);
}

/* The frame around an operation, which it owns; NULL when memory is short. */
static struct vm_op *frame_new(struct live_vm *vm, const struct vm_plan *plan, struct operation *res, int64_t timeout_s)
{
    struct vm_op *vo = res != NULL ? mem_zalloc(sizeof(*vo)) : NULL;

    if (vo == NULL) {
        operation_unref(res);
        return NULL;
    }
    *vo = (struct vm_op){.core = vm->core, .vm = core_vm_ref(vm), .res = res, .plan = plan, .timeout_s = timeout_s};
    vo->all_next = vm->core->vm_ops;
    vo->all_at = &vm->core->vm_ops;
    if (vo->all_next != NULL)
        vo->all_next->all_at = &vo->all_next;
    vm->core->vm_ops = vo;
    vo->deadline_ms = plan->deadline_ms;
    if (plan->verb == VM_STOP || plan->verb == VM_RESTART) /* the guest's time, and ours */
        vo->deadline_ms += (vo->timeout_s >= 0 ? vo->timeout_s : STOP_TIMEOUT_S) * 1000;
    if (plan->verb == VM_CREATE && vm_spec_has_image(&vm->vm.spec)) /* a fetch takes what it takes */
        vo->deadline_ms +=
            vm->vm.spec.image_url != NULL || vm->vm.spec.image[0] != '/' ? vm->core->config.fetch_timeout_s * 1000 : 0;
    res->deadline = res->created_at + vo->deadline_ms;
    vm_op_build_steps(vo);
    return vo;
}

static struct vm_op *vm_op_new(struct live_vm *vm, const struct vm_plan *plan, const struct core_request *req,
                               const struct core_verb_args *args, struct error *err)
{
    struct vm_op *vo =
        frame_new(vm, plan, operation_new(vm->core, plan->kind, vm, req, err), args != NULL ? args->timeout_s : -1);

    if (vo == NULL) {
        error_set(err, ERR_DAEMON_OVERLOADED, "out of memory");
        return NULL;
    }
    if (plan->verb == VM_PROVISION) {
        vo->provision = provision_new(vo, args != NULL && args->steps != NULL ? args->steps : vm->vm.spec.provision);
        if (vo->provision == NULL) {
            vm_op_free(vo);
            error_set(err, ERR_DAEMON_OVERLOADED, "out of memory");
            return NULL;
        }
        vo->deadline_ms += provision_deadline_ms(vo->provision);
        vo->res->deadline = vo->res->created_at + vo->deadline_ms;
    }
    if (req != NULL && req->peer != NULL) {
        vo->peer_known = true;
        vo->peer = *req->peer;
    }
    if (req != NULL && req->idempotency_key != NULL) {
        vo->key = mem_strdup(req->idempotency_key);
        vo->fingerprint = mem_strdup(req->fingerprint);
        if (vo->key == NULL || vo->fingerprint == NULL ||
            keys_add(vm->core, vo->key, vo->fingerprint, vo->res->id, vo->res->created_at) < 0) {
            vm_op_free(vo);
            error_set(err, ERR_DAEMON_OVERLOADED, "out of memory");
            return NULL;
        }
    }
    return vo;
}

/* A step that may be skipped was, unless the event of its end says otherwise. */
static void take_over_step(struct vm_op *vo, unsigned i, const struct leftover *left)
{
    const json_t *step = json_array_get(json_object_get(left->doc, "steps"), i);
    const char *was = json_string_value(json_object_get(step, "state"));

    vo->res->steps[i].state = OP_STEP_DONE;
    vo->res->steps[i].ms = json_integer_value(json_object_get(step, "ms"));
    vo->res->steps[i].skipped = vo->plan->steps[i].skip != NULL && (was == NULL || strcmp(was, "done") != 0);
}

int vm_op_carry_on(struct live_vm *vm, const struct vm_plan *plan, const char *from, const struct leftover *left,
                   struct error *err)
{
    struct operation *res = operation_again(vm->core, plan->kind, vm, left->id, left->created_at, err);
    struct vm_op *vo = frame_new(vm, plan, res, -1);

    if (vo == NULL)
        return error_set(err, ERR_DAEMON_OVERLOADED, "out of memory");
    while (vo->first < plan->n_steps - 1 && strcmp(plan->steps[vo->first].name, from) != 0)
        take_over_step(vo, vo->first++, left);
    vo->res->deadline = clock_wall_ms() + vo->deadline_ms;
    vm->core->n_running++;
    vm->op = vo;
    LOG_INFO("operation carried on", "operation", left->id, "kind", plan->kind, "vm", vm->vm.name, "from", from);
    vm_op_walk(vo);
    return 0;
}

static bool let_go_soon(const struct live_vm *vm)
{
    return vm->op == NULL || vm->op->persisted;
}

static void write_intent(struct vm_op *vo, struct change *ch)
{
    struct live_vm *vm = vo->vm;

    change_frees(ch, vo->plan->verb);
    bool holds = vm->op == vo || (let_go_soon(vm) && vm->op_next == vo);
    if (holds) {
        vm->vm.has_operation = true;
        vm->vm.operation = vo->res->uuid;
    }
    if (holds || vo->overrules)
        change_vm(ch, vm, false);
    if (vo->plan->verb == VM_CREATE) {
        change_ports(ch, vm, false);
        change_event(ch, "vm.created", vm, vo->res, NULL, json_pack("{s:s}", "backend", vm->vm.backend));
    }
    change_operation(ch, vo->res);
    if (vo->key != NULL)
        change_key(ch, vo->key, vo->fingerprint, vo->res->id, vo->res->created_at);
    change_event(ch, "operation.started", vm, vo->res, NULL, json_pack("{s:s}", "kind", vo->res->kind));
    LOG_INFO("operation started", "operation", vo->res->id, "kind", vo->res->kind, "vm", vm->vm.name, "request_id",
             vo->res->request_id);
    CRASH_POINT("op:%s:intent:before", vo->plan->kind);
    change_commit(ch, intent_durable, vo);
}

static bool wants_room(enum vm_verb verb)
{
    return verb == VM_CREATE || verb == VM_START || verb == VM_RESTART;
}

/* The VM's document with the texts of its spec is written at the beginning and at the end, and once more as a result. */
static uint64_t store_room(const struct vm_spec *spec)
{
    const char *const texts[] = {spec->cloud_init.user_data, spec->cloud_init.vendor_data,
                                 spec->cloud_init.network_config};
    uint64_t room = STORE_ROOM;

    for (size_t i = 0; i < ARRAY_SIZE(texts); i++)
        room += texts[i] != NULL ? WRITTEN_TIMES * strlen(texts[i]) : 0;
    return room;
}

static uint64_t room_for(const struct vm_op *vo)
{
    struct backend *be = vo->vm->be;

    return store_room(&vo->vm->vm.spec) +
           (be->room != NULL ? be->room(be, &vo->vm->vm.spec, vo->plan->verb == VM_CREATE) : 0);
}

static void room_known(void *arg, struct error *err)
{
    struct vm_op *vo = arg;

    vo->disk_ask = NULL;
    if (error_is_set(err)) {
        intent_durable(vo, err);
        return;
    }
    vo->room = room_for(vo);
    if (!vo->parked)
        write_intent(vo, TAKE_PTR(vo->intent));
}

static int busy_error(const struct live_vm *vm, struct error *err)
{
    const struct operation *holder = vm->op->persisted ? vm->op_next->res : vm->op->res;

    error_set(err, ERR_VM_BUSY, "VM %s is held by operation %s (%s, %s)", vm->vm.name, holder->id, holder->kind,
              holder->step_begun ? holder->steps[holder->step].name : "beginning");
    error_help(err, "wait for it with `vmctl ops show %s`, or cancel it with `vmctl ops cancel %s`", holder->id,
               holder->id);
    error_ctx_str(err, "vm", vm->vm.name);
    error_ctx_str(err, "operation", holder->id);
    error_ctx_str(err, "kind", holder->kind);
    return -1;
}

/* Not even by one that has only its announcement before it: one call at a time is under way at the backend. */
static bool free_now(const struct live_vm *vm)
{
    return vm->op == NULL && vm->op_next == NULL;
}

static void enqueue(struct vm_op *vo)
{
    struct live_vm *vm = vo->vm;
    struct vm_op **end = &vm->op_next;

    while (*end != NULL)
        end = &(*end)->next;
    *end = vo;
}

static unsigned operations_of(const struct live_vm *vm)
{
    unsigned n = vm->op != NULL;

    for (const struct vm_op *vo = vm->op_next; vo != NULL; vo = vo->next)
        n++;
    return n;
}

unsigned core_vm_operation_count(const struct core *core)
{
    unsigned most = 0;

    for (const struct vm_op *vo = core->vm_ops; vo != NULL; vo = vo->all_next) {
        unsigned n = vo->vm->op == vo ? operations_of(vo->vm) : 1;
        most = n > most ? n : most;
    }
    return most;
}

/* What brings a VM up needs files; what takes one down is never refused for them. */
static unsigned files_of(const struct live_vm *vm, const struct vm_plan *plan)
{
    return plan->verb == VM_CREATE || plan->verb == VM_START || plan->verb == VM_RESTART ? vm->be->files : 0;
}

static int check_limits(const struct live_vm *vm, const struct vm_plan *plan, const struct core_request *req,
                        struct error *err)
{
    const struct core *core = vm->core;
    const struct core_config *c = &core->config;
    bool network = req != NULL && req->peer != NULL && !req->peer->is_unix;
    bool down = plan->verb == VM_STOP || plan->verb == VM_KILL || plan->verb == VM_DESTROY;

    if (core->n_running >= (network ? limit_share(c->max_operations) : c->max_operations))
        return limit_refuse(LIMIT_OPERATIONS, c->max_operations, err, "%u operations are under way", core->n_running);
    if (operations_of(vm) >= c->max_operations_per_vm)
        return limit_refuse(LIMIT_VM_OPERATIONS, c->max_operations_per_vm, err,
                            "VM %s has %u operations under way and waiting", vm->vm.name, operations_of(vm));
    if (!down && !limit_files_room(FILES_FOR_VMS, core->files_promised + files_of(vm, plan)))
        return limit_refuse(LIMIT_OPEN_FILES, limit_files_max(), err,
                            "vmmd has %u files open and keeps the rest for what runs: %s of VM %s was not begun",
                            limit_files_used(), plan->kind, vm->vm.name);
    return 0;
}

int vm_op_begin(struct live_vm *vm, const struct vm_plan *plan, const struct core_request *req,
                const struct core_verb_args *args, bool queue, struct operation **ret, struct error *err)
{
    if ((!let_go_soon(vm) || vm->op_next != NULL) && !queue)
        return busy_error(vm, err);
    if (check_limits(vm, plan, req, err) < 0)
        return -1;
    struct change *ch = change_new(vm->core); /* with it, a refusal comes on a later turn */
    struct vm_op *vo = ch != NULL ? vm_op_new(vm, plan, req, args, err) : NULL;
    if (vo == NULL) {
        change_drop(ch);
        error_set(err, ERR_DAEMON_OVERLOADED, "out of memory");
        return -1;
    }
    if ((plan == &vm_start_plan || plan == &vm_create_start_plan) && memory_promise(vo, err) < 0) {
        if (vo->key != NULL)
            keys_remove(vm->core, vo->key);
        vm_op_free(vo);
        change_drop(ch);
        return -1;
    }
    vm->core->n_running++;
    vo->by_policy = req == NULL;
    vo->files = files_of(vm, plan);
    vm->core->files_promised += vo->files;
    if (free_now(vm)) {
        vo->res->state = OPERATION_RUNNING;
        vm->op = vo;
    } else {
        enqueue(vo);
    }
    *ret = vo->res;
    vo->overrules = !vo->by_policy && policy_overruled(vm, ch, plan->kind);
    if (wants_room(plan->verb)) { /* short of memory it goes unasked */
        bool runs = plan != &vm_create_plan && vm->be->room != NULL;
        vo->disk_ask = disk_ask(vm->core, room_for(vo), runs ? RUN_ROOM : 0, room_known, vo);
        if (vo->disk_ask != NULL) {
            vo->intent = ch;
            return 0;
        }
    }
    write_intent(vo, ch);
    return 0;
}
