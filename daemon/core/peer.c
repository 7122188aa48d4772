/* peer.c - see peer.h.  The rights of a thread are its own on Linux: file system uid and gid, and supplementary groups when
 * set by the raw call. */
#include "core/peer.h"

#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <pwd.h>
#include <string.h>
#include <sys/fsuid.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/fd.h"
#include "base/mem.h"
#include "base/str.h"

enum { GROUPS_MAX = 256, PATHS_MAX = 4 };

static unsigned host_paths(const struct vm_spec *spec, const char *out[PATHS_MAX])
{
    const char *all[] = {spec->image, spec->has_boot ? spec->boot.kernel : NULL,
                         spec->has_boot ? spec->boot.initrd : NULL, spec->ssh.private_key_path};
    unsigned n = 0;

    for (size_t i = 0; i < ARRAY_SIZE(all); i++)
        if (all[i] != NULL && all[i][0] == '/')
            out[n++] = all[i];
    return n;
}

static bool below(const char *path, const char *const *dirs)
{
    for (size_t i = 0; dirs != NULL && dirs[i] != NULL; i++) {
        size_t len = strlen(dirs[i]);
        while (len > 1 && dirs[i][len - 1] == '/')
            len--;
        if (strncmp(path, dirs[i], len) == 0 && path[len] == '/')
            return true;
    }
    return false;
}

int peer_check_dirs(const struct vm_spec *spec, const char *const *image_dirs, struct error *err)
{
    const char *paths[PATHS_MAX];
    unsigned n = host_paths(spec, paths);

    for (unsigned i = 0; i < n; i++)
        if (!below(paths[i], image_dirs)) {
            error_set(err, ERR_IMAGE_UNSAFE, "%s lies outside image_dirs, and the request came over TCP", paths[i]);
            error_help(err, "put it below a directory of image_dirs (vmmd.conf), or ask over the Unix socket");
            error_ctx_str(err, "path", paths[i]);
            return -1;
        }
    return 0;
}

bool peer_is_other(const struct core_peer *peer)
{
    return peer->is_unix && peer->uid != 0 && peer->uid != geteuid();
}

static int user_groups(const struct core_peer *peer, gid_t groups[GROUPS_MAX])
{
    char text[4096];
    struct passwd pw, *found = NULL;
    int n = GROUPS_MAX;

    groups[0] = peer->gid;
    if (getpwuid_r(peer->uid, &pw, text, sizeof(text), &found) != 0 || found == NULL ||
        getgrouplist(pw.pw_name, peer->gid, groups, &n) < 0)
        return 1;
    return n;
}

/* errno of the opening, 0 when it works. */
static int open_as(const struct core_peer *peer, const gid_t *groups, int n_groups, const char *path)
{
    gid_t own_groups[GROUPS_MAX];
    int n_own = getgroups(GROUPS_MAX, own_groups);

    if (n_own < 0 || syscall(SYS_setgroups, n_groups, groups) < 0)
        return errno;
    int own_gid = setfsgid(peer->gid), own_uid = setfsuid(peer->uid);
    CLEANUP_FD int fd = open(path, O_RDONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
    int result = fd < 0 ? errno : 0;
    setfsuid((uid_t)own_uid);
    setfsgid((gid_t)own_gid);
    syscall(SYS_setgroups, n_own, own_groups);
    return result;
}

int peer_check_files(const struct vm_spec *spec, const struct core_peer *peer, struct error *err)
{
    gid_t groups[GROUPS_MAX];
    const char *paths[PATHS_MAX];
    int n_groups = user_groups(peer, groups);
    unsigned n = host_paths(spec, paths);

    for (unsigned i = 0; i < n; i++) {
        int refused = open_as(peer, groups, n_groups, paths[i]);
        if (refused == 0 || refused == ENOENT || refused == ENOTDIR)
            continue;
        error_set(err, ERR_API_FORBIDDEN, "%s is not readable for you (uid %u)", paths[i], (unsigned)peer->uid);
        error_cause(err, "%s", strerror(refused));
        error_help(err, "name a file that you can read yourself");
        error_ctx_str(err, "path", paths[i]);
        return -1;
    }
    return 0;
}
