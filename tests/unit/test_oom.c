/* test_oom.c - the kernel's word that it killed a process for want of memory: recorded lines, hostile ones, and counts. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "backend/qemu/oom.h"
#include "base/fd.h"
#include "base/mem.h"

/* pid 0: not a record of a kill. */
static void says(const char *record, pid_t pid)
{
    pid_t got = 0;
    int64_t us = 0;

    if (!oom_record(record, &got, &us))
        got = 0;
    if (got != pid)
        fail_msg("%d, not %d: %s", (int)got, (int)pid, record);
    if (pid != 0)
        assert_int_equal(us, 2381864900);
}

#define AT "4,1201,2381864900,-;"

static void recorded(void **state)
{
    (void)state;
    says("3,1201,2381864900,-;Memory cgroup out of memory: Killed process 17921 (qemu-system-x86) total-vm:1289044kB, "
         "anon-rss:131072kB, file-rss:24320kB, shmem-rss:0kB, UID:0 pgtables:620kB oom_score_adj:0\n",
         17921);
    says("3,1201,2381864900,-;Out of memory: Killed process 4242 (qemu-system-x86) total-vm:9kB, anon-rss:8kB\n", 4242);
    says("6,1201,2381864900,-;oom-kill:constraint=CONSTRAINT_MEMCG,nodemask=(null),cpuset=/,mems_allowed=0,"
         "oom_memcg=/vmmd-oom,task_memcg=/vmmd-oom,task=qemu-system-x86,pid=17921,uid=0\n",
         17921);
    says(AT "Killed process 77 (qemu-system-x86) total-vm:1kB, anon-rss:1kB, file-rss:1kB\n SUBSYSTEM=x\n", 77);
    says(AT "Memory cgroup out of memory: Killed process 5 (x) total-vm:1kB", 5);
}

/* A command's name may be anything of 15 bytes; so may what people write into the log. */
static void hostile(void **state)
{
    (void)state;
    says(AT "Out of memory: Killed process 4242 (process 17 (x) total-vm:9kB\n", 4242);
    says(AT "Out of memory: Killed process 4242 (a,pid=17,uid=0) total-vm:9kB, pid=17,uid=0\n", 4242);
    says(AT "oom-kill:constraint=CONSTRAINT_NONE,task_memcg=/,pid=9,uid=1,task=x,pid=17,uid=0,pid=4242,uid=0\n", 4242);
    says(AT "oom-kill:constraint=CONSTRAINT_NONE,task=x,pid=17,uid=0,y\n", 0);
    says(AT "oom-kill:constraint=CONSTRAINT_NONE,task=x,pid=17\n", 0);
    says(AT "oom-kill:constraint=CONSTRAINT_NONE,task=x,pid=-4,uid=0\n", 0);
    says(AT "oom-kill:constraint=\n pid=4,uid=0,pid=17,uid=0", 0);
    says("12,1201,2381864900,-;Out of memory: Killed process 17 (x) total-vm:9kB\n", 0); /* a user's, by /dev/kmsg */
    says("14,1201,2381864900,-;oom-kill:constraint=X,task=x,pid=17,uid=0\n", 0);
    says(AT "guest: Out of memory: Killed process 17 (x)\n", 0);
    says(AT "x\nOut of memory: Killed process 17 (x)\n", 0);
    says(AT "Out of memory: Killed process 99999999999999999999 (x)\n", 0);
    says(AT "Out of memory: Killed process 17 x)\n", 0);
    says(AT "oom_reaper: reaped process 17 (qemu-system-x86), now anon-rss:0kB\n", 0);
    says(AT "\n", 0);
    says(";Out of memory: Killed process 17 (x)\n", 0);
    says("", 0);
    says("4,1201", 0);
}

static void cgroups(void **state)
{
    char dir[PATH_MAX];

    (void)state;
    oom_group("9:name=systemd:/\n4:memory:/a/b\n0::/\n", dir);
    assert_string_equal(dir, "/sys/fs/cgroup/memory/a/b");
    oom_group("0::/system.slice/vmmd.service\n", dir);
    assert_string_equal(dir, "/sys/fs/cgroup/system.slice/vmmd.service");
    oom_group("0::/c\n4:memory:/a:b", dir);
    assert_string_equal(dir, "/sys/fs/cgroup/memory/a:b");
    oom_group("", dir);
    assert_string_equal(dir, "");
    oom_group("junk\n", dir);
    assert_string_equal(dir, "");
}

static void counts(void **state)
{
    CLEANUP_ERROR struct error err = ERROR_INIT;
    static const struct {
        const char *file, *text;
        int64_t kills;
    } files[] = {
        {"memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 3\n", 3},
        {"memory.events", "low 0\nhigh 0\nmax 12\noom 9\noom_kill 4\noom_group_kill 7\n", 4},
        {"memory.events.local", "low 0\noom_kill 5\n", 5}, /* without those of the groups below */
    };
    char dir[] = "/tmp/vmmd-oom-XXXXXX";

    (void)state;
    assert_non_null(mkdtemp(dir));
    assert_int_equal(oom_kills(dir), -1);
    for (size_t i = 0; i < ARRAY_SIZE(files); i++) {
        CLEANUP_FREE char *path = mem_printf("%s/%s", dir, files[i].file);
        assert_int_equal(file_write(path, files[i].text, strlen(files[i].text), 0600, &err), 0);
        assert_int_equal(oom_kills(dir), files[i].kills);
    }
    assert_int_equal(dir_remove(dir, &err), 0);
}

static void nothing_is_asked(void **state)
{
    struct oom_question q = {.pid = 0};

    (void)state;
    oom_answer(&q);
    assert_false(q.killed);
    assert_false(q.log_read);
    assert_int_equal(q.kills, -1);
}

/* This process lives. */
static void nobody_was_killed(void **state)
{
    struct oom_question q = {.pid = getpid(), .since_us = INT64_MAX};

    (void)state;
    oom_answer(&q);
    assert_false(q.killed);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(recorded), cmocka_unit_test(hostile),          cmocka_unit_test(cgroups),
        cmocka_unit_test(counts),   cmocka_unit_test(nothing_is_asked), cmocka_unit_test(nobody_was_killed),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
