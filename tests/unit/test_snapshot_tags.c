/* SPDX-License-Identifier: Apache-2.0 */
#include "test.h"

#include "snapshot_tags.h"

static char long_name[200];

static void assert_tags(const struct qcow2_snapshot *list, uint32_t nr, const char *const *expected)
{
    struct cairn_error err;
    char **tags;

    if (snapshot_tags("v1", list, nr, &tags, &err) != CAIRN_OK)
        fail_msg("%s", err.message);
    for (uint32_t i = 0; i < nr; i++)
        assert_string_equal(tags[i], expected[i]);
    snapshot_tags_free(tags, nr);
}

static void assert_refused(const struct qcow2_snapshot *list, uint32_t nr, int code,
                           const char *why)
{
    struct cairn_error err;
    char **tags;

    assert_int_equal(snapshot_tags("v1", list, nr, &tags, &err), code);
    if (!strstr(err.message, why))
        fail_msg("%s", err.message);
}

static struct qcow2_snapshot named(const char *id, const char *name)
{
    return (struct qcow2_snapshot){.id = (char *)(uintptr_t)id, .name = (char *)(uintptr_t)name};
}

static void test_a_name_becomes_a_tag(void **state)
{
    const struct qcow2_snapshot list[] = {named("1", "b.0_x-Y"), named("2", "a b/c:\xc3\xa9\n"),
                                          named("3", "")};
    const char *const expected[] = {"v1-b.0_x-Y", "v1-a-b-c----", "v1-3"};

    (void)state;
    assert_tags(list, 3, expected);
}

static void test_equal_tags_get_their_ids_whatever_the_order(void **state)
{
    const struct qcow2_snapshot list[] = {named("7", "a b"), named("8", "x"), named("9", "a-b"),
                                          named("4", "a-b")};
    const char *const expected[] = {"v1-a-b-7", "v1-x", "v1-a-b-9", "v1-a-b-4"};

    (void)state;
    assert_tags(list, 4, expected);
}

static void test_what_collides_even_so_is_refused(void **state)
{
    const struct qcow2_snapshot ids[] = {named("1", "a"), named("1", "a")};
    const struct qcow2_snapshot names[] = {named("1", "a"), named("2", "a"), named("3", "a-2")};

    (void)state;
    assert_refused(ids, 2, CAIRN_E_CONFLICT, "would both become tag v1-a-1");
    assert_refused(names, 3, CAIRN_E_CONFLICT, "would both become tag v1-a-2");
}

static void test_a_tag_has_at_most_128_characters(void **state)
{
    const struct qcow2_snapshot list[] = {named("1", long_name)};
    char longest[129] = "v1-";
    const char *const expected[] = {longest};

    (void)state;
    memset(long_name, 'n', 126);
    assert_refused(list, 1, CAIRN_E_LIMIT, "longer than 128 characters");
    long_name[125] = 0;
    memset(longest + 3, 'n', 125);
    assert_tags(list, 1, expected);
}

static void test_no_snapshots_no_tags(void **state)
{
    (void)state;
    assert_tags(NULL, 0, NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_name_becomes_a_tag),
        cmocka_unit_test(test_equal_tags_get_their_ids_whatever_the_order),
        cmocka_unit_test(test_what_collides_even_so_is_refused),
        cmocka_unit_test(test_a_tag_has_at_most_128_characters),
        cmocka_unit_test(test_no_snapshots_no_tags),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
