/* plan.c - from a VM, its host and its directories to the plan that argv.c writes down; pure but for vm->runtime. */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "backend/qemu/internal.h"
#include "base/mem.h"

enum { TAP_FD_IN_QEMU = 3 };

static int socket_path(char *out, const char *dir, const char *name, struct error *err)
{
    if (snprintf(out, QEMU_SOCKET_MAX, "%s/%s", dir, name) >= QEMU_SOCKET_MAX) {
        error_errno(err, ENAMETOOLONG, "the socket path %.200s/%s is longer than %d bytes", dir, name,
                    QEMU_SOCKET_MAX - 1);
        error_help(err, "start vmmd with a shorter --runtime-dir");
        return -1;
    }
    return 0;
}

int plan_paths(const struct backend_vm *bvm, struct plan_paths *ret, struct error *err)
{
    if (socket_path(ret->qmp, bvm->run_dir, "qmp.sock", err) < 0 ||
        socket_path(ret->console, bvm->run_dir, "console.sock", err) < 0 ||
        socket_path(ret->agent, bvm->run_dir, "agent.sock", err) < 0 ||
        socket_path(ret->vnc, bvm->run_dir, "vnc.sock", err) < 0)
        return -1;
    snprintf(ret->pidfile, sizeof(ret->pidfile), "%.*s/qemu.pid", QEMU_SOCKET_MAX, bvm->run_dir);
    return 0;
}

static bool has_machine(const struct qemu_host *host, const char *name)
{
    json_t *item;
    size_t i;

    json_array_foreach(host->machines, i, item)
    {
        if (strcmp(json_string_value(item), name) == 0)
            return true;
    }
    return false;
}

/* A VM keeps the machine version it was first started with while QEMU has it. */
static const char *machine_type(const struct backend_vm *bvm)
{
    const char *recorded = bvm->vm->runtime.machine_type;

    if (bvm->vm->spec.machine == VM_MACHINE_MICROVM)
        return "microvm";
    if (recorded && strncmp(recorded, "pc-q35-", 7) == 0 && has_machine(&bvm->be->host, recorded))
        return recorded;
    return bvm->be->host.machine_q35;
}

void plan_make(struct backend_vm *bvm, const struct plan_paths *paths, struct qemu_plan *plan)
{
    struct vm *vm = bvm->vm;
    struct vm_spec *spec = &vm->spec;
    struct qemu_host *host = &bvm->be->host;
    const char *accel = qemu_accel(bvm->be, spec);

    *plan = (struct qemu_plan){
        .binary = host->binary,
        .id = bvm->id,
        .name = vm->name,
        .machine = spec->machine,
        .machine_type = machine_type(bvm),
        .accel = accel,
        .cpu_model = strcmp(accel, "kvm") == 0 ? "host" : "max",
        .vcpus = spec->vcpus,
        .memory_mb = spec->memory_mb,
        .tsc_khz = host->tsc_khz,
        .firmware_code = spec->uefi ? host->uefi_code : NULL,
        .firmware_vars = spec->uefi ? bvm->vars : NULL,
        .overlay = vm_spec_has_image(spec) ? bvm->overlay : NULL,
        .base = vm_base_path(vm),
        .base_format = vm->runtime.disk_format,
        .seed = spec->has_cloud_init ? bvm->seed : NULL,
        .network = spec->network.type,
        .mac = vm->runtime.mac_addr,
        .forwards = spec->network.forwards,
        .n_forwards = spec->network.n_forwards,
        .ssh_host_port = spec->network.type == VM_NETWORK_USER ? vm->runtime.ssh_host_port : 0,
        .tap_fd = TAP_FD_IN_QEMU,
        .vga = spec->display == VM_DISPLAY_VGA,
        .vnc_socket = paths->vnc,
        .qmp_socket = paths->qmp,
        .console_socket = paths->console,
        .agent_socket = paths->agent,
        .pidfile = paths->pidfile,
    };
    if (spec->has_boot) {
        plan->kernel = spec->boot.kernel;
        plan->initrd = spec->boot.initrd;
        plan->cmdline = spec->boot.cmdline;
    }
}

void plan_record(struct backend_vm *bvm, const struct plan_paths *paths, const struct qemu_plan *plan)
{
    struct vm_runtime *rt = &bvm->vm->runtime;

    set_text(&rt->accel, plan->accel);
    if (!rt->machine_type || strcmp(rt->machine_type, plan->machine_type) != 0)
        set_text(&rt->machine_type, plan->machine_type);
    set_text(&rt->cpu_model, plan->cpu_model);
    set_text(&rt->qemu_version, bvm->be->host.version);
    set_text(&rt->qmp_socket, paths->qmp);
    set_text(&rt->console_socket, paths->console);
    if (plan->vga) {
        CLEANUP_FREE char *addr = mem_printf("unix:%s", paths->vnc);

        set_text(&rt->vnc_addr, addr);
    } else {
        set_text(&rt->vnc_addr, NULL);
    }
}
