/* console.c - vmctl console: the terminal joined to a VM's serial console until Ctrl+], the daemon or a signal ends it.
 *
 * With a pipe on stdin its bytes are typed, and after its end the console is shown until it was quiet for a second. */
#include <errno.h>
#include <poll.h>
#include <string.h>
#include <unistd.h>

#include "api.h"
#include "cli.h"
#include "diagnostic.h"
#include "output.h"
#include "signals.h"
#include "terminal.h"
#include "util.h"
#include "ws.h"

enum { DETACH = 0x1d, QUIET_MS = 1000 };

struct session {
    struct ws *ws;
    bool typed_end; /* stdin is at its end */
    bool detached;  /* Ctrl+] */
};

static bool show(void *arg, const char *bytes, size_t size)
{
    (void)arg;
    out_write(bytes, size);
    return out_flush();
}

/* Sends what was typed, up to Ctrl+]. */
static void take_input(struct session *s)
{
    char bytes[4096];
    ssize_t got = read(STDIN_FILENO, bytes, sizeof(bytes));
    const char *detach;

    if (got < 0 && (errno == EINTR || errno == EAGAIN))
        return;
    if (got <= 0) {
        s->typed_end = true;
        s->detached = isatty(STDIN_FILENO) == 1; /* the terminal hung up */
        return;
    }
    detach = isatty(STDIN_FILENO) ? memchr(bytes, DETACH, (size_t)got) : NULL;
    if (detach != NULL) {
        s->detached = true;
        got = detach - bytes;
    }
    if (got > 0)
        ws_send(s->ws, bytes, (size_t)got);
}

static enum ws_result run(struct session *s)
{
    enum ws_result result = WS_OPEN;
    bool quiet = false;

    while (result == WS_OPEN && !s->detached && !quiet && !signals_interrupted()) {
        bool typing = !s->typed_end && ws_has_room(s->ws);
        struct pollfd fds[3] = {
            {.fd = ws_fd(s->ws), .events = (short)(POLLIN | (ws_wants_write(s->ws) ? POLLOUT : 0))},
            {.fd = typing ? STDIN_FILENO : -1, .events = POLLIN},
            {.fd = signals_fd(), .events = POLLIN},
        };
        int ready;

        result = ws_read(s->ws, show, NULL); /* also what TLS holds already, which poll does not tell */
        if (result != WS_OPEN)
            break;
        ready = poll(fds, 3, s->typed_end && !ws_wants_write(s->ws) ? QUIET_MS : -1);
        quiet = ready == 0;
        if (ready > 0 && fds[1].revents != 0)
            take_input(s);
        if (ws_wants_write(s->ws))
            result = ws_write(s->ws);
    }
    return result;
}

/* What the end of the session means for the user; returns the exit code. */
static int judge(const struct cli *cli, const struct session *s, enum ws_result result, const char *vm)
{
    const char *reason = ws_close_reason(s->ws);
    CLEANUP_JSON json_t *problem = NULL;

    if (signals_interrupted())
        return EXIT_INTERRUPTED;
    if (result == WS_LOST) {
        problem = problem_new(ERR_CLIENT_DAEMON_UNREACHABLE, "the connection to the console of %s was lost", vm);
        problem_help(problem, "the VM goes on; when vmmd is back, attach again with `vmctl console %s`", vm);
    } else if (result == WS_WRONG) {
        problem = problem_new(ERR_DAEMON_INTERNAL, "the console of %s broke the WebSocket protocol", vm);
    } else if (result == WS_CLOSED && ws_close_code(s->ws) == 1001) {
        problem = problem_new(ERR_DAEMON_SHUTTING_DOWN, "vmmd closed the console of %s%s%s", vm,
                              reason[0] != '\0' ? ": " : "", reason);
    }
    if (problem != NULL)
        return problem_show(cli, problem, NULL);
    if (result == WS_CLOSED) {
        note("the console of %s was closed%s%s", vm, reason[0] != '\0' ? ": " : "", reason);
        return ws_close_code(s->ws) == 1000 || ws_close_code(s->ws) == 1005 ? EXIT_DONE : EXIT_FAILED;
    }
    if (s->detached && isatty(STDERR_FILENO))
        note("detached from %s", vm);
    return EXIT_DONE;
}

static char *console_path(const struct args *args, long long from)
{
    CLEANUP_FREE char *base = api_vm_path(args->words[0], "/console");
    struct buf path = BUF_INIT(TEXT_MAX);

    buf_str(&path, base);
    if (args_has(args, "force"))
        buf_str(&path, "?force=1");
    if (from >= 0)
        buf_printf(&path, "%cfrom=%lld", args_has(args, "force") ? '&' : '?', from);
    return x_take(&path);
}

int cmd_console(struct cli *cli, const struct args *args)
{
    struct session s = {0};
    CLEANUP_FREE char *path = NULL;
    CLEANUP_JSON json_t *problem = NULL;
    enum ws_result result;
    long long from = -1;
    int exit_code;

    if (!args_integer(args, "from", 0, INT64_MAX, &from))
        return EXIT_USAGE;
    path = console_path(args, from);
    s.ws = ws_open(cli, path, &problem);
    if (s.ws == NULL)
        return signals_interrupted() ? EXIT_INTERRUPTED : problem_show(cli, problem, NULL);
    if (isatty(STDIN_FILENO) && isatty(STDERR_FILENO))
        note("attached to %s; Ctrl+] detaches", args->words[0]);
    terminal_raw();
    result = run(&s);
    if (result == WS_OPEN)
        ws_close(s.ws);
    terminal_restore();
    if (isatty(STDIN_FILENO) && isatty(STDERR_FILENO))
        fputc('\n', stderr);
    exit_code = judge(cli, &s, result, args->words[0]);
    ws_free(s.ws);
    return exit_code;
}
