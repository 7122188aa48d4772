/* logfile.c - the loop's side of a bounded log: what waits in memory, who reads, who watches.  Format: logfile.h.
 *
 *      append ──► pending ──(swap)──► flying ──► a pool thread writes it to the segments
 *                 └── readers see disk + flying + pending as one ──┘
 *
 * Happy path: bytes are appended to `pending`; when no write is under way it becomes `flying` and goes to the pool.
 *
 * Failure modes.  The disk is slow or full: what could not be written stays in memory and is tried again with the next
 * append; when memory is full too the rest is dropped and counted, and the count is written as a marker line before the
 * next bytes that fit.  A read on the pool overtakes a write: it is asked again. */
#include "loop/logfile.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/buf.h"
#include "base/mem.h"
#include "loop/logsegment.h"
#include "loop/work.h"

enum { READ_ATTEMPTS = 4, MARKER_MAX = 256, KEEP_BUFFER = 16384, LOGFILE_MIN = 64 };

struct logfile_watch {
    struct logfile *log; /* NULL: it ended */
    struct logfile_watch *next;
    void (*fn)(void *arg, bool ended);
    void *arg;
};

struct logfile_read {
    struct logfile *log; /* NULL: cancelled */
    struct logfile_read *next;
    char *prefix; /* the pool's copy */
    uint64_t offset;
    size_t max;
    bool tail;
    size_t n_lines;
    int attempts;
    struct logfile_chunk chunk;
    logfile_read_fn *done;
    void *arg;
};

struct logfile {
    struct loop *loop;
    char *prefix;
    size_t max_bytes;
    struct logwriter writer; /* the pool's while working */
    struct buf flying;       /* being written, or failed to be */
    size_t written;          /* of it; the pool's while working */
    struct buf pending;      /* waits its turn */
    bool ready;
    bool working;
    bool stuck;     /* the last write failed */
    uint64_t start; /* offset of the first byte in memory; once ready */
    uint64_t oldest;
    uint64_t dropped; /* bytes that no marker tells of yet */

    struct logfile_read *reads;
    struct logfile_watch *watches;
    struct logfile_watch *cursor; /* the next to be told */
    struct loop_task tell;

    bool ended;
    bool flush; /* write what waits, then end */
    bool told;  /* the watchers know of the end */
    void (*closed)(void *arg);
    void *closed_arg;
};

static uint64_t next_offset(const struct logfile *log)
{
    return log->start + log->flying.len + log->pending.len;
}

/* ---- writing ---- */

static int work(void *data, struct error *err)
{
    struct logfile *log = data;

    log->written = 0;
    if (!log->ready && logwriter_open(&log->writer, log->prefix, log->max_bytes, err) < 0)
        return -1;
    return logwriter_write(&log->writer, log->prefix, log->flying.data, log->flying.len, &log->written, err);
}

static void work_done(void *arg, void *data, int rc, struct error *err);

/* Gives the pool something to do, if there is something and it is idle. */
static void start_work(struct logfile *log)
{
    if (log->working)
        return;
    if (log->flying.len == 0) {
        struct buf empty = log->flying;
        log->flying = log->pending;
        log->pending = empty;
    }
    if (log->ready && log->flying.len == 0)
        return;
    log->working = work_run(log->loop, work, work_done, log, NULL, NULL) == 0;
}

static void finish_if_over(struct logfile *log)
{
    if (!log->ended || !log->told || log->working || log->reads != NULL)
        return;
    loop_revoke(log->loop, &log->tell);
    logwriter_close(&log->writer);
    if (log->closed != NULL)
        log->closed(log->closed_arg);
    buf_done(&log->flying);
    buf_done(&log->pending);
    mem_free(log->prefix);
    mem_free(log);
}

static bool put(struct logfile *log, const char *data, size_t len)
{
    if (log->flying.len + log->pending.len + len <= LOGFILE_PENDING_MAX && buf_append(&log->pending, data, len) == 0)
        return true;
    log->pending.failed = false;
    return false;
}

/* Tells in the log what is missing from it; false when not even that fits. */
static bool mark_dropped(struct logfile *log)
{
    char marker[MARKER_MAX];
    int n = snprintf(marker, sizeof(marker), "\n[vmmd: %" PRIu64 " bytes of output dropped]\n", log->dropped);

    if (log->dropped > 0 && !put(log, marker, (size_t)n))
        return false;
    log->dropped = 0;
    return true;
}

static void work_done(void *arg, void *data, int rc, struct error *err)
{
    struct logfile *log = data;

    (void)arg;
    (void)err; /* a log of the log's own trouble would meet the same disk */
    log->working = false;
    log->stuck = rc < 0;
    if (log->writer.segment_max > 0) {
        log->ready = true;
        log->start = log->writer.offset;
        log->oldest = logsegments_oldest(&log->writer.segs);
    }
    buf_consume(&log->flying, log->written);
    if (log->flying.len == 0 && log->flying.cap > KEEP_BUFFER)
        buf_done(&log->flying);
    if (!log->ended)
        loop_defer(log->loop, &log->tell);
    if (rc == 0 && (!log->ended || log->flush)) {
        mark_dropped(log); /* there may be no further append to tell it */
        start_work(log);
    }
    finish_if_over(log);
}

