/* tx.c - transactions: built on the loop as packed records, executed on the writer thread.
 *
 * A tx is two allocations however many rows it has.  What fails while building (memory, 64 MiB) marks the tx, and the
 * failure is reported where every other is: by its done callback. */
#include <string.h>

#include "base/crash.h"
#include "base/mem.h"
#include "store/internal.h"

/* SQL and the signature of its parameters, in the order of enum store_op. */
static const struct {
    const char *sql, *signature, *doing;
} ops[OP_MAX] = {
    [OP_PUT_VM] = {"INSERT INTO vms (id, name, doc, private_doc, destroyed_at) VALUES (?1, ?2, ?3, ?4, ?5)"
                   " ON CONFLICT (id) DO UPDATE SET name = excluded.name, doc = excluded.doc,"
                   " private_doc = excluded.private_doc, destroyed_at = excluded.destroyed_at",
                   "tttti", "store a VM"},
    [OP_PUT_OPERATION] = {"INSERT INTO operations (id, kind, vm_id, state, doc, created_at, finished_at)"
                          " VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)"
                          " ON CONFLICT (id) DO UPDATE SET kind = excluded.kind, vm_id = excluded.vm_id,"
                          " state = excluded.state, doc = excluded.doc, created_at = excluded.created_at,"
                          " finished_at = excluded.finished_at",
                          "tttttii", "store an operation"},
    [OP_PUT_KEY] = {"INSERT INTO idempotency_keys (key, fingerprint, operation_id, created_at) VALUES (?1, ?2, ?3, ?4)"
                    " ON CONFLICT (key) DO UPDATE SET fingerprint = excluded.fingerprint,"
                    " operation_id = excluded.operation_id, created_at = excluded.created_at",
                    "ttti", "store an idempotency key"},
    [OP_PUT_EVENT] = {"INSERT INTO events (id, at, type, vm_id, doc) VALUES (?1, ?2, ?3, ?4, ?5)", "iittt",
                      "store an event"},
    [OP_PUT_PORT] = {"INSERT INTO ports (udp, host_ip, port, vm_id) VALUES (?1, ?2, ?3, ?4)", "itit", "store a port"},
    [OP_DROP_PORTS] = {"DELETE FROM ports WHERE vm_id = ?1", "t", "forget a VM's ports"},
    [OP_PUT_IMAGE] = {"INSERT INTO images (id, name, doc) VALUES (?1, ?2, ?3)"
                      " ON CONFLICT (id) DO UPDATE SET name = excluded.name, doc = excluded.doc",
                      "ttt", "store an image"},
    [OP_DROP_IMAGE] = {"DELETE FROM images WHERE id = ?1", "t", "forget an image"},
    [OP_PRUNE_OPERATION_KEYS] = {"DELETE FROM idempotency_keys WHERE operation_id IN"
                                 " (SELECT id FROM operations WHERE finished_at > 0 AND finished_at < ?1)",
                                 "i", "forget old idempotency keys"},
    [OP_PRUNE_OPERATIONS] = {"DELETE FROM operations WHERE finished_at > 0 AND finished_at < ?1", "i",
                             "forget old operations"},
    [OP_PRUNE_KEYS] = {"DELETE FROM idempotency_keys WHERE created_at < ?1", "i", "forget old idempotency keys"},
    [OP_PRUNE_TOMBSTONES] = {"DELETE FROM vms WHERE destroyed_at > 0 AND destroyed_at < ?1", "i", "forget old VMs"},
    /* Event ids are a promise to clients: the highest is kept even when its event goes. */
    [OP_MARK_EVENTS] = {"INSERT INTO meta (key, value) SELECT 'event_newest', max(id) FROM events"
                        " WHERE true HAVING max(id) IS NOT NULL"
                        " ON CONFLICT (key) DO UPDATE SET value = max(value, excluded.value)",
                        "", "remember the newest event"},
    [OP_PRUNE_EVENTS] = {"DELETE FROM events WHERE id <= (SELECT id FROM events ORDER BY id DESC LIMIT 1 OFFSET ?1)",
                         "i", "forget old events"},
};

static const uint32_t no_text = UINT32_MAX;

void store_pack_text(struct buf *b, const char *text)
{
    size_t len = text != NULL ? strlen(text) : 0;
    uint32_t head = (uint32_t)len;

    if (len >= STORE_TX_MAX) {
        b->failed = true;
    } else if (text == NULL) {
        buf_append(b, &no_text, sizeof(no_text));
    } else if (buf_append(b, &head, sizeof(head)) == 0) {
        buf_append(b, text, len + 1);
    }
}

void store_pack_int(struct buf *b, int64_t num)
{
    buf_append(b, &num, sizeof(num));
}

