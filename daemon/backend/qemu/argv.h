/* argv.h - the QEMU command line as a pure function of a plan: no I/O, no clock, no host.
 *
 * The plan holds everything resolved; argv.c only writes it down.  Block devices, devices and objects are JSON, so that
 * no path needs escaping; where QEMU takes key=value, commas are doubled.  Any thread. */
#ifndef BACKEND_QEMU_ARGV_H
#define BACKEND_QEMU_ARGV_H

#include "model/vm.h"

/* Nothing is owned.  NULL and 0: not there. */
struct qemu_plan {
    const char *binary;
    const char *id;   /* the VM's uuid as text */
    const char *name; /* a valid VM name */
    enum vm_machine machine;
    const char *machine_type; /* versioned where there are versions: "pc-q35-7.2", "microvm" */
    const char *accel;        /* "kvm" or "tcg" */
    const char *cpu_model;
    unsigned vcpus;
    unsigned memory_mb;
    uint64_t tsc_khz; /* the host's; goes on the kernel command line of a microvm under TCG */

    const char *kernel;
    const char *initrd;
    const char *cmdline; /* NULL: a default one */
    const char *firmware_code;
    const char *firmware_vars; /* the VM's own copy */

    const char *overlay; /* qcow2 */
    const char *base;    /* what the overlay lies on */
    const char *base_format;
    const char *seed; /* ISO image */

    enum vm_network_type network;
    const char *mac;
    const struct vm_forward *forwards;
    size_t n_forwards;
    uint16_t ssh_host_port; /* 0: no SSH forward */
    int tap_fd;             /* its number in QEMU */

    bool vga;
    const char *vnc_socket;
    const char *qmp_socket;
    const char *console_socket;
    const char *agent_socket;
    const char *pidfile;
};

/* The id of the agent's port, as QEMU's VSERPORT_CHANGE names it. */
#define QEMU_AGENT_PORT_ID "agentport"

/* Writes the plan as a NULL-terminated vector; free it with qemu_argv_free.  ERR_DAEMON_INTERNAL when memory is short or
 * a path is not UTF-8. */
int qemu_argv_build(const struct qemu_plan *plan, char ***ret, struct error *err);
void qemu_argv_free(char **argv);

#endif
