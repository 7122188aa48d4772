/* test_store_faults.c - the store against strange files, damage, SIGKILL, a full disk and short memory. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include <arpa/inet.h>
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/fd.h"
#include "base/mem.h"
#include "store_bed.h"

static void refused(struct bed *b, const char *want)
{
    CLEANUP_ERROR struct error err = ERROR_INIT;

    assert_int_equal(bed_reopen(b, &err), -1);
    assert_int_equal(err.code, ERR_DAEMON_INTERNAL);
    if (strstr(err.message, want) == NULL)
        fail_msg("'%s' lacks '%s'", err.message, want);
    assert_null(strchr(err.message, '\n'));
    b->store = NULL;
}

static void strange_files_are_refused(void **state)
{
    struct bed *b = *state;
    CLEANUP_ERROR struct error err = ERROR_INIT;

    bed_close(b);
    bed_plant(b, "PRAGMA user_version = 42");
    refused(b, "has schema 42, and vmmd " VMMD_VERSION " knows schemas up to 2: it needs vmmd " VMMD_VERSION
               ", which used it last, or a newer one");
    bed_plant(b, "DELETE FROM meta");
    refused(b, "knows schemas up to 2: it needs a vmmd that knows schema 42");
    bed_plant(b, "PRAGMA user_version = 2; DROP TABLE vms");
    refused(b, "cannot read the database's schema");
    bed_plant(b, "PRAGMA user_version = 0");
    refused(b, "damaged");
    unlink(b->path);
    bed_plant(b, "CREATE TABLE cats (name)");
    refused(b, "not one of vmmd");
    assert_int_equal(file_write(b->path, "hello, this is a text file\n", 27, 0600, &err), 0);
    refused(b, "is no database");
    assert_int_equal(file_write(b->path, "SQLite format 3", 16, 0600, &err), 0);
    refused(b, "is cut short");
    unlink(b->path);
    assert_int_equal(mkdir(b->path, 0700), 0);
    refused(b, "is no regular file");
    rmdir(b->path);
    assert_int_equal(file_write(b->path, "", 0, 0644, &err), 0); /* killed in its first moment */
    bed_open(b);
    struct stat st;
    assert_int_equal(stat(b->path, &st), 0);
    assert_int_equal(st.st_mode & 07777, 0600);
    bed_close(b);
    snprintf(b->dir + strlen(b->dir), 3, "/x");
    assert_int_equal(bed_reopen(b, &err), -1);
    assert_int_equal(err.code, ERR_IO);
    b->dir[strlen(b->dir) - 2] = '\0';
}

/* The lock by which other processes know that the log is in use: lost when anyone but SQLite closes a descriptor of the
 * file, and then the next sqlite3 shell would delete the log under us. */
static void the_lock_is_kept(void **state)
{
    struct bed *b = *state;
    char kept = 'n';
    int fds[2];

    struct store_tx *tx = store_tx_new(b->store);
    bed_put_vm(tx, "1", "web", 0);
    assert_int_equal(bed_commit(b, tx, NULL), ERR_NONE);
    assert_int_equal(bed_count_vms(b), 1);
    assert_int_equal(pipe2(fds, O_CLOEXEC), 0);
    pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET};
        int fd = open(b->path, O_RDWR | O_CLOEXEC);
        bool yes = fd >= 0 && fcntl(fd, F_GETLK, &lock) == 0 && lock.l_type == F_RDLCK && lock.l_pid == getppid();
        if (write(fds[1], yes ? "y" : "n", 1) == 1)
            pause(); /* killed from outside: valgrind would report the parent's store as lost at an exit */
        _exit(1);
    }
    fd_close(fds[1]);
    assert_int_equal(read(fds[0], &kept, 1), 1);
    fd_close(fds[0]);
    kill(pid, SIGKILL);
    assert_int_equal(waitpid(pid, NULL, 0), pid);
    assert_int_equal(kept, 'y');
}

