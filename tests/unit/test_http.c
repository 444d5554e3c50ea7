/* SPDX-License-Identifier: Apache-2.0 */
/* The HTTP server over real sockets; every request asks for `Connection: close` unless it is about
 * keeping it. */
#include "test.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

#include "http.h"
#include "log.h"

struct gate {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    unsigned inside;
    bool open;
};

struct fixture {
    struct http_server *server;
    struct gate gate;
    unsigned sinks_freed;
    unsigned streams_freed;
    uint64_t received; /* by sinks */
};

/* -- Handlers under test ------------------------------------------------------------------ */

static unsigned char pattern(uint64_t off)
{
    return (unsigned char)((off * 31 + (off >> 8)) % 251);
}

static void handle_echo(void *ctx, const struct http_request *req, struct http_reply *reply)
{
    size_t len;
    const void *body = http_body(req, &len);
    char *copy = malloc(len + 1);

    (void)ctx;
    assert_non_null(copy);
    memcpy(copy, body, len);
    http_reply_buffer(reply, 200, "text/plain", copy, len);
}

static void handle_text(void *ctx, const struct http_request *req, struct http_reply *reply)
{
    const char *q = http_query(req, "q");
    char *text;
    int len = asprintf(&text, "path=%s q=%s", http_path(req), q ? q : "(none)");

    (void)ctx;
    http_reply_header(reply, "X-Extra", "%d", 42);
    http_reply_buffer(reply, 200, "text/plain", text, (size_t)len);
}

static int read_pattern(void *ctx, void *buf, size_t len, uint64_t off, struct cairn_error *err)
{
    const uint64_t *fail_at = ctx;

    for (size_t i = 0; i < len; i++) {
        if (off + i == *fail_at)
            return error_set(err, CAIRN_E_CORRUPT, "byte %llu is bad", (unsigned long long)off + i);
        ((unsigned char *)buf)[i] = pattern(off + i);
    }
    return CAIRN_OK;
}

static uint64_t query_number(const struct http_request *req, const char *name, uint64_t otherwise)
{
    const char *text = http_query(req, name);

    return text ? strtoull(text, NULL, 10) : otherwise;
}

static struct fixture *current; /* for the free callbacks */

static void free_stream(void *ctx)
{
    __atomic_add_fetch(&current->streams_freed, 1, __ATOMIC_SEQ_CST);
    free(ctx);
}

static void handle_stream(void *ctx, const struct http_request *req, struct http_reply *reply)
{
    uint64_t *fail_at = malloc(sizeof(*fail_at));
    const struct http_stream stream = {read_pattern, free_stream, fail_at};

    (void)ctx;
    *fail_at = query_number(req, "fail", UINT64_MAX);
    http_reply_stream(reply, 200, "application/octet-stream", &stream, query_number(req, "len", 0));
}

static int read_chunk(void *ctx, void *buf, size_t len, size_t *ret_len, struct cairn_error *err)
{
    uint64_t *left = ctx;

    (void)err;
    *ret_len = len < 1000 ? len : 1000; /* less than asked for, to see it handled */
    if (*ret_len > *left)
        *ret_len = *left;
    memset(buf, 'c', *ret_len);
    *left -= *ret_len;
    return CAIRN_OK;
}

static void handle_chunks(void *ctx, const struct http_request *req, struct http_reply *reply)
{
    uint64_t *left = malloc(sizeof(*left));
    const struct http_chunks chunks = {read_chunk, free_stream, left};

    (void)ctx;
    *left = query_number(req, "len", 0);
    http_reply_chunked(reply, 200, "text/plain", &chunks);
}

static void handle_file(void *ctx, const struct http_request *req, struct http_reply *reply)
{
    int fd = memfd_create("file", MFD_CLOEXEC);

    (void)ctx;
    assert_int_equal(write(fd, "0123456789", 10), 10);
    http_reply_fd(reply, 206, "text/plain", fd, query_number(req, "off", 0),
                  query_number(req, "len", 10));
}

