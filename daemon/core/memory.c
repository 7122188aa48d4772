/* memory.c - is there memory on this host for one more VM?
 *
 * What a VM needs (its memory_mb and what QEMU takes for itself) must fit into what is available now, less what the config
 * keeps in reserve, less what is promised to the starts that are under way and have not touched it yet.  Available is the
 * kernel's MemAvailable, or less where vmmd runs in a memory cgroup with a limit: its QEMUs are in it too.
 * What is read is the kernel's memory, no disk; it is read anew after 250 ms at the earliest.
 * Failure modes: too little: host::insufficient_memory, before anything has happened; nothing can be read: not refused. */
#include <limits.h>
#include <stdio.h>
#include <string.h>

#include "base/clock.h"
#include "base/fd.h"
#include "base/mem.h"
#include "base/str.h"
#include "core/internal.h"
#include "core/ops/ops.h"

enum { FRESH_MS = 250, FILE_MAX = 65536, LEVELS_MAX = 32 };

/* --- reading --- */

static char *read_text(const char *root, const char *path)
{
    CLEANUP_ERROR struct error err = ERROR_INIT;
    CLEANUP_FREE char *whole = mem_printf("%s%s", root, path);
    char *text = NULL;
    size_t len;

    return whole != NULL && file_read(whole, FILE_MAX, &text, &len, &err) == 0 ? text : NULL;
}

/* The number after `name` at the beginning of a line; -1: none. */
static int64_t number_of(const char *text, const char *name)
{
    size_t len = strlen(name);
    long long value;

    for (const char *line = text; line != NULL && *line != '\0'; line = strchr(line, '\n')) {
        line += *line == '\n';
        if (strncmp(line, name, len) == 0 && sscanf(line + len, " %lld", &value) == 1 && value >= 0)
            return value;
    }
    return -1;
}

/* One number, bytes; -1 for "max", and for what v1 says in its place. */
static int64_t read_bytes(const char *root, const char *dir, const char *name)
{
    CLEANUP_FREE char *path = mem_printf("%s/%s", dir, name);
    CLEANUP_FREE char *text = path != NULL ? read_text(root, path) : NULL;
    long long value;

    return text != NULL && sscanf(text, "%lld", &value) == 1 && value >= 0 && value < INT64_MAX / 2 ? value : -1;
}

/* What is left in one cgroup: its page cache can be had back. */
static int64_t left_in(const char *root, const char *dir, bool v1)
{
    int64_t limit = read_bytes(root, dir, v1 ? "memory.limit_in_bytes" : "memory.max");
    int64_t used = limit >= 0 ? read_bytes(root, dir, v1 ? "memory.usage_in_bytes" : "memory.current") : -1;
    CLEANUP_FREE char *path = used >= 0 ? mem_printf("%s/memory.stat", dir) : NULL;
    CLEANUP_FREE char *stat = path != NULL ? read_text(root, path) : NULL;

    if (used < 0)
        return -1;
    int64_t inactive = stat != NULL ? number_of(stat, v1 ? "total_inactive_file" : "inactive_file") : 0;
    int64_t active = stat != NULL ? number_of(stat, v1 ? "total_active_file" : "active_file") : 0;
    int64_t left = limit - used + (inactive > 0 ? inactive : 0) + (active > 0 ? active : 0);
    return left > 0 ? left : 0;
}

/* The least that is left in a cgroup and those above it; -1: there is no limit. */
static int64_t left_above(const char *root, const char *mount, const char *cgroup, bool v1)
{
    char dir[PATH_MAX];
    int64_t least = -1;
    size_t base = strlen(mount);

    if (snprintf(dir, sizeof(dir), "%s%s", mount, cgroup) >= (int)sizeof(dir))
        return -1;
    for (int level = 0; level < LEVELS_MAX; level++) {
        int64_t left = left_in(root, dir, v1);
        if (left >= 0 && (least < 0 || left < least))
            least = left;
        char *slash = strrchr(dir, '/');
        if (strlen(dir) <= base || slash == NULL || slash < dir + base)
            break;
        *slash = '\0';
    }
    return least;
}

