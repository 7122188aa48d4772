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

enum { DEFAULT_S = 60, HOLD_MAX_S = 600, CONDITIONS_MAX = 64 };

static bool is_among(const char *word, const char *words)
{
    size_t len = strlen(word);

    for (const char *at = words; len > 0 && (at = strstr(at, word)) != NULL; at += len) {
        if ((at == words || at[-1] == ' ') && (at[len] == ' ' || at[len] == '\0'))
            return true;
    }
    return false;
}

/* "running" means "state:running". */
static bool is_state(const char *word)
{
    return is_among(word, VM_STATES " destroyed");
}

bool wait_known(const char *word)
{
    return is_among(word, VM_CONDITIONS) || is_state(strncmp(word, "state:", 6) == 0 ? word + 6 : word);
}

struct waiting {
    const char *name;
    const char *const *conditions;
    size_t count; /* 0: ready */
    bool quiet;
};

static char *wait_path(const struct waiting *w, long long timeout_s)
{
    CLEANUP_FREE char *base = api_vm_path(w->name, "/wait");
    struct buf path = BUF_INIT(TEXT_MAX);

    buf_printf(&path, "%s?timeout=%lld", base, timeout_s);
    for (size_t i = 0; i < w->count; i++) {
        buf_str(&path, is_state(w->conditions[i]) ? "&for=state:" : "&for=");
        buf_url(&path, w->conditions[i]);
    }
    if (w->count == 0)
        buf_str(&path, "&for=ready");
    return x_take(&path);
}

/* "running, ready": its state, and the conditions that were waited for. */
static char *what_holds(const struct waiting *w, const json_t *vm)
{
    struct buf text = BUF_INIT(TEXT_MAX);

    buf_str(&text, json_text(vm, "state"));
    for (size_t i = 0; i < w->count; i++)
        if (!is_state(w->conditions[i]) && strncmp(w->conditions[i], "state:", 6) != 0)
            buf_printf(&text, ", %s", w->conditions[i]);
    if (w->count == 0)
        buf_str(&text, ", ready");
    return x_take(&text);
}

static void report(const struct cli *cli, const struct waiting *w, const json_t *answer)
{
    const json_t *vm = json_object_get(answer, "vm");

    if (cli->format == FORMAT_JSON) {
        out_json(answer);
    } else if (cli->format == FORMAT_NAME) {
        out_line("%s", json_text(vm, "name"));
    } else {
        CLEANUP_FREE char *text = what_holds(w, vm);
        out_line("%s is %s", w->name, text);
    }
}

/* Waits once for at most `left_s`. Returns whether it is over, *ret_exit being the exit code. */
static bool wait_once(const struct cli *cli, const struct waiting *w, long long left_s, bool last,
                      struct patience *patience, int *ret_exit)
{
    CLEANUP_FREE char *path = wait_path(w, left_s);
    struct api_request req = {.path = path, .hold_s = (int)left_s};
    struct api_response res;
    enum api_result result = api_call(cli->api, &req, &res);
    bool over = true;

    if (result == API_DONE && api_ok(&res)) {
        if (!w->quiet)
            report(cli, w, res.json);
        *ret_exit = EXIT_DONE;
    } else if (api_gone(result, &res) && (result != API_UNREACHABLE || patience->until > 0)) {
        over = !patience_wait(patience, w->name);
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

int wait_for(const struct cli *cli, const char *name, const char *const *conditions, size_t count, long long timeout_s,
             bool quiet)
{
    const struct waiting w = {name, conditions, count, quiet};
    struct patience patience = {0};
    int64_t until = clock_mono_ms() + timeout_s * 1000;
    int result = EXIT_INTERRUPTED;
    bool over = false;

    while (!over && !signals_interrupted()) {
        long long left = (until - clock_mono_ms() + 999) / 1000;

        left = left > 0 ? left : 0;
        over = wait_once(cli, &w, left > HOLD_MAX_S ? HOLD_MAX_S : left, left <= HOLD_MAX_S, &patience, &result);
    }
    return result;
}

int cmd_wait(struct cli *cli, const struct args *args)
{
    const char *conditions[CONDITIONS_MAX], *condition;
    long long timeout = DEFAULT_S;
    size_t at = 0, count = 0;

    if (!args_integer(args, "timeout", 0, 1 << 30, &timeout))
        return EXIT_USAGE;
    while (count < CONDITIONS_MAX && (condition = args_next(args, "for", &at)) != NULL)
        conditions[count++] = condition;
    return wait_for(cli, args->words[0], conditions, count, timeout, false);
}
