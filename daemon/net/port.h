/* port.h - whether a host port is free, and who holds it. */
#ifndef NET_PORT_H
#define NET_PORT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Whether the port can be bound (and, for TCP, listened on) on the IPv4 address.  Any thread; a few system calls. */
bool port_is_free(bool udp, const char *host_ip, uint16_t port);
/* Who holds the port, as "nginx (pid 812)"; "" when it cannot be told.  Blocking (reads /proc): pool thread. */
void port_holder(bool udp, uint16_t port, char *out, size_t size);

#endif
