/* test_alloc_model.c - the codecs of the model with every allocation failing once: the same result, or a clean error;
 * never a crash, a leak, or a document that lacks a part. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include <jansson.h>
#include <stdio.h>

#include "base/mem.h"
#include "model/fields.h"
#include "model/vm.h"

static const char spec_text[] =
    "{\"image\":\"/srv/"
    "a.qcow2\",\"vcpus\":2,\"memory_mb\":512,\"disk_gb\":3,\"machine\":\"q35\",\"accel\":\"tcg\",\"uefi\":true,"
    "\"display\":\"vga\",\"boot\":{\"kernel\":\"/k\",\"initrd\":\"/"
    "i\",\"cmdline\":\"quiet\"},\"network\":{\"type\":\"user\",\"forwards\":["
    "{\"proto\":\"udp\",\"host_ip\":\"127.0.0.1\",\"host_port\":5353,\"guest_port\":53},{\"host_port\":8080,\"guest_"
    "port\":80}]},"
    "\"cloud_init\":{\"hostname\":\"web\",\"ssh_authorized_keys\":[\"ssh-ed25519 A\",\"ssh-ed25519 "
    "B\"],\"user_data\":\"#cloud-config\\n\","
    "\"vendor_data\":\"v\",\"network_config\":\"n: "
    "1\",\"instance_id\":\"i-1\"},\"ssh\":{\"user\":\"root\",\"private_key_"
    "path\":\"/id\"},"
    "\"vsock\":false,\"restart\":\"always\",\"autostart\":true,\"protect\":true,\"ttl_s\":60}";
static const char tap_text[] = "{\"network\":{\"type\":\"tap\",\"bridge\":\"br0\"}}";
static const char vnic_text[] = "{\"network\":{\"type\":\"vnic\",\"name\":\"vnic0\"}}";
static const char labels_text[] = "{\"b\":\"2\",\"a\":\"1\",\"c/\xc3\xa4\":\"~\"}";

/* What is tried: a text, or NULL and an error. */
typedef char *attempt(const char *text, struct error *err);

static json_t *parse(const char *text)
{
    json_t *json = json_loads(text, JSON_DECODE_ANY, NULL);

    assert_non_null(json);
    return json;
}

static char *dump(json_t *json, struct error *err)
{
    size_t len = json != NULL ? json_dumpb(json, NULL, 0, JSON_COMPACT) : 0;
    char *text = len > 0 ? mem_alloc(len + 1) : NULL;

    if (text != NULL && json_dumpb(json, text, len, JSON_COMPACT) != len) {
        mem_free(text);
        text = NULL;
    }
    json_decref(json);
    if (text == NULL)
        error_set(err, ERR_DAEMON_OVERLOADED, "out of memory");
    else
        text[len] = '\0';
    return text;
}

/* Only the codec's own allocations are counted: `json` is there before. */
static json_t *input, *input_private;

static char *try_spec(const char *text, struct error *err)
{
    struct vm_spec spec;

    (void)text;
    if (vm_spec_parse(input, "/spec", &spec, err) < 0)
        return NULL;
    char *out = dump(vm_spec_json(&spec), err);
    vm_spec_done(&spec);
    return out;
}

static char *try_labels(const char *text, struct error *err)
{
    struct vm_labels labels;

    (void)text;
    if (vm_labels_parse(input, "/labels", &labels, err) < 0)
        return NULL;
    char *out = dump(vm_labels_json(&labels), err);
    vm_labels_done(&labels);
    return out;
}

static char *both(const struct vm *vm, struct error *err)
{
    CLEANUP_FREE char *doc = dump(vm_json(vm), err), *private_doc = dump(vm_private_json(vm), err);

    if (doc == NULL || private_doc == NULL)
        return NULL;
    char *out = mem_printf("%s\n%s", doc, private_doc);
    if (out == NULL)
        error_set(err, ERR_DAEMON_OVERLOADED, "out of memory");
    return out;
}

