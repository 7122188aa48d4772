/* sha1.h - SHA-1, for nothing but the WebSocket handshake (RFC 6455), which names it. */
#ifndef VMCTL_SHA1_H
#define VMCTL_SHA1_H

#include <stddef.h>

/* The digest of up to 4096 bytes. */
void sha1(const void *bytes, size_t size, unsigned char digest[20]);

#endif