static void handle_slow(void *ctx, const struct http_request *req, struct http_reply *reply)
{
    struct gate *gate = &((struct fixture *)ctx)->gate;

    (void)req;
    pthread_mutex_lock(&gate->lock);
    gate->inside++;
    pthread_cond_broadcast(&gate->changed);
    while (!gate->open)
        pthread_cond_wait(&gate->changed, &gate->lock);
    pthread_mutex_unlock(&gate->lock);
    http_reply_status(reply, 200);
}

static int take_piece(void *ctx, const void *buf, size_t len, struct cairn_error *err)
{
    struct fixture *f = ctx;

    for (size_t i = 0; i < len; i++) {
        if (((const unsigned char *)buf)[i] != pattern(f->received + i))
            return error_set(err, CAIRN_E_CORRUPT, "byte %zu differs", i);
    }
    __atomic_add_fetch(&f->received, len, __ATOMIC_SEQ_CST);
    return CAIRN_OK;
}

static int fail_piece(void *ctx, const void *buf, size_t len, struct cairn_error *err)
{
    (void)ctx;
    (void)buf;
    (void)len;
    return error_set(err, CAIRN_E_NO_SPACE, "the disk is full");
}

static void free_sink(void *ctx)
{
    __atomic_add_fetch(&((struct fixture *)ctx)->sinks_freed, 1, __ATOMIC_SEQ_CST);
}

static void begin_sum(void *ctx, struct http_request *req, struct http_reply *reply)
{
    const struct http_sink sink = {take_piece, free_sink, ctx};
    const struct http_sink failing = {fail_piece, free_sink, ctx};

    if (strcmp(http_path(req), "/sum/refuse") == 0)
        http_reply_error(reply, 409, "CONFLICT", "not now");
    else if (strcmp(http_path(req), "/sum/fail") == 0)
        http_stream_body(req, &failing);
    else if (strcmp(http_path(req), "/sum/collect") == 0)
        http_collect_body(req, 100);
    else
        http_stream_body(req, &sink);
}

static void handle_sum(void *ctx, const struct http_request *req, struct http_reply *reply)
{
    struct fixture *f = ctx;
    char *text;
    int len = asprintf(&text, "received %llu", (unsigned long long)f->received);

    assert_true(http_sink_ctx(req) == ctx || strcmp(http_path(req), "/sum/collect") == 0);
    http_reply_buffer(reply, 201, "text/plain", text, (size_t)len);
}

/* -- Server and client -------------------------------------------------------------------- */

static struct http_route routes[] = {
    {"/echo", HTTP_POST | HTTP_PUT, 3000000, NULL, handle_echo, NULL},
    {"/text/", HTTP_GET | HTTP_HEAD, 0, NULL, handle_text, NULL},
    {"/stream", HTTP_GET | HTTP_HEAD, 0, NULL, handle_stream, NULL},
    {"/chunks", HTTP_GET | HTTP_HEAD, 0, NULL, handle_chunks, NULL},
    {"/file", HTTP_GET | HTTP_HEAD, 0, NULL, handle_file, NULL},
    {"/slow", HTTP_GET, 0, NULL, handle_slow, NULL},
    {"/sum/", HTTP_PUT | HTTP_POST | HTTP_PATCH, 0, begin_sum, handle_sum, NULL},
};

static int start_with(void **state, unsigned workers)
{
    const struct http_options options = {
        .listen = "127.0.0.1:0",
        .threads = 2,
        .workers = workers,
        .max_connections = 200,
        .connection_timeout_s = 2,
        .connection_memory = 256 << 10,
    };
    struct fixture *f = calloc(1, sizeof(*f));
    struct cairn_error err;

    assert_non_null(f);
    current = f;
    pthread_mutex_init(&f->gate.lock, NULL);
    pthread_cond_init(&f->gate.changed, NULL);
    for (size_t i = 0; i < sizeof(routes) / sizeof(routes[0]); i++)
        routes[i].ctx = f;
    log_set_level(LOG_LEVEL_ERROR);
    assert_int_equal(
        http_server_start(&options, routes, sizeof(routes) / sizeof(routes[0]), &f->server, &err),
        CAIRN_OK);
    *state = f;
    return 0;
}

