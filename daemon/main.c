/* main.c - vmmd: flags, config, signals, wiring.  The only file that knows every module.
 *
 *   flags and config ─► directories, lock ─► store ─► backends (probed) ─► core (recovered) ─► http (serving) ─► READY=1
 *   SIGTERM, SIGINT: STOPPING=1, no new connections or changes, what is under way ends or is parked, guests run on, exit 0
 *   SIGHUP: the config is read again; log_level, log_format and the token take effect */
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "backend/noop/noop.h"
#include "backend/qemu/qemu.h"
#include "base/clock.h"
#include "base/fd.h"
#include "base/limit.h"
#include "base/log.h"
#include "base/mem.h"
#include "config.h"
#include "core/core.h"
#include "http/http.h"
#include "loop/loop.h"
#include "loop/timer.h"
#include "notify.h"
#include "rest/rest.h"
#include "store/store.h"

enum { EXIT_USAGE = 2, LOCK_TRIES = 20, LOCK_WAIT_US = 50000, STAY_MS = 3600000, FEW_FILES = 1024 };

struct daemon {
    struct config config;
    int lock_fd;
    struct loop *loop;
    struct loop_waker *waker;
    struct store *store;
    struct backend *backends[3];
    struct core *core;
    struct http_server *server;
    char *token;
    struct rest rest;
    struct loop_signal *signals[3];
    struct timer *watchdog;
    struct timer *alive; /* the loop goes on while it waits for the store alone */
    bool stopping, core_stopped, server_drained;
    int status;
    char helper_dir[PATH_MAX];
};

static const char usage_text[] =
    "usage: vmmd [--config FILE] [--data-dir DIR] [--runtime-dir DIR] [--socket PATH]\n"
    "            [--listen ADDR:PORT]... [--no-auth] [--log-level error|warn|info|debug] [--check]\n"
    "            [--help] [--version]\n"
    "\n"
    "  --config FILE       read FILE (key = value) in place of the default config\n"
    "  --data-dir DIR      VMs and the database (root: /var/lib/vmmd)\n"
    "  --runtime-dir DIR   sockets (root: /run/vmmd)\n"
    "  --socket PATH       the Unix socket of the API (default: vmmd.sock in the runtime directory)\n"
    "  --listen ADDR:PORT  serve TCP as well; wants token_file in the config, or --no-auth on loopback\n"
    "  --no-auth           no token on loopback TCP listeners\n"
    "  --log-level LEVEL   what goes to stderr (default: info)\n"
    "  --check             verify the database, print what is wrong, and end\n"
    "\n"
    "vmmd stays in the foreground.  The socket answers as soon as it is ready; `vmctl version` tells.\n";

/* --- flags --- */

static const struct option options[] = {
    {"config", required_argument, NULL, 'c'},
    {"data-dir", required_argument, NULL, 'd'},
    {"runtime-dir", required_argument, NULL, 'r'},
    {"socket", required_argument, NULL, 's'},
    {"listen", required_argument, NULL, 'l'},
    {"no-auth", no_argument, NULL, 'n'},
    {"log-level", required_argument, NULL, 'L'},
    {"check", no_argument, NULL, 'C'},
    {"help", no_argument, NULL, 'h'},
    {"version", no_argument, NULL, 'v'},
    {0},
};

struct flag_list {
    const char *keys[32];
    char *values[32];
    size_t n;
    const char *config_path;
    bool check;
};

/* A path on the command line may be relative; in the config it may not. */
static char *absolute(const char *path)
{
    char cwd[PATH_MAX];

    if (path[0] == '/' || path[0] == '\0' || getcwd(cwd, sizeof(cwd)) == NULL)
        return mem_strdup(path);
    return mem_printf("%s/%s", cwd, path);
}

