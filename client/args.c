/* args.c - the command line, parsed by the command table.
 *
 * The first word is the command (or a unique prefix of one); options stand before or after it, and `--` ends them.
 * Options before the command can only be those all commands take. What is wrong is said on stderr with the usage line,
 * exit code 2. */
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include "base/str.h"
#include "cli.h"
#include "output.h"
#include "util.h"

static void usage_line(FILE *to, const struct command *command)
{
    fprintf(to, "usage: vmctl %s%s%s%s\n", command->name, command->options != NULL ? " [OPTION…]" : "",
            command->words[0] != '\0' ? " " : "", command->words);
}

int usage_error(const struct command *command, const char *format, ...)
{
    char line[1024];
    va_list args;

    va_start(args, format);
    vsnprintf(line, sizeof(line), format, args);
    va_end(args);
    fputs("vmctl: ", stderr);
    text_visible(stderr, line);
    fputc('\n', stderr);
    if (command != NULL) {
        usage_line(stderr, command);
        fprintf(stderr, "`vmctl help %s` shows its options\n", command->name);
    } else {
        fputs("usage: vmctl [--socket PATH | --url URL] [-o table|json|name] [--no-wait] COMMAND …\n"
              "`vmctl help` lists the commands\n",
              stderr);
    }
    return EXIT_USAGE;
}

/* Says that `word` is no `what`, and which of the names is meant when one is near. */
static int unknown(const struct command *command, const char *what, const char *word, const char *const *names)
{
    const char *near = str_nearest(word, names);

    if (near != NULL)
        return usage_error(command, "unknown %s %s; did you mean %s?", what, word, near);
    return usage_error(command, "unknown %s %s", what, word);
}

const struct command *command_find(const char *name)
{
    const struct command *found = NULL;
    const char *names[64];
    size_t count = 0, matches = 0;
    char list[512] = "";

    for (const struct command *c = commands; c->name != NULL; c++) {
        if (strcmp(c->name, name) == 0)
            return c;
        if (count < ARRAY_SIZE(names) - 1)
            names[count++] = c->name;
        if (name[0] != '\0' && str_prefix(c->name, name)) {
            size_t used = strlen(list);

            snprintf(list + used, sizeof(list) - used, "%s%s", used > 0 ? ", " : "", c->name);
            found = c;
            matches++;
        }
    }
    names[count] = NULL;
    if (matches == 1)
        return found;
    if (matches > 1)
        usage_error(NULL, "%s is ambiguous: %s", name, list);
    else
        unknown(NULL, "command", name, names);
    return NULL;
}

static const struct option_def *find_in(const struct option_def *defs, const char *name, size_t size, char letter)
{
    for (; defs != NULL && defs->name != NULL; defs++) {
        if (letter != 0 ? defs->letter == letter : strlen(defs->name) == size && memcmp(defs->name, name, size) == 0)
            return defs;
    }
    return NULL;
}

static const struct option_def *find_option(const struct args *args, const char *name, size_t size, char letter)
{
    const struct option_def *def = args->command != NULL ? find_in(args->command->options, name, size, letter) : NULL;

    return def != NULL ? def : find_in(global_options, name, size, letter);
}

static int unknown_option(const struct args *args, const char *option)
{
    const struct option_def *tables[] = {args->command != NULL ? args->command->options : NULL, global_options};
    const char *names[96];
    char name[64], near[80];
    size_t count = 0;

    for (size_t i = 0; i < ARRAY_SIZE(tables); i++) {
        for (const struct option_def *d = tables[i]; d != NULL && d->name != NULL && count < ARRAY_SIZE(names) - 1; d++)
            names[count++] = d->name;
    }
    names[count] = NULL;
    snprintf(name, sizeof(name), "%.*s", (int)strcspn(option + 2, "="), option + 2);
    if (option[1] != '-' || str_nearest(name, names) == NULL)
        return usage_error(args->command, "unknown option %s", option);
    snprintf(near, sizeof(near), "--%s", str_nearest(name, names));
    return usage_error(args->command, "unknown option --%s; did you mean %s?", name, near);
}

static int add_option(struct args *args, const struct option_def *def, const char *value)
{
    if (args->option_count == OPTIONS_MAX)
        return usage_error(args->command, "more than %d options", OPTIONS_MAX);
    args->options[args->option_count].def = def;
    args->options[args->option_count++].value = value;
    return EXIT_DONE;
}

/* Parses `--name`, `--name=value` or `--name value`; *at stands on it and moves to the last word used. */
static int parse_long(struct args *args, int argc, char **argv, int *at)
{
    const char *name = argv[*at] + 2;
    size_t size = strcspn(name, "=");
    const struct option_def *def = find_option(args, name, size, 0);

    if (def == NULL)
        return unknown_option(args, argv[*at]);
    if (def->value == NULL)
        return name[size] == '=' ? usage_error(args->command, "--%s takes no value", def->name)
                                 : add_option(args, def, "");
    if (name[size] == '=')
        return add_option(args, def, name + size + 1);
    if (*at + 1 >= argc)
        return usage_error(args->command, "--%s needs a value: --%s %s", def->name, def->name, def->value);
    return add_option(args, def, argv[++*at]);
}

