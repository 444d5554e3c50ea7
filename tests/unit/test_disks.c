/* SPDX-License-Identifier: Apache-2.0 */
/* Publishing chains that QEMU made, and reading them back, also when their index objects are gone
 * or bad.  The oracle for content is qemu-img convert. */
#include "qemu.h"

#include <fcntl.h>
#include <inttypes.h>
#include <pthread.h>
#include <sys/stat.h>

#include "bytes.h"
#include "disks_internal.h"
#include "registry.h"

#define DEPTH_MAX 64
#define MIB       ((uint64_t)1 << 20)

struct fixture {
    char dir[32]; /* of the store, in the group's folder */
    struct store *store;
    struct disks *disks;
    struct disks_options options;
    uint32_t depth;
    struct manifest_layer layers[DEPTH_MAX];
};

static struct cairn_error err;

#define assert_ok(expr)                                                                            \
    do {                                                                                           \
        int code_ = (expr);                                                                        \
        if (code_ != CAIRN_OK)                                                                     \
            fail_msg("%s: %s", error_code_name(code_), err.message);                               \
    } while (0)

#define assert_fails(expr, code, text)                                                             \
    do {                                                                                           \
        assert_int_equal(expr, code);                                                              \
        if (!strstr(err.message, text))                                                            \
            fail_msg("message is: %s", err.message);                                               \
    } while (0)

static int setup(void **state)
{
    static unsigned nr;
    struct fixture *f = calloc(1, sizeof(*f));
    char url[sizeof(qemu_folder) + 80];

    assert_non_null(f);
    snprintf(f->dir, sizeof(f->dir), "store%u", nr++);
    snprintf(url, sizeof(url), "fs:%s/%s", qemu_folder, f->dir);
    assert_ok(store_open(url, &f->store, &err));
    f->options = (struct disks_options){
        .meta_cache_bytes = 4 * MIB,
        .cluster_cache_bytes = MIB,
        .max_virtual_size = CHAIN_VIRTUAL_SIZE_MAX,
        .max_depth = CHAIN_DEPTH_MAX,
    };
    assert_ok(disks_new(f->store, &f->options, &f->disks, &err));
    *state = f;
    return 0;
}

static int teardown(void **state)
{
    struct fixture *f = *state;

    disks_free(f->disks);
    store_close(f->store);
    free(f);
    return 0;
}

/* A server that starts: nothing is in memory. */
static void restart(struct fixture *f)
{
    disks_free(f->disks);
    assert_ok(disks_new(f->store, &f->options, &f->disks, &err));
}

/* -- Chains ----------------------------------------------------------------------------------- */

/* Put a file's bytes into the store as the chain's next layer. */
static void push_layer(struct fixture *f, const char *file, enum layer_format format)
{
    struct manifest_layer *layer = &f->layers[f->depth++];
    char key[REGISTRY_KEY_MAX];
    size_t len;
    uint8_t *bytes = load_file(file, &len);

    assert_true(f->depth <= DEPTH_MAX);
    *layer = (struct manifest_layer){.size = len, .format = format};
    digest_of(bytes, len, &layer->digest);
    assert_ok(store_put(f->store, registry_blob_key(&layer->digest, key), bytes, len,
                        STORE_PUT_REPLACE, &err));
    free(bytes);
}

static struct manifest *make_manifest(const struct fixture *f, uint32_t depth)
{
    struct manifest *m;

    assert_ok(manifest_new(f->layers, depth, &m, &err));
    return m;
}

static int publish(const struct fixture *f, uint32_t depth)
{
    CLEANUP(manifest_free_p) struct manifest *m = make_manifest(f, depth);

    return disks_publish(f->disks, m, &err);
}

/*
 * A chain of `depth` qcow2 files l0, l1, … of 200 MiB: each layer writes a cluster of its own and
 * one that all write, and every third a piece of the last slice.
 */
