/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Stored refcounts: the refcount table, its blocks, and the comparison with what was counted.
 *
 * Blocks are read in the order of the clusters that they count, each once, and only where a block
 * or a reference is, so that a sparse file costs what it holds.  The comparison leaves in the marks
 * what the check of copied bits asks for: whether a stored refcount is 1.
 */
#include "qcow2_check_internal.h"

#include <inttypes.h>
#include <string.h>

#include "bytes.h"

/* -- One refcount ------------------------------------------------------------------------------ */

/* Widths below 8 bits fill a byte from its least significant bits. */
uint64_t refblock_get(const uint8_t *bytes, uint64_t i, unsigned order)
{
    switch (order) {
    case 3:
        return bytes[i];
    case 4:
        return bytes_get_be16(bytes + 2 * i);
    case 5:
        return bytes_get_be32(bytes + 4 * i);
    case 6:
        return bytes_get_be64(bytes + 8 * i);
    default:
        return (unsigned)bytes[i << order >> 3] >> (i << order & 7) & ((1U << (1U << order)) - 1);
    }
}

void refblock_put(uint8_t *bytes, uint64_t i, unsigned order, uint64_t value)
{
    unsigned shift = i << order & 7, mask;

    switch (order) {
    case 3:
        bytes[i] = (uint8_t)value;
        break;
    case 4:
        bytes_put_be16(bytes + 2 * i, (uint16_t)value);
        break;
    case 5:
        bytes_put_be32(bytes + 4 * i, (uint32_t)value);
        break;
    case 6:
        bytes_put_be64(bytes + 8 * i, value);
        break;
    default:
        mask = ((1U << (1U << order)) - 1) << shift;
        bytes[i << order >> 3] =
            (uint8_t)((bytes[i << order >> 3] & ~mask) | ((unsigned)value << shift & mask));
    }
}

/* -- Refcount table and blocks ----------------------------------------------------------------- */

bool check_refblock_usable(const struct qcow2_check *c, uint64_t entry)
{
    return entry != 0 && is_aligned(entry, c->cluster_size) && entry < c->src->size;
}

static void broken_block(struct qcow2_check *c, uint64_t i, uint64_t host_off, const char *why)
{
    c->needs_rebuild = true;
    check_found(c, QCOW2_CHECK_REFBLOCK, 1, host_off, QCOW2_CHECK_NO_OFFSET,
                "refcount block %" PRIu64 " (table entry 0x%016" PRIx64 ") %s", i, c->reftable[i],
                why);
}

/* To be asked before the reference is counted: a refcount of one bit cannot say it afterwards. */
static bool is_used(const struct qcow2_check *c, uint64_t host_off)
{
    return cluster_counts_get(&c->counts, host_off >> c->hdr.cluster_bits) > 0;
}

static int refer_to_block(struct qcow2_check *c, uint64_t i, struct cairn_error *err)
{
    uint64_t host_off = c->reftable[i] & QCOW2_REFTABLE_OFFSET_MASK;
    int r;

    if (c->reftable[i] & QCOW2_REFTABLE_RESERVED_MASK) {
        broken_block(c, i, host_off, "has reserved bits set");
        return CAIRN_OK;
    }
    if (!is_aligned(host_off, c->cluster_size)) {
        broken_block(c, i, host_off, "is not aligned to the cluster size");
        return CAIRN_OK;
    }
    if (host_off >> c->hdr.cluster_bits >= c->nr_clusters) {
        broken_block(c, i, host_off, "is past the end of the file");
        return CAIRN_OK;
    }
    if (host_off == 0)
        return CAIRN_OK;
    c->needs_rebuild |= is_used(c, host_off);
    r = check_refer(c, host_off, c->cluster_size, 1, CLUSTER_REFBLOCK, QCOW2_CHECK_NO_OFFSET, err);
    if (r == CAIRN_OK && cluster_counts_get(&c->counts, host_off >> c->hdr.cluster_bits) != 1)
        broken_block(c, i, host_off, "is something else, too");
    return r;
}

static int read_reftable(struct qcow2_check *c, struct cairn_error *err)
{
    uint64_t nr =
        (uint64_t)c->hdr.refcount_table_clusters * c->cluster_size / QCOW2_REFTABLE_ENTRY_SIZE;
    int r;

    c->reftable = malloc(nr * sizeof(*c->reftable));
    if (!c->reftable)
        return error_no_memory(err, "the refcount table");
    r = source_pread_padded(c->src, c->reftable, nr * sizeof(*c->reftable),
                            c->hdr.refcount_table_offset, err);
    if (r != CAIRN_OK)
        return r;
    c->nr_reftable = nr;
    for (uint64_t i = 0; i < nr; i++)
        c->reftable[i] = be64toh(c->reftable[i]);
    return CAIRN_OK;
}

