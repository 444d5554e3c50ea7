/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Subclusters written in part.
 *
 * A subcluster is allocated as a whole or not at all, so the first write to a part of it needs the
 * rest from beneath, which may be a network away.  A stream of 512-byte writes would ask for it
 * once in every subcluster, and overwrite each answer a moment later.  So the rest is not asked for
 * at once: the write puts its own bytes where they belong in the file, the entry goes on saying
 * "falls through", and which bytes are in the file is noted here.  Then one of three things
 * happens:
 *
 *   - other writes bring the rest: the subcluster is allocated like any that was written whole;
 *   - somebody needs it: a flush, a read, a map, the seal, or a write that finds the table of notes
 *     full.  The gaps are read from beneath and written around what is there (completing);
 *   - it is zeroed or discarded, and the note is forgotten.
 *
 * Writers add to a note beside each other (INFLIGHT_WRITE: none writes what is not its own);
 * completing is alone in its subcluster (INFLIGHT_CHANGE), so no older byte lands on a newer one.
 * The data is in the file before the subcluster is marked, as with every write; a crash before that
 * loses what was not flushed, and nothing else.
 *
 * If what lies beneath cannot be read, whoever completes gets the error and the note stays: the
 * next flush tries again, and a flush succeeds only when nothing is left of what was written before
 * it.
 *
 * A note keeps one byte for each byte of its subcluster.  There are PARTIALS_MAX of them, and for
 * moments one more for each thread that writes.  Finding one is a walk along the list, which is
 * empty unless somebody writes less than subclusters.
 */
#include <inttypes.h>
#include <string.h>

#include "active_internal.h"
#include "checked.h"
#include "cleanup.h"

#define PARTIALS_MAX 32 /* a flush may have to read that often from beneath */

struct partial {
    TAILQ_ENTRY(partial) link;
    uint64_t guest_off; /* of the subcluster */
    uint64_t serial;
    bool completing;
    uint8_t in_file[]; /* for each byte of the subcluster: is it in the file? */
};

static struct partial *find_locked(const struct active *a, uint64_t guest_off)
{
    uint64_t sub_off = round_down(guest_off, active_sub_size(a));
    struct partial *p;

    TAILQ_FOREACH(p, &a->partials.list, link)
    {
        if (p->guest_off == sub_off)
            return p;
    }
    return NULL;
}

static void drop_locked(struct active *a, struct partial *p)
{
    TAILQ_REMOVE(&a->partials.list, p, link);
    a->partials.nr--;
    free(p);
}

void partials_init(struct partials *t)
{
    TAILQ_INIT(&t->list);
    t->nr = 0;
    t->last_serial = 0;
}

void partials_release(struct partials *t)
{
    struct partial *p;

    while ((p = TAILQ_FIRST(&t->list))) {
        TAILQ_REMOVE(&t->list, p, link);
        free(p);
    }
}

/* -- Notes ------------------------------------------------------------------------------------- */

static struct partial *add_locked(struct active *a, uint64_t guest_off)
{
    struct partial *p = calloc(1, sizeof(*p) + active_sub_size(a));

    if (!p)
        return NULL;
    p->guest_off = round_down(guest_off, active_sub_size(a));
    p->serial = ++a->partials.last_serial;
    TAILQ_INSERT_TAIL(&a->partials.list, p, link);
    a->partials.nr++;
    return p;
}

int partial_note_locked(struct active *a, uint64_t guest_off, uint64_t end, bool *ret_whole,
                        struct cairn_error *err)
{
    struct partial *p = find_locked(a, guest_off);

    if (!p)
        p = add_locked(a, guest_off);
    if (!p)
        return error_no_memory(err, "a note of a subcluster written in part");
    memset(p->in_file + (guest_off - p->guest_off), 1, end - guest_off);
    *ret_whole = !memchr(p->in_file, 0, active_sub_size(a));
    return CAIRN_OK;
}

void partial_forget_locked(struct active *a, uint64_t guest_off, uint64_t end)
{
    struct partial *p, *next;

    for (p = TAILQ_FIRST(&a->partials.list); p; p = next) {
        next = TAILQ_NEXT(p, link);
        if (p->guest_off < end && guest_off < p->guest_off + active_sub_size(a))
            drop_locked(a, p);
    }
}

/* -- Completing -------------------------------------------------------------------------------- */

/* Guest bytes from beneath, past the end of the disk zeros. */
static int read_rest(struct active *a, uint8_t *buf, uint64_t len, uint64_t guest_off,
                     struct cairn_error *err)
{
    uint64_t size = a->shape.virtual_size;
    uint64_t inside = guest_off < size ? min_u64(len, size - guest_off) : 0;

    memset(buf + inside, 0, len - inside);
    if (inside == 0)
        return CAIRN_OK;
    if (a->backing.pread)
        atomic_fetch_add(&a->backing_bytes, inside);
    return active_read_beneath(a, buf, inside, guest_off, err);
}

/* Where bytes stop being what they are at `at`: in the file, or not. */
static size_t change_after(const struct partial *p, size_t at, size_t len)
{
    const uint8_t *other = memchr(p->in_file + at, !p->in_file[at], len - at);

    return other ? (size_t)(other - p->in_file) : len;
}

