/* image_prune.c - what nobody uses leaves the cache at once: images that no VM stands on, and the part files of fetches that ended
 * before they were whole.
 *
 * Happy path: the rows go in one change, then the files, then the answer.  A daemon that is killed in between leaves files that no row
 * has, for the next start.  Failure modes: the disk refuses: nothing is pruned; a file that cannot be removed stays for the next
 * start.  A dry run only counts. */
#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/mem.h"
#include "core/internal.h"
#include "core/ops/image_op.h"
#include "loop/work.h"

struct prune {
    struct core *core;
    struct live_image **images; /* referenced */
    size_t n_images;
    bool dry_run;
    struct buf items;
    int64_t freed;
    void (*done)(void *arg, const char *json, size_t len, struct error *err);
    void *arg;
};

/* The pool's part: paths in, counts out. */
struct prune_work {
    char **paths; /* of images; NULL-terminated */
    char *dir;
    char **busy; /* stems of fetches under way; NULL-terminated */
    bool dry_run;
    unsigned parts;
    int64_t freed;
};

static void prune_free(struct prune *p)
{
    for (size_t i = 0; i < p->n_images; i++)
        image_unref(p->images[i]);
    mem_free(p->images);
    buf_done(&p->items);
    mem_free(p);
}

static void list_free(char **list)
{
    for (size_t i = 0; list != NULL && list[i] != NULL; i++)
        mem_free(list[i]);
    mem_free(list);
}

static void work_free(struct prune_work *w)
{
    list_free(w->paths);
    list_free(w->busy);
    mem_free(w->dir);
    mem_free(w);
}

static bool is_busy(const struct prune_work *w, const char *name)
{
    for (size_t i = 0; w->busy[i] != NULL; i++)
        if (strncmp(name, w->busy[i], strlen(w->busy[i])) == 0)
            return true;
    return false;
}

static int prune_fn(void *data, struct error *err)
{
    struct prune_work *w = data;
    DIR *dir;

    (void)err;
    for (size_t i = 0; w->paths[i] != NULL && !w->dry_run; i++)
        unlink(w->paths[i]);
    dir = opendir(w->dir);
    for (const struct dirent *e; dir != NULL && (e = readdir(dir)) != NULL;) {
        size_t len = strlen(e->d_name);
        bool part = len > 5 && strcmp(e->d_name + len - 5, ".part") == 0;
        bool note = len > 5 && strcmp(e->d_name + len - 5, ".note") == 0;
        struct stat st;
        if ((!part && !note) || is_busy(w, e->d_name))
            continue;
        if (part && fstatat(dirfd(dir), e->d_name, &st, AT_SYMLINK_NOFOLLOW) == 0) {
            w->parts++;
            w->freed += st.st_size;
        }
        if (!w->dry_run)
            unlinkat(dirfd(dir), e->d_name, 0);
    }
    if (dir != NULL)
        closedir(dir);
    return 0;
}

static void pruned(void *arg, void *data, int rc, struct error *err)
{
    struct prune *p = arg;
    struct prune_work *w = data;
    CLEANUP_BUF struct buf out = BUF_INIT(64 << 20);

    (void)rc;
    buf_printf(&out, "{\"dry_run\":%s,\"items\":[%s],\"part_files\":%u,\"freed_bytes\":%lld}",
               w->dry_run ? "true" : "false", p->items.data != NULL ? p->items.data : "", w->parts,
               (long long)(p->freed + w->freed));
    if (out.failed || p->items.failed)
        error_set(err, ERR_DAEMON_OVERLOADED, "out of memory for the answer; what it would say is done");
    p->done(p->arg, out.data, out.len, err);
    work_free(w);
    prune_free(p);
}

static void prune_failed(struct prune *p, struct error *err)
{
    p->done(p->arg, NULL, 0, err);
    prune_free(p);
}

/* The files, on the pool. */
static void prune_files(struct prune *p)
{
    struct prune_work *w = mem_zalloc(sizeof(*w));
    CLEANUP_ERROR struct error err = ERROR_INIT;
    bool good = w != NULL;

    if (good) {
        w->dry_run = p->dry_run;
        w->dir = images_path(p->core, NULL, NULL);
        w->paths = mem_zalloc((p->n_images + 1) * sizeof(char *));
        w->busy = pulls_stems(p->core);
        good = w->dir != NULL && w->paths != NULL && w->busy != NULL;
    }
    for (size_t i = 0; good && i < p->n_images; i++)
        good = (w->paths[i] = mem_strdup(p->images[i]->image.path)) != NULL;
    if (!good)
        error_set(&err, ERR_DAEMON_OVERLOADED, "out of memory");
    else if (work_run(p->core->loop, prune_fn, pruned, w, p, &err) == 0)
        return;
    if (w != NULL)
        work_free(w);
    prune_failed(p, &err);
}

static void rows_gone(void *arg, struct error *err)
{
    struct prune *p = arg;

    for (size_t i = 0; i < p->n_images; i++) {
        p->images[i]->deleting = false;
        if (!error_is_set(err))
            images_remove(p->images[i]);
    }
    if (error_is_set(err))
        prune_failed(p, err);
    else
        prune_files(p);
}

static bool unused(const struct live_image *image)
{
    return image->image.state == IMAGE_READY && image->users == NULL && image->op == NULL && image->awaited == 0 &&
           !image->deleting;
}

int core_image_prune(struct core *core, bool dry_run,
                     void (*done)(void *arg, const char *json, size_t len, struct error *err), void *arg,
                     struct error *err)
{
    struct prune *p = core_stopping_error(core, err) == 0 ? mem_zalloc(sizeof(*p)) : NULL;

    if (p != NULL)
        p->images = mem_zalloc((core->n_images + 1) * sizeof(struct live_image *));
    struct change *ch = p != NULL && p->images != NULL && !dry_run ? change_new(core) : NULL;
    if (p == NULL || p->images == NULL || (ch == NULL && !dry_run)) {
        mem_free(p != NULL ? p->images : NULL);
        mem_free(p);
        return error_set(err, ERR_DAEMON_OVERLOADED, "out of memory");
    }
    *p = (struct prune){
        .core = core, .images = p->images, .dry_run = dry_run, .items = BUF_INIT(64 << 20), .done = done, .arg = arg};
    for (size_t i = 0; i < core->n_images; i++) {
        struct live_image *image = core->images[i];
        if (!unused(image))
            continue;
        if (p->n_images > 0)
            buf_char(&p->items, ',');
        core_image_render(image, &p->items);
        p->freed += image->image.size;
        p->images[p->n_images++] = image_ref(image);
        if (dry_run)
            continue;
        image->deleting = true;
        change_image(ch, image, true, NULL, "image.removed");
    }
    if (dry_run) {
        prune_files(p);
        return 0;
    }
    change_frees(ch, VM_DESTROY);
    change_commit(ch, rows_gone, p);
    return 0;
}
