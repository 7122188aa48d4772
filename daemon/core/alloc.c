/* alloc.c - host ports and MAC addresses: each belongs to one VM from its creation to its end, over restarts. */
#include <stdio.h>
#include <string.h>

#include "base/mem.h"
#include "base/str.h"
#include "core/internal.h"

struct port {
    struct table_node node;
    bool udp;
    uint16_t number;
    struct live_vm *vm;
};

struct port_key {
    bool udp;
    uint16_t number;
};

static bool port_equal(const struct table_node *node, const void *key)
{
    const struct port *p = CONTAINER_OF(node, struct port, node);
    const struct port_key *k = key;

    return p->udp == k->udp && p->number == k->number;
}

static uint64_t port_hash(bool udp, uint16_t number)
{
    return ((uint64_t)number * 2 + udp) * 0x9e3779b97f4a7c15U >> 16;
}

static struct port *port_find(struct core *core, bool udp, uint16_t number)
{
    struct port_key key = {udp, number};
    struct table_node *node = table_find(&core->ports, port_hash(udp, number), port_equal, &key);

    return node != NULL ? CONTAINER_OF(node, struct port, node) : NULL;
}

static bool port_free_on_host(struct live_vm *vm, bool udp, const char *ip, uint16_t number)
{
    return vm->be->port_free == NULL || vm->be->port_free(vm->be, udp, ip, number);
}

static int port_take(struct live_vm *vm, bool udp, uint16_t number, struct error *err)
{
    struct port *p = mem_zalloc(sizeof(*p));

    if (p == NULL || table_add(&vm->core->ports, &p->node, port_hash(udp, number)) < 0) {
        mem_free(p);
        return error_set(err, ERR_DAEMON_OVERLOADED, "out of memory");
    }
    p->udp = udp;
    p->number = number;
    p->vm = vm;
    return 0;
}

static int port_error(bool udp, const char *ip, uint16_t number, const char *holder, struct error *err)
{
    error_set(err, ERR_NETWORK_PORT_IN_USE, "%s port %u on %s is held by %s%s", udp ? "UDP" : "TCP", number, ip,
              holder != NULL ? "VM " : "another process of this host", holder != NULL ? holder : "");
    error_ctx_int(err, "port", number);
    error_ctx_str(err, "proto", udp ? "udp" : "tcp");
    error_ctx_str(err, "host_ip", ip);
    error_ctx_str(err, "holder", holder != NULL ? holder : "another process");
    return -1;
}

static int port_claim(struct live_vm *vm, bool udp, const char *ip, uint16_t number, bool probe, struct error *err)
{
    struct port *held = port_find(vm->core, udp, number);

    if (held != NULL && held->vm == vm)
        return 0;
    if (held != NULL)
        return port_error(udp, ip, number, held->vm->vm.name, err);
    if (probe && !port_free_on_host(vm, udp, ip, number))
        return port_error(udp, ip, number, NULL, err);
    return port_take(vm, udp, number, err);
}

/* Where ports are chosen from: below what the kernel gives to outgoing connections first, from there on when that is full. */
static const struct {
    uint16_t first, last;
} port_ranges[] = {{20000, 32767}, {32768, 60999}};

static bool port_choose_in(struct live_vm *vm, bool udp, const char *ip, uint16_t first, uint16_t last, uint16_t *ret)
{
    unsigned span = (unsigned)last - first + 1, start;

    random_bytes(&start, sizeof(start)); /* two daemons on one host seldom meet */
    for (unsigned i = 0; i < span; i++) {
        uint16_t number = (uint16_t)(first + (start % span + i) % span);
        if (port_find(vm->core, udp, number) == NULL && port_free_on_host(vm, udp, ip, number)) {
            *ret = number;
            return true;
        }
    }
    return false;
}

static int port_choose(struct live_vm *vm, bool udp, const char *ip, uint16_t *ret, struct error *err)
{
    uint16_t number = 0;

    for (size_t i = 0; i < ARRAY_SIZE(port_ranges) && number == 0; i++)
        port_choose_in(vm, udp, ip, port_ranges[i].first, port_ranges[i].last, &number);
    if (number == 0)
        return error_set(err, ERR_NETWORK_PORT_IN_USE, "every %s port from 20000 to 60999 is taken",
                         udp ? "UDP" : "TCP");
    if (port_take(vm, udp, number, err) < 0)
        return -1;
    *ret = number;
    return 0;
}

