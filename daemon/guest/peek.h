/* peek.h - reads a small file of the guest through its agent: open, read, close.  Loop thread.
 *
 * The caller owns the struct and keeps it until done, guest_peek_forget, or agent_free (which silences it). */
#ifndef GUEST_PEEK_H
#define GUEST_PEEK_H

#include "guest/agent.h"
#include "guest/info.h"

enum { GUEST_PEEK_MAX = 32 * 1024, GUEST_PEEK_MS = 10000 };

enum guest_peek_result {
    GUEST_PEEK_READ,    /* data has it all */
    GUEST_PEEK_MISSING, /* there is no such file */
    GUEST_PEEK_REFUSED, /* the agent may not, or the file is no small file: why says so */
    GUEST_PEEK_SILENT,  /* no answer in time */
};

struct guest_peek {
    struct agent *agent;
    json_int_t handle;
    enum guest_peek_result result;
    char *data; /* owned until done returns */
    size_t len;
    char why[GUEST_TEXT_MAX];
    bool busy;
    void (*done)(void *arg, struct guest_peek *peek);
    void *arg;
};

/* Begins; done comes exactly once, not before this returns, unless forgotten.  The file is closed in the guest before done
 * where it was opened.  -1: nothing began (the queue is full, memory). */
int guest_peek(struct guest_peek *peek, struct agent *agent, const char *path,
               void (*done)(void *arg, struct guest_peek *peek), void *arg);
/* The agent has been freed: nothing comes any more. */
void guest_peek_forget(struct guest_peek *peek);

#endif
