/* files.c - a worker with one connection and SFTP on it; one transfer after the other.
 *
 * Happy path: the request's frame says what to do; a file goes out in pipelined reads, and comes in under a temporary name
 * that is renamed at the end.  All of it blocks, in its own thread: vmmd holds a transfer back by its socket.
 * Failures.  The socket closes: the temporary file is removed.  The connection is lost: told, and made anew for the next. */
#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <libssh/sftp.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/fd.h"
#include "base/mem.h"
#include "base/uuid.h"
#include "helpers/ssh/sftp_ahead.h"
#include "helpers/ssh/sftp_rename.h"
#include "helpers/ssh/ssh.h"

enum {
    READ_SIZE = 32768,
    READ_AHEAD = 32,
    WRITE_SIZE = 32768,          /* every server takes so much */
    WRITE_SIZE_OPENSSH = 245760, /* of its 256 KiB */
    TICK_MS = 1000,
    TEMP_PATH_MAX = 4200,
};

struct files {
    struct worker *w;
    ssh_session ssh;
    sftp_session sftp;
    size_t write_size;
    int fd;           /* the session's socket */
    struct buf chunk; /* on its way into a file */
    bool lost;        /* vmmd closed it */
};

/* --- the socket --- */

static int send_all(struct files *f, const char *data, size_t len)
{
    while (len > 0) {
        ssize_t n = send(f->fd, data, len, MSG_NOSIGNAL);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0) {
            f->lost = true;
            return -1;
        }
        data += n;
        len -= (size_t)n;
    }
    return 0;
}

static int send_frame(struct files *f, int type, const char *data, size_t len)
{
    char head[FRAME_HEAD];

    frame_head(head, type, len);
    return send_all(f, head, FRAME_HEAD) < 0 || send_all(f, data, len) < 0 ? -1 : 0;
}

static int receive_all(struct files *f, char *out, size_t len)
{
    while (len > 0) {
        ssize_t n = recv(f->fd, out, len, 0);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0) {
            f->lost = true;
            return -1;
        }
        out += n;
        len -= (size_t)n;
    }
    return 0;
}

/* The payload goes to the end of `into`; returns the type, -1 when the socket closed or talks nonsense. */
static int receive_frame(struct files *f, struct buf *into)
{
    unsigned char head[FRAME_HEAD];
    char bytes[FRAME_MAX];

    if (receive_all(f, (char *)head, FRAME_HEAD) < 0)
        return -1;
    size_t len = (size_t)head[1] << 24 | (size_t)head[2] << 16 | (size_t)head[3] << 8 | head[4];
    if (len > sizeof(bytes) || receive_all(f, bytes, len) < 0 || buf_append(into, bytes, len) != 0) {
        f->lost = true;
        return -1;
    }
    return head[0];
}

/* --- answers --- */

static void answer_error(struct files *f, const char *kind, const char *detail)
{
    CLEANUP_BUF struct buf out = BUF_INIT(16384);

    end_error(&out, kind, detail);
    send_all(f, out.data, out.len);
}

static const char *sftp_kind(struct files *f)
{
    switch (sftp_get_error(f->sftp)) {
    case SSH_FX_NO_SUCH_FILE:
    case SSH_FX_NO_SUCH_PATH:
        return "missing";
    case SSH_FX_PERMISSION_DENIED:
    case SSH_FX_WRITE_PROTECT:
        return "denied";
    case SSH_FX_NO_CONNECTION:
    case SSH_FX_CONNECTION_LOST:
        return "connect";
    default:
        return ssh_is_connected(f->ssh) ? "failed" : "connect";
    }
}

static void answer_sftp(struct files *f, const char *what)
{
    static const char *const texts[] = {"ok",           "end of file", "no such file",  "permission denied",
                                        "failure",      "bad message", "no connection", "connection lost",
                                        "not supported"};
    int code = sftp_get_error(f->sftp);
    char detail[100];

    snprintf(detail, sizeof(detail), "%s: %s", what,
             code >= 0 && code < (int)ARRAY_SIZE(texts) ? texts[code] : "failure");
    answer_error(f, sftp_kind(f), detail);
}

