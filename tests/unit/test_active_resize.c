/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Another virtual size.  What power cuts leave of it: test_active_power.
 */
#include "active_fixture.h"

#include <errno.h>
#include <sys/stat.h>

#define GIB     (KIB * MIB)
#define UNKNOWN UINT64_MAX

static void resize(struct active *a, uint64_t size, uint64_t beneath_size)
{
    struct cairn_error err;

    must(active_resize(a, size, beneath_size, &err), &err);
    assert_int_equal(active_virtual_size(a), size);
}

static uint64_t file_size(void)
{
    struct stat st;

    assert_int_equal(stat(IMAGE, &st), 0);
    return (uint64_t)st.st_size;
}

/* QEMU sees that size, and no error. */
static void close_and_ask_qemu(struct active *a, uint64_t size)
{
    close_and_check(a);
    sh("qemu-img info --output=json " IMAGE " | grep -q '\"virtual-size\": %llu,'",
       (unsigned long long)size);
}

static void test_growing_adds_zeros(void **state)
{
    struct active *a = create(without_base());

    (void)state;
    put(a, 1, SIZE, 0);
    resize(a, 3 * SIZE + 512, 0);
    expect(a, 1, SIZE, 0);
    expect(a, 0, 2 * SIZE + 512, SIZE);
    put(a, 2, CLUSTER, 3 * SIZE + 512 - CLUSTER);
    close_and_ask_qemu(a, 3 * SIZE + 512);
    a = reopen(without_base());
    assert_int_equal(active_virtual_size(a), 3 * SIZE + 512);
    expect(a, 1, SIZE, 0);
    expect(a, 2, CLUSTER, 3 * SIZE + 512 - CLUSTER);
    close_and_check(a);
}

static void test_the_l1_table_grows(void **state)
{
    /* An L1 entry for 16 MiB, 2,048 in a cluster. */
    struct active_options options = {.virtual_size = SIZE, .cluster_bits = 14};
    struct active *a = create(options);

    (void)state;
    put(a, 1, SIZE, 0);
    resize(a, 20 * MIB, 0);
    put(a, 2, SUB, 20 * MIB - SUB);
    resize(a, 100 * GIB, 0); /* four clusters */
    put(a, 3, SUB, 100 * GIB - SUB);
    resize(a, 101 * GIB, 0);
    close_and_ask_qemu(a, 101 * GIB);
    a = reopen(options);
    expect(a, 1, SIZE, 0);
    expect(a, 2, SUB, 20 * MIB - SUB);
    expect(a, 3, SUB, 100 * GIB - SUB);
    expect(a, 0, SUB, 101 * GIB - SUB);
    put(a, 4, SUB, 101 * GIB - SUB);
    close_and_check(a);
}

/* In small clusters a block counts 128 MiB: run tables across the border of one. */
static void test_an_l1_table_of_many_clusters_stays_in_one_piece(void **state)
{
    struct active_options options = {.virtual_size = 200 * MIB, .cluster_bits = 14};
    struct active *a = create(options);

    (void)state;
    put(a, 1, 125 * MIB, 0);
    for (uint64_t size = 1024 * GIB; size <= 16 * 1024 * GIB; size *= 2)
        resize(a, size, 0);
    close_and_ask_qemu(a, 16 * 1024 * GIB);
    a = reopen(options);
    expect(a, 1, 125 * MIB, 0);
    close_and_check(a);
}

static void test_growing_over_a_longer_base_shows_zeros(void **state)
{
    struct active *a = create(with_base());

    (void)state;
    resize(a, 2 * SIZE, UNKNOWN);
    resize(a, 3 * SIZE, 2 * SIZE + 100);
    resize(a, 4 * SIZE, 3 * SIZE);
    expect(a, -1, SIZE, 0);
    expect(a, 0, SIZE + CLUSTER, SIZE); /* as far as something could show through */
    assert_int_equal(map_one(a, SIZE).kind, EXTENT_ZERO);
    assert_int_equal(map_one(a, SIZE).len, SIZE + CLUSTER);
    assert_int_equal(map_one(a, 3 * SIZE).kind, EXTENT_HOLE); /* no mark where nothing can */
    assert_int_equal(atomic_load(&base.nr_reads), 1);
    close_and_ask_qemu(a, 4 * SIZE);
}

static void test_shrinking_frees_clusters_and_tables(void **state)
{
    struct active_options options = {.virtual_size = 64 * GIB, .cluster_bits = 14};
    struct active *a = create(options);
    uint64_t before;

    (void)state;
    put(a, 1, MIB, 0);
    flush(a);
    before = stats_of(a).data_bytes;
    for (uint64_t off = GIB; off < 64 * GIB; off += GIB)
        put(a, 2, MIB, off);
    resize(a, MIB, 0);
    assert_int_equal(stats_of(a).data_bytes, before);
    close_and_ask_qemu(a, MIB);
    assert_true(file_size() < 3 * MIB);
    a = reopen(options);
    expect(a, 1, MIB, 0);
    close_and_check(a);
}

