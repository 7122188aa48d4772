/* cmd_lifecycle.c - the verbs on VMs that exist: start, stop, kill, reset, restart, suspend, resume, destroy.
 *
 * All names are sent first, so that they go on side by side, then each is waited for in turn. One VM's failure does not
 * keep the others back; the exit code is that of the worst. */
#include <string.h>

#include "api.h"
#include "change.h"
#include "cli.h"
#include "diagnostic.h"
#include "output.h"
#include "progress.h"
#include "util.h"

struct verb {
    const char *name;
    const char *past; /* "started" */
    const char *method;
    const char *suffix; /* of the VM's path */
};

int exit_worse(int a, int b)
{
    static const int order[] = {EXIT_DONE,      EXIT_CONFLICT, EXIT_NOT_FOUND,   EXIT_FAILED,     EXIT_USAGE,
                                EXIT_TIMED_OUT, EXIT_REFUSED,  EXIT_UNREACHABLE, EXIT_INTERRUPTED};
    size_t at_a = 0, at_b = 0;

    for (size_t i = 0; i < ARRAY_SIZE(order); i++) {
        at_a = order[i] == a ? i : at_a;
        at_b = order[i] == b ? i : at_b;
    }
    return at_a >= at_b ? a : b;
}

/* Writes the line of a VM whose change went well; with -o json its operation becomes part of `items`. */
static void report(const struct cli *cli, const struct verb *verb, const struct change *c, json_t *items)
{
    const char *method = json_text(c->operation, "method");

    if (cli->format == FORMAT_JSON)
        json_array_append(items, c->operation != NULL ? c->operation : json_object());
    else if (cli->format == FORMAT_NAME)
        out_line("%s", c->subject);
    else if (c->operation != NULL && !operation_ended(c->operation))
        out_line("%s: %s is under way (operation %s)", c->subject, verb->name, json_text(c->operation, "id"));
    else if (strcmp(method, "none") == 0)
        out_line("%s was %s already", c->subject, verb->past);
    else if (method[0] != '\0')
        out_line("%s %s (%s)", c->subject, verb->past, method);
    else
        out_line("%s %s", c->subject, verb->past);
    out_flush();
}

static int settle(const struct cli *cli, const struct verb *verb, struct change *c, size_t count, json_t *items)
{
    int result = c->problem == NULL && !cli->no_wait ? change_wait(cli, c) : EXIT_DONE;

    if (c->problem != NULL) {
        result = problem_exit_code(c->problem);
        if (cli->format == FORMAT_JSON)
            json_array_append(items, c->problem);
        else
            problem_show(cli, c->problem, count > 1 ? c->subject : NULL);
    } else if (result == EXIT_DONE) {
        report(cli, verb, c, items);
    }
    return result;
}

static void print_json(json_t *items, size_t count)
{
    CLEANUP_JSON json_t *list = NULL;

    if (count == 1 && json_array_size(items) == 1) {
        out_json(json_array_get(items, 0));
    } else if (json_array_size(items) > 0) {
        list = json_object();
        json_object_set(list, "items", items);
        out_json(list);
    }
}

static int run_verb(const struct cli *cli, const struct args *args, const struct verb *verb, json_t *body)
{
    const char *key = args_value(args, "idempotency-key");
    struct change *changes;
    CLEANUP_JSON json_t *items = json_array();
    size_t sent = 0;
    int worst = EXIT_DONE;

    if (key != NULL && args->word_count > 1)
        return usage_error(args->command, "one --idempotency-key cannot be for %zu VMs", args->word_count);
    changes = x_alloc(args->word_count * sizeof(*changes));
    while (sent < args->word_count && worst != EXIT_UNREACHABLE && worst != EXIT_INTERRUPTED) {
        struct change *c = &changes[sent];

        c->method = verb->method;
        c->path = api_vm_path(args->words[sent], verb->suffix);
        c->body = json_incref(body);
        c->subject = args->words[sent++];
        c->key = key;
        c->sent = change_send(cli, c);
        worst = exit_worse(worst, c->sent);
    }
    for (size_t i = 0; i < sent; i++) {
        if (changes[i].sent != EXIT_INTERRUPTED)
            worst = exit_worse(worst, settle(cli, verb, &changes[i], args->word_count, items));
    }
    if (sent < args->word_count && worst != EXIT_INTERRUPTED)
        note("nothing was asked for %s and those after it", args->words[sent]);
    if (cli->format == FORMAT_JSON)
        print_json(items, args->word_count);
    for (size_t i = 0; i < sent; i++)
        change_done(&changes[i]);
    mem_free(changes);
    return worst;
}

static int run_post(const struct cli *cli, const struct args *args, const struct verb *verb)
{
    CLEANUP_JSON json_t *body = json_object();

    return run_verb(cli, args, verb, body);
}

int cmd_start(struct cli *cli, const struct args *args)
{
    static const struct verb verb = {"start", "started", "POST", "/start"};

    return run_post(cli, args, &verb);
}

int cmd_stop(struct cli *cli, const struct args *args)
{
    static const struct verb verb = {"stop", "stopped", "POST", "/stop"};
    CLEANUP_JSON json_t *body = json_object();
    long long timeout = -1;

    if (!args_integer(args, "timeout", 0, args_has(args, "all") ? 3600 : INT64_MAX, &timeout))
        return EXIT_USAGE;
    if (args_has(args, "all") && args->word_count > 0)
        return usage_error(args->command, "--all and the names of VMs exclude each other");
    if (args_has(args, "all") && args_has(args, "idempotency-key"))
        return usage_error(args->command, "--all takes no --idempotency-key");
    if (args_has(args, "all"))
        return stop_all(cli, timeout);
    if (args->word_count == 0)
        return usage_error(args->command, "stop needs NAME…, or --all");
    if (timeout >= 0)
        json_object_set_new(body, "timeout_s", json_integer(timeout));
    return run_verb(cli, args, &verb, body);
}

int cmd_kill(struct cli *cli, const struct args *args)
{
    static const struct verb verb = {"kill", "killed", "POST", "/kill"};

    return run_post(cli, args, &verb);
}

int cmd_reset(struct cli *cli, const struct args *args)
{
    static const struct verb verb = {"reset", "reset", "POST", "/reset"};

    return run_post(cli, args, &verb);
}

int cmd_restart(struct cli *cli, const struct args *args)
{
    static const struct verb verb = {"restart", "restarted", "POST", "/restart"};

    return run_post(cli, args, &verb);
}

int cmd_suspend(struct cli *cli, const struct args *args)
{
    static const struct verb verb = {"suspend", "suspended", "POST", "/suspend"};

    return run_post(cli, args, &verb);
}

int cmd_resume(struct cli *cli, const struct args *args)
{
    static const struct verb verb = {"resume", "resumed", "POST", "/resume"};

    return run_post(cli, args, &verb);
}

int cmd_destroy(struct cli *cli, const struct args *args)
{
    static const struct verb verb = {"destroy", "destroyed", "DELETE", ""};

    return run_verb(cli, args, &verb, NULL);
}
