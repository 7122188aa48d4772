/* leftover.c - an operation that the last daemon left unfinished: its row, the steps it took, and how it ends.
 *
 * The row is the intent; the steps are told by the events that were durable when the daemon ended.  What recover.c made
 * of the VM decides whether the operation has reached its goal (succeeded) or not (operation::interrupted, with what was
 * rolled back; its idempotency key is free again, so that a retry begins it anew). */
#include "core/leftover.h"

#include <string.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/mem.h"
#include "base/problem.h"
#include "core/ops/ops.h"
#include "model/json_text.h"

static void leftover_free(struct leftover *l)
{
    mem_free(l->id);
    mem_free(l->kind);
    mem_free(l->vm_id);
    json_decref(l->doc);
    mem_free(l);
}

void leftovers_free(struct leftover *list)
{
    for (struct leftover *next; list != NULL; list = next) {
        next = list->next;
        leftover_free(list);
    }
}

/* --- loading --- */

struct loading {
    struct core *core;
    struct leftover *orphans;
};

static struct leftover **list_of(struct loading *load, const char *vm_id)
{
    struct live_vm *vm = vm_id != NULL ? registry_by_id(load->core, vm_id) : NULL;

    return vm != NULL ? &vm->left : &load->orphans;
}

static int load_row(void *arg, const struct store_operation_row *row, struct error *err)
{
    struct leftover *l = mem_zalloc(sizeof(*l)), **list;

    if (l == NULL)
        return error_set(err, ERR_DAEMON_OVERLOADED, "out of memory");
    l->id = mem_strdup(row->id);
    l->kind = mem_strdup(row->kind);
    l->vm_id = mem_strdup(row->vm_id != NULL ? row->vm_id : "");
    l->doc = json_loads(row->doc, 0, NULL);
    l->created_at = row->created_at;
    if (l->id == NULL || l->kind == NULL || l->vm_id == NULL || l->doc == NULL) {
        leftover_free(l);
        return error_set(err, ERR_DAEMON_INTERNAL, "the stored operation %s cannot be read", row->id);
    }
    list = list_of(arg, l->vm_id); /* the rows come oldest first */
    l->next = *list;
    *list = l;
    return 0;
}

static json_t *step_named(const struct leftover *l, const char *name)
{
    size_t i;
    json_t *step;

    json_array_foreach(json_object_get(l->doc, "steps"), i, step)
    {
        const char *text = json_string_value(json_object_get(step, "name"));
        if (text != NULL && strcmp(text, name) == 0)
            return step;
    }
    return NULL;
}

static int load_step(void *arg, const struct store_step_row *row, struct error *err)
{
    struct leftover *l = *list_of(arg, row->vm_id);

    (void)err;
    if (row->step == NULL || row->state == NULL)
        return 0;
    while (l != NULL && strcmp(l->id, row->operation_id) != 0)
        l = l->next;
    json_t *step = l != NULL ? step_named(l, row->step) : NULL;
    if (step != NULL) {
        json_object_set_new(step, "state", json_string(row->state));
        json_object_set_new(step, "ms", json_integer(row->ms));
    }
    return 0;
}

/* --- the end of one --- */

/* A step that was to come or under way. */
static const char *end_of_step(const struct vm_step *step, const char *state, const struct leftover_end *end)
{
    bool running = strcmp(state, "running") == 0 || strcmp(state, "undoing") == 0;
    bool undo = step != NULL && step->undo != NULL;
    bool skip = step != NULL && step->skip != NULL;

    if (end->finished)
        return strcmp(state, "skipped") == 0 || (skip && strcmp(state, "pending") == 0) ? "skipped" : "done";
    if (end->rolled_back && undo && (running || strcmp(state, "done") == 0))
        return "undone";
    return running ? "failed" : state;
}

static void end_steps(struct leftover *l, const struct leftover_end *end)
{
    size_t i;
    json_t *step;

    json_array_foreach(json_object_get(l->doc, "steps"), i, step)
    {
        const char *name = json_string_value(json_object_get(step, "name"));
        const char *state = json_string_value(json_object_get(step, "state"));
        if (name == NULL || state == NULL)
            continue;
        const char *now = end_of_step(vm_step_named(l->kind, name), state, end);
        if (now == state)
            continue;
        json_object_set_new(step, "state", json_string(now));
        if (!json_is_integer(json_object_get(step, "ms")))
            json_object_set_new(step, "ms", json_integer(0));
    }
}

static void end_doc(struct leftover *l, const struct leftover_end *end, int64_t now)
{
    char at[CLOCK_TEXT_MAX];

    end_steps(l, end);
    json_object_set_new(l->doc, "state", json_string(end->finished ? "succeeded" : "failed"));
    json_object_set_new(l->doc, "step", json_null());
    json_object_set_new(l->doc, "cancellable", json_false());
    json_object_set_new(l->doc, "finished_at", json_string(clock_text(now, at)));
}

