/* image_bed.c - see image_bed.h. */
#include "image_bed.h"

#include <dirent.h>
#include <limits.h>
#include <spawn.h>
#include <stdio.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/buf.h"
#include "base/mem.h"
#include "core/ops/image_op.h"

static const char *const names[] = {"vmmd-fetch", "vmmd-inspect", "vmmd-confine"};

static void write_disk(const char *path)
{
    char data[65536] = "";
    FILE *file = fopen(path, "w");

    assert_non_null(file);
    memcpy(data + 446, "\x80\0\2\0\x83\0\2\0\1\0\0\0\x7f\0\0\0", 16); /* a partition */
    memcpy(data + 510, "\x55\xaa", 2);
    assert_int_equal(fwrite(data, 1, sizeof(data), file), sizeof(data));
    assert_int_equal(fclose(file), 0);
}

static void convert(char *raw, char *vmdk)
{
    char *argv[] = {"qemu-img", "convert", "-f", "raw", "-O", "vmdk", raw, vmdk, NULL};
    pid_t pid = 0;
    int status = -1;

    assert_int_equal(posix_spawnp(&pid, argv[0], NULL, NULL, argv, environ), 0);
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_int_equal(status, 0);
}

void image_bed_replace(struct image_bed *b, const char *helper, const char *script)
{
    char path[160], real[512];

    snprintf(path, sizeof(path), "%s/%s", b->helpers, helper);
    snprintf(real, sizeof(real), "%s/%s", b->build, helper);
    unlink(path);
    if (script == NULL) {
        assert_int_equal(symlink(real, path), 0);
        return;
    }
    FILE *file = fopen(path, "w");
    assert_non_null(file);
    fprintf(file, "#!/bin/sh\nreal=%s\n%s\n", real, script);
    assert_int_equal(fclose(file), 0);
    assert_int_equal(chmod(path, 0755), 0);
}

int image_bed_set_up(void **state)
{
    struct image_bed *b = calloc(1, sizeof(*b));
    char self[PATH_MAX] = "";
    void *made = NULL;

    /* core_bed_set_up makes its own: this one grows around it. */
    if (core_bed_set_up(&made) != 0 || readlink("/proc/self/exe", self, sizeof(self) - 1) < 0)
        return -1;
    *strrchr(self, '/') = '\0';
    snprintf(b->build, sizeof(b->build), "%.390s/..", self);
    b->core = *(struct core_bed *)made;
    core_bed_close(made, 1000);
    free(made);
    snprintf(b->helpers, sizeof(b->helpers), "%.50s-helpers", b->core.dir);
    snprintf(b->raw, sizeof(b->raw), "%s/disk.raw", b->helpers);
    snprintf(b->vmdk, sizeof(b->vmdk), "%s/disk.vmdk", b->helpers);
    assert_int_equal(mkdir(b->helpers, 0755), 0);
    for (size_t i = 0; i < ARRAY_SIZE(names); i++)
        image_bed_replace(b, names[i], NULL);
    write_disk(b->raw);
    convert(b->raw, b->vmdk);
    b->core.loop = NULL;
    b->core.core = NULL;
    b->core.helper_dir = b->helpers;
    core_bed_open(&b->core);
    *state = b;
    return 0;
}

int image_bed_tear_down(void **state)
{
    struct image_bed *b = *state;
    char path[256];

    if (b->core.loop != NULL)
        core_bed_close(&b->core, 5000);
    for (size_t i = 0; i < ARRAY_SIZE(names); i++) {
        snprintf(path, sizeof(path), "%s/%s", b->helpers, names[i]);
        unlink(path);
    }
    unlink(b->raw);
    unlink(b->vmdk);
    snprintf(path, sizeof(path), "%s/images", b->core.dir);
    if (rmdir(b->helpers) < 0 || rmdir(path) < 0)
        return -1;
    return core_bed_tear_down(state); /* frees it */
}

static json_t *body_of(struct image_bed *b, enum image_act act, const char *labels)
{
    if (act == ACT_PULL || act == ACT_PULL_CONVERT)
        return json_pack("{s:s,s:o}", "name", "im", "url",
                         json_sprintf("file://%s", act == ACT_PULL ? b->raw : b->vmdk));
    if (act == ACT_CREATE)
        return json_pack("{s:s,s:s,s:{s:o},s:o}", "name", "web", "backend", "noop", "spec", "image_url",
                         json_sprintf("file://%s", b->raw), "labels",
                         labels != NULL ? json_loads(labels, 0, NULL) : json_object());
    return json_pack("{s:s,s:s*}", "format", "qcow2", "name", act == ACT_CONVERT ? "im2" : NULL);
}

