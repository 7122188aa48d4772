/* cli.h - what the commands of vmctl share: the command table's types, the parsed arguments and the session. */
#ifndef VMCTL_CLI_H
#define VMCTL_CLI_H

#include <stdbool.h>
#include <stddef.h>

struct api;

enum exit_code {
    EXIT_DONE = 0,
    EXIT_FAILED = 1,
    EXIT_USAGE = 2,
    EXIT_NOT_FOUND = 3,
    EXIT_CONFLICT = 4,
    EXIT_UNREACHABLE = 5,
    EXIT_TIMED_OUT = 6,
    EXIT_REFUSED = 7,
    EXIT_VMCTL = 125, /* exec, ssh: vmctl itself failed; all else is the remote command's */
    EXIT_INTERRUPTED = 130,
};

enum format { FORMAT_TABLE, FORMAT_JSON, FORMAT_NAME };

/* What a VM can be in, and what can be true of it beside: words in one text, as an option's choices are. */
#define VM_STATES "preparing prepared running suspended stopped failed"
#define VM_CONDITIONS "ready agent ssh ip cloud_init disk_io"

/* One option of a command, or one that all commands take. A table of them ends with name NULL. */
struct option_def {
    const char *name;    /* long name without dashes */
    char letter;         /* its one-letter form, or 0 */
    const char *value;   /* what its value is called in the usage; NULL for a flag */
    const char *choices; /* "a b c" when only these are offered by completion; else NULL */
    const char *help;
};

/* What the words after a command are, for usage and completion. */
enum word_kind { WORD_NONE, WORD_VM, WORD_CODE, WORD_COMMAND, WORD_SHELL, WORD_OPERATION, WORD_ADOPTABLE, WORD_IMAGE };

struct cli;
struct args;

struct command {
    const char *name;
    const char *words; /* the usage of its words, e.g. "NAME…"; "" for none */
    const char *summary;
    enum word_kind word_kind;
    size_t min_words;
    size_t max_words;
    const struct option_def *options; /* NULL for none */
    int (*run)(struct cli *cli, const struct args *args);
    size_t
        names; /* so many words are its own, what follows is a command of the guest's, with its options; 0: all are */
};

#define WORDS_MAX 1024
#define OPTIONS_MAX 512

/* A parsed command line. Points into argv; owns nothing. */
struct args {
    const struct command *command;
    const char *words[WORDS_MAX];
    size_t word_count;
    size_t words_before_dashes; /* as word_count without "--" */
    struct {
        const struct option_def *def;
        const char *value; /* "" for a flag */
    } options[OPTIONS_MAX];
    size_t option_count;
};

/* One run of vmctl. `socket` is set, or `url`, never both. */
struct cli {
    char *socket;
    char *url;
    const char *token;
    enum format format;
    bool no_wait;
    struct api *api;
};

/* The table (table.c), ended by name NULL, and the options every command takes. */
extern const struct command commands[];
extern const struct option_def global_options[];

/* Parses argv. Fills `args`; returns EXIT_DONE, or EXIT_USAGE after saying on stderr what was wrong. A missing command
 * leaves args->command NULL. `words` are checked against the command's limits unless --help was given. */
int args_parse(struct args *args, int argc, char **argv);

/* The command of this name or unique prefix; NULL after a line on stderr (unknown with the nearest name, or ambiguous).
 */
const struct command *command_find(const char *name);

/* Whether the option was given. */
bool args_has(const struct args *args, const char *name);

/* The option's last value, NULL when it was not given. */
const char *args_value(const struct args *args, const char *name);

/* The option's next value from position *at on (start with 0), NULL when there are no more. */
const char *args_next(const struct args *args, const char *name, size_t *at);

/* The option as an integer. Returns true and leaves *ret_value when it was not given; false after a usage line when it
 * is no integer between `min` and `max`. */
bool args_integer(const struct args *args, const char *name, long long min, long long max, long long *ret_value);

/* Says on stderr what is wrong with the command line and how the command is used; returns EXIT_USAGE. */
int usage_error(const struct command *command, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* Writes the overview of all commands, or the page of one, to stdout. */
void usage_print_all(void);
void usage_print(const struct command *command);

/* The worse of two exit codes, for commands that take several names. */
int exit_worse(int a, int b);

/* Whether this is a state or a condition that a VM can be waited for. */
bool wait_known(const char *word);

/* Waits until the VM has come to all of these (states, conditions) and says so unless quiet, at most so many seconds; the exit
 * code. */
int wait_for(const struct cli *cli, const char *name, const char *const *conditions, size_t count, long long timeout_s,
             bool quiet);

/* Stops every VM that runs or is suspended, all together within so many seconds (-1: the usual). */
int stop_all(const struct cli *cli, long long timeout_s);

int cmd_create(struct cli *cli, const struct args *args);
int cmd_start(struct cli *cli, const struct args *args);
int cmd_stop(struct cli *cli, const struct args *args);
int cmd_kill(struct cli *cli, const struct args *args);
int cmd_reset(struct cli *cli, const struct args *args);
int cmd_restart(struct cli *cli, const struct args *args);
int cmd_suspend(struct cli *cli, const struct args *args);
int cmd_resume(struct cli *cli, const struct args *args);
int cmd_destroy(struct cli *cli, const struct args *args);
int cmd_list(struct cli *cli, const struct args *args);
int cmd_status(struct cli *cli, const struct args *args);
int cmd_wait(struct cli *cli, const struct args *args);
int cmd_log(struct cli *cli, const struct args *args);
int cmd_console(struct cli *cli, const struct args *args);
int cmd_provision(struct cli *cli, const struct args *args);
int cmd_exec(struct cli *cli, const struct args *args);
int cmd_ssh(struct cli *cli, const struct args *args);
int cmd_cp(struct cli *cli, const struct args *args);
int cmd_ssh_config(struct cli *cli, const struct args *args);
int cmd_events(struct cli *cli, const struct args *args);
int cmd_ops(struct cli *cli, const struct args *args);
int cmd_doctor(struct cli *cli, const struct args *args);
int cmd_adopt(struct cli *cli, const struct args *args);
int cmd_image(struct cli *cli, const struct args *args);
int cmd_host(struct cli *cli, const struct args *args);
int cmd_errors(struct cli *cli, const struct args *args);
int cmd_explain(struct cli *cli, const struct args *args);
int cmd_version(struct cli *cli, const struct args *args);
int cmd_completion(struct cli *cli, const struct args *args);
int cmd_help(struct cli *cli, const struct args *args);

#endif
