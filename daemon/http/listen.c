/* listen.c - the sockets: systemd's, the Unix socket's file, TCP addresses.
 *
 * The Unix socket is bound under a umask, so that it is never more open than in the end (0600, or 0660 with its group
 * when we are root and the group exists).  A file left by a dead daemon is replaced; a live listener is never pushed
 * aside.  Fails: ERR_IO (who holds the path or address, where it can be told), ERR_API_FORBIDDEN (TCP without token). */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/fd.h"
#include "base/log.h"
#include "base/mem.h"
#include "base/str.h"
#include "http/private.h"

enum { LISTEN_FDS_START = 3 };

static struct http_listener *listener_add(struct http_server *server, int fd, struct error *err)
{
    struct http_listener *l = mem_zalloc(sizeof(*l));

    if (l == NULL) {
        fd_close(fd);
        error_set(err, ERR_HOST_INSUFFICIENT_MEMORY, "no memory for a listener");
        return NULL;
    }
    l->server = server;
    l->fd = fd;
    l->gid = (gid_t)-1;
    l->next = server->listeners;
    server->listeners = l;
    return l;
}

static bool is_loopback(const struct sockaddr_storage *addr)
{
    if (addr->ss_family == AF_INET)
        return (ntohl(((const struct sockaddr_in *)(const void *)addr)->sin_addr.s_addr) >> 24) == 127;
    return IN6_IS_ADDR_LOOPBACK(&((const struct sockaddr_in6 *)(const void *)addr)->sin6_addr);
}

static bool is_wildcard(const struct sockaddr_storage *addr)
{
    if (addr->ss_family == AF_INET)
        return ((const struct sockaddr_in *)(const void *)addr)->sin_addr.s_addr == htonl(INADDR_ANY);
    return IN6_IS_ADDR_UNSPECIFIED(&((const struct sockaddr_in6 *)(const void *)addr)->sin6_addr);
}

static int tcp_allowed(const struct http_server *server, const struct sockaddr_storage *addr, const char *text,
                       struct error *err)
{
    if (server->token != NULL)
        return 0;
    if (!server->config.no_auth)
        return error_set(err, ERR_API_FORBIDDEN,
                         "listening on %s needs a token (token_file), or --no-auth on a loopback address", text);
    if (!is_loopback(addr))
        return error_set(err, ERR_API_FORBIDDEN, "%s is no loopback address: it needs a token, --no-auth is not enough",
                         text);
    return 0;
}

static int parse_address(const char *text, struct sockaddr_storage *addr, socklen_t *len, struct error *err)
{
    char host[INET6_ADDRSTRLEN + 2];
    const char *colon = strrchr(text, ':');
    struct sockaddr_in *v4 = (struct sockaddr_in *)(void *)addr;
    struct sockaddr_in6 *v6 = (struct sockaddr_in6 *)(void *)addr;
    int64_t port;

    memset(addr, 0, sizeof(*addr));
    if (colon != NULL && (size_t)(colon - text) < sizeof(host) && str_to_i64(colon + 1, 0, 65535, &port)) {
        memcpy(host, text, (size_t)(colon - text));
        host[colon - text] = '\0';
        if (inet_pton(AF_INET, host, &v4->sin_addr) == 1) {
            v4->sin_family = AF_INET;
            v4->sin_port = htons((uint16_t)port);
            *len = sizeof(*v4);
            return 0;
        }
        if (host[0] == '[' && host[colon - text - 1] == ']') {
            host[colon - text - 1] = '\0';
            if (inet_pton(AF_INET6, host + 1, &v6->sin6_addr) == 1) {
                v6->sin6_family = AF_INET6;
                v6->sin6_port = htons((uint16_t)port);
                *len = sizeof(*v6);
                return 0;
            }
        }
    }
    return error_set(err, ERR_IO, "\"%s\" is no listen address; give 127.0.0.1:8080 or [::1]:8080", text);
}

