/* cmd_ssh.c - ssh and ssh-config: the system's ssh with the VM's key, and with the host key that vmmd pinned.
 *
 * The key is known under the VM's id, whatever its address. Where vmmd has not met the guest (it has no key for it), ssh pins it
 * itself, in a file of the user's own. */
#include <errno.h>
#include <signal.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "api.h"
#include "base/frame.h"
#include "cli.h"
#include "diagnostic.h"
#include "output.h"
#include "ssh.h"
#include "util.h"

void access_done(struct access *a)
{
    json_decref(a->vm);
    json_decref(a->ssh);
    mem_free(a->own_hosts);
}

static char *own_hosts(void)
{
    const char *state = getenv("XDG_STATE_HOME"), *home = getenv("HOME");
    CLEANUP_FREE char *dir = state != NULL && state[0] == '/'
                                 ? x_printf("%s/vmmd", state)
                                 : x_printf("%s/.local/state/vmmd", home != NULL ? home : "");

    for (char *slash = dir + 1; (slash = strchr(slash, '/')) != NULL; slash++) {
        *slash = '\0';
        mkdir(dir, 0700);
        *slash = '/';
    }
    mkdir(dir, 0700);
    return x_printf("%s/known_hosts", dir);
}

static bool access_ask(const struct cli *cli, const char *name, struct access *a, int *ret_exit)
{
    CLEANUP_FREE char *vm_path = api_vm_path(name, ""), *ssh_path = api_vm_path(name, "/ssh");

    *a = (struct access){0};
    a->vm = api_get(cli, vm_path, ret_exit);
    a->ssh = a->vm != NULL ? api_get(cli, ssh_path, ret_exit) : NULL;
    if (a->ssh == NULL)
        return false;
    if (json_text(a->ssh, "known_hosts")[0] == '\0' || access(json_text(a->ssh, "known_hosts"), R_OK) != 0)
        a->own_hosts = own_hosts();
    return true;
}

static bool has_address(const struct access *a)
{
    return json_text(a->ssh, "host")[0] != '\0';
}

enum { ADDRESS_WAIT_S = 30 };

/* A guest on a bridge gets its address in time, or not: false then, after the problem was shown. */
static bool address_wait(const struct cli *cli, const char *name)
{
    CLEANUP_FREE char *tail = x_printf("/wait?for=ip&timeout=%d", ADDRESS_WAIT_S), *path = api_vm_path(name, tail);
    struct api_request req = {.path = path, .hold_s = ADDRESS_WAIT_S};
    struct api *api = api_new(cli);
    struct api_response res;
    CLEANUP_JSON json_t *problem = NULL;

    note("waiting for an address of VM %s, up to %d s", name, ADDRESS_WAIT_S);
    enum api_result result = api_call(api, &req, &res);
    bool came = result == API_DONE && api_ok(&res);
    if (!came && result == API_DONE && res.status == 504)
        problem = problem_new(ERR_NETWORK_IP_DISCOVERY_TIMEOUT, "no address of VM %s has become known within %d s",
                              name, ADDRESS_WAIT_S);
    else if (!came)
        problem = api_problem(api, result, &res);
    if (problem != NULL)
        problem_show(cli, problem, NULL);
    api_response_done(&res);
    api_free(api);
    return came;
}

static bool on_bridge(const struct access *a)
{
    const json_t *network = json_object_get(json_object_get(a->vm, "spec"), "network");

    return strcmp(json_text(network, "type"), "tap") == 0 && strcmp(json_text(a->vm, "state"), "running") == 0;
}

bool access_get(const struct cli *cli, const char *name, struct access *a, int *ret_exit)
{
    if (!access_ask(cli, name, a, ret_exit))
        return false;
    *ret_exit = EXIT_FAILED;
    if (!has_address(a) && on_bridge(a)) {
        if (!address_wait(cli, name))
            return false;
        access_done(a);
        if (!access_ask(cli, name, a, ret_exit))
            return false;
    }
    if (has_address(a))
        return true;
    CLEANUP_JSON json_t *problem = problem_new(ERR_GUEST_UNAVAILABLE, "VM %s has no address that is known", name);
    problem_show(cli, problem, NULL);
    return false;
}

static const char *hosts_file(const struct access *a)
{
    return a->own_hosts != NULL ? a->own_hosts : json_text(a->ssh, "known_hosts");
}

void argv_add(char **argv, size_t *count, char *text)
{
    argv[(*count)++] = text;
}

static void add_key(char **argv, size_t *count, const struct access *a, const char *key)
{
    const char *path = key != NULL ? key : json_text(a->ssh, "private_key_path");

    if (path[0] == '\0')
        return;
    if (key == NULL && access(path, R_OK) != 0)
        note("the VM's key %s cannot be read: %s; ssh tries your own keys", path, strerror(errno));
    argv_add(argv, count, x_strdup("-i"));
    argv_add(argv, count, x_strdup(path));
    if (key != NULL || access(path, R_OK) == 0)
        argv_add(argv, count, x_strdup("-oIdentitiesOnly=yes"));
}

