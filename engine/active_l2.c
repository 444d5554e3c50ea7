/* SPDX-License-Identifier: Apache-2.0 */
/*
 * L1 and L2 entries of the active layer: from a guest offset to what the layer has there.
 *
 * Entries are believed only after a look: reserved bits, compressed clusters, host clusters
 * outside the file or on top of the header or the refcount table, subclusters that are data and
 * zero at once.  An entry that cannot be is CAIRN_E_CORRUPT for who needs it, and harms nobody
 * else.
 *
 * A host cluster none of whose subclusters is allocated is normal: that is how every allocation
 * begins, and what remains of one whose data could not be written.
 */
#include <inttypes.h>

#include "active_internal.h"
#include "bytes.h"
#include "checked.h"

static uint64_t l1_index(const struct active *a, uint64_t guest_off)
{
    return guest_off / active_table_span(a);
}

/* Offset of guest_off's entry in its L2 table. */
static uint64_t entry_off(const struct active *a, uint64_t guest_off)
{
    return (guest_off % active_table_span(a) >> a->shape.cluster_bits) * QCOW2_L2E_SIZE_EXTL2;
}

/* May an entry point at this cluster? */
static bool plausible_locked(const struct active *a, uint64_t host_off)
{
    uint64_t l1_end = a->shape.l1_off + (uint64_t)a->shape.l1_size * QCOW2_L1E_SIZE;

    return refcount_plausible_locked(a->refcounts, host_off) &&
           !(host_off >= a->shape.l1_off && host_off < l1_end);
}

/* -- Finding the page -------------------------------------------------------------------------- */

static int get_l1_page_locked(struct active *a, uint64_t guest_off, struct table_page **ret_page,
                              struct cairn_error *err)
{
    uint64_t at = a->shape.l1_off + l1_index(a, guest_off) * QCOW2_L1E_SIZE;
    int rc = table_get_locked(a->tables, TABLE_L1, round_down(at, TABLE_PAGE_SIZE), ret_page, err);

    return rc ? error_prefix(err, rc, "L1 table") : CAIRN_OK;
}

static size_t l1_entry_pos(const struct active *a, uint64_t guest_off)
{
    return (size_t)((a->shape.l1_off + l1_index(a, guest_off) * QCOW2_L1E_SIZE) % TABLE_PAGE_SIZE);
}

static int read_l1_entry_locked(struct active *a, uint64_t guest_off, uint64_t *ret_table_off,
                                struct cairn_error *err)
{
    struct table_page *page;
    uint64_t entry, table_off;
    int rc = get_l1_page_locked(a, guest_off, &page, err);

    if (rc)
        return rc;
    entry = bytes_get_be64(table_bytes_locked(page) + l1_entry_pos(a, guest_off));
    table_put_locked(a->tables, page);
    table_off = entry & QCOW2_OFFSET_MASK;
    if ((entry & QCOW2_L1E_RESERVED_MASK) || (entry != 0 && !plausible_locked(a, table_off)))
        return error_set(err, CAIRN_E_CORRUPT,
                         "%s: L1 entry %" PRIu64 " is 0x%" PRIx64
                         ", expected a cluster of the file",
                         a->file.name, l1_index(a, guest_off), entry);
    if (entry != 0 && !(entry & QCOW2_OFLAG_COPIED))
        return error_set(err, CAIRN_E_CORRUPT,
                         "%s: L1 entry %" PRIu64 " is 0x%" PRIx64
                         ": the L2 table is not exclusively this entry's",
                         a->file.name, l1_index(a, guest_off), entry);
    *ret_table_off = table_off;
    return CAIRN_OK;
}

/* Link a table of zeros, unless somebody else was faster; then *ret_linked is false. */
static int link_table_locked(struct active *a, uint64_t guest_off, uint64_t table_off,
                             bool *ret_linked, struct cairn_error *err)
{
    struct table_page *page;
    uint8_t *bytes;
    size_t pos = l1_entry_pos(a, guest_off);
    int rc = get_l1_page_locked(a, guest_off, &page, err);

    if (rc)
        return rc;
    if (bytes_get_be64(table_bytes_locked(page) + pos) == 0) {
        rc = table_modify_locked(FAULT_AT(a->tables, FAULT_L2_TABLE_LINK), page, &bytes, err);
        if (!rc) {
            bytes_put_be64(bytes + pos, table_off | QCOW2_OFLAG_COPIED);
            *ret_linked = true;
        }
    }
    table_put_locked(a->tables, page);
    return rc;
}

int l2_alloc_locked(struct active *a, uint64_t want, uint64_t goal, uint64_t *ret_host_off,
                    uint64_t *ret_nr, struct cairn_error *err)
{
    uint64_t l1_end = a->shape.l1_off + (uint64_t)a->shape.l1_size * QCOW2_L1E_SIZE;
    int rc = refcount_alloc_locked(a->refcounts, want, goal, ret_host_off, ret_nr, err);

    if (rc || *ret_host_off >= l1_end ||
        *ret_host_off + *ret_nr * active_cluster_size(a) <= a->shape.l1_off)
        return rc;
    return error_set(err, CAIRN_E_CORRUPT, "%s: the L1 table at 0x%" PRIx64 " was counted as free",
                     a->file.name, a->shape.l1_off);
}

