/* vm.h - a VM as data: what was asked for (spec), what exists now (runtime), how it stands (state, conditions, failure).
 *
 *                 create                start                 suspend
 *        (none) ─────────► preparing ─► prepared ──────► running ◄──────► suspended
 *                              │            ▲  start        │   resume        │
 *                              ▼            │               ├── stop, kill, guest powers off ─► stopped ──┐
 *                            failed ◄───────┼───────────────┴── QEMU dies, guest panics ──► failed ───────┤
 *                                           └──────────────────────────────────────── start ◄─────────────┘
 *        any ── destroy ─► destroyed
 *
 * Plain data: copy, free, validate, and the one JSON codec of each.  Any thread; no function keeps what it is given. */
#ifndef MODEL_VM_H
#define MODEL_VM_H

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "base/error.h"
#include "base/uuid.h"

enum vm_state {
    VM_PREPARING,
    VM_PREPARED,
    VM_RUNNING,
    VM_SUSPENDED,
    VM_STOPPED,
    VM_FAILED,
    VM_DESTROYED,
    VM_STATE_MAX
};
const char *vm_state_text(enum vm_state state);
bool vm_state_parse(const char *text, enum vm_state *ret);

enum vm_verb {
    VM_CREATE,
    VM_START,
    VM_STOP,
    VM_KILL,
    VM_RESET,
    VM_RESTART,
    VM_SUSPEND,
    VM_RESUME,
    VM_DESTROY,
    VM_PROVISION,
    VM_VERB_MAX
};
const char *vm_verb_text(enum vm_verb verb); /* "start" */
/* Whether the verb may begin in this state; and the bits (1 << state) of all states it may begin in. */
bool vm_verb_allowed(enum vm_verb verb, enum vm_state state);
unsigned vm_verb_states(enum vm_verb verb);
/* Whether the verb asks for what already is (stop of a stopped VM): a success without effect. */
bool vm_verb_satisfied(enum vm_verb verb, enum vm_state state);
/* 409 vm::invalid_state with context current and expected.  Always returns -1. */
int vm_state_error(enum vm_verb verb, const char *name, enum vm_state state, struct error *err);

enum vm_machine { VM_MACHINE_Q35, VM_MACHINE_MICROVM };
enum vm_accel { VM_ACCEL_AUTO, VM_ACCEL_KVM, VM_ACCEL_TCG };
enum vm_display { VM_DISPLAY_NONE, VM_DISPLAY_VGA };
enum vm_network_type { VM_NETWORK_USER, VM_NETWORK_TAP, VM_NETWORK_VNIC, VM_NETWORK_NONE };
enum vm_restart_policy { VM_RESTART_NEVER, VM_RESTART_ON_FAILURE, VM_RESTART_ALWAYS };

struct vm_forward {
    bool udp;
    char host_ip[46];
    uint16_t host_port; /* never 0 once the VM is created: chosen then */
    uint16_t guest_port;
};

struct vm_labels {
    size_t n;
    struct vm_label {
        char *key;
        char *value;
    } * items; /* sorted by key */
};

/* Every pointer is owned and NULL when not given. */
struct vm_spec {
    char *image;                    /* absolute path, or the name of an image */
    char *image_url, *image_sha256; /* in its place: fetched first */
    uint32_t vcpus;
    uint32_t memory_mb;
    uint32_t disk_gb; /* 0: as large as the image */
    enum vm_machine machine;
    enum vm_accel accel;
    enum vm_display display;
    bool uefi;
    bool has_boot;
    struct {
        char *kernel;
        char *initrd;
        char *cmdline;
    } boot;
    struct {
        enum vm_network_type type;
        char *bridge; /* tap */
        char *name;   /* vnic */
        struct vm_forward *forwards;
        size_t n_forwards;
    } network;
    bool has_cloud_init;
    struct vm_cloud_init {
        char *hostname;
        char **ssh_authorized_keys;
        size_t n_keys;
        char *user_data;
        char *vendor_data;
        char *network_config;
        char *instance_id;
    } cloud_init;
    struct {
        char *user; /* "vm" by default */
        char *private_key_path;
    } ssh;
    bool vsock;
    json_t *provision; /* an array, validated, or NULL */
    enum vm_restart_policy restart;
    bool autostart;
    bool protect;
    int64_t ttl_s; /* 0: none */
};

/* An address of the guest's network card, and how it is known. */
enum vm_address_source { VM_ADDRESS_AGENT, VM_ADDRESS_LEASE, VM_ADDRESS_NEIGHBOUR, VM_ADDRESS_SOURCE_MAX };
const char *vm_address_source_text(enum vm_address_source source);

enum { VM_ADDRESSES_MAX = 8, VM_IP_MAX = 46 };
struct vm_address {
    char ip[VM_IP_MAX]; /* canonical */
    enum vm_address_source source;
    int64_t seen_at; /* wall ms */
};

