/* cage.h - what the helpers give up before they meet hostile bytes.  Helpers alone; before threads. */
#ifndef HELPERS_CAGE_H
#define HELPERS_CAGE_H

#include <stdint.h>

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define SANITIZED 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define SANITIZED 1
#endif
#endif

struct cage_limits {
    uint64_t cpu_s;
    uint64_t file_bytes; /* the largest file it may write */
    uint64_t memory;     /* address space; left out under a sanitizer */
    unsigned files;
};

/* Root becomes nobody, no new privileges, no core, the limits.  -1 with errno. */
int cage_drop(const struct cage_limits *limits);
/* Only the listed system calls (NULL-terminated names), others fail with EPERM.  Threads may be made, processes not; files
 * opened for reading alone.  Nothing under a sanitizer.  -1 when the filter cannot be made. */
int cage_allow(const char *const *calls);
/* The listed ones fail with EPERM, all others work: for a program that is not ours. */
int cage_deny(const char *const *calls);

#endif