/* Uses everything; nothing but errors may come of a damaged file. */
static void exercise(struct bed *b, unsigned *refusals)
{
    CLEANUP_ERROR struct error err = ERROR_INIT, load_err = ERROR_INIT;
    struct found f = {0};
    struct result r = {0};
    int64_t oldest, newest;

    if (bed_reopen(b, &err) < 0) {
        b->store = NULL;
        assert_true(err.message[0] != '\0');
        ++*refusals;
        return;
    }
    int rc = store_load_vms(b->store, bed_on_vm, &f, &load_err);
    rc |= store_load_operations(b->store, bed_on_operation, &f, &load_err);
    rc |= store_load_keys(b->store, bed_on_key, &f, &load_err);
    rc |= store_event_range(b->store, &oldest, &newest, &load_err);
    assert_int_equal(rc < 0, error_is_set(&load_err));
    *refusals += rc < 0;
    store_read_operations(b->store, NULL, "failed", NULL, 1000, bed_on_operation_row, NULL, &f);
    store_read_events(b->store, 0, "v", NULL, true, 1000, bed_on_event_row, NULL, &f);
    struct store_tx *tx = store_tx_new(b->store);
    bed_put_vm(tx, "x", "x", 0);
    bed_put_operation(tx, "x", "x", "failed", 0);
    store_put_event(tx, 5000, 1, "vm.a", "v", "{}");
    store_prune(tx, 3, 3, 3, 50);
    bed_commit(b, tx, &r);
    bed_close(b);
}

static void damage_is_survived(void **state)
{
    struct bed *b = *state;
    CLEANUP_ERROR struct error err = ERROR_INIT;
    CLEANUP_FREE char *good = NULL;
    size_t len;
    char id[16];
    unsigned refusals = 0, truncated = 0;

    struct store_tx *tx = store_tx_new(b->store);
    for (int i = 0; i < 200; i++) {
        snprintf(id, sizeof(id), "id%04d", i);
        bed_put_vm(tx, id, id, i % 3);
        bed_put_operation(tx, id, id, "failed", i % 2);
        store_put_key(tx, &(struct store_key_row){id, "print", id, i});
        store_put_event(tx, i + 1, i, "vm.a", "v", "{}");
    }
    assert_int_equal(bed_commit(b, tx, NULL), ERR_NONE);
    bed_close(b);
    assert_int_equal(file_read(b->path, 16 << 20, &good, &len, &err), 0);
    uint32_t pages; /* behind them is room for more */
    memcpy(&pages, good + 28, sizeof(pages));
    assert_true((size_t)ntohl(pages) * 4096 <= len);
    len = (size_t)ntohl(pages) * 4096;
    for (int round = 0; round < 60; round++) {
        bool cut = round % 3 == 0;
        char *bad = malloc(len);
        memcpy(bad, good, len);
        size_t keep = cut ? 1 + bed_random((uint32_t)len - 1) : len;
        for (uint32_t n = cut ? 0 : 1 + bed_random(300); n > 0; n--)
            bad[bed_random((uint32_t)(n % 3 == 0 ? 4096 : len))] = (char)bed_random(256);
        assert_int_equal(file_write(b->path, bad, keep, 0600, &err), 0);
        free(bad);
        unsigned was = refusals;
        exercise(b, &refusals);
        truncated += cut && refusals > was;
        CLEANUP_ERROR struct error check_err = ERROR_INIT;
        struct found lines = {0};
        if (store_check(b->dir, bed_on_line, &lines, &check_err) < 0)
            assert_true(check_err.message[0] != '\0');
        char side[128];
        snprintf(side, sizeof(side), "%s-wal", b->path);
        unlink(side);
        snprintf(side, sizeof(side), "%s-shm", b->path);
        unlink(side);
    }
    assert_int_equal(truncated, 20); /* no cut goes unnoticed */
    unlink(b->path);
}

