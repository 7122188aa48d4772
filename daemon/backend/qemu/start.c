/* start.c - the first steps of a start: prepare, spawn; and sweep, which undoes prepare.
 *
 *     prepare: base image inspected again ─► pool: old process dead? lock, disk size, ports, directory, tap ─► disk grown
 *              ─► manifest
 *     spawn:   plan ─► argv ─► QEMU, paused, detached, its stderr appended to vmm.log
 *
 * The base is inspected at every start: it is a file of somebody else, and QEMU would follow what a changed header names.
 * Failures: prepare removes what it made; a QEMU that ends early is process.c's. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "backend/qemu/internal.h"
#include "base/clock.h"
#include "base/crash.h"
#include "base/fd.h"
#include "base/log.h"
#include "base/mem.h"
#include "net/port.h"
#include "net/tap.h"

enum { RESIZE_TIMEOUT_MS = 30000 };

struct prepare_job {
    struct job job;
    struct vm_place place;
    char overlay[PATH_MAX]; /* "" : no disk */
    struct proc_id old;     /* the process of an earlier run; pid 0: none */
    char tap[TAP_NAME_MAX]; /* "": no tap */
    char bridge[TAP_NAME_MAX];
    struct vm_forward *ports; /* to be bound by QEMU */
    size_t n_ports;
    uint64_t min_size;
    bool pinned; /* the guest's host key is known */
    /* results */
    int tap_fd, lock_fd;
    bool unpin; /* whoever removes known_hosts wants the next host key to be believed */
    bool grow;
};

/* ---- on the pool ---- */

static int check_ports(const struct prepare_job *p, struct error *err)
{
    for (size_t i = 0; i < p->n_ports; i++) {
        const struct vm_forward *f = &p->ports[i];
        char holder[128];

        if (port_is_free(f->udp, f->host_ip, f->host_port))
            continue;
        port_holder(f->udp, f->host_port, holder, sizeof(holder));
        error_set(err, ERR_NETWORK_PORT_IN_USE, "the port %s:%u/%s is taken%s%s", f->host_ip, f->host_port,
                  f->udp ? "udp" : "tcp", holder[0] ? " by " : "", holder);
        error_ctx_int(err, "port", f->host_port);
        if (holder[0])
            error_ctx_str(err, "holder", holder);
        return -1;
    }
    return 0;
}

/* The virtual size in the header of our own overlay. */
static int overlay_size(const char *path, uint64_t *ret, struct error *err)
{
    CLEANUP_FD int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
    unsigned char head[32];
    uint64_t size = 0;

    if (fd < 0)
        return error_errno(err, errno, "cannot open the disk %s", path);
    if (pread(fd, head, sizeof(head), 0) != (ssize_t)sizeof(head) || memcmp(head, "QFI\xfb", 4) != 0)
        return error_set(err, ERR_IO, "the disk %s is damaged: it is not qcow2 any more", path);
    for (int i = 24; i < 32; i++)
        size = size << 8 | head[i];
    *ret = size;
    return 0;
}

/* No QEMU that vmmd knows of, none that has the disk's lock, and none that has the directory. */
static int claim(struct prepare_job *p, struct error *err)
{
    struct stat st;
    pid_t pid = 0;

    if (p->old.pid && proc_is(&p->old))
        return qemu_lives_error(&p->place, p->old.pid, err);
    p->lock_fd = vm_lock_take(&p->place, true, err);
    if (p->lock_fd < 0)
        return error_is_set(err) ? -1 : error_errno(err, ENOENT, "the directory %s is gone", p->place.work_dir);
    if (lstat(p->place.run_dir, &st) == 0)
        pid = qemu_find(p->place.id, p->place.run_dir);
    return pid ? qemu_lives_error(&p->place, pid, err) : 0;
}

static bool known_hosts_gone(const char *work_dir)
{
    char path[PATH_MAX];

    return path_join(path, sizeof(path), work_dir, KNOWN_HOSTS_NAME, NULL) == 0 && access(path, F_OK) < 0 &&
           errno == ENOENT;
}

