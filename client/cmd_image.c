/* cmd_image.c - vmctl image: the daemon's image cache.
 *
 * pull, convert and rm are changes like any other; upload sends a file's bytes and shows how far it is; inspect asks the daemon for
 * an image of the cache, and the helper vmmd-inspect for a file of this host, which needs no daemon. */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <spawn.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "api.h"
#include "base/fd.h"
#include "change.h"
#include "cli.h"
#include "diagnostic.h"
#include "output.h"
#include "progress.h"
#include "util.h"

extern char **environ;

static char *image_path(const char *name, const char *suffix)
{
    struct buf b = BUF_INIT(TEXT_MAX);

    buf_str(&b, "/v1/images/");
    buf_url(&b, name);
    buf_str(&b, suffix);
    return x_take(&b);
}

static void format_size(long long bytes, char *out, size_t size)
{
    static const char *const units[] = {"B", "KiB", "MiB", "GiB", "TiB", "PiB"};
    double value = (double)bytes;
    size_t unit = 0;

    for (; value >= 1024 && unit + 1 < ARRAY_SIZE(units); unit++)
        value /= 1024;
    if (bytes < 0)
        snprintf(out, size, "-");
    else
        snprintf(out, size, value < 10 && unit > 0 ? "%.1f%s" : "%.0f%s", value, units[unit]);
}

/* --- changes --- */

/* What was made is the operation's result. */
static void report(const struct cli *cli, const struct change *c, const char *done)
{
    const json_t *image = json_object_get(c->operation, "result");
    char size[32];

    if (cli->format == FORMAT_JSON) {
        out_json(c->operation);
    } else if (cli->format == FORMAT_NAME) {
        out_line("%s", json_text(json_object_get(c->operation, "target"), "image"));
    } else if (!operation_ended(c->operation)) {
        out_line("%s: under way (operation %s)", json_text(json_object_get(c->operation, "target"), "image"),
                 json_text(c->operation, "id"));
    } else {
        format_size(json_number(image, "virtual_size_bytes", -1), size, sizeof(size));
        out_line("%s %s (%s, %s)", json_text(image, "name"), done, json_text(image, "format"), size);
        if (json_text(image, "sha256")[0] != '\0' && !json_is_true(json_object_get(image, "sha256_verified")))
            out_line("sha256:%s", json_text(image, "sha256"));
    }
}

static int run_change(const struct cli *cli, struct change *c, const char *done)
{
    int result = change_send(cli, c);

    if (result == EXIT_DONE && !cli->no_wait)
        result = change_wait(cli, c);
    if (c->problem != NULL)
        problem_show(cli, c->problem, NULL);
    else if (result == EXIT_DONE)
        report(cli, c, done);
    change_done(c);
    return result;
}

static void set_text(json_t *body, const struct args *args, const char *name)
{
    if (args_has(args, name))
        json_object_set_new(body, name, json_string(args_value(args, name)));
}

static int pull(const struct cli *cli, const struct args *args)
{
    struct change c = {.method = "POST",
                       .path = x_strdup("/v1/images"),
                       .body = json_object(),
                       .subject = args->words[1],
                       .key = args_value(args, "idempotency-key")};

    json_object_set_new(c.body, "url", json_string(args->words[1]));
    set_text(c.body, args, "name");
    set_text(c.body, args, "sha256");
    set_text(c.body, args, "format");
    return run_change(cli, &c, "pulled");
}

static int convert(const struct cli *cli, const struct args *args)
{
    struct change c = {.method = "POST",
                       .path = image_path(args->words[1], "/convert"),
                       .body = json_object(),
                       .subject = args->words[1],
                       .key = args_value(args, "idempotency-key")};

    json_object_set_new(c.body, "format", json_string("qcow2"));
    set_text(c.body, args, "format");
    set_text(c.body, args, "name");
    return run_change(cli, &c, "converted");
}

static int rm(const struct cli *cli, const struct args *args)
{
    int worst = EXIT_DONE;

    for (size_t i = 1; i < args->word_count; i++) {
        struct change c = {.method = "DELETE", .path = image_path(args->words[i], ""), .subject = args->words[i]};
        int result = change_send(cli, &c);

        if (result == EXIT_DONE && !cli->no_wait)
            result = change_wait(cli, &c);
        if (c.problem != NULL)
            problem_show(cli, c.problem, NULL);
        else if (result == EXIT_DONE && cli->format == FORMAT_JSON)
            out_json(c.operation);
        else if (result == EXIT_DONE)
            out_line(cli->format == FORMAT_NAME ? "%s" : "%s removed", args->words[i]);
        change_done(&c);
        worst = exit_worse(worst, result);
    }
    return worst;
}

