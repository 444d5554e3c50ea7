/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The chain index as bytes: what is written is read back, and nothing else is.  Corruptions are
 * tried both as they come (the checksum must catch them) and with the checksum made good again
 * (the invariants must).
 */
#include "fake_chain.h"

#include <string.h>

#include "bytes.h"
#include "chain_index_format.h"

#define MIB ((uint64_t)1 << 20)

static struct fake_chain *random_chain(uint64_t seed, uint32_t depth, unsigned nr_extents)
{
    struct fake_chain *chain = fake_chain_new();

    for (uint32_t k = 0; k < depth; k++) {
        uint64_t size = (1 + fake_below(&seed, 7 * MIB / SECTOR_SIZE)) * SECTOR_SIZE * 32;

        fake_random_layer(chain, &seed, size, nr_extents);
        assert_int_equal(fake_build(chain, NULL), CAIRN_OK);
    }
    return chain;
}

static void assert_same_l1(const struct index_l1 *a, const struct index_l1 *b)
{
    assert_true(digest_equal(&a->chain_id, &b->chain_id));
    assert_int_equal(a->depth, b->depth);
    assert_int_equal(a->nr_slices, b->nr_slices);
    assert_int_equal(a->virtual_size, b->virtual_size);
    assert_memory_equal(&a->totals, &b->totals, sizeof(a->totals));
    for (uint32_t i = 0; i < a->depth; i++) {
        assert_int_equal(a->layers[i].virtual_size, b->layers[i].virtual_size);
        assert_int_equal(a->layers[i].cluster_bits, b->layers[i].cluster_bits);
        assert_int_equal(a->layers[i].format, b->layers[i].format);
        assert_int_equal(a->layers[i].compression, b->layers[i].compression);
    }
    for (uint32_t i = 0; i < a->nr_slices; i++)
        assert_int_equal(a->slices[i], b->slices[i]);
    assert_int_equal(a->nr_ends, b->nr_ends);
    for (uint32_t i = 0; i < a->nr_ends; i++) {
        assert_int_equal(a->ends[i].virtual_size, b->ends[i].virtual_size);
        assert_int_equal(a->ends[i].layer, b->ends[i].layer);
    }
}

static void assert_same_slice(const struct index_slice *a, const struct index_slice *b)
{
    assert_int_equal(a->nr_extents, b->nr_extents);
    for (uint32_t i = 0; i < a->nr_extents; i++) {
        const struct index_extent of_a = slice_extent(a, i), of_b = slice_extent(b, i);

        assert_memory_equal(&of_a, &of_b, sizeof(of_a));
    }
}

/* -- Round trips ------------------------------------------------------------------------------- */

static void test_l1s_survive_the_round_trip(void **state)
{
    CLEANUP(fake_chain_free_p) struct fake_chain *chain = random_chain(1, 20, 10);

    (void)state;
    for (uint32_t k = 0; k < chain->depth; k++) {
        CLEANUP(index_l1_unref_p) struct index_l1 *back = NULL;
        CLEANUP_FREE void *buf = NULL;
        size_t len;

        assert_int_equal(index_l1_encode(chain->l1s[k], &buf, &len, NULL), CAIRN_OK);
        assert_int_equal(index_l1_decode(buf, len, &chain->l1s[k]->chain_id, &back, NULL),
                         CAIRN_OK);
        assert_same_l1(back, chain->l1s[k]);
    }
}

/* Encode the slice of prefix ordinal and decode it with the L1 of the whole chain. */
static void check_slice_round_trip(const struct fake_chain *chain, uint32_t ordinal, uint32_t s)
{
    CLEANUP(index_slice_unref_p) struct index_slice *back = NULL;
    const struct digest *chain_id = &chain->l1s[ordinal]->chain_id;
    CLEANUP_FREE void *buf = NULL;
    struct cairn_error err;
    size_t len;

    assert_int_equal(index_slice_encode(chain->slices[ordinal][s], chain_id, s, &buf, &len, NULL),
                     CAIRN_OK);
    if (index_slice_decode(buf, len, chain_id, fake_top(chain), ordinal, s, &back, &err) < 0)
        fail_msg("%s", err.message);
    assert_same_slice(back, chain->slices[ordinal][s]);
}

