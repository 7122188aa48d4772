/* diagnostic.h - problem documents: the daemon's, and vmctl's own. */
#ifndef VMCTL_DIAGNOSTIC_H
#define VMCTL_DIAGNOSTIC_H

#include <jansson.h>

#include "base/error.h"
#include "cli.h"

/* A problem document of vmctl's own, by the code's row of the catalogue; the caller owns it. */
json_t *problem_new(enum error_code code, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* Adds the innermost cause, or replaces the catalogue's help. */
void problem_cause(json_t *problem, const char *format, ...) __attribute__((format(printf, 2, 3)));
void problem_help(json_t *problem, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* The exit code: by the problem's code, or where the code is not known by its status. */
int problem_exit_code(const json_t *problem);

/* Whether the problem has this code. */
bool problem_is(const json_t *problem, enum error_code code);

/* Shows the problem: on stderr as code, message, causes and help, with `subject` before it if not NULL; with -o json
 * the document on stdout and nothing else. Returns its exit code. */
int problem_show(const struct cli *cli, const json_t *problem, const char *subject);

/* A remark on stderr ("vmctl: …"), its control characters made visible. */
void note(const char *format, ...) __attribute__((format(printf, 1, 2)));

#endif
