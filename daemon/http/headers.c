/* headers.c - one walk over the headers, and the forms that are refused whatever the route.
 *
 * libmicrohttpd 0.9.75 accepts two Content-Length, Content-Length beside Transfer-Encoding, and any coding: behind a
 * proxy each lets a second request be smuggled.  They are 400 here and the connection ends. */
#include <stdio.h>
#include <string.h>
#include <strings.h>

#include "base/mem.h"
#include "base/str.h"
#include "base/uuid.h"
#include "http/private.h"

/* RFC 9110's tchar, one bit for each of the 128 characters. */
static const uint32_t tchar[4] = {0, 0x03ff6cfa, 0xc7fffffe, 0x57ffffff};

static bool token_text(const char *s, size_t len)
{
    for (size_t i = 0; i < len; i++) {
        unsigned char c = (unsigned char)s[i];

        if (c > 127 || (tchar[c >> 5] >> (c & 31) & 1) == 0)
            return false;
    }
    return len > 0;
}

static bool value_text(const char *s, size_t len)
{
    for (size_t i = 0; i < len; i++)
        if (((unsigned char)s[i] < ' ' && s[i] != '\t') || s[i] == 0x7f)
            return false;
    return true;
}

/* N of a wait=N among the preferences of one Prefer header. */
static int wait_of(const char *prefer)
{
    for (const char *at = prefer; *at != '\0';) {
        int n = 0, digits = 0;

        at += strspn(at, " \t,;");
        if (strncasecmp(at, "wait", 4) == 0) {
            const char *v = at + 4 + strspn(at + 4, " \t");

            if (*v == '=') {
                v += 1 + strspn(v + 1, " \t\"");
                for (; *v >= '0' && *v <= '9'; v++, digits++)
                    n = n > 600 ? n : n * 10 + (*v - '0');
                v += strspn(v, " \t\"");
                if (digits > 0 && (*v == '\0' || *v == ',' || *v == ';'))
                    return n > 600 ? 600 : n;
            }
        }
        at += strcspn(at, ",;");
    }
    return 0;
}

static void known_header(struct http_headers *h, const char *key, size_t len, const char *value)
{
    switch (len) {
    case 4:
        if (strcasecmp(key, "Host") == 0)
            h->host = value, h->n_host++;
        break;
    case 6:
        if (strcasecmp(key, "Origin") == 0)
            h->origin = value;
        else if (strcasecmp(key, "Prefer") == 0 && h->prefer_wait == 0)
            h->prefer_wait = wait_of(value);
        break;
    case 12:
        if (strcasecmp(key, "Content-Type") == 0)
            h->content_type = value, h->n_content_type++;
        else if (strcasecmp(key, "X-Request-Id") == 0)
            h->id = value;
        break;
    case 13:
        if (strcasecmp(key, "Authorization") == 0)
            h->authorization = value, h->n_authorization++;
        break;
    case 14:
        if (strcasecmp(key, "Content-Length") == 0)
            h->content_length = value, h->n_content_length++;
        else if (strcasecmp(key, "Sec-Fetch-Site") == 0)
            h->fetch_site = value;
        break;
    case 17:
        if (strcasecmp(key, "Transfer-Encoding") == 0)
            h->transfer_encoding = value, h->n_transfer_encoding++;
        break;
    default:
        break;
    }
}

/* A folded header line reaches us as a name with the folded text hung on to it: "Transfer-Encoding:\r\n chunked" becomes
 * "Transfer-Encodingchunked".  Those that say how long a body is must not vanish so. */
static bool folded(const char *key, size_t len)
{
    return (len > 14 && (key[0] | 0x20) == 'c' && strncasecmp(key, "Content-Length", 14) == 0) ||
           (len > 17 && (key[0] | 0x20) == 't' && strncasecmp(key, "Transfer-Encoding", 17) == 0);
}

static enum MHD_Result walk(void *arg, enum MHD_ValueKind kind, const char *key, size_t key_len, const char *value,
                            size_t value_len)
{
    struct http_headers *h = arg;

    (void)kind;
    if (!token_text(key, key_len) || folded(key, key_len))
        h->bad_name = true;
    if (value == NULL)
        value = "";
    else if (!value_text(value, value_len))
        h->bad_value = true;
    known_header(h, key, key_len, value);
    return MHD_YES;
}

void http_headers_walk(struct http_conn *conn)
{
    conn->headers = (struct http_headers){0};
    MHD_get_connection_values_n(conn->mhd, MHD_HEADER_KIND, walk, &conn->headers);
}