static int setup(void **state)
{
    return start_with(state, 4);
}

static int setup_one_worker(void **state)
{
    return start_with(state, 1);
}

static int teardown(void **state)
{
    struct fixture *f = *state;

    http_server_stop(f->server, 5000);
    pthread_cond_destroy(&f->gate.changed);
    pthread_mutex_destroy(&f->gate.lock);
    free(f);
    return 0;
}

static int dial(const struct fixture *f)
{
    const struct timeval timeout = {.tv_sec = 20};
    struct sockaddr_in sin = {.sin_family = AF_INET};
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

    sin.sin_port = htons((uint16_t)atoi(strrchr(http_server_address(f->server), ':') + 1));
    sin.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &timeout, sizeof(timeout));
    setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &timeout, sizeof(timeout));
    assert_int_equal(connect(fd, (struct sockaddr *)&sin, sizeof(sin)), 0);
    return fd;
}

/* False if the server has closed. */
static bool send_all(int fd, const void *buf, size_t len)
{
    for (size_t done = 0; done < len;) {
        ssize_t n = send(fd, (const char *)buf + done, len - done, MSG_NOSIGNAL);

        if (n <= 0)
            return false;
        done += (size_t)n;
    }
    return true;
}

static void send_text(int fd, const char *text)
{
    assert_true(send_all(fd, text, strlen(text)));
}

struct answer {
    unsigned status;
    char *text; /* headers and body */
    char *body;
    size_t body_len;
};

static struct answer read_answer(int fd)
{
    struct answer a = {0};
    size_t len = 0, max = 1 << 16;
    ssize_t n;

    a.text = malloc(max + 1);
    while ((n = recv(fd, a.text + len, max - len, 0)) > 0) {
        len += (size_t)n;
        if (len == max)
            a.text = realloc(a.text, (max *= 2) + 1);
        assert_non_null(a.text);
    }
    close(fd);
    a.text[len] = 0;
    a.body = strstr(a.text, "\r\n\r\n");
    if (a.body) {
        a.body += 4;
        a.body_len = len - (size_t)(a.body - a.text);
        a.status = (unsigned)atoi(a.text + strlen("HTTP/1.1 "));
    }
    return a;
}

static struct answer request(const struct fixture *f, const char *method, const char *target,
                             const char *headers)
{
    char head[10000];
    int fd = dial(f);

    snprintf(head, sizeof(head), "%s %s HTTP/1.1\r\nHost: x\r\nConnection: close\r\n%s\r\n", method,
             target, headers ? headers : "");
    send_text(fd, head);
    return read_answer(fd);
}

static void assert_status(const struct fixture *f, const char *method, const char *target,
                          unsigned status)
{
    struct answer a = request(f, method, target, NULL);

    if (a.status != status)
        print_error("%s %s: %s\n", method, target, a.text);
    assert_int_equal(a.status, status);
    free(a.text);
}

/* Send len bytes of the pattern as a body, as far as the server takes them. */
static void send_body(int fd, uint64_t len)
{
    static unsigned char buf[65536];

    for (uint64_t off = 0; off < len;) {
        size_t n = len - off < sizeof(buf) ? (size_t)(len - off) : sizeof(buf);

        for (size_t i = 0; i < n; i++)
            buf[i] = pattern(off + i);
        if (!send_all(fd, buf, n))
            return;
        off += n;
    }
}

static struct answer upload(const struct fixture *f, const char *method, const char *path,
                            uint64_t len)
{
    char head[300];
    int fd = dial(f);

    snprintf(head, sizeof(head),
             "%s %s HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: %llu\r\n\r\n",
             method, path, (unsigned long long)len);
    send_text(fd, head);
    send_body(fd, len);
    return read_answer(fd);
}

