/* agent_files.c - a transfer as a row of commands over the guest agent.  See agent_files.h; the scripts are files_script.c's.
 *
 *   get   a command per FILES_GET_CHUNK, each of which opens the file anew: another file under that name ends the transfer
 *   put   a command per FILES_PUT_CHUNK appends to a temporary file; the last one gives it its mode and its name
 *
 * Failures.  A command is refused: its exit code or its last words say why, and a put's has removed what it wrote.  It is lost, or
 * the transfer is given up: the command under way is killed, and behind its end another removes what was written (ALL_MAX bounds
 * how many are cleaned up after at once).  The guest was reset, or somebody else wrote: the size, or the file's identity, is not
 * what it was, and the transfer fails.  The agent is freed: all of them fail.  vmmd itself ends: the temporary file stays. */
#include "guest/agent_files.h"

#include <inttypes.h>
#include <string.h>

#include "base/mem.h"
#include "guest/agent_exec.h"
#include "guest/files_script.h"
#include "guest/internal.h"

enum { ERRORS_MAX = 4096, SCRIPT_MAX = 1 << 20, INPUT_MAX = FILES_PUT_CHUNK + (128 << 10), ALL_MAX = 16 };

struct agent_f {
    struct files files; /* first */
    struct agent_f *next;
    struct loop *loop;
    struct agent *agent; /* NULL: it is gone */
    char *vm_name, *user;
    struct files_request req; /* its texts are ours */
    char *path, *to, *mode;
    char *temp;
    struct timer *timer;
    struct exec *exec; /* the command under way */
    struct buf out, errors;
    struct buf in;   /* put: not sent yet */
    size_t sent;     /* put: with the command under way */
    uint64_t offset; /* what the guest is done with */
    char identity[FILES_IDENTITY_MAX];
    unsigned calling; /* into the owner */
    bool began;
    bool at_end; /* get: all is delivered; put: no more comes */
    bool paused;
    bool waiting;   /* get: the next step is for when it is not */
    bool last_sent; /* put: the command under way is the last */
    bool dirty;     /* put: there may be a temporary file */
    bool over, freed;
};

static void settle(struct agent_f *f);
static void step_ended(void *arg, const struct exec_end *end, struct error *err);

static void release(struct agent_f *f)
{
    for (struct agent_f **p = f->agent != NULL ? &f->agent->files : NULL; p != NULL && *p != NULL; p = &(*p)->next)
        if (*p == f) {
            *p = f->next;
            break;
        }
    timer_free(f->timer);
    buf_done(&f->out);
    buf_done(&f->errors);
    buf_done(&f->in);
    mem_free(f->vm_name);
    mem_free(f->user);
    mem_free(f->path);
    mem_free(f->to);
    mem_free(f->mode);
    mem_free(f->temp);
    mem_free(f);
}

/* --- telling the owner --- */

/* Returns whether it is still there. */
static bool called(struct agent_f *f)
{
    f->calling--;
    if (!f->freed)
        return true;
    settle(f);
    return false;
}

static void finish(struct agent_f *f, const struct files_info *info, struct error *err)
{
    CLEANUP_BUF struct buf text = BUF_INIT(512);
    json_t *stat = NULL;

    if (!error_is_set(err)) {
        if (info != NULL)
            files_info_json(&text, NULL, info);
        stat = info != NULL && !text.failed ? json_loadb(text.data, text.len, 0, NULL) : json_object();
    }
    f->over = true;
    f->calling++;
    f->files.events.ended(f->files.arg, stat, err);
    json_decref(stat);
    called(f);
}

static void refuse(struct agent_f *f, const char *kind, const char *detail)
{
    CLEANUP_ERROR struct error err = ERROR_INIT;

    if (strcmp(kind, "no_tool") == 0) {
        error_set(&err, ERR_GUEST_UNAVAILABLE,
                  "the guest of VM %s has no `%.60s`, without which its agent moves no files", f->vm_name, detail);
        error_help(&err,
                   "install coreutils, findutils or busybox in the guest, or give the VM a key and a network for SSH");
    } else if (strcmp(kind, "changed") == 0) {
        error_set(&err, ERR_GUEST_UNAVAILABLE, "%.300s in VM %s changed hands during the transfer", f->path,
                  f->vm_name);
        error_cause(&err, "%s",
                    f->req.op == FILES_PUT
                        ? "what was written so far is gone: the guest was reset, or somebody removed it"
                        : "another file has its name now");
        error_help(&err, "%s", "try again");
    } else {
        files_refusal(kind, detail, f->vm_name, f->user, f->path, &err);
    }
    finish(f, NULL, &err);
}