static void test_slices_survive_the_round_trip(void **state)
{
    CLEANUP(fake_chain_free_p) struct fake_chain *chain = random_chain(2, 20, 300);

    (void)state;
    for (uint32_t k = 0; k < chain->depth; k++)
        for (uint32_t s = 0; s < FAKE_SLICES_MAX; s++)
            if (chain->slices[k][s])
                check_slice_round_trip(chain, k, s);
}

static void test_the_fullest_slice_survives_the_round_trip(void **state)
{
    CLEANUP(fake_chain_free_p) struct fake_chain *chain = fake_chain_new();
    struct fake_layer *layer = &chain->layers[0];

    (void)state;
    layer->attr = (struct layer_attr){
        .virtual_size = INDEX_SLICE_SIZE, .cluster_bits = 9, .format = LAYER_QCOW2};
    for (uint64_t i = 0; i < SLICE_SECTORS; i++)
        fake_layer_add(layer, (struct extent){.guest_off = i * SECTOR_SIZE,
                                              .len = SECTOR_SIZE,
                                              .host_off = (i * 7919 % SLICE_SECTORS) << 9,
                                              .kind = EXTENT_DATA});
    assert_int_equal(fake_build(chain, NULL), CAIRN_OK);
    assert_int_equal(chain->slices[0][0]->nr_extents, SLICE_SECTORS);
    check_slice_round_trip(chain, 0, 0);
}

static void test_repetitive_payloads_are_compressed(void **state)
{
    CLEANUP(index_l1_unref_p) struct index_l1 *l1 = NULL;
    CLEANUP(index_l1_unref_p) struct index_l1 *back = NULL;
    CLEANUP_FREE void *buf = NULL;
    size_t len;

    (void)state;
    assert_int_equal(index_l1_new(CHAIN_DEPTH_MAX, CHAIN_VIRTUAL_SIZE_MAX, &l1, NULL), CAIRN_OK);
    for (uint32_t i = 0; i < l1->depth; i++)
        l1->layers[i] = (struct layer_attr){
            .virtual_size = l1->virtual_size, .cluster_bits = 16, .format = LAYER_QCOW2};
    assert_int_equal(index_l1_encode(l1, &buf, &len, NULL), CAIRN_OK);
    assert_true(len < 20000);
    assert_int_equal(index_l1_decode(buf, len, &l1->chain_id, &back, NULL), CAIRN_OK);
    assert_same_l1(back, l1);
}

/* -- Damage that the checksum must catch ------------------------------------------------------- */

static int decode_slice(const struct fake_chain *chain, const void *buf, size_t len, uint32_t s)
{
    struct index_slice *slice = NULL;
    int rc = index_slice_decode(buf, len, &fake_top(chain)->chain_id, fake_top(chain),
                                chain->depth - 1, s, &slice, NULL);

    index_slice_unref(slice);
    return rc;
}

static void encode_slice(const struct fake_chain *chain, uint32_t s, uint8_t **ret_buf,
                         size_t *ret_len)
{
    void *buf;

    assert_int_equal(index_slice_encode(chain->slices[chain->depth - 1][s],
                                        &fake_top(chain)->chain_id, s, &buf, ret_len, NULL),
                     CAIRN_OK);
    *ret_buf = buf;
}

