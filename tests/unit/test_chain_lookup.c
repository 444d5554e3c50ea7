/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Looking up single offsets: every instruction set of this machine against a search from the front,
 * and against chain_map, on slices of all sizes at which a tree gets another level.
 */
#include "test.h"

#include <string.h>

#include "fake_chain.h"

#define NO_BOUND SIZE_MAX

/* -- The tree of a slice ----------------------------------------------------------------------- */

/* nr extents of random lengths and gaps in one slice, as far as they fit. */
static uint32_t random_extents(uint64_t *seed, uint32_t nr, struct index_extent *ret_extents)
{
    uint32_t mean = SLICE_SECTORS / (nr + 1), sector = 0;

    for (uint32_t i = 0; i < nr; i++) {
        uint32_t gap = (uint32_t)fake_below(seed, mean < 2 ? 1 : mean);
        uint32_t len = 1 + (uint32_t)fake_below(seed, mean < 2 ? 1 : mean);

        if (sector + gap + len > SLICE_SECTORS)
            return i;
        ret_extents[i] = index_extent_pack(&(struct extent){
            .guest_off = (uint64_t)(sector + gap) << SECTOR_BITS,
            .len = (uint64_t)len << SECTOR_BITS,
            .host_off = fake_below(seed, HOST_OFF_MAX >> SECTOR_BITS) << SECTOR_BITS,
            .layer = (uint16_t)fake_below(seed, CHAIN_DEPTH_MAX),
            .kind = EXTENT_DATA,
        });
        sector += gap + len;
    }
    return nr;
}

/* The first extent that ends behind sector, for every sector. */
static void check_finds(const struct index_slice *slice, const struct index_extent *extents,
                        uint32_t nr, const struct lookup_isa *isa)
{
    uint32_t want = 0;

    for (uint32_t sector = 0; sector < SLICE_SECTORS; sector++) {
        while (want < nr && packed_end(&extents[want]) <= sector)
            want++;
        if (isa->find(slice, sector) != want)
            fail_msg("%s: sector %u of %u extents: %u, expected %u", isa->name, sector, nr,
                     isa->find(slice, sector), want);
    }
}

static void check_slice_of(uint64_t *seed, uint32_t nr)
{
    CLEANUP_FREE struct index_extent *extents = calloc(nr + 1, sizeof(*extents));
    CLEANUP(index_slice_unref_p) struct index_slice *slice = NULL;
    const struct lookup_isa *isa;

    assert_non_null(extents);
    nr = random_extents(seed, nr, extents);
    assert_int_equal(index_slice_new(extents, nr, &slice, NULL), CAIRN_OK);
    for (uint32_t i = 0; i < nr; i++) {
        const struct index_extent back = slice_extent(slice, i);

        assert_memory_equal(&back, &extents[i], sizeof(back));
    }
    for (unsigned i = 0; (isa = lookup_isa_get(i)); i++)
        check_finds(slice, extents, nr, isa);
}

static void test_every_instruction_set_finds_what_a_walk_finds(void **state)
{
    static const uint32_t sizes[] = {0,   1,   2,   23,  24,   25,    31,    32,    33,    64,
                                     100, 767, 768, 769, 1024, 24575, 24576, 24577, 40000, 65536};
    uint64_t seed = 7;

    (void)state;
    for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++)
        check_slice_of(&seed, sizes[i]);
}

static void test_an_extent_takes_at_most_16_bytes(void **state)
{
    struct index_extent extents[512];
    CLEANUP(index_slice_unref_p) struct index_slice *slice = NULL;

    (void)state;
    for (uint32_t i = 0; i < 512; i++)
        extents[i] = index_extent_pack(&(struct extent){
            .guest_off = (uint64_t)i << 16, .len = 1 << 16, .kind = (uint8_t)(2 * (i % 2))});
    assert_int_equal(index_slice_new(extents, 512, &slice, NULL), CAIRN_OK);
    assert_true(index_slice_bytes(slice) <= 512 * 16);
}

