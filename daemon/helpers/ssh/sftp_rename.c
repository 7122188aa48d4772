/* sftp_rename.c - see sftp_rename.h.  SFTP 3 renames over nothing, and libssh 0.10 knows no better; mv does.
 *
 * Failures.  SFTP says no more than "failure" for most; mv has the system's text, which is read in its last words. */
#include "helpers/ssh/sftp_rename.h"

#include <string.h>
#include <sys/stat.h>

#include "base/buf.h"
#include "base/frame.h"
#include "base/mem.h"

/* The end of what a command says on stderr; its stdout has ended. */
static void last_words(ssh_channel c, char *out, size_t size)
{
    char bytes[256];
    size_t len = 0;
    int n;

    while ((n = ssh_channel_read(c, bytes, sizeof(bytes), 1)) > 0) {
        if (len + (size_t)n >= size) { /* (size is twice what is read, at least) */
            memmove(out, out + sizeof(bytes), len - sizeof(bytes));
            len -= sizeof(bytes);
        }
        memcpy(out + len, bytes, (size_t)n);
        len += (size_t)n;
    }
    out[len] = '\0';
}

static bool is_directory(sftp_session sftp, const char *path)
{
    sftp_attributes a = sftp_stat(sftp, path);
    bool directory = a != NULL && (a->permissions & S_IFMT) == S_IFDIR;

    sftp_attributes_free(a);
    return directory;
}

int rename_over(ssh_session ssh, sftp_session sftp, const char *from, const char *to, const char **ret_kind)
{
    CLEANUP_BUF struct buf command = BUF_INIT(64 << 10); /* two paths of 4096 quotes */
    char bytes[256], words[1024];

    if (sftp_rename(sftp, from, to) == 0)
        return 0;
    if (is_directory(sftp, to)) { /* mv would move it in there */
        *ret_kind = "to_directory";
        return -1;
    }
    buf_str(&command, "exec env LC_ALL=C mv -f -- ");
    shell_quote(&command, from);
    buf_char(&command, ' ');
    if (shell_quote(&command, to) != 0)
        return -1;
    ssh_channel c = ssh_channel_new(ssh);
    int status = -1;
    if (c != NULL && ssh_channel_open_session(c) == SSH_OK && ssh_channel_request_exec(c, command.data) == SSH_OK) {
        while (ssh_channel_read(c, bytes, sizeof(bytes), 0) > 0)
            ;
        last_words(c, words, sizeof(words));
        status = ssh_channel_get_exit_status(c);
        const char *kind = status > 0 ? shell_failure(words) : NULL;
        if (kind != NULL)
            *ret_kind = kind;
    }
    if (c != NULL)
        ssh_channel_free(c);
    return status == 0 ? 0 : -1;
}
