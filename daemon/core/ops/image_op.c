/* image_op.c - see image_op.h.
 *
 * Happy path: intent durable, steps, persist, published, freed.  Failure modes: the intent is refused: nothing has happened; a step
 * fails or is cancelled: undone, and an image that was to come is gone again; the daemon leaves: the row says so, and the next
 * start settles it. */
#include "core/ops/image_op.h"

#include <stdio.h>
#include <string.h>

#include "base/clock.h"
#include "base/crash.h"
#include "base/fd.h"
#include "base/limit.h"
#include "base/log.h"
#include "base/mem.h"
#include "core/ops/ops.h"
#include "image/convert.h"

/* The images are free for the next operation. */
static void let_images_go(struct image_op *io)
{
    if (io->exclusive && !io->removing)
        io->image->deleting = false;
    io->exclusive = false;
    if (io->image->op == io)
        io->image->op = NULL;
    if (io->from != NULL && io->from->op == io)
        io->from->op = NULL;
}

static void io_free(struct image_op *io)
{
    if (io->at != NULL) {
        *io->at = io->next;
        if (io->next != NULL)
            io->next->at = io->at;
    }
    if (io->work != NULL)
        io->work->io = NULL;
    image_job_free(io->job);
    if (io->disk_ask != NULL)
        disk_forget(io->disk_ask);
    change_drop(io->intent);
    disk_promise(io->core, &io->room, 0);
    operation_unwatch(io->follows);
    operation_unref(io->followed);
    if (io->counted)
        io->image->n_ops--;
    pull_unwait(&io->wait);
    if (io->pull != NULL)
        pull_leave(io->pull, io);
    pull_source_done(&io->source);
    let_images_go(io);
    image_unref(io->from);
    image_unref(io->image);
    image_done(&io->made);
    error_done(&io->cancelled);
    error_done(&io->failed);
    fd_close(io->in_fd);
    fd_close(io->out_fd);
    mem_free(io->new_path);
    mem_free(io->old_path);
    mem_free(io->temp_path);
    mem_free(io->key);
    mem_free(io->fingerprint);
    io->res->io = NULL;
    operation_unref(io->res);
    mem_free(io);
}

static void let_go(struct image_op *io)
{
    struct core *core = io->core;

    let_images_go(io);
    if (core->n_running > 0 && !io->parked) /* parking gave all up at once */
        core->n_running--;
    core_check_idle(core);
}

static void log_finish(const struct image_op *io)
{
    const struct operation *res = io->res;
    char ms[24];

    snprintf(ms, sizeof(ms), "%lld", (long long)(res->finished_at - res->created_at));
    log_write(res->state == OPERATION_FAILED ? LOG_LEVEL_WARN : LOG_LEVEL_INFO, "operation finished", "operation",
              res->id, "kind", res->kind, "image", res->image_name, "state", operation_state_text(res->state), "ms", ms,
              "error", error_is_set(&res->error) ? res->error.message : "", "request_id", res->request_id, NULL);
}

/* --- the end --- */

static void failure_durable(void *arg, struct error *err)
{
    struct image_op *io = arg;

    if (error_is_set(err))
        owed_operation(io->res);
    log_finish(io);
    let_go(io);
    operation_publish_end(io->res);
    io_free(io);
}

static void op_failed(struct image_op *io, enum op_outcome outcome, struct error *err)
{
    struct change *ch = change_new(io->core);

    io->res->state = outcome == OP_CANCELLED ? OPERATION_CANCELLED : OPERATION_FAILED;
    io->res->finished_at = clock_wall_ms();
    io->res->dirty = true;
    error_move(&io->res->error, err);
    io->image->deleting = io->removing;
    io->counted = false;
    io->image->n_ops--;
    if (io->image->op == io)
        io->image->op = NULL;
    if (io->plan->makes && io->image->n_ops == 0 && io->image->image.state != IMAGE_READY) {
        change_image(ch, io->image, true, io->res, "image.removed");
        images_remove(io->image);
    }
    change_operation(ch, io->res);
    change_event(ch, "operation.finished", NULL, io->res, NULL, vm_op_finish_data(io->res));
    change_commit(ch, failure_durable, io);
}

static void engine_finished(struct op *op, enum op_outcome outcome, struct error *err)
{
    struct image_op *io = op_data(op);

    io->op = NULL;
    if (!io->persisted) {
        op_failed(io, outcome, err);
        return;
    }
    if (error_is_set(err))
        LOG_WARN("after the end of the operation", "operation", io->res->id, "error", err->message);
    let_go(io);
    io_free(io);
}

