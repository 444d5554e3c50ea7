/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The active layer, one behaviour per test, over a base whose bytes tell where they are.
 * tests/unit/active_stress.c does the same things at random, all at once.
 */
#include "test.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include "active_internal.h"
#include "bytes.h"
#include "qemu.h"

#define KIB     UINT64_C(1024)
#define MIB     (KIB * KIB)
#define CLUSTER (128 * KIB)
#define SUB     (4 * KIB)
#define SIZE    (8 * MIB)

#define IMAGE "active.qcow2"

static const struct digest parent_id = {{0xab, 0xcd}};

/* -- What lies beneath: every byte follows from its offset ------------------------------------- */

static uint8_t base_byte(uint64_t guest_off)
{
    return (uint8_t)(guest_off / 4096 * 7 + guest_off % 4096 * 13 + 1);
}

struct base {
    atomic_uint nr_reads;
    uint64_t bytes;
    int rc; /* what reads come back with */
    void (*on_read)(void *ctx);
    void *ctx;
};

static int read_base(void *ctx, void *buf, size_t len, uint64_t guest_off, struct cairn_error *err)
{
    struct base *base = ctx;

    atomic_fetch_add(&base->nr_reads, 1);
    base->bytes += len;
    if (base->on_read)
        base->on_read(base->ctx);
    for (size_t i = 0; i < len; i++)
        ((uint8_t *)buf)[i] = base_byte(guest_off + i);
    return base->rc ? error_set(err, base->rc, "the base is gone") : CAIRN_OK;
}

static struct base base;

static struct active_options with_base(void)
{
    return (struct active_options){
        .virtual_size = SIZE, .parent = &parent_id, .backing = {read_base, &base}};
}

static struct active_options without_base(void)
{
    return (struct active_options){.virtual_size = SIZE};
}

/* -- Short forms that must succeed ------------------------------------------------------------- */

static void must(int rc, const struct cairn_error *err)
{
    if (rc)
        print_error("%s\n", err->message);
    assert_int_equal(rc, CAIRN_OK);
}

static struct active *create(struct active_options options)
{
    struct active *a = NULL;
    struct cairn_error err;

    unlink(IMAGE);
    base = (struct base){0};
    must(active_create(IMAGE, &options, &a, &err), &err);
    return a;
}

static struct active *reopen(struct active_options options)
{
    struct active *a = NULL;
    struct cairn_error err;

    must(active_open(IMAGE, &options, &a, &err), &err);
    return a;
}

static void qemu_check(const char *image)
{
    sh("qemu-img check 'json:{\"driver\":\"qcow2\",\"backing\":null,"
       "\"file\":{\"driver\":\"file\",\"filename\":\"%s\"}}'",
       image);
}

static void close_and_check(struct active *a)
{
    struct cairn_error err;

    must(active_close(a, &err), &err);
    qemu_check(IMAGE);
}

static void put(struct active *a, uint8_t value, uint64_t len, uint64_t guest_off)
{
    uint8_t *buf = malloc(len);
    struct cairn_error err;

    assert_non_null(buf);
    memset(buf, value, len);
    must(active_pwrite(a, buf, len, guest_off, &err), &err);
    free(buf);
}

static void flush(struct active *a)
{
    struct cairn_error err;

    must(active_flush(a, &err), &err);
}

static void zero(struct active *a, uint64_t len, uint64_t guest_off, bool may_unmap)
{
    struct cairn_error err;

    must(active_zero(a, len, guest_off, may_unmap, &err), &err);
}

static void discard(struct active *a, uint64_t len, uint64_t guest_off)
{
    struct cairn_error err;

    must(active_discard(a, len, guest_off, &err), &err);
}

static uint8_t byte_at(struct active *a, uint64_t guest_off)
{
    struct cairn_error err;
    uint8_t byte = 0;

    must(active_pread(a, &byte, 1, guest_off, &err), &err);
    return byte;
}

/* The range holds value; as value -1 what lies beneath. */
static void expect(struct active *a, int value, uint64_t len, uint64_t guest_off)
{
    uint8_t *buf = malloc(len);
    struct cairn_error err;

    assert_non_null(buf);
    must(active_pread(a, buf, len, guest_off, &err), &err);
    for (uint64_t i = 0; i < len; i++) {
        uint8_t expected = value < 0 ? base_byte(guest_off + i) : (uint8_t)value;

        if (buf[i] != expected)
            fail_msg("byte 0x%llx is %02x, expected %02x", (unsigned long long)(guest_off + i),
                     buf[i], expected);
    }
    free(buf);
}

/* The first extent of a range. */
static struct extent map_one(struct active *a, uint64_t guest_off)
{
    struct extent e = {0};
    struct cairn_error err;
    size_t nr;

    must(active_map(a, guest_off, active_virtual_size(a) - guest_off, &e, 1, &nr, &err), &err);
    assert_int_equal(nr, 1);
    return e;
}

static struct active_stats stats_of(struct active *a)
{
    struct active_stats stats;

    active_get_stats(a, &stats);
    return stats;
}

/* -- Creating and opening ---------------------------------------------------------------------- */

static void test_a_new_layer_shows_what_lies_beneath(void **state)
{
    struct active *a = create(with_base());

    (void)state;
    expect(a, -1, SIZE, 0);
    assert_int_equal(map_one(a, 0).kind, EXTENT_HOLE);
    assert_int_equal(map_one(a, 0).len, SIZE);
    close_and_check(a);
}

static void test_without_a_base_holes_are_zeros(void **state)
{
    struct active *a = create(without_base());

    (void)state;
    expect(a, 0, SIZE, 0);
    close_and_check(a);
}

static void test_create_does_not_touch_what_exists(void **state)
{
    struct active_options options = without_base();
    struct active *a = NULL;
    struct cairn_error err;

    (void)state;
    sh("rm -f %s; echo precious > %s", IMAGE, IMAGE);
    assert_int_equal(active_create(IMAGE, &options, &a, &err), CAIRN_E_CONFLICT);
    sh("test \"$(cat %s)\" = precious && test \"$(ls)\" = \"$(printf '%s\\nsh.log')\"", IMAGE,
       IMAGE);
}

