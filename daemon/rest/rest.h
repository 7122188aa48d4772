/* rest.h - the resources: each file parses a request, calls core once, and renders the answer.  Loop thread. */
#ifndef REST_REST_H
#define REST_REST_H

#include <jansson.h>

#include "base/buf.h"
#include "core/core.h"
#include "http/http.h"

/* What the handlers need; the routes' argument. */
struct rest {
    struct core *core;
    struct loop *loop;
    struct http_server *server; /* set once it serves */
    const char *data_dir;
    unsigned max_connections, max_waits, max_streams, rate_limit, rate_burst;
    int64_t started_at;
};

extern const struct http_route rest_routes[];

/* --- request.c --- */

/* The body as JSON; an empty one is {}.  ERR_API_INVALID_JSON with line and column. */
json_t *rest_body(struct http_request *req, struct error *err);
/* A query value as a number; a missing one leaves *ret.  ERR_API_INVALID_FIELD. */
int rest_query_int(struct http_request *req, const char *name, int64_t min, int64_t max, int64_t *ret,
                   struct error *err);
/* Fills in who asks; `peer` must live as long as ret.  The fingerprint goes into `buffer`; `body` may be NULL.  ERR_API_INVALID_FIELD for a bad key. */
enum { REST_FINGERPRINT_MAX = 128 };
int rest_core_request(struct http_request *req, const json_t *body, struct core_request *ret, struct core_peer *peer,
                      char buffer[REST_FINGERPRINT_MAX], struct error *err);
/* A change by POST or DELETE: parsed, one call of core, answered by its operation. */
typedef int rest_change_fn(struct core *core, const struct core_request *req, const char *ref, const json_t *body,
                           struct operation **ret, struct error *err);
void rest_change(struct http_request *req, struct rest *rest, rest_change_fn *fn);
/* Replies with the error, frees it. */
void rest_refuse(struct http_request *req, struct error *err);

/* --- page.c --- */

struct rest_page {
    struct buf items; /* to be written to, between begin and end */
    char *from;       /* what the cursor says; "": the beginning */
    unsigned limit;
    int64_t as_of;
};
/* The query's limit and cursor; rest_page_done where it is 0.  ERR_API_INVALID_FIELD. */
int rest_page_begin(struct http_request *req, struct rest *rest, struct rest_page *ret, struct error *err);
/* Replies: the next page comes behind `last` (NULL: there is none); or with err, where that is set. */
void rest_page_end(struct http_request *req, struct rest_page *page, const char *last, struct error *err);
void rest_page_done(struct rest_page *page);

/* --- operations.c --- */

/* Answers a change: 202 when durable, or held by Prefer: wait.  `done_status` answers an operation that ended before it was
 * told of (200 for a destroy without effect); 0: by the rules. */
void rest_answer_operation(struct rest *rest, struct http_request *req, struct operation *op, bool replayed,
                           int done_status);
/* Looks the request's idempotency key up: 1 when the request was answered by an earlier operation, -1 with err, 0 go on. */
int rest_answer_replay(struct rest *rest, struct http_request *req, const struct core_request *creq, struct error *err);

http_handler rest_vms_list, rest_vm_create, rest_vm_get, rest_vm_patch, rest_vm_destroy;
http_handler rest_vm_start, rest_vm_stop, rest_vm_kill, rest_vm_restart, rest_vm_reset, rest_vm_suspend, rest_vm_resume,
    rest_vm_provision;
http_handler rest_vm_wait, rest_vm_explain, rest_vm_log_console, rest_vm_log_vmm, rest_vm_log_provision,
    rest_vm_console, rest_vm_vnc;
http_handler rest_images_list, rest_image_pull, rest_image_get, rest_image_delete, rest_image_convert,
    rest_images_prune, rest_image_upload;
http_handler rest_vm_ssh, rest_vm_exec;
http_handler rest_files_get, rest_files_put, rest_files_delete, rest_files_mkdir, rest_files_rename;
http_handler rest_operations_list, rest_operation_get, rest_operation_cancel, rest_events;
http_handler rest_leaks, rest_leaks_reap, rest_adopt;
http_handler rest_health, rest_version, rest_host, rest_errors, rest_error, rest_openapi, rest_metrics;

#endif
