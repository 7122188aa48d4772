/* util.h - small things every part of vmctl needs, over daemon/base.
 *
 * Memory here never comes back NULL: a command line tool that has no memory left says so and ends with exit code 1, so
 * its callers stay readable. */
#ifndef VMCTL_UTIL_H
#define VMCTL_UTIL_H

#include <jansson.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/buf.h"
#include "base/mem.h"

enum { TEXT_MAX = 64 << 20 }; /* no answer and no file is taken that is larger */

/* Zeroed memory, a copy (NULL stays NULL), a formatted string; the caller mem_frees them. */
void *x_alloc(size_t size);
char *x_strdup(const char *s);
char *x_printf(const char *format, ...) __attribute__((format(printf, 1, 2), nonnull(1)));
char *x_vprintf(const char *format, va_list args) __attribute__((format(printf, 1, 0), nonnull(1)));

/* What the buffer holds ("" when nothing), which is empty afterwards; the caller mem_frees it. Ends vmctl when the
 * buffer had failed. */
char *x_take(struct buf *b);

/* Adds `s` with all but unreserved characters percent-encoded (RFC 3986). */
void buf_url(struct buf *b, const char *s);

/* "12s", "5m", "3h", "9d": how long ago the RFC 3339 stamp was; "-" when it is none. Writes into `out`. */
void format_age(const char *stamp, char *out, size_t size);

/* A whole decimal integer, also a negative one; false when `s` is anything else or does not fit. */
bool parse_integer(const char *s, long long *ret_value);

/* Reads a whole file ("-" is stdin) of at most `max` bytes. Returns 0, or an errno (EFBIG: too large). */
int read_whole_file(const char *path, size_t max, struct buf *b);

/* The bytes in base64; the caller mem_frees it. */
char *base64_encode(const void *bytes, size_t len);

/* Decodes base64 into `b`; false when it is none. */
bool base64_decode(const char *text, struct buf *b);

/* A member's string, "" when it is missing or none; lives as long as `object`. */
const char *json_text(const json_t *object, const char *key);

/* A member's integer, `missing` when it is missing or none. */
long long json_number(const json_t *object, const char *key, long long missing);

static inline void json_unrefp(json_t **json)
{
    json_decref(*json);
}
#define CLEANUP_JSON __attribute__((cleanup(json_unrefp)))

#endif
