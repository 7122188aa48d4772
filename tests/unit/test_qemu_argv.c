/* test_qemu_argv.c - QEMU's command line against golden files, one option per line.
 * GOLDEN_UPDATE=1 rewrites the files. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "backend/qemu/argv.h"
#include "base/buf.h"
#include "base/fd.h"
#include "base/mem.h"

#define GOLDEN_DIR "tests/unit/golden"

static const struct vm_forward forwards[] = {
    {.host_ip = "127.0.0.1", .host_port = 8080, .guest_port = 80},
    {.udp = true, .host_ip = "127.0.0.1", .host_port = 5353, .guest_port = 53},
};

static struct qemu_plan plan_q35(void)
{
    return (struct qemu_plan){
        .binary = "/usr/bin/qemu-system-x86_64",
        .id = "01980000-0000-7000-8000-000000000001",
        .name = "web",
        .machine = VM_MACHINE_Q35,
        .machine_type = "pc-q35-7.2",
        .accel = "tcg",
        .cpu_model = "max",
        .vcpus = 2,
        .memory_mb = 256,
        .tsc_khz = 2445000,
        .network = VM_NETWORK_NONE,
        .mac = "52:54:00:12:34:56",
        .qmp_socket = "/run/vmmd/vms/0001/qmp.sock",
        .console_socket = "/run/vmmd/vms/0001/console.sock",
        .agent_socket = "/run/vmmd/vms/0001/agent.sock",
        .vnc_socket = "/run/vmmd/vms/0001/vnc.sock",
        .pidfile = "/run/vmmd/vms/0001/qemu.pid",
    };
}

static struct qemu_plan plan_direct(void)
{
    struct qemu_plan p = plan_q35();

    p.kernel = "/srv/vmlinuz";
    p.initrd = "/srv/initrd.img";
    return p;
}

static void with_disk(struct qemu_plan *p)
{
    p->overlay = "/var/lib/vmmd/vms/01980000-0000-7000-8000-000000000001/overlay.qcow2";
    p->base = "/srv/debian.qcow2";
    p->base_format = "qcow2";
    p->seed = "/var/lib/vmmd/vms/01980000-0000-7000-8000-000000000001/seed.iso";
}

static void with_user_net(struct qemu_plan *p)
{
    p->network = VM_NETWORK_USER;
    p->ssh_host_port = 40022;
    p->forwards = forwards;
    p->n_forwards = ARRAY_SIZE(forwards);
}

/* One option per line with its value; nothing of it may hold a newline. */
static void render(char **argv, struct buf *out)
{
    for (size_t i = 0; argv[i]; i++) {
        assert_null(strchr(argv[i], '\n'));
        if (i > 0)
            buf_char(out, argv[i][0] == '-' ? '\n' : ' ');
        buf_str(out, argv[i]);
    }
    buf_char(out, '\n');
    assert_false(out->failed);
}

static void check_golden(const char *name, const struct qemu_plan *plan)
{
    CLEANUP_ERROR struct error err = ERROR_INIT;
    CLEANUP_BUF struct buf got = BUF_INIT(1 << 20);
    CLEANUP_FREE char *want = NULL;
    char path[256];
    size_t len;
    char **argv;

    assert_int_equal(qemu_argv_build(plan, &argv, &err), 0);
    render(argv, &got);
    qemu_argv_free(argv);
    snprintf(path, sizeof(path), GOLDEN_DIR "/%s.argv", name);
    if (getenv("GOLDEN_UPDATE"))
        assert_int_equal(file_write(path, got.data, got.len, 0644, &err), 0);
    if (file_read(path, 1 << 20, &want, &len, &err) < 0)
        fail_msg("%s", err.message);
    assert_string_equal(got.data, want);
}

static void test_direct(void **state)
{
    struct qemu_plan p = plan_direct();

    (void)state;
    check_golden("q35-direct", &p);
}

static void test_bios(void **state)
{
    struct qemu_plan p = plan_q35();

    (void)state;
    with_disk(&p);
    with_user_net(&p);
    p.accel = "kvm";
    p.cpu_model = "host";
    check_golden("q35-bios-user", &p);
}

static void test_uefi(void **state)
{
    struct qemu_plan p = plan_q35();

    (void)state;
    with_disk(&p);
    p.base = "/srv/disk.raw";
    p.base_format = "raw";
    p.firmware_code = "/usr/share/OVMF/OVMF_CODE_4M.fd";
    p.firmware_vars = "/var/lib/vmmd/vms/01980000-0000-7000-8000-000000000001/vars.fd";
    check_golden("q35-uefi", &p);
}

