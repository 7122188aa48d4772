/* fd.h - file descriptors: close-on-exec always, -1 means none.  Blocking; any thread. */
#ifndef BASE_FD_H
#define BASE_FD_H

#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

#include "base/error.h"

int fd_close(int fd); /* always returns -1, ignores -1: `fd = fd_close(fd)` */
static inline void fd_closep(const int *fd)
{
    fd_close(*fd);
}
#define CLEANUP_FD __attribute__((cleanup(fd_closep)))
#define TAKE_FD(fd)          \
    ({                       \
        int take_fd_ = (fd); \
        (fd) = -1;           \
        take_fd_;            \
    })

int fd_write_all(int fd, const void *data, size_t len); /* 0, or -1 with errno */
/* Reads a whole regular or proc file, at most `max` bytes, NUL-terminated; the caller mem_frees *ret.  ERR_IO. */
int file_read(const char *path, size_t max, char **ret, size_t *ret_len, struct error *err);
/* Writes path atomically and durably: temporary file beside it, fsync, rename, fsync of the directory. */
int file_write(const char *path, const void *data, size_t len, mode_t mode, struct error *err);
/* mkdir -p; the last component gets `mode`, the others 0755.  A directory that exists is fine. */
int dir_make(const char *path, mode_t mode, struct error *err);
/* rm -r without following links; a path that does not exist is fine. */
int dir_remove(const char *path, struct error *err);
/* Joins into out; -1 with ERR_API_INVALID_FIELD-free ERR_IO when it does not fit. */
int path_join(char *out, size_t size, const char *dir, const char *name, struct error *err);

#endif