/* --- steps --- */

static void step_changed(struct op *op, unsigned index, enum op_step_state state, const struct error *err)
{
    struct image_op *io = op_data(op);
    struct operation_step *s = &io->res->steps[index];

    CRASH_POINT("op:%s:%s:%s", io->plan->kind, s->name, op_crash_names[state]);
    if (io->persisted)
        return;
    if (state == OP_STEP_RUNNING)
        s->started_ms = clock_mono_ms();
    if (state == OP_STEP_DONE && s->skipped)
        return;
    s->skipped = state == OP_STEP_RUNNING && io->plan->steps[index].skip != NULL && io->plan->steps[index].skip(io);
    s->state = state;
    s->ms = clock_mono_ms() - s->started_ms;
    io->res->step = index;
    io->res->step_begun = true;
    io->res->cancellable = op_cancellable(op) && !io->plan->steps[index].no_cancel;
    io->res->dirty = true;
    LOG_DEBUG("step", "operation", io->res->id, "kind", io->res->kind, "image", io->res->image_name, "step", s->name,
              "state", operation_step_text(s), "error", err != NULL && error_is_set(err) ? err->message : NULL);
    if (state == OP_STEP_UNDONE && err != NULL && error_is_set(err))
        LOG_WARN("undo failed", "operation", io->res->id, "step", s->name, "error", err->message);
    change_lazy_event(io->core, "operation.step", NULL, io->res,
                      json_pack("{s:s,s:s,s:s,s:I}", "kind", io->res->kind, "step", s->name, "state",
                                operation_step_text(s), "ms", (json_int_t)s->ms));
}

static const struct op_observer observer = {.step = step_changed, .finished = engine_finished};

static int probe(struct image_op *io, bool done, struct error *err)
{
    return io->core->image_probe != NULL ? io->core->image_probe(io, done, err) : 0;
}

static int engine_run(struct op *op, struct error *err)
{
    struct image_op *io = op_data(op);
    unsigned index = op_step_index(op);

    io->op = op; /* the first step may run before op_start's caller has its result */
    int rc = probe(io, false, err);
    if (rc == 0 && !io->res->steps[index].skipped)
        rc = io->plan->steps[index].run(io, err);
    return rc == 0 ? probe(io, true, err) : rc;
}

static int engine_undo(struct op *op, struct error *err)
{
    struct image_op *io = op_data(op);

    return io->plan->steps[op_step_index(op)].undo(io, err);
}

static void engine_cancel(struct op *op)
{
    struct image_op *io = op_data(op);
    const struct image_step *step = &io->plan->steps[op_step_index(op)];

    if (step->cancel != NULL)
        step->cancel(io);
}

void image_op_resume(struct image_op *io, struct error *err)
{
    if (io->parked || ((err == NULL || !error_is_set(err)) && probe(io, true, err) == OP_WAIT))
        return;
    op_resume(io->op, err);
}

static void persist_durable(void *arg, struct error *err)
{
    struct image_op *io = arg;
    struct operation *res = io->res;

    if (error_is_set(err)) { /* all is as when the step began */
        res->state = OPERATION_RUNNING;
        res->finished_at = 0;
        json_decref(res->result);
        res->result = NULL;
        for (unsigned i = res->step; i < res->n_steps; i++)
            res->steps[i].state = i == res->step ? OP_STEP_RUNNING : OP_STEP_PENDING;
        res->dirty = true;
        if (io->made.name != NULL) {
            struct image now = io->image->image;
            io->image->image = io->made;
            io->made = now;
        }
        image_op_resume(io, err);
        return;
    }
    io->persisted = true;
    if (io->removing)
        images_remove(io->image);
    let_images_go(io); /* whoever is told of the end may begin the next at once; what is left to remove is nobody's */
    log_finish(io);
    operation_publish_end(res);
    image_op_resume(io, NULL);
}

