/* test_net_tables.c - what the host knows of addresses: dnsmasq's leases and the kernel's neighbours, also where the bytes are
 * none. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include <arpa/inet.h>
#include <linux/netlink.h>
#include <linux/rtnetlink.h>

#include "base/fd.h"
#include "base/mem.h"
#include "net/lease.h"
#include "net/neighbour.h"

static char trace[4096];

static void note_lease(void *arg, const struct lease *l)
{
    size_t at = strlen(trace);

    (void)arg;
    snprintf(trace + at, sizeof(trace) - at, "%02x..%02x %s %lld|", l->mac[0], l->mac[5], l->ip,
             (long long)l->expires_at);
}

static const char *leases(const char *text)
{
    trace[0] = '\0';
    leases_parse(text, note_lease, NULL);
    return trace;
}

static void leases_of_dnsmasq_are_read(void **state)
{
    (void)state;
    assert_string_equal(leases("1764080000 52:54:00:12:34:56 192.0.2.17 web 01:52:54:00:12:34:56\n"
                               "0 52:54:00:AB:cd:ef 192.0.2.18 * *\n"
                               "duid 00:01:00:01:2b:a5:2c:6a:52:54:00:00:00:01\n"
                               "1764080000 1193046 2001:db8::17 web 00:01:00:01\n"
                               "1764080001 52:54:00:12:34:57 192.0.2.19 - -"),
                        "52..56 192.0.2.17 1764080000|52..ef 192.0.2.18 0|52..57 192.0.2.19 1764080001|");
}

static void lines_that_are_no_leases_are_passed_over(void **state)
{
    static const char *const lies[] = {
        "",
        "\n\n\n",
        "1764080000",
        "1764080000 52:54:00:12:34:56",
        "-5 52:54:00:12:34:56 192.0.2.17 a *",
        "99999999999999999999999 52:54:00:12:34:56 192.0.2.17 a *",
        "1764080000x 52:54:00:12:34:56 192.0.2.17 a *",
        "1764080000 52:54:00:12:34 192.0.2.17 a *",
        "1764080000 52:54:00:12:34:56:78 192.0.2.17 a *",
        "1764080000 06-52:54:00:12:34:56 192.0.2.17 a *",
        "1764080000 52:54:00:12:34:5g 192.0.2.17 a *",
        "1764080000 52:54:00:12:34:56 192.0.2.300 a *",
        "1764080000 52:54:00:12:34:56 2001:db8::1 a *",
        "web 1764080000 52:54:00:12:34:56 192.0.2.17 *",
    };

    (void)state;
    for (size_t i = 0; i < ARRAY_SIZE(lies); i++)
        assert_string_equal(leases(lies[i]), "");
    /* A name cannot make a line of its own. */
    assert_string_equal(leases("0 52:54:00:12:34:56 192.0.2.17 0 52:54:00:aa:aa:aa 192.0.2.1\n"),
                        "52..56 192.0.2.17 0|");
}

static void a_lease_file_need_not_exist(void **state)
{
    struct error err = ERROR_INIT;

    (void)state;
    assert_int_equal(leases_read("/nonexistent/dnsmasq.leases", note_lease, NULL, &err), 0);
    assert_int_equal(leases_read("/proc/self/mem", note_lease, NULL, &err), -1);
    assert_int_equal(err.code, ERR_IO);
    error_done(&err);
}

/* ---- netlink ---- */

static void note_neighbour(void *arg, const struct neighbour *n)
{
    size_t at = strlen(trace);

    (void)arg;
    snprintf(trace + at, sizeof(trace) - at, "%02x..%02x %s %lld|", n->mac[0], n->mac[5], n->ip, (long long)n->age_ms);
}

/* Datagrams of the kernel's, built by hand; room for lies. */
struct datagram {
    _Alignas(8) unsigned char data[4096];
    size_t len;
};

static struct nlmsghdr *message(struct datagram *d, int type, int family, int ifindex, int nd_state)
{
    struct nlmsghdr *h = (void *)(d->data + d->len);
    struct ndmsg nd = {.ndm_family = (unsigned char)family, .ndm_ifindex = ifindex, .ndm_state = (uint16_t)nd_state};

    *h = (struct nlmsghdr){.nlmsg_len = NLMSG_LENGTH(sizeof(nd)), .nlmsg_type = (uint16_t)type};
    memcpy(NLMSG_DATA(h), &nd, sizeof(nd));
    d->len += NLMSG_SPACE(sizeof(nd));
    return h;
}

static void attribute(struct datagram *d, struct nlmsghdr *h, int type, const void *data, size_t len)
{
    struct rtattr a = {.rta_len = (unsigned short)RTA_LENGTH(len), .rta_type = (unsigned short)type};

    memcpy(d->data + d->len, &a, sizeof(a));
    memcpy(d->data + d->len + RTA_LENGTH(0), data, len);
    d->len += RTA_SPACE(len);
    h->nlmsg_len += (uint32_t)RTA_SPACE(len);
}

static struct nlmsghdr *neighbour(struct datagram *d, int ifindex, int nd_state, const char *ip, unsigned char last)
{
    int family = strchr(ip, ':') != NULL ? AF_INET6 : AF_INET;
    unsigned char address[16], mac[6] = {0x52, 0x54, 0, 0, 0, last};
    struct nda_cacheinfo info = {.ndm_confirmed = (uint32_t)(2 * sysconf(_SC_CLK_TCK))};
    struct nlmsghdr *h = message(d, RTM_NEWNEIGH, family, ifindex, nd_state);

