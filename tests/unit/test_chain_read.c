/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Content and mapping of chains that QEMU made, against what QEMU says of them: bytes against
 * `qemu-img convert -O raw`, extents against `qemu-img map`.
 */
#include "fake_chain.h"

#include <jansson.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>

#include "chain_read.h"
#include "cluster_cache.h"
#include "scratch.h"

#define MIB ((uint64_t)1 << 20)

/*
 * Layers of all kinds, base first: mixed cluster sizes, both compressions, extended L2 entries,
 * zeros with and without clusters, disks that shrink and grow.  Between writes with -c the image
 * is reopened, because QEMU 7.2 mixes compressed and other writes up in one run.
 */
static const char make_images[] =
    "set -e; cd \"$CHAIN_DIR\"\n"
    "exec >/dev/null\n"
    "layer() { # number, size, options\n"
    "  qemu-img create -q -u -f qcow2 -o \"$3\" -b l$(($1 - 1)) -F $fmt l$1 $2; fmt=qcow2; }\n"
    "io() { n=$1; shift; for c; do qemu-io -f qcow2 -c \"$c\" l$n; done; }\n"
    "head -c 5244416 /dev/urandom > l0; fmt=raw\n"
    "layer 1 8M cluster_size=64k\n"
    "io 1 'write -c -P 17 1M 64k' 'write -c -P 18 1088k 64k' 'write -z 2M 200k' \\\n"
    "     'write -P 19 7M 100k' 'write -z -u 512k 256k' 'write -c -P 20 4M 64k'\n"
    "layer 2 3146240 cluster_size=2M,compression_type=zstd\n"
    "io 2 'write -c -P 33 0 2M' 'write -P 34 2100k 8k'\n"
    "layer 3 12M cluster_size=64k,extended_l2=on\n"
    "io 3 'write -P 49 64k 2k' 'write -P 50 8M 6k' 'write -z 130k 4k' 'discard 8M 4k' \\\n"
    "     'write -P 51 3M 4k' 'write -c -P 52 10M 64k'\n"
    "layer 4 12583424 cluster_size=512\n"
    "io 4 'write -P 65 100k 512' 'write -P 66 101k 512' 'write -c -P 67 70k 512' \\\n"
    "     'write -z -u 71k 512' 'write -P 68 9M 3k'\n"
    /* QEMU's map shows holes of the files as zeros: leave none. */
    "for i in 0 1 2 3 4; do cp --sparse=never l$i full; mv full l$i; done\n"
    "for i in 0 1 2 3 4; do\n"
    "  f=qcow2; [ $i -gt 0 ] || f=raw\n"
    "  qemu-img convert -f $f -O raw l$i flat$i\n"
    "  qemu-img map -f $f --output=json l$i > map$i\n"
    "done\n";

#define NR_LAYERS 5

struct images {
    char dir[64];
    struct source *sources[NR_LAYERS];
    struct fake_chain *chain; /* its layers are empty; its index is that of the images */
};

static char *path_of(const struct images *images, const char *name, unsigned i, char buf[128])
{
    snprintf(buf, 128, "%s/%s%u", images->dir, name, i);
    return buf;
}

static void open_layer(struct images *images, unsigned i)
{
    CLEANUP(layer_free_p) struct layer *layer = NULL;
    struct fake_chain *chain = images->chain;
    struct index_slices slices = fake_slices(chain);
    struct cairn_error err;
    char path[128];

    digest_of(&i, sizeof(i), &chain->digests[i]);
    if (source_open_file(path_of(images, "l", i, path), NULL, &images->sources[i], &err) < 0 ||
        layer_open(images->sources[i], i == 0 ? LAYER_RAW : LAYER_QCOW2, &layer, &err) < 0 ||
        chain_index_build(i > 0 ? fake_top(chain) : NULL, &slices, layer, &chain->digests[i],
                          fake_emit, chain, &chain->l1s[i], &err) < 0)
        fail_msg("layer %u: %s", i, err.message);
    chain->depth++;
}

