/* leaks.c - the reconciler: what the host holds is compared with the rows, at the start and every so often.
 *
 *     timer, or somebody asks ─► backends look at the host (pool) ─► ports of the store ─► leaks_judge.c ─► list, events, log
 *
 * One survey at a time; who asks while one is under way gets the next one, unless it is new enough.  Nothing is removed here:
 * that is asked for (leaks_reap.c).  A VM of the rows that has no manifest (it is of an older vmmd, or the disk was full)
 * gets one.
 * Failure modes: a survey that cannot be made leaves the list as it was; who waits for it is told. */
#include "core/leaks.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/mem.h"

enum { TOLD_MAX = 200, HEALED_MAX = 64, PORTS_MAX = 10000, FRESH_US = 1000000, QUICK_US = 200000 };

static const char *const kind_texts[] = {
    [LEAK_PROCESS] = "process",         [LEAK_TAP] = "tap",           [LEAK_SOCKET] = "socket", [LEAK_FILE] = "file",
    [LEAK_RUNTIME_DIR] = "runtime_dir", [LEAK_DATA_DIR] = "data_dir", [LEAK_PORT] = "port",
};

/* --- memory --- */

static void leak_free(struct leak *leak)
{
    mem_free(leak->what);
    mem_free(leak);
}

void leak_list_done(struct leak_list *list)
{
    for (size_t i = 0; i < list->n; i++)
        leak_free(list->items[i]);
    mem_free(list->items);
    *list = (struct leak_list){0};
}

static void survey_free(struct survey *s)
{
    store_read_cancel(s->read);
    for (struct orphan_port *p = s->ports, *next; p != NULL; p = next) {
        next = p->next;
        mem_free(p);
    }
    backend_trace_free(s->traces);
    mem_free(s->known);
    mem_free(s->ids);
    error_done(&s->failure);
    mem_free(s);
}

/* --- the new list in place of the old one --- */

static int compare_by_id(const void *a, const void *b)
{
    return strcmp((*(struct leak *const *)a)->id, (*(struct leak *const *)b)->id);
}

static json_t *leak_data(const struct leak *leak)
{
    char id[UUID_TEXT_MAX];

    return json_pack("{s:s,s:s,s:s,s:b,s:o,s:s}", "id", leak->id, "kind", kind_texts[leak->kind], "what", leak->what,
                     "adoptable", leak->adoptable, "vm_id",
                     leak->has_owner ? json_string(uuid_text(&leak->vm_id, id)) : json_null(), "reason", leak->reason);
}

static void tell_found(struct change *ch, struct leak *leak)
{
    char id[UUID_TEXT_MAX];

    leak->told = true;
    LOG_WARN("leftover found", "leak", leak->id, "kind", kind_texts[leak->kind], "what", leak->what, "vm",
             leak->vm_name[0] != '\0' ? leak->vm_name
             : leak->has_owner        ? uuid_text(&leak->vm_id, id)
                                      : NULL,
             "reason", leak->reason, "adoptable", leak->adoptable ? "yes" : "no");
    change_event(ch, "host.leak_found", NULL, NULL, NULL, leak_data(leak));
}

static void tell_gone(struct change *ch, const struct leak *leak)
{
    LOG_INFO("leftover gone", "leak", leak->id, "kind", kind_texts[leak->kind], "what", leak->what);
    change_event(ch, "host.leak_gone", NULL, NULL, NULL, leak_data(leak));
}

/* What is hidden and was not in the list before is no leftover so far: somebody is at work on it. */
static void drop_new_hidden(struct leak_list *list, struct leak **old, size_t n_old)
{
    size_t kept = 0;

    for (size_t i = 0; i < list->n; i++) {
        struct leak *leak = list->items[i], **before;

        before = n_old > 0 ? bsearch(&leak, old, n_old, sizeof(struct leak *), compare_by_id) : NULL;
        if (before != NULL) {
            leak->told = (*before)->told;
            if ((*before)->since < leak->since)
                leak->since = (*before)->since;
        } else if (leak->hidden) {
            leak_free(leak);
            continue;
        }
        list->items[kept++] = leak;
    }
    list->n = kept;
}

