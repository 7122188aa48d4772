/* logs.c - GET …/logs/{console,vmm,provision}: the bytes of a log, once or followed. */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/mem.h"
#include "rest/rest.h"

enum { READ_MAX = 4 << 20, PENDING_MAX = 1 << 20 };

struct reading {
    struct http_request *req;
    struct log_read *read;
};

static void read_left(void *arg, struct http_request *req)
{
    struct reading *r = arg;

    (void)req;
    log_read_cancel(r->read);
    mem_free(r);
}

static void add_offsets(struct http_request *req, uint64_t next, uint64_t oldest)
{
    char text[24];

    snprintf(text, sizeof(text), "%" PRIu64, next);
    http_add_header(req, "X-Next-Offset", text);
    snprintf(text, sizeof(text), "%" PRIu64, oldest);
    http_add_header(req, "X-Oldest-Offset", text);
}

static void read_done(void *arg, const struct core_log_chunk *chunk, struct error *err)
{
    struct reading *r = arg;

    http_on_gone(r->req, NULL, NULL);
    if (chunk == NULL) {
        http_reply_error(r->req, err);
    } else {
        add_offsets(r->req, chunk->offset + chunk->len, chunk->oldest);
        http_reply(r->req, 200, "application/octet-stream", chunk->len > 0 ? chunk->data : "", chunk->len);
    }
    mem_free(r);
}

/* --- follow --- */

struct following {
    struct rest *rest;
    struct http_stream *stream;
    struct log_follow *follow;
    uint64_t expected; /* offset of the next byte; a jump is marked */
    bool started;
};

static void follow_free(struct following *f)
{
    log_follow_end(f->follow);
    mem_free(f);
}

static void follow_gone(void *arg)
{
    follow_free(arg);
}

static void follow_drained(void *arg)
{
    struct following *f = arg;

    if (f->follow != NULL)
        log_follow_more(f->follow);
}

static void follow_chunk(void *arg, const struct core_log_chunk *chunk)
{
    struct following *f = arg;
    char mark[80];

    if (chunk == NULL) {
        http_stream_end(f->stream);
        follow_free(f);
        return;
    }
    if (f->started && chunk->offset > f->expected) {
        int n = snprintf(mark, sizeof(mark), "\n[vmmd: %" PRIu64 " bytes are no longer kept]\n",
                         chunk->offset - f->expected);
        http_stream_write(f->stream, mark, (size_t)n);
    }
    f->started = true;
    f->expected = chunk->offset + chunk->len;
    http_stream_write(f->stream, chunk->data, chunk->len); /* `drained` asks for more */
}

/* A request to follow: a first look finds where the stream begins, for its headers. */
struct follow_request {
    struct rest *rest;
    struct http_request *req;
    struct live_vm *vm; /* referenced */
    enum backend_log which;
    int64_t from;
    struct log_read *read;
};

static void follow_request_free(struct follow_request *r)
{
    core_vm_unref(r->vm);
    mem_free(r);
}

static void follow_left(void *arg, struct http_request *req)
{
    struct follow_request *r = arg;

    (void)req;
    log_read_cancel(r->read);
    follow_request_free(r);
}

static void follow_begin(struct follow_request *r, uint64_t offset, struct error *err)
{
    static const struct http_stream_events events = {.drained = follow_drained, .gone = follow_gone};
    struct following *f = mem_zalloc(sizeof(*f));

    if (f == NULL) {
        error_set(err, ERR_DAEMON_OVERLOADED, "out of memory");
        http_reply_error(r->req, err);
        return;
    }
    f->rest = r->rest;
    f->started = r->from > 0;
    f->expected = (uint64_t)r->from;
    f->stream = http_stream_start(r->req, 200, "application/octet-stream", PENDING_MAX, &events, f);
    if (f->stream == NULL) { /* answered */
        mem_free(f);
        return;
    }
    f->follow = core_log_follow(r->vm, r->which, -1, offset, follow_chunk, f, err);
    if (f->follow == NULL) {
        http_stream_end(f->stream);
        mem_free(f);
    }
}

static void follow_looked(void *arg, const struct core_log_chunk *chunk, struct error *err)
{
    struct follow_request *r = arg;

    http_on_gone(r->req, NULL, NULL);
    if (chunk == NULL) {
        http_reply_error(r->req, err);
    } else {
        add_offsets(r->req, chunk->offset, chunk->oldest);
        follow_begin(r, chunk->offset, err);
    }
    follow_request_free(r);
}

static void follow_start(struct rest *rest, struct http_request *req, struct live_vm *vm, enum backend_log which,
                         int64_t tail, int64_t from)
{
    CLEANUP_ERROR struct error err = ERROR_INIT;
    struct follow_request *r = mem_zalloc(sizeof(*r));

    if (r == NULL) {
        error_set(&err, ERR_DAEMON_OVERLOADED, "out of memory");
        http_reply_error(req, &err);
        return;
    }
    *r = (struct follow_request){
        .rest = rest, .req = req, .vm = core_vm_ref(vm), .which = which, .from = tail >= 0 ? 0 : from};
    r->read = core_log_read(vm, which, tail, (uint64_t)from, READ_MAX, follow_looked, r, &err);
    if (r->read == NULL) {
        follow_request_free(r);
        http_reply_error(req, &err);
        return;
    }
    http_on_gone(req, follow_left, r);
}

static void get_log(struct http_request *req, struct rest *rest, enum backend_log which)
{
    CLEANUP_ERROR struct error err = ERROR_INIT;
    int64_t tail = -1, from = 0, follow = 0;
    struct live_vm *vm = core_vm_find(rest->core, req->params[0], &err);

    if (vm == NULL || rest_query_int(req, "tail", 0, 1000000, &tail, &err) < 0 ||
        rest_query_int(req, "from", 0, INT64_MAX, &from, &err) < 0 ||
        rest_query_int(req, "follow", 0, 1, &follow, &err) < 0) {
        http_reply_error(req, &err);
        return;
    }
    if (http_query(req, "from") != NULL)
        tail = -1;
    if (follow == 1) {
        follow_start(rest, req, vm, which, tail, from);
        return;
    }
    struct reading *r = mem_zalloc(sizeof(*r));
    if (r != NULL) {
        r->req = req;
        r->read = core_log_read(vm, which, tail, (uint64_t)from, READ_MAX, read_done, r, &err);
    } else {
        error_set(&err, ERR_DAEMON_OVERLOADED, "out of memory");
    }
    if (r == NULL || r->read == NULL) {
        mem_free(r);
        http_reply_error(req, &err);
        return;
    }
    http_on_gone(req, read_left, r);
}

void rest_vm_log_console(struct http_request *req, void *arg)
{
    get_log(req, arg, BACKEND_LOG_CONSOLE);
}

void rest_vm_log_vmm(struct http_request *req, void *arg)
{
    get_log(req, arg, BACKEND_LOG_VMM);
}

void rest_vm_log_provision(struct http_request *req, void *arg)
{
    get_log(req, arg, BACKEND_LOG_PROVISION);
}
