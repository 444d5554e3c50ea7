/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The active layer when things go wrong: full disks, failed flushes, files of another shape, files
 * that somebody made to do harm, and files that QEMU has written to.
 */
#include "active_fixture.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/resource.h>

#include "bytes.h"

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
    fault->hook = (struct hostfile_hook){.before = inject, .ctx = fault};
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
    assert_string_equal(err.message, "beneath " IMAGE ": the base is gone");
    must(active_pwrite(a, buf, sizeof(buf), CLUSTER, &err), &err);
    base.rc = 0;
    expect(a, -1, CLUSTER, 0);
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
    expect_bad_l1(QCOW2_OFLAG_COPIED);
    expect_bad_l1(4 * CLUSTER);
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

/* Header, refcount table, block and L1 table are never handed out; noticing it counts them. */
static void test_metadata_that_is_counted_as_free(void **state)
{
    struct active *a = create(without_base());
    struct cairn_error err;

    (void)state;
    put(a, 1, SUB, 0);
    close_and_check(a);
    poke64(2 * CLUSTER, 0); /* the counts of the first four clusters */
    a = reopen(without_base());
    for (unsigned i = 0; i < 4; i++) {
        assert_int_equal(active_pwrite(a, "x", 1, CLUSTER, &err), CAIRN_E_CORRUPT);
        assert_non_null(strstr(err.message, "counted as free"));
    }
    put(a, 2, SUB, CLUSTER);
    expect(a, 1, SUB, 0);
    close_and_check(a);
}

static void test_close_does_not_cut_the_refcount_table(void **state)
{
    struct active *a = create(without_base());
    struct cairn_error err;

    (void)state;
    put(a, 1, SUB, 0);
    close_and_check(a);
    poke64(CLUSTER, 0); /* no refcount block */
    a = reopen(without_base());
    assert_int_equal(active_close(a, &err), CAIRN_E_CORRUPT);
    assert_non_null(strstr(err.message, "the file is not cut"));
    a = reopen(without_base());
    expect(a, 1, SUB, 0);
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
        cmocka_unit_test(test_a_full_disk_leaves_the_layer_usable),
        cmocka_unit_test(test_a_real_limit),
        cmocka_unit_test(test_a_failed_sync_stops_writes_not_reads),
        cmocka_unit_test(test_when_the_base_cannot_be_read),
        cmocka_unit_test(test_other_shapes_are_refused),
        cmocka_unit_test(test_dirty_and_corrupt_bits_are_refused),
        cmocka_unit_test(test_tables_outside_the_file_are_refused),
        cmocka_unit_test(test_no_image_at_all),
        cmocka_unit_test(test_hostile_entries),
        cmocka_unit_test(test_hostile_l1_entries),
        cmocka_unit_test(test_hostile_refcounts),
        cmocka_unit_test(test_metadata_that_is_counted_as_free),
        cmocka_unit_test(test_close_does_not_cut_the_refcount_table),
        cmocka_unit_test(test_a_cluster_freed_twice),
        cmocka_unit_test(test_qemu_writes_on_our_image_and_we_go_on),
        cmocka_unit_test(test_qemu_keeps_the_recorded_parent),
    };

    return cmocka_run_group_tests(tests, qemu_setup, qemu_teardown);
}
