/* SPDX-License-Identifier: Apache-2.0 */
#include "test.h"

#include "inflight.h"

static struct inflight table;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static int setup(void **state)
{
    (void)state;
    inflight_init(&table);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    inflight_release(&table);
    return 0;
}

static bool try_op(struct inflight_op *op, enum inflight_mode mode, uint64_t start, uint64_t end)
{
    return inflight_try_locked(&table, op, mode, start, end);
}

static void leave(struct inflight_op *op)
{
    inflight_leave_locked(&table, op);
}

static void test_modes_that_go_together(void **state)
{
    static const char *const expected[INFLIGHT_MODES] = {"yyyn", "yynn", "ynnn", "nnnn"};

    (void)state;
    for (unsigned first = 0; first < INFLIGHT_MODES; first++) {
        for (unsigned second = 0; second < INFLIGHT_MODES; second++) {
            struct inflight_op a = {0}, b = {0};

            assert_true(try_op(&a, first, 0, 8));
            assert_int_equal(try_op(&b, second, 7, 9), expected[first][second] == 'y');
            leave(&b);
            leave(&a);
        }
    }
}

static void test_neighbours_do_not_meet(void **state)
{
    struct inflight_op a = {0}, b = {0}, c = {0};

    (void)state;
    assert_true(try_op(&a, INFLIGHT_FREE, 10, 20));
    assert_true(try_op(&b, INFLIGHT_FREE, 0, 10));
    assert_true(try_op(&c, INFLIGHT_FREE, 20, 30));
    leave(&a);
    leave(&b);
    leave(&c);
}

static void test_later_ones_do_not_overtake_who_waits(void **state)
{
    struct inflight_op reader = {0}, freer = {0}, late = {0};

    (void)state;
    assert_true(try_op(&reader, INFLIGHT_READ, 0, 8));
    assert_false(try_op(&freer, INFLIGHT_FREE, 0, 8));
    assert_false(try_op(&late, INFLIGHT_READ, 0, 8));
    leave(&reader);
    assert_false(try_op(&late, INFLIGHT_READ, 0, 8));
    assert_true(try_op(&freer, INFLIGHT_FREE, 0, 8));
    assert_false(try_op(&late, INFLIGHT_READ, 0, 8));
    leave(&freer);
    assert_true(try_op(&late, INFLIGHT_READ, 0, 8));
    leave(&late);
}

static void test_who_waits_may_claim_something_else(void **state)
{
    struct inflight_op a = {0}, b = {0};

    (void)state;
    assert_true(try_op(&a, INFLIGHT_CHANGE, 0, 8));
    assert_false(try_op(&b, INFLIGHT_WRITE, 0, 8));
    assert_true(try_op(&b, INFLIGHT_WRITE, 8, 16));
    leave(&a);
    leave(&b);
}

static void test_a_stronger_claim_minds_later_ones_that_run(void **state)
{
    struct inflight_op a = {0}, first = {0}, later = {0};

    (void)state;
    assert_true(try_op(&a, INFLIGHT_FREE, 0, 8));
    assert_false(try_op(&first, INFLIGHT_WRITE, 0, 16));
    assert_true(try_op(&later, INFLIGHT_WRITE, 8, 16));
    leave(&a);
    assert_false(try_op(&first, INFLIGHT_CHANGE, 0, 16));
    leave(&later);
    assert_true(try_op(&first, INFLIGHT_CHANGE, 0, 16));
    leave(&first);
}

static void test_shrinking_lets_others_in(void **state)
{
    struct inflight_op a = {0}, b = {0};

    (void)state;
    assert_true(try_op(&a, INFLIGHT_CHANGE, 0, 16));
    assert_false(try_op(&b, INFLIGHT_CHANGE, 8, 16));
    inflight_shrink_locked(&table, &a, 8);
    assert_true(try_op(&b, INFLIGHT_CHANGE, 8, 16));
    leave(&a);
    leave(&b);
}

static void test_leaving_without_having_entered(void **state)
{
    struct inflight_op op = {0};

    (void)state;
    leave(&op);
    assert_int_equal(table.nr_waiting, 0);
}

static void *enter_alone(void *arg)
{
    struct inflight_op op = {0};

    pthread_mutex_lock(&lock);
    while (!try_op(&op, INFLIGHT_FREE, 0, 8))
        inflight_wait_locked(&table, &lock);
    (*(unsigned *)arg)++;
    leave(&op);
    pthread_mutex_unlock(&lock);
    return NULL;
}

static void test_all_who_wait_get_their_turn(void **state)
{
    struct inflight_op op = {0};
    pthread_t threads[8];
    unsigned entered = 0;

    (void)state;
    pthread_mutex_lock(&lock);
    assert_true(try_op(&op, INFLIGHT_READ, 0, 8));
    pthread_mutex_unlock(&lock);
    for (unsigned i = 0; i < 8; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, enter_alone, &entered), 0);
    pthread_mutex_lock(&lock);
    assert_int_equal(entered, 0);
    leave(&op);
    pthread_mutex_unlock(&lock);
    for (unsigned i = 0; i < 8; i++)
        pthread_join(threads[i], NULL);
    assert_int_equal(entered, 8);
    assert_true(TAILQ_EMPTY(&table.ops));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_modes_that_go_together),
        cmocka_unit_test(test_neighbours_do_not_meet),
        cmocka_unit_test(test_later_ones_do_not_overtake_who_waits),
        cmocka_unit_test(test_who_waits_may_claim_something_else),
        cmocka_unit_test(test_a_stronger_claim_minds_later_ones_that_run),
        cmocka_unit_test(test_shrinking_lets_others_in),
        cmocka_unit_test(test_leaving_without_having_entered),
        cmocka_unit_test(test_all_who_wait_get_their_turn),
    };

    return cmocka_run_group_tests(tests, setup, teardown);
}
