/* copy.c - see copy.h.
 *
 * Happy path: a directory is listed or walked, its files go one by one, streamed, modes kept.
 * Failure modes: the guest is hostile: names that would leave the directory are refused; Ctrl+C: what is unfinished goes, here and
 * there; one file fails: said, and the rest goes on. */
#include "copy.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "api.h"
#include "base/clock.h"
#include "base/fd.h"
#include "diagnostic.h"
#include "output.h"
#include "progress.h"
#include "signals.h"
#include "util.h"

enum { DEPTH_MAX = 64, TELL_MS = 200 };

static char *files_path(const struct copy *c, const char *path, const char *more)
{
    CLEANUP_FREE char *base = api_vm_path(c->vm, "/files?path=");
    struct buf text = BUF_INIT(TEXT_MAX);

    buf_str(&text, base);
    buf_url(&text, *path != '\0' ? path : ".");
    buf_str(&text, more);
    return x_take(&text);
}

static char *join(const char *dir, const char *name)
{
    size_t len = strlen(dir);

    return x_printf("%s%s%s", dir, len > 0 && dir[len - 1] == '/' ? "" : "/", name);
}

/* The last part of a path, without slashes behind it; the caller mem_frees. */
static char *last_part(const char *path)
{
    size_t end = strlen(path);

    while (end > 1 && path[end - 1] == '/')
        end--;
    size_t begin = end;
    while (begin > 0 && path[begin - 1] != '/')
        begin--;
    return x_printf("%.*s", (int)(end - begin), path + begin);
}

static int local_error(const char *path, const char *what)
{
    note("%s: %s: %s", path, what, strerror(errno));
    return EXIT_FAILED;
}

/* The first failure counts, Ctrl+C above all. */
static void worse(int *result, int code)
{
    if (*result == EXIT_DONE || code == EXIT_INTERRUPTED)
        *result = code;
}

static bool goes_on(int result)
{
    return result != EXIT_INTERRUPTED && result != EXIT_UNREACHABLE;
}

/* ---- what is there ---- */

enum kind { KIND_FILE, KIND_DIRECTORY, KIND_MISSING, KIND_FAILED };

/* Of a path in the guest; of a directory what it holds is in *ret_list, which the caller owns. */
static enum kind look(const struct copy *c, const char *path, json_t **ret_list, int *ret_exit)
{
    CLEANUP_FREE char *url = files_path(c, path, "&list=1");
    struct api_request req = {.path = url};
    struct api_response res;
    enum api_result result = api_call(c->cli->api, &req, &res);
    const char *code = result == API_DONE ? json_text(res.json, "code") : "";
    enum kind kind = KIND_FAILED;

    *ret_list = NULL;
    if (result == API_DONE && api_ok(&res)) {
        *ret_list = json_incref(json_object_get(res.json, "items"));
        kind = KIND_DIRECTORY;
    } else if (strcmp(code, "vm_manager::guest::not_a_directory") == 0) {
        kind = KIND_FILE;
    } else if (strcmp(code, "vm_manager::guest::file_not_found") == 0 && ret_exit == NULL) {
        kind = KIND_MISSING;
    } else if (ret_exit != NULL) {
        *ret_exit = api_fail(c->cli, result, &res);
    }
    api_response_done(&res);
    return kind;
}

/* ---- from the guest ---- */

struct sink {
    int fd;
    int failed; /* errno */
    struct progress progress;
    const char *name;
    long long done;
    int64_t told_ms;
};

static bool take(void *arg, const char *bytes, size_t size)
{
    struct sink *sink = arg;

    while (size > 0) {
        ssize_t n = write(sink->fd, bytes, size);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0) {
            sink->failed = errno;
            return false;
        }
        bytes += n;
        size -= (size_t)n;
        sink->done += n;
    }
    if (clock_mono_ms() - sink->told_ms >= TELL_MS) {
        sink->told_ms = clock_mono_ms();
        progress_amount(&sink->progress, sink->name, "copy", sink->done, -1);
    }
    return true;
}

