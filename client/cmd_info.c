/* cmd_info.c - what there is to know: host, errors, explain, version. */
#include <string.h>

#include "api.h"
#include "cli.h"
#include "diagnostic.h"
#include "output.h"
#include "util.h"
#include "version.h"

int cmd_host(struct cli *cli, const struct args *args)
{
    int result = EXIT_DONE;
    CLEANUP_JSON json_t *host = api_get(cli, "/v1/host", &result);

    (void)args;
    if (host == NULL)
        return result;
    if (cli->format == FORMAT_JSON) {
        out_json(host);
    } else if (cli->format == FORMAT_NAME) {
        out_line("%s", json_text(host, "hostname"));
    } else { /* the 60 machine types of QEMU would hide the rest */
        json_object_del(json_object_get(json_object_get(host, "qemu"), "capabilities"), "machines");
        out_document(host);
    }
    return EXIT_DONE;
}

static void print_last_operation(const json_t *operation)
{
    const json_t *error = json_object_get(operation, "error"), *step;
    size_t i;

    out_line("operation: %s %s (%s)", json_text(operation, "kind"), json_text(operation, "state"),
             json_text(operation, "id"));
    json_array_foreach(json_object_get(operation, "steps"), i, step)
    {
        out_line("  %s: %s", json_text(step, "name"), json_text(step, "state"));
    }
    if (json_is_object(error))
        out_line("  error: %s: %s", json_text(error, "code"), json_text(error, "detail"));
}

/* The VM's whole document in the operation's result would hide the reasons: the operation is shown in short. */
static void print_explanation(json_t *document)
{
    CLEANUP_JSON json_t *operation = json_incref(json_object_get(document, "operation"));
    CLEANUP_JSON json_t *transitions = json_incref(json_object_get(document, "transitions"));
    const json_t *transition, *condition;
    size_t i;

    out_line("%s is %s", json_text(document, "name"), json_text(document, "state"));
    json_array_foreach(json_object_get(document, "conditions"), i, condition)
    {
        if (json_text(condition, "message")[0] != '\0')
            out_line("  %s: %s", json_text(condition, "type"), json_text(condition, "message"));
    }
    json_array_foreach(transitions, i, transition)
    {
        const char *from = json_text(transition, "from");

        out_line("  %s  %s%s%s: %s", json_text(transition, "at"), from, from[0] != '\0' ? " -> " : "",
                 json_text(transition, "to"), json_text(transition, "cause"));
    }
    json_object_del(document, "operation");
    json_object_del(document, "transitions");
    json_object_del(document, "conditions");
    json_object_del(document, "name");
    json_object_del(document, "state");
    if (json_is_object(operation))
        print_last_operation(operation);
    out_document(document);
}

int cmd_explain(struct cli *cli, const struct args *args)
{
    CLEANUP_FREE char *path = api_vm_path(args->words[0], "/explain");
    int result = EXIT_DONE;
    CLEANUP_JSON json_t *document = api_get(cli, path, &result);

    if (document == NULL)
        return result;
    if (cli->format == FORMAT_JSON)
        out_json(document);
    else if (cli->format == FORMAT_NAME)
        out_line("%s", json_text(document, "name"));
    else
        print_explanation(document);
    return EXIT_DONE;
}

static void print_errors(const struct cli *cli, const json_t *items)
{
    static const char *const head[] = {"CODE", "STATUS", "RETRY", "MEANING"};
    struct table table = {.columns = ARRAY_SIZE(head)};
    const json_t *entry;
    size_t i;

    if (cli->format == FORMAT_TABLE)
        table_row(&table, head);
    json_array_foreach(items, i, entry)
    {
        char status[32];
        const char *cells[] = {json_text(entry, "code"), status,
                               json_is_true(json_object_get(entry, "retryable")) ? "yes" : "no",
                               json_text(entry, "title")};

        snprintf(status, sizeof(status), json_is_integer(json_object_get(entry, "status")) ? "%lld" : "-",
                 json_number(entry, "status", 0));
        if (cli->format == FORMAT_TABLE)
            table_row(&table, cells);
        else
            out_line("%s", cells[0]);
    }
    table_print(&table);
}

/* vmctl's own row of the catalogue: the codes that only vmctl makes must be explained when no daemon answers. */
static json_t *own_entry(enum error_code code)
{
    const struct error_info *info = error_info(code);
    json_t *entry = json_object();

    json_object_set_new(entry, "code", json_string(info->code));
    json_object_set_new(entry, "status", info->status > 0 ? json_integer(info->status) : json_null());
    json_object_set_new(entry, "title", json_string(info->title));
    json_object_set_new(entry, "help", json_string(info->help));
    json_object_set_new(entry, "retryable", json_boolean(info->retryable));
    return entry;
}

static int explain_code(const struct cli *cli, const char *word)
{
    enum error_code code = error_by_name(word);
    struct buf path = BUF_INIT(TEXT_MAX);
    CLEANUP_FREE char *text = NULL;
    CLEANUP_JSON json_t *entry = NULL;
    int result = EXIT_DONE;

    buf_str(&path, "/v1/errors/");
    buf_url(&path, code != ERR_NONE ? error_info(code)->code : word);
    text = x_take(&path);
    entry = code != ERR_NONE && error_info(code)->status == 0 ? own_entry(code) : api_get(cli, text, &result);
    if (entry == NULL)
        return result;
    if (cli->format == FORMAT_JSON)
        out_json(entry);
    else if (cli->format == FORMAT_NAME)
        out_line("%s", json_text(entry, "code"));
    else
        out_document(entry);
    return EXIT_DONE;
}

int cmd_errors(struct cli *cli, const struct args *args)
{
    int result = EXIT_DONE;
    CLEANUP_JSON json_t *list = NULL;

    if (args->word_count > 0)
        return explain_code(cli, args->words[0]);
    list = api_get(cli, "/v1/errors", &result);
    if (list == NULL)
        return result;
    if (cli->format == FORMAT_JSON)
        out_json(list);
    else
        print_errors(cli, json_object_get(list, "items"));
    return EXIT_DONE;
}

int cmd_version(struct cli *cli, const struct args *args)
{
    struct api_request req = {.path = "/v1/version"};
    struct api_response res;
    enum api_result result = api_call(cli->api, &req, &res);
    CLEANUP_JSON json_t *both = json_object();
    bool answered = result == API_DONE && api_ok(&res);
    int exit_code = EXIT_DONE;

    (void)args;
    json_object_set_new(both, "client", json_pack("{ss}", "version", VMCTL_VERSION));
    json_object_set(both, "server", answered ? res.json : json_null());
    if (cli->format == FORMAT_JSON) {
        out_json(both);
        if (!answered) {
            CLEANUP_JSON json_t *problem = api_problem(cli->api, result, &res);

            exit_code = problem != NULL ? problem_exit_code(problem) : EXIT_INTERRUPTED;
        }
    } else {
        out_line("vmctl %s", VMCTL_VERSION);
        if (answered)
            out_line("vmmd %s (API %s)", json_text(res.json, "version"), json_text(res.json, "api"));
        else
            exit_code = api_fail(cli, result, &res);
    }
    api_response_done(&res);
    return exit_code;
}