static int persist(struct image_op *io, const char *event, bool drop)
{
    struct operation *res = io->res;
    struct change *ch = change_new(io->core);

    res->state = OPERATION_SUCCEEDED;
    res->finished_at = clock_wall_ms();
    for (unsigned i = 0; i < res->n_steps; i++)
        res->steps[i].state = OP_STEP_DONE;
    res->dirty = true;
    if (drop)
        change_frees(ch, VM_DESTROY);
    if (event != NULL)
        change_image(ch, io->image, drop, res, event);
    res->result = image_json(&io->image->image);
    if (res->result != NULL)
        json_object_set_new(res->result, "used_by", json_array());
    change_operation(ch, res);
    for (unsigned i = res->step; i < res->n_steps; i++)
        change_event(
            ch, "operation.step", NULL, res, NULL,
            json_pack("{s:s,s:s,s:s,s:i}", "kind", res->kind, "step", res->steps[i].name, "state", "done", "ms", 0));
    change_event(ch, "operation.finished", NULL, res, NULL, vm_op_finish_data(res));
    change_commit(ch, persist_durable, io);
    return OP_WAIT;
}

int image_op_persist(struct image_op *io, struct error *err)
{
    struct image was = io->image->image;

    (void)err;
    if (io->settled)
        return persist(io, NULL, false);
    io->image->image = io->made;
    io->made = was; /* freed with the operation, or put back */
    return persist(io, "image.ready", false);
}

int image_op_persist_gone(struct image_op *io, struct error *err)
{
    (void)err;
    return persist(io, "image.removed", true);
}

/* --- the beginning --- */

static void walk(struct image_op *io)
{
    CLEANUP_ERROR struct error err = ERROR_INIT;

    io->ran = true;
    if (error_is_set(&io->cancelled)) {
        error_move(&err, &io->cancelled);
    } else {
        io->res->state = OPERATION_RUNNING;
        io->op = op_start(io->core->loop, io->steps, io->plan->n_steps, io->plan->deadline_ms, &observer, io);
        if (io->op == NULL)
            error_set(&err, ERR_DAEMON_OVERLOADED, "out of memory");
    }
    if (io->op == NULL)
        op_failed(io, err.code == ERR_OPERATION_CANCELLED ? OP_CANCELLED : OP_FAILED, &err);
}

static void intent_durable(void *arg, struct error *err)
{
    struct image_op *io = arg;

    if (!error_is_set(err)) {
        CRASH_POINT("op:%s:intent:durable", io->plan->kind);
        operation_accepted(io->res);
        if (!io->parked)
            walk(io);
        return;
    }
    operation_refused(io->res, err);
    if (io->key != NULL)
        keys_remove(io->core, io->key);
    io->image->deleting = false;
    if (io->plan->makes && io->image->n_ops == 1 && io->image->image.state != IMAGE_READY)
        images_remove(io->image);
    let_go(io);
    io_free(io);
}

static void build_steps(struct image_op *io)
{
    for (unsigned i = 0; i < io->plan->n_steps; i++) {
        const struct image_step *s = &io->plan->steps[i];
        io->steps[i] = (struct op_step){.name = s->name,
                                        .run = engine_run,
                                        .undo = s->undo != NULL ? engine_undo : NULL,
                                        .cancel = engine_cancel,
                                        .timeout_ms = s->timeout_ms,
                                        .commit = s->commit};
        io->res->steps[i].name = s->name;
    }
    io->res->n_steps = io->plan->n_steps;
}

static struct image_op *io_new(struct live_image *image, const struct image_plan *plan, const struct core_request *req,
                               struct error *err)
{
    struct image_op *io = mem_zalloc(sizeof(*io));
    struct operation *res =
        io != NULL ? operation_new_image(image->core, plan->kind, image->image.name, req, err) : NULL;

    if (res == NULL) {
        mem_free(io);
        error_set(err, ERR_DAEMON_OVERLOADED, "out of memory");
        return NULL;
    }
    *io = (struct image_op){.core = image->core,
                            .image = image_ref(image),
                            .res = res,
                            .plan = plan,
                            .source.fd = -1,
                            .counted = true,
                            .in_fd = -1,
                            .out_fd = -1,
                            .next = image->core->image_ops,
                            .at = &image->core->image_ops};
    if (io->next != NULL)
        io->next->at = &io->next;
    image->core->image_ops = io;
    image->n_ops++;
    res->io = io;
    res->deadline = res->created_at + plan->deadline_ms;
    if (req != NULL && req->peer != NULL) {
        io->peer_known = true;
        io->peer = *req->peer;
    }
    build_steps(io);
    if (req == NULL || req->idempotency_key == NULL)
        return io;
    io->key = mem_strdup(req->idempotency_key);
    io->fingerprint = mem_strdup(req->fingerprint);
    if (io->key != NULL && io->fingerprint != NULL &&
        keys_add(io->core, io->key, io->fingerprint, res->id, res->created_at) == 0)
        return io;
    io_free(io);
    error_set(err, ERR_DAEMON_OVERLOADED, "out of memory");
    return NULL;
}

