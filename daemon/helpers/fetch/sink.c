/* sink.c - where the bytes go: counted, digested on a thread of its own, unpacked, written, as long as the disk has room
 * beside its reserve: looked at before the first byte, where it is known how many come, and again on the way.
 *
 * Happy path: each piece is copied into the ring for the digest, unpacked where its beginning says so, and written in
 * order; the kernel is asked to begin writing back early, so that the fsync at the end is short.  Failures: more bytes
 * than allowed, or unpacked bytes out of all proportion, are unsafe; a full disk is full; a digest that differs is
 * checksum.  Unpacked zeros become holes. */
#include <errno.h>
#include <fcntl.h>
#include <nettle/sha2.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "base/str.h"
#include "helpers/fetch/fetch.h"

enum {
    RING = 2 << 20,
    CHUNK = 1 << 20,
    HEAD = 8,
    HOLE = 65536,
    RATIO_MAX = 1000,
};
#define RATIO_FROM (64ULL << 20)
#define FLUSH_EVERY (32ULL << 20)
#define LOOK_EVERY (1ULL << 20)

static struct sha256_ctx sha;
static pthread_t thread;
static bool running, over;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t changed = PTHREAD_COND_INITIALIZER;
static uint8_t ring[RING];
static uint64_t put, got; /* bytes into and out of the ring */
static uint64_t flushed;  /* the thread's: where it has asked the kernel to begin with that */
static uint64_t to_flush; /* so many bytes of the part file may be written back */

static enum packing packing;
static uint8_t head[HEAD];
static size_t head_len;
static uint64_t fetched, written;
static uint64_t looked; /* at the room there is, when so much was written */

static void *digest_thread(void *arg)
{
    (void)arg;
    for (;;) {
        pthread_mutex_lock(&lock);
        while (put == got && !over)
            pthread_cond_wait(&changed, &lock);
        uint64_t from = got, until = put, written_back = to_flush;
        pthread_mutex_unlock(&lock);
        if (written_back - flushed >= FLUSH_EVERY) {
            sync_file_range(PART_FD, (off_t)flushed, (off_t)(written_back - flushed), SYNC_FILE_RANGE_WRITE);
            flushed = written_back;
        }
        if (from == until)
            return NULL;
        size_t at = (size_t)(from % RING), len = (size_t)(until - from);
        if (len > RING - at)
            len = RING - at;
        if (len > CHUNK)
            len = CHUNK;
        sha256_update(&sha, len, ring + at);
        pthread_mutex_lock(&lock);
        got += len;
        pthread_cond_signal(&changed);
        pthread_mutex_unlock(&lock);
    }
}

static void digest_add(const uint8_t *data, size_t len)
{
    while (len > 0) {
        pthread_mutex_lock(&lock);
        while (put - got == RING)
            pthread_cond_wait(&changed, &lock);
        size_t at = (size_t)(put % RING), room = (size_t)(RING - (put - got));
        pthread_mutex_unlock(&lock);
        if (room > RING - at)
            room = RING - at;
        if (room > len)
            room = len;
        memcpy(ring + at, data, room);
        pthread_mutex_lock(&lock);
        put += room;
        to_flush = written;
        pthread_cond_signal(&changed);
        pthread_mutex_unlock(&lock);
        data += room;
        len -= room;
    }
}

static void digest_text(char out[SHA256_TEXT])
{
    uint8_t digest[SHA256_DIGEST_SIZE];

    pthread_mutex_lock(&lock);
    over = true;
    pthread_cond_signal(&changed);
    pthread_mutex_unlock(&lock);
    pthread_join(thread, NULL);
    running = false;
    sha256_digest(&sha, sizeof(digest), digest);
    str_hex(digest, sizeof(digest), out);
}

static _Noreturn void write_failed(void)
{
    if (errno == ENOSPC || errno == EDQUOT)
        fail("full", "the disk of the image cache is full after %llu bytes", (unsigned long long)written);
    if (errno == EFBIG)
        fail("unsafe", "it has more bytes than a file may have");
    fail("io", "the part file cannot be written: %s", strerror(errno));
}

/* The digest of what is there already. */
static void rehash(uint64_t bytes)
{
    static uint8_t piece[CHUNK];

    for (uint64_t at = 0; at < bytes;) {
        size_t want = bytes - at < CHUNK ? (size_t)(bytes - at) : CHUNK;
        ssize_t n = pread(PART_FD, piece, want, (off_t)at);
        if (n <= 0)
            fail("io", "the part file cannot be read: %s", n < 0 ? strerror(errno) : "it is too short");
        if (at == 0) {
            head_len = (size_t)n < HEAD ? (size_t)n : HEAD;
            memcpy(head, piece, head_len);
        }
        digest_add(piece, (size_t)n);
        at += (uint64_t)n;
    }
}

