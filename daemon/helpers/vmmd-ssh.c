/* vmmd-ssh - speaks SSH to one guest for vmmd: commands and files.  The guest's sshd is hostile.
 *
 *     vmmd-ssh DIR 3<>CONTROL 4<KEY     serves sessions until the control socket closes or nobody has needed it for a minute
 *     vmmd-ssh --keygen                 prints a new Ed25519 key pair: private key, empty line, public key
 *
 * Happy path: the key is read, every privilege dropped, and each session that comes over the control socket is given to a
 * worker, a thread with a connection of its own.  DIR is there for people who look at processes.
 * Failures are told to the session they concern.  When vmmd dies its sockets close: the commands are killed in the guest, and
 * the helper ends after STOP_S at the latest. */
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <jansson.h>
#include <libssh/callbacks.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "base/fd.h"
#include "base/mem.h"
#include "helpers/cage/cage.h" /* SANITIZED, and no leak check then */
#include "helpers/ssh/ssh.h"

#ifndef SANITIZED
#include <seccomp.h>
#endif

enum { NOBODY = 65534, KEY_MAX = 65536, STOP_S = 6, STACK_SIZE = 512 << 10, CONTROL_MAX = 8192, SWEEP_MS = 1000 };

struct helper helper = {.lock = PTHREAD_MUTEX_INITIALIZER, .single = PTHREAD_MUTEX_INITIALIZER};
static struct worker exec_workers[EXEC_WORKERS_MAX];
static struct worker file_workers[FILE_WORKERS_MAX];
static unsigned exec_cap = EXEC_CHANNELS_MAX;
/* Transfers that found every worker at work: one that has ended for its client may still be at its end in the guest. */
static struct {
    int fd;
    int64_t since;
} waiting[FILES_WAITING_MAX];
static unsigned n_waiting;

int64_t now_ms(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (int64_t)ts.tv_sec * 1000 + ts.tv_nsec / 1000000;
}

void control_send(char what, const char *text)
{
    char message[2100];
    int n = snprintf(message, sizeof(message), "%c%s", what, text);

    if (n > 0 && n < (int)sizeof(message))
        send(CONTROL_FD, message, (size_t)n, MSG_DONTWAIT | MSG_NOSIGNAL);
}

/* --- key pairs --- */

static int keygen(void)
{
    ssh_key key = NULL;
    char *private_key = NULL, *public_key = NULL;
    int rc = 1;

    if (ssh_pki_generate(SSH_KEYTYPE_ED25519, 0, &key) == SSH_OK &&
        ssh_pki_export_privkey_base64(key, NULL, NULL, NULL, &private_key) == SSH_OK &&
        ssh_pki_export_pubkey_base64(key, &public_key) == SSH_OK)
        rc = printf("%s\nssh-ed25519 %s\n", private_key, public_key) < 0 || fflush(stdout) != 0;
    if (private_key != NULL)
        explicit_bzero(private_key, strlen(private_key));
    ssh_string_free_char(private_key);
    ssh_string_free_char(public_key);
    ssh_key_free(key);
    return rc;
}

static int read_key(void)
{
    char *text = mem_alloc(KEY_MAX + 1);
    size_t len = 0;
    ssize_t n = 1;

    while (text != NULL && len < KEY_MAX && (n = read(KEY_FD, text + len, KEY_MAX - len)) > 0)
        len += (size_t)n;
    close(KEY_FD);
    if (text == NULL || n < 0)
        return -1;
    text[len] = '\0';
    int rc = ssh_pki_import_privkey_base64(text, NULL, NULL, NULL, &helper.key);
    explicit_bzero(text, len);
    mem_free(text);
    return rc == SSH_OK ? 0 : -1;
}

/* --- workers --- */

bool worker_take(struct worker *w, struct given *ret)
{
    pthread_mutex_lock(&helper.lock);
    bool any = w->n_incoming > 0;
    if (any) {
        *ret = w->incoming[0];
        memmove(w->incoming, w->incoming + 1, --w->n_incoming * sizeof(w->incoming[0]));
    }
    pthread_mutex_unlock(&helper.lock);
    return any;
}

