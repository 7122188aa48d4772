/* target.c - takes the request target apart: decoded path, its segments, the query's pairs.
 *
 * libmicrohttpd decodes too, but cuts at %00 and lets bad escapes pass; this works on the raw bytes.  A segment is
 * decoded after the cut at slashes, so that %2F is a byte of a name and no separator.  Refused (`bad` says why): a
 * target that is no absolute path, bad escapes, NUL, control bytes, what is not UTF-8 when decoded. */
#include <string.h>

#include "base/mem.h"
#include "base/str.h"
#include "http/private.h"

static int hex_digit(char c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    if (c >= 'a' && c <= 'f')
        return c - 'a' + 10;
    if (c >= 'A' && c <= 'F')
        return c - 'A' + 10;
    return -1;
}

/* Decodes len bytes to out, NUL-terminated; returns the end of out, or NULL with the reason. */
static char *decode(const char *in, size_t len, bool plus, char *out, const char **ret_bad)
{
    char *start = out;
    bool wide = false;

    for (size_t i = 0; i < len; i++) {
        char c = in[i];

        if ((unsigned char)c <= ' ' || c == 0x7f) {
            *ret_bad = "the request target has a control byte or a space";
            return NULL;
        }
        if (c == '%') {
            int hi = i + 2 < len ? hex_digit(in[i + 1]) : -1; /* cut short by the end: invalid */
            int lo = i + 2 < len ? hex_digit(in[i + 2]) : -1;

            if (hi < 0 || lo < 0) {
                *ret_bad = "the request target has an invalid percent escape";
                return NULL;
            }
            if (hi == 0 && lo == 0) {
                *ret_bad = "the request target has %00 in it";
                return NULL;
            }
            c = (char)(hi << 4 | lo);
            i += 2;
        } else if (c == '+' && plus) {
            c = ' ';
        }
        wide |= (unsigned char)c > 127;
        *out++ = c;
    }
    *out = '\0';
    if (wide && !utf8_valid(start, (size_t)(out - start))) {
        *ret_bad = "the request target is not UTF-8";
        return NULL;
    }
    return out + 1;
}

static char *parse_segments(struct http_target *t, const char *raw, size_t len, char *out)
{
    const char *end = raw + len;

    for (const char *at = raw + 1; out != NULL; at++) {
        const char *slash = memchr(at, '/', (size_t)(end - at));
        const char *stop = slash != NULL ? slash : end;

        if (t->n_segments == HTTP_SEGMENTS_MAX) {
            t->n_segments++;
            return out;
        }
        t->segments[t->n_segments++] = out;
        out = decode(at, (size_t)(stop - at), false, out, &t->bad);
        if (slash == NULL)
            return out;
        at = slash;
    }
    return NULL;
}

static void parse_query(struct http_target *t, const char *raw, char *out)
{
    t->query = out;
    while (out != NULL && *raw != '\0') {
        size_t len = strcspn(raw, "&");
        const char *eq = memchr(raw, '=', len);
        size_t name_len = eq != NULL ? (size_t)(eq - raw) : len;

        if (len > 0) {
            out = decode(raw, name_len, true, out, &t->bad);
            if (out != NULL)
                out = eq != NULL ? decode(eq + 1, len - name_len - 1, true, out, &t->bad) : (*out = '\0', out + 1);
            t->n_query++;
        }
        raw += len + (raw[len] == '&');
    }
}

void http_target_parse(struct http_target *t, const char *raw)
{
    size_t len = raw != NULL ? strlen(raw) : 0;
    size_t need = 3 * len + 8;

    t->n_segments = 0;
    t->n_query = 0;
    t->bad = NULL;
    t->path = "";
    if (len == 0 || raw[0] != '/') {
        t->bad = "the request target is no absolute path";
        return;
    }
    if (t->cap < need) {
        char *mem = mem_realloc(t->mem, need);

        if (mem == NULL) {
            t->bad = "the request target found no memory";
            return;
        }
        t->mem = mem;
        t->cap = need;
    }
    size_t path_len = strcspn(raw, "?");
    char *out = decode(raw, path_len, false, t->mem, &t->bad);

    if (out == NULL)
        return;
    t->path = t->mem;
    out = parse_segments(t, raw, path_len, out);
    if (out != NULL && raw[path_len] == '?')
        parse_query(t, raw + path_len + 1, out);
}

void http_target_done(struct http_target *t)
{
    mem_free(t->mem);
    *t = (struct http_target){0};
}

const char *http_query(const struct http_request *req, const char *name)
{
    const struct http_target *t = &conn_of(req)->target;
    const char *at = t->query;

    for (unsigned i = 0; i < t->n_query; i++) {
        const char *value = at + strlen(at) + 1;

        if (strcmp(at, name) == 0)
            return value;
        at = value + strlen(value) + 1;
    }
    return NULL;
}

void http_query_each(const struct http_request *req, bool (*fn)(void *arg, const char *name, const char *value),
                     void *arg)
{
    const struct http_target *t = &conn_of(req)->target;
    const char *at = t->query;

    for (unsigned i = 0; i < t->n_query; i++) {
        const char *value = at + strlen(at) + 1;

        if (!fn(arg, at, value))
            return;
        at = value + strlen(value) + 1;
    }
}
