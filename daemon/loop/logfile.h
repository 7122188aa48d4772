/* logfile.h - a bounded, offset-addressed log on disk, fed from the loop without blocking it.
 *
 * The log is a stream of bytes counted from its birth; an offset names a byte for ever.  On disk it is at most two
 * files, PREFIX.<20 digits: the offset of its first byte>, each at most half the maximum; starting a third removes the
 * oldest. Appended bytes wait in memory (LOGFILE_PENDING_MAX; what does not fit is dropped, and a marker line says how
 * much) until the thread pool has written them; on a full disk they wait there for the next append.  Nothing is fsynced: it is a log.  A restarted daemon goes on at the
 * next offset.  Readers see memory and disk as one.
 *
 * Runs on the loop thread, except the functions that say "blocking": those need no struct logfile and belong on a pool
 * thread, for logs nobody writes at the moment (and they only miss the last bytes if somebody does). */
#ifndef LOOP_LOGFILE_H
#define LOOP_LOGFILE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "loop/loop.h"

enum { LOGFILE_PENDING_MAX = 256 * 1024, LOGFILE_READ_MAX = 4 << 20, LOGFILE_MAX = 2 << 20 };

struct logfile;

/* Opens or continues the log at `prefix` (the folder must exist).  Returns at once: what is on disk is found out by the
 * pool, and what is appended meanwhile comes after it.  max_bytes is at most
 * LOGFILE_MAX.  Fails: ERR_IO (memory). */
struct logfile *logfile_open(struct loop *loop, const char *prefix, size_t max_bytes, struct error *err);
/* Ends the log without writing what waits; reads under way are not answered, watchers are told (ended). */
void logfile_free(struct logfile *log); /* NULL is fine */
/* Ends the log as logfile_free does, but writes first what waits and answers the reads under way, then calls done (may be
 * NULL), once, on a later turn: the files are not touched any more from then on. */
void logfile_close(struct logfile *log, void (*done)(void *arg), void *arg);

/* Appends; never fails, see above. */
void logfile_append(struct logfile *log, const void *data, size_t len);
/* Appends the line "[vmmd: TEXT]", on a line of its own. */
void logfile_gap(struct logfile *log, const char *text);
/* How much waits to be written: a producer that can be paused keeps this small, and nothing is dropped.  0 while the disk
 * takes nothing, for there is nothing to wait for. */
size_t logfile_waiting(const struct logfile *log);
/* Whether the disk has been looked at; before, the two offsets are 0. */
bool logfile_is_ready(const struct logfile *log);
uint64_t logfile_oldest(const struct logfile *log);
uint64_t logfile_next(const struct logfile *log);

struct logfile_chunk {
    uint64_t offset; /* of data[0]: what was asked, or the oldest there is, or the next one when beyond the end */
    const char *data;
    size_t len; /* 0: nothing there yet */
    uint64_t oldest;
    uint64_t next; /* of the log, not of the chunk */
};

typedef void logfile_read_fn(void *arg, const struct logfile_chunk *chunk, struct error *err);

struct logfile_read;
/* Reads up to `max` bytes (at most LOGFILE_READ_MAX) from `offset`.  done comes exactly once on a later turn, unless
 * the read is cancelled or the log ends first; the chunk is valid during the call and may be shorter than asked.  On
 * error chunk is NULL.  NULL (ERR_IO) when nothing was begun. */
struct logfile_read *logfile_read(struct logfile *log, uint64_t offset, size_t max, logfile_read_fn *done, void *arg,
                                  struct error *err);
/* The same for the last n_lines lines (after the last hole, should there be one). */
struct logfile_read *logfile_tail(struct logfile *log, size_t n_lines, logfile_read_fn *done, void *arg,
                                  struct error *err);
/* Silences a read under way; not after its done came or the log ended. */
void logfile_cancel(struct logfile_read *r);

struct logfile_watch;
/* Calls fn on a turn after bytes were appended (merged), and once with `ended` when the log ends; then only
 * logfile_unwatch is left to do.  NULL when memory is short. */
struct logfile_watch *logfile_watch(struct logfile *log, void (*fn)(void *arg, bool ended), void *arg);
void logfile_unwatch(struct logfile_watch *w); /* NULL is fine; from fn too */

/* Blocking.  What is on disk of a log: up to `max` bytes from `offset`, clamped as in logfile_read.  The caller frees
 * ret->data (cast away const) with mem_free.  No log at all is an empty one.  Fails: ERR_IO. */
int logfile_read_at(const char *prefix, uint64_t offset, size_t max, struct logfile_chunk *ret, struct error *err);
/* Blocking.  The same for the last n_lines lines. */
int logfile_tail_at(const char *prefix, size_t n_lines, struct logfile_chunk *ret, struct error *err);
/* The index of the first of the last n_lines lines of data; a last line without newline counts.  Pure, any thread. */
size_t logfile_tail_start(const char *data, size_t len, size_t n_lines);
/* Blocking.  Bounds a file that another process appends to (O_APPEND): when it is longer than max_bytes, its last half
 * maximum, from the start of a line, is moved to the front after a marker line, and the file is cut.  Returns 1 when
 * trimmed, 0 when there was no need or no file.  The race: bytes the other process appends between our last look at the
 * size and the cut are lost; its next append goes to the new end.  Killed in the middle, the file holds some lines
 * twice.  Fails: ERR_IO. */
int logfile_trim(const char *path, size_t max_bytes, struct error *err);

#endif
