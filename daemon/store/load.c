/* load.c - the blocking reads of start-up, each on a read-only connection of its own.
 *
 * What a damaged file makes of a row (no text where the schema demands some) ends the load with an error; it never
 * reaches the callbacks. */
#include "base/mem.h"
#include "store/internal.h"

struct load {
    const char *sql, *columns; /* 't' text, '?' text or NULL, 'i' integer */
    int (*row)(struct load *load, sqlite3_stmt *stmt, struct error *err);
    void *fn; /* points to the caller's function pointer */
    void *arg;
};

static const char *text(sqlite3_stmt *stmt, int column)
{
    return (const char *)sqlite3_column_text(stmt, column);
}

static int check_row(sqlite3_stmt *stmt, const char *columns, struct error *err)
{
    for (int i = 0; columns[i] != '\0'; i++)
        if (columns[i] == 't' && text(stmt, i) == NULL)
            return error_set(err, ERR_DAEMON_INTERNAL, "the database is damaged: a row has no %s",
                             sqlite3_column_name(stmt, i));
    return 0;
}

static int load_rows(struct store *store, struct load *load, struct error *err)
{
    sqlite3 *db = NULL;
    sqlite3_stmt *stmt = NULL;
    int result = 0;

    if (store_db_open(store->path, false, &db, err) < 0)
        return -1;
    int rc = sqlite3_prepare_v2(db, load->sql, -1, &stmt, NULL);
    while (result == 0 && (rc == SQLITE_OK || rc == SQLITE_ROW)) {
        rc = sqlite3_step(stmt);
        if (rc == SQLITE_ROW) {
            result = check_row(stmt, load->columns, err);
            if (result == 0)
                result = load->row(load, stmt, err);
        }
    }
    if (result == 0 && rc != SQLITE_DONE)
        result = store_db_error(db, rc, "load from the database", err);
    sqlite3_finalize(stmt);
    sqlite3_close(db);
    return result < 0 ? -1 : 0;
}

typedef int vm_fn(void *arg, const struct store_vm_row *row, struct error *err);
typedef int operation_fn(void *arg, const struct store_operation_row *row, struct error *err);
typedef int step_fn(void *arg, const struct store_step_row *row, struct error *err);
typedef int image_fn(void *arg, const struct store_image_row *row, struct error *err);
typedef int key_fn(void *arg, const struct store_key_row *row, struct error *err);

static int vm_row(struct load *load, sqlite3_stmt *stmt, struct error *err)
{
    const struct store_vm_row row = {
        .id = text(stmt, 0),
        .name = text(stmt, 1),
        .doc = text(stmt, 2),
        .private_doc = text(stmt, 3),
        .destroyed_at = sqlite3_column_int64(stmt, 4),
    };

    return (*(vm_fn **)load->fn)(load->arg, &row, err);
}

static int operation_row(struct load *load, sqlite3_stmt *stmt, struct error *err)
{
    const struct store_operation_row row = {
        .id = text(stmt, 0),
        .kind = text(stmt, 1),
        .vm_id = text(stmt, 2),
        .state = text(stmt, 3),
        .doc = text(stmt, 4),
        .created_at = sqlite3_column_int64(stmt, 5),
        .finished_at = sqlite3_column_int64(stmt, 6),
    };

    return (*(operation_fn **)load->fn)(load->arg, &row, err);
}

static int key_row(struct load *load, sqlite3_stmt *stmt, struct error *err)
{
    const struct store_key_row row = {
        .key = text(stmt, 0),
        .fingerprint = text(stmt, 1),
        .operation_id = text(stmt, 2),
        .created_at = sqlite3_column_int64(stmt, 3),
    };

    return (*(key_fn **)load->fn)(load->arg, &row, err);
}

static int step_row(struct load *load, sqlite3_stmt *stmt, struct error *err)
{
    const struct store_step_row row = {
        .vm_id = text(stmt, 0),
        .operation_id = text(stmt, 1),
        .step = text(stmt, 2),
        .state = text(stmt, 3),
        .ms = sqlite3_column_int64(stmt, 4),
    };

    return (*(step_fn **)load->fn)(load->arg, &row, err);
}

static int image_row(struct load *load, sqlite3_stmt *stmt, struct error *err)
{
    const struct store_image_row row = {.id = text(stmt, 0), .name = text(stmt, 1), .doc = text(stmt, 2)};

    return (*(image_fn **)load->fn)(load->arg, &row, err);
}

int store_load_images(struct store *store, image_fn *fn, void *arg, struct error *err)
{
    struct load load = {"SELECT id, name, doc FROM images ORDER BY name", "ttt", image_row, &fn, arg};

    return load_rows(store, &load, err);
}

int store_load_vms(struct store *store, vm_fn *fn, void *arg, struct error *err)
{
    struct load load = {"SELECT id, name, doc, private_doc, destroyed_at FROM vms ORDER BY id", "ttt?i", vm_row, &fn,
                        arg};

    return load_rows(store, &load, err);
}

int store_load_operations(struct store *store, operation_fn *fn, void *arg, struct error *err)
{
    struct load load = {"SELECT id, kind, vm_id, state, doc, created_at, finished_at FROM operations"
                        " WHERE finished_at = 0 ORDER BY id",
                        "tt?ttii", operation_row, &fn, arg};

    return load_rows(store, &load, err);
}

int store_load_steps(struct store *store, step_fn *fn, void *arg, struct error *err)
{
    struct load load = {"SELECT o.vm_id, o.id, json_extract(e.doc, '$.data.step'), json_extract(e.doc, '$.data.state'),"
                        " json_extract(e.doc, '$.data.ms')"
                        " FROM operations AS o JOIN events AS e ON e.vm_id = o.vm_id"
                        " WHERE o.finished_at = 0 AND e.type = 'operation.step' AND e.at >= o.created_at"
                        " AND json_extract(e.doc, '$.operation_id') = o.id ORDER BY e.id",
                        "tt??i", step_row, &fn, arg};

    return load_rows(store, &load, err);
}

int store_load_keys(struct store *store, key_fn *fn, void *arg, struct error *err)
{
    struct load load = {"SELECT key, fingerprint, operation_id, created_at FROM idempotency_keys ORDER BY key", "tt?i",
                        key_row, &fn, arg};

    return load_rows(store, &load, err);
}

int store_event_range(struct store *store, int64_t *ret_oldest, int64_t *ret_newest, struct error *err)
{
    sqlite3 *db = NULL;
    int64_t oldest, newest;

    if (store_db_open(store->path, false, &db, err) < 0)
        return -1;
    int rc = store_db_int(db, "SELECT coalesce(min(id), 0) FROM events", &oldest, err);
    if (rc == 0)
        rc = store_db_int(db,
                          "SELECT max(coalesce((SELECT max(id) FROM events), 0),"
                          " coalesce((SELECT value FROM meta WHERE key = 'event_newest'), 0))",
                          &newest, err);
    sqlite3_close(db);
    if (rc < 0)
        return -1;
    *ret_oldest = oldest;
    *ret_newest = newest;
    return 0;
}
