/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Allocations of libcairn fail while it opens, reads and snapshots disks of a real cairnd.
 *
 * A snapshot that failed leaves a disk that reads as before, goes on, and can be opened again; the
 * next snapshot publishes what the disk holds, and leaves nothing in its folder.  What it must hold
 * is kept in memory, byte by byte.
 */
#include "alloc_fail.h"

#include "cairnd_fixture.h"

#include <dirent.h>

#include "cairn.h"
#include "cleanup.h"

#define KIB  ((size_t)1 << 10)
#define SIZE (1024 * KIB)
#define BASE "vm:base"

static struct cairnd cairnd;
static uint8_t model[SIZE]; /* the disk of the run under way */
static unsigned nr_runs;    /* so far: each writes something that none has written */

static void must(int code, const struct cairn_error *err)
{
    if (code != CAIRN_OK)
        fail_msg("%d: %s", code, err->message);
}

static int new_client(cairn_progress_fn progress, struct cairn_client **ret_client,
                      struct cairn_error *err)
{
    struct cairn_client_options options = CAIRN_CLIENT_OPTIONS_INIT;

    options.server = cairnd.url;
    options.progress = progress;
    return cairn_client_new(&options, ret_client, err);
}

/* -- What the disk holds ----------------------------------------------------------------------- */

/* As make_base writes it. */
static void begin_model(void)
{
    memset(model, 0, SIZE);
    memset(model, 1, SIZE / 2);
}

static void put(struct cairn_disk *disk, uint8_t value, size_t len, uint64_t guest_off)
{
    struct cairn_error err;

    memset(model + guest_off, value, len);
    must(cairn_disk_pwrite(disk, model + guest_off, len, guest_off, &err), &err);
}

/* A new layer: whole clusters, a part of one, zeros, and bytes of this run alone. */
static void change(struct cairn_disk *disk)
{
    struct cairn_error err;
    char name[64];
    int len = snprintf(name, sizeof(name), "run %u", ++nr_runs);

    put(disk, 2, 256 * KIB, 512 * KIB);
    put(disk, 3, 700, 130 * KIB + 100);
    memset(model, 0, 4 * KIB);
    must(cairn_disk_zero(disk, 4 * KIB, 0, true, &err), &err);
    memcpy(model + SIZE - sizeof(name), name, (size_t)len);
    must(cairn_disk_pwrite(disk, name, (size_t)len, SIZE - sizeof(name), &err), &err);
}

/* Every byte is as it should be, or there is an error. */
static int read_back(struct cairn_disk *disk, struct cairn_error *err)
{
    static uint8_t bytes[SIZE];
    int ret;

    assert_int_equal(cairn_disk_size(disk), SIZE);
    memset(bytes, 0xee, SIZE);
    ret = cairn_disk_pread(disk, bytes, SIZE, 0, err);
    if (ret == CAIRN_OK)
        assert_memory_equal(bytes, model, SIZE);
    return ret;
}

static void check_published(struct cairn_client *client, const char *ref)
{
    struct cairn_error err;
    struct cairn_disk *disk;

    must(cairn_disk_open_ref(client, ref, &disk, &err), &err);
    must(read_back(disk, &err), &err);
    must(cairn_disk_close(disk, &err), &err);
}

/* -- A disk in a folder ------------------------------------------------------------------------ */

struct life {
    const char *target; /* of its snapshots */
    struct cairn_client *client;
    struct cairn_disk *disk;
};

static void open_disk(struct life *life, const char *ref)
{
    struct cairn_error err;

    must(cairn_disk_open_folder(life->client, "d", ref, &life->disk, &err), &err);
}

static void close_disk(struct life *life)
{
    struct cairn_error err;

    must(cairn_disk_close(life->disk, &err), &err);
    life->disk = NULL;
}

static void begin(void *arg)
{
    struct life *life = arg;
    struct cairn_error err;

    sh("rm -rf d");
    begin_model();
    must(new_client(NULL, &life->client, &err), &err);
}

static void begin_with_disk(void *arg)
{
    begin(arg);
    open_disk(arg, BASE);
    change(((struct life *)arg)->disk);
}

static void end(struct life *life)
{
    cairn_client_free(life->client);
}