static int parse_flags(int argc, char **argv, struct flag_list *flags)
{
    static const struct {
        int opt;
        const char *key;
    } keys[] = {{'d', "data_dir"}, {'r', "runtime_dir"}, {'s', "socket"},
                {'l', "listen"},   {'n', "no_auth"},     {'L', "log_level"}};
    int opt;

    while ((opt = getopt_long(argc, argv, "h", options, NULL)) != -1) {
        if (opt == 'h' || opt == 'v') {
            fputs(opt == 'h' ? usage_text : "vmmd " VMMD_VERSION "\n", stdout);
            exit(fflush(stdout) == 0 ? 0 : 1);
        }
        if (opt == '?')
            return -1;
        if (opt == 'c')
            flags->config_path = optarg;
        else if (opt == 'C')
            flags->check = true;
        for (size_t i = 0; i < ARRAY_SIZE(keys); i++) {
            if (keys[i].opt != opt || flags->n == ARRAY_SIZE(flags->keys))
                continue;
            flags->keys[flags->n] = keys[i].key;
            flags->values[flags->n++] = opt == 'n'                   ? mem_strdup("yes")
                                        : strchr("drs", opt) != NULL ? absolute(optarg)
                                                                     : mem_strdup(optarg);
        }
    }
    if (optind < argc) {
        fprintf(stderr, "vmmd: unexpected argument \"%s\"\n", argv[optind]);
        return -1;
    }
    return 0;
}

static int build_config(struct config *config, const struct flag_list *flags, struct error *err)
{
    CLEANUP_FREE char *fallback = flags->config_path == NULL ? config_default_path() : NULL;
    const char *path = flags->config_path != NULL ? flags->config_path : fallback;

    config_defaults(config);
    if (path != NULL && config_load(config, path, err) < 0)
        return -1;
    for (size_t i = 0; i < flags->n; i++)
        if (flags->values[i] == NULL || config_set(config, flags->keys[i], flags->values[i], "command line", err) < 0)
            return -1;
    return config_finish(config, err);
}

static void complain(const struct error *err)
{
    fprintf(stderr, "vmmd: %s\n", err->message);
    for (size_t i = 0; i < err->n_causes; i++)
        fprintf(stderr, "  %s\n", err->causes[i]);
    if (err->help != NULL)
        fprintf(stderr, "  help: %s\n", err->help);
}

/* --- directories and the lock --- */

static int parent_make(const char *path, struct error *err)
{
    CLEANUP_FREE char *dir = mem_strdup(path);

    if (dir == NULL)
        return error_set(err, ERR_DAEMON_OVERLOADED, "out of memory");
    char *slash = strrchr(dir, '/');
    if (slash == NULL || slash == dir)
        return 0;
    *slash = '\0';
    return dir_make(dir, 0755, err);
}

/* One vmmd for one data directory.  A QEMU that is just being started by a vmmd that died holds the lock until its exec, so
 * that nothing half started is missed: hence the short patience. */
static int lock_data_dir(struct daemon *d, struct error *err)
{
    CLEANUP_FREE char *path = mem_printf("%s/vmmd.lock", d->config.data_dir);
    char text[32] = "";

    if (path == NULL)
        return error_set(err, ERR_DAEMON_OVERLOADED, "out of memory");
    d->lock_fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (d->lock_fd < 0)
        return error_errno(err, errno, "cannot open %s", path);
    for (int i = 0; flock(d->lock_fd, LOCK_EX | LOCK_NB) < 0; i++) {
        if (errno != EWOULDBLOCK && errno != EINTR)
            return error_errno(err, errno, "cannot lock %s", path);
        if (i < LOCK_TRIES) {
            usleep(LOCK_WAIT_US);
            continue;
        }
        ssize_t n = pread(d->lock_fd, text, sizeof(text) - 1, 0);
        text[n > 0 ? strcspn(text, "\n") : 0] = '\0';
        return error_set(err, ERR_IO, "another vmmd (pid %s) holds the data directory %s",
                         *text != '\0' ? text : "unknown", d->config.data_dir);
    }
    int n = snprintf(text, sizeof(text), "%d\n", (int)getpid());
    if (pwrite(d->lock_fd, text, (size_t)n, 0) != n || ftruncate(d->lock_fd, n) < 0) /* the lock holds all the same */
        LOG_WARN("the pid is not written to the lock file", "path", path, "cause", strerror(errno));
    return 0;
}

static int read_token(const char *path, char **ret, struct error *err)
{
    CLEANUP_FREE char *text = NULL;
    size_t len;
    struct stat st;

    if (file_read(path, 4096, &text, &len, err) < 0)
        return -1;
    text[strcspn(text, "\r\n")] = '\0';
    if (*text == '\0')
        return error_set(err, ERR_API_INVALID_FIELD, "%s: there is no token on its first line", path);
    if (strlen(text) < 16)
        LOG_WARN("the token is short: take 16 random characters or more", "path", path);
    if (stat(path, &st) == 0 && (st.st_mode & 077) != 0)
        LOG_WARN("the token file can be read by others: chmod 600 it", "path", path);
    mem_free(*ret);
    *ret = TAKE_PTR(text);
    return 0;
}

