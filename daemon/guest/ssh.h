/* ssh.h - a guest reached by SSH, through the helper vmmd-ssh: one process per VM, started when it is needed, gone after a
 * minute without need.  Loop thread only.
 *
 * The helper meets the guest's bytes; here only its frames are read (base/frame.h), with bounds.  A helper that dies fails
 * what it was doing with ERR_SSH_FAILED; the next session starts a new one. */
#ifndef GUEST_SSH_H
#define GUEST_SSH_H

#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"
#include "guest/exec.h"
#include "guest/files.h"
#include "loop/loop.h"

struct ssh;

/* Copied. */
struct ssh_config {
    const char *helper;  /* path of vmmd-ssh */
    const char *dir;     /* the VM's work directory: shown among the helper's arguments */
    const char *vm_name; /* for messages */
    const char *user;    /* logs in */
    const char *host;    /* an IP address */
    uint16_t port;
    const char *key_path; /* the private key */
    const char *host_key; /* "ssh-ed25519 AAAA...", or NULL before the first contact */
};

struct ssh_events {
    void (*host_key)(void *arg, const char *host_key); /* the first contact */
    void (*lost)(void *arg);                           /* the guest ended a connection */
};

/* Memory only.  `events` must outlive it.  ERR_DAEMON_OVERLOADED. */
struct ssh *ssh_new(struct loop *loop, const struct ssh_config *config, const struct ssh_events *events, void *arg,
                    struct error *err);
/* Fails all its sessions.  The helper kills their commands in the guest and goes; where the guest is gone, or nothing runs, it
 * is ended at once.  NULL is fine. */
void ssh_free(struct ssh *ssh, bool guest_gone);

/* See exec.h.  NULL with err set: ERR_SSH_FAILED (no helper, no key), ERR_DAEMON_OVERLOADED. */
struct exec *ssh_exec(struct ssh *ssh, const struct exec_request *req, const struct exec_events *events, void *arg,
                      struct error *err);
/* See files.h.  NULL with err set, as for ssh_exec. */
struct files *ssh_files(struct ssh *ssh, const struct files_request *req, const struct files_events *events, void *arg,
                        struct error *err);
/* Runs `true` as soon as the guest answers, however long that takes; ended as for ssh_exec. */
struct exec *ssh_probe(struct ssh *ssh, const struct exec_events *events, void *arg, struct error *err);

#endif
