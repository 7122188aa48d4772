/* ws.c - see ws.h.
 *
 * The upgrade is written by hand on a connection that libcurl made (Unix socket, TCP or TLS); an answer other than 101
 * is the daemon's problem document. Frames are parsed as they come: data goes through without being kept, control
 * frames have at most 125 bytes. */
#include "ws.h"

#include <curl/curl.h>
#include <poll.h>
#include <stdint.h>
#include <string.h>
#include <strings.h>

#include "api.h"
#include "base/clock.h"
#include "base/uuid.h"
#include "diagnostic.h"
#include "sha1.h"
#include "signals.h"
#include "util.h"

enum { HEAD_MAX = 16384, QUEUE_MAX = 1 << 20, QUEUE_LOW = 65536, ANSWER_MS = 10000, PROBLEM_MAX = 1 << 20 };
enum { OP_CONTINUE = 0, OP_TEXT = 1, OP_BINARY = 2, OP_CLOSE = 8, OP_PING = 9, OP_PONG = 10 };

struct ws {
    CURL *easy;
    int fd;
    struct buf in;  /* what came with the upgrade's answer and is not parsed yet */
    struct buf out; /* frames to be written */
    unsigned char head[14];
    size_t head_size;
    unsigned opcode; /* of the frame whose payload comes */
    uint64_t left;   /* bytes of its payload to come */
    bool in_payload;
    char control[126];
    size_t control_size;
    bool close_sent;
    unsigned code;
    char reason[126];
};

int ws_fd(const struct ws *ws)
{
    return ws->fd;
}

bool ws_wants_write(const struct ws *ws)
{
    return ws->out.len > 0;
}

bool ws_has_room(const struct ws *ws)
{
    return ws->out.len < QUEUE_LOW;
}

unsigned ws_close_code(const struct ws *ws)
{
    return ws->code;
}

const char *ws_close_reason(const struct ws *ws)
{
    return ws->reason;
}

void ws_free(struct ws *ws)
{
    if (ws == NULL)
        return;
    curl_easy_cleanup(ws->easy);
    buf_done(&ws->in);
    buf_done(&ws->out);
    mem_free(ws);
}

/* Connects; the URL's host and target go into `host` and `target`. */
static CURLcode dial(struct ws *ws, const struct cli *cli, const char *path, char **host, char **target, char *error)
{
    size_t size = cli->url != NULL ? strlen(cli->url) : 0;
    char *url;
    char *name = NULL, *port = NULL, *part = NULL, *query = NULL;
    CURLU *parsed = curl_url();
    curl_socket_t fd;
    CURLcode code;

    while (size > 0 && cli->url[size - 1] == '/')
        size--;
    url = cli->url != NULL ? x_printf("%.*s%s", (int)size, cli->url, path) : x_printf("http://vmmd%s", path);
    curl_easy_setopt(ws->easy, CURLOPT_URL, url);
    curl_easy_setopt(ws->easy, CURLOPT_PROTOCOLS_STR, "http,https");
    curl_easy_setopt(ws->easy, CURLOPT_HTTP_VERSION, (long)CURL_HTTP_VERSION_1_1);
    curl_easy_setopt(ws->easy, CURLOPT_CONNECT_ONLY, 1L);
    curl_easy_setopt(ws->easy, CURLOPT_CONNECTTIMEOUT_MS, 5000L);
    curl_easy_setopt(ws->easy, CURLOPT_NOSIGNAL, 1L);
    curl_easy_setopt(ws->easy, CURLOPT_TCP_KEEPALIVE, 1L);
    curl_easy_setopt(ws->easy, CURLOPT_ERRORBUFFER, error);
    if (cli->url == NULL) {
        curl_easy_setopt(ws->easy, CURLOPT_UNIX_SOCKET_PATH, cli->socket);
        curl_easy_setopt(ws->easy, CURLOPT_PROXY, "");
    }
    code = curl_easy_perform(ws->easy);
    if (code == CURLE_OK)
        code = curl_easy_getinfo(ws->easy, CURLINFO_ACTIVESOCKET, &fd);
    if (code == CURLE_OK && curl_url_set(parsed, CURLUPART_URL, url, CURLU_PATH_AS_IS) == CURLUE_OK) {
        ws->fd = (int)fd;
        curl_url_get(parsed, CURLUPART_HOST, &name, 0);
        curl_url_get(parsed, CURLUPART_PORT, &port, 0);
        curl_url_get(parsed, CURLUPART_PATH, &part, 0);
        curl_url_get(parsed, CURLUPART_QUERY, &query, 0);
        *host = x_printf("%s%s%s", name, port != NULL ? ":" : "", port != NULL ? port : "");
        *target = x_printf("%s%s%s", part, query != NULL ? "?" : "", query != NULL ? query : "");
    } else if (code == CURLE_OK) {
        code = CURLE_URL_MALFORMAT;
    }
    curl_free(name);
    curl_free(port);
    curl_free(part);
    curl_free(query);
    curl_url_cleanup(parsed);
    mem_free(url);
    return code;
}