/* --- the end --- */

static void stop_when_done(struct daemon *d)
{
    if (d->core_stopped && d->server_drained)
        loop_stop(d->loop);
}

static void on_core_stopped(void *arg)
{
    struct daemon *d = arg;

    d->core_stopped = true;
    stop_when_done(d);
}

static void on_drained(void *arg)
{
    struct daemon *d = arg;

    d->server_drained = true;
    stop_when_done(d);
}

static void begin_stop(struct daemon *d)
{
    int64_t grace = d->config.shutdown_grace_s * 1000;

    d->stopping = true;
    notify("STOPPING=1");
    LOG_INFO("stopping");
    if (d->server == NULL) { /* not ready yet: what recovery had begun is taken up by the next start */
        loop_stop(d->loop);
        return;
    }
    core_shutdown(d->core, grace, on_core_stopped, d);
    http_server_drain(d->server, grace, on_drained, d);
}

/* --- signals --- */

static struct flag_list the_flags; /* a reload reads the file and lays the same flags over it */

static void reload(struct daemon *d)
{
    CLEANUP_ERROR struct error err = ERROR_INIT;
    struct config fresh = {0};

    notify_reloading();
    if (build_config(&fresh, &the_flags, &err) < 0 ||
        (fresh.token_file != NULL && d->token != NULL && read_token(fresh.token_file, &d->token, &err) < 0)) {
        LOG_ERROR("config not reloaded", "error", err.message);
    } else {
        log_init(fresh.log_level, fresh.log_json);
        if (d->server != NULL && d->token != NULL)
            http_server_set_token(d->server, d->token);
        LOG_INFO("config reloaded; log_level, log_format and the token are in force, anything else after a restart");
    }
    config_done(&fresh);
    notify("READY=1");
}

static void on_signal(void *arg, int signum)
{
    struct daemon *d = arg;

    if (signum == SIGHUP)
        reload(d);
    else if (!d->stopping)
        begin_stop(d);
    else
        loop_stop(d->loop); /* asked twice: at once */
}

static int watch_signals(struct daemon *d, struct error *err)
{
    static const int numbers[] = {SIGTERM, SIGINT, SIGHUP};

    signal(SIGPIPE, SIG_IGN);
    for (size_t i = 0; i < ARRAY_SIZE(numbers); i++) {
        d->signals[i] = loop_signal_new(d->loop, numbers[i], on_signal, d, err);
        if (d->signals[i] == NULL)
            return -1;
    }
    return 0;
}

static void beat(void *arg)
{
    (void)arg;
    notify("WATCHDOG=1");
}

/* --- the beginning, in the order of the picture --- */

static void fail(struct daemon *d, const struct error *err)
{
    complain(err);
    d->status = 1;
    loop_stop(d->loop);
}

static void serve(void *arg)
{
    struct daemon *d = arg;
    CLEANUP_ERROR struct error err = ERROR_INIT;
    struct http_config hc;
    int64_t watchdog = notify_watchdog_ms();

    if (d->stopping)
        return;
    http_config_defaults(&hc);
    hc.socket_path = d->config.socket;
    hc.socket_group = d->config.socket_group;
    hc.listen = (const char *const *)d->config.listen;
    hc.token = d->token;
    hc.no_auth = d->config.no_auth;
    hc.max_connections = (unsigned)d->config.max_connections;
    hc.max_waits = (unsigned)d->config.max_waits;
    hc.max_streams = (unsigned)d->config.max_streams;
    hc.rate_limit = (unsigned)d->config.rate_limit;
    hc.rate_burst = (unsigned)d->config.rate_burst;
    d->server = http_server_new(d->loop, &hc, rest_routes, &d->rest, &err);
    if (d->server == NULL) {
        fail(d, &err);
        return;
    }
    d->rest.server = d->server;
    if (d->config.no_auth && d->config.listen[0] != NULL)
        LOG_WARN("no_auth: any process of this host may drive vmmd over TCP", "listen", d->config.listen[0]);
    if (watchdog > 0 && (d->watchdog = timer_new(d->loop, beat, d)) != NULL)
        timer_start(d->watchdog, watchdog, watchdog);
    LOG_INFO("ready", "version", VMMD_VERSION, "socket", d->config.socket, "data_dir", d->config.data_dir);
    notify("READY=1\nSTATUS=serving");
}

