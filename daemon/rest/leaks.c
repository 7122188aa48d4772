/* leaks.c - what nobody owns on this host: GET /v1/host/leaks, POST /v1/host/leaks/reap, POST /v1/host/adopt.
 *
 * All three wait for a look at the host on the pool.  A client that leaves stops no removal and no adoption. */
#include "base/buf.h"
#include "base/mem.h"
#include "model/fields.h"
#include "rest/rest.h"

enum { ADOPT_MAX = 1000, OLDER_MAX_S = 31536000 };

struct asking {
    struct rest *rest;
    struct http_request *req; /* NULL: the client left */
    struct leaks_wait *wait;  /* of a GET */
};

static void reply_text(struct http_request *req, const char *text, struct error *err)
{
    if (text != NULL && !error_is_set(err)) {
        http_reply_json(req, 200, text);
        return;
    }
    error_set(err, ERR_DAEMON_OVERLOADED, "out of memory");
    http_reply_error(req, err);
}

static struct asking *asking_new(struct rest *rest, struct http_request *req, struct error *err)
{
    struct asking *a = mem_zalloc(sizeof(*a));

    if (a == NULL) {
        error_set(err, ERR_DAEMON_OVERLOADED, "out of memory");
        return NULL;
    }
    a->rest = rest;
    a->req = req;
    return a;
}

/* --- GET --- */

static void reader_left(void *arg, struct http_request *req)
{
    struct asking *a = arg;

    (void)req;
    core_leaks_cancel(a->wait);
    mem_free(a);
}

static void leaks_read(void *arg, struct error *err)
{
    struct asking *a = arg;
    CLEANUP_BUF struct buf out = BUF_INIT(64 << 20);

    http_on_gone(a->req, NULL, NULL);
    core_leaks_put(a->rest->core, &out);
    reply_text(a->req, out.failed ? NULL : out.data, err);
    mem_free(a);
}

void rest_leaks(struct http_request *req, void *arg)
{
    struct rest *rest = arg;
    CLEANUP_ERROR struct error err = ERROR_INIT;
    struct asking *a = asking_new(rest, req, &err);

    if (a != NULL)
        a->wait = core_leaks_read(rest->core, leaks_read, a, &err);
    if (a == NULL || a->wait == NULL) {
        mem_free(a);
        http_reply_error(req, &err);
        return;
    }
    http_on_gone(req, reader_left, a);
}

/* --- POST --- */

static void client_left(void *arg, struct http_request *req)
{
    struct asking *a = arg;

    (void)req;
    a->req = NULL;
}

static void answered(void *arg, char *answer, struct error *err)
{
    struct asking *a = arg;

    if (a->req != NULL) {
        http_on_gone(a->req, NULL, NULL);
        reply_text(a->req, answer, err);
    }
    mem_free(answer);
    mem_free(a);
}

/* Who asks: their Idempotency-Key is only checked, for asking twice does nothing more. */
static int check_request(struct http_request *req, const json_t *body, struct error *err)
{
    char fingerprint[REST_FINGERPRINT_MAX];
    struct core_request creq;
    struct core_peer peer;

    return rest_core_request(req, body, &creq, &peer, fingerprint, err);
}

static int begin_reap(struct rest *rest, const json_t *body, struct asking *a, struct error *err)
{
    static const char *const names[] = {"dry_run", "older_than_s", NULL};
    int64_t older_than_s = -1;
    bool dry_run = false;
    struct fields f;

    if (fields_open(&f, body, "", names, err) < 0 || field_bool(&f, "dry_run", &dry_run) < 0 ||
        field_int(&f, "older_than_s", 0, OLDER_MAX_S, &older_than_s) < 0)
        return -1;
    return core_leaks_reap(rest->core, dry_run, older_than_s, answered, a, err);
}

static int begin_adopt(struct rest *rest, const json_t *body, struct asking *a, struct error *err)
{
    static const char *const names[] = {"ids", NULL};
    CLEANUP_FREE const char **ids = NULL;
    struct fields f;
    size_t i;
    json_t *item;

    if (fields_open(&f, body, "", names, err) < 0)
        return -1;
    const json_t *list = field_get(&f, "ids");
    if (!json_is_array(list) || json_array_size(list) < 1 || json_array_size(list) > ADOPT_MAX)
        return field_error(&f, "ids", "an array of 1–1000 ids of VMs");
    ids = mem_zalloc((json_array_size(list) + 1) * sizeof(char *));
    if (ids == NULL)
        return error_set(err, ERR_DAEMON_OVERLOADED, "out of memory");
    json_array_foreach(list, i, item)
    {
        ids[i] = json_string_value(item);
        if (ids[i] == NULL || json_string_length(item) > 64)
            return field_error(&f, "ids", "an array of 1–1000 ids of VMs");
    }
    return core_adopt(rest->core, a->req->request_id, ids, i, answered, a, err);
}

static void post(struct http_request *req, struct rest *rest,
                 int (*begin)(struct rest *rest, const json_t *body, struct asking *a, struct error *err))
{
    CLEANUP_ERROR struct error err = ERROR_INIT;
    json_t *body = rest_body(req, &err);
    struct asking *a = body != NULL ? asking_new(rest, req, &err) : NULL;

    if (a != NULL && check_request(req, body, &err) == 0 && begin(rest, body, a, &err) == 0) {
        http_on_gone(req, client_left, a);
    } else {
        mem_free(a);
        http_reply_error(req, &err);
    }
    json_decref(body);
}

void rest_leaks_reap(struct http_request *req, void *arg)
{
    post(req, arg, begin_reap);
}

void rest_adopt(struct http_request *req, void *arg)
{
    post(req, arg, begin_adopt);
}
