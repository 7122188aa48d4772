/* The problem document: its members and their order, contexts of each kind, hostile bytes, memory failing anywhere. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <jansson.h>
#include <string.h>

#include "base/mem.h"
#include "base/problem.h"

static void fill(struct error *err)
{
    static const char *const expected[] = {"prepared", "stopped", "failed", NULL};

    error_set(err, ERR_VM_INVALID_STATE, "VM web is suspended; start needs prepared, stopped or failed");
    error_help(err, "resume it with `vmctl resume web`, or stop it first");
    error_ctx_str(err, "vm", "web");
    error_ctx_int(err, "tries", -3);
    error_ctx_list(err, "expected", expected);
    error_cause(err, "first");
    error_cause(err, "second \"quoted\"");
}

static void whole_document(void **state)
{
    struct error err = ERROR_INIT;
    struct buf out = BUF_INIT(4096);

    (void)state;
    fill(&err);
    assert_int_equal(error_problem(&err, "/v1/vms/web/start", "id-1", &out), 0);
    assert_string_equal(
        out.data,
        "{\"type\":\"/v1/errors/vm_manager::vm::invalid_state\",\"title\":\"Operation invalid for current state\","
        "\"status\":409,\"detail\":\"VM web is suspended; start needs prepared, stopped or failed\","
        "\"instance\":\"/v1/vms/web/start\",\"code\":\"vm_manager::vm::invalid_state\","
        "\"help\":\"resume it with `vmctl resume web`, or stop it first\",\"retryable\":false,\"request_id\":\"id-1\","
        "\"context\":{\"vm\":\"web\",\"tries\":-3,\"expected\":[\"prepared\",\"stopped\",\"failed\"]},"
        "\"causes\":[\"first\",\"second \\\"quoted\\\"\"]}");
    buf_done(&out);
    error_done(&err);
}

static void each_code_renders_as_json(void **state)
{
    (void)state;
    for (int code = ERR_NONE + 1; code < ERR_MAX; code++) {
        struct error err = ERROR_INIT;
        struct buf out = BUF_INIT(4096);

        error_set(&err, (enum error_code)code, "bytes \x01 \xff \"\\ and \xc3\xa9");
        assert_int_equal(error_problem(&err, NULL, NULL, &out), 0);
        json_t *doc = json_loads(out.data, 0, NULL);
        assert_non_null(doc);
        assert_string_equal(json_string_value(json_object_get(doc, "code")), error_info((enum error_code)code)->code);
        assert_string_equal(json_string_value(json_object_get(doc, "help")), error_info((enum error_code)code)->help);
        assert_true(json_integer_value(json_object_get(doc, "status")) >= 400);
        assert_int_equal(json_object_size(json_object_get(doc, "context")), 0);
        assert_int_equal(json_array_size(json_object_get(doc, "causes")), 0);
        json_decref(doc);
        buf_done(&out);
        error_done(&err);
    }
}

static void bound_and_memory(void **state)
{
    struct error err = ERROR_INIT;
    struct buf small = BUF_INIT(100);

    (void)state;
    fill(&err);
    assert_int_equal(error_problem(&err, "/", "id", &small), -1);
    buf_done(&small);
    size_t nth = 1;
    for (;; nth++) {
        struct buf out = BUF_INIT(4096);

        mem_fail_nth(nth);
        int rc = error_problem(&err, "/", "id", &out);
        mem_fail_nth(0);
        if (rc == 0)
            assert_non_null(strstr(out.data, "\"causes\":[\"first\""));
        buf_done(&out);
        if (rc == 0)
            break;
    }
    assert_true(nth > 1);
    error_done(&err);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(whole_document),
        cmocka_unit_test(each_code_renders_as_json),
        cmocka_unit_test(bound_and_memory),
    };

    return cmocka_run_group_tests_name("problem", tests, NULL, NULL);
}