static void tell_changes(struct core *core, struct leak_list *list, struct leak **old, size_t n_old)
{
    struct leak **now = mem_alloc((list->n + 1) * sizeof(struct leak *));
    struct change *ch = NULL;
    unsigned told = 0;

    if (now == NULL || core->stopping) {
        mem_free(now);
        return;
    }
    for (size_t i = 0; i < list->n; i++) {
        now[i] = list->items[i];
        if (now[i]->told || now[i]->hidden || told == TOLD_MAX)
            continue;
        ch = ch != NULL ? ch : change_new(core);
        tell_found(ch, now[i]);
        told++;
    }
    qsort(now, list->n, sizeof(struct leak *), compare_by_id);
    for (size_t i = 0; i < n_old; i++)
        if (old[i]->told && bsearch(&old[i], now, list->n, sizeof(struct leak *), compare_by_id) == NULL) {
            ch = ch != NULL ? ch : change_new(core);
            tell_gone(ch, old[i]);
        }
    if (ch != NULL)
        change_commit(ch, NULL, NULL);
    mem_free(now);
}

static void heal_manifests(struct core *core, const struct backend_trace *traces)
{
    char id[UUID_TEXT_MAX];
    unsigned n = 0;

    for (const struct backend_trace *t = traces; t != NULL && n < HEALED_MAX; t = t->next) {
        struct live_vm *vm = t->lacks_manifest ? registry_by_id(core, uuid_text(&t->vm_id, id)) : NULL;
        if (vm == NULL || leaks_vm_busy(vm) || vm->be->manifest == NULL)
            continue;
        vm->be->manifest(vm->be, &vm->vm);
        n++;
    }
}

static int take_over(struct core *core, struct survey *s)
{
    struct leaks *leaks = core->leaks;
    struct leak_list list = {0}, before = leaks->list;

    if (leaks_judge(s, &list) < 0) {
        leak_list_done(&list);
        return error_set(&s->failure, ERR_DAEMON_OVERLOADED, "out of memory for a look at the host");
    }
    if (before.n > 0)
        qsort(before.items, before.n, sizeof(struct leak *), compare_by_id);
    drop_new_hidden(&list, before.items, before.n);
    tell_changes(core, &list, before.items, before.n);
    leaks->list = list;
    leak_list_done(&before);
    backend_trace_free(leaks->traces);
    leaks->traces = TAKE_PTR(s->traces);
    leaks->begun = s->begun;
    leaks->took_us = clock_mono_us() - s->begun;
    leaks->surveyed_at = s->at;
    heal_manifests(core, leaks->traces);
    return 0;
}

/* --- a survey --- */

static void survey_begin(struct core *core);

/* Those whom this survey serves; one that begins to remove ends the round. */
static void serve_waits(struct core *core, int64_t begun, struct error *err)
{
    struct leaks *leaks = core->leaks;

    for (bool served = true; served && leaks->acting == NULL && leaks->pinned == 0;) {
        struct leaks_wait **p = &leaks->waits, *w;

        served = false;
        while (*p != NULL && (*p)->need > begun)
            p = &(*p)->next;
        if ((w = *p) == NULL)
            break;
        *p = w->next;
        CLEANUP_ERROR struct error own = ERROR_INIT;
        error_copy(&own, err);
        w->done(w->arg, &own);
        mem_free(w);
        served = true;
        if (leaks->begun == 0 && !error_is_set(err)) /* what was done made the list out of date */
            break;
    }
    if (leaks->waits != NULL)
        survey_begin(core);
}

