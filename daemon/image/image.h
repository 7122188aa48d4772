/* image.h - what a disk image on the host is: opened safely here, its header read by the helper vmmd-inspect.
 *
 * Loop thread; nothing here parses an image's bytes, and opening is a few system calls on a path (O_NONBLOCK). */
#ifndef IMAGE_IMAGE_H
#define IMAGE_IMAGE_H

#include <stdint.h>

#include "base/error.h"
#include "loop/loop.h"

struct image_info {
    char format[8];        /* "qcow2" or "raw"; for an import also "vmdk", "vdi", "vpc", "vhdx" */
    uint64_t virtual_size; /* bytes; 0 for a vhdx, whose header does not tell */
};

struct image_rules {
    const char *helper;            /* path of vmmd-inspect */
    const char *const *image_dirs; /* NULL-terminated; NULL or empty: anywhere */
    uint64_t max_bytes;            /* the largest virtual size */
    const char *mode;              /* NULL; "raw": it was said to be raw; "import": formats to be converted are taken */
};

/* Opens path as an image, or says why it may not be used: ERR_IMAGE_NOT_FOUND, ERR_IMAGE_UNSAFE (not a
 * regular file, a link, outside image_dirs), ERR_IO (not readable).  Returns an fd, the caller's, and the path without
 * links in its directories in real (PATH_MAX bytes).  Completes before return. */
int image_open(const char *path, const struct image_rules *rules, char *real, struct error *err);

struct image_inspection;
/* Opens path by the rules and has its header read.  done comes exactly once unless image_inspection_free comes first;
 * info is NULL on error: the codes of image_open, ERR_IMAGE_UNSAFE, ERR_IMAGE_FORMAT_DETECTION_FAILED, ERR_IO (helper).
 * NULL with err set when nothing began. */
struct image_inspection *image_inspect(struct loop *loop, const char *path, const struct image_rules *rules,
                                       void (*done)(void *arg, const struct image_info *info, struct error *err),
                                       void *arg, struct error *err);
void image_inspection_free(struct image_inspection *in); /* NULL is fine */

#endif
