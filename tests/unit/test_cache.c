/* SPDX-License-Identifier: Apache-2.0 */
#include "test.h"

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>

#include "cache.h"
#include "nowait.h"

/* Values are numbers with a cost; `alive` counts those not yet released. */
struct number {
    atomic_uint refs;
    uint32_t is;
    size_t cost;
};

static atomic_int alive;

static void *number_ref(void *value)
{
    struct number *n = value;

    atomic_fetch_add(&n->refs, 1);
    return n;
}

static void number_unref(void *value)
{
    struct number *n = value;

    if (atomic_fetch_sub(&n->refs, 1) > 1)
        return;
    atomic_fetch_sub(&alive, 1);
    free(n);
}

static size_t number_cost(const void *value)
{
    return ((const struct number *)value)->cost;
}

static const struct cache_type number_type = {number_ref, number_unref, number_cost};

static struct number *number_new(uint32_t is, size_t cost)
{
    struct number *n = malloc(sizeof(*n));

    assert_non_null(n);
    *n = (struct number){.is = is, .cost = cost};
    atomic_init(&n->refs, 1);
    atomic_fetch_add(&alive, 1);
    return n;
}

static struct cache *new_cache(size_t max_cost)
{
    struct cache *cache;

    assert_int_equal(cache_new(&number_type, max_cost, &cache, NULL), CAIRN_OK);
    return cache;
}

static struct cache_key key_of(uint32_t is)
{
    struct cache_key key = {.sub = is};

    digest_of(&is, sizeof(is), &key.digest);
    return key;
}

struct fetch {
    uint32_t is;
    size_t cost;
    int code;            /* what fetching gives */
    struct cache *cache; /* not NULL: come back when so many others wait */
    uint64_t nr_waiters;
    atomic_int nr_fetches;
};

static int fetch_number(void *arg, void **ret_value, struct cairn_error *err)
{
    struct fetch *f = arg;

    atomic_fetch_add(&f->nr_fetches, 1);
    for (struct cache_stats stats = {0}; f->cache && stats.waits < f->nr_waiters;) {
        sched_yield();
        cache_get_stats(f->cache, &stats);
    }
    if (f->code != CAIRN_OK)
        return error_set(err, f->code, "no number %u", f->is);
    *ret_value = number_new(f->is, f->cost);
    return CAIRN_OK;
}

/* Get number `is`, from a fetch if need be, and let go of it again; was it fetched? */
static bool get_number(struct cache *cache, uint32_t is, size_t cost)
{
    struct fetch f = {.is = is, .cost = cost};
    struct cache_key key = key_of(is);
    void *value;

    assert_int_equal(cache_get(cache, &key, fetch_number, &f, &value, NULL), CAIRN_OK);
    assert_int_equal(((struct number *)value)->is, is);
    number_unref(value);
    return atomic_load(&f.nr_fetches) > 0;
}

static void test_keeps_what_it_fetched(void **state)
{
    struct cache *cache = new_cache(1000);

    (void)state;
    for (uint32_t i = 0; i < 500; i++)
        assert_true(get_number(cache, i, 1));
    for (uint32_t i = 0; i < 500; i++)
        assert_false(get_number(cache, i, 1));
    cache_free(cache);
    assert_int_equal(atomic_load(&alive), 0);
}

static void test_stays_within_its_bound(void **state)
{
    struct cache *cache = new_cache(100);
    struct cache_stats stats;

    (void)state;
    for (uint32_t i = 0; i < 1000; i++) {
        get_number(cache, i, 1 + i % 17);
        cache_get_stats(cache, &stats);
        assert_true(stats.cost <= 100);
        assert_int_equal(stats.entries, atomic_load(&alive));
    }
    assert_int_equal(stats.entries + stats.evictions, 1000);
    cache_free(cache);
}

static void test_what_is_used_stays(void **state)
{
    struct cache *cache = new_cache(1000);
    unsigned nr_fetched = 0;

    (void)state;
    for (uint32_t i = 1; i < 20000; i++) {
        nr_fetched += get_number(cache, 0, 1);
        get_number(cache, i, 1);
    }
    assert_int_equal(nr_fetched, 1);
    cache_free(cache);
}

