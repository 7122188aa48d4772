/* http.c - one GET, by libcurl.
 *
 * Happy path: the URL is asked for, a few redirects are followed by hand, and a 200 goes into the sink or is kept; where a
 * part file is there, only the rest is asked for, on the condition that nothing changed (If-Range); a server that does not
 * know ranges sends all of it, and the fetch begins anew.
 *
 * Failures: another status than 2xx, a body shorter than announced, no byte for stall_s, a redirect to another scheme or
 * too many, an address that may not be asked (address.c, at the connection itself).  No proxy, no netrc, no cookie, no
 * other protocol; credentials go to the host they are for alone. */
#include <curl/curl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <unistd.h>

#include "base/mem.h"
#include "helpers/fetch/fetch.h"

enum { REDIRECTS_MAX = 5, CONNECT_TIMEOUT_S = 20, BUFFER = 512 << 10, STALL_BYTES = 512, BODY_MAX = 4 << 20 };

/* One request of the GET. */
struct transfer {
    const struct http_get *get;
    struct http_answer *answer;
    CURL *curl;
    struct part part; /* size 0: none */
    int64_t length;   /* announced, -1: not */
    uint64_t range_from;
    int64_t range_total;
    bool begun; /* the first byte was looked at */
    bool outside;
    char refused[160];
};

static bool outside; /* a connection of this fetch was not on loopback */

void http_init(void)
{
    if (curl_global_init(CURL_GLOBAL_DEFAULT) != CURLE_OK)
        fail("io", "libcurl does not work here");
}

static curl_socket_t open_socket(void *arg, curlsocktype purpose, struct curl_sockaddr *address)
{
    struct transfer *t = arg;
    const char *why = address_refused(&address->addr, outside);

    (void)purpose;
    if (why != NULL) {
        snprintf(t->refused, sizeof(t->refused), "%s", why);
        return CURL_SOCKET_BAD;
    }
    t->outside = !address_is_loopback(&address->addr);
    return socket(address->family, address->socktype | SOCK_CLOEXEC, address->protocol);
}

static bool header_is(const char *line, size_t len, const char *name, char *out, size_t size)
{
    size_t n = strlen(name);

    if (len <= n || strncasecmp(line, name, n) != 0 || line[n] != ':')
        return false;
    for (line += n + 1, len -= n + 1; len > 0 && (*line == ' ' || *line == '\t'); line++, len--)
        ;
    while (len > 0 && (unsigned char)line[len - 1] <= ' ')
        len--;
    if (len < size) {
        memcpy(out, line, len);
        out[len] = '\0';
    }
    return true;
}

static size_t on_header(char *line, size_t one, size_t len, void *arg)
{
    struct transfer *t = arg;
    struct http_answer *a = t->answer;
    char text[128] = "";

    if (len > 5 && strncmp(line, "HTTP/", 5) == 0) { /* a 100 came before it, or a 1xx */
        a->etag[0] = a->last_modified[0] = a->challenge[0] = a->digest[0] = '\0';
        t->length = t->range_total = -1;
    }
    if (header_is(line, len, "etag", a->etag, sizeof(a->etag)) ||
        header_is(line, len, "last-modified", a->last_modified, sizeof(a->last_modified)) ||
        header_is(line, len, "www-authenticate", a->challenge, sizeof(a->challenge)) ||
        header_is(line, len, "docker-content-digest", a->digest, sizeof(a->digest)))
        return one * len;
    if (header_is(line, len, "content-length", text, sizeof(text)))
        t->length = strtoll(text, NULL, 10);
    unsigned long long from, to, total;
    if (header_is(line, len, "content-range", text, sizeof(text)) &&
        sscanf(text, "bytes %llu-%llu/%llu", &from, &to, &total) == 3) {
        t->range_from = from;
        t->range_total = (int64_t)total;
    }
    return one * len;
}

