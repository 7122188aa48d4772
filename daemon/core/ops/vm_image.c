/* vm_image.c - the image that a VM's disk stands on: the step of a create that brings it.
 *
 * Happy path: spec.image names an image that is ready, or spec.image_url is in the cache already: the VM stands on it from now on.
 * Otherwise the image is pulled, by an operation of its own, and waited for; its progress is shown here too.
 * Failure modes: the pull fails: so does the create, with the same error.  The create is cancelled: a pull that nobody else waits for
 * and that no client asked for is cancelled as well.  The create is undone later: the image stays in the cache. */
#include <stdio.h>
#include <string.h>

#include "base/mem.h"
#include "core/ops/image_op.h"
#include "core/ops/ops.h"
#include "loop/timer.h"
#include "model/digest.h"

enum { LOOK_MS = 250 };

struct image_wait {
    struct vm_op *vo;
    struct live_image *image; /* referenced */
    struct operation *res;    /* referenced */
    struct operation_watch *watch;
    struct timer *timer;
};

bool step_no_image(const struct vm_op *vo)
{
    const struct vm_spec *spec = &vo->vm->vm.spec;

    return spec->image_url == NULL && (spec->image == NULL || spec->image[0] == '/');
}

void vm_image_forget(struct vm_op *vo)
{
    struct image_wait *w = vo->image_wait;

    if (w == NULL)
        return;
    vo->image_wait = NULL;
    operation_unwatch(w->watch);
    timer_free(w->timer);
    w->image->awaited--;
    image_unref(w->image);
    operation_unref(w->res);
    mem_free(w);
}

static int bring(struct vm_op *vo, struct error *err);

static void image_ended(void *arg, struct error *err)
{
    struct image_wait *w = arg;
    struct vm_op *vo = w->vo;
    const struct error *why = operation_error(w->res);
    CLEANUP_ERROR struct error own = ERROR_INIT;
    int rc = -1;

    (void)err;
    w->watch = NULL;
    vo->hurry = NULL;
    if (why != NULL && w->image->image.state != IMAGE_READY)
        error_copy(&own, why);
    vm_image_forget(vo);
    if (!error_is_set(&own))
        rc = bring(vo, &own);
    if (rc != OP_WAIT)
        vm_op_resume(vo, rc == 0 ? NULL : &own);
}

static void image_hurry(struct vm_op *vo)
{
    CLEANUP_ERROR struct error err = ERROR_INIT, reason = ERROR_INIT;
    struct live_image *image = vo->image_wait != NULL ? image_ref(vo->image_wait->image) : NULL;

    vo->hurry = NULL;
    vm_image_forget(vo);
    error_set(&err, ERR_OPERATION_CANCELLED, "the create of VM %s was cancelled", vo->vm->vm.name);
    if (image != NULL && image->awaited == 0 && image->op != NULL && image->op->for_vms) {
        error_set(&reason, ERR_OPERATION_CANCELLED, "the VM that image %s was pulled for is not created",
                  image->image.name);
        image_op_cancel(image->op, &reason);
    }
    image_unref(image);
    vm_op_resume(vo, &err);
}

static void look(void *arg)
{
    const struct image_wait *w = arg;

    if (w->res->has_progress)
        operation_progress(w->vo->res, w->res->progress_done, w->res->progress_total);
}

static int wait_for(struct vm_op *vo, struct live_image *image, struct error *err)
{
    struct image_wait *w = mem_zalloc(sizeof(*w));

    if (w == NULL)
        return error_set(err, ERR_DAEMON_OVERLOADED, "out of memory");
    *w = (struct image_wait){.vo = vo, .image = image_ref(image), .res = operation_ref(image->op->res)};
    image->awaited++;
    vo->image_wait = w;
    w->watch = operation_watch(w->res, true, image_ended, w);
    w->timer = timer_new(vo->core->loop, look, w);
    if (w->watch == NULL || w->timer == NULL) {
        vm_image_forget(vo);
        return error_set(err, ERR_DAEMON_OVERLOADED, "out of memory");
    }
    timer_start(w->timer, LOOK_MS, LOOK_MS);
    vo->calling = false; /* it is not the backend that is waited for */
    vo->hurry = image_hurry;
    return OP_WAIT;
}

/* The image that came, or comes, from this URL with this digest. */
static struct live_image *find_url(struct core *core, const char *url, const char *sha256)
{
    for (size_t i = 0; i < core->n_images; i++) {
        struct live_image *image = core->images[i];
        const struct image *im = &image->image;
        if (im->url != NULL && strcmp(im->url, url) == 0 && !image->deleting &&
            (*sha256 == '\0' || (im->sha256 != NULL && strcmp(im->sha256, sha256) == 0)))
            return image;
    }
    return NULL;
}

/* A name that is free: the URL's, or that with a part of its digest. */
static void choose_name(struct core *core, const char *url, const char *sha256, char out[IMAGE_NAME_MAX + 1])
{
    CLEANUP_FREE char *all = mem_printf("%s %s", url, sha256);
    char digest[DIGEST_TEXT_MAX] = "";

    image_name_from_url(url, out);
    if (images_by_name(core, out) == NULL || all == NULL)
        return;
    digest_sha256(all, strlen(all), digest);
    size_t len = strlen(out) < IMAGE_NAME_MAX - 13 ? strlen(out) : IMAGE_NAME_MAX - 13;
    snprintf(out + len, IMAGE_NAME_MAX + 1 - len, "-%.12s", digest);
}

static int pull(struct vm_op *vo, const char *url, const char *sha256, struct error *err)
{
    struct core_request req = {.request_id = vo->res->request_id, .peer = vo->peer_known ? &vo->peer : NULL};
    struct pull_source source = {.url = mem_strdup(url), .fd = -1};
    char name[IMAGE_NAME_MAX + 1];

    if (source.url == NULL)
        return error_set(err, ERR_DAEMON_OVERLOADED, "out of memory");
    snprintf(source.sha256, sizeof(source.sha256), "%s", sha256);
    choose_name(vo->core, url, sha256, name);
    struct image_op *io = images_begin_pull(vo->core, &req, name, &source, err);
    pull_source_done(&source);
    if (io == NULL)
        return -1;
    io->for_vms = true;
    return wait_for(vo, io->image, err);
}

static int bring(struct vm_op *vo, struct error *err)
{
    const struct vm_spec *spec = &vo->vm->vm.spec;
    char sha256[IMAGE_SHA256_LEN + 1] = "";
    struct live_image *image;

    if (spec->image_sha256 != NULL)
        image_sha256_text(spec->image_sha256, sha256);
    if (spec->image_url != NULL)
        image = find_url(vo->core, spec->image_url, sha256);
    else if ((image = core_image_find(vo->core, spec->image, err)) == NULL)
        return -1;
    if (image == NULL)
        return pull(vo, spec->image_url, sha256, err);
    if (image->image.state != IMAGE_READY && image->op != NULL)
        return wait_for(vo, image, err);
    if (image->image.state != IMAGE_READY || image->deleting) {
        error_set(err, ERR_IMAGE_NOT_FOUND, "image %s is being removed", image->image.name);
        error_ctx_str(err, "image", image->image.name);
        return -1;
    }
    return image_use(vo->vm, image) == 0 ? 0 : error_set(err, ERR_DAEMON_OVERLOADED, "out of memory");
}

int step_image(struct vm_op *vo, struct error *err)
{
    return bring(vo, err);
}