static int setup(void **state)
{
    struct images *images = calloc(1, sizeof(*images));

    assert_non_null(images);
    *state = images;
    snprintf(images->dir, sizeof(images->dir), "%s/cairn-test.XXXXXX", scratch_base());
    assert_non_null(mkdtemp(images->dir));
    setenv("CHAIN_DIR", images->dir, 1);
    assert_int_equal(system(make_images), 0);
    images->chain = fake_chain_new();
    for (unsigned i = 0; i < NR_LAYERS; i++)
        open_layer(images, i);
    return 0;
}

static int teardown(void **state)
{
    struct images *images = *state;

    for (unsigned i = 0; i < NR_LAYERS; i++)
        source_free(images->sources[i]);
    fake_chain_free(images->chain);
    if (system("rm -rf \"$CHAIN_DIR\"") != 0)
        return -1;
    free(images);
    return 0;
}

/* -- Reading ----------------------------------------------------------------------------------- */

static int pread_layer(void *ctx, uint32_t layer, void *buf, size_t len, uint64_t host_off,
                       struct cairn_error *err)
{
    struct images *images = ctx;

    return source_pread_padded(images->sources[layer], buf, len, host_off, err);
}

static struct chain_reader reader_of(struct images *images, unsigned top,
                                     struct cluster_cache *cache)
{
    return (struct chain_reader){
        .l1 = images->chain->l1s[top],
        .slices = fake_slices(images->chain),
        .blobs = {.pread = pread_layer, .ctx = images},
        .layers = images->chain->digests,
        .cache = cache,
    };
}

static uint8_t *load_file(const char *path, size_t *ret_len)
{
    CLEANUP(source_free_p) struct source *src = NULL;
    uint8_t *buf;

    assert_int_equal(source_open_file(path, NULL, &src, NULL), CAIRN_OK);
    buf = malloc(src->size + 1);
    assert_non_null(buf);
    assert_int_equal(source_pread(src, buf, src->size, 0, NULL), CAIRN_OK);
    buf[src->size] = 0;
    *ret_len = src->size;
    return buf;
}

static void check_read(const struct chain_reader *reader, const uint8_t *want, size_t len,
                       uint64_t guest_off)
{
    CLEANUP_FREE uint8_t *got = malloc(len + 1);
    struct cairn_error err;

    assert_non_null(got);
    if (chain_read(reader, got, len, guest_off, &err) < 0)
        fail_msg("%s", err.message);
    if (memcmp(got, want + guest_off, len) != 0)
        fail_msg("%zu bytes at %lu differ", len, guest_off);
}

static void check_content(struct images *images, unsigned top, struct cluster_cache *cache)
{
    struct chain_reader reader = reader_of(images, top, cache);
    uint64_t seed = top + 1;
    char path[128];
    size_t size;
    CLEANUP_FREE uint8_t *want = load_file(path_of(images, "flat", top, path), &size);

    assert_int_equal(size, reader.l1->virtual_size);
    check_read(&reader, want, size, 0);
    for (int i = 0; i < 300; i++) {
        uint64_t off = fake_below(&seed, size);
        uint64_t len = fake_below(&seed, fake_below(&seed, 4) ? 10000 : size - off) + 1;

        check_read(&reader, want, len < size - off ? len : size - off, off);
    }
}

static void test_content_is_what_qemu_reads(void **state)
{
    for (unsigned top = 0; top < NR_LAYERS; top++)
        check_content(*state, top, NULL);
}

static void test_content_through_the_cluster_cache(void **state)
{
    CLEANUP(cluster_cache_free_p) struct cluster_cache *cache = NULL;

    assert_int_equal(cluster_cache_new(3 * MIB, &cache, NULL), CAIRN_OK);
    for (unsigned top = 0; top < NR_LAYERS; top++)
        check_content(*state, top, cache);
    assert_true(cluster_cache_bytes(cache) > MIB);
}

static void test_content_from_afar(void **state)
{
    struct chain_reader reader = reader_of(*state, 4, NULL);
    char path[128];
    size_t size;
    CLEANUP_FREE uint8_t *want = load_file(path_of(*state, "flat", 4, path), &size);

    reader.far = true;
    check_read(&reader, want, size, 0);
    check_read(&reader, want, 40000, 64000);
}

/* Reads that wait until two of them are under way. */
struct meeting {
    struct images *images;
    pthread_mutex_t lock;
    pthread_cond_t came;
    unsigned inside;
    bool met;
};