static void test_microvm(void **state)
{
    struct qemu_plan p = plan_direct();

    (void)state;
    p.machine = VM_MACHINE_MICROVM;
    p.machine_type = "microvm";
    with_disk(&p);
    with_user_net(&p);
    check_golden("microvm", &p);
}

static void test_tap(void **state)
{
    struct qemu_plan p = plan_direct();

    (void)state;
    p.network = VM_NETWORK_TAP;
    p.tap_fd = 3;
    check_golden("q35-tap", &p);
}

static void test_vga(void **state)
{
    struct qemu_plan p = plan_q35();

    (void)state;
    p.vga = true;
    with_disk(&p);
    check_golden("q35-vga", &p);
}

static void test_odd_paths(void **state)
{
    struct qemu_plan p = plan_q35();

    (void)state;
    with_disk(&p);
    p.vga = true;
    p.overlay = "/srv/a,b \"c\"/overlay.qcow2";
    p.base = "/srv/-x,file.driver=null-co/base'.qcow2";
    p.seed = "/srv/s\\eed,.iso";
    p.qmp_socket = "/run/a,b/qmp.sock";
    p.console_socket = "/run/a,,b/console.sock";
    p.agent_socket = "/run/a=b,server=off/agent.sock";
    p.vnc_socket = "/run/a,b/vnc.sock";
    p.kernel = "/srv/vmlinuz,x";
    p.cmdline = "-S init=/bin/sh,x \"y\"";
    check_golden("q35-odd-paths", &p);
}

static const char *value_of(char **argv, const char *option)
{
    for (size_t i = 0; argv[i]; i++) {
        if (strcmp(argv[i], option) == 0)
            return argv[i + 1];
    }
    return NULL;
}

static void check_append(const struct qemu_plan *p, const char *want)
{
    CLEANUP_ERROR struct error err = ERROR_INIT;
    char **argv;

    assert_int_equal(qemu_argv_build(p, &argv, &err), 0);
    assert_string_equal(value_of(argv, "-append"), want);
    qemu_argv_free(argv);
}

static void test_append(void **state)
{
    struct qemu_plan p = plan_direct();

    (void)state;
    check_append(&p, "console=ttyS0 quiet");
    p.cmdline = "";
    check_append(&p, "");
    p.machine = VM_MACHINE_MICROVM;
    check_append(&p, "tsc_early_khz=2445000");
    p.cmdline = "a=b";
    check_append(&p, "a=b tsc_early_khz=2445000");
    p.cmdline = "tsc_early_khz=1 a";
    check_append(&p, "tsc_early_khz=1 a");
    p.accel = "kvm";
    p.cmdline = "a=b";
    check_append(&p, "a=b");
    p.cmdline = NULL;
    p.initrd = NULL;
    p.overlay = "/o";
    p.base = "/b";
    p.base_format = "raw";
    check_append(&p, "console=ttyS0 quiet root=/dev/vda1 rw");
}

static void test_refuses_invalid_utf8(void **state)
{
    CLEANUP_ERROR struct error err = ERROR_INIT;
    struct qemu_plan p = plan_q35();
    char **argv = NULL;

    (void)state;
    with_disk(&p);
    p.base = "/srv/\xff.qcow2";
    assert_int_equal(qemu_argv_build(&p, &argv, &err), -1);
    assert_int_equal(err.code, ERR_DAEMON_INTERNAL);
    assert_null(argv);
}

/* Every allocation fails once: an error, no leak (the sanitizers look), no half a command line. */
static void test_no_memory(void **state)
{
    struct qemu_plan p = plan_direct();

    (void)state;
    with_disk(&p);
    with_user_net(&p);
    for (size_t nth = 1;; nth++) {
        CLEANUP_ERROR struct error err = ERROR_INIT;
        char **argv = NULL;

        mem_fail_nth(nth);
        int rc = qemu_argv_build(&p, &argv, &err);
        size_t made = mem_fail_nth(0);

        if (made < nth) {
            assert_int_equal(rc, 0);
            qemu_argv_free(argv);
            assert_true(nth > 50);
            return;
        }
        assert_int_equal(rc, -1);
        assert_null(argv);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_direct),    cmocka_unit_test(test_bios),   cmocka_unit_test(test_uefi),
        cmocka_unit_test(test_microvm),   cmocka_unit_test(test_tap),    cmocka_unit_test(test_vga),
        cmocka_unit_test(test_odd_paths), cmocka_unit_test(test_append), cmocka_unit_test(test_refuses_invalid_utf8),
        cmocka_unit_test(test_no_memory),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
