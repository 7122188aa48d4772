/* digest.c - see digest.h. */
#include "model/digest.h"

#include <nettle/sha2.h>

#include "base/str.h"

char *digest_sha256(const void *data, size_t len, char out[DIGEST_TEXT_MAX])
{
    uint8_t digest[SHA256_DIGEST_SIZE];
    struct sha256_ctx ctx;

    sha256_init(&ctx);
    sha256_update(&ctx, len, data);
    sha256_digest(&ctx, sizeof(digest), digest);
    str_hex(digest, sizeof(digest), out);
    return out;
}
