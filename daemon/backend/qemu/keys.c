/* keys.c - the Ed25519 key pair of a VM: made by vmmd-ssh, kept in the work directory.
 *
 * Happy path: `vmmd-ssh --keygen` prints the private key, an empty line and the public one; both become files, 0600 from their
 * first byte, in the step that builds the VM's files.  Failures: no helper, no answer: ssh::keygen_failed. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "backend/qemu/internal.h"
#include "base/fd.h"
#include "base/mem.h"

enum { KEYGEN_MS = 10000, KEY_TEXT_MAX = 16384 };

static const char border[] = "\n\nssh-ed25519 ";

bool key_wanted(const struct vm_spec *spec)
{
    return spec->has_cloud_init && !spec->cloud_init.user_data;
}

static void keygen_done(void *arg, const struct tool_result *result)
{
    struct backend_vm *bvm = arg;
    CLEANUP_ERROR struct error err = ERROR_INIT;
    bool good = result->status.code == 0 && strncmp(result->out, "-----BEGIN ", 11) == 0 && strstr(result->out, border);

    tool_free(TAKE_PTR(bvm->tool));
    if (good)
        set_text(&bvm->key_text, result->out);
    if (!good || !bvm->key_text) {
        error_set(&err, ERR_SSH_KEYGEN_FAILED, "no key pair could be made for VM %s", bvm->vm->name);
        error_cause(&err, "%s", result->timed_out ? "vmmd-ssh did not end in time" : "vmmd-ssh failed");
    }
    bvm->key_made(bvm, &err);
}

int key_make(struct backend_vm *bvm, void (*made)(struct backend_vm *bvm, struct error *err), struct error *err)
{
    char helper[PATH_MAX];
    const char *argv[] = {helper, "--keygen", NULL};

    if (!key_wanted(&bvm->vm->spec))
        return 1;
    bvm->key_made = made;
    if (path_join(helper, sizeof(helper), bvm->be->helper_dir, "vmmd-ssh", err) < 0)
        return -1;
    bvm->tool = tool_run(bvm->be->loop, argv, NULL, NULL, 0, KEYGEN_MS, KEY_TEXT_MAX, keygen_done, bvm, err);
    if (!bvm->tool)
        return error_wrap(err, ERR_SSH_KEYGEN_FAILED, "no key pair could be made for VM %s", bvm->vm->name);
    return 0;
}

char *key_public(const char *key_text)
{
    const char *at = strstr(key_text, border);

    return at ? mem_strndup(at + 2, strcspn(at + 2, "\n")) : NULL;
}

static int write_new(const char *path, const char *text, size_t len, mode_t mode, struct error *err)
{
    CLEANUP_FD int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, mode);

    if (fd < 0 || fd_write_all(fd, text, len) < 0 || fsync(fd) < 0)
        return error_errno(err, errno, "cannot write the key %s", path);
    return 0;
}

int key_write(const char *key_text, const char *path, struct error *err)
{
    const char *at = strstr(key_text, border);
    char public_path[PATH_MAX];

    if (!at || snprintf(public_path, sizeof(public_path), "%s.pub", path) >= (int)sizeof(public_path))
        return error_set(err, ERR_SSH_KEYGEN_FAILED, "the key pair for %s is none", path);
    if (write_new(path, key_text, (size_t)(at - key_text) + 1, 0600, err) < 0)
        return -1;
    return write_new(public_path, at + 2, strlen(at + 2), 0644, err);
}