static void test_create_leaves_nothing_behind_when_it_fails(void **state)
{
    struct active_options options = without_base();
    struct active *a = NULL;
    struct cairn_error err;

    (void)state;
    assert_int_equal(active_create("no/such/folder", &options, &a, &err), CAIRN_E_NOT_FOUND);
    options.virtual_size = 513;
    assert_int_equal(active_create("odd", &options, &a, &err), CAIRN_E_USAGE);
    options.virtual_size = UINT64_C(1) << 49;
    assert_int_equal(active_create("large", &options, &a, &err), CAIRN_E_LIMIT);
    options.virtual_size = UINT64_C(1) << 48;
    options.cluster_bits = 14;
    assert_int_equal(active_create("many", &options, &a, &err), CAIRN_E_LIMIT);
    options.cluster_bits = 13;
    assert_int_equal(active_create("small", &options, &a, &err), CAIRN_E_USAGE);
    sh("! ls | grep -v -e %s -e sh.log", IMAGE);
}

static void test_the_largest_disk(void **state)
{
    struct active_options options = without_base();
    struct active *a;

    (void)state;
    options.virtual_size = UINT64_C(1) << 48;
    a = create(options);
    put(a, 5, 4096, options.virtual_size - 4096);
    expect(a, 5, 4096, options.virtual_size - 4096);
    discard(a, options.virtual_size, 0);
    expect(a, 0, 4096, options.virtual_size - 4096);
    close_and_check(a);
}

static void test_one_writer_at_a_time(void **state)
{
    struct active_options options = without_base();
    struct active *a = create(options), *second = NULL;
    struct cairn_error err;

    (void)state;
    assert_int_equal(active_open(IMAGE, &options, &second, &err), CAIRN_E_CONFLICT);
    sh("! qemu-io -c 'write 0 4k' %s", IMAGE); /* nor does QEMU write to it */
    close_and_check(a);
    close_and_check(reopen(options));
}

static void test_the_parent_is_recorded(void **state)
{
    struct active *a = create(with_base());
    struct digest found;
    char id[DIGEST_STR_MAX];

    (void)state;
    assert_true(active_parent(a, &found));
    assert_true(digest_equal(&found, &parent_id));
    close_and_check(a);
    a = reopen(with_base());
    assert_true(active_parent(a, &found));
    assert_true(digest_equal(&found, &parent_id));
    close_and_check(a);
    sh("qemu-img info --output=json %s | grep '\"backing-filename\": \"cairn:%s\"'", IMAGE,
       digest_format(&parent_id, id));
    sh("! qemu-img convert -O raw %s out.raw", IMAGE); /* who does not know better fails */
}

static void test_a_parent_that_comes_later(void **state)
{
    static const struct digest other = {{1}};
    struct active_options options = with_base();
    struct cairn_error err;
    struct digest found;
    struct active *a;

    (void)state;
    options.parent = NULL;
    options.parent_pending = true;
    a = create(options);
    assert_false(active_parent(a, &found));
    put(a, 9, 100, 5000);
    close_and_check(a);

    a = reopen(options);
    assert_false(active_parent(a, &found));
    must(active_set_parent(a, &parent_id, &err), &err);
    must(active_set_parent(a, &parent_id, &err), &err);
    assert_int_equal(active_set_parent(a, &other, &err), CAIRN_E_CONFLICT);
    close_and_check(a);

    a = reopen(options);
    assert_true(active_parent(a, &found));
    assert_true(digest_equal(&found, &parent_id));
    expect(a, 9, 100, 5000);
    close_and_check(a);
}

static void test_a_layer_without_parent_gets_none(void **state)
{
    struct active *a = create(without_base());
    struct cairn_error err;

    (void)state;
    assert_int_equal(active_set_parent(a, &parent_id, &err), CAIRN_E_CONFLICT);
    close_and_check(a);
}

/* -- Writing ----------------------------------------------------------------------------------- */

static void test_written_bytes_are_read_back_and_survive(void **state)
{
    struct active *a = create(with_base());

    (void)state;
    put(a, 0x11, 3 * CLUSTER + 1234, CLUSTER - 77);
    expect(a, 0x11, 3 * CLUSTER + 1234, CLUSTER - 77);
    expect(a, -1, CLUSTER - 77, 0);
    expect(a, -1, CLUSTER, 4 * CLUSTER + 1234 - 77);
    close_and_check(a);
    a = reopen(with_base());
    expect(a, 0x11, 3 * CLUSTER + 1234, CLUSTER - 77);
    expect(a, -1, CLUSTER - 77, 0);
    close_and_check(a);
}

static void test_aligned_writes_read_nothing_from_beneath(void **state)
{
    struct active *a = create(with_base());

    (void)state;
    put(a, 1, SUB, 5 * SUB);
    put(a, 2, 3 * CLUSTER, 2 * CLUSTER + SUB);
    put(a, 3, 2 * SUB, SIZE - 2 * SUB);
    assert_int_equal(stats_of(a).backing_bytes, 0);
    assert_int_equal(atomic_load(&base.nr_reads), 0);
    expect(a, 1, SUB, 5 * SUB);
    expect(a, -1, SUB, 4 * SUB);
    close_and_check(a);
}

static void test_the_rest_of_a_subcluster_comes_from_beneath(void **state)
{
    struct active *a = create(with_base());

    (void)state;
    put(a, 7, 10, SUB + 100);
    assert_int_equal(stats_of(a).backing_bytes, SUB);
    assert_int_equal(atomic_load(&base.nr_reads), 1);
    expect(a, -1, SUB + 100, 0);
    expect(a, 7, 10, SUB + 100);
    expect(a, -1, SUB, SUB + 110);
    assert_int_equal(map_one(a, SUB).len, SUB);
    put(a, 8, 10, SUB + 200); /* it is here now */
    assert_int_equal(stats_of(a).backing_bytes, SUB);
    close_and_check(a);
}

