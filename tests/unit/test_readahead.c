/* SPDX-License-Identifier: Apache-2.0 */
#include "test.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <string.h>

#include "readahead.h"

#define KIB       1024u
#define DISK_SIZE ((uint64_t)16 * KIB * KIB + 512)
#define READ      (4 * KIB)

/* A disk whose bytes follow from their offset, and that counts what is asked of it. */
struct disk {
    atomic_uint nr_reads;
    atomic_uint_fast64_t bytes;
    uint64_t bad_off; /* reads that touch it fail with bad_code; 0: none */
    enum cairn_code bad_code;
    bool near; /* reads of it cost nothing */
};

static uint8_t byte_at(uint64_t off)
{
    return (uint8_t)(off * 131 >> 9 ^ off);
}

static int disk_pread(void *ctx, void *buf, size_t len, uint64_t off, bool *ret_near,
                      struct cairn_error *err)
{
    struct disk *disk = ctx;
    uint8_t *bytes = buf;

    atomic_fetch_add(&disk->nr_reads, 1);
    atomic_fetch_add(&disk->bytes, len);
    assert_true(off + len <= DISK_SIZE);
    if (disk->bad_off && off <= disk->bad_off && disk->bad_off < off + len)
        return error_set(err, disk->bad_code, "bad block");
    for (size_t i = 0; i < len; i++)
        bytes[i] = byte_at(off + i);
    *ret_near = disk->near;
    return CAIRN_OK;
}

static struct readahead *make(struct disk *disk)
{
    const struct readahead_disk beneath = {disk_pread, disk, DISK_SIZE};
    struct readahead *ra = NULL;

    assert_int_equal(readahead_new(&beneath, &ra, NULL), CAIRN_OK);
    return ra;
}

static bool read_right(struct readahead *ra, size_t len, uint64_t off)
{
    uint8_t buf[128 * KIB];

    if (readahead_pread(ra, buf, len, off, NULL) != CAIRN_OK)
        return false;
    for (size_t i = 0; i < len; i++)
        if (buf[i] != byte_at(off + i))
            return false;
    return true;
}

static void test_sequential_reads_become_few(void **state)
{
    struct disk disk = {0};
    struct readahead *ra = make(&disk);
    unsigned nr = 0;

    (void)state;
    for (uint64_t off = 0; off < DISK_SIZE; nr++) {
        size_t len = DISK_SIZE - off < READ ? (size_t)(DISK_SIZE - off) : READ;

        assert_true(read_right(ra, len, off));
        off += len;
    }
    assert_true(disk.nr_reads < nr / 100);
    assert_true(disk.bytes < DISK_SIZE + DISK_SIZE / 100); /* nothing twice */
    readahead_free(ra);
}

static void test_several_streams_at_once(void **state)
{
    struct disk disk = {0};
    struct readahead *ra = make(&disk);

    (void)state;
    for (uint64_t off = 0; off < 2 * KIB * KIB; off += READ)
        for (uint64_t stream = 0; stream < 4; stream++)
            assert_true(read_right(ra, READ, stream * 4 * KIB * KIB + off));
    assert_true(disk.nr_reads < 100);
    readahead_free(ra);
}

static void test_random_reads_bring_nothing_more(void **state)
{
    struct disk disk = {0};
    struct readahead *ra = make(&disk);
    uint64_t off = 1;

    (void)state;
    for (unsigned i = 0; i < 1000; i++) {
        off = (off * 2654435761u + 12345) % (DISK_SIZE / (512 * KIB)); /* never near each other */
        assert_true(read_right(ra, READ, off * 512 * KIB + (i % 2) * 300 * KIB));
    }
    assert_int_equal(disk.bytes, 1000 * READ);
    readahead_free(ra);
}

static void test_reads_that_overtake_each_other(void **state)
{
    static const unsigned order[] = {2, 0, 3, 1, 7, 5, 4, 6};
    struct disk disk = {0};
    struct readahead *ra = make(&disk);

    (void)state;
    for (uint64_t off = 0; off < 4 * KIB * KIB; off += 8 * READ)
        for (unsigned i = 0; i < 8; i++)
            assert_true(read_right(ra, READ, off + order[i] * READ));
    assert_true(disk.nr_reads < 100);
    readahead_free(ra);
}

