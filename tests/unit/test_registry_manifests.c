/* SPDX-License-Identifier: Apache-2.0 */
/* The OCI distribution API: manifests, tags, referrers and lists. */
#include "registry_fixture.h"

/* -- Manifests --- */

#define TYPE_HEADER "Content-Type: " MANIFEST_MEDIA_TYPE

/* A disk of nr layers, all pushed to repo. */
static char *make_disk(const struct fixture *f, const char *repo, uint32_t nr, size_t *ret_len)
{
    struct manifest_layer layers[8];
    struct manifest *m;
    char *json;

    push_blob(f, repo, "{}", 2);
    for (uint32_t i = 0; i < nr; i++) {
        char bytes[32];
        int len = snprintf(bytes, sizeof(bytes), "layer %u of %u", i, nr);

        push_blob(f, repo, bytes, (size_t)len);
        layers[i].size = (uint64_t)len;
        layers[i].format = LAYER_QCOW2;
        digest_of(bytes, (size_t)len, &layers[i].digest);
    }
    assert_int_equal(manifest_new(layers, nr, &m, &err), CAIRN_OK);
    assert_int_equal(manifest_encode(m, &json, ret_len, &err), CAIRN_OK);
    manifest_free(m);
    return json;
}

static struct answer put_manifest(const struct fixture *f, const char *repo, const char *ref,
                                  const char *json, size_t len)
{
    char path[500];

    snprintf(path, sizeof(path), "/v2/%s/manifests/%s", repo, ref);
    return send_request(f, "PUT", path, TYPE_HEADER, json, len);
}

static void put_ok(const struct fixture *f, const char *repo, const char *ref, const char *json)
{
    struct answer a = put_manifest(f, repo, ref, json, strlen(json));

    expect(&a, 201);
    release(&a);
}

static void test_manifest_by_tag_and_by_digest(void **state)
{
    struct fixture *f = *state;
    size_t len;
    char *json = make_disk(f, "a/b", 3, &len), text[DIGEST_STR_MAX], path[500], header[200];
    struct answer a = put_manifest(f, "a/b", "v1", json, len);

    expect(&a, 201);
    digest_text(json, len, text);
    snprintf(header, sizeof(header), "Docker-Content-Digest: %s", text);
    expect_header(&a, header);
    snprintf(header, sizeof(header), "Location: /v2/a/b/manifests/%s", text);
    expect_header(&a, header);
    release(&a);
    assert_int_equal(published_depth, 3);
    for (int i = 0; i < 2; i++) {
        snprintf(path, sizeof(path), "/v2/a/b/manifests/%s", i ? text : "v1");
        a = send_request(f, "GET", path, NULL, NULL, 0);
        expect(&a, 200);
        expect_header(&a, TYPE_HEADER);
        assert_string_equal(a.body.data, json);
        release(&a);
        check(f, "HEAD", path, 200);
    }
    put_ok(f, "a/b", text, json);
    put_ok(f, "a/b", "v1", json);
    free(json);
}

static void test_tag_moves(void **state)
{
    struct fixture *f = *state;
    size_t len;
    char *one = make_disk(f, "a", 1, &len), *two = make_disk(f, "a", 2, &len);
    struct answer a;

    put_ok(f, "a", "latest", one);
    put_ok(f, "a", "latest", two);
    a = send_request(f, "GET", "/v2/a/manifests/latest", NULL, NULL, 0);
    assert_string_equal(a.body.data, two);
    release(&a);
    free(one);
    free(two);
}

static void test_unknown_manifests_are_404(void **state)
{
    struct fixture *f = *state;
    struct answer a = send_request(f, "GET", "/v2/a/manifests/none", NULL, NULL, 0);

    expect(&a, 404);
    expect_code(&a, "MANIFEST_UNKNOWN");
    release(&a);
    check(f, "GET", "/v2/a/manifests/.invalid", 404);
    check(f, "DELETE", "/v2/a/manifests/none", 404);
    check(f, "GET",
          "/v2/a/manifests/"
          "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
          404);
    check(f, "GET", "/v2/a/manifests/sha256:abc", 400);
}

