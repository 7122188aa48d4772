/* store_bench.c - what the writer thread costs: the rows and commits of durable creates, by SQLite alone and by the
 * store.
 *
 *   store_bench [DIR [CREATES]]      (DIR on the disk to measure; default ., 20000 creates)
 *
 * A create is a VM, its operation, an idempotency key and two events.  The store has 32 transactions outstanding, as 32
 * connections would; SQLite alone commits each create by itself (the floor), and 32 at a time (the most a group could
 * save).  The last column is the store's rate against that line's. */
#include <errno.h>
#include <inttypes.h>
#include <semaphore.h>
#include <sqlite3.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/fd.h"
#include "base/mem.h"
#include "store/store.h"

enum { OUTSTANDING = 32, VM_DOC = 1500, OPERATION_DOC = 600, EVENT_DOC = 250 };

struct bench {
    char dir[256], path[280];
    char vm_doc[VM_DOC + 1], operation_doc[OPERATION_DOC + 1], event_doc[EVENT_DOC + 1];
    struct store *store;
    sem_t woken;
    unsigned creates, sent, done;
};

struct measured {
    double seconds;
    uint64_t commits;
};

static void die(const char *what, const char *why)
{
    fprintf(stderr, "store_bench: %s: %s\n", what, why);
    exit(1);
}

static void json(char *out, size_t len)
{
    memset(out, 'x', len);
    memcpy(out, "{\"doc\":\"", 8);
    memcpy(out + len - 2, "\"}", 3);
}

static void wake(void *arg)
{
    sem_post(&((struct bench *)arg)->woken);
}

static void open_store(struct bench *b)
{
    CLEANUP_ERROR struct error err = ERROR_INIT;

    if (store_open(b->dir, wake, b, &b->store, &err) < 0)
        die("open", err.message);
}

static void fresh(struct bench *b, const char *parent)
{
    snprintf(b->dir, sizeof(b->dir), "%.200s/store-bench-XXXXXX", parent);
    if (mkdtemp(b->dir) == NULL)
        die(b->dir, strerror(errno));
    snprintf(b->path, sizeof(b->path), "%s/vmmd.db", b->dir);
    open_store(b);
}

static void sweep(struct bench *b)
{
    CLEANUP_ERROR struct error err = ERROR_INIT;

    if (dir_remove(b->dir, &err) < 0)
        die("sweep", err.message);
}

static void create(struct bench *b);

static void created(void *arg, struct error *err)
{
    struct bench *b = arg;

    if (error_is_set(err))
        die("commit", err->message);
    b->done++;
    if (b->sent < b->creates)
        create(b);
}

static void create(struct bench *b)
{
    char id[40], name[24];
    unsigned n = b->sent++;
    struct store_tx *tx = store_tx_new(b->store);

    snprintf(id, sizeof(id), "019a0000-0000-7000-8000-%012u", n);
    snprintf(name, sizeof(name), "vm-%u", n);
    store_put_vm(tx, &(struct store_vm_row){id, name, b->vm_doc, "{}", 0});
    store_put_operation(tx, &(struct store_operation_row){id, "vm.create", id, "succeeded", b->operation_doc, n, n});
    store_put_key(tx, &(struct store_key_row){id, "0123456789abcdef", id, n});
    store_put_event(tx, 2 * n + 1, n, "vm.created", id, b->event_doc);
    store_put_event(tx, 2 * n + 2, n, "operation.finished", id, b->event_doc);
    store_commit(b->store, tx, created, b);
}

static struct measured by_store(struct bench *b, const char *parent)
{
    struct store_stats stats;

    fresh(b, parent);
    b->sent = b->done = 0;
    int64_t start = clock_mono_us();
    for (unsigned i = 0; i < OUTSTANDING; i++)
        create(b);
    while (b->done < b->creates) {
        sem_wait(&b->woken);
        store_dispatch(b->store);
    }
    int64_t took = clock_mono_us() - start;
    store_stats(b->store, &stats);
    store_close(b->store);
    sweep(b);
    return (struct measured){(double)took / 1e6, stats.commits};
}

static void check(sqlite3 *db, int rc, int want)
{
    if (rc != want)
        die("SQLite", sqlite3_errmsg(db));
}

static void step(sqlite3 *db, sqlite3_stmt *stmt)
{
    check(db, sqlite3_step(stmt), SQLITE_DONE);
    sqlite3_reset(stmt);
}

