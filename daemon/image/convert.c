/* convert.c - see convert.h.  Happy path: vmmd-confine, qemu-img, exit 0.  Failures: qemu-img's last line is the cause; one that
 * was killed (time, size, a system call) has met an unsafe image. */
#include "image/convert.h"

#include <errno.h>
#include <jansson.h>
#include <stdio.h>
#include <string.h>

#include "base/mem.h"
#include "loop/child.h"

enum { EXAMINE_MS = 20000, EXAMINE_CPU_S = 10, CONVERT_MS = 3600000, CONVERT_CPU_S = 3600, OUTPUT_MAX = 65536 };
#define SLACK (1ULL << 30)

struct image_job {
    struct tool *tool;
    char format[8];
    uint64_t max_bytes;
    bool examines;
    void (*done)(void *arg, const struct image_info *info, struct error *err);
    void *arg;
};

void image_job_free(struct image_job *job)
{
    if (job == NULL)
        return;
    tool_free(job->tool);
    mem_free(job);
}

static void last_line(const struct tool_result *result, char *out, size_t size)
{
    size_t end = result->err_len, begin;

    while (end > 0 && (unsigned char)result->err_text[end - 1] <= ' ')
        end--;
    for (begin = end; begin > 0 && result->err_text[begin - 1] != '\n'; begin--)
        ;
    snprintf(out, size, "%.*s", (int)(end - begin), result->err_text + begin);
}

static int tool_error(const struct image_job *job, const struct tool_result *result, struct error *err)
{
    bool full =
        strstr(result->err_text, strerror(ENOSPC)) != NULL || strstr(result->err_text, strerror(EDQUOT)) != NULL;
    char why[300];

    if (full)
        error_set(err, ERR_HOST_DISK_FULL, "the disk of the image cache is full");
    else if (job->examines)
        error_set(err, ERR_IMAGE_UNSAFE, "the image was refused: qemu-img does not take it as %s", job->format);
    else
        error_set(err, ERR_IMAGE_CONVERSION_FAILED, "the image could not be converted from %s", job->format);
    last_line(result, why, sizeof(why));
    if (result->timed_out)
        error_cause(err, "qemu-img did not end in time");
    else if (result->status.signal != 0)
        error_cause(err, "qemu-img was ended by signal %d", result->status.signal);
    else
        error_cause(err, "%s", why);
    return -1;
}

/* Anything that names another file: it would have been refused by its header. */
static bool names_a_file(const json_t *doc)
{
    const json_t *data = json_object_get(json_object_get(doc, "format-specific"), "data");
    const json_t *extents = json_object_get(data, "extents");

    return json_object_get(doc, "backing-filename") != NULL || json_object_get(doc, "full-backing-filename") != NULL ||
           json_object_get(data, "data-file") != NULL || json_array_size(extents) > 1 ||
           json_is_true(json_object_get(doc, "encrypted"));
}

static int read_info(const struct image_job *job, const struct tool_result *result, struct image_info *info,
                     struct error *err)
{
    json_t *doc = json_loadb(result->out, result->out_len, JSON_REJECT_DUPLICATES, NULL);
    const char *format = json_string_value(json_object_get(doc, "format"));
    json_int_t size = json_integer_value(json_object_get(doc, "virtual-size"));
    int rc = 0;

    if (format == NULL || size <= 0 || strcmp(format, job->format) != 0)
        rc = error_set(err, ERR_IMAGE_UNSAFE, "the image was refused: qemu-img says another thing than its header");
    else if (names_a_file(doc))
        rc = error_set(err, ERR_IMAGE_UNSAFE, "the image was refused: it names another file");
    else if ((uint64_t)size > job->max_bytes)
        rc = error_set(err, ERR_IMAGE_UNSAFE, "the image is too large: %lld GiB of virtual size, %llu are allowed",
                       (long long)(size >> 30), (unsigned long long)(job->max_bytes >> 30));
    if (rc == 0) {
        snprintf(info->format, sizeof(info->format), "%s", job->format);
        info->virtual_size = (uint64_t)size;
    }
    json_decref(doc);
    return rc;
}

