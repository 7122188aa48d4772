/* agent_exec.c - guest-exec, and guest-exec-status until the command has ended.  See agent_exec.h.
 *
 * Happy path: /bin/sh starts the wrapper (script.h) in a session of its own, whose process group is the pid that the agent
 * tells; status is asked for with back-off; at the end the output comes in one answer and the wrapper's line is cut off it.
 *
 * Failures.  The agent is busy: asked again.  It is lost: ERR_GUEST_UNAVAILABLE, and the command may go on.  A kill is a
 * second command, `kill` with the process group.  A grandchild that holds the output open keeps the agent from telling the
 * end: when the command's process is gone and the agent has said nothing for a while, its group is killed. */
#include "guest/agent_exec.h"

#include <nettle/base64.h>
#include <stdio.h>
#include <string.h>

#include "base/mem.h"
#include "guest/internal.h"
#include "guest/script.h"

enum {
    CALL_MS = 10000,
    POLL_FIRST_MS = 20,
    POLL_MAX_MS = 500,
    HELD_MS = 2000, /* the output is held open behind the end */
    FAILURES_MAX = 5,
};

enum state { STARTING, RUNNING, OVER };

struct agent_x {
    struct exec exec;     /* first */
    struct agent_x *next; /* of the agent, until it is over */
    struct loop *loop;
    struct agent *agent;
    char *vm_name;
    char *cwd, *user;
    char nonce[NONCE_MAX];
    json_t *arguments; /* of guest-exec */
    struct timer *timer;
    enum state state;
    int64_t pid;
    int64_t poll_ms;
    int64_t gone_at; /* its process was found to be gone */
    unsigned failures;
    bool asking; /* an answer is on its way */
    bool kill_asked, freed;
};

static void turn(void *arg);

static void unlist(struct agent_x *x)
{
    for (struct agent_x **p = &x->agent->execs; *p != NULL; p = &(*p)->next)
        if (*p == x) {
            *p = x->next;
            return;
        }
}

static void release(struct agent_x *x)
{
    if (x->state != OVER)
        unlist(x);
    timer_free(x->timer);
    json_decref(x->arguments);
    mem_free(x->cwd);
    mem_free(x->user);
    mem_free(x->vm_name);
    mem_free(x);
}

/* --- killing: sent and forgotten --- */

static void killed(void *arg, json_t *ret, struct error *err)
{
    (void)arg;
    (void)ret;
    (void)err;
}

static void send_kill(struct agent_x *x)
{
    char command[128];
    CLEANUP_ERROR struct error ignored = ERROR_INIT;

    snprintf(command, sizeof(command), "kill -KILL -- -%lld || kill -KILL %lld", (long long)x->pid, (long long)x->pid);
    agent_execute(x->agent, "guest-exec", json_pack("{s:s, s:[s, s]}", "path", "/bin/sh", "arg", "-c", command),
                  CALL_MS, killed, NULL, &ignored);
}

/* --- the end --- */

static void over(struct agent_x *x)
{
    if (x->state != OVER)
        unlist(x);
    x->state = OVER;
}

static void end(struct agent_x *x, const struct exec_end *result, struct error *err)
{
    over(x);
    timer_stop(x->timer);
    x->exec.events.ended(x->exec.arg, result, err);
}

static void fail(struct agent_x *x, const char *why, const struct error *cause)
{
    CLEANUP_ERROR struct error err = ERROR_INIT;

    error_set(&err, ERR_GUEST_UNAVAILABLE, "the guest agent of VM %s %s", x->vm_name, why);
    if (cause != NULL && error_is_set(cause)) {
        error_cause(&err, "%s", cause->message);
        for (size_t i = 0; i < cause->n_causes; i++)
            error_cause(&err, "%s", cause->causes[i]);
    }
    end(x, NULL, &err);
}

/* The decoded text, NUL-terminated; the caller mem_frees. */
static char *decode(const char *text, size_t *ret_len)
{
    struct base64_decode_ctx ctx;
    size_t len = text != NULL ? strlen(text) : 0;
    char *out = mem_alloc(BASE64_DECODE_LENGTH(len) + 1);

    *ret_len = BASE64_DECODE_LENGTH(len);
    base64_decode_init(&ctx);
    if (out != NULL && (!base64_decode_update(&ctx, ret_len, (uint8_t *)out, len, text != NULL ? text : "") ||
                        !base64_decode_final(&ctx)))
        *ret_len = 0;
    if (out != NULL)
        out[*ret_len] = '\0';
    return out;
}

/* Cuts the wrapper's line off; false when the command did not begin (err set). */
static bool begun(struct agent_x *x, char *out, size_t *len, struct error *err)
{
    struct exec_request req = {.cwd = x->cwd};
    char *said;
    size_t after;

    if (mark_find(out, *len, x->nonce, &said, &after) != 1) {
        error_set(err, ERR_GUEST_UNAVAILABLE, "the guest of VM %s did not run the command", x->vm_name);
        error_cause(err, "its shell ended before the command began");
        return false;
    }
    if (said[0] == '!') {
        script_refusal(said + 1, &req, x->user, err);
        return false;
    }
    memmove(out, out + after, *len - after + 1);
    *len -= after;
    return true;
}

