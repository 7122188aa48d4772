/* pull.c - who holds a pull, who waits for it, and its end (pull.h); its phases are in pull_run.c.
 *
 * Happy path: those who wait are told phase by phase, each takes a link of the file, the last one to leave has the rest removed.
 * Failure modes: whatever fails is told to all; the part file stays where the helper says that it can be gone on with.  A pull
 * that ends is in the list until its files are as they shall be, so that the next of the same begins after it. */
#include "core/ops/pull.h"

#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/fd.h"
#include "base/mem.h"
#include "core/ops/pulling.h"
#include "loop/work.h"
#include "model/digest.h"

void pull_source_done(struct pull_source *source)
{
    mem_free(source->url);
    fd_close(source->fd);
    *source = (struct pull_source){.fd = -1};
}

void pull_close_fds(struct pull *p)
{
    p->part_fd = fd_close(p->part_fd);
    p->note_fd = fd_close(p->note_fd);
    p->made_fd = fd_close(p->made_fd);
    p->source_fd = fd_close(p->source_fd);
}

void pull_forget_room(struct pull *p)
{
    if (p->disk_ask != NULL)
        disk_forget(TAKE_PTR(p->disk_ask));
    if (p->room > 0) /* a dropped one has none, and outlives the core */
        disk_promise(p->core, &p->room, 0);
}

static void pull_free(struct pull *p)
{
    *p->at = p->next;
    if (p->next != NULL)
        p->next->at = p->at;
    image_fetch_free(p->fetch);
    image_inspection_free(p->inspection);
    image_job_free(p->job);
    pull_forget_room(p);
    pull_close_fds(p);
    pull_source_done(&p->source);
    mem_free(p->dir);
    mem_free(p->part);
    mem_free(p->note);
    mem_free(p->made);
    mem_free(p->auth_host);
    mem_free(p->auth_basic);
    error_done(&p->err);
    mem_free(p);
}

/* --- those who wait --- */

/* Each on its own: one that is told may leave, or wait anew. */
static void tell(struct pull *p)
{
    for (struct pull_wait **at = &p->waits; *at != NULL;) {
        struct pull_wait *w = *at;
        CLEANUP_ERROR struct error err = ERROR_INIT;
        if (p->phase != PULL_FAILED && p->phase <= w->beyond) {
            at = &w->next;
            continue;
        }
        *at = w->next;
        w->pull = NULL;
        if (p->phase == PULL_FAILED)
            error_copy(&err, &p->err);
        w->done(w->arg, &err);
        at = &p->waits;
    }
}

int pull_wait(struct pull *p, struct pull_wait *w, enum pull_phase beyond, void (*done)(void *arg, struct error *err),
              void *arg, struct error *err)
{
    if (p->phase == PULL_FAILED) {
        error_copy(err, &p->err);
        return -1;
    }
    if (p->phase != PULL_ENDING && p->phase > beyond)
        return 0;
    *w = (struct pull_wait){.next = p->waits, .pull = p, .beyond = beyond, .done = done, .arg = arg};
    p->waits = w;
    return OP_WAIT;
}

void pull_unwait(struct pull_wait *w)
{
    if (w->pull == NULL)
        return;
    for (struct pull_wait **at = &w->pull->waits; *at != NULL; at = &(*at)->next)
        if (*at == w) {
            *at = w->next;
            break;
        }
    w->pull = NULL;
}

void pull_reach(struct pull *p, enum pull_phase phase)
{
    p->phase = phase;
    tell(p);
}

void pull_fail(struct pull *p, bool keep, struct error *err)
{
    p->keep = keep;
    error_move(&p->err, err);
    p->phase = PULL_FAILED;
    pull_forget_room(p);
    pull_close_fds(p);
    tell(p);
    for (struct image_op *io = p->holders; io != NULL; io = io->pull_next) {
        error_copy(&io->failed, &p->err);
        io->pull = NULL;
    }
    p->holders = NULL;
    pull_end_if_left(p);
}

/* --- work on the pool: copies in, results out --- */

