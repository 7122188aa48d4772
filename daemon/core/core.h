/* core.h - the rules: the registry of VMs, their operations, events and waits, as resources ask for them.
 *
 *   resource handler ──► core_vm_*  ──► operation (core/ops/) ──► backend
 *                            │                 │
 *                            └── change ──► store ── durable ──► published: documents, events, waits
 *
 * What a reader sees (documents, events) is always durable: a change is rendered, written, and published when the store
 * has acknowledged it, in the order it was made.  Runs on: the loop thread; nothing here blocks it. */
#ifndef CORE_CORE_H
#define CORE_CORE_H

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#include "backend/backend.h"
#include "base/buf.h"
#include "base/error.h"
#include "core/peer.h"
#include "model/vm.h"
#include "store/store.h"

struct core;
struct live_vm;
struct operation;

struct core_config {
    const char *data_dir;
    const char *runtime_dir;
    int64_t disk_reserve_mb;       /* that a create or a start leaves free */
    const char *const *image_dirs; /* NULL-terminated, or NULL */
    int64_t events_keep;           /* newest events kept */
    int64_t operations_keep_s;     /* finished operations and idempotency keys */
    int64_t tombstones_keep_s;     /* ids of destroyed VMs */
    unsigned max_vms;
    unsigned max_operations;        /* under way at once; an eighth of them is not for the network */
    unsigned max_operations_per_vm; /* the holder and the kills and destroys behind it */
    int64_t restart_delay_ms;       /* before the first restart by policy; doubled each time */
    int64_t restart_max;            /* restarts within */
    int64_t restart_window_s;       /* this time, then the VM is left as it is */
    int64_t memory_reserve_mb;      /* of the host, for no VM */
    const char *host_root;          /* where /proc and /sys are looked for; NULL: "" */
    int64_t reconcile_interval_s;   /* between looks at the host; 0: only when asked */
    int64_t reap_grace_s;           /* how old a leftover is before it may be removed unasked */
    const char *helper_dir;   /* where vmmd-fetch and its like are; NULL: beside nothing, and no image is fetched */
    uint64_t max_image_bytes; /* of an image, fetched or virtual */
    const char *const *fetch_allow; /* addresses of this host and link-local ones that may be image servers; or NULL */
    const char *const *fetch_plain; /* registries that are asked without TLS; or NULL */
    const char *fetch_ca_file;      /* certificates; NULL: the system's */
    int64_t fetch_stall_s, fetch_timeout_s;
    unsigned max_execs, max_execs_per_vm; /* commands in guests */
};
void core_config_defaults(struct core_config *config);

/* `backends` is NULL-terminated and stays the caller's. */
struct core *core_new(struct loop *loop, struct store *store, struct backend *const *backends,
                      const struct core_config *config, struct error *err);
/* Loads the store (blocking, before the loop runs), then adopts what runs and settles what was interrupted; done(arg) comes
 * when every VM's state matches reality. */
int core_recover(struct core *core, void (*done)(void *arg), void *arg, struct error *err);
/* No new changes (503); operations under way are finished or parked (their rows say what to do); done(arg) then. */
void core_shutdown(struct core *core, int64_t grace_ms, void (*done)(void *arg), void *arg);
/* Before core_free where a shutdown was not waited for: all stands still, and what the store tells from now on only lets go. */
void core_abandon(struct core *core);
void core_free(struct core *core);
/* For the store's wake: dispatches what became durable. */
void core_store_ready(struct core *core);

/* Who asks, for events, logs and idempotency.  Strings are copied where kept; NULL: none. */
struct core_request {
    const char *request_id;
    const char *idempotency_key;
    const char *fingerprint;      /* of method, path and body */
    const struct core_peer *peer; /* NULL: vmmd itself */
};

/* --- VMs --- */

/* By id or name; ERR_VM_NOT_FOUND, ERR_LIFECYCLE_DESTROYED.  The pointer is good until the loop turns; take a reference
 * to keep it. */
struct live_vm *core_vm_find(struct core *core, const char *ref, struct error *err);
struct live_vm *core_vm_ref(struct live_vm *vm);
void core_vm_unref(struct live_vm *vm);
/* The VM as published; what is not published yet shows in neither. */
const char *core_vm_doc(const struct live_vm *vm, size_t *ret_len);
const struct vm *core_vm_data(const struct live_vm *vm); /* as it is this moment */
int64_t core_vm_generation(const struct live_vm *vm);
struct backend *core_vm_backend(const struct live_vm *vm);
struct backend_vm *core_vm_attached(const struct live_vm *vm); /* NULL at rest */

struct core_filter {
    const char *name_glob; /* NULL: any */
    bool by_state;
    unsigned states; /* bits */
    const char *backend;
    const char *label_keys[16];
    const char *label_values[16];
    unsigned n_labels;
};
/* Appends the documents of the VMs after `after` in order of names ("" for the first page), comma-separated, at most
 * `limit`.  *ret_last is the last name when there are more (mem_free), else NULL. */
int core_vm_list(struct core *core, const struct core_filter *filter, const char *after, unsigned limit,
                 struct buf *out, char **ret_last, struct error *err);
