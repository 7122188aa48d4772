/* main.c - vmctl: finds the daemon's address and the command, runs it, and ends with its exit code.
 *
 * 0 done, 1 failed, 2 usage, 3 not found, 4 conflict or invalid state, 5 daemon unreachable, 6 timed out, 7 refused,
 * 130 Ctrl+C; for exec and ssh the remote command's own code, 125 when vmctl failed. */
#include <string.h>
#include <sys/un.h>
#include <unistd.h>

#include "api.h"
#include "base/str.h"
#include "cli.h"
#include "output.h"
#include "signals.h"
#include "util.h"
#include "version.h"

#define SYSTEM_SOCKET "/run/vmmd/vmmd.sock"

static void free_memory(void *p)
{
    mem_free(p);
}

/* The environment's value; an empty one counts as none. */
static const char *environment(const char *name)
{
    const char *value = getenv(name);

    return value != NULL && value[0] != '\0' ? value : NULL;
}

/* Where a user's daemon has its socket: in the session's runtime directory, without one beside its data. */
static char *own_socket(void)
{
    const char *runtime = environment("XDG_RUNTIME_DIR"), *data = environment("XDG_DATA_HOME"),
               *home = environment("HOME");

    if (runtime != NULL && runtime[0] == '/')
        return x_printf("%s/vmmd/vmmd.sock", runtime);
    if (data != NULL && data[0] == '/')
        return x_printf("%s/vmmd/run/vmmd.sock", data);
    if (home != NULL && home[0] == '/')
        return x_printf("%s/.local/share/vmmd/run/vmmd.sock", home);
    return x_strdup(SYSTEM_SOCKET);
}

/* root's daemon is the system's; a user's own comes first if its socket exists. */
static char *default_socket(void)
{
    char *own = geteuid() == 0 ? x_strdup(SYSTEM_SOCKET) : own_socket();

    if (access(own, F_OK) != 0 && access(SYSTEM_SOCKET, F_OK) == 0) {
        mem_free(own);
        own = x_strdup(SYSTEM_SOCKET);
    }
    return own;
}

/* Options go over the environment, and among those of one kind the socket goes first. */
static int find_daemon(struct cli *cli, const struct args *args)
{
    const char *socket_path = args_value(args, "socket"), *url = args_value(args, "url");

    if (socket_path != NULL && url != NULL)
        return usage_error(args->command, "--socket and --url exclude each other");
    if (socket_path == NULL && url == NULL) {
        socket_path = environment("VMMD_SOCKET");
        url = socket_path == NULL ? environment("VMMD_URL") : NULL;
    }
    if (url != NULL && !str_prefix(url, "http://") && !str_prefix(url, "https://"))
        return usage_error(args->command, "the URL must begin with http:// or https://, not %s", url);
    cli->token = environment("VMMD_TOKEN");
    cli->url = x_strdup(url);
    cli->socket = url != NULL ? NULL : socket_path != NULL ? x_strdup(socket_path) : default_socket();
    if (cli->socket != NULL && strlen(cli->socket) >= sizeof(((struct sockaddr_un *)0)->sun_path))
        return usage_error(args->command, "the socket's path is longer than the %zu bytes that Linux takes: %s",
                           sizeof(((struct sockaddr_un *)0)->sun_path) - 1, cli->socket);
    if (cli->token != NULL && strpbrk(cli->token, "\r\n") != NULL)
        return usage_error(args->command, "VMMD_TOKEN has more than one line");
    return EXIT_DONE;
}

static int find_format(struct cli *cli, const struct args *args)
{
    static const char *const names[] = {"table", "json", "name", NULL};
    const char *format = args_value(args, "output");

    for (int i = 0; format != NULL && names[i] != NULL; i++) {
        if (strcmp(format, names[i]) == 0) {
            cli->format = (enum format)i;
            return EXIT_DONE;
        }
    }
    return format == NULL ? EXIT_DONE : usage_error(args->command, "-o takes table, json or name, not %s", format);
}

int cmd_help(struct cli *cli, const struct args *args)
{
    const struct command *command = args->word_count > 0 ? command_find(args->words[0]) : NULL;

    (void)cli;
    if (args->word_count > 0 && command == NULL)
        return EXIT_USAGE;
    if (command != NULL)
        usage_print(command);
    else
        usage_print_all();
    return EXIT_DONE;
}

static int run(struct cli *cli, const struct args *args)
{
    int result;

    if (args_has(args, "help")) {
        if (args->command != NULL)
            usage_print(args->command);
        else
            usage_print_all();
        return EXIT_DONE;
    }
    if (args->command == NULL && args_has(args, "version")) {
        out_line("vmctl %s", VMCTL_VERSION);
        return EXIT_DONE;
    }
    if (args->command == NULL)
        return usage_error(NULL, "no command given");
    result = find_format(cli, args);
    if (result == EXIT_DONE)
        result = find_daemon(cli, args);
    if (result != EXIT_DONE)
        return result;
    cli->no_wait = args_has(args, "no-wait");
    cli->api = api_new(cli);
    return args->command->run(cli, args);
}

int main(int argc, char **argv)
{
    static struct args args;
    struct cli cli = {0};
    int result;

    json_set_alloc_funcs(x_alloc, free_memory);
    signals_init();
    result = args_parse(&args, argc, argv);
    if (result == EXIT_DONE)
        result = run(&cli, &args);
    else if (args.command != NULL && (args.command->run == cmd_exec || args.command->run == cmd_ssh))
        result = EXIT_VMCTL;
    result = out_end(result);
    api_free(cli.api);
    mem_free(cli.socket);
    mem_free(cli.url);
    return result;
}
