/* log.h - one line per fact on stderr: logfmt or JSON, with journald priorities when stderr is the journal.
 *
 *   LOG_INFO("vm started", "vm", name, "pid", pidtext)
 * Keys and values are strings in pairs, ended by NULL (the macros add it); a NULL value is left out.
 * Any thread; complete before return; never fails. */
#ifndef BASE_LOG_H
#define BASE_LOG_H

#include <stdbool.h>

enum log_level { LOG_LEVEL_ERROR, LOG_LEVEL_WARN, LOG_LEVEL_INFO, LOG_LEVEL_DEBUG };

/* "error", "warn", "info" or "debug". */
bool log_level_parse(const char *text, enum log_level *ret);
void log_init(enum log_level level, bool json);
bool log_enabled(enum log_level level);
void log_write(enum log_level level, const char *message, ...) __attribute__((sentinel));

#define LOG_ERROR(...) log_write(LOG_LEVEL_ERROR, __VA_ARGS__, NULL)
#define LOG_WARN(...) log_write(LOG_LEVEL_WARN, __VA_ARGS__, NULL)
#define LOG_INFO(...) log_write(LOG_LEVEL_INFO, __VA_ARGS__, NULL)
#define LOG_DEBUG(...)                                     \
    do {                                                   \
        if (log_enabled(LOG_LEVEL_DEBUG))                  \
            log_write(LOG_LEVEL_DEBUG, __VA_ARGS__, NULL); \
    } while (0)

#endif
