/* SPDX-License-Identifier: Apache-2.0 */
/* The tiers of the metadata cache, over a chain of one large and sparse raw layer. */
#include "qemu.h"

#include <pthread.h>
#include <sys/stat.h>

#include "cache.h"
#include "metacache.h"
#include "registry.h"

#define NR_SLICES 2000u
#define NR_ASKERS 8

struct fixture {
    char dir[32]; /* of the store, in the group's folder */
    struct store *store;
    struct metacache *cache;
    struct manifest *manifest;
    struct meta_chain chain;
    struct index_l1 *l1;
};

static struct cairn_error err;

static void new_cache(struct fixture *f, size_t max_bytes)
{
    metacache_free(f->cache);
    assert_int_equal(metacache_new(max_bytes, f->store, NULL, &f->cache, &err), CAIRN_OK);
}

/* The blob, at its place; what it is named after does not matter here. */
static void put_blob(const struct fixture *f)
{
    char key[REGISTRY_KEY_MAX];

    registry_blob_key(&f->manifest->layers[0].digest, key);
    sh("mkdir -p $(dirname %s/%s) && truncate -s %llu %s/%s", f->dir, key,
       (unsigned long long)(NR_SLICES * INDEX_SLICE_SIZE), f->dir, key);
}

static void remove_files(const struct fixture *f, const char *folder)
{
    sh("rm -rf %s/%s/*", f->dir, folder);
}

static int setup(void **state)
{
    static unsigned nr;
    struct fixture *f = calloc(1, sizeof(*f));
    struct manifest_layer layer = {.size = NR_SLICES * INDEX_SLICE_SIZE, .format = LAYER_RAW};
    char url[sizeof(qemu_folder) + 80];

    assert_non_null(f);
    snprintf(f->dir, sizeof(f->dir), "meta%u", nr++);
    snprintf(url, sizeof(url), "fs:%s/%s", qemu_folder, f->dir);
    assert_int_equal(store_open(url, &f->store, &err), CAIRN_OK);
    digest_of("base", 4, &layer.digest);
    assert_int_equal(manifest_new(&layer, 1, &f->manifest, &err), CAIRN_OK);
    f->chain = (struct meta_chain){1, f->manifest->chain_ids, f->manifest->layers};
    put_blob(f);
    new_cache(f, 1 << 20);
    assert_int_equal(metacache_l1(f->cache, &f->chain, 0, &f->l1, &err), CAIRN_OK); /* builds it */
    new_cache(f, 1 << 20);
    *state = f;
    return 0;
}

static int teardown(void **state)
{
    struct fixture *f = *state;

    index_l1_unref(f->l1);
    metacache_free(f->cache);
    manifest_free(f->manifest);
    store_close(f->store);
    free(f);
    return 0;
}

static int get_slice(struct fixture *f, uint32_t nr)
{
    CLEANUP(index_slice_unref_p) struct index_slice *slice = NULL;
    int code = metacache_slice(f->cache, &f->chain, f->l1, 0, nr, &slice, &err);

    if (code == CAIRN_OK)
        assert_int_equal(slice->nr_extents, 1);
    return code;
}

static struct metacache_tier_stats tier_stats(const struct fixture *f, unsigned nr)
{
    struct metacache_tier_stats stats;

    assert_true(metacache_get_tier_stats(f->cache, nr, &stats));
    return stats;
}

static struct metacache_stats memory_stats(const struct fixture *f)
{
    struct metacache_stats stats;

    metacache_get_stats(f->cache, &stats);
    return stats;
}

/* -- Tests ------------------------------------------------------------------------------------ */

static void test_tiers_below_memory(void **state)
{
    struct fixture *f = *state;
    struct metacache_tier_stats stats;

    assert_string_equal(tier_stats(f, 0).name, "store");
    assert_string_equal(tier_stats(f, 1).name, "rebuild");
    assert_false(metacache_get_tier_stats(f->cache, 2, &stats));
}

static void test_second_look_up_is_from_memory(void **state)
{
    struct fixture *f = *state;

    assert_int_equal(get_slice(f, 7), CAIRN_OK);
    assert_int_equal(get_slice(f, 7), CAIRN_OK);
    assert_int_equal(tier_stats(f, 0).hits, 1);
    assert_int_equal(memory_stats(f).hits, 1);
    assert_int_equal(memory_stats(f).fills, 1);
    assert_int_equal(tier_stats(f, 1).hits, 0);
}