void logfile_append(struct logfile *log, const void *data, size_t len)
{
    if (log->ended || len == 0)
        return;
    if (!mark_dropped(log)) {
        log->dropped += len;
    } else {
        size_t room = LOGFILE_PENDING_MAX - log->flying.len - log->pending.len;
        size_t n = len < room ? len : room;
        log->dropped += put(log, data, n) ? len - n : len;
        loop_defer(log->loop, &log->tell);
    }
    start_work(log);
}

void logfile_gap(struct logfile *log, const char *text)
{
    char marker[MARKER_MAX];
    int n = snprintf(marker, sizeof(marker), "\n[vmmd: %.200s]\n", text);

    logfile_append(log, marker, (size_t)n);
}

/* ---- watching ---- */

static void tell_watchers(struct loop_task *task)
{
    struct logfile *log = CONTAINER_OF(task, struct logfile, tell);

    bool ended = log->ended; /* a watcher may end the log: then all are told on the next turn */

    log->cursor = log->watches;
    while (log->cursor != NULL) {
        struct logfile_watch *w = log->cursor;
        log->cursor = w->next;
        if (ended) {
            log->watches = w->next;
            w->log = NULL;
        }
        w->fn(w->arg, ended);
    }
    log->told = ended && log->watches == NULL;
    finish_if_over(log);
}

struct logfile_watch *logfile_watch(struct logfile *log, void (*fn)(void *arg, bool ended), void *arg)
{
    struct logfile_watch *w = mem_alloc(sizeof(*w));

    if (w == NULL)
        return NULL;
    *w = (struct logfile_watch){.log = log, .fn = fn, .arg = arg, .next = log->watches};
    log->watches = w;
    if (log->ended)
        loop_defer(log->loop, &log->tell);
    return w;
}

void logfile_unwatch(struct logfile_watch *w)
{
    if (w == NULL)
        return;
    if (w->log != NULL) {
        struct logfile_watch **at = &w->log->watches;
        while (*at != w)
            at = &(*at)->next;
        *at = w->next;
        if (w->log->cursor == w)
            w->log->cursor = w->next;
    }
    mem_free(w);
}

/* ---- reading ---- */

static void read_free(struct logfile_read *r)
{
    mem_free((char *)(uintptr_t)r->chunk.data);
    mem_free(r->prefix);
    mem_free(r);
}

static void read_unlink(struct logfile_read *r)
{
    struct logfile_read **at = &r->log->reads;

    while (*at != r)
        at = &(*at)->next;
    *at = r->next;
    r->log = NULL;
}

static int read_work(void *data, struct error *err)
{
    struct logfile_read *r = data;

    if (r->tail)
        return logsegments_read_last(r->prefix, &r->chunk, err);
    return logfile_read_at(r->prefix, r->offset, r->max, &r->chunk, err);
}

/* Copies the bytes of b, which begin at offset b_start, from *pos on behind the chunk. */
static void copy_memory(char *out, struct logfile_chunk *chunk, size_t max, const struct buf *b, uint64_t b_start)
{
    uint64_t pos = chunk->offset + chunk->len;

    if (pos < b_start || pos >= b_start + b->len)
        return;
    size_t from = (size_t)(pos - b_start), there = b->len - from, left = max - chunk->len;
    size_t n = there < left ? there : left;
    memcpy(out + chunk->len, b->data + from, n);
    chunk->len += n;
}

/* Adds to what was read from disk what memory has.  1: the read must be asked again; -1: no memory. */
static int read_merge(struct logfile_read *r)
{
    const struct logfile *log = r->log;
    struct logfile_chunk *chunk = &r->chunk;
    uint64_t next = next_offset(log);

    if (!log->ready)
        return 0;
    if (chunk->len == 0) {
        uint64_t from = r->offset > log->oldest ? r->offset : log->oldest;
        chunk->offset = from < next ? from : next;
        if (chunk->offset < log->start && r->max > 0) { /* was in memory when we looked, or is a hole */
            if (++r->attempts < READ_ATTEMPTS)
                return 1;
            chunk->offset = log->start;
        }
    }
    /* Memory went to disk behind our back.  The last answer stands, though short: the next read goes on from there. */
    if (chunk->len > 0 && chunk->len < r->max && chunk->offset + chunk->len < log->start &&
        ++r->attempts < READ_ATTEMPTS)
        return 1;
    if (chunk->oldest < log->oldest)
        chunk->oldest = log->oldest;
    chunk->next = next;
    size_t memory = log->flying.len + log->pending.len;
    if (memory == 0 || chunk->len >= r->max)
        return 0;
    char *out = mem_realloc((char *)(uintptr_t)chunk->data, chunk->len + memory + 1);
    if (out == NULL)
        return -1;
    chunk->data = out;
    copy_memory(out, chunk, r->max, &log->flying, log->start);
    copy_memory(out, chunk, r->max, &log->pending, log->start + log->flying.len);
    return 0;
}

