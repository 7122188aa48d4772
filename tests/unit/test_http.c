/* The HTTP server whole: real sockets, raw bytes from the client's side, server and client on one loop. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <arpa/inet.h>
#include <errno.h>
#include <grp.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/fd.h"
#include "base/log.h"
#include "base/mem.h"
#include "http/private.h"
#include "http/ws_frame.h"

enum { PATIENCE_MS = 5000 };

static struct fixture {
    struct loop *loop;
    struct http_server *server;
    struct http_config config;
    char dir[64], path[100];
    struct http_request *parked;
    unsigned handled, gone, stream_gone, stream_drained, ws_closed, ws_drained, drained;
    struct http_stream *stream;
    struct http_ws *ws;
    size_t ws_got;
} f;

struct client {
    int fd;
    char in[300000];
    size_t len;
    bool eof;
};

/* Handlers. */

static void on_gone(void *arg, struct http_request *req)
{
    (void)arg;
    (void)req;
    f.gone++;
    f.parked = NULL;
}

static void h_hello(struct http_request *req, void *arg)
{
    (void)arg;
    f.handled++;
    http_reply_json(req, 200, "{\"hello\":1}");
}

static bool count_query(void *arg, const char *name, const char *value)
{
    (void)name;
    (void)value;
    ++*(int *)arg;
    return true;
}

static void h_param(struct http_request *req, void *arg)
{
    char text[600];
    int n = 0;
    const char *q = http_query(req, "q"), *x = http_header(req, "x-thing");

    (void)arg;
    http_query_each(req, count_query, &n);
    snprintf(text, sizeof(text), "[%s][%s][%s][%s][%d][%s][%d]", req->path, req->params[0],
             req->params[1] ? req->params[1] : "-", q != NULL ? q : "-", n, x != NULL ? x : "-", http_prefer_wait(req));
    http_add_header(req, "ETag", "\"1\"");
    http_reply(req, 201, "text/plain", text, strlen(text));
}

static void h_echo(struct http_request *req, void *arg)
{
    (void)arg;
    f.handled++;
    http_reply(req, 200, "application/json", req->body, req->body_len);
}

static void h_park(struct http_request *req, void *arg)
{
    CLEANUP_ERROR struct error err = ERROR_INIT;

    (void)arg;
    if (http_wait_take(req, &err) < 0) {
        http_reply_error(req, &err);
        return;
    }
    f.parked = req;
    http_on_gone(req, on_gone, NULL);
}

static void h_slow(struct http_request *req, void *arg) /* parked without a gone: must be answered by its handler */
{
    (void)arg;
    f.parked = req;
}

static void stream_gone(void *arg)
{
    (void)arg;
    f.stream_gone++;
    f.stream = NULL;
}

static void stream_drained(void *arg)
{
    (void)arg;
    f.stream_drained++;
}

static void h_stream(struct http_request *req, void *arg)
{
    static const struct http_stream_events events = {stream_drained, stream_gone};

    (void)arg;
    f.stream = http_stream_start(req, 200, "text/event-stream", 1000000, &events, NULL);
}

static void ws_message(void *arg, bool binary, const void *data, size_t len)
{
    (void)arg;
    (void)binary;
    f.ws_got += len;
    if (len == 4 && memcmp(data, "bye!", 4) == 0) {
        http_ws_close(f.ws, 1000, "as asked");
        f.ws = NULL;
    } else {
        http_ws_send(f.ws, data, len);
    }
}

static void ws_drained(void *arg)
{
    (void)arg;
    f.ws_drained++;
}

static void ws_closed(void *arg)
{
    (void)arg;
    f.ws_closed++;
    f.ws = NULL;
}

static void h_ws(struct http_request *req, void *arg)
{
    static const struct http_ws_events events = {ws_message, ws_drained, ws_closed};

    (void)arg;
    f.ws = http_ws_accept(req, 200000, &events, NULL);
}

static const struct http_route routes[] = {
    {HTTP_GET, "/v1/hello", h_hello, false, true},
    {HTTP_GET, "/v1/vms/{vm}", h_param, false, true},
    {HTTP_GET, "/v1/vms/batch", h_hello, false, true},
    {HTTP_GET, "/v1/vms/{vm}/logs/{log}", h_param, false, true},
    {HTTP_POST, "/v1/vms", h_echo, false, false},
    {HTTP_POST, "/v1/vms/{vm}/kill", h_hello, false, true},
    {HTTP_PATCH, "/v1/vms/{vm}", h_echo, true, false},
    {HTTP_DELETE, "/v1/vms/{vm}", h_echo, false, false},
    {HTTP_GET, "/v1/park", h_park, false, true},
    {HTTP_GET, "/v1/slow", h_slow, false, true},
    {HTTP_GET, "/v1/stream", h_stream, false, true},
    {HTTP_GET, "/v1/ws", h_ws, false, true},
    {0},
};

/* Fixture. */

static void start(const char *token, bool tcp)
{
    static const char *const listen[] = {"127.0.0.1:0", NULL};
    struct error err = ERROR_INIT;

    f.config.socket_path = f.path;
    f.config.token = token;
    f.config.no_auth = token == NULL;
    f.config.listen = tcp ? listen : NULL;
    f.server = http_server_new(f.loop, &f.config, routes, NULL, &err);
    if (f.server == NULL)
        print_error("%s\n", err.message);
    assert_non_null(f.server);
    error_done(&err);
}

static int setup(void **state)
{
    struct error err = ERROR_INIT;

    (void)state;
    memset(&f, 0, sizeof(f));
    strcpy(f.dir, "/tmp/test_http.XXXXXX");
    assert_non_null(mkdtemp(f.dir));
    snprintf(f.path, sizeof(f.path), "%s/s", f.dir);
    f.loop = loop_new(&err);
    assert_non_null(f.loop);
    http_config_defaults(&f.config);
    f.config.socket_group = NULL;
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    http_server_free(f.server);
    assert_int_equal(loop_free(f.loop), 0);
    assert_int_not_equal(access(f.path, F_OK), 0);
    assert_int_equal(rmdir(f.dir), 0);
    return 0;
}

