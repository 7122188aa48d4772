/* observe.c - see observe.h.  In rounds, half a second apart at first and half a minute when all is known:
 *
 *     the agent's interfaces ─► tap: leases and neighbours, on the pool ─► told: addresses ─► seed.c: cloud-init's result
 *
 * An address is the guest's by the MAC of its card alone.  Each source that answers replaces what it said before; what a mute
 * one said ages out.  What the agent claims on a bridge is dropped where the host knows the address to be another's.
 * A guest that is paused is not asked, and nothing of it ages. */
#include "backend/qemu/observe.h"

#include <stdio.h>
#include <string.h>

#include "backend/qemu/internal.h"
#include "backend/qemu/seed.h"
#include "base/clock.h"
#include "base/mem.h"
#include "guest/info.h"
#include "net/lease.h"
#include "net/neighbour.h"

enum {
    ASK_MS = 10000,
    FIRST_MS = 500,
    EAGER_MS = 5000,         /* between rounds while something is missing … */
    EAGER_FOR_MS = 300000,   /* … and so long after the start */
    CALM_MS = 30000,         /* afterwards, and when nothing is */
    ADDRESS_AGE_MS = 600000, /* what is not confirmed for so long is gone */
};

struct observer {
    struct backend_vm *bvm;
    struct timer *timer;
    int64_t interval_ms;
    int64_t began_at; /* loop time */
    bool busy;        /* a round is under way */
    bool again;       /* and another one is wanted at once */
    unsigned boot;    /* no other of this backend has this number: what was asked in one says nothing of the next */
    unsigned asked;   /* the boot of the round under way */
    struct vm_address claims[VM_ADDRESSES_MAX]; /* the agent's */
    unsigned n_claims;
    struct vm_address seen[VM_ADDRESSES_MAX]; /* the host's: leases, then neighbours */
    unsigned n_seen;
    unsigned n_told;
    struct seed_watch seed;
};

static bool wants_addresses(const struct backend_vm *bvm)
{
    return bvm->vm->spec.network.type == VM_NETWORK_USER || bvm->vm->spec.network.type == VM_NETWORK_TAP;
}

/* Also while the guest itself, which can be asked, has none yet: what the host has heard may be an offer. */
static bool lacks_address(const struct observer *o)
{
    return wants_addresses(o->bvm) &&
           (o->n_told == 0 || (o->n_claims == 0 && o->bvm->agent && agent_is_up(o->bvm->agent)));
}

static void arm(struct observer *o)
{
    bool missing = lacks_address(o) || !seed_watch_over(&o->seed);
    bool eager = missing && loop_now_ms(o->bvm->be->loop) - o->began_at < EAGER_FOR_MS;
    int64_t most = eager ? EAGER_MS : CALM_MS;

    if (!wants_addresses(o->bvm) && seed_watch_over(&o->seed))
        return;
    timer_start(o->timer, o->interval_ms < most && missing ? o->interval_ms : most, 0);
    if (o->interval_ms < CALM_MS)
        o->interval_ms += o->interval_ms / 2;
}

static void round_begin(struct observer *o);

static void round_end(struct observer *o)
{
    o->busy = false;
    if (o->again)
        round_begin(o);
    else
        arm(o);
}

static void seed_looked(void *arg)
{
    round_end(arg);
}

/* ---- telling ---- */

static unsigned add(struct vm_address *list, unsigned n, const struct vm_address *a)
{
    for (unsigned i = 0; i < n; i++)
        if (strcmp(list[i].ip, a->ip) == 0)
            return n;
    if (n < VM_ADDRESSES_MAX)
        list[n++] = *a;
    return n;
}

/* Drops what nobody has confirmed for too long. */
static unsigned age_out(struct vm_address *list, unsigned n)
{
    int64_t now = clock_wall_ms();
    unsigned kept = 0;

    for (unsigned i = 0; i < n; i++)
        if (now - list[i].seen_at < ADDRESS_AGE_MS)
            list[kept++] = list[i];
    return kept;
}

static void tell(struct observer *o)
{
    struct vm_address list[VM_ADDRESSES_MAX];
    unsigned n = 0;

    o->n_claims = age_out(o->claims, o->n_claims);
    o->n_seen = age_out(o->seen, o->n_seen);
    for (unsigned i = 0; i < o->n_claims; i++)
        n = add(list, n, &o->claims[i]);
    for (unsigned i = 0; i < o->n_seen; i++)
        n = add(list, n, &o->seen[i]);
    o->n_told = n;
    if (wants_addresses(o->bvm)) {
        o->bvm->events->addresses(o->bvm->arg, list, n);
        guest_addresses_told(o->bvm);
    }
    seed_watch_look(&o->seed, seed_looked, o);
}

