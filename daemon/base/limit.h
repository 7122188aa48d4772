/* limit.h - the daemon's limits: one table of names and config keys, one way to refuse, and a count of the refusals.
 *
 * Each limit has a key in vmmd.conf, a number in GET /v1/host, and vmmd_limit, vmmd_limit_used and
 * vmmd_limit_refused_total in the metrics.  Who keeps a limit asks limit_refuse for its refusal.  Loop thread. */
#ifndef BASE_LIMIT_H
#define BASE_LIMIT_H

#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"

enum limit {
    LIMIT_VMS,
    LIMIT_OPERATIONS,
    LIMIT_VM_OPERATIONS,
    LIMIT_EXECS,
    LIMIT_VM_EXECS,
    LIMIT_CONNECTIONS,
    LIMIT_WAITS,
    LIMIT_STREAMS,
    LIMIT_OPEN_FILES,
    LIMIT_REQUEST_RATE,
    LIMIT_MAX,
};

const char *limit_name(enum limit limit); /* "connections" */
const char *limit_key(enum limit limit);  /* "max_connections", as vmmd.conf has it */

/* Sets 503 daemon::overloaded, for the rate 429 api::too_many_requests, with the limit, its number and its key in the context;
 * counts it.  Returns -1. */
int limit_refuse(enum limit limit, int64_t max, struct error *err, const char *fmt, ...)
    __attribute__((format(printf, 4, 5)));
uint64_t limit_refused(enum limit limit);

/* What clients of the network may have of `max`: an eighth, and at least one, stays for the Unix socket. */
unsigned limit_share(unsigned max);

/* --- open files --- */

/* Sets this process' soft limit to the smaller of `want` and the hard limit; returns what is in force. */
unsigned limit_files_set(int64_t want);
unsigned limit_files_max(void);
/* Open now, counted when the last count is older than a second. */
unsigned limit_files_used(void);

/* Who may open how much of it: the network least, so that there is something left for VMs, then for the Unix socket, and
 * at last for what is under way.  Waits and streams (held) stop before plain requests of their kind. */
enum limit_files_for {
    FILES_FOR_NETWORK_HELD,
    FILES_FOR_NETWORK,
    FILES_FOR_HELD,
    FILES_FOR_VMS = FILES_FOR_HELD,
    FILES_FOR_SOCKET
};
unsigned limit_files_share(enum limit_files_for who);
/* Whether `want` more may be opened. */
bool limit_files_room(enum limit_files_for who, unsigned want);
void limit_files_opened(void);  /* one that the last count did not see */
void limit_files_recount(void); /* now, whatever the last count's age */

#endif