static void test_a_value_under_another_key_is_refused(void **state)
{
    CLEANUP(fake_chain_free_p) struct fake_chain *chain = random_chain(3, 2, 400);
    struct index_slice *slice = NULL;
    struct index_l1 *l1 = NULL;
    CLEANUP_FREE uint8_t *buf = NULL;
    size_t len;

    (void)state;
    assert_non_null(chain->slices[1][0]);
    encode_slice(chain, 0, &buf, &len);
    assert_int_equal(decode_slice(chain, buf, len, 0), CAIRN_OK);
    assert_int_equal(decode_slice(chain, buf, len, 1), CAIRN_E_CORRUPT);
    assert_int_equal(
        index_slice_decode(buf, len, &chain->l1s[0]->chain_id, fake_top(chain), 1, 0, &slice, NULL),
        CAIRN_E_CORRUPT);
    assert_int_equal(index_l1_decode(buf, len, &fake_top(chain)->chain_id, &l1, NULL),
                     CAIRN_E_CORRUPT);
}

/* A container of the top L1 and the slices made at that prefix. */
static void make_container(const struct fake_chain *chain, void **ret_buf, size_t *ret_len)
{
    CLEANUP(index_writer_free_p) struct index_writer *w = NULL;
    uint32_t top = chain->depth - 1;

    assert_int_equal(index_writer_new(&w, NULL), CAIRN_OK);
    for (uint32_t s = 0; s < FAKE_SLICES_MAX; s++)
        if (chain->slices[top][s])
            assert_int_equal(index_writer_add(w, s, top, &fake_top(chain)->chain_id,
                                              chain->slices[top][s], NULL),
                             CAIRN_OK);
    assert_int_equal(index_writer_finish(w, fake_top(chain), ret_buf, ret_len, NULL), CAIRN_OK);
}

/* 0 if everything in the container decodes to what the chain holds. */
static int read_container(const struct fake_chain *chain, const void *buf, size_t len)
{
    CLEANUP(source_free_p) struct source *src = NULL;
    CLEANUP(index_reader_free_p) struct index_reader *r = NULL;
    uint32_t top = chain->depth - 1;
    int rc = source_from_memory(buf, len, "container", &src, NULL);

    assert_int_equal(rc, CAIRN_OK);
    rc = index_reader_open(src, &fake_top(chain)->chain_id, &r, NULL);
    if (rc < 0)
        return rc;
    assert_same_l1(index_reader_l1(r), fake_top(chain));
    for (uint32_t s = 0; s < FAKE_SLICES_MAX; s++) {
        CLEANUP(index_slice_unref_p) struct index_slice *slice = NULL;

        rc = index_reader_slice(r, s, top, &fake_top(chain)->chain_id, &slice, NULL);
        if (!chain->slices[top][s])
            assert_int_equal(rc, CAIRN_E_NOT_FOUND);
        else if (rc < 0)
            return rc;
        else
            assert_same_slice(slice, chain->slices[top][s]);
    }
    return CAIRN_OK;
}

static void test_containers_survive_the_round_trip(void **state)
{
    (void)state;
    for (uint64_t seed = 1; seed < 20; seed++) {
        CLEANUP(fake_chain_free_p) struct fake_chain *chain = random_chain(seed, 4, 100);
        CLEANUP_FREE void *buf = NULL;
        size_t len;

        make_container(chain, &buf, &len);
        assert_int_equal(read_container(chain, buf, len), CAIRN_OK);
    }
}

static void test_every_flipped_byte_in_a_container_is_noticed(void **state)
{
    CLEANUP(fake_chain_free_p) struct fake_chain *chain = random_chain(5, 3, 12);
    CLEANUP_FREE void *buf = NULL;
    uint8_t *bytes;
    size_t len;

    (void)state;
    make_container(chain, &buf, &len);
    bytes = buf;
    for (size_t i = 0; i < len; i++) {
        for (unsigned flip = 1; flip <= 0x80; flip <<= 1) {
            bytes[i] ^= (uint8_t)flip;
            assert_true(read_container(chain, buf, len) < 0);
            bytes[i] ^= (uint8_t)flip;
        }
    }
    assert_int_equal(read_container(chain, buf, len), CAIRN_OK);
}

