/* provision.h - what the parts of provisioning share: the walk over the steps (vm_provision.c), what is sent to the guest
 * (provision_guest.c), and what the steps write (provision_out.c). */
#ifndef CORE_OPS_PROVISION_H
#define CORE_OPS_PROVISION_H

#include "core/exec.h"
#include "core/ops/ops.h"
#include "loop/logfile.h"
#include "model/provision.h"

enum { PROVISION_CHUNK = 64 << 10, PROVISION_INLINE_MAX = 48 << 10, PROVISION_TAIL_MAX = 4096 };

/* What is under way in the guest, or at the store. */
enum provision_phase {
    PROVISION_IDLE,
    PROVISION_ROOT,  /* may steps run as root? */
    PROVISION_LOGIN, /* they may not: does the guest answer at all? */
    PROVISION_NOTE,  /* the name of the file to come is being written down */
    PROVISION_SEND,  /* a part of a script or file */
    PROVISION_RUN,
    PROVISION_CLEAN, /* the script is removed */
    PROVISION_CLOSE, /* the log is written to its end */
};

/* What the steps write, on its way to the log, the events and the error. */
struct provision_out {
    struct logfile *log; /* the VM's provision_log; NULL: its backend has none */
    struct logfile_watch *watch;
    struct timer *timer; /* of the event that gathers */
    struct buf event;
    int64_t skipped, left; /* bytes that no event tells; that this step's may still tell */
    struct buf tail;
    char last; /* byte of the log */
    bool paused;
};

struct provision {
    struct vm_op *vo;
    json_t *steps;
    unsigned n, at; /* how many; the one that runs */
    struct provision_step step;
    char label[PROVISION_LABEL_MAX];
    char digest[DIGEST_TEXT_MAX]; /* of one that runs once; "" */
    enum provision_phase phase;
    struct vm_wait *wait; /* for the guest */
    struct core_exec *exec;
    bool root;        /* steps without a user run as root */
    unsigned retries; /* of the look for it */
    bool hurried;     /* the operation ends: nothing more is begun but the cleaning */
    int64_t began_ms, step_began_ms;
    char *temp; /* in the guest; NULL: there is none */
    char *sent; /* the bytes for it */
    size_t sent_len, sent_at;
    struct error failure; /* why it ends */
    struct provision_out out;
};

/* --- provision_out.c --- */

int provision_out_open(struct provision *p, struct error *err);
/* Written to its end, then done(p), on a later turn. */
void provision_out_close(struct provision *p, void (*done)(void *arg));
void provision_out_free(struct provision *p); /* at once; what waits is lost */
void provision_out_step(struct provision *p); /* another step begins */
void provision_out_put(struct provision *p, const char *data, size_t len);
void provision_out_flush(struct provision *p); /* the event that gathers */
void provision_out_line(struct provision *p, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
/* The last lines of the step, as text; the caller mem_frees.  NULL: no memory. */
char *provision_out_tail(struct provision *p);
/* vm.provision_step; `ch` NULL: it need not be written at once. */
void provision_out_event(struct provision *p, struct change *ch, const char *state, const struct error *err);

/* --- provision_guest.c: each begins a command, whose end comes by `events`; -1 with err --- */

struct provision_guest {
    const struct core_exec_events *events;
    int64_t timeout_ms;
};
/* As root, or as who logs in: removes what an earlier run may have left. */
int provision_guest_look(struct provision *p, bool root, const struct provision_guest *g, struct error *err);
/* Chooses the name of the file that the step needs in the guest, and makes its bytes; 0: it needs none, 1: it does. */
int provision_guest_prepare(struct provision *p, struct error *err);
int provision_guest_send(struct provision *p, const struct provision_guest *g, struct error *err); /* the next part */
int provision_guest_run(struct provision *p, const struct provision_guest *g, struct error *err);
int provision_guest_clean(struct provision *p, const struct provision_guest *g, struct error *err);

#endif
