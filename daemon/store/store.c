/* store.c - opening, loading, committing, dispatching, closing.  See store.h.
 *
 * Loads use a connection of their own, so they never meet the writer thread's.  A transaction that could not be built
 * for want of memory still travels the queue, in a spare when need be, so that its failure comes like every other. */
#include "store/store.h"

#include <signal.h>
#include <stdio.h>
#include <string.h>

#include "base/fd.h"
#include "base/log.h"
#include "base/mem.h"
#include "store/internal.h"

enum { DRAIN_TURNS = 1000 }; /* a callback that queues for ever does not keep the daemon for ever */

static int start_writer(struct store *store, struct error *err)
{
    sigset_t all, before;

    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int rc = pthread_create(&store->thread, NULL, store_writer, store);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return rc == 0 ? 0 : error_errno(err, rc, "cannot start the database's writer thread");
}

static void close_db(struct store *store)
{
    sqlite3_stmt *stmt;

    while ((stmt = sqlite3_next_stmt(store->db, NULL)) != NULL)
        sqlite3_finalize(stmt);
    sqlite3_close(store->db);
}

static int open_and_migrate(struct store *store, struct error *err)
{
    if (store_db_open(store->path, true, &store->db, err) < 0)
        return -1;
    if (store_migrate(store->db, store->path, err) == 0)
        return 0;
    close_db(store);
    return -1;
}

/* The database's log and its index want some room: on a full disk, vmmd starts on the reserve. */
static int open_db(struct store *store, struct error *err)
{
    if (open_and_migrate(store, err) < 0) {
        if (err->code != ERR_HOST_DISK_FULL || !store_reserve_spend(store))
            return -1;
        error_done(err);
        store->reserve_missing = store->reserve_spent = true;
        if (open_and_migrate(store, err) < 0)
            return -1;
        store_reserve_grow_log(store);
        return 0;
    }
    /* Without room for it vmmd starts all the same, and what frees room makes do with what is there. */
    store->reserve_missing = store_reserve_keep(store) == STORE_RESERVE_NO_ROOM;
    store_reserve_grow_log(store);
    return 0;
}

int store_open(const char *dir, void (*wake)(void *arg), void *arg, struct store **ret, struct error *err)
{
    CLEANUP_FREE struct store *store = mem_zalloc(sizeof(*store));

    if (store == NULL)
        return error_set(err, ERR_DAEMON_INTERNAL, "cannot open the database: out of memory");
    if (!sqlite3_threadsafe())
        return error_set(err, ERR_DAEMON_INTERNAL, "cannot open the database: this SQLite was built without threads");
    store->wake = wake;
    store->wake_arg = arg;
    store->reserve_fd = -1;
    store_list_init(&store->queue);
    store_list_init(&store->finished);
    store_list_init(&store->ready);
    if (path_join(store->path, sizeof(store->path), dir, "vmmd.db", err) < 0 ||
        path_join(store->reserve_path, sizeof(store->reserve_path), dir, "vmmd.reserve", err) < 0)
        return -1;
    if (open_db(store, err) < 0) {
        fd_close(store->reserve_fd);
        return -1;
    }
    pthread_mutex_init(&store->lock, NULL);
    pthread_cond_init(&store->wanted, NULL);
    pthread_cond_init(&store->idle, NULL);
    if (store_tx_prepare(store, err) < 0 || store_read_prepare(store, err) < 0 || start_writer(store, err) < 0) {
        close_db(store);
        fd_close(store->reserve_fd);
        pthread_cond_destroy(&store->wanted);
        pthread_cond_destroy(&store->idle);
        pthread_mutex_destroy(&store->lock);
        return -1;
    }
    *ret = TAKE_PTR(store);
    return 0;
}

static void drop_all(struct store_list *list)
{
    struct store_item *item;

    while ((item = store_list_pop(list)) != NULL)
        if (item->is_read)
            store_read_free(CONTAINER_OF(item, struct store_read, item));
        else
            store_tx_free(CONTAINER_OF(item, struct store_tx, item));
}

void store_close(struct store *store)
{
    if (store == NULL)
        return;
    pthread_mutex_lock(&store->lock);
    store->stopping = true;
    pthread_cond_signal(&store->wanted);
    pthread_mutex_unlock(&store->lock);
    pthread_join(store->thread, NULL);
    close_db(store);
    store_reserve_keep(store); /* it may have the room of the log, which is gone: the next start wants some */
    fd_close(store->reserve_fd);
    drop_all(&store->ready);
    drop_all(&store->finished);
    pthread_cond_destroy(&store->wanted);
    pthread_cond_destroy(&store->idle);
    pthread_mutex_destroy(&store->lock);
    mem_free(store);
}

void store_dispatch(struct store *store)
{
    struct store_item *item;

    pthread_mutex_lock(&store->lock);
    store_list_move(&store->ready, &store->finished);
    pthread_mutex_unlock(&store->lock);
    if (store->dispatching) /* called from a done callback: the outer call goes on with what came */
        return;
    store->dispatching = true;
    while ((item = store_list_pop(&store->ready)) != NULL)
        if (item->is_read)
            store_read_deliver(CONTAINER_OF(item, struct store_read, item));
        else
            store_tx_deliver(CONTAINER_OF(item, struct store_tx, item));
    store->dispatching = false;
}

void store_drain(struct store *store)
{
    for (int turn = 0; turn < DRAIN_TURNS; turn++) {
        pthread_mutex_lock(&store->lock);
        while (store->stats.queued > 0)
            pthread_cond_wait(&store->idle, &store->lock);
        bool nothing = store->finished.head == NULL;
        pthread_mutex_unlock(&store->lock);
        if (nothing && store->ready.head == NULL)
            return;
        store_dispatch(store);
    }
}

static struct store_tx *spare_tx(struct store *store)
{
    struct store_tx *tx = mem_zalloc(sizeof(*tx));

    if (tx != NULL)
        return tx;
    for (size_t i = 0; i < STORE_SPARES; i++)
        if (!store->spares[i].item.spare) {
            store->spares[i] = (struct store_tx){.item.spare = true};
            return &store->spares[i];
        }
    return NULL;
}

void store_commit(struct store *store, struct store_tx *tx, void (*done)(void *arg, struct error *err), void *arg)
{
    CLEANUP_ERROR struct error err = ERROR_INIT;
    bool failed = tx == NULL || tx->data.failed;

    if (tx == NULL)
        tx = spare_tx(store);
    if (tx == NULL) { /* not even a spare: early beats never */
        LOG_ERROR("out of memory: a change of the database is lost");
        error_set(&err, ERR_DAEMON_INTERNAL, "cannot write to the database: out of memory");
        if (done != NULL)
            done(arg, &err);
        return;
    }
    if (failed) {
        buf_done(&tx->data);
        tx->item.failed = true;
    }
    tx->done = done;
    tx->arg = arg;
    store_enqueue(store, &tx->item);
}

void store_stats(struct store *store, struct store_stats *ret)
{
    pthread_mutex_lock(&store->lock);
    *ret = store->stats;
    pthread_mutex_unlock(&store->lock);
}
