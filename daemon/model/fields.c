/* fields.c - see fields.h. */
#include "model/fields.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "base/mem.h"
#include "base/str.h"

int field_pointer_error(struct error *err, const char *pointer, const char *expected, const char *fmt, ...)
{
    char text[ERROR_MESSAGE_MAX];
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(text, sizeof(text), fmt, ap);
    va_end(ap);
    error_set(err, ERR_API_INVALID_FIELD, "%s", text);
    error_ctx_str(err, "pointer", pointer);
    error_ctx_str(err, "expected", expected);
    return -1;
}

char *field_pointer(char out[FIELD_POINTER_MAX], const char *base, const char *key)
{
    size_t len = (size_t)snprintf(out, FIELD_POINTER_MAX, "%.100s/", base), start = len;

    for (; *key != '\0'; key++) {
        bool begins = ((unsigned char)*key & 0xc0) != 0x80;
        if (begins && len > start + 128) /* room for the longest character, or an escape, is left */
            break;
        if (*key == '~' || *key == '/') {
            out[len++] = '~';
            out[len++] = *key == '~' ? '0' : '1';
        } else {
            out[len++] = *key;
        }
    }
    out[len] = '\0';
    return out;
}

json_t *field_append(json_t *list, json_t *item)
{
    if (list != NULL && json_array_append_new(list, item) == 0)
        return list;
    if (list == NULL)
        json_decref(item);
    json_decref(list);
    return NULL;
}

json_t *field_set(json_t *obj, const char *name, json_t *value)
{
    if (obj != NULL && json_object_set_new(obj, name, value) == 0)
        return obj;
    if (obj == NULL)
        json_decref(value);
    json_decref(obj);
    return NULL;
}

int field_error(const struct fields *f, const char *name, const char *expected)
{
    char pointer[FIELD_POINTER_MAX];

    field_pointer(pointer, f->pointer, name);
    return field_pointer_error(f->err, pointer, expected, "%s must be %s", pointer, expected);
}

int fields_open(struct fields *f, const json_t *obj, const char *pointer, const char *const *names, struct error *err)
{
    const char *key;
    json_t *value;

    *f = (struct fields){.obj = obj, .pointer = pointer, .err = err};
    if (!json_is_object(obj))
        return field_pointer_error(err, pointer, "an object", "%s must be an object",
                                   *pointer != '\0' ? pointer : "the body");
    json_object_foreach((json_t *)obj, key, value)
    {
        size_t i = 0;
        while (names[i] != NULL && strcmp(names[i], key) != 0)
            i++;
        if (names[i] != NULL)
            continue;
        char full[FIELD_POINTER_MAX];
        const char *near = str_nearest(key, names);
        field_pointer(full, pointer, key);
        field_pointer_error(err, full, "no such field",
                            near != NULL ? "%s is not a field here; did you mean \"%s\"?" : "%s is not a field here",
                            full, near);
        if (near != NULL)
            error_ctx_str(err, "nearest", near);
        return -1;
    }
    return 0;
}

const json_t *field_get(const struct fields *f, const char *name)
{
    const json_t *v = json_object_get(f->obj, name);

    return json_is_null(v) ? NULL : v;
}

static bool text_clean(const char *s, bool one_line)
{
    for (; *s != '\0'; s++) {
        unsigned char c = (unsigned char)*s;
        if ((c < 0x20 && (one_line || (c != '\n' && c != '\t' && c != '\r'))) || c == 0x7f)
            return false;
    }
    return true;
}

int field_str(const struct fields *f, const char *name, size_t max_len, char **ret)
{
    const json_t *v = field_get(f, name);
    char expected[48];

    if (v == NULL)
        return 0;
    snprintf(expected, sizeof(expected), "a string of at most %zu bytes", max_len);
    if (!json_is_string(v) || json_string_length(v) > max_len)
        return field_error(f, name, expected);
    if (!text_clean(json_string_value(v), false))
        return field_error(f, name, "a string without control characters");
    char *copy = mem_strdup(json_string_value(v));
    if (copy == NULL)
        return error_set(f->err, ERR_DAEMON_OVERLOADED, "out of memory");
    mem_free(*ret);
    *ret = copy;
    return 0;
}

int field_path(const struct fields *f, const char *name, char **ret)
{
    const json_t *v = field_get(f, name);

    if (v == NULL)
        return 0;
    const char *s = json_string_value(v);
    if (s == NULL || s[0] != '/' || strlen(s) > 1024 || !text_clean(s, true) || strstr(s, "/../") != NULL ||
        strstr(s, "/./") != NULL || strcmp(strrchr(s, '/'), "/..") == 0 || strcmp(strrchr(s, '/'), "/.") == 0)
        return field_error(f, name, "an absolute path without . and .. of at most 1024 bytes");
    return field_str(f, name, 1024, ret);
}

int field_int(const struct fields *f, const char *name, int64_t min, int64_t max, int64_t *ret)
{
    const json_t *v = field_get(f, name);
    char expected[64];

    if (v == NULL)
        return 0;
    if (!json_is_integer(v) || json_integer_value(v) < min || json_integer_value(v) > max) {
        snprintf(expected, sizeof(expected), "%lld–%lld", (long long)min, (long long)max);
        return field_error(f, name, expected);
    }
    *ret = json_integer_value(v);
    return 0;
}

int field_u32(const struct fields *f, const char *name, int64_t min, int64_t max, uint32_t *ret)
{
    int64_t v = *ret;

    if (field_int(f, name, min, max, &v) < 0)
        return -1;
    *ret = (uint32_t)v;
    return 0;
}

int field_bool(const struct fields *f, const char *name, bool *ret)
{
    const json_t *v = field_get(f, name);

    if (v == NULL)
        return 0;
    if (!json_is_boolean(v))
        return field_error(f, name, "true or false");
    *ret = json_is_true(v);
    return 0;
}

int field_enum(const struct fields *f, const char *name, const char *const *texts, int *ret)
{
    const json_t *v = field_get(f, name);
    char expected[160] = "one of";

    if (v == NULL)
        return 0;
    for (int i = 0; texts[i] != NULL; i++) {
        if (json_is_string(v) && strcmp(json_string_value(v), texts[i]) == 0) {
            *ret = i;
            return 0;
        }
        size_t len = strlen(expected);
        snprintf(expected + len, sizeof(expected) - len, "%s %s", i > 0 ? "," : "", texts[i]);
    }
    field_error(f, name, expected);
    if (json_is_string(v) && str_nearest(json_string_value(v), texts) != NULL)
        error_ctx_str(f->err, "nearest", str_nearest(json_string_value(v), texts));
    return -1;
}