static int get_file(const struct copy *c, const char *from, const char *to)
{
    CLEANUP_FREE char *url = files_path(c, from, ""), *part = x_printf("%s.vmctl-%d", to, (int)getpid());
    struct sink sink = {.fd = open(part, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600),
                        .name = to,
                        .told_ms = clock_mono_ms()};
    CLEANUP_FD int fd = sink.fd;
    struct api_request req = {.path = url, .stream = true, .sink = take, .arg = &sink};
    struct api_response res;
    int code = EXIT_DONE;

    if (fd < 0)
        return local_error(part, "cannot be made");
    progress_init(&sink.progress, c->cli);
    enum api_result result = api_call(c->cli->api, &req, &res);
    progress_clear();
    mode_t mode = res.file_mode[0] != '\0' ? (mode_t)strtoul(res.file_mode, NULL, 8) & 0777 : 0644;
    if (result == API_STOPPED) {
        errno = sink.failed;
        code = local_error(to, "cannot be written");
    } else if (result != API_DONE || !api_ok(&res)) {
        code = api_fail(c->cli, result, &res);
    } else if (fchmod(fd, mode) < 0 || rename(part, to) < 0) {
        code = local_error(to, "cannot be written");
    }
    if (code != EXIT_DONE)
        unlink(part);
    api_response_done(&res);
    return code;
}

/* It comes from the guest, and must stay below the directory it is for. */
static bool name_safe(const char *name)
{
    return *name != '\0' && strcmp(name, ".") != 0 && strcmp(name, "..") != 0 && strchr(name, '/') == NULL;
}

static int get_tree(const struct copy *c, const char *from, const char *to, const json_t *list, int depth)
{
    int result = EXIT_DONE;
    const json_t *item;
    size_t i;

    if (depth > DEPTH_MAX) {
        note("%s: too deep", from);
        return EXIT_FAILED;
    }
    if (mkdir(to, 0777) < 0 && errno != EEXIST)
        return local_error(to, "cannot be made");
    json_array_foreach(list, i, item)
    {
        const char *name = json_text(item, "name"), *type = json_text(item, "type");

        if (!goes_on(result) || signals_interrupted())
            break;
        if (!name_safe(name)) {
            note("%s: \"%s\" is no name for a file here; left out", from, name);
            worse(&result, EXIT_FAILED);
            continue;
        }
        CLEANUP_FREE char *there = join(from, name), *here = join(to, name);
        if (strcmp(type, "file") == 0) {
            worse(&result, get_file(c, there, here));
        } else if (strcmp(type, "directory") == 0) {
            CLEANUP_JSON json_t *below = NULL;
            int code = EXIT_FAILED;
            enum kind kind = look(c, there, &below, &code);
            worse(&result, kind == KIND_DIRECTORY ? get_tree(c, there, here, below, depth + 1) : code);
        } else {
            note("%s: a %s; left out", there, type);
        }
    }
    return signals_interrupted() ? EXIT_INTERRUPTED : result;
}

static int get(const struct copy *c, const char *from, bool into)
{
    CLEANUP_FREE char *name = last_part(from), *to = into ? join(c->target, name) : x_strdup(c->target);
    CLEANUP_JSON json_t *list = NULL;
    int code = EXIT_FAILED;

    switch (look(c, from, &list, &code)) {
    case KIND_FILE:
        return get_file(c, from, to);
    case KIND_DIRECTORY:
        if (c->recursive)
            return get_tree(c, from, to, list, 0);
        note("%s: a directory; -r copies it", from);
        return EXIT_FAILED;
    default:
        return code;
    }
}

int copy_from_guest(const struct copy *c)
{
    struct stat st;
    bool into = stat(c->target, &st) == 0 && S_ISDIR(st.st_mode);
    int result = EXIT_DONE;

    if (c->n_sources > 1 && !into) {
        note("%s: not a directory", c->target);
        return EXIT_FAILED;
    }
    for (size_t i = 0; i < c->n_sources && goes_on(result); i++)
        worse(&result, get(c, c->sources[i], into));
    return result;
}

/* ---- to the guest ---- */

struct sending {
    struct progress progress;
    const char *name;
};

static void on_sent(void *arg, long long done, long long total)
{
    const struct sending *s = arg;

    progress_amount(&s->progress, s->name, "copy", done, total);
}