static int listen_tcp(struct http_server *server, const char *text, struct error *err)
{
    struct sockaddr_storage addr;
    socklen_t len;
    int one = 1;

    if (parse_address(text, &addr, &len, err) != 0 || tcp_allowed(server, &addr, text, err) != 0)
        return -1;
    CLEANUP_FD int fd = socket(addr.ss_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0)
        return error_errno(err, errno, "no socket for %s", text);
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
    setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &one, sizeof(one)); /* accepted sockets inherit it */
    if (addr.ss_family == AF_INET6)
        setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &one, sizeof(one));
    if (bind(fd, (struct sockaddr *)&addr, len) != 0 || listen(fd, HTTP_BACKLOG) != 0)
        return error_errno(err, errno, errno == EADDRINUSE ? "another process listens on %s" : "cannot listen on %s",
                           text);
    struct http_listener *l = listener_add(server, TAKE_FD(fd), err);
    if (l == NULL)
        return -1;
    len = sizeof(l->addr);
    getsockname(l->fd, (struct sockaddr *)&l->addr, &len); /* the port chosen for :0 */
    l->wildcard = is_wildcard(&addr);
    if (server->token == NULL)
        LOG_WARN("listening without authentication", "address", text);
    return 0;
}

/* Whether the socket file may be replaced: 0 when nothing lives behind it. */
static int clear_path(const struct sockaddr_un *addr, struct error *err)
{
    struct ucred cred;
    socklen_t len = sizeof(cred);
    struct stat st;
    CLEANUP_FD int fd = -1;

    if (lstat(addr->sun_path, &st) != 0)
        return errno == ENOENT ? 0 : error_errno(err, errno, "cannot look at %s", addr->sun_path);
    if (!S_ISSOCK(st.st_mode))
        return error_set(err, ERR_IO, "%s exists and is no socket", addr->sun_path);
    fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0)
        return error_errno(err, errno, "no socket for %s", addr->sun_path);
    if (connect(fd, (const struct sockaddr *)addr, sizeof(*addr)) == 0) {
        if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &cred, &len) == 0 && cred.pid > 0)
            return error_set(err, ERR_IO, "another process serves %s (pid %d)", addr->sun_path, (int)cred.pid);
        return error_set(err, ERR_IO, "another process serves %s", addr->sun_path);
    }
    if (errno != ECONNREFUSED && errno != ENOENT)
        return error_errno(err, errno, "another process may serve %s", addr->sun_path);
    if (unlink(addr->sun_path) != 0 && errno != ENOENT)
        return error_errno(err, errno, "cannot remove the stale socket %s", addr->sun_path);
    return 0;
}

/* Opens the bound socket to its group, as root and where the group exists. */
static int give_group(struct http_listener *l, const char *group, struct error *err)
{
    struct group *gr;

    if (geteuid() != 0 || group == NULL)
        return 0;
    gr = getgrnam(group); /* at start only: it may block */
    if (gr == NULL) {
        LOG_WARN("there is no such group: the socket is for root alone", "group", group, "socket", l->path);
        return 0;
    }
    if (lchown(l->path, (uid_t)-1, gr->gr_gid) != 0 || chmod(l->path, 0660) != 0)
        return error_errno(err, errno, "cannot give %s to group %s", l->path, group);
    l->gid = gr->gr_gid;
    return 0;
}

