/* cmd_cp.c - cp: by the daemon's API, over whatever channel the guest has; with a key of the user's own by scp(1). */
#include <string.h>
#include <unistd.h>

#include "copy.h"
#include "output.h"
#include "ssh.h"
#include "util.h"

/* "NAME:PATH": the length of NAME; 0: a file of this host. */
static size_t remote_name(const char *word)
{
    size_t len = strcspn(word, ":/");

    return word[len] == ':' ? len : 0;
}

/* The one VM that the words name; NULL after a usage line. */
static char *named_vm(const struct args *args)
{
    char *name = NULL;

    for (size_t i = 0; i < args->word_count; i++) {
        size_t len = remote_name(args->words[i]);

        if (len == 0)
            continue;
        if (name != NULL && (strlen(name) != len || strncmp(name, args->words[i], len) != 0)) {
            usage_error(args->command, "one VM at a time: %s and %s", name, args->words[i]);
            mem_free(name);
            return NULL;
        }
        if (name == NULL)
            name = x_printf("%.*s", (int)len, args->words[i]);
    }
    if (name == NULL)
        usage_error(args->command, "no word is NAME:PATH, a file of a guest");
    return name;
}

/* Either way, but all sources are on one side and the target is on the other. */
static bool one_way(const struct args *args)
{
    bool to_guest = remote_name(args->words[args->word_count - 1]) > 0;

    for (size_t i = 0; i + 1 < args->word_count; i++)
        if ((remote_name(args->words[i]) > 0) == to_guest) {
            usage_error(args->command, "%s",
                        to_guest ? "from this host to a guest, or from a guest to this host"
                                 : "sources are a guest's where the target is this host's");
            return false;
        }
    return true;
}

static int by_scp(const struct args *args, const struct access *a, const char *key)
{
    char *argv[SSH_ARGV_MAX + WORDS_MAX] = {NULL};
    size_t count = 0;

    argv_add(argv, &count, x_strdup("scp"));
    argv_add(argv, &count, x_strdup(isatty(STDERR_FILENO) ? "-p" : "-pq"));
    if (args_has(args, "recursive"))
        argv_add(argv, &count, x_strdup("-r"));
    access_add(argv, &count, a, key);
    argv_add(argv, &count, x_strdup("--"));
    for (size_t i = 0; i < args->word_count; i++) {
        const char *word = args->words[i];
        size_t len = remote_name(word);

        argv_add(argv, &count,
                 len == 0 ? x_strdup(word)
                          : x_printf("%s@%s:%s", json_text(a->ssh, "user"), json_text(a->ssh, "host"), word + len + 1));
    }
    return become(argv, count);
}

/* The path in the guest, its home when there is none; a file of this host as it is. */
static const char *guest_path(const char *word)
{
    size_t len = remote_name(word);

    return len == 0 ? word : word[len + 1] != '\0' ? word + len + 1 : ".";
}

static int by_api(const struct cli *cli, const struct args *args, const char *name)
{
    const char **words = x_alloc(args->word_count * sizeof(char *));
    size_t n = args->word_count - 1;
    bool to_guest = remote_name(args->words[n]) > 0;

    for (size_t i = 0; i <= n; i++)
        words[i] = guest_path(args->words[i]);
    struct copy copy = {.cli = cli,
                        .vm = name,
                        .recursive = args_has(args, "recursive"),
                        .sources = words,
                        .n_sources = n,
                        .target = words[n]};
    int result = to_guest ? copy_to_guest(&copy) : copy_from_guest(&copy);
    mem_free(words);
    return result;
}

int cmd_cp(struct cli *cli, const struct args *args)
{
    CLEANUP_FREE char *name = named_vm(args);
    const char *key = args_value(args, "key");
    struct access a = {0};
    int result = EXIT_FAILED;

    if (name == NULL || !one_way(args))
        return EXIT_USAGE;
    if (key == NULL)
        return by_api(cli, args, name);
    if (access_get(cli, name, &a, &result))
        result = by_scp(args, &a, key);
    access_done(&a);
    return result;
}
