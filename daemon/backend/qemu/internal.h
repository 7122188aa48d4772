/* internal.h - the parts of the QEMU backend among themselves.
 *
 *   backend.c   the vtable, check, attach, detach       files.c    create, remove
 *   start.c     prepare, sweep, spawn                   verbs.c    greet, verify, press, reset, suspend, resume
 *   monitor.c   the monitor, its events, muteness       process.c  the process and its end, kill, terminate
 *   adopt.c     after a restart                         console.c  the serial console
 *   guest.c     the ways into the guest: agent, SSH     keys.c     the VM's key pair
 *   plan.c      from a VM to the plan of argv.h         job.c      work on the pool for a VM; the call under way
 *   lock.c      who has a VM's disk                     manifest.c a VM written down beside it
 *   survey.c    what the host holds of VMs              reap.c     removes what nobody owns
 *   oom.c       was it the kernel, for want of memory?
 *   observe.c   its guest's addresses                   seed.c     how cloud-init ended in it */
#ifndef BACKEND_QEMU_INTERNAL_H
#define BACKEND_QEMU_INTERNAL_H

#include <limits.h>
#include <stdbool.h>

#include "backend/backend.h"
#include "backend/console.h"
#include "backend/qemu/argv.h"
#include "backend/qemu/probe.h"
#include "backend/qemu/qemu.h"
#include "guest/agent.h"
#include "guest/ssh.h"
#include "image/image.h"
#include "loop/child.h"
#include "loop/timer.h"
#include "qmp/qmp.h"

enum {
    QEMU_COMMAND_MS = 5000, /* a monitor command's deadline */
    QEMU_GREET_MS = 10000,  /* from the spawn to the monitor's greeting */
    QEMU_SOCKET_MAX = 108,  /* of sockaddr_un.sun_path, with its NUL */
    QEMU_STDERR_TAIL = 2000,
};

#define MANIFEST_NAME "manifest.json"

struct qemu_backend {
    struct backend ops; /* first */
    struct loop *loop;
    char *data_dir;
    char *runtime_dir;
    char *helper_dir;
    char *binary;
    char **image_dirs; /* NULL-terminated */
    size_t console_log_max;
    size_t vmm_log_max;
    uint64_t max_image_bytes;
    struct oom_group *oom_groups;
    char **lease_files; /* NULL-terminated */
    int64_t cloud_init_timeout_ms;
    unsigned boots; /* observe.c: of all VMs */
    struct qemu_host host;
    struct qemu_probe *probe;
    void (*probed)(void *arg);
    void *probed_arg;
    struct manifest_write *manifests; /* being written */
};

/* What the guest did to end its run; QEMU waits, paused, to be asked and ended. */
enum guest_end { GUEST_RUNS, GUEST_OFF, GUEST_PANICKED };

struct backend_vm {
    struct qemu_backend *be;
    struct vm *vm;
    const struct backend_events *events;
    void *arg;
    char id[UUID_TEXT_MAX];
    char work_dir[PATH_MAX];
    char run_dir[PATH_MAX];
    char overlay[PATH_MAX];
    char seed[PATH_MAX];
    char vars[PATH_MAX];
    char key[PATH_MAX]; /* the private one; the public is beside it */
    char *key_text;     /* both, while create works */
    void (*key_made)(struct backend_vm *bvm, struct error *err);
    char vmm_log[PATH_MAX];
    char console_log[PATH_MAX]; /* prefix of the bounded log */

    /* The call under way (job.c). */
    struct backend_call *call;
    void (*hurry)(struct backend_vm *bvm);
    unsigned seq;         /* of calls: answers for an earlier one are dropped */
    bool cancelled;       /* hurry was asked of the call */
    struct error failure; /* what the call will fail with, while it cleans up */
    struct job *jobs;
    struct image_inspection *inspection;
    struct tool *tool;
    uint64_t base_size; /* of the base image, while create and prepare work */
    bool *gone;         /* set when the VM is detached inside a callback */

    /* The process (process.c). */
    struct child *child;
    struct proc_watch *watch;
    bool alive;
    struct timer *log_timer; /* vmmlog.c */
    bool ending;             /* the process is gone, its remains are being cleared */
    bool started;            /* verified or adopted: its end is an event */
    bool paused;             /* as core was last told */
    bool died;               /* it ended between two steps of the start */
    bool ended_early;        /* it ended by itself during the start */
    bool kill_asked;         /* the call is a kill: the end completes it */
    bool press_asked;        /* the call is a press: the end is what it wanted */
    bool term_asked;
    bool cleared;                          /* end: the files are removed */
    bool drained;                          /* end: the console is closed */
    void (*ended)(struct backend_vm *bvm); /* end: neither event nor error, the call goes on here */
    struct exit_status status;
    bool oom;                    /* the kernel killed it for want of memory */
    struct oom_group *oom_group; /* that it runs in; NULL: not known */
    enum guest_end guest_end;
    int tap_fd;
    int lock_fd;       /* from prepare to spawn; QEMU has it then */
    int64_t log_start; /* where this run's words begin in vmm.log */
    char stderr_tail[QEMU_STDERR_TAIL + 1];