int http_headers_check(struct http_conn *conn, const char *version, uint64_t *ret_length, struct error *err)
{
    const struct http_headers *h = &conn->headers;
    int64_t length = 0;

    if (strcmp(version, MHD_HTTP_VERSION_1_1) != 0 && strcmp(version, MHD_HTTP_VERSION_1_0) != 0)
        return error_set(err, ERR_API_BAD_REQUEST, "the request is neither HTTP/1.1 nor HTTP/1.0");
    if (conn->target.bad != NULL)
        return error_set(err, ERR_API_BAD_REQUEST, "%s", conn->target.bad);
    if (h->bad_name || h->bad_value)
        return error_set(err, ERR_API_BAD_REQUEST, "a header's %s has bytes that do not belong there",
                         h->bad_name ? "name" : "value");
    if (h->n_content_length > 1 || h->n_host > 1 || h->n_content_type > 1 || h->n_authorization > 1)
        return error_set(err, ERR_API_BAD_REQUEST, "%s stands twice in the request",
                         h->n_content_length > 1 ? "Content-Length"
                         : h->n_host > 1         ? "Host"
                         : h->n_content_type > 1 ? "Content-Type"
                                                 : "Authorization");
    if (h->n_transfer_encoding > 0 && h->n_content_length > 0)
        return error_set(err, ERR_API_BAD_REQUEST, "Content-Length stands beside Transfer-Encoding");
    if (h->n_transfer_encoding > 1 || (h->n_transfer_encoding == 1 && strcasecmp(h->transfer_encoding, "chunked") != 0))
        return error_set(err, ERR_API_BAD_REQUEST, "Transfer-Encoding is not exactly chunked");
    if (h->n_transfer_encoding == 1 && strcmp(version, MHD_HTTP_VERSION_1_0) == 0)
        return error_set(err, ERR_API_BAD_REQUEST, "HTTP/1.0 has no Transfer-Encoding");
    if (h->n_content_length == 1 && (h->content_length[0] == '+' || h->content_length[0] == '-' ||
                                     !str_to_i64(h->content_length, 0, INT64_MAX, &length)))
        return error_set(err, ERR_API_BAD_REQUEST, "Content-Length is not a number");
    *ret_length = (uint64_t)length;
    return 0;
}

static bool is_type(const char *content_type, const char *want)
{
    size_t len = strlen(want);

    if (content_type == NULL || strncasecmp(content_type, want, len) != 0)
        return false;
    content_type += len;
    content_type += strspn(content_type, " \t");
    return *content_type == '\0' || *content_type == ';';
}

bool http_media_type_ok(const struct http_route *route, const char *content_type)
{
    return is_type(content_type, "application/json") ||
           (route->merge_patch && is_type(content_type, "application/merge-patch+json"));
}

static bool sane_id(const char *id)
{
    size_t len = id != NULL ? strlen(id) : 0;

    for (size_t i = 0; i < len; i++) {
        char c = id[i];

        if (!((c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '.' || c == '_' ||
              c == '-'))
            return false;
    }
    return len >= 1 && len <= HTTP_ID_MAX;
}

void http_random_id(struct http_server *server, char out[HTTP_ID_MAX + 1])
{
    if (server->random_left < 8) { /* one system call for many ids */
        random_bytes(server->random, sizeof(server->random));
        server->random_left = sizeof(server->random);
    }
    server->random_left -= 8;
    str_hex(server->random + server->random_left, 8, out);
}

void http_request_id(struct http_conn *conn)
{
    struct http_server *server = conn_server(conn);

    if (sane_id(conn->headers.id)) {
        snprintf(conn->request_id, sizeof(conn->request_id), "%s", conn->headers.id);
        return;
    }
    http_random_id(server, conn->request_id);
}

const char *http_header(const struct http_request *req, const char *name)
{
    return MHD_lookup_connection_value(conn_of(req)->mhd, MHD_HEADER_KIND, name);
}

int http_prefer_wait(const struct http_request *req)
{
    struct http_conn *conn = conn_of(req);
    CLEANUP_ERROR struct error err = ERROR_INIT;

    /* At the limit of waits nobody waits: a change answers 202 at once, which is the truth. */
    if (conn->headers.prefer_wait > 0 && http_slot_take(conn, LIMIT_WAITS, &err) < 0)
        conn->headers.prefer_wait = 0; /* asked again, it says the same */
    return conn->headers.prefer_wait;
}

int http_wait_take(struct http_request *req, struct error *err)
{
    return http_slot_take(conn_of(req), LIMIT_WAITS, err);
}
