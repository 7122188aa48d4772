/* test_leaks.c - what is a leftover, and whose: by a survey that a test writes.  And adopting from it. */
#include "core_bed.h"

#include <stdio.h>
#include <unistd.h>

#include "base/mem.h"
#include "core/leaks.h"
#include "core/ops/ops.h"
#include "model/manifest.h"

#define NOBODY "01a20327-1495-7004-af1d-031135159eff"
#define WEB "{\"name\":\"web\",\"backend\":\"noop\"}"

/* What the next surveys find, and what happens while one is made. */
static struct {
    struct core_bed *b;
    struct planted {
        enum backend_trace_kind kind;
        char what[64];
        char vm_id[UUID_TEXT_MAX]; /* "": nobody's */
        pid_t pid;
        const char *manifest; /* a name: it has one */
        const char *note;
    } items[8];
    size_t n;
    void (*meanwhile)(struct core_bed *b);
    bool fails, mute;
    struct loop_task task;
    void (*done)(void *arg, struct backend_trace *list, struct error *err);
    void *arg;
    unsigned surveys, reaped;
} host;

static struct vm *a_manifest(const char *id, const char *name)
{
    struct vm *vm = mem_zalloc(sizeof(*vm));

    vm->backend = "noop";
    assert_true(uuid_parse(id, &vm->id));
    vm->name = mem_strdup(name);
    vm->state = VM_RUNNING;
    vm->generation = vm->revision = 1;
    vm->created_at = 1;
    json_t *empty = json_object();
    assert_int_equal(vm_spec_parse(empty, "/spec", &vm->spec, NULL), 0);
    json_decref(empty);
    return vm;
}

static struct backend_trace *trace_of(const struct planted *p)
{
    struct backend_trace *t = mem_zalloc(sizeof(*t));

    t->kind = p->kind;
    t->what = mem_strdup(p->what);
    t->size = -1;
    t->has_vm = uuid_parse(p->vm_id, &t->vm_id);
    t->proc.pid = p->pid;
    if (p->manifest != NULL)
        t->manifest = a_manifest(p->vm_id, p->manifest);
    snprintf(t->note, sizeof(t->note), "%s", p->note != NULL ? p->note : "");
    return t;
}

static void survey_run(struct loop_task *task)
{
    CLEANUP_ERROR struct error err = ERROR_INIT;
    struct backend_trace *list = NULL;

    (void)task;
    for (size_t i = host.n; i > 0; i--) {
        struct backend_trace *t = trace_of(&host.items[i - 1]);
        t->next = list;
        list = t;
    }
    if (host.meanwhile != NULL)
        host.meanwhile(host.b);
    host.meanwhile = NULL;
    if (host.fails) {
        backend_trace_free(list);
        list = NULL;
        error_set(&err, ERR_IO, "cannot list it");
    }
    host.surveys++;
    host.done(host.arg, list, &err);
}

static int fake_survey(struct backend *be, const struct uuid *known, size_t n_known,
                       void (*done)(void *arg, struct backend_trace *list, struct error *err), void *arg,
                       struct error *err)
{
    (void)be;
    (void)err;
    for (size_t i = 1; i < n_known; i++)
        assert_true(memcmp(&known[i - 1], &known[i], sizeof(known[0])) < 0);
    host.done = done;
    host.arg = arg;
    host.task.run = survey_run;
    if (!host.mute)
        loop_defer(host.b->loop, &host.task);
    return 0;
}

/* What is named "stays" stays; what is named "lives" is held by a process. */
static int fake_reap(struct backend *be, struct backend_trace *list,
                     void (*done)(void *arg, struct backend_trace *list, struct error *err), void *arg,
                     struct error *err)
{
    (void)be;
    for (struct backend_trace *t = list; t != NULL; t = t->next) {
        t->removed = strcmp(t->what, "stays") != 0 && strcmp(t->what, "lives") != 0;
        host.reaped += t->removed;
        if (strcmp(t->what, "stays") == 0)
            error_set(&t->failure, ERR_IO, "it stays");
        if (strcmp(t->what, "lives") == 0)
            error_set(&t->failure, ERR_VM_INVALID_STATE, "it lives");
        for (size_t i = 0; t->removed && i < host.n; i++)
            if (strcmp(host.items[i].what, t->what) == 0)
                host.items[i--] = host.items[--host.n];
    }
    done(arg, list, err);
    return 0;
}

