/* check.c - vmmd --check: looks at the whole database and says what it finds; changes nothing.
 *
 * Each finding is a line; the check goes on after one, as long as the file can be read at all. */
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>

#include "base/fd.h"
#include "base/mem.h"
#include "store/internal.h"

enum { FINDINGS_MAX = 100 };

struct check {
    sqlite3 *db;
    void (*say)(void *arg, const char *line);
    void *arg;
    unsigned findings;
};

static void say(struct check *c, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
static void say(struct check *c, const char *fmt, ...)
{
    char line[512];
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(line, sizeof(line), fmt, ap);
    va_end(ap);
    store_one_line(line);
    c->say(c->arg, line);
}

/* Each row of sql is a finding: what, and what is the matter with it. */
struct probe {
    const char *sql, *about;
    int since; /* schema */
};

static const struct probe probes[] = {
    {"SELECT integrity_check, '' FROM pragma_integrity_check(100) WHERE integrity_check <> 'ok'", "damage"},
    {"SELECT \"table\", 'row ' || coalesce(rowid, '?') || ' names a missing row of ' || parent"
     " FROM pragma_foreign_key_check LIMIT 100",
     "broken reference"},
    {"SELECT id, 'its document is no JSON' FROM vms WHERE NOT json_valid(doc) LIMIT 100", "bad VM"},
    {"SELECT id, 'its private document is no JSON' FROM vms"
     " WHERE private_doc IS NOT NULL AND private_doc <> '' AND NOT json_valid(private_doc) LIMIT 100",
     "bad VM"},
    {"SELECT id, 'its document is no JSON' FROM images WHERE NOT json_valid(doc) LIMIT 100", "bad image", 2},
    {"SELECT id, 'its document is no JSON' FROM operations WHERE NOT json_valid(doc) LIMIT 100", "bad operation"},
    {"SELECT id, 'its document is no JSON' FROM events WHERE doc <> '' AND NOT json_valid(doc) LIMIT 100", "bad event"},
};

static void run_probe(struct check *c, const struct probe *probe)
{
    sqlite3_stmt *stmt = NULL;
    int rc = sqlite3_prepare_v2(c->db, probe->sql, -1, &stmt, NULL);

    while (c->findings < FINDINGS_MAX && (rc == SQLITE_OK || rc == SQLITE_ROW)) {
        rc = sqlite3_step(stmt);
        if (rc != SQLITE_ROW)
            break;
        const char *what = (const char *)sqlite3_column_text(stmt, 0),
                   *why = (const char *)sqlite3_column_text(stmt, 1);
        say(c, "%s: %s%s%s", probe->about, what != NULL ? what : "?", why != NULL && why[0] != '\0' ? ": " : "",
            why != NULL ? why : "");
        c->findings++;
    }
    if (rc != SQLITE_ROW && rc != SQLITE_DONE && rc != SQLITE_OK) {
        say(c, "unreadable: %s", sqlite3_errmsg(c->db));
        c->findings++;
    }
    sqlite3_finalize(stmt);
}

static void count_rows(struct check *c, int64_t version)
{
    static const struct {
        const char *what, *sql;
        int since;
    } counts[] = {
        {"VMs", "SELECT count(*) FROM vms WHERE destroyed_at = 0"},
        {"destroyed VMs", "SELECT count(*) FROM vms WHERE destroyed_at > 0"},
        {"operations", "SELECT count(*) FROM operations"},
        {"unfinished operations", "SELECT count(*) FROM operations WHERE finished_at = 0"},
        {"events", "SELECT count(*) FROM events"},
        {"idempotency keys", "SELECT count(*) FROM idempotency_keys"},
        {"images", "SELECT count(*) FROM images", 2},
        {"ports", "SELECT count(*) FROM ports"},
    };

    for (size_t i = 0; i < ARRAY_SIZE(counts); i++) {
        CLEANUP_ERROR struct error err = ERROR_INIT;
        int64_t n;
        if (version < counts[i].since)
            continue;
        if (store_db_int(c->db, counts[i].sql, &n, &err) == 0) {
            say(c, "%s: %lld", counts[i].what, (long long)n);
        } else {
            say(c, "%s: cannot be counted: %s", counts[i].what, err.message);
            c->findings++;
        }
    }
}

int store_check(const char *dir, void (*say_line)(void *arg, const char *line), void *arg, struct error *err)
{
    struct check c = {.say = say_line, .arg = arg};
    char path[PATH_MAX];
    int64_t version;

    if (path_join(path, sizeof(path), dir, "vmmd.db", err) < 0 || store_db_open(path, false, &c.db, err) < 0)
        return -1;
    int rc = store_identify(c.db, path, &version, err);
    if (rc == 0 && version < store_schema_newest()) {
        say(&c, "schema: %lld; the next start of vmmd brings it to %d", (long long)version, store_schema_newest());
    } else if (rc == 0) {
        say(&c, "schema: %lld", (long long)version);
    }
    if (rc == 0 && version > 0) {
        for (size_t i = 0; i < ARRAY_SIZE(probes); i++)
            if (version >= probes[i].since)
                run_probe(&c, &probes[i]);
        count_rows(&c, version);
    }
    sqlite3_close(c.db);
    if (rc == 0 && c.findings > 0) {
        rc = error_set(err, ERR_DAEMON_INTERNAL, "%s is damaged: %u finding%s", path, c.findings,
                       c.findings == 1 ? "" : "s");
        error_help(err, "restore the file from a backup, or move it away to start without VMs");
    }
    return rc;
}