/* --- upload --- */

struct sending {
    struct progress progress;
    const char *name;
};

static void on_sent(void *arg, long long done, long long total)
{
    struct sending *s = arg;

    progress_amount(&s->progress, s->name, "upload", done, total);
}

/* "debian-12.qcow2" of "/tmp/debian-12.qcow2.xz", as the daemon names what it pulls. */
static char *name_of_file(const char *path)
{
    const char *slash = strrchr(path, '/');
    char *name = x_strdup(slash != NULL ? slash + 1 : path);
    static const char *const packed[] = {".gz", ".xz", ".zst", ".zstd"};

    for (size_t i = 0; i < ARRAY_SIZE(packed); i++) {
        size_t len = strlen(name), cut = strlen(packed[i]);
        if (len > cut && strcmp(name + len - cut, packed[i]) == 0) {
            name[len - cut] = '\0';
            break;
        }
    }
    for (char *c = name; *c != '\0'; c++)
        if (*c >= 'A' && *c <= 'Z')
            *c = (char)(*c - 'A' + 'a');
    return name;
}

static char *upload_path(const struct args *args, const char *name)
{
    static const char *const asked[] = {"sha256", "format"};
    CLEANUP_FREE char *path = image_path(name, "");
    struct buf b = BUF_INIT(TEXT_MAX);
    char between = '?';

    buf_str(&b, path);
    for (size_t i = 0; i < ARRAY_SIZE(asked); i++) {
        if (!args_has(args, asked[i]))
            continue;
        buf_printf(&b, "%c%s=", between, asked[i]);
        buf_url(&b, args_value(args, asked[i]));
        between = '&';
    }
    return x_take(&b);
}

static int upload(const struct cli *cli, const struct args *args)
{
    const char *file = args->words[1];
    bool is_stdin = strcmp(file, "-") == 0;
    CLEANUP_FD int fd = is_stdin ? dup(STDIN_FILENO) : open(file, O_RDONLY | O_CLOEXEC);
    struct stat st;

    if (is_stdin && !args_has(args, "name"))
        return usage_error(args->command, "image upload - needs --name NAME");
    if (fd < 0 || fstat(fd, &st) < 0 || S_ISDIR(st.st_mode)) {
        int failed = fd >= 0 && errno == 0 ? EISDIR : errno;
        CLEANUP_JSON json_t *problem = problem_new(ERR_IO, "%s cannot be read", file);
        problem_cause(problem, "%s", strerror(failed != 0 ? failed : EISDIR));
        return problem_show(cli, problem, NULL);
    }
    CLEANUP_FREE char *name = args_has(args, "name") ? x_strdup(args_value(args, "name")) : name_of_file(file);
    CLEANUP_FREE char *path = upload_path(args, name);
    struct sending sending = {.name = name};
    struct change c = {.method = "PUT", .subject = name};
    struct api_request req = {.method = "PUT",
                              .path = path,
                              .stream = true,
                              .upload_fd = &fd,
                              .upload_size = S_ISREG(st.st_mode) ? st.st_size : -1,
                              .sent = on_sent,
                              .arg = &sending};
    struct api_response res;

    progress_init(&sending.progress, cli);
    enum api_result result = api_call(cli->api, &req, &res);
    int exit_code = EXIT_DONE;
    progress_clear();
    if (result != API_DONE || !api_ok(&res)) {
        exit_code = api_fail(cli, result, &res);
    } else {
        c.operation = json_incref(res.json);
        if (!cli->no_wait)
            exit_code = change_wait(cli, &c);
        if (c.problem != NULL)
            problem_show(cli, c.problem, NULL);
        else if (exit_code == EXIT_DONE)
            report(cli, &c, "uploaded");
    }
    api_response_done(&res);
    change_done(&c);
    return exit_code;
}

/* --- list, inspect, prune --- */

static void row_of(struct table *table, const json_t *image)
{
    char size[32], disk[32], used[24], age[32];
    const char *format = json_text(image, "format");
    const char *cells[] = {
        json_text(image, "name"), json_text(image, "state"), format[0] != '\0' ? format : "-", disk, size, used, age};

    format_size(json_number(image, "virtual_size_bytes", -1), disk, sizeof(disk));
    format_size(json_number(image, "size_bytes", -1), size, sizeof(size));
    snprintf(used, sizeof(used), "%zu", json_array_size(json_object_get(image, "used_by")));
    format_age(json_text(image, "created_at"), age, sizeof(age));
    table_row(table, cells);
}