/* The first byte of a body for the sink: where does it belong? */
static void begin_body(struct transfer *t)
{
    struct http_answer *a = t->answer;
    struct part fresh = {.total = t->length};

    t->begun = true;
    if (a->status == 206) {
        if (t->part.size == 0 || t->range_from > t->part.size || t->range_total != t->part.total)
            fail(t->get->error_kind, "the server answered with another range than was asked for");
        sink_begin(t->range_from);
        part_note(&t->part); /* it may be cut again */
        sink_expect((uint64_t)t->part.total - t->range_from);
        return;
    }
    sink_begin(0);
    if (t->length > 0)
        sink_expect((uint64_t)t->length);
    if (strncmp(a->etag, "W/", 2) != 0) /* a weak one does not promise the same bytes */
        snprintf(fresh.etag, sizeof(fresh.etag), "%s", a->etag);
    if (fresh.etag[0] == '\0')
        snprintf(fresh.last_modified, sizeof(fresh.last_modified), "%s", a->last_modified);
    if (t->get->digest != NULL)
        snprintf(fresh.digest, sizeof(fresh.digest), "%s", t->get->digest);
    if (fresh.total < 0) /* nobody could tell a whole part from a cut one */
        fresh = (struct part){.total = -1};
    part_note(&fresh);
}

static size_t on_body(char *data, size_t one, size_t len, void *arg)
{
    struct transfer *t = arg;
    struct http_answer *a = t->answer;

    if (a->status == 0)
        curl_easy_getinfo(t->curl, CURLINFO_RESPONSE_CODE, &a->status);
    if (t->get->to_sink && (a->status == 200 || a->status == 206)) {
        if (!t->begun)
            begin_body(t);
        sink_write(data, len);
        return one * len;
    }
    size_t most = t->get->small_max > 0 ? t->get->small_max : BODY_MAX;
    if (a->body_len + len > most)
        return t->get->to_sink ? one * len : 0; /* of a page that nobody reads, or too much */
    char *grown = mem_realloc(a->body, a->body_len + len + 1);
    if (grown == NULL)
        return 0;
    a->body = grown;
    memcpy(a->body + a->body_len, data, len);
    a->body_len += len;
    a->body[a->body_len] = '\0';
    return one * len;
}

/* Also while nothing comes: what came last is told. */
static int on_tick(void *arg, curl_off_t total, curl_off_t now, curl_off_t up_total, curl_off_t up)
{
    const struct transfer *t = arg;

    (void)total;
    (void)now;
    (void)up_total;
    (void)up;
    if (t->begun)
        report_progress(sink_fetched(), t->answer->status == 206 ? t->part.total : t->length);
    return 0;
}

/* CURLOPT_RANGE and If-Range for what is there already. */
static struct curl_slist *ask_for_the_rest(struct transfer *t, struct curl_slist *headers)
{
    char line[VALIDATOR_MAX + 32];
    const char *validator;

    if (!t->get->to_sink || !part_read(&t->part))
        return headers;
    validator = t->part.etag[0] != '\0' ? t->part.etag : t->part.last_modified;
    bool same = t->get->digest != NULL && strcmp(t->part.digest, t->get->digest) == 0;
    if ((validator[0] == '\0' && !same) || t->part.total <= 0) {
        t->part.size = 0;
        return headers;
    }
    if ((int64_t)t->part.size == t->part.total) /* whole: the last byte again, to hear that it still is the same */
        t->part.size--;
    snprintf(line, sizeof(line), "%llu-", (unsigned long long)t->part.size);
    curl_easy_setopt(t->curl, CURLOPT_RANGE, line);
    if (same)
        return headers;
    snprintf(line, sizeof(line), "If-Range: %s", validator);
    return curl_slist_append(headers, line);
}

