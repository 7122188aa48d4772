/* image.c - opens an image so that nothing surprising is opened, and asks vmmd-inspect about it.
 *
 * Happy path: the path's directory is resolved, the last component opened with O_NOFOLLOW | O_NONBLOCK and found to be a
 * regular file; vmmd-inspect gets it as fd 3 and prints one JSON line.  Failures: what cannot be opened is told by errno;
 * a helper that dies, hangs or talks nonsense refuses the image (a parser that crashed has met an unsafe image). */
#include "image/image.h"

#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/fd.h"
#include "base/mem.h"
#include "loop/child.h"

enum { INSPECT_TIMEOUT_MS = 10000, INSPECT_OUTPUT_MAX = 4096 };

struct image_inspection {
    struct tool *tool;
    char *path;
    uint64_t max_bytes;
    void (*done)(void *arg, const struct image_info *info, struct error *err);
    void *arg;
};

static bool is_below(const char *real, const char *const *dirs)
{
    char dir[PATH_MAX];

    if (!dirs || !dirs[0])
        return true;
    for (; *dirs; dirs++) {
        size_t len;

        if (!realpath(*dirs, dir))
            continue;
        len = strlen(dir);
        if (strcmp(dir, "/") == 0 || (strncmp(real, dir, len) == 0 && real[len] == '/'))
            return true;
    }
    return false;
}

static int open_error(const char *path, int errnum, struct error *err)
{
    if (errnum == ENOENT || errnum == ENOTDIR)
        return error_set(err, ERR_IMAGE_NOT_FOUND, "there is no image %s", path);
    if (errnum == ELOOP)
        return error_set(err, ERR_IMAGE_UNSAFE, "the image %s is a symbolic link", path);
    if (errnum == ENXIO || errnum == ENODEV)
        return error_set(err, ERR_IMAGE_UNSAFE, "the image %s is not a regular file", path);
    return error_errno(err, errnum, "cannot open the image %s", path);
}

/* Resolves the directory, keeps the last component as it is (it must not be a link). */
static int resolve(const char *path, char *real, struct error *err)
{
    char dir[PATH_MAX];
    const char *slash = strrchr(path, '/');
    size_t dir_len;

    if (path[0] != '/' || strlen(path) >= PATH_MAX)
        return error_set(err, ERR_IMAGE_NOT_FOUND, "the image %s is not an absolute path", path);
    if (!slash[1] || strcmp(slash + 1, ".") == 0 || strcmp(slash + 1, "..") == 0)
        return error_set(err, ERR_IMAGE_UNSAFE, "the image %s is not a regular file", path);
    dir_len = slash == path ? 1 : (size_t)(slash - path);
    memcpy(dir, path, dir_len);
    dir[dir_len] = '\0';
    if (!realpath(dir, real))
        return open_error(path, errno, err);
    dir_len = strlen(real);
    if (snprintf(real + dir_len, PATH_MAX - dir_len, "%s%s", strcmp(real, "/") == 0 ? "" : "/", slash + 1) >=
        (int)(PATH_MAX - dir_len))
        return open_error(path, ENAMETOOLONG, err);
    return 0;
}

int image_open(const char *path, const struct image_rules *rules, char *real, struct error *err)
{
    CLEANUP_FD int fd = -1;
    struct stat st;

    if (resolve(path, real, err) < 0)
        return -1;
    if (!is_below(real, rules->image_dirs))
        return error_set(err, ERR_IMAGE_UNSAFE, "the image %s lies outside the allowed image directories", path);
    /* Looked at before it is opened: opening a device may have effects. */
    if (lstat(real, &st) < 0)
        return open_error(path, errno, err);
    if (S_ISLNK(st.st_mode))
        return open_error(path, ELOOP, err);
    if (!S_ISREG(st.st_mode))
        return open_error(path, ENXIO, err);
    fd = open(real, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY);
    if (fd < 0)
        return open_error(path, errno, err);
    if (fstat(fd, &st) < 0)
        return open_error(path, errno, err);
    if (!S_ISREG(st.st_mode))
        return open_error(path, ENXIO, err);
    return TAKE_FD(fd);
}

