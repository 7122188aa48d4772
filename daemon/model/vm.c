/* vm.c - the VM's states and transitions as data, and the life of its memory.  See vm.h. */
#include "model/vm.h"

#include <ctype.h>
#include <stdio.h>
#include <string.h>

#include "base/clock.h"
#include "base/mem.h"

enum { PROVISIONED_MAX = 512 };

static const char *const state_texts[VM_STATE_MAX] = {"preparing", "prepared", "running",  "suspended",
                                                      "stopped",   "failed",   "destroyed"};

const char *vm_state_text(enum vm_state state)
{
    return state < VM_STATE_MAX ? state_texts[state] : "unknown";
}

bool vm_state_parse(const char *text, enum vm_state *ret)
{
    for (int i = 0; i < VM_STATE_MAX; i++)
        if (strcmp(text, state_texts[i]) == 0) {
            *ret = (enum vm_state)i;
            return true;
        }
    return false;
}

#define IN(state) (1U << (state))

/* The transitions of API.md.  `satisfied`: asking for what already is. */
static const struct {
    const char *text;
    unsigned from;
    unsigned satisfied;
} verbs[VM_VERB_MAX] = {
    [VM_CREATE] = {"create", 0, 0},
    [VM_START] = {"start", IN(VM_PREPARED) | IN(VM_STOPPED) | IN(VM_FAILED), 0},
    [VM_STOP] = {"stop", IN(VM_RUNNING) | IN(VM_SUSPENDED), IN(VM_STOPPED)},
    [VM_KILL] = {"kill", IN(VM_RUNNING) | IN(VM_SUSPENDED), IN(VM_STOPPED)},
    [VM_RESET] = {"reset", IN(VM_RUNNING) | IN(VM_SUSPENDED), 0},
    [VM_RESTART] = {"restart", IN(VM_RUNNING) | IN(VM_SUSPENDED), 0},
    [VM_SUSPEND] = {"suspend", IN(VM_RUNNING), 0},
    [VM_RESUME] = {"resume", IN(VM_SUSPENDED), 0},
    [VM_PROVISION] = {"provision", IN(VM_RUNNING), 0},
    [VM_DESTROY] = {"destroy",
                    IN(VM_PREPARING) | IN(VM_PREPARED) | IN(VM_RUNNING) | IN(VM_SUSPENDED) | IN(VM_STOPPED) |
                        IN(VM_FAILED),
                    IN(VM_DESTROYED)},
};

const char *vm_verb_text(enum vm_verb verb)
{
    return verbs[verb].text;
}

bool vm_verb_allowed(enum vm_verb verb, enum vm_state state)
{
    return (verbs[verb].from & IN(state)) != 0;
}

unsigned vm_verb_states(enum vm_verb verb)
{
    return verbs[verb].from;
}

bool vm_verb_satisfied(enum vm_verb verb, enum vm_state state)
{
    return (verbs[verb].satisfied & IN(state)) != 0;
}

int vm_state_error(enum vm_verb verb, const char *name, enum vm_state state, struct error *err)
{
    static const enum vm_state order[] = {VM_PREPARED, VM_RUNNING, VM_SUSPENDED, VM_STOPPED, VM_FAILED};
    const char *expected[VM_STATE_MAX + 1] = {0};
    char list[96] = "";
    size_t n = 0, total = 0;

    for (size_t i = 0; i < ARRAY_SIZE(order); i++)
        total += (verbs[verb].from & IN(order[i])) != 0;
    for (size_t i = 0; i < ARRAY_SIZE(order); i++) {
        if ((verbs[verb].from & IN(order[i])) == 0)
            continue;
        size_t len = strlen(list);
        snprintf(list + len, sizeof(list) - len, "%s%s",
                 n == 0           ? ""
                 : n + 1 == total ? " or "
                                  : ", ",
                 state_texts[order[i]]);
        expected[n++] = state_texts[order[i]];
    }
    error_set(err, ERR_VM_INVALID_STATE, "VM %s is %s; %s needs %s", name, vm_state_text(state), vm_verb_text(verb),
              list);
    if (verb == VM_START && state == VM_SUSPENDED)
        error_help(err, "resume it with `vmctl resume %s`, or stop it first", name);
    else if (verb == VM_START && state == VM_RUNNING)
        error_help(err, "it already runs; `vmctl restart %s` starts it anew", name);
    else if (state == VM_STOPPED || state == VM_PREPARED || state == VM_FAILED)
        error_help(err, "start it first with `vmctl start %s`", name);
    error_ctx_str(err, "vm", name);
    error_ctx_str(err, "current", vm_state_text(state));
    error_ctx_list(err, "expected", expected);
    return -1;
}

