/* ssh.c - the helper vmmd-ssh of a VM, and the sessions it serves.  See ssh.h; base/frame.h has the protocol.
 *
 * Happy path: the first session starts the helper with the VM's key and the guest's address; each session is a socket
 * pair, one end of which goes to the helper over the control socket.
 *
 * Failures.  No helper, no key: the session is refused.  The helper dies: its sockets close, each session ends as broken,
 * the next one starts a new helper.  A session that closed before a word came of it has not reached the guest: it was given to
 * a helper about to die, or to go for want of work, whose sockets close in no order.  It is tried again, once, on the next
 * helper.  The helper talks nonsense: its session is broken. */
#include "guest/ssh.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/fd.h"
#include "base/mem.h"
#include "guest/channel.h"
#include "loop/child.h"
#include "loop/poller.h"
#include "loop/timer.h"

/* A dying helper is looked at for a second and a quarter. */
enum { CONTROL_MAX = 4096, KILLING_MS = 6000, LOOK_FIRST_MS = 5, LOOKS_MAX = 8 };

struct ssh {
    struct loop *loop;
    struct ssh_config config; /* its strings are owned */
    const struct ssh_events *events;
    void *arg;
    struct child *child;
    unsigned helpers; /* started so far */
    int control;
    struct poller *poller;
    char why[200]; /* what the helper said before it gave up */
    struct channel *channels;
    bool ending;
    int64_t killing_until; /* the helper may be killing a command in the guest */
};

struct channel {
    struct channel *next;
    struct ssh *ssh;
    char kind;
    struct stream *stream; /* NULL: between two helpers */
    struct frames frames;
    struct channel_events events;
    void *arg;
    bool paused;
    bool final;      /* something came, or it is the second helper: it is not tried again */
    struct buf kept; /* what was sent, for another helper */
    struct timer *again;
    unsigned helper; /* which it was given to */
    unsigned looks;
    bool ended;  /* FRAME_END came */
    bool *freed; /* set when it is freed inside a callback */
};

/* --- the helper --- */

static void helper_forget(struct ssh *ssh)
{
    poller_free(TAKE_PTR(ssh->poller));
    ssh->control = fd_close(ssh->control);
    child_free(TAKE_PTR(ssh->child));
}

static void helper_exited(void *arg, const struct exit_status *status)
{
    (void)status;
    helper_forget(arg);
}

/* It goes into a file of lines. */
static bool host_key_valid(const char *key)
{
    static const char letters[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-+/=@. ";

    return key[strspn(key, letters)] == '\0' && strchr(key, ' ') != NULL;
}

static void helper_said(void *arg, int events)
{
    struct ssh *ssh = arg;
    char text[CONTROL_MAX];
    ssize_t n = recv(ssh->control, text, sizeof(text) - 1, MSG_DONTWAIT);

    (void)events;
    if (n < 0 && (errno == EAGAIN || errno == EINTR))
        return;
    if (n <= 0) {
        helper_forget(ssh);
        return;
    }
    text[n] = '\0';
    if (text[0] == 'H' && ssh->config.host_key == NULL && host_key_valid(text + 1)) {
        ssh->config.host_key = mem_strdup(text + 1);
        ssh->events->host_key(ssh->arg, text + 1);
    } else if (text[0] == 'K') {
        snprintf(ssh->why, sizeof(ssh->why), "%.199s", text + 1);
    } else if (text[0] == 'L') {
        ssh->events->lost(ssh->arg);
    }
}

/* Whether it is dead may be seen at its socket before its end is told: the next session is not for a dead one. */
static void helper_look(struct ssh *ssh)
{
    char byte;

    if (ssh->control >= 0 && recv(ssh->control, &byte, 1, MSG_PEEK | MSG_DONTWAIT) == 0)
        helper_forget(ssh);
}

static int open_key(const struct ssh *ssh, struct error *err)
{
    const char *path = ssh->config.key_path;
    CLEANUP_FD int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK);
    struct stat st;

    if (fd >= 0 && fstat(fd, &st) == 0 && S_ISREG(st.st_mode))
        return TAKE_FD(fd);
    error_set(err, ERR_SSH_FAILED, "the private key %.200s of VM %s cannot be opened", path, ssh->config.vm_name);
    error_cause(err, "%s", fd >= 0 ? "not a regular file" : strerror(errno));
    return -1;
}

