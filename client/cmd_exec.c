/* cmd_exec.c - exec: a command in a guest, its output as it comes, its exit code as vmctl's own.
 *
 * 125: vmctl itself failed (no daemon, no guest, a timeout). Ctrl+C drops the connection, and so kills the command. */
#include <errno.h>
#include <signal.h>
#include <string.h>
#include <unistd.h>

#include "api.h"
#include "base/str.h"
#include "cli.h"
#include "diagnostic.h"
#include "output.h"
#include "signals.h"
#include "ssh.h"
#include "util.h"

enum { STDIN_MAX = 700 << 10, TIMEOUT_MAX = 86400 };

static bool add_environment(const struct args *args, json_t *body)
{
    json_t *env = json_object();
    size_t at = 0;

    for (const char *pair; (pair = args_next(args, "env", &at)) != NULL;) {
        const char *equals = strchr(pair, '=');
        if (equals == NULL || equals == pair) {
            json_decref(env);
            usage_error(args->command, "--env takes NAME=VALUE, not %s", pair);
            return false;
        }
        CLEANUP_FREE char *name = x_printf("%.*s", (int)(equals - pair), pair);
        json_object_set_new(env, name, json_string(equals + 1));
    }
    json_object_set_new(body, "env", env);
    return true;
}

static bool add_input(const struct args *args, json_t *body)
{
    struct buf input = BUF_INIT(STDIN_MAX);

    if (!args_has(args, "interactive"))
        return true;
    int rc = read_whole_file("-", STDIN_MAX, &input);
    if (rc != 0) {
        note("stdin: %s", rc == EFBIG ? "more than the 700 KiB that exec takes; copy a file instead" : strerror(rc));
        buf_done(&input);
        return false;
    }
    CLEANUP_FREE char *text = base64_encode(input.data, input.len);
    json_object_set_new(body, "stdin_base64", json_string(text));
    buf_done(&input);
    return true;
}

static void add_text(const struct args *args, const char *name, const char *field, json_t *body)
{
    if (args_value(args, name) != NULL)
        json_object_set_new(body, field, json_string(args_value(args, name)));
}

static json_t *make_body(const struct args *args, int *ret_exit)
{
    json_t *body = json_object(), *words = json_array();
    long long timeout = TIMEOUT_MAX;

    for (size_t i = 1; i < args->word_count; i++)
        json_array_append_new(words, json_string(args->words[i]));
    json_object_set_new(body, "command", words);
    add_text(args, "cwd", "cwd", body);
    add_text(args, "user", "user", body);
    add_text(args, "via", "via", body);
    *ret_exit = EXIT_VMCTL;
    if (args_integer(args, "timeout", 1, TIMEOUT_MAX, &timeout) && add_environment(args, body)) {
        json_object_set_new(body, "timeout_s", json_integer(timeout));
        if (add_input(args, body))
            return body;
    }
    json_decref(body);
    return NULL;
}

/* --- the answer --- */

struct live {
    const struct cli *cli;
    struct buf line;
    json_t *end; /* the last line */
};

static void write_piece(const json_t *line)
{
    CLEANUP_BUF struct buf bytes = BUF_INIT(TEXT_MAX);
    const char *encoded = json_text(line, "data_base64"), *text = json_text(line, "data");
    const char *data = text;
    size_t len = strlen(text);

    if (encoded[0] != '\0' && base64_decode(encoded, &bytes)) {
        data = bytes.data;
        len = bytes.len;
    }
    if (strcmp(json_text(line, "stream"), "stderr") != 0) {
        out_write(data, len);
        return;
    }
    out_flush();
    for (ssize_t n; len > 0 && (n = write(STDERR_FILENO, data, len)) > 0; data += n)
        len -= (size_t)n;
}