static void checking_finds_what_is_planted(void **state)
{
    struct bed *b = *state;
    CLEANUP_ERROR struct error err = ERROR_INIT;
    struct found f = {0};
    struct stat st;
    char side[128];

    struct store_tx *tx = store_tx_new(b->store);
    bed_put_vm(tx, "good", "web", 0);
    bed_put_vm(tx, "evil", "db", 0);
    store_put_vm(tx, &(struct store_vm_row){"plain", "plain", "{}", NULL, 0});
    store_put_event(tx, 1, 1, "vm.a", NULL, "{}");
    assert_int_equal(bed_commit(b, tx, NULL), ERR_NONE);
    assert_int_equal(store_check(b->dir, bed_on_line, &f, &err), 0); /* beside a running vmmd */
    assert_non_null(strstr(f.text, "schema: 2|"));
    assert_non_null(strstr(f.text, "|VMs: 3|"));
    bed_close(b);
    snprintf(side, sizeof(side), "%s-wal", b->path);
    assert_int_equal(stat(side, &st), -1); /* a clean end leaves one file */
    bed_plant(b, "UPDATE vms SET doc = '{\"vcpus\":' WHERE id = 'evil'");
    f = (struct found){0};
    assert_int_equal(store_check(b->dir, bed_on_line, &f, &err), -1);
    assert_int_equal(err.code, ERR_DAEMON_INTERNAL);
    assert_non_null(strstr(err.message, "1 finding"));
    assert_non_null(strstr(f.text, "bad VM: evil: its document is no JSON|"));
    error_done(&err);
    bed_plant(b, "UPDATE vms SET doc = '{}'; INSERT INTO ports VALUES (0, '::', 1, 'ghost')");
    f = (struct found){0};
    assert_int_equal(store_check(b->dir, bed_on_line, &f, &err), -1);
    assert_non_null(strstr(f.text, "broken reference: ports"));
    error_done(&err);
    bed_plant(b, "DELETE FROM ports");
    f = (struct found){0};
    assert_int_equal(store_check(b->dir, bed_on_line, &f, &err), 0);
    bed_plant(b, "PRAGMA user_version = 9");
    assert_int_equal(store_check(b->dir, bed_on_line, &f, &err), -1);
    assert_non_null(strstr(err.message, "has schema 9"));
}

struct acked {
    int fd;
    uint32_t id;
};

static void acknowledge(void *arg, struct error *err)
{
    struct acked *a = arg;

    if (error_is_set(err) || write(a->fd, &a->id, sizeof(a->id)) != sizeof(a->id))
        _exit(3);
}

/* Commits for ever with 16 outstanding, and tells which are durable. */
static void commit_until_killed(struct bed *b, int fd, uint32_t first)
{
    static struct acked slots[4096];
    struct pollfd gone = {.fd = fd};
    char id[32];

    bed_open(b);
    for (uint32_t n = 0; n < ARRAY_SIZE(slots) && (gone.revents & POLLERR) == 0; n++) {
        struct acked *a = &slots[n];
        *a = (struct acked){fd, first + n};
        struct store_tx *tx = store_tx_new(b->store);
        snprintf(id, sizeof(id), "%010u", a->id);
        bed_put_vm(tx, id, id, 0);
        bed_put_operation(tx, id, id, "running", 0);
        store_commit(b->store, tx, acknowledge, a);
        if (n % 16 == 15 && !bed_turn(b))
            _exit(4);
        poll(&gone, 1, 0);
    }
    pause();
    _exit(5);
}

static void acknowledged_is_durable(void **state)
{
    enum { ROUNDS = 20, PER_ROUND = 4096 };
    struct bed *b = *state;
    CLEANUP_FREE bool *acked = mem_zalloc(ROUNDS * PER_ROUND), *seen = mem_zalloc(ROUNDS * PER_ROUND);
    CLEANUP_ERROR struct error err = ERROR_INIT;
    unsigned total = 0;

    bed_close(b);
    for (uint32_t round = 0; round < ROUNDS; round++) {
        int fds[2];
        assert_int_equal(pipe2(fds, O_CLOEXEC), 0);
        pid_t pid = fork();
        assert_true(pid >= 0);
        if (pid == 0) {
            fd_close(fds[0]);
            commit_until_killed(b, fds[1], round * PER_ROUND);
        }
        fd_close(fds[1]);
        uint32_t id,
            after = 1 + bed_random(200); /* not before some are acknowledged: a slow machine must prove something too */
        for (uint32_t n = 0; n < after && read(fds[0], &id, sizeof(id)) == sizeof(id); n++, total++)
            acked[id] = true;
        usleep(bed_random(3000));
        kill(pid, SIGKILL);
        int status;
        assert_int_equal(waitpid(pid, &status, 0), pid);
        assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
        while (read(fds[0], &id, sizeof(id)) == sizeof(id)) {
            acked[id] = true;
            total++;
        }
        fd_close(fds[0]);
        bed_open(b);
        memset(seen, 0, ROUNDS * PER_ROUND);
        assert_int_equal(store_load_vms(b->store, bed_mark_vm, seen, &err), 0);
        for (uint32_t i = 0; i < ROUNDS * PER_ROUND; i++)
            if (acked[i] && !seen[i])
                fail_msg("round %u: %u was acknowledged and is gone", round, i);
        bed_close(b);
    }
    assert_true(total >= ROUNDS);
    struct found f = {0};
    assert_int_equal(store_check(b->dir, bed_on_line, &f, &err), 0);
}