static int64_t left_in_cgroups(const char *root)
{
    CLEANUP_FREE char *text = read_text(root, "/proc/self/cgroup");
    int64_t least = -1;

    for (char *line = text, *next; line != NULL && *line != '\0'; line = next) { /* "4:memory:/a/b", "0::/a/b" */
        next = strchr(line, '\n');
        if (next != NULL)
            *next++ = '\0';
        char *names = strchr(line, ':'), *cgroup = names != NULL ? strchr(names + 1, ':') : NULL;
        if (cgroup == NULL)
            continue;
        *cgroup++ = '\0';
        bool v2 = strcmp(line, "0:") == 0, v1 = strcmp(names + 1, "memory") == 0;
        if (!v1 && !v2)
            continue;
        int64_t left = left_above(root, v1 ? "/sys/fs/cgroup/memory" : "/sys/fs/cgroup", cgroup, v1);
        if (left >= 0 && (least < 0 || left < least))
            least = left;
    }
    return least;
}

/* MiB; -1: not to be found out. */
static int64_t available_mb(struct core *core, const char **ret_limit)
{
    const char *root = core->config.host_root != NULL ? core->config.host_root : "";
    int64_t now = clock_mono_ms();

    if (core->memory_read_at == 0 || now - core->memory_read_at >= FRESH_MS) {
        CLEANUP_FREE char *meminfo = read_text(root, "/proc/meminfo");
        int64_t kb = meminfo != NULL ? number_of(meminfo, "MemAvailable:") : -1, cgroup = left_in_cgroups(root);
        core->memory_limit = "host";
        core->memory_mb = kb >= 0 ? kb >> 10 : -1;
        if (cgroup >= 0 && (kb < 0 || cgroup >> 20 < core->memory_mb)) {
            core->memory_mb = cgroup >> 20;
            core->memory_limit = "cgroup";
        }
        core->memory_read_at = now;
    }
    *ret_limit = core->memory_limit;
    return core->memory_mb;
}

/* --- promising --- */

int memory_promise(struct vm_op *vo, struct error *err)
{
    struct core *core = vo->core;
    const struct live_vm *vm = vo->vm;
    const struct vm_spec *spec = &vm->vm.spec;
    const char *limit;

    if (vm->be->overhead_mb == NULL || vo->promised_mb > 0)
        return 0;
    int64_t own = vm->be->overhead_mb(vm->be, spec), need = (int64_t)spec->memory_mb + own;
    int64_t available = available_mb(core, &limit), reserve = core->config.memory_reserve_mb;
    if (available < 0 || need <= available - reserve - core->promised_mb) {
        vo->promised_mb = need;
        core->promised_mb += need;
        return 0;
    }
    error_set(
        err, ERR_HOST_INSUFFICIENT_MEMORY,
        "VM %s needs %lld MiB of memory, %lld of them for QEMU itself; available%s are %lld, of which %lld are kept "
        "in reserve and %lld promised to other starts",
        vm->vm.name, (long long)need, (long long)own,
        strcmp(limit, "host") == 0 ? "" : " within the memory limit of vmmd's cgroup", (long long)available,
        (long long)reserve, (long long)core->promised_mb);
    error_ctx_str(err, "vm", vm->vm.name);
    error_ctx_int(err, "needed_mb", need);
    error_ctx_int(err, "available_mb", available);
    error_ctx_int(err, "reserved_mb", reserve);
    error_ctx_int(err, "promised_mb", core->promised_mb);
    error_ctx_str(err, "limited_by", limit);
    return -1;
}

void memory_release(struct vm_op *vo)
{
    vo->core->promised_mb -= vo->promised_mb;
    vo->promised_mb = 0;
}
