/* request.c - what the resources have in common when they read a request. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "base/str.h"
#include "model/digest.h"
#include "model/fields.h"
#include "model/json_text.h"
#include "rest/rest.h"

enum { JSON_DEPTH_MAX = 32 };

static int json_error(struct error *err, int line, int column, const char *what)
{
    error_set(err, ERR_API_INVALID_JSON, "line %d, column %d: %s", line, column, what);
    error_ctx_int(err, "line", line);
    error_ctx_int(err, "column", column);
    return -1;
}

/* Brackets beyond the depth, outside strings; the parser would recurse. */
static int check_depth(const char *s, size_t len, struct error *err)
{
    int depth = 0, line = 1, column = 0;
    bool in_string = false;

    for (size_t i = 0; i < len; i++) {
        column++;
        if (s[i] == '\n') {
            line++;
            column = 0;
        } else if (in_string) {
            if (s[i] == '\\')
                i++, column++;
            else if (s[i] == '"')
                in_string = false;
        } else if (s[i] == '"') {
            in_string = true;
        } else if (s[i] == '{' || s[i] == '[') {
            if (++depth > JSON_DEPTH_MAX)
                return json_error(err, line, column, "nested too deep (32 levels at most)");
        } else if (s[i] == '}' || s[i] == ']') {
            depth--;
        }
    }
    return 0;
}

json_t *rest_body(struct http_request *req, struct error *err)
{
    json_error_t where;

    if (req->body_len == 0)
        return json_object();
    if (check_depth(req->body, req->body_len, err) < 0)
        return NULL;
    json_t *body = json_loadb(req->body, req->body_len, JSON_REJECT_DUPLICATES | JSON_DECODE_ANY, &where);
    if (body == NULL)
        json_error(err, where.line > 0 ? where.line : 1, where.column > 0 ? where.column : 1, where.text);
    return body;
}

int rest_query_int(struct http_request *req, const char *name, int64_t min, int64_t max, int64_t *ret,
                   struct error *err)
{
    const char *text = http_query(req, name);
    char pointer[64], expected[64];

    if (text == NULL || str_to_i64(text, min, max, ret))
        return 0;
    snprintf(pointer, sizeof(pointer), "/%s", name);
    snprintf(expected, sizeof(expected), "%lld–%lld", (long long)min, (long long)max);
    return field_pointer_error(err, pointer, expected, "the query's %s must be %s", name, expected);
}

int rest_core_request(struct http_request *req, const json_t *body, struct core_request *ret, struct core_peer *peer,
                      char buffer[REST_FINGERPRINT_MAX], struct error *err)
{
    const char *key = req->method == HTTP_POST ? http_header(req, "Idempotency-Key") : NULL;

    *ret = (struct core_request){.request_id = req->request_id, .peer = peer};
    *peer = (struct core_peer){.is_unix = req->peer.is_unix, .uid = req->peer.uid, .gid = req->peer.gid};
    if (key == NULL)
        return 0;
    size_t len = strlen(key);
    if (len < 1 || len > 255)
        return field_pointer_error(err, "/Idempotency-Key", "1–255 bytes", "the Idempotency-Key must have 1–255 bytes");
    for (size_t i = 0; i < len; i++)
        if (key[i] < 0x21 || key[i] > 0x7e)
            return field_pointer_error(err, "/Idempotency-Key", "printable ASCII without spaces",
                                       "the Idempotency-Key must be printable ASCII without spaces");
    char *text =
        body != NULL ? json_text(json_incref((json_t *)(uintptr_t)body), JSON_SORT_KEYS, NULL) : mem_strdup("{}");
    CLEANUP_FREE char *all = text != NULL ? mem_printf("%d %s %s", req->method, req->path, text) : NULL;
    mem_free(text);
    if (all == NULL)
        return error_set(err, ERR_DAEMON_OVERLOADED, "out of memory");
    digest_sha256(all, strlen(all), buffer);
    ret->idempotency_key = key;
    ret->fingerprint = buffer;
    return 0;
}

void rest_change(struct http_request *req, struct rest *rest, rest_change_fn *fn)
{
    CLEANUP_ERROR struct error err = ERROR_INIT;
    char fingerprint[REST_FINGERPRINT_MAX];
    struct core_request creq;
    struct core_peer peer;
    struct operation *op;
    json_t *body = req->method == HTTP_DELETE ? json_object() : rest_body(req, &err);

    if (body == NULL || rest_core_request(req, body, &creq, &peer, fingerprint, &err) < 0)
        goto refuse;
    int replay = rest_answer_replay(rest, req, &creq, &err);
    if (replay < 0 || (replay == 0 && fn(rest->core, &creq, req->params[0], body, &op, &err) < 0))
        goto refuse;
    if (replay == 0)
        rest_answer_operation(rest, req, op, false, 0);
    json_decref(body);
    return;
refuse:
    json_decref(body);
    http_reply_error(req, &err);
}

void rest_refuse(struct http_request *req, struct error *err)
{
    http_reply_error(req, err);
    error_done(err);
}
