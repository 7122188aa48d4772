/* leaks.h - what nobody owns: the list, among the files of core/ that keep it, remove from it and adopt from it.
 *
 *   leaks.c        the list's life: surveys, who waits for one, events     leaks_judge.c  what is a leftover, and whose
 *   leaks_reap.c   removing                                                adopt.c        taking a VM back */
#ifndef CORE_LEAKS_H
#define CORE_LEAKS_H

#include "core/internal.h"

/* The first are the backend's traces. */
enum leak_kind {
    LEAK_PROCESS = BACKEND_TRACE_PROCESS,
    LEAK_TAP = BACKEND_TRACE_TAP,
    LEAK_SOCKET = BACKEND_TRACE_SOCKET,
    LEAK_FILE = BACKEND_TRACE_FILE,
    LEAK_RUNTIME_DIR = BACKEND_TRACE_RUNTIME_DIR,
    LEAK_DATA_DIR = BACKEND_TRACE_DATA_DIR,
    LEAK_PORT,
};

struct leak {
    char id[17]; /* of its kind and what it is: the same in every survey */
    enum leak_kind kind;
    char *what;
    pid_t pid;
    bool has_owner;
    struct uuid vm_id;
    char vm_name[64]; /* "": not known */
    int64_t since;    /* wall ms */
    int64_t size;
    bool adoptable;
    bool told;                   /* by an event */
    bool hidden;                 /* its VM has something under way */
    char reason[240];            /* one sentence, without its full stop */
    struct backend_trace *trace; /* of the list's survey; NULL: a port */
};

struct leak_list {
    struct leak **items; /* by kind, then by what they are */
    size_t n, cap;
};

/* A VM as it stood when a survey began. */
struct known_vm {
    struct uuid id;
    int64_t revision;
    bool busy;
};

struct orphan_port {
    struct orphan_port *next;
    char text[80]; /* "tcp 127.0.0.1:20022" */
    struct uuid vm_id;
    char vm_name[64];
};

struct survey {
    struct core *core; /* NULL: freed meanwhile */
    int64_t begun;     /* monotonic µs, and later than that of any survey before */
    int64_t at;        /* wall ms */
    struct known_vm *known;
    struct uuid *ids;
    size_t n_known;
    size_t next_backend;
    struct backend_trace *traces;
    struct orphan_port *ports;
    struct store_read *read;
    struct error failure;
};

struct leaks_wait {
    struct leaks_wait *next;
    struct core *core;
    int64_t need; /* a survey that began then, or later */
    void (*done)(void *arg, struct error *err);
    void *arg;
};

struct leaks {
    struct timer *timer;
    struct survey *survey; /* under way */
    struct leak_list list;
    struct backend_trace *traces; /* of the list */
    int64_t begun, took_us;       /* the list's survey; 0: none, or it is known to be out of date */
    int64_t last_begun;           /* of any survey */
    int64_t surveyed_at;
    struct leaks_wait *waits;
    struct loop_task task; /* tells those whose survey is there already */
    struct reap *acting;   /* what it removes stands in no list: no survey meanwhile */
    unsigned pinned;       /* somebody walks the list over several turns: nor then */
    struct adopting *adoptings;
};

/* Calls done once, on a later turn, when the list is of a survey that began at `need` (monotonic µs; 0: not before this call)
 * or later; err is set when there could be none. */
struct leaks_wait *leaks_fresh(struct core *core, int64_t need, void (*done)(void *arg, struct error *err), void *arg,
                               struct error *err);
void leaks_unwait(struct leaks_wait *w); /* not after done */
/* The list is out of date; a new survey is made. */
void leaks_changed(struct core *core);
/* Its members, without the braces: written by hand, for there may be many thousands. */
void leak_put(struct buf *out, const struct leak *leak);
void leak_list_done(struct leak_list *list);
/* Whether an operation, a recovery or an adoption has the VM. */
bool leaks_vm_busy(const struct live_vm *vm);

/* leaks_judge.c: the survey against the rows; into an empty list.  -1 when memory is short. */
int leaks_judge(struct survey *s, struct leak_list *ret);

/* leaks_reap.c, adopt.c: the core is freed while they are under way. */
void reap_drop(struct core *core, struct error *why);
void adoptings_drop(struct core *core, struct error *why);

#endif
