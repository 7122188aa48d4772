/* observed.c - what is learnt of a running guest: its addresses, and how cloud-init stands.
 *
 * The backend tells again and again; here it is seen what is new.  A change is written and told; that an address has been
 * seen once more is written every few minutes only. */
#include <string.h>

#include "core/internal.h"

enum { SEEN_WRITE_MS = 300000 };

static bool has_network(const struct vm *vm)
{
    return vm->spec.network.type == VM_NETWORK_USER || vm->spec.network.type == VM_NETWORK_TAP;
}

void live_vm_observed_none(struct live_vm *vm, bool down, const char *reason)
{
    const struct vm_condition *seed = &vm->vm.conditions[VM_COND_CLOUD_INIT];
    char message[sizeof(seed->message)] = "";

    vm->vm.runtime.n_addresses = 0;
    if (has_network(&vm->vm))
        vm_condition_set(&vm->vm, VM_COND_IP, false, reason, "");
    if (!vm->vm.spec.has_cloud_init)
        return;
    if (down && seed->known && !seed->status) /* why it failed is still worth knowing */
        memcpy(message, seed->message, sizeof(message));
    vm_condition_set(&vm->vm, VM_COND_CLOUD_INIT, false, reason, message);
}

/* The same addresses by the same sources, and none seen much later than it says. */
static bool as_written(const struct vm_runtime *rt, const struct vm_address *list, unsigned n)
{
    if (n != rt->n_addresses)
        return false;
    for (unsigned i = 0; i < n; i++)
        if (strcmp(list[i].ip, rt->addresses[i].ip) != 0 || list[i].source != rt->addresses[i].source ||
            list[i].seen_at - rt->addresses[i].seen_at >= SEEN_WRITE_MS)
            return false;
    return true;
}

void live_vm_addresses(void *arg, const struct vm_address *list, unsigned n)
{
    struct live_vm *vm = arg;
    struct vm_runtime *rt = &vm->vm.runtime;
    bool known = vm->vm.conditions[VM_COND_IP].known && vm->vm.conditions[VM_COND_IP].status == (n > 0);

    if (vm->gone || (known && as_written(rt, list, n)))
        return;
    memcpy(rt->addresses, list, n * sizeof(list[0]));
    rt->n_addresses = n;
    struct change *ch = change_new(vm->core);
    live_vm_condition(vm, VM_COND_IP, n > 0, n > 0 ? vm_address_source_text(list[0].source) : "none",
                      n > 0 ? list[0].ip : "", ch);
    live_vm_ready_by(vm, ch);
    change_vm(ch, vm, false);
    change_commit(ch, NULL, NULL);
}

void live_vm_cloud_init(void *arg, bool done, const char *reason, const char *message)
{
    struct live_vm *vm = arg;
    struct change *ch;

    if (vm->gone || !vm->vm.spec.has_cloud_init)
        return;
    ch = change_new(vm->core);
    if (!live_vm_condition(vm, VM_COND_CLOUD_INIT, done, reason, message, ch)) {
        change_drop(ch);
        return;
    }
    change_vm(ch, vm, false);
    change_commit(ch, NULL, NULL);
}
