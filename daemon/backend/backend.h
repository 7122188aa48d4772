/* backend.h - what a hypervisor backend does for core: a const vtable, and events back.
 *
 * A `struct backend_vm` is one VM at its backend.  It exists from the first operation that needs it until the VM is at
 * rest again (attach ... detach); a stopped VM at rest has none.  At most one call is under way per backend_vm.
 *
 * Every verb has the contract of an operation's step: 0 done, OP_WAIT (then call->done comes exactly once, maybe before the
 * return), or -1 with err set (call->done does not come).  A verb that fails leaves nothing behind of what it began.
 * Verbs read vm->spec and write vm->runtime; they change nothing else of the VM.
 * Runs on: the loop thread.  Nothing here blocks it. */
#ifndef BACKEND_BACKEND_H
#define BACKEND_BACKEND_H

#include "base/error.h"
#include "guest/exec.h"
#include "guest/files.h"
#include "loop/child.h"
#include "loop/loop.h"
#include "loop/op.h"
#include "model/vm.h"

struct backend;
struct backend_vm;

struct backend_call {
    void (*done)(struct backend_call *call, struct error *err); /* err unset: success; may be moved out of */
};

enum backend_end {
    BACKEND_END_GUEST_OFF, /* the guest powered off, or it ended after a stop */
    BACKEND_END_PANIC,     /* the guest panicked */
    BACKEND_END_EXITED,    /* QEMU exited by itself without the guest's power-off */
    BACKEND_END_KILLED,    /* a signal ended QEMU, or it vanished */
    BACKEND_END_OOM,       /* the kernel killed it for want of memory */
};

/* The end of the VM's process, told once; after it the backend holds no process, socket, or device of the VM any more. */
struct backend_exit {
    enum backend_end end;
    struct exit_status status;
    char detail[200];        /* "QEMU was killed by SIGKILL" */
    const char *stderr_tail; /* QEMU's last words, may be empty; valid during the call */
};

struct backend_events {
    void (*exited)(void *arg, const struct backend_exit *end);
    void (*guest_reset)(void *arg);         /* the guest rebooted by itself, or was reset */
    void (*agent)(void *arg, bool answers); /* the guest agent answers, or no longer does */
    /* Whether it runs commands as their default user; after agent(true), and again when it has changed.  message: what to
     * know of it, "" nothing. */
    void (*agent_runs)(void *arg, bool runs, const char *message);
    /* The guest's addresses as they are known now, the best first; told again and again, also unchanged. */
    void (*addresses)(void *arg, const struct vm_address *list, unsigned n);
    /* How cloud-init stands, of a VM with spec.cloud_init; told again and again.  reason: done, running, error, timed_out,
     * disabled, absent, unreadable. */
    void (*cloud_init)(void *arg, bool done, const char *reason, const char *message);
    void (*ssh)(void *arg, bool answers); /* a command by SSH was answered, or the guest ended the connection */
    void (*runtime_changed)(void *arg);   /* vm->runtime has news: a host key */
    void (*io_error)(void *arg,
                     const char *reason); /* a guest write failed and the VM was paused: "enospc" or "error" */
    void (*unresponsive)(void *arg, bool unresponsive); /* the monitor has stopped answering, or answers again */
};

/* What adopt found. */
enum backend_found { BACKEND_FOUND_NOTHING, BACKEND_FOUND_RUNNING, BACKEND_FOUND_SUSPENDED, BACKEND_FOUND_ENDED };

struct backend_adoption {
    enum backend_found found;
    struct backend_exit end; /* for ENDED: what the paused QEMU tells of its guest's end; it has been ended */
};

enum backend_log { BACKEND_LOG_CONSOLE, BACKEND_LOG_VMM, BACKEND_LOG_PROVISION };

/* What the host holds of a backend's VMs, whoever knows of it.  In the order in which it may be removed. */
enum backend_trace_kind {
    BACKEND_TRACE_PROCESS,
    BACKEND_TRACE_TAP,
    BACKEND_TRACE_SOCKET,
    BACKEND_TRACE_FILE,
    BACKEND_TRACE_RUNTIME_DIR,
    BACKEND_TRACE_DATA_DIR,
};

