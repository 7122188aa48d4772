/* files.c - what a VM owns on disk: create and remove.
 *
 *     create: image inspected ─► pool: directory, seed, UEFI variables ─► qemu-img: overlay ─► pool: fsync ─► manifest
 *
 * The overlay is made without opening the base (-u): its format and size come from the inspection, nothing is probed.
 * Failures, and a cancel, end in the directory being removed before the call fails. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "backend/qemu/internal.h"
#include "base/crash.h"
#include "base/fd.h"
#include "base/mem.h"
#include "cloudinit/seed.h"

enum { OVERLAY_TIMEOUT_MS = 30000, VARS_MAX = 16 << 20 };

struct files_job {
    struct job job;
    char work_dir[PATH_MAX];
    char overlay[PATH_MAX];
    char seed_path[PATH_MAX];
    char vars[PATH_MAX];
    char vars_from[PATH_MAX]; /* "": no UEFI */
    char key[PATH_MAX];
    char *key_text; /* NULL: no key pair */
    bool has_seed;
    struct seed seed;
};

static int sync_path(const char *path, struct error *err)
{
    CLEANUP_FD int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);

    if (fd < 0 || fsync(fd) < 0)
        return error_errno(err, errno, "cannot flush %s", path);
    return 0;
}

/* The directory, the one above it, and the first of all where it was made just now. */
static int sync_dirs(const char *work_dir, struct error *err)
{
    char path[PATH_MAX];

    snprintf(path, sizeof(path), "%s", work_dir);
    for (int level = 0; level < 3; level++) {
        char *slash = strrchr(path, '/');

        if (sync_path(path, err) < 0)
            return -1;
        if (!slash || slash == path)
            break;
        *slash = '\0';
    }
    return 0;
}

static int copy_vars(const struct files_job *f, struct error *err)
{
    CLEANUP_FREE char *data = NULL;
    size_t len;

    if (file_read(f->vars_from, VARS_MAX, &data, &len, err) < 0)
        return -1;
    return file_write(f->vars, data, len, 0600, err);
}

static int files_fn(struct job *job, struct error *err)
{
    struct files_job *f = CONTAINER_OF(job, struct files_job, job);

    /* An attempt that a crash cut short may have left something; the id is ours alone. */
    if (dir_remove(f->work_dir, err) < 0 || dir_make(f->work_dir, 0700, err) < 0 || vm_lock_make(f->work_dir, err) < 0)
        return -1;
    CRASH_POINT("qemu:create:dir-made");
    if (f->has_seed && seed_write(&f->seed, f->seed_path, err) < 0)
        return -1;
    CRASH_POINT("qemu:create:seed-written");
    if (f->key_text && key_write(f->key_text, f->key, err) < 0)
        return -1;
    CRASH_POINT("qemu:create:key-written");
    if (f->vars_from[0] && copy_vars(f, err) < 0)
        return -1;
    return sync_dirs(f->work_dir, err);
}

static int sync_fn(struct job *job, struct error *err)
{
    struct files_job *f = CONTAINER_OF(job, struct files_job, job);

    return sync_path(f->overlay, err) < 0 || sync_dirs(f->work_dir, err) < 0 ? -1 : 0;
}

static void files_job_free(struct job *job)
{
    struct files_job *f = CONTAINER_OF(job, struct files_job, job);

    seed_done(&f->seed);
    if (f->key_text)
        explicit_bzero(f->key_text, strlen(f->key_text));
    mem_free(f->key_text);
    mem_free(f);
}

static struct files_job *files_job_new(struct backend_vm *bvm)
{
    struct files_job *f = mem_zalloc(sizeof(*f));

    if (!f)
        return NULL;
    f->job.free = files_job_free;
    memcpy(f->work_dir, bvm->work_dir, sizeof(f->work_dir));
    memcpy(f->overlay, bvm->overlay, sizeof(f->overlay));
    memcpy(f->seed_path, bvm->seed, sizeof(f->seed_path));
    memcpy(f->vars, bvm->vars, sizeof(f->vars));
    memcpy(f->key, bvm->key, sizeof(f->key));
    if (bvm->vm->spec.uefi)
        memcpy(f->vars_from, bvm->be->host.uefi_vars, sizeof(f->vars_from));
    return f;
}

/* ---- failing: nothing stays ---- */

