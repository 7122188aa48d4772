/* image_request.c - the requests that begin operations on images.
 *
 * Happy path: what is asked is checked, then an operation begins.  Asking for what is there already, or is just being pulled, is no
 * mistake: the one is an operation without effect, the other follows.
 * Failure modes: a refusal, before anything has happened. */
#include <stdio.h>
#include <string.h>

#include "base/clock.h"
#include "base/mem.h"
#include "core/internal.h"
#include "core/ops/image_op.h"
#include "core/ops/ops.h"
#include "model/fields.h"

static const char *const formats[] = {"qcow2", "raw", "vmdk", "vdi", "vhdx", "vpc", NULL};

static int parse_pull(const json_t *body, char **name, struct pull_source *source, struct error *err)
{
    static const char *const names[] = {"name", "url", "sha256", "format", NULL};
    CLEANUP_FREE char *sha256 = NULL;
    char made[IMAGE_NAME_MAX + 1];
    struct fields f;
    int format = -1;

    if (fields_open(&f, body, "", names, err) < 0 || field_str(&f, "name", 255, name) < 0 ||
        field_str(&f, "url", IMAGE_URL_MAX, &source->url) < 0 || field_str(&f, "sha256", 80, &sha256) < 0 ||
        field_enum(&f, "format", formats, &format) < 0)
        return -1;
    if (source->url == NULL || !image_url_valid(source->url))
        return field_error(&f, "url", IMAGE_URL_EXPECTED);
    if (sha256 != NULL && !image_sha256_valid(sha256))
        return field_error(&f, "sha256", IMAGE_SHA256_EXPECTED);
    if (sha256 != NULL)
        image_sha256_text(sha256, source->sha256);
    if (format >= 0)
        snprintf(source->format, sizeof(source->format), "%s", formats[format]);
    if (*name == NULL) {
        image_name_from_url(source->url, made);
        *name = mem_strdup(made);
        if (*name == NULL)
            return error_set(err, ERR_DAEMON_OVERLOADED, "out of memory");
    }
    return image_name_valid(*name) ? 0 : field_error(&f, "name", IMAGE_NAME_EXPECTED);
}

static bool is_same(const struct live_image *image, const struct pull_source *source)
{
    const struct image *im = &image->image;

    return im->url != NULL && source->url != NULL && strcmp(im->url, source->url) == 0 &&
           (source->sha256[0] == '\0' || (im->sha256 != NULL && strcmp(im->sha256, source->sha256) == 0));
}

static int exists_error(const struct live_image *image, struct error *err)
{
    error_set(err, ERR_IMAGE_ALREADY_EXISTS, "an image named %s exists", image->image.name);
    error_ctx_str(err, "image", image->image.name);
    if (image->image.url != NULL)
        error_ctx_str(err, "url", image->image.url);
    return -1;
}

static struct live_image *new_image(struct core *core, const char *name, const struct pull_source *source,
                                    struct error *err)
{
    struct image image = {.id = uuid_new(),
                          .state = IMAGE_PULLING,
                          .created_at = clock_wall_ms(),
                          .updated_at = clock_wall_ms(),
                          .verified = source->sha256[0] != '\0'};
    bool good = (image.name = mem_strdup(name)) != NULL &&
                (source->url == NULL || (image.url = mem_strdup(source->url)) != NULL) &&
                (source->sha256[0] == '\0' || (image.sha256 = mem_strdup(source->sha256)) != NULL);
    struct live_image *live = good ? images_add(core, &image, err) : NULL;

    if (live == NULL) {
        image_done(&image);
        error_set(err, ERR_DAEMON_OVERLOADED, "out of memory");
    }
    return live;
}

struct image_op *images_begin_pull(struct core *core, const struct core_request *req, const char *name,
                                   struct pull_source *source, struct error *err)
{
    const struct image_plan *plan = source->url != NULL ? &image_pull_plan : &image_upload_plan;
    struct live_image *image = images_by_name(core, name);
    /* What a server will send is looked at when it begins to. */
    uint64_t room = IMAGE_ROOM + (source->url == NULL && source->length > 0 ? (uint64_t)source->length : 0);
    struct image_op *io;

    if (image != NULL) {
        if (image->op == NULL || image->image.state != IMAGE_PULLING || !is_same(image, source)) {
            exists_error(image, err);
            return NULL;
        }
        io = image_op_follow(image, plan, req, room, err);
    } else {
        image = new_image(core, name, source, err);
        io = image != NULL ? image_op_begin(image, plan, req, room, err) : NULL;
        if (io == NULL && image != NULL)
            images_remove(image);
    }
    if (io != NULL) {
        io->source = *source;
        *source = (struct pull_source){.fd = -1};
    }
    return io;
}