int image_busy_error(const struct live_image *image, struct error *err)
{
    const struct operation *holder = image->op->res;

    error_set(err, ERR_IMAGE_IN_USE, "image %s is held by operation %s (%s)", image->image.name, holder->id,
              holder->kind);
    error_help(err, "wait for it with `vmctl ops show %s`, or cancel it with `vmctl ops cancel %s`", holder->id,
               holder->id);
    error_ctx_str(err, "image", image->image.name);
    error_ctx_str(err, "operation", holder->id);
    error_ctx_str(err, "kind", holder->kind);
    return -1;
}

static void write_intent(struct image_op *io, struct change *ch)
{
    struct live_image *image = io->image;

    if (io->plan->makes && image->op == io)
        change_image(ch, image, false, io->res, "image.created");
    change_operation(ch, io->res);
    if (io->key != NULL)
        change_key(ch, io->key, io->fingerprint, io->res->id, io->res->created_at);
    change_event(ch, "operation.started", NULL, io->res, NULL, json_pack("{s:s}", "kind", io->plan->kind));
    LOG_INFO("operation started", "operation", io->res->id, "kind", io->plan->kind, "image", image->image.name,
             "request_id", io->res->request_id);
    CRASH_POINT("op:%s:intent:before", io->plan->kind);
    change_commit(ch, intent_durable, io);
}

static void room_known(void *arg, struct error *err)
{
    struct image_op *io = arg;

    io->disk_ask = NULL;
    if (error_is_set(err)) {
        intent_durable(io, err);
        return;
    }
    io->room = io->asked;
    if (!io->parked)
        write_intent(io, TAKE_PTR(io->intent));
}

static struct image_op *begin(struct live_image *image, const struct image_plan *plan, const struct core_request *req,
                              bool follows, uint64_t room, struct error *err)
{
    struct core *core = image->core;
    bool network = req != NULL && req->peer != NULL && !req->peer->is_unix;
    unsigned most = core->config.max_operations;

    if (core->n_running >= (network ? limit_share(most) : most)) {
        limit_refuse(LIMIT_OPERATIONS, most, err, "%u operations are under way", core->n_running);
        return NULL;
    }
    struct change *ch = change_new(core); /* with it, a refusal comes on a later turn */
    struct image_op *io = ch != NULL ? io_new(image, plan, req, err) : NULL;
    if (io == NULL) {
        change_drop(ch);
        error_set(err, ERR_DAEMON_OVERLOADED, "out of memory");
        return NULL;
    }
    core->n_running++;
    if (!follows)
        image->op = io;
    io->res->state = OPERATION_RUNNING;
    io->disk_ask = room > 0 ? disk_ask(core, room, 0, room_known, io) : NULL;
    if (io->disk_ask != NULL) {
        io->asked = room;
        io->intent = ch;
    } else {
        write_intent(io, ch);
    }
    return io;
}

struct image_op *image_op_begin(struct live_image *image, const struct image_plan *plan, const struct core_request *req,
                                uint64_t room, struct error *err)
{
    if (image->op == NULL)
        return begin(image, plan, req, false, room, err);
    image_busy_error(image, err);
    return NULL;
}

struct image_op *image_op_follow(struct live_image *image, const struct image_plan *plan,
                                 const struct core_request *req, uint64_t room, struct error *err)
{
    return begin(image, plan, req, true, room, err);
}

/* --- from outside --- */

int image_op_cancel(struct image_op *io, struct error *reason)
{
    if (io->op != NULL && io->res->step_begun && io->plan->steps[io->res->step].no_cancel)
        return -1;
    if (io->op != NULL)
        return op_cancel(io->op, reason);
    if (io->ran)
        return -1;
    if (!error_is_set(&io->cancelled))
        error_move(&io->cancelled, reason);
    return 0;
}

void image_ops_park(struct core *core)
{
    for (struct image_op *io = core->image_ops; io != NULL; io = io->next) {
        if (io->parked)
            continue;
        io->parked = true;
        if (core->n_running > 0)
            core->n_running--;
        operation_unwatch(TAKE_PTR(io->follows));
        pull_unwait(&io->wait);
        image_job_free(io->job);
        io->job = NULL;
        if (io->op != NULL)
            op_abandon(io->op);
        io->op = NULL;
    }
    pulls_drop(core);
}

void image_ops_drop(struct core *core)
{
    image_ops_park(core);
    while (core->image_ops != NULL)
        io_free(core->image_ops);
}