static int send_config(struct ssh *ssh, struct error *err)
{
    const struct ssh_config *c = &ssh->config;
    json_t *config = json_pack("{s:s, s:s, s:i, s:s*}", "user", c->user, "host", c->host, "port", (int)c->port,
                               "host_key", c->host_key);
    char text[CONTROL_MAX];
    size_t n = config != NULL ? json_dumpb(config, text, sizeof(text), JSON_COMPACT) : 0;

    json_decref(config);
    if (n == 0 || n > sizeof(text) || send(ssh->control, text, n, MSG_DONTWAIT | MSG_NOSIGNAL) != (ssize_t)n)
        return error_set(err, ERR_SSH_FAILED, "vmmd-ssh of VM %s could not be told what to do", c->vm_name);
    return 0;
}

static int helper_start(struct ssh *ssh, struct error *err)
{
    const char *argv[] = {ssh->config.helper, ssh->config.dir, NULL};
    CLEANUP_FD int key = open_key(ssh, err);
    int pair[2];

    if (key < 0)
        return -1;
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) < 0)
        return error_wrap(err, ERR_SSH_FAILED, "no socket for vmmd-ssh: %s", strerror(errno));
    CLEANUP_FD int theirs = pair[1];
    struct child_spec spec = {
        .argv = argv, .stdin_fd = -1, .stdout_fd = -1, .stderr_fd = -1, .extra_fds = {theirs, key, -1, -1}};
    ssh->control = pair[0];
    ssh->helpers++;
    ssh->why[0] = '\0';
    ssh->child = child_spawn(ssh->loop, &spec, helper_exited, ssh, err);
    if (ssh->child != NULL)
        ssh->poller = poller_new(ssh->loop, ssh->control, POLLER_READ, helper_said, ssh, err);
    if (ssh->poller != NULL && send_config(ssh, err) == 0)
        return 0;
    helper_forget(ssh);
    return error_wrap(err, ERR_SSH_FAILED, "vmmd-ssh of VM %s could not be started", ssh->config.vm_name);
}

/* One byte, with the socket. */
static int hand_over(struct ssh *ssh, char kind, int fd)
{
    union {
        char bytes[CMSG_SPACE(sizeof(int))];
        struct cmsghdr align;
    } control = {{0}};
    struct iovec iov = {.iov_base = &kind, .iov_len = 1};
    struct msghdr msg = {
        .msg_iov = &iov, .msg_iovlen = 1, .msg_control = control.bytes, .msg_controllen = sizeof(control.bytes)};
    struct cmsghdr *c = CMSG_FIRSTHDR(&msg);

    c->cmsg_level = SOL_SOCKET;
    c->cmsg_type = SCM_RIGHTS;
    c->cmsg_len = CMSG_LEN(sizeof(int));
    memcpy(CMSG_DATA(c), &fd, sizeof(int));
    return sendmsg(ssh->control, &msg, MSG_DONTWAIT | MSG_NOSIGNAL) == 1 ? 0 : -1;
}

/* --- sessions --- */

static void channel_broken(struct channel *c, const char *what)
{
    CLEANUP_ERROR struct error err = ERROR_INIT;

    error_set(&err, ERR_SSH_FAILED, "vmmd-ssh of VM %s %s", c->ssh->config.vm_name, what);
    error_help(&err, "try again: the next command starts a new one; vmmd's log may say more");
    if (c->ssh->why[0] != '\0')
        error_cause(&err, "%s", c->ssh->why);
    c->events.broken(c->arg, &err);
}

static bool on_frame(void *arg, int type, const char *data, size_t len)
{
    struct channel *c = arg;
    bool *freed = c->freed;

    c->ended |= type == FRAME_END;
    c->events.frame(c->arg, type, data, len);
    return !*freed;
}

static void finalize(struct channel *c)
{
    c->final = true;
    buf_done(&c->kept);
}

static void on_data(void *arg, const char *data, size_t len)
{
    struct channel *c = arg;
    bool freed = false;

    finalize(c);
    c->freed = &freed;
    int rc = frames_feed(&c->frames, data, len, on_frame, c);
    if (freed)
        return;
    c->freed = NULL;
    if (rc < 0)
        channel_broken(c, "talks nonsense");
}

static void on_closed(void *arg, int errnum)
{
    struct channel *c = arg;

    (void)errnum;
    helper_look(c->ssh);
    if (c->final) {
        channel_broken(c, "ended in the middle of it");
        return;
    }
    stream_free(TAKE_PTR(c->stream));
    timer_start(c->again, 0, 0);
}

static void on_drained(void *arg)
{
    struct channel *c = arg;

    if (c->events.drained != NULL)
        c->events.drained(c->arg);
}