static int create_table_locked(struct active *a, uint64_t guest_off, struct cairn_error *err)
{
    uint64_t table_off, nr;
    bool linked = false;
    int rc = l2_alloc_locked(a, 1, 0, &table_off, &nr, err);

    if (rc)
        return rc;
    table_forget_locked(a->tables, table_off, active_cluster_size(a));
    pthread_mutex_unlock(&a->lock);
    rc = hostfile_zero(FAULT_AT(&a->file, FAULT_L2_TABLE), active_cluster_size(a), table_off, err);
    pthread_mutex_lock(&a->lock);
    table_note_data_locked(a->tables);
    if (!rc)
        rc = link_table_locked(a, guest_off, table_off, &linked, err);
    if (!linked) { /* should this fail, the cluster is leaked */
        int released = refcount_release_locked(a->refcounts, table_off, active_cluster_size(a),
                                               rc ? NULL : err);

        rc = rc ? rc : released;
    }
    return rc;
}

int l2_get_page_locked(struct active *a, uint64_t guest_off, bool create,
                       struct table_page **ret_page, struct cairn_error *err)
{
    uint64_t table_off = 0, at;
    int rc = read_l1_entry_locked(a, guest_off, &table_off, err);

    *ret_page = NULL;
    while (!rc && table_off == 0 && create) {
        rc = create_table_locked(a, guest_off, err);
        if (!rc)
            rc = read_l1_entry_locked(a, guest_off, &table_off, err);
    }
    if (rc || table_off == 0)
        return rc;
    at = table_off + round_down(entry_off(a, guest_off), TABLE_PAGE_SIZE);
    rc = table_get_locked(a->tables, TABLE_L2, at, ret_page, err);
    return rc ? error_prefix(err, rc, "L2 table %" PRIu64, l1_index(a, guest_off)) : CAIRN_OK;
}

int l2_drop_table_locked(struct active *a, uint64_t guest_off, struct cairn_error *err)
{
    uint64_t table_off = 0;
    struct table_page *page;
    uint8_t *bytes;
    int rc = read_l1_entry_locked(a, guest_off, &table_off, err);

    if (rc || table_off == 0)
        return rc;
    rc = get_l1_page_locked(a, guest_off, &page, err);
    if (rc)
        return rc;
    rc = table_reserve_frees_locked(a->tables, 1, err);
    if (!rc)
        rc = table_modify_locked(FAULT_AT(a->tables, FAULT_L2_TABLE_DROP), page, &bytes, err);
    if (!rc) {
        bytes_put_be64(bytes + l1_entry_pos(a, guest_off), 0);
        table_forget_locked(a->tables, table_off, active_cluster_size(a));
        table_free_locked(a->tables, table_off, active_cluster_size(a));
    }
    table_put_locked(a->tables, page);
    return rc;
}

/* -- Entries ----------------------------------------------------------------------------------- */

static int bad_entry(const struct active *a, uint64_t guest_off, uint64_t entry, uint64_t bitmap,
                     const char *what, int code, struct cairn_error *err)
{
    return error_set(err, code,
                     "%s: L2 entry of guest offset 0x%" PRIx64 " is 0x%" PRIx64
                     ", subclusters 0x%" PRIx64 ": %s",
                     a->file.name, round_down(guest_off, active_cluster_size(a)), entry, bitmap,
                     what);
}

int l2_get_entry_locked(const struct active *a, const struct table_page *page, uint64_t guest_off,
                        struct l2_entry *ret_entry, struct cairn_error *err)
{
    const uint8_t *at = table_bytes_locked(page) + entry_off(a, guest_off) % TABLE_PAGE_SIZE;
    uint64_t entry = bytes_get_be64(at);
    uint64_t bitmap = bytes_get_be64(at + 8);
    struct l2_entry e = {
        .host_off = entry & QCOW2_OFFSET_MASK,
        .alloc = (uint32_t)bitmap,
        .zero = (uint32_t)(bitmap >> 32),
    };
    const char *what = NULL;

    if (entry & QCOW2_OFLAG_COMPRESSED)
        return bad_entry(a, guest_off, entry, bitmap, "compressed clusters are not written to",
                         CAIRN_E_UNSUPPORTED, err);
    if (entry & (QCOW2_L2E_RESERVED_MASK | QCOW2_OFLAG_ZERO))
        what = "reserved bits are set";
    else if (e.alloc & e.zero)
        what = "subclusters are data and zeros at once";
    else if (e.host_off == 0 && (e.alloc || (entry & QCOW2_OFLAG_COPIED)))
        what = "data without a host cluster";
    else if (e.host_off != 0 && !(entry & QCOW2_OFLAG_COPIED))
        what = "the host cluster is not exclusively this entry's";
    else if (e.host_off != 0 && !plausible_locked(a, e.host_off))
        what = "the host offset is not a data cluster of the file";
    if (what)
        return bad_entry(a, guest_off, entry, bitmap, what, CAIRN_E_CORRUPT, err);
    *ret_entry = e;
    return CAIRN_OK;
}

