/* wait.c - GET …/wait and GET …/explain: answers that come later. */
#include <string.h>

#include "base/buf.h"
#include "base/mem.h"
#include "model/fields.h"
#include "rest/rest.h"

struct waiting {
    struct http_request *req; /* NULL: the client left */
    struct vm_wait *wait;
};

static void wait_left(void *arg, struct http_request *req)
{
    struct waiting *w = arg;

    (void)req;
    core_vm_unwait(w->wait);
    mem_free(w);
}

static void wait_done(void *arg, struct live_vm *vm, struct error *err)
{
    struct waiting *w = arg;
    CLEANUP_BUF struct buf out = BUF_INIT(8 << 20);
    size_t len;
    const char *doc = core_vm_doc(vm, &len);

    http_on_gone(w->req, NULL, NULL);
    buf_str(&out, "{\"met\":true,\"vm\":");
    buf_append(&out, doc, len);
    buf_char(&out, '}');
    if (!error_is_set(err) && out.failed)
        error_set(err, ERR_DAEMON_OVERLOADED, "out of memory");
    if (error_is_set(err))
        http_reply_error(w->req, err);
    else
        http_reply(w->req, 200, "application/json", out.data, out.len);
    mem_free(w);
}

struct conditions {
    const char *texts[VM_WAIT_CONDITIONS_MAX];
    unsigned n;
    bool too_many;
};

static bool read_condition(void *arg, const char *name, const char *value)
{
    struct conditions *c = arg;

    if (strcmp(name, "for") != 0)
        return true;
    if (c->n == VM_WAIT_CONDITIONS_MAX)
        c->too_many = true;
    else
        c->texts[c->n++] = value;
    return !c->too_many;
}

void rest_vm_wait(struct http_request *req, void *arg)
{
    struct rest *rest = arg;
    CLEANUP_ERROR struct error err = ERROR_INIT;
    struct conditions c = {0};
    int64_t timeout = 60;
    struct live_vm *vm = core_vm_find(rest->core, req->params[0], &err);
    struct waiting *w = NULL;

    http_query_each(req, read_condition, &c);
    if (vm == NULL || rest_query_int(req, "timeout", 0, 600, &timeout, &err) < 0)
        goto refuse;
    if (c.n == 0 || c.too_many) {
        field_pointer_error(&err, "/for", "1–8 of state:STATE, ready, agent, ssh, ip, disk_io",
                            "the query needs for=, once to 8 times");
        goto refuse;
    }
    if (http_wait_take(req, &err) < 0)
        goto refuse;
    w = mem_zalloc(sizeof(*w));
    if (w == NULL) {
        error_set(&err, ERR_DAEMON_OVERLOADED, "out of memory");
        goto refuse;
    }
    w->req = req;
    w->wait = core_vm_wait(vm, c.texts, c.n, timeout * 1000, wait_done, w, &err);
    if (w->wait == NULL)
        goto refuse;
    http_on_gone(req, wait_left, w);
    return;
refuse:
    mem_free(w);
    http_reply_error(req, &err);
}

/* --- explain --- */

struct explaining {
    struct http_request *req;
    struct explain *job;
};

static void explain_left(void *arg, struct http_request *req)
{
    struct explaining *e = arg;

    (void)req;
    core_explain_cancel(e->job);
    mem_free(e);
}

static void explained(void *arg, char *json, struct error *err)
{
    struct explaining *e = arg;

    http_on_gone(e->req, NULL, NULL);
    if (json == NULL)
        http_reply_error(e->req, err);
    else
        http_reply_json(e->req, 200, json);
    mem_free(json);
    mem_free(e);
}

void rest_vm_explain(struct http_request *req, void *arg)
{
    struct rest *rest = arg;
    CLEANUP_ERROR struct error err = ERROR_INIT;
    struct live_vm *vm = core_vm_find(rest->core, req->params[0], &err);
    struct explaining *e = vm != NULL ? mem_zalloc(sizeof(*e)) : NULL;

    if (vm != NULL && e == NULL)
        error_set(&err, ERR_DAEMON_OVERLOADED, "out of memory");
    if (e != NULL) {
        e->req = req;
        http_on_gone(req, explain_left, e);
        if (core_vm_explain(vm, explained, e, &e->job, &err) == 0)
            return;
        http_on_gone(req, NULL, NULL);
        mem_free(e);
    }
    http_reply_error(req, &err);
}
