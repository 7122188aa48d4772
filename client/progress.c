/* progress.c - on a terminal one line that changes, elsewhere a line for each step when it is first seen. */
#include "progress.h"

#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "change.h"
#include "output.h"
#include "util.h"

enum { BAR = 20 };
#define MIB 1048576.0

static bool line_shown; /* there is one stderr, so there is one line */

void progress_init(struct progress *p, const struct cli *cli)
{
    *p = (struct progress){.on = cli->format != FORMAT_JSON, .since = clock_mono_ms()};
    p->line = isatty(STDERR_FILENO) == 1;
}

void progress_clear(void)
{
    if (line_shown)
        fputs("\r\033[K", stderr);
    line_shown = false;
}

static const char *verb_of(const json_t *operation)
{
    const char *kind = json_text(operation, "kind");
    const char *dot = strchr(kind, '.');

    return dot != NULL ? dot + 1 : kind;
}

/* " [######....] 61% of 33.7 MiB" */
static void format_amount(long long done, long long total, char *out, size_t size)
{
    char bar[BAR + 1];

    if (total <= 0 || done > total) {
        snprintf(out, size, " %.1f MiB", (double)done / MIB);
        return;
    }
    for (int i = 0; i < BAR; i++)
        bar[i] = (double)done * BAR >= (double)total * (i + 1) ? '#' : '.';
    bar[BAR] = '\0';
    snprintf(out, size, " [%s] %d%% of %.1f MiB", bar, (int)((double)done * 100 / (double)total), (double)total / MIB);
}

void progress_amount(const struct progress *p, const char *subject, const char *verb, long long done, long long total)
{
    CLEANUP_FREE char *text = NULL;
    char amount[96];

    if (!p->on || !p->line)
        return;
    format_amount(done, total, amount, sizeof(amount));
    text = x_printf("%s: %s%s", subject, verb, amount);
    progress_clear();
    text_visible(stderr, text);
    fflush(stderr);
    line_shown = true;
}

static void show_line(const struct progress *p, const json_t *operation)
{
    const json_t *steps = json_object_get(operation, "steps"), *progress = json_object_get(operation, "progress");
    const char *current = json_text(operation, "step");
    size_t at = 0, i;
    const json_t *step;
    CLEANUP_FREE char *text = NULL;
    char amount[96] = "";

    json_array_foreach(steps, i, step)
    {
        if (strcmp(json_text(step, "state"), "pending") != 0)
            at = i + 1;
    }
    if (json_is_object(progress) && strcmp(json_text(progress, "unit"), "bytes") != 0)
        snprintf(amount, sizeof(amount), " %lld of %lld %s", json_number(progress, "done", 0),
                 json_number(progress, "total", 0), json_text(progress, "unit"));
    else if (json_is_object(progress))
        format_amount(json_number(progress, "done", 0), json_number(progress, "total", -1), amount, sizeof(amount));
    progress_clear();
    text = x_printf("%s: %s (%zu/%zu) %s%s %.1f s", operation_subject(operation), verb_of(operation), at,
                    json_array_size(steps), current, amount, (double)(clock_mono_ms() - p->since) / 1000);
    text_visible(stderr, text);
    fflush(stderr);
    line_shown = true;
}

void progress_update(struct progress *p, const json_t *operation)
{
    const json_t *step;
    size_t i;

    if (!p->on)
        return;
    if (p->line) {
        show_line(p, operation);
        return;
    }
    json_array_foreach(json_object_get(operation, "steps"), i, step)
    {
        CLEANUP_FREE char *text = NULL;

        if (i < p->reported || strcmp(json_text(step, "state"), "pending") == 0 ||
            strcmp(json_text(step, "state"), "skipped") == 0)
            continue;
        text = x_printf("%s: %s: %s", operation_subject(operation), verb_of(operation), json_text(step, "name"));
        text_visible(stderr, text);
        fputc('\n', stderr);
        p->reported = i + 1;
    }
}
