/* sqlite_rows.c - the rows and commits of durable creates by SQLite alone: what vmmd wrote, written again without vmmd.
 *
 *   sqlite_rows SOURCE-DB DIR PREFIX COMMITS
 *
 * Reads the VMs of this name prefix, their operations and events from a copy of vmmd's database, and writes them to
 * DIR/vmmd.db (made when it is not there) as vmmd does: a create is two transactions, one when it is accepted (VM,
 * operation, port, half of the events), one at its end (VM and operation again, the other events); 32 creates are under
 * way at a time, and COMMITS commits carry them all.  Prints "CREATES SECONDS". */
#include <sqlite3.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/mem.h"
#include "store/store.h"

enum { UNDER_WAY = 32, PATH = 512 };

/* A row as bound: the columns of its table in order; integers as text, SQLite converts them (STRICT columns do). */
struct rows {
    const char *read, *write;
    int n_columns;
    char *(*at)[8];
    size_t n, cap;
};

static void die(const char *what, const char *why)
{
    fprintf(stderr, "sqlite_rows: %s: %s\n", what, why);
    exit(1);
}

static void check(sqlite3 *db, int rc, int want)
{
    if (rc != want)
        die("SQLite", sqlite3_errmsg(db));
}

static void load(sqlite3 *db, struct rows *r, const char *glob)
{
    sqlite3_stmt *stmt = NULL;
    int rc;

    check(db, sqlite3_prepare_v2(db, r->read, -1, &stmt, NULL), SQLITE_OK);
    sqlite3_bind_text(stmt, 1, glob, -1, SQLITE_STATIC);
    r->n_columns = sqlite3_column_count(stmt);
    while ((rc = sqlite3_step(stmt)) == SQLITE_ROW) {
        if (r->n == r->cap) {
            r->cap = r->cap > 0 ? 2 * r->cap : 1024;
            r->at = realloc(r->at, r->cap * sizeof(r->at[0]));
        }
        for (int i = 0; r->at != NULL && i < r->n_columns; i++) {
            const char *text = (const char *)sqlite3_column_text(stmt, i);
            r->at[r->n][i] = text != NULL ? strdup(text) : NULL;
        }
        r->n++;
    }
    check(db, rc, SQLITE_DONE);
    sqlite3_finalize(stmt);
    if (r->n == 0)
        die(glob, "no rows");
}

static void put(sqlite3 *db, sqlite3_stmt *stmt, const struct rows *r, size_t n)
{
    for (int i = 0; i < r->n_columns; i++)
        sqlite3_bind_text(stmt, i + 1, r->at[n][i], -1, SQLITE_STATIC);
    check(db, sqlite3_step(stmt), SQLITE_DONE);
    sqlite3_reset(stmt);
}

static sqlite3_stmt *prepare(sqlite3 *db, const char *sql)
{
    sqlite3_stmt *stmt = NULL;

    check(db, sqlite3_prepare_v2(db, sql, -1, &stmt, NULL), SQLITE_OK);
    return stmt;
}

static void run(sqlite3 *db, sqlite3_stmt *stmt)
{
    check(db, sqlite3_step(stmt), SQLITE_DONE);
    sqlite3_reset(stmt);
}

static void nothing(void *arg)
{
    (void)arg;
}

static sqlite3 *open_target(const char *dir)
{
    CLEANUP_ERROR struct error err = ERROR_INIT;
    struct store *store = NULL;
    char path[PATH];
    sqlite3 *db = NULL;

    if (store_open(dir, nothing, NULL, &store, &err) < 0) /* makes the schema */
        die(dir, err.message);
    store_close(store);
    snprintf(path, sizeof(path), "%s/vmmd.db", dir);
    check(db, sqlite3_open(path, &db), SQLITE_OK);
    check(db,
          sqlite3_exec(db, "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA cache_size = -2048", NULL,
                       NULL, NULL),
          SQLITE_OK);
    return db;
}

/* Transaction t of 2n: which create, and whether it is its end. */
static size_t create_of(size_t t, size_t n, bool *ret_end)
{
    size_t block = t / (2 * UNDER_WAY), first = block * UNDER_WAY, in = t % (2 * UNDER_WAY);
    size_t size = n - first < UNDER_WAY ? n - first : UNDER_WAY;

    *ret_end = in >= size;
    return first + (*ret_end ? in - size : in);
}