static void survey_end(struct survey *s)
{
    struct core *core = s->core;
    CLEANUP_ERROR struct error err = ERROR_INIT;
    int64_t begun = s->begun;

    core->leaks->survey = NULL;
    if (!error_is_set(&s->failure))
        take_over(core, s);
    if (error_is_set(&s->failure)) {
        error_move(&err, &s->failure);
        LOG_WARN("the host could not be looked at", "error", err.message, "cause",
                 err.n_causes > 0 ? err.causes[0] : NULL);
    }
    survey_free(s);
    serve_waits(core, begun, &err);
}

static void port_row(void *arg, const struct store_port_row *row)
{
    struct survey *s = arg;
    struct orphan_port *p = mem_zalloc(sizeof(*p));

    if (p == NULL || !uuid_parse(row->vm_id, &p->vm_id)) {
        mem_free(p);
        return;
    }
    snprintf(p->text, sizeof(p->text), "%s %.45s:%u", row->udp ? "udp" : "tcp", row->host_ip, row->port);
    snprintf(p->vm_name, sizeof(p->vm_name), "%s", row->vm_name != NULL ? row->vm_name : "");
    p->next = s->ports;
    s->ports = p;
}

static void ports_read(void *arg, struct error *err)
{
    struct survey *s = arg;

    s->read = NULL;
    if (error_is_set(err) && !error_is_set(&s->failure))
        error_move(&s->failure, err);
    survey_end(s);
}

static void survey_next(struct survey *s);

static void backend_surveyed(void *arg, struct backend_trace *list, struct error *err)
{
    struct survey *s = arg;
    struct backend_trace **end = &list;

    if (s->core == NULL) {
        backend_trace_free(list);
        survey_free(s);
        return;
    }
    for (struct backend_trace *t = list; t != NULL; t = t->next) {
        t->be = s->core->backends[s->next_backend - 1];
        end = &t->next;
    }
    *end = s->traces;
    s->traces = list;
    if (error_is_set(err) && !error_is_set(&s->failure))
        error_move(&s->failure, err);
    survey_next(s);
}

static void survey_next(struct survey *s)
{
    struct core *core = s->core;

    while (core->backends[s->next_backend] != NULL) {
        struct backend *be = core->backends[s->next_backend++];
        if (be->survey == NULL)
            continue;
        if (be->survey(be, s->ids, s->n_known, backend_surveyed, s, &s->failure) == 0)
            return;
    }
    s->read = store_read_orphan_ports(core->store, PORTS_MAX, port_row, ports_read, s);
    if (s->read == NULL) {
        error_set(&s->failure, ERR_DAEMON_OVERLOADED, "out of memory for a look at the host");
        survey_end(s);
    }
}

static int compare_known(const void *a, const void *b)
{
    return memcmp(&((const struct known_vm *)a)->id, &((const struct known_vm *)b)->id, sizeof(struct uuid));
}

static struct survey *survey_new(struct core *core)
{
    struct survey *s = mem_zalloc(sizeof(*s));

    if (s == NULL)
        return NULL;
    s->core = core;
    s->begun = clock_mono_us();
    if (s->begun <= core->leaks->last_begun)
        s->begun = core->leaks->last_begun + 1;
    core->leaks->last_begun = s->begun;
    s->at = clock_wall_ms();
    s->n_known = core->n_vms;
    s->known = mem_zalloc((core->n_vms + 1) * sizeof(*s->known));
    s->ids = mem_zalloc((core->n_vms + 1) * sizeof(*s->ids));
    if (s->known == NULL || s->ids == NULL) {
        survey_free(s);
        return NULL;
    }
    for (size_t i = 0; i < core->n_vms; i++) {
        const struct live_vm *vm = core->by_order[i];
        s->known[i] = (struct known_vm){vm->vm.id, vm->vm.revision, leaks_vm_busy(vm)};
    }
    if (s->n_known > 0)
        qsort(s->known, s->n_known, sizeof(*s->known), compare_known);
    for (size_t i = 0; i < s->n_known; i++)
        s->ids[i] = s->known[i].id;
    return s;
}

