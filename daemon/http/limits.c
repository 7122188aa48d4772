/* limits.c - places for those that wait or stream, and the rate of requests.
 *
 * Waits and streams have a limit each, and together they leave an eighth of the connections to plain requests.  Clients of
 * the network have seven eighths of either: what is left over is for the Unix socket.
 * The rate is a bucket of tokens for each peer (user of the Unix socket, address of the network; an IPv6 peer is its /64).
 * Root and vmmd's own user are not limited.  The table has a fixed size: where it is full, the peer that was silent
 * longest is forgotten, and its bucket is full when it comes back. */
#include <arpa/inet.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/mem.h"
#include "base/str.h"
#include "http/private.h"

enum { RATE_SETS = 256, RATE_WAYS = 8, TOKEN = 1000 };

/* --- places --- */

static unsigned *tcp_count(struct http_server *server, enum limit which)
{
    return which == LIMIT_WAITS ? &server->tcp_waits : &server->tcp_streams;
}

int http_slot_take(struct http_conn *conn, enum limit which, struct error *err)
{
    struct http_server *server = conn_server(conn);
    struct http_stats *st = &server->stats;
    bool tcp = !conn->listener->is_unix, wait = which == LIMIT_WAITS;
    unsigned max = wait ? server->config.max_waits : server->config.max_streams;
    unsigned *all = wait ? &st->waits : &st->streams, *of_tcp = tcp_count(server, which);
    unsigned held = st->waits + st->streams, held_tcp = server->tcp_waits + server->tcp_streams;
    unsigned room = limit_share(server->config.max_connections);

    if (wait && conn->waits)
        return 0;
    if (*all >= max || (tcp && *of_tcp >= limit_share(max)))
        return limit_refuse(which, max, err, wait ? "%u requests wait already" : "%u streams are open already", *all);
    if (held >= room || (tcp && held_tcp >= limit_share(room)))
        return limit_refuse(LIMIT_CONNECTIONS, server->config.max_connections, err,
                            "%u connections wait or stream already; the others are for plain requests", held);
    if (!limit_files_room(tcp ? FILES_FOR_NETWORK_HELD : FILES_FOR_HELD, 0))
        return limit_refuse(LIMIT_OPEN_FILES, limit_files_max(), err,
                            "vmmd has %u files open; what is left is for plain requests", limit_files_used());
    ++*all;
    *of_tcp += tcp;
    conn->waits |= wait;
    return 0;
}

void http_slot_drop(struct http_conn *conn, enum limit which)
{
    struct http_server *server = conn_server(conn);

    if (which == LIMIT_WAITS && !conn->waits)
        return;
    --*(which == LIMIT_WAITS ? &server->stats.waits : &server->stats.streams);
    *tcp_count(server, which) -= !conn->listener->is_unix;
    if (which == LIMIT_WAITS)
        conn->waits = false;
}

/* --- rate --- */

struct bucket {
    unsigned char peer[9]; /* a letter, then who; zeroes: free */
    int64_t at;            /* when it was last filled */
    int64_t tokens;        /* thousandths of a request */
};

struct http_rate {
    unsigned per_s, burst;
    struct bucket buckets[RATE_SETS][RATE_WAYS];
};

struct http_rate *http_rate_new(unsigned per_s, unsigned burst)
{
    struct http_rate *rate = mem_zalloc(sizeof(*rate));

    if (rate != NULL) {
        rate->per_s = per_s;
        rate->burst = burst;
    }
    return rate;
}

/* Who sends, as a key and as a text. */
static void name_peer(const struct http_conn *conn, unsigned char key[9], char *text, size_t size)
{
    const union MHD_ConnectionInfo *info = MHD_get_connection_info(conn->mhd, MHD_CONNECTION_INFO_CLIENT_ADDRESS);
    const struct sockaddr *addr = info != NULL ? info->client_addr : NULL;
    char ip[INET6_ADDRSTRLEN] = "?";

    memset(key, 0, 9);
    if (conn->listener->is_unix) {
        key[0] = 'u';
        memcpy(key + 1, &conn->req.peer.uid, sizeof(uid_t));
        snprintf(text, size, "user %u", (unsigned)conn->req.peer.uid);
        return;
    }
    key[0] = 'a';
    if (addr != NULL && addr->sa_family == AF_INET) {
        const struct in_addr *v4 = &((const struct sockaddr_in *)(const void *)addr)->sin_addr;
        memcpy(key + 1, v4, sizeof(*v4));
        inet_ntop(AF_INET, v4, ip, sizeof(ip));
    } else if (addr != NULL && addr->sa_family == AF_INET6) {
        const struct in6_addr *v6 = &((const struct sockaddr_in6 *)(const void *)addr)->sin6_addr;
        key[0] = '6';
        memcpy(key + 1, v6, 8);
        inet_ntop(AF_INET6, v6, ip, sizeof(ip));
    }
    snprintf(text, size, "address %s", ip);
}

static struct bucket *find_bucket(struct http_rate *rate, const unsigned char key[9], int64_t now)
{
    unsigned hash = 2166136261;
    struct bucket *silent = NULL;

    for (int i = 0; i < 9; i++)
        hash = (hash ^ key[i]) * 16777619;
    struct bucket *set = rate->buckets[(hash ^ hash >> 16) % RATE_SETS];
    for (struct bucket *b = set; b < set + RATE_WAYS; b++) {
        if (memcmp(b->peer, key, 9) == 0)
            return b;
        if (silent == NULL || b->at < silent->at)
            silent = b;
    }
    *silent = (struct bucket){.at = now, .tokens = (int64_t)rate->burst * TOKEN};
    memcpy(silent->peer, key, 9);
    return silent;
}

int http_rate_take(struct http_conn *conn, struct error *err)
{
    struct http_rate *rate = conn_server(conn)->rate;
    int64_t now = clock_mono_ms();
    unsigned char key[9];
    char who[64];

    if (rate == NULL || (conn->listener->is_unix && (conn->req.peer.uid == 0 || conn->req.peer.uid == geteuid())))
        return 0;
    name_peer(conn, key, who, sizeof(who));
    struct bucket *b = find_bucket(rate, key, now);
    b->tokens += (now - b->at) * rate->per_s; /* a thousandth for each millisecond and request per second */
    b->at = now;
    if (b->tokens > (int64_t)rate->burst * TOKEN)
        b->tokens = (int64_t)rate->burst * TOKEN;
    if (b->tokens < TOKEN)
        return limit_refuse(LIMIT_REQUEST_RATE, rate->per_s, err, "%s sends more than %u requests a second", who,
                            rate->per_s);
    b->tokens -= TOKEN;
    return 0;
}