/* One text for the guest's shell: a single word is one already, of several each is quoted. */
static char *command_text(const struct ssh_call *call)
{
    struct buf text = BUF_INIT(TEXT_MAX);

    if (call->command_count == 1 && !call->tty)
        return x_strdup(call->command[0]);
    for (size_t i = 0; i < call->command_count; i++) {
        if (i > 0)
            buf_char(&text, ' ');
        shell_quote(&text, call->command[i]);
    }
    return x_take(&text);
}

void access_add(char **argv, size_t *count, const struct access *a, const char *key)
{
    add_key(argv, count, a, key);
    argv_add(argv, count, x_printf("-oPort=%lld", json_number(a->ssh, "port", 22)));
    argv_add(argv, count, x_printf("-oHostKeyAlias=%s", json_text(a->vm, "id")));
    argv_add(argv, count, x_printf("-oUserKnownHostsFile=\"%s\"", hosts_file(a)));
    argv_add(argv, count, x_printf("-oStrictHostKeyChecking=%s", a->own_hosts != NULL ? "accept-new" : "yes"));
    argv_add(argv, count, x_strdup("-oGlobalKnownHostsFile=/dev/null"));
    argv_add(argv, count, x_strdup("-oLogLevel=ERROR"));
}

int become(char **argv, size_t count)
{
    out_flush();
    signal(SIGPIPE, SIG_DFL); /* what is ignored stays so in the next program */
    execvp(argv[0], argv);
    note("%s: %s", argv[0], errno == ENOENT ? "not installed (Debian: openssh-client)" : strerror(errno));
    for (size_t i = 0; i < count; i++)
        mem_free(argv[i]);
    return EXIT_VMCTL;
}

int ssh_run(struct cli *cli, const struct ssh_call *call)
{
    struct access a;
    char *argv[SSH_ARGV_MAX] = {NULL};
    size_t count = 0;
    int code;

    if (!access_get(cli, call->name, &a, &code)) {
        access_done(&a);
        return EXIT_VMCTL;
    }
    argv_add(argv, &count, x_strdup("ssh"));
    if (call->tty)
        argv_add(argv, &count, x_strdup("-t"));
    access_add(argv, &count, &a, call->key);
    argv_add(argv, &count, x_strdup("-l"));
    argv_add(argv, &count, x_strdup(call->user != NULL ? call->user : json_text(a.ssh, "user")));
    argv_add(argv, &count, x_strdup("--"));
    argv_add(argv, &count, x_strdup(json_text(a.ssh, "host")));
    if (call->command_count > 0)
        argv_add(argv, &count, command_text(call));
    access_done(&a);
    return become(argv, count);
}

/* The name of the one VM that runs; NULL after it was said that there is none, or more than one. */
static char *only_vm(struct cli *cli, const struct args *args, int *ret_exit)
{
    CLEANUP_JSON json_t *page = api_get(cli, "/v1/vms?state=running&limit=2", ret_exit);
    const json_t *items = json_object_get(page, "items");

    if (page == NULL) {
        *ret_exit = EXIT_VMCTL;
        return NULL;
    }
    if (json_array_size(items) == 1)
        return x_strdup(json_text(json_array_get(items, 0), "name"));
    usage_error(args->command,
                json_array_size(items) == 0 ? "no VM is running" : "more than one VM is running: name one");
    *ret_exit = EXIT_VMCTL;
    return NULL;
}

int cmd_ssh(struct cli *cli, const struct args *args)
{
    bool named = args->words_before_dashes > 0;
    int code = EXIT_VMCTL;
    CLEANUP_FREE char *only = named ? NULL : only_vm(cli, args, &code);
    struct ssh_call call = {.name = named ? args->words[0] : only,
                            .user = args_value(args, "user"),
                            .key = args_value(args, "key"),
                            .command = args->words + named,
                            .command_count = args->word_count - named};

    return call.name != NULL ? ssh_run(cli, &call) : code;
}

int cmd_ssh_config(struct cli *cli, const struct args *args)
{
    int code;

    for (size_t i = 0; i < args->word_count; i++) {
        struct access a;

        if (!access_get(cli, args->words[i], &a, &code)) {
            access_done(&a);
            return code;
        }
        out_line("Host %s", json_text(a.vm, "name"));
        out_line("  HostName %s", json_text(a.ssh, "host"));
        out_line("  Port %lld", json_number(a.ssh, "port", 22));
        out_line("  User %s", json_text(a.ssh, "user"));
        if (json_text(a.ssh, "private_key_path")[0] != '\0') {
            out_line("  IdentityFile \"%s\"", json_text(a.ssh, "private_key_path"));
            out_line("  IdentitiesOnly yes");
        }
        out_line("  HostKeyAlias %s", json_text(a.vm, "id"));
        out_line("  UserKnownHostsFile \"%s\"", hosts_file(&a));
        out_line("  StrictHostKeyChecking %s", a.own_hosts != NULL ? "accept-new" : "yes");
        access_done(&a);
    }
    return EXIT_DONE;
}