/* Parses `-f`, `-fn5`, `-n5` or `-n 5` likewise. */
static int parse_letters(struct args *args, int argc, char **argv, int *at)
{
    for (const char *p = argv[*at] + 1; *p != '\0'; p++) {
        const struct option_def *def = find_option(args, NULL, 0, *p);
        int result;

        if (def == NULL)
            return usage_error(args->command, "unknown option -%c", *p);
        if (def->value != NULL && p[1] == '\0' && *at + 1 >= argc)
            return usage_error(args->command, "-%c needs a value: -%c %s", *p, *p, def->value);
        if (def->value != NULL)
            return add_option(args, def, p[1] != '\0' ? p + 1 : argv[++*at]);
        result = add_option(args, def, "");
        if (result != EXIT_DONE)
            return result;
    }
    return EXIT_DONE;
}

static int parse_word(struct args *args, const char *word)
{
    if (args->command == NULL) {
        args->command = command_find(word);
        return args->command != NULL ? EXIT_DONE : EXIT_USAGE;
    }
    if (args->word_count == WORDS_MAX)
        return usage_error(args->command, "more than %d names", WORDS_MAX);
    args->words[args->word_count++] = word;
    return EXIT_DONE;
}

/* `exec web ls -l`: the option is the guest's. */
static bool command_begins(const struct args *args)
{
    return args->command != NULL && args->command->names > 0 && args->word_count > args->command->names;
}

int args_parse(struct args *args, int argc, char **argv)
{
    bool options_ended = false;
    int result = EXIT_DONE;

    *args = (struct args){0};
    for (int i = 1; i < argc && result == EXIT_DONE; i++) {
        if (options_ended || argv[i][0] != '-' || argv[i][1] == '\0') {
            result = parse_word(args, argv[i]);
            if (!options_ended)
                args->words_before_dashes = args->word_count;
            options_ended = options_ended || command_begins(args);
        } else if (strcmp(argv[i], "--") == 0) {
            options_ended = true;
        } else if (argv[i][1] == '-') {
            result = parse_long(args, argc, argv, &i);
        } else {
            result = parse_letters(args, argc, argv, &i);
        }
    }
    if (result != EXIT_DONE || args->command == NULL || args_has(args, "help"))
        return result;
    if (args->word_count < args->command->min_words)
        return usage_error(args->command, "%s needs %s", args->command->name, args->command->words);
    if (args->word_count > args->command->max_words)
        return usage_error(args->command, "unexpected word %s", args->words[args->command->max_words]);
    return EXIT_DONE;
}

bool args_has(const struct args *args, const char *name)
{
    return args_value(args, name) != NULL;
}

const char *args_value(const struct args *args, const char *name)
{
    const char *value = NULL;
    size_t at = 0;

    for (const char *v; (v = args_next(args, name, &at)) != NULL;)
        value = v;
    return value;
}

const char *args_next(const struct args *args, const char *name, size_t *at)
{
    while (*at < args->option_count) {
        size_t i = (*at)++;

        if (strcmp(args->options[i].def->name, name) == 0)
            return args->options[i].value;
    }
    return NULL;
}

bool args_integer(const struct args *args, const char *name, long long min, long long max, long long *ret_value)
{
    const char *value = args_value(args, name);
    long long number;

    if (value == NULL)
        return true;
    if (!parse_integer(value, &number) || number < min || number > max) {
        if (min == INT64_MIN || max == INT64_MAX)
            usage_error(args->command, "--%s takes an integer%s, not %s", name, min == 0 ? " from 0" : "", value);
        else
            usage_error(args->command, "--%s takes an integer from %lld to %lld, not %s", name, min, max, value);
        return false;
    }
    *ret_value = number;
    return true;
}

static void print_options(const struct option_def *defs)
{
    size_t width = 0;

    for (const struct option_def *d = defs; d->name != NULL; d++) {
        size_t size = 6 + strlen(d->name) + (d->value != NULL ? 1 + strlen(d->value) : 0);

        width = size > width ? size : width;
    }
    for (const struct option_def *d = defs; d->name != NULL; d++) {
        char letter[5] = "    ";
        char form[96];

        if (d->letter != 0)
            snprintf(letter, sizeof(letter), "-%c, ", d->letter);
        snprintf(form, sizeof(form), "%s--%s%s%s", letter, d->name, d->value != NULL ? " " : "",
                 d->value != NULL ? d->value : "");
        out_printf("  %-*s  %s\n", (int)width, form, d->help);
    }
}

void usage_print(const struct command *command)
{
    out_printf("vmctl %s%s%s%s\n\n%s\n", command->name, command->options != NULL ? " [OPTION…]" : "",
               command->words[0] != '\0' ? " " : "", command->words, command->summary);
    if (command->options != NULL) {
        out_puts("\nOptions:\n");
        print_options(command->options);
    }
    out_puts("\nOptions of every command:\n");
    print_options(global_options);
}

void usage_print_all(void)
{
    out_puts("usage: vmctl [--socket PATH | --url URL] [-o table|json|name] [--no-wait] COMMAND …\n\nCommands:\n");
    for (const struct command *c = commands; c->name != NULL; c++)
        out_printf("  %-12s%s\n", c->name, c->summary);
    out_puts("\nOptions of every command:\n");
    print_options(global_options);
    out_puts("\n`vmctl help COMMAND` shows a command's own options; a command may be cut to a unique prefix.\n");
}