static void deliver(struct agent_x *x, const json_t *status)
{
    CLEANUP_ERROR struct error err = ERROR_INIT;
    const json_t *code = json_object_get(status, "exitcode"), *signal = json_object_get(status, "signal");
    struct exec_end result = {.exit_code = -1};
    size_t out_len, err_len;
    CLEANUP_FREE char *out = decode(json_string_value(json_object_get(status, "out-data")), &out_len);
    CLEANUP_FREE char *errors = decode(json_string_value(json_object_get(status, "err-data")), &err_len);

    result.truncated = json_is_true(json_object_get(status, "out-truncated")) ||
                       json_is_true(json_object_get(status, "err-truncated"));
    if (out == NULL || errors == NULL) {
        error_set(&err, ERR_DAEMON_OVERLOADED, "out of memory");
        end(x, NULL, &err);
        return;
    }
    if (json_is_integer(signal)) {
        const char *name = sigabbrev_np((int)json_integer_value(signal));
        snprintf(result.signal, sizeof(result.signal), "SIG%s", name != NULL ? name : "KILL");
    } else {
        result.exit_code = (int)json_integer_value(code);
    }
    if (!begun(x, out, &out_len, &err) && !(x->kill_asked && err.code == ERR_GUEST_UNAVAILABLE)) {
        end(x, NULL, &err);
        return;
    }
    error_done(&err);
    over(x);
    x->asking = true; /* it must outlive the callbacks */
    if (out_len > 0)
        x->exec.events.output(x->exec.arg, false, out, out_len);
    if (err_len > 0 && !x->freed)
        x->exec.events.output(x->exec.arg, true, errors, err_len);
    x->asking = false;
    if (x->freed)
        release(x);
    else
        end(x, &result, &err);
}

/* --- asking --- */

static void again(struct agent_x *x)
{
    timer_start(x->timer, x->poll_ms, 0);
    x->poll_ms += x->poll_ms / 4; /* an end is seen late by a quarter of its time, at most */
    if (x->poll_ms > POLL_MAX_MS)
        x->poll_ms = POLL_MAX_MS;
}

static void looked(void *arg, json_t *ret, struct error *err)
{
    struct agent_x *x = arg;
    CLEANUP_ERROR struct error ignored = ERROR_INIT;

    x->asking = false;
    if (x->freed) {
        release(x);
        return;
    }
    if (json_is_integer(ret)) /* it lives; the handle is given back */
        agent_execute(x->agent, "guest-file-close", json_pack("{s:O}", "handle", ret), CALL_MS, killed, NULL, &ignored);
    else if (err->code == ERR_IO && x->gone_at == 0)
        x->gone_at = loop_now_ms(x->loop);
    again(x);
}

/* Is the command's own process there?  It is looked for when it has run for a while. */
static bool look(struct agent_x *x)
{
    CLEANUP_ERROR struct error ignored = ERROR_INIT;
    char path[64];

    if (x->poll_ms < POLL_MAX_MS)
        return false;
    if (x->gone_at != 0) {
        if (loop_now_ms(x->loop) - x->gone_at > HELD_MS)
            send_kill(x);
        return false;
    }
    snprintf(path, sizeof(path), "/proc/%lld/stat", (long long)x->pid);
    x->asking =
        agent_execute(x->agent, "guest-file-open", json_pack("{s:s}", "path", path), CALL_MS, looked, x, &ignored) == 0;
    return x->asking;
}

static void status_came(void *arg, json_t *ret, struct error *err)
{
    struct agent_x *x = arg;

    x->asking = false;
    if (x->freed) {
        release(x);
        return;
    }
    if (error_is_set(err) && (err->code != ERR_VM_UNRESPONSIVE || ++x->failures >= FAILURES_MAX)) {
        fail(x, "lost the command", err);
        return;
    }
    if (!error_is_set(err)) {
        x->failures = 0;
        if (json_is_true(json_object_get(ret, "exited"))) {
            deliver(x, ret);
            return;
        }
    }
    if (!look(x))
        again(x);
}

static void started(void *arg, json_t *ret, struct error *err)
{
    struct agent_x *x = arg;

    x->asking = false;
    x->pid = json_integer_value(json_object_get(ret, "pid"));
    if (error_is_set(err) || x->pid <= 1) {
        if (x->freed)
            release(x);
        else
            fail(x, "did not run the command", err);
        return;
    }
    x->state = RUNNING;
    if (x->freed || x->kill_asked)
        send_kill(x);
    if (x->freed)
        release(x);
    else
        again(x);
}

void agent_execs_end(struct agent *a)
{
    while (a->execs != NULL) {
        struct agent_x *x = a->execs;
        x->asking = false; /* no answer will come */
        if (x->freed)
            release(x);
        else
            fail(x, "is gone: the VM ended", NULL);
    }
}

