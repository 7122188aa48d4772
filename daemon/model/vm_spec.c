/* vm_spec.c - the spec and the labels, from and to JSON.  See vm.h. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "base/str.h"
#include "model/fields.h"
#include "model/image.h"
#include "model/provision.h"
#include "model/vm.h"

enum { LABELS_MAX = 64, LABEL_CHARS_MAX = 128, FORWARDS_MAX = 64, KEYS_MAX = 64, USER_DATA_MAX = 524288 };

static const char *const machines[] = {"q35", "microvm", NULL};
static const char *const accels[] = {"auto", "kvm", "tcg", NULL};
static const char *const displays[] = {"none", "vga", NULL};
static const char *const networks[] = {"user", "tap", "vnic", "none", NULL};
static const char *const restarts[] = {"never", "on-failure", "always", NULL};
static const char *const protos[] = {"tcp", "udp", NULL};

static int no_memory(struct error *err)
{
    return error_set(err, ERR_DAEMON_OVERLOADED, "out of memory");
}

static size_t chars(const char *s)
{
    size_t n = 0;

    for (; *s != '\0'; s++)
        n += (*s & 0xc0) != 0x80;
    return n;
}

static int compare_labels(const void *a, const void *b)
{
    return strcmp(((const struct vm_label *)a)->key, ((const struct vm_label *)b)->key);
}

int vm_labels_parse(const json_t *labels, const char *pointer, struct vm_labels *ret, struct error *err)
{
    struct vm_labels out = {0};
    const char *key;
    json_t *value;
    char at[FIELD_POINTER_MAX];

    if (!json_is_object(labels))
        return field_pointer_error(err, pointer, "an object of strings", "%s must be an object of strings", pointer);
    if (json_object_size(labels) > LABELS_MAX)
        return field_pointer_error(err, pointer, "at most 64 labels", "%s has more than 64 labels", pointer);
    out.items = mem_zalloc((json_object_size(labels) + 1) * sizeof(out.items[0]));
    if (out.items == NULL)
        return no_memory(err);
    json_object_foreach((json_t *)labels, key, value)
    {
        field_pointer(at, pointer, key);
        if (*key == '\0' || chars(key) > LABEL_CHARS_MAX || strchr(key, '=') != NULL) {
            field_pointer_error(err, at, "a key of 1–128 characters without =", "%s is no label key", at);
            goto fail;
        }
        if (!json_is_string(value) || chars(json_string_value(value)) > LABEL_CHARS_MAX) {
            field_pointer_error(err, at, "a string of at most 128 characters",
                                "%s must be a string of at most 128 characters", at);
            goto fail;
        }
        struct vm_label *l = &out.items[out.n++];
        l->key = mem_strdup(key);
        l->value = mem_strdup(json_string_value(value));
        if (l->key == NULL || l->value == NULL) {
            no_memory(err);
            goto fail;
        }
    }
    qsort(out.items, out.n, sizeof(out.items[0]), compare_labels);
    *ret = out;
    return 0;
fail:
    vm_labels_done(&out);
    return -1;
}

json_t *vm_labels_json(const struct vm_labels *labels)
{
    json_t *obj = json_object();

    for (size_t i = 0; i < labels->n; i++)
        obj = field_set(obj, labels->items[i].key, json_string(labels->items[i].value));
    return obj;
}

static int parse_forward(const json_t *item, const char *pointer, struct vm_forward *ret, struct error *err)
{
    static const char *const names[] = {"proto", "host_ip", "host_port", "guest_port", NULL};
    struct fields f;
    int proto = 0;
    int64_t host_port = 0, guest_port = -1;
    CLEANUP_FREE char *ip = NULL;

    if (fields_open(&f, item, pointer, names, err) < 0 || field_enum(&f, "proto", protos, &proto) < 0 ||
        field_str(&f, "host_ip", 45, &ip) < 0 || field_int(&f, "host_port", 0, 65535, &host_port) < 0 ||
        field_int(&f, "guest_port", 1, 65535, &guest_port) < 0)
        return -1;
    if (guest_port < 0)
        return field_error(&f, "guest_port", "given: 1–65535");
    if (ip != NULL && strcmp(ip, "127.0.0.1") != 0)
        return field_error(&f, "host_ip", "127.0.0.1: forwards are on loopback only");
    *ret = (struct vm_forward){.udp = proto == 1, .host_port = (uint16_t)host_port, .guest_port = (uint16_t)guest_port};
    snprintf(ret->host_ip, sizeof(ret->host_ip), "%s", ip != NULL ? ip : "127.0.0.1");
    return 0;
}

static int parse_forwards(const struct fields *f, struct vm_spec *s)
{
    const json_t *list = field_get(f, "forwards");
    char pointer[128];

    if (list == NULL)
        return 0;
    if (!json_is_array(list) || json_array_size(list) > FORWARDS_MAX)
        return field_error(f, "forwards", "an array of at most 64 forwards");
    if (json_array_size(list) == 0)
        return 0;
    if (s->network.type != VM_NETWORK_USER)
        return field_error(f, "forwards", "empty unless type is user");
    s->network.forwards = mem_zalloc(json_array_size(list) * sizeof(struct vm_forward));
    if (s->network.forwards == NULL)
        return no_memory(f->err);
    for (size_t i = 0; i < json_array_size(list); i++) {
        struct vm_forward *fw = &s->network.forwards[i];
        snprintf(pointer, sizeof(pointer), "%s/forwards/%zu", f->pointer, i);
        if (parse_forward(json_array_get(list, i), pointer, fw, f->err) < 0)
            return -1;
        for (size_t j = 0; j < i; j++)
            if (fw->host_port != 0 && fw->host_port == s->network.forwards[j].host_port &&
                fw->udp == s->network.forwards[j].udp)
                return field_pointer_error(f->err, pointer, "a host_port of its own", "%s repeats host_port %u",
                                           pointer, fw->host_port);
        s->network.n_forwards = i + 1;
    }
    return 0;
}

static bool interface_name(const char *s)
{
    size_t len = strlen(s);

    return len >= 1 && len <= 15 && s[0] != '-' && s[0] != '.' &&
           strspn(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.") == len;
}

static int parse_network(const json_t *net, const char *pointer, struct vm_spec *s, struct error *err)
{
    static const char *const names[] = {"type", "bridge", "name", "forwards", NULL};
    struct fields f;
    int type = VM_NETWORK_USER;

    if (fields_open(&f, net, pointer, names, err) < 0 || field_enum(&f, "type", networks, &type) < 0)
        return -1;
    s->network.type = (enum vm_network_type)type;
    if (field_str(&f, "bridge", 64, &s->network.bridge) < 0 || field_str(&f, "name", 64, &s->network.name) < 0)
        return -1;
    if (type == VM_NETWORK_TAP && s->network.bridge == NULL)
        return field_error(&f, "bridge", "given for type tap: the bridge's name");
    if (type == VM_NETWORK_VNIC && s->network.name == NULL)
        return field_error(&f, "name", "given for type vnic: the vnic's name");
    if (s->network.bridge != NULL && (type != VM_NETWORK_TAP || !interface_name(s->network.bridge)))
        return field_error(&f, "bridge",
                           type == VM_NETWORK_TAP ? "an interface name of 1–15 characters"
                                                  : "absent unless type is tap");
    if (s->network.name != NULL && (type != VM_NETWORK_VNIC || !interface_name(s->network.name)))
        return field_error(&f, "name",
                           type == VM_NETWORK_VNIC ? "an interface name of 1–15 characters"
                                                   : "absent unless type is vnic");
    return parse_forwards(&f, s);
}

static int parse_boot(const json_t *boot, const char *pointer, struct vm_spec *s, struct error *err)
{
    static const char *const names[] = {"kernel", "initrd", "cmdline", NULL};
    struct fields f;

    if (fields_open(&f, boot, pointer, names, err) < 0 || field_path(&f, "kernel", &s->boot.kernel) < 0 ||
        field_path(&f, "initrd", &s->boot.initrd) < 0 || field_str(&f, "cmdline", 2000, &s->boot.cmdline) < 0)
        return -1;
    if (s->boot.kernel == NULL)
        return field_error(&f, "kernel", "given: the absolute path of a kernel");
    if (s->boot.cmdline != NULL && strpbrk(s->boot.cmdline, "\n\r") != NULL)
        return field_error(&f, "cmdline", "one line");
    s->has_boot = true;
    return 0;
}

static int parse_keys(const struct fields *f, struct vm_cloud_init *ci)
{
    const json_t *keys = field_get(f, "ssh_authorized_keys");

    if (keys == NULL)
        return 0;
    if (!json_is_array(keys) || json_array_size(keys) > KEYS_MAX)
        return field_error(f, "ssh_authorized_keys", "an array of at most 64 strings");
    ci->ssh_authorized_keys = mem_zalloc((json_array_size(keys) + 1) * sizeof(char *));
    if (ci->ssh_authorized_keys == NULL)
        return no_memory(f->err);
    for (size_t i = 0; i < json_array_size(keys); i++) {
        const char *key = json_string_value(json_array_get(keys, i));
        if (key == NULL || *key == '\0' || strlen(key) > 16384 || strpbrk(key, "\n\r") != NULL)
            return field_error(f, "ssh_authorized_keys", "an array of public keys, one line each");
        ci->ssh_authorized_keys[i] = mem_strdup(key);
        if (ci->ssh_authorized_keys[i] == NULL)
            return no_memory(f->err);
        ci->n_keys = i + 1;
    }
    return 0;
}

static bool hostname_valid(const char *s)
{
    size_t len = strlen(s);

    return len >= 1 && len <= 253 && s[0] != '-' && s[0] != '.' && s[len - 1] != '-' && strstr(s, "..") == NULL &&
           strspn(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-.") == len;
}

/* A mapping, as far as can be told without reading YAML: after comments and marks comes a key or a brace.  What is none leaves
 * the guest without a network and without a word. */
