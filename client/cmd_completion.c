/* cmd_completion.c - completion scripts for bash, zsh and fish, written from the command table. VM names are asked of
 * the daemon when the user presses Tab (`vmctl list -o name`); an absent daemon just completes nothing. */
#include <string.h>

#include "cli.h"
#include "output.h"
#include "util.h"

static const char *const word_lists[] = {
    [WORD_NONE] = "",
    [WORD_VM] = "$(vmctl list -o name 2>/dev/null)",
    [WORD_CODE] = "$(vmctl errors -o name 2>/dev/null)",
    [WORD_COMMAND] = NULL,
    [WORD_SHELL] = "bash zsh fish",
    [WORD_OPERATION] = "list show cancel $(vmctl ops -o name 2>/dev/null)",
    [WORD_ADOPTABLE] = "$(vmctl adopt -o name 2>/dev/null)",
    [WORD_IMAGE] = "list pull inspect rm convert prune upload $(vmctl image -o name 2>/dev/null)",
};

static void put_commands(const char *between)
{
    for (const struct command *c = commands; c->name != NULL; c++)
        out_printf("%s%s", c != commands ? between : "", c->name);
}

static void put_words(const struct command *command)
{
    if (word_lists[command->word_kind] != NULL)
        out_puts(word_lists[command->word_kind]);
    else
        put_commands(" ");
}

static void put_option_names(const struct option_def *defs)
{
    for (; defs != NULL && defs->name != NULL; defs++) {
        if (defs->letter != 0)
            out_printf(" -%c", defs->letter);
        out_printf(" --%s", defs->name);
    }
}

static bool takes_file(const struct option_def *def)
{
    return strcmp(def->value, "PATH") == 0 || strcmp(def->value, "FILE") == 0;
}

/* The `case` arms for the values of options: what may stand after one. */
static void put_bash_values(const char *command, const struct option_def *defs)
{
    for (; defs != NULL && defs->name != NULL; defs++) {
        if (defs->value == NULL)
            continue;
        out_printf("        %s:--%s", command, defs->name);
        if (defs->letter != 0)
            out_printf("|%s:-%c", command, defs->letter);
        if (defs->choices != NULL)
            out_printf(") COMPREPLY=($(compgen -W '%s' -- \"$cur\")); return ;;\n", defs->choices);
        else if (strcmp(defs->name, "vm") == 0)
            out_printf(") COMPREPLY=($(compgen -W \"%s\" -- \"$cur\")); return ;;\n", word_lists[WORD_VM]);
        else if (takes_file(defs))
            out_puts(") COMPREPLY=($(compgen -f -- \"$cur\")); return ;;\n");
        else
            out_puts(") return ;;\n");
    }
}

static int bash(void)
{
    out_puts("# bash completion for vmctl: source <(vmctl completion bash)\n"
             "_vmctl()\n{\n"
             "    local cur prev command='' i\n"
             "    COMPREPLY=()\n"
             "    cur=${COMP_WORDS[COMP_CWORD]}\n"
             "    prev=${COMP_WORDS[COMP_CWORD-1]}\n"
             "    for ((i = 1; i < COMP_CWORD; i++)); do\n"
             "        case ${COMP_WORDS[i]} in\n"
             "        --socket|--url|-o|--output) ((i++)) ;;\n"
             "        -*) ;;\n"
             "        *) command=${COMP_WORDS[i]}; break ;;\n"
             "        esac\n"
             "    done\n"
             "    case $command:$prev in\n");
    put_bash_values("*", global_options);
    for (const struct command *c = commands; c->name != NULL; c++)
        put_bash_values(c->name, c->options);
    out_puts("    esac\n    local words options='");
    put_option_names(global_options);
    out_puts("'\n    case $command in\n    '') words='");
    put_commands(" ");
    out_puts("' ;;\n");
    for (const struct command *c = commands; c->name != NULL; c++) {
        out_printf("    %s) options+='", c->name);
        put_option_names(c->options);
        out_puts("'; [[ $cur == -* ]] || words=\"");
        put_words(c);
        out_puts("\" ;;\n");
    }
    out_puts("    esac\n"
             "    if [[ $cur == -* ]]; then words=$options; fi\n"
             "    COMPREPLY=($(compgen -W \"$words\" -- \"$cur\"))\n"
             "}\n"
             "complete -F _vmctl vmctl\n");
    return EXIT_DONE;
}

/* A text inside '…[text]' of zsh's _arguments, where quotes, brackets and colons have a meaning. */
static void put_zsh_text(const char *s)
{
    for (; *s != '\0'; s++) {
        if (*s == '\'')
            out_puts("'\\''");
        else if (strchr("[]:\\", *s) != NULL)
            out_printf("\\%c", *s);
        else
            out_write(s, 1);
    }
}

static void put_zsh_options(const struct option_def *defs)
{
    for (; defs != NULL && defs->name != NULL; defs++) {
        for (int form = defs->letter != 0 ? 0 : 1; form < 2; form++) {
            out_puts(" \\\n            '*");
            if (form == 0)
                out_printf("-%c", defs->letter);
            else
                out_printf("--%s", defs->name);
            out_puts("[");
            put_zsh_text(defs->help);
            out_puts("]");
            if (defs->value != NULL) {
                out_puts(":");
                put_zsh_text(defs->value);
                if (defs->choices != NULL)
                    out_printf(":(%s)", defs->choices);
                else
                    out_puts(takes_file(defs) ? ":_files" : strcmp(defs->name, "vm") == 0 ? ":_vmctl_vms" : ": ");
            }
            out_puts("'");
        }
    }
}

