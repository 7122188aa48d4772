/* test_store.c - the durable store: order, groups, failures, damage, SIGKILL, a full disk. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <semaphore.h>
#include <signal.h>
#include <stdio.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <sqlite3.h>

#include "base/fd.h"
#include "base/mem.h"
#include "store/store.h"

#define FAR INT64_MAX

struct bed {
    char dir[64], path[96];
    struct store *store;
    sem_t woken;
};

struct result {
    unsigned calls;
    enum error_code code;
    char message[ERROR_MESSAGE_MAX];
    unsigned at; /* the how manieth callback it was */
};

static unsigned callbacks;
static uint64_t seed;

static uint32_t rnd(uint32_t below)
{
    seed = seed * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(seed >> 33) % below;
}

static void wake(void *arg)
{
    sem_post(&((struct bed *)arg)->woken);
}

static int reopen(struct bed *b, struct error *err)
{
    return store_open(b->dir, wake, b, &b->store, err);
}

static void must_open(struct bed *b)
{
    CLEANUP_ERROR struct error err = ERROR_INIT;

    if (reopen(b, &err) < 0)
        fail_msg("%s", err.message);
}

static void bed_init(struct bed *b)
{
    const char *tmp = getenv("TMPDIR");

    memset(b, 0, sizeof(*b));
    snprintf(b->dir, sizeof(b->dir), "%.30s/vmmd-store-XXXXXX", tmp != NULL ? tmp : "/tmp");
    assert_non_null(mkdtemp(b->dir));
    snprintf(b->path, sizeof(b->path), "%s/vmmd.db", b->dir);
    sem_init(&b->woken, 0, 0);
}

static int set_up(void **state)
{
    struct bed *b = calloc(1, sizeof(*b));

    bed_init(b);
    must_open(b);
    callbacks = 0;
    *state = b;
    return 0;
}

static int tear_down(void **state)
{
    struct bed *b = *state;
    CLEANUP_ERROR struct error err = ERROR_INIT;

    store_close(b->store);
    sem_destroy(&b->woken);
    assert_int_equal(dir_remove(b->dir, &err), 0);
    free(b);
    return 0;
}

static void close_store(struct bed *b)
{
    store_close(b->store);
    b->store = NULL;
}

static void on_done(void *arg, struct error *err)
{
    struct result *r = arg;

    r->calls++;
    r->code = err->code;
    r->at = callbacks++;
    snprintf(r->message, sizeof(r->message), "%s", err->message);
}

static bool turn(struct bed *b)
{
    struct timespec ts;

    clock_gettime(CLOCK_REALTIME, &ts);
    ts.tv_sec += 20;
    while (sem_timedwait(&b->woken, &ts) < 0)
        if (errno != EINTR)
            return false;
    store_dispatch(b->store);
    return true;
}

static void wait_for(struct bed *b, const unsigned *calls)
{
    while (*(const volatile unsigned *)calls == 0)
        if (!turn(b))
            fail_msg("no callback came");
}

static enum error_code commit(struct bed *b, struct store_tx *tx, struct result *ret)
{
    struct result r = {0};

    store_commit(b->store, tx, on_done, &r);
    wait_for(b, &r.calls);
    assert_int_equal(r.calls, 1);
    if (ret != NULL)
        *ret = r;
    return r.code;
}

static void put_vm(struct store_tx *tx, const char *id, const char *name, int64_t destroyed_at)
{
    store_put_vm(tx, &(struct store_vm_row){id, name, "{\"vcpus\":1}", "{\"secret\":true}", destroyed_at});
}

static void put_operation(struct store_tx *tx, const char *id, const char *vm, const char *state, int64_t finished)
{
    store_put_operation(tx, &(struct store_operation_row){id, "vm.start", vm, state, "{\"steps\":[]}", 5, finished});
}

/* What a load found, as one line. */
struct found {
    char text[8192];
    unsigned rows, stop_after;
};