static void refuse_waits(struct leaks *leaks, const struct error *err)
{
    while (leaks->waits != NULL) {
        struct leaks_wait *w = leaks->waits;
        CLEANUP_ERROR struct error own = ERROR_INIT;
        leaks->waits = w->next;
        error_copy(&own, err);
        w->done(w->arg, &own);
        mem_free(w);
    }
}

static void survey_begin(struct core *core)
{
    struct leaks *leaks = core->leaks;
    CLEANUP_ERROR struct error err = ERROR_INIT;

    if (leaks->survey != NULL || leaks->acting != NULL || leaks->pinned > 0)
        return;
    leaks->survey = survey_new(core);
    if (leaks->survey != NULL) {
        survey_next(leaks->survey);
        return;
    }
    error_set(&err, ERR_DAEMON_OVERLOADED, "out of memory for a look at the host");
    refuse_waits(leaks, &err);
}

/* --- who waits for one --- */

static void task_run(struct loop_task *task)
{
    struct leaks *leaks = CONTAINER_OF(task, struct leaks, task);
    CLEANUP_ERROR struct error none = ERROR_INIT;

    if (leaks->waits == NULL || leaks->acting != NULL || leaks->pinned > 0)
        return;
    struct core *core = leaks->waits->core;
    if (leaks->begun > 0)
        serve_waits(core, leaks->begun, &none);
    else
        survey_begin(core);
}

struct leaks_wait *leaks_fresh(struct core *core, int64_t need, void (*done)(void *arg, struct error *err), void *arg,
                               struct error *err)
{
    struct leaks_wait *w = mem_zalloc(sizeof(*w));

    if (w == NULL) {
        error_set(err, ERR_DAEMON_OVERLOADED, "out of memory");
        return NULL;
    }
    if (need == 0)
        need = core->leaks->last_begun + 1;
    *w = (struct leaks_wait){.next = core->leaks->waits, .core = core, .need = need, .done = done, .arg = arg};
    core->leaks->waits = w;
    loop_defer(core->loop, &core->leaks->task);
    return w;
}

void leaks_unwait(struct leaks_wait *w)
{
    struct leaks_wait **p = &w->core->leaks->waits;

    while (*p != w)
        p = &(*p)->next;
    *p = w->next;
    mem_free(w);
}

void leaks_changed(struct core *core)
{
    core->leaks->begun = 0;
    if (!core->stopping)
        survey_begin(core);
}

/* --- reading --- */

static void put_owner(struct buf *out, const struct leak *leak)
{
    char id[UUID_TEXT_MAX];

    if (!leak->has_owner) {
        buf_str(out, "null");
        return;
    }
    buf_printf(out, "{\"vm_id\":\"%s\",\"vm_name\":", uuid_text(&leak->vm_id, id));
    if (leak->vm_name[0] != '\0')
        buf_json_str(out, leak->vm_name);
    else
        buf_str(out, "null");
    buf_char(out, '}');
}

static void put_number(struct buf *out, const char *name, bool known, int64_t number)
{
    if (known)
        buf_printf(out, ",\"%s\":%lld", name, (long long)number);
    else
        buf_printf(out, ",\"%s\":null", name);
}

void leak_put(struct buf *out, const struct leak *leak)
{
    char since[CLOCK_TEXT_MAX];
    int64_t age = (clock_wall_ms() - leak->since) / 1000;

    buf_printf(out, "\"id\":\"%s\",\"kind\":\"%s\",\"what\":", leak->id, kind_texts[leak->kind]);
    buf_json_str(out, leak->what);
    put_number(out, "pid", leak->pid > 0, leak->pid);
    buf_str(out, ",\"owner\":");
    put_owner(out, leak);
    put_number(out, "age_s", true, age > 0 ? age : 0);
    buf_printf(out, ",\"since\":\"%s\"", clock_text(leak->since, since));
    put_number(out, "size_bytes", leak->size >= 0, leak->size);
    buf_printf(out, ",\"adoptable\":%s,\"reason\":", leak->adoptable ? "true" : "false");
    buf_json_str(out, leak->reason);
}