/* The helper's "error" and "detail". */
static int refused(const struct image_inspection *in, const char *kind, const char *detail, struct error *err)
{
    enum error_code code = ERR_IMAGE_UNSAFE;

    if (strcmp(kind, "unknown") == 0 || strcmp(kind, "foreign") == 0)
        code = ERR_IMAGE_FORMAT_DETECTION_FAILED;
    else if (strcmp(kind, "io") == 0)
        code = ERR_IO;
    error_set(err, code, "the image %s was refused: %s", in->path, detail);
    if (strcmp(kind, "unknown") == 0)
        error_help(err, "give a qcow2 image, or a raw one whose size is a multiple of 512 with a partition table or a "
                        "known file system");
    else if (strcmp(kind, "foreign") == 0)
        error_help(err, "`vmctl image pull file://%.200s` puts it into the image cache, converted", in->path);
    return -1;
}

static int read_answer(const struct image_inspection *in, const struct tool_result *result, struct image_info *info,
                       struct error *err)
{
    json_t *answer;
    const char *format = NULL, *kind = NULL, *detail = "";
    json_int_t size = -1;
    int rc = 0;

    if (result->timed_out)
        return error_set(err, ERR_IMAGE_UNSAFE, "the header of image %s could not be read in time", in->path);
    if (result->status.code != 0) {
        error_set(err, result->status.signal ? ERR_IMAGE_UNSAFE : ERR_IO, "the reader of image %s failed", in->path);
        if (result->err_len)
            error_cause(err, "%.300s", result->err_text);
        return -1;
    }
    answer = json_loadb(result->out, result->out_len, JSON_REJECT_DUPLICATES, NULL);
    if (!answer || json_unpack(answer, "{s?s, s?I, s?s, s?s}", "format", &format, "virtual_size", &size, "error", &kind,
                               "detail", &detail) < 0)
        rc = error_set(err, ERR_IO, "the reader of image %s gave no answer", in->path);
    else if (kind)
        rc = refused(in, kind, detail, err);
    else if (!format || size < 0 || (size == 0 && strcmp(format, "vhdx") != 0) ||
             strlen(format) >= sizeof(info->format))
        rc = error_set(err, ERR_IO, "the reader of image %s gave no answer", in->path);
    else if ((uint64_t)size > in->max_bytes)
        rc = error_set(err, ERR_IMAGE_UNSAFE, "the image %s is too large: %lld GiB of virtual size, %llu are allowed",
                       in->path, (long long)(size >> 30), (unsigned long long)(in->max_bytes >> 30));
    if (rc == 0) {
        snprintf(info->format, sizeof(info->format), "%s", format);
        info->virtual_size = (uint64_t)size;
    }
    json_decref(answer);
    return rc;
}

static void tool_done(void *arg, const struct tool_result *result)
{
    struct image_inspection *in = arg;
    CLEANUP_ERROR struct error err = ERROR_INIT;
    struct image_info info = {0};
    void (*done)(void *, const struct image_info *, struct error *) = in->done;
    void *done_arg = in->arg;
    int rc = read_answer(in, result, &info, &err);

    image_inspection_free(in);
    done(done_arg, rc == 0 ? &info : NULL, &err);
}

struct image_inspection *image_inspect(struct loop *loop, const char *path, const struct image_rules *rules,
                                       void (*done)(void *arg, const struct image_info *info, struct error *err),
                                       void *arg, struct error *err)
{
    char real[PATH_MAX];
    const char *argv[] = {rules->helper, rules->mode, NULL};
    struct image_inspection *in;
    CLEANUP_FD int fd = image_open(path, rules, real, err);
    int fds[] = {fd, -1};

    if (fd < 0)
        return NULL;
    in = mem_zalloc(sizeof(*in));
    if (in)
        in->path = mem_strdup(path);
    if (!in || !in->path) {
        mem_free(in);
        error_errno(err, ENOMEM, "cannot look at the image %s", path);
        return NULL;
    }
    in->max_bytes = rules->max_bytes;
    in->done = done;
    in->arg = arg;
    in->tool = tool_run(loop, argv, fds, NULL, 0, INSPECT_TIMEOUT_MS, INSPECT_OUTPUT_MAX, tool_done, in, err);
    if (!in->tool) {
        image_inspection_free(in);
        return NULL;
    }
    return in;
}

void image_inspection_free(struct image_inspection *in)
{
    if (!in)
        return;
    tool_free(in->tool);
    mem_free(in->path);
    mem_free(in);
}