static void note(struct found *f, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
static void note(struct found *f, const char *fmt, ...)
{
    size_t len = strlen(f->text);
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(f->text + len, sizeof(f->text) - len, fmt, ap);
    va_end(ap);
    f->rows++;
}

static int on_vm(void *arg, const struct store_vm_row *row, struct error *err)
{
    struct found *f = arg;

    assert_non_null(row->id);
    assert_non_null(row->name);
    assert_non_null(row->doc);
    note(f, "%s=%s,%s,%s,%lld;", row->id, row->name, row->doc, row->private_doc != NULL ? row->private_doc : "-",
         (long long)row->destroyed_at);
    return f->rows == f->stop_after ? error_set(err, ERR_IO, "enough") : 0;
}

static int on_operation(void *arg, const struct store_operation_row *row, struct error *err)
{
    (void)err;
    note(arg, "%s=%s,%s,%s,%s,%lld,%lld;", row->id, row->kind, row->vm_id != NULL ? row->vm_id : "-", row->state, row->doc,
         (long long)row->created_at, (long long)row->finished_at);
    return 0;
}

static int on_key(void *arg, const struct store_key_row *row, struct error *err)
{
    (void)err;
    note(arg, "%s=%s,%s,%lld;", row->key, row->fingerprint, row->operation_id, (long long)row->created_at);
    return 0;
}

static void on_operation_row(void *arg, const struct store_operation_row *row)
{
    note(arg, "%s ", row->id);
}

static void on_event_row(void *arg, const struct store_event_row *row)
{
    note(arg, "%lld:%s:%s:%s ", (long long)row->id, row->type, row->vm_id != NULL ? row->vm_id : "-", row->doc);
}

static unsigned vms(struct bed *b)
{
    CLEANUP_ERROR struct error err = ERROR_INIT;
    struct found f = {0};

    assert_int_equal(store_load_vms(b->store, on_vm, &f, &err), 0);
    return f.rows;
}

/* A second connection, for planting and for holding the write lock. */
static sqlite3 *other(struct bed *b)
{
    sqlite3 *db = NULL;

    assert_int_equal(sqlite3_open(b->path, &db), SQLITE_OK);
    return db;
}

static void sql(sqlite3 *db, const char *text)
{
    char *message = NULL;

    if (sqlite3_exec(db, text, NULL, NULL, &message) != SQLITE_OK)
        fail_msg("%s: %s", text, message);
}

static void plant(struct bed *b, const char *text)
{
    sqlite3 *db = other(b);

    sql(db, text);
    sqlite3_close(db);
}

static void rows_come_back(void **state)
{
    struct bed *b = *state;
    CLEANUP_ERROR struct error err = ERROR_INIT;
    struct found f = {0};
    struct stat st;

    struct store_tx *tx = store_tx_new(b->store);
    put_vm(tx, "b", "web", 0);
    store_put_vm(tx, &(struct store_vm_row){"a", "\xc3\xa4'; DROP TABLE vms; --", "{}", NULL, 7});
    put_operation(tx, "o2", NULL, "running", 0);
    put_operation(tx, "o1", "b", "running", 0);
    put_operation(tx, "o3", "b", "succeeded", 9);
    store_put_key(tx, &(struct store_key_row){"k", "print", "o1", 3});
    assert_int_equal(commit(b, tx, NULL), ERR_NONE);
    tx = store_tx_new(b->store);
    store_put_vm(tx, &(struct store_vm_row){"b", "www", "{\"vcpus\":2}", "", 0});
    assert_int_equal(commit(b, tx, NULL), ERR_NONE);
    close_store(b);
    assert_int_equal(stat(b->path, &st), 0);
    assert_int_equal(st.st_mode & 07777, 0600);
    must_open(b);
    assert_int_equal(store_load_vms(b->store, on_vm, &f, &err), 0);
    assert_string_equal(f.text, "a=\xc3\xa4'; DROP TABLE vms; --,{},-,7;b=www,{\"vcpus\":2},,0;");
    f = (struct found){0};
    assert_int_equal(store_load_operations(b->store, on_operation, &f, &err), 0);
    assert_string_equal(f.text, "o1=vm.start,b,running,{\"steps\":[]},5,0;o2=vm.start,-,running,{\"steps\":[]},5,0;");
    f = (struct found){0};
    assert_int_equal(store_load_keys(b->store, on_key, &f, &err), 0);
    assert_string_equal(f.text, "k=print,o1,3;");
    f = (struct found){.stop_after = 1};
    assert_int_equal(store_load_vms(b->store, on_vm, &f, &err), -1);
    assert_string_equal(err.message, "enough");
    assert_int_equal(f.rows, 1);
}

static void on_found(void *arg, const struct store_operation_row *row, struct error *err)
{
    assert_false(error_is_set(err));
    note(arg, "%s/%s", row != NULL ? row->id : "none", row != NULL ? row->state : "");
}

static void operations_are_read(void **state)
{
    struct bed *b = *state;
    struct found f = {0};
    struct result r = {0};
    const struct {
        const char *before, *state, *vm;
        unsigned limit;
        const char *want;
    } cases[] = {
        {"", NULL, NULL, 100, "o9 o8 o7 o6 o5 o4 o3 o2 o1 o0 "}, {NULL, NULL, NULL, 2, "o9 o8 "},
        {"o3", NULL, NULL, 100, "o2 o1 o0 "},                     {"o3", "failed", NULL, 100, "o2 o0 "},
        {NULL, "failed", "v1", 100, "o6 o0 "},                    {"o6", NULL, "v1", 100, "o3 o0 "},
        {NULL, NULL, NULL, 0, ""},                                {NULL, "x", "v1", 9, ""},
    };

    struct store_tx *tx = store_tx_new(b->store);
    for (int i = 0; i < 10; i++) {
        char id[] = {'o', (char)('0' + i), '\0'};
        put_operation(tx, id, i % 3 == 0 ? "v1" : NULL, i % 2 == 0 ? "failed" : "succeeded", 9);
    }
    store_commit(b->store, tx, NULL, NULL); /* reads see it without waiting */
    assert_non_null(store_read_operation(b->store, "o4", on_found, &f));
    wait_for(b, &f.rows);
    assert_string_equal(f.text, "o4/failed");
    f = (struct found){0};
    assert_non_null(store_read_operation(b->store, "nope", on_found, &f));
    wait_for(b, &f.rows);
    assert_string_equal(f.text, "none/");
    for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
        f = (struct found){0};
        r = (struct result){0};
        assert_non_null(store_read_operations(b->store, cases[i].before, cases[i].state, cases[i].vm, cases[i].limit,
                                              on_operation_row, NULL, &f));
        store_commit(b->store, store_tx_new(b->store), on_done, &r); /* comes after it */
        wait_for(b, &r.calls);
        assert_string_equal(f.text, cases[i].want);
    }
}

