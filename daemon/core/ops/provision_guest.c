/* provision_guest.c - what provisioning sends to a guest: each a short script for exec, whose values come in its environment,
 * so that none is ever pasted into a shell.
 *
 *   look    rm what an earlier run left; fails where root is not to be had
 *   send    the first part makes the file, under a new name that nobody can have made before (O_EXCL, 0600); the last one of
 *           a file is followed by its mode and the rename to its place
 *   run     the text by /bin/sh, or the script that was sent, by its own shebang
 *   clean   rm
 *
 * Parts are small enough for the guest agent, which takes 128 KiB at once. */
#include <stdio.h>
#include <string.h>

#include "base/mem.h"
#include "base/str.h"
#include "base/uuid.h"
#include "core/ops/provision.h"

#define TEMP_NAME ".vmmd-provision-"

enum { ENV_MAX = 256 };

static const char look_as_root[] = "rm -f -- /tmp/" TEMP_NAME "* ${T:+\"$T\"}";
/* Who may become root, and is not let just now, is asked again. */
static const char look_as_login[] = "if command -v sudo >/dev/null && sudo -n true 2>/dev/null; then exit 77; fi;"
                                    "rm -f -- /tmp/" TEMP_NAME "* ${T:+\"$T\"}";
static const char send_parents[] = "if [ -d \"$D\" ]; then echo \"$D is a directory\" >&2; exit 1; fi;"
                                   "d=${D%/*}; umask 022; mkdir -p -- \"${d:-/}\" || exit 1;";
static const char send_first[] = "umask 077; set -C; cat >\"$T\" || exit 1;";
static const char send_more[] = "cat >>\"$T\" || exit 1;";
static const char send_check[] =
    "if [ \"$(wc -c <\"$T\")\" -ne \"$N\" ]; then echo \"$T was cut short\" >&2; exit 1; fi;";
static const char send_script[] = "chmod 700 \"$T\"";
static const char send_rename[] = "if [ -d \"$D\" ]; then echo \"$D is a directory\" >&2; exit 1; fi;"
                                  "chmod \"$M\" \"$T\" && mv -f -- \"$T\" \"$D\"";
static const char clean[] = "rm -f -- \"$T\"";

static const char *user_of(const struct provision *p)
{
    return p->step.user != NULL ? p->step.user : p->root ? "root" : NULL;
}

static int begin(struct provision *p, struct exec_request *req, const struct provision_guest *g, struct error *err)
{
    req->via = EXEC_AUTO;
    req->max_output = 16 << 20;
    p->exec = core_exec_new(p->vo->vm, req, g->timeout_ms, g->events, p, err);
    return p->exec != NULL ? 0 : -1;
}

int provision_guest_look(struct provision *p, bool root, const struct provision_guest *g, struct error *err)
{
    const char *left = p->vo->vm->vm.provisioned.temp;
    struct exec_env env[] = {{"T", left != NULL ? left : ""}};
    struct exec_request req = {.script = root ? look_as_root : look_as_login,
                               .user = root ? "root" : NULL,
                               .cwd = "/",
                               .env = env,
                               .n_env = ARRAY_SIZE(env)};

    return begin(p, &req, g, err);
}

int provision_guest_prepare(struct provision *p, struct error *err)
{
    const struct provision_step *s = &p->step;
    unsigned char bytes[10];
    char nonce[2 * sizeof(bytes) + 1];
    const char *slash = s->kind == PROVISION_FILE ? strrchr(s->destination, '/') : NULL;

    if (s->kind == PROVISION_INLINE && strlen(s->text) <= PROVISION_INLINE_MAX)
        return 0;
    random_bytes(bytes, sizeof(bytes));
    str_hex(bytes, sizeof(bytes), nonce);
    p->temp = slash != NULL ? mem_printf("%.*s/" TEMP_NAME "%s", (int)(slash - s->destination), s->destination, nonce)
                            : mem_printf("/tmp/" TEMP_NAME "%s", nonce);
    p->sent_at = 0;
    p->sent_len = strlen(s->text);
    p->sent = s->kind == PROVISION_FILE ? provision_step_content(s, &p->sent_len) : mem_strdup(s->text);
    return p->sent != NULL && p->temp != NULL ? 1 : error_set(err, ERR_DAEMON_OVERLOADED, "out of memory");
}

int provision_guest_send(struct provision *p, const struct provision_guest *g, struct error *err)
{
    size_t left = p->sent_len - p->sent_at, n = left < PROVISION_CHUNK ? left : PROVISION_CHUNK;
    bool file = p->step.kind == PROVISION_FILE, first = p->sent_at == 0, last = n == left;
    CLEANUP_BUF struct buf script = BUF_INIT(4096);
    char size[24];
    struct exec_env env[] = {
        {"T", p->temp}, {"N", size}, {"D", file ? p->step.destination : ""}, {"M", file ? p->step.mode : ""}};

    snprintf(size, sizeof(size), "%zu", p->sent_len);
    buf_str(&script, first && file ? send_parents : "");
    buf_str(&script, first ? send_first : send_more);
    buf_str(&script, last ? send_check : "");
    buf_str(&script, !last ? "" : file ? send_rename : send_script);
    if (script.failed)
        return error_set(err, ERR_DAEMON_OVERLOADED, "out of memory");
    struct exec_request req = {.script = script.data,
                               .user = user_of(p),
                               .cwd = "/",
                               .env = env,
                               .n_env = ARRAY_SIZE(env),
                               .input = p->sent + p->sent_at,
                               .input_len = n};
    p->sent_at += n;
    return begin(p, &req, g, err);
}

int provision_guest_run(struct provision *p, const struct provision_guest *g, struct error *err)
{
    const char *by_shebang[] = {p->temp}, *by_shell[] = {"/bin/sh", p->temp};
    struct exec_env env[ENV_MAX];
    struct exec_request req = {.user = user_of(p), .env = env};
    const char *name;
    json_t *value;

    json_object_foreach((json_t *)(uintptr_t)p->step.env, name, value)
    {
        if (req.n_env < ENV_MAX)
            env[req.n_env++] = (struct exec_env){name, json_string_value(value)};
    }
    if (p->step.kind == PROVISION_SCRIPT) {
        req.command = by_shebang;
        req.n_command = ARRAY_SIZE(by_shebang);
    } else if (p->temp != NULL) {
        req.command = by_shell;
        req.n_command = ARRAY_SIZE(by_shell);
    } else {
        req.script = p->step.text;
    }
    return begin(p, &req, g, err);
}

int provision_guest_clean(struct provision *p, const struct provision_guest *g, struct error *err)
{
    struct exec_env env[] = {{"T", p->temp}};
    struct exec_request req = {.script = clean, .user = user_of(p), .cwd = "/", .env = env, .n_env = ARRAY_SIZE(env)};

    return begin(p, &req, g, err);
}