/* Waits for the connection until `until`. Returns false when time is up or Ctrl+C came. */
static bool await(const struct ws *ws, short events, int64_t until)
{
    struct pollfd fds[2] = {{.fd = ws->fd, .events = events}, {.fd = signals_fd(), .events = POLLIN}};
    int64_t left = until - clock_mono_ms();

    return left > 0 && poll(fds, 2, (int)left) > 0 && !signals_interrupted();
}

static bool send_all(struct ws *ws, int64_t until)
{
    while (ws_wants_write(ws)) {
        if (ws_write(ws) != WS_OPEN || (ws_wants_write(ws) && !await(ws, POLLOUT, until)))
            return false;
    }
    return true;
}

/* Reads more of the answer into ws->in; false at its end, or when time is up. */
static bool read_more(struct ws *ws, int64_t until)
{
    char chunk[4096];
    size_t got = 0;

    for (;;) {
        CURLcode code = curl_easy_recv(ws->easy, chunk, sizeof(chunk), &got);

        if (code == CURLE_OK)
            return got > 0 && buf_append(&ws->in, chunk, got) == 0;
        if (code != CURLE_AGAIN || !await(ws, POLLIN, until))
            return false;
    }
}

/* The value of a header of the answer's head, NULL when it is missing. The caller mem_frees it. */
static char *header(const char *head, const char *name)
{
    size_t size = strlen(name);

    for (const char *line = strstr(head, "\r\n"); line != NULL && line[2] != '\0'; line = strstr(line + 2, "\r\n")) {
        const char *value = line + 2;

        if (strncasecmp(value, name, size) != 0 || value[size] != ':')
            continue;
        value += size + 1;
        value += strspn(value, " \t");
        return x_printf("%.*s", (int)strcspn(value, "\r\n"), value);
    }
    return NULL;
}

/* The problem of an answer that is no 101: its body, or what its status says. */
static json_t *refusal(struct ws *ws, const char *head, int64_t until)
{
    CLEANUP_FREE char *length = header(head, "Content-Length");
    long long want = 0, status = 0;
    json_t *json = NULL;
    CLEANUP_FREE char *number = x_printf("%.3s", strlen(head) > 12 ? head + 9 : "0");

    parse_integer(number, &status);
    if (length != NULL && parse_integer(length, &want) && want > 0 && want <= PROBLEM_MAX) {
        while (ws->in.len < (size_t)want && read_more(ws, until))
            continue;
        if (ws->in.len >= (size_t)want)
            json = json_loadb(ws->in.data, (size_t)want, 0, NULL);
    }
    if (json_is_string(json_object_get(json, "code")))
        return json;
    json_decref(json);
    return problem_new(ERR_DAEMON_INTERNAL, "the answer %lld to the console's upgrade is not what vmmd answers",
                       status);
}

static json_t *lost(const struct cli *cli, const char *what)
{
    json_t *problem =
        problem_new(ERR_CLIENT_DAEMON_UNREACHABLE, "vmmd at %s: %s", cli->url != NULL ? cli->url : cli->socket, what);

    problem_help(problem, "see whether vmmd runs (`systemctl status vmmd`), then attach again");
    return problem;
}

