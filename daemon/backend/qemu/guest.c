/* guest.c - the ways into a guest that runs: its agent, and SSH where the VM has a key.
 *
 *   opened with the run ─► agent: pinged until it answers ─► `true` runs, where there is no SSH
 *                      ├─► observe.c: what the guest is seen to be ─► on a bridge, the address that SSH waits for
 *                      └─► SSH: `true` runs as soon as sshd answers ─► `ssh`; the host key is pinned at that first contact
 *
 * Failures.  The connection is lost: told, and looked for again.  The address is another: SSH begins anew there.  The guest resets: all is closed and begins anew.  The
 * process ends: everything here ends with it, and what was running in the guest fails. */
#include <stdio.h>
#include <string.h>

#include "backend/qemu/internal.h"
#include "backend/qemu/observe.h"
#include "base/clock.h"
#include "base/fd.h"
#include "base/log.h"
#include "base/mem.h"
#include "guest/agent_exec.h"
#include "guest/agent_files.h"

enum { AGENT_INTERVAL_MS = 10000, PROBE_AGAIN_MS = 1000 };

static void probe(struct backend_vm *bvm);

/* ---- the agent ---- */

static void probe_output(void *arg, bool is_stderr, const char *data, size_t len)
{
    (void)arg;
    (void)is_stderr;
    (void)data;
    (void)len;
}

/* The user that a seed makes may not be there yet; that there is none is worth telling, and no reason to wait for ever. */
static void agent_probed(void *arg, const struct exec_end *end, struct error *err)
{
    struct backend_vm *bvm = arg;
    const struct vm_spec *spec = &bvm->vm->spec;
    bool no_user = !end && err->code == ERR_API_INVALID_FIELD;
    char message[160] = "";

    exec_free(TAKE_PTR(bvm->agent_probe));
    if (no_user)
        snprintf(message, sizeof(message), "the guest has no user %.60s: commands must name one", vm_ssh_user(bvm->vm));
    else if (!end)
        snprintf(message, sizeof(message), "%.159s", err->n_causes > 0 ? err->causes[0] : err->message);
    if (end || (no_user && !(spec->has_cloud_init && !spec->cloud_init.user_data))) {
        bvm->events->agent_runs(bvm->arg, true, message);
        return;
    }
    bvm->events->agent_runs(bvm->arg, false, message);
    if (bvm->guest_timer)
        timer_start(bvm->guest_timer, no_user ? PROBE_AGAIN_MS : 10 * PROBE_AGAIN_MS, 0);
}

/* Only a command that ran, as the user that commands get, shows that they do. */
static void agent_probe(struct backend_vm *bvm)
{
    static const char *const command[] = {"true"};
    static const struct exec_events events = {.output = probe_output, .ended = agent_probed};
    const struct exec_request req = {
        .command = command, .n_command = 1, .default_user = vm_ssh_user(bvm->vm), .via = EXEC_AGENT};
    CLEANUP_ERROR struct error err = ERROR_INIT;

    if (bvm->ssh || bvm->agent_probe || !bvm->agent || !agent_is_up(bvm->agent))
        return;
    bvm->agent_probe = agent_exec(bvm->be->loop, bvm->agent, bvm->vm->name, &req, &events, bvm, &err);
    if (!bvm->agent_probe && bvm->guest_timer)
        timer_start(bvm->guest_timer, PROBE_AGAIN_MS, 0);
}

static void agent_up(void *arg)
{
    struct backend_vm *bvm = arg;

    bvm->events->agent(bvm->arg, true);
    observe_agent_up(bvm);
    agent_probe(bvm);
    if (bvm->ssh && !bvm->ssh_answers) { /* the guest is up: it is tried at once */
        exec_free(TAKE_PTR(bvm->probe));
        probe(bvm);
    }
}

static void agent_down(void *arg)
{
    struct backend_vm *bvm = arg;

    exec_free(TAKE_PTR(bvm->agent_probe));
    bvm->events->agent(bvm->arg, false);
}

static void agent_begin(struct backend_vm *bvm)
{
    static const struct agent_events events = {.up = agent_up, .down = agent_down};
    CLEANUP_ERROR struct error err = ERROR_INIT;
    struct plan_paths paths;

    /* Without it the VM runs; it only never gets ready. */
    if (!bvm->agent && plan_paths(bvm, &paths, &err) == 0)
        bvm->agent = agent_new(bvm->be->loop, paths.agent, &events, bvm, &err);
    if (bvm->agent)
        agent_start_probing(bvm->agent, AGENT_INTERVAL_MS);
}

/* ---- SSH ---- */

struct known_hosts_job {
    struct job job;
    char path[PATH_MAX];
    char *text;
};

