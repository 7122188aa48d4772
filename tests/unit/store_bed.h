/* store_bed.h - what the tests of the store share: a store in a directory of its own, and callbacks that remember. */
#ifndef TESTS_STORE_BED_H
#define TESTS_STORE_BED_H

#include <semaphore.h>
#include <stdbool.h>
#include <stdint.h>

#include <sqlite3.h>

#include "store/store.h"

struct bed {
    char dir[64], path[96];
    struct store *store;
    sem_t woken;
};

struct result {
    unsigned calls;
    enum error_code code;
    char message[ERROR_MESSAGE_MAX];
    unsigned at; /* its place among all callbacks */
};

/* What a load found, as one line. */
struct found {
    char text[8192];
    unsigned rows, stop_after;
};

/* Reads VMMD_TEST_SEED, or takes the time, and prints it. */
void bed_seed(void);
/* A number below `below`; from VMMD_TEST_SEED, which is printed. */
uint32_t bed_random(uint32_t below);
/* store_open and its result. */
int bed_reopen(struct bed *b, struct error *err);
/* Opens, or fails the test. */
void bed_open(struct bed *b);
/* cmocka's set-up and tear-down: an open store in a directory of its own. */
int bed_set_up(void **state);
int bed_tear_down(void **state);
void bed_close(struct bed *b);
/* A done callback; arg is a struct result. */
void bed_on_done(void *arg, struct error *err);
/* Waits for a wake and dispatches; false after 20 s. */
bool bed_turn(struct bed *b);
/* Turns until *calls is not 0. */
void bed_wait(struct bed *b, const unsigned *calls);
/* Commits, waits, and returns the code; ret may be NULL. */
enum error_code bed_commit(struct bed *b, struct store_tx *tx, struct result *ret);
void bed_put_vm(struct store_tx *tx, const char *id, const char *name, int64_t destroyed_at);
void bed_put_operation(struct store_tx *tx, const char *id, const char *vm, const char *state, int64_t finished);
/* Adds to what was found. */
void bed_note(struct found *f, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
/* Callbacks that note; arg is a struct found. */
int bed_on_vm(void *arg, const struct store_vm_row *row, struct error *err);
int bed_on_operation(void *arg, const struct store_operation_row *row, struct error *err);
int bed_on_key(void *arg, const struct store_key_row *row, struct error *err);
void bed_on_operation_row(void *arg, const struct store_operation_row *row);
void bed_on_event_row(void *arg, const struct store_event_row *row);
/* How many VMs a load finds. */
unsigned bed_count_vms(struct bed *b);
/* A second connection, for planting and for holding the write lock. */
sqlite3 *bed_connect(struct bed *b);
void bed_sql(sqlite3 *db, const char *text);
void bed_plant(struct bed *b, const char *text);
/* A done callback that fails the test. */
void bed_never(void *arg, struct error *err);
void bed_on_line(void *arg, const char *line);
/* arg[id as a number] = true. */
int bed_mark_vm(void *arg, const struct store_vm_row *row, struct error *err);

#define BED_TEST(f) cmocka_unit_test_setup_teardown(f, bed_set_up, bed_tear_down)

#endif