static void put_interrupted(struct leftover *l, bool image, const char *name, const char *undone)
{
    CLEANUP_ERROR struct error err = ERROR_INIT;
    CLEANUP_BUF struct buf problem = BUF_INIT(65536);
    CLEANUP_FREE char *path = mem_printf("/v1/%s/%s", image ? "images" : "vms", name);

    error_set(&err, ERR_OPERATION_INTERRUPTED, "%s of %s %s was interrupted: vmmd stopped; %s", l->kind,
              image ? "image" : "VM", name, undone);
    error_ctx_str(&err, image ? "image" : "vm", name);
    error_ctx_str(&err, "rolled_back", undone);
    if (strcmp(l->kind, "image.pull") == 0)
        error_help(&err, "pull it again: it goes on with what has come, where the server allows it");
    error_problem(&err, path != NULL ? path : "", "", &problem);
    json_object_set_new(l->doc, "error", json_loadb(problem.data, problem.len, 0, NULL));
}

static void put_event(struct change *ch, const char *name, const struct leftover *l, bool finished)
{
    json_t *data = json_pack("{s:s,s:s}", "kind", l->kind, "state", finished ? "succeeded" : "failed");

    if (!finished)
        json_object_set_new(data, "code", json_string(error_info(ERR_OPERATION_INTERRUPTED)->code));
    change_leftover_event(ch, l->vm_id[0] != '\0' ? l->vm_id : NULL, name, l->id, data);
}

void leftover_end(struct core *core, struct change *ch, const struct live_vm *vm, struct leftover *l,
                  const struct leftover_end *end)
{
    const char *target = json_string_value(json_object_get(json_object_get(l->doc, "target"), "vm_name"));
    const char *name = vm != NULL ? vm->vm.name : target != NULL ? target : l->vm_id;
    int64_t now = clock_wall_ms();

    end_doc(l, end, now);
    if (!end->finished)
        put_interrupted(l, false, name, end->undone);
    else if (vm != NULL)
        json_object_set_new(l->doc, "result", vm_json(&vm->vm));
    CLEANUP_FREE char *doc = json_text(json_incref(l->doc), 0, NULL);
    change_leftover(ch, l->id, l->kind, l->vm_id, end->finished ? "succeeded" : "failed", doc, l->created_at, now);
    put_event(ch, name, l, end->finished);
    LOG_INFO("operation settled", "operation", l->id, "kind", l->kind, "vm", name, "result",
             end->finished ? "finished" : end->undone);
    if (!end->finished)
        keys_forget_operation(core, ch, l->id);
}

/* One on an image.  A removal is finished; anything else leaves no image that was not there before (images.c). */
static void image_end(struct core *core, struct change *ch, struct leftover *l)
{
    const char *name = json_string_value(json_object_get(json_object_get(l->doc, "target"), "image"));
    struct live_image *image = name != NULL ? images_by_name(core, name) : NULL;
    const struct leftover_end end = {.finished = strcmp(l->kind, "image.delete") == 0};
    int64_t now = clock_wall_ms();

    end_doc(l, &end, now);
    if (end.finished && image != NULL) {
        json_object_set_new(l->doc, "result", image_json(&image->image));
        json_object_set_new(json_object_get(l->doc, "result"), "used_by", json_array());
        change_image(ch, image, true, NULL, "image.removed");
        images_remove(image); /* its file is then nobody's, and removed with such */
    } else if (!end.finished) {
        put_interrupted(l, true, name != NULL ? name : "?", "no image was made");
        keys_forget_operation(core, ch, l->id);
    }
    CLEANUP_FREE char *doc = json_text(json_incref(l->doc), 0, NULL);
    change_leftover(ch, l->id, l->kind, NULL, end.finished ? "succeeded" : "failed", doc, l->created_at, now);
    put_event(ch, NULL, l, end.finished);
    LOG_INFO("operation settled", "operation", l->id, "kind", l->kind, "image", name, "result",
             end.finished ? "finished" : "interrupted");
}

/* Those whose VM is gone for good: a destroy has what it asks for. */
static void orphans_end(struct core *core, struct leftover *list)
{
    struct change *ch = list != NULL ? change_new(core) : NULL;

    if (list == NULL)
        return;
    change_happened(ch);
    for (struct leftover *l = list; l != NULL; l = l->next) {
        if (strncmp(l->kind, "image.", 6) == 0)
            image_end(core, ch, l);
        else
            leftover_end(core, ch, NULL, l,
                         &(struct leftover_end){.finished = strcmp(l->kind, "vm.destroy") == 0,
                                                .undone = "the VM has been destroyed meanwhile"});
    }
    change_commit(ch, NULL, NULL);
}

int leftovers_load(struct core *core, struct error *err)
{
    struct loading load = {.core = core};
    int rc = store_load_operations(core->store, load_row, &load, err);

    CLEANUP_ERROR struct error own = ERROR_INIT;
    if (rc == 0 && store_load_steps(core->store, load_step, &load, &own) < 0)
        LOG_WARN("the steps of interrupted operations are not known", "error",
                 own.message); /* no reason not to start */
    if (rc == 0)
        orphans_end(core, load.orphans);
    leftovers_free(load.orphans);
    return rc;
}