static const struct stream_events stream_events = {.data = on_data, .closed = on_closed, .drained = on_drained};

/* A socket pair, one end of it to the helper.  Where the helper does not take it: no stream, which is no error yet. */
static int channel_connect(struct channel *c, struct error *err)
{
    int pair[2] = {-1, -1};

    if (c->ssh->child == NULL && helper_start(c->ssh, err) < 0)
        return -1;
    c->helper = c->ssh->helpers;
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) < 0)
        return error_set(err, ERR_DAEMON_OVERLOADED, "no socket for a session with VM %s", c->ssh->config.vm_name);
    c->stream = stream_from_fd(c->ssh->loop, pair[0], CHANNEL_PENDING_MAX, &stream_events, c, err);
    if (c->stream == NULL) {
        fd_close(pair[1]);
        return -1;
    }
    if (hand_over(c->ssh, c->kind, pair[1]) < 0)
        stream_free(TAKE_PTR(c->stream));
    else
        stream_pause(c->stream, c->paused);
    fd_close(pair[1]);
    return 0;
}

/* As soon as the helper is seen to be dead, or has had its time: another one. */
static void try_again(void *arg)
{
    struct channel *c = arg;
    CLEANUP_ERROR struct error err = ERROR_INIT;

    helper_look(c->ssh);
    if (c->ssh->child != NULL && c->ssh->helpers == c->helper && c->looks < LOOKS_MAX) {
        timer_start(c->again, LOOK_FIRST_MS << c->looks++, 0);
        return;
    }
    if (channel_connect(c, &err) < 0) {
        c->events.broken(c->arg, &err);
    } else if (c->stream == NULL) {
        channel_broken(c, "takes no session");
    } else {
        if (c->kept.len > 0)
            stream_write(c->stream, c->kept.data, c->kept.len); /* a failure is told by its end */
        finalize(c);
    }
}

struct channel *channel_open(struct ssh *ssh, char kind, const struct channel_events *events, void *arg,
                             struct error *err)
{
    struct channel *c = mem_zalloc(sizeof(*c));

    if (c != NULL)
        *c = (struct channel){.ssh = ssh, .kind = kind, .events = *events, .arg = arg};
    if (c != NULL)
        c->again = timer_new(ssh->loop, try_again, c);
    if (c == NULL || c->again == NULL) {
        mem_free(c);
        error_set(err, ERR_DAEMON_OVERLOADED, "no memory for a session with VM %s", ssh->config.vm_name);
        return NULL;
    }
    helper_look(ssh);
    if (channel_connect(c, err) < 0) {
        timer_free(c->again);
        mem_free(c);
        return NULL;
    }
    frames_init(&c->frames);
    buf_init(&c->kept, CHANNEL_PENDING_MAX);
    c->next = ssh->channels;
    ssh->channels = c;
    if (c->stream == NULL)
        timer_start(c->again, 0, 0);
    return c;
}

int channel_send(struct channel *c, int type, const void *data, size_t len)
{
    CLEANUP_BUF struct buf out = BUF_INIT(CHANNEL_PENDING_MAX + FRAME_MAX);

    if (frame_append(&out, type, data, len) != 0)
        return -1;
    if (!c->final && buf_append(&c->kept, out.data, out.len) != 0) {
        if (c->stream == NULL)
            return -1;
        finalize(c); /* more than is kept: one helper must do */
    }
    int rc = c->stream != NULL ? stream_write(c->stream, out.data, out.len) : 0;
    return c->final ? rc : 0; /* a helper that is gone already is not the last */
}

int channel_send_json(struct channel *c, int type, json_t *object)
{
    char *text = object != NULL ? json_dumps(object, JSON_COMPACT) : NULL;
    int rc = text != NULL && strlen(text) <= FRAME_MAX ? channel_send(c, type, text, strlen(text)) : -1;

    mem_free(text);
    json_decref(object);
    return rc;
}

size_t channel_pending(const struct channel *c)
{
    return c->stream != NULL ? stream_pending(c->stream) : c->kept.len;
}

void channel_pause(struct channel *c, bool paused)
{
    c->paused = paused;
    if (c->stream != NULL)
        stream_pause(c->stream, paused);
}

void channel_free(struct channel *c)
{
    if (c == NULL)
        return;
    if (c->freed != NULL)
        *c->freed = true;
    for (struct channel **p = &c->ssh->channels; *p != NULL; p = &(*p)->next)
        if (*p == c) {
            *p = c->next;
            break;
        }
    if (!c->ended)
        c->ssh->killing_until = loop_now_ms(c->ssh->loop) + KILLING_MS;
    stream_free(c->stream);
    timer_free(c->again);
    frames_done(&c->frames);
    buf_done(&c->kept);
    mem_free(c);
}

