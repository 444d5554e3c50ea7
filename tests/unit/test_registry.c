/* SPDX-License-Identifier: Apache-2.0 */
/* The OCI distribution API over real HTTP, with libcurl.  Disks are played by a double: what
 * publishing does is test_disks' subject. */
#include "test.h"

#include <curl/curl.h>
#include <inttypes.h>
#include <jansson.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "log.h"
#include "registry.h"

#define MAX_UPLOAD 3000000

static struct cairn_error err;

/* -- The double --- */

static enum cairn_code publish_result;
static unsigned published_depth;

int disks_publish(struct disks *disks, const struct manifest *m, struct cairn_error *e)
{
    (void)disks;
    published_depth = m->depth;
    if (publish_result == CAIRN_OK)
        return CAIRN_OK;
    return error_set(e, publish_result, "layer sha256:123: publishing failed");
}

/* -- Server --- */

struct fixture {
    char dir[200];
    char url[220];
    struct store *store;
    struct registry *registry;
    struct http_server *server;
    struct http_route route;
    CURL *curl;
};

static void start(struct fixture *f)
{
    const struct registry_options limits = {.max_manifest = 1 << 20, .max_upload = MAX_UPLOAD};
    const struct http_options options = {
        .listen = "127.0.0.1:0",
        .threads = 2,
        .workers = 4,
        .max_connections = 50,
        .connection_timeout_s = 5,
        .connection_memory = 256 << 10,
    };

    snprintf(f->url, sizeof(f->url), "fs:%s", f->dir);
    assert_int_equal(store_open(f->url, &f->store, &err), CAIRN_OK);
    assert_int_equal(registry_new(f->store, NULL, &limits, &f->registry, &err), CAIRN_OK);
    f->route = (struct http_route){
        .path = "/v2/",
        .methods = HTTP_GET | HTTP_HEAD | HTTP_POST | HTTP_PUT | HTTP_PATCH | HTTP_DELETE,
        .begin = registry_begin,
        .handle = registry_handle,
        .ctx = f->registry,
    };
    assert_int_equal(http_server_start(&options, &f->route, 1, &f->server, &err), CAIRN_OK);
}

static void stop(struct fixture *f)
{
    http_server_stop(f->server, 5000);
    registry_free(f->registry);
    store_close(f->store);
}

static int setup(void **state)
{
    struct fixture *f = calloc(1, sizeof(*f));
    const char *tmp = getenv("TMPDIR");

    assert_non_null(f);
    log_set_level(LOG_LEVEL_ERROR);
    publish_result = CAIRN_OK;
    snprintf(f->dir, sizeof(f->dir), "%s/cairn-registry-XXXXXX", tmp ? tmp : "/tmp");
    assert_non_null(mkdtemp(f->dir));
    f->curl = curl_easy_init();
    start(f);
    *state = f;
    return 0;
}

static int teardown(void **state)
{
    struct fixture *f = *state;
    char command[300];

    curl_easy_cleanup(f->curl);
    stop(f);
    snprintf(command, sizeof(command), "rm -rf '%s'", f->dir);
    assert_int_equal(system(command), 0);
    free(f);
    return 0;
}

/* -- Client --- */

struct text {
    char *data;
    size_t len;
};

struct answer {
    long status;
    struct text headers, body;
};

static size_t append(char *data, size_t size, size_t nr, void *arg)
{
    struct text *t = arg;

    t->data = realloc(t->data, t->len + size * nr + 1);
    assert_non_null(t->data);
    memcpy(t->data + t->len, data, size * nr);
    t->len += size * nr;
    t->data[t->len] = 0;
    return size * nr;
}

static struct answer send_with(CURL *curl, const struct fixture *f, const char *method,
                               const char *path, const char *header, const void *body, size_t len)
{
    struct answer a = {0};
    struct curl_slist *headers = header ? curl_slist_append(NULL, header) : NULL;
    char url[1000];

    snprintf(url, sizeof(url), "http://%s%s", http_server_address(f->server), path);
    headers = curl_slist_append(headers, "Expect:");
    curl_easy_reset(curl);
    curl_easy_setopt(curl, CURLOPT_URL, url);
    curl_easy_setopt(curl, CURLOPT_CUSTOMREQUEST, method);
    curl_easy_setopt(curl, CURLOPT_HTTPHEADER, headers);
    curl_easy_setopt(curl, CURLOPT_TIMEOUT, 30L);
    curl_easy_setopt(curl, CURLOPT_NOBODY, strcmp(method, "HEAD") == 0 ? 1L : 0L);
    if (body) {
        curl_easy_setopt(curl, CURLOPT_POSTFIELDS, body);
        curl_easy_setopt(curl, CURLOPT_POSTFIELDSIZE_LARGE, (curl_off_t)len);
        curl_easy_setopt(curl, CURLOPT_CUSTOMREQUEST, method);
    }
    curl_easy_setopt(curl, CURLOPT_WRITEFUNCTION, append);
    curl_easy_setopt(curl, CURLOPT_WRITEDATA, &a.body);
    curl_easy_setopt(curl, CURLOPT_HEADERFUNCTION, append);
    curl_easy_setopt(curl, CURLOPT_HEADERDATA, &a.headers);
    assert_int_equal(curl_easy_perform(curl), CURLE_OK);
    curl_easy_getinfo(curl, CURLINFO_RESPONSE_CODE, &a.status);
    curl_slist_free_all(headers);
    return a;
}