/* Less than a cluster of it may be cut off at the end of the file. */
static bool reftable_in_file(const struct qcow2_check *c)
{
    uint64_t len = (uint64_t)c->hdr.refcount_table_clusters * c->cluster_size;

    return len > 0 && is_aligned(c->hdr.refcount_table_offset, c->cluster_size) &&
           range_in(c->hdr.refcount_table_offset, len, round_up(c->src->size, c->cluster_size));
}

int check_refcount_structure(struct qcow2_check *c, struct cairn_error *err)
{
    uint64_t len = (uint64_t)c->hdr.refcount_table_clusters * c->cluster_size;
    int r;

    c->reftable_usable = reftable_in_file(c);
    if (!c->reftable_usable) {
        c->needs_rebuild = true;
        check_found(c, QCOW2_CHECK_PAST_END, 1, c->hdr.refcount_table_offset, QCOW2_CHECK_NO_OFFSET,
                    "the refcount table at 0x%" PRIx64 " of %" PRIu32
                    " clusters is not aligned, empty or not in the file",
                    c->hdr.refcount_table_offset, c->hdr.refcount_table_clusters);
        return CAIRN_OK;
    }
    for (uint64_t done = 0; done < len; done += c->cluster_size)
        c->reftable_shared |= is_used(c, c->hdr.refcount_table_offset + done);
    r = check_refer(c, c->hdr.refcount_table_offset, len, 1, CLUSTER_REFTABLE,
                    QCOW2_CHECK_NO_OFFSET, err);
    if (r == CAIRN_OK)
        r = read_reftable(c, err);
    for (uint64_t i = 0; i < c->nr_reftable && r == CAIRN_OK; i++)
        if (c->reftable[i] != 0)
            r = refer_to_block(c, i, err);
    return r;
}

/* -- All blocks -------------------------------------------------------------------------------- */

static bool anything_counted(const struct qcow2_check *c, uint64_t first, uint64_t nr)
{
    uint64_t last = (first + nr - 1) >> CLUSTER_PAGE_BITS;

    for (uint64_t i = first >> CLUSTER_PAGE_BITS; i <= last; i++)
        if (c->counts.pages[i])
            return true;
    return false;
}

/* QEMU reads a block past the end of the file as zeros, and gives up on one that is not aligned or
 * where no file can reach. */
static bool block_readable(const struct qcow2_check *c, uint64_t host_off)
{
    return is_aligned(host_off, c->cluster_size) && host_off < INT64_MAX - c->cluster_size;
}

static int read_block(struct qcow2_check *c, struct refblock *block, struct cairn_error *err)
{
    uint64_t host_off = block->entry & QCOW2_REFTABLE_OFFSET_MASK;

    block->readable = block_readable(c, host_off);
    if (host_off == 0 || !block->readable || host_off >= c->src->size) {
        memset(block->bytes, 0, c->cluster_size);
        return CAIRN_OK;
    }
    return source_pread_padded(c->src, block->bytes, c->cluster_size, host_off, err);
}

int check_each_refblock(struct qcow2_check *c, refblock_fn fn, void *arg, struct cairn_error *err)
{
    uint64_t step = UINT64_C(1) << refblock_bits(&c->hdr);
    CLEANUP_FREE uint8_t *bytes = malloc(c->cluster_size);
    int r = bytes ? CAIRN_OK : error_no_memory(err, "a refcount block");

    for (uint64_t first = 0; first < c->nr_clusters && r == CAIRN_OK; first += step) {
        uint64_t i = first >> refblock_bits(&c->hdr);
        struct refblock block = {
            .first = first,
            .nr = min_u64(step, c->nr_clusters - first),
            .entry = i < c->nr_reftable ? c->reftable[i] : 0,
            .bytes = bytes,
        };

        if (block.entry == 0 && !anything_counted(c, block.first, block.nr))
            continue;
        r = read_block(c, &block, err);
        if (r == CAIRN_OK)
            r = fn(c, &block, arg, err);
    }
    return r;
}

/* -- Comparison -------------------------------------------------------------------------------- */