static void test_only_the_ends_of_a_long_write_are_completed(void **state)
{
    struct active *a = create(with_base());

    (void)state;
    put(a, 7, 2 * CLUSTER, SUB + 100);
    assert_int_equal(stats_of(a).backing_bytes, SUB);
    assert_int_equal(atomic_load(&base.nr_reads), 2);
    expect(a, -1, SUB + 100, 0);
    expect(a, 7, 2 * CLUSTER, SUB + 100);
    expect(a, -1, SUB, 2 * CLUSTER + SUB + 100);
    close_and_check(a);
}

static void test_without_a_base_nothing_is_read(void **state)
{
    struct active *a = create(without_base());

    (void)state;
    put(a, 7, 10, SUB + 100);
    assert_int_equal(stats_of(a).backing_bytes, 0);
    expect(a, 0, 100, SUB);
    expect(a, 7, 10, SUB + 100);
    expect(a, 0, SUB - 110, SUB + 110);
    close_and_check(a);
}

static void test_sequential_writes_lie_in_sequence(void **state)
{
    struct active *a = create(without_base());

    (void)state;
    put(a, 1, CLUSTER, 0);
    for (uint64_t off = CLUSTER; off < SIZE; off += 64 * KIB)
        put(a, 1, 64 * KIB, off);
    assert_int_equal(map_one(a, 0).kind, EXTENT_DATA);
    assert_int_equal(map_one(a, 0).len, SIZE);
    close_and_check(a);
}

static int count_writes(void *ctx, const struct hostfile_event *event)
{
    if (event->op == HOSTFILE_WRITE)
        ++*(unsigned *)ctx;
    return 0;
}

static void test_a_long_write_is_one_system_call(void **state)
{
    struct active *a = create(without_base());
    unsigned nr_writes = 0;
    const struct hostfile_hook hook = {count_writes, &nr_writes};

    (void)state;
    put(a, 1, SUB, 7 * MIB); /* makes the L2 table */
    a->file.hook = &hook;
    put(a, 1, 4 * MIB, 100);
    a->file.hook = NULL;
    assert_int_equal(nr_writes, 1);
    close_and_check(a);
}

static void test_the_end_of_an_odd_disk(void **state)
{
    struct active_options options = with_base();
    struct active *a;

    (void)state;
    options.virtual_size = SIZE - 3 * 512;
    a = create(options);
    put(a, 4, SUB, SIZE - SUB - 4 * 512);
    put(a, 6, 1024, options.virtual_size - 1024);
    expect(a, 6, 1024, options.virtual_size - 1024);
    zero(a, 2 * SUB, options.virtual_size - 2 * SUB, true);
    expect(a, 0, 2 * SUB, options.virtual_size - 2 * SUB);
    put(a, 3, CLUSTER, options.virtual_size - CLUSTER);
    discard(a, 2 * CLUSTER, options.virtual_size - 2 * CLUSTER);
    assert_int_equal(byte_at(a, options.virtual_size - 1), 0);
    close_and_check(a);
}

static void test_ranges_past_the_end(void **state)
{
    struct active *a = create(without_base());
    struct cairn_error err;
    uint8_t buf[512] = {0};

    (void)state;
    assert_int_equal(active_pwrite(a, buf, 512, SIZE - 511, &err), CAIRN_E_USAGE);
    assert_int_equal(active_pread(a, buf, 512, UINT64_MAX - 5, &err), CAIRN_E_USAGE);
    assert_int_equal(active_zero(a, UINT64_MAX, 1, true, &err), CAIRN_E_USAGE);
    assert_int_equal(active_discard(a, 1, SIZE, &err), CAIRN_E_USAGE);
    must(active_pwrite(a, buf, 0, SIZE, &err), &err);
    close_and_check(a);
}

/* -- Zeroing and discarding -------------------------------------------------------------------- */

static void test_zeroing_is_metadata_only(void **state)
{
    struct active *a = create(with_base());

    (void)state;
    zero(a, CLUSTER, SUB, true);
    expect(a, -1, SUB, 0);
    expect(a, 0, CLUSTER, SUB);
    expect(a, -1, SUB, SUB + CLUSTER);
    assert_int_equal(stats_of(a).backing_bytes, 0);
    assert_int_equal(stats_of(a).data_bytes, 0);
    assert_int_equal(map_one(a, SUB).kind, EXTENT_ZERO);
    close_and_check(a);
}

static void test_zeroing_keeps_or_frees_host_clusters(void **state)
{
    struct active *a = create(with_base());

    (void)state;
    put(a, 1, 2 * CLUSTER, 0);
    zero(a, CLUSTER, 0, false);
    zero(a, CLUSTER, CLUSTER, true);
    assert_int_equal(map_one(a, 0).kind, EXTENT_ZERO_ALLOC);
    assert_int_equal(map_one(a, CLUSTER).kind, EXTENT_ZERO);
    expect(a, 0, 2 * CLUSTER, 0);
    put(a, 2, 512, 1024); /* into the zeros: nothing is read for it */
    expect(a, 0, 1024, 0);
    expect(a, 2, 512, 1024);
    assert_int_equal(stats_of(a).backing_bytes, 0);
    close_and_check(a);
}

static void test_parts_of_subclusters_are_written_as_zeros(void **state)
{
    struct active *a = create(with_base());

    (void)state;
    zero(a, 100, 50, true);
    zero(a, 2 * SUB, CLUSTER + 50, true);
    expect(a, -1, 50, 0);
    expect(a, 0, 100, 50);
    expect(a, -1, SUB, 150);
    expect(a, -1, 50, CLUSTER);
    expect(a, 0, 2 * SUB, CLUSTER + 50);
    expect(a, -1, SUB, CLUSTER + 50 + 2 * SUB);
    assert_int_equal(stats_of(a).backing_bytes, 2 * SUB);
    close_and_check(a);
}

