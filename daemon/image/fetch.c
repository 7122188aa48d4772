/* fetch.c - see fetch.h.
 *
 * Happy path: lines of progress, a line "done", exit 0.  Failures: a line "error"; a helper that dies without a last line
 * has met something it could not stand, and the fetch fails; one that talks nonsense is ended. */
#include "image/fetch.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/fd.h"
#include "base/lines.h"
#include "base/mem.h"
#include "loop/child.h"
#include "loop/poller.h"
#include "loop/timer.h"

enum { LINE_MAX_BYTES = 16384, CHUNK = 16384, LINGER_MS = 1000 };

struct image_fetch {
    struct child *child;
    struct poller *poller;
    struct timer *timer; /* the deadline; after the exit: how long to wait for the pipe */
    struct lines lines;
    int fd; /* -1: ended */
    bool exited, timed_out, told, keep, freed, in_done;
    struct exit_status status;
    struct image_fetched result;
    struct error err;
    const struct image_fetch_events *events;
    void *arg;
};

static void destroy(struct image_fetch *f)
{
    if (f->child != NULL && !f->exited)
        child_signal(f->child, SIGKILL);
    child_free(f->child);
    poller_free(f->poller);
    fd_close(f->fd);
    timer_free(f->timer);
    lines_done(&f->lines);
    error_done(&f->err);
    mem_free(f);
}

void image_fetch_free(struct image_fetch *f)
{
    if (f == NULL)
        return;
    f->freed = true;
    if (!f->in_done)
        destroy(f);
}

void image_fetch_stop(struct image_fetch *f)
{
    if (!f->exited)
        child_signal(f->child, SIGKILL);
}

/* --- what the helper says --- */

static const char *text_of(const json_t *doc, const char *name)
{
    const char *text = json_string_value(json_object_get(doc, name));

    return text != NULL ? text : "";
}

static void take_checksum(struct image_fetch *f, const json_t *doc)
{
    const char *expected = text_of(doc, "expected"), *actual = text_of(doc, "actual");

    error_set(&f->err, ERR_IMAGE_CHECKSUM_MISMATCH, "the image has the SHA-256 digest %.64s, not %.64s", actual,
              expected);
    error_ctx_str(&f->err, "expected", expected);
    error_ctx_str(&f->err, "actual", actual);
}

static void take_failure(struct image_fetch *f, const json_t *doc)
{
    static const struct {
        const char *kind;
        enum error_code code;
    } kinds[] = {{"download", ERR_IMAGE_DOWNLOAD_FAILED},
                 {"oci", ERR_OCI_PULL_FAILED},
                 {"full", ERR_HOST_DISK_FULL},
                 {"unsafe", ERR_IMAGE_UNSAFE},
                 {"io", ERR_IO}};
    const char *kind = text_of(doc, "error"), *url = text_of(doc, "url"), *detail = text_of(doc, "detail");
    enum error_code code = ERR_IO;
    json_int_t status = json_integer_value(json_object_get(doc, "http_status"));

    f->told = true;
    f->keep = json_is_true(json_object_get(doc, "keep"));
    if (strcmp(kind, "checksum") == 0) {
        take_checksum(f, doc);
        return;
    }
    for (size_t i = 0; i < ARRAY_SIZE(kinds); i++)
        if (strcmp(kinds[i].kind, kind) == 0)
            code = kinds[i].code;
    error_set(&f->err, code, "the image could not be fetched: %.300s", detail);
    if (status > 0)
        error_ctx_int(&f->err, "http_status", status);
    if (*url != '\0')
        error_ctx_str(&f->err, "url", url);
}

static void take_result(struct image_fetch *f, const json_t *doc)
{
    f->told = true;
    f->result.fetched = (uint64_t)json_integer_value(json_object_get(doc, "done"));
    f->result.written = (uint64_t)json_integer_value(json_object_get(doc, "written"));
    f->result.resumed = (uint64_t)json_integer_value(json_object_get(doc, "resumed"));
    snprintf(f->result.sha256, sizeof(f->result.sha256), "%s", text_of(doc, "sha256"));
    snprintf(f->result.packing, sizeof(f->result.packing), "%s", text_of(doc, "packing"));
    if (strlen(f->result.sha256) != 64 || strspn(f->result.sha256, "0123456789abcdef") != 64)
        error_set(&f->err, ERR_IO, "the image could not be fetched: vmmd-fetch told no digest");
}

static bool take_line(void *arg, enum lines_what what, const char *line, size_t len)
{
    struct image_fetch *f = arg;
    json_t *doc = what == LINES_LINE && !f->told ? json_loadb(line, len, JSON_REJECT_DUPLICATES, NULL) : NULL;
    const json_t *progress = json_object_get(doc, "progress"), *total = json_object_get(doc, "total");

    if (json_is_integer(progress))
        f->events->progress(f->arg, (uint64_t)json_integer_value(progress),
                            json_is_integer(total) ? json_integer_value(total) : -1);
    else if (json_object_get(doc, "error") != NULL)
        take_failure(f, doc);
    else if (json_is_integer(json_object_get(doc, "done")))
        take_result(f, doc);
    else if (!f->exited)
        child_signal(f->child, SIGKILL);
    json_decref(doc);
    return !f->freed;
}

