/* cmd_ops.c - vmctl ops: operations listed, shown, cancelled. */
#include <string.h>

#include "api.h"
#include "change.h"
#include "cli.h"
#include "diagnostic.h"
#include "output.h"
#include "util.h"

static char *operation_path(const char *id)
{
    struct buf path = BUF_INIT(TEXT_MAX);

    buf_str(&path, "/v1/operations/");
    buf_url(&path, id);
    return x_take(&path);
}

static void print_list(const struct cli *cli, const json_t *items)
{
    static const char *const head[] = {"ID", "KIND", "SUBJECT", "STATE", "STEP", "AGE"};
    struct table table = {.columns = ARRAY_SIZE(head)};
    const json_t *operation;
    size_t i;

    if (cli->format != FORMAT_NAME && json_array_size(items) > 0)
        table_row(&table, head);
    json_array_foreach(items, i, operation)
    {
        const char *step = json_text(operation, "step");
        char age[32];
        const char *cells[] = {json_text(operation, "id"),   json_text(operation, "kind"),
                               operation_subject(operation), json_text(operation, "state"),
                               step[0] != '\0' ? step : "-", age};

        format_age(json_text(operation, "created_at"), age, sizeof(age));
        if (cli->format == FORMAT_NAME)
            out_line("%s", cells[0]);
        else
            table_row(&table, cells);
    }
    if (cli->format != FORMAT_NAME && json_array_size(items) == 0)
        note("there are no operations to list");
    table_print(&table);
}

static int list(const struct cli *cli, const struct args *args)
{
    struct buf path = BUF_INIT(TEXT_MAX);
    CLEANUP_JSON json_t *page = NULL;
    CLEANUP_FREE char *base = NULL;
    long long limit = 100;
    int result = EXIT_DONE;

    if (!args_integer(args, "limit", 1, 1000, &limit))
        return EXIT_USAGE;
    buf_printf(&path, "/v1/operations?limit=%lld", limit);
    if (args_has(args, "state")) {
        buf_str(&path, "&state=");
        buf_url(&path, args_value(args, "state"));
    }
    base = x_take(&path);
    page = api_get(cli, base, &result);
    if (page == NULL)
        return result;
    if (cli->format == FORMAT_JSON)
        out_json(page);
    else
        print_list(cli, json_object_get(page, "items"));
    return EXIT_DONE;
}

static void print_operation(const json_t *operation)
{
    const json_t *error = json_object_get(operation, "error"), *step, *cause;
    size_t i;

    out_line("Operation:   %s", json_text(operation, "id"));
    out_line("Kind:        %s", json_text(operation, "kind"));
    if (json_text(json_object_get(operation, "target"), "image")[0] != '\0')
        out_line("Image:       %s", operation_subject(operation));
    else
        out_line("VM:          %s", operation_subject(operation));
    out_line("State:       %s", json_text(operation, "state"));
    if (json_text(operation, "method")[0] != '\0')
        out_line("Method:      %s", json_text(operation, "method"));
    out_line("Created:     %s", json_text(operation, "created_at"));
    if (json_text(operation, "finished_at")[0] != '\0')
        out_line("Finished:    %s", json_text(operation, "finished_at"));
    else if (json_text(operation, "deadline")[0] != '\0')
        out_line("Deadline:    %s", json_text(operation, "deadline"));
    json_array_foreach(json_object_get(operation, "steps"), i, step)
    {
        if (json_number(step, "ms", -1) >= 0)
            out_line("Step:        %s %s (%lld ms)", json_text(step, "name"), json_text(step, "state"),
                     json_number(step, "ms", 0));
        else
            out_line("Step:        %s %s", json_text(step, "name"), json_text(step, "state"));
    }
    if (json_is_object(error)) {
        out_line("Error:       %s", json_text(error, "code"));
        out_line("             %s", json_text(error, "detail"));
        json_array_foreach(json_object_get(error, "causes"), i, cause)
        {
            out_line("Cause:       %s", json_is_string(cause) ? json_string_value(cause) : json_text(cause, "detail"));
        }
        out_line("Help:        %s", json_text(error, "help"));
    }
}

static int show(const struct cli *cli, const char *id)
{
    CLEANUP_FREE char *path = operation_path(id);
    int result = EXIT_DONE;
    CLEANUP_JSON json_t *operation = api_get(cli, path, &result);

    if (operation == NULL)
        return result;
    if (cli->format == FORMAT_JSON)
        out_json(operation);
    else if (cli->format == FORMAT_NAME)
        out_line("%s", json_text(operation, "id"));
    else
        print_operation(operation);
    return EXIT_DONE;
}

static int cancel(const struct cli *cli, const char *id)
{
    CLEANUP_FREE char *path = operation_path(id);
    struct api_request req = {.method = "DELETE", .path = path};
    struct api_response res;
    enum api_result result = api_call(cli->api, &req, &res);
    int exit_code = EXIT_DONE;

    if (result != API_DONE || !api_ok(&res))
        exit_code = api_fail(cli, result, &res);
    else if (cli->format == FORMAT_JSON)
        out_json(res.json);
    else if (cli->format == FORMAT_NAME)
        out_line("%s", id);
    else
        out_line("operation %s %s", id,
                 strcmp(json_text(res.json, "state"), "cancelled") == 0 ? "cancelled" : "is being cancelled");
    api_response_done(&res);
    return exit_code;
}

int cmd_ops(struct cli *cli, const struct args *args)
{
    const char *verb = args->word_count > 0 ? args->words[0] : "list";
    bool is_list = strcmp(verb, "list") == 0, is_show = strcmp(verb, "show") == 0;

    if (!is_list && !is_show && strcmp(verb, "cancel") != 0)
        return usage_error(args->command, "ops knows list, show and cancel, not %s", verb);
    if (is_list && args->word_count > 1)
        return usage_error(args->command, "unexpected word %s", args->words[1]);
    if (is_list)
        return list(cli, args);
    if (args->word_count < 2)
        return usage_error(args->command, "ops %s needs an operation's ID", verb);
    return is_show ? show(cli, args->words[1]) : cancel(cli, args->words[1]);
}
