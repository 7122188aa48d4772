/* disk.c - is there room for what is asked?  Looked at before an operation begins, so that a refusal comes at the request.
 *
 *   disk_ask ─► statvfs of the data and the runtime directory, on the pool ─► enough beside the reserve? ─► fn(arg, err)
 *
 * statvfs(2) of a file system behind a network may hang, so it is the pool's.  One look at a time is under way, and whoever asks
 * is answered by a look that began after the question: nobody is refused for room that has been made meanwhile, and a
 * thousand requests cost a few looks.  In between there is a look every few seconds for the host's report.
 * Failure modes: the look does not come back within LOOK_MS: who waits goes on unlooked, and so does everybody until it does;
 * the step itself then meets the disk.  A file system that tells nothing has room. */
#include <stdio.h>
#include <sys/statvfs.h>

#include "base/fd.h"
#include "base/log.h"
#include "base/mem.h"
#include "core/internal.h"
#include "loop/work.h"

enum { LOOK_MS = 2000, AGAIN_MS = 5000, RESERVE_SHARE = 50 /* a fiftieth: 2 % */, FILES_NEEDED = 16 };

struct disk_ask {
    struct disk_ask *next;
    struct core *core;
    uint64_t data_need, run_need;
    void (*fn)(void *arg, struct error *err);
    void *arg;
};

/* What a look found.  Crosses to the pool and back; core is NULL when it left meanwhile. */
struct disk_look {
    struct core *core;
    char *data_dir, *runtime_dir;
    struct disk_room data, run;
};

static void look_free(struct disk_look *look)
{
    if (look == NULL)
        return;
    mem_free(look->data_dir);
    mem_free(look->runtime_dir);
    mem_free(look);
}

static void look_at(const char *path, struct disk_room *ret)
{
    struct statvfs st;

    *ret = (struct disk_room){.known = path != NULL && statvfs(path, &st) == 0 && st.f_blocks > 0};
    if (!ret->known)
        return;
    ret->total = (uint64_t)st.f_blocks * st.f_frsize;
    ret->free = (uint64_t)st.f_bavail * st.f_frsize;
    ret->files_short = st.f_files > 0 && st.f_favail < FILES_NEEDED;
}

static int look_fn(void *data, struct error *err)
{
    struct disk_look *look = data;

    (void)err;
    look_at(look->data_dir, &look->data);
    look_at(look->runtime_dir, &look->run);
    return 0;
}

static void size_text(uint64_t bytes, char out[32])
{
    if (bytes < 10 << 20)
        snprintf(out, 32, "%llu KiB", (unsigned long long)bytes >> 10);
    else
        snprintf(out, 32, "%llu MiB", (unsigned long long)bytes >> 20);
}

static int no_room(const char *path, const struct disk_room *room, uint64_t need, uint64_t reserve, uint64_t promised,
                   struct error *err)
{
    char has[32], needs[32], keeps[32], spoken[32];

    size_text(room->free, has);
    size_text(need, needs);
    size_text(reserve, keeps);
    size_text(promised, spoken);
    if (room->files_short)
        error_set(err, ERR_HOST_DISK_FULL, "the file system of %s has room for less than %d more files", path,
                  FILES_NEEDED);
    else
        error_set(err, ERR_HOST_DISK_FULL,
                  "the file system of %s has %s free; %s are needed beside the %s kept in reserve%s%s%s", path, has,
                  needs, keeps, promised > 0 ? " and the " : "", promised > 0 ? spoken : "",
                  promised > 0 ? " of operations under way" : "");
    error_help(err,
               "free space on the file system of %s, for instance by destroying VMs; disk_reserve_mb in vmmd.conf"
               " sets the reserve",
               path);
    error_ctx_str(err, "path", path);
    error_ctx_int(err, "free_bytes", (int64_t)room->free);
    error_ctx_int(err, "needed_bytes", (int64_t)need);
    error_ctx_int(err, "reserved_bytes", (int64_t)(reserve + promised));
    return -1;
}

/* A small file system keeps less. */
static uint64_t reserve_of(const struct core *core, const struct disk_room *room)
{
    uint64_t wanted = (uint64_t)core->config.disk_reserve_mb << 20, most = room->total / RESERVE_SHARE;

    return wanted < most ? wanted : most;
}

static int check(const struct disk_ask *ask, const struct disk_look *look, struct error *err)
{
    const struct core *core = ask->core;
    uint64_t reserve = reserve_of(core, &look->data), promised = core->disk_promised;

    if (look->data.known && (look->data.files_short || look->data.free < ask->data_need + reserve + promised))
        return no_room(look->data_dir, &look->data, ask->data_need, reserve, promised, err);
    if (ask->run_need > 0 && look->run.known && (look->run.files_short || look->run.free < ask->run_need))
        return no_room(look->runtime_dir, &look->run, ask->run_need, 0, 0, err);
    return 0;
}