void worker_cap(struct worker *w, unsigned channels)
{
    unsigned cap = channels > 1 ? channels - 1 : 1; /* one for kills */

    pthread_mutex_lock(&helper.lock);
    w->cap = cap;
    if (channels > 1 && cap < exec_cap)
        exec_cap = cap;
    for (unsigned i = 0; i < EXEC_WORKERS_MAX; i++)
        if (exec_workers[i].used && exec_workers[i].cap > exec_cap)
            exec_workers[i].cap = exec_cap;
    pthread_mutex_unlock(&helper.lock);
}

void worker_alone(struct worker *w)
{
    w->alone = true;
    pthread_mutex_lock(&helper.lock);
    exec_cap = 1;
    for (unsigned i = 0; i < EXEC_WORKERS_MAX; i++)
        exec_workers[i].cap = 1;
    pthread_mutex_unlock(&helper.lock);
}

void worker_ready(struct worker *w, bool ready)
{
    pthread_mutex_lock(&helper.lock);
    w->ready = ready;
    w->broken |= !ready;
    pthread_mutex_unlock(&helper.lock);
}

/* The oldest of those that wait for a file worker; -1: none does.  With the lock held. */
static int waiting_take(void)
{
    int fd = n_waiting > 0 ? waiting[0].fd : -1;

    if (fd >= 0)
        memmove(waiting, waiting + 1, --n_waiting * sizeof(waiting[0]));
    return fd;
}

void worker_ended(struct worker *w)
{
    bool files = w >= file_workers && w < file_workers + FILE_WORKERS_MAX;

    pthread_mutex_lock(&helper.lock);
    w->busy--;
    w->idle_since = now_ms();
    int fd = files && !w->broken && w->n_incoming == 0 ? waiting_take() : -1;
    if (fd >= 0) {
        w->incoming[w->n_incoming++] = (struct given){.fd = fd};
        w->busy++;
    }
    pthread_mutex_unlock(&helper.lock);
}

bool worker_retire(struct worker *w)
{
    pthread_mutex_lock(&helper.lock);
    bool over = w->busy == 0 && (helper.stopping || now_ms() - w->idle_since > IDLE_MS);
    if (over)
        w->broken = true;
    pthread_mutex_unlock(&helper.lock);
    return over;
}

/* Joins the threads that have returned; with the lock held. */
static unsigned reap(struct worker *workers, unsigned n)
{
    unsigned alive = 0;

    for (unsigned i = 0; i < n; i++) {
        struct worker *w = &workers[i];
        if (w->used && w->over) {
            pthread_join(w->thread, NULL);
            close(w->wake[0]);
            close(w->wake[1]);
            *w = (struct worker){.used = false};
        }
        alive += w->used;
    }
    return alive;
}

static bool worker_start(struct worker *w, void *(*run)(void *), unsigned cap)
{
    pthread_attr_t attr;

    *w = (struct worker){.cap = cap, .idle_since = now_ms()};
    if (pipe2(w->wake, O_CLOEXEC | O_NONBLOCK) < 0)
        return false;
    pthread_attr_init(&attr);
    pthread_attr_setstacksize(&attr, STACK_SIZE);
    w->used = pthread_create(&w->thread, &attr, run, w) == 0;
    pthread_attr_destroy(&attr);
    if (!w->used) {
        close(w->wake[0]);
        close(w->wake[1]);
    }
    return w->used;
}

static bool give(struct worker *w, unsigned cap, struct given what)
{
    if (!w->used || w->broken || w->busy >= cap || w->n_incoming >= SESSIONS_MAX)
        return false;
    w->incoming[w->n_incoming++] = what;
    w->busy++;
    return write(w->wake[1], "", 1) == 1 || errno == EAGAIN; /* full: it wakes */
}

