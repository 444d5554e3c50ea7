/* SPDX-License-Identifier: Apache-2.0 */
#include "test.h"

#include <pthread.h>
#include <string.h>

#include "cluster_cache.h"

#define CLUSTER    4096u
#define NR_THREADS 4

/* The byte that the cluster at host_off of layer holds. */
static uint8_t content(const struct digest *layer, uint64_t host_off)
{
    return (uint8_t)(layer->sha256[0] * 31u + host_off * 7u);
}

static void put(struct cluster_cache *cache, const struct digest *layer, uint64_t host_off)
{
    CLEANUP(cluster_unref_p) struct cluster *cluster = NULL;

    assert_int_equal(cluster_new(CLUSTER, &cluster, NULL), CAIRN_OK);
    memset(cluster->data, content(layer, host_off), CLUSTER);
    cluster_cache_put(cache, layer, host_off, cluster);
}

static bool has(struct cluster_cache *cache, const struct digest *layer, uint64_t host_off)
{
    CLEANUP(cluster_unref_p)
    struct cluster *cluster = cluster_cache_get(cache, layer, host_off);

    if (cluster && (cluster->data[0] != content(layer, host_off) ||
                    cluster->data[CLUSTER - 1] != content(layer, host_off)))
        abort();
    return cluster != NULL;
}

static struct cluster_cache *new_cache(size_t max_bytes)
{
    struct cluster_cache *cache;

    assert_int_equal(cluster_cache_new(max_bytes, &cache, NULL), CAIRN_OK);
    return cache;
}

static void test_what_was_put_is_got(void **state)
{
    CLEANUP(cluster_cache_free_p) struct cluster_cache *cache = new_cache(1 << 20);
    struct digest a = {{1}}, b = {{2}};

    (void)state;
    put(cache, &a, 77);
    put(cache, &a, 77);
    assert_true(has(cache, &a, 77));
    assert_false(has(cache, &a, 78));
    assert_false(has(cache, &b, 77));
}

static void test_the_bound_holds(void **state)
{
    CLEANUP(cluster_cache_free_p) struct cluster_cache *cache = new_cache(1 << 18);
    struct digest d = {{3}};

    (void)state;
    for (uint64_t i = 0; i < 1000; i++) {
        put(cache, &d, i);
        assert_true(cluster_cache_bytes(cache) <= 1 << 18);
    }
    assert_true(cluster_cache_bytes(cache) > (1 << 18) - 2 * CLUSTER);
    assert_true(has(cache, &d, 999));
    assert_false(has(cache, &d, 0));
}

static void test_the_least_recently_used_goes_first(void **state)
{
    CLEANUP(cluster_cache_free_p) struct cluster_cache *cache = new_cache(10 * CLUSTER);
    struct digest d = {{4}};

    (void)state;
    put(cache, &d, 0);
    for (uint64_t i = 1; i < 100; i++) {
        put(cache, &d, i);
        assert_true(has(cache, &d, 0));
    }
    assert_false(has(cache, &d, 1));
}

static void test_what_does_not_fit_is_not_kept(void **state)
{
    CLEANUP(cluster_cache_free_p) struct cluster_cache *small = new_cache(CLUSTER);
    CLEANUP(cluster_cache_free_p) struct cluster_cache *none = new_cache(0);
    struct digest d = {{5}};

    (void)state;
    put(small, &d, 0);
    put(none, &d, 0);
    assert_false(has(small, &d, 0) || has(none, &d, 0));
}

static void test_a_cluster_outlives_its_eviction(void **state)
{
    CLEANUP(cluster_cache_free_p) struct cluster_cache *cache = new_cache(2 * CLUSTER);
    CLEANUP(cluster_unref_p) struct cluster *held = NULL;
    struct digest d = {{6}};

    (void)state;
    put(cache, &d, 0);
    held = cluster_cache_get(cache, &d, 0);
    assert_non_null(held);
    put(cache, &d, 1);
    assert_false(has(cache, &d, 0));
    assert_int_equal(held->data[0], content(&d, 0));
}

static atomic_uint next_seed;

static void *hammer(void *arg)
{
    struct cluster_cache *cache = arg;
    unsigned seed = atomic_fetch_add(&next_seed, 1);

    for (int i = 0; i < 20000; i++) {
        unsigned r = (unsigned)rand_r(&seed);
        struct digest d = {{(uint8_t)(r & 3)}};
        uint64_t host_off = (r >> 2) % 40;

        if (!has(cache, &d, host_off))
            put(cache, &d, host_off);
    }
    return NULL;
}

static void test_threads_get_the_right_content(void **state)
{
    CLEANUP(cluster_cache_free_p) struct cluster_cache *cache = new_cache(100 * CLUSTER);
    pthread_t threads[NR_THREADS];

    (void)state;
    for (int i = 0; i < NR_THREADS; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, hammer, cache), 0);
    for (int i = 0; i < NR_THREADS; i++)
        pthread_join(threads[i], NULL);
    assert_true(cluster_cache_bytes(cache) <= 100 * CLUSTER);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_what_was_put_is_got),
        cmocka_unit_test(test_the_bound_holds),
        cmocka_unit_test(test_the_least_recently_used_goes_first),
        cmocka_unit_test(test_what_does_not_fit_is_not_kept),
        cmocka_unit_test(test_a_cluster_outlives_its_eviction),
        cmocka_unit_test(test_threads_get_the_right_content),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