/* Commits until the disk refuses; returns how many were stored before, and how many after `relieve`. */
static void fill(struct bed *b, enum error_code want, void (*relieve)(const char *dir))
{
    CLEANUP_FREE char *doc = mem_zalloc(20001);
    CLEANUP_ERROR struct error err = ERROR_INIT;
    struct result r = {0};
    unsigned stored = 0;
    char id[16];

    memset(doc, '7', 20000);
    for (int i = 0; i < 500 && r.code == ERR_NONE; i++) {
        struct store_tx *tx = store_tx_new(b->store);
        snprintf(id, sizeof(id), "id%04d", i);
        store_put_vm(tx, &(struct store_vm_row){id, id, doc, NULL, 0});
        stored += bed_commit(b, tx, &r) == ERR_NONE;
    }
    assert_int_equal(r.code, want);
    assert_true(stored > 0);
    assert_int_equal(bed_count_vms(b), stored);
    relieve(b->dir);
    struct store_tx *tx = store_tx_new(b->store);
    store_put_vm(tx, &(struct store_vm_row){"late", "late", doc, NULL, 0});
    assert_int_equal(bed_commit(b, tx, NULL), ERR_NONE);
    bed_close(b);
    bed_open(b);
    assert_int_equal(bed_count_vms(b), stored + 1);
    struct found f = {0};
    assert_int_equal(store_check(b->dir, bed_on_line, &f, &err), 0);
}

static void lift_limit(const char *dir)
{
    struct rlimit limit;

    (void)dir;
    getrlimit(RLIMIT_FSIZE, &limit);
    limit.rlim_cur = limit.rlim_max;
    setrlimit(RLIMIT_FSIZE, &limit);
}

static void a_full_disk_is_survived(void **state)
{
    struct rlimit limit;

    signal(SIGXFSZ, SIG_IGN);
    getrlimit(RLIMIT_FSIZE, &limit);
    limit.rlim_cur = 400000;
    setrlimit(RLIMIT_FSIZE, &limit);
    fill(*state, ERR_IO, lift_limit);
    signal(SIGXFSZ, SIG_DFL);
}

static void delete_ballast(const char *dir)
{
    char path[96];

    snprintf(path, sizeof(path), "%s/ballast", dir);
    assert_int_equal(unlink(path), 0);
}

/* A real ENOSPC, where a tmpfs may be mounted (root, in a mount namespace of its own). */
static void a_full_file_system_is_survived(void **state)
{
    struct bed *b = *state;
    CLEANUP_ERROR struct error err = ERROR_INIT;
    int status;

    bed_close(b);
    pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        char path[96];
        if (unshare(CLONE_NEWNS) < 0 || mount("none", "/", "none", MS_REC | MS_PRIVATE, NULL) < 0 ||
            mount("none", b->dir, "tmpfs", 0, "size=2m") < 0)
            _exit(77);
        snprintf(path, sizeof(path), "%s/ballast", b->dir);
        if (file_write(path, b, sizeof(*b), 0600, &err) < 0 || truncate(path, 0) < 0)
            _exit(1);
        int fd = open(path, O_WRONLY | O_CLOEXEC);
        if (posix_fallocate(fd, 0, 1 << 20) != 0)
            _exit(1);
        fd_close(fd);
        bed_open(b);
        fill(b, ERR_HOST_DISK_FULL, delete_ballast);
        bed_close(b);
        _exit(0);
    }
    assert_int_equal(waitpid(pid, &status, 0), pid);
    if (WIFEXITED(status) && WEXITSTATUS(status) == 77)
        skip();
    assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

static enum error_code put(struct bed *b, const char *id, const char *doc, bool reserve)
{
    struct store_tx *tx = store_tx_new(b->store);

    store_put_vm(tx, &(struct store_vm_row){id, id, doc, NULL, 0});
    if (reserve)
        store_tx_use_reserve(tx);
    return bed_commit(b, tx, NULL);
}

