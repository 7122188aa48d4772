/* image_upload.c - an image that a client sends.
 *
 * Happy path: an operation image.upload begins; what the client sends goes through a socket to the helper, which writes, counts and
 * digests it as it would what a server sends; when all has been sent the socket is closed, and the operation goes on as a pull.
 * Failure modes: the helper is slow: the client is held back; it ends: the rest is dropped, and the operation says why; the client
 * leaves: the operation is cancelled. */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/fd.h"
#include "base/mem.h"
#include "core/internal.h"
#include "core/ops/image_op.h"
#include "loop/stream.h"
#include "model/fields.h"

enum { PENDING_MAX = 2 << 20, PENDING_ENOUGH = 1 << 20 };

struct image_upload {
    struct core *core;
    struct operation *res; /* referenced */
    struct stream *stream; /* NULL: the helper has ended, or all is sent */
    bool ending;
    void (*more)(void *arg);
    void *arg;
};

static void upload_closed(void *arg, int errnum)
{
    struct image_upload *up = arg;

    (void)errnum;
    stream_free(TAKE_PTR(up->stream));
    up->more(up->arg);
}

static void upload_drained(void *arg)
{
    struct image_upload *up = arg;

    if (up->ending)
        stream_free(TAKE_PTR(up->stream)); /* its end is the helper's end of file */
    else
        up->more(up->arg);
}

/* The helper says nothing here. */
static void upload_data(void *arg, const char *data, size_t len)
{
    (void)arg;
    (void)data;
    (void)len;
}

static const struct stream_events events = {.data = upload_data, .closed = upload_closed, .drained = upload_drained};

static int open_pair(struct image_upload *up, struct pull_source *source, struct error *err)
{
    int ends[2];

    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) < 0)
        return error_errno(err, errno, "cannot make a socket");
    source->fd = ends[1];
    up->stream = stream_from_fd(up->core->loop, ends[0], PENDING_MAX, &events, up, err);
    return up->stream != NULL ? 0 : -1;
}

static int parse(const char *name, const char *sha256, const char *format, struct pull_source *source,
                 struct error *err)
{
    static const char *const formats[] = {"qcow2", "raw", "vmdk", "vdi", "vhdx", "vpc", NULL};
    size_t i = 0;

    if (!image_name_valid(name))
        return field_pointer_error(err, "/name", IMAGE_NAME_EXPECTED, "the name must be " IMAGE_NAME_EXPECTED);
    if (sha256 != NULL && !image_sha256_valid(sha256))
        return field_pointer_error(err, "/sha256", IMAGE_SHA256_EXPECTED, "sha256 must be " IMAGE_SHA256_EXPECTED);
    if (sha256 != NULL)
        image_sha256_text(sha256, source->sha256);
    while (format != NULL && formats[i] != NULL && strcmp(formats[i], format) != 0)
        i++;
    if (format != NULL && formats[i] == NULL)
        return field_pointer_error(err, "/format", "qcow2, raw, vmdk, vdi, vhdx or vpc", "\"%.40s\" is no format",
                                   format);
    if (format != NULL)
        snprintf(source->format, sizeof(source->format), "%s", format);
    return 0;
}

struct image_upload *core_image_upload(struct core *core, const struct core_request *req, const char *name,
                                       const char *sha256, const char *format, int64_t length, void (*more)(void *arg),
                                       void *arg, struct operation **ret, struct error *err)
{
    struct pull_source source = {.fd = -1, .length = length};
    struct image_upload *up = NULL;
    struct image_op *io = NULL;

    if (core_stopping_error(core, err) == 0 && parse(name, sha256, format, &source, err) == 0) {
        up = mem_zalloc(sizeof(*up));
        if (up == NULL)
            error_set(err, ERR_DAEMON_OVERLOADED, "out of memory");
    }
    if (up != NULL) {
        *up = (struct image_upload){.core = core, .more = more, .arg = arg};
        if (open_pair(up, &source, err) == 0)
            io = images_begin_pull(core, req, name, &source, err);
    }
    pull_source_done(&source);
    if (io == NULL) {
        image_upload_free(up);
        return NULL;
    }
    up->res = operation_ref(io->res);
    *ret = io->res;
    return up;
}

size_t image_upload_write(struct image_upload *up, const void *data, size_t len)
{
    if (up->stream == NULL)
        return len; /* nobody reads it any more */
    if (stream_pending(up->stream) >= PENDING_ENOUGH)
        return 0;
    return stream_write(up->stream, data, len) == 0 || up->stream == NULL ? len : 0;
}

void image_upload_end(struct image_upload *up)
{
    up->ending = true;
    if (up->stream != NULL && stream_pending(up->stream) == 0)
        stream_free(TAKE_PTR(up->stream));
}

void image_upload_abort(struct image_upload *up)
{
    CLEANUP_ERROR struct error err = ERROR_INIT;

    /* First the operation: the helper must not take the end of the socket for the end of the image. */
    core_operation_cancel(up->core, up->res, NULL, &err);
    image_upload_free(up);
}

void image_upload_free(struct image_upload *up)
{
    if (up == NULL)
        return;
    stream_free(up->stream);
    operation_unref(up->res);
    mem_free(up);
}
