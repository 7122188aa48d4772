/* tap.c - see tap.h.  Happy path: TUNSETIFF, SIOCBRADDIF, up.  On failure the fd is closed, and the device is gone. */
#include "net/tap.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/ethtool.h>
#include <linux/if_tun.h>
#include <linux/sockios.h>
#include <net/if.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

#include "base/fd.h"

static int set_name(struct ifreq *ifr, const char *name)
{
    memset(ifr, 0, sizeof(*ifr));
    if (!name[0] || strlen(name) >= sizeof(ifr->ifr_name)) {
        errno = ENODEV;
        return -1;
    }
    memcpy(ifr->ifr_name, name, strlen(name));
    return 0;
}

/* Asked of the kernel: /sys may show another namespace's devices. */
static bool driver_is(int sock, const char *name, const char *driver)
{
    struct ethtool_drvinfo info = {.cmd = ETHTOOL_GDRVINFO};
    struct ifreq ifr;

    if (set_name(&ifr, name) < 0)
        return false;
    ifr.ifr_data = (void *)&info;
    return ioctl(sock, SIOCETHTOOL, &ifr) == 0 && strcmp(info.driver, driver) == 0;
}

bool bridge_exists(const char *name)
{
    CLEANUP_FD int sock = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);

    return sock >= 0 && driver_is(sock, name, "bridge");
}

static int join_bridge(int sock, const char *tap, const char *bridge, struct error *err)
{
    struct ifreq ifr;
    unsigned index = if_nametoindex(tap);

    if (index == 0)
        return error_errno(err, errno, "the tap device %s vanished", tap);
    set_name(&ifr, bridge);
    ifr.ifr_ifindex = (int)index;
    if (ioctl(sock, SIOCBRADDIF, &ifr) < 0)
        return error_errno(err, errno, "cannot put the tap device %s on bridge %s", tap, bridge);
    return 0;
}

static int set_up(int sock, const char *tap, struct error *err)
{
    struct ifreq ifr;

    set_name(&ifr, tap);
    if (ioctl(sock, SIOCGIFFLAGS, &ifr) < 0)
        return error_errno(err, errno, "cannot set the tap device %s up", tap);
    ifr.ifr_flags = (short)(ifr.ifr_flags | IFF_UP);
    if (ioctl(sock, SIOCSIFFLAGS, &ifr) < 0)
        return error_errno(err, errno, "cannot set the tap device %s up", tap);
    return 0;
}

int tap_open(const char *name, const char *bridge, struct error *err)
{
    CLEANUP_FD int fd = -1;
    CLEANUP_FD int sock = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    struct ifreq ifr;

    if (sock < 0)
        return error_errno(err, errno, "cannot make the tap device %s", name);
    if (!bridge_exists(bridge))
        return error_set(err, ERR_NETWORK_BRIDGE_NOT_FOUND, "there is no bridge %s", bridge);
    fd = open("/dev/net/tun", O_RDWR | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0)
        return error_errno(err, errno, "cannot open /dev/net/tun");
    if (set_name(&ifr, name) < 0)
        return error_errno(err, errno, "cannot make the tap device %s", name);
    ifr.ifr_flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR;
    if (ioctl(fd, TUNSETIFF, &ifr) < 0)
        return error_errno(err, errno, "cannot make the tap device %s", name);
    if (join_bridge(sock, name, bridge, err) < 0 || set_up(sock, name, err) < 0)
        return -1;
    return TAKE_FD(fd);
}

/* ---- what is left behind ---- */

static bool named_as_ours(const char *name)
{
    return strlen(name) == 10 && name[0] == 'v' && name[1] == 'm' && strspn(name + 2, "0123456789abcdef") == 8;
}

/* A tap has its carrier while a process holds it; one that is not up tells nothing, and tap_remove finds out. */
static bool in_use(int sock, const char *name)
{
    struct ifreq ifr;

    set_name(&ifr, name);
    return ioctl(sock, SIOCGIFFLAGS, &ifr) == 0 && (ifr.ifr_flags & IFF_UP) && (ifr.ifr_flags & IFF_RUNNING);
}

void tap_each_idle(void (*fn)(void *arg, const char *name), void *arg)
{
    CLEANUP_FD int sock = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    struct if_nameindex *all = sock >= 0 ? if_nameindex() : NULL;

    for (const struct if_nameindex *i = all; i && i->if_index != 0; i++)
        if (named_as_ours(i->if_name) && driver_is(sock, i->if_name, "tun") && !in_use(sock, i->if_name))
            fn(arg, i->if_name);
    if (all)
        if_freenameindex(all);
}

int tap_remove(const char *name, struct error *err)
{
    CLEANUP_FD int fd = -1;
    struct ifreq ifr;

    if (if_nametoindex(name) == 0)
        return 0;
    fd = open("/dev/net/tun", O_RDWR | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0)
        return error_errno(err, errno, "cannot open /dev/net/tun");
    if (set_name(&ifr, name) < 0)
        return error_errno(err, errno, "cannot remove the tap device %s", name);
    ifr.ifr_flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR;
    if (ioctl(fd, TUNSETIFF, &ifr) < 0)
        return error_errno(err, errno, "cannot take hold of the tap device %s", name);
    if (ioctl(fd, TUNSETPERSIST, 0) < 0)
        return error_errno(err, errno, "cannot remove the tap device %s", name);
    return 0; /* it goes with the fd */
}