const char *store_unpack_text(const char **p, size_t *ret_len)
{
    uint32_t len;

    memcpy(&len, *p, sizeof(len));
    *p += sizeof(len);
    if (len == no_text)
        return NULL;
    const char *text = *p;
    *p += (size_t)len + 1;
    if (ret_len != NULL)
        *ret_len = len;
    return text;
}

int64_t store_unpack_int(const char **p)
{
    int64_t num;

    memcpy(&num, *p, sizeof(num));
    *p += sizeof(num);
    return num;
}

int store_bind(sqlite3_stmt *stmt, const char *signature, const char **p)
{
    int rc = SQLITE_OK;

    for (int i = 1; *signature != '\0' && rc == SQLITE_OK; signature++, i++) {
        size_t len = 0;
        if (*signature == 'i') {
            rc = sqlite3_bind_int64(stmt, i, store_unpack_int(p));
            continue;
        }
        const char *text = store_unpack_text(p, &len);
        rc = text != NULL ? sqlite3_bind_text(stmt, i, text, (int)len, SQLITE_STATIC) : sqlite3_bind_null(stmt, i);
    }
    return rc;
}

struct store_tx *store_tx_new(struct store *store)
{
    struct store_tx *tx = mem_zalloc(sizeof(*tx));

    (void)store;
    if (tx != NULL)
        buf_init(&tx->data, STORE_TX_MAX);
    return tx;
}

void store_tx_use_reserve(struct store_tx *tx)
{
    if (tx != NULL)
        tx->item.frees = true;
}

void store_tx_free(struct store_tx *tx)
{
    if (tx == NULL)
        return;
    if (tx->item.err != NULL)
        error_done(tx->item.err);
    mem_free(tx->item.err);
    buf_done(&tx->data);
    if (tx->item.spare)
        tx->item = (struct store_item){0};
    else
        mem_free(tx);
}

static bool record(struct store_tx *tx, enum store_op op)
{
    return tx != NULL && buf_char(&tx->data, (char)op) == 0;
}

void store_put_vm(struct store_tx *tx, const struct store_vm_row *row)
{
    if (!record(tx, OP_PUT_VM))
        return;
    store_pack_text(&tx->data, row->id);
    store_pack_text(&tx->data, row->name);
    store_pack_text(&tx->data, row->doc);
    store_pack_text(&tx->data, row->private_doc);
    store_pack_int(&tx->data, row->destroyed_at);
}

void store_put_operation(struct store_tx *tx, const struct store_operation_row *row)
{
    if (!record(tx, OP_PUT_OPERATION))
        return;
    store_pack_text(&tx->data, row->id);
    store_pack_text(&tx->data, row->kind);
    store_pack_text(&tx->data, row->vm_id);
    store_pack_text(&tx->data, row->state);
    store_pack_text(&tx->data, row->doc);
    store_pack_int(&tx->data, row->created_at);
    store_pack_int(&tx->data, row->finished_at);
}

void store_put_key(struct store_tx *tx, const struct store_key_row *row)
{
    if (!record(tx, OP_PUT_KEY))
        return;
    store_pack_text(&tx->data, row->key);
    store_pack_text(&tx->data, row->fingerprint);
    store_pack_text(&tx->data, row->operation_id);
    store_pack_int(&tx->data, row->created_at);
}

void store_put_event(struct store_tx *tx, int64_t id, int64_t at, const char *type, const char *vm_id, const char *doc)
{
    if (!record(tx, OP_PUT_EVENT))
        return;
    store_pack_int(&tx->data, id);
    store_pack_int(&tx->data, at);
    store_pack_text(&tx->data, type);
    store_pack_text(&tx->data, vm_id);
    store_pack_text(&tx->data, doc);
}

void store_put_port(struct store_tx *tx, bool udp, const char *host_ip, uint16_t port, const char *vm_id)
{
    if (!record(tx, OP_PUT_PORT))
        return;
    store_pack_int(&tx->data, udp ? 1 : 0);
    store_pack_text(&tx->data, host_ip);
    store_pack_int(&tx->data, port);
    store_pack_text(&tx->data, vm_id);
}

void store_drop_ports(struct store_tx *tx, const char *vm_id)
{
    if (record(tx, OP_DROP_PORTS))
        store_pack_text(&tx->data, vm_id);
}

void store_put_image(struct store_tx *tx, const struct store_image_row *row)
{
    if (!record(tx, OP_PUT_IMAGE))
        return;
    store_pack_text(&tx->data, row->id);
    store_pack_text(&tx->data, row->name);
    store_pack_text(&tx->data, row->doc);
}

void store_drop_image(struct store_tx *tx, const char *id)
{
    if (record(tx, OP_DROP_IMAGE))
        store_pack_text(&tx->data, id);
}

