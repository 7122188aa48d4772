/* argv.c - writes a plan down as QEMU's command line.
 *
 * Happy path: the parts below add their options in a fixed order, each option's name and value as separate elements.
 * Every disk node has a name, every device an id and (on q35) a PCI address, the RAM is a named object and the machine
 * type is versioned: what a later freeze of the VM needs.  Formats are always given, a base never has an implied backing
 * file, so QEMU probes nothing that a guest could have written.
 *
 * Failures are memory and paths that are not UTF-8 (JSON cannot carry them): the vector is marked failed once and
 * qemu_argv_build reports it at the end.  Values from the user never start with '-': paths are absolute, a kernel
 * command line that would gets a space in front. */
#include "backend/qemu/argv.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "base/buf.h"
#include "base/mem.h"

enum { ARGS_MAX = 160, VALUE_MAX = 1 << 20 };

/* Where things sit: the slot on q35's PCI bus, the bus on microvm.  They never change: a frozen VM finds its devices where
 * they were.  microvm's guests number devices from the highest of its 24 buses down; bus 0 gets no interrupts. */
struct place {
    const char *slot;
    const char *bus;
};
static const struct place place_vga = {"0x1", NULL};
static const struct place place_net = {"0x2", "virtio-mmio-bus.22"};
static const struct place place_disk = {"0x3", "virtio-mmio-bus.23"};
static const struct place place_scsi = {"0x4", "virtio-mmio-bus.21"};
static const struct place place_serial = {"0x5", "virtio-mmio-bus.20"};
static const struct place place_rng = {"0x6", "virtio-mmio-bus.19"};
static const struct place place_panic = {"0x7", NULL};

struct args {
    char **items;
    size_t n;
    bool failed;
};

static void add(struct args *a, const char *text)
{
    char *copy = a->n + 1 < ARGS_MAX ? mem_strdup(text) : NULL;

    if (!copy) {
        a->failed = true;
        return;
    }
    a->items[a->n++] = copy;
    a->items[a->n] = NULL;
}

static void add_option(struct args *a, const char *option, const char *value)
{
    add(a, option);
    add(a, value);
}

static void add_buf(struct args *a, const char *option, struct buf *value)
{
    if (value->failed || !value->data)
        a->failed = true;
    else
        add_option(a, option, value->data);
}

static void __attribute__((format(printf, 3, 4))) add_fmt(struct args *a, const char *option, const char *fmt, ...)
{
    char text[512];
    va_list ap;
    int n;

    va_start(ap, fmt);
    n = vsnprintf(text, sizeof(text), fmt, ap);
    va_end(ap);
    if (n < 0 || (size_t)n >= sizeof(text))
        a->failed = true;
    else
        add_option(a, option, text);
}

static int dump_to_buf(const char *data, size_t len, void *arg)
{
    return buf_append(arg, data, len);
}

/* Takes the object. */
static void add_json(struct args *a, const char *option, json_t *object)
{
    CLEANUP_BUF struct buf text = BUF_INIT(VALUE_MAX);

    if (!object || json_dump_callback(object, dump_to_buf, &text, JSON_COMPACT))
        a->failed = true;
    else
        add_buf(a, option, &text);
    json_decref(object);
}

/* key=value texts of QEMU take a comma doubled. */
static void buf_escaped(struct buf *b, const char *s)
{
    for (; *s; s++) {
        if (*s == ',')
            buf_char(b, ',');
        buf_char(b, *s);
    }
}

/* A virtio device in the form its machine takes, at its place. */
static json_t *virtio_device(const struct qemu_plan *p, const char *kind, const char *id, const struct place *place)
{
    CLEANUP_FREE char *driver = mem_printf("virtio-%s-%s", kind, p->machine == VM_MACHINE_MICROVM ? "device" : "pci");
    json_t *dev = driver ? json_pack("{s:s, s:s}", "driver", driver, "id", id) : NULL;

    if (dev)
        json_object_set_new(dev, "bus", json_string(p->machine == VM_MACHINE_Q35 ? "pcie.0" : place->bus));
    if (dev && p->machine == VM_MACHINE_Q35)
        json_object_set_new(dev, "addr", json_string(place->slot));
    return dev;
}

