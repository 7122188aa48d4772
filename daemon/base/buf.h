/* buf.h - a growing byte buffer with its maximum at birth.  Embedded; runs on any thread.
 *
 * An append that would pass the maximum, or finds no memory, returns -1 and marks the buffer failed: later appends fail
 * too, so a caller may append many times and check once.  The content up to then stays. */
#ifndef BASE_BUF_H
#define BASE_BUF_H

#include <stdbool.h>
#include <stddef.h>

struct buf {
    char *data; /* NUL-terminated whenever not NULL */
    size_t len;
    size_t cap;
    size_t max; /* the most bytes it may hold */
    bool failed;
};

#define BUF_INIT(maximum) \
    {                     \
        .max = (maximum)  \
    }

void buf_init(struct buf *b, size_t max);
void buf_done(struct buf *b);  /* frees; the buffer is empty and usable again */
void buf_reset(struct buf *b); /* empties, keeps the memory, clears the failure */
int buf_append(struct buf *b, const void *data, size_t len);
int buf_str(struct buf *b, const char *s);
int buf_char(struct buf *b, char c);
int buf_printf(struct buf *b, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
/* Appends s as a JSON string with its quotes; invalid UTF-8 becomes U+FFFD. */
int buf_json_str(struct buf *b, const char *s);
/* Removes the first n bytes. */
void buf_consume(struct buf *b, size_t n);
/* Hands the bytes over (mem_free them), the buffer is empty afterwards; NULL if it failed. */
char *buf_take(struct buf *b, size_t *ret_len);

#define CLEANUP_BUF __attribute__((cleanup(buf_done)))

#endif
