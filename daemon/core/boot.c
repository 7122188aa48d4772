/* boot.c - autostart: after a boot of the host its VMs are started, in order of their names, one after another.
 *
 *   boot_id of the data directory is another ─► every VM settled ─► `autostart` and boot_id written ─► the row begins
 *   one VM's start has ended, well or not ─► the next ─► … ─► `autostart` removed
 *
 * The file `autostart` holds when the row began; a VM's row in the store when its turn was (written with the intent of its
 * start).  A daemon killed in the middle goes on where it was, and starts no VM again that somebody stopped meanwhile.
 * A restart that waited when the host went down is forgotten: what starts with the host is autostart's affair alone.
 * Failure modes: a start fails or cannot begin: told by an event, and the row goes on. */
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/fd.h"
#include "base/log.h"
#include "base/mem.h"
#include "base/str.h"
#include "core/internal.h"
#include "core/ops/ops.h"
#include "loop/work.h"

struct boot {
    int64_t began_at; /* wall ms */
    struct live_vm **row;
    size_t n, at;
    struct operation_watch *watch; /* on the start under way */
};

/* A file of one short line; "" when there is none. */
static void read_line(const struct core *core, const char *name, char out[40])
{
    CLEANUP_ERROR struct error err = ERROR_INIT;
    CLEANUP_FREE char *path = mem_printf("%s/%s", core->config.data_dir, name);
    CLEANUP_FREE char *text = NULL;
    size_t len;

    out[0] = '\0';
    if (path != NULL && file_read(path, 64, &text, &len, &err) == 0)
        snprintf(out, 40, "%.*s", (int)strcspn(text, "\n"), text);
}

static bool write_line(const struct core *core, const char *name, const char *text)
{
    CLEANUP_ERROR struct error err = ERROR_INIT;
    CLEANUP_FREE char *path = mem_printf("%s/%s", core->config.data_dir, name);

    if (path != NULL && file_write(path, text, strlen(text), 0600, &err) == 0)
        return true;
    LOG_WARN("this boot of the host not remembered", "file", name, "error", err.message);
    return false;
}

/* --- what is known before anything is recovered --- */

void boot_detect(struct core *core)
{
    char now[40] = "";

    if (core->config.data_dir == NULL)
        return;
    proc_boot_id(now);
    read_line(core, "boot_id", core->last_boot);
    core->booted = core->last_boot[0] != '\0' && strcmp(core->last_boot, now) != 0;
}

bool boot_forget_restarts(struct core *core, struct change *ch)
{
    bool any = false;

    for (size_t i = 0; core->booted && i < core->n_vms; i++) {
        struct live_vm *vm = core->by_order[i];
        if (vm->vm.policy.restart_at == 0 && vm->vm.policy.restarts == 0)
            continue;
        if (vm->vm.policy.restart_at != 0)
            change_event(ch, "vm.restart_cancelled", vm, NULL, NULL, json_pack("{s:s}", "by", "boot of the host"));
        vm->vm.policy = (struct vm_policy){.given_up = vm->vm.policy.given_up};
        change_vm(ch, vm, false);
        any = true;
    }
    return any;
}

/* --- the row --- */

static int remove_file(void *data, struct error *err)
{
    return unlink(data) == 0 ? 0 : error_set(err, ERR_IO, "not removed"); /* then the row is found to be done again */
}

static void file_removed(void *arg, void *data, int rc, struct error *err)
{
    (void)arg;
    (void)rc;
    (void)err;
    mem_free(data);
}

static void boot_free(struct core *core)
{
    struct boot *boot = core->boot;

    core->boot = NULL;
    if (boot == NULL)
        return;
    operation_unwatch(boot->watch);
    for (size_t i = boot->at; i < boot->n; i++)
        core_vm_unref(boot->row[i]);
    mem_free(boot->row);
    mem_free(boot);
}

void boot_drop(struct core *core)
{
    boot_free(core);
}

static void row_done(struct core *core)
{
    CLEANUP_ERROR struct error err = ERROR_INIT;
    char *path = mem_printf("%s/autostart", core->config.data_dir);

    if (core->boot->n > 0)
        LOG_INFO("autostart is done", "data_dir", core->config.data_dir);
    boot_free(core);
    if (path != NULL && work_run(core->loop, remove_file, file_removed, path, NULL, &err) == 0)
        return;
    mem_free(path);
}

static bool still_waits(const struct boot *boot, const struct live_vm *vm)
{
    return !vm->gone && vm->vm.spec.autostart && vm->vm.created_at < boot->began_at &&
           vm->vm.policy.autostart_at < boot->began_at;
}

bool boot_start_waits(const struct live_vm *vm)
{
    const struct boot *boot = vm->core->boot;

    if (boot == NULL || !still_waits(boot, vm))
        return false;
    for (size_t i = boot->at; i < boot->n; i++)
        if (boot->row[i] == vm)
            return true;
    return false;
}

static void row_next(void *arg, struct error *ignored);

static bool start(struct core *core, struct live_vm *vm)
{
    CLEANUP_ERROR struct error err = ERROR_INIT;

    vm->vm.policy.autostart_at = clock_wall_ms(); /* written with the intent */
    struct operation *op = policy_op(vm, &vm_start_plan, false, "autostart", &err);
    if (op != NULL) {
        core->boot->watch = operation_watch(op, true, row_next, core);
        return core->boot->watch != NULL;
    }
    struct change *ch = change_new(core);
    change_event(ch, "vm.autostart_failed", vm, NULL, NULL,
                 json_pack("{s:s,s:s}", "code", error_info(err.code)->code, "detail", err.message));
    change_commit(ch, NULL, NULL);
    policy_refused(vm, &err);
    vm_waits_check(vm);
    return false;
}

static void row_next(void *arg, struct error *ignored)
{
    struct core *core = arg;
    struct boot *boot = core->boot;
    bool waits = false;

    (void)ignored;
    boot->watch = NULL;
    while (!waits && !core->stopping && boot->at < boot->n) {
        struct live_vm *vm = boot->row[boot->at++];
        if (still_waits(boot, vm) && policy_startable(vm))
            waits = start(core, vm);
        core_vm_unref(vm);
    }
    if (!waits && !core->stopping)
        row_done(core);
}

static int64_t row_began(const struct core *core)
{
    char text[40], now[40] = "";
    int64_t at = 0;

    proc_boot_id(now);
    if (strcmp(core->last_boot, now) == 0) { /* no new boot; a row that was not finished? */
        read_line(core, "autostart", text);
        return str_to_i64(text, 1, INT64_MAX, &at) ? at : 0;
    }
    at = clock_wall_ms();
    snprintf(text, sizeof(text), "%lld", (long long)at);
    if (write_line(core, "autostart", text)) /* else this boot is found anew at the next start */
        write_line(core, "boot_id", now);
    return at;
}

void boot_begin(struct core *core)
{
    int64_t began_at = core->config.data_dir != NULL ? row_began(core) : 0;
    struct boot *boot = began_at > 0 ? mem_zalloc(sizeof(*boot)) : NULL;

    if (boot == NULL)
        return;
    boot->began_at = began_at;
    boot->row = mem_zalloc((core->n_vms + 1) * sizeof(struct live_vm *));
    core->boot = boot;
    for (size_t i = 0; boot->row != NULL && i < core->n_vms; i++)
        if (still_waits(boot, core->by_order[i]))
            boot->row[boot->n++] = core_vm_ref(core->by_order[i]);
    row_next(core, NULL);
}