/* -- Chains ------------------------------------------------------------------------------------ */

/* What chain_map says of one byte, up to the end of its slice. */
static struct extent mapped(struct fake_chain *chain, uint64_t guest_off)
{
    struct index_slices slices = fake_slices(chain);
    uint64_t end = min_u64(round_down(guest_off, INDEX_SLICE_SIZE) + INDEX_SLICE_SIZE,
                           fake_top(chain)->virtual_size);
    struct extent e;
    size_t nr;

    assert_int_equal(
        chain_map(fake_top(chain), &slices, guest_off, end - guest_off, &e, 1, &nr, NULL),
        CAIRN_OK);
    return e;
}

static void assert_same_extent(const struct extent *a, const struct extent *b)
{
    assert_int_equal(a->guest_off, b->guest_off);
    assert_int_equal(a->len, b->len);
    assert_int_equal(a->host_off, b->host_off);
    assert_int_equal(a->compressed_len, b->compressed_len);
    assert_int_equal(a->layer, b->layer);
    assert_int_equal(a->kind, b->kind);
}

static void check_lookups(struct fake_chain *chain, struct chain_index *index, uint64_t *seed)
{
    uint64_t offs[101];
    struct extent alone, many[101];
    size_t nr = 1 + fake_below(seed, 101);

    for (size_t i = 0; i < nr; i++)
        offs[i] = fake_below(seed, fake_top(chain)->virtual_size);
    assert_int_equal(chain_index_lookup_many(index, offs, nr, many, NULL), CAIRN_OK);
    for (size_t i = 0; i < nr; i++) {
        const struct extent want = mapped(chain, offs[i]);

        assert_same_extent(&many[i], &want);
        assert_int_equal(chain_index_lookup(index, offs[i], &alone, NULL), CAIRN_OK);
        assert_same_extent(&alone, &want);
    }
}

static struct fake_chain *random_chain(uint64_t *seed)
{
    struct fake_chain *chain = fake_chain_new();

    for (uint32_t k = 0; k < 6; k++) {
        uint64_t sectors = FAKE_SLICES_MAX * INDEX_SLICE_SIZE / SECTOR_SIZE;

        fake_random_layer(chain, seed, (1 + fake_below(seed, sectors)) * SECTOR_SIZE,
                          (unsigned)fake_below(seed, 400));
        assert_int_equal(fake_build(chain, NULL), CAIRN_OK);
    }
    return chain;
}

/* With all slices kept, with some, and with none. */
static void test_lookups_say_what_the_map_says(void **state)
{
    static const size_t bounds[] = {NO_BOUND, 3000, 0};

    (void)state;
    for (uint64_t seed = 1; seed < 15; seed++) {
        uint64_t random = seed;
        CLEANUP(fake_chain_free_p) struct fake_chain *chain = random_chain(&random);
        struct index_slices slices = fake_slices(chain);
        const struct lookup_isa *isa;

        for (unsigned i = 0; (isa = lookup_isa_get(i)); i++) {
            CLEANUP(chain_index_free_p) struct chain_index *index = NULL;

            assert_int_equal(
                chain_index_new(fake_top(chain), &slices, bounds[seed % 3], &index, NULL),
                CAIRN_OK);
            chain_index_use(index, isa);
            for (unsigned n = 0; n < 30; n++)
                check_lookups(chain, index, &random);
        }
    }
}

/* -- Single behaviours ------------------------------------------------------------------------- */

#define MIB ((uint64_t)1 << 20)

/* 64 MiB of data, of which 40 MiB are seen, in 128 MiB. */
static struct fake_chain *small_chain(void)
{
    static const uint64_t sizes[] = {64 * MIB, 40 * MIB, 128 * MIB};
    struct fake_chain *chain = fake_chain_new();

