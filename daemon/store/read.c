/* read.c - reads: run on the writer thread between commits, their rows packed and carried to the loop whole.
 *
 * An answer of more than 64 MiB fails the read; `limit` is the caller's to choose well below that. */
#include <string.h>

#include "base/mem.h"
#include "store/internal.h"

#define OPERATION_COLUMNS "SELECT id, kind, vm_id, state, doc, created_at, finished_at FROM operations"
#define EVENT_COLUMNS "SELECT id, at, type, vm_id, doc FROM events"

/* 't' text, '?' text or NULL, 'i' integer */
static const char operation_columns[] = "tt?ttii", event_columns[] = "iit?t", port_columns[] = "itit?";
/* Sorts after every id. */
static const char after_all[] = "\xf4\x8f\xbf\xbf";

/* Parameters are numbered alike in all queries of a kind; those a query does not use are NULL or ignored. */
static const struct {
    const char *sql, *params, *columns;
} queries[QUERY_MAX] = {
    [QUERY_OPERATION] = {OPERATION_COLUMNS " WHERE id = ?1", "t", operation_columns},
    [QUERY_OPERATIONS] = {OPERATION_COLUMNS " WHERE id < ?1 ORDER BY id DESC LIMIT ?2", "ti", operation_columns},
    [QUERY_OPERATIONS_STATE] = {OPERATION_COLUMNS " WHERE id < ?1 AND state = ?3 ORDER BY id DESC LIMIT ?2", "tit",
                                operation_columns},
    [QUERY_OPERATIONS_VM] = {OPERATION_COLUMNS " WHERE id < ?1 AND vm_id = ?3 ORDER BY id DESC LIMIT ?2", "tit",
                             operation_columns},
    /* +state: a VM has few operations, a state many. */
    [QUERY_OPERATIONS_VM_STATE] = {OPERATION_COLUMNS
                                   " WHERE id < ?1 AND vm_id = ?3 AND +state = ?4 ORDER BY id DESC LIMIT ?2",
                                   "titt", operation_columns},
    [QUERY_EVENTS] = {EVENT_COLUMNS " WHERE id > ?1 AND (?3 IS NULL OR type GLOB ?3) ORDER BY id LIMIT ?2", "iit",
                      event_columns},
    [QUERY_EVENTS_NEWEST] = {EVENT_COLUMNS " WHERE id > ?1 AND (?3 IS NULL OR type GLOB ?3) ORDER BY id DESC LIMIT ?2",
                             "iit", event_columns},
    [QUERY_EVENTS_VM] = {EVENT_COLUMNS
                         " WHERE vm_id = ?4 AND id > ?1 AND (?3 IS NULL OR type GLOB ?3) ORDER BY id LIMIT ?2",
                         "iitt", event_columns},
    [QUERY_EVENTS_VM_NEWEST] = {EVENT_COLUMNS " WHERE vm_id = ?4 AND id > ?1 AND (?3 IS NULL OR type GLOB ?3)"
                                              " ORDER BY id DESC LIMIT ?2",
                                "iitt", event_columns},
    [QUERY_ORPHAN_PORTS] =
        {"SELECT p.udp, p.host_ip, p.port, p.vm_id, v.name FROM ports p LEFT JOIN vms v ON v.id = p.vm_id"
         " WHERE v.id IS NULL OR v.destroyed_at > 0 ORDER BY p.port LIMIT ?1",
         "i", port_columns},
};

int store_read_prepare(struct store *store, struct error *err)
{
    for (size_t i = 0; i < QUERY_MAX; i++) {
        int rc = sqlite3_prepare_v3(store->db, queries[i].sql, -1, SQLITE_PREPARE_PERSISTENT, &store->queries[i], NULL);
        if (rc != SQLITE_OK)
            return store_db_error(store->db, rc, "read the database's schema", err);
    }
    return 0;
}