static void expect_refused(const struct fixture *f, const char *ref, const char *json, long status,
                           const char *code, const char *says)
{
    struct answer a = put_manifest(f, "a", ref, json, strlen(json));

    expect(&a, status);
    expect_code(&a, code);
    if (!strstr(a.body.data, says))
        print_error("'%s' not in %s\n", says, a.body.data);
    assert_non_null(strstr(a.body.data, says));
    release(&a);
}

static void test_bad_manifests_are_refused(void **state)
{
    struct fixture *f = *state;
    size_t len;
    char *json = make_disk(f, "b", 2, &len);

    expect_refused(f, "v1", json, 404, "MANIFEST_BLOB_UNKNOWN", "config"); /* not in this one */
    push_blob(f, "a", "{}", 2);
    expect_refused(f, "v1", json, 404, "MANIFEST_BLOB_UNKNOWN", "layers[0]");
    push_blob(f, "a", "layer 0 of 2", 12);
    expect_refused(f, "v1", json, 404, "MANIFEST_BLOB_UNKNOWN", "layers[1]");
    expect_refused(f, "v1", "{", 400, "MANIFEST_INVALID", "");
    expect_refused(f, "v1", "[]", 400, "MANIFEST_INVALID", "");
    expect_refused(f, "v1", "", 400, "MANIFEST_INVALID", "");
    expect_refused(f, "not%20valid", json, 400, "TAG_INVALID", "tag");
    expect_refused(f, "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
                   json, 400, "DIGEST_INVALID", "digest is sha256:");
    check(f, "GET", "/v2/a/manifests/v1", 404);
    free(json);
}

static void test_size_that_differs_is_refused(void **state)
{
    struct fixture *f = *state;
    size_t len;
    char *json = make_disk(f, "a", 1, &len), *size = strstr(json, "\"size\":12");

    assert_non_null(size);
    memcpy(size, "\"size\":13", 9);
    expect_refused(f, "v1", json, 400, "MANIFEST_INVALID", "has 12 bytes, not 13");
    free(json);
}

static void test_wrong_content_type_is_refused(void **state)
{
    struct fixture *f = *state;
    struct answer a =
        send_request(f, "PUT", "/v2/a/manifests/v1",
                     "Content-Type: application/vnd.docker.distribution.manifest.v2+json", "{}", 2);

    expect(&a, 400);
    expect_code(&a, "MANIFEST_INVALID");
    release(&a);
    a = send_request(f, "PUT", "/v2/a/manifests/v1", "Content-Type:", "{}", 2);
    expect(&a, 400);
    release(&a);
}

static void test_manifest_larger_than_the_limit_is_413(void **state)
{
    struct fixture *f = *state;
    char *json = calloc(1, (1 << 20) + 2);
    struct answer a;

    memset(json, ' ', (1 << 20) + 1);
    a = put_manifest(f, "a", "v1", json, (1 << 20) + 1);
    expect(&a, 413);
    release(&a);
    free(json);
}

static void test_disk_that_does_not_publish_is_not_stored(void **state)
{
    static const struct {
        enum cairn_code code;
        long status;
        const char *oci;
    } cases[] = {
        {CAIRN_E_CORRUPT, 400, "MANIFEST_INVALID"},  {CAIRN_E_UNSUPPORTED, 400, "MANIFEST_INVALID"},
        {CAIRN_E_CONFLICT, 400, "MANIFEST_INVALID"}, {CAIRN_E_LIMIT, 400, "MANIFEST_INVALID"},
        {CAIRN_E_NO_SPACE, 507, "NO_SPACE"},         {CAIRN_E_IO, 500, "UNKNOWN"},
    };
    struct fixture *f = *state;
    size_t len;
    char *json = make_disk(f, "a", 1, &len);

    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        publish_result = cases[i].code;
        expect_refused(f, "v1", json, cases[i].status, cases[i].oci, "layer sha256:123");
        check(f, "GET", "/v2/a/manifests/v1", 404);
    }
    free(json);
}

