/* keys.c - idempotency keys: which request a key belongs to, and which operation it began. */
#include <stdio.h>
#include <string.h>

#include "base/mem.h"
#include "base/str.h"
#include "core/internal.h"

struct key {
    struct table_node node;
    int64_t at;
    char operation_id[UUID_TEXT_MAX];
    char *fingerprint;
    char text[]; /* the key */
};

static bool key_equal(const struct table_node *node, const void *text)
{
    return strcmp(CONTAINER_OF(node, struct key, node)->text, text) == 0;
}

static struct key *find(struct core *core, const char *text)
{
    struct table_node *node = table_find(&core->keys, str_hash(text), key_equal, text);

    return node != NULL ? CONTAINER_OF(node, struct key, node) : NULL;
}

int keys_add(struct core *core, const char *text, const char *fingerprint, const char *operation_id, int64_t at)
{
    size_t len = strlen(text) + 1;
    struct key *key = mem_zalloc(sizeof(*key) + len);

    if (key == NULL)
        return -1;
    memcpy(key->text, text, len);
    key->at = at;
    snprintf(key->operation_id, sizeof(key->operation_id), "%s", operation_id);
    key->fingerprint = mem_strdup(fingerprint);
    if (key->fingerprint == NULL || table_add(&core->keys, &key->node, str_hash(text)) < 0) {
        mem_free(key->fingerprint);
        mem_free(key);
        return -1;
    }
    return 0;
}

static void drop(struct core *core, struct key *key)
{
    table_remove(&core->keys, &key->node);
    mem_free(key->fingerprint);
    mem_free(key);
}

void keys_remove(struct core *core, const char *text)
{
    struct key *key = find(core, text);

    if (key != NULL)
        drop(core, key);
}

int core_key_lookup(struct core *core, const struct core_request *req, struct operation **ret, char *ret_id,
                    struct error *err)
{
    struct key *key = req->idempotency_key != NULL ? find(core, req->idempotency_key) : NULL;

    *ret = NULL;
    *ret_id = '\0';
    if (key == NULL)
        return 0;
    if (strcmp(key->fingerprint, req->fingerprint) != 0) {
        error_set(err, ERR_API_IDEMPOTENCY_MISMATCH, "the idempotency key %.80s belongs to another request",
                  req->idempotency_key);
        error_ctx_str(err, "operation", key->operation_id);
        return -1;
    }
    memcpy(ret_id, key->operation_id, UUID_TEXT_MAX);
    *ret = operation_find_any(core, key->operation_id); /* one not durable yet too: its watch waits for that */
    return 0;
}

struct forget {
    struct core *core;
    struct change *ch;
    const char *operation_id;
};

static void forget_one(struct table_node *node, void *arg)
{
    struct forget *f = arg;
    struct key *key = CONTAINER_OF(node, struct key, node);

    if (strcmp(key->operation_id, f->operation_id) != 0)
        return;
    change_key(f->ch, key->text, key->fingerprint, key->operation_id, 0);
    drop(f->core, key);
}

void keys_forget_operation(struct core *core, struct change *ch, const char *operation_id)
{
    struct forget f = {core, ch, operation_id};

    table_each(&core->keys, forget_one, &f);
}

struct prune {
    struct core *core;
    int64_t before;
};

static void prune_one(struct table_node *node, void *arg)
{
    struct prune *p = arg;
    struct key *key = CONTAINER_OF(node, struct key, node);

    if (key->at < p->before)
        drop(p->core, key);
}

void keys_prune(struct core *core, int64_t before)
{
    struct prune p = {core, before};

    table_each(&core->keys, prune_one, &p);
}

static void free_one(struct table_node *node, void *arg)
{
    struct key *key = CONTAINER_OF(node, struct key, node);

    (void)arg;
    mem_free(key->fingerprint);
    mem_free(key);
}

void keys_free(struct core *core)
{
    table_each(&core->keys, free_one, NULL);
    table_done(&core->keys);
}
