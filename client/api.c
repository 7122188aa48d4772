/* api.c - requests to vmmd by libcurl.
 *
 * One connection is kept and used again. A request runs in curl's multi interface, so that its poll also watches for
 * Ctrl+C. What can go wrong: nobody listens (told apart by errno, for the diagnostic), the connection breaks, or the
 * answer is no JSON; each becomes a problem document like the daemon's own. */
#include "api.h"

#include <curl/curl.h>
#include <errno.h>
#include <string.h>
#include <strings.h>
#include <unistd.h>

#include "base/clock.h"
#include "diagnostic.h"
#include "signals.h"
#include "util.h"

enum { CONNECT_MS = 5000, ANSWER_S = 30, PATIENCE_MS = 30000, RETRY_MS = 250, TELL_MS = 200, UPLOAD_BUFFER = 1 << 20 };

struct api {
    const struct cli *cli;
    CURLM *multi;
    CURL *easy;
    char error[CURL_ERROR_SIZE];
    long os_errno;
};

struct transfer {
    struct api *api;
    const struct api_request *req;
    struct api_response *res;
    bool stopped;
    bool too_large;
    long long sent; /* of an upload */
    int64_t told_ms;
};

struct api *api_new(const struct cli *cli)
{
    struct api *api = x_alloc(sizeof(*api));

    api->cli = cli;
    curl_global_init(CURL_GLOBAL_DEFAULT);
    api->multi = curl_multi_init();
    api->easy = curl_easy_init();
    return api;
}

void api_free(struct api *api)
{
    if (api == NULL)
        return;
    curl_easy_cleanup(api->easy);
    curl_multi_cleanup(api->multi);
    curl_global_cleanup();
    mem_free(api);
}

bool api_ok(const struct api_response *res)
{
    return res->status >= 200 && res->status < 300;
}

static size_t on_body(char *bytes, size_t one, size_t size, void *arg)
{
    struct transfer *t = arg;

    (void)one;
    curl_easy_getinfo(t->api->easy, CURLINFO_RESPONSE_CODE, &t->res->status);
    if (t->req->sink != NULL && api_ok(t->res)) {
        t->stopped = !t->req->sink(t->req->arg, bytes, size);
        return t->stopped ? 0 : size;
    }
    t->too_large = buf_append(&t->res->body, bytes, size) < 0;
    return t->too_large ? 0 : size;
}

static size_t on_upload(char *bytes, size_t one, size_t size, void *arg)
{
    struct transfer *t = arg;
    ssize_t n;

    do {
        n = read(*t->req->upload_fd, bytes, one * size);
    } while (n < 0 && errno == EINTR && !signals_interrupted());
    if (n < 0)
        return CURL_READFUNC_ABORT;
    t->sent += n;
    if (t->req->sent != NULL && clock_mono_ms() - t->told_ms >= TELL_MS) {
        t->told_ms = clock_mono_ms();
        t->req->sent(t->req->arg, t->sent, t->req->upload_size);
    }
    return (size_t)n;
}

/* The value of the header `name` (with its colon) in `value`; false: it is another, or too long. */
static bool header_value(const char *line, size_t size, const char *name, char *value, size_t value_size)
{
    size_t begin = strlen(name), end = size;

    if (size <= begin || strncasecmp(line, name, begin) != 0)
        return false;
    while (begin < end && (line[begin] == ' ' || line[begin] == '\t'))
        begin++;
    while (end > begin && (line[end - 1] == '\r' || line[end - 1] == '\n' || line[end - 1] == ' '))
        end--;
    if (end - begin >= value_size)
        return false;
    memcpy(value, line + begin, end - begin);
    value[end - begin] = '\0';
    return true;
}

static size_t on_header(char *line, size_t one, size_t size, void *arg)
{
    struct transfer *t = arg;
    char value[32];

    (void)one;
    if (header_value(line, size, "X-Next-Offset:", value, sizeof(value)) && !parse_integer(value, &t->res->next_offset))
        t->res->next_offset = -1;
    header_value(line, size, "X-File-Mode:", t->res->file_mode, sizeof(t->res->file_mode));
    return size;
}

