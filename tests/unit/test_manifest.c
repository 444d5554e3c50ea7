/* SPDX-License-Identifier: Apache-2.0 */
#include "test.h"

#include <stdio.h>
#include <string.h>

#include "manifest.h"

#define D1 "sha256:1111111111111111111111111111111111111111111111111111111111111111"
#define D2 "sha256:2222222222222222222222222222222222222222222222222222222222222222"
#define D3 "sha256:3333333333333333333333333333333333333333333333333333333333333333"

#define HEAD                                                                                       \
    "\"schemaVersion\":2,\"mediaType\":\"" MANIFEST_MEDIA_TYPE                                     \
    "\",\"artifactType\":\"" MANIFEST_ARTIFACT_TYPE "\""
#define CONFIG                                                                                     \
    "\"config\":{\"mediaType\":\"" MANIFEST_EMPTY_TYPE "\",\"digest\":\"" MANIFEST_EMPTY_DIGEST    \
    "\",\"size\":2}"
#define LAYER(type, digest, size)                                                                  \
    "{\"mediaType\":\"" type "\",\"digest\":\"" digest "\",\"size\":" size "}"
#define BASE   LAYER(MANIFEST_LAYER_RAW, D1, "512")
#define TOP    LAYER(MANIFEST_LAYER_QCOW2, D2, "196608")
#define LAYERS "\"layers\":[" BASE "," TOP "]"
#define GOOD   "{" HEAD "," CONFIG "," LAYERS "}"
#define NR(a)  (sizeof(a) / sizeof((a)[0]))

static int parse(const char *json, struct manifest **ret_manifest, struct cairn_error *err)
{
    return manifest_parse(json, strlen(json), ret_manifest, err);
}

static struct digest digest(const char *text)
{
    struct digest d;

    assert_int_equal(digest_parse(text, strlen(text), &d, NULL), CAIRN_OK);
    return d;
}

static void test_good_manifest_is_understood(void **state)
{
    CLEANUP(manifest_free_p) struct manifest *m = NULL;
    struct digest d1 = digest(D1), d2 = digest(D2), chain;

    (void)state;
    assert_int_equal(parse(GOOD, &m, NULL), CAIRN_OK);
    assert_int_equal(m->depth, 2);
    assert_int_equal(m->layers[0].format, LAYER_RAW);
    assert_int_equal(m->layers[0].size, 512);
    assert_int_equal(m->layers[1].format, LAYER_QCOW2);
    assert_true(digest_equal(&m->layers[1].digest, &d2));
    assert_true(digest_equal(&m->chain_ids[0], &d1));
    digest_chain(&d1, &d2, &chain);
    assert_true(digest_equal(&m->chain_ids[1], &chain));
    assert_false(m->has_subject || m->has_rebased_from);
}

static void test_optional_fields_are_understood(void **state)
{
    static const char json[] =
        "{" HEAD "," CONFIG "," LAYERS ",\"annotations\":{\"a\":\"b\",\"" MANIFEST_REBASED_FROM
        "\":\"" D3
        "\"},\"unknown\":[1.5,null,true],\"subject\":" LAYER(MANIFEST_MEDIA_TYPE, D2, "77") "}";
    CLEANUP(manifest_free_p) struct manifest *m = NULL;
    struct digest d2 = digest(D2), d3 = digest(D3);

    (void)state;
    assert_int_equal(parse(json, &m, NULL), CAIRN_OK);
    assert_true(m->has_subject && digest_equal(&m->subject, &d2));
    assert_int_equal(m->subject_size, 77);
    assert_true(m->has_rebased_from && digest_equal(&m->rebased_from, &d3));
    assert_string_equal(json_string_value(json_object_get(m->annotations, "a")), "b");
}

struct bad {
    const char *json;
    int code;
    const char *message; /* a part of it */
};