static void make_chain(struct fixture *f, uint32_t depth)
{
    char file[16];

    sh("qemu-img create -f qcow2 l0 200M");
    for (uint32_t i = 0; i < depth; i++) {
        if (i > 0)
            sh("qemu-img create -u -f qcow2 -F qcow2 -b l%u l%u 200M", i - 1, i);
        sh("qemu-io -f qcow2 -c 'write -P %u %u 64k' -c 'write -P %u 64M 128k' %s l%u", i + 1,
           i * 3 * 65536, i + 101, i % 3 == 0 ? "-c 'write -z 199M 1M'" : "", i);
        snprintf(file, sizeof(file), "l%u", i);
        push_layer(f, file, LAYER_QCOW2);
    }
}

static uint64_t nr_builds(const struct fixture *f)
{
    struct metacache_stats stats;

    metacache_get_stats(f->disks->meta, &stats);
    return stats.builds;
}

/* -- Reading ---------------------------------------------------------------------------------- */

/* The disk, as a request would open it, but without a repository. */
static int open_chain(struct disks *disks, struct manifest *m, struct disk *disk,
                      struct cairn_error *e)
{
    *disk = (struct disk){
        .disks = disks,
        .manifest = m,
        .chain = {.depth = m->depth, .chain_ids = m->chain_ids, .layers = m->layers},
    };
    disk->layers = calloc(m->depth, sizeof(*disk->layers));
    for (uint32_t i = 0; i < m->depth; i++)
        disk->layers[i] = m->layers[i].digest;
    return metacache_l1(disks->meta, &disk->chain, m->depth - 1, &disk->l1, e);
}

static void close_chain(struct disk *disk)
{
    index_l1_unref(disk->l1);
    free(disk->layers);
}

/* Read the whole disk in odd pieces and compare it with the raw file. */
static int compare_with(struct disk *disk, const uint8_t *expected, size_t len,
                        struct cairn_error *e)
{
    struct chain_reader reader = disk_reader(disk);
    uint8_t *piece = malloc(MIB);
    int code = CAIRN_OK;

    if (disk->l1->virtual_size != len)
        code = error_set(e, CAIRN_E_CORRUPT, "size %" PRIu64, disk->l1->virtual_size);
    for (size_t off = 0, n; code == CAIRN_OK && off < len; off += n) {
        n = len - off < 999983 ? len - off : 999983;
        code = chain_read(&reader, piece, n, off, e);
        if (code == CAIRN_OK && memcmp(piece, expected + off, n) != 0)
            code = error_set(e, CAIRN_E_CORRUPT, "wrong bytes in %zu+%zu", off, n);
    }
    free(piece);
    return code;
}

static int read_and_compare(struct disks *disks, struct manifest *m, const uint8_t *expected,
                            size_t len, struct cairn_error *e)
{
    struct disk disk;
    int code = open_chain(disks, m, &disk, e);

    if (code == CAIRN_OK)
        code = compare_with(&disk, expected, len, e);
    close_chain(&disk);
    return code;
}

/* The first depth layers read as qemu-img reads the file. */
static void assert_reads_as(const struct fixture *f, uint32_t depth, const char *file,
                            const char *format)
{
    CLEANUP(manifest_free_p) struct manifest *m = make_manifest(f, depth);
    CLEANUP_FREE uint8_t *expected = NULL;
    size_t len;

    sh("qemu-img convert -f %s -O raw %s oracle.raw", format, file);
    expected = load_file("oracle.raw", &len);
    assert_ok(read_and_compare(f->disks, m, expected, len, &err));
}

/* -- Index objects ---------------------------------------------------------------------------- */

static void object_path(const struct fixture *f, uint32_t ordinal, char path[256])
{
    CLEANUP(manifest_free_p) struct manifest *m = make_manifest(f, ordinal + 1);
    char hex[DIGEST_HEX_LEN + 1];

    digest_format_hex(&m->chain_ids[ordinal], hex);
    snprintf(path, 256, "%s/index/%.2s/%s", f->dir, hex, hex);
}

static void remove_object(const struct fixture *f, uint32_t ordinal)
{
    char path[256];

    object_path(f, ordinal, path);
    assert_int_equal(unlink(path), 0);
}