static void test_a_value_may_fill_the_cache_but_not_more(void **state)
{
    struct cache *cache = new_cache(100);

    (void)state;
    get_number(cache, 1, 100);
    assert_false(get_number(cache, 1, 100));
    get_number(cache, 2, 101);
    assert_true(get_number(cache, 2, 101));
    assert_false(get_number(cache, 1, 100));
    cache_free(cache);
}

static void test_who_must_not_wait_gets_what_is_there(void **state)
{
    struct cache *cache = new_cache(10);
    struct fetch f = {.is = 8, .cost = 1};
    struct cache_key key = key_of(8);
    struct cache_stats stats;
    struct cairn_error err;
    void *value;

    (void)state;
    assert_true(get_number(cache, 7, 1));
    nowait_begin();
    assert_false(get_number(cache, 7, 1));
    assert_true(nowait_end());
    nowait_begin();
    assert_int_equal(cache_get(cache, &key, fetch_number, &f, &value, &err), CAIRN_E_UNAVAILABLE);
    assert_false(nowait_end());
    assert_int_equal(atomic_load(&f.nr_fetches), 0);
    cache_get_stats(cache, &stats);
    assert_int_equal(stats.misses, 1); /* the first fetch: a refusal is no miss */
    cache_free(cache);
}

static void test_values_in_use_outlive_the_cache(void **state)
{
    struct cache *cache = new_cache(10);
    struct fetch f = {.is = 7, .cost = 1};
    struct cache_key key = key_of(7);
    void *value;

    (void)state;
    assert_int_equal(cache_get(cache, &key, fetch_number, &f, &value, NULL), CAIRN_OK);
    cache_free(cache);
    assert_int_equal(((struct number *)value)->is, 7);
    number_unref(value);
    assert_int_equal(atomic_load(&alive), 0);
}

static void drop_odd(void *cache, const struct cache_key *key, void *value)
{
    if (((const struct number *)value)->is % 2 == 1)
        cache_drop(cache, key, value);
}

static void test_each_may_be_dropped(void **state)
{
    struct cache *cache = new_cache(1000);
    struct cache_stats stats;

    (void)state;
    for (uint32_t i = 0; i < 100; i++)
        get_number(cache, i, 1);
    cache_each(cache, drop_odd, cache);
    cache_get_stats(cache, &stats);
    assert_int_equal(stats.entries, 50);
    assert_int_equal(atomic_load(&alive), 50);
    cache_free(cache);
    assert_int_equal(atomic_load(&alive), 0);
}

static void test_drop_is_for_the_value_seen(void **state)
{
    struct cache *cache = new_cache(10);
    struct cache_key key = key_of(3);
    struct number *bad = number_new(3, 1), *good = number_new(3, 1);
    void *value;

    (void)state;
    cache_put(cache, &key, bad);
    cache_drop(cache, &key, bad);
    assert_null(cache_peek(cache, &key));
    cache_put(cache, &key, good);
    cache_drop(cache, &key, bad); /* somebody else saw it too, but late */
    value = cache_peek(cache, &key);
    assert_ptr_equal(value, good);
    number_unref(value);
    number_unref(good);
    number_unref(bad);
    cache_free(cache);
    assert_int_equal(atomic_load(&alive), 0);
}

/* -- Threads ---------------------------------------------------------------------------------- */

#define NR_THREADS 8

struct asker {
    pthread_t thread;
    struct cache *cache;
    struct fetch *fetch;
    int code;
    char message[64];
};

static void *ask(void *arg)
{
    struct asker *a = arg;
    struct cache_key key = key_of(a->fetch->is);
    struct cairn_error err = {.message = ""};
    void *value;

    a->code = cache_get(a->cache, &key, fetch_number, a->fetch, &value, &err);
    if (a->code == CAIRN_OK)
        number_unref(value);
    else
        snprintf(a->message, sizeof(a->message), "%.60s", err.message);
    return NULL;
}

