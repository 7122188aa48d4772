/* writer.c - the writer thread: takes what queued, commits it as one group, hands the results back, and wakes the loop.
 *
 *   take the queue ─► BEGIN IMMEDIATE ─► SAVEPOINT, records, RELEASE (each tx) ─► COMMIT ─► finished ─► wake
 *
 * While a COMMIT is being flushed the next group queues, so the busier the daemon, the fewer flushes per transaction.
 * A tx that breaks a constraint is rolled back to its savepoint alone.  When the disk refuses (in a record or at
 * COMMIT) nothing of the group is durable, so every tx of it gets the error; the next group starts afresh.  Where it is
 * full, those that free room are tried again with the reserve (reserve.c).  A read runs
 * when all before it is committed.  Checkpoints come after the results are handed over, so that no client waits for
 * one. */
#include <signal.h>
#include <stdio.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/mem.h"
#include "store/internal.h"

enum { FRUGAL_TRIES = 6 };

void store_list_init(struct store_list *list)
{
    list->head = NULL;
    list->tail = &list->head;
}

void store_list_add(struct store_list *list, struct store_item *item)
{
    item->next = NULL;
    *list->tail = item;
    list->tail = &item->next;
}

struct store_item *store_list_pop(struct store_list *list)
{
    struct store_item *item = list->head;

    if (item == NULL)
        return NULL;
    list->head = item->next;
    if (list->head == NULL)
        list->tail = &list->head;
    item->next = NULL;
    return item;
}

void store_list_move(struct store_list *dst, struct store_list *src)
{
    if (src->head == NULL)
        return;
    *dst->tail = src->head;
    dst->tail = src->tail;
    store_list_init(src);
}

void store_item_fail(struct store_item *item, struct error *err)
{
    if (item->failed)
        return;
    item->failed = true;
    item->err = mem_zalloc(sizeof(*item->err));
    if (item->err != NULL)
        error_move(item->err, err);
}

void store_item_error(struct store_item *item, struct error *ret)
{
    if (item->err != NULL)
        error_move(ret, item->err);
    else if (item->failed)
        error_set(ret, ERR_DAEMON_INTERNAL, "cannot write to the database: the change did not fit into memory");
}

void store_enqueue(struct store *store, struct store_item *item)
{
    pthread_mutex_lock(&store->lock);
    bool idle = store->queue.head == NULL;
    store_list_add(&store->queue, item);
    store->stats.queued++;
    if (idle)
        pthread_cond_signal(&store->wanted);
    pthread_mutex_unlock(&store->lock);
}

static int run(sqlite3_stmt *stmt)
{
    int rc = sqlite3_step(stmt);

    sqlite3_reset(stmt);
    return rc == SQLITE_DONE ? SQLITE_OK : rc;
}

/* What is wrong with the tx alone, as against the disk or the database. */
static bool is_own_fault(int rc)
{
    return (rc & 0xff) == SQLITE_CONSTRAINT || (rc & 0xff) == SQLITE_MISMATCH || (rc & 0xff) == SQLITE_TOOBIG;
}

static int apply_one(struct store *store, struct store_tx *tx, struct error *err)
{
    CLEANUP_ERROR struct error own = ERROR_INIT;
    int rc;

    if (tx->item.failed)
        return SQLITE_OK;
    if ((rc = run(store->savepoint)) != SQLITE_OK) {
        store_db_error(store->db, rc, "write to the database", err);
        return rc;
    }
    rc = store_tx_apply(store, tx, &own);
    if (rc != SQLITE_OK && !is_own_fault(rc)) {
        error_move(err, &own);
        return rc;
    }
    if (rc != SQLITE_OK) {
        store_item_fail(&tx->item, &own);
        rc = run(store->rollback_to);
    } else {
        rc = SQLITE_OK;
    }
    if (rc == SQLITE_OK)
        rc = run(store->release);
    if (rc != SQLITE_OK)
        store_db_error(store->db, rc, "write to the database", err);
    return rc;
}

#ifdef VMMD_CRASH_POINTS
static void crash_points(struct store_item *group, const char *when)
{
    for (struct store_item *i = group; i != NULL; i = i->next)
        store_tx_crash_point(CONTAINER_OF(i, struct store_tx, item), when);
}
#else
#define crash_points(group, when) ((void)0)
#endif

