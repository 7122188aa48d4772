/* cage.c - see cage.h.  seccomp and the limit of address space are left out under a sanitizer, which needs both. */
#include "helpers/cage/cage.h"

#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <sched.h>
#include <stddef.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <unistd.h>

#ifndef SANITIZED
#include <seccomp.h>
#endif

enum { NOBODY = 65534 };

#ifdef SANITIZED
/* The leak check at the end traces the process; a confined one cannot be traced. */
int __lsan_is_turned_off(void);
int __lsan_is_turned_off(void)
{
    return 1;
}
#endif

static int limit(__rlimit_resource_t what, uint64_t most)
{
    struct rlimit now, wanted = {most, most};

    if (getrlimit(what, &now) == 0 && now.rlim_max != RLIM_INFINITY && now.rlim_max < most)
        wanted = (struct rlimit){now.rlim_max, now.rlim_max};
    return setrlimit(what, &wanted);
}

int cage_drop(const struct cage_limits *limits)
{
    /* In a user namespace nobody may have no id; the rest of the confinement holds there. */
    if (geteuid() == 0 &&
        (setgroups(0, NULL) || setresgid(NOBODY, NOBODY, NOBODY) || setresuid(NOBODY, NOBODY, NOBODY)) &&
        errno != EINVAL && errno != EPERM)
        return -1;
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) || prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) ||
        prctl(PR_SET_PDEATHSIG, 9)) /* a change of uid forgets it */
        return -1;
    if (limit(RLIMIT_CPU, limits->cpu_s) || limit(RLIMIT_CORE, 0) || limit(RLIMIT_FSIZE, limits->file_bytes) ||
        limit(RLIMIT_NOFILE, limits->files))
        return -1;
#ifndef SANITIZED
    if (limits->memory > 0 && limit(RLIMIT_AS, limits->memory))
        return -1;
#endif
    return 0;
}

int cage_allow(const char *const *calls)
{
#ifndef SANITIZED
    scmp_filter_ctx ctx = seccomp_init(SCMP_ACT_ERRNO(EPERM));
    int rc = ctx != NULL ? 0 : -1;

    for (; rc == 0 && *calls != NULL; calls++) {
        int number = seccomp_syscall_resolve_name(*calls);
        if (number != __NR_SCMP_ERROR)
            rc = seccomp_rule_add(ctx, SCMP_ACT_ALLOW, number, 0);
    }
    if (rc == 0) /* threads, no processes; glibc falls back from clone3 */
        rc = seccomp_rule_add(ctx, SCMP_ACT_ALLOW, SCMP_SYS(clone), 1,
                              SCMP_A0(SCMP_CMP_MASKED_EQ, CLONE_THREAD, CLONE_THREAD));
    if (rc == 0)
        rc = seccomp_rule_add(ctx, SCMP_ACT_ERRNO(ENOSYS), SCMP_SYS(clone3), 0);
    if (rc == 0)
        rc = seccomp_rule_add(ctx, SCMP_ACT_ALLOW, SCMP_SYS(openat), 1,
                              SCMP_A2(SCMP_CMP_MASKED_EQ, O_ACCMODE | O_CREAT | O_TRUNC, O_RDONLY));
    if (rc == 0)
        rc = seccomp_load(ctx);
    seccomp_release(ctx);
    return rc == 0 ? 0 : -1;
#else
    (void)calls;
    return 0;
#endif
}

int cage_deny(const char *const *calls)
{
#ifndef SANITIZED
    scmp_filter_ctx ctx = seccomp_init(SCMP_ACT_ALLOW);
    int rc = ctx != NULL ? 0 : -1;

    for (; rc == 0 && *calls != NULL; calls++) {
        int number = seccomp_syscall_resolve_name(*calls);
        if (number != __NR_SCMP_ERROR)
            rc = seccomp_rule_add(ctx, SCMP_ACT_ERRNO(EPERM), number, 0);
    }
    if (rc == 0)
        rc = seccomp_load(ctx);
    seccomp_release(ctx);
    return rc == 0 ? 0 : -1;
#else
    (void)calls;
    return 0;
#endif
}
