/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Every allocation of libcairn's local side fails once: images without a service, disk folders,
 * recovery.  What comes back all the same is whole: no member is missing from any JSON.
 */
#include "alloc_fail.h"
#include "qemu.h"

#include <fcntl.h>

#include "active.h"
#include "client.h"
#include "disk_recover.h"
#include "map_json.h"

/* -- Images ------------------------------------------------------------------------------------ */

static int make_images(void **state)
{
    if (qemu_setup(state) != 0)
        return -1;
    sh("qemu-img create -q -f qcow2 base.qcow2 4M; qemu-io -c 'write -q -P 1 0 1M' base.qcow2;"
       "qemu-img create -q -f qcow2 -b base.qcow2 -F qcow2 vm.qcow2;"
       "qemu-io -c 'write -q -P 2 64k 64k' -c 'write -q -z 1M 64k' vm.qcow2;"
       "qemu-img bitmap --add vm.qcow2 dirty; qemu-img snapshot -c one vm.qcow2;"
       "qemu-io -c 'write -q -P 3 64k 64k' vm.qcow2;"
       "qemu-img create -q -f qcow2 leaky.qcow2 4M; truncate -s 640k leaky.qcow2;"
       /* the refcount of its last cluster */
       "printf '\\1' | dd of=leaky.qcow2 bs=1 seek=$((131072 + 19)) conv=notrunc status=none");
    return 0;
}

/* Text that a run gave, to compare with the first run's. */
#define TEXT_MAX 65536
struct text {
    char first[TEXT_MAX], now[TEXT_MAX];
};

static void begin(void *arg)
{
    ((struct text *)arg)->now[0] = 0;
    unlink("out.qcow2");
}

static void compare(void *arg, int code)
{
    struct text *text = arg;

    if (code != CAIRN_OK)
        return;
    if (!text->first[0])
        strcpy(text->first, text->now);
    assert_string_equal(text->first, text->now);
}

/* Takes json over. */
static int keep(struct text *text, int code, char *json)
{
    if (code == CAIRN_OK) {
        assert_true(strlen(json) < TEXT_MAX);
        strcpy(text->now, json);
        free(json);
    }
    return code;
}

static void add_line(struct text *text, uint64_t a, uint64_t b)
{
    size_t len = strlen(text->now);

    snprintf(text->now + len, TEXT_MAX - len, "%llu %llu\n", (unsigned long long)a,
             (unsigned long long)b);
}

static void sweep(const char *name, int (*run)(void *arg, struct cairn_error *err))
{
    static struct text text;

    memset(&text, 0, sizeof(text));
    alloc_sweep_run(
        &(struct alloc_sweep){.name = name, .prepare = begin, .run = run, .verify = compare},
        &text);
}

static int describe(void *arg, struct cairn_error *err)
{
    char *json = NULL;
    int ret = cairn_image_info("vm.qcow2", NULL, &json, err);

    return keep(arg, ret, json);
}

static int check(void *arg, struct cairn_error *err)
{
    char *json = NULL;
    int ret = cairn_image_check("leaky.qcow2", NULL, CAIRN_REPAIR_NONE, NULL, NULL, &json, err);

    return keep(arg, ret, json);
}

static int seal(void *arg, struct cairn_error *err)
{
    char *json = NULL;
    int ret = cairn_image_seal("vm.qcow2", NULL, "out.qcow2", NULL, NULL, NULL, &json, err);

    return keep(arg, ret, json);
}

static int take_entry(void *ctx, const struct cairn_map_entry *entry)
{
    add_line(ctx, entry->start, entry->depth);
    return 0;
}

static int map(void *arg, struct cairn_error *err)
{
    return cairn_image_map("vm.qcow2", NULL, take_entry, arg, err);
}

static int map_internal(void *arg, struct cairn_error *err)
{
    return cairn_image_map_internal("vm.qcow2", "one", take_entry, arg, err);
}

static int take_dirty(void *ctx, uint64_t start, uint64_t length)
{
    add_line(ctx, start, length);
    return 0;
}

static int list_dirty(void *arg, struct cairn_error *err)
{
    return cairn_image_bitmap("vm.qcow2", "dirty", take_dirty, arg, err);
}

static int create(void *arg, struct cairn_error *err)
{
    (void)arg;
    return cairn_image_create("out.qcow2", 1 << 20, "base.qcow2", "qcow2", err);
}

