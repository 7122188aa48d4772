/* str.h - strings: UTF-8, globs, numbers, hex, near misses.  Any thread; nothing allocates. */
#ifndef BASE_STR_H
#define BASE_STR_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* The length of the valid UTF-8 sequence at s (1-4), or 0 if there is none in `left` bytes. */
size_t utf8_sequence(const char *s, size_t left);
bool utf8_valid(const char *s, size_t len);
/* A whole decimal number between min and max; false for anything else (sign, space, overflow, empty). */
bool str_to_i64(const char *s, int64_t min, int64_t max, int64_t *ret);
/* A glob of *, ? and [..]; anchored at both ends. */
bool str_glob(const char *pattern, const char *s);
bool str_prefix(const char *s, const char *prefix);
/* The nearest of the NULL-terminated candidates by edit distance, or NULL if none is near enough to suggest. */
const char *str_nearest(const char *s, const char *const *candidates);
/* Lower-case hex; out needs 2*len+1 bytes. */
void str_hex(const void *data, size_t len, char *out);
/* Compares in time that depends on the lengths only. */
bool str_equal_const_time(const char *a, const char *b);
uint64_t str_hash(const char *s); /* SipHash-1-3, keyed anew by each process: for tables in memory, hostile keys too */

#endif
