/* cmd_create.c - vmctl create: the flags become a spec, which the daemon judges.
 *
 * vmctl itself refuses only what cannot be put into the request: files that cannot be read, numbers that are none.
 * Limits and names are the daemon's, so that there is one place that knows them. Paths are made absolute, because the
 * daemon has another directory. */
#include <errno.h>
#include <limits.h>
#include <string.h>
#include <unistd.h>

#include "base/str.h"
#include "change.h"
#include "cli.h"
#include "diagnostic.h"
#include "output.h"
#include "progress.h"
#include "provision.h"
#include "util.h"

enum { FILE_MAX = 1 << 20, CONDITIONS_MAX = 64, WAIT_S = 300 }; /* a request's body is no larger */

/* Says that a file could not be read; returns the exit code. */
static int unreadable(const struct cli *cli, const char *path, int failed)
{
    CLEANUP_JSON json_t *problem = problem_new(ERR_IO, "%s cannot be read", path);

    problem_cause(problem, "%s", strerror(failed));
    problem_help(problem, "check the path and its permissions; files up to 1 MiB are taken");
    return problem_show(cli, problem, NULL);
}

static char *absolute(const char *path)
{
    char dir[PATH_MAX];

    if (path[0] == '/' || getcwd(dir, sizeof(dir)) == NULL)
        return x_strdup(path);
    while (str_prefix(path, "./"))
        path += 2;
    return x_printf("%s/%s", strcmp(dir, "/") == 0 ? "" : dir, path);
}

static void set_path(json_t *object, const char *key, const char *path)
{
    char *full = absolute(path);

    json_object_set_new(object, key, json_string(full));
    mem_free(full);
}

/* The member object of `spec`, made when it is missing or null. Borrowed. */
static json_t *member(json_t *spec, const char *key)
{
    json_t *object = json_object_get(spec, key);

    if (!json_is_object(object)) {
        object = json_object();
        json_object_set_new(spec, key, object);
    }
    return object;
}

static int read_spec(const struct cli *cli, const struct args *args, json_t **spec)
{
    const char *path = args_value(args, "spec");
    CLEANUP_BUF struct buf text = BUF_INIT(TEXT_MAX);
    CLEANUP_JSON json_t *problem = NULL;
    json_error_t error;
    int failed;

    if (path == NULL) {
        *spec = json_object();
        return EXIT_DONE;
    }
    failed = read_whole_file(path, FILE_MAX, &text);
    if (failed != 0)
        return unreadable(cli, path, failed);
    *spec = json_loadb(text.data != NULL ? text.data : "", text.len, JSON_REJECT_DUPLICATES, &error);
    if (*spec == NULL) {
        problem =
            problem_new(ERR_API_INVALID_JSON, "%s line %d column %d: %s", path, error.line, error.column, error.text);
        return problem_show(cli, problem, NULL);
    }
    if (!json_is_object(*spec))
        return usage_error(args->command, "%s holds no JSON object; a spec looks like {\"vcpus\":2,\"memory_mb\":1024}",
                           path);
    return EXIT_DONE;
}

static int set_numbers(const struct args *args, json_t *spec)
{
    static const struct {
        const char *option, *field;
    } numbers[] = {{"vcpus", "vcpus"}, {"memory", "memory_mb"}, {"disk", "disk_gb"}};

    for (size_t i = 0; i < ARRAY_SIZE(numbers); i++) {
        long long value = 0;

        if (!args_integer(args, numbers[i].option, INT64_MIN, INT64_MAX, &value))
            return EXIT_USAGE;
        if (args_has(args, numbers[i].option))
            json_object_set_new(spec, numbers[i].field, json_integer(value));
    }
    return EXIT_DONE;
}

static int set_string(const struct args *args, const char *option, json_t *object, const char *field)
{
    const char *value = args_value(args, option);

    if (value == NULL)
        return EXIT_DONE;
    if (!utf8_valid(value, strlen(value)))
        return usage_error(args->command, "--%s is not UTF-8", option);
    json_object_set_new(object, field, json_string(value));
    return EXIT_DONE;
}

