/* cmd_provision.c - vmctl provision: runs a VM's steps, or those of the command line, and shows what they write.
 *
 * While the operation is waited for, its log is read from where it stood before: by offset, so that nothing is shown twice
 * and a daemon that goes away and comes back loses nothing. */
#include <string.h>
#include <sys/stat.h>

#include "api.h"
#include "base/str.h"
#include "change.h"
#include "diagnostic.h"
#include "output.h"
#include "progress.h"
#include "provision.h"
#include "util.h"

enum { TEXT_STEP_MAX = 512 << 10, FILE_STEP_MAX = 384 << 10, STEPS_FILE_MAX = 1 << 20 };

/* --- steps --- */

static int unreadable(const struct cli *cli, const char *path, int failed, int max_kib)
{
    CLEANUP_JSON json_t *problem = problem_new(ERR_IO, "%s cannot be read", path);

    problem_cause(problem, "%s", strerror(failed));
    problem_help(problem, "check the path and its permissions; at most %d KiB are taken, `vmctl cp` copies more",
                 max_kib);
    return problem_show(cli, problem, NULL);
}

static int add_script(const struct cli *cli, const struct args *args, const char *path, json_t *steps)
{
    CLEANUP_BUF struct buf text = BUF_INIT(TEXT_MAX);
    int failed = read_whole_file(path, TEXT_STEP_MAX, &text);

    if (failed != 0)
        return unreadable(cli, path, failed, TEXT_STEP_MAX >> 10);
    if (text.len == 0 || !utf8_valid(text.data, text.len) || memchr(text.data, '\0', text.len) != NULL)
        return usage_error(args->command, "%s is no script: it is empty, or no text in UTF-8", path);
    json_array_append_new(steps, json_pack("{s:s, s:o}", "type", "shell", "script", json_stringn(text.data, text.len)));
    return EXIT_DONE;
}

/* SOURCE:/DESTINATION[:MODE]; without a mode the source's. */
static int add_file(const struct cli *cli, const struct args *args, const char *word, json_t *steps)
{
    const char *colon = strstr(word, ":/"), *last = strrchr(word, ':');
    CLEANUP_BUF struct buf bytes = BUF_INIT(TEXT_MAX);
    struct stat st;
    char mode[8];

    if (colon == NULL || colon == word)
        return usage_error(args->command, "--file takes SOURCE:/DESTINATION[:MODE], not %s", word);
    bool has_mode = last > colon && last[1] != '\0' && last[strspn(last + 1, "01234567") + 1] == '\0';
    CLEANUP_FREE char *source = x_printf("%.*s", (int)(colon - word), word);
    CLEANUP_FREE char *destination =
        x_printf("%.*s", (int)((has_mode ? last : word + strlen(word)) - colon - 1), colon + 1);
    int failed = read_whole_file(source, FILE_STEP_MAX, &bytes);
    if (failed != 0)
        return unreadable(cli, source, failed, FILE_STEP_MAX >> 10);
    snprintf(mode, sizeof(mode), "%s", has_mode ? last + 1 : "0644");
    if (!has_mode && strcmp(source, "-") != 0 && stat(source, &st) == 0)
        snprintf(mode, sizeof(mode), "%04o", (unsigned)st.st_mode & 0777);
    CLEANUP_FREE char *content = base64_encode(bytes.data, bytes.len);
    json_array_append_new(steps, json_pack("{s:s, s:s, s:s, s:s}", "type", "file", "content_base64", content,
                                           "destination", destination, "mode", mode));
    return EXIT_DONE;
}

int provision_steps(const struct cli *cli, const struct args *args, json_t *steps)
{
    int result = EXIT_DONE;

    for (size_t i = 0; i < args->option_count && result == EXIT_DONE; i++) {
        const char *name = args->options[i].def->name, *value = args->options[i].value;

        if (strcmp(name, "inline") == 0 && (value[0] == '\0' || !utf8_valid(value, strlen(value))))
            result = usage_error(args->command, "--inline is empty, or not UTF-8");
        else if (strcmp(name, "inline") == 0)
            json_array_append_new(steps, json_pack("{s:s, s:s}", "type", "shell", "inline", value));
        else if (strcmp(name, "script") == 0)
            result = add_script(cli, args, value, steps);
        else if (strcmp(name, "file") == 0)
            result = add_file(cli, args, value, steps);
    }
    return result;
}

static int add_steps_file(const struct cli *cli, const struct args *args, json_t *steps)
{
    const char *path = args_value(args, "steps");
    CLEANUP_BUF struct buf text = BUF_INIT(TEXT_MAX);
    json_error_t error;
    int failed = path != NULL ? read_whole_file(path, STEPS_FILE_MAX, &text) : 0;

    if (path == NULL)
        return EXIT_DONE;
    if (failed != 0)
        return unreadable(cli, path, failed, STEPS_FILE_MAX >> 10);
    CLEANUP_JSON json_t *list =
        json_loadb(text.data != NULL ? text.data : "", text.len, JSON_REJECT_DUPLICATES, &error);
    if (list == NULL) {
        CLEANUP_JSON json_t *problem =
            problem_new(ERR_API_INVALID_JSON, "%s line %d column %d: %s", path, error.line, error.column, error.text);
        return problem_show(cli, problem, NULL);
    }
    if (!json_is_array(list))
        return usage_error(args->command, "%s holds no list of steps, e.g. [{\"type\":\"shell\",\"inline\":\"id\"}]",
                           path);
    json_array_extend(steps, list);
    return EXIT_DONE;
}

