/* config.c - one table of keys; a line of the file and a flag of the command line end in the same place. */
#include "config.h"

#include <ctype.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/fd.h"
#include "base/mem.h"
#include "base/str.h"

enum key_kind { KEY_PATH, KEY_TEXT, KEY_LIST, KEY_PATHS, KEY_BOOL, KEY_INT, KEY_LOG_LEVEL, KEY_LOG_FORMAT };

static const struct key {
    const char *name;
    enum key_kind kind;
    size_t offset;
    int64_t min, max;
} keys[] = {
    {"data_dir", KEY_PATH, offsetof(struct config, data_dir)},
    {"runtime_dir", KEY_PATH, offsetof(struct config, runtime_dir)},
    {"socket", KEY_PATH, offsetof(struct config, socket)},
    {"socket_group", KEY_TEXT, offsetof(struct config, socket_group)},
    {"listen", KEY_LIST, offsetof(struct config, listen)},
    {"token_file", KEY_PATH, offsetof(struct config, token_file)},
    {"no_auth", KEY_BOOL, offsetof(struct config, no_auth)},
    {"image_dirs", KEY_PATHS, offsetof(struct config, image_dirs)},
    {"lease_files", KEY_PATHS, offsetof(struct config, lease_files)},
    {"qemu", KEY_TEXT, offsetof(struct config, qemu)},
    {"log_level", KEY_LOG_LEVEL, offsetof(struct config, log_level)},
    {"log_format", KEY_LOG_FORMAT, offsetof(struct config, log_json)},
    {"max_vms", KEY_INT, offsetof(struct config, max_vms), 1, 1000000},
    {"max_operations", KEY_INT, offsetof(struct config, max_operations), 1, 1000000},
    {"max_operations_per_vm", KEY_INT, offsetof(struct config, max_operations_per_vm), 2, 1000},
    {"max_execs", KEY_INT, offsetof(struct config, max_execs), 1, 100000},
    {"max_execs_per_vm", KEY_INT, offsetof(struct config, max_execs_per_vm), 1, 128},
    {"max_connections", KEY_INT, offsetof(struct config, max_connections), 8, 16000},
    {"max_waits", KEY_INT, offsetof(struct config, max_waits), 1, 16000},
    {"max_streams", KEY_INT, offsetof(struct config, max_streams), 1, 16000},
    {"max_open_files", KEY_INT, offsetof(struct config, max_open_files), 128, 1073741816},
    {"rate_limit", KEY_INT, offsetof(struct config, rate_limit), 0, 1000000},
    {"rate_burst", KEY_INT, offsetof(struct config, rate_burst), 1, 1000000},
    {"operations_keep_s", KEY_INT, offsetof(struct config, operations_keep_s), 1, 31536000},
    {"events_keep", KEY_INT, offsetof(struct config, events_keep), 10, 100000000},
    {"console_log_kb", KEY_INT, offsetof(struct config, console_log_kb), 64, 2048},
    {"vmm_log_kb", KEY_INT, offsetof(struct config, vmm_log_kb), 16, 1024},
    {"max_image_gb", KEY_INT, offsetof(struct config, max_image_gb), 1, 1048576},
    {"memory_reserve_mb", KEY_INT, offsetof(struct config, memory_reserve_mb), 0, 1 << 30},
    {"restart_delay_ms", KEY_INT, offsetof(struct config, restart_delay_ms), 1, 300000},
    {"restart_max", KEY_INT, offsetof(struct config, restart_max), 1, 1000000},
    {"restart_window_s", KEY_INT, offsetof(struct config, restart_window_s), 1, 31536000},
    {"disk_reserve_mb", KEY_INT, offsetof(struct config, disk_reserve_mb), 0, 1048576},
    {"fetch_allow", KEY_LIST, offsetof(struct config, fetch_allow)},
    {"fetch_plain_http", KEY_LIST, offsetof(struct config, fetch_plain_http)},
    {"fetch_ca_file", KEY_PATH, offsetof(struct config, fetch_ca_file)},
    {"fetch_stall_s", KEY_INT, offsetof(struct config, fetch_stall_s), 1, 3600},
    {"fetch_timeout_s", KEY_INT, offsetof(struct config, fetch_timeout_s), 10, 604800},
    {"cloud_init_timeout_s", KEY_INT, offsetof(struct config, cloud_init_timeout_s), 1, 86400},
    {"shutdown_grace_s", KEY_INT, offsetof(struct config, shutdown_grace_s), 0, 3600},
    {"reconcile_interval_s", KEY_INT, offsetof(struct config, reconcile_interval_s), 0, 86400},
    {"reap_grace_s", KEY_INT, offsetof(struct config, reap_grace_s), 0, 31536000},
};

