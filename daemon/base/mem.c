/* mem.c - malloc with a counter that tests can trip.  See mem.h.
 *
 * Nothing is counted before the first mem_fail_nth: a counter all threads write costs as much as a small malloc. */
#include "base/mem.h"

#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

static atomic_bool counting;
static atomic_size_t made;
static atomic_size_t fail_at;

static bool refused(void)
{
    if (!atomic_load_explicit(&counting, memory_order_relaxed))
        return false;
    size_t at = atomic_load_explicit(&fail_at, memory_order_relaxed);
    size_t n = atomic_fetch_add_explicit(&made, 1, memory_order_relaxed) + 1;

    return at != 0 && n == at;
}

size_t mem_fail_nth(size_t nth)
{
    size_t n = atomic_exchange(&made, 0);

    atomic_store(&fail_at, nth);
    atomic_store(&counting, true);
    return n;
}

void *mem_alloc(size_t size)
{
    return refused() ? NULL : malloc(size > 0 ? size : 1);
}

void *mem_zalloc(size_t size)
{
    return refused() ? NULL : calloc(1, size > 0 ? size : 1);
}

void *mem_realloc(void *ptr, size_t size)
{
    return refused() ? NULL : realloc(ptr, size > 0 ? size : 1);
}

char *mem_strdup(const char *s)
{
    return mem_strndup(s, strlen(s));
}

char *mem_strndup(const char *s, size_t n)
{
    n = strnlen(s, n);
    char *copy = mem_alloc(n + 1);
    if (copy != NULL) {
        memcpy(copy, s, n);
        copy[n] = '\0';
    }
    return copy;
}

char *mem_printf(const char *fmt, ...)
{
    va_list ap;

    va_start(ap, fmt);
    int len = vsnprintf(NULL, 0, fmt, ap);
    va_end(ap);
    if (len < 0)
        return NULL;
    char *text = mem_alloc((size_t)len + 1);
    if (text == NULL)
        return NULL;
    va_start(ap, fmt);
    vsnprintf(text, (size_t)len + 1, fmt, ap);
    va_end(ap);
    return text;
}

void mem_free(void *ptr)
{
    free(ptr);
}