static void test_zeros_over_nothing_change_nothing(void **state)
{
    struct active *a = create(without_base());
    struct table_stats stats;

    (void)state;
    zero(a, SIZE - 100, 50, true);
    discard(a, SIZE, 0);
    assert_int_equal(map_one(a, 0).kind, EXTENT_HOLE);
    flush(a);
    table_get_stats_locked(a->tables, &stats);
    assert_int_equal(stats.nr_syncs, 0);
    close_and_check(a);
}

static void test_discarded_clusters_read_as_zeros(void **state)
{
    struct active *a = create(with_base());

    (void)state;
    put(a, 1, 3 * CLUSTER, 0);
    discard(a, 2 * CLUSTER, CLUSTER / 2);
    expect(a, 1, CLUSTER, 0);
    expect(a, 0, CLUSTER, CLUSTER);
    expect(a, 1, CLUSTER, 2 * CLUSTER);
    discard(a, CLUSTER, 4 * CLUSTER); /* what lies beneath is hidden as well */
    expect(a, 0, CLUSTER, 4 * CLUSTER);
    close_and_check(a);
}

static void test_freed_clusters_are_used_again_after_a_flush(void **state)
{
    struct active *a = create(without_base());
    uint64_t size;

    (void)state;
    put(a, 1, 2 * MIB, 0);
    flush(a);
    size = map_one(a, 0).host_off;
    discard(a, 2 * MIB, 0);
    put(a, 2, CLUSTER, 6 * MIB);
    assert_true(map_one(a, 6 * MIB).host_off >= size + 2 * MIB); /* not yet */
    flush(a);
    put(a, 3, 2 * MIB, 2 * MIB);
    assert_int_equal(map_one(a, 2 * MIB).host_off, size);
    assert_int_equal(map_one(a, 2 * MIB).len, 2 * MIB);
    close_and_check(a);
}

static void test_free_clusters_are_found_after_reopening(void **state)
{
    struct active *a = create(without_base());
    uint64_t host_off;

    (void)state;
    put(a, 1, 4 * MIB, 0);
    host_off = map_one(a, MIB).host_off;
    discard(a, MIB, MIB);
    close_and_check(a);
    a = reopen(without_base());
    put(a, 2, MIB, 6 * MIB);
    assert_int_equal(map_one(a, 6 * MIB).host_off, host_off);
    close_and_check(a);
}

static void test_discard_gives_space_back(void **state)
{
    struct active *a = create(without_base());
    struct stat before, after;

    (void)state;
    put(a, 1, 4 * MIB, 0);
    flush(a);
    assert_int_equal(stat(IMAGE, &before), 0);
    discard(a, 4 * MIB, 0);
    flush(a);
    assert_int_equal(stat(IMAGE, &after), 0);
    if (!atomic_load(&a->file.no_punch))
        assert_true(after.st_blocks + (off_t)(3 * MIB / 512) < before.st_blocks);
    close_and_check(a);
}

/* -- Flush ------------------------------------------------------------------------------------- */

static uint64_t nr_syncs(struct active *a)
{
    struct table_stats stats;

    table_get_stats_locked(a->tables, &stats);
    return stats.nr_syncs;
}

static void test_how_often_a_flush_synchronises(void **state)
{
    struct active *a = create(without_base());
    uint64_t before;

    (void)state;
    put(a, 1, SUB, 0);
    flush(a);
    before = nr_syncs(a);
    flush(a); /* nothing new */
    assert_int_equal(nr_syncs(a), before);
    put(a, 2, SUB, 0); /* data only */
    flush(a);
    assert_int_equal(nr_syncs(a), before + 1);
    put(a, 3, SUB, SUB); /* data, then an entry */
    flush(a);
    assert_int_equal(nr_syncs(a), before + 3);
    zero(a, SUB, SUB, true); /* an entry only */
    flush(a);
    assert_int_equal(nr_syncs(a), before + 4);
    close_and_check(a);
}

/* -- Sealing ----------------------------------------------------------------------------------- */

static void test_a_sealed_layer_is_read_only_and_whole(void **state)
{
    struct active *a = create(with_base());
    struct cairn_error err;
    struct stat st;
    struct extent last;

    (void)state;
    put(a, 1, CLUSTER, CLUSTER);
    put(a, 2, 4 * CLUSTER, 4 * CLUSTER);
    discard(a, 4 * CLUSTER, 4 * CLUSTER);
    must(active_seal(a, &err), &err);
    must(active_seal(a, &err), &err);
    assert_int_equal(active_pwrite(a, "x", 1, 0, &err), CAIRN_E_CONFLICT);
    assert_int_equal(active_zero(a, CLUSTER, CLUSTER, true, &err), CAIRN_E_CONFLICT);
    assert_int_equal(active_discard(a, CLUSTER, CLUSTER, &err), CAIRN_E_CONFLICT);
    flush(a);
    expect(a, 1, CLUSTER, CLUSTER);
    last = map_one(a, CLUSTER);
    assert_int_equal(stat(IMAGE, &st), 0);
    assert_int_equal(st.st_size, (off_t)(last.host_off + last.len));
    qemu_check(IMAGE); /* beside us, for nobody writes any more */
    close_and_check(a);
}

/* -- Failures ---------------------------------------------------------------------------------- */

struct fault {
    struct hostfile_hook hook;
    enum hostfile_op op;
    uint64_t min_len; /* of the operations that fail */
    int sys_errno;
};

static int inject(void *ctx, const struct hostfile_event *event)
{
    struct fault *fault = ctx;

    return event->op == fault->op && event->len >= fault->min_len ? fault->sys_errno : 0;
}

static void set_fault(struct active *a, struct fault *fault)
{
    fault->hook = (struct hostfile_hook){inject, fault};
    a->file.hook = &fault->hook;
}