/* ---- what the host knows, on the pool ---- */

struct scan_job {
    struct job job;
    unsigned boot;
    char **lease_files; /* owned */
    char bridge[20];
    unsigned char mac[NET_MAC_LEN];
    int64_t now; /* wall ms */
    struct vm_address lease;
    int64_t lease_expires;
    struct vm_address neighbours[VM_ADDRESSES_MAX];
    unsigned n_neighbours;
    struct vm_address claims[VM_ADDRESSES_MAX];
    bool own[VM_ADDRESSES_MAX], foreign[VM_ADDRESSES_MAX]; /* of the claims */
    unsigned n_claims;
    bool leases_read, neighbours_read;
};

static void note_owner(struct scan_job *s, const char *ip, bool own)
{
    for (unsigned i = 0; i < s->n_claims; i++)
        if (strcmp(s->claims[i].ip, ip) == 0)
            *(own ? &s->own[i] : &s->foreign[i]) = true;
}

static void take_lease(void *arg, const struct lease *lease)
{
    struct scan_job *s = arg;
    int64_t expires =
        lease->expires_at > 0 && lease->expires_at < INT64_MAX / 1000 ? lease->expires_at * 1000 : INT64_MAX;
    bool own = memcmp(lease->mac, s->mac, NET_MAC_LEN) == 0;

    if (expires <= s->now)
        return;
    note_owner(s, lease->ip, own);
    if (!own || expires < s->lease_expires || !guest_info_ip(lease->ip, s->lease.ip))
        return;
    s->lease_expires = expires;
    s->lease.source = VM_ADDRESS_LEASE;
    s->lease.seen_at = s->now;
}

static void take_neighbour(void *arg, const struct neighbour *n)
{
    struct scan_job *s = arg;
    struct vm_address a = {.source = VM_ADDRESS_NEIGHBOUR, .seen_at = s->now - n->age_ms};
    bool own = memcmp(n->mac, s->mac, NET_MAC_LEN) == 0;

    note_owner(s, n->ip, own);
    if (own && guest_info_ip(n->ip, a.ip))
        s->n_neighbours = add(s->neighbours, s->n_neighbours, &a);
}

static int scan_fn(struct job *job, struct error *err)
{
    struct scan_job *s = CONTAINER_OF(job, struct scan_job, job);
    CLEANUP_ERROR struct error ignored = ERROR_INIT;

    (void)err;
    s->leases_read = true;
    for (char **path = s->lease_files; *path; path++)
        if (leases_read(*path, take_lease, s, &ignored) < 0)
            s->leases_read = false;
    error_done(&ignored);
    s->neighbours_read = neighbours_read(s->bridge, take_neighbour, s, &ignored) == 0;
    return 0;
}

static void scan_free(struct job *job)
{
    struct scan_job *s = CONTAINER_OF(job, struct scan_job, job);

    texts_free(s->lease_files);
    mem_free(s);
}

static bool foreign(const struct scan_job *s, const char *ip)
{
    for (unsigned i = 0; i < s->n_claims; i++)
        if (s->foreign[i] && !s->own[i] && strcmp(s->claims[i].ip, ip) == 0)
            return true;
    return false;
}

/* Replaces what each source that answered had said. */
static void take_scan(struct observer *o, const struct scan_job *s)
{
    struct vm_address old[VM_ADDRESSES_MAX];
    unsigned n_old = o->n_seen, kept = 0;

    memcpy(old, o->seen, sizeof(old));
    o->n_seen = 0;
    if (s->lease_expires > 0)
        o->n_seen = add(o->seen, o->n_seen, &s->lease);
    for (unsigned i = 0; i < s->n_neighbours; i++)
        o->n_seen = add(o->seen, o->n_seen, &s->neighbours[i]);
    for (unsigned i = 0; i < n_old; i++)
        if (!(old[i].source == VM_ADDRESS_LEASE ? s->leases_read : s->neighbours_read))
            o->n_seen = add(o->seen, o->n_seen, &old[i]);
    for (unsigned i = 0; i < o->n_claims; i++)
        if (!foreign(s, o->claims[i].ip))
            o->claims[kept++] = o->claims[i];
    o->n_claims = kept;
}

static void scanned(struct backend_vm *bvm, struct job *job, int rc, struct error *err)
{
    struct scan_job *s = CONTAINER_OF(job, struct scan_job, job);
    struct observer *o = bvm->observer;

    (void)rc;
    (void)err;
    if (!o || !o->busy || s->boot != o->asked) /* of a process that is over */
        return;
    if (o->asked != o->boot) {
        round_end(o);
        return;
    }
    take_scan(o, s);
    tell(o);
}