static int pread_meets(void *ctx, uint32_t layer, void *buf, size_t len, uint64_t host_off,
                       struct cairn_error *err)
{
    struct meeting *m = ctx;
    struct timespec until;

    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_sec += 20;
    pthread_mutex_lock(&m->lock);
    m->met |= ++m->inside == 2;
    pthread_cond_broadcast(&m->came);
    while (!m->met && pthread_cond_timedwait(&m->came, &m->lock, &until) == 0)
        ;
    m->inside--;
    pthread_mutex_unlock(&m->lock);
    return pread_layer(m->images, layer, buf, len, host_off, err);
}

static void test_extents_from_afar_are_read_at_the_same_time(void **state)
{
    struct chain_reader reader = reader_of(*state, 4, NULL);
    struct meeting m = {
        .images = *state, .lock = PTHREAD_MUTEX_INITIALIZER, .came = PTHREAD_COND_INITIALIZER};
    char path[128];
    size_t size;
    CLEANUP_FREE uint8_t *want = load_file(path_of(*state, "flat", 4, path), &size);

    reader.far = true;
    reader.blobs = (struct chain_blobs){.pread = pread_meets, .ctx = &m};
    check_read(&reader, want, size, 0);
    assert_true(m.met);
}

static void test_a_read_past_the_end_is_refused(void **state)
{
    struct chain_reader reader = reader_of(*state, 4, NULL);
    uint8_t byte;

    assert_int_equal(chain_read(&reader, &byte, 1, reader.l1->virtual_size, NULL), CAIRN_E_USAGE);
}

/* -- Mapping ----------------------------------------------------------------------------------- */

static uint64_t number(const json_t *entry, const char *key)
{
    return (uint64_t)json_integer_value(json_object_get(entry, key));
}

/*
 * An extent of ours lies in one entry of QEMU's, and says the same.  QEMU may give a hole an
 * offset, that of a subcluster which is not in use.
 */
static void check_entry(const json_t *entry, const struct extent *e, unsigned top)
{
    const json_t *offset = json_object_get(entry, "offset");
    bool zero = json_is_true(json_object_get(entry, "zero"));
    bool data = json_is_true(json_object_get(entry, "data"));
    bool linear = extent_kind_linear(e->kind);

    if (top - e->layer != number(entry, "depth") || zero != extent_reads_zero(e->kind) ||
        data == extent_reads_zero(e->kind) ||
        (e->kind != EXTENT_HOLE && linear != (offset != NULL)))
        fail_msg("prefix %u at 0x%lx: layer %u kind %u; QEMU: depth %lu zero %d data %d offset %d",
                 top, e->guest_off, e->layer, e->kind, number(entry, "depth"), zero, data,
                 offset != NULL);
    if (linear)
        assert_int_equal(e->host_off - number(entry, "offset"),
                         e->guest_off - number(entry, "start"));
}

static void check_map(struct images *images, unsigned top)
{
    struct index_slices slices = fake_slices(images->chain);
    const struct index_l1 *l1 = images->chain->l1s[top];
    uint64_t covered = 0;
    size_t len, index;
    json_t *map, *entry;
    char path[128];
    CLEANUP_FREE uint8_t *text = load_file(path_of(images, "map", top, path), &len);

    map = json_loadb((const char *)text, len, 0, NULL);
    assert_non_null(map);
    json_array_foreach(map, index, entry)
    {
        uint64_t start = number(entry, "start"), end = start + number(entry, "length");

        while (start < end) {
            struct extent e;
            size_t nr;

            assert_int_equal(chain_map(l1, &slices, start, end - start, &e, 1, &nr, NULL),
                             CAIRN_OK);
            check_entry(entry, &e, top);
            start += e.len;
        }
        covered = end;
    }
    assert_int_equal(covered, l1->virtual_size);
    json_decref(map);
}

static void test_extents_are_what_qemu_maps(void **state)
{
    for (unsigned top = 1; top < NR_LAYERS; top++)
        check_map(*state, top);
}

/* -- Errors ------------------------------------------------------------------------------------ */

