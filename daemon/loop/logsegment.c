/* logsegment.c - the files of a bounded log: found, written, read, trimmed.  See logfile.h for the format.
 *
 * Happy path: bytes go to the end of the newest file; when it is full, a new one is begun at the next offset, and the
 * oldest is removed.
 *
 * Failure modes.  The disk is full: what did not fit is the caller's still, and what was there stays.  A file is
 * missing between two: readers step over the hole.  Killed between making a file and removing one: three files, pruned
 * when opened.  A reader meets a file that was just removed: it looks again. */
#include "loop/logsegment.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/fd.h"
#include "base/mem.h"
#include "base/str.h"
#include "loop/logfile.h"

enum { START_DIGITS = 20 };

int logsegment_path(char *out, const char *prefix, uint64_t start, struct error *err)
{
    int n = snprintf(out, LOGSEGMENT_PATH_MAX, "%s.%0*" PRIu64, prefix, START_DIGITS, start);

    return n < LOGSEGMENT_PATH_MAX ? 0 : error_errno(err, ENAMETOOLONG, "the path of the log %.200s", prefix);
}

/* Whether `name` is BASE.<20 digits>. */
static bool parse_name(const char *name, const char *base, uint64_t *ret_start)
{
    size_t n = strlen(base);
    int64_t start;

    if (strncmp(name, base, n) != 0 || name[n] != '.' || strlen(name + n + 1) != START_DIGITS)
        return false;
    if (!str_to_i64(name + n + 1, 0, INT64_MAX, &start))
        return false;
    *ret_start = (uint64_t)start;
    return true;
}

/* Inserts in order; the oldest falls out when there are too many. */
static void insert(struct logsegments *segs, struct logsegment seg)
{
    size_t i = segs->n;

    if (segs->n == LOGSEGMENT_FOUND_MAX) {
        if (seg.start < segs->at[0].start)
            return;
        memmove(&segs->at[0], &segs->at[1], (segs->n - 1) * sizeof(seg));
        segs->n--;
        i--;
    }
    for (; i > 0 && segs->at[i - 1].start > seg.start; i--)
        segs->at[i] = segs->at[i - 1];
    segs->at[i] = seg;
    segs->n++;
}

int logsegments_find(const char *prefix, struct logsegments *ret, struct error *err)
{
    const char *slash = strrchr(prefix, '/');
    const char *base = slash != NULL ? slash + 1 : prefix;
    CLEANUP_FREE char *dir = slash != NULL ? mem_strndup(prefix, (size_t)(slash - prefix) + 1) : mem_strdup(".");
    struct logsegments segs = {.n = 0};
    struct dirent *e;

    if (dir == NULL)
        return error_set(err, ERR_IO, "no memory to look for the log %.200s", prefix);
    DIR *d = opendir(dir);
    if (d == NULL && errno != ENOENT)
        return error_errno(err, errno, "cannot look for the log %.200s", prefix);
    while (d != NULL && (e = readdir(d)) != NULL) {
        struct logsegment seg;
        struct stat st;
        if (!parse_name(e->d_name, base, &seg.start))
            continue;
        if (fstatat(dirfd(d), e->d_name, &st, AT_SYMLINK_NOFOLLOW) < 0 || !S_ISREG(st.st_mode))
            continue;
        seg.size = (uint64_t)st.st_size;
        insert(&segs, seg);
    }
    if (d != NULL)
        closedir(d);
    *ret = segs;
    return 0;
}

void logsegments_prune(const char *prefix, struct logsegments *segs)
{
    char path[LOGSEGMENT_PATH_MAX];

    while (segs->n > LOGSEGMENT_KEPT) {
        if (logsegment_path(path, prefix, segs->at[0].start, NULL) == 0)
            unlink(path);
        segs->n--;
        memmove(&segs->at[0], &segs->at[1], segs->n * sizeof(segs->at[0]));
    }
}

uint64_t logsegments_oldest(const struct logsegments *segs)
{
    return segs->n > 0 ? segs->at[0].start : 0;
}

uint64_t logsegments_next(const struct logsegments *segs)
{
    return segs->n > 0 ? segs->at[segs->n - 1].start + segs->at[segs->n - 1].size : 0;
}

/* ---- writing ---- */

int logwriter_open(struct logwriter *w, const char *prefix, size_t max_bytes, struct error *err)
{
    struct logwriter found = {.segment_max = max_bytes / LOGSEGMENT_KEPT, .fd = -1};

    if (logsegments_find(prefix, &found.segs, err) < 0)
        return -1;
    logsegments_prune(prefix, &found.segs);
    found.offset = logsegments_next(&found.segs);
    *w = found;
    return 0;
}

void logwriter_close(struct logwriter *w)
{
    w->fd = fd_close(w->fd);
}