/* Sends the upgrade and judges its answer; NULL when it is a WebSocket. */
static json_t *upgrade(struct ws *ws, const struct cli *cli, const char *host, const char *target)
{
    int64_t until = clock_mono_ms() + ANSWER_MS;
    unsigned char random[16], digest[20];
    CLEANUP_FREE char *key = NULL, *accept = NULL, *given = NULL, *head = NULL, *both = NULL;
    char *end = NULL;

    random_bytes(random, sizeof(random));
    key = base64_encode(random, sizeof(random));
    both = x_printf("%s258EAFA5-E914-47DA-95CA-C5AB0DC85B11", key);
    sha1(both, strlen(both), digest);
    accept = base64_encode(digest, sizeof(digest));
    buf_printf(&ws->out,
               "GET %s HTTP/1.1\r\nHost: %s\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nUser-Agent: vmctl\r\n"
               "Sec-WebSocket-Key: %s\r\nSec-WebSocket-Version: 13\r\n",
               target, host, key);
    if (cli->url != NULL && cli->token != NULL)
        buf_printf(&ws->out, "Authorization: Bearer %s\r\n", cli->token);
    buf_str(&ws->out, "\r\n");
    if (!send_all(ws, until))
        return lost(cli, "the connection was lost before the console opened");
    while (end == NULL && ws->in.len < HEAD_MAX && read_more(ws, until))
        end = strstr(ws->in.data, "\r\n\r\n");
    if (end == NULL)
        return lost(cli, "no answer to the console's upgrade");
    head = x_printf("%.*s", (int)(end + 2 - ws->in.data), ws->in.data);
    buf_consume(&ws->in, (size_t)(end + 4 - ws->in.data));
    if (strncmp(head, "HTTP/1.1 101", 12) != 0)
        return refusal(ws, head, until);
    given = header(head, "Sec-WebSocket-Accept");
    if (given == NULL || strcmp(given, accept) != 0)
        return problem_new(ERR_DAEMON_INTERNAL, "the console's upgrade was answered with a wrong Sec-WebSocket-Accept");
    return NULL;
}

struct ws *ws_open(const struct cli *cli, const char *path, json_t **ret_problem)
{
    struct ws *ws = x_alloc(sizeof(*ws));
    CLEANUP_FREE char *host = NULL, *target = NULL;
    char error[CURL_ERROR_SIZE] = "";
    struct api_request probe = {.path = "/v1/health"};
    struct api_response res;
    enum api_result result;
    json_t *problem = NULL;

    /* A first plain request tells an absent daemon apart in the words of every other command. */
    result = api_call(cli->api, &probe, &res);
    if (result != API_DONE || !api_ok(&res))
        problem = result == API_INTERRUPTED ? lost(cli, "interrupted") : api_problem(cli->api, result, &res);
    api_response_done(&res);
    ws->fd = -1;
    ws->code = 1005;
    buf_init(&ws->in, PROBLEM_MAX + HEAD_MAX);
    buf_init(&ws->out, QUEUE_MAX);
    ws->easy = curl_easy_init();
    if (problem == NULL && dial(ws, cli, path, &host, &target, error) != CURLE_OK)
        problem = lost(cli, error);
    if (problem == NULL)
        problem = upgrade(ws, cli, host, target);
    if (problem == NULL)
        return ws;
    ws_free(ws);
    *ret_problem = problem;
    return NULL;
}

static void send_frame(struct ws *ws, unsigned opcode, const char *bytes, size_t size)
{
    unsigned char head[14] = {(unsigned char)(0x80 | opcode)}, mask[4], piece[1024];
    size_t head_size = 2;

    random_bytes(mask, sizeof(mask));
    if (size < 126) {
        head[1] = (unsigned char)(0x80 | size);
    } else if (size < 65536) {
        head[1] = 0x80 | 126;
        head[2] = (unsigned char)(size >> 8);
        head[3] = (unsigned char)size;
        head_size = 4;
    } else {
        head[1] = 0x80 | 127;
        for (int i = 0; i < 8; i++)
            head[2 + i] = (unsigned char)((uint64_t)size >> (56 - 8 * i));
        head_size = 10;
    }
    memcpy(head + head_size, mask, 4);
    buf_append(&ws->out, head, head_size + 4);
    for (size_t at = 0; at < size;) {
        size_t part = 0;

        for (; part < sizeof(piece) && at < size; part++, at++)
            piece[part] = (unsigned char)bytes[at] ^ mask[at & 3];
        buf_append(&ws->out, piece, part);
    }
}

void ws_send(struct ws *ws, const char *bytes, size_t size)
{
    send_frame(ws, OP_BINARY, bytes, size);
}