static int pread_garbage(void *ctx, uint32_t layer, void *buf, size_t len, uint64_t host_off,
                         struct cairn_error *err)
{
    (void)ctx;
    (void)layer;
    (void)host_off;
    (void)err;
    memset(buf, 0xff, len);
    return CAIRN_OK;
}

static int pread_fails(void *ctx, uint32_t layer, void *buf, size_t len, uint64_t host_off,
                       struct cairn_error *err)
{
    (void)ctx;
    (void)layer;
    (void)buf;
    (void)len;
    (void)host_off;
    return error_set(err, CAIRN_E_UNAVAILABLE, "no answer");
}

/* A read of the compressed cluster of layer 1 at 1 MiB fails with code and names the layer. */
static void expect_failure(const struct chain_reader *reader, int code, const char *message)
{
    char text[DIGEST_STR_MAX];
    struct cairn_error err;
    uint8_t byte;

    assert_int_equal(chain_read(reader, &byte, 1, MIB, &err), code);
    assert_non_null(strstr(err.message, digest_format(&reader->layers[1], text)));
    assert_non_null(strstr(err.message, message));
}

static void test_failures_name_the_layer(void **state)
{
    struct chain_reader reader = reader_of(*state, 1, NULL);

    reader.blobs.pread = pread_garbage;
    expect_failure(&reader, CAIRN_E_CORRUPT, "compressed cluster at 0x");
    reader.blobs.pread = pread_fails;
    expect_failure(&reader, CAIRN_E_UNAVAILABLE, "no answer");
}

static void test_garbage_is_not_cached(void **state)
{
    CLEANUP(cluster_cache_free_p) struct cluster_cache *cache = NULL;
    struct chain_reader reader;
    uint8_t byte = 0;

    assert_int_equal(cluster_cache_new(MIB, &cache, NULL), CAIRN_OK);
    reader = reader_of(*state, 1, cache);
    reader.blobs.pread = pread_garbage;
    expect_failure(&reader, CAIRN_E_CORRUPT, "");
    reader.blobs.pread = pread_layer;
    assert_int_equal(chain_read(&reader, &byte, 1, MIB, NULL), CAIRN_OK);
    assert_int_equal(byte, 17);
    reader.blobs.pread = pread_fails; /* now it comes from the cache */
    assert_int_equal(chain_read(&reader, &byte, 1, MIB, NULL), CAIRN_OK);
}

/* Another chain's index may have claimed other clusters for the same layer. */
static void test_a_cached_cluster_of_another_size_is_not_used(void **state)
{
    CLEANUP(cluster_cache_free_p) struct cluster_cache *cache = NULL;
    CLEANUP(cluster_unref_p) struct cluster *small = NULL;
    struct images *images = *state;
    struct chain_reader reader;
    struct extent e;
    size_t nr;
    uint8_t byte = 0;

    assert_int_equal(cluster_cache_new(MIB, &cache, NULL), CAIRN_OK);
    assert_int_equal(cluster_new(512, &small, NULL), CAIRN_OK);
    memset(small->data, 99, small->len);
    reader = reader_of(images, 1, cache);
    assert_int_equal(chain_map(reader.l1, &reader.slices, MIB + 60000, 1, &e, 1, &nr, NULL),
                     CAIRN_OK);
    assert_int_equal(e.kind, EXTENT_COMPRESSED);
    cluster_cache_put(cache, &images->chain->digests[1], e.host_off, small);
    assert_int_equal(chain_read(&reader, &byte, 1, MIB + 60000, NULL), CAIRN_OK);
    assert_int_equal(byte, 17);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_content_is_what_qemu_reads),
        cmocka_unit_test(test_content_through_the_cluster_cache),
        cmocka_unit_test(test_content_from_afar),
        cmocka_unit_test(test_extents_from_afar_are_read_at_the_same_time),
        cmocka_unit_test(test_a_read_past_the_end_is_refused),
        cmocka_unit_test(test_extents_are_what_qemu_maps),
        cmocka_unit_test(test_failures_name_the_layer),
        cmocka_unit_test(test_garbage_is_not_cached),
        cmocka_unit_test(test_a_cached_cluster_of_another_size_is_not_used),
    };

    return cmocka_run_group_tests(tests, setup, teardown);
}