static int prepare_fn(struct job *job, struct error *err)
{
    struct prepare_job *p = CONTAINER_OF(job, struct prepare_job, job);
    CLEANUP_ERROR struct error ignored = ERROR_INIT;
    const char *run_dir = p->place.run_dir;
    uint64_t size = 0;

    if (claim(p, err) < 0)
        return -1;
    if (p->overlay[0]) {
        if (overlay_size(p->overlay, &size, err) < 0)
            return -1;
        p->grow = size < p->min_size;
    }
    if (check_ports(p, err) < 0 || dir_remove(run_dir, err) < 0 || dir_make(run_dir, 0700, err) < 0)
        return -1;
    CRASH_POINT("qemu:prepare:run-dir-made");
    p->unpin = p->pinned && known_hosts_gone(p->place.work_dir);
    if (p->tap[0])
        p->tap_fd = tap_open(p->tap, p->bridge, err);
    if (p->tap[0] && p->tap_fd < 0) {
        dir_remove(run_dir, &ignored);
        return -1;
    }
    return 0;
}

static void prepare_free(struct job *job)
{
    struct prepare_job *p = CONTAINER_OF(job, struct prepare_job, job);

    fd_close(p->tap_fd);
    fd_close(p->lock_fd);
    mem_free(p->ports);
    mem_free(p);
}

/* ---- on the loop ---- */

static void removed_after_failure(struct backend_vm *bvm, struct job *job, int rc, struct error *err)
{
    CLEANUP_ERROR struct error failure = ERROR_INIT;

    (void)job;
    (void)rc;
    (void)err;
    error_move(&failure, &bvm->failure);
    call_end(bvm, &failure);
}

struct clear_job {
    struct job job;
    struct vm_place place;
};

static int clear_fn(struct job *job, struct error *err)
{
    return vm_place_clear(&CONTAINER_OF(job, struct clear_job, job)->place, false, false, err);
}

/* Takes back what prepare made. */
static int clear_run_dir(struct backend_vm *bvm, void (*done)(struct backend_vm *, struct job *, int, struct error *),
                         struct error *err)
{
    struct clear_job *c = mem_zalloc(sizeof(*c));

    bvm->tap_fd = fd_close(bvm->tap_fd);
    bvm->lock_fd = fd_close(bvm->lock_fd);
    if (c) {
        c->job.fn = clear_fn;
        c->job.done = done;
        vm_place_of(bvm, &c->place);
    }
    return job_run(bvm, c ? &c->job : NULL, err);
}

static void prepare_fail(struct backend_vm *bvm, struct error *err)
{
    CLEANUP_ERROR struct error ignored = ERROR_INIT;

    error_move(&bvm->failure, err);
    if (clear_run_dir(bvm, removed_after_failure, &ignored) < 0)
        removed_after_failure(bvm, NULL, -1, NULL);
}

static void written_down(struct backend_vm *bvm, struct error *err)
{
    CLEANUP_ERROR struct error own = ERROR_INIT;

    if (error_is_set(err))
        error_move(&own, err);
    else if (bvm->cancelled)
        call_cancelled_error(bvm, &own);
    if (error_is_set(&own))
        prepare_fail(bvm, &own);
    else
        call_end(bvm, NULL);
}

/* What the VM is from now on, before its process is there: the last of prepare. */
static void write_down(struct backend_vm *bvm)
{
    CLEANUP_ERROR struct error err = ERROR_INIT;
    struct plan_paths paths;
    struct qemu_plan plan;

    if (plan_paths(bvm, &paths, &err) == 0) {
        plan_make(bvm, &paths, &plan);
        plan_record(bvm, &paths, &plan);
        if (manifest_write(bvm, true, written_down, &err) == 0)
            return;
    }
    prepare_fail(bvm, &err);
}