    for (uint32_t k = 0; k < 3; k++) {
        chain->layers[k].attr = (struct layer_attr){
            .virtual_size = sizes[k], .cluster_bits = 16, .format = LAYER_QCOW2};
        if (k == 0)
            fake_layer_add(&chain->layers[k],
                           (struct extent){.len = 64 * MIB, .kind = EXTENT_DATA});
        assert_int_equal(fake_build(chain, NULL), CAIRN_OK);
    }
    return chain;
}

static void test_a_slice_is_fetched_once(void **state)
{
    CLEANUP(fake_chain_free_p) struct fake_chain *chain = small_chain();
    struct index_slices slices = fake_slices(chain);
    CLEANUP(chain_index_free_p) struct chain_index *index = NULL;
    uint64_t offs[] = {0, 1, 33 * MIB, 127 * MIB, 63 * MIB};
    struct extent e[5];

    (void)state;
    assert_int_equal(chain_index_new(fake_top(chain), &slices, NO_BOUND, &index, NULL), CAIRN_OK);
    chain->nr_gets = 0;
    for (unsigned i = 0; i < 3; i++)
        assert_int_equal(chain_index_lookup_many(index, offs, 5, e, NULL), CAIRN_OK);
    assert_int_equal(chain->nr_gets, 2);
    assert_int_equal(e[2].kind, EXTENT_DATA);
    assert_int_equal(e[2].len, 7 * MIB);
    assert_int_equal(e[4].kind, EXTENT_HOLE);
    assert_int_equal(e[4].layer, 2);
}

static void test_the_bound_in_bytes_holds(void **state)
{
    CLEANUP(fake_chain_free_p) struct fake_chain *chain = small_chain();
    struct index_slices slices = fake_slices(chain), held;
    CLEANUP(chain_index_free_p) struct chain_index *index = NULL;
    size_t one = index_slice_bytes(chain->slices[0][0]), empty;
    struct extent e;
    size_t nr;

    (void)state;
    assert_int_equal(chain_index_new(fake_top(chain), &slices, one, &index, NULL), CAIRN_OK);
    empty = chain_index_bytes(index);
    held = chain_index_slices(index);
    for (unsigned i = 0; i < 3; i++)
        assert_int_equal(chain_map(fake_top(chain), &held, 0, 40 * MIB, &e, 1, &nr, NULL),
                         CAIRN_OK);
    assert_int_equal(e.len, 40 * MIB);
    assert_int_equal(chain_index_bytes(index), empty + one);
}

static int fail_to_get(void *ctx, uint32_t ordinal, uint32_t slice, struct index_slice **ret_slice,
                       struct cairn_error *err)
{
    (void)ctx;
    (void)ordinal;
    (void)ret_slice;
    return error_set(err, CAIRN_E_IO, "slice %u is out of reach", slice);
}

static void test_a_slice_that_cannot_be_had_fails_its_look_ups(void **state)
{
    CLEANUP(fake_chain_free_p) struct fake_chain *chain = small_chain();
    struct index_slices slices = {.get = fail_to_get};
    CLEANUP(chain_index_free_p) struct chain_index *index = NULL;
    uint64_t offs[] = {100 * MIB, 33 * MIB};
    struct cairn_error err;
    struct extent e[2];

    (void)state;
    assert_int_equal(chain_index_new(fake_top(chain), &slices, NO_BOUND, &index, NULL), CAIRN_OK);
    assert_int_equal(chain_index_lookup(index, 100 * MIB, e, &err), CAIRN_OK); /* a hole */
    assert_int_equal(chain_index_lookup(index, 33 * MIB, e, &err), CAIRN_E_IO);
    assert_int_equal(chain_index_lookup_many(index, offs, 2, e, &err), CAIRN_E_IO);
    assert_string_equal(err.message, "slice 1 is out of reach");
}

