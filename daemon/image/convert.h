/* convert.h - qemu-img on an image of the cache, in a cage: what it says of one, and one made into another.
 *
 * The header has been read before (image.h); the format is given and never probed, no backing file is opened, and qemu-img
 * runs by vmmd-confine as nobody, with the file's fd and no other.  Loop thread. */
#ifndef IMAGE_CONVERT_H
#define IMAGE_CONVERT_H

#include "base/error.h"
#include "image/image.h"
#include "loop/loop.h"

struct image_tool {
    const char *confine; /* path of vmmd-confine */
    const char *qemu_img;
    uint64_t max_bytes;
};

struct image_job;
/* What qemu-img says: done once, info NULL on error (ERR_IMAGE_UNSAFE: it names another file, is too large, or qemu-img does not
 * open it; ERR_IO), unless image_job_free comes first. */
struct image_job *image_examine(struct loop *loop, const struct image_tool *tool, int fd, const char *format,
                                void (*done)(void *arg, const struct image_info *info, struct error *err), void *arg,
                                struct error *err);
/* Writes what is in fd as `to` into the empty file of out_fd.  info is NULL throughout.  ERR_IMAGE_CONVERSION_FAILED,
 * ERR_HOST_DISK_FULL. */
struct image_job *image_convert(struct loop *loop, const struct image_tool *tool, int fd, const char *format,
                                int out_fd, const char *to,
                                void (*done)(void *arg, const struct image_info *info, struct error *err), void *arg,
                                struct error *err);
void image_job_free(struct image_job *job); /* NULL is fine */

#endif