struct backend_trace {
    struct backend_trace *next;
    struct backend *be; /* whose survey brought it; set by the receiver */
    enum backend_trace_kind kind;
    char *what; /* a path, a device, "pid 4242" */
    bool has_vm;
    struct uuid vm_id;    /* whose it is by its name, its command line or its manifest */
    struct proc_id proc;  /* of a process */
    int64_t born;         /* wall ms: a process's start, a file's last change; 0: not known */
    int64_t size;         /* bytes on disk; -1: not counted */
    uint64_t dev, ino;    /* of what is on disk */
    struct vm *manifest;  /* of a VM that nobody knows: what it was; NULL: there is none that can be used */
    bool lacks_manifest;  /* the data directory of a known VM */
    char note[160];       /* why the manifest is of no use; "" */
    bool removed;         /* by reap */
    struct error failure; /* why not */
};
void backend_trace_free(struct backend_trace *list); /* all of it */

struct console_reader;

struct backend {
    const char *name;
    unsigned files; /* descriptors that vmmd needs for the start of a VM, and a running one holds, at most */

    /* Can this spec be run here?  Checks without effect, at once: ERR_BACKEND_NOT_AVAILABLE, ERR_API_INVALID_FIELD (pointer
     * below /spec), ERR_HOST_INSUFFICIENT_MEMORY.  Called at create and PATCH. */
    int (*check)(struct backend *be, const struct vm_spec *spec, struct error *err);

    /* MiB that a VM of this spec takes beside its own memory; NULL: its VMs take no memory. */
    unsigned (*overhead_mb)(struct backend *be, const struct vm_spec *spec);
    /* How many bytes of the data directory a start of the VM takes, and its making where `create`, as far as that can be told
     * beforehand; NULL: none.  At once. */
    uint64_t (*room)(struct backend *be, const struct vm_spec *spec, bool create);

    /* Whether nothing on this host listens on the port now; NULL: always.  A system call or two, at once. */
    bool (*port_free)(struct backend *be, bool udp, const char *host_ip, uint16_t port);

    /* Memory only.  The vm outlives the backend_vm.  NULL with err set when memory is short. */
    struct backend_vm *(*attach)(struct backend *be, struct vm *vm, const struct backend_events *events, void *arg,
                                 struct error *err);
    /* Lets go: no events afterwards.  A process that runs goes on running. */
    void (*detach)(struct backend_vm *bvm);

    /* The fault seam: called before each step of every operation ("vm.start", "spawn").  NULL: none. */
    int (*before_step)(struct backend_vm *bvm, const char *kind, const char *step, struct backend_call *call,
                       struct error *err);
    /* Hurries the call under way: its done comes soon, with an error unless it was about to succeed. */
    void (*cancel)(struct backend_vm *bvm);

    /* Makes what the VM owns on disk: work directory, overlay, seed, UEFI variables. */
    int (*create)(struct backend_vm *bvm, struct backend_call *call, struct error *err);
    /* Removes all of it, whatever is there; done twice is fine. */
    int (*remove)(struct backend_vm *bvm, struct backend_call *call, struct error *err);

    /* The steps of a start. */
    int (*prepare)(struct backend_vm *bvm, struct backend_call *call,
                   struct error *err); /* runtime directory, tap, ports */
    int (*sweep)(struct backend_vm *bvm, struct backend_call *call, struct error *err); /* undoes prepare */
    int (*spawn)(struct backend_vm *bvm, struct backend_call *call, struct error *err); /* the process, paused */
    int (*greet)(struct backend_vm *bvm, struct backend_call *call, struct error *err); /* its monitor answers */
    int (*verify)(struct backend_vm *bvm, struct backend_call *call,
                  struct error *err); /* let it run; it says it does */