static void removed_after_failure(struct backend_vm *bvm, struct job *job, int rc, struct error *err)
{
    CLEANUP_ERROR struct error failure = ERROR_INIT;

    (void)job;
    (void)rc;
    (void)err;
    error_move(&failure, &bvm->failure);
    set_text(&bvm->vm->runtime.disk_format, NULL);
    set_text(&bvm->vm->runtime.work_dir, NULL);
    set_text(&bvm->vm->runtime.overlay_path, NULL);
    set_text(&bvm->vm->runtime.seed_iso_path, NULL);
    call_end(bvm, &failure);
}

static void create_fail(struct backend_vm *bvm, struct error *err)
{
    CLEANUP_ERROR struct error ignored = ERROR_INIT;

    error_move(&bvm->failure, err);
    if (job_run(bvm, job_remove_dir(bvm->work_dir, removed_after_failure), &ignored) < 0)
        removed_after_failure(bvm, NULL, -1, NULL);
}

/* Whether the call was cancelled meanwhile: then it fails. */
static bool create_cancelled(struct backend_vm *bvm)
{
    CLEANUP_ERROR struct error err = ERROR_INIT;

    if (!bvm->cancelled)
        return false;
    call_cancelled_error(bvm, &err);
    create_fail(bvm, &err);
    return true;
}

static void create_hurry(struct backend_vm *bvm)
{
    bvm->cancelled = true; /* work on the pool is waited for: it is short */
    if (!bvm->inspection && !bvm->tool)
        return;
    image_inspection_free(bvm->inspection);
    bvm->inspection = NULL;
    tool_free(bvm->tool);
    bvm->tool = NULL;
    create_cancelled(bvm);
}

/* ---- the steps, last first ---- */

static void written_down(struct backend_vm *bvm, struct error *err)
{
    if (error_is_set(err))
        create_fail(bvm, err);
    else if (!create_cancelled(bvm))
        call_end(bvm, NULL);
}

static void synced(struct backend_vm *bvm, struct job *job, int rc, struct error *err)
{
    struct vm_runtime *rt = &bvm->vm->runtime;
    CLEANUP_ERROR struct error own = ERROR_INIT;

    (void)job;
    CRASH_POINT("qemu:create:synced");
    if (rc < 0) {
        create_fail(bvm, err);
        return;
    }
    if (create_cancelled(bvm))
        return;
    set_text(&rt->work_dir, bvm->work_dir);
    set_text(&rt->overlay_path, vm_base_path(bvm->vm) ? bvm->overlay : NULL);
    set_text(&rt->seed_iso_path, bvm->vm->spec.has_cloud_init ? bvm->seed : NULL);
    set_text(&rt->ssh_key_path, key_wanted(&bvm->vm->spec) ? bvm->key : NULL);
    if (manifest_write(bvm, false, written_down, &own) < 0)
        create_fail(bvm, &own);
}

void qemu_img_error(const struct backend_vm *bvm, const struct tool_result *result, const char *done, struct error *err)
{
    bool full = strstr(result->err_text, strerror(ENOSPC)) || strstr(result->err_text, strerror(EDQUOT));
    char why[300];

    error_set(err, full ? ERR_HOST_DISK_FULL : ERR_IMAGE_OVERLAY_CREATION_FAILED, "the disk of VM %s could not be %s",
              bvm->vm->name, done);
    last_line(result->err_text, result->err_len, why, sizeof(why));
    error_cause(err, "%s", result->timed_out ? "qemu-img did not end in time" : why);
}

static void overlay_made(void *arg, const struct tool_result *result)
{
    struct backend_vm *bvm = arg;
    CLEANUP_ERROR struct error err = ERROR_INIT;
    struct files_job *f;

    CRASH_POINT("qemu:create:overlay-made");
    tool_free(TAKE_PTR(bvm->tool));
    if (result->timed_out || result->status.code != 0) {
        qemu_img_error(bvm, result, "created", &err);
        create_fail(bvm, &err);
        return;
    }
    f = files_job_new(bvm);
    if (f) {
        f->job.fn = sync_fn;
        f->job.done = synced;
    }
    if (job_run(bvm, f ? &f->job : NULL, &err) < 0)
        create_fail(bvm, &err);
}