/* look NULL: nothing is known, and nobody is refused.  fn may forget others of the list. */
static void answer(struct core *core, const struct disk_look *look)
{
    struct disk_ask *ask;

    while ((ask = core->disk_answers) != NULL) {
        CLEANUP_ERROR struct error err = ERROR_INIT;
        core->disk_answers = ask->next;
        if (look != NULL)
            check(ask, look, &err);
        if (!error_is_set(&err))
            core->disk_promised += ask->data_need;
        ask->fn(ask->arg, &err);
        mem_free(ask);
    }
}

static void look_done(void *arg, void *data, int rc, struct error *err)
{
    struct disk_look *look = data;
    struct core *core = look->core;

    (void)arg;
    (void)rc;
    (void)err;
    if (core == NULL) {
        look_free(look);
        return;
    }
    if (core->disk_hung)
        LOG_INFO("the file system of the data directory answers again", "path", look->data_dir);
    core->disk_look = NULL;
    core->disk_hung = false;
    core->disk_room = look->data;
    timer_start(core->disk_timer, AGAIN_MS, 0);
    timer_unref(core->disk_timer);
    answer(core, look);
    look_free(look);
    if (core->disk_asks != NULL)
        loop_defer(core->loop, &core->disk_task);
}

static bool look_begin(struct core *core)
{
    CLEANUP_ERROR struct error err = ERROR_INIT;
    struct disk_look *look = mem_zalloc(sizeof(*look));

    if (look != NULL) {
        look->data_dir = mem_strdup(core->config.data_dir);
        look->runtime_dir = core->config.runtime_dir != NULL ? mem_strdup(core->config.runtime_dir) : NULL;
        look->core = core;
    }
    if (look == NULL || look->data_dir == NULL || work_run(core->loop, look_fn, look_done, look, NULL, &err) < 0) {
        look_free(look);
        return false;
    }
    core->disk_answers = core->disk_asks;
    core->disk_asks = NULL;
    core->disk_look = look;
    timer_start(core->disk_timer, LOOK_MS, 0);
    timer_unref(core->disk_timer);
    return true;
}

static void answer_unlooked(struct core *core)
{
    answer(core, NULL);
    core->disk_answers = core->disk_asks;
    core->disk_asks = NULL;
    answer(core, NULL);
}

/* On a turn of its own: who asks is never answered in the middle of it. */
static void ask_turn(struct loop_task *task)
{
    struct core *core = CONTAINER_OF(task, struct core, disk_task);

    if (core->disk_asks == NULL)
        return;
    if (core->disk_look != NULL && !core->disk_hung)
        return; /* its end begins the next */
    if (core->disk_hung || core->config.data_dir == NULL || !look_begin(core))
        answer_unlooked(core);
}

static void timer_over(void *arg)
{
    struct core *core = arg;

    if (core->disk_look == NULL) {
        look_begin(core);
        return;
    }
    core->disk_hung = true;
    LOG_WARN("the file system of the data directory does not answer", "path", core->config.data_dir);
    answer_unlooked(core);
}

struct disk_ask *disk_ask(struct core *core, uint64_t data_need, uint64_t run_need,
                          void (*fn)(void *arg, struct error *err), void *arg)
{
    struct disk_ask *ask = mem_zalloc(sizeof(*ask)), **end = &core->disk_asks;

    if (ask == NULL)
        return NULL;
    *ask = (struct disk_ask){.core = core, .data_need = data_need, .run_need = run_need, .fn = fn, .arg = arg};
    while (*end != NULL)
        end = &(*end)->next;
    *end = ask;
    loop_defer(core->loop, &core->disk_task);
    return ask;
}

static bool take_out(struct disk_ask **list, struct disk_ask *ask)
{
    for (; *list != NULL; list = &(*list)->next)
        if (*list == ask) {
            *list = ask->next;
            return true;
        }
    return false;
}

void disk_forget(struct disk_ask *ask)
{
    struct core *core = ask->core;

    if (take_out(&core->disk_asks, ask) || take_out(&core->disk_answers, ask))
        mem_free(ask);
}

void disk_promise(struct core *core, uint64_t *room, uint64_t now)
{
    core->disk_promised += now - *room;
    *room = now;
}

uint64_t disk_reserve(const struct core *core)
{
    return core->disk_room.known ? reserve_of(core, &core->disk_room) : 0;
}

const struct disk_room *core_disk_room(const struct core *core)
{
    return &core->disk_room;
}

int disk_begin(struct core *core)
{
    core->disk_task.run = ask_turn;
    core->disk_timer = timer_new(core->loop, timer_over, core);
    if (core->disk_timer == NULL)
        return -1;
    if (core->config.data_dir != NULL)
        look_at(core->config.data_dir, &core->disk_room); /* the loop does not run yet */
    timer_unref(core->disk_timer);
    if (core->config.data_dir != NULL)
        timer_start(core->disk_timer, AGAIN_MS, 0);
    return 0;
}

void disk_end(struct core *core)
{
    loop_revoke(core->loop, &core->disk_task);
    timer_free(core->disk_timer);
    core->disk_timer = NULL;
    if (core->disk_look != NULL)
        core->disk_look->core = NULL;
}
