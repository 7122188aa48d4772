/* command.c - a session: a channel with one command.  See exec.h.
 *
 *   REQUEST ──► OPEN ──► (first line: pid) RUNNING ──► exit status ──► output at its end, or drained ──► END sent
 *
 * Nothing blocks but the opening of a channel and a kill, for a round trip each.  A channel is read only while its session's
 * socket takes what was read: the guest's window then closes, and that command alone waits.
 * The first line of the output is the wrapper's (base/frame.h); what a login shell wrote before it is dropped.
 * A command is killed by a second command, `kill` with its process group: few sshds take signals, and none for a group. */
#include <errno.h>
#include <jansson.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/mem.h"
#include "helpers/ssh/exec.h"

enum {
    OUT_HIGH = 128 << 10, /* waiting for vmmd to take it */
    INPUT_HIGH = 4 << 20, /* a request's whole input, so that a kill is read behind it */
    READ_STEP = 32 << 10,
    DRAIN_MS = 500,      /* silence behind the exit that ends the output */
    DRAIN_MAX = 4 << 20, /* what a grandchild may still write */
    KILL_WAIT_MS = 5000, /* for the first line, and for the end after a kill */
    KILL_ANSWER_MS = 3000,
    REFUSALS_MAX = 5,
    TICK_MS = 100,
};

static void count_command(const struct session *s, int n)
{
    if (!s->asked || s->probe)
        return;
    pthread_mutex_lock(&helper.lock);
    helper.commands += (unsigned)n;
    pthread_mutex_unlock(&helper.lock);
}

/* --- ends --- */

void end_error(struct buf *out, const char *kind, const char *detail)
{
    CLEANUP_BUF struct buf json = BUF_INIT(8192);

    buf_str(&json, "{\"error\":");
    buf_json_str(&json, kind);
    buf_str(&json, ",\"detail\":");
    buf_json_str(&json, detail);
    buf_char(&json, '}');
    frame_append(out, FRAME_END, json.data, json.len);
}

static void fail(struct session *s, const char *kind, const char *detail)
{
    if (!s->ended)
        end_error(&s->out, kind, detail);
    s->ended = true;
}

static void succeed(struct session *s)
{
    char json[128];
    int n = s->signal[0] != '\0' ? snprintf(json, sizeof(json), "{\"signal\":\"SIG%s\"}", s->signal)
                                 : snprintf(json, sizeof(json), "{\"exit_code\":%d}", s->code);

    frame_append(&s->out, FRAME_END, json, (size_t)n);
    s->ended = true;
}

static void close_channel(struct session *s)
{
    if (s->channel == NULL)
        return;
    /* libssh keeps the channel until the guest has closed it too, and would tell us of it. */
    ssh_remove_channel_callbacks(s->channel, &s->callbacks);
    ssh_channel_free(s->channel);
    s->channel = NULL;
}

struct session *session_new(int fd)
{
    struct session *s = mem_zalloc(sizeof(*s));

    if (s == NULL) {
        close(fd);
        return NULL;
    }
    s->fd = fd;
    frames_init(&s->in);
    buf_init(&s->input, INPUT_HIGH + 4 * FRAME_MAX);
    buf_init(&s->scan, MARK_SCAN_MAX);
    buf_init(&s->out, 2 * OUT_HIGH + 4 * FRAME_MAX);
    return s;
}

void session_close(struct session *s)
{
    count_command(s, -1);
    close_channel(s);
    close(s->fd);
    frames_done(&s->in);
    buf_done(&s->input);
    buf_done(&s->scan);
    buf_done(&s->out);
    mem_free(s->command);
    mem_free(s);
}

/* --- from vmmd --- */

