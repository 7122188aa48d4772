/* images.c - the image cache in memory: its images by name, who stands on them, and their files at the start.
 *
 *   data_dir/images/ID.img            an image that is ready: a row has it
 *   data_dir/images/KEY.part, .note   a fetch that is under way, or may be gone on with
 *   data_dir/images/KEY.new           a conversion under way
 *
 * Failure modes: a daemon that was killed leaves images that never came to be and files that no row has: the next start
 * removes both, but for part files young enough to be gone on with and with a note that says how.  The database is lost or old: as long as there is a directory of
 * a VM that no row has, which may be adopted and stand on any of them, whole images stay. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/fd.h"
#include "base/log.h"
#include "base/mem.h"
#include "base/str.h"
#include "core/internal.h"
#include "core/ops/image_op.h"
#include "loop/work.h"

enum { PART_KEEP_S = 86400 };

/* The index of the first image whose name is not before `name`. */
static size_t order_index(const struct core *core, const char *name)
{
    size_t low = 0, high = core->n_images;

    while (low < high) {
        size_t mid = low + (high - low) / 2;
        if (strcmp(core->images[mid]->image.name, name) < 0)
            low = mid + 1;
        else
            high = mid;
    }
    return low;
}

struct live_image *images_add(struct core *core, struct image *image, struct error *err)
{
    struct live_image *live = mem_zalloc(sizeof(*live));

    if (live != NULL && core->n_images == core->cap_images) {
        size_t cap = core->cap_images > 0 ? core->cap_images * 2 : 16;
        struct live_image **grown = mem_realloc(core->images, cap * sizeof(struct live_image *));
        if (grown == NULL) {
            mem_free(live);
            live = NULL;
        } else {
            core->images = grown;
            core->cap_images = cap;
        }
    }
    if (live == NULL) {
        error_set(err, ERR_DAEMON_OVERLOADED, "out of memory");
        return NULL;
    }
    *live = (struct live_image){.image = *image, .core = core, .refs = 1};
    size_t at = order_index(core, image->name);
    memmove(&core->images[at + 1], &core->images[at], (core->n_images - at) * sizeof(core->images[0]));
    core->images[at] = live;
    core->n_images++;
    *image = (struct image){0};
    return live;
}

struct live_image *images_by_name(struct core *core, const char *name)
{
    size_t at = order_index(core, name);

    return at < core->n_images && strcmp(core->images[at]->image.name, name) == 0 ? core->images[at] : NULL;
}

struct live_image *image_ref(struct live_image *image)
{
    image->refs++;
    return image;
}

void image_unref(struct live_image *image)
{
    if (image == NULL || --image->refs > 0)
        return;
    image_done(&image->image);
    mem_free(image->doc);
    mem_free(image);
}

void images_remove(struct live_image *image)
{
    struct core *core = image->core;

    if (image->gone)
        return;
    image->gone = true;
    size_t at = order_index(core, image->image.name);
    memmove(&core->images[at], &core->images[at + 1], (core->n_images - at - 1) * sizeof(core->images[0]));
    core->n_images--;
    image_unref(image);
}

/* --- who stands on it --- */

static void link_user(struct live_vm *vm, struct live_image *image)
{
    vm->image = image_ref(image);
    vm->image_next = image->users;
    vm->image_at = &image->users;
    if (vm->image_next != NULL)
        vm->image_next->image_at = &vm->image_next;
    image->users = vm;
}

void image_unuse(struct live_vm *vm)
{
    struct live_image *image = vm->image;

    if (image == NULL)
        return;
    *vm->image_at = vm->image_next;
    if (vm->image_next != NULL)
        vm->image_next->image_at = vm->image_at;
    vm->image = NULL;
    image_unref(image);
}

int image_use(struct live_vm *vm, struct live_image *image)
{
    struct vm_runtime *rt = &vm->vm.runtime;
    char *name = mem_strdup(image->image.name), *path = mem_strdup(image->image.path),
         *format = mem_strdup(image->image.format);

    if (name == NULL || path == NULL || format == NULL) {
        mem_free(name);
        mem_free(path);
        mem_free(format);
        return -1;
    }
    mem_free(rt->image_name);
    mem_free(rt->image_path);
    mem_free(rt->disk_format);
    rt->image_name = name;
    rt->image_path = path;
    rt->disk_format = format;
    link_user(vm, image);
    return 0;
}

