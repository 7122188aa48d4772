/* nothing.c - an operation that asks for what already is.
 *
 * Happy path: its row is written as succeeded, then it is published.  Failure modes: the disk refuses: it is refused,
 * and its key is free again. */
#include "base/mem.h"
#include "core/ops/image_op.h"
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

/* `res` and `result` are taken over. */
static int begin_nothing(struct nothing *n, struct change *ch, struct operation *res, json_t *result,
                         const struct core_request *req, struct operation **ret, struct error *err)
{
    if (n != NULL)
        n->res = res;
    if (n == NULL || ch == NULL || res == NULL || !nothing_key(n, ch, req)) {
        change_drop(ch);
        operation_unref(res);
        json_decref(result);
        if (n != NULL) {
            core_vm_unref(n->vm);
            mem_free(n->key);
        }
        mem_free(n);
        return error_set(err, ERR_DAEMON_OVERLOADED, "out of memory");
    }
    res->state = OPERATION_SUCCEEDED;
    res->cancellable = false;
    res->finished_at = res->created_at;
    res->method = "none";
    res->result = result;
    change_operation(ch, res);
    /* It was to be started again, and is not. */
    if (n->vm != NULL && !n->vm->gone && policy_overruled(n->vm, ch, res->kind))
        change_vm(ch, n->vm, false);
    *ret = res;
    change_commit(ch, nothing_durable, n);
    return 0;
}

int vm_op_nothing(struct live_vm *vm, const struct core *core, const char *kind, const struct core_request *req,
                  struct operation **ret, struct error *err)
{
    struct nothing *n = mem_zalloc(sizeof(*n));
    struct change *ch = n != NULL ? change_new(vm->core) : NULL;
    struct operation *res = ch != NULL ? operation_new((struct core *)(uintptr_t)core, kind, vm, req, err) : NULL;

    if (n != NULL)
        n->vm = core_vm_ref(vm);
    return begin_nothing(n, ch, res, vm->doc != NULL ? json_loadb(vm->doc, vm->doc_len, 0, NULL) : NULL, req, ret, err);
}

int image_op_nothing(const struct live_image *image, const char *kind, const struct core_request *req,
                     struct operation **ret, struct error *err)
{
    struct nothing *n = mem_zalloc(sizeof(*n));
    struct change *ch = n != NULL ? change_new(image->core) : NULL;
    struct operation *res = ch != NULL ? operation_new_image(image->core, kind, image->image.name, req, err) : NULL;
    CLEANUP_BUF struct buf doc = BUF_INIT(64 << 20);

    core_image_render(image, &doc);
    return begin_nothing(n, ch, res, doc.failed ? NULL : json_loadb(doc.data, doc.len, 0, NULL), req, ret, err);
}
