/* vmmlog.c - keeps QEMU's stderr within its bound while QEMU runs: a look every half minute, on the pool. */
#include <stdio.h>

#include "backend/qemu/internal.h"
#include "base/mem.h"

enum { LOOK_MS = 30000 };

struct trim_job {
    struct job job;
    char path[PATH_MAX];
    size_t max;
};

static int trim_fn(struct job *job, struct error *err)
{
    struct trim_job *t = CONTAINER_OF(job, struct trim_job, job);

    return logfile_trim(t->path, t->max, err) < 0 ? -1 : 0;
}

/* A file that could not be trimmed is tried again at the next look. */
static void trim_done(struct backend_vm *bvm, struct job *job, int rc, struct error *err)
{
    (void)bvm;
    (void)job;
    (void)rc;
    (void)err;
}

static void look(void *arg)
{
    struct backend_vm *bvm = arg;
    struct trim_job *t = bvm->alive ? mem_zalloc(sizeof(*t)) : NULL;
    CLEANUP_ERROR struct error ignored = ERROR_INIT;

    if (!t)
        return;
    t->job.fn = trim_fn;
    t->job.done = trim_done;
    t->max = bvm->be->vmm_log_max;
    snprintf(t->path, sizeof(t->path), "%s", bvm->vmm_log);
    job_run(bvm, &t->job, &ignored);
}

void vmmlog_keep(struct backend_vm *bvm)
{
    if (!bvm->log_timer)
        bvm->log_timer = timer_new(bvm->be->loop, look, bvm);
    if (bvm->log_timer)
        timer_start(bvm->log_timer, LOOK_MS, LOOK_MS);
}

void vmmlog_stop(struct backend_vm *bvm)
{
    timer_free(bvm->log_timer);
    bvm->log_timer = NULL;
}