/* An artifact of another type, with a subject if given. */
static char *make_artifact(const struct fixture *f, const char *type, const char *subject)
{
    char empty[DIGEST_STR_MAX], text[DIGEST_STR_MAX], *json;
    char subject_json[300] = "";

    push_blob(f, "a", "{}", 2);
    push_blob(f, "a", "signature", 9);
    if (subject)
        snprintf(subject_json, sizeof(subject_json),
                 ",\"subject\":{\"mediaType\":\"" MANIFEST_MEDIA_TYPE "\",\"digest\":\"%s\","
                 "\"size\":100}",
                 subject);
    assert_true(asprintf(&json,
                         "{\"schemaVersion\":2,\"mediaType\":\"" MANIFEST_MEDIA_TYPE "\","
                         "\"artifactType\":\"%s\",\"config\":{\"mediaType\":\"application/x\","
                         "\"digest\":\"%s\",\"size\":2},\"layers\":[{\"mediaType\":\"text/plain\","
                         "\"digest\":\"%s\",\"size\":9}],\"annotations\":{\"by\":\"me\"}%s}",
                         type, digest_text("{}", 2, empty), digest_text("signature", 9, text),
                         subject_json) > 0);
    return json;
}

static void test_other_artifacts_are_taken_as_they_are(void **state)
{
    struct fixture *f = *state;
    char *json = make_artifact(f, "application/example", NULL);
    struct answer a;

    publish_result = CAIRN_E_CORRUPT; /* must not be asked */
    put_ok(f, "a", "sig", json);
    a = send_request(f, "GET", "/v2/a/manifests/sig", NULL, NULL, 0);
    assert_string_equal(a.body.data, json);
    release(&a);
    free(json);
}

static void test_what_calls_itself_a_disk_must_be_one(void **state)
{
    struct fixture *f = *state;
    char *json = make_artifact(f, MANIFEST_ARTIFACT_TYPE, NULL);

    expect_refused(f, "v1", json, 400, "MANIFEST_INVALID", "manifest");
    free(json);
}

static json_t *get_json(const struct fixture *f, const char *path, struct answer *ret_answer)
{
    json_t *json;

    *ret_answer = send_request(f, "GET", path, NULL, NULL, 0);
    expect(ret_answer, 200);
    json = json_loads(ret_answer->body.data, 0, NULL);
    assert_non_null(json);
    return json;
}

static void test_referrers(void **state)
{
    static const char subject[] =
        "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
    struct fixture *f = *state;
    char *one = make_artifact(f, "application/one", subject);
    char *two = make_artifact(f, "application/two+json", subject);
    char path[500], text[DIGEST_STR_MAX];
    struct answer a = put_manifest(f, "a", "one", one, strlen(one));
    json_t *json, *list;

    expect(&a, 201);
    snprintf(path, sizeof(path), "OCI-Subject: %s", subject);
    expect_header(&a, path);
    release(&a);
    put_ok(f, "a", digest_text(two, strlen(two), text), two);

    snprintf(path, sizeof(path), "/v2/a/referrers/%s", subject);
    json = get_json(f, path, &a);
    expect_header(&a, "Content-Type: application/vnd.oci.image.index.v1+json");
    assert_int_equal(json_array_size(json_object_get(json, "manifests")), 2);
    json_decref(json);
    release(&a);

    strcat(path, "?artifactType=application/two+json");
    json = get_json(f, path, &a);
    expect_header(&a, "OCI-Filters-Applied: artifactType");
    list = json_object_get(json, "manifests");
    assert_int_equal(json_array_size(list), 1);
    assert_string_equal(json_string_value(json_object_get(json_array_get(list, 0), "digest")),
                        text);
    assert_string_equal(json_string_value(json_object_get(
                            json_object_get(json_array_get(list, 0), "annotations"), "by")),
                        "me");
    json_decref(json);
    release(&a);

    snprintf(path, sizeof(path), "/v2/a/manifests/%s", text);
    check(f, "DELETE", path, 202);
    snprintf(path, sizeof(path), "/v2/a/referrers/%s", subject);
    json = get_json(f, path, &a);
    assert_int_equal(json_array_size(json_object_get(json, "manifests")), 1);
    json_decref(json);
    release(&a);
    free(one);
    free(two);
}

/* Its record would be larger than what is read back, and break the list for everybody. */
static void test_a_referrer_of_an_endless_type_is_refused(void **state)
{
    static const char subject[] =
        "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
    char *type = calloc(1, 257), *json;

    memset(type, 'x', 256);
    json = make_artifact(*state, type, subject);
    expect_refused(*state, "v1", json, 400, "MANIFEST_INVALID", "artifactType");
    free(json);
    free(type);
}

