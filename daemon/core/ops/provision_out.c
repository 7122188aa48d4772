/* provision_out.c - what provisioning steps write: all of it into the VM's provision log, a part into events, the last lines
 * into the error of a step that fails.
 *
 * Failure modes.  The disk is slower than the step: the step is paused while the log has much to write.  A step that writes a
 * great deal: events gather for EVENT_MS up to EVENT_MAX, and tell EVENTS_OF_STEP bytes of a step at most; `skipped` counts the
 * rest, which is in the log. */
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "base/clock.h"
#include "base/mem.h"
#include "base/str.h"
#include "core/ops/provision.h"

enum {
    LOG_MAX = 1 << 20,
    LOG_HIGH = 128 << 10,
    LOG_LOW = 32 << 10,
    EVENT_MS = 250,
    EVENT_MAX = 4096,
    EVENTS_OF_STEP = 64 << 10,
    TAIL_LINES = 20,
};

/* Any bytes as text: what is no UTF-8, and NUL, becomes U+FFFD.  NULL: no memory. */
static char *as_text(const char *data, size_t len)
{
    struct buf out = BUF_INIT(3 * PROVISION_TAIL_MAX + EVENT_MAX * 3 + 1);

    for (size_t i = 0, n; i < len; i += n) {
        n = data[i] != '\0' ? utf8_sequence(data + i, len - i) : 0;
        if (n > 0)
            buf_append(&out, data + i, n);
        else
            buf_str(&out, "\xef\xbf\xbd");
        n = n > 0 ? n : 1;
    }
    if (len == 0)
        buf_str(&out, "");
    if (out.data == NULL && !out.failed)
        return mem_strdup("");
    return buf_take(&out, NULL);
}

/* --- events --- */

void provision_out_event(struct provision *p, struct change *ch, const char *state, const struct error *err)
{
    json_t *data =
        json_pack("{s:i,s:i,s:s,s:s}", "step", (int)p->at + 1, "steps", (int)p->n, "state", state, "label", p->label);

    if (strcmp(state, "started") != 0 && strcmp(state, "skipped") != 0)
        json_object_set_new(data, "ms", json_integer(clock_mono_ms() - p->step_began_ms));
    if (err != NULL)
        json_object_set_new(data, "message", json_string(err->message));
    if (ch != NULL)
        change_event(ch, "vm.provision_step", p->vo->vm, p->vo->res, NULL, data);
    else
        change_lazy_event(p->vo->core, "vm.provision_step", p->vo->vm, p->vo->res, data);
}

void provision_out_flush(struct provision *p)
{
    struct provision_out *o = &p->out;

    if (o->timer != NULL)
        timer_stop(o->timer);
    if (o->event.len == 0 && o->skipped == 0)
        return;
    CLEANUP_FREE char *text = as_text(o->event.data, o->event.len);
    change_lazy_event(p->vo->core, "vm.provision_output", p->vo->vm, p->vo->res,
                      json_pack("{s:i,s:s,s:I}", "step", (int)p->at + 1, "data", text != NULL ? text : "", "skipped",
                                (json_int_t)o->skipped));
    buf_reset(&o->event);
    o->skipped = 0;
}

static void event_due(void *arg)
{
    struct provision *p = arg;

    if (p->out.left > 0 || p->out.event.len > 0)
        provision_out_flush(p); /* what only counts is told at the step's end */
}

/* Where a cut does not fall into a character. */
static size_t whole_characters(const char *data, size_t len)
{
    for (size_t back = 1; back <= 3 && back <= len; back++) {
        unsigned char c = (unsigned char)data[len - back];
        if ((c & 0xc0) == 0x80)
            continue;
        size_t need = c >= 0xf0 ? 4 : c >= 0xe0 ? 3 : c >= 0xc0 ? 2 : 1;
        return need > back ? len - back : len;
    }
    return len;
}

static void event_add(struct provision *p, const char *data, size_t len)
{
    struct provision_out *o = &p->out;
    size_t room = EVENT_MAX - o->event.len, n = len < room ? len : room;

    n = o->left < (int64_t)n ? (size_t)o->left : n;
    if (n < len)
        n = whole_characters(data, n);
    if (o->event.len == 0 && o->skipped == 0 && o->timer != NULL)
        timer_start(o->timer, EVENT_MS, 0);
    if (n > 0)
        buf_append(&o->event, data, n);
    o->left -= (int64_t)n;
    o->skipped += (int64_t)(len - n);
}

