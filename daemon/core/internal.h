/* internal.h - what the files of core/ share. */
#ifndef CORE_INTERNAL_H
#define CORE_INTERNAL_H

#include "base/table.h"
#include "core/core.h"
#include "loop/loop.h"
#include "loop/timer.h"
#include "model/image.h"

struct change;
struct logfile;
struct vm_plan;

struct core {
    struct loop *loop;
    struct store *store;
    struct backend *const *backends;
    const char **backend_names; /* NULL-terminated */
    struct core_config config;

    struct table by_id;        /* live_vm.id_node: also the destroyed, as long as somebody holds or asks for them */
    struct table by_name;      /* live_vm.name_node: the living */
    struct live_vm **by_order; /* the living, sorted by name */
    size_t n_vms, cap_order;
    struct table tombstones;
    struct table ports;
    struct table macs; /* live_vm.mac_node */

    struct table operations;                    /* those under way, and the newest that ended */
    struct operation *ended_first, *ended_last; /* in order of their end */
    unsigned n_ended, n_running;
    unsigned files_promised; /* to starts under way */
    struct vm_op *vm_ops;    /* all of them: under way, queued, or waiting for the store */
    struct recovery *recoveries;
    struct table keys;

    struct live_image **images; /* sorted by name */
    size_t n_images, cap_images;
    struct image_op *image_ops;
    struct pull *pulls;
    /* Of tests: asked when a step of an operation on an image begins and when it has been done; OP_WAIT holds it there. */
    int (*image_probe)(struct image_op *io, bool done, struct error *err);

    int64_t event_next;   /* id of the next event */
    int64_t event_newest; /* published */
    int64_t event_oldest;
    struct event_sub *subs;

    struct change *lazy; /* step events waiting for company */
    struct timer *lazy_timer;
    struct timer *prune_timer;
    struct timer *policy_timer;
    char last_boot[40]; /* the boot of the host that the last daemon knew; "": none */
    bool booted;        /* the host was booted since */
    struct boot *boot;  /* the row of autostart; NULL: done */
    struct owed *owed;  /* refused by the store, to be written again */
    unsigned n_execs;
    uint64_t execs_total;
    struct timer *owed_timer;
    struct leaks *leaks;

    int64_t promised_mb; /* memory: to the starts under way */
    int64_t memory_mb;   /* available, as it was read */
    int64_t memory_read_at;
    const char *memory_limit;                  /* what sets it: "host", "cgroup" */
    struct disk_ask *disk_asks, *disk_answers; /* for the next look, and for the one under way */
    struct disk_look *disk_look;
    struct disk_room disk_room; /* as last seen */
    struct timer *disk_timer;
    struct loop_task disk_task;
    uint64_t disk_promised; /* bytes that operations under way were told there are */
    bool disk_hung;

    bool stopping;
    bool parked;        /* operations stand still for good: none begins or goes on */
    unsigned n_changes; /* not yet durable */
    void (*stopped)(void *arg);
    void *stopped_arg;
    struct timer *stop_timer;
    unsigned recovering;
    void (*recovered)(void *arg);
    void *recovered_arg;
    struct loop_task idle_task;
};

struct live_vm {
    struct vm vm;
    struct core *core;
    unsigned refs;
    struct table_node id_node, name_node, mac_node;
    bool mac_listed;
    bool ports_moved; /* its rows of ports are written with each document from now on */
    struct backend *be;
    struct backend_vm *bvm;
    struct vm_op *op;      /* the one that holds it */
    struct vm_op *op_next; /* kill and destroy waiting for it to let go, in order */
    struct vm_wait *waits;
    struct patch *patches; /* not yet durable, oldest first */
    char *doc;             /* as published */
    size_t doc_len;
    enum vm_state pub_state;
    int64_t pub_generation;
    bool pub_conditions[VM_COND_MAX];
    bool gone;     /* destroyed */
    bool visible;  /* its first document is published */
    bool settling; /* an unplanned end is being written */
    bool unresponsive;
    int64_t restart_due;   /* monotonic ms; 0: none waits */
    int64_t ttl_again;     /* monotonic ms: not destroyed by ttl_s before */
    struct leftover *left; /* of the daemon before, until recovery settles them; the newest first */
    bool owed;             /* to be written again */
    bool owes_event;       /* of the state it was in before that, owed_from */
    enum vm_state owed_from;
    const char *io_late;      /* why a disk failed while an operation held it; NULL: none did */
    struct live_image *image; /* of the cache, that its disk stands on; referenced */
    struct live_vm *image_next, **image_at;
    unsigned n_execs;
    bool agent_runs;               /* the agent has run a command */
    struct logfile *provision_log; /* while provisioning is under way */
};

