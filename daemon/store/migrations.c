/* migrations.c - from any older schema to the newest, one numbered step per transaction.
 *
 * PRAGMA user_version holds the number of the schema, PRAGMA application_id says that the file is vmmd's; both change
 * in the transaction of the step, so a daemon killed in the middle finds the schema before or after, never between. */
#include <stdio.h>

#include "base/mem.h"
#include "store/internal.h"

static const struct {
    int version;
    const char *sql;
} migrations[] = {
    {1, store_schema_1},
};

int store_schema_newest(void)
{
    return migrations[ARRAY_SIZE(migrations) - 1].version;
}

int store_identify(sqlite3 *db, const char *path, int64_t *ret_version, struct error *err)
{
    int64_t id, version, cookie, tables;

    if (store_db_int(db, "PRAGMA application_id", &id, err) < 0 ||
        store_db_int(db, "PRAGMA user_version", &version, err) < 0 ||
        store_db_int(db, "PRAGMA schema_version", &cookie, err) < 0 ||
        store_db_int(db, "SELECT count(*) FROM sqlite_schema", &tables, err) < 0)
        return -1;
    if (id != STORE_APPLICATION_ID && (id != 0 || version != 0 || tables != 0)) {
        error_set(err, ERR_DAEMON_INTERNAL, "%s is a database, but not one of vmmd", path);
        error_help(err, "move the file away, or give vmmd another data directory");
        return -1;
    }
    if (version > store_schema_newest()) {
        error_set(err, ERR_DAEMON_INTERNAL,
                  "%s has schema %lld, and this vmmd knows schemas up to %d: it needs a vmmd that knows schema %lld",
                  path, (long long)version, store_schema_newest(), (long long)version);
        error_help(err, "run the newer vmmd that wrote this database, or restore a backup made before the upgrade");
        return -1;
    }
    if (version < 0 || (id == STORE_APPLICATION_ID && version == 0))
        return error_set(err, ERR_DAEMON_INTERNAL, "%s is damaged: its schema number is %lld", path,
                         (long long)version);
    *ret_version = version;
    return 0;
}

static int migrate_step(sqlite3 *db, const char *path, int version, const char *sql, struct error *err)
{
    char mark[128], doing[64];

    snprintf(doing, sizeof(doing), "migrate the database to schema %d", version);
    snprintf(mark, sizeof(mark), "PRAGMA application_id = %d; PRAGMA user_version = %d; COMMIT", STORE_APPLICATION_ID,
             version);
    if (store_db_exec(db, "BEGIN IMMEDIATE", doing, err) == 0 && store_db_exec(db, sql, doing, err) == 0 &&
        store_db_exec(db, mark, doing, err) == 0)
        return 0;
    sqlite3_exec(db, "ROLLBACK", NULL, NULL, NULL);
    error_cause(err, "the database is %s", path);
    return -1;
}

int store_migrate(sqlite3 *db, const char *path, struct error *err)
{
    int64_t version;

    if (store_identify(db, path, &version, err) < 0)
        return -1;
    for (size_t i = 0; i < ARRAY_SIZE(migrations); i++)
        if (migrations[i].version > version &&
            migrate_step(db, path, migrations[i].version, migrations[i].sql, err) < 0)
            return -1;
    return 0;
}
