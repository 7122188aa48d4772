/* log.c - see log.h.  A line is built in memory and written by one write(2), so that lines never mix. */
#include "base/log.h"

#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/buf.h"
#include "base/clock.h"
#include "base/fd.h"

static enum log_level threshold = LOG_LEVEL_INFO;
static bool as_json;
static bool to_journal;

static const char *const level_names[] = {"error", "warn", "info", "debug"};
static const char journal_priority[] = {'3', '4', '6', '7'};

bool log_level_parse(const char *text, enum log_level *ret)
{
    for (int i = 0; i < 4; i++)
        if (strcmp(text, level_names[i]) == 0) {
            *ret = (enum log_level)i;
            return true;
        }
    return false;
}

void log_init(enum log_level level, bool json)
{
    threshold = level;
    as_json = json;
    to_journal = getenv("JOURNAL_STREAM") != NULL && !isatty(STDERR_FILENO);
}

bool log_enabled(enum log_level level)
{
    return level <= threshold;
}

/* logfmt: a bare word stays bare, anything else is quoted as in JSON. */
static void put_logfmt(struct buf *b, const char *value)
{
    bool bare = *value != '\0';

    for (const char *p = value; *p != '\0' && bare; p++)
        bare = *p > ' ' && *p < 0x7f && *p != '"' && *p != '=' && *p != '\\';
    if (bare)
        buf_str(b, value);
    else
        buf_json_str(b, value);
}

static void put_pair(struct buf *b, const char *key, const char *value)
{
    if (as_json) {
        buf_str(b, b->data != NULL && b->data[b->len - 1] == '{' ? "" : ",");
        buf_json_str(b, key);
        buf_char(b, ':');
        buf_json_str(b, value);
    } else {
        buf_char(b, ' ');
        buf_str(b, key);
        buf_char(b, '=');
        put_logfmt(b, value);
    }
}

void log_write(enum log_level level, const char *message, ...)
{
    CLEANUP_BUF struct buf b = BUF_INIT(16384);
    char at[CLOCK_TEXT_MAX];
    va_list ap;

    if (!log_enabled(level))
        return;
    if (to_journal)
        buf_printf(&b, "<%c>", journal_priority[level]);
    clock_text(clock_wall_ms(), at);
    if (as_json) {
        buf_str(&b, "{\"ts\":");
        buf_json_str(&b, at);
    } else {
        buf_printf(&b, "ts=%s", at);
    }
    put_pair(&b, "level", level_names[level]);
    put_pair(&b, "msg", message);
    va_start(ap, message);
    for (const char *key; (key = va_arg(ap, const char *)) != NULL;) {
        const char *value = va_arg(ap, const char *);
        if (value != NULL)
            put_pair(&b, key, value);
    }
    va_end(ap);
    if (as_json)
        buf_char(&b, '}');
    b.failed = false; /* a line too long is cut, not lost */
    b.max += 1;
    buf_char(&b, '\n');
    if (b.data != NULL)
        fd_write_all(STDERR_FILENO, b.data, b.len);
}
