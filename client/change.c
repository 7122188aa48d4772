/* change.c - sends a change and waits for its operation.
 *
 * The change is sent without a wait, so that the operation's id is known at once; then the operation is read with short
 * waits (Prefer: wait) which bring its steps. The daemon may go away at any time: the change is repeated with the same
 * Idempotency-Key, the wait goes on by the operation's id. */
#include "change.h"

#include <string.h>

#include "api.h"
#include "base/clock.h"
#include "diagnostic.h"
#include "progress.h"
#include "signals.h"
#include "util.h"

enum { WATCHED_WAIT_S = 1, QUIET_WAIT_S = 30, EARLY_MS = 200 };

const char *operation_subject(const json_t *operation)
{
    const json_t *target = json_object_get(operation, "target");
    const char *image = json_text(target, "image");

    return image[0] != '\0' ? image : json_text(target, "vm_name");
}

bool operation_ended(const json_t *operation)
{
    const char *state = json_text(operation, "state");

    return strcmp(state, "pending") != 0 && strcmp(state, "running") != 0;
}

static bool is_operation(const json_t *json)
{
    return json_is_string(json_object_get(json, "id")) && json_is_string(json_object_get(json, "kind"));
}

static void take_operation(struct change *c, json_t *operation)
{
    json_decref(c->operation);
    c->operation = json_incref(operation);
}

/* How an operation that was read as a resource ended. */
static int judge(struct change *c)
{
    json_t *error = json_object_get(c->operation, "error");

    if (strcmp(json_text(c->operation, "state"), "succeeded") == 0)
        return EXIT_DONE;
    if (json_is_object(error))
        c->problem = json_incref(error);
    else
        c->problem =
            problem_new(ERR_OPERATION_CANCELLED, "%s of %s was cancelled", json_text(c->operation, "kind"), c->subject);
    return problem_exit_code(c->problem);
}

/* The answer to a DELETE that was repeated because the first one's answer got lost: that the VM is gone is what was
 * wanted. */
static bool gone_as_wanted(const struct change *c, const struct api_response *res, bool repeated)
{
    return repeated && strcmp(c->method, "DELETE") == 0 && (res->status == 404 || res->status == 410);
}

int change_send(const struct cli *cli, struct change *c)
{
    struct patience patience = {0};
    struct uuid id = uuid_new();
    bool repeated = false;

    if (c->key == NULL)
        c->key = uuid_text(&id, c->own_key);
    for (;;) {
        struct api_request req = {.method = c->method, .path = c->path, .body = c->body, .idempotency_key = c->key};
        struct api_response res;
        enum api_result result = api_call(cli->api, &req, &res);
        int exit_code = EXIT_DONE;

        if (result == API_LOST || (result == API_UNREACHABLE && patience.until != 0)) {
            repeated = true;
            if (patience_wait(&patience, "the request is sent again with the same key")) {
                api_response_done(&res);
                continue;
            }
        }
        if (result == API_INTERRUPTED || signals_interrupted()) {
            note("interrupted before vmmd answered; `vmctl ops` shows whether it took the request");
            exit_code = EXIT_INTERRUPTED;
        } else if (result == API_DONE && (api_ok(&res) || gone_as_wanted(c, &res, repeated))) {
            patience_reset(&patience);
            if (is_operation(res.json))
                take_operation(c, res.json);
        } else {
            c->problem = api_problem(cli->api, result, &res);
            exit_code = problem_exit_code(c->problem);
        }
        api_response_done(&res);
        return exit_code;
    }
}

/* Ctrl+C came: the operation is the daemon's and goes on. */
static int leave(const struct change *c)
{
    const char *id = json_text(c->operation, "id");

    note("%s of %s goes on as operation %s; cancel it with `vmctl ops cancel %s`", json_text(c->operation, "kind"),
         c->subject, id, id);
    return EXIT_INTERRUPTED;
}

/* The operation failed, as its problem document said; shows the steps that were not seen yet. */
static void show_last_steps(const struct cli *cli, const char *path, struct progress *progress)
{
    struct api_request req = {.path = path};
    struct api_response res;

    if (progress->on && !progress->line && api_call(cli->api, &req, &res) == API_DONE) {
        if (api_ok(&res) && is_operation(res.json))
            progress_update(progress, res.json);
        api_response_done(&res);
    }
}

static char *operation_path(const struct change *c)
{
    struct buf b = BUF_INIT(TEXT_MAX);

    buf_str(&b, "/v1/operations/");
    buf_url(&b, json_text(c->operation, "id"));
    return x_take(&b);
}

/* Reads the operation once, with a wait. Returns true when the wait is over, *ret_exit being the exit code. */
static bool wait_once(const struct cli *cli, struct change *c, const char *path, struct progress *progress,
                      struct patience *patience, int *ret_exit)
{
    struct api_request req = {.path = path, .wait_s = progress->on ? WATCHED_WAIT_S : QUIET_WAIT_S};
    struct api_response res;
    int64_t before = clock_mono_ms();
    enum api_result result = api_call(cli->api, &req, &res);
    bool over = false;

    if (api_gone(result, &res)) {
        CLEANUP_FREE char *what = x_printf("operation %s", json_text(c->operation, "id"));

        over = !patience_wait(patience, what) && !signals_interrupted();
        if (over) {
            c->problem = api_problem(cli->api, result, &res);
            problem_help(c->problem, "start vmmd, then see what became of it with `vmctl ops show %s`",
                         json_text(c->operation, "id"));
            *ret_exit = problem_exit_code(c->problem);
        }
    } else if (result == API_DONE && api_ok(&res) && is_operation(res.json)) {
        patience_reset(patience);
        take_operation(c, res.json);
        progress_update(progress, c->operation);
        over = operation_ended(c->operation);
        if (over)
            *ret_exit = judge(c);
        else if (clock_mono_ms() - before < EARLY_MS) /* it would not hold the answer: do not spin */
            signals_sleep(EARLY_MS);
    } else if (result == API_DONE) {
        patience_reset(patience);
        c->problem = api_problem(cli->api, result, &res);
        *ret_exit = problem_exit_code(c->problem);
        show_last_steps(cli, path, progress);
        over = true;
    }
    api_response_done(&res);
    return over;
}

static void tick(const struct change *c)
{
    if (c->tick != NULL && !signals_interrupted())
        c->tick(c->tick_arg);
}

int change_wait(const struct cli *cli, struct change *c)
{
    CLEANUP_FREE char *path = NULL;
    struct patience patience = {0};
    struct progress progress;
    int exit_code = EXIT_DONE;

    progress_init(&progress, cli);
    if (c->operation == NULL)
        return EXIT_DONE;
    progress_update(&progress, c->operation);
    if (operation_ended(c->operation)) {
        progress_clear();
        tick(c);
        return judge(c);
    }
    path = operation_path(c);
    while (!wait_once(cli, c, path, &progress, &patience, &exit_code)) {
        if (signals_interrupted()) {
            exit_code = leave(c);
            break;
        }
        tick(c);
    }
    progress_clear();
    tick(c);
    return exit_code;
}

void change_done(struct change *c)
{
    mem_free(c->path);
    json_decref(c->body);
    json_decref(c->operation);
    json_decref(c->problem);
    *c = (struct change){0};
}
