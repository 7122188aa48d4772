/* job.c - the call under way, and work on the pool for it.
 *
 * Happy path: a verb begins its call, jobs and tools do the work, call_end completes it.  A VM that is detached in the
 * middle forgets its jobs: they run to their end on the pool (nothing there can be stopped) and are freed unheard. */
#include "base/buf.h"
#include "base/fd.h"

#include "base/mem.h"
#include "backend/qemu/internal.h"
#include "loop/work.h"

enum { JSON_TEXT_MAX = 1 << 20 };

static int job_fn(void *data, struct error *err)
{
    struct job *job = data;

    return job->fn(job, err);
}

static void job_free(struct job *job)
{
    if (job->free)
        job->free(job);
    else
        mem_free(job);
}

static void job_done(void *arg, void *data, int rc, struct error *err)
{
    struct job *job = data;
    struct backend_vm *bvm = job->bvm;

    (void)arg;
    if (bvm) {
        struct job **p = &bvm->jobs;

        while (*p != job)
            p = &(*p)->next;
        *p = job->next;
        job->done(bvm, job, rc, err);
    }
    job_free(job);
}

int job_run(struct backend_vm *bvm, struct job *job, struct error *err)
{
    if (!job)
        return error_set(err, ERR_DAEMON_INTERNAL, "no memory for work on VM %s", bvm->vm->name);
    job->bvm = bvm;
    if (work_run(bvm->be->loop, job_fn, job_done, job, NULL, err) < 0) {
        job_free(job);
        return -1;
    }
    job->next = bvm->jobs;
    bvm->jobs = job;
    return 0;
}

void jobs_forget(struct backend_vm *bvm)
{
    for (struct job *job = bvm->jobs; job; job = job->next)
        job->bvm = NULL;
    bvm->jobs = NULL;
}

struct remove_job {
    struct job job;
    char path[PATH_MAX];
};

static int remove_fn(struct job *job, struct error *err)
{
    struct remove_job *r = CONTAINER_OF(job, struct remove_job, job);

    return dir_remove(r->path, err);
}

struct job *job_remove_dir(const char *path, void (*done)(struct backend_vm *, struct job *, int, struct error *))
{
    struct remove_job *r = mem_zalloc(sizeof(*r));

    if (!r)
        return NULL;
    r->job.fn = remove_fn;
    r->job.done = done;
    snprintf(r->path, sizeof(r->path), "%s", path);
    return &r->job;
}

int call_begin(struct backend_vm *bvm, struct backend_call *call, void (*hurry)(struct backend_vm *bvm))
{
    bvm->call = call;
    bvm->hurry = hurry;
    bvm->cancelled = false;
    bvm->seq++;
    return OP_WAIT;
}

void call_end(struct backend_vm *bvm, struct error *err)
{
    CLEANUP_ERROR struct error none = ERROR_INIT;
    struct backend_call *call = bvm->call;

    bvm->call = NULL;
    bvm->hurry = NULL;
    bvm->kill_asked = false;
    bvm->press_asked = false;
    if (bvm->awaiting_end)
        error_done(&bvm->failure);
    bvm->awaiting_end = false;
    bvm->seq++;
    if (call)
        call->done(call, err ? err : &none);
}

int call_cancelled_error(struct backend_vm *bvm, struct error *err)
{
    return error_set(err, ERR_OPERATION_CANCELLED, "the work on VM %s was cancelled", bvm->vm->name);
}

void call_hurry(struct backend_vm *bvm)
{
    CLEANUP_ERROR struct error err = ERROR_INIT;

    call_cancelled_error(bvm, &err);
    call_end(bvm, &err);
}

static int dump_to_buf(const char *data, size_t len, void *arg)
{
    return buf_append(arg, data, len);
}

char *qemu_json_text(json_t *object)
{
    CLEANUP_BUF struct buf text = BUF_INIT(JSON_TEXT_MAX);
    bool ok = object && json_dump_callback(object, dump_to_buf, &text, JSON_COMPACT) == 0;

    json_decref(object);
    return ok ? buf_take(&text, NULL) : NULL;
}

void set_text(char **slot, const char *value)
{
    char *copy = value && value[0] ? mem_strdup(value) : NULL;

    mem_free(*slot);
    *slot = copy;
}
