/* lines.h - cuts a byte stream into lines, with a maximum at birth.  Embedded; any thread; completes before return.
 *
 * The bytes may be hostile: NULs, half lines, endless lines.  A line over the maximum (or one that finds no memory) is
 * reported once, then skipped up to its newline; the memory held never passes the maximum by more than its rounding. */
#ifndef BASE_LINES_H
#define BASE_LINES_H

#include <stdbool.h>
#include <stddef.h>

#include "base/buf.h"

enum lines_what { LINES_LINE, LINES_TOO_LONG, LINES_NO_MEMORY };

/* Called for each complete line, without its newline and not NUL-terminated; valid during the call.  For the other two
 * kinds `line` is NULL.  Returns whether to go on: after false the splitter is not touched again, so the callee may
 * have freed it. */
typedef bool lines_fn(void *arg, enum lines_what what, const char *line, size_t len);

struct lines {
    struct buf part; /* the line begun */
    size_t max;
    int restart; /* this byte throws away the line begun, -1: none does */
    bool skipping;
};

/* No memory is taken before the first half line.  `restart`: a byte after which a line starts afresh (0xff in the guest
 * agent's protocol), or -1. */
void lines_init(struct lines *l, size_t max, int restart);
/* Feeds bytes.  Returns false when the callback said stop. */
bool lines_feed(struct lines *l, const char *data, size_t len, lines_fn *fn, void *arg);
/* Forgets the line begun: for a new connection. */
void lines_reset(struct lines *l);
void lines_done(struct lines *l);

#endif
