/* SPDX-License-Identifier: Apache-2.0 */
#include "test.h"

#include <string.h>

#include "slice_cache.h"

static struct index_slice *new_slice(uint32_t nr_extents)
{
    struct index_slice *s = calloc(1, sizeof(*s) + nr_extents * sizeof(struct index_extent));

    assert_non_null(s);
    atomic_init(&s->refs, 1);
    s->nr_extents = nr_extents;
    return s;
}

static struct digest prefix(uint8_t n)
{
    struct digest d;

    memset(d.sha256, n, sizeof(d.sha256));
    return d;
}

static void put(struct slice_cache *cache, uint8_t n, uint32_t slice_nr, uint32_t nr_extents)
{
    struct index_slice *s = new_slice(nr_extents);
    struct digest d = prefix(n);

    slice_cache_put(cache, &d, slice_nr, s);
    index_slice_unref(s);
}

/* Number of extents of a slice that is there, else -1. */
static int look(struct slice_cache *cache, uint8_t n, uint32_t slice_nr)
{
    struct digest d = prefix(n);
    struct index_slice *s = slice_cache_get(cache, &d, slice_nr);
    int nr = s ? (int)s->nr_extents : -1;

    if (s)
        index_slice_unref(s);
    return nr;
}

static void test_key_is_prefix_and_number(void **state)
{
    struct slice_cache *cache;
    struct cairn_error err;

    (void)state;
    assert_int_equal(slice_cache_new(1 << 20, &cache, &err), 0);
    put(cache, 1, 7, 1);
    put(cache, 2, 7, 2);
    put(cache, 1, 8, 3);
    assert_int_equal(look(cache, 1, 7), 1);
    assert_int_equal(look(cache, 2, 7), 2);
    assert_int_equal(look(cache, 1, 8), 3);
    assert_int_equal(look(cache, 2, 8), -1);
    slice_cache_unref(cache);
}

static void test_bytes_are_bounded_and_the_oldest_goes(void **state)
{
    struct slice_cache *cache;
    struct cairn_error err;

    (void)state;
    assert_int_equal(slice_cache_new(64 << 10, &cache, &err), 0);
    for (uint32_t i = 0; i < 100; i++) {
        put(cache, 1, i, 100);
        assert_int_equal(look(cache, 1, 0), 100); /* in use all the time */
        assert_true(slice_cache_bytes(cache) <= 64 << 10);
    }
    assert_int_equal(look(cache, 1, 1), -1);
    assert_int_equal(look(cache, 1, 99), 100);
    slice_cache_unref(cache);
}

static void test_slice_outlives_its_eviction(void **state)
{
    struct slice_cache *cache;
    struct cairn_error err;
    struct digest d = prefix(1);
    struct index_slice *s;

    (void)state;
    assert_int_equal(slice_cache_new(1, &cache, &err), 0);
    put(cache, 1, 1, 5);
    s = slice_cache_get(cache, &d, 1);
    assert_non_null(s);
    put(cache, 1, 2, 5);
    assert_int_equal(look(cache, 1, 1), -1);
    assert_int_equal(s->nr_extents, 5);
    index_slice_unref(s);
    slice_cache_unref(cache);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_key_is_prefix_and_number),
        cmocka_unit_test(test_bytes_are_bounded_and_the_oldest_goes),
        cmocka_unit_test(test_slice_outlives_its_eviction),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
