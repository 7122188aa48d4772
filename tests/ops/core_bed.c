/* core_bed.c - see core_bed.h. */
#include "core_bed.h"

#include <sqlite3.h>
#include <stdio.h>
#include <unistd.h>

#include "base/log.h"
#include "base/mem.h"
#include "loop/timer.h"

enum { LATE_MS = 20000 };

static void woken(void *arg)
{
    struct core_bed *b = arg;

    store_dispatch(b->store);
}

static void wake(void *arg)
{
    struct core_bed *b = arg;

    loop_waker_wake(b->waker);
}

static void alarm_rang(void *arg)
{
    ((struct core_bed *)arg)->late = true;
}

static void set_flag(void *arg)
{
    *(bool *)arg = true;
}

void core_bed_open_store(struct core_bed *b)
{
    struct error err = ERROR_INIT;

    b->late = false;
    b->loop = loop_new(&err);
    assert_non_null(b->loop);
    b->waker = loop_waker_new(b->loop, woken, b, &err);
    assert_non_null(b->waker);
    b->alarm = timer_new(b->loop, alarm_rang, b);
    assert_non_null(b->alarm);
    if (store_open(b->dir, wake, b, &b->store, &err) < 0)
        fail_msg("%s", err.message);
}

void core_bed_open(struct core_bed *b)
{
    struct error err = ERROR_INIT;
    struct core_config config;
    bool recovered = false;

    if (b->loop == NULL)
        core_bed_open_store(b);
    b->noop = noop_backend_new(b->loop, b->dir, &err);
    assert_non_null(b->noop);
    b->backends[0] = b->noop;
    core_config_defaults(&config);
    config.data_dir = b->dir;
    config.helper_dir = b->helper_dir;
    b->core = core_new(b->loop, b->store, b->backends, &config, &err);
    assert_non_null(b->core);
    if (core_recover(b->core, set_flag, &recovered, &err) < 0)
        fail_msg("%s", err.message);
    assert_true(core_bed_until(b, &recovered));
}

void core_bed_close(struct core_bed *b, int64_t grace_ms)
{
    bool stopped = false;

    if (b->core != NULL) {
        core_shutdown(b->core, grace_ms, set_flag, &stopped);
        assert_true(core_bed_until(b, &stopped));
        store_close(b->store);
        core_free(b->core);
        b->noop->free(b->noop);
    } else {
        store_close(b->store);
    }
    loop_waker_free(b->waker);
    timer_free(b->alarm);
    assert_int_equal(loop_free(b->loop), 0);
    b->loop = NULL;
    b->core = NULL;
}

int core_bed_set_up(void **state)
{
    struct core_bed *b = calloc(1, sizeof(*b));
    const char *tmp = getenv("TMPDIR");

    b->timeout_s = 1;
    log_init(LOG_LEVEL_ERROR, false);
    snprintf(b->dir, sizeof(b->dir), "%.30s/vmmd-core-XXXXXX", tmp != NULL ? tmp : "/tmp");
    assert_non_null(mkdtemp(b->dir));
    snprintf(b->path, sizeof(b->path), "%s/vmmd.db", b->dir);
    core_bed_open(b);
    *state = b;
    return 0;
}

int core_bed_tear_down(void **state)
{
    static const char *const files[] = {"vmmd.db",      "vmmd.db-wal", "vmmd.db-shm",
                                        "vmmd.reserve", "boot_id",     "autostart"};
    struct core_bed *b = *state;
    char path[128];

    if (b->loop != NULL)
        core_bed_close(b, 5000);
    for (size_t i = 0; i < ARRAY_SIZE(files); i++) {
        snprintf(path, sizeof(path), "%s/%s", b->dir, files[i]);
        unlink(path);
    }
    int rc = rmdir(b->dir); /* nothing else was made */
    free(b);
    return rc;
}

bool core_bed_poll(struct core_bed *b, bool (*over)(void *arg), void *arg)
{
    b->late = false;
    timer_start(b->alarm, LATE_MS, 0); /* also keeps the loop waiting for the store */
    while (!over(arg) && !b->late)
        loop_run_once(b->loop, true);
    timer_stop(b->alarm);
    return over(arg);
}

static bool is_set(void *arg)
{
    return *(const bool *)arg;
}

bool core_bed_until(struct core_bed *b, const bool *flag)
{
    return core_bed_poll(b, is_set, (void *)flag);
}

void core_bed_turns(struct core_bed *b, unsigned n)
{
    for (unsigned i = 0; i < n; i++)
        loop_run_once(b->loop, false);
}

static void durable(void *arg, struct error *err)
{
    (void)err;
    set_flag(arg);
}

void core_bed_quiet(struct core_bed *b)
{
    for (unsigned i = 0; i < 2; i++) {
        bool done = false;
        core_bed_turns(b, 8);
        change_flush_lazy(b->core);
        store_commit(b->store, store_tx_new(b->store), durable, &done); /* comes after all others */
        assert_true(core_bed_until(b, &done));
        core_bed_turns(b, 8);
    }
}

