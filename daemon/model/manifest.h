/* manifest.h - a VM written down beside its disk, so that it can be found again when the database is lost.  Any thread. */
#ifndef MODEL_MANIFEST_H
#define MODEL_MANIFEST_H

#include <stddef.h>

#include "model/vm.h"

enum { MANIFEST_MAX = 4 << 20 }; /* a document of any VM fits: its request had 1 MiB */

/* All that the VM's row holds, as one JSON text (mem_free); NULL when memory is short. */
char *vm_manifest_text(const struct vm *vm, size_t *ret_len);
/* Back, for the VM `id` (NULL: any) of the backend `backend` (not copied).  The text is taken as a stranger's: whatever is not as
 * vm_manifest_text would write it is ERR_DAEMON_INTERNAL.  What only a process has (pid, sockets) is left out, and so are the
 * operation, the conditions and the failure of that time; state is what was written.  Directories are the reader's to set. */
int vm_manifest_parse(const char *text, size_t len, const struct uuid *id, const char *backend, struct vm *ret,
                      struct error *err);

#endif
