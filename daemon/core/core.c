/* core.c - the core's life: made, pruned, shut down.  The requests that change VMs are in request.c and patch.c. */
#include "core/core.h"

#include <string.h>

#include "base/clock.h"
#include "base/mem.h"
#include "core/internal.h"
#include "core/ops/ops.h"

enum { PRUNE_EVERY_MS = 600000 };

void core_config_defaults(struct core_config *config)
{
    *config = (struct core_config){
        .disk_reserve_mb = 64,
        .events_keep = 100000,
        .operations_keep_s = 86400,
        .tombstones_keep_s = 7 * 86400,
        .max_vms = 20000,
        .max_operations = 10000,
        .restart_delay_ms = 1000,
        .restart_max = 5,
        .restart_window_s = 600,
        .memory_reserve_mb = 64,
        .max_operations_per_vm = 8,
        .reconcile_interval_s = 30,
        .reap_grace_s = 60,
        .max_image_bytes = 16384ULL << 30,
        .fetch_stall_s = 30,
        .fetch_timeout_s = 21600,
        .max_execs = 1000,
        .max_execs_per_vm = 128,
    };
}

static void lazy_over(void *arg)
{
    change_flush_lazy(arg);
}

void core_prune(struct core *core)
{
    int64_t now = clock_wall_ms(), keys = now - core->config.operations_keep_s * 1000;
    struct store_tx *tx = store_tx_new(core->store);

    operations_prune(core, keys);
    keys_prune(core, keys);
    tombstones_prune(core, now - core->config.tombstones_keep_s * 1000);
    images_prune_parts(core);
    store_prune(tx, keys, keys, now - core->config.tombstones_keep_s * 1000, core->config.events_keep);
    if (tx != NULL) {
        store_tx_use_reserve(tx);
        store_commit(core->store, tx, NULL, NULL);
    }
    /* What is on its way to the store is written before the cut. */
    int64_t oldest = core->event_next - core->config.events_keep;
    if (oldest > core->event_oldest)
        core->event_oldest = oldest;
}

static void prune_due(void *arg)
{
    core_prune(arg);
}

struct core *core_new(struct loop *loop, struct store *store, struct backend *const *backends,
                      const struct core_config *config, struct error *err)
{
    struct core *core = mem_zalloc(sizeof(*core));
    size_t n = 0;

    while (backends[n] != NULL)
        n++;
    if (core != NULL) {
        *core = (struct core){.loop = loop, .store = store, .backends = backends, .config = *config, .event_next = 1};
        core->backend_names = mem_zalloc((n + 1) * sizeof(char *));
        core->lazy_timer = timer_new(loop, lazy_over, core);
        core->prune_timer = timer_new(loop, prune_due, core);
        core->policy_timer = policy_timer_new(core);
        core->owed_timer = timer_new(loop, owed_due, core);
    }
    if (core == NULL || core->backend_names == NULL || core->lazy_timer == NULL || core->prune_timer == NULL ||
        core->policy_timer == NULL || core->owed_timer == NULL || disk_begin(core) < 0 || leaks_new(core) < 0) {
        core_free(core);
        error_set(err, ERR_DAEMON_OVERLOADED, "out of memory");
        return NULL;
    }
    for (size_t i = 0; i < n; i++)
        core->backend_names[i] = backends[i]->name;
    timer_unref(core->prune_timer);
    timer_start(core->prune_timer, PRUNE_EVERY_MS, PRUNE_EVERY_MS);
    return core;
}

void core_free(struct core *core)
{
    if (core == NULL)
        return;
    loop_revoke(core->loop, &core->idle_task);
    boot_drop(core);
    leaks_free(core);
    vm_ops_park(core);
    vm_ops_drop(core);
    image_ops_drop(core);
    disk_end(core);
    recoveries_drop(core);
    change_drop(core->lazy);
    owed_drop(core);
    events_free(core);
    operations_free(core);
    keys_free(core);
    alloc_free(core);
    registry_free(core);
    images_free(core);
    timer_free(core->lazy_timer);
    timer_free(core->prune_timer);
    timer_free(core->policy_timer);
    timer_free(core->owed_timer);
    timer_free(core->stop_timer);
    mem_free(core->backend_names);
    mem_free(core);
}

void core_store_ready(struct core *core)
{
    store_dispatch(core->store);
}

struct loop *core_loop(struct core *core)
{
    return core->loop;
}

struct store *core_store(struct core *core)
{
    return core->store;
}

bool core_stopping(const struct core *core)
{
    return core->stopping;
}

struct backend *core_backend(struct core *core, const char *name)
{
    for (size_t i = 0; core->backends[i] != NULL; i++)
        if (strcmp(core->backends[i]->name, name) == 0)
            return core->backends[i];
    return NULL;
}

struct backend *const *core_backends(struct core *core)
{
    return core->backends;
}

const struct core_config *core_get_config(const struct core *core)
{
    return &core->config;
}

/* --- the end --- */

void core_check_idle(struct core *core)
{
    if (core->stopped == NULL || core->n_changes > 0 || core->n_running > 0)
        return;
    if (core->lazy != NULL) { /* it asks again when it is written */
        change_flush_lazy(core);
        return;
    }
    loop_defer(core->loop, &core->idle_task);
}

static void idle(struct loop_task *task)
{
    struct core *core = CONTAINER_OF(task, struct core, idle_task);
    void (*stopped)(void *) = core->stopped;

    if (stopped == NULL || core->n_changes > 0)
        return;
    core->stopped = NULL;
    stopped(core->stopped_arg);
}

/* Operations that have not ended by now are given up where they stand: their rows say what to do at the next start. */
static void park_all(void *arg)
{
    struct core *core = arg;

    vm_ops_park(core);
    core_check_idle(core);
}

void core_abandon(struct core *core)
{
    core->stopping = true;
    core->stopped = NULL;
    core->recovered = NULL;
    vm_ops_park(core);
    change_flush_lazy(core);
}

void core_shutdown(struct core *core, int64_t grace_ms, void (*done)(void *arg), void *arg)
{
    core->stopping = true;
    core->stopped = done;
    core->stopped_arg = arg;
    core->idle_task.run = idle;
    change_flush_lazy(core);
    if (core->n_running > 0) {
        core->stop_timer = timer_new(core->loop, park_all, core);
        if (core->stop_timer != NULL)
            timer_start(core->stop_timer, grace_ms, 0);
        else
            park_all(core);
    }
    core_check_idle(core);
}
