/* info.c - see info.h.  Happy path: JSON in, a few short strings out.  What is not as expected is passed over. */
#include "guest/info.h"

#include <arpa/inet.h>
#include <string.h>
#include <strings.h>

#include "base/str.h"

static int ipv4_reaches(const struct in_addr *addr)
{
    uint32_t ip = ntohl(addr->s_addr);

    return ip >> 24 != 0 && ip >> 24 != 127 && ip >> 16 != 0xa9fe && ip >> 28 < 0xe; /* no 224/4, 240/4 */
}

int guest_info_ip(const char *text, char out[GUEST_IP_MAX])
{
    struct in6_addr six;
    struct in_addr four;

    if (inet_pton(AF_INET, text, &four) == 1)
        return ipv4_reaches(&four) && inet_ntop(AF_INET, &four, out, GUEST_IP_MAX) != NULL;
    if (inet_pton(AF_INET6, text, &six) != 1)
        return 0;
    return !IN6_IS_ADDR_LOOPBACK(&six) && !IN6_IS_ADDR_LINKLOCAL(&six) && !IN6_IS_ADDR_MULTICAST(&six) &&
           !IN6_IS_ADDR_UNSPECIFIED(&six) && !IN6_IS_ADDR_V4MAPPED(&six) &&
           inet_ntop(AF_INET6, &six, out, GUEST_IP_MAX) != NULL;
}

static unsigned add(char (*out)[GUEST_IP_MAX], unsigned n, unsigned max, const char *ip)
{
    for (unsigned i = 0; i < n; i++)
        if (strcmp(out[i], ip) == 0)
            return n;
    if (n < max)
        memcpy(out[n++], ip, GUEST_IP_MAX);
    return n;
}

/* The addresses of one family of one interface. */
static unsigned take_family(const json_t *interface, int six, char (*out)[GUEST_IP_MAX], unsigned n, unsigned max)
{
    const json_t *list = json_object_get(interface, "ip-addresses"), *item;
    size_t i;

    json_array_foreach(list, i, item)
    {
        const char *text = json_string_value(json_object_get(item, "ip-address"));
        char ip[GUEST_IP_MAX] = "";

        if (i >= GUEST_INTERFACES_MAX)
            break;
        if (text != NULL && guest_info_ip(text, ip) && (strchr(ip, ':') != NULL) == six)
            n = add(out, n, max, ip);
    }
    return n;
}

unsigned guest_info_addresses(const json_t *interfaces, const char *mac, char (*out)[GUEST_IP_MAX], unsigned max)
{
    const json_t *item;
    unsigned n = 0;
    size_t i;

    for (int six = 0; six < 2 && *mac != '\0'; six++)
        json_array_foreach(interfaces, i, item)
        {
            const char *address = json_string_value(json_object_get(item, "hardware-address"));

            if (i >= GUEST_INTERFACES_MAX)
                break;
            if (address != NULL && strcasecmp(address, mac) == 0)
                n = take_family(item, six, out, n, max);
        }
    return n;
}

void guest_info_text(char out[GUEST_TEXT_MAX], const char *text)
{
    size_t at = strlen(out);

    for (size_t left = strlen(text), n; left > 0; text += n, left -= n) {
        n = utf8_sequence(text, left);
        if (n == 0 || at + n >= GUEST_TEXT_MAX)
            break;
        if (n == 1 && ((unsigned char)*text < ' ' || *text == '\x7f'))
            out[at++] = ' ';
        else
            for (size_t i = 0; i < n; i++)
                out[at++] = text[i];
    }
    out[at] = '\0';
}

static void append_errors(char message[GUEST_TEXT_MAX], const json_t *errors)
{
    const json_t *item;
    size_t i;

    json_array_foreach(errors, i, item)
    {
        const char *text = json_string_value(item);

        if (i >= GUEST_INTERFACES_MAX)
            break;
        if (message[0] != '\0')
            guest_info_text(message, "; ");
        guest_info_text(message, text != NULL ? text : "an error without a text");
    }
}

/* The document's "v1", borrowed from *ret_doc; NULL: none of cloud-init's. */
static const json_t *load(const char *text, size_t len, json_t **ret_doc)
{
    const json_t *v1;

    *ret_doc = json_loadb(text, len, 0, NULL);
    v1 = json_object_get(*ret_doc, "v1");
    return json_is_object(v1) ? v1 : NULL;
}

enum guest_seed_state guest_info_seed_result(const char *text, size_t len, char message[GUEST_TEXT_MAX])
{
    json_t *doc;
    const json_t *v1 = load(text, len, &doc);
    const char *source = json_string_value(json_object_get(v1, "datasource"));
    enum guest_seed_state state = v1 != NULL ? GUEST_SEED_DONE : GUEST_SEED_UNKNOWN;

    message[0] = '\0';
    append_errors(message, json_object_get(v1, "errors"));
    if (message[0] != '\0') {
        state = GUEST_SEED_ERROR;
    } else if (source != NULL && strstr(source, "DataSourceNone") != NULL) {
        state = GUEST_SEED_ERROR;
        guest_info_text(message, "cloud-init found no seed (DataSourceNone)");
    }
    json_decref(doc);
    return state;
}

enum guest_seed_state guest_info_seed_status(const char *text, size_t len, char message[GUEST_TEXT_MAX])
{
    json_t *doc;
    const json_t *v1 = load(text, len, &doc);
    const char *stage = json_string_value(json_object_get(v1, "stage"));

    message[0] = '\0';
    if (stage != NULL) {
        guest_info_text(message, "at stage ");
        guest_info_text(message, stage);
    }
    json_decref(doc);
    return v1 != NULL ? GUEST_SEED_RUNNING : GUEST_SEED_UNKNOWN;
}