static void add_file_node(struct args *a, const char *node, const char *path, bool read_only)
{
    json_t *file = json_pack("{s:s, s:s, s:s, s:b}", "driver", "file", "node-name", node, "filename", path, "read-only",
                             read_only);

    if (file && !read_only)
        json_object_set_new(file, "discard", json_string("unmap"));
    add_json(a, "-blockdev", file);
}

static void add_identity(struct args *a, const struct qemu_plan *p)
{
    add(a, p->binary);
    add_fmt(a, "-name", "guest=%s,debug-threads=on", p->name);
    add_option(a, "-uuid", p->id);
    add(a, "-S");
    add(a, "-nodefaults");
    add(a, "-no-user-config");
    add_option(a, "-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny");
    add_option(a, "-msg", "timestamp=on");
    add_option(a, "-pidfile", p->pidfile);
}

static void add_machine(struct args *a, const struct qemu_plan *p)
{
    json_int_t bytes = (json_int_t)p->memory_mb * 1024 * 1024;

    add_json(a, "-object", json_pack("{s:s, s:s, s:I}", "qom-type", "memory-backend-ram", "id", "mem", "size", bytes));
    add_fmt(a, "-machine", "%s,memory-backend=mem,dump-guest-core=off%s%s", p->machine_type,
            p->machine == VM_MACHINE_Q35 ? ",usb=off,vmport=off" : ",auto-kernel-cmdline=off",
            p->firmware_code ? ",pflash0=firmware-code,pflash1=firmware-vars" : "");
    add_option(a, "-accel", p->accel);
    add_option(a, "-cpu", p->cpu_model);
    add_fmt(a, "-smp", "cpus=%u,maxcpus=%u,sockets=1,cores=%u,threads=1", p->vcpus, p->vcpus, p->vcpus);
    add_fmt(a, "-m", "%u", p->memory_mb);
    add_option(a, "-rtc", "base=utc");
    add_option(a, "-action", "reboot=reset,shutdown=pause,panic=pause");
}

static void add_firmware(struct args *a, const struct qemu_plan *p)
{
    if (!p->firmware_code)
        return;
    add_file_node(a, "firmware-code-file", p->firmware_code, true);
    add_json(a, "-blockdev",
             json_pack("{s:s, s:s, s:s, s:b}", "driver", "raw", "node-name", "firmware-code", "file",
                       "firmware-code-file", "read-only", 1));
    add_file_node(a, "firmware-vars-file", p->firmware_vars, false);
    add_json(a, "-blockdev",
             json_pack("{s:s, s:s, s:s}", "driver", "raw", "node-name", "firmware-vars", "file", "firmware-vars-file"));
}

static void add_kernel(struct args *a, const struct qemu_plan *p)
{
    CLEANUP_BUF struct buf line = BUF_INIT(VALUE_MAX);
    bool needs_tsc = p->machine == VM_MACHINE_MICROVM && strcmp(p->accel, "tcg") == 0 && p->tsc_khz;

    if (!p->kernel)
        return;
    add_option(a, "-kernel", p->kernel);
    if (p->initrd)
        add_option(a, "-initrd", p->initrd);
    if (p->cmdline && p->cmdline[0] == '-')
        buf_char(&line, ' ');
    if (p->cmdline)
        buf_str(&line, p->cmdline);
    else
        buf_str(&line, p->overlay && !p->initrd ? "console=ttyS0 quiet root=/dev/vda1 rw" : "console=ttyS0 quiet");
    /* Without it a third of the boots hang: microvm has no timer to check a TSC calibration by the PIT against. */
    if (needs_tsc && !strstr(line.data ? line.data : "", "tsc_early_khz="))
        buf_printf(&line, "%stsc_early_khz=%llu", line.len ? " " : "", (unsigned long long)p->tsc_khz);
    if (line.failed)
        a->failed = true;
    else
        add_option(a, "-append", line.data ? line.data : "");
}