static int pack_row(struct buf *rows, sqlite3_stmt *stmt, const char *columns, struct error *err)
{
    for (int i = 0; columns[i] != '\0'; i++) {
        if (columns[i] == 'i') {
            store_pack_int(rows, sqlite3_column_int64(stmt, i));
            continue;
        }
        const char *text = (const char *)sqlite3_column_text(stmt, i);
        if (text == NULL && columns[i] == 't')
            return error_set(err, ERR_DAEMON_INTERNAL, "the database is damaged: a row has no %s",
                             sqlite3_column_name(stmt, i));
        store_pack_text(rows, text);
    }
    return rows->failed ? error_set(err, ERR_DAEMON_INTERNAL, "the answer from the database does not fit into memory")
                        : 0;
}

void store_read_run(struct store *store, struct store_read *read)
{
    CLEANUP_ERROR struct error err = ERROR_INIT;
    sqlite3_stmt *stmt = store->queries[read->query];
    const char *p = read->params.data;

    if (read->item.failed)
        return;
    int rc = store_bind(stmt, queries[read->query].params, &p);
    while (rc == SQLITE_OK || rc == SQLITE_ROW) {
        rc = sqlite3_step(stmt);
        if (rc == SQLITE_ROW && pack_row(&read->rows, stmt, queries[read->query].columns, &err) < 0)
            break;
    }
    if (!error_is_set(&err) && rc != SQLITE_DONE)
        store_db_error(store->db, rc, "read the database", &err);
    sqlite3_reset(stmt);
    if (error_is_set(&err))
        store_item_fail(&read->item, &err);
}

static void unpack_operation(const char **p, struct store_operation_row *row)
{
    row->id = store_unpack_text(p, NULL);
    row->kind = store_unpack_text(p, NULL);
    row->vm_id = store_unpack_text(p, NULL);
    row->state = store_unpack_text(p, NULL);
    row->doc = store_unpack_text(p, NULL);
    row->created_at = store_unpack_int(p);
    row->finished_at = store_unpack_int(p);
}

static void unpack_event(const char **p, struct store_event_row *row)
{
    row->id = store_unpack_int(p);
    row->at = store_unpack_int(p);
    row->type = store_unpack_text(p, NULL);
    row->vm_id = store_unpack_text(p, NULL);
    row->doc = store_unpack_text(p, NULL);
}

static void unpack_port(const char **p, struct store_port_row *row)
{
    row->udp = store_unpack_int(p) != 0;
    row->host_ip = store_unpack_text(p, NULL);
    row->port = (uint16_t)store_unpack_int(p);
    row->vm_id = store_unpack_text(p, NULL);
    row->vm_name = store_unpack_text(p, NULL);
}

static void deliver_rows(struct store_read *read)
{
    const char *p = read->rows.data, *end = p + read->rows.len;

    while (p < end && !read->cancelled) {
        struct store_operation_row operation;
        struct store_event_row event;
        struct store_port_row port;
        if (read->event_row != NULL) {
            unpack_event(&p, &event);
            read->event_row(read->arg, &event);
        } else if (read->operation_row != NULL) {
            unpack_operation(&p, &operation);
            read->operation_row(read->arg, &operation);
        } else if (read->port_row != NULL) {
            unpack_port(&p, &port);
            read->port_row(read->arg, &port);
        } else {
            return;
        }
    }
}

void store_read_deliver(struct store_read *read)
{
    CLEANUP_ERROR struct error err = ERROR_INIT;
    struct store_operation_row row;
    const char *p = read->rows.data;

    store_item_error(&read->item, &err);
    if (read->operation_done != NULL && !read->cancelled) {
        bool found = !error_is_set(&err) && read->rows.len > 0;
        if (found)
            unpack_operation(&p, &row);
        read->operation_done(read->arg, found ? &row : NULL, &err);
    } else if (read->operation_done == NULL) {
        if (!error_is_set(&err) && read->rows.len > 0)
            deliver_rows(read);
        if (!read->cancelled && read->done != NULL)
            read->done(read->arg, &err);
    }
    store_read_free(read);
}

