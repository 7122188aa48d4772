/* manifest.c - see manifest.h.
 *
 *     {"vmmd_manifest": 1, "written_at": …, "vm": the public document, "private": what is kept with it}
 *
 * Failure modes: a document that is too large, nested too deep, of another format, of another VM, or with a field out of its
 * range is refused as a whole. */
#include "model/manifest.h"

#include <ctype.h>
#include <string.h>

#include "base/clock.h"
#include "base/mem.h"
#include "model/json_text.h"

enum { FORMAT = 1, COUNTER_MAX = 1 << 30 };

char *vm_manifest_text(const struct vm *vm, size_t *ret_len)
{
    char at[CLOCK_TEXT_MAX];

    return json_text(json_pack("{s:i,s:s,s:o,s:o}", "vmmd_manifest", FORMAT, "written_at",
                               clock_text(clock_wall_ms(), at), "vm", vm_json(vm), "private", vm_private_json(vm)),
                     0, ret_len);
}

static bool mac_valid(const char *mac)
{
    for (size_t i = 0; i < 17; i++)
        if (i % 3 == 2 ? mac[i] != ':' : !isxdigit((unsigned char)mac[i]) || isupper((unsigned char)mac[i]))
            return false;
    return mac[17] == '\0';
}

static bool format_valid(const char *format)
{
    return format == NULL || strcmp(format, "qcow2") == 0 || strcmp(format, "raw") == 0;
}

/* What the codec takes from our own store on trust. */
static const char *what_is_wrong(const struct vm *vm, const struct uuid *id)
{
    if (id != NULL && !uuid_equal(&vm->id, id))
        return "it is another VM's";
    if (!vm_name_valid(vm->name))
        return "its name is none";
    if (vm->state == VM_DESTROYED)
        return "it is destroyed";
    if (vm->runtime.mac_addr[0] != '\0' && !mac_valid(vm->runtime.mac_addr))
        return "its MAC address is none";
    if (!format_valid(vm->runtime.disk_format))
        return "its disk has an unknown format";
    if (vm_spec_has_image(&vm->spec) && vm->runtime.disk_format == NULL)
        return "it does not say what its disk is";
    return NULL;
}

static void drop_text(char **p)
{
    mem_free(*p);
    *p = NULL;
}

static void leave_out(struct vm *vm)
{
    vm_runtime_stopped(&vm->runtime);
    drop_text(&vm->runtime.work_dir);
    drop_text(&vm->runtime.overlay_path);
    drop_text(&vm->runtime.seed_iso_path);
    vm_failure_done(&vm->failure);
    memset(vm->conditions, 0, sizeof(vm->conditions));
    vm->has_operation = false;
    if (vm->generation < 1 || vm->generation > COUNTER_MAX)
        vm->generation = 1;
    if (vm->revision < 1 || vm->revision > COUNTER_MAX)
        vm->revision = 1;
    if (vm->created_at <= 0)
        vm->created_at = clock_wall_ms();
}

int vm_manifest_parse(const char *text, size_t len, const struct uuid *id, const char *backend, struct vm *ret,
                      struct error *err)
{
    const char *const backends[] = {backend, NULL};
    struct vm vm;

    if (len > MANIFEST_MAX)
        return error_set(err, ERR_DAEMON_INTERNAL, "the manifest is larger than %d bytes", MANIFEST_MAX);
    json_t *all = json_loadb(text, len, JSON_REJECT_DUPLICATES, NULL);
    const json_t *doc = json_object_get(all, "vm"), *private_doc = json_object_get(all, "private");
    if (json_integer_value(json_object_get(all, "vmmd_manifest")) != FORMAT || !json_is_object(doc) ||
        !json_is_object(private_doc)) {
        json_decref(all);
        return error_set(err, ERR_DAEMON_INTERNAL, "the manifest is none of this vmmd's");
    }
    int rc = vm_from_json(doc, private_doc, backends, &vm, err);
    json_decref(all);
    if (rc < 0)
        return error_wrap(err, ERR_DAEMON_INTERNAL, "the manifest is damaged");
    const char *wrong = what_is_wrong(&vm, id);
    if (wrong != NULL) {
        vm_done(&vm);
        return error_set(err, ERR_DAEMON_INTERNAL, "the manifest is not to be used: %s", wrong);
    }
    leave_out(&vm);
    *ret = vm;
    return 0;
}
