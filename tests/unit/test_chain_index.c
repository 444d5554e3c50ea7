/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Building and looking up, against a model that knows nothing of slices: per sector, the layers
 * are asked one after another, as QEMU does it.  CAIRN_TEST_SEED repeats a random run.
 */
#include "fake_chain.h"

#include <stdio.h>
#include <string.h>

#include "checked.h"

#define MIB ((uint64_t)1 << 20)

/* -- The model --------------------------------------------------------------------------------- */

/* One sector as the chain shows it: an extent of 512 bytes. */
struct model {
    uint64_t nr_sectors;
    struct extent *sectors;
};

static void model_free(struct model *m)
{
    free(m->sectors);
    m->sectors = NULL;
}

/* Put layer ordinal on top of what m shows. */
static void model_overlay(struct model *m, const struct fake_layer *layer, uint16_t ordinal)
{
    uint64_t nr = layer->attr.virtual_size / SECTOR_SIZE;
    struct extent *sectors = calloc(nr + 1, sizeof(*sectors));

    assert_non_null(sectors);
    for (uint64_t i = 0; i < nr; i++)
        sectors[i] = i < m->nr_sectors ? m->sectors[i]
                                       : (struct extent){.layer = ordinal, .kind = EXTENT_HOLE};
    for (size_t i = 0; i < layer->nr; i++) {
        const struct extent *e = &layer->extents[i];

        for (uint64_t off = 0; off < e->len; off += SECTOR_SIZE) {
            struct extent *s = &sectors[(e->guest_off + off) / SECTOR_SIZE];

            *s = *e;
            s->layer = ordinal;
            s->host_off += extent_kind_linear(e->kind) ? off : 0;
        }
    }
    for (uint64_t i = 0; i < nr; i++) {
        sectors[i].guest_off = i * SECTOR_SIZE;
        sectors[i].len = SECTOR_SIZE;
    }
    model_free(m);
    *m = (struct model){.nr_sectors = nr, .sectors = sectors};
}

static bool same_sector(const struct extent *got, const struct extent *want)
{
    if (got->kind != want->kind || got->layer != want->layer || got->host_off != want->host_off)
        return false;
    /* Compressed lengths are rounded up to whole sectors. */
    return got->kind != EXTENT_COMPRESSED ||
           (got->compressed_len >= want->compressed_len &&
            got->compressed_len < want->compressed_len + SECTOR_SIZE);
}

/* The extents that chain_map gave for [guest_off, …) say what the model says. */
static uint64_t check_extents(const struct model *m, const struct extent *extents, size_t nr,
                              uint64_t guest_off)
{
    for (size_t i = 0; i < nr; i++) {
        struct extent e = extents[i];

        assert_int_equal(e.guest_off, guest_off);
        assert_true(e.len > 0);
        guest_off += e.len;
        assert_true(i == 0 || !extent_mergeable(&extents[i - 1], &e));
        while (e.len > 0) {
            const struct extent *want = &m->sectors[e.guest_off / SECTOR_SIZE];
            struct extent whole = *want;

            if (extent_kind_linear(want->kind))
                whole.host_off += e.guest_off % SECTOR_SIZE;
            if (!same_sector(&e, &whole))
                fail_msg("guest offset 0x%lx: kind %u layer %u host 0x%lx, model: %u %u 0x%lx",
                         e.guest_off, e.kind, e.layer, e.host_off, want->kind, want->layer,
                         whole.host_off);
            if (e.len <= SECTOR_SIZE - e.guest_off % SECTOR_SIZE)
                break;
            extent_trim_front(&e, SECTOR_SIZE - e.guest_off % SECTOR_SIZE);
        }
    }
    return guest_off;
}

static void check_range(struct fake_chain *chain, const struct model *m, uint64_t guest_off,
                        uint64_t len, size_t max)
{
    struct index_slices slices = fake_slices(chain);
    struct extent extents[16];
    uint64_t end = guest_off + len;
    struct cairn_error err;

    while (guest_off < end) {
        size_t nr;

        if (chain_map(fake_top(chain), &slices, guest_off, end - guest_off, extents, max, &nr,
                      &err) < 0)
            fail_msg("%s", err.message);
        assert_true(nr > 0 && nr <= max);
        guest_off = check_extents(m, extents, nr, guest_off);
    }
    assert_int_equal(guest_off, end);
}

