/* conn.c - a connection to the guest's sshd.
 *
 * Happy path: TCP, the banner is awaited (a port that QEMU forwards answers before the guest does), key exchange, the host
 * key is the pinned one or becomes it, the VM's key opens.  No config file, agent or known_hosts of anybody is read. */
#include <arpa/inet.h>
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/fd.h"
#include "helpers/ssh/ssh.h"

enum { CONNECT_TRIES = 2, AGAIN_MIN_MS = 300, AGAIN_MAX_MS = 2000 };

static int fail(char *why, const char **ret_kind, const char *kind, const char *text)
{
    snprintf(why, 256, "%s", text);
    *ret_kind = kind;
    return -1;
}

static int wait_for(int fd, short events, int wake, int64_t ms)
{
    struct pollfd p[] = {{.fd = fd, .events = events}, {.fd = wake, .events = POLLIN}};
    int64_t end = now_ms() + ms;

    for (;;) {
        int64_t left = end - now_ms();
        int n = poll(p, 2, left > 0 ? (int)left : 0);
        if (n > 0 && p[0].revents != 0)
            return 0;
        if (n >= 0) {
            errno = ETIMEDOUT;
            return -1;
        }
        if (errno != EINTR)
            return -1;
    }
}

static int tcp_connect(int64_t banner_ms, int wake, char *why, const char **ret_kind)
{
    struct sockaddr_in in = {.sin_family = AF_INET, .sin_port = htons((uint16_t)helper.port)};
    struct sockaddr_in6 in6 = {.sin6_family = AF_INET6, .sin6_port = htons((uint16_t)helper.port)};
    bool six = inet_pton(AF_INET, helper.host, &in.sin_addr) != 1;

    if (six && inet_pton(AF_INET6, helper.host, &in6.sin6_addr) != 1)
        return fail(why, ret_kind, "error", "the guest's address is no IP address");
    CLEANUP_FD int fd = socket(six ? AF_INET6 : AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0)
        return fail(why, ret_kind, "error", strerror(errno));
    int rc = connect(fd, six ? (struct sockaddr *)&in6 : (struct sockaddr *)&in, six ? sizeof(in6) : sizeof(in));
    if (rc < 0 && errno == EINPROGRESS) {
        int error = 0;
        socklen_t len = sizeof(error);
        rc = wait_for(fd, POLLOUT, -1, CONNECT_S * 1000);
        if (rc == 0 && getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &len) == 0 && error != 0) {
            errno = error;
            rc = -1;
        }
    }
    if (rc < 0 || wait_for(fd, POLLIN, wake, banner_ms) < 0)
        return fail(why, ret_kind, "connect", errno == ETIMEDOUT ? "sshd did not answer in time" : strerror(errno));
    char byte;
    if (recv(fd, &byte, 1, MSG_PEEK | MSG_DONTWAIT) <= 0)
        return fail(why, ret_kind, "connect", "the connection was closed before sshd answered");
    return TAKE_FD(fd);
}

static void set_options(ssh_session s, int fd)
{
    /* Ed25519 and ECDSA first; once a key is pinned its type is asked for, so that no other can be shown in its place. */
    static const char any[] = "ssh-ed25519,ecdsa-sha2-nistp256,ecdsa-sha2-nistp384,ecdsa-sha2-nistp521,rsa-sha2-512,"
                              "rsa-sha2-256";
    int no = 0, yes = 1;
    unsigned port = (unsigned)helper.port;
    long timeout = helper.entered ? BUSY_S : CONNECT_S;
    socket_t sock = fd;
    char type[64] = "";

    pthread_mutex_lock(&helper.lock);
    snprintf(type, sizeof(type), "%.*s", (int)strcspn(helper.host_key, " "), helper.host_key);
    pthread_mutex_unlock(&helper.lock);
    ssh_options_set(s, SSH_OPTIONS_PROCESS_CONFIG, &no);
    ssh_options_set(s, SSH_OPTIONS_SSH_DIR, "/nonexistent");
    ssh_options_set(s, SSH_OPTIONS_HOST, helper.host);
    ssh_options_set(s, SSH_OPTIONS_PORT, &port);
    ssh_options_set(s, SSH_OPTIONS_USER, helper.user);
    ssh_options_set(s, SSH_OPTIONS_KNOWNHOSTS, "/dev/null");
    ssh_options_set(s, SSH_OPTIONS_GLOBAL_KNOWNHOSTS, "/dev/null");
    ssh_options_set(s, SSH_OPTIONS_TIMEOUT, &timeout);
    ssh_options_set(s, SSH_OPTIONS_NODELAY, &yes);
    ssh_options_set(s, SSH_OPTIONS_FD, &sock); /* below RLIMIT_NOFILE: 16 bits are enough */
    ssh_options_set(s, SSH_OPTIONS_HOSTKEYS,
                    *type == '\0'                  ? any
                    : strcmp(type, "ssh-rsa") == 0 ? "rsa-sha2-512,rsa-sha2-256"
                                                   : type);
}