/* What exists now.  Pointers owned, NULL or 0 when it does not exist. */
struct vm_runtime {
    char *accel; /* "kvm", "tcg" or "noop" while running */
    pid_t pid;
    int64_t started_at; /* wall ms */
    char *work_dir;
    char *overlay_path;
    char *seed_iso_path;
    char *qmp_socket;
    char *console_socket;
    char *vnc_addr;
    uint16_t ssh_host_port; /* allocated at create for user networks */
    char mac_addr[18];
    struct vm_address addresses[VM_ADDRESSES_MAX]; /* the best first */
    unsigned n_addresses;
    char *ssh_key_path; /* of the key pair made for it; shown by GET ssh alone, as is the next */
    char *ssh_host_key; /* "ssh-ed25519 AAAA...", pinned at the first contact */
    /* Not shown; kept with the VM so that it can be found again and frozen later. */
    uint64_t start_ticks;
    char boot_id[37];
    char *exe;
    char *machine_type; /* "pc-q35-7.2" */
    char *cpu_model;    /* "host", "qemu64", ... as given to QEMU */
    char *qemu_version;
    char *tap;         /* the tap device made for it */
    char *disk_format; /* of the base image, from its header at create: never probed again */
    char *image_name;  /* of the image cache, that the disk stands on; image_path is its file */
    char *image_path;
};

enum vm_condition_type {
    VM_COND_READY,
    VM_COND_AGENT,
    VM_COND_SSH,
    VM_COND_IP,
    VM_COND_CLOUD_INIT,
    VM_COND_DISK_IO,
    VM_COND_MAX
};
const char *vm_condition_text(enum vm_condition_type type);
bool vm_condition_parse(const char *text, enum vm_condition_type *ret);

struct vm_condition {
    bool known; /* unknown conditions are not shown */
    bool status;
    char reason[32];
    char message[240];
    int64_t since; /* wall ms */
};

enum vm_failure_reason { VM_FAILURE_KILLED, VM_FAILURE_EXITED, VM_FAILURE_PANIC, VM_FAILURE_SPAWN, VM_FAILURE_OOM };

struct vm_failure {
    bool set;
    enum error_code code;
    enum vm_failure_reason reason;
    bool status_known; /* else exit_status and signal are null */
    int exit_status;
    int signal; /* 0: none */
    int64_t at;
    char *detail;
    char *stderr_tail;
};

/* What the daemon has in mind for the VM; not shown, kept with it so that no restart of the daemon forgets it. */
struct vm_policy {
    int64_t restart_at;    /* wall ms; 0: no restart waits */
    int64_t restarts;      /* by policy, since */
    int64_t restarts_from; /* wall ms */
    bool given_up;         /* restarted too often */
    int64_t autostart_at;  /* wall ms: when the host's boot had it started, or somebody said no; 0: never */
};

/* What was done in the guest by provisioning; not shown, kept with the VM. */
struct vm_provisioned {
    json_t *done; /* the digests of steps that run once and have succeeded, the newest last; NULL: none */
    char *temp;   /* a file of vmmd's in the guest, to be removed; NULL: there is none */
};

struct vm {
    struct uuid id;
    char *name;
    const char *backend; /* "qemu", "noop": a name of the backend table, not owned */
    enum vm_state state;
    int64_t generation;
    int64_t revision;
    struct vm_labels labels;
    struct vm_spec spec;
    struct vm_runtime runtime;
    struct vm_condition conditions[VM_COND_MAX];
    struct vm_failure failure;
    struct vm_policy policy;
    struct vm_provisioned provisioned;
    bool has_operation;
    struct uuid operation;
    int64_t created_at;
    int64_t updated_at;
};

/* ^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$ */
bool vm_name_valid(const char *name);
/* The file that the disk stands on; NULL: it has none, or it is not fetched yet. */
const char *vm_base_path(const struct vm *vm);
bool vm_spec_has_image(const struct vm_spec *spec);
void vm_done(struct vm *vm); /* frees what it owns */
void vm_spec_done(struct vm_spec *spec);
void vm_runtime_stopped(struct vm_runtime *rt); /* clears what exists only while a process runs */
void vm_failure_done(struct vm_failure *f);
/* The private key that opens the guest, or NULL; who logs in; and where, or NULL while that is not known. */
const char *vm_ssh_key(const struct vm *vm);
const char *vm_ssh_user(const struct vm *vm);
const char *vm_ssh_host(const struct vm *vm, uint16_t *ret_port);
/* Steps that run once: whether this one has succeeded in the VM; notes that it has (false: no memory); forgets all. */
bool vm_provisioned_has(const struct vm *vm, const char *digest);
bool vm_provisioned_add(struct vm *vm, const char *digest);
void vm_provisioned_forget(struct vm *vm);
/* Sets a condition and its time; returns whether anything changed. */
bool vm_condition_set(struct vm *vm, enum vm_condition_type type, bool status, const char *reason, const char *message);
const char *vm_label_get(const struct vm_labels *labels, const char *key); /* NULL: none */
void vm_labels_done(struct vm_labels *labels);

/* Parses a request's spec over the defaults: unknown, mistyped and out-of-range fields fail with ERR_API_INVALID_FIELD
 * and context pointer (below `pointer`, e.g. "/spec"), expected, nearest.  ret is set only on success. */
int vm_spec_parse(const json_t *spec, const char *pointer, struct vm_spec *ret, struct error *err);
int vm_labels_parse(const json_t *labels, const char *pointer, struct vm_labels *ret, struct error *err);
json_t *vm_spec_json(const struct vm_spec *spec); /* NULL: no memory */
json_t *vm_labels_json(const struct vm_labels *labels);
/* The public document of API.md. */
json_t *vm_json(const struct vm *vm);
/* What is kept with the VM and not shown. */
json_t *vm_private_json(const struct vm *vm);
/* The inverse of both, for the store: ERR_DAEMON_INTERNAL when a stored document is not one of ours. `backends` is the
 * NULL-terminated table of names. */
int vm_from_json(const json_t *doc, const json_t *private_doc, const char *const *backends, struct vm *ret,
                 struct error *err);

#endif