static struct curl_slist *add_header(struct curl_slist *list, const char *format, const char *value)
{
    char *line = x_printf(format, value);
    struct curl_slist *longer = curl_slist_append(list, line);

    mem_free(line);
    return longer != NULL ? longer : list;
}

static struct curl_slist *request_headers(const struct api *api, const struct api_request *req)
{
    struct curl_slist *list = NULL;
    char number[32];

    list = add_header(list, "Accept: %s",
                      req->accept != NULL ? req->accept
                      : req->stream       ? "*/*"
                                          : "application/json, application/problem+json");
    /* What is refused by its headers need not be sent. */
    list = add_header(list, req->upload_fd != NULL ? "Expect: %s" : "Expect:%s",
                      req->upload_fd != NULL ? "100-continue" : "");
    if (req->upload_fd != NULL)
        list = add_header(list, "Content-Type: %s", "application/octet-stream");
    if (req->file_mode != NULL)
        list = add_header(list, "X-File-Mode: %s", req->file_mode);
    if (req->body != NULL)
        list = add_header(list, "Content-Type: %s", "application/json");
    if (req->idempotency_key != NULL)
        list = add_header(list, "Idempotency-Key: %s", req->idempotency_key);
    if (api->cli->url != NULL && api->cli->token != NULL)
        list = add_header(list, "Authorization: Bearer %s", api->cli->token);
    snprintf(number, sizeof(number), "%d", req->wait_s);
    if (req->wait_s > 0)
        list = add_header(list, "Prefer: wait=%s", number);
    snprintf(number, sizeof(number), "%lld", req->last_event_id);
    if (req->last_event_id > 0)
        list = add_header(list, "Last-Event-ID: %s", number);
    return list;
}

/* Where the daemon is: the socket, without any proxy; or the URL. */
static char *set_address(struct api *api, const char *path)
{
    const struct cli *cli = api->cli;
    size_t size = cli->url != NULL ? strlen(cli->url) : 0;

    while (size > 0 && cli->url[size - 1] == '/')
        size--;
    if (cli->url == NULL) {
        curl_easy_setopt(api->easy, CURLOPT_UNIX_SOCKET_PATH, cli->socket);
        curl_easy_setopt(api->easy, CURLOPT_PROXY, "");
        return x_printf("http://vmmd%s", path);
    }
    return x_printf("%.*s%s", (int)size, cli->url, path);
}

static void set_options(struct transfer *t, const char *url, struct curl_slist *headers, const char *body)
{
    const struct api_request *req = t->req;
    const char *method = req->method != NULL ? req->method : "GET";
    CURL *easy = t->api->easy;

    curl_easy_setopt(easy, CURLOPT_URL, url);
    curl_easy_setopt(easy, CURLOPT_PATH_AS_IS, 1L); /* a VM called ".." is for the daemon to refuse */
    curl_easy_setopt(easy, CURLOPT_PROTOCOLS_STR, "http,https");
    curl_easy_setopt(easy, CURLOPT_HTTPHEADER, headers);
    curl_easy_setopt(easy, CURLOPT_USERAGENT, "vmctl");
    curl_easy_setopt(easy, CURLOPT_NOSIGNAL, 1L);
    curl_easy_setopt(easy, CURLOPT_ERRORBUFFER, t->api->error);
    curl_easy_setopt(easy, CURLOPT_WRITEFUNCTION, on_body);
    curl_easy_setopt(easy, CURLOPT_WRITEDATA, t);
    curl_easy_setopt(easy, CURLOPT_HEADERFUNCTION, on_header);
    curl_easy_setopt(easy, CURLOPT_HEADERDATA, t);
    curl_easy_setopt(easy, CURLOPT_CONNECTTIMEOUT_MS, (long)CONNECT_MS);
    curl_easy_setopt(easy, CURLOPT_TCP_KEEPALIVE, 1L);
    if (!req->stream)
        curl_easy_setopt(easy, CURLOPT_TIMEOUT, (long)(req->wait_s + req->hold_s + ANSWER_S));
    if (req->heartbeat_s > 0) {
        curl_easy_setopt(easy, CURLOPT_LOW_SPEED_LIMIT, 1L);
        curl_easy_setopt(easy, CURLOPT_LOW_SPEED_TIME, (long)req->heartbeat_s);
    }
    if (req->upload_fd != NULL) {
        curl_easy_setopt(easy, CURLOPT_UPLOAD, 1L);
        curl_easy_setopt(easy, CURLOPT_READFUNCTION, on_upload);
        curl_easy_setopt(easy, CURLOPT_READDATA, t);
        curl_easy_setopt(easy, CURLOPT_UPLOAD_BUFFERSIZE, (long)UPLOAD_BUFFER);
        if (req->upload_size >= 0)
            curl_easy_setopt(easy, CURLOPT_INFILESIZE_LARGE, (curl_off_t)req->upload_size);
        return;
    }
    if (strcmp(method, "POST") == 0) {
        curl_easy_setopt(easy, CURLOPT_POST, 1L);
        curl_easy_setopt(easy, CURLOPT_POSTFIELDS, body != NULL ? body : "");
        curl_easy_setopt(easy, CURLOPT_POSTFIELDSIZE, body != NULL ? (long)strlen(body) : 0L);
    } else if (strcmp(method, "GET") != 0) {
        curl_easy_setopt(easy, CURLOPT_CUSTOMREQUEST, method);
    }
}

