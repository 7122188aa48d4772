/* test_qemu_backend.c - the QEMU backend on a real QEMU: its firmware finds nothing to boot on a tiny raw disk, which is
 * guest enough to start, suspend, resume, reset, kill and adopt.  Every test leaves no process and no file behind. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include <arpa/inet.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "backend/console.h"
#include "backend/qemu/qemu.h"
#include "base/clock.h"
#include "base/fd.h"
#include "base/mem.h"
#include "loop/timer.h"

enum { PATIENCE_MS = 30000 };

struct fixture {
    struct loop *loop;
    struct backend *be;
    char dir[64];
    char data[96];
    char run[96];
    char image[96];
    struct vm vm;
    struct backend_vm *bvm;
    struct timer *patience;
    struct backend_call call;
    bool done;
    struct error err;
    /* events */
    int exits, resets, io_errors, mute_told;
    struct backend_exit end;
    char stderr_tail[256];
};

static void on_done(struct backend_call *call, struct error *err)
{
    struct fixture *f = CONTAINER_OF(call, struct fixture, call);

    assert_false(f->done);
    f->done = true;
    if (error_is_set(err))
        error_move(&f->err, err);
}

static void on_exited(void *arg, const struct backend_exit *end)
{
    struct fixture *f = arg;

    f->exits++;
    f->end = *end;
    snprintf(f->stderr_tail, sizeof(f->stderr_tail), "%.255s", end->stderr_tail);
}

static void on_reset(void *arg)
{
    ((struct fixture *)arg)->resets++;
}

static void on_agent(void *arg, bool answers)
{
    (void)arg;
    (void)answers;
}

static void on_io_error(void *arg, const char *reason)
{
    (void)reason;
    ((struct fixture *)arg)->io_errors++;
}

static void on_mute(void *arg, bool mute)
{
    if (mute)
        ((struct fixture *)arg)->mute_told++;
}

static void on_addresses(void *arg, const struct vm_address *list, unsigned n)
{
    (void)arg;
    (void)list;
    (void)n;
}

static void on_cloud_init(void *arg, bool done, const char *reason, const char *message)
{
    (void)arg;
    (void)done;
    (void)reason;
    (void)message;
}

static void on_ssh(void *arg, bool answers)
{
    (void)arg;
    (void)answers;
}

static void on_agent_runs(void *arg, bool runs, const char *message)
{
    (void)arg;
    (void)runs;
    (void)message;
}

static void on_runtime_changed(void *arg)
{
    (void)arg;
}

static const struct backend_events events = {.exited = on_exited,
                                             .guest_reset = on_reset,
                                             .agent = on_agent,
                                             .agent_runs = on_agent_runs,
                                             .ssh = on_ssh,
                                             .runtime_changed = on_runtime_changed,
                                             .addresses = on_addresses,
                                             .cloud_init = on_cloud_init,
                                             .io_error = on_io_error,
                                             .unresponsive = on_mute};

static void out_of_patience(void *arg)
{
    (void)arg;
    fail_msg("nothing happened for %d ms", PATIENCE_MS);
}

static void wait_for(struct fixture *f, const bool *flag, const int *count)
{
    timer_start(f->patience, PATIENCE_MS, 0);
    while (!(flag && *flag) && !(count && *count > 0))
        loop_run_once(f->loop, true);
    timer_stop(f->patience);
}

/* Ends a verb: its own failure is an error like one that comes later. */
static int finish(struct fixture *f, int rc)
{
    if (rc == OP_WAIT) {
        wait_for(f, &f->done, NULL);
        rc = error_is_set(&f->err) ? -1 : 0;
    } else {
        assert_false(f->done);
    }
    assert_int_equal(rc == 0, !error_is_set(&f->err));
    return rc;
}

#define DO(f, verb)                                                      \
    ((f)->done = false, error_done(&(f)->err), (f)->call.done = on_done, \
     finish((f), (f)->be->verb((f)->bvm, &(f)->call, &(f)->err)))
