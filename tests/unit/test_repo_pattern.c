/* SPDX-License-Identifier: Apache-2.0 */
#include "test.h"

#include <string.h>

#include "repo_pattern.h"

static void test_patterns_match(void **state)
{
    static const struct {
        const char *pattern, *repo;
        bool matches;
    } cases[] = {
        {"*", "a", true},
        {"*", "team/a/b", true},
        {"team/*", "team/a", true},
        {"team/*", "team/a/b", true},
        {"team/*", "team", false},
        {"team/*", "team2/a", false},
        {"team/*", "steam/a", false},
        {"golden", "golden", true},
        {"golden", "golden2", false},
        {"golden", "golde", false},
        {"*/nightly", "a/b/nightly", true},
        {"*/nightly", "nightly", false},
        {"*a*b", "xaxxb", true},
        {"*a*b", "xaxxbc", false},
        {"a**c", "abc", true},
        {"a*", "a", true},
        {"*ab", "aab", true},
        {"*abab", "ababab", true},
        {"", "a", false},
    };

    (void)state;
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        if (repo_pattern_matches(cases[i].pattern, cases[i].repo) != cases[i].matches)
            print_error("pattern '%s', repository '%s'\n", cases[i].pattern, cases[i].repo);
        assert_int_equal(repo_pattern_matches(cases[i].pattern, cases[i].repo), cases[i].matches);
    }
}

/* With a matcher that tries every way this would not end. */
static void test_many_wildcards_cost_little(void **state)
{
    char pattern[201], repo[256];

    (void)state;
    for (int i = 0; i < 200; i += 2)
        memcpy(pattern + i, "*a", 2);
    pattern[200] = 0;
    memset(repo, 'a', 255);
    repo[254] = 'b';
    repo[255] = 0;
    assert_false(repo_pattern_matches(pattern, repo));
}

static void test_valid_patterns(void **state)
{
    (void)state;
    assert_true(repo_pattern_valid("team/*", 6));
    assert_true(repo_pattern_valid("a.b_c-9*", 8));
    assert_false(repo_pattern_valid("", 0));
    assert_false(repo_pattern_valid("Team", 4));
    assert_false(repo_pattern_valid("a b", 3));
    assert_false(repo_pattern_valid("a=b", 3));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_patterns_match),
        cmocka_unit_test(test_many_wildcards_cost_little),
        cmocka_unit_test(test_valid_patterns),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