/* Neither layers that wait nor what was being made. */
static void check_nothing_left(void)
{
    DIR *folder = opendir("d");

    assert_non_null(folder);
    for (struct dirent *e; (e = readdir(folder));)
        if (e->d_name[0] != '.' && strcmp(e->d_name, "lock") != 0 &&
            strcmp(e->d_name, "disk.json") != 0 && strcmp(e->d_name, "active.qcow2") != 0)
            fail_msg("d/%s is left over", e->d_name);
    closedir(folder);
}

/* The disk goes on, and what comes of it is published. */
static void go_on(struct life *life)
{
    struct cairn_error err;
    char *ref;

    must(read_back(life->disk, &err), &err);
    put(life->disk, 4, 5000, 300 * KIB);
    must(cairn_disk_snapshot(life->disk, life->target, &ref, &err), &err);
    check_published(life->client, ref);
    free(ref);
    close_disk(life);
    check_nothing_left();
    open_disk(life, NULL);
    must(read_back(life->disk, &err), &err);
    close_disk(life);
}

/* Behind a snapshot of life->disk; every other time it is opened again first. */
static void verify_open(void *arg, int code)
{
    struct life *life = arg;
    struct cairn_error err;

    if (code == CAIRN_OK)
        check_published(life->client, life->target);
    must(read_back(life->disk, &err), &err);
    if (nr_runs % 2) {
        close_disk(life);
        open_disk(life, BASE);
    }
    go_on(life);
    end(life);
}

/* -- The sweeps -------------------------------------------------------------------------------- */

static int use_ref(struct cairn_client *client, struct cairn_error *err)
{
    struct cairn_disk *disk;
    struct cairn_extent extents[16];
    size_t nr;
    char *json = NULL;
    int ret = cairn_disk_open_ref(client, BASE, &disk, err);

    if (ret != CAIRN_OK)
        return ret;
    ret = read_back(disk, err);
    if (ret == CAIRN_OK)
        ret = cairn_disk_extents(disk, 0, SIZE, extents, 16, &nr, err);
    if (ret == CAIRN_OK)
        assert_int_equal(nr, 2);
    if (ret == CAIRN_OK)
        ret = cairn_disk_info(disk, &json, err);
    if (ret == CAIRN_OK)
        assert_non_null(strstr(json, "\"indexReads\""));
    free(json);
    cairn_disk_close(disk, NULL);
    return ret;
}

static int open_ref(void *arg, struct cairn_error *err)
{
    struct cairn_client *client;
    int ret = new_client(NULL, &client, err);

    (void)arg;
    if (ret != CAIRN_OK)
        return ret;
    ret = use_ref(client, err);
    cairn_client_free(client);
    return ret;
}

static void test_a_published_disk(void **state)
{
    (void)state;
    begin_model();
    alloc_sweep_run(
        &(struct alloc_sweep){.name = "open a ref, read, map, describe, close", .run = open_ref},
        NULL);
}

static int make_folder(void *arg, struct cairn_error *err)
{
    struct life *life = arg;
    int ret = cairn_disk_open_folder(life->client, "d", BASE, &life->disk, err);

    return ret == CAIRN_OK ? cairn_disk_close(life->disk, err) : ret;
}

/* What is half made is no obstacle. */
static void verify_folder(void *arg, int code)
{
    (void)code;
    open_disk(arg, BASE);
    change(((struct life *)arg)->disk);
    go_on(arg);
    end(arg);
}

static void test_a_new_folder(void **state)
{
    struct life life = {.target = "vm:made"};

    (void)state;
    alloc_sweep_run(&(struct alloc_sweep){.name = "make a disk folder",
                                          .prepare = begin,
                                          .run = make_folder,
                                          .verify = verify_folder,
                                          .sample = 40},
                    &life);
}

static int snapshot(void *arg, struct cairn_error *err)
{
    struct life *life = arg;
    char *ref;
    int ret = cairn_disk_snapshot(life->disk, life->target, &ref, err);

    if (ret == CAIRN_OK)
        free(ref);
    return ret;
}

static void test_a_snapshot(void **state)
{
    struct life life = {.target = "vm:snapshot"};

    (void)state;
    alloc_sweep_run(&(struct alloc_sweep){.name = "snapshot",
                                          .prepare = begin_with_disk,
                                          .run = snapshot,
                                          .verify = verify_open,
                                          .sample = 40},
                    &life);
}

