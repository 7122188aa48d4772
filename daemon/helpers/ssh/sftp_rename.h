/* sftp_rename.h - a rename over what is there, in one step.  Blocks. */
#ifndef HELPERS_SSH_SFTP_RENAME_H
#define HELPERS_SSH_SFTP_RENAME_H

#include <libssh/libssh.h>
#include <libssh/sftp.h>

/* 0; or -1, with *ret_kind as an `error` of a session's end where the guest says why, else as it was. */
int rename_over(ssh_session ssh, sftp_session sftp, const char *from, const char *to, const char **ret_kind);

#endif
