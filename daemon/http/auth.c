/* auth.c - who may talk to us.
 *
 * Unix socket: the kernel says who connected; root, our own user and members of the socket's group pass.  The groups
 * are the peer's own (SO_PEERGROUPS), so no name service is asked and nothing blocks.
 * TCP: the Host must be an address (or localhost), so that a page that rebinds its DNS name gets nothing; an Origin
 * must be our own; then the bearer token, unless no_auth.  Fails: 403 for the first two, 401 for the token. */
#include <arpa/inet.h>
#include <string.h>
#include <strings.h>
#include <unistd.h>

#include "base/str.h"
#include "http/private.h"

bool http_peer_allowed(struct http_listener *l, int fd, struct http_peer *ret_peer)
{
    struct ucred cred;
    socklen_t len = sizeof(cred);
    gid_t groups[256];
    socklen_t groups_len = sizeof(groups);

    *ret_peer = (struct http_peer){.is_unix = l->is_unix, .uid = (uid_t)-1, .gid = (gid_t)-1};
    if (!l->is_unix)
        return true;
    if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &cred, &len) != 0)
        return false;
    ret_peer->uid = cred.uid;
    ret_peer->gid = cred.gid;
    ret_peer->pid = cred.pid;
    if (cred.uid == 0 || cred.uid == geteuid())
        return true;
    if (l->gid == (gid_t)-1)
        return false;
    if (cred.gid == l->gid)
        return true;
    if (getsockopt(fd, SOL_SOCKET, SO_PEERGROUPS, groups, &groups_len) != 0)
        return false;
    for (size_t i = 0; i < groups_len / sizeof(groups[0]); i++)
        if (groups[i] == l->gid)
            return true;
    return false;
}

/* Cuts "host[:port]" into its host; false when it has not that form. */
static bool split_host(const char *text, char *out, size_t size)
{
    const char *host = text, *end, *port;
    int64_t number;

    if (*text == '[') {
        host = text + 1;
        end = strchr(host, ']');
        if (end == NULL)
            return false;
        port = end + 1;
    } else {
        end = host + strcspn(host, ":");
        port = end;
    }
    if ((size_t)(end - host) >= size || end == host)
        return false;
    if (*port == ':' ? port[1] != '\0' && !str_to_i64(port + 1, 1, 65535, &number) : *port != '\0')
        return false;
    memcpy(out, host, (size_t)(end - host));
    out[end - host] = '\0';
    return true;
}

static bool host_ok(const struct http_listener *l, const char *text)
{
    char host[64];
    struct in_addr v4;
    struct in6_addr v6;

    if (!split_host(text, host, sizeof(host)))
        return false;
    if (strcasecmp(host, "localhost") == 0)
        return true;
    if (inet_pton(AF_INET, host, &v4) == 1)
        return l->wildcard || (ntohl(v4.s_addr) >> 24) == 127 ||
               (l->addr.ss_family == AF_INET &&
                memcmp(&v4, &((const struct sockaddr_in *)(const void *)&l->addr)->sin_addr, sizeof(v4)) == 0);
    if (text[0] == '[' && inet_pton(AF_INET6, host, &v6) == 1)
        return l->wildcard || IN6_IS_ADDR_LOOPBACK(&v6) ||
               (l->addr.ss_family == AF_INET6 &&
                memcmp(&v6, &((const struct sockaddr_in6 *)(const void *)&l->addr)->sin6_addr, sizeof(v6)) == 0);
    return false;
}

static bool origin_ok(const char *origin, const char *host)
{
    const char *authority = strstr(origin, "://");

    return authority != NULL && host != NULL && strcasecmp(authority + 3, host) == 0;
}

static bool token_ok(const char *authorization, const char *token)
{
    if (authorization == NULL || strncasecmp(authorization, "Bearer ", 7) != 0)
        return false;
    authorization += 7;
    authorization += strspn(authorization, " ");
    return str_equal_const_time(authorization, token);
}

/* A client sends the same Host with each request of a connection: what was found good once is not taken apart again. */
static bool host_known(struct http_conn *conn, const char *text)
{
    if (strcmp(conn->host_ok, text) == 0)
        return true;
    if (!host_ok(conn->listener, text))
        return false;
    if (strlen(text) < sizeof(conn->host_ok))
        memcpy(conn->host_ok, text, strlen(text) + 1);
    return true;
}

int http_auth(struct http_conn *conn, struct error *err)
{
    const struct http_headers *h = &conn->headers;
    const struct http_server *server = conn_server(conn);

    if (conn->listener->is_unix)
        return conn->allowed
                   ? 0
                   : error_set(err, ERR_API_FORBIDDEN, "user %u may not use this socket", (unsigned)conn->req.peer.uid);
    if (h->host != NULL && !host_known(conn, h->host))
        return error_set(err, ERR_API_FORBIDDEN, "Host \"%.100s\" is no address of this daemon", h->host);
    if (h->origin != NULL && !origin_ok(h->origin, h->host))
        return error_set(err, ERR_API_FORBIDDEN, "Origin \"%.100s\" is foreign", h->origin);
    if (h->fetch_site != NULL && strcasecmp(h->fetch_site, "cross-site") == 0)
        return error_set(err, ERR_API_FORBIDDEN, "the request comes from a foreign web page (Sec-Fetch-Site)");
    if (server->token == NULL && server->config.no_auth)
        return 0;
    if (server->token == NULL || !token_ok(h->authorization, server->token))
        return error_set(err, ERR_API_UNAUTHORIZED,
                         h->authorization == NULL ? "the request carries no token" : "the token is not valid");
    return 0;
}
