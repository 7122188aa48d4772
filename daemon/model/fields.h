/* fields.h - reading a JSON object strictly: each getter checks type and range and fails with ERR_API_INVALID_FIELD, whose
 * context names the JSON pointer and what was expected.  A field that is missing (or null, where null means "not given")
 * leaves *ret as it is: put the default there first.  Any thread. */
#ifndef MODEL_FIELDS_H
#define MODEL_FIELDS_H

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"

struct fields {
    const json_t *obj;
    const char *pointer; /* of the object: "/spec" */
    struct error *err;
};

/* Fails unless obj is an object all of whose keys are in the NULL-terminated list. */
int fields_open(struct fields *f, const json_t *obj, const char *pointer, const char *const *names, struct error *err);
/* The string is copied (mem_free); at most max_len bytes, no control characters but newline and tab. */
int field_str(const struct fields *f, const char *name, size_t max_len, char **ret);
/* field_str for an absolute path without "." and ".." parts and control characters. */
int field_path(const struct fields *f, const char *name, char **ret);
int field_int(const struct fields *f, const char *name, int64_t min, int64_t max, int64_t *ret);
int field_u32(const struct fields *f, const char *name, int64_t min, int64_t max, uint32_t *ret);
int field_bool(const struct fields *f, const char *name, bool *ret);
/* One of the NULL-terminated texts; *ret gets its index. */
int field_enum(const struct fields *f, const char *name, const char *const *texts, int *ret);
/* NULL when missing or null. */
const json_t *field_get(const struct fields *f, const char *name);
/* The JSON pointer (RFC 6901) of a member: `key` escaped, and cut between characters where it is too long to be shown. */
enum { FIELD_POINTER_MAX = 256 };
char *field_pointer(char out[FIELD_POINTER_MAX], const char *base, const char *key);
/* Always -1: "FIELD must be EXPECTED". */
int field_error(const struct fields *f, const char *name, const char *expected);
int field_pointer_error(struct error *err, const char *pointer, const char *expected, const char *fmt, ...)
    __attribute__((format(printf, 4, 5)));
/* Appends to the array, stealing the item; when either is NULL or memory is short the array is freed and NULL returned. */
json_t *field_append(json_t *list, json_t *item);
/* The same for an object. */
json_t *field_set(json_t *obj, const char *name, json_t *value);

#endif