/* With the lock held. */
static bool give_exec(const struct worker *from, struct given what, bool to_wait)
{
    struct worker *best = NULL;
    bool given = false;

    reap(exec_workers, EXEC_WORKERS_MAX);
    for (unsigned i = 0; i < EXEC_WORKERS_MAX && !given; i++)
        given = &exec_workers[i] != from && give(&exec_workers[i], exec_workers[i].cap, what);
    for (unsigned i = 0; i < EXEC_WORKERS_MAX && !given; i++)
        if (!exec_workers[i].used && worker_start(&exec_workers[i], exec_worker, exec_cap))
            given = give(&exec_workers[i], exec_cap, what);
    for (unsigned i = 0; i < EXEC_WORKERS_MAX && !given && to_wait; i++) {
        struct worker *w = &exec_workers[i];
        if (w != from && w->used && w->ready && !w->broken && (best == NULL || w->busy < best->busy))
            best = w;
    }
    return given || (best != NULL && give(best, SESSIONS_MAX, what));
}

static bool give_files(struct given what)
{
    bool given = false;

    reap(file_workers, FILE_WORKERS_MAX);
    for (unsigned i = 0; i < FILE_WORKERS_MAX && !given; i++)
        given = give(&file_workers[i], file_workers[i].cap, what);
    for (unsigned i = 0; i < FILE_WORKERS_MAX && !given; i++)
        if (!file_workers[i].used && worker_start(&file_workers[i], files_worker, 1))
            given = give(&file_workers[i], 1, what);
    return given;
}

bool worker_pass_on(struct worker *from, struct session *s, bool to_wait)
{
    pthread_mutex_lock(&helper.lock);
    bool given = !helper.stopping && give_exec(from, (struct given){.fd = -1, .session = s}, to_wait);
    if (given) {
        from->busy--;
        from->idle_since = now_ms();
    }
    pthread_mutex_unlock(&helper.lock);
    return given;
}

static void refuse(int fd)
{
    CLEANUP_BUF struct buf out = BUF_INIT(1024);

    end_error(&out, "busy", "every connection of this VM is in use");
    send(fd, out.data, out.len, MSG_DONTWAIT | MSG_NOSIGNAL);
    close(fd);
}

static void assign(char kind, int fd)
{
    pthread_mutex_lock(&helper.lock);
    bool given = kind == 'x' ? give_exec(NULL, (struct given){.fd = fd}, true) : give_files((struct given){.fd = fd});
    if (!given && kind == 'f' && n_waiting < FILES_WAITING_MAX) {
        waiting[n_waiting].fd = fd;
        waiting[n_waiting++].since = now_ms();
        given = true;
    }
    pthread_mutex_unlock(&helper.lock);
    if (!given)
        refuse(fd);
}

/* Those that have waited for long are refused; the others get what is free, a worker that returned among it. */
static void sweep_waiting(void)
{
    int late = -1;

    do {
        pthread_mutex_lock(&helper.lock);
        late = n_waiting > 0 && now_ms() - waiting[0].since > FILES_WAIT_MS ? waiting_take() : -1;
        if (late < 0 && n_waiting > 0 && give_files((struct given){.fd = waiting[0].fd}))
            waiting_take();
        pthread_mutex_unlock(&helper.lock);
        if (late >= 0)
            refuse(late);
    } while (late >= 0);
}

static void wake_all(struct worker *workers, unsigned n)
{
    for (unsigned i = 0; i < n; i++)
        if (workers[i].used && write(workers[i].wake[1], "", 1) < 0 && errno != EAGAIN)
            continue;
}

static unsigned alive(void)
{
    pthread_mutex_lock(&helper.lock);
    unsigned n = reap(exec_workers, EXEC_WORKERS_MAX) + reap(file_workers, FILE_WORKERS_MAX);
    pthread_mutex_unlock(&helper.lock);
    return n;
}

static unsigned commands(void)
{
    pthread_mutex_lock(&helper.lock);
    unsigned n = helper.commands;
    pthread_mutex_unlock(&helper.lock);
    return n;
}

/* --- control --- */

