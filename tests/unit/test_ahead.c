/* SPDX-License-Identifier: Apache-2.0 */
#include "test.h"

#include <stdatomic.h>

#include "ahead.h"

#define NR 200

struct work {
    atomic_uint nr_made, nr_freed, next_taken, most_ahead;
    atomic_uint times_made[NR];
    uint32_t failing; /* NR: none */
};

static int make(void *ctx, uint32_t nr, void **ret_item, struct cairn_error *err)
{
    struct work *work = ctx;
    uint32_t *item = malloc(sizeof(*item));
    unsigned before = nr - atomic_load(&work->next_taken);

    assert_non_null(item);
    atomic_fetch_add(&work->times_made[nr], 1);
    if (before < NR && before > atomic_load(&work->most_ahead))
        atomic_store(&work->most_ahead, before);
    if (nr == work->failing) {
        free(item);
        return error_set(err, CAIRN_E_IO, "item %u is out of reach", nr);
    }
    atomic_fetch_add(&work->nr_made, 1);
    *item = nr;
    *ret_item = item;
    return CAIRN_OK;
}

static struct work *to_free_of;

static void free_item(void *item)
{
    atomic_fetch_add(&to_free_of->nr_freed, 1);
    free(item);
}

static struct ahead *start(struct work *work, uint32_t first, uint32_t end)
{
    const struct ahead_work ahead_work = {.make = make, .free = free_item, .ctx = work};
    struct ahead *ahead;

    to_free_of = work;
    atomic_store(&work->next_taken, first);
    assert_int_equal(ahead_new(&ahead_work, first, end, &ahead, NULL), CAIRN_OK);
    return ahead;
}

/* Take what must be item nr. */
static void take(struct ahead *ahead, struct work *work, uint32_t nr)
{
    void *item = NULL;

    assert_int_equal(ahead_take(ahead, &item, NULL), CAIRN_OK);
    assert_int_equal(*(uint32_t *)item, nr);
    atomic_store(&work->next_taken, nr + 1);
    free(item);
}

static void test_items_come_in_order_and_once(void **state)
{
    struct work work = {.failing = NR};
    CLEANUP(ahead_free_p) struct ahead *ahead = start(&work, 3, NR);

    (void)state;
    for (uint32_t nr = 3; nr < NR; nr++)
        take(ahead, &work, nr);
    for (uint32_t nr = 0; nr < NR; nr++)
        assert_int_equal(work.times_made[nr], nr < 3 ? 0 : 1);
    assert_true(work.most_ahead <= AHEAD_WINDOW);
}

static void test_a_failure_is_told_at_its_turn(void **state)
{
    struct work work = {.failing = 20};
    CLEANUP(ahead_free_p) struct ahead *ahead = start(&work, 0, NR);
    struct cairn_error err;
    void *item;

    (void)state;
    for (uint32_t nr = 0; nr < 20; nr++)
        take(ahead, &work, nr);
    assert_int_equal(ahead_take(ahead, &item, &err), CAIRN_E_IO);
    assert_string_equal(err.message, "item 20 is out of reach");
    take(ahead, &work, 21);
}

static void test_what_is_not_taken_is_freed(void **state)
{
    struct work work = {.failing = 7};
    struct ahead *ahead = start(&work, 0, NR);

    (void)state;
    take(ahead, &work, 0);
    take(ahead, &work, 1);
    ahead_free(ahead);
    assert_int_equal(work.nr_freed, work.nr_made - 2);
    assert_true(work.nr_made <= AHEAD_WINDOW + 2);
}

static void test_one_item_and_none(void **state)
{
    struct work work = {.failing = NR};
    struct ahead *ahead = start(&work, 5, 6);

    (void)state;
    take(ahead, &work, 5);
    ahead_free(ahead);
    ahead_free(start(&work, 6, 6));
    assert_int_equal(work.nr_made, 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_items_come_in_order_and_once),
        cmocka_unit_test(test_a_failure_is_told_at_its_turn),
        cmocka_unit_test(test_what_is_not_taken_is_freed),
        cmocka_unit_test(test_one_item_and_none),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
