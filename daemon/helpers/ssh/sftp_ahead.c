/* sftp_ahead.c - writes into a file of the guest, many under way at once.  See sftp_ahead.h.
 *
 * Happy path: SSH_FXP_WRITE packets go out on the SFTP session's channel; when AHEAD are under way the oldest answer is awaited
 * first.  Failures.  An answer that is no success: nothing more is sent, the rest of the answers is taken, so that the session
 * can be used on.  The channel ends, or an answer is none to a write: the connection is of no more use. */
#include <endian.h>
#include <string.h>

#include "base/mem.h"
#include "helpers/ssh/sftp_ahead.h"

enum {
    AHEAD = 8,
    HANDLE_MAX = 256, /* of SFTP 3 */
    HEAD_MAX = 4 + 1 + 4 + 4 + HANDLE_MAX + 8 + 4,
    ANSWER_MAX = 4096,
    SSH_FXP_WRITE_TYPE = 6,
    SSH_FXP_STATUS_TYPE = 101,
};

static char *put32(char *p, uint32_t value)
{
    value = htobe32(value);
    return mempcpy(p, &value, sizeof(value));
}

static uint32_t get32(const char *p)
{
    uint32_t value;

    memcpy(&value, p, sizeof(value));
    return be32toh(value);
}

static int broken(struct write_ahead *w)
{
    w->code = SSH_FX_CONNECTION_LOST;
    w->ended = w->begun;
    return -1;
}

static int send_all(ssh_channel c, const char *data, size_t len)
{
    while (len > 0) {
        int n = ssh_channel_write(c, data, (uint32_t)len);
        if (n <= 0)
            return -1;
        data += n;
        len -= (size_t)n;
    }
    return 0;
}

static int receive_all(ssh_channel c, char *out, size_t len)
{
    while (len > 0) {
        int n = ssh_channel_read(c, out, (uint32_t)len, 0);
        if (n < 0 || (n == 0 && (ssh_channel_is_eof(c) || !ssh_channel_is_open(c))))
            return -1;
        out += n;
        len -= (size_t)n;
    }
    return 0;
}

/* The next answer; they need not come in order. */
static int take_answer(struct write_ahead *w)
{
    ssh_channel c = w->file->sftp->channel;
    char head[4], answer[ANSWER_MAX];

    if (receive_all(c, head, sizeof(head)) < 0)
        return broken(w);
    size_t len = get32(head);
    if (len < 9 || len > sizeof(answer) || receive_all(c, answer, len) < 0 || answer[0] != SSH_FXP_STATUS_TYPE)
        return broken(w);
    w->ended++;
    uint32_t code = get32(answer + 5);
    if (code != SSH_FX_OK && w->code == SSH_FX_OK)
        w->code = (int)code;
    return w->code == SSH_FX_OK ? 0 : -1;
}

int write_ahead(struct write_ahead *w, const char *data, size_t len)
{
    sftp_session sftp = w->file->sftp;
    size_t handle_len = ssh_string_len(w->file->handle);
    char head[HEAD_MAX], *p = head;

    if (w->code != SSH_FX_OK || handle_len > HANDLE_MAX)
        return -1;
    if (w->begun - w->ended == AHEAD && take_answer(w) < 0)
        return -1;
    p = put32(p, (uint32_t)(1 + 4 + 4 + handle_len + 8 + 4 + len));
    *p++ = SSH_FXP_WRITE_TYPE;
    p = put32(p, ++sftp->id_counter);
    p = put32(p, (uint32_t)handle_len);
    p = mempcpy(p, ssh_string_data(w->file->handle), handle_len);
    p = put32(p, (uint32_t)(w->file->offset >> 32));
    p = put32(p, (uint32_t)w->file->offset);
    p = put32(p, (uint32_t)len);
    if (send_all(sftp->channel, head, (size_t)(p - head)) < 0 || send_all(sftp->channel, data, len) < 0)
        return broken(w);
    w->file->offset += len;
    w->begun++;
    return 0;
}

int write_ahead_end(struct write_ahead *w)
{
    while (w->ended < w->begun)
        take_answer(w);
    w->file->sftp->errnum = w->code;
    return w->code == SSH_FX_OK ? 0 : -1;
}
