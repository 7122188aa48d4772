/* qemu.h - the QEMU backend: VMs as QEMU processes that outlive the daemon.  Loop thread. */
#ifndef BACKEND_QEMU_QEMU_H
#define BACKEND_QEMU_QEMU_H

#include "backend/backend.h"

struct qemu_config {
    const char *data_dir;           /* VMs live in data_dir/vms/ID */
    const char *runtime_dir;        /* their sockets in runtime_dir/vms/SHORTID */
    const char *helper_dir;         /* where vmmd-inspect is */
    const char *const *image_dirs;  /* NULL-terminated; NULL or empty: images may lie anywhere */
    const char *qemu_binary;        /* NULL: qemu-system-x86_64 from PATH */
    size_t console_log_max;         /* bytes; 0: 1 MiB */
    size_t vmm_log_max;             /* bytes; 0: 256 KiB */
    unsigned max_image_gb;          /* 0: 16,384 */
    const char *const *lease_files; /* dnsmasq's, NULL-terminated; NULL: none */
    int64_t cloud_init_timeout_s;   /* 0: 600 */
};

/* The backend; the config is copied.  Before the probe it is not available.  Fails: ERR_DAEMON_INTERNAL (memory). */
struct backend *qemu_backend_new(struct loop *loop, const struct qemu_config *config, struct error *err);

/* Finds out what QEMU and this host can do, once, before the daemon is ready: real starts of QEMU, 5 s each at most,
 * remembered in data_dir by binary and boot.  done comes exactly once, on a later turn, unless the backend is freed
 * first; what is missing is no failure (describe tells it, check refuses).  -1: nothing began. */
int qemu_backend_probe(struct backend *be, void (*done)(void *arg), void *arg, struct error *err);

#endif
