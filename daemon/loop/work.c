/* work.c - a blocking call on libuv's thread pool.
 *
 * The request carries everything across and back; it is freed after `done`.  Nothing is ever cancelled, so `done` comes
 * exactly once for each call that was queued: loop_free waits for it too. */
#include "loop/work.h"

#include "base/mem.h"
#include "loop/private.h"

struct work {
    uv_work_t uv;
    struct loop *loop;
    int (*fn)(void *data, struct error *err);
    void (*done)(void *arg, void *data, int rc, struct error *err);
    void *data;
    void *arg;
    int rc;
    struct error err;
};

static void on_pool(uv_work_t *uv)
{
    struct work *w = uv->data;

    w->rc = w->fn(w->data, &w->err);
}

static void on_loop(uv_work_t *uv, int status)
{
    struct work *w = uv->data;

    (void)status; /* only a cancelled request has one */
    w->loop->works--;
    w->done(w->arg, w->data, w->rc, &w->err);
    error_done(&w->err);
    mem_free(w);
}

int work_run(struct loop *loop, int (*fn)(void *data, struct error *err),
             void (*done)(void *arg, void *data, int rc, struct error *err), void *data, void *arg, struct error *err)
{
    struct work *w = mem_zalloc(sizeof(*w));

    if (w == NULL)
        return loop_uv_error(err, UV_ENOMEM, "cannot queue work");
    w->loop = loop;
    w->fn = fn;
    w->done = done;
    w->data = data;
    w->arg = arg;
    w->uv.data = w;
    int rc = uv_queue_work(&loop->uv, &w->uv, on_pool, on_loop);
    if (rc != 0) {
        mem_free(w);
        return loop_uv_error(err, rc, "cannot queue work");
    }
    loop->works++;
    return 0;
}
