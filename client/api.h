/* api.h - requests to vmmd: over its Unix socket, or over TCP with a token. Blocking, but Ctrl+C ends every call. */
#ifndef VMCTL_API_H
#define VMCTL_API_H

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/buf.h"
#include "cli.h"

enum api_result {
    API_DONE,        /* there is an answer, whatever its status */
    API_STOPPED,     /* the sink asked to stop */
    API_UNREACHABLE, /* no connection */
    API_LOST,        /* the connection ended, or fell silent, before the answer was whole */
    API_INTERRUPTED, /* Ctrl+C */
};

struct api_request {
    const char *method; /* "GET" when NULL */
    const char *path;   /* "/v1/…" with its query */
    const json_t *body;
    const char *accept; /* NULL: by what the call is */
    const char *idempotency_key;
    int wait_s;              /* Prefer: wait, when > 0 */
    int hold_s;              /* how long the daemon may hold the answer for another reason (timeout=) */
    bool stream;             /* an answer without end: no timeout */
    int heartbeat_s;         /* a stream that is silent so long is lost; 0: never */
    long long last_event_id; /* Last-Event-ID, when > 0 */
    const char *file_mode;   /* X-File-Mode; NULL: none */
    const int *upload_fd;    /* the body is what this gives, to its end */
    int64_t upload_size;     /* bytes of it, -1: not known */
    void (*sent)(void *arg, long long done, long long total); /* how much of it was sent; may be NULL */
    /* Takes the body of a 2xx answer as it comes; returns false to stop. NULL: the body is kept in the response. */
    bool (*sink)(void *arg, const char *bytes, size_t size);
    void *arg;
};

struct api_response {
    long status;
    json_t *json; /* the body, if it is JSON */
    struct buf body;
    long long next_offset; /* X-Next-Offset, -1 when there was none */
    char file_mode[8];     /* X-File-Mode, "" when there was none */
};

/* The connection to the daemon of `cli`, which must outlive it; nothing is sent yet. Never NULL. */
struct api *api_new(const struct cli *cli);
void api_free(struct api *api);

/* Sends a request and reads the answer. `res` is filled in any case and given to api_response_done. */
enum api_result api_call(struct api *api, const struct api_request *req, struct api_response *res);
void api_response_done(struct api_response *res);

/* Whether the answer is 2xx. */
bool api_ok(const struct api_response *res);

/* The problem of a call that brought no 2xx answer; the caller owns it. NULL for API_INTERRUPTED and API_STOPPED. */
json_t *api_problem(const struct api *api, enum api_result result, const struct api_response *res);

/* GETs a document. Returns it, which the caller owns, or NULL after the problem was shown, *ret_exit being the exit
 * code. */
json_t *api_get(const struct cli *cli, const char *path, int *ret_exit);

/* Shows the problem of a call that went wrong; returns its exit code. */
int api_fail(const struct cli *cli, enum api_result result, const struct api_response *res);

/* "/v1/vms/NAME" + suffix, the name encoded; the caller owns it. */
char *api_vm_path(const char *name, const char *suffix);

/* Patience with a daemon that went away in the middle of a wait: up to 30 s, said on stderr. */
struct patience {
    int64_t until; /* 0: the daemon is there */
};

/* Whether the call's outcome means that the daemon is going or gone. */
bool api_gone(enum api_result result, const struct api_response *res);

/* After such a call: sleeps a little and returns true, or false when patience is at its end or Ctrl+C came. `what` says
 * what is waited for. */
bool patience_wait(struct patience *p, const char *what);

/* After any other call. */
void patience_reset(struct patience *p);

#endif
