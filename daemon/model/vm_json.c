/* vm_json.c - the VM's documents: the public one of API.md, the private one beside it in the store, and back.  See vm.h. */
#include <stdio.h>
#include <string.h>

#include "base/clock.h"
#include "base/mem.h"
#include "model/fields.h"
#include "model/vm.h"

static const char *const failure_reasons[] = {"killed", "exited", "panic", "spawn", "oom"};

static json_t *text_or_null(const char *s)
{
    return s != NULL && *s != '\0' ? json_string(s) : json_null();
}

static json_t *time_or_null(int64_t wall_ms)
{
    char text[CLOCK_TEXT_MAX];

    return wall_ms != 0 ? json_string(clock_text(wall_ms, text)) : json_null();
}

static json_t *uuid_json(const struct uuid *id)
{
    char text[UUID_TEXT_MAX];

    return json_string(uuid_text(id, text));
}

static json_t *positive_or_null(int64_t v)
{
    return v > 0 ? json_integer(v) : json_null();
}

static json_t *addresses_json(const struct vm_runtime *rt)
{
    json_t *list = json_array();

    for (unsigned i = 0; i < rt->n_addresses; i++) {
        const struct vm_address *a = &rt->addresses[i];
        list = field_append(list, json_pack("{s:s,s:s,s:o}", "ip", a->ip, "source", vm_address_source_text(a->source),
                                            "seen_at", time_or_null(a->seen_at)));
    }
    return list;
}

static json_t *runtime_json(const struct vm_runtime *rt)
{
    return json_pack("{s:o,s:o,s:o,s:o,s:o,s:o,s:o,s:o,s:o,s:o,s:o,s:n,s:o}", "accel", text_or_null(rt->accel), "pid",
                     positive_or_null(rt->pid), "started_at", time_or_null(rt->started_at), "work_dir",
                     text_or_null(rt->work_dir), "overlay_path", text_or_null(rt->overlay_path), "seed_iso_path",
                     text_or_null(rt->seed_iso_path), "qmp_socket", text_or_null(rt->qmp_socket), "console_socket",
                     text_or_null(rt->console_socket), "vnc_addr", text_or_null(rt->vnc_addr), "ssh_host_port",
                     positive_or_null(rt->ssh_host_port), "mac_addr", text_or_null(rt->mac_addr), "vsock_cid",
                     "addresses", addresses_json(rt));
}

static json_t *conditions_json(const struct vm *vm)
{
    json_t *list = json_array();

    for (int i = 0; i < VM_COND_MAX; i++) {
        const struct vm_condition *c = &vm->conditions[i];
        if (c->known)
            list = field_append(list,
                                json_pack("{s:s,s:b,s:s,s:s,s:o}", "type", vm_condition_text((enum vm_condition_type)i),
                                          "status", c->status, "reason", c->reason, "message", c->message, "since",
                                          time_or_null(c->since)));
    }
    return list;
}

static const struct {
    int number;
    const char *name;
} signal_names[] = {{1, "SIGHUP"},   {2, "SIGINT"},   {3, "SIGQUIT"},  {4, "SIGILL"},
                    {5, "SIGTRAP"},  {6, "SIGABRT"},  {7, "SIGBUS"},   {8, "SIGFPE"},
                    {9, "SIGKILL"},  {11, "SIGSEGV"}, {13, "SIGPIPE"}, {14, "SIGALRM"},
                    {15, "SIGTERM"}, {24, "SIGXCPU"}, {25, "SIGXFSZ"}, {31, "SIGSYS"}};

static json_t *signal_json(int number)
{
    char text[16];

    for (size_t i = 0; i < ARRAY_SIZE(signal_names); i++)
        if (signal_names[i].number == number)
            return json_string(signal_names[i].name);
    snprintf(text, sizeof(text), "SIG%d", number);
    return json_string(text);
}

static int signal_number(const char *text)
{
    int n = 0;

    for (size_t i = 0; i < ARRAY_SIZE(signal_names); i++)
        if (strcmp(signal_names[i].name, text) == 0)
            return signal_names[i].number;
    return sscanf(text, "SIG%d", &n) == 1 ? n : 0;
}

static json_t *failure_json(const struct vm_failure *f)
{
    if (!f->set)
        return json_null();
    bool by_signal = f->status_known && f->signal != 0;
    return json_pack("{s:s,s:s,s:o,s:o,s:o,s:s,s:s}", "code", error_info(f->code)->code, "reason",
                     failure_reasons[f->reason], "exit_status",
                     f->status_known && !by_signal ? json_integer(f->exit_status) : json_null(), "signal",
                     by_signal ? signal_json(f->signal) : json_null(), "at", time_or_null(f->at), "detail",
                     f->detail != NULL ? f->detail : "", "stderr_tail", f->stderr_tail != NULL ? f->stderr_tail : "");
}

