/* test_store.c - the durable store: rows, order, groups, constraints, reads, pruning. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include <stdio.h>
#include <sys/stat.h>
#include <time.h>

#include "base/mem.h"
#include "store_bed.h"

static void rows_come_back(void **state)
{
    struct bed *b = *state;
    CLEANUP_ERROR struct error err = ERROR_INIT;
    struct found f = {0};
    struct stat st;

    struct store_tx *tx = store_tx_new(b->store);
    bed_put_vm(tx, "b", "web", 0);
    store_put_vm(tx, &(struct store_vm_row){"a", "\xc3\xa4'; DROP TABLE vms; --", "{}", NULL, 7});
    bed_put_operation(tx, "o2", NULL, "running", 0);
    bed_put_operation(tx, "o1", "b", "running", 0);
    bed_put_operation(tx, "o3", "b", "succeeded", 9);
    store_put_key(tx, &(struct store_key_row){"k", "print", "o1", 3});
    assert_int_equal(bed_commit(b, tx, NULL), ERR_NONE);
    tx = store_tx_new(b->store);
    store_put_vm(tx, &(struct store_vm_row){"b", "www", "{\"vcpus\":2}", "", 0});
    assert_int_equal(bed_commit(b, tx, NULL), ERR_NONE);
    bed_close(b);
    assert_int_equal(stat(b->path, &st), 0);
    assert_int_equal(st.st_mode & 07777, 0600);
    bed_open(b);
    assert_int_equal(store_load_vms(b->store, bed_on_vm, &f, &err), 0);
    assert_string_equal(f.text, "a=\xc3\xa4'; DROP TABLE vms; --,{},-,7;b=www,{\"vcpus\":2},,0;");
    f = (struct found){0};
    assert_int_equal(store_load_operations(b->store, bed_on_operation, &f, &err), 0);
    assert_string_equal(f.text, "o1=vm.start,b,running,{\"steps\":[]},5,0;o2=vm.start,-,running,{\"steps\":[]},5,0;");
    f = (struct found){0};
    assert_int_equal(store_load_keys(b->store, bed_on_key, &f, &err), 0);
    assert_string_equal(f.text, "k=print,o1,3;");
    f = (struct found){.stop_after = 1};
    assert_int_equal(store_load_vms(b->store, bed_on_vm, &f, &err), -1);
    assert_string_equal(err.message, "enough");
    assert_int_equal(f.rows, 1);
}

static void on_found(void *arg, const struct store_operation_row *row, struct error *err)
{
    assert_false(error_is_set(err));
    bed_note(arg, "%s/%s", row != NULL ? row->id : "none", row != NULL ? row->state : "");
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
        {"", NULL, NULL, 100, "o9 o8 o7 o6 o5 o4 o3 o2 o1 o0 "},
        {NULL, NULL, NULL, 2, "o9 o8 "},
        {"o3", NULL, NULL, 100, "o2 o1 o0 "},
        {"o3", "failed", NULL, 100, "o2 o0 "},
        {NULL, "failed", "v1", 100, "o6 o0 "},
        {"o6", NULL, "v1", 100, "o3 o0 "},
        {NULL, NULL, NULL, 0, ""},
        {NULL, "x", "v1", 9, ""},
    };

    struct store_tx *tx = store_tx_new(b->store);
    for (int i = 0; i < 10; i++) {
        char id[] = {'o', (char)('0' + i), '\0'};
        bed_put_operation(tx, id, i % 3 == 0 ? "v1" : NULL, i % 2 == 0 ? "failed" : "succeeded", 9);
    }
    store_commit(b->store, tx, NULL, NULL); /* reads see it without waiting */
    assert_non_null(store_read_operation(b->store, "o4", on_found, &f));
    bed_wait(b, &f.rows);
    assert_string_equal(f.text, "o4/failed");
    f = (struct found){0};
    assert_non_null(store_read_operation(b->store, "nope", on_found, &f));
    bed_wait(b, &f.rows);
    assert_string_equal(f.text, "none/");
    for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
        f = (struct found){0};
        r = (struct result){0};
        assert_non_null(store_read_operations(b->store, cases[i].before, cases[i].state, cases[i].vm, cases[i].limit,
                                              bed_on_operation_row, NULL, &f));
        store_commit(b->store, store_tx_new(b->store), bed_on_done, &r); /* comes after it */
        bed_wait(b, &r.calls);
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
                                          cases[i].limit, bed_on_event_row, NULL, &f));
        store_commit(b->store, store_tx_new(b->store), bed_on_done, &r);
        bed_wait(b, &r.calls);
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

