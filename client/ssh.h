/* ssh.h - the system's ssh, told how to reach a VM. */
#ifndef VMCTL_SSH_H
#define VMCTL_SSH_H

#include <stdbool.h>
#include <stddef.h>

#include <jansson.h>

#include "cli.h"

enum { SSH_ARGV_MAX = 64 };

/* How a VM is reached. */
struct access {
    json_t *vm, *ssh;
    char *own_hosts; /* our own known_hosts; NULL: vmmd's */
};

/* With an address, which is waited for where it may come. False after the problem was shown, *ret_exit being
 * its exit code. access_done in any case. */
bool access_get(const struct cli *cli, const char *name, struct access *a, int *ret_exit);
void access_done(struct access *a);

/* Ssh's and scp's options: the key (NULL: the VM's), where, and which host key is right. */
void access_add(char **argv, size_t *count, const struct access *a, const char *key);
void argv_add(char **argv, size_t *count, char *text);

/* Becomes the program; what comes back is a failure: 125, after a line on stderr. */
int become(char **argv, size_t count);

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
