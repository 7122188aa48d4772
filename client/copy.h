/* copy.h - files between this host and a guest, by the daemon's API, over any of the guest's channels. */
#ifndef VMCTL_COPY_H
#define VMCTL_COPY_H

#include <stdbool.h>
#include <stddef.h>

#include "cli.h"

struct copy {
    const struct cli *cli;
    const char *vm;
    bool recursive;
    const char *const *sources;
    size_t n_sources;
    const char *target; /* a directory, or with one source the new name */
};

/* Both return vmctl's exit code, after each failure was said; what could be copied is. A file is whole or not there. */
int copy_from_guest(const struct copy *c);
int copy_to_guest(const struct copy *c);

#endif