static bool take_bytes(void *arg, const char *bytes, size_t size)
{
    struct live *live = arg;

    while (size > 0) {
        const char *end = memchr(bytes, '\n', size);
        size_t n = end != NULL ? (size_t)(end - bytes) : size;

        buf_append(&live->line, bytes, n);
        if (end == NULL)
            break;
        json_t *line = json_loadb(live->line.data, live->line.len, 0, NULL);
        buf_reset(&live->line);
        bytes += n + 1;
        size -= n + 1;
        if (json_object_get(line, "stream") != NULL) {
            write_piece(line);
        } else {
            json_decref(live->end);
            live->end = json_incref(line);
        }
        json_decref(line);
    }
    return out_flush();
}

/* The remote exit code, a signal as a shell would tell it. */
static int exit_of(const struct cli *cli, const json_t *end, const char *name)
{
    const json_t *problem = json_object_get(end, "error"), *code = json_object_get(end, "exit_code");
    const char *signal = json_text(end, "signal");

    if (problem != NULL) {
        problem_show(cli, problem, NULL);
        return EXIT_VMCTL;
    }
    if (json_is_true(json_object_get(end, "timed_out"))) {
        note("%s: the command took too long and was killed", name);
        return EXIT_VMCTL;
    }
    if (json_is_integer(code))
        return (int)json_integer_value(code);
    for (int n = 1; n < NSIG; n++) {
        const char *abbreviation = sigabbrev_np(n);
        if (abbreviation != NULL && str_prefix(signal, "SIG") && strcmp(signal + 3, abbreviation) == 0)
            return 128 + n;
    }
    note("%s: %s", name, end != NULL ? "the command ended by a signal" : "the answer broke off");
    return EXIT_VMCTL;
}

static int call_failed(const struct cli *cli, enum api_result result, const struct api_response *res)
{
    if (result == API_INTERRUPTED || signals_interrupted())
        return EXIT_INTERRUPTED;
    if (result != API_STOPPED) /* the reader of stdout is gone */
        api_fail(cli, result, res);
    return EXIT_VMCTL;
}

static int run_whole(const struct cli *cli, const struct args *args, struct api_request *req)
{
    struct api_response res;
    enum api_result result;
    int code;

    req->hold_s = TIMEOUT_MAX;
    result = api_call(cli->api, req, &res);
    if (result == API_DONE && api_ok(&res)) {
        out_json(res.json);
        code = exit_of(cli, res.json, args->words[0]);
    } else {
        code = call_failed(cli, result, &res);
    }
    api_response_done(&res);
    return code;
}

static int run_live(const struct cli *cli, const struct args *args, struct api_request *req)
{
    struct live live = {.cli = cli, .line = BUF_INIT(TEXT_MAX)};
    struct api_response res;
    enum api_result result;
    int code;

    req->accept = "application/x-ndjson, application/problem+json";
    req->stream = true;
    req->sink = take_bytes;
    req->arg = &live;
    result = api_call(cli->api, req, &res);
    code = result == API_DONE && api_ok(&res) ? exit_of(cli, live.end, args->words[0]) : call_failed(cli, result, &res);
    json_decref(live.end);
    buf_done(&live.line);
    api_response_done(&res);
    return code;
}

/* A terminal is beyond the API: the system's ssh has one. */
static int run_on_terminal(struct cli *cli, const struct args *args)
{
    struct ssh_call call = {.name = args->words[0],
                            .user = args_value(args, "user"),
                            .tty = true,
                            .command = args->words + 1,
                            .command_count = args->word_count - 1};

    if (args_has(args, "env") || args_has(args, "cwd") || args_has(args, "via")) {
        usage_error(args->command, "-t goes by ssh and takes none of --env, --cwd and --via");
        return EXIT_VMCTL;
    }
    return ssh_run(cli, &call);
}

int cmd_exec(struct cli *cli, const struct args *args)
{
    CLEANUP_FREE char *path = api_vm_path(args->words[0], "/exec");
    struct api_request req = {.method = "POST", .path = path};
    int code;

    if (args_has(args, "tty"))
        return run_on_terminal(cli, args);
    CLEANUP_JSON json_t *body = make_body(args, &code);
    if (body == NULL)
        return code;
    req.body = body;
    return cli->format == FORMAT_JSON ? run_whole(cli, args, &req) : run_live(cli, args, &req);
}
