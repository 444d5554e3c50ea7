/* SPDX-License-Identifier: Apache-2.0 */
#include "test.h"

#include "http.h"

#define SIZE 1000
#define ETAG "\"abc\""

static void assert_partial(const char *range, uint64_t off, uint64_t len)
{
    uint64_t got_off, got_len;

    assert_int_equal(http_range_parse(range, NULL, SIZE, ETAG, &got_off, &got_len),
                     HTTP_RANGE_PARTIAL);
    assert_int_equal(got_off, off);
    assert_int_equal(got_len, len);
}

static enum http_range parse(const char *range, const char *if_range, uint64_t size)
{
    uint64_t off, len;

    return http_range_parse(range, if_range, size, ETAG, &off, &len);
}

static void test_first_and_last_byte(void **state)
{
    (void)state;
    assert_partial("bytes=0-0", 0, 1);
    assert_partial("bytes=999-999", 999, 1);
    assert_partial("bytes=0-999", 0, 1000);
    assert_partial("bytes=200-299", 200, 100);
}

static void test_open_end(void **state)
{
    (void)state;
    assert_partial("bytes=0-", 0, 1000);
    assert_partial("bytes=990-", 990, 10);
}

static void test_end_past_the_size_is_cut(void **state)
{
    (void)state;
    assert_partial("bytes=990-5000", 990, 10);
    assert_partial("bytes=990-99999999999999999999999999", 990, 10);
}

static void test_suffix(void **state)
{
    (void)state;
    assert_partial("bytes=-1", 999, 1);
    assert_partial("bytes=-1000", 0, 1000);
    assert_partial("bytes=-5000", 0, 1000);
}

static void test_blanks_and_case(void **state)
{
    (void)state;
    assert_partial("Bytes=1-2", 1, 2);
    assert_partial("bytes= 1-2 ", 1, 2);
}

static void test_unsatisfiable(void **state)
{
    (void)state;
    assert_int_equal(parse("bytes=1000-", NULL, SIZE), HTTP_RANGE_UNSATISFIABLE);
    assert_int_equal(parse("bytes=1000-2000", NULL, SIZE), HTTP_RANGE_UNSATISFIABLE);
    assert_int_equal(parse("bytes=99999999999999999999999-", NULL, SIZE), HTTP_RANGE_UNSATISFIABLE);
    assert_int_equal(parse("bytes=-0", NULL, SIZE), HTTP_RANGE_UNSATISFIABLE);
    assert_int_equal(parse("bytes=0-0", NULL, 0), HTTP_RANGE_UNSATISFIABLE);
    assert_int_equal(parse("bytes=-1", NULL, 0), HTTP_RANGE_UNSATISFIABLE);
}

static void test_what_does_not_parse_is_ignored(void **state)
{
    static const char *const ranges[] = {
        "",           "bytes",      "bytes=",        "bytes=-",   "bytes=a-b",   "bytes=5",
        "bytes=5-4",  "bytes=0-1,", "bytes=0-1,5-6", "lines=0-1", "0-1",         "bytes=0--1",
        "bytes=0-1x", "bytes=+1-2", "bytes=1 -2",    "bytes=--1", "bytes=0x1-2",
    };

    (void)state;
    assert_int_equal(parse(NULL, NULL, SIZE), HTTP_RANGE_NONE);
    for (size_t i = 0; i < sizeof(ranges) / sizeof(ranges[0]); i++)
        assert_int_equal(parse(ranges[i], NULL, SIZE), HTTP_RANGE_NONE);
}

static void test_if_range_must_match_strongly(void **state)
{
    (void)state;
    assert_int_equal(parse("bytes=0-1", ETAG, SIZE), HTTP_RANGE_PARTIAL);
    assert_int_equal(parse("bytes=0-1", "\"other\"", SIZE), HTTP_RANGE_NONE);
    assert_int_equal(parse("bytes=0-1", "W/" ETAG, SIZE), HTTP_RANGE_NONE);
    assert_int_equal(parse("bytes=0-1", "Sat, 29 Oct 1994 19:43:31 GMT", SIZE), HTTP_RANGE_NONE);
    assert_int_equal(parse("bytes=9999-", "\"other\"", SIZE), HTTP_RANGE_NONE);
}

static void test_if_none_match(void **state)
{
    (void)state;
    assert_true(http_etag_listed(ETAG, ETAG));
    assert_true(http_etag_listed("\"x\", " ETAG " ,\"y\"", ETAG));
    assert_true(http_etag_listed("W/" ETAG, ETAG));
    assert_true(http_etag_listed("*", ETAG));
    assert_false(http_etag_listed(NULL, ETAG));
    assert_false(http_etag_listed("", ETAG));
    assert_false(http_etag_listed("\"x\",\"ab\"", ETAG));
    assert_false(http_etag_listed("abc", ETAG));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_first_and_last_byte),
        cmocka_unit_test(test_open_end),
        cmocka_unit_test(test_end_past_the_size_is_cut),
        cmocka_unit_test(test_suffix),
        cmocka_unit_test(test_blanks_and_case),
        cmocka_unit_test(test_unsatisfiable),
        cmocka_unit_test(test_what_does_not_parse_is_ignored),
        cmocka_unit_test(test_if_range_must_match_strongly),
        cmocka_unit_test(test_if_none_match),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
