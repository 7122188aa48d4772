/* test_child.c - children, tools and watched processes, with real programs of the base system. */
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/pidfd.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/clock.h"
#include "base/fd.h"
#include "base/mem.h"
#include "loop/child.h"
#include "loop/timer.h"

enum { TOOL_MS = 60000, OUTPUT = 64 * 1024 };

static struct loop *loop;

static int open_loop(void **state)
{
    CLEANUP_ERROR struct error err = ERROR_INIT;

    (void)state;
    loop = loop_new(&err);
    return loop != NULL ? 0 : -1;
}

/* Each test leaves neither handles nor children behind. */
static int close_loop(void **state)
{
    (void)state;
    int left = loop_free(loop);
    return left == 0 && waitpid(-1, NULL, WNOHANG) == -1 && errno == ECHILD ? 0 : -1;
}

static void on_tick(void *arg)
{
    (void)arg;
}

/* Runs the loop, which freed children alone do not keep running, until at most `left` children are there. */
static void reap_down_to(int left)
{
    struct timer *tick = timer_new(loop, on_tick, NULL);
    int n = left + 1;

    timer_start(tick, 2, 2);
    for (int i = 0; i < 5000 && n > left; i++) {
        CLEANUP_FREE char *list = NULL;
        CLEANUP_ERROR struct error err = ERROR_INIT;
        char path[64];
        size_t len;
        snprintf(path, sizeof(path), "/proc/self/task/%d/children", (int)getpid());
        assert_int_equal(file_read(path, 65536, &list, &len, &err), 0);
        n = 0;
        for (const char *p = list; *p != '\0'; p++)
            n += *p == ' ';
        loop_run_once(loop, true);
    }
    timer_free(tick);
    assert_int_equal(n, left);
}

struct end {
    struct exit_status status;
    int calls;
};

static void on_exited(void *arg, const struct exit_status *status)
{
    struct end *end = arg;

    end->status = *status;
    end->calls++;
}

static struct child_spec spec_of(const char *const *argv)
{
    return (struct child_spec){
        .argv = argv, .stdin_fd = -1, .stdout_fd = -1, .stderr_fd = -1, .extra_fds = {-1, -1, -1, -1}};
}

static struct end run(const char *script)
{
    CLEANUP_ERROR struct error err = ERROR_INIT;
    const char *argv[] = {"sh", "-c", script, NULL};
    struct child_spec spec = spec_of(argv);
    struct end end = {0};
    struct child *c = child_spawn(loop, &spec, on_exited, &end, &err);

    assert_non_null(c);
    assert_true(child_pid(c) > 0);
    assert_int_equal(end.calls, 0);
    loop_run(loop);
    assert_int_equal(end.calls, 1);
    assert_true(end.status.known);
    assert_int_equal(child_signal(c, SIGTERM), -1);
    assert_int_equal(errno, ESRCH);
    child_free(c);
    return end;
}

static void test_exit_codes_and_signals(void **state)
{
    struct end end = run("exit 7");

    (void)state;
    assert_int_equal(end.status.code, 7);
    assert_int_equal(end.status.signal, 0);
    end = run("exit 0");
    assert_int_equal(end.status.code, 0);
    end = run("kill -KILL $$");
    assert_int_equal(end.status.code, -1);
    assert_int_equal(end.status.signal, SIGKILL);
}

static void refuse(const char *program, int errnum)
{
    CLEANUP_ERROR struct error err = ERROR_INIT;
    const char *argv[] = {program, NULL};
    struct child_spec spec = spec_of(argv);
    struct end end = {0};

    assert_null(child_spawn(loop, &spec, on_exited, &end, &err));
    assert_int_equal(err.code, ERR_IO);
    assert_non_null(strstr(err.message, program));
    assert_true(err.n_causes > 0);
    assert_non_null(strstr(err.causes[0], strerror(errnum)));
    loop_run(loop);
    assert_int_equal(end.calls, 0);
    assert_int_equal(waitpid(-1, NULL, WNOHANG), -1); /* no zombie */
}