static bool take_request(struct session *s, const char *data, size_t len)
{
    json_t *req = json_loadb(data, len, JSON_REJECT_DUPLICATES, NULL);
    const char *op = "", *command = NULL, *nonce = "";
    int sudo = 0;

    if (json_unpack(req, "{s:s, s?s, s?s, s?b}", "op", &op, "command", &command, "nonce", &nonce, "sudo", &sudo) == 0) {
        s->asked = true;
        s->probe = strcmp(op, "probe") == 0;
        s->sudo = sudo != 0;
        s->command = mem_strdup(command != NULL ? command : "exec true");
        snprintf(s->nonce, sizeof(s->nonce), "%s", nonce);
        count_command(s, 1);
    }
    json_decref(req);
    return s->command != NULL;
}

static bool on_frame(void *arg, int type, const char *data, size_t len)
{
    struct session *s = arg;

    if (type == FRAME_REQUEST && !s->asked)
        s->gone |= !take_request(s, data, len);
    else if (type == FRAME_INPUT && s->asked && !s->input_end)
        s->gone |= buf_append(&s->input, data, len) != 0;
    else if (type == FRAME_INPUT_END)
        s->input_end = true;
    else if (type == FRAME_KILL)
        s->kill_asked = true;
    else
        s->gone = true;
    return !s->gone;
}

bool session_wants_input(const struct session *s)
{
    return !s->gone && s->input.len < INPUT_HIGH;
}

void session_read(struct session *s)
{
    char bytes[FRAME_MAX];
    ssize_t n = recv(s->fd, bytes, sizeof(bytes), MSG_DONTWAIT);

    if (n < 0 && (errno == EAGAIN || errno == EINTR))
        return;
    if (n <= 0 || frames_feed(&s->in, bytes, (size_t)n, on_frame, s) < 0)
        s->gone = true;
}

bool session_write(struct session *s)
{
    size_t left = s->out.len - s->sent;
    ssize_t n = left > 0 ? send(s->fd, s->out.data + s->sent, left, MSG_DONTWAIT | MSG_NOSIGNAL) : 0;

    if (n < 0 && errno != EAGAIN && errno != EINTR)
        s->gone = true;
    if (n <= 0)
        return false;
    s->sent += (size_t)n;
    if (s->sent == s->out.len) {
        buf_reset(&s->out);
        s->sent = 0;
    }
    return true;
}

void session_fail(struct session *s, const char *kind, const char *detail)
{
    fail(s, kind, detail);
    close_channel(s);
}

/* --- the channel --- */

static void on_exit_status(ssh_session ssh, ssh_channel channel, int status, void *arg)
{
    struct session *s = arg;

    (void)ssh;
    (void)channel;
    s->code = status;
    s->exited = true;
    s->exited_at = now_ms();
}

static void on_exit_signal(ssh_session ssh, ssh_channel channel, const char *name, int core, const char *message,
                           const char *lang, void *arg)
{
    struct session *s = arg;

    (void)ssh;
    (void)channel;
    (void)core;
    (void)message;
    (void)lang;
    snprintf(s->signal, sizeof(s->signal), "%s", name != NULL ? name : "KILL");
    for (char *c = s->signal; *c != '\0'; c++)
        if (!(*c >= 'A' && *c <= 'Z') && !(*c >= '0' && *c <= '9'))
            *c = '_';
    s->exited = true;
    s->exited_at = now_ms();
}

static ssh_channel channel_exec(struct exec *x, const char *command, struct ssh_channel_callbacks_struct *callbacks)
{
    ssh_channel c = ssh_channel_new(x->ssh);

    if (c == NULL)
        return NULL;
    if (callbacks != NULL)
        ssh_add_channel_callbacks(c, callbacks);
    if (ssh_channel_open_session(c) == SSH_OK && ssh_channel_request_exec(c, command) == SSH_OK)
        return c;
    ssh_channel_free(c);
    return NULL;
}

bool session_is_waiting(const struct session *s)
{
    return s->asked && s->channel == NULL && !s->ended && !s->gone;
}

bool session_is_fresh(const struct session *s)
{
    return session_is_waiting(s) && !s->probe && s->refusals <= REFUSALS_MAX;
}

static unsigned open_channels(const struct exec *x)
{
    unsigned n = 0;

    for (const struct session *s = x->sessions; s != NULL; s = s->next)
        n += s->channel != NULL;
    return n;
}