void sink_begin(uint64_t offset)
{
    if (running) {
        char ignored[SHA256_TEXT];
        digest_text(ignored);
    }
    sha256_init(&sha);
    put = got = 0;
    over = false;
    packing = PACKING_UNKNOWN;
    head_len = 0;
    fetched = written = flushed = to_flush = looked = offset;
    if (pthread_create(&thread, NULL, digest_thread, NULL) != 0)
        fail("io", "no thread for the digest");
    running = true;
    if (offset > 0) {
        rehash(offset);
        packing = PACKING_NONE; /* what is unpacked is not gone on with */
    }
    if (ftruncate(PART_FD, (off_t)offset) < 0 || lseek(PART_FD, (off_t)offset, SEEK_SET) < 0)
        write_failed();
}

static bool room_left(uint64_t *ret)
{
    struct statvfs fs;

    if (fstatvfs(PART_FD, &fs) < 0 || fs.f_blocks == 0)
        return false;
    *ret = (uint64_t)fs.f_bavail * fs.f_frsize;
    return true;
}

void sink_expect(uint64_t bytes)
{
    uint64_t room;

    if (bytes > job.max_bytes)
        fail("unsafe", "it has %llu bytes; %llu are allowed", (unsigned long long)bytes,
             (unsigned long long)job.max_bytes);
    if (room_left(&room) && (bytes > room || room - bytes < job.reserve + job.promised))
        fail("full",
             "it has %llu bytes, the disk of the image cache has %llu free and %llu of them are kept or promised",
             (unsigned long long)bytes, (unsigned long long)room, (unsigned long long)(job.reserve + job.promised));
}

static void look_at_room(void)
{
    uint64_t room;

    looked = written;
    if (room_left(&room) && room < job.reserve + LOOK_EVERY)
        fail("full", "the disk of the image cache is full after %llu bytes, but for its reserve of %llu",
             (unsigned long long)written, (unsigned long long)job.reserve);
}

static void count_written(size_t len)
{
    written += len;
    if (job.reserve > 0 && written - looked >= LOOK_EVERY)
        look_at_room();
    if (written > job.max_bytes)
        fail("unsafe", "it has more than the %llu bytes that are allowed", (unsigned long long)job.max_bytes);
    if (packing > PACKING_NONE && written > RATIO_FROM && written / RATIO_MAX > fetched)
        fail("unsafe", "it unpacks to more than %d times its size", RATIO_MAX);
}

static void put_bytes(const uint8_t *data, size_t len)
{
    while (len > 0) {
        ssize_t n = write(PART_FD, data, len);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            write_failed();
        data += n;
        len -= (size_t)n;
    }
}

static void put_plain(const uint8_t *data, size_t len)
{
    count_written(len);
    put_bytes(data, len);
}

static bool all_zero(const uint8_t *data, size_t len)
{
    return len > 0 && data[0] == 0 && memcmp(data, data + 1, len - 1) == 0;
}

static void put_unpacked(const uint8_t *data, size_t len)
{
    count_written(len);
    while (len > 0) {
        size_t n = len < HOLE ? len : HOLE;
        if (n == HOLE && all_zero(data, n)) {
            if (lseek(PART_FD, HOLE, SEEK_CUR) < 0)
                write_failed();
        } else {
            put_bytes(data, n);
        }
        data += n;
        len -= n;
    }
}

static void pass(const uint8_t *data, size_t len)
{
    if (packing == PACKING_NONE)
        put_plain(data, len);
    else
        unpack(data, len, put_unpacked);
}

/* The first bytes say how it is packed; until there are enough they are held back. */
static void look_at_head(void)
{
    packing = packing_of(head, head_len);
    if (packing > PACKING_NONE) {
        unpack_begin(packing);
        part_note(&(struct part){.total = -1}); /* it cannot be gone on with */
    }
    pass(head, head_len);
}

void sink_write(const void *data, size_t len)
{
    const uint8_t *bytes = data;

    fetched += len;
    if (fetched > job.max_bytes)
        fail("unsafe", "it has more than the %llu bytes that are allowed", (unsigned long long)job.max_bytes);
    digest_add(bytes, len);
    while (packing == PACKING_UNKNOWN && len > 0) {
        head[head_len++] = *bytes++;
        len--;
        if (head_len == HEAD)
            look_at_head();
    }
    if (len > 0)
        pass(bytes, len);
}

void sink_end(uint64_t resumed)
{
    char digest[SHA256_TEXT];

    if (packing == PACKING_UNKNOWN)
        look_at_head();
    unpack_end();
    digest_text(digest);
    if (job.sha256 != NULL && strcmp(job.sha256, digest) != 0) {
        part_note(&(struct part){.total = -1});
        if (!job.sha256_known)
            fail("oci", "the registry's blob has the digest sha256:%s, not sha256:%s", digest, job.sha256);
        fail_checksum(job.sha256, digest);
    }
    if (packing > PACKING_NONE && ftruncate(PART_FD, (off_t)written) < 0)
        write_failed();
    if (fsync(PART_FD) < 0)
        write_failed();
    report_done(fetched, written, resumed, digest, packing_text(packing));
}

uint64_t sink_fetched(void)
{
    return fetched;
}

bool sink_packed(void)
{
    return packing > PACKING_NONE;
}