void image_reuse(struct live_vm *vm)
{
    const char *name = vm->vm.runtime.image_name;
    struct live_image *image = name != NULL ? images_by_name(vm->core, name) : NULL;

    if (image != NULL)
        link_user(vm, image);
    else if (name != NULL)
        LOG_WARN("the image that a VM stands on is not in the cache", "vm", vm->vm.name, "image", name);
}

/* --- read --- */

struct live_image *core_image_find(struct core *core, const char *name, struct error *err)
{
    struct live_image *image = images_by_name(core, name);

    if (image != NULL && image->doc != NULL)
        return image;
    error_set(err, ERR_IMAGE_NOT_FOUND, "there is no image named %.100s", name);
    error_ctx_str(err, "image", name);
    return NULL;
}

void core_image_render(const struct live_image *image, struct buf *out)
{
    char id[UUID_TEXT_MAX];

    buf_append(out, image->doc, strlen(image->doc) - 1); /* without its last brace */
    buf_str(out, ",\"used_by\":[");
    for (const struct live_vm *vm = image->users; vm != NULL; vm = vm->image_next)
        buf_printf(out, "%s{\"kind\":\"vm\",\"id\":\"%s\",\"name\":\"%s\"}", vm == image->users ? "" : ",",
                   uuid_text(&vm->vm.id, id), vm->vm.name);
    buf_str(out, "]}");
}

int core_image_list(struct core *core, const char *name_glob, const char *after, unsigned limit, struct buf *out,
                    char **ret_last, struct error *err)
{
    const struct live_image *last = NULL;
    unsigned n = 0;
    bool more = false;

    *ret_last = NULL;
    for (size_t i = order_index(core, after); i < core->n_images && !more; i++) {
        const struct live_image *image = core->images[i];
        if (image->doc == NULL || strcmp(image->image.name, after) == 0 ||
            (name_glob != NULL && !str_glob(name_glob, image->image.name)))
            continue;
        more = n == limit;
        if (more) {
            *ret_last = mem_strdup(last->image.name);
            break;
        }
        if (n++ > 0)
            buf_char(out, ',');
        core_image_render(image, out);
        last = image;
    }
    if (out->failed || (more && *ret_last == NULL))
        return error_set(err, ERR_DAEMON_OVERLOADED, "out of memory for the list; ask for a smaller limit");
    return 0;
}

/* --- the start --- */

static int load_image(void *arg, const struct store_image_row *row, struct error *err)
{
    struct core *core = arg;
    struct image image;
    json_t *doc = json_loads(row->doc, 0, NULL);
    int rc = image_from_json(doc, &image, err);

    json_decref(doc);
    if (rc < 0)
        return error_wrap(err, ERR_DAEMON_INTERNAL, "the stored image %s cannot be read", row->name);
    struct live_image *live = images_add(core, &image, err);
    if (live == NULL) {
        image_done(&image);
        return -1;
    }
    live->doc = mem_strdup(row->doc);
    return live->doc != NULL ? 0 : error_set(err, ERR_DAEMON_OVERLOADED, "out of memory");
}

int images_load(struct core *core, struct error *err)
{
    return store_load_images(core->store, load_image, core, err);
}

static bool ends_with(const char *name, const char *suffix)
{
    size_t n = strlen(name), s = strlen(suffix);

    return n > s && strcmp(name + n - s, suffix) == 0;
}

static bool is_part(const char *name)
{
    return ends_with(name, ".part") || ends_with(name, ".note");
}

static bool row_has(const struct core *core, const char *dir, const char *name)
{
    char path[4096];

    snprintf(path, sizeof(path), "%s/%s", dir, name);
    for (size_t i = 0; i < core->n_images; i++)
        if (core->images[i]->image.path != NULL && strcmp(core->images[i]->image.path, path) == 0)
            return true;
    for (size_t i = 0; i < core->n_vms; i++) {
        const char *of_vm = core->by_order[i]->vm.runtime.image_path;
        if (of_vm != NULL && strcmp(of_vm, path) == 0)
            return true;
    }
    return false;
}

