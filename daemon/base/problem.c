/* problem.c - renders {"type":…,"title":…,"status":…,"detail":…,"instance":…,"code":…,"help":…,"retryable":…,
 * "request_id":…,"context":{…},"causes":[…]}.  Nothing fails on the way but memory: the buffer remembers it. */
#include "base/problem.h"

#include <inttypes.h>
#include <string.h>

#include "base/mem.h"

static void member(struct buf *out, const char *key, const char *value)
{
    buf_char(out, ',');
    buf_json_str(out, key);
    buf_char(out, ':');
    buf_json_str(out, value != NULL ? value : "");
}

/* A list is kept as its items joined by newlines. */
static void list(struct buf *out, const char *items)
{
    buf_char(out, '[');
    for (const char *at = items; at != NULL && *at != '\0';) {
        size_t len = strcspn(at, "\n");
        CLEANUP_FREE char *item = mem_strndup(at, len);

        if (item == NULL) {
            out->failed = true;
            return;
        }
        if (at != items)
            buf_char(out, ',');
        buf_json_str(out, item);
        at += len + (at[len] == '\n');
    }
    buf_char(out, ']');
}

static void context(struct buf *out, const struct error *err)
{
    buf_str(out, ",\"context\":{");
    for (size_t i = 0; i < err->n_context; i++) {
        const struct error_context *c = &err->context[i];

        if (i > 0)
            buf_char(out, ',');
        buf_json_str(out, c->key);
        buf_char(out, ':');
        if (c->kind == ERROR_VALUE_INT)
            buf_printf(out, "%" PRId64, c->num);
        else if (c->kind == ERROR_VALUE_LIST)
            list(out, c->str);
        else if (c->kind == ERROR_VALUE_NULL)
            buf_str(out, "null");
        else
            buf_json_str(out, c->str != NULL ? c->str : "");
    }
    buf_char(out, '}');
}

int error_problem(const struct error *err, const char *instance, const char *request_id, struct buf *out)
{
    const struct error_info *info = error_info(err->code);

    buf_printf(out, "{\"type\":\"/v1/errors/%s\"", info->code);
    member(out, "title", info->title);
    buf_printf(out, ",\"status\":%d", info->status != 0 ? info->status : 500);
    member(out, "detail", err->message);
    member(out, "instance", instance);
    member(out, "code", info->code);
    member(out, "help", err->help != NULL ? err->help : info->help);
    buf_printf(out, ",\"retryable\":%s", info->retryable ? "true" : "false");
    member(out, "request_id", request_id);
    context(out, err);
    buf_str(out, ",\"causes\":[");
    for (size_t i = 0; i < err->n_causes; i++) {
        if (i > 0)
            buf_char(out, ',');
        buf_json_str(out, err->causes[i]);
    }
    buf_str(out, "]}");
    return out->failed ? -1 : 0;
}
