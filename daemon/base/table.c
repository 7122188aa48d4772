/* table.c - see table.h. */
#include "base/table.h"

#include "base/mem.h"

void table_done(struct table *t)
{
    mem_free(t->slots);
    *t = (struct table){0};
}

static int table_grow(struct table *t)
{
    size_t n_slots = t->n_slots > 0 ? t->n_slots * 2 : 64;
    struct table_node **slots = mem_zalloc(n_slots * sizeof(slots[0]));

    if (slots == NULL)
        return t->n_slots > 0 ? 0 : -1; /* a full table is only slower */
    for (size_t i = 0; i < t->n_slots; i++)
        for (struct table_node *node = t->slots[i], *next; node != NULL; node = next) {
            next = node->next;
            node->next = slots[node->hash & (n_slots - 1)];
            slots[node->hash & (n_slots - 1)] = node;
        }
    mem_free(t->slots);
    t->slots = slots;
    t->n_slots = n_slots;
    return 0;
}

int table_add(struct table *t, struct table_node *node, uint64_t hash)
{
    if (t->n >= t->n_slots && table_grow(t) < 0)
        return -1;
    node->hash = hash;
    node->next = t->slots[hash & (t->n_slots - 1)];
    t->slots[hash & (t->n_slots - 1)] = node;
    t->n++;
    return 0;
}

void table_remove(struct table *t, struct table_node *node)
{
    if (t->n_slots == 0)
        return;
    for (struct table_node **p = &t->slots[node->hash & (t->n_slots - 1)]; *p != NULL; p = &(*p)->next)
        if (*p == node) {
            *p = node->next;
            node->next = NULL;
            t->n--;
            return;
        }
}

struct table_node *table_find(const struct table *t, uint64_t hash,
                              bool (*equal)(const struct table_node *node, const void *key), const void *key)
{
    if (t->n_slots == 0)
        return NULL;
    for (struct table_node *node = t->slots[hash & (t->n_slots - 1)]; node != NULL; node = node->next)
        if (node->hash == hash && equal(node, key))
            return node;
    return NULL;
}

void table_each(struct table *t, void (*fn)(struct table_node *node, void *arg), void *arg)
{
    for (size_t i = 0; i < t->n_slots; i++)
        for (struct table_node *node = t->slots[i], *next; node != NULL; node = next) {
            next = node->next;
            fn(node, arg);
        }
}
