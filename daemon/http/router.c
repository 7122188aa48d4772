/* router.c - the table of routes, its patterns cut once at start; a request is matched segment by segment.
 *
 * Where several patterns match, the one with the fewest parameters wins (/v1/vms/batch before /v1/vms/{vm}).  A path
 * that matches under another method is 405 with Allow, one that matches nothing is 404. */
#include <stdio.h>
#include <string.h>

#include "base/mem.h"
#include "http/private.h"

static const struct {
    const char *name;
    enum http_method method;
} methods[] = {
    {"GET", HTTP_GET}, {"HEAD", HTTP_GET},    {"POST", HTTP_POST},
    {"PUT", HTTP_PUT}, {"PATCH", HTTP_PATCH}, {"DELETE", HTTP_DELETE},
};

static int cut(struct http_pattern *p, const struct http_route *route)
{
    p->route = route;
    p->mem = mem_strdup(route->pattern);
    if (p->mem == NULL)
        return -1;
    for (char *at = p->mem; at != NULL && *at == '/' && p->n_segments < HTTP_SEGMENTS_MAX;) {
        char *next = strchr(at + 1, '/');
        bool param = at[1] == '{';

        *at = '\0';
        p->n_params += param;
        p->segments[p->n_segments++] = param ? NULL : at + 1;
        at = next;
    }
    return 0;
}

int http_router_init(struct http_server *server, struct error *err)
{
    unsigned n = 0;

    while (server->routes[n].pattern != NULL && n < HTTP_ROUTES_MAX)
        n++;
    server->patterns = mem_zalloc((n + 1) * sizeof(*server->patterns));
    for (; server->patterns != NULL && server->n_patterns < n; server->n_patterns++)
        if (cut(&server->patterns[server->n_patterns], &server->routes[server->n_patterns]) != 0)
            break;
    if (server->patterns == NULL || server->n_patterns < n)
        return error_set(err, ERR_HOST_INSUFFICIENT_MEMORY, "no memory for the table of routes");
    return 0;
}

void http_router_done(struct http_server *server)
{
    for (unsigned i = 0; i < server->n_patterns; i++)
        mem_free(server->patterns[i].mem);
    mem_free(server->patterns);
    server->patterns = NULL;
    server->n_patterns = 0;
}

static bool matches(const struct http_pattern *p, const struct http_target *t)
{
    if (p->n_segments != t->n_segments)
        return false;
    for (unsigned i = p->n_segments; i-- > 0;) { /* from the end: most begin alike */
        if (p->segments[i] == NULL ? t->segments[i][0] == '\0' : strcmp(p->segments[i], t->segments[i]) != 0)
            return false;
    }
    return true;
}

static void take_params(struct http_conn *conn, const struct http_pattern *p)
{
    unsigned n = 0;

    conn->route = p->route;
    for (unsigned i = 0; i < p->n_segments && n < HTTP_PARAMS_MAX; i++)
        if (p->segments[i] == NULL)
            conn->req.params[n++] = conn->target.segments[i];
}

static int refuse_method(struct http_conn *conn, const char *method, unsigned allow, struct error *err)
{
    char text[64] = "";
    int len = 0;

    for (size_t i = 0; i < ARRAY_SIZE(methods); i++)
        if ((allow & (unsigned)methods[i].method) != 0)
            len += snprintf(text + len, sizeof(text) - (size_t)len, "%s%s", len > 0 ? ", " : "", methods[i].name);
    http_add_header(&conn->req, "Allow", text);
    return error_set(err, ERR_API_METHOD_NOT_ALLOWED, "%.200s does not take %.20s; it takes %s", conn->target.path,
                     method, text);
}

int http_router_find(struct http_conn *conn, const char *method, struct error *err)
{
    const struct http_server *server = conn_server(conn);
    const struct http_pattern *found = NULL;
    unsigned fewest = HTTP_SEGMENTS_MAX + 1;
    unsigned allow = 0, wanted = 0;

    for (size_t i = 0; i < ARRAY_SIZE(methods); i++)
        if (strcmp(methods[i].name, method) == 0)
            wanted = (unsigned)methods[i].method;
    for (unsigned i = 0; i < server->n_patterns; i++) {
        const struct http_pattern *p = &server->patterns[i];

        if (p->n_params > fewest || !matches(p, &conn->target))
            continue;
        if (p->n_params < fewest) {
            fewest = p->n_params;
            found = NULL;
            allow = 0;
        }
        allow |= (unsigned)p->route->method;
        if ((unsigned)p->route->method == wanted)
            found = p;
    }
    if (allow == 0)
        return error_set(err, ERR_API_NOT_FOUND, "there is no route %.300s", conn->target.path);
    if (found == NULL)
        return refuse_method(conn, method, allow, err);
    conn->req.method = found->route->method;
    take_params(conn, found);
    return 0;
}
