/* files.c - …/files: a guest's files, streamed both ways; list, stat (HEAD), delete, mkdir and rename.
 *
 * The address of a guest on a bridge is waited for. A slow reader pauses the guest's side, a slow guest the client's. A client that leaves ends the transfer: an upload then
 * leaves what was there before. */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/mem.h"
#include "core/exec.h"
#include "core/files.h"
#include "model/fields.h"
#include "rest/rest.h"

enum { PATH_LEN_MAX = 4096, LIVE_HIGH = 512 << 10, LIVE_MAX = 4 << 20, LIST_MAX = 16 << 20 };

struct transfer {
    struct http_request *req; /* NULL: dead */
    struct http_stream *stream;
    struct files *files;
    struct vm_wait *wait; /* for the guest's address: then the request is kept */
    struct files_request request;
    char *kept[3];
    const struct files_events *events;
    bool paused, head;
    bool started; /* put: the guest takes the body */
    bool whole;   /* put: the body is at its end */
    struct buf list;
    unsigned listed;
};

static void transfer_free(struct transfer *t)
{
    files_free(t->files);
    core_vm_unwait(t->wait);
    for (size_t i = 0; i < ARRAY_SIZE(t->kept); i++)
        mem_free(t->kept[i]);
    buf_done(&t->list);
    mem_free(t);
}

static void left(void *arg, struct http_request *req)
{
    struct transfer *t = arg;
    struct error err = ERROR_INIT;

    if (http_stopping(req)) {
        error_set(&err, ERR_DAEMON_SHUTTING_DOWN, "vmmd stopped in the midst of the transfer");
        http_reply_error(req, &err);
        error_done(&err);
    }
    transfer_free(t);
}

static int read_path(struct http_request *req, const char **ret, struct error *err)
{
    const char *path = http_query(req, "path");

    if (path == NULL || *path == '\0' || strlen(path) > PATH_LEN_MAX)
        return field_pointer_error(err, "/path", "the path of a file in the guest, 1–4096 bytes",
                                   "the query needs path=");
    *ret = path;
    return 0;
}

static bool mode_valid(const char *mode)
{
    size_t len = strlen(mode);

    return len >= 3 && len <= 4 && strspn(mode, "01234567") == len;
}

static void address_came(void *arg, struct live_vm *vm, struct error *err)
{
    struct transfer *t = arg;

    t->wait = NULL;
    if (err->code == ERR_WAIT_TIMED_OUT && core_address_missing(vm, EXEC_AUTO))
        core_address_refuse(vm, ADDRESS_WAIT_MS, err);
    else if (err->code == ERR_WAIT_TIMED_OUT || err->code == ERR_WAIT_IMPOSSIBLE)
        error_done(err); /* the VM has ended, which is said below */
    if (!error_is_set(err))
        t->files = core_files(vm, &t->request, t->events, t, err);
    if (t->files == NULL)
        t->events->ended(t, NULL, err);
}

static int await_address(struct transfer *t, struct live_vm *vm, const struct files_request *files, struct error *err)
{
    static const char *const ip[] = {"ip"};
    const char *const texts[] = {files->path, files->to, files->mode};

    for (size_t i = 0; i < ARRAY_SIZE(texts); i++) {
        t->kept[i] = texts[i] != NULL ? mem_strdup(texts[i]) : NULL;
        if (texts[i] != NULL && t->kept[i] == NULL)
            return error_set(err, ERR_DAEMON_OVERLOADED, "out of memory");
    }
    t->request = *files;
    t->request.path = t->kept[0];
    t->request.to = t->kept[1];
    t->request.mode = t->kept[2];
    t->wait = core_vm_wait(vm, ip, 1, ADDRESS_WAIT_MS, address_came, t, err);
    return t->wait != NULL ? 0 : -1;
}

/* Begins the work, or refuses; the events are the caller's. */
static struct transfer *begin(struct rest *rest, struct http_request *req, const struct files_request *files,
                              const struct files_events *events)
{
    CLEANUP_ERROR struct error err = ERROR_INIT;
    struct live_vm *vm = core_vm_find(rest->core, req->params[0], &err);
    struct transfer *t = vm != NULL ? mem_zalloc(sizeof(*t)) : NULL;

    if (t != NULL) {
        t->req = req;
        t->head = req->head;
        buf_init(&t->list, LIST_MAX);
        t->events = events;
        if (core_address_missing(vm, EXEC_AUTO) ? await_address(t, vm, files, &err) == 0
                                                : (t->files = core_files(vm, files, events, t, &err)) != NULL)
            return t;
        transfer_free(t);
    } else if (vm != NULL) {
        error_set(&err, ERR_DAEMON_OVERLOADED, "out of memory");
    }
    http_reply_error(req, &err);
    return NULL;
}

static void add_stat(struct http_request *req, const json_t *stat)
{
    char size[24];
    const char *mode = json_string_value(json_object_get(stat, "mode"));
    const char *type = json_string_value(json_object_get(stat, "type"));

    snprintf(size, sizeof(size), "%lld", (long long)json_integer_value(json_object_get(stat, "size")));
    http_add_header(req, "X-File-Mode", mode != NULL ? mode : "");
    http_add_header(req, "X-File-Type", type != NULL ? type : "");
    http_add_header(req, "X-File-Size", size);
}