json_t *vm_json(const struct vm *vm)
{
    return json_pack(
        "{s:o,s:s,s:s,s:s,s:I,s:I,s:o,s:o,s:o,s:o,s:o,s:o,s:o,s:o}", "id", uuid_json(&vm->id), "name", vm->name,
        "backend", vm->backend, "state", vm_state_text(vm->state), "generation", (json_int_t)vm->generation, "revision",
        (json_int_t)vm->revision, "labels", vm_labels_json(&vm->labels), "spec", vm_spec_json(&vm->spec), "runtime",
        runtime_json(&vm->runtime), "conditions", conditions_json(vm), "failure", failure_json(&vm->failure),
        "operation", vm->has_operation ? uuid_json(&vm->operation) : json_null(), "created_at",
        time_or_null(vm->created_at), "updated_at", time_or_null(vm->updated_at));
}

json_t *vm_private_json(const struct vm *vm)
{
    const struct vm_runtime *rt = &vm->runtime;
    const struct vm_policy *p = &vm->policy;

    return json_pack("{s:I,s:s,s:o,s:o,s:o,s:o,s:o,s:o,s:o,s:I,s:o,s:b,s:o,s:o,s:o,s:o,s:o,s:O?,s:s?}", "start_ticks",
                     (json_int_t)rt->start_ticks, "boot_id", rt->boot_id, "exe", text_or_null(rt->exe), "machine_type",
                     text_or_null(rt->machine_type), "cpu_model", text_or_null(rt->cpu_model), "qemu_version",
                     text_or_null(rt->qemu_version), "tap", text_or_null(rt->tap), "disk_format",
                     text_or_null(rt->disk_format), "restart_at", time_or_null(p->restart_at), "restarts",
                     (json_int_t)p->restarts, "restarts_from", time_or_null(p->restarts_from), "restart_given_up",
                     p->given_up, "autostart_at", time_or_null(p->autostart_at), "image_name",
                     text_or_null(rt->image_name), "image_path", text_or_null(rt->image_path), "ssh_key_path",
                     text_or_null(rt->ssh_key_path), "ssh_host_key", text_or_null(rt->ssh_host_key), "provisioned",
                     vm->provisioned.done, "provision_temp", vm->provisioned.temp);
}

/* --- back from the store: what we wrote ourselves, so any surprise is a damaged document --- */

static const char *get_text(const json_t *obj, const char *name)
{
    return json_string_value(json_object_get(obj, name));
}

static int64_t get_int(const json_t *obj, const char *name)
{
    return json_integer_value(json_object_get(obj, name));
}

static int64_t get_time(const json_t *obj, const char *name)
{
    int64_t at = 0;
    const char *text = get_text(obj, name);

    if (text != NULL)
        clock_parse(text, &at);
    return at;
}

/* Copies a text if there is one; false only when memory is short. */
static bool take_text(char **ret, const json_t *obj, const char *name)
{
    const char *text = get_text(obj, name);

    if (text == NULL)
        return true;
    *ret = mem_strdup(text);
    return *ret != NULL;
}

static void addresses_from_json(const json_t *list, struct vm_runtime *rt)
{
    size_t i;
    json_t *item;

    json_array_foreach(list, i, item)
    {
        const char *ip = get_text(item, "ip"), *source = get_text(item, "source");
        for (int s = 0; ip != NULL && source != NULL && s < VM_ADDRESS_SOURCE_MAX; s++) {
            if (rt->n_addresses == VM_ADDRESSES_MAX ||
                strcmp(source, vm_address_source_text((enum vm_address_source)s)) != 0)
                continue;
            struct vm_address *a = &rt->addresses[rt->n_addresses++];
            snprintf(a->ip, sizeof(a->ip), "%s", ip);
            a->source = (enum vm_address_source)s;
            a->seen_at = get_time(item, "seen_at");
        }
    }
}

static bool runtime_from_json(const json_t *doc, const json_t *private_doc, struct vm_runtime *rt)
{
    const char *mac = get_text(doc, "mac_addr"), *boot_id = get_text(private_doc, "boot_id");

    rt->pid = (pid_t)get_int(doc, "pid");
    rt->started_at = get_time(doc, "started_at");
    rt->ssh_host_port = (uint16_t)get_int(doc, "ssh_host_port");
    rt->start_ticks = (uint64_t)get_int(private_doc, "start_ticks");
    addresses_from_json(json_object_get(doc, "addresses"), rt);
    snprintf(rt->mac_addr, sizeof(rt->mac_addr), "%s", mac != NULL ? mac : "");
    snprintf(rt->boot_id, sizeof(rt->boot_id), "%s", boot_id != NULL ? boot_id : "");
    return take_text(&rt->accel, doc, "accel") && take_text(&rt->work_dir, doc, "work_dir") &&
           take_text(&rt->overlay_path, doc, "overlay_path") && take_text(&rt->seed_iso_path, doc, "seed_iso_path") &&
           take_text(&rt->qmp_socket, doc, "qmp_socket") && take_text(&rt->console_socket, doc, "console_socket") &&
           take_text(&rt->vnc_addr, doc, "vnc_addr") && take_text(&rt->exe, private_doc, "exe") &&
           take_text(&rt->machine_type, private_doc, "machine_type") &&
           take_text(&rt->cpu_model, private_doc, "cpu_model") &&
           take_text(&rt->qemu_version, private_doc, "qemu_version") && take_text(&rt->tap, private_doc, "tap") &&
           take_text(&rt->disk_format, private_doc, "disk_format") &&
           take_text(&rt->image_name, private_doc, "image_name") &&
           take_text(&rt->image_path, private_doc, "image_path") &&
           take_text(&rt->ssh_key_path, private_doc, "ssh_key_path") &&
           take_text(&rt->ssh_host_key, private_doc, "ssh_host_key");
}