static const struct bad bad_manifests[] = {
    {"", CAIRN_E_CORRUPT, "not valid JSON"},
    {"[]", CAIRN_E_CORRUPT, "the document is an array"},
    {"{\"a\":1,\"a\":2}", CAIRN_E_CORRUPT, "duplicate object key"},
    {"{" CONFIG "," LAYERS "}", CAIRN_E_CORRUPT, "schemaVersion is missing, expected 2"},
    {"{\"schemaVersion\":1}", CAIRN_E_CORRUPT, "schemaVersion is 1"},
    {"{\"schemaVersion\":2,\"mediaType\":7}", CAIRN_E_CORRUPT, "mediaType is 7"},
    {"{\"schemaVersion\":2,\"mediaType\":\"x/y\"}", CAIRN_E_UNSUPPORTED, "mediaType is \"x/y\""},
    {"{\"schemaVersion\":2}", CAIRN_E_UNSUPPORTED, "artifactType is missing"},
    {"{\"schemaVersion\":2,\"artifactType\":\"z\"}", CAIRN_E_UNSUPPORTED, "artifactType is \"z\""},
    {"{" HEAD "," LAYERS "}", CAIRN_E_CORRUPT, "config is missing"},
    {"{" HEAD ",\"config\":" LAYER("a/b", MANIFEST_EMPTY_DIGEST, "2") "}", CAIRN_E_CORRUPT,
     "config.mediaType is \"a/b\""},
    {"{" HEAD ",\"config\":" LAYER(MANIFEST_EMPTY_TYPE, D1, "2") "}", CAIRN_E_CORRUPT,
     "config.digest is \"sha256:1111"},
    {"{" HEAD ",\"config\":" LAYER(MANIFEST_EMPTY_TYPE, MANIFEST_EMPTY_DIGEST, "3") "}",
     CAIRN_E_CORRUPT, "config.size is 3"},
    {"{" HEAD "," CONFIG "}", CAIRN_E_CORRUPT, "layers is missing"},
    {"{" HEAD "," CONFIG ",\"layers\":[]}", CAIRN_E_CORRUPT, "layers is an array"},
    {"{" HEAD "," CONFIG ",\"layers\":[3]}", CAIRN_E_CORRUPT, "layers[0] is 3"},
    {"{" HEAD "," CONFIG ",\"layers\":[" BASE "," BASE "]}", CAIRN_E_CORRUPT,
     "only layers[0] may be raw"},
    {"{" HEAD "," CONFIG ",\"layers\":[" LAYER("a/b", D1, "1") "]}", CAIRN_E_UNSUPPORTED,
     "layers[0].mediaType is \"a/b\""},
    {"{" HEAD "," CONFIG ",\"layers\":[" TOP "," LAYER(MANIFEST_LAYER_QCOW2, "sha256:22", "1") "]}",
     CAIRN_E_CORRUPT, "layers[1].digest is \"sha256:22\""},
    {"{" HEAD "," CONFIG ",\"layers\":[" LAYER(MANIFEST_LAYER_QCOW2, D1, "-1") "]}",
     CAIRN_E_CORRUPT, "layers[0].size is -1"},
    {"{" HEAD "," CONFIG ",\"layers\":[" LAYER(MANIFEST_LAYER_QCOW2, D1, "1.5") "]}",
     CAIRN_E_CORRUPT, "layers[0].size is 1.5"},
    {"{" HEAD "," CONFIG
     ",\"layers\":[" LAYER(MANIFEST_LAYER_QCOW2, D1, "9223372036854775808") "]}",
     CAIRN_E_CORRUPT, "too big"},
    {"{" HEAD "," CONFIG "," LAYERS ",\"annotations\":[]}", CAIRN_E_CORRUPT,
     "annotations is an array"},
    {"{" HEAD "," CONFIG "," LAYERS ",\"annotations\":{\"k\":1}}", CAIRN_E_CORRUPT,
     "annotations.\"k\" is 1"},
    {"{" HEAD "," CONFIG "," LAYERS ",\"annotations\":{\"" MANIFEST_REBASED_FROM "\":\"x\"}}",
     CAIRN_E_CORRUPT, "annotations." MANIFEST_REBASED_FROM " is \"x\""},
    {"{" HEAD "," CONFIG "," LAYERS ",\"subject\":1}", CAIRN_E_CORRUPT, "subject is 1"},
    {"{" HEAD "," CONFIG "," LAYERS ",\"subject\":{\"mediaType\":\"a/b\"}}", CAIRN_E_CORRUPT,
     "subject.digest is missing"},
    {GOOD "x", CAIRN_E_CORRUPT, "not valid JSON"},
    {"[[[[[[[[[[[[[[[[[]]]]]]]]]]]]]]]]]", CAIRN_E_LIMIT, "nested deeper than 16"},
};

