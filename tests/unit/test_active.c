/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The active layer, one behaviour per test: what it does when all goes well.  active_stress.c does
 * the same things at random, all at once; test_active_faults.c is for when it does not go well.
 */
#include "active_fixture.h"

#include <sys/stat.h>

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
    close_and_check(a);

    a = reopen(options);
    assert_true(active_parent(a, &found));
    assert_true(digest_equal(&found, &parent_id));
    expect(a, 9, 100, 5000);
    close_and_check(a);
}

static void test_another_parent_is_recorded(void **state)
{
    static const struct digest other = {{1}}, third = {{2}};
    struct active *a = create(with_base());
    struct cairn_error err;
    struct digest found;

    (void)state;
    put(a, 9, 100, 5000);
    must(active_set_parent(a, &other, &err), &err);
    assert_true(active_parent(a, &found) && digest_equal(&found, &other));
    must(active_seal(a, &err), &err);
    must(active_set_parent(a, &third, &err), &err);
    close_and_check(a);
    a = reopen(with_base());
    assert_true(active_parent(a, &found) && digest_equal(&found, &third));
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
    flush(a);
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
    flush(a);
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
    const struct hostfile_hook hook = {.before = count_writes, .ctx = &nr_writes};

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

/* What lies beneath has data in its first GiB only, and may not be able to say so. */
struct mapped {
    unsigned nr_asked;
    int rc;
};

static int map_mostly_holes(void *ctx, uint64_t guest_off, uint64_t len, struct extent *ret_extent,
                            struct cairn_error *err)
{
    struct mapped *m = ctx;
    bool data = guest_off < KIB * MIB;

    m->nr_asked++;
    *ret_extent = (struct extent){.guest_off = guest_off, .len = len, .kind = EXTENT_HOLE};
    if (data)
        ret_extent->kind = EXTENT_DATA;
    return m->rc ? error_set(err, m->rc, "the base cannot tell") : CAIRN_OK;
}

static int read_mostly_holes(void *ctx, void *buf, size_t len, uint64_t guest_off,
                             struct cairn_error *err)
{
    (void)ctx;
    (void)err;
    memset(buf, guest_off < KIB * MIB ? 7 : 0, len);
    return CAIRN_OK;
}

static void test_zeros_over_holes_make_no_tables(void **state)
{
    struct mapped m = {0, CAIRN_OK};
    struct active_options options = {
        .virtual_size = MIB * MIB,
        .parent = &parent_id,
        .backing = {.pread = read_mostly_holes, .ctx = &m, .map_one = map_mostly_holes},
    };
    struct active *a = create(options);
    uint64_t before = stats_of(a).file_bytes;

    (void)state;
    put(a, 1, SUB, 100 * KIB * MIB);
    zero(a, MIB * MIB, 0, true);
    for (uint64_t off = 0; off < MIB * MIB; off += 32 * MIB) /* as NBD clients do */
        discard(a, 32 * MIB, off);
    expect(a, 0, SUB, 0);
    expect(a, 0, SUB, KIB * MIB - SUB);
    expect(a, 0, SUB, 100 * KIB * MIB);
    expect(a, 0, SUB, MIB * MIB - SUB);
    assert_true(m.nr_asked <= 1024 + 32 * 1024);
    flush(a);
    assert_true(stats_of(a).file_bytes < before + 32 * MIB);
    close_and_check(a);
}

static void test_zeros_over_what_cannot_tell_are_marked(void **state)
{
    struct mapped m = {0, CAIRN_E_UNAVAILABLE};
    struct active_options options = {
        .virtual_size = 4 * KIB * MIB,
        .parent = &parent_id,
        .backing = {.pread = read_mostly_holes, .ctx = &m, .map_one = map_mostly_holes},
    };
    struct active *a = create(options);

    (void)state;
    zero(a, 4 * KIB * MIB, 0, true);
    assert_int_equal(m.nr_asked, 1); /* and not again, for it may take long */
    assert_int_equal(map_one(a, 0).kind, EXTENT_ZERO);
    assert_int_equal(map_one(a, 0).len, 4 * KIB * MIB);
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
    flush(a);
    pthread_join(m.thread, NULL);
    expect(a, -1, 100, 0);
    expect(a, 1, 500, 100);
    expect(a, -1, 400, 600);
    expect(a, 2, 500, 1000);
    expect(a, -1, SUB, 1500);
    close_and_check(a);
}

static int write_meanwhile(void *ctx, const struct hostfile_event *event)
{
    if (event->op == HOSTFILE_WRITE)
        start_write(ctx);
    return 0;
}

static void test_writers_to_one_cluster_do_not_wait_for_each_other(void **state)
{
    struct active *a = create(with_base());
    struct meanwhile m = {.part = {a, 2 * SUB, SUB, 2}, .wait = true};
    const struct hostfile_hook hook = {.before = write_meanwhile, .ctx = &m};

    (void)state;
    put(a, 3, SUB, CLUSTER); /* makes the L2 table */
    a->file.hook = &hook;
    put(a, 1, SUB, 0); /* a new cluster, and another writer comes and goes while it is written to */
    a->file.hook = NULL;
    assert_true(m.started);
    expect(a, 1, SUB, 0);
    expect(a, -1, SUB, SUB);
    expect(a, 2, SUB, 2 * SUB);
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
    flush(a);
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
    put(a, 1, 500, 100);
    flush(a); /* comes back, so nobody waited for anybody */
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

static void test_a_flush_does_not_wait_for_a_slow_read(void **state)
{
    struct active *a = create(with_base());
    struct meanwhile m = {.part = {.a = a}};

    (void)state;
    put(a, 3, SUB, 2 * CLUSTER);
    base.on_read = start_flush;
    base.ctx = &m;
    assert_int_equal(byte_at(a, 100), base_byte(100));
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
        cmocka_unit_test(test_another_parent_is_recorded),
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
        cmocka_unit_test(test_zeros_over_holes_make_no_tables),
        cmocka_unit_test(test_zeros_over_what_cannot_tell_are_marked),
        cmocka_unit_test(test_parts_of_one_subcluster_written_at_once),
        cmocka_unit_test(test_writers_to_one_cluster_do_not_wait_for_each_other),
        cmocka_unit_test(test_a_whole_subcluster_is_not_undone_by_a_slow_copy),
        cmocka_unit_test(test_other_subclusters_do_not_wait_for_a_slow_copy),
        cmocka_unit_test(test_a_flush_does_not_wait_for_a_slow_read),
        cmocka_unit_test(test_many_writers_fill_one_cluster),
        cmocka_unit_test(test_the_refcount_table_grows),
        cmocka_unit_test(test_more_tables_than_the_cache_holds),
    };

    return cmocka_run_group_tests(tests, qemu_setup, qemu_teardown);
}
