/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Subclusters written in part: what is read from beneath for them, and when.
 */
#include "active_fixture.h"

#define NR_NOTES 32 /* active_partial.c: PARTIALS_MAX */

static void assert_nothing_read(struct active *a)
{
    assert_int_equal(atomic_load(&base.nr_reads), 0);
    assert_int_equal(stats_of(a).backing_bytes, 0);
}

static uint8_t stream_byte(uint64_t guest_off)
{
    return (uint8_t)(255 - base_byte(guest_off));
}

/* A stream of writes of len bytes, from guest_off on, each byte's value from its offset. */
static void stream(struct active *a, uint64_t guest_off, uint64_t end, uint64_t len)
{
    struct cairn_error err;
    uint8_t buf[CLUSTER];

    for (; guest_off < end; guest_off += len) {
        for (uint64_t i = 0; i < len; i++)
            buf[i] = stream_byte(guest_off + i);
        must(active_pwrite(a, buf, guest_off + len > end ? end - guest_off : len, guest_off, &err),
             &err);
    }
}

static void expect_stream(struct active *a, uint64_t guest_off, uint64_t end)
{
    for (uint64_t off = guest_off; off < end; off++) {
        uint8_t byte = byte_at(a, off);

        if (byte != stream_byte(off))
            fail_msg("byte 0x%llx is %02x", (unsigned long long)off, byte);
    }
}

static void test_streams_of_small_writes_read_nothing(void **state)
{
    static const uint64_t lens[] = {512, 1024, 700, 4095, 4097, 70000};

    (void)state;
    for (size_t i = 0; i < sizeof(lens) / sizeof(lens[0]); i++) {
        struct active *a = create(with_base());

        stream(a, 0, 2 * CLUSTER, lens[i]);
        assert_nothing_read(a);
        assert_int_equal(map_one(a, 0).kind, EXTENT_DATA);
        assert_int_equal(map_one(a, 0).len, 2 * CLUSTER);
        expect_stream(a, 0, 2 * CLUSTER);
        assert_nothing_read(a);
        close_and_check(a);
        a = reopen(with_base());
        expect_stream(a, 0, 2 * CLUSTER);
        close_and_check(a);
    }
}

static void test_the_ends_of_a_stream_cost_a_read_each(void **state)
{
    struct active *a = create(with_base());

    (void)state;
    stream(a, SUB + 512, CLUSTER + 1024, 512);
    assert_nothing_read(a);
    flush(a);
    assert_int_equal(atomic_load(&base.nr_reads), 2);
    assert_int_equal(stats_of(a).backing_bytes, 512 + (SUB - 1024)); /* no more than is missing */
    expect(a, -1, SUB + 512, 0);
    expect_stream(a, SUB + 512, CLUSTER + 1024);
    expect(a, -1, SUB, CLUSTER + 1024);
    close_and_check(a);
}

static void test_parts_in_any_order_make_a_whole(void **state)
{
    static const unsigned order[] = {3, 0, 7, 5, 1, 6, 2, 4};
    struct active *a = create(with_base());

    (void)state;
    for (size_t i = 0; i < 8; i++)
        put(a, 9, 512, SUB + order[i] * 512);
    assert_nothing_read(a);
    expect(a, 9, SUB, SUB);
    assert_nothing_read(a);
    close_and_check(a);
}

static void test_a_read_finds_parts_among_what_lies_beneath(void **state)
{
    struct active *a = create(with_base());

    (void)state;
    put(a, 1, 10, 100);
    put(a, 2, 10, 2000);
    put(a, 3, 700, SUB + 3800); /* the end of one, the beginning of another */
    expect(a, -1, 100, 0);
    expect(a, 1, 10, 100);
    expect(a, -1, 1890, 110);
    expect(a, 2, 10, 2000);
    expect(a, -1, SUB + 3800 - 2010, 2010);
    expect(a, 3, 700, SUB + 3800);
    expect(a, -1, SUB, SUB + 4500);
    close_and_check(a);
}

static void test_a_map_shows_parts_as_data(void **state)
{
    struct active *a = create(with_base());

    (void)state;
    put(a, 1, 10, 2 * SUB + 100);
    assert_int_equal(map_one(a, 0).kind, EXTENT_HOLE);
    assert_int_equal(map_one(a, 0).len, 2 * SUB);
    assert_int_equal(map_one(a, 2 * SUB).kind, EXTENT_DATA);
    assert_int_equal(map_one(a, 2 * SUB).len, SUB);
    close_and_check(a);
}

static void test_a_write_over_a_part_ends_it(void **state)
{
    struct active *a = create(with_base());

    (void)state;
    put(a, 1, 10, SUB + 100);
    put(a, 2, CLUSTER, 0);
    flush(a);
    assert_nothing_read(a);
    expect(a, 2, CLUSTER, 0);
    close_and_check(a);
}

static void test_zeroing_and_discarding_end_parts(void **state)
{
    struct active *a = create(with_base());

    (void)state;
    put(a, 1, 10, SUB + 100);
    put(a, 1, 10, CLUSTER + 100);
    put(a, 1, 10, 2 * CLUSTER + 100);
    zero(a, SUB, SUB, false);
    zero(a, CLUSTER, CLUSTER, true);
    discard(a, CLUSTER, 2 * CLUSTER);
    flush(a);
    assert_nothing_read(a);
    expect(a, 0, SUB, SUB);
    expect(a, 0, 2 * CLUSTER, CLUSTER);
    put(a, 4, 10, CLUSTER + 100); /* anew */
    expect(a, 0, 100, CLUSTER);
    expect(a, 4, 10, CLUSTER + 100);
    assert_nothing_read(a);
    close_and_check(a);
}