static struct scan_job *scan_new(struct observer *o)
{
    struct backend_vm *bvm = o->bvm;
    struct scan_job *s = mem_zalloc(sizeof(*s));

    if (!s)
        return NULL;
    s->job.fn = scan_fn;
    s->job.done = scanned;
    s->job.free = scan_free;
    s->boot = o->asked;
    s->now = clock_wall_ms();
    s->lease_files = texts_copy((const char *const *)bvm->be->lease_files);
    snprintf(s->bridge, sizeof(s->bridge), "%s", bvm->vm->spec.network.bridge);
    memcpy(s->claims, o->claims, sizeof(s->claims));
    s->n_claims = o->n_claims;
    if (!s->lease_files || !mac_parse(bvm->vm->runtime.mac_addr, s->mac)) {
        scan_free(&s->job);
        return NULL;
    }
    return s;
}

static void scan(struct observer *o)
{
    CLEANUP_ERROR struct error err = ERROR_INIT;
    struct scan_job *s = o->bvm->vm->spec.network.type == VM_NETWORK_TAP ? scan_new(o) : NULL;

    if (!s || job_run(o->bvm, &s->job, &err) < 0)
        tell(o);
}

/* ---- what the agent claims ---- */

static void got_interfaces(void *arg, json_t *ret, struct error *err)
{
    struct observer *o = arg;
    char ips[VM_ADDRESSES_MAX][GUEST_IP_MAX];

    if (o->asked != o->boot) {
        round_end(o);
        return;
    }
    if (!error_is_set(err) && json_is_array(ret)) {
        o->n_claims = guest_info_addresses(ret, o->bvm->vm->runtime.mac_addr, ips, VM_ADDRESSES_MAX);
        for (unsigned i = 0; i < o->n_claims; i++) {
            o->claims[i] = (struct vm_address){.source = VM_ADDRESS_AGENT, .seen_at = clock_wall_ms()};
            memcpy(o->claims[i].ip, ips[i], sizeof(o->claims[i].ip));
        }
    }
    scan(o);
}

static void round_begin(struct observer *o)
{
    struct backend_vm *bvm = o->bvm;
    CLEANUP_ERROR struct error err = ERROR_INIT;

    o->again = false;
    if (bvm->paused) {
        arm(o);
        return;
    }
    o->busy = true;
    o->asked = o->boot;
    if (wants_addresses(bvm) && bvm->agent && agent_is_up(bvm->agent) &&
        agent_execute(bvm->agent, "guest-network-get-interfaces", NULL, ASK_MS, got_interfaces, o, &err) == 0)
        return;
    scan(o);
}

/* ---- its life ---- */

static void on_timer(void *arg)
{
    struct observer *o = arg;

    if (!o->busy)
        round_begin(o);
}

static void begin_anew(struct observer *o, int64_t ran_ms)
{
    o->boot = ++o->bvm->be->boots;
    o->began_at = loop_now_ms(o->bvm->be->loop);
    o->interval_ms = FIRST_MS;
    o->n_claims = o->n_seen = o->n_told = 0;
    seed_watch_begin(&o->seed, o->bvm, ran_ms);
}

void observe_start(struct backend_vm *bvm, int64_t ran_ms)
{
    struct observer *o = bvm->observer ? NULL : mem_zalloc(sizeof(*o));

    if (!o)
        return;
    o->bvm = bvm;
    o->timer = timer_new(bvm->be->loop, on_timer, o);
    if (!o->timer) {
        mem_free(o);
        return;
    }
    bvm->observer = o;
    begin_anew(o, ran_ms);
    arm(o);
}

/* As soon as the round under way is over. */
static void look_again(struct observer *o)
{
    o->interval_ms = FIRST_MS;
    if (o->busy)
        o->again = true;
    else
        timer_start(o->timer, 0, 0);
}

void observe_agent_up(struct backend_vm *bvm)
{
    if (bvm->observer)
        look_again(bvm->observer);
}

void observe_guest_reset(struct backend_vm *bvm)
{
    struct observer *o = bvm->observer;

    if (!o)
        return;
    begin_anew(o, 0);
    if (!o->busy)
        arm(o);
}

void observe_stop(struct backend_vm *bvm)
{
    struct observer *o = TAKE_PTR(bvm->observer);

    if (!o)
        return;
    timer_free(o->timer);
    seed_watch_end(&o->seed);
    mem_free(o);
}