/* The command did not run, or was lost. */
static void lost(struct agent_f *f, struct error *why)
{
    CLEANUP_ERROR struct error err = ERROR_INIT;

    if (why->code != ERR_API_INVALID_FIELD) {
        finish(f, NULL, why);
        return;
    }
    error_set(&err, ERR_API_INVALID_FIELD, "the guest of VM %s has no user %.60s", f->vm_name, f->user);
    error_help(&err,
               "files are the ssh.user's of the spec: name a user of the guest there, or make one with cloud_init");
    error_ctx_str(&err, "pointer", "/spec/ssh/user");
    error_ctx_str(&err, "expected", "a user of the guest");
    finish(f, NULL, &err);
}

static void nonsense(struct agent_f *f)
{
    refuse(f, "failed", "the guest's answer makes no sense");
}

/* --- commands --- */

static void took_output(void *arg, bool is_stderr, const char *data, size_t len)
{
    struct agent_f *f = arg;

    if (!is_stderr)
        buf_append(&f->out, data, len);
    else if (len > ERRORS_MAX)
        buf_append(&f->errors, data + len - ERRORS_MAX, ERRORS_MAX);
    else
        buf_append(&f->errors, data, len);
}

static int run(struct agent_f *f, const struct buf *script, const void *input, size_t input_len, struct error *err)
{
    static const struct exec_events events = {.output = took_output, .ended = step_ended};
    const struct exec_request req = {
        .script = script->data, .default_user = f->user, .via = EXEC_AGENT, .input = input, .input_len = input_len};

    buf_reset(&f->out);
    buf_reset(&f->errors);
    f->exec = agent_exec_up_to(INPUT_MAX, f->loop, f->agent, f->vm_name, &req, &events, f, err);
    return f->exec != NULL ? 0 : -1;
}

/* Returns whether it is under way; else the transfer has ended, and f may be gone. */
static bool step(struct agent_f *f)
{
    CLEANUP_ERROR struct error err = ERROR_INIT;
    CLEANUP_BUF struct buf script = BUF_INIT(SCRIPT_MAX);
    const struct files_step s = {
        .req = &f->req, .offset = f->offset, .temp = f->temp, .len = f->in.len, .last = f->at_end};

    if (f->in.failed || files_script(&script, &s) < 0)
        error_set(&err, ERR_DAEMON_OVERLOADED, "no memory for a transfer with VM %s", f->vm_name);
    if (error_is_set(&err) || run(f, &script, f->in.data, f->in.len, &err) < 0) {
        finish(f, NULL, &err);
        return false;
    }
    f->dirty = f->req.op == FILES_PUT;
    f->last_sent = f->at_end;
    f->sent = f->in.len;
    buf_reset(&f->in);
    return true;
}

/* Freed by its owner: cleans up in the guest, then goes. */
static void settle(struct agent_f *f)
{
    CLEANUP_ERROR struct error ignored = ERROR_INIT;
    CLEANUP_BUF struct buf script = BUF_INIT(SCRIPT_MAX);

    if (!f->freed || f->calling > 0 || f->exec != NULL)
        return;
    if (f->dirty && f->agent != NULL) {
        f->dirty = false;
        if (files_script_discard(&script, f->temp) == 0 && run(f, &script, NULL, 0, &ignored) == 0)
            return;
    }
    release(f);
}

/* --- a step's end --- */

static void get_next(struct agent_f *f)
{
    CLEANUP_ERROR struct error none = ERROR_INIT;

    if (f->paused)
        f->waiting = true;
    else if (f->at_end)
        finish(f, NULL, &none);
    else
        step(f);
}