/* Names of cached images have no slash; what has one, or is a file here, is a path, made absolute. */
static void set_image(const struct args *args, json_t *spec)
{
    const char *image = args_value(args, "image"), *url = args_value(args, "image-url");

    if (image != NULL && url != NULL)
        note("--image-url is not used: --image wins over it");
    if (image != NULL && (strchr(image, '/') != NULL || access(image, F_OK) == 0))
        set_path(spec, "image", image);
    else if (image != NULL)
        json_object_set_new(spec, "image", json_string(image));
    else if (url != NULL)
        json_object_set_new(spec, "image_url", json_string(url));
    if (args_has(args, "image-sha256"))
        json_object_set_new(spec, "image_sha256", json_string(args_value(args, "image-sha256")));
}

static int set_boot(const struct args *args, json_t *spec)
{
    const char *kernel = args_value(args, "kernel"), *initrd = args_value(args, "initrd");

    if (kernel != NULL)
        set_path(member(spec, "boot"), "kernel", kernel);
    else if ((initrd != NULL || args_has(args, "cmdline")) && !json_is_object(json_object_get(spec, "boot")))
        return usage_error(args->command, "--initrd and --cmdline need --kernel");
    if (initrd != NULL)
        set_path(member(spec, "boot"), "initrd", initrd);
    return args_has(args, "cmdline") ? set_string(args, "cmdline", member(spec, "boot"), "cmdline") : EXIT_DONE;
}

/* "[ip:]host:guest[/proto]" */
static int add_forward(const struct args *args, json_t *forwards, const char *text)
{
    CLEANUP_FREE char *copy = x_strdup(text);
    json_t *forward = json_object();
    char *proto = strchr(copy, '/'), *guest, *host;
    long long host_port = -1, guest_port = -1;

    json_array_append_new(forwards, forward);
    if (proto != NULL)
        *proto++ = '\0';
    guest = strrchr(copy, ':');
    if (guest != NULL)
        *guest++ = '\0';
    host = guest != NULL ? strrchr(copy, ':') : NULL;
    if (host != NULL)
        *host++ = '\0';
    if (guest == NULL || !parse_integer(guest, &guest_port) || !parse_integer(host != NULL ? host : copy, &host_port))
        return usage_error(args->command, "--forward takes [IP:]HOST:GUEST[/tcp|udp], e.g. 8080:80, not %s", text);
    json_object_set_new(forward, "host_port", json_integer(host_port));
    json_object_set_new(forward, "guest_port", json_integer(guest_port));
    if (host != NULL)
        json_object_set_new(forward, "host_ip", json_string(copy));
    if (proto != NULL)
        json_object_set_new(forward, "proto", json_string(proto));
    return EXIT_DONE;
}

static int set_network(const struct args *args, json_t *spec)
{
    const char *forward, *bridge = args_value(args, "bridge"), *type = args_value(args, "network");
    json_t *network, *forwards;
    size_t at = 0;

    if (type == NULL && bridge == NULL && !args_has(args, "forward"))
        return EXIT_DONE;
    network = member(spec, "network");
    if (type == NULL && bridge != NULL)
        type = "tap";
    else if (type == NULL && json_text(network, "type")[0] == '\0')
        type = "user";
    if (type != NULL)
        json_object_set_new(network, "type", json_string(type));
    if (set_string(args, "bridge", network, "bridge") != EXIT_DONE)
        return EXIT_USAGE;
    if (!args_has(args, "forward"))
        return EXIT_DONE;
    forwards = json_object_get(network, "forwards");
    if (!json_is_array(forwards)) {
        forwards = json_array();
        json_object_set_new(network, "forwards", forwards);
    }
    while ((forward = args_next(args, "forward", &at)) != NULL) {
        if (add_forward(args, forwards, forward) != EXIT_DONE)
            return EXIT_USAGE;
    }
    return EXIT_DONE;
}

/* Adds the keys of a public key file, one a line. */
static int add_keys(const struct cli *cli, const struct args *args, json_t *keys, const char *path)
{
    CLEANUP_BUF struct buf text = BUF_INIT(TEXT_MAX);
    int failed = read_whole_file(path, FILE_MAX, &text);
    size_t before = json_array_size(keys);
    char *rest = text.data;

    if (failed != 0)
        return unreadable(cli, path, failed);
    if (text.data != NULL && strstr(text.data, "PRIVATE KEY") != NULL)
        return usage_error(args->command, "%s is a private key; --ssh-key takes the public one (%s.pub?)", path, path);
    for (char *line; rest != NULL && (line = strsep(&rest, "\n")) != NULL;) {
        line[strcspn(line, "\r")] = '\0';
        line += strspn(line, " \t");
        if (line[0] == '\0' || line[0] == '#')
            continue;
        if (!utf8_valid(line, strlen(line)))
            return usage_error(args->command, "%s is no public key file", path);
        json_array_append_new(keys, json_string(line));
    }
    if (json_array_size(keys) == before)
        return usage_error(args->command, "%s holds no public key", path);
    return EXIT_DONE;
}