    /* Ends the process at once and waits until it is gone; no `exited` event follows.  Nothing to end: 0. */
    int (*kill)(struct backend_vm *bvm, struct backend_call *call, struct error *err);
    /* Asks the guest to power off, once (ACPI; the agent too when it answers); completes when asked, `exited` follows. */
    int (*press)(struct backend_vm *bvm, struct backend_call *call, struct error *err);
    /* Asks the process to end (SIGTERM); `exited` follows.  -1 when it cannot be asked. */
    int (*terminate)(struct backend_vm *bvm, struct error *err);
    int (*reset)(struct backend_vm *bvm, struct backend_call *call, struct error *err);
    int (*suspend)(struct backend_vm *bvm, struct backend_call *call, struct error *err);
    int (*resume)(struct backend_vm *bvm, struct backend_call *call, struct error *err);

    /* After a restart of the daemon: finds the VM's process by vm->runtime (or by its work directory where the record is
     * missing), reconnects, and says how it stands.  ret is filled before done. */
    int (*adopt)(struct backend_vm *bvm, struct backend_adoption *ret, struct backend_call *call, struct error *err);

    /* After a start that failed: its process' last words, and how it ended; status is not known where the backend ended it or
     * there was none.  NULL: not told. */
    void (*failed_start)(struct backend_vm *bvm, struct backend_exit *ret);

    /* Whether the agent was asked for by the last press and answers; for the stop's "method". */
    bool (*pressed_agent)(struct backend_vm *bvm);

    /* Logs.  The path prefix of a bounded log (loop/logfile.h) or of a plain file, in out (PATH_MAX bytes); -1: none. */
    int (*log_path)(struct backend *be, const struct vm *vm, enum backend_log which, char *out);
    /* The live console of an attached VM, or NULL. */
    struct console *(*console)(struct backend_vm *bvm);

    /* Writes the VM's manifest anew, a while after it changed; a failure is logged.  NULL: there are none. */
    void (*manifest)(struct backend *be, const struct vm *vm);

    /* Looks at the host, on the pool: every trace of VMs but those whose owner is plain (the data directory of a known VM that
     * has its manifest).  `known` are the ids of the living, sorted, copied.  done comes exactly once, on a later turn; the list
     * is the receiver's, NULL with err set when the host could not be looked at.  The backend may be freed before: done comes all
     * the same.  NULL: it leaves no traces. */
    int (*survey)(struct backend *be, const struct uuid *known, size_t n_known,
                  void (*done)(void *arg, struct backend_trace *list, struct error *err), void *arg, struct error *err);
    /* Removes the traces of the list, in the order of their kinds, on the pool; each is looked at again before, and one that is
     * no longer what it was, or that a living process holds, stays.  The list is returned by done, with `removed` or `failure`
     * set in each. */
    int (*reap)(struct backend *be, struct backend_trace *list,
                void (*done)(void *arg, struct backend_trace *list, struct error *err), void *arg, struct error *err);

    /* Runs a command in the guest of a running VM; see guest/exec.h.  NULL: there are no guests.  Fails: ERR_GUEST_UNAVAILABLE
     * (the channel asked for, or any, is not there), ERR_LIFECYCLE_VSOCK_UNAVAILABLE, ERR_SSH_FAILED. */
    struct exec *(*exec)(struct backend_vm *bvm, const struct exec_request *req, const struct exec_events *events,
                         void *arg, struct error *err);
    /* Whether the VM has a guest that runs commands at all; NULL: where exec is set. */
    bool (*has_guest)(const struct vm *vm);

    /* Files of the guest of a running VM, by SSH or else its agent; see guest/files.h.  NULL: there are no guests.  Fails as exec. */
    struct files *(*guest_files)(struct backend_vm *bvm, const struct files_request *req,
                                 const struct files_events *events, void *arg, struct error *err);

    /* What GET /v1/host tells of this backend: a new object. */
    json_t *(*describe)(struct backend *be);
    void (*free)(struct backend *be);
};

#endif
