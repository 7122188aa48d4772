/* files.c - what a guest's refusal means; see files.h. */
#include "guest/files.h"

#include <string.h>

void files_refusal(const char *kind, const char *detail, const char *vm_name, const char *user, const char *path,
                   struct error *err)
{
    if (strcmp(kind, "missing") == 0) {
        error_set(err, ERR_GUEST_FILE_NOT_FOUND, "the guest of VM %s has no %.300s", vm_name, path);
    } else if (strcmp(kind, "denied") == 0) {
        error_set(err, ERR_GUEST_FILE_PERMISSION_DENIED, "user %s of VM %s may not do that to %.300s", user, vm_name,
                  path);
    } else if (strcmp(kind, "no_space") == 0) {
        error_set(err, ERR_GUEST_NO_SPACE, "the file system of %.300s in VM %s is full", path, vm_name);
    } else if (strcmp(kind, "not_empty") == 0) {
        error_set(err, ERR_GUEST_DIRECTORY_NOT_EMPTY, "%.300s in VM %s is a directory with something in it", path,
                  vm_name);
    } else if (strcmp(kind, "not_directory") == 0) {
        error_set(err, ERR_GUEST_NOT_A_DIRECTORY, "%.300s in VM %s is no directory", path, vm_name);
    } else if (strcmp(kind, "not_file") == 0) {
        error_set(err, ERR_API_INVALID_FIELD, "%.300s in VM %s is no regular file", path, vm_name);
        error_help(err, "name a file; list=1 lists a directory");
        error_ctx_str(err, "pointer", "/path");
        error_ctx_str(err, "expected", "the path of a regular file");
    } else if (strcmp(kind, "to_directory") == 0) {
        error_set(err, ERR_API_INVALID_FIELD, "what has the new name in VM %s is a directory", vm_name);
        error_help(err, "name the file as it is to be called in that directory");
        error_ctx_str(err, "pointer", "/to");
        error_ctx_str(err, "expected", "the path of a file, or of nothing");
    } else {
        error_set(err, ERR_IO, "the guest of VM %s could not do that to %.300s", vm_name, path);
        error_help(err, "the guest's answer is in causes");
        error_cause(err, "%.300s", detail);
    }
}