static void test_refused_programs(void **state)
{
    char path[] = "/tmp/test_child_XXXXXX";
    int fd = mkstemp(path);

    (void)state;
    refuse("no-such-program-anywhere", ENOENT);
    refuse("/no/such/program", ENOENT);
    refuse("/etc/passwd", EACCES);
    refuse("/tmp", EACCES);
    assert_true(fd >= 0);
    assert_int_equal(write(fd, "neither script nor binary", 25), 25);
    assert_int_equal(fchmod(fd, 0700), 0);
    close(fd);
    refuse(path, ENOEXEC);
    unlink(path);
}

/* ---- tools ---- */

struct answer {
    struct tool *tool;
    int calls;
    bool free_in_done;
    struct exit_status status;
    bool timed_out;
    char out[OUTPUT + 1];
    size_t out_len;
    char err_text[256];
};

static void on_done(void *arg, const struct tool_result *result)
{
    struct answer *a = arg;

    a->calls++;
    a->status = result->status;
    a->timed_out = result->timed_out;
    if (a->free_in_done) {
        tool_free(a->tool);
        a->tool = NULL;
    }
    assert_true(result->out_len <= OUTPUT);
    assert_int_equal(strlen(result->err_text), result->err_len);
    memcpy(a->out, result->out, result->out_len + 1);
    a->out_len = result->out_len;
    snprintf(a->err_text, sizeof(a->err_text), "%s", result->err_text);
}

static struct answer ask_with(const char *script, const int *fds, const char *input, int64_t timeout_ms)
{
    CLEANUP_ERROR struct error err = ERROR_INIT;
    const char *argv[] = {"sh", "-c", script, NULL};
    static struct answer a;

    memset(&a, 0, sizeof(a));
    a.tool = tool_run(loop, argv, fds, input, input != NULL ? strlen(input) : 0, timeout_ms, OUTPUT, on_done, &a, &err);
    assert_non_null(a.tool);
    loop_run(loop);
    assert_int_equal(a.calls, 1);
    tool_free(a.tool);
    return a;
}

static struct answer ask(const char *script)
{
    return ask_with(script, NULL, NULL, TOOL_MS);
}

static void test_tool(void **state)
{
    struct answer a = ask("echo out; echo err >&2; exit 3");

    (void)state;
    assert_string_equal(a.out, "out\n");
    assert_string_equal(a.err_text, "err\n");
    assert_int_equal(a.status.code, 3);
    assert_false(a.timed_out);
    a = ask_with("tr a-z A-Z", NULL, "shout", TOOL_MS);
    assert_string_equal(a.out, "SHOUT");
    a = ask("cat"); /* no input: empty, not our stdin */
    assert_int_equal(a.out_len, 0);
    a = ask_with("exit 4", NULL, "never read", TOOL_MS);
    assert_int_equal(a.status.code, 4);
    a = ask("head -c 65536 /dev/zero");
    assert_int_equal(a.out_len, OUTPUT);
    assert_int_equal(a.status.code, 0);
}

static void test_tool_limits(void **state)
{
    int64_t began = clock_mono_ms();
    struct answer a = ask_with("echo begun; exec sleep 100", NULL, NULL, 200);

    (void)state;
    assert_true(a.timed_out);
    assert_int_equal(a.status.signal, SIGKILL);
    assert_string_equal(a.out, "begun\n");
    a = ask("exec cat /dev/zero");
    assert_false(a.timed_out);
    assert_int_equal(a.status.signal, SIGKILL);
    assert_int_equal(a.out_len, OUTPUT);
    /* A grandchild that keeps the pipes open is waited for a second. */
    began = clock_mono_ms();
    a = ask("sleep 20 & echo $!");
    assert_int_equal(a.status.code, 0);
    int64_t took = clock_mono_ms() - began;
    assert_true(took >= 990 && took < 15000);
    assert_int_equal(kill((pid_t)atoi(a.out), SIGKILL), 0);
}

