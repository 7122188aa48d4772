/* neighbour.h - the kernel's neighbour tables (ARP, NDP): which MAC an address was last heard at, on one interface. */
#ifndef NET_NEIGHBOUR_H
#define NET_NEIGHBOUR_H

#include "net/lease.h"

struct neighbour {
    unsigned char mac[NET_MAC_LEN];
    char ip[NET_IP_MAX];
    int64_t age_ms; /* since it was last confirmed */
};

/* Calls fn for each valid entry of the interface, in this network namespace.  Blocks for a moment (a second at most): pool.
 * Fails: ERR_IO. */
int neighbours_read(const char *interface, void (*fn)(void *arg, const struct neighbour *n), void *arg,
                    struct error *err);
/* The messages of one datagram of the kernel's answer; 0: more come, 1: that was the last, -1: the kernel refused or the
 * bytes are none of its. */
int neighbours_parse(const void *data, size_t len, unsigned ifindex, void (*fn)(void *arg, const struct neighbour *n),
                     void *arg);

#endif