void l2_put_entry(const struct active *a, uint8_t *bytes, uint64_t guest_off,
                  const struct l2_entry *e)
{
    uint8_t *at = bytes + entry_off(a, guest_off) % TABLE_PAGE_SIZE;

    bytes_put_be64(at, e->host_off ? e->host_off | QCOW2_OFLAG_COPIED : 0);
    bytes_put_be64(at + 8, (uint64_t)e->zero << 32 | e->alloc);
}

uint32_t l2_mask(const struct active *a, uint64_t guest_off, uint64_t end)
{
    uint64_t cluster = round_down(guest_off, active_cluster_size(a));
    unsigned first = active_sub_index(a, guest_off);
    unsigned past = end - cluster >= active_cluster_size(a)
                        ? QCOW2_SUBCLUSTERS
                        : (unsigned)div_round_up(end - cluster, active_sub_size(a));
    uint32_t below_past = past == QCOW2_SUBCLUSTERS ? UINT32_MAX : (UINT32_C(1) << past) - 1;

    return below_past & ~((UINT32_C(1) << first) - 1);
}

/* -- Runs -------------------------------------------------------------------------------------- */

static enum extent_kind kind_of(const struct l2_entry *e, unsigned sub)
{
    if (e->alloc >> sub & 1)
        return EXTENT_DATA;
    if (e->zero >> sub & 1)
        return e->host_off ? EXTENT_ZERO_ALLOC : EXTENT_ZERO;
    return EXTENT_HOLE;
}

/* How many subclusters from sub on have its status? */
static unsigned same_kind(const struct l2_entry *e, unsigned sub)
{
    uint32_t alloc_differs = (e->alloc >> sub & 1) ? ~e->alloc : e->alloc;
    uint32_t zero_differs = (e->zero >> sub & 1) ? ~e->zero : e->zero;
    uint32_t differs = (alloc_differs | zero_differs) >> sub;

    return differs ? (unsigned)__builtin_ctz(differs) : QCOW2_SUBCLUSTERS - sub;
}

/* The run that begins at guest_off and ends at most with its cluster. */
static void run_in_cluster(const struct active *a, const struct l2_entry *e, uint64_t guest_off,
                           struct extent *ret_run)
{
    unsigned sub = active_sub_index(a, guest_off);
    uint64_t in_sub = guest_off % active_sub_size(a);

    *ret_run = (struct extent){
        .guest_off = guest_off,
        .len = ((uint64_t)same_kind(e, sub) << active_sub_bits(a)) - in_sub,
        .kind = (uint8_t)kind_of(e, sub),
    };
    if (extent_kind_linear(ret_run->kind))
        ret_run->host_off = e->host_off + guest_off % active_cluster_size(a);
}

static int run_in_page_locked(struct active *a, const struct table_page *page, uint64_t guest_off,
                              uint64_t end, struct extent *ret_run, struct cairn_error *err)
{
    struct extent run = {.guest_off = guest_off};

    for (uint64_t off = guest_off; off < end;) {
        struct l2_entry e;
        struct extent more;
        int rc = l2_get_entry_locked(a, page, off, &e, err);

        if (rc)
            return rc;
        run_in_cluster(a, &e, off, &more);
        if (run.len == 0)
            run = more;
        else if (extent_mergeable(&run, &more))
            run.len += more.len;
        else
            break;
        off += more.len;
    }
    run.len = min_u64(run.len, end - guest_off);
    *ret_run = run;
    return CAIRN_OK;
}

int l2_get_run_locked(struct active *a, uint64_t guest_off, uint64_t len, struct extent *ret_run,
                      struct cairn_error *err)
{
    uint64_t end = guest_off + len;
    uint64_t span_end = round_down(guest_off, active_span_size(a)) + active_span_size(a);
    struct table_page *page;
    int rc = l2_get_page_locked(a, guest_off, false, &page, err);

    if (rc)
        return rc;
    if (!page) {
        uint64_t table_end = round_down(guest_off, active_table_span(a)) + active_table_span(a);

        *ret_run = (struct extent){
            .guest_off = guest_off,
            .len = min_u64(end, table_end) - guest_off,
            .kind = EXTENT_HOLE,
        };
        return CAIRN_OK;
    }
    rc = run_in_page_locked(a, page, guest_off, min_u64(end, span_end), ret_run, err);
    table_put_locked(a->tables, page);
    return rc;
}
