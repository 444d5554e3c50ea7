/* SPDX-License-Identifier: Apache-2.0 */
/* The OCI distribution API: names, blobs and uploads. */
#include "registry_fixture.h"
#include "registry_internal.h"
#include "store_backend.h"

#include <fcntl.h>
#include <sys/file.h>

/* -- Base and names --- */

static void test_base(void **state)
{
    struct answer a = send_request(*state, "GET", "/v2/", NULL, NULL, 0);

    expect(&a, 200);
    expect_header(&a, "Docker-Distribution-API-Version: registry/2.0");
    release(&a);
}

static void test_paths_that_name_nothing(void **state)
{
    struct fixture *f = *state;
    char path[400] = "/v2/";

    check(f, "GET", "/v2/x", 404);
    check(f, "GET", "/v2/blobs/x", 404);
    check(f, "GET", "/v2/x/", 404);
    check(f, "GET", "/v2//tags/list", 400);
    check(f, "GET", "/v2/a/tags/other", 404);
    check(f, "GET", "/v2/UPPER/tags/list", 400);
    check(f, "GET", "/v2/_x/tags/list", 400);
    check(f, "GET", "/v2/a//b/tags/list", 400);
    check(f, "GET", "/v2/a..b/tags/list", 400);
    check(f, "GET", "/v2/a/_blobs/tags/list", 400);
    check(f, "GET", "/v2/a%2Fb/tags/list", 404); /* a valid name that is not there */
    memset(path + 4, 'a', 300);
    strcpy(path + 304, "/tags/list");
    check(f, "GET", path, 400);
}

static void test_wrong_methods(void **state)
{
    struct answer a = send_request(*state, "DELETE", "/v2/a/tags/list", NULL, NULL, 0);

    expect(&a, 405);
    expect_header(&a, "Allow: GET, HEAD");
    release(&a);
    a = send_request(*state, "PUT", "/v2/_catalog", NULL, "x", 1);
    expect(&a, 405);
    release(&a);
}

static void test_repository_named_like_the_api(void **state)
{
    struct fixture *f = *state;

    push_blob(f, "blobs/uploads/manifests", "abc", 3);
    expect_blob(f, "blobs/uploads/manifests", "abc", 3);
}

/* -- Blobs --- */

static void test_monolithic_upload(void **state)
{
    struct fixture *f = *state;
    char *bytes = make_bytes(1000000), text[DIGEST_STR_MAX], path[500], header[200];
    struct answer a;

    push_blob(f, "a/b", bytes, 1000000);
    expect_blob(f, "a/b", bytes, 1000000);
    digest_text(bytes, 1000000, text);
    a = send_request(f, "HEAD", blob_path("a/b", text, path), NULL, NULL, 0);
    expect(&a, 200);
    expect_header(&a, "Content-Length: 1000000");
    expect_header(&a, "Accept-Ranges: bytes");
    snprintf(header, sizeof(header), "Docker-Content-Digest: %s", text);
    expect_header(&a, header);
    snprintf(header, sizeof(header), "ETag: \"%s\"", text);
    expect_header(&a, header);
    release(&a);
    assert_int_equal(count_uploads(f), 0);
    free(bytes);
}

static void test_empty_blob(void **state)
{
    struct fixture *f = *state;
    char location[300], text[DIGEST_STR_MAX];
    struct answer a;

    open_upload(f, "a", location);
    a = finish(f, location, digest_text("", 0, text), "", 0);
    expect(&a, 201);
    release(&a);
    check(f, "HEAD",
          "/v2/a/blobs/"
          "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
          200);
}

static void test_ranges_of_a_blob(void **state)
{
    struct fixture *f = *state;
    char path[500], text[DIGEST_STR_MAX];
    struct answer a;

    push_blob(f, "a", "0123456789", 10);
    blob_path("a", digest_text("0123456789", 10, text), path);
    a = send_request(f, "GET", path, "Range: bytes=2-4", NULL, 0);
    expect(&a, 206);
    assert_string_equal(a.body.data, "234");
    expect_header(&a, "Content-Range: bytes 2-4/10");
    release(&a);
    a = send_request(f, "GET", path, "Range: bytes=10-", NULL, 0);
    expect(&a, 416);
    expect_header(&a, "Content-Range: bytes */10");
    release(&a);
    a = send_request(f, "GET", path, "Range: nonsense", NULL, 0);
    expect(&a, 200);
    release(&a);
}

