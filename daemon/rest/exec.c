/* exec.c - POST …/exec: a command in a guest, answered whole or line by line; and GET …/ssh.
 *
 *   whole:  output gathered up to max_output of each stream, then one document
 *   live:   each piece a line of JSON as it comes; a slow reader pauses the command; the last line is the result
 *
 * A client that leaves kills the command.  What is not UTF-8 goes out as base64, under another name. */
#include <nettle/base64.h>
#include <stdio.h>
#include <string.h>

#include "base/mem.h"
#include "base/problem.h"
#include "base/str.h"
#include "core/exec.h"
#include "model/fields.h"
#include "rest/rest.h"

enum {
    WORDS_MAX = 1024,
    ENV_MAX = 256,
    PATH_LEN_MAX = 4096,
    USER_LEN_MAX = 64,
    OUTPUT_DEFAULT = 1 << 20,
    OUTPUT_MAX = 16 << 20,
    TIMEOUT_MAX_S = 86400,
    LIVE_HIGH = 256 << 10,
    LIVE_MAX = 4 << 20,
    TAIL_MAX = 4, /* of a character that a piece cuts */
};

/* --- the request --- */

struct parsed {
    struct exec_request req;
    const char *command[WORDS_MAX];
    struct exec_env env[ENV_MAX];
    char *cwd, *user;
    uint8_t *input;
    int64_t timeout_s, max_output;
};

static void parsed_done(struct parsed *p)
{
    mem_free(p->cwd);
    mem_free(p->user);
    mem_free(p->input);
}

static int read_command(const struct fields *f, struct parsed *p)
{
    const json_t *list = field_get(f, "command"), *script = field_get(f, "script");
    size_t i;
    json_t *word;

    if ((list == NULL) == (script == NULL))
        return field_pointer_error(f->err, "/command", "a list of words, or script in its place",
                                   "a command needs either command or script");
    if (script != NULL) {
        p->req.script = json_string_value(script);
        return p->req.script != NULL && *p->req.script != '\0' ? 0 : field_error(f, "script", "a text for /bin/sh");
    }
    if (!json_is_array(list) || json_array_size(list) < 1 || json_array_size(list) > WORDS_MAX)
        return field_error(f, "command", "a list of 1–1024 words");
    json_array_foreach(list, i, word)
    {
        p->command[i] = json_string_value(word);
        if (p->command[i] == NULL || (i == 0 && (p->command[0][0] == '\0' || p->command[0][0] == '-')))
            return field_error(f, "command", "a list of words, the first a program");
    }
    p->req.command = p->command;
    p->req.n_command = json_array_size(list);
    return 0;
}

static int read_env(const struct fields *f, struct parsed *p)
{
    json_t *env = (json_t *)(uintptr_t)field_get(f, "env"), *value;
    const char *name;
    char pointer[FIELD_POINTER_MAX];

    if (env == NULL)
        return 0;
    if (!json_is_object(env) || json_object_size(env) > ENV_MAX)
        return field_error(f, "env", "an object of at most 256 names and texts");
    json_object_foreach(env, name, value)
    {
        if (!exec_env_name_valid(name) || !json_is_string(value))
            return field_pointer_error(f->err, field_pointer(pointer, "/env", name),
                                       "a name of letters, digits and _, and a text", "env has a bad name or value");
        p->env[p->req.n_env++] = (struct exec_env){name, json_string_value(value)};
    }
    p->req.env = p->env;
    return 0;
}

static int read_input(const struct fields *f, struct parsed *p)
{
    const json_t *value = field_get(f, "stdin_base64");
    const char *text = json_string_value(value);
    struct base64_decode_ctx ctx;

    if (value == NULL)
        return 0;
    if (text == NULL)
        return field_error(f, "stdin_base64", "base64");
    p->req.input_len = BASE64_DECODE_LENGTH(strlen(text));
    p->input = mem_alloc(p->req.input_len + 1);
    if (p->input == NULL)
        return error_set(f->err, ERR_DAEMON_OVERLOADED, "out of memory");
    base64_decode_init(&ctx);
    if (!base64_decode_update(&ctx, &p->req.input_len, p->input, strlen(text), text) || !base64_decode_final(&ctx))
        return field_error(f, "stdin_base64", "base64");
    p->req.input = p->input;
    return 0;
}

