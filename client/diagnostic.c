/* diagnostic.c - problem documents on stderr: what happened, why, and what to do next.
 *
 * Colours only when stderr is a terminal and NO_COLOR is not set. Whatever the daemon's texts carry, they cannot drive
 * the terminal. */
#include "diagnostic.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "output.h"
#include "progress.h"
#include "util.h"

/* A JSON string of any bytes: what is no UTF-8 becomes "?". */
static json_t *json_string_any(char *s)
{
    json_t *json = json_string(s);

    for (char *p = s; json == NULL && *p != '\0'; p++) {
        if ((unsigned char)*p >= 0x80)
            *p = '?';
    }
    return json != NULL ? json : json_string(s);
}

json_t *problem_new(enum error_code code, const char *format, ...)
{
    const struct error_info *info = error_info(code);
    json_t *problem = json_object();
    va_list args;
    char *detail;

    va_start(args, format);
    detail = x_vprintf(format, args);
    va_end(args);
    json_object_set_new(problem, "type", json_sprintf("/v1/errors/%s", info->code));
    json_object_set_new(problem, "title", json_string(info->title));
    if (info->status > 0)
        json_object_set_new(problem, "status", json_integer(info->status));
    json_object_set_new(problem, "detail", json_string_any(detail));
    json_object_set_new(problem, "code", json_string(info->code));
    json_object_set_new(problem, "help", json_string(info->help));
    json_object_set_new(problem, "retryable", json_boolean(info->retryable));
    json_object_set_new(problem, "context", json_object());
    json_object_set_new(problem, "causes", json_array());
    mem_free(detail);
    return problem;
}

void problem_cause(json_t *problem, const char *format, ...)
{
    va_list args;
    char *cause;

    va_start(args, format);
    cause = x_vprintf(format, args);
    va_end(args);
    json_array_append_new(json_object_get(problem, "causes"), json_string_any(cause));
    mem_free(cause);
}

void problem_help(json_t *problem, const char *format, ...)
{
    va_list args;
    char *help;

    va_start(args, format);
    help = x_vprintf(format, args);
    va_end(args);
    json_object_set_new(problem, "help", json_string_any(help));
    mem_free(help);
}

int problem_exit_code(const json_t *problem)
{
    enum error_code code = error_by_name(json_text(problem, "code"));
    long long status = json_number(problem, "status", 0);

    if (code != ERR_NONE)
        return error_info(code)->exit_code;
    switch (status) {
    case 404:
    case 410:
        return EXIT_NOT_FOUND;
    case 409:
    case 412:
        return EXIT_CONFLICT;
    case 504:
        return EXIT_TIMED_OUT;
    case 401:
    case 403:
        return EXIT_REFUSED;
    default:
        return EXIT_FAILED;
    }
}

bool problem_is(const json_t *problem, enum error_code code)
{
    return strcmp(json_text(problem, "code"), error_info(code)->code) == 0;
}

static void colour(const char *sequence)
{
    const char *no_color = getenv("NO_COLOR");

    if (isatty(STDERR_FILENO) && (no_color == NULL || no_color[0] == '\0'))
        fputs(sequence, stderr);
}

/* Writes "  label: text", the lines of the text below each other. */
static void show_part(const char *label, const char *text)
{
    int indent = (int)strlen(label) + 4;

    fprintf(stderr, "  %s: ", label);
    while (*text != '\0') {
        size_t size = strcspn(text, "\n");
        char *line = x_printf("%.*s", (int)size, text);

        text_visible(stderr, line);
        mem_free(line);
        text += size;
        if (*text == '\n' && *++text != '\0')
            fprintf(stderr, "\n%*s", indent, "");
    }
    fputc('\n', stderr);
}

/* What a refused field takes, where the message does not say so already. */
static void show_expected(const json_t *problem, const char *detail)
{
    const json_t *context = json_object_get(problem, "context");
    const char *expected = json_text(context, "expected"), *near = json_text(context, "nearest");

    if (!problem_is(problem, ERR_API_INVALID_FIELD))
        return;
    if (expected[0] != '\0' && strstr(detail, expected) == NULL)
        show_part("expected", expected);
    if (near[0] != '\0' && strstr(detail, near) == NULL)
        show_part("nearest", near);
}

int problem_show(const struct cli *cli, const json_t *problem, const char *subject)
{
    const char *detail = json_text(problem, "detail");
    const json_t *cause;
    size_t i;

    progress_clear();
    if (cli->format == FORMAT_JSON) {
        out_json(problem);
        return problem_exit_code(problem);
    }
    out_flush(); /* so that both streams of one terminal stay in order */
    colour("\033[1;31m");
    fputs("error", stderr);
    colour("\033[0m");
    fputs(": ", stderr);
    colour("\033[1m");
    text_visible(stderr, json_text(problem, "code"));
    colour("\033[0m");
    fputc('\n', stderr);
    if (subject != NULL) {
        char *text = x_printf("%s: %s", subject, detail[0] != '\0' ? detail : json_text(problem, "title"));

        show_part("message", text);
        mem_free(text);
    } else {
        show_part("message", detail[0] != '\0' ? detail : json_text(problem, "title"));
    }
    show_expected(problem, detail);
    json_array_foreach(json_object_get(problem, "causes"), i, cause)
    {
        show_part("cause", json_is_string(cause) ? json_string_value(cause) : json_text(cause, "detail"));
    }
    colour("\033[36m");
    if (json_text(problem, "help")[0] != '\0')
        show_part("help", json_text(problem, "help"));
    colour("\033[0m");
    if (problem_is(problem, ERR_DAEMON_INTERNAL) && json_text(problem, "request_id")[0] != '\0')
        show_part("request", json_text(problem, "request_id"));
    return problem_exit_code(problem);
}

void note(const char *format, ...)
{
    va_list args;
    char *text;

    progress_clear();
    va_start(args, format);
    text = x_vprintf(format, args);
    va_end(args);
    fputs("vmctl: ", stderr);
    text_visible(stderr, text);
    fputc('\n', stderr);
    mem_free(text);
}