unsigned core_vm_count(const struct core *core, unsigned by_state[VM_STATE_MAX]);

/* --- changes: each begins an operation, durable before `accepted` is told --- */

/* body: the parsed request. */
int core_vm_create(struct core *core, const struct core_request *req, const json_t *body, struct operation **ret,
                   struct error *err);
struct core_verb_args {
    int64_t timeout_s;   /* stop and restart: how long the guest may take; -1: default */
    const json_t *steps; /* provision: checked (model/provision.h), in place of the spec's; NULL: those */
};
/* DELETE of a destroyed id comes as ref too: *ret is then a finished operation without effect. */
int core_vm_verb(struct core *core, const struct core_request *req, const char *ref, enum vm_verb verb,
                 const struct core_verb_args *args, const char *if_match, struct operation **ret, struct error *err);
/* A merge patch of labels and spec.  `done` comes once, when durable, with the error or with the VM's published document. */
int core_vm_patch(struct core *core, const struct core_request *req, const char *ref, const json_t *patch,
                  const char *if_match, void (*done)(void *arg, struct live_vm *vm, struct error *err), void *arg,
                  struct error *err);

/* --- images --- */

struct live_image;
struct live_image *core_image_find(struct core *core, const char *name, struct error *err); /* ERR_IMAGE_NOT_FOUND */
/* Appends its document, as published, with who uses it. */
void core_image_render(const struct live_image *image, struct buf *out);
/* As core_vm_list. */
int core_image_list(struct core *core, const char *name_glob, const char *after, unsigned limit, struct buf *out,
                    char **ret_last, struct error *err);
/* body: {name, url, sha256, format}.  The same as what is there already: *ret is an operation without effect. */
int core_image_pull(struct core *core, const struct core_request *req, const json_t *body, struct operation **ret,
                    struct error *err);
int core_image_convert(struct core *core, const struct core_request *req, const char *name, const json_t *body,
                       struct operation **ret, struct error *err);
/* An image that is sent: begins its operation, then takes its bytes.  length -1: not known.  more(arg) comes when more can be
 * taken after a write that took less than all. */
struct image_upload;
struct image_upload *core_image_upload(struct core *core, const struct core_request *req, const char *name,
                                       const char *sha256, const char *format, int64_t length, void (*more)(void *arg),
                                       void *arg, struct operation **ret, struct error *err);
size_t image_upload_write(struct image_upload *up, const void *data, size_t len); /* how much was taken */
void image_upload_end(struct image_upload *up);                                   /* that was all; free comes later */
void image_upload_abort(struct image_upload *up); /* who sent it has left: cancels the operation, frees */
void image_upload_free(
    struct image_upload *up); /* not before all that was written has left: when the operation has ended */
/* Removes what nobody uses, or says what it would remove; done once with the document. */
int core_image_prune(struct core *core, bool dry_run,
                     void (*done)(void *arg, const char *json, size_t len, struct error *err), void *arg,
                     struct error *err);
int core_image_delete(struct core *core, const struct core_request *req, const char *name, struct operation **ret,
                      struct error *err);

/* The operation that this key began: *ret, or NULL if the key is new; ERR_API_IDEMPOTENCY_MISMATCH if it belongs to
 * another request.  An operation no longer in memory comes as its id in ret_id (UUID_TEXT_MAX). */
int core_key_lookup(struct core *core, const struct core_request *req, struct operation **ret, char *ret_id,
                    struct error *err);

/* --- operations --- */

struct operation *operation_ref(struct operation *op);
void operation_unref(struct operation *op);
const char *operation_id(const struct operation *op);
const char *operation_doc(struct operation *op);  /* as published */
bool operation_ended(const struct operation *op); /* durably */
/* The error of one that failed; NULL otherwise. */
const struct error *operation_error(const struct operation *op);
const char *operation_path(const struct operation *op); /* what it was asked on, for `instance`: "/v1/vms/web" */

struct operation_watch;
/* Calls fn(arg) once, on a later turn: with err unset when the operation is durable (`ended` false) or has ended
 * (`ended` true); with err set when it could not be begun. */
struct operation_watch *operation_watch(struct operation *op, bool ended, void (*fn)(void *arg, struct error *err),
                                        void *arg);
void operation_unwatch(struct operation_watch *w);

struct operation *core_operation_find(struct core *core, const char *id); /* in memory only */
/* ERR_OPERATION_NOT_FOUND-aware: not in memory and of the store: read it with store_read_operation. */
struct store *core_store(struct core *core);
int core_operation_cancel(struct core *core, struct operation *op, const char *request_id, struct error *err);
unsigned core_operation_count(const struct core *core);
unsigned core_vm_operation_count(const struct core *core); /* of the VM that has most */

/* --- the disk --- */

/* The file system of the data directory, as it was a few seconds ago. */
struct disk_room {
    bool known;
    uint64_t total, free; /* bytes */
    bool files_short;     /* hardly any more files can be made */
};
const struct disk_room *core_disk_room(const struct core *core);

/* --- events --- */

