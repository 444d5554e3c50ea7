/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Every allocation of the engine's reading side, of check, repair and seal fails once.  What comes
 * back all the same is what comes back when none fails.
 */
#include "alloc_fail.h"
#include "qemu.h"

#include <fcntl.h>

#include "bytes.h"
#include "chain_read.h"
#include "checked.h"
#include "manifest.h"
#include "qcow2.h"
#include "qcow2_backing.h"
#include "qcow2_check.h"
#include "qcow2_image.h"
#include "seal.h"

#define SIZE ((uint64_t)40 << 20) /* two slices */

/* -- Images ------------------------------------------------------------------------------------ */

static struct source *sources[3]; /* a chain, base first */
static struct digest digests[3];

/* base: deflate, snapshots, bitmaps; middle: subclusters and zeros; top: zstd. */
static int make_images(void **state)
{
    if (qemu_setup(state) != 0)
        return -1;
    sh("qemu-img create -q -f qcow2 -o cluster_size=64k image0 40M;"
       "qemu-io -c 'write -q -c -P 1 0 64k' image0; qemu-io -c 'write -q -c -P 2 64k 64k' image0;"
       "qemu-io -c 'write -q -P 3 1M 300k' -c 'write -q -P 4 36M 64k' -c 'write -q -z 2M 1M' "
       "image0;"
       "qemu-img bitmap --add -g 64k image0 dirty; qemu-img snapshot -c one image0;"
       "qemu-io -c 'write -q -P 5 1M 64k' image0; qemu-img snapshot -c two image0");
    sh("qemu-img create -q -f qcow2 -o extended_l2=on,cluster_size=128k image1 40M;"
       "qemu-io -c 'write -q -P 6 5M 12k' -c 'write -q -z 1M 8k' -c 'write -q -P 7 33M 4k' image1");
    sh("qemu-img create -q -f qcow2 -o compression_type=zstd image2 40M;"
       "qemu-io -c 'write -q -c -P 8 128k 64k' image2; qemu-io -c 'write -q -P 9 7M 100k' image2");
    for (uint32_t i = 0; i < 3; i++) {
        char name[16];

        snprintf(name, sizeof(name), "image%u", i);
        if (source_open_file(name, NULL, &sources[i], NULL) != CAIRN_OK)
            return -1;
        digest_of(&i, sizeof(i), &digests[i]);
    }
    return 0;
}

static int drop_images(void **state)
{
    for (size_t i = 0; i < 3; i++)
        source_free(sources[i]);
    return qemu_teardown(state);
}

static void load(const char *path, void *buf, size_t len)
{
    int fd = open(path, O_RDONLY);

    assert_int_equal(pread(fd, buf, len, 0), len);
    close(fd);
}

static void copy_file(const char *from)
{
    size_t len;
    uint8_t *bytes = load_file(from, &len);
    int fd = open("copy", O_WRONLY | O_CREAT | O_TRUNC, 0600);

    assert_int_equal(write(fd, bytes, len), len);
    close(fd);
    free(bytes);
}

/* -- Results ----------------------------------------------------------------------------------- */

/* A digest of whatever a run gave, to compare with that of the first. */
struct outcome {
    struct digest first, now;
    bool has_first;
    uint64_t sum; /* of the run under way */
};

static void begin(void *arg)
{
    ((struct outcome *)arg)->sum = 0;
}

static void mix(struct outcome *out, const void *bytes, size_t len)
{
    for (size_t i = 0; i < len; i++)
        out->sum = out->sum * 1099511628211U + ((const uint8_t *)bytes)[i];
}

static void mix_number(struct outcome *out, uint64_t number)
{
    mix(out, &number, sizeof(number));
}

static void compare(void *arg, int code)
{
    struct outcome *out = arg;

    if (code != CAIRN_OK)
        return;
    digest_of(&out->sum, sizeof(out->sum), &out->now);
    if (!out->has_first)
        out->first = out->now;
    out->has_first = true;
    if (!digest_equal(&out->first, &out->now))
        fail_msg("it succeeded and gave something else");
}

static void sweep(const char *name, int (*run)(void *arg, struct cairn_error *err))
{
    struct outcome out = {.has_first = false};

    alloc_sweep_run(
        &(struct alloc_sweep){.name = name, .prepare = begin, .run = run, .verify = compare}, &out);
}

static int take_extent(void *arg, const struct extent *e, struct cairn_error *err)
{
    (void)err;
    mix_number(arg, e->guest_off);
    mix_number(arg, e->len);
    mix_number(arg, e->host_off);
    mix_number(arg, e->kind);
    mix_number(arg, e->layer);
    return CAIRN_OK;
}

