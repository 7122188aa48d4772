/* store.h - the durable truth: SQLite (WAL, synchronous=FULL) behind one writer thread with group commit.
 *
 *   loop thread                                writer thread
 *   store_commit(tx) ──── queue, in order ───► BEGIN … all that queued meanwhile … COMMIT (one fsync)
 *   tx->done ◄── store_dispatch ◄── wake() ──── results, in order
 *
 * Transactions are applied in the order they were committed, each wholly or not at all; a tx that fails alone (a constraint)
 * fails alone, an I/O error fails the group.  daemon/store is the only user of sqlite3.h.  Documents are opaque text to it.
 * Nobody but SQLite opens the database file while a store is open: closing another descriptor of it drops its locks.
 * Runs on: the loop thread, except `wake`, which is called on the writer thread, and no more once store_close returns. */
#ifndef STORE_STORE_H
#define STORE_STORE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/error.h"
#include "base/uuid.h"

struct store;
struct store_tx;

/* Opens or makes DIR/vmmd.db (0600), migrates it, and starts the writer thread.  Blocking: only before the loop runs.
 * Fails: ERR_IO; ERR_DAEMON_INTERNAL with a clear message when the schema is newer than this vmmd, or the file is no
 * database of ours or damaged. */
int store_open(const char *dir, void (*wake)(void *arg), void *arg, struct store **ret, struct error *err);
/* Writes what is queued, stops the thread, closes.  Transactions' done callbacks not yet dispatched are dropped. */
void store_close(struct store *store);
/* Waits until all that is queued is written or read and tells it, and so on with what its callbacks queue.  Blocking: only when
 * the loop no longer runs. */
void store_drain(struct store *store);
/* Calls the done callbacks of finished transactions and reads, in order.  For the loop, after wake. */
void store_dispatch(struct store *store);
/* vmmd --check: integrity_check, foreign keys, schema version, every document parses, counts.  Prints findings by `say`;
 * -1 if anything is wrong.  Opens the database read-only; blocking. */
int store_check(const char *dir, void (*say)(void *arg, const char *line), void *arg, struct error *err);

/* Blocking loads, before the loop runs; in the order of ids.  A callback's -1 (with err set) ends the load. */
struct store_vm_row {
    const char *id, *name, *doc, *private_doc;
    int64_t destroyed_at; /* 0: alive */
};
struct store_operation_row {
    const char *id, *kind, *vm_id, *state, *doc;
    int64_t created_at, finished_at; /* wall ms; 0: not finished */
};
struct store_key_row {
    const char *key, *fingerprint, *operation_id;
    int64_t created_at;
};
struct store_image_row {
    const char *id, *name, *doc;
};
int store_load_images(struct store *store, int (*fn)(void *arg, const struct store_image_row *row, struct error *err),
                      void *arg, struct error *err);
int store_load_vms(struct store *store, int (*fn)(void *arg, const struct store_vm_row *row, struct error *err),
                   void *arg, struct error *err);
/* Unfinished operations only. */
int store_load_operations(struct store *store,
                          int (*fn)(void *arg, const struct store_operation_row *row, struct error *err), void *arg,
                          struct error *err);
/* The steps of unfinished operations, as the events tell them, in the order of time. */
struct store_step_row {
    const char *vm_id, *operation_id;
    const char *step, *state; /* NULL where the event is damaged */
    int64_t ms;
};
int store_load_steps(struct store *store, int (*fn)(void *arg, const struct store_step_row *row, struct error *err),
                     void *arg, struct error *err);
int store_load_keys(struct store *store, int (*fn)(void *arg, const struct store_key_row *row, struct error *err),
                    void *arg, struct error *err);
/* The newest and oldest event ids (0: none; newest never goes back, also when old events were pruned). */
int store_event_range(struct store *store, int64_t *ret_oldest, int64_t *ret_newest, struct error *err);

/* A transaction under construction.  The adders copy what they are given; NULL tx is ignored; when memory is short the tx
 * is marked and store_commit reports it.  store_commit owns the tx; store_tx_free drops one that is not wanted. */
