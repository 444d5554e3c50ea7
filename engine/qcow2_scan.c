/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The scan of an image: L1 table, L2 tables, extents (docs/interop/qcow2.rst of QEMU, "Cluster
 * mapping" and "Extended L2 Entries").
 *
 * Every entry that describes a part of the guest's disk is validated before it is believed, and a
 * wrong one ends the scan.  What is handed out therefore names host clusters that begin inside the
 * file and are no metadata.  Work and memory are bounded by the file: an L2 table lies
 * wholly inside it and belongs to one L1 entry, so an extent costs at least half a byte of file.
 *
 * Neighbours merge in one pending extent, whatever table they come from.  Metadata is compared
 * with merged runs, not with single clusters, which makes that check cheap.
 *
 * An internal snapshot is a disk as the active one is: an L1 table and a size.  Refcount tables and
 * blocks, the L1 tables of other states and L1 entries past the end of the disk (VM state) do not
 * take part in what the guest sees and are not read.
 */
#include "qcow2_scan.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "bytes.h"
#include "chain_index.h"

/* L2 tables that lie this close together are read in one go. */
#define WINDOW_MIN ((size_t)256 << 10)

struct scan {
    struct source *src;
    const struct qcow2_header *hdr;
    const struct qcow2_state *state;
    uint64_t cluster_size;
    uint64_t virtual_size;
    unsigned l2_bits;

    struct qcow2_region regions[QCOW2_REGIONS_MAX + 1]; /* with a snapshot's L1 table */
    unsigned nr_regions;
    uint64_t *l1; /* host offsets of L2 tables, 0 for none; host order, validated */
    size_t nr_l1;
    uint64_t *l2_sorted; /* those that are not 0 */
    size_t nr_l2;

    uint8_t *window; /* part of the file that holds one L2 table or more */
    size_t window_max;
    uint64_t window_off;
    size_t window_len;

    struct extent pending; /* len 0: none */
    layer_extent_fn fn;
    void *arg;
};

/* What one L2 entry says.  Without extended L2 entries a cluster has one "subcluster". */
struct cluster {
    uint64_t host_off;
    uint32_t compressed_len; /* 0: not compressed */
    uint32_t alloc, zero;    /* a bit per subcluster */
};

/* -- L1 table ---------------------------------------------------------------------------------- */

static int check_l1_entry(const struct scan *s, size_t i, uint64_t entry, struct cairn_error *err)
{
    uint64_t host_off = entry & QCOW2_OFFSET_MASK;
    const struct qcow2_region *region;
    char what[40];
    int r;

    if (entry & QCOW2_L1E_RESERVED_MASK || (host_off == 0 && entry != 0))
        return error_set(err, CAIRN_E_CORRUPT,
                         "%s: L1 entry %zu is 0x%" PRIx64 ": reserved bits 0x%" PRIx64
                         ", L2 table offset 0x%" PRIx64,
                         s->src->name, i, entry, entry & QCOW2_L1E_RESERVED_MASK, host_off);
    if (host_off == 0)
        return CAIRN_OK;
    snprintf(what, sizeof(what), "L2 table %zu", i);
    r = qcow2_check_table(s->src, s->hdr, what, host_off, s->cluster_size, err);
    if (r != CAIRN_OK)
        return r;
    region = qcow2_region_find(s->regions, s->nr_regions, host_off, s->cluster_size);
    if (region)
        return error_set(err, CAIRN_E_CORRUPT,
                         "%s: %s at 0x%" PRIx64 " overlaps the %s at 0x%" PRIx64, s->src->name,
                         what, host_off, region->what, region->host_off);
    return CAIRN_OK;
}

static int compare_u64(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

    return (x > y) - (x < y);
}

static int error_shared_table(const struct scan *s, uint64_t host_off, struct cairn_error *err)
{
    size_t first = 0, second;

    while (s->l1[first] != host_off)
        first++;
    for (second = first + 1; s->l1[second] != host_off;)
        second++;
    return error_set(err, CAIRN_E_CORRUPT, "%s: L2 table %zu at 0x%" PRIx64 " is also L2 table %zu",
                     s->src->name, second, host_off, first);
}

/* Two L1 entries with one L2 table would let a small file describe a huge disk. */
static int sort_l2_tables(struct scan *s, struct cairn_error *err)
{
    s->l2_sorted = malloc((s->nr_l2 + 1) * sizeof(*s->l2_sorted));
    if (!s->l2_sorted)
        return error_no_memory(err, "the list of L2 tables");
    for (size_t i = 0, n = 0; i < s->nr_l1; i++)
        if (s->l1[i] != 0)
            s->l2_sorted[n++] = s->l1[i];
    qsort(s->l2_sorted, s->nr_l2, sizeof(*s->l2_sorted), compare_u64);
    for (size_t i = 1; i < s->nr_l2; i++)
        if (s->l2_sorted[i] == s->l2_sorted[i - 1])
            return error_shared_table(s, s->l2_sorted[i], err);
    return CAIRN_OK;
}

static int load_l1(struct scan *s, struct cairn_error *err)
{
    int r = CAIRN_OK;

    s->nr_l1 = qcow2_l1_entries(s->hdr, s->state->size);
    s->l1 = malloc((s->nr_l1 + 1) * sizeof(*s->l1));
    if (!s->l1)
        return error_no_memory(err, "the L1 table");
    if (s->nr_l1 > 0) /* else there may be no table at all */
        r = source_pread(s->src, s->l1, s->nr_l1 * sizeof(*s->l1), s->state->l1_table_offset, err);
    if (r != CAIRN_OK)
        return r;
    for (size_t i = 0; i < s->nr_l1; i++) {
        uint64_t entry = be64toh(s->l1[i]);

        r = check_l1_entry(s, i, entry, err);
        if (r != CAIRN_OK)
            return r;
        s->l1[i] = entry & QCOW2_OFFSET_MASK;
        s->nr_l2 += s->l1[i] != 0;
    }
    return sort_l2_tables(s, err);
}

/* -- L2 tables --------------------------------------------------------------------------------- */

/* How much to read at L2 table i, so that it and the tables near it come in one go. */
static size_t window_span(const struct scan *s, size_t i)
{
    uint64_t off = s->l1[i], end = off + s->cluster_size;

    for (size_t next = i + 1; next < s->nr_l1; next++) {
        if (s->l1[next] == 0)
            continue;
        if (s->l1[next] < off || s->l1[next] + s->cluster_size - off > s->window_max)
            break;
        end = max_u64(end, s->l1[next] + s->cluster_size);
    }
    return end - off;
}

/* L2 table i, borrowed until the next call. */
static int load_l2(struct scan *s, size_t i, const uint8_t **ret_table, struct cairn_error *err)
{
    uint64_t off = s->l1[i];

    if (off < s->window_off || !range_in(off - s->window_off, s->cluster_size, s->window_len)) {
        size_t span = window_span(s, i);
        int r = source_pread(s->src, s->window, span, off, err);

        s->window_len = 0;
        if (r != CAIRN_OK)
            return r;
        s->window_off = off;
        s->window_len = span;
    }
    *ret_table = s->window + (off - s->window_off);
    return CAIRN_OK;
}

/* -- L2 entries -------------------------------------------------------------------------------- */

static int decode_compressed(const struct scan *s, uint64_t entry, struct cluster *ret_cluster,
                             struct cairn_error *err)
{
    unsigned shift = qcow2_compressed_shift(s->hdr->cluster_bits);
    uint64_t host_off = entry & ((UINT64_C(1) << shift) - 1);
    uint64_t more_sectors = (entry & (QCOW2_OFLAG_COMPRESSED - 1)) >> shift;

    if (entry & QCOW2_OFLAG_COPIED)
        return error_set(err, CAIRN_E_CORRUPT, "a compressed cluster with the copied bit set");
    if (host_off >= s->src->size)
        return error_set(err, CAIRN_E_CORRUPT,
                         "compressed data at 0x%" PRIx64
                         " begins past the end of the file (%" PRIu64 " bytes)",
                         host_off, s->src->size);
    ret_cluster->host_off = host_off;
    ret_cluster->compressed_len = (uint32_t)((more_sectors + 1) * QCOW2_COMPRESSED_SECTOR -
                                             host_off % QCOW2_COMPRESSED_SECTOR);
    return CAIRN_OK;
}

static int check_standard(const struct scan *s, uint64_t entry, struct cairn_error *err)
{
    uint64_t host_off = entry & QCOW2_OFFSET_MASK;
    uint64_t reserved = entry & QCOW2_L2E_RESERVED_MASK;

    if (s->hdr->version < 3 || qcow2_has_extl2(s->hdr))
        reserved |= entry & QCOW2_OFLAG_ZERO;
    if (reserved)
        return error_set(err, CAIRN_E_CORRUPT, "reserved bits 0x%" PRIx64 " are set", reserved);
    if (entry & QCOW2_OFLAG_COPIED && host_off == 0)
        return error_set(err, CAIRN_E_CORRUPT, "the copied bit is set without a host cluster");
    if (!is_aligned(host_off, s->cluster_size))
        return error_set(err, CAIRN_E_CORRUPT,
                         "host cluster 0x%" PRIx64 " is not aligned to the cluster size %" PRIu64,
                         host_off, s->cluster_size);
    if (host_off != 0 && host_off >= s->src->size)
        return error_set(err, CAIRN_E_CORRUPT,
                         "host cluster 0x%" PRIx64 " begins past the end of the file (%" PRIu64
                         " bytes)",
                         host_off, s->src->size);
    return CAIRN_OK;
}

static int decode_subclusters(uint64_t bitmap, struct cluster *cluster, struct cairn_error *err)
{
    cluster->alloc = (uint32_t)bitmap;
    cluster->zero = (uint32_t)(bitmap >> QCOW2_SUBCLUSTERS);
    if (cluster->alloc & cluster->zero)
        return error_set(err, CAIRN_E_CORRUPT,
                         "subcluster bitmap 0x%016" PRIx64
                         " has subclusters that are both allocated and zero",
                         bitmap);
    if (cluster->alloc && cluster->host_off == 0)
        return error_set(err, CAIRN_E_CORRUPT,
                         "subcluster bitmap 0x%016" PRIx64
                         " has allocated subclusters without a host cluster",
                         bitmap);
    return CAIRN_OK;
}

static int decode_entry(const struct scan *s, uint64_t entry, uint64_t bitmap,
                        struct cluster *ret_cluster, struct cairn_error *err)
{
    int r;

    *ret_cluster = (struct cluster){0};
    if (entry & QCOW2_OFLAG_COMPRESSED) {
        if (bitmap != 0)
            return error_set(err, CAIRN_E_CORRUPT,
                             "a compressed cluster with subcluster bitmap 0x%016" PRIx64, bitmap);
        return decode_compressed(s, entry, ret_cluster, err);
    }
    r = check_standard(s, entry, err);
    if (r != CAIRN_OK)
        return r;
    ret_cluster->host_off = entry & QCOW2_OFFSET_MASK;
    if (qcow2_has_extl2(s->hdr))
        return decode_subclusters(bitmap, ret_cluster, err);
    ret_cluster->zero = entry & QCOW2_OFLAG_ZERO;
    ret_cluster->alloc = !ret_cluster->zero && ret_cluster->host_off != 0;
    return CAIRN_OK;
}

/* Put the place of an L2 entry in front of the message. */
static int at_entry(const struct scan *s, uint64_t guest_off, int r, struct cairn_error *err)
{
    uint64_t cluster = guest_off >> s->hdr->cluster_bits;

    return error_prefix(err, r,
                        "%s: L2 table %" PRIu64 ", entry %" PRIu64 " (guest offset 0x%" PRIx64 ")",
                        s->src->name, cluster >> s->l2_bits,
                        cluster & ((UINT64_C(1) << s->l2_bits) - 1), guest_off);
}

static bool is_data(const struct qcow2_header *hdr, uint64_t file_size, uint64_t entry)
{
    uint64_t host_off = entry & QCOW2_OFFSET_MASK;

    return host_off != 0 && (entry & ~(QCOW2_OFLAG_COPIED | QCOW2_OFFSET_MASK)) == 0 &&
           is_aligned(host_off, qcow2_cluster_size(hdr)) &&
           range_in(host_off, qcow2_cluster_size(hdr), file_size);
}

uint64_t qcow2_data_run(const struct qcow2_header *hdr, uint64_t file_size, const uint8_t *at,
                        uint64_t max)
{
    uint64_t entry = bytes_get_be64(at), nr = 0;
    size_t step = qcow2_l2_entry_size(hdr);
    bool extl2 = qcow2_has_extl2(hdr);

    while (nr < max && bytes_get_be64(at) == entry && is_data(hdr, file_size, entry) &&
           (!extl2 || bytes_get_be64(at + QCOW2_L2E_SIZE) == QCOW2_SUB_ALLOC_ALL)) {
        nr++;
        at += step;
        entry += qcow2_cluster_size(hdr);
    }
    return nr;
}

/* 64 bytes at a time: the tables of a small layer are next to empty. */
uint64_t qcow2_empty_run(const struct qcow2_header *hdr, const uint8_t *at, uint64_t max)
{
    uint64_t len = max * qcow2_l2_entry_size(hdr), done = 0, w[8];

    for (; len - done >= sizeof(w); done += sizeof(w)) {
        memcpy(w, at + done, sizeof(w));
        if (w[0] | w[1] | w[2] | w[3] | w[4] | w[5] | w[6] | w[7])
            break;
    }
    return done / qcow2_l2_entry_size(hdr);
}

/* -- Extents ----------------------------------------------------------------------------------- */

/* An L2 table that [host_off, host_off + len) touches; 0: none. */
static uint64_t find_l2_table(const struct scan *s, uint64_t host_off, uint64_t len)
{
    size_t from = 0, to = s->nr_l2;

    while (from < to) {
        size_t mid = from + (to - from) / 2;

        if (s->l2_sorted[mid] + s->cluster_size <= host_off)
            from = mid + 1;
        else
            to = mid;
    }
    return from < s->nr_l2 && s->l2_sorted[from] < host_off + len ? s->l2_sorted[from] : 0;
}

static bool find_metadata(const struct scan *s, uint64_t host_off, uint64_t len,
                          struct qcow2_region *ret_region)
{
    const struct qcow2_region *region = qcow2_region_find(s->regions, s->nr_regions, host_off, len);

    *ret_region = region ? *region
                         : (struct qcow2_region){.what = "L2 table",
                                                 .host_off = find_l2_table(s, host_off, len)};
    return region || ret_region->host_off != 0;
}

/* Guest data must not lie where metadata lies.  Compressed data counts by where it begins: its
 * last sector may be more than it needs. */
static int check_host_range(const struct scan *s, const struct extent *e, struct cairn_error *err)
{
    struct qcow2_region hit;
    uint64_t at;
    int r;

    if (!find_metadata(s, e->host_off, e->kind == EXTENT_COMPRESSED ? 1 : e->len, &hit))
        return CAIRN_OK;
    at = max_u64(hit.host_off, e->host_off);
    r = error_set(err, CAIRN_E_CORRUPT, "host offset 0x%" PRIx64 " lies in the %s at 0x%" PRIx64,
                  at, hit.what, hit.host_off);
    return at_entry(s, e->guest_off + (at - e->host_off), r, err);
}

static int flush_pending(struct scan *s, struct cairn_error *err)
{
    struct extent e = s->pending;
    int r = CAIRN_OK;

    s->pending.len = 0;
    if (e.len == 0)
        return CAIRN_OK;
    if (e.kind != EXTENT_ZERO)
        r = check_host_range(s, &e, err);
    return r == CAIRN_OK ? s->fn(s->arg, &e, err) : r;
}

/* Add one extent, e->guest_off < virtual size, to those before it. */
static int put_extent(struct scan *s, struct extent *e, struct cairn_error *err)
{
    int r;

    e->len = min_u64(e->len, s->virtual_size - e->guest_off);
    if (s->pending.len > 0 && extent_mergeable(&s->pending, e)) {
        s->pending.len += e->len;
        return CAIRN_OK;
    }
    r = flush_pending(s, err);
    s->pending = *e;
    return r;
}

static uint8_t subcluster_kind(const struct cluster *c, unsigned n)
{
    if (c->zero >> n & 1)
        return c->host_off != 0 ? EXTENT_ZERO_ALLOC : EXTENT_ZERO;
    return c->alloc >> n & 1 ? EXTENT_DATA : EXTENT_HOLE;
}

static int put_subclusters(struct scan *s, const struct cluster *c, uint64_t guest_off,
                           struct cairn_error *err)
{
    unsigned nr = qcow2_has_extl2(s->hdr) ? QCOW2_SUBCLUSTERS : 1;
    uint64_t len = s->cluster_size / nr;

    for (unsigned n = 0; n < nr && guest_off + n * len < s->virtual_size; n++) {
        struct extent e = {
            .guest_off = guest_off + n * len, .len = len, .kind = subcluster_kind(c, n)};
        int r;

        if (e.kind == EXTENT_HOLE)
            continue;
        if (extent_kind_linear(e.kind))
            e.host_off = c->host_off + n * len;
        r = put_extent(s, &e, err);
        if (r != CAIRN_OK)
            return r;
    }
    return CAIRN_OK;
}

static int put_cluster(struct scan *s, const struct cluster *c, uint64_t guest_off,
                       struct cairn_error *err)
{
    struct extent e = {.guest_off = guest_off,
                       .len = s->cluster_size,
                       .host_off = c->host_off,
                       .compressed_len = c->compressed_len,
                       .kind = EXTENT_COMPRESSED};

    if (c->compressed_len > 0)
        return put_extent(s, &e, err);
    return put_subclusters(s, c, guest_off, err);
}

static int scan_entry(struct scan *s, const uint8_t *at, uint64_t guest_off,
                      struct cairn_error *err)
{
    uint64_t entry = bytes_get_be64(at);
    uint64_t bitmap = qcow2_has_extl2(s->hdr) ? bytes_get_be64(at + QCOW2_L2E_SIZE) : 0;
    struct cluster c;
    int r;

    if (entry == 0 && bitmap == 0)
        return CAIRN_OK;
    r = decode_entry(s, entry, bitmap, &c, err);
    if (r != CAIRN_OK)
        return at_entry(s, guest_off, r, err);
    return put_cluster(s, &c, guest_off, err);
}

static int scan_table(struct scan *s, const uint8_t *table, uint64_t guest_off,
                      struct cairn_error *err)
{
    size_t step = qcow2_l2_entry_size(s->hdr);
    uint64_t nr = min_u64(UINT64_C(1) << s->l2_bits,
                          div_round_up(s->virtual_size - guest_off, s->cluster_size));
    int r = CAIRN_OK;

    for (uint64_t i = qcow2_empty_run(s->hdr, table, nr); i < nr && r == CAIRN_OK;
         i += qcow2_empty_run(s->hdr, table + i * step, nr - i)) {
        const uint8_t *at = table + i * step;
        uint64_t run = qcow2_data_run(s->hdr, s->src->size, at, nr - i);
        struct extent e = {.guest_off = guest_off + i * s->cluster_size,
                           .len = run * s->cluster_size,
                           .host_off = bytes_get_be64(at) & QCOW2_OFFSET_MASK,
                           .kind = EXTENT_DATA};

        if (run > 0)
            r = put_extent(s, &e, err);
        else
            r = scan_entry(s, at, e.guest_off, err);
        i += max_u64(run, 1);
    }
    return r;
}

/* -- The disks of an image --------------------------------------------------------------------- */

struct qcow2_state qcow2_state_active(const struct qcow2_header *hdr)
{
    return (struct qcow2_state){.what = "L1 table",
                                .l1_table_offset = hdr->l1_table_offset,
                                .l1_size = hdr->l1_size,
                                .size = hdr->size};
}

static int check_snapshot_sizes(const struct source *src, const struct qcow2_header *hdr,
                                const struct qcow2_state *state, struct cairn_error *err)
{
    const uint64_t l1_size_max = QCOW2_L1_BYTES_MAX / QCOW2_L1E_SIZE;
    uint64_t needed;

    if (state->size > CHAIN_VIRTUAL_SIZE_MAX)
        return error_set(err, CAIRN_E_LIMIT,
                         "%s: %s: disk size %" PRIu64 " is above the limit of %" PRIu64, src->name,
                         state->what, state->size, CHAIN_VIRTUAL_SIZE_MAX);
    if (state->l1_size > l1_size_max)
        return error_set(err, CAIRN_E_LIMIT,
                         "%s: %s: l1_size %" PRIu32 " is above the limit of %" PRIu64, src->name,
                         state->what, state->l1_size, l1_size_max);
    needed = qcow2_l1_entries(hdr, state->size);
    if (state->l1_size < needed)
        return error_set(err, CAIRN_E_CORRUPT,
                         "%s: %s: l1_size %" PRIu32 " is below the %" PRIu64
                         " that a disk of %" PRIu64 " bytes needs",
                         src->name, state->what, state->l1_size, needed, state->size);
    return CAIRN_OK;
}

static int check_snapshot_place(const struct source *src, const struct qcow2_header *hdr,
                                const struct qcow2_state *state, struct cairn_error *err)
{
    uint64_t len = (uint64_t)state->l1_size * QCOW2_L1E_SIZE;
    struct qcow2_region regions[QCOW2_REGIONS_MAX];
    const struct qcow2_region *other;
    int r;

    if (len == 0)
        return CAIRN_OK;
    r = qcow2_check_table(src, hdr, state->what, state->l1_table_offset, len, err);
    if (r != CAIRN_OK)
        return r;
    other =
        qcow2_region_find(regions, qcow2_header_regions(hdr, regions), state->l1_table_offset, len);
    if (other)
        return error_set(err, CAIRN_E_CORRUPT,
                         "%s: %s at 0x%" PRIx64 " overlaps the %s at 0x%" PRIx64, src->name,
                         state->what, state->l1_table_offset, other->what, other->host_off);
    return CAIRN_OK;
}

int qcow2_state_snapshot(const struct source *src, const struct qcow2_header *hdr,
                         const struct qcow2_snapshot *snapshot, struct qcow2_state *ret_state,
                         struct cairn_error *err)
{
    struct qcow2_state state = {.l1_table_offset = snapshot->l1_table_offset,
                                .l1_size = snapshot->l1_size,
                                .size = snapshot->disk_size};
    char quoted[QUOTE_MAX];
    int r;

    snprintf(state.what, sizeof(state.what), "L1 table of snapshot %s",
             quote_str(snapshot->name, quoted));
    r = check_snapshot_sizes(src, hdr, &state, err);
    if (r == CAIRN_OK)
        r = check_snapshot_place(src, hdr, &state, err);
    if (r == CAIRN_OK)
        *ret_state = state;
    return r;
}

/* -- The whole --------------------------------------------------------------------------------- */

static int scan_tables(struct scan *s, struct cairn_error *err)
{
    for (size_t i = 0; i < s->nr_l1; i++) {
        uint64_t guest_off = (uint64_t)i << (s->l2_bits + s->hdr->cluster_bits);
        const uint8_t *table;
        int r;

        if (s->l1[i] == 0 || guest_off >= s->virtual_size)
            continue;
        r = load_l2(s, i, &table, err);
        if (r == CAIRN_OK)
            r = scan_table(s, table, guest_off, err);
        if (r != CAIRN_OK)
            return r;
    }
    return flush_pending(s, err);
}

/* What no guest data may lie in: what the header claims, and the table that is scanned. */
static void set_regions(struct scan *s)
{
    const struct qcow2_state *state = s->state;

    s->nr_regions = qcow2_header_regions(s->hdr, s->regions);
    if (state->l1_table_offset != s->hdr->l1_table_offset && state->l1_size > 0)
        s->regions[s->nr_regions++] = (struct qcow2_region){
            .what = state->what,
            .host_off = state->l1_table_offset,
            .len = round_up((uint64_t)state->l1_size * QCOW2_L1E_SIZE, s->cluster_size)};
}

int qcow2_scan(struct source *src, const struct qcow2_header *hdr, const struct qcow2_state *state,
               layer_extent_fn fn, void *arg, struct cairn_error *err)
{
    struct scan s = {.src = src,
                     .hdr = hdr,
                     .state = state,
                     .cluster_size = qcow2_cluster_size(hdr),
                     .virtual_size = round_down(state->size, 512),
                     .l2_bits = qcow2_l2_bits(hdr),
                     .fn = fn,
                     .arg = arg};
    int r;

    set_regions(&s);
    /* An L2 table lies wholly inside the file. */
    s.window_max = min_u64(max_u64(s.cluster_size, WINDOW_MIN), src->size);
    s.window = malloc(s.window_max);
    if (!s.window)
        return error_no_memory(err, "L2 tables");
    r = load_l1(&s, err);
    if (r == CAIRN_OK)
        r = scan_tables(&s, err);
    free(s.window);
    free(s.l2_sorted);
    free(s.l1);
    return r;
}