/* Makes sure that the last segment is open and has room, and ends at w->offset. */
static int ready_segment(struct logwriter *w, const char *prefix, struct error *err)
{
    char path[LOGSEGMENT_PATH_MAX];
    bool fits =
        w->segs.n > 0 && logsegments_next(&w->segs) == w->offset && w->segs.at[w->segs.n - 1].size < w->segment_max;

    if (fits && w->fd >= 0)
        return 0;
    logwriter_close(w);
    uint64_t start = fits ? w->segs.at[w->segs.n - 1].start : w->offset;
    if (logsegment_path(path, prefix, start, err) < 0)
        return -1;
    w->fd = open(path, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC | O_NOFOLLOW | (fits ? 0 : O_TRUNC), 0640);
    if (w->fd < 0)
        return error_errno(err, errno, "cannot write the log %.200s", path);
    if (!fits) {
        insert(&w->segs, (struct logsegment){.start = start});
        logsegments_prune(prefix, &w->segs);
    }
    return 0;
}

static int write_some(struct logwriter *w, const char *prefix, const char *data, size_t len, size_t *ret_done,
                      struct error *err)
{
    if (ready_segment(w, prefix, err) < 0)
        return -1;
    struct logsegment *last = &w->segs.at[w->segs.n - 1];
    size_t room = w->segment_max - (size_t)last->size;
    ssize_t n = write(w->fd, data, len < room ? len : room);
    if (n < 0 && errno == EINTR)
        n = 0;
    else if (n < 0)
        return error_errno(err, errno, "cannot write the log %.200s", prefix);
    last->size += (uint64_t)n;
    w->offset += (uint64_t)n;
    *ret_done = (size_t)n;
    return 0;
}

int logwriter_write(struct logwriter *w, const char *prefix, const char *data, size_t len, size_t *ret_written,
                    struct error *err)
{
    *ret_written = 0;
    while (*ret_written < len) {
        size_t n = 0;
        if (write_some(w, prefix, data + *ret_written, len - *ret_written, &n, err) < 0)
            return -1;
        *ret_written += n;
    }
    return 0;
}

/* ---- reading ---- */

/* Reads from one file; *len is what there was.  -1 with errno. */
static int read_segment(const char *prefix, const struct logsegment *seg, uint64_t offset, char *out, size_t *len)
{
    char path[LOGSEGMENT_PATH_MAX];
    size_t done = 0;

    if (logsegment_path(path, prefix, seg->start, NULL) < 0) {
        errno = ENAMETOOLONG;
        return -1;
    }
    CLEANUP_FD int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
    if (fd < 0)
        return -1;
    while (done < *len) {
        ssize_t n = pread(fd, out + done, *len - done, (off_t)(offset - seg->start + done));
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return -1;
        if (n == 0)
            break;
        done += (size_t)n;
    }
    *len = done;
    return 0;
}

/* Copies a run of bytes without a hole, from the first one at or after offset.  1: a file went away, look again. */
static int read_run(const char *prefix, const struct logsegments *segs, uint64_t offset, size_t max,
                    struct logfile_chunk *chunk, char *out, struct error *err)
{
    chunk->offset = logsegments_next(segs);
    chunk->len = 0;
    for (size_t i = 0; i < segs->n && chunk->len < max; i++) {
        const struct logsegment *seg = &segs->at[i];
        uint64_t from = offset > seg->start ? offset : seg->start;
        if (from >= seg->start + seg->size)
            continue;
        if (chunk->len > 0 && from != chunk->offset + chunk->len)
            break;
        size_t left = max - chunk->len, there = (size_t)(seg->start + seg->size - from);
        size_t n = left < there ? left : there;
        if (read_segment(prefix, seg, from, out + chunk->len, &n) < 0)
            return errno == ENOENT ? 1 : error_errno(err, errno, "cannot read the log %.200s", prefix);
        if (chunk->len == 0)
            chunk->offset = from;
        chunk->len += n;
        offset = from + n;
    }
    return 0;
}

int logfile_read_at(const char *prefix, uint64_t offset, size_t max, struct logfile_chunk *ret, struct error *err)
{
    int rc = 1;
    size_t want = max < LOGFILE_READ_MAX ? max : LOGFILE_READ_MAX;
    struct logfile_chunk chunk = {0};
    CLEANUP_FREE char *out = NULL;

    for (int attempt = 0; rc == 1 && attempt < 4; attempt++) {
        struct logsegments segs;
        if (logsegments_find(prefix, &segs, err) < 0)
            return -1;
        uint64_t oldest = logsegments_oldest(&segs), next = logsegments_next(&segs);
        uint64_t there = next - (offset < oldest ? oldest : offset < next ? offset : next);
        size_t size = there < want ? (size_t)there : want;
        mem_free(out);
        out = mem_alloc(size + 1);
        if (out == NULL)
            return error_set(err, ERR_IO, "no memory to read the log %.200s", prefix);
        chunk = (struct logfile_chunk){.oldest = oldest, .next = next};
        rc = read_run(prefix, &segs, offset, size, &chunk, out, err);
    }
    if (rc != 0)
        return rc < 0 ? -1 : error_errno(err, ENOENT, "the log %.200s is being removed", prefix);
    out[chunk.len] = '\0';
    chunk.data = TAKE_PTR(out);
    *ret = chunk;
    return 0;
}

