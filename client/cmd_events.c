/* cmd_events.c - vmctl events: the daemon's server-sent events as lines.
 *
 * The stream goes on for ever; when it breaks it is opened again after the last event seen (Last-Event-ID), so that
 * nothing is missed.
 * --no-follow ends with the newest event there was when it began; it filters here, because a filtered stream does not
 * tell that it has passed that event. */
#include <string.h>

#include "api.h"
#include "base/str.h"
#include "cli.h"
#include "diagnostic.h"
#include "output.h"
#include "signals.h"
#include "util.h"

enum { HEARTBEAT_S = 60, EVENT_MAX = 4 << 20 };

struct stream {
    const struct cli *cli;
    const char *vm, *type; /* filters to apply here; NULL: none */
    long long last;        /* the last event seen */
    long long end;         /* end after this event; -1: never */
    struct buf line;       /* the part of a line that came */
    struct buf data;       /* the data lines of the event */
    bool broken;           /* a line over the maximum */
};

/* "from=running to=stopped cause=acpi": the scalars of an event's data. */
static void add_data(struct buf *text, const json_t *data)
{
    const char *key;
    json_t *value;

    json_object_foreach((json_t *)(uintptr_t)data, key, value)
    {
        char *dumped = json_is_string(value) ? x_strdup(json_string_value(value))
                                             : json_dumps(value, JSON_ENCODE_ANY | JSON_COMPACT);

        if (!json_is_null(value) && dumped != NULL)
            buf_printf(text, " %s=%s", key, dumped);
        mem_free(dumped);
    }
}

static void print_event(const struct cli *cli, const json_t *event)
{
    CLEANUP_BUF struct buf text = BUF_INIT(TEXT_MAX);
    const char *vm = json_text(event, "vm_name");

    if (cli->format == FORMAT_JSON) {
        out_json_line(event);
        return;
    }
    if (cli->format == FORMAT_NAME) {
        out_line("%s", json_text(event, "type"));
        return;
    }
    buf_printf(&text, "%lld  %s  %s  %s", json_number(event, "id", 0), json_text(event, "at"), json_text(event, "type"),
               vm[0] != '\0' ? vm : "-");
    add_data(&text, json_object_get(event, "data"));
    out_line("%s", text.data != NULL ? text.data : "");
}

static bool wanted(const struct stream *s, const json_t *event)
{
    if (s->vm != NULL && strcmp(s->vm, json_text(event, "vm_name")) != 0 &&
        strcmp(s->vm, json_text(event, "vm_id")) != 0)
        return false;
    return s->type == NULL || str_glob(s->type, json_text(event, "type"));
}

/* An event is whole. Returns false when the stream is to end. */
static bool end_event(struct stream *s)
{
    CLEANUP_JSON json_t *event = s->data.len > 0 ? json_loadb(s->data.data, s->data.len, 0, NULL) : NULL;
    long long id = json_number(event, "id", 0);

    buf_reset(&s->data);
    if (event == NULL)
        return true;
    if (s->end >= 0 && id > s->end)
        return false;
    s->last = id > s->last ? id : s->last;
    if (wanted(s, event))
        print_event(s->cli, event);
    return out_flush() && (s->end < 0 || id < s->end);
}

/* A line is whole, without its newline. */
static bool end_line(struct stream *s)
{
    char *line = s->line.data;

    if (s->line.len > 0 && line[s->line.len - 1] == '\r')
        line[--s->line.len] = '\0';
    if (s->line.len == 0)
        return end_event(s);
    if (str_prefix(line, "data:")) {
        if (s->data.len > 0)
            buf_char(&s->data, '\n');
        buf_str(&s->data, line + (line[5] == ' ' ? 6 : 5));
    }
    return true;
}

static bool take_bytes(void *arg, const char *bytes, size_t size)
{
    struct stream *s = arg;

    while (size > 0) {
        const char *newline = memchr(bytes, '\n', size);
        size_t part = newline != NULL ? (size_t)(newline - bytes) : size;

        buf_append(&s->line, bytes, part);
        if (s->line.failed || s->data.failed) {
            s->broken = true;
            return false;
        }
        if (newline != NULL) {
            bool go_on = end_line(s);

            buf_reset(&s->line);
            if (!go_on)
                return false;
            part++;
        }
        bytes += part;
        size -= part;
    }
    return true;
}

/* The newest event there is; -1 after the problem was shown. */
static long long newest_event(const struct cli *cli, int *ret_exit)
{
    CLEANUP_JSON json_t *page = api_get(cli, "/v1/vms?limit=1", ret_exit);

    return page != NULL ? json_number(page, "as_of_event", 0) : -1;
}

