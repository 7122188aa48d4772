/* meta.c - the daemon about itself: health, version, contract, host, metrics. */
#include <stdio.h>
#include <string.h>
#include <sys/utsname.h>
#include <unistd.h>

#include "base/buf.h"
#include "base/clock.h"
#include "base/fd.h"
#include "base/limit.h"
#include "base/mem.h"
#include "base/str.h"
#include "model/json_text.h"
#include "openapi_yaml.h"
#include "core/exec.h"
#include "rest/rest.h"

void rest_health(struct http_request *req, void *arg)
{
    struct rest *rest = arg;
    CLEANUP_ERROR struct error err = ERROR_INIT;

    if (!core_stopping(rest->core)) {
        http_reply_json(req, 200, "{\"status\":\"ok\"}");
        return;
    }
    error_set(&err, ERR_DAEMON_SHUTTING_DOWN, "vmmd is stopping");
    http_reply_error(req, &err);
}

void rest_version(struct http_request *req, void *arg)
{
    (void)arg;
    http_reply_json(req, 200, "{\"version\":\"" VMMD_VERSION "\",\"api\":\"v1\"}");
}

void rest_openapi(struct http_request *req, void *arg)
{
    (void)arg;
    http_reply(req, 200, "application/yaml", openapi_yaml, sizeof(openapi_yaml) - 1);
}

/* --- host: the little files of /proc never wait for a disk --- */

static int64_t meminfo_mb(const char *text, const char *key)
{
    const char *at = strstr(text, key);
    long long kb = 0;

    if (at == NULL || sscanf(at + strlen(key), " %lld", &kb) != 1)
        return 0;
    return kb / 1024;
}

static json_t *cpu_json(void)
{
    CLEANUP_ERROR struct error err = ERROR_INIT;
    CLEANUP_FREE char *text = NULL;
    long count = sysconf(_SC_NPROCESSORS_ONLN);
    json_t *model = NULL;
    size_t len;

    if (file_read("/proc/cpuinfo", 4 << 20, &text, &len, &err) == 0) {
        const char *at = strstr(text, "model name");
        const char *colon = at != NULL ? strchr(at, ':') : NULL;
        if (colon != NULL && strlen(colon) > 2)
            model = json_stringn(colon + 2, strcspn(colon + 2, "\n"));
    }
    return json_pack("{s:I,s:o}", "count", (json_int_t)(count > 0 ? count : 1), "model",
                     model != NULL ? model : json_null());
}

static json_t *memory_json(void)
{
    CLEANUP_ERROR struct error err = ERROR_INIT;
    CLEANUP_FREE char *text = NULL;
    size_t len;

    if (file_read("/proc/meminfo", 65536, &text, &len, &err) < 0)
        return json_pack("{s:i,s:i}", "total_mb", 1, "available_mb", 0);
    return json_pack("{s:I,s:I}", "total_mb", (json_int_t)meminfo_mb(text, "MemTotal:"), "available_mb",
                     (json_int_t)meminfo_mb(text, "MemAvailable:"));
}

static json_t *disk_json(const struct core *core, const char *path)
{
    const struct disk_room *room = core_disk_room(core);
    double gb = 1 << 30, total = (double)room->total / gb, available = (double)room->free / gb;

    return json_pack("{s:s,s:f,s:f}", "path", path, "total_gb", (double)(int64_t)(total * 100) / 100, "free_gb",
                     (double)(int64_t)(available * 100) / 100);
}

static int64_t limit_max(const struct rest *rest, enum limit limit)
{
    const struct core_config *c = core_get_config(rest->core);

    switch (limit) {
    case LIMIT_VMS:
        return c->max_vms;
    case LIMIT_OPERATIONS:
        return c->max_operations;
    case LIMIT_VM_OPERATIONS:
        return c->max_operations_per_vm;
    case LIMIT_EXECS:
        return c->max_execs;
    case LIMIT_VM_EXECS:
        return c->max_execs_per_vm;
    case LIMIT_CONNECTIONS:
        return rest->max_connections;
    case LIMIT_WAITS:
        return rest->max_waits;
    case LIMIT_STREAMS:
        return rest->max_streams;
    case LIMIT_OPEN_FILES:
        return limit_files_max();
    case LIMIT_REQUEST_RATE:
        return rest->rate_limit;
    case LIMIT_MAX:
        break;
    }
    return 0;
}