static void begin_serving(void *arg)
{
    struct life *life = arg;
    struct cairn_error err;

    begin_with_disk(arg);
    must(cairn_disk_serve_control(life->disk, &err), &err);
}

static int snapshot_folder(void *arg, struct cairn_error *err)
{
    struct life *life = arg;
    char *ref;
    int ret = cairn_folder_snapshot(life->client, "d", life->target, &ref, err);

    if (ret == CAIRN_OK)
        free(ref);
    return ret;
}

static void test_a_snapshot_of_a_running_disk(void **state)
{
    struct life life = {.target = "vm:running"};

    (void)state;
    alloc_sweep_run(&(struct alloc_sweep){.name = "snapshot of a running disk",
                                          .prepare = begin_serving,
                                          .run = snapshot_folder,
                                          .verify = verify_open,
                                          .sample = 40},
                    &life);
}

static bool may_push = true;

static int cancel_push(void *ctx, const char *what, uint64_t done_bytes, uint64_t total_bytes)
{
    (void)ctx, (void)done_bytes, (void)total_bytes;
    return !may_push && strncmp(what, "push ", 5) == 0;
}

/* A stopped disk with a sealed layer that waits, and an active one. */
static void begin_waiting(void *arg)
{
    struct life *life = arg, making = {.target = life->target};
    struct cairn_error err;
    char *ref;

    begin(life);
    must(new_client(cancel_push, &making.client, &err), &err);
    open_disk(&making, BASE);
    change(making.disk);
    may_push = false;
    assert_int_equal(cairn_disk_snapshot(making.disk, making.target, &ref, &err),
                     CAIRN_E_CANCELLED);
    may_push = true;
    put(making.disk, 5, 9000, 200 * KIB);
    close_disk(&making);
    end(&making);
    sh("test -f d/sealed-1.qcow2");
}

static int snapshot_compressed(void *arg, struct cairn_error *err)
{
    struct cairn_seal_options options = CAIRN_SEAL_OPTIONS_INIT;
    struct life *life = arg;
    char *ref, *notice = NULL;
    int ret;

    options.compress = CAIRN_COMPRESS_ZSTD;
    ret = cairn_folder_snapshot_with(life->client, "d", life->target, &options, &ref, &notice, err);
    if (ret == CAIRN_OK)
        free(ref);
    free(notice);
    return ret;
}

static void verify_stopped(void *arg, int code)
{
    struct life *life = arg;

    if (code == CAIRN_OK)
        check_published(life->client, life->target);
    open_disk(life, NULL);
    go_on(life);
    end(life);
}

/* Into another repository, which the chain's layers are mounted into. */
static void test_a_snapshot_of_a_stopped_disk(void **state)
{
    struct life life = {.target = "other:stopped"};

    (void)state;
    alloc_sweep_run(&(struct alloc_sweep){.name = "snapshot of a stopped disk",
                                          .prepare = begin_waiting,
                                          .run = snapshot_compressed,
                                          .verify = verify_stopped,
                                          .sample = 40},
                    &life);
}

/* -- The service ------------------------------------------------------------------------------- */

static int start(void **state)
{
    struct cairn_client *client;
    struct cairn_error err;
    char *ref;

    if (qemu_setup(state) != 0)
        return -1;
    cairnd_start(&cairnd);
    sh("qemu-img create -q -f qcow2 base.qcow2 1M; qemu-io -c 'write -q -P 1 0 512k' base.qcow2");
    must(new_client(NULL, &client, &err), &err);
    must(cairn_push(client, "base.qcow2", NULL, BASE, &ref, &err), &err);
    free(ref);
    cairn_client_free(client);
    return 0;
}

static int stop(void **state)
{
    cairnd_stop(&cairnd);
    return qemu_teardown(state);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_published_disk),
        cmocka_unit_test(test_a_new_folder),
        cmocka_unit_test(test_a_snapshot),
        cmocka_unit_test(test_a_snapshot_of_a_running_disk),
        cmocka_unit_test(test_a_snapshot_of_a_stopped_disk),
    };

    return cmocka_run_group_tests(tests, start, stop);
}
