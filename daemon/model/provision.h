/* provision.h - the steps of provisioning as data: how they are given, told and recognized.  Any thread.
 *
 * A list of steps is kept as it came (JSON), validated once; a step is read from it where it is used. */
#ifndef MODEL_PROVISION_H
#define MODEL_PROVISION_H

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"
#include "model/digest.h"

enum {
    PROVISION_STEPS_MAX = 256,
    PROVISION_TIMEOUT_S = 600,
    PROVISION_TIMEOUT_MAX_S = 86400,
    PROVISION_LABEL_MAX = 120
};

enum provision_kind { PROVISION_INLINE, PROVISION_SCRIPT, PROVISION_FILE };

/* Borrowed from its JSON. */
struct provision_step {
    enum provision_kind kind;
    const char *name;        /* NULL: none */
    const char *text;        /* of the shell, or the file's content in Base64 */
    const char *destination; /* file */
    const char *mode;        /* file: "0644" */
    const char *user;        /* NULL: root, where the login user may become it */
    const json_t *env;       /* an object of texts, or NULL */
    int64_t timeout_s;
    bool once;
};

/* Checks a list of steps and copies it; *ret is NULL when it has none.  ERR_API_INVALID_FIELD with a pointer below `pointer`. */
int provision_parse(const json_t *steps, const char *pointer, json_t **ret, struct error *err);
/* Of a list that was checked. */
void provision_step_read(const json_t *step, struct provision_step *ret);
/* "shell, inline: apt-get install -y nginx": one line, for people. */
void provision_step_label(const struct provision_step *step, char out[PROVISION_LABEL_MAX]);
/* The bytes of a file's content; the caller mem_frees.  NULL: no memory. */
char *provision_step_content(const struct provision_step *step, size_t *ret_len);
/* What the step does, as a digest: its name, its timeout and how often it runs are not of it. */
bool provision_step_digest(const struct provision_step *step, char out[DIGEST_TEXT_MAX]);
/* The most that all steps may take together. */
int64_t provision_timeout_s(const json_t *steps);

#endif
