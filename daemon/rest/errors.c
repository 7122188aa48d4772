/* errors.c - the catalogue of diagnostic codes. */
#include <string.h>

#include "base/buf.h"
#include "rest/rest.h"

static void put_code(struct buf *b, enum error_code code)
{
    const struct error_info *info = error_info(code);

    buf_str(b, "{\"code\":");
    buf_json_str(b, info->code);
    if (info->status > 0)
        buf_printf(b, ",\"status\":%d,\"title\":", info->status);
    else
        buf_str(b, ",\"status\":null,\"title\":");
    buf_json_str(b, info->title);
    buf_str(b, ",\"help\":");
    buf_json_str(b, info->help);
    buf_printf(b, ",\"retryable\":%s}", info->retryable ? "true" : "false");
}

static void reply(struct http_request *req, struct buf *b)
{
    CLEANUP_ERROR struct error err = ERROR_INIT;

    if (!b->failed) {
        http_reply(req, 200, "application/json", b->data, b->len);
        return;
    }
    error_set(&err, ERR_DAEMON_OVERLOADED, "out of memory");
    http_reply_error(req, &err);
}

void rest_errors(struct http_request *req, void *arg)
{
    CLEANUP_BUF struct buf b = BUF_INIT(1 << 20);

    (void)arg;
    buf_str(&b, "{\"items\":[");
    for (int code = ERR_NONE + 1; code < ERR_MAX; code++) {
        if (code > ERR_NONE + 1)
            buf_char(&b, ',');
        put_code(&b, (enum error_code)code);
    }
    buf_str(&b, "]}");
    reply(req, &b);
}

void rest_error(struct http_request *req, void *arg)
{
    CLEANUP_BUF struct buf b = BUF_INIT(65536);
    CLEANUP_ERROR struct error err = ERROR_INIT;
    enum error_code code = error_by_name(req->params[0]);

    (void)arg;
    if (code == ERR_NONE) {
        error_set(&err, ERR_API_NOT_FOUND, "there is no error code %.80s", req->params[0]);
        error_help(&err, "`vmctl errors` (GET /v1/errors) lists them all");
        http_reply_error(req, &err);
        return;
    }
    put_code(&b, code);
    reply(req, &b);
}