static struct core_bed *bed(void **state)
{
    struct core_bed *b = *state;

    core_bed_quiet(b); /* the look at the start */
    memset(&host, 0, sizeof(host));
    host.b = b;
    b->noop->survey = fake_survey;
    b->noop->reap = fake_reap;
    return b;
}

static void plant(enum backend_trace_kind kind, const char *what, const char *vm_id, pid_t pid, const char *manifest)
{
    struct planted *p = &host.items[host.n++];

    *p = (struct planted){.kind = kind, .pid = pid, .manifest = manifest};
    snprintf(p->what, sizeof(p->what), "%s", what);
    snprintf(p->vm_id, sizeof(p->vm_id), "%s", vm_id);
}

struct reading {
    bool over;
    enum error_code code;
    json_t *answer;
};

static void on_read(void *arg, struct error *err)
{
    struct reading *r = arg;

    r->over = true;
    r->code = err->code;
}

static void on_answer(void *arg, char *answer, struct error *err)
{
    struct reading *r = arg;

    r->over = true;
    r->code = err->code;
    r->answer = answer != NULL ? json_loads(answer, 0, NULL) : NULL;
    assert_true(answer == NULL || r->answer != NULL);
    mem_free(answer);
}

/* A look at the host that begins now: "KIND WHAT OWNER a|-" of each, by spaces; valid until the next. */
static const char *look(struct core_bed *b)
{
    static char out[1024];
    struct reading r = {0};
    json_t *item;
    size_t i;

    b->core->leaks->begun = 0;
    assert_non_null(core_leaks_read(b->core, on_read, &r, NULL));
    assert_true(core_bed_until(b, &r.over));
    assert_int_equal(r.code, ERR_NONE);
    out[0] = '\0';
    CLEANUP_BUF struct buf text = BUF_INIT(1 << 20);
    core_leaks_put(b->core, &text);
    json_t *doc = json_loadb(text.data, text.len, 0, NULL);
    assert_non_null(doc);
    json_array_foreach(json_object_get(doc, "items"), i, item)
    {
        const char *owner = json_string_value(json_object_get(json_object_get(item, "owner"), "vm_name"));
        size_t len = strlen(out);
        snprintf(out + len, sizeof(out) - len, "%s%s %s %s %s", len > 0 ? "; " : "",
                 json_string_value(json_object_get(item, "kind")), json_string_value(json_object_get(item, "what")),
                 owner != NULL ? owner : "?", json_is_true(json_object_get(item, "adoptable")) ? "a" : "-");
    }
    json_decref(doc);
    core_bed_quiet(b);
    return out;
}

static const char *id_of(struct core_bed *b, const char *name)
{
    static char id[UUID_TEXT_MAX];

    return uuid_text(&core_vm_data(core_bed_vm(b, name))->id, id);
}

static void nothing_is_nothing(void **state)
{
    struct core_bed *b = bed(state);

    assert_string_equal(look(b), "");
    assert_int_equal(host.surveys, 1);
}

static void what_a_running_vm_has_is_its_own(void **state)
{
    struct core_bed *b = bed(state);

    core_bed_make(b, "{\"name\":\"web\",\"backend\":\"noop\",\"start\":true}");
    core_bed_quiet(b);
    core_bed_vm(b, "web")->vm.runtime.pid = 77;
    plant(BACKEND_TRACE_PROCESS, "pid 77", id_of(b, "web"), 77, NULL);
    plant(BACKEND_TRACE_RUNTIME_DIR, "/run/x", id_of(b, "web"), 0, NULL);
    plant(BACKEND_TRACE_TAP, "vm00", id_of(b, "web"), 0, NULL);
    plant(BACKEND_TRACE_DATA_DIR, "/data/x", id_of(b, "web"), 0, NULL);
    assert_string_equal(look(b), "");
    plant(BACKEND_TRACE_PROCESS, "pid 78", id_of(b, "web"), 78, NULL);
    plant(BACKEND_TRACE_FILE, "x.tmp", id_of(b, "web"), 0, NULL);
    assert_string_equal(look(b), "process pid 78 web -; file x.tmp web -");
}

