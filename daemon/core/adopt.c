/* adopt.c - taking VMs back that no row knows, or whose row says that they are at rest while their QEMU lives.
 *
 *     a survey made now ─► for each id: row or manifest ─► registry, ports, address ─► the backend adopts its process
 *                                                            └─ no process: stopped ─┴─► durable ─► answered
 *
 * Failure modes, each the item's own: nobody has heard of the id, its name or a port of it is another VM's, something is under
 * way on it: refused, nothing changed.  The disk refuses: a VM without a row is let go again (its process runs on). */
#include "core/leaks.h"

#include <stdio.h>
#include <string.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/mem.h"
#include "base/problem.h"
#include "core/ops/ops.h"

struct adoption {
    struct adopting *a; /* NULL: the core is freed */
    size_t index;
    struct live_vm *vm; /* referenced */
    bool is_new;        /* no row knew it */
    int64_t born;       /* its process, wall ms */
    struct backend_adoption found;
    struct backend_call call;
};

struct adopting {
    struct adopting *next; /* in the core's list */
    struct core *core;
    char *request_id;
    char **ids;
    size_t n;
    struct leaks_wait *wait;
    char **items; /* one for each id, as text; NULL: not settled yet */
    size_t pending;
    size_t at; /* the next to begin */
    struct loop_task task;
    struct adoption *one; /* one for each id */
    void (*done)(void *arg, char *answer, struct error *err);
    void *arg;
};

enum { AT_ONCE = 16 }; /* begun in one turn of the loop */

static void adopting_free(struct adopting *a)
{
    for (size_t i = 0; a->ids != NULL && i < a->n; i++)
        mem_free(a->ids[i]);
    for (size_t i = 0; a->items != NULL && i < a->n; i++)
        mem_free(a->items[i]);
    mem_free(a->ids);
    mem_free(a->one);
    mem_free(a->request_id);
    mem_free(a->items);
    mem_free(a);
}

static void adopting_unlink(struct adopting *a)
{
    struct adopting **p = &a->core->leaks->adoptings;

    while (*p != a)
        p = &(*p)->next;
    *p = a->next;
}

void adoptings_drop(struct core *core, struct error *why)
{
    for (struct adopting *a; (a = core->leaks->adoptings) != NULL;) {
        adopting_unlink(a);
        loop_revoke(core->loop, &a->task);
        for (size_t i = 0; i < a->n; i++)
            if (a->one[i].vm != NULL) {
                live_vm_detach(a->one[i].vm); /* silences its call */
                core_vm_unref(a->one[i].vm);
            }
        a->done(a->arg, NULL, why);
        adopting_free(a);
    }
}

/* --- the answer --- */

static void settle(struct adopting *a, size_t index, bool adopted, const struct live_vm *vm, const struct error *err)
{
    CLEANUP_BUF struct buf out = BUF_INIT(8 << 20);
    size_t len = 0;

    buf_str(&out, "{\"id\":");
    buf_json_str(&out, a->ids[index]);
    buf_printf(&out, ",\"adopted\":%s,\"vm\":", adopted ? "true" : "false");
    const char *doc = vm != NULL ? core_vm_doc(vm, &len) : NULL;
    if (doc != NULL)
        buf_append(&out, doc, len);
    else
        buf_str(&out, "null");
    buf_str(&out, ",\"error\":");
    if (err != NULL && error_is_set(err))
        error_problem(err, "/v1/host/adopt", a->request_id, &out);
    else
        buf_str(&out, "null");
    buf_char(&out, '}');
    a->items[index] = buf_take(&out, NULL);
    a->pending--;
}

static char *render(const struct adopting *a)
{
    CLEANUP_BUF struct buf out = BUF_INIT(256 << 20);

    buf_str(&out, "{\"items\":[");
    for (size_t i = 0; i < a->n; i++) {
        if (a->items[i] == NULL)
            return NULL;
        buf_str(&out, i > 0 ? "," : "");
        buf_str(&out, a->items[i]);
    }
    buf_str(&out, "]}");
    return buf_take(&out, NULL);
}

