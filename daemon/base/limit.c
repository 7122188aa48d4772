/* limit.c - see limit.h.
 *
 *   open files:  0 ........ network ........ VMs ........ Unix socket ........ limit
 *                                   one part     half a part         half a part
 *
 * The open files are counted by reading /proc/self/fd through a descriptor that is kept: counting needs none when there
 * are none left.  Where /proc is not there, nothing is known to be open and the kernel's own refusal is what remains. */
#include "base/limit.h"

#include <dirent.h>
#include <stdarg.h>
#include <stdio.h>
#include <sys/resource.h>

#include "base/clock.h"

enum { PART_MIN = 24, PART_MAX = 256, COUNT_MS = 1000, RECOUNT_MS = 50 };

static const struct {
    const char *name, *key;
} rows[LIMIT_MAX] = {
    [LIMIT_VMS] = {"vms", "max_vms"},
    [LIMIT_OPERATIONS] = {"operations", "max_operations"},
    [LIMIT_VM_OPERATIONS] = {"operations_per_vm", "max_operations_per_vm"},
    [LIMIT_EXECS] = {"execs", "max_execs"},
    [LIMIT_VM_EXECS] = {"execs_per_vm", "max_execs_per_vm"},
    [LIMIT_CONNECTIONS] = {"connections", "max_connections"},
    [LIMIT_WAITS] = {"waits", "max_waits"},
    [LIMIT_STREAMS] = {"streams", "max_streams"},
    [LIMIT_OPEN_FILES] = {"open_files", "max_open_files"},
    [LIMIT_REQUEST_RATE] = {"request_rate", "rate_limit"},
};
static uint64_t refused[LIMIT_MAX];
static unsigned files_max, files_used;
static int64_t files_counted_at = -1;
static DIR *files_dir;

const char *limit_name(enum limit limit)
{
    return rows[limit].name;
}

const char *limit_key(enum limit limit)
{
    return rows[limit].key;
}

int limit_refuse(enum limit limit, int64_t max, struct error *err, const char *fmt, ...)
{
    char text[ERROR_MESSAGE_MAX];
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(text, sizeof(text), fmt, ap);
    va_end(ap);
    refused[limit]++;
    error_set(err, limit == LIMIT_REQUEST_RATE ? ERR_API_TOO_MANY_REQUESTS : ERR_DAEMON_OVERLOADED, "%s", text);
    error_help(err, "try again in a moment; %s in vmmd.conf sets this limit, `vmctl host` shows it", rows[limit].key);
    error_ctx_str(err, "limit", rows[limit].name);
    error_ctx_int(err, "max", max);
    error_ctx_str(err, "config_key", rows[limit].key);
    return -1;
}

uint64_t limit_refused(enum limit limit)
{
    return refused[limit];
}

unsigned limit_share(unsigned max)
{
    unsigned kept = max / 8 > 0 ? max / 8 : 1;

    return max - kept;
}

static void read_max(void)
{
    struct rlimit limit;

    if (getrlimit(RLIMIT_NOFILE, &limit) == 0)
        files_max = limit.rlim_cur < UINT32_MAX ? (unsigned)limit.rlim_cur : UINT32_MAX;
}

unsigned limit_files_set(int64_t want)
{
    struct rlimit limit;

    if (getrlimit(RLIMIT_NOFILE, &limit) == 0) {
        limit.rlim_cur = (rlim_t)want < limit.rlim_max ? (rlim_t)want : limit.rlim_max;
        setrlimit(RLIMIT_NOFILE, &limit);
    }
    if (files_dir == NULL)
        files_dir = opendir("/proc/self/fd");
    read_max();
    return files_max;
}

unsigned limit_files_max(void)
{
    if (files_max == 0)
        read_max();
    return files_max;
}

static unsigned count_files(int64_t max_age_ms)
{
    int64_t now = clock_mono_ms();

    if (files_dir == NULL || (files_counted_at >= 0 && now - files_counted_at < max_age_ms))
        return files_used;
    files_used = 0;
    rewinddir(files_dir);
    for (const struct dirent *entry = readdir(files_dir); entry != NULL; entry = readdir(files_dir))
        files_used += entry->d_name[0] != '.';
    files_counted_at = now;
    read_max(); /* somebody may have set it anew from outside */
    return files_used;
}

unsigned limit_files_used(void)
{
    return count_files(COUNT_MS);
}

unsigned limit_files_share(enum limit_files_for who)
{
    static const unsigned half_parts[] = {
        [FILES_FOR_NETWORK_HELD] = 5, [FILES_FOR_NETWORK] = 4, [FILES_FOR_HELD] = 2, [FILES_FOR_SOCKET] = 1};
    unsigned max = limit_files_max(), part = max / 8;
    unsigned kept = half_parts[who] * (part < PART_MIN ? PART_MIN : part > PART_MAX ? PART_MAX : part) / 2;

    return max > kept ? max - kept : 0;
}

bool limit_files_room(enum limit_files_for who, unsigned want)
{
    return count_files(COUNT_MS) + want <= limit_files_share(who) ||
           count_files(RECOUNT_MS) + want <= limit_files_share(who);
}

void limit_files_recount(void)
{
    count_files(0);
}

void limit_files_opened(void)
{
    files_used++;
}