static void test_unchanged_blob_is_304(void **state)
{
    struct fixture *f = *state;
    char path[500], text[DIGEST_STR_MAX], header[200];
    struct answer a;

    push_blob(f, "a", "abc", 3);
    snprintf(header, sizeof(header), "If-None-Match: \"%s\"", digest_text("abc", 3, text));
    a = send_request(f, "GET", blob_path("a", text, path), header, NULL, 0);
    expect(&a, 304);
    assert_int_equal(a.body.len, 0);
    release(&a);
}

static void test_blob_is_visible_only_where_it_was_pushed(void **state)
{
    struct fixture *f = *state;
    char path[500], text[DIGEST_STR_MAX];
    struct answer a;

    push_blob(f, "a", "abc", 3);
    a = send_request(f, "GET", blob_path("b", digest_text("abc", 3, text), path), NULL, NULL, 0);
    expect(&a, 404);
    expect_code(&a, "BLOB_UNKNOWN");
    release(&a);
}

static void test_bad_digests(void **state)
{
    static const char *const bad[] = {"sha256:abc", "md5:900150983cd24fb0d6963f7d28e17f72", "x",
                                      "sha256:"};
    struct fixture *f = *state;

    for (size_t i = 0; i < 4; i++) {
        char path[500];
        struct answer a = send_request(f, "GET", blob_path("a", bad[i], path), NULL, NULL, 0);

        expect(&a, 400);
        expect_code(&a, "DIGEST_INVALID");
        release(&a);
    }
}

static void test_delete_hides_a_blob_here_only(void **state)
{
    struct fixture *f = *state;
    char path[500], text[DIGEST_STR_MAX];

    push_blob(f, "a", "abc", 3);
    push_blob(f, "b", "abc", 3);
    digest_text("abc", 3, text);
    check(f, "DELETE", blob_path("a", text, path), 202);
    check(f, "GET", path, 404);
    check(f, "DELETE", path, 404);
    expect_blob(f, "b", "abc", 3);
}

static uint64_t look_ups(const struct fixture *f)
{
    const struct histogram *latency = f->store->counts.latency;

    return histogram_total(&latency[STORE_CALL_HEAD]) + histogram_total(&latency[STORE_CALL_OPEN]);
}

static void test_ranges_after_the_first_need_no_look_up(void **state)
{
    struct fixture *f = *state;
    uint64_t before;

    push_blob(f, "a", "abc", 3);
    expect_blob(f, "a", "abc", 3);
    before = look_ups(f);
    expect_blob(f, "a", "abc", 3);
    assert_int_equal(look_ups(f), before);
    assert_int_equal(f->store->counts.read_bytes[STORE_OBJECTS_BLOBS], 6);
}

static void test_delete_hides_a_blob_that_is_being_read(void **state)
{
    struct fixture *f = *state;
    char path[500], text[DIGEST_STR_MAX];

    push_blob(f, "a", "abc", 3);
    expect_blob(f, "a", "abc", 3);
    check(f, "DELETE", blob_path("a", digest_text("abc", 3, text), path), 202);
    check(f, "GET", path, 404);
}

/* As by another server: HEAD tells at once, and what it learns holds for GET, too. */
static void test_head_asks_the_store(void **state)
{
    struct fixture *f = *state;
    char path[500], key[REGISTRY_KEY_MAX], text[DIGEST_STR_MAX];
    struct digest d;

    push_blob(f, "a", "abc", 3);
    expect_blob(f, "a", "abc", 3);
    digest_of("abc", 3, &d);
    registry_repo_key("a", "_blobs", &d, key);
    assert_int_equal(store_delete(f->store, key, &err), CAIRN_OK);
    check(f, "HEAD", blob_path("a", digest_text("abc", 3, text), path), 404);
    check(f, "GET", path, 404);
}

static void test_mount(void **state)
{
    struct fixture *f = *state;
    char path[500], text[DIGEST_STR_MAX];
    struct answer a;

    push_blob(f, "from/here", "abc", 3);
    digest_text("abc", 3, text);
    snprintf(path, sizeof(path), "/v2/to/blobs/uploads/?mount=%s&from=from%%2Fhere", text);
    a = send_request(f, "POST", path, NULL, "", 0);
    expect(&a, 201);
    assert_non_null(strstr(a.headers.data, "Location: /v2/to/blobs/sha256:"));
    release(&a);
    expect_blob(f, "to", "abc", 3);
    snprintf(path, sizeof(path), "/v2/to2/blobs/uploads/?mount=%s&from=nowhere", text);
    check(f, "POST", path, 202);
    snprintf(path, sizeof(path), "/v2/to2/blobs/uploads/?mount=%s", text);
    check(f, "POST", path, 202);
}

