/* ssh_exec.c - a command over SSH.  See exec.h and ssh.h.
 *
 * Happy path: the request and the input go to the helper, output comes as the guest writes it, and at the end the exit
 * status or signal.  A pause stops the reading of its socket, and so the command.  Freeing closes the socket: the helper
 * kills the command's process group. */
#include <stdio.h>
#include <string.h>

#include "base/mem.h"
#include "guest/channel.h"
#include "guest/script.h"

enum { BODY_MAX = 2 << 20, COMMAND_MAX = 64 << 10 };

struct ssh_exec {
    struct exec exec; /* first */
    struct ssh *ssh;
    struct channel *channel;
    char *cwd, *user; /* for messages */
    bool sudo;
    long pid; /* of the process group that is the command; 0: not known, or none of its own */
    long long start;
};

static void release(struct ssh_exec *x)
{
    channel_free(x->channel);
    mem_free(x->cwd);
    mem_free(x->user);
    mem_free(x);
}

static void x_pause(struct exec *e, bool paused)
{
    struct ssh_exec *x = CONTAINER_OF(e, struct ssh_exec, exec);

    if (x->channel != NULL)
        channel_pause(x->channel, paused);
}

static void x_kill(struct exec *e)
{
    struct ssh_exec *x = CONTAINER_OF(e, struct ssh_exec, exec);

    if (x->channel != NULL)
        channel_send(x->channel, FRAME_KILL, "", 0);
}

static void x_free(struct exec *e)
{
    release(CONTAINER_OF(e, struct ssh_exec, exec));
}

static const struct exec_ops ops = {.pause = x_pause, .kill = x_kill, .free = x_free};

/* `error` and `detail` of the helper. */
static void refusal(struct ssh_exec *x, const char *kind, const char *detail, struct error *err)
{
    struct exec_request req = {.cwd = x->cwd};

    if (ssh_error(x->ssh, kind, detail, err))
        return;
    if (strcmp(kind, "script") == 0 && strcmp(detail, "silent") != 0 && strcmp(detail, "noise") != 0 &&
        strcmp(detail, "mark") != 0) {
        script_refusal(detail, &req, x->user, err);
        return;
    }
    error_set(err, ERR_SSH_FAILED, "the guest of VM %s did not run the command", ssh_get_config(x->ssh)->vm_name);
    if (strcmp(kind, "script") == 0)
        error_help(err, "its login shell must run /bin/sh%s",
                   x->user != NULL ? ", and sudo must let it be another user" : "");
    error_cause(err, "%.300s", strcmp(detail, "silent") == 0 ? "its shell ended before the command began" : detail);
}

static void take_end(struct ssh_exec *x, const char *data, size_t len)
{
    CLEANUP_ERROR struct error err = ERROR_INIT;
    struct exec_end end = {.exit_code = -1};
    const char *kind = NULL, *detail = "", *signal = NULL;
    json_t *doc = json_loadb(data, len, JSON_REJECT_DUPLICATES, NULL);

    if (json_unpack(doc, "{s?i, s?s, s?s, s?s}", "exit_code", &end.exit_code, "signal", &signal, "error", &kind,
                    "detail", &detail) < 0)
        error_set(&err, ERR_SSH_FAILED, "vmmd-ssh talks nonsense");
    else if (kind != NULL)
        refusal(x, kind, detail, &err);
    if (signal != NULL)
        snprintf(end.signal, sizeof(end.signal), "%s", signal);
    json_decref(doc);
    channel_free(TAKE_PTR(x->channel));
    x->exec.events.ended(x->exec.arg, error_is_set(&err) ? NULL : &end, &err);
}

static void take_start(struct ssh_exec *x, const char *data, size_t len)
{
    json_t *doc = json_loadb(data, len, JSON_REJECT_DUPLICATES, NULL);
    json_int_t pid = 0, start = 0;

    if (json_unpack(doc, "{s:I, s:I}", "pid", &pid, "start", &start) == 0 && pid > 1 && pid <= INT32_MAX) {
        x->pid = (long)pid;
        x->start = start;
    }
    json_decref(doc);
}

static void on_frame(void *arg, int type, const char *data, size_t len)
{
    struct ssh_exec *x = arg;

    if (type == FRAME_STARTED)
        take_start(x, data, len);
    else if (type == FRAME_END)
        take_end(x, data, len);
    else if ((type == FRAME_OUT || type == FRAME_ERR) && len > 0 && x->exec.events.output != NULL)
        x->exec.events.output(x->exec.arg, type == FRAME_ERR, data, len);
}

/* --- the helper died, the command did not --- */

static void killed(void *arg, const struct exec_end *end, struct error *err)
{
    (void)end;
    (void)err;
    release(arg);
}

static struct ssh_exec *exec_new(struct ssh *ssh, const struct exec_events *events, void *arg, struct error *err);

