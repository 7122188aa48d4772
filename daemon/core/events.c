/* events.c - the event stream: numbered, durable, replayed from the store, then live.
 *
 *   subscribe(since) ──► replaying: batches from the store until one comes back short ──► live: as they are published
 *
 * While a subscriber replays, live events pass it by: they are durable, so its next batch brings them.  One that is held back
 * gets nothing more until it is let on: a long replay goes as fast as it is read.  One that is so slow that what it has not seen
 * is no longer kept is told that it has expired: it never misses an event without knowing.
 * A cursor beyond the newest event is of another database, lost or put back to an older one: it has expired as well. */
#include <string.h>

#include "base/mem.h"
#include "base/str.h"
#include "core/internal.h"

enum { PRUNE_SLACK = 100, BATCH = 200 };

struct event_sub {
    struct event_sub *next;
    struct core *core;
    int64_t last; /* id of the last event seen, told or filtered out */
    bool live;
    bool busy; /* in a callback: freed afterwards */
    bool dead;
    bool held; /* replays no further for now */
    bool cut;  /* held in the midst of a batch */
    char *vm;
    char *type_glob;
    struct store_read *read;
    int64_t batch_last;
    unsigned batch_n;
    struct loop_task task;
    void (*fn)(void *arg, int64_t id, const char *type, const char *doc);
    void *arg;
};

static void sub_free(struct event_sub *sub)
{
    for (struct event_sub **p = &sub->core->subs; *p != NULL; p = &(*p)->next)
        if (*p == sub) {
            *p = sub->next;
            break;
        }
    if (sub->read != NULL)
        store_read_cancel(sub->read);
    loop_revoke(sub->core->loop, &sub->task);
    mem_free(sub->vm);
    mem_free(sub->type_glob);
    mem_free(sub);
}

static void sub_tell(struct event_sub *sub, int64_t id, const char *type, const char *doc)
{
    sub->last = id;
    sub->busy = true;
    sub->fn(sub->arg, id, type, doc);
    sub->busy = false;
}

static bool name_in(const char *doc, const char *name)
{
    CLEANUP_FREE char *needle = mem_printf("\"vm_name\":\"%s\"", name);

    return needle != NULL && strstr(doc, needle) != NULL;
}

static bool sub_wants(const struct event_sub *sub, const char *type, const char *vm_id, const char *doc)
{
    if (sub->type_glob != NULL && !str_glob(sub->type_glob, type))
        return false;
    return sub->vm == NULL || strcmp(sub->vm, vm_id) == 0 || name_in(doc, sub->vm);
}

static void replay_row(void *arg, const struct store_event_row *row)
{
    struct event_sub *sub = arg;

    sub->batch_n++;
    if (sub->dead || sub->cut)
        return;
    sub->batch_last = row->id;
    if (sub_wants(sub, row->type, row->vm_id != NULL ? row->vm_id : "", row->doc))
        sub_tell(sub, row->id, row->type, row->doc);
    sub->cut = sub->held; /* the rest is read again when it is let on */
}

static void replay_next(struct loop_task *task);

static void replay_done(void *arg, struct error *err)
{
    struct event_sub *sub = arg;

    sub->read = NULL;
    if (sub->dead) {
        sub_free(sub);
        return;
    }
    if (error_is_set(err)) /* tried again by the next event */
        return;
    if (sub->batch_last > sub->last)
        sub->last = sub->batch_last;
    if (sub->cut)
        loop_defer(sub->core->loop, &sub->task);
    else if (sub->batch_n < BATCH && sub->last >= sub->core->event_newest)
        sub->live = true;
    else
        loop_defer(sub->core->loop, &sub->task);
}