struct store_tx *store_tx_new(struct store *store);
void store_tx_free(struct store_tx *tx);
/* It frees room (destroy, kill, stop, prune), or tells what has happened and cannot be refused: on a full disk it may use
 * the room kept aside for such. */
void store_tx_use_reserve(struct store_tx *tx);
void store_put_vm(struct store_tx *tx,
                  const struct store_vm_row *row); /* insert or replace; name unique among the living */
void store_put_operation(struct store_tx *tx, const struct store_operation_row *row);
void store_put_key(struct store_tx *tx, const struct store_key_row *row);
void store_put_event(struct store_tx *tx, int64_t id, int64_t at, const char *type, const char *vm_id, const char *doc);
void store_put_port(struct store_tx *tx, bool udp, const char *host_ip, uint16_t port,
                    const char *vm_id); /* unique; the VM is stored, by this tx (in any order) or before */
void store_drop_ports(struct store_tx *tx, const char *vm_id);
void store_put_image(struct store_tx *tx, const struct store_image_row *row); /* insert or replace; name unique */
void store_drop_image(struct store_tx *tx, const char *id);
/* Forgets operations and keys finished before, tombstones destroyed before, and all but the newest `keep_events` events. */
void store_prune(struct store_tx *tx, int64_t operations_before, int64_t keys_before, int64_t tombstones_before,
                 int64_t keep_events);
/* Queues it.  `done` comes exactly once by store_dispatch: err unset when durable (ERR_IO, ERR_HOST_DISK_FULL, or
 * ERR_DAEMON_INTERNAL for a broken constraint).  done may be NULL. */
void store_commit(struct store *store, struct store_tx *tx, void (*done)(void *arg, struct error *err), void *arg);

/* Reads on the writer thread, after all that was committed before.  `row` is called on the loop for each row, then `done`
 * exactly once; strings are valid during the call, and NULL where NULL was stored.  store_read_cancel silences one.
 * NULL is returned when memory is short: then nothing is called.  An answer beyond 64 MiB fails. */
struct store_read;
struct store_read *store_read_operation(struct store *store, const char *id,
                                        void (*done)(void *arg, const struct store_operation_row *row,
                                                     struct error *err),
                                        void *arg); /* row NULL: none */
/* Newest first, ids below `before` ("" or NULL: all), filtered where not NULL. */
struct store_read *store_read_operations(struct store *store, const char *before, const char *state, const char *vm_id,
                                         unsigned limit, void (*row)(void *arg, const struct store_operation_row *row),
                                         void (*done)(void *arg, struct error *err), void *arg);
struct store_event_row {
    int64_t id, at;
    const char *type, *vm_id, *doc;
};
/* Oldest first, ids above `since`; vm_id and the type glob (GLOB of SQLite) filter where not NULL. `newest_first` for histories. */
struct store_read *store_read_events(struct store *store, int64_t since, const char *vm_id, const char *type_glob,
                                     bool newest_first, unsigned limit,
                                     void (*row)(void *arg, const struct store_event_row *row),
                                     void (*done)(void *arg, struct error *err), void *arg);
/* The ports of no living VM; vm_name is NULL where its row is gone too. */
struct store_port_row {
    bool udp;
    const char *host_ip;
    uint16_t port;
    const char *vm_id, *vm_name;
};
struct store_read *store_read_orphan_ports(struct store *store, unsigned limit,
                                           void (*row)(void *arg, const struct store_port_row *row),
                                           void (*done)(void *arg, struct error *err), void *arg);
void store_read_cancel(struct store_read *read);

/* The newest event that was forgotten to make room on a full disk; 0: none.  Any thread. */
int64_t store_events_gone(struct store *store);

struct store_stats {
    uint64_t commits, transactions, failed;
    int64_t last_commit_us, max_commit_us;
    unsigned queued;
};
void store_stats(struct store *store, struct store_stats *ret);

#endif
