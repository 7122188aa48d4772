/* test_manifest.c - a VM written down and read back; and what is not believed. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/clock.h"
#include "base/mem.h"
#include "model/manifest.h"

#define ID "01a20327-1495-7004-af1d-031135159eff"

static struct vm a_vm(void)
{
    CLEANUP_ERROR struct error err = ERROR_INIT;
    struct vm vm = {.backend = "qemu", .state = VM_RUNNING, .generation = 3, .revision = 17};
    json_t *spec =
               json_loads("{\"image\":\"/srv/a.qcow2\",\"memory_mb\":512,\"disk_gb\":8,\"cloud_init\":{\"hostname\":"
                          "\"web\"},\"network\":{\"type\":\"user\",\"forwards\":[{\"host_port\":20080,"
                          "\"guest_port\":80}]},\"restart\":\"always\"}",
                          0, NULL),
           *labels = json_loads("{\"app\":\"shop\"}", 0, NULL);

    assert_true(uuid_parse(ID, &vm.id));
    vm.name = mem_strdup("web");
    assert_int_equal(vm_spec_parse(spec, "/spec", &vm.spec, &err), 0);
    assert_int_equal(vm_labels_parse(labels, "/labels", &vm.labels, &err), 0);
    json_decref(spec);
    json_decref(labels);
    vm.created_at = vm.updated_at = clock_wall_ms();
    vm.runtime.ssh_host_port = 20022;
    strcpy(vm.runtime.mac_addr, "52:54:00:01:02:03");
    vm.runtime.disk_format = mem_strdup("qcow2");
    vm.runtime.machine_type = mem_strdup("pc-q35-7.2");
    vm.runtime.work_dir = mem_strdup("/etc");
    vm.runtime.qmp_socket = mem_strdup("/run/q");
    vm.runtime.pid = 1;
    vm.has_operation = true;
    vm_condition_set(&vm, VM_COND_READY, true, "agent", "");
    vm.failure.set = true;
    vm.failure.code = ERR_LIFECYCLE_OTHER;
    return vm;
}

static int parse(const char *text, struct vm *ret, struct error *err)
{
    struct uuid id;

    assert_true(uuid_parse(ID, &id));
    return vm_manifest_parse(text, strlen(text), &id, "qemu", ret, err);
}

static void comes_back_as_it_was(void **state)
{
    CLEANUP_ERROR struct error err = ERROR_INIT;
    struct vm vm = a_vm(), back;
    size_t len = 0;
    CLEANUP_FREE char *text = vm_manifest_text(&vm, &len);

    (void)state;
    assert_non_null(text);
    assert_int_equal(len, strlen(text));
    assert_int_equal(vm_manifest_parse(text, len, &vm.id, "qemu", &back, &err), 0);
    assert_true(uuid_equal(&back.id, &vm.id));
    assert_string_equal(back.name, "web");
    assert_int_equal(back.generation, 3);
    assert_int_equal(back.revision, 17);
    assert_int_equal(back.state, VM_RUNNING);
    assert_int_equal(back.created_at, vm.created_at);
    assert_int_equal(back.runtime.ssh_host_port, 20022);
    assert_string_equal(back.runtime.mac_addr, "52:54:00:01:02:03");
    assert_string_equal(back.runtime.disk_format, "qcow2");
    assert_string_equal(back.runtime.machine_type, "pc-q35-7.2");
    json_t *before = vm_spec_json(&vm.spec), *after = vm_spec_json(&back.spec);
    assert_true(json_equal(before, after));
    json_decref(before);
    json_decref(after);
    assert_string_equal(vm_label_get(&back.labels, "app"), "shop");
    /* What only that time had. */
    assert_int_equal(back.runtime.pid, 0);
    assert_null(back.runtime.qmp_socket);
    assert_null(back.runtime.work_dir);
    assert_false(back.has_operation);
    assert_false(back.failure.set);
    assert_false(back.conditions[VM_COND_READY].known);
    vm_done(&vm);
    vm_done(&back);
}

/* Puts a member of the manifest, "vm.runtime.mac_addr"; the text. */
static char *changed(const char *path, const char *value)
{
    struct vm vm = a_vm();
    char *text = vm_manifest_text(&vm, NULL), name[64];
    json_t *all = json_loads(text, 0, NULL), *at = all;

    strcpy(name, path);
    for (char *save = NULL, *part = strtok_r(name, ".", &save), *next; part != NULL; part = next) {
        next = strtok_r(NULL, ".", &save);
        if (next == NULL)
            json_object_set_new(at, part, json_loads(value, JSON_DECODE_ANY, NULL));
        at = json_object_get(at, part);
    }
    mem_free(text);
    text = json_dumps(all, 0);
    json_decref(all);
    vm_done(&vm);
    return text;
}

