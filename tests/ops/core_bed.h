/* core_bed.h - what the tests of core share: a core with the noop backend and a real store on a real loop. */
#ifndef TESTS_CORE_BED_H
#define TESTS_CORE_BED_H

#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include <jansson.h>

#include "backend/noop/noop.h"
#include "core/core.h"
#include "core/internal.h"

struct core_bed {
    char dir[64], path[96];
    struct loop *loop;
    struct loop_waker *waker;
    struct store *store;
    struct backend *noop;
    struct backend *backends[2];
    struct core *core;
    struct timer *alarm; /* no wait lasts for ever */
    bool late;
    const char *helper_dir; /* of the image cache; NULL: it has none */
    int64_t timeout_s;      /* of the verbs: how long a guest may take */
};

/* cmocka's set-up and tear-down: a core in a directory of its own. */
int core_bed_set_up(void **state);
int core_bed_tear_down(void **state);
/* The loop, the store and a core that has recovered; or fails the test. */
void core_bed_open(struct core_bed *b);
/* All but the core: to look at the store before it. */
void core_bed_open_store(struct core_bed *b);
/* Shuts down (operations get grace_ms) and frees; fails the test when anything is left on the loop. */
void core_bed_close(struct core_bed *b, int64_t grace_ms);
/* Turns the loop until *flag; false after 20 s. */
bool core_bed_until(struct core_bed *b, const bool *flag);
bool core_bed_poll(struct core_bed *b, bool (*over)(void *arg), void *arg);
void core_bed_turns(struct core_bed *b, unsigned n);
/* Waits until everything under way is durable and nothing is deferred. */
void core_bed_quiet(struct core_bed *b);
/* A second connection to the database: one text, or NULL (mem_free). */
char *core_bed_sql(struct core_bed *b, const char *sql, const char *arg);

/* Begin: the operation, referenced; or NULL and the error. */
struct operation *core_bed_create(struct core_bed *b, const char *body, const char *key, struct error *err);
struct operation *core_bed_verb(struct core_bed *b, const char *ref, enum vm_verb verb, struct error *err);
/* Waits until it has ended, and drops the reference: its code. */
enum error_code core_bed_end(struct core_bed *b, struct operation *op);
/* Waits until it has ended; the reference stays. */
void core_bed_await(struct core_bed *b, struct operation *op, bool ended);
/* Both: the verb's code, or the refusal's. */
enum error_code core_bed_do(struct core_bed *b, const char *ref, enum vm_verb verb);
void core_bed_make(struct core_bed *b, const char *body);
/* A PATCH, waited for. */
enum error_code core_bed_patch(struct core_bed *b, const char *ref, const char *patch);
/* The VM's published document; json_decref. */
json_t *core_bed_doc(struct core_bed *b, const char *ref);
struct live_vm *core_bed_vm(struct core_bed *b, const char *ref);
/* A member of the document as text, "a.b": valid until the next call. */
const char *core_bed_get(struct core_bed *b, const char *ref, const char *path);

#define CORE_TEST(f) cmocka_unit_test_setup_teardown(f, core_bed_set_up, core_bed_tear_down)

#endif