/* --- its life --- */

static void finish_if_over(struct image_fetch *f, bool waited_enough)
{
    char how[64];

    if (!f->exited || (f->fd >= 0 && !waited_enough) || f->in_done)
        return;
    if (f->timed_out) {
        error_set(&f->err, ERR_IMAGE_DOWNLOAD_FAILED, "the image could not be fetched in time");
    } else if (!f->told || f->status.code != 0) {
        if (f->status.signal != 0)
            snprintf(how, sizeof(how), "signal %d", f->status.signal);
        else
            snprintf(how, sizeof(how), "status %d", f->status.code);
        error_set(&f->err, ERR_IMAGE_DOWNLOAD_FAILED, "the image could not be fetched: vmmd-fetch ended with %s", how);
    }
    f->in_done = true;
    f->events->done(f->arg, error_is_set(&f->err) ? NULL : &f->result, f->keep, &f->err);
    if (f->freed)
        destroy(f);
}

static void close_pipe(struct image_fetch *f)
{
    poller_free(f->poller);
    f->poller = NULL;
    f->fd = fd_close(f->fd);
}

static void on_output(void *arg, int events)
{
    struct image_fetch *f = arg;
    char chunk[CHUNK];
    ssize_t n = read(f->fd, chunk, sizeof(chunk));

    (void)events;
    if (n < 0 && (errno == EINTR || errno == EAGAIN))
        return;
    if (n > 0) {
        f->in_done = true; /* a free from within waits */
        lines_feed(&f->lines, chunk, (size_t)n, take_line, f);
        f->in_done = false;
        if (f->freed)
            destroy(f);
        return;
    }
    close_pipe(f);
    finish_if_over(f, false);
}

static void on_exited(void *arg, const struct exit_status *status)
{
    struct image_fetch *f = arg;

    f->exited = true;
    f->status = *status;
    timer_start(f->timer, LINGER_MS, 0);
    finish_if_over(f, false);
}

static void on_timer(void *arg)
{
    struct image_fetch *f = arg;

    if (f->exited) {
        finish_if_over(f, true);
        return;
    }
    f->timed_out = true;
    child_signal(f->child, SIGKILL);
}

/* --- birth --- */

/* The job as a file: it may hold a secret, so it is no argument. */
static int job_file(json_t *job)
{
    char *text = job != NULL ? json_dumps(job, JSON_COMPACT) : NULL;
    int fd = text != NULL ? memfd_create("job", MFD_CLOEXEC) : -1;

    if (fd >= 0 && (fd_write_all(fd, text, strlen(text)) != 0 || lseek(fd, 0, SEEK_SET) != 0))
        fd = fd_close(fd);
    mem_free(text);
    json_decref(job);
    return fd;
}

static int start(struct image_fetch *f, struct loop *loop, const char *helper, int job_fd, const int fds[4],
                 struct error *err)
{
    const char *argv[] = {helper, NULL};
    struct child_spec spec = {.argv = argv, .stdin_fd = job_fd, .stderr_fd = STDERR_FILENO};
    int ends[2];

    memcpy(spec.extra_fds, fds, sizeof(spec.extra_fds));
    if (pipe2(ends, O_CLOEXEC) != 0)
        return error_errno(err, errno, "cannot make a pipe");
    f->fd = ends[0];
    CLEANUP_FD int theirs = ends[1];
    f->poller = poller_new(loop, f->fd, POLLER_READ, on_output, f, err);
    if (f->poller == NULL)
        return -1;
    spec.stdout_fd = theirs;
    f->child = child_spawn(loop, &spec, on_exited, f, err);
    return f->child != NULL ? 0 : -1;
}

struct image_fetch *image_fetch_start(struct loop *loop, const char *helper, json_t *job, int part_fd, int note_fd,
                                      int source_fd, int64_t timeout_ms, const struct image_fetch_events *events,
                                      void *arg, struct error *err)
{
    struct image_fetch *f = mem_zalloc(sizeof(*f));
    CLEANUP_FD int job_fd = job_file(job);
    const int fds[4] = {part_fd, note_fd, source_fd, -1};

    if (f != NULL) {
        *f = (struct image_fetch){.fd = -1, .events = events, .arg = arg};
        lines_init(&f->lines, LINE_MAX_BYTES, -1);
        f->timer = timer_new(loop, on_timer, f);
    }
    if (f == NULL || f->timer == NULL || job_fd < 0) {
        if (f != NULL)
            destroy(f);
        error_errno(err, ENOMEM, "cannot fetch the image");
        return NULL;
    }
    if (start(f, loop, helper, job_fd, fds, err) < 0) {
        destroy(f);
        return NULL;
    }
    timer_start(f->timer, timeout_ms, 0);
    return f;
}
