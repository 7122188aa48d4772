/* probe.c - finds out what QEMU can do by starting it.
 *
 *     look at tools ─► remembered? ─yes─────────────────────────► measure the TSC ─► done
 *                          └─no─► start with TCG ─► start with KVM ─► remember ─┘
 *
 * A start is QEMU with its monitor on stdin and stdout, fed a few commands and `quit`: /dev/kvm existing says nothing,
 * some machines have it and QEMU aborts when it makes a vCPU, so KVM is tried with -cpu host up to the answers.  KVM also
 * wants the processor's own virtualisation: there are kernels whose KVM emulates what the processor lacks, and a Linux
 * guest does not get through its decompression there in the time TCG needs to boot it.
 *
 * Failures are findings, kept as reasons.  What was found is kept by binary, its time and size, and boot. */
#include "backend/qemu/probe.h"

#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "backend/qemu/internal.h"
#include "base/fd.h"
#include "base/mem.h"
#include "loop/child.h"
#include "loop/work.h"

enum { PROBE_TIMEOUT_MS = 5000, PROBE_OUTPUT_MAX = 1 << 20, CACHE_MAX = 1 << 20, CACHE_VERSION = 1 };

/* -M none has no CPU; the machines are asked for there. */
static const char commands[] = "{\"execute\":\"qmp_capabilities\"}\n"
                               "{\"execute\":\"query-version\",\"id\":\"version\"}\n"
                               "{\"execute\":\"query-machines\",\"id\":\"machines\"}\n"
                               "{\"execute\":\"query-kvm\",\"id\":\"kvm\"}\n"
                               "{\"execute\":\"quit\",\"id\":\"quit\"}\n";

struct qemu_probe {
    struct loop *loop;
    struct qemu_host *host;
    struct tool *tool;
    struct loop_task next;
    void (*step)(struct qemu_probe *p);
    char cache_path[PATH_MAX];
    char key[PATH_MAX + 160];
    bool in_work; /* a pool thread holds us: freed when it is back */
    bool freed;
    uint64_t tsc_khz;
    void (*done)(void *arg);
    void *arg;
};

static void run_step(struct loop_task *task)
{
    struct qemu_probe *p = CONTAINER_OF(task, struct qemu_probe, next);

    p->step(p);
}

static void go(struct qemu_probe *p, void (*step)(struct qemu_probe *p))
{
    p->step = step;
    loop_defer(p->loop, &p->next);
}

static int tsc_work(void *data, struct error *err)
{
    struct qemu_probe *p = data;

    (void)err;
    p->tsc_khz = qemu_host_tsc_khz();
    return 0;
}

static void finish(struct qemu_probe *p)
{
    void (*done)(void *) = p->done;

    p->done = NULL;
    if (done)
        done(p->arg);
}

static void tsc_done(void *arg, void *data, int rc, struct error *err)
{
    struct qemu_probe *p = arg;

    (void)data;
    (void)rc;
    (void)err;
    p->in_work = false;
    if (p->freed) {
        mem_free(p);
        return;
    }
    p->host->tsc_khz = p->tsc_khz;
    finish(p);
}

static void measure_tsc(struct qemu_probe *p)
{
    CLEANUP_ERROR struct error err = ERROR_INIT;

    p->in_work = work_run(p->loop, tsc_work, tsc_done, p, p, &err) == 0;
    if (!p->in_work)
        finish(p);
}

static void make_key(struct qemu_probe *p)
{
    struct stat st, kvm = {0};
    char boot[37];

    proc_boot_id(boot);
    if (stat(p->host->binary, &st) < 0)
        memset(&st, 0, sizeof(st));
    if (stat("/dev/kvm", &kvm) < 0)
        memset(&kvm, 0, sizeof(kvm));
    snprintf(p->key, sizeof(p->key), "%s %lld.%09ld %lld %s %d %o", p->host->binary, (long long)st.st_mtim.tv_sec,
             st.st_mtim.tv_nsec, (long long)st.st_size, boot, access("/dev/kvm", R_OK | W_OK), kvm.st_mode);
}

static void judge(struct qemu_host *host)
{
    host->available = host->tcg || host->kvm;
    if (host->available)
        host->reason[0] = '\0';
    else
        snprintf(host->reason, sizeof(host->reason), "QEMU does not start: %.200s", host->tcg_reason);
}