static int known_hosts_fn(struct job *job, struct error *err)
{
    struct known_hosts_job *k = CONTAINER_OF(job, struct known_hosts_job, job);

    return file_write(k->path, k->text, strlen(k->text), 0600, err);
}

static void known_hosts_done(struct backend_vm *bvm, struct job *job, int rc, struct error *err)
{
    (void)job;
    if (rc < 0)
        LOG_WARN("known_hosts of a VM could not be written", "vm", bvm->vm->name, "error", err->message);
    else
        bvm->events->runtime_changed(bvm->arg);
}

static void known_hosts_free(struct job *job)
{
    struct known_hosts_job *k = CONTAINER_OF(job, struct known_hosts_job, job);

    mem_free(k->text);
    mem_free(k);
}

/* Under the VM's id, which `vmctl ssh` asks for, and under its address for everybody else. */
static char *known_hosts_line(const struct backend_vm *bvm, const char *host_key)
{
    uint16_t port;
    const char *host = vm_ssh_host(bvm->vm, &port);

    if (!host)
        return NULL;
    return port == 22 ? mem_printf("%s,%s %s\n", bvm->id, host, host_key)
                      : mem_printf("%s,[%s]:%u %s\n", bvm->id, host, port, host_key);
}

static void host_key_seen(void *arg, const char *host_key)
{
    struct backend_vm *bvm = arg;
    CLEANUP_ERROR struct error err = ERROR_INIT;
    struct known_hosts_job *k = mem_zalloc(sizeof(*k));

    set_text(&bvm->vm->runtime.ssh_host_key, host_key);
    if (!k)
        return;
    k->job.fn = known_hosts_fn;
    k->job.done = known_hosts_done;
    k->job.free = known_hosts_free;
    k->text = known_hosts_line(bvm, host_key);
    if (path_join(k->path, sizeof(k->path), bvm->work_dir, KNOWN_HOSTS_NAME, &err) < 0 || !k->text) {
        known_hosts_free(&k->job);
        return;
    }
    if (job_run(bvm, &k->job, &err) < 0)
        LOG_WARN("known_hosts of a VM could not be written", "vm", bvm->vm->name, "error", err.message);
}

static void probe_ended(void *arg, const struct exec_end *end, struct error *err)
{
    struct backend_vm *bvm = arg;

    exec_free(TAKE_PTR(bvm->probe));
    if (end && end->exit_code == 0) {
        bvm->ssh_answers = true;
        bvm->events->ssh(bvm->arg, true);
        return;
    }
    LOG_DEBUG("ssh does not answer", "vm", bvm->vm->name, "why",
              err->n_causes > 0   ? err->causes[0]
              : error_is_set(err) ? err->message
                                  : "true failed");
    if (bvm->guest_timer)
        timer_start(bvm->guest_timer, PROBE_AGAIN_MS, 0);
}

static void probe(struct backend_vm *bvm)
{
    static const struct exec_events events = {.ended = probe_ended};
    CLEANUP_ERROR struct error err = ERROR_INIT;

    if (bvm->probe || !bvm->ssh)
        return;
    bvm->probe = ssh_probe(bvm->ssh, &events, bvm, &err);
    if (bvm->probe)
        return;
    LOG_WARN("ssh to a guest cannot be tried", "vm", bvm->vm->name, "error", err.message);
    timer_start(bvm->guest_timer, 10 * PROBE_AGAIN_MS, 0);
}

static void ssh_lost(void *arg)
{
    struct backend_vm *bvm = arg;

    if (!bvm->ssh_answers)
        return;
    bvm->ssh_answers = false;
    bvm->events->ssh(bvm->arg, false);
    timer_start(bvm->guest_timer, PROBE_AGAIN_MS, 0);
}

static void ssh_begin(struct backend_vm *bvm)
{
    static const struct ssh_events events = {.host_key = host_key_seen, .lost = ssh_lost};
    CLEANUP_ERROR struct error err = ERROR_INIT;
    char helper[PATH_MAX];
    struct ssh_config config = {
        .helper = helper,
        .dir = bvm->work_dir,
        .vm_name = bvm->vm->name,
        .user = vm_ssh_user(bvm->vm),
        .key_path = vm_ssh_key(bvm->vm),
        .host_key = bvm->vm->runtime.ssh_host_key,
    };

    config.host = vm_ssh_host(bvm->vm, &config.port);
    if (!config.key_path || !config.host || !bvm->guest_timer ||
        path_join(helper, sizeof(helper), bvm->be->helper_dir, "vmmd-ssh", &err) < 0)
        return;
    snprintf(bvm->ssh_host, sizeof(bvm->ssh_host), "%s", config.host);
    bvm->ssh = ssh_new(bvm->be->loop, &config, &events, bvm, &err);
    probe(bvm);
}