static void use_the_reserve(struct bed *b)
{
    CLEANUP_FREE char *doc = mem_zalloc(20001);
    char path[96], id[16];
    struct stat st;

    memset(doc, '7', 20000);
    snprintf(path, sizeof(path), "%s/vmmd.reserve", b->dir);
    assert_int_equal(stat(path, &st), 0);
    assert_int_equal(st.st_size, 1 << 20);
    for (int i = 0, small = 0; i < 2000 && small < 2; i++) { /* to the last page */
        snprintf(id, sizeof(id), "id%04d", i);
        small += put(b, id, small > 0 ? "{}" : doc, false) != ERR_NONE;
    }
    unsigned stored = bed_count_vms(b);
    for (int i = 0; i < 20; i++) { /* what frees room is taken, again and again; anything else is not */
        snprintf(id, sizeof(id), "free%04d", i);
        assert_int_equal(put(b, id, "{}", true), ERR_NONE);
        assert_int_equal(put(b, "small", "{}", false), ERR_HOST_DISK_FULL);
    }
    assert_int_equal(bed_count_vms(b), stored + 20);
    assert_int_equal(mount("none", b->dir, "tmpfs", MS_REMOUNT, "size=16m"), 0);
    assert_int_equal(put(b, "small", doc, false), ERR_NONE);
    assert_int_equal(stat(path, &st), 0);
    assert_int_equal(st.st_size, 1 << 20);
}

/* On a full disk the room kept aside goes to what frees room, and to nothing else. */
static void what_frees_room_has_the_reserve(void **state)
{
    struct bed *b = *state;
    int status;

    bed_close(b);
    pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        if (unshare(CLONE_NEWNS) < 0 || mount("none", "/", "none", MS_REC | MS_PRIVATE, NULL) < 0 ||
            mount("none", b->dir, "tmpfs", 0, "size=4m") < 0)
            _exit(77);
        bed_open(b);
        use_the_reserve(b);
        bed_close(b);
        _exit(0);
    }
    assert_int_equal(waitpid(pid, &status, 0), pid);
    if (WIFEXITED(status) && WEXITSTATUS(status) == 77)
        skip();
    assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

/* Fails each allocation of building and committing in turn: the tx is whole or refused, and the callback always comes.
 */
static void memory_may_be_short(void **state)
{
    struct bed *b = *state;
    char id[16];
    size_t made = 1;

    for (size_t nth = 1; nth <= made; nth++) {
        struct result r = {0}, read_result = {0};
        unsigned before = bed_count_vms(b);
        snprintf(id, sizeof(id), "id%04zu", nth);
        mem_fail_nth(nth);
        struct store_tx *tx = store_tx_new(b->store);
        bed_put_vm(tx, id, id, 0);
        bed_put_operation(tx, id, id, "running", 0);
        store_put_key(tx, &(struct store_key_row){id, "p", id, 1});
        store_put_event(tx, (int64_t)nth, 1, "vm.a", id, "{}");
        store_put_port(tx, false, "::", (uint16_t)nth, id);
        store_commit(b->store, tx, bed_on_done, &r);
        bool asked = store_read_events(b->store, 0, NULL, NULL, false, 100, NULL, bed_on_done, &read_result) != NULL;
        bed_wait(b, &r.calls);
        if (asked)
            bed_wait(b, &read_result.calls);
        made = mem_fail_nth(0);
        assert_int_equal(r.calls, 1);
        assert_int_equal(bed_count_vms(b), before + (r.code == ERR_NONE));
        assert_true(r.code == ERR_NONE || r.message[0] != '\0');
    }
    for (size_t i = 0; i < 3; i++) { /* no tx at all, and no memory for saying so: a spare carries the news */
        struct result r[2] = {0};
        mem_fail_nth(1);
        store_commit(b->store, NULL, bed_on_done, &r[0]);
        mem_fail_nth(0);
        store_commit(b->store, NULL, bed_on_done, &r[1]);
        bed_wait(b, &r[1].calls);
        assert_int_equal(r[0].code, ERR_DAEMON_INTERNAL);
        assert_int_equal(r[1].code, ERR_DAEMON_INTERNAL);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        BED_TEST(strange_files_are_refused),
        BED_TEST(the_lock_is_kept),
        BED_TEST(damage_is_survived),
        BED_TEST(checking_finds_what_is_planted),
        BED_TEST(acknowledged_is_durable),
        BED_TEST(a_full_disk_is_survived),
        BED_TEST(a_full_file_system_is_survived),
        BED_TEST(what_frees_room_has_the_reserve),
        BED_TEST(memory_may_be_short),
    };

    bed_seed();
    return cmocka_run_group_tests_name("store faults", tests, NULL, NULL);
}
