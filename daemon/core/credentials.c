/* credentials.c - see credentials.h.  A config that cannot be read has none; a credential helper is a program and is not run. */
#include "core/credentials.h"

#include <jansson.h>
#include <nettle/base64.h>
#include <stdlib.h>
#include <string.h>

#include "base/fd.h"
#include "base/mem.h"

enum { CONFIG_MAX = 1 << 20, PAIR_MAX = 4096 };

static char *encode(const char *user, const char *secret)
{
    CLEANUP_FREE char *pair = mem_printf("%s:%s", user, secret);
    size_t len = pair != NULL ? strlen(pair) : PAIR_MAX;
    char *text = len < PAIR_MAX ? mem_zalloc(BASE64_ENCODE_RAW_LENGTH(len) + 1) : NULL;

    if (text != NULL)
        base64_encode_raw(text, len, (const uint8_t *)pair);
    return text;
}

static json_t *docker_config(void)
{
    const char *dir = getenv("DOCKER_CONFIG"), *home = getenv("HOME");
    CLEANUP_FREE char *path = dir != NULL    ? mem_printf("%s/config.json", dir)
                              : home != NULL ? mem_printf("%s/.docker/config.json", home)
                                             : NULL;
    CLEANUP_FREE char *text = NULL;
    CLEANUP_ERROR struct error err = ERROR_INIT;
    size_t len;

    if (path == NULL || file_read(path, CONFIG_MAX, &text, &len, &err) < 0)
        return NULL;
    return json_loadb(text, len, 0, NULL);
}

static const json_t *entry_of(const json_t *auths, const char *registry)
{
    static const char *const forms[] = {"%s", "https://%s", "https://%s/", "https://%s/v1/", "http://%s"};
    const json_t *entry = NULL;

    for (size_t i = 0; i < ARRAY_SIZE(forms) && entry == NULL; i++) {
        CLEANUP_FREE char *key = NULL;
        const char *mark = strstr(forms[i], "%s");
        key = mem_printf("%.*s%s%s", (int)(mark - forms[i]), forms[i], registry, mark + 2);
        entry = key != NULL ? json_object_get(auths, key) : NULL;
    }
    if (entry == NULL && strcmp(registry, "docker.io") == 0)
        entry = json_object_get(auths, "https://index.docker.io/v1/");
    return entry;
}

static char *from_docker(const char *registry)
{
    json_t *config = docker_config();
    const json_t *entry = entry_of(json_object_get(config, "auths"), registry);
    const char *auth = json_string_value(json_object_get(entry, "auth")),
               *user = json_string_value(json_object_get(entry, "username")),
               *password = json_string_value(json_object_get(entry, "password"));
    char *basic = NULL;

    if (auth != NULL && *auth != '\0' && strpbrk(auth, "\r\n") == NULL)
        basic = mem_strdup(auth);
    else if (user != NULL && password != NULL)
        basic = encode(user, password);
    json_decref(config);
    return basic;
}

void credentials_find(const char *registry, char **ret_host, char **ret_basic)
{
    const char *token = getenv("GITHUB_TOKEN");
    char *basic;

    if (strcmp(registry, "ghcr.io") == 0 && token != NULL && *token != '\0')
        basic = encode("_token", token);
    else
        basic = from_docker(registry);
    char *host =
        basic != NULL ? mem_strdup(strcmp(registry, "docker.io") == 0 ? "registry-1.docker.io" : registry) : NULL;
    if (host == NULL) {
        mem_free(basic);
        return;
    }
    *ret_host = host;
    *ret_basic = basic;
}
