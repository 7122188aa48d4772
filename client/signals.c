/* signals.c - see signals.h. The handler writes into a pipe that every wait of vmctl polls. */
#include "signals.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <unistd.h>

static int pipe_fds[2] = {-1, -1};
static volatile sig_atomic_t interrupted;

static void on_interrupt(int signal)
{
    int saved = errno;
    ssize_t ignored;

    (void)signal;
    interrupted = 1;
    ignored = write(pipe_fds[1], "", 1);
    (void)ignored;
    errno = saved;
}

void signals_init(void)
{
    struct sigaction action = {.sa_handler = on_interrupt};

    signal(SIGPIPE, SIG_IGN);
    if (pipe2(pipe_fds, O_CLOEXEC | O_NONBLOCK) < 0)
        return; /* Ctrl+C then ends vmctl as ever */
    sigemptyset(&action.sa_mask);
    sigaction(SIGINT, &action, NULL);
}

int signals_fd(void)
{
    return pipe_fds[0];
}

bool signals_interrupted(void)
{
    return interrupted != 0;
}

void signals_sleep(int ms)
{
    struct pollfd fd = {.fd = pipe_fds[0], .events = POLLIN};

    poll(&fd, 1, ms);
}