/* By the next helper, which nobody waits for. */
static void kill_left_behind(const struct ssh_exec *x)
{
    static const struct exec_events events = {.ended = killed};
    CLEANUP_ERROR struct error ignored = ERROR_INIT;
    CLEANUP_BUF struct buf command = BUF_INIT(1024);
    struct ssh_exec *killer;

    if (x->pid == 0 || ssh_is_ending(x->ssh) || script_ssh_kill(&command, x->pid, x->start, x->sudo) < 0)
        return;
    killer = exec_new(x->ssh, &events, NULL, &ignored);
    if (killer == NULL)
        return;
    killer->exec.arg = killer;
    if (channel_send_json(killer->channel, FRAME_REQUEST,
                          json_pack("{s:s, s:s}", "op", "probe", "command", command.data)) < 0 ||
        channel_send(killer->channel, FRAME_INPUT_END, "", 0) < 0)
        release(killer);
}

static void on_broken(void *arg, struct error *err)
{
    struct ssh_exec *x = arg;

    channel_free(TAKE_PTR(x->channel));
    kill_left_behind(x);
    x->exec.events.ended(x->exec.arg, NULL, err);
}

static struct ssh_exec *exec_new(struct ssh *ssh, const struct exec_events *events, void *arg, struct error *err)
{
    static const struct channel_events channel_events = {.frame = on_frame, .broken = on_broken};
    struct ssh_exec *x = mem_zalloc(sizeof(*x));

    if (x == NULL) {
        error_set(err, ERR_DAEMON_OVERLOADED, "out of memory");
        return NULL;
    }
    x->exec = (struct exec){.ops = &ops, .via = EXEC_SSH, .events = *events, .arg = arg};
    x->ssh = ssh;
    x->channel = channel_open(ssh, 'x', &channel_events, x, err);
    if (x->channel == NULL) {
        release(x);
        return NULL;
    }
    return x;
}

/* Another user than the one that logs in, or NULL. */
static const char *other_user(const struct ssh *ssh, const struct exec_request *req)
{
    return req->user != NULL && strcmp(req->user, ssh_get_config(ssh)->user) != 0 ? req->user : NULL;
}

static int send_request(struct ssh_exec *x, const struct exec_request *req, const char *sudo_user)
{
    CLEANUP_BUF struct buf body = BUF_INIT(BODY_MAX), command = BUF_INIT(COMMAND_MAX);
    char nonce[NONCE_MAX];
    bool feed;

    script_nonce(nonce);
    x->sudo = sudo_user != NULL;
    if (script_body(&body, req, nonce, x->sudo ? SCRIPT_SUDO : SCRIPT_SSH) < 0 ||
        script_ssh_command(&command, &body, sudo_user, nonce, &feed) < 0)
        return -1;
    if (channel_send_json(x->channel, FRAME_REQUEST,
                          json_pack("{s:s, s:s, s:s, s:b}", "op", "exec", "command", command.data, "nonce", nonce,
                                    "sudo", x->sudo)) < 0 ||
        (feed && channel_send(x->channel, FRAME_INPUT, body.data, body.len) < 0) ||
        (req->input_len > 0 && channel_send(x->channel, FRAME_INPUT, req->input, req->input_len) < 0))
        return -1;
    return channel_send(x->channel, FRAME_INPUT_END, "", 0);
}

struct exec *ssh_exec(struct ssh *ssh, const struct exec_request *req, const struct exec_events *events, void *arg,
                      struct error *err)
{
    const char *sudo_user = other_user(ssh, req);
    struct ssh_exec *x = exec_new(ssh, events, arg, err);

    if (x == NULL)
        return NULL;
    x->cwd = req->cwd != NULL ? mem_strdup(req->cwd) : NULL;
    x->user = mem_strdup(sudo_user != NULL ? sudo_user : ssh_get_config(ssh)->user);
    if (send_request(x, req, sudo_user) < 0) {
        error_set(err, ERR_DAEMON_OVERLOADED, "no memory for a command in VM %s", ssh_get_config(ssh)->vm_name);
        release(x);
        return NULL;
    }
    return &x->exec;
}

struct exec *ssh_probe(struct ssh *ssh, const struct exec_events *events, void *arg, struct error *err)
{
    struct ssh_exec *x = exec_new(ssh, events, arg, err);

    if (x == NULL)
        return NULL;
    if (channel_send_json(x->channel, FRAME_REQUEST, json_pack("{s:s}", "op", "probe")) < 0 ||
        channel_send(x->channel, FRAME_INPUT_END, "", 0) < 0) {
        error_set(err, ERR_DAEMON_OVERLOADED, "no memory to look for the guest of VM %s", ssh_get_config(ssh)->vm_name);
        release(x);
        return NULL;
    }
    return &x->exec;
}