static void set_up(struct transfer *t, const char *url, struct curl_slist *headers)
{
    CURL *c = t->curl;
    struct curl_blob ca = {(void *)(uintptr_t)job.ca, job.ca_len, CURL_BLOB_NOCOPY};

    curl_easy_setopt(c, CURLOPT_URL, url);
    curl_easy_setopt(c, CURLOPT_HTTPHEADER, headers);
    curl_easy_setopt(c, CURLOPT_PROTOCOLS_STR, "http,https");
    curl_easy_setopt(c, CURLOPT_REDIR_PROTOCOLS_STR, "");
    curl_easy_setopt(c, CURLOPT_FOLLOWLOCATION, 0L);
    curl_easy_setopt(c, CURLOPT_PROXY, "");
    curl_easy_setopt(c, CURLOPT_NOPROXY, "*");
    curl_easy_setopt(c, CURLOPT_NETRC, (long)CURL_NETRC_IGNORED);
    curl_easy_setopt(c, CURLOPT_UNRESTRICTED_AUTH, 0L);
    curl_easy_setopt(c, CURLOPT_NOSIGNAL, 1L);
    curl_easy_setopt(c, CURLOPT_USERAGENT, "vmmd/" VMMD_VERSION);
    curl_easy_setopt(c, CURLOPT_CONNECTTIMEOUT, (long)CONNECT_TIMEOUT_S);
    curl_easy_setopt(c, CURLOPT_TIMEOUT, (long)job.timeout_s);
    curl_easy_setopt(c, CURLOPT_LOW_SPEED_LIMIT, (long)STALL_BYTES);
    curl_easy_setopt(c, CURLOPT_LOW_SPEED_TIME, (long)job.stall_s);
    curl_easy_setopt(c, CURLOPT_BUFFERSIZE, (long)BUFFER);
    curl_easy_setopt(c, CURLOPT_FRESH_CONNECT, 1L); /* each connection is looked at */
    curl_easy_setopt(c, CURLOPT_FORBID_REUSE, 1L);
    curl_easy_setopt(c, CURLOPT_HTTP_VERSION, (long)CURL_HTTP_VERSION_1_1);
    curl_easy_setopt(c, CURLOPT_OPENSOCKETFUNCTION, open_socket);
    curl_easy_setopt(c, CURLOPT_OPENSOCKETDATA, t);
    curl_easy_setopt(c, CURLOPT_HEADERFUNCTION, on_header);
    curl_easy_setopt(c, CURLOPT_HEADERDATA, t);
    curl_easy_setopt(c, CURLOPT_NOPROGRESS, 0L);
    curl_easy_setopt(c, CURLOPT_XFERINFOFUNCTION, on_tick);
    curl_easy_setopt(c, CURLOPT_XFERINFODATA, t);
    curl_easy_setopt(c, CURLOPT_WRITEFUNCTION, on_body);
    curl_easy_setopt(c, CURLOPT_WRITEDATA, t);
    if (job.ca != NULL)
        curl_easy_setopt(c, CURLOPT_CAINFO_BLOB, &ca);
}

static char *url_part(const char *url, CURLUPart part)
{
    CURLU *u = curl_url();
    char *text = NULL;

    if (u == NULL || curl_url_set(u, CURLUPART_URL, url, 0) != CURLUE_OK ||
        curl_url_get(u, part, &text, CURLU_DEFAULT_PORT) != CURLUE_OK)
        text = NULL;
    curl_url_cleanup(u);
    return text;
}

static bool same_part(const char *a, const char *b, CURLUPart part)
{
    char *x = url_part(a, part), *y = url_part(b, part);
    bool same = x != NULL && y != NULL && strcasecmp(x, y) == 0;

    curl_free(x);
    curl_free(y);
    return same;
}

static bool same_host(const char *a, const char *b)
{
    return same_part(a, b, CURLUPART_SCHEME) && same_part(a, b, CURLUPART_HOST) && same_part(a, b, CURLUPART_PORT);
}

static void check_url(const struct http_get *get, const char *url)
{
    char *host = url_part(url, CURLUPART_HOST);
    size_t len = host != NULL ? strlen(host) : 0;

    curl_free(host);
    if (len == 0 || len > 253) /* resolvers have been seen to cut longer ones */
        fail(get->error_kind, "its URL has no host, or one with more than 253 bytes");
}

static struct curl_slist *append(struct curl_slist *list, const char *line)
{
    struct curl_slist *longer = curl_slist_append(list, line);

    if (longer == NULL)
        fail("io", "no memory");
    return longer;
}