/* -- Uploads --- */

static void test_chunks(void **state)
{
    struct fixture *f = *state;
    char *bytes = make_bytes(700000), location[300], text[DIGEST_STR_MAX];
    struct answer a;

    open_upload(f, "a", location);
    a = patch(f, location, "0-299999", bytes, 300000);
    expect(&a, 202);
    expect_header(&a, "Range: 0-299999");
    release(&a);
    a = patch(f, location, NULL, bytes + 300000, 100000);
    expect(&a, 202);
    expect_header(&a, "Range: 0-399999");
    release(&a);
    a = send_request(f, "GET", location, NULL, NULL, 0);
    expect(&a, 204);
    expect_header(&a, "Range: 0-399999");
    release(&a);
    a = finish(f, location, digest_text(bytes, 700000, text), bytes + 400000, 300000);
    expect(&a, 201);
    release(&a);
    expect_blob(f, "a", bytes, 700000);
    check(f, "GET", location, 404);
    assert_int_equal(count_uploads(f), 0);
    free(bytes);
}

static void test_gap_and_overlap_are_416(void **state)
{
    struct fixture *f = *state;
    char location[300], text[DIGEST_STR_MAX], header[400];
    struct answer a;

    open_upload(f, "a", location);
    a = patch(f, location, "0-2", "abc", 3);
    release(&a);
    a = patch(f, location, "4-5", "xx", 2);
    expect(&a, 416);
    expect_header(&a, "Range: 0-2");
    snprintf(header, sizeof(header), "Location: %s", location);
    expect_header(&a, header);
    release(&a);
    a = patch(f, location, "2-3", "xx", 2);
    expect(&a, 416);
    release(&a);
    a = patch(f, location, "3-5", "xx", 2);
    expect(&a, 400);
    expect_code(&a, "SIZE_INVALID");
    release(&a);
    a = patch(f, location, "-3", "xx", 2);
    expect(&a, 400);
    release(&a);
    a = finish(f, location, digest_text("abc", 3, text), "", 0);
    expect(&a, 201);
    release(&a);
    expect_blob(f, "a", "abc", 3);
}

static void test_wrong_digest_drops_the_upload(void **state)
{
    struct fixture *f = *state;
    char location[300], text[DIGEST_STR_MAX], path[500];
    struct answer a;

    open_upload(f, "a", location);
    a = finish(f, location, digest_text("abd", 3, text), "abc", 3);
    expect(&a, 400);
    expect_code(&a, "DIGEST_INVALID");
    release(&a);
    check(f, "GET", location, 404);
    check(f, "GET", blob_path("a", text, path), 404);
    check(f, "GET", blob_path("a", digest_text("abc", 3, text), path), 404);
    assert_int_equal(count_uploads(f), 0);
}

static void test_put_without_a_good_digest_keeps_the_upload(void **state)
{
    struct fixture *f = *state;
    char location[300], text[DIGEST_STR_MAX];
    struct answer a;

    open_upload(f, "a", location);
    a = send_request(f, "PUT", location, NULL, "abc", 3);
    expect(&a, 400);
    expect_code(&a, "DIGEST_INVALID");
    release(&a);
    a = finish(f, location, "sha256:xyz", "abc", 3);
    expect(&a, 400);
    release(&a);
    a = finish(f, location, digest_text("abc", 3, text), "abc", 3);
    expect(&a, 201);
    release(&a);
}

static void test_upload_survives_a_restart(void **state)
{
    struct fixture *f = *state;
    char *bytes = make_bytes(600000), location[300], text[DIGEST_STR_MAX];
    struct answer a;

    open_upload(f, "a", location);
    a = patch(f, location, "0-399999", bytes, 400000);
    release(&a);
    stop(f);
    start(f);
    a = send_request(f, "GET", location, NULL, NULL, 0);
    expect(&a, 204);
    expect_header(&a, "Range: 0-399999");
    release(&a);
    a = patch(f, location, "400000-499999", bytes + 400000, 100000);
    expect(&a, 202);
    release(&a);
    a = finish(f, location, digest_text(bytes, 600000, text), bytes + 500000, 100000);
    expect(&a, 201);
    release(&a);
    expect_blob(f, "a", bytes, 600000);
    free(bytes);
}

