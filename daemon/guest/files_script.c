/* files_script.c - see files_script.h.  Every text of a client goes through shell_quote, and nowhere else into a shell.
 *
 * A path that begins with a dash gets "./" in front, so that no tool takes it for an option.  Failures are the exit codes below,
 * or the tool's own word: with LC_ALL=C the last ": " of its last line is followed by the system's text for the error. */
#include "guest/files_script.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "base/frame.h"
#include "base/mem.h"
#include "base/uuid.h"
#include "guest/info.h"

enum {
    EXIT_NOT_FILE = 61,
    EXIT_NOT_DIRECTORY = 62,
    EXIT_NO_TOOL = 63,
    EXIT_CHANGED = 64,
    EXIT_DENIED = 65,
    EXIT_TO_DIRECTORY = 66
};

static const char head[] =
    "export LC_ALL=C; umask 022; unset CDPATH\n"
    "need() { for n; do command -v \"$n\" >/dev/null || { printf %s \"$n\" >&2; exit 63; }; done; }\n"
    "info() { stat -L -c '%f %s %Y %d:%i' \"$1\"; }\n";

static const char stat_script[] = "need stat; info \"$p\"\n";

/* The file is looked at before it is opened, for a FIFO would hang; and again when it is open: that is what is read. */
static const char get_script[] = "need stat dd head\n"
                                 "info \"$p\" >/dev/null || exit 1\n"
                                 "[ -f \"$p\" ] || exit 61\n"
                                 "exec 3<\"$p\" || exit 1\n"
                                 "info /proc/self/fd/3 || exit 1\n"
                                 "[ $k -eq 0 ] || dd bs=$c skip=$k count=0 <&3 2>/dev/null || exit 1\n"
                                 "exec head -c $c <&3\n";

/* A name has no slash: "/" and a newline end an entry, whatever its name is. */
static const char list_script[] =
    "need stat find head; info \"$p\" >/dev/null || exit 1\n"
    "[ -d \"$p\" ] || exit 62\n"
    "[ -r \"$p\" ] && cd \"$p\" 2>/dev/null || exit 65\n"
    "{ find . ! -name . -prune -exec stat -c '%f %s %Y %n/' {} + ; echo end; } 2>/dev/null | head -c $c\n";

static const char put_begin[] = "need stat cat chmod mv rm\n"
                                "bad() { rm -f \"$t\" 2>/dev/null; exit $1; }\n";
static const char put_first[] = "[ ! -d \"$p\" ] || exit 61\n"
                                "( umask 077; set -C; true >\"$t\" ) || exit 1\n";
/* Nothing is missing, and nothing came twice. */
static const char put_check[] = "[ \"$(stat -c %s \"$t\" 2>/dev/null)\" = $o ] || bad 64\n";
static const char put_more[] = "cat >>\"$t\" || bad 1\n";
/* sync of one file is not everywhere, and counts where it says why it failed. */
static const char put_last[] = "[ -n \"$m\" ] || m=$(stat -L -c %a \"$p\" 2>/dev/null) || m=644\n"
                               "chmod \"$m\" \"$t\" || bad 1\n"
                               "e=$(sync \"$t\" 2>&1) || case $e in\n"
                               "*': No space left'* | *uota* | *'put error'*) echo \"$e\" >&2; bad 1 ;;\n"
                               "esac\n"
                               "[ ! -d \"$p\" ] || bad 61\n"
                               "mv -f \"$t\" \"$p\" </dev/null || bad 1\n"
                               "info \"$p\"\n";

static const char mkdir_script[] =
    "need mkdir; [ ! -d \"$p\" ] || exit 0\n"
    "d=${p%/*}\n"
    "[ -z \"$parents\" ] || [ -z \"$d\" ] || [ \"$d\" = \"$p\" ] || mkdir -p \"$d\" 2>/dev/null\n"
    "mkdir -m \"$m\" \"$p\" || [ -d \"$p\" ] || exit 1\n";

static const char rename_script[] = "need mv; [ ! -d \"$q\" ] || exit 66; mv -f \"$p\" \"$q\" </dev/null\n";