    /* Its channels. */
    struct qmp *qmp;
    struct ask *asks;
    struct agent *agent;
    struct observer *observer; /* observe.c */
    struct ssh *ssh;           /* NULL: no key, or no address */
    struct exec *probe;        /* until SSH answers */
    struct exec *agent_probe;  /* until the agent runs a command */
    struct timer *guest_timer;
    bool ssh_answers;
    char ssh_host[VM_IP_MAX]; /* where ssh leads */
    struct console *console;
    struct timer *timer; /* monitor.c: reconnect and heartbeat; the end of a guest that has ended */
    bool mute;           /* told: unresponsive */
    bool reconnecting;
    bool awaiting_end;  /* the monitor was lost: the call waits for the process's end, or fails with failure */
    int64_t reset_at;   /* loop time of the last RESET; 0: none */
    const char *wanted; /* the state a cont or stop is to reach */
    bool pressed_agent;
    unsigned presses; /* since it started */
    bool disk_full;   /* the last write that failed found no room */
    bool adopting;
    struct backend_adoption *adoption;
};

/* ---- vmmlog.c: while QEMU runs ---- */

void vmmlog_keep(struct backend_vm *bvm);
void vmmlog_stop(struct backend_vm *bvm);

/* ---- job.c ---- */

/* Work on the pool for a VM.  Embedded first in what it works on; fn runs on the pool and touches nothing else. */
struct job {
    struct backend_vm *bvm; /* NULL: detached meanwhile */
    struct job *next;
    int (*fn)(struct job *job, struct error *err);
    void (*done)(struct backend_vm *bvm, struct job *job, int rc, struct error *err); /* not called when detached */
    void (*free)(struct job *job);                                                    /* NULL: mem_free */
};

/* Queues it and owns it from then on, also on failure. */
int job_run(struct backend_vm *bvm, struct job *job, struct error *err);
void jobs_forget(struct backend_vm *bvm);
/* Removes a directory on the pool; a failure is logged. */
struct job *job_remove_dir(const char *path, void (*done)(struct backend_vm *, struct job *, int, struct error *));

/* Marks the call as under way; returns OP_WAIT. */
int call_begin(struct backend_vm *bvm, struct backend_call *call, void (*hurry)(struct backend_vm *bvm));
/* Completes the call, if there is one: err NULL or unset is success.  The VM may be detached afterwards. */
void call_end(struct backend_vm *bvm, struct error *err);
/* hurry of calls that only wait for the monitor: fails at once. */
void call_hurry(struct backend_vm *bvm);
int call_cancelled_error(struct backend_vm *bvm, struct error *err);
/* The object as compact text, which the caller mem_frees; NULL when memory is short.  Takes the object. */
char *qemu_json_text(json_t *object);
/* Replaces an owned text; a lack of memory leaves NULL. */
void set_text(char **slot, const char *value);

/* ---- backend.c ---- */

/* A VM's directories, PATH_MAX bytes each, with room for the names in them. */
int qemu_dirs_in(const char *data_dir, const char *runtime_dir, const char *id, char *work_dir, char *run_dir,
                 struct error *err);
int qemu_dirs(const struct qemu_backend *be, const char *id, char *work_dir, char *run_dir, struct error *err);

struct image_rules qemu_image_rules(const struct backend_vm *bvm);
/* The accelerator this spec gets here. */
const char *qemu_accel(const struct qemu_backend *be, const struct vm_spec *spec);

/* ---- lock.c: pool ---- */

/* Copies of what a job must know of a VM. */
struct vm_place {
    char id[UUID_TEXT_MAX];
    char name[64];
    char work_dir[PATH_MAX];
    char run_dir[PATH_MAX];
};
void vm_place_of(const struct backend_vm *bvm, struct vm_place *ret); /* loop */
/* Makes the lock of a new VM, so that a start needs no room for it. */
int vm_lock_make(const char *work_dir, struct error *err);
/* Takes the VM's lock; the fd is the caller's.  -1 with ERR_VM_INVALID_STATE when a process has it; -1 with err unset when there
 * is no lock to be held (and none is to be made: a full disk must not keep a destroy back), or no directory. */
int vm_lock_take(const struct vm_place *place, bool make, struct error *err);
/* Removes the runtime directory, and with `all` the work directory, unless a QEMU of the VM lives: ERR_VM_INVALID_STATE.
 * `known_dead`: its process was watched, and is gone. */