static void what_a_vm_at_rest_has_is_left_over(void **state)
{
    struct core_bed *b = bed(state);

    core_bed_make(b, WEB);
    core_bed_quiet(b);
    plant(BACKEND_TRACE_RUNTIME_DIR, "/run/x", id_of(b, "web"), 0, NULL);
    plant(BACKEND_TRACE_DATA_DIR, "/data/x", id_of(b, "web"), 0, NULL);
    assert_string_equal(look(b), "runtime_dir /run/x web -");
    plant(BACKEND_TRACE_PROCESS, "pid 77", id_of(b, "web"), 77, NULL);
    assert_string_equal(look(b), "process pid 77 web a; runtime_dir /run/x web a");
}

static void what_no_vm_has_is_by_its_manifest(void **state)
{
    struct core_bed *b = bed(state);
    char destroyed[UUID_TEXT_MAX];

    plant(BACKEND_TRACE_DATA_DIR, "/data/x", NOBODY, 0, NULL);
    plant(BACKEND_TRACE_DATA_DIR, "odd", "", 0, NULL);
    assert_string_equal(look(b), "data_dir /data/x ? -; data_dir odd ? -");
    /* One manifest is enough for all that the VM has. */
    plant(BACKEND_TRACE_PROCESS, "pid 77", NOBODY, 77, NULL);
    plant(BACKEND_TRACE_RUNTIME_DIR, "/run/x", NOBODY, 0, "lost");
    assert_string_equal(look(b),
                        "process pid 77 lost a; runtime_dir /run/x lost a; data_dir /data/x lost a; data_dir odd ? -");
    host.n = 0;
    core_bed_make(b, WEB);
    strcpy(destroyed, id_of(b, "web"));
    assert_int_equal(core_bed_do(b, "web", VM_DESTROY), ERR_NONE);
    plant(BACKEND_TRACE_DATA_DIR, "/data/x", destroyed, 0, "web");
    assert_string_equal(look(b), "data_dir /data/x web -");
}

/* --- what is under way, or was while one looked --- */

static void what_is_under_way_is_left_out(void **state)
{
    struct core_bed *b = bed(state);

    core_bed_make(b, "{\"name\":\"web\",\"backend\":\"noop\",\"labels\":{\"noop.delay_ms.greet\":\"60000\"}}");
    core_bed_quiet(b);
    plant(BACKEND_TRACE_RUNTIME_DIR, "/run/x", id_of(b, "web"), 0, NULL);
    struct operation *op = core_bed_verb(b, "web", VM_START, NULL);
    core_bed_await(b, op, false);
    assert_string_equal(look(b), "");
    core_operation_cancel(b->core, op, "", NULL);
    core_bed_end(b, op);
    core_bed_quiet(b);
    assert_string_equal(look(b), "runtime_dir /run/x web -");
    /* Known once, it is hidden meanwhile and not told anew. */
    char *told = core_bed_sql(b, "SELECT count(*) FROM events WHERE type LIKE 'host.%'", NULL);
    op = core_bed_verb(b, "web", VM_START, NULL);
    core_bed_await(b, op, false);
    assert_string_equal(look(b), "");
    core_operation_cancel(b->core, op, "", NULL);
    core_bed_end(b, op);
    core_bed_quiet(b);
    assert_string_equal(look(b), "runtime_dir /run/x web -");
    char *again = core_bed_sql(b, "SELECT count(*) FROM events WHERE type LIKE 'host.%'", NULL);
    assert_string_equal(told, "1");
    assert_string_equal(again, "1");
    mem_free(told);
    mem_free(again);
}

static void destroy_web(struct core_bed *b)
{
    struct live_vm *vm = core_bed_vm(b, "web");

    vm->vm.state = VM_DESTROYED; /* as the commit of a destroy does */
    alloc_release(vm);
    registry_remove(vm);
}

static void what_was_destroyed_meanwhile_is_left_out(void **state)
{
    struct core_bed *b = bed(state);

    core_bed_make(b, WEB);
    core_bed_quiet(b);
    plant(BACKEND_TRACE_DATA_DIR, "/data/x", id_of(b, "web"), 0, "web");
    host.meanwhile = destroy_web;
    assert_string_equal(look(b), "");
    assert_string_equal(look(b), "data_dir /data/x web -"); /* it is a leftover when it is still there */
}

static void make_web(struct core_bed *b)
{
    struct uuid id;
    struct vm *vm = a_manifest(NOBODY, "web");

    assert_true(uuid_parse(NOBODY, &id));
    vm->state = VM_STOPPED;
    struct live_vm *live = registry_add(b->core, vm, b->noop, NULL);
    live->visible = true;
    mem_free(vm);
}

