/* info.h - what a guest tells of itself: its addresses, and how cloud-init ended.  Pure functions over what came through the
 * guest agent.  Any thread.  The bytes are the guest's and hostile: nothing here trusts a length, a type or a text. */
#ifndef GUEST_INFO_H
#define GUEST_INFO_H

#include <jansson.h>
#include <stddef.h>

enum { GUEST_IP_MAX = 46, GUEST_INTERFACES_MAX = 256, GUEST_TEXT_MAX = 240 };

/* The addresses that guest-network-get-interfaces tells of the interfaces with this MAC: canonical text, IPv4 first, without
 * loopback, link-local, multicast and unspecified ones, none twice.  Returns how many, at most max. */
unsigned guest_info_addresses(const json_t *interfaces, const char *mac, char (*out)[GUEST_IP_MAX], unsigned max);
/* An address as other programs write it: canonical in out, or false for what is none that a guest is reached by. */
int guest_info_ip(const char *text, char out[GUEST_IP_MAX]);

enum guest_seed_state {
    GUEST_SEED_UNKNOWN, /* no document of cloud-init's */
    GUEST_SEED_RUNNING,
    GUEST_SEED_DONE,
    GUEST_SEED_ERROR,
};

/* What /run/cloud-init/result.json (final) or status.json says.  message gets the failed modules' texts, the stage it is at,
 * or "": one line of valid UTF-8, cut to size. */
enum guest_seed_state guest_info_seed_result(const char *text, size_t len, char message[GUEST_TEXT_MAX]);
enum guest_seed_state guest_info_seed_status(const char *text, size_t len, char message[GUEST_TEXT_MAX]);

/* Appends a text of the guest's as one line of valid UTF-8; what does not fit is cut between characters. */
void guest_info_text(char out[GUEST_TEXT_MAX], const char *text);

#endif