static int make_overlay(struct backend_vm *bvm, struct error *err)
{
    const struct vm *vm = bvm->vm;
    uint64_t wanted = (uint64_t)vm->spec.disk_gb << 30;
    char size[32];
    const char *argv[] = {
        bvm->be->host.qemu_img,  "create",     "-q", "-u", "-f", "qcow2", "-b", vm_base_path(vm), "-F",
        vm->runtime.disk_format, bvm->overlay, size, NULL};

    snprintf(size, sizeof(size), "%llu", (unsigned long long)(wanted > bvm->base_size ? wanted : bvm->base_size));
    bvm->tool = tool_run(bvm->be->loop, argv, NULL, NULL, 0, OVERLAY_TIMEOUT_MS, 65536, overlay_made, bvm, err);
    return bvm->tool ? 0 : -1;
}

static void files_made(struct backend_vm *bvm, struct job *job, int rc, struct error *err)
{
    CLEANUP_ERROR struct error own = ERROR_INIT;

    if (rc < 0)
        create_fail(bvm, err);
    else if (!vm_spec_has_image(&bvm->vm->spec))
        synced(bvm, job, 0, NULL);
    else if (!create_cancelled(bvm) && make_overlay(bvm, &own) < 0)
        create_fail(bvm, &own);
}

static int build_seed(const struct vm *vm, struct files_job *f, const char *id, struct error *err)
{
    const struct vm_cloud_init *ci = &vm->spec.cloud_init;
    CLEANUP_FREE char *own = f->key_text ? key_public(f->key_text) : NULL;
    CLEANUP_FREE const char **keys = mem_zalloc((ci->n_keys + 1) * sizeof(char *));
    size_t n_keys = 0;

    if (!keys || (f->key_text && !own))
        return error_set(err, ERR_CLOUDINIT_ISO_FAILED, "no memory for the keys of VM %s", vm->name);
    for (size_t i = 0; i < ci->n_keys; i++)
        keys[n_keys++] = ci->ssh_authorized_keys[i];
    if (own)
        keys[n_keys++] = own;
    struct seed_input input = {
        .instance_id = ci->instance_id ? ci->instance_id : id,
        .hostname = ci->hostname ? ci->hostname : vm->name,
        .user = vm_ssh_user(vm),
        .ssh_keys = keys,
        .n_ssh_keys = n_keys,
        .user_data = ci->user_data,
        .vendor_data = ci->vendor_data,
        .network_config = ci->network_config,
    };

    f->has_seed = vm->spec.has_cloud_init;
    return f->has_seed ? seed_build(&input, &f->seed, err) : 0;
}

static int start_files_job(struct backend_vm *bvm, struct error *err)
{
    struct files_job *f = files_job_new(bvm);

    if (f) {
        f->job.fn = files_fn;
        f->job.done = files_made;
        f->key_text = TAKE_PTR(bvm->key_text);
        if (build_seed(bvm->vm, f, bvm->id, err) < 0) {
            files_job_free(&f->job);
            return -1;
        }
    }
    return job_run(bvm, f ? &f->job : NULL, err);
}

static void key_made(struct backend_vm *bvm, struct error *err)
{
    if (!error_is_set(err) && (bvm->cancelled ? call_cancelled_error(bvm, err) : start_files_job(bvm, err)) == 0)
        return;
    call_end(bvm, err);
}

/* The key pair first, for the seed tells the public key. */
static int make_files(struct backend_vm *bvm, struct error *err)
{
    int rc = key_make(bvm, key_made, err);

    return rc == 1 ? start_files_job(bvm, err) : rc;
}

static int check_size(struct backend_vm *bvm, const struct image_info *info, struct error *err)
{
    uint64_t least = (info->virtual_size + (1ULL << 30) - 1) >> 30;
    uint32_t disk_gb = bvm->vm->spec.disk_gb;
    char expected[64];

    if (disk_gb == 0 || (uint64_t)disk_gb << 30 >= info->virtual_size)
        return 0;
    snprintf(expected, sizeof(expected), "at least %llu, or none", (unsigned long long)least);
    error_set(err, ERR_API_INVALID_FIELD, "disk_gb is %u, the image %s needs %llu", disk_gb, vm_base_path(bvm->vm),
              (unsigned long long)least);
    error_ctx_str(err, "pointer", "/spec/disk_gb");
    error_ctx_str(err, "expected", expected);
    return -1;
}

