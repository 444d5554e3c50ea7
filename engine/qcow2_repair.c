/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Repair: make the stored refcounts what the check has counted, then the copied bits what the
 * refcounts say, then clear the header's complaints.
 *
 * Order of writes, with a sync after each step:
 *
 *  1. Refcounts.  If the refcount structure can be used, blocks are corrected in place: each
 *     refcount goes from its old value to the right one, and a crash leaves some old and some new.
 *     If not, a new structure is written to clusters that nothing refers to, and synced before the
 *     header's pointer, twelve bytes of one sector, is turned to it: before that write the old
 *     structure counts, after it the new one.
 *  2. Copied bits in the active L1 and L2 tables, eight bytes each.  They follow the refcounts, so
 *     they are never set while a cluster that is shared still looks as if it were not.
 *  3. The dirty and the corrupt bit, if nothing is left that is wrong.  Autoclear bits that we do
 *     not know are cleared first of all, for we are about to change what they may vouch for.
 *
 * A crash between any two writes leaves an image with fewer errors of the same kinds; the next
 * repair finishes.
 *
 * What it leaves alone, because any change would be a guess: entries that name places past the end
 * of the file or between clusters, reserved bits, contradictory subcluster bitmaps, lists that
 * cannot be read, references that no refcount can hold, and overlaps (which get the refcount that
 * they have, so that nobody writes there in place).  If a table could not be walked, what seems to
 * leak may be its: no refcount is lowered then and nothing is put into clusters that seem free.
 * And if the header is also some table, nothing is repaired at all, for then what we write to the
 * one changes what the other names.
 */
#include "qcow2_check_internal.h"

#include <errno.h>
#include <fcntl.h>

#include "bytes.h"

struct repair {
    struct hostfile *file;
    enum qcow2_repair_mode mode;
    bool keep_copied; /* refcounts stay wrong, or an L2 table may be the refcount table */
    bool changed;
};

/* -- Refcounts in place ------------------------------------------------------------------------ */

static uint64_t right_refcount(const struct qcow2_check *c, const struct repair *repair,
                               uint64_t stored, uint64_t counted)
{
    if (stored > counted)
        return c->incomplete ? stored : counted;
    return repair->mode == QCOW2_REPAIR_ALL ? counted : stored;
}

static int fix_block(struct qcow2_check *c, struct refblock *block, void *arg,
                     struct cairn_error *err)
{
    struct repair *repair = arg;
    bool changed = false;

    if (!check_refblock_usable(c, block->entry))
        return CAIRN_OK; /* all zero, and right: else it would be a rebuild */
    for (uint64_t i = 0; i < block->nr; i++) {
        uint64_t cluster = block->first + i;
        struct cluster_page *page = c->counts.pages[cluster >> CLUSTER_PAGE_BITS];
        uint64_t stored = refblock_get(block->bytes, i, c->hdr.refcount_order);
        uint64_t right = right_refcount(c, repair, stored, cluster_counts_get(&c->counts, cluster));

        if (right == stored)
            continue;
        changed = true;
        refblock_put(block->bytes, i, c->hdr.refcount_order, right);
        if (page) {
            page->mark[cluster % CLUSTER_PAGE_SIZE] &= (uint8_t)~MARK_ONE;
            page->mark[cluster % CLUSTER_PAGE_SIZE] |= right == 1 ? MARK_ONE : 0;
        }
    }
    if (!changed)
        return CAIRN_OK;
    repair->changed = true;
    return hostfile_pwrite(FAULT_AT(repair->file, FAULT_REPAIR_REFBLOCK), block->bytes,
                           c->cluster_size, block->entry, err);
}

/* Is there a reference that no block can count? */
static int find_missing_block(struct qcow2_check *c, struct refblock *block, void *arg,
                              struct cairn_error *err)
{
    (void)err;
    if (check_refblock_usable(c, block->entry))
        return CAIRN_OK;
    for (uint64_t i = 0; i < block->nr; i++)
        if (cluster_counts_get(&c->counts, block->first + i) > 0)
            *(bool *)arg = true;
    return CAIRN_OK;
}

static bool may_rebuild(const struct qcow2_check *c, const struct repair *repair)
{
    return repair->mode == QCOW2_REPAIR_ALL && !c->incomplete && !c->overflow;
}

static int repair_refcounts(struct qcow2_check *c, struct repair *repair, struct cairn_error *err)
{
    bool missing = false, done = false;
    int r = CAIRN_OK;

    if (repair->mode == QCOW2_REPAIR_ALL)
        r = check_each_refblock(c, find_missing_block, &missing, err);
    if (r == CAIRN_OK && (c->needs_rebuild || c->reftable_shared || missing) &&
        may_rebuild(c, repair))
        r = qcow2_rebuild_refcounts(c, repair->file, &done, err);
    if (r != CAIRN_OK || done)
        return r;
    repair->keep_copied = c->needs_rebuild || c->reftable_shared || missing;
    if (c->needs_rebuild || missing)
        return CAIRN_OK;
    r = check_each_refblock(c, fix_block, repair, err);
    if (r == CAIRN_OK && repair->changed)
        r = hostfile_sync(FAULT_AT(repair->file, FAULT_REPAIR_REFBLOCK_SYNC), err);
    return r;
}

/* -- Copied bits ------------------------------------------------------------------------------- */

/* A table that is another one as well is not written to; one that some entry takes for guest data
 * is a table all the same. */
