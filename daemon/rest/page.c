/* page.c - a page of a list: which part is asked for, and the answer around its items.
 *
 * Happy path: limit and cursor are read, the resource writes its items, the end says where the next page begins.
 * Failure modes: a limit out of range or a cursor that is none of ours is refused; a page that finds no memory is an error, never a
 * shorter list. */
#include <string.h>

#include "base/mem.h"
#include "base/str.h"
#include "model/fields.h"
#include "rest/rest.h"

enum { PAGE_MAX = 64 << 20 };

/* The opaque cursor, and back: the caller mem_frees. */
static char *cursor_make(const char *text)
{
    size_t len = strlen(text);
    char *hex = mem_alloc(2 * len + 1);

    if (hex != NULL)
        str_hex(text, len, hex);
    return hex;
}

static int hex_digit(char c)
{
    return c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

static int cursor_parse(struct http_request *req, char **ret, struct error *err)
{
    const char *hex = http_query(req, "cursor");
    size_t len = hex != NULL ? strlen(hex) : 0;

    *ret = mem_alloc(len / 2 + 1);
    if (*ret == NULL)
        return error_set(err, ERR_DAEMON_OVERLOADED, "out of memory");
    bool good = hex == NULL || (len > 0 && len % 2 == 0 && len <= 512);
    for (size_t i = 0; good && i < len / 2; i++) {
        int high = hex_digit(hex[2 * i]), low = hex_digit(hex[2 * i + 1]);
        good = high >= 0 && low >= 0 && (high > 0 || low > 0);
        (*ret)[i] = (char)(high * 16 + low);
    }
    (*ret)[good ? len / 2 : 0] = '\0';
    if (good && strspn(*ret, "abcdefghijklmnopqrstuvwxyz0123456789-._") == strlen(*ret))
        return 0;
    mem_free(*ret);
    *ret = NULL;
    return field_pointer_error(err, "/cursor", "the next_cursor of a page", "the query's cursor is none of ours");
}

int rest_page_begin(struct http_request *req, struct rest *rest, struct rest_page *ret, struct error *err)
{
    int64_t limit = 100;
    char *from = NULL;

    if (rest_query_int(req, "limit", 1, 1000, &limit, err) < 0 || cursor_parse(req, &from, err) < 0)
        return -1;
    *ret = (struct rest_page){
        .items = BUF_INIT(PAGE_MAX), .from = from, .limit = (unsigned)limit, .as_of = core_event_newest(rest->core)};
    buf_str(&ret->items, "{\"items\":[");
    return 0;
}

void rest_page_end(struct http_request *req, struct rest_page *page, const char *last, struct error *err)
{
    CLEANUP_FREE char *cursor = last != NULL ? cursor_make(last) : NULL;
    const char *quote = cursor != NULL ? "\"" : "";

    buf_printf(&page->items, "],\"next_cursor\":%s%s%s,\"as_of_event\":%lld}", quote, cursor != NULL ? cursor : "null",
               quote, (long long)page->as_of);
    if (!error_is_set(err) && (page->items.failed || (last != NULL && cursor == NULL)))
        error_set(err, ERR_DAEMON_OVERLOADED, "the page is too large; ask for a smaller limit");
    if (error_is_set(err))
        http_reply_error(req, err);
    else
        http_reply(req, 200, "application/json", page->items.data, page->items.len);
}

void rest_page_done(struct rest_page *page)
{
    buf_done(&page->items);
    mem_free(page->from);
    page->from = NULL;
}