static const char *const condition_texts[VM_COND_MAX] = {"ready", "agent", "ssh", "ip", "cloud_init", "disk_io"};

const char *vm_address_source_text(enum vm_address_source source)
{
    static const char *const texts[VM_ADDRESS_SOURCE_MAX] = {"agent", "lease", "neighbour"};

    return texts[source];
}

const char *vm_condition_text(enum vm_condition_type type)
{
    return condition_texts[type];
}

bool vm_condition_parse(const char *text, enum vm_condition_type *ret)
{
    for (int i = 0; i < VM_COND_MAX; i++)
        if (strcmp(text, condition_texts[i]) == 0) {
            *ret = (enum vm_condition_type)i;
            return true;
        }
    return false;
}

bool vm_condition_set(struct vm *vm, enum vm_condition_type type, bool status, const char *reason, const char *message)
{
    struct vm_condition *c = &vm->conditions[type];

    if (c->known && c->status == status && strcmp(c->reason, reason) == 0 && strcmp(c->message, message) == 0)
        return false;
    if (!c->known || c->status != status)
        c->since = clock_wall_ms();
    c->known = true;
    c->status = status;
    snprintf(c->reason, sizeof(c->reason), "%s", reason);
    snprintf(c->message, sizeof(c->message), "%s", message);
    return true;
}

bool vm_name_valid(const char *name)
{
    size_t len = strlen(name);

    if (len < 1 || len > 63 || name[0] == '-' || name[len - 1] == '-')
        return false;
    for (size_t i = 0; i < len; i++)
        if (!(name[i] >= 'a' && name[i] <= 'z') && !isdigit((unsigned char)name[i]) && name[i] != '-')
            return false;
    return true;
}

const char *vm_base_path(const struct vm *vm)
{
    if (vm->runtime.image_path != NULL)
        return vm->runtime.image_path;
    return vm->spec.image != NULL && vm->spec.image[0] == '/' ? vm->spec.image : NULL;
}

bool vm_spec_has_image(const struct vm_spec *spec)
{
    return spec->image != NULL || spec->image_url != NULL;
}

const char *vm_label_get(const struct vm_labels *labels, const char *key)
{
    for (size_t i = 0; i < labels->n; i++)
        if (strcmp(labels->items[i].key, key) == 0)
            return labels->items[i].value;
    return NULL;
}

void vm_labels_done(struct vm_labels *labels)
{
    for (size_t i = 0; i < labels->n; i++) {
        mem_free(labels->items[i].key);
        mem_free(labels->items[i].value);
    }
    mem_free(labels->items);
    *labels = (struct vm_labels){0};
}