static void test_referrers_of_the_unknown_are_none(void **state)
{
    struct answer a;
    json_t *json =
        get_json(*state,
                 "/v2/nowhere/referrers/"
                 "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
                 &a);

    assert_int_equal(json_array_size(json_object_get(json, "manifests")), 0);
    json_decref(json);
    release(&a);
}

/* -- Deleting and listing --- */

static void test_delete_by_digest_takes_the_tags_along(void **state)
{
    struct fixture *f = *state;
    size_t len;
    char *json = make_disk(f, "a", 1, &len), *other = make_disk(f, "a", 2, &len);
    char path[500], text[DIGEST_STR_MAX];

    put_ok(f, "a", "v1", json);
    put_ok(f, "a", "v2", json);
    put_ok(f, "a", "keep", other);
    snprintf(path, sizeof(path), "/v2/a/manifests/%s", digest_text(json, strlen(json), text));
    check(f, "DELETE", path, 202);
    check(f, "GET", path, 404);
    check(f, "DELETE", path, 404);
    check(f, "GET", "/v2/a/manifests/v1", 404);
    check(f, "GET", "/v2/a/manifests/v2", 404);
    check(f, "GET", "/v2/a/manifests/keep", 200);
    free(json);
    free(other);
}

static void test_delete_by_tag_keeps_the_manifest(void **state)
{
    struct fixture *f = *state;
    size_t len;
    char *json = make_disk(f, "a", 1, &len), path[500], text[DIGEST_STR_MAX];

    put_ok(f, "a", "v1", json);
    check(f, "DELETE", "/v2/a/manifests/v1", 202);
    check(f, "GET", "/v2/a/manifests/v1", 404);
    snprintf(path, sizeof(path), "/v2/a/manifests/%s", digest_text(json, strlen(json), text));
    check(f, "GET", path, 200);
    free(json);
}

/* The names in a list's answer, joined. */
static char *names_of(const struct fixture *f, const char *path, const char *field,
                      struct answer *ret_answer, char text[500])
{
    json_t *json = get_json(f, path, ret_answer);
    json_t *names = json_object_get(json, field);

    text[0] = 0;
    for (size_t i = 0; i < json_array_size(names); i++) {
        strcat(text, json_string_value(json_array_get(names, i)));
        strcat(text, " ");
    }
    json_decref(json);
    return text;
}

static void test_tags_come_in_pages(void **state)
{
    static const char *const tags[] = {"c", "a", "e", "b", "d"};
    struct fixture *f = *state;
    char text[500];
    struct answer a;
    size_t len;
    char *json = make_disk(f, "x/y", 1, &len);

    for (size_t i = 0; i < 5; i++)
        put_ok(f, "x/y", tags[i], json);
    assert_string_equal(names_of(f, "/v2/x/y/tags/list", "tags", &a, text), "a b c d e ");
    assert_null(strstr(a.headers.data, "Link: "));
    release(&a);
    assert_string_equal(names_of(f, "/v2/x/y/tags/list?n=2", "tags", &a, text), "a b ");
    expect_header(&a, "Link: </v2/x/y/tags/list?n=2&last=b>; rel=\"next\"");
    release(&a);
    assert_string_equal(names_of(f, "/v2/x/y/tags/list?n=2&last=b", "tags", &a, text), "c d ");
    release(&a);
    assert_string_equal(names_of(f, "/v2/x/y/tags/list?n=2&last=d", "tags", &a, text), "e ");
    assert_null(strstr(a.headers.data, "Link: "));
    release(&a);
    assert_string_equal(names_of(f, "/v2/x/y/tags/list?n=0", "tags", &a, text), "");
    release(&a);
    check(f, "GET", "/v2/x/y/tags/list?n=x", 400);
    check(f, "GET", "/v2/x/y/tags/list?n=-1", 400);
    check(f, "GET", "/v2/x/tags/list", 404);
    free(json);
}

