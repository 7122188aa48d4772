/* pull_run.c - the phases of a pull.
 *
 * Happy path: part file and note opened on the pool, the helper fetches, vmmd-inspect reads the header, qemu-img says the same
 * under limits, and what is neither qcow2 nor raw is converted into a fresh qcow2 beside it.  The steps are here last first.
 * Failure modes: the first thing that goes wrong is the pull's error (pull_fail); where nobody holds it any more, it ends. */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/fd.h"
#include "base/log.h"
#include "base/mem.h"
#include "core/credentials.h"
#include "core/ops/pulling.h"
#include "loop/child.h"

enum { GRACE_MS = 30000, NOBODY = 65534 };

/* --- convert --- */

static int finish_made(struct pull_work *w, struct error *err)
{
    if (fsync(w->fd) < 0 || (geteuid() == 0 && fchown(w->fd, 0, 0) < 0))
        return error_errno(err, errno, "cannot flush the converted image");
    unlink(w->part);
    unlink(w->note);
    return 0;
}

static void made_finished(struct pull *p, struct pull_work *w, int rc, struct error *err)
{
    (void)w;
    if (rc < 0) {
        pull_fail(p, false, err);
        return;
    }
    p->result.path = p->made;
    snprintf(p->result.format, sizeof(p->result.format), "qcow2");
    pull_reach(p, PULL_READY);
    pull_end_if_left(p);
}

static void converted(void *arg, const struct image_info *info, struct error *err)
{
    struct pull *p = arg;
    CLEANUP_ERROR struct error own = ERROR_INIT;

    (void)info;
    p->job = NULL;
    if (error_is_set(err))
        pull_fail(p, false, err);
    else if (pull_work_begin(p, finish_made, made_finished, &own) < 0)
        pull_fail(p, false, &own);
}

static void image_tool_of(const struct pull *p, struct image_tool *tool, char confine[PATH_MAX])
{
    snprintf(confine, PATH_MAX, "%s/vmmd-confine", p->core->config.helper_dir);
    *tool =
        (struct image_tool){.confine = confine, .qemu_img = "qemu-img", .max_bytes = p->core->config.max_image_bytes};
}

static void convert(struct pull *p)
{
    CLEANUP_ERROR struct error err = ERROR_INIT;
    struct image_tool tool;
    char confine[PATH_MAX];

    image_tool_of(p, &tool, confine);
    p->job = image_convert(p->core->loop, &tool, p->part_fd, p->result.source_format, p->made_fd, "qcow2", converted, p,
                           &err);
    if (p->job == NULL)
        pull_fail(p, false, &err);
}

static void room_known(void *arg, struct error *err)
{
    struct pull *p = arg;

    p->disk_ask = NULL;
    if (error_is_set(err)) {
        pull_fail(p, false, err);
        return;
    }
    p->room += p->asked;
    convert(p);
}

