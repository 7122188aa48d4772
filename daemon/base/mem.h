/* mem.h - the memory seam: every allocation of the daemon goes through here, so that tests can fail the Nth.
 *
 * Each returns NULL when memory is short, and the caller handles it.  What they return is freed by mem_free.
 * Runs on: any thread. */
#ifndef BASE_MEM_H
#define BASE_MEM_H

#include <stddef.h>
#include <stdlib.h>

void *mem_alloc(size_t size);
void *mem_zalloc(size_t size); /* zeroed */
void *mem_realloc(void *ptr, size_t size);
char *mem_strdup(const char *s);
char *mem_strndup(const char *s, size_t n);
char *mem_printf(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
void mem_free(void *ptr);

/* Tests only: the Nth allocation from now (from 1) fails, once; 0 switches it off.  Returns how many allocations were
 * made since the last call, from the first one on. */
size_t mem_fail_nth(size_t nth);

static inline void mem_freep(void *p)
{
    void **pp = p;

    mem_free(*pp);
    *pp = NULL;
}
#define CLEANUP_FREE __attribute__((cleanup(mem_freep)))
#define TAKE_PTR(p)                    \
    ({                                 \
        __typeof__(p) take_ptr_ = (p); \
        (p) = NULL;                    \
        take_ptr_;                     \
    })
#define ARRAY_SIZE(a) (sizeof(a) / sizeof((a)[0]))
#define CONTAINER_OF(ptr, type, member) ((type *)(void *)((char *)(ptr)-offsetof(type, member)))

#endif
