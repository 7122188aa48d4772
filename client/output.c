/* output.c - every byte of stdout.
 *
 * Bytes gather in one buffer that is sent when it is full, when a stream asks, and at the end. A reader that went away
 * (EPIPE) is no failure: the rest is dropped, streams end, and the command keeps its own exit code. Any other write
 * error makes vmctl fail. */
#include "output.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "base/fd.h"
#include "base/str.h"
#include "cli.h"
#include "util.h"

static struct {
    char bytes[65536];
    size_t size;
    int failed; /* errno of the write that failed */
} out;

bool out_flush(void)
{
    if (out.failed == 0 && out.size > 0 && fd_write_all(STDOUT_FILENO, out.bytes, out.size) < 0)
        out.failed = errno != 0 ? errno : EIO;
    out.size = 0;
    return out.failed == 0;
}

int out_end(int code)
{
    if (out_flush() || out.failed == EPIPE)
        return code;
    fprintf(stderr, "vmctl: cannot write to stdout: %s\n", strerror(out.failed));
    return code == EXIT_DONE ? EXIT_FAILED : code;
}

void out_write(const void *bytes, size_t size)
{
    const char *p = bytes;

    while (size > 0 && out.failed == 0) {
        size_t part = sizeof(out.bytes) - out.size;

        part = size < part ? size : part;
        memcpy(out.bytes + out.size, p, part);
        out.size += part;
        p += part;
        size -= part;
        if (out.size == sizeof(out.bytes))
            out_flush();
    }
}

void out_puts(const char *s)
{
    out_write(s, strlen(s));
}

void out_printf(const char *format, ...)
{
    va_list args;
    char *s;

    va_start(args, format);
    s = x_vprintf(format, args);
    va_end(args);
    out_puts(s);
    mem_free(s);
}

void out_line(const char *format, ...)
{
    va_list args;
    char *s;

    va_start(args, format);
    s = x_vprintf(format, args);
    va_end(args);
    out_visible(s);
    out_puts("\n");
    mem_free(s);
}

/* Adds `s` with C0, DEL, C1 and what is no UTF-8 as \xNN. */
static void visible(struct buf *b, const char *s)
{
    size_t left = strlen(s);

    while (left > 0) {
        size_t length = utf8_sequence(s, left);
        unsigned char first = (unsigned char)s[0];
        bool c1 = length == 2 && first == 0xc2 && (unsigned char)s[1] < 0xa0;

        if (length == 0 || first < 0x20 || first == 0x7f)
            buf_printf(b, "\\x%02x", first);
        else if (c1)
            buf_printf(b, "\\x%02x", (unsigned char)s[1]);
        else
            buf_append(b, s, length);
        length = length > 0 ? length : 1;
        s += length;
        left -= length;
    }
}

void out_visible(const char *s)
{
    CLEANUP_BUF struct buf b = BUF_INIT(TEXT_MAX);

    visible(&b, s);
    if (b.data != NULL)
        out_puts(b.data);
}

void text_visible(FILE *to, const char *s)
{
    CLEANUP_BUF struct buf b = BUF_INIT(TEXT_MAX);

    visible(&b, s);
    if (b.data != NULL)
        fputs(b.data, to);
}

static void dump(const json_t *json, size_t flags)
{
    char *s = json_dumps(json, flags | JSON_ENCODE_ANY);

    if (s != NULL) {
        out_puts(s);
        out_puts("\n");
    }
    mem_free(s);
}

void out_json(const json_t *json)
{
    dump(json, JSON_INDENT(2));
}

void out_json_line(const json_t *json)
{
    dump(json, JSON_COMPACT);
}

static bool is_scalar(const json_t *json)
{
    return !json_is_object(json) && !json_is_array(json);
}

static void print_scalar(const json_t *json)
{
    if (json_is_string(json)) {
        out_visible(json_string_value(json));
    } else if (json_is_null(json)) {
        out_puts("-");
    } else if (json_is_boolean(json)) {
        out_puts(json_is_true(json) ? "yes" : "no");
    } else {
        char *s = json_dumps(json, JSON_ENCODE_ANY | JSON_REAL_PRECISION(6));

        out_puts(s != NULL ? s : "");
        mem_free(s);
    }
}

static void print_tree(const json_t *json, int indent);

/* Writes a member: a scalar beside its key, a text of several lines or a container below it. */
static void print_member(const char *key, const json_t *value, int indent)
{
    out_printf("%*s", indent, "");
    out_visible(key);
    out_puts(":");
    if (json_is_string(value) && strchr(json_string_value(value), '\n') != NULL) {
        const char *p = json_string_value(value);

        out_puts("\n");
        while (*p != '\0') {
            size_t size = strcspn(p, "\n");
            char *line = x_printf("%.*s", (int)size, p);

            line[size > 0 && line[size - 1] == '\r' ? size - 1 : size] = '\0';
            out_printf("%*s", indent + 2, "");
            out_visible(line);
            out_puts("\n");
            mem_free(line);
            p += size + (p[size] == '\n');
        }
    } else if (is_scalar(value) || json_object_size(value) + json_array_size(value) == 0) {
        out_puts(" ");
        print_scalar(is_scalar(value) ? value : json_null());
        out_puts("\n");
    } else {
        out_puts("\n");
        print_tree(value, indent + 2);
    }
}

static void print_tree(const json_t *json, int indent)
{
    const char *key;
    json_t *value;
    size_t i;

    json_object_foreach((json_t *)(uintptr_t)json, key, value)
    {
        print_member(key, value, indent);
    }
    json_array_foreach(json, i, value)
    {
        if (is_scalar(value)) {
            out_printf("%*s- ", indent, "");
            print_scalar(value);
            out_puts("\n");
        } else {
            out_printf("%*s-\n", indent, "");
            print_tree(value, indent + 2);
        }
    }
}

void out_document(const json_t *json)
{
    if (is_scalar(json)) {
        print_scalar(json);
        out_puts("\n");
    } else {
        print_tree(json, 0);
    }
}

void table_row(struct table *t, const char *const *cells)
{
    if (t->count + t->columns > t->room) {
        size_t room = t->room > 0 ? 2 * t->room : 32 * t->columns;
        char **grown = x_alloc(room * sizeof(*grown));

        if (t->count > 0)
            memcpy(grown, t->cells, t->count * sizeof(*grown));
        mem_free(t->cells);
        t->cells = grown;
        t->room = room;
    }
    for (size_t i = 0; i < t->columns; i++) {
        struct buf b = BUF_INIT(TEXT_MAX);

        visible(&b, cells[i]);
        t->cells[t->count++] = x_take(&b);
    }
}

/* How many characters the UTF-8 text has. */
static size_t characters(const char *s)
{
    size_t count = 0;

    for (; *s != '\0'; s++)
        count += ((unsigned char)*s & 0xc0) != 0x80;
    return count;
}

void table_print(struct table *t)
{
    size_t *widths = x_alloc(t->columns * sizeof(*widths));

    for (size_t i = 0; i < t->count; i++) {
        size_t width = characters(t->cells[i]);

        if (width > widths[i % t->columns])
            widths[i % t->columns] = width;
    }
    for (size_t i = 0; i < t->count; i++) {
        size_t column = i % t->columns;
        bool last = column == t->columns - 1;

        out_puts(t->cells[i]);
        out_printf("%*s%s", last ? 0 : (int)(widths[column] - characters(t->cells[i]) + 2), "", last ? "\n" : "");
        mem_free(t->cells[i]);
    }
    mem_free(t->cells);
    mem_free(widths);
    *t = (struct table){0};
}