static void what_was_created_meanwhile_is_left_out(void **state)
{
    struct core_bed *b = bed(state);

    plant(BACKEND_TRACE_RUNTIME_DIR, "/run/x", NOBODY, 0, NULL);
    host.meanwhile = make_web;
    assert_string_equal(look(b), "");
}

static void touch_web(struct core_bed *b)
{
    core_bed_vm(b, "web")->vm.revision++; /* anything was done with it, and is over */
}

static void what_changed_meanwhile_is_left_out(void **state)
{
    struct core_bed *b = bed(state);

    core_bed_make(b, WEB);
    core_bed_quiet(b);
    plant(BACKEND_TRACE_RUNTIME_DIR, "/run/x", id_of(b, "web"), 0, NULL);
    host.meanwhile = touch_web;
    assert_string_equal(look(b), "");
}

/* --- a survey that cannot be made; many readers --- */

static void a_failure_is_told_and_changes_nothing(void **state)
{
    struct core_bed *b = bed(state);
    struct reading r = {0};

    plant(BACKEND_TRACE_DATA_DIR, "odd", "", 0, NULL);
    look(b);
    host.fails = true;
    b->core->leaks->begun = 0;
    assert_non_null(core_leaks_read(b->core, on_read, &r, NULL));
    assert_true(core_bed_until(b, &r.over));
    assert_int_equal(r.code, ERR_IO);
    assert_int_equal(b->core->leaks->list.n, 1);
    host.fails = false;
    assert_string_equal(look(b), "data_dir odd ? -");
}

static void readers_share_a_survey(void **state)
{
    struct core_bed *b = bed(state);
    struct reading r[20] = {0};

    for (size_t i = 0; i < ARRAY_SIZE(r); i++)
        assert_non_null(core_leaks_read(b->core, on_read, &r[i], NULL));
    struct leaks_wait *left = core_leaks_read(b->core, on_read, NULL, NULL);
    core_leaks_cancel(left);
    for (size_t i = 0; i < ARRAY_SIZE(r); i++)
        assert_true(core_bed_until(b, &r[i].over));
    assert_int_equal(host.surveys, 1);
}

static void what_is_asked_for_at_the_end_is_answered(void **state)
{
    struct core_bed *b = bed(state);
    struct reading read = {0}, reap = {0}, adopt = {0};
    CLEANUP_ERROR struct error none = ERROR_INIT;
    const char *ids[] = {NOBODY};

    core_bed_quiet(b);
    host.mute = true;
    assert_non_null(core_leaks_read(b->core, on_read, &read, NULL));
    assert_int_equal(core_leaks_reap(b->core, false, 0, on_answer, &reap, NULL), 0);
    assert_int_equal(core_adopt(b->core, "r", ids, 1, on_answer, &adopt, NULL), 0);
    core_bed_close(b, 0);
    assert_true(read.over && reap.over && adopt.over);
    assert_int_equal(reap.code, ERR_DAEMON_SHUTTING_DOWN);
    assert_int_equal(adopt.code, ERR_DAEMON_SHUTTING_DOWN);
    host.done(host.arg, NULL, &none); /* what comes too late is only let go */
}

/* --- removing --- */

static json_t *do_reap(struct core_bed *b, bool dry_run, int64_t older)
{
    struct reading r = {0};

    assert_int_equal(core_leaks_reap(b->core, dry_run, older, on_answer, &r, NULL), 0);
    assert_true(core_bed_until(b, &r.over));
    assert_int_equal(r.code, ERR_NONE);
    core_bed_quiet(b);
    return r.answer;
}

static const char *result_of(const json_t *answer, const char *what)
{
    json_t *item;
    size_t i;

    json_array_foreach(json_object_get(answer, "items"), i, item)
    {
        if (strcmp(json_string_value(json_object_get(item, "what")), what) == 0)
            return json_string_value(json_object_get(item, "result"));
    }
    return "(none)";
}