/* qemu-img writes it as nobody where we are root: it is nobody's until it is whole. */
static int open_made(struct pull_work *w, struct error *err)
{
    struct stat st;

    if (stat(w->part, &st) == 0)
        w->allocated = (int64_t)st.st_blocks * 512;
    unlink(w->made);
    w->fds[0] = open(w->made, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (w->fds[0] < 0 || (geteuid() == 0 && fchown(w->fds[0], NOBODY, NOBODY) < 0 && errno != EPERM && errno != EINVAL))
        return error_errno(err, errno, "cannot make %s", w->made);
    return 0;
}

static void made_opened(struct pull *p, struct pull_work *w, int rc, struct error *err)
{
    if (rc < 0) {
        pull_fail(p, false, err);
        return;
    }
    p->made_fd = TAKE_FD(w->fds[0]);
    if (p->holders == NULL) {
        pull_end_if_left(p);
        return;
    }
    p->asked = (uint64_t)w->allocated;
    p->disk_ask = disk_ask(p->core, p->asked, 0, room_known, p);
    if (p->disk_ask == NULL) /* short of memory it goes unasked */
        convert(p);
}

/* --- inspect --- */

static int said_otherwise(const struct pull *p, struct error *err)
{
    const char *said = p->source.format, *is = p->result.source_format;

    if (said[0] == '\0' || strcmp(said, is) == 0)
        return 0;
    error_set(err, ERR_IMAGE_FORMAT_DETECTION_FAILED, "the image is %s by its header, not %s", is, said);
    error_help(err, "leave the format out, or say %s", is);
    return -1;
}

static void examined(void *arg, const struct image_info *info, struct error *err)
{
    struct pull *p = arg;
    CLEANUP_ERROR struct error own = ERROR_INIT;
    bool plain = strcmp(p->result.source_format, "qcow2") == 0 || strcmp(p->result.source_format, "raw") == 0;

    p->job = NULL;
    if (info == NULL) {
        pull_fail(p, false, err);
        return;
    }
    p->result.virtual_size = info->virtual_size;
    if (plain) {
        p->result.path = p->part;
        snprintf(p->result.format, sizeof(p->result.format), "%s", p->result.source_format);
        pull_reach(p, PULL_READY);
        pull_end_if_left(p);
        return;
    }
    pull_reach(p, PULL_CONVERTING);
    if (p->holders == NULL)
        pull_end_if_left(p);
    else if (pull_work_begin(p, open_made, made_opened, &own) < 0)
        pull_fail(p, false, &own);
}

static void inspected(void *arg, const struct image_info *info, struct error *err)
{
    struct pull *p = arg;
    CLEANUP_ERROR struct error own = ERROR_INIT;
    struct image_tool tool;
    char confine[PATH_MAX];

    p->inspection = NULL;
    if (info == NULL) {
        pull_fail(p, false, err);
        return;
    }
    snprintf(p->result.source_format, sizeof(p->result.source_format), "%s", info->format);
    if (said_otherwise(p, &own) < 0) {
        pull_fail(p, false, &own);
        return;
    }
    if (strcmp(info->format, "raw") == 0) { /* there is nothing that qemu-img could say of it */
        examined(p, info, err);
        return;
    }
    image_tool_of(p, &tool, confine);
    p->job = image_examine(p->core->loop, &tool, p->part_fd, info->format, examined, p, &own);
    if (p->job == NULL)
        pull_fail(p, false, &own);
}

/* --- fetch --- */

static void progressed(void *arg, uint64_t done, int64_t total)
{
    struct pull *p = arg;

    disk_promise(p->core, &p->room, total > (int64_t)done ? (uint64_t)total - done : 0);
    for (struct image_op *io = p->holders; io != NULL; io = io->pull_next)
        operation_progress(io->res, (int64_t)done, total);
}

static void fetched(void *arg, const struct image_fetched *result, bool keep, struct error *err)
{
    struct pull *p = arg;
    CLEANUP_ERROR struct error own = ERROR_INIT;
    CLEANUP_FREE char *helper = mem_printf("%s/vmmd-inspect", p->core->config.helper_dir);
    struct image_rules rules = {.helper = helper, .max_bytes = p->core->config.max_image_bytes};

    image_fetch_free(TAKE_PTR(p->fetch));
    if (p->holders == NULL) {
        p->keep = true; /* the note says whether it is worth it */
        pull_end_if_left(p);
        return;
    }
    if (p->stopping) { /* somebody came when it was too late to go on */
        pull_start(p);
        return;
    }
    if (result == NULL) {
        pull_fail(p, keep, err);
        return;
    }
    progressed(p, result->fetched, (int64_t)result->fetched);
    LOG_INFO("image fetched", "url", p->source.url != NULL ? p->source.url : "upload", "sha256", result->sha256,
             "packing", result->packing);
    snprintf(p->result.sha256, sizeof(p->result.sha256), "%s", result->sha256);
    snprintf(p->result.packing, sizeof(p->result.packing), "%s", result->packing);
    rules.mode = strcmp(p->source.format, "raw") == 0 ? "raw" : "import";
    pull_reach(p, PULL_INSPECTING);
    p->inspection = helper != NULL ? image_inspect(p->core->loop, p->part, &rules, inspected, p, &own) : NULL;
    if (p->inspection == NULL)
        pull_fail(p, false, &own);
}

static const struct image_fetch_events fetch_events = {.progress = progressed, .done = fetched};

static json_t *list_json(const char *const *list)
{
    json_t *array = json_array();

    for (; list != NULL && *list != NULL; list++)
        json_array_append_new(array, json_string(*list));
    return array;
}

static json_t *job_json(const struct pull *p)
{
    const struct core_config *c = &p->core->config;
    const char *url = p->source.url;
    char boot_id[37];
    const char *source = url == NULL || strncmp(url, "file:", 5) == 0 ? "fd"
                         : strncmp(url, "oci:", 4) == 0               ? "oci"
                                                                      : "http";

    proc_boot_id(boot_id);
    json_t *job =
        json_pack("{s:s,s:s,s:I,s:I,s:I,s:I,s:I,s:s,s:o,s:o}", "source", source, "url", url != NULL ? url : "",
                  "max_bytes", (json_int_t)c->max_image_bytes, "stall_s", (json_int_t)c->fetch_stall_s, "timeout_s",
                  (json_int_t)c->fetch_timeout_s, "reserve", (json_int_t)disk_reserve(p->core), "promised",
                  (json_int_t)(p->core->disk_promised - p->room), "boot_id", boot_id, "allow",
                  list_json(c->fetch_allow), "plain_http", list_json(c->fetch_plain));
    if (job != NULL && p->source.sha256[0] != '\0')
        json_object_set_new(job, "sha256", json_string(p->source.sha256));
    if (job != NULL && url == NULL && p->source.length >= 0)
        json_object_set_new(job, "length", json_integer(p->source.length));
    if (job != NULL && c->fetch_ca_file != NULL)
        json_object_set_new(job, "ca_file", json_string(c->fetch_ca_file));
    if (job != NULL && p->auth_basic != NULL) {
        json_object_set_new(job, "auth_host", json_string(p->auth_host));
        json_object_set_new(job, "auth_basic", json_string(p->auth_basic));
    }
    return job;
}

static int open_files(struct pull_work *w, struct error *err)
{
    const struct image_rules rules = {.image_dirs = w->image_dirs};
    char real[PATH_MAX];

    if (dir_make(w->dir, 0700, err) < 0)
        return -1;
    /* Readable for nobody, who looks at it by its fd; the directory is ours alone. */
    w->fds[0] = open(w->part, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0644);
    w->fds[1] = open(w->note, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (w->fds[0] < 0 || w->fds[1] < 0)
        return error_errno(err, errno, "cannot make %s", w->part);
    if (w->source != NULL && (w->fds[2] = image_open(w->source, &rules, real, err)) < 0)
        return -1;
    if (w->registry != NULL)
        credentials_find(w->registry, &w->auth_host, &w->auth_basic);
    return 0;
}

static void files_opened(struct pull *p, struct pull_work *w, int rc, struct error *err)
{
    CLEANUP_ERROR struct error own = ERROR_INIT;
    CLEANUP_FREE char *helper = mem_printf("%s/vmmd-fetch", p->core->config.helper_dir);

    if (rc < 0) {
        pull_fail(p, true, err);
        return;
    }
    p->part_fd = TAKE_FD(w->fds[0]);
    p->note_fd = TAKE_FD(w->fds[1]);
    p->source_fd = p->source.fd >= 0 ? TAKE_FD(p->source.fd) : TAKE_FD(w->fds[2]);
    mem_free(p->auth_host);
    mem_free(p->auth_basic);
    p->auth_host = TAKE_PTR(w->auth_host);
    p->auth_basic = TAKE_PTR(w->auth_basic);
    if (p->holders == NULL) {
        p->keep = true;
        pull_end_if_left(p);
        return;
    }
    p->phase = PULL_FETCHING;
    p->fetch = helper != NULL
                   ? image_fetch_start(p->core->loop, helper, job_json(p), p->part_fd, p->note_fd, p->source_fd,
                                       p->core->config.fetch_timeout_s * 1000 + GRACE_MS, &fetch_events, p, &own)
                   : NULL;
    p->source_fd = fd_close(p->source_fd);
    if (p->fetch == NULL)
        pull_fail(p, true, &own);
}

void pull_start(struct pull *p)
{
    CLEANUP_ERROR struct error err = ERROR_INIT;

    pull_close_fds(p);
    error_done(&p->err);
    p->result = (struct pull_result){0};
    p->phase = PULL_OPENING;
    p->keep = p->stopping = false;
    if (p->core->config.helper_dir == NULL)
        error_set(&err, ERR_BACKEND_NOT_AVAILABLE, "the helpers of the image cache are not installed");
    else if (pull_work_begin(p, open_files, files_opened, &err) == 0)
        return;
    pull_fail(p, true, &err);
}