static void a_read_is_cancelled(void **state)
{
    struct bed *b = *state;
    struct cancelling before = {0}, during = {0};
    struct result r = {0};

    struct store_tx *tx = store_tx_new(b->store);
    for (int i = 1; i <= 5; i++)
        store_put_event(tx, i, i, "vm.a", NULL, "{}");
    store_commit(b->store, tx, NULL, NULL);
    before.read = store_read_events(b->store, 0, NULL, NULL, false, 9, cancel_at_first, bed_never, &before);
    during.read = store_read_events(b->store, 0, NULL, NULL, false, 9, cancel_at_first, bed_never, &during);
    store_read_cancel(before.read);
    store_commit(b->store, store_tx_new(b->store), bed_on_done, &r);
    bed_wait(b, &r.calls);
    assert_int_equal(before.rows, 0);
    assert_int_equal(during.rows, 1);
}

/* With the write lock held elsewhere, all that is queued meanwhile must go in at most two commits (the one that waits
 * has taken what was there), the callbacks in order, and the one bad tx fails alone. */
static void a_group_is_one_commit(void **state)
{
    enum { TXS = 300, BAD = 150 };
    struct bed *b = *state;
    static struct result r[TXS];
    struct store_stats before, after;
    char id[16];

    memset(r, 0, sizeof(r));
    sqlite3 *db = bed_connect(b);
    bed_sql(db, "BEGIN IMMEDIATE");
    store_stats(b->store, &before);
    for (int i = 0; i < TXS; i++) {
        struct store_tx *tx = store_tx_new(b->store);
        snprintf(id, sizeof(id), "id%04d", i);
        bed_put_vm(tx, id, id, 0);
        bed_put_operation(tx, id, id, "running", 0);
        if (i == BAD)
            bed_put_vm(tx, "other", "id0000", 0);
        store_commit(b->store, tx, bed_on_done, &r[i]);
    }
    store_stats(b->store, &after);
    assert_int_equal(after.queued, TXS);
    bed_sql(db, "COMMIT");
    sqlite3_close(db);
    bed_wait(b, &r[TXS - 1].calls);
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
    assert_int_equal(bed_count_vms(b), TXS - 1);
}

static void a_name_is_unique_among_the_living(void **state)
{
    struct bed *b = *state;
    struct result r;

    struct store_tx *tx = store_tx_new(b->store);
    bed_put_vm(tx, "1", "web", 0);
    assert_int_equal(bed_commit(b, tx, NULL), ERR_NONE);
    tx = store_tx_new(b->store);
    bed_put_vm(tx, "2", "web", 0);
    assert_int_equal(bed_commit(b, tx, &r), ERR_DAEMON_INTERNAL);
    assert_non_null(strstr(r.message, "UNIQUE constraint failed: vms.name"));
    tx = store_tx_new(b->store);
    bed_put_vm(tx, "1", "web", 99);
    bed_put_vm(tx, "2", "web", 0);
    assert_int_equal(bed_commit(b, tx, NULL), ERR_NONE);
    tx = store_tx_new(b->store);
    bed_put_vm(tx, "3", NULL, 0);
    assert_int_equal(bed_commit(b, tx, &r), ERR_DAEMON_INTERNAL);
    assert_non_null(strstr(r.message, "NOT NULL constraint failed: vms.name"));
    assert_int_equal(bed_count_vms(b), 2);
}