static void test_upload_by_way_of_two_servers(void **state)
{
    struct fixture *f = *state, second = {0};
    char location[300], text[DIGEST_STR_MAX];
    struct answer a;

    memcpy(second.dir, f->dir, sizeof(second.dir));
    second.curl = curl_easy_init();
    start(&second);
    open_upload(f, "a", location);
    a = patch(f, location, NULL, "abc", 3);
    release(&a);
    a = patch(&second, location, "3-5", "def", 3);
    expect(&a, 202);
    expect_header(&a, "Range: 0-5");
    release(&a);
    a = finish(f, location, digest_text("abcdefghi", 9, text), "ghi", 3);
    expect(&a, 201);
    release(&a);
    expect_blob(&second, "a", "abcdefghi", 9);
    curl_easy_cleanup(second.curl);
    stop(&second);
}

static void test_upload_belongs_to_its_repository(void **state)
{
    struct fixture *f = *state;
    char location[300], other[300];
    struct answer a;

    open_upload(f, "a", location);
    snprintf(other, sizeof(other), "/v2/b%s", location + strlen("/v2/a"));
    a = patch(f, other, NULL, "abc", 3);
    expect(&a, 404);
    expect_code(&a, "BLOB_UPLOAD_UNKNOWN");
    release(&a);
    check(f, "GET", other, 404);
    check(f, "DELETE", other, 404);
    check(f, "GET", location, 204);
    check(f, "GET", "/v2/a/blobs/uploads/nonsense", 404);
}

static void test_delete_ends_an_upload(void **state)
{
    struct fixture *f = *state;
    char location[300];

    open_upload(f, "a", location);
    check(f, "DELETE", location, 204);
    check(f, "DELETE", location, 404);
    assert_int_equal(count_uploads(f), 0);
}

static void test_upload_larger_than_the_limit_is_413(void **state)
{
    struct fixture *f = *state;
    char *bytes = make_bytes(MAX_UPLOAD + 1), location[300];
    struct answer a;

    open_upload(f, "a", location);
    a = patch(f, location, NULL, bytes, MAX_UPLOAD + 1);
    expect(&a, 413);
    expect_code(&a, "SIZE_INVALID");
    release(&a);
    a = patch(f, location, NULL, bytes, 10);
    expect(&a, 202);
    release(&a);
    a = send_request(f, "PATCH", location, "Transfer-Encoding: chunked", bytes, MAX_UPLOAD);
    expect(&a, 413);
    release(&a);
    free(bytes);
}

struct racer {
    struct fixture *f;
    const char *location;
    const char *bytes;
    long status;
};

static void *race(void *arg)
{
    struct racer *r = arg;
    CURL *curl = curl_easy_init();
    struct answer a =
        send_with(curl, r->f, "PATCH", r->location, "Content-Range: 0-999999", r->bytes, 1000000);

    r->status = a.status;
    release(&a);
    curl_easy_cleanup(curl);
    return NULL;
}

/* Of two that send the first chunk at once one may win, both may lose, and bytes never mix. */
static void test_racing_chunks_never_mix(void **state)
{
    struct fixture *f = *state;
    char *zeros = calloc(1, 1000000), *ones = malloc(1000000), location[300], header[60];

    memset(ones, 1, 1000000);
    for (int round = 0; round < 5; round++) {
        struct racer racers[2] = {{f, location, zeros, 0}, {f, location, ones, 0}};
        pthread_t threads[2];
        long long last = 0;
        struct answer a;

        open_upload(f, "a", location);
        for (int i = 0; i < 2; i++)
            assert_int_equal(pthread_create(&threads[i], NULL, race, &racers[i]), 0);
        for (int i = 0; i < 2; i++)
            pthread_join(threads[i], NULL);
        for (int i = 0; i < 2; i++)
            assert_true(racers[i].status == 202 || racers[i].status == 409 ||
                        racers[i].status == 416);
        assert_true(racers[0].status != 202 || racers[1].status != 202);
        a = send_request(f, "GET", location, NULL, NULL, 0);
        expect(&a, 204);
        sscanf(strstr(a.headers.data, "Range: 0-"), "Range: 0-%lld", &last);
        release(&a);
        for (int i = 0; i < 2; i++) /* what is there is a beginning of one of them, then the rest */
            if (racers[i].status == 202)
                assert_int_equal(last, 999999);
        snprintf(header, sizeof(header), "%lld", last);
        check(f, "DELETE", location, 204);
    }
    free(zeros);
    free(ones);
}

