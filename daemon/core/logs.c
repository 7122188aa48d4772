/* logs.c - reading a VM's logs: once, or on and on.
 *
 * Where the console is live its log is asked (memory and disk as one), else the files are read on the pool. */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <string.h>
#include <unistd.h>

#include "backend/console.h"
#include "base/fd.h"
#include "base/mem.h"
#include "core/internal.h"
#include "loop/logfile.h"
#include "loop/work.h"

enum { VMM_LOG_MAX = 1 << 20, FOLLOW_POLL_MS = 250, FOLLOW_CHUNK = 65536 };

struct log_read {
    char path[PATH_MAX];
    bool plain; /* a file another process appends to, not a bounded log */
    int64_t tail;
    uint64_t offset;
    size_t max;
    bool cancelled;
    struct logfile_read *live;
    struct core_log_chunk chunk;
    char *data;
    void (*done)(void *arg, const struct core_log_chunk *chunk, struct error *err);
    void *arg;
};

/* Pool: the whole of a small file, then the part that was asked. */
static int read_plain(struct log_read *r, struct error *err)
{
    CLEANUP_FREE char *text = NULL;
    size_t len = 0, from;

    if (access(r->path, F_OK) < 0 && errno == ENOENT)
        return 0;
    if (file_read(r->path, VMM_LOG_MAX, &text, &len, err) < 0)
        return -1;
    from = r->tail >= 0 ? logfile_tail_start(text, len, (size_t)r->tail) : r->offset < len ? (size_t)r->offset : len;
    size_t n = len - from < r->max ? len - from : r->max;
    char *copy = mem_alloc(n + 1);
    if (copy == NULL)
        return error_set(err, ERR_DAEMON_OVERLOADED, "out of memory");
    memcpy(copy, text + from, n);
    r->data = copy;
    r->chunk = (struct core_log_chunk){.data = copy, .len = n, .offset = from, .oldest = 0, .next = len};
    return 0;
}

static int read_files(void *data, struct error *err)
{
    struct log_read *r = data;
    struct logfile_chunk c = {0};

    if (r->plain)
        return read_plain(r, err);
    int rc = r->tail >= 0 ? logfile_tail_at(r->path, (size_t)r->tail, &c, err)
                          : logfile_read_at(r->path, r->offset, r->max, &c, err);
    if (rc < 0)
        return -1;
    r->data = (char *)(uintptr_t)c.data;
    r->chunk =
        (struct core_log_chunk){.data = c.data, .len = c.len, .offset = c.offset, .oldest = c.oldest, .next = c.next};
    return 0;
}

static void read_over(void *arg, void *data, int rc, struct error *err)
{
    struct log_read *r = data;

    (void)arg;
    if (!r->cancelled)
        r->done(r->arg, rc == 0 ? &r->chunk : NULL, err);
    mem_free(r->data);
    mem_free(r);
}

static void live_over(void *arg, const struct logfile_chunk *c, struct error *err)
{
    struct log_read *r = arg;

    if (c != NULL)
        r->chunk = (struct core_log_chunk){
            .data = c->data, .len = c->len, .offset = c->offset, .oldest = c->oldest, .next = c->next};
    r->done(r->arg, c != NULL ? &r->chunk : NULL, err);
    mem_free(r);
}

int core_log_path(const struct live_vm *vm, enum backend_log which, char *out)
{
    return vm->be->log_path != NULL ? vm->be->log_path(vm->be, &vm->vm, which, out) : -1;
}

static struct logfile *live_log(const struct live_vm *vm, enum backend_log which)
{
    if (which == BACKEND_LOG_PROVISION)
        return vm->provision_log;
    struct console *console =
        which == BACKEND_LOG_CONSOLE && vm->bvm != NULL && vm->be->console != NULL ? vm->be->console(vm->bvm) : NULL;

    return console != NULL ? console_log(console) : NULL;
}