static void end_if_settled(struct adopting *a)
{
    CLEANUP_ERROR struct error err = ERROR_INIT;
    struct core *core = a->core;

    if (a->pending > 0)
        return;
    adopting_unlink(a);
    char *answer = render(a);
    if (answer == NULL)
        error_set(&err, ERR_DAEMON_OVERLOADED, "out of memory");
    a->done(a->arg, answer, &err);
    adopting_free(a);
    leaks_changed(core);
}

/* --- the end of one --- */

static void let_go(struct adoption *one)
{
    struct live_vm *vm = one->vm;

    vm->owed = false;
    live_vm_detach(vm);
    alloc_release(vm);
    registry_remove(vm);
}

static void adoption_durable(void *arg, struct error *err)
{
    struct adoption *one = arg;
    struct adopting *a = one->a;
    struct live_vm *vm = one->vm;
    bool failed = error_is_set(err);

    vm->settling = false;
    if (one->is_new && failed) {
        let_go(one);
    } else {
        vm->owed = vm->owed && !one->is_new;
        if (vm->op == NULL && vm->vm.state != VM_RUNNING && vm->vm.state != VM_SUSPENDED)
            live_vm_detach(vm);
        live_vm_told_late(vm);
        vm_waits_check(vm);
    }
    settle(a, one->index, !failed, failed && one->is_new ? NULL : vm, err);
    one->vm = NULL;
    core_vm_unref(vm);
    end_if_settled(a);
}

static void write_adoption(struct adoption *one, enum vm_state from)
{
    struct live_vm *vm = one->vm;
    bool runs = vm->vm.state == VM_RUNNING || vm->vm.state == VM_SUSPENDED;
    struct change *ch = change_new(one->a->core);

    LOG_INFO("VM adopted", "vm", vm->vm.name, "state", vm_state_text(vm->vm.state), "by",
             one->is_new ? "manifest" : "row", "request_id", one->a->request_id);
    vm->owed = vm->owed || one->is_new; /* it is not written later: it is let go when the disk refuses */
    policy_overruled(vm, ch, "adopt");
    change_vm(ch, vm, false);
    change_ports(ch, vm, false);
    change_event(ch, "vm.adopted", vm, NULL, one->a->request_id,
                 json_pack("{s:o,s:s}", "pid", runs ? json_integer(vm->vm.runtime.pid) : json_null(), "by",
                           one->is_new ? "manifest" : "row"));
    if (!one->is_new)
        change_state_event(ch, vm, NULL, from, "adopted");
    change_commit(ch, adoption_durable, one);
}

static void adoption_settle(struct adoption *one)
{
    struct live_vm *vm = one->vm;
    enum vm_state from = vm->vm.state;
    enum backend_found found = one->found.found;
    const struct backend_exit *end = &one->found.end;

    if (found == BACKEND_FOUND_RUNNING || found == BACKEND_FOUND_SUSPENDED) {
        vm->vm.state = found == BACKEND_FOUND_RUNNING ? VM_RUNNING : VM_SUSPENDED;
        if (vm->vm.runtime.started_at == 0)
            vm->vm.runtime.started_at = one->born;
        vm_failure_done(&vm->vm.failure);
        live_vm_conditions_booting(vm);
    } else {
        vm_runtime_stopped(&vm->vm.runtime);
        if (found == BACKEND_FOUND_ENDED) {
            vm->vm.state = end->end == BACKEND_END_GUEST_OFF ? VM_STOPPED : VM_FAILED;
            if (vm->vm.state == VM_FAILED)
                live_vm_set_end(vm, end);
        }
        if (vm->vm.conditions[VM_COND_READY].known)
            live_vm_conditions_down(vm, vm->vm.state == VM_FAILED ? "failed" : "stopped");
    }
    write_adoption(one, from);
}

static void process_adopted(struct backend_call *call, struct error *err)
{
    struct adoption *one = CONTAINER_OF(call, struct adoption, call);

    if (error_is_set(err))
        LOG_WARN("VM not adopted", "vm", one->vm->vm.name, "error", err->message);
    adoption_settle(one);
}