static void test_every_truncated_container_is_noticed(void **state)
{
    CLEANUP(fake_chain_free_p) struct fake_chain *chain = random_chain(5, 3, 12);
    CLEANUP_FREE void *buf = NULL;
    size_t len;

    (void)state;
    make_container(chain, &buf, &len);
    for (size_t cut = 0; cut < len; cut++) {
        CLEANUP_FREE void *copy = malloc(cut + 1);

        assert_non_null(copy);
        memcpy(copy, buf, cut);
        assert_true(read_container(chain, copy, cut) < 0);
    }
}

static void test_a_writer_wants_ascending_slices(void **state)
{
    CLEANUP(index_writer_free_p) struct index_writer *w = NULL;
    CLEANUP(index_slice_unref_p) struct index_slice *slice = NULL;
    struct digest id = {{0}};

    (void)state;
    assert_int_equal(index_slice_new(NULL, 0, &slice, NULL), CAIRN_OK);
    assert_int_equal(index_writer_new(&w, NULL), CAIRN_OK);
    assert_int_equal(index_writer_add(w, 3, 0, &id, slice, NULL), CAIRN_OK);
    assert_int_equal(index_writer_add(w, 3, 0, &id, slice, NULL), CAIRN_E_USAGE);
}

/* -- Damage with a good checksum --------------------------------------------------------------- */

/* A frame around raw as it is, sealed. */
static void seal(const char *key, uint8_t type, const uint8_t *raw, uint32_t raw_len,
                 uint8_t *frame)
{
    bytes_put_le32(frame, FRAME_MAGIC);
    frame[4] = FORMAT_VERSION;
    frame[5] = type;
    bytes_put_le16(frame + 6, 0);
    bytes_put_le32(frame + 8, raw_len);
    bytes_put_le32(frame + 12, raw_len);
    memcpy(frame + FRAME_HEADER_SIZE, raw, raw_len);
    index_checksum(key, frame, raw, raw_len, frame + CHECKSUM_OFF);
}

/* A base of 1 MiB with clusters of 64 KiB, and a layer of 512 KiB on top. */
static struct fake_chain *small_chain(void)
{
    struct fake_chain *chain = fake_chain_new();

    for (uint32_t k = 0; k < 2; k++) {
        chain->layers[k].attr = (struct layer_attr){
            .virtual_size = MIB >> k, .cluster_bits = 16, .format = LAYER_QCOW2};
        fake_layer_add(&chain->layers[k], (struct extent){.len = 512, .kind = EXTENT_DATA});
        assert_int_equal(fake_build(chain, NULL), CAIRN_OK);
    }
    return chain;
}

static struct index_extent packed(struct extent e)
{
    return index_extent_pack(&e);
}

/* Decode slice 0 of prefix ordinal with these extents, behind a good checksum. */
static int decode_extents(const struct index_extent *extents, uint32_t nr, uint32_t ordinal,
                          struct cairn_error *err)
{
    CLEANUP(fake_chain_free_p) struct fake_chain *chain = small_chain();
    uint8_t raw[64], frame[FRAME_HEADER_SIZE + sizeof(raw)];
    struct index_slice *slice = NULL;
    char key[INDEX_KEY_MAX];
    int rc;

    index_extents_put(extents, nr, raw);
    index_key_slice(&chain->l1s[ordinal]->chain_id, 0, key);
    seal(key, FRAME_SLICE, raw, 16 * nr, frame);
    rc = index_slice_decode(frame, FRAME_HEADER_SIZE + (size_t)16 * nr,
                            &chain->l1s[ordinal]->chain_id, fake_top(chain), ordinal, 0, &slice,
                            err);
    index_slice_unref(slice);
    return rc;
}

static void expect_flaw(struct index_extent e, uint32_t ordinal, const char *message)
{
    struct cairn_error err = {.message = ""};
    int rc = decode_extents(&e, 1, ordinal, &err);

    if (rc != CAIRN_E_CORRUPT || !strstr(err.message, message))
        fail_msg("expected \"%s\", got %d: %s", message, rc, err.message);
}

