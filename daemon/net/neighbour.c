/* neighbour.c - see neighbour.h.
 *
 * Happy path: one RTM_GETNEIGH dump, read datagram by datagram until NLMSG_DONE.  Failures: no socket, no answer within a
 * second, and bytes that are no messages: what was told before them stands. */
#include "net/neighbour.h"

#include <arpa/inet.h>
#include <errno.h>
#include <linux/netlink.h>
#include <linux/rtnetlink.h>
#include <net/if.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

#include "base/fd.h"
#include "base/mem.h"

enum {
    DATAGRAM_MAX = 64 * 1024,
    DATAGRAMS_MAX = 1024,
    VALID = NUD_REACHABLE | NUD_STALE | NUD_DELAY | NUD_PROBE | NUD_PERMANENT
};

static bool parse_address(int family, const struct rtattr *attr, char *out)
{
    size_t want = family == AF_INET ? sizeof(struct in_addr) : sizeof(struct in6_addr);

    return RTA_PAYLOAD(attr) == want && inet_ntop(family, RTA_DATA(attr), out, NET_IP_MAX) != NULL;
}

static void take_attribute(const struct rtattr *a, int family, struct neighbour *n, bool *ip, bool *mac)
{
    struct nda_cacheinfo info;

    if (a->rta_type == NDA_DST)
        *ip = parse_address(family, a, n->ip);
    if (a->rta_type == NDA_LLADDR && RTA_PAYLOAD(a) == NET_MAC_LEN) {
        memcpy(n->mac, RTA_DATA(a), NET_MAC_LEN);
        *mac = true;
    }
    if (a->rta_type == NDA_CACHEINFO && RTA_PAYLOAD(a) >= sizeof(info)) {
        memcpy(&info, RTA_DATA(a), sizeof(info));
        n->age_ms = (int64_t)info.ndm_confirmed * 1000 / sysconf(_SC_CLK_TCK);
    }
}

/* One entry; false: not one that is looked for. */
static bool parse_entry(const struct nlmsghdr *h, unsigned ifindex, struct neighbour *ret)
{
    const struct ndmsg *nd = NLMSG_DATA(h);
    bool ip = false, mac = false;

    if (h->nlmsg_type != RTM_NEWNEIGH || h->nlmsg_len < NLMSG_LENGTH(sizeof(*nd)) ||
        (unsigned)nd->ndm_ifindex != ifindex || (nd->ndm_family != AF_INET && nd->ndm_family != AF_INET6) ||
        !(nd->ndm_state & VALID))
        return false;
    *ret = (struct neighbour){0};
    for (size_t at = NLMSG_LENGTH(sizeof(*nd)); at + sizeof(struct rtattr) <= h->nlmsg_len;) {
        const struct rtattr *a = (const void *)((const char *)h + at);

        if (a->rta_len < sizeof(*a) || a->rta_len > h->nlmsg_len - at)
            break;
        take_attribute(a, nd->ndm_family, ret, &ip, &mac);
        at += RTA_ALIGN(a->rta_len);
    }
    return ip && mac;
}

int neighbours_parse(const void *data, size_t len, unsigned ifindex, void (*fn)(void *arg, const struct neighbour *n),
                     void *arg)
{
    size_t left = len;

    for (const struct nlmsghdr *h = data; left > 0; h = NLMSG_NEXT(h, left)) {
        struct neighbour n;

        /* NLMSG_OK in sizes that cannot wrap. */
        if (left < sizeof(*h) || h->nlmsg_len < sizeof(*h) || h->nlmsg_len > left || h->nlmsg_type == NLMSG_ERROR)
            return -1;
        if (h->nlmsg_type == NLMSG_DONE)
            return 1;
        if (parse_entry(h, ifindex, &n))
            fn(arg, &n);
        if (NLMSG_ALIGN(h->nlmsg_len) >= left)
            break;
    }
    return 0;
}

static int ask(int sock)
{
    struct {
        struct nlmsghdr h;
        struct ndmsg nd;
    } request = {
        .h = {.nlmsg_len = NLMSG_LENGTH(sizeof(struct ndmsg)),
              .nlmsg_type = RTM_GETNEIGH,
              .nlmsg_flags = NLM_F_REQUEST | NLM_F_DUMP,
              .nlmsg_seq = 1},
        .nd = {.ndm_family = AF_UNSPEC},
    };
    struct sockaddr_nl kernel = {.nl_family = AF_NETLINK};
    struct timeval second = {.tv_sec = 1};

    if (setsockopt(sock, SOL_SOCKET, SO_RCVTIMEO, &second, sizeof(second)) < 0)
        return -1;
    return sendto(sock, &request, request.h.nlmsg_len, 0, (const void *)&kernel, sizeof(kernel)) < 0 ? -1 : 0;
}

int neighbours_read(const char *interface, void (*fn)(void *arg, const struct neighbour *n), void *arg,
                    struct error *err)
{
    CLEANUP_FD int sock = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE);
    CLEANUP_FREE char *data = mem_alloc(DATAGRAM_MAX);
    unsigned ifindex = if_nametoindex(interface);
    int done = 0;

    if (sock < 0 || !data || ifindex == 0 || ask(sock) < 0)
        return error_errno(err, errno, "cannot read the neighbours on %s", interface);
    for (int i = 0; i < DATAGRAMS_MAX && done == 0; i++) {
        ssize_t n = recv(sock, data, DATAGRAM_MAX, 0);

        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return error_errno(err, n < 0 ? errno : EIO, "cannot read the neighbours on %s", interface);
        done = neighbours_parse(data, (size_t)n, ifindex, fn, arg);
    }
    if (done != 1)
        return error_errno(err, EIO, "cannot read the neighbours on %s", interface);
    return 0;
}