/* Turn over one byte at `at` per mille of the object. */
static void damage_object(const struct fixture *f, uint32_t ordinal, unsigned at)
{
    char path[256];
    size_t len;
    uint8_t *bytes;
    FILE *file;

    object_path(f, ordinal, path);
    bytes = load_file(path, &len);
    bytes[len * at / 1000] ^= 0x55;
    assert_int_equal(unlink(path), 0);
    file = fopen(path, "wb");
    assert_non_null(file);
    assert_int_equal(fwrite(bytes, 1, len, file), len);
    assert_int_equal(fclose(file), 0);
    free(bytes);
}

static void cut_object(const struct fixture *f, uint32_t ordinal, unsigned at)
{
    char path[256];
    struct stat st;

    object_path(f, ordinal, path);
    assert_int_equal(stat(path, &st), 0);
    assert_int_equal(chmod(path, 0600), 0);
    assert_int_equal(truncate(path, st.st_size * at / 1000), 0);
}

/* -- Publishing ------------------------------------------------------------------------------- */

static void test_published_chain_reads_as_qemu_says(void **state)
{
    struct fixture *f = *state;

    make_chain(f, 6);
    assert_ok(publish(f, 6));
    assert_reads_as(f, 6, "l5", "qcow2");
    restart(f);
    assert_reads_as(f, 6, "l5", "qcow2");
    assert_int_equal(nr_builds(f), 0);
}

static void test_every_prefix_is_stored(void **state)
{
    struct fixture *f = *state;

    make_chain(f, 5);
    assert_ok(publish(f, 5));
    restart(f);
    for (uint32_t i = 0; i < 5; i++) {
        char file[] = {'l', (char)('0' + i), 0};

        assert_reads_as(f, i + 1, file, "qcow2");
    }
    assert_int_equal(nr_builds(f), 0);
}

static void test_raw_base_and_sizes_that_change(void **state)
{
    struct fixture *f = *state;

    sh("head -c 5000000 /dev/urandom >base.raw");
    sh("qemu-img create -u -f qcow2 -F raw -b base.raw short 3145728");
    sh("qemu-img create -u -f qcow2 -F qcow2 -b short long 90M");
    sh("qemu-io -f qcow2 -c 'write -P 7 1M 64k' short");
    sh("qemu-io -f qcow2 -c 'write -P 8 80M 64k' long");
    push_layer(f, "base.raw", LAYER_RAW);
    push_layer(f, "short", LAYER_QCOW2);
    push_layer(f, "long", LAYER_QCOW2);
    assert_ok(publish(f, 3));
    assert_reads_as(f, 3, "long", "qcow2");
    assert_reads_as(f, 2, "short", "qcow2");
    assert_reads_as(f, 1, "base.raw", "raw");
}

static uint32_t random_below(uint32_t *x, uint32_t n)
{
    *x = *x * 1664525 + 1013904223;
    return (uint32_t)((uint64_t)*x * n >> 32);
}

/* One more layer of a random shape over the one before, with normal, zero and compressed writes. */
static void make_random_layer(struct fixture *f, uint32_t *x)
{
    static const char *const options[] = {
        "cluster_size=64k",
        "cluster_size=512",
        "cluster_size=2M",
        "cluster_size=64k,extended_l2=on",
        "cluster_size=4k,compression_type=zstd",
        "compat=0.10",
    };
    char file[16], backing[32] = "";
    uint32_t i = f->depth;

    snprintf(file, sizeof(file), "r%u", i);
    if (i > 0)
        snprintf(backing, sizeof(backing), "-F qcow2 -b r%u", i - 1);
    sh("qemu-img create -u -f qcow2 -o %s %s %s %uM", options[random_below(x, 6)], backing, file,
       40 + random_below(x, 60));
    sh("qemu-io -f qcow2 -c 'write -P %u %u %u' -c 'write -z %u 131072' %s", i + 1,
       random_below(x, 60000) * 512, random_below(x, 9000) * 512 + 512,
       random_below(x, 60000) * 512, file);
    sh("qemu-io -f qcow2 -c 'write -c -P %u 36M 2M' %s", i + 50, file);
    push_layer(f, file, LAYER_QCOW2);
}