static void adopt_process(struct adoption *one)
{
    struct live_vm *vm = one->vm;
    CLEANUP_ERROR struct error err = ERROR_INIT;

    one->call.done = process_adopted;
    if (live_vm_attach(vm, &err) == 0 && vm->be->adopt(vm->bvm, &one->found, &one->call, &err) == OP_WAIT)
        return;
    process_adopted(&one->call, &err);
}

/* --- the beginning of one --- */

struct remains {
    const struct backend_trace *process;
    struct backend_trace *manifest;
    bool adoptable;
    const char *note;
};

static struct remains remains_of(struct core *core, const struct uuid *id)
{
    struct remains r = {0};

    for (size_t i = 0; i < core->leaks->list.n; i++) {
        const struct leak *leak = core->leaks->list.items[i];
        struct backend_trace *t = leak->trace;
        if (!leak->has_owner || leak->hidden || t == NULL || !uuid_equal(&leak->vm_id, id))
            continue;
        r.adoptable |= leak->adoptable;
        if (t->kind == BACKEND_TRACE_PROCESS)
            r.process = t;
        if (t->manifest != NULL && (r.manifest == NULL || t->manifest->revision > r.manifest->manifest->revision))
            r.manifest = t;
        if (t->note[0] != '\0')
            r.note = t->note;
    }
    return r;
}

static int check_new(struct core *core, const struct vm *vm, struct error *err)
{
    struct live_vm *holder = registry_by_name(core, vm->name);
    char id[UUID_TEXT_MAX];

    if (core->n_vms >= core->config.max_vms)
        return error_set(err, ERR_DAEMON_OVERLOADED, "there are %zu VMs, the limit", core->n_vms);
    if (holder == NULL)
        return 0;
    error_set(err, ERR_VM_ALREADY_EXISTS, "another VM is named %s by now", vm->name);
    error_help(err, "destroy or keep the one, then adopt the other: names cannot be changed");
    error_ctx_str(err, "vm", vm->name);
    error_ctx_str(err, "vm_id", uuid_text(&holder->vm.id, id));
    return -1;
}

/* A VM by its manifest: at rest until its process is found. */
static struct live_vm *bring_back(struct core *core, const struct remains *r, struct error *err)
{
    struct vm *vm = r->manifest->manifest;
    struct backend *be = r->manifest->be;

    if (check_new(core, vm, err) < 0)
        return NULL;
    vm->backend = be->name;
    vm->state = VM_STOPPED; /* whether it ever ran, its manifest does not tell for sure */
    struct live_vm *live = registry_add(core, vm, be, err);
    if (live == NULL)
        return NULL;
    mem_free(TAKE_PTR(r->manifest->manifest)); /* what it held was moved */
    image_reuse(live);
    if (r->process == NULL)
        alloc_renew(live);
    if (alloc_vm(live, false, err) == 0)
        return live;
    alloc_release(live);
    registry_remove(live);
    return NULL;
}

static int not_found(const char *id, const struct remains *r, struct error *err)
{
    error_set(err, ERR_VM_NOT_FOUND, "there is no VM %s to adopt", id);
    if (r != NULL && r->note != NULL)
        error_cause(err, "%s", r->note);
    error_help(err, "`vmctl doctor` shows what there is on this host");
    error_ctx_str(err, "vm", id);
    return -1;
}

static int busy(const struct live_vm *vm, struct error *err)
{
    error_set(err, ERR_VM_BUSY, "something is under way on VM %s", vm->vm.name);
    error_ctx_str(err, "vm", vm->vm.name);
    if (vm->op != NULL)
        error_ctx_str(err, "operation", vm->op->res->id);
    return -1;
}