void vm_spec_done(struct vm_spec *s)
{
    mem_free(s->image);
    mem_free(s->image_url);
    mem_free(s->image_sha256);
    mem_free(s->boot.kernel);
    mem_free(s->boot.initrd);
    mem_free(s->boot.cmdline);
    mem_free(s->network.bridge);
    mem_free(s->network.name);
    mem_free(s->network.forwards);
    mem_free(s->cloud_init.hostname);
    for (size_t i = 0; i < s->cloud_init.n_keys; i++)
        mem_free(s->cloud_init.ssh_authorized_keys[i]);
    mem_free(s->cloud_init.ssh_authorized_keys);
    mem_free(s->cloud_init.user_data);
    mem_free(s->cloud_init.vendor_data);
    mem_free(s->cloud_init.network_config);
    mem_free(s->cloud_init.instance_id);
    mem_free(s->ssh.user);
    mem_free(s->ssh.private_key_path);
    json_decref(s->provision);
    *s = (struct vm_spec){0};
}

static void free_text(char **p)
{
    mem_free(*p);
    *p = NULL;
}

void vm_runtime_stopped(struct vm_runtime *rt)
{
    free_text(&rt->accel);
    free_text(&rt->qmp_socket);
    free_text(&rt->console_socket);
    free_text(&rt->vnc_addr);
    free_text(&rt->exe);
    free_text(&rt->tap);
    rt->pid = 0;
    rt->started_at = 0;
    rt->start_ticks = 0;
    rt->boot_id[0] = '\0';
    rt->n_addresses = 0;
}

static void runtime_done(struct vm_runtime *rt)
{
    vm_runtime_stopped(rt);
    free_text(&rt->work_dir);
    free_text(&rt->overlay_path);
    free_text(&rt->seed_iso_path);
    free_text(&rt->machine_type);
    free_text(&rt->cpu_model);
    free_text(&rt->qemu_version);
    free_text(&rt->disk_format);
    free_text(&rt->image_name);
    free_text(&rt->image_path);
    free_text(&rt->ssh_key_path);
    free_text(&rt->ssh_host_key);
}

const char *vm_ssh_key(const struct vm *vm)
{
    return vm->spec.ssh.private_key_path != NULL ? vm->spec.ssh.private_key_path : vm->runtime.ssh_key_path;
}

const char *vm_ssh_user(const struct vm *vm)
{
    return vm->spec.ssh.user != NULL ? vm->spec.ssh.user : "vm";
}

const char *vm_ssh_host(const struct vm *vm, uint16_t *ret_port)
{
    bool user = vm->spec.network.type == VM_NETWORK_USER;

    *ret_port = user ? vm->runtime.ssh_host_port : 22;
    if (user)
        return vm->runtime.ssh_host_port != 0 ? "127.0.0.1" : NULL;
    return vm->spec.network.type == VM_NETWORK_TAP && vm->runtime.n_addresses > 0 ? vm->runtime.addresses[0].ip : NULL;
}

void vm_failure_done(struct vm_failure *f)
{
    mem_free(f->detail);
    mem_free(f->stderr_tail);
    *f = (struct vm_failure){0};
}

bool vm_provisioned_has(const struct vm *vm, const char *digest)
{
    const json_t *item;
    size_t i;

    json_array_foreach(vm->provisioned.done, i, item)
    {
        if (strcmp(json_string_value(item), digest) == 0)
            return true;
    }
    return false;
}

bool vm_provisioned_add(struct vm *vm, const char *digest)
{
    if (vm->provisioned.done == NULL)
        vm->provisioned.done = json_array();
    if (json_array_size(vm->provisioned.done) >= PROVISIONED_MAX)
        json_array_remove(vm->provisioned.done, 0);
    return json_array_append_new(vm->provisioned.done, json_string(digest)) == 0;
}

void vm_provisioned_forget(struct vm *vm)
{
    json_decref(vm->provisioned.done);
    free_text(&vm->provisioned.temp);
    vm->provisioned.done = NULL;
}

void vm_done(struct vm *vm)
{
    vm_provisioned_forget(vm);
    mem_free(vm->name);
    vm_labels_done(&vm->labels);
    vm_spec_done(&vm->spec);
    runtime_done(&vm->runtime);
    vm_failure_done(&vm->failure);
    *vm = (struct vm){0};
}
