/* leaks_reap.c - removing leftovers, when asked to.
 *
 *     a survey made now ─► each leftover: adoptable? kept · too young? · else chosen ─► backends remove (pool), rows dropped
 *                                                                              └─► answer, and a new survey
 *
 * What stands here is chosen from a survey that began after the request; the backend looks again at each before it acts, and no
 * survey and no second removal is made meanwhile.
 * Failure modes: a leftover that cannot be removed is answered as failed, with its problem, and stays in the list. */
#include "core/leaks.h"

#include <string.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/mem.h"
#include "base/problem.h"

/* One leftover of the answer. */
struct reap_item {
    char *text; /* its members */
    enum leak_kind kind;
    const char *result;
    char *detail;
    char *problem;               /* a document, or NULL */
    struct backend_trace *trace; /* of one that is chosen; a port has none */
    bool chosen;
    struct uuid vm_id;
};

struct reap {
    struct core *core; /* NULL: freed meanwhile */
    struct leaks_wait *wait;
    bool dry_run;
    int64_t older_than_s;
    void (*done)(void *arg, char *answer, struct error *err);
    void *arg;
    struct reap_item *items;
    size_t n, n_chosen;
    size_t next_backend;
    struct backend_trace *acting; /* brought back */
    unsigned n_reaped;
    bool at_store;
};

static void reap_free(struct reap *r)
{
    for (size_t i = 0; i < r->n; i++) {
        mem_free(r->items[i].text);
        mem_free(r->items[i].detail);
        mem_free(r->items[i].problem);
    }
    backend_trace_free(r->acting);
    mem_free(r->items);
    mem_free(r);
}

void reap_drop(struct core *core, struct error *why)
{
    struct reap *r = core->leaks->acting;

    core->leaks->acting = NULL;
    if (r == NULL)
        return;
    r->done(r->arg, NULL, why);
    r->core = NULL; /* the backend still brings back what it has */
    if (r->at_store)
        reap_free(r); /* which is closed, and tells nothing any more */
}

static void set_result(struct reap_item *item, const char *result, const char *detail)
{
    item->result = result;
    mem_free(item->detail);
    item->detail = mem_strdup(detail);
}

static void set_problem(struct reap_item *item, const struct error *err)
{
    CLEANUP_BUF struct buf text = BUF_INIT(65536);

    if (error_problem(err, "/v1/host/leaks/reap", "", &text) == 0)
        item->problem = buf_take(&text, NULL);
}

static char *render(const struct reap *r)
{
    CLEANUP_BUF struct buf out = BUF_INIT(64 << 20);

    buf_printf(&out, "{\"dry_run\":%s,\"items\":[", r->dry_run ? "true" : "false");
    for (size_t i = 0; i < r->n; i++) {
        const struct reap_item *item = &r->items[i];
        buf_printf(&out, "%s{", i > 0 ? "," : "");
        buf_str(&out, item->text);
        buf_printf(&out, ",\"result\":\"%s\",\"detail\":", item->result);
        buf_json_str(&out, item->detail != NULL ? item->detail : "");
        buf_str(&out, ",\"error\":");
        buf_str(&out, item->problem != NULL ? item->problem : "null");
        buf_char(&out, '}');
    }
    buf_printf(&out, "],\"reaped\":%u}", r->n_reaped);
    return buf_take(&out, NULL);
}

static void reap_end(struct reap *r, struct error *err)
{
    char *answer = error_is_set(err) ? NULL : render(r);

    if (answer == NULL)
        error_set(err, ERR_DAEMON_OVERLOADED, "out of memory");
    r->done(r->arg, answer, err);
    reap_free(r);
}

/* --- acting --- */

static void reap_over(struct reap *r)
{
    struct core *core = r->core;
    CLEANUP_ERROR struct error none = ERROR_INIT;

    core->leaks->acting = NULL;
    reap_end(r, &none);
    leaks_changed(core);
}

static void take_result(struct reap *r, struct reap_item *item, bool removed, struct error *err)
{
    const char *what = item->trace != NULL ? item->trace->what : "port";

    if (removed) {
        LOG_INFO("leftover removed", "what", what);
        set_result(item, "reaped", "removed");
        r->n_reaped++;
    } else if (err->code == ERR_VM_INVALID_STATE) { /* a process has it */
        set_result(item, "kept", err->message);
    } else {
        LOG_WARN("leftover not removed", "what", what, "error", err->message);
        set_result(item, "failed", err->message);
        set_problem(item, err);
    }
}

static void ports_dropped(void *arg, struct error *err)
{
    struct reap *r = arg;

    for (size_t i = 0; i < r->n; i++)
        if (r->items[i].chosen && r->items[i].kind == LEAK_PORT)
            take_result(r, &r->items[i], !error_is_set(err), err);
    reap_over(r);
}

static void drop_ports(struct reap *r)
{
    struct store_tx *tx = store_tx_new(r->core->store);
    char id[UUID_TEXT_MAX];

    for (size_t i = 0; i < r->n; i++)
        if (r->items[i].chosen && r->items[i].kind == LEAK_PORT)
            store_drop_ports(tx, uuid_text(&r->items[i].vm_id, id));
    if (tx != NULL) {
        store_tx_use_reserve(tx);
        r->at_store = true;
        store_commit(r->core->store, tx, ports_dropped, r);
        return;
    }
    CLEANUP_ERROR struct error err = ERROR_INIT;
    error_set(&err, ERR_DAEMON_OVERLOADED, "out of memory");
    ports_dropped(r, &err);
}

static void act_next(struct reap *r);