static void test_tool_free(void **state)
{
    CLEANUP_ERROR struct error err = ERROR_INIT;
    const char *slow[] = {"sleep", "100", NULL}, *quick[] = {"echo", "x", NULL};
    static struct answer a;

    (void)state;
    memset(&a, 0, sizeof(a));
    a.tool = tool_run(loop, slow, NULL, NULL, 0, TOOL_MS, OUTPUT, on_done, &a, &err);
    assert_non_null(a.tool);
    tool_free(a.tool);
    reap_down_to(0);
    assert_int_equal(a.calls, 0);
    a.free_in_done = true;
    a.tool = tool_run(loop, quick, NULL, NULL, 0, TOOL_MS, OUTPUT, on_done, &a, &err);
    loop_run(loop);
    assert_int_equal(a.calls, 1);
    assert_string_equal(a.out, "x\n");
    tool_free(NULL);
}

/* ---- what a child inherits ---- */

static void test_fds(void **state)
{
    int a[2], b[2], open_fd = open("/dev/zero", O_RDONLY); /* not close-on-exec: must not get through */

    (void)state;
    assert_true(open_fd >= 0);
    struct answer got = ask("ls /proc/self/fd"); /* 3 is ls's own */
    assert_string_equal(got.out, "0\n1\n2\n3\n");
    assert_int_equal(pipe2(a, O_CLOEXEC), 0);
    assert_int_equal(pipe2(b, O_CLOEXEC), 0);
    assert_int_equal(write(a[1], "A\n", 2), 2);
    assert_int_equal(write(b[1], "B\n", 2), 2);
    /* Sources that are each other's targets. */
    int three = fcntl(b[0], F_DUPFD, 3), four = fcntl(a[0], F_DUPFD, 3);
    const int straight[] = {a[0], b[0], -1}, crossed[] = {four > three ? four : three, four > three ? three : four, -1};
    got = ask_with("read x <&3; read y <&4; echo $x$y; ls /proc/self/fd | tr -d '\\n'", straight, NULL, TOOL_MS);
    assert_string_equal(got.out, "AB\n012345"); /* 5 is ls's own */
    assert_int_equal(write(a[1], "A\n", 2), 2);
    assert_int_equal(write(b[1], "B\n", 2), 2);
    got = ask_with("read x <&3; read y <&4; echo $x$y", crossed, NULL, TOOL_MS);
    assert_string_equal(got.out, four > three ? "AB\n" : "BA\n");
    const int all[] = {a[0], a[0], a[0], a[0]};
    got = ask_with("ls /proc/self/fd | tr -d '\\n'", all, NULL, TOOL_MS);
    assert_string_equal(got.out, "01234567"); /* 7 is ls's own */
    int fds[] = {a[0], a[1], b[0], b[1], three, four, open_fd};
    for (size_t i = 0; i < ARRAY_SIZE(fds); i++)
        close(fds[i]);
}

/* The child's 0, 1 and 2 come from our 2, 0 and 1, with a pipe in their places. */
static void test_colliding_standard_fds(void **state)
{
    CLEANUP_ERROR struct error err = ERROR_INIT;
    int saved[3], ends[2], extra[2];
    char text[16] = "";
    const char *argv[] = {"sh", "-c", "cat; echo e >&2", NULL};
    struct child_spec spec = spec_of(argv);
    struct end end = {0};

    (void)state;
    for (int i = 0; i < 3; i++)
        saved[i] = fcntl(i, F_DUPFD_CLOEXEC, 10);
    int rc = pipe2(ends, O_CLOEXEC) | pipe2(extra, O_CLOEXEC);
    rc |= write(extra[1], "i\n", 2) == 2 ? 0 : -1;
    dup2(ends[1], 0);  /* its stdout */
    dup2(ends[1], 1);  /* its stderr */
    dup2(extra[0], 2); /* its stdin */
    close(extra[1]);
    spec.stdin_fd = 2;
    spec.stdout_fd = 0;
    spec.stderr_fd = 1;
    struct child *c = child_spawn(loop, &spec, on_exited, &end, &err);
    for (int i = 0; i < 3; i++) {
        dup2(saved[i], i);
        close(saved[i]);
    }
    assert_int_equal(rc, 0);
    assert_non_null(c);
    loop_run(loop);
    child_free(c);
    assert_int_equal(end.status.code, 0);
    assert_int_equal(read(ends[0], text, sizeof(text) - 1), 4);
    assert_string_equal(text, "i\ne\n");
    close(ends[0]);
    close(ends[1]);
    close(extra[0]);
}

