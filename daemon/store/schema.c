/* schema.c - the schemas: 1, and what each later one adds.  A published schema never changes: the next one is a migration (migrations.c).
 *
 * Documents are JSON text whose meaning is the owner's; beside them stands only what SQL must find, order or keep
 * unique. Ids are UUIDv7 text, so their order is that of birth.  Rows with documents keep the rowid (long rows in a
 * WITHOUT ROWID table overflow early); the narrow ones do without. */
#include "store/internal.h"

const char store_schema_1[] =
    "CREATE TABLE meta ("
    "  key TEXT PRIMARY KEY NOT NULL,"
    "  value ANY NOT NULL"
    ") STRICT, WITHOUT ROWID;"

    "CREATE TABLE vms ("
    "  id TEXT PRIMARY KEY NOT NULL,"
    "  name TEXT NOT NULL,"
    "  doc TEXT NOT NULL,"
    "  private_doc TEXT,"
    "  destroyed_at INTEGER NOT NULL" /* wall ms; 0: alive */
    ") STRICT;"
    "CREATE UNIQUE INDEX vms_living_name ON vms (name) WHERE destroyed_at = 0;"
    "CREATE INDEX vms_destroyed ON vms (destroyed_at) WHERE destroyed_at > 0;"

    "CREATE TABLE operations ("
    "  id TEXT PRIMARY KEY NOT NULL,"
    "  kind TEXT NOT NULL,"
    "  vm_id TEXT,"
    "  state TEXT NOT NULL,"
    "  doc TEXT NOT NULL,"
    "  created_at INTEGER NOT NULL,"
    "  finished_at INTEGER NOT NULL" /* 0: not finished */
    ") STRICT;"
    "CREATE INDEX operations_vm ON operations (vm_id, id);"
    "CREATE INDEX operations_state ON operations (state, id);"
    "CREATE INDEX operations_finished ON operations (finished_at);"

    "CREATE TABLE events ("
    "  id INTEGER PRIMARY KEY NOT NULL,"
    "  at INTEGER NOT NULL,"
    "  type TEXT NOT NULL,"
    "  vm_id TEXT,"
    "  doc TEXT NOT NULL"
    ") STRICT;"
    "CREATE INDEX events_vm ON events (vm_id) WHERE vm_id IS NOT NULL;"

    "CREATE TABLE idempotency_keys ("
    "  key TEXT PRIMARY KEY NOT NULL,"
    "  fingerprint TEXT NOT NULL,"
    "  operation_id TEXT,"
    "  created_at INTEGER NOT NULL"
    ") STRICT, WITHOUT ROWID;"

    /* Deferred, so that the records of a transaction may stand in any order; the writer looks before each ends. */
    "CREATE TABLE ports ("
    "  udp INTEGER NOT NULL,"
    "  host_ip TEXT NOT NULL,"
    "  port INTEGER NOT NULL,"
    "  vm_id TEXT NOT NULL REFERENCES vms (id) ON DELETE CASCADE DEFERRABLE INITIALLY DEFERRED,"
    "  PRIMARY KEY (udp, host_ip, port)"
    ") STRICT, WITHOUT ROWID;"
    "CREATE INDEX ports_vm ON ports (vm_id);";

/* The image cache. */
const char store_schema_2[] = "CREATE TABLE images ("
                              "  id TEXT PRIMARY KEY NOT NULL,"
                              "  name TEXT NOT NULL UNIQUE,"
                              "  doc TEXT NOT NULL"
                              ") STRICT;";