/* 1: begun; 0: there is nothing to adopt, vmmd has it; -1: refused. */
static int begin(struct adopting *a, size_t index, struct live_vm **ret, struct error *err)
{
    struct core *core = a->core;
    struct adoption *one = &a->one[index];
    struct uuid id;

    if (!uuid_parse(a->ids[index], &id))
        return not_found(a->ids[index], NULL, err);
    struct live_vm *vm = registry_by_id(core, a->ids[index]);
    const char *destroyed = vm == NULL ? tombstone_find(core, &id) : NULL;
    struct remains r = remains_of(core, &id);
    if (destroyed != NULL) {
        error_set(err, ERR_LIFECYCLE_DESTROYED, "VM %s (%s) was destroyed", destroyed, a->ids[index]);
        error_help(err, "what is left of it is removed by `vmctl doctor --reap`");
        return -1;
    }
    if (vm != NULL && (leaks_vm_busy(vm) || !vm->visible))
        return busy(vm, err);
    *ret = vm;
    if (vm != NULL && (r.process == NULL || !r.adoptable))
        return 0;
    one->is_new = vm == NULL;
    if (vm == NULL && r.manifest == NULL)
        return not_found(a->ids[index], &r, err);
    if (vm == NULL && (vm = bring_back(core, &r, err)) == NULL)
        return -1;
    one->a = a;
    one->index = index;
    one->born = r.process != NULL ? r.process->born : 0;
    one->vm = core_vm_ref(vm);
    vm->settling = true;
    if (r.process != NULL)
        adopt_process(one);
    else
        adoption_settle(one);
    return 1;
}

/* A few at a time: a thousand would hold up everybody else. */
static void begin_some(struct loop_task *task)
{
    struct adopting *a = CONTAINER_OF(task, struct adopting, task);

    for (size_t i = 0; i < AT_ONCE && a->at < a->n; i++) {
        CLEANUP_ERROR struct error err = ERROR_INIT;
        struct live_vm *vm = NULL;
        size_t index = a->at++;

        if (begin(a, index, &vm, &err) <= 0)
            settle(a, index, false, vm, &err);
    }
    if (a->at < a->n) {
        loop_defer(a->core->loop, &a->task);
        return;
    }
    a->core->leaks->pinned--;
    a->core->leaks->begun = 0;
    loop_defer(a->core->loop, &a->core->leaks->task); /* others may wait for a survey */
    a->pending--;
    end_if_settled(a);
}

static void adopt_fresh(void *arg, struct error *err)
{
    struct adopting *a = arg;

    a->wait = NULL;
    if (error_is_set(err) || a->core->stopping) {
        error_set(err, ERR_DAEMON_SHUTTING_DOWN, "vmmd is stopping and takes no changes");
        adopting_unlink(a);
        a->done(a->arg, NULL, err);
        adopting_free(a);
        return;
    }
    a->pending = a->n + 1;
    a->core->leaks->pinned++; /* what is adopted is looked up in the list of this survey */
    begin_some(&a->task);
}

int core_adopt(struct core *core, const char *request_id, const char *const *ids, size_t n,
               void (*done)(void *arg, char *answer, struct error *err), void *arg, struct error *err)
{
    struct adopting *a = core->stopping ? NULL : mem_zalloc(sizeof(*a));
    bool ok = a != NULL;

    if (core->stopping)
        return error_set(err, ERR_DAEMON_SHUTTING_DOWN, "vmmd is stopping and takes no changes");
    if (ok) {
        *a = (struct adopting){.core = core, .n = n, .done = done, .arg = arg, .task.run = begin_some};
        a->items = mem_zalloc((n + 1) * sizeof(char *));
        a->ids = mem_zalloc((n + 1) * sizeof(char *));
        a->one = mem_zalloc((n + 1) * sizeof(*a->one));
        a->request_id = mem_strdup(request_id != NULL ? request_id : "");
        ok = a->items != NULL && a->ids != NULL && a->one != NULL && a->request_id != NULL;
    }
    for (size_t i = 0; ok && i < n; i++) {
        a->ids[i] = mem_strdup(ids[i]);
        ok = a->ids[i] != NULL;
    }
    if (ok)
        a->wait = leaks_fresh(core, 0, adopt_fresh, a, err);
    if (ok && a->wait != NULL) {
        a->next = core->leaks->adoptings;
        core->leaks->adoptings = a;
        return 0;
    }
    if (a != NULL)
        adopting_free(a);
    return error_set(err, ERR_DAEMON_OVERLOADED, "out of memory");
}
