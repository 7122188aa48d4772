/* port.c - see port.h.  Happy path: bind as QEMU will.  The holder is found by the socket's inode in /proc/net/tcp or udp
 * and the link of an open fd to it; without the right to look there it stays unknown. */
#include "net/port.h"

#include <arpa/inet.h>
#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/fd.h"
#include "base/str.h"

enum { TCP_STATE_LISTEN = 0x0a };

bool port_is_free(bool udp, const char *host_ip, uint16_t port)
{
    CLEANUP_FD int fd = socket(AF_INET, (udp ? SOCK_DGRAM : SOCK_STREAM) | SOCK_CLOEXEC, 0);
    struct sockaddr_in addr = {.sin_family = AF_INET, .sin_port = htons(port)};
    int on = 1;

    if (fd < 0 || inet_pton(AF_INET, host_ip, &addr.sin_addr) != 1)
        return false;
    if (!udp)
        setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
    if (bind(fd, (struct sockaddr *)&addr, sizeof(addr)) < 0)
        return false;
    return udp || listen(fd, 1) == 0;
}

/* The inode of the socket on this port; 0: none. */
static unsigned long inode_in(const char *table, bool udp, uint16_t port)
{
    FILE *f = fopen(table, "re");
    char line[512];
    unsigned long found = 0;

    if (!f)
        return 0;
    while (found == 0 && fgets(line, sizeof(line), f)) {
        unsigned local_port, state;
        unsigned long inode;

        if (sscanf(line, " %*d: %*[0-9A-Fa-f]:%x %*s %x %*s %*s %*s %*u %*d %lu", &local_port, &state, &inode) == 3 &&
            local_port == port && (udp || state == TCP_STATE_LISTEN))
            found = inode;
    }
    fclose(f);
    return found;
}

static bool process_has(const char *pid, const char *link)
{
    char path[600], target[64];
    bool found = false;
    DIR *dir;

    snprintf(path, sizeof(path), "/proc/%s/fd", pid);
    dir = opendir(path);
    if (!dir)
        return false;
    for (struct dirent *e; !found && (e = readdir(dir)) != NULL;) {
        ssize_t n;

        snprintf(path, sizeof(path), "/proc/%s/fd/%s", pid, e->d_name);
        n = readlink(path, target, sizeof(target) - 1);
        if (n > 0) {
            target[n] = '\0';
            found = strcmp(target, link) == 0;
        }
    }
    closedir(dir);
    return found;
}

static void name_process(const char *pid, char *out, size_t size)
{
    char path[300], comm[64] = "?";
    FILE *f;

    snprintf(path, sizeof(path), "/proc/%s/comm", pid);
    f = fopen(path, "re");
    if (f) {
        if (fgets(comm, sizeof(comm), f))
            comm[strcspn(comm, "\n")] = '\0';
        fclose(f);
    }
    snprintf(out, size, "%s (pid %s)", comm, pid);
}

void port_holder(bool udp, uint16_t port, char *out, size_t size)
{
    unsigned long inode = inode_in(udp ? "/proc/net/udp" : "/proc/net/tcp", udp, port);
    char link[48];
    int64_t number;
    DIR *dir;

    out[0] = '\0';
    if (inode == 0)
        inode = inode_in(udp ? "/proc/net/udp6" : "/proc/net/tcp6", udp, port);
    dir = inode ? opendir("/proc") : NULL;
    if (!dir)
        return;
    snprintf(link, sizeof(link), "socket:[%lu]", inode);
    for (struct dirent *e; !out[0] && (e = readdir(dir)) != NULL;) {
        if (str_to_i64(e->d_name, 1, INT32_MAX, &number) && process_has(e->d_name, link))
            name_process(e->d_name, out, size);
    }
    closedir(dir);
}
