/* vms.c - VMs: list, create, read, change, and the verbs. */
#include <stdio.h>
#include <string.h>

#include "base/buf.h"
#include "base/mem.h"
#include "base/str.h"
#include "model/fields.h"
#include "model/provision.h"
#include "rest/rest.h"

/* --- list --- */

struct filter_query {
    struct core *core;
    struct core_filter filter;
    struct error *err;
    char labels[16][300];
    int rc;
};

static bool read_filter(void *arg, const char *name, const char *value)
{
    struct filter_query *q = arg;
    enum vm_state state;

    if (strcmp(name, "state") == 0) {
        if (!vm_state_parse(value, &state)) {
            q->rc = field_pointer_error(q->err, "/state",
                                        "preparing, prepared, running, suspended, stopped, failed or destroyed",
                                        "\"%.40s\" is no state of a VM", value);
            return false;
        }
        q->filter.by_state = true;
        q->filter.states |= 1U << state;
    } else if (strcmp(name, "backend") == 0) {
        if (core_backend(q->core, value) == NULL && strcmp(value, "propolis") != 0) {
            q->rc = field_pointer_error(q->err, "/backend", "qemu, noop or propolis", "\"%.40s\" is no backend", value);
            return false;
        }
        q->filter.backend = value;
    } else if (strcmp(name, "name") == 0) {
        q->filter.name_glob = value;
    } else if (strcmp(name, "label") == 0) {
        char *copy = q->filter.n_labels < ARRAY_SIZE(q->labels) ? q->labels[q->filter.n_labels] : NULL;
        const char *equals = strchr(value, '=');
        if (copy == NULL || equals == NULL || equals == value || strlen(value) >= sizeof(q->labels[0])) {
            q->rc = field_pointer_error(q->err, "/label", "KEY=VALUE, at most 16 times",
                                        "the query's label must be KEY=VALUE, at most 16 times");
            return false;
        }
        snprintf(copy, sizeof(q->labels[0]), "%s", value);
        copy[equals - value] = '\0';
        q->filter.label_keys[q->filter.n_labels] = copy;
        q->filter.label_values[q->filter.n_labels++] = copy + (equals - value) + 1;
    }
    return true;
}

void rest_vms_list(struct http_request *req, void *arg)
{
    struct rest *rest = arg;
    CLEANUP_ERROR struct error err = ERROR_INIT;
    CLEANUP_FREE char *last = NULL;
    struct rest_page page;
    struct filter_query q = {.core = rest->core, .err = &err};

    http_query_each(req, read_filter, &q);
    if (q.rc < 0 || rest_page_begin(req, rest, &page, &err) < 0) {
        http_reply_error(req, &err);
        return;
    }
    core_vm_list(rest->core, &q.filter, page.from, page.limit, &page.items, &last, &err);
    rest_page_end(req, &page, last, &err);
    rest_page_done(&page);
}

/* --- one --- */

static void reply_vm(struct http_request *req, const struct live_vm *vm)
{
    size_t len;
    const char *doc = core_vm_doc(vm, &len);
    char etag[32];

    snprintf(etag, sizeof(etag), "\"%lld\"", (long long)core_vm_generation(vm));
    http_add_header(req, "ETag", etag);
    http_reply(req, 200, "application/json", doc, len);
}

void rest_vm_get(struct http_request *req, void *arg)
{
    struct rest *rest = arg;
    CLEANUP_ERROR struct error err = ERROR_INIT;
    struct live_vm *vm = core_vm_find(rest->core, req->params[0], &err);

    if (vm == NULL)
        http_reply_error(req, &err);
    else
        reply_vm(req, vm);
}

static int create(struct core *core, const struct core_request *req, const char *ref, const json_t *body,
                  struct operation **ret, struct error *err)
{
    (void)ref;
    return core_vm_create(core, req, body, ret, err);
}

void rest_vm_create(struct http_request *req, void *arg)
{
    rest_change(req, arg, create);
}

/* --- PATCH --- */

struct patching {
    struct http_request *req; /* NULL: the client left */
};

static void patch_left(void *arg, struct http_request *req)
{
    struct patching *p = arg;

    if (http_stopping(req)) /* it is being written: the answer says whether it is */
        http_on_gone(req, patch_left, p);
    else
        p->req = NULL;
}

static void patched(void *arg, struct live_vm *vm, struct error *err)
{
    struct patching *p = arg;

    if (p->req != NULL) {
        http_on_gone(p->req, NULL, NULL);
        if (error_is_set(err))
            http_reply_error(p->req, err);
        else
            reply_vm(p->req, vm);
    }
    mem_free(p);
}