/* All at once; the fetch comes back only when all others wait for it. */
static void ask_together(struct cache *cache, struct fetch *fetch, struct asker askers[NR_THREADS])
{
    fetch->cache = cache;
    fetch->nr_waiters = NR_THREADS - 1;
    for (int i = 0; i < NR_THREADS; i++) {
        askers[i] = (struct asker){.cache = cache, .fetch = fetch};
        assert_int_equal(pthread_create(&askers[i].thread, NULL, ask, &askers[i]), 0);
    }
    for (int i = 0; i < NR_THREADS; i++)
        assert_int_equal(pthread_join(askers[i].thread, NULL), 0);
}

static void test_many_askers_one_fetch(void **state)
{
    const size_t bounds[] = {100, 0}; /* also if nothing is kept */

    (void)state;
    for (size_t i = 0; i < 2; i++) {
        struct cache *cache = new_cache(bounds[i]);
        struct fetch f = {.is = 5, .cost = 1};
        struct asker askers[NR_THREADS];

        ask_together(cache, &f, askers);
        assert_int_equal(atomic_load(&f.nr_fetches), 1);
        for (int t = 0; t < NR_THREADS; t++)
            assert_int_equal(askers[t].code, CAIRN_OK);
        cache_free(cache);
        assert_int_equal(atomic_load(&alive), 0);
    }
}

static void test_a_failure_is_all_waiters_and_not_kept(void **state)
{
    struct cache *cache = new_cache(100);
    struct fetch f = {.is = 5, .cost = 1, .code = CAIRN_E_IO};
    struct asker askers[NR_THREADS];

    (void)state;
    ask_together(cache, &f, askers);
    assert_int_equal(atomic_load(&f.nr_fetches), 1);
    for (int t = 0; t < NR_THREADS; t++) {
        assert_int_equal(askers[t].code, CAIRN_E_IO);
        assert_string_equal(askers[t].message, "no number 5");
    }
    assert_true(get_number(cache, 5, 1)); /* the next asker tries again */
    cache_free(cache);
}

/* A fetch that ends when somebody has lost patience with it. */
struct slow {
    struct cache *cache;
    atomic_bool lost;
    int code; /* what the waiter got */
};

static int fetch_slowly(void *arg, void **ret_value, struct cairn_error *err)
{
    struct slow *s = arg;

    (void)err;
    while (!atomic_load(&s->lost))
        sched_yield();
    *ret_value = number_new(5, 1);
    return CAIRN_OK;
}

static void *ask_slowly(void *arg)
{
    struct slow *s = arg;
    struct cache_key key = key_of(5);
    void *value;

    assert_int_equal(cache_get(s->cache, &key, fetch_slowly, s, &value, NULL), CAIRN_OK);
    number_unref(value);
    return NULL;
}

static void test_nobody_waits_for_ever(void **state)
{
    struct slow s = {.cache = new_cache(100)};
    struct fetch f = {.is = 5};
    struct asker waiter = {.cache = s.cache, .fetch = &f};
    pthread_t fetcher;
    struct cache_stats stats;

    (void)state;
    cache_set_patience(s.cache, 1);
    assert_int_equal(pthread_create(&fetcher, NULL, ask_slowly, &s), 0);
    do
        cache_get_stats(s.cache, &stats);
    while (stats.misses == 0);
    ask(&waiter);
    assert_int_equal(waiter.code, CAIRN_E_UNAVAILABLE);
    atomic_store(&s.lost, true);
    assert_int_equal(pthread_join(fetcher, NULL), 0);
    assert_false(get_number(s.cache, 5, 1)); /* what came late is kept */
    cache_free(s.cache);
    assert_int_equal(atomic_load(&alive), 0);
}

static struct histogram latency; /* of the caches below */

static void *look_up_often(void *arg)
{
    for (unsigned i = 0; i < 10 * CACHE_TIMED_ONE_IN; i++)
        get_number(arg, i % 2, 1);
    return NULL;
}