static void test_a_full_disk_leaves_the_layer_usable(void **state)
{
    struct fault fault = {.op = HOSTFILE_WRITE, .sys_errno = ENOSPC, .min_len = 2 * CLUSTER};
    struct active *a = create(with_base());
    static uint8_t buf[4 * CLUSTER];
    struct cairn_error err;

    (void)state;
    put(a, 1, CLUSTER, 0);
    set_fault(a, &fault);
    assert_int_equal(active_pwrite(a, buf, sizeof(buf), 0, &err), CAIRN_E_NO_SPACE);
    expect(a, -1, CLUSTER, CLUSTER); /* as if it had not been tried */
    flush(a);
    put(a, 2, 2 * SUB, 2 * CLUSTER);
    expect(a, 2, 2 * SUB, 2 * CLUSTER);
    a->file.hook = NULL;
    close_and_check(a);
}

static void test_a_real_limit(void **state)
{
    struct rlimit old, limit;
    struct active *a = create(with_base());
    struct cairn_error err;
    uint64_t off = 0;
    uint8_t buf[SUB];

    (void)state;
    memset(buf, 3, sizeof(buf));
    signal(SIGXFSZ, SIG_IGN);
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &old), 0);
    limit = (struct rlimit){2 * MIB + 5 * KIB, old.rlim_max};
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &limit), 0);
    while (active_pwrite(a, buf, sizeof(buf), off, &err) == CAIRN_OK)
        off += CLUSTER;
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &old), 0);
    assert_int_equal(err.code, CAIRN_E_NO_SPACE);
    assert_true(off > 8 * CLUSTER);
    expect(a, 3, SUB, off - CLUSTER);
    expect(a, -1, SUB, off);
    put(a, 4, SUB, off);
    expect(a, 4, SUB, off);
    close_and_check(a);
}

static void test_a_failed_sync_stops_writes_not_reads(void **state)
{
    struct fault fault = {.op = HOSTFILE_SYNC, .sys_errno = EIO};
    struct active *a = create(with_base());
    struct cairn_error err;

    (void)state;
    put(a, 1, SUB, 0);
    set_fault(a, &fault);
    assert_int_equal(active_flush(a, &err), CAIRN_E_IO);
    a->file.hook = NULL;
    assert_int_equal(active_flush(a, &err), CAIRN_E_IO);
    assert_int_equal(active_pwrite(a, "x", 1, 0, &err), CAIRN_E_IO);
    assert_int_equal(active_zero(a, SUB, 0, true, &err), CAIRN_E_IO);
    expect(a, 1, SUB, 0);
    expect(a, -1, SUB, SUB);
    assert_int_equal(active_close(a, &err), CAIRN_E_IO);
}

static void test_when_the_base_cannot_be_read(void **state)
{
    struct active *a = create(with_base());
    struct cairn_error err;
    uint8_t buf[SUB] = {0};

    (void)state;
    base.rc = CAIRN_E_UNAVAILABLE;
    assert_int_equal(active_pread(a, buf, 1, 0, &err), CAIRN_E_UNAVAILABLE);
    assert_int_equal(active_pwrite(a, buf, 1, 0, &err), CAIRN_E_UNAVAILABLE);
    assert_string_equal(err.message, "beneath " IMAGE ": the base is gone");
    must(active_pwrite(a, buf, sizeof(buf), CLUSTER, &err), &err);
    base.rc = 0;
    expect(a, -1, CLUSTER, 0);
    close_and_check(a);
}

/* -- Beside each other ------------------------------------------------------------------------- */

struct part {
    struct active *a;
    uint64_t guest_off, len;
    uint8_t value;
};

static void *write_part(void *arg)
{
    struct part *p = arg;

    put(p->a, p->value, p->len, p->guest_off);
    return NULL;
}

/* Started from within a read of the base, that is, in the middle of a copy-on-write. */
struct meanwhile {
    pthread_t thread;
    struct part part;
    bool wait; /* does it end while the copy-on-write is still going on? */
    bool started;
};

static void start_write(void *ctx)
{
    struct meanwhile *m = ctx;

    if (m->started)
        return;
    m->started = true;
    assert_int_equal(pthread_create(&m->thread, NULL, write_part, &m->part), 0);
    if (m->wait)
        pthread_join(m->thread, NULL);
}

static void test_parts_of_one_subcluster_written_at_once(void **state)
{
    struct active *a = create(with_base());
    struct meanwhile m = {.part = {a, 1000, 500, 2}};

    (void)state;
    base.on_read = start_write;
    base.ctx = &m;
    put(a, 1, 500, 100);
    pthread_join(m.thread, NULL);
    expect(a, -1, 100, 0);
    expect(a, 1, 500, 100);
    expect(a, -1, 400, 600);
    expect(a, 2, 500, 1000);
    expect(a, -1, SUB, 1500);
    close_and_check(a);
}

static void test_a_whole_subcluster_is_not_undone_by_a_slow_copy(void **state)
{
    struct active *a = create(with_base());
    struct meanwhile m = {.part = {a, 0, SUB, 2}};

    (void)state;
    base.on_read = start_write;
    base.ctx = &m;
    put(a, 1, 500, 100);
    pthread_join(m.thread, NULL);
    expect(a, 2, SUB, 0);
    close_and_check(a);
}

static void test_other_subclusters_do_not_wait_for_a_slow_copy(void **state)
{
    struct active *a = create(with_base());
    struct meanwhile m = {.part = {a, SUB, SUB, 2}, .wait = true};

    (void)state;
    base.on_read = start_write;
    base.ctx = &m;
    put(a, 1, 500, 100); /* comes back, so nobody waited for anybody */
    expect(a, 1, 500, 100);
    expect(a, 2, SUB, SUB);
    close_and_check(a);
}

static void *flush_part(void *arg)
{
    flush(((struct part *)arg)->a);
    return NULL;
}

static void start_flush(void *ctx)
{
    struct meanwhile *m = ctx;

    assert_int_equal(pthread_create(&m->thread, NULL, flush_part, &m->part), 0);
    pthread_join(m->thread, NULL);
}