static void test_offsets_past_the_end_are_refused(void **state)
{
    CLEANUP(fake_chain_free_p) struct fake_chain *chain = small_chain();
    struct index_slices slices = fake_slices(chain);
    uint64_t offs[] = {0, 128 * MIB - 1, 128 * MIB, UINT64_MAX};
    const struct lookup_isa *isa;
    struct extent e[4];

    (void)state;
    for (unsigned i = 0; (isa = lookup_isa_get(i)); i++) {
        CLEANUP(chain_index_free_p) struct chain_index *index = NULL;

        assert_int_equal(chain_index_new(fake_top(chain), &slices, NO_BOUND, &index, NULL),
                         CAIRN_OK);
        chain_index_use(index, isa);
        assert_int_equal(chain_index_lookup_many(index, offs, 2, e, NULL), CAIRN_OK);
        assert_int_equal(chain_index_lookup_many(index, offs, 3, e, NULL), CAIRN_E_USAGE);
        assert_int_equal(chain_index_lookup(index, 128 * MIB, e, NULL), CAIRN_E_USAGE);
        assert_int_equal(chain_index_lookup(index, UINT64_MAX, e, NULL), CAIRN_E_USAGE);
        assert_int_equal(chain_index_lookup_many(index, offs, 0, e, NULL), CAIRN_OK);
    }
}

/* -- Threads ----------------------------------------------------------------------------------- */

/* fake_get counts, which threads must not. */
static int get_uncounted(void *ctx, uint32_t ordinal, uint32_t slice,
                         struct index_slice **ret_slice, struct cairn_error *err)
{
    struct fake_chain *chain = ctx;

    (void)err;
    *ret_slice = index_slice_ref(chain->slices[ordinal][slice]);
    return CAIRN_OK;
}

struct race {
    struct fake_chain *chain;
    struct chain_index *index;
    uint64_t seed;
    unsigned nr_wrong;
};

static void *race_run(void *arg)
{
    struct race *race = arg;
    uint64_t size = fake_top(race->chain)->virtual_size;
    struct index_slices held = chain_index_slices(race->index);

    for (unsigned i = 0; i < 2000; i++) {
        uint64_t off = fake_below(&race->seed, size);
        struct extent alone, range;
        size_t nr;

        if (chain_index_lookup(race->index, off, &alone, NULL) != CAIRN_OK ||
            chain_map(fake_top(race->chain), &held, off, 1, &range, 1, &nr, NULL) != CAIRN_OK ||
            alone.kind != range.kind || alone.host_off != range.host_off)
            race->nr_wrong++;
    }
    return NULL;
}

static void test_threads_share_an_index(void **state)
{
    uint64_t seed = 3;
    CLEANUP(fake_chain_free_p) struct fake_chain *chain = random_chain(&seed);
    struct index_slices slices = {.get = get_uncounted, .ctx = chain};

    (void)state;
    for (unsigned round = 0; round < 20; round++) {
        CLEANUP(chain_index_free_p) struct chain_index *index = NULL;
        struct race races[4];
        pthread_t threads[4];

        assert_int_equal(chain_index_new(fake_top(chain), &slices, 500 * round, &index, NULL),
                         CAIRN_OK);
        for (unsigned i = 0; i < 4; i++) {
            races[i] = (struct race){.chain = chain, .index = index, .seed = seed + i};
            assert_int_equal(pthread_create(&threads[i], NULL, race_run, &races[i]), 0);
        }
        for (unsigned i = 0; i < 4; i++) {
            pthread_join(threads[i], NULL);
            assert_int_equal(races[i].nr_wrong, 0);
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_instruction_set_finds_what_a_walk_finds),
        cmocka_unit_test(test_an_extent_takes_at_most_16_bytes),
        cmocka_unit_test(test_lookups_say_what_the_map_says),
        cmocka_unit_test(test_a_slice_is_fetched_once),
        cmocka_unit_test(test_the_bound_in_bytes_holds),
        cmocka_unit_test(test_a_slice_that_cannot_be_had_fails_its_look_ups),
        cmocka_unit_test(test_offsets_past_the_end_are_refused),
        cmocka_unit_test(test_threads_share_an_index),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