/* Executes the transactions of the group; on failure nothing of it stays. */
static int apply_all(struct store *store, struct store_item *group, struct error *err)
{
    int rc = run(store->begin);

    if (rc != SQLITE_OK)
        return store_db_error(store->db, rc, "write to the database", err);
    for (struct store_item *i = group; i != NULL && rc == SQLITE_OK; i = i->next)
        rc = apply_one(store, CONTAINER_OF(i, struct store_tx, item), err);
    crash_points(group, "before");
    if (rc == SQLITE_OK && (rc = run(store->commit)) != SQLITE_OK)
        store_db_error(store->db, rc, "write to the database", err);
    if (rc == SQLITE_OK) {
        crash_points(group, "after"); /* durable, and nobody knows yet */
        return 0;
    }
    if (!sqlite3_get_autocommit(store->db)) /* SQLite rolls some failures back by itself */
        run(store->rollback);
    return -1;
}

/* Those of the group that do not free room fail with err; what is left is for the reserve. */
static bool only_what_frees(struct store_item *group, const struct error *err)
{
    bool any = false;

    for (struct store_item *i = group; i != NULL; i = i->next) {
        CLEANUP_ERROR struct error copy = ERROR_INIT;
        if (i->frees || i->failed) {
            any = any || i->frees;
            continue;
        }
        error_copy(&copy, err);
        store_item_fail(i, &copy);
    }
    return any;
}

/* How many pages the database has, its log counted in. */
static int64_t page_count(struct store *store)
{
    int64_t pages = sqlite3_step(store->page_count) == SQLITE_ROW ? sqlite3_column_int64(store->page_count, 0) : 0;

    sqlite3_reset(store->page_count);
    return pages;
}

/* Folds the log into the database; SQLITE_BUSY when a part of it had to stay. */
static int fold_log(struct store *store)
{
    int in_log = 0, folded = 0;
    int rc = sqlite3_wal_checkpoint_v2(store->db, NULL, SQLITE_CHECKPOINT_PASSIVE, &in_log, &folded);

    store->wal_pages = 0;
    if (rc == SQLITE_OK && folded < in_log)
        rc = SQLITE_BUSY;
    if (rc == SQLITE_OK)
        store->folded_pages = page_count(store);
    return rc;
}

/* On a full disk the database takes no page more than its file has room for, lest the log hold what cannot be folded. */
static void hold_pages(struct store *store, bool hold)
{
    char sql[64];

    if (!hold && !store->pages_held)
        return;
    store->pages_held = hold;
    snprintf(sql, sizeof(sql), "PRAGMA max_page_count = %lld",
             hold ? (long long)store_reserve_file_pages(store) : (long long)STORE_PAGES_MAX);
    sqlite3_exec(store->db, sql, NULL, NULL, NULL);
}

/* What frees room is written on a full disk: over the log from its beginning, into what room the file has or gets, and in
 * place of what is old.  Once all is folded, nothing here needs room that others could take meanwhile. */
static bool apply_one_frugally(struct store *store, struct store_item *item, struct error *err)
{
    bool done = false;

    for (int tries = 0; !done && tries < FRUGAL_TRIES; tries++) {
        bool folded = fold_log(store) == SQLITE_OK;
        if (tries > 0 && !store_reserve_grow_file(store) && !store_reserve_stretch(store))
            break;
        hold_pages(store, folded);
        error_done(err);
        done = apply_all(store, item, err) == 0;
        if (!done && err->code != ERR_HOST_DISK_FULL)
            break;
    }
    fold_log(store);
    return done;
}

/* One after the other: together they may want more of the log than it has. */
static bool apply_frugally(struct store *store, struct store_item *group)
{
    bool any = false;

    for (struct store_item *i = group, *next; i != NULL; i = next) {
        CLEANUP_ERROR struct error err = ERROR_INIT;
        next = i->next;
        if (i->failed)
            continue;
        i->next = NULL;
        if (apply_one_frugally(store, i, &err))
            any = true;
        else
            store_item_fail(i, &err);
        i->next = next;
    }
    return any;
}

/* Ordinary work; while the reserve is missing the file grows before the database does. */
static bool apply_plainly(struct store *store, struct store_item *group, struct error *err)
{
    hold_pages(store, store->reserve_missing);
    if (apply_all(store, group, err) == 0)
        return true;
    if (!store->reserve_missing || err->code != ERR_HOST_DISK_FULL || fold_log(store) != SQLITE_OK ||
        !store_reserve_grow_file(store))
        return false;
    hold_pages(store, true);
    error_done(err);
    return apply_all(store, group, err) == 0;
}