static void each_leftover_has_its_result(void **state)
{
    struct core_bed *b = bed(state);

    plant(BACKEND_TRACE_DATA_DIR, "goes", "", 0, NULL);
    plant(BACKEND_TRACE_DATA_DIR, "stays", "", 0, NULL);
    plant(BACKEND_TRACE_DATA_DIR, "lives", "", 0, NULL);
    plant(BACKEND_TRACE_DATA_DIR, "lost", NOBODY, 0, "lost");
    json_t *answer = do_reap(b, false, -1);
    assert_string_equal(result_of(answer, "goes"), "too_young");
    assert_string_equal(result_of(answer, "lost"), "kept");
    json_decref(answer);
    answer = do_reap(b, true, 0);
    assert_string_equal(result_of(answer, "goes"), "would_reap");
    assert_int_equal(host.reaped, 0);
    json_decref(answer);
    answer = do_reap(b, false, 0);
    assert_string_equal(result_of(answer, "goes"), "reaped");
    assert_string_equal(result_of(answer, "stays"), "failed");
    assert_string_equal(result_of(answer, "lives"), "kept");
    assert_string_equal(result_of(answer, "lost"), "kept");
    assert_int_equal(json_integer_value(json_object_get(answer, "reaped")), 1);
    json_decref(answer);
    assert_string_equal(look(b), "data_dir lives ? -; data_dir lost lost a; data_dir stays ? -");
}

static void ports_of_the_destroyed_are_given_back(void **state)
{
    struct core_bed *b = bed(state);
    char id[UUID_TEXT_MAX];

    core_bed_make(b, WEB);
    core_bed_make(b, "{\"name\":\"other\",\"backend\":\"noop\"}");
    strcpy(id, id_of(b, "web"));
    assert_int_equal(core_bed_do(b, "web", VM_DESTROY), ERR_NONE);
    mem_free(core_bed_sql(b, "INSERT INTO ports (udp, host_ip, port, vm_id) VALUES (1, '127.0.0.1', 1234, ?1)", id));
    assert_string_equal(look(b), "port udp 127.0.0.1:1234 web -");
    json_t *answer = do_reap(b, false, 0);
    assert_string_equal(result_of(answer, "udp 127.0.0.1:1234"), "reaped");
    json_decref(answer);
    assert_string_equal(look(b), "");
    char *left = core_bed_sql(b, "SELECT count(*) FROM ports", NULL);
    assert_string_equal(left, "1"); /* the other's */
    mem_free(left);
}

/* --- adopting --- */

static json_t *do_adopt(struct core_bed *b, const char *id)
{
    struct reading r = {0};

    assert_int_equal(core_adopt(b->core, "request", &id, 1, on_answer, &r, NULL), 0);
    assert_true(core_bed_until(b, &r.over));
    assert_int_equal(r.code, ERR_NONE);
    json_t *item = json_incref(json_array_get(json_object_get(r.answer, "items"), 0));
    json_decref(r.answer);
    return item;
}

/* "ok", "no need" or the code of the refusal. */
static const char *adopted(struct core_bed *b, const char *id)
{
    static char out[64];
    json_t *item = do_adopt(b, id);
    const char *code = json_string_value(json_object_get(json_object_get(item, "error"), "code"));

    snprintf(out, sizeof(out), "%s",
             code != NULL                                     ? code + strlen("vm_manager::")
             : json_is_true(json_object_get(item, "adopted")) ? "ok"
                                                              : "no need");
    json_decref(item);
    core_bed_quiet(b);
    return out;
}

static void a_lost_vm_is_durable_when_adopted(void **state)
{
    struct core_bed *b = bed(state);

    plant(BACKEND_TRACE_DATA_DIR, "/data/x", NOBODY, 0, "lost");
    assert_string_equal(adopted(b, NOBODY), "ok");
    assert_string_equal(core_bed_get(b, "lost", "state"), "stopped");
    assert_string_equal(core_bed_get(b, "lost", "id"), NOBODY);
    char *events = core_bed_sql(b, "SELECT count(*) FROM events WHERE type = 'vm.adopted'", NULL);
    assert_string_equal(events, "1");
    mem_free(events);
    assert_string_equal(adopted(b, NOBODY), "no need");
    core_bed_close(b, 0);
    core_bed_open(b);
    assert_string_equal(core_bed_get(b, "lost", "state"), "stopped");
    assert_int_equal(core_bed_do(b, "lost", VM_START), ERR_NONE);
}

static void a_lost_vm_is_let_go_when_the_disk_refuses(void **state)
{
    struct core_bed *b = bed(state);

    plant(BACKEND_TRACE_DATA_DIR, "/data/x", NOBODY, 0, "lost");
    mem_free(core_bed_sql(b, "CREATE TRIGGER no BEFORE INSERT ON vms BEGIN SELECT RAISE(ABORT, 'full'); END", NULL));
    assert_string_equal(adopted(b, NOBODY), "daemon::internal");
    assert_null(core_bed_vm(b, NOBODY));
    assert_int_equal(b->core->n_vms, 0);
    mem_free(core_bed_sql(b, "DROP TRIGGER no", NULL));
    assert_string_equal(look(b), "data_dir /data/x lost a");
    assert_string_equal(adopted(b, NOBODY), "ok");
}