/* A message and the socket that came with it; the length, 0 at the end. */
static ssize_t control_receive(char *out, size_t size, int *ret_fd)
{
    union {
        char bytes[CMSG_SPACE(sizeof(int))];
        struct cmsghdr align;
    } control;
    struct iovec iov = {.iov_base = out, .iov_len = size - 1};
    struct msghdr msg = {
        .msg_iov = &iov, .msg_iovlen = 1, .msg_control = control.bytes, .msg_controllen = sizeof(control.bytes)};
    ssize_t n;

    *ret_fd = -1;
    do
        n = recvmsg(CONTROL_FD, &msg, MSG_CMSG_CLOEXEC);
    while (n < 0 && errno == EINTR);
    if (n < 0)
        return 0;
    struct cmsghdr *c = CMSG_FIRSTHDR(&msg);
    if (c != NULL && c->cmsg_level == SOL_SOCKET && c->cmsg_type == SCM_RIGHTS)
        memcpy(ret_fd, CMSG_DATA(c), sizeof(int));
    out[n] = '\0';
    return n;
}

static int read_config(void)
{
    char text[CONTROL_MAX];
    const char *user = NULL, *host = NULL, *host_key = "";
    int fd, rc;
    ssize_t n = control_receive(text, sizeof(text), &fd);
    json_t *config = n > 0 ? json_loadb(text, (size_t)n, JSON_REJECT_DUPLICATES, NULL) : NULL;

    rc = json_unpack(config, "{s:s, s:s, s:i, s?s}", "user", &user, "host", &host, "port", &helper.port, "host_key",
                     &host_key);
    if (rc == 0) {
        snprintf(helper.user, sizeof(helper.user), "%s", user);
        snprintf(helper.host, sizeof(helper.host), "%s", host);
        snprintf(helper.host_key, sizeof(helper.host_key), "%s", host_key);
    }
    json_decref(config);
    return rc;
}

/* Serves until the control socket closes, or nobody needs it any more. */
static void serve(void)
{
    int64_t idle_since = now_ms();
    char message[CONTROL_MAX];

    while (alive() > 0 || now_ms() - idle_since < IDLE_MS) {
        struct pollfd p = {.fd = CONTROL_FD, .events = POLLIN};
        int fd;
        int n = poll(&p, 1, SWEEP_MS);

        sweep_waiting();
        if (n <= 0)
            continue;
        if (control_receive(message, sizeof(message), &fd) == 0)
            return;
        idle_since = now_ms();
        if (fd >= 0 && (message[0] == 'x' || message[0] == 'f'))
            assign(message[0], fd);
        else
            fd_close(fd);
    }
}

#ifndef SANITIZED
static const int allowed[] = {SCMP_SYS(read),
                              SCMP_SYS(write),
                              SCMP_SYS(readv),
                              SCMP_SYS(writev),
                              SCMP_SYS(close),
                              SCMP_SYS(poll),
                              SCMP_SYS(ppoll),
                              SCMP_SYS(socket),
                              SCMP_SYS(connect),
                              SCMP_SYS(getsockopt),
                              SCMP_SYS(setsockopt),
                              SCMP_SYS(getsockname),
                              SCMP_SYS(getpeername),
                              SCMP_SYS(recvfrom),
                              SCMP_SYS(sendto),
                              SCMP_SYS(recvmsg),
                              SCMP_SYS(sendmsg),
                              SCMP_SYS(shutdown),
                              SCMP_SYS(fcntl),
                              SCMP_SYS(ioctl),
                              SCMP_SYS(pipe2),
                              SCMP_SYS(brk),
                              SCMP_SYS(mmap),
                              SCMP_SYS(munmap),
                              SCMP_SYS(mremap),
                              SCMP_SYS(mprotect),
                              SCMP_SYS(madvise),
                              SCMP_SYS(futex),
                              SCMP_SYS(clone),
                              SCMP_SYS(clone3),
                              SCMP_SYS(set_robust_list),
                              SCMP_SYS(rseq),
                              SCMP_SYS(rt_sigprocmask),
                              SCMP_SYS(rt_sigreturn),
                              SCMP_SYS(rt_sigaction),
                              SCMP_SYS(sched_yield),
                              SCMP_SYS(sched_getaffinity),
                              SCMP_SYS(getrandom),
                              SCMP_SYS(clock_gettime),
                              SCMP_SYS(clock_nanosleep),
                              SCMP_SYS(nanosleep),
                              SCMP_SYS(gettimeofday),
                              SCMP_SYS(time),
                              SCMP_SYS(getpid),
                              SCMP_SYS(gettid),
                              SCMP_SYS(getuid),
                              SCMP_SYS(geteuid),
                              SCMP_SYS(getgid),
                              SCMP_SYS(getegid),
                              SCMP_SYS(uname),
                              SCMP_SYS(sysinfo),
                              SCMP_SYS(fstat),
                              SCMP_SYS(newfstatat),
                              SCMP_SYS(lseek),
                              SCMP_SYS(prctl),
                              SCMP_SYS(exit),
                              SCMP_SYS(exit_group)};
