/* cmd_log.c - vmctl log: bytes as the guest or QEMU wrote them.
 *
 * Without a choice it is the console's log, and the provisioning's where the daemon has one. Following goes on by
 * offset: what is there is read first, then the rest is followed from the offset the daemon named; a connection that
 * breaks is made again from where it was. */
#include <string.h>

#include "api.h"
#include "cli.h"
#include "diagnostic.h"
#include "output.h"
#include "signals.h"
#include "util.h"

struct follow {
    long long offset;
};

static bool write_part(void *arg, const char *bytes, size_t size)
{
    struct follow *follow = arg;

    out_write(bytes, size);
    if (follow == NULL)
        return true;
    follow->offset += (long long)size;
    return out_flush();
}

static char *log_path(const char *vm, const char *log, const char *format, long long number)
{
    CLEANUP_FREE char *suffix = x_printf("/logs/%s", log);
    CLEANUP_FREE char *base = api_vm_path(vm, suffix);
    struct buf path = BUF_INIT(TEXT_MAX);

    buf_str(&path, base);
    if (format != NULL)
        buf_printf(&path, "?%s%lld", format, number);
    return x_take(&path);
}

/* Reads the log there is. *ret_next is the offset to go on from, -1 when the daemon did not say. */
static int read_log(const struct cli *cli, const char *vm, const char *log, long long tail, long long *ret_next)
{
    CLEANUP_FREE char *path = log_path(vm, log, tail > 0 ? "tail=" : NULL, tail);
    struct api_request req = {.path = path, .stream = true, .sink = write_part};
    struct api_response res;
    enum api_result result = api_call(cli->api, &req, &res);
    int exit_code = result == API_DONE && api_ok(&res) ? EXIT_DONE : api_fail(cli, result, &res);

    *ret_next = res.next_offset;
    api_response_done(&res);
    return exit_code;
}

static int follow_log(const struct cli *cli, const char *vm, const char *log, long long offset)
{
    CLEANUP_FREE char *what = x_printf("the log of %s", vm);
    struct follow follow = {.offset = offset};
    struct patience patience = {0};
    int exit_code = EXIT_DONE;
    bool over = !out_flush();

    while (!over) {
        char *path = log_path(vm, log, "follow=1&from=", follow.offset);
        struct api_request req = {.path = path, .stream = true, .sink = write_part, .arg = &follow};
        struct api_response res;
        enum api_result result = api_call(cli->api, &req, &res);

        mem_free(path);
        if (result == API_LOST && api_ok(&res))
            patience = (struct patience){0}; /* it was there: a new patience */
        over = !api_gone(result, &res) || !patience_wait(&patience, what);
        if (signals_interrupted())
            exit_code = EXIT_INTERRUPTED;
        else if (over && result != API_STOPPED && !(result == API_DONE && api_ok(&res)))
            exit_code = api_fail(cli, result, &res);
        api_response_done(&res);
    }
    return exit_code;
}

/* The provisioning's log, if the daemon keeps one; NULL when there is none or it is empty. */
static char *provision_log(const struct cli *cli, const char *vm, long long tail, size_t *ret_size)
{
    CLEANUP_FREE char *path = log_path(vm, "provision", tail > 0 ? "tail=" : NULL, tail);
    struct api_request req = {.path = path};
    struct api_response res;
    char *bytes = NULL;

    if (api_call(cli->api, &req, &res) == API_DONE && api_ok(&res) && res.body.len > 0)
        bytes = buf_take(&res.body, ret_size);
    api_response_done(&res);
    return bytes;
}

static void print_head(const char *log, const char *vm)
{
    out_line("==> %s of %s <==", log, vm);
}

static int show_default(const struct cli *cli, const char *vm, long long tail)
{
    size_t size = 0;
    CLEANUP_FREE char *provision = provision_log(cli, vm, tail, &size);
    long long next;
    int result;

    if (signals_interrupted())
        return EXIT_INTERRUPTED;
    if (provision != NULL)
        print_head("console", vm);
    result = read_log(cli, vm, "console", tail, &next);
    if (result == EXIT_DONE && provision != NULL) {
        out_puts("\n");
        print_head("provision", vm);
        out_write(provision, size);
    }
    return result;
}

int cmd_log(struct cli *cli, const struct args *args)
{
    static const char *const logs[] = {"console", "vmm", "provision"};
    const char *chosen[ARRAY_SIZE(logs)];
    size_t count = 0;
    long long tail = 0, next = -1;
    int result = EXIT_DONE;

    if (!args_integer(args, "tail", 0, INT64_MAX, &tail))
        return EXIT_USAGE;
    for (size_t i = 0; i < ARRAY_SIZE(logs); i++) {
        if (args_has(args, logs[i]))
            chosen[count++] = logs[i];
    }
    if (args_has(args, "follow") && count > 1)
        return usage_error(args->command, "only one log can be followed");
    if (count == 0 && !args_has(args, "follow"))
        return show_default(cli, args->words[0], tail);
    if (count == 0)
        chosen[count++] = "console";
    for (size_t i = 0; i < count && result == EXIT_DONE; i++) {
        if (count > 1) {
            out_puts(i > 0 ? "\n" : "");
            print_head(chosen[i], args->words[0]);
        }
        result = read_log(cli, args->words[0], chosen[i], tail, &next);
    }
    if (result == EXIT_DONE && args_has(args, "follow"))
        result = follow_log(cli, args->words[0], chosen[0], next > 0 ? next : 0);
    return result;
}