static void test_bad_manifests_are_refused_by_field_and_value(void **state)
{
    (void)state;
    for (size_t i = 0; i < NR(bad_manifests); i++) {
        struct manifest *m = NULL;
        struct cairn_error err = {.message = ""};
        int code = parse(bad_manifests[i].json, &m, &err);

        if (code != bad_manifests[i].code || !strstr(err.message, bad_manifests[i].message))
            fail_msg("%s\n gave %d: %s", bad_manifests[i].json, code, err.message);
        assert_null(m);
    }
}

static void test_every_truncation_is_refused(void **state)
{
    (void)state;
    for (size_t len = 0; len < strlen(GOOD); len++) {
        struct manifest *m = NULL;

        assert_true(manifest_parse(GOOD, len, &m, NULL) < 0);
    }
}

static void test_too_many_values_are_refused_before_parsing(void **state)
{
    size_t len = 3u * (2 * CHAIN_DEPTH_MAX + 100);
    CLEANUP_FREE char *json = malloc(len + 1);
    struct cairn_error err;
    struct manifest *m = NULL;

    (void)state;
    assert_non_null(json);
    for (size_t i = 0; i < len; i += 3)
        memcpy(json + i, "{},", 3);
    assert_int_equal(manifest_parse(json, len, &m, &err), CAIRN_E_LIMIT);
}

static int new_manifest(uint32_t depth, struct manifest **ret_manifest, struct cairn_error *err)
{
    CLEANUP_FREE struct manifest_layer *layers = calloc(depth ? depth : 1, sizeof(*layers));

    assert_non_null(layers);
    for (uint32_t i = 0; i < depth; i++) {
        digest_of(&i, sizeof(i), &layers[i].digest);
        layers[i].size = 512 + i;
        layers[i].format = i == 0 ? LAYER_RAW : LAYER_QCOW2;
    }
    return manifest_new(layers, depth, ret_manifest, err);
}

static void assert_round_trip(const struct manifest *m)
{
    CLEANUP(manifest_free_p) struct manifest *back = NULL;
    CLEANUP_FREE char *json = NULL, *again = NULL;
    struct cairn_error err = {.message = ""};
    size_t len, again_len;

    assert_int_equal(manifest_encode(m, &json, &len, NULL), CAIRN_OK);
    if (manifest_parse(json, len, &back, &err) < 0)
        fail_msg("%s", err.message);
    assert_int_equal(back->depth, m->depth);
    assert_memory_equal(back->layers, m->layers, m->depth * sizeof(*m->layers));
    assert_memory_equal(back->chain_ids, m->chain_ids, m->depth * sizeof(*m->chain_ids));
    assert_int_equal(manifest_encode(back, &again, &again_len, NULL), CAIRN_OK);
    assert_string_equal(json, again);
    assert_int_equal(len, again_len);
}

static void test_encode_and_parse_invert_each_other(void **state)
{
    CLEANUP(manifest_free_p) struct manifest *m = NULL;

    (void)state;
    assert_int_equal(new_manifest(3, &m, NULL), CAIRN_OK);
    assert_round_trip(m);
    m->annotations = json_pack("{s:s, s:s}", "z", "1", "a", "2");
    m->has_rebased_from = m->has_subject = true;
    m->rebased_from = m->subject = m->chain_ids[0];
    m->subject_size = 99;
    assert_round_trip(m);
}

static void test_the_deepest_chain_fits(void **state)
{
    CLEANUP(manifest_free_p) struct manifest *m = NULL;

    (void)state;
    assert_int_equal(new_manifest(CHAIN_DEPTH_MAX, &m, NULL), CAIRN_OK);
    assert_round_trip(m);
}

