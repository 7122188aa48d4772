/* tunnel.c - see tunnel.h. */
#include "core/tunnel.h"

#include <string.h>

#include "backend/console.h"
#include "base/mem.h"
#include "base/str.h"
#include "core/internal.h"
#include "loop/stream.h"

enum { VNC_PENDING_MAX = 1 << 20 };

struct console_pen {
    struct live_vm *vm;
    struct console *console;
    struct console_watch *watch;
    bool held;
    void (*lost)(void *arg, const char *why);
    void *arg;
};

static int needs_running(const struct live_vm *vm, const char *what, struct error *err)
{
    static const char *const expected[] = {"running", "suspended", NULL};

    error_set(err, ERR_VM_INVALID_STATE, "VM %s is %s; its %s needs running or suspended", vm->vm.name,
              vm_state_text(vm->pub_state), what);
    error_help(err, "start it with `vmctl start %s`; `vmctl log %s` shows what it wrote before", vm->vm.name,
               vm->vm.name);
    error_ctx_str(err, "vm", vm->vm.name);
    error_ctx_str(err, "current", vm_state_text(vm->pub_state));
    error_ctx_list(err, "expected", expected);
    return -1;
}

static void pen_taken(void *arg)
{
    struct console_pen *pen = arg;

    pen->held = false;
    pen->lost(pen->arg, "another client took the console");
}

static void console_gone(void *arg)
{
    struct console_pen *pen = arg;

    pen->console = NULL;
    pen->held = false;
    pen->lost(pen->arg, "the VM ended");
}

struct console_pen *console_pen_new(struct live_vm *vm, bool force, void (*lost)(void *arg, const char *why), void *arg,
                                    struct error *err)
{
    struct console *console = vm->bvm != NULL && vm->be->console != NULL ? vm->be->console(vm->bvm) : NULL;

    if (vm->be->console == NULL) {
        error_set(err, ERR_BACKEND_NOT_AVAILABLE, "backend %s has no console", vm->be->name);
        return NULL;
    }
    if (console == NULL) {
        needs_running(vm, "console", err);
        return NULL;
    }
    struct console_pen *pen = mem_zalloc(sizeof(*pen));
    if (pen == NULL)
        goto no_memory;
    *pen = (struct console_pen){.vm = vm, .console = console, .lost = lost, .arg = arg};
    pen->watch = console_watch(console, console_gone, pen);
    if (pen->watch == NULL) {
        mem_free(pen);
        goto no_memory;
    }
    if (force)
        pen->held = console_claim(console, true, pen_taken, pen) == 0;
    core_vm_ref(vm);
    return pen;
no_memory:
    error_set(err, ERR_DAEMON_OVERLOADED, "out of memory");
    return NULL;
}

int console_pen_write(struct console_pen *pen, const void *data, size_t len, bool *ret_taken)
{
    *ret_taken = false;
    if (pen->console == NULL)
        return -1;
    if (!pen->held)
        pen->held = console_claim(pen->console, false, pen_taken, pen) == 0;
    *ret_taken = !pen->held;
    return pen->held ? console_write(pen->console, data, len) : -1;
}

void console_pen_free(struct console_pen *pen)
{
    if (pen == NULL)
        return;
    if (pen->console != NULL && pen->held)
        console_release(pen->console, pen);
    console_unwatch(pen->watch);
    core_vm_unref(pen->vm);
    mem_free(pen);
}

/* --- VNC --- */

struct vnc_tunnel {
    struct stream *stream;
    struct vnc_tunnel_events events;
    void *arg;
};

static void vnc_data(void *arg, const char *data, size_t len)
{
    struct vnc_tunnel *t = arg;

    t->events.data(t->arg, data, len);
}

static void vnc_closed(void *arg, int errnum)
{
    struct vnc_tunnel *t = arg;

    (void)errnum;
    t->events.closed(t->arg);
}

static void vnc_drained(void *arg)
{
    struct vnc_tunnel *t = arg;

    t->events.drained(t->arg);
}

struct vnc_tunnel *vnc_tunnel_new(struct live_vm *vm, const struct vnc_tunnel_events *events, void *arg,
                                  struct error *err)
{
    static const struct stream_events stream_events = {.data = vnc_data, .closed = vnc_closed, .drained = vnc_drained};
    const char *addr = vm->vm.runtime.vnc_addr;

    if (vm->vm.spec.display != VM_DISPLAY_VGA) {
        error_set(err, ERR_BACKEND_NOT_AVAILABLE, "VM %s has no display", vm->vm.name);
        error_help(err, "create it with \"display\":\"vga\" (vmctl create --display vga)");
        return NULL;
    }
    if (addr == NULL) {
        needs_running(vm, "display", err);
        return NULL;
    }
    struct vnc_tunnel *t = mem_zalloc(sizeof(*t));
    if (t == NULL) {
        error_set(err, ERR_DAEMON_OVERLOADED, "out of memory");
        return NULL;
    }
    t->events = *events;
    t->arg = arg;
    t->stream = stream_connect(vm->core->loop, str_prefix(addr, "unix:") ? addr + 5 : addr, VNC_PENDING_MAX,
                               &stream_events, t, err);
    if (t->stream == NULL) {
        mem_free(t);
        return NULL;
    }
    return t;
}

int vnc_tunnel_write(struct vnc_tunnel *t, const void *data, size_t len)
{
    return stream_write(t->stream, data, len);
}

void vnc_tunnel_pause(struct vnc_tunnel *t, bool paused)
{
    stream_pause(t->stream, paused);
}

void vnc_tunnel_free(struct vnc_tunnel *t)
{
    if (t == NULL)
        return;
    stream_free(t->stream);
    mem_free(t);
}