/* Each by the name of its key in vmmd.conf. */
static json_t *limits_json(const struct rest *rest)
{
    const struct core_config *c = core_get_config(rest->core);
    json_t *limits = json_pack("{s:I,s:I,s:I,s:I}", "rate_burst", (json_int_t)rest->rate_burst, "operations_keep_s",
                               (json_int_t)c->operations_keep_s, "events_keep", (json_int_t)c->events_keep,
                               "max_body_bytes", (json_int_t)HTTP_BODY_MAX);

    for (enum limit l = 0; l < LIMIT_MAX; l++)
        json_object_set_new(limits, limit_key(l), json_integer(limit_max(rest, l)));
    return limits;
}

static json_t *tools_json(const json_t *described)
{
    json_t *list = json_array(), *tool;
    size_t i;

    json_array_foreach(json_object_get(described, "tools"), i, tool)
    {
        json_t *path = json_object_get(tool, "path");
        json_array_append_new(list, json_pack("{s:O,s:b,s:O}", "name", json_object_get(tool, "name"), "present",
                                              !json_is_null(path), "path", path));
    }
    return list;
}

static json_t *qemu_json(const json_t *d)
{
    json_t *capabilities = json_object();

    json_object_set(capabilities, "machines", json_object_get(d, "machines"));
    json_object_set(capabilities, "uefi", json_object_get(d, "uefi"));
    json_object_set(capabilities, "missing", json_object_get(d, "missing"));
    return json_pack("{s:O,s:O,s:o}", "path", json_object_get(d, "binary"), "version", json_object_get(d, "version"),
                     "capabilities", capabilities);
}

static json_t *backends_json(struct core *core, json_t **ret_qemu)
{
    json_t *list = json_array();

    for (struct backend *const *be = core_backends(core); *be != NULL; be++) {
        json_t *d = (*be)->describe(*be);
        json_array_append_new(list, json_pack("{s:O,s:O,s:O}", "name", json_object_get(d, "name"), "available",
                                              json_object_get(d, "available"), "reason", json_object_get(d, "reason")));
        if (strcmp((*be)->name, "qemu") == 0)
            *ret_qemu = d;
        else
            json_decref(d);
    }
    return list;
}

void rest_host(struct http_request *req, void *arg)
{
    struct rest *rest = arg;
    CLEANUP_ERROR struct error err = ERROR_INIT;
    struct utsname uts = {0};
    json_t *qemu = NULL;

    uname(&uts);
    json_t *backends = backends_json(rest->core, &qemu);
    bool vsock = json_is_true(json_object_get(qemu, "vhost_vsock"));
    json_t *doc = json_pack(
        "{s:s,s:s,s:s,s:o,s:o,s:o,s:O,s:o,s:o,s:{s:b,s:s},s:o,s:o}", "hostname", uts.nodename, "kernel", uts.release,
        "arch", uts.machine, "cpu", cpu_json(), "memory", memory_json(), "disk", disk_json(rest->core, rest->data_dir),
        "accelerators", json_object_get(qemu, "accelerators"), "backends", backends, "qemu", qemu_json(qemu),
        "vhost_vsock", "available", vsock, "reason", vsock ? "" : "/dev/vhost-vsock is not there or not accessible",
        "tools", tools_json(qemu), "limits", limits_json(rest));
    char *text = json_text(doc, 0, NULL);
    json_decref(qemu);
    if (text != NULL) {
        http_reply_json(req, 200, text);
    } else {
        error_set(&err, ERR_DAEMON_OVERLOADED, "out of memory");
        http_reply_error(req, &err);
    }
    mem_free(text);
}

