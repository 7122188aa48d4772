/* child.c - a child process, watched by its pidfd.
 *
 * spawn.c starts it.  The pidfd becomes readable when it ends; then it is reaped and its owner told, once.
 *
 * A child that is freed alive becomes an orphan of the loop: still reaped, silently, without keeping the loop running.
 * When the loop itself ends they are dropped, and init reaps them after us. */
#include "loop/child.h"

#include <errno.h>
#include <signal.h>
#include <sys/pidfd.h>
#include <sys/wait.h>

#include "base/fd.h"
#include "base/mem.h"
#include "loop/private.h"
#include "loop/spawn.h"

struct child {
    struct loop *loop;
    pid_t pid;
    int pidfd;
    struct poller *poller;                                       /* NULL once it was reaped */
    void (*exited)(void *arg, const struct exit_status *status); /* NULL: an orphan */
    void *arg;
    struct child *next; /* orphans */
    struct child *prev;
};

static void orphans_add(struct child *c)
{
    c->next = c->loop->orphans;
    if (c->next != NULL)
        c->next->prev = c;
    c->loop->orphans = c;
}

static void destroy(struct child *c)
{
    poller_free(c->poller);
    fd_close(c->pidfd);
    mem_free(c);
}

static void orphans_remove(struct child *c)
{
    if (c->prev != NULL)
        c->prev->next = c->next;
    else
        c->loop->orphans = c->next;
    if (c->next != NULL)
        c->next->prev = c->prev;
}

/* Reaps it if it has ended; false while it lives. */
static bool reap(struct child *c, struct exit_status *ret)
{
    siginfo_t info = {0};

    while (waitid(P_PIDFD, (id_t)c->pidfd, &info, WEXITED | WNOHANG) != 0) {
        if (errno == EINTR)
            continue;
        *ret = (struct exit_status){.known = false, .code = -1}; /* somebody else reaped it */
        return true;
    }
    if (info.si_pid == 0)
        return false;
    bool exited = info.si_code == CLD_EXITED;
    *ret = (struct exit_status){
        .known = true, .code = exited ? info.si_status : -1, .signal = exited ? 0 : info.si_status};
    return true;
}

static void on_pidfd(void *arg, int events)
{
    struct child *c = arg;
    struct exit_status status;

    (void)events;
    if (!reap(c, &status))
        return;
    if (c->exited == NULL) {
        orphans_remove(c);
        destroy(c);
        return;
    }
    poller_free(c->poller);
    c->poller = NULL;
    c->exited(c->arg, &status);
}

struct child *child_spawn(struct loop *loop, const struct child_spec *spec,
                          void (*exited)(void *arg, const struct exit_status *status), void *arg, struct error *err)
{
    struct child *c = mem_zalloc(sizeof(*c));

    if (c == NULL) {
        error_errno(err, ENOMEM, "cannot start %s", spec->argv[0]);
        return NULL;
    }
    *c = (struct child){.loop = loop, .pidfd = -1, .exited = exited, .arg = arg};
    if (spawn(spec, &c->pid, &c->pidfd, err) != 0) {
        mem_free(c);
        return NULL;
    }
    c->poller = poller_new(loop, c->pidfd, POLLER_READ, on_pidfd, c, err);
    if (c->poller == NULL) {
        siginfo_t info;
        pidfd_send_signal(c->pidfd, SIGKILL, NULL, 0);
        while (waitid(P_PIDFD, (id_t)c->pidfd, &info, WEXITED) != 0 && errno == EINTR)
            ;
        destroy(c);
        return NULL;
    }
    return c;
}

pid_t child_pid(const struct child *c)
{
    return c->pid;
}

int child_signal(struct child *c, int signum)
{
    if (c->poller == NULL) {
        errno = ESRCH;
        return -1;
    }
    return pidfd_send_signal(c->pidfd, signum, NULL, 0);
}

void child_free(struct child *c)
{
    if (c == NULL)
        return;
    if (c->poller == NULL) {
        destroy(c);
        return;
    }
    c->exited = NULL;
    poller_unref(c->poller);
    orphans_add(c);
}

void child_drop_orphans(struct loop *loop)
{
    while (loop->orphans != NULL) {
        struct child *c = loop->orphans;
        struct exit_status status;
        orphans_remove(c);
        reap(c, &status); /* if it happens to be dead */
        destroy(c);
    }
}
