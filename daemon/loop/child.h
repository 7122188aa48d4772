/* child.h - child processes, and processes that are not our children (adopted QEMUs), watched by pidfd.
 * Loop thread only. */
#ifndef LOOP_CHILD_H
#define LOOP_CHILD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "loop/loop.h"

/* How a process ended.  `known` is false when it was not our child, for then the kernel does not tell. */
struct exit_status {
    bool known;
    int code;   /* exit code, -1 if a signal ended it */
    int signal; /* 0 if it exited */
};

struct child;

struct child_spec {
    const char *const *argv; /* argv[0] is looked up in PATH; NULL-terminated */
    const char *const *env;  /* NULL: a minimal one (PATH, LANG=C.UTF-8, HOME=/, TMPDIR kept) */
    bool detached;           /* own session: outlives vmmd (QEMU).  Otherwise the kernel kills it when vmmd dies */
    int stdin_fd;            /* -1: /dev/null.  Fds stay the caller's */
    int stdout_fd;           /* -1: /dev/null */
    int stderr_fd;           /* -1: /dev/null */
    int extra_fds[4];        /* become 3, 4, ... in the child; -1 ends the list */
};

/* Starts a process; no other fd is inherited, core limit 0, default signal mask and
 * dispositions.  The program runs in it when this returns.  `exited` comes exactly once, from the loop, unless the
 * child is freed first; child_free comes from the owner in any case.  Fails: ERR_IO with errno (ENOENT: no such
 * program). */
struct child *child_spawn(struct loop *loop, const struct child_spec *spec,
                          void (*exited)(void *arg, const struct exit_status *status), void *arg, struct error *err);
pid_t child_pid(const struct child *c);
/* Signals it through its pidfd: never a stranger.  -1 with errno set when it is gone. */
int child_signal(struct child *c, int signum);
/* Stops watching; the process goes on (it is still reaped, and does not keep loop_run).  NULL is fine. */
void child_free(struct child *c);

/* A short-lived tool run to its end: argv in, both outputs captured (bounded), killed at the deadline. */
struct tool_result {
    struct exit_status status;
    bool timed_out;
    const char *out; /* NUL-terminated; valid during the callback */
    size_t out_len;
    const char *err_text;
    size_t err_len;
};

struct tool;
/* `done` comes exactly once, from the loop, unless tool_free comes first (which kills it).  The owner calls tool_free
 * in any case, also after or in `done`.  stdin: a file with `input` (copied), or /dev/null.  extra_fds as in child_spec
 * (may be NULL).  Each output may have max_output bytes; more kills the tool (status shows it, timed_out false; what
 * fitted is kept).  An output that a grandchild holds open is waited for 1 s after the exit.  Fails: ERR_IO with
 * errno. */
struct tool *tool_run(struct loop *loop, const char *const *argv, const int *extra_fds, const void *input,
                      size_t input_len, int64_t timeout_ms, size_t max_output,
                      void (*done)(void *arg, const struct tool_result *result), void *arg, struct error *err);
void tool_free(struct tool *t); /* NULL is fine */

/* The identity of a process beyond its pid: start time in clock ticks since boot (field 22 of /proc/PID/stat). */
struct proc_id {
    pid_t pid;
    uint64_t start_ticks;
    char boot_id[37];
    char exe[256]; /* readlink of /proc/PID/exe, without " (deleted)"; empty where we may not see it */
};

/* Fills in the identity of a live process; ERR_IO when it is gone. */
int proc_identify(pid_t pid, struct proc_id *ret, struct error *err);
/* Whether the process still is the one recorded (same boot, pid, start time and exe) and no zombie. */
bool proc_is(const struct proc_id *id);
/* Reads the kernel's boot id. */
void proc_boot_id(char out[37]);
/* Calls fn(arg, pid, cmdline) for each live process whose exe's base name starts with exe_prefix; the cmdline's
 * arguments are NUL-separated, len bytes.  Blocking (proc file system). */
void proc_each(const char *exe_prefix, void (*fn)(void *arg, pid_t pid, const char *cmdline, size_t len), void *arg);

struct proc_watch;
/* Watches a process that need not be our child; `exited` comes exactly once (status.known false) unless freed first.
 * The pidfd is opened first and the identity checked after, so that a reused pid is refused: ERR_IO ESRCH.  Without a pidfd
 * (too many open files) it is looked at twice a second, until there is one. */
struct proc_watch *proc_watch_new(struct loop *loop, const struct proc_id *id,
                                  void (*exited)(void *arg, const struct exit_status *status), void *arg,
                                  struct error *err);
int proc_watch_signal(struct proc_watch *w, int signum);
void proc_watch_free(struct proc_watch *w);

#endif
