/* reserve.c - a little room kept aside for what frees room.
 *
 * Happy path: DIR/vmmd.reserve holds RESERVE_BYTES of disk that nothing uses.  When the disk is full, its room is given to the
 * transactions that were marked (store_tx_use_reserve: destroy, kill, stop), and to them alone until there is room enough to
 * keep the reserve again.  Failure modes: a disk without room for it, or a file system that cannot set room aside: there
 * is no reserve, and on a full disk everything is refused alike.  Writer thread; store_open before it runs. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/fd.h"
#include "base/log.h"
#include "store/internal.h"

enum { RESERVE_BYTES = 1 << 20 };

static bool is_whole(int fd)
{
    struct stat st;

    return fstat(fd, &st) == 0 && st.st_size == RESERVE_BYTES && st.st_blocks * 512 >= RESERVE_BYTES;
}

bool store_reserve_keep(struct store *store)
{
    if (store->reserve_fd < 0)
        store->reserve_fd = open(store->reserve_path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (store->reserve_fd < 0)
        return false;
    if (!is_whole(store->reserve_fd) && posix_fallocate(store->reserve_fd, 0, RESERVE_BYTES) != 0) {
        (void)!ftruncate(store->reserve_fd, 0); /* half of it is of no use */
        return false;
    }
    return true;
}

bool store_reserve_spend(struct store *store)
{
    if (store->reserve_fd < 0 || !is_whole(store->reserve_fd) || ftruncate(store->reserve_fd, 0) < 0)
        return false;
    LOG_WARN("the disk is full: the reserve goes to what frees room", "path", store->reserve_path);
    return true;
}