static void test_images(void **state)
{
    (void)state;
    sweep("cairn_image_info", describe);
    sweep("cairn_image_check", check);
    sweep("cairn_image_map", map);
    sweep("cairn_image_map_internal", map_internal);
    sweep("cairn_image_bitmap", list_dirty);
    sweep("cairn_image_create", create);
    sweep("cairn_image_seal", seal);
}

/* -- Disk folders ------------------------------------------------------------------------------ */

static struct disk_state some_state(void)
{
    struct disk_state s = {.made_from = "vm:v1",
                           .ref = "vm/one:monday",
                           .repo = "vm/one",
                           .virtual_size = 1 << 20,
                           .nr_sealed = 2,
                           .sealed = {3, 4},
                           .last_repair = {1, 2}};

    digest_of("m", 1, &s.manifest);
    digest_of("c", 1, &s.chain_id);
    return s;
}

/* There and back; what comes back is the same or an error. */
static int encode_and_parse(void *arg, struct cairn_error *err)
{
    const struct disk_state state = some_state();
    struct disk_state back;
    char *json = NULL;
    int ret = disk_state_encode(&state, &json, err);

    if (ret == CAIRN_OK)
        ret = disk_state_parse(json, strlen(json), "disk.json", &back, err);
    if (ret == CAIRN_OK) {
        assert_string_equal(back.ref, state.ref);
        assert_int_equal(back.nr_sealed, state.nr_sealed);
        assert_int_equal(back.last_repair.leaks, state.last_repair.leaks);
        strcpy(((struct text *)arg)->now, json);
    }
    free(json);
    return ret;
}

static void make_folder(void *arg)
{
    struct disk_state state = some_state();
    struct active_options options = {.virtual_size = 1 << 20};
    struct disk_folder *folder;
    struct active *a;

    begin(arg);
    sh("rm -rf d && mkdir d");
    state.nr_sealed = 0;
    assert_int_equal(disk_folder_open("d", true, &folder, NULL), CAIRN_OK);
    assert_int_equal(disk_folder_prepare(folder, &state, NULL), CAIRN_OK);
    assert_int_equal(disk_folder_commit(folder, NULL), CAIRN_OK);
    assert_int_equal(active_create("d/active.qcow2", &options, &a, NULL), CAIRN_OK);
    assert_int_equal(active_close(a, NULL), CAIRN_OK);
    disk_folder_close(folder);
}

static int use_folder(struct disk_folder *folder, struct cairn_error *err)
{
    struct disk_state state = *disk_folder_state(folder);
    int ret;

    state.virtual_size *= 2;
    ret = disk_folder_mark(folder, err);
    if (ret == CAIRN_OK)
        ret = disk_folder_prepare(folder, &state, err);
    return ret == CAIRN_OK ? disk_folder_commit(folder, err) : ret;
}

static int open_folder(void *arg, struct cairn_error *err)
{
    CLEANUP(disk_folder_close_p) struct disk_folder *folder = NULL;
    int ret = disk_folder_open("d", false, &folder, err);

    (void)arg;
    return ret == CAIRN_OK ? use_folder(folder, err) : ret;
}

/* Its disk.json is the old one or the new one. */
static void look_into_folder(void *arg, int code)
{
    struct disk_state state;
    bool marked;

    (void)arg;
    assert_int_equal(disk_folder_read_state("d", &state, &marked, NULL), CAIRN_OK);
    assert_int_equal(state.virtual_size, code == CAIRN_OK ? 2 << 20 : 1 << 20);
}

/* Where there is no memory for the check, the disk is used without it. */
static int recover(void *arg, struct cairn_error *err)
{
    struct cairn_client client = {0};
    struct cairn_disk disk = {.client = &client};
    int ret = disk_folder_open("d", false, &disk.folder, err);

    (void)arg;
    if (ret == CAIRN_OK)
        ret = disk_recover(&disk, err);
    if (ret == CAIRN_OK)
        assert_non_null(strstr(disk.notice, "was not closed cleanly; "));
    free(disk.notice);
    disk_folder_close(disk.folder);
    return ret;
}

static void test_disk_folders(void **state)
{
    static struct text text;

    (void)state;
    sweep("disk.json", encode_and_parse);
    alloc_sweep_run(&(struct alloc_sweep){.name = "open and change a folder",
                                          .prepare = make_folder,
                                          .run = open_folder,
                                          .verify = look_into_folder},
                    &text);
    alloc_sweep_run(
        &(struct alloc_sweep){.name = "recover", .prepare = make_folder, .run = recover}, &text);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_images),
        cmocka_unit_test(test_disk_folders),
    };

    return cmocka_run_group_tests(tests, make_images, qemu_teardown);
}