void core_leaks_put(struct core *core, struct buf *out)
{
    const struct leaks *leaks = core->leaks;
    char at[CLOCK_TEXT_MAX];
    bool first = true;

    buf_str(out, "{\"items\":[");
    for (size_t i = 0; i < leaks->list.n; i++) {
        if (leaks->list.items[i]->hidden)
            continue;
        buf_str(out, first ? "{" : ",{");
        leak_put(out, leaks->list.items[i]);
        buf_char(out, '}');
        first = false;
    }
    buf_printf(out, "],\"surveyed_at\":\"%s\",\"grace_s\":%lld}", clock_text(leaks->surveyed_at, at),
               (long long)core->config.reap_grace_s);
}

/* One of now; but where a survey takes long, one that is a moment old, so that readers cannot keep the pool busy. */
struct leaks_wait *core_leaks_read(struct core *core, void (*done)(void *arg, struct error *err), void *arg,
                                   struct error *err)
{
    int64_t took = core->leaks->took_us, old = took * 5 < FRESH_US ? took * 5 : FRESH_US;

    return leaks_fresh(core, took < QUICK_US ? 0 : clock_mono_us() - old, done, arg, err);
}

void core_leaks_cancel(struct leaks_wait *w)
{
    leaks_unwait(w);
}

void core_leaks_count(const struct core *core, void (*fn)(void *arg, const char *kind, unsigned n), void *arg)
{
    unsigned n[ARRAY_SIZE(kind_texts)] = {0};

    for (size_t i = 0; i < core->leaks->list.n; i++)
        n[core->leaks->list.items[i]->kind] += !core->leaks->list.items[i]->hidden;
    for (size_t i = 0; i < ARRAY_SIZE(kind_texts); i++)
        fn(arg, kind_texts[i], n[i]);
}

/* --- life --- */

static void timer_due(void *arg)
{
    struct core *core = arg;

    if (!core->stopping)
        survey_begin(core);
}

int leaks_new(struct core *core)
{
    struct leaks *leaks = mem_zalloc(sizeof(*leaks));

    core->leaks = leaks;
    if (leaks == NULL)
        return -1;
    leaks->task.run = task_run;
    leaks->timer = timer_new(core->loop, timer_due, core);
    if (leaks->timer == NULL)
        return -1;
    timer_unref(leaks->timer);
    return 0;
}

void leaks_begin(struct core *core)
{
    int64_t every = core->config.reconcile_interval_s * 1000;

    if (every == 0)
        return;
    timer_start(core->leaks->timer, every, every);
    survey_begin(core);
}

void leaks_free(struct core *core)
{
    struct leaks *leaks = core->leaks;
    CLEANUP_ERROR struct error why = ERROR_INIT;

    if (leaks == NULL)
        return;
    error_set(&why, ERR_DAEMON_SHUTTING_DOWN, "vmmd is stopping");
    refuse_waits(leaks, &why);
    adoptings_drop(core, &why);
    reap_drop(core, &why);
    loop_revoke(core->loop, &leaks->task);
    timer_free(leaks->timer);
    if (leaks->survey != NULL && leaks->survey->read != NULL) {
        leaks->survey->read = NULL; /* the store is closed, and has freed it */
        survey_free(leaks->survey);
    } else if (leaks->survey != NULL) {
        leaks->survey->core = NULL; /* the backend still brings its list */
    }
    leak_list_done(&leaks->list);
    backend_trace_free(leaks->traces);
    mem_free(leaks);
    core->leaks = NULL;
}