static void test_odd_sizes_and_straddled_windows(void **state)
{
    struct disk disk = {0};
    struct readahead *ra = make(&disk);
    size_t len = 512;

    (void)state;
    for (uint64_t off = 100; off + len <= DISK_SIZE; off += len, len = len * 7 % 61441 + 1)
        assert_true(read_right(ra, len, off));
    readahead_free(ra);
}

static void test_large_reads_go_through(void **state)
{
    struct disk disk = {0};
    struct readahead *ra = make(&disk);

    (void)state;
    for (uint64_t i = 0; i < 32; i++)
        assert_true(read_right(ra, 128 * KIB, i * 128 * KIB));
    assert_int_equal(disk.nr_reads, 32);
    readahead_free(ra);
}

/* A stream that jumps on after every few reads pays for small windows at most. */
static void test_windows_that_do_not_pay_stay_small(void **state)
{
    struct disk disk = {0};
    struct readahead *ra = make(&disk);
    uint64_t asked = 0;

    (void)state;
    for (uint64_t off = 0; off + 6 * READ <= DISK_SIZE; off += 120 * KIB)
        for (unsigned i = 0; i < 6; i++, asked += READ)
            assert_true(read_right(ra, READ, off + i * READ));
    assert_true(disk.bytes < 4 * asked);
    readahead_free(ra);
}

static void test_failure_of_what_nobody_asked_for(void **state)
{
    struct disk disk = {.bad_off = 40 * KIB, .bad_code = CAIRN_E_CORRUPT};
    struct readahead *ra = make(&disk);
    uint8_t buf[READ];

    (void)state;
    for (uint64_t off = 0; off < 40 * KIB; off += READ)
        assert_true(read_right(ra, READ, off));
    assert_int_equal(readahead_pread(ra, buf, READ, 40 * KIB, NULL), CAIRN_E_CORRUPT);
    assert_true(read_right(ra, READ, 44 * KIB));
    readahead_free(ra);
}

static void test_service_out_of_reach_is_asked_once(void **state)
{
    struct disk disk = {.bad_off = 40 * KIB, .bad_code = CAIRN_E_UNAVAILABLE};
    struct readahead *ra = make(&disk);
    struct cairn_error err;
    uint8_t buf[READ];
    uint64_t off = 0;
    unsigned before;

    (void)state;
    do {
        before = disk.nr_reads;
    } while (readahead_pread(ra, buf, READ, off += READ, &err) == CAIRN_OK);
    assert_int_equal(err.code, CAIRN_E_UNAVAILABLE);
    assert_string_equal(err.message, "bad block");
    assert_int_equal(disk.nr_reads, before + 1);
    disk.bad_off = 0; /* and it is back */
    assert_true(read_right(ra, READ, off));
    readahead_free(ra);
}

struct reader {
    struct readahead *ra;
    atomic_uint_fast64_t *next;
    bool right;
};

static void *read_in_turn(void *arg)
{
    struct reader *reader = arg;
    uint64_t off;

    reader->right = true;
    while ((off = atomic_fetch_add(reader->next, READ)) + READ <= DISK_SIZE)
        reader->right &= read_right(reader->ra, READ, off);
    return NULL;
}

static void test_many_readers_of_one_stream(void **state)
{
    struct disk disk = {0};
    struct readahead *ra = make(&disk);
    atomic_uint_fast64_t next = 0;
    struct reader readers[16];
    pthread_t threads[16];

    (void)state;
    for (unsigned i = 0; i < 16; i++) {
        readers[i] = (struct reader){.ra = ra, .next = &next};
        assert_int_equal(pthread_create(&threads[i], NULL, read_in_turn, &readers[i]), 0);
    }
    for (unsigned i = 0; i < 16; i++) {
        pthread_join(threads[i], NULL);
        assert_true(readers[i].right);
    }
    assert_true(disk.nr_reads < DISK_SIZE / READ / 2);
    readahead_free(ra);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_sequential_reads_become_few),
        cmocka_unit_test(test_several_streams_at_once),
        cmocka_unit_test(test_random_reads_bring_nothing_more),
        cmocka_unit_test(test_reads_that_overtake_each_other),
        cmocka_unit_test(test_odd_sizes_and_straddled_windows),
        cmocka_unit_test(test_large_reads_go_through),
        cmocka_unit_test(test_windows_that_do_not_pay_stay_small),
        cmocka_unit_test(test_failure_of_what_nobody_asked_for),
        cmocka_unit_test(test_service_out_of_reach_is_asked_once),
        cmocka_unit_test(test_many_readers_of_one_stream),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
