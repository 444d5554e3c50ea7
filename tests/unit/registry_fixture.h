/* SPDX-License-Identifier: Apache-2.0 */
/* A registry over HTTP, and a client of it with libcurl.  Disks are played by a double: what
 * publishing does is test_disks' subject. */
#ifndef TESTS_UNIT_REGISTRY_FIXTURE_H
#define TESTS_UNIT_REGISTRY_FIXTURE_H

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
#include "scratch.h"

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

static inline void start(struct fixture *f)
{
    const struct registry_options limits = {
        .max_manifest = 1 << 20, .max_upload = MAX_UPLOAD, .grace_s = 3600};
    const struct http_options options = {
        .listen = "127.0.0.1:0",
        .threads = 2,
        .workers = 4,
        .max_connections = 50,
        .connection_timeout_s = 5,
        .connection_memory = 256 << 10,
        .reply_memory = 16 << 20,
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

static inline void stop(struct fixture *f)
{
    http_server_stop(f->server, 5000);
    registry_free(f->registry);
    store_close(f->store);
}

static inline int setup(void **state)
{
    struct fixture *f = calloc(1, sizeof(*f));

    assert_non_null(f);
    log_set_level(LOG_LEVEL_ERROR);
    publish_result = CAIRN_OK;
    snprintf(f->dir, sizeof(f->dir), "%s/cairn-registry-XXXXXX", scratch_base());
    assert_non_null(mkdtemp(f->dir));
    f->curl = curl_easy_init();
    start(f);
    *state = f;
    return 0;
}

static inline int teardown(void **state)
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

static inline size_t append(char *data, size_t size, size_t nr, void *arg)
{
    struct text *t = arg;

    t->data = realloc(t->data, t->len + size * nr + 1);
    assert_non_null(t->data);
    memcpy(t->data + t->len, data, size * nr);
    t->len += size * nr;
    t->data[t->len] = 0;
    return size * nr;
}

static inline struct answer send_with(CURL *curl, const struct fixture *f, const char *method,
                                      const char *path, const char *header, const void *body,
                                      size_t len)
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

static inline struct answer send_request(const struct fixture *f, const char *method,
                                         const char *path, const char *header, const void *body,
                                         size_t len)
{
    return send_with(f->curl, f, method, path, header, body, len);
}

static inline void release(struct answer *a)
{
    free(a->headers.data);
    free(a->body.data);
    *a = (struct answer){0};
}

static inline void expect(const struct answer *a, long status)
{
    if (a->status != status)
        print_error("expected %ld, got %s%s\n", status, a->headers.data,
                    a->body.data ? a->body.data : "");
    assert_int_equal(a->status, status);
}

static inline void expect_header(const struct answer *a, const char *header)
{
    char line[600];

    snprintf(line, sizeof(line), "%s\r\n", header);
    if (!strstr(a->headers.data, line))
        print_error("no '%s' in %s\n", header, a->headers.data);
    assert_non_null(strstr(a->headers.data, line));
}

static inline void expect_code(const struct answer *a, const char *code)
{
    char text[100];

    snprintf(text, sizeof(text), "\"code\":\"%s\"", code);
    if (!a->body.data || !strstr(a->body.data, text))
        print_error("no %s in %s\n", code, a->body.data ? a->body.data : "(nothing)");
    assert_non_null(strstr(a->body.data, text));
}

/* One request of which only the status matters. */
static inline void check(const struct fixture *f, const char *method, const char *path, long status)
{
    struct answer a = send_request(f, method, path, NULL, NULL, 0);

    expect(&a, status);
    release(&a);
}

/* -- Uploads by hand --- */

static inline char *make_bytes(size_t len)
{
    char *bytes = malloc(len + 1);

    assert_non_null(bytes);
    for (size_t i = 0; i < len; i++)
        bytes[i] = (char)(i * 7 + i / 1000);
    return bytes;
}

static inline char *digest_text(const void *buf, size_t len, char text[DIGEST_STR_MAX])
{
    struct digest d;

    digest_of(buf, len, &d);
    return digest_format(&d, text);
}

/* POST: the path that uploads go to. */
static inline void open_upload(const struct fixture *f, const char *repo, char location[300])
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

static inline struct answer patch(const struct fixture *f, const char *location, const char *range,
                                  const char *bytes, size_t len)
{
    char header[100];

    snprintf(header, sizeof(header), "Content-Range: %s", range ? range : "");
    return send_request(f, "PATCH", location, range ? header : NULL, bytes, len);
}

static inline struct answer finish(const struct fixture *f, const char *location,
                                   const char *digest, const char *bytes, size_t len)
{
    char path[500];

    snprintf(path, sizeof(path), "%s?digest=%s", location, digest);
    return send_request(f, "PUT", path, NULL, bytes, len);
}

static inline void push_blob(const struct fixture *f, const char *repo, const void *bytes,
                             size_t len)
{
    char path[500], text[DIGEST_STR_MAX];
    struct answer a;

    snprintf(path, sizeof(path), "/v2/%s/blobs/uploads/?digest=%s", repo,
             digest_text(bytes, len, text));
    a = send_request(f, "POST", path, NULL, bytes, len);
    expect(&a, 201);
    release(&a);
}

static inline char *blob_path(const char *repo, const char *digest, char path[500])
{
    snprintf(path, 500, "/v2/%s/blobs/%s", repo, digest);
    return path;
}

static inline void expect_blob(const struct fixture *f, const char *repo, const void *bytes,
                               size_t len)
{
    char path[500], text[DIGEST_STR_MAX];
    struct answer a =
        send_request(f, "GET", blob_path(repo, digest_text(bytes, len, text), path), NULL, NULL, 0);

    expect(&a, 200);
    assert_int_equal(a.body.len, len);
    assert_memory_equal(a.body.data, bytes, len);
    release(&a);
}

static inline unsigned count_uploads(const struct fixture *f)
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

#define REGISTRY_TEST(fn) cmocka_unit_test_setup_teardown(fn, setup, teardown)

#endif
