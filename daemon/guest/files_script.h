/* files_script.h - files of a guest by its shell: what it is asked, and what its answer means.  Pure functions, any thread.
 *
 * A script does one step of a transfer, as the user and with the user's rights alone, with what busybox and coreutils have in
 * common.  Its answer is the guest's and hostile: nothing here trusts a length, a number or a name.
 *
 *   stat, put's end   INFO        get    INFO, then at most FILES_GET_CHUNK bytes from the offset; fewer are the end
 *   list              an INFO-like record for each entry, then "end"                     INFO: mode size mtime device:inode */
#ifndef GUEST_FILES_SCRIPT_H
#define GUEST_FILES_SCRIPT_H

#include <stdint.h>

#include "base/buf.h"
#include "guest/files.h"

enum {
    FILES_GET_CHUNK = 1 << 20,
    FILES_PUT_CHUNK = 256 << 10,
    FILES_LIST_MAX = 2800 << 10, /* the agent's answer is one line of Base64 */
    FILES_IDENTITY_MAX = 48,
};

struct files_step {
    const struct files_request *req;
    uint64_t offset;  /* get: a multiple of FILES_GET_CHUNK; put: how many bytes are there already */
    const char *temp; /* put: where they are */
    size_t len;       /* put: how many come on stdin */
    bool last;        /* put: then it takes its place */
};

/* -1: memory. */
int files_script(struct buf *out, const struct files_step *step);
/* Removes what a put that will not end has written. */
int files_script_discard(struct buf *out, const char *temp);
/* A name beside path that nobody else has; NULL: memory, the caller mem_frees. */
char *files_temp_path(const char *path);

struct files_info {
    unsigned mode; /* as stat(2) tells it */
    uint64_t size;
    int64_t mtime;
    char identity[FILES_IDENTITY_MAX];
};

/* The line that data begins with; *ret_end is the offset behind it.  -1: it is none. */
int files_info_parse(const char *data, size_t len, struct files_info *ret, size_t *ret_end);
/* The object of files.h's events; name may be NULL. */
int files_info_json(struct buf *out, const char *name, const struct files_info *info);
/* Calls `entry` with each entry's JSON until it returns false.  0: it was whole; -1: nonsense, or cut; 1: `entry` ended it. */
int files_list_parse(const char *data, size_t len, bool (*entry)(void *arg, const char *json, size_t len), void *arg);

/* Why a script failed, as files_refusal's kind, "no_tool" (detail: which) or "changed"; detail is one line of valid UTF-8. */
enum { FILES_DETAIL_MAX = 240 };
const char *files_failure(int exit_code, const char *text, size_t len, char detail[FILES_DETAIL_MAX]);

#endif