static void test_impossible_extents_are_refused_behind_a_good_checksum(void **state)
{
    struct extent data = {.len = 512, .kind = EXTENT_DATA};
    struct extent compressed = {.len = 512, .compressed_len = 100, .kind = EXTENT_COMPRESSED};
    struct index_extent e = packed(data);

    (void)state;
    assert_int_equal(decode_extents(&e, 1, 1, NULL), CAIRN_OK);
    e.word[0] |= (uint64_t)1 << 32;
    expect_flaw(e, 0, "above the prefix");
    e = packed(data);
    e.word[0] |= (uint64_t)1 << 48;
    expect_flaw(e, 1, "bits are set");
    e = packed(data);
    e.word[1] = 1;
    expect_flaw(e, 1, "multiple of 512");
    e.word[1] = HOST_OFF_MAX;
    expect_flaw(e, 1, "2^56");
    e = packed((struct extent){.len = 512, .kind = EXTENT_ZERO});
    e.word[1] = 512;
    expect_flaw(e, 1, "host offset");
    compressed.guest_off = 65536 - 512;
    compressed.len = 1024;
    expect_flaw(packed(compressed), 1, "longer than its cluster");
    compressed.len = 512;
    e = packed(compressed);
    e.word[0] |= (uint64_t)0x3fff << 48;
    expect_flaw(e, 1, "two clusters");
    e = packed(compressed);
    e.word[1] = UINT64_MAX;
    expect_flaw(e, 1, "2^56");
    data.guest_off = MIB;
    expect_flaw(packed(data), 0, "past its layer's virtual size");
    data.guest_off = MIB / 2;
    expect_flaw(packed(data), 1, "past the virtual size");
}

static void test_extents_out_of_order_are_refused(void **state)
{
    struct index_extent e[2] = {
        packed((struct extent){.len = 1024, .kind = EXTENT_DATA}),
        packed(
            (struct extent){.guest_off = 512, .len = 512, .host_off = 8192, .kind = EXTENT_DATA})};

    (void)state;
    assert_int_equal(decode_extents(e, 2, 1, NULL), CAIRN_E_CORRUPT);
    e[0] = e[1];
    assert_int_equal(decode_extents(e, 2, 1, NULL), CAIRN_E_CORRUPT);
    e[0] = packed((struct extent){.len = 512, .kind = EXTENT_DATA});
    assert_int_equal(decode_extents(e, 2, 1, NULL), CAIRN_OK);
    e[1].word[1] = 512; /* runs on */
    assert_int_equal(decode_extents(e, 2, 1, NULL), CAIRN_E_CORRUPT);
}

/* Decode the small chain's L1 with the bytes at off replaced. */
static int decode_poked_l1(size_t off, const void *bytes, size_t len)
{
    CLEANUP(fake_chain_free_p) struct fake_chain *chain = small_chain();
    const struct index_l1 *l1 = fake_top(chain);
    uint8_t raw[L1_HEAD_SIZE + 2 * L1_LAYER_SIZE + 2] = {0}, frame[FRAME_HEADER_SIZE + sizeof(raw)];
    struct index_l1 *back = NULL;
    char key[INDEX_KEY_MAX];
    int rc;

    memcpy(raw, l1->chain_id.sha256, 32);
    bytes_put_le32(raw + 32, l1->depth);
    bytes_put_le32(raw + 36, l1->nr_slices);
    bytes_put_le64(raw + 40, l1->virtual_size);
    bytes_put_le64(raw + 48, 1);
    bytes_put_le64(raw + 56, 512);
    bytes_put_le64(raw + 72, 1024);
    for (size_t i = 0; i < 2; i++) {
        bytes_put_le64(raw + L1_HEAD_SIZE + i * L1_LAYER_SIZE, l1->layers[i].virtual_size);
        raw[L1_HEAD_SIZE + i * L1_LAYER_SIZE + 8] = 16;
        raw[L1_HEAD_SIZE + i * L1_LAYER_SIZE + 9] = LAYER_QCOW2;
    }
    bytes_put_le16(raw + sizeof(raw) - 2, 1);
    memcpy(raw + off, bytes, len);
    index_key_l1(&l1->chain_id, key);
    seal(key, FRAME_L1, raw, sizeof(raw), frame);
    rc = index_l1_decode(frame, sizeof(frame), &l1->chain_id, &back, NULL);
    index_l1_unref(back);
    return rc;
}