/* Write what is not in the file: one read from beneath from the first gap to the last. */
static int fill_gaps(struct active *a, const struct partial *p, uint64_t host_off,
                     struct cairn_error *err)
{
    size_t size = active_sub_size(a);
    size_t first = p->in_file[0] ? change_after(p, 0, size) : 0;
    size_t last = size;
    CLEANUP_FREE uint8_t *buf = malloc(size);
    int rc;

    if (!buf)
        return error_no_memory(err, "a subcluster");
    while (last > first && p->in_file[last - 1])
        last--;
    rc = read_rest(a, buf + first, last - first, p->guest_off + first, err);
    for (size_t end; !rc && first < last; first = end) {
        end = change_after(p, first, last);
        if (!p->in_file[first])
            rc = hostfile_pwrite(FAULT_AT(&a->file, FAULT_DATA_REST), buf + first, end - first,
                                 host_off + first, err);
    }
    return rc;
}

static int mark_locked(struct active *a, struct table_page *page, uint64_t guest_off,
                       struct l2_entry e, struct cairn_error *err)
{
    uint32_t bit = UINT32_C(1) << active_sub_index(a, guest_off);
    uint8_t *bytes;
    int rc = table_modify_locked(FAULT_AT(a->tables, FAULT_L2_MARK_REST), page, &bytes, err);

    if (rc)
        return rc;
    e.alloc |= bit;
    l2_put_entry(a, bytes, guest_off, &e);
    return CAIRN_OK;
}

/* Alone in the subcluster. */
static int complete_alone_locked(struct active *a, struct partial *p, struct cairn_error *err)
{
    struct table_page *page;
    struct l2_entry e;
    uint64_t host_off;
    int rc = table_check_locked(a->tables, err);

    if (!rc)
        rc = l2_get_page_locked(a, p->guest_off, true, &page, err);
    if (rc)
        return rc;
    rc = l2_get_entry_locked(a, page, p->guest_off, &e, err);
    if (!rc && e.host_off == 0) /* the file was changed behind our back */
        rc = error_set(err, CAIRN_E_CORRUPT,
                       "%s: guest offset 0x%" PRIx64 " was written to and has no host cluster",
                       a->file.name, p->guest_off);
    if (!rc) {
        host_off = e.host_off + p->guest_off % active_cluster_size(a);
        pthread_mutex_unlock(&a->lock);
        rc = fill_gaps(a, p, host_off, err);
        pthread_mutex_lock(&a->lock);
        table_note_data_locked(a->tables);
    }
    if (!rc) /* others have changed the entry meanwhile */
        rc = l2_get_entry_locked(a, page, p->guest_off, &e, err);
    if (!rc)
        rc = mark_locked(a, page, p->guest_off, e, err);
    table_put_locked(a->tables, page);
    return rc;
}

static int complete_locked(struct active *a, uint64_t sub_off, struct cairn_error *err)
{
    struct inflight_op op = {.entered = false};
    struct partial *p;
    int rc = CAIRN_OK;

    while ((p = find_locked(a, sub_off)) &&
           !inflight_try_locked(&a->inflight, &op, INFLIGHT_CHANGE, sub_off,
                                sub_off + active_sub_size(a))) {
        p->completing = true;
        inflight_wait_locked(&a->inflight, &a->lock);
    }
    if (p) {
        p->completing = true;
        rc = complete_alone_locked(a, p, err);
        p->completing = false;
        if (!rc)
            drop_locked(a, p);
    }
    inflight_leave_locked(&a->inflight, &op);
    return rc;
}

int partial_make_room_locked(struct active *a, struct cairn_error *err)
{
    struct partial *p;

    if (a->partials.nr < PARTIALS_MAX)
        return CAIRN_OK;
    TAILQ_FOREACH(p, &a->partials.list, link)
    {
        if (!p->completing)
            return complete_locked(a, p->guest_off, err);
    }
    return CAIRN_OK;
}

int partial_complete_all_locked(struct active *a, struct cairn_error *err)
{
    uint64_t last = a->partials.last_serial;
    struct partial *p;

    while ((p = TAILQ_FIRST(&a->partials.list)) && p->serial <= last) {
        int rc = complete_locked(a, p->guest_off, err);

        if (rc)
            return rc;
    }
    return CAIRN_OK;
}

/* Cut a run of holes before the first subcluster written in part; false: it begins with one. */
static bool cut_locked(const struct active *a, struct extent *run)
{
    const struct partial *p;

    TAILQ_FOREACH(p, &a->partials.list, link)
    {
        if (p->guest_off > run->guest_off)
            run->len = min_u64(run->len, p->guest_off - run->guest_off);
        else if (run->guest_off - p->guest_off < active_sub_size(a))
            return false;
    }
    return true;
}

int partial_get_run_locked(struct active *a, uint64_t guest_off, uint64_t len,
                           struct extent *ret_run, struct cairn_error *err)
{
    for (;;) {
        int rc = l2_get_run_locked(a, guest_off, len, ret_run, err);

        if (rc || ret_run->kind != EXTENT_HOLE || cut_locked(a, ret_run))
            return rc;
        rc = complete_locked(a, round_down(guest_off, active_sub_size(a)), err);
        if (rc)
            return rc;
    }
}