char *core_bed_sql(struct core_bed *b, const char *sql, const char *arg)
{
    sqlite3 *db = NULL;
    sqlite3_stmt *stmt = NULL;
    char *text = NULL;

    assert_int_equal(sqlite3_open(b->path, &db), SQLITE_OK);
    sqlite3_busy_timeout(db, 5000);
    if (sqlite3_prepare_v2(db, sql, -1, &stmt, NULL) != SQLITE_OK)
        fail_msg("%s: %s", sql, sqlite3_errmsg(db));
    if (arg != NULL)
        sqlite3_bind_text(stmt, 1, arg, -1, SQLITE_STATIC);
    if (sqlite3_step(stmt) == SQLITE_ROW && sqlite3_column_text(stmt, 0) != NULL)
        text = mem_strdup((const char *)sqlite3_column_text(stmt, 0));
    sqlite3_finalize(stmt);
    sqlite3_close(db);
    return text;
}

struct operation *core_bed_create(struct core_bed *b, const char *body, const char *key, struct error *err)
{
    struct core_request req = {.request_id = "test", .idempotency_key = key, .fingerprint = body};
    struct operation *op = NULL;
    json_t *json = json_loads(body, 0, NULL);

    assert_non_null(json);
    int rc = core_vm_create(b->core, &req, json, &op, err);
    json_decref(json);
    return rc == 0 ? operation_ref(op) : NULL;
}

struct operation *core_bed_verb(struct core_bed *b, const char *ref, enum vm_verb verb, struct error *err)
{
    struct core_request req = {.request_id = "test"};
    struct core_verb_args args = {.timeout_s = b->timeout_s};
    struct operation *op = NULL;

    return core_vm_verb(b->core, &req, ref, verb, &args, NULL, &op, err) == 0 ? operation_ref(op) : NULL;
}

struct ended {
    bool over;
    enum error_code refused;
};

static void watched(void *arg, struct error *err)
{
    struct ended *e = arg;

    e->over = true;
    e->refused = err->code;
}

static enum error_code await_op(struct core_bed *b, struct operation *op, bool ended)
{
    struct ended e = {0};

    assert_non_null(operation_watch(op, ended, watched, &e));
    if (!core_bed_until(b, &e.over))
        fail_msg("%s has not ended: %s", op->kind, operation_doc(op));
    return e.refused;
}

void core_bed_await(struct core_bed *b, struct operation *op, bool ended)
{
    await_op(b, op, ended);
}

enum error_code core_bed_end(struct core_bed *b, struct operation *op)
{
    enum error_code code = await_op(b, op, true);

    if (code == ERR_NONE && operation_error(op) != NULL)
        code = operation_error(op)->code;
    operation_unref(op);
    return code;
}

enum error_code core_bed_do(struct core_bed *b, const char *ref, enum vm_verb verb)
{
    CLEANUP_ERROR struct error err = ERROR_INIT;
    struct operation *op = core_bed_verb(b, ref, verb, &err);

    return op != NULL ? core_bed_end(b, op) : err.code;
}

void core_bed_make(struct core_bed *b, const char *body)
{
    CLEANUP_ERROR struct error err = ERROR_INIT;
    struct operation *op = core_bed_create(b, body, NULL, &err);

    if (op == NULL)
        fail_msg("%s: %s", body, err.message);
    assert_int_equal(core_bed_end(b, op), ERR_NONE);
}

static void patched(void *arg, struct live_vm *vm, struct error *err)
{
    (void)vm;
    watched(arg, err);
}

enum error_code core_bed_patch(struct core_bed *b, const char *ref, const char *patch)
{
    CLEANUP_ERROR struct error err = ERROR_INIT;
    struct core_request req = {.request_id = "test"};
    struct ended e = {0};
    json_t *json = json_loads(patch, 0, NULL);

    assert_non_null(json);
    int rc = core_vm_patch(b->core, &req, ref, json, NULL, patched, &e, &err);
    json_decref(json);
    if (rc < 0)
        return err.code;
    assert_true(core_bed_until(b, &e.over));
    return e.refused;
}

struct live_vm *core_bed_vm(struct core_bed *b, const char *ref)
{
    CLEANUP_ERROR struct error err = ERROR_INIT;

    return core_vm_find(b->core, ref, &err);
}

json_t *core_bed_doc(struct core_bed *b, const char *ref)
{
    struct live_vm *vm = core_bed_vm(b, ref);
    size_t len = 0;

    if (vm == NULL)
        return NULL;
    const char *doc = core_vm_doc(vm, &len);
    json_t *json = json_loadb(doc, len, 0, NULL);
    assert_non_null(json);
    return json;
}

const char *core_bed_get(struct core_bed *b, const char *ref, const char *path)
{
    static char out[512];
    char name[128];
    json_t *doc = core_bed_doc(b, ref), *at = doc;

    snprintf(name, sizeof(name), "%s", path);
    for (char *save = NULL, *part = strtok_r(name, ".", &save); part != NULL && at != NULL;
         part = strtok_r(NULL, ".", &save))
        at = json_object_get(at, part);
    if (json_is_string(at))
        snprintf(out, sizeof(out), "%s", json_string_value(at));
    else if (at != NULL && json_dumpb(at, out, sizeof(out) - 1, JSON_ENCODE_ANY) < sizeof(out) - 1)
        out[json_dumpb(at, NULL, 0, JSON_ENCODE_ANY)] = '\0';
    else
        snprintf(out, sizeof(out), "(none)");
    json_decref(doc);
    return out;
}