void config_defaults(struct config *config)
{
    *config = (struct config){
        .log_level = LOG_LEVEL_INFO,
        .max_vms = 20000,
        .max_operations = 10000,
        .max_operations_per_vm = 8,
        .max_execs = 1000,
        .max_execs_per_vm = 128,
        .max_connections = 1000,
        .max_waits = 500,
        .max_streams = 200,
        .max_open_files = 65536,
        .rate_burst = 100,
        .operations_keep_s = 86400,
        .events_keep = 100000,
        .console_log_kb = 1024,
        .vmm_log_kb = 256,
        .max_image_gb = 16384,
        .memory_reserve_mb = 64,
        .restart_delay_ms = 1000,
        .restart_max = 5,
        .restart_window_s = 600,
        .disk_reserve_mb = 64,
        .fetch_stall_s = 30,
        .fetch_timeout_s = 21600,
        .cloud_init_timeout_s = 600,
        .shutdown_grace_s = 5,
        .reconcile_interval_s = 30,
        .reap_grace_s = 60,
    };
}

static int bad(struct error *err, const char *where, const char *key, const char *value, const char *expected)
{
    return error_set(err, ERR_API_INVALID_FIELD, "%s: %s = %.80s: %s", where, key, value, expected);
}

static int set_text(char **field, const char *value, struct error *err)
{
    char *copy = mem_strdup(value);

    if (copy == NULL)
        return error_set(err, ERR_DAEMON_OVERLOADED, "out of memory");
    mem_free(*field);
    *field = copy;
    return 0;
}

/* One more item, or with `separator` several. */
static int add_items(char **list, const char *value, const char *separator, struct error *err)
{
    size_t n = 0;

    while (list[n] != NULL)
        n++;
    while (*value != '\0') {
        size_t len = separator != NULL ? strcspn(value, separator) : strlen(value);
        if (len > 0 && n == CONFIG_LIST_MAX)
            return error_set(err, ERR_API_INVALID_FIELD, "more than %d items", CONFIG_LIST_MAX);
        if (len > 0 && (list[n++] = mem_strndup(value, len)) == NULL)
            return error_set(err, ERR_DAEMON_OVERLOADED, "out of memory");
        value += len + (value[len] != '\0');
    }
    return 0;
}

static int set_bool(bool *field, const char *value)
{
    if (strcmp(value, "yes") == 0 || strcmp(value, "true") == 0)
        *field = true;
    else if (strcmp(value, "no") == 0 || strcmp(value, "false") == 0)
        *field = false;
    else
        return -1;
    return 0;
}

static int set_key(struct config *config, const struct key *key, const char *value, const char *where,
                   struct error *err)
{
    void *field = (char *)config + key->offset;
    char expected[64];

    switch (key->kind) {
    case KEY_PATH:
        if (value[0] != '/')
            return bad(err, where, key->name, value, "an absolute path is needed");
        return set_text(field, value, err);
    case KEY_TEXT:
        return *value != '\0' ? set_text(field, value, err) : bad(err, where, key->name, value, "a value is needed");
    case KEY_LIST:
        return *value != '\0' ? add_items(field, value, NULL, err)
                              : bad(err, where, key->name, value, "a value is needed");
    case KEY_PATHS:
        return value[0] == '/' ? add_items(field, value, ":", err)
                               : bad(err, where, key->name, value, "absolute paths separated by : are needed");
    case KEY_BOOL:
        return set_bool(field, value) == 0 ? 0 : bad(err, where, key->name, value, "yes or no is needed");
    case KEY_LOG_LEVEL:
        return log_level_parse(value, field)
                   ? 0
                   : bad(err, where, key->name, value, "error, warn, info or debug is needed");
    case KEY_LOG_FORMAT:
        if (strcmp(value, "json") != 0 && strcmp(value, "logfmt") != 0)
            return bad(err, where, key->name, value, "logfmt or json is needed");
        *(bool *)field = strcmp(value, "json") == 0;
        return 0;
    case KEY_INT:
        if (str_to_i64(value, key->min, key->max, field))
            return 0;
        snprintf(expected, sizeof(expected), "a number %lld-%lld is needed", (long long)key->min, (long long)key->max);
        return bad(err, where, key->name, value, expected);
    }
    return -1;
}

int config_set(struct config *config, const char *name, const char *value, const char *where, struct error *err)
{
    const char *names[ARRAY_SIZE(keys) + 1] = {0};

    for (size_t i = 0; i < ARRAY_SIZE(keys); i++) {
        if (strcmp(keys[i].name, name) == 0)
            return set_key(config, &keys[i], value, where, err);
        names[i] = keys[i].name;
    }
    const char *near = str_nearest(name, names);
    return error_set(err, ERR_API_INVALID_FIELD, "%s: there is no key \"%.60s\"%s%s%s", where, name,
                     near != NULL ? "; did you mean \"" : "", near != NULL ? near : "", near != NULL ? "\"?" : "");
}

