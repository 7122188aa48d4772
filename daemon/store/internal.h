/* internal.h - what the files of daemon/store share; nobody else includes it.
 *
 *   store_tx_* / store_read_*  build an item (loop) ─► queue ─► writer.c runs it ─► finished ─► store_dispatch (loop)
 *
 * A row travels as a record: an op byte, then its fields as the op's signature says ('t' text, 'i' integer), all in one
 * buffer per item.  The same packing carries rows to the writer and rows back from reads. */
#ifndef STORE_INTERNAL_H
#define STORE_INTERNAL_H

#include <pthread.h>
#include <sqlite3.h>

#include "base/buf.h"
#include "store/store.h"

enum {
    STORE_APPLICATION_ID = 0x766d6d64, /* "vmmd" */
    STORE_TX_MAX = 64 << 20,           /* bytes of one transaction, and of the answer to one read */
    STORE_GROUP_MAX = 512,             /* transactions in one COMMIT */
    STORE_CHECKPOINT_PAGES = 1000,
    STORE_GROWTH_PAGES = 192,     /* that the log holds and the database has no room for yet: less than the reserve */
    STORE_PAGES_MAX = 0x3fffffff, /* SQLite's own limit, or near it */
    STORE_PAGE_BYTES = 4096,
    STORE_CHUNK_BYTES = 64 << 10, /* by which the file grows */
    STORE_LOG_BYTES = 256 << 10,  /* that the log has from the start */
    STORE_SPARES = 16,
    STORE_COLUMNS_MAX = 8,
};

/* Everything that goes through the queue starts with this. */
struct store_item {
    struct store_item *next;
    struct error *err; /* NULL: fine, or failed without the memory to say why */
    bool is_read, failed, spare, frees;
};

struct store_tx {
    struct store_item item;
    struct buf data;
    void (*done)(void *arg, struct error *err);
    void *arg;
};

/* The statements that change rows, one per kind of record. */
enum store_op {
    OP_PUT_VM,
    OP_PUT_OPERATION,
    OP_PUT_KEY,
    OP_PUT_EVENT,
    OP_PUT_PORT,
    OP_DROP_PORTS,
    OP_PUT_IMAGE,
    OP_DROP_IMAGE,
    OP_PRUNE_OPERATION_KEYS,
    OP_PRUNE_OPERATIONS,
    OP_PRUNE_KEYS,
    OP_PRUNE_TOMBSTONES,
    OP_MARK_EVENTS,
    OP_PRUNE_EVENTS,
    OP_MAX,
};

/* The statements of reads. */
enum store_query {
    QUERY_OPERATION,
    QUERY_OPERATIONS,
    QUERY_OPERATIONS_STATE,
    QUERY_OPERATIONS_VM,
    QUERY_OPERATIONS_VM_STATE,
    QUERY_EVENTS,
    QUERY_EVENTS_NEWEST,
    QUERY_EVENTS_VM,
    QUERY_EVENTS_VM_NEWEST,
    QUERY_ORPHAN_PORTS,
    QUERY_MAX,
};

struct store_read {
    struct store_item item;
    struct buf params; /* packed, as the query's signature */
    struct buf rows;   /* packed by the writer */
    enum store_query query;
    bool cancelled; /* loop thread only */
    void (*operation_done)(void *arg, const struct store_operation_row *row, struct error *err);
    void (*operation_row)(void *arg, const struct store_operation_row *row);
    void (*event_row)(void *arg, const struct store_event_row *row);
    void (*port_row)(void *arg, const struct store_port_row *row);
    void (*done)(void *arg, struct error *err);
    void *arg;
};

struct store_list {
    struct store_item *head, **tail;
};

struct store {
    char path[4096];
    void (*wake)(void *arg);
    void *wake_arg;

    /* the writer thread's alone, once it runs */
    sqlite3 *db;
    sqlite3_stmt *page_count;
    int64_t folded_pages; /* of the database when its log was last folded into it */
    sqlite3_stmt *begin, *commit, *rollback, *savepoint, *release, *rollback_to;
    sqlite3_stmt *ops[OP_MAX];
    sqlite3_stmt *queries[QUERY_MAX];
    int wal_pages;
    char reserve_path[4096];
    int reserve_fd;
    bool reserve_missing; /* it is not whole: there was no room for it, or it was given away */
    bool reserve_spent;   /* given away, for the disk is full: only what frees room is written */
    bool pages_held;      /* the database may not grow */
    bool checkpoint_failed;

