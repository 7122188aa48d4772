/* ops.h - what the operations on VMs share: the frame around a step table, and the steps that several tables use.
 *
 * Each file of this folder is one verb: a table of vm_steps in time order.  A step here has the engine's contract
 * (loop/op.h), with the vm_op in place of the op.  The frame adds to every step: the backend's fault seam before it,
 * one event and one log line, and the bookkeeping of the operation resource. */
#ifndef CORE_OPS_OPS_H
#define CORE_OPS_OPS_H

#include "core/internal.h"
#include "loop/op.h"

struct vm_op;
struct leftover;
struct provision;

enum { STOP_TIMEOUT_S = 30 }; /* how long a guest may take to power off when nobody says */

struct vm_step {
    const char *name;
    int (*run)(struct vm_op *vo, struct error *err);
    int (*undo)(struct vm_op *vo, struct error *err);
    int64_t timeout_ms;
    bool commit;
    bool no_cancel;                       /* half of it would be worse than all */
    bool (*skip)(const struct vm_op *vo); /* there is nothing left to do; NULL: never */
};

struct vm_plan {
    const char *kind;
    enum vm_verb verb;
    const struct vm_step *steps;
    unsigned n_steps;
    int64_t deadline_ms; /* over all steps */
};

struct vm_op {
    struct core *core;
    struct live_vm *vm;    /* referenced */
    struct operation *res; /* referenced */
    const struct vm_plan *plan;
    unsigned first; /* the step it begins with: not 0 when it is carried on */
    struct op *op;  /* NULL before the intent is durable, and while it waits for the VM */
    struct op_step steps[OPERATION_STEPS_MAX];
    struct backend_call call;
    enum { VM_OP_IDLE, VM_OP_HOOK, VM_OP_RUN, VM_OP_UNDO } phase;
    bool calling;                     /* the backend has not answered the call yet */
    struct vm_op *next;               /* in the VM's queue */
    struct vm_op *all_next, **all_at; /* in the core's list */
    struct timer *timer;              /* of the step that needs one */

    enum vm_state from;   /* when it began */
    enum vm_state before; /* the persist step's way back */
    struct vm_failure failure;
    bool persisted; /* its end is durable and published */
    bool parked;    /* the daemon leaves */
    unsigned files; /* promised to it */

    int64_t timeout_s; /* stop, restart */
    const char *method;
    bool stop_asked;   /* an exit is what it wants */
    bool started;      /* the start part was reached */
    bool spawn_failed; /* the process was the reason */
    bool ended;        /* the process that was there when it began is gone */
    struct backend_exit end;
    char *end_tail;
    void (*on_exit)(struct vm_op *vo); /* the step that waits for the exit */
    void (*hurry)(struct vm_op *vo);   /* ends that wait */
    struct backend_call press_call;
    bool pressing, press_ending;
    struct error cancelled; /* asked for before it began to walk */
    int64_t deadline_ms;
    char *key, *fingerprint; /* idempotency, until the intent is durable */
    bool ran;                /* its engine has walked */
    bool by_policy;          /* nobody asked for it */
    bool peer_known;
    struct core_peer peer;         /* who asked */
    struct file_check *file_check; /* under way on the pool */
    int64_t promised_mb;           /* of the host's memory */
    struct disk_ask *disk_ask;     /* before the intent is written */
    bool overrules;                /* the VM's policy: its row is written with the intent */
    struct change *intent;         /* waits for it */
    uint64_t room;                 /* counted in core->disk_promised */
    struct image_wait *image_wait; /* of a create for its image (vm_image.c) */
    struct provision *provision;   /* its steps, and how far they are (vm_provision.c) */
};

extern const struct vm_plan vm_create_plan, vm_create_start_plan, vm_start_plan, vm_stop_plan, vm_kill_plan,
    vm_reset_plan, vm_restart_plan, vm_suspend_plan, vm_resume_plan, vm_destroy_plan, vm_provision_plan;
const struct vm_plan *vm_plan_of(enum vm_verb verb);
/* NULL: there is none. */
const struct vm_step *vm_step_named(const char *kind, const char *name);

/* Begins an operation: the VM is held (or it queues behind the one that holds it when `queue`), the intent is written,
 * and when that is durable the engine walks.  The operation is returned at once, referenced by its vm_op;
 * operation_watch tells when it is durable.  `state_change`: the VM's row is written with the intent. */
int vm_op_begin(struct live_vm *vm, const struct vm_plan *plan, const struct core_request *req,
                const struct core_verb_args *args, bool queue, struct operation **ret, struct error *err);
