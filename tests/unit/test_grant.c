/* SPDX-License-Identifier: Apache-2.0 */
/* Grants: what they allow, and what is refused. */
#include "test.h"

#include <stdio.h>
#include <string.h>

#include "grant.h"

static void test_grants_are_parsed(void **state)
{
    struct cairn_error err;
    struct grant g;

    (void)state;
    assert_int_equal(grant_parse("pull", &g, &err), CAIRN_OK);
    assert_int_equal(g.actions, GRANT_PULL);
    assert_string_equal(g.pattern, "*");
    assert_int_equal(grant_parse("pull,push,delete:team/*", &g, &err), CAIRN_OK);
    assert_int_equal(g.actions, GRANT_PULL | GRANT_PUSH | GRANT_DELETE);
    assert_string_equal(g.pattern, "team/*");
    assert_int_equal(grant_parse("pull,admin", &g, &err), CAIRN_OK);
    assert_int_equal(g.actions, GRANT_PULL | GRANT_ADMIN);
}

static void test_malformed_grants_are_refused(void **state)
{
    static const struct {
        const char *text, *message;
    } cases[] = {
        {"", "unknown action \"\", expected pull, push, delete or admin"},
        {"read", "unknown action \"read\", expected pull, push, delete or admin"},
        {"PULL", "unknown action \"PULL\", expected pull, push, delete or admin"},
        {"pull,", "unknown action \"\", expected pull, push, delete or admin"},
        {",pull", "unknown action \"\", expected pull, push, delete or admin"},
        {":team", "unknown action \"\", expected pull, push, delete or admin"},
        {"pull push", "unknown action \"pull push\", expected pull, push, delete or admin"},
        {"admin:team/*", "admin is about no repository: give it without \":team/*\""},
    };
    struct cairn_error err;
    struct grant g;

    (void)state;
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        assert_int_equal(grant_parse(cases[i].text, &g, &err), CAIRN_E_USAGE);
        assert_string_equal(err.message, cases[i].message);
    }
}

static void test_malformed_patterns_are_refused(void **state)
{
    static const char *const patterns[] = {"", "Team", "a b", "a:b", "a?", "[a]", "a\\b", "a\n"};
    char text[600];
    struct cairn_error err;
    struct grant g;

    (void)state;
    for (size_t i = 0; i < sizeof(patterns) / sizeof(patterns[0]); i++) {
        snprintf(text, sizeof(text), "pull:%s", patterns[i]);
        assert_int_equal(grant_parse(text, &g, &err), CAIRN_E_USAGE);
        assert_non_null(strstr(err.message, "is not a pattern of repository names"));
    }
}

static void test_patterns_are_as_long_as_names_can_be(void **state)
{
    char text[5 + GRANT_PATTERN_MAX + 1] = "pull:";
    struct grant g;

    (void)state;
    memset(text + 5, 'a', GRANT_PATTERN_MAX);
    assert_int_equal(grant_parse(text, &g, NULL), CAIRN_E_USAGE);
    text[5 + GRANT_PATTERN_MAX - 1] = 0;
    assert_int_equal(grant_parse(text, &g, NULL), CAIRN_OK);
    assert_int_equal(strlen(g.pattern), GRANT_PATTERN_MAX - 1);
}

static void test_a_grant_allows_its_actions_where_it_matches(void **state)
{
    struct grant g;

    (void)state;
    assert_int_equal(grant_parse("pull,push:team/*", &g, NULL), CAIRN_OK);
    assert_true(grant_allows(&g, GRANT_PULL, "team/vm"));
    assert_true(grant_allows(&g, GRANT_PUSH, "team/vm"));
    assert_false(grant_allows(&g, GRANT_DELETE, "team/vm"));
    assert_false(grant_allows(&g, GRANT_ADMIN, NULL));
    assert_false(grant_allows(&g, GRANT_PULL, "other/vm"));
    assert_true(grant_allows(&g, GRANT_PULL, NULL));
}

static void test_no_action_implies_another(void **state)
{
    static const enum grant_action all[] = {GRANT_PULL, GRANT_PUSH, GRANT_DELETE, GRANT_ADMIN};
    struct grant g;

    (void)state;
    for (size_t i = 0; i < 4; i++) {
        assert_int_equal(grant_parse(grant_action_name(all[i]), &g, NULL), CAIRN_OK);
        for (size_t k = 0; k < 4; k++)
            assert_int_equal(grant_allows(&g, all[k], NULL), i == k);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_grants_are_parsed),
        cmocka_unit_test(test_malformed_grants_are_refused),
        cmocka_unit_test(test_malformed_patterns_are_refused),
        cmocka_unit_test(test_patterns_are_as_long_as_names_can_be),
        cmocka_unit_test(test_a_grant_allows_its_actions_where_it_matches),
        cmocka_unit_test(test_no_action_implies_another),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
