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
    {2, store_schema_2},
};

int store_schema_newest(void)
{
    return migrations[ARRAY_SIZE(migrations) - 1].version;
}

/* The vmmd that used the database last, by its own record; "" where it left none that can be read. */
static void last_user(sqlite3 *db, char *out, size_t size)
{
    sqlite3_stmt *stmt = NULL;

    out[0] = '\0';
    if (sqlite3_prepare_v2(db, "SELECT value FROM meta WHERE key = 'vmmd_version'", -1, &stmt, NULL) == SQLITE_OK &&
        sqlite3_step(stmt) == SQLITE_ROW && sqlite3_column_text(stmt, 0) != NULL)
        snprintf(out, size, "%s", (const char *)sqlite3_column_text(stmt, 0));
    sqlite3_finalize(stmt);
    store_one_line(out);
}

static int refuse_newer(sqlite3 *db, const char *path, int64_t version, struct error *err)
{
    char user[32], needed[80];

    last_user(db, user, sizeof(user));
    if (user[0] != '\0')
        snprintf(needed, sizeof(needed), "vmmd %s, which used it last, or a newer one", user);
    else
        snprintf(needed, sizeof(needed), "a vmmd that knows schema %lld", (long long)version);
    error_set(err, ERR_DAEMON_INTERNAL,
              "%s has schema %lld, and vmmd " VMMD_VERSION " knows schemas up to %d: it needs %s", path,
              (long long)version, store_schema_newest(), needed);
    error_help(err, "run the newer vmmd, or restore a backup made before the upgrade");
    return -1;
}

int store_identify(sqlite3 *db, const char *path, int64_t *ret_version, struct error *err)
{
    int64_t id, version, tables;

    if (store_db_int(db, "PRAGMA application_id", &id, err) < 0 ||
        store_db_int(db, "PRAGMA user_version", &version, err) < 0 ||
        store_db_int(db, "SELECT count(*) FROM sqlite_schema", &tables, err) < 0)
        return -1;
    if (id != STORE_APPLICATION_ID && (id != 0 || version != 0 || tables != 0)) {
        error_set(err, ERR_DAEMON_INTERNAL, "%s is a database, but not one of vmmd", path);
        error_help(err, "move the file away, or give vmmd another data directory");
        return -1;
    }
    if (version > store_schema_newest())
        return refuse_newer(db, path, version, err);
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
    /* for the vmmd that finds this database too new for it; no write when nothing changed */
    return store_db_exec(db,
                         "INSERT INTO meta (key, value) VALUES ('vmmd_version', '" VMMD_VERSION "')"
                         " ON CONFLICT (key) DO UPDATE SET value = excluded.value WHERE value <> excluded.value",
                         "write to the database", err);
}