static bool is_old(int dir_fd, const char *name, int64_t keep_s)
{
    struct stat st;

    return fstatat(dir_fd, name, &st, AT_SYMLINK_NOFOLLOW) == 0 && st.st_mtime < clock_wall_ms() / 1000 - keep_s;
}

static bool is_empty(int dir_fd, const char *name)
{
    struct stat st;

    return fstatat(dir_fd, name, &st, AT_SYMLINK_NOFOLLOW) < 0 || st.st_size == 0;
}

/* Neither the part nor the note is of use without the other. */
static bool goes_on(int dir_fd, const char *name)
{
    char part[NAME_MAX + 1], note[NAME_MAX + 1];
    int stem = (int)strlen(name) - 5;

    snprintf(part, sizeof(part), "%.*s.part", stem, name);
    snprintf(note, sizeof(note), "%.*s.note", stem, name);
    return !is_empty(dir_fd, part) && !is_empty(dir_fd, note);
}

static void each_file(const char *path, void (*fn)(void *arg, int dir_fd, const char *name), void *arg)
{
    DIR *dir = opendir(path);

    for (const struct dirent *e; dir != NULL && (e = readdir(dir)) != NULL;)
        if (e->d_name[0] != '.')
            fn(arg, dirfd(dir), e->d_name);
    if (dir != NULL)
        closedir(dir);
}

struct sweep {
    struct core *core; /* NULL: parts alone */
    const char *dir;
    bool strangers; /* there are VMs that no row has */
};

static void see_vm(void *arg, int dir_fd, const char *name)
{
    struct sweep *s = arg;

    (void)dir_fd;
    s->strangers |= registry_by_id(s->core, name) == NULL;
}

static void sweep_file(void *arg, int dir_fd, const char *name)
{
    const struct sweep *s = arg;

    if (is_part(name) ? !is_old(dir_fd, name, PART_KEEP_S) && (s->core == NULL || goes_on(dir_fd, name))
                      : s->core == NULL || row_has(s->core, s->dir, name))
        return;
    if (s->strangers && ends_with(name, ".img")) {
        LOG_WARN("an image that no row has is kept: a VM that no row has may stand on it", "file", name);
        return;
    }
    if (unlinkat(dir_fd, name, 0) == 0)
        LOG_INFO("file of the image cache removed", "file", name);
}

void images_settle(struct core *core)
{
    CLEANUP_FREE char *dir = images_path(core, NULL, NULL), *vms = mem_printf("%s/vms", core->config.data_dir);
    struct sweep sweep = {.core = core, .dir = dir};
    struct change *ch = NULL;

    for (size_t i = core->n_images; i-- > 0;) {
        struct live_image *image = core->images[i];
        if (image->image.state == IMAGE_READY)
            continue;
        if (ch == NULL)
            ch = change_new(core);
        change_image(ch, image, true, NULL, "image.removed");
        images_remove(image);
    }
    change_happened(ch);
    if (ch != NULL)
        change_commit(ch, NULL, NULL);
    if (dir == NULL || vms == NULL)
        return;
    each_file(vms, see_vm, &sweep);
    each_file(dir, sweep_file, &sweep);
}

static int prune_parts(void *data, struct error *err)
{
    struct sweep sweep = {.dir = data};

    (void)err;
    each_file(data, sweep_file, &sweep);
    return 0;
}

static void parts_pruned(void *arg, void *data, int rc, struct error *err)
{
    (void)arg;
    (void)rc;
    (void)err;
    mem_free(data);
}

void images_prune_parts(struct core *core)
{
    char *dir = images_path(core, NULL, NULL);

    if (dir != NULL && work_run(core->loop, prune_parts, parts_pruned, dir, NULL, NULL) < 0)
        mem_free(dir);
}

void images_free(struct core *core)
{
    while (core->n_images > 0)
        images_remove(core->images[core->n_images - 1]);
    mem_free(core->images);
}

char *images_path(const struct core *core, const char *stem, const char *suffix)
{
    return stem != NULL ? mem_printf("%s/images/%s%s", core->config.data_dir, stem, suffix)
                        : mem_printf("%s/images", core->config.data_dir);
}
