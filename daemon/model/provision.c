/* provision.c - see provision.h. */
#include "model/provision.h"

#include <ctype.h>
#include <nettle/base64.h>
#include <stdio.h>
#include <string.h>

#include "base/mem.h"
#include "base/str.h"
#include "model/fields.h"
#include "model/json_text.h"

enum { TEXT_MAX = 524288, ENV_MAX = 256, USER_MAX = 64, NAME_MAX_LEN = 80 };

static bool base64_valid(const char *s)
{
    size_t len = strlen(s), n = strspn(s, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/");

    return len % 4 == 0 && len - n <= 2 && strspn(s + n, "=") == len - n;
}

/* --- checking --- */

static bool env_name_valid(const char *name)
{
    if (!isalpha((unsigned char)*name) && *name != '_')
        return false;
    while (isalnum((unsigned char)*name) || *name == '_')
        name++;
    return *name == '\0';
}

static int check_env(const struct fields *f)
{
    json_t *env = (json_t *)(uintptr_t)field_get(f, "env"), *value;
    const char *name;
    char base[FIELD_POINTER_MAX], pointer[FIELD_POINTER_MAX];

    if (env == NULL)
        return 0;
    if (!json_is_object(env) || json_object_size(env) > ENV_MAX)
        return field_error(f, "env", "an object of at most 256 names and texts");
    json_object_foreach(env, name, value)
    {
        if (!env_name_valid(name) || !json_is_string(value))
            return field_pointer_error(f->err, field_pointer(pointer, field_pointer(base, f->pointer, "env"), name),
                                       "a name of letters, digits and _, and a text", "env has a bad name or value");
    }
    return 0;
}

static int check_user(const struct fields *f, const char *user)
{
    static const char letters[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-";

    if (user != NULL && (*user == '\0' || *user == '-' || strspn(user, letters) != strlen(user)))
        return field_error(f, "user", "the name of a user of the guest");
    return 0;
}

static int check_shell(const struct fields *f, const char *code, const char *script)
{
    static const char *const not_here[] = {"content_base64", "destination", "mode"};

    for (size_t i = 0; i < ARRAY_SIZE(not_here); i++)
        if (field_get(f, not_here[i]) != NULL)
            return field_error(f, not_here[i], "given for type file only");
    if ((code == NULL) == (script == NULL))
        return field_error(f, "inline", "a text for /bin/sh, or script in its place: type shell needs one of them");
    return check_env(f);
}

static int check_file(const struct fields *f, const char *content, const char *destination, const char *mode)
{
    static const char *const not_here[] = {"inline", "script", "env"};

    for (size_t i = 0; i < ARRAY_SIZE(not_here); i++)
        if (field_get(f, not_here[i]) != NULL)
            return field_error(f, not_here[i], "given for type shell only");
    if (content == NULL || !base64_valid(content))
        return field_error(f, "content_base64", "Base64, with its padding: type file needs it");
    if (destination == NULL || destination[strlen(destination) - 1] == '/')
        return field_error(f, "destination", "the absolute path of a file in the guest: type file needs it");
    if (mode != NULL && (strlen(mode) < 3 || strspn(mode, "01234567") != strlen(mode)))
        return field_error(f, "mode", "an octal mode of 3 or 4 digits");
    return 0;
}

static int check_step(const json_t *step, const char *pointer, struct error *err)
{
    static const char *const names[] = {"type", "name", "inline",    "script", "content_base64", "destination",
                                        "mode", "env",  "timeout_s", "run",    "user",           NULL};
    static const char *const types[] = {"shell", "file", NULL}, *const runs[] = {"always", "once", NULL};
    CLEANUP_FREE char *name = NULL, *code = NULL, *script = NULL, *content = NULL, *destination = NULL, *mode = NULL,
                      *user = NULL;
    struct fields f;
    int type = -1, run = 0;
    int64_t timeout_s;

    if (fields_open(&f, step, pointer, names, err) < 0 || field_enum(&f, "type", types, &type) < 0 ||
        field_str(&f, "name", NAME_MAX_LEN, &name) < 0 || field_str(&f, "inline", TEXT_MAX, &code) < 0 ||
        field_str(&f, "script", TEXT_MAX, &script) < 0 || field_str(&f, "content_base64", TEXT_MAX, &content) < 0 ||
        field_path(&f, "destination", &destination) < 0 || field_str(&f, "mode", 4, &mode) < 0 ||
        field_int(&f, "timeout_s", 1, PROVISION_TIMEOUT_MAX_S, &timeout_s) < 0 ||
        field_enum(&f, "run", runs, &run) < 0 || field_str(&f, "user", USER_MAX, &user) < 0 || check_user(&f, user) < 0)
        return -1;
    if (name != NULL && strpbrk(name, "\n\t") != NULL)
        return field_error(&f, "name", "one line of text");
    if (type < 0)
        return field_error(&f, "type", "shell or file");
    return type == 0 ? check_shell(&f, code, script) : check_file(&f, content, destination, mode);
}

int provision_parse(const json_t *steps, const char *pointer, json_t **ret, struct error *err)
{
    char at[FIELD_POINTER_MAX];

    if (!json_is_array(steps) || json_array_size(steps) > PROVISION_STEPS_MAX)
        return field_pointer_error(err, pointer, "an array of at most 256 steps",
                                   "%s must be an array of at most 256 steps", pointer + 1);
    for (size_t i = 0; i < json_array_size(steps); i++) {
        snprintf(at, sizeof(at), "%.200s/%zu", pointer, i);
        if (check_step(json_array_get(steps, i), at, err) < 0)
            return -1;
    }
    json_t *copy = json_array_size(steps) > 0 ? json_deep_copy(steps) : NULL;
    if (copy == NULL && json_array_size(steps) > 0)
        return error_set(err, ERR_DAEMON_OVERLOADED, "out of memory");
    *ret = copy;
    return 0;
}

/* --- reading --- */

static const char *text_of(const json_t *step, const char *name)
{
    return json_string_value(json_object_get(step, name));
}

void provision_step_read(const json_t *step, struct provision_step *ret)
{
    const char *code = text_of(step, "inline"), *script = text_of(step, "script"), *mode = text_of(step, "mode"),
               *run = text_of(step, "run");
    const json_t *timeout = json_object_get(step, "timeout_s"), *env = json_object_get(step, "env");

    *ret = (struct provision_step){
        .kind = code != NULL     ? PROVISION_INLINE
                : script != NULL ? PROVISION_SCRIPT
                                 : PROVISION_FILE,
        .name = text_of(step, "name"),
        .text = code != NULL     ? code
                : script != NULL ? script
                                 : text_of(step, "content_base64"),
        .destination = text_of(step, "destination"),
        .mode = mode != NULL ? mode : "0644",
        .user = text_of(step, "user"),
        .env = json_object_size(env) > 0 ? env : NULL,
        .timeout_s = json_is_integer(timeout) ? json_integer_value(timeout) : PROVISION_TIMEOUT_S,
        .once = run != NULL && strcmp(run, "once") == 0,
    };
}

int64_t provision_timeout_s(const json_t *steps)
{
    struct provision_step step;
    int64_t sum = 0;

    for (size_t i = 0; i < json_array_size(steps); i++) {
        provision_step_read(json_array_get(steps, i), &step);
        sum += step.timeout_s;
    }
    return sum;
}

/* The first line of a text that says something, cut between characters. */
static void first_line(const char *text, char *out, size_t size)
{
    size_t n = 0, seq;

    if (strncmp(text, "#!", 2) == 0 && strchr(text, '\n') != NULL)
        text = strchr(text, '\n');
    text += strspn(text, " \t\n");
    size_t len = strcspn(text, "\n");
    while (n < len && (seq = utf8_sequence(text + n, len - n)) > 0 && n + seq < size - 4)
        n += seq;
    snprintf(out, size, "%.*s%s", (int)n, text, n < len || text[len] == '\n' ? " …" : "");
    for (char *c = out; *c != '\0'; c++)
        *c = *c == '\t' ? ' ' : *c;
}

void provision_step_label(const struct provision_step *step, char out[PROVISION_LABEL_MAX])
{
    static const char *const kinds[] = {"shell, inline", "shell, script", "file"};
    const char *what = step->name != NULL ? step->name : step->kind == PROVISION_FILE ? step->destination : step->text;
    char line[PROVISION_LABEL_MAX - 20];

    first_line(what, line, sizeof(line));
    snprintf(out, PROVISION_LABEL_MAX, "%s: %s", kinds[step->kind], line);
}

char *provision_step_content(const struct provision_step *step, size_t *ret_len)
{
    size_t len = strlen(step->text), n = BASE64_DECODE_LENGTH(len);
    char *out = mem_alloc(n + 1);
    struct base64_decode_ctx ctx;

    base64_decode_init(&ctx);
    if (out == NULL || !base64_decode_update(&ctx, &n, (uint8_t *)out, len, step->text)) {
        mem_free(out);
        return NULL;
    }
    *ret_len = n;
    return out;
}

bool provision_step_digest(const struct provision_step *step, char out[DIGEST_TEXT_MAX])
{
    json_t *env = step->env != NULL ? json_incref((json_t *)(uintptr_t)step->env) : json_null();
    json_t *doc = json_pack("{s:i,s:s,s:s?,s:s,s:s?,s:o}", "kind", (int)step->kind, "text", step->text, "destination",
                            step->destination, "mode", step->mode, "user", step->user, "env", env);
    char *text = json_text(doc, JSON_SORT_KEYS | JSON_COMPACT, NULL);

    if (text == NULL)
        return false;
    digest_sha256(text, strlen(text), out);
    mem_free(text);
    return true;
}