/* -- Images and layers ------------------------------------------------------------------------- */

static int open_file(void *arg, struct cairn_error *err)
{
    CLEANUP(source_free_p) struct source *src = NULL;
    int ret = source_open_file("image0", "a name", &src, err);

    if (ret == CAIRN_OK)
        mix_number(arg, src->size);
    return ret;
}

static int describe(void *arg, struct cairn_error *err)
{
    CLEANUP(qcow2_image_free_p) struct qcow2_image *image = NULL;
    const struct qcow2_snapshot *snapshots;
    const struct qcow2_bitmap *bitmaps;
    uint32_t nr_snapshots, nr_bitmaps;
    int ret = qcow2_image_open(sources[0], QCOW2_OPEN_INFO, &image, err);

    if (ret == CAIRN_OK)
        ret = qcow2_image_snapshots(image, &snapshots, &nr_snapshots, err);
    if (ret == CAIRN_OK)
        ret = qcow2_image_bitmaps(image, &bitmaps, &nr_bitmaps, err);
    if (ret != CAIRN_OK)
        return ret;
    for (uint32_t i = 0; i < nr_snapshots; i++)
        mix(arg, snapshots[i].name, strlen(snapshots[i].name));
    for (uint32_t i = 0; i < nr_bitmaps; i++)
        mix(arg, bitmaps[i].name, strlen(bitmaps[i].name));
    return CAIRN_OK;
}

static int scan(void *arg, struct source *src, const char *snapshot, struct cairn_error *err)
{
    CLEANUP(layer_free_p) struct layer *layer = NULL;
    int ret = snapshot ? layer_find_snapshot(src, LAYER_QCOW2, snapshot, &layer, err)
                       : layer_open(src, LAYER_QCOW2, &layer, err);

    return ret == CAIRN_OK ? layer_scan(layer, take_extent, arg, err) : ret;
}

static int scan_each(void *arg, struct cairn_error *err)
{
    int ret = CAIRN_OK;

    for (size_t i = 0; ret == CAIRN_OK && i < 3; i++)
        ret = scan(arg, sources[i], NULL, err);
    return ret == CAIRN_OK ? scan(arg, sources[0], "one", err) : ret;
}

static int take_dirty(void *arg, uint64_t guest_off, uint64_t len, struct cairn_error *err)
{
    (void)err;
    mix_number(arg, guest_off);
    mix_number(arg, len);
    return CAIRN_OK;
}

static int scan_bitmap(void *arg, struct cairn_error *err)
{
    CLEANUP(qcow2_image_free_p) struct qcow2_image *image = NULL;
    uint32_t index;
    int ret = qcow2_image_open(sources[0], 0, &image, err);

    if (ret == CAIRN_OK)
        ret = qcow2_bitmap_find(image, "dirty", &index, err);
    return ret == CAIRN_OK ? qcow2_bitmap_scan(image, index, take_dirty, arg, err) : ret;
}

static void test_images_and_layers(void **state)
{
    (void)state;
    sweep("open a file", open_file);
    sweep("describe an image", describe);
    sweep("scan layers", scan_each);
    sweep("scan a bitmap", scan_bitmap);
}

/* -- Chains ------------------------------------------------------------------------------------ */

#define NR_SLICES 2

struct chain {
    struct index_l1 *l1s[3];
    struct index_slice *slices[3][NR_SLICES]; /* by the prefix that made them */
    uint32_t depth;
};

static int get_slice(void *ctx, uint32_t ordinal, uint32_t slice, struct index_slice **ret_slice,
                     struct cairn_error *err)
{
    const struct chain *chain = ctx;

    (void)err;
    *ret_slice = index_slice_ref(chain->slices[ordinal][slice]);
    return CAIRN_OK;
}

static int keep_slice(void *arg, uint32_t slice_nr, struct index_slice *slice,
                      struct cairn_error *err)
{
    struct chain *chain = arg;

    (void)err;
    chain->slices[chain->depth][slice_nr] = index_slice_ref(slice);
    return CAIRN_OK;
}

static struct index_slices slices_of(const struct chain *chain)
{
    return (struct index_slices){get_slice, (void *)(uintptr_t)chain};
}

static struct index_l1 *top_of(const struct chain *chain)
{
    return chain->l1s[chain->depth - 1];
}

static void release_chain(struct chain *chain)
{
    for (size_t i = 0; i < 3; i++) {
        index_l1_unref(chain->l1s[i]);
        for (size_t s = 0; s < NR_SLICES; s++)
            index_slice_unref(chain->slices[i][s]);
    }
}