static void test_random_chains_read_as_qemu_says(void **state)
{
    struct fixture *f = *state;

    for (uint32_t seed = 1; seed <= 6; seed++) {
        uint32_t x = seed;

        f->depth = 0;
        for (uint32_t i = 0; i < 4; i++)
            make_random_layer(f, &x);
        assert_ok(publish(f, 4));
        assert_reads_as(f, 4, "r3", "qcow2");
    }
}

static void test_publishing_again_builds_nothing(void **state)
{
    struct fixture *f = *state;

    make_chain(f, 3);
    assert_ok(publish(f, 3));
    assert_int_equal(nr_builds(f), 3);
    assert_ok(publish(f, 3));
    assert_ok(publish(f, 2));
    assert_int_equal(nr_builds(f), 3);
}

static void test_one_more_layer_is_one_build_and_shares_slices(void **state)
{
    struct fixture *f = *state;
    CLEANUP(manifest_free_p) struct manifest *m = NULL;
    struct disk disk;

    make_chain(f, 5);
    assert_ok(publish(f, 4));
    restart(f);
    assert_ok(publish(f, 5));
    assert_int_equal(nr_builds(f), 1);
    m = make_manifest(f, 5);
    assert_ok(open_chain(f->disks, m, &disk, &err));
    assert_int_equal(disk.l1->nr_slices, 7);
    assert_int_equal(disk.l1->slices[0], 4); /* all layers write into slice 0 … */
    assert_int_equal(disk.l1->slices[2], 4);
    assert_int_equal(disk.l1->slices[6], 3);              /* … every third into slice 6, … */
    assert_int_equal(disk.l1->slices[5], INDEX_NO_SLICE); /* … and none into slice 5 */
    close_chain(&disk);
}

static void test_stored_prefixes_are_found(void **state)
{
    struct fixture *f = *state;
    CLEANUP(manifest_free_p) struct manifest *m = NULL;
    struct meta_chain chain;
    uint32_t nr;

    make_chain(f, 9);
    assert_ok(publish(f, 9));
    m = make_manifest(f, 9);
    chain = (struct meta_chain){9, m->chain_ids, m->layers};
    for (uint32_t stored = 9;; stored--) {
        assert_ok(metacache_nr_stored(f->disks->meta, &chain, &nr, &err));
        assert_int_equal(nr, stored);
        if (stored == 0)
            break;
        remove_object(f, stored - 1);
    }
}

/* -- Refusals --------------------------------------------------------------------------------- */

/* Write the header extension of an active layer that was started on chain_id behind the header of
 * an image without others of use. */
static void record_parent(const char *file, const struct digest *chain_id)
{
    uint8_t ext[8 + 72 + 8] = {0};
    uint8_t header_length[4];
    char text[DIGEST_STR_MAX];
    int fd = open(file, O_RDWR | O_CLOEXEC);

    assert_true(fd >= 0);
    assert_int_equal(pread(fd, header_length, 4, 100), 4);
    bytes_put_be32(ext, 0x434e5250);
    bytes_put_be32(ext + 4, 71);
    memcpy(ext + 8, digest_format(chain_id, text), 71);
    assert_int_equal(pwrite(fd, ext, sizeof(ext), bytes_get_be32(header_length)), sizeof(ext));
    close(fd);
}

/* Two layers, the second with a recorded parent; returns the chain ID of the first. */
static void make_recorded(struct fixture *f, const struct digest *parent)
{
    sh("qemu-img create -f qcow2 base 10M");
    sh("qemu-io -f qcow2 -c 'write -P 1 0 64k' base");
    sh("qemu-img create -f qcow2 top 10M"); /* no backing name: it would lie where the extension
                                               goes */
    record_parent("top", parent);
    push_layer(f, "base", LAYER_QCOW2);
    push_layer(f, "top", LAYER_QCOW2);
}