/* An image of the cache. */
struct live_image {
    struct image image;
    struct core *core;
    unsigned refs;
    struct image_op *op;   /* the one that holds it */
    struct live_vm *users; /* VMs that stand on it */
    unsigned awaited;      /* creates that wait for it */
    unsigned n_ops;        /* that hold it, or follow one that does */
    char *doc;             /* as published; NULL: not yet */
    bool gone, deleting;
};

/* --- change.c: render, write, publish --- */

/* A set of documents and events that become durable together.  NULL is accepted everywhere (memory was short). */
struct change *change_new(struct core *core);
void change_frees(struct change *ch, enum vm_verb verb); /* of a verb that frees room: the store's reserve is for it */
void change_happened(
    struct change *ch);              /* nobody asked for it and nobody can refuse it: the reserve is for it as well */
void change_drop(struct change *ch); /* one that is not wanted; NULL is fine */
/* Raises the VM's revision and renders it. `destroyed` makes it a tombstone. */
void change_vm(struct change *ch, struct live_vm *vm, bool destroyed);
void change_operation(struct change *ch, struct operation *op);
/* An operation's row of the daemon before. */
void change_leftover(struct change *ch, const char *id, const char *kind, const char *vm_id, const char *state,
                     const char *doc, int64_t created_at, int64_t finished_at);
/* at 0: the key is given back. */
void change_key(struct change *ch, const char *key, const char *fingerprint, const char *operation_id, int64_t at);
/* operation.finished of such an operation; data is stolen. */
void change_leftover_event(struct change *ch, const char *vm_id, const char *vm_name, const char *operation_id,
                           json_t *data);
/* data is stolen and may be NULL ({}). */
void change_event(struct change *ch, const char *type, const struct live_vm *vm, const struct operation *op,
                  const char *request_id, json_t *data);
/* Renders the image; `drop`: it is gone.  Adds an event. */
void change_image(struct change *ch, struct live_image *image, bool drop, const struct operation *op,
                  const char *event);
void change_ports(struct change *ch, const struct live_vm *vm, bool drop);
/* Adds a state_changed event. */
void change_state_event(struct change *ch, const struct live_vm *vm, const struct operation *op, enum vm_state from,
                        const char *cause);
/* Writes; done (may be NULL) comes once on a later turn, after publication.  For a NULL change it comes at once, refused:
 * who cannot take that makes the change first. */
void change_commit(struct change *ch, void (*done)(void *arg, struct error *err), void *arg);
/* An event that need not be written at once: it rides along with the next change, or after 50 ms. */
void change_lazy_event(struct core *core, const char *type, const struct live_vm *vm, const struct operation *op,
                       json_t *data);
void change_flush_lazy(struct core *core);
void core_check_idle(struct core *core);
/* Forgets what is older than the config keeps, in memory and in the store. */
void core_prune(struct core *core);

/* --- request.c: what every change is refused by --- */

int core_stopping_error(const struct core *core, struct error *err);
int core_check_etag(const struct live_vm *vm, const char *if_match, struct error *err);

/* --- owed.c: what the store refused is written again --- */

void owed_vm(struct live_vm *vm);
void owed_operation(struct operation *op); /* one that has ended */
void owed_due(void *core);
void owed_drop(struct core *core);

/* --- disk.c: is there room? --- */

struct disk_ask;
/* Calls fn(arg, err) once, on a later turn: ERR_HOST_DISK_FULL unless data_need bytes are free in the data directory beside the
 * reserve, and run_need in the runtime directory; with err unset data_need has been added to core->disk_promised, to be taken
 * off when it is used or not wanted any more.  NULL when memory is short. */
struct disk_ask *disk_ask(struct core *core, uint64_t data_need, uint64_t run_need,
                          void (*fn)(void *arg, struct error *err), void *arg);
void disk_forget(struct disk_ask *ask); /* before fn came */
/* What was promised as *room is so much from now on. */
void disk_promise(struct core *core, uint64_t *room, uint64_t now);
uint64_t disk_reserve(const struct core *core); /* bytes that are kept free; 0 where nothing is known */
int disk_begin(struct core *core);              /* -1: no memory */
void disk_end(struct core *core);

/* --- registry.c --- */