static void a_port_has_one_owner(void **state)
{
    struct bed *b = *state;
    struct result r;

    struct store_tx *tx = store_tx_new(b->store);
    store_put_port(tx, false, "0.0.0.0", 80, "1"); /* before its VM: any order within a tx */
    store_put_port(tx, true, "0.0.0.0", 80, "1");
    bed_put_vm(tx, "1", "web", 0);
    bed_put_vm(tx, "2", "db", 0);
    assert_int_equal(bed_commit(b, tx, NULL), ERR_NONE);
    tx = store_tx_new(b->store);
    store_put_port(tx, false, "0.0.0.0", 80, "2");
    assert_int_equal(bed_commit(b, tx, &r), ERR_DAEMON_INTERNAL);
    assert_non_null(strstr(r.message, "ports.udp, ports.host_ip, ports.port"));
    tx = store_tx_new(b->store);
    store_put_port(tx, false, "0.0.0.0", 81, "nobody");
    assert_int_equal(bed_commit(b, tx, &r), ERR_DAEMON_INTERNAL);
    assert_non_null(strstr(r.message, "ports.vm_id"));
    tx = store_tx_new(b->store);
    store_drop_ports(tx, "1");
    store_put_port(tx, false, "0.0.0.0", 80, "2");
    assert_int_equal(bed_commit(b, tx, NULL), ERR_NONE);
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
    bed_put_vm(tx, "dead-old", "a", 10);
    bed_put_vm(tx, "dead-new", "a", 20);
    bed_put_vm(tx, "alive", "a", 0);
    bed_put_operation(tx, "old", NULL, "failed", 10);
    bed_put_operation(tx, "new", NULL, "failed", 20);
    bed_put_operation(tx, "open", NULL, "running", 0);
    store_put_key(tx, &(struct store_key_row){"of-old", "p", "old", 100});
    store_put_key(tx, &(struct store_key_row){"aged", "p", "new", 14});
    store_put_key(tx, &(struct store_key_row){"kept", "p", "new", 15});
    for (int i = 1; i <= 9; i++)
        store_put_event(tx, i, i, "vm.a", NULL, "{}");
    store_prune(tx, 15, 15, 15, 3);
    assert_int_equal(bed_commit(b, tx, NULL), ERR_NONE);
    assert_int_equal(store_load_vms(b->store, bed_on_vm, &f, &err), 0);
    assert_int_equal(f.rows, 2);
    assert_null(strstr(f.text, "dead-old"));
    f = (struct found){0};
    assert_int_equal(store_load_keys(b->store, bed_on_key, &f, &err), 0);
    assert_string_equal(f.text, "kept=p,new,15;");
    f = (struct found){0};
    store_read_operations(b->store, NULL, NULL, NULL, 9, bed_on_operation_row, NULL, &f);
    assert_int_equal(bed_commit(b, store_tx_new(b->store), &r), ERR_NONE);
    assert_string_equal(f.text, "open new ");
    assert_int_equal(store_event_range(b->store, &oldest, &newest, &err), 0);
    assert_int_equal(oldest, 7);
    assert_int_equal(newest, 9);
    tx = store_tx_new(b->store);
    store_prune(tx, INT64_MAX, INT64_MAX, INT64_MAX, 0);
    store_prune(tx, INT64_MAX, INT64_MAX, INT64_MAX, 0); /* and once more, with nothing left */
    assert_int_equal(bed_commit(b, tx, NULL), ERR_NONE);
    bed_close(b);
    bed_open(b);
    assert_int_equal(store_event_range(b->store, &oldest, &newest, &err), 0);
    assert_int_equal(oldest, 0);
    assert_int_equal(newest, 9);
    assert_int_equal(bed_count_vms(b), 1);
}

static void closing_writes_what_is_queued(void **state)
{
    struct bed *b = *state;
    char id[16];

    for (int i = 0; i < 1500; i++) {
        struct store_tx *tx = store_tx_new(b->store);
        snprintf(id, sizeof(id), "id%04d", i);
        bed_put_vm(tx, id, id, 0);
        store_commit(b->store, tx, bed_never, NULL);
    }
    store_read_events(b->store, 0, NULL, NULL, false, 9, bed_on_event_row, bed_never, NULL);
    store_tx_free(store_tx_new(b->store));
    store_tx_free(NULL);
    bed_close(b);
    bed_open(b);
    assert_int_equal(bed_count_vms(b), 1500);
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
    bed_wait(b, &c.calls);
    assert_int_equal(c.calls, 1);
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
    assert_int_equal(bed_commit(b, tx, NULL), ERR_NONE);
    bed_close(b);
    clock_gettime(CLOCK_MONOTONIC, &from);
    bed_open(b);
    assert_int_equal(store_load_vms(b->store, bed_mark_vm, seen, &err), 0);
    clock_gettime(CLOCK_MONOTONIC, &to);
    for (int i = 0; i < 10000; i++)
        assert_true(seen[i]);
    print_message("10,000 VMs loaded in %.1f ms\n",
                  (double)(to.tv_sec - from.tv_sec) * 1e3 + (double)(to.tv_nsec - from.tv_nsec) / 1e6);
    mem_free(seen);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        BED_TEST(rows_come_back),
        BED_TEST(operations_are_read),
        BED_TEST(events_are_read),
        BED_TEST(a_read_is_cancelled),
        BED_TEST(a_group_is_one_commit),
        BED_TEST(a_name_is_unique_among_the_living),
        BED_TEST(a_port_has_one_owner),
        BED_TEST(pruning_keeps_what_counts),
        BED_TEST(closing_writes_what_is_queued),
        BED_TEST(a_callback_may_commit),
        BED_TEST(ten_thousand_load),
    };

    return cmocka_run_group_tests_name("store", tests, NULL, NULL);
}