/* The chain below the overlay, written out: a base has no backing file of its own. */
static void add_base(struct args *a, const struct qemu_plan *p)
{
    json_t *base;

    add_file_node(a, "disk0-base-file", p->base, true);
    base = json_pack("{s:s, s:s, s:s, s:b}", "driver", p->base_format, "node-name", "disk0-base", "file",
                     "disk0-base-file", "read-only", 1);
    if (base && strcmp(p->base_format, "qcow2") == 0)
        json_object_set_new(base, "backing", json_null());
    add_json(a, "-blockdev", base);
}

static void add_disk(struct args *a, const struct qemu_plan *p)
{
    json_t *dev;

    if (!p->overlay)
        return;
    add_base(a, p);
    add_file_node(a, "disk0-file", p->overlay, false);
    add_json(a, "-blockdev",
             json_pack("{s:s, s:s, s:s, s:s, s:s}", "driver", "qcow2", "node-name", "disk0", "file", "disk0-file",
                       "backing", "disk0-base", "discard", "unmap"));
    dev = virtio_device(p, "blk", "disk0-dev", &place_disk);
    if (dev) {
        json_object_set_new(dev, "drive", json_string("disk0"));
        json_object_set_new(dev, "werror", json_string("stop"));
        json_object_set_new(dev, "rerror", json_string("stop"));
        if (p->machine == VM_MACHINE_Q35)
            json_object_set_new(dev, "bootindex", json_integer(1));
    }
    add_json(a, "-device", dev);
}

/* On virtio-scsi: cloud kernels know no AHCI. */
static void add_seed(struct args *a, const struct qemu_plan *p)
{
    if (!p->seed)
        return;
    add_file_node(a, "seed0-file", p->seed, true);
    add_json(
        a, "-blockdev",
        json_pack("{s:s, s:s, s:s, s:b}", "driver", "raw", "node-name", "seed0", "file", "seed0-file", "read-only", 1));
    add_json(a, "-device", virtio_device(p, "scsi", "scsi0", &place_scsi));
    add_json(
        a, "-device",
        json_pack("{s:s, s:s, s:s, s:s}", "driver", "scsi-cd", "id", "seed0-dev", "bus", "scsi0.0", "drive", "seed0"));
}

static void add_user_network(struct args *a, const struct qemu_plan *p)
{
    CLEANUP_BUF struct buf net = BUF_INIT(VALUE_MAX);

    buf_str(&net, "user,id=net0,restrict=off");
    if (p->ssh_host_port)
        buf_printf(&net, ",hostfwd=tcp:127.0.0.1:%u-:22", p->ssh_host_port);
    for (size_t i = 0; i < p->n_forwards; i++) {
        const struct vm_forward *f = &p->forwards[i];

        buf_printf(&net, ",hostfwd=%s:", f->udp ? "udp" : "tcp");
        buf_escaped(&net, f->host_ip[0] ? f->host_ip : "127.0.0.1");
        buf_printf(&net, ":%u-:%u", f->host_port, f->guest_port);
    }
    add_buf(a, "-netdev", &net);
}

static void add_network(struct args *a, const struct qemu_plan *p)
{
    json_t *dev;

    if (p->network == VM_NETWORK_USER)
        add_user_network(a, p);
    else if (p->network == VM_NETWORK_TAP)
        add_fmt(a, "-netdev", "tap,id=net0,fd=%d", p->tap_fd);
    else
        return;
    dev = virtio_device(p, "net", "net0-dev", &place_net);
    if (dev) {
        json_object_set_new(dev, "netdev", json_string("net0"));
        json_object_set_new(dev, "mac", json_string(p->mac));
        if (p->machine == VM_MACHINE_Q35)
            json_object_set_new(dev, "romfile", json_string("")); /* no network boot */
    }
    add_json(a, "-device", dev);
}

