/* uuid.c - see uuid.h.  48 bits of milliseconds, 12 bits of counter, 62 random bits. */
#include "base/uuid.h"

#include <ctype.h>
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include "base/clock.h"
#include "base/str.h"

void random_bytes(void *out, unsigned n)
{
    uint8_t *p = out;

    while (n > 0) {
        ssize_t got = getrandom(p, n, 0);
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            abort();
        p += got;
        n -= (unsigned)got;
    }
}

struct uuid uuid_new(void)
{
    static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
    static uint64_t last_ms;
    static uint32_t counter;
    struct uuid id;

    random_bytes(id.bytes, sizeof(id.bytes));
    pthread_mutex_lock(&lock);
    uint64_t ms = (uint64_t)clock_wall_ms();
    if (ms > last_ms) {
        last_ms = ms;
        counter = id.bytes[6] & 0x7U; /* leaves room to count up within the millisecond */
    } else if (++counter > 0xfff) {
        last_ms++;
        counter = 0;
    }
    ms = last_ms;
    uint32_t count = counter;
    pthread_mutex_unlock(&lock);
    for (int i = 0; i < 6; i++)
        id.bytes[i] = (uint8_t)(ms >> (40 - 8 * i));
    id.bytes[6] = (uint8_t)(0x70 | (count >> 8));
    id.bytes[7] = (uint8_t)count;
    id.bytes[8] = (uint8_t)(0x80 | (id.bytes[8] & 0x3f));
    return id;
}

char *uuid_text(const struct uuid *id, char *out)
{
    char hex[33];
    char *p = out;

    str_hex(id->bytes, sizeof(id->bytes), hex);
    for (int i = 0; i < 32; i++) {
        if (i == 8 || i == 12 || i == 16 || i == 20)
            *p++ = '-';
        *p++ = hex[i];
    }
    *p = '\0';
    return out;
}

bool uuid_parse(const char *text, struct uuid *ret)
{
    struct uuid id;
    int nibbles = 0;

    for (int i = 0; i < 36; i++) {
        char c = text[i];
        if (i == 8 || i == 13 || i == 18 || i == 23) {
            if (c != '-')
                return false;
            continue;
        }
        if (!isxdigit((unsigned char)c))
            return false;
        uint8_t v = (uint8_t)(c <= '9' ? c - '0' : (c | 0x20) - 'a' + 10);
        if (nibbles % 2 == 0)
            id.bytes[nibbles / 2] = (uint8_t)(v << 4);
        else
            id.bytes[nibbles / 2] |= v;
        nibbles++;
    }
    if (text[36] != '\0')
        return false;
    *ret = id;
    return true;
}

bool uuid_equal(const struct uuid *a, const struct uuid *b)
{
    return memcmp(a->bytes, b->bytes, sizeof(a->bytes)) == 0;
}

uint64_t uuid_hash(const struct uuid *id)
{
    uint64_t h;

    memcpy(&h, id->bytes + 8, sizeof(h)); /* the random half */
    return h * 0x9e3779b97f4a7c15U;
}