static int listen_unix(struct http_server *server, const char *path, const char *group, struct error *err)
{
    struct sockaddr_un addr = {.sun_family = AF_UNIX};
    struct stat st;

    if (strlen(path) >= sizeof(addr.sun_path))
        return error_set(err, ERR_IO, "the socket path %s is longer than %zu bytes", path, sizeof(addr.sun_path) - 1);
    memcpy(addr.sun_path, path, strlen(path) + 1);
    if (clear_path(&addr, err) != 0)
        return -1;
    CLEANUP_FD int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0)
        return error_errno(err, errno, "no socket for %s", path);
    mode_t mask = umask(0177);
    int rc = bind(fd, (struct sockaddr *)&addr, sizeof(addr));
    int errnum = errno;
    umask(mask);
    if (rc != 0)
        return error_errno(err, errnum, errnum == EADDRINUSE ? "another process serves %s" : "cannot bind %s", path);
    struct http_listener *l = listener_add(server, TAKE_FD(fd), err);
    if (l == NULL || (l->path = mem_strdup(path)) == NULL || lstat(path, &st) != 0) {
        unlink(path);
        return error_set(err, ERR_IO, "cannot set up %s", path);
    }
    l->is_unix = true;
    l->dev = st.st_dev;
    l->ino = st.st_ino;
    if (give_group(l, group, err) != 0)
        return -1;
    if (listen(l->fd, HTTP_BACKLOG) != 0)
        return error_errno(err, errno, "cannot listen on %s", path);
    return 0;
}

static int take_passed(struct http_server *server, int fd, struct error *err)
{
    struct sockaddr_storage addr = {0};
    socklen_t len = sizeof(addr);
    struct sockaddr_un *un = (struct sockaddr_un *)(void *)&addr;
    struct stat st;

    if (fcntl(fd, F_SETFD, FD_CLOEXEC) != 0 || getsockname(fd, (struct sockaddr *)&addr, &len) != 0)
        return error_errno(err, errno, "fd %d passed by the service manager is no socket", fd);
    fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK);
    if (addr.ss_family != AF_UNIX && addr.ss_family != AF_INET && addr.ss_family != AF_INET6)
        return error_set(err, ERR_IO, "fd %d passed by the service manager is of an unknown family", fd);
    if (addr.ss_family != AF_UNIX && tcp_allowed(server, &addr, "the service manager's TCP socket", err) != 0)
        return -1;
    struct http_listener *l = listener_add(server, fd, err);
    if (l == NULL)
        return -1;
    l->addr = addr;
    l->is_unix = addr.ss_family == AF_UNIX;
    if (l->is_unix) {
        un->sun_path[sizeof(un->sun_path) - 1] = '\0';
        if (un->sun_path[0] == '/' && lstat(un->sun_path, &st) == 0 && (st.st_mode & 0060) == 0060)
            l->gid = st.st_gid;
    } else {
        l->wildcard = is_wildcard(&addr);
    }
    return 0;
}

/* Returns how many sockets the service manager passed to us, -1 on failure. */
static int listen_passed(struct http_server *server, struct error *err)
{
    const char *pid_text = getenv("LISTEN_PID"), *fds_text = getenv("LISTEN_FDS");
    int64_t pid, n;

    if (pid_text == NULL || fds_text == NULL || !str_to_i64(pid_text, 1, INT32_MAX, &pid) || pid != getpid() ||
        !str_to_i64(fds_text, 1, 16, &n))
        return 0;
    unsetenv("LISTEN_PID"); /* not for our children, and not twice */
    unsetenv("LISTEN_FDS");
    unsetenv("LISTEN_FDNAMES");
    for (int i = 0; i < n; i++)
        if (take_passed(server, LISTEN_FDS_START + i, err) != 0)
            return -1;
    return (int)n;
}

int http_listen(struct http_server *server, struct error *err)
{
    const struct http_config *config = &server->config;
    int passed = listen_passed(server, err);

    if (passed < 0)
        return -1;
    if (passed == 0 && config->socket_path != NULL &&
        listen_unix(server, config->socket_path, config->socket_group, err) != 0)
        return -1;
    for (const char *const *at = config->listen; at != NULL && *at != NULL; at++)
        if (listen_tcp(server, *at, err) != 0)
            return -1;
    return 0;
}

void http_listener_close(struct http_listener *l)
{
    struct stat st;

    if (l->path != NULL && lstat(l->path, &st) == 0 && st.st_dev == l->dev && st.st_ino == l->ino)
        unlink(l->path);
    mem_free(l->path);
    l->path = NULL;
    l->fd = fd_close(l->fd);
}
