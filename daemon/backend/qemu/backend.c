/* backend.c - the vtable: construction, check, attach and detach, and what needs no VM.  The verbs are in the files that
 * internal.h names. */
#include <stdio.h>
#include <string.h>

#include "backend/qemu/internal.h"
#include "base/fd.h"
#include "base/mem.h"
#include "net/port.h"
#include "net/tap.h"

static struct qemu_backend *self(struct backend *be)
{
    return CONTAINER_OF(be, struct qemu_backend, ops);
}

char **texts_copy(const char *const *list)
{
    size_t n = 0;
    char **copy;

    while (list && list[n])
        n++;
    copy = mem_zalloc((n + 1) * sizeof(char *));
    for (size_t i = 0; copy && i < n; i++) {
        copy[i] = mem_strdup(list[i]);
        if (!copy[i]) {
            texts_free(copy);
            return NULL;
        }
    }
    return copy;
}

void texts_free(char **list)
{
    for (char **text = list; text && *text; text++)
        mem_free(*text);
    mem_free(list);
}

struct image_rules qemu_image_rules(const struct backend_vm *bvm)
{
    const struct qemu_backend *be = bvm->be;
    const struct vm_runtime *rt = &bvm->vm->runtime;
    bool cached = rt->image_path != NULL; /* by us: it lies where it lies, and was looked at when it came */

    return (struct image_rules){
        .helper = be->host.inspect,
        .image_dirs = cached ? NULL : (const char *const *)be->image_dirs,
        .max_bytes = be->max_image_bytes,
        .mode = cached && rt->disk_format != NULL && strcmp(rt->disk_format, "raw") == 0 ? "raw" : NULL,
    };
}

const char *qemu_accel(const struct qemu_backend *be, const struct vm_spec *spec)
{
    if (spec->accel == VM_ACCEL_KVM || (spec->accel == VM_ACCEL_AUTO && be->host.kvm))
        return "kvm";
    return "tcg";
}

static int bad_field(struct error *err, const char *pointer, const char *expected, const char *message)
{
    error_set(err, ERR_API_INVALID_FIELD, "%s", message);
    error_ctx_str(err, "pointer", pointer);
    error_ctx_str(err, "expected", expected);
    return -1;
}

static int check_machine(const struct qemu_host *host, const struct vm_spec *spec, struct error *err)
{
    if (spec->machine == VM_MACHINE_MICROVM) {
        if (!host->has_microvm)
            return error_set(err, ERR_BACKEND_NOT_AVAILABLE, "this QEMU has no machine microvm");
        if (!spec->has_boot)
            return bad_field(err, "/spec/boot", "{\"kernel\"}", "machine microvm needs boot with a kernel");
        if (spec->uefi)
            return bad_field(err, "/spec/uefi", "false with machine microvm", "machine microvm has no UEFI");
        if (spec->display == VM_DISPLAY_VGA)
            return bad_field(err, "/spec/display", "none with machine microvm", "machine microvm has no display");
    } else if (!host->machine_q35[0]) {
        return error_set(err, ERR_BACKEND_NOT_AVAILABLE, "this QEMU has no machine q35");
    }
    if (spec->accel == VM_ACCEL_KVM && !host->kvm)
        return error_set(err, ERR_BACKEND_NOT_AVAILABLE, "KVM is not available here: %s", host->kvm_reason);
    if (spec->uefi && !host->uefi) {
        error_set(err, ERR_BACKEND_NOT_AVAILABLE, "no matching pair of UEFI code and variables is installed");
        error_help(err, "install OVMF (Debian: `apt install ovmf`) or start the VM by BIOS");
        return -1;
    }
    if (spec->vsock)
        return error_set(err, ERR_BACKEND_NOT_AVAILABLE, "vsock is not supported yet");
    return 0;
}