static void test_recorded_parent_must_be_the_chain_below(void **state)
{
    struct fixture *f = *state;
    struct digest other;
    char text[DIGEST_STR_MAX];

    digest_of("x", 1, &other);
    make_recorded(f, &other);
    assert_fails(publish(f, 2), CAIRN_E_CONFLICT, digest_format(&other, text));
    assert_non_null(strstr(err.message, digest_format(&f->layers[0].digest, text)));
    assert_non_null(strstr(err.message, digest_format(&f->layers[1].digest, text)));
}

static void test_recorded_parent_that_is_the_chain_below(void **state)
{
    struct fixture *f = *state;
    struct digest other;

    digest_of("x", 1, &other);
    make_recorded(f, &other);
    f->depth = 1;
    record_parent("top", &f->layers[0].digest);
    push_layer(f, "top", LAYER_QCOW2);
    assert_ok(publish(f, 2));
}

static void test_a_rebase_says_so(void **state)
{
    struct fixture *f = *state;
    CLEANUP(manifest_free_p) struct manifest *m = NULL;
    struct digest other;

    digest_of("x", 1, &other);
    make_recorded(f, &other);
    m = make_manifest(f, 2);
    m->has_rebased_from = true;
    m->rebased_from = f->layers[1].digest; /* another one */
    assert_int_equal(disks_publish(f->disks, m, &err), CAIRN_E_CONFLICT);
    m->rebased_from = other;
    assert_ok(disks_publish(f->disks, m, &err));
}

static void test_a_base_with_a_recorded_parent_is_refused(void **state)
{
    struct fixture *f = *state;
    struct digest other;

    digest_of("x", 1, &other);
    make_recorded(f, &other);
    f->layers[0] = f->layers[1];
    assert_fails(publish(f, 1), CAIRN_E_CONFLICT, "it is the base");
}

static void test_missing_blob(void **state)
{
    struct fixture *f = *state;
    char key[REGISTRY_KEY_MAX], text[DIGEST_STR_MAX];

    make_chain(f, 3);
    assert_ok(store_delete(f->store, registry_blob_key(&f->layers[1].digest, key), &err));
    assert_fails(publish(f, 3), CAIRN_E_NOT_FOUND, digest_format(&f->layers[1].digest, text));
    assert_ok(publish(f, 1)); /* what is below was built and stays */
    assert_int_equal(nr_builds(f), 1);
}

static void test_size_that_the_manifest_gets_wrong(void **state)
{
    struct fixture *f = *state;

    make_chain(f, 2);
    f->layers[1].size++;
    assert_fails(publish(f, 2), CAIRN_E_CORRUPT, "bytes, the blob has");
}

static void test_layer_that_is_no_qcow2(void **state)
{
    struct fixture *f = *state;

    sh("head -c 100000 /dev/urandom >noise");
    push_layer(f, "noise", LAYER_QCOW2);
    assert_fails(publish(f, 1), CAIRN_E_CORRUPT, "layer sha256:");
}

static void test_one_chain_has_one_format(void **state)
{
    struct fixture *f = *state;

    make_chain(f, 2);
    assert_ok(publish(f, 2));
    f->layers[0].format = LAYER_RAW;
    assert_fails(publish(f, 2), CAIRN_E_CONFLICT, "layers[0]: the manifest says raw");
}

static void test_limits(void **state)
{
    struct fixture *f = *state;

    make_chain(f, 3);
    f->options.max_depth = 2;
    restart(f);
    assert_fails(publish(f, 3), CAIRN_E_LIMIT, "depth 3 is above this server's limit of 2");
    f->options.max_depth = 3;
    f->options.max_virtual_size = 200 * MIB - 1;
    restart(f);
    assert_fails(publish(f, 3), CAIRN_E_LIMIT,
                 "virtual size 209715200 is above this server's limit of 209715199");
    f->options.max_virtual_size++;
    restart(f);
    assert_ok(publish(f, 3));
}

