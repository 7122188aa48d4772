/* vm_create.c - create a VM, and start it when asked.
 *
 * Happy path: reserve (ports, address), image (of the cache; fetched where the spec names an URL), build (work directory, disk, seed), persist; or on through the steps of a
 * start. Failure modes: whatever fails, what was built is removed, the name and the ports are free again, and the id
 * answers 410. */
#include "base/mem.h"
#include "core/ops/ops.h"
#include "loop/work.h"

enum { IMAGE_MS = 24 * 3600 * 1000 };

static int create_build(struct vm_op *vo, struct error *err)
{
    return vo->vm->be->create(vo->vm->bvm, &vo->call, err);
}

static int create_remove(struct vm_op *vo, struct error *err)
{
    return vo->vm->be->remove(vo->vm->bvm, &vo->call, err);
}

/* Whoever asks may name only files that they can read themselves.  The pool gets copies: the VM stays on the loop. */
struct file_check {
    struct vm_op *vo; /* NULL: it was given up meanwhile */
    struct core_peer peer;
    struct vm_spec paths;
};

static int check_files(void *data, struct error *err)
{
    const struct file_check *c = data;

    return peer_check_files(&c->paths, &c->peer, err);
}

static void files_checked(void *arg, void *data, int rc, struct error *err)
{
    struct file_check *c = data;

    (void)arg;
    (void)rc;
    if (c->vo != NULL) {
        c->vo->file_check = NULL;
        vm_op_resume(c->vo, err);
    }
    vm_spec_done(&c->paths);
    mem_free(c);
}

void vm_create_forget_check(struct vm_op *vo)
{
    if (vo->file_check != NULL)
        vo->file_check->vo = NULL;
    vo->file_check = NULL;
}

static bool copy_text(char **ret, const char *text)
{
    return text == NULL || (*ret = mem_strdup(text)) != NULL;
}

static int begin_check(struct vm_op *vo, struct error *err)
{
    const struct vm_spec *spec = &vo->vm->vm.spec;
    struct file_check *c = mem_zalloc(sizeof(*c));

    if (c == NULL)
        return error_set(err, ERR_DAEMON_OVERLOADED, "out of memory");
    c->vo = vo;
    c->peer = vo->peer;
    c->paths.has_boot = spec->has_boot;
    if (!copy_text(&c->paths.image, spec->image) || !copy_text(&c->paths.boot.kernel, spec->boot.kernel) ||
        !copy_text(&c->paths.boot.initrd, spec->boot.initrd) ||
        !copy_text(&c->paths.ssh.private_key_path, spec->ssh.private_key_path))
        error_set(err, ERR_DAEMON_OVERLOADED, "out of memory");
    else if (work_run(vo->core->loop, check_files, files_checked, c, NULL, err) == 0) {
        vo->file_check = c;
        return OP_WAIT;
    }
    vm_spec_done(&c->paths);
    mem_free(c);
    return -1;
}

/* Ports and address were claimed when the request came; here the fault matrix finds a step. */
static int create_reserve(struct vm_op *vo, struct error *err)
{
    if (alloc_vm(vo->vm, true, err) < 0)
        return -1;
    if (!vo->peer_known || !peer_is_other(&vo->peer))
        return 0;
    vo->calling = false; /* it is not the backend that is waited for */
    return begin_check(vo, err);
}

static int create_persist(struct vm_op *vo, struct error *err)
{
    return vm_op_persist(vo, VM_PREPARED, vo->plan->kind, false, err);
}

static const struct vm_step create_steps[] = {
    {"reserve", create_reserve},
    {"image", step_image, .timeout_ms = IMAGE_MS, .skip = step_no_image},
    {"build", create_build, .undo = create_remove, .timeout_ms = 300000},
    END_STEPS(create_persist),
};

static const struct vm_step create_start_steps[] = {
    {"reserve", create_reserve},
    {"image", step_image, .timeout_ms = IMAGE_MS, .skip = step_no_image},
    {"build", create_build, .undo = create_remove, .timeout_ms = 300000},
    START_STEPS,
    END_STEPS(step_persist_running),
};

const struct vm_plan vm_create_plan = {"vm.create", VM_CREATE, create_steps, ARRAY_SIZE(create_steps), 600000};
const struct vm_plan vm_create_start_plan = {"vm.create", VM_CREATE, create_start_steps, ARRAY_SIZE(create_start_steps),
                                             600000};
