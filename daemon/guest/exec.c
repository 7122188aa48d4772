/* exec.c - the names of the channels. */
#include "guest/exec.h"

#include <ctype.h>
#include <string.h>

#include "base/mem.h"

static const char *const names[] = {"auto", "ssh", "agent", "vsock"};

const char *exec_via_text(enum exec_via via)
{
    return names[via];
}

bool exec_via_parse(const char *text, enum exec_via *ret)
{
    for (size_t i = 0; i < ARRAY_SIZE(names); i++)
        if (strcmp(names[i], text) == 0) {
            *ret = (enum exec_via)i;
            return true;
        }
    return false;
}

bool exec_env_name_valid(const char *name)
{
    if (!isalpha((unsigned char)*name) && *name != '_')
        return false;
    while (isalnum((unsigned char)*name) || *name == '_')
        name++;
    return *name == '\0';
}

static size_t text_size(const char *text)
{
    return text != NULL ? strlen(text) + 1 : 0;
}

static const char *put_text(char **at, const char *text)
{
    char *begin = *at;

    if (text == NULL)
        return NULL;
    memcpy(begin, text, strlen(text) + 1);
    *at += strlen(text) + 1;
    return begin;
}

struct exec_request *exec_request_copy(const struct exec_request *req)
{
    size_t lists = req->n_command * sizeof(char *) + req->n_env * sizeof(struct exec_env);
    size_t size = sizeof(*req) + lists + req->input_len + text_size(req->script) + text_size(req->cwd) +
                  text_size(req->user) + text_size(req->default_user);

    for (size_t i = 0; i < req->n_command; i++)
        size += text_size(req->command[i]);
    for (size_t i = 0; i < req->n_env; i++)
        size += text_size(req->env[i].name) + text_size(req->env[i].value);
    struct exec_request *copy = mem_alloc(size);
    if (copy == NULL)
        return NULL;
    struct exec_env *env = (struct exec_env *)(copy + 1);
    const char **command = (const char **)(env + req->n_env);
    char *at = (char *)(command + req->n_command);
    *copy = *req;
    for (size_t i = 0; i < req->n_env; i++) {
        env[i].name = put_text(&at, req->env[i].name);
        env[i].value = put_text(&at, req->env[i].value);
    }
    for (size_t i = 0; i < req->n_command; i++)
        command[i] = put_text(&at, req->command[i]);
    copy->env = env;
    copy->command = req->command != NULL ? command : NULL;
    copy->script = put_text(&at, req->script);
    copy->cwd = put_text(&at, req->cwd);
    copy->user = put_text(&at, req->user);
    copy->default_user = put_text(&at, req->default_user);
    if (req->input_len > 0)
        memcpy(at, req->input, req->input_len);
    copy->input = req->input != NULL ? at : NULL;
    return copy;
}