static bool network_config_valid(const char *text)
{
    for (;;) {
        text += strspn(text, " \t\r\n");
        if (*text == '#' || *text == '%')
            text += strcspn(text, "\n");
        else if (strncmp(text, "---", 3) == 0)
            text += 3;
        else
            break;
    }
    if (*text == '{')
        return strchr(text, '}') != NULL;
    size_t line = strcspn(text, "\r\n"), key = strcspn(text, ":");
    return *text != '-' && *text != '[' && key > 0 && key < line && strchr(" \t\r\n", text[key + 1]) != NULL;
}

static int parse_cloud_init(const json_t *obj, const char *pointer, struct vm_spec *s, struct error *err)
{
    static const char *const names[] = {"hostname",       "ssh_authorized_keys", "user_data", "vendor_data",
                                        "network_config", "instance_id",         NULL};
    struct vm_cloud_init *ci = &s->cloud_init;
    struct fields f;

    if (fields_open(&f, obj, pointer, names, err) < 0 || field_str(&f, "hostname", 253, &ci->hostname) < 0 ||
        parse_keys(&f, ci) < 0 || field_str(&f, "user_data", USER_DATA_MAX, &ci->user_data) < 0 ||
        field_str(&f, "vendor_data", USER_DATA_MAX, &ci->vendor_data) < 0 ||
        field_str(&f, "network_config", USER_DATA_MAX, &ci->network_config) < 0 ||
        field_str(&f, "instance_id", 128, &ci->instance_id) < 0)
        return -1;
    if (ci->hostname != NULL && !hostname_valid(ci->hostname))
        return field_error(&f, "hostname", "a host name: letters, digits, - and .");
    if (ci->network_config != NULL && !network_config_valid(ci->network_config))
        return field_error(&f, "network_config", "a mapping in YAML or JSON, as cloud-init's network-config is");
    s->has_cloud_init = true;
    return 0;
}