static const char *type_text(const struct sftp_attributes_struct *a)
{
    switch (a->permissions & S_IFMT) {
    case S_IFREG:
        return "file";
    case S_IFDIR:
        return "directory";
    case S_IFLNK:
        return "symlink";
    default:
        return "other";
    }
}

static void put_stat(struct buf *out, const char *name, const struct sftp_attributes_struct *a)
{
    buf_char(out, '{');
    if (name != NULL) {
        buf_str(out, "\"name\":");
        buf_json_str(out, name);
        buf_char(out, ',');
    }
    buf_printf(out, "\"type\":\"%s\",\"size\":%llu,\"mode\":\"%04o\",\"mtime\":%lu}", type_text(a),
               (unsigned long long)(a->size < INT64_MAX ? a->size : INT64_MAX), a->permissions & 07777,
               (unsigned long)a->mtime);
}

static int answer_stat(struct files *f, int type, const struct sftp_attributes_struct *a)
{
    CLEANUP_BUF struct buf out = BUF_INIT(4096);

    put_stat(&out, NULL, a);
    return send_frame(f, type, out.data, out.len);
}

/* --- out of the guest --- */

static void get_stat(struct files *f, const char *path)
{
    sftp_attributes a = sftp_stat(f->sftp, path);

    if (a == NULL)
        answer_sftp(f, "stat");
    else
        answer_stat(f, FRAME_END, a);
    sftp_attributes_free(a);
}

/* From the file's position to its end, one read after the other: for what has no size, and behind a short read. */
static int copy_slowly(struct files *f, sftp_file file)
{
    char bytes[READ_SIZE];
    ssize_t n;

    while ((n = sftp_read(file, bytes, sizeof(bytes))) > 0)
        if (send_frame(f, FRAME_OUT, bytes, (size_t)n) < 0)
            return -1;
    return n < 0 ? -1 : 0;
}

/* Many reads are under way at once.  Each begins where the one before would end; so after a short one all is done anew from there. */
static int copy_quickly(struct files *f, sftp_file file, uint64_t size)
{
    char bytes[READ_SIZE];
    uint32_t ids[READ_AHEAD];
    uint64_t asked = 0, got = 0;
    unsigned begun = 0, ended = 0;
    bool whole = true;

    while (whole || ended < begun) {
        while (whole && begun - ended < READ_AHEAD && asked < size) {
            int id = sftp_async_read_begin(file, READ_SIZE);
            if (id < 0)
                return -1;
            ids[begun++ % READ_AHEAD] = (uint32_t)id;
            asked += READ_SIZE;
        }
        if (ended == begun)
            break;
        int n = sftp_async_read(file, bytes, READ_SIZE, ids[ended++ % READ_AHEAD]);
        if (n < 0)
            return -1;
        if (whole && n > 0 && send_frame(f, FRAME_OUT, bytes, (size_t)n) < 0)
            return -1;
        got += whole ? (uint64_t)n : 0;
        whole = whole && n == READ_SIZE;
    }
    sftp_seek64(file, got);
    return copy_slowly(f, file);
}

static void get_file(struct files *f, const char *path)
{
    sftp_attributes a = sftp_stat(f->sftp, path);
    sftp_file file = NULL;
    int rc = -1;

    if (a == NULL) {
        answer_sftp(f, "stat");
    } else if ((a->permissions & S_IFMT) != S_IFREG) {
        answer_error(f, "not_file", type_text(a));
    } else if ((file = sftp_open(f->sftp, path, O_RDONLY, 0)) == NULL) {
        answer_sftp(f, "open");
    } else if (answer_stat(f, FRAME_STARTED, a) == 0) {
        rc = a->size > 0 ? copy_quickly(f, file, a->size) : copy_slowly(f, file);
        if (rc == 0)
            send_frame(f, FRAME_END, "{}", 2);
        else if (!f->lost)
            answer_sftp(f, "read");
    }
    if (file != NULL)
        sftp_close(file);
    if (rc < 0 && file != NULL && f->sftp != NULL)
        f->lost = true; /* answers to reads may be on their way: the connection is not used again */
    sftp_attributes_free(a);
}