static void wait_inside(struct fixture *f, unsigned nr)
{
    pthread_mutex_lock(&f->gate.lock);
    while (f->gate.inside < nr)
        pthread_cond_wait(&f->gate.changed, &f->gate.lock);
    pthread_mutex_unlock(&f->gate.lock);
}

static void open_gate(struct fixture *f)
{
    pthread_mutex_lock(&f->gate.lock);
    f->gate.open = true;
    pthread_cond_broadcast(&f->gate.changed);
    pthread_mutex_unlock(&f->gate.lock);
}

static void wait_until_freed(const unsigned *counter, unsigned nr)
{
    while (__atomic_load_n(counter, __ATOMIC_SEQ_CST) < nr)
        usleep(1000);
}

/* -- Targets ------------------------------------------------------------------------------ */

static void test_path_and_query_are_decoded_once(void **state)
{
    struct answer a = request(*state, "GET", "/text/a%20b%2541/c+d?x=1&q=sha256%3Aab+c%26", NULL);

    assert_int_equal(a.status, 200);
    assert_string_equal(a.body, "path=/text/a b%41/c+d q=sha256:ab+c&");
    assert_non_null(strstr(a.text, "X-Extra: 42\r\n"));
    free(a.text);
    a = request(*state, "GET", "http://host:99/text/z", NULL);
    assert_string_equal(a.body, "path=/text/z q=(none)");
    free(a.text);
}

static void test_hostile_targets_are_refused(void **state)
{
    assert_status(*state, "GET", "/text/%00", 400);
    assert_status(*state, "GET", "/text/%", 400);
    assert_status(*state, "GET", "/text/%4", 400);
    assert_status(*state, "GET", "/text/%zz", 400);
    assert_status(*state, "GET", "/text/../echo", 400);
    assert_status(*state, "GET", "/text/%2e%2e/echo", 400);
    assert_status(*state, "GET", "/text/%2E", 400);
    assert_status(*state, "GET", "/text/a%0ab", 400);
    assert_status(*state, "GET", "/text/?q=%zz", 400);
    assert_status(*state, "GET", "*", 400);
    assert_status(*state, "GET", "text", 400);
    assert_status(*state, "GET", "/nothing", 404);
    assert_status(*state, "GET", "/text", 404);
    assert_status(*state, "GET", "/echo/x", 404);
}

static void test_long_target_is_414(void **state)
{
    char target[9000];

    memset(target, 'a', sizeof(target));
    memcpy(target, "/text/", 6);
    target[sizeof(target) - 1] = 0;
    assert_status(*state, "GET", target, 414);
}

static void test_wrong_method_is_405_with_allow(void **state)
{
    struct answer a = request(*state, "DELETE", "/echo", NULL);

    assert_int_equal(a.status, 405);
    assert_non_null(strstr(a.text, "Allow: POST, PUT\r\n"));
    assert_non_null(strstr(a.body, "\"code\":\"UNSUPPORTED\""));
    free(a.text);
    assert_status(*state, "BREW", "/echo", 501);
    assert_status(*state, "OPTIONS", "/echo", 501);
}

static void test_request_id_is_kept_or_made(void **state)
{
    struct answer a = request(*state, "GET", "/text/", "X-Request-Id: my-id.1\r\n");

    assert_non_null(strstr(a.text, "X-Request-Id: my-id.1\r\n"));
    free(a.text);
    a = request(*state, "GET", "/text/", "X-Request-Id: not \"sane\"\r\n");
    assert_null(strstr(a.text, "sane"));
    assert_non_null(strstr(a.text, "X-Request-Id: "));
    free(a.text);
}

/* -- Replies ------------------------------------------------------------------------------ */