static bool read_cache(struct qemu_probe *p)
{
    CLEANUP_ERROR struct error err = ERROR_INIT;
    CLEANUP_FREE char *text = NULL;
    struct qemu_host *h = p->host;
    const char *key, *version, *q35, *kvm_reason, *tcg_reason;
    int number, microvm, kvm, tcg;
    json_t *doc, *machines;
    size_t len;
    bool ok;

    if (file_read(p->cache_path, CACHE_MAX, &text, &len, &err) < 0)
        return false;
    doc = json_loadb(text, len, 0, NULL);
    ok = doc && json_unpack(doc, "{s:i, s:s, s:s, s:s, s:b, s:b, s:s, s:b, s:s, s:o}", "cache", &number, "key", &key,
                            "version", &version, "q35", &q35, "microvm", &microvm, "kvm", &kvm, "kvm_reason",
                            &kvm_reason, "tcg", &tcg, "tcg_reason", &tcg_reason, "machines", &machines) == 0;
    ok = ok && number == CACHE_VERSION && strcmp(key, p->key) == 0 && json_is_array(machines);
    if (ok) {
        snprintf(h->version, sizeof(h->version), "%s", version);
        snprintf(h->machine_q35, sizeof(h->machine_q35), "%s", q35);
        snprintf(h->kvm_reason, sizeof(h->kvm_reason), "%s", kvm_reason);
        snprintf(h->tcg_reason, sizeof(h->tcg_reason), "%s", tcg_reason);
        h->has_microvm = microvm;
        h->kvm = kvm;
        h->tcg = tcg;
        json_decref(h->machines);
        h->machines = json_incref(machines);
        judge(h);
    }
    json_decref(doc);
    return ok;
}

static void write_cache(struct qemu_probe *p)
{
    CLEANUP_ERROR struct error err = ERROR_INIT;
    struct qemu_host *h = p->host;
    json_t *doc =
        json_pack("{s:i, s:s, s:s, s:s, s:b, s:b, s:s, s:b, s:s, s:O}", "cache", CACHE_VERSION, "key", p->key,
                  "version", h->version, "q35", h->machine_q35, "microvm", h->has_microvm, "kvm", h->kvm, "kvm_reason",
                  h->kvm_reason, "tcg", h->tcg, "tcg_reason", h->tcg_reason, "machines", h->machines);
    CLEANUP_FREE char *text = qemu_json_text(doc);

    /* Only a saving: without it the next start probes again. */
    if (text)
        file_write(p->cache_path, text, strlen(text), 0600, &err);
}

/* Calls fn for each answer with an id; whether `quit` was answered. */
static bool each_answer(const struct tool_result *r, void (*fn)(struct qemu_host *h, const char *id, json_t *ret),
                        struct qemu_host *h)
{
    bool quit = false;

    for (const char *line = r->out; line && *line;) {
        size_t len = strcspn(line, "\n");
        json_t *answer = json_loadb(line, len, 0, NULL);
        const char *id = json_string_value(json_object_get(answer, "id"));
        json_t *ret = json_object_get(answer, "return");

        if (id && ret && strcmp(id, "quit") == 0)
            quit = true;
        else if (id && ret)
            fn(h, id, ret);
        json_decref(answer);
        line += len + (line[len] == '\n');
    }
    return quit;
}

void last_line(const char *text, size_t len, char *out, size_t size)
{
    const char *start;

    while (len > 0 && (text[len - 1] == '\n' || text[len - 1] == '\r'))
        len--;
    start = len ? memrchr(text, '\n', len) : NULL;
    start = start ? start + 1 : text;
    snprintf(out, size, "%.*s", (int)(text + len - start), start);
}

static void why_not(const struct tool_result *r, char *out, size_t size)
{
    if (r->timed_out)
        snprintf(out, size, "QEMU did not answer in %d s", PROBE_TIMEOUT_MS / 1000);
    else if (r->err_len > 0)
        last_line(r->err_text, r->err_len, out, size);
    else if (r->status.signal)
        snprintf(out, size, "QEMU was ended by signal %d", r->status.signal);
    else
        snprintf(out, size, "QEMU exited with status %d", r->status.code);
}

static void take_machine(struct qemu_host *h, json_t *machine)
{
    const char *name = json_string_value(json_object_get(machine, "name"));
    const char *alias = json_string_value(json_object_get(machine, "alias"));

    if (!name)
        return;
    json_array_append_new(h->machines, json_string(name));
    if (alias && strcmp(alias, "q35") == 0)
        snprintf(h->machine_q35, sizeof(h->machine_q35), "%s", name);
    if (strcmp(name, "microvm") == 0)
        h->has_microvm = true;
}

static void take_general(struct qemu_host *h, const char *id, json_t *ret)
{
    int major, minor, micro;
    json_t *machine;
    size_t i;

    if (strcmp(id, "version") == 0 &&
        json_unpack(ret, "{s:{s:i, s:i, s:i}}", "qemu", "major", &major, "minor", &minor, "micro", &micro) == 0)
        snprintf(h->version, sizeof(h->version), "%d.%d.%d", major, minor, micro);
    if (strcmp(id, "machines") == 0) {
        json_array_foreach(ret, i, machine) take_machine(h, machine);
    }
}

static void take_kvm(struct qemu_host *h, const char *id, json_t *ret)
{
    if (strcmp(id, "kvm") == 0)
        h->kvm = json_is_true(json_object_get(ret, "enabled"));
}

static bool cpu_virtualises(void)
{
    CLEANUP_ERROR struct error err = ERROR_INIT;
    CLEANUP_FREE char *text = NULL;
    size_t len;

    if (file_read("/proc/cpuinfo", 4 << 20, &text, &len, &err) < 0)
        return true; /* then the start alone decides */
    return strstr(text, " vmx") || strstr(text, " svm");
}

