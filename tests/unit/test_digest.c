/* SPDX-License-Identifier: Apache-2.0 */
#include "test.h"

#include <string.h>

#include "digest.h"
#include "quote.h"

#define EMPTY "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
#define ABC   "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"

static void test_digest_of_known_texts(void **state)
{
    struct digest d;
    char text[DIGEST_STR_MAX];

    (void)state;
    digest_of("", 0, &d);
    assert_string_equal(digest_format(&d, text), EMPTY);
    digest_of("abc", 3, &d);
    assert_string_equal(digest_format(&d, text), ABC);
    assert_string_equal(digest_format_hex(&d, text), &ABC[7]);
}

static void test_parse_inverts_format(void **state)
{
    struct digest d, abc;

    (void)state;
    assert_int_equal(digest_parse(ABC, strlen(ABC), &d, NULL), CAIRN_OK);
    digest_of("abc", 3, &abc);
    assert_true(digest_equal(&d, &abc));
}

static void test_parse_refuses_other_texts(void **state)
{
    static const char *const bad[] = {
        "",
        "sha256:",
        "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
        "sha512:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
        "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015a",
        "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad0",
        "sha256:BA7816BF8F01CFEA414140DE5DAE2223B00361A396177A9CB410FF61F20015AD",
        "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ag",
    };
    struct cairn_error err;
    struct digest d;

    (void)state;
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
        assert_int_equal(digest_parse(bad[i], strlen(bad[i]), &d, &err), CAIRN_E_USAGE);
    digest_parse("sha\n", 4, &d, &err);
    assert_non_null(strstr(err.message, "\"sha\\x0a\""));
}

static void test_hasher_takes_pieces(void **state)
{
    CLEANUP(hasher_free_p) struct hasher *h = NULL;
    char text[DIGEST_STR_MAX];
    struct digest d;

    (void)state;
    assert_int_equal(hasher_new(&h, NULL), CAIRN_OK);
    hasher_update(h, "a", 1);
    hasher_update(h, "", 0);
    hasher_update(h, "bc", 2);
    hasher_finish(h, &d);
    assert_string_equal(digest_format(&d, text), ABC);
}

/* OCI image specification, "ChainID": the digests' texts with one space between. */
static void test_chain_id_as_oci_defines_it(void **state)
{
    struct digest a, b, chain, expected;

    (void)state;
    digest_of("", 0, &a);
    digest_of("abc", 3, &b);
    digest_chain(NULL, &a, &chain);
    assert_true(digest_equal(&chain, &a));
    digest_chain(&a, &b, &chain);
    digest_of(EMPTY " " ABC, strlen(EMPTY " " ABC), &expected);
    assert_true(digest_equal(&chain, &expected));
}

static void test_quotes_are_bounded_and_printable(void **state)
{
    char quoted[QUOTE_MAX], text[300];

    (void)state;
    assert_string_equal(quote_str("a\"b\\c\n", quoted), "\"a\\x22b\\x5cc\\x0a\"");
    memset(text, 0xff, sizeof(text));
    for (size_t len = 0; len < sizeof(text); len++) {
        quote_bytes(text, len, quoted);
        assert_true(strlen(quoted) < QUOTE_MAX);
        assert_int_equal(quoted[strlen(quoted) - 1], '"');
    }
    assert_non_null(strstr(quoted, "...\""));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_digest_of_known_texts),
        cmocka_unit_test(test_parse_inverts_format),
        cmocka_unit_test(test_parse_refuses_other_texts),
        cmocka_unit_test(test_hasher_takes_pieces),
        cmocka_unit_test(test_chain_id_as_oci_defines_it),
        cmocka_unit_test(test_quotes_are_bounded_and_printable),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
