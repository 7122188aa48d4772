/* ssh.h - the system's ssh, told how to reach a VM. */
#ifndef VMCTL_SSH_H
#define VMCTL_SSH_H

#include <stdbool.h>
#include <stddef.h>

#include "cli.h"

struct ssh_call {
    const char *name; /* of the VM */
    const char *user; /* NULL: the VM's */
    const char *key;  /* NULL: the VM's */
    bool tty;
    const char *const *command; /* words, each given as it is */
    size_t command_count;
};

/* Becomes ssh; returns only when that failed: 125, after a line on stderr. */
int ssh_run(struct cli *cli, const struct ssh_call *call);

#endif