static int add_layer(struct chain *chain, uint32_t i, struct cairn_error *err)
{
    const struct index_slices slices = slices_of(chain);
    CLEANUP(layer_free_p) struct layer *layer = NULL;
    int ret = layer_open(sources[i], LAYER_QCOW2, &layer, err);

    if (ret == CAIRN_OK)
        ret = chain_index_build(i > 0 ? top_of(chain) : NULL, &slices, layer, &digests[i],
                                keep_slice, chain, &chain->l1s[i], err);
    chain->depth += ret == CAIRN_OK;
    return ret;
}

static int build(struct chain *chain, struct cairn_error *err)
{
    int ret = CAIRN_OK;

    for (uint32_t i = 0; ret == CAIRN_OK && i < 3; i++)
        ret = add_layer(chain, i, err);
    return ret;
}

static int map_all(struct outcome *out, const struct index_l1 *l1,
                   const struct index_slices *slices, struct cairn_error *err)
{
    for (uint64_t at = 0; at < SIZE;) {
        struct extent e;
        size_t nr;
        int ret = chain_map(l1, slices, at, SIZE - at, &e, 1, &nr, err);

        if (ret != CAIRN_OK)
            return ret;
        take_extent(out, &e, NULL);
        at = e.guest_off + e.len;
    }
    return CAIRN_OK;
}

static int build_and_map(void *arg, struct cairn_error *err)
{
    CLEANUP(release_chain) struct chain chain = {.depth = 0};
    const struct index_slices slices = slices_of(&chain);
    int ret = build(&chain, err);

    return ret == CAIRN_OK ? map_all(arg, top_of(&chain), &slices, err) : ret;
}

static struct chain whole; /* built once, for what only reads */

static int read_blob(void *ctx, uint32_t layer, void *buf, size_t len, uint64_t host_off,
                     struct cairn_error *err)
{
    (void)ctx;
    return source_pread_padded(sources[layer], buf, len, host_off, err);
}

/* The second read finds clusters in the cache, if there was memory for it. */
static int read_content(void *arg, struct cairn_error *err)
{
    static uint8_t buf[256 << 10];
    CLEANUP(cluster_cache_free_p) struct cluster_cache *cache = NULL;
    struct chain_reader reader = {
        .l1 = top_of(&whole),
        .slices = slices_of(&whole),
        .blobs = {.pread = read_blob},
        .layers = digests,
    };
    int ret = cluster_cache_new(1 << 20, &cache, err);

    reader.cache = cache;
    for (int i = 0; ret == CAIRN_OK && i < 2; i++) {
        ret = chain_read(&reader, buf, sizeof(buf), 1000, err);
        if (ret == CAIRN_OK)
            mix(arg, buf, sizeof(buf));
    }
    return ret;
}

static int look_up(void *arg, struct cairn_error *err)
{
    static const uint64_t offs[] = {0, SIZE - 512, 5 << 20, 130 << 10};
    const struct index_slices slices = slices_of(&whole);
    CLEANUP(chain_index_free_p) struct chain_index *index = NULL;
    struct extent found[4];
    int ret = chain_index_new(top_of(&whole), &slices, 1 << 20, &index, err);

    if (ret == CAIRN_OK)
        ret = chain_index_lookup(index, 7 << 20, &found[0], err);
    if (ret == CAIRN_OK)
        take_extent(arg, &found[0], NULL);
    if (ret == CAIRN_OK)
        ret = chain_index_lookup_many(index, offs, 4, found, err);
    for (size_t i = 0; ret == CAIRN_OK && i < 4; i++)
        take_extent(arg, &found[i], NULL);
    return ret;
}

static int write_container(struct index_writer *w, void **ret_buf, size_t *ret_len,
                           struct cairn_error *err)
{
    const struct index_l1 *l1 = top_of(&whole);
    int ret = CAIRN_OK;

    for (uint32_t s = 0; ret == CAIRN_OK && s < NR_SLICES; s++)
        ret = index_writer_add(w, s, l1->slices[s], &whole.l1s[l1->slices[s]]->chain_id,
                               whole.slices[l1->slices[s]][s], err);
    return ret == CAIRN_OK ? index_writer_finish(w, l1, ret_buf, ret_len, err) : ret;
}

