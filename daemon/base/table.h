/* table.h - an intrusive hash table: nodes live in their owners, the table only points at them.  One thread. */
#ifndef BASE_TABLE_H
#define BASE_TABLE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct table_node {
    struct table_node *next;
    uint64_t hash;
};

struct table {
    struct table_node **slots;
    size_t n_slots; /* a power of two */
    size_t n;
};

void table_done(struct table *t); /* frees the slots, not the nodes */
/* -1 when memory is short and the node was not added. */
int table_add(struct table *t, struct table_node *node, uint64_t hash);
void table_remove(struct table *t, struct table_node *node); /* a node that is not there is fine */
/* The first node of this hash for which equal(node, key) holds, or NULL. */
struct table_node *table_find(const struct table *t, uint64_t hash,
                              bool (*equal)(const struct table_node *node, const void *key), const void *key);
/* Walks all nodes; fn may remove the node it is given. */
void table_each(struct table *t, void (*fn)(struct table_node *node, void *arg), void *arg);

#endif