/* Refused for want of channels (MaxSessions): fewer from now on, and this one waits for another. */
static bool refused(struct exec *x, struct session *s)
{
    unsigned n = open_channels(x);

    if (!ssh_is_connected(x->ssh) || ++s->refusals > REFUSALS_MAX)
        return false;
    worker_cap(x->w, n);
    return true;
}

static void fail_to_open(struct exec *x, struct session *s)
{
    char why[300];

    if (refused(x, s))
        return;
    snprintf(why, sizeof(why), "no channel: %s", ssh_get_error(x->ssh));
    fail(s, ssh_is_connected(x->ssh) ? "refused" : "connect", why);
}

static void session_open(struct exec *x, struct session *s)
{
    if (!s->told)
        frame_append(&s->out, FRAME_ASKED, "", 0); /* at once: vmmd tries no command again that may have begun */
    s->told = true;
    session_write(s);
    if (s->gone)
        return;
    if (s->kill_asked) {
        fail(s, "failed", "killed before it began");
        return;
    }
    ssh_callbacks_init(&s->callbacks);
    s->callbacks.userdata = s;
    s->callbacks.channel_exit_status_function = on_exit_status;
    s->callbacks.channel_exit_signal_function = on_exit_signal;
    s->channel = channel_exec(x, s->command, &s->callbacks);
    if (s->channel == NULL)
        fail_to_open(x, s);
    else if (s->probe)
        s->marked = true;
}

static bool write_channel(struct session *s)
{
    uint32_t window = ssh_channel_window_size(s->channel);
    size_t n = s->input.len < window ? s->input.len : window;

    if (ssh_channel_is_eof(s->channel) || ssh_channel_is_closed(s->channel) || s->exited) {
        buf_reset(&s->input); /* nobody reads it any more */
        return false;
    }
    if (n > READ_STEP)
        n = READ_STEP;
    if (n > 0) {
        int rc = ssh_channel_write(s->channel, s->input.data, (uint32_t)n);
        if (rc > 0)
            buf_consume(&s->input, (size_t)rc);
        return rc > 0;
    }
    if (s->input_end && s->input.len == 0 && !s->input_end_sent) {
        s->input_end_sent = true;
        ssh_channel_send_eof(s->channel);
        return true;
    }
    return false;
}

/* The wrapper's line: "PID LEADER START", or "!WORD". */
static void take_mark(struct session *s, const char *said, char *rest, size_t len)
{
    int leader = 0, n;
    long long start = 0;
    char json[96];

    s->marked = true;
    if (said[0] == '!') {
        fail(s, "script", said + 1);
        return;
    }
    if (sscanf(said, "%9ld %1d %18lld", &s->pid, &leader, &start) < 2 || s->pid <= 1) {
        s->pid = 0;
        fail(s, "script", "mark");
        return;
    }
    s->leader = leader != 0;
    n = snprintf(json, sizeof(json), "{\"pid\":%ld,\"start\":%lld}", s->leader ? s->pid : 0, start);
    frame_append(&s->out, FRAME_STARTED, json, (size_t)n);
    if (len > 0)
        frame_append(&s->out, FRAME_OUT, rest, len);
}

static void take_output(struct session *s, bool is_stderr, const char *data, size_t len)
{
    char *said;
    size_t end;

    if (s->gone || s->ended || s->probe)
        return;
    if (is_stderr || s->marked) {
        frame_append(&s->out, is_stderr ? FRAME_ERR : FRAME_OUT, data, len);
        return;
    }
    if (buf_append(&s->scan, data, len) != 0) {
        fail(s, "script", "noise");
        return;
    }
    if (mark_find(s->scan.data, s->scan.len, s->nonce, &said, &end) == 1) {
        take_mark(s, said, s->scan.data + end, s->scan.len - end);
        buf_done(&s->scan);
    }
}