static int put_file(const struct copy *c, const char *from, const char *to)
{
    struct sending sending = {.name = from};
    CLEANUP_FREE char *url = files_path(c, to, "");
    CLEANUP_FD int fd = open(from, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
    char mode[8];
    struct stat st;
    struct api_request req = {.method = "PUT",
                              .path = url,
                              .stream = true,
                              .upload_fd = &fd,
                              .file_mode = mode,
                              .sent = on_sent,
                              .arg = &sending};
    struct api_response res;

    if (fd < 0 || fstat(fd, &st) < 0)
        return local_error(from, "cannot be read");
    if (!S_ISREG(st.st_mode)) {
        note("%s: not a regular file; left out", from);
        return EXIT_FAILED;
    }
    snprintf(mode, sizeof(mode), "%04o", (unsigned)st.st_mode & 0777);
    req.upload_size = st.st_size;
    progress_init(&sending.progress, c->cli);
    enum api_result result = api_call(c->cli->api, &req, &res);
    progress_clear();
    int code = result == API_DONE && api_ok(&res) ? EXIT_DONE : api_fail(c->cli, result, &res);
    api_response_done(&res);
    return code;
}

static int make_directory(const struct copy *c, const char *path, mode_t mode)
{
    CLEANUP_FREE char *url = api_vm_path(c->vm, "/files/mkdir"), *text = x_printf("%04o", (unsigned)mode & 0777);
    CLEANUP_JSON json_t *body = json_pack("{s:s, s:s, s:b}", "path", path, "mode", text, "parents", 1);
    struct api_request req = {.method = "POST", .path = url, .body = body};
    struct api_response res;

    if (body == NULL) {
        note("%s: not UTF-8; left out", path);
        return EXIT_FAILED;
    }
    enum api_result result = api_call(c->cli->api, &req, &res);
    int code = result == API_DONE && api_ok(&res) ? EXIT_DONE : api_fail(c->cli, result, &res);
    api_response_done(&res);
    return code;
}

static int put_tree(const struct copy *c, const char *from, const char *to, mode_t mode, int depth)
{
    int result = depth <= DEPTH_MAX ? make_directory(c, to, mode | 0700) : EXIT_FAILED;
    DIR *dir = result == EXIT_DONE ? opendir(from) : NULL;
    const struct dirent *entry;
    struct stat st;

    if (result != EXIT_DONE)
        return result;
    if (dir == NULL)
        return local_error(from, "cannot be read");
    while (goes_on(result) && !signals_interrupted() && (entry = readdir(dir)) != NULL) {
        if (!name_safe(entry->d_name))
            continue;
        CLEANUP_FREE char *here = join(from, entry->d_name), *there = join(to, entry->d_name);
        if (lstat(here, &st) < 0)
            worse(&result, local_error(here, "cannot be read"));
        else if (S_ISDIR(st.st_mode))
            worse(&result, put_tree(c, here, there, st.st_mode, depth + 1));
        else if (S_ISREG(st.st_mode) || (S_ISLNK(st.st_mode) && stat(here, &st) == 0 && S_ISREG(st.st_mode)))
            worse(&result, put_file(c, here, there));
        else
            note("%s: neither a file nor a directory; left out", here);
    }
    closedir(dir);
    return signals_interrupted() ? EXIT_INTERRUPTED : result;
}

static int put(const struct copy *c, const char *from, bool into)
{
    CLEANUP_FREE char *name = last_part(from), *to = into ? join(c->target, name) : x_strdup(c->target);
    struct stat st;

    if (stat(from, &st) < 0)
        return local_error(from, "cannot be read");
    if (!S_ISDIR(st.st_mode))
        return put_file(c, from, to);
    if (c->recursive)
        return put_tree(c, from, to, st.st_mode, 0);
    note("%s: a directory; -r copies it", from);
    return EXIT_FAILED;
}

int copy_to_guest(const struct copy *c)
{
    CLEANUP_JSON json_t *list = NULL;
    bool into = look(c, c->target, &list, NULL) == KIND_DIRECTORY;
    int result = EXIT_DONE;

    if (c->n_sources > 1 && !into) {
        note("%s: not a directory in the guest", c->target);
        return EXIT_FAILED;
    }
    for (size_t i = 0; i < c->n_sources && goes_on(result); i++)
        worse(&result, put(c, c->sources[i], into));
    return result;
}