static char *stream_path(const struct args *args, const char *since, bool filtered)
{
    const char *vm = args_value(args, "vm"), *type = args_value(args, "type");
    struct buf path = BUF_INIT(TEXT_MAX);

    buf_str(&path, "/v1/events?");
    if (since != NULL)
        buf_printf(&path, "since=%s&", since);
    if (vm != NULL && filtered) {
        buf_str(&path, "vm=");
        buf_url(&path, vm);
        buf_char(&path, '&');
    }
    if (type != NULL && filtered) {
        buf_str(&path, "type=");
        buf_url(&path, type);
    }
    while (path.len > 0 && (path.data[path.len - 1] == '&' || path.data[path.len - 1] == '?'))
        path.data[--path.len] = '\0';
    return x_take(&path);
}

/* Without --since the replay begins at the oldest event kept, which a refusal of 0 names. */
static bool skip_expired(const struct args *args, const struct api_response *res, char *since, size_t size)
{
    long long oldest = json_number(json_object_get(res->json, "context"), "oldest", 0);

    if (args_has(args, "since") || !problem_is(res->json, ERR_EVENTS_CURSOR_EXPIRED) || oldest <= 0)
        return false;
    snprintf(since, size, "%lld", oldest - 1);
    return true;
}

static int run(struct stream *s, const struct args *args, char *since, size_t since_size)
{
    struct patience patience = {0};
    int exit_code = EXIT_DONE;
    bool over = false, had_answer = false;

    while (!over) {
        char *path = stream_path(args, since[0] != '\0' ? since : NULL, s->end < 0);
        struct api_request req = {.path = path,
                                  .stream = true,
                                  .heartbeat_s = HEARTBEAT_S,
                                  .last_event_id = s->last,
                                  .sink = take_bytes,
                                  .arg = s};
        struct api_response res;
        enum api_result result = api_call(s->cli->api, &req, &res);

        mem_free(path);
        buf_reset(&s->line);
        buf_reset(&s->data);
        if (api_ok(&res)) {
            patience = (struct patience){0};
            had_answer = true;
        }
        if (signals_interrupted()) {
            exit_code = EXIT_INTERRUPTED;
            over = true;
        } else if (result == API_DONE && res.status == 410 && s->end >= 0 &&
                   skip_expired(args, &res, since, since_size)) {
            over = false;
        } else if (had_answer && (api_gone(result, &res) || (result == API_DONE && api_ok(&res)))) {
            over = !patience_wait(&patience, "events");
            if (over && !signals_interrupted())
                exit_code = api_fail(s->cli, result == API_DONE ? API_LOST : result, &res);
        } else {
            over = true;
            if (result != API_STOPPED)
                exit_code = api_fail(s->cli, result, &res);
        }
        api_response_done(&res);
    }
    if (s->broken)
        note("an event over %d MiB: the stream is given up", EVENT_MAX >> 20);
    return s->broken ? EXIT_FAILED : exit_code;
}

/* The daemon says the same to who follows. */
static int foreign_cursor(const struct cli *cli, long long since, long long newest)
{
    CLEANUP_JSON json_t *problem =
        problem_new(ERR_EVENTS_CURSOR_EXPIRED,
                    "there has been no event %lld; the newest is %lld: the daemon's database is another than it was",
                    since, newest);

    return problem_show(cli, problem, NULL);
}

int cmd_events(struct cli *cli, const struct args *args)
{
    struct stream s = {.cli = cli, .end = -1, .line = BUF_INIT(EVENT_MAX), .data = BUF_INIT(EVENT_MAX)};
    long long since = -1;
    char since_text[32] = "";
    int result = EXIT_DONE;

    if (args_has(args, "follow") && args_has(args, "no-follow"))
        return usage_error(args->command, "--follow and --no-follow exclude each other");
    if (!args_integer(args, "since", 0, INT64_MAX, &since))
        return EXIT_USAGE;
    if (args_has(args, "no-follow")) {
        s.end = newest_event(cli, &result);
        if (s.end >= 0 && since > s.end)
            return foreign_cursor(cli, since, s.end);
        if (s.end < 0 || s.end == 0 || since == s.end)
            return result;
        s.vm = args_value(args, "vm");
        s.type = args_value(args, "type");
        since = since >= 0 ? since : 0;
    }
    if (since >= 0)
        snprintf(since_text, sizeof(since_text), "%lld", since);
    result = run(&s, args, since_text, sizeof(since_text));
    buf_done(&s.line);
    buf_done(&s.data);
    return result;
}
