/* ssh_files.c - a transfer with vmmd-ssh's SFTP.  See files.h. */
#include <string.h>

#include "base/mem.h"
#include "guest/channel.h"

enum { WRITE_HIGH = 512 << 10 };

struct ssh_f {
    struct files files; /* first */
    struct ssh *ssh;
    struct channel *channel;
    enum files_op op;
    char *path;
};

static void release(struct ssh_f *f)
{
    channel_free(f->channel);
    mem_free(f->path);
    mem_free(f);
}

static void f_free(struct files *f)
{
    release(CONTAINER_OF(f, struct ssh_f, files));
}

/* `error` and `detail` of the helper. */
static void refusal(const struct ssh_f *f, const char *kind, const char *detail, struct error *err)
{
    const char *vm = ssh_get_config(f->ssh)->vm_name;

    if (strcmp(kind, "busy") == 0) {
        error_set(err, ERR_DAEMON_OVERLOADED, "every transfer of VM %s is taken; try again when one has ended", vm);
        return;
    }
    if (ssh_error(f->ssh, kind, detail, err))
        return;
    files_refusal(kind, detail, vm, ssh_get_config(f->ssh)->user, f->path, err);
}

static void take_end(struct ssh_f *f, const char *data, size_t len)
{
    CLEANUP_ERROR struct error err = ERROR_INIT;
    json_t *doc = json_loadb(data, len, JSON_REJECT_DUPLICATES, NULL);
    const char *kind = NULL, *detail = "";

    if (json_unpack(doc, "{s?s, s?s}", "error", &kind, "detail", &detail) < 0)
        error_set(&err, ERR_SSH_FAILED, "vmmd-ssh talks nonsense");
    else if (kind != NULL)
        refusal(f, kind, detail, &err);
    channel_free(TAKE_PTR(f->channel));
    f->files.events.ended(f->files.arg, error_is_set(&err) ? NULL : doc, &err);
    json_decref(doc);
}

static void on_frame(void *arg, int type, const char *data, size_t len)
{
    struct ssh_f *f = arg;

    if (type == FRAME_END) {
        take_end(f, data, len);
    } else if (type == FRAME_STARTED) {
        json_t *stat = json_loadb(data, len, JSON_REJECT_DUPLICATES, NULL);
        f->files.events.began(f->files.arg, stat);
        json_decref(stat);
    } else if (type == FRAME_OUT && f->files.events.data != NULL) {
        f->files.events.data(f->files.arg, data, len);
    }
}

static void on_drained(void *arg)
{
    struct ssh_f *f = arg;

    if (f->op == FILES_PUT)
        f->files.events.room(f->files.arg);
}

static void on_broken(void *arg, struct error *err)
{
    struct ssh_f *f = arg;

    channel_free(TAKE_PTR(f->channel));
    f->files.events.ended(f->files.arg, NULL, err);
}

static void f_pause(struct files *files, bool paused)
{
    struct ssh_f *f = CONTAINER_OF(files, struct ssh_f, files);

    if (f->channel != NULL)
        channel_pause(f->channel, paused);
}

static size_t f_write(struct files *files, const void *data, size_t len)
{
    struct ssh_f *f = CONTAINER_OF(files, struct ssh_f, files);
    size_t pending = f->channel != NULL ? channel_pending(f->channel) : WRITE_HIGH;

    if (pending >= WRITE_HIGH)
        return 0;
    if (len > WRITE_HIGH - pending)
        len = WRITE_HIGH - pending;
    return channel_send(f->channel, FRAME_INPUT, data, len) == 0 ? len : 0;
}

static void f_write_end(struct files *files)
{
    struct ssh_f *f = CONTAINER_OF(files, struct ssh_f, files);

    if (f->channel != NULL)
        channel_send(f->channel, FRAME_INPUT_END, "", 0);
}

static const struct files_ops ops = {.pause = f_pause, .write = f_write, .write_end = f_write_end, .free = f_free};

static json_t *request_json(const struct files_request *req)
{
    static const char *const names[] = {"get", "put", "stat", "list", "mkdir", "rename", "delete"};

    return json_pack("{s:s, s:s, s:s*, s:s*, s:b}", "op", names[req->op], "path", req->path, "to", req->to, "mode",
                     req->mode, "parents", req->parents);
}

struct files *ssh_files(struct ssh *ssh, const struct files_request *req, const struct files_events *events, void *arg,
                        struct error *err)
{
    static const struct channel_events channel_events = {.frame = on_frame, .drained = on_drained, .broken = on_broken};
    struct ssh_f *f = mem_zalloc(sizeof(*f));

    if (f == NULL) {
        error_set(err, ERR_DAEMON_OVERLOADED, "out of memory");
        return NULL;
    }
    f->files = (struct files){.ops = &ops, .events = *events, .arg = arg};
    f->ssh = ssh;
    f->op = req->op;
    f->path = mem_strdup(req->path);
    f->channel = channel_open(ssh, 'f', &channel_events, f, err);
    if (f->channel == NULL || f->path == NULL || channel_send_json(f->channel, FRAME_REQUEST, request_json(req)) < 0) {
        error_set(err, ERR_DAEMON_OVERLOADED, "no memory for a transfer with VM %s", ssh_get_config(ssh)->vm_name);
        release(f);
        return NULL;
    }
    return &f->files;
}