/* On a full disk the reserve is given to what frees room, and everything else is refused until it can be kept again. */
static bool apply_group(struct store *store, struct store_item *group, struct error *err)
{
    if (store->reserve_missing && store_reserve_fits(store) && store_reserve_keep(store) != STORE_RESERVE_NO_ROOM) {
        LOG_INFO("the disk has room again: the reserve is whole", "path", store->reserve_path);
        store->reserve_missing = store->reserve_spent = false;
    }
    if (store->reserve_spent)
        store_full_error(store->path, "write to the database", err);
    else if (apply_plainly(store, group, err))
        return true;
    if (err->code != ERR_HOST_DISK_FULL || !only_what_frees(group, err))
        return false;
    if (!store->reserve_spent && store_reserve_spend(store))
        store->reserve_missing = store->reserve_spent = true;
    return apply_frugally(store, group);
}

static void commit_group(struct store *store, struct store_list *group)
{
    CLEANUP_ERROR struct error err = ERROR_INIT;
    int64_t start = clock_mono_us();
    unsigned good = 0, bad = 0;

    bool committed = apply_group(store, group->head, &err);
    int64_t took = clock_mono_us() - start;
    for (struct store_item *i = group->head; i != NULL; i = i->next) {
        CLEANUP_ERROR struct error copy = ERROR_INIT;
        if (!committed && !i->failed) {
            error_copy(&copy, &err);
            store_item_fail(i, &copy);
        }
        bad += i->failed;
        good += !i->failed;
    }
    pthread_mutex_lock(&store->lock);
    struct store_stats *stats = &store->stats;
    stats->commits += committed;
    stats->transactions += good;
    stats->failed += bad;
    stats->last_commit_us = took;
    if (took > stats->max_commit_us)
        stats->max_commit_us = took;
    pthread_mutex_unlock(&store->lock);
}

static void hand_over(struct store *store, struct store_list *done, unsigned count)
{
    if (count == 0)
        return;
    pthread_mutex_lock(&store->lock);
    bool wake = store->finished.head == NULL && !store->stopping;
    store_list_move(&store->finished, done);
    store->stats.queued -= count;
    if (store->stats.queued == 0)
        pthread_cond_signal(&store->idle);
    pthread_mutex_unlock(&store->lock);
    if (wake && store->wake != NULL)
        store->wake(store->wake_arg);
}

static void checkpoint(struct store *store)
{
    char code[16];

    if (store->wal_pages == 0 ||
        (store->wal_pages < STORE_CHECKPOINT_PAGES && page_count(store) - store->folded_pages < STORE_GROWTH_PAGES))
        return;
    int rc = fold_log(store);
    bool failed = rc != SQLITE_OK && (rc & 0xff) != SQLITE_BUSY;
    snprintf(code, sizeof(code), "%d", rc);
    if (failed && !store->checkpoint_failed)
        LOG_WARN("the database's log cannot be folded into the database and grows", "sqlite", code, "cause",
                 sqlite3_errstr(rc), "path", store->path);
    store->checkpoint_failed = failed;
}

/* Runs the items of the batch in order, in groups of transactions between reads. */
static void run_batch(struct store *store, struct store_list *batch)
{
    struct store_list group;

    while (batch->head != NULL) {
        unsigned count = 0;
        store_list_init(&group);
        while (batch->head != NULL && !batch->head->is_read && count < STORE_GROUP_MAX) {
            store_list_add(&group, store_list_pop(batch));
            count++;
        }
        if (count > 0) {
            commit_group(store, &group);
        } else {
            struct store_item *item = store_list_pop(batch);
            store_read_run(store, CONTAINER_OF(item, struct store_read, item));
            store_list_add(&group, item);
            count = 1;
        }
        hand_over(store, &group, count);
        checkpoint(store);
    }
}

static int on_wal(void *arg, sqlite3 *db, const char *name, int pages)
{
    struct store *store = arg;

    (void)db;
    (void)name;
    store->wal_pages = pages;
    return SQLITE_OK;
}

void *store_writer(void *arg)
{
    struct store *store = arg;
    struct store_list batch;

    sqlite3_wal_hook(store->db, on_wal, store);
    for (;;) {
        store_list_init(&batch);
        pthread_mutex_lock(&store->lock);
        while (store->queue.head == NULL && !store->stopping)
            pthread_cond_wait(&store->wanted, &store->lock);
        store_list_move(&batch, &store->queue);
        pthread_mutex_unlock(&store->lock);
        if (batch.head == NULL)
            return NULL;
        run_batch(store, &batch);
    }
}
