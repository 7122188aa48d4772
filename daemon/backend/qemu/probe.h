/* probe.h - what QEMU and the host can do, found out by trying.  Loop thread; a few small files are read and written. */
#ifndef BACKEND_QEMU_PROBE_H
#define BACKEND_QEMU_PROBE_H

#include <jansson.h>
#include <limits.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"
#include "loop/loop.h"

struct qemu_host {
    bool available;
    char reason[256]; /* why not; "" when available */
    char binary[PATH_MAX];
    char version[32];
    char machine_q35[48]; /* versioned; "" when QEMU has none */
    bool has_microvm;
    json_t *machines; /* array of names */
    bool kvm;
    char kvm_reason[256];
    bool tcg;
    char tcg_reason[256];
    bool uefi;
    char uefi_code[PATH_MAX];
    char uefi_vars[PATH_MAX];
    uint64_t uefi_vars_size;
    char qemu_img[PATH_MAX]; /* "" when missing */
    char inspect[PATH_MAX];  /* "" when missing */
    bool vhost_vsock;
    unsigned cpus;
    uint64_t memory_mb;
    uint64_t tsc_khz; /* 0: not known */
};

struct qemu_probe;

/* Fills host in; done(arg) exactly once on a later turn unless freed first.  host must outlive the probe.  The helper's
 * path is helper_dir/vmmd-inspect.  NULL: memory, with err set. */
struct qemu_probe *qemu_probe_new(struct loop *loop, const char *binary, const char *data_dir, const char *helper_dir,
                                  struct qemu_host *host, void (*done)(void *arg), void *arg, struct error *err);
void qemu_probe_free(struct qemu_probe *p); /* NULL is fine */

/* The quick, local part: tools, firmware, CPU count, memory.  Blocking for a few stat calls. */
void qemu_host_look(struct qemu_host *host, const char *helper_dir);
/* Measures the TSC against CLOCK_MONOTONIC for 20 ms; 0 where there is none.  Pool thread. */
uint64_t qemu_host_tsc_khz(void);
/* The matched pair of UEFI firmware files below root ("" for the host's): whether there is one. */
bool qemu_host_find_uefi(const char *root, char *code, char *vars);
/* A new object for GET /v1/host. */
json_t *qemu_host_json(const struct qemu_host *host);
void qemu_host_done(struct qemu_host *host);

#endif