/* Libraries try, and do without. */
static const int refused[] = {SCMP_SYS(open),      SCMP_SYS(openat),      SCMP_SYS(access),   SCMP_SYS(faccessat),
                              SCMP_SYS(stat),      SCMP_SYS(statx),       SCMP_SYS(readlink), SCMP_SYS(getcwd),
                              SCMP_SYS(prlimit64), SCMP_SYS(sigaltstack), SCMP_SYS(tgkill)};
#endif

/* From here on: the network, the sockets it is given, memory and threads; it opens no file and starts no program. */
static int confine(void)
{
    const struct rlimit none = {0, 0}, files = {1024, 1024};

    /* In a user namespace nobody may have no id; the rest of the confinement holds there. */
    if (geteuid() == 0 &&
        (setgroups(0, NULL) || setresgid(NOBODY, NOBODY, NOBODY) || setresuid(NOBODY, NOBODY, NOBODY)) &&
        errno != EINVAL && errno != EPERM)
        return -1;
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) || prctl(PR_SET_DUMPABLE, 0, 0, 0, 0))
        return -1;
    if (setrlimit(RLIMIT_CORE, &none) || setrlimit(RLIMIT_FSIZE, &none) || setrlimit(RLIMIT_NOFILE, &files))
        return -1;
#ifndef SANITIZED
    const struct rlimit memory = {2UL << 30, 2UL << 30};
    scmp_filter_ctx ctx = seccomp_init(SCMP_ACT_KILL_PROCESS);
    int rc = ctx ? 0 : -1;

    for (size_t i = 0; rc == 0 && i < ARRAY_SIZE(allowed); i++)
        rc = seccomp_rule_add(ctx, SCMP_ACT_ALLOW, allowed[i], 0);
    for (size_t i = 0; rc == 0 && i < ARRAY_SIZE(refused); i++)
        rc = seccomp_rule_add(ctx, SCMP_ACT_ERRNO(EACCES), refused[i], 0);
    if (rc == 0)
        rc = setrlimit(RLIMIT_AS, &memory);
    if (rc == 0)
        rc = seccomp_load(ctx);
    seccomp_release(ctx);
    if (rc)
        return -1;
#endif
    return 0;
}

int main(int argc, char **argv)
{
    if (argc == 2 && strcmp(argv[1], "--keygen") == 0)
        return ssh_init() != SSH_OK || keygen();
    if (argc != 2 || argv[1][0] != '/') {
        fprintf(stderr, "usage: vmmd-ssh DIR 3<>CONTROL 4<KEY | --keygen\n");
        return 2;
    }
    prctl(PR_SET_PDEATHSIG, 0, 0, 0, 0); /* vmmd's end is seen at the socket, and commands are to be killed then */
    signal(SIGPIPE, SIG_IGN);
    bool key = ssh_init() == SSH_OK && read_key() == 0;
    if (confine() < 0) {
        fprintf(stderr, "vmmd-ssh: cannot confine itself: %s\n", strerror(errno));
        return 1;
    }
    if (!key) {
        control_send('K', "the private key cannot be read: it is no unencrypted key of a known kind");
        return 1;
    }
    if (read_config() < 0 || sem_init(&helper.connecting, 0, CONNECTING_MAX) < 0)
        return 1;
    serve();
    pthread_mutex_lock(&helper.lock);
    helper.stopping = true;
    wake_all(exec_workers, EXEC_WORKERS_MAX);
    wake_all(file_workers, FILE_WORKERS_MAX);
    pthread_mutex_unlock(&helper.lock);
    for (int64_t end = now_ms() + STOP_S * 1000; commands() > 0 && now_ms() < end;)
        poll(NULL, 0, 20);
    _exit(0);
}
