/* frame.c - see frame.h. */
#include "base/frame.h"

#include <stdint.h>
#include <string.h>

#include "base/mem.h"

void frames_init(struct frames *f)
{
    buf_init(&f->part, FRAME_HEAD + FRAME_MAX);
}

void frames_done(struct frames *f)
{
    buf_done(&f->part);
}

static size_t length_of(const char *head)
{
    const unsigned char *p = (const unsigned char *)head + 1;

    return (size_t)p[0] << 24 | (size_t)p[1] << 16 | (size_t)p[2] << 8 | p[3];
}

/* How many bytes the frame begun still lacks: of its head, then of all of it. */
static size_t lacking(const struct frames *f)
{
    if (f->part.len < FRAME_HEAD)
        return FRAME_HEAD - f->part.len;
    return FRAME_HEAD + length_of(f->part.data) - f->part.len;
}

int frames_feed(struct frames *f, const char *data, size_t len, frame_fn *fn, void *arg)
{
    while (len > 0) {
        /* A whole frame is passed on where it lies. */
        if (f->part.len == 0 && len >= FRAME_HEAD && length_of(data) <= FRAME_MAX &&
            len - FRAME_HEAD >= length_of(data)) {
            size_t payload = length_of(data);
            if (!fn(arg, data[0], data + FRAME_HEAD, payload))
                return 0;
            data += FRAME_HEAD + payload;
            len -= FRAME_HEAD + payload;
            continue;
        }
        size_t n = lacking(f);
        if (n > len)
            n = len;
        if (buf_append(&f->part, data, n) != 0)
            return -1;
        data += n;
        len -= n;
        if (f->part.len == FRAME_HEAD && length_of(f->part.data) > FRAME_MAX)
            return -1;
        if (f->part.len >= FRAME_HEAD && lacking(f) == 0) {
            struct buf whole = f->part;
            f->part = (struct buf)BUF_INIT(FRAME_HEAD + FRAME_MAX);
            bool go_on = fn(arg, whole.data[0], whole.data + FRAME_HEAD, whole.len - FRAME_HEAD);
            buf_done(&whole);
            if (!go_on)
                return 0;
        }
    }
    return 0;
}

void frame_head(char out[FRAME_HEAD], int type, size_t len)
{
    out[0] = (char)type;
    out[1] = (char)(len >> 24 & 0xff);
    out[2] = (char)(len >> 16 & 0xff);
    out[3] = (char)(len >> 8 & 0xff);
    out[4] = (char)(len & 0xff);
}

int frame_append(struct buf *out, int type, const void *data, size_t len)
{
    const char *at = data;
    char head[FRAME_HEAD];

    do {
        size_t n = len > FRAME_MAX ? FRAME_MAX : len;
        frame_head(head, type, n);
        if (buf_append(out, head, FRAME_HEAD) != 0 || (n > 0 && buf_append(out, at, n) != 0))
            return -1;
        at += n;
        len -= n;
    } while (len > 0);
    return 0;
}

int mark_find(char *data, size_t len, const char *nonce, char **ret_said, size_t *ret_end)
{
    size_t start = strlen(MARK_START), nonce_len = strlen(nonce);

    for (char *at = data; at != NULL && at < data + len; at++) {
        at = memchr(at, MARK_START[0], len - (size_t)(at - data));
        if (at == NULL)
            return 0;
        size_t left = len - (size_t)(at - data);
        if (left < start + nonce_len + 1 || memcmp(at, MARK_START, start) != 0 ||
            memcmp(at + start, nonce, nonce_len) != 0)
            continue;
        char *line_end = memchr(at, '\n', left);
        if (line_end == NULL)
            return 0;
        *line_end = '\0';
        *ret_said = at + start + nonce_len + (at[start + nonce_len] == ' ');
        *ret_end = (size_t)(line_end - data) + 1;
        return 1;
    }
    return 0;
}

int shell_quote(struct buf *out, const char *s)
{
    buf_char(out, '\'');
    for (const char *quote; (quote = strchr(s, '\'')) != NULL; s = quote + 1) {
        buf_append(out, s, (size_t)(quote - s));
        buf_str(out, "'\\''");
    }
    buf_str(out, s);
    return buf_char(out, '\'');
}

const char *shell_failure(const char *line)
{
    static const struct {
        const char *words, *kind;
    } table[] = {
        {"o such file", "missing"},                                    /* also dash's and ash's own words */
        {"nonexistent", "missing"},    {"Not a directory", "missing"}, /* a part of the path; as SFTP has it */
        {"symbolic link", "missing"},  {"ermission denied", "denied"}, {"Operation not permitted", "denied"},
        {"No space left", "no_space"}, {"uota exceeded", "no_space"},  {"irectory not empty", "not_empty"},
    };

    for (const char *next; (next = strstr(line, ": ")) != NULL;)
        line = next + 2;
    for (size_t i = 0; i < ARRAY_SIZE(table); i++)
        if (strstr(line, table[i].words) != NULL)
            return table[i].kind;
    return NULL;
}