static void events_are_read(void **state)
{
    struct bed *b = *state;
    const struct {
        int64_t since;
        const char *vm, *glob;
        bool newest;
        unsigned limit;
        const char *want;
    } cases[] = {
        {0, NULL, NULL, false, 2, "1:vm.a:v:{} 2:image.b:-:{} "},
        {3, NULL, NULL, false, 9, "4:image.b:-:{} 5:vm.a:v:{} "},
        {0, NULL, "vm.*", false, 9, "1:vm.a:v:{} 3:vm.a:v:{} 5:vm.a:v:{} "},
        {0, "v", NULL, true, 2, "5:vm.a:v:{} 3:vm.a:v:{} "},
        {1, "v", "vm.?", false, 9, "3:vm.a:v:{} 5:vm.a:v:{} "},
        {4, NULL, "image*", true, 9, ""},
        {0, NULL, NULL, true, 1, "5:vm.a:v:{} "},
    };

    struct store_tx *tx = store_tx_new(b->store);
    for (int i = 1; i <= 5; i++)
        store_put_event(tx, i, 100 + i, i % 2 != 0 ? "vm.a" : "image.b", i % 2 != 0 ? "v" : NULL, "{}");
    store_commit(b->store, tx, NULL, NULL);
    for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
        struct found f = {0};
        struct result r = {0};
        assert_non_null(store_read_events(b->store, cases[i].since, cases[i].vm, cases[i].glob, cases[i].newest,
                                          cases[i].limit, on_event_row, NULL, &f));
        store_commit(b->store, store_tx_new(b->store), on_done, &r);
        wait_for(b, &r.calls);
        assert_string_equal(f.text, cases[i].want);
    }
}

struct cancelling {
    struct store_read *read;
    unsigned rows;
};

static void cancel_at_first(void *arg, const struct store_event_row *row)
{
    struct cancelling *c = arg;

    (void)row;
    c->rows++;
    store_read_cancel(c->read);
}

static void never(void *arg, struct error *err)
{
    (void)arg;
    (void)err;
    fail_msg("a cancelled read called back");
}

static void a_read_is_cancelled(void **state)
{
    struct bed *b = *state;
    struct cancelling before = {0}, during = {0};
    struct result r = {0};

    struct store_tx *tx = store_tx_new(b->store);
    for (int i = 1; i <= 5; i++)
        store_put_event(tx, i, i, "vm.a", NULL, "{}");
    store_commit(b->store, tx, NULL, NULL);
    before.read = store_read_events(b->store, 0, NULL, NULL, false, 9, cancel_at_first, never, &before);
    during.read = store_read_events(b->store, 0, NULL, NULL, false, 9, cancel_at_first, never, &during);
    store_read_cancel(before.read);
    store_commit(b->store, store_tx_new(b->store), on_done, &r);
    wait_for(b, &r.calls);
    assert_int_equal(before.rows, 0);
    assert_int_equal(during.rows, 1);
}

/* With the write lock held elsewhere, all that is queued meanwhile must go in at most two commits (the one that waits has
 * taken what was there), the callbacks in order, and the one bad tx fails alone. */
static void a_group_is_one_commit(void **state)
{
    enum { TXS = 300, BAD = 150 };
    struct bed *b = *state;
    static struct result r[TXS];
    struct store_stats before, after;
    char id[16];

    memset(r, 0, sizeof(r));
    sqlite3 *db = other(b);
    sql(db, "BEGIN IMMEDIATE");
    store_stats(b->store, &before);
    for (int i = 0; i < TXS; i++) {
        struct store_tx *tx = store_tx_new(b->store);
        snprintf(id, sizeof(id), "id%04d", i);
        put_vm(tx, id, id, 0);
        put_operation(tx, id, id, "running", 0);
        if (i == BAD)
            put_vm(tx, "other", "id0000", 0);
        store_commit(b->store, tx, on_done, &r[i]);
    }
    store_stats(b->store, &after);
    assert_int_equal(after.queued, TXS);
    sql(db, "COMMIT");
    sqlite3_close(db);
    wait_for(b, &r[TXS - 1].calls);
    store_stats(b->store, &after);
    assert_in_range(after.commits - before.commits, 1, 2);
    assert_int_equal(after.transactions - before.transactions, TXS - 1);
    assert_int_equal(after.failed - before.failed, 1);
    assert_int_equal(after.queued, 0);
    assert_true(after.max_commit_us >= after.last_commit_us);
    for (unsigned i = 0; i < TXS; i++) {
        assert_int_equal(r[i].calls, 1);
        assert_int_equal(r[i].at, i);
        assert_int_equal(r[i].code, i == BAD ? ERR_DAEMON_INTERNAL : ERR_NONE);
    }
    assert_non_null(strstr(r[BAD].message, "vms.name"));
    assert_int_equal(vms(b), TXS - 1);
}

