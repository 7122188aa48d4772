/* files.h - files of a guest: what every channel (SFTP in vmmd-ssh, the guest agent) offers in the same shape.  Loop thread.
 *
 *   get:   began(stat) ─► data ... ─► ended          put:  began ─► (files_write, room) ... files_write_end ─► ended(stat)
 *   list:  data, one JSON object each ─► ended       stat, mkdir, rename, delete:  ended */
#ifndef GUEST_FILES_H
#define GUEST_FILES_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>

#include "base/error.h"

enum files_op { FILES_GET, FILES_PUT, FILES_STAT, FILES_LIST, FILES_MKDIR, FILES_RENAME, FILES_DELETE };

/* Borrowed during the call. */
struct files_request {
    enum files_op op;
    const char *path;
    const char *to;   /* rename */
    const char *mode; /* put, mkdir: octal, or NULL: what is there, or 0644 and 0755 */
    bool parents;     /* mkdir */
};

struct files_events {
    void (*began)(void *arg, const json_t *stat);
    void (*data)(void *arg, const char *data, size_t len);
    void (*room)(void *arg); /* put: more may be written */
    /* Once, the last.  Fails: ERR_GUEST_FILE_NOT_FOUND, _PERMISSION_DENIED, _NO_SPACE, _NOT_A_DIRECTORY, _DIRECTORY_NOT_EMPTY,
     * _UNAVAILABLE (the agent), ERR_API_INVALID_FIELD (no file), ERR_SSH_FAILED, ERR_DAEMON_OVERLOADED (every transfer of the VM is taken),
     * ERR_IO (the guest's own). */
    void (*ended)(void *arg, const json_t *stat, struct error *err);
};

struct files;
struct files_ops {
    void (*pause)(struct files *f, bool paused);
    size_t (*write)(struct files *f, const void *data, size_t len);
    void (*write_end)(struct files *f);
    void (*free)(struct files *f);
};

/* The head of a channel's own struct. */
struct files {
    const struct files_ops *ops;
    struct files_events events;
    void *arg;
};

/* Back-pressure: no data while paused. */
static inline void files_pause(struct files *f, bool paused)
{
    f->ops->pause(f, paused);
}
/* How many bytes were taken: fewer than all, also none, until `room`. */
static inline size_t files_write(struct files *f, const void *data, size_t len)
{
    return f->ops->write(f, data, len);
}
static inline void files_write_end(struct files *f)
{
    f->ops->write_end(f);
}
/* Also in the midst, also from its events: an unfinished put leaves what was there.  NULL is fine. */
static inline void files_free(struct files *f)
{
    if (f != NULL)
        f->ops->free(f);
}

/* What a guest's refusal means, whatever carried it: kind is "missing", "denied", "no_space", "not_directory", "not_file", "to_directory", or
 * another, for which detail says more. */
void files_refusal(const char *kind, const char *detail, const char *vm_name, const char *user, const char *path,
                   struct error *err);

#endif