/* Over TCP there is no user to ask. */
static int check_peer(const struct core *core, const struct core_request *req, const char *url, struct error *err)
{
    struct vm_spec paths = {.image = (char *)(uintptr_t)url + 7};

    return strncmp(url, "file://", 7) == 0 && req->peer != NULL && !req->peer->is_unix
               ? peer_check_dirs(&paths, core->config.image_dirs, err)
               : 0;
}

int core_image_pull(struct core *core, const struct core_request *req, const json_t *body, struct operation **ret,
                    struct error *err)
{
    struct pull_source source = {.fd = -1};
    CLEANUP_FREE char *name = NULL;
    struct image_op *io = NULL;
    int rc = -1;

    if (core_stopping_error(core, err) == 0 && parse_pull(body, &name, &source, err) == 0 &&
        check_peer(core, req, source.url, err) == 0) {
        const struct live_image *image = images_by_name(core, name);
        if (image != NULL && image->image.state == IMAGE_READY && !image->deleting && is_same(image, &source)) {
            rc = image_op_nothing(image, "image.pull", req, ret, err);
        } else if ((io = images_begin_pull(core, req, name, &source, err)) != NULL) {
            *ret = io->res;
            rc = 0;
        }
    }
    pull_source_done(&source);
    return rc;
}

int core_image_delete(struct core *core, const struct core_request *req, const char *name, struct operation **ret,
                      struct error *err)
{
    struct live_image *image = core_stopping_error(core, err) == 0 ? core_image_find(core, name, err) : NULL;

    if (image == NULL)
        return -1;
    if (image->users != NULL) {
        error_set(err, ERR_IMAGE_IN_USE, "image %s is in use by VM %s", name, image->users->vm.name);
        error_ctx_str(err, "image", name);
        error_ctx_str(err, "vm", image->users->vm.name);
        return -1;
    }
    struct image_op *io = image_op_begin(image, &image_delete_plan, req, 0, err);
    if (io == NULL)
        return -1;
    image->deleting = io->exclusive = true;
    *ret = io->res;
    return 0;
}

static int parse_convert(const json_t *body, char **name, int *format, struct error *err)
{
    static const char *const names[] = {"format", "name", NULL}, *const targets[] = {"qcow2", "raw", NULL};
    struct fields f;

    if (fields_open(&f, body, "", names, err) < 0 || field_enum(&f, "format", targets, format) < 0 ||
        field_str(&f, "name", 255, name) < 0)
        return -1;
    if (*format < 0)
        return field_error(&f, "format", "qcow2 or raw");
    return *name == NULL || image_name_valid(*name) ? 0 : field_error(&f, "name", IMAGE_NAME_EXPECTED);
}

/* The image itself, or one that is made of it. */
static struct image_op *begin_convert(struct core *core, const struct core_request *req, struct live_image *from,
                                      const char *name, struct error *err)
{
    const struct pull_source none = {.fd = -1};
    struct live_image *image = from;

    if (name != NULL && (image = images_by_name(core, name)) != NULL) {
        exists_error(image, err);
        return NULL;
    }
    if (name != NULL && (image = new_image(core, name, &none, err)) == NULL)
        return NULL;
    struct image_op *io =
        image_op_begin(image, name != NULL ? &image_convert_plan : &image_convert_in_place_plan, req, IMAGE_ROOM, err);
    if (io == NULL && name != NULL)
        images_remove(image);
    return io;
}

int core_image_convert(struct core *core, const struct core_request *req, const char *of, const json_t *body,
                       struct operation **ret, struct error *err)
{
    static const char *const targets[] = {"qcow2", "raw"};
    CLEANUP_FREE char *name = NULL;
    struct live_image *from;
    int format = -1;

    if (core_stopping_error(core, err) < 0 || parse_convert(body, &name, &format, err) < 0 ||
        (from = core_image_find(core, of, err)) == NULL)
        return -1;
    if (from->op != NULL)
        return image_busy_error(from, err);
    if (name == NULL && strcmp(from->image.format, targets[format]) == 0)
        return image_op_nothing(from, "image.convert", req, ret, err);
    if (name == NULL && from->users != NULL) {
        error_set(err, ERR_IMAGE_IN_USE, "image %s is in use by VM %s", of, from->users->vm.name);
        error_ctx_str(err, "image", of);
        error_ctx_str(err, "vm", from->users->vm.name);
        return -1;
    }
    struct image_op *io = begin_convert(core, req, from, name, err);
    if (io == NULL)
        return -1;
    io->from = image_ref(from);
    from->op = io; /* it is not removed meanwhile */
    snprintf(io->to, sizeof(io->to), "%s", targets[format]);
    if (name == NULL)
        from->deleting = io->exclusive = true;
    *ret = io->res;
    return 0;
}
