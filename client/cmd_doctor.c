/* cmd_doctor.c - doctor: what no VM owns on the daemon's host, and what the host lacks; adopt: VMs taken back.
 *
 * Both read the same list. `doctor` ends with 1 as long as anything is left, so that a script can watch a host by it. */
#include <string.h>

#include "api.h"
#include "base/uuid.h"
#include "cli.h"
#include "diagnostic.h"
#include "output.h"
#include "util.h"

static const char *owner_text(const json_t *leak)
{
    const json_t *owner = json_object_get(leak, "owner");
    const char *name = json_text(owner, "vm_name");

    if (name[0] != '\0')
        return name;
    return json_is_object(owner) ? json_text(owner, "vm_id") : "-";
}

/* What became of it, or why it is here. */
static void note_text(const json_t *leak, char *out, size_t size)
{
    const char *result = json_text(leak, "result"), *detail = json_text(leak, "detail");

    if (strcmp(result, "reaped") == 0 || strcmp(result, "would_reap") == 0)
        snprintf(out, size, "%s: %s", strcmp(result, "reaped") == 0 ? "removed" : "would be removed",
                 json_text(leak, "reason"));
    else if (result[0] != '\0')
        snprintf(out, size, "%s: %s", strcmp(result, "too_young") == 0 ? "too young" : result, detail);
    else
        snprintf(out, size, "%s%s", json_is_true(json_object_get(leak, "adoptable")) ? "adoptable: " : "",
                 json_text(leak, "reason"));
}

static void print_leaks(const struct cli *cli, const json_t *items)
{
    static const char *const head[] = {"KIND", "WHAT", "OWNER", "AGE", "NOTE"};
    struct table table = {.columns = ARRAY_SIZE(head)};
    const json_t *leak;
    size_t i;

    if (cli->format == FORMAT_TABLE && json_array_size(items) > 0)
        table_row(&table, head);
    json_array_foreach(items, i, leak)
    {
        char age[32], text[1024];
        const char *cells[] = {json_text(leak, "kind"), json_text(leak, "what"), owner_text(leak), age, text};

        format_age(json_text(leak, "since"), age, sizeof(age));
        note_text(leak, text, sizeof(text));
        if (cli->format == FORMAT_TABLE)
            table_row(&table, cells);
        else
            out_line("%s", cells[1]);
    }
    table_print(&table);
}

/* The parts of /v1/host that say what cannot be done here, and why. */
static void print_lacks(const json_t *host)
{
    const char *const lists[] = {"backends", "accelerators"};
    const json_t *item;
    size_t k;

    for (size_t i = 0; i < ARRAY_SIZE(lists); i++)
        json_array_foreach(json_object_get(host, lists[i]), k, item)
        {
            if (!json_is_true(json_object_get(item, "available")))
                out_line("host: %s is not available: %s", json_text(item, "name"), json_text(item, "reason"));
        }
    json_array_foreach(json_object_get(host, "tools"), k, item)
    {
        if (!json_is_true(json_object_get(item, "present")))
            out_line("host: %s is missing", json_text(item, "name"));
    }
}

/* POSTs; the answer is the caller's, or NULL after the problem was shown. */
static json_t *post(const struct cli *cli, const char *path, const json_t *body, int *ret_exit)
{
    struct api_request req = {.method = "POST", .path = path, .body = body};
    struct api_response res;
    enum api_result result = api_call(cli->api, &req, &res);
    json_t *json = NULL;

    if (result == API_DONE && api_ok(&res) && json_is_object(res.json))
        json = json_incref(res.json);
    else
        *ret_exit = api_fail(cli, result, &res);
    api_response_done(&res);
    return json;
}

/* Whether anything of the answer is still there. */
static bool is_left(const json_t *items)
{
    const json_t *leak;
    size_t i;

    json_array_foreach(items, i, leak)
    {
        if (strcmp(json_text(leak, "result"), "reaped") != 0)
            return true;
    }
    return false;
}

static json_t *ask_leaks(const struct cli *cli, const struct args *args, long long older, int *ret_exit)
{
    CLEANUP_JSON json_t *body = json_object();

    if (!args_has(args, "reap") && !args_has(args, "dry-run"))
        return api_get(cli, "/v1/host/leaks", ret_exit);
    json_object_set_new(body, "dry_run", json_boolean(args_has(args, "dry-run")));
    if (older >= 0)
        json_object_set_new(body, "older_than_s", json_integer(older));
    return post(cli, "/v1/host/leaks/reap", body, ret_exit);
}

int cmd_doctor(struct cli *cli, const struct args *args)
{
    CLEANUP_JSON json_t *answer = NULL, *host = NULL;
    long long older = -1;
    int result = EXIT_DONE;

    if (!args_integer(args, "older-than", 0, 31536000, &older))
        return EXIT_USAGE;
    if (older >= 0 && !args_has(args, "reap") && !args_has(args, "dry-run"))
        return usage_error(args->command, "--older-than goes with --reap or --dry-run");
    answer = ask_leaks(cli, args, older, &result);
    if (answer == NULL)
        return result;
    const json_t *items = json_object_get(answer, "items");
    if (cli->format == FORMAT_JSON)
        out_json(answer);
    else
        print_leaks(cli, items);
    if (cli->format == FORMAT_TABLE) {
        if (json_array_size(items) == 0)
            out_line("nothing is left behind");
        host = api_get(cli, "/v1/host", &result);
        if (host == NULL)
            return result;
        print_lacks(host);
    }
    return is_left(items) ? EXIT_FAILED : EXIT_DONE;
}