static void test_environment_and_limits(void **state)
{
    sigset_t block, before;
    const char *const env[] = {"ONLY=this", NULL};
    const char *argv[] = {"env", NULL};
    CLEANUP_ERROR struct error err = ERROR_INIT;
    int ends[2];
    char text[64] = "";

    (void)state;
    setenv("SECRET", "leaked", 1);
    setenv("TMPDIR", "/var/tmp", 1);
    struct answer a = ask("env | grep -v '^_=\\|^PWD=\\|^SHLVL=\\|^PATH=' | sort; ulimit -c");
    unsetenv("TMPDIR");
    unsetenv("SECRET");
    assert_string_equal(a.out, "HOME=/\nLANG=C.UTF-8\nTMPDIR=/var/tmp\n0\n");
    /* Blocked and ignored signals stay here. */
    sigemptyset(&block);
    sigaddset(&block, SIGUSR1);
    sigprocmask(SIG_BLOCK, &block, &before);
    signal(SIGPIPE, SIG_IGN);
    a = ask("grep -h 'SigBlk\\|SigIgn' /proc/self/status | tr -d '\\n\\t'");
    signal(SIGPIPE, SIG_DFL);
    sigprocmask(SIG_SETMASK, NULL, &block);
    assert_true(sigismember(&block, SIGUSR1));
    sigprocmask(SIG_SETMASK, &before, NULL);
    assert_string_equal(a.out, "SigBlk:0000000000000000SigIgn:0000000000000000");
    /* An environment of the caller's. */
    struct child_spec spec = spec_of(argv);
    struct end end = {0};
    assert_int_equal(pipe2(ends, O_CLOEXEC), 0);
    spec.env = env;
    spec.stdout_fd = ends[1];
    struct child *c = child_spawn(loop, &spec, on_exited, &end, &err);
    assert_non_null(c);
    close(ends[1]);
    loop_run(loop);
    child_free(c);
    assert_true(read(ends[0], text, sizeof(text) - 1) > 0);
    assert_string_equal(text, "ONLY=this\n");
    close(ends[0]);
}

/* ---- lives and deaths ---- */

static const char *const sleeper[] = {"sleep", "1000", NULL};

static void until_gone(pid_t pid)
{
    struct proc_id id;
    bool gone = false;

    for (int i = 0; i < 2000 && !gone; i++) {
        CLEANUP_ERROR struct error err = ERROR_INIT;
        gone = proc_identify(pid, &id, &err) != 0;
        nanosleep(&(struct timespec){.tv_nsec = 5000000}, NULL);
    }
    assert_true(gone);
}

/* Who dies with us, and who does not: a process in between spawns one of each and is killed. */
static void test_death_of_the_parent(void **state)
{
    int ends[2];
    pid_t pids[2] = {0, 0};

    (void)state;
    assert_int_equal(pipe2(ends, O_CLOEXEC), 0);
    pid_t between = fork();
    if (between == 0) {
        CLEANUP_ERROR struct error err = ERROR_INIT;
        struct loop *own = loop_new(&err);
        struct child_spec spec = spec_of(sleeper);
        struct child *bound = child_spawn(own, &spec, on_exited, NULL, &err);
        spec.detached = true;
        struct child *free_one = child_spawn(own, &spec, on_exited, NULL, &err);
        pid_t made[2] = {child_pid(bound), child_pid(free_one)};
        if (write(ends[1], made, sizeof(made)) == (ssize_t)sizeof(made))
            pause();
        _exit(1);
    }
    assert_int_equal(read(ends[0], pids, sizeof(pids)), sizeof(pids));
    assert_int_not_equal(getsid(pids[0]), pids[0]);
    assert_int_equal(getsid(pids[1]), pids[1]);
    kill(between, SIGKILL);
    assert_int_equal(waitpid(between, NULL, 0), between);
    until_gone(pids[0]);
    assert_int_equal(kill(pids[1], 0), 0);
    kill(pids[1], SIGKILL);
    until_gone(pids[1]);
    close(ends[0]);
    close(ends[1]);
}

