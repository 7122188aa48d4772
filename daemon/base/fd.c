/* fd.c - see fd.h. */
#include "base/fd.h"

#include <errno.h>
#include <fcntl.h>
#include <fts.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/buf.h"
#include "base/mem.h"

int fd_close(int fd)
{
    if (fd >= 0)
        close(fd);
    return -1;
}

int fd_write_all(int fd, const void *data, size_t len)
{
    const char *p = data;

    while (len > 0) {
        ssize_t n = write(fd, p, len);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return -1;
        p += n;
        len -= (size_t)n;
    }
    return 0;
}

int file_read(const char *path, size_t max, char **ret, size_t *ret_len, struct error *err)
{
    CLEANUP_BUF struct buf b = BUF_INIT(max);
    CLEANUP_FD int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY);
    char chunk[4096];

    if (fd < 0)
        return error_errno(err, errno, "cannot open %s", path);
    for (;;) {
        ssize_t n = read(fd, chunk, sizeof(chunk));
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return error_errno(err, errno, "cannot read %s", path);
        if (n == 0)
            break;
        if (buf_append(&b, chunk, (size_t)n) < 0)
            return error_set(err, ERR_IO, "%s is larger than %zu bytes", path, max);
    }
    *ret = buf_take(&b, ret_len);
    return *ret != NULL ? 0 : error_errno(err, ENOMEM, "cannot read %s", path);
}

static int dir_sync_of(const char *path)
{
    char dir[PATH_MAX];

    snprintf(dir, sizeof(dir), "%s", path);
    char *slash = strrchr(dir, '/');
    if (slash == NULL)
        snprintf(dir, sizeof(dir), ".");
    else if (slash == dir)
        slash[1] = '\0';
    else
        *slash = '\0';
    CLEANUP_FD int fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    return fd < 0 ? -1 : fsync(fd);
}

int file_write(const char *path, const void *data, size_t len, mode_t mode, struct error *err)
{
    char tmp[PATH_MAX];

    if (snprintf(tmp, sizeof(tmp), "%s.tmp", path) >= (int)sizeof(tmp))
        return error_errno(err, ENAMETOOLONG, "cannot write %s", path);
    unlink(tmp);
    CLEANUP_FD int fd = open(tmp, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, mode);
    if (fd < 0)
        return error_errno(err, errno, "cannot create %s", tmp);
    if (fd_write_all(fd, data, len) < 0 || fsync(fd) < 0 || rename(tmp, path) < 0 || dir_sync_of(path) < 0) {
        error_errno(err, errno, "cannot write %s", path);
        unlink(tmp);
        return -1;
    }
    return 0;
}

int dir_make(const char *path, mode_t mode, struct error *err)
{
    char part[PATH_MAX];

    if (strlen(path) >= sizeof(part))
        return error_errno(err, ENAMETOOLONG, "cannot make directory %s", path);
    for (size_t i = 1;; i++) {
        if (path[i] != '/' && path[i] != '\0')
            continue;
        memcpy(part, path, i);
        part[i] = '\0';
        if (mkdir(part, path[i] == '\0' ? mode : 0755) < 0 && errno != EEXIST)
            return error_errno(err, errno, "cannot make directory %s", part);
        if (path[i] == '\0')
            break;
    }
    struct stat st;
    if (stat(path, &st) < 0 || !S_ISDIR(st.st_mode))
        return error_errno(err, ENOTDIR, "%s is no directory", path);
    return 0;
}

int dir_remove(const char *path, struct error *err)
{
    CLEANUP_FREE char *copy = mem_strdup(path);
    int failed = 0;

    if (copy == NULL)
        return error_errno(err, ENOMEM, "cannot remove %s", path);
    char *const roots[] = {copy, NULL};
    FTS *walk = fts_open(roots, FTS_PHYSICAL | FTS_NOCHDIR | FTS_XDEV, NULL);
    if (walk == NULL)
        return error_errno(err, errno, "cannot remove %s", path);
    for (FTSENT *e; failed == 0 && (e = fts_read(walk)) != NULL;) {
        if (e->fts_info == FTS_D || (e->fts_info == FTS_NS && e->fts_errno == ENOENT))
            continue;
        int rc = e->fts_info == FTS_DP ? rmdir(e->fts_accpath) : unlink(e->fts_accpath);
        if (rc < 0 && errno != ENOENT)
            failed = errno;
    }
    fts_close(walk);
    return failed == 0 ? 0 : error_errno(err, failed, "cannot remove %s", path);
}

int path_join(char *out, size_t size, const char *dir, const char *name, struct error *err)
{
    if (snprintf(out, size, "%s/%s", dir, name) >= (int)size)
        return error_errno(err, ENAMETOOLONG, "the path %s/%s is too long", dir, name);
    return 0;
}