static int check_source(const struct qemu_host *host, const struct vm_spec *spec, struct error *err)
{
    bool has_image = vm_spec_has_image(spec);

    if (!has_image && !spec->has_boot)
        return bad_field(err, "/spec/image", "an image, or boot with a kernel", "the VM has nothing to boot");
    if (spec->has_boot && (!spec->boot.kernel || spec->boot.kernel[0] != '/'))
        return bad_field(err, "/spec/boot/kernel", "an absolute path", "the kernel is not an absolute path");
    if (spec->has_boot && spec->boot.initrd && spec->boot.initrd[0] != '/')
        return bad_field(err, "/spec/boot/initrd", "an absolute path", "the initrd is not an absolute path");
    if (has_image && !host->qemu_img[0])
        return error_set(err, ERR_BACKEND_NOT_AVAILABLE, "qemu-img is not installed (Debian: qemu-utils)");
    if (has_image && !host->inspect[0])
        return error_set(err, ERR_BACKEND_NOT_AVAILABLE, "vmmd-inspect is not installed beside vmmd");
    if (!has_image && spec->disk_gb)
        return bad_field(err, "/spec/disk_gb", "null without an image", "a VM without an image has no disk");
    return 0;
}

static int check_network(const struct vm_spec *spec, struct error *err)
{
    char pointer[64];

    if (spec->network.type == VM_NETWORK_VNIC)
        return error_set(err, ERR_BACKEND_NOT_AVAILABLE, "network type vnic is propolis' own");
    if (spec->network.type == VM_NETWORK_TAP && !spec->network.bridge)
        return bad_field(err, "/spec/network/bridge", "the name of a bridge", "network type tap needs a bridge");
    if (spec->network.type == VM_NETWORK_TAP && !bridge_exists(spec->network.bridge)) {
        error_set(err, ERR_NETWORK_BRIDGE_NOT_FOUND, "there is no bridge %s", spec->network.bridge);
        error_ctx_str(err, "bridge", spec->network.bridge);
        return -1;
    }
    for (size_t i = 0; i < spec->network.n_forwards; i++) {
        if (!strchr(spec->network.forwards[i].host_ip, ':'))
            continue;
        snprintf(pointer, sizeof(pointer), "/spec/network/forwards/%zu/host_ip", i);
        return bad_field(err, pointer, "an IPv4 address", "QEMU forwards IPv4 ports only");
    }
    return 0;
}

static int qemu_check(struct backend *be, const struct vm_spec *spec, struct error *err)
{
    const struct qemu_host *host = &self(be)->host;

    if (!host->available)
        return error_set(err, ERR_BACKEND_NOT_AVAILABLE, "the backend qemu is not available: %s",
                         host->reason[0] ? host->reason : "it has not been probed");
    if (check_machine(host, spec, err) < 0 || check_source(host, spec, err) < 0 || check_network(spec, err) < 0)
        return -1;
    if (host->memory_mb && spec->memory_mb > host->memory_mb) {
        error_set(err, ERR_HOST_INSUFFICIENT_MEMORY, "the VM wants %u MiB of memory, the host has %llu",
                  spec->memory_mb, (unsigned long long)host->memory_mb);
        error_ctx_str(err, "pointer", "/spec/memory_mb");
        return -1;
    }
    return 0;
}

/* Measured, and rounded up: QEMU's heap and tables; the translated code of TCG, which goes on growing; the display's memory. */
static unsigned qemu_overhead_mb(struct backend *be, const struct vm_spec *spec)
{
    return (strcmp(qemu_accel(self(be), spec), "kvm") == 0 ? 64U : 128U) + (spec->display == VM_DISPLAY_VGA ? 16U : 0U);
}

static bool qemu_port_free(struct backend *be, bool udp, const char *host_ip, uint16_t port)
{
    (void)be;
    return port_is_free(udp, host_ip, port);
}