static void what_is_not_ours_is_refused(void **state)
{
    static const char *const changes[][2] = {
        {"vmmd_manifest", "2"},
        {"vmmd_manifest", "\"1\""},
        {"vm", "null"},
        {"vm", "[]"},
        {"private", "7"},
        {"vm.id", "\"01a20327-1495-7004-af1d-031135159efe\""},
        {"vm.id", "\"../../etc\""},
        {"vm.name", "\"../../etc\""},
        {"vm.name", "\"\""},
        {"vm.name", "7"},
        {"vm.backend", "\"noop\""},
        {"vm.state", "\"destroyed\""},
        {"vm.state", "\"asleep\""},
        {"vm.spec", "7"},
        {"vm.spec.vcpus", "100000"},
        {"vm.spec.image", "\"\\u0001\""},
        {"vm.labels", "{\"a\":7}"},
        {"vm.runtime.mac_addr", "\"52:54:00:01:02,x\""},
        {"vm.runtime.mac_addr", "\"52:54\""},
        {"private.disk_format", "\"vmdk\""},
        {"private.disk_format", "null"},
    };
    static const char *const texts[] = {
        "", "{", "[]", "null", "{\"vmmd_manifest\":1,\"vmmd_manifest\":1}", "{\"vmmd_manifest\":1}"};
    struct vm vm;

    (void)state;
    for (size_t i = 0; i < ARRAY_SIZE(texts); i++) {
        CLEANUP_ERROR struct error err = ERROR_INIT;
        assert_int_equal(parse(texts[i], &vm, &err), -1);
        assert_int_equal(err.code, ERR_DAEMON_INTERNAL);
    }
    for (size_t i = 0; i < ARRAY_SIZE(changes); i++) {
        CLEANUP_ERROR struct error err = ERROR_INIT;
        char *text = changed(changes[i][0], changes[i][1]);
        if (parse(text, &vm, &err) == 0)
            fail_msg("%s: %s was taken", changes[i][0], changes[i][1]);
        assert_int_equal(err.code, ERR_DAEMON_INTERNAL);
        free(text);
    }
}

static void too_large_or_too_deep_is_refused(void **state)
{
    CLEANUP_ERROR struct error err = ERROR_INIT;
    char *text = malloc(MANIFEST_MAX + 2);
    struct uuid id;
    struct vm vm;

    (void)state;
    assert_true(uuid_parse(ID, &id));
    memset(text, '[', MANIFEST_MAX + 1);
    assert_int_equal(vm_manifest_parse(text, MANIFEST_MAX + 1, &id, "qemu", &vm, &err), -1);
    assert_non_null(strstr(err.message, "larger"));
    error_done(&err);
    assert_int_equal(vm_manifest_parse(text, MANIFEST_MAX, &id, "qemu", &vm, &err), -1);
    free(text);
}

static void counters_out_of_range_are_begun_anew(void **state)
{
    CLEANUP_ERROR struct error err = ERROR_INIT;
    char *text = changed("vm.generation", "-7");
    struct vm vm;

    (void)state;
    assert_int_equal(parse(text, &vm, &err), 0);
    assert_int_equal(vm.generation, 1);
    vm_done(&vm);
    free(text);
}

static void allocation_sweep(void **state)
{
    struct vm vm = a_vm();

    (void)state;
    json_set_alloc_funcs(mem_alloc, mem_free);
    for (size_t nth = 1; nth < 400; nth++) {
        CLEANUP_ERROR struct error err = ERROR_INIT;
        struct vm back;
        mem_fail_nth(nth);
        char *text = vm_manifest_text(&vm, NULL);
        int rc = text != NULL ? parse(text, &back, &err) : -1;
        mem_fail_nth(0);
        if (rc == 0)
            vm_done(&back);
        mem_free(text);
    }
    vm_done(&vm);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(comes_back_as_it_was),
        cmocka_unit_test(what_is_not_ours_is_refused),
        cmocka_unit_test(too_large_or_too_deep_is_refused),
        cmocka_unit_test(counters_out_of_range_are_begun_anew),
        cmocka_unit_test(allocation_sweep), /* the last: jansson allocates by mem.h from there on */
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