static void list(struct files *f, const char *path)
{
    sftp_attributes a = sftp_stat(f->sftp, path);
    bool directory = a != NULL && (a->permissions & S_IFMT) == S_IFDIR;

    if (a != NULL && !directory)
        answer_error(f, "not_directory", "it is no directory");
    sftp_dir dir = directory ? sftp_opendir(f->sftp, path) : NULL;
    if (dir == NULL && (a == NULL || directory))
        answer_sftp(f, "list");
    sftp_attributes_free(a);
    if (dir == NULL)
        return;
    int rc = 0;
    while (rc == 0 && (a = sftp_readdir(f->sftp, dir)) != NULL) {
        CLEANUP_BUF struct buf line = BUF_INIT(16384);
        if (strcmp(a->name, ".") != 0 && strcmp(a->name, "..") != 0) {
            put_stat(&line, a->name, a);
            rc = line.failed ? 0 : send_frame(f, FRAME_OUT, line.data, line.len);
        }
        sftp_attributes_free(a);
    }
    bool whole = sftp_dir_eof(dir);
    sftp_closedir(dir);
    if (rc == 0 && whole)
        send_frame(f, FRAME_END, "{}", 2);
    else if (rc == 0)
        answer_sftp(f, "list");
}

/* --- into the guest --- */

static int write_chunk(struct files *f, struct write_ahead *w, size_t len)
{
    int rc = write_ahead(w, f->chunk.data, len);

    buf_consume(&f->chunk, len);
    return rc;
}

/* The body, to FRAME_INPUT_END. */
static int receive_body(struct files *f, struct write_ahead *w)
{
    int type;

    buf_reset(&f->chunk);
    while ((type = receive_frame(f, &f->chunk)) == FRAME_INPUT)
        while (f->chunk.len >= f->write_size)
            if (write_chunk(f, w, f->write_size) < 0)
                return -1;
    if (type != FRAME_INPUT_END) {
        f->lost = true;
        return -1;
    }
    return f->chunk.len > 0 ? write_chunk(f, w, f->chunk.len) : 0;
}

static int receive_file(struct files *f, sftp_file file)
{
    struct write_ahead w = {.file = file};
    int rc = receive_body(f, &w);

    return write_ahead_end(&w) < 0 ? -1 : rc;
}

static bool disk_full(struct files *f, const char *path)
{
    sftp_statvfs_t v = sftp_statvfs(f->sftp, path);
    bool full = v != NULL && v->f_bavail == 0;

    if (v != NULL)
        sftp_statvfs_free(v);
    return full;
}

static bool temp_path(char out[TEMP_PATH_MAX], const char *path)
{
    const char *slash = strrchr(path, '/');
    struct uuid id = uuid_new();
    char text[UUID_TEXT_MAX];

    return snprintf(out, TEMP_PATH_MAX, "%.*s.vmmd-%s", (int)(slash != NULL ? slash + 1 - path : 0), path,
                    uuid_text(&id, text)) < TEMP_PATH_MAX;
}

static void put_whole(struct files *f, sftp_file file, const char *temp, const char *path, unsigned mode)
{
    bool written = receive_file(f, file) == 0 && sftp_chmod(f->sftp, temp, mode) == 0;
    bool full = !written && !f->lost && disk_full(f, temp);

    if (written && sftp_extension_supported(f->sftp, "fsync@openssh.com", "1"))
        written = sftp_fsync(file) == 0;
    const char *kind = written ? NULL : sftp_kind(f);
    written = sftp_close(file) == SSH_OK && written;
    if (written && rename_over(f->ssh, f->sftp, temp, path, &kind) == 0) {
        get_stat(f, path);
        return;
    }
    sftp_unlink(f->sftp, temp);
    if (f->lost)
        return;
    if (full)
        answer_error(f, "no_space", "the guest's file system is full");
    else
        answer_error(f, kind != NULL ? kind : "failed",
                     written ? "it could not be renamed" : "it could not be written");
    f->lost = true; /* more of the body may come */
}

