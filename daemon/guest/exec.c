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
