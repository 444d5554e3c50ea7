/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The check from end to end, and its book-keeping: findings, and references to host clusters.
 *
 * References are counted as `qemu-img check` counts them, so that the figures agree: a range that
 * begins or ends a cluster or more past the end of the file is one corruption and is not counted;
 * the last cluster of a file may be cut short; what a refcount of the image's width cannot hold is
 * a corruption for each reference too many.
 */
#include "qcow2_check_internal.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "chain_index.h"

const char *qcow2_check_kind_name(enum qcow2_check_kind kind)
{
    static const char *const names[] = {
        [QCOW2_CHECK_LEAK] = "leak",
        [QCOW2_CHECK_REFCOUNT] = "refcount",
        [QCOW2_CHECK_COPIED] = "copied",
        [QCOW2_CHECK_OVERLAP] = "overlap",
        [QCOW2_CHECK_RESERVED] = "reserved",
        [QCOW2_CHECK_UNALIGNED] = "unaligned",
        [QCOW2_CHECK_PAST_END] = "past-end",
        [QCOW2_CHECK_SUBCLUSTERS] = "subclusters",
        [QCOW2_CHECK_LIMIT] = "limit",
        [QCOW2_CHECK_REFBLOCK] = "refcount-block",
        [QCOW2_CHECK_UNREADABLE] = "unreadable",
    };

    return names[kind];
}

const char *cluster_kind_name(enum cluster_kind kind)
{
    static const char *const names[] = {
        [CLUSTER_NONE] = "nothing",
        [CLUSTER_HEADER] = "the header",
        [CLUSTER_L1] = "an L1 table",
        [CLUSTER_L2] = "an L2 table",
        [CLUSTER_REFTABLE] = "the refcount table",
        [CLUSTER_REFBLOCK] = "a refcount block",
        [CLUSTER_SNAPSHOTS] = "the snapshot table",
        [CLUSTER_BITMAP] = "a bitmap",
        [CLUSTER_CRYPTO] = "the encryption header",
        [CLUSTER_DATA] = "guest data",
    };

    return names[kind];
}

/* -- Findings ---------------------------------------------------------------------------------- */

static uint64_t *counter(struct qcow2_check_result *result, enum qcow2_check_kind kind)
{
    if (kind == QCOW2_CHECK_LEAK)
        return &result->leaks;
    if (kind == QCOW2_CHECK_OVERLAP)
        return &result->overlaps;
    if (kind == QCOW2_CHECK_UNREADABLE)
        return &result->check_errors;
    return &result->corruptions;
}

void check_found(struct qcow2_check *c, enum qcow2_check_kind kind, uint64_t nr, uint64_t host_off,
                 uint64_t guest_off, const char *fmt, ...)
{
    char text[CAIRN_ERROR_MESSAGE_MAX];
    const struct qcow2_finding finding = {kind, nr, host_off, guest_off, text};
    va_list ap;

    *counter(&c->result, kind) += nr;
    if (c->result.findings++ >= QCOW2_CHECK_FINDINGS_MAX || !c->options.found)
        return;
    va_start(ap, fmt);
    vsnprintf(text, sizeof(text), fmt, ap);
    va_end(ap);
    c->options.found(c->options.arg, &finding);
}

/* -- References -------------------------------------------------------------------------------- */

/* Refcount tables and blocks do not count: one that is something else as well is built anew. */
static bool is_table(enum cluster_kind kind)
{
    return kind != CLUSTER_NONE && kind != CLUSTER_DATA && kind != CLUSTER_REFTABLE &&
           kind != CLUSTER_REFBLOCK;
}

/* May two things be in one host cluster?  Only guest data with guest data (compressed clusters,
 * snapshots), and tables that have several referrers with themselves. */
static void mark_kind(struct qcow2_check *c, uint64_t cluster, uint8_t *mark,
                      enum cluster_kind kind)
{
    enum cluster_kind before = *mark & MARK_KIND;

    if (is_table(before) && is_table(kind) && before != kind)
        *mark |= MARK_CLASH;
    if (before == CLUSTER_NONE) {
        *mark |= (uint8_t)kind;
    } else if (before != kind && !(*mark & MARK_OVERLAP)) {
        *mark |= MARK_OVERLAP;
        check_found(c, QCOW2_CHECK_OVERLAP, 1, cluster << c->hdr.cluster_bits,
                    QCOW2_CHECK_NO_OFFSET, "host cluster 0x%" PRIx64 " is %s and also %s",
                    cluster << c->hdr.cluster_bits, cluster_kind_name(before),
                    cluster_kind_name(kind));
    }
}

static int refer_to_cluster(struct qcow2_check *c, uint64_t cluster, uint64_t nr,
                            enum cluster_kind kind, uint64_t guest_off, struct cairn_error *err)
{
    struct cluster_page *page;
    uint32_t *count;
    int r = cluster_counts_page(&c->counts, cluster, &page, err);