static void explain(const struct transfer *t, CURLcode rc, const char *text)
{
    const struct http_get *get = t->get;

    if (t->refused[0] != '\0')
        fail(get->error_kind, "the server's address is %s, and may not be asked", t->refused);
    if (rc == CURLE_OPERATION_TIMEDOUT && t->answer->status > 0)
        fail(get->error_kind, "the server sent nothing, or too little, for %lld s", (long long)job.stall_s);
    if (rc == CURLE_PARTIAL_FILE)
        fail(get->error_kind, "the server ended the body early: %s", text);
    fail(get->error_kind, "%s", text[0] != '\0' ? text : curl_easy_strerror(rc));
}

/* One request; returns the URL it is redirected to (the caller's), or NULL. */
static char *one(const struct http_get *get, const char *url, struct http_answer *answer)
{
    struct transfer t = {.get = get, .answer = answer, .curl = curl_easy_init(), .length = -1, .range_total = -1};
    struct curl_slist *headers = NULL;
    char text[CURL_ERROR_SIZE] = "", *next = NULL, *copy = NULL;

    if (t.curl == NULL)
        fail("io", "no memory");
    answer->status = 0;
    answer->body_len = 0;
    fail_about(0, url);
    check_url(get, url);
    bool home = same_host(url, get->url);
    for (const char *const *line = get->headers; line != NULL && *line != NULL; line++)
        headers = append(headers, *line);
    if (get->authorization != NULL && home)
        headers = append(headers, get->authorization);
    headers = ask_for_the_rest(&t, headers);
    curl_easy_setopt(t.curl, CURLOPT_ERRORBUFFER, text);
    set_up(&t, url, headers);
    CURLcode rc = curl_easy_perform(t.curl);
    curl_easy_getinfo(t.curl, CURLINFO_RESPONSE_CODE, &answer->status);
    fail_about(answer->status, url);
    outside |= t.outside;
    if (rc != CURLE_OK)
        explain(&t, rc, text);
    if (answer->status / 100 == 3 && answer->status != 304)
        curl_easy_getinfo(t.curl, CURLINFO_REDIRECT_URL, &next);
    if (next != NULL && (copy = mem_strdup(next)) == NULL)
        fail("io", "no memory");
    if (get->to_sink && next == NULL && answer->status / 100 == 2) {
        if (answer->status != 200 && answer->status != 206)
            fail(get->error_kind, "the server answered %ld", answer->status);
        if (!t.begun) /* an empty body */
            begin_body(&t);
        sink_end(answer->status == 206 ? t.range_from : 0);
    }
    curl_slist_free_all(headers);
    curl_easy_cleanup(t.curl);
    return copy;
}

static void check_redirect(const struct http_get *get, const char *from, const char *to)
{
    bool https = strncasecmp(from, "https:", 6) == 0;

    if (strncasecmp(to, "https://", 8) != 0 && (https || strncasecmp(to, "http://", 7) != 0))
        fail(get->error_kind, "the server redirects to another scheme: %.100s", to);
    if (strlen(to) >= URL_MAX)
        fail(get->error_kind, "the server redirects to an URL that is too long");
}

void http_get(const struct http_get *get, struct http_answer *answer)
{
    char url[URL_MAX];

    snprintf(url, sizeof(url), "%s", get->url);
    for (int i = 0;; i++) {
        char *next = one(get, url, answer);

        if (next == NULL)
            break;
        check_redirect(get, url, next);
        if (i == REDIRECTS_MAX)
            fail(get->error_kind, "the server redirects more than %d times", REDIRECTS_MAX);
        snprintf(url, sizeof(url), "%s", next);
        mem_free(next);
    }
    snprintf(answer->url, sizeof(answer->url), "%s", url);
    static bool again;
    if (get->to_sink && answer->status == 416 && !again) { /* what is there is of no use: all of it, from the start */
        again = true;
        part_note(&(struct part){.total = -1});
        if (ftruncate(PART_FD, 0) == 0)
            http_get(get, answer);
    }
    if (get->to_sink)
        fail(get->error_kind, "the server answered %ld", answer->status);
}