static unsigned tcp_port(void)
{
    for (struct http_listener *l = f.server->listeners; l != NULL; l = l->next)
        if (!l->is_unix)
            return ntohs(((struct sockaddr_in *)(void *)&l->addr)->sin_port);
    return 0;
}

static struct client *dial_unix(void)
{
    struct client *c = calloc(1, sizeof(*c));
    struct sockaddr_un addr = {.sun_family = AF_UNIX};

    assert_non_null(c);
    strcpy(addr.sun_path, f.path);
    c->fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    assert_int_equal(connect(c->fd, (struct sockaddr *)&addr, sizeof(addr)), 0);
    return c;
}

static struct client *dial_tcp(void)
{
    struct client *c = calloc(1, sizeof(*c));
    struct sockaddr_in addr = {
        .sin_family = AF_INET, .sin_port = htons((uint16_t)tcp_port()), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};

    assert_non_null(c);
    c->fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_int_equal(connect(c->fd, (struct sockaddr *)&addr, sizeof(addr)), 0);
    return c;
}

static void hang_up(struct client *c)
{
    close(c->fd);
    free(c);
}

static void turn(void)
{
    loop_run_once(f.loop, false);
    usleep(200);
}

static void turns(int n)
{
    while (n-- > 0)
        turn();
}

static void take(struct client *c)
{
    ssize_t n = recv(c->fd, c->in + c->len, sizeof(c->in) - 1 - c->len, MSG_DONTWAIT);

    if (n > 0)
        c->len += (size_t)n;
    else if (n == 0 || (errno != EAGAIN && errno != EINTR))
        c->eof = true;
    c->in[c->len] = '\0';
}