static void image_inspected(void *arg, const struct image_info *info, struct error *err)
{
    struct backend_vm *bvm = arg;
    CLEANUP_ERROR struct error own = ERROR_INIT;

    bvm->inspection = NULL;
    if (!info) {
        call_end(bvm, err);
        return;
    }
    bvm->base_size = info->virtual_size;
    if (check_size(bvm, info, &own) == 0) {
        set_text(&bvm->vm->runtime.disk_format, info->format);
        if (make_files(bvm, &own) == 0)
            return;
    }
    call_end(bvm, &own);
}

static int boot_file(const char *path, const char *pointer, struct error *err)
{
    struct stat st;

    if (!path)
        return 0;
    if (stat(path, &st) == 0 && S_ISREG(st.st_mode) && access(path, R_OK) == 0)
        return 0;
    error_set(err, ERR_API_INVALID_FIELD, "%s is not a readable file", path);
    error_ctx_str(err, "pointer", pointer);
    error_ctx_str(err, "expected", "the absolute path of a readable file");
    return -1;
}

int qemu_create(struct backend_vm *bvm, struct backend_call *call, struct error *err)
{
    const struct vm_spec *spec = &bvm->vm->spec;
    struct image_rules rules = qemu_image_rules(bvm);
    int rc;

    if (spec->has_boot && (boot_file(spec->boot.kernel, "/spec/boot/kernel", err) < 0 ||
                           boot_file(spec->boot.initrd, "/spec/boot/initrd", err) < 0))
        return -1;
    call_begin(bvm, call, create_hurry);
    if (vm_spec_has_image(spec)) {
        bvm->inspection = image_inspect(bvm->be->loop, vm_base_path(bvm->vm), &rules, image_inspected, bvm, err);
        rc = bvm->inspection ? 0 : -1;
    } else {
        rc = make_files(bvm, err);
    }
    if (rc < 0) {
        bvm->call = NULL;
        return -1;
    }
    return OP_WAIT;
}

/* ---- how much it takes ---- */

/* What an ISO image of an empty seed, a qcow2 header with its first tables, and the first words of a guest and of QEMU take. */
enum { SEED_ROOM = 400 << 10, OVERLAY_ROOM = 256 << 10, LOGS_ROOM = 128 << 10 };

static size_t text_len(const char *text)
{
    return text ? strlen(text) : 0;
}

uint64_t qemu_room(struct backend *be, const struct vm_spec *spec, bool create)
{
    const struct vm_cloud_init *ci = &spec->cloud_init;
    uint64_t room = LOGS_ROOM;

    if (!create)
        return room;
    if (spec->has_cloud_init) {
        room += SEED_ROOM + text_len(ci->user_data) + text_len(ci->vendor_data) + text_len(ci->network_config);
        for (size_t i = 0; i < ci->n_keys; i++)
            room += strlen(ci->ssh_authorized_keys[i]);
    }
    if (spec->uefi)
        room += CONTAINER_OF(be, struct qemu_backend, ops)->host.uefi_vars_size;
    return room + (vm_spec_has_image(spec) ? OVERLAY_ROOM : 0);
}

/* ---- remove ---- */

struct remove_all_job {
    struct job job;
    struct vm_place place;
};

static int remove_all_fn(struct job *job, struct error *err)
{
    struct remove_all_job *r = CONTAINER_OF(job, struct remove_all_job, job);

    return vm_place_clear(&r->place, false, true, err);
}

static void all_removed(struct backend_vm *bvm, struct job *job, int rc, struct error *err)
{
    struct vm_runtime *rt = &bvm->vm->runtime;

    (void)job;
    if (rc == 0) {
        set_text(&rt->work_dir, NULL);
        set_text(&rt->overlay_path, NULL);
        set_text(&rt->seed_iso_path, NULL);
        set_text(&rt->ssh_key_path, NULL);
        set_text(&rt->ssh_host_key, NULL);
    }
    call_end(bvm, err);
}

int qemu_remove(struct backend_vm *bvm, struct backend_call *call, struct error *err)
{
    struct remove_all_job *r;

    if (bvm->alive || bvm->ending)
        return error_set(err, ERR_IO, "VM %s has a process: its files stay", bvm->vm->name);
    r = mem_zalloc(sizeof(*r));
    if (r) {
        r->job.fn = remove_all_fn;
        r->job.done = all_removed;
        vm_place_of(bvm, &r->place);
    }
    call_begin(bvm, call, NULL);
    if (job_run(bvm, r ? &r->job : NULL, err) < 0) {
        bvm->call = NULL;
        return -1;
    }
    return OP_WAIT;
}