#define OK(f, verb)                                                                                    \
    do {                                                                                               \
        if (DO(f, verb) != 0)                                                                          \
            fail_msg(#verb ": %s: %s", (f)->err.message, (f)->err.n_causes ? (f)->err.causes[0] : ""); \
    } while (0)

static void probe_done(void *arg)
{
    *(bool *)arg = true;
}

static void make_image(struct fixture *f)
{
    char *bytes = calloc(1, 1 << 20);
    struct error err = ERROR_INIT;

    bytes[446 + 4] = (char)0x83;
    bytes[446 + 12] = 1;
    bytes[510] = 0x55;
    bytes[511] = (char)0xaa;
    assert_int_equal(file_write(f->image, bytes, 1 << 20, 0644, &err), 0);
    free(bytes);
}

static void make_vm(struct fixture *f)
{
    f->vm.id = uuid_new();
    f->vm.name = mem_strdup("tiny");
    f->vm.backend = "qemu";
    f->vm.spec.image = mem_strdup(f->image);
    f->vm.spec.vcpus = 1;
    f->vm.spec.memory_mb = 32;
    f->vm.spec.network.type = VM_NETWORK_NONE;
    f->vm.spec.has_cloud_init = true;
    f->vm.spec.ssh.user = mem_strdup("vm");
}

static int setup(void **state)
{
    struct fixture *f = calloc(1, sizeof(*f));
    const char *tmp = getenv("TMPDIR");
    char helpers[PATH_MAX];
    bool probed = false;

    snprintf(f->dir, sizeof(f->dir), "%.30s/vmmd-qemu-XXXXXX", tmp ? tmp : "/tmp");
    assert_non_null(mkdtemp(f->dir));
    snprintf(f->data, sizeof(f->data), "%s/data", f->dir);
    snprintf(f->run, sizeof(f->run), "%s/run", f->dir);
    snprintf(f->image, sizeof(f->image), "%s/a,b \"c\".raw", f->dir);
    assert_int_equal(mkdir(f->data, 0700) | mkdir(f->run, 0700), 0);
    assert_non_null(realpath(getenv("VMMD_BUILD") ? getenv("VMMD_BUILD") : "build", helpers));
    make_image(f);
    make_vm(f);
    f->loop = loop_new(&f->err);
    assert_non_null(f->loop);
    f->patience = timer_new(f->loop, out_of_patience, f);
    const struct qemu_config config = {.data_dir = f->data, .runtime_dir = f->run, .helper_dir = helpers};
    f->be = qemu_backend_new(f->loop, &config, &f->err);
    assert_non_null(f->be);
    assert_int_equal(f->be->check(f->be, &f->vm.spec, &f->err), -1); /* not probed yet */
    assert_int_equal(f->err.code, ERR_BACKEND_NOT_AVAILABLE);
    error_done(&f->err);
    assert_int_equal(qemu_backend_probe(f->be, probe_done, &probed, &f->err), 0);
    wait_for(f, &probed, NULL);
    f->vm.spec.accel = VM_ACCEL_TCG;
    if (f->be->check(f->be, &f->vm.spec, &f->err) < 0)
        fail_msg("check: %s", f->err.message);
    f->bvm = f->be->attach(f->be, &f->vm, &events, f, &f->err);
    assert_non_null(f->bvm);
    *state = f;
    return 0;
}

static bool exists(const char *dir, const char *name)
{
    char path[PATH_MAX];

    assert_int_equal(path_join(path, sizeof(path), dir, name, NULL), 0);
    return access(path, F_OK) == 0;
}

static int teardown(void **state)
{
    struct fixture *f = *state;

    if (f->bvm) {
        DO(f, kill);
        DO(f, remove);
        f->be->detach(f->bvm);
    }
    f->be->free(f->be);
    timer_free(f->patience);
    assert_int_equal(loop_free(f->loop), 0);
    vm_done(&f->vm);
    error_done(&f->err);
    dir_remove(f->dir, NULL);
    free(f);
    return 0;
}

static void start(struct fixture *f)
{
    OK(f, prepare);
    OK(f, spawn);
    OK(f, greet);
    OK(f, verify);
}

static const char *work_dir(struct fixture *f)
{
    assert_non_null(f->vm.runtime.work_dir);
    return f->vm.runtime.work_dir;
}

static void test_life(void **state)
{
    struct fixture *f = *state;
    char work[PATH_MAX], log[PATH_MAX];

    OK(f, create);
    snprintf(work, sizeof(work), "%s", work_dir(f));
    assert_true(exists(work, "overlay.qcow2"));
    assert_true(exists(work, "seed.iso"));
    assert_string_equal(f->vm.runtime.disk_format, "raw");
    start(f);
    assert_string_equal(f->vm.runtime.accel, "tcg");
    assert_true(strncmp(f->vm.runtime.machine_type, "pc-q35-", 7) == 0);
    assert_int_equal(kill(f->vm.runtime.pid, 0), 0);
    assert_non_null(f->be->console(f->bvm));
    OK(f, suspend);
    OK(f, resume);
    OK(f, reset);
    wait_for(f, NULL, &f->resets);
    OK(f, press);
    OK(f, kill);
    assert_int_equal(f->exits, 0);
    assert_int_equal(access(f->vm.runtime.qmp_socket, F_OK), -1);
    assert_int_equal(f->be->log_path(f->be, &f->vm, BACKEND_LOG_VMM, log), 0);
    assert_int_equal(access(log, R_OK), 0);
    OK(f, sweep);
    start(f); /* again, with the same attachment */
    OK(f, kill);
    OK(f, kill); /* nothing to end */
    OK(f, remove);
    OK(f, remove);
    assert_int_equal(access(work, F_OK), -1);
}

static void test_killed_by_others(void **state)
{
    struct fixture *f = *state;

    OK(f, create);
    start(f);
    assert_int_equal(kill(f->vm.runtime.pid, SIGKILL), 0);
    wait_for(f, NULL, &f->exits);
    assert_int_equal(f->end.end, BACKEND_END_KILLED);
    assert_true(f->end.status.known);
    assert_int_equal(f->end.status.signal, SIGKILL);
    assert_string_equal(f->end.detail, "QEMU was killed by SIGKILL");
    assert_int_equal(access(f->vm.runtime.qmp_socket, F_OK), -1);
    assert_int_equal(DO(f, suspend), -1);
    assert_int_equal(f->exits, 1);
}

static void test_terminated(void **state)
{
    struct fixture *f = *state;

    OK(f, create);
    start(f);
    assert_int_equal(f->be->terminate(f->bvm, &f->err), 0);
    wait_for(f, NULL, &f->exits);
    assert_int_equal(f->end.end, BACKEND_END_GUEST_OFF);
    assert_non_null(strstr(f->stderr_tail, "terminating on signal 15"));
    assert_int_equal(f->be->terminate(f->bvm, &f->err), -1);
}

static void forget(struct fixture *f)
{
    f->be->detach(f->bvm);
    f->bvm = f->be->attach(f->be, &f->vm, &events, f, &f->err);
    assert_non_null(f->bvm);
}

static void adopt(struct fixture *f, struct backend_adoption *a)
{
    f->done = false;
    f->call.done = on_done;
    if (finish(f, f->be->adopt(f->bvm, a, &f->call, &f->err)) < 0)
        fail_msg("adopt: %s", f->err.message);
}

static void test_adopt(void **state)
{
    struct fixture *f = *state;
    struct backend_adoption a;
    pid_t pid;

    OK(f, create);
    start(f);
    pid = f->vm.runtime.pid;
    forget(f);
    adopt(f, &a);
    assert_int_equal(a.found, BACKEND_FOUND_RUNNING);
    assert_int_equal(f->vm.runtime.pid, pid);
    OK(f, suspend);

    /* Without a record, by its command line. */
    f->be->detach(f->bvm);
    f->vm.runtime.pid = 0;
    mem_free(TAKE_PTR(f->vm.runtime.exe));
    f->bvm = f->be->attach(f->be, &f->vm, &events, f, &f->err);
    adopt(f, &a);
    assert_int_equal(a.found, BACKEND_FOUND_SUSPENDED);
    assert_int_equal(f->vm.runtime.pid, pid);

    /* An adopted one's end is noticed. */
    kill(pid, SIGKILL);
    wait_for(f, NULL, &f->exits);
    assert_int_equal(f->end.end, BACKEND_END_KILLED);

    /* Gone while nobody looked. */
    OK(f, sweep);
    start(f);
    f->be->detach(f->bvm);
    kill(f->vm.runtime.pid, SIGKILL);
    f->bvm = f->be->attach(f->be, &f->vm, &events, f, &f->err);
    timer_start(f->patience, PATIENCE_MS, 0); /* keeps the loop turning */
    for (int64_t until = clock_mono_ms() + 5000; kill(f->vm.runtime.pid, 0) == 0 && clock_mono_ms() < until;)
        loop_run_once(f->loop, false);
    adopt(f, &a);
    assert_int_equal(a.found, BACKEND_FOUND_NOTHING);
    assert_int_equal(access(f->vm.runtime.qmp_socket, F_OK), -1);
}

/* A stopped process answers nobody: found, told as mute, and killed all the same. */
static void test_adopt_mute(void **state)
{
    struct fixture *f = *state;
    struct backend_adoption a;

    OK(f, create);
    start(f);
    kill(f->vm.runtime.pid, SIGSTOP);
    forget(f);
    adopt(f, &a);
    assert_int_equal(a.found, BACKEND_FOUND_RUNNING);
    wait_for(f, NULL, &f->mute_told);
    assert_int_equal(DO(f, suspend), -1);
    assert_int_equal(f->err.code, ERR_VM_UNRESPONSIVE);
    OK(f, kill);
}

static void test_early_exit(void **state)
{
    struct fixture *f = *state;

    OK(f, create);
    OK(f, prepare);
    mem_free(f->vm.runtime.disk_format);
    f->vm.runtime.disk_format = mem_strdup("qcow2"); /* QEMU refuses the raw base */
    OK(f, spawn);
    assert_int_equal(DO(f, greet), -1);
    assert_int_equal(f->err.code, ERR_QEMU_SPAWN_FAILED);
    assert_true(f->err.n_causes > 0);
    assert_non_null(strstr(f->err.causes[f->err.n_causes - 1], "not in qcow2 format"));
    assert_int_equal(f->exits, 0);
    OK(f, kill);
    OK(f, sweep);
}

static void test_refusals(void **state)
{
    struct fixture *f = *state;

    f->vm.spec.disk_gb = 1;
    OK(f, create);
    f->vm.spec.disk_gb = 2; /* grown by a PATCH: at the next start */
    start(f);
    OK(f, kill);
    OK(f, remove);

    mem_free(f->vm.spec.image);
    f->vm.spec.image = mem_strdup("/nonexistent/image");
    assert_int_equal(DO(f, create), -1);
    assert_int_equal(f->err.code, ERR_IMAGE_NOT_FOUND);
    error_done(&f->err);
    f->vm.spec.machine = VM_MACHINE_MICROVM;
    assert_int_equal(f->be->check(f->be, &f->vm.spec, &f->err), -1);
    assert_string_equal(error_ctx_get(&f->err, "pointer"), "/spec/boot");
    error_done(&f->err);
    f->vm.spec.machine = VM_MACHINE_Q35;
    f->vm.spec.network.type = VM_NETWORK_TAP;
    f->vm.spec.network.bridge = mem_strdup("nosuchbridge");
    assert_int_equal(f->be->check(f->be, &f->vm.spec, &f->err), -1);
    assert_int_equal(f->err.code, ERR_NETWORK_BRIDGE_NOT_FOUND);
    error_done(&f->err);
    f->vm.spec.network.type = VM_NETWORK_NONE;
    f->vm.spec.memory_mb = UINT32_MAX;
    assert_int_equal(f->be->check(f->be, &f->vm.spec, &f->err), -1);
    assert_int_equal(f->err.code, ERR_HOST_INSUFFICIENT_MEMORY);
}

static void test_port_in_use(void **state)
{
    struct fixture *f = *state;
    struct sockaddr_in addr = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t len = sizeof(addr);
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

    assert_int_equal(bind(fd, (struct sockaddr *)&addr, sizeof(addr)), 0);
    assert_int_equal(listen(fd, 1), 0);
    assert_int_equal(getsockname(fd, (struct sockaddr *)&addr, &len), 0);
    assert_false(f->be->port_free(f->be, false, "127.0.0.1", ntohs(addr.sin_port)));
    f->vm.spec.network.type = VM_NETWORK_USER;
    snprintf(f->vm.runtime.mac_addr, sizeof(f->vm.runtime.mac_addr), "52:54:00:00:00:01");
    f->vm.runtime.ssh_host_port = ntohs(addr.sin_port);
    OK(f, create);
    assert_int_equal(DO(f, prepare), -1);
    assert_int_equal(f->err.code, ERR_NETWORK_PORT_IN_USE);
    assert_non_null(strstr(error_ctx_get(&f->err, "holder"), "test_qemu"));
    close(fd);
    assert_true(f->be->port_free(f->be, false, "127.0.0.1", f->vm.runtime.ssh_host_port));
    start(f);
}

/* Cancel at once: the call fails soon, and nothing stays behind. */
static void test_cancel(void **state)
{
    struct fixture *f = *state;
    char vms[PATH_MAX];

    f->done = false;
    f->call.done = on_done;
    assert_int_equal(f->be->create(f->bvm, &f->call, &f->err), OP_WAIT);
    f->be->cancel(f->bvm);
    wait_for(f, &f->done, NULL);
    assert_int_equal(f->err.code, ERR_OPERATION_CANCELLED);
    snprintf(vms, sizeof(vms), "%s/vms", f->data);
    assert_int_equal(rmdir(vms) == 0 || access(vms, F_OK) < 0, 1); /* empty, or never made */
    error_done(&f->err);
    OK(f, create);
    OK(f, prepare);
    OK(f, spawn);
    f->done = false;
    assert_int_equal(f->be->greet(f->bvm, &f->call, &f->err), OP_WAIT);
    f->be->cancel(f->bvm);
    assert_true(f->done);
    assert_int_equal(f->err.code, ERR_OPERATION_CANCELLED);
    error_done(&f->err);
    OK(f, kill);
    OK(f, sweep);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_life, setup, teardown),
        cmocka_unit_test_setup_teardown(test_killed_by_others, setup, teardown),
        cmocka_unit_test_setup_teardown(test_terminated, setup, teardown),
        cmocka_unit_test_setup_teardown(test_adopt, setup, teardown),
        cmocka_unit_test_setup_teardown(test_adopt_mute, setup, teardown),
        cmocka_unit_test_setup_teardown(test_early_exit, setup, teardown),
        cmocka_unit_test_setup_teardown(test_refusals, setup, teardown),
        cmocka_unit_test_setup_teardown(test_port_in_use, setup, teardown),
        cmocka_unit_test_setup_teardown(test_cancel, setup, teardown),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