/* --- the log --- */

static void log_put(struct provision *p, const char *data, size_t len)
{
    if (p->out.log == NULL || len == 0)
        return;
    logfile_append(p->out.log, data, len);
    p->out.last = data[len - 1];
}

/* The log has written something. */
static void log_moved(void *arg, bool ended)
{
    struct provision *p = arg;

    if (ended) {
        logfile_unwatch(TAKE_PTR(p->out.watch));
        return;
    }
    if (p->out.paused && p->exec != NULL && logfile_waiting(p->out.log) < LOG_LOW) {
        p->out.paused = false;
        core_exec_pause(p->exec, false);
    }
}

void provision_out_line(struct provision *p, const char *fmt, ...)
{
    char line[ERROR_MESSAGE_MAX + PROVISION_LABEL_MAX];
    va_list ap;

    va_start(ap, fmt);
    int n = vsnprintf(line, sizeof(line) - 1, fmt, ap);
    va_end(ap);
    size_t len = n < 0 ? 0 : (size_t)n < sizeof(line) - 1 ? (size_t)n : sizeof(line) - 2;
    line[len++] = '\n';
    if (p->out.last != '\n')
        log_put(p, "\n", 1);
    log_put(p, line, len);
}

void provision_out_put(struct provision *p, const char *data, size_t len)
{
    struct provision_out *o = &p->out;

    log_put(p, data, len);
    event_add(p, data, len);
    if (len > PROVISION_TAIL_MAX) {
        data += len - PROVISION_TAIL_MAX;
        len = PROVISION_TAIL_MAX;
    }
    if (o->tail.len + len > 2 * PROVISION_TAIL_MAX)
        buf_consume(&o->tail, o->tail.len - PROVISION_TAIL_MAX);
    buf_append(&o->tail, data, len);
    if (o->log != NULL && !o->paused && o->watch != NULL && p->exec != NULL && logfile_waiting(o->log) > LOG_HIGH) {
        o->paused = true;
        core_exec_pause(p->exec, true);
    }
}

char *provision_out_tail(struct provision *p)
{
    const struct buf *b = &p->out.tail;
    size_t from = b->len > PROVISION_TAIL_MAX ? b->len - PROVISION_TAIL_MAX : 0;

    if (b->len == 0)
        return mem_strdup("");
    while (from > 0 && from < b->len && ((unsigned char)b->data[from] & 0xc0) == 0x80)
        from++;
    from += logfile_tail_start(b->data + from, b->len - from, TAIL_LINES);
    return as_text(b->data + from, b->len - from);
}

/* --- birth and end --- */

void provision_out_step(struct provision *p)
{
    provision_out_flush(p);
    p->out.left = EVENTS_OF_STEP;
    p->out.paused = false;
    buf_reset(&p->out.tail);
}

int provision_out_open(struct provision *p, struct error *err)
{
    struct live_vm *vm = p->vo->vm;
    char path[PATH_MAX];

    buf_init(&p->out.event, EVENT_MAX);
    buf_init(&p->out.tail, 2 * PROVISION_TAIL_MAX);
    p->out.last = '\n';
    p->out.timer = timer_new(vm->core->loop, event_due, p);
    if (p->out.timer == NULL)
        return error_set(err, ERR_DAEMON_OVERLOADED, "out of memory");
    if (core_log_path(vm, BACKEND_LOG_PROVISION, path) < 0)
        return 0;
    p->out.log = logfile_open(vm->core->loop, path, LOG_MAX, err);
    if (p->out.log == NULL)
        return -1;
    p->out.watch = logfile_watch(p->out.log, log_moved, p);
    vm->provision_log = p->out.log;
    return 0;
}

/* Who reads it goes on with the files. */
static struct logfile *let_go(struct provision *p)
{
    if (p->out.log != NULL)
        p->vo->vm->provision_log = NULL;
    logfile_unwatch(TAKE_PTR(p->out.watch));
    return TAKE_PTR(p->out.log);
}

void provision_out_close(struct provision *p, void (*done)(void *arg))
{
    struct logfile *log = let_go(p);

    if (log != NULL)
        logfile_close(log, done, p);
    else
        done(p);
}

void provision_out_free(struct provision *p)
{
    logfile_free(let_go(p));
    timer_free(TAKE_PTR(p->out.timer));
    buf_done(&p->out.event);
    buf_done(&p->out.tail);
}