static void test_a_flush_does_not_wait_for_a_slow_copy(void **state)
{
    struct active *a = create(with_base());
    struct meanwhile m = {.part = {.a = a}};

    (void)state;
    put(a, 3, SUB, 2 * CLUSTER);
    base.on_read = start_flush;
    base.ctx = &m;
    put(a, 1, 500, 100);
    expect(a, 3, SUB, 2 * CLUSTER);
    base.on_read = NULL;
    close_and_check(a);
}

static void test_many_writers_fill_one_cluster(void **state)
{
    enum { NR = 32 };
    struct active *a = create(with_base());
    struct part parts[NR];
    pthread_t threads[NR];

    (void)state;
    for (unsigned i = 0; i < NR; i++) {
        parts[i] = (struct part){a, i * (SUB - 100), SUB - 100, (uint8_t)(i + 1)};
        assert_int_equal(pthread_create(&threads[i], NULL, write_part, &parts[i]), 0);
    }
    for (unsigned i = 0; i < NR; i++)
        pthread_join(threads[i], NULL);
    for (unsigned i = 0; i < NR; i++)
        expect(a, (int)i + 1, SUB - 100, i * (SUB - 100));
    expect(a, -1, SUB, NR * (SUB - 100));
    close_and_check(a);
}

/* -- Tables that grow, caches that are small --------------------------------------------------- */

static void test_the_refcount_table_grows(void **state)
{
    const uint64_t cluster = 16 * KIB;
    struct active_options options = {.virtual_size = UINT64_C(1) << 40, .cluster_bits = 14};
    struct active *a = create(options);
    uint64_t table_off;
    uint32_t clusters;

    (void)state;
    close_and_check(a);
    /* A table of one cluster counts 256 GiB: have the file end just below, and use up what the
     * first refcount block has to offer. */
    assert_int_equal(truncate(IMAGE, (off_t)((UINT64_C(256) << 30) - 8 * cluster)), 0);
    a = reopen(options);
    for (uint64_t i = 0; i < 8192 + 64; i++)
        put(a, (uint8_t)(i | 1), 512, i * cluster);
    refcount_table_locked(a->refcounts, &table_off, &clusters);
    assert_int_equal(clusters, 2);
    close_and_check(a);
    a = reopen(options);
    for (uint64_t i = 0; i < 8192 + 64; i++)
        expect(a, (int)(uint8_t)(i | 1), 512, i * cluster);
    close_and_check(a);
    unlink(IMAGE);
}

static void test_more_tables_than_the_cache_holds(void **state)
{
    struct active_options options = {
        .virtual_size = UINT64_C(8) << 30, .cluster_bits = 14, .cache_bytes = 1};
    struct active *a = create(options);

    (void)state;
    for (uint64_t i = 0; i < 512; i++)
        put(a, (uint8_t)(i | 1), 512, i * (options.virtual_size / 512));
    assert_true(stats_of(a).cache_bytes < 512 * KIB);
    for (uint64_t i = 0; i < 512; i++)
        expect(a, (int)(uint8_t)(i | 1), 512, i * (options.virtual_size / 512));
    close_and_check(a);
}

/* -- Hostile files ----------------------------------------------------------------------------- */

static void poke64(uint64_t off, uint64_t value)
{
    int fd = open(IMAGE, O_WRONLY | O_CLOEXEC);
    uint8_t bytes[8];

    bytes_put_be64(bytes, value);
    assert_int_equal(pwrite(fd, bytes, 8, (off_t)off), 8);
    close(fd);
}

static void poke32(uint64_t off, uint32_t value)
{
    int fd = open(IMAGE, O_WRONLY | O_CLOEXEC);
    uint8_t bytes[4];

    bytes_put_be32(bytes, value);
    assert_int_equal(pwrite(fd, bytes, 4, (off_t)off), 4);
    close(fd);
}

static void expect_refused(int code, const char *said)
{
    struct active_options options = without_base();
    struct active *a = NULL;
    struct cairn_error err;

    assert_int_equal(active_open(IMAGE, &options, &a, &err), code);
    if (!strstr(err.message, said) || !strstr(err.message, IMAGE))
        fail_msg("\"%s\" does not say \"%s\"", err.message, said);
}

static void test_other_shapes_are_refused(void **state)
{
    static const struct {
        const char *command, *said;
    } shapes[] = {
        {"qemu-img create -f qcow2 " IMAGE " 8M", "incompatible_features"},
        {"qemu-img create -f qcow2 -o compat=0.10 " IMAGE " 8M", "version"},
        {"qemu-img create -f qcow2 -o extended_l2=on,refcount_bits=64 " IMAGE " 8M",
         "refcount_order"},
        {"qemu-img create -f qcow2 -o extended_l2=on,compression_type=zstd " IMAGE " 8M",
         "incompatible_features"},
        {"qemu-img create -f qcow2 -o extended_l2=on -u -b /etc/passwd -F raw " IMAGE " 8M",
         "/etc/passwd"},
        {"qemu-img create -f qcow2 -o extended_l2=on " IMAGE " 8M && qemu-img snapshot -c s " IMAGE,
         "nb_snapshots"},
        {"qemu-img create -f qcow2 -o extended_l2=on " IMAGE " 8M && "
         "qemu-img bitmap --add " IMAGE " b",
         "autoclear_features"},
    };

    (void)state;
    for (size_t i = 0; i < sizeof(shapes) / sizeof(shapes[0]); i++) {
        sh("rm -f %s; %s", IMAGE, shapes[i].command);
        expect_refused(CAIRN_E_UNSUPPORTED, shapes[i].said);
    }
}

static void test_dirty_and_corrupt_bits_are_refused(void **state)
{
    (void)state;
    close_and_check(create(without_base()));
    poke64(QCOW2_HDR_INCOMPATIBLE_FEATURES, QCOW2_INCOMPAT_EXTL2 | QCOW2_INCOMPAT_DIRTY);
    expect_refused(CAIRN_E_UNSUPPORTED, "incompatible_features");
    poke64(QCOW2_HDR_INCOMPATIBLE_FEATURES, QCOW2_INCOMPAT_EXTL2 | QCOW2_INCOMPAT_CORRUPT);
    expect_refused(CAIRN_E_UNSUPPORTED, "corrupt");
}

