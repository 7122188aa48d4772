/* files.h - files of a running VM's guest.  Loop thread. */
#ifndef CORE_FILES_H
#define CORE_FILES_H

#include "core/core.h"
#include "guest/files.h"

/* See guest/files.h; given back by files_free.  NULL with err set: ERR_VM_INVALID_STATE, ERR_BACKEND_NOT_AVAILABLE, and what the
 * backend says. */
struct files *core_files(struct live_vm *vm, const struct files_request *req, const struct files_events *events,
                         void *arg, struct error *err);

#endif
