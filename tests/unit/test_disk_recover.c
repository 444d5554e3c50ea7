/* SPDX-License-Identifier: Apache-2.0 */
/*
 * An active layer that was not closed cleanly.  Its leaks and its damage are poked into it; what
 * real crashes leave is tests/system/test_active.py's.
 */
#include "active_fixture.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>

#include "bytes.h"
#include "client.h"
#include "disk_recover.h"
#include "qcow2_check.h"

#define LEAKS 40000 /* refcounts over more than one page of the file */

static uint64_t read_be64(int fd, uint64_t host_off)
{
    uint8_t bytes[8];

    assert_int_equal(pread(fd, bytes, 8, (off_t)host_off), 8);
    return bytes_get_be64(bytes);
}

/* Where the refcount of a host cluster is; all of a small image's are in the first block. */
static uint64_t refcount_off(int fd, uint64_t cluster)
{
    return read_be64(fd, read_be64(fd, QCOW2_HDR_REFCOUNT_TABLE_OFFSET)) + 2 * cluster;
}

static void set_refcount(int fd, uint64_t cluster, uint8_t value)
{
    const uint8_t bytes[2] = {0, value};

    assert_int_equal(pwrite(fd, bytes, 2, (off_t)refcount_off(fd, cluster)), 2);
}

/* Clusters at the end of the file that nothing refers to. */
static void add_leaks(const char *path, unsigned nr)
{
    int fd = open(path, O_RDWR);
    struct stat st;
    uint64_t end;

    assert_int_equal(fstat(fd, &st), 0);
    end = ((uint64_t)st.st_size + CLUSTER - 1) / CLUSTER;
    for (unsigned i = 0; i < nr; i++)
        set_refcount(fd, end + i, 1);
    assert_int_equal(ftruncate(fd, (off_t)((end + nr) * CLUSTER)), 0);
    close(fd);
}

/* A disk folder d with some data; its active layer is open nowhere. */
static struct cairn_disk make_disk(struct cairn_client *client)
{
    struct cairn_disk disk = {.client = client};
    struct disk_state s = {
        .made_from = "vm:v1", .ref = "vm:v1", .repo = "vm", .virtual_size = SIZE};
    struct active *a = create(with_base());
    struct cairn_error err;

    put(a, 7, MIB, 0);
    close_and_check(a);
    sh("rm -rf d && mkdir d");
    must(disk_folder_open("d", true, &disk.folder, &err), &err);
    must(disk_folder_prepare(disk.folder, &s, &err), &err);
    must(disk_folder_commit(disk.folder, &err), &err);
    sh("mv " IMAGE " d/");
    return disk;
}

static void let_go(struct cairn_disk *disk)
{
    free(steal_ptr(disk->notice));
    disk_folder_close(disk->folder);
}

static void test_leaks_are_freed_recorded_and_told(void **state)
{
    struct cairn_client client = {0};
    struct cairn_disk disk = make_disk(&client);
    struct cairn_error err;

    (void)state;
    add_leaks("d/" IMAGE, LEAKS);
    must(disk_recover(&disk, &err), &err);
    qemu_check("d/" IMAGE);
    assert_non_null(strstr(disk.notice, "d/active.qcow2: was not closed cleanly; "
                                        "40000 leaked clusters freed"));
    assert_int_equal(disk_folder_state(disk.folder)->last_repair.leaks, LEAKS);
    assert_true(disk_folder_state(disk.folder)->last_repair.time > 0);
    assert_false(disk.unchecked);
    let_go(&disk);
}

static void test_a_sound_layer_is_told_too(void **state)
{
    struct cairn_client client = {0};
    struct cairn_disk disk = make_disk(&client);
    struct cairn_error err;

    (void)state;
    must(disk_recover(&disk, &err), &err);
    assert_non_null(strstr(disk.notice, "was not closed cleanly; checked, nothing to repair"));
    let_go(&disk);
}