static int read_container(struct outcome *out, const void *buf, size_t len, struct cairn_error *err)
{
    const struct index_l1 *l1 = top_of(&whole);
    CLEANUP(source_free_p) struct source *src = NULL;
    CLEANUP(index_reader_free_p) struct index_reader *reader = NULL;
    int ret = source_from_memory(buf, len, "a container", &src, err);

    if (ret == CAIRN_OK)
        ret = index_reader_open(src, &l1->chain_id, &reader, err);
    for (uint32_t s = 0; ret == CAIRN_OK && s < NR_SLICES; s++) {
        CLEANUP(index_slice_unref_p) struct index_slice *slice = NULL;

        ret = index_reader_slice(reader, s, l1->slices[s], &whole.l1s[l1->slices[s]]->chain_id,
                                 &slice, err);
        if (ret == CAIRN_OK)
            mix_number(out, slice->nr_extents);
    }
    return ret;
}

static int encode_and_decode(void *arg, struct cairn_error *err)
{
    CLEANUP(index_writer_free_p) struct index_writer *w = NULL;
    CLEANUP_FREE void *buf = NULL;
    size_t len;
    int ret = index_writer_new(&w, err);

    if (ret == CAIRN_OK)
        ret = write_container(w, &buf, &len, err);
    if (ret != CAIRN_OK)
        return ret;
    mix(arg, buf, len);
    return read_container(arg, buf, len, err);
}

static int make_manifest(void *arg, struct cairn_error *err)
{
    const struct manifest_layer layers[] = {{digests[0], 512, LAYER_RAW},
                                            {digests[1], 1024, LAYER_QCOW2}};
    CLEANUP(manifest_free_p) struct manifest *m = NULL, *back = NULL;
    CLEANUP_FREE char *json = NULL;
    size_t len;
    int ret = manifest_new(layers, 2, &m, err);

    if (ret == CAIRN_OK)
        ret = manifest_encode(m, &json, &len, err);
    if (ret == CAIRN_OK)
        ret = manifest_parse(json, len, &back, err);
    if (ret != CAIRN_OK)
        return ret;
    mix(arg, json, len);
    mix(arg, &back->chain_ids[1], sizeof(back->chain_ids[1]));
    return CAIRN_OK;
}

static void test_chains(void **state)
{
    (void)state;
    sweep("build and map a chain", build_and_map);
    assert_int_equal(build(&whole, NULL), CAIRN_OK);
    sweep("read a chain", read_content);
    sweep("look up", look_up);
    sweep("encode and decode an index", encode_and_decode);
    sweep("a manifest", make_manifest);
    release_chain(&whole);
}

/* -- Check, repair, seal ----------------------------------------------------------------------- */

static int check(void *arg, struct cairn_error *err)
{
    CLEANUP(qcow2_check_free_p) struct qcow2_check *c = NULL;
    int ret = qcow2_check_new(sources[0], NULL, &c, err);

    if (ret == CAIRN_OK)
        mix(arg, qcow2_check_get_result(c), sizeof(struct qcow2_check_result));
    return ret;
}

static uint64_t get(int fd, uint64_t host_off)
{
    uint8_t bytes[8];

    assert_int_equal(pread(fd, bytes, 8, (off_t)host_off), 8);
    return bytes_get_be64(bytes);
}

static void put(int fd, uint64_t host_off, const void *bytes, size_t len)
{
    assert_int_equal(pwrite(fd, bytes, len, (off_t)host_off), len);
}

static void free_header(int fd)
{
    put(fd, get(fd, get(fd, QCOW2_HDR_REFCOUNT_TABLE_OFFSET)), "\0\0", 2);
}

static void leak_one(int fd)
{
    put(fd, get(fd, get(fd, QCOW2_HDR_REFCOUNT_TABLE_OFFSET)) + 2000, "\0\1", 2);
}

static void lose_refcounts(int fd)
{
    put(fd, get(fd, QCOW2_HDR_REFCOUNT_TABLE_OFFSET), "\0\0\0\0\0\0\0\0", 8);
}

struct damage {
    void (*poke)(int fd);
    enum qcow2_repair_mode mode;
};

static void damage_copy(void *arg)
{
    const struct damage *damage = arg;
    int fd;

    copy_file("image0");
    fd = open("copy", O_RDWR);
    assert_int_equal(ftruncate(fd, 70 << 20), 0); /* so that there is a cluster to leak */
    damage->poke(fd);
    close(fd);
}

static int open_copy(struct hostfile *file, struct source **ret_src, struct cairn_error *err)
{
    int ret = hostfile_init(file, open("copy", O_RDWR | O_CLOEXEC), "copy", err);

    return ret == CAIRN_OK ? source_open_file("copy", NULL, ret_src, err) : ret;
}

