/* script.c - see script.h.  Every text of a client goes through shell_quote, and nowhere else into a shell. */
#include "guest/script.h"

#include <string.h>

#include "base/str.h"
#include "base/uuid.h"

/* Command lines up to this go inline: dropbear takes 9000 bytes. */
enum { INLINE_MAX = 7000 };

/* Field 5 of stat is the process group, 22 the time of its start; sh has no blanks in its name.  $2 is the stub itself, once:
 * to begin anew as the leader. */
#define LEADER                                                      \
    "read -r _ _ _ _ g _ _ _ _ _ _ _ _ _ _ _ _ _ _ _ _ t _"         \
    " </proc/$$/stat 2>/dev/null;"                                  \
    "if [ \"$g\" = $$ ]; then g=1;"                                 \
    "elif [ -n \"$2\" ] && command -v setsid >/dev/null; then exec" \
    " setsid /bin/sh -c \"$2\" sh \"$1\" '' \"$3\" \"$4\"; else g=0; fi;"

static const char ssh_stub[] = LEADER "eval \"$1\"";
/* The body comes on stdin, $1 bytes of it; dd reads not one more. */
static const char ssh_feed_stub[] = LEADER "eval \"$(dd bs=1 count=\"$1\" 2>/dev/null)\"";
/* As root: first the session, then the user, and the body in a shell of that user. */
const char script_agent_stub[] =
    LEADER "if [ -z \"$3\" ] || [ \"$3\" = \"$(id -un)\" ]; then eval \"$1\"; exit; fi;"
           "if ! id -u \"$3\" >/dev/null 2>&1; then printf '\\001vmmd %s !user\\n' \"$4\"; exit 1; fi;"
           "if command -v runuser >/dev/null; then exec runuser -u \"$3\" -- /bin/sh -c \"$1\" sh; fi;"
           "exec su -s /bin/sh -c \"$1\" \"$3\"";

void script_nonce(char out[NONCE_MAX])
{
    unsigned char bytes[(NONCE_MAX - 1) / 2];

    random_bytes(bytes, sizeof(bytes));
    str_hex(bytes, sizeof(bytes), out);
}

static void put_cwd(struct buf *out, const char *cwd, enum script_channel channel)
{
    if (cwd == NULL) {
        if (channel != SCRIPT_SSH)
            buf_str(out, "cd \"$HOME\" 2>/dev/null || cd /;");
        return;
    }
    buf_str(out, "d=");
    shell_quote(out, cwd);
    buf_str(
        out,
        ";case $d in -*) d=./$d;; esac;"
        "cd \"$d\" 2>/dev/null || { if [ ! -e \"$d\" ]; then say '!no-cwd'; elif [ ! -d \"$d\" ]; then say '!cwd-file';"
        " else say '!cwd-denied'; fi; exit 1; };");
}

/* What a login would have set: the agent gives its own environment. */
static void put_login(struct buf *out)
{
    buf_str(out,
            "USER=$(id -un); LOGNAME=$USER;"
            "while IFS=: read -r n _ _ _ _ d _; do [ \"$n\" != \"$USER\" ] || HOME=$d; done </etc/passwd; unset n d;"
            "export USER LOGNAME HOME;"
            "[ -n \"$PATH\" ] || PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin; export PATH;");
}

int script_body(struct buf *out, const struct exec_request *req, const char *nonce, enum script_channel channel)
{
    buf_printf(out, "say() { printf '\\001vmmd %s %%s\\n' \"$1\"; };", nonce);
    if (channel == SCRIPT_AGENT)
        put_login(out);
    put_cwd(out, req->cwd, channel);
    buf_str(out, channel == SCRIPT_AGENT ? "say ok; unset g d t u; unset -f say"
                                         : "say \"$$ $g $t\"; unset g d t; unset -f say");
    for (size_t i = 0; i < req->n_env; i++) {
        buf_printf(out, "; export %s=", req->env[i].name);
        shell_quote(out, req->env[i].value);
    }
    if (req->command == NULL) {
        buf_str(out, "; set --\n");
        return buf_str(out, req->script);
    }
    buf_str(out, "; exec");
    for (size_t i = 0; i < req->n_command; i++) {
        buf_char(out, ' ');
        shell_quote(out, req->command[i]);
    }
    return out->failed ? -1 : 0;
}

/* Sudo says that it knows no user in words alone, so the guest is asked first. */
static const char sudo_stub[] = "id -u \"$1\" >/dev/null 2>&1 || { printf '\\001vmmd %s !user\\n' \"$2\"; exit 1; };"
                                "exec sudo -n -u \"$1\" -- /bin/sh -c \"$3\" sh \"$4\" \"$3\"";

int script_ssh_command(struct buf *out, const struct buf *body, const char *sudo_user, const char *nonce,
                       bool *ret_feed)
{
    const char *stub = body->len > INLINE_MAX ? ssh_feed_stub : ssh_stub;
    CLEANUP_BUF struct buf length = BUF_INIT(32);
    bool feed = body->len > INLINE_MAX;

    if (feed)
        buf_printf(&length, "%zu", body->len);
    *ret_feed = feed;
    buf_str(out, "exec /bin/sh -c ");
    shell_quote(out, sudo_user != NULL ? sudo_stub : stub);
    buf_str(out, " sh ");
    if (sudo_user != NULL) {
        shell_quote(out, sudo_user);
        buf_printf(out, " %s ", nonce);
        shell_quote(out, stub);
        buf_char(out, ' ');
        return shell_quote(out, feed ? length.data : body->data);
    }
    shell_quote(out, feed ? length.data : body->data);
    buf_char(out, ' ');
    return shell_quote(out, stub);
}

int script_ssh_kill(struct buf *out, long pid, long long start, bool sudo)
{
    CLEANUP_BUF struct buf text = BUF_INIT(512);

    /* What is behind the name, which may have anything in it, begins with field 3. */
    buf_printf(&text, "read -r s </proc/%ld/stat && set -- ${s##*) } && [ \"${20}\" = %lld ] && kill -KILL -- -%ld",
               pid, start, pid);
    buf_printf(out, "exec %s/bin/sh -c ", sudo ? "sudo -n " : "");
    return text.failed ? -1 : shell_quote(out, text.data);
}

int script_refusal(const char *word, const struct exec_request *req, const char *user, struct error *err)
{
    const char *cwd = req->cwd != NULL ? req->cwd : "";

    if (strcmp(word, "no-cwd") == 0)
        return error_set(err, ERR_GUEST_FILE_NOT_FOUND, "the guest has no directory %.200s", cwd);
    if (strcmp(word, "cwd-file") == 0)
        return error_set(err, ERR_GUEST_NOT_A_DIRECTORY, "%.200s is no directory in the guest", cwd);
    if (strcmp(word, "cwd-denied") == 0)
        return error_set(err, ERR_GUEST_FILE_PERMISSION_DENIED, "user %.60s may not enter %.200s in the guest", user,
                         cwd);
    if (strcmp(word, "user") == 0) {
        error_set(err, ERR_API_INVALID_FIELD, "the guest has no user %.60s", user);
        error_help(err, "name a user of the guest (\"user\":\"root\"), or make one with cloud_init");
        error_ctx_str(err, "pointer", "/user");
        error_ctx_str(err, "expected", "a user of the guest");
        return -1;
    }
    return error_set(err, ERR_SSH_FAILED, "the guest's shell said \"%.60s\" before the command", word);
}
