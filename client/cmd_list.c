/* cmd_list.c - list and status: VMs as rows, and one VM in full. */
#include <string.h>

#include "api.h"
#include "cli.h"
#include "diagnostic.h"
#include "output.h"
#include "util.h"

static void add_query(struct buf *path, const char *key, const char *value)
{
    if (value == NULL)
        return;
    buf_str(path, path->data != NULL && strchr(path->data, '?') != NULL ? "&" : "?");
    buf_str(path, key);
    buf_str(path, "=");
    buf_url(path, value);
}

/* The path of the page after `cursor` (NULL: the first). */
static char *page_path(const struct args *args, const char *cursor)
{
    struct buf path = BUF_INIT(TEXT_MAX);
    const char *label;
    size_t at = 0;

    buf_str(&path, "/v1/vms?limit=1000");
    add_query(&path, "state", args_value(args, "state"));
    add_query(&path, "backend", args_value(args, "backend"));
    add_query(&path, "name", args_value(args, "name"));
    while ((label = args_next(args, "label", &at)) != NULL)
        add_query(&path, "label", label);
    add_query(&path, "cursor", cursor);
    return x_take(&path);
}

static void network_text(const json_t *vm, char *out, size_t size)
{
    const json_t *network = json_object_get(json_object_get(vm, "spec"), "network");
    const char *type = json_text(network, "type"), *bridge = json_text(network, "bridge");

    if (bridge[0] != '\0')
        snprintf(out, size, "%s:%s", type, bridge);
    else
        snprintf(out, size, "%s", type[0] != '\0' ? type : "-");
}

static void number_text(const json_t *object, const char *key, const char *before, const char *after, char *out,
                        size_t size)
{
    long long number = json_number(object, key, -1);

    if (number < 0)
        snprintf(out, size, "-");
    else
        snprintf(out, size, "%s%lld%s", before, number, after);
}

/* A disk that failed is why the VM is suspended. */
static void state_text(const json_t *vm, char *out, size_t size)
{
    const json_t *condition;
    bool failed = false;
    size_t i;

    json_array_foreach(json_object_get(vm, "conditions"), i, condition)
    {
        failed = failed || (strcmp(json_text(condition, "type"), "disk_io") == 0 &&
                            !json_is_true(json_object_get(condition, "status")));
    }
    snprintf(out, size, "%s%s", json_text(vm, "state"), failed ? " (disk_io)" : "");
}

static void add_row(struct table *table, const json_t *vm)
{
    const json_t *spec = json_object_get(vm, "spec"), *runtime = json_object_get(vm, "runtime");
    char state[64], vcpus[32], memory[32], network[128], pid[32], ssh[32], age[32];
    const char *ip = json_text(json_array_get(json_object_get(runtime, "addresses"), 0), "ip");
    const char *cells[] = {json_text(vm, "name"),    state, json_text(vm, "backend"), vcpus, memory, network, pid, ssh,
                           ip[0] != '\0' ? ip : "-", age};

    state_text(vm, state, sizeof(state));
    number_text(spec, "vcpus", "", "", vcpus, sizeof(vcpus));
    number_text(spec, "memory_mb", "", "MiB", memory, sizeof(memory));
    network_text(vm, network, sizeof(network));
    number_text(runtime, "pid", "", "", pid, sizeof(pid));
    number_text(runtime, "ssh_host_port", ":", "", ssh, sizeof(ssh));
    format_age(json_text(vm, "created_at"), age, sizeof(age));
    table_row(table, cells);
}

static void print_list(const struct cli *cli, const struct args *args, const json_t *items)
{
    static const char *const head[] = {"NAME",    "STATE", "BACKEND", "VCPUS", "MEM",
                                       "NETWORK", "PID",   "SSH",     "IP",    "AGE"};
    struct table table = {.columns = ARRAY_SIZE(head)};
    const json_t *vm;
    size_t i;

    if (cli->format == FORMAT_NAME) {
        json_array_foreach(items, i, vm)
        {
            out_line("%s", json_text(vm, "name"));
        }
        return;
    }
    if (json_array_size(items) == 0) {
        note(args->option_count > 0 ? "no VM matches" : "there are no VMs; make one with `vmctl create`");
        return;
    }
    table_row(&table, head);
    json_array_foreach(items, i, vm)
    {
        add_row(&table, vm);
    }
    table_print(&table);
}

int cmd_list(struct cli *cli, const struct args *args)
{
    CLEANUP_JSON json_t *items = json_array();
    CLEANUP_JSON json_t *page = NULL;
    CLEANUP_FREE char *cursor = NULL;
    int result = EXIT_DONE;

    do {
        char *path = page_path(args, cursor);

        json_decref(page);
        page = api_get(cli, path, &result);
        mem_free(path);
        if (page == NULL)
            return result;
        json_array_extend(items, json_object_get(page, "items"));
        mem_free(cursor);
        cursor = x_strdup(json_string_value(json_object_get(page, "next_cursor")));
    } while (cursor != NULL);
    if (cli->format == FORMAT_JSON) {
        json_object_set(page, "items", items);
        out_json(page);
    } else {
        print_list(cli, args, items);
    }
    return EXIT_DONE;
}

static void line(const char *label, const char *format, ...) __attribute__((format(printf, 2, 3)));
static void line(const char *label, const char *format, ...)
{
    char text[4096];
    va_list args;

    va_start(args, format);
    vsnprintf(text, sizeof(text), format, args);
    va_end(args);
    out_printf("%-13s", label);
    out_visible(text);
    out_puts("\n");
}