static bool may_write(const struct qcow2_check *c, const struct wrong_copied *w)
{
    uint8_t mark = cluster_counts_mark(&c->counts, w->host_off >> c->hdr.cluster_bits);
    enum cluster_kind kind = w->l1 ? CLUSTER_L1 : CLUSTER_L2;

    return !(mark & MARK_CLASH) && (mark & MARK_KIND) == kind &&
           w->host_off < round_up(c->src->size, c->cluster_size);
}

/*
 * Lowering a refcount to 1 makes its copied bit wrong: that is why leaks need this as well.  The
 * bit is set only where 1 is also what was counted; to clear it is always safe, but with leaks it
 * is done only where it should be clear.
 */
static bool should_fix(const struct qcow2_check *c, const struct repair *repair,
                       const struct wrong_copied *w)
{
    uint64_t cluster = (w->entry & QCOW2_OFFSET_MASK) >> c->hdr.cluster_bits;
    bool elsewhere = c->data_file && !w->l1; /* in a data file every cluster counts as one's own */
    bool own = elsewhere || cluster_counts_get(&c->counts, cluster) == 1;

    return w->fixed & QCOW2_OFLAG_COPIED ? own : !own || repair->mode == QCOW2_REPAIR_ALL;
}

static int fix_copied(struct qcow2_check *c, const struct wrong_copied *w, void *arg,
                      struct cairn_error *err)
{
    struct repair *repair = arg;
    uint8_t bytes[sizeof(w->fixed)];

    if (!may_write(c, w) || !should_fix(c, repair, w))
        return CAIRN_OK;
    repair->changed = true;
    bytes_put_be64(bytes, w->fixed);
    return hostfile_pwrite(FAULT_AT(repair->file, FAULT_REPAIR_COPIED), bytes, sizeof(bytes),
                           w->host_off, err);
}

static int repair_copied(struct qcow2_check *c, struct repair *repair, struct cairn_error *err)
{
    int r;

    repair->changed = false;
    r = check_copied(c, fix_copied, repair, err);
    if (r == CAIRN_OK && repair->changed)
        r = hostfile_sync(FAULT_AT(repair->file, FAULT_REPAIR_COPIED_SYNC), err);
    return r;
}

/* -- Header ------------------------------------------------------------------------------------ */

static int write_feature_bits(struct hostfile *file, uint64_t host_off, uint64_t before,
                              uint64_t after, struct cairn_error *err)
{
    uint8_t bytes[sizeof(after)];
    int r;

    if (before == after)
        return CAIRN_OK;
    bytes_put_be64(bytes, after);
    r = hostfile_pwrite(FAULT_AT(file, FAULT_REPAIR_FEATURES), bytes, sizeof(bytes), host_off, err);
    return r == CAIRN_OK ? hostfile_sync(FAULT_AT(file, FAULT_REPAIR_FEATURES_SYNC), err) : r;
}

static int clear_unknown_autoclear(const struct qcow2_check *c, struct hostfile *file,
                                   struct cairn_error *err)
{
    uint64_t known = QCOW2_AUTOCLEAR_BITMAPS | QCOW2_AUTOCLEAR_DATA_FILE_RAW;

    return write_feature_bits(file, QCOW2_HDR_AUTOCLEAR_FEATURES, c->hdr.autoclear_features,
                              c->hdr.autoclear_features & known, err);
}

/* If a fresh look finds nothing wrong (or, for want of need, leaks at most). */
static int clear_complaints(const struct qcow2_check *c, struct hostfile *file,
                            struct cairn_error *err)
{
    uint64_t features = c->hdr.incompatible_features;
    uint64_t complaints = QCOW2_INCOMPAT_DIRTY | QCOW2_INCOMPAT_CORRUPT;
    CLEANUP(source_free_p) struct source *src = NULL;
    CLEANUP(qcow2_check_free_p) struct qcow2_check *again = NULL;
    int fd, r;

    if (!(features & complaints))
        return CAIRN_OK;
    fd = fcntl(file->fd, F_DUPFD_CLOEXEC, 0); /* the source closes its descriptor */
    if (fd < 0)
        return error_set_errno(err, errno, "%s: cannot duplicate its descriptor", file->name);
    r = source_from_fd(fd, file->name, &src, err);
    if (r == CAIRN_OK)
        r = qcow2_check_new(src, NULL, &again, err);
    if (r != CAIRN_OK || again->result.corruptions || again->result.check_errors ||
        again->result.overlaps)
        return r;
    return write_feature_bits(file, QCOW2_HDR_INCOMPATIBLE_FEATURES, features,
                              features & ~complaints, err);
}

/* -- The whole --------------------------------------------------------------------------------- */

int qcow2_repair(struct qcow2_check *c, struct hostfile *file, enum qcow2_repair_mode mode,
                 struct cairn_error *err)
{
    struct repair repair = {.file = file, .mode = mode};
    bool wrong = c->result.corruptions || c->result.leaks;
    int r;

    if (mode == QCOW2_REPAIR_NONE || cluster_counts_mark(&c->counts, 0) & MARK_CLASH)
        return CAIRN_OK;
    r = wrong ? clear_unknown_autoclear(c, file, err) : CAIRN_OK;
    if (r == CAIRN_OK && wrong)
        r = repair_refcounts(c, &repair, err);
    if (r == CAIRN_OK && wrong && !repair.keep_copied)
        r = repair_copied(c, &repair, err);
    if (r == CAIRN_OK)
        r = clear_complaints(c, file, err);
    return r;
}