static void test_freed_alive(void **state)
{
    CLEANUP_ERROR struct error err = ERROR_INIT;
    struct child_spec spec = spec_of(sleeper);
    struct end end = {0};

    (void)state;
    struct child *c = child_spawn(loop, &spec, on_exited, &end, &err);
    struct child *d = child_spawn(loop, &spec, on_exited, &end, &err);
    struct child *e = child_spawn(loop, &spec, on_exited, &end, &err);
    assert_true(c != NULL && d != NULL && e != NULL);
    pid_t pids[] = {child_pid(c), child_pid(d), child_pid(e)};
    child_free(d);
    child_free(c);
    child_free(e);
    child_free(NULL);
    loop_run(loop); /* does not wait for them */
    kill(pids[0], SIGKILL);
    kill(pids[1], SIGKILL);
    reap_down_to(1);
    assert_int_equal(kill(pids[0], 0), -1); /* reaped, not only dead */
    assert_int_equal(kill(pids[1], 0), -1);
    assert_int_equal(end.calls, 0);
    assert_int_equal(kill(pids[2], 0), 0);
    assert_int_equal(loop_free(loop), 0); /* the third is dropped */
    kill(pids[2], SIGKILL);
    assert_int_equal(waitpid(pids[2], NULL, 0), pids[2]);
    loop = loop_new(&err);
}

static void test_many_at_once(void **state)
{
    CLEANUP_ERROR struct error err = ERROR_INIT;
    const char *argv[] = {"true", NULL};
    struct child_spec spec = spec_of(argv);
    struct child *children[60];
    struct end end = {0};

    (void)state;
    for (size_t i = 0; i < ARRAY_SIZE(children); i++)
        assert_non_null(children[i] = child_spawn(loop, &spec, on_exited, &end, &err));
    loop_run(loop);
    assert_int_equal(end.calls, ARRAY_SIZE(children));
    for (size_t i = 0; i < ARRAY_SIZE(children); i++)
        child_free(children[i]);
}

/* ---- other processes ---- */

struct sighting {
    pid_t pid;
    int seen;
};

static void on_process(void *arg, pid_t pid, const char *cmdline, size_t len)
{
    struct sighting *s = arg;

    if (pid == s->pid) {
        s->seen++;
        assert_int_equal(len, sizeof("sleep\0001000"));
        assert_memory_equal(cmdline, "sleep\0001000", len);
    }
}

static void test_watch(void **state)
{
    CLEANUP_ERROR struct error err = ERROR_INIT;
    struct child_spec spec = spec_of(sleeper);
    struct end child_end = {0}, end = {0};
    struct proc_id id, other;
    char boot[37];

    (void)state;
    struct child *c = child_spawn(loop, &spec, on_exited, &child_end, &err);
    assert_non_null(c);
    assert_int_equal(proc_identify(child_pid(c), &id, &err), 0);
    assert_int_equal(id.pid, child_pid(c));
    assert_true(id.start_ticks > 0);
    assert_int_equal(strlen(id.boot_id), 36);
    proc_boot_id(boot);
    assert_string_equal(boot, id.boot_id);
    assert_true(proc_is(&id));
    struct sighting s = {.pid = id.pid};
    const char *base = strrchr(id.exe, '/');
    assert_non_null(base);
    proc_each(base + 1, on_process, &s);
    assert_int_equal(s.seen, 1);
    proc_each("no-such-executable", on_process, &s);
    assert_int_equal(s.seen, 1);
    /* Any difference is another process. */
    other = id;
    other.start_ticks++;
    assert_false(proc_is(&other));
    assert_null(proc_watch_new(loop, &other, on_exited, &end, &err));
    assert_int_equal(err.code, ERR_IO);
    error_done(&err);
    other = id;
    other.boot_id[0] = other.boot_id[0] == '0' ? '1' : '0';
    assert_false(proc_is(&other));
    other = id;
    strcpy(other.exe, "/bin/other");
    assert_false(proc_is(&other));
    struct proc_watch *w = proc_watch_new(loop, &id, on_exited, &end, &err);
    struct proc_watch *silent = proc_watch_new(loop, &id, on_exited, NULL, &err);
    assert_true(w != NULL && silent != NULL);
    loop_run_once(loop, false);
    assert_int_equal(end.calls, 0);
    proc_watch_free(silent);
    proc_watch_free(NULL);
    assert_int_equal(proc_watch_signal(w, SIGKILL), 0);
    loop_run(loop);
    assert_int_equal(end.calls, 1);
    assert_false(end.status.known);
    assert_int_equal(child_end.status.signal, SIGKILL);
    assert_int_equal(proc_watch_signal(w, SIGKILL), -1);
    assert_int_equal(errno, ESRCH);
    assert_false(proc_is(&id));
    assert_null(proc_watch_new(loop, &id, on_exited, &end, &err));
    proc_watch_free(w);
    child_free(c);
}

