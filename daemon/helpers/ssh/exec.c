/* exec.c - a worker with one connection and the sessions given to it.  See exec.h.
 *
 * Happy path: connect, and then each turn: what vmmd sent, what the guest sent, what is to die; then wait for more.
 * Failures.  No connection: a probe goes on trying, a command goes to another worker or is told.  The connection is lost: all
 * that run are told, and so is vmmd; those not begun go to another worker.  The guest refuses a channel, or its sshd bears one
 * only: fewer are asked for on this connection, and the command goes to another. */
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "helpers/ssh/exec.h"

enum {
    TICK_MS = 100,
    BANNER_MIN_MS = 1000,
    RETRY_MIN_MS = 200,
    RETRY_MAX_MS = 2000,
    FLUSH_MS = 10000,
    REQUEST_MS = 1000
};

static void session_free(struct exec *x, struct session *s)
{
    struct session **p = &x->sessions;

    while (*p != s)
        p = &(*p)->next;
    *p = s->next;
    session_close(s);
    worker_ended(x->w);
}

/* To another worker, if one takes it. */
static void pass_on(struct exec *x, struct session *s, bool to_wait)
{
    struct session **p = &x->sessions;

    while (*p != s)
        p = &(*p)->next;
    *p = s->next; /* from here on it may be another thread's */
    if (!worker_pass_on(x->w, s, to_wait)) {
        s->next = x->sessions;
        x->sessions = s;
    }
}

/* Those that the guest knows nothing of go to other connections. */
static void pass_on_all(struct exec *x)
{
    for (struct session *s = x->sessions, *next; s != NULL; s = next) {
        next = s->next;
        if (!session_is_fresh(s))
            continue;
        s->refusals++;
        pass_on(x, s, true);
    }
}

static bool step_all(struct exec *x)
{
    bool moved = false;

    for (struct session *s = x->sessions, *next; s != NULL; s = next) {
        next = s->next;
        moved |= session_step(x, s);
        if (s->out.failed || s->input.failed)
            s->gone = true;
        if (session_done(s))
            session_free(x, s);
        else if (session_is_fresh(s) || (x->w->alone && session_is_waiting(s))) /* there was no room for it */
            pass_on(x, s, false);
    }
    return sessions_kill(x) || moved;
}

static void take_new(struct exec *x)
{
    char bytes[16];
    struct given given;

    while (read(x->w->wake[0], bytes, sizeof(bytes)) > 0)
        ;
    while (worker_take(x->w, &given)) {
        struct session *s = given.session != NULL ? given.session : session_new(given.fd);
        if (s == NULL) {
            worker_ended(x->w);
            continue;
        }
        s->next = x->sessions;
        x->sessions = s;
    }
}

static bool must_tick(const struct exec *x)
{
    for (const struct session *s = x->sessions; s != NULL; s = s->next)
        if (s->exited || s->gone || s->kill_asked || session_is_waiting(s))
            return true;
    return false;
}

/* Waits for what may happen, and takes what vmmd sent. */
static void wait_and_read(struct exec *x, int timeout)
{
    struct pollfd fds[2 + SESSIONS_MAX];
    struct session *of[2 + SESSIONS_MAX];
    nfds_t n = 2;

    fds[0] = (struct pollfd){.fd = x->w->wake[0], .events = POLLIN};
    fds[1] = (struct pollfd){.fd = x->ssh != NULL && !x->lost ? (int)ssh_get_fd(x->ssh) : -1, .events = POLLIN};
    for (struct session *s = x->sessions; s != NULL && n < sizeof(fds) / sizeof(fds[0]); s = s->next) {
        short events = (short)((session_wants_input(s) ? POLLIN : 0) | (s->out.len > s->sent ? POLLOUT : 0));
        of[n] = s;
        fds[n++] = (struct pollfd){.fd = s->gone ? -1 : s->fd, .events = events};
    }
    if (poll(fds, n, timeout) < 0)
        return;
    if (fds[1].revents != 0 && ssh_event_dopoll(x->event, 0) == SSH_ERROR)
        x->lost = true;
    for (nfds_t i = 2; i < n; i++) {
        if (fds[i].revents & POLLIN)
            session_read(of[i]);
        else if (fds[i].revents & (POLLHUP | POLLERR))
            of[i]->gone = true;
    }
    take_new(x);
}

