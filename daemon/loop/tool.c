/* tool.c - a short-lived program run to its end, with its outputs captured.
 *
 * The input is put into a memory file: the tool reads it at its own pace, and no SIGPIPE and no half-written pipe
 * exist.  The outputs are pipes.  `done` comes when the tool has exited and both pipes have ended; a grandchild that
 * keeps a pipe open delays it by a second at most.
 *
 * Failure: deadline and too much output kill the tool; then its exit ends the run like any other. */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/buf.h"
#include "base/fd.h"
#include "base/mem.h"
#include "loop/child.h"
#include "loop/poller.h"
#include "loop/timer.h"

enum { LINGER_MS = 1000, CHUNK = 16 * 1024, READ_ROUNDS = 8 };

struct output {
    struct tool *tool;
    int fd; /* -1: ended */
    struct poller *poller;
    struct buf buf;
};

struct tool {
    struct child *child;
    struct output out;
    struct output errors;
    struct timer *timer; /* the deadline; after the exit: how long to wait for the pipes */
    bool exited;
    bool timed_out;
    bool finished;
    bool in_done;
    bool freed;
    struct exit_status status;
    void (*done)(void *arg, const struct tool_result *result);
    void *arg;
};

static void output_close(struct output *o)
{
    poller_free(o->poller);
    o->poller = NULL;
    o->fd = fd_close(o->fd);
}

static void destroy(struct tool *t)
{
    timer_free(t->timer);
    if (t->child != NULL && !t->exited)
        child_signal(t->child, SIGKILL);
    child_free(t->child);
    output_close(&t->out);
    output_close(&t->errors);
    buf_done(&t->out.buf);
    buf_done(&t->errors.buf);
    mem_free(t);
}

static const char *text(const struct output *o)
{
    return o->buf.data != NULL ? o->buf.data : "";
}

static void finish_if_over(struct tool *t, bool waited_enough)
{
    if (t->finished || !t->exited || (!waited_enough && (t->out.fd >= 0 || t->errors.fd >= 0)))
        return;
    t->finished = true;
    timer_stop(t->timer);
    output_close(&t->out);
    output_close(&t->errors);
    struct tool_result result = {
        .status = t->status,
        .timed_out = t->timed_out,
        .out = text(&t->out),
        .out_len = t->out.buf.len,
        .err_text = text(&t->errors),
        .err_len = t->errors.buf.len,
    };
    t->in_done = true;
    t->done(t->arg, &result);
    t->in_done = false;
    if (t->freed)
        destroy(t);
}

/* Takes what fits; what does not costs the tool its life, and is read on and dropped until it is dead. */
static void take(struct output *o, const char *data, size_t len)
{
    size_t room = o->buf.failed ? 0 : o->buf.max - o->buf.len;

    if (len <= room && buf_append(&o->buf, data, len) == 0)
        return;
    if (room > 0 && room < len)
        buf_append(&o->buf, data, room);
    o->buf.failed = true;
    if (!o->tool->exited)
        child_signal(o->tool->child, SIGKILL);
}

static void on_output(void *arg, int events)
{
    struct output *o = arg;
    char chunk[CHUNK];

    (void)events;
    for (int i = 0; i < READ_ROUNDS; i++) {
        ssize_t n = read(o->fd, chunk, sizeof(chunk));
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK))
            return;
        if (n <= 0) {
            output_close(o);
            finish_if_over(o->tool, false);
            return;
        }
        take(o, chunk, (size_t)n);
    }
}

static void on_exited(void *arg, const struct exit_status *status)
{
    struct tool *t = arg;

    t->exited = true;
    t->status = *status;
    timer_start(t->timer, LINGER_MS, 0);
    finish_if_over(t, false);
}

static void on_timer(void *arg)
{
    struct tool *t = arg;

    if (t->exited) {
        finish_if_over(t, true);
        return;
    }
    t->timed_out = true;
    child_signal(t->child, SIGKILL);
}

/* ---- birth ---- */

/* A file with the input, at its start; -1 with errno. */
static int input_file(const void *input, size_t len)
{
    int fd = memfd_create("stdin", MFD_CLOEXEC);

    if (fd >= 0 && (fd_write_all(fd, input, len) != 0 || lseek(fd, 0, SEEK_SET) != 0)) {
        int saved = errno;
        fd_close(fd);
        errno = saved;
        return -1;
    }
    return fd;
}

/* Our end is watched, the tool's end is returned; -1 with err set. */
static int output_open(struct loop *loop, struct output *o, struct error *err)
{
    int ends[2];

    if (pipe2(ends, O_CLOEXEC) != 0)
        return error_errno(err, errno, "cannot make a pipe");
    o->fd = ends[0];
    o->poller = poller_new(loop, o->fd, POLLER_READ, on_output, o, err);
    if (o->poller == NULL)
        return fd_close(ends[1]);
    return ends[1];
}

static int start(struct tool *t, struct loop *loop, const char *const *argv, const int *extra_fds, const void *input,
                 size_t input_len, struct error *err)
{
    CLEANUP_FD int in = -1;
    CLEANUP_FD int out = -1;
    CLEANUP_FD int errors = -1;
    struct child_spec spec = {.argv = argv, .extra_fds = {-1, -1, -1, -1}};

    if (input_len > 0 && (in = input_file(input, input_len)) < 0)
        return error_errno(err, errno, "cannot give %s its input", argv[0]);
    if ((out = output_open(loop, &t->out, err)) < 0 || (errors = output_open(loop, &t->errors, err)) < 0)
        return -1;
    spec.stdin_fd = in;
    spec.stdout_fd = out;
    spec.stderr_fd = errors;
    for (size_t i = 0; extra_fds != NULL && i < ARRAY_SIZE(spec.extra_fds) && extra_fds[i] >= 0; i++)
        spec.extra_fds[i] = extra_fds[i];
    t->child = child_spawn(loop, &spec, on_exited, t, err);
    return t->child != NULL ? 0 : -1;
}

struct tool *tool_run(struct loop *loop, const char *const *argv, const int *extra_fds, const void *input,
                      size_t input_len, int64_t timeout_ms, size_t max_output,
                      void (*done)(void *arg, const struct tool_result *result), void *arg, struct error *err)
{
    struct tool *t = mem_zalloc(sizeof(*t));

    if (t != NULL) {
        *t = (struct tool){.out = {.tool = t, .fd = -1}, .errors = {.tool = t, .fd = -1}, .done = done, .arg = arg};
        buf_init(&t->out.buf, max_output);
        buf_init(&t->errors.buf, max_output);
        t->timer = timer_new(loop, on_timer, t);
    }
    if (t == NULL || t->timer == NULL) {
        mem_free(t);
        error_errno(err, ENOMEM, "cannot run %s", argv[0]);
        return NULL;
    }
    if (start(t, loop, argv, extra_fds, input, input_len, err) != 0) {
        destroy(t);
        return NULL;
    }
    timer_start(t->timer, timeout_ms, 0);
    return t;
}

void tool_free(struct tool *t)
{
    if (t == NULL)
        return;
    if (t->in_done)
        t->freed = true;
    else
        destroy(t);
}