static void recover(void *arg)
{
    struct daemon *d = arg;
    CLEANUP_ERROR struct error err = ERROR_INIT;

    if (d->stopping)
        return;
    notify("STATUS=recovering");
    if (core_recover(d->core, serve, d, &err) < 0)
        fail(d, &err);
}

static void store_wake(void *arg)
{
    loop_waker_wake(arg);
}

static void store_ready(void *arg)
{
    struct daemon *d = arg;

    if (d->core != NULL)
        core_store_ready(d->core);
}

/* Helpers lie beside vmmd in a build tree, and in libexec when installed. */
static const char *helper_dir(char out[PATH_MAX])
{
    ssize_t n = readlink("/proc/self/exe", out, PATH_MAX - 1);

    if (n <= 0)
        return VMMD_LIBEXEC;
    out[n] = '\0';
    *strrchr(out, '/') = '\0';
    CLEANUP_FREE char *helper = mem_printf("%s/vmmd-inspect", out);
    return helper != NULL && access(helper, X_OK) == 0 ? out : VMMD_LIBEXEC;
}

static int make_backends(struct daemon *d, const char *helpers, struct error *err)
{
    struct qemu_config qc = {
        .data_dir = d->config.data_dir,
        .runtime_dir = d->config.runtime_dir,
        .helper_dir = helpers,
        .image_dirs = (const char *const *)d->config.image_dirs,
        .qemu_binary = d->config.qemu,
        .console_log_max = (size_t)d->config.console_log_kb << 10,
        .vmm_log_max = (size_t)d->config.vmm_log_kb << 10,
        .max_image_gb = (unsigned)d->config.max_image_gb,
        .lease_files = (const char *const *)d->config.lease_files,
        .cloud_init_timeout_s = d->config.cloud_init_timeout_s,
    };

    d->backends[0] = qemu_backend_new(d->loop, &qc, err);
    d->backends[1] = d->backends[0] != NULL ? noop_backend_new(d->loop, d->config.data_dir, err) : NULL;
    return d->backends[1] != NULL ? 0 : -1;
}

static void stay(void *arg)
{
    (void)arg;
}