static int repair(void *arg, struct cairn_error *err)
{
    const struct damage *damage = arg;
    CLEANUP(hostfile_release) struct hostfile file = {.fd = -1};
    CLEANUP(source_free_p) struct source *src = NULL;
    CLEANUP(qcow2_check_free_p) struct qcow2_check *c = NULL;
    int ret = open_copy(&file, &src, err);

    if (ret == CAIRN_OK)
        ret = qcow2_check_new(src, NULL, &c, err);
    return ret == CAIRN_OK ? qcow2_repair(c, &file, damage->mode, err) : ret;
}

/* Whatever was done before, a second repair leaves nothing to complain about. */
static void repair_again(void *arg, int code)
{
    CLEANUP(source_free_p) struct source *src = NULL;
    CLEANUP(qcow2_check_free_p) struct qcow2_check *c = NULL;
    const struct qcow2_check_result *result;

    if (code != CAIRN_OK)
        assert_int_equal(repair(arg, NULL), CAIRN_OK);
    assert_int_equal(source_open_file("copy", NULL, &src, NULL), CAIRN_OK);
    assert_int_equal(qcow2_check_new(src, NULL, &c, NULL), CAIRN_OK);
    result = qcow2_check_get_result(c);
    assert_int_equal(result->leaks + result->corruptions + result->check_errors, 0);
}

static void sweep_repair(const char *name, void (*poke)(int fd), enum qcow2_repair_mode mode)
{
    struct damage damage = {.poke = poke, .mode = mode};

    alloc_sweep_run(
        &(struct alloc_sweep){
            .name = name, .prepare = damage_copy, .run = repair, .verify = repair_again},
        &damage);
    sh("qemu-img check -q copy && qemu-img compare -q copy image0");
}

static int set_backing(void *arg, struct cairn_error *err)
{
    CLEANUP_CLOSE int fd = open("copy", O_RDWR | O_CLOEXEC);

    (void)arg;
    return qcow2_set_backing(fd, "copy", "another.raw", LAYER_RAW, NULL, err);
}

static void copy_middle(void *arg)
{
    begin(arg);
    copy_file("image1");
}

/* The file is as it was, or has its new name. */
static void check_backing(void *arg, int code)
{
    static uint8_t before[1 << 16], after[1 << 16];

    (void)arg;
    load("image1", before, sizeof(before));
    load("copy", after, sizeof(after));
    assert_int_equal(memcmp(before, after, sizeof(after)) == 0, code != CAIRN_OK);
}

struct sealing {
    struct outcome out;
    struct seal_options options;
};

static int seal(void *arg, struct cairn_error *err)
{
    const struct sealing *sealing = arg;
    CLEANUP(hostfile_release) struct hostfile out = {.fd = -1};
    struct seal_result result;
    int fd = open("sealed", O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    int ret = hostfile_init(&out, fd, "sealed", err);

    return ret == CAIRN_OK ? seal_image(sources[0], &out, &sealing->options, &result, err) : ret;
}

static void compare_sealed(void *arg, int code)
{
    struct sealing *sealing = arg;
    uint8_t *bytes;
    size_t len;

    if (code != CAIRN_OK)
        return;
    bytes = load_file("sealed", &len);
    begin(&sealing->out);
    mix(&sealing->out, bytes, len);
    compare(&sealing->out, code);
    free(bytes);
}

static void sweep_seal(const char *name, enum seal_compression compression, unsigned nr_threads)
{
    struct sealing sealing = {.options = {.compression = compression, .nr_threads = nr_threads}};

    alloc_sweep_run(&(struct alloc_sweep){.name = name, .run = seal, .verify = compare_sealed},
                    &sealing);
}

static void test_check_and_repair(void **state)
{
    struct outcome out = {.has_first = false};

    (void)state;
    sweep("check", check);
    sweep_repair("free leaks", leak_one, QCOW2_REPAIR_LEAKS);
    sweep_repair("raise refcounts", free_header, QCOW2_REPAIR_ALL);
    sweep_repair("rebuild refcounts", lose_refcounts, QCOW2_REPAIR_ALL);
    alloc_sweep_run(&(struct alloc_sweep){.name = "change the backing name",
                                          .prepare = copy_middle,
                                          .run = set_backing,
                                          .verify = check_backing},
                    &out);
}

static void test_seal(void **state)
{
    (void)state;
    sweep_seal("seal", SEAL_UNCOMPRESSED, 1);
    sweep_seal("seal with zlib", SEAL_ZLIB, 1);
    sweep_seal("seal with zstd", SEAL_ZSTD, 1);
    sweep_seal("seal in two threads", SEAL_ZSTD, 2);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_images_and_layers),
        cmocka_unit_test(test_chains),
        cmocka_unit_test(test_check_and_repair),
        cmocka_unit_test(test_seal),
    };

    return cmocka_run_group_tests(tests, make_images, drop_images);
}