static void test_what_was_cut_off_does_not_come_back(void **state)
{
    static const uint64_t cuts[] = {2 * CLUSTER, 2 * CLUSTER - SUB, 2 * CLUSTER - 512, 3 * 512};

    (void)state;
    for (size_t i = 0; i < sizeof(cuts) / sizeof(cuts[0]); i++) {
        struct active *a = create(with_base());

        put(a, 1, SIZE / 2, 0);
        resize(a, cuts[i], UNKNOWN);
        expect(a, 1, cuts[i], 0);
        close_and_check(a);
        a = reopen(with_base());
        resize(a, SIZE, UNKNOWN);
        expect(a, 1, cuts[i], 0);
        expect(a, 0, SIZE - cuts[i], cuts[i]); /* neither the data nor the base */
        close_and_check(a);
    }
}

static void test_the_base_ends_where_the_disk_did(void **state)
{
    struct active *a = create(with_base());

    (void)state;
    resize(a, CLUSTER + SUB + 512, UNKNOWN);
    resize(a, SIZE, UNKNOWN);
    expect(a, -1, CLUSTER + SUB + 512, 0); /* of the last subcluster, the base's part was read */
    expect(a, 0, SIZE - (CLUSTER + SUB + 512), CLUSTER + SUB + 512);
    close_and_check(a);
}

static void test_a_base_that_cannot_be_read_is_not_taken_for_zeros(void **state)
{
    struct active_options blind = with_base();
    struct active *a = create(with_base());
    struct cairn_error err;

    (void)state;
    resize(a, CLUSTER + 512, UNKNOWN);
    close_and_check(a);
    blind.backing.pread = NULL;
    a = reopen(blind);
    assert_int_equal(active_resize(a, SIZE, UNKNOWN, &err), CAIRN_E_UNSUPPORTED);
    assert_non_null(strstr(err.message, "is no multiple of 4096"));
    resize(a, SIZE, CLUSTER + 512); /* it does not reach past the end */
    close_and_check(a);
}

static void test_sizes_that_are_refused(void **state)
{
    struct active *a = create(without_base());
    struct cairn_error err;

    (void)state;
    assert_int_equal(active_resize(a, SIZE + 1, 0, &err), CAIRN_E_USAGE);
    assert_int_equal(active_resize(a, UINT64_C(1) << 60, 0, &err), CAIRN_E_LIMIT);
    assert_int_equal(active_virtual_size(a), SIZE);
    must(active_seal(a, &err), &err);
    assert_int_equal(active_resize(a, 2 * SIZE, 0, &err), CAIRN_E_CONFLICT);
    close_and_check(a);
}

/* Let the nth operation of a kind fail, and nothing else. */
struct failing {
    enum hostfile_op op;
    unsigned after;
};

static int fail_nth(void *ctx, const struct hostfile_event *event)
{
    struct failing *f = ctx;

    return event->op == f->op && f->after-- == 0 ? EIO : 0;
}

static void test_a_failed_resize_leaves_one_of_the_two(void **state)
{
    struct active_options options = {.virtual_size = SIZE, .cluster_bits = 14};

    (void)state;
    for (unsigned op = HOSTFILE_WRITE; op <= HOSTFILE_SYNC; op++) {
        for (unsigned after = 0; after < 8; after++) {
            struct failing failing = {(enum hostfile_op)op, after};
            const struct hostfile_hook hook = {.before = fail_nth, .ctx = &failing};
            uint64_t size = after % 2 ? GIB : CLUSTER;
            struct active *a = create(options);

            put(a, 1, SIZE, 0);
            flush(a);
            put(a, 1, CLUSTER, 0);
            a->file.hook = &hook;
            (void)active_resize(a, size, 0, NULL);
            a->file.hook = NULL;
            (void)active_close(a, NULL); /* which fails after a failed sync */
            sh("qemu-img check " IMAGE " || test $? = 3");
            a = reopen(options);
            assert_true(active_virtual_size(a) == size || active_virtual_size(a) == SIZE);
            expect(a, 1, CLUSTER, 0);
            if (active_virtual_size(a) == SIZE)
                expect(a, 1, SIZE, 0);
            (void)active_close(a, NULL);
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_growing_adds_zeros),
        cmocka_unit_test(test_the_l1_table_grows),
        cmocka_unit_test(test_an_l1_table_of_many_clusters_stays_in_one_piece),
        cmocka_unit_test(test_growing_over_a_longer_base_shows_zeros),
        cmocka_unit_test(test_shrinking_frees_clusters_and_tables),
        cmocka_unit_test(test_what_was_cut_off_does_not_come_back),
        cmocka_unit_test(test_the_base_ends_where_the_disk_did),
        cmocka_unit_test(test_a_base_that_cannot_be_read_is_not_taken_for_zeros),
        cmocka_unit_test(test_sizes_that_are_refused),
        cmocka_unit_test(test_a_failed_resize_leaves_one_of_the_two),
    };

    return cmocka_run_group_tests(tests, qemu_setup, qemu_teardown);
}
