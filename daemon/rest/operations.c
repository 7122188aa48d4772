/* operations.c - operations as a resource, and the answer to every change.
 *
 *   change ─► operation durable ─┬─ no Prefer: 202
 *                                └─ Prefer: wait=N ─┬─ ended: 200, or its problem document
 *                                                   └─ N seconds over, or the daemon stops: 202 */
#include <stdio.h>
#include <string.h>

#include "base/buf.h"
#include "base/mem.h"
#include "loop/timer.h"
#include "model/fields.h"
#include "model/json_text.h"
#include "rest/rest.h"

struct answer {
    struct rest *rest;
    struct http_request *req;
    struct operation *op;
    struct operation_watch *watch;
    struct timer *timer;
    int wait_s;
    int done_status;
};

static void answer_free(struct answer *a)
{
    operation_unwatch(a->watch);
    timer_free(a->timer);
    operation_unref(a->op);
    mem_free(a);
}

static void answer_now(struct answer *a)
{
    struct http_request *req = a->req;
    struct operation *op = a->op;
    const struct error *error = operation_error(op);
    char location[80];

    http_on_gone(req, NULL, NULL);
    snprintf(location, sizeof(location), "/v1/operations/%s", operation_id(op));
    http_add_header(req, "Location", location);
    if (operation_ended(op) && error != NULL && a->wait_s > 0)
        http_reply_error(req, error);
    else
        http_reply_json(req, operation_ended(op) && a->wait_s > 0 ? 200 : a->done_status, operation_doc(op));
    answer_free(a);
}

/* The client left; or the daemon stops, and what is under way is answered as after N seconds: it is not lost.  What is
 * just being written stays until it is known whether it is. */
static void client_left(void *arg, struct http_request *req)
{
    struct answer *a = arg;

    if (!http_stopping(req))
        answer_free(a);
    else if (a->timer != NULL)
        answer_now(a);
    else
        http_on_gone(req, client_left, a);
}

static void ended(void *arg, struct error *err)
{
    struct answer *a = arg;

    (void)err;
    a->watch = NULL;
    answer_now(a);
}

static void time_over(void *arg)
{
    answer_now(arg);
}

static void wait_end(struct answer *a)
{
    if (a->wait_s == 0 || operation_ended(a->op) || core_stopping(a->rest->core)) {
        answer_now(a);
        return;
    }
    a->watch = operation_watch(a->op, true, ended, a);
    a->timer = timer_new(a->rest->loop, time_over, a);
    if (a->watch == NULL || a->timer == NULL)
        answer_now(a);
    else
        timer_start(a->timer, (int64_t)a->wait_s * 1000, 0);
}

static void durable(void *arg, struct error *err)
{
    struct answer *a = arg;

    a->watch = NULL;
    if (error_is_set(err)) {
        http_on_gone(a->req, NULL, NULL);
        http_reply_error(a->req, err);
        answer_free(a);
        return;
    }
    wait_end(a);
}

static struct answer *answer_new(struct rest *rest, struct http_request *req, struct operation *op, int done_status)
{
    struct answer *a = mem_zalloc(sizeof(*a));

    if (a == NULL) {
        CLEANUP_ERROR struct error err = ERROR_INIT;
        error_set(&err, ERR_DAEMON_OVERLOADED, "out of memory");
        http_reply_error(req, &err);
        return NULL;
    }
    *a = (struct answer){
        .rest = rest, .req = req, .op = operation_ref(op), .wait_s = http_prefer_wait(req), .done_status = done_status};
    http_on_gone(req, client_left, a);
    return a;
}

void rest_answer_operation(struct rest *rest, struct http_request *req, struct operation *op, bool replayed,
                           int done_status)
{
    struct answer *a = answer_new(rest, req, op, done_status > 0 ? done_status : 202);

    if (a == NULL)
        return;
    if (replayed)
        http_add_header(req, "Idempotency-Replayed", "true");
    a->watch = operation_watch(op, false, durable, a);
    if (a->watch == NULL) { /* nothing may be acknowledged that is not durable */
        CLEANUP_ERROR struct error err = ERROR_INIT;
        error_set(&err, ERR_DAEMON_OVERLOADED, "out of memory");
        http_on_gone(req, NULL, NULL);
        http_reply_error(req, &err);
        answer_free(a);
    }
}