    if (r != CAIRN_OK)
        return r;
    count = &page->count[cluster % CLUSTER_PAGE_SIZE];
    mark_kind(c, cluster, &page->mark[cluster % CLUSTER_PAGE_SIZE], kind);
    if (nr > c->refcount_max - *count) {
        c->overflow = true;
        check_found(c, QCOW2_CHECK_LIMIT, nr - (c->refcount_max - *count),
                    cluster << c->hdr.cluster_bits, guest_off,
                    "host cluster 0x%" PRIx64
                    " has more references than its refcount can say, %" PRIu64,
                    cluster << c->hdr.cluster_bits, c->refcount_max);
        nr = c->refcount_max - *count;
    }
    *count += (uint32_t)nr;
    return CAIRN_OK;
}

int check_refer(struct qcow2_check *c, uint64_t host_off, uint64_t len, uint64_t nr,
                enum cluster_kind kind, uint64_t guest_off, struct cairn_error *err)
{
    uint64_t end;
    int r = CAIRN_OK;

    if (len == 0 || nr == 0)
        return CAIRN_OK;
    if (!checked_add(host_off, len, &end) ||
        (end > c->src->size && end - c->src->size >= c->cluster_size)) {
        c->dangling = true;
        /* What it has inside the file is not counted, and is somebody's data all the same. */
        c->incomplete |= host_off < c->src->size;
        check_found(c, QCOW2_CHECK_PAST_END, nr, host_off, guest_off,
                    "%s at 0x%" PRIx64 " of %" PRIu64
                    " bytes reaches past the end of the file (%" PRIu64 " bytes)",
                    cluster_kind_name(kind), host_off, len, c->src->size);
        return CAIRN_OK;
    }
    for (uint64_t i = host_off >> c->hdr.cluster_bits;
         i <= (end - 1) >> c->hdr.cluster_bits && r == CAIRN_OK; i++) {
        c->nr_clusters = max_u64(c->nr_clusters, i + 1);
        r = refer_to_cluster(c, i, nr, kind, guest_off, err);
    }
    return r;
}

int check_refer_run(struct qcow2_check *c, uint64_t cluster, uint64_t nr_clusters, uint64_t nr,
                    uint64_t guest_off, struct cairn_error *err)
{
    bool fits = nr <= c->refcount_max;
    struct cluster_page *page;
    int r = CAIRN_OK;

    for (uint64_t i = 0; i < nr_clusters && r == CAIRN_OK; i++, cluster++) {
        size_t in_page = cluster % CLUSTER_PAGE_SIZE;

        if (i == 0 || in_page == 0)
            r = cluster_counts_page(&c->counts, cluster, &page, err);
        if (r != CAIRN_OK)
            break;
        if (page->mark[in_page] == 0 && fits) { /* as a rule */
            page->mark[in_page] = CLUSTER_DATA;
            page->count[in_page] = (uint32_t)nr;
        } else {
            r = refer_to_cluster(c, cluster, nr, CLUSTER_DATA,
                                 guest_off == QCOW2_CHECK_NO_OFFSET
                                     ? guest_off
                                     : guest_off + (i << c->hdr.cluster_bits),
                                 err);
        }
    }
    return r;
}

/* -- The whole --------------------------------------------------------------------------------- */

/* Encryption, the corrupt bit and a data file do not matter to refcounts; unknown bits may. */
static int check_features(const struct source *src, const struct qcow2_header *hdr,
                          struct cairn_error *err)
{
    if (hdr->incompatible_features & ~QCOW2_INCOMPAT_KNOWN)
        return qcow2_header_check_supported(src, hdr, err);
    return CAIRN_OK;
}

static int check_sizes(const struct source *src, const struct qcow2_header *hdr,
                       struct cairn_error *err)
{
    int r = qcow2_check_limit(src, "virtual size", hdr->size, CHAIN_VIRTUAL_SIZE_MAX, err);

    if (r == CAIRN_OK)
        r = qcow2_check_limit(src, "l1_size", hdr->l1_size, QCOW2_L1_BYTES_MAX / QCOW2_L1E_SIZE,
                              err);
    if (r == CAIRN_OK)
        r = qcow2_check_limit(src, "refcount_table_clusters", hdr->refcount_table_clusters,
                              QCOW2_REFTABLE_BYTES_MAX >> hdr->cluster_bits, err);
    if (r == CAIRN_OK)
        r = qcow2_check_limit(src, "the number of host clusters", src->size >> hdr->cluster_bits,
                              INT32_MAX, err);
    if (r == CAIRN_OK && hdr->l1_size < qcow2_l1_needed(hdr))
        r = error_set(err, CAIRN_E_CORRUPT,
                      "%s: l1_size %" PRIu32 " is too small for the virtual size %" PRIu64
                      ", which needs %" PRIu64,
                      src->name, hdr->l1_size, hdr->size, qcow2_l1_needed(hdr));
    if (r == CAIRN_OK && hdr->l1_size > 0)
        r = qcow2_check_table(src, hdr, "L1 table", hdr->l1_table_offset,
                              (uint64_t)hdr->l1_size * QCOW2_L1E_SIZE, err);
    return r;
}

