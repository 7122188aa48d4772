/* digest.h - SHA-256 in hex.  Any thread. */
#ifndef MODEL_DIGEST_H
#define MODEL_DIGEST_H

#include <stddef.h>

enum { DIGEST_TEXT_MAX = 65 };

/* The lower-case hex digest; returns out. */
char *digest_sha256(const void *data, size_t len, char out[DIGEST_TEXT_MAX]);

#endif