/* --- operations of the store: they have ended --- */

struct stored {
    struct http_request *req;
    struct store_read *read;
    int status;     /* of one that succeeded, or is not asked to be waited for */
    bool as_result; /* a failed one is answered by its problem document */
    char id[64];
};

static void stored_left(void *arg, struct http_request *req)
{
    struct stored *s = arg;

    (void)req;
    store_read_cancel(s->read);
    mem_free(s);
}

static void reply_stored(struct stored *s, const char *doc)
{
    json_t *op = s->as_result ? json_loads(doc, 0, NULL) : NULL;
    json_t *error = json_object_get(op, "error");

    if (json_is_object(error)) {
        int64_t status = json_integer_value(json_object_get(error, "status"));
        json_object_set_new(error, "request_id", json_string(s->req->request_id)); /* of this answer, as always */
        json_object_set_new(error, "instance", json_string(s->req->path));
        if (status == 503)
            http_add_header(s->req, "Retry-After", "1");
        char *text = json_text(json_incref(error), 0, NULL);
        http_reply(s->req, (int)status, "application/problem+json", text != NULL ? text : "",
                   text != NULL ? strlen(text) : 0);
        mem_free(text);
    } else {
        http_reply_json(s->req, s->status, doc);
    }
    json_decref(op);
}

static void stored_read(void *arg, const struct store_operation_row *row, struct error *err)
{
    struct stored *s = arg;

    http_on_gone(s->req, NULL, NULL);
    if (row == NULL && !error_is_set(err)) {
        error_set(err, ERR_OPERATION_NOT_FOUND, "there is no operation %s", s->id);
        error_ctx_str(err, "operation", s->id);
    }
    if (row == NULL)
        http_reply_error(s->req, err);
    else
        reply_stored(s, row->doc);
    mem_free(s);
}

typedef void stored_fn(void *arg, const struct store_operation_row *row, struct error *err);

/* Reads the operation; `done` answers the request and frees the struct stored it gets. */
static void ask_store(struct rest *rest, struct http_request *req, const char *id, int status, bool as_result,
                      stored_fn *done)
{
    struct stored *s = mem_zalloc(sizeof(*s));
    CLEANUP_ERROR struct error err = ERROR_INIT;

    if (s != NULL) {
        *s = (struct stored){.req = req, .status = status, .as_result = as_result};
        snprintf(s->id, sizeof(s->id), "%s", id);
        s->read = store_read_operation(core_store(rest->core), s->id, done, s);
    }
    if (s == NULL || s->read == NULL) {
        mem_free(s);
        error_set(&err, ERR_DAEMON_OVERLOADED, "out of memory");
        http_reply_error(req, &err);
        return;
    }
    http_on_gone(req, stored_left, s);
}

int rest_answer_replay(struct rest *rest, struct http_request *req, const struct core_request *creq, struct error *err)
{
    struct operation *op;
    char id[UUID_TEXT_MAX], location[80];

    if (core_key_lookup(rest->core, creq, &op, id, err) < 0)
        return -1;
    if (id[0] == '\0')
        return 0;
    if (op != NULL) {
        rest_answer_operation(rest, req, op, true, 0);
        return 1;
    }
    snprintf(location, sizeof(location), "/v1/operations/%s", id);
    http_add_header(req, "Location", location);
    http_add_header(req, "Idempotency-Replayed", "true");
    bool wait = http_prefer_wait(req) > 0;
    ask_store(rest, req, id, wait ? 200 : 202, wait, stored_read);
    return 1;
}

void rest_operation_get(struct http_request *req, void *arg)
{
    struct rest *rest = arg;
    struct operation *op = core_operation_find(rest->core, req->params[0]);
    bool wait = http_prefer_wait(req) > 0;

    if (op == NULL) {
        ask_store(rest, req, req->params[0], 200, wait, stored_read);
        return;
    }
    if (!wait) {
        http_reply_json(req, 200, operation_doc(op));
        return;
    }
    struct answer *a = answer_new(rest, req, op, 202);
    if (a != NULL)
        wait_end(a);
}

