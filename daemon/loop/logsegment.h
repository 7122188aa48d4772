/* logsegment.h - the files of a log (see logfile.h).  Blocking: for pool threads.  Private to loop/. */
#ifndef LOOP_LOGSEGMENT_H
#define LOOP_LOGSEGMENT_H

#include <stddef.h>
#include <stdint.h>

#include "base/error.h"

enum { LOGSEGMENT_KEPT = 2, LOGSEGMENT_FOUND_MAX = 16, LOGSEGMENT_PATH_MAX = 4096 };

struct logsegment {
    uint64_t start;
    uint64_t size;
};

/* The files on disk, in order of their offsets: the newest LOGSEGMENT_FOUND_MAX.  A folder that is missing has none. */
struct logsegments {
    struct logsegment at[LOGSEGMENT_FOUND_MAX];
    size_t n;
};

int logsegments_find(const char *prefix, struct logsegments *ret, struct error *err);
/* Removes all but the newest LOGSEGMENT_KEPT, from the struct too. */
void logsegments_prune(const char *prefix, struct logsegments *segs);
uint64_t logsegments_oldest(const struct logsegments *segs);
uint64_t logsegments_next(const struct logsegments *segs);
int logsegment_path(char *out, const char *prefix, uint64_t start, struct error *err);

struct logfile_chunk;
/* Reads what follows the last hole (LOGFILE_READ_MAX at most): all there is, mostly. */
int logsegments_read_last(const char *prefix, struct logfile_chunk *ret, struct error *err);

/* The write end. */
struct logwriter {
    struct logsegments segs;
    size_t segment_max;
    int fd;          /* of the last segment, -1: none yet */
    uint64_t offset; /* the next byte's */
};

/* Finds what is there and goes on after it; *w is set on success only (segment_max > 0 from then on). */
int logwriter_open(struct logwriter *w, const char *prefix, size_t max_bytes, struct error *err);
/* Writes, starting new segments as needed.  *ret_written is how much of it is on disk, also on failure; w->offset counts
 * no more than that, so the rest may be given again. */
int logwriter_write(struct logwriter *w, const char *prefix, const char *data, size_t len, size_t *ret_written,
                    struct error *err);
void logwriter_close(struct logwriter *w);

#endif