static struct answer send_request(const struct fixture *f, const char *method, const char *path,
                                  const char *header, const void *body, size_t len)
{
    return send_with(f->curl, f, method, path, header, body, len);
}

static void release(struct answer *a)
{
    free(a->headers.data);
    free(a->body.data);
    *a = (struct answer){0};
}

static void expect(const struct answer *a, long status)
{
    if (a->status != status)
        print_error("expected %ld, got %s%s\n", status, a->headers.data,
                    a->body.data ? a->body.data : "");
    assert_int_equal(a->status, status);
}

static void expect_header(const struct answer *a, const char *header)
{
    char line[600];

    snprintf(line, sizeof(line), "%s\r\n", header);
    if (!strstr(a->headers.data, line))
        print_error("no '%s' in %s\n", header, a->headers.data);
    assert_non_null(strstr(a->headers.data, line));
}

static void expect_code(const struct answer *a, const char *code)
{
    char text[100];

    snprintf(text, sizeof(text), "\"code\":\"%s\"", code);
    if (!a->body.data || !strstr(a->body.data, text))
        print_error("no %s in %s\n", code, a->body.data ? a->body.data : "(nothing)");
    assert_non_null(strstr(a->body.data, text));
}

/* One request of which only the status matters. */
static void check(const struct fixture *f, const char *method, const char *path, long status)
{
    struct answer a = send_request(f, method, path, NULL, NULL, 0);

    expect(&a, status);
    release(&a);
}

/* -- Uploads by hand --- */

static char *make_bytes(size_t len)
{
    char *bytes = malloc(len + 1);

    assert_non_null(bytes);
    for (size_t i = 0; i < len; i++)
        bytes[i] = (char)(i * 7 + i / 1000);
    return bytes;
}

static char *digest_text(const void *buf, size_t len, char text[DIGEST_STR_MAX])
{
    struct digest d;

    digest_of(buf, len, &d);
    return digest_format(&d, text);
}

/* POST: the path that uploads go to. */
static void open_upload(const struct fixture *f, const char *repo, char location[300])
{
    char path[300];
    struct answer a;

    snprintf(path, sizeof(path), "/v2/%s/blobs/uploads/", repo);
    a = send_request(f, "POST", path, NULL, "", 0);
    expect(&a, 202);
    assert_int_equal(sscanf(strstr(a.headers.data, "Location: "), "Location: %299s", location), 1);
    assert_non_null(strstr(a.headers.data, "OCI-Chunk-Min-Length: "));
    assert_non_null(strstr(a.headers.data, "Docker-Upload-UUID: "));
    release(&a);
}

static struct answer patch(const struct fixture *f, const char *location, const char *range,
                           const char *bytes, size_t len)
{
    char header[100];

    snprintf(header, sizeof(header), "Content-Range: %s", range ? range : "");
    return send_request(f, "PATCH", location, range ? header : NULL, bytes, len);
}

static struct answer finish(const struct fixture *f, const char *location, const char *digest,
                            const char *bytes, size_t len)
{
    char path[500];

    snprintf(path, sizeof(path), "%s?digest=%s", location, digest);
    return send_request(f, "PUT", path, NULL, bytes, len);
}

static void push_blob(const struct fixture *f, const char *repo, const void *bytes, size_t len)
{
    char path[500], text[DIGEST_STR_MAX];
    struct answer a;

    snprintf(path, sizeof(path), "/v2/%s/blobs/uploads/?digest=%s", repo,
             digest_text(bytes, len, text));
    a = send_request(f, "POST", path, NULL, bytes, len);
    expect(&a, 201);
    release(&a);
}

static char *blob_path(const char *repo, const char *digest, char path[500])
{
    snprintf(path, 500, "/v2/%s/blobs/%s", repo, digest);
    return path;
}

static void expect_blob(const struct fixture *f, const char *repo, const void *bytes, size_t len)
{
    char path[500], text[DIGEST_STR_MAX];
    struct answer a =
        send_request(f, "GET", blob_path(repo, digest_text(bytes, len, text), path), NULL, NULL, 0);

    expect(&a, 200);
    assert_int_equal(a.body.len, len);
    assert_memory_equal(a.body.data, bytes, len);
    release(&a);
}

static unsigned count_uploads(const struct fixture *f)
{
    char command[300], line[20] = "";
    FILE *p;

    snprintf(command, sizeof(command), "ls '%s/uploads' | wc -l", f->dir);
    p = popen(command, "r");
    assert_non_null(p);
    assert_non_null(fgets(line, sizeof(line), p));
    pclose(p);
    return (unsigned)atoi(line);
}

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

#define REGISTRY_TEST(fn) cmocka_unit_test_setup_teardown(fn, setup, teardown)

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
        REGISTRY_TEST(test_aborted_monolithic_upload_leaves_nothing),
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