/* A refcount that is too low, and leaks besides: to free those would be the first step of harm. */
static void test_damage_is_refused_and_left_alone(void **state)
{
    struct cairn_client client = {0};
    struct cairn_disk disk = make_disk(&client);
    struct cairn_error err;
    int fd = open("d/" IMAGE, O_RDWR);
    size_t len_before, len;
    uint8_t *before, *after;

    (void)state;
    add_leaks("d/" IMAGE, 3);
    set_refcount(fd, read_be64(fd, QCOW2_HDR_L1_TABLE_OFFSET) / CLUSTER, 0);
    close(fd);
    before = load_file("d/" IMAGE, &len_before);
    assert_int_equal(disk_recover(&disk, &err), CAIRN_E_CORRUPT);
    assert_non_null(strstr(err.message, "was not closed cleanly"));
    assert_non_null(strstr(err.message, "cairn image check --repair all"));
    assert_non_null(strstr(err.message, "refcount"));
    after = load_file("d/" IMAGE, &len);
    assert_int_equal(len, len_before);
    assert_memory_equal(before, after, len);
    free(before);
    free(after);
    let_go(&disk);
}

static void test_a_layer_in_use_is_refused(void **state)
{
    struct cairn_client client = {0};
    struct cairn_disk disk = make_disk(&client);
    struct active_options options = with_base();
    struct cairn_error err;
    struct active *a;

    (void)state;
    must(active_open("d/" IMAGE, &options, &a, &err), &err);
    assert_int_equal(disk_recover(&disk, &err), CAIRN_E_CONFLICT);
    must(active_close(a, &err), &err);
    let_go(&disk);
}

/* -- A repair that is cut short ---------------------------------------------------------------- */

struct cut {
    unsigned left; /* operations that are still done */
};

static int cut_off(void *ctx, const struct hostfile_event *event)
{
    struct cut *cut = ctx;

    if (event->op == HOSTFILE_READ)
        return 0;
    if (cut->left == 0)
        return EIO;
    cut->left--;
    return 0;
}

/* Whether the repair ended before the cut. */
static bool repair_until(unsigned nr_operations)
{
    struct cut cut = {nr_operations};
    const struct hostfile_hook hook = {.before = cut_off, .ctx = &cut};
    struct hostfile file;
    struct source *src;
    struct qcow2_check *check;
    struct cairn_error err;
    int ret;

    must(hostfile_init(&file, open("d/" IMAGE, O_RDWR), IMAGE, &err), &err);
    file.hook = &hook;
    must(source_open_file("d/" IMAGE, NULL, &src, &err), &err);
    must(qcow2_check_new(src, NULL, &check, &err), &err);
    ret = qcow2_repair(check, &file, QCOW2_REPAIR_LEAKS, &err);
    qcow2_check_free(check);
    source_free(src);
    hostfile_release(&file);
    return ret == CAIRN_OK;
}

/* An image without errors, whatever the cut, which the next open completes. */
static void test_a_repair_cut_short_is_completed(void **state)
{
    unsigned nr = 0;
    bool whole;

    (void)state;
    do {
        struct cairn_client client = {0};
        struct cairn_disk disk = make_disk(&client);
        struct cairn_error err;

        add_leaks("d/" IMAGE, LEAKS);
        whole = repair_until(nr++);
        must(disk_recover(&disk, &err), &err);
        qemu_check("d/" IMAGE);
        let_go(&disk);
    } while (!whole);
    assert_true(nr > 2); /* a write and a sync at least */
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_leaks_are_freed_recorded_and_told),
        cmocka_unit_test(test_a_sound_layer_is_told_too),
        cmocka_unit_test(test_damage_is_refused_and_left_alone),
        cmocka_unit_test(test_a_layer_in_use_is_refused),
        cmocka_unit_test(test_a_repair_cut_short_is_completed),
    };

    return cmocka_run_group_tests(tests, qemu_setup, qemu_teardown);
}