struct live_vm *registry_add(struct core *core, struct vm *vm /* moved */, struct backend *be, struct error *err);
struct live_vm *registry_by_name(struct core *core, const char *name); /* also one not published yet; NULL: none */
struct live_vm *registry_by_id(struct core *core, const char *text);
void vm_ops_park(struct core *core); /* gives up all operations where they stand */
void vm_ops_drop(struct core *core); /* frees what was parked */
void recoveries_drop(struct core *core);
void registry_remove(struct live_vm *vm); /* its name is free, its id a tombstone */
int tombstone_add(struct core *core, const struct uuid *id, const char *name, int64_t at);
const char *tombstone_find(struct core *core, const struct uuid *id); /* its name or NULL */
void tombstones_prune(struct core *core, int64_t before);
void registry_free(struct core *core);
void live_vm_detach(struct live_vm *vm);
int live_vm_attach(struct live_vm *vm, struct error *err);

/* --- images.c: the image cache's registry --- */

struct live_image *images_add(struct core *core, struct image *image /* moved */, struct error *err);
struct live_image *images_by_name(struct core *core, const char *name); /* also one not published yet */
struct live_image *image_ref(struct live_image *image);
void image_unref(struct live_image *image);
void images_remove(struct live_image *image); /* its name is free */
/* The VM stands on the image from now on (NULL: on none), and says so in its runtime.  -1: no memory. */
int image_use(struct live_vm *vm, struct live_image *image);
void image_unuse(struct live_vm *vm);
/* By the image's name that the VM's runtime has: after loading both. */
void image_reuse(struct live_vm *vm);
int images_load(struct core *core, struct error *err);
/* At the start, before anybody serves: images that never came to be are forgotten, files that no row owns removed. */
void images_settle(struct core *core);
void images_prune_parts(struct core *core); /* old part files, on the pool */
void images_free(struct core *core);
char *images_path(const struct core *core, const char *stem, const char *suffix); /* mem_free */
void image_ops_park(struct core *core);
void image_ops_drop(struct core *core);
int image_op_cancel(struct image_op *io, struct error *reason);

/* --- alloc.c: host ports and MACs --- */

/* Claims the VM's forwards and its SSH port (chosen where 0) and gives it a MAC.  ERR_NETWORK_PORT_IN_USE. */
int alloc_vm(struct live_vm *vm, bool probe, struct error *err);
void alloc_release(struct live_vm *vm);
void alloc_free(struct core *core);

/* A VM at rest that comes back: what was chosen for it and is another's by now is chosen anew by alloc_vm. */
void alloc_renew(struct live_vm *vm);

/* --- leaks.c: what nobody owns --- */

int leaks_new(struct core *core);
/* After the recovery: looks at the host now, and from time to time. */
void leaks_begin(struct core *core);
void leaks_free(struct core *core);

/* --- operation.c --- */

enum operation_state {
    OPERATION_PENDING,
    OPERATION_RUNNING,
    OPERATION_SUCCEEDED,
    OPERATION_FAILED,
    OPERATION_CANCELLED
};
enum { OPERATION_STEPS_MAX = 12 };

struct operation_step {
    const char *name; /* of the table, or owned by the operation's document when loaded */
    enum op_step_state state;
    bool skipped;
    int64_t started_ms; /* monotonic */
    int64_t ms;
};

struct operation {
    struct core *core;
    unsigned refs;
    struct uuid uuid;
    char id[UUID_TEXT_MAX];
    struct table_node node;
    const char *kind; /* "vm.start" */
    char vm_id[UUID_TEXT_MAX];
    char *vm_name;
    char *request_id;
    char *path;
    enum operation_state state, pub_state;
    struct operation_step steps[OPERATION_STEPS_MAX];
    unsigned n_steps, step; /* index of the current one */
    bool step_begun;
    struct error error;
    json_t *result;
    const char *method; /* of a stop: "acpi" */
    bool cancellable;
    bool accepted, refused;
    struct error refusal;
    int64_t created_at, deadline, finished_at;
    char *doc;
    bool dirty;
    struct operation_watch *watches;
    struct vm_op *vo; /* while under way */
    struct image_op *io;
    char *image_name; /* of an operation on an image */
    bool has_progress;
    int64_t progress_done, progress_total; /* total -1: not known */
    const char *progress_unit;             /* NULL: bytes */
    int64_t progress_told;                 /* monotonic ms of the last event */
    struct operation *ended_next;
    bool listed_ended;
};

struct operation *operation_new(struct core *core, const char *kind, const struct live_vm *vm,
                                const struct core_request *req, struct error *err);
/* One that the daemon before began, to be carried on: it is durable already. */
struct operation *operation_again(struct core *core, const char *kind, const struct live_vm *vm, const char *id,
                                  int64_t created_at, struct error *err);
/* One on an image; its path and target are told at birth. */
struct operation *operation_new_image(struct core *core, const char *kind, const char *image_name,
                                      const struct core_request *req, struct error *err);