/* -- Index objects that are gone or bad ------------------------------------------------------- */

static void test_bad_objects_are_built_anew_and_replaced(void **state)
{
    struct fixture *f = *state;
    CLEANUP_FREE uint8_t *good = NULL;
    char path[256];
    size_t good_len;

    make_chain(f, 4);
    assert_ok(publish(f, 4));
    object_path(f, 3, path);
    good = load_file(path, &good_len);
    for (unsigned at = 0; at < 1000; at += 37) {
        CLEANUP_FREE uint8_t *now = NULL;
        size_t len;

        if (at % 2)
            damage_object(f, 3, at);
        else
            cut_object(f, 3, at);
        restart(f);
        assert_reads_as(f, 4, "l3", "qcow2");
        assert_int_equal(nr_builds(f), 1);
        now = load_file(path, &len);
        assert_int_equal(len, good_len);
        assert_memory_equal(now, good, len);
    }
}

static void test_index_that_is_gone_is_built_anew(void **state)
{
    struct fixture *f = *state;

    make_chain(f, 6);
    assert_ok(publish(f, 6));
    sh("rm -rf %s/index/*", f->dir);
    restart(f);
    assert_reads_as(f, 6, "l5", "qcow2");
    assert_int_equal(nr_builds(f), 6);
    restart(f);
    assert_reads_as(f, 6, "l5", "qcow2");
    assert_int_equal(nr_builds(f), 0);
}

/* Each prefix needs slices of the one below, and those are bad all the way down. */
static void test_all_objects_bad_at_their_ends(void **state)
{
    struct fixture *f = *state;

    make_chain(f, 8);
    assert_ok(publish(f, 8));
    for (uint32_t i = 0; i < 8; i++)
        damage_object(f, i, 999);
    restart(f);
    assert_reads_as(f, 8, "l7", "qcow2");
}

static void test_publishing_on_top_of_bad_objects(void **state)
{
    struct fixture *f = *state;

    make_chain(f, 6);
    assert_ok(publish(f, 5));
    remove_object(f, 1);
    damage_object(f, 0, 999);
    damage_object(f, 4, 10);
    damage_object(f, 3, 999);
    restart(f);
    assert_ok(publish(f, 6));
    assert_reads_as(f, 6, "l5", "qcow2");
}

static void test_another_chains_object_is_not_believed(void **state)
{
    struct fixture *f = *state;
    char a[256], b[256];

    make_chain(f, 4);
    assert_ok(publish(f, 4));
    object_path(f, 2, a);
    object_path(f, 3, b);
    sh("cp -f %s %s", a, b);
    restart(f);
    assert_reads_as(f, 4, "l3", "qcow2");
    assert_int_equal(nr_builds(f), 1);
}

/* What cannot be stored can be read all the same. */
static void test_reading_without_room_for_the_index(void **state)
{
    struct fixture *f = *state;

    make_chain(f, 4);
    assert_ok(publish(f, 4));
    sh("rm -rf %s/index && touch %s/index", f->dir, f->dir);
    restart(f);
    assert_reads_as(f, 4, "l3", "qcow2");
}

/* A push under the wrong media type that fails must not show in the right one after it. */
static void test_a_failed_push_leaves_nothing_to_read(void **state)
{
    struct fixture *f = *state;

    make_chain(f, 2);
    f->layers[0].format = LAYER_RAW;
    sh("mv %s/index %s/away && touch %s/index", f->dir, f->dir, f->dir);
    assert_int_not_equal(publish(f, 2), CAIRN_OK);
    sh("rm %s/index && mv %s/away %s/index", f->dir, f->dir, f->dir);
    f->layers[0].format = LAYER_QCOW2;
    assert_ok(publish(f, 2));
    assert_reads_as(f, 2, "l1", "qcow2");
}

