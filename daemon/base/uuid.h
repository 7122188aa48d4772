/* uuid.h - UUIDv7 (RFC 9562): ids that sort by birth.  Any thread. */
#ifndef BASE_UUID_H
#define BASE_UUID_H

#include <stdbool.h>
#include <stdint.h>

enum { UUID_TEXT_MAX = 37 };

struct uuid {
    uint8_t bytes[16];
};

/* A new id; ids made by one process strictly ascend. */
struct uuid uuid_new(void);
char *uuid_text(const struct uuid *id, char *out); /* lower case, out has UUID_TEXT_MAX bytes; returns out */
bool uuid_parse(const char *text, struct uuid *ret);
bool uuid_equal(const struct uuid *a, const struct uuid *b);
uint64_t uuid_hash(const struct uuid *id);
/* n bytes from the kernel's random source; never fails (aborts where the kernel has none). */
void random_bytes(void *out, unsigned n);

#endif