static void test_parts_are_bounded(void **state)
{
    struct active *a = create(with_base());

    (void)state;
    for (unsigned i = 0; i < 500; i++) {
        put(a, (uint8_t)(i | 1), 512, i * 2 * SUB + 1024);
        assert_true(a->partials.nr <= NR_NOTES);
    }
    assert_int_equal(atomic_load(&base.nr_reads), 500 - NR_NOTES);
    for (unsigned i = 0; i < 500; i++) {
        expect(a, -1, 1024, i * 2 * SUB);
        expect(a, (uint8_t)(i | 1), 512, i * 2 * SUB + 1024);
        expect(a, -1, 2 * SUB - 1536, i * 2 * SUB + 1536);
    }
    close_and_check(a);
}

static void test_the_part_at_the_end_of_an_odd_disk(void **state)
{
    struct active_options options = with_base();
    struct active *a;

    (void)state;
    options.virtual_size = SIZE - 3 * 512;
    a = create(options);
    stream(a, SIZE - CLUSTER, options.virtual_size, 512);
    flush(a);
    assert_nothing_read(a); /* what is missing lies past the end */
    expect_stream(a, SIZE - CLUSTER, options.virtual_size);
    close_and_check(a);
}

static void test_sealing_completes(void **state)
{
    struct active *a = create(with_base());
    struct cairn_error err;

    (void)state;
    put(a, 1, 10, 100);
    must(active_seal(a, &err), &err);
    expect(a, -1, 100, 0);
    expect(a, 1, 10, 100);
    expect(a, -1, SUB, 110);
    close_and_check(a);
}

static void test_a_flush_fails_until_the_rest_can_be_read(void **state)
{
    struct active *a = create(with_base());
    struct cairn_error err;
    uint8_t byte;

    (void)state;
    base.rc = CAIRN_E_UNAVAILABLE;
    put(a, 1, 10, SUB + 100);
    put(a, 2, SUB, 4 * SUB);
    for (int i = 0; i < 2; i++) {
        assert_int_equal(active_flush(a, &err), CAIRN_E_UNAVAILABLE);
        assert_string_equal(err.message, "beneath " IMAGE ": the base is gone");
    }
    assert_int_equal(active_pread(a, &byte, 1, SUB, &err), CAIRN_E_UNAVAILABLE);
    assert_int_equal(active_seal(a, &err), CAIRN_E_UNAVAILABLE);
    expect(a, 2, SUB, 4 * SUB);
    base.rc = CAIRN_OK;
    flush(a);
    expect(a, -1, 100, SUB);
    expect(a, 1, 10, SUB + 100);
    expect(a, -1, SUB, SUB + 110);
    close_and_check(a);
}

static void test_a_close_that_cannot_complete_says_so(void **state)
{
    struct active *a = create(with_base());
    struct cairn_error err;

    (void)state;
    base.rc = CAIRN_E_UNAVAILABLE;
    put(a, 1, 10, SUB + 100);
    put(a, 2, SUB, 4 * SUB);
    assert_int_equal(active_close(a, &err), CAIRN_E_UNAVAILABLE);
    base.rc = CAIRN_OK;
    a = reopen(with_base());
    expect(a, -1, SUB, SUB);
    expect(a, 2, SUB, 4 * SUB); /* what could be kept was */
    close_and_check(a);
}

static void test_without_room_for_notes_a_write_fails_cleanly(void **state)
{
    struct active *a = create(with_base());
    struct cairn_error err;

    (void)state;
    for (unsigned i = 0; i < NR_NOTES; i++)
        put(a, 1, 512, i * SUB);
    base.rc = CAIRN_E_UNAVAILABLE;
    assert_int_equal(active_pwrite(a, "x", 1, CLUSTER, &err), CAIRN_E_UNAVAILABLE);
    put(a, 2, SUB, CLUSTER); /* needs none */
    base.rc = CAIRN_OK;
    put(a, 3, 1, 2 * CLUSTER);
    expect(a, 3, 1, 2 * CLUSTER);
    expect(a, 1, 512, 0);
    close_and_check(a);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_streams_of_small_writes_read_nothing),
        cmocka_unit_test(test_the_ends_of_a_stream_cost_a_read_each),
        cmocka_unit_test(test_parts_in_any_order_make_a_whole),
        cmocka_unit_test(test_a_read_finds_parts_among_what_lies_beneath),
        cmocka_unit_test(test_a_map_shows_parts_as_data),
        cmocka_unit_test(test_a_write_over_a_part_ends_it),
        cmocka_unit_test(test_zeroing_and_discarding_end_parts),
        cmocka_unit_test(test_parts_are_bounded),
        cmocka_unit_test(test_the_part_at_the_end_of_an_odd_disk),
        cmocka_unit_test(test_sealing_completes),
        cmocka_unit_test(test_a_flush_fails_until_the_rest_can_be_read),
        cmocka_unit_test(test_a_close_that_cannot_complete_says_so),
        cmocka_unit_test(test_without_room_for_notes_a_write_fails_cleanly),
    };

    return cmocka_run_group_tests(tests, qemu_setup, qemu_teardown);
}