static void grown(void *arg, const struct tool_result *result)
{
    struct backend_vm *bvm = arg;
    CLEANUP_ERROR struct error err = ERROR_INIT;

    tool_free(bvm->tool);
    bvm->tool = NULL;
    if (bvm->cancelled) {
        call_cancelled_error(bvm, &err);
    } else if (result->timed_out || result->status.code != 0) {
        qemu_img_error(bvm, result, "grown", &err);
    } else {
        write_down(bvm);
        return;
    }
    prepare_fail(bvm, &err);
}

/* The backing file is left out: what it names plays no part in growing. */
static int grow(struct backend_vm *bvm, struct error *err)
{
    char size[32];
    json_t *image = json_pack("{s:s, s:n, s:{s:s, s:s}}", "driver", "qcow2", "backing", "file", "driver", "file",
                              "filename", bvm->overlay);
    CLEANUP_FREE char *text = qemu_json_text(image);
    CLEANUP_FREE char *name = text ? mem_printf("json:%s", text) : NULL;
    const char *argv[] = {bvm->be->host.qemu_img, "resize", "-q", name, size, NULL};

    if (!name)
        return error_set(err, ERR_DAEMON_INTERNAL, "no memory to grow the disk of VM %s", bvm->vm->name);
    snprintf(size, sizeof(size), "%uG", bvm->vm->spec.disk_gb);
    bvm->tool = tool_run(bvm->be->loop, argv, NULL, NULL, 0, RESIZE_TIMEOUT_MS, 65536, grown, bvm, err);
    return bvm->tool ? 0 : -1;
}

static void prepare_done(struct backend_vm *bvm, struct job *job, int rc, struct error *err)
{
    struct prepare_job *p = CONTAINER_OF(job, struct prepare_job, job);
    CLEANUP_ERROR struct error own = ERROR_INIT;

    if (rc < 0) {
        call_end(bvm, err);
        return;
    }
    CRASH_POINT("qemu:prepare:tap-open");
    bvm->tap_fd = TAKE_FD(p->tap_fd);
    bvm->lock_fd = TAKE_FD(p->lock_fd);
    set_text(&bvm->vm->runtime.tap, p->tap);
    if (p->unpin)
        set_text(&bvm->vm->runtime.ssh_host_key, NULL);
    if (bvm->cancelled)
        call_cancelled_error(bvm, &own);
    else if (!p->grow) {
        write_down(bvm);
        return;
    } else if (grow(bvm, &own) == 0)
        return;
    prepare_fail(bvm, &own);
}

static int copy_ports(const struct vm *vm, struct prepare_job *p)
{
    const struct vm_spec *spec = &vm->spec;
    bool ssh = vm->runtime.ssh_host_port != 0;

    if (spec->network.type != VM_NETWORK_USER)
        return 0;
    p->ports = mem_zalloc((spec->network.n_forwards + 1) * sizeof(*p->ports));
    if (!p->ports)
        return -1;
    for (size_t i = 0; i < spec->network.n_forwards; i++) {
        p->ports[p->n_ports] = spec->network.forwards[i];
        if (!p->ports[p->n_ports].host_ip[0])
            snprintf(p->ports[p->n_ports].host_ip, sizeof(p->ports[p->n_ports].host_ip), "127.0.0.1");
        p->n_ports++;
    }
    if (ssh)
        p->ports[p->n_ports++] = (struct vm_forward){.host_ip = "127.0.0.1", .host_port = vm->runtime.ssh_host_port};
    return 0;
}