static int set_cloud_init(const struct cli *cli, const struct args *args, json_t *spec)
{
    const char *user_data = args_value(args, "cloud-init"), *path;
    CLEANUP_BUF struct buf text = BUF_INIT(TEXT_MAX);
    json_t *seed, *keys;
    size_t at = 0;
    int result = EXIT_DONE;

    if (user_data == NULL && !args_has(args, "ssh-key") && !args_has(args, "hostname"))
        return EXIT_DONE;
    seed = member(spec, "cloud_init");
    if (user_data != NULL) {
        int failed = read_whole_file(user_data, FILE_MAX, &text);

        if (failed != 0)
            return unreadable(cli, user_data, failed);
        if (!utf8_valid(text.data != NULL ? text.data : "", text.len) ||
            memchr(text.data != NULL ? text.data : "", '\0', text.len) != NULL)
            return usage_error(args->command, "%s is no text in UTF-8", user_data);
        json_object_set_new(seed, "user_data", json_stringn(text.data != NULL ? text.data : "", text.len));
    }
    keys = json_object_get(seed, "ssh_authorized_keys");
    if (args_has(args, "ssh-key") && !json_is_array(keys)) {
        keys = json_array();
        json_object_set_new(seed, "ssh_authorized_keys", keys);
    }
    while (result == EXIT_DONE && (path = args_next(args, "ssh-key", &at)) != NULL)
        result = add_keys(cli, args, keys, path);
    return result != EXIT_DONE ? result : set_string(args, "hostname", seed, "hostname");
}

/* Steps of the command line come behind those of --spec. */
static int set_provision(const struct cli *cli, const struct args *args, json_t *spec)
{
    json_t *steps;

    if (!args_has(args, "inline") && !args_has(args, "script") && !args_has(args, "file"))
        return EXIT_DONE;
    steps = json_object_get(spec, "provision");
    if (!json_is_array(steps)) {
        steps = json_array();
        json_object_set_new(spec, "provision", steps);
    }
    return provision_steps(cli, args, steps);
}

static int set_labels(const struct args *args, json_t *body)
{
    const char *label;
    size_t at = 0;

    while ((label = args_next(args, "label", &at)) != NULL) {
        size_t size = strcspn(label, "=");
        CLEANUP_FREE char *key = x_printf("%.*s", (int)size, label);

        if (label[size] != '=' || size == 0)
            return usage_error(args->command, "--label takes KEY=VALUE, not %s", label);
        if (!utf8_valid(label, strlen(label)))
            return usage_error(args->command, "--label is not UTF-8");
        json_object_set_new(member(body, "labels"), key, json_string(label + size + 1));
    }
    return EXIT_DONE;
}

static int build_spec(const struct cli *cli, const struct args *args, json_t *spec)
{
    static const char *const strings[] = {"machine", "accel", "display", "restart"};
    static const char *const flags[] = {"uefi", "autostart", "protect"};
    int result = set_numbers(args, spec);

    for (size_t i = 0; i < ARRAY_SIZE(strings) && result == EXIT_DONE; i++)
        result = set_string(args, strings[i], spec, strings[i]);
    for (size_t i = 0; i < ARRAY_SIZE(flags); i++) {
        if (args_has(args, flags[i]))
            json_object_set_new(spec, flags[i], json_true());
    }
    set_image(args, spec);
    if (result == EXIT_DONE)
        result = set_boot(args, spec);
    if (result == EXIT_DONE)
        result = set_network(args, spec);
    if (result == EXIT_DONE)
        result = set_cloud_init(cli, args, spec);
    return result == EXIT_DONE ? set_provision(cli, args, spec) : result;
}

/* What comes behind the making needs a VM that runs. */
static bool starts(const struct args *args)
{
    return args_has(args, "start") || args_has(args, "provision") || args_has(args, "wait");
}