int qemu_dirs_in(const char *data_dir, const char *runtime_dir, const char *id, char *work_dir, char *run_dir,
                 struct error *err)
{
    int n = snprintf(work_dir, PATH_MAX, "%s/vms/%s", data_dir, id);
    /* The last twelve digits of the id are random; a socket's path has little room. */
    int m = snprintf(run_dir, PATH_MAX, "%s/vms/%s", runtime_dir, id + 24);

    /* Room for the names in them. */
    if (n > PATH_MAX - 32 || m > PATH_MAX - 32)
        return error_set(err, ERR_IO, "the path of VM %s's directories is too long", id);
    return 0;
}

int qemu_dirs(const struct qemu_backend *be, const char *id, char *work_dir, char *run_dir, struct error *err)
{
    return qemu_dirs_in(be->data_dir, be->runtime_dir, id, work_dir, run_dir, err);
}

static struct backend_vm *qemu_attach(struct backend *be, struct vm *vm, const struct backend_events *events, void *arg,
                                      struct error *err)
{
    struct backend_vm *bvm = mem_zalloc(sizeof(*bvm));

    if (!bvm) {
        error_set(err, ERR_DAEMON_INTERNAL, "no memory for VM %s", vm->name);
        return NULL;
    }
    bvm->be = self(be);
    bvm->vm = vm;
    bvm->events = events;
    bvm->arg = arg;
    bvm->tap_fd = -1;
    bvm->lock_fd = -1;
    uuid_text(&vm->id, bvm->id);
    if (qemu_dirs(bvm->be, bvm->id, bvm->work_dir, bvm->run_dir, err) < 0) {
        mem_free(bvm);
        return NULL;
    }
    path_join(bvm->overlay, PATH_MAX, bvm->work_dir, "overlay.qcow2", err);
    path_join(bvm->seed, PATH_MAX, bvm->work_dir, "seed.iso", err);
    path_join(bvm->vars, PATH_MAX, bvm->work_dir, "vars.fd", err);
    path_join(bvm->vmm_log, PATH_MAX, bvm->work_dir, "vmm.log", err);
    path_join(bvm->key, PATH_MAX, bvm->work_dir, "id_ed25519", err);
    path_join(bvm->console_log, PATH_MAX, bvm->work_dir, "console.log", err);
    return bvm;
}

static void qemu_detach(struct backend_vm *bvm)
{
    if (bvm->gone)
        *bvm->gone = true;
    jobs_forget(bvm);
    manifests_forget(bvm);
    guest_close(bvm);
    image_inspection_free(bvm->inspection);
    tool_free(bvm->tool);
    process_detach(bvm);
    error_done(&bvm->failure);
    mem_free(bvm->key_text);
    mem_free(bvm);
}

static void qemu_cancel(struct backend_vm *bvm)
{
    if (bvm->call && bvm->hurry)
        bvm->hurry(bvm);
}

static void qemu_failed_start(struct backend_vm *bvm, struct backend_exit *ret)
{
    process_describe_end(bvm, ret);
    if (!bvm->ended_early)
        ret->status = (struct exit_status){0};
}

static bool qemu_pressed_agent(struct backend_vm *bvm)
{
    return bvm->pressed_agent;
}

static int qemu_log_path(struct backend *be, const struct vm *vm, enum backend_log which, char *out)
{
    char id[UUID_TEXT_MAX];
    static const char *const names[] = {[BACKEND_LOG_CONSOLE] = "console.log",
                                        [BACKEND_LOG_VMM] = "vmm.log",
                                        [BACKEND_LOG_PROVISION] = "provision.log"};

    uuid_text(&vm->id, id);
    return snprintf(out, PATH_MAX, "%s/vms/%s/%s", self(be)->data_dir, id, names[which]) < PATH_MAX ? 0 : -1;
}

static struct console *qemu_console(struct backend_vm *bvm)
{
    return bvm->ending ? NULL : bvm->console;
}

static json_t *qemu_describe(struct backend *be)
{
    return qemu_host_json(&self(be)->host);
}

