/* ssh_files.c - a transfer with vmmd-ssh's SFTP.  See files.h. */
#include <string.h>

#include "base/mem.h"
#include "guest/channel.h"

enum { WRITE_HIGH = 512 << 10 };

struct files {
    struct ssh *ssh;
    struct channel *channel;
    struct files_events events;
    void *arg;
    enum files_op op;
    char *path;
};

static void release(struct files *f)
{
    channel_free(f->channel);
    mem_free(f->path);
    mem_free(f);
}

void files_free(struct files *f)
{
    if (f != NULL)
        release(f);
}

/* `error` and `detail` of the helper. */
static void refusal(const struct files *f, const char *kind, const char *detail, struct error *err)
{
    const char *vm = ssh_get_config(f->ssh)->vm_name, *user = ssh_get_config(f->ssh)->user;

    if (strcmp(kind, "busy") == 0) {
        error_set(err, ERR_DAEMON_OVERLOADED, "every transfer of VM %s is taken; try again when one has ended", vm);
        return;
    }
    if (ssh_error(f->ssh, kind, detail, err))
        return;
    if (strcmp(kind, "missing") == 0) {
        error_set(err, ERR_GUEST_FILE_NOT_FOUND, "the guest of VM %s has no %.300s", vm, f->path);
    } else if (strcmp(kind, "denied") == 0) {
        error_set(err, ERR_GUEST_FILE_PERMISSION_DENIED, "user %s of VM %s may not do that to %.300s", user, vm,
                  f->path);
    } else if (strcmp(kind, "no_space") == 0) {
        error_set(err, ERR_GUEST_NO_SPACE, "the file system of %.300s in VM %s is full", f->path, vm);
    } else if (strcmp(kind, "not_directory") == 0) {
        error_set(err, ERR_GUEST_NOT_A_DIRECTORY, "%.300s in VM %s is no directory", f->path, vm);
    } else if (strcmp(kind, "not_file") == 0) {
        error_set(err, ERR_API_INVALID_FIELD, "%.300s in VM %s is no regular file", f->path, vm);
        error_help(err, "name a file; list=1 lists a directory");
        error_ctx_str(err, "pointer", "/path");
        error_ctx_str(err, "expected", "the path of a regular file");
    } else {
        error_set(err, ERR_IO, "the guest of VM %s could not do that to %.300s", vm, f->path);
        error_help(err, "the guest's answer is in causes; a directory must be empty to be deleted");
        error_cause(err, "%.300s", detail);
    }
}

static void take_end(struct files *f, const char *data, size_t len)
{
    CLEANUP_ERROR struct error err = ERROR_INIT;
    json_t *doc = json_loadb(data, len, JSON_REJECT_DUPLICATES, NULL);
    const char *kind = NULL, *detail = "";

    if (json_unpack(doc, "{s?s, s?s}", "error", &kind, "detail", &detail) < 0)
        error_set(&err, ERR_SSH_FAILED, "vmmd-ssh talks nonsense");
    else if (kind != NULL)
        refusal(f, kind, detail, &err);
    channel_free(TAKE_PTR(f->channel));
    f->events.ended(f->arg, error_is_set(&err) ? NULL : doc, &err);
    json_decref(doc);
}

static void on_frame(void *arg, int type, const char *data, size_t len)
{
    struct files *f = arg;

    if (type == FRAME_END) {
        take_end(f, data, len);
    } else if (type == FRAME_STARTED) {
        json_t *stat = json_loadb(data, len, JSON_REJECT_DUPLICATES, NULL);
        f->events.began(f->arg, stat);
        json_decref(stat);
    } else if (type == FRAME_OUT && f->events.data != NULL) {
        f->events.data(f->arg, data, len);
    }
}

static void on_drained(void *arg)
{
    struct files *f = arg;

    if (f->op == FILES_PUT)
        f->events.room(f->arg);
}

static void on_broken(void *arg, struct error *err)
{
    struct files *f = arg;

    channel_free(TAKE_PTR(f->channel));
    f->events.ended(f->arg, NULL, err);
}

void files_pause(struct files *f, bool paused)
{
    if (f->channel != NULL)
        channel_pause(f->channel, paused);
}

size_t files_write(struct files *f, const void *data, size_t len)
{
    size_t pending = f->channel != NULL ? channel_pending(f->channel) : WRITE_HIGH;

    if (pending >= WRITE_HIGH)
        return 0;
    if (len > WRITE_HIGH - pending)
        len = WRITE_HIGH - pending;
    return channel_send(f->channel, FRAME_INPUT, data, len) == 0 ? len : 0;
}

void files_write_end(struct files *f)
{
    if (f->channel != NULL)
        channel_send(f->channel, FRAME_INPUT_END, "", 0);
}

static json_t *request_json(const struct files_request *req)
{
    static const char *const ops[] = {"get", "put", "stat", "list", "mkdir", "rename", "delete"};

    return json_pack("{s:s, s:s, s:s*, s:s*, s:b}", "op", ops[req->op], "path", req->path, "to", req->to, "mode",
                     req->mode, "parents", req->parents);
}

struct files *ssh_files(struct ssh *ssh, const struct files_request *req, const struct files_events *events, void *arg,
                        struct error *err)
{
    static const struct channel_events channel_events = {.frame = on_frame, .drained = on_drained, .broken = on_broken};
    struct files *f = mem_zalloc(sizeof(*f));

    if (f == NULL) {
        error_set(err, ERR_DAEMON_OVERLOADED, "out of memory");
        return NULL;
    }
    *f = (struct files){.ssh = ssh, .events = *events, .arg = arg, .op = req->op, .path = mem_strdup(req->path)};
    f->channel = channel_open(ssh, 'f', &channel_events, f, err);
    if (f->channel == NULL || f->path == NULL || channel_send_json(f->channel, FRAME_REQUEST, request_json(req)) < 0) {
        error_set(err, ERR_DAEMON_OVERLOADED, "no memory for a transfer with VM %s", ssh_get_config(ssh)->vm_name);
        release(f);
        return NULL;
    }
    return f;
}
