/* crash.h - crash points: places where a test build ends at once, as kill -9 would end it.
 *
 *   CRASH_POINT("op:%s:%s", kind, step);
 *
 * Only a build with -DVMMD_CRASH_POINTS has them (`make check-crash`); in any other this is nothing, not even a string.  The test
 * writes the file that VMMD_CRASH_FILE names, anew (by rename) each time it wants something else, while the daemon runs:
 *
 *   trace PATH     each point that is passed is appended to PATH, a line each
 *   crash NAME N   the process ends with status CRASH_STATUS when it passes NAME for the Nth time since the file was written
 *
 * Any thread. */
#ifndef BASE_CRASH_H
#define BASE_CRASH_H

enum { CRASH_STATUS = 77 };

#ifdef VMMD_CRASH_POINTS
#define CRASH_POINT(...) crash_point(__VA_ARGS__)
void crash_point(const char *name, ...) __attribute__((format(printf, 1, 2)));
#else
#define CRASH_POINT(...) ((void)0)
#endif

#endif