int64_t core_event_newest(const struct core *core); /* published */
int64_t core_event_oldest(const struct core *core);
struct event_filter {
    const char *vm;        /* id or name; NULL: any */
    const char *type_glob; /* NULL: any */
};
struct event_sub;
/* Every event after `since` that matches, in order, first from the store, then live; `fn` gets its id, type and document;
 * type NULL: what comes next is no longer kept, only unsubscribing is left to do.
 * since -1: from now on.  ERR_EVENTS_CURSOR_EXPIRED with context.oldest: no longer kept, or never there. */
struct event_sub *core_events_subscribe(struct core *core, int64_t since, const struct event_filter *filter,
                                        void (*fn)(void *arg, int64_t id, const char *type, const char *doc), void *arg,
                                        struct error *err);
void core_events_unsubscribe(struct event_sub *sub); /* also from fn; NULL is fine */
/* A replay stops after the batch it is at, and goes on when hold is false; live events come all the same.  Also from fn. */
void core_events_hold(struct event_sub *sub, bool hold);

/* --- waits --- */

enum { VM_WAIT_CONDITIONS_MAX = 8 };
struct vm_wait;
/* Ends once: met (err unset), or wait::timed_out, wait::impossible.  `conditions`: "state:running", "ready", "agent".
 * Fails at once for a condition nobody knows: ERR_API_INVALID_FIELD. */
struct vm_wait *core_vm_wait(struct live_vm *vm, const char *const *conditions, unsigned n, int64_t timeout_ms,
                             void (*done)(void *arg, struct live_vm *vm, struct error *err), void *arg,
                             struct error *err);
void core_vm_unwait(struct vm_wait *w);

/* --- logs and explain --- */

/* Where a VM's log is: its backend's, or that of provisioning.  -1: it has none. */
int core_log_path(const struct live_vm *vm, enum backend_log which, char *out);

struct core_log_chunk {
    const char *data;
    size_t len;
    uint64_t offset; /* of data[0]: behind what was asked for when bytes are no longer kept */
    uint64_t oldest, next;
};
struct log_read;
/* Reads a VM's log on the pool: the last `tail` lines, or from `offset` when tail is -1; at most `max` bytes.  done comes
 * once, on a later turn (chunk NULL on error), unless log_read_cancel comes first.  NULL with err set when nothing began. */
struct log_read *core_log_read(struct live_vm *vm, enum backend_log which, int64_t tail, uint64_t offset, size_t max,
                               void (*done)(void *arg, const struct core_log_chunk *chunk, struct error *err),
                               void *arg, struct error *err);
void log_read_cancel(struct log_read *r); /* not after done */

struct log_follow;
/* Reads on as bytes come.  `fn` gets each chunk, then waits for log_follow_more: a slow reader is not flooded.  chunk NULL: the
 * VM is gone; only log_follow_end is left to do. */
struct log_follow *core_log_follow(struct live_vm *vm, enum backend_log which, int64_t tail, uint64_t offset,
                                   void (*fn)(void *arg, const struct core_log_chunk *chunk), void *arg,
                                   struct error *err);
void log_follow_more(struct log_follow *f);
void log_follow_end(struct log_follow *f); /* NULL is fine; from fn too */
/* Gathers the answer of GET explain; done once with the document (mem_free is the caller's) or an error, unless
 * core_explain_cancel comes first.  *ret is set before anything is told. */
struct explain;
int core_vm_explain(struct live_vm *vm, void (*done)(void *arg, char *json, struct error *err), void *arg,
                    struct explain **ret, struct error *err);
void core_explain_cancel(struct explain *e); /* not after done */

/* --- what nobody owns on this host --- */

struct leaks_wait;
/* Calls done once, on a later turn, when the list is of now (a second old at most), or could not be made; unless
 * core_leaks_cancel comes first. */
struct leaks_wait *core_leaks_read(struct core *core, void (*done)(void *arg, struct error *err), void *arg,
                                   struct error *err);
void core_leaks_cancel(struct leaks_wait *w); /* not after done */
/* Appends the answer of GET /v1/host/leaks, by the last survey. */
void core_leaks_put(struct core *core, struct buf *out);
/* How many there are of each kind. */
void core_leaks_count(const struct core *core, void (*fn)(void *arg, const char *kind, unsigned n), void *arg);
/* Removes those older than `older_than_s` (-1: the grace time) that cannot be adopted.  done comes once, on a later turn, with the
 * answer's text, which is the receiver's to mem_free, or an error; from core_free at the latest. */
int core_leaks_reap(struct core *core, bool dry_run, int64_t older_than_s,
                    void (*done)(void *arg, char *answer, struct error *err), void *arg, struct error *err);
/* Takes VMs back, each by its id; done as above, when what was adopted is durable. */
int core_adopt(struct core *core, const char *request_id, const char *const *ids, size_t n,
               void (*done)(void *arg, char *answer, struct error *err), void *arg, struct error *err);

struct loop *core_loop(struct core *core);
bool core_stopping(const struct core *core);
struct backend *core_backend(struct core *core, const char *name); /* NULL: none of this name */
struct backend *const *core_backends(struct core *core);
const struct core_config *core_get_config(const struct core *core);

#endif
