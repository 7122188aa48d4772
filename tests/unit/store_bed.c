/* store_bed.c - see store_bed.h. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include <errno.h>
#include <stdio.h>
#include <time.h>

#include "base/fd.h"
#include "store_bed.h"

static unsigned callbacks;
static uint64_t seed;

void bed_seed(void)
{
    const char *given = getenv("VMMD_TEST_SEED");

    seed = given != NULL ? strtoull(given, NULL, 10) : (uint64_t)time(NULL);
    print_message("VMMD_TEST_SEED=%llu\n", (unsigned long long)seed);
}

uint32_t bed_random(uint32_t below)
{
    seed = seed * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(seed >> 33) % below;
}

static void wake(void *arg)
{
    sem_post(&((struct bed *)arg)->woken);
}

int bed_reopen(struct bed *b, struct error *err)
{
    return store_open(b->dir, wake, b, &b->store, err);
}

void bed_open(struct bed *b)
{
    CLEANUP_ERROR struct error err = ERROR_INIT;

    if (bed_reopen(b, &err) < 0)
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

int bed_set_up(void **state)
{
    struct bed *b = calloc(1, sizeof(*b));

    bed_init(b);
    bed_open(b);
    callbacks = 0;
    *state = b;
    return 0;
}

int bed_tear_down(void **state)
{
    struct bed *b = *state;
    CLEANUP_ERROR struct error err = ERROR_INIT;

    store_close(b->store);
    sem_destroy(&b->woken);
    assert_int_equal(dir_remove(b->dir, &err), 0);
    free(b);
    return 0;
}

void bed_close(struct bed *b)
{
    store_close(b->store);
    b->store = NULL;
}

void bed_on_done(void *arg, struct error *err)
{
    struct result *r = arg;

    r->calls++;
    r->code = err->code;
    r->at = callbacks++;
    snprintf(r->message, sizeof(r->message), "%s", err->message);
}

bool bed_turn(struct bed *b)
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

void bed_wait(struct bed *b, const unsigned *calls)
{
    while (*(const volatile unsigned *)calls == 0)
        if (!bed_turn(b))
            fail_msg("no callback came");
}

enum error_code bed_commit(struct bed *b, struct store_tx *tx, struct result *ret)
{
    struct result r = {0};

    store_commit(b->store, tx, bed_on_done, &r);
    bed_wait(b, &r.calls);
    assert_int_equal(r.calls, 1);
    if (ret != NULL)
        *ret = r;
    return r.code;
}

void bed_put_vm(struct store_tx *tx, const char *id, const char *name, int64_t destroyed_at)
{
    store_put_vm(tx, &(struct store_vm_row){id, name, "{\"vcpus\":1}", "{\"secret\":true}", destroyed_at});
}

void bed_put_operation(struct store_tx *tx, const char *id, const char *vm, const char *state, int64_t finished)
{
    store_put_operation(tx, &(struct store_operation_row){id, "vm.start", vm, state, "{\"steps\":[]}", 5, finished});
}

void bed_note(struct found *f, const char *fmt, ...)
{
    size_t len = strlen(f->text);
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(f->text + len, sizeof(f->text) - len, fmt, ap);
    va_end(ap);
    f->rows++;
}

int bed_on_vm(void *arg, const struct store_vm_row *row, struct error *err)
{
    struct found *f = arg;

    assert_non_null(row->id);
    assert_non_null(row->name);
    assert_non_null(row->doc);
    bed_note(f, "%s=%s,%s,%s,%lld;", row->id, row->name, row->doc, row->private_doc != NULL ? row->private_doc : "-",
             (long long)row->destroyed_at);
    return f->rows == f->stop_after ? error_set(err, ERR_IO, "enough") : 0;
}

int bed_on_operation(void *arg, const struct store_operation_row *row, struct error *err)
{
    (void)err;
    bed_note(arg, "%s=%s,%s,%s,%s,%lld,%lld;", row->id, row->kind, row->vm_id != NULL ? row->vm_id : "-", row->state,
             row->doc, (long long)row->created_at, (long long)row->finished_at);
    return 0;
}

int bed_on_key(void *arg, const struct store_key_row *row, struct error *err)
{
    (void)err;
    bed_note(arg, "%s=%s,%s,%lld;", row->key, row->fingerprint, row->operation_id, (long long)row->created_at);
    return 0;
}

void bed_on_operation_row(void *arg, const struct store_operation_row *row)
{
    bed_note(arg, "%s ", row->id);
}

void bed_on_event_row(void *arg, const struct store_event_row *row)
{
    bed_note(arg, "%lld:%s:%s:%s ", (long long)row->id, row->type, row->vm_id != NULL ? row->vm_id : "-", row->doc);
}

unsigned bed_count_vms(struct bed *b)
{
    CLEANUP_ERROR struct error err = ERROR_INIT;
    struct found f = {0};

    assert_int_equal(store_load_vms(b->store, bed_on_vm, &f, &err), 0);
    return f.rows;
}

sqlite3 *bed_connect(struct bed *b)
{
    sqlite3 *db = NULL;

    assert_int_equal(sqlite3_open(b->path, &db), SQLITE_OK);
    return db;
}

void bed_sql(sqlite3 *db, const char *text)
{
    char *message = NULL;

    if (sqlite3_exec(db, text, NULL, NULL, &message) != SQLITE_OK)
        fail_msg("%s: %s", text, message);
}

void bed_plant(struct bed *b, const char *text)
{
    sqlite3 *db = bed_connect(b);

    bed_sql(db, text);
    sqlite3_close(db);
}

void bed_never(void *arg, struct error *err)
{
    (void)arg;
    (void)err;
    fail_msg("a cancelled read called back");
}

void bed_on_line(void *arg, const char *line)
{
    struct found *f = arg;

    assert_null(strchr(line, '\n'));
    if (strlen(f->text) + strlen(line) < 4000)
        bed_note(f, "%s|", line);
}

int bed_mark_vm(void *arg, const struct store_vm_row *row, struct error *err)
{
    bool *seen = arg;

    (void)err;
    seen[strtoul(row->id, NULL, 10)] = true;
    return 0;
}