static void test_tables_outside_the_file_are_refused(void **state)
{
    (void)state;
    close_and_check(create(without_base()));
    poke64(QCOW2_HDR_L1_TABLE_OFFSET, 100 * MIB);
    expect_refused(CAIRN_E_CORRUPT, "L1");
    poke64(QCOW2_HDR_L1_TABLE_OFFSET, 3 * CLUSTER);
    poke32(QCOW2_HDR_L1_SIZE, 0);
    expect_refused(CAIRN_E_CORRUPT, "l1_size");
}

static void test_no_image_at_all(void **state)
{
    (void)state;
    sh("rm -f %s; head -c 300000 /dev/urandom > %s", IMAGE, IMAGE);
    expect_refused(CAIRN_E_CORRUPT, "magic");
    sh("rm -f %s; mkdir %s", IMAGE, IMAGE);
    {
        struct active_options options = without_base();
        struct active *a = NULL;

        assert_true(active_open(IMAGE, &options, &a, NULL) < 0);
    }
    sh("rmdir %s", IMAGE);
}

/* Write the first L2 entry, whose table is the cluster behind the L1 table. */
static void expect_bad_entry(uint64_t entry, uint64_t bitmap, int code, const char *said)
{
    struct cairn_error err;
    uint8_t buf[SUB] = {0};
    struct active *a = create(without_base());

    put(a, 1, SUB, 0);
    put(a, 1, SUB, CLUSTER);
    close_and_check(a);
    poke64(4 * CLUSTER, entry);
    poke64(4 * CLUSTER + 8, bitmap);
    a = reopen(without_base());
    assert_int_equal(active_pread(a, buf, 1, 0, &err), code);
    if (!strstr(err.message, said) || !strstr(err.message, "L2 entry of guest offset 0x0"))
        fail_msg("\"%s\" does not say \"%s\"", err.message, said);
    assert_int_equal(active_pwrite(a, buf, 1, 0, &err), code);
    assert_int_equal(active_zero(a, CLUSTER, 0, true, &err), code);
    assert_int_equal(active_discard(a, CLUSTER, 0, &err), code);
    put(a, 2, SUB, CLUSTER); /* its neighbour is as good as ever */
    expect(a, 2, SUB, CLUSTER);
    must(active_close(a, &err), &err);
}

static void test_hostile_entries(void **state)
{
    const uint64_t copied = QCOW2_OFLAG_COPIED;

    (void)state;
    expect_bad_entry(copied | 100 * MIB, 1, CAIRN_E_CORRUPT, "not a data cluster");
    expect_bad_entry(copied | (UINT64_C(1) << 55), 1, CAIRN_E_CORRUPT, "not a data cluster");
    expect_bad_entry(copied | (5 * CLUSTER + 512), 1, CAIRN_E_CORRUPT, "not a data cluster");
    expect_bad_entry(copied | CLUSTER, 1, CAIRN_E_CORRUPT, "not a data cluster");
    expect_bad_entry(copied | 3 * CLUSTER, 1, CAIRN_E_CORRUPT, "not a data cluster");
    expect_bad_entry(copied | 5 * CLUSTER, 1 | UINT64_C(1) << 32, CAIRN_E_CORRUPT, "at once");
    expect_bad_entry(5 * CLUSTER, 1, CAIRN_E_CORRUPT, "exclusively");
    expect_bad_entry(copied | 5 * CLUSTER | 1, 1, CAIRN_E_CORRUPT, "reserved");
    expect_bad_entry(0, 1, CAIRN_E_CORRUPT, "without a host cluster");
    expect_bad_entry(QCOW2_OFLAG_COMPRESSED | 5 * CLUSTER, 0, CAIRN_E_UNSUPPORTED, "compressed");
}

static void expect_bad_l1(uint64_t entry)
{
    struct active *a = create(without_base());
    struct cairn_error err;

    put(a, 1, SUB, 0);
    close_and_check(a);
    poke64(3 * CLUSTER, entry);
    a = reopen(without_base());
    assert_int_equal(active_pwrite(a, "x", 1, 0, &err), CAIRN_E_CORRUPT);
    assert_non_null(strstr(err.message, "L1 entry 0"));
    must(active_close(a, &err), &err);
}

static void test_hostile_l1_entries(void **state)
{
    (void)state;
    expect_bad_l1(QCOW2_OFLAG_COPIED | 100 * MIB);
    expect_bad_l1(QCOW2_OFLAG_COPIED | (4 * CLUSTER + 4096));
    expect_bad_l1(QCOW2_OFLAG_COPIED | CLUSTER);
    expect_bad_l1(QCOW2_OFLAG_COPIED | 4 * CLUSTER | 1);
}

static void test_hostile_refcounts(void **state)
{
    struct active *a = create(without_base());
    struct cairn_error err;

    (void)state;
    put(a, 1, SUB, 0);
    close_and_check(a);
    poke64(CLUSTER, 100 * MIB); /* the first refcount block */
    a = reopen(without_base());
    expect(a, 1, SUB, 0);
    assert_int_equal(active_pwrite(a, "x", 1, CLUSTER, &err), CAIRN_E_CORRUPT);
    assert_non_null(strstr(err.message, "refcount table entry 0"));
    assert_int_equal(active_close(a, &err), CAIRN_E_CORRUPT);
}

static void test_a_cluster_freed_twice(void **state)
{
    struct active *a = create(without_base());
    struct cairn_error err;

    (void)state;
    put(a, 1, 2 * CLUSTER, 0);
    close_and_check(a);
    poke64(4 * CLUSTER + 16, QCOW2_OFLAG_COPIED | 5 * CLUSTER); /* both the same host cluster */
    a = reopen(without_base());
    discard(a, 2 * CLUSTER, 0);
    assert_int_equal(active_flush(a, &err), CAIRN_E_CORRUPT);
    assert_non_null(strstr(err.message, "refcount"));
    put(a, 2, SUB, CLUSTER);
    expect(a, 2, SUB, CLUSTER);
    must(active_close(a, &err), &err);
}