static void assert_pattern(const struct answer *a, uint64_t len)
{
    assert_int_equal(a->body_len, len);
    for (uint64_t i = 0; i < len; i++)
        assert_int_equal((unsigned char)a->body[i], pattern(i));
}

static void test_short_and_long_streams(void **state)
{
    static const unsigned long lens[] = {0, 1, 1 << 20, (1 << 20) + 1, 5000001};
    struct fixture *f = *state;
    char target[64];

    for (unsigned i = 0; i < sizeof(lens) / sizeof(lens[0]); i++) {
        struct answer a;

        snprintf(target, sizeof(target), "/stream?len=%lu", lens[i]);
        a = request(f, "GET", target, NULL);
        assert_int_equal(a.status, 200);
        assert_pattern(&a, lens[i]);
        free(a.text);
        wait_until_freed(&f->streams_freed, i + 1);
    }
}

static void test_stream_failing_early_is_an_error_status(void **state)
{
    assert_status(*state, "GET", "/stream?len=1000&fail=999", 500);
    assert_status(*state, "GET", "/stream?len=5000000&fail=1000", 500);
}

static void test_stream_failing_late_is_cut(void **state)
{
    struct answer a = request(*state, "GET", "/stream?len=5000000&fail=4000000", NULL);

    assert_int_equal(a.status, 200);
    assert_true(a.body_len < 5000000);
    assert_non_null(strstr(a.text, "Content-Length: 5000000\r\n"));
    free(a.text);
}

static void test_chunked_reply(void **state)
{
    struct answer a = request(*state, "GET", "/chunks?len=1000000", NULL);
    size_t nr = 0;

    assert_int_equal(a.status, 200);
    assert_non_null(strstr(a.text, "Transfer-Encoding: chunked\r\n"));
    for (size_t i = 0; i < a.body_len; i++)
        nr += a.body[i] == 'c';
    assert_true(nr >= 1000000); /* chunk sizes in hex may have a c in them */
    assert_string_equal(a.body + a.body_len - 5, "0\r\n\r\n");
    free(a.text);
}

static void test_file_part(void **state)
{
    struct answer a = request(*state, "GET", "/file?off=3&len=4", NULL);

    assert_int_equal(a.status, 206);
    assert_string_equal(a.body, "3456");
    free(a.text);
    a = request(*state, "GET", "/file?off=10&len=0", NULL);
    assert_non_null(strstr(a.text, "Content-Length: 0\r\n"));
    free(a.text);
}

static void test_head_has_the_headers_and_no_body(void **state)
{
    static const char *const targets[] = {"/stream?len=123&fail=0", "/file?len=10", "/text/x"};
    static const char *const lengths[] = {"Content-Length: 123\r\n", "Content-Length: 10\r\n",
                                          "Content-Length: 21\r\n"};

    for (size_t i = 0; i < 3; i++) {
        struct answer a = request(*state, "HEAD", targets[i], NULL);

        assert_int_equal(a.body_len, 0);
        assert_non_null(strstr(a.text, lengths[i]));
        assert_non_null(strstr(a.text, "Content-Type: "));
        free(a.text);
    }
    assert_status(*state, "HEAD", "/chunks?len=5", 200);
}

