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

struct reap {
    struct core *core; /* NULL: freed meanwhile */
    struct leaks_wait *wait;
    bool dry_run;
    int64_t older_than_s;
    void (*done)(void *arg, json_t *answer, struct error *err);
    void *arg;
    json_t *items;
    struct chosen {
        struct backend_trace *trace; /* NULL: a port */
        struct uuid vm_id;
        json_t *item; /* of items */
    } * chosen;
    size_t n_chosen;
    size_t next_backend;
    struct backend_trace *acting; /* brought back */
    unsigned n_reaped;
    bool at_store;
};

static void reap_free(struct reap *r)
{
    json_decref(r->items);
    backend_trace_free(r->acting);
    mem_free(r->chosen);
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

static json_t *problem_json(const struct error *err)
{
    CLEANUP_BUF struct buf text = BUF_INIT(65536);

    if (error_problem(err, "/v1/host/leaks/reap", "", &text) < 0)
        return json_null();
    json_t *doc = json_loadb(text.data, text.len, 0, NULL);
    return doc != NULL ? doc : json_null();
}

static void set_result(json_t *item, const char *result, const char *detail, json_t *problem)
{
    json_object_set_new(item, "result", json_string(result));
    json_object_set_new(item, "detail", json_string(detail));
    json_object_set_new(item, "error", problem != NULL ? problem : json_null());
}

static void reap_end(struct reap *r, struct error *err)
{
    json_t *answer = NULL;

    if (!error_is_set(err)) {
        answer = json_pack("{s:b,s:O,s:i}", "dry_run", r->dry_run, "items", r->items, "reaped", (int)r->n_reaped);
        if (answer == NULL)
            error_set(err, ERR_DAEMON_OVERLOADED, "out of memory");
    }
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

static void take_result(struct reap *r, const struct chosen *c, bool removed, struct error *err)
{
    const char *what = json_string_value(json_object_get(c->item, "what"));

    if (removed) {
        LOG_INFO("leftover removed", "what", what, "kind", json_string_value(json_object_get(c->item, "kind")));
        set_result(c->item, "reaped", "removed", NULL);
        r->n_reaped++;
    } else if (err->code == ERR_VM_INVALID_STATE) { /* a process has it */
        set_result(c->item, "kept", err->message, NULL);
    } else {
        LOG_WARN("leftover not removed", "what", what, "error", err->message);
        set_result(c->item, "failed", err->message, problem_json(err));
    }
}

static void ports_dropped(void *arg, struct error *err)
{
    struct reap *r = arg;

    for (size_t i = 0; i < r->n_chosen; i++)
        if (r->chosen[i].trace == NULL)
            take_result(r, &r->chosen[i], !error_is_set(err), err);
    reap_over(r);
}

static void drop_ports(struct reap *r)
{
    struct store_tx *tx = NULL;
    char id[UUID_TEXT_MAX];

    for (size_t i = 0; i < r->n_chosen; i++) {
        if (r->chosen[i].trace != NULL)
            continue;
        if (tx == NULL && (tx = store_tx_new(r->core->store)) == NULL)
            break;
        store_drop_ports(tx, uuid_text(&r->chosen[i].vm_id, id));
    }
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

    (void)err;
    for (struct backend_trace *t = list; t != NULL && r->core != NULL; t = t->next)
        for (size_t i = 0; i < r->n_chosen; i++)
            if (r->chosen[i].trace == t)
                take_result(r, &r->chosen[i], t->removed, &t->failure);
    while (list != NULL) { /* kept to the end: that a trace is there tells it from a port */
        struct backend_trace *next = list->next;
        list->next = r->acting;
        r->acting = list;
        list = next;
    }
    if (r->core == NULL)
        reap_free(r);
    else
        act_next(r);
}

/* Those of one backend, out of the list's traces. */
static struct backend_trace *take_traces(struct reap *r, const struct backend *be)
{
    struct backend_trace *mine = NULL;

    for (size_t i = 0; i < r->n_chosen; i++) {
        struct backend_trace *t = r->chosen[i].trace, **p = &r->core->leaks->traces;
        if (t == NULL || t->be != be)
            continue;
        while (*p != NULL && *p != t)
            p = &(*p)->next;
        if (*p == NULL)
            continue;
        *p = t->next;
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
    for (size_t i = 0; i < r->n_chosen; i++)
        if (r->chosen[i].trace == NULL) {
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

static void judge(struct reap *r, const struct leak_list *list, const struct leak *leak, json_t *item)
{
    int64_t before = clock_wall_ms() - r->older_than_s * 1000;

    if (leak->adoptable) {
        CLEANUP_FREE char *detail = mem_printf("it can be taken back: `vmctl adopt %s`, then destroy it if it is not "
                                               "wanted",
                                               leak->vm_name);
        set_result(item, "kept", detail != NULL ? detail : "", NULL);
    } else if (leak->since > before) {
        set_result(item, "too_young", "it may still be somebody's", NULL);
    } else if (process_stays(list, leak, before)) {
        set_result(item, "kept", "the process that has it is too young", NULL);
    } else if (r->dry_run) {
        set_result(item, "would_reap", "", NULL);
    } else {
        r->chosen[r->n_chosen++] = (struct chosen){leak->trace, leak->vm_id, item};
    }
}

static void reap_fresh(void *arg, struct error *err)
{
    struct reap *r = arg;
    struct core *core = r->core;
    struct leak_list *list = &core->leaks->list;

    r->wait = NULL;
    r->items = json_array();
    r->chosen = mem_zalloc((list->n + 1) * sizeof(*r->chosen));
    if (r->items == NULL || r->chosen == NULL)
        error_set(err, ERR_DAEMON_OVERLOADED, "out of memory");
    for (size_t i = 0; i < list->n && !error_is_set(err); i++) {
        json_t *item = list->items[i]->hidden ? NULL : leak_json(list->items[i]);
        if (item != NULL && json_array_append_new(r->items, item) == 0)
            judge(r, list, list->items[i], item);
    }
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
                    void (*done)(void *arg, json_t *answer, struct error *err), void *arg, struct error *err)
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
