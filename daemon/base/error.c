/* error.c - the catalogue and the error struct.  See error.h. */
#include "base/error.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "base/mem.h"

static const struct error_info catalogue[ERR_MAX] = {
    [ERR_NONE] = {"NONE", "vm_manager::none", 200, 0, false, "No error", ""},
#define ERROR(name, code, status, exit, retryable, title, help) \
    [ERR_##name] = {#name, "vm_manager::" code, status, exit, retryable, title, help},
#include "errors.def"
#undef ERROR
};

static const char prefix[] = "vm_manager::";

const struct error_info *error_info(enum error_code code)
{
    return &catalogue[code > ERR_NONE && code < ERR_MAX ? code : ERR_DAEMON_INTERNAL];
}

enum error_code error_by_name(const char *name)
{
    if (strncmp(name, prefix, sizeof(prefix) - 1) == 0)
        name += sizeof(prefix) - 1;
    for (int i = ERR_NONE + 1; i < ERR_MAX; i++)
        if (strcmp(catalogue[i].code + sizeof(prefix) - 1, name) == 0)
            return (enum error_code)i;
    return ERR_NONE;
}

static char *format_alloc(const char *fmt, va_list ap)
{
    char text[ERROR_MESSAGE_MAX];

    vsnprintf(text, sizeof(text), fmt, ap);
    return mem_strdup(text);
}

static void add_cause(struct error *err, size_t at, char *text)
{
    if (text == NULL || err->n_causes == ERROR_CAUSES_MAX) {
        mem_free(text);
        return;
    }
    memmove(&err->causes[at + 1], &err->causes[at], (err->n_causes - at) * sizeof(err->causes[0]));
    err->causes[at] = text;
    err->n_causes++;
}

static int set_va(struct error *err, enum error_code code, const char *fmt, va_list ap)
{
    if (err == NULL)
        return -1;
    if (error_is_set(err)) {
        add_cause(err, err->n_causes, format_alloc(fmt, ap));
        return -1;
    }
    err->code = code;
    vsnprintf(err->message, sizeof(err->message), fmt, ap);
    return -1;
}

int error_set(struct error *err, enum error_code code, const char *fmt, ...)
{
    va_list ap;

    va_start(ap, fmt);
    set_va(err, code, fmt, ap);
    va_end(ap);
    return -1;
}

int error_errno(struct error *err, int errnum, const char *fmt, ...)
{
    bool full = errnum == ENOSPC || errnum == EDQUOT;
    va_list ap;

    va_start(ap, fmt);
    set_va(err, full ? ERR_HOST_DISK_FULL : ERR_IO, fmt, ap);
    va_end(ap);
    error_cause(err, "%s (errno %d)", strerror(errnum), errnum);
    error_ctx_int(err, "errno", errnum);
    return -1;
}

int error_wrap(struct error *err, enum error_code code, const char *fmt, ...)
{
    va_list ap;

    if (err == NULL)
        return -1;
    if (error_is_set(err))
        add_cause(err, 0, mem_strdup(err->message));
    err->code = code;
    mem_free(err->help);
    err->help = NULL;
    va_start(ap, fmt);
    vsnprintf(err->message, sizeof(err->message), fmt, ap);
    va_end(ap);
    return -1;
}

void error_cause(struct error *err, const char *fmt, ...)
{
    va_list ap;

    if (err == NULL)
        return;
    va_start(ap, fmt);
    add_cause(err, err->n_causes, format_alloc(fmt, ap));
    va_end(ap);
}

void error_help(struct error *err, const char *fmt, ...)
{
    va_list ap;

    if (err == NULL)
        return;
    va_start(ap, fmt);
    mem_free(err->help);
    err->help = format_alloc(fmt, ap);
    va_end(ap);
}

static struct error_context *context_slot(struct error *err, const char *key)
{
    if (err == NULL)
        return NULL;
    for (size_t i = 0; i < err->n_context; i++)
        if (strcmp(err->context[i].key, key) == 0) {
            mem_free(err->context[i].str);
            err->context[i].str = NULL;
            return &err->context[i];
        }
    if (err->n_context == ERROR_CONTEXT_MAX)
        return NULL;
    struct error_context *slot = &err->context[err->n_context++];
    *slot = (struct error_context){0};
    snprintf(slot->key, sizeof(slot->key), "%s", key);
    return slot;
}

void error_ctx_str(struct error *err, const char *key, const char *value)
{
    struct error_context *slot = context_slot(err, key);

    if (slot != NULL) {
        slot->kind = ERROR_VALUE_STR;
        slot->str = mem_strdup(value);
    }
}

void error_ctx_int(struct error *err, const char *key, int64_t value)
{
    struct error_context *slot = context_slot(err, key);

    if (slot != NULL) {
        slot->kind = ERROR_VALUE_INT;
        slot->num = value;
    }
}

void error_ctx_null(struct error *err, const char *key)
{
    struct error_context *slot = context_slot(err, key);

    if (slot != NULL)
        slot->kind = ERROR_VALUE_NULL;
}

void error_ctx_list(struct error *err, const char *key, const char *const *items)
{
    struct error_context *slot = context_slot(err, key);
    size_t len = 1;

    if (slot == NULL)
        return;
    slot->kind = ERROR_VALUE_LIST;
    for (size_t i = 0; items[i] != NULL; i++)
        len += strlen(items[i]) + 1;
    slot->str = mem_alloc(len);
    if (slot->str == NULL)
        return;
    slot->str[0] = '\0';
    for (size_t i = 0; items[i] != NULL; i++) {
        if (i > 0)
            strcat(slot->str, "\n");
        strcat(slot->str, items[i]);
    }
}

const char *error_ctx_get(const struct error *err, const char *key)
{
    for (size_t i = 0; i < err->n_context; i++)
        if (strcmp(err->context[i].key, key) == 0)
            return err->context[i].str;
    return NULL;
}

void error_done(struct error *err)
{
    mem_free(err->help);
    for (size_t i = 0; i < err->n_causes; i++)
        mem_free(err->causes[i]);
    for (size_t i = 0; i < err->n_context; i++)
        mem_free(err->context[i].str);
    *err = (struct error)ERROR_INIT;
}

void error_move(struct error *dst, struct error *src)
{
    error_done(dst);
    *dst = *src;
    *src = (struct error)ERROR_INIT;
}

void error_copy(struct error *dst, const struct error *src)
{
    error_done(dst);
    *dst = *src;
    dst->help = src->help != NULL ? mem_strdup(src->help) : NULL;
    for (size_t i = 0; i < src->n_causes; i++) {
        dst->causes[i] = mem_strdup(src->causes[i]);
        if (dst->causes[i] == NULL) {
            dst->n_causes = i;
            break;
        }
    }
    for (size_t i = 0; i < src->n_context; i++)
        dst->context[i].str = src->context[i].str != NULL ? mem_strdup(src->context[i].str) : NULL;
}
