/* fetch.h - an image is got into a part file by the helper vmmd-fetch, which meets the network and the packed bytes.
 *
 * Loop thread.  Only the helper's small bounded lines are read here. */
#ifndef IMAGE_FETCH_H
#define IMAGE_FETCH_H

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"
#include "loop/loop.h"

struct image_fetched {
    uint64_t fetched, written; /* bytes as they came; bytes of the part file */
    uint64_t resumed;          /* of which so many were there already */
    char sha256[65];           /* of the bytes as they came */
    char packing[8];           /* "none", "gzip", "xz", "zstd" */
};

struct image_fetch_events {
    void (*progress)(void *arg, uint64_t done, int64_t total /* -1: not known */);
    /* Once, unless image_fetch_free comes first.  result NULL on error: ERR_IMAGE_DOWNLOAD_FAILED, ERR_OCI_PULL_FAILED,
     * ERR_IMAGE_CHECKSUM_MISMATCH, ERR_IMAGE_UNSAFE, ERR_HOST_DISK_FULL, ERR_IO.  keep: a later fetch may go on with the part
     * file. */
    void (*done)(void *arg, const struct image_fetched *result, bool keep, struct error *err);
};

struct image_fetch;
/* Starts the helper with its job (released; vmmd-fetch.c says what is in it).  part and note are open for reading and writing,
 * source for reading or -1; they stay the caller's, who may close them at once. */
struct image_fetch *image_fetch_start(struct loop *loop, const char *helper, json_t *job, int part_fd, int note_fd,
                                      int source_fd, int64_t timeout_ms, const struct image_fetch_events *events,
                                      void *arg, struct error *err);
/* Kills the helper; done comes when it is gone. */
void image_fetch_stop(struct image_fetch *fetch);
void image_fetch_free(struct image_fetch *fetch); /* ends it; NULL is fine */

#endif