void store_read_free(struct store_read *read)
{
    if (read->item.err != NULL)
        error_done(read->item.err);
    mem_free(read->item.err);
    buf_done(&read->params);
    buf_done(&read->rows);
    mem_free(read);
}

static struct store_read *read_new(enum store_query query, void *arg)
{
    struct store_read *read = mem_zalloc(sizeof(*read));

    if (read == NULL)
        return NULL;
    read->item.is_read = true;
    read->query = query;
    read->arg = arg;
    buf_init(&read->params, STORE_TX_MAX);
    buf_init(&read->rows, STORE_TX_MAX);
    return read;
}

static struct store_read *read_enqueue(struct store *store, struct store_read *read)
{
    read->item.failed = read->params.failed;
    store_enqueue(store, &read->item);
    return read;
}

struct store_read *
store_read_operation(struct store *store, const char *id,
                     void (*done)(void *arg, const struct store_operation_row *row, struct error *err), void *arg)
{
    struct store_read *read = read_new(QUERY_OPERATION, arg);

    if (read == NULL)
        return NULL;
    read->operation_done = done;
    store_pack_text(&read->params, id);
    return read_enqueue(store, read);
}

struct store_read *store_read_operations(struct store *store, const char *before, const char *state, const char *vm_id,
                                         unsigned limit, void (*row)(void *arg, const struct store_operation_row *row),
                                         void (*done)(void *arg, struct error *err), void *arg)
{
    enum store_query query = vm_id != NULL && state != NULL ? QUERY_OPERATIONS_VM_STATE
                             : vm_id != NULL                ? QUERY_OPERATIONS_VM
                             : state != NULL                ? QUERY_OPERATIONS_STATE
                                                            : QUERY_OPERATIONS;
    struct store_read *read = read_new(query, arg);

    if (read == NULL)
        return NULL;
    read->operation_row = row;
    read->done = done;
    store_pack_text(&read->params, before != NULL && before[0] != '\0' ? before : after_all);
    store_pack_int(&read->params, limit);
    if (vm_id != NULL)
        store_pack_text(&read->params, vm_id);
    if (state != NULL)
        store_pack_text(&read->params, state);
    return read_enqueue(store, read);
}

struct store_read *store_read_events(struct store *store, int64_t since, const char *vm_id, const char *type_glob,
                                     bool newest_first, unsigned limit,
                                     void (*row)(void *arg, const struct store_event_row *row),
                                     void (*done)(void *arg, struct error *err), void *arg)
{
    struct store_read *read = read_new(vm_id != NULL ? (newest_first ? QUERY_EVENTS_VM_NEWEST : QUERY_EVENTS_VM)
                                                     : (newest_first ? QUERY_EVENTS_NEWEST : QUERY_EVENTS),
                                       arg);

    if (read == NULL)
        return NULL;
    read->event_row = row;
    read->done = done;
    store_pack_int(&read->params, since);
    store_pack_int(&read->params, limit);
    store_pack_text(&read->params, type_glob);
    if (vm_id != NULL)
        store_pack_text(&read->params, vm_id);
    return read_enqueue(store, read);
}

struct store_read *store_read_orphan_ports(struct store *store, unsigned limit,
                                           void (*row)(void *arg, const struct store_port_row *row),
                                           void (*done)(void *arg, struct error *err), void *arg)
{
    struct store_read *read = read_new(QUERY_ORPHAN_PORTS, arg);

    if (read == NULL)
        return NULL;
    read->port_row = row;
    read->done = done;
    store_pack_int(&read->params, limit);
    return read_enqueue(store, read);
}

void store_read_cancel(struct store_read *read)
{
    if (read != NULL)
        read->cancelled = true;
}
