/* terminal.c - see terminal.h. Handlers use tcsetattr alone, which POSIX allows in them, then let the signal do what it
 * does. */
#include "terminal.h"

#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <termios.h>
#include <unistd.h>

#include "util.h"

static struct termios cooked, raw;
static volatile sig_atomic_t is_raw;

void terminal_restore(void)
{
    if (is_raw)
        tcsetattr(STDIN_FILENO, TCSADRAIN, &cooked);
    is_raw = 0;
}

static void restore_now(void)
{
    tcsetattr(STDIN_FILENO, TCSANOW, &cooked);
}

static void on_end(int signal_number)
{
    if (is_raw)
        restore_now();
    signal(signal_number, SIG_DFL); /* SA_RESETHAND did it already; for sanitizers' handlers too */
    raise(signal_number);
}

static void handle(int signal_number, void (*handler)(int), int flags)
{
    struct sigaction action = {.sa_handler = handler, .sa_flags = flags};

    sigemptyset(&action.sa_mask);
    if (signal_number == SIGTSTP)
        sigaddset(&action.sa_mask, SIGCONT); /* raw only when the next stop will be seen */
    sigaction(signal_number, &action, NULL);
}

/* Raw again, unless the terminal is another process group's now; then the SIGCONT of a later `fg` does it. */
static void raw_again(void)
{
    pid_t foreground = tcgetpgrp(STDIN_FILENO);

    /* ENOTTY: it is not our controlling terminal, so nobody else's job stands in front of it. */
    if (is_raw && (foreground == getpgrp() || (foreground < 0 && errno == ENOTTY)))
        tcsetattr(STDIN_FILENO, TCSANOW, &raw);
}

static void on_stop(int signal_number)
{
    int saved = errno;
    sigset_t set;

    if (is_raw)
        restore_now();
    signal(signal_number, SIG_DFL);
    raise(signal_number);
    sigemptyset(&set);
    sigaddset(&set, signal_number);
    sigprocmask(SIG_UNBLOCK, &set, NULL); /* stops here until SIGCONT; an orphaned process group does not stop at all */
    handle(signal_number, on_stop, 0);
    raw_again();
    errno = saved;
}

static void on_continue(int signal_number)
{
    int saved = errno;

    (void)signal_number;
    raw_again();
    errno = saved;
}

void terminal_raw(void)
{
    static const int ends[] = {SIGTERM, SIGHUP, SIGQUIT, SIGABRT, SIGSEGV, SIGBUS, SIGFPE, SIGILL};

    if (!isatty(STDIN_FILENO) || tcgetattr(STDIN_FILENO, &cooked) < 0)
        return;
    raw = cooked;
    cfmakeraw(&raw);
    atexit(terminal_restore);
    for (size_t i = 0; i < ARRAY_SIZE(ends); i++)
        handle(ends[i], on_end, (int)SA_RESETHAND);
    handle(SIGTSTP, on_stop, 0);
    handle(SIGCONT, on_continue, SA_RESTART);
    is_raw = 1;
    tcsetattr(STDIN_FILENO, TCSADRAIN, &raw);
}
