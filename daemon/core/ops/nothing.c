/* nothing.c - an operation that asks for what already is.
 *
 * Happy path: its row is written as succeeded, then it is published.  Failure modes: the disk refuses: it is refused,
 * and its key is free again. */
#include "base/mem.h"
#include "core/ops/ops.h"

struct nothing {
    struct operation *res;
    struct live_vm *vm;
    char *key;
};

static void nothing_durable(void *arg, struct error *err)
{
    struct nothing *n = arg;

    if (error_is_set(err)) {
        if (n->key != NULL)
            keys_remove(n->res->core, n->key);
        operation_refused(n->res, err);
    } else {
        operation_publish_end(n->res);
    }
    operation_unref(n->res);
    core_vm_unref(n->vm);
    mem_free(n->key);
    mem_free(n);
}

/* The key of an operation that has nothing to do. */
static bool nothing_key(struct nothing *n, struct change *ch, const struct core_request *req)
{
    if (req == NULL || req->idempotency_key == NULL)
        return true;
    n->key = mem_strdup(req->idempotency_key);
    if (n->key == NULL || keys_add(n->res->core, n->key, req->fingerprint, n->res->id, n->res->created_at) < 0)
        return false;
    change_key(ch, n->key, req->fingerprint, n->res->id, n->res->created_at);
    return true;
}

int vm_op_nothing(struct live_vm *vm, const struct core *core, const char *kind, const struct core_request *req,
                  struct operation **ret, struct error *err)
{
    struct nothing *n = mem_zalloc(sizeof(*n));
    struct change *ch = n != NULL ? change_new(vm->core) : NULL;

    if (ch != NULL)
        n->res = operation_new((struct core *)core, kind, vm, req, err);
    if (ch == NULL || n->res == NULL || !nothing_key(n, ch, req)) {
        change_drop(ch);
        if (n != NULL) {
            operation_unref(n->res);
            mem_free(n->key);
        }
        mem_free(n);
        return error_set(err, ERR_DAEMON_OVERLOADED, "out of memory");
    }
    n->vm = core_vm_ref(vm);
    n->res->state = OPERATION_SUCCEEDED;
    n->res->cancellable = false;
    n->res->finished_at = n->res->created_at;
    n->res->method = "none";
    n->res->result = vm->doc != NULL ? json_loadb(vm->doc, vm->doc_len, 0, NULL) : NULL;
    change_operation(ch, n->res);
    if (!vm->gone && policy_overruled(vm, ch, kind)) /* it was to be started again, and is not */
        change_vm(ch, vm, false);
    *ret = n->res;
    change_commit(ch, nothing_durable, n);
    return 0;
}