static int build_body(const struct cli *cli, const struct args *args, const char *name, json_t *body)
{
    json_t *spec = NULL;
    int result = read_spec(cli, args, &spec);

    if (result == EXIT_DONE)
        result = build_spec(cli, args, spec);
    json_object_set_new(body, "name", json_string(name));
    json_object_set_new(body, "spec", spec != NULL ? spec : json_object());
    if (result == EXIT_DONE)
        result = set_string(args, "backend", body, "backend");
    if (result == EXIT_DONE)
        result = set_labels(args, body);
    if (starts(args))
        json_object_set_new(body, "start", json_true());
    return result;
}

static void report(const struct cli *cli, const struct args *args, const struct change *c)
{
    const char *id = json_text(json_object_get(c->operation, "target"), "vm_id");

    if (cli->format == FORMAT_JSON) {
        out_json(c->operation);
    } else if (cli->format == FORMAT_NAME) {
        out_line("%s", c->subject);
    } else if (!operation_ended(c->operation)) {
        out_line("%s: create is under way (operation %s)", c->subject, json_text(c->operation, "id"));
    } else {
        out_line("%s created (%s)", c->subject, id);
        if (starts(args))
            out_line("%s started", c->subject);
    }
    out_flush();
}

/* With -o json there is one document: the last one. */
static bool more_to_come(const struct cli *cli, const struct args *args)
{
    return cli->format != FORMAT_TABLE && (args_has(args, "wait") || args_has(args, "provision"));
}

/* The VM runs: --wait, then --provision. */
static int go_on(const struct cli *cli, const struct args *args, const char *name)
{
    const char *conditions[CONDITIONS_MAX], *condition;
    CLEANUP_JSON json_t *body = json_object();
    long long timeout = WAIT_S;
    size_t at = 0, count = 0;
    int result = EXIT_DONE;

    if (!args_integer(args, "timeout", 0, 1 << 30, &timeout))
        return EXIT_USAGE;
    while (count < CONDITIONS_MAX && (condition = args_next(args, "wait", &at)) != NULL)
        conditions[count++] = condition;
    if (count > 0)
        result =
            wait_for(cli, name, conditions, count, timeout, args_has(args, "provision") && cli->format != FORMAT_TABLE);
    return result == EXIT_DONE && args_has(args, "provision") ? provision_run(cli, name, body, NULL) : result;
}

/* A slip in --wait is told before there is a VM. */
static int check_waits(const struct args *args)
{
    const char *condition;
    size_t at = 0;

    while ((condition = args_next(args, "wait", &at)) != NULL) {
        if (!wait_known(condition))
            return usage_error(args->command,
                               "--wait takes a state or ready, agent, ssh, ip, cloud_init or disk_io, not %s",
                               condition);
    }
    return EXIT_DONE;
}

int cmd_create(struct cli *cli, const struct args *args)
{
    const char *option = args_value(args, "name"), *word = args->word_count > 0 ? args->words[0] : NULL;
    const char *name = option != NULL ? option : word;
    long long timeout;
    struct change c = {.method = "POST", .subject = name, .key = args_value(args, "idempotency-key")};
    int result;

    if (name == NULL)
        return usage_error(args->command, "create needs a name: vmctl create NAME, or --name NAME");
    if (option != NULL && word != NULL && strcmp(option, word) != 0)
        return usage_error(args->command, "two names: %s and --name %s", word, option);
    if (!utf8_valid(name, strlen(name)))
        return usage_error(args->command, "the name is not UTF-8");
    if (cli->no_wait && (args_has(args, "wait") || args_has(args, "provision")))
        return usage_error(args->command, "--no-wait and --wait or --provision exclude each other");
    if (!args_integer(args, "timeout", 0, 1 << 30, &timeout) || check_waits(args) != EXIT_DONE)
        return EXIT_USAGE;
    c.path = x_strdup("/v1/vms");
    c.body = json_object();
    result = build_body(cli, args, name, c.body);
    if (result == EXIT_DONE)
        result = change_send(cli, &c);
    if (result == EXIT_DONE && !cli->no_wait)
        result = change_wait(cli, &c);
    if (c.problem != NULL)
        problem_show(cli, c.problem, NULL);
    else if (result == EXIT_DONE && !more_to_come(cli, args))
        report(cli, args, &c);
    change_done(&c);
    return result == EXIT_DONE ? go_on(cli, args, name) : result;
}