/* --- metrics --- */

static void metric(struct buf *b, const char *name, const char *type, const char *help)
{
    buf_printf(b, "# HELP %s %s\n# TYPE %s %s\n", name, help, name, type);
}

static void number(struct buf *b, const char *name, const char *type, const char *help, double value)
{
    metric(b, name, type, help);
    buf_printf(b, "%s %.17g\n", name, value);
}

static void put_vms(struct buf *b, struct core *core)
{
    unsigned by_state[VM_STATE_MAX];

    core_vm_count(core, by_state);
    metric(b, "vmmd_vms", "gauge", "VMs by state.");
    for (int i = 0; i < VM_DESTROYED; i++)
        buf_printf(b, "vmmd_vms{state=\"%s\"} %u\n", vm_state_text((enum vm_state)i), by_state[i]);
    number(b, "vmmd_operations_running", "gauge", "Operations under way.", core_operation_count(core));
    struct core_exec_stats execs;
    core_exec_stats(core, &execs);
    number(b, "vmmd_execs_running", "gauge", "Commands that run in guests.", execs.now);
    number(b, "vmmd_execs_total", "counter", "Commands that were begun in guests.", (double)execs.total);
    number(b, "vmmd_events_newest", "gauge", "Id of the newest event.", (double)core_event_newest(core));
}

static void put_leak(void *arg, const char *kind, unsigned n)
{
    buf_printf(arg, "vmmd_leaks{kind=\"%s\"} %u\n", kind, n);
}

static void put_leaks(struct buf *b, struct core *core)
{
    metric(b, "vmmd_leaks", "gauge", "What the last look at the host found that nobody owns.");
    core_leaks_count(core, put_leak, b);
}

static void put_http(struct buf *b, const struct http_stats *st)
{
    number(b, "vmmd_http_requests_total", "counter", "Requests that reached a handler or were refused.",
           (double)st->requests);
    metric(b, "vmmd_http_responses_total", "counter", "Responses by class of status.");
    for (int i = 1; i <= 5; i++)
        buf_printf(b, "vmmd_http_responses_total{class=\"%dxx\"} %llu\n", i, (unsigned long long)st->responses[i]);
    number(b, "vmmd_http_refused_total", "counter",
           "Requests refused before a handler: malformed, not admitted, over a limit.", (double)st->refused);
    number(b, "vmmd_http_connections", "gauge", "Open connections.", st->connections);
    number(b, "vmmd_http_parked", "gauge", "Requests whose answer is held.", st->parked);
    number(b, "vmmd_http_waits", "gauge", "Those of them that wait for something: Prefer: wait and /wait.", st->waits);
    number(b, "vmmd_http_streams", "gauge", "Open event streams, followed logs and WebSockets.", st->streams);
}

/* What is used of each limit; of the rate of requests nothing is counted. */
static void put_limits(struct buf *b, const struct rest *rest, const struct http_stats *st)
{
    unsigned by_state[VM_STATE_MAX];
    struct core_exec_stats execs;
    core_exec_stats(rest->core, &execs);
    const int64_t used[LIMIT_MAX] = {
        [LIMIT_VMS] = core_vm_count(rest->core, by_state),
        [LIMIT_OPERATIONS] = core_operation_count(rest->core),
        [LIMIT_VM_OPERATIONS] = core_vm_operation_count(rest->core),
        [LIMIT_EXECS] = execs.now,
        [LIMIT_VM_EXECS] = execs.most,
        [LIMIT_CONNECTIONS] = st->connections,
        [LIMIT_WAITS] = st->waits,
        [LIMIT_STREAMS] = st->streams,
        [LIMIT_OPEN_FILES] = limit_files_used(),
        [LIMIT_REQUEST_RATE] = -1,
    };

    metric(b, "vmmd_limit", "gauge", "Limits; 0: none.");
    for (enum limit l = 0; l < LIMIT_MAX; l++)
        buf_printf(b, "vmmd_limit{limit=\"%s\"} %lld\n", limit_name(l), (long long)limit_max(rest, l));
    metric(b, "vmmd_limit_used", "gauge",
           "What is used of them now; of operations_per_vm and execs_per_vm by the VM that has most.");
    for (enum limit l = 0; l < LIMIT_MAX; l++)
        if (used[l] >= 0)
            buf_printf(b, "vmmd_limit_used{limit=\"%s\"} %lld\n", limit_name(l), (long long)used[l]);
    metric(b, "vmmd_limit_refused_total", "counter", "Refusals by limit.");
    for (enum limit l = 0; l < LIMIT_MAX; l++)
        buf_printf(b, "vmmd_limit_refused_total{limit=\"%s\"} %llu\n", limit_name(l),
                   (unsigned long long)limit_refused(l));
    number(b, "process_open_fds", "gauge", "Open file descriptors.", limit_files_used());
    number(b, "process_max_fds", "gauge", "File descriptors that may be open.", limit_files_max());
}