static void work_free(struct pull_work *w)
{
    for (size_t i = 0; i < ARRAY_SIZE(w->fds); i++)
        fd_close(w->fds[i]);
    mem_free(w->dir);
    mem_free(w->part);
    mem_free(w->note);
    mem_free(w->made);
    mem_free(w->source);
    mem_free(w->registry);
    mem_free(w->auth_host);
    mem_free(w->auth_basic);
    mem_free(w);
}

static int work_fn(void *data, struct error *err)
{
    struct pull_work *w = data;

    return w->fn(w, err);
}

static void work_done(void *arg, void *data, int rc, struct error *err)
{
    struct pull_work *w = data;
    struct pull *p = w->pull;

    (void)arg;
    p->working = false;
    if (p->dropped && p->holders == NULL)
        pull_free(p);
    else if (!p->dropped)
        w->done(p, w, rc, err);
    work_free(w);
}

int pull_work_begin(struct pull *p, int (*fn)(struct pull_work *w, struct error *err),
                    void (*done)(struct pull *p, struct pull_work *w, int rc, struct error *err), struct error *err)
{
    struct pull_work *w = mem_zalloc(sizeof(*w));

    if (w == NULL)
        return error_set(err, ERR_DAEMON_OVERLOADED, "out of memory");
    *w = (struct pull_work){.pull = p,
                            .fn = fn,
                            .done = done,
                            .fds = {-1, -1, -1},
                            .keep = p->keep,
                            .fd = p->made_fd,
                            .image_dirs = p->core->config.image_dirs};
    const char *url = p->source.url;
    w->dir = mem_strdup(p->dir);
    w->part = mem_strdup(p->part);
    w->note = mem_strdup(p->note);
    w->made = mem_strdup(p->made);
    if (url != NULL && strncmp(url, "file://", 7) == 0)
        w->source = mem_strdup(url + 7);
    if (url != NULL && strncmp(url, "oci://", 6) == 0)
        w->registry = mem_strndup(url + 6, strcspn(url + 6, "/"));
    if (w->dir != NULL && w->part != NULL && w->note != NULL && w->made != NULL) {
        if (work_run(p->core->loop, work_fn, work_done, w, NULL, err) == 0) {
            p->working = true;
            return 0;
        }
    } else {
        error_set(err, ERR_DAEMON_OVERLOADED, "out of memory");
    }
    work_free(w);
    return -1;
}

/* --- the end: files as they shall be --- */

static bool is_empty(const char *path)
{
    struct stat st;

    return stat(path, &st) < 0 || st.st_size == 0;
}

static int clean(struct pull_work *w, struct error *err)
{
    (void)err;
    if (!w->keep || is_empty(w->note) || is_empty(w->part)) {
        unlink(w->part);
        unlink(w->note);
    }
    unlink(w->made);
    return 0;
}

static void cleaned(struct pull *p, struct pull_work *w, int rc, struct error *err)
{
    (void)w;
    (void)rc;
    (void)err;
    if (p->holders != NULL)
        pull_start(p);
    else
        pull_free(p);
}

void pull_end_if_left(struct pull *p)
{
    CLEANUP_ERROR struct error err = ERROR_INIT;

    if (p->holders != NULL || p->working || p->phase == PULL_ENDING)
        return;
    if (p->fetch != NULL) { /* its part file is the next one's only when the helper is gone */
        p->stopping = true;
        image_fetch_stop(p->fetch);
        return;
    }
    image_inspection_free(TAKE_PTR(p->inspection));
    image_job_free(TAKE_PTR(p->job));
    pull_forget_room(p);
    pull_close_fds(p);
    p->phase = PULL_ENDING;
    if (pull_work_begin(p, clean, cleaned, &err) < 0)
        cleaned(p, NULL, -1, &err);
}

/* --- join and leave --- */

static int make_key(const struct pull_source *s, const char *stem, char out[65])
{
    CLEANUP_FREE char *all = stem == NULL ? mem_printf("%s %s %s", s->url, s->sha256, s->format) : NULL;

    if (stem != NULL)
        snprintf(out, 65, "%s", stem);
    else if (all != NULL)
        digest_sha256(all, strlen(all), out);
    return all != NULL || stem != NULL ? 0 : -1;
}