/* --- the guest --- */

bool ssh_is_ending(const struct ssh *ssh)
{
    return ssh->ending;
}

const struct ssh_config *ssh_get_config(const struct ssh *ssh)
{
    return &ssh->config;
}

bool ssh_error(const struct ssh *ssh, const char *kind, const char *detail, struct error *err)
{
    const struct ssh_config *c = &ssh->config;

    if (strcmp(kind, "connect") == 0) {
        error_set(err, ERR_SSH_FAILED, "the SSH server of VM %s does not answer at %s port %u", c->vm_name, c->host,
                  c->port);
        error_help(err,
                   "wait until the guest is up (`vmctl wait %s ready`); its console (`vmctl log %s`) may say what "
                   "keeps sshd",
                   c->vm_name, c->vm_name);
    } else if (strcmp(kind, "host_key") == 0) {
        error_set(err, ERR_SSH_FAILED, "the host key of VM %s has changed", c->vm_name);
        error_help(
            err,
            "if the guest made itself a new key on purpose, remove %s/known_hosts and `vmctl restart %s`: the next "
            "start believes the key it meets; else somebody else answers at its address",
            c->dir, c->vm_name);
    } else if (strcmp(kind, "auth") == 0) {
        error_set(err, ERR_SSH_FAILED, "the guest of VM %s does not let %s in with the VM's key", c->vm_name, c->user);
        error_help(err, "cloud-init may still be at work; or the image takes no key for this user: see `vmctl log %s`",
                   c->vm_name);
    } else if (strcmp(kind, "busy") == 0) {
        error_set(err, ERR_DAEMON_OVERLOADED, "every connection of VM %s is in use", c->vm_name);
        return true;
    } else if (strcmp(kind, "error") == 0 || strcmp(kind, "refused") == 0) {
        error_set(err, ERR_SSH_FAILED, "SSH to VM %s failed", c->vm_name);
    } else {
        return false;
    }
    error_cause(err, "%.300s", detail);
    return true;
}

static void config_done(struct ssh_config *c)
{
    const char *strings[] = {c->helper, c->dir, c->vm_name, c->user, c->host, c->key_path, c->host_key};

    for (size_t i = 0; i < ARRAY_SIZE(strings); i++)
        mem_free((void *)(uintptr_t)strings[i]);
}

struct ssh *ssh_new(struct loop *loop, const struct ssh_config *config, const struct ssh_events *events, void *arg,
                    struct error *err)
{
    struct ssh *ssh = mem_zalloc(sizeof(*ssh));

    if (ssh == NULL) {
        error_set(err, ERR_DAEMON_OVERLOADED, "out of memory");
        return NULL;
    }
    ssh->loop = loop;
    ssh->events = events;
    ssh->arg = arg;
    ssh->control = -1;
    ssh->config = (struct ssh_config){
        .helper = mem_strdup(config->helper),
        .dir = mem_strdup(config->dir),
        .vm_name = mem_strdup(config->vm_name),
        .user = mem_strdup(config->user),
        .host = mem_strdup(config->host),
        .port = config->port,
        .key_path = mem_strdup(config->key_path),
        .host_key = config->host_key != NULL ? mem_strdup(config->host_key) : NULL,
    };
    const struct ssh_config *c = &ssh->config;
    if (c->helper == NULL || c->dir == NULL || c->vm_name == NULL || c->user == NULL || c->host == NULL ||
        c->key_path == NULL || (config->host_key != NULL && c->host_key == NULL)) {
        error_set(err, ERR_DAEMON_OVERLOADED, "out of memory");
        ssh_free(ssh, true);
        return NULL;
    }
    return ssh;
}

void ssh_free(struct ssh *ssh, bool guest_gone)
{
    if (ssh == NULL)
        return;
    if (ssh->child != NULL && (guest_gone || (ssh->channels == NULL && loop_now_ms(ssh->loop) >= ssh->killing_until)))
        child_signal(ssh->child, SIGKILL);
    ssh->ending = true;
    while (ssh->channels != NULL) { /* told, so that their owners let go */
        struct channel *c = ssh->channels;
        channel_broken(c, "was ended with the guest");
        if (ssh->channels == c)
            channel_free(c);
    }
    helper_forget(ssh);
    config_done(&ssh->config);
    mem_free(ssh);
}
