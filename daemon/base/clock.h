/* clock.h - time: monotonic for durations, wall clock for people.  Any thread. */
#ifndef BASE_CLOCK_H
#define BASE_CLOCK_H

#include <stdbool.h>
#include <stdint.h>

enum { CLOCK_TEXT_MAX = 32 };

int64_t clock_mono_ms(void);
int64_t clock_mono_us(void);
int64_t clock_wall_ms(void); /* milliseconds since 1970, UTC */
/* RFC 3339 UTC with milliseconds: 2026-01-31T12:00:00.123Z.  Returns out (CLOCK_TEXT_MAX bytes). */
char *clock_text(int64_t wall_ms, char *out);
bool clock_parse(const char *text, int64_t *ret_wall_ms);

#endif