static int start_prepare_job(struct backend_vm *bvm, struct error *err)
{
    struct prepare_job *p = mem_zalloc(sizeof(*p));
    struct vm *vm = bvm->vm;

    if (!p || copy_ports(vm, p) < 0) {
        mem_free(p);
        return error_set(err, ERR_DAEMON_INTERNAL, "no memory to start VM %s", vm->name);
    }
    p->job.fn = prepare_fn;
    p->job.done = prepare_done;
    p->job.free = prepare_free;
    p->tap_fd = -1;
    p->lock_fd = -1;
    vm_place_of(bvm, &p->place);
    if (vm_spec_has_image(&vm->spec)) {
        memcpy(p->overlay, bvm->overlay, sizeof(p->overlay));
        p->min_size = (uint64_t)vm->spec.disk_gb << 30;
    }
    p->pinned = vm->runtime.ssh_host_key != NULL;
    if (vm->runtime.pid && vm->runtime.exe) {
        p->old.pid = vm->runtime.pid;
        p->old.start_ticks = vm->runtime.start_ticks;
        memcpy(p->old.boot_id, vm->runtime.boot_id, sizeof(p->old.boot_id));
        snprintf(p->old.exe, sizeof(p->old.exe), "%s", vm->runtime.exe);
    }
    if (vm->spec.network.type == VM_NETWORK_TAP) {
        snprintf(p->tap, sizeof(p->tap), "vm%.8s", bvm->id + 28);
        snprintf(p->bridge, sizeof(p->bridge), "%s", vm->spec.network.bridge);
    }
    return job_run(bvm, &p->job, err);
}

static void prepare_hurry(struct backend_vm *bvm)
{
    CLEANUP_ERROR struct error err = ERROR_INIT;

    bvm->cancelled = true; /* work on the pool is waited for: it is short */
    if (!bvm->inspection)
        return;
    image_inspection_free(bvm->inspection);
    bvm->inspection = NULL;
    call_cancelled_error(bvm, &err);
    call_end(bvm, &err);
}

static void base_inspected(void *arg, const struct image_info *info, struct error *err)
{
    struct backend_vm *bvm = arg;
    CLEANUP_ERROR struct error own = ERROR_INIT;

    bvm->inspection = NULL;
    if (info && bvm->vm->runtime.disk_format && strcmp(info->format, bvm->vm->runtime.disk_format) != 0)
        error_set(&own, ERR_IMAGE_UNSAFE, "the image %s was %s when VM %s was created and is %s now",
                  vm_base_path(bvm->vm), bvm->vm->runtime.disk_format, bvm->vm->name, info->format);
    else if (!info)
        error_move(&own, err);
    else if (start_prepare_job(bvm, &own) == 0)
        return;
    call_end(bvm, &own);
}

int qemu_prepare(struct backend_vm *bvm, struct backend_call *call, struct error *err)
{
    struct image_rules rules = qemu_image_rules(bvm);
    struct plan_paths paths;
    int rc = -1;

    if (bvm->alive || bvm->ending)
        return error_set(err, ERR_QEMU_SPAWN_FAILED, "VM %s has a QEMU already", bvm->vm->name);
    if (plan_paths(bvm, &paths, err) < 0)
        return -1;
    call_begin(bvm, call, prepare_hurry);
    if (vm_spec_has_image(&bvm->vm->spec)) {
        bvm->inspection = image_inspect(bvm->be->loop, vm_base_path(bvm->vm), &rules, base_inspected, bvm, err);
        rc = bvm->inspection ? 0 : -1;
    } else {
        rc = start_prepare_job(bvm, err);
    }
    if (rc < 0) {
        bvm->call = NULL;
        return -1;
    }
    return OP_WAIT;
}

static void swept(struct backend_vm *bvm, struct job *job, int rc, struct error *err)
{
    (void)job;
    (void)rc;
    call_end(bvm, err);
}

int qemu_sweep(struct backend_vm *bvm, struct backend_call *call, struct error *err)
{
    set_text(&bvm->vm->runtime.tap, NULL);
    call_begin(bvm, call, NULL);
    if (clear_run_dir(bvm, swept, err) < 0) {
        bvm->call = NULL;
        return -1;
    }
    return OP_WAIT;
}

/* ---- spawn ---- */