/* The requests follow their sockets. */
static void await_requests(struct exec *x)
{
    bool missing = true;

    for (int64_t end = now_ms() + REQUEST_MS; missing && now_ms() < end;) {
        missing = false;
        for (const struct session *s = x->sessions; s != NULL; s = s->next)
            missing |= !s->asked && !s->gone;
        if (missing)
            wait_and_read(x, TICK_MS);
    }
}

/* --- connecting --- */

/* Those that only want to know when the guest answers wait on; the others are told. */
static bool only_probes(struct exec *x)
{
    for (const struct session *s = x->sessions; s != NULL; s = s->next)
        if (s->asked && !s->probe && !s->gone)
            return false;
    return true;
}

static void fail_all(struct exec *x)
{
    for (struct session *s = x->sessions; s != NULL; s = s->next)
        if (!s->ended)
            session_fail(s, x->kind, x->why);
}

/* Sends what is left and lets go of those that are through. */
static void flush_all(struct exec *x, int64_t ms)
{
    int64_t end = now_ms() + ms;

    while (x->sessions != NULL && now_ms() < end) {
        for (struct session *s = x->sessions, *next; s != NULL; s = next) {
            next = s->next;
            session_write(s);
            if (session_done(s))
                session_free(x, s);
        }
        if (x->sessions != NULL)
            wait_and_read(x, TICK_MS);
    }
    while (x->sessions != NULL)
        session_free(x, x->sessions);
}

static bool connect_guest(struct exec *x)
{
    int64_t banner = BANNER_MIN_MS, retry = RETRY_MIN_MS;

    for (;;) {
        bool patient = !only_probes(x);
        x->ssh = conn_open(patient ? CONNECT_S * 1000 : banner, patient ? -1 : x->w->wake[0], x->why, &x->kind);
        wait_and_read(x, 0);
        if (x->ssh != NULL)
            break;
        for (struct session *s = x->sessions, *next; s != NULL; s = next) {
            next = s->next;
            if (s->gone)
                session_free(x, s);
        }
        if (x->sessions == NULL || helper_stops() || !only_probes(x) || strcmp(x->kind, "connect") != 0)
            return false;
        const struct session *newest = x->sessions;
        int64_t until = now_ms() + retry;
        while (now_ms() < until && only_probes(x) && x->sessions == newest && !newest->gone && !helper_stops())
            wait_and_read(x, TICK_MS);
        retry = retry * 2 < RETRY_MAX_MS ? retry * 2 : RETRY_MAX_MS;
        banner = banner * 3 / 2 < CONNECT_S * 1000 ? banner * 3 / 2 : CONNECT_S * 1000;
        if (x->sessions != newest) { /* somebody has reason to ask anew */
            retry = RETRY_MIN_MS;
            banner = BANNER_MIN_MS;
        }
    }
    if (conn_takes_one(x->ssh))
        worker_alone(x->w);
    x->event = ssh_event_new();
    return x->event != NULL && ssh_event_add_session(x->event, x->ssh) == SSH_OK;
}

static void serve(struct exec *x)
{
    bool moved = true;

    while (!x->lost) {
        if (x->sessions == NULL && worker_retire(x->w))
            return;
        if (helper_stops()) /* vmmd is gone: so are its sessions */
            for (struct session *s = x->sessions; s != NULL; s = s->next)
                s->gone = true;
        wait_and_read(x, moved ? 0 : must_tick(x) ? TICK_MS : 1000);
        if (!ssh_is_connected(x->ssh))
            x->lost = true;
        moved = !x->lost && step_all(x);
    }
    x->kind = "connect";
    snprintf(x->why, sizeof(x->why), "the guest closed the connection");
    control_send('L', "");
}

void *exec_worker(void *arg)
{
    struct exec x = {.w = arg, .kind = "error"};

    take_new(&x);
    await_requests(&x);
    if (connect_guest(&x)) {
        worker_ready(x.w, true);
        serve(&x);
    }
    worker_ready(x.w, false);
    take_new(&x);
    await_requests(&x);
    pass_on_all(&x);
    fail_all(&x);
    flush_all(&x, FLUSH_MS);
    if (x.event != NULL) {
        if (x.ssh != NULL)
            ssh_event_remove_session(x.event, x.ssh);
        ssh_event_free(x.event);
    }
    conn_close(x.ssh);
    pthread_mutex_lock(&helper.lock);
    x.w->over = true;
    pthread_mutex_unlock(&helper.lock);
    return NULL;
}
