/* lines.c - bounded line splitter.  See lines.h.
 *
 * A line that lies whole in the bytes fed is handed on in place; only the half lines between two feeds are copied. */
#include "base/lines.h"

#include <string.h>

/* A buffer that one long line has grown is not kept for the short ones that follow. */
enum { LINES_KEEP = 16384 };

void lines_init(struct lines *l, size_t max, int restart)
{
    *l = (struct lines){.max = max, .restart = restart};
    buf_init(&l->part, max);
}

void lines_reset(struct lines *l)
{
    l->skipping = false;
    if (l->part.cap > LINES_KEEP)
        buf_done(&l->part);
    else
        buf_reset(&l->part);
}

void lines_done(struct lines *l)
{
    buf_done(&l->part);
    l->skipping = false;
}

/* Gives the line up: reports it, and skips the rest of it unless it ends here. */
static bool give_up(struct lines *l, enum lines_what what, bool ended, lines_fn *fn, void *arg)
{
    lines_reset(l);
    l->skipping = !ended;
    return fn(arg, what, NULL, 0);
}

/* Takes n more bytes of the current line; `ended` says that a newline follows them. */
static bool take(struct lines *l, const char *data, size_t n, bool ended, lines_fn *fn, void *arg)
{
    if (l->skipping) {
        l->skipping = !ended;
        return true;
    }
    if (n > l->max - l->part.len)
        return give_up(l, LINES_TOO_LONG, ended, fn, arg);
    if (ended && l->part.len == 0)
        return fn(arg, LINES_LINE, data, n);
    if (n > 0 && buf_append(&l->part, data, n) < 0)
        return give_up(l, LINES_NO_MEMORY, ended, fn, arg);
    if (!ended)
        return true;
    if (!fn(arg, LINES_LINE, l->part.data, l->part.len))
        return false;
    lines_reset(l);
    return true;
}

/* The end of the current line's bytes in data: a newline, a restart byte, or the end of the data. */
static size_t line_end(const struct lines *l, const char *data, size_t len)
{
    const char *end = memchr(data, '\n', len);
    size_t n = end != NULL ? (size_t)(end - data) : len;

    if (l->restart >= 0) {
        const char *at = memchr(data, l->restart, n);
        if (at != NULL)
            return (size_t)(at - data);
    }
    return n;
}

bool lines_feed(struct lines *l, const char *data, size_t len, lines_fn *fn, void *arg)
{
    while (len > 0) {
        size_t n = line_end(l, data, len);
        if (n < len && data[n] != '\n')
            lines_reset(l);
        else if (!take(l, data, n, n < len, fn, arg))
            return false;
        if (n == len)
            break;
        data += n + 1;
        len -= n + 1;
    }
    return true;
}