static void conditions_from_json(const json_t *list, struct vm *vm)
{
    size_t i;
    json_t *item;

    json_array_foreach(list, i, item)
    {
        enum vm_condition_type type;
        const char *name = get_text(item, "type"), *reason = get_text(item, "reason"),
                   *message = get_text(item, "message");
        if (name == NULL || !vm_condition_parse(name, &type))
            continue;
        struct vm_condition *c = &vm->conditions[type];
        c->known = true;
        c->status = json_is_true(json_object_get(item, "status"));
        c->since = get_time(item, "since");
        snprintf(c->reason, sizeof(c->reason), "%s", reason != NULL ? reason : "");
        snprintf(c->message, sizeof(c->message), "%s", message != NULL ? message : "");
    }
}

static bool failure_from_json(const json_t *doc, struct vm_failure *f)
{
    const char *code = get_text(doc, "code"), *reason = get_text(doc, "reason"), *sig = get_text(doc, "signal");

    if (!json_is_object(doc) || code == NULL || reason == NULL)
        return true;
    f->set = true;
    f->code = error_by_name(code);
    for (size_t i = 0; i < ARRAY_SIZE(failure_reasons); i++)
        if (strcmp(reason, failure_reasons[i]) == 0)
            f->reason = (enum vm_failure_reason)i;
    f->status_known = sig != NULL || json_is_integer(json_object_get(doc, "exit_status"));
    f->exit_status = (int)get_int(doc, "exit_status");
    f->signal = sig != NULL ? signal_number(sig) : 0;
    f->at = get_time(doc, "at");
    return take_text(&f->detail, doc, "detail") && take_text(&f->stderr_tail, doc, "stderr_tail");
}

static void policy_from_json(const json_t *private_doc, struct vm_policy *p)
{
    p->restart_at = get_time(private_doc, "restart_at");
    p->restarts = get_int(private_doc, "restarts");
    p->restarts_from = get_time(private_doc, "restarts_from");
    p->given_up = json_is_true(json_object_get(private_doc, "restart_given_up"));
    p->autostart_at = get_time(private_doc, "autostart_at");
}

static bool provisioned_from_json(const json_t *private_doc, struct vm *vm)
{
    json_t *item;
    size_t i;

    json_array_foreach(json_object_get(private_doc, "provisioned"), i, item)
    {
        if (json_is_string(item) && !vm_provisioned_add(vm, json_string_value(item)))
            return false;
    }
    return take_text(&vm->provisioned.temp, private_doc, "provision_temp");
}

static const char *find_backend(const char *name, const char *const *backends)
{
    for (size_t i = 0; name != NULL && backends[i] != NULL; i++)
        if (strcmp(name, backends[i]) == 0)
            return backends[i];
    return NULL;
}

int vm_from_json(const json_t *doc, const json_t *private_doc, const char *const *backends, struct vm *ret,
                 struct error *err)
{
    struct vm vm = {0};
    const char *id = get_text(doc, "id"), *name = get_text(doc, "name"), *state = get_text(doc, "state");
    const char *op = get_text(doc, "operation");

    vm.backend = find_backend(get_text(doc, "backend"), backends);
    if (id == NULL || !uuid_parse(id, &vm.id) || name == NULL || state == NULL || !vm_state_parse(state, &vm.state) ||
        vm.backend == NULL)
        return error_set(err, ERR_DAEMON_INTERNAL, "the stored document of VM %s is damaged", id != NULL ? id : "?");
    vm.generation = get_int(doc, "generation");
    vm.revision = get_int(doc, "revision");
    vm.created_at = get_time(doc, "created_at");
    vm.updated_at = get_time(doc, "updated_at");
    vm.has_operation = op != NULL && uuid_parse(op, &vm.operation);
    conditions_from_json(json_object_get(doc, "conditions"), &vm);
    policy_from_json(private_doc, &vm.policy);
    vm.name = mem_strdup(name);
    if (vm.name == NULL || !failure_from_json(json_object_get(doc, "failure"), &vm.failure) ||
        !runtime_from_json(json_object_get(doc, "runtime"), private_doc, &vm.runtime) ||
        !provisioned_from_json(private_doc, &vm)) {
        error_set(err, ERR_DAEMON_OVERLOADED, "out of memory");
    } else if (vm_labels_parse(json_object_get(doc, "labels"), "/labels", &vm.labels, err) == 0 &&
               vm_spec_parse(json_object_get(doc, "spec"), "/spec", &vm.spec, err) == 0) {
        *ret = vm;
        return 0;
    }
    vm_done(&vm);
    return -1;
}