#define UNTIL(c, cond)                                      \
    do {                                                    \
        int64_t until_end_ = clock_mono_ms() + PATIENCE_MS; \
        while (!(cond) && clock_mono_ms() < until_end_) {   \
            turn();                                         \
            if ((c) != NULL)                                \
                take(c);                                    \
        }                                                   \
        if (!(cond))                                        \
            print_error("never: %s\n", #cond);              \
        assert_true(cond);                                  \
    } while (0)
#define NOBODY ((struct client *)NULL)

static void say_n(struct client *c, const char *data, size_t len)
{
    int64_t end = clock_mono_ms() + PATIENCE_MS;

    while (len > 0 && clock_mono_ms() < end) {
        ssize_t n = send(c->fd, data, len, MSG_DONTWAIT | MSG_NOSIGNAL);

        if (n > 0) {
            data += n;
            len -= (size_t)n;
        } else if (errno != EAGAIN) {
            fail_msg("send: %s", strerror(errno));
        }
        if (len > 0)
            turn();
    }
    assert_int_equal(len, 0);
}

static void say(struct client *c, const char *text)
{
    say_n(c, text, strlen(text));
}

/* Whether a whole answer with a length lies at `at`; its end. */
static const char *answer_end(const char *at)
{
    const char *head = strstr(at, "\r\n\r\n");
    const char *len = strstr(at, "Content-Length: ");

    if (head == NULL)
        return NULL;
    size_t body = len != NULL && len < head ? strtoul(len + 16, NULL, 10) : 0;
    return strlen(head + 4) >= body ? head + 4 + body : NULL;
}

static void expect(struct client *c, const char *text)
{
    UNTIL(c, strstr(c->in, text) != NULL || c->eof);
    if (strstr(c->in, text) == NULL)
        print_error("wanted %s in: %s\n", text, c->in);
    assert_non_null(strstr(c->in, text));
}

/* One request on a new connection: its answer must have all of the texts. */
static void ask(bool tcp, const char *request, const char *status, const char *text)
{
    struct client *c = tcp ? dial_tcp() : dial_unix();

    say(c, request);
    UNTIL(c, answer_end(c->in) != NULL || c->eof);
    if (strstr(c->in, status) == NULL || strstr(c->in, text) == NULL)
        print_error("%s\nwanted %s %s in: %s\n", request, status, text, c->in);
    assert_ptr_equal(strstr(c->in, status), c->in + 9);
    assert_non_null(strstr(c->in, text));
    if (strstr(c->in, "problem+json") != NULL)
        assert_non_null(strstr(c->in, "X-Request-Id: "));
    hang_up(c);
    turns(3);
}

/* As ask, and the server ends the connection. */
static void ask_closed(const char *request, const char *status, const char *text)
{
    struct client *c = dial_unix();

    say(c, request);
    UNTIL(c, c->eof);
    if (strstr(c->in, status) == NULL || strstr(c->in, text) == NULL)
        print_error("%s\nwanted %s %s in: %s\n", request, status, text, c->in);
    assert_ptr_equal(strstr(c->in, status), c->in + 9);
    assert_non_null(strstr(c->in, text));
    hang_up(c);
    turns(3);
}

#define H "Host: vmmd\r\n"
#define J "Content-Type: application/json\r\n"

static void routing(void **state)
{
    (void)state;
    start(NULL, false);
    ask(false, "GET /v1/hello HTTP/1.1\r\n" H "\r\n", "200", "{\"hello\":1}");
    ask(false, "GET /v1/hello HTTP/1.1\r\n" H "X-Request-Id: my.id_1-2\r\n\r\n", "200", "X-Request-Id: my.id_1-2\r\n");
    ask(false, "GET /v1/vms/batch HTTP/1.1\r\n" H "\r\n", "200", "hello");
    ask(false,
        "GET /v1/vms/a%2Fb%c3%a9/logs/x?q=1+2%26&r&q=z HTTP/1.1\r\n" H
        "x-Thing: t\r\nPrefer: respond-async, wait=9999\r\n\r\n",
        "201", "[/v1/vms/a/b\xc3\xa9/logs/x][a/b\xc3\xa9][x][1 2&][3][t][600]");
    ask(false, "GET /v1/vms/web?q HTTP/1.1\r\n" H "Prefer: wait=\"7\"\r\n\r\n", "201",
        "[/v1/vms/web][web][-][][1][-][7]");
    ask(false, "GET /v1/vms/web HTTP/1.1\r\n" H "\r\n", "201", "ETag: \"1\"\r\n");
    ask(false, "GET /v1/nope HTTP/1.1\r\n" H "\r\n", "404", "vm_manager::api::not_found");
    ask(false, "GET /v1/vms/ HTTP/1.1\r\n" H "\r\n", "404", "\"instance\":\"/v1/vms/\"");
    ask(false, "GET / HTTP/1.1\r\n" H "\r\n", "404", "api::not_found");
    ask(false, "GET /a/b/c/d/e/f/g/h/i/j HTTP/1.1\r\n" H "\r\n", "404", "api::not_found");
    ask(false, "PUT /v1/vms/web HTTP/1.1\r\n" H "\r\n", "405", "Allow: GET, HEAD, PATCH, DELETE\r\n");
    ask(false, "OPTIONS /v1/vms HTTP/1.1\r\n" H "\r\n", "405", "Allow: POST\r\n");
    ask(false, "GET /v1/hello HTTP/1.0\r\n\r\n", "200", "hello");
}

static void bodies(void **state)
{
    (void)state;
    start(NULL, false);
    ask(false, "POST /v1/vms HTTP/1.1\r\n" H J "Content-Length: 2\r\n\r\n{}", "200", "\r\n\r\n{}");
    ask(false,
        "POST /v1/vms HTTP/1.1\r\n" H "Content-Type: Application/JSON ; charset=utf-8\r\nContent-Length: 2\r\n\r\n{}",
        "200", "{}");
    ask(false, "POST /v1/vms HTTP/1.1\r\n" H J "Transfer-Encoding: chunked\r\n\r\n2\r\nab\r\n3\r\ncde\r\n0\r\n\r\n",
        "200", "\r\n\r\nabcde");
    ask(false, "POST /v1/vms HTTP/1.1\r\n" H "Content-Length: 0\r\n\r\n", "200", "Content-Length: 0");
    ask(false, "POST /v1/vms HTTP/1.1\r\n" H "Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n", "200", "Content-Length: 0");
    ask(false,
        "PATCH /v1/vms/a HTTP/1.1\r\n" H "Content-Type: application/merge-patch+json\r\nContent-Length: 2\r\n\r\n{}",
        "200", "{}");
    ask(false, "POST /v1/vms/a/kill HTTP/1.1\r\n" H "Content-Length: 3\r\n\r\nabc", "200", "hello");
    ask(false,
        "POST /v1/vms HTTP/1.1\r\n" H "Content-Type: application/merge-patch+json\r\nContent-Length: 2\r\n\r\n{}",
        "415", "-H 'Content-Type: application/json'");
    ask(false, "PATCH /v1/vms/a HTTP/1.1\r\n" H "Content-Type: text/plain\r\nContent-Length: 2\r\n\r\n{}", "415",
        "-H 'Content-Type: application/merge-patch+json'");
    ask(false, "POST /v1/vms HTTP/1.1\r\n" H "Transfer-Encoding: chunked\r\n\r\n2\r\nab\r\n0\r\n\r\n", "415",
        "no Content-Type");
    /* Refused before the body is there. */
    ask_closed("POST /v1/vms HTTP/1.1\r\n" H J "Content-Length: 1048577\r\n\r\n", "413", "api::body_too_large");
    ask_closed("POST /v1/nope HTTP/1.1\r\n" H J "Content-Length: 10\r\n\r\n", "404", "Connection: close");
    ask_closed("POST /v1/vms HTTP/1.1\r\n" H
               "Content-Type: text/plain\r\nContent-Length: 10\r\nExpect: 100-continue\r\n\r\n",
               "415", "text/plain");
    struct client *c = dial_unix();
    say(c, "POST /v1/vms HTTP/1.1\r\n" H J "Content-Length: 4\r\nExpect: 100-continue\r\n\r\n");
    expect(c, "HTTP/1.1 100 Continue");
    say(c, "1234");
    expect(c, "\r\n\r\n1234");
    hang_up(c);
}

static void big_bodies(void **state)
{
    size_t size = HTTP_BODY_MAX;
    char *big = malloc(size + 16);
    struct http_stats stats;

    (void)state;
    start(NULL, false);
    memset(big, 'x', size + 16);
    struct client *c = dial_unix(); /* just fits */
    say(c, "POST /v1/vms HTTP/1.1\r\n" H J "Content-Length: 1048576\r\n\r\n");
    say_n(c, big, size);
    expect(c, "HTTP/1.1 200 OK");
    hang_up(c);
    c = dial_unix(); /* one byte more: the whole body can be written before the answer is read */
    say(c, "POST /v1/vms HTTP/1.1\r\n" H J "Content-Length: 1048577\r\n\r\n");
    say_n(c, big, size + 1);
    expect(c, "HTTP/1.1 413");
    hang_up(c);
    c = dial_unix(); /* the same, chunked */
    say(c, "POST /v1/vms HTTP/1.1\r\n" H J "Transfer-Encoding: chunked\r\n\r\n100001\r\n");
    say_n(c, big, size + 1);
    say(c, "\r\n0\r\n\r\n");
    expect(c, "HTTP/1.1 413");
    expect(c, "api::body_too_large");
    UNTIL(c, c->eof);
    hang_up(c);
    free(big);
    http_server_stats(f.server, &stats);
    assert_int_equal(stats.responses[4], 2);
    assert_int_equal(stats.refused, 2);
    assert_int_equal(stats.requests, 3);
}

static void malformed(void **state)
{
    static const char *const requests[] = {
        "POST /v1/vms HTTP/1.1\r\n" H J "Content-Length: 2\r\nContent-Length: 2\r\n\r\n{}",
        "POST /v1/vms HTTP/1.1\r\n" H J "Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}",
        "POST /v1/vms HTTP/1.1\r\n" H J "Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "POST /v1/vms HTTP/1.1\r\n" H J "Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        "POST /v1/vms HTTP/1.1\r\n" H J "Transfer-Encoding: identity\r\n\r\n",
        "POST /v1/vms HTTP/1.1\r\n" H J "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "POST /v1/vms HTTP/1.1\r\n" H J "Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
        "POST /v1/vms HTTP/1.1\r\n" H J "Transfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n", /* folded lines */
        "POST /v1/vms HTTP/1.1\r\n" H J "content-length: 0\r\n\t2\r\n\r\n{}",
        "POST /v1/vms HTTP/1.0\r\n" J "Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "GET /v1/vms/a%00b HTTP/1.1\r\n" H "\r\n",
        "GET /v1/vms/a?q=%00 HTTP/1.1\r\n" H "\r\n",
        "GET /v1/vms/a%2 HTTP/1.1\r\n" H "\r\n",
        "GET /v1/vms/a%zz HTTP/1.1\r\n" H "\r\n",
        "GET /v1/vms/a?q=% HTTP/1.1\r\n" H "\r\n",
        "GET /v1/vms/%ff HTTP/1.1\r\n" H "\r\n",
        "GET /v1/vms/a?q=%c3 HTTP/1.1\r\n" H "\r\n",
        "GET http://vmmd/v1/hello HTTP/1.1\r\n" H "\r\n",
        "OPTIONS * HTTP/1.1\r\n" H "\r\n",
        "GET /v1/hello HTTP/1.1\r\n" H H "\r\n",
        "GET /v1/hello HTTP/1.1\r\n" H "Na(me: x\r\n\r\n",
        "GET /v1/hello HTTP/1.1\r\n" H "X: a\x01\r\n\r\n",
    };

    (void)state;
    start(NULL, false);
    for (size_t i = 0; i < ARRAY_SIZE(requests); i++)
        ask_closed(requests[i], "400", "vm_manager::api::bad_request");
    assert_int_equal(f.handled, 0);
    /* libmicrohttpd's own refusals keep their page; a second request behind them is never served. */
    struct client *c = dial_unix();
    say(c, "GET /v1/hello HTTP/1.1\r\n\r\nGET /v1/hello HTTP/1.1\r\n" H "\r\n");
    UNTIL(c, c->eof);
    assert_non_null(strstr(c->in, "HTTP/1.1 400"));
    hang_up(c);
    assert_int_equal(f.handled, 0);
}

static void keep_alive_and_pipeline(void **state)
{
    struct client *c;

    (void)state;
    start(NULL, false);
    c = dial_unix();
    say(c, "GET /v1/hello HTTP/1.1\r\n" H "\r\nGET /v1/nope HTTP/1.1\r\n" H "\r\nPOST /v1/vms HTTP/1.1\r\n" H J
           "Content-Length: 3\r\n\r\none"
           "HEAD /v1/hello HTTP/1.1\r\n" H "\r\n"
           "GET /v1/vms/last HTTP/1.1\r\n" H "\r\n");
    expect(c, "[last]");
    const char *at = c->in;
    assert_non_null(at = strstr(at, "HTTP/1.1 200 OK"));
    assert_non_null(at = strstr(at + 1, "HTTP/1.1 404"));
    assert_non_null(at = strstr(at + 1, "\r\n\r\none"));
    assert_non_null(at = strstr(at + 1, "HTTP/1.1 200 OK"));
    assert_non_null(at = strstr(at, "\r\n\r\nHTTP/1.1 201")); /* the HEAD had no body */
    say(c, "GET /v1/hello HTTP/1.1\r\n" H "Connection: close\r\n\r\n");
    UNTIL(c, c->eof);
    assert_null(strstr(c->in, "Server:"));
    hang_up(c);
}

static void deadlines(void **state)
{
    struct client *c;
    int64_t began;

    (void)state;
    f.config.header_timeout_ms = 150;
    f.config.body_timeout_ms = 150;
    f.config.idle_timeout_ms = 300;
    start(NULL, false);
    c = dial_unix(); /* a drip that never ends */
    began = clock_mono_ms();
    while (!c->eof && clock_mono_ms() - began < PATIENCE_MS) {
        send(c->fd, "G", 1, MSG_NOSIGNAL | MSG_DONTWAIT);
        turns(20);
        take(c);
    }
    assert_true(c->eof);
    assert_in_range(clock_mono_ms() - began, 140, 1500);
    hang_up(c);
    c = dial_unix(); /* half a body */
    say(c, "POST /v1/vms HTTP/1.1\r\n" H J "Content-Length: 10\r\n\r\nabc");
    UNTIL(c, c->eof);
    assert_int_equal(c->len, 0);
    hang_up(c);
    c = dial_unix(); /* idle after a request */
    say(c, "GET /v1/hello HTTP/1.1\r\n" H "\r\n");
    expect(c, "hello");
    began = clock_mono_ms();
    UNTIL(c, c->eof);
    assert_in_range(clock_mono_ms() - began, 200, 2000);
    hang_up(c);
    c = dial_unix(); /* a parked request has no deadline of ours */
    say(c, "GET /v1/park HTTP/1.1\r\n" H "\r\n");
    UNTIL(c, f.parked != NULL);
    began = clock_mono_ms();
    UNTIL(c, clock_mono_ms() - began > 600);
    assert_false(c->eof);
    http_reply_json(f.parked, 200, "\"late\"");
    expect(c, "\"late\"");
    hang_up(c);
}

static void parked(void **state)
{
    struct client *c;
    struct http_stats stats;

    (void)state;
    f.config.max_waits = 1;
    start(NULL, false);
    c = dial_unix();
    say(c, "GET /v1/park HTTP/1.1\r\n" H "\r\nGET /v1/hello HTTP/1.1\r\n" H "\r\n");
    UNTIL(c, f.parked != NULL);
    turns(10);
    http_server_stats(f.server, &stats);
    assert_int_equal(stats.parked, 1);
    struct http_request *first = f.parked; /* a second one is over the limit */
    ask(false, "GET /v1/park HTTP/1.1\r\n" H "\r\n", "503", "Retry-After: 1\r\n");
    assert_int_equal(f.gone, 0);
    ask(false, "GET /v1/vms/a HTTP/1.1\r\n" H "Prefer: wait=5\r\n\r\n", "201", "[0]"); /* nobody waits at the limit */
    f.parked = NULL;
    http_reply_json(first, 200, "\"late\"");
    expect(c, "\"late\"");
    expect(c, "hello"); /* the pipelined one */
    hang_up(c);
    turns(5);
    c = dial_unix(); /* the client leaves: gone, once */
    say(c, "GET /v1/park HTTP/1.1\r\n" H "\r\n");
    UNTIL(c, f.parked != NULL);
    hang_up(c);
    UNTIL(NOBODY, f.gone == 1);
    turns(10);
    assert_int_equal(f.gone, 1);
    http_server_stats(f.server, &stats);
    assert_int_equal(stats.parked, 0);
    assert_int_equal(stats.waits, 0);
    assert_int_equal(stats.connections, 0);
    c = dial_unix(); /* the client leaves a request whose handler wants no word: it stays until answered */
    say(c, "GET /v1/slow HTTP/1.1\r\n" H "\r\n");
    UNTIL(c, f.parked != NULL);
    hang_up(c);
    turns(10);
    assert_non_null(f.parked);
    http_reply_json(f.parked, 200, "1");
    turns(10);
    http_server_stats(f.server, &stats);
    assert_int_equal(stats.connections, 0);
}

static void streams(void **state)
{
    static char block[100000];
    struct http_stats stats;
    struct client *c;

    (void)state;
    f.config.max_streams = 2; /* one is for the Unix socket */
    start(NULL, true);
    memset(block, 's', sizeof(block));
    c = dial_tcp();
    say(c, "GET /v1/stream HTTP/1.1\r\nHost: localhost\r\n\r\n");
    expect(c, "text/event-stream"); /* the head comes before any data */
    ask(true, "GET /v1/stream HTTP/1.1\r\nHost: localhost\r\n\r\n", "503", "\"config_key\":\"max_streams\"");
    UNTIL(c, false || f.server->stats.streams == 1);
    f.stream = NULL;
    hang_up(c);
    UNTIL(NOBODY, f.stream_gone == 1);
    UNTIL(NOBODY, f.server->stats.streams == 0);
    c = dial_unix();
    say(c, "GET /v1/stream HTTP/1.1\r\n" H "\r\n");
    UNTIL(c, f.stream != NULL);
    struct http_stream *s = f.stream;
    assert_int_equal(http_stream_write(s, "data: one\n\n", 11), 0);
    expect(c, "data: one\n\n");
    turns(5);
    assert_int_equal(http_stream_write(s, "data: two\n\n", 11), 0);
    expect(c, "data: two\n\n");
    UNTIL(c, f.stream_drained == 2);
    assert_int_equal(http_stream_write(s, block, sizeof(block)), 0);
    http_stream_end(s); /* the rest is sent, then the last chunk */
    UNTIL(c, c->len > sizeof(block) && strstr(c->in, "\r\n0\r\n\r\n") != NULL);
    say(c, "GET /v1/hello HTTP/1.1\r\n" H "\r\n"); /* and the connection lives on */
    expect(c, "hello");
    hang_up(c);
    turns(5);
    assert_int_equal(f.stream_gone, 1);
    c = dial_unix(); /* a client that does not read is dropped */
    say(c, "GET /v1/stream HTTP/1.1\r\n" H "\r\n");
    f.stream = NULL;
    UNTIL(NOBODY, f.stream != NULL);
    int rc = 0, n = 0;
    for (; rc == 0 && n < 100; n++) {
        rc = http_stream_write(f.stream, block, sizeof(block));
        turns(2);
        if (f.stream == NULL)
            break;
    }
    assert_int_equal(rc, -1);
    assert_true(n >= 9);
    UNTIL(NOBODY, f.stream_gone == 2);
    UNTIL(NOBODY, f.server->stats.connections == 0);
    hang_up(c);
    http_server_stats(f.server, &stats);
    assert_int_equal(stats.streams, 0);
    c = dial_unix(); /* HEAD of a stream has no body: the stream is gone at once */
    say(c, "HEAD /v1/stream HTTP/1.1\r\n" H "\r\n");
    UNTIL(c, f.stream_gone == 3);
    hang_up(c);
    c = dial_unix(); /* one is left open for http_server_free */
    say(c, "GET /v1/stream HTTP/1.1\r\n" H "\r\n");
    UNTIL(c, f.stream != NULL);
    expect(c, "chunked");
    http_server_free(f.server);
    f.server = NULL;
    assert_int_equal(f.stream_gone, 4);
    hang_up(c);
}

/* A masked frame. */
static void frame(struct client *c, int first, const void *data, size_t len)
{
    static char out[WS_MESSAGE_MAX + 100];
    uint8_t head[WS_HEAD_MAX];
    size_t n = ws_frame_head((enum ws_opcode)(first & 15), len, head);

    head[0] = (uint8_t)first;
    head[1] |= 0x80;
    memcpy(out, head, n);
    memcpy(out + n, "\1\2\3\4", 4);
    for (size_t i = 0; i < len; i++)
        out[n + 4 + i] = (char)(((const char *)data)[i] ^ "\1\2\3\4"[i & 3]);
    say_n(c, out, n + 4 + len);
}

static struct client *ws_open(void)
{
    struct client *c = dial_unix();

    say(c, "GET /v1/ws HTTP/1.1\r\n" H "Upgrade: WebSocket\r\nConnection: keep-alive, Upgrade\r\n"
           "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n");
    expect(c, "Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n");
    expect(c, "HTTP/1.1 101");
    c->len = 0;
    c->in[0] = '\0';
    return c;
}

static void websocket_handshakes_refused(void **state)
{
    (void)state;
    start(NULL, false);
    ask(false, "GET /v1/ws HTTP/1.1\r\n" H "\r\n", "400", "Upgrade: websocket");
    ask(false,
        "GET /v1/ws HTTP/1.1\r\n" H "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 8\r\n"
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
        "400", "Sec-WebSocket-Version: 13\r\n");
    ask(false,
        "GET /v1/ws HTTP/1.1\r\n" H "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
        "Sec-WebSocket-Key: short\r\n\r\n",
        "400", "Sec-WebSocket-Key");
}

static void websocket_frames(void **state)
{
    static char big[WS_MESSAGE_MAX];
    struct client *c;

    (void)state;
    start(NULL, false);
    c = ws_open();
    frame(c, 0x82, "hello", 5);
    UNTIL(c, c->len == 7);
    assert_memory_equal(c->in, "\x82\x05hello", 7);
    c->len = 0;
    frame(c, 0x02, "ab", 2); /* fragments, a ping between */
    frame(c, 0x89, "p", 1);
    frame(c, 0x80, "cd", 2);
    UNTIL(c, c->len == 9);
    assert_memory_equal(c->in,
                        "\x8a\x01p\x82\x04"
                        "abcd",
                        9);
    c->len = 0;
    memset(big, 'b', sizeof(big));
    frame(c, 0x82, big, sizeof(big));
    UNTIL(c, c->len == sizeof(big) + 10);
    UNTIL(c, f.ws_drained > 0);
    c->len = 0;
    http_ws_pause(f.ws, true); /* nothing is taken while paused */
    turns(5);
    f.ws_got = 0;
    frame(c, 0x82, "x", 1);
    turns(20);
    assert_int_equal(f.ws_got, 0);
    http_ws_pause(f.ws, false);
    UNTIL(c, c->len == 3);
    c->len = 0;
    frame(c, 0x88, "\x03\xe8", 2); /* the client closes */
    UNTIL(c, c->eof);
    assert_memory_equal(c->in, "\x88\x02\x03\xe8", 4);
    UNTIL(NOBODY, f.ws_closed == 1);
    hang_up(c);
}

static void websocket_ends(void **state)
{
    static char big[WS_MESSAGE_MAX];
    struct client *c;

    (void)state;
    start(NULL, false);
    c = ws_open(); /* the owner closes */
    frame(c, 0x82, "bye!", 4);
    UNTIL(c, c->len >= 12);
    assert_memory_equal(c->in,
                        "\x88\x0a\x03\xe8"
                        "as asked",
                        12);
    frame(c, 0x88, "\x03\xe8", 2);
    UNTIL(c, c->eof);
    hang_up(c);
    assert_int_equal(f.ws_closed, 0);
    c = ws_open(); /* unmasked: 1002 */
    say_n(c, "\x82\x01x", 3);
    UNTIL(c, c->len >= 4);
    assert_memory_equal(c->in, "\x88\x02\x03\xea", 4);
    hang_up(c);
    UNTIL(NOBODY, f.ws_closed == 1);
    c = ws_open(); /* too big: 1009; a client that stays is cut after a while */
    say_n(c, "\x82\xff\0\0\0\0\0\1\0\1\0\0\0\0", 14);
    UNTIL(c, c->len >= 4);
    assert_memory_equal(c->in, "\x88\x02\x03\xf1", 4);
    UNTIL(c, c->eof);
    hang_up(c);
    UNTIL(NOBODY, f.ws_closed == 2);
    c = ws_open(); /* a client that does not read: the sender is told */
    int rc = 0;
    for (int i = 0; i < 100 && rc == 0; i++) {
        rc = http_ws_send(f.ws, big, 50000);
        turns(2);
    }
    assert_int_equal(rc, -1);
    assert_true(http_ws_pending(f.ws) <= 200000);
    hang_up(c);
    UNTIL(NOBODY, f.ws_closed == 3);
    UNTIL(NOBODY, f.server->stats.streams == 0);
    c = ws_open(); /* left for http_server_free */
    http_server_free(f.server);
    f.server = NULL;
    assert_int_equal(f.ws_closed, 4);
    hang_up(c);
}

static void tcp_rules(void **state)
{
    char request[300];

    (void)state;
    start("s3cret", true);
    ask(true, "GET /v1/hello HTTP/1.1\r\nHost: 127.0.0.1:80\r\n\r\n", "401", "WWW-Authenticate: Bearer\r\n");
    ask(true, "GET /v1/hello HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer s3creT\r\n\r\n", "401",
        "api::unauthorized");
    ask(true, "GET /v1/hello HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Basic s3cret\r\n\r\n", "401",
        "api::unauthorized");
#define T "Authorization: Bearer s3cret\r\n"
    ask(true, "GET /v1/hello HTTP/1.1\r\nHost: 127.0.0.1:8080\r\n" T "\r\n", "200", "hello");
    ask(true, "GET /v1/hello HTTP/1.1\r\nHost: LOCALHOST\r\n" T "\r\n", "200", "hello");
    ask(true, "GET /v1/hello HTTP/1.1\r\nHost: [::1]:80\r\n" T "\r\n", "200", "hello");
    ask(true, "GET /v1/hello HTTP/1.1\r\nHost: evil.example\r\n" T "\r\n", "403", "api::forbidden");
    ask(true, "GET /v1/hello HTTP/1.1\r\nHost: 127.0.0.1.evil.example\r\n" T "\r\n", "403", "api::forbidden");
    ask(true, "GET /v1/hello HTTP/1.1\r\nHost: 10.0.0.1\r\n" T "\r\n", "403", "api::forbidden");
    ask(true, "GET /v1/hello HTTP/1.1\r\nHost: 127.0.0.1:99999\r\n" T "\r\n", "403", "api::forbidden");
    ask(true, "GET /v1/hello HTTP/1.1\r\nHost: 127.0.0.1\r\nOrigin: http://127.0.0.1\r\n" T "\r\n", "200", "hello");
    ask(true, "GET /v1/hello HTTP/1.1\r\nHost: 127.0.0.1\r\nOrigin: http://evil.example\r\n" T "\r\n", "403", "Origin");
    ask(true, "GET /v1/hello HTTP/1.1\r\nHost: 127.0.0.1\r\nOrigin: null\r\n" T "\r\n", "403", "Origin");
    ask(true, "GET /v1/hello HTTP/1.1\r\nHost: localhost\r\nSec-Fetch-Site: cross-site\r\n" T "\r\n", "403", "foreign");
    snprintf(request, sizeof(request), "GET /v1/hello HTTP/1.1\r\n" H "X-Request-Id: %0100d\r\n\r\n", 1);
    ask(false, request, "200", "X-Request-Id: "); /* the Unix socket asks for none of this */
    assert_int_equal(f.handled, 5);
}

static int try_start(struct http_config *config, enum error_code *ret_code, char *text, size_t size)
{
    struct error err = ERROR_INIT;
    struct http_server *server = http_server_new(f.loop, config, routes, NULL, &err);

    *ret_code = err.code;
    snprintf(text, size, "%s", err.message);
    error_done(&err);
    http_server_free(server);
    return server != NULL ? 0 : -1;
}

static void listening(void **state)
{
    static const char *const any[] = {"0.0.0.0:0", NULL}, *const loopback[] = {"127.0.0.1:0", NULL},
                             *const bad[] = {"localhost:1", NULL};
    struct http_config config;
    enum error_code code;
    char text[ERROR_MESSAGE_MAX];
    struct stat st;

    (void)state;
    start(NULL, false);
    assert_int_equal(stat(f.path, &st), 0);
    assert_int_equal(st.st_mode & 0777, 0600);
    http_config_defaults(&config);
    config.socket_path = f.path; /* held by the live server */
    assert_int_equal(try_start(&config, &code, text, sizeof(text)), -1);
    assert_int_equal(code, ERR_IO);
    assert_non_null(strstr(text, "another process serves"));
    ask(false, "GET /v1/hello HTTP/1.1\r\n" H "\r\n", "200", "hello"); /* unharmed */
    config.socket_path = NULL;
    config.listen = loopback;
    assert_int_equal(try_start(&config, &code, text, sizeof(text)), -1);
    assert_int_equal(code, ERR_API_FORBIDDEN);
    config.no_auth = true;
    assert_int_equal(try_start(&config, &code, text, sizeof(text)), 0);
    config.listen = any;
    assert_int_equal(try_start(&config, &code, text, sizeof(text)), -1);
    assert_int_equal(code, ERR_API_FORBIDDEN);
    config.listen = bad;
    assert_int_equal(try_start(&config, &code, text, sizeof(text)), -1);
    assert_int_equal(code, ERR_IO);
    http_server_free(f.server); /* a stale socket is replaced */
    f.server = NULL;
    struct sockaddr_un addr = {.sun_family = AF_UNIX};
    strcpy(addr.sun_path, f.path);
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    assert_int_equal(bind(fd, (struct sockaddr *)&addr, sizeof(addr)), 0);
    close(fd);
    start(NULL, false);
    ask(false, "GET /v1/hello HTTP/1.1\r\n" H "\r\n", "200", "hello");
    for (struct http_listener *l = f.server->listeners; l != NULL; l = l->next) {
        struct http_conn fake = {.listener = l, .allowed = false};
        struct error err = ERROR_INIT;

        assert_int_equal(http_auth(&fake, &err), -1);
        assert_int_equal(err.code, ERR_API_FORBIDDEN);
        error_done(&err);
    }
}

/* Runs `body` in a child while the loop turns; its exit status. */
static int in_child(void (*body)(void))
{
    int64_t end = clock_mono_ms() + PATIENCE_MS;
    pid_t pid = fork();
    int status = -1;

    assert_true(pid >= 0);
    if (pid == 0) {
        body();
        _exit(9);
    }
    while (waitpid(pid, &status, WNOHANG) == 0 && clock_mono_ms() < end)
        turn();
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

/* 0: served, 1: forbidden. */
static void ask_and_exit(void)
{
    struct sockaddr_un addr = {.sun_family = AF_UNIX};
    char text[4096];
    size_t len = 0;
    ssize_t n;
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);

    strcpy(addr.sun_path, f.path);
    if (connect(fd, (struct sockaddr *)&addr, sizeof(addr)) != 0 ||
        send(fd, "GET /v1/hello HTTP/1.0\r\n\r\n", 26, 0) != 26)
        _exit(8);
    while (len < sizeof(text) - 1 && (n = recv(fd, text + len, sizeof(text) - 1 - len, 0)) > 0)
        len += (size_t)n;
    text[len] = '\0';
    _exit(strstr(text, " 200 OK") != NULL                                         ? 0
          : strstr(text, "403") != NULL && strstr(text, "api::forbidden") != NULL ? 1
                                                                                  : 7);
}

static gid_t supplementary;

static void as_stranger(void)
{
    if (setgroups(supplementary != 0, &supplementary) != 0 || setgid(65534) != 0 || setuid(65534) != 0)
        _exit(6);
    ask_and_exit();
}

static void peers(void **state)
{
    (void)state;
    if (geteuid() != 0)
        skip();
    start(NULL, false);
    assert_int_equal(chmod(f.dir, 0755), 0);
    assert_int_equal(chmod(f.path, 0777), 0); /* the file's mode is not what decides */
    assert_int_equal(in_child(ask_and_exit), 0);
    supplementary = 0;
    assert_int_equal(in_child(as_stranger), 1);
    f.server->listeners->gid = 4242;
    assert_int_equal(in_child(as_stranger), 1);
    supplementary = 4242;
    assert_int_equal(in_child(as_stranger), 0);
    f.server->listeners->gid = 65534; /* its primary group */
    supplementary = 0;
    assert_int_equal(in_child(as_stranger), 0);
}

static struct loop *volatile parents_loop;

/* Serves on a socket passed as fd 3, as systemd does; runs in a child, whose descriptors are its own. */
static void serve_passed(void)
{
    struct sockaddr_un addr = {.sun_family = AF_UNIX};
    struct error err = ERROR_INIT;
    char pid[16];
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);

    strcpy(addr.sun_path, f.path);
    if (bind(fd, (struct sockaddr *)&addr, sizeof(addr)) != 0 || listen(fd, 5) != 0 || dup2(fd, 100) != 100)
        _exit(2);
    for (int i = 3; i < 100; i++)
        close(i);
    dup2(100, 3);
    close(100);
    snprintf(pid, sizeof(pid), "%d", (int)getpid());
    setenv("LISTEN_PID", pid, 1);
    setenv("LISTEN_FDS", "1", 1);
    parents_loop = f.loop; /* its descriptors are closed here: left alone */
    f.loop = loop_new(&err);
    f.config.socket_path = "/nonexistent/s"; /* not used */
    f.server = http_server_new(f.loop, &f.config, routes, NULL, &err);
    if (f.server == NULL || f.server->listeners->fd != 3 || getenv("LISTEN_FDS") != NULL)
        _exit(3);
    ask(false, "GET /v1/hello HTTP/1.1\r\n" H "\r\n", "200", "hello");
    http_server_free(f.server);
    _exit(access(f.path, F_OK) == 0 && loop_free(f.loop) == 0 ? 0 : 4); /* the file is systemd's: it stays */
}