static void check_totals(const struct fake_chain *chain, const struct model *m)
{
    struct index_totals want = {0}, *got = &fake_top(chain)->totals;

    for (uint64_t i = 0; i < m->nr_sectors; i++) {
        uint8_t kind = m->sectors[i].kind;

        if (!extent_reads_zero(kind))
            want.data_bytes += SECTOR_SIZE;
        else if (kind != EXTENT_HOLE)
            want.zero_bytes += SECTOR_SIZE;
    }
    for (uint32_t k = 0; k < chain->depth; k++)
        for (size_t i = 0; i < chain->layers[k].nr; i++)
            if (!extent_reads_zero(chain->layers[k].extents[i].kind))
                want.layers_bytes += chain->layers[k].extents[i].len;
    for (uint32_t s = 0; s < fake_top(chain)->nr_slices; s++)
        if (fake_top(chain)->slices[s] != INDEX_NO_SLICE)
            want.nr_extents += chain->slices[fake_top(chain)->slices[s]][s]->nr_extents;
    assert_int_equal(got->data_bytes, want.data_bytes);
    assert_int_equal(got->zero_bytes, want.zero_bytes);
    assert_int_equal(got->layers_bytes, want.layers_bytes);
    assert_int_equal(got->nr_extents, want.nr_extents);
}

/* Everything that the header says of a slice. */
static void check_slice(const struct fake_chain *chain, uint32_t ordinal, uint32_t slice_nr)
{
    const struct index_slice *slice = chain->slices[ordinal][slice_nr];
    uint64_t end = (uint64_t)slice_nr << INDEX_SLICE_BITS;
    struct index_extent last = {{0}};

    for (uint32_t i = 0; i < slice->nr_extents; i++) {
        const struct index_extent packed = slice_extent(slice, i);
        struct extent e;

        index_extent_unpack(&packed, slice_nr, &e);
        assert_true(e.guest_off >= end);
        end = e.guest_off + e.len;
        assert_true(end <= chain->l1s[ordinal]->virtual_size);
        assert_true(e.layer <= ordinal);
        assert_true(i == 0 || !packed_mergeable(&last, &packed));
        last = packed;
    }
}

static void check_prefix(struct fake_chain *chain, const struct model *m, uint64_t *seed)
{
    uint64_t size = fake_top(chain)->virtual_size;

    assert_int_equal(size, m->nr_sectors * SECTOR_SIZE);
    check_totals(chain, m);
    for (uint32_t s = 0; s < FAKE_SLICES_MAX; s++)
        if (chain->slices[chain->depth - 1][s])
            check_slice(chain, chain->depth - 1, s);
    check_range(chain, m, 0, size, 16);
    for (int i = 0; i < 20 && size > 0; i++) {
        uint64_t off = fake_below(seed, size);

        check_range(chain, m, off, 1 + fake_below(seed, size - off), 1 + fake_below(seed, 16));
        check_range(chain, m, off, 1 + fake_below(seed, min_u64(size - off, 5000)), 1);
    }
}

static uint64_t random_size(uint64_t *seed)
{
    uint64_t sectors = FAKE_SLICES_MAX * INDEX_SLICE_SIZE / SECTOR_SIZE;

    switch (fake_below(seed, 8)) {
    case 0:
        return fake_below(seed, FAKE_SLICES_MAX + 1) * INDEX_SLICE_SIZE;
    case 1:
        return fake_below(seed, 100) * SECTOR_SIZE;
    default:
        return (1 + fake_below(seed, sectors)) * SECTOR_SIZE;
    }
}