static void put_port(sqlite3 *db, sqlite3_stmt *drop, sqlite3_stmt *port, const char *vm_id, size_t number)
{
    sqlite3_bind_text(drop, 1, vm_id, -1, SQLITE_STATIC);
    run(db, drop);
    sqlite3_bind_int64(port, 1, (sqlite3_int64)number);
    sqlite3_bind_text(port, 2, vm_id, -1, SQLITE_STATIC);
    run(db, port);
}

static void write_all(sqlite3 *db, struct rows *vms, struct rows *ops, struct rows *events, size_t commits)
{
    sqlite3_stmt *begin = prepare(db, "BEGIN IMMEDIATE"), *commit = prepare(db, "COMMIT");
    sqlite3_stmt *vm = prepare(db, vms->write), *op = prepare(db, ops->write), *event = prepare(db, events->write);
    sqlite3_stmt *drop = prepare(db, "DELETE FROM ports WHERE vm_id = ?1");
    sqlite3_stmt *port = prepare(db, "INSERT INTO ports SELECT 0, '127.0.0.1', ?1 + max(rowid), ?2 FROM vms");
    size_t n = vms->n, txs = 2 * n, event_at = 0, committed = 0;

    run(db, begin);
    for (size_t t = 0; t < txs; t++) {
        bool end;
        size_t i = create_of(t, n, &end);
        put(db, vm, vms, i);
        if (!end)
            put_port(db, drop, port, vms->at[i][0], 10000);
        put(db, op, ops, i);
        for (; event_at < events->n * (t + 1) / txs; event_at++)
            put(db, event, events, event_at);
        if ((t + 1) * commits / txs > committed || t + 1 == txs) {
            committed++;
            run(db, commit);
            if (t + 1 < txs)
                run(db, begin);
        }
    }
    sqlite3_stmt *all[] = {begin, commit, vm, op, event, drop, port};
    for (size_t i = 0; i < ARRAY_SIZE(all); i++)
        sqlite3_finalize(all[i]);
}

int main(int argc, char **argv)
{
    struct rows vms = {.read =
                           "SELECT id, name, doc, private_doc, destroyed_at FROM vms WHERE name GLOB ?1 ORDER BY id",
                       .write = "INSERT INTO vms VALUES (?1, ?2, ?3, ?4, ?5) ON CONFLICT (id) DO UPDATE SET name = ?2, "
                                "doc = ?3, private_doc = ?4, destroyed_at = ?5"};
    struct rows ops = {
        .read = "SELECT o.id, o.kind, o.vm_id, o.state, o.doc, o.created_at, o.finished_at FROM operations o "
                "JOIN vms v ON v.id = o.vm_id WHERE v.name GLOB ?1 ORDER BY o.id",
        .write = "INSERT INTO operations VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7) ON CONFLICT (id) DO UPDATE SET "
                 "state = ?4, doc = ?5, finished_at = ?7"};
    struct rows events = {.read =
                              "SELECT e.id, e.at, e.type, e.vm_id, e.doc FROM events e JOIN vms v ON v.id = e.vm_id "
                              "WHERE v.name GLOB ?1 ORDER BY e.id",
                          .write = "INSERT INTO events VALUES (?1, ?2, ?3, ?4, ?5)"};
    sqlite3 *source = NULL;
    char glob[64];

    if (argc != 5)
        die("usage", "sqlite_rows SOURCE-DB DIR PREFIX COMMITS");
    snprintf(glob, sizeof(glob), "%.40s-*", argv[3]);
    check(source, sqlite3_open_v2(argv[1], &source, SQLITE_OPEN_READWRITE, NULL), SQLITE_OK);
    load(source, &vms, glob);
    load(source, &ops, glob);
    load(source, &events, glob);
    sqlite3_close(source);
    if (ops.n != vms.n)
        die("source", "not one operation for each VM");
    sqlite3 *db = open_target(argv[2]);
    int64_t start = clock_mono_us();
    write_all(db, &vms, &ops, &events, strtoul(argv[4], NULL, 10));
    printf("%zu %.6f\n", vms.n, (double)(clock_mono_us() - start) / 1e6);
    sqlite3_close(db);
    return 0;
}