static void a_name_is_unique_among_the_living(void **state)
{
    struct bed *b = *state;
    struct result r;

    struct store_tx *tx = store_tx_new(b->store);
    put_vm(tx, "1", "web", 0);
    assert_int_equal(commit(b, tx, NULL), ERR_NONE);
    tx = store_tx_new(b->store);
    put_vm(tx, "2", "web", 0);
    assert_int_equal(commit(b, tx, &r), ERR_DAEMON_INTERNAL);
    assert_non_null(strstr(r.message, "UNIQUE constraint failed: vms.name"));
    tx = store_tx_new(b->store);
    put_vm(tx, "1", "web", 99);
    put_vm(tx, "2", "web", 0);
    assert_int_equal(commit(b, tx, NULL), ERR_NONE);
    tx = store_tx_new(b->store);
    put_vm(tx, "3", NULL, 0);
    assert_int_equal(commit(b, tx, &r), ERR_DAEMON_INTERNAL);
    assert_non_null(strstr(r.message, "NOT NULL constraint failed: vms.name"));
    assert_int_equal(vms(b), 2);
}

static void a_port_has_one_owner(void **state)
{
    struct bed *b = *state;
    struct result r;

    struct store_tx *tx = store_tx_new(b->store);
    store_put_port(tx, false, "0.0.0.0", 80, "1"); /* before its VM: any order within a tx */
    store_put_port(tx, true, "0.0.0.0", 80, "1");
    put_vm(tx, "1", "web", 0);
    put_vm(tx, "2", "db", 0);
    assert_int_equal(commit(b, tx, NULL), ERR_NONE);
    tx = store_tx_new(b->store);
    store_put_port(tx, false, "0.0.0.0", 80, "2");
    assert_int_equal(commit(b, tx, &r), ERR_DAEMON_INTERNAL);
    assert_non_null(strstr(r.message, "ports.udp, ports.host_ip, ports.port"));
    tx = store_tx_new(b->store);
    store_put_port(tx, false, "0.0.0.0", 81, "nobody");
    assert_int_equal(commit(b, tx, &r), ERR_DAEMON_INTERNAL);
    assert_non_null(strstr(r.message, "ports.vm_id"));
    tx = store_tx_new(b->store);
    store_drop_ports(tx, "1");
    store_put_port(tx, false, "0.0.0.0", 80, "2");
    assert_int_equal(commit(b, tx, NULL), ERR_NONE);
}

static void pruning_keeps_what_counts(void **state)
{
    struct bed *b = *state;
    CLEANUP_ERROR struct error err = ERROR_INIT;
    struct found f = {0};
    struct result r = {0};
    int64_t oldest = -1, newest = -1;

    assert_int_equal(store_event_range(b->store, &oldest, &newest, &err), 0);
    assert_int_equal(oldest, 0);
    assert_int_equal(newest, 0);
    struct store_tx *tx = store_tx_new(b->store);
    put_vm(tx, "dead-old", "a", 10);
    put_vm(tx, "dead-new", "a", 20);
    put_vm(tx, "alive", "a", 0);
    put_operation(tx, "old", NULL, "failed", 10);
    put_operation(tx, "new", NULL, "failed", 20);
    put_operation(tx, "open", NULL, "running", 0);
    store_put_key(tx, &(struct store_key_row){"of-old", "p", "old", 100});
    store_put_key(tx, &(struct store_key_row){"aged", "p", "new", 14});
    store_put_key(tx, &(struct store_key_row){"kept", "p", "new", 15});
    for (int i = 1; i <= 9; i++)
        store_put_event(tx, i, i, "vm.a", NULL, "{}");
    store_prune(tx, 15, 15, 15, 3);
    assert_int_equal(commit(b, tx, NULL), ERR_NONE);
    assert_int_equal(store_load_vms(b->store, on_vm, &f, &err), 0);
    assert_int_equal(f.rows, 2);
    assert_null(strstr(f.text, "dead-old"));
    f = (struct found){0};
    assert_int_equal(store_load_keys(b->store, on_key, &f, &err), 0);
    assert_string_equal(f.text, "kept=p,new,15;");
    f = (struct found){0};
    store_read_operations(b->store, NULL, NULL, NULL, 9, on_operation_row, NULL, &f);
    assert_int_equal(commit(b, store_tx_new(b->store), &r), ERR_NONE);
    assert_string_equal(f.text, "open new ");
    assert_int_equal(store_event_range(b->store, &oldest, &newest, &err), 0);
    assert_int_equal(oldest, 7);
    assert_int_equal(newest, 9);
    tx = store_tx_new(b->store);
    store_prune(tx, FAR, FAR, FAR, 0);
    store_prune(tx, FAR, FAR, FAR, 0); /* and once more, with nothing left */
    assert_int_equal(commit(b, tx, NULL), ERR_NONE);
    close_store(b);
    must_open(b);
    assert_int_equal(store_event_range(b->store, &oldest, &newest, &err), 0);
    assert_int_equal(oldest, 0);
    assert_int_equal(newest, 9);
    assert_int_equal(vms(b), 1);
}