static void *end_upload(void *arg)
{
    struct racer *r = arg;
    CURL *curl = curl_easy_init();
    char path[500], text[DIGEST_STR_MAX];
    struct answer a;

    snprintf(path, sizeof(path), "%s?digest=%s", r->location, digest_text("abc", 3, text));
    a = send_with(curl, r->f, "PUT", path, NULL, "", 0);
    r->status = a.status;
    release(&a);
    curl_easy_cleanup(curl);
    return NULL;
}

/* Hashing and syncing take long; whoever comes meanwhile must not wait on a worker. */
static void test_an_upload_that_is_being_ended_is_busy(void **state)
{
    struct fixture *f = *state;
    char location[300], file[600];
    struct racer ender = {.f = f, .location = location};
    struct answer a;
    pthread_t thread;
    int fd;

    open_upload(f, "a", location);
    a = patch(f, location, NULL, "abc", 3);
    release(&a);
    snprintf(file, sizeof(file), "%s/uploads%s/data", f->dir, strrchr(location, '/'));
    fd = open(file, O_RDONLY | O_CLOEXEC);
    assert_int_equal(flock(fd, LOCK_EX), 0); /* the store waits for this */
    assert_int_equal(pthread_create(&thread, NULL, end_upload, &ender), 0);
    while ((a = patch(f, location, "77-77", "x", 1)).status == 416) /* not yet */
        release(&a);
    expect(&a, 503);
    release(&a);
    check(f, "DELETE", location, 503);
    close(fd);
    pthread_join(thread, NULL);
    assert_int_equal(ender.status, 201);
    expect_blob(f, "a", "abc", 3);
}

static void test_aborted_monolithic_upload_leaves_nothing(void **state)
{
    struct fixture *f = *state;
    struct answer a =
        send_request(f, "POST",
                     "/v2/a/blobs/uploads/?digest=sha256:"
                     "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
                     NULL, "abX", 3);

    expect(&a, 400);
    expect_code(&a, "DIGEST_INVALID");
    release(&a);
    assert_int_equal(count_uploads(f), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        REGISTRY_TEST(test_base),
        REGISTRY_TEST(test_paths_that_name_nothing),
        REGISTRY_TEST(test_wrong_methods),
        REGISTRY_TEST(test_repository_named_like_the_api),
        REGISTRY_TEST(test_monolithic_upload),
        REGISTRY_TEST(test_empty_blob),
        REGISTRY_TEST(test_ranges_of_a_blob),
        REGISTRY_TEST(test_unchanged_blob_is_304),
        REGISTRY_TEST(test_blob_is_visible_only_where_it_was_pushed),
        REGISTRY_TEST(test_bad_digests),
        REGISTRY_TEST(test_delete_hides_a_blob_here_only),
        REGISTRY_TEST(test_ranges_after_the_first_need_no_look_up),
        REGISTRY_TEST(test_delete_hides_a_blob_that_is_being_read),
        REGISTRY_TEST(test_head_asks_the_store),
        REGISTRY_TEST(test_mount),
        REGISTRY_TEST(test_chunks),
        REGISTRY_TEST(test_gap_and_overlap_are_416),
        REGISTRY_TEST(test_wrong_digest_drops_the_upload),
        REGISTRY_TEST(test_put_without_a_good_digest_keeps_the_upload),
        REGISTRY_TEST(test_upload_survives_a_restart),
        REGISTRY_TEST(test_upload_by_way_of_two_servers),
        REGISTRY_TEST(test_upload_belongs_to_its_repository),
        REGISTRY_TEST(test_delete_ends_an_upload),
        REGISTRY_TEST(test_upload_larger_than_the_limit_is_413),
        REGISTRY_TEST(test_racing_chunks_never_mix),
        REGISTRY_TEST(test_an_upload_that_is_being_ended_is_busy),
        REGISTRY_TEST(test_aborted_monolithic_upload_leaves_nothing),
    };
    int failed;

    curl_global_init(CURL_GLOBAL_ALL);
    failed = cmocka_run_group_tests(tests, NULL, NULL);
    curl_global_cleanup();
    return failed;
}
