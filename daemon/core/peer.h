/* peer.h - host paths named by a client: they must be within that client's own reach. */
#ifndef CORE_PEER_H
#define CORE_PEER_H

#include <stdbool.h>
#include <sys/types.h>

#include "base/error.h"
#include "model/vm.h"

/* Who is at the other end of the connection. */
struct core_peer {
    bool is_unix;
    uid_t uid;
    gid_t gid;
};

/* Over TCP there is no user to ask: every host path of the spec must lie below one of the directories (NULL-terminated;
 * none configured: no path is taken).  ERR_IMAGE_UNSAFE.  Any thread, at once. */
int peer_check_dirs(const struct vm_spec *spec, const char *const *image_dirs, struct error *err);
/* Whether a check of the files is needed at all: root and the daemon's own user read what it reads. */
bool peer_is_other(const struct core_peer *peer);
/* Opens each host path of the spec for reading with the user's own rights.  ERR_API_FORBIDDEN; a file that is not there is
 * left to those who open it.  Blocking: for a pool thread, whose rights are changed meanwhile and put back. */
int peer_check_files(const struct vm_spec *spec, const struct core_peer *peer, struct error *err);

#endif