static sqlite3_stmt *prepare(sqlite3 *db, const char *sql)
{
    sqlite3_stmt *stmt = NULL;

    check(db, sqlite3_prepare_v2(db, sql, -1, &stmt, NULL), SQLITE_OK);
    return stmt;
}

static void text(sqlite3_stmt *stmt, int at, const char *s)
{
    sqlite3_bind_text(stmt, at, s, -1, SQLITE_STATIC);
}

static struct measured by_sqlite(struct bench *b, const char *parent, unsigned per_commit)
{
    sqlite3 *db = NULL;
    struct measured m = {0};

    fresh(b, parent);
    store_close(b->store); /* the schema is there */
    check(db, sqlite3_open(b->path, &db), SQLITE_OK);
    sqlite3_exec(db, "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA cache_size = -2048", NULL, NULL,
                 NULL);
    sqlite3_stmt *begin = prepare(db, "BEGIN IMMEDIATE"), *commit = prepare(db, "COMMIT");
    sqlite3_stmt *vm = prepare(db, "INSERT INTO vms VALUES (?1, ?2, ?3, '{}', 0)");
    sqlite3_stmt *op = prepare(db, "INSERT INTO operations VALUES (?1, 'vm.create', ?1, 'succeeded', ?2, ?3, ?3)");
    sqlite3_stmt *key = prepare(db, "INSERT INTO idempotency_keys VALUES (?1, '0123456789abcdef', ?1, ?2)");
    sqlite3_stmt *event = prepare(db, "INSERT INTO events VALUES (?1, ?2, 'operation.finished', ?3, ?4)");
    int64_t start = clock_mono_us();
    for (unsigned n = 0; n < b->creates; n++) {
        char id[40], name[24];
        snprintf(id, sizeof(id), "019a0000-0000-7000-8000-%012u", n);
        snprintf(name, sizeof(name), "vm-%u", n);
        if (n % per_commit == 0)
            step(db, begin);
        text(vm, 1, id);
        text(vm, 2, name);
        text(vm, 3, b->vm_doc);
        step(db, vm);
        text(op, 1, id);
        text(op, 2, b->operation_doc);
        sqlite3_bind_int64(op, 3, n);
        step(db, op);
        text(key, 1, id);
        sqlite3_bind_int64(key, 2, n);
        step(db, key);
        text(event, 3, id);
        text(event, 4, b->event_doc);
        sqlite3_bind_int64(event, 2, n);
        for (int i = 1; i <= 2; i++) {
            sqlite3_bind_int64(event, 1, 2 * n + (unsigned)i);
            step(db, event);
        }
        if (n % per_commit == per_commit - 1 || n + 1 == b->creates) {
            step(db, commit);
            m.commits++;
        }
    }
    m.seconds = (double)(clock_mono_us() - start) / 1e6;
    sqlite3_stmt *all[] = {begin, commit, vm, op, key, event};
    for (size_t i = 0; i < ARRAY_SIZE(all); i++)
        sqlite3_finalize(all[i]);
    sqlite3_close(db);
    sweep(b);
    return m;
}

static void line(const char *who, const struct bench *b, struct measured m, struct measured store)
{
    printf("%-34s %10.0f %10" PRIu64 " %12.1f %8.2f\n", who, b->creates / m.seconds, m.commits,
           (double)b->creates / (double)m.commits, m.seconds / store.seconds);
}

int main(int argc, char **argv)
{
    static struct bench b;
    const char *parent = argc > 1 ? argv[1] : ".";
    char grouped[64];

    b.creates = argc > 2 ? (unsigned)strtoul(argv[2], NULL, 10) : 20000;
    if (b.creates < OUTSTANDING)
        die("creates", "at least 32");
    json(b.vm_doc, VM_DOC);
    json(b.operation_doc, OPERATION_DOC);
    json(b.event_doc, EVENT_DOC);
    sem_init(&b.woken, 0, 0);
    struct measured store = by_store(&b, parent);
    unsigned group = (unsigned)((b.creates + store.commits - 1) / store.commits);
    struct measured same = by_sqlite(&b, parent, group), alone = by_sqlite(&b, parent, 1);
    struct measured most = by_sqlite(&b, parent, OUTSTANDING);
    printf("%-34s %10s %10s %12s %8s\n", "", "creates/s", "commits", "per commit", "store/it");
    line("store, 32 outstanding", &b, store, store);
    snprintf(grouped, sizeof(grouped), "SQLite alone, commits of %u", group);
    line(grouped, &b, same, store);
    line("SQLite alone, one by one", &b, alone, store);
    line("SQLite alone, commits of 32", &b, most, store);
    return 0;
}