/* The key is the pinned one, or becomes it. */
static int check_host_key(ssh_session s, char *why, const char **ret_kind)
{
    char line[2048];
    char *base64 = NULL;
    ssh_key key = NULL;
    bool fresh, same;

    if (ssh_get_server_publickey(s, &key) != SSH_OK)
        return fail(why, ret_kind, "error", ssh_get_error(s));
    int rc = ssh_pki_export_pubkey_base64(key, &base64);
    const char *type = ssh_key_type_to_char(ssh_key_type(key));
    if (ssh_key_type(key) >= SSH_KEYTYPE_ECDSA_P256 && ssh_key_type(key) <= SSH_KEYTYPE_ECDSA_P521)
        type = ssh_pki_key_ecdsa_name(key);
    int n = rc == SSH_OK ? snprintf(line, sizeof(line), "%s %s", type, base64) : -1;
    ssh_string_free_char(base64);
    ssh_key_free(key);
    if (n < 0 || n >= (int)sizeof(line))
        return fail(why, ret_kind, "error", "the guest's host key cannot be read");
    pthread_mutex_lock(&helper.lock);
    fresh = helper.host_key[0] == '\0';
    if (fresh)
        snprintf(helper.host_key, sizeof(helper.host_key), "%s", line);
    same = strcmp(helper.host_key, line) == 0;
    pthread_mutex_unlock(&helper.lock);
    if (fresh)
        control_send('H', line);
    return same ? 0 : fail(why, ret_kind, "host_key", "the guest shows another host key than at the first contact");
}

void conn_close(ssh_session s)
{
    int fd;

    if (s == NULL)
        return;
    fd = (int)ssh_get_fd(s); /* -1: libssh closed it, after an error of the socket; it never does otherwise */
    ssh_disconnect(s);
    ssh_free(s);
    fd_close(fd);
}

bool conn_takes_one(ssh_session s)
{
    const char *banner = ssh_get_serverbanner(s);
    const char *name = banner != NULL ? strstr(banner, "dropbear") : NULL;
    int year = 0, minor = 0;

    if (name == NULL)
        return false;
    return sscanf(name, "dropbear_%4d.%4d", &year, &minor) != 2 || year < 2024 || (year == 2024 && minor < 86);
}

static ssh_session try_once(int64_t banner_ms, int wake, char *why, const char **ret_kind)
{
    int fd = tcp_connect(banner_ms, wake, why, ret_kind);
    ssh_session s;

    if (fd < 0)
        return NULL;
    s = ssh_new();
    if (s == NULL) {
        close(fd);
        fail(why, ret_kind, "error", "out of memory");
        return NULL;
    }
    set_options(s, fd);
    if (ssh_connect(s) != SSH_OK) {
        bool key = strstr(ssh_get_error(s), "host key") != NULL || strstr(ssh_get_error(s), "hostkey") != NULL;
        fail(why, ret_kind, key ? "host_key" : "connect", ssh_get_error(s));
        conn_close(s);
        return NULL;
    }
    if (check_host_key(s, why, ret_kind) < 0) {
        conn_close(s);
        return NULL;
    }
    int rc = ssh_userauth_publickey(s, NULL, helper.key);
    if (rc != SSH_AUTH_SUCCESS) {
        if (rc == SSH_AUTH_DENIED || rc == SSH_AUTH_PARTIAL)
            fail(why, ret_kind, "auth", "sshd does not take the VM's key for this user");
        else
            fail(why, ret_kind, "connect", *ssh_get_error(s) != '\0' ? ssh_get_error(s) : "the login was not answered");
        conn_close(s);
        return NULL;
    }
    helper.entered = true;
    return s;
}

static ssh_session try_open(int64_t banner_ms, int wake, char *why, const char **ret_kind)
{
    bool single = helper.crowded;

    if (single)
        pthread_mutex_lock(&helper.single);
    ssh_session s = try_once(banner_ms, wake, why, ret_kind);
    if (single)
        pthread_mutex_unlock(&helper.single);
    if (s == NULL && helper.entered && strcmp(*ret_kind, "connect") == 0)
        helper.crowded = true;
    return s;
}

bool helper_stops(void)
{
    pthread_mutex_lock(&helper.lock);
    bool stops = helper.stopping;
    pthread_mutex_unlock(&helper.lock);
    return stops;
}

ssh_session conn_open(int64_t banner_ms, int wake, char *why, const char **ret_kind)
{
    ssh_session s = NULL;

    if (wake >= 0) /* a probe may wait long */
        return try_open(banner_ms, wake, why, ret_kind);
    while (sem_wait(&helper.connecting) < 0 && errno == EINTR)
        ;
    int64_t end = now_ms() + BUSY_S * 1000, again = AGAIN_MIN_MS;
    for (int tries = 0; s == NULL && (tries < CONNECT_TRIES || (helper.entered && now_ms() < end && !helper_stops()));
         tries++) {
        if (tries > 0) {
            poll(NULL, 0, (int)again);
            again = again * 2 < AGAIN_MAX_MS ? again * 2 : AGAIN_MAX_MS;
        }
        s = try_open(banner_ms, wake, why, ret_kind);
        if (s == NULL && strcmp(*ret_kind, "connect") != 0)
            break;
    }
    sem_post(&helper.connecting);
    return s;
}
