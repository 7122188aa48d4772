/* cmd_wait.c - vmctl wait: until a VM has come to a state or condition.
 *
 * The daemon holds a wait for 600 s at most; a longer one is asked for again. A daemon that goes away is waited for up
 * to 30 s. */
#include <string.h>

#include "api.h"
#include "base/clock.h"
#include "cli.h"
#include "diagnostic.h"
#include "output.h"
#include "signals.h"
#include "util.h"

enum { DEFAULT_S = 60, HOLD_MAX_S = 600 };

/* "running" means "state:running". */
static bool is_state(const char *word)
{
    static const char *const states[] = {"preparing", "prepared", "running",  "suspended",
                                         "stopped",   "failed",   "destroyed"};

    for (size_t i = 0; i < ARRAY_SIZE(states); i++) {
        if (strcmp(states[i], word) == 0)
            return true;
    }
    return false;
}

static char *wait_path(const struct args *args, long long timeout_s)
{
    CLEANUP_FREE char *base = api_vm_path(args->words[0], "/wait");
    struct buf path = BUF_INIT(TEXT_MAX);
    const char *condition;
    size_t at = 0;

    buf_printf(&path, "%s?timeout=%lld", base, timeout_s);
    while ((condition = args_next(args, "for", &at)) != NULL) {
        buf_str(&path, is_state(condition) ? "&for=state:" : "&for=");
        buf_url(&path, condition);
    }
    if (!args_has(args, "for"))
        buf_str(&path, "&for=ready");
    return x_take(&path);
}

/* "running, ready": its state, and the conditions that were waited for. */
static char *what_holds(const struct args *args, const json_t *vm)
{
    struct buf text = BUF_INIT(TEXT_MAX);
    const char *condition;
    size_t at = 0;

    buf_str(&text, json_text(vm, "state"));
    while ((condition = args_next(args, "for", &at)) != NULL)
        if (!is_state(condition) && strncmp(condition, "state:", 6) != 0)
            buf_printf(&text, ", %s", condition);
    if (!args_has(args, "for"))
        buf_str(&text, ", ready");
    return x_take(&text);
}

static void report(const struct cli *cli, const struct args *args, const json_t *answer)
{
    const json_t *vm = json_object_get(answer, "vm");

    if (cli->format == FORMAT_JSON) {
        out_json(answer);
    } else if (cli->format == FORMAT_NAME) {
        out_line("%s", json_text(vm, "name"));
    } else {
        CLEANUP_FREE char *text = what_holds(args, vm);
        out_line("%s is %s", args->words[0], text);
    }
}

/* Waits once for at most `left_s`. Returns whether it is over, *ret_exit being the exit code. */
static bool wait_once(const struct cli *cli, const struct args *args, long long left_s, bool last,
                      struct patience *patience, int *ret_exit)
{
    CLEANUP_FREE char *path = wait_path(args, left_s);
    struct api_request req = {.path = path, .hold_s = (int)left_s};
    struct api_response res;
    enum api_result result = api_call(cli->api, &req, &res);
    bool over = true;

    if (result == API_DONE && api_ok(&res)) {
        report(cli, args, res.json);
        *ret_exit = EXIT_DONE;
    } else if (api_gone(result, &res) && (result != API_UNREACHABLE || patience->until > 0)) {
        over = !patience_wait(patience, args->words[0]);
        if (over && !signals_interrupted())
            *ret_exit = api_fail(cli, result, &res);
    } else if (result == API_DONE && problem_is(res.json, ERR_WAIT_TIMED_OUT) && !last) {
        over = false;
    } else {
        *ret_exit = api_fail(cli, result, &res);
    }
    if (result == API_DONE && !api_gone(result, &res))
        patience_reset(patience);
    api_response_done(&res);
    return over;
}

int cmd_wait(struct cli *cli, const struct args *args)
{
    struct patience patience = {0};
    long long timeout = DEFAULT_S, left;
    int64_t until;
    int result = EXIT_INTERRUPTED;
    bool over = false;

    if (!args_integer(args, "timeout", 0, 1 << 30, &timeout))
        return EXIT_USAGE;
    until = clock_mono_ms() + timeout * 1000;
    while (!over && !signals_interrupted()) {
        left = (until - clock_mono_ms() + 999) / 1000;
        left = left > 0 ? left : 0;
        over = wait_once(cli, args, left > HOLD_MAX_S ? HOLD_MAX_S : left, left <= HOLD_MAX_S, &patience, &result);
    }
    return result;
}