static void kvm_done(void *arg, const struct tool_result *r)
{
    struct qemu_probe *p = arg;
    struct qemu_host *h = p->host;

    h->kvm = false;
    if (!each_answer(r, take_kvm, h) || r->status.code != 0) {
        h->kvm = false;
        why_not(r, h->kvm_reason, sizeof(h->kvm_reason));
    } else if (!h->kvm) {
        snprintf(h->kvm_reason, sizeof(h->kvm_reason), "QEMU started without it");
    } else if (!cpu_virtualises()) {
        h->kvm = false;
        snprintf(h->kvm_reason, sizeof(h->kvm_reason),
                 "/dev/kvm works, but the processor has no virtualisation of its own (vmx, svm): guests would crawl");
    } else {
        snprintf(h->kvm_reason, sizeof(h->kvm_reason), "a guest processor was started");
    }
    judge(h);
    write_cache(p);
    go(p, measure_tsc);
}

static void start(struct qemu_probe *p, const char *const *argv, char *reason, size_t size,
                  void (*done)(void *arg, const struct tool_result *r), void (*otherwise)(struct qemu_probe *p))
{
    CLEANUP_ERROR struct error err = ERROR_INIT;

    tool_free(p->tool);
    p->tool = tool_run(p->loop, argv, NULL, commands, sizeof(commands) - 1, PROBE_TIMEOUT_MS, PROBE_OUTPUT_MAX, done, p,
                       &err);
    if (!p->tool) {
        snprintf(reason, size, "%.200s", err.message);
        judge(p->host);
        go(p, otherwise);
    }
}

static void try_kvm(struct qemu_probe *p)
{
    struct qemu_host *h = p->host;
    const char *argv[] = {h->binary,     "-accel",          "kvm",      "-cpu", "host", "-machine", "q35", "-S",
                          "-nodefaults", "-no-user-config", "-display", "none", "-qmp", "stdio",    NULL};

    if (access("/dev/kvm", F_OK) < 0)
        snprintf(h->kvm_reason, sizeof(h->kvm_reason), "/dev/kvm does not exist");
    else if (access("/dev/kvm", R_OK | W_OK) < 0)
        snprintf(h->kvm_reason, sizeof(h->kvm_reason), "/dev/kvm may not be opened (join the group kvm)");
    else {
        start(p, argv, h->kvm_reason, sizeof(h->kvm_reason), kvm_done, measure_tsc);
        return;
    }
    judge(h);
    write_cache(p);
    go(p, measure_tsc);
}

static void general_done(void *arg, const struct tool_result *r)
{
    struct qemu_probe *p = arg;
    struct qemu_host *h = p->host;

    h->tcg = each_answer(r, take_general, h) && r->status.code == 0;
    if (h->tcg)
        h->tcg_reason[0] = '\0';
    else
        why_not(r, h->tcg_reason, sizeof(h->tcg_reason));
    go(p, try_kvm);
}

static void begin(struct qemu_probe *p)
{
    struct qemu_host *h = p->host;
    const char *argv[] = {h->binary,         "-accel",   "tcg",  "-machine", "none",  "-S", "-nodefaults",
                          "-no-user-config", "-display", "none", "-qmp",     "stdio", NULL};

    if (!h->binary[0]) {
        snprintf(h->tcg_reason, sizeof(h->tcg_reason), "QEMU is not installed");
        snprintf(h->kvm_reason, sizeof(h->kvm_reason), "QEMU is not installed");
        go(p, measure_tsc);
        return;
    }
    make_key(p);
    if (read_cache(p)) {
        go(p, measure_tsc);
        return;
    }
    start(p, argv, h->tcg_reason, sizeof(h->tcg_reason), general_done, try_kvm);
}

struct qemu_probe *qemu_probe_new(struct loop *loop, const char *binary, const char *data_dir, const char *helper_dir,
                                  struct qemu_host *host, void (*done)(void *arg), void *arg, struct error *err)
{
    struct qemu_probe *p = mem_zalloc(sizeof(*p));
    json_t *machines = json_array();

    if (!p || !machines || path_join(p->cache_path, sizeof(p->cache_path), data_dir, "qemu-probe.json", err) < 0) {
        json_decref(machines);
        mem_free(p);
        error_set(err, ERR_DAEMON_INTERNAL, "QEMU could not be looked for");
        return NULL;
    }
    memset(host, 0, sizeof(*host));
    host->machines = machines;
    snprintf(host->binary, sizeof(host->binary), "%s", binary);
    qemu_host_look(host, helper_dir);
    p->loop = loop;
    p->host = host;
    p->done = done;
    p->arg = arg;
    p->next.run = run_step;
    go(p, begin);
    return p;
}

void qemu_probe_free(struct qemu_probe *p)
{
    if (!p)
        return;
    loop_revoke(p->loop, &p->next);
    tool_free(p->tool);
    p->tool = NULL;
    p->freed = true;
    if (!p->in_work)
        mem_free(p);
}
