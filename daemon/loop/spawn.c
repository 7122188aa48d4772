/* spawn.c - fork and exec.
 *
 * Everything that allocates is done before the fork: the program is found in PATH, the environment is built.  The child
 * shares our memory until it execs (vfork: a daemon with much memory does not pay for copying its page tables), so all
 * signals are blocked meanwhile and it does nothing but system calls on what was prepared.
 *
 * Failure: the child writes its errno into a pipe that a successful exec closes; it is reaped before spawn returns. */
#include "loop/spawn.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/pidfd.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/fd.h"
#include "base/mem.h"

enum {
    MAX_FDS = 7,  /* three and the extra ones */
    SAFE_FD = 16, /* sources are moved up here first, out of the targets' way */
    FALLBACK_FDS = 65536,
    ENV_MAX = 5,
};

static const char default_path[] = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/* All that the child needs, made before the fork. */
struct plan {
    const char *program;
    const char *const *argv;
    const char *const *env;
    int fds[MAX_FDS];
    int n_fds;
    int error_fd;
    bool detached;
    pid_t parent;
};

/* ---- before the fork ---- */

static const char *env_value(const char *const *env, const char *key)
{
    size_t len = strlen(key);

    for (; env != NULL && *env != NULL; env++)
        if (strncmp(*env, key, len) == 0 && (*env)[len] == '=')
            return *env + len + 1;
    return NULL;
}

static bool runnable(const char *path)
{
    struct stat st;

    if (stat(path, &st) != 0)
        return false;
    if (!S_ISREG(st.st_mode)) {
        errno = EACCES;
        return false;
    }
    return access(path, X_OK) == 0;
}

/* The path of the program into out (PATH_MAX); 0 or an errno. */
static int find_program(const char *name, const char *const *env, char *out)
{
    const char *path = env_value(env, "PATH");
    int worst = ENOENT;

    if (strchr(name, '/') != NULL) {
        if (snprintf(out, PATH_MAX, "%s", name) >= PATH_MAX)
            return ENAMETOOLONG;
        return 0;
    }
    for (const char *at = path != NULL ? path : default_path; *name != '\0' && at != NULL;) {
        const char *colon = strchr(at, ':');
        size_t len = colon != NULL ? (size_t)(colon - at) : strlen(at);
        int n = snprintf(out, PATH_MAX, "%.*s/%s", (int)len, at, name);
        if (len > 0 && n < PATH_MAX) { /* an empty entry would be the working directory: never */
            if (runnable(out))
                return 0;
            if (errno == EACCES)
                worst = EACCES;
        }
        at = colon != NULL ? colon + 1 : NULL;
    }
    return worst;
}

/* PATH, LANG, HOME and TMPDIR as child.h promises; strings[i] is what mem_free must have. */
static int minimal_env(char *strings[ENV_MAX])
{
    const char *path = getenv("PATH"), *tmp = getenv("TMPDIR");
    size_t n = 0;

    strings[n++] = mem_printf("PATH=%s", path != NULL && *path != '\0' ? path : default_path);
    strings[n++] = mem_strdup("LANG=C.UTF-8");
    strings[n++] = mem_strdup("HOME=/");
    if (tmp != NULL)
        strings[n++] = mem_printf("TMPDIR=%s", tmp);
    for (size_t i = 0; i < n; i++)
        if (strings[i] == NULL)
            return ENOMEM;
    return 0;
}

static void free_env(char *strings[ENV_MAX])
{
    for (size_t i = 0; i < ENV_MAX; i++)
        mem_free(strings[i]);
}

/* ---- in the child: system calls only ---- */

static _Noreturn void give_up(const struct plan *plan)
{
    int errnum = errno;

    (void)!write(plan->error_fd, &errnum, sizeof(errnum));
    _exit(127);
}

static void reset_signals(void)
{
    static const unsigned long kernel_default[8]; /* the kernel's struct: a handler of 0 is SIG_DFL */
    struct sigaction dfl;
    sigset_t none;

    memset(&dfl, 0, sizeof(dfl));
    dfl.sa_handler = SIG_DFL;
    for (int i = 1; i < NSIG; i++)
        if (sigaction(i, &dfl, NULL) < 0) /* libc keeps two for itself, which somebody before us may have had ignored */
            syscall(SYS_rt_sigaction, i, kernel_default, NULL, sizeof(unsigned long));
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
}