size_t logfile_tail_start(const char *data, size_t len, size_t n_lines)
{
    if (n_lines == 0)
        return len;
    size_t at = len > 0 && data[len - 1] == '\n' ? len - 1 : len;
    while (at > 0) {
        const char *nl = memrchr(data, '\n', at);
        if (nl == NULL)
            return 0;
        if (--n_lines == 0)
            return (size_t)(nl - data) + 1;
        at = (size_t)(nl - data);
    }
    return 0;
}

int logsegments_read_last(const char *prefix, struct logfile_chunk *ret, struct error *err)
{
    struct logfile_chunk chunk;
    uint64_t offset = 0;

    for (;;) {
        if (logfile_read_at(prefix, offset, LOGFILE_READ_MAX, &chunk, err) < 0)
            return -1;
        if (chunk.len == 0 || chunk.offset + chunk.len >= chunk.next)
            break;
        offset = chunk.offset + chunk.len;
        mem_free((char *)(uintptr_t)chunk.data);
    }
    *ret = chunk;
    return 0;
}

int logfile_tail_at(const char *prefix, size_t n_lines, struct logfile_chunk *ret, struct error *err)
{
    struct logfile_chunk chunk;

    if (logsegments_read_last(prefix, &chunk, err) < 0)
        return -1;
    char *data = (char *)(uintptr_t)chunk.data;
    size_t start = logfile_tail_start(data, chunk.len, n_lines);
    chunk.len -= start;
    chunk.offset += start;
    memmove(data, data + start, chunk.len + 1);
    *ret = chunk;
    return 0;
}

/* ---- a file somebody else writes ---- */

static ssize_t pread_all(int fd, char *out, size_t len, off_t at)
{
    size_t done = 0;

    while (done < len) {
        ssize_t n = pread(fd, out + done, len - done, at + (off_t)done);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return -1;
        if (n == 0)
            break;
        done += (size_t)n;
    }
    return (ssize_t)done;
}

static int pwrite_all(int fd, const char *data, size_t len, off_t at)
{
    while (len > 0) {
        ssize_t n = pwrite(fd, data, len, at);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return -1;
        data += n;
        len -= (size_t)n;
        at += n;
    }
    return 0;
}

/* Moves [from, end) of the file behind what was written up to *to.  A piece at a time, for the end may move. */
static int move_front(int fd, char *piece, size_t piece_size, off_t from, off_t *to)
{
    for (;;) {
        ssize_t n = pread_all(fd, piece, piece_size, from);
        if (n <= 0)
            return (int)n;
        if (pwrite_all(fd, piece, (size_t)n, *to) < 0)
            return -1;
        from += n;
        *to += n;
    }
}

static int trim(int fd, off_t size, size_t keep)
{
    enum { PIECE = 65536 };
    CLEANUP_FREE char *piece = mem_alloc(PIECE);
    char marker[64];
    off_t from = size - (off_t)keep, to;

    if (piece == NULL) {
        errno = ENOMEM;
        return -1;
    }
    ssize_t n = pread_all(fd, piece, PIECE < keep ? PIECE : keep, from - 1);
    if (n < 0)
        return -1;
    const char *nl = memchr(piece, '\n', (size_t)n);
    from += nl != NULL ? nl - piece : 0; /* the byte after the newline; piece began one early */
    int len = snprintf(marker, sizeof(marker), "[vmmd: %lld bytes trimmed]\n", (long long)from);
    if (pwrite_all(fd, marker, (size_t)len, 0) < 0)
        return -1;
    to = len;
    if (move_front(fd, piece, PIECE, from, &to) < 0)
        return -1;
    return ftruncate(fd, to);
}

int logfile_trim(const char *path, size_t max_bytes, struct error *err)
{
    struct stat st;
    CLEANUP_FD int fd = open(path, O_RDWR | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);

    if (fd < 0)
        return errno == ENOENT ? 0 : error_errno(err, errno, "cannot trim %.200s", path);
    if (fstat(fd, &st) < 0)
        return error_errno(err, errno, "cannot trim %.200s", path);
    if (!S_ISREG(st.st_mode) || st.st_size <= (off_t)max_bytes || max_bytes < 256)
        return 0;
    return trim(fd, st.st_size, max_bytes / 2) < 0 ? error_errno(err, errno, "cannot trim %.200s", path) : 1;
}