static void tool_done(void *arg, const struct tool_result *result)
{
    struct image_job *job = arg;
    CLEANUP_ERROR struct error err = ERROR_INIT;
    struct image_info info = {0};
    void (*done)(void *, const struct image_info *, struct error *) = job->done;
    void *done_arg = job->arg;
    int rc = 0;

    if (result->timed_out || result->status.code != 0)
        rc = tool_error(job, result, &err);
    else if (job->examines)
        rc = read_info(job, result, &info, &err);
    bool examines = job->examines;
    image_job_free(job);
    done(done_arg, rc == 0 && examines ? &info : NULL, &err);
}

/* The file of fd 3, opened as this format and nothing beneath it. */
static void source_text(const char *format, char *out, size_t size)
{
    snprintf(out, size, "json:{\"driver\":\"%s\",\"file\":{\"driver\":\"file\",\"filename\":\"/proc/self/fd/3\"}%s}",
             format, strcmp(format, "raw") == 0 ? "" : ",\"backing\":null");
}

static struct image_job *run(struct loop *loop, struct image_job *job, const char *const *argv, int fd, int out_fd,
                             int64_t timeout_ms, struct error *err)
{
    int fds[] = {fd, out_fd, -1};

    job->tool = tool_run(loop, argv, fds, NULL, 0, timeout_ms, OUTPUT_MAX, tool_done, job, err);
    if (job->tool != NULL)
        return job;
    image_job_free(job);
    return NULL;
}

static struct image_job *job_new(const struct image_tool *tool, const char *format, bool examines,
                                 void (*done)(void *arg, const struct image_info *info, struct error *err), void *arg,
                                 struct error *err)
{
    struct image_job *job = mem_zalloc(sizeof(*job));

    if (job == NULL) {
        error_set(err, ERR_DAEMON_OVERLOADED, "out of memory");
        return NULL;
    }
    *job = (struct image_job){.max_bytes = tool->max_bytes, .examines = examines, .done = done, .arg = arg};
    snprintf(job->format, sizeof(job->format), "%s", format);
    return job;
}

struct image_job *image_examine(struct loop *loop, const struct image_tool *tool, int fd, const char *format,
                                void (*done)(void *arg, const struct image_info *info, struct error *err), void *arg,
                                struct error *err)
{
    struct image_job *job = job_new(tool, format, true, done, arg, err);
    char source[256], cpu[24];
    const char *argv[] = {tool->confine, cpu, "0", tool->qemu_img, "info", "--output=json", source, NULL};

    if (job == NULL)
        return NULL;
    source_text(format, source, sizeof(source));
    snprintf(cpu, sizeof(cpu), "%d", EXAMINE_CPU_S);
    return run(loop, job, argv, fd, -1, EXAMINE_MS, err);
}

struct image_job *image_convert(struct loop *loop, const struct image_tool *tool, int fd, const char *format,
                                int out_fd, const char *to,
                                void (*done)(void *arg, const struct image_info *info, struct error *err), void *arg,
                                struct error *err)
{
    struct image_job *job = job_new(tool, format, false, done, arg, err);
    char source[256], cpu[24], bytes[32];
    const char *argv[] = {tool->confine, cpu, bytes,  tool->qemu_img,    "convert",
                          "-O",          to,  source, "/proc/self/fd/4", NULL};

    if (job == NULL)
        return NULL;
    source_text(format, source, sizeof(source));
    snprintf(cpu, sizeof(cpu), "%d", CONVERT_CPU_S);
    snprintf(bytes, sizeof(bytes), "%llu", (unsigned long long)(tool->max_bytes + SLACK));
    return run(loop, job, argv, fd, out_fd, CONVERT_MS, err);
}