static char *try_vm(const char *text, struct error *err)
{
    static const char *const backends[] = {"qemu", "noop", NULL};
    struct vm vm;

    (void)text;
    if (vm_from_json(input, input_private, backends, &vm, err) < 0)
        return NULL;
    char *out = both(&vm, err);
    vm_done(&vm);
    return out;
}

/* A VM that has everything. */
static void full_vm(struct vm *vm)
{
    struct error err = ERROR_INIT;
    json_t *spec = parse(spec_text), *labels = parse(labels_text);
    struct vm_runtime *rt = &vm->runtime;

    *vm = (struct vm){.id = uuid_new(),
                      .name = mem_strdup("web"),
                      .backend = "qemu",
                      .state = VM_FAILED,
                      .generation = 3,
                      .revision = 9,
                      .has_operation = true,
                      .operation = uuid_new(),
                      .created_at = 1700000000123,
                      .updated_at = 1700000001456};
    assert_int_equal(vm_spec_parse(spec, "/spec", &vm->spec, &err), 0);
    assert_int_equal(vm_labels_parse(labels, "/labels", &vm->labels, &err), 0);
    json_decref(spec);
    json_decref(labels);
    char **texts[] = {&rt->accel,          &rt->work_dir,     &rt->overlay_path, &rt->seed_iso_path, &rt->qmp_socket,
                      &rt->console_socket, &rt->vnc_addr,     &rt->exe,          &rt->tap,           &rt->machine_type,
                      &rt->cpu_model,      &rt->qemu_version, &rt->disk_format,  &rt->image_name,    &rt->image_path,
                      &rt->ssh_key_path,   &rt->ssh_host_key};
    for (size_t i = 0; i < ARRAY_SIZE(texts); i++)
        *texts[i] = mem_printf(texts[i] == &rt->accel ? "kvm" : "/text/%zu", i);
    rt->pid = 4711;
    rt->started_at = 1700000000999;
    rt->start_ticks = 123456789;
    rt->ssh_host_port = 40022;
    snprintf(rt->mac_addr, sizeof(rt->mac_addr), "52:54:00:01:02:03");
    snprintf(rt->boot_id, sizeof(rt->boot_id), "0a0b0c0d-0000-4000-8000-000000000001");
    for (int i = 0; i < VM_ADDRESS_SOURCE_MAX; i++) {
        struct vm_address *a = &rt->addresses[rt->n_addresses++];
        snprintf(a->ip, sizeof(a->ip), "192.0.2.%d", i);
        a->source = (enum vm_address_source)i;
        a->seen_at = 1700000001111 + i;
    }
    for (int i = 0; i < VM_COND_MAX; i++)
        vm_condition_set(vm, (enum vm_condition_type)i, i % 2 == 0, "because", "a message");
    vm->failure = (struct vm_failure){.set = true,
                                      .code = ERR_LIFECYCLE_OTHER,
                                      .reason = VM_FAILURE_KILLED,
                                      .status_known = true,
                                      .signal = 9,
                                      .exit_status = -1,
                                      .at = 1700000001000,
                                      .detail = mem_strdup("killed"),
                                      .stderr_tail = mem_strdup("last words")};
}

/* Fails each allocation in turn. */
static void sweep(attempt *fn, const char *text, enum error_code code)
{
    CLEANUP_ERROR struct error first = ERROR_INIT;
    size_t n, made;

    mem_fail_nth(0);
    CLEANUP_FREE char *want = fn(text, &first);
    made = mem_fail_nth(0);

    assert_int_equal(first.code, code);
    assert_true((want != NULL) == (code == ERR_NONE));
    for (n = 1; n <= made && n < 10000; n++) {
        CLEANUP_ERROR struct error err = ERROR_INIT;
        mem_fail_nth(n);
        CLEANUP_FREE char *got = fn(text, &err);
        mem_fail_nth(0);
        if (got != NULL) {
            assert_string_equal(got, want);
            assert_false(error_is_set(&err));
        } else {
            assert_true(err.code == ERR_DAEMON_OVERLOADED || err.code == code);
            assert_true(error_is_set(&err));
        }
    }
    print_message("  %zu allocations\n", n - 1);
}

