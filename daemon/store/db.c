/* db.c - opens connections and turns SQLite's codes into errors.
 *
 * A new database is made 0600 and its directory synced, so that it survives a power cut from its first commit on.  What
 * is at the path and is no database is refused before SQLite touches it.  After that nobody but SQLite opens the file:
 * closing any other descriptor of it would drop the POSIX locks that keep other processes from deleting the log. */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/fd.h"
#include "base/mem.h"
#include "store/internal.h"

static const char magic[16] = "SQLite format 3";
enum { HEADER_SIZE = 100 };

static int damaged(struct error *err, const char *what, const char *path)
{
    error_set(err, ERR_DAEMON_INTERNAL, "%s %s", path, what);
    error_help(err, "restore the file from a backup, or move it away to start without VMs; vmmd --check says more");
    return -1;
}

void store_one_line(char *text)
{
    for (; *text != '\0'; text++)
        if ((unsigned char)*text < ' ' || *text == 0x7f)
            *text = ' ';
}

int store_full_error(const char *path, const char *doing, struct error *err)
{
    return error_set(err, ERR_HOST_DISK_FULL, "cannot %s: the disk of %s is full", doing,
                     path != NULL && *path != '\0' ? path : "the database");
}

int store_db_error(sqlite3 *db, int rc, const char *doing, struct error *err)
{
    /* SQLite notes errno for these two alone; after others it is an old one */
    int os = (rc & 0xff) == SQLITE_IOERR || (rc & 0xff) == SQLITE_CANTOPEN ? sqlite3_system_errno(db) : 0;
    char what[256];

    snprintf(what, sizeof(what), "%s", sqlite3_errmsg(db));
    store_one_line(what);
    switch (rc & 0xff) {
    case SQLITE_FULL:
        store_full_error(sqlite3_db_filename(db, "main"), doing, err);
        break;
    case SQLITE_CONSTRAINT:
        return error_set(err, ERR_DAEMON_INTERNAL, "cannot %s: %s", doing, what);
    case SQLITE_CORRUPT:
    case SQLITE_NOTADB:
        error_set(err, ERR_DAEMON_INTERNAL, "cannot %s: the database is damaged, or no database", doing);
        error_help(err, "stop vmmd and run vmmd --check; restore the database from a backup");
        break;
    case SQLITE_NOMEM:
        return error_set(err, ERR_DAEMON_INTERNAL, "cannot %s: out of memory", doing);
    case SQLITE_IOERR:
    case SQLITE_CANTOPEN:
        if (os == ENOSPC || os == EDQUOT)
            store_full_error(sqlite3_db_filename(db, "main"), doing, err);
        else
            error_set(err, ERR_IO, "cannot %s", doing);
        break;
    case SQLITE_BUSY:
    case SQLITE_LOCKED:
    case SQLITE_PERM:
    case SQLITE_READONLY:
        error_set(err, ERR_IO, "cannot %s", doing);
        break;
    default:
        error_set(err, ERR_DAEMON_INTERNAL, "cannot %s", doing);
        break;
    }
    error_cause(err, "SQLite: %s (code %d)", what, rc);
    if (os != 0) {
        error_cause(err, "%s (errno %d)", strerror(os), os);
        error_ctx_int(err, "errno", os);
    }
    return -1;
}

int store_db_exec(sqlite3 *db, const char *sql, const char *doing, struct error *err)
{
    int rc = sqlite3_exec(db, sql, NULL, NULL, NULL);

    return rc == SQLITE_OK ? 0 : store_db_error(db, rc, doing, err);
}

int store_db_int(sqlite3 *db, const char *sql, int64_t *ret, struct error *err)
{
    sqlite3_stmt *stmt = NULL;
    int rc = sqlite3_prepare_v2(db, sql, -1, &stmt, NULL);

    if (rc == SQLITE_OK)
        rc = sqlite3_step(stmt);
    if (rc == SQLITE_ROW)
        *ret = sqlite3_column_int64(stmt, 0);
    else
        store_db_error(db, rc, "read the database", err);
    sqlite3_finalize(stmt);
    return rc == SQLITE_ROW ? 0 : -1;
}

