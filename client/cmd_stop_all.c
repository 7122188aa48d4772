/* cmd_stop_all.c - vmctl stop --all: every VM that runs or is suspended, side by side, within one time for all.
 *
 *   list ─► ask (at most IN_FLIGHT at once; each guest gets the time that is left) ─► a line for each that has stopped
 *     └──────────── again, for those that came up meanwhile, until a list has none ◄────────────┘
 *
 * What can go wrong: a guest does not power off in time: vmmd ends it, and vmctl ends with 1; another operation holds a VM:
 * asked again until the time is over, then the VM is killed; a VM cannot be stopped: its problem is shown, the others go
 * on. Ctrl+C leaves: what was asked for goes on. */
#include <string.h>

#include "api.h"
#include "base/clock.h"
#include "change.h"
#include "cli.h"
#include "diagnostic.h"
#include "output.h"
#include "signals.h"
#include "util.h"

enum { IN_FLIGHT = 64, DEFAULT_S = 30, AGAIN_MS = 250, AFTER_MS = 30000 };

struct stop {
    char *id, *name;
    struct change change;
    bool asked, over;
};

struct stopping {
    const struct cli *cli;
    int64_t until;      /* monotonic ms: the guests' time */
    struct stop *stops; /* of this round */
    size_t count;
    json_t *seen;  /* ids that have had their line */
    json_t *items; /* -o json: operations and problems */
    int worst;
};

static int64_t left_s(const struct stopping *s)
{
    int64_t left = s->until - clock_mono_ms();

    return left > 0 ? (left + 999) / 1000 : 0;
}

static bool list(struct stopping *s)
{
    CLEANUP_JSON json_t *page = NULL;
    CLEANUP_FREE char *cursor = NULL;
    int result = EXIT_DONE;

    do {
        struct buf path = BUF_INIT(TEXT_MAX);
        const json_t *vm;
        size_t i;

        buf_str(&path, "/v1/vms?limit=1000&state=running&state=suspended");
        if (cursor != NULL) {
            buf_str(&path, "&cursor=");
            buf_url(&path, cursor);
        }
        char *text = x_take(&path);
        json_decref(page);
        page = api_get(s->cli, text, &result);
        mem_free(text);
        if (page == NULL) {
            s->worst = exit_worse(s->worst, result);
            return false;
        }
        json_array_foreach(json_object_get(page, "items"), i, vm)
        {
            if (json_object_get(s->seen, json_text(vm, "id")) != NULL)
                continue;
            struct stop *more = x_alloc((s->count + 1) * sizeof(*more));
            if (s->count > 0)
                memcpy(more, s->stops, s->count * sizeof(*more));
            mem_free(s->stops);
            s->stops = more;
            s->stops[s->count++] =
                (struct stop){.id = x_strdup(json_text(vm, "id")), .name = x_strdup(json_text(vm, "name"))};
        }
        mem_free(cursor);
        cursor = x_strdup(json_string_value(json_object_get(page, "next_cursor")));
    } while (cursor != NULL);
    return true;
}

/* Its last word. With a problem the VM may run on. */
static void end(struct stopping *s, struct stop *stop)
{
    const struct cli *cli = s->cli;
    const struct change *c = &stop->change;
    const char *method = json_text(c->operation, "method");

    stop->over = true;
    json_object_set_new(s->seen, stop->id, json_true());
    if (c->problem != NULL) {
        s->worst = exit_worse(s->worst,
                              problem_is(c->problem, ERR_CLIENT_DAEMON_UNREACHABLE) ? EXIT_UNREACHABLE : EXIT_FAILED);
        if (cli->format == FORMAT_JSON)
            json_array_append(s->items, c->problem);
        else
            problem_show(cli, c->problem, stop->name);
        return;
    }
    if (strcmp(method, "term") == 0 || strcmp(method, "kill") == 0 ||
        strcmp(json_text(c->operation, "kind"), "vm.kill") == 0) {
        s->worst = exit_worse(s->worst, EXIT_FAILED);
        note("%s did not power off in time and was ended", stop->name);
    }
    if (cli->format == FORMAT_JSON)
        json_array_append(s->items, c->operation);
    else if (cli->format == FORMAT_NAME)
        out_line("%s", stop->name);
    else if (strcmp(method, "none") == 0 || c->operation == NULL)
        out_line("%s was stopped already", stop->name);
    else
        out_line("%s stopped (%s)", stop->name, method[0] != '\0' ? method : "kill");
    out_flush();
}

/* It stopped, or was destroyed, before it was asked: that is what was wanted. */
static bool gone_meanwhile(const struct change *c)
{
    return problem_is(c->problem, ERR_VM_NOT_FOUND) || problem_is(c->problem, ERR_LIFECYCLE_DESTROYED) ||
           problem_is(c->problem, ERR_VM_INVALID_STATE);
}