/* --user, --env, --timeout and --once are for every step of the command line. */
static int dress_steps(const struct args *args, json_t *steps)
{
    const char *user = args_value(args, "user");
    long long timeout = -1;
    CLEANUP_JSON json_t *env = json_object();
    json_t *step;
    size_t i, at = 0;

    for (const char *pair; (pair = args_next(args, "env", &at)) != NULL;) {
        const char *equals = strchr(pair, '=');
        if (equals == NULL || equals == pair || !utf8_valid(pair, strlen(pair)))
            return usage_error(args->command, "--env takes NAME=VALUE, not %s", pair);
        CLEANUP_FREE char *name = x_printf("%.*s", (int)(equals - pair), pair);
        json_object_set_new(env, name, json_string(equals + 1));
    }
    if (!args_integer(args, "timeout", 1, 86400, &timeout))
        return EXIT_USAGE;
    json_array_foreach(steps, i, step)
    {
        if (user != NULL)
            json_object_set_new(step, "user", json_string(user));
        if (timeout > 0)
            json_object_set_new(step, "timeout_s", json_integer(timeout));
        if (args_has(args, "once"))
            json_object_set_new(step, "run", json_string("once"));
        if (json_object_size(env) > 0 && strcmp(json_text(step, "type"), "shell") == 0)
            json_object_set(step, "env", env);
    }
    return EXIT_DONE;
}

/* --- running --- */

struct live {
    const struct cli *cli;
    const char *name;
    long long offset; /* -1: the log is not shown */
};

static bool write_part(void *arg, const char *bytes, size_t size)
{
    struct live *live = arg;

    progress_clear();
    out_write(bytes, size);
    live->offset += (long long)size;
    return out_flush();
}

/* What the log has beyond what was shown. */
static void show_more(void *arg)
{
    struct live *live = arg;
    long long before = -1;

    while (live->offset >= 0 && live->offset != before) {
        CLEANUP_FREE char *suffix = x_printf("/logs/provision?from=%lld", live->offset);
        CLEANUP_FREE char *path = api_vm_path(live->name, suffix);
        struct api_request req = {.path = path, .sink = write_part, .arg = live};
        struct api_response res;
        enum api_result result = api_call(live->cli->api, &req, &res);

        before = live->offset;
        if (result == API_DONE && api_ok(&res) && res.next_offset > live->offset)
            live->offset = res.next_offset; /* bytes that are no longer kept */
        api_response_done(&res);
        if (result != API_DONE)
            return;
    }
}

static long long end_of_log(const struct cli *cli, const char *name)
{
    CLEANUP_FREE char *path = api_vm_path(name, "/logs/provision?tail=0");
    struct api_request req = {.path = path};
    struct api_response res;
    long long end = -1;

    if (cli->format == FORMAT_TABLE && api_call(cli->api, &req, &res) == API_DONE && api_ok(&res))
        end = res.next_offset;
    if (cli->format == FORMAT_TABLE)
        api_response_done(&res);
    return end;
}

static void report(const struct cli *cli, const struct change *c)
{
    if (cli->format == FORMAT_JSON)
        out_json(c->operation);
    else if (cli->format == FORMAT_NAME)
        out_line("%s", c->subject);
    else if (c->operation != NULL && !operation_ended(c->operation))
        out_line("%s: provision is under way (operation %s)", c->subject, json_text(c->operation, "id"));
    else if (strcmp(json_text(c->operation, "method"), "none") == 0)
        out_line("%s has no provisioning steps", c->subject);
    else
        out_line("%s provisioned", c->subject);
}

int provision_run(const struct cli *cli, const char *name, json_t *body, const char *key)
{
    struct live live = {.cli = cli, .name = name, .offset = end_of_log(cli, name)};
    struct change c = {.method = "POST", .subject = name, .key = key, .tick = show_more, .tick_arg = &live};
    int result;

    c.path = api_vm_path(name, "/provision");
    c.body = json_incref(body);
    result = change_send(cli, &c);
    if (result == EXIT_DONE && !cli->no_wait)
        result = change_wait(cli, &c);
    if (c.problem != NULL)
        problem_show(cli, c.problem, NULL);
    else if (result == EXIT_DONE)
        report(cli, &c);
    change_done(&c);
    return result;
}

int cmd_provision(struct cli *cli, const struct args *args)
{
    CLEANUP_JSON json_t *body = json_object(), *steps = json_array();
    int result = add_steps_file(cli, args, steps);

    if (result == EXIT_DONE)
        result = provision_steps(cli, args, steps);
    if (result == EXIT_DONE)
        result = dress_steps(args, steps);
    if (result != EXIT_DONE)
        return result;
    if (json_array_size(steps) > 0)
        json_object_set(body, "steps", steps);
    else if (args_has(args, "user") || args_has(args, "env") || args_has(args, "timeout") || args_has(args, "once"))
        return usage_error(args->command,
                           "--user, --env, --timeout and --once are for --inline, --script, --file and --steps");
    return provision_run(cli, args->words[0], body, args_value(args, "idempotency-key"));
}