static void closing_writes_what_is_queued(void **state)
{
    struct bed *b = *state;
    char id[16];

    for (int i = 0; i < 1500; i++) {
        struct store_tx *tx = store_tx_new(b->store);
        snprintf(id, sizeof(id), "id%04d", i);
        put_vm(tx, id, id, 0);
        store_commit(b->store, tx, never, NULL);
    }
    store_read_events(b->store, 0, NULL, NULL, false, 9, on_event_row, never, NULL);
    store_tx_free(store_tx_new(b->store));
    store_tx_free(NULL);
    close_store(b);
    must_open(b);
    assert_int_equal(vms(b), 1500);
}

struct chain {
    struct bed *b;
    unsigned left, calls;
};

static void chain_on(void *arg, struct error *err)
{
    struct chain *c = arg;

    assert_false(error_is_set(err));
    store_dispatch(c->b->store); /* must not recurse */
    if (c->left-- > 0)
        store_commit(c->b->store, store_tx_new(c->b->store), chain_on, c);
    else
        c->calls++;
}

static void a_callback_may_commit(void **state)
{
    struct bed *b = *state;
    struct chain c = {b, 50, 0};

    store_commit(b->store, store_tx_new(b->store), chain_on, &c);
    wait_for(b, &c.calls);
    assert_int_equal(c.calls, 1);
}

static void refused(struct bed *b, const char *want)
{
    CLEANUP_ERROR struct error err = ERROR_INIT;

    assert_int_equal(reopen(b, &err), -1);
    assert_int_equal(err.code, ERR_DAEMON_INTERNAL);
    if (strstr(err.message, want) == NULL)
        fail_msg("'%s' lacks '%s'", err.message, want);
    assert_null(strchr(err.message, '\n'));
    b->store = NULL;
}

static void strange_files_are_refused(void **state)
{
    struct bed *b = *state;
    CLEANUP_ERROR struct error err = ERROR_INIT;

    close_store(b);
    plant(b, "PRAGMA user_version = 42");
    refused(b, "has schema 42, and this vmmd knows schemas up to 1: it needs a vmmd that knows schema 42");
    plant(b, "PRAGMA user_version = 1; DROP TABLE vms");
    refused(b, "cannot read the database's schema");
    plant(b, "PRAGMA user_version = 0");
    refused(b, "damaged");
    unlink(b->path);
    plant(b, "CREATE TABLE cats (name)");
    refused(b, "not one of vmmd");
    assert_int_equal(file_write(b->path, "hello, this is a text file\n", 27, 0600, &err), 0);
    refused(b, "is no database");
    assert_int_equal(file_write(b->path, "SQLite format 3", 16, 0600, &err), 0);
    refused(b, "is cut short");
    unlink(b->path);
    assert_int_equal(mkdir(b->path, 0700), 0);
    refused(b, "is no regular file");
    rmdir(b->path);
    assert_int_equal(file_write(b->path, "", 0, 0644, &err), 0); /* killed in its first moment */
    must_open(b);
    struct stat st;
    assert_int_equal(stat(b->path, &st), 0);
    assert_int_equal(st.st_mode & 07777, 0600);
    close_store(b);
    snprintf(b->dir + strlen(b->dir), 3, "/x");
    assert_int_equal(reopen(b, &err), -1);
    assert_int_equal(err.code, ERR_IO);
    b->dir[strlen(b->dir) - 2] = '\0';
}

/* Uses everything; nothing but errors may come of a damaged file. */
static void exercise(struct bed *b, unsigned *refusals)
{
    CLEANUP_ERROR struct error err = ERROR_INIT, load_err = ERROR_INIT;
    struct found f = {0};
    struct result r = {0};
    int64_t oldest, newest;

    if (reopen(b, &err) < 0) {
        b->store = NULL;
        assert_true(err.message[0] != '\0');
        ++*refusals;
        return;
    }
    int rc = store_load_vms(b->store, on_vm, &f, &load_err);
    rc |= store_load_operations(b->store, on_operation, &f, &load_err);
    rc |= store_load_keys(b->store, on_key, &f, &load_err);
    rc |= store_event_range(b->store, &oldest, &newest, &load_err);
    assert_int_equal(rc < 0, error_is_set(&load_err));
    *refusals += rc < 0;
    store_read_operations(b->store, NULL, "failed", NULL, 1000, on_operation_row, NULL, &f);
    store_read_events(b->store, 0, "v", NULL, true, 1000, on_event_row, NULL, &f);
    struct store_tx *tx = store_tx_new(b->store);
    put_vm(tx, "x", "x", 0);
    put_operation(tx, "x", "x", "failed", 0);
    store_put_event(tx, 5000, 1, "vm.a", "v", "{}");
    store_prune(tx, 3, 3, 3, 50);
    commit(b, tx, &r);
    close_store(b);
}

static void on_line(void *arg, const char *line)
{
    struct found *f = arg;

    assert_null(strchr(line, '\n'));
    if (strlen(f->text) + strlen(line) < 4000)
        note(f, "%s|", line);
}