/* -- QEMU and we ------------------------------------------------------------------------------- */

static void test_qemu_writes_on_our_image_and_we_go_on(void **state)
{
    struct active *a = create(without_base());

    (void)state;
    put(a, 1, 3 * CLUSTER, 0);
    close_and_check(a);
    sh("qemu-io -c 'write -P 2 64k 100k' -c 'write -z -u 256k 128k' -c 'write -P 3 5M 4k' "
       "-c 'discard 128k 64k' -c 'write -z 6M 3k' " IMAGE);
    a = reopen(without_base());
    expect(a, 1, 64 * KIB, 0);
    expect(a, 2, 100 * KIB, 64 * KIB);
    expect(a, 0, 128 * KIB, 256 * KIB);
    expect(a, 3, 4 * KIB, 5 * MIB);
    put(a, 4, MIB, 5 * MIB - 100);
    zero(a, MIB, 100, true);
    expect(a, 4, MIB, 5 * MIB - 100);
    close_and_check(a);
    sh("qemu-io -c 'read -P 4 5M 1023k' -c 'read -P 0 512 1047552' " IMAGE);
}

static void test_qemu_keeps_the_recorded_parent(void **state)
{
    struct active *a = create(with_base());
    struct digest found;
    char id[DIGEST_STR_MAX];

    (void)state;
    put(a, 1, CLUSTER, 0);
    close_and_check(a);
    sh("truncate -s 8M base.raw; qemu-img rebase -u -F raw -b base.raw " IMAGE
       " && qemu-io -c 'write -P 2 128k 128k' " IMAGE
       " && qemu-img rebase -u -F raw -b cairn:%s " IMAGE,
       digest_format(&parent_id, id));
    a = reopen(with_base());
    assert_true(active_parent(a, &found));
    assert_true(digest_equal(&found, &parent_id));
    expect(a, 1, CLUSTER, 0);
    expect(a, 2, CLUSTER, CLUSTER);
    expect(a, -1, CLUSTER, 2 * CLUSTER);
    put(a, 3, 100, 2 * CLUSTER + 50);
    expect(a, 3, 100, 2 * CLUSTER + 50);
    close_and_check(a);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_new_layer_shows_what_lies_beneath),
        cmocka_unit_test(test_without_a_base_holes_are_zeros),
        cmocka_unit_test(test_create_does_not_touch_what_exists),
        cmocka_unit_test(test_create_leaves_nothing_behind_when_it_fails),
        cmocka_unit_test(test_the_largest_disk),
        cmocka_unit_test(test_one_writer_at_a_time),
        cmocka_unit_test(test_the_parent_is_recorded),
        cmocka_unit_test(test_a_parent_that_comes_later),
        cmocka_unit_test(test_a_layer_without_parent_gets_none),
        cmocka_unit_test(test_written_bytes_are_read_back_and_survive),
        cmocka_unit_test(test_aligned_writes_read_nothing_from_beneath),
        cmocka_unit_test(test_the_rest_of_a_subcluster_comes_from_beneath),
        cmocka_unit_test(test_only_the_ends_of_a_long_write_are_completed),
        cmocka_unit_test(test_without_a_base_nothing_is_read),
        cmocka_unit_test(test_sequential_writes_lie_in_sequence),
        cmocka_unit_test(test_a_long_write_is_one_system_call),
        cmocka_unit_test(test_the_end_of_an_odd_disk),
        cmocka_unit_test(test_ranges_past_the_end),
        cmocka_unit_test(test_zeroing_is_metadata_only),
        cmocka_unit_test(test_zeroing_keeps_or_frees_host_clusters),
        cmocka_unit_test(test_parts_of_subclusters_are_written_as_zeros),
        cmocka_unit_test(test_zeros_over_nothing_change_nothing),
        cmocka_unit_test(test_discarded_clusters_read_as_zeros),
        cmocka_unit_test(test_freed_clusters_are_used_again_after_a_flush),
        cmocka_unit_test(test_free_clusters_are_found_after_reopening),
        cmocka_unit_test(test_discard_gives_space_back),
        cmocka_unit_test(test_how_often_a_flush_synchronises),
        cmocka_unit_test(test_a_sealed_layer_is_read_only_and_whole),
        cmocka_unit_test(test_a_full_disk_leaves_the_layer_usable),
        cmocka_unit_test(test_a_real_limit),
        cmocka_unit_test(test_a_failed_sync_stops_writes_not_reads),
        cmocka_unit_test(test_when_the_base_cannot_be_read),
        cmocka_unit_test(test_parts_of_one_subcluster_written_at_once),
        cmocka_unit_test(test_a_whole_subcluster_is_not_undone_by_a_slow_copy),
        cmocka_unit_test(test_other_subclusters_do_not_wait_for_a_slow_copy),
        cmocka_unit_test(test_a_flush_does_not_wait_for_a_slow_copy),
        cmocka_unit_test(test_many_writers_fill_one_cluster),
        cmocka_unit_test(test_the_refcount_table_grows),
        cmocka_unit_test(test_more_tables_than_the_cache_holds),
        cmocka_unit_test(test_other_shapes_are_refused),
        cmocka_unit_test(test_dirty_and_corrupt_bits_are_refused),
        cmocka_unit_test(test_tables_outside_the_file_are_refused),
        cmocka_unit_test(test_no_image_at_all),
        cmocka_unit_test(test_hostile_entries),
        cmocka_unit_test(test_hostile_l1_entries),
        cmocka_unit_test(test_hostile_refcounts),
        cmocka_unit_test(test_a_cluster_freed_twice),
        cmocka_unit_test(test_qemu_writes_on_our_image_and_we_go_on),
        cmocka_unit_test(test_qemu_keeps_the_recorded_parent),
    };

    return cmocka_run_group_tests(tests, qemu_setup, qemu_teardown);
}