    pthread_t thread;
    pthread_mutex_t lock; /* guards what follows */
    pthread_cond_t wanted;
    pthread_cond_t idle; /* nothing is queued any more */
    struct store_list queue, finished;
    bool stopping;
    struct store_stats stats;
    int64_t events_gone; /* the newest event that made room on a full disk */

    /* the loop thread's alone */
    struct store_list ready;
    bool dispatching;
    struct store_tx spares[STORE_SPARES]; /* carry the news that memory was short */
};

/* schema.c, migrations.c: brings the database to the newest schema, or refuses it. */
extern const char store_schema_1[], store_schema_2[];
int store_migrate(sqlite3 *db, const char *path, struct error *err);
/* The newest schema this vmmd knows. */
int store_schema_newest(void);
/* Is it ours, and not newer than we are?  *ret_version is 0 for an empty database. */
int store_identify(sqlite3 *db, const char *path, int64_t *ret_version, struct error *err);

/* db.c: connections.  Blocking, any thread; each connection is used by one thread at a time. */
int store_db_open(const char *path, bool writable, sqlite3 **ret, struct error *err);
int store_db_exec(sqlite3 *db, const char *sql, const char *doing, struct error *err);
int store_db_int(sqlite3 *db, const char *sql, int64_t *ret, struct error *err);
/* Makes one line of what may hold bytes of a damaged file. */
void store_one_line(char *text);
/* The error of the last call on db, which returned rc.  Returns -1. */
int store_db_error(sqlite3 *db, int rc, const char *doing, struct error *err);

/* The error of a change that a full disk refuses.  Returns -1. */
int store_full_error(const char *path, const char *doing, struct error *err);

/* reserve.c: makes the reserve whole; NONE where none can be kept for another reason than want of room. */
enum store_reserve { STORE_RESERVE_KEPT, STORE_RESERVE_NO_ROOM, STORE_RESERVE_NONE };
enum store_reserve store_reserve_keep(struct store *store);
/* Whether there is room for it and for some more: one that takes the last room helps nobody. */
bool store_reserve_fits(const struct store *store);
/* Gives its room away; false: there was none. */
bool store_reserve_spend(struct store *store);
/* The log has room of its own from the start, where there is some: it is written over again and again. */
void store_reserve_grow_log(struct store *store);
/* How many pages the database's file has room for, and one chunk more; false: there is no room. */
int64_t store_reserve_file_pages(const struct store *store);
bool store_reserve_grow_file(struct store *store);
/* Makes room inside the database at the price of the oldest events and operations; false: there is none left to make. */
bool store_reserve_stretch(struct store *store);

/* tx.c: records. */
void store_pack_text(struct buf *b, const char *text); /* NULL is kept */
void store_pack_int(struct buf *b, int64_t num);
const char *store_unpack_text(const char **p, size_t *ret_len); /* ret_len may be NULL */
int64_t store_unpack_int(const char **p);
/* Binds the packed fields; returns an SQLite code.  The text must live until the statement is reset. */
int store_bind(sqlite3_stmt *stmt, const char *signature, const char **p);
/* Prepares all statements of changes and transactions. */
int store_tx_prepare(struct store *store, struct error *err);
/* Executes the records of tx on the writer thread, inside an open transaction; returns an SQLite code, and with it err.
 */
int store_tx_apply(struct store *store, struct store_tx *tx, struct error *err);
#ifdef VMMD_CRASH_POINTS
/* The crash point before or after the COMMIT that this tx is in. */
void store_tx_crash_point(const struct store_tx *tx, const char *when);
#endif
/* Reports to the tx's owner and frees it; loop thread. */
void store_tx_deliver(struct store_tx *tx);

/* read.c */
int store_read_prepare(struct store *store, struct error *err);
void store_read_run(struct store *store, struct store_read *read); /* writer thread */
void store_read_deliver(struct store_read *read);                  /* loop thread; frees */
void store_read_free(struct store_read *read);

/* writer.c */
void *store_writer(void *arg);
void store_enqueue(struct store *store, struct store_item *item);
void store_list_init(struct store_list *list);
void store_list_add(struct store_list *list, struct store_item *item);
struct store_item *store_list_pop(struct store_list *list);
/* Moves all of src to the end of dst. */
void store_list_move(struct store_list *dst, struct store_list *src);
/* Marks the item failed by err (moved); keeps the first failure. */
void store_item_fail(struct store_item *item, struct error *err);
/* The failure of an item as an error, for its owner; unset where it went well. */
void store_item_error(struct store_item *item, struct error *ret);

#endif