static void damage_is_survived(void **state)
{
    struct bed *b = *state;
    CLEANUP_ERROR struct error err = ERROR_INIT;
    CLEANUP_FREE char *good = NULL;
    size_t len;
    char id[16];
    unsigned refusals = 0, truncated = 0;

    struct store_tx *tx = store_tx_new(b->store);
    for (int i = 0; i < 200; i++) {
        snprintf(id, sizeof(id), "id%04d", i);
        put_vm(tx, id, id, i % 3);
        put_operation(tx, id, id, "failed", i % 2);
        store_put_key(tx, &(struct store_key_row){id, "print", id, i});
        store_put_event(tx, i + 1, i, "vm.a", "v", "{}");
    }
    assert_int_equal(commit(b, tx, NULL), ERR_NONE);
    close_store(b);
    assert_int_equal(file_read(b->path, 16 << 20, &good, &len, &err), 0);
    for (int round = 0; round < 60; round++) {
        bool cut = round % 3 == 0;
        char *bad = malloc(len);
        memcpy(bad, good, len);
        size_t keep = cut ? 1 + rnd((uint32_t)len - 1) : len;
        for (uint32_t n = cut ? 0 : 1 + rnd(300); n > 0; n--)
            bad[rnd((uint32_t)(n % 3 == 0 ? 4096 : len))] = (char)rnd(256);
        assert_int_equal(file_write(b->path, bad, keep, 0600, &err), 0);
        free(bad);
        unsigned was = refusals;
        exercise(b, &refusals);
        truncated += cut && refusals > was;
        CLEANUP_ERROR struct error check_err = ERROR_INIT;
        struct found lines = {0};
        if (store_check(b->dir, on_line, &lines, &check_err) < 0)
            assert_true(check_err.message[0] != '\0');
        char side[128];
        snprintf(side, sizeof(side), "%s-wal", b->path);
        unlink(side);
        snprintf(side, sizeof(side), "%s-shm", b->path);
        unlink(side);
    }
    assert_int_equal(truncated, 20); /* no cut goes unnoticed */
    unlink(b->path);
}

static void checking_finds_what_is_planted(void **state)
{
    struct bed *b = *state;
    CLEANUP_ERROR struct error err = ERROR_INIT;
    struct found f = {0};
    struct stat st;
    char side[128];

    struct store_tx *tx = store_tx_new(b->store);
    put_vm(tx, "good", "web", 0);
    put_vm(tx, "evil", "db", 0);
    store_put_vm(tx, &(struct store_vm_row){"plain", "plain", "{}", NULL, 0});
    store_put_event(tx, 1, 1, "vm.a", NULL, "{}");
    assert_int_equal(commit(b, tx, NULL), ERR_NONE);
    assert_int_equal(store_check(b->dir, on_line, &f, &err), 0); /* beside a running vmmd */
    assert_non_null(strstr(f.text, "schema: 1|"));
    assert_non_null(strstr(f.text, "|VMs: 3|"));
    close_store(b);
    snprintf(side, sizeof(side), "%s-wal", b->path);
    assert_int_equal(stat(side, &st), -1); /* a clean end leaves one file */
    plant(b, "UPDATE vms SET doc = '{\"vcpus\":' WHERE id = 'evil'");
    f = (struct found){0};
    assert_int_equal(store_check(b->dir, on_line, &f, &err), -1);
    assert_int_equal(err.code, ERR_DAEMON_INTERNAL);
    assert_non_null(strstr(err.message, "1 finding"));
    assert_non_null(strstr(f.text, "bad VM: evil: its document is no JSON|"));
    error_done(&err);
    plant(b, "UPDATE vms SET doc = '{}'; INSERT INTO ports VALUES (0, '::', 1, 'ghost')");
    f = (struct found){0};
    assert_int_equal(store_check(b->dir, on_line, &f, &err), -1);
    assert_non_null(strstr(f.text, "broken reference: ports"));
    error_done(&err);
    plant(b, "DELETE FROM ports");
    f = (struct found){0};
    assert_int_equal(store_check(b->dir, on_line, &f, &err), 0);
    plant(b, "PRAGMA user_version = 9");
    assert_int_equal(store_check(b->dir, on_line, &f, &err), -1);
    assert_non_null(strstr(err.message, "knows schema 9"));
}

struct acked {
    int fd;
    uint32_t id;
};

static void acknowledge(void *arg, struct error *err)
{
    struct acked *a = arg;

    if (error_is_set(err) || write(a->fd, &a->id, sizeof(a->id)) != sizeof(a->id))
        _exit(3);
}

/* Commits for ever with 16 outstanding, and tells which are durable. */
static void commit_until_killed(struct bed *b, int fd, uint32_t first)
{
    static struct acked slots[4096];
    struct pollfd gone = {.fd = fd};
    char id[32];

    must_open(b);
    for (uint32_t n = 0; n < ARRAY_SIZE(slots) && (gone.revents & POLLERR) == 0; n++) {
        struct acked *a = &slots[n];
        *a = (struct acked){fd, first + n};
        struct store_tx *tx = store_tx_new(b->store);
        snprintf(id, sizeof(id), "%010u", a->id);
        put_vm(tx, id, id, 0);
        put_operation(tx, id, id, "running", 0);
        store_commit(b->store, tx, acknowledge, a);
        if (n % 16 == 15 && !turn(b))
            _exit(4);
        poll(&gone, 1, 0);
    }
    pause();
    _exit(5);
}