static void ask(struct stopping *s, struct stop *stop)
{
    struct change *c = &stop->change;
    bool late = left_s(s) == 0;

    change_done(c);
    c->method = "POST";
    c->path = api_vm_path(stop->id, late ? "/kill" : "/stop");
    c->body = late ? json_object() : json_pack("{sI}", "timeout_s", (json_int_t)left_s(s));
    c->subject = stop->name;
    int result = change_send(s->cli, c);
    if (result == EXIT_INTERRUPTED)
        return;
    stop->asked = result == EXIT_DONE;
    if (stop->asked)
        return;
    if (problem_is(c->problem, ERR_VM_BUSY) && !late)
        return; /* asked again at the next turn */
    if (gone_meanwhile(c)) {
        json_decref(c->problem);
        c->problem = NULL;
    }
    end(s, stop);
}

/* Has it ended?  `wait`: for a second at most. */
static void look(struct stopping *s, struct stop *stop, bool wait)
{
    struct change *c = &stop->change;
    struct buf text = BUF_INIT(TEXT_MAX);
    struct api_response res;

    buf_str(&text, "/v1/operations/");
    buf_url(&text, json_text(c->operation, "id"));
    char *path = x_take(&text);
    struct api_request req = {.path = path, .wait_s = wait ? 1 : 0};
    enum api_result result = api_call(s->cli->api, &req, &res);
    if (result == API_DONE && json_is_object(res.json) && json_is_string(json_object_get(res.json, "kind"))) {
        json_decref(c->operation);
        c->operation = json_incref(res.json);
        const json_t *error = json_object_get(c->operation, "error");
        if (operation_ended(c->operation) && json_is_object(error))
            c->problem = json_incref((json_t *)(uintptr_t)error);
        if (operation_ended(c->operation))
            end(s, stop);
    } else if (result == API_DONE && !api_ok(&res) && !api_gone(result, &res)) {
        c->problem = api_problem(s->cli->api, result, &res);
        end(s, stop);
    } else if (result != API_INTERRUPTED && clock_mono_ms() > s->until + AFTER_MS) {
        c->problem = api_problem(s->cli->api, result, &res);
        if (c->problem != NULL)
            end(s, stop);
    }
    if (result != API_DONE)
        signals_sleep(AGAIN_MS);
    api_response_done(&res);
    mem_free(path);
}

/* One turn over all of this round: those that may be asked are, one of those under way is waited for. */
static bool turn(struct stopping *s)
{
    size_t in_flight = 0, open = 0;
    bool waited = false;

    for (size_t i = 0; i < s->count; i++)
        in_flight += s->stops[i].asked && !s->stops[i].over;
    for (size_t i = 0; i < s->count && !signals_interrupted(); i++) {
        struct stop *stop = &s->stops[i];

        if (stop->over)
            continue;
        if (!stop->asked && (in_flight < IN_FLIGHT || s->cli->no_wait)) {
            ask(s, stop);
            in_flight += stop->asked;
        } else if (stop->asked && !s->cli->no_wait) {
            look(s, stop, !waited);
            waited = true;
        }
        open += !stop->over && !(s->cli->no_wait && stop->asked);
    }
    if (open > 0 && !waited)
        signals_sleep(AGAIN_MS);
    return open > 0 && !signals_interrupted() && s->worst != EXIT_UNREACHABLE;
}

static void forget_round(struct stopping *s)
{
    for (size_t i = 0; i < s->count; i++) {
        change_done(&s->stops[i].change);
        mem_free(s->stops[i].id);
        mem_free(s->stops[i].name);
    }
    mem_free(s->stops);
    s->stops = NULL;
    s->count = 0;
}

int stop_all(const struct cli *cli, long long timeout_s)
{
    CLEANUP_JSON json_t *seen = json_object();
    CLEANUP_JSON json_t *items = json_array();
    struct stopping s = {.cli = cli, .seen = seen, .items = items};
    size_t all = 0;

    s.until = clock_mono_ms() + (timeout_s >= 0 ? timeout_s : DEFAULT_S) * 1000;
    while (list(&s) && s.count > 0 && !signals_interrupted()) {
        all += s.count;
        while (turn(&s))
            ;
        for (size_t i = 0; i < s.count && cli->no_wait; i++)
            if (s.stops[i].asked && cli->format != FORMAT_JSON)
                out_line(cli->format == FORMAT_NAME ? "%s" : "%s: stop is under way", s.stops[i].name);
        forget_round(&s);
        if (cli->no_wait || s.worst == EXIT_UNREACHABLE)
            break;
    }
    forget_round(&s);
    if (signals_interrupted()) {
        note("interrupted; the stops that were asked for go on");
        return EXIT_INTERRUPTED;
    }
    if (all == 0 && s.worst == EXIT_DONE && cli->format == FORMAT_TABLE)
        note("no VM runs");
    if (cli->format == FORMAT_JSON) {
        CLEANUP_JSON json_t *document = json_pack("{sO}", "items", items);
        out_json(document);
    }
    return s.worst;
}