static const char delete_script[] =
    "need rm rmdir\n"
    "if [ -d \"$p\" ] && [ ! -L \"$p\" ]; then rmdir \"$p\"; else rm \"$p\" </dev/null; fi\n";

static void put_path(struct buf *out, const char *name, const char *path, size_t len)
{
    CLEANUP_FREE char *text = mem_printf("%s%.*s", path[0] == '-' ? "./" : "", (int)len, path);

    buf_printf(out, "%s=", name);
    if (text == NULL || shell_quote(out, text) < 0)
        out->failed = true;
    buf_char(out, '\n');
}

static void put_script(struct buf *out, const struct files_step *step)
{
    buf_printf(out, "m=%s\n", step->req->mode != NULL ? step->req->mode : "");
    put_path(out, "t", step->temp, strlen(step->temp));
    buf_str(out, put_begin);
    if (step->offset == 0)
        buf_str(out, put_first);
    buf_printf(out, "o=%" PRIu64 "\n", step->offset);
    buf_str(out, put_check);
    if (step->len > 0)
        buf_str(out, put_more);
    if (!step->last)
        return;
    buf_printf(out, "o=%" PRIu64 "\n", step->offset + step->len);
    buf_str(out, put_check);
    buf_str(out, put_last);
}

int files_script(struct buf *out, const struct files_step *step)
{
    const struct files_request *req = step->req;
    size_t len = strlen(req->path);

    while (req->op == FILES_MKDIR && len > 1 && req->path[len - 1] == '/')
        len--;
    buf_str(out, head);
    put_path(out, "p", req->path, len);
    switch (req->op) {
    case FILES_STAT:
        return buf_str(out, stat_script);
    case FILES_GET:
        buf_printf(out, "k=%" PRIu64 " c=%d\n", step->offset / FILES_GET_CHUNK, FILES_GET_CHUNK);
        return buf_str(out, get_script);
    case FILES_LIST:
        buf_printf(out, "c=%d\n", FILES_LIST_MAX);
        return buf_str(out, list_script);
    case FILES_PUT:
        put_script(out, step);
        return out->failed ? -1 : 0;
    case FILES_MKDIR:
        buf_printf(out, "m=%s parents=%s\n", req->mode != NULL ? req->mode : "0755", req->parents ? "1" : "");
        return buf_str(out, mkdir_script);
    case FILES_RENAME:
        put_path(out, "q", req->to, strlen(req->to));
        return buf_str(out, rename_script);
    case FILES_DELETE:
        return buf_str(out, delete_script);
    }
    return -1;
}

int files_script_discard(struct buf *out, const char *temp)
{
    put_path(out, "t", temp, strlen(temp));
    return buf_str(out, "rm -f \"$t\"\n");
}

char *files_temp_path(const char *path)
{
    const char *slash = strrchr(path, '/');
    struct uuid id = uuid_new();
    char text[UUID_TEXT_MAX];

    return mem_printf("%.*s.vmmd-%s", (int)(slash != NULL ? slash + 1 - path : 0), path, uuid_text(&id, text));
}

/* --- answers --- */

/* "MODE SIZE MTIME ", and where it ends. */
static int parse_numbers(const char *line, struct files_info *ret, int *ret_end)
{
    *ret_end = 0;
    if (sscanf(line, "%8x %" SCNu64 " %" SCNd64 " %n", &ret->mode, &ret->size, &ret->mtime, ret_end) != 3 ||
        *ret_end == 0 || line[*ret_end - 1] != ' ' || ret->size > INT64_MAX)
        return -1;
    return 0;
}

int files_info_parse(const char *data, size_t len, struct files_info *ret, size_t *ret_end)
{
    const char *end = memchr(data, '\n', len);
    char line[128];
    int at;

    if (end == NULL || (size_t)(end - data) >= sizeof(line))
        return -1;
    memcpy(line, data, (size_t)(end - data));
    line[end - data] = '\0';
    *ret = (struct files_info){0};
    if (parse_numbers(line, ret, &at) < 0 || line[at] == '\0' || strlen(line + at) >= sizeof(ret->identity) ||
        line[at + (int)strspn(line + at, "0123456789:")] != '\0')
        return -1;
    memcpy(ret->identity, line + at, strlen(line + at) + 1);
    *ret_end = (size_t)(end - data) + 1;
    return 0;
}