static void read_done(void *arg, void *data, int rc, struct error *err)
{
    struct logfile_read *r = data;
    struct logfile_chunk chunk;

    (void)arg;
    if (r->log == NULL) {
        read_free(r);
        return;
    }
    int merged = rc == 0 ? read_merge(r) : 0;
    if (merged == 1) {
        mem_free((char *)(uintptr_t)r->chunk.data);
        r->chunk = (struct logfile_chunk){0};
        if (work_run(r->log->loop, read_work, read_done, r, NULL, err) == 0)
            return;
        rc = -1;
    } else if (merged < 0) {
        rc = error_set(err, ERR_IO, "no memory to read the log %.200s", r->prefix);
    }
    struct logfile *log = r->log;
    read_unlink(r);
    chunk = r->chunk;
    if (rc == 0 && r->tail) {
        size_t start = logfile_tail_start(chunk.data, chunk.len, r->n_lines);
        chunk.data += start;
        chunk.len -= start;
        chunk.offset += start;
    }
    r->done(r->arg, rc == 0 ? &chunk : NULL, err);
    read_free(r);
    finish_if_over(log);
}

static struct logfile_read *read_start(struct logfile *log, const struct logfile_read *like, struct error *err)
{
    struct logfile_read *r = log->ended ? NULL : mem_alloc(sizeof(*r));

    if (r == NULL) {
        error_set(err, ERR_IO, "the log %.200s has ended or memory is short", log->prefix);
        return NULL;
    }
    *r = *like;
    r->prefix = mem_strdup(log->prefix);
    if (r->prefix == NULL) {
        error_set(err, ERR_IO, "no memory to read the log %.200s", log->prefix);
        read_free(r);
        return NULL;
    }
    if (work_run(log->loop, read_work, read_done, r, NULL, err) < 0) {
        read_free(r);
        return NULL;
    }
    r->log = log;
    r->next = log->reads;
    log->reads = r;
    return r;
}

struct logfile_read *logfile_read(struct logfile *log, uint64_t offset, size_t max, logfile_read_fn *done, void *arg,
                                  struct error *err)
{
    const struct logfile_read like = {
        .offset = offset, .max = max < LOGFILE_READ_MAX ? max : LOGFILE_READ_MAX, .done = done, .arg = arg};

    return read_start(log, &like, err);
}

struct logfile_read *logfile_tail(struct logfile *log, size_t n_lines, logfile_read_fn *done, void *arg,
                                  struct error *err)
{
    const struct logfile_read like = {
        .max = LOGFILE_READ_MAX, .tail = true, .n_lines = n_lines, .done = done, .arg = arg};

    return read_start(log, &like, err);
}

void logfile_cancel(struct logfile_read *r)
{
    struct logfile *log = r->log;

    read_unlink(r);
    finish_if_over(log);
}

/* ---- birth and end ---- */

struct logfile *logfile_open(struct loop *loop, const char *prefix, size_t max_bytes, struct error *err)
{
    struct logfile *log = mem_zalloc(sizeof(*log));

    if (log == NULL) {
        error_set(err, ERR_IO, "no memory for the log %.200s", prefix);
        return NULL;
    }
    log->loop = loop;
    log->max_bytes = max_bytes > LOGFILE_MAX ? LOGFILE_MAX : max_bytes < LOGFILE_MIN ? LOGFILE_MIN : max_bytes;
    log->writer.fd = -1;
    log->tell.run = tell_watchers;
    buf_init(&log->flying, LOGFILE_PENDING_MAX);
    buf_init(&log->pending, LOGFILE_PENDING_MAX);
    log->prefix = mem_strdup(prefix);
    if (log->prefix == NULL) {
        error_set(err, ERR_IO, "no memory for the log %.200s", prefix);
        mem_free(log);
        return NULL;
    }
    start_work(log);
    return log;
}

void logfile_close(struct logfile *log, void (*done)(void *arg), void *arg)
{
    if (log->dropped > 0)
        mark_dropped(log);
    log->ended = true;
    log->flush = true;
    log->closed = done;
    log->closed_arg = arg;
    start_work(log);
    loop_defer(log->loop, &log->tell);
}

void logfile_free(struct logfile *log)
{
    if (log == NULL)
        return;
    while (log->reads != NULL)
        read_unlink(log->reads);
    log->ended = true;
    loop_defer(log->loop, &log->tell);
}

bool logfile_is_ready(const struct logfile *log)
{
    return log->ready;
}

size_t logfile_waiting(const struct logfile *log)
{
    return log->stuck ? 0 : log->flying.len + log->pending.len;
}

uint64_t logfile_oldest(const struct logfile *log)
{
    return log->ready ? log->oldest : 0;
}

uint64_t logfile_next(const struct logfile *log)
{
    return log->ready ? next_offset(log) : 0;
}