    assert_int_equal(inet_pton(family, ip, address), 1);
    attribute(d, h, NDA_DST, address, family == AF_INET ? 4 : 16);
    attribute(d, h, NDA_LLADDR, mac, sizeof(mac));
    attribute(d, h, NDA_CACHEINFO, &info, sizeof(info));
    return h;
}

static int parse(const struct datagram *d)
{
    /* exactly as large as it says: a sanitizer sees what reads beyond */
    void *copy = malloc(d->len > 0 ? d->len : 1);

    memcpy(copy, d->data, d->len);
    trace[0] = '\0';
    int rc = neighbours_parse(copy, d->len, 3, note_neighbour, NULL);
    free(copy);
    return rc;
}

static void neighbours_of_the_bridge_are_read(void **state)
{
    struct datagram d = {.len = 0};

    (void)state;
    neighbour(&d, 3, NUD_REACHABLE, "192.0.2.7", 1);
    neighbour(&d, 4, NUD_REACHABLE, "192.0.2.8", 1); /* another interface */
    neighbour(&d, 3, NUD_FAILED, "192.0.2.9", 1);
    neighbour(&d, 3, NUD_INCOMPLETE, "192.0.2.10", 1);
    neighbour(&d, 3, NUD_NOARP, "192.0.2.11", 1);
    neighbour(&d, 3, NUD_STALE, "2001:db8::7", 2);
    assert_int_equal(parse(&d), 0);
    assert_string_equal(trace, "52..01 192.0.2.7 2000|52..02 2001:db8::7 2000|");
    message(&d, NLMSG_DONE, 0, 0, 0);
    neighbour(&d, 3, NUD_STALE, "192.0.2.12", 1); /* after the end */
    assert_int_equal(parse(&d), 1);
    assert_null(strstr(trace, "192.0.2.12"));
}

static void a_refusal_is_a_failure(void **state)
{
    struct datagram d = {.len = 0};

    (void)state;
    message(&d, NLMSG_ERROR, 0, 0, 0);
    assert_int_equal(parse(&d), -1);
}

static void entries_without_an_address_or_a_mac_are_passed_over(void **state)
{
    struct datagram d = {.len = 0};
    unsigned char bytes[20] = {192, 0, 2, 1};
    struct nlmsghdr *h = message(&d, RTM_NEWNEIGH, AF_INET, 3, NUD_REACHABLE);

    (void)state;
    attribute(&d, h, NDA_DST, bytes, 4);
    h = message(&d, RTM_NEWNEIGH, AF_INET, 3, NUD_REACHABLE);
    attribute(&d, h, NDA_LLADDR, bytes, 6);
    h = message(&d, RTM_NEWNEIGH, AF_INET, 3, NUD_REACHABLE);
    attribute(&d, h, NDA_DST, bytes, 16); /* of the other family's length */
    attribute(&d, h, NDA_LLADDR, bytes, 6);
    h = message(&d, RTM_NEWNEIGH, AF_INET, 3, NUD_REACHABLE);
    attribute(&d, h, NDA_DST, bytes, 4);
    attribute(&d, h, NDA_LLADDR, bytes, 20); /* InfiniBand's */
    message(&d, RTM_NEWNEIGH, AF_BRIDGE, 3, NUD_REACHABLE);
    assert_int_equal(parse(&d), 0);
    assert_string_equal(trace, "");
}

/* Every length and every cut of a good datagram, and lengths that lie: nothing is read beyond its end. */
static void lying_lengths_are_harmless(void **state)
{
    struct datagram good = {.len = 0}, d;

    (void)state;
    neighbour(&good, 3, NUD_REACHABLE, "192.0.2.7", 1);
    neighbour(&good, 3, NUD_REACHABLE, "2001:db8::7", 2);
    for (size_t cut = 0; cut < good.len; cut++) {
        d = good;
        d.len = cut;
        parse(&d);
    }
    for (size_t at = 0; at + 2 <= good.len; at += 2)
        for (unsigned value = 0; value <= 0xffff; value = value < 300 ? value + 1 : value * 2 + 1) {
            uint16_t lie = (uint16_t)value;

            d = good;
            memcpy(d.data + at, &lie, sizeof(lie));
            parse(&d);
        }
}

static void neighbours_of_no_interface_are_a_failure(void **state)
{
    struct error err = ERROR_INIT;

    (void)state;
    assert_int_equal(neighbours_read("no-such-bridge0", note_neighbour, NULL, &err), -1);
    assert_int_equal(err.code, ERR_IO);
    error_done(&err);
    assert_int_equal(neighbours_read("lo", note_neighbour, NULL, &err), 0); /* the kernel answers */
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(leases_of_dnsmasq_are_read),
        cmocka_unit_test(lines_that_are_no_leases_are_passed_over),
        cmocka_unit_test(a_lease_file_need_not_exist),
        cmocka_unit_test(neighbours_of_the_bridge_are_read),
        cmocka_unit_test(a_refusal_is_a_failure),
        cmocka_unit_test(entries_without_an_address_or_a_mac_are_passed_over),
        cmocka_unit_test(lying_lengths_are_harmless),
        cmocka_unit_test(neighbours_of_no_interface_are_a_failure),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
