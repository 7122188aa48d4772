/* seed.h - how cloud-init ended in a guest, as the guest tells it through its agent.  Loop thread. */
#ifndef BACKEND_QEMU_SEED_H
#define BACKEND_QEMU_SEED_H

#include <stdbool.h>
#include <stdint.h>

#include "guest/peek.h"

struct backend_vm;

/* Embedded in the observer.  What is found is told by backend_events.cloud_init. */
struct seed_watch {
    struct backend_vm *bvm;
    bool wanted;      /* the VM has a seed */
    bool over;        /* nothing more will come */
    int64_t limit_at; /* loop time */
    unsigned boot;    /* counts beginnings: a look begun before the last one counts for nothing */
    unsigned looking_at_boot;
    unsigned absent; /* looks that found nothing of cloud-init's */
    const char *reason;
    char message[GUEST_TEXT_MAX];
    int look; /* at the how many-th file */
    struct guest_peek peek;
    void (*looked)(void *arg);
    void *arg;
};

/* A boot began ran_ms ago. */
void seed_watch_begin(struct seed_watch *w, struct backend_vm *bvm, int64_t ran_ms);
bool seed_watch_over(const struct seed_watch *w);
/* Looks, tells, and calls looked, maybe before it returns. */
void seed_watch_look(struct seed_watch *w, void (*looked)(void *arg), void *arg);
void seed_watch_end(struct seed_watch *w);

#endif