static void add_socket(struct args *a, const char *id, const char *path)
{
    CLEANUP_BUF struct buf chardev = BUF_INIT(VALUE_MAX);

    buf_printf(&chardev, "socket,id=%s,path=", id);
    buf_escaped(&chardev, path);
    buf_str(&chardev, ",server=on,wait=off");
    add_buf(a, "-chardev", &chardev);
}

static void add_channels(struct args *a, const struct qemu_plan *p)
{
    add_socket(a, "monitor0", p->qmp_socket);
    add_option(a, "-mon", "chardev=monitor0,mode=control");
    add_socket(a, "console0", p->console_socket);
    add_option(a, "-serial", "chardev:console0");
    add_json(a, "-device", virtio_device(p, "serial", "serial0", &place_serial));
    add_socket(a, "agent0", p->agent_socket);
    add_json(a, "-device",
             json_pack("{s:s, s:s, s:s, s:s, s:s, s:i}", "driver", "virtserialport", "id", QEMU_AGENT_PORT_ID, "bus",
                       "serial0.0", "chardev", "agent0", "name", "org.qemu.guest_agent.0", "nr", 1));
}

static void add_rest(struct args *a, const struct qemu_plan *p)
{
    json_t *rng;

    add_json(a, "-object",
             json_pack("{s:s, s:s, s:s}", "qom-type", "rng-random", "id", "rng0", "filename", "/dev/urandom"));
    rng = virtio_device(p, "rng", "rng0-dev", &place_rng);
    if (rng)
        json_object_set_new(rng, "rng", json_string("rng0"));
    add_json(a, "-device", rng);
    if (p->machine == VM_MACHINE_Q35) {
        add_json(a, "-device",
                 json_pack("{s:s, s:s, s:s, s:s}", "driver", "pvpanic-pci", "id", "pvpanic0", "bus", "pcie.0", "addr",
                           place_panic.slot));
        add_json(a, "-device", json_pack("{s:s, s:s, s:s}", "driver", "vmgenid", "id", "vmgenid0", "guid", p->id));
        add_option(a, "-boot", "menu=off,strict=on");
    } else {
        add_json(a, "-device", json_pack("{s:s, s:s}", "driver", "pvpanic", "id", "pvpanic0"));
    }
}

static void add_display(struct args *a, const struct qemu_plan *p)
{
    CLEANUP_BUF struct buf vnc = BUF_INIT(VALUE_MAX);

    add_option(a, "-display", "none");
    if (!p->vga)
        return;
    add_json(a, "-device",
             json_pack("{s:s, s:s, s:s, s:s}", "driver", "VGA", "id", "vga0", "bus", "pcie.0", "addr", place_vga.slot));
    buf_str(&vnc, "unix:");
    buf_escaped(&vnc, p->vnc_socket);
    add_buf(a, "-vnc", &vnc);
}

int qemu_argv_build(const struct qemu_plan *plan, char ***ret, struct error *err)
{
    struct args a = {.items = mem_zalloc(ARGS_MAX * sizeof(char *))};

    if (!a.items)
        return error_set(err, ERR_DAEMON_INTERNAL, "no memory for QEMU's command line");
    add_identity(&a, plan);
    add_machine(&a, plan);
    add_firmware(&a, plan);
    add_kernel(&a, plan);
    add_disk(&a, plan);
    add_seed(&a, plan);
    add_network(&a, plan);
    add_channels(&a, plan);
    add_rest(&a, plan);
    add_display(&a, plan);
    if (a.failed) {
        qemu_argv_free(a.items);
        return error_set(err, ERR_DAEMON_INTERNAL, "QEMU's command line of VM %s could not be written", plan->name);
    }
    *ret = a.items;
    return 0;
}

void qemu_argv_free(char **argv)
{
    if (!argv)
        return;
    for (char **p = argv; *p; p++)
        mem_free(*p);
    mem_free(argv);
}