static void turn(void *arg)
{
    struct agent_x *x = arg;
    CLEANUP_ERROR struct error err = ERROR_INIT;
    int rc;

    if (x->state == STARTING)
        rc = agent_execute(x->agent, "guest-exec", json_incref(x->arguments), CALL_MS, started, x, &err);
    else
        rc = agent_execute(x->agent, "guest-exec-status", json_pack("{s:I}", "pid", (json_int_t)x->pid), CALL_MS,
                           status_came, x, &err);
    x->asking = rc == 0;
    if (rc == 0)
        return;
    if (++x->failures > 600 || err.code == ERR_API_INVALID_FIELD)
        fail(x, "takes no more commands", &err);
    else
        again(x); /* its queue is full */
}

/* --- exec.h --- */

static void x_pause(struct exec *e, bool paused)
{
    (void)e; /* it is all here when any of it is */
    (void)paused;
}

static void x_kill(struct exec *e)
{
    struct agent_x *x = CONTAINER_OF(e, struct agent_x, exec);

    x->kill_asked = true;
    if (x->state == RUNNING)
        send_kill(x);
    x->poll_ms = POLL_FIRST_MS;
}

static void x_free(struct exec *e)
{
    struct agent_x *x = CONTAINER_OF(e, struct agent_x, exec);

    x->freed = true;
    timer_stop(x->timer);
    if (x->state == RUNNING)
        send_kill(x);
    if (!x->asking)
        release(x);
}

static const struct exec_ops ops = {.pause = x_pause, .kill = x_kill, .free = x_free};

static json_t *make_arguments(const struct agent_x *x, const struct exec_request *req, const char *body)
{
    CLEANUP_FREE char *input = NULL;
    const char *user = x->user != NULL ? x->user : "";

    if (req->input_len > 0) {
        input = mem_alloc(BASE64_ENCODE_RAW_LENGTH(req->input_len) + 1);
        if (input == NULL)
            return NULL;
        base64_encode_raw(input, req->input_len, req->input);
        input[BASE64_ENCODE_RAW_LENGTH(req->input_len)] = '\0';
    }
    return json_pack("{s:s, s:[s, s, s, s, s, s, s], s:b, s:s*}", "path", "/bin/sh", "arg", "-c", script_agent_stub,
                     "sh", body, script_agent_stub, user, x->nonce, "capture-output", 1, "input-data", input);
}

struct exec *agent_exec(struct loop *loop, struct agent *agent, const char *vm_name, const struct exec_request *req,
                        const struct exec_events *events, void *arg, struct error *err)
{
    return agent_exec_up_to(AGENT_INPUT_MAX, loop, agent, vm_name, req, events, arg, err);
}

struct exec *agent_exec_up_to(size_t input_max, struct loop *loop, struct agent *agent, const char *vm_name,
                              const struct exec_request *req, const struct exec_events *events, void *arg,
                              struct error *err)
{
    CLEANUP_BUF struct buf body = BUF_INIT(2 << 20);
    struct agent_x *x = mem_zalloc(sizeof(*x));
    const char *user = req->user != NULL ? req->user : req->default_user;

    if (x == NULL) {
        error_set(err, ERR_DAEMON_OVERLOADED, "out of memory");
        return NULL;
    }
    x->exec = (struct exec){.ops = &ops, .via = EXEC_AGENT, .events = *events, .arg = arg};
    x->loop = loop;
    x->agent = agent;
    x->poll_ms = POLL_FIRST_MS;
    script_nonce(x->nonce);
    x->vm_name = mem_strdup(vm_name);
    x->cwd = req->cwd != NULL ? mem_strdup(req->cwd) : NULL;
    x->user = user != NULL ? mem_strdup(user) : NULL;
    x->timer = timer_new(loop, turn, x);
    x->state = OVER; /* not listed yet */
    if (script_body(&body, req, x->nonce, SCRIPT_AGENT) == 0 && body.len + req->input_len <= input_max)
        x->arguments = make_arguments(x, req, body.data);
    if (x->arguments == NULL || x->timer == NULL || x->vm_name == NULL) {
        if (body.len + req->input_len > input_max) {
            error_set(err, ERR_API_INVALID_FIELD, "the guest agent takes %d KiB of command and input, not %zu",
                      (int)(input_max >> 10), (body.len + req->input_len) >> 10);
            error_ctx_str(err, "pointer", req->input_len > 0 ? "/stdin_base64" : "/script");
            error_ctx_str(err, "expected", "at most 128 KiB over the guest agent; SSH takes more");
        } else {
            error_set(err, ERR_DAEMON_OVERLOADED, "out of memory");
        }
        release(x);
        return NULL;
    }
    x->state = STARTING;
    x->next = agent->execs;
    agent->execs = x;
    timer_start(x->timer, 0, 0);
    return &x->exec;
}