static void passed_sockets(void **state)
{
    (void)state;
    assert_int_equal(in_child(serve_passed), 0);
    assert_int_equal(unlink(f.path), 0);
}

static void on_drained(void *arg)
{
    (void)arg;
    f.drained++;
}

static void drain(void **state)
{
    struct client *wait, *slow, *idle, *stream, *ws;

    (void)state;
    start(NULL, false);
    wait = dial_unix();
    say(wait, "GET /v1/park HTTP/1.1\r\n" H "\r\n");
    UNTIL(wait, f.parked != NULL);
    f.parked = NULL;
    slow = dial_unix();
    say(slow, "GET /v1/slow HTTP/1.1\r\n" H "\r\n");
    UNTIL(slow, f.parked != NULL);
    idle = dial_unix();
    say(idle, "GET /v1/hello HTTP/1.1\r\n" H "\r\n");
    expect(idle, "hello");
    stream = dial_unix();
    say(stream, "GET /v1/stream HTTP/1.1\r\n" H "\r\n");
    expect(stream, "chunked");
    http_stream_write(f.stream, "last words", 10);
    ws = ws_open();
    struct http_request *late = f.parked;
    http_server_drain(f.server, 4000, on_drained, NULL);
    expect(wait, "HTTP/1.1 503");
    expect(wait, "daemon::shutting_down");
    assert_int_equal(f.gone, 1);
    UNTIL(idle, idle->eof);
    expect(stream, "last words");
    UNTIL(stream, stream->eof);
    assert_int_equal(f.stream_gone, 1);
    UNTIL(ws, ws->len >= 4);
    assert_memory_equal(ws->in + 2, "\x03\xe9", 2);
    UNTIL(NOBODY, f.ws_closed == 1);
    frame(ws, 0x88, "\x03\xe9", 2);
    assert_int_not_equal(access(f.path, F_OK), 0);
    turns(10);
    assert_int_equal(f.drained, 0);
    http_reply_json(late, 200, "\"late\""); /* in flight until answered */
    expect(slow, "\"late\"");
    UNTIL(slow, slow->eof);
    UNTIL(NOBODY, f.drained == 1);
    hang_up(wait);
    hang_up(slow);
    hang_up(idle);
    hang_up(stream);
    hang_up(ws);
}