static void report_difference(struct qcow2_check *c, uint64_t cluster, uint64_t stored,
                              uint64_t counted)
{
    uint64_t host_off = cluster << c->hdr.cluster_bits;
    const char *kind = cluster_kind_name(cluster_counts_mark(&c->counts, cluster) & MARK_KIND);

    if (stored > counted)
        check_found(c, QCOW2_CHECK_LEAK, 1, host_off, QCOW2_CHECK_NO_OFFSET,
                    "host cluster 0x%" PRIx64 " (%s) is leaked: refcount %" PRIu64
                    ", references %" PRIu64,
                    host_off, kind, stored, counted);
    else
        check_found(c, QCOW2_CHECK_REFCOUNT, 1, host_off, QCOW2_CHECK_NO_OFFSET,
                    "host cluster 0x%" PRIx64 " (%s) has refcount %" PRIu64 ", but %" PRIu64
                    " references",
                    host_off, kind, stored, counted);
}

/* One refcount; the page that counts the cluster, if there is one. */
static void compare_cluster(struct qcow2_check *c, uint64_t cluster, uint64_t stored,
                            struct cluster_page *page)
{
    size_t in_page = cluster % CLUSTER_PAGE_SIZE;
    uint64_t counted = page ? page->count[in_page] : 0;

    if (stored == 0 && counted == 0)
        return;
    c->result.image_end_offset =
        max_u64(c->result.image_end_offset, (cluster + 1) << c->hdr.cluster_bits);
    if (stored != counted)
        report_difference(c, cluster, stored, counted);
    if (stored != 1)
        c->not_one = true;
    else if (page)
        page->mark[in_page] |= MARK_ONE;
}

static void unknown_refcounts(struct qcow2_check *c, const struct refblock *block)
{
    c->not_one = true;
    check_found(c, QCOW2_CHECK_UNREADABLE, block->nr, block->entry & QCOW2_REFTABLE_OFFSET_MASK,
                QCOW2_CHECK_NO_OFFSET,
                "the refcounts of %" PRIu64 " clusters from 0x%" PRIx64 " on cannot be read",
                block->nr, block->first << c->hdr.cluster_bits);
    for (uint64_t cluster = block->first; cluster < block->first + block->nr; cluster++) {
        struct cluster_page *page = c->counts.pages[cluster >> CLUSTER_PAGE_BITS];

        if (page)
            page->mark[cluster % CLUSTER_PAGE_SIZE] |= MARK_UNKNOWN;
    }
}

static int compare_block(struct qcow2_check *c, struct refblock *block, void *arg,
                         struct cairn_error *err)
{
    (void)arg, (void)err;
    if (!block->readable) {
        unknown_refcounts(c, block);
        return CAIRN_OK;
    }
    for (uint64_t i = 0; i < block->nr; i++) {
        uint64_t cluster = block->first + i;

        compare_cluster(c, cluster, refblock_get(block->bytes, i, c->hdr.refcount_order),
                        c->counts.pages[cluster >> CLUSTER_PAGE_BITS]);
    }
    return CAIRN_OK;
}

int check_compare_refcounts(struct qcow2_check *c, struct cairn_error *err)
{
    return check_each_refblock(c, compare_block, NULL, err);
}

/* Past the end of the file nothing was compared: read the one refcount. */
static int read_stored(struct qcow2_check *c, uint64_t cluster, uint64_t *ret_stored,
                       bool *ret_known, struct cairn_error *err)
{
    uint64_t i = cluster >> refblock_bits(&c->hdr);
    uint64_t in_block = cluster & ((UINT64_C(1) << refblock_bits(&c->hdr)) - 1);
    unsigned order = c->hdr.refcount_order;
    uint64_t host_off = i < c->nr_reftable ? c->reftable[i] & QCOW2_REFTABLE_OFFSET_MASK : 0;
    uint8_t bytes[8];
    int r;

    *ret_stored = 0;
    *ret_known = block_readable(c, host_off);
    if (host_off == 0 || host_off >= c->src->size || !*ret_known)
        return CAIRN_OK;
    r = source_pread_padded(c->src, bytes, order > 3 ? (size_t)1 << (order - 3) : 1,
                            host_off + (in_block << order >> 3), err);
    if (r == CAIRN_OK)
        *ret_stored = refblock_get(bytes, order < 3 ? in_block & ((8U >> order) - 1) : 0, order);
    return r;
}

int check_stored_is_one(struct qcow2_check *c, uint64_t cluster, bool *ret_one, bool *ret_known,
                        struct cairn_error *err)
{
    uint64_t stored;
    int r = CAIRN_OK;

    if (cluster < c->nr_clusters && cluster_counts_get(&c->counts, cluster) > 0) {
        uint8_t mark = cluster_counts_mark(&c->counts, cluster);

        *ret_one = mark & MARK_ONE;
        *ret_known = !(mark & MARK_UNKNOWN);
    } else {
        r = read_stored(c, cluster, &stored, ret_known, err);
        *ret_one = stored == 1;
    }
    return r;
}
