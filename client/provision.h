/* provision.h - provisioning steps from the command line, and running them with their output in sight. */
#ifndef VMCTL_PROVISION_H
#define VMCTL_PROVISION_H

#include <jansson.h>

#include "cli.h"

/* Appends the steps of --inline, --script and --file, in their order. Returns EXIT_DONE, or the exit code after a line on
 * stderr. */
int provision_steps(const struct cli *cli, const struct args *args, json_t *steps);

/* Provisions a VM: `body` is the request's (borrowed). Shows what the steps write and how it ended; the exit code. */
int provision_run(const struct cli *cli, const char *name, json_t *body, const char *key);

#endif