static char *trim(char *s)
{
    while (isspace((unsigned char)*s))
        s++;
    size_t len = strlen(s);
    while (len > 0 && isspace((unsigned char)s[len - 1]))
        s[--len] = '\0';
    return s;
}

static int load_line(struct config *config, const char *path, int number, char *line, struct error *err)
{
    char where[600];

    line = trim(line);
    if (*line == '\0' || *line == '#')
        return 0;
    snprintf(where, sizeof(where), "%s:%d", path, number);
    char *equals = strchr(line, '=');
    if (equals == NULL || equals == line)
        return error_set(err, ERR_API_INVALID_FIELD, "%s: a line is `key = value` or a # comment", where);
    *equals = '\0';
    return config_set(config, trim(line), trim(equals + 1), where, err);
}

int config_load(struct config *config, const char *path, struct error *err)
{
    CLEANUP_FREE char *text = NULL;
    size_t len;
    int number = 0;

    if (file_read(path, 1 << 20, &text, &len, err) < 0)
        return -1;
    if (strlen(text) != len)
        return error_set(err, ERR_API_INVALID_FIELD, "%s: there is a NUL byte in it", path);
    for (char *line = text, *next; line != NULL; line = next) {
        next = strchr(line, '\n');
        if (next != NULL)
            *next++ = '\0';
        if (load_line(config, path, ++number, line, err) < 0)
            return -1;
    }
    return 0;
}

char *config_default_path(void)
{
    const char *home = getenv("HOME"), *xdg = getenv("XDG_CONFIG_HOME");
    char *path;

    if (geteuid() == 0)
        path = mem_strdup("/etc/vmmd/vmmd.conf");
    else if (xdg != NULL && *xdg == '/')
        path = mem_printf("%s/vmmd/vmmd.conf", xdg);
    else
        path = mem_printf("%s/.config/vmmd/vmmd.conf", home != NULL ? home : "");
    if (path != NULL && access(path, F_OK) < 0) {
        mem_free(path);
        return NULL;
    }
    return path;
}

/* Where dnsmasq keeps its leases: Debian, Fedora, and libvirt's default network. */
static const char default_lease_files[] =
    "/var/lib/misc/dnsmasq.leases:/var/lib/dnsmasq/dnsmasq.leases:/var/lib/libvirt/dnsmasq/default.leases";

/* XDG's place for a user, the system's for root. */
static char *place(const char *system, const char *xdg_name, const char *home_part)
{
    const char *xdg = getenv(xdg_name), *home = getenv("HOME");

    if (geteuid() == 0)
        return mem_strdup(system);
    if (xdg != NULL && *xdg == '/')
        return mem_printf("%s/vmmd", xdg);
    return home != NULL && *home == '/' && home_part != NULL ? mem_printf("%s/%s/vmmd", home, home_part) : NULL;
}

int config_finish(struct config *config, struct error *err)
{
    if (config->data_dir == NULL)
        config->data_dir = place("/var/lib/vmmd", "XDG_DATA_HOME", ".local/share");
    if (config->runtime_dir == NULL)
        config->runtime_dir = place("/run/vmmd", "XDG_RUNTIME_DIR", NULL);
    if (config->runtime_dir == NULL && config->data_dir != NULL) /* no session: beside the data */
        config->runtime_dir = mem_printf("%s/run", config->data_dir);
    if (config->socket == NULL && config->runtime_dir != NULL)
        config->socket = mem_printf("%s/vmmd.sock", config->runtime_dir);
    if (config->socket_group == NULL)
        config->socket_group = mem_strdup("vmmd");
    if (config->lease_files[0] == NULL && add_items(config->lease_files, default_lease_files, ":", err) < 0)
        return -1;
    if (config->data_dir == NULL || config->runtime_dir == NULL || config->socket == NULL ||
        config->socket_group == NULL)
        return error_set(err, ERR_IO, "no place for the data: set HOME, or give --data-dir and --runtime-dir");
    if (strlen(config->socket) > 107)
        return error_set(err, ERR_IO, "the socket path %s is longer than 107 bytes", config->socket);
    return 0;
}

void config_done(struct config *config)
{
    for (size_t i = 0; i < ARRAY_SIZE(keys); i++) {
        char **field = (char **)(void *)((char *)config + keys[i].offset);
        if (keys[i].kind == KEY_PATH || keys[i].kind == KEY_TEXT)
            mem_free(*field);
        else if (keys[i].kind == KEY_LIST || keys[i].kind == KEY_PATHS)
            for (size_t j = 0; field[j] != NULL; j++)
                mem_free(field[j]);
    }
    *config = (struct config){0};
}
