/* image.h - an image of the cache as data: its states, its one JSON codec, and what names and URLs may be. */
#ifndef MODEL_IMAGE_H
#define MODEL_IMAGE_H

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"
#include "base/uuid.h"

enum { IMAGE_NAME_MAX = 63, IMAGE_URL_MAX = 8000, IMAGE_SHA256_LEN = 64 };
#define IMAGE_NAME_EXPECTED "1–63 characters a–z, 0–9, -, . and _, beginning and ending with a letter or digit"
#define IMAGE_URL_EXPECTED "an URL: http, https, file (an absolute path) or oci, without credentials"
#define IMAGE_SHA256_EXPECTED "64 hexadecimal digits"

/*   pulling ──► ready ──► (gone)        A pull that fails leaves no image. */
enum image_state { IMAGE_PULLING, IMAGE_READY, IMAGE_STATE_MAX };
const char *image_state_text(enum image_state state);

/* Pointers owned, NULL when not known. */
struct image {
    struct uuid id;
    char *name;
    enum image_state state;
    char *url;           /* where it came from; NULL: uploaded, or converted */
    char *sha256;        /* of the bytes as they were fetched */
    bool verified;       /* it was known before the fetch; else it is what was found */
    char *format;        /* "qcow2" or "raw": of the file */
    char *source_format; /* as it came: "vmdk" */
    char *packing;       /* as it came: "xz" */
    char *path;          /* the file; NULL until it is there */
    int64_t size;        /* bytes of the file; allocated ones */
    int64_t virtual_size;
    int64_t created_at, updated_at; /* wall ms */
};

bool image_name_valid(const char *name);
bool image_url_valid(const char *url);
/* 64 hex digits of either case, with or without "sha256:" before them. */
bool image_sha256_valid(const char *text);
/* Lower case, without the prefix. */
void image_sha256_text(const char *text, char out[IMAGE_SHA256_LEN + 1]);
/* A name made of the last part of an URL: what packs it is cut off, what no name may have becomes -.  Always valid. */
void image_name_from_url(const char *url, char out[IMAGE_NAME_MAX + 1]);

void image_done(struct image *image);
/* The public document, but for used_by, which is nobody's to store. */
json_t *image_json(const struct image *image);
/* The inverse: ERR_DAEMON_INTERNAL for what is none of ours. */
int image_from_json(const json_t *doc, struct image *ret, struct error *err);

#endif