int vm_place_clear(const struct vm_place *place, bool known_dead, bool all, struct error *err);
/* The QEMU whose command line says that it is the VM's; 0: none. */
pid_t qemu_find(const char *id, const char *run_dir);
/* The value that follows `option` in NUL-separated arguments, or NULL. */
const char *qemu_argument(const char *args, size_t len, const char *option);
/* Always -1: vmmd does not know that the VM runs. */
int qemu_lives_error(const struct vm_place *place, pid_t pid, struct error *err);

/* ---- manifest.c ---- */

/* Writes the VM down for the call under way; done comes once, on a later turn or at once, unless the VM is detached first. */
int manifest_write(struct backend_vm *bvm, bool with_run_dir, void (*done)(struct backend_vm *bvm, struct error *err),
                   struct error *err);
void manifests_forget(struct backend_vm *bvm);
void manifests_drop(struct qemu_backend *be);
void qemu_manifest(struct backend *be, const struct vm *vm);
/* The manifest in a directory, for the VM `id` (NULL: any).  Pool. */
int manifest_read(const char *dir, const struct uuid *id, struct vm *ret, struct error *err);

/* ---- survey.c, reap.c: each as in backend.h ---- */

int qemu_survey(struct backend *be, const struct uuid *known, size_t n_known,
                void (*done)(void *arg, struct backend_trace *list, struct error *err), void *arg, struct error *err);
int qemu_reap(struct backend *be, struct backend_trace *list,
              void (*done)(void *arg, struct backend_trace *list, struct error *err), void *arg, struct error *err);
/* Calls fn for each QEMU that has its pidfile in a directory of runtime_dir/vms, that directory's name and its -uuid.  Pool. */
void survey_processes(const char *runtime_dir, void (*fn)(void *arg, pid_t pid, const char *dir, const char *uuid),
                      void *arg);
/* A NULL-terminated list of texts (NULL: empty), copied; NULL when memory is short. */
char **texts_copy(const char *const *list);
void texts_free(char **list);

/* ---- plan.c ---- */

struct plan_paths {
    char qmp[QEMU_SOCKET_MAX];
    char console[QEMU_SOCKET_MAX];
    char agent[QEMU_SOCKET_MAX];
    char vnc[QEMU_SOCKET_MAX];
    char pidfile[PATH_MAX];
};

/* ERR_IO when a socket's path does not fit a sockaddr. */
int plan_paths(const struct backend_vm *bvm, struct plan_paths *ret, struct error *err);
/* `plan` borrows from bvm, its VM, its host and paths. */
void plan_make(struct backend_vm *bvm, const struct plan_paths *paths, struct qemu_plan *plan);
/* Writes what the plan decided into vm->runtime. */
void plan_record(struct backend_vm *bvm, const struct plan_paths *paths, const struct qemu_plan *plan);

/* ---- the verbs, each as in backend.h ---- */

uint64_t qemu_room(struct backend *be, const struct vm_spec *spec, bool create);
int qemu_create(struct backend_vm *bvm, struct backend_call *call, struct error *err);
int qemu_remove(struct backend_vm *bvm, struct backend_call *call, struct error *err);
int qemu_prepare(struct backend_vm *bvm, struct backend_call *call, struct error *err);
int qemu_sweep(struct backend_vm *bvm, struct backend_call *call, struct error *err);
int qemu_spawn(struct backend_vm *bvm, struct backend_call *call, struct error *err);
int qemu_greet(struct backend_vm *bvm, struct backend_call *call, struct error *err);
int qemu_verify(struct backend_vm *bvm, struct backend_call *call, struct error *err);
int qemu_kill(struct backend_vm *bvm, struct backend_call *call, struct error *err);
int qemu_press(struct backend_vm *bvm, struct backend_call *call, struct error *err);
int qemu_terminate(struct backend_vm *bvm, struct error *err);
int qemu_reset(struct backend_vm *bvm, struct backend_call *call, struct error *err);
int qemu_suspend(struct backend_vm *bvm, struct backend_call *call, struct error *err);
int qemu_resume(struct backend_vm *bvm, struct backend_call *call, struct error *err);
int qemu_adopt(struct backend_vm *bvm, struct backend_adoption *ret, struct backend_call *call, struct error *err);

/* ---- process.c ---- */

void process_exited(void *arg, const struct exit_status *status);
int process_signal(struct backend_vm *bvm, int signum);
/* Clears what a process left, then calls bvm->ended.  `known_dead`: it was watched, and is gone; else it is looked for. */
void process_clear(struct backend_vm *bvm, bool known_dead);
/* The error of a QEMU that ended in the middle of something, with its last words. */
int process_ended_error(struct backend_vm *bvm, struct error *err);
/* How it ended, for an event or an adoption. */
void process_describe_end(struct backend_vm *bvm, struct backend_exit *end);
/* Lets go of the process and all channels, without events. */
void process_detach(struct backend_vm *bvm);

