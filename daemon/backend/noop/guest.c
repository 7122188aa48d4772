/* guest.c - see guest.h. */
#include "backend/noop/guest.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "base/str.h"
#include "loop/timer.h"

struct noop_exec {
    struct exec exec; /* first */
    struct noop_exec *next, **at;
    struct timer *timer;
    char how[32];
    char *text;
};

static void unlist(struct noop_exec *x)
{
    if (x->at == NULL)
        return;
    *x->at = x->next;
    if (x->next != NULL)
        x->next->at = x->at;
    x->at = NULL;
}

static void finish(struct noop_exec *x, const struct exec_end *end, struct error *err)
{
    unlist(x);
    timer_stop(x->timer);
    x->exec.events.ended(x->exec.arg, end, err);
}

static void killed(struct noop_exec *x)
{
    CLEANUP_ERROR struct error none = ERROR_INIT;
    struct exec_end end = {.exit_code = -1, .signal = "SIGKILL"};

    finish(x, &end, &none);
}

static void due(void *arg)
{
    struct noop_exec *x = arg;
    CLEANUP_ERROR struct error none = ERROR_INIT;
    struct exec_end end = {.exit_code = -1};

    if (strcmp(x->how, "killed") == 0) {
        killed(x);
        return;
    }
    if (x->text != NULL) {
        CLEANUP_FREE char *text = TAKE_PTR(x->text);
        timer_start(x->timer, 0, 0); /* the end comes on a turn of its own: its reader may be gone by then */
        x->exec.events.output(x->exec.arg, false, text, strlen(text));
        return;
    }
    if (strcmp(x->how, "hang") == 0)
        return;
    if (str_prefix(x->how, "SIG"))
        snprintf(end.signal, sizeof(end.signal), "%.15s", x->how);
    else
        end.exit_code = (int)strtol(x->how, NULL, 10);
    finish(x, &end, &none);
}

static void x_pause(struct exec *e, bool paused)
{
    (void)e; /* it writes once */
    (void)paused;
}

static void x_kill(struct exec *e)
{
    struct noop_exec *x = CONTAINER_OF(e, struct noop_exec, exec);

    snprintf(x->how, sizeof(x->how), "killed");
    timer_start(x->timer, 0, 0);
}

static void x_free(struct exec *e)
{
    struct noop_exec *x = CONTAINER_OF(e, struct noop_exec, exec);

    unlist(x);
    timer_free(x->timer);
    mem_free(x->text);
    mem_free(x);
}

static const struct exec_ops ops = {.pause = x_pause, .kill = x_kill, .free = x_free};

struct exec *noop_exec_new(struct loop *loop, const char *how, int64_t delay_ms, const struct exec_request *req,
                           const struct exec_events *events, void *arg, struct noop_exec **list, struct error *err)
{
    struct noop_exec *x = mem_zalloc(sizeof(*x));

    if (x != NULL) {
        x->exec = (struct exec){.ops = &ops, .via = EXEC_AGENT, .events = *events, .arg = arg};
        x->timer = timer_new(loop, due, x);
        x->text = mem_printf("%s\n", req->script != NULL ? req->script : req->command[0]);
    }
    if (x == NULL || x->timer == NULL || x->text == NULL) {
        if (x != NULL)
            x_free(&x->exec);
        error_set(err, ERR_DAEMON_OVERLOADED, "out of memory");
        return NULL;
    }
    snprintf(x->how, sizeof(x->how), "%s", how);
    x->next = *list;
    x->at = list;
    if (x->next != NULL)
        x->next->at = &x->next;
    *list = x;
    timer_start(x->timer, delay_ms, 0);
    return &x->exec;
}

void noop_execs_end(struct noop_exec **list, const char *vm_name)
{
    while (*list != NULL) {
        CLEANUP_ERROR struct error err = ERROR_INIT;

        error_set(&err, ERR_GUEST_UNAVAILABLE, "the guest of VM %s is gone: the VM ended", vm_name);
        finish(*list, NULL, &err);
    }
}