static int open_vmm_log(struct backend_vm *bvm, struct error *err)
{
    CLEANUP_FD int fd = open(bvm->vmm_log, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK, 0600);
    struct stat st;

    if (fd < 0 || fstat(fd, &st) < 0)
        return error_errno(err, errno, "cannot open %s", bvm->vmm_log);
    bvm->log_start = st.st_size;
    return TAKE_FD(fd);
}

static int record_process(struct backend_vm *bvm, struct error *err)
{
    struct vm_runtime *rt = &bvm->vm->runtime;
    struct proc_id id;

    if (proc_identify(child_pid(bvm->child), &id, err) < 0)
        return -1;
    rt->pid = id.pid;
    rt->start_ticks = id.start_ticks;
    rt->started_at = clock_wall_ms();
    memcpy(rt->boot_id, id.boot_id, sizeof(rt->boot_id));
    set_text(&rt->exe, id.exe);
    return 0;
}

static void forget_last_run(struct backend_vm *bvm)
{
    bvm->started = false;
    bvm->paused = false;
    bvm->died = false;
    bvm->ended_early = false;
    bvm->term_asked = false;
    bvm->mute = false;
    bvm->reconnecting = false;
    bvm->pressed_agent = false;
    bvm->presses = 0;
    bvm->guest_end = GUEST_RUNS;
    bvm->oom = false;
    bvm->stderr_tail[0] = '\0';
    memset(&bvm->status, 0, sizeof(bvm->status));
}

static int run_qemu(struct backend_vm *bvm, char **argv, int log_fd, struct error *err)
{
    struct child_spec spec = {
        .argv = (const char *const *)argv,
        .detached = true,
        .stdin_fd = -1,
        .stdout_fd = log_fd,
        .stderr_fd = log_fd,
        .extra_fds = {bvm->lock_fd, -1, -1, -1},
    };

    if (bvm->tap_fd >= 0) { /* TAP_FD_IN_QEMU is the first */
        spec.extra_fds[0] = bvm->tap_fd;
        spec.extra_fds[1] = bvm->lock_fd;
    }

    bvm->child = child_spawn(bvm->be->loop, &spec, process_exited, bvm, err);
    if (!bvm->child)
        return error_wrap(err, ERR_QEMU_SPAWN_FAILED, "QEMU of VM %s could not be started", bvm->vm->name);
    CRASH_POINT("qemu:spawn:process-there"); /* and nothing of it recorded */
    bvm->alive = true;
    vmmlog_keep(bvm);
    bvm->tap_fd = fd_close(bvm->tap_fd); /* QEMU has its own now */
    bvm->lock_fd = fd_close(bvm->lock_fd);
    return 0;
}

int qemu_spawn(struct backend_vm *bvm, struct backend_call *call, struct error *err)
{
    CLEANUP_ERROR struct error ignored = ERROR_INIT;
    CLEANUP_FD int log_fd = -1;
    struct plan_paths paths;
    struct qemu_plan plan;
    char **argv;
    int rc;

    (void)call;
    forget_last_run(bvm);
    if (plan_paths(bvm, &paths, err) < 0)
        return -1;
    plan_make(bvm, &paths, &plan);
    log_fd = open_vmm_log(bvm, err);
    if (log_fd < 0 || qemu_argv_build(&plan, &argv, err) < 0)
        return -1;
    bvm->console = console_new(bvm->be->loop, bvm->console_log, bvm->be->console_log_max, err);
    rc = bvm->console ? run_qemu(bvm, argv, log_fd, err) : -1;
    qemu_argv_free(argv);
    if (rc < 0) {
        if (bvm->console)
            console_free(bvm->console);
        bvm->console = NULL;
        return -1;
    }
    plan_record(bvm, &paths, &plan);
    /* Gone already: its exit tells why, in the next step. */
    if (record_process(bvm, &ignored) < 0)
        bvm->vm->runtime.pid = child_pid(bvm->child);
    oom_watch(bvm);
    LOG_INFO("qemu started", "vm", bvm->vm->name, "accel", plan.accel, "machine", plan.machine_type);
    return 0;
}