static int mark_vm(void *arg, const struct store_vm_row *row, struct error *err)
{
    bool *seen = arg;

    (void)err;
    seen[strtoul(row->id, NULL, 10)] = true;
    return 0;
}

static void acknowledged_is_durable(void **state)
{
    enum { ROUNDS = 20, PER_ROUND = 4096 };
    struct bed *b = *state;
    CLEANUP_FREE bool *acked = mem_zalloc(ROUNDS * PER_ROUND), *seen = mem_zalloc(ROUNDS * PER_ROUND);
    CLEANUP_ERROR struct error err = ERROR_INIT;
    unsigned total = 0;

    close_store(b);
    for (uint32_t round = 0; round < ROUNDS; round++) {
        int fds[2];
        assert_int_equal(pipe2(fds, O_CLOEXEC), 0);
        pid_t pid = fork();
        assert_true(pid >= 0);
        if (pid == 0) {
            fd_close(fds[0]);
            commit_until_killed(b, fds[1], round * PER_ROUND);
        }
        fd_close(fds[1]);
        uint32_t id, after = 1 + rnd(200); /* not before some are acknowledged: a slow machine must prove something too */
        for (uint32_t n = 0; n < after && read(fds[0], &id, sizeof(id)) == sizeof(id); n++, total++)
            acked[id] = true;
        usleep(rnd(3000));
        kill(pid, SIGKILL);
        int status;
        assert_int_equal(waitpid(pid, &status, 0), pid);
        assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
        while (read(fds[0], &id, sizeof(id)) == sizeof(id)) {
            acked[id] = true;
            total++;
        }
        fd_close(fds[0]);
        must_open(b);
        memset(seen, 0, ROUNDS * PER_ROUND);
        assert_int_equal(store_load_vms(b->store, mark_vm, seen, &err), 0);
        for (uint32_t i = 0; i < ROUNDS * PER_ROUND; i++)
            if (acked[i] && !seen[i])
                fail_msg("round %u: %u was acknowledged and is gone", round, i);
        close_store(b);
    }
    assert_true(total >= ROUNDS);
    struct found f = {0};
    assert_int_equal(store_check(b->dir, on_line, &f, &err), 0);
}

/* Commits until the disk refuses; returns how many were stored before, and how many after `relieve`. */
static void fill(struct bed *b, void (*relieve)(const char *dir))
{
    CLEANUP_FREE char *doc = mem_zalloc(20001);
    CLEANUP_ERROR struct error err = ERROR_INIT;
    struct result r = {0};
    unsigned stored = 0;
    char id[16];

    memset(doc, '7', 20000);
    for (int i = 0; i < 500 && r.code == ERR_NONE; i++) {
        struct store_tx *tx = store_tx_new(b->store);
        snprintf(id, sizeof(id), "id%04d", i);
        store_put_vm(tx, &(struct store_vm_row){id, id, doc, NULL, 0});
        stored += commit(b, tx, &r) == ERR_NONE;
    }
    assert_true(r.code == ERR_IO || r.code == ERR_HOST_DISK_FULL);
    assert_true(stored > 0);
    assert_int_equal(vms(b), stored);
    relieve(b->dir);
    struct store_tx *tx = store_tx_new(b->store);
    store_put_vm(tx, &(struct store_vm_row){"late", "late", doc, NULL, 0});
    assert_int_equal(commit(b, tx, NULL), ERR_NONE);
    close_store(b);
    must_open(b);
    assert_int_equal(vms(b), stored + 1);
    struct found f = {0};
    assert_int_equal(store_check(b->dir, on_line, &f, &err), 0);
}

static void lift_limit(const char *dir)
{
    struct rlimit limit;

    (void)dir;
    getrlimit(RLIMIT_FSIZE, &limit);
    limit.rlim_cur = limit.rlim_max;
    setrlimit(RLIMIT_FSIZE, &limit);
}

static void a_full_disk_is_survived(void **state)
{
    struct rlimit limit;

    signal(SIGXFSZ, SIG_IGN);
    getrlimit(RLIMIT_FSIZE, &limit);
    limit.rlim_cur = 400000;
    setrlimit(RLIMIT_FSIZE, &limit);
    fill(*state, lift_limit);
    signal(SIGXFSZ, SIG_DFL);
}

static void delete_ballast(const char *dir)
{
    char path[96];

    snprintf(path, sizeof(path), "%s/ballast", dir);
    assert_int_equal(unlink(path), 0);
}

