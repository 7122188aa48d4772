/* peek.c - see peek.h.
 *
 *     guest-file-open ─► guest-file-read (once, GUEST_PEEK_MAX + 1) ─► guest-file-close ─► done
 *
 * Failures: the agent's refusal is told apart from a missing file by its text, since it has no other mark; an answer that is
 * not what was asked for counts as a refusal.  A file that could not be closed stays open in the agent, which has room. */
#include "guest/peek.h"

#include <nettle/base64.h>
#include <string.h>

#include "base/mem.h"

static void finish(struct guest_peek *p)
{
    char *data = p->data;

    p->busy = false;
    p->done(p->arg, p);
    mem_free(data);
}

static void refuse(struct guest_peek *p, const char *why)
{
    p->result = GUEST_PEEK_REFUSED;
    p->why[0] = '\0';
    guest_info_text(p->why, why);
}

static void take_error(struct guest_peek *p, const struct error *err)
{
    const char *cause = err->n_causes > 0 ? err->causes[0] : err->message;

    if (err->code == ERR_VM_UNRESPONSIVE)
        p->result = GUEST_PEEK_SILENT;
    else if (strstr(cause, "No such file") != NULL)
        p->result = GUEST_PEEK_MISSING;
    else
        refuse(p, cause);
}

static void closed(void *arg, json_t *ret, struct error *err)
{
    (void)ret;
    (void)err;
    finish(arg);
}

static void close_file(struct guest_peek *p)
{
    CLEANUP_ERROR struct error err = ERROR_INIT;

    if (agent_execute(p->agent, "guest-file-close", json_pack("{s:I}", "handle", p->handle), GUEST_PEEK_MS, closed, p,
                      &err) < 0)
        finish(p);
}

static int decode(struct guest_peek *p, const char *text)
{
    struct base64_decode_ctx ctx;
    size_t len = strlen(text), n = 0;

    if (len > BASE64_ENCODE_RAW_LENGTH(GUEST_PEEK_MAX + 1))
        return -1;
    p->data = mem_alloc(BASE64_DECODE_LENGTH(len) + 1);
    if (p->data == NULL)
        return -1;
    base64_decode_init(&ctx);
    if (!base64_decode_update(&ctx, &n, (uint8_t *)p->data, len, text) || !base64_decode_final(&ctx))
        return -1;
    p->data[n] = '\0';
    p->len = n;
    return n <= GUEST_PEEK_MAX ? 0 : -1;
}

static void was_read(void *arg, json_t *ret, struct error *err)
{
    struct guest_peek *p = arg;
    const char *text = json_string_value(json_object_get(ret, "buf-b64"));

    if (error_is_set(err))
        take_error(p, err);
    else if (text == NULL || decode(p, text) < 0)
        refuse(p, "it is larger than 32 KiB, or no file");
    else
        p->result = GUEST_PEEK_READ;
    close_file(p);
}

static void opened(void *arg, json_t *ret, struct error *err)
{
    struct guest_peek *p = arg;
    CLEANUP_ERROR struct error own = ERROR_INIT;

    if (error_is_set(err) || !json_is_integer(ret)) {
        if (error_is_set(err))
            take_error(p, err);
        else
            refuse(p, "its answer to guest-file-open is no number");
        finish(p);
        return;
    }
    p->handle = json_integer_value(ret);
    if (agent_execute(p->agent, "guest-file-read",
                      json_pack("{s:I,s:i}", "handle", p->handle, "count", GUEST_PEEK_MAX + 1), GUEST_PEEK_MS, was_read,
                      p, &own) < 0) {
        p->result = GUEST_PEEK_SILENT;
        close_file(p);
    }
}

int guest_peek(struct guest_peek *peek, struct agent *agent, const char *path,
               void (*done)(void *arg, struct guest_peek *peek), void *arg)
{
    CLEANUP_ERROR struct error err = ERROR_INIT;

    *peek = (struct guest_peek){.agent = agent, .done = done, .arg = arg};
    peek->busy = agent_execute(agent, "guest-file-open", json_pack("{s:s,s:s}", "path", path, "mode", "r"),
                               GUEST_PEEK_MS, opened, peek, &err) == 0;
    return peek->busy ? 0 : -1;
}

void guest_peek_forget(struct guest_peek *peek)
{
    if (peek->busy)
        mem_free(peek->data);
    *peek = (struct guest_peek){0};
}