static void a_name_or_id_that_is_not_free_is_refused(void **state)
{
    struct core_bed *b = bed(state);
    char destroyed[UUID_TEXT_MAX];

    core_bed_make(b, WEB);
    plant(BACKEND_TRACE_DATA_DIR, "/data/x", NOBODY, 0, "web");
    assert_string_equal(adopted(b, NOBODY), "vm::already_exists");
    strcpy(destroyed, id_of(b, "web"));
    assert_int_equal(core_bed_do(b, "web", VM_DESTROY), ERR_NONE);
    assert_string_equal(adopted(b, destroyed), "lifecycle::destroyed");
    assert_string_equal(adopted(b, "web"), "vm::not_found");
    assert_string_equal(adopted(b, NOBODY), "ok");
}

static void a_vm_with_something_under_way_is_refused(void **state)
{
    struct core_bed *b = bed(state);

    core_bed_make(b, "{\"name\":\"web\",\"backend\":\"noop\",\"labels\":{\"noop.delay_ms.greet\":\"60000\"}}");
    struct operation *op = core_bed_verb(b, "web", VM_START, NULL);
    core_bed_await(b, op, false);
    assert_string_equal(adopted(b, id_of(b, "web")), "vm::busy");
    core_operation_cancel(b->core, op, "", NULL);
    core_bed_end(b, op);
}

static void a_row_at_rest_takes_its_process_back(void **state)
{
    struct core_bed *b = bed(state);

    core_bed_make(b, "{\"name\":\"web\",\"backend\":\"noop\",\"labels\":{\"noop.adopt\":\"suspended\"}}");
    core_bed_quiet(b);
    assert_string_equal(adopted(b, id_of(b, "web")), "no need");
    plant(BACKEND_TRACE_PROCESS, "pid 77", id_of(b, "web"), 77, NULL);
    assert_string_equal(adopted(b, id_of(b, "web")), "ok");
    assert_string_equal(core_bed_get(b, "web", "state"), "suspended");
    assert_int_equal(core_bed_do(b, "web", VM_RESUME), ERR_NONE);
}

/* Its guest had ended when it was asked. */
static void a_process_that_had_ended_leaves_the_vm_at_rest(void **state)
{
    struct core_bed *b = bed(state);

    core_bed_make(b, "{\"name\":\"web\",\"backend\":\"noop\",\"labels\":{\"noop.adopt\":\"panic\"}}");
    core_bed_quiet(b);
    plant(BACKEND_TRACE_PROCESS, "pid 77", id_of(b, "web"), 77, NULL);
    assert_string_equal(adopted(b, id_of(b, "web")), "ok");
    assert_string_equal(core_bed_get(b, "web", "state"), "failed");
    assert_string_equal(core_bed_get(b, "web", "failure.reason"), "panic");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        CORE_TEST(nothing_is_nothing),
        CORE_TEST(what_a_running_vm_has_is_its_own),
        CORE_TEST(what_a_vm_at_rest_has_is_left_over),
        CORE_TEST(what_no_vm_has_is_by_its_manifest),
        CORE_TEST(what_is_under_way_is_left_out),
        CORE_TEST(what_was_destroyed_meanwhile_is_left_out),
        CORE_TEST(what_was_created_meanwhile_is_left_out),
        CORE_TEST(what_changed_meanwhile_is_left_out),
        CORE_TEST(a_failure_is_told_and_changes_nothing),
        CORE_TEST(readers_share_a_survey),
        CORE_TEST(what_is_asked_for_at_the_end_is_answered),
        CORE_TEST(each_leftover_has_its_result),
        CORE_TEST(ports_of_the_destroyed_are_given_back),
        CORE_TEST(a_lost_vm_is_durable_when_adopted),
        CORE_TEST(a_lost_vm_is_let_go_when_the_disk_refuses),
        CORE_TEST(a_name_or_id_that_is_not_free_is_refused),
        CORE_TEST(a_vm_with_something_under_way_is_refused),
        CORE_TEST(a_row_at_rest_takes_its_process_back),
        CORE_TEST(a_process_that_had_ended_leaves_the_vm_at_rest),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