static void got(struct agent_f *f)
{
    struct files_info info;
    size_t at;

    if (f->out.failed || f->out.len == 0 || files_info_parse(f->out.data, f->out.len, &info, &at) < 0 ||
        f->out.len - at > FILES_GET_CHUNK) {
        nonsense(f);
        return;
    }
    if (f->began && strcmp(info.identity, f->identity) != 0) {
        refuse(f, "changed", "");
        return;
    }
    f->at_end = f->out.len - at < FILES_GET_CHUNK;
    f->offset += f->out.len - at;
    if (!f->began) {
        CLEANUP_BUF struct buf text = BUF_INIT(512);
        files_info_json(&text, NULL, &info);
        json_t *stat = text.failed ? NULL : json_loadb(text.data, text.len, 0, NULL);
        memcpy(f->identity, info.identity, sizeof(f->identity));
        f->began = true;
        f->calling++;
        f->files.events.began(f->files.arg, stat);
        json_decref(stat);
        if (!called(f))
            return;
    }
    f->calling++;
    if (f->out.len > at)
        f->files.events.data(f->files.arg, f->out.data + at, f->out.len - at);
    if (called(f))
        get_next(f);
}

static void told_end(struct agent_f *f)
{
    CLEANUP_ERROR struct error none = ERROR_INIT;
    struct files_info info;
    size_t at;

    if (f->out.len == 0 || files_info_parse(f->out.data, f->out.len, &info, &at) < 0)
        nonsense(f);
    else
        finish(f, &info, &none);
}

/* Sends what is enough, or the last, and asks for more. */
static void put_next(struct agent_f *f)
{
    if ((f->at_end || f->in.failed || f->in.len == FILES_PUT_CHUNK) && !step(f))
        return;
    if (f->at_end)
        return;
    f->calling++;
    f->files.events.room(f->files.arg);
    called(f);
}

static void put_done(struct agent_f *f)
{
    f->offset += f->sent;
    if (!f->last_sent) {
        put_next(f);
        return;
    }
    f->dirty = false;
    told_end(f);
}

static bool list_entry(void *arg, const char *json, size_t len)
{
    struct agent_f *f = arg;

    f->files.events.data(f->files.arg, json, len);
    return !f->freed;
}

static void listed(struct agent_f *f)
{
    CLEANUP_ERROR struct error none = ERROR_INIT;
    bool cut = f->out.len >= FILES_LIST_MAX;

    f->calling++;
    int rc = cut || f->out.len == 0 ? -1 : files_list_parse(f->out.data, f->out.len, list_entry, f);
    if (!called(f))
        return;
    if (rc == 0)
        finish(f, NULL, &none);
    else if (cut)
        refuse(f, "failed", "the directory has more entries than the guest agent can tell; SSH tells them all");
    else
        nonsense(f);
}

static void step_ended(void *arg, const struct exec_end *end, struct error *err)
{
    struct agent_f *f = arg;
    char detail[FILES_DETAIL_MAX];

    exec_free(TAKE_PTR(f->exec));
    if (f->freed) {
        settle(f);
        return;
    }
    if (end == NULL) {
        lost(f, err);
        return;
    }
    if (end->exit_code != 0) {
        const char *kind =
            files_failure(end->exit_code, f->errors.data != NULL ? f->errors.data : "", f->errors.len, detail);
        f->dirty = f->dirty && end->exit_code < 0; /* it removed it itself */
        refuse(f, kind, detail);
        return;
    }
    switch (f->req.op) {
    case FILES_GET:
        got(f);
        break;
    case FILES_PUT:
        put_done(f);
        break;
    case FILES_STAT:
        told_end(f);
        break;
    case FILES_LIST:
        listed(f);
        break;
    default:
        finish(f, NULL, err);
    }
}

/* --- files.h --- */

static void turn(void *arg)
{
    struct agent_f *f = arg;

    if (f->req.op == FILES_PUT && f->began) {
        if (f->exec == NULL)
            put_next(f);
    } else if (f->req.op == FILES_PUT) {
        json_t *nothing = json_object();
        f->began = true;
        f->calling++;
        f->files.events.began(f->files.arg, nothing);
        json_decref(nothing);
        called(f);
    } else if (f->began) {
        get_next(f);
    } else {
        step(f);
    }
}