/* One that the daemon before began and had brought as far as the step `from`: it goes on from there, and nothing of what
 * came before is undone any more. */
int vm_op_carry_on(struct live_vm *vm, const struct vm_plan *plan, const char *from, const struct leftover *left,
                   struct error *err);
/* An operation that has nothing to do: it succeeds as soon as it is durable. */
int vm_op_nothing(struct live_vm *vm, const struct core *core, const char *kind, const struct core_request *req,
                  struct operation **ret, struct error *err);
/* The VM's process ended while this operation held it. */
void vm_op_exited(struct vm_op *vo, const struct backend_exit *end);
int vm_op_cancel(struct vm_op *vo, struct error *reason);
/* The daemon leaves: the operation is given up where it stands; its row says what to do at the next start. */
void vm_op_park(struct vm_op *vo);

/* The operation is given up: a check of files that is under way ends unheard (vm_create.c). */
void vm_create_forget_check(struct vm_op *vo);

/* A start takes its memory from what the host has, until it has ended (core/memory.c): ERR_HOST_INSUFFICIENT_MEMORY. */
int memory_promise(struct vm_op *vo, struct error *err);
void memory_release(struct vm_op *vo);

/* The step of a create that brings the image which the disk stands on. */
int step_image(struct vm_op *vo, struct error *err);
bool step_no_image(const struct vm_op *vo);
void vm_image_forget(struct vm_op *vo);

/* Provisioning (vm_provision.c): its steps are copied; NULL: no memory. */
struct provision *provision_new(struct vm_op *vo, const json_t *steps);
int64_t provision_deadline_ms(const struct provision *p); /* what its steps may take */
void provision_park(struct provision *p);                 /* NULL is fine; nothing of it goes on or is told */
void provision_free(struct provision *p);

/* Ends the wait of a step from anything but the backend's call. */
void vm_op_resume(struct vm_op *vo, struct error *err);
/* Writes the VM in its new state together with the operation's success; done when durable and published. */
int vm_op_persist(struct vm_op *vo, enum vm_state to, const char *cause, bool destroyed, struct error *err);

#ifdef VMMD_CRASH_POINTS
extern const char *const op_crash_names[]; /* of the states of a step */
#endif

/* The data of operation.finished, and the log line of the end. */
json_t *vm_op_finish_data(const struct operation *res);
void vm_op_log_finish(const struct vm_op *vo);

/* Steps that stand in several tables.  Of a start (vm_start.c): */
int step_reserve(struct vm_op *vo, struct error *err);
int step_prepare(struct vm_op *vo, struct error *err);
int step_sweep(struct vm_op *vo, struct error *err);
int step_spawn(struct vm_op *vo, struct error *err);
int step_undo_spawn(struct vm_op *vo, struct error *err);
int step_greet(struct vm_op *vo, struct error *err);
int step_verify(struct vm_op *vo, struct error *err);
int step_persist_running(struct vm_op *vo, struct error *err);
/* Of a stop (vm_stop.c): */
int step_press(struct vm_op *vo, struct error *err);
int step_terminate(struct vm_op *vo, struct error *err);
int step_stop_kill(struct vm_op *vo, struct error *err);
int step_kill(struct vm_op *vo, struct error *err);
int step_persist_stopped(struct vm_op *vo, struct error *err);
bool step_ended(const struct vm_op *vo); /* the process is gone already */
void step_stop_wait(struct vm_op *vo);   /* gives up waiting for the exit */
/* The last of every table, and what the VM is when the operation did not come to its end (settle.c). */
int step_announce(struct vm_op *vo, struct error *err);
void vm_op_settle(struct vm_op *vo, bool cancelled);

#define START_STEPS                                                          \
    {"prepare", step_prepare, .undo = step_sweep, .timeout_ms = 60000},      \
        {"spawn", step_spawn, .undo = step_undo_spawn, .timeout_ms = 20000}, \
        {"greet", step_greet, .timeout_ms = 20000},                          \
    {                                                                        \
        "verify", step_verify, .timeout_ms = 10000                           \
    }
#define STOP_STEPS                                                              \
    {"press", step_press, .timeout_ms = 3700000},                               \
        {"terminate", step_terminate, .timeout_ms = 20000, .skip = step_ended}, \
    {                                                                           \
        "kill", step_stop_kill, .timeout_ms = 20000, .skip = step_ended         \
    }
#define END_STEPS(persist)                \
    {"persist", persist, .commit = true}, \
    {                                     \
        "announce", step_announce         \
    }

#endif