static int file_make(int fd, const char *path, struct error *err)
{
    char dir[PATH_MAX];

    snprintf(dir, sizeof(dir), "%.*s", (int)(strrchr(path, '/') - path + 1), path);
    CLEANUP_FD int parent = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fsync(fd) < 0 || parent < 0 || fsync(parent) < 0)
        return error_errno(err, errno, "cannot make %s", path);
    return 0;
}

/* Makes the file where it is missing, and refuses what is no database: SQLite would say so too, but later and vaguer.
 */
static int file_ready(const char *path, struct error *err)
{
    char header[HEADER_SIZE];
    struct stat st;

    CLEANUP_FD int made = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (made >= 0)
        return file_make(made, path, err);
    if (errno != EEXIST)
        return error_errno(err, errno, "cannot make %s", path);
    CLEANUP_FD int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
    if (fd < 0 || fstat(fd, &st) < 0)
        return error_errno(err, errno, "cannot open %s", path);
    if (!S_ISREG(st.st_mode))
        return damaged(err, "is no regular file", path);
    if ((st.st_mode & 0077) != 0 && fchmod(fd, 0600) < 0)
        return error_errno(err, errno, "cannot make %s private", path);
    if (st.st_size == 0)
        return 0; /* the first start ended before its first commit */
    ssize_t n = pread(fd, header, sizeof(header), 0);
    if (n < 0)
        return error_errno(err, errno, "cannot read %s", path);
    if ((size_t)n < sizeof(magic) || memcmp(header, magic, sizeof(magic)) != 0)
        return damaged(err, "is no database", path);
    return n == HEADER_SIZE ? 0 : damaged(err, "is cut short", path);
}

static int set_up(sqlite3 *db, bool writable, struct error *err)
{
    static const char common[] = "PRAGMA trusted_schema = OFF; PRAGMA cell_size_check = ON; PRAGMA mmap_size = 0;"
                                 "PRAGMA cache_size = -2048; PRAGMA temp_store = MEMORY; PRAGMA foreign_keys = ON;";
    static const char writing[] = "PRAGMA synchronous = FULL; PRAGMA secure_delete = OFF;"
                                  "PRAGMA journal_size_limit = 8388608; PRAGMA wal_autocheckpoint = 0;";
    sqlite3_stmt *stmt = NULL;

    sqlite3_busy_timeout(db, 5000);
    sqlite3_db_config(db, SQLITE_DBCONFIG_DEFENSIVE, 1, NULL);
    if (store_db_exec(db, common, "set up the database", err) < 0)
        return -1;
    if (!writable)
        return 0;
    int rc = sqlite3_prepare_v2(db, "PRAGMA journal_mode = WAL", -1, &stmt, NULL);
    if (rc == SQLITE_OK)
        rc = sqlite3_step(stmt);
    if (rc != SQLITE_ROW)
        store_db_error(db, rc, "open the database's log", err);
    else if (strcmp((const char *)sqlite3_column_text(stmt, 0), "wal") != 0)
        rc = error_set(err, ERR_IO, "cannot open the database's log: this file system has no shared memory for it");
    sqlite3_finalize(stmt);
    int chunk = STORE_CHUNK_BYTES;
    sqlite3_file_control(db, "main", SQLITE_FCNTL_CHUNK_SIZE, &chunk);
    return rc == SQLITE_ROW ? store_db_exec(db, writing, "set up the database", err) : -1;
}

int store_db_open(const char *path, bool writable, sqlite3 **ret, struct error *err)
{
    sqlite3 *db = NULL;
    int flags = (writable ? SQLITE_OPEN_READWRITE : SQLITE_OPEN_READONLY) | SQLITE_OPEN_NOMUTEX |
                SQLITE_OPEN_PRIVATECACHE | SQLITE_OPEN_EXRESCODE;

    if (writable && file_ready(path, err) < 0)
        return -1;
    int rc = sqlite3_open_v2(path, &db, flags, NULL);
    if (rc != SQLITE_OK)
        store_db_error(db, rc, "open the database", err);
    if (rc != SQLITE_OK || set_up(db, writable, err) < 0) {
        error_cause(err, "the database is %s", path);
        sqlite3_close(db);
        return -1;
    }
    *ret = db;
    return 0;
}
