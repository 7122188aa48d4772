/* seed.c - see seed.h.  cloud-init writes down how it stands; three small files tell it, whatever its version:
 *
 *     result.json there? ─► done, or error with the texts of the modules that failed
 *     status.json there? ─► running, at some stage
 *     disabled    there? ─► disabled: it will not run in this boot
 *     none of them, three times in a row ─► absent: the guest has no cloud-init
 *
 * Nothing is run in the guest.  Failures: no agent, or no result within the time limit: timed_out, and a result that comes later
 * still counts; an agent that may not open files: unreadable.  A guest that lies, lies about itself alone. */
#include "backend/qemu/seed.h"

#include <stdio.h>
#include <string.h>

#include "backend/qemu/internal.h"
#include "cloudinit/seed.h"

enum { ABSENT_LOOKS = 3 };

static const char *const files[] = {"/run/cloud-init/result.json", "/run/cloud-init/status.json",
                                    "/run/cloud-init/disabled"};

void seed_watch_begin(struct seed_watch *w, struct backend_vm *bvm, int64_t ran_ms)
{
    int64_t left = bvm->be->cloud_init_timeout_ms - ran_ms;

    w->bvm = bvm;
    w->wanted = bvm->vm->spec.has_cloud_init;
    w->over = false;
    w->limit_at = loop_now_ms(bvm->be->loop) + (left > 0 ? left : 0);
    w->boot++;
    w->absent = 0;
    w->reason = NULL;
}

bool seed_watch_over(const struct seed_watch *w)
{
    return !w->wanted || w->over;
}

static bool late(const struct seed_watch *w)
{
    return loop_now_ms(w->bvm->be->loop) >= w->limit_at;
}

static void note(struct seed_watch *w, const char *reason, const char *message)
{
    w->reason = reason;
    w->message[0] = '\0';
    guest_info_text(w->message, message);
}

/* Tells where it stands, and lets the owner go on. */
static void finish(struct seed_watch *w)
{
    char text[GUEST_TEXT_MAX];

    if (w->wanted && !w->over && late(w)) {
        bool final = w->reason && (strcmp(w->reason, "absent") == 0 || strcmp(w->reason, "unreadable") == 0);

        if (final)
            w->over = true;
        else {
            snprintf(text, sizeof(text), "no result within %lld s; %s",
                     (long long)(w->bvm->be->cloud_init_timeout_ms / 1000),
                     w->bvm->agent && agent_is_up(w->bvm->agent) ? "cloud-init still runs"
                                                                 : "the guest agent does not answer");
            note(w, "timed_out", text);
        }
    }
    if (w->reason)
        w->bvm->events->cloud_init(w->bvm->arg, strcmp(w->reason, "done") == 0, w->reason, w->message);
    w->looked(w->arg);
}

static void take_result(struct seed_watch *w)
{
    const char *user_data = w->bvm->vm->spec.cloud_init.user_data;
    char message[GUEST_TEXT_MAX];

    switch (guest_info_seed_result(w->peek.data, w->peek.len, message)) {
    case GUEST_SEED_DONE:
        note(w, "done",
             user_data && !seed_user_data_known(user_data)
                 ? "user_data was ignored: it begins with no header that cloud-init knows (#cloud-config, #!, …)"
                 : message);
        w->over = true;
        break;
    case GUEST_SEED_ERROR:
        note(w, "error", message);
        w->over = true;
        break;
    default:
        note(w, "running", "its result.json is none of cloud-init's");
    }
}

static void look(struct seed_watch *w);

static void peeked(void *arg, struct guest_peek *peek)
{
    struct seed_watch *w = arg;
    char message[GUEST_TEXT_MAX];

    if (w->looking_at_boot != w->boot) {
        finish(w);
        return;
    }
    if (peek->result == GUEST_PEEK_MISSING) {
        w->look++;
        look(w);
        return;
    }
    w->absent = 0;
    if (peek->result == GUEST_PEEK_REFUSED) {
        note(w, "unreadable", peek->why);
    } else if (peek->result == GUEST_PEEK_READ && w->look == 0) {
        take_result(w);
    } else if (peek->result == GUEST_PEEK_READ && w->look == 1) {
        guest_info_seed_status(peek->data, peek->len, message);
        note(w, "running", message);
    } else if (peek->result == GUEST_PEEK_READ) {
        note(w, "disabled", "cloud-init is disabled in this guest, or found nothing to do");
        w->over = true;
    }
    finish(w);
}

static void look(struct seed_watch *w)
{
    if (w->look == (int)(sizeof(files) / sizeof(files[0]))) {
        if (++w->absent >= ABSENT_LOOKS)
            note(w, "absent", "the guest has no cloud-init, or it has not begun");
        finish(w);
    } else if (guest_peek(&w->peek, w->bvm->agent, files[w->look], peeked, w) < 0) {
        finish(w);
    }
}

void seed_watch_look(struct seed_watch *w, void (*looked)(void *arg), void *arg)
{
    w->looked = looked;
    w->arg = arg;
    w->look = 0;
    w->looking_at_boot = w->boot;
    if (seed_watch_over(w) || !w->bvm->agent || !agent_is_up(w->bvm->agent))
        finish(w);
    else
        look(w);
}

void seed_watch_end(struct seed_watch *w)
{
    guest_peek_forget(&w->peek);
}