enum ws_result ws_write(struct ws *ws)
{
    while (ws->out.len > 0) {
        size_t sent = 0;
        CURLcode code = curl_easy_send(ws->easy, ws->out.data, ws->out.len, &sent);

        if (code == CURLE_AGAIN)
            return WS_OPEN;
        if (code != CURLE_OK)
            return WS_LOST;
        buf_consume(&ws->out, sent);
    }
    return ws->out.failed ? WS_LOST : WS_OPEN;
}

void ws_close(struct ws *ws)
{
    if (!ws->close_sent)
        send_frame(ws, OP_CLOSE, "\x03\xe8", 2);
    ws->close_sent = true;
    (void)ws_write(ws);
}

static enum ws_result end_control(struct ws *ws)
{
    if (ws->opcode == OP_PING)
        send_frame(ws, OP_PONG, ws->control, ws->control_size);
    if (ws->opcode == OP_PING)
        return ws_write(ws);
    if (ws->opcode != OP_CLOSE)
        return WS_OPEN;
    if (ws->control_size >= 2) {
        ws->code = (unsigned)((unsigned char)ws->control[0] << 8 | (unsigned char)ws->control[1]);
        memcpy(ws->reason, ws->control + 2, ws->control_size - 2);
        ws->reason[ws->control_size - 2] = '\0';
    }
    ws_close(ws);
    return WS_CLOSED;
}

/* Takes bytes of a frame's head; returns WS_WRONG when it is none that a server may send. */
static enum ws_result take_head(struct ws *ws, const char **bytes, size_t *size)
{
    size_t need = 2;

    while (*size > 0 && ws->head_size < need) {
        ws->head[ws->head_size++] = (unsigned char)*(*bytes)++;
        --*size;
        if (ws->head_size >= 2)
            need = (ws->head[1] & 127) == 126 ? 4 : (ws->head[1] & 127) == 127 ? 10 : 2;
    }
    if (ws->head_size < need)
        return WS_OPEN;
    ws->opcode = ws->head[0] & 15;
    ws->left = ws->head[1] & 127;
    if ((ws->head[0] & 0x70) != 0 || (ws->head[1] & 0x80) != 0)
        return WS_WRONG;
    if (need > 2)
        ws->left = 0;
    for (size_t i = 2; i < need; i++)
        ws->left = ws->left << 8 | ws->head[i];
    ws->head_size = 0;
    ws->control_size = 0;
    ws->in_payload = true;
    if (ws->opcode >= OP_CLOSE)
        return ws->opcode > OP_PONG || ws->left > 125 || (ws->head[0] & 0x80) == 0 ? WS_WRONG : WS_OPEN;
    return ws->opcode > OP_BINARY ? WS_WRONG : WS_OPEN;
}

static enum ws_result parse(struct ws *ws, const char *bytes, size_t size, bool (*sink)(void *, const char *, size_t),
                            void *arg)
{
    enum ws_result result = WS_OPEN;

    while (result == WS_OPEN && (size > 0 || (ws->in_payload && ws->left == 0))) {
        size_t part = ws->left < size ? (size_t)ws->left : size;

        if (!ws->in_payload) {
            result = take_head(ws, &bytes, &size);
            continue;
        }
        if (ws->opcode >= OP_CLOSE) {
            memcpy(ws->control + ws->control_size, bytes, part);
            ws->control_size += part;
        } else if (part > 0 && !sink(arg, bytes, part)) {
            return WS_STOPPED;
        }
        bytes += part;
        size -= part;
        ws->left -= part;
        if (ws->left == 0) {
            ws->in_payload = false;
            if (ws->opcode >= OP_CLOSE)
                result = end_control(ws);
        }
    }
    return result;
}

enum ws_result ws_read(struct ws *ws, bool (*sink)(void *arg, const char *bytes, size_t size), void *arg)
{
    char chunk[16384];
    enum ws_result result = WS_OPEN;
    size_t got = 0;

    if (ws->in.len > 0) {
        result = parse(ws, ws->in.data, ws->in.len, sink, arg);
        buf_reset(&ws->in);
    }
    while (result == WS_OPEN) {
        CURLcode code = curl_easy_recv(ws->easy, chunk, sizeof(chunk), &got);

        if (code == CURLE_AGAIN)
            return WS_OPEN;
        if (code != CURLE_OK || got == 0)
            return WS_LOST;
        result = parse(ws, chunk, got, sink, arg);
    }
    return result;
}