/* A line for a member that is a string, unless it is missing or null. */
static void text_line(const char *label, const json_t *object, const char *key)
{
    if (json_text(object, key)[0] != '\0')
        line(label, "%s", json_text(object, key));
}

static void print_network(const json_t *vm)
{
    const json_t *network = json_object_get(json_object_get(vm, "spec"), "network"),
                 *runtime = json_object_get(vm, "runtime");
    const char *type = json_text(network, "type");
    const json_t *item;
    size_t i;

    if (strcmp(type, "tap") == 0)
        line("Network:", "tap (bridge: %s)", json_text(network, "bridge"));
    else
        line("Network:", "%s", strcmp(type, "user") == 0 ? "user (SLIRP)" : type);
    json_array_foreach(json_object_get(network, "forwards"), i, item)
    {
        line("Forward:", "%s:%lld -> %lld/%s", json_text(item, "host_ip"), json_number(item, "host_port", 0),
             json_number(item, "guest_port", 0), json_text(item, "proto"));
    }
    if (json_number(runtime, "ssh_host_port", 0) > 0)
        line("SSH:", "127.0.0.1:%lld", json_number(runtime, "ssh_host_port", 0));
    text_line("MAC:", runtime, "mac_addr");
    json_array_foreach(json_object_get(runtime, "addresses"), i, item)
    {
        line("Address:", "%s (%s, seen %s)", json_text(item, "ip"), json_text(item, "source"),
             json_text(item, "seen_at"));
    }
}

static void print_health(const json_t *vm)
{
    const json_t *failure = json_object_get(vm, "failure"), *operation = json_object_get(vm, "operation"), *condition;
    size_t i;

    json_array_foreach(json_object_get(vm, "conditions"), i, condition)
    {
        const char *message = json_text(condition, "message");

        line("Condition:", "%s %s (%s)%s%s", json_text(condition, "type"),
             json_is_true(json_object_get(condition, "status")) ? "yes" : "no", json_text(condition, "reason"),
             message[0] != '\0' ? ": " : "", message);
    }
    if (json_is_object(operation))
        line("Operation:", "%s %s", json_text(operation, "kind"), json_text(operation, "id"));
    if (json_is_object(failure)) {
        line("Failure:", "%s (%s) at %s", json_text(failure, "detail"), json_text(failure, "code"),
             json_text(failure, "at"));
        out_printf("%-13ssee `vmctl explain %s`\n", "", json_text(vm, "name"));
    }
}

static void print_status(const json_t *vm)
{
    const json_t *spec = json_object_get(vm, "spec"), *runtime = json_object_get(vm, "runtime"), *value;
    const char *key;
    char age[32];

    line("Name:", "%s", json_text(vm, "name"));
    line("ID:", "%s", json_text(vm, "id"));
    line("Backend:", "%s", json_text(vm, "backend"));
    line("State:", "%s", json_text(vm, "state"));
    line("vCPUs:", "%lld", json_number(spec, "vcpus", 0));
    line("Memory:", "%lld MiB", json_number(spec, "memory_mb", 0));
    if (json_number(spec, "disk_gb", 0) > 0)
        line("Disk:", "%lld GiB", json_number(spec, "disk_gb", 0));
    text_line("Image:", spec, "image");
    text_line("Kernel:", json_object_get(spec, "boot"), "kernel");
    text_line("Machine:", spec, "machine");
    text_line("Accelerator:", runtime, "accel");
    print_network(vm);
    text_line("WorkDir:", runtime, "work_dir");
    text_line("Overlay:", runtime, "overlay_path");
    text_line("Seed:", runtime, "seed_iso_path");
    if (json_number(runtime, "pid", 0) > 0)
        line("PID:", "%lld", json_number(runtime, "pid", 0));
    text_line("VNC:", runtime, "vnc_addr");
    json_object_foreach(json_object_get(vm, "labels"), key, value)
    {
        line("Label:", "%s=%s", key, json_string_value(value) != NULL ? json_string_value(value) : "");
    }
    print_health(vm);
    format_age(json_text(vm, "created_at"), age, sizeof(age));
    line("Created:", "%s (%s ago)", json_text(vm, "created_at"), age);
}

int cmd_status(struct cli *cli, const struct args *args)
{
    CLEANUP_JSON json_t *items = json_array();
    CLEANUP_JSON json_t *list = json_object();
    int worst = EXIT_DONE;

    for (size_t i = 0; i < args->word_count && worst != EXIT_UNREACHABLE && worst != EXIT_INTERRUPTED; i++) {
        char *path = api_vm_path(args->words[i], "");
        int result = EXIT_DONE;
        CLEANUP_JSON json_t *vm = api_get(cli, path, &result);

        mem_free(path);
        worst = exit_worse(worst, result);
        if (vm == NULL)
            continue;
        json_array_append(items, vm);
        if (cli->format == FORMAT_NAME)
            out_line("%s", json_text(vm, "name"));
        else if (cli->format == FORMAT_TABLE) {
            out_puts(json_array_size(items) > 1 ? "\n" : "");
            print_status(vm);
        }
    }
    if (cli->format == FORMAT_JSON && args->word_count == 1 && json_array_size(items) == 1) {
        out_json(json_array_get(items, 0));
    } else if (cli->format == FORMAT_JSON && json_array_size(items) > 0) {
        json_object_set(list, "items", items);
        out_json(list);
    }
    return worst;
}