/* While no more files can be opened there is no pidfd: the watch looks from time to time, and tells the end all the same. */
static void test_watch_without_a_pidfd(void **state)
{
    CLEANUP_ERROR struct error err = ERROR_INIT;
    const char *argv[] = {"sleep", "1000", NULL};
    struct child_spec spec = spec_of(argv);
    struct end child_end = {0}, end = {0}, silent_end = {0};
    struct rlimit before, none;
    struct proc_id id;

    (void)state;
    struct child *c = child_spawn(loop, &spec, on_exited, &child_end, &err);
    assert_non_null(c);
    assert_int_equal(proc_identify(child_pid(c), &id, &err), 0);
    assert_int_equal(getrlimit(RLIMIT_NOFILE, &before), 0);
    none = before;
    none.rlim_cur = 3;
    assert_int_equal(setrlimit(RLIMIT_NOFILE, &none), 0);
    struct proc_watch *w = proc_watch_new(loop, &id, on_exited, &end, &err);
    struct proc_watch *silent = proc_watch_new(loop, &id, on_exited, &silent_end, &err);
    int refused = w != NULL ? proc_watch_signal(w, SIGKILL) : 0, why = errno;
    assert_int_equal(setrlimit(RLIMIT_NOFILE, &before), 0);
    assert_true(w != NULL && silent != NULL);
    assert_int_equal(refused, -1);
    assert_int_equal(why, EMFILE);
    proc_watch_free(silent);
    assert_int_equal(proc_watch_signal(w, SIGKILL), 0); /* there is one to be had again */
    loop_run(loop);
    assert_int_equal(end.calls, 1);
    assert_int_equal(silent_end.calls, 0);
    proc_watch_free(w);
    child_free(c);
}

/* And when there is none until it has ended. */
static void test_end_is_seen_without_a_pidfd(void **state)
{
    CLEANUP_ERROR struct error err = ERROR_INIT;
    const char *argv[] = {"sleep", "1000", NULL};
    struct child_spec spec = spec_of(argv);
    struct end child_end = {0}, end = {0};
    struct rlimit before, none;
    struct proc_id id;

    (void)state;
    struct child *c = child_spawn(loop, &spec, on_exited, &child_end, &err);
    assert_non_null(c);
    assert_int_equal(proc_identify(child_pid(c), &id, &err), 0);
    assert_int_equal(getrlimit(RLIMIT_NOFILE, &before), 0);
    none = before;
    none.rlim_cur = 3;
    assert_int_equal(setrlimit(RLIMIT_NOFILE, &none), 0);
    struct proc_watch *w = proc_watch_new(loop, &id, on_exited, &end, &err);
    assert_int_equal(setrlimit(RLIMIT_NOFILE, &before), 0);
    assert_non_null(w);
    assert_int_equal(child_signal(c, SIGKILL), 0);
    loop_run(loop);
    assert_int_equal(end.calls, 1);
    assert_false(end.status.known);
    proc_watch_free(w);
    child_free(c);
}