static int build(struct daemon *d, struct error *err)
{
    struct core_config cc;
    const char *helpers = helper_dir(d->helper_dir);

    if (dir_make(d->config.data_dir, 0700, err) < 0 || dir_make(d->config.runtime_dir, 0755, err) < 0 ||
        parent_make(d->config.socket, err) < 0 || lock_data_dir(d, err) < 0)
        return -1;
    if (d->config.token_file != NULL && read_token(d->config.token_file, &d->token, err) < 0)
        return -1;
    if (limit_files_set(d->config.max_open_files) < FEW_FILES)
        LOG_WARN("few files may be open: raise the hard limit (LimitNOFILE=) to serve many VMs and clients");
    d->loop = loop_new(err);
    if (d->loop == NULL || watch_signals(d, err) < 0)
        return -1;
    d->alive = timer_new(d->loop, stay, d);
    if (d->alive == NULL)
        return error_set(err, ERR_DAEMON_OVERLOADED, "out of memory");
    timer_start(d->alive, STAY_MS, STAY_MS);
    d->waker = loop_waker_new(d->loop, store_ready, d, err);
    if (d->waker == NULL || store_open(d->config.data_dir, store_wake, d->waker, &d->store, err) < 0 ||
        make_backends(d, helpers, err) < 0)
        return -1;
    core_config_defaults(&cc);
    cc.data_dir = d->config.data_dir;
    cc.runtime_dir = d->config.runtime_dir;
    cc.disk_reserve_mb = d->config.disk_reserve_mb;
    cc.image_dirs = (const char *const *)d->config.image_dirs;
    cc.helper_dir = helpers;
    cc.max_image_bytes = (uint64_t)d->config.max_image_gb << 30;
    cc.fetch_allow = (const char *const *)d->config.fetch_allow;
    cc.fetch_plain = (const char *const *)d->config.fetch_plain_http;
    cc.fetch_ca_file = d->config.fetch_ca_file;
    cc.fetch_stall_s = d->config.fetch_stall_s;
    cc.fetch_timeout_s = d->config.fetch_timeout_s;
    cc.events_keep = d->config.events_keep;
    cc.operations_keep_s = d->config.operations_keep_s;
    cc.max_vms = (unsigned)d->config.max_vms;
    cc.max_operations = (unsigned)d->config.max_operations;
    cc.memory_reserve_mb = d->config.memory_reserve_mb;
    cc.restart_delay_ms = d->config.restart_delay_ms;
    cc.restart_max = d->config.restart_max;
    cc.restart_window_s = d->config.restart_window_s;
    cc.max_operations_per_vm = (unsigned)d->config.max_operations_per_vm;
    cc.reconcile_interval_s = d->config.reconcile_interval_s;
    cc.reap_grace_s = d->config.reap_grace_s;
    cc.max_execs = (unsigned)d->config.max_execs;
    cc.max_execs_per_vm = (unsigned)d->config.max_execs_per_vm;
    d->core = core_new(d->loop, d->store, d->backends, &cc, err);
    if (d->core == NULL)
        return -1;
    d->rest = (struct rest){.core = d->core,
                            .loop = d->loop,
                            .data_dir = d->config.data_dir,
                            .started_at = clock_wall_ms(),
                            .max_connections = (unsigned)d->config.max_connections,
                            .max_waits = (unsigned)d->config.max_waits,
                            .max_streams = (unsigned)d->config.max_streams,
                            .rate_limit = (unsigned)d->config.rate_limit,
                            .rate_burst = (unsigned)d->config.rate_burst};
    return qemu_backend_probe(d->backends[0], recover, d, err);
}

static void take_down(struct daemon *d)
{
    http_server_free(d->server);
    timer_free(d->watchdog);
    timer_free(d->alive);
    if (d->core != NULL)
        core_abandon(d->core);
    if (d->store != NULL) { /* what was written is told, so that who waits for it lets go */
        store_drain(d->store);
        store_close(d->store);
    }
    core_free(d->core);
    for (size_t i = 0; i < ARRAY_SIZE(d->backends); i++)
        if (d->backends[i] != NULL)
            d->backends[i]->free(d->backends[i]);
    loop_waker_free(d->waker);
    for (size_t i = 0; i < ARRAY_SIZE(d->signals); i++)
        loop_signal_free(d->signals[i]);
    if (d->loop != NULL && loop_free(d->loop) > 0)
        d->status = 1;
    fd_close(d->lock_fd);
    mem_free(d->token);
    config_done(&d->config);
}

static void say(void *arg, const char *line)
{
    (void)arg;
    puts(line);
}

static int check(const struct config *config)
{
    CLEANUP_ERROR struct error err = ERROR_INIT;

    if (store_check(config->data_dir, say, NULL, &err) == 0)
        return 0;
    complain(&err);
    return 1;
}

static int run(struct daemon *d)
{
    CLEANUP_ERROR struct error err = ERROR_INIT;

    if (build(d, &err) < 0) {
        complain(&err);
        d->status = 1;
    } else {
        loop_run(d->loop);
        LOG_INFO("stopped");
    }
    take_down(d);
    return d->status;
}

int main(int argc, char **argv)
{
    struct daemon d = {.lock_fd = -1};
    CLEANUP_ERROR struct error err = ERROR_INIT;
    int rc;

    json_set_alloc_funcs(mem_alloc, mem_free);
    umask(022);
    if (parse_flags(argc, argv, &the_flags) < 0) {
        fputs("run `vmmd --help` for the flags\n", stderr);
        return EXIT_USAGE;
    }
    if (build_config(&d.config, &the_flags, &err) < 0) {
        complain(&err);
        config_done(&d.config);
        rc = EXIT_USAGE;
    } else {
        log_init(d.config.log_level, d.config.log_json);
        rc = the_flags.check ? check(&d.config) : run(&d);
        config_done(&d.config);
    }
    for (size_t i = 0; i < the_flags.n; i++)
        mem_free(the_flags.values[i]);
    return rc;
}
