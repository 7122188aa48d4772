/* util.c - see util.h. */
#include "util.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/fd.h"

static void __attribute__((noreturn)) no_memory(void)
{
    static const char line[] = "vmctl: out of memory\n";

    (void)fd_write_all(STDERR_FILENO, line, sizeof(line) - 1);
    exit(1);
}

void *x_alloc(size_t size)
{
    void *p = mem_zalloc(size > 0 ? size : 1);

    if (p == NULL)
        no_memory();
    return p;
}

char *x_strdup(const char *s)
{
    char *copy = s != NULL ? mem_strdup(s) : NULL;

    if (s != NULL && copy == NULL)
        no_memory();
    return copy;
}

char *x_vprintf(const char *format, va_list args)
{
    va_list again;
    char *s;
    int size;

    va_copy(again, args);
    size = vsnprintf(NULL, 0, format, again);
    va_end(again);
    if (size < 0)
        size = 0;
    s = x_alloc((size_t)size + 1);
    vsnprintf(s, (size_t)size + 1, format, args);
    return s;
}

char *x_printf(const char *format, ...)
{
    va_list args;
    char *s;

    va_start(args, format);
    s = x_vprintf(format, args);
    va_end(args);
    return s;
}

char *x_take(struct buf *b)
{
    char *s;

    buf_append(b, "", 0);
    s = b->data == NULL && !b->failed ? x_strdup("") : buf_take(b, NULL);
    if (s == NULL)
        no_memory();
    return s;
}

void buf_url(struct buf *b, const char *s)
{
    static const char unreserved[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~";

    for (; *s != '\0'; s++) {
        if (strchr(unreserved, *s) != NULL)
            buf_char(b, *s);
        else
            buf_printf(b, "%%%02X", (unsigned char)*s);
    }
}

void format_age(const char *stamp, char *out, size_t size)
{
    int64_t at, age;

    if (stamp == NULL || !clock_parse(stamp, &at)) {
        snprintf(out, size, "-");
        return;
    }
    age = (clock_wall_ms() - at) / 1000;
    if (age < 0)
        age = 0;
    if (age < 120)
        snprintf(out, size, "%llds", (long long)age);
    else if (age < 2 * 3600)
        snprintf(out, size, "%lldm", (long long)(age / 60));
    else if (age < 2 * 86400)
        snprintf(out, size, "%lldh", (long long)(age / 3600));
    else
        snprintf(out, size, "%lldd", (long long)(age / 86400));
}

bool parse_integer(const char *s, long long *ret_value)
{
    long long value;
    char *end;

    if (*s != '-' && (*s < '0' || *s > '9'))
        return false;
    errno = 0;
    value = strtoll(s, &end, 10);
    if (errno != 0 || end == s || *end != '\0')
        return false;
    *ret_value = value;
    return true;
}

int read_whole_file(const char *path, size_t max, struct buf *b)
{
    bool is_stdin = strcmp(path, "-") == 0;
    int fd = is_stdin ? STDIN_FILENO : open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY);
    char chunk[16384];
    ssize_t got;
    int failed = 0;

    if (fd < 0)
        return errno;
    while (failed == 0 && (got = read(fd, chunk, sizeof(chunk))) != 0) {
        if (got < 0)
            failed = errno == EINTR ? 0 : errno;
        else if (b->len + (size_t)got > max || buf_append(b, chunk, (size_t)got) < 0)
            failed = EFBIG;
    }
    if (!is_stdin)
        close(fd);
    return failed;
}

const char *json_text(const json_t *object, const char *key)
{
    const char *s = json_string_value(json_object_get(object, key));

    return s != NULL ? s : "";
}

long long json_number(const json_t *object, const char *key, long long missing)
{
    const json_t *value = json_object_get(object, key);

    return json_is_integer(value) ? (long long)json_integer_value(value) : missing;
}

static const char base64_digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

static int base64_digit(char c)
{
    const char *at = c != '\0' ? strchr(base64_digits, c) : NULL;

    return at != NULL ? (int)(at - base64_digits) : -1;
}

bool base64_decode(const char *text, struct buf *b)
{
    unsigned bits = 0;
    int n = 0;

    for (; base64_digit(*text) >= 0; text++) {
        bits = bits << 6 | (unsigned)base64_digit(*text);
        n += 6;
        if (n >= 8) {
            n -= 8;
            buf_char(b, (char)(bits >> n & 0xff));
        }
    }
    return text[strspn(text, "=")] == '\0' && !b->failed;
}

char *base64_encode(const void *bytes, size_t len)
{
    const unsigned char *in = bytes;
    struct buf out = BUF_INIT(TEXT_MAX);

    for (size_t i = 0; i < len; i += 3) {
        size_t n = len - i < 3 ? len - i : 3;
        unsigned bits = 0;

        for (size_t k = 0; k < 3; k++)
            bits = bits << 8 | (k < n ? in[i + k] : 0);
        for (size_t k = 0; k < 4; k++)
            buf_char(&out, k <= n ? base64_digits[bits >> (18 - 6 * k) & 63] : '=');
    }
    return x_take(&out);
}
