/* oci.c - an image that is an artifact of an OCI registry.
 *
 * Happy path: oci://HOST/REPOSITORY:TAG is asked for its manifest; an index is followed to the manifest of linux/amd64; the
 * manifest's one disk is fetched as a blob, whose digest must be what the manifest says.  A registry that wants a token is
 * asked for one where its challenge says, with the credentials of the job if they are for this registry.
 *
 * Failures, all oci::pull_failed: no such repository or tag, a manifest that is none or whose digest is another, a container
 * image (its layers are no disk), several disks, a blob that differs. */
#include <nettle/sha2.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "base/mem.h"
#include "base/str.h"
#include "helpers/fetch/fetch.h"

enum { MANIFEST_MAX = 4 << 20, TOKEN_MAX = 64 << 10, INDEXES_MAX = 3 };

static const char *const accept_headers[] = {
    "Accept: application/vnd.oci.image.manifest.v1+json, application/vnd.oci.image.index.v1+json, "
    "application/vnd.oci.artifact.manifest.v1+json, application/vnd.docker.distribution.manifest.v2+json, "
    "application/vnd.docker.distribution.manifest.list.v2+json",
    NULL};

static struct {
    char host[300], repository[300], reference[300];
    bool by_digest, plain;
    char *authorization; /* a header line */
} ref;

static _Noreturn void bad_reference(const char *why)
{
    fail("oci", "%.200s is no reference of an artifact: %s", job.url, why);
}