static bool read_channel(struct session *s, int is_stderr)
{
    char bytes[READ_STEP];
    int n;

    if (!s->gone && s->out.len - s->sent >= OUT_HIGH)
        return false;
    n = ssh_channel_read_nonblocking(s->channel, bytes, sizeof(bytes), is_stderr);
    if (n <= 0)
        return false;
    take_output(s, is_stderr != 0, bytes, (size_t)n);
    if (s->exited)
        s->drained += (size_t)n;
    return true;
}

/* All that the command will write has been read, or as much of a grandchild's as is waited for. */
static bool output_over(struct session *s, bool moved)
{
    if (moved || (s->out.len - s->sent >= OUT_HIGH && !s->gone))
        return s->drained > DRAIN_MAX;
    if (ssh_channel_is_eof(s->channel) || ssh_channel_is_closed(s->channel))
        return s->exited || ssh_channel_is_closed(s->channel);
    return s->exited && now_ms() - s->exited_at >= DRAIN_MS;
}

static void session_over(struct session *s)
{
    if (!s->marked && !s->gone)
        fail(s, "script", "silent");
    else if (s->exited)
        succeed(s);
    else
        fail(s, "failed", "sshd told no exit status");
}

/* --- killing --- */

static bool to_be_killed(const struct session *s)
{
    return s->channel != NULL && (s->kill_asked || s->gone) && !s->killed && s->pid > 0 && !s->exited;
}

static void kill_one(struct buf *command, const struct session *s)
{
    buf_printf(command, s->leader ? " -%ld" : " %ld", s->pid);
}

/* One command for all that are to die now. */
static bool kill_some(struct exec *x, bool sudo)
{
    CLEANUP_BUF struct buf command = BUF_INIT(4096);
    char bytes[512];
    bool any = false;

    buf_str(&command, sudo ? "sudo -n kill -KILL --" : "kill -KILL --");
    for (struct session *s = x->sessions; s != NULL; s = s->next) {
        if (!to_be_killed(s) || s->sudo != sudo)
            continue;
        kill_one(&command, s);
        s->killed = any = true;
        s->killed_at = now_ms();
    }
    buf_str(&command, " >/dev/null 2>&1");
    if (!any || command.failed)
        return false;
    ssh_channel c = channel_exec(x, command.data, NULL);
    int64_t end = now_ms() + KILL_ANSWER_MS;
    while (c != NULL && now_ms() < end && !ssh_channel_is_eof(c) && !ssh_channel_is_closed(c))
        if (ssh_channel_read_timeout(c, bytes, sizeof(bytes), 0, TICK_MS) == SSH_ERROR)
            break;
    if (c != NULL)
        ssh_channel_free(c);
    return true;
}

/* A command that cannot be found to be killed, or does not die of it, is let go of after a while. */
static bool given_up(struct session *s)
{
    if (!s->kill_asked && !s->gone)
        return false;
    if (s->kill_asked_at == 0)
        s->kill_asked_at = now_ms();
    return now_ms() - s->kill_asked_at > KILL_WAIT_MS;
}

/* --- one turn --- */

/* A probe has the place that is kept for kills. */
static bool has_room(const struct exec *x, const struct session *s)
{
    return (s->probe && !x->w->alone) || open_channels(x) < x->w->cap;
}

bool session_step(struct exec *x, struct session *s)
{
    bool moved = false;

    if (s->ended || !s->asked)
        return session_write(s);
    if (s->channel == NULL && !s->gone && (s->kill_asked || has_room(x, s))) {
        session_open(x, s);
        moved = true;
    }
    if (s->channel != NULL) {
        moved |= write_channel(s);
        bool got = read_channel(s, 0);
        got |= read_channel(s, 1);
        if (!s->ended && (output_over(s, got) || given_up(s)))
            session_over(s);
        if (s->ended)
            close_channel(s);
        moved |= got;
    }
    return session_write(s) || moved;
}

bool session_done(const struct session *s)
{
    if (s->gone)
        return s->channel == NULL || s->ended;
    return s->ended && s->out.len == 0;
}

bool sessions_kill(struct exec *x)
{
    bool plain = kill_some(x, false);

    return kill_some(x, true) || plain;
}
