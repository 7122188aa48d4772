/* resume.c - what is known of a part file, so that a later fetch goes on with it.
 *
 * The note lies beside the part file: URL, validators, boot.  A note of another boot counts only where the digest is
 * known: what was not flushed when the host went down may be missing in the middle of the file.  A note that cannot be
 * read is none. */
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "helpers/fetch/fetch.h"

enum { NOTE_MAX = 16384 };

static bool noted;

static void take(char out[VALIDATOR_MAX], const json_t *note, const char *name)
{
    const char *text = json_string_value(json_object_get(note, name));
    size_t len = text != NULL ? strlen(text) : 0;

    if (len > 0 && len < VALIDATOR_MAX)
        memcpy(out, text, len + 1);
}

bool part_read(struct part *part)
{
    static char text[NOTE_MAX];
    ssize_t n = pread(META_FD, text, sizeof(text), 0);
    json_t *note = n > 0 ? json_loadb(text, (size_t)n, 0, NULL) : NULL;
    const char *url = json_string_value(json_object_get(note, "url")),
               *boot = json_string_value(json_object_get(note, "boot_id"));
    const json_t *total = json_object_get(note, "total");
    struct stat st;

    *part = (struct part){.total = json_is_integer(total) ? json_integer_value(total) : -1};
    bool good = url != NULL && strcmp(url, job.url) == 0 && boot != NULL &&
                (job.sha256 != NULL || strcmp(boot, job.boot_id) == 0) && fstat(PART_FD, &st) == 0 && st.st_size > 0 &&
                (part->total < 0 || st.st_size <= part->total);
    if (good) {
        part->size = (uint64_t)st.st_size;
        take(part->etag, note, "etag");
        take(part->last_modified, note, "last_modified");
        take(part->digest, note, "digest");
    }
    json_decref(note);
    return good;
}

void part_note(const struct part *part)
{
    bool worth = part->etag[0] != '\0' || part->last_modified[0] != '\0' || part->digest[0] != '\0';
    json_t *note = worth ? json_pack("{s:s,s:s,s:s,s:s,s:s,s:o}", "url", job.url, "boot_id", job.boot_id, "etag",
                                     part->etag, "last_modified", part->last_modified, "digest", part->digest, "total",
                                     part->total >= 0 ? json_integer(part->total) : json_null())
                         : NULL;
    char text[NOTE_MAX];
    size_t len = note != NULL ? json_dumpb(note, text, sizeof(text), JSON_COMPACT) : 0;

    json_decref(note);
    noted = false;
    if (ftruncate(META_FD, 0) == 0 && len > 0 && len <= sizeof(text))
        noted = pwrite(META_FD, text, len, 0) == (ssize_t)len;
}

bool part_kept(void)
{
    return noted && !sink_packed() && sink_fetched() > 0;
}
