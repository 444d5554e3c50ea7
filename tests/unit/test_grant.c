/* SPDX-License-Identifier: Apache-2.0 */
/* Grants and patterns: what they match, and what is refused. */
#include "test.h"

#include <stdio.h>
#include <string.h>

#include "grant.h"

static void test_patterns_match(void **state)
{
    static const struct {
        const char *pattern, *repo;
        bool matches;
    } cases[] = {
        {"*", "a", true},
        {"*", "a/b/c", true},
        {"team/*", "team/vm", true},
        {"team/*", "team/vm/sub", true},
        {"team/*", "team", false},
        {"team/*", "teams/vm", false},
        {"team/*", "a/team/vm", false},
        {"team*", "team", true},
        {"team*", "team/vm", true},
        {"*/vm", "vm", false},
        {"*/vm", "a/b/vm", true},
        {"*/vm", "a/vm/b", false},
        {"a*b*c", "abc", true},
        {"a*b*c", "axbxbxc", true},
        {"a*b*c", "acb", false},
        {"a**c", "abc", true},
        {"vm", "vm", true},
        {"vm", "vm2", false},
        {"vm2", "vm", false},
        {"v.m", "vxm", false},
    };

    (void)state;
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++)
        if (repo_pattern_matches(cases[i].pattern, cases[i].repo) != cases[i].matches)
            fail_msg("%s and %s: expected %d", cases[i].pattern, cases[i].repo, cases[i].matches);
}

/* Each `*` that may match anywhere must not multiply the work. */
static void test_many_stars_cost_little(void **state)
{
    char pattern[REPO_PATTERN_MAX], repo[REPO_PATTERN_MAX];

    (void)state;
    memset(repo, 'a', sizeof(repo));
    repo[sizeof(repo) - 1] = 0;
    for (size_t i = 0; i + 1 < sizeof(pattern); i++)
        pattern[i] = i % 2 ? '*' : 'a';
    pattern[sizeof(pattern) - 2] = 'b';
    pattern[sizeof(pattern) - 1] = 0;
    assert_false(repo_pattern_matches(pattern, repo));
}

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
        assert_false(repo_pattern_valid(patterns[i]));
        snprintf(text, sizeof(text), "pull:%s", patterns[i]);
        assert_int_equal(grant_parse(text, &g, &err), CAIRN_E_USAGE);
        assert_non_null(strstr(err.message, "is not a pattern of repository names"));
    }
    memset(text, 'a', sizeof(text));
    text[REPO_PATTERN_MAX] = 0;
    assert_false(repo_pattern_valid(text));
    text[REPO_PATTERN_MAX - 1] = 0;
    assert_true(repo_pattern_valid(text));
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
        cmocka_unit_test(test_patterns_match),
        cmocka_unit_test(test_many_stars_cost_little),
        cmocka_unit_test(test_grants_are_parsed),
        cmocka_unit_test(test_malformed_grants_are_refused),
        cmocka_unit_test(test_malformed_patterns_are_refused),
        cmocka_unit_test(test_a_grant_allows_its_actions_where_it_matches),
        cmocka_unit_test(test_no_action_implies_another),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