static void put_store(struct buf *b, struct core *core)
{
    struct store_stats st;

    store_stats(core_store(core), &st);
    number(b, "vmmd_store_commits_total", "counter", "Commits flushed to disk.", (double)st.commits);
    number(b, "vmmd_store_transactions_total", "counter", "Transactions in those commits.", (double)st.transactions);
    number(b, "vmmd_store_failed_total", "counter", "Transactions that failed.", (double)st.failed);
    number(b, "vmmd_store_last_commit_seconds", "gauge", "Time of the last commit.", (double)st.last_commit_us / 1e6);
    number(b, "vmmd_store_max_commit_seconds", "gauge", "Longest commit.", (double)st.max_commit_us / 1e6);
    number(b, "vmmd_store_queued", "gauge", "Transactions waiting.", st.queued);
}

static void put_disk(struct buf *b, struct core *core)
{
    const struct disk_room *room = core_disk_room(core);

    number(b, "vmmd_disk_total_bytes", "gauge", "Size of the data directory's file system.", (double)room->total);
    number(b, "vmmd_disk_free_bytes", "gauge", "Free on the data directory's file system, a few seconds ago.",
           (double)room->free);
}

void rest_metrics(struct http_request *req, void *arg)
{
    struct rest *rest = arg;
    CLEANUP_BUF struct buf b = BUF_INIT(1 << 20);
    CLEANUP_ERROR struct error err = ERROR_INIT;
    struct http_stats st = {0};
    long rss = 0, size = 0;

    if (rest->server != NULL)
        http_server_stats(rest->server, &st);

    metric(&b, "vmmd_info", "gauge", "The version that runs.");
    buf_str(&b, "vmmd_info{version=\"" VMMD_VERSION "\"} 1\n");
    put_vms(&b, rest->core);
    put_leaks(&b, rest->core);
    put_http(&b, &st);
    put_limits(&b, rest, &st);
    put_store(&b, rest->core);
    put_disk(&b, rest->core);
    number(&b, "vmmd_loop_lag_max_seconds", "gauge",
           "Longest time since the last scrape that the loop kept other work waiting.",
           (double)loop_lag_max_ms(rest->loop) / 1e3);
    CLEANUP_FREE char *statm = NULL;
    size_t len;
    if (file_read("/proc/self/statm", 256, &statm, &len, &err) == 0 && sscanf(statm, "%ld %ld", &size, &rss) == 2)
        number(&b, "process_resident_memory_bytes", "gauge", "Resident memory.",
               (double)rss * (double)sysconf(_SC_PAGESIZE));
    number(&b, "process_start_time_seconds", "gauge", "When vmmd started, since 1970.", (double)rest->started_at / 1e3);
    if (b.failed) {
        error_done(&err);
        error_set(&err, ERR_DAEMON_OVERLOADED, "out of memory");
        http_reply_error(req, &err);
        return;
    }
    http_reply(req, 200, "text/plain; version=0.0.4; charset=utf-8", b.data, b.len);
}