/* Runs the transfer that is set up, until it ends or Ctrl+C comes. */
static enum api_result run(struct transfer *t)
{
    struct curl_waitfd interrupt = {.fd = signals_fd(), .events = CURL_WAIT_POLLIN};
    CURLcode code = CURLE_FAILED_INIT;
    bool ended = false;
    int running, left;
    CURLMsg *message;

    curl_multi_add_handle(t->api->multi, t->api->easy);
    while (!ended && !signals_interrupted()) {
        if (curl_multi_perform(t->api->multi, &running) != CURLM_OK)
            break;
        while ((message = curl_multi_info_read(t->api->multi, &left)) != NULL) {
            ended = message->msg == CURLMSG_DONE;
            code = message->data.result;
        }
        if (!ended)
            curl_multi_poll(t->api->multi, &interrupt, interrupt.fd >= 0 ? 1 : 0, 1000, NULL);
    }
    curl_easy_getinfo(t->api->easy, CURLINFO_OS_ERRNO, &t->api->os_errno);
    curl_easy_getinfo(t->api->easy, CURLINFO_RESPONSE_CODE, &t->res->status);
    curl_multi_remove_handle(t->api->multi, t->api->easy);
    if (t->stopped)
        return API_STOPPED;
    if (!ended)
        return API_INTERRUPTED;
    if (code == CURLE_OK)
        return API_DONE;
    if (t->api->error[0] == '\0')
        snprintf(t->api->error, sizeof(t->api->error), "%s",
                 t->too_large ? "the answer is too large" : curl_easy_strerror(code));
    switch (code) {
    case CURLE_COULDNT_CONNECT:
    case CURLE_COULDNT_RESOLVE_HOST:
    case CURLE_COULDNT_RESOLVE_PROXY:
    case CURLE_URL_MALFORMAT:
    case CURLE_UNSUPPORTED_PROTOCOL:
    case CURLE_SSL_CONNECT_ERROR:
    case CURLE_PEER_FAILED_VERIFICATION:
        return API_UNREACHABLE;
    default:
        return API_LOST;
    }
}

enum api_result api_call(struct api *api, const struct api_request *req, struct api_response *res)
{
    struct transfer t = {.api = api, .req = req, .res = res};
    struct curl_slist *headers;
    enum api_result result;
    char *url, *body;

    *res = (struct api_response){.body = BUF_INIT(TEXT_MAX), .next_offset = -1};
    curl_easy_reset(api->easy);
    api->error[0] = '\0';
    url = set_address(api, req->path);
    body = req->body != NULL ? json_dumps(req->body, JSON_COMPACT) : NULL;
    headers = request_headers(api, req);
    set_options(&t, url, headers, body);
    result = run(&t);
    curl_slist_free_all(headers);
    mem_free(body);
    mem_free(url);
    if (result == API_DONE && res->body.len > 0)
        res->json = json_loadb(res->body.data, res->body.len, JSON_DECODE_ANY | JSON_ALLOW_NUL, NULL);
    return result;
}

