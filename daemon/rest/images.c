/* images.c - the image cache as a resource. */
#include <stdio.h>
#include <string.h>

#include "base/buf.h"
#include "base/mem.h"
#include "model/fields.h"
#include "rest/rest.h"

void rest_images_list(struct http_request *req, void *arg)
{
    struct rest *rest = arg;
    CLEANUP_ERROR struct error err = ERROR_INIT;
    CLEANUP_FREE char *last = NULL;
    struct rest_page page;

    if (rest_page_begin(req, rest, &page, &err) < 0) {
        http_reply_error(req, &err);
        return;
    }
    core_image_list(rest->core, http_query(req, "name"), page.from, page.limit, &page.items, &last, &err);
    rest_page_end(req, &page, last, &err);
    rest_page_done(&page);
}

void rest_image_get(struct http_request *req, void *arg)
{
    struct rest *rest = arg;
    CLEANUP_ERROR struct error err = ERROR_INIT;
    CLEANUP_BUF struct buf out = BUF_INIT(64 << 20);
    struct live_image *image = core_image_find(rest->core, req->params[0], &err);

    if (image == NULL) {
        http_reply_error(req, &err);
        return;
    }
    core_image_render(image, &out);
    http_reply(req, 200, "application/json", out.data, out.len);
}

static int pull(struct core *core, const struct core_request *req, const char *name, const json_t *body,
                struct operation **ret, struct error *err)
{
    (void)name;
    return core_image_pull(core, req, body, ret, err);
}

void rest_image_pull(struct http_request *req, void *arg)
{
    rest_change(req, arg, pull);
}

static int delete_image(struct core *core, const struct core_request *req, const char *name, const json_t *body,
                        struct operation **ret, struct error *err)
{
    (void)body;
    return core_image_delete(core, req, name, ret, err);
}

void rest_image_delete(struct http_request *req, void *arg)
{
    rest_change(req, arg, delete_image);
}

void rest_image_convert(struct http_request *req, void *arg)
{
    rest_change(req, arg, core_image_convert);
}

/* --- prune --- */

struct pruning {
    struct http_request *req; /* NULL: the client left */
};

static void prune_left(void *arg, struct http_request *req)
{
    struct pruning *p = arg;

    (void)req;
    p->req = NULL;
}

static void pruned(void *arg, const char *json, size_t len, struct error *err)
{
    struct pruning *p = arg;

    if (p->req != NULL) {
        http_on_gone(p->req, NULL, NULL);
        if (error_is_set(err))
            http_reply_error(p->req, err);
        else
            http_reply(p->req, 200, "application/json", json, len);
    }
    mem_free(p);
}

void rest_images_prune(struct http_request *req, void *arg)
{
    static const char *const names[] = {"dry_run", NULL};
    struct rest *rest = arg;
    CLEANUP_ERROR struct error err = ERROR_INIT;
    struct pruning *p = mem_zalloc(sizeof(*p));
    json_t *body = rest_body(req, &err);
    struct fields f;
    bool dry_run = false;

    if (p == NULL)
        error_set(&err, ERR_DAEMON_OVERLOADED, "out of memory");
    bool good = p != NULL && body != NULL && fields_open(&f, body, "", names, &err) == 0 &&
                field_bool(&f, "dry_run", &dry_run) == 0;
    json_decref(body);
    if (good) {
        p->req = req;
        http_on_gone(req, prune_left, p);
        if (core_image_prune(rest->core, dry_run, pruned, p, &err) == 0)
            return;
        http_on_gone(req, NULL, NULL);
    }
    mem_free(p);
    http_reply_error(req, &err);
}

/* --- upload ---
 *
 * The body goes to core as it comes.  When it is whole the operation is answered as any other; when the operation ends before, that is
 * the answer, in the midst of the body. */

struct upload {
    struct rest *rest;
    struct http_request *req;
    struct operation *op; /* referenced */
    struct operation_watch *watch;
    struct image_upload *up;
    bool whole;
};

static void upload_free(struct upload *u)
{
    operation_unwatch(u->watch);
    image_upload_free(u->up);
    operation_unref(u->op);
    mem_free(u);
}

static void upload_left(void *arg, struct http_request *req)
{
    struct upload *u = arg;

    (void)req;
    image_upload_abort(TAKE_PTR(u->up));
    upload_free(u);
}

static size_t upload_data(void *arg, const void *data, size_t len)
{
    struct upload *u = arg;

    return image_upload_write(u->up, data, len);
}

static void upload_more(void *arg)
{
    struct upload *u = arg;

    if (!u->whole)
        http_body_more(u->req);
}

static void upload_whole(void *arg)
{
    struct upload *u = arg;

    u->whole = true;
    http_on_gone(u->req, NULL, NULL);
    image_upload_end(u->up);
    rest_answer_operation(u->rest, u->req, u->op, false, 0);
}

static const struct http_body_events upload_events = {.data = upload_data, .whole = upload_whole};

/* The operation has ended: well and after the body, or before it was whole. */
static void upload_ended(void *arg, struct error *err)
{
    struct upload *u = arg;
    const struct error *why = operation_error(u->op);
    CLEANUP_ERROR struct error other = ERROR_INIT;

    u->watch = NULL;
    if (!u->whole) {
        error_set(&other, ERR_DAEMON_INTERNAL, "the upload ended before the body");
        http_body_refuse(u->req, error_is_set(err) ? err : why != NULL ? why : &other);
    }
    upload_free(u);
}

void rest_image_upload(struct http_request *req, void *arg)
{
    struct rest *rest = arg;
    CLEANUP_ERROR struct error err = ERROR_INIT;
    char fingerprint[REST_FINGERPRINT_MAX];
    struct core_request creq;
    struct core_peer peer;
    struct operation *op;
    struct upload *u = mem_zalloc(sizeof(*u));

    if (u == NULL)
        error_set(&err, ERR_DAEMON_OVERLOADED, "out of memory");
    if (u == NULL || rest_core_request(req, NULL, &creq, &peer, fingerprint, &err) < 0)
        goto refuse;
    *u = (struct upload){.rest = rest, .req = req};
    u->up = core_image_upload(rest->core, &creq, req->params[0], http_query(req, "sha256"), http_query(req, "format"),
                              req->content_length, upload_more, u, &op, &err);
    if (u->up == NULL)
        goto refuse;
    u->op = operation_ref(op);
    u->watch = operation_watch(op, true, upload_ended, u);
    if (u->watch == NULL) {
        error_set(&err, ERR_DAEMON_OVERLOADED, "out of memory");
        image_upload_abort(TAKE_PTR(u->up));
        operation_unref(u->op);
        goto refuse;
    }
    http_body_take(req, &upload_events, u);
    http_on_gone(req, upload_left, u);
    return;
refuse:
    mem_free(u);
    http_reply_error(req, &err);
}