static void print_images(const struct cli *cli, const json_t *items, const char *none)
{
    static const char *const head[] = {"NAME", "STATE", "FORMAT", "DISK", "SIZE", "USED", "AGE"};
    struct table table = {.columns = ARRAY_SIZE(head)};
    const json_t *image;
    size_t i;

    if (cli->format != FORMAT_NAME && json_array_size(items) > 0)
        table_row(&table, head);
    json_array_foreach(items, i, image)
    {
        if (cli->format == FORMAT_NAME)
            out_line("%s", json_text(image, "name"));
        else
            row_of(&table, image);
    }
    if (cli->format != FORMAT_NAME && json_array_size(items) == 0)
        note("%s", none);
    table_print(&table);
}

/* All pages as one; NULL after the problem was shown. */
static json_t *all_images(const struct cli *cli, int *ret_exit)
{
    json_t *all = NULL, *page;
    CLEANUP_FREE char *path = x_strdup("/v1/images?limit=1000");

    while ((page = api_get(cli, path, ret_exit)) != NULL) {
        const char *cursor = json_text(page, "next_cursor");

        mem_free(path);
        path = cursor[0] != '\0' ? x_printf("/v1/images?limit=1000&cursor=%s", cursor) : NULL;
        if (all == NULL) {
            all = page;
        } else {
            json_array_extend(json_object_get(all, "items"), json_object_get(page, "items"));
            json_decref(page);
        }
        if (path == NULL)
            break;
    }
    if (page == NULL && all != NULL) {
        json_decref(all);
        all = NULL;
    }
    if (all != NULL)
        json_object_set_new(all, "next_cursor", json_null());
    return all;
}

static int list(const struct cli *cli)
{
    int result = EXIT_DONE;
    CLEANUP_JSON json_t *page = all_images(cli, &result);

    if (page == NULL)
        return result;
    if (cli->format == FORMAT_JSON)
        out_json(page);
    else
        print_images(cli, json_object_get(page, "items"), "there are no images; `vmctl image pull URL` brings one");
    return EXIT_DONE;
}

/* Where vmmd-inspect is: beside vmctl in a build tree, in libexec when installed. */
static char *inspect_helper(void)
{
    char exe[PATH_MAX];
    ssize_t n = readlink("/proc/self/exe", exe, sizeof(exe) - 1);

    if (n > 0) {
        exe[n] = '\0';
        *strrchr(exe, '/') = '\0';
        char *beside = x_printf("%s/vmmd-inspect", exe);
        if (access(beside, X_OK) == 0)
            return beside;
        mem_free(beside);
    }
    return x_strdup(VMMD_LIBEXEC "/vmmd-inspect");
}

/* Its line, as a document; NULL when it could not be run. */
static json_t *ask_helper(const char *helper, int fd)
{
    const char *argv[] = {helper, "import", NULL};
    posix_spawn_file_actions_t actions;
    struct buf text = BUF_INIT(65536);
    char chunk[1024];
    int ends[2], status = -1;
    ssize_t n;
    pid_t pid;

    if (pipe(ends) < 0)
        return NULL;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_adddup2(&actions, ends[1], STDOUT_FILENO);
    posix_spawn_file_actions_adddup2(&actions, fd, 3);
    bool started = posix_spawn(&pid, helper, &actions, NULL, (char *const *)(uintptr_t)argv, environ) == 0;
    posix_spawn_file_actions_destroy(&actions);
    close(ends[1]);
    while (started && (n = read(ends[0], chunk, sizeof(chunk))) > 0)
        buf_append(&text, chunk, (size_t)n);
    close(ends[0]);
    if (started)
        waitpid(pid, &status, 0);
    json_t *doc = started && status == 0 ? json_loadb(text.data != NULL ? text.data : "", text.len, 0, NULL) : NULL;
    buf_done(&text);
    return doc;
}