static const char *type_text(unsigned mode)
{
    return S_ISREG(mode) ? "file" : S_ISDIR(mode) ? "directory" : S_ISLNK(mode) ? "symlink" : "other";
}

int files_info_json(struct buf *out, const char *name, const struct files_info *info)
{
    buf_char(out, '{');
    if (name != NULL) {
        buf_str(out, "\"name\":");
        buf_json_str(out, name);
        buf_char(out, ',');
    }
    return buf_printf(out, "\"type\":\"%s\",\"size\":%" PRIu64 ",\"mode\":\"%04o\",\"mtime\":%" PRId64 "}",
                      type_text(info->mode), info->size, info->mode & 07777, info->mtime);
}

/* One entry, "MODE SIZE MTIME ./NAME/\n"; how long it is, or 0. */
static size_t parse_entry(const char *data, size_t len, struct buf *json)
{
    struct files_info info;
    const char *name = memchr(data, '/', len < 128 ? len : 128), *end;
    char text[128 + 256 * 4];
    int at;

    if (name == NULL || name - data < 2 || name[-1] != '.')
        return 0;
    memcpy(text, data, (size_t)(name - 1 - data));
    text[name - 1 - data] = '\0';
    if (parse_numbers(text, &info, &at) < 0 || at != name - 1 - data)
        return 0;
    name++;
    end = memchr(name, '/', len - (size_t)(name - data));
    if (end == NULL || end == name || (size_t)(end - name) >= sizeof(text) || end + 1 == data + len || end[1] != '\n' ||
        memchr(name, '\0', (size_t)(end - name)) != NULL)
        return 0;
    memcpy(text, name, (size_t)(end - name));
    text[end - name] = '\0';
    buf_reset(json);
    return files_info_json(json, text, &info) < 0 ? 0 : (size_t)(end + 2 - data);
}

int files_list_parse(const char *data, size_t len, bool (*entry)(void *arg, const char *json, size_t len), void *arg)
{
    CLEANUP_BUF struct buf json = BUF_INIT(16384);
    size_t n;

    while (len != 4 || memcmp(data, "end\n", 4) != 0) {
        n = parse_entry(data, len, &json);
        if (n == 0)
            return -1;
        if (!entry(arg, json.data, json.len))
            return 1;
        data += n;
        len -= n;
    }
    return 0;
}

/* --- failures --- */

/* The last line that says something, or its end. */
static void last_line(const char *data, size_t len, char line[FILES_DETAIL_MAX])
{
    size_t begin;

    while (len > 0 && (data[len - 1] == '\n' || data[len - 1] == '\r' || data[len - 1] == ' '))
        len--;
    for (begin = len; begin > 0 && data[begin - 1] != '\n' && len - begin < FILES_DETAIL_MAX - 1;)
        begin--;
    while (begin < len && ((unsigned char)data[begin] & 0xc0) == 0x80) /* not from the middle of a character */
        begin++;
    memcpy(line, data + begin, len - begin);
    line[len - begin] = '\0';
}

const char *files_failure(int exit_code, const char *text, size_t len, char detail[FILES_DETAIL_MAX])
{
    char line[FILES_DETAIL_MAX];
    const char *kind;

    last_line(text, len, line);
    detail[0] = '\0';
    guest_info_text(detail, line);
    switch (exit_code) {
    case EXIT_NOT_FILE:
        return "not_file";
    case EXIT_NOT_DIRECTORY:
        return "not_directory";
    case EXIT_NO_TOOL:
        return "no_tool";
    case EXIT_CHANGED:
        return "changed";
    case EXIT_DENIED:
        return "denied";
    case EXIT_TO_DIRECTORY:
        return "to_directory";
    default:
        kind = shell_failure(line);
        return kind != NULL ? kind : "failed";
    }
}