static void test_look_ups_in_memory_are_timed_now_and_then(void **state)
{
    struct fixture *f = *state;
    uint64_t nr_before;

    assert_int_equal(get_slice(f, 7), CAIRN_OK);
    nr_before = histogram_total(memory_stats(f).latency);
    for (unsigned i = 0; i < 3 * CACHE_TIMED_ONE_IN; i++)
        assert_int_equal(get_slice(f, 7), CAIRN_OK);
    assert_int_equal(histogram_total(memory_stats(f).latency), nr_before + 3);
}

static void test_memory_is_bounded_in_bytes(void **state)
{
    struct fixture *f = *state;

    new_cache(f, 16 << 10);
    for (uint32_t i = 0; i < NR_SLICES; i++) {
        assert_int_equal(get_slice(f, i), CAIRN_OK);
        assert_true(memory_stats(f).bytes <= 16 << 10);
    }
    assert_true(memory_stats(f).evictions > 0);
    assert_true(memory_stats(f).entries > 100);
}

static void test_a_cache_of_no_bytes_still_answers(void **state)
{
    struct fixture *f = *state;

    new_cache(f, 0);
    for (uint32_t i = 0; i < 20; i++)
        assert_int_equal(get_slice(f, i), CAIRN_OK);
    assert_int_equal(memory_stats(f).bytes, 0);
}

static void test_bad_values_are_counted_and_built_anew(void **state)
{
    struct fixture *f = *state;

    sh("for o in %s/index/*/*; do truncate -s -1 $o; done", f->dir);
    assert_int_equal(get_slice(f, NR_SLICES - 1), CAIRN_OK);
    assert_int_equal(tier_stats(f, 0).bad, 1);
    assert_int_equal(tier_stats(f, 1).hits, 1);
    assert_int_equal(memory_stats(f).builds, 1);
    new_cache(f, 1 << 20);
    assert_int_equal(get_slice(f, NR_SLICES - 1), CAIRN_OK);
    assert_int_equal(tier_stats(f, 0).hits, 1); /* it was replaced */
}

static void test_a_failure_is_told_and_tried_again(void **state)
{
    struct fixture *f = *state;

    remove_files(f, "index");
    remove_files(f, "blobs");
    assert_int_equal(get_slice(f, 3), CAIRN_E_CORRUPT);
    assert_non_null(strstr(err.message, "layer sha256:"));
    assert_non_null(strstr(err.message, "lost"));
    put_blob(f);
    assert_int_equal(get_slice(f, 3), CAIRN_OK);
}

static void test_ordinals_that_the_chain_does_not_have(void **state)
{
    struct fixture *f = *state;
    struct index_l1 *l1;

    assert_int_equal(metacache_l1(f->cache, &f->chain, 1, &l1, &err), CAIRN_E_CORRUPT);
    assert_non_null(strstr(err.message, "prefix 1 of a chain of 1 layers"));
}

struct asker {
    pthread_t thread;
    struct fixture *f;
    int code;
};

static void *ask_for_all(void *arg)
{
    struct asker *a = arg;

    for (uint32_t i = 0; a->code == CAIRN_OK && i < NR_SLICES; i++) {
        struct index_slice *slice;

        a->code = metacache_slice(a->f->cache, &a->f->chain, a->f->l1, 0, i, &slice, NULL);
        if (a->code == CAIRN_OK)
            index_slice_unref(slice);
    }
    return NULL;
}

static void test_askers_at_the_same_time_share_fetches(void **state)
{
    struct fixture *f = *state;
    struct asker askers[NR_ASKERS];

    for (int i = 0; i < NR_ASKERS; i++) {
        askers[i] = (struct asker){.f = f};
        assert_int_equal(pthread_create(&askers[i].thread, NULL, ask_for_all, &askers[i]), 0);
    }
    for (int i = 0; i < NR_ASKERS; i++) {
        assert_int_equal(pthread_join(askers[i].thread, NULL), 0);
        assert_int_equal(askers[i].code, CAIRN_OK);
    }
    assert_int_equal(tier_stats(f, 0).hits, NR_SLICES);
}

int main(void)
{
#define TEST(fn) cmocka_unit_test_setup_teardown(fn, setup, teardown)
    const struct CMUnitTest tests[] = {
        TEST(test_tiers_below_memory),
        TEST(test_second_look_up_is_from_memory),
        TEST(test_look_ups_in_memory_are_timed_now_and_then),
        TEST(test_memory_is_bounded_in_bytes),
        TEST(test_a_cache_of_no_bytes_still_answers),
        TEST(test_bad_values_are_counted_and_built_anew),
        TEST(test_a_failure_is_told_and_tried_again),
        TEST(test_ordinals_that_the_chain_does_not_have),
        TEST(test_askers_at_the_same_time_share_fetches),
    };

    return cmocka_run_group_tests(tests, qemu_setup, qemu_teardown);
}