static void qemu_free(struct backend *ops)
{
    struct qemu_backend *be = self(ops);

    manifests_drop(be);
    qemu_probe_free(be->probe);
    qemu_host_done(&be->host);
    oom_free(be);
    texts_free(be->image_dirs);
    texts_free(be->lease_files);
    mem_free(be->data_dir);
    mem_free(be->runtime_dir);
    mem_free(be->helper_dir);
    mem_free(be->binary);
    mem_free(be);
}

static const struct backend vtable = {
    .name = "qemu",
    .files = 16,
    .check = qemu_check,
    .overhead_mb = qemu_overhead_mb,
    .room = qemu_room,
    .port_free = qemu_port_free,
    .attach = qemu_attach,
    .detach = qemu_detach,
    .cancel = qemu_cancel,
    .create = qemu_create,
    .remove = qemu_remove,
    .prepare = qemu_prepare,
    .sweep = qemu_sweep,
    .spawn = qemu_spawn,
    .greet = qemu_greet,
    .verify = qemu_verify,
    .kill = qemu_kill,
    .press = qemu_press,
    .terminate = qemu_terminate,
    .reset = qemu_reset,
    .suspend = qemu_suspend,
    .resume = qemu_resume,
    .adopt = qemu_adopt,
    .failed_start = qemu_failed_start,
    .pressed_agent = qemu_pressed_agent,
    .log_path = qemu_log_path,
    .console = qemu_console,
    .manifest = qemu_manifest,
    .survey = qemu_survey,
    .reap = qemu_reap,
    .exec = qemu_exec,
    .guest_files = qemu_files,
    .describe = qemu_describe,
    .free = qemu_free,
};

struct backend *qemu_backend_new(struct loop *loop, const struct qemu_config *config, struct error *err)
{
    struct qemu_backend *be = mem_zalloc(sizeof(*be));

    if (be) {
        be->ops = vtable;
        be->loop = loop;
        be->data_dir = mem_strdup(config->data_dir);
        be->runtime_dir = mem_strdup(config->runtime_dir);
        be->helper_dir = mem_strdup(config->helper_dir);
        be->binary = mem_strdup(config->qemu_binary ? config->qemu_binary : "qemu-system-x86_64");
        be->image_dirs = texts_copy(config->image_dirs);
        be->console_log_max = config->console_log_max ? config->console_log_max : 1 << 20;
        be->vmm_log_max = config->vmm_log_max ? config->vmm_log_max : 256 << 10;
        be->max_image_bytes = (uint64_t)(config->max_image_gb ? config->max_image_gb : 16384) << 30;
        be->lease_files = texts_copy(config->lease_files);
        be->cloud_init_timeout_ms = (config->cloud_init_timeout_s ? config->cloud_init_timeout_s : 600) * 1000;
        be->host.machines = json_array();
    }
    if (!be || !be->data_dir || !be->runtime_dir || !be->helper_dir || !be->binary || !be->image_dirs ||
        !be->lease_files || !be->host.machines) {
        error_set(err, ERR_DAEMON_INTERNAL, "no memory for the backend qemu");
        if (be)
            qemu_free(&be->ops);
        return NULL;
    }
    return &be->ops;
}

static void probed(void *arg)
{
    struct qemu_backend *be = arg;

    qemu_probe_free(be->probe);
    be->probe = NULL;
    be->probed(be->probed_arg);
}

int qemu_backend_probe(struct backend *ops, void (*done)(void *arg), void *arg, struct error *err)
{
    struct qemu_backend *be = self(ops);

    be->probed = done;
    be->probed_arg = arg;
    qemu_probe_free(be->probe);
    qemu_host_done(&be->host);
    be->probe = qemu_probe_new(be->loop, be->binary, be->data_dir, be->helper_dir, &be->host, probed, be, err);
    return be->probe ? 0 : -1;
}