void rest_vm_patch(struct http_request *req, void *arg)
{
    struct rest *rest = arg;
    CLEANUP_ERROR struct error err = ERROR_INIT;
    struct core_request creq = {.request_id = req->request_id};
    struct patching *p = mem_zalloc(sizeof(*p));
    json_t *body = rest_body(req, &err);

    if (p == NULL)
        error_set(&err, ERR_DAEMON_OVERLOADED, "out of memory");
    if (body == NULL || p == NULL) {
        mem_free(p);
        json_decref(body);
        http_reply_error(req, &err);
        return;
    }
    p->req = req;
    http_on_gone(req, patch_left, p);
    if (core_vm_patch(rest->core, &creq, req->params[0], body, http_header(req, "If-Match"), patched, p, &err) < 0) {
        http_on_gone(req, NULL, NULL);
        mem_free(p);
        http_reply_error(req, &err);
    }
    json_decref(body);
}

/* --- verbs --- */

static int verb_args(const json_t *body, enum vm_verb verb, struct core_verb_args *ret, struct error *err)
{
    static const char *const with_timeout[] = {"timeout_s", NULL}, *const with_steps[] = {"steps", NULL},
                             *const without[] = {NULL};
    bool takes_timeout = verb == VM_STOP || verb == VM_RESTART, takes_steps = verb == VM_PROVISION;
    json_t *checked = NULL;
    struct fields f;

    ret->timeout_s = -1;
    if (fields_open(&f, body, "", takes_timeout ? with_timeout : takes_steps ? with_steps : without, err) < 0)
        return -1;
    if (takes_timeout)
        return field_int(&f, "timeout_s", 0, 3600, &ret->timeout_s);
    if (!takes_steps || field_get(&f, "steps") == NULL)
        return 0;
    if (provision_parse(field_get(&f, "steps"), "/steps", &checked, err) < 0)
        return -1;
    json_decref(checked);
    ret->steps = field_get(&f, "steps");
    return 0;
}

static void verb(struct http_request *req, struct rest *rest, enum vm_verb verb)
{
    CLEANUP_ERROR struct error err = ERROR_INIT;
    char fingerprint[REST_FINGERPRINT_MAX];
    struct core_verb_args args = {.timeout_s = -1};
    struct core_request creq;
    struct core_peer peer;
    struct operation *op;
    struct live_vm *vm = NULL;
    CLEANUP_ERROR struct error missing = ERROR_INIT;
    json_t *body = verb == VM_DESTROY ? json_object() : rest_body(req, &err);

    if (body == NULL || verb_args(body, verb, &args, &err) < 0 ||
        rest_core_request(req, body, &creq, &peer, fingerprint, &err) < 0)
        goto refuse;
    int replay = rest_answer_replay(rest, req, &creq, &err);
    if (replay < 0)
        goto refuse;
    if (replay == 0) {
        vm = core_vm_find(rest->core, req->params[0], &missing);
        if (core_vm_verb(rest->core, &creq, req->params[0], verb, &args, http_header(req, "If-Match"), &op, &err) < 0)
            goto refuse;
        rest_answer_operation(rest, req, op, false, vm == NULL ? 200 : 0);
    }
    json_decref(body);
    return;
refuse:
    json_decref(body);
    http_reply_error(req, &err);
}

void rest_vm_destroy(struct http_request *req, void *arg)
{
    verb(req, arg, VM_DESTROY);
}

void rest_vm_start(struct http_request *req, void *arg)
{
    verb(req, arg, VM_START);
}

void rest_vm_stop(struct http_request *req, void *arg)
{
    verb(req, arg, VM_STOP);
}

void rest_vm_kill(struct http_request *req, void *arg)
{
    verb(req, arg, VM_KILL);
}

void rest_vm_restart(struct http_request *req, void *arg)
{
    verb(req, arg, VM_RESTART);
}

void rest_vm_reset(struct http_request *req, void *arg)
{
    verb(req, arg, VM_RESET);
}

void rest_vm_suspend(struct http_request *req, void *arg)
{
    verb(req, arg, VM_SUSPEND);
}

void rest_vm_resume(struct http_request *req, void *arg)
{
    verb(req, arg, VM_RESUME);
}

void rest_vm_provision(struct http_request *req, void *arg)
{
    verb(req, arg, VM_PROVISION);
}