static void random_chain(uint64_t seed)
{
    CLEANUP(fake_chain_free_p) struct fake_chain *chain = fake_chain_new();
    CLEANUP(model_free) struct model m = {0};
    uint64_t size = random_size(&seed);
    uint32_t depth = 2 + (uint32_t)fake_below(&seed, 12);

    for (uint32_t k = 0; k < depth; k++) {
        struct cairn_error err;

        if (fake_below(&seed, 3) == 0)
            size = random_size(&seed);
        fake_random_layer(chain, &seed, size, (unsigned)fake_below(&seed, 60));
        if (fake_build(chain, &err) < 0)
            fail_msg("%s", err.message);
        model_overlay(&m, &chain->layers[k], (uint16_t)k);
        check_prefix(chain, &m, &seed);
    }
}

static void test_random_chains_show_what_the_model_shows(void **state)
{
    const char *given = getenv("CAIRN_TEST_SEED");

    (void)state;
    if (given) {
        random_chain(strtoull(given, NULL, 0));
        return;
    }
    for (uint64_t seed = 1; seed <= 12; seed++) {
        print_message("seed %lu\n", seed);
        random_chain(seed);
    }
}

/* -- Single behaviours ------------------------------------------------------------------------- */

/* A layer on top of chain, of one extent (len 0: none). */
static void add_layer(struct fake_chain *chain, uint64_t virtual_size, struct extent e)
{
    struct fake_layer *layer = &chain->layers[chain->depth];

    layer->attr = (struct layer_attr){
        .virtual_size = virtual_size, .cluster_bits = 16, .format = LAYER_QCOW2};
    if (e.len > 0)
        fake_layer_add(layer, e);
    assert_int_equal(fake_build(chain, NULL), CAIRN_OK);
}

static struct extent data(uint64_t guest_off, uint64_t len)
{
    return (struct extent){
        .guest_off = guest_off, .len = len, .host_off = guest_off, .kind = EXTENT_DATA};
}

static const struct extent nothing;

/* All of the top's extents, at most max. */
static size_t map_all(struct fake_chain *chain, struct extent *extents, size_t max)
{
    struct index_slices slices = fake_slices(chain);
    size_t nr;

    assert_int_equal(chain_map(fake_top(chain), &slices, 0, fake_top(chain)->virtual_size, extents,
                               max, &nr, NULL),
                     CAIRN_OK);
    return nr;
}

static void test_untouched_slices_are_shared(void **state)
{
    CLEANUP(fake_chain_free_p) struct fake_chain *chain = fake_chain_new();

    (void)state;
    add_layer(chain, 128 * MIB, data(0, 128 * MIB));
    chain->nr_gets = 0;
    add_layer(chain, 128 * MIB, data(40 * MIB, 512));
    assert_int_equal(chain->nr_gets, 1);
    assert_int_equal(fake_top(chain)->slices[0], 0);
    assert_int_equal(fake_top(chain)->slices[1], 1);
    assert_int_equal(fake_top(chain)->slices[2], 0);
    assert_null(chain->slices[1][0]);
}

static void test_what_a_shrink_lost_stays_lost(void **state)
{
    CLEANUP(fake_chain_free_p) struct fake_chain *chain = fake_chain_new();
    struct extent extents[8];

    (void)state;
    add_layer(chain, 128 * MIB, data(0, 128 * MIB));
    add_layer(chain, 40 * MIB, nothing);
    assert_int_equal(fake_top(chain)->totals.data_bytes, 40 * MIB);
    add_layer(chain, 128 * MIB, nothing);
    assert_int_equal(map_all(chain, extents, 8), 2);
    assert_int_equal(extents[0].len, 40 * MIB);
    assert_int_equal(extents[0].layer, 0);
    assert_int_equal(extents[1].kind, EXTENT_HOLE);
    assert_int_equal(extents[1].layer, 2);
}

static void test_a_slice_emptied_by_a_shrink_is_stored_empty(void **state)
{
    CLEANUP(fake_chain_free_p) struct fake_chain *chain = fake_chain_new();

    (void)state;
    add_layer(chain, 32 * MIB, data(16 * MIB, 16 * MIB));
    add_layer(chain, 8 * MIB, nothing);
    assert_int_equal(fake_top(chain)->slices[0], 1);
    assert_int_equal(chain->slices[1][0]->nr_extents, 0);
    assert_int_equal(fake_top(chain)->totals.nr_extents, 0);
}