static int read_user(const struct fields *f, struct parsed *p)
{
    static const char letters[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-";

    if (field_str(f, "user", USER_LEN_MAX, &p->user) < 0)
        return -1;
    if (p->user != NULL && (*p->user == '\0' || *p->user == '-' || strspn(p->user, letters) != strlen(p->user)))
        return field_error(f, "user", "the name of a user");
    p->req.user = p->user;
    return 0;
}

static int parse(const json_t *body, struct parsed *p, struct error *err)
{
    static const char *const names[] = {"command",      "script",    "env",        "cwd", "user",
                                        "stdin_base64", "timeout_s", "max_output", "via", NULL};
    static const char *const vias[] = {"auto", "ssh", "agent", "vsock", NULL};
    int via = EXEC_AUTO;
    struct fields f;

    p->timeout_s = 30;
    p->max_output = OUTPUT_DEFAULT;
    if (fields_open(&f, body, "", names, err) < 0 || read_command(&f, p) < 0 || read_env(&f, p) < 0 ||
        field_str(&f, "cwd", PATH_LEN_MAX, &p->cwd) < 0 || read_user(&f, p) < 0 || read_input(&f, p) < 0 ||
        field_int(&f, "timeout_s", 1, TIMEOUT_MAX_S, &p->timeout_s) < 0 ||
        field_int(&f, "max_output", 0, OUTPUT_MAX, &p->max_output) < 0 || field_enum(&f, "via", vias, &via) < 0)
        return -1;
    if (p->cwd != NULL && *p->cwd == '\0')
        return field_error(&f, "cwd", "a directory of the guest");
    p->req.cwd = p->cwd;
    p->req.via = (enum exec_via)via;
    p->req.max_output = (size_t)p->max_output;
    return 0;
}

/* --- a command that runs --- */

struct running {
    struct http_request *req; /* NULL: answered by the stream */
    struct http_stream *stream;
    struct core_exec *exec;
    bool live, paused, truncated;
    size_t max;
    struct buf out[2];
    char tail[2][TAIL_MAX];
    size_t tail_len[2];
    char *path, *request_id; /* for an error behind the first line */
    char *vm_name;
    int64_t timeout_s;
};

static void running_free(struct running *r)
{
    core_exec_free(r->exec);
    buf_done(&r->out[0]);
    buf_done(&r->out[1]);
    mem_free(r->path);
    mem_free(r->request_id);
    mem_free(r->vm_name);
    mem_free(r);
}

/* "name":"text" or "name_base64":"..." */
static void put_data(struct buf *b, const char *name, const char *name64, const char *data, size_t len)
{
    if (utf8_valid(data, len) && memchr(data, '\0', len) == NULL) {
        CLEANUP_FREE char *text = mem_strndup(data, len);
        buf_printf(b, "\"%s\":", name);
        b->failed |= text == NULL;
        buf_json_str(b, text != NULL ? text : "");
        return;
    }
    size_t n = BASE64_ENCODE_RAW_LENGTH(len);
    CLEANUP_FREE char *text = mem_alloc(n + 1);
    b->failed |= text == NULL;
    if (text == NULL)
        return;
    base64_encode_raw(text, len, (const uint8_t *)data);
    text[n] = '\0';
    buf_printf(b, "\"%s\":\"", name64);
    buf_append(b, text, n);
    buf_char(b, '"');
}

static void put_end(struct buf *b, const struct running *r, const struct core_exec_end *end)
{
    bool killed = end->end.signal[0] != '\0';

    if (killed || end->end.exit_code < 0)
        buf_printf(b, "\"exit_code\":null,\"signal\":%s%s%s", killed ? "\"" : "", killed ? end->end.signal : "null",
                   killed ? "\"" : "");
    else
        buf_printf(b, "\"exit_code\":%d,\"signal\":null", end->end.exit_code);
    buf_printf(b, ",\"truncated\":%s,\"timed_out\":%s,\"duration_ms\":%lld,\"via\":\"%s\"",
               r->truncated || end->end.truncated ? "true" : "false", end->timed_out ? "true" : "false",
               (long long)end->duration_ms, exec_via_text(end->via));
}

/* --- live --- */

static void stream_gone(void *arg)
{
    running_free(arg);
}

static void stream_drained(void *arg)
{
    struct running *r = arg;

    if (!r->paused)
        return;
    r->paused = false;
    core_exec_pause(r->exec, false);
}

/* False: the client could not be answered by a stream, and has been told so. */
static bool stream_begin(struct running *r)
{
    static const struct http_stream_events events = {.drained = stream_drained, .gone = stream_gone};

    if (r->stream != NULL)
        return true;
    http_on_gone(r->req, NULL, NULL);
    r->stream = http_stream_start(r->req, 200, "application/x-ndjson", LIVE_MAX, &events, r);
    r->req = NULL;
    return r->stream != NULL;
}

static void live_line(struct running *r, bool is_stderr, const char *data, size_t len)
{
    CLEANUP_BUF struct buf line = BUF_INIT(LIVE_MAX);

    if (len == 0)
        return;
    buf_printf(&line, "{\"stream\":\"%s\",", is_stderr ? "stderr" : "stdout");
    put_data(&line, "data", "data_base64", data, len);
    buf_str(&line, "}\n");
    if (!line.failed)
        http_stream_write(r->stream, line.data, line.len);
}

/* Bytes of an unfinished character at the end. */
static size_t unfinished(const char *data, size_t len)
{
    for (size_t n = 1; n < TAIL_MAX && n <= len; n++) {
        unsigned char c = (unsigned char)data[len - n];
        if ((c & 0xc0) == 0x80)
            continue;
        size_t needs = c >= 0xf0 ? 4 : c >= 0xe0 ? 3 : c >= 0xc0 ? 2 : 1;
        return needs > n ? n : 0;
    }
    return 0;
}

static void live_output(struct running *r, bool is_stderr, const char *data, size_t len)
{
    CLEANUP_BUF struct buf whole = BUF_INIT(LIVE_MAX);
    char *tail = r->tail[is_stderr];

    if (!stream_begin(r)) {
        running_free(r);
        return;
    }
    if (r->tail_len[is_stderr] > 0) {
        buf_append(&whole, tail, r->tail_len[is_stderr]);
        buf_append(&whole, data, len);
        if (whole.failed)
            return;
        data = whole.data;
        len = whole.len;
    }
    size_t cut = unfinished(data, len);
    memcpy(tail, data + len - cut, cut);
    r->tail_len[is_stderr] = cut;
    live_line(r, is_stderr, data, len - cut);
    if (http_stream_pending(r->stream) > LIVE_HIGH && !r->paused) {
        r->paused = true;
        core_exec_pause(r->exec, true);
    }
}

static void live_end(struct running *r, const struct core_exec_end *end, struct error *err)
{
    CLEANUP_BUF struct buf line = BUF_INIT(LIVE_MAX);

    if (r->stream == NULL && end == NULL) {
        http_on_gone(r->req, NULL, NULL);
        http_reply_error(r->req, err);
        return;
    }
    if (!stream_begin(r))
        return;
    live_line(r, false, r->tail[0], r->tail_len[0]);
    live_line(r, true, r->tail[1], r->tail_len[1]);
    buf_str(&line, end != NULL ? "{" : "{\"error\":");
    if (end != NULL)
        put_end(&line, r, end);
    else
        error_problem(err, r->path, r->request_id, &line);
    buf_str(&line, "}\n");
    if (!line.failed)
        http_stream_write(r->stream, line.data, line.len);
    http_stream_end(r->stream);
}

/* --- whole --- */

static void gather(struct running *r, bool is_stderr, const char *data, size_t len)
{
    struct buf *b = &r->out[is_stderr];
    size_t room = r->max - b->len;

    if (len > room) {
        r->truncated = true;
        len = room;
    }
    if (len > 0 && buf_append(b, data, len) != 0)
        r->truncated = true;
}

static void timed_out(const struct running *r, const struct core_exec_end *end, struct error *err)
{
    error_set(err, ERR_EXEC_TIMED_OUT, "the command in VM %s did not end within %lld s", r->vm_name,
              (long long)r->timeout_s);
    error_ctx_str(err, "vm", r->vm_name);
    error_ctx_str(err, "via", exec_via_text(end->via));
    error_ctx_int(err, "timeout_s", r->timeout_s);
    if (end->end.exit_code < 0 && end->end.signal[0] == '\0')
        error_cause(err, "the guest did not confirm its end");
}

static void whole_end(struct running *r, const struct core_exec_end *end, struct error *err)
{
    CLEANUP_BUF struct buf b = BUF_INIT((size_t)14 * OUTPUT_MAX);
    static const char empty[] = "";

    http_on_gone(r->req, NULL, NULL);
    if (end != NULL && end->timed_out) {
        error_done(err);
        timed_out(r, end, err);
    }
    if (error_is_set(err)) {
        http_reply_error(r->req, err);
        return;
    }
    buf_char(&b, '{');
    put_end(&b, r, end);
    for (int i = 0; i < 2; i++) {
        buf_char(&b, ',');
        put_data(&b, i == 0 ? "stdout" : "stderr", i == 0 ? "stdout_base64" : "stderr_base64",
                 r->out[i].len > 0 ? r->out[i].data : empty, r->out[i].len);
    }
    buf_char(&b, '}');
    if (b.failed) {
        error_set(err, ERR_DAEMON_OVERLOADED, "no memory for the command's output; ask for a smaller max_output");
        http_reply_error(r->req, err);
        return;
    }
    http_reply(r->req, 200, "application/json", b.data, b.len);
}

/* --- both --- */

static void on_output(void *arg, bool is_stderr, const char *data, size_t len)
{
    struct running *r = arg;

    if (r->live)
        live_output(r, is_stderr, data, len);
    else
        gather(r, is_stderr, data, len);
}

static void on_ended(void *arg, const struct core_exec_end *end, struct error *err)
{
    struct running *r = arg;

    if (r->live)
        live_end(r, end, err);
    else
        whole_end(r, end, err);
    running_free(r);
}

static void left(void *arg, struct http_request *req)
{
    struct running *r = arg;
    struct error err = ERROR_INIT;

    if (http_stopping(req)) {
        error_set(&err, ERR_DAEMON_SHUTTING_DOWN, "vmmd stopped while the command ran; it was killed");
        http_reply_error(req, &err);
        error_done(&err);
    }
    running_free(r);
}

static struct running *running_new(struct http_request *req, const struct live_vm *vm, const struct parsed *p)
{
    const char *accept = http_header(req, "Accept");
    struct running *r = mem_zalloc(sizeof(*r));

    if (r == NULL)
        return NULL;
    r->req = req;
    r->live = accept != NULL && strstr(accept, "application/x-ndjson") != NULL;
    r->max = (size_t)p->max_output;
    r->timeout_s = p->timeout_s;
    buf_init(&r->out[0], OUTPUT_MAX);
    buf_init(&r->out[1], OUTPUT_MAX);
    r->path = mem_strdup(req->path);
    r->request_id = mem_strdup(req->request_id);
    r->vm_name = mem_strdup(core_vm_data(vm)->name);
    if (r->path != NULL && r->request_id != NULL && r->vm_name != NULL)
        return r;
    running_free(r);
    return NULL;
}

void rest_vm_exec(struct http_request *req, void *arg)
{
    static const struct core_exec_events events = {.output = on_output, .ended = on_ended};
    struct rest *rest = arg;
    CLEANUP_ERROR struct error err = ERROR_INIT;
    struct live_vm *vm = core_vm_find(rest->core, req->params[0], &err);
    json_t *body = vm != NULL ? rest_body(req, &err) : NULL;
    struct parsed *p = mem_zalloc(sizeof(*p));
    struct running *r = NULL;

    if (vm != NULL && p == NULL)
        error_set(&err, ERR_DAEMON_OVERLOADED, "out of memory");
    if (body != NULL && p != NULL && parse(body, p, &err) == 0) {
        r = running_new(req, vm, p);
        if (r == NULL)
            error_set(&err, ERR_DAEMON_OVERLOADED, "out of memory");
        else
            r->exec = core_exec_new(vm, &p->req, p->timeout_s * 1000, &events, r, &err);
    }
    if (r != NULL && r->exec != NULL) {
        http_on_gone(req, left, r);
    } else {
        if (r != NULL)
            running_free(r);
        http_reply_error(req, &err);
    }
    if (p != NULL)
        parsed_done(p);
    mem_free(p);
    json_decref(body);
}

/* --- GET …/ssh --- */

static json_t *text_or_null(const char *text)
{
    return text != NULL && *text != '\0' ? json_string(text) : json_null();
}

void rest_vm_ssh(struct http_request *req, void *arg)
{
    struct rest *rest = arg;
    CLEANUP_ERROR struct error err = ERROR_INIT;
    struct live_vm *vm = core_vm_find(rest->core, req->params[0], &err);
    struct core_ssh ssh;

    if (vm == NULL) {
        http_reply_error(req, &err);
        return;
    }
    core_vm_ssh(vm, &ssh);
    json_t *doc = json_pack("{s:o, s:o, s:o, s:o, s:o, s:o}", "user", text_or_null(ssh.user), "host",
                            text_or_null(ssh.host), "port", ssh.host != NULL ? json_integer(ssh.port) : json_null(),
                            "private_key_path", text_or_null(ssh.key_path), "host_key", text_or_null(ssh.host_key),
                            "known_hosts", text_or_null(ssh.known_hosts));
    CLEANUP_FREE char *text = doc != NULL ? json_dumps(doc, JSON_COMPACT) : NULL;
    json_decref(doc);
    if (text == NULL) {
        error_set(&err, ERR_DAEMON_OVERLOADED, "out of memory");
        http_reply_error(req, &err);
        return;
    }
    http_reply_json(req, 200, text);
}
