/* image.c - see image.h. */
#include "model/image.h"

#include <ctype.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>

#include "base/clock.h"
#include "base/mem.h"

static const char *const states[] = {"pulling", "ready"};
static const char name_chars[] = "abcdefghijklmnopqrstuvwxyz0123456789-._";

const char *image_state_text(enum image_state state)
{
    return states[state];
}

static bool ends_well(char c)
{
    return (c >= 'a' && c <= 'z') || isdigit((unsigned char)c);
}

bool image_name_valid(const char *name)
{
    size_t len = strlen(name);

    if (strcmp(name, "prune") == 0) /* the route of that name */
        return false;
    return len >= 1 && len <= IMAGE_NAME_MAX && strspn(name, name_chars) == len && ends_well(name[0]) &&
           ends_well(name[len - 1]);
}

/* The host of an URL, behind "://"; credentials in it would be shown to everybody. */
static bool host_valid(const char *host)
{
    size_t len = strcspn(host, "/?#");

    return len > 0 && memchr(host, '@', len) == NULL;
}

bool image_url_valid(const char *url)
{
    size_t len = strlen(url);

    for (size_t i = 0; i < len; i++)
        if ((unsigned char)url[i] <= ' ' || url[i] == 0x7f)
            return false;
    if (len > IMAGE_URL_MAX)
        return false;
    if (strncasecmp(url, "http://", 7) == 0)
        return host_valid(url + 7);
    if (strncasecmp(url, "https://", 8) == 0)
        return host_valid(url + 8);
    if (strncmp(url, "oci://", 6) == 0)
        return host_valid(url + 6) && strchr(url + 6, '/') != NULL;
    return strncmp(url, "file:///", 8) == 0;
}

bool image_sha256_valid(const char *text)
{
    if (strncasecmp(text, "sha256:", 7) == 0)
        text += 7;
    return strlen(text) == IMAGE_SHA256_LEN && strspn(text, "0123456789abcdefABCDEF") == IMAGE_SHA256_LEN;
}

void image_sha256_text(const char *text, char out[IMAGE_SHA256_LEN + 1])
{
    if (strncasecmp(text, "sha256:", 7) == 0)
        text += 7;
    for (size_t i = 0; i <= IMAGE_SHA256_LEN; i++)
        out[i] = (char)tolower((unsigned char)text[i]);
}

void image_name_from_url(const char *url, char out[IMAGE_NAME_MAX + 1])
{
    static const char *const packings[] = {".gz", ".xz", ".zst", ".zstd"};
    size_t end = strcspn(url, "?#"), begin;

    if (strncmp(url, "oci://", 6) == 0 && memchr(url, '@', end) != NULL)
        end = (size_t)((const char *)memchr(url, '@', end) - url);
    while (end > 0 && url[end - 1] == '/')
        end--;
    for (size_t i = 0; i < ARRAY_SIZE(packings); i++) {
        size_t len = strlen(packings[i]);
        if (end > len && strncasecmp(url + end - len, packings[i], len) == 0) {
            end -= len;
            break;
        }
    }
    for (begin = end; begin > 0 && url[begin - 1] != '/'; begin--)
        ;
    size_t n = 0;
    for (; begin < end && n < IMAGE_NAME_MAX; begin++) {
        char c = (char)tolower((unsigned char)url[begin]);
        if (strchr(name_chars, c) == NULL)
            c = '-';
        if (n > 0 || ends_well(c))
            out[n++] = c;
    }
    while (n > 0 && !ends_well(out[n - 1]))
        n--;
    out[n] = '\0';
    if (n == 0)
        snprintf(out, IMAGE_NAME_MAX + 1, "image");
}

void image_done(struct image *image)
{
    mem_free(image->name);
    mem_free(image->url);
    mem_free(image->sha256);
    mem_free(image->format);
    mem_free(image->source_format);
    mem_free(image->packing);
    mem_free(image->path);
    *image = (struct image){0};
}

static json_t *text_or_null(const char *s)
{
    return s != NULL ? json_string(s) : json_null();
}

static json_t *size_or_null(int64_t size, bool known)
{
    return known ? json_integer(size) : json_null();
}

json_t *image_json(const struct image *image)
{
    char id[UUID_TEXT_MAX], created[CLOCK_TEXT_MAX], updated[CLOCK_TEXT_MAX];
    bool ready = image->state == IMAGE_READY;

    return json_pack("{s:s,s:s,s:s,s:o,s:o,s:b,s:o,s:o,s:o,s:o,s:o,s:o,s:s,s:s}", "id", uuid_text(&image->id, id),
                     "name", image->name, "state", states[image->state], "url", text_or_null(image->url), "sha256",
                     text_or_null(image->sha256), "sha256_verified", image->verified, "format",
                     text_or_null(image->format), "source_format", text_or_null(image->source_format), "packing",
                     text_or_null(image->packing), "path", text_or_null(image->path), "size_bytes",
                     size_or_null(image->size, ready), "virtual_size_bytes", size_or_null(image->virtual_size, ready),
                     "created_at", clock_text(image->created_at, created), "updated_at",
                     clock_text(image->updated_at, updated));
}

static bool take(char **ret, const json_t *doc, const char *name)
{
    const char *text = json_string_value(json_object_get(doc, name));

    return text == NULL || (*ret = mem_strdup(text)) != NULL;
}

static void take_time(int64_t *ret, const json_t *doc, const char *name)
{
    const char *text = json_string_value(json_object_get(doc, name));

    if (text != NULL)
        clock_parse(text, ret);
}

int image_from_json(const json_t *doc, struct image *ret, struct error *err)
{
    struct image image = {0};
    const char *id = json_string_value(json_object_get(doc, "id")),
               *state = json_string_value(json_object_get(doc, "state"));

    for (int i = 0; state != NULL && i < IMAGE_STATE_MAX; i++)
        if (strcmp(state, states[i]) == 0)
            image.state = (enum image_state)i;
    image.verified = json_is_true(json_object_get(doc, "sha256_verified"));
    image.size = json_integer_value(json_object_get(doc, "size_bytes"));
    image.virtual_size = json_integer_value(json_object_get(doc, "virtual_size_bytes"));
    take_time(&image.created_at, doc, "created_at");
    take_time(&image.updated_at, doc, "updated_at");
    bool good = take(&image.name, doc, "name") && take(&image.url, doc, "url") && take(&image.sha256, doc, "sha256") &&
                take(&image.format, doc, "format") && take(&image.source_format, doc, "source_format") &&
                take(&image.packing, doc, "packing") && take(&image.path, doc, "path");
    if (good && id != NULL && uuid_parse(id, &image.id) && image.name != NULL && image_name_valid(image.name)) {
        *ret = image;
        return 0;
    }
    image_done(&image);
    return error_set(err, good ? ERR_DAEMON_INTERNAL : ERR_DAEMON_OVERLOADED, "a stored image cannot be read");
}