static void put_file(struct files *f, const char *path, const char *mode_text)
{
    char temp[TEMP_PATH_MAX];
    sftp_attributes a = sftp_stat(f->sftp, path);
    unsigned mode = a != NULL ? a->permissions & 07777 : 0644;
    bool directory = a != NULL && (a->permissions & S_IFMT) == S_IFDIR;

    sftp_attributes_free(a);
    if (mode_text != NULL)
        sscanf(mode_text, "%o", &mode);
    if (directory || !temp_path(temp, path)) {
        answer_error(f, "not_file", "directory");
        f->lost = true;
        return;
    }
    sftp_file file = sftp_open(f->sftp, temp, O_WRONLY | O_CREAT | O_EXCL, 0600);
    if (file == NULL) {
        answer_sftp(f, "create");
        f->lost = true;
        return;
    }
    if (send_frame(f, FRAME_STARTED, "{}", 2) == 0) {
        put_whole(f, file, temp, path, mode & 07777);
        return;
    }
    sftp_close(file);
    sftp_unlink(f->sftp, temp);
}

/* --- the small ones --- */

static void answer_done(struct files *f, int rc, const char *what)
{
    if (rc == 0)
        send_frame(f, FRAME_END, "{}", 2);
    else
        answer_sftp(f, what);
}

static int make_dir(struct files *f, const char *path, bool parents, unsigned mode)
{
    char part[TEMP_PATH_MAX];

    if (snprintf(part, sizeof(part), "%s", path) >= (int)sizeof(part))
        return -1;
    for (char *slash = part + 1; parents && (slash = strchr(slash, '/')) != NULL; slash++) {
        *slash = '\0';
        sftp_mkdir(f->sftp, part, 0755);
        *slash = '/';
    }
    if (sftp_mkdir(f->sftp, part, mode) == 0)
        return sftp_chmod(f->sftp, part, mode);
    int code = sftp_get_error(f->sftp);
    sftp_attributes a = sftp_stat(f->sftp, part);
    bool there = a != NULL && (a->permissions & S_IFMT) == S_IFDIR;
    sftp_attributes_free(a);
    return there && (parents || code == SSH_FX_FILE_ALREADY_EXISTS) ? 0 : -1;
}

/* A directory may be looked into, and has an entry. */
static bool holds_something(struct files *f, const char *path)
{
    sftp_dir dir = sftp_opendir(f->sftp, path);
    sftp_attributes a;
    bool any = false;

    while (dir != NULL && !any && (a = sftp_readdir(f->sftp, dir)) != NULL) {
        any = strcmp(a->name, ".") != 0 && strcmp(a->name, "..") != 0;
        sftp_attributes_free(a);
    }
    if (dir != NULL)
        sftp_closedir(dir);
    return any;
}

/* SFTP 3 has one word, failure, for a directory that is not empty and much else: it is looked into.  "/" is busy. */
static void remove_path(struct files *f, const char *path)
{
    sftp_attributes a = sftp_lstat(f->sftp, path);
    bool directory = a != NULL && (a->permissions & S_IFMT) == S_IFDIR;
    int rc = a == NULL ? -1 : directory ? sftp_rmdir(f->sftp, path) : sftp_unlink(f->sftp, path);

    sftp_attributes_free(a);
    if (rc < 0 && directory && sftp_get_error(f->sftp) == SSH_FX_FAILURE && path[strspn(path, "/")] != '\0' &&
        holds_something(f, path))
        answer_error(f, "not_empty", "it is not empty");
    else
        answer_done(f, rc, "delete");
}