static void test_catalogue_comes_in_pages(void **state)
{
    static const char *const repos[] = {"b", "a/b/c", "a", "a-b", "a/b", "c/d"};
    struct fixture *f = *state;
    char path[200] = "/v2/_catalog?n=1", text[500], all[500] = "";
    struct answer a;

    for (size_t i = 0; i < 6; i++)
        push_blob(f, repos[i], "x", 1);
    assert_string_equal(names_of(f, "/v2/_catalog", "repositories", &a, text),
                        "a a/b a/b/c a-b b c/d ");
    release(&a);
    for (unsigned i = 0; i < 6; i++) {
        const char *link;

        strcat(all, names_of(f, path, "repositories", &a, text));
        link = strstr(a.headers.data, "Link: <");
        assert_true((link != NULL) == (i < 5));
        if (link)
            snprintf(path, sizeof(path), "%.*s", (int)strcspn(link + 7, ">"), link + 7);
        release(&a);
    }
    assert_string_equal(all, "a a/b a/b/c a-b b c/d ");
    assert_string_equal(names_of(f, "/v2/_catalog?last=zzz", "repositories", &a, text), "");
    release(&a);
    assert_string_equal(names_of(f, "/v2/_catalog?last=../..", "repositories", &a, text),
                        "a a/b a/b/c a-b b c/d ");
    release(&a);
}

static void test_refs_are_resolved(void **state)
{
    struct fixture *f = *state;
    size_t len;
    char *json = make_disk(f, "a", 2, &len);
    struct digest expected, d;
    struct manifest *m;
    struct ref ref;

    put_ok(f, "a", "v1", json);
    digest_of(json, len, &expected);
    assert_int_equal(ref_parse("a:v1", &ref, &err), CAIRN_OK);
    assert_int_equal(registry_resolve(f->store, &ref, &d, &err), CAIRN_OK);
    assert_true(digest_equal(&d, &expected));
    assert_int_equal(registry_find_manifest(f->store, &ref, &m, &d, &err), CAIRN_OK);
    assert_int_equal(m->depth, 2);
    manifest_free(m);
    assert_int_equal(ref_parse("a:v2", &ref, &err), CAIRN_OK);
    assert_int_equal(registry_resolve(f->store, &ref, &d, &err), CAIRN_E_NOT_FOUND);
    free(json);
}

static void test_altered_manifest_is_not_believed(void **state)
{
    struct fixture *f = *state;
    char command[500];
    struct manifest *m;
    struct ref ref;
    size_t len;
    char *json = make_disk(f, "a", 2, &len);

    put_ok(f, "a", "v1", json);
    snprintf(command, sizeof(command),
             "sed -i s/schemaVersion/schemaversion/ %s/repos/a/_manifests/*", f->dir);
    assert_int_equal(system(command), 0);
    assert_int_equal(ref_parse("a:v1", &ref, &err), CAIRN_OK);
    assert_int_equal(registry_find_manifest(f->store, &ref, &m, NULL, &err), CAIRN_E_CORRUPT);
    free(json);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        REGISTRY_TEST(test_manifest_by_tag_and_by_digest),
        REGISTRY_TEST(test_tag_moves),
        REGISTRY_TEST(test_unknown_manifests_are_404),
        REGISTRY_TEST(test_bad_manifests_are_refused),
        REGISTRY_TEST(test_size_that_differs_is_refused),
        REGISTRY_TEST(test_wrong_content_type_is_refused),
        REGISTRY_TEST(test_manifest_larger_than_the_limit_is_413),
        REGISTRY_TEST(test_disk_that_does_not_publish_is_not_stored),
        REGISTRY_TEST(test_other_artifacts_are_taken_as_they_are),
        REGISTRY_TEST(test_what_calls_itself_a_disk_must_be_one),
        REGISTRY_TEST(test_referrers),
        REGISTRY_TEST(test_a_referrer_of_an_endless_type_is_refused),
        REGISTRY_TEST(test_referrers_of_the_unknown_are_none),
        REGISTRY_TEST(test_delete_by_digest_takes_the_tags_along),
        REGISTRY_TEST(test_delete_by_tag_keeps_the_manifest),
        REGISTRY_TEST(test_tags_come_in_pages),
        REGISTRY_TEST(test_catalogue_comes_in_pages),
        REGISTRY_TEST(test_refs_are_resolved),
        REGISTRY_TEST(test_altered_manifest_is_not_believed),
    };
    int failed;

    curl_global_init(CURL_GLOBAL_ALL);
    failed = cmocka_run_group_tests(tests, NULL, NULL);
    curl_global_cleanup();
    return failed;
}
