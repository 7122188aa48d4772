/* report.c - what vmmd-fetch says: bounded JSON lines on stdout, read by daemon/image/fetch.c.
 *
 *   {"progress":1048576,"total":268435456}
 *   {"done":…,"written":…,"resumed":…,"sha256":"…","packing":"none"}
 *   {"error":"download","detail":"…","http_status":404,"url":"…","keep":true}        the last line, either way
 *
 * What a full disk stopped is not kept: it would be what fills it. */
#include <inttypes.h>
#include <jansson.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "helpers/fetch/fetch.h"

enum { EVERY_MS = 200, DETAIL_MAX = 300 };

static long about_status;
static char about_url[1024];
static int64_t last_ms;

static _Noreturn void end(json_t *line)
{
    char *text = line != NULL ? json_dumps(line, JSON_COMPACT | JSON_ENSURE_ASCII) : NULL;

    printf("%s\n", text != NULL ? text : "{\"error\":\"io\",\"detail\":\"no memory\"}");
    fflush(stdout);
    _exit(0);
}

/* Without control characters and what is no UTF-8: it may be a server's. */
static void clean(char *text)
{
    for (; *text != '\0'; text++)
        if ((unsigned char)*text < ' ' || (unsigned char)*text >= 0x7f)
            *text = '?';
}

static json_t *failure(const char *kind, char *detail)
{
    clean(detail);
    bool keep = part_kept() && strcmp(kind, "full") != 0;
    json_t *line = json_pack("{s:s,s:s,s:b}", "error", kind, "detail", detail, "keep", keep);
    if (about_status > 0)
        json_object_set_new(line, "http_status", json_integer(about_status));
    if (about_url[0] != '\0')
        json_object_set_new(line, "url", json_string(about_url));
    return line;
}

void fail(const char *kind, const char *fmt, ...)
{
    char detail[DETAIL_MAX];
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(detail, sizeof(detail), fmt, ap);
    va_end(ap);
    end(failure(kind, detail));
}

void fail_checksum(const char *expected, const char *actual)
{
    end(json_pack("{s:s,s:s,s:s,s:s,s:b}", "error", "checksum", "detail", "", "expected", expected, "actual", actual,
                  "keep", 0));
}

void fail_about(long status, const char *url)
{
    about_status = status;
    snprintf(about_url, sizeof(about_url), "%s", url);
    clean(about_url);
}

void report_progress(uint64_t done, int64_t total)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    int64_t ms = (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
    if (ms - last_ms < EVERY_MS)
        return;
    last_ms = ms;
    if (total >= 0)
        printf("{\"progress\":%" PRIu64 ",\"total\":%" PRId64 "}\n", done, total);
    else
        printf("{\"progress\":%" PRIu64 ",\"total\":null}\n", done);
    fflush(stdout);
}

void report_done(uint64_t fetched, uint64_t written, uint64_t resumed, const char *sha256, const char *packing)
{
    end(json_pack("{s:I,s:I,s:I,s:s,s:s}", "done", (json_int_t)fetched, "written", (json_int_t)written, "resumed",
                  (json_int_t)resumed, "sha256", sha256, "packing", packing));
}