struct operation *image_bed_begin(struct image_bed *b, enum image_act act, const char *key, const char *labels,
                                  struct error *err)
{
    struct core_request req = {.request_id = "test", .idempotency_key = key, .fingerprint = "print"};
    struct core *core = b->core.core;
    struct operation *op = NULL;
    json_t *body = body_of(b, act, labels);
    int rc;

    assert_non_null(body);
    if (b->arm)
        mem_fail_nth(b->fail_nth);
    b->arm = false;
    if (act == ACT_PULL || act == ACT_PULL_CONVERT)
        rc = core_image_pull(core, &req, body, &op, err);
    else if (act == ACT_CREATE)
        rc = core_vm_create(core, &req, body, &op, err);
    else if (act == ACT_DELETE)
        rc = core_image_delete(core, &req, "im", &op, err);
    else
        rc = core_image_convert(core, &req, "im", body, &op, err);
    json_decref(body);
    return rc == 0 ? operation_ref(op) : NULL;
}

void image_bed_prepare(struct image_bed *b, enum image_act act)
{
    CLEANUP_ERROR struct error err = ERROR_INIT;

    if (act != ACT_CONVERT && act != ACT_CONVERT_IN_PLACE && act != ACT_DELETE)
        return;
    assert_int_equal(core_bed_end(&b->core, image_bed_begin(b, ACT_PULL, NULL, NULL, &err)), ERR_NONE);
    image_bed_rest(b);
}

char *image_bed_list(struct image_bed *b)
{
    CLEANUP_ERROR struct error err = ERROR_INIT;
    CLEANUP_BUF struct buf out = BUF_INIT(1 << 20);
    char *last = NULL;

    assert_int_equal(core_image_list(b->core.core, NULL, "", 100, &out, &last, &err), 0);
    assert_null(last);
    return mem_strndup(out.len > 0 ? out.data : "", out.len);
}

static int by_name(const void *a, const void *b)
{
    return strcmp(*(char *const *)a, *(char *const *)b);
}

char *image_bed_files(struct image_bed *b)
{
    CLEANUP_FREE char *path = mem_printf("%s/images", b->core.dir);
    DIR *dir = opendir(path);
    char *found[64], *all = mem_strdup("");
    size_t n = 0;

    for (const struct dirent *e; dir != NULL && n < ARRAY_SIZE(found) && (e = readdir(dir)) != NULL;)
        if (e->d_name[0] != '.')
            found[n++] = mem_strdup(e->d_name);
    if (dir != NULL)
        closedir(dir);
    qsort(found, n, sizeof(found[0]), by_name);
    for (size_t i = 0; i < n; i++) {
        char *more = mem_printf("%s%s ", all, found[i]);
        mem_free(all);
        mem_free(found[i]);
        all = more;
    }
    return all;
}

static bool at_rest(void *arg)
{
    const struct core *core = ((struct image_bed *)arg)->core.core;

    return core->n_running == 0 && core->n_changes == 0 && core->pulls == NULL && core->image_ops == NULL &&
           core->lazy == NULL;
}

void image_bed_rest(struct image_bed *b)
{
    if (!core_bed_poll(&b->core, at_rest, b))
        fail_msg("not at rest: %u operations, %u changes, pulls %p, image operations %p", b->core.core->n_running,
                 b->core.core->n_changes, (void *)b->core.core->pulls, (void *)b->core.core->image_ops);
}

void image_bed_clear(struct image_bed *b)
{
    CLEANUP_ERROR struct error err = ERROR_INIT;
    struct core_request req = {.request_id = "test"};
    struct core *core = b->core.core;

    image_bed_rest(b);
    if (core_bed_vm(&b->core, "web") != NULL)
        assert_int_equal(core_bed_do(&b->core, "web", VM_DESTROY), ERR_NONE);
    while (core->n_images > 0) {
        struct operation *op = NULL;
        if (core_image_delete(core, &req, core->images[0]->image.name, &op, &err) < 0)
            fail_msg("%s", err.message);
        assert_int_equal(core_bed_end(&b->core, operation_ref(op)), ERR_NONE);
        image_bed_rest(b);
    }
    image_bed_rest(b);
    core_bed_quiet(&b->core);
    CLEANUP_FREE char *files = image_bed_files(b);
    CLEANUP_FREE char *rows = core_bed_sql(&b->core, "SELECT count(*) FROM images", NULL);
    CLEANUP_FREE char *open = core_bed_sql(&b->core, "SELECT count(*) FROM operations WHERE finished_at = 0", NULL);
    assert_string_equal(files, "");
    assert_string_equal(rows, "0");
    assert_string_equal(open, "0");
    assert_int_equal(core->disk_promised, 0);
    assert_null(core->disk_asks);
}