static void drain_grace(void **state)
{
    struct client *c;

    (void)state;
    start(NULL, false);
    c = dial_unix();
    say(c, "GET /v1/slow HTTP/1.1\r\n" H "\r\n");
    UNTIL(c, f.parked != NULL);
    http_server_drain(f.server, 100, on_drained, NULL);
    UNTIL(c, f.drained == 1);
    turns(300);
    assert_int_equal(f.drained, 1);
    hang_up(c);
}

/* Every allocation of ours fails once: the client gets an answer or a closed connection, never silence. */
static void memory_short(void **state)
{
    static const char *const requests[] = {
        "GET /v1/vms/web?q=1 HTTP/1.1\r\n" H "\r\n",
        "POST /v1/vms HTTP/1.1\r\n" H J "Content-Length: 2\r\n\r\n{}",
        "GET /v1/nope HTTP/1.1\r\n" H "\r\n",
        "GET /v1/stream HTTP/1.1\r\n" H "\r\n",
        "GET /v1/ws HTTP/1.1\r\n" H "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
    };

    (void)state;
    start(NULL, false);
    for (size_t i = 0; i < ARRAY_SIZE(requests); i++) {
        for (size_t nth = 1;; nth++) {
            struct client *c = dial_unix();

            say(c, requests[i]);
            mem_fail_nth(nth);
            UNTIL(c, c->eof || answer_end(c->in) != NULL);
            turns(3);
            mem_fail_nth(0);
            hang_up(c);
            UNTIL(NOBODY, f.server->stats.connections == 0);
            turns(2);
            if (nth == 12)
                break;
        }
    }
    ask(false, "GET /v1/hello HTTP/1.1\r\n" H "\r\n", "200", "hello");
    assert_int_equal(f.server->stats.streams, 0);
}

int main(void)
{
    log_init(LOG_LEVEL_ERROR, false);
#define T1(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
    const struct CMUnitTest tests[] = {
        T1(routing),
        T1(bodies),
        T1(big_bodies),
        T1(malformed),
        T1(keep_alive_and_pipeline),
        T1(deadlines),
        T1(parked),
        T1(streams),
        T1(websocket_handshakes_refused),
        T1(websocket_frames),
        T1(websocket_ends),
        T1(tcp_rules),
        T1(listening),
        T1(peers),
        T1(passed_sockets),
        T1(drain),
        T1(drain_grace),
        T1(memory_short),
    };

    return cmocka_run_group_tests_name("http", tests, NULL, NULL);
}
