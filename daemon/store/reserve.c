/* reserve.c - a little room kept aside for what frees room.
 *
 * Happy path: DIR/vmmd.reserve holds RESERVE_BYTES of disk that nothing uses.  When the disk is full, its room is given to the
 * transactions that were marked (store_tx_use_reserve: destroy, kill, stop), and to them alone until there is room enough to
 * keep the reserve again.  The room does not end: the log is folded into the database after each of them, so that it does
 * not grow, and where the database would have to grow and its file cannot, the oldest events make room, then the oldest
 * operations that have ended (store_reserve_stretch).
 * Failure modes: a disk without room for it, or a file system that cannot set room aside: there is no reserve, and on a full
 * disk everything is refused alike.  Writer thread; store_open before it runs. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "base/fd.h"
#include "base/log.h"
#include "store/internal.h"

enum { RESERVE_BYTES = 1 << 20, STRETCH_MOST = 512, STRETCH_LEAST = 8 };

static bool is_whole(int fd)
{
    struct stat st;

    return fstat(fd, &st) == 0 && st.st_size == RESERVE_BYTES && st.st_blocks * 512 >= RESERVE_BYTES;
}

static enum store_reserve not_kept(int errnum)
{
    return errnum == ENOSPC || errnum == EDQUOT ? STORE_RESERVE_NO_ROOM : STORE_RESERVE_NONE;
}

bool store_reserve_fits(const struct store *store)
{
    struct statvfs st;

    if (store->reserve_fd < 0 || fstatvfs(store->reserve_fd, &st) < 0)
        return true; /* the attempt tells */
    return (uint64_t)st.f_bavail * st.f_frsize >= RESERVE_BYTES + RESERVE_BYTES / 2;
}

enum store_reserve store_reserve_keep(struct store *store)
{
    int rc;

    if (store->reserve_fd < 0)
        store->reserve_fd = open(store->reserve_path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (store->reserve_fd < 0)
        return not_kept(errno);
    if (!is_whole(store->reserve_fd) && (rc = posix_fallocate(store->reserve_fd, 0, RESERVE_BYTES)) != 0) {
        (void)!ftruncate(store->reserve_fd, 0); /* half of it is of no use */
        return not_kept(rc);
    }
    return STORE_RESERVE_KEPT;
}

bool store_reserve_spend(struct store *store)
{
    if (store->reserve_fd < 0)
        store->reserve_fd = open(store->reserve_path, O_RDWR | O_CLOEXEC | O_NOFOLLOW);
    if (store->reserve_fd < 0 || !is_whole(store->reserve_fd) || ftruncate(store->reserve_fd, 0) < 0)
        return false;
    LOG_WARN("the disk is full: the reserve goes to what frees room", "path", store->reserve_path);
    return true;
}

int64_t store_reserve_file_pages(const struct store *store)
{
    struct stat st;

    return stat(store->path, &st) == 0 ? st.st_size / STORE_PAGE_BYTES : 0;
}

bool store_reserve_grow_file(struct store *store)
{
    int64_t before = store_reserve_file_pages(store);
    sqlite3_int64 wanted = before * STORE_PAGE_BYTES + 1; /* SQLite rounds up to a whole chunk */

    return sqlite3_file_control(store->db, "main", SQLITE_FCNTL_SIZE_HINT, &wanted) == SQLITE_OK &&
           store_reserve_file_pages(store) > before;
}

void store_reserve_grow_log(struct store *store)
{
    int chunk = STORE_LOG_BYTES, none = 0;
    sqlite3_int64 wanted = 1;
    sqlite3_file *log = NULL;

    if (sqlite3_file_control(store->db, "main", SQLITE_FCNTL_JOURNAL_POINTER, &log) != SQLITE_OK || log == NULL ||
        log->pMethods == NULL)
        return;
    log->pMethods->xFileControl(log, SQLITE_FCNTL_CHUNK_SIZE, &chunk);
    log->pMethods->xFileControl(log, SQLITE_FCNTL_SIZE_HINT, &wanted);
    log->pMethods->xFileControl(log, SQLITE_FCNTL_CHUNK_SIZE, &none);
}

/* One transaction that only deletes; -1 also when there was nothing left to delete. */
static int forget(struct store *store, const char *sql, struct error *err)
{
    int before = sqlite3_total_changes(store->db);

    if (store_db_exec(store->db, sql, "forget what is old", err) == 0)
        return sqlite3_total_changes(store->db) > before ? 0 : -1;
    if (!sqlite3_get_autocommit(store->db))
        sqlite3_exec(store->db, "ROLLBACK", NULL, NULL, NULL);
    return -1;
}

/* Event ids are a promise to clients: the highest is kept even when its event goes. */
static bool forget_events(struct store *store, int count)
{
    CLEANUP_ERROR struct error err = ERROR_INIT;
    int64_t last = 0;
    char sql[400];

    snprintf(sql, sizeof(sql),
             "BEGIN IMMEDIATE;"
             "DELETE FROM events WHERE id IN (SELECT id FROM events WHERE id < (SELECT max(id) FROM events)"
             " ORDER BY id LIMIT %d);"
             "COMMIT",
             count);
    if (forget(store, sql, &err) < 0 ||
        store_db_int(store->db, "SELECT coalesce(min(id), 1) - 1 FROM events", &last, &err) < 0)
        return false;
    pthread_mutex_lock(&store->lock);
    store->events_gone = last;
    pthread_mutex_unlock(&store->lock);
    LOG_WARN("the disk is full: the oldest events were forgotten for what frees room", "path", store->path);
    return true;
}

static bool forget_operations(struct store *store, int count)
{
    CLEANUP_ERROR struct error err = ERROR_INIT;
    char sql[600];

    snprintf(sql, sizeof(sql),
             "BEGIN IMMEDIATE;"
             "DELETE FROM idempotency_keys WHERE operation_id IN"
             " (SELECT id FROM operations WHERE finished_at > 0 ORDER BY finished_at LIMIT %d);"
             "DELETE FROM operations WHERE id IN"
             " (SELECT id FROM operations WHERE finished_at > 0 ORDER BY finished_at LIMIT %d);"
             "COMMIT",
             count, count);
    if (forget(store, sql, &err) < 0)
        return false;
    LOG_WARN("the disk is full: the oldest operations were forgotten for what frees room", "path", store->path);
    return true;
}

bool store_reserve_stretch(struct store *store)
{
    for (int count = STRETCH_MOST; count >= STRETCH_LEAST; count /= 4) /* fewer touch fewer pages */
        if (forget_events(store, count))
            return true;
    for (int count = STRETCH_MOST / 8; count >= STRETCH_LEAST; count /= 2)
        if (forget_operations(store, count))
            return true;
    return false;
}

int64_t store_events_gone(struct store *store)
{
    pthread_mutex_lock(&store->lock);
    int64_t gone = store->events_gone;
    pthread_mutex_unlock(&store->lock);
    return gone;
}