static bool mac_equal(const struct table_node *node, const void *key)
{
    return strcmp(CONTAINER_OF(node, struct live_vm, mac_node)->vm.runtime.mac_addr, key) == 0;
}

static bool mac_taken(const struct core *core, const char *mac)
{
    return table_find(&core->macs, str_hash(mac), mac_equal, mac) != NULL;
}

/* 52:54:00 and three bytes of the VM's own random id, so that only a collision needs a search. */
static void mac_choose(struct live_vm *vm)
{
    uint8_t b[3];
    char *mac = vm->vm.runtime.mac_addr;
    char candidate[18];

    memcpy(b, vm->vm.id.bytes + 13, sizeof(b));
    do {
        snprintf(candidate, sizeof(candidate), "52:54:00:%02x:%02x:%02x", b[0], b[1], b[2]);
        random_bytes(b, sizeof(b));
    } while (mac_taken(vm->core, candidate));
    memcpy(mac, candidate, sizeof(candidate));
}

static void port_drop(struct live_vm *vm, bool udp, uint16_t number)
{
    struct port *p = number != 0 ? port_find(vm->core, udp, number) : NULL;

    if (p == NULL || p->vm != vm)
        return;
    table_remove(&vm->core->ports, &p->node);
    mem_free(p);
}

int alloc_vm(struct live_vm *vm, bool probe, struct error *err)
{
    struct vm_spec *spec = &vm->vm.spec;

    if (spec->network.type != VM_NETWORK_NONE && vm->vm.runtime.mac_addr[0] == '\0')
        mac_choose(vm);
    if (vm->vm.runtime.mac_addr[0] != '\0' && !vm->mac_listed) {
        if (table_add(&vm->core->macs, &vm->mac_node, str_hash(vm->vm.runtime.mac_addr)) < 0)
            return error_set(err, ERR_DAEMON_OVERLOADED, "out of memory");
        vm->mac_listed = true;
    }
    if (spec->network.type != VM_NETWORK_USER)
        return 0;
    for (size_t i = 0; i < spec->network.n_forwards; i++) {
        struct vm_forward *f = &spec->network.forwards[i];
        if (f->host_port == 0 ? port_choose(vm, f->udp, f->host_ip, &f->host_port, err) < 0
                              : port_claim(vm, f->udp, f->host_ip, f->host_port, probe, err) < 0)
            return -1;
    }
    uint16_t *ssh = &vm->vm.runtime.ssh_host_port;
    if (*ssh != 0 && probe && !port_free_on_host(vm, false, "127.0.0.1", *ssh)) {
        port_drop(vm, false, *ssh); /* somebody else's by now, and nobody asked for that number */
        *ssh = 0;
        vm->ports_moved = true;
    }
    return *ssh == 0 ? port_choose(vm, false, "127.0.0.1", ssh, err)
                     : port_claim(vm, false, "127.0.0.1", *ssh, probe, err);
}

void alloc_renew(struct live_vm *vm)
{
    const struct port *ssh = port_find(vm->core, false, vm->vm.runtime.ssh_host_port);

    if (ssh != NULL && ssh->vm != vm)
        vm->vm.runtime.ssh_host_port = 0;
    if (mac_taken(vm->core, vm->vm.runtime.mac_addr))
        vm->vm.runtime.mac_addr[0] = '\0';
}

void alloc_release(struct live_vm *vm)
{
    if (vm->mac_listed)
        table_remove(&vm->core->macs, &vm->mac_node);
    vm->mac_listed = false;
    for (size_t i = 0; i < vm->vm.spec.network.n_forwards; i++)
        port_drop(vm, vm->vm.spec.network.forwards[i].udp, vm->vm.spec.network.forwards[i].host_port);
    port_drop(vm, false, vm->vm.runtime.ssh_host_port);
}

static void port_node_free(struct table_node *node, void *arg)
{
    (void)arg;
    mem_free(CONTAINER_OF(node, struct port, node));
}

void alloc_free(struct core *core)
{
    table_each(&core->ports, port_node_free, NULL);
    table_done(&core->ports);
    table_done(&core->macs);
}