void api_response_done(struct api_response *res)
{
    json_decref(res->json);
    res->json = NULL;
    buf_done(&res->body);
}

static json_t *unreachable(const struct api *api, enum api_result result)
{
    const struct cli *cli = api->cli;
    const char *where = cli->url != NULL ? cli->url : cli->socket;
    json_t *problem;

    if (result == API_LOST) {
        problem = problem_new(ERR_CLIENT_DAEMON_UNREACHABLE, "the connection to vmmd at %s was lost", where);
        problem_help(problem, "see whether vmmd runs (`systemctl status vmmd`), then try again");
    } else {
        problem = problem_new(ERR_CLIENT_DAEMON_UNREACHABLE, "vmmd does not answer at %s", where);
        if (cli->url != NULL)
            problem_help(problem, "check the address, and that vmmd runs there with --listen");
        else if (api->os_errno == EACCES || api->os_errno == EPERM)
            problem_help(
                problem,
                "you may not use this socket: join the group vmmd (`sudo adduser $USER vmmd`, then log in again), "
                "or run vmctl as root");
        else
            problem_help(problem, "start the daemon with `systemctl start vmmd` or `vmmd`, or name its socket with "
                                  "--socket or VMMD_SOCKET");
    }
    problem_cause(problem, "%s",
                  cli->url == NULL && result == API_UNREACHABLE && api->os_errno != 0 ? strerror((int)api->os_errno)
                                                                                      : api->error);
    return problem;
}

json_t *api_problem(const struct api *api, enum api_result result, const struct api_response *res)
{
    json_t *problem;

    if (result == API_INTERRUPTED || result == API_STOPPED)
        return NULL;
    if (result != API_DONE)
        return unreachable(api, result);
    if (!api_ok(res) && json_is_string(json_object_get(res->json, "code")))
        return json_incref(res->json);
    if (api_ok(res) || res->status >= 500 || res->status < 400)
        problem = problem_new(ERR_DAEMON_INTERNAL, "the answer %ld is not what vmmd answers", res->status);
    else
        problem = problem_new(ERR_API_BAD_REQUEST, "the request was refused with %ld before it was read", res->status);
    json_object_set_new(problem, "status", json_integer(res->status));
    return problem;
}

int api_fail(const struct cli *cli, enum api_result result, const struct api_response *res)
{
    CLEANUP_JSON json_t *problem = api_problem(cli->api, result, res);

    if (problem == NULL)
        return result == API_INTERRUPTED ? EXIT_INTERRUPTED : EXIT_DONE;
    return problem_show(cli, problem, NULL);
}

json_t *api_get(const struct cli *cli, const char *path, int *ret_exit)
{
    struct api_request req = {.path = path};
    struct api_response res;
    enum api_result result = api_call(cli->api, &req, &res);
    json_t *json = NULL;

    if (result == API_DONE && api_ok(&res) && json_is_object(res.json))
        json = json_incref(res.json);
    else
        *ret_exit = api_fail(cli, result, &res);
    api_response_done(&res);
    return json;
}

char *api_vm_path(const char *name, const char *suffix)
{
    struct buf b = BUF_INIT(TEXT_MAX);

    buf_str(&b, "/v1/vms/");
    buf_url(&b, name);
    buf_str(&b, suffix);
    return x_take(&b);
}

bool api_gone(enum api_result result, const struct api_response *res)
{
    if (result == API_UNREACHABLE || result == API_LOST)
        return true;
    return result == API_DONE && res->status == 503 &&
           (problem_is(res->json, ERR_DAEMON_SHUTTING_DOWN) || problem_is(res->json, ERR_DAEMON_OVERLOADED));
}

bool patience_wait(struct patience *p, const char *what)
{
    int64_t now = clock_mono_ms();

    if (p->until == 0) {
        p->until = now + PATIENCE_MS;
        note("vmmd went away; waiting up to %d s for it to come back (%s)", PATIENCE_MS / 1000, what);
    }
    if (now >= p->until)
        return false;
    signals_sleep(RETRY_MS);
    return !signals_interrupted();
}

void patience_reset(struct patience *p)
{
    if (p->until != 0)
        note("vmmd is back");
    p->until = 0;
}