static int parse_ssh(const json_t *obj, const char *pointer, struct vm_spec *s, struct error *err)
{
    static const char *const names[] = {"user", "private_key_path", NULL};
    struct fields f;

    if (fields_open(&f, obj, pointer, names, err) < 0 || field_str(&f, "user", 32, &s->ssh.user) < 0 ||
        field_path(&f, "private_key_path", &s->ssh.private_key_path) < 0)
        return -1;
    if (s->ssh.user != NULL && (strspn(s->ssh.user, "abcdefghijklmnopqrstuvwxyz0123456789_-") != strlen(s->ssh.user) ||
                                s->ssh.user[0] == '-' || s->ssh.user[0] == '\0'))
        return field_error(&f, "user", "a user name of a–z, 0–9, _ and -");
    return 0;
}

static int parse_policy(const struct fields *f, struct vm_spec *s)
{
    int restart = VM_RESTART_NEVER;

    if (field_enum(f, "restart", restarts, &restart) < 0 || field_bool(f, "autostart", &s->autostart) < 0 ||
        field_bool(f, "protect", &s->protect) < 0 || field_int(f, "ttl_s", 1, 31536000, &s->ttl_s) < 0)
        return -1;
    s->restart = (enum vm_restart_policy)restart;
    return 0;
}