static void test_connection_is_kept(void **state)
{
    int fd = dial(*state);
    struct answer a;

    send_text(fd, "GET /text/1 HTTP/1.1\r\nHost: x\r\n\r\n"
                  "POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\nbody"
                  "PUT /sum/ HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n"
                  "GET /nothing HTTP/1.1\r\nHost: x\r\n\r\n"
                  "PUT /sum/refuse HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\nx"
                  "GET /text/2 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    a = read_answer(fd);
    assert_non_null(strstr(a.text, "path=/text/1"));
    assert_non_null(strstr(a.text, "body"));
    assert_non_null(strstr(a.text, "received 0"));
    assert_non_null(strstr(a.text, "path=/text/2"));
    free(a.text);
}

/* -- Bodies ------------------------------------------------------------------------------- */

static void test_collected_body(void **state)
{
    struct answer a = upload(*state, "POST", "/echo", 2500000);

    assert_int_equal(a.status, 200);
    assert_pattern(&a, 2500000);
    free(a.text);
}

static void test_collected_body_too_large_is_413(void **state)
{
    struct answer a = upload(*state, "POST", "/echo", 3000001);

    assert_int_equal(a.status, 413);
    free(a.text);
    a = upload(*state, "PUT", "/sum/collect", 101);
    assert_int_equal(a.status, 413);
    free(a.text);
    a = request(*state, "POST", "/echo",
                "Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n6\r\n world\r\n0\r\n");
    assert_int_equal(a.status, 200);
    assert_string_equal(a.body, "hello world");
    free(a.text);
}

static void test_chunked_collected_body_has_the_same_limit(void **state)
{
    int fd = dial(*state);
    struct answer a;

    send_text(fd, "PUT /sum/collect HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
                  "Transfer-Encoding: chunked\r\n\r\n65\r\n");
    send_body(fd, 101);
    send_text(fd, "\r\n0\r\n\r\n");
    a = read_answer(fd);
    assert_int_equal(a.status, 413);
    free(a.text);
}

static void test_streamed_bodies(void **state)
{
    static const uint64_t lens[] = {0, 1, 262144, 262145, 524288, 7000001};
    struct fixture *f = *state;

    for (unsigned i = 0; i < sizeof(lens) / sizeof(lens[0]); i++) {
        char expected[64];
        struct answer a;

        f->received = 0;
        a = upload(f, i % 2 ? "PUT" : "PATCH", "/sum/", lens[i]);
        snprintf(expected, sizeof(expected), "received %llu", (unsigned long long)lens[i]);
        assert_int_equal(a.status, 201);
        assert_string_equal(a.body, expected);
        free(a.text);
        wait_until_freed(&f->sinks_freed, i + 1);
    }
}

static void test_expect_continue(void **state)
{
    struct answer a;
    char line[64] = "";
    int fd = dial(*state);

    send_text(fd, "PUT /sum/ HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
                  "Content-Length: 1\r\nExpect: 100-continue\r\n\r\n");
    assert_true(recv(fd, line, sizeof(line) - 1, 0) > 0);
    assert_string_equal(line, "HTTP/1.1 100 Continue\r\n\r\n");
    send_body(fd, 1);
    a = read_answer(fd);
    assert_int_equal(a.status, 201);
    free(a.text);
}

static void test_refusal_comes_before_continue(void **state)
{
    struct answer a =
        request(*state, "PUT", "/sum/refuse", "Content-Length: 100\r\nExpect: 100-continue\r\n");

    assert_int_equal(a.status, 409);
    free(a.text);
}

static void test_refusal_of_a_short_body_reaches_the_client(void **state)
{
    struct answer a = upload(*state, "PUT", "/sum/refuse", 500000);

    assert_int_equal(a.status, 409);
    free(a.text);
    a = upload(*state, "PUT", "/nothing", 500000);
    assert_int_equal(a.status, 404);
    free(a.text);
}

static void test_failing_sink_is_the_reply(void **state)
{
    struct fixture *f = *state;
    struct answer a = upload(f, "PUT", "/sum/fail", 3000000);

    assert_int_equal(a.status, 507);
    assert_non_null(strstr(a.body, "the disk is full"));
    assert_non_null(strstr(a.body, "\"reason\":\"no-space\""));
    free(a.text);
    a = upload(f, "PUT", "/sum/fail", 1);
    assert_int_equal(a.status, 507);
    free(a.text);
    wait_until_freed(&f->sinks_freed, 2);
}

static void test_get_with_a_body_is_refused(void **state)
{
    struct answer a = request(*state, "GET", "/text/", "Content-Length: 3\r\n\r\nabc");

    assert_int_equal(a.status, 400);
    free(a.text);
}

static void test_client_gone_in_mid_body(void **state)
{
    struct fixture *f = *state;
    int fd = dial(f);

    send_text(fd, "PUT /sum/ HTTP/1.1\r\nHost: x\r\nContent-Length: 5000000\r\n\r\n");
    send_body(fd, 1000000);
    close(fd);
    wait_until_freed(&f->sinks_freed, 1);
    assert_true(__atomic_load_n(&f->received, __ATOMIC_SEQ_CST) <= 1000000);
}

static void test_silent_client_times_out(void **state)
{
    struct fixture *f = *state;
    int fd = dial(f);

    send_text(fd, "PUT /sum/ HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nx");
    wait_until_freed(&f->sinks_freed, 1);
    close(fd);
}

static void test_client_gone_in_mid_reply(void **state)
{
    struct fixture *f = *state;
    int fd = dial(f);
    char byte;

    send_text(fd, "GET /stream?len=50000000 HTTP/1.1\r\nHost: x\r\n\r\n");
    assert_int_equal(recv(fd, &byte, 1, 0), 1);
    close(fd);
    wait_until_freed(&f->streams_freed, 1);
}

static void test_many_connections_at_once(void **state)
{
    int fds[60];

    for (unsigned i = 0; i < 60; i++) {
        fds[i] = dial(*state);
        send_text(fds[i], "GET /stream?len=2000000 HTTP/1.1\r\nHost: x\r\n"
                          "Connection: close\r\n\r\n");
    }
    for (unsigned i = 0; i < 60; i++) {
        struct answer a = read_answer(fds[i]);

        assert_pattern(&a, 2000000);
        free(a.text);
    }
}

/* -- The pool, and stopping --------------------------------------------------------------- */

static void test_full_queue_is_503(void **state)
{
    struct fixture *f = *state;
    int blocked = dial(f), waiting[64];
    struct answer a;

    send_text(blocked, "GET /slow HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    wait_inside(f, 1);
    for (unsigned i = 0; i < 64; i++) {
        waiting[i] = dial(f);
        send_text(waiting[i], "GET /slow HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    }
    /* The 64 are queued, in whatever order; one of the next is refused, at the latest the 64th. */
    do {
        int fd = dial(f);
        const struct timeval at_once = {.tv_usec = 200000};

        setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &at_once, sizeof(at_once));
        send_text(fd, "GET /slow HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        a = read_answer(fd);
        if (a.status != 503)
            free(a.text);
    } while (a.status != 503);
    assert_non_null(strstr(a.text, "Retry-After: "));
    free(a.text);
    open_gate(f);
    a = read_answer(blocked);
    assert_int_equal(a.status, 200);
    free(a.text);
    for (unsigned i = 0; i < 64; i++) {
        a = read_answer(waiting[i]);
        assert_true(a.status == 200 || a.status == 503);
        free(a.text);
    }
}

static void *stop_server(void *arg)
{
    struct fixture *f = arg;

    http_server_stop(f->server, 10000);
    f->server = NULL;
    return NULL;
}

static bool refuses_connections(const struct sockaddr_in *sin)
{
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    bool refused = connect(fd, (const struct sockaddr *)sin, sizeof(*sin)) != 0;

    close(fd);
    return refused;
}

static void test_stop_finishes_what_is_in_flight(void **state)
{
    struct fixture *f = *state;
    int fd = dial(f), idle = dial(f);
    pthread_t stopper;
    struct answer a;

    send_text(fd, "GET /slow HTTP/1.1\r\nHost: x\r\n\r\n");
    wait_inside(f, 1);
    assert_int_equal(pthread_create(&stopper, NULL, stop_server, f), 0);
    open_gate(f);
    a = read_answer(fd);
    assert_int_equal(a.status, 200);
    free(a.text);
    a = read_answer(idle);
    assert_int_equal(a.status, 0);
    free(a.text);
    pthread_join(stopper, NULL);
}

static void test_stop_cuts_at_its_deadline(void **state)
{
    struct fixture *f = *state;
    struct sockaddr_in sin = {.sin_family = AF_INET};
    int fd = dial(f);
    struct answer a;

    sin.sin_port = htons((uint16_t)atoi(strrchr(http_server_address(f->server), ':') + 1));
    sin.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    send_text(fd, "PUT /sum/ HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n");
    send_body(fd, 600000);
    while (__atomic_load_n(&f->received, __ATOMIC_SEQ_CST) == 0)
        usleep(1000);
    http_server_stop(f->server, 50);
    f->server = NULL;
    a = read_answer(fd);
    assert_int_equal(a.status, 0);
    free(a.text);
    assert_true(refuses_connections(&sin));
    assert_int_equal(f->sinks_freed, 1);
}

static void test_bad_listen_addresses(void **state)
{
    static const char *const bad[] = {"",     "127.0.0.1",   "127.0.0.1:",           ":x",
                                      "[::1", "256.0.0.1:0", "127.0.0.1:99999999999"};
    struct http_options options = {.threads = 2,
                                   .workers = 1,
                                   .max_connections = 10,
                                   .connection_timeout_s = 1,
                                   .connection_memory = 65536};
    struct http_server *server;
    struct cairn_error err;

    (void)state;
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        options.listen = bad[i];
        assert_int_not_equal(http_server_start(&options, routes, 1, &server, &err), CAIRN_OK);
    }
}

static void test_port_in_use_is_said(void **state)
{
    struct fixture *f = *state;
    struct http_options options = {.threads = 2,
                                   .workers = 1,
                                   .max_connections = 10,
                                   .connection_timeout_s = 1,
                                   .connection_memory = 65536};
    struct http_server *server;
    struct cairn_error err;

    options.listen = http_server_address(f->server);
    assert_int_equal(http_server_start(&options, routes, 1, &server, &err), CAIRN_E_IO);
    assert_non_null(strstr(err.message, options.listen));
}

#define HTTP_TEST(fn) cmocka_unit_test_setup_teardown(fn, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        HTTP_TEST(test_path_and_query_are_decoded_once),
        HTTP_TEST(test_hostile_targets_are_refused),
        HTTP_TEST(test_long_target_is_414),
        HTTP_TEST(test_wrong_method_is_405_with_allow),
        HTTP_TEST(test_request_id_is_kept_or_made),
        HTTP_TEST(test_short_and_long_streams),
        HTTP_TEST(test_stream_failing_early_is_an_error_status),
        HTTP_TEST(test_stream_failing_late_is_cut),
        HTTP_TEST(test_chunked_reply),
        HTTP_TEST(test_file_part),
        HTTP_TEST(test_head_has_the_headers_and_no_body),
        HTTP_TEST(test_connection_is_kept),
        HTTP_TEST(test_collected_body),
        HTTP_TEST(test_collected_body_too_large_is_413),
        HTTP_TEST(test_chunked_collected_body_has_the_same_limit),
        HTTP_TEST(test_streamed_bodies),
        HTTP_TEST(test_expect_continue),
        HTTP_TEST(test_refusal_comes_before_continue),
        HTTP_TEST(test_refusal_of_a_short_body_reaches_the_client),
        HTTP_TEST(test_failing_sink_is_the_reply),
        HTTP_TEST(test_get_with_a_body_is_refused),
        HTTP_TEST(test_client_gone_in_mid_body),
        HTTP_TEST(test_silent_client_times_out),
        HTTP_TEST(test_client_gone_in_mid_reply),
        HTTP_TEST(test_many_connections_at_once),
        cmocka_unit_test_setup_teardown(test_full_queue_is_503, setup_one_worker, teardown),
        HTTP_TEST(test_stop_finishes_what_is_in_flight),
        HTTP_TEST(test_stop_cuts_at_its_deadline),
        cmocka_unit_test(test_bad_listen_addresses),
        HTTP_TEST(test_port_in_use_is_said),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