struct log_read *core_log_read(struct live_vm *vm, enum backend_log which, int64_t tail, uint64_t offset, size_t max,
                               void (*done)(void *arg, const struct core_log_chunk *chunk, struct error *err),
                               void *arg, struct error *err)
{
    struct log_read *r = mem_zalloc(sizeof(*r));
    struct logfile *live = live_log(vm, which);

    if (r == NULL) {
        error_set(err, ERR_DAEMON_OVERLOADED, "out of memory");
        return NULL;
    }
    r->plain = which == BACKEND_LOG_VMM;
    r->tail = tail;
    r->offset = offset;
    r->max = max;
    r->done = done;
    r->arg = arg;
    if (live != NULL && logfile_is_ready(live)) {
        r->live = tail >= 0 ? logfile_tail(live, (size_t)tail, live_over, r, err)
                            : logfile_read(live, offset, max, live_over, r, err);
        if (r->live != NULL)
            return r;
    } else if (core_log_path(vm, which, r->path) < 0) {
        r->path[0] = '\0';
        r->plain = true; /* a backend without this log: an empty one */
    }
    if (r->live == NULL && !error_is_set(err) && work_run(vm->core->loop, read_files, read_over, r, NULL, err) == 0)
        return r;
    mem_free(r);
    return NULL;
}

void log_read_cancel(struct log_read *r)
{
    if (r->live != NULL) {
        logfile_cancel(r->live);
        mem_free(r);
        return;
    }
    r->cancelled = true;
}

/* --- on and on --- */

struct log_follow {
    struct live_vm *vm;
    enum backend_log which;
    int64_t tail;
    uint64_t offset;
    struct log_read *read;
    struct logfile_watch *watch;
    struct timer *timer;
    bool waiting; /* for bytes */
    bool busy, dead;
    void (*fn)(void *arg, const struct core_log_chunk *chunk);
    void *arg;
};

static void follow_free(struct log_follow *f)
{
    if (f->read != NULL)
        log_read_cancel(f->read);
    logfile_unwatch(f->watch);
    timer_free(f->timer);
    core_vm_unref(f->vm);
    mem_free(f);
}

static void follow_tell(struct log_follow *f, const struct core_log_chunk *chunk)
{
    f->busy = true;
    f->fn(f->arg, chunk);
    f->busy = false;
    if (f->dead)
        follow_free(f);
}

static void follow_appended(void *arg, bool ended)
{
    struct log_follow *f = arg;

    if (ended) {
        logfile_unwatch(f->watch);
        f->watch = NULL;
    }
    if (f->waiting)
        log_follow_more(f);
}

static void follow_poll(void *arg)
{
    struct log_follow *f = arg;

    if (f->waiting)
        log_follow_more(f);
}

static void follow_wait(struct log_follow *f)
{
    struct logfile *live = live_log(f->vm, f->which);

    if (f->vm->gone) {
        follow_tell(f, NULL);
        return;
    }
    f->waiting = true;
    if (f->watch == NULL && live != NULL)
        f->watch = logfile_watch(live, follow_appended, f);
    timer_start(f->timer, f->watch != NULL ? FOLLOW_POLL_MS * 8 : FOLLOW_POLL_MS, 0);
}

static void follow_read(void *arg, const struct core_log_chunk *chunk, struct error *err)
{
    struct log_follow *f = arg;

    (void)err;
    f->read = NULL;
    if (chunk == NULL) {
        follow_wait(f);
        return;
    }
    if (chunk->next < f->offset) /* a file that was trimmed: go on at its end */
        f->offset = chunk->next;
    else
        f->offset = chunk->offset + chunk->len;
    f->tail = -1;
    if (chunk->len == 0)
        follow_wait(f);
    else
        follow_tell(f, chunk);
}

void log_follow_more(struct log_follow *f)
{
    CLEANUP_ERROR struct error err = ERROR_INIT;

    f->waiting = false;
    timer_stop(f->timer);
    if (f->read != NULL || f->dead)
        return;
    f->read = core_log_read(f->vm, f->which, f->tail, f->offset, FOLLOW_CHUNK, follow_read, f, &err);
    if (f->read == NULL)
        follow_wait(f);
}

struct log_follow *core_log_follow(struct live_vm *vm, enum backend_log which, int64_t tail, uint64_t offset,
                                   void (*fn)(void *arg, const struct core_log_chunk *chunk), void *arg,
                                   struct error *err)
{
    struct log_follow *f = mem_zalloc(sizeof(*f));

    if (f != NULL)
        f->timer = timer_new(vm->core->loop, follow_poll, f);
    if (f == NULL || f->timer == NULL) {
        mem_free(f);
        error_set(err, ERR_DAEMON_OVERLOADED, "out of memory");
        return NULL;
    }
    f->vm = core_vm_ref(vm);
    f->which = which;
    f->tail = tail;
    f->offset = offset;
    f->fn = fn;
    f->arg = arg;
    log_follow_more(f);
    return f;
}

void log_follow_end(struct log_follow *f)
{
    if (f == NULL)
        return;
    if (f->busy)
        f->dead = true;
    else
        follow_free(f);
}