static void test_holes_tell_where_the_search_ends(void **state)
{
    CLEANUP(fake_chain_free_p) struct fake_chain *chain = fake_chain_new();
    struct extent e[8];

    (void)state;
    add_layer(chain, 64 * MIB, nothing);
    add_layer(chain, 16 * MIB, nothing);
    add_layer(chain, 80 * MIB, nothing);
    add_layer(chain, 96 * MIB, nothing);
    assert_int_equal(map_all(chain, e, 8), 3);
    assert_true(e[0].layer == 0 && e[0].len == 16 * MIB);
    assert_true(e[1].layer == 2 && e[1].len == 64 * MIB);
    assert_true(e[2].layer == 3 && e[2].len == 16 * MIB);
}

static void test_extents_are_merged_across_slices(void **state)
{
    CLEANUP(fake_chain_free_p) struct fake_chain *chain = fake_chain_new();
    struct extent e[2];

    (void)state;
    add_layer(chain, 200 * MIB, data(0, 200 * MIB));
    assert_int_equal(fake_top(chain)->totals.nr_extents, 7);
    assert_int_equal(map_all(chain, e, 2), 1);
    assert_int_equal(e[0].len, 200 * MIB);
}

static void test_depth_is_limited(void **state)
{
    CLEANUP(index_l1_unref_p) struct index_l1 *parent = NULL;
    CLEANUP(index_l1_unref_p) struct index_l1 *l1 = NULL;
    struct layer_attr attr = {.cluster_bits = 16, .format = LAYER_QCOW2};
    struct digest digest = {{0}};
    struct fake_layer layer = {.nr = 0};

    (void)state;
    assert_int_equal(index_l1_new(CHAIN_DEPTH_MAX, 0, &parent, NULL), CAIRN_OK);
    assert_int_equal(chain_index_overlay(parent, NULL, &attr, &digest, fake_feed, &layer, fake_emit,
                                         NULL, &l1, NULL),
                     CAIRN_E_LIMIT);
}

/* One layer that must be refused for its extent or its attributes. */
static void refuse(struct layer_attr attr, struct extent e, int code)
{
    CLEANUP(fake_chain_free_p) struct fake_chain *chain = fake_chain_new();

    chain->layers[0].attr = attr;
    if (e.len > 0)
        fake_layer_add(&chain->layers[0], e);
    assert_int_equal(fake_build(chain, NULL), code);
}

static void test_impossible_layers_are_refused(void **state)
{
    struct layer_attr attr = {.virtual_size = MIB, .cluster_bits = 16, .format = LAYER_QCOW2};
    struct layer_attr huge = {.virtual_size = CHAIN_VIRTUAL_SIZE_MAX + 512, .cluster_bits = 16};
    struct extent bad[] = {
        data(MIB, 512),
        data(1, 512),
        {.len = 512, .host_off = (uint64_t)1 << 56, .kind = EXTENT_DATA},
        {.len = 512, .host_off = UINT64_MAX - 511, .kind = EXTENT_DATA},
        {.len = 512, .host_off = 1, .kind = EXTENT_DATA},
        {.len = 512, .host_off = 512, .kind = EXTENT_ZERO},
        {.len = 512, .kind = EXTENT_COMPRESSED},
        {.len = 512, .compressed_len = 131073, .kind = EXTENT_COMPRESSED},
        {.guest_off = 65024, .len = 1024, .compressed_len = 9, .kind = EXTENT_COMPRESSED},
        {.len = 512, .kind = EXTENT_HOLE},
    };

    (void)state;
    refuse(huge, nothing, CAIRN_E_LIMIT);
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
        refuse(attr, bad[i], CAIRN_E_CORRUPT);
    refuse(attr, data(0, MIB), CAIRN_OK);
}