/* HOST[:PORT]/REPOSITORY[:TAG][@DIGEST] */
static void parse_reference(void)
{
    const char *text = strncmp(job.url, "oci://", 6) == 0 ? job.url + 6 : job.url;
    const char *slash = strchr(text, '/'), *at = slash != NULL ? strchr(slash, '@') : NULL;
    size_t host = slash != NULL ? (size_t)(slash - text) : 0;

    if (host == 0 || slash[1] == '\0')
        bad_reference("it is oci://HOST/REPOSITORY:TAG");
    const char *path = slash + 1, *end = at != NULL ? at : text + strlen(text),
               *colon = memchr(path, ':', (size_t)(end - path));
    size_t repository = (size_t)((colon != NULL ? colon : end) - path);
    ref.by_digest = at != NULL;
    const char *reference = at != NULL ? at + 1 : colon != NULL ? colon + 1 : "latest";
    if (host >= sizeof(ref.host) || repository == 0 || repository >= sizeof(ref.repository) || reference[0] == '\0' ||
        strlen(reference) >= sizeof(ref.reference))
        bad_reference("a part is missing or too long");
    snprintf(ref.host, sizeof(ref.host), "%.*s", (int)host, text);
    snprintf(ref.repository, sizeof(ref.repository), "%.*s", (int)repository, path);
    snprintf(ref.reference, sizeof(ref.reference), "%s", reference);
    if (strspn(ref.repository, "abcdefghijklmnopqrstuvwxyz0123456789._-/") != repository ||
        strstr(ref.repository, "..") != NULL)
        bad_reference("a repository has a-z, 0-9 and . _ - /");
    if (strspn(ref.reference, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-:") !=
        strlen(ref.reference))
        bad_reference("its tag has other characters than letters, digits and . _ -");
    if (ref.by_digest && strncmp(ref.reference, "sha256:", 7) != 0)
        bad_reference("its digest is not sha256");
    if (strcmp(ref.host, "docker.io") == 0)
        snprintf(ref.host, sizeof(ref.host), "registry-1.docker.io");
}

static bool plain_allowed(const char *host)
{
    const char *colon = host[0] == '[' ? strchr(host, ']') : strchr(host, ':');
    size_t len = colon == NULL ? strlen(host) : host[0] == '[' ? (size_t)(colon - host) + 1 : (size_t)(colon - host);
    size_t i;
    json_t *one;

    if (host_is_loopback(host, len))
        return true;
    json_array_foreach(job.plain_http, i, one)
    {
        const char *allowed = json_string_value(one);
        if (allowed != NULL && strcasecmp(allowed, host) == 0)
            return true;
    }
    return false;
}

/* The value of realm, service or scope in `Bearer realm="…",service="…"`. */
static void challenge_value(const char *challenge, const char *name, char *out, size_t size)
{
    size_t n = strlen(name);

    out[0] = '\0';
    for (const char *p = challenge; (p = strcasestr(p, name)) != NULL; p += n) {
        if (p[n] != '=' || p[n + 1] != '"' || (p != challenge && p[-1] != ' ' && p[-1] != ','))
            continue;
        size_t len = strcspn(p + n + 2, "\"");
        if (len < size)
            snprintf(out, size, "%.*s", (int)len, p + n + 2);
        return;
    }
}

static void url_append(char *url, size_t size, const char *name, const char *value)
{
    size_t len = strlen(url);
    bool first = strchr(url, '?') == NULL;

    len += (size_t)snprintf(url + len, size - len, "%c%s=", first ? '?' : '&', name);
    for (; *value != '\0' && len + 4 < size; value++) {
        if (strchr("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-._~", *value) != NULL)
            len += (size_t)snprintf(url + len, size - len, "%c", *value);
        else
            len += (size_t)snprintf(url + len, size - len, "%%%02X", (unsigned char)*value);
    }
}

static char *basic_header(void)
{
    return job.auth_basic != NULL && job.auth_host != NULL && strcasecmp(job.auth_host, ref.host) == 0
               ? mem_printf("Authorization: Basic %s", job.auth_basic)
               : NULL;
}

/* Credentials do not go over the wire in the clear, but on this host. */
static bool realm_fit(const char *realm)
{
    char host[300];

    if (strncasecmp(realm, "https://", 8) == 0)
        return true;
    if (strncasecmp(realm, "http://", 7) != 0 || strchr(realm, '@') != NULL)
        return false;
    snprintf(host, sizeof(host), "%.*s", (int)strcspn(realm + 7, "/?"), realm + 7);
    return plain_allowed(host);
}

static void ask_token(const char *challenge)
{
    char realm[1024], service[512], scope[512], url[URL_MAX];
    struct http_answer answer = {0};
    char *basic = basic_header();

    challenge_value(challenge, "realm", realm, sizeof(realm));
    challenge_value(challenge, "service", service, sizeof(service));
    challenge_value(challenge, "scope", scope, sizeof(scope));
    if (!realm_fit(realm))
        fail("oci", "the registry sends for a token to %.200s", realm[0] != '\0' ? realm : "nowhere");
    if (scope[0] == '\0')
        snprintf(scope, sizeof(scope), "repository:%s:pull", ref.repository);
    snprintf(url, sizeof(url), "%s", realm);
    if (service[0] != '\0')
        url_append(url, sizeof(url), "service", service);
    url_append(url, sizeof(url), "scope", scope);
    http_get(&(struct http_get){.url = url, .authorization = basic, .error_kind = "oci", .small_max = TOKEN_MAX},
             &answer);
    mem_free(basic);
    if (answer.status != 200)
        fail("oci", "the registry gives no token: it answered %ld", answer.status);
    json_t *doc = json_loadb(answer.body, answer.body_len, 0, NULL);
    const char *token = json_string_value(json_object_get(doc, "token"));
    if (token == NULL)
        token = json_string_value(json_object_get(doc, "access_token"));
    if (token == NULL || strpbrk(token, "\r\n") != NULL)
        fail("oci", "the registry gives no token");
    ref.authorization = mem_printf("Authorization: Bearer %s", token);
    json_decref(doc);
    mem_free(answer.body);
}

static void authorize(const char *challenge)
{
    if (strncasecmp(challenge, "Basic", 5) == 0)
        ref.authorization = basic_header();
    else if (strncasecmp(challenge, "Bearer ", 7) == 0)
        ask_token(challenge + 7);
    if (ref.authorization == NULL)
        fail("oci", "the registry wants credentials, and there are none for %.200s", ref.host);
}

static void digest_check(const char *digest, const char *body, size_t len, const char *what)
{
    struct sha256_ctx ctx;
    uint8_t bytes[SHA256_DIGEST_SIZE];
    char text[SHA256_TEXT];

    if (strncmp(digest, "sha256:", 7) != 0)
        return;
    sha256_init(&ctx);
    sha256_update(&ctx, len, (const uint8_t *)body);
    sha256_digest(&ctx, sizeof(bytes), bytes);
    str_hex(bytes, sizeof(bytes), text);
    if (strcmp(text, digest + 7) != 0)
        fail("oci", "%s has the digest sha256:%s, not %.80s", what, text, digest);
}

static json_t *get_manifest(const char *reference, bool by_digest)
{
    CLEANUP_FREE char *url =
        mem_printf("%s://%s/v2/%s/manifests/%s", ref.plain ? "http" : "https", ref.host, ref.repository, reference);
    struct http_answer answer = {0};

    for (int i = 0; i < 2; i++) {
        http_get(&(struct http_get){.url = url,
                                    .headers = accept_headers,
                                    .authorization = ref.authorization,
                                    .error_kind = "oci",
                                    .small_max = MANIFEST_MAX},
                 &answer);
        if (answer.status != 401 || ref.authorization != NULL)
            break;
        authorize(answer.challenge);
    }
    if (answer.status == 404)
        fail("oci", "the registry has no %.200s:%.100s", ref.repository, reference);
    if (answer.status != 200)
        fail("oci", "the registry answered %ld", answer.status);
    if (answer.body == NULL)
        fail("oci", "the registry's manifest is empty");
    if (by_digest)
        digest_check(reference, answer.body, answer.body_len, "the manifest");
    else if (answer.digest[0] != '\0')
        digest_check(answer.digest, answer.body, answer.body_len, "the manifest");
    json_t *doc = json_loadb(answer.body, answer.body_len, JSON_REJECT_DUPLICATES, NULL);
    mem_free(answer.body);
    if (!json_is_object(doc))
        fail("oci", "the registry's manifest is no JSON object");
    return doc;
}

static const char *text_of(const json_t *doc, const char *name)
{
    const char *text = json_string_value(json_object_get(doc, name));

    return text != NULL ? text : "";
}

/* The digest of the manifest for this kind of machine. */
static const char *choose_manifest(const json_t *list)
{
    const char *any = NULL;
    size_t i;
    json_t *one;

    json_array_foreach(list, i, one)
    {
        const json_t *platform = json_object_get(one, "platform");
        if (strcmp(text_of(platform, "os"), "linux") == 0 && strcmp(text_of(platform, "architecture"), "amd64") == 0)
            return text_of(one, "digest");
        if (platform == NULL || json_array_size(list) == 1)
            any = text_of(one, "digest");
    }
    if (any == NULL)
        fail("oci", "the artifact is not there for linux/amd64");
    return any;
}

static bool is_layer_of_files(const char *type)
{
    return strstr(type, ".tar") != NULL || strstr(type, "rootfs.diff") != NULL;
}

static bool is_disk_for_sure(const char *type)
{
    return strcmp(type, "application/vnd.cloudnebula.qcow2.layer.v1") == 0 || strstr(type, "qcow2") != NULL ||
           strstr(type, "disk") != NULL || strstr(type, "raw") != NULL;
}

static const json_t *choose_layer(const json_t *manifest)
{
    const json_t *layers = json_object_get(manifest, "layers"), *found = NULL;
    unsigned disks = 0, sure = 0;
    size_t i;
    json_t *one;

    if (!json_is_array(layers))
        layers = json_object_get(manifest, "blobs");
    json_array_foreach(layers, i, one)
    {
        const char *type = text_of(one, "mediaType");
        if (is_layer_of_files(type) || (sure > 0 && !is_disk_for_sure(type)))
            continue;
        if (is_disk_for_sure(type) && sure++ == 0)
            disks = 0;
        disks++;
        found = one;
    }
    if (disks == 0)
        fail("oci", "the artifact has no disk: it is an image for containers, or empty");
    if (disks > 1)
        fail("oci", "the artifact has %u layers that may be a disk; one is expected", disks);
    return found;
}

void oci_pull(void)
{
    struct http_answer answer = {0};

    parse_reference();
    ref.plain = plain_allowed(ref.host);
    json_t *doc = get_manifest(ref.reference, ref.by_digest);
    for (int i = 0; json_is_array(json_object_get(doc, "manifests")); i++) {
        char digest[300];
        snprintf(digest, sizeof(digest), "%s", choose_manifest(json_object_get(doc, "manifests")));
        if (strncmp(digest, "sha256:", 7) != 0 || strlen(digest) != 71 || i == INDEXES_MAX)
            fail("oci", "the registry's index names no manifest by sha256");
        json_decref(doc);
        doc = get_manifest(digest, true);
    }
    const json_t *layer = choose_layer(doc);
    const char *digest = text_of(layer, "digest");
    if (strncmp(digest, "sha256:", 7) != 0 || strlen(digest) != 71 || strspn(digest + 7, "0123456789abcdef") != 64)
        fail("oci", "the manifest names its disk not by sha256");
    if (job.sha256 != NULL && strcmp(job.sha256, digest + 7) != 0)
        fail_checksum(job.sha256, digest + 7);
    job.sha256 = digest + 7;
    CLEANUP_FREE char *url =
        mem_printf("%s://%s/v2/%s/blobs/%s", ref.plain ? "http" : "https", ref.host, ref.repository, digest);
    http_get(
        &(struct http_get){
            .url = url, .authorization = ref.authorization, .error_kind = "oci", .to_sink = true, .digest = digest},
        &answer);
}