/* --- get --- */

static void stream_gone(void *arg)
{
    transfer_free(arg);
}

static void stream_drained(void *arg)
{
    struct transfer *t = arg;

    if (!t->paused)
        return;
    t->paused = false;
    files_pause(t->files, false);
}

static void get_began(void *arg, const json_t *stat)
{
    static const struct http_stream_events events = {.drained = stream_drained, .gone = stream_gone};
    struct transfer *t = arg;

    http_on_gone(t->req, NULL, NULL);
    add_stat(t->req, stat);
    t->stream = http_stream_start(t->req, 200, "application/octet-stream", LIVE_MAX, &events, t);
    t->req = NULL;
    if (t->stream == NULL)
        transfer_free(t);
}

static void get_data(void *arg, const char *data, size_t len)
{
    struct transfer *t = arg;

    http_stream_write(t->stream, data, len);
    if (http_stream_pending(t->stream) > LIVE_HIGH && !t->paused) {
        t->paused = true;
        files_pause(t->files, true);
    }
}

/* Behind the first byte an error can only break the answer off: the client misses its end. */
static void get_ended(void *arg, const json_t *stat, struct error *err)
{
    struct transfer *t = arg;

    (void)stat;
    if (t->stream != NULL && !error_is_set(err)) {
        http_stream_end(t->stream);
    } else if (t->stream != NULL) {
        http_stream_break(t->stream);
    } else {
        http_on_gone(t->req, NULL, NULL);
        http_reply_error(t->req, err);
    }
    transfer_free(t);
}

/* --- list, stat and the small ones: one answer at the end --- */

/* What the helper tells of a file, said anew: only what is known goes on. */
static char *stat_text(const json_t *stat)
{
    const char *name = json_string_value(json_object_get(stat, "name"));
    const char *type = json_string_value(json_object_get(stat, "type"));
    const char *mode = json_string_value(json_object_get(stat, "mode"));
    json_t *doc = type != NULL && mode != NULL
                      ? json_pack("{s:s*, s:s, s:I, s:s, s:I}", "name", name, "type", type, "size",
                                  json_integer_value(json_object_get(stat, "size")), "mode", mode, "mtime",
                                  json_integer_value(json_object_get(stat, "mtime")))
                      : json_object();
    char *text = doc != NULL ? json_dumps(doc, JSON_COMPACT) : NULL;

    json_decref(doc);
    return text;
}

static void list_data(void *arg, const char *data, size_t len)
{
    struct transfer *t = arg;
    json_t *stat = json_loadb(data, len, JSON_REJECT_DUPLICATES, NULL);
    CLEANUP_FREE char *text = stat != NULL ? stat_text(stat) : NULL;

    json_decref(stat);
    if (text == NULL)
        return;
    if (t->listed++ > 0)
        buf_char(&t->list, ',');
    buf_str(&t->list, text);
}

static void no_began(void *arg, const json_t *stat)
{
    (void)arg;
    (void)stat;
}

static void answer(struct transfer *t, struct error *err, const char *json)
{
    http_on_gone(t->req, NULL, NULL);
    if (!error_is_set(err) && json == NULL)
        error_set(err, ERR_DAEMON_OVERLOADED, "no memory for the answer");
    if (error_is_set(err))
        http_reply_error(t->req, err);
    else
        http_reply_json(t->req, 200, json);
    transfer_free(t);
}

static void list_ended(void *arg, const json_t *stat, struct error *err)
{
    struct transfer *t = arg;
    CLEANUP_BUF struct buf out = BUF_INIT(LIST_MAX + 64);

    (void)stat;
    buf_str(&out, "{\"items\":[");
    if (t->list.len > 0)
        buf_append(&out, t->list.data, t->list.len);
    buf_str(&out, "]}");
    answer(t, err, out.failed || t->list.failed ? NULL : out.data);
}

static void stat_ended(void *arg, const json_t *stat, struct error *err)
{
    static const struct http_stream_events none = {0};
    struct transfer *t = arg;

    if (error_is_set(err)) {
        answer(t, err, NULL);
        return;
    }
    /* As GET's, whose length nobody knows before its end. */
    http_on_gone(t->req, NULL, NULL);
    add_stat(t->req, stat);
    struct http_stream *s = http_stream_start(t->req, 200, "application/octet-stream", LIVE_HIGH, &none, NULL);
    if (s != NULL)
        http_stream_end(s);
    transfer_free(t);
}

static void small_ended(void *arg, const json_t *stat, struct error *err)
{
    CLEANUP_FREE char *text = stat != NULL ? stat_text(stat) : NULL;

    answer(arg, err, text);
}

static const struct files_events get_events = {.began = get_began, .data = get_data, .ended = get_ended};
static const struct files_events list_events = {.began = no_began, .data = list_data, .ended = list_ended};
static const struct files_events stat_events = {.began = no_began, .ended = stat_ended};
static const struct files_events small_events = {.began = no_began, .ended = small_ended};