static void backend_reaped(void *arg, struct backend_trace *list, struct error *err)
{
    struct reap *r = arg;
    const struct backend *be = list != NULL ? list->be : NULL;

    (void)err;
    while (list != NULL) { /* kept to the end, for the items point at them */
        struct backend_trace *next = list->next;
        list->next = r->acting;
        r->acting = list;
        list = next;
    }
    if (r->core == NULL) {
        reap_free(r);
        return;
    }
    for (size_t i = 0; i < r->n; i++) {
        struct backend_trace *t = r->items[i].trace;
        if (t != NULL && t->be == be)
            take_result(r, &r->items[i], t->removed, &t->failure);
    }
    act_next(r);
}

/* Those of one backend that are chosen, out of the list's traces; `removed` marks them meanwhile. */
static struct backend_trace *take_traces(struct reap *r, const struct backend *be)
{
    struct backend_trace *mine = NULL;

    for (size_t i = 0; i < r->n; i++)
        if (r->items[i].trace != NULL)
            r->items[i].trace->removed = r->items[i].trace->be == be;
    for (struct backend_trace **p = &r->core->leaks->traces, *t; (t = *p) != NULL;) {
        if (!t->removed) {
            p = &t->next;
            continue;
        }
        *p = t->next;
        t->removed = false;
        t->next = mine;
        mine = t;
    }
    return mine;
}

static void act_next(struct reap *r)
{
    struct core *core = r->core;

    while (core->backends[r->next_backend] != NULL) {
        struct backend *be = core->backends[r->next_backend++];
        struct backend_trace *list = be->reap != NULL ? take_traces(r, be) : NULL;
        CLEANUP_ERROR struct error err = ERROR_INIT;

        if (list == NULL)
            continue;
        if (be->reap(be, list, backend_reaped, r, &err) == 0)
            return;
        for (struct backend_trace *t = list; t != NULL; t = t->next)
            error_copy(&t->failure, &err);
        backend_reaped(r, list, &err);
        return;
    }
    for (size_t i = 0; i < r->n; i++)
        if (r->items[i].chosen && r->items[i].kind == LEAK_PORT) {
            drop_ports(r);
            return;
        }
    reap_over(r);
}

/* --- choosing --- */

/* A directory whose process stays is not even tried. */
static bool process_stays(const struct leak_list *list, const struct leak *leak, int64_t before)
{
    for (size_t i = 0; leak->has_owner && leak->kind != LEAK_PROCESS && i < list->n; i++) {
        const struct leak *o = list->items[i];
        if (o->kind != LEAK_PROCESS)
            break; /* they come first */
        if (o->has_owner && uuid_equal(&o->vm_id, &leak->vm_id) && o->since > before)
            return true;
    }
    return false;
}

static void judge(struct reap *r, const struct leak_list *list, const struct leak *leak, struct reap_item *item)
{
    int64_t before = clock_wall_ms() - r->older_than_s * 1000;

    if (leak->adoptable) {
        CLEANUP_FREE char *detail = mem_printf("it can be taken back: `vmctl adopt %s`, then destroy it if it is not "
                                               "wanted",
                                               leak->vm_name);
        set_result(item, "kept", detail != NULL ? detail : "");
    } else if (leak->since > before) {
        set_result(item, "too_young", "it may still be somebody's");
    } else if (process_stays(list, leak, before)) {
        set_result(item, "kept", "the process that has it is too young");
    } else if (r->dry_run) {
        set_result(item, "would_reap", "");
    } else {
        set_result(item, "failed", "");
        item->chosen = true;
        item->trace = leak->trace;
        r->n_chosen++;
    }
}

static int choose(struct reap *r, const struct leak_list *list)
{
    r->items = mem_zalloc((list->n + 1) * sizeof(*r->items));
    if (r->items == NULL)
        return -1;
    for (size_t i = 0; i < list->n; i++) {
        CLEANUP_BUF struct buf text = BUF_INIT(65536);
        const struct leak *leak = list->items[i];
        struct reap_item *item = &r->items[r->n];

        if (leak->hidden)
            continue;
        leak_put(&text, leak);
        item->kind = leak->kind;
        item->vm_id = leak->vm_id;
        item->text = buf_take(&text, NULL);
        if (item->text == NULL)
            return -1;
        r->n++;
        judge(r, list, leak, item);
    }
    return 0;
}

static void reap_fresh(void *arg, struct error *err)
{
    struct reap *r = arg;
    struct core *core = r->core;
    struct leak_list *list = &core->leaks->list;

    r->wait = NULL;
    if (!error_is_set(err) && choose(r, list) < 0)
        error_set(err, ERR_DAEMON_OVERLOADED, "out of memory");
    if (error_is_set(err) || r->n_chosen == 0) {
        reap_end(r, err);
        return;
    }
    for (size_t i = 0; i < list->n; i++)
        list->items[i]->trace = NULL; /* they are on their way */
    core->leaks->acting = r;
    act_next(r);
}

int core_leaks_reap(struct core *core, bool dry_run, int64_t older_than_s,
                    void (*done)(void *arg, char *answer, struct error *err), void *arg, struct error *err)
{
    struct reap *r = mem_zalloc(sizeof(*r));

    if (core->stopping) {
        mem_free(r);
        return error_set(err, ERR_DAEMON_SHUTTING_DOWN, "vmmd is stopping and takes no changes");
    }
    if (r != NULL) {
        *r = (struct reap){.core = core,
                           .dry_run = dry_run,
                           .older_than_s = older_than_s >= 0 ? older_than_s : core->config.reap_grace_s,
                           .done = done,
                           .arg = arg};
        r->wait = leaks_fresh(core, 0, reap_fresh, r, err);
    }
    if (r != NULL && r->wait != NULL)
        return 0;
    mem_free(r);
    return error_set(err, ERR_DAEMON_OVERLOADED, "out of memory");
}