void store_prune(struct store_tx *tx, int64_t operations_before, int64_t keys_before, int64_t tombstones_before,
                 int64_t keep_events)
{
    const struct {
        enum store_op op;
        int64_t num;
    } steps[] = {
        {OP_PRUNE_OPERATION_KEYS, operations_before},
        {OP_PRUNE_OPERATIONS, operations_before},
        {OP_PRUNE_KEYS, keys_before},
        {OP_PRUNE_TOMBSTONES, tombstones_before},
        {OP_MARK_EVENTS, 0},
        {OP_PRUNE_EVENTS, keep_events > 0 ? keep_events : 0},
    };

    for (size_t i = 0; i < ARRAY_SIZE(steps); i++)
        if (record(tx, steps[i].op) && ops[steps[i].op].signature[0] != '\0')
            store_pack_int(&tx->data, steps[i].num);
}

int store_tx_prepare(struct store *store, struct error *err)
{
    const struct {
        sqlite3_stmt **stmt;
        const char *sql;
    } brackets[] = {
        {&store->begin, "BEGIN IMMEDIATE"},
        {&store->commit, "COMMIT"},
        {&store->rollback, "ROLLBACK"},
        {&store->savepoint, "SAVEPOINT tx"},
        {&store->release, "RELEASE tx"},
        {&store->rollback_to, "ROLLBACK TO tx"},
        {&store->page_count, "PRAGMA page_count"},
    };
    int rc = SQLITE_OK;

    for (size_t i = 0; i < ARRAY_SIZE(brackets) && rc == SQLITE_OK; i++)
        rc = sqlite3_prepare_v3(store->db, brackets[i].sql, -1, SQLITE_PREPARE_PERSISTENT, brackets[i].stmt, NULL);
    for (size_t i = 0; i < OP_MAX && rc == SQLITE_OK; i++)
        rc = sqlite3_prepare_v3(store->db, ops[i].sql, -1, SQLITE_PREPARE_PERSISTENT, &store->ops[i], NULL);
    return rc == SQLITE_OK ? 0 : store_db_error(store->db, rc, "read the database's schema", err);
}

int store_tx_apply(struct store *store, struct store_tx *tx, struct error *err)
{
    const char *p = tx->data.data, *end = p + tx->data.len;

    while (p < end) {
        enum store_op op = (enum store_op) * p++;
        sqlite3_stmt *stmt = store->ops[op];
        int rc = store_bind(stmt, ops[op].signature, &p);
        if (rc == SQLITE_OK)
            rc = sqlite3_step(stmt);
        if (rc != SQLITE_DONE)
            store_db_error(store->db, rc, ops[op].doing, err);
        sqlite3_reset(stmt);
        if (rc != SQLITE_DONE)
            return rc;
    }
    int dangling = 0, highest;
    sqlite3_db_status(store->db, SQLITE_DBSTATUS_DEFERRED_FKS, &dangling, &highest, 0);
    if (dangling == 0)
        return SQLITE_OK;
    error_set(err, ERR_DAEMON_INTERNAL, "cannot store a port: FOREIGN KEY constraint failed: ports.vm_id names no VM");
    return SQLITE_CONSTRAINT_FOREIGNKEY;
}

#ifdef VMMD_CRASH_POINTS
/* Skips the fields of a record; the one at `wanted` is returned where it is text. */
static const char *field_of(const char **p, const char *signature, int wanted)
{
    const char *found = NULL;

    for (int i = 0; signature[i] != '\0'; i++) {
        const char *text = NULL;
        if (signature[i] == 'i')
            store_unpack_int(p);
        else
            text = store_unpack_text(p, NULL);
        found = i == wanted ? text : found;
    }
    return found;
}

/* A transaction is named after its first operation; without one, after its first record. */
void store_tx_crash_point(const struct store_tx *tx, const char *when)
{
    const char *p = tx->data.data, *end = p + tx->data.len, *kind = NULL, *state = NULL;
    enum store_op first = p < end ? (enum store_op) * p : OP_MAX;

    while (p < end && kind == NULL) {
        enum store_op op = (enum store_op) * p++;
        const char *again = p;
        const char *field = field_of(&p, ops[op].signature, op == OP_PUT_OPERATION ? 1 : -1);
        if (op != OP_PUT_OPERATION)
            continue;
        kind = field;
        state = field_of(&again, ops[op].signature, 3);
    }
    if (kind != NULL)
        CRASH_POINT("store:%s:%s:%s", kind, state, when);
    else
        CRASH_POINT("store:%s:%s", first == OP_PUT_VM ? "vm" : first == OP_PUT_EVENT ? "events" : "prune", when);
}
#endif

void store_tx_deliver(struct store_tx *tx)
{
    CLEANUP_ERROR struct error err = ERROR_INIT;
    void (*done)(void *arg, struct error *err) = tx->done;
    void *arg = tx->arg;

    store_item_error(&tx->item, &err);
    store_tx_free(tx);
    if (done != NULL)
        done(arg, &err);
}