static void f_pause(struct files *files, bool paused)
{
    struct agent_f *f = CONTAINER_OF(files, struct agent_f, files);

    f->paused = paused;
    if (paused || !f->waiting || f->over)
        return;
    f->waiting = false;
    timer_start(f->timer, 0, 0);
}

static size_t f_write(struct files *files, const void *data, size_t len)
{
    struct agent_f *f = CONTAINER_OF(files, struct agent_f, files);
    size_t room = FILES_PUT_CHUNK - f->in.len;

    if (f->over)
        return 0;
    len = len < room ? len : room;
    if (buf_append(&f->in, data, len) < 0)
        len = 0;
    if ((f->in.failed || f->in.len == FILES_PUT_CHUNK) && f->exec == NULL)
        timer_start(f->timer, 0, 0);
    return len;
}

static void f_write_end(struct files *files)
{
    struct agent_f *f = CONTAINER_OF(files, struct agent_f, files);

    f->at_end = true;
    if (!f->over && f->exec == NULL)
        timer_start(f->timer, 0, 0);
}

static void f_free(struct files *files)
{
    struct agent_f *f = CONTAINER_OF(files, struct agent_f, files);

    f->freed = true;
    timer_stop(f->timer);
    if (f->exec != NULL)
        exec_kill(f->exec);
    settle(f);
}

static const struct files_ops ops = {.pause = f_pause, .write = f_write, .write_end = f_write_end, .free = f_free};

void agent_files_end(struct agent *a)
{
    while (a->files != NULL) {
        CLEANUP_ERROR struct error err = ERROR_INIT;
        struct agent_f *f = a->files;

        a->files = f->next;
        f->agent = NULL;
        if (f->freed || f->over) {
            settle(f);
            continue;
        }
        timer_stop(f->timer);
        error_set(&err, ERR_GUEST_UNAVAILABLE, "the guest agent of VM %s is gone: the VM ended", f->vm_name);
        finish(f, NULL, &err);
    }
}

static int copy_request(struct agent_f *f, const struct files_request *req)
{
    f->req = *req;
    f->req.path = f->path = mem_strdup(req->path);
    f->req.to = f->to = req->to != NULL ? mem_strdup(req->to) : NULL;
    f->req.mode = f->mode = req->mode != NULL ? mem_strdup(req->mode) : NULL;
    f->temp = req->op == FILES_PUT ? files_temp_path(req->path) : NULL;
    return f->path == NULL || (req->to != NULL && f->to == NULL) || (req->mode != NULL && f->mode == NULL) ||
                   (req->op == FILES_PUT && f->temp == NULL)
               ? -1
               : 0;
}

struct files *agent_files(struct loop *loop, struct agent *agent, const char *vm_name, const char *user,
                          const struct files_request *req, const struct files_events *events, void *arg,
                          struct error *err)
{
    struct agent_f *f;
    unsigned n = 0, all = 0;

    for (f = agent->files; f != NULL; f = f->next) {
        n += f->freed ? 0 : 1;
        all++;
    }
    if (n >= AGENT_FILES_MAX || all >= ALL_MAX) {
        error_set(err, ERR_DAEMON_OVERLOADED, "every transfer of VM %s is taken; try again when one has ended",
                  vm_name);
        return NULL;
    }
    f = mem_zalloc(sizeof(*f));
    if (f == NULL) {
        error_set(err, ERR_DAEMON_OVERLOADED, "no memory for a transfer with VM %s", vm_name);
        return NULL;
    }
    f->files = (struct files){.ops = &ops, .events = *events, .arg = arg};
    f->loop = loop;
    buf_init(&f->out, FILES_LIST_MAX + 4096);
    buf_init(&f->errors, ERRORS_MAX);
    buf_init(&f->in, FILES_PUT_CHUNK);
    f->vm_name = mem_strdup(vm_name);
    f->user = mem_strdup(user);
    f->timer = timer_new(loop, turn, f);
    if (copy_request(f, req) < 0 || f->vm_name == NULL || f->user == NULL || f->timer == NULL) {
        error_set(err, ERR_DAEMON_OVERLOADED, "no memory for a transfer with VM %s", vm_name);
        release(f);
        return NULL;
    }
    f->agent = agent;
    f->next = agent->files;
    agent->files = f;
    timer_start(f->timer, 0, 0);
    return &f->files;
}