static void test_impossible_l1s_are_refused_behind_a_good_checksum(void **state)
{
    enum {
        LAYER0 = L1_HEAD_SIZE,
        LAYER1 = LAYER0 + L1_LAYER_SIZE,
        SLICE0 = LAYER1 + L1_LAYER_SIZE
    };
    static const struct {
        size_t off, len;
        uint8_t bytes[8];
    } pokes[] = {
        {0, 1, {1}},                          /* another chain */
        {32, 4, {0}},                         /* depth 0 */
        {32, 4, {3}},                         /* a depth that the length does not fit */
        {32, 4, {0, 0, 1}},                   /* depth 65536 */
        {36, 4, {2}},                         /* too many slices */
        {40, 8, {1}},                         /* virtual size of 1 byte */
        {40, 8, {0, 0, 0, 0, 0, 0, 0, 1}},    /* of 2^56 */
        {40, 8, {0, 2}},                      /* not that of the top layer */
        {48, 8, {0, 0, 0, 1}},                /* more extents than sectors */
        {56, 8, {0, 0, 0, 1}},                /* more data than disk */
        {64, 8, {0, 0, 8}},                   /* more data and zeros than disk */
        {72, 8, {0, 1}},                      /* the layers hold less than shows */
        {72, 8, {0, 0, 0, 0, 0, 0, 0, 0xff}}, /* more than they can */
        {LAYER0, 8, {1}},                     /* odd virtual size */
        {LAYER0 + 8, 1, {8}},                 /* cluster bits */
        {LAYER0 + 8, 1, {22}},
        {LAYER0 + 9, 1, {2}},            /* format */
        {LAYER0 + 9, 1, {LAYER_RAW}},    /* raw with clusters */
        {LAYER0 + 10, 1, {2}},           /* compression */
        {LAYER0 + 11, 1, {1}},           /* padding */
        {LAYER1 + 8, 2, {0, LAYER_RAW}}, /* raw on top */
        {SLICE0, 2, {2}},                /* ordinal */
        {SLICE0, 2, {0xfe, 0xff}},
    };

    (void)state;
    assert_int_equal(decode_poked_l1(0, "", 0), CAIRN_OK);
    assert_int_equal(decode_poked_l1(LAYER0 + 8, "\0\0", 2), CAIRN_OK); /* a raw base */
    for (size_t i = 0; i < sizeof(pokes) / sizeof(pokes[0]); i++)
        if (decode_poked_l1(pokes[i].off, pokes[i].bytes, pokes[i].len) != CAIRN_E_CORRUPT)
            fail_msg("poke %zu went through", i);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_l1s_survive_the_round_trip),
        cmocka_unit_test(test_slices_survive_the_round_trip),
        cmocka_unit_test(test_the_fullest_slice_survives_the_round_trip),
        cmocka_unit_test(test_repetitive_payloads_are_compressed),
        cmocka_unit_test(test_a_value_under_another_key_is_refused),
        cmocka_unit_test(test_containers_survive_the_round_trip),
        cmocka_unit_test(test_every_flipped_byte_in_a_container_is_noticed),
        cmocka_unit_test(test_every_truncated_container_is_noticed),
        cmocka_unit_test(test_a_writer_wants_ascending_slices),
        cmocka_unit_test(test_impossible_extents_are_refused_behind_a_good_checksum),
        cmocka_unit_test(test_extents_out_of_order_are_refused),
        cmocka_unit_test(test_impossible_l1s_are_refused_behind_a_good_checksum),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