static int init(struct qcow2_check *c, struct cairn_error *err)
{
    const struct qcow2_header *hdr = &c->hdr;
    unsigned refcount_bits = 1U << hdr->refcount_order;

    c->cluster_size = qcow2_cluster_size(hdr);
    c->nr_clusters = div_round_up(c->src->size, c->cluster_size);
    c->refcount_max = refcount_bits < 32 ? (UINT64_C(1) << refcount_bits) - 1 : CHECK_COUNT_MAX;
    c->data_file = hdr->incompatible_features & QCOW2_INCOMPAT_DATA_FILE;
    c->result.total_clusters = div_round_up(qcow2_virtual_size(hdr), c->cluster_size);
    c->result.image_end_offset = c->cluster_size; /* there is a header at least */
    c->result.dirty = hdr->incompatible_features & QCOW2_INCOMPAT_DIRTY;
    c->result.marked_corrupt = hdr->incompatible_features & QCOW2_INCOMPAT_CORRUPT;
    /* A range may end less than a cluster past the last one. */
    return cluster_counts_init(&c->counts, c->nr_clusters + 1, err);
}

static int check_crypto_header(struct qcow2_check *c, struct cairn_error *err)
{
    if (!c->hdr.has_crypto_header)
        return CAIRN_OK;
    return check_refer(c, c->hdr.crypto_header_offset, c->hdr.crypto_header_length, 1,
                       CLUSTER_CRYPTO, QCOW2_CHECK_NO_OFFSET, err);
}

static int report_copied(struct qcow2_check *c, const struct wrong_copied *w, void *arg,
                         struct cairn_error *err)
{
    (void)arg, (void)err;
    check_found(c, QCOW2_CHECK_COPIED, w->nr, w->entry & QCOW2_OFFSET_MASK, w->guest_off,
                "the %s entry 0x%016" PRIx64 " at 0x%" PRIx64 " has the copied bit %s",
                w->l1 ? "L1" : "L2", w->entry, w->host_off,
                w->entry & QCOW2_OFLAG_COPIED ? "set, but the refcount is not 1"
                                              : "clear, but the refcount is 1");
    return CAIRN_OK;
}

static int check_all(struct qcow2_check *c, struct cairn_error *err)
{
    int r = check_refer(c, 0, c->cluster_size, 1, CLUSTER_HEADER, QCOW2_CHECK_NO_OFFSET, err);

    if (r == CAIRN_OK)
        r = check_active_l1(c, err);
    if (r == CAIRN_OK)
        r = check_snapshots(c, err);
    if (r == CAIRN_OK)
        r = check_crypto_header(c, err);
    if (r == CAIRN_OK)
        r = check_bitmaps(c, err);
    c->progress_total = (c->active_l2.nr + c->inactive_l2.nr) * c->cluster_size;
    if (r == CAIRN_OK)
        r = check_l2_tables(c, &c->active_l2, true, err);
    if (r == CAIRN_OK)
        r = check_l2_tables(c, &c->inactive_l2, false, err);
    if (r == CAIRN_OK)
        r = check_refcount_structure(c, err);
    if (r == CAIRN_OK)
        r = check_compare_refcounts(c, err);
    if (r == CAIRN_OK && (c->uncopied || c->not_one || c->dangling))
        r = check_copied(c, report_copied, NULL, err);
    return r;
}

int qcow2_check_new(struct source *src, const struct qcow2_check_options *options,
                    struct qcow2_check **ret_check, struct cairn_error *err)
{
    CLEANUP(qcow2_check_free_p) struct qcow2_check *c = calloc(1, sizeof(*c));
    int r;

    if (!c)
        return error_no_memory(err, "a check");
    c->src = src;
    if (options)
        c->options = *options;
    r = qcow2_header_read(src, &c->hdr, err);
    if (r == CAIRN_OK)
        r = check_features(src, &c->hdr, err);
    if (r == CAIRN_OK)
        r = check_sizes(src, &c->hdr, err);
    if (r == CAIRN_OK)
        r = init(c, err);
    if (r == CAIRN_OK)
        r = check_all(c, err);
    if (r == CAIRN_OK)
        *ret_check = steal_ptr(c);
    return r;
}

void qcow2_check_free(struct qcow2_check *c)
{
    if (!c)
        return;
    qcow2_header_release(&c->hdr);
    cluster_counts_release(&c->counts);
    free(c->active_l2.refs);
    free(c->inactive_l2.refs);
    free(c->reftable);
    free(c);
}

const struct qcow2_check_result *qcow2_check_get_result(const struct qcow2_check *check)
{
    return &check->result;
}