/* Puts the sources onto 0, 1, 2, ...; everything else goes at exec. */
static void place_fds(struct plan *plan)
{
    int moved[MAX_FDS];

    int error_fd = fcntl(plan->error_fd, F_DUPFD_CLOEXEC, SAFE_FD); /* the first one goes at exec too */
    if (error_fd < 0)
        give_up(plan);
    plan->error_fd = error_fd;
    for (int i = 0; i < plan->n_fds; i++)
        if ((moved[i] = fcntl(plan->fds[i], F_DUPFD_CLOEXEC, SAFE_FD)) < 0)
            give_up(plan);
    for (int i = 0; i < plan->n_fds; i++)
        if (dup2(moved[i], i) < 0)
            give_up(plan);
    if (close_range((unsigned)plan->n_fds, ~0U, CLOSE_RANGE_CLOEXEC) == 0)
        return;
    for (int fd = plan->n_fds; fd < FALLBACK_FDS; fd++) /* an old kernel or a filter */
        fcntl(fd, F_SETFD, FD_CLOEXEC);
}

static _Noreturn void become(struct plan *plan)
{
    struct rlimit no_core = {0, 0};

    place_fds(plan);
    if (plan->detached) {
        setsid();
    } else {
        if (prctl(PR_SET_PDEATHSIG, SIGKILL) != 0)
            give_up(plan);
        if (getppid() != plan->parent)
            _exit(127); /* it died before that held */
    }
    setrlimit(RLIMIT_CORE, &no_core);
    reset_signals();
    execve(plan->program, (char *const *)(uintptr_t)plan->argv, (char *const *)(uintptr_t)plan->env);
    give_up(plan);
}

/* ---- the fork ---- */

/* Its own frame, for the child runs on it. */
static __attribute__((noinline)) pid_t fork_plan(struct plan *plan)
{
    pid_t pid = vfork();

    if (pid == 0)
        become(plan);
    return pid;
}

static int start(struct plan *plan, pid_t *ret_pid)
{
    int ends[2], errnum = 0, state;
    sigset_t all, before;

    if (pipe2(ends, O_CLOEXEC) != 0)
        return errno;
    plan->error_fd = ends[1];
    sigfillset(&all);
    pthread_sigmask(SIG_BLOCK, &all, &before);
    pid_t pid = fork_plan(plan);
    int fork_errno = errno;
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    close(ends[1]);
    if (pid < 0) {
        close(ends[0]);
        return fork_errno;
    }
    ssize_t n;
    while ((n = read(ends[0], &errnum, sizeof(errnum))) < 0 && errno == EINTR)
        ;
    close(ends[0]);
    if (n == (ssize_t)sizeof(errnum)) {
        while (waitpid(pid, &state, 0) < 0 && errno == EINTR)
            ;
        return errnum != 0 ? errnum : EIO;
    }
    *ret_pid = pid;
    return 0;
}

static int start_watched(struct plan *plan, pid_t *ret_pid, int *ret_pidfd)
{
    pid_t pid = -1;
    int state, errnum = start(plan, &pid);

    if (errnum != 0)
        return errnum;
    int pidfd = pidfd_open(pid, 0); /* nobody else reaps it, so the pid is still its own */
    if (pidfd < 0) {
        errnum = errno;
        kill(pid, SIGKILL);
        while (waitpid(pid, &state, 0) < 0 && errno == EINTR)
            ;
        return errnum;
    }
    *ret_pid = pid;
    *ret_pidfd = pidfd;
    return 0;
}

static void list_fds(struct plan *plan, const struct child_spec *spec, int null_fd)
{
    plan->fds[0] = spec->stdin_fd >= 0 ? spec->stdin_fd : null_fd;
    plan->fds[1] = spec->stdout_fd >= 0 ? spec->stdout_fd : null_fd;
    plan->fds[2] = spec->stderr_fd >= 0 ? spec->stderr_fd : null_fd;
    plan->n_fds = 3;
    for (size_t i = 0; i < ARRAY_SIZE(spec->extra_fds) && spec->extra_fds[i] >= 0; i++)
        plan->fds[plan->n_fds++] = spec->extra_fds[i];
}

int spawn(const struct child_spec *spec, pid_t *ret_pid, int *ret_pidfd, struct error *err)
{
    char program[PATH_MAX];
    char *strings[ENV_MAX] = {NULL};
    struct plan plan = {.program = program, .argv = spec->argv, .detached = spec->detached, .parent = getpid()};
    CLEANUP_FD int null_fd = open("/dev/null", O_RDWR | O_CLOEXEC);
    int errnum = null_fd < 0 ? errno : 0;

    plan.env = spec->env;
    if (errnum == 0 && spec->env == NULL) {
        errnum = minimal_env(strings);
        plan.env = (const char *const *)strings;
    }
    if (errnum == 0)
        errnum = find_program(spec->argv[0], plan.env, program);
    if (errnum == 0) {
        list_fds(&plan, spec, null_fd);
        errnum = start_watched(&plan, ret_pid, ret_pidfd);
    }
    free_env(strings);
    if (errnum != 0)
        return error_errno(err, errnum, "cannot start %s", spec->argv[0]);
    return 0;
}