static void test_zombie_is_nobody(void **state)
{
    CLEANUP_ERROR struct error err = ERROR_INIT;
    struct proc_id id;
    siginfo_t info;
    pid_t pid = fork();

    (void)state;
    if (pid == 0)
        _exit(0);
    assert_int_equal(waitid(P_PID, (id_t)pid, &info, WEXITED | WNOWAIT), 0);
    assert_int_equal(proc_identify(pid, &id, &err), -1);
    assert_int_equal(err.code, ERR_IO);
    assert_int_equal(waitpid(pid, NULL, 0), pid);
}

/* An executable's name with spaces and brackets does not confuse the parser, and a removed one keeps its identity. */
static void test_odd_executable(void **state)
{
    CLEANUP_ERROR struct error err = ERROR_INIT;
    char dir[] = "/tmp/test_child_XXXXXX", path[64], copy[96];
    struct end end = {0};
    struct proc_id id;

    (void)state;
    assert_non_null(mkdtemp(dir));
    snprintf(path, sizeof(path), "%s/a) R (b", dir);
    snprintf(copy, sizeof(copy), "cp \"$(command -v sleep)\" '%s'", path);
    assert_int_equal(ask(copy).status.code, 0);
    const char *argv[] = {path, "1000", NULL};
    struct child_spec spec = spec_of(argv);
    struct child *c = child_spawn(loop, &spec, on_exited, &end, &err);
    assert_non_null(c);
    assert_int_equal(proc_identify(child_pid(c), &id, &err), 0);
    assert_string_equal(id.exe, path);
    unlink(path);
    rmdir(dir);
    assert_true(proc_is(&id));
    assert_int_equal(child_signal(c, SIGTERM), 0);
    loop_run(loop);
    assert_int_equal(end.status.signal, SIGTERM);
    child_free(c);
}

static int open_fds(void)
{
    int n = 0;

    for (int fd = 0; fd < 256; fd++)
        n += fcntl(fd, F_GETFD) >= 0;
    return n;
}

static void test_allocation_sweep(void **state)
{
    const char *argv[] = {"echo", "hello", NULL};
    unsigned refused = 0;

    (void)state;
    int before = open_fds();
    for (size_t nth = 1; nth <= 20; nth++) {
        CLEANUP_ERROR struct error err = ERROR_INIT;
        static struct answer a;
        memset(&a, 0, sizeof(a));
        mem_fail_nth(nth);
        a.tool = tool_run(loop, argv, NULL, "in", 2, TOOL_MS, OUTPUT, on_done, &a, &err);
        loop_run(loop);
        mem_fail_nth(0);
        assert_int_equal(a.calls, a.tool != NULL);
        assert_int_equal(error_is_set(&err), a.tool == NULL);
        refused += a.tool == NULL;
        tool_free(a.tool);
        reap_down_to(0);
        assert_int_equal(open_fds(), before);
    }
    assert_true(refused >= 6 && refused < 15);
}

#define TEST(f) cmocka_unit_test_setup_teardown(f, open_loop, close_loop)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_exit_codes_and_signals),
        TEST(test_refused_programs),
        TEST(test_tool),
        TEST(test_tool_limits),
        TEST(test_tool_free),
        TEST(test_fds),
        TEST(test_colliding_standard_fds),
        TEST(test_environment_and_limits),
        TEST(test_death_of_the_parent),
        TEST(test_freed_alive),
        TEST(test_many_at_once),
        TEST(test_watch),
        TEST(test_watch_without_a_pidfd),
        TEST(test_end_is_seen_without_a_pidfd),
        TEST(test_zombie_is_nobody),
        TEST(test_odd_executable),
        TEST(test_allocation_sweep),
    };

    int pidfd = pidfd_open(getpid(), 0);
    if (pidfd < 0 && errno == ENOSYS) { /* valgrind 3.19 does not know the call; everything here stands on it */
        fprintf(stderr, "test_child: SKIPPED, there is no pidfd_open here\n");
        return 0;
    }
    close(pidfd);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