/* files.c: what qemu-img's failure means for the VM's disk, which could not be `done`. */
void qemu_img_error(const struct backend_vm *bvm, const struct tool_result *result, const char *done,
                    struct error *err);

/* probe.c: the last line of what a tool wrote, without its end. */
void last_line(const char *text, size_t len, char *out, size_t size);

/* ---- monitor.c ---- */

/* Connects to the monitor; ready(bvm, NULL) or ready(bvm, err) comes once for the first connection. */
int monitor_open(struct backend_vm *bvm, const char *path, int64_t timeout_ms, struct error *err);
void monitor_close(struct backend_vm *bvm);
/* Asks for the call under way: an answer that comes after the call ended is dropped.  arguments are stolen. */
int monitor_ask(struct backend_vm *bvm, const char *command, json_t *arguments,
                void (*fn)(struct backend_vm *bvm, json_t *ret, struct error *err), struct error *err);
/* The same for no call in particular. */
int monitor_ask_aside(struct backend_vm *bvm, const char *command,
                      void (*fn)(struct backend_vm *bvm, json_t *ret, struct error *err), struct error *err);
/* "running", "paused", ...: the guest's end is noted and QEMU asked to go. */
void monitor_found_io_error(struct backend_vm *bvm);
void monitor_take_status(struct backend_vm *bvm, const char *status);
/* Notes the guest's end and has QEMU end: quit, and SIGKILL after a while. */
void monitor_guest_ended(struct backend_vm *bvm, enum guest_end end);
/* The monitor is lost in the middle of a call: most often QEMU is ending, and its last words say more than the loss.  Holds
 * the call for that end, and fails it with a copy of err when none comes.  False: there is nothing to wait for. */
bool monitor_await_end(struct backend_vm *bvm, const struct error *err);
/* Tells of muteness, and asks from time to time until it ends. */
void monitor_set_mute(struct backend_vm *bvm, bool mute);
/* verbs.c and adopt.c: what the first connection is for. */
void greet_connected(struct backend_vm *bvm, struct error *err);
void adopt_connected(struct backend_vm *bvm, struct error *err);

/* ---- oom.c ---- */

struct oom_question;
void oom_watch(struct backend_vm *bvm); /* a process that has just come: notes its cgroup */
/* One that has ended: what is to be asked on the pool, if anything; and what the answer means. */
void oom_ask(struct backend_vm *bvm, struct oom_question *q);
void oom_told(struct backend_vm *bvm, const struct oom_question *q);
void oom_free(struct qemu_backend *be);

/* ---- keys.c ---- */

/* Makes a key pair in bvm->key_text, for a VM that gets one; made(bvm, err) comes once.  1: none is needed. */
int key_make(struct backend_vm *bvm, void (*made)(struct backend_vm *bvm, struct error *err), struct error *err);
bool key_wanted(const struct vm_spec *spec);
/* The public line of both texts; the caller mem_frees. */
char *key_public(const char *key_text);
/* Writes both files, private from birth, and flushes them.  Blocking: pool. */
int key_write(const char *key_text, const char *path, struct error *err);

/* ---- guest.c ---- */

#define KNOWN_HOSTS_NAME "known_hosts" /* in the work directory; without it the next start believes a new host key */

/* The ways into the guest of a VM that begins to run; of one that runs. */
void guest_begin(struct backend_vm *bvm);
void guest_open(struct backend_vm *bvm);
/* The guest began anew: what was open is closed, and looked for again. */
void guest_reopen(struct backend_vm *bvm);
void guest_close(struct backend_vm *bvm);
/* What SSH waits for, or another address than it has. */
void guest_addresses_told(struct backend_vm *bvm);
struct files *qemu_files(struct backend_vm *bvm, const struct files_request *req, const struct files_events *events,
                         void *arg, struct error *err);
struct exec *qemu_exec(struct backend_vm *bvm, const struct exec_request *req, const struct exec_events *events,
                       void *arg, struct error *err);

/* ---- console.c ---- */

struct console *console_new(struct loop *loop, const char *log_prefix, size_t log_max, struct error *err);
/* Connects, and connects again when it is lost. */
int console_connect(struct console *c, const char *path, struct error *err);
/* The process is gone: takes what is still in the socket, writes the log out, tells the watchers; then done, once.  The
 * console is freed when done returns. */
void console_end(struct console *c, void (*done)(void *arg), void *arg);
/* Lets go at once. */
void console_free(struct console *c);

#endif
