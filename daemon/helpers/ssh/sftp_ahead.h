/* sftp_ahead.h - writes into a file of the guest, many under way at once.  Part of vmmd-ssh.
 *
 * libssh 0.10 waits for the answer to each write, so that a guest and the host take turns in idling; its 0.11 has sftp_aio for
 * this.  While some are under way nothing else may be asked of the SFTP session: end with write_ahead_end, also after a failure. */
#ifndef HELPERS_SSH_SFTP_AHEAD_H
#define HELPERS_SSH_SFTP_AHEAD_H

#include <libssh/sftp.h>
#include <stddef.h>

struct write_ahead {
    sftp_file file;
    unsigned begun, ended;
    int code; /* SSH_FX_…: the first failure's */
};

/* Behind the last one.  -1 when one failed, this or one before. */
int write_ahead(struct write_ahead *w, const char *data, size_t len);
/* Awaits the answers to all; -1 when any was a failure, which sftp_get_error then tells. */
int write_ahead_end(struct write_ahead *w);

#endif