static int parse_image_url(const struct fields *f, struct vm_spec *s)
{
    if (field_str(f, "image_url", IMAGE_URL_MAX, &s->image_url) < 0 ||
        field_str(f, "image_sha256", 80, &s->image_sha256) < 0)
        return -1;
    if (s->image_url != NULL && !image_url_valid(s->image_url))
        return field_error(f, "image_url", IMAGE_URL_EXPECTED);
    if (s->image_sha256 != NULL && !image_sha256_valid(s->image_sha256))
        return field_error(f, "image_sha256", IMAGE_SHA256_EXPECTED);
    if (s->image_sha256 != NULL && s->image_url == NULL)
        return field_error(f, "image_sha256", "given with image_url alone");
    if (s->image_url != NULL && s->image != NULL)
        return field_error(f, "image_url", "given in place of image, not beside it");
    return 0;
}

/* An absolute path, or the name of an image. */
static int parse_image(const struct fields *f, struct vm_spec *s)
{
    const json_t *v = field_get(f, "image");
    const char *text = json_string_value(v);

    if (v == NULL)
        return 0;
    if (text != NULL && text[0] == '/')
        return field_path(f, "image", &s->image);
    if (text == NULL || !image_name_valid(text))
        return field_error(f, "image", "an absolute path, or an image's name (a–z, 0–9, -, . and _)");
    return field_str(f, "image", 63, &s->image);
}

static int parse_hardware(const struct fields *f, struct vm_spec *s)
{
    int machine = VM_MACHINE_Q35, accel = VM_ACCEL_AUTO, display = VM_DISPLAY_NONE;

    if (parse_image(f, s) < 0 || parse_image_url(f, s) < 0 || field_u32(f, "vcpus", 1, 255, &s->vcpus) < 0 ||
        field_u32(f, "memory_mb", 16, UINT32_MAX, &s->memory_mb) < 0 ||
        field_u32(f, "disk_gb", 1, 65536, &s->disk_gb) < 0 || field_enum(f, "machine", machines, &machine) < 0 ||
        field_enum(f, "accel", accels, &accel) < 0 || field_enum(f, "display", displays, &display) < 0 ||
        field_bool(f, "uefi", &s->uefi) < 0 || field_bool(f, "vsock", &s->vsock) < 0)
        return -1;
    s->machine = (enum vm_machine)machine;
    s->accel = (enum vm_accel)accel;
    s->display = (enum vm_display)display;
    return 0;
}

static int parse_provision(const struct fields *f, struct vm_spec *s)
{
    const json_t *steps = field_get(f, "provision");
    char pointer[FIELD_POINTER_MAX];

    return steps != NULL
               ? provision_parse(steps, field_pointer(pointer, f->pointer, "provision"), &s->provision, f->err)
               : 0;
}

typedef int section_parser(const json_t *obj, const char *pointer, struct vm_spec *s, struct error *err);

static int parse_sections(const struct fields *f, struct vm_spec *s)
{
    static const struct {
        const char *name;
        section_parser *parse;
    } sections[] = {
        {"boot", parse_boot}, {"network", parse_network}, {"cloud_init", parse_cloud_init}, {"ssh", parse_ssh}};
    char pointer[64];

    for (size_t i = 0; i < ARRAY_SIZE(sections); i++) {
        const json_t *obj = field_get(f, sections[i].name);
        snprintf(pointer, sizeof(pointer), "%s/%s", f->pointer, sections[i].name);
        if (obj != NULL && sections[i].parse(obj, pointer, s, f->err) < 0)
            return -1;
    }
    return 0;
}