static void rename_path(struct files *f, const char *from, const char *to)
{
    const char *kind = NULL;
    int rc = rename_over(f->ssh, f->sftp, from, to, &kind);

    if (rc < 0 && kind != NULL)
        answer_error(f, kind, "rename: mv failed");
    else
        answer_done(f, rc, "rename");
}

static void obey(struct files *f, const json_t *request)
{
    const char *op = "", *path = "", *to = "", *mode = NULL;
    unsigned bits = 0755;
    int parents = 0;

    if (json_unpack((json_t *)(uintptr_t)request, "{s:s, s:s, s?s, s?s, s?b}", "op", &op, "path", &path, "to", &to,
                    "mode", &mode, "parents", &parents) < 0)
        return;
    if (strcmp(op, "get") == 0)
        get_file(f, path);
    else if (strcmp(op, "put") == 0)
        put_file(f, path, mode);
    else if (strcmp(op, "stat") == 0)
        get_stat(f, path);
    else if (strcmp(op, "list") == 0)
        list(f, path);
    else if (strcmp(op, "rename") == 0)
        rename_path(f, path, to);
    else if (strcmp(op, "delete") == 0)
        remove_path(f, path);
    else if (strcmp(op, "mkdir") == 0 && (mode == NULL || sscanf(mode, "%o", &bits) == 1))
        answer_done(f, make_dir(f, path, parents != 0, bits & 07777), "mkdir");
}

/* --- the worker --- */

static void disconnect(struct files *f)
{
    if (f->sftp != NULL)
        sftp_free(f->sftp);
    f->sftp = NULL;
    conn_close(f->ssh);
    f->ssh = NULL;
}

static bool connected(struct files *f)
{
    char why[256] = "SFTP is not to be had";
    const char *kind = "error";

    if (f->ssh != NULL && ssh_is_connected(f->ssh))
        return true;
    disconnect(f);
    f->ssh = conn_open(CONNECT_S * 1000, -1, why, &kind);
    f->sftp = f->ssh != NULL ? sftp_new(f->ssh) : NULL;
    if (f->sftp != NULL && sftp_init(f->sftp) == SSH_OK) {
        f->write_size =
            sftp_extension_supported(f->sftp, "posix-rename@openssh.com", "1") ? WRITE_SIZE_OPENSSH : WRITE_SIZE;
        return true;
    }
    answer_error(f, kind, why);
    disconnect(f);
    return false;
}

static void serve_one(struct files *f)
{
    CLEANUP_BUF struct buf text = BUF_INIT(FRAME_MAX);
    int flags = fcntl(f->fd, F_GETFL);

    fcntl(f->fd, F_SETFL, flags & ~O_NONBLOCK);
    f->lost = false;
    if (receive_frame(f, &text) == FRAME_REQUEST && connected(f)) {
        json_t *request = json_loadb(text.data, text.len, JSON_REJECT_DUPLICATES, NULL);
        if (send_frame(f, FRAME_ASKED, "", 0) == 0)
            obey(f, request);
        json_decref(request);
        if (f->lost)
            disconnect(f);
    }
    f->fd = fd_close(f->fd);
    worker_ended(f->w);
}

void *files_worker(void *arg)
{
    struct files f = {.w = arg, .fd = -1};
    struct given given;
    char bytes[16];

    buf_init(&f.chunk, WRITE_SIZE_OPENSSH + 2 * FRAME_MAX);
    while (!worker_retire(f.w)) {
        while (worker_take(f.w, &given)) {
            f.fd = given.fd;
            serve_one(&f);
        }
        struct pollfd p = {.fd = f.w->wake[0], .events = POLLIN};
        poll(&p, 1, TICK_MS);
        while (read(f.w->wake[0], bytes, sizeof(bytes)) > 0)
            ;
    }
    disconnect(&f);
    buf_done(&f.chunk);
    pthread_mutex_lock(&helper.lock);
    f.w->over = true;
    pthread_mutex_unlock(&helper.lock);
    return NULL;
}
