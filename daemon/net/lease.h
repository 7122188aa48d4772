/* lease.h - what a DHCP server on this host has leased, from dnsmasq's lease file.  Any thread; reading blocks: pool. */
#ifndef NET_LEASE_H
#define NET_LEASE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/error.h"

enum { NET_IP_MAX = 46, NET_MAC_LEN = 6, LEASE_FILE_MAX = 4 << 20 };

struct lease {
    int64_t expires_at; /* seconds since 1970; 0: never */
    unsigned char mac[NET_MAC_LEN];
    char ip[NET_IP_MAX]; /* canonical */
};

/* Calls fn for each IPv4 lease of the text, in its order; lines that are none are passed over. */
void leases_parse(const char *text, void (*fn)(void *arg, const struct lease *lease), void *arg);
/* The same for a file, which need not exist.  Fails: ERR_IO. */
int leases_read(const char *path, void (*fn)(void *arg, const struct lease *lease), void *arg, struct error *err);
/* "52:54:00:12:34:56", any case; false for anything else. */
bool mac_parse(const char *text, unsigned char ret[NET_MAC_LEN]);

#endif
