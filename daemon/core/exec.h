/* exec.h - commands in guests, as resources run them: limits, the VM's state and the deadline.  Loop thread. */
#ifndef CORE_EXEC_H
#define CORE_EXEC_H

#include "core/core.h"
#include "guest/exec.h"

struct core_exec;

struct core_exec_end {
    struct exec_end end; /* exit_code -1 and no signal where it was killed and did not tell */
    bool timed_out;
    enum exec_via via;
    int64_t duration_ms;
};

struct core_exec_events {
    void (*output)(void *arg, bool is_stderr, const char *data, size_t len);
    /* Once, the last; end NULL: err says why nothing is known of the command. */
    void (*ended)(void *arg, const struct core_exec_end *end, struct error *err);
};

/* Runs a command in a running VM; after timeout_ms its process group is killed.  req->default_user is filled in here.
 * NULL with err set: ERR_VM_INVALID_STATE, ERR_BACKEND_NOT_AVAILABLE, ERR_DAEMON_OVERLOADED (core_config max_execs), and what
 * the backend says. */
struct core_exec *core_exec_new(struct live_vm *vm, const struct exec_request *req, int64_t timeout_ms,
                                const struct core_exec_events *events, void *arg, struct error *err);
void core_exec_pause(struct core_exec *x, bool paused); /* see exec.h */
void core_exec_free(struct core_exec *x);               /* kills what still runs; NULL is fine; also from the events */

/* Whether the guest can be reached in this way only by an address that is not known yet: it has a key, is on a bridge, and
 * via auto has no agent that answers.  It is waited for by core_vm_wait for "ip", and refused as below. */
enum { ADDRESS_WAIT_MS = 30000 };
bool core_address_missing(const struct live_vm *vm, enum exec_via via);
/* ERR_NETWORK_IP_DISCOVERY_TIMEOUT */
void core_address_refuse(const struct live_vm *vm, int64_t waited_ms, struct error *err);
/* Whether commands can be run in this VM's guest at all: ERR_BACKEND_NOT_AVAILABLE. */
int core_guest_check(const struct live_vm *vm, struct error *err);
enum exec_via core_exec_via(const struct core_exec *x);

struct core_exec_stats {
    unsigned now, most; /* in all guests; in the one that has most */
    uint64_t total;
};
void core_exec_stats(const struct core *core, struct core_exec_stats *ret);

/* How to reach a VM by SSH; "" or NULL: not known (yet).  Memory only. */
struct core_ssh {
    const char *user, *host, *key_path, *host_key;
    uint16_t port;
    char known_hosts[4096]; /* "" */
};
void core_vm_ssh(const struct live_vm *vm, struct core_ssh *ret);

#endif