static void test_a_range_past_the_end_is_refused(void **state)
{
    CLEANUP(fake_chain_free_p) struct fake_chain *chain = fake_chain_new();
    struct index_slices slices = fake_slices(chain);
    struct extent e;
    size_t nr;

    (void)state;
    add_layer(chain, MIB, nothing);
    assert_int_equal(chain_map(chain->l1s[0], &slices, MIB, 1, &e, 1, &nr, NULL), CAIRN_E_USAGE);
    assert_int_equal(chain_map(chain->l1s[0], &slices, 1, UINT64_MAX, &e, 1, &nr, NULL),
                     CAIRN_E_USAGE);
    assert_int_equal(chain_map(chain->l1s[0], &slices, MIB, 0, &e, 1, &nr, NULL), CAIRN_OK);
    assert_int_equal(nr, 0);
}

/* -- Differences ------------------------------------------------------------------------------- */

struct diff_check {
    struct model a, b;
    const struct fake_chain *chain_a, *chain_b;
    uint8_t *seen; /* per sector */
    uint64_t guest_off;
};

static bool model_same(const struct diff_check *check, uint64_t sector)
{
    static const struct extent hole = {.kind = EXTENT_HOLE};
    const struct extent *a = sector < check->a.nr_sectors ? &check->a.sectors[sector] : &hole;
    const struct extent *b = sector < check->b.nr_sectors ? &check->b.sectors[sector] : &hole;

    if (extent_reads_zero(a->kind) || extent_reads_zero(b->kind))
        return extent_reads_zero(a->kind) && extent_reads_zero(b->kind);
    return a->kind == b->kind && a->host_off == b->host_off &&
           digest_equal(&check->chain_a->digests[a->layer], &check->chain_b->digests[b->layer]);
}

static int see_difference(void *arg, const struct extent *e, struct cairn_error *err)
{
    struct diff_check *check = arg;

    (void)err;
    assert_true(e->guest_off >= check->guest_off && e->len > 0);
    check->guest_off = e->guest_off + e->len;
    for (uint64_t i = e->guest_off / SECTOR_SIZE; i < check->guest_off / SECTOR_SIZE; i++) {
        check->seen[i] = 1;
        if (i >= check->b.nr_sectors)
            assert_int_equal(e->kind, EXTENT_ZERO);
        else
            assert_int_equal(e->kind, check->b.sectors[i].kind);
    }
    return 0;
}

static void assert_seen_as_modelled(const struct diff_check *check, uint64_t nr_sectors)
{
    for (uint64_t i = 0; i < nr_sectors; i++)
        if (check->seen[i] == model_same(check, i))
            fail_msg("sector %lu: reported %u", i, check->seen[i]);
}

/* As a whole, and in pieces. */
static void check_diff(struct fake_chain *a, struct fake_chain *b)
{
    struct diff_check check = {.chain_a = a, .chain_b = b};
    struct index_slices a_slices = fake_slices(a), b_slices = fake_slices(b);
    const uint64_t piece = 11 * MIB;
    uint64_t size;

    for (uint32_t k = 0; k < a->depth; k++)
        model_overlay(&check.a, &a->layers[k], (uint16_t)k);
    for (uint32_t k = 0; k < b->depth; k++)
        model_overlay(&check.b, &b->layers[k], (uint16_t)k);
    size = max_u64(fake_top(a)->virtual_size, fake_top(b)->virtual_size);
    check.seen = calloc(size / SECTOR_SIZE + 1, 1);
    assert_non_null(check.seen);
    assert_int_equal(chain_diff(fake_top(a), &a_slices, a->digests, fake_top(b), &b_slices,
                                b->digests, see_difference, &check, NULL),
                     CAIRN_OK);
    assert_seen_as_modelled(&check, size / SECTOR_SIZE);
    memset(check.seen, 0, size / SECTOR_SIZE);
    check.guest_off = 0;
    for (uint64_t off = 0; off < size; off += piece)
        assert_int_equal(chain_diff_range(fake_top(a), &a_slices, a->digests, fake_top(b),
                                          &b_slices, b->digests, off, min_u64(piece, size - off),
                                          see_difference, &check, NULL),
                         CAIRN_OK);
    assert_seen_as_modelled(&check, size / SECTOR_SIZE);
    free(check.seen);
    model_free(&check.a);
    model_free(&check.b);
}

