/* address.c - which addresses may be image servers.
 *
 * Asked with the address of each connection itself, after all names were resolved and all redirects followed: a name may
 * say anything.  Refused are this host's own addresses, link-local ones (the clouds' metadata services among them), and
 * what is no address of one host, unless the config allows them.  Loopback is fine for a fetch that begins there and
 * stays there, and never for one that was sent there from outside. */
#include <arpa/inet.h>
#include <ifaddrs.h>
#include <netinet/in.h>
#include <string.h>
#include <strings.h>

#include "helpers/fetch/fetch.h"

/* IPv4 as IPv6 has it, so that a mapped address is what it maps to. */
static bool widen(const struct sockaddr *addr, uint8_t out[16])
{
    memset(out, 0, 16);
    if (addr->sa_family == AF_INET) {
        out[10] = out[11] = 0xff;
        memcpy(out + 12, &((const struct sockaddr_in *)(const void *)addr)->sin_addr, 4);
        return true;
    }
    if (addr->sa_family != AF_INET6)
        return false;
    memcpy(out, &((const struct sockaddr_in6 *)(const void *)addr)->sin6_addr, 16);
    /* NAT64 and 6to4 carry an IPv4 address as well. */
    if (memcmp(out, "\x00\x64\xff\x9b\0\0\0\0\0\0\0\0", 12) == 0)
        memcpy(out, "\0\0\0\0\0\0\0\0\0\0\xff\xff", 12);
    if (out[0] == 0x20 && out[1] == 0x02) {
        memcpy(out + 12, out + 2, 4);
        memcpy(out, "\0\0\0\0\0\0\0\0\0\0\xff\xff", 12);
    }
    return true;
}

static bool is_v4(const uint8_t a[16])
{
    return memcmp(a, "\0\0\0\0\0\0\0\0\0\0\xff\xff", 12) == 0;
}

static bool same_bits(const uint8_t *a, const uint8_t *b, unsigned bits)
{
    unsigned whole = bits / 8, rest = bits % 8;

    return memcmp(a, b, whole) == 0 && (rest == 0 || ((a[whole] ^ b[whole]) >> (8 - rest)) == 0);
}

/* "10.0.0.0/8", "fe80::1". */
static bool in_range(const uint8_t a[16], const char *range)
{
    char text[64];
    const char *slash = strchr(range, '/');
    size_t len = slash != NULL ? (size_t)(slash - range) : strlen(range);
    struct in6_addr v6;
    struct in_addr v4;
    uint8_t wide[16] = {0};
    unsigned bits = 0, most;

    if (len >= sizeof(text))
        return false;
    memcpy(text, range, len);
    text[len] = '\0';
    if (inet_pton(AF_INET, text, &v4) == 1) {
        wide[10] = wide[11] = 0xff;
        memcpy(wide + 12, &v4, 4);
        most = 32;
    } else if (inet_pton(AF_INET6, text, &v6) == 1) {
        memcpy(wide, &v6, 16);
        most = 128;
    } else {
        return false;
    }
    for (const char *p = slash != NULL ? slash + 1 : ""; *p >= '0' && *p <= '9'; p++)
        bits = bits * 10 + (unsigned)(*p - '0');
    if (slash == NULL)
        bits = most;
    return bits <= most && same_bits(a, wide, bits + (most == 32 ? 96 : 0));
}

static bool allowed(const uint8_t a[16])
{
    size_t i;
    json_t *range;

    json_array_foreach(job.allow, i, range)
    {
        if (json_is_string(range) && in_range(a, json_string_value(range)))
            return true;
    }
    return false;
}

static bool of_this_host(const uint8_t a[16])
{
    struct ifaddrs *all;
    bool found = false;
    uint8_t own[16];

    if (getifaddrs(&all) < 0)
        return true; /* who cannot tell does not go there */
    for (const struct ifaddrs *i = all; i != NULL && !found; i = i->ifa_next)
        found = i->ifa_addr != NULL && widen(i->ifa_addr, own) && memcmp(own, a, 16) == 0;
    freeifaddrs(all);
    return found;
}

static bool loopback(const uint8_t a[16])
{
    return (is_v4(a) && a[12] == 127) || memcmp(a, &in6addr_loopback, 16) == 0;
}

bool address_is_loopback(const struct sockaddr *addr)
{
    uint8_t a[16];

    return widen(addr, a) && loopback(a);
}

static const char *kind_refused(const uint8_t a[16])
{
    if (is_v4(a) && a[12] == 0)
        return "an address of no host";
    if (is_v4(a) && a[12] == 169 && a[13] == 254)
        return "link-local";
    if (is_v4(a) && a[12] >= 224)
        return "no address of one host";
    if (!is_v4(a) && a[0] == 0xfe && (a[1] & 0xc0) == 0x80)
        return "link-local";
    if (!is_v4(a) && a[0] == 0xff)
        return "no address of one host";
    if (!is_v4(a) && memcmp(a, "\0\0\0\0\0\0\0\0\0\0\0\0", 12) == 0)
        return "an address of no host";
    if (!is_v4(a) && memcmp(a, "\xfd\x00\x0e\xc2\0\0\0\0\0\0\0\0\0\0\x02\x54", 16) == 0)
        return "a cloud's metadata service";
    return of_this_host(a) ? "this host's own" : NULL;
}

const char *address_refused(const struct sockaddr *addr, bool origin_outside)
{
    uint8_t a[16];

    if (!widen(addr, a))
        return "of no kind that is known here";
    if (loopback(a))
        return origin_outside ? "loopback, which nothing outside may send to" : NULL;
    return allowed(a) ? NULL : kind_refused(a);
}

bool host_is_loopback(const char *host, size_t len)
{
    char text[64];
    struct in_addr v4;

    if (len > 2 && host[0] == '[') {
        host++;
        len -= 2;
    }
    if (len == 0 || len >= sizeof(text))
        return false;
    memcpy(text, host, len);
    text[len] = '\0';
    return strcasecmp(text, "localhost") == 0 || strcmp(text, "::1") == 0 ||
           (inet_pton(AF_INET, text, &v4) == 1 && (ntohl(v4.s_addr) >> 24) == 127);
}
