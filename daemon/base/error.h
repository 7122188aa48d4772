/* error.h - one error struct from the leaf to the client.
 *
 * A function that can fail takes `struct error *err` last and returns -1.  The error is untouched on success, and the
 * first error wins: setting an error that is already set keeps the first and adds the new text as a cause.
 * No error exists without a code of api/errors.def.  All functions: any thread, complete before return, and never fail
 * (where memory is short, the extras - causes and context - are dropped, code and message never). */
#ifndef BASE_ERROR_H
#define BASE_ERROR_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum error_code {
    ERR_NONE = 0,
#define ERROR(name, code, status, exit, retryable, title, help) ERR_##name,
#include "errors.def"
#undef ERROR
    ERR_MAX,
};

/* A row of the catalogue. */
struct error_info {
    const char *name; /* "VM_BUSY" */
    const char *code; /* "vm_manager::vm::busy" */
    int status;       /* HTTP status, 0 for errors only vmctl makes */
    int exit_code;    /* vmctl's exit code */
    bool retryable;
    const char *title;
    const char *help;
};

enum { ERROR_MESSAGE_MAX = 480, ERROR_CAUSES_MAX = 12, ERROR_CONTEXT_MAX = 8 };

enum error_value { ERROR_VALUE_STR, ERROR_VALUE_INT, ERROR_VALUE_LIST, ERROR_VALUE_NULL };

struct error_context {
    char key[24];
    enum error_value kind;
    int64_t num;
    char *str; /* for a list: its items, joined by '\n' */
};

struct error {
    enum error_code code; /* ERR_NONE: no error */
    char message[ERROR_MESSAGE_MAX];
    char *help; /* NULL: the catalogue's */
    struct error_context context[ERROR_CONTEXT_MAX];
    size_t n_context;
    char *causes[ERROR_CAUSES_MAX]; /* outermost first */
    size_t n_causes;
};

#define ERROR_INIT       \
    {                    \
        .code = ERR_NONE \
    }

/* The catalogue's row of `code`; the row of daemon::internal for a code out of range. */
const struct error_info *error_info(enum error_code code);
/* The code of a full ("vm_manager::vm::busy") or short ("vm::busy") name; ERR_NONE when there is none. */
enum error_code error_by_name(const char *name);

/* Sets the error, unless one is set: then the text becomes its innermost cause.  Always returns -1, so that
 * `return error_set(err, ERR_X, ...)` reads well.  `err` may be NULL. */
int error_set(struct error *err, enum error_code code, const char *fmt, ...) __attribute__((format(printf, 3, 4)));
/* error_set with ERR_IO (ERR_HOST_DISK_FULL for ENOSPC and EDQUOT) and strerror(errnum) as its cause. */
int error_errno(struct error *err, int errnum, const char *fmt, ...) __attribute__((format(printf, 3, 4)));
/* Puts a new code and message on top of a set error; what was set becomes the first cause.  Returns -1. */
int error_wrap(struct error *err, enum error_code code, const char *fmt, ...) __attribute__((format(printf, 3, 4)));
/* Adds the innermost cause. */
void error_cause(struct error *err, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
/* Replaces the catalogue's help for this one error. */
void error_help(struct error *err, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
/* Context members of the problem document; a repeated key replaces its value.  A list is NULL-terminated. */
void error_ctx_str(struct error *err, const char *key, const char *value);
void error_ctx_int(struct error *err, const char *key, int64_t value);
void error_ctx_null(struct error *err, const char *key);
void error_ctx_list(struct error *err, const char *key, const char *const *items);
/* The string value of a context key, or NULL. */
const char *error_ctx_get(const struct error *err, const char *key);

static inline bool error_is_set(const struct error *err)
{
    return err->code != ERR_NONE;
}

/* Frees what the error owns and makes it unset again. */
void error_done(struct error *err);
/* Moves *src into *dst (which must be unset or is freed first); *src is unset afterwards. */
void error_move(struct error *dst, struct error *src);
void error_copy(struct error *dst, const struct error *src);

#define CLEANUP_ERROR __attribute__((cleanup(error_done)))

#endif