/* --- adopt --- */

static bool has_id(const json_t *ids, const char *id)
{
    const json_t *item;
    size_t i;

    json_array_foreach(ids, i, item)
    {
        if (strcmp(json_string_value(item), id) == 0)
            return true;
    }
    return false;
}

/* Adds the ids of the adoptable VMs that `word` names, or of all (NULL); returns how many there were. */
static size_t add_ids(json_t *ids, const json_t *leaks, const char *word)
{
    const json_t *leak;
    size_t i, n = 0;

    json_array_foreach(json_object_get(leaks, "items"), i, leak)
    {
        const json_t *owner = json_object_get(leak, "owner");
        const char *id = json_text(owner, "vm_id"), *name = json_text(owner, "vm_name");

        if (!json_is_true(json_object_get(leak, "adoptable")) || id[0] == '\0' ||
            (word != NULL && strcmp(word, id) != 0 && strcmp(word, name) != 0))
            continue;
        n++;
        if (!has_id(ids, id))
            json_array_append_new(ids, json_string(id));
    }
    return n;
}

/* Words that name none are sent as they are when they are ids: the daemon knows why not. */
static int choose(const struct cli *cli, const struct args *args, const json_t *leaks, json_t *ids)
{
    struct uuid id;
    int worst = EXIT_DONE;

    if (args_has(args, "all"))
        add_ids(ids, leaks, NULL);
    for (size_t i = 0; i < args->word_count; i++) {
        const char *word = args->words[i];

        if (add_ids(ids, leaks, word) > 0)
            continue;
        if (uuid_parse(word, &id)) {
            json_array_append_new(ids, json_string(word));
            continue;
        }
        CLEANUP_JSON json_t *problem = problem_new(ERR_VM_NOT_FOUND, "there is no VM %s to adopt", word);
        problem_help(problem, "`vmctl adopt` lists those that can be adopted");
        worst = exit_worse(worst, problem_show(cli, problem, args->word_count > 1 ? word : NULL));
    }
    return worst;
}

static int show_adopted(const struct cli *cli, const json_t *items)
{
    int worst = EXIT_DONE;
    const json_t *item;
    size_t i;

    json_array_foreach(items, i, item)
    {
        const json_t *vm = json_object_get(item, "vm"), *error = json_object_get(item, "error");
        const char *name = json_text(vm, "name");

        if (json_is_object(error)) {
            worst = exit_worse(
                worst, cli->format == FORMAT_JSON
                           ? problem_exit_code(error)
                           : problem_show(cli, error, json_array_size(items) > 1 ? json_text(item, "id") : NULL));
        } else if (cli->format == FORMAT_NAME) {
            out_line("%s", name);
        } else if (cli->format == FORMAT_TABLE && json_is_true(json_object_get(item, "adopted"))) {
            out_line("%s adopted (%s)", name, json_text(vm, "state"));
        } else if (cli->format == FORMAT_TABLE) {
            out_line("%s needs no adoption (%s)", name, json_text(vm, "state"));
        }
    }
    return worst;
}

static int list_adoptable(const struct cli *cli, const json_t *leaks)
{
    CLEANUP_JSON json_t *ids = json_array();
    CLEANUP_JSON json_t *items = json_array();
    const json_t *leak;
    size_t i;

    json_array_foreach(json_object_get(leaks, "items"), i, leak)
    {
        const char *id = json_text(json_object_get(leak, "owner"), "vm_id");

        if (!json_is_true(json_object_get(leak, "adoptable")))
            continue;
        json_array_append(items, (json_t *)(uintptr_t)leak);
        if (cli->format == FORMAT_NAME && !has_id(ids, id))
            out_line("%s", owner_text(leak));
        json_array_append_new(ids, json_string(id));
    }
    if (cli->format == FORMAT_JSON) {
        CLEANUP_JSON json_t *list = json_object();
        json_object_set(list, "items", items);
        out_json(list);
    } else if (cli->format == FORMAT_TABLE) {
        print_leaks(cli, items);
        note(json_array_size(items) > 0 ? "take them back with `vmctl adopt NAME` or `vmctl adopt --all`"
                                        : "there is nothing to adopt");
    }
    return EXIT_DONE;
}

int cmd_adopt(struct cli *cli, const struct args *args)
{
    CLEANUP_JSON json_t *leaks = NULL, *answer = NULL;
    CLEANUP_JSON json_t *body = json_object();
    json_t *ids = json_array();
    int result = EXIT_DONE;

    json_object_set_new(body, "ids", ids);
    if (args_has(args, "all") && args->word_count > 0)
        return usage_error(args->command, "--all and names exclude each other");
    leaks = api_get(cli, "/v1/host/leaks", &result);
    if (leaks == NULL)
        return result;
    if (args->word_count == 0 && !args_has(args, "all"))
        return list_adoptable(cli, leaks);
    result = choose(cli, args, leaks, ids);
    if (json_array_size(ids) == 0) {
        if (result == EXIT_DONE)
            note("there is nothing to adopt");
        return result;
    }
    answer = post(cli, "/v1/host/adopt", body, &result);
    if (answer == NULL)
        return result;
    if (cli->format == FORMAT_JSON)
        out_json(answer);
    return exit_worse(result, show_adopted(cli, json_object_get(answer, "items")));
}