static void put_zsh_words(const struct command *command)
{
    static const char *const functions[] = {
        [WORD_NONE] = NULL,
        [WORD_VM] = "_vmctl_vms",
        [WORD_CODE] = "_vmctl_codes",
        [WORD_COMMAND] = "_vmctl_commands",
        [WORD_SHELL] = "(bash zsh fish)",
        [WORD_OPERATION] = "(list show cancel)",
        [WORD_ADOPTABLE] = "_vmctl_adoptable",
        [WORD_IMAGE] = "_vmctl_images",
    };

    if (functions[command->word_kind] != NULL)
        out_printf(" \\\n            '*:word:%s'", functions[command->word_kind]);
}

static int zsh(void)
{
    out_puts("#compdef vmctl\n"
             "# zsh completion for vmctl: vmctl completion zsh > a directory of $fpath, as _vmctl\n"
             "_vmctl_vms() { compadd -- ${(f)\"$(vmctl list -o name 2>/dev/null)\"} }\n"
             "_vmctl_images() { compadd -- list pull inspect rm convert prune upload ${(f)\"$(vmctl image -o name "
             "2>/dev/null)\"}; _files }\n"
             "_vmctl_codes() { compadd -- ${(f)\"$(vmctl errors -o name 2>/dev/null)\"} }\n"
             "_vmctl_adoptable() { compadd -- ${(f)\"$(vmctl adopt -o name 2>/dev/null)\"} }\n"
             "_vmctl_commands() {\n    local -a names\n    names=(\n");
    for (const struct command *c = commands; c->name != NULL; c++) {
        out_printf("        '%s:", c->name);
        put_zsh_text(c->summary);
        out_puts("'\n");
    }
    out_puts("    )\n    _describe command names\n}\n"
             "_vmctl() {\n    local context state line\n    typeset -A opt_args\n"
             "    _arguments -C");
    put_zsh_options(global_options);
    out_puts(" \\\n            '1:command:_vmctl_commands' \\\n            '*::argument:->argument'\n"
             "    [[ $state == argument ]] || return\n"
             "    case $line[1] in\n");
    for (const struct command *c = commands; c->name != NULL; c++) {
        out_printf("    %s)\n        _arguments", c->name);
        put_zsh_options(global_options);
        put_zsh_options(c->options);
        put_zsh_words(c);
        out_puts(" ;;\n");
    }
    out_puts("    esac\n}\n"
             "if [[ $funcstack[1] == _vmctl ]]; then _vmctl \"$@\"; else compdef _vmctl vmctl; fi\n");
    return EXIT_DONE;
}

static void put_fish_text(const char *s)
{
    out_puts("'");
    for (; *s != '\0'; s++)
        out_printf(*s == '\'' || *s == '\\' ? "\\%c" : "%c", *s);
    out_puts("'");
}

static void put_fish_options(const char *condition, const struct option_def *defs)
{
    for (; defs != NULL && defs->name != NULL; defs++) {
        out_printf("complete -c vmctl%s -l %s", condition, defs->name);
        if (defs->letter != 0)
            out_printf(" -s %c", defs->letter);
        if (defs->value != NULL && defs->choices != NULL)
            out_printf(" -x -a '%s'", defs->choices);
        else if (defs->value != NULL && strcmp(defs->name, "vm") == 0)
            out_puts(" -x -a '(vmctl list -o name 2>/dev/null)'");
        else if (defs->value != NULL)
            out_puts(takes_file(defs) ? " -r -F" : " -x");
        out_puts(" -d ");
        put_fish_text(defs->help);
        out_puts("\n");
    }
}

static int fish(void)
{
    static const char *const lists[] = {
        [WORD_NONE] = NULL,
        [WORD_VM] = "(vmctl list -o name 2>/dev/null)",
        [WORD_CODE] = "(vmctl errors -o name 2>/dev/null)",
        [WORD_COMMAND] = NULL,
        [WORD_SHELL] = "bash zsh fish",
        [WORD_OPERATION] = "list show cancel (vmctl ops -o name 2>/dev/null)",
        [WORD_ADOPTABLE] = "(vmctl adopt -o name 2>/dev/null)",
        [WORD_IMAGE] = "list pull inspect rm convert prune upload (vmctl image -o name 2>/dev/null)",
    };

    out_puts("# fish completion for vmctl: vmctl completion fish > ~/.config/fish/completions/vmctl.fish\n"
             "complete -c vmctl -f\n");
    put_fish_options("", global_options);
    for (const struct command *c = commands; c->name != NULL; c++) {
        char *condition = x_printf(" -n '__fish_seen_subcommand_from %s'", c->name);

        out_printf("complete -c vmctl -n __fish_use_subcommand -a %s -d ", c->name);
        put_fish_text(c->summary);
        out_puts("\n");
        put_fish_options(condition, c->options);
        if (c->word_kind == WORD_COMMAND) {
            out_printf("complete -c vmctl%s -a '", condition);
            put_commands(" ");
            out_puts("'\n");
        } else if (lists[c->word_kind] != NULL) {
            out_printf("complete -c vmctl%s -a '%s'\n", condition, lists[c->word_kind]);
        }
        mem_free(condition);
    }
    return EXIT_DONE;
}

int cmd_completion(struct cli *cli, const struct args *args)
{
    (void)cli;
    if (strcmp(args->words[0], "bash") == 0)
        return bash();
    if (strcmp(args->words[0], "zsh") == 0)
        return zsh();
    if (strcmp(args->words[0], "fish") == 0)
        return fish();
    return usage_error(args->command, "completion knows bash, zsh and fish, not %s", args->words[0]);
}