/* In threads of their own, for the count goes on from what a thread has looked up before. */
static void test_one_look_up_in_many_is_timed(void **state)
{
    struct cache *cache = new_cache(100);
    pthread_t thread;

    (void)state;
    cache_time_look_ups(cache, &latency);
    assert_int_equal(pthread_create(&thread, NULL, look_up_often, cache), 0);
    assert_int_equal(pthread_join(thread, NULL), 0);
    assert_int_equal(histogram_total(&latency), 10);
    cache_free(cache);
}

static int fetch_and_look(void *nr_timed_before, void **ret_value, struct cairn_error *err)
{
    (void)err;
    *(uint64_t *)nr_timed_before = histogram_total(&latency);
    *ret_value = number_new(5, 1);
    return CAIRN_OK;
}

static void *miss(void *arg)
{
    struct cache_key key = key_of(5);
    uint64_t *nr_timed_before = calloc(1, sizeof(*nr_timed_before));
    void *value;

    if (nr_timed_before && !cache_get(arg, &key, fetch_and_look, nr_timed_before, &value, NULL))
        number_unref(value);
    return nr_timed_before;
}

/* The first look-up of a thread is. */
static void test_a_miss_is_timed_without_its_fetch(void **state)
{
    struct cache *cache = new_cache(100);
    uint64_t nr_before = histogram_total(&latency);
    pthread_t thread;
    void *nr_timed_before;

    (void)state;
    cache_time_look_ups(cache, &latency);
    assert_int_equal(pthread_create(&thread, NULL, miss, cache), 0);
    assert_int_equal(pthread_join(thread, &nr_timed_before), 0);
    assert_non_null(nr_timed_before);
    assert_int_equal(*(uint64_t *)nr_timed_before, nr_before + 1);
    assert_int_equal(histogram_total(&latency), nr_before + 1);
    free(nr_timed_before);
    cache_free(cache);
}

static void *hammer(void *arg)
{
    struct cache *cache = arg;
    uint32_t x = (uint32_t)(uintptr_t)pthread_self() | 1;

    for (int i = 0; i < 20000; i++) {
        x = x * 1664525 + 1013904223;
        get_number(cache, x >> 25, 1 + (x >> 29));
    }
    return NULL;
}

static void test_bound_and_counts_under_concurrency(void **state)
{
    struct cache *cache = new_cache(200);
    pthread_t threads[NR_THREADS];
    struct cache_stats stats;

    (void)state;
    for (int i = 0; i < NR_THREADS; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, hammer, cache), 0);
    for (int i = 0; i < NR_THREADS; i++)
        assert_int_equal(pthread_join(threads[i], NULL), 0);
    cache_get_stats(cache, &stats);
    assert_true(stats.cost <= 200);
    assert_int_equal(stats.hits + stats.misses, NR_THREADS * 20000);
    assert_int_equal(stats.entries, atomic_load(&alive));
    cache_free(cache);
    assert_int_equal(atomic_load(&alive), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_keeps_what_it_fetched),
        cmocka_unit_test(test_who_must_not_wait_gets_what_is_there),
        cmocka_unit_test(test_stays_within_its_bound),
        cmocka_unit_test(test_what_is_used_stays),
        cmocka_unit_test(test_a_value_may_fill_the_cache_but_not_more),
        cmocka_unit_test(test_values_in_use_outlive_the_cache),
        cmocka_unit_test(test_each_may_be_dropped),
        cmocka_unit_test(test_drop_is_for_the_value_seen),
        cmocka_unit_test(test_many_askers_one_fetch),
        cmocka_unit_test(test_a_failure_is_all_waiters_and_not_kept),
        cmocka_unit_test(test_nobody_waits_for_ever),
        cmocka_unit_test(test_one_look_up_in_many_is_timed),
        cmocka_unit_test(test_a_miss_is_timed_without_its_fetch),
        cmocka_unit_test(test_bound_and_counts_under_concurrency),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
