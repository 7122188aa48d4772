/* lease.c - see lease.h.  A line of dnsmasq's:
 *
 *     1764080000 52:54:00:12:34:56 192.0.2.17 web 01:52:54:00:12:34:56
 *
 * IPv6 leases name no MAC and are passed over, as is the line with the server's DUID before them.  The names in the file are
 * the guests' and hostile: only the first three fields are looked at. */
#include "net/lease.h"

#include <arpa/inet.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/fd.h"
#include "base/mem.h"

static int hex(char c)
{
    return c >= '0' && c <= '9'   ? c - '0'
           : c >= 'a' && c <= 'f' ? c - 'a' + 10
           : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                  : -1;
}

bool mac_parse(const char *text, unsigned char ret[NET_MAC_LEN])
{
    unsigned char mac[NET_MAC_LEN];

    for (int i = 0; i < NET_MAC_LEN; i++, text += 3) {
        int high = hex(text[0]), low = high < 0 ? -1 : hex(text[1]);

        if (low < 0 || text[2] != (i < NET_MAC_LEN - 1 ? ':' : '\0'))
            return false;
        mac[i] = (unsigned char)(high << 4 | low);
    }
    memcpy(ret, mac, sizeof(mac));
    return true;
}

/* Copies the next field of the line and goes past it; false when there is none or it does not fit. */
static bool next_field(const char **line, const char *end, char *out, size_t size)
{
    const char *p = *line, *start;

    while (p < end && *p == ' ')
        p++;
    for (start = p; p < end && *p != ' ';)
        p++;
    *line = p;
    if (p == start || (size_t)(p - start) >= size)
        return false;
    memcpy(out, start, (size_t)(p - start));
    out[p - start] = '\0';
    return true;
}

static bool parse_line(const char *line, const char *end, struct lease *ret)
{
    char expires[24], mac[24], ip[NET_IP_MAX], *rest;
    struct in_addr addr;

    if (!next_field(&line, end, expires, sizeof(expires)) || !next_field(&line, end, mac, sizeof(mac)) ||
        !next_field(&line, end, ip, sizeof(ip)))
        return false;
    errno = 0;
    ret->expires_at = strtoll(expires, &rest, 10);
    return errno == 0 && *rest == '\0' && ret->expires_at >= 0 && mac_parse(mac, ret->mac) &&
           inet_pton(AF_INET, ip, &addr) == 1 && inet_ntop(AF_INET, &addr, ret->ip, sizeof(ret->ip)) != NULL;
}

void leases_parse(const char *text, void (*fn)(void *arg, const struct lease *lease), void *arg)
{
    while (*text != '\0') {
        const char *end = text + strcspn(text, "\n");
        struct lease lease;

        if (parse_line(text, end, &lease))
            fn(arg, &lease);
        text = *end != '\0' ? end + 1 : end;
    }
}

int leases_read(const char *path, void (*fn)(void *arg, const struct lease *lease), void *arg, struct error *err)
{
    CLEANUP_FREE char *text = NULL;
    size_t len;

    if (access(path, F_OK) < 0 && errno == ENOENT)
        return 0;
    if (file_read(path, LEASE_FILE_MAX, &text, &len, err) < 0)
        return -1;
    leases_parse(text, fn, arg);
    return 0;
}