/* A real ENOSPC, where a tmpfs may be mounted (root, in a mount namespace of its own). */
static void a_full_file_system_is_survived(void **state)
{
    struct bed *b = *state;
    CLEANUP_ERROR struct error err = ERROR_INIT;
    int status;

    close_store(b);
    pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        char path[96];
        if (unshare(CLONE_NEWNS) < 0 || mount("none", "/", "none", MS_REC | MS_PRIVATE, NULL) < 0 ||
            mount("none", b->dir, "tmpfs", 0, "size=2m") < 0)
            _exit(77);
        snprintf(path, sizeof(path), "%s/ballast", b->dir);
        if (file_write(path, b, sizeof(*b), 0600, &err) < 0 || truncate(path, 0) < 0)
            _exit(1);
        int fd = open(path, O_WRONLY | O_CLOEXEC);
        if (posix_fallocate(fd, 0, 1 << 20) != 0)
            _exit(1);
        fd_close(fd);
        must_open(b);
        fill(b, delete_ballast);
        close_store(b);
        _exit(0);
    }
    assert_int_equal(waitpid(pid, &status, 0), pid);
    if (WIFEXITED(status) && WEXITSTATUS(status) == 77)
        skip();
    assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

/* Fails each allocation of building and committing in turn: the tx is whole or refused, and the callback always comes. */
static void memory_may_be_short(void **state)
{
    struct bed *b = *state;
    char id[16];
    size_t made = 1;

    for (size_t nth = 1; nth <= made; nth++) {
        struct result r = {0}, read_result = {0};
        unsigned before = vms(b);
        snprintf(id, sizeof(id), "id%04zu", nth);
        mem_fail_nth(nth);
        struct store_tx *tx = store_tx_new(b->store);
        put_vm(tx, id, id, 0);
        put_operation(tx, id, id, "running", 0);
        store_put_key(tx, &(struct store_key_row){id, "p", id, 1});
        store_put_event(tx, (int64_t)nth, 1, "vm.a", id, "{}");
        store_put_port(tx, false, "::", (uint16_t)nth, id);
        store_commit(b->store, tx, on_done, &r);
        bool asked = store_read_events(b->store, 0, NULL, NULL, false, 100, NULL, on_done, &read_result) != NULL;
        wait_for(b, &r.calls);
        if (asked)
            wait_for(b, &read_result.calls);
        made = mem_fail_nth(0);
        assert_int_equal(r.calls, 1);
        assert_int_equal(vms(b), before + (r.code == ERR_NONE));
        assert_true(r.code == ERR_NONE || r.message[0] != '\0');
    }
    for (size_t i = 0; i < 3; i++) { /* no tx at all, and no memory for saying so: a spare carries the news */
        struct result r[2] = {0};
        mem_fail_nth(1);
        store_commit(b->store, NULL, on_done, &r[0]);
        mem_fail_nth(0);
        store_commit(b->store, NULL, on_done, &r[1]);
        wait_for(b, &r[1].calls);
        assert_int_equal(r[0].code, ERR_DAEMON_INTERNAL);
        assert_int_equal(r[1].code, ERR_DAEMON_INTERNAL);
    }
}

static void ten_thousand_load(void **state)
{
    struct bed *b = *state;
    CLEANUP_ERROR struct error err = ERROR_INIT;
    struct timespec from, to;
    bool *seen = mem_zalloc(10000);
    char id[32], doc[1500];

    memset(doc, '1', sizeof(doc) - 1);
    doc[sizeof(doc) - 1] = '\0';
    struct store_tx *tx = store_tx_new(b->store);
    for (int i = 0; i < 10000; i++) {
        snprintf(id, sizeof(id), "%d", i);
        store_put_vm(tx, &(struct store_vm_row){id, id, doc, NULL, 0});
    }
    assert_int_equal(commit(b, tx, NULL), ERR_NONE);
    close_store(b);
    clock_gettime(CLOCK_MONOTONIC, &from);
    must_open(b);
    assert_int_equal(store_load_vms(b->store, mark_vm, seen, &err), 0);
    clock_gettime(CLOCK_MONOTONIC, &to);
    for (int i = 0; i < 10000; i++)
        assert_true(seen[i]);
    print_message("10,000 VMs loaded in %.1f ms\n",
                  (double)(to.tv_sec - from.tv_sec) * 1e3 + (double)(to.tv_nsec - from.tv_nsec) / 1e6);
    mem_free(seen);
}

#define TEST(f) cmocka_unit_test_setup_teardown(f, set_up, tear_down)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(rows_come_back),
        TEST(operations_are_read),
        TEST(events_are_read),
        TEST(a_read_is_cancelled),
        TEST(a_group_is_one_commit),
        TEST(a_name_is_unique_among_the_living),
        TEST(a_port_has_one_owner),
        TEST(pruning_keeps_what_counts),
        TEST(closing_writes_what_is_queued),
        TEST(a_callback_may_commit),
        TEST(strange_files_are_refused),
        TEST(damage_is_survived),
        TEST(checking_finds_what_is_planted),
        TEST(acknowledged_is_durable),
        TEST(a_full_disk_is_survived),
        TEST(a_full_file_system_is_survived),
        TEST(memory_may_be_short),
        TEST(ten_thousand_load),
    };
    const char *given = getenv("VMMD_TEST_SEED");

    seed = given != NULL ? strtoull(given, NULL, 10) : (uint64_t)time(NULL);
    print_message("VMMD_TEST_SEED=%llu\n", (unsigned long long)seed);
    return cmocka_run_group_tests_name("store", tests, NULL, NULL);
}