/* Nor may what another server has stored since under the other media type: an error, not bytes. */
static void test_an_index_in_the_other_format_is_not_read(void **state)
{
    struct fixture *f = *state;
    CLEANUP(disks_free_p) struct disks *other = NULL;
    CLEANUP(manifest_free_p) struct manifest *m = NULL, *raw = NULL;
    uint8_t byte[1];
    struct disk disk;
    struct chain_reader reader;

    make_chain(f, 2);
    m = make_manifest(f, 2);
    assert_ok(publish(f, 2));
    f->options.meta_cache_bytes = 0;
    restart(f);
    assert_ok(open_chain(f->disks, m, &disk, &err));
    remove_object(f, 0);
    remove_object(f, 1);
    f->layers[0].format = LAYER_RAW;
    raw = make_manifest(f, 2);
    assert_ok(disks_new(f->store, &f->options, &other, &err));
    assert_ok(disks_publish(other, raw, &err));
    reader = disk_reader(&disk);
    assert_fails(chain_read(&reader, byte, 1, 0, &err), CAIRN_E_CONFLICT, "format");
    close_chain(&disk);
}

struct reader {
    pthread_t thread;
    struct disks *disks;
    struct manifest *m;
    const uint8_t *expected;
    size_t len;
    int code;
    struct cairn_error err;
};

static void *read_chain(void *arg)
{
    struct reader *r = arg;

    r->code = read_and_compare(r->disks, r->m, r->expected, r->len, &r->err);
    return NULL;
}

static void test_many_readers_of_a_lost_index_build_it_once(void **state)
{
    struct fixture *f = *state;
    CLEANUP(manifest_free_p) struct manifest *m = NULL;
    CLEANUP_FREE uint8_t *expected = NULL;
    struct reader readers[6];
    size_t len;

    make_chain(f, 6);
    m = make_manifest(f, 6);
    sh("qemu-img convert -f qcow2 -O raw l5 oracle.raw");
    expected = load_file("oracle.raw", &len);
    for (int i = 0; i < 6; i++) {
        readers[i] = (struct reader){.disks = f->disks, .m = m, .expected = expected, .len = len};
        assert_int_equal(pthread_create(&readers[i].thread, NULL, read_chain, &readers[i]), 0);
    }
    for (int i = 0; i < 6; i++) {
        assert_int_equal(pthread_join(readers[i].thread, NULL), 0);
        if (readers[i].code != CAIRN_OK)
            fail_msg("%s", readers[i].err.message);
    }
    assert_int_equal(nr_builds(f), 6);
}

int main(void)
{
#define TEST(fn) cmocka_unit_test_setup_teardown(fn, setup, teardown)
    const struct CMUnitTest tests[] = {
        TEST(test_published_chain_reads_as_qemu_says),
        TEST(test_every_prefix_is_stored),
        TEST(test_raw_base_and_sizes_that_change),
        TEST(test_random_chains_read_as_qemu_says),
        TEST(test_publishing_again_builds_nothing),
        TEST(test_one_more_layer_is_one_build_and_shares_slices),
        TEST(test_stored_prefixes_are_found),
        TEST(test_recorded_parent_must_be_the_chain_below),
        TEST(test_recorded_parent_that_is_the_chain_below),
        TEST(test_a_rebase_says_so),
        TEST(test_a_base_with_a_recorded_parent_is_refused),
        TEST(test_missing_blob),
        TEST(test_size_that_the_manifest_gets_wrong),
        TEST(test_layer_that_is_no_qcow2),
        TEST(test_one_chain_has_one_format),
        TEST(test_limits),
        TEST(test_bad_objects_are_built_anew_and_replaced),
        TEST(test_index_that_is_gone_is_built_anew),
        TEST(test_all_objects_bad_at_their_ends),
        TEST(test_publishing_on_top_of_bad_objects),
        TEST(test_another_chains_object_is_not_believed),
        TEST(test_reading_without_room_for_the_index),
        TEST(test_a_failed_push_leaves_nothing_to_read),
        TEST(test_an_index_in_the_other_format_is_not_read),
        TEST(test_many_readers_of_a_lost_index_build_it_once),
    };

    return cmocka_run_group_tests(tests, qemu_setup, qemu_teardown);
}
