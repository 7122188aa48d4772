/* host.c - the part of the probe that only looks: tools, firmware, processors, memory; and the report of it all. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>
#ifdef __x86_64__
#include <x86intrin.h>
#endif

#include "backend/qemu/probe.h"
#include "base/clock.h"

/* Code and variables of one build belong together: a 2 MiB code with 4 MiB variables does not start. */
static const char *const uefi_pairs[][2] = {
    {"/usr/share/OVMF/OVMF_CODE_4M.fd", "/usr/share/OVMF/OVMF_VARS_4M.fd"},
    {"/usr/share/OVMF/OVMF_CODE.fd", "/usr/share/OVMF/OVMF_VARS.fd"},
    {"/usr/share/edk2/x64/OVMF_CODE.4m.fd", "/usr/share/edk2/x64/OVMF_VARS.4m.fd"},
    {"/usr/share/edk2/ovmf/OVMF_CODE.fd", "/usr/share/edk2/ovmf/OVMF_VARS.fd"},
    {"/usr/share/edk2-ovmf/x64/OVMF_CODE.fd", "/usr/share/edk2-ovmf/x64/OVMF_VARS.fd"},
    {"/usr/share/qemu/ovmf-x86_64-code.bin", "/usr/share/qemu/ovmf-x86_64-vars.bin"},
};

bool qemu_host_find_uefi(const char *root, char *code, char *vars)
{
    for (size_t i = 0; i < sizeof(uefi_pairs) / sizeof(uefi_pairs[0]); i++) {
        snprintf(code, PATH_MAX, "%s%s", root, uefi_pairs[i][0]);
        snprintf(vars, PATH_MAX, "%s%s", root, uefi_pairs[i][1]);
        if (access(code, R_OK) == 0 && access(vars, R_OK) == 0)
            return true;
    }
    code[0] = '\0';
    vars[0] = '\0';
    return false;
}

/* Looks a program up in PATH (or takes a path with a slash); "" when there is none. */
static void find_program(const char *name, char *out)
{
    const char *path = getenv("PATH");

    out[0] = '\0';
    if (strchr(name, '/')) {
        if (access(name, X_OK) == 0)
            snprintf(out, PATH_MAX, "%s", name);
        return;
    }
    if (!path)
        path = "/usr/local/bin:/usr/bin:/bin";
    while (*path) {
        size_t len = strcspn(path, ":");

        snprintf(out, PATH_MAX, "%.*s/%s", (int)len, path, name);
        if (len > 0 && access(out, X_OK) == 0)
            return;
        path += len + (path[len] == ':');
    }
    out[0] = '\0';
}

void qemu_host_look(struct qemu_host *host, const char *helper_dir)
{
    char name[PATH_MAX];
    struct stat vars;
    long cpus = sysconf(_SC_NPROCESSORS_ONLN), pages = sysconf(_SC_PHYS_PAGES), page = sysconf(_SC_PAGESIZE);

    snprintf(name, sizeof(name), "%s", host->binary);
    find_program(name, host->binary);
    find_program("qemu-img", host->qemu_img);
    if (snprintf(name, sizeof(name), "%s/vmmd-inspect", helper_dir) < (int)sizeof(name))
        find_program(name, host->inspect);
    host->uefi = qemu_host_find_uefi("", host->uefi_code, host->uefi_vars);
    host->uefi_vars_size = host->uefi && stat(host->uefi_vars, &vars) == 0 ? (uint64_t)vars.st_size : 0;
    host->vhost_vsock = access("/dev/vhost-vsock", R_OK | W_OK) == 0;
    host->cpus = cpus > 0 ? (unsigned)cpus : 1;
    host->memory_mb = pages > 0 && page > 0 ? (uint64_t)pages * (uint64_t)page >> 20 : 0;
    if (!host->binary[0])
        snprintf(host->reason, sizeof(host->reason), "QEMU is not installed (Debian: qemu-system-x86)");
}

uint64_t qemu_host_tsc_khz(void)
{
#ifdef __x86_64__
    const struct timespec pause = {.tv_nsec = 20 * 1000 * 1000};
    uint64_t tsc = __rdtsc();
    int64_t us = clock_mono_us();

    nanosleep(&pause, NULL);
    us = clock_mono_us() - us;
    tsc = __rdtsc() - tsc;
    return us > 0 ? tsc * 1000 / (uint64_t)us : 0;
#else
    return 0;
#endif
}

static json_t *tool_json(const char *name, const char *path)
{
    return json_pack("{s:s, s:o}", "name", name, "path", path[0] ? json_string(path) : json_null());
}

json_t *qemu_host_json(const struct qemu_host *host)
{
    json_t *missing = json_array();

    if (!host->binary[0])
        json_array_append_new(missing, json_string("qemu-system-x86_64"));
    if (!host->qemu_img[0])
        json_array_append_new(missing, json_string("qemu-img"));
    if (!host->inspect[0])
        json_array_append_new(missing, json_string("vmmd-inspect"));
    return json_pack(
        "{s:s, s:b, s:s, s:o, s:o, s:[{s:s, s:b, s:s}, {s:s, s:b, s:s}], s:O, s:{s:b, s:o, s:o, s:s}, s:[o, o, o], "
        "s:o, s:b}",
        "name", "qemu", "available", host->available, "reason", host->reason, "version",
        host->version[0] ? json_string(host->version) : json_null(), "binary",
        host->binary[0] ? json_string(host->binary) : json_null(), "accelerators", "name", "kvm", "available",
        host->kvm, "reason", host->kvm_reason, "name", "tcg", "available", host->tcg, "reason", host->tcg_reason,
        "machines", host->machines, "uefi", "available", host->uefi, "code",
        host->uefi ? json_string(host->uefi_code) : json_null(), "vars",
        host->uefi ? json_string(host->uefi_vars) : json_null(), "reason",
        host->uefi ? "" : "no matching pair of OVMF code and variables is installed (Debian: ovmf)", "tools",
        tool_json("qemu-system-x86_64", host->binary), tool_json("qemu-img", host->qemu_img),
        tool_json("vmmd-inspect", host->inspect), "missing", missing, "vhost_vsock", host->vhost_vsock);
}

void qemu_host_done(struct qemu_host *host)
{
    json_decref(host->machines);
    host->machines = NULL;
}