void rest_files_get(struct http_request *req, void *arg)
{
    CLEANUP_ERROR struct error err = ERROR_INIT;
    struct files_request files = {.op = req->head ? FILES_STAT : FILES_GET};
    const struct files_events *events = req->head ? &stat_events : &get_events;
    int64_t list = 0;

    if (read_path(req, &files.path, &err) < 0 || rest_query_int(req, "list", 0, 1, &list, &err) < 0) {
        http_reply_error(req, &err);
        return;
    }
    if (list == 1) {
        files.op = FILES_LIST;
        events = &list_events;
    }
    struct transfer *t = begin(arg, req, &files, events);
    if (t != NULL)
        http_on_gone(req, left, t);
}

/* --- put --- */

static void put_began(void *arg, const json_t *stat)
{
    struct transfer *t = arg;

    (void)stat;
    t->started = true;
    if (t->whole)
        files_write_end(t->files);
    else
        http_body_more(t->req);
}

static void put_room(void *arg)
{
    struct transfer *t = arg;

    if (t->started && !t->whole)
        http_body_more(t->req);
}

static size_t put_bytes(void *arg, const void *data, size_t len)
{
    struct transfer *t = arg;

    return t->started ? files_write(t->files, data, len) : 0;
}

static void put_whole(void *arg)
{
    struct transfer *t = arg;

    t->whole = true;
    if (t->started)
        files_write_end(t->files);
}

static void put_ended(void *arg, const json_t *stat, struct error *err)
{
    struct transfer *t = arg;

    if (t->whole) {
        small_ended(t, stat, err);
        return;
    }
    if (!error_is_set(err))
        error_set(err, ERR_SSH_FAILED, "the transfer ended before the body");
    http_body_refuse(t->req, err);
    transfer_free(t);
}

void rest_files_put(struct http_request *req, void *arg)
{
    static const struct files_events events = {.began = put_began, .room = put_room, .ended = put_ended};
    static const struct http_body_events body_events = {.data = put_bytes, .whole = put_whole};
    CLEANUP_ERROR struct error err = ERROR_INIT;
    struct files_request files = {.op = FILES_PUT, .mode = http_header(req, "X-File-Mode")};

    if (read_path(req, &files.path, &err) < 0 ||
        (files.mode != NULL && !mode_valid(files.mode) &&
         field_pointer_error(&err, "/X-File-Mode", "an octal mode, such as 0644", "X-File-Mode is no octal mode") <
             0)) {
        http_reply_error(req, &err);
        return;
    }
    struct transfer *t = begin(arg, req, &files, &events);
    if (t == NULL)
        return;
    http_body_take(req, &body_events, t);
    http_on_gone(req, left, t);
}

/* --- delete, mkdir, rename --- */

void rest_files_delete(struct http_request *req, void *arg)
{
    CLEANUP_ERROR struct error err = ERROR_INIT;
    struct files_request files = {.op = FILES_DELETE};

    if (read_path(req, &files.path, &err) < 0) {
        http_reply_error(req, &err);
        return;
    }
    struct transfer *t = begin(arg, req, &files, &small_events);
    if (t != NULL)
        http_on_gone(req, left, t);
}

static void small_post(struct http_request *req, struct rest *rest, enum files_op op, const char *const *names,
                       const char *first, const char *second)
{
    CLEANUP_ERROR struct error err = ERROR_INIT;
    CLEANUP_FREE char *path = NULL, *to = NULL, *mode = NULL;
    json_t *body = rest_body(req, &err);
    struct fields f;
    bool parents = false;
    int rc =
        body != NULL && fields_open(&f, body, "", names, &err) == 0 && field_str(&f, first, PATH_LEN_MAX, &path) == 0
            ? 0
            : -1;

    if (rc == 0 && (path == NULL || *path == '\0'))
        rc = field_error(&f, first, "a path in the guest");
    if (rc == 0 && second != NULL && (rc = field_str(&f, second, PATH_LEN_MAX, &to)) == 0 &&
        (to == NULL || *to == '\0'))
        rc = field_error(&f, second, "a path in the guest");
    if (rc == 0 && second == NULL)
        rc = field_str(&f, "mode", 4, &mode) < 0 || field_bool(&f, "parents", &parents) < 0 ? -1 : 0;
    if (rc == 0 && mode != NULL && !mode_valid(mode))
        rc = field_error(&f, "mode", "an octal mode, such as 0755");
    json_decref(body);
    if (rc < 0) {
        http_reply_error(req, &err);
        return;
    }
    struct files_request files = {.op = op, .path = path, .to = to, .mode = mode, .parents = parents};
    struct transfer *t = begin(rest, req, &files, &small_events);
    if (t != NULL)
        http_on_gone(req, left, t);
}

void rest_files_mkdir(struct http_request *req, void *arg)
{
    static const char *const names[] = {"path", "mode", "parents", NULL};

    small_post(req, arg, FILES_MKDIR, names, "path", NULL);
}

void rest_files_rename(struct http_request *req, void *arg)
{
    static const char *const names[] = {"from", "to", NULL};

    small_post(req, arg, FILES_RENAME, names, "from", "to");
}