int vm_spec_parse(const json_t *spec, const char *pointer, struct vm_spec *ret, struct error *err)
{
    static const char *const names[] = {
        "image", "image_url", "image_sha256", "vcpus",     "memory_mb", "disk_gb",    "machine",
        "accel", "display",   "uefi",         "boot",      "network",   "cloud_init", "ssh",
        "vsock", "provision", "restart",      "autostart", "protect",   "ttl_s",      NULL};
    struct vm_spec s = {.vcpus = 1, .memory_mb = 1024};
    struct fields f;

    if (fields_open(&f, spec, pointer, names, err) < 0 || parse_hardware(&f, &s) < 0 || parse_sections(&f, &s) < 0 ||
        parse_provision(&f, &s) < 0 || parse_policy(&f, &s) < 0) {
        vm_spec_done(&s);
        return -1;
    }
    if (s.ssh.user == NULL && (s.ssh.user = mem_strdup("vm")) == NULL) {
        vm_spec_done(&s);
        return no_memory(err);
    }
    *ret = s;
    return 0;
}

static json_t *text_or_null(const char *s)
{
    return s != NULL ? json_string(s) : json_null();
}

static json_t *forwards_json(const struct vm_spec *s)
{
    json_t *list = json_array();

    for (size_t i = 0; i < s->network.n_forwards; i++) {
        const struct vm_forward *fw = &s->network.forwards[i];
        list = field_append(list, json_pack("{s:s,s:s,s:i,s:i}", "proto", protos[fw->udp], "host_ip", fw->host_ip,
                                            "host_port", fw->host_port, "guest_port", fw->guest_port));
    }
    return list;
}

static json_t *network_json(const struct vm_spec *s)
{
    json_t *net = json_pack("{s:s}", "type", networks[s->network.type]);

    if (s->network.bridge != NULL)
        net = field_set(net, "bridge", json_string(s->network.bridge));
    if (s->network.name != NULL)
        net = field_set(net, "name", json_string(s->network.name));
    return field_set(net, "forwards", forwards_json(s));
}

static json_t *cloud_init_json(const struct vm_cloud_init *ci)
{
    json_t *keys = json_array();

    for (size_t i = 0; i < ci->n_keys; i++)
        keys = field_append(keys, json_string(ci->ssh_authorized_keys[i]));
    return json_pack("{s:o,s:o,s:o,s:o,s:o,s:o}", "hostname", text_or_null(ci->hostname), "ssh_authorized_keys", keys,
                     "user_data", text_or_null(ci->user_data), "vendor_data", text_or_null(ci->vendor_data),
                     "network_config", text_or_null(ci->network_config), "instance_id", text_or_null(ci->instance_id));
}

json_t *vm_spec_json(const struct vm_spec *s)
{
    json_t *boot = s->has_boot ? json_pack("{s:s,s:o,s:o}", "kernel", s->boot.kernel, "initrd",
                                           text_or_null(s->boot.initrd), "cmdline", text_or_null(s->boot.cmdline))
                               : json_null();
    json_t *ssh = json_pack("{s:o,s:o}", "user", text_or_null(s->ssh.user), "private_key_path",
                            text_or_null(s->ssh.private_key_path));

    return json_pack(
        "{s:o,s:o,s:o,s:I,s:I,s:o,s:s,s:s,s:b,s:s,s:o,s:o,s:o,s:o,s:b,s:o,s:s,s:b,s:b,s:o}", "image",
        text_or_null(s->image), "image_url", text_or_null(s->image_url), "image_sha256", text_or_null(s->image_sha256),
        "vcpus", (json_int_t)s->vcpus, "memory_mb", (json_int_t)s->memory_mb, "disk_gb",
        s->disk_gb > 0 ? json_integer(s->disk_gb) : json_null(), "machine", machines[s->machine], "accel",
        accels[s->accel], "uefi", s->uefi, "display", displays[s->display], "boot", boot, "network", network_json(s),
        "cloud_init", s->has_cloud_init ? cloud_init_json(&s->cloud_init) : json_null(), "ssh", ssh, "vsock", s->vsock,
        "provision", s->provision != NULL ? json_incref(s->provision) : json_array(), "restart", restarts[s->restart],
        "autostart", s->autostart, "protect", s->protect, "ttl_s", s->ttl_s > 0 ? json_integer(s->ttl_s) : json_null());
}
