/* seed.h - a cloud-init NoCloud seed: its documents built as data, and written as an ISO image of volume CIDATA. */
#ifndef CLOUDINIT_SEED_H
#define CLOUDINIT_SEED_H

#include <stdbool.h>
#include <stddef.h>

#include "base/error.h"

/* What goes into the seed.  Nothing is owned; NULL: not given. */
struct seed_input {
    const char *instance_id;
    const char *hostname;
    const char *user; /* made with sudo and without password, when there is no user_data */
    const char *const *ssh_keys;
    size_t n_ssh_keys;
    const char *user_data; /* passes as it is */
    const char *vendor_data;
    const char *network_config;
};

/* The documents; owned. */
struct seed {
    char *user_data;
    char *meta_data;
    char *vendor_data;    /* NULL: no such file */
    char *network_config; /* NULL: no such file */
};

/* Whether cloud-init takes user-data that begins like this for anything: what it does not know, it passes over without an
 * error. */
bool seed_user_data_known(const char *user_data);

/* Builds the documents.  Any thread.  Fails: ERR_CLOUDINIT_ISO_FAILED (memory, text that is not UTF-8). */
int seed_build(const struct seed_input *input, struct seed *ret, struct error *err);
void seed_done(struct seed *seed);
/* Writes them as an ISO 9660 image (Rock Ridge and Joliet) to path, which must not exist, and fsyncs it.  Blocking: pool
 * thread.  A failure leaves no file: ERR_CLOUDINIT_ISO_FAILED, ERR_HOST_DISK_FULL. */
int seed_write(const struct seed *seed, const char *path, struct error *err);

#endif