static void replay_next(struct loop_task *task)
{
    struct event_sub *sub = CONTAINER_OF(task, struct event_sub, task);

    if (sub->read != NULL || sub->held)
        return;
    if (sub->last < core_event_oldest(sub->core) - 1) {
        sub_tell(sub, sub->last, NULL, NULL);
        if (sub->dead)
            sub_free(sub);
        return;
    }
    if (sub->last >= sub->core->event_newest) {
        sub->live = true;
        return;
    }
    sub->batch_n = 0;
    sub->cut = false;
    sub->batch_last = sub->last;
    sub->read = store_read_events(sub->core->store, sub->last, NULL, NULL, false, BATCH, replay_row, replay_done, sub);
}

void events_publish(struct core *core, int64_t id, const char *type, const char *vm_id, const char *vm_name,
                    const char *doc)
{
    (void)vm_name;
    core->event_newest = id;
    if (id - core->event_oldest > core->config.events_keep + core->config.events_keep / 10 + PRUNE_SLACK)
        core_prune(core);
    if (core->event_oldest == 0)
        core->event_oldest = id;
    for (struct event_sub *sub = core->subs, *next; sub != NULL; sub = next) {
        next = sub->next;
        if (sub->dead)
            continue;
        if (!sub->live) {
            if (sub->read == NULL)
                loop_defer(core->loop, &sub->task);
            continue;
        }
        sub->last = id;
        if (sub_wants(sub, type, vm_id, doc))
            sub_tell(sub, id, type, doc);
        next = sub->next;
        if (sub->dead)
            sub_free(sub);
    }
}

struct event_sub *core_events_subscribe(struct core *core, int64_t since, const struct event_filter *filter,
                                        void (*fn)(void *arg, int64_t id, const char *type, const char *doc), void *arg,
                                        struct error *err)
{
    if (since >= 0 && core_event_oldest(core) > 0 && since < core_event_oldest(core) - 1)
        error_set(err, ERR_EVENTS_CURSOR_EXPIRED, "event %lld is no longer kept; the oldest is %lld", (long long)since,
                  (long long)core_event_oldest(core));
    else if (since > core->event_newest)
        error_set(err, ERR_EVENTS_CURSOR_EXPIRED,
                  "there has been no event %lld; the newest is %lld: the daemon's database is another than it was",
                  (long long)since, (long long)core->event_newest);
    if (error_is_set(err)) {
        error_ctx_int(err, "oldest", core_event_oldest(core));
        error_ctx_int(err, "newest", core->event_newest);
        return NULL;
    }
    struct event_sub *sub = mem_zalloc(sizeof(*sub));
    if (sub == NULL)
        goto no_memory;
    *sub = (struct event_sub){
        .core = core, .last = since < 0 ? core->event_newest : since, .fn = fn, .arg = arg, .task.run = replay_next};
    if ((filter->vm != NULL && (sub->vm = mem_strdup(filter->vm)) == NULL) ||
        (filter->type_glob != NULL && (sub->type_glob = mem_strdup(filter->type_glob)) == NULL)) {
        mem_free(sub->vm);
        mem_free(sub);
        goto no_memory;
    }
    sub->next = core->subs;
    core->subs = sub;
    loop_defer(core->loop, &sub->task);
    return sub;
no_memory:
    error_set(err, ERR_DAEMON_OVERLOADED, "out of memory");
    return NULL;
}

void core_events_unsubscribe(struct event_sub *sub)
{
    if (sub == NULL || sub->dead)
        return;
    if (sub->busy) /* the caller of fn frees it */
        sub->dead = true;
    else
        sub_free(sub);
}

void core_events_hold(struct event_sub *sub, bool hold)
{
    if (sub->held && !hold && !sub->live && !sub->dead)
        loop_defer(sub->core->loop, &sub->task);
    sub->held = hold;
}

int64_t core_event_newest(const struct core *core)
{
    return core->event_newest;
}

int64_t core_event_oldest(const struct core *core)
{
    int64_t gone = store_events_gone(core->store);

    return gone >= core->event_oldest ? gone + 1 : core->event_oldest;
}

void events_free(struct core *core)
{
    while (core->subs != NULL)
        sub_free(core->subs);
}