static void sweep_json(attempt *fn, const char *text, enum error_code code)
{
    input = parse(text);
    sweep(fn, text, code);
    json_decref(input);
}

static void specs(void **state)
{
    (void)state;
    sweep_json(try_spec, spec_text, ERR_NONE);
    sweep_json(try_spec, tap_text, ERR_NONE);
    sweep_json(try_spec, vnic_text, ERR_NONE);
    sweep_json(try_spec, "{}", ERR_NONE);
    sweep_json(try_spec, "{\"memory_bm\":1}", ERR_API_INVALID_FIELD);
    sweep_json(try_spec, "{\"network\":{\"type\":\"user\",\"forwards\":[{\"host_port\":1}]}}", ERR_API_INVALID_FIELD);
}

static void labels(void **state)
{
    (void)state;
    sweep_json(try_labels, labels_text, ERR_NONE);
    sweep_json(try_labels, "{\"a\":1}", ERR_API_INVALID_FIELD);
}

static void documents(void **state)
{
    struct vm vm;

    (void)state;
    full_vm(&vm);
    input = vm_json(&vm);
    input_private = vm_private_json(&vm);
    assert_non_null(input);
    assert_non_null(input_private);
    sweep(try_vm, "", ERR_NONE);
    /* and nothing is lost on the way there and back */
    struct error err = ERROR_INIT;
    CLEANUP_FREE char *there = both(&vm, &err), *back = try_vm("", &err);
    assert_string_equal(there, back);
    json_decref(input);
    json_decref(input_private);
    vm_done(&vm);
}

static void pointer_of(const char *text, attempt *fn, const char *pointer)
{
    CLEANUP_ERROR struct error err = ERROR_INIT;

    input = parse(text);
    assert_null(fn(text, &err));
    assert_int_equal(err.code, ERR_API_INVALID_FIELD);
    assert_string_equal(error_ctx_get(&err, "pointer"), pointer);
    json_t *whole = json_string(err.message); /* valid UTF-8 */
    assert_non_null(whole);
    json_decref(whole);
    json_decref(input);
}

/* RFC 6901, and no character is cut in two. */
static void pointers(void **state)
{
    char text[1024], want[1024];

    (void)state;
    pointer_of("{\"a/b~c\":1}", try_spec, "/spec/a~1b~0c");
    pointer_of("{\"a/b~c\":1}", try_labels, "/labels/a~1b~0c");
    for (int pad = 0; pad < 4; pad++) { /* a key that is longer than what is shown, in two-byte characters */
        char key[512] = "", *p = key;
        p += snprintf(key, sizeof(key), "%.*s", pad, "xyz");
        for (int i = 0; i < 150; i++)
            p += snprintf(p, 3, "\xc3\xa4");
        snprintf(text, sizeof(text), "{\"%s\":1}", key);
        for (int l = 0; l < 2; l++) {
            CLEANUP_ERROR struct error err = ERROR_INIT;
            input = parse(text);
            assert_null((l ? try_labels : try_spec)(text, &err));
            snprintf(want, sizeof(want), "%s", error_ctx_get(&err, "pointer"));
            json_t *whole = json_string(want), *message = json_string(err.message);
            assert_non_null(whole);
            assert_non_null(message);
            json_decref(whole);
            json_decref(message);
            json_decref(input);
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(specs), cmocka_unit_test(labels), cmocka_unit_test(documents),
                                       cmocka_unit_test(pointers)};

    json_set_alloc_funcs(mem_alloc, mem_free);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
