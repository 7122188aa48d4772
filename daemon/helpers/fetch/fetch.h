/* fetch.h - what the parts of vmmd-fetch share.
 *
 *   source (http, oci, a file) ─► sink: counted, digested ─► unpacked ─► part file
 *
 * Whatever goes wrong is one line on stdout, and the end of the process: fail() does not return. */
#ifndef HELPERS_FETCH_H
#define HELPERS_FETCH_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/socket.h>

enum { PART_FD = 3, META_FD = 4, SOURCE_FD = 5, URL_MAX = 8192, SHA256_TEXT = 65, VALIDATOR_MAX = 512 };

/* What stdin said. */
struct job {
    const char *source; /* "http", "oci", "fd" */
    const char *url;
    const char *sha256; /* of the bytes as they are fetched, lower-case hex; NULL: not known */
    bool sha256_known;  /* by who asked; else it is the registry's word */
    uint64_t max_bytes; /* that the part file may have */
    int64_t length;     /* of what fd 5 gives, -1: not known */
    uint64_t reserve;   /* bytes of the disk that stay free */
    uint64_t promised;  /* and those that others were promised when it began */
    int64_t stall_s;    /* no progress for so long ends it */
    int64_t timeout_s;  /* over all */
    const char *boot_id;
    const json_t *allow;      /* addresses that may be image servers although they are this host's */
    const json_t *plain_http; /* registries that are asked without TLS */
    const char *auth_host, *auth_basic;
    const char *ca; /* certificates in PEM; NULL: the system's */
    size_t ca_len;
};

extern struct job job;

/* --- report.c --- */

/* Failures by kind: "download", "oci", "checksum", "full", "unsafe", "io". */
_Noreturn void fail(const char *kind, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
_Noreturn void fail_checksum(const char *expected, const char *actual);
/* The status and URL that the next failure is about. */
void fail_about(long status, const char *url);
/* At most a few a second. */
void report_progress(uint64_t done, int64_t total /* -1: not known */);
void report_done(uint64_t fetched, uint64_t written, uint64_t resumed, const char *sha256, const char *packing);

/* --- sink.c --- */

/* Begins at what the part file already has (0: empties it); the digest goes over that first. */
void sink_begin(uint64_t offset);
/* Says that so many bytes will come: fails when the disk has no room for them. */
void sink_expect(uint64_t bytes);
void sink_write(const void *data, size_t len);
/* The end of the source: flushes, waits for the digest, compares it. */
void sink_end(uint64_t resumed);
uint64_t sink_fetched(void);
bool sink_packed(void); /* it is being unpacked */

/* --- unpack.c --- */

enum packing { PACKING_UNKNOWN, PACKING_NONE, PACKING_GZIP, PACKING_XZ, PACKING_ZSTD };
const char *packing_text(enum packing packing);
enum packing packing_of(const uint8_t *head, size_t len);
void unpack_begin(enum packing packing);
/* Calls out() with what was packed in these bytes. */
void unpack(const uint8_t *data, size_t len, void (*out)(const uint8_t *data, size_t len));
void unpack_end(void); /* fails when the stream was cut short */

/* --- resume.c --- */

/* What a part file is of, kept beside it. */
struct part {
    uint64_t size;
    char etag[VALIDATOR_MAX], last_modified[VALIDATOR_MAX], digest[VALIDATOR_MAX];
    int64_t total; /* -1: not known */
};
/* Whether there is one to go on with. */
bool part_read(struct part *part);
void part_note(const struct part *part); /* all empty: it cannot be gone on with */
bool part_kept(void);                    /* at a failure: what was noted is worth keeping */

/* --- address.c --- */

/* The address of one connection; origin_outside: an earlier one of this fetch was not on loopback.  NULL: fine; else why
 * not. */
const char *address_refused(const struct sockaddr *addr, bool origin_outside);
bool address_is_loopback(const struct sockaddr *addr);
bool host_is_loopback(const char *host, size_t len); /* by its text: localhost, 127.0.0.1, [::1] */

/* --- http.c --- */

struct http_answer {
    long status;
    char etag[VALIDATOR_MAX], last_modified[VALIDATOR_MAX], challenge[2048], digest[VALIDATOR_MAX], url[URL_MAX];
    char *body; /* of a small one; the caller's */
    size_t body_len;
};

struct http_get {
    const char *url;
    const char *const *headers; /* NULL-terminated lines; not sent on to another host */
    const char *authorization;  /* a whole header line, likewise */
    const char *error_kind;     /* of failures: "download" or "oci" */
    bool to_sink;               /* else the body is kept, up to small_max */
    size_t small_max;
    const char *digest; /* content-addressed: gone on with without a validator */
};

void http_init(void);
/* Follows redirects.  Returns with a 2xx, or with any status when the body was to be kept. */
void http_get(const struct http_get *get, struct http_answer *answer);

/* --- oci.c --- */

void oci_pull(void);

#endif