/* What has not answered is asked again. */
static void guest_turn(void *arg)
{
    struct backend_vm *bvm = arg;

    if (bvm->ssh && !bvm->ssh_answers)
        probe(bvm);
    agent_probe(bvm);
}

/* ---- the whole ---- */

/* A guest without a disk makes itself a new host key each time it boots: the pin is for one boot. */
static void forget_pin(struct backend_vm *bvm)
{
    if (!bvm->vm->spec.image)
        set_text(&bvm->vm->runtime.ssh_host_key, NULL);
}

void guest_begin(struct backend_vm *bvm)
{
    forget_pin(bvm);
    guest_open(bvm);
}

void guest_open(struct backend_vm *bvm)
{
    if (!bvm->guest_timer)
        bvm->guest_timer = timer_new(bvm->be->loop, guest_turn, bvm);
    agent_begin(bvm);
    observe_start(bvm, bvm->vm->runtime.started_at > 0 ? clock_wall_ms() - bvm->vm->runtime.started_at : 0);
    if (!bvm->ssh)
        ssh_begin(bvm);
}

static void ssh_end(struct backend_vm *bvm, bool gone)
{
    exec_free(TAKE_PTR(bvm->probe));
    ssh_free(TAKE_PTR(bvm->ssh), gone);
    bvm->ssh_answers = false;
}

void guest_reopen(struct backend_vm *bvm)
{
    exec_free(TAKE_PTR(bvm->agent_probe));
    ssh_end(bvm, true);
    forget_pin(bvm);
    if (bvm->started && bvm->guest_timer)
        ssh_begin(bvm);
}

void guest_addresses_told(struct backend_vm *bvm)
{
    uint16_t port;
    const char *host = vm_ssh_host(bvm->vm, &port);

    if (!bvm->guest_timer || (bvm->ssh && host && strcmp(host, bvm->ssh_host) == 0))
        return;
    if (bvm->ssh) {
        ssh_lost(bvm);
        ssh_end(bvm, true);
    }
    if (host)
        ssh_begin(bvm);
    agent_probe(bvm);
}

void guest_close(struct backend_vm *bvm)
{
    exec_free(TAKE_PTR(bvm->agent_probe));
    ssh_end(bvm, !bvm->alive);
    observe_stop(bvm);
    agent_free(TAKE_PTR(bvm->agent));
    timer_free(TAKE_PTR(bvm->guest_timer));
}

/* ---- commands and files ---- */

#define NO_CHANNEL "has neither a key and an address for SSH nor a guest agent that answers"
#define NO_CHANNEL_HELP "wait until it is ready; create it with cloud_init, or with an agent in its image"

static struct exec *unavailable(struct backend_vm *bvm, const char *what, const char *help, struct error *err)
{
    error_set(err, ERR_GUEST_UNAVAILABLE, "VM %s %s", bvm->vm->name, what);
    error_help(err, "%s", help);
    return NULL;
}

struct exec *qemu_exec(struct backend_vm *bvm, const struct exec_request *req, const struct exec_events *events,
                       void *arg, struct error *err)
{
    bool agent = bvm->agent && agent_is_up(bvm->agent);

    if (req->via == EXEC_VSOCK) {
        error_set(err, ERR_LIFECYCLE_VSOCK_UNAVAILABLE, "VM %s has no vsock", bvm->vm->name);
        return NULL;
    }
    if (req->via == EXEC_SSH && !bvm->ssh)
        return unavailable(bvm,
                           vm_ssh_key(bvm->vm) ? "has no address to reach it by SSH" : "has no key to reach it by SSH",
                           "create it with cloud_init (and a network), or take \"via\":\"agent\"", err);
    if (req->via == EXEC_AGENT && !agent)
        return unavailable(bvm, "has no guest agent that answers",
                           "install and start qemu-guest-agent in the guest, or take \"via\":\"ssh\"", err);
    if (bvm->ssh && req->via != EXEC_AGENT)
        return ssh_exec(bvm->ssh, req, events, arg, err);
    if (agent)
        return agent_exec(bvm->be->loop, bvm->agent, bvm->vm->name, req, events, arg, err);
    return unavailable(bvm, NO_CHANNEL, NO_CHANNEL_HELP, err);
}

struct files *qemu_files(struct backend_vm *bvm, const struct files_request *req, const struct files_events *events,
                         void *arg, struct error *err)
{
    if (bvm->ssh)
        return ssh_files(bvm->ssh, req, events, arg, err);
    if (bvm->agent && agent_is_up(bvm->agent))
        return agent_files(bvm->be->loop, bvm->agent, bvm->vm->name, vm_ssh_user(bvm->vm), req, events, arg, err);
    unavailable(bvm, NO_CHANNEL, NO_CHANNEL_HELP, err);
    return NULL;
}