static void test_impossible_chains_are_refused(void **state)
{
    struct manifest_layer raw[2] = {{.format = LAYER_RAW}, {.format = LAYER_RAW}};
    struct manifest *m = NULL;

    (void)state;
    assert_int_equal(new_manifest(0, &m, NULL), CAIRN_E_LIMIT);
    assert_int_equal(new_manifest(CHAIN_DEPTH_MAX + 1, &m, NULL), CAIRN_E_LIMIT);
    assert_int_equal(manifest_new(raw, 2, &m, NULL), CAIRN_E_USAGE);
}

static void test_names_by_the_grammar(void **state)
{
    static const char *const good[] = {"a",    "0",   "a/b/c", "a.b",      "a_b",
                                       "a__b", "a-b", "a---b", "vm/db-1.x"};
    static const char *const bad[] = {"",      "/",    "a/", "/a",     "a//b",    "A",  "a..b",
                                      "a___b", "a._b", ".a", "a.",     "_a",      "-a", "a-",
                                      "a b",   "a/_b", "..", "a/../b", "\xc3\xa9"};
    char longest[258];

    (void)state;
    for (size_t i = 0; i < NR(good); i++)
        assert_true(ref_valid_repo(good[i]));
    for (size_t i = 0; i < NR(bad); i++)
        assert_false(ref_valid_repo(bad[i]));
    memset(longest, 'a', sizeof(longest));
    longest[255] = 0;
    assert_true(ref_valid_repo(longest));
    longest[255] = 'a';
    longest[256] = 0;
    assert_false(ref_valid_repo(longest));
}

static void test_tags_by_the_grammar(void **state)
{
    static const char *const good[] = {"a", "_", "A.b-c_D", "1"};
    static const char *const bad[] = {"", ".a", "-a", "a b", "a/b", "a:b"};
    char longest[130];

    (void)state;
    for (size_t i = 0; i < NR(good); i++)
        assert_true(ref_valid_tag(good[i]));
    for (size_t i = 0; i < NR(bad); i++)
        assert_false(ref_valid_tag(bad[i]));
    memset(longest, 'a', sizeof(longest));
    longest[128] = 0;
    assert_true(ref_valid_tag(longest));
    longest[128] = 'a';
    longest[129] = 0;
    assert_false(ref_valid_tag(longest));
}

static void test_refs(void **state)
{
    char text[REF_STR_MAX];
    struct ref ref;

    (void)state;
    assert_int_equal(ref_parse("a/b", &ref, NULL), CAIRN_OK);
    assert_string_equal(ref_format(&ref, text), "a/b:latest");
    assert_int_equal(ref_parse("a/b:v1", &ref, NULL), CAIRN_OK);
    assert_string_equal(ref_format(&ref, text), "a/b:v1");
    assert_int_equal(ref_parse("a/b@" D1, &ref, NULL), CAIRN_OK);
    assert_string_equal(ref.tag, "");
    assert_string_equal(ref_format(&ref, text), "a/b@" D1);
}

static void test_bad_refs_are_refused(void **state)
{
    static const char *const bad[] = {"",      ":t",  "@" D1,  "a:",      "a@",
                                      "a:b:c", "A:t", "a@x:y", "a:t@" D1, "a@sha256:00"};
    struct cairn_error err;
    struct ref ref;

    (void)state;
    for (size_t i = 0; i < NR(bad); i++)
        assert_int_equal(ref_parse(bad[i], &ref, &err), CAIRN_E_USAGE);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_good_manifest_is_understood),
        cmocka_unit_test(test_optional_fields_are_understood),
        cmocka_unit_test(test_bad_manifests_are_refused_by_field_and_value),
        cmocka_unit_test(test_every_truncation_is_refused),
        cmocka_unit_test(test_too_many_values_are_refused_before_parsing),
        cmocka_unit_test(test_encode_and_parse_invert_each_other),
        cmocka_unit_test(test_the_deepest_chain_fits),
        cmocka_unit_test(test_impossible_chains_are_refused),
        cmocka_unit_test(test_names_by_the_grammar),
        cmocka_unit_test(test_tags_by_the_grammar),
        cmocka_unit_test(test_refs),
        cmocka_unit_test(test_bad_refs_are_refused),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
