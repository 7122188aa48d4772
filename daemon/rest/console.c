/* console.c - the console and the display over WebSockets: binary frames are bytes, both ways.
 *
 * The console is read from its log by offset, so that many read at their own speed; the first that types holds the pen.
 * Close codes: 1000 the VM ended, 1008 somebody else writes (?force=1 takes it), 1011 too slow. */
#include <stdint.h>
#include <string.h>

#include "base/mem.h"
#include "core/tunnel.h"
#include "rest/rest.h"

enum { PENDING_MAX = 1 << 20, PENDING_HIGH = 256 << 10 };

struct session {
    struct http_ws *ws;
    struct console_pen *pen;
    struct log_follow *follow;
    struct vnc_tunnel *vnc;
    bool ended;
};

static void session_free(struct session *s)
{
    log_follow_end(s->follow);
    console_pen_free(s->pen);
    vnc_tunnel_free(s->vnc);
    mem_free(s);
}

static void session_close(struct session *s, int code, const char *reason)
{
    struct http_ws *ws = s->ws;

    s->ws = NULL;
    if (ws != NULL)
        http_ws_close(ws, code, reason);
    session_free(s);
}

static void ws_closed(void *arg)
{
    struct session *s = arg;

    s->ws = NULL;
    session_free(s);
}

/* --- console --- */

static void console_bytes(void *arg, const struct core_log_chunk *chunk)
{
    struct session *s = arg;

    if (chunk == NULL) {
        session_close(s, 1000, "the VM is gone");
        return;
    }
    if (http_ws_send(s->ws, chunk->data, chunk->len) < 0)
        session_close(s, 1011, "too slow");
    else if (http_ws_pending(s->ws) < PENDING_HIGH)
        log_follow_more(s->follow);
}

static void console_drained(void *arg)
{
    struct session *s = arg;

    if (s->follow != NULL)
        log_follow_more(s->follow);
}

static void console_typed(void *arg, bool binary, const void *data, size_t len)
{
    struct session *s = arg;
    bool taken;

    (void)binary;
    if (console_pen_write(s->pen, data, len, &taken) < 0 && taken)
        session_close(s, 1008, "another client writes; connect with force=1 to take its place");
}

/* The rest of the log still goes out: the follower ends it when the VM is gone, a closed console by this. */
static void pen_lost(void *arg, const char *why)
{
    struct session *s = arg;

    session_close(s, strcmp(why, "the VM ended") == 0 ? 1000 : 1008, why);
}

void rest_vm_console(struct http_request *req, void *arg)
{
    static const struct http_ws_events events = {
        .message = console_typed, .drained = console_drained, .closed = ws_closed};
    struct rest *rest = arg;
    CLEANUP_ERROR struct error err = ERROR_INIT;
    int64_t from = 0, force = 0;
    struct live_vm *vm = core_vm_find(rest->core, req->params[0], &err);
    struct session *s = NULL;
    bool from_given = http_query(req, "from") != NULL;

    if (vm == NULL || rest_query_int(req, "from", 0, INT64_MAX, &from, &err) < 0 ||
        rest_query_int(req, "force", 0, 1, &force, &err) < 0)
        goto refuse;
    s = mem_zalloc(sizeof(*s));
    if (s == NULL) {
        error_set(&err, ERR_DAEMON_OVERLOADED, "out of memory");
        goto refuse;
    }
    s->pen = console_pen_new(vm, force == 1, pen_lost, s, &err);
    if (s->pen == NULL)
        goto refuse;
    core_vm_ref(vm);
    s->ws = http_ws_accept(req, PENDING_MAX, &events, s);
    if (s->ws == NULL) { /* answered */
        session_free(s);
    } else {
        s->follow =
            core_log_follow(vm, BACKEND_LOG_CONSOLE, from_given ? -1 : 0, (uint64_t)from, console_bytes, s, &err);
        if (s->follow == NULL)
            session_close(s, 1011, "out of memory");
    }
    core_vm_unref(vm);
    return;
refuse:
    mem_free(s);
    http_reply_error(req, &err);
}

/* --- display --- */

static void vnc_bytes(void *arg, const void *data, size_t len)
{
    struct session *s = arg;

    if (http_ws_send(s->ws, data, len) < 0)
        session_close(s, 1011, "too slow");
    else if (http_ws_pending(s->ws) > PENDING_HIGH)
        vnc_tunnel_pause(s->vnc, true);
}

static void vnc_closed(void *arg)
{
    session_close(arg, 1000, "the display closed");
}

static void vnc_taken(void *arg)
{
    struct session *s = arg;

    http_ws_pause(s->ws, false);
}

static void vnc_client(void *arg, bool binary, const void *data, size_t len)
{
    struct session *s = arg;

    (void)binary;
    if (vnc_tunnel_write(s->vnc, data, len) < 0)
        session_close(s, 1011, "the display does not take its input");
}

static void vnc_drained(void *arg)
{
    struct session *s = arg;

    vnc_tunnel_pause(s->vnc, false);
}

void rest_vm_vnc(struct http_request *req, void *arg)
{
    static const struct vnc_tunnel_events tunnel_events = {
        .data = vnc_bytes, .closed = vnc_closed, .drained = vnc_taken};
    static const struct http_ws_events events = {.message = vnc_client, .drained = vnc_drained, .closed = ws_closed};
    struct rest *rest = arg;
    CLEANUP_ERROR struct error err = ERROR_INIT;
    struct live_vm *vm = core_vm_find(rest->core, req->params[0], &err);
    struct session *s = vm != NULL ? mem_zalloc(sizeof(*s)) : NULL;

    if (vm != NULL && s == NULL)
        error_set(&err, ERR_DAEMON_OVERLOADED, "out of memory");
    if (s != NULL)
        s->vnc = vnc_tunnel_new(vm, &tunnel_events, s, &err);
    if (s == NULL || s->vnc == NULL) {
        mem_free(s);
        http_reply_error(req, &err);
        return;
    }
    s->ws = http_ws_accept(req, PENDING_MAX, &events, s);
    if (s->ws == NULL)
        session_free(s);
}