static void cancel_stored(void *arg, const struct store_operation_row *row, struct error *err)
{
    struct stored *s = arg;

    http_on_gone(s->req, NULL, NULL);
    if (row != NULL)
        error_set(err, ERR_OPERATION_NOT_CANCELLABLE, "operation %s (%s) has already ended: %s", row->id, row->kind,
                  row->state);
    else if (!error_is_set(err))
        error_set(err, ERR_OPERATION_NOT_FOUND, "there is no operation %s", s->id);
    error_ctx_str(err, "operation", s->id);
    http_reply_error(s->req, err);
    mem_free(s);
}

void rest_operation_cancel(struct http_request *req, void *arg)
{
    struct rest *rest = arg;
    struct operation *op = core_operation_find(rest->core, req->params[0]);
    CLEANUP_ERROR struct error err = ERROR_INIT;

    if (op == NULL) {
        ask_store(rest, req, req->params[0], 0, false, cancel_stored);
        return;
    }
    operation_ref(op);
    if (core_operation_cancel(rest->core, op, req->request_id, &err) < 0)
        http_reply_error(req, &err);
    else
        http_reply_json(req, 200, operation_doc(op));
    operation_unref(op);
}

/* --- the list --- */

struct listing {
    struct rest *rest;
    struct http_request *req;
    struct store_read *read;
    struct rest_page page;
    unsigned n;
    char last[UUID_TEXT_MAX];
};

static void listing_free(struct listing *l)
{
    rest_page_done(&l->page);
    mem_free(l);
}

static void listing_left(void *arg, struct http_request *req)
{
    struct listing *l = arg;

    (void)req;
    store_read_cancel(l->read);
    listing_free(l);
}

static void listing_row(void *arg, const struct store_operation_row *row)
{
    struct listing *l = arg;

    l->n++;
    if (l->n > l->page.limit)
        return; /* there is a next page */
    struct operation *op = core_operation_find(l->rest->core, row->id);
    if (l->n > 1)
        buf_char(&l->page.items, ',');
    buf_str(&l->page.items, op != NULL ? operation_doc(op) : row->doc);
    snprintf(l->last, sizeof(l->last), "%s", row->id);
}

static void listing_done(void *arg, struct error *err)
{
    struct listing *l = arg;

    http_on_gone(l->req, NULL, NULL);
    rest_page_end(l->req, &l->page, l->n > l->page.limit ? l->last : NULL, err);
    listing_free(l);
}

static const char *const states[] = {"pending", "running", "succeeded", "failed", "cancelled", NULL};

static int check_state(const char *state, struct error *err)
{
    for (size_t i = 0; state != NULL; i++) {
        if (states[i] == NULL)
            return field_pointer_error(err, "/state", "pending, running, succeeded, failed or cancelled",
                                       "the query's state must be pending, running, succeeded, failed or cancelled");
        if (strcmp(states[i], state) == 0)
            break;
    }
    return 0;
}

void rest_operations_list(struct http_request *req, void *arg)
{
    struct rest *rest = arg;
    CLEANUP_ERROR struct error err = ERROR_INIT;
    const char *state = http_query(req, "state");
    struct rest_page page;

    if (check_state(state, &err) < 0 || rest_page_begin(req, rest, &page, &err) < 0) {
        http_reply_error(req, &err);
        return;
    }
    struct listing *l = mem_zalloc(sizeof(*l));
    if (l != NULL) {
        *l = (struct listing){.rest = rest, .req = req, .page = page};
        l->read = store_read_operations(core_store(rest->core), page.from, state, NULL, page.limit + 1, listing_row,
                                        listing_done, l);
    }
    if (l == NULL || l->read == NULL) {
        rest_page_done(l != NULL ? &l->page : &page);
        mem_free(l);
        error_set(&err, ERR_DAEMON_OVERLOADED, "out of memory");
        http_reply_error(req, &err);
        return;
    }
    http_on_gone(req, listing_left, l);
}