static int inspect_file(const struct cli *cli, const char *path)
{
    CLEANUP_FREE char *helper = inspect_helper();
    CLEANUP_FD int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
    CLEANUP_JSON json_t *problem = NULL;

    if (fd < 0) {
        problem = problem_new(errno == ENOENT ? ERR_IMAGE_NOT_FOUND : ERR_IO, "%s cannot be opened", path);
        problem_cause(problem, "%s", strerror(errno));
        return problem_show(cli, problem, NULL);
    }
    CLEANUP_JSON json_t *doc = ask_helper(helper, fd);
    const char *error = json_text(doc, "error");
    char size[32];
    if (doc == NULL || error[0] != '\0') {
        problem = problem_new(strcmp(error, "unsafe") == 0                   ? ERR_IMAGE_UNSAFE
                              : error[0] != '\0' && strcmp(error, "io") != 0 ? ERR_IMAGE_FORMAT_DETECTION_FAILED
                                                                             : ERR_IO,
                              "the image %s was refused: %s", path,
                              doc != NULL ? json_text(doc, "detail") : "vmmd-inspect does not run");
        return problem_show(cli, problem, NULL);
    }
    format_size(json_number(doc, "virtual_size", -1), size, sizeof(size));
    if (cli->format == FORMAT_JSON)
        out_json(doc);
    else if (cli->format == FORMAT_NAME)
        out_line("%s", path);
    else
        out_line("%s: %s, %s", path, json_text(doc, "format"), size);
    return EXIT_DONE;
}

static int inspect(const struct cli *cli, const char *what)
{
    CLEANUP_FREE char *path = image_path(what, "");
    int result = EXIT_DONE;

    if (strchr(what, '/') != NULL)
        return inspect_file(cli, what);
    CLEANUP_JSON json_t *image = api_get(cli, path, &result);
    if (image == NULL)
        return result;
    if (cli->format == FORMAT_JSON)
        out_json(image);
    else if (cli->format == FORMAT_NAME)
        out_line("%s", json_text(image, "name"));
    else
        out_document(image);
    return EXIT_DONE;
}

static int prune(const struct cli *cli, const struct args *args)
{
    CLEANUP_JSON json_t *body = json_object();
    struct api_request req = {.method = "POST", .path = "/v1/images/prune", .body = body};
    struct api_response res;
    bool dry_run = args_has(args, "dry-run");
    int exit_code = EXIT_DONE;
    char size[32];

    json_object_set_new(body, "dry_run", json_boolean(dry_run));
    enum api_result result = api_call(cli->api, &req, &res);
    if (result != API_DONE || !api_ok(&res)) {
        exit_code = api_fail(cli, result, &res);
    } else if (cli->format == FORMAT_JSON) {
        out_json(res.json);
    } else {
        print_images(cli, json_object_get(res.json, "items"), "there is no image that nothing stands on");
        format_size(json_number(res.json, "freed_bytes", 0), size, sizeof(size));
        if (cli->format == FORMAT_TABLE)
            out_line("%s %s, and %lld part files", dry_run ? "would free" : "freed", size,
                     json_number(res.json, "part_files", 0));
    }
    api_response_done(&res);
    return exit_code;
}

int cmd_image(struct cli *cli, const struct args *args)
{
    static const struct {
        const char *verb, *needs;
        size_t min, max;
    } verbs[] = {{"pull", "an URL", 2, 2},       {"list", "", 1, 1},          {"inspect", "a NAME or PATH", 2, 2},
                 {"rm", "a NAME", 2, WORDS_MAX}, {"convert", "a NAME", 2, 2}, {"prune", "", 1, 1},
                 {"upload", "a FILE", 2, 2}};
    const char *verb = args->word_count > 0 ? args->words[0] : "list";
    size_t i = 0;

    while (i < ARRAY_SIZE(verbs) && strcmp(verb, verbs[i].verb) != 0)
        i++;
    if (i == ARRAY_SIZE(verbs))
        return usage_error(args->command, "image knows pull, list, inspect, rm, convert, prune and upload, not %s",
                           verb);
    if (args->word_count > 0 && args->word_count < verbs[i].min)
        return usage_error(args->command, "image %s needs %s", verb, verbs[i].needs);
    if (args->word_count > verbs[i].max)
        return usage_error(args->command, "unexpected word %s", args->words[verbs[i].max]);
    if (strcmp(verb, "pull") == 0)
        return pull(cli, args);
    if (strcmp(verb, "list") == 0)
        return list(cli);
    if (strcmp(verb, "inspect") == 0)
        return inspect(cli, args->words[1]);
    if (strcmp(verb, "rm") == 0)
        return rm(cli, args);
    if (strcmp(verb, "convert") == 0)
        return convert(cli, args);
    return strcmp(verb, "prune") == 0 ? prune(cli, args) : upload(cli, args);
}