/* Two chains that have their first layers in common and then part. */
static void random_pair(uint64_t seed)
{
    CLEANUP(fake_chain_free_p) struct fake_chain *a = fake_chain_new();
    CLEANUP(fake_chain_free_p) struct fake_chain *b = fake_chain_new();
    uint64_t size = random_size(&seed), common = fake_below(&seed, 5);

    for (uint64_t k = 0; k < 6; k++) {
        uint64_t a_seed = seed, b_seed = k < common ? seed : seed + 77;
        unsigned nr = (unsigned)fake_below(&seed, 30);

        if (fake_below(&seed, 3) == 0)
            size = random_size(&seed);
        fake_random_layer(a, &a_seed, size, nr);
        fake_random_layer(b, &b_seed, k < common ? size : random_size(&seed), nr);
        assert_int_equal(fake_build(a, NULL), CAIRN_OK);
        assert_int_equal(fake_build(b, NULL), CAIRN_OK);
    }
    check_diff(a, b);
    check_diff(b, a);
    check_diff(a, a);
}

static void test_random_differences(void **state)
{
    (void)state;
    for (uint64_t seed = 1; seed <= 8; seed++) {
        print_message("seed %lu\n", seed);
        random_pair(seed);
    }
}

static int count_difference(void *arg, const struct extent *e, struct cairn_error *err)
{
    unsigned *nr = arg;

    (void)e;
    (void)err;
    ++*nr;
    return 0;
}

static void test_common_slices_are_not_fetched_for_a_difference(void **state)
{
    CLEANUP(fake_chain_free_p) struct fake_chain *chain = fake_chain_new();
    struct index_slices slices = fake_slices(chain);
    unsigned nr = 0;

    (void)state;
    add_layer(chain, 256 * MIB, data(0, 256 * MIB));
    add_layer(chain, 256 * MIB, data(40 * MIB, 512));
    chain->nr_gets = 0;
    assert_int_equal(chain_diff(chain->l1s[0], &slices, chain->digests, chain->l1s[1], &slices,
                                chain->digests, count_difference, &nr, NULL),
                     CAIRN_OK);
    assert_int_equal(nr, 1);
    assert_int_equal(chain->nr_gets, 2);
}

static int stop(void *arg, const struct extent *e, struct cairn_error *err)
{
    (void)arg;
    (void)e;
    (void)err;
    return 7;
}

static void test_a_callback_can_stop_a_difference(void **state)
{
    CLEANUP(fake_chain_free_p) struct fake_chain *chain = fake_chain_new();
    CLEANUP(fake_chain_free_p) struct fake_chain *empty = fake_chain_new();
    struct index_slices a = fake_slices(empty), b = fake_slices(chain);

    (void)state;
    add_layer(empty, 64 * MIB, nothing);
    add_layer(chain, 64 * MIB, data(0, 512));
    assert_int_equal(chain_diff(empty->l1s[0], &a, empty->digests, chain->l1s[0], &b,
                                chain->digests, stop, NULL, NULL),
                     7);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_random_chains_show_what_the_model_shows),
        cmocka_unit_test(test_untouched_slices_are_shared),
        cmocka_unit_test(test_what_a_shrink_lost_stays_lost),
        cmocka_unit_test(test_a_slice_emptied_by_a_shrink_is_stored_empty),
        cmocka_unit_test(test_holes_tell_where_the_search_ends),
        cmocka_unit_test(test_extents_are_merged_across_slices),
        cmocka_unit_test(test_depth_is_limited),
        cmocka_unit_test(test_impossible_layers_are_refused),
        cmocka_unit_test(test_a_range_past_the_end_is_refused),
        cmocka_unit_test(test_random_differences),
        cmocka_unit_test(test_common_slices_are_not_fetched_for_a_difference),
        cmocka_unit_test(test_a_callback_can_stop_a_difference),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