static struct pull *pull_new(struct core *core, struct pull_source *source, const char *key)
{
    struct pull *p = mem_zalloc(sizeof(*p));

    if (p == NULL)
        return NULL;
    *p = (struct pull){.core = core, .part_fd = -1, .note_fd = -1, .made_fd = -1, .source_fd = -1};
    snprintf(p->key, sizeof(p->key), "%s", key);
    snprintf(p->stem, sizeof(p->stem), "%s", key);
    p->source = *source;
    *source = (struct pull_source){.fd = -1};
    p->next = core->pulls;
    p->at = &core->pulls;
    if (p->next != NULL)
        p->next->at = &p->next;
    core->pulls = p;
    if (p->source.url == NULL && p->source.length > 0)
        disk_promise(core, &p->room, (uint64_t)p->source.length);
    p->dir = images_path(core, NULL, NULL);
    p->part = images_path(core, key, ".part");
    p->note = images_path(core, key, ".note");
    p->made = images_path(core, key, ".new");
    if (p->dir != NULL && p->part != NULL && p->note != NULL && p->made != NULL)
        return p;
    pull_free(p);
    return NULL;
}

struct pull *pull_join(struct core *core, struct pull_source *source, const char *stem, struct image_op *holder,
                       struct error *err)
{
    char key[65];
    struct pull *p;

    bool named = make_key(source, stem, key) == 0;
    for (p = core->pulls; p != NULL; p = p->next)
        if (named && strcmp(p->key, key) == 0)
            break;
    bool fresh = p == NULL;
    if (!named || (fresh && (p = pull_new(core, source, key)) == NULL)) {
        error_set(err, ERR_DAEMON_OVERLOADED, "out of memory");
        return NULL;
    }
    holder->pull_next = p->holders;
    p->holders = holder;
    holder->pull = p;
    if (fresh)
        pull_start(p);
    if (holder->pull == NULL) { /* it failed at once, and is gone */
        error_move(err, &holder->failed);
        if (!error_is_set(err))
            error_set(err, ERR_DAEMON_OVERLOADED, "out of memory");
    }
    return holder->pull;
}

void pull_leave(struct pull *p, struct image_op *holder)
{
    for (struct image_op **at = &p->holders; *at != NULL; at = &(*at)->pull_next)
        if (*at == holder) {
            *at = holder->pull_next;
            break;
        }
    holder->pull = NULL;
    if (!p->dropped)
        pull_end_if_left(p);
    else if (!p->working)
        pull_free(p);
}

bool pull_take(struct pull *p, const struct image_op *holder, const char **ret_note)
{
    *ret_note = p->note;
    if (p->holders != holder || holder->pull_next != NULL)
        return false;
    p->key[0] = '\0'; /* nobody joins it any more */
    return true;
}

const struct pull_result *pull_result(const struct pull *p)
{
    return &p->result;
}

char **pulls_stems(const struct core *core)
{
    size_t n = 0;

    for (const struct pull *p = core->pulls; p != NULL; p = p->next)
        n++;
    char **list = mem_zalloc((n + 1) * sizeof(char *));
    n = 0;
    for (const struct pull *p = core->pulls; p != NULL && list != NULL; p = p->next) {
        list[n] = mem_strdup(p->stem);
        if (list[n++] == NULL) {
            while (n-- > 0)
                mem_free(list[n]);
            mem_free(list);
            return NULL;
        }
    }
    return list;
}

void pulls_drop(struct core *core)
{
    for (struct pull *p = core->pulls, *next; p != NULL; p = next) {
        next = p->next;
        *p->at = NULL;
        p->at = &p->nowhere;
        p->next = NULL;
        p->dropped = true;
        image_fetch_free(TAKE_PTR(p->fetch));
        image_inspection_free(TAKE_PTR(p->inspection));
        image_job_free(TAKE_PTR(p->job));
        pull_forget_room(p);
        if (p->holders == NULL && !p->working)
            pull_free(p);
    }
}