/* Shown at once; an event of it now and then. */
void operation_progress(struct operation *op, int64_t done, int64_t total);
const char *operation_step_text(const struct operation_step *step);
/* The document as it will stand when what it is now is durable. */
char *operation_render(const struct operation *op);
const char *operation_state_text(enum operation_state state);
struct operation *operation_find_any(struct core *core, const char *id); /* also one not accepted yet */
void operation_accepted(struct operation *op);
void operation_refused(struct operation *op, struct error *err); /* moves *err */
/* Publishes the final state and tells the watches. */
void operation_publish_end(struct operation *op);
void operations_free(struct core *core);
void operations_prune(struct core *core, int64_t before);

/* --- events.c --- */

void events_publish(struct core *core, int64_t id, const char *type, const char *vm_id, const char *vm_name,
                    const char *doc);
void events_free(struct core *core);

/* --- keys.c (idempotency) --- */

int keys_add(struct core *core, const char *key, const char *fingerprint, const char *operation_id, int64_t at);
void keys_remove(struct core *core, const char *key);
/* An interrupted operation gives its key back: the retry begins it anew. */
void keys_forget_operation(struct core *core, struct change *ch, const char *operation_id);
void keys_prune(struct core *core, int64_t before);
void keys_free(struct core *core);

/* --- wait.c --- */

void vm_waits_check(struct live_vm *vm);
void vm_waits_fail(struct live_vm *vm, const struct error *err);

/* --- policy.c: restart, ttl_s --- */

/* NULL when memory is short. */
struct timer *policy_timer_new(struct core *core);
/* After the recovery: takes up what the last daemon had in mind, and looks at the VMs' policies from now on. */
void policy_begin(struct core *core);
/* The VM ended and nobody had asked for it: where the spec wants a restart, it is part of the change that writes the end,
 * which is to have the VM's document after this. */
void policy_ended(struct live_vm *vm, struct change *ch);
/* A start by policy could not begin: later again. */
void policy_refused(struct live_vm *vm, const struct error *err);
/* Somebody asks for something else.  True when the VM's document is to be written for it. */
bool policy_overruled(struct live_vm *vm, struct change *ch, const char *by);
bool policy_restart_waits(const struct live_vm *vm);
bool policy_startable(const struct live_vm *vm); /* at rest, and nothing under way */
/* Begins what nobody asked for; NULL and err when it cannot begin. */
struct vm_plan;
struct operation *policy_op(struct live_vm *vm, const struct vm_plan *plan, bool queue, const char *why,
                            struct error *err);

/* --- boot.c: autostart --- */

/* Before anything is recovered: has the host been booted since the last start?  core->booted. */
void boot_detect(struct core *core);
/* It was: adds the VMs whose restart waited to the change; false when there are none. */
bool boot_forget_restarts(struct core *core, struct change *ch);
/* Every VM is settled: begins the row, or goes on with one that was not finished. */
void boot_begin(struct core *core);
bool boot_start_waits(const struct live_vm *vm); /* its turn is still to come */
void boot_drop(struct core *core);

/* --- live.c: what happens to a VM outside its operations --- */

extern const struct backend_events live_vm_events;
void live_vm_ended(struct live_vm *vm, const struct backend_exit *end);
void live_vm_set_failure(struct live_vm *vm, enum error_code code, enum vm_failure_reason reason,
                         const struct exit_status *status, const char *detail, const char *stderr_tail);
/* The failure that this end is; not for BACKEND_END_GUEST_OFF, which is none. */
void live_vm_set_end(struct live_vm *vm, const struct backend_exit *end);
/* What an operation kept from being told: a disk that failed meanwhile. */
void live_vm_told_late(struct live_vm *vm);
/* Sets a condition, with its event in the change when that changes anything; whether it did. */
bool live_vm_condition(struct live_vm *vm, enum vm_condition_type type, bool status, const char *reason,
                       const char *message, struct change *ch);
/* observed.c: the guest's addresses, and how cloud-init stands. */
void live_vm_addresses(void *arg, const struct vm_address *list, unsigned n);
void live_vm_cloud_init(void *arg, bool done, const char *reason, const char *message);
/* Nothing is known of the guest any more (down), or not yet. */
void live_vm_observed_none(struct live_vm *vm, bool down, const char *reason);

/* The conditions of a VM that does not run. */
void live_vm_conditions_down(struct live_vm *vm, const char *reason);
void live_vm_conditions_booting(struct live_vm *vm);
/* Ready is true again where the channel that commands take by default still answers. */
void live_vm_ready_again(struct live_vm *vm);
/* The channel that exec takes may be another now. */
void live_vm_ready_by(struct live_vm *vm, struct change *ch);

#endif
